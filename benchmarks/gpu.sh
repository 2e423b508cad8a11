#!/usr/bin/env bash
# A whole session on a GPU in one run: tests on the device, kernels, models of real shapes, the
# embedded model. Rows go to the folder given, and nothing that fails keeps the rest from running.
#   benchmarks/gpu.sh OUT          on a machine with a CUDA device
#   benchmarks/gpu.sh OUT rehearse on any machine: tiny shapes, to see that every step runs
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:?folder for rows and logs}
rehearse=${2:-}
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

indexmem() { "$python" -m indexmem_cli "$@"; }
tests() { "$python" -m pytest -q -p no:cacheprovider "$@"; }
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

if [[ -n $rehearse ]]; then
    step tests tests tests/test_kernels.py
    step kernels indexmem bench kernels --rehearse
    step device indexmem bench device --rehearse
else
    step tests tests tests/test_kernels.py tests/test_ops.py
    step kernels indexmem bench kernels --out "$out/kernels.jsonl"
    step device indexmem bench device --out "$out/device.jsonl" \
        --quant $quant --models "${MODELS:-Llama-3.1-8B}" --lengths "${LENGTHS:-32k,128k}"
    step device-int8 indexmem bench device --out "$out/device.jsonl" --kv-dtype int8 \
        --quant $quant --models "${MODELS:-Llama-3.1-8B}" --lengths 32k --full 4k
fi
step ask ask
echo "== done ($SECONDS s); failed: ${failed[*]:-nothing}"
((${#failed[@]} == 0))
