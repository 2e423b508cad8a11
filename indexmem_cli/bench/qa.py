"""Real questions for `bench quality`, as RULER's QA tasks, and on long documents alone.

In the first, the paragraph of a question stands among those of others, in any order, up to the
length; word F1 as in SQuAD. In the second, the text is one story or meeting, whole where it fits,
else the part of the length around the passage that the question is about. Beside F1 stand exact
match and ROUGE-L.
"""

from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from indexmem_cli.bench.scores import score_exact, score_f1, score_rouge
from indexmem_cli.bench.suites import Draw, Sample, Task, add_task
from indexmem_cli.bench.tasks import Question, shuffle_reading
from indexmem_cli.errors import ConfigError
from indexmem_cli.train.data import read_records

SETS = ("squadshifts", "fairytaleqa")
LONG_SETS = {"fairytaleqa": 32, "qmsum": 128}
"""Sets on documents, with the longest answer."""


def make_reading(draw: Draw, name: str) -> Sample:
    """Set the paragraph of a question among others.

    Raises:
        ConfigError: there is no data folder, or it lacks the set.
    """
    questions = _read(_folder(draw, name), name)
    paragraphs = list(dict.fromkeys(question.text for question in questions))
    for asked in draw.rng.sample(questions, len(questions)):
        others = draw.rng.sample(paragraphs, len(paragraphs))
        if draw.fill([asked.text], asked.question):
            break
    around = (f"{text}\n\n" for text in others if text != asked.text)
    parts = draw.fill(around, asked.question, asked.text)
    parts.insert(draw.rng.randint(0, len(parts)), f"{asked.text}\n\n")
    return Sample("".join(parts).rstrip(), asked.question, asked.answers)


def make_long_reading(draw: Draw, name: str) -> Sample:
    """Take the document of a question, or as much of it around the evidence as there is room for.

    Raises:
        ConfigError: there is no data folder, or it lacks the set.
    """
    documents, records = _read_long(_folder(draw, name), name)
    record = draw.rng.choice(records)
    text = documents[record["doc_id"]]
    first, end = (pick(span[i] for span in record["evidence"]) for i, pick in ((0, min), (1, max)))
    room = draw.room - draw.count(record["question"]) - 1
    if draw.count(text) > room:
        text = _cut_around(draw, text, first, end, room)
    return Sample(text, record["question"], tuple(record["answers"]))


def _cut_around(draw: Draw, text: str, first: int, end: int, room: int) -> str:
    """The longest part of a text that has room, with the evidence anywhere in it."""
    chars = int(len(text) / draw.count(text) * room)
    while True:
        lowest, highest = max(0, end - chars), min(first, len(text) - chars)
        start = draw.rng.randint(min(lowest, highest), max(lowest, highest))
        part = text[start : start + chars]
        if draw.count(part) <= room:
            return part
        chars = int(chars * 0.95)


def _folder(draw: Draw, name: str) -> Path:
    if draw.data is None or not (draw.data / "qa" / "dev" / f"{name}.jsonl.xz").exists():
        raise ConfigError(f"no questions of {name}", "name a folder with qa/dev: --data DIR")
    return draw.data


@lru_cache(maxsize=2)
def _read(data: Path, name: str) -> list[Question]:
    return shuffle_reading(data, name, 0)


@lru_cache(maxsize=2)
def _read_long(data: Path, name: str) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Documents by id, and the questions that say where their evidence is."""
    folder = data / "qa" / "dev"
    documents = {r["doc_id"]: r["text"] for r in read_records(folder / "docs.jsonl.xz")}
    records = list(read_records(folder / f"{name}.jsonl.xz"))
    return documents, [r for r in records if r["answerable"] and r.get("evidence")]


def _holds_one(given: str, answers: Sequence[str]) -> float:
    """Say whether any reference stands in an answer, in any case: RULER's metric for QA."""
    return float(any(answer.lower() in given.lower() for answer in answers))


_BESIDE = {"exact": score_exact, "rouge_l": score_rouge}
for _number, _name in enumerate(SETS, 1):
    _make = partial(make_reading, name=_name)
    add_task("ruler", f"qa_{_number}", Task(_make, 32, _holds_one, needs_data=True))
    add_task("qa", _name, Task(_make, 32, score_f1, _BESIDE, needs_data=True))
for _name, _most in LONG_SETS.items():
    _make = partial(make_long_reading, name=_name)
    add_task("long-qa", _name, Task(_make, _most, score_f1, _BESIDE, needs_data=True))
