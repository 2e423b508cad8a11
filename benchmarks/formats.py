"""One or two questions of each real file of every format: is the answer right, and its source.

python benchmarks/formats.py DOCUMENTS

DOCUMENTS is a folder of the files that `formats.json` names. Files without a text layer, damaged
and locked ones stand there too, with what must be said of them.
"""

import json
from argparse import Namespace
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from indexmem_cli import Answer, Memory
from indexmem_cli.bench import rows
from indexmem_cli.checkpoint import find_checkpoint
from indexmem_cli.config import ModelConfig
from indexmem_cli.errors import DocumentError
from indexmem_cli.events import Source
from indexmem_cli.language_model import LanguageModel, load_language_model
from indexmem_cli.render.wording import describe_place

QUESTIONS = Path(__file__).with_suffix(".json")
ANSWER_CHARS = 80
"""A row holds no more of a document than this."""

Asked = dict[str, Any]
"""`file`; `question`, the `answers` that are right, the fields of the `place` it is at (a list:
any of them); or a part of the message with which the file is `refused`."""


def stands_at(source: Source, place: dict[str, Any]) -> bool:
    """Whether a source is the place that was expected."""
    expected = {name: v if isinstance(v, list) else [v] for name, v in place.items()}
    return all(getattr(source, name) in values for name, values in expected.items())


def judge(answer: Answer, asked: Asked) -> rows.Row:
    """Judge the answer by its words and the sources by their places, each for itself."""
    text = " ".join(answer.text.split())
    found = [stands_at(source, asked["place"]) for source in answer.sources]
    shown = None
    if found:
        source = answer.sources[found.index(True) if any(found) else 0]
        shown = describe_place(replace(source, file=Path(source.file).name))
    return {
        "question": asked["question"],
        "expected": asked["answers"][0],
        "answer": text[:ANSWER_CHARS],
        "answer_right": any(right.lower() in text.lower() for right in asked["answers"]),
        "source": shown,
        "source_right": any(found),
        "first_source_right": found[:1] == [True],
        "num_sources": len(found),
        "tokens": answer.coverage.tokens_read,
    }


def ask_file(path: Path, several: list[Asked], engine: LanguageModel, options: Namespace):
    """Open a file with each password, read it once for all its questions, and judge them."""
    by_password = defaultdict(list)
    for asked in several:
        by_password[asked.get("password")].append(asked)
    for password, questions in by_password.items():
        try:
            memory = Memory.read(
                path, password=password, budget=options.budget, chunk_tokens=options.chunk
            )
        except DocumentError as error:
            for asked in questions:
                said = "refused" in asked and asked["refused"] in error.message
                yield {"refused": error.message.rpartition(": ")[2], "answer_right": said}
            continue
        memory.engine = engine
        for asked in questions:
            if "refused" in asked:
                yield {"refused": None, "answer_right": False}
            else:
                yield judge(memory.ask(asked["question"], max_tokens=48), asked)


def measure(options: Namespace) -> None:
    """Ask all questions and append a row for each."""
    import torch

    torch.set_num_threads(options.threads)
    checkpoint = find_checkpoint(options.model, offline=True)
    form = ModelConfig(options.model, dtype=options.dtype, device=options.device, offline=True)
    engine = load_language_model(form)
    common = rows.common_fields(checkpoint, options.device) | {
        "benchmark": "formats",
        "budget_tokens": options.budget,
        "chunk_tokens": options.chunk,
        "n": 1,
    }
    by_file = defaultdict(list)
    for asked in json.loads(options.questions.read_text("utf-8")):
        by_file[asked["file"]].append(asked)
    for file, several in by_file.items():
        for judged in ask_file(options.documents / file, several, engine, options):
            row = common | {"format": file.split("/")[-2], "file": file} | judged
            rows.append_row(options.out, row)


def main(arguments: list[str] | None = None) -> None:
    """Ask, unless only the table is wanted; print the newest row of each question."""
    parser = rows.option_parser(__doc__.partition("\n")[0], "formats")
    parser.set_defaults(threads=1)
    parser.add_argument("documents", type=Path, nargs="?", help="without it only the table is made")
    parser.add_argument("--questions", type=Path, default=QUESTIONS)
    options = parser.parse_args(arguments)
    if options.documents is not None:
        measure(options)
    found = rows.read_rows(options.out)
    newest = {(row["file"], row.get("question", "refused")): row for row in found}.values()
    answered = [row for row in newest if "question" in row]
    table = [
        {
            "file": row["file"],
            "question": row["question"],
            "answer": row["answer"].replace("|", " "),
            "right": "yes" if row["answer_right"] else "no",
            "source": (row["source"] or "").partition("." + row["file"].rpartition(".")[2])[2],
            "right place": "yes" if row["source_right"] else "no",
        }
        for row in answered
    ]
    rows.print_table(table, list(table[0]) if table else [])
    for name, among in (
        ("answers right", [row["answer_right"] for row in answered]),
        ("true place among the sources", [row["source_right"] for row in answered]),
        ("refused as expected", [row["answer_right"] for row in newest if "question" not in row]),
    ):
        print(f"{name}: {sum(among)} of {len(among)}")


if __name__ == "__main__":
    main()
