"""The process in which untrusted files are taken apart, under limits; see `apart`.

It opens no file: it asks for the bytes that it wants, and answers with passages.
"""

import contextlib
import errno
import io
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from indexmem_cli.documents.apart import config_from
from indexmem_cli.documents.formats import open_parsed
from indexmem_cli.documents.passages import COUNTS, Blob, Document, Passage, Unreadable
from indexmem_cli.documents.text import SNIFF_BYTES
from indexmem_cli.documents.wire import Wire
from indexmem_cli.errors import IndexMemError, first_line

if TYPE_CHECKING:
    from typing_extensions import Buffer

try:
    import resource
except ImportError:  # Windows: only the time is limited, by the other side
    resource = None  # type: ignore[assignment]  # a module has no type that allows for its lack

_BATCH_PASSAGES = 512
_BATCH_CHARS = 1 << 16
_PATIENCE_S = 0.25
"""How long passages are collected, and how often progress without any is told."""

_TIRED_BYTES = 500_000_000


class _Bytes(io.RawIOBase):
    """The file, which the other side reads."""

    def __init__(self, wire: Wire, size_bytes: int) -> None:
        self._wire = wire
        self._size_bytes = size_bytes
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size_bytes}[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, "a position before the beginning")  # as files do
        self._at = start + offset
        return self._at

    def readinto(self, buffer: "Buffer") -> int:
        view = memoryview(buffer)
        self._wire.send({"at": self._at, "size": len(view)})
        data = self._wire.receive()
        if not isinstance(data, bytes):
            os._exit(0)  # the other side is gone
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


class _Parser:
    """Opens and reads the one document of which is spoken."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._document: Document | None = None
        self._passages: Iterator[Passage] = iter(())
        self._key = None
        self._cpu_s = 0
        self._told = (0.0, 0.0)  # share and time
        self._pages_told = 0

    def serve(self) -> None:
        """Answer requests until there are none any more."""
        while isinstance(request := self._wire.receive(), dict):
            try:
                answer = self._answer(request)
            except MemoryError:
                self._document, self._passages = None, iter(())
                answer = {"error": "memory"}
            except IndexMemError as error:
                answer = _describe(error)
            except Exception as error:  # whatever a parser raises on what it was not made for
                what = f"{type(error).__name__}: {first_line(error)[:120]}"
                found = f"it cannot be parsed ({what})"
                answer = {"error": "unreadable", "reason": "malformed", "message": found}
            self._wire.send(answer)

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if "key" in request:
            self._cpu_s = request["cpu_s"]
            _limit_memory(request["memory_bytes"])
        self._renew_time()
        if "key" in request and (request["key"] != self._key or self._document is None):
            self._passages, self._document, self._key = iter(()), None, None
            self._document = self._open(request)
            self._document.when_read_on = self._tell
            self._key = request["key"]
        document = self._document
        assert document is not None, "the first request opens one"
        if "name" in request:
            document.name = request["name"]  # it may be called otherwise by now
        if request["do"] == "open":
            about = ("kind", "pages_total", "has_messages")
            return {name: getattr(document, name) for name in about}
        if request["do"] == "read":
            document.forget_counts()
            self._passages = document.read_named()
            self._told, self._pages_told = (0.0, time.monotonic()), 0
            return self._batch(document, 1)
        return self._batch(document, _BATCH_PASSAGES)

    def _open(self, request: dict[str, Any]) -> Document:
        def reopen() -> io.BufferedReader:
            return io.BufferedReader(_Bytes(self._wire, request["size_bytes"]), SNIFF_BYTES)

        with reopen() as stream:
            head = stream.read(SNIFF_BYTES)
        name, size_bytes = request["name"], request["size_bytes"]
        blob = Blob(name, request["file_name"], size_bytes, reopen, head)
        return open_parsed(blob, config_from(request["config"]), request["in_folder"])

    def _batch(self, document: Document, num_passages: int) -> dict[str, Any]:
        """Collect some passages; the first comes alone, as many ask for no more."""
        rows: list[list[Any]] = []
        num_chars, until = 0, time.monotonic() + _PATIENCE_S
        for passage in self._passages:
            place = passage.place
            rows.append(
                [passage.text, place.page, place.page_label, place.line, place.unit]
                + [place.member, place.author, place.time, place.symbol]
            )
            num_chars += len(passage.text)
            is_long = len(rows) >= num_passages or num_chars >= _BATCH_CHARS
            if is_long or time.monotonic() > until:
                return {"passages": rows, "counts": self._counts(document)}
        return {
            "passages": rows,
            "counts": self._counts(document),
            "is_done": True,
            "is_tired": _used_bytes() > _TIRED_BYTES,
        }

    def _counts(self, document: Document) -> dict[str, Any]:
        """Return all counts, and the pages without text that were not told yet."""
        counts = {name: getattr(document, name) for name in COUNTS}
        counts["pages_without_text"] = document.pages_without_text[self._pages_told :]
        self._pages_told += len(counts["pages_without_text"])
        return counts

    def _tell(self) -> None:
        """Tell the other side of progress, which gives time for more."""
        share, at = self._told
        document = self._document
        if document is None:
            return
        fraction, now = document.fraction or 0.0, time.monotonic()
        if fraction > share and now > at + _PATIENCE_S:
            self._told = (fraction, now)
            self._renew_time()
            self._wire.send({"progress": self._counts(document)})

    def _renew_time(self) -> None:
        """Give the next step its share of processor time, beyond which the system ends this."""
        if resource is not None:
            _, hard = resource.getrlimit(resource.RLIMIT_CPU)
            soft = int(time.process_time()) + self._cpu_s
            soft = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
            resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _describe(error: IndexMemError) -> dict[str, Any]:
    kind = "config" if error.exit_code == 2 else "unreadable"
    reason = error.reason if isinstance(error, Unreadable) else "malformed"
    return {"error": kind, "message": error.message, "hint": error.hint, "reason": reason}


def _limit_memory(limit_bytes: int) -> None:
    """Make requests for more memory fail; where the system cannot, nothing is limited."""
    if resource is None:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        limit_bytes = min(limit_bytes, hard)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, hard))


def _used_bytes() -> int:
    """Address space in use; 0 where the system does not tell.

    Not `ru_maxrss`, which begins with the size of the program that started this one.
    """
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    except (OSError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Serve the process at the other end of standard input and output."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other side decides what it means
    if resource is not None:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints does not come between the frames
    with contextlib.suppress(BrokenPipeError):
        _Parser(Wire(sys.stdin.buffer, out)).serve()
    os._exit(0)
