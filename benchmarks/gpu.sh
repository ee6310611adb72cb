#!/usr/bin/env bash
# All measurements that docs/benchmarks.md leaves open without a GPU. They use 7B shapes with random weights, so they need no
# checkpoint, and one pretrained pair (SmolLM2-135M and its plug-in), which is left out if its files are not on this machine.
#
#     benchmarks/gpu.sh FOLDER [--device DEVICE] [--quick]
#
# Writes FOLDER/results.json with everything that was measured, and one JSON file and one log per benchmark. Takes at most
# 9 minutes on one 80 GB GPU; a benchmark that exceeds its time limit is stopped, and its measurements so far are kept.
# Without a GPU, nothing is measured. --quick runs everything at the smallest sizes to check this script; with it, --device
# cpu is the default where there is no GPU, and the times mean nothing.
set -euo pipefail

usage() {
    echo "usage: benchmarks/gpu.sh FOLDER [--device DEVICE] [--quick]" >&2
    exit 2
}

[ $# -ge 1 ] && [ "${1#-}" = "$1" ] && [ -n "$1" ] || usage
folder=$1 device='' quick=''
shift
while [ $# -gt 0 ]; do
    case $1 in
    --device)
        [ $# -ge 2 ] || usage
        device=$2
        shift 2
        ;;
    --quick)
        quick=--quick
        shift
        ;;
    *) usage ;;
    esac
done
mkdir -p "$folder"
out=$(cd "$folder" && pwd)
cd "$(dirname "$0")/.."

python=${PYTHON:-.venv/bin/python}
if [ -z "$device" ]; then
    if "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
        device=cuda
    elif [ -n "$quick" ]; then
        device=cpu
    else
        echo "skipped: torch sees no GPU here (benchmarks/gpu.sh FOLDER --quick checks the script on the CPU)"
        exit 0
    fi
fi
measured=() incomplete=()

measure() { # name of the results, module, seconds it may take, options at full size
    local name=$1 module=$2 limit_s=$3 status=0 options=(--quick)
    shift 3
    [ -n "$quick" ] || options=("$@")
    echo "── $name: at most $limit_s s"
    measured+=("$name")
    timeout --kill-after=10 "$limit_s" "$python" -m "benchmarks.$module" "${options[@]}" --device "$device" \
        --out "$out/$name.json" 2>&1 | tee "$out/$name.log" || status=$?
    case $status in
    0) ;;
    124 | 137) incomplete+=("$name: out of time") ;;
    2) incomplete+=("$name: $(tail -n 1 "$out/$name.log")") ;; # one line says what is missing
    *) incomplete+=("$name: exit code $status") ;;
    esac
}

seven=(--model llama2-7b --dtype bfloat16)
pair=(--pair llama2-7b+tinyllama-1.1b --like smollm2-135m --dtype bfloat16 --repeats 12)
measure ensemble ensemble 100 "${pair[@]}" --rule deepen
measure ensemble_whitened ensemble 60 "${pair[@]}" --rule whitened
measure passes speculative 50 --model llama2-7b --dtype float32 --parts passes # drafts are only verified in fp32
measure edit_stage edit_stage 50 --model tinyllama-1.1b --precision bf16 --repeats 3
measure editing editing 170 "${seven[@]}" --edits 5 --repeats 1 --train 60 --unrelated 10 \
    --set memit.moments=train_prompts mend.steps=20 mend.validation=20 mend.validate_every=10
measure evaluation evaluation 60 "${seven[@]}" --records 6 --rounds 1 --unrelated 8
measure real_pair speculative 50 --model smollm2-135m --weights pretrained --edits 10 --prompts 5 --unrelated 10 \
    --set onceedit.plugin=smollm2-135m

if [ "${#incomplete[@]}" -gt 0 ]; then
    "$python" -m benchmarks.collected "$out" "${measured[@]}" --incomplete "${incomplete[@]}"
    printf -- '── not complete: %s\n' "${incomplete[@]}"
    exit 1
fi
"$python" -m benchmarks.collected "$out" "${measured[@]}"
echo "── all measured: $out/results.json"
