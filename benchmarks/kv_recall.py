"""Passages brought back as keys and values from the disk, beside reading their text again.

python benchmarks/kv_recall.py DATA --sets facts,squadshifts
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads sleep; read when torch loads

import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch
from book_sets import Asked, Part, ask_prose, make_books
from books import holds_words
from needles import hide, make_needles

from indexmem_cli import Memory
from indexmem_cli.bench import rows
from indexmem_cli.bench.rows import Row
from indexmem_cli.bench.scores import score_f1
from indexmem_cli.checkpoint import find_checkpoint
from indexmem_cli.config import RECALL_FROM, TEXT, ModelConfig
from indexmem_cli.language_model import load_language_model
from indexmem_cli.library import Library

COLUMNS = ["set", "recall_from", "tokens", "n", "right", "accuracy", "interval_95", "f1"]
COLUMNS += ["bytes_per_token", "mib_per_million", "read_s", "ask_s", "ask_cpu_s"]


def measure(book: Part, forms: list[str], options: Namespace, engine) -> Iterator[tuple[str, Row]]:
    """Read a book once for each form, then ask each question from one form after the other."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "book.txt"
        path.write_text(book.text, encoding="utf-8")
        how = {"model": options.model, "offline": True, "save": True}
        how |= {"budget": options.budget, "chunk_tokens": options.chunk}
        memories = [Memory.read(path, **how, recall_from=form) for form in forms]
        for memory in memories:
            memory.library, memory.engine = Library(Path(folder) / "memories"), engine
            for _ in memory.ingest():
                pass
        for asked in book.asked:
            for form, memory in zip(forms, memories, strict=True):
                started = time.perf_counter(), time.process_time()
                answer = memory.ask(asked.question, max_tokens=options.max_tokens)
                ended = time.perf_counter(), time.process_time()
                f1 = score_f1(answer.text, asked.answers)
                [reading] = memory.readings
                kind = "text-" if form == TEXT else "kv-"
                parts = reading.manifest.parts.items()
                yield (
                    form,
                    {
                        "question": asked.question,
                        "expected": asked.answers[0],
                        "text": answer.text,
                        "right": holds_words(answer.text, asked.answers) or f1 >= 0.5,
                        "f1": f1,
                        "recalled": sum(b.tokens for each in answer.recall for b in each.blocks),
                        "s": ended[0] - started[0],
                        "cpu_s": ended[1] - started[1],
                        "read_s": answer.timing.read_s,
                        "tokens": reading.tokens,
                        "bytes": sum(part.size_bytes for name, part in parts if kind in name),
                    },
                )


def facts_in_prose(options: Namespace) -> Part:
    """Hide facts of wordings never trained on in a held-out book."""
    prose = "".join(part.text for part in ask_prose(options.data, Random(0)))[1_000_000:1_230_000]
    needles = make_needles(options.count, options.seed, "development")
    asked = tuple(Asked(needle.question, (needle.answer,)) for needle in needles)
    return Part(hide(prose, needles), asked)


def main(arguments: list[str] | None = None) -> None:
    """Measure what the options ask for, append rows, print a table."""
    parser = rows.option_parser(__doc__.partition("\n")[0], "kv_recall")
    parser.set_defaults(threads=1)
    add = parser.add_argument
    add("data", type=Path, help="folder with prose/ and qa/dev/ (docs/train-base.md)")
    add("--sets", default="facts,squadshifts")
    add("--forms", default=",".join(RECALL_FROM), help="what passages are recalled from")
    add("--length", default="all")
    add("--count", type=int, default=100)
    add("--max-tokens", type=int, default=32)
    add("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    checkpoint = find_checkpoint(options.model, offline=True)
    model = ModelConfig(options.model, "auto", options.dtype, options.device, offline=True)
    engine, measured = load_language_model(model), []
    for name in options.sets.split(","):
        facts = name == "facts"
        books = [facts_in_prose(options)] if facts else make_books(name, options.length, options)
        forms = options.forms.split(",")
        asked = [pair for book in books for pair in measure(book, forms, options, engine)]
        for form in forms:
            found = [one for of, one in asked if of == form]
            size, tokens = found[-1]["bytes"], found[-1]["tokens"]
            row = rows.common_fields(checkpoint, options.device)
            row |= {"benchmark": "kv_recall", "set": name, "recall_from": form, "tokens": tokens}
            row |= {"budget": options.budget, "chunk_tokens": options.chunk, "seed": options.seed}
            row |= rows.count_right(found)
            row |= {"f1": round(sum(one["f1"] for one in found) / len(found), 4)}
            row |= {"bytes_per_token": round(size / tokens)}
            row |= {"mib_per_million": round(size / tokens * 1e6 / 2**20)}
            row |= {"read_s": round(sum(one["read_s"] for one in found), 1)}
            row |= {"ask_s": rows.spread(one["s"] for one in found)}
            row |= {"ask_cpu_s": rows.spread(one["cpu_s"] for one in found), "results": found}
            rows.append_row(options.out, row)
            measured.append(row)
        rows.print_table(measured, COLUMNS)


if __name__ == "__main__":
    main()
