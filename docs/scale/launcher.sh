#!/usr/bin/env bash
# Runs a search until it is done: starts the command again, with --resume, whenever it or the machine under it failed.
#
#   docs/scale/launcher.sh .venv/bin/jaxprune evolve --preset paper --run-dir /mnt/runs/paper
#
# On several hosts, every host runs this same line. It gives up on a usage error (status 2 and nothing done), and after
# MAX_FAILURES failures in a row in which nothing was added to the run: no line of the journal, no plan of a bank, no base
# network. A failure after progress starts the count anew. Ctrl-C and SIGTERM to this script go to the command, which
# saves, and end both. The script ends with the status of the last command.
set -uo pipefail
set -m  # else commands in the background would ignore Ctrl-C

MAX_FAILURES=${MAX_FAILURES:-5}
WAIT=${WAIT:-10}          # seconds before the first new start; doubled after each failure without progress
MAX_WAIT=${MAX_WAIT:-300} # seconds, at most

# Where make keeps compiled programs too.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.jax_cache}

say() { printf 'launcher: %s\n' "$*" >&2; }

run_dir='' resume=(--resume) previous=''
for word in "$@"; do
  [[ $previous == --run-dir ]] && run_dir=$word
  [[ $word == --run-dir=* ]] && run_dir=${word#--run-dir=}
  [[ $word == --resume ]] && resume=()
  previous=$word
done
if [[ -z $run_dir ]]; then
  say "needs a command with --run-dir DIR, on a disk that outlives the machine, got: ${*:-nothing}"
  exit 2
fi

# What a run has done so far, in one line of text.
progress() {
  find "$run_dir/journal.jsonl" "$run_dir/bases" -type f -exec wc -c {} + 2>/dev/null | LC_ALL=C sort | cksum
}

child='' stopped=''
stop() {
  stopped=$2
  [[ -n $child ]] && kill -s "$1" -- "-$child" 2>/dev/null
}
trap 'stop INT 130' INT
trap 'stop TERM 143' TERM

# Waits for $child however often a signal interrupts that, and sets $status.
await() {
  while :; do
    wait "$child"
    status=$?
    kill -0 "$child" 2>/dev/null || break
  done
}

failures=0 pause=$WAIT
while :; do
  before=$(progress)
  "$@" "${resume[@]}" &
  child=$!
  await
  child=''
  [[ $status == 0 || -n $stopped ]] && exit "$status"
  if [[ $(progress) != "$before" ]]; then
    failures=0 pause=$WAIT
  elif [[ $status == 2 ]]; then
    say "a usage error (status 2). Not started again; its message is above."
    exit 2
  else
    failures=$((failures + 1))
  fi
  if ((failures >= MAX_FAILURES)); then
    say "$failures failures in a row without progress in $run_dir, the last with status $status. Not started again."
    exit "$status"
  fi
  say "status $status, $failures of $MAX_FAILURES failures without progress. Starting again in $pause s."
  sleep "$pause" &
  child=$!
  await
  child=''
  [[ -n $stopped ]] && exit "$stopped"
  ((failures > 0)) && pause=$((pause * 2 < MAX_WAIT ? pause * 2 : MAX_WAIT))
done
