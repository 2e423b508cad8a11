"""Which places of the text an answer rests on: they hold its words, or were attended to most."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from indexmem_cli.archives import Archives
from indexmem_cli.config import NOT_STATED
from indexmem_cli.events import Source
from indexmem_cli.memory.naming import defines, find_names
from indexmem_cli.terms import terms_of, words_of
from indexmem_cli.tokens import Entry

MAX_SOURCES = 3
LEAST_SHARE = 0.2  # of the best place's attention, for another one to be shown
LEAST_NEW = 0.2  # of the answer's words, for a place to be shown that adds them
QUOTE_CHARS = 240
_COMMON = 3000  # a word in so many passages tells no place


@dataclass(frozen=True)
class _Passage:
    """A passage that the answer may rest on."""

    entry: Entry
    attention: float
    terms: frozenset[str]
    """Words of the answer that it holds."""


@dataclass
class Evidence:
    """Attention to positions of the text, summed over the tokens of an answer."""

    weights: dict[int, float] = field(default_factory=dict)
    origins: Mapping[int, int] = field(default_factory=dict)
    """Where tokens that were read again stood first, by their new position."""

    def add(self, attended: list[tuple[int, float]]) -> None:
        """Count the positions that one more token attended to, with the weight of each."""
        for position, weight in attended:
            position = self.origins.get(position, position)
            self.weights[position] = self.weights.get(position, 0.0) + weight

    def sources(self, places: Archives, answer: str, question: str) -> tuple[Source, ...]:
        """Return the places that an answer rests on, best first.

        They are as few of the passages attended to, or read again, as hold the words of the
        answer that any of them holds; of passages that hold the same, the most attended. Where
        none holds any, the most attended ones. What defines a name of the question is shown as
        well, whatever the answer says. A refusal rests on none.
        """
        if answer.startswith(NOT_STATED.rstrip(".")):
            return ()
        rarity = _rarity(places, answer)
        passages = self._passages(places, frozenset(rarity))
        chosen = _cover(passages, rarity) or _most_attended(passages)
        for name in find_names(question):
            chosen += [
                passage
                for passage in passages
                if passage not in chosen
                and defines(passage.entry, places.text_of(passage.entry), name)
            ]
        groups: list[list[_Passage]] = []
        for passage in sorted(chosen, key=lambda passage: passage.entry.first):
            if groups and _follows(groups[-1][-1].entry, passage.entry):
                groups[-1].append(passage)
            else:
                groups.append([passage])
        groups.sort(key=lambda group: (-_mass(group, rarity), -_attention(group)))
        attention = sum(passage.attention for passage in passages) or 1.0
        sources, missing = [], dict(rarity)
        for group in groups:
            holds = _mass(group, missing) / (sum(rarity.values()) or 1.0)
            missing = {t: r for t, r in missing.items() if not any(t in p.terms for p in group)}
            sources.append(_source(group, _attention(group) / attention, holds, places))
        return tuple(sources)

    def _passages(self, places: Archives, terms: frozenset[str]) -> list[_Passage]:
        """Every passage that was attended to or read again, in the order of the text."""
        found: list[_Passage] = []
        positions = sorted(self.weights.keys() | set(self.origins.values()))
        at = 0
        while at < len(positions):
            entry, weight = places.find(positions[at]), 0.0
            if entry is None:
                at += 1
                continue
            while at < len(positions) and positions[at] < entry.end:
                weight += self.weights.get(positions[at], 0.0)
                at += 1
            held = terms.intersection(words_of(places.text_of(entry)))
            found.append(_Passage(entry, weight, held))
        return found


def _rarity(places: Archives, answer: str) -> dict[str, float]:
    """How much each word of an answer tells of its place; words that stand everywhere are out."""
    counts = {term: len(places.places_of((term,), _COMMON)) for term in terms_of(answer)}
    return {
        term: math.log(1 + (len(places) + 1) / (count + 1))
        for term, count in counts.items()
        if count < _COMMON
    }


def _cover(passages: list[_Passage], rarity: Mapping[str, float]) -> list[_Passage]:
    """Take passages one after the other, as long as the next holds much that none so far does."""
    chosen: list[_Passage] = []
    missing, total = dict(rarity), sum(rarity.values())
    while passages and missing and len(chosen) < MAX_SOURCES:
        best = max(passages, key=lambda p: (_mass([p], missing), p.attention))
        if _mass([best], missing) < LEAST_NEW * total:
            break
        chosen.append(best)
        missing = {term: weight for term, weight in missing.items() if term not in best.terms}
    return chosen


def _most_attended(passages: list[_Passage]) -> list[_Passage]:
    best = sorted(passages, key=lambda passage: -passage.attention)[:MAX_SOURCES]
    return [p for p in best if p.attention and p.attention >= LEAST_SHARE * best[0].attention]


def _follows(before: Entry, after: Entry) -> bool:
    """Whether two passages stand one after the other on one page, in one message or function."""
    return before.place.spot == after.place.spot and before.end == after.first


def _mass(group: list[_Passage], rarity: Mapping[str, float]) -> float:
    """Sum of the rarities of the words that stand in any of these passages."""
    return sum(weight for term, weight in rarity.items() if any(term in p.terms for p in group))


def _attention(group: list[_Passage]) -> float:
    return sum(passage.attention for passage in group)


def _source(group: list[_Passage], weight: float, holds: float, places: Archives) -> Source:
    text = "".join(places.text_of(passage.entry) for passage in group)
    terms = frozenset[str]().union(*(passage.terms for passage in group))
    quote, start, end = _cut(text, terms)
    before = _chars_before(group[0].entry, places)
    return Source(
        weight=weight,
        holds=holds,
        quote=quote,
        quote_start=before + start,
        quote_end=before + end,
        **locate(group[0].entry, group[-1].entry),
    )


def _cut(text: str, terms: frozenset[str]) -> tuple[str, int, int]:
    """Shorten a text to a quotation, from where the first of the answer's words stands in it.

    Returns:
        It with white space as single spaces, and which characters [start, end) of the text it is.
    """
    places: list[int] = []  # where each character of what is joined stands in the text
    for word in re.finditer(r"\S+", text):
        places += [word.start() - 1] * bool(places) + list(range(*word.span()))
    joined = " ".join(text.split())
    if len(joined) <= QUOTE_CHARS:
        return joined, places[0] if places else 0, places[-1] + 1 if places else 0
    lower = joined.lower()
    first = min((at for term in terms if (at := lower.find(term)) >= 0), default=0)
    start = max(0, min(first - QUOTE_CHARS // 4, len(joined) - QUOTE_CHARS))
    if start:  # at a word, where one begins before what is looked for
        start = max(start, joined.find(" ", start, first) + 1)
    quote = joined[start : start + QUOTE_CHARS - 2].rstrip()
    end = start + len(quote)
    shown = f"{'…' if start else ''}{quote}{'…' if end < len(joined) else ''}"
    return shown, places[start], places[end - 1] + 1


def _chars_before(entry: Entry, places: Archives) -> int:
    """Characters of the same line or message that stand in passages before this one."""
    count = 0
    for before in places.back_from(entry.first - 1):
        text = places.text_of(before)
        path_of_file = before.place.unit == "line" and text.endswith("\n")  # before its first line
        if before.place != entry.place or path_of_file:
            # The first space of a line that is joined stands for the end of the one before.
            return count - _is_joined(before, text, entry)
        count += len(text)
    return count


def _is_joined(before: Entry, text: str, entry: Entry) -> bool:
    """Whether a line of a text file goes on from the passage before, which has this text."""
    place = before.place
    in_file = (place.file, place.unit, place.page) == (entry.place.file, "line", None)
    return in_file and not text.endswith("\n")


def locate(first: Entry, last: Entry) -> dict[str, Any]:
    """Say where the passages from `first` to `last` stand: what a source and a block share."""
    place = first.place
    return {
        "file": place.file,
        "page": place.page,
        "page_label": place.page_label,
        "line_start": place.line,
        "line_end": last.place.line,
        "unit": place.unit,
        "member": place.member,
        "author": place.author,
        "time": place.time,
        "symbol": place.symbol,
    }
