"""Ask a book: where the answer stands, and what reading cost.

python examples/scripts/ask_a_book.py                    # the example book
python examples/scripts/ask_a_book.py my.pdf "Who inherits the mill?"
"""

import sys
from pathlib import Path

from indexmem_cli import Memory

EXAMPLES = Path(__file__).parents[1]


def main(book: str, question: str, pages: str | None = None) -> None:
    """Print the answer, its pages, and what was kept."""
    answer = Memory.read(book, pages=pages, budget="1k", save=True).ask(question)
    print(answer)
    for source in answer.sources:
        print(f"  page {source.page_label or source.page}: {source.quote}")
    used, coverage = answer.memory, answer.coverage
    print(f"{coverage.tokens_read:,} of {coverage.tokens_total:,} tokens read,", end=" ")
    print(f"{used.kv_bytes / 2**20:.1f} MiB kept instead of {used.full_kv_bytes / 2**20:.1f} MiB")


if __name__ == "__main__":
    default = EXAMPLES / "short-history-of-the-world.pdf", "Which dynasty did Kublai Khan found?"
    main(*(sys.argv[1:] or map(str, default)))
