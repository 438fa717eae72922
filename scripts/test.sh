#!/usr/bin/env bash
# Sets up, builds and runs all tests.
#   scripts/test.sh                 the optimised build
#   scripts/test.sh --asan          with AddressSanitizer and UndefinedBehaviorSanitizer
#   scripts/test.sh --tsan          with ThreadSanitizer
#   --quick                         after these: only the tests that threads and memory can break
#   other arguments go to ctest (-R name, --verbose, ...)
set -euo pipefail
cd "$(dirname "$0")/.."

preset=cpu
build=()
select=()
while [ $# -gt 0 ]; do
  case "$1" in
    --asan) preset=asan ;;
    --tsan) preset=tsan ;;
    --quick) build=(--target quick_tests); select=(-L quick) ;;
    -h | --help) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) break ;;
  esac
  shift
done

scripts/setup.sh
cmake --preset "$preset"
cmake --build --preset "$preset" --parallel "$(nproc)" "${build[@]}"
ctest --preset "$preset" "${select[@]}" "$@"
