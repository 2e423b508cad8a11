"""Open whatever the user names: files, folders, a pipe, each by its content, read lazily.

Nothing here knows tokens or models.
"""

import difflib
import io
import os
import shutil
import stat
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from indexmem_cli.config import ReadConfig, is_folder
from indexmem_cli.documents.chats.messages import NOT_SELECTED, Message, MessageDocument
from indexmem_cli.documents.chats.slack import Folder, is_slack, read_slack
from indexmem_cli.documents.codebase import find_files
from indexmem_cli.documents.formats import is_plain_text, open_blob
from indexmem_cli.documents.network import is_address, open_address
from indexmem_cli.documents.passages import Blob, Document, Meter, Passage, Place, Unreadable
from indexmem_cli.documents.text import SNIFF_BYTES, TextDocument
from indexmem_cli.errors import ConfigError, DocumentError, reason

__all__ = [
    "Blob",
    "Document",
    "Passage",
    "Place",
    "Sources",
    "join_sources",
    "open_each",
    "open_sources",
    "open_text",
]


@dataclass
class Sources:
    """What was asked for: the documents to read in order, and what was left out."""

    documents: list[Document] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    """Number of files of folders that are not read, by reason: ignored, binary, generated, too
    large, encrypted, malformed, no text, unreadable, not a file, link out of the folder. An
    ignored folder counts once. Grows while documents are read."""
    name: str = ""
    """As the user named it."""

    def fraction(self, current: Document | None) -> float | None:
        """Share of all bytes read so far; None where a size is not known.

        Args:
            current: the document that is being read.
        """
        sizes = [d.size_bytes for d in self.documents if d.size_bytes is not None]
        if len(sizes) < len(self.documents) or not sum(sizes) or current is None:
            return None
        at = next(i for i, document in enumerate(self.documents) if document is current)
        share = current.fraction
        return None if share is None else (sum(sizes[:at]) + sizes[at] * share) / sum(sizes)


def open_sources(
    sources: Sequence[str], config: ReadConfig, stdin: BinaryIO | None = None
) -> Sources:
    """Open files, folders, addresses and `-` as one text; see `open_each`."""
    return join_sources(open_each(sources, config, stdin))


def join_sources(parts: Sequence[Sources]) -> Sources:
    """Make one text of several sources."""
    joined = Sources(name=" ".join(part.name for part in parts))
    for part in parts:
        joined.documents += part.documents
        joined.skipped.update(part.skipped)
    for document in joined.documents:
        if document.folder_skips is not None:
            document.folder_skips = joined.skipped
    return joined


def open_each(
    sources: Sequence[str],
    config: ReadConfig,
    stdin: BinaryIO | None = None,
    keep_pipes: bool = False,
) -> list[Sources]:
    """Open files, folders, addresses and `-` (stdin, also where none is named), each for itself.

    What can be known without reading on is checked here, so that a bad source is refused before
    a model is loaded.

    Args:
        keep_pipes: put what comes through a pipe on the disk first, in a file without a name, so
            that it can be read more than once.

    Raises:
        ConfigError: nothing to read, an empty pipe, pages that do not exist.
        DocumentError: a named source is missing, or cannot be read, or holds no text; or a
            folder holds nothing that can be read.
    """
    if not sources and stdin is None:
        raise ConfigError("nothing to read", "name a file or a folder, or pipe a text in")
    if list(sources).count("-") > 1:
        raise ConfigError("stdin (-) is named twice")
    parts: list[Sources] = []
    unselected = None
    with ExitStack() as pipes:  # those that are ours; closed if anything fails
        for source in sources or ["-"]:
            parts.append(opened := Sources(name=_printable(source)))
            try:
                _open_source(source, stdin, config, opened, keep_pipes, pipes)
            except Unreadable as error:
                if error.reason != NOT_SELECTED:
                    raise
                opened.skipped[NOT_SELECTED] += 1
                unselected = unselected or error
        documents = [document for part in parts for document in part.documents]
        if unselected and not documents:
            raise unselected
        _check_selection(documents, config)
        pipes.pop_all()
    return parts


def _check_selection(documents: Sequence[Document], config: ReadConfig) -> None:
    """Refuse a selection that can be of no source."""
    if config.pages and all(document.kind != "pdf" for document in documents):
        raise ConfigError("pages are selected, but no source has pages")
    has_messages = any(document.has_messages for document in documents)
    if (config.authors or config.since or config.until) and not has_messages:
        raise ConfigError("authors or times are selected, but no source has messages")


def _open_source(
    source: str,
    stdin: BinaryIO | None,
    config: ReadConfig,
    opened: Sources,
    keep_pipes: bool,
    pipes: ExitStack,
) -> None:
    if source == "-":
        opened.documents.append(_open_pipe("-", stdin, config, keep=keep_pipes))
    elif is_address(source):
        page = pipes.enter_context(closing(open_address(source, config)))
        opened.documents.append(_open_pipe(source, page, config, is_ours=True, keep=keep_pipes))
    elif is_folder(source):
        with _named(_printable(source)):
            _open_folder(source, config, opened)
    else:
        opened.documents.append(_open_file(source, config, keep_pipes, pipes))


def open_text(text: str, name: str = "text") -> Document:
    """Open a text that is already in memory."""
    data = text.encode("utf-8", "surrogatepass")
    # Decoding replaces lone surrogates, which are no text in any encoding.
    return TextDocument(name, "text", len(data), lambda: io.BytesIO(data), "utf-8")


def _open_file(source: str, config: ReadConfig, keep_pipes: bool, pipes: ExitStack) -> Document:
    """Open one named file, and look whether it holds text."""
    path, name = Path(source), _printable(source)
    try:
        if "\0" in source:  # which Python refuses in an error of its own
            raise FileNotFoundError(source)
        if stat.S_ISFIFO(path.stat().st_mode):  # as in `indexmem ask <(command) "…"`
            stream = pipes.enter_context(path.open("rb"))
            return _open_pipe(name, stream, config, is_ours=True, keep=keep_pipes)
        document = _open_content(path, name, config, in_folder=False)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DocumentError(f"no such file or folder: {name}", _suggest(path)) from error
    except OSError as error:
        raise DocumentError(f"{name}: {reason(error)}") from error
    if not document.has_text():
        raise Unreadable("empty", f"{name}: the file holds no text")
    return document


def _open_folder(source: str, config: ReadConfig, opened: Sources) -> None:
    """Open the files of a folder that are worth reading; count the others."""
    root = Path(source).resolve()
    if (root / "users.json").is_file() and is_slack((export := Folder(root)).names):
        opened.documents.append(_open_slack(_printable(source), root, export, config))
        opened.skipped.update(export.skipped)
        return
    documents: list[Document] = []
    skipped: Counter[str] = Counter()
    for path in find_files(root, config, skipped):
        inner = path.relative_to(root)
        try:
            document = _open_content(path, _printable(Path(source) / inner), config, in_folder=True)
        except Unreadable as error:
            skipped[error.reason] += 1
        except OSError:
            skipped["unreadable"] += 1
        else:
            document.header = _printable(inner).replace("\n", " ")
            documents.append(document)
    if not any(map(_seems_readable, documents)):
        why = ", ".join(f"{number} {reason}" for reason, number in skipped.most_common())
        raise DocumentError(
            f"{_printable(source)}: nothing in the folder can be read",
            f"not read: {why}; name a file to hear more" if why else None,
        )
    for document in documents:
        document.folder_skips = opened.skipped
    opened.documents += documents
    opened.skipped.update(skipped)


def _open_slack(name: str, root: Path, export: Folder, config: ReadConfig) -> Document:
    """Open the folder of a workspace, whose files are one source."""

    def read(meter: Meter, _: ReadConfig) -> Iterator[Message]:
        export.meter = meter
        return read_slack(export)

    document = MessageDocument(
        name,
        "slack",
        export.size_bytes,
        lambda: io.BytesIO(b""),  # it has files in place of bytes
        read,
        config,
    )
    document.path = root
    document.parts = export.paths
    document.has_text()
    return document


def _open_content(path: Path, name: str, config: ReadConfig, in_folder: bool) -> Document:
    """Open a regular file by what it begins with.

    Raises:
        OSError: it cannot be opened.
        DocumentError: it cannot be read; or is generated, in a folder.
    """

    def reopen() -> BinaryIO:
        return _open_regular(path)

    with reopen() as stream:
        size_bytes = os.fstat(stream.fileno()).st_size
        head = stream.read(SNIFF_BYTES)
    document = open_blob(Blob(name, path.name, size_bytes, reopen, head), config, in_folder)
    document.path = path
    return document


def _open_pipe(
    name: str,
    stream: BinaryIO | None,
    config: ReadConfig,
    is_ours: bool = False,
    keep: bool = False,
) -> Document:
    """Open a stream that can be read once; what must be sought in goes to disk first."""
    with _named(name):
        head = stream.read(SNIFF_BYTES) if stream is not None else b""
    if not head and is_address(name):
        raise Unreadable("empty", f"{name}: the file holds no text")
    if stream is None or not head:
        raise ConfigError("stdin is empty" if name == "-" else f"{name}: the pipe is empty")
    rest = _Pipe(head, stream, is_ours)
    if is_plain_text(head, config) and not keep:
        return TextDocument(name, "stdin", None, rest.open_once, config.encoding)

    with _named(name):
        spool = tempfile.TemporaryFile()  # noqa: SIM115 (closed below)
    try:
        with rest, _named(name):
            shutil.copyfileobj(rest, spool)
            spool.flush()
    except BaseException:
        spool.close()
        raise

    def reopen() -> BinaryIO:
        copy = os.fdopen(os.dup(spool.fileno()), "rb")
        copy.seek(0)
        return copy

    weakref.finalize(reopen, spool.close)  # with the document, which holds `reopen`
    if is_plain_text(head, config):
        return TextDocument(name, "stdin", spool.tell(), reopen, config.encoding)
    document = open_blob(Blob(name, name, spool.tell(), reopen, head), config)
    document.has_text()
    return document


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Say which source could not be read."""
    try:
        yield
    except OSError as error:
        raise Unreadable("unreadable", f"{name}: {reason(error)}") from error


class _Pipe(io.BufferedIOBase):
    """A stream whose first bytes were read already."""

    def __init__(self, head: bytes, stream: BinaryIO, is_ours: bool) -> None:
        self._head = head
        self._stream = stream
        self._is_ours = is_ours
        self._is_used = False

    def open_once(self) -> "_Pipe":
        if self._is_used:
            raise Unreadable("unreadable", "a pipe can be read only once")
        self._is_used = True
        return self

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            head, self._head = self._head, b""
            return head + self._stream.read()
        head, self._head = self._head[:size], self._head[size:]
        return head + self._stream.read(size - len(head)) if len(head) < size else head

    def __enter__(self) -> "_Pipe":
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_ours:
            self._stream.close()


def _open_regular(path: Path) -> BinaryIO:
    """Open a regular file, and never wait at or read from anything else."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    stream = os.fdopen(os.open(path, flags), "rb")
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise OSError("not a regular file")
    return stream


def _seems_readable(document: Document) -> bool:
    try:
        return document.has_text()
    except Unreadable:
        return False


def _suggest(path: Path) -> str | None:
    """Name what is near a path that does not exist."""
    if not is_folder(path.parent):
        return f"there is no folder {_printable(path.parent)} either"
    try:
        names = [entry.name for entry in os.scandir(path.parent)]
    except OSError:
        return None
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"did you mean {_printable(path.parent / near[0])}?" if near else None


def _printable(path: str | Path) -> str:
    """Return a path with U+FFFD for the bytes of its name that are no text."""
    return os.fsencode(path).decode("utf-8", "replace")
