#!/usr/bin/env bash
# The GPU benchmarks, at 7B shapes with random weights, so that no checkpoint and no download is needed.
#
#     benchmarks/gpu.sh FOLDER [--quick]
#
# Writes one JSON file and one log per benchmark to FOLDER. Takes at most 12 minutes on one 80 GB GPU; a benchmark that
# exceeds its time limit is stopped, and its measurements so far are kept. Without a GPU, nothing is measured.
# --quick runs everything at the smallest sizes, on the CPU if there is no GPU, to check this script; its times mean nothing.
set -euo pipefail

usage() {
    echo "usage: benchmarks/gpu.sh FOLDER [--quick]" >&2
    exit 2
}

[ $# -ge 1 ] && [ $# -le 2 ] && [ "${1#-}" = "$1" ] && [ -n "$1" ] || usage
[ $# -eq 1 ] || [ "$2" = "--quick" ] || usage
quick=${2:-}
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."

python=${PYTHON:-.venv/bin/python}
if "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    device=cuda
elif [ -n "$quick" ]; then
    device=cpu
else
    echo "skipped: torch sees no GPU here (benchmarks/gpu.sh FOLDER --quick checks the script on the CPU)"
    exit 0
fi
incomplete=()

measure() { # name, seconds it may take, options at full size
    local name=$1 limit_s=$2 status=0 options=(--quick)
    shift 2
    [ -n "$quick" ] || options=("$@")
    echo "── $name: at most $limit_s s"
    timeout --kill-after=10 "$limit_s" "$python" -m "benchmarks.$name" "${options[@]}" --device "$device" \
        --out "$out/$name.json" 2>&1 | tee "$out/$name.log" || status=$?
    case $status in
    0) ;;
    124 | 137) incomplete+=("$name (out of time)") ;;
    *) incomplete+=("$name (exit code $status)") ;;
    esac
}

measure ensemble 150 --pair llama2-7b+tinyllama-1.1b --dtype bfloat16 --repeats 12
measure edit_stage 90 --model tinyllama-1.1b --precision bf16 --repeats 3
measure editing 300 --model llama2-7b --dtype bfloat16 --edits 5 --repeats 2 --train 60 --unrelated 10 \
    --set memit.moments=train_prompts mend.steps=20 mend.validation=20 mend.validate_every=10
measure evaluation 150 --model llama2-7b --dtype bfloat16 --records 8 --rounds 2 --unrelated 8

if [ "${#incomplete[@]}" -gt 0 ]; then
    printf -- '── not complete: %s\n' "${incomplete[@]}"
    exit 1
fi
echo "── all measured: $out"
