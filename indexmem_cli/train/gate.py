"""Trains the gate of recall: which blocks of an archive hold the answer to a question.

Questions of the reading sets are asked of book-length documents, put together from their texts and
prose between them; questions of two steps are made up. A few numbers come out, in one JSON file.
"""

import json
import tempfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, product
from pathlib import Path
from random import Random

import numpy as np

from indexmem_cli.archive import Archive
from indexmem_cli.checkpoint import find_checkpoint
from indexmem_cli.config import DEFAULT_MODEL, ModelConfig
from indexmem_cli.documents import open_text
from indexmem_cli.loading import load_backbone, load_prompt
from indexmem_cli.memory.candidates import (
    FEATURES,
    Candidate,
    find_candidates,
    find_links,
    follow,
)
from indexmem_cli.memory.recall import (
    Classifier,
    Recall,
    judge,
    likely_of,
    load_gate,
    make_classifier,
    rate,
)
from indexmem_cli.reranking import Reranker
from indexmem_cli.tokens import Tokenizer, load_tokenizer, read_chunks
from indexmem_cli.train.data import read_records
from indexmem_cli.train.reading import Context, load_contexts
from indexmem_cli.train.tasks import capitalise, fill

SETS = {"train": ("squadshifts", "fairytaleqa", "covidqa"), "dev": ("squadshifts", "fairytaleqa")}
QUESTIONS_PER_DOCUMENT = 300
DOCUMENT_CHARS = 800_000
DOCUMENTS_PER_SET = 2
NUM_PROSE_BOOKS = 60
NUM_CHAINS = 300
LEAST_ODDS = {"first": 0.05, "further": 0.2, "rerank": 0.05}
"""Of a block that is read again, where there is room: right one time in twenty, in five.

Blocks of the first round that were reranked stand among those that were not: one bound for both."""
CHAINS = (
    (
        "The {thing} was left with {person}.",
        "{person} now lives in {place}.",
        "In which place does the person with the {thing} live?",
    ),
    (
        "{person} is the keeper of the {site}.",
        "In the spring {person} bought a {thing}.",
        "What did the keeper of the {site} buy?",
    ),
    (
        "The {site} belongs to a company from {place}.",
        "The company from {place} is led by {person}.",
        "Who leads the company that owns the {site}?",
    ),
    (
        "{person} was chosen as head of the {word} society.",
        "On the wall of {person} hangs a {thing}.",
        "What hangs on the wall of the head of the {word} society?",
    ),
    # The last two are for validation alone.
    (
        "Nobody but {person} has the key of the {site}.",
        "{person} was born in {place}.",
        "Where was the one who has the key of the {site} born?",
    ),
    (
        "The {thing} came as a present from {person}.",
        "{person} works as a {job} by day.",
        "What is the job of the person who gave the {thing}?",
    ),
)
HELD_OUT_CHAINS = 2
Span = tuple[int, int]


@dataclass(frozen=True)
class Asked:
    """A question of a document, and the characters that answer it: of each step for a chain."""

    question: str
    spans: tuple[Span, ...]


class Book:
    """A long text in an archive."""

    def __init__(self, text: str, path: Path, tokenizer: Tokenizer) -> None:
        self.archive = Archive.create(path, tokenizer.decode)
        self._chars, length = [], 0
        for chunk in read_chunks(open_text(text).passages(), tokenizer, 1024):
            self.archive.add(chunk.entries)
        self.archive.commit(last=True)
        for block in self.archive:
            self._chars.append(length)
            length += len(self.archive.text(block))

    def blocks_of(self, span: Span) -> set[int]:
        """Numbers of the blocks that hold these characters."""
        first, last = span[0], max(span[0], span[1] - 1)
        return set(range(self._at(first), self._at(last) + 1))

    def _at(self, char: int) -> int:
        return bisect_right(self._chars, char) - 1


def train_gate(data: Path, out: Path, seed: int = 0) -> None:
    """Fit the gate on the training questions, write it, and print what it finds on others."""
    rng = Random(seed)
    checkpoint = find_checkpoint(DEFAULT_MODEL, offline=True)
    tokenizer = load_tokenizer(checkpoint.path)
    backbone = load_backbone(checkpoint, ModelConfig(DEFAULT_MODEL, offline=True))
    reranker = Reranker(backbone, load_prompt(checkpoint), tokenizer)
    records = read_records(data / "prose" / "gutenberg-00.jsonl.xz")
    prose = [record["text"] for record in islice(records, NUM_PROSE_BOOKS)]
    with tempfile.TemporaryDirectory() as folder:
        made = (prose, rng, Path(folder), tokenizer)
        books = [*make_books(data, "train", *made), make_chains(CHAINS[:-HELD_OUT_CHAINS], *made)]
        firsts = [first_samples(*book) for book in books]
        first = fit(list(chain.from_iterable(firsts[:-1])), "first")
        pairs = list(zip(books, firsts, strict=True))
        further = fit([s for book, f in pairs for s in further_samples(*book, f)], "further")
        classifier = make_classifier(first, "first")
        read = [s for book, f in pairs for s in reranked_samples(*book, f, classifier, reranker)]
        gate = {"first": first, "further": further, "rerank": fit_order(read, "rerank")}
        out.write_text(json.dumps(gate, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {out}: {sum(map(len, firsts)):,} questions, {len(read):,} of them reranked")
        print(json.dumps(gate))
        chains = make_chains(CHAINS[-HELD_OUT_CHAINS:], *made)
        print(json.dumps({"set": "chains", **score_chains(*chains, out)}))
        for book in (chains, *make_books(data, "dev", *made)):
            print(json.dumps(score(*book, out, reranker)))


def make_books(
    data: Path, split: str, prose: Sequence[str], rng: Random, folder: Path, tokenizer: Tokenizer
) -> Iterator[tuple[Book, list[Asked]]]:
    """Put the contexts of each question set into book-length texts; a part of the questions."""
    for name in SETS[split]:
        contexts = load_contexts(data, name, split)
        rng.shuffle(contexts)
        texts = islice(join(contexts, prose, rng), DOCUMENTS_PER_SET)
        for i, (text, asked) in enumerate(texts):
            book = Book(text, folder / f"{split}-{name}-{i}.sqlite", tokenizer)
            yield book, rng.sample(asked, min(len(asked), QUESTIONS_PER_DOCUMENT))


def join(
    contexts: Sequence[Context], prose: Sequence[str], rng: Random
) -> Iterator[tuple[str, list[Asked]]]:
    """Join contexts, with some lines of prose after each, to texts of one length."""
    parts, asked, length = [], [], 0
    for context in contexts:
        lines = context.text.strip("\n") + "\n"
        for turn, span in zip(context.turns, context.spans, strict=True):
            if span is not None:
                asked.append(Asked(turn.question, ((span[0] + length, span[1] + length),)))
        parts += [lines, draw_lines(prose, rng)]
        length += len(parts[-2]) + len(parts[-1])
        if length >= DOCUMENT_CHARS:
            yield "".join(parts), asked
            parts, asked, length = [], [], 0
    if asked:
        yield "".join(parts), asked


def draw_lines(prose: Sequence[str], rng: Random) -> str:
    """Draw up to 3,000 characters of a book, closed by a line end."""
    book = rng.choice(prose)
    start = rng.randrange(max(1, len(book) - 3000))
    return book[start : start + rng.randint(300, 3000)].strip() + "\n"


def make_chains(
    chains: Sequence[tuple[str, str, str]],
    prose: Sequence[str],
    rng: Random,
    folder: Path,
    tokenizer: Tokenizer,
) -> tuple[Book, list[Asked]]:
    """Hide both sentences of made-up chains in prose, far from each other."""
    facts = []
    for _ in range(NUM_CHAINS):
        values: dict[str, str] = {}
        facts.append([capitalise(fill(rng, form, values)) for form in rng.choice(chains)])
    sentences = [(i, step) for i in range(NUM_CHAINS) for step in (0, 1)]
    rng.shuffle(sentences)
    parts, spans, length = [], {}, 0
    for i, step in sentences:
        parts.append(draw_lines(prose, rng))
        length += len(parts[-1])
        spans[i, step] = (length, length + len(facts[i][step]))
        parts.append(facts[i][step] + "\n")
        length += len(parts[-1])
    name = f"chains-{len(chains)}.sqlite"
    book = Book("".join(parts), folder / name, tokenizer)
    return book, [Asked(facts[i][2], (spans[i, 0], spans[i, 1])) for i in range(NUM_CHAINS)]


Sample = list[tuple[Candidate, bool]]


def first_samples(book: Book, asked: Sequence[Asked]) -> list[Sample]:
    """Candidates of the first round for each question, and whether each is right."""
    samples = []
    for one in asked:
        right = book.blocks_of(one.spans[0])
        found = find_candidates(book.archive, one.question)
        samples.append([(candidate, candidate.number in right) for candidate in found])
    return samples


def further_samples(book: Book, asked: Sequence[Asked], samples: Sequence[Sample]) -> list[Sample]:
    """Candidates of the second round, from the best block of the first.

    Only chains have right ones, and only where the first round found the first step.
    """
    further = []
    for one, sample in zip(asked, samples, strict=True):
        is_chain = len(one.spans) > 1
        blocks = [book.archive.block(candidate.number) for candidate, _ in sample[:1]]
        if is_chain and not (sample and sample[0][1]):
            continue
        right = book.blocks_of(one.spans[1]) if is_chain else set()
        names, links = find_links(book.archive, one.question, blocks)
        candidates = follow(book.archive, one.question, names, links, blocks)
        further.append([(candidate, candidate.number in right) for candidate in candidates])
    return further


def reranked_samples(
    book: Book,
    asked: Sequence[Asked],
    samples: Sequence[Sample],
    first: Classifier,
    reranker: Reranker,
) -> list[Sample]:
    """Candidates of the first round once the model has read the likeliest, where there are two."""
    made = []
    for one, sample in zip(asked, samples, strict=True):
        right = {candidate.number for candidate, is_right in sample if is_right}
        likely = likely_of(rate(first, (candidate for candidate, _ in sample)))
        if len(likely) > 1:
            blocks = [book.archive.block(number) for _, number in likely]
            judged = judge(likely, reranker.read(one.question, blocks))
            made.append([(candidate, candidate.number in right) for candidate in judged])
    return made


def fit(samples: Sequence[Sample], name: str) -> dict[str, object]:
    """Fit what says of each candidate for itself whether it is right."""
    x = np.array([candidate.features for sample in samples for candidate, _ in sample])
    weights, bias = fit_odds(x, samples)
    return describe(weights, bias, name)


def fit_order(samples: Sequence[Sample], name: str) -> dict[str, object]:
    """Fit what tells the right candidates from the others of the same question, then the odds.

    The order is a conditional logit (McFadden 1974), the odds a logistic regression on its sums.
    """
    parts = [
        (np.array([candidate.features for candidate, _ in sample]), np.array(right, dtype=float))
        for sample in samples
        if any(right := [is_right for _, is_right in sample])
    ]
    pull = 1e-5 * len(parts)
    weights = np.zeros(len(FEATURES[name]))
    for _ in range(100):
        slope, curve = pull * weights, pull * np.eye(len(weights))
        for x, right in parts:
            chosen = np.exp(x @ weights - (x @ weights).max())
            chosen /= chosen.sum()
            mean = x.T @ chosen
            slope += mean - x.T @ (chosen * right / (chosen * right).sum())
            curve += (x.T * chosen) @ x - np.outer(mean, mean)
        weights -= 0.5 * np.linalg.solve(curve, slope)
    sums = [weights @ candidate.features for sample in samples for candidate, _ in sample]
    [scale], bias = fit_odds(np.array(sums)[:, None], samples)
    return describe(scale * weights, bias, name)


def fit_odds(x: np.ndarray, samples: Sequence[Sample]) -> tuple[np.ndarray, float]:
    """Fit logistic regression by Newton's method, with a slight pull of all weights to 0.

    Args:
        x: features of all candidates, [candidates, features].

    Returns:
        Weights [features], and the bias.
    """
    x = np.hstack([x, np.ones((len(x), 1))])
    y = np.array([is_right for sample in samples for _, is_right in sample], dtype=float)
    weights = np.zeros(x.shape[1])
    pull = 1e-5 * len(x)
    for _ in range(50):
        odds = 1 / (1 + np.exp(-x @ weights))
        slope = x.T @ (odds - y) + pull * weights
        curve = (x.T * (odds * (1 - odds))) @ x + pull * np.eye(len(weights))
        weights -= np.linalg.solve(curve, slope)
    return weights[:-1], float(weights[-1])


def describe(weights: np.ndarray, bias: float, name: str) -> dict[str, object]:
    """Return a classifier as `load_gate` reads it."""
    return {
        "weights": dict(zip(FEATURES[name], np.round(weights, 3).tolist(), strict=True)),
        "bias": round(bias, 3),
        "least": LEAST_ODDS[name],
    }


def score(book: Book, asked: Sequence[Asked], path: Path, reranker: Reranker) -> dict[str, object]:
    """Share of questions whose block is among the best 1, 3 and 5, and what the gate lets in."""
    gate = load_gate(path)
    hits = {name: {1: 0, 3: 0, 5: 0} for name in ("words", "gate", "model")}
    let_in = right_in = found_in = further = 0
    samples = first_samples(book, asked)
    for one, sample in zip(asked, samples, strict=True):
        right = {candidate.number for candidate, is_right in sample if is_right}
        rated = rate(gate.first, (candidate for candidate, _ in sample))
        ask_model = partial(reranker.read, one.question)
        reranked = Recall(book.archive, one.question, gate, ask_model).rate_first()
        orders = {
            "words": [candidate.number for candidate, _ in sample],
            "gate": [number for _, number in rated],
            "model": [number for _, number in reranked],
        }
        for name, most in product(hits, (1, 3, 5)):
            hits[name][most] += bool(right & set(orders[name][:most]))
        through = [number for odds, number in reranked if odds >= gate.first.least]
        let_in, right_in = let_in + len(through), right_in + len(right & set(through))
        found_in += bool(right & set(through))
    for sample in further_samples(book, asked, samples):
        rated = rate(gate.further, (candidate for candidate, _ in sample))
        further += bool(rated and rated[0][0] >= gate.further.least)
    n = len(asked)
    return {
        "blocks": len(book.archive),
        "n": n,
        **{f"recall@{most}, {name}": hits[name][most] / n for name in hits for most in hits[name]},
        "let in, per question": let_in / n,
        "found among them": found_in / n,
        "precision": right_in / max(1, let_in),
        "further round without need": further / n,
    }


def score_chains(book: Book, asked: Sequence[Asked], path: Path) -> dict[str, object]:
    """Share of chains whose second block the second round lets in first."""
    gate = load_gate(path)
    found = 0
    for sample in further_samples(book, asked, first_samples(book, asked)):
        rated = rate(gate.further, (candidate for candidate, _ in sample))
        right = {candidate.number for candidate, is_right in sample if is_right}
        found += bool(rated and rated[0][0] >= gate.further.least and rated[0][1] in right)
    return {"n": len(asked), "second step found": found / len(asked)}
