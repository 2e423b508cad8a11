"""Ask a codebase: the places that define what a question names come first.

python examples/scripts/ask_a_codebase.py                # examples/stockroom
python examples/scripts/ask_a_codebase.py ./service "Where is MAX_RETRIES set?"
"""

import sys
from pathlib import Path

from indexmem_cli import Memory

EXAMPLES = Path(__file__).parents[1]


def main(folder: str, *questions: str) -> None:
    """Print every question with the lines to look at; the folder is read once for all."""
    code = Memory.read(folder, budget="1k")
    for question in questions:
        answer = code.ask(question, max_tokens=32)
        print(f"{question}\n  {answer}")
        for source in answer.sources[:2]:
            where = Path(source.file).relative_to(folder)
            print(f"  {where}:{source.line_start} {source.symbol or ''}".rstrip())
    for reason, count in answer.coverage.files_skipped.items():
        print(f"left out: {count} ({reason})")


if __name__ == "__main__":
    asked = ("What is the value of MAX_QUANTITY?", "Where is the class NotEnoughStock defined?")
    main(*(sys.argv[1:] or (str(EXAMPLES / "stockroom"), *asked)))
