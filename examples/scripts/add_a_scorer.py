"""Add a scorer of your own, and compare what it keeps with others.

    python examples/scripts/add_a_scorer.py [DOCUMENT]

A scorer says how much each slot is worth keeping; `docs/extending.md` has more.
"""

import sys
from pathlib import Path

from indexmem_cli import Memory
from indexmem_cli.config import POLICIES, AnswerConfig
from indexmem_cli.memory.policies import SCORERS, GathersNothing

EXAMPLES = Path(__file__).parents[1]
QUESTION = "Who keeps the cash box?"


class Surprise(GathersNothing):
    """Keep values unlike the mean value of their layer and head."""

    needs_queries = False
    needs_question = False
    accumulates = False

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def score(self, block) -> list:
        """Distance from the mean, fp32 [B, G, N] for every layer."""
        layers = (block.values(i).float() for i in range(len(block.state.managed)))
        return [(values - values.mean(dim=2, keepdim=True)).norm(dim=-1) for values in layers]


def main(document: str) -> None:
    """Read with three scorers, and print what each kept of the text."""
    SCORERS["surprise"] = Surprise
    POLICIES["surprise"] = "keeps values unlike the mean value"
    for policy in ("surprise", "keydiff", "recency"):
        memory = Memory.read(document, budget=256, policy=policy, recall=False)
        *_, answer = memory.events(QUESTION, AnswerConfig(max_tokens=16, explain=True))
        kept = answer.explanation.kept[0]
        share = sum((end - first) * held for first, end, held in kept.runs if first < 1000)
        print(f"{policy:10} {share:5.0f} of the first 1,000 tokens  {answer}")


if __name__ == "__main__":
    main(*(sys.argv[1:] or (str(EXAMPLES / "chat.txt"),)))
