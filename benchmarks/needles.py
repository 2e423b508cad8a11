"""Facts hidden in a whole book, one question each: how many are answered, by policy.

python benchmarks/needles.py book.txt --tokens 200k --budget 1k
"""

import os
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from random import Random

from indexmem_cli import Memory
from indexmem_cli.bench.rows import (
    Row,
    append_row,
    common_fields,
    count_right,
    option_parser,
    print_table,
)
from indexmem_cli.checkpoint import find_checkpoint
from indexmem_cli.config import NO_LATENT, MemoryConfig, ReadConfig, parse_size
from indexmem_cli.documents import open_sources
from indexmem_cli.tokens import Tokenizer, load_tokenizer
from indexmem_cli.train.tasks import make_blind_fact, make_development_fact, make_fact

COLUMNS = [
    "mode",
    "wordings",
    "alone",
    "tokens",
    "kv_bytes",
    "n",
    "right",
    "accuracy",
    "interval_95",
]


@dataclass(frozen=True)
class Needle:
    """A fact in the book."""

    sentence: str
    question: str
    answer: str
    depth: float
    """Where it stands, as a share of the book."""


WORDINGS = {
    "development": make_development_fact,
    "blind": make_blind_fact,
    "training": make_fact,
}
"""Wordings of facts and questions: two sets that the embedded model has never seen, one that it
has."""


def make_needles(count: int, seed: int, wordings: str) -> list[Needle]:
    """Draw `count` facts, each asked differently, for even depths."""
    chance = Random(seed)
    needles: list[Needle] = []
    while len(needles) < count:
        fact = WORDINGS[wordings](chance)
        turn = chance.choice(fact.turns)
        known = {needle.question for needle in needles}
        if len(fact.sentences) == 1 and turn.question not in known:
            depth = (len(needles) + 0.5) / count
            needles.append(Needle(fact.sentences[0], turn.question, turn.answer, depth))
    return needles


def hide(book: str, needles: Sequence[Needle]) -> str:
    """Put each fact at a line end at its depth."""
    lines = book.splitlines(keepends=True)
    for needle in reversed(needles):
        lines.insert(int(needle.depth * len(lines)), needle.sentence + "\n")
    return "".join(lines)


def cut(lines: Iterable[str], tokens: int, tokenizer: Tokenizer) -> str:
    """The first `tokens` tokens, to the end of a line."""
    taken = []
    for line in lines:
        tokens -= len(tokenizer.encode(line))
        if tokens < 0:
            return "".join(taken)
        taken.append(line)
    raise SystemExit(f"the texts are {tokens:,} tokens too short")


def ask_all(asked: list[tuple[Needle, Path]], threads: int, options: dict) -> list[dict]:
    """Ask every question of its book; one result each."""
    import torch

    torch.set_num_threads(threads)
    memory, results = None, []
    for needle, path in asked:
        started = time.perf_counter()
        if memory is None or len({book for _, book in asked}) > 1:
            memory = Memory.read(path, **options)
        answer = memory.ask(needle.question, max_tokens=32)
        results.append(
            {
                "depth": needle.depth,
                "question": needle.question,
                "expected": needle.answer,
                "answer": answer.text,
                "right": needle.answer.lower() in answer.text.lower(),
                "tokens": answer.coverage.tokens_read,
                "kv_bytes": answer.memory.kv_bytes,
                "seconds": round(time.perf_counter() - started, 2),
                "tokens_per_s": round(answer.timing.read_tokens_per_s),
            }
        )
    return results


def measure(mode: str, asked: list[tuple[Needle, Path]], options: Namespace) -> Row:
    """Ask all needles under one policy, spread over processes."""
    policy, _, latent = mode.partition("+")
    row: Row = {"mode": mode, "budget": options.budget, "chunk_tokens": options.chunk}
    row |= {"span_tokens": options.span, "dtype": options.dtype, "device": options.device}
    shares = [asked[i :: options.workers] for i in range(options.workers)]
    memory = {name: value for name, value in row.items() if name != "mode"}
    memory |= {"policy": policy, "latent": latent or NO_LATENT, "recall": False}
    memory |= {"model": options.model, "offline": True}
    run = partial(ask_all, threads=options.threads, options=memory)
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        results = [result for share in pool.map(run, shares) for result in share]
    results.sort(key=lambda result: result["depth"])
    row |= {name: results[0][name] for name in ("tokens", "kv_bytes")}
    row |= {"tokens_per_s": max(result["tokens_per_s"] for result in results)}
    return row | count_right(results) | {"results": results}


def main(arguments: list[str] | None = None) -> None:
    """Measure what the options ask for, append rows, print a table."""
    parser = option_parser(__doc__.partition("\n")[0], "needles")
    parser.set_defaults(threads=1)
    add = parser.add_argument
    add("book", help="a text file or PDF of at least --tokens tokens")
    add("--tokens", type=parse_size, default="200k")
    add("--count", type=int, default=50, help="number of facts")
    add("--span", type=int, default=MemoryConfig.span_tokens)
    add("--wordings", choices=WORDINGS, default="development")
    add("--alone", action="store_true", help="a book for each fact, instead of one for all")
    help_policies = "comma-separated; learned+centroids has that latent memory beside it"
    add("--policies", default="question,recency,keydiff", help=help_policies)
    add("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    add("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    checkpoint = find_checkpoint(options.model, offline=True)
    tokenizer = load_tokenizer(checkpoint.path)
    sources = open_sources([options.book], ReadConfig())
    lines = (p.text for document in sources.documents for p in document.passages())
    book = cut(lines, options.tokens, tokenizer)
    needles = make_needles(options.count, options.seed, options.wordings)
    settings = {"benchmark": "needles", "book": Path(options.book).name, "seed": options.seed}
    settings |= {"wordings": options.wordings, "alone": options.alone, "threads": options.threads}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        asked = []
        for i, needle in enumerate(needles):
            path = Path(folder) / f"{i if options.alone else 'all'}.txt"
            path.write_text(hide(book, [needle] if options.alone else needles), encoding="utf-8")
            asked.append((needle, path))
        for mode in options.policies.split(","):
            measured = measure(mode, asked, options)
            rows.append(common_fields(checkpoint, options.device) | settings | measured)
            append_row(options.out, rows[-1])
            print_table(rows, COLUMNS)


if __name__ == "__main__":
    main()
