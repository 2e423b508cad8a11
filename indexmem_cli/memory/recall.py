"""The gate: which blocks of the archive to read again for a question, and how many. No torch.

Blocks are found by the words they share with the question; a small trained classifier says for each
of the best how likely it holds the answer.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from indexmem_cli.archive import COMMON, Archive, Block, terms_of

GATE_FILE = Path(__file__).with_name("gate.json")
CANDIDATES = 20
FEATURES = (
    "score",  # of the block, as a share of the best block's
    "lead",  # what the best block has over the second, as a share; 0 for all others
    "rank",  # 1, 1/2, 1/3 …
    "coverage",  # share of the question's words in the block, each by its rarity
    "passage",  # the same in two passages that follow each other
    "around",  # the same in the block and its neighbours
    "rarest",  # the same for the three rarest words alone
    "pairs",  # the same for pairs of words that follow each other in the question
    "kind",  # 1 if it holds a new name or number where the question asks for one, -1 if not, else 0
)
_SATURATION = 1.2  # k1 of BM25; blocks are of one length, so b = 0
_PAIR_WEIGHT = 0.3
_NEIGHBOUR_WEIGHT = 0.3
_NUMBER = re.compile(r"\d|\b(?:two|three|four|five|six|seven|eight|nine|ten|hundred|thousand)\b")
_NAME = re.compile(r"(?<=[^.!?\s]\s)[A-Z]\w+")
_ASKS_NUMBER = re.compile(r"\b(?:when|how (?:many|much|long|old|far)|what year|which year|date)\b")
_ASKS_NAME = re.compile(r"\b(?:who|whom|whose|where)\b")


@dataclass(frozen=True)
class Candidate:
    """A block that may hold the answer."""

    number: int
    features: tuple[float, ...]
    """In the order of `FEATURES`."""


@dataclass(frozen=True)
class Gate:
    """A logistic classifier of candidates."""

    weights: tuple[float, ...]
    bias: float
    least: float
    """Where no block is likelier than this, none is recalled."""
    least_more: float
    """What every further block must reach."""

    def odds(self, candidate: Candidate) -> float:
        """Return how likely a block holds the answer, in (0, 1)."""
        pairs = zip(self.weights, candidate.features, strict=True)
        total = self.bias + sum(weight * value for weight, value in pairs)
        return 1 / (1 + math.exp(-max(-30.0, min(30.0, total))))


def load_gate(path: Path = GATE_FILE) -> Gate:
    """Read the trained gate."""
    data = json.loads(path.read_text("utf-8"))
    weights = tuple(float(data["weights"][name]) for name in FEATURES)
    return Gate(weights, *(float(data[name]) for name in ("bias", "least", "least_more")))


@dataclass(frozen=True)
class Found:
    """A block to read again."""

    block: Block
    odds: float


def choose(
    archive: Archive, question: str, gate: Gate, room_tokens: int, known: Iterable[int] = ()
) -> list[Found]:
    """Choose the blocks to read again for a question, the likeliest first; perhaps none.

    Args:
        room_tokens: what they may take together.
        known: numbers of blocks that are not wanted again.
    """
    known = set(known)
    rated = [
        (gate.odds(candidate), candidate.number)
        for candidate in find_candidates(archive, question)
        if candidate.number not in known
    ]
    chosen: list[Found] = []
    for odds, number in sorted(rated, key=lambda pair: (-pair[0], pair[1])):
        if odds < (gate.least_more if chosen else gate.least):
            break
        block = archive.block(number)
        tokens = block.end - block.first
        if tokens <= room_tokens:
            chosen.append(Found(block, odds))
            room_tokens -= tokens
    return chosen


def find_candidates(archive: Archive, question: str) -> list[Candidate]:
    """Return the best blocks by the words they share with the question, best first."""
    words = _Words(archive, terms_of(question))
    ranked = words.rank()
    if not ranked:
        return []
    best = ranked[0][1]
    second = ranked[1][1] if len(ranked) > 1 else 0.0
    kind = _kind(question)
    candidates = []
    for i, (number, score) in enumerate(ranked[:CANDIDATES]):
        features = (
            score / best,
            (best - second) / best if i == 0 else 0.0,
            1 / (i + 1),
            *words.measure(number),
            _fits(kind, question, archive.text(archive.block(number))),
        )
        candidates.append(Candidate(number, features))
    return candidates


@dataclass
class _Words:
    """Where the words of a question stand in an archive."""

    archive: Archive
    terms: Sequence[str]
    blocks: dict[tuple[str, ...], dict[int, set[int]]] = field(default_factory=dict)
    """For each word or pair: block number to the passages that hold it."""
    rarity: dict[tuple[str, ...], float] = field(default_factory=dict)
    """Logarithm of how many blocks there are for each that holds it; at least 0."""

    def __post_init__(self) -> None:
        total = len(self.archive)
        pairs = zip(self.terms, self.terms[1:], strict=False)
        for words in [*((term,) for term in self.terms), *pairs]:
            places = self.archive.places_of(words)
            held: dict[int, set[int]] = defaultdict(set)
            for number, passage in places:
                held[number].add(passage)
            if held and len(places) < COMMON and len(held) <= total / 3 + 1:
                self.blocks[words] = held
                self.rarity[words] = math.log(1 + (total - len(held) + 0.5) / (len(held) + 0.5))
        self.single = [words for words in self.blocks if len(words) == 1]
        self.pairs = [words for words in self.blocks if len(words) == 2]
        self.rarest = sorted(self.single, key=lambda words: -self.rarity[words])[:3]

    def rank(self) -> list[tuple[int, float]]:
        """Blocks by BM25 of words and pairs, with a share of the better neighbour's, best first."""
        own: dict[int, float] = defaultdict(float)
        for words, held in self.blocks.items():
            weight = self.rarity[words] * (_PAIR_WEIGHT if len(words) == 2 else 1.0)
            for number, passages in held.items():
                count = len(passages)
                own[number] += weight * (_SATURATION + 1) * count / (count + _SATURATION)
        total = {
            number: score
            + _NEIGHBOUR_WEIGHT * max(own.get(number - 1, 0.0), own.get(number + 1, 0.0))
            for number, score in own.items()
        }
        return sorted(total.items(), key=lambda item: (-item[1], item[0]))

    def measure(self, number: int) -> tuple[float, ...]:
        """Return coverage, passage, around, rarest and pairs of a block, each in [0, 1]."""
        here = [words for words in self.single if number in self.blocks[words]]
        near = [
            words
            for words in self.single
            if any(n in self.blocks[words] for n in (number - 1, number, number + 1))
        ]
        passages = {p for words in here for p in self.blocks[words][number]}
        close = max(
            (self._mass(w for w in here if self.blocks[w][number] & {p, p + 1}) for p in passages),
            default=0.0,
        )
        whole = self._mass(self.single) or 1.0
        return (
            self._mass(here) / whole,
            close / whole,
            self._mass(near) / whole,
            self._mass(w for w in self.rarest if w in here) / (self._mass(self.rarest) or 1.0),
            self._mass(w for w in self.pairs if number in self.blocks[w])
            / (self._mass(self.pairs) or 1.0),
        )

    def _mass(self, words: Iterable[tuple[str, ...]]) -> float:
        return sum(self.rarity[w] for w in words)


def _kind(question: str) -> re.Pattern | None:
    """What the answer must hold, by the question word; English alone."""
    lower = question.lower()
    if _ASKS_NUMBER.search(lower):
        return _NUMBER
    return _NAME if _ASKS_NAME.search(lower) else None


def _fits(kind: re.Pattern | None, question: str, text: str) -> float:
    if kind is None:
        return 0.0
    return 1.0 if set(kind.findall(text)) - set(kind.findall(question)) else -1.0
