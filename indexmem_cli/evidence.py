"""Which places of the text an answer rests on, from where attention went while it was written."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from indexmem_cli.archives import Archives
from indexmem_cli.events import Source
from indexmem_cli.tokens import Entry, Tokenizer

MAX_SOURCES = 3
LEAST_SHARE = 0.2  # of the best place's attention, for another one to be shown
QUOTE_CHARS = 240


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

    def sources(self, places: Archives, tokenizer: Tokenizer) -> tuple[Source, ...]:
        """Return the best attended places, best first; passages that follow each other are one."""
        found = {}
        for position, weight in self.weights.items():
            entry = places.find(position)
            if entry is not None:
                _, so_far = found.get(entry.first, (entry, 0.0))
                found[entry.first] = (entry, so_far + weight)
        total = sum(weight for _, weight in found.values())
        best = sorted(found.values(), key=lambda item: -item[1])[:MAX_SOURCES]
        shown = sorted(
            (item for item in best if item[1] >= LEAST_SHARE * best[0][1]),
            key=lambda item: item[0].first,
        )
        groups: list[list] = []
        for item in shown:
            if groups and _follows(groups[-1][-1][0], item[0]):
                groups[-1].append(item)
            else:
                groups.append([item])
        sources = [_source(group, total, tokenizer) for group in groups]
        return tuple(sorted(sources, key=lambda source: -source.weight))


def _follows(before, after) -> bool:
    """Whether two passages stand one after the other on one page, in one message or function."""
    here, there = before.place, after.place
    return here.spot == there.spot and before.first + len(before.ids) == after.first


def _source(group: list, total: float, tokenizer: Tokenizer) -> Source:
    text = " ".join(tokenizer.decode([i for entry, _ in group for i in entry.ids]).split())
    if len(text) > QUOTE_CHARS:
        text = text[: QUOTE_CHARS - 1] + "…"
    return Source(
        weight=sum(weight for _, weight in group) / total,
        quote=text,
        **locate(group[0][0], group[-1][0]),
    )


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
