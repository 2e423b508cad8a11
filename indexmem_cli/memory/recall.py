"""The gate: which blocks of the archive to read again for a question, and how many. No torch.

Blocks are found by the words they share with the question; a small trained classifier says for each
of the best how likely it holds the answer, and another once the model has read them. Further rounds
follow the names that were found.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from indexmem_cli.archive import Block
from indexmem_cli.errors import MemoryFileError
from indexmem_cli.memory.candidates import (
    FEATURES,
    Candidate,
    find_candidates,
    find_links,
    follow,
)
from indexmem_cli.memory.completing import complete
from indexmem_cli.memory.naming import Searched, find_definitions
from indexmem_cli.tokens import Entry

GATE_FILE = Path(__file__).with_name("gate.json")
MAX_ROUNDS = 3
FURTHER_TOKENS = 160
"""Room for what a further round finds: one block."""
NAMED_ODDS = 0.99
"""Of a block that defines what the question names."""
RERANKED = 8
"""Most blocks of the first round that the model is asked about."""
LEAST_TO_RERANK = 0.01
"""Odds of the least likely of them."""
Rated = tuple[float, int]
"""Odds and number of a block."""
Verdict = tuple[float, float]
"""What a model that reads a block with the question gives to refusing an answer, and to each token
of the question: log-probabilities."""


@dataclass(frozen=True)
class Classifier:
    """Logistic regression on the features of a candidate."""

    weights: tuple[float, ...]
    bias: float
    least: float
    """Of the odds that let a block through."""

    def odds(self, candidate: Candidate) -> float:
        """Return how likely a block holds what is looked for, in (0, 1)."""
        pairs = zip(self.weights, candidate.features, strict=True)
        total = self.bias + sum(weight * value for weight, value in pairs)
        return 1 / (1 + math.exp(-max(-30.0, min(30.0, total))))


def make_classifier(fitted: Mapping[str, Any], name: str) -> Classifier:
    """Make a classifier of `FEATURES[name]` from what was fitted.

    Raises:
        LookupError: it lacks something.
    """
    weights = tuple(fitted["weights"][feature] for feature in FEATURES[name])
    return Classifier(weights, fitted["bias"], fitted["least"])


@dataclass(frozen=True)
class Gate:
    """What decides which blocks are read again."""

    first: Classifier
    further: Classifier
    rerank: Classifier


def load_gate(path: Path = GATE_FILE) -> Gate:
    """Read a trained gate.

    Raises:
        MemoryFileError: it lacks something.
    """
    try:
        data = json.loads(path.read_text("utf-8"))
        classifiers = {name: make_classifier(data[name], name) for name in FEATURES}
        return Gate(**classifiers)
    except (OSError, ValueError, LookupError) as error:
        raise MemoryFileError(f"{path}: not a gate of this version: {error!r}") from error


@dataclass(frozen=True)
class Found:
    """A block to read again."""

    block: Block
    odds: float
    completing: tuple[Entry, ...] = ()
    """Passages beside it, as `complete` returns them, where there is room."""


@dataclass
class Recall:
    """One question put to an archive, in rounds."""

    archive: Searched
    question: str
    gate: Gate
    ask_model: Callable[[Sequence[Block]], Sequence[Verdict]] | None = None
    """Has the model read blocks one by one, as `Reranker.read` does; None leaves their order."""
    rounds: list[tuple[str, list[Found]]] = field(default_factory=list)
    """What was looked for, and what was let through: the likeliest first, perhaps nothing."""
    _left: int = 0  # tokens of the budget

    @property
    def blocks(self) -> list[Block]:
        """All blocks to read again, in the order of the text."""
        return sorted((one.block for one in self.found), key=lambda block: block.number)

    @property
    def found(self) -> list[Found]:
        """What was let through, in the order it was found."""
        return [one for _, found in self.rounds for one in found]

    @property
    def entries(self) -> list[Entry]:
        """All passages to read again, each once, in the order of the text."""
        parts = [part for one in self.found for part in (*one.block.entries, *one.completing)]
        by_place = {entry.first: entry for entry in parts}
        return [by_place[first] for first in sorted(by_place)]

    def run(self, room_tokens: int, budget_tokens: int) -> None:
        """Look until nothing new is found, at most `MAX_ROUNDS` times.

        Args:
            room_tokens: what the blocks of the first round may take together.
            budget_tokens: what all blocks may take.
        """
        self._left = budget_tokens
        rated = self.rate_first(room_tokens)
        named = find_definitions(self.archive, self.question)
        rated = [(NAMED_ODDS, n) for n in named] + [each for each in rated if each[1] not in named]
        found = self._take(rated, self.gate.first.least, room_tokens)
        self.rounds.append((self.question, found))
        while found and len(self.rounds) < MAX_ROUNDS:
            names, links = find_links(self.archive, self.question, self.blocks)
            if not (names or links) or self._left <= 0:
                return
            further = follow(self.archive, self.question, names, links, self.blocks)
            rated = rate(self.gate.further, further)
            found = self._take(rated, self.gate.further.least, FURTHER_TOKENS)
            sought = " ".join(dict.fromkeys(term for w in (*names, *links) for term in w))
            self.rounds.append((f"{self.question} {sought}", found))

    def rate_first(self, room_tokens: int = 0) -> list[Rated]:
        """Return the blocks that share words with the question, the likeliest first.

        The model is asked where there is a choice: not all of the likely ones fit `room_tokens`.
        """
        rated = rate(self.gate.first, find_candidates(self.archive, self.question))
        likely = likely_of(rated)
        if self.ask_model is None or len(likely) < 2:
            return rated
        blocks = [self.archive.block(number) for _, number in likely]
        if sum(block.end - block.first for block in blocks) <= room_tokens:
            return rated
        verdicts = self.ask_model(blocks)
        again = rate(self.gate.rerank, judge(likely, verdicts))
        return sorted([*again, *rated[len(likely) :]], key=_likeliest_first)

    def _take(self, rated: list[Rated], least: float, room_tokens: int) -> list[Found]:
        taken: list[Found] = []
        for odds, number in rated:
            if odds < least:
                break
            block = self.archive.block(number)
            tokens = block.end - block.first
            if tokens <= min(room_tokens, self._left):
                completing = complete(self.archive, block, self._left - tokens)
                taken.append(Found(block, odds, completing))
                room_tokens -= tokens
                self._left -= tokens + sum(len(entry.ids) for entry in completing)
        return taken


def rate(classifier: Classifier, candidates: Iterable[Candidate]) -> list[Rated]:
    """Return the candidates rated, the likeliest first."""
    rated = [(classifier.odds(candidate), candidate.number) for candidate in candidates]
    return sorted(rated, key=_likeliest_first)


def likely_of(rated: Sequence[Rated]) -> list[Rated]:
    """Return those of a first round, likeliest first, that the model is asked about."""
    return [pair for pair in rated[:RERANKED] if pair[0] >= LEAST_TO_RERANK]


def judge(rated: Sequence[Rated], verdicts: Sequence[Verdict]) -> list[Candidate]:
    """Return blocks as candidates for `Gate.rerank`.

    What a model gives to words is seen beside what it gives to them after the other blocks: models
    differ in how often they refuse.
    """
    refusal, question = (mean(verdict[i] for verdict in verdicts) for i in (0, 1))
    return [
        Candidate(number, (math.log(odds / (1 - odds)), v[0] - refusal, v[1] - question))
        for (odds, number), v in zip(rated, verdicts, strict=True)
    ]


def _likeliest_first(pair: Rated) -> tuple[float, int]:
    return -pair[0], pair[1]
