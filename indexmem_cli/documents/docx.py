"""Word files (docx), read as a stream: a long one never stands in memory as a whole."""

import re
from collections.abc import Iterator
from typing import Any

from indexmem_cli.config import ReadConfig
from indexmem_cli.documents.blocks import Block
from indexmem_cli.documents.passages import ByteSource, Damaged
from indexmem_cli.documents.unzip import Zip

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_PARAGRAPH, _TABLE, _ROW, _CELL = (f"{_W}{name}" for name in ("p", "tbl", "tr", "tc"))
_TEXT = {f"{_W}t", "{http://schemas.openxmlformats.org/officeDocument/2006/math}t"}
_BREAKS = {f"{_W}br": "\n", f"{_W}cr": "\n", f"{_W}tab": "\t", f"{_W}noBreakHyphen": "-"}
_MOVED_AWAY = f"{_W}moveFrom"
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_BODY = "word/document.xml"
_STYLES = "word/styles.xml"
_NOTES = ("word/footnotes.xml", "word/endnotes.xml")


def read_docx(stream: ByteSource, config: ReadConfig) -> Iterator[Block]:
    """Yield paragraphs, headings and rows of tables in order, then the notes.

    Headers, footers, comments, deleted text and pictures are left out.
    """
    archive = Zip(stream)
    if _BODY not in archive.names:
        raise Damaged("it is no Word file: word/document.xml is missing")
    headings = _heading_styles(archive)
    yield from _blocks(archive, _BODY, headings)
    for name in _NOTES:
        if name in archive.names:
            yield from (Block(b.text, "Notes", b.end) for b in _blocks(archive, name, headings))


def _blocks(archive: Zip, name: str, headings: set[str]) -> Iterator[Block]:
    """Yield the blocks of one part. Elements are dropped as soon as they are read."""
    heading: str | None = None
    cells: list[str] = []  # of the row that is open
    paragraphs: list[str] = []  # of the cell that is open
    num_tables = num_fallbacks = 0  # that are open, one in the other
    for event, element in _elements(archive, name):
        tag, step = element.tag, 1 if event == "start" else -1
        if tag == _FALLBACK:  # the same again, for older programs
            num_fallbacks += step
        elif tag == _TABLE:
            num_tables += step
        elif event == "start" or num_fallbacks:
            continue
        elif tag == _PARAGRAPH:
            text, is_heading = _text(element), _style(element) in headings
            if num_tables:
                paragraphs.append(" ".join(text.split()))
            elif text.strip():
                heading = " ".join(text.split()) if is_heading else heading
                yield Block(text, heading, "\n\n" if is_heading else "\n")
            element.clear()
        elif num_tables == 1 and tag == _CELL:
            cells.append(" ".join(filter(None, paragraphs)))
            paragraphs = []
        elif num_tables == 1 and tag == _ROW:
            if any(cells):
                yield Block(" | ".join(cells), heading)
            cells = []
        if event == "end" and tag != _PARAGRAPH:
            element.clear()
        while event == "end" and element.getprevious() is not None:
            del element.getparent()[0]


def _elements(archive: Zip, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the beginnings and ends of the elements that matter, without entities or network."""
    from lxml import etree

    tags = (_PARAGRAPH, _TABLE, _ROW, _CELL, _FALLBACK)
    with archive.open(name) as stream:
        try:
            yield from etree.iterparse(
                stream, events=("start", "end"), tag=tags, resolve_entities=False, no_network=True
            )
        except etree.XMLSyntaxError as error:
            raise Damaged(f"{name!r} in it is damaged or cut off ({error.msg})") from error


def _text(paragraph: Any) -> str:
    """Join the runs of a paragraph. Deleted text is `delText`, and so left out by itself."""
    for moved in paragraph.iter(_MOVED_AWAY):
        moved.clear()
    return "".join(
        node.text or "" if node.tag in _TEXT else _BREAKS[node.tag]
        for node in paragraph.iter(*_TEXT, *_BREAKS)
        if node.getparent().tag.endswith("}r")  # else it is a tab stop
    )


def _style(paragraph: Any) -> str | None:
    style = paragraph.find(f"{_W}pPr/{_W}pStyle")
    return style.get(f"{_W}val") if style is not None else None


def _heading_styles(archive: Zip) -> set[str]:
    """Return the ids of the styles that are headings; their names are English in every language."""
    from lxml import etree

    if _STYLES not in archive.names:
        return set()
    ids = set()
    with archive.open(_STYLES) as stream:
        try:
            for _, style in etree.iterparse(stream, tag=f"{_W}style", resolve_entities=False):
                name = style.find(f"{_W}name")
                title = name.get(f"{_W}val", "") if name is not None else ""
                if re.fullmatch(r"heading \d|title", title, re.IGNORECASE):
                    ids.add(style.get(f"{_W}styleId"))
        except etree.XMLSyntaxError as error:
            raise Damaged(f"{_STYLES!r} in it is damaged ({error.msg})") from error
    return ids
