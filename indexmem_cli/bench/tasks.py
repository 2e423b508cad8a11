"""What the bench asks: texts with questions, from a data folder or from what the package has.

The data folder is the one of training, of which only held-out parts are used (`DATA_LAYOUT`).
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from indexmem_cli.bench.rows import EXAMPLE_BOOK, EXAMPLES
from indexmem_cli.checkpoint import find_checkpoint
from indexmem_cli.config import DEFAULT_MODEL, ReadConfig
from indexmem_cli.documents import open_sources
from indexmem_cli.tokens import load_tiktoken
from indexmem_cli.train.data import (
    HELD_OUT_SHARD,
    NUM_VALIDATION_BOOKS,
    PROSE_SHARDS,
    Corpus,
    encode_documents,
    read_chat,
    read_code,
    read_held_out_books,
    read_records,
)
from indexmem_cli.train.tasks import Fact, make_development_fact

DATA_LAYOUT = f"""prose/{HELD_OUT_SHARD}  books, of which the last {NUM_VALIDATION_BOOKS}
prose/chat.jsonl.xz          logs, of which the last 5 %
qa/dev/squadshifts.jsonl.xz  questions with their paragraphs
qa/dev/fairytaleqa.jsonl.xz  questions on qa/dev/docs.jsonl.xz
qa/dev/clapnq.jsonl.xz       questions, half of them without an answer"""
PROMPT_TOKENS = 40
"""Room left for the question and its frame."""
NUM_DEPTHS = 10
NUM_PARAGRAPHS = 10


@dataclass(frozen=True)
class Question:
    """A question on a text."""

    text: str
    question: str
    answers: tuple[str, ...]
    """Accepted answers; none where the text does not say."""
    depth: int = 0
    """Tenth of the text in which a needle stands."""


@dataclass(frozen=True)
class HeldOut:
    """Text that was never trained on."""

    corpus: Corpus
    origin: dict[str, str] = field(default_factory=dict)
    """Where the text of each source comes from."""

    @property
    def filler(self) -> str:
        """The source that needles are hidden in."""
        return "prose" if "prose" in self.corpus.arrays else "code"


def load_held_out(data: Path | None) -> HeldOut:
    """Encode the held-out books, logs and code; without data the examples stand in for them.

    Lengths are counted by the embedded model's tokenizer, whichever model is measured.
    """
    texts = {"code": (read_code()[1], "Python's standard library, last 5 %")}
    if data and (data / "prose" / HELD_OUT_SHARD).exists():
        texts["prose"] = (
            read_held_out_books(data),
            f"last {NUM_VALIDATION_BOOKS} books of {PROSE_SHARDS[-1]}",
        )
    elif EXAMPLE_BOOK.exists():
        texts["prose"] = [text_of(EXAMPLE_BOOK)], EXAMPLE_BOOK.name
    if data and (data / "prose" / "chat.jsonl.xz").exists():
        texts["chat"] = read_chat(data)[1], "IRC logs, last 5 %"
    elif (log := EXAMPLES / "chat.txt").exists():
        texts["chat"] = [log.read_text("utf-8")], log.name
    encoding = load_tiktoken(find_checkpoint(DEFAULT_MODEL, offline=True).path)
    with tempfile.TemporaryDirectory() as folder:
        for source, (parts, _) in texts.items():
            np.save(Path(folder) / f"{source}.valid.npy", encode_documents(encoding, parts))
        corpus = Corpus(Path(folder), encoding, "valid")
        corpus.arrays = {name: np.array(array) for name, array in corpus.arrays.items()}
    return HeldOut(corpus, {source: origin for source, (_, origin) in texts.items()})


def text_of(path: Path) -> str:
    """Return all text of a document."""
    sources = open_sources([str(path)], ReadConfig())
    return "".join(p.text for document in sources.documents for p in document.passages())


def make_needles(
    held_out: HeldOut,
    length: int,
    count: int,
    seed: int,
    make: Callable[[Random], Fact] = make_development_fact,
) -> Iterator[Question]:
    """Hide facts that `make` states in `length` tokens of text, at ten depths in turn.

    Two more facts lie in the text; the prompt's tokens are counted in `length`.
    """
    rng, corpus = Random(f"{seed}-{length}"), held_out.corpus
    for number in range(count):
        depth = number % NUM_DEPTHS
        facts = [make(rng) for _ in range(3)]
        turn = rng.choice(facts[0].turns)
        pieces = [corpus.encoding.encode_ordinary(" " + fact.sentences[0]) for fact in facts]
        room = length - sum(map(len, pieces)) - PROMPT_TOKENS
        drawn = (corpus.window(rng, held_out.filler, room) for _ in range(4))
        prose = max(drawn, key=len)  # a window ends where its document ends
        starts = [0, *corpus.sentence_starts(prose), len(prose)]
        aim = (depth + 0.5) / NUM_DEPTHS * len(prose)
        places = [min(starts, key=lambda start: abs(start - aim)), *rng.choices(starts, k=2)]
        text, last = [], 0
        for place, piece in sorted(zip(places, pieces, strict=True)):
            text += [*prose[last:place], *piece]
            last = place
        whole = corpus.encoding.decode(text + prose[last:])
        yield Question(whole, turn.question, (turn.answer,), depth)


def shuffle_reading(data: Path, name: str, seed: int) -> list[Question]:
    """Return the answerable questions of a development set, each with its paragraph, shuffled."""
    folder = data / "qa" / "dev"
    records = [r for r in read_records(folder / f"{name}.jsonl.xz") if r["answerable"]]
    documents = {}
    if any("doc_id" in record for record in records):
        documents = {r["doc_id"]: r["text"] for r in read_records(folder / "docs.jsonl.xz")}
    questions = []
    for record in Random(seed).sample(records, len(records)):
        text = passage_of(record, documents)
        questions.append(Question(text, record["question"], tuple(record["answers"])))
    return questions


def passage_of(record: dict[str, Any], documents: dict[str, str]) -> str:
    """Return the paragraph of a question, or what of its document holds the evidence."""
    text: str = record.get("context") or documents[record["doc_id"]]
    if record.get("evidence") and "doc_id" in record:
        spans = record["evidence"]
        text = text[min(s for s, _ in spans) : max(e for _, e in spans)]
    return text


def mix_paragraphs(questions: list[Question], pool: list[Question], seed: int) -> list[Question]:
    """Set each question's paragraph among nine others of `pool`, in any order."""
    rng = Random(seed)
    paragraphs = list(dict.fromkeys(question.text for question in pool))
    mixed = []
    for one in questions:
        others = [text for text in paragraphs if text != one.text]
        chosen = [one.text, *rng.sample(others, min(NUM_PARAGRAPHS - 1, len(others)))]
        rng.shuffle(chosen)
        mixed.append(Question("\n\n".join(chosen), one.question, one.answers))
    return mixed


def draw_unanswerable(data: Path, count: int, seed: int) -> list[Question]:
    """Draw as many questions that their passage does not, as that it does, answer (ClapNQ)."""
    records = list(read_records(data / "qa" / "dev" / "clapnq.jsonl.xz"))
    drawn = []
    for answerable in (False, True):
        pool = [record for record in records if record["answerable"] == answerable]
        for r in Random(seed).sample(pool, min(count, len(pool))):
            answers = tuple(r["answers"]) if answerable else ()
            drawn.append(Question(r["context"], r["question"], answers))
    return drawn


def make_unanswerable(held_out: HeldOut, count: int, seed: int) -> list[Question]:
    """State a fact in held-out text, and ask for it and for one that is not there."""
    rng, corpus, made = Random(seed + 1), held_out.corpus, []
    for _ in range(count):
        shown, hidden = make_development_fact(rng), make_development_fact(rng)
        around = [corpus.window(rng, held_out.filler, 150) for _ in range(2)]
        before, after = map(corpus.encoding.decode, around)
        text = f"{before} {shown.sentences[0]} {after}"
        made.append(Question(text, rng.choice(hidden.turns).question, ()))
        turn = rng.choice(shown.turns)
        made.append(Question(text, turn.question, (turn.answer,)))
    return made
