#!/bin/bash
# Train on eight GPUs of one machine, restarting until the run is finished. torchrun passes SIGTERM on
# but hides exit codes, so the run's STATUS.json is asked how it ended. PROCESSES and TRIES in the
# environment replace 8 GPUs and 20 starts.
#
#     examples/torchrun.sh runs/mine --recipe gpt2_124M --dataset fineweb
#
run=${1:?usage: torchrun.sh RUN_DIR [FLAGS OF outpace train]}
shift
processes=${PROCESSES:-8}
tries=${TRIES:-20}
patience=() # torch 2.11 lacks the flag: it waits 30 seconds for a save
.venv/bin/torchrun --help | grep -q shutdown-timeout && patience=(--shutdown-timeout 600)

trap 'stop=1; kill -TERM "$child" 2>/dev/null' TERM INT

for ((try = 1; try <= tries; try++)); do
    before=$(cat "$run/STATUS.json" 2>/dev/null)
    .venv/bin/torchrun --standalone --nproc_per_node "$processes" "${patience[@]}" \
        train.py --run_dir "$run" "$@" &
    child=$!
    wait "$child" || wait "$child"
    own=$?
    # Refused before it began: STATUS.json is still that of the previous try.
    [ "$own" -ne 0 ] && [ "$before" = "$(cat "$run/STATUS.json" 2>/dev/null)" ] && exit "$own"
    code=$(.venv/bin/outpace status "$run" --json | .venv/bin/python -c '
import json, sys
status = json.load(sys.stdin)
print(9 if status["state"] == "interrupted" else status["code"])') || exit 1
    case "$code" in
        0) exit 0 ;;                     # finished
        75) [ -n "$stop" ] && exit 75 ;; # stopped: by us; or by someone else, then continue
        9 | 10) ;;                       # a lost process, or the network: try again
        *) exit "$code" ;;               # it would fail again
    esac
done
exit "$code"
