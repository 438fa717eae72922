#!/usr/bin/env bash
# Executes every step of the Dockerfile without a container engine, on clean roots of this machine's
# distribution (Debian 12 or Ubuntu 24.04) made by debootstrap in place of the base images; starts the
# server of the resulting root as uid 65532 without capabilities and with the root read-only, has its
# client make a story, prints sizes, and does the same with the tarball of bundle.sh. Takes as long as
# a build.
#   scripts/check_container.sh                       the CPU variant
#   scripts/check_container.sh --backend cuda        with this machine's /usr/local/cuda, read-only
#   --arch 90-real     kernels for one chip only
#   --jobs N           compilers at a time
#   --ccache FOLDER    with a compiler cache, which the Dockerfile itself has not
#   --cache FOLDER     where the clean root is kept for the next time (build/container)
# As root, with debootstrap (apt-get install debootstrap). apt in the roots uses this machine's sources.
# Every mount is in a namespace that ends with the script.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1-}" in -h | --help) sed -n '2,16s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
[ "$(id -u)" -eq 0 ] || { echo "check_container.sh: needs root, for chroot and mount" >&2; exit 1; }
for tool in debootstrap unshare python3; do
  command -v "$tool" >/dev/null || { echo "check_container.sh: $tool is not installed" >&2; exit 1; }
done

work=$(mktemp -d "${TMPDIR:-/tmp}/ferrite-container.XXXXXX")
inside=
cleanup() {
  status=$?
  if [ -n "$inside" ]; then
    kill -KILL "$inside" 2>/dev/null || true # and with it, by --kill-child, all in the namespace
    wait "$inside" 2>/dev/null || true
  fi
  if grep -F " $work/" /proc/self/mounts >&2; then
    echo "check_container.sh: still mounted; $work is left as it is" >&2
    exit 1
  fi
  rm -rf --one-file-system "$work"
  exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

unshare --mount --pid --fork --mount-proc --kill-child \
  python3 tests/deploy/container_run.py --work "$work" "$@" &
inside=$!
result=0
wait "$inside" || result=$?
inside=
exit "$result"
