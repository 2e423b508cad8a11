"""Train an adapter for a model of your own, then let it choose what is kept.

    python examples/scripts/train_an_adapter.py MODEL DOCUMENT RUN

A linear score is fitted to one document in about a minute. It is refused if it orders held-out
parts badly, as it is for a model that has learned nothing. `docs/train-adapter.md` has the rest.
"""

import sys
from pathlib import Path

from indexmem_cli import Memory
from indexmem_cli.checkpoint import find_checkpoint
from indexmem_cli.config import DEFAULT_MODEL
from indexmem_cli.memory.adapter import load_adapter
from indexmem_cli.train.quick import fit_adapter

EXAMPLES = Path(__file__).parents[1]


def main(model: str, document: str, run: str) -> None:
    """Fit, look at the file, and say how to use it."""
    path, scores = fit_adapter(model, Path(document), Path(run), threads=1)
    adapter = load_adapter(path, find_checkpoint(model).path)
    print(f"{path}: {adapter.kind}, held-out rank correlation {scores['rank_correlation']:.2f}")
    print(f"copy it beside the weights of {model}, and --policy learned uses it")
    used = Memory.read(document, model=model, policy="keydiff").ask("Who?", max_tokens=4).memory
    print(f"until then {used.policy} keeps {used.kv_tokens:,} tokens")


if __name__ == "__main__":
    main(*(sys.argv[1:] or (DEFAULT_MODEL, str(EXAMPLES / "chat.txt"), "runs/quick")))
