"""Finer places of texts: headings of Markdown, rows of CSV, functions of source code."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from indexmem_cli.documents.passages import Passage

_HEADING = re.compile(r"\s{0,3}#{1,6}\s+(.*?)(?:\s+#+)?\s*")
_FENCE = re.compile(r"\s{0,3}(`{3,}|~{3,})")
_OPENING = re.compile(r'(?:^|[,;\t])"')
_CLOSING = re.compile(r'""|"')


def with_headings(passages: Iterable[Passage]) -> Iterator[Passage]:
    """Name the heading that each passage of a Markdown text stands under."""
    heading = fence = None
    for passage in passages:
        mark = _FENCE.match(passage.text)
        if fence is None and mark:
            fence = mark[1]
        elif fence is not None and mark and mark[1].startswith(fence):
            fence = None
        elif fence is None and (match := _HEADING.fullmatch(passage.text)):
            heading = " ".join(match[1].split()) or heading
        yield replace(passage, place=replace(passage.place, member=heading))


def with_rows(passages: Iterable[Passage], are_quoted: bool) -> Iterator[Passage]:
    """Count rows in place of lines.

    Args:
        are_quoted: a cell may stand in quotation marks, and hold line ends; as in CSV.
    """
    row, in_quotes, line = 0, False, 0
    for passage in passages:
        if passage.place.line != line and not in_quotes:
            row += 1
        line = passage.place.line
        in_quotes = are_quoted and _ends_in_quotes(passage.text, in_quotes)
        yield replace(passage, place=replace(passage.place, line=row, unit="row"))


def _ends_in_quotes(text: str, in_quotes: bool) -> bool:
    """Tell whether a quoted cell goes on after `text`; a mark within a cell opens none."""
    at = 0
    while found := (_CLOSING if in_quotes else _OPENING).search(text, at):
        at = found.end()
        in_quotes ^= found[0] != '""'
    return in_quotes


def with_symbols(passages: Iterable[Passage], symbols: dict[int, str]) -> Iterator[Passage]:
    """Name the function or class that each passage of source code is in."""
    for passage in passages:
        symbol = symbols.get(passage.place.line)
        yield replace(passage, place=replace(passage.place, symbol=symbol))
