"""Peak memory of reading and answering, beside the estimate of `models show`.

The shipped model, and models of random weights in the shapes of others, each in a process of its
own. Only a GPU can tell how well the estimate fits a GPU: --device cuda.

python benchmarks/cards.py --budgets 512,2k
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from indexmem_cli.bench import rows
from indexmem_cli.checkpoint import find_checkpoint
from indexmem_cli.config import DEFAULT_MODEL, MemoryConfig, ModelConfig
from indexmem_cli.estimate import estimate_need, read_weights

QUESTION = "Which dynasty did Kublai Khan found?"
COLUMNS = ["shape", "dtype", "budget_tokens", "estimated_bytes", "measured_bytes", "ratio"]
_QWEN3 = {"head_dim": 128, "num_key_value_heads": 8, "vocab_size": 151_936}
_QWEN3 |= {"max_position_embeddings": 32_768, "tie_word_embeddings": True}
SHAPES = {
    "qwen3-0.6b": {
        **_QWEN3,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
    },
    "qwen3-0.6b, 8 layers": {
        **_QWEN3,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 8,
        "num_attention_heads": 16,
    },
}


def make_model(shape: dict, dtype: str, folder: Path) -> None:
    """Save a model of random weights with the shipped model's tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config

    config = Qwen3Config(**shape, eos_token_id=0)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(folder)
    for file in find_checkpoint(DEFAULT_MODEL).path.glob("token*"):
        shutil.copy(file, folder)


def measure(model: str, options: argparse.Namespace, budget: int, dtype: str, pages: str) -> int:
    """Read and answer in a new process; return the most bytes that it, or its GPU, held."""
    command = ["ask", str(rows.EXAMPLE_BOOK), QUESTION, "--pages", pages]
    command += ["--no-save", "--max-tokens", "8"]
    command += ["-m", model, "-b", str(budget), "--dtype", dtype, "--device", options.device]
    shown = subprocess.run(
        [sys.executable, "-m", "indexmem_cli", *command, "--offline", "--json"],
        env={**os.environ, "PYTHONPATH": str(rows.ROOT)},
        stdout=subprocess.PIPE,
        check=True,
    )
    used = json.loads(shown.stdout)["memory"]
    return used["gpu_peak_bytes"] or used["process_peak_bytes"]


def main() -> None:
    """Measure every shape at every budget, append a row for each and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budgets", type=rows.parse_sizes, default="512,2k")
    parser.add_argument("--shapes", default="qwen3-0.6b, 8 layers;qwen3-0.6b")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=rows.RESULTS / "cards.jsonl")
    options = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for shape in ["", *options.shapes.split(";")]:
            model, dtype, pages = DEFAULT_MODEL, "float32", "1-60"
            if shape:
                model, dtype, pages = str(Path(folder) / "model"), "bfloat16", "20-28"
                make_model(SHAPES[shape], dtype, Path(model))
            checkpoint = find_checkpoint(model)
            for budget in options.budgets:
                form = ModelConfig(model, dtype=dtype, device=options.device)
                memory, gpu = MemoryConfig(budget), options.device != "cpu"
                need = estimate_need(checkpoint, read_weights(checkpoint), memory, form, gpu)
                measured = measure(model, options, budget, dtype, pages)
                row = {
                    **rows.common_fields(checkpoint, options.device),
                    "shape": shape or DEFAULT_MODEL,
                    "dtype": dtype,
                    "budget_tokens": budget,
                    "estimated_bytes": need.total_bytes,
                    "weight_bytes": need.weight_bytes,
                    "measured_bytes": measured,
                    "ratio": round(need.total_bytes / measured, 3),
                    "n": 1,
                }
                rows.append_row(options.out, row)
                found.append(row)
    rows.print_table(found, COLUMNS)


if __name__ == "__main__":
    main()
