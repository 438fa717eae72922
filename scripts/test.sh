#!/usr/bin/env bash
# Sets up, builds and runs all tests.
#   scripts/test.sh                 the optimised build; with the CUDA backend where nvcc is found
#                                   (GPU tests are skipped where there is no GPU)
#   scripts/test.sh --cpu           without it
#   --arch LIST                     compiles kernels for these architectures only, such as 80;90
#   scripts/test.sh --asan          with AddressSanitizer and UndefinedBehaviorSanitizer
#   scripts/test.sh --tsan          with ThreadSanitizer
#   --unity                         compiles several files of a library as one: faster from nothing
#   --quick                         after these: only the tests that threads and memory can break
#   other arguments go to ctest (-R name, --verbose, ...)
set -euo pipefail
cd "$(dirname "$0")/.."

preset=cpu
if command -v nvcc >/dev/null || [ -x /usr/local/cuda/bin/nvcc ]; then
  preset=cuda
  export PATH="$PATH:/usr/local/cuda/bin"
fi
configure=()
unity=()
build=()
select=()
while [ $# -gt 0 ]; do
  case "$1" in
    --cpu) preset=cpu ;;
    --arch) configure+=("-DCMAKE_CUDA_ARCHITECTURES=$2"); shift ;;
    --unity) unity=("-DCMAKE_UNITY_BUILD=ON") ;;
    --asan) preset=asan ;;
    --tsan) preset=tsan ;;
    --quick) build=(--target quick_tests); select=(-L quick) ;;
    -h | --help) sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) break ;;
  esac
  shift
done

scripts/setup.sh
[ "$preset" = cuda ] || configure=()
cmake --preset "$preset" "${configure[@]}" "${unity[@]}"
cmake --build --preset "$preset" --parallel "$(nproc)" "${build[@]}"
ctest --preset "$preset" "${select[@]}" "$@"
