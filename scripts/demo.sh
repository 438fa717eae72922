#!/usr/bin/env bash
# Sets up, builds, starts the server on the embedded model, streams a story through gRPC, and stops
# the server again.
#   scripts/demo.sh [PROMPT]
set -euo pipefail
cd "$(dirname "$0")/.."

prompt=${1-Once upon a time}
log=$(mktemp)
server=
cleanup() {
  if [ -n "$server" ]; then
    kill -TERM "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
  fi
  rm -f "$log"
}
trap cleanup EXIT

echo "== Setting up and building (the first time takes a few minutes)"
scripts/setup.sh
cmake --preset cpu >"$log" || { cat "$log"; exit 1; }
cmake --build --preset cpu --target ferrite-server ferrite --parallel "$(nproc)"

echo "== Starting the server"
build/cpu/server/ferrite-server --config config/server.yaml \
  --server.listen=127.0.0.1:0 --server.drain_grace_seconds=0 2>"$log" &
server=$!
port=
for _ in $(seq 100); do
  port=$(sed -n 's/.* ready .*port=\([0-9]*\).*/\1/p' "$log")
  [ -n "$port" ] && break
  kill -0 "$server" 2>/dev/null || { cat "$log" >&2; exit 1; }
  sleep 0.05
done
[ -n "$port" ] || { echo "demo.sh: the server did not become ready" >&2; cat "$log" >&2; exit 1; }
cat "$log"
ferrite=(build/cpu/client/ferrite --server "127.0.0.1:$port")
"${ferrite[@]}" health

echo "== A story"
"${ferrite[@]}" generate --echo-prompt --temperature 0.8 --max-new-tokens 300 "$prompt"

echo "== Stopping the server"
kill -TERM "$server"
wait "$server"
server=
tail -n 1 "$log"
