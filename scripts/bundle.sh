#!/usr/bin/env bash
# Makes a folder that runs on any x86-64 Linux with a C library no older than this one's: the server,
# the client, the embedded model, and the shared libraries they need. With the cuda preset the
# machine must bring the NVIDIA driver, and cuBLAS unless it is taken along.
#   scripts/bundle.sh [--preset cpu|cuda] [--build FOLDER] [--out FOLDER] [--tar FILE]
#                     [--libraries system|cuda|all] [--tests] [--ptx80 FOLDER]
#                     [--no-server] [--also PROGRAM ...]
# --build: where the preset was built, if not in build/PRESET.
# --tar: writes the folder as an archive, too, compressed as FILE's suffix says: it unpacks anywhere.
# --libraries: the distribution's (the default), only cuBLAS, or both.
# --tests: takes along every GPU test and benchmark that is built (configure with
#   -DFERRITE_TEST_ROOT=. so that they find their fixtures), the fixtures and scripts/gpu_check.sh.
# --ptx80: a build with -DCMAKE_CUDA_ARCHITECTURES=80-virtual, whose GPU tests come along as well.
# --no-server: neither server nor client, where only tests and benchmarks are wanted.
# --also: other targets to take along, by their paths below the build folder.
# Then, from anywhere:
#   FOLDER/run ferrite-server --model.path=FOLDER/models/stories260k
#   FOLDER/run ferrite generate "Once upon a time"
#   FOLDER/scripts/gpu_check.sh
set -euo pipefail
caller=$PWD
cd "$(dirname "$0")/.."

preset=cpu
build=
out=build/bundle
tests=
ptx80=
tar=
libraries=system
programs=(server/ferrite-server client/ferrite)
from_caller() { case "$1" in /*) echo "$1" ;; *) echo "$caller/$1" ;; esac; }
while [ $# -gt 0 ]; do
  case "$1" in
    --preset) preset=$2; shift 2 ;;
    --build) build=$(from_caller "$2"); shift 2 ;;
    --out) out=$(from_caller "$2"); shift 2 ;;
    --tar) tar=$(from_caller "$2"); shift 2 ;;
    --libraries) libraries=$2; shift 2 ;;
    --tests) tests=1; shift ;;
    --ptx80) ptx80=$(from_caller "$2"); shift 2 ;;
    --no-server) programs=(); shift ;;
    --also) shift; programs+=("$@"); break ;;
    *) sed -n '2,22s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
done
build=${build:-build/$preset}
case "$libraries" in
  system | cuda | all) ;;
  *) echo "bundle.sh: --libraries is \"$libraries\", not system, cuda or all" >&2; exit 2 ;;
esac

for program in "${programs[@]}"; do
  [ -x "$build/$program" ] || { echo "bundle.sh: $build/$program is not built" >&2; exit 1; }
done
case "$out" in "$PWD" | / | "${HOME:-/}" | "$caller") echo "bundle.sh: not into $out" >&2; exit 2 ;; esac
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
# All but the C library, which must be the machine's own, and what comes with the driver.
mapfile -t needed < <(ldd "${binaries[@]}" | awk '$2 == "=>" && $3 ~ /^\// {print $3}' | sort -u |
  grep -Ev '/(libc|libm|libdl|librt|libpthread|libresolv|ld-linux[^/]*)\.so|/lib(cuda|nvidia)[^/]*\.so')
for library in "${needed[@]}"; do
  case "$libraries:$library" in
    all:* | cuda:*/libcublas*) cp -L "$library" "$out/lib/" ;;
    system:*/libcublas* | cuda:*) ;;
    system:*) cp -L "$library" "$out/lib/" ;;
  esac
done
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
if [ -n "$tar" ]; then
  # The same bytes for the same files: no times, no owners, one order.
  name=$(basename "$tar" | sed -E 's/\.(tar(\.[a-z0-9]+)?|tgz)$//')
  tar --create --file "$tar" --auto-compress --sort=name --mtime=@0 --mode=go=rX --owner=0 \
    --group=0 --numeric-owner --directory "$out" --transform "s,^\\.,$name," .
  du -h "$tar"
fi
