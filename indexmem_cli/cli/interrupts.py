"""Ctrl-C as a wish to stop, which is heard between two events."""

import contextlib
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from indexmem_cli.events import Event

TWICE_S = 2.0
"""A second Ctrl-C within this time leaves."""


@dataclass
class Interrupts:
    """Ctrl-C: the first one stops what is going on, a second one soon after leaves."""

    is_stopping: bool = False
    _last_s: float = float("-inf")

    def press(self) -> None:
        """Note Ctrl-C.

        Raises:
            KeyboardInterrupt: it is the second one.
        """
        now_s = time.monotonic()
        is_second, self._last_s = now_s - self._last_s < TWICE_S, now_s
        self.is_stopping = True
        if is_second:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """Take Ctrl-C as a wish to stop between two events, not as an exception anywhere."""
        self.is_stopping = False
        before = signal.getsignal(signal.SIGINT)
        if before is not signal.SIG_IGN:  # as of programs in the background
            signal.signal(signal.SIGINT, lambda *_: self.press())
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def until_stopped(self, events: "Iterator[Event]") -> "Iterator[Event]":
        """Pass events on until Ctrl-C; whoever yields them is told at once."""
        # Events come from generators, which can be closed, though their type does not say so.
        with contextlib.closing(events):  # type: ignore[type-var]
            for event in events:
                yield event
                if self.is_stopping:
                    return
