"""PDF files as running text: printed lines of a paragraph are joined, broken words mended."""

import itertools
import logging
import re
import shlex
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from statistics import median
from typing import BinaryIO

from pypdf import PageObject, PdfReader
from pypdf.errors import DependencyError, FileNotDecryptedError

from indexmem_cli.config import ReadConfig
from indexmem_cli.documents.passages import Document, Passage, Place, Unreadable
from indexmem_cli.documents.text import clean, line_passages
from indexmem_cli.documents.wrapped import LIST_ITEM, is_prose
from indexmem_cli.errors import ConfigError, first_line, reason

_LETTERS = {
    0xFB00: "ff",
    0xFB01: "fi",
    0xFB02: "fl",
    0xFB03: "ffi",
    0xFB04: "ffl",
    0xFB05: "st",
    0xFB06: "st",
    0x7F: "\u2022",  # unused codes of the standard PDF encoding are bullets
}
_MIN_FULL_CHARS = 20
_PAGES_CACHED = 32
_MIN_CELLS = 12
_CELL_CHARS = 16
_ROWS_PER_CELL = 0.55
_GAP = re.compile(r"\s{2,}")
_SOFT_HYPHEN = "\u00ad"
_PAGE_NUMBER = re.compile(r"[0-9]+|[ivxlcdm]+", re.IGNORECASE)
_BROKEN_WORD = re.compile(r"[^\W_]+[-\u00ad\u2010\u2013\u2014]$")
_UNSPACED = re.compile(r"[/@]|[\u3000-\u30ff\u3400-\u9fff\uff00-\uffef]{2}")


class PdfDocument(Document):
    """A PDF with a text layer. Pages that cannot be read count as pages without text."""

    def __init__(
        self,
        name: str,
        size_bytes: int | None,
        open_bytes: Callable[[], BinaryIO],
        config: ReadConfig,
        exact_pages: bool = True,
    ) -> None:
        """Open the file for a moment, to know that it can be read and how many pages it has.

        Args:
            exact_pages: refuse a selection that names pages the document does not have; else
                read those that it has.
        Raises:
            DocumentError: encrypted, or not a PDF that can be read.
            ConfigError: a selected page does not exist.
        """
        super().__init__(name, "pdf", size_bytes)
        self._open_bytes = self._open_file = open_bytes
        self._password = config.password
        with self._reader() as reader, _one_error(name):
            self.pages_total = len(reader.pages)
        last = max((max(pair) for pair in config.pages), default=0)
        if exact_pages and last > self.pages_total:
            raise ConfigError(f"{name}: no page {last}: it has {self.pages_total} pages")
        self._selected = [
            index
            for index in range(self.pages_total)
            if not config.pages
            or any(first <= index + 1 <= (end or index + 1) for first, end in config.pages)
        ]

    @contextmanager
    def _reader(self) -> Iterator[PdfReader]:
        try:
            stream = self._open_file()
        except OSError as error:
            raise Unreadable("unreadable", f"{self.name}: {reason(error)}") from error
        with stream:
            with _one_error(self.name):
                reader = PdfReader(stream)
                locked = reader.is_encrypted and not (
                    # An owner's password forbids, but does not lock.
                    reader.decrypt(self._password or "") or reader.decrypt("")
                )
            if locked:
                found = "the PDF is encrypted"
                if self._password is not None:
                    found += ", and the password does not open it"
                raise Unreadable(
                    "encrypted",
                    f"{self.name}: {found}",
                    "put its password into a file and give that with --password-file",
                )
            yield reader

    def _read(self) -> Iterator[Passage]:
        self.pages_not_selected = self.pages_total - len(self._selected)
        with self._reader() as reader:
            yield from join_lines(self._printed_lines(reader))
        if self._selected and not self.pages_read:
            found = f"{len(self._selected)} of {self.pages_total} pages have no text layer"
            others = ", the others are not selected" if self.pages_not_selected else ""
            name = self.name if self.name != "-" else "scan.pdf"
            readable = name.removesuffix(".pdf") + ".ocr.pdf"
            raise Unreadable(
                "no text",
                f"{self.name}: {found} (scanned or blank){others}",
                f"ocrmypdf {shlex.quote(name)} {shlex.quote(readable)} makes one that has",
            )

    def _printed_lines(self, reader: PdfReader) -> Iterator["Line"]:
        labels = _page_labels(reader)
        failure = None
        for num_done, index in enumerate(self._selected, 1):
            label = labels[index] if labels else None
            try:
                with _one_error(self.name):
                    text = _page_text(reader.pages[index])
            except Unreadable as error:
                failure, text = failure or error, ""
            if text.strip():
                self.pages_read += 1
                yield from page_lines(text, self.name, index + 1, label)
            else:
                self.pages_without_text.append(f"{self.name} p. {label or index + 1}")
            self.read_on(num_done / len(self._selected))
            if num_done % _PAGES_CACHED == 0:
                reader.resolved_objects.clear()  # else it holds every object of every page
        if failure is not None and not self.pages_read:
            raise failure


def _page_text(page: PageObject) -> str:
    """Return the text of a page in its own order; of a table without rules, a row a line.

    The cells of such a table are printed each for itself. Where most lines are as short as cells
    and about half of them stand beside another one, lines of one height are joined, unless that
    loses or adds a letter.
    """
    text = page.extract_text()
    lengths = [len(line.strip()) for line in text.split("\n") if line.strip()]
    if len(lengths) < _MIN_CELLS or median(lengths) > _CELL_CHARS:
        return text
    with suppress(Unreadable, MemoryError), _one_error(""):
        rows = page.extract_text(extraction_mode="layout", layout_mode_space_vertically=False)
        lines = [_GAP.sub(" | ", row.strip()) for row in rows.split("\n") if row.strip()]
        is_whole = Counter("".join(rows.split())) == Counter("".join(text.split()))
        gaps = [line.count(" | ") for line in lines if " | " in line]
        # Two columns are more likely those of an index, which are read one after the other.
        is_table = len(lines) <= _ROWS_PER_CELL * len(lengths) and median(gaps or [0]) >= 2
        if is_whole and is_table:
            return "\n".join(lines)
    return text


@contextmanager
def _one_error(name: str) -> Iterator[None]:
    """Turn whatever pypdf raises, warns or logs on a bad file into at most one DocumentError.

    Broken files make it raise errors of any type, by its own documentation.
    """
    logger = logging.getLogger("pypdf")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except MemoryError:
        raise
    except DependencyError as error:
        raise Unreadable(
            "encrypted",
            f"{name}: its encryption needs a package that is not installed",
            "pip install 'pypdf[crypto]'",
        ) from error
    except FileNotDecryptedError as error:
        raise Unreadable("encrypted", f"{name}: the PDF is encrypted") from error
    except Exception as error:
        raise Unreadable(
            "malformed",
            f"{name}: the PDF is damaged ({type(error).__name__}: {first_line(error)[:120]})",
            f"try to repair it: qpdf {shlex.quote(name)} repaired.pdf",
        ) from error
    finally:
        logger.setLevel(level)


@dataclass
class Line:
    """One printed line; `text` is empty for a blank one."""

    text: str
    place: Place
    is_full: bool
    """Whether the line goes to the edge of its column, so that its paragraph may go on."""
    page_text: str
    """The page, to look up how a broken word is written elsewhere."""


def page_lines(text: str, file: str, page: int, label: str | None) -> list[Line]:
    """Clean the text of a page and split it into printed lines.

    Ligatures become letters, and NULs minus signs. A first or last line that is nothing but the
    number of the page, by its label or its index, is left out; running headers stay.

    A line is full if it has three quarters of the length that four lines in five stay below,
    and no line is where fewer than three in ten begin in lower case: verse, tables, lists.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if text.count("\0") * 4 < len(text):
        # The minus of TeX's symbol font, which stands at code 0, where the PDF does not tell; but
        # more NULs than that are the halves of two-byte codes.
        text = text.replace("\0", "\u2212")
    text = clean(text.translate(_LETTERS))
    rows = [(number, row.rstrip()) for number, row in enumerate(text.split("\n"), 1)]
    rows = _strip_blank(rows)
    numbers = {str(page), (label or str(page)).casefold()}
    for at in (0, -1):
        row = rows[at][1].strip() if len(rows) > 1 else ""
        if _PAGE_NUMBER.fullmatch(row) and row.casefold() in numbers:
            del rows[at]
            rows = _strip_blank(rows)

    shown = [row.strip() for _, row in rows if row.strip()]
    lengths = sorted(map(len, shown))
    full = max(_MIN_FULL_CHARS, 0.75 * lengths[len(lengths) * 4 // 5]) if shown else 0
    is_text = sum(not row[0].isupper() and row[0].isalpha() for row in shown) >= 0.3 * len(shown)
    return [
        Line(row, Place(file, page, label, number), is_text and len(row) >= full, text)
        for number, row in rows
    ]


def join_lines(lines: Iterable[Line]) -> Iterator[Passage]:
    """Make one passage of each printed line, so that the passages of a paragraph read on.

    A line of a paragraph that goes on has no line end; the next one begins with a space. A word
    broken at the line end moves to the earlier line as a whole.
    """
    last: Line | None = None
    lead = blank = ""
    for line in lines:
        if not line.text:
            blank += "\n"
            continue
        goes_on = False
        if last is not None:
            if not blank and mend_word(last, line) and not line.text:
                last.is_full = line.is_full
                continue
            goes_on = not blank and _goes_on(last, line)
            yield from _passages(last, lead, "" if goes_on else "\n" + blank)
        lead = ""
        if goes_on and last is not None:
            line.text = line.text.lstrip()
            lead = "" if _UNSPACED.match(last.text[-1] + line.text[0]) else " "
        last, blank = line, ""
    if last is not None:
        yield from _passages(last, lead, "\n")


def mend_word(last: Line, line: Line) -> bool:
    """Move the rest of a word that `last` ends within from `line` to it; tell if there was one.

    A hyphen between small letters is taken for a line break's own, and removed, unless the word
    has another hyphen or stands with this one elsewhere on the page. Before or after a capital
    or a digit, and as a dash, it is real and stays.
    """
    match = _BROKEN_WORD.search(last.text)
    rest, _, after = line.text.lstrip().partition(" ")
    if match is None or not rest or not rest[0].isalnum():
        return False
    left, mark = match[0][:-1], match[0][-1]
    right = "".join(itertools.takewhile(str.isalnum, rest))
    before = last.text[: -len(match[0])]
    is_break = mark == _SOFT_HYPHEN or (
        mark in "-\u2010"
        and left.isalpha()
        and rest[0].islower()
        and not left.isupper()
        and not before.endswith(("-", "\u2010"))
        and f"{left}{mark}{right}" not in line.page_text
    )
    if not is_break and line.place.page != last.place.page:
        return False  # a running header stands between the halves
    last.text = (last.text[:-1] if is_break else last.text) + rest
    line.text = after.strip()
    return True


def _goes_on(last: Line, line: Line) -> bool:
    """Tell whether the paragraph of a line goes on in the next one.

    A line that begins with a capital and is not full may be a heading and stays alone; so does
    one after a colon, and anything that looks like an item of a list, a table or code.
    """
    text = line.text.lstrip()
    is_inside = text[0].islower() or (line.is_full and line.place.page == last.place.page)
    return (
        last.is_full
        and is_inside
        and not last.text.endswith(":")
        and not LIST_ITEM.match(text)
        and is_prose(last.text)
        and is_prose(text)
    )


def _passages(line: Line, lead: str, end: str) -> Iterator[Passage]:
    return line_passages((lead + line.text).replace(_SOFT_HYPHEN, ""), line.place, end)


def _strip_blank(rows: list[tuple[int, str]]) -> list[tuple[int, str]]:
    shown = [at for at, (_, row) in enumerate(rows) if row]
    return rows[shown[0] : shown[-1] + 1] if shown else []


def _page_labels(reader: PdfReader) -> list[str] | None:
    """Return the printed numbers of all pages; None if there are none, or bad ones."""
    try:
        with _one_error(""):
            return reader.page_labels if "/PageLabels" in reader.root_object else None
    except Unreadable:
        return None
