#!/usr/bin/env bash
# Puts the tools that the checks of deploy/ use into build/tools. It installs, configures and starts
# nothing, and does nothing when they are there already.
#   scripts/get_check_tools.sh
#   build/tools/bin      prometheus and promtool, of the distribution's package
#   build/tools/python   Python packages (for PYTHONPATH)
set -euo pipefail
cd "$(dirname "$0")/.."

tools=$PWD/build/tools
python_packages=(pyyaml)

get_prometheus() {
  "$tools/bin/promtool" --version >/dev/null 2>&1 &&
    "$tools/bin/prometheus" --version >/dev/null 2>&1 && return
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  (cd "$scratch" && { apt-get download -q prometheus 2>/dev/null ||
    { apt-get update -q && apt-get download -q prometheus; }; })
  dpkg -x "$scratch"/prometheus_*.deb "$scratch/tree"
  mkdir -p "$tools/bin"
  cp "$scratch/tree/usr/bin/prometheus" "$scratch/tree/usr/bin/promtool" "$tools/bin/"
}

get_python_packages() {
  local list="${python_packages[*]}"
  [ "$(cat "$tools/python/.packages" 2>/dev/null)" = "$list" ] && return
  rm -rf "$tools/python"
  python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore \
    --target "$tools/python" "${python_packages[@]}"
  echo "$list" >"$tools/python/.packages"
}

get_prometheus
get_python_packages
"$tools/bin/promtool" --version | head -n 1
echo "Python packages in build/tools/python: ${python_packages[*]}"
