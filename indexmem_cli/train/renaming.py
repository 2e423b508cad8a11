"""Real questions with other names, numbers and words in text, question and answer alike.

A question that comes back many times is learnt by heart, unless its text must be read again each
time. Source: entity substitution (arXiv:2109.05052), here for training, and of other words too.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Container, Iterable
from random import Random

from indexmem_cli.config import NOT_STATED
from indexmem_cli.train.tasks import Turn

WORD = re.compile(r"[A-Za-z]+|[0-9]+")
ENDINGS = ("ing", "ed", "ly", "es", "s")
MIN_CHARS = 4
"""Shorter words and stems stay: most of them hold a sentence together."""
NUM_COMMON = 600
"""So do the most frequent ones."""
MIN_COUNT = 3
NAMES_FRACTION = 0.8
"""Share of names and numbers that are exchanged."""
WORDS_FRACTIONS = (0.0, 0.15, 0.3, 0.5)
"""Shares of other words that are exchanged; one of them is drawn for each text."""


class Lexicon:
    """The names of some texts, and the stems of their words, sorted by the endings they take.

    A word changes place with one that takes the same endings: mostly a noun with a noun, a verb
    with a verb.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        counts = Counter(word for text in texts for word in WORD.findall(text))
        self.plain = {word: count for word, count in counts.items() if word.islower()}
        self.names = [word for word in sorted(counts) if self.is_name(word)]
        long = [word for word in sorted(self.plain) if len(word) >= MIN_CHARS]
        common = set(sorted(long, key=lambda word: -self.plain[word])[:NUM_COMMON])
        endings: defaultdict[str, set[str]] = defaultdict(set)
        for word in long:
            stem, ending = split(word, self.plain)
            endings[stem].add(ending)
        self.endings = {
            stem: frozenset(taken) for stem, taken in endings.items() if stem not in common
        }
        self.stems: defaultdict[frozenset[str], list[str]] = defaultdict(list)
        for stem, taken in self.endings.items():
            if self.plain[stem] >= MIN_COUNT:
                self.stems[taken].append(stem)

    def is_name(self, word: str) -> bool:
        """Whether a word is written with a capital wherever it comes."""
        return len(word) > 2 and word.istitle() and word.lower() not in self.plain

    def draw(self, rng: Random, word: str, stem: str, fraction: float) -> str:
        """Draw what stands for a word: itself, or another of its sort."""
        if word.isdigit():
            return draw_number(rng, word) if rng.random() < NAMES_FRACTION else stem
        if self.is_name(word):
            return rng.choice(self.names) if rng.random() < NAMES_FRACTION else stem
        alike = self.stems[self.endings[stem]] if stem in self.endings else []
        return rng.choice(alike) if alike and rng.random() < fraction else stem


class Renaming:
    """Other words for those of some texts that are read together: each for one, in all of them."""

    def __init__(self, lexicon: Lexicon, rng: Random) -> None:
        self.lexicon, self.rng = lexicon, rng
        self.fraction = rng.choice(WORDS_FRACTIONS)
        self.drawn: dict[str, str] = {}

    def rename(self, text: str, turns: list[Turn]) -> tuple[str, list[Turn]]:
        """Exchange the words of a text and its questions; refusals stay what they are.

        Returns:
            The text, and the turns whose answers stand in it still.
        """
        text = WORD.sub(self.exchange, text)
        renamed = [
            Turn(
                WORD.sub(self.exchange, turn.question),
                NOT_STATED if turn.answer == NOT_STATED else WORD.sub(self.exchange, turn.answer),
            )
            for turn in turns
        ]
        return text, [turn for turn in renamed if turn.answer == NOT_STATED or turn.answer in text]

    def exchange(self, match: re.Match[str]) -> str:
        """Return what stands for a word, with the word's ending and capital."""
        stem, ending = split(match[0].lower(), self.lexicon.plain)
        if stem not in self.drawn:
            self.drawn[stem] = self.lexicon.draw(self.rng, match[0], stem, self.fraction)
        if self.drawn[stem] == stem:
            return match[0]
        other = self.drawn[stem] + ending
        return other[:1].upper() + other[1:] if match[0][0].isupper() else other


def split(word: str, stems: Container[str]) -> tuple[str, str]:
    """Split an ending off, where what is left is a word too."""
    for ending in ENDINGS:
        stem = word.removesuffix(ending)
        if stem != word and len(stem) >= MIN_CHARS and stem in stems:
            return stem, ending
    return word, ""


def draw_number(rng: Random, number: str) -> str:
    """Draw a number of as many digits; what may be a year keeps its century."""
    kept = number[:2] if len(number) == 4 and number[0] in "12" else number[:1]
    first = kept if len(kept) == 2 else rng.choice("123456789")
    return first + "".join(rng.choice("0123456789") for _ in number[len(kept) :])
