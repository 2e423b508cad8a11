#!/usr/bin/env bash
# What a GPU is needed for, in parts of at most ten minutes: tests on the device, kernels, models of
# real shapes, the embedded model. Rows go to the folder given, and nothing that fails keeps the rest
# from running.
#   benchmarks/gpu.sh OUT PART...       on a machine with a CUDA device; without a PART, all of them:
#                                       tests kernels llama int8 others ask
#   benchmarks/gpu.sh OUT rehearse      on any machine: tiny shapes, to see that every part runs
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:?folder for rows and logs}
shift
parts=("$@")
rehearse=
[[ ${1:-} == rehearse ]] && rehearse=1 && parts=()
((${#parts[@]})) || parts=(tests kernels llama int8 others ask)
python=${PYTHON:-python3}
mkdir -p "$out"
# Packages that the machine lacks can lie in a folder on PYTHONPATH; a network is not needed.
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} INDEXMEM_HOME=$out/home
quant=nf4
"$python" -c 'import bitsandbytes' 2>/dev/null || quant=none
failed=()

step() {
    local name=$1
    shift
    echo "== $name ($SECONDS s)"
    if "$@" >"$out/$name.log" 2>&1; then tail -n 40 "$out/$name.log"; else
        failed+=("$name")
        tail -n 20 "$out/$name.log"
    fi
}

# A part has ten minutes: what it measured by then lies in the folder.
indexmem() { timeout 580 "$python" -m indexmem_cli "$@"; }
tests() { timeout 580 "$python" -m pytest -q -p no:cacheprovider "$@"; }
ask() {  # the same words from the same memory on both devices
    local book=examples/short-history-of-the-world.pdf question="Which dynasty did Kublai Khan found?"
    for device in cuda cpu; do
        [[ -n $rehearse ]] && device=cpu
        indexmem ask $book "$question" --pages 340-359 --budget 1k --device $device --offline --no-save --json \
            >"$out/ask-$device.json" || return 1
    done
    "$python" - "$out" <<'PYTHON'
import json, pathlib, sys

answers = {file.name: json.loads(file.read_text())["answer"] for file in pathlib.Path(sys.argv[1]).glob("ask-*.json")}
print(answers)
sys.exit(len(set(answers.values())) != 1)
PYTHON
}

device() { indexmem bench device --out "$out/device.jsonl" "$@"; }
run_part() {
    case $1 in
        tests) tests tests/test_kernels.py tests/test_ops.py tests/test_decoding.py ;;
        kernels) indexmem bench kernels --out "$out/kernels.jsonl" ;;
        # Reading to a million tokens, decoding at batch 1 and 8, the full cache as far as it fits.
        llama) device --quant $quant --models Llama-3.1-8B --lengths 32k,128k,1m --full 4k,16k,32k,128k ;;
        int8) device --quant $quant --models Llama-3.1-8B --lengths 32k --full 4k --kv-dtype int8 ;;
        others) device --quant none --models Qwen2.5-7B,Mistral-7B-v0.3,Qwen3-4B --lengths 32k --full 16k ;;
        ask) ask ;;
        *) echo "no part of that name: $1" && return 2 ;;
    esac
}

if [[ -n $rehearse ]]; then
    step tests tests tests/test_kernels.py -k "chunk or nothing"
    step kernels indexmem bench kernels --rehearse
    step device indexmem bench device --rehearse
    step device-int8 indexmem bench device --rehearse --kv-dtype int8
    step ask ask
else
    for part in "${parts[@]}"; do step "$part" run_part "$part"; done
fi
echo "== done ($SECONDS s); failed: ${failed[*]:-nothing}"
((${#failed[@]} == 0))
