#!/usr/bin/env bash
# Makes a folder that runs on any x86-64 Linux with a C library no older than this one's: the server,
# the client, the embedded model, and the shared libraries they need. With the cuda preset the
# machine must bring the NVIDIA driver and cuBLAS.
#   scripts/bundle.sh [--preset cpu|cuda] [--build FOLDER] [--out FOLDER] [--tests] [--ptx80 FOLDER]
#                     [--no-server] [--also PROGRAM ...]
# --build: where the preset was built, if not in build/PRESET.
# --tests: takes along every GPU test and benchmark that is built (configure with
#   -DFERRITE_TEST_ROOT=. so that they find their fixtures), the fixtures and scripts/gpu_check.sh.
# --ptx80: a build with -DCMAKE_CUDA_ARCHITECTURES=80-virtual, whose GPU tests come along as well.
# --no-server: neither server nor client, where only tests and benchmarks are wanted.
# --also: other targets to take along, by their paths below the build folder.
# Then, from anywhere:
#   FOLDER/run ferrite-server --model.path=FOLDER/models/stories260k
#   FOLDER/scripts/gpu_check.sh
set -euo pipefail
caller=$PWD
cd "$(dirname "$0")/.."

preset=cpu
build=
out=build/bundle
tests=
ptx80=
programs=(server/ferrite-server client/ferrite)
from_caller() { case "$1" in /*) echo "$1" ;; *) echo "$caller/$1" ;; esac; }
while [ $# -gt 0 ]; do
  case "$1" in
    --preset) preset=$2; shift 2 ;;
    --build) build=$(from_caller "$2"); shift 2 ;;
    --out) out=$(from_caller "$2"); shift 2 ;;
    --tests) tests=1; shift ;;
    --ptx80) ptx80=$(from_caller "$2"); shift 2 ;;
    --no-server) programs=(); shift ;;
    --also) shift; programs+=("$@"); break ;;
    *) sed -n '2,18s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
done
build=${build:-build/$preset}

for program in "${programs[@]}"; do
  [ -x "$build/$program" ] || { echo "bundle.sh: $build/$program is not built" >&2; exit 1; }
done
case "$out" in "$PWD" | / | "$HOME" | "$caller") echo "bundle.sh: not into $out" >&2; exit 2 ;; esac
rm -rf "$out"
mkdir -p "$out/bin" "$out/lib" "$out/models"
for program in "${programs[@]}"; do
  cp "$build/$program" "$out/bin/"
done

# take FOLDER-TO FIND-ARGUMENTS: copies the programs that are found; fails if there is none.
take() {
  local to=$1
  shift
  mkdir -p "$to"
  find "$@" -maxdepth 1 -type f -executable -exec cp {} "$to/" \;
  [ -n "$(ls "$to")" ] || { echo "bundle.sh: nothing is built in $1" >&2; exit 1; }
}
if [ -n "$tests" ]; then
  take "$out/bin/tests" "$build/tests/cuda"
  take "$out/bin/kernels" "$build/tests/cuda/kernels"
  take "$out/bin" "$build/benchmarks/cuda"
  mkdir -p "$out/tests" "$out/scripts" "$out/benchmarks/cuda"
  cp -r tests/fixtures "$out/tests/"
  rm -rf "$out/tests/fixtures/tokenizer"
  cp scripts/gpu_check.sh scripts/make_random_checkpoint.py "$out/scripts/"
  cp benchmarks/cuda/*.py "$out/benchmarks/cuda/"
fi
if [ -n "$ptx80" ]; then
  take "$out/bin/ptx80" "$ptx80/tests/cuda" "$ptx80/tests/cuda/kernels"
fi
mapfile -t binaries < <(find "$out/bin" -type f)
strip --strip-debug "${binaries[@]}"
# All but the C library, which must be the machine's own, and what comes with the driver or CUDA.
ldd "${binaries[@]}" | awk '$2 == "=>" && $3 ~ /^\// {print $3}' | sort -u |
  grep -Ev '/(libc|libm|libdl|librt|libpthread|libresolv|ld-linux[^/]*)\.so|/lib(cuda|cublas|cublasLt|nvidia)[^/]*\.so' |
  xargs -r -I{} cp -L {} "$out/lib/"
cp -r models/stories260k "$out/models/"
cp -r config "$out/"
cp LICENSE "$out/"
cat >"$out/run" <<'EOF'
#!/bin/sh
# Runs a program of this folder with its libraries: run PROGRAM [ARGUMENT ...]
here=$(cd "$(dirname "$0")" && pwd)
program=$1
shift
LD_LIBRARY_PATH="$here/lib:/usr/local/cuda/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" \
  exec "$here/bin/$program" "$@"
EOF
chmod +x "$out/run"
du -sh "$out" | cut -f1
