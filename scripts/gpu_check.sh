#!/usr/bin/env bash
# On a machine with a GPU: runs all GPU tests of a bundle (scripts/bundle.sh --preset cuda --tests),
# the kernel tests under compute-sanitizer, and the tests that were built for older chips as PTX, and
# prints a table last. Exits with 1 if anything failed.
#   scripts/gpu_check.sh [--bundle FOLDER] [--only plain,memcheck,racecheck,initcheck,ptx80]
#                        [--programs REGEX] [--filter GTEST_FILTER] [--jobs N] [--shards N]
#                        [--launches N] [--limit SECONDS] [--logs FOLDER]
# --bundle: where the programs are, if not in the folder above this script; fixtures and models are
#   taken from the folder above this script either way.
# --programs: only those whose names match.
# --filter: which tests compute-sanitizer runs; plain runs are whole.
# --shards: into how many processes a program is split under compute-sanitizer.
# --launches: how many kernel launches of a process compute-sanitizer checks (0: all), for those that
#   it is too slow for; what a process launches later runs unchecked.
# --limit: how long one process may take.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2

bundle=.
only=plain,memcheck,racecheck,initcheck,ptx80
filter='*'
matching=.
jobs=$(nproc)
shards=4
launches=0
limit=150
logs=$(mktemp -d)
while [ $# -gt 0 ]; do
  case "$1" in
    --bundle) bundle=$2 ;;
    --only) only=$2 ;;
    --programs) matching=$2 ;;
    --filter) filter=$2 ;;
    --jobs) jobs=$2 ;;
    --shards) shards=$2 ;;
    --launches) launches=$2 ;;
    --limit) limit=$2 ;;
    --logs) logs=$2; mkdir -p "$logs" ;;
    *) sed -n '2,17s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
  shift $(($# < 2 ? $# : 2))
done
[ -x "$bundle/run" ] || { echo "gpu_check.sh: $bundle is no bundle" >&2; exit 2; }
export PATH="$PATH:/usr/local/cuda/bin"

# run_one KIND PROGRAM SHARD SHARDS: leaves KIND.NAME.SHARD.log, .rc and .seconds.
run_one() {
  local kind=$1 program=$2 shard=$3 tool=()
  local log="$logs/$kind.${program##*/}.$shard"
  case "$kind" in
    memcheck | racecheck | initcheck)
      tool=(compute-sanitizer --tool "$kind" --error-exitcode 99 --print-limit 3
        --launch-count "$launches")
      export GTEST_TOTAL_SHARDS=$4 GTEST_SHARD_INDEX=$shard GTEST_FILTER=$filter
      ;;
  esac
  local begin=$EPOCHREALTIME
  LD_LIBRARY_PATH="$bundle/lib:/usr/local/cuda/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" \
    timeout "$limit" "${tool[@]}" "$bundle/bin/$program" >"$log.log" 2>&1
  echo $? >"$log.rc"
  awk -v a="$begin" -v b="$EPOCHREALTIME" 'BEGIN {printf "%.1f\n", b - a}' >"$log.seconds"
}
export -f run_one
export bundle logs limit filter launches

wanted() { [[ ",$only," == *",$1,"* ]]; }
programs() {
  (cd "$bundle/bin" && find "$1" -maxdepth 1 -type f -executable 2>/dev/null | grep -E "$matching" |
    sort)
}
in_parallel() { xargs -r -P "$jobs" -L 1 bash -c 'run_one "$@"' run_one; }

# Those that look at how much memory is free cannot have others beside them.
alone='gpu_(storage|steady_state|faults)_test'
if wanted plain; then
  { programs tests; programs kernels; } | grep -vE "$alone" | sed 's/.*/plain & 0 1/' | in_parallel
  for program in $(programs tests | grep -E "$alone"); do
    run_one plain "$program" 0 1
  done
fi
# How many tests of a program there are to run: a shard with none would look like a failure.
count_tests() {
  LD_LIBRARY_PATH="$bundle/lib:/usr/local/cuda/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" \
    "$bundle/bin/$1" --gtest_list_tests --gtest_filter="$filter" | grep -c '^  '
}
for tool in memcheck racecheck initcheck; do
  if wanted "$tool"; then
    for program in $(programs kernels); do
      count=$(count_tests "$program")
      count=$((count < shards ? count : shards))
      for ((shard = 0; shard < count; ++shard)); do
        echo "$tool $program $shard $count"
      done
    done
  fi
done | in_parallel
if wanted ptx80; then
  for program in $(programs ptx80); do
    echo "ptx80 $program 0 1"
  done | in_parallel
fi

# cell KIND NAME: how all shards of one program went.
cell() {
  local rc worst=0 seconds=0 passed=0 skipped=0 found=
  for file in "$logs/$1.$2".*.rc; do
    [ -e "$file" ] || continue
    found=1
    rc=$(cat "$file")
    [ "$rc" = 0 ] || worst=$rc
    seconds=$(awk -v a="$seconds" -v b="$(cat "${file%.rc}.seconds")" 'BEGIN {print a + b}')
    passed=$((passed + $(grep -c '^\[       OK' "${file%.rc}.log")))
    skipped=$((skipped + $(grep -c '^\[  SKIPPED \] [^0-9].*(' "${file%.rc}.log")))
  done
  if [ -z "$found" ]; then
    echo -
  elif [ "$worst" = 124 ]; then
    echo "TIMEOUT"
  elif [ "$worst" != 0 ]; then
    echo "FAILED($worst)"
  elif [ "$passed" = 0 ]; then
    echo "skipped $skipped"
  else
    echo "ok $passed in ${seconds}s$([ "$skipped" = 0 ] || echo ", skipped $skipped")"
  fi
}

failures=0
for file in "$logs"/*.rc; do
  [ -e "$file" ] || { echo "gpu_check.sh: nothing was run" >&2; exit 2; }
  if [ "$(cat "$file")" != 0 ]; then
    failures=$((failures + 1))
    if [ "$failures" -le 12 ]; then
      echo "--- $(basename "${file%.rc}"): exit status $(cat "$file")"
      grep -E 'FAILED|Failure|^ *(Expected|Which|Actual)|error|ERROR|=========|differs|token ' \
        "${file%.rc}.log" | head -25
      tail -5 "${file%.rc}.log"
    fi
  fi
done
printf '\n%-30s %-22s %-22s %-22s %-22s %s\n' program plain memcheck racecheck initcheck ptx80
for name in $(for file in "$logs"/*.rc; do basename "$file" | cut -d. -f2; done | sort -u); do
  printf '%-30s %-22s %-22s %-22s %-22s %s\n' "$name" "$(cell plain "$name")" \
    "$(cell memcheck "$name")" "$(cell racecheck "$name")" "$(cell initcheck "$name")" \
    "$(cell ptx80 "$name")"
done
echo "$failures processes failed; logs in $logs"
[ "$failures" = 0 ]
