#!/bin/bash
# Eight GPUs of one machine, again and again until the run is finished. torchrun hides exit codes and
# passes SIGTERM on; so the run's own STATUS.json says how it ended.
#
#     examples/torchrun.sh runs/mine --recipe gpt2_124M --dataset fineweb
#
run=${1:?usage: torchrun.sh RUN_DIR [FLAGS OF outpace train]}
shift
processes=${PROCESSES:-8}
tries=${TRIES:-20}
patience=() # torch 2.11 has no such flag, and waits 30 seconds for a save
.venv/bin/torchrun --help | grep -q shutdown-timeout && patience=(--shutdown-timeout 600)

trap 'stop=1; kill -TERM "$child" 2>/dev/null' TERM INT

for ((try = 1; try <= tries; try++)); do
    before=$(cat "$run/STATUS.json" 2>/dev/null)
    .venv/bin/torchrun --standalone --nproc_per_node "$processes" "${patience[@]}" \
        train.py --run_dir "$run" "$@" &
    child=$!
    wait "$child" || wait "$child"
    own=$?
    # Refused before it began, it leaves the record of the run before.
    [ "$own" -ne 0 ] && [ "$before" = "$(cat "$run/STATUS.json" 2>/dev/null)" ] && exit "$own"
    code=$(.venv/bin/outpace status "$run" --json | .venv/bin/python -c '
import json, sys
status = json.load(sys.stdin)
print(9 if status["state"] == "interrupted" else status["code"])') || exit 1
    case "$code" in
        0) exit 0 ;;                     # finished
        75) [ -n "$stop" ] && exit 75 ;; # stopped: by us, or by somebody who wants it to go on
        9 | 10) ;;                       # a lost process, or the network: once more
        *) exit "$code" ;;               # it would happen again
    esac
done
exit "$code"
