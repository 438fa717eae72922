#!/usr/bin/env bash
# Sets up, builds, starts the server on the embedded model, streams a story through gRPC, and stops
# the server again.
#   scripts/demo.sh [PROMPT]
#   scripts/demo.sh --model smollm2 [QUESTION]   downloads a model that chats, and asks it
set -euo pipefail
cd "$(dirname "$0")/.."

model=stories260k
if [ "${1-}" = --model ]; then
  model=${2-}
  shift $(($# < 2 ? $# : 2))
fi
case "$model" in
  stories260k)
    folder=models/stories260k
    title="A story"
    generate=(--echo-prompt --temperature 0.8 --max-new-tokens 300 "${1-Once upon a time}")
    ;;
  smollm2)
    folder=models/smollm2-135m-instruct
    question=${1-What is the capital of France, and what is it known for?}
    title="Asking: $question"
    # The model's chat format; it ends its answer with <|im_end|>, its end token.
    generate=(--temperature 0 --max-new-tokens 200 "<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
<|im_start|>user
$question<|im_end|>
<|im_start|>assistant
")
    ;;
  *)
    echo "demo.sh: --model is \"$model\", not stories260k or smollm2" >&2
    exit 2
    ;;
esac
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

if [ "$model" = smollm2 ]; then
  echo "== Getting the model"
  scripts/get_smollm2.py
fi

echo "== Starting the server"
build/cpu/server/ferrite-server --config config/server.yaml --model.path="$folder" \
  --server.listen=127.0.0.1:0 --server.drain_grace_seconds=0 2>"$log" &
server=$!
port=
for _ in $(seq 100); do
  port=$(sed -n 's/.* ready .* port=\([0-9]*\).*/\1/p' "$log")
  [ -n "$port" ] && break
  kill -0 "$server" 2>/dev/null || { cat "$log" >&2; exit 1; }
  sleep 0.05
done
[ -n "$port" ] || { echo "demo.sh: the server did not become ready" >&2; cat "$log" >&2; exit 1; }
cat "$log"
ferrite=(build/cpu/client/ferrite --server "127.0.0.1:$port")
"${ferrite[@]}" health

echo "== $title"
"${ferrite[@]}" generate "${generate[@]}"

echo "== Stopping the server"
kill -TERM "$server"
wait "$server"
server=
tail -n 1 "$log"
