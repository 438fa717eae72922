#!/usr/bin/env bash
# Makes a folder that runs on any x86-64 Linux with a C library no older than this one's: the server,
# the client, the embedded model, and the shared libraries they need. With the cuda preset the
# machine must bring the NVIDIA driver and cuBLAS.
#   scripts/bundle.sh [--preset cpu|cuda] [--out FOLDER] [--also PROGRAM ...]
# PROGRAM: another target to take along, by its path below the build folder, such as
# tests/cuda/gpu_families_test. Then, from anywhere:
#   FOLDER/run ferrite-server --config FOLDER/config/server.yaml
set -euo pipefail
cd "$(dirname "$0")/.."

preset=cpu
out=build/bundle
programs=(server/ferrite-server client/ferrite)
while [ $# -gt 0 ]; do
  case "$1" in
    --preset) preset=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    --also) shift; programs+=("$@"); break ;;
    *) sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
done

build=build/$preset
for program in "${programs[@]}"; do
  [ -x "$build/$program" ] || { echo "bundle.sh: $build/$program is not built" >&2; exit 1; }
done
rm -rf "$out"
mkdir -p "$out/bin" "$out/lib"
for program in "${programs[@]}"; do
  cp "$build/$program" "$out/bin/"
done
strip --strip-debug "$out"/bin/*
# All but the C library, which must be the machine's own, and what comes with the driver or CUDA.
ldd "$out"/bin/* | awk '$2 == "=>" && $3 ~ /^\// {print $3}' | sort -u |
  grep -Ev '/(libc|libm|libdl|librt|libpthread|libresolv|ld-linux[^/]*)\.so|/lib(cuda|cublas|cublasLt|nvidia)[^/]*\.so' |
  xargs -r -I{} cp -L {} "$out/lib/"
mkdir -p "$out/models"
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
