#!/usr/bin/env bash
# Installs what Ferrite needs to build and test, from the distribution's packages.
# Debian 12 and Ubuntu 24.04, as root. Does nothing when everything is there already.
#   scripts/setup.sh            build, test and run
#   scripts/setup.sh --runtime  only the shared libraries that the built programs need
set -euo pipefail

build_packages=(
  build-essential cmake ninja-build pkg-config git ca-certificates python3 python3-numpy
  python3-pip python3-grpcio python3-protobuf
  protobuf-compiler protobuf-compiler-grpc libprotobuf-dev libgrpc++-dev libabsl-dev
  libdnnl-dev libyaml-cpp-dev nlohmann-json3-dev libcli11-dev libgtest-dev libgmock-dev
  libpcre2-dev libutf8proc-dev libssl-dev libxxhash-dev
  prometheus-cpp-dev libcpp-httplib-dev
)
# Matched by name, since the version suffix differs between the distributions.
runtime_patterns=('^libgrpc\+\+[0-9.]+(t64)?$' '^libprotobuf[0-9]+(t64)?$' '^libdnnl[0-9.]+$'
                  '^libyaml-cpp[0-9.]+$' '^libgomp1$' '^libpcre2-8-0$' '^libutf8proc[0-9]+$'
                  '^libssl3(t64)?$' '^libprometheus-cpp-core[0-9.]+(t64)?$'
                  '^libcpp-httplib[0-9.]+(t64)?$')

missing() { # prints those of the named packages that are not installed
  local name
  for name in "$@"; do
    dpkg-query -W -f='${Status}' "$name" 2>/dev/null | grep -q 'install ok installed' || echo "$name"
  done
}

install() {
  local wanted
  mapfile -t wanted < <(missing "$@")
  [ "${#wanted[@]}" -eq 0 ] && return 0
  if [ "$(id -u)" -ne 0 ]; then
    echo "setup.sh: these packages are missing, and installing them needs root: ${wanted[*]}" >&2
    exit 1
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -q
  apt-get install -y -q --no-install-recommends "${wanted[@]}"
}

case "${1:-}" in
  "") install "${build_packages[@]}" ;;
  --runtime)
    [ "$(id -u)" -eq 0 ] || { echo "setup.sh: --runtime needs root" >&2; exit 1; }
    apt-get update -q
    names=()
    for pattern in "${runtime_patterns[@]}"; do
      name=$(apt-cache pkgnames | grep -E "$pattern" | sort -V | tail -n 1 || true)
      [ -n "$name" ] || { echo "setup.sh: no package matches $pattern" >&2; exit 1; }
      names+=("$name")
    done
    install "${names[@]}"
    ;;
  *) echo "usage: scripts/setup.sh [--runtime]" >&2; exit 2 ;;
esac
