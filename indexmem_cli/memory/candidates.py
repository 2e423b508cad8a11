"""Which blocks of an archive may hold the answer to a question, by the words they share. No torch.

Each comes with what the gate looks at, the features of its round.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from indexmem_cli.archive import Block
from indexmem_cli.memory.naming import Searched
from indexmem_cli.terms import terms_of
from indexmem_cli.tokens import Entry

CANDIDATES = 20
MOST_LINKS = 6  # names, and as many other words
FEATURES = {
    "first": (
        "score",  # of the block, as a share of the best block's
        "lead",  # what the best block has over the second, as a share; 0 for all others
        "rank",  # 1, 1/2, 1/3 …
        "coverage",  # share of the question's words in the block, each by its rarity
        "passage",  # the same in two passages that follow each other
        "best passage",  # that, as a share of the best among the candidates
        "around",  # the same in the block and its neighbours
        "rarest",  # the same for the three rarest words alone
        "pairs",  # the same for pairs of words that follow each other in the question
        "kind",  # 1 with a new name or number where the question asks for one, -1 without, else 0
    ),
    "further": (
        "rank",
        "names",  # share of the names found before that are in the block, each by its rarity
        "links",  # the same for other words found before
        "missing",  # share of the question's words not found before that are in the block
        "passage",  # share of all these in two passages that follow each other
        "open",  # share of the question's words that no block found before holds
        "kind",
    ),
    "rerank": (
        "gate",  # log-odds of the first round
        "refusal",  # what the model gives to refusing, as a log-probability, over the mean of all
        "question",  # what it gives to each token of the question, the same
    ),
}
_SATURATION = 1.2  # k1 of BM25; blocks are of one length, so b = 0
_PAIR_WEIGHT = 0.3
_NEIGHBOUR_WEIGHT = 0.3
_MOST_PLACES = 20_000
_NUMBER = re.compile(r"\d|\b(?:two|three|four|five|six|seven|eight|nine|ten|hundred|thousand)\b")
_NAMES = re.compile(r"[A-Z0-9]\w*(?: [A-Z0-9]\w*)*")
_NAME = re.compile(r"(?<=[^.!?\s]\s)[A-Z]\w+")
_ASKS_NUMBER = re.compile(r"\b(?:when|how (?:many|much|long|old|far)|what year|which year|date)\b")
_ASKS_NAME = re.compile(r"\b(?:who|whom|whose|where)\b")
Words = tuple[str, ...]
"""A word, or two that follow each other, as in `terms_of`."""


@dataclass(frozen=True)
class Candidate:
    """A block that may hold the answer."""

    number: int
    features: tuple[float, ...]
    """In the order of `FEATURES` for its kind of round."""


def find_candidates(archive: Searched, question: str) -> list[Candidate]:
    """Return the best blocks by the words they share with the question, best first."""
    words = _Words(archive, _words_of(question))
    ranked = words.rank()
    if not ranked:
        return []
    best = ranked[0][1]
    second = ranked[1][1] if len(ranked) > 1 else 0.0
    ranked = ranked[:CANDIDATES]
    close = [words.share_close(words.single, number) for number, _ in ranked]
    closest = max(close) or 1.0
    candidates = []
    for i, (number, score) in enumerate(ranked):
        features = (
            score / best,
            (best - second) / best if i == 0 else 0.0,
            1 / (i + 1),
            words.share(words.single, number),
            close[i],
            close[i] / closest,
            words.share(words.single, number - 1, number, number + 1),
            words.share(words.rarest, number),
            words.share(words.pairs, number),
            _fits(question, archive.text(archive.block(number))),
        )
        candidates.append(Candidate(number, features))
    return candidates


def find_links(
    archive: Searched, question: str, blocks: Sequence[Block]
) -> tuple[list[Words], list[Words]]:
    """Return what might lead further: names, and other rare words, that other blocks hold too.

    They stand in the passages of the blocks that hold most of the question.
    """
    asked = _Words(archive, _words_of(question))
    names: list[Words] = []
    links: list[Words] = []
    for block in blocks:
        text = "".join(archive.text_of(entry) for entry in asked.closest_entries(block))
        for match in _NAMES.finditer(text):
            terms = [term for term in terms_of(match[0]) if (term,) not in asked.words]
            names += _with_pairs(terms)
        links += [(term,) for term in terms_of(text) if (term,) not in asked.words]
    found = _Words(archive, list(dict.fromkeys([*names, *links])))
    known = {block.number for block in blocks}
    shared = [w for w in found.blocks if found.blocks[w].keys() - known]
    shared.sort(key=lambda w: -found.rarity[w])
    return (
        [w for w in shared if w in names][:MOST_LINKS],
        [w for w in shared if w not in names][:MOST_LINKS],
    )


def follow(
    archive: Searched,
    question: str,
    names: Sequence[Words],
    links: Sequence[Words],
    blocks: Sequence[Block],
) -> list[Candidate]:
    """Return the best blocks by what was found and what of the question was not, best first.

    Args:
        names, links: as `find_links` returns them.
        blocks: what was found before.
    """
    known = {block.number for block in blocks}
    words = _Words(archive, [*((term,) for term in terms_of(question)), *names, *links])
    asked = [w for w in words.blocks if w not in names and w not in links]
    missing = [w for w in asked if not words.blocks[w].keys() & known]
    left = words.mass(missing) / (words.mass(asked) or 1.0)
    numbers = {n for w in (*names, *links) for n in words.blocks[w]} - known
    sought = (*names, *links, *missing)
    mass = {n: words.mass(w for w in sought if n in words.blocks[w]) for n in numbers}
    ranked = sorted(mass, key=lambda n: (-mass[n], n))[:CANDIDATES]
    return [
        Candidate(
            number,
            (
                1 / (i + 1),
                words.share(names, number),
                words.share(links, number),
                words.share(missing, number),
                words.share_close(sought, number),
                left,
                _fits(question, archive.text(archive.block(number))),
            ),
        )
        for i, number in enumerate(ranked)
    ]


def _words_of(question: str) -> list[Words]:
    return _with_pairs(terms_of(question))


def _with_pairs(terms: Sequence[str]) -> list[Words]:
    """Words for themselves, then those that follow each other."""
    return [(term,) for term in terms] + list(zip(terms, terms[1:], strict=False))


@dataclass
class _Words:
    """Where words, or pairs of them, stand.

    What is in more passages than a third of the number of blocks tells nothing.
    """

    archive: Searched
    words: Sequence[Words]
    blocks: dict[Words, dict[int, set[int]]] = field(default_factory=dict)
    """For each word or pair: block number to the passages that hold it."""
    rarity: dict[Words, float] = field(default_factory=dict)
    """Logarithm of how many blocks there are for each that holds it; at least 0."""

    def __post_init__(self) -> None:
        total = len(self.archive)
        most = min(total // 3 + 1, _MOST_PLACES)
        for words in self.words:
            places = self.archive.places_of(words, most + 1)
            if not places or len(places) > most:
                continue
            held: dict[int, set[int]] = defaultdict(set)
            for number, passage in places:
                held[number].add(passage)
            self.blocks[words] = held
            self.rarity[words] = math.log(1 + (total - len(held) + 0.5) / (len(held) + 0.5))
        self.single = [words for words in self.blocks if len(words) == 1]
        self.pairs = [words for words in self.blocks if len(words) == 2]

    @cached_property
    def rarest(self) -> list[Words]:
        """The three rarest words."""
        rarest: list[Words] = sorted(self.single, key=lambda words: -self.rarity[words])
        return rarest[:3]

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

    def mass(self, words: Iterable[Words]) -> float:
        """Sum of the rarities."""
        return sum(self.rarity[w] for w in words)

    def share(self, words: Sequence[Words], *numbers: int) -> float:
        """Share of the words' mass that these blocks hold together, in [0, 1]."""
        held = (w for w in words if any(number in self.blocks[w] for number in numbers))
        return self.mass(held) / (self.mass(words) or 1.0)

    def share_close(self, words: Sequence[Words], number: int) -> float:
        """Share of the words' mass in the best two passages of a block that follow each other."""
        passages = {p for w in words for p in self.blocks[w].get(number, ())}
        best = max((self._held(words, number, p, p + 1) for p in passages), default=0.0)
        return best / (self.mass(words) or 1.0)

    def closest_entries(self, block: Block) -> tuple[Entry, ...]:
        """The passage of a block that holds most of the words, or two where both hold some."""
        at = range(len(block.entries))
        best = max(at, key=lambda p: self._held(self.single, block.number, p))
        near = [p for p in (best - 1, best + 1) if p in at]
        pair = max(near, key=lambda p: self._held(self.single, block.number, p, best), default=best)
        alone = self._held(self.single, block.number, best)
        if self._held(self.single, block.number, pair, best) == alone:
            return (block.entries[best],)
        return block.entries[min(best, pair) : max(best, pair) + 1]

    def _held(self, words: Iterable[Words], number: int, *passages: int) -> float:
        """The mass of the words that these passages of a block hold."""
        places = set(passages)
        return self.mass(w for w in words if self.blocks[w].get(number, set()) & places)


def _fits(question: str, text: str) -> float:
    """Whether the text holds what the question word asks for: 1, -1, or 0; English alone."""
    lower = question.lower()
    if _ASKS_NUMBER.search(lower):
        kind = _NUMBER
    elif _ASKS_NAME.search(lower):
        kind = _NAME
    else:
        return 0.0
    return 1.0 if set(kind.findall(text)) - set(kind.findall(question)) else -1.0
