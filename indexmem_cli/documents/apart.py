"""Files of formats that need a parser are read in another process: it may crash, not the program.

That process has limits of time and memory, and sends passages as they are asked for.
"""

import atexit
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from indexmem_cli.config import ReadConfig
from indexmem_cli.documents.passages import (
    Blob,
    ByteSource,
    FileDocument,
    Passage,
    Place,
    Unreadable,
)
from indexmem_cli.documents.wire import MAX_FRAME_BYTES, Wire
from indexmem_cli.errors import ConfigError

MAX_MEMORY_BYTES = 2 << 30
"""Address space of the process that parses."""

MAX_STEP_S = 60
"""Processor time without progress, in the process that parses."""

MAX_WAIT_S = 300
"""The same by the clock, for a process that sleeps and for systems without such limits."""

MAX_TEXT_CHARS = 4_000_000_000

PROGRAM = "import sys, json; sys.path = json.loads(sys.argv[1]); "
PROGRAM += "from indexmem_cli.documents.parser import main; main()"
_PACKAGES = str(Path(__file__).parents[2])
_keys = count()
idle: list["_Parser"] = []
"""A process that waits for the next file; never more than one."""


class ParsedApart(FileDocument):
    """A document that another process takes apart."""

    def __init__(self, blob: Blob, config: ReadConfig, in_folder: bool = False) -> None:
        """Look whether the file can be read, and what it is.

        Raises:
            DocumentError: it cannot be read.
            ConfigError: what is selected of it does not exist.
        """
        super().__init__(blob.name, "file", blob.size_bytes, blob.reopen)
        self._request = {
            "key": f"{os.getpid()} {next(_keys)}",
            "file_name": blob.file_name,
            "in_folder": in_folder,
            "config": _config_as_json(config),
        }
        with self._parser("open") as (_, about):
            self.kind = str(about["kind"])
            self.pages_total = int(about["pages_total"])
            self.has_messages = bool(about["has_messages"])

    def _read(self) -> Iterator[Passage]:
        num_chars = 0
        with self._parser("read") as (ask, batch):
            while True:
                for text, page, label, line, *others in batch["passages"]:
                    num_chars += len(text)
                    yield Passage(text, Place(self.name, page, label, line, *others))
                self.take_counts(batch["counts"])
                if num_chars > MAX_TEXT_CHARS:
                    raise self._fault(f"it unpacks to more than {MAX_TEXT_CHARS:,} characters")
                if batch.get("is_done"):
                    return
                batch = ask({"do": "next"})

    @contextmanager
    def _parser(self, what: str) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Yield a function that asks a process, and the first answer, to opening or reading."""
        parser = _take_parser()
        try:
            with self._open_bytes() as stream:
                size = stream.seek(0, os.SEEK_END)
                limits = {"cpu_s": MAX_STEP_S, "memory_bytes": MAX_MEMORY_BYTES}

                def ask(request: dict[str, Any]) -> dict[str, Any]:
                    return self._checked(parser.ask(request, stream, self.take_counts))

                now = {"name": self.name, "size_bytes": size, "do": what}
                answer = ask({**self._request, **limits, **now})
                yield ask, answer
        finally:
            if parser.is_fit and not idle:
                idle.append(parser)
            else:
                parser.end()

    def _checked(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Return an answer that is none of an error.

        Raises:
            DocumentError, ConfigError: it is.
        """
        error = answer.get("error")
        if error is None:
            return answer
        if error == "memory":
            gib = MAX_MEMORY_BYTES / (1 << 30)
            raise self._fault(f"taking it apart needs more than {gib:g} GiB", "too large")
        if error == "time":
            raise self._fault(f"taking it apart stood still for {MAX_STEP_S} s", "too slow")
        if error == "crash":
            raise self._fault(f"the program that takes it apart crashed ({answer['message']})")
        if error == "config":
            raise ConfigError(answer["message"], answer["hint"])
        message, hint = str(answer["message"]), answer.get("hint")
        known = message if message.startswith(self.name) else f"{self.name}: {message}"
        raise Unreadable(str(answer["reason"]), known, hint)

    def _fault(self, found: str, reason: str = "malformed") -> Unreadable:
        hint = "it is damaged, or made to do harm; saving it anew as PDF or text may help"
        return Unreadable(reason, f"{self.name}: {found}", hint)


class _Parser:
    """A process that takes files apart."""

    def __init__(self) -> None:
        paths = [path for path in (_PACKAGES, *sys.path) if path]  # never the current folder
        command = [sys.executable, "-I", "-S", "-c", PROGRAM, json.dumps(paths)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._streams = (self._process.stdout, self._process.stdin)
        self._wire = Wire(*self._streams)
        self._is_late = False
        self._is_over = threading.Event()
        self._deadline = math.inf
        threading.Thread(target=self._watch, name="watch over a parser", daemon=True).start()
        self.is_fit = False
        """Whether it waits for the next file, and has not grown too much for that."""

    @property
    def pid(self) -> int:
        """Return the number of the process."""
        return self._process.pid

    def is_alive(self) -> bool:
        """Tell whether it still runs."""
        return self._process.poll() is None

    def ask(self, request: dict[str, Any], stream: ByteSource, when_told: Any) -> dict[str, Any]:
        """Send a request and wait for the answer, meanwhile giving it the bytes it asks for.

        Returns:
            the answer; or an `error`, which is `crash` or `time` if the process ended.
        """
        self.is_fit = False
        try:
            self._deadline = time.monotonic() + MAX_WAIT_S
            self._wire.send(request)
            while isinstance(frame := self._wire.receive(), dict):
                if "at" in frame:
                    stream.seek(int(frame["at"]))
                    self._wire.send(stream.read(min(int(frame["size"]), MAX_FRAME_BYTES)))
                elif "progress" in frame:
                    when_told(frame["progress"])
                    self._deadline = time.monotonic() + MAX_WAIT_S
                else:
                    self.is_fit = not frame.get("is_tired") and frame.get("error") != "memory"
                    return frame
        except BrokenPipeError:
            pass
        finally:
            self._deadline = math.inf
        return self._last_words()

    def _watch(self) -> None:
        """End a process that keeps the program waiting."""
        while not self._is_over.wait(min(1.0, MAX_WAIT_S / 4)):
            if time.monotonic() > self._deadline:
                self._is_late = True
                self._process.kill()
                return

    def _last_words(self) -> dict[str, Any]:
        self._process.kill()  # it may live on after it sent what is no frame
        code = self._process.wait()
        slow = getattr(signal, "SIGXCPU", None)
        if self._is_late or (slow is not None and code == -slow):
            return {"error": "time"}
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"exit code {code}"
        return {"error": "crash", "message": name}

    def end(self) -> None:
        """End the process."""
        self._is_over.set()
        self._process.kill()
        for stream in self._streams:
            with suppress(OSError):  # what it did not take any more
                stream.close()
        self._process.wait()


def _take_parser() -> _Parser:
    try:
        parser = idle.pop()
    except IndexError:
        return _Parser()
    if parser.is_alive():
        return parser
    parser.end()
    return _Parser()


@atexit.register
def end_idle() -> None:
    """End the process that waits."""
    while idle:
        idle.pop().end()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=idle.clear)  # a process serves the one that started it


def _config_as_json(config: ReadConfig) -> dict[str, Any]:
    """Return the fields of a configuration, without what is of no concern to one file."""
    fields = asdict(config) | {"include": (), "exclude": (), "allow_network": False}
    for name in ("since", "until"):
        fields[name] = fields[name] and fields[name].isoformat()
    return fields


def config_from(fields: dict[str, Any]) -> ReadConfig:
    """Return the configuration that `_config_as_json` wrote down."""
    times = {
        name: datetime.fromisoformat(fields[name]) for name in ("since", "until") if fields[name]
    }
    lists = {name: tuple(fields[name]) for name in ("authors", "include", "exclude")}
    pages = tuple((first, last) for first, last in fields["pages"])
    return ReadConfig(**{**fields, **lists, **times, "pages": pages})
