"""Book-length documents with questions whose evidence is known: real sets, and made-up ones."""

import itertools
import re
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from indexmem_cli.bench.rows import EXAMPLE_BOOK
from indexmem_cli.config import ReadConfig, parse_size
from indexmem_cli.documents import open_sources
from indexmem_cli.terms import terms_of
from indexmem_cli.train.data import read_held_out_books, read_records
from indexmem_cli.train.gate import CHAINS, HELD_OUT_CHAINS
from indexmem_cli.train.natural import BY_FORM
from indexmem_cli.train.tasks import capitalise, fill

WINDOW_TOKENS = 1600  # what leaves a model of 2,048 room for the question and the answer
SENTENCE_END = re.compile(r"(?<=[.?!])\s+")


@dataclass(frozen=True)
class Asked:
    """A question, its accepted answers, and where its evidence stands."""

    question: str
    answers: tuple[str, ...]
    spans: tuple[tuple[int, int], ...] = ()
    """Characters [start, end) of the text."""
    page: int | None = None
    """Page of a PDF, where that is what is known."""


@dataclass(frozen=True)
class Part:
    """A text with its questions."""

    text: str
    asked: tuple[Asked, ...]

    def pieces(self, limit: int) -> Iterator["Part"]:
        """Cut it at line ends into pieces of at most `limit` characters, if they are shorter."""
        ends = [match.end() for match in re.finditer(r"\n|$", self.text)]
        start, last = 0, 0
        for end in ends:
            if end - start > limit and last > start:
                yield self._piece(start, last)
                start = last
            last = end
        yield self._piece(start, last)

    def _piece(self, start: int, end: int) -> "Part":
        inside = [a for a in self.asked if all(start <= s and e <= end for s, e in a.spans)]
        moved = (
            replace(a, spans=tuple((s - start, e - start) for s, e in a.spans)) for a in inside
        )
        return Part(self.text[start:end], tuple(moved))


def read_set(data: Path, name: str) -> list[Part]:
    """Read a development set, grouped by its texts."""
    folder = data / "qa" / "dev"
    documents = {r["doc_id"]: r["text"] for r in read_records(folder / "docs.jsonl.xz")}
    grouped: dict[str, list[Asked]] = {}
    for record in read_records(folder / f"{name}.jsonl.xz"):
        text = record.get("context") or documents[record["doc_id"]]
        answers = tuple(answer for answer in record["answers"] if answer)
        start = record["answer_start"]
        spans = record.get("evidence") or (start is not None and [[start, start + len(answers[0])]])
        if answers and spans:
            asked = Asked(record["question"], answers, tuple(map(tuple, spans)))
            grouped.setdefault(text, []).append(asked)
    return [Part(text.rstrip("\n") + "\n", tuple(asked)) for text, asked in grouped.items()]


def ask_prose(data: Path, chance: Random) -> list[Part]:
    """Ask held-out books by the generator of the training, in its sentence forms alone."""
    parts = []
    for book in read_held_out_books(data):
        for line in book.splitlines(keepends=True):
            at, asked = 0, []
            for sentence in SENTENCE_END.split(line):
                at = line.index(sentence, at)
                if turn := ask_sentence(sentence.strip(), chance):
                    asked.append(Asked(*turn, ((at, at + len(sentence)),)))
            parts.append(Part(line, tuple(asked)))
    return parts


def ask_sentence(sentence: str, chance: Random) -> tuple[str, tuple[str]] | None:
    """Ask something of a sentence that is long enough to be found again."""
    if not 40 <= len(sentence) <= 300:
        return None
    for asker in chance.sample(BY_FORM, len(BY_FORM)):
        turn = asker(chance, sentence)
        if turn and len([term for term in terms_of(turn.question) if len(term) > 4]) >= 3:
            return turn.question, (turn.answer,)
    return None


def ask_pages(chance: Random) -> list[Asked]:
    """Ask the example book the same way; the page of each question is known."""
    [book] = open_sources([str(EXAMPLE_BOOK)], ReadConfig()).documents
    asked = []
    for page, lines in itertools.groupby(book.passages(), key=lambda p: p.place.page):
        text = " ".join("".join(line.text for line in lines).split())
        for sentence in SENTENCE_END.split(text):
            if turn := ask_sentence(sentence, chance):
                asked.append(Asked(*turn, page=page))
    return asked


def make_chains(data: Path, limit: int, chance: Random, books: int) -> list[Part]:
    """Hide both steps of made-up facts of held-out wordings in prose, one for every 1,600 chars."""
    prose = "".join(part.text for part in ask_prose(data, Random(0)))
    made = []
    for _ in range(books):
        start = prose.index("\n", chance.randrange(len(prose) - limit - 5000)) + 1
        lines = prose[start : start + limit].splitlines(keepends=True)
        hidden, facts = {}, []
        for _ in range(max(2, limit // 1600)):
            values: dict[str, str] = {}
            first, second, question = (
                capitalise(fill(chance, form, values))
                for form in chance.choice(CHAINS[-HELD_OUT_CHAINS:])
            )
            answer = values["job"] if "job" in question else values["place"]
            facts.append((question, answer, first + "\n", second + "\n"))
        for sentence in chance.sample([s for f in facts for s in f[2:]], 2 * len(facts)):
            hidden.setdefault(chance.randrange(len(lines)), []).append(sentence)
        kept = [s for i, line in enumerate(lines) for s in (*hidden.get(i, ()), line)]
        text = "".join(kept)
        asked = [
            Asked(q, (a,), tuple((text.index(s), text.index(s) + len(s) - 1) for s in steps))
            for q, a, *steps in facts
        ]
        made.append(Part(text, tuple(asked)))
    return made


def join(parts: Sequence[Part]) -> Part:
    """Put texts one after the other."""
    texts, asked, length = [], [], 0
    for part in parts:
        for one in part.asked:
            spans = tuple((s + length, e + length) for s, e in one.spans)
            asked.append(replace(one, spans=spans))
        texts.append(part.text)
        length += len(part.text)
    return Part("".join(texts), tuple(asked))


def pack(parts: Sequence[Part], limit: int, ordered: bool, chance: Random) -> list[Part]:
    """Join texts to books of at most `limit` characters; longer ones are cut."""
    pieces = [piece for part in parts for piece in part.pieces(limit)]
    if not ordered:
        chance.shuffle(pieces)
    books, current, length = [], [], 0
    for piece in pieces:
        if current and length + len(piece.text) > limit:
            books.append(join(current))
            current, length = [], 0
        current.append(piece)
        length += len(piece.text)
    return [*books, join(current)]


def make_books(name: str, length: str, options: Namespace) -> list[Part]:
    """Make books of a length with `options.count` questions in all, evenly spread over them."""
    chance = Random(f"{name}-{length}-{options.seed}")
    tokens = {"window": WINDOW_TOKENS, "all": 120_000}.get(length) or parse_size(length)
    each = {"window": 5, "all": options.count}.get(length, 10)
    limit = int(tokens * 3.6)  # characters; a token of the embedded model has about 3.9
    if name == "chains":
        limit = limit * 5 // 6  # the facts come on top
        most = min(each, max(2, limit // 1600))
        books = make_chains(options.data, limit, chance, -(-options.count // most))
    else:
        prose = name == "prose"
        parts = ask_prose(options.data, chance) if prose else read_set(options.data, name)
        books = [book for book in pack(parts, limit, prose, chance) if book.asked]
        chance.shuffle(books)
        if length == "all":
            books = [max(books, key=lambda book: len(book.text))]
    left, made = options.count, []
    for book in books:
        asked = chance.sample(book.asked, min(each, left, len(book.asked)))
        made += [Part(book.text, tuple(asked))] if asked else []
        left -= len(asked)
    return made
