"""Documents that are headings, paragraphs and rows: web pages, books, office files."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from indexmem_cli.config import ReadConfig
from indexmem_cli.documents.passages import ByteSource, Damaged, ParsedDocument, Passage, Place
from indexmem_cli.documents.text import clean, line_passages


@dataclass(frozen=True, slots=True)
class Block:
    """A paragraph, a heading, an item or a row, in one or more lines."""

    text: str
    heading: str | None
    """The last heading at or before it, or the chapter."""
    end: str = "\n"
    """What follows it: a blank line after headings and paragraphs."""


Reader = Callable[[ByteSource, ReadConfig], Iterable[Block]]


class BlockDocument(ParsedDocument):
    """A file of blocks, each of which is a place."""

    def _read(self) -> Iterator[Passage]:
        number = 0
        with self._stream() as stream:
            for block in self._reader(stream, self._config):
                lines = [line for line in clean(block.text).split("\n") if line.strip()]
                if not lines:
                    continue
                number += 1
                heading = " ".join(clean(block.heading or "").split()) or None
                place = Place(self.name, None, None, number, "paragraph", heading)
                self.undecodable_chars += block.text.count("\ufffd")
                for line in lines[:-1]:
                    yield from line_passages(line.rstrip(), place, "\n")
                yield from line_passages(lines[-1].rstrip(), place, block.end)
        if not number:
            raise Damaged("there is no text in it", reason="no text")
