"""What every kind of document yields: passages of text, each with its place in the source."""

import hashlib
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from indexmem_cli.config import ReadConfig
from indexmem_cli.errors import DocumentError, reason

COUNTS = (
    *("fraction", "pages_read", "pages_not_selected", "messages_read", "messages_not_selected"),
    "undecodable_chars",
)
"""What a document counts while it is read, but for the list of its pages without text."""


class ByteSource(Protocol):
    """What bytes are read from: a file, a member of a zip, a `Meter`."""

    def read(self, size: int = ..., /) -> bytes: ...
    def seek(self, offset: int, whence: int = ..., /) -> int: ...
    def tell(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where a passage begins. Everything counts from 1."""

    file: str
    page: int | None
    """Index of the page; None where there are no pages."""
    page_label: str | None
    """The number printed on the page, where the document has labels."""
    line: int
    """Line of the file, or of the page where there are pages; or number of another `unit`."""
    unit: str = "line"
    """What `line` counts: line | row | message | paragraph."""
    member: str | None = None
    """Part of the file: a chapter, a heading, a channel, the subject of a mail."""
    author: str | None = None
    """Who wrote a message."""
    time: str | None = None
    """When a message was written, as `2024-03-05 14:02`; in a recording, `00:14:02`."""
    symbol: str | None = None
    """Function or class of source code, as `Reader.read`."""

    @property
    def spot(self) -> tuple[str | int | None, ...]:
        """All but the line: neighbours of one spot are shown as one source."""
        return (self.file, self.page, self.member, self.author, self.time, self.symbol)


@dataclass(frozen=True, slots=True)
class Passage:
    """One line of text with its line end and the blank lines after it; never without text.

    Passages joined in order are the whole text, and each begins where byte-level tokenizers
    begin a new word: after a line end, or at the space before a word. So the tokens of the
    passages are the tokens of the text.
    """

    text: str
    place: Place


class Blob(NamedTuple):
    """Bytes that can be opened again and again, and what is known of them."""

    name: str
    """As the user knows it."""
    file_name: str
    """Without folders; it tells texts apart that are read in the same way."""
    size_bytes: int | None
    reopen: Callable[[], BinaryIO]
    head: bytes
    """The first `SNIFF_BYTES`."""


class Unreadable(DocumentError):
    """A source that cannot be read, with the one word under which it is counted."""

    def __init__(self, reason: str, message: str, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.reason = reason


class Damaged(Exception):
    """What is wrong with the bytes that a reader was given; `Document` puts the name to it."""

    def __init__(self, message: str, hint: str | None = None, reason: str = "malformed") -> None:
        super().__init__(message)
        self.hint = hint
        self.reason = reason


def read_whole(stream: ByteSource, max_bytes: int, what: str) -> bytes:
    """Read what has to stand in memory as a whole.

    Raises:
        Damaged: it is larger than `max_bytes`; `what` says what it is.
    """
    data = stream.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise Damaged(f"{what} is too large", reason="too large")
    return data


class Document:
    """One source, opened but not yet read. The counts grow while `passages` runs."""

    _open_bytes: Callable[[], AbstractContextManager[ByteSource]]

    def __init__(self, name: str, kind: str, size_bytes: int | None) -> None:
        self.name = name
        self.kind = kind
        """What the content is: pdf, text, code, stdin, whatsapp, epub and so on."""
        self.size_bytes = size_bytes
        """None where it is not known (a pipe)."""
        self.pages_total = 0
        self.header: str | None = None
        """Path that is told to the model before the text; set for the files of a folder."""
        self.folder_skips: Counter[str] | None = None
        """Where a file of a folder counts itself when it cannot be read, instead of raising."""
        self.path: Path | None = None
        """Where the file lies; None for a pipe and for a text in memory."""
        self.parts: list[Path] = []
        """The files that are read as one document; empty where it is one file."""
        self.has_messages = False
        """Whether authors and times can be selected."""
        self.when_read_on: Callable[[], None] | None = None
        """Called whenever `fraction` was measured."""
        self.forget_counts()

    def forget_counts(self) -> None:
        """Begin the counts anew."""
        self.fraction: float | None = None
        """Share read so far, in [0, 1]; None if unknown."""
        self.pages_read = 0
        """Pages with text that were read."""
        self.pages_not_selected = 0
        self.pages_without_text: list[str] = []
        """As `file p. 12`, the label if there is one."""
        self.messages_read = 0
        self.messages_not_selected = 0
        self.undecodable_chars = 0
        """Characters that could not be decoded; each stands as U+FFFD in the text."""
        self.skipped_as: str | None = None
        """Why a file of a folder turned out to be unreadable."""

    def _read(self) -> Iterator[Passage]:
        raise NotImplementedError

    def read_on(self, fraction: float) -> None:
        """Note how far it was read."""
        self.fraction = fraction
        if self.when_read_on is not None:
            self.when_read_on()

    def take_counts(self, counts: dict[str, Any]) -> None:
        """Take over the counts of the same document, read elsewhere."""
        for name in COUNTS:
            setattr(self, name, counts[name])
        self.pages_without_text += counts["pages_without_text"]

    def sha256(self) -> str:
        """Return the hash of the document's bytes; not for a pipe that can be read only once.

        Raises:
            DocumentError: it cannot be read.
        """
        digest = hashlib.sha256()
        try:
            if self.parts:
                return hash_parts(self.path or Path(), self.parts)
            with self._open_bytes() as source:
                _digest(source, digest)
        except OSError as error:
            raise Unreadable("unreadable", f"{self.name}: {reason(error)}") from error
        return digest.hexdigest()

    def read_named(self) -> Generator[Passage, None, None]:
        """Read, with every failure in terms of this source."""
        try:
            yield from self._read()
            self.fraction = self.fraction and 1.0
        except Damaged as error:
            raise Unreadable(error.reason, f"{self.name}: {error}", error.hint) from error
        except OSError as error:
            raise Unreadable("unreadable", f"{self.name}: {reason(error)}") from error

    def passages(self) -> Iterator[Passage]:
        """Read the document from its beginning, lazily.

        Raises:
            DocumentError: it cannot be read, or holds no text. A file of a folder counts itself
                in `Sources.skipped` instead; an empty one still names itself to the model.
        """
        was_counted = self.skipped_as is not None  # when it was read before
        self.forget_counts()
        body = self.read_named()
        try:
            first = next(body, None)
            if first is None and self.folder_skips is None:
                raise Unreadable("empty", f"{self.name}: the file holds no text")
            if self.header is not None:
                yield Passage(f"==== {self.header} ====\n", Place(self.name, None, None, 1))
            if first is not None:
                yield first
                yield from body
        except Unreadable as error:
            if self.folder_skips is None:
                raise
            self.skipped_as = error.reason
            if not was_counted:
                self.folder_skips[error.reason] += 1

    def has_text(self) -> bool:
        """Look for a first passage: one page of most PDFs, every page of a scanned one.

        Raises:
            DocumentError: the document cannot be read.
        """
        with closing(self.read_named()) as body:
            found = next(body, None) is not None
        self.forget_counts()
        return found


def hash_parts(folder: Path, parts: Iterable[Path]) -> str:
    """Return the hash of files in a folder that are read as one document.

    Raises:
        OSError: one cannot be read.
    """
    digest = hashlib.sha256()
    for part in parts:
        # So that no two sets of files look alike.
        about = f"{part.relative_to(folder)} {part.stat().st_size} "
        digest.update(about.encode("utf-8", "replace"))
        with part.open("rb") as stream:
            _digest(stream, digest)
    return digest.hexdigest()


def _digest(stream: ByteSource, digest: "hashlib._Hash") -> None:
    while block := stream.read(1 << 20):
        digest.update(block)


class FileDocument(Document):
    """A source whose bytes can be opened again and again, or once if it is a pipe."""

    def __init__(
        self,
        name: str,
        kind: str,
        size_bytes: int | None,
        open_bytes: Callable[[], AbstractContextManager[ByteSource]],
    ) -> None:
        super().__init__(name, kind, size_bytes)
        self._open_bytes = open_bytes

    @contextmanager
    def _stream(self) -> Iterator["Meter"]:
        """Open the bytes; what is read of them is the fraction that was read."""
        with self._open_bytes() as stream:
            yield Meter(stream, self)


class ParsedDocument(FileDocument):
    """A file that a reader of its format takes apart: into blocks, or into messages."""

    def __init__(
        self,
        name: str,
        kind: str,
        size_bytes: int | None,
        open_bytes: Callable[[], BinaryIO],
        reader: Callable[["Meter", ReadConfig], Iterable[Any]],
        config: ReadConfig,
    ) -> None:
        super().__init__(name, kind, size_bytes, open_bytes)
        self._reader = reader
        self._config = config


class Meter:
    """A stream that tells its document how far it was read."""

    def __init__(self, stream: ByteSource, document: Document) -> None:
        self._stream = stream
        self._document = document
        self.bytes_read = 0

    def read(self, size: int = -1) -> bytes:
        """Read as the stream does."""
        block = self._stream.read(size)
        self.count(len(block))
        return block

    def count(self, num_bytes: int) -> None:
        """Add to what was read."""
        self.bytes_read += num_bytes
        if self._document.size_bytes:  # a file that grows while it is read is not more than read
            self._document.read_on(min(1.0, self.bytes_read / self._document.size_bytes))

    def seek(self, offset: int, whence: int = 0) -> int:
        """Seek as the stream does; the beginning starts the measure anew."""
        if (offset, whence) == (0, 0):
            self.bytes_read = 0
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        """Return the position in the stream."""
        return self._stream.tell()

    def seekable(self) -> bool:
        """Say yes, as zip readers ask."""
        return True
