"""Ctrl-C and SIGTERM as exceptions, raised where none can be lost.

Whatever is raised in a callback or while a module is imported may be swallowed there, by Python
itself or by a library that can do without the module. So signals wait until imports have ended.
"""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

_POLL_S = 0.02
_IMPORTING = "<frozen importlib._bootstrap>"


class Terminated(BaseException):
    """SIGTERM came; on its way up the terminal and the disk are left in order."""


_RAISED = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}


@contextlib.contextmanager
def signals_raised() -> Iterator[None]:
    """Raise `KeyboardInterrupt` and `Terminated` inside; after it, both end the program at once.

    To be entered in the main thread.
    """
    signals = _Signals()
    # Programs in the background are started with Ctrl-C ignored.
    caught = [signum for signum in _RAISED if signal.getsignal(signum) is not signal.SIG_IGN]
    for signum in caught:
        signal.signal(signum, signals.receive)
    sys.unraisablehook = signals.show_unraisable
    try:
        yield
    finally:
        for signum in caught:
            signal.signal(signum, signal.SIG_DFL)
            if signals.is_waiting(signum):
                signal.raise_signal(signum)


class _Signals:
    """What came while it could not be raised; a second one ends the program at once."""

    def __init__(self) -> None:
        self._main_thread = threading.get_ident()
        self._waiting: set[int] = set()
        self._show_unraisable = sys.unraisablehook

    def receive(self, signum: int, frame: FrameType | None) -> None:
        """Raise the exception of a signal, now or when imports have ended."""
        if signum in self._waiting:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)
        elif _is_dropped_in(frame):
            self._wait(signum)
        else:
            if signum == signal.SIGTERM:
                signal.signal(signum, signal.SIG_DFL)
            raise _RAISED[signal.Signals(signum)]

    def is_waiting(self, signum: int) -> bool:
        """Whether a signal came that was not raised yet."""
        return signum in self._waiting

    def show_unraisable(self, unraisable: Any) -> None:
        """Raise again what came in a callback, where Python drops it; show all else."""
        for signum, error in _RAISED.items():
            if unraisable.exc_type is error:
                self._wait(signum)
                return
        self._show_unraisable(unraisable)

    def _wait(self, signum: int) -> None:
        self._waiting.add(signum)
        threading.Thread(target=self._send_again, args=(signum,), daemon=True).start()

    def _send_again(self, signum: int) -> None:
        time.sleep(_POLL_S)
        while _is_dropped_in(sys._current_frames().get(self._main_thread)):
            time.sleep(_POLL_S)
        self._waiting.discard(signum)
        if hasattr(signal, "pthread_kill"):  # wakes the main thread, if it waits for something
            signal.pthread_kill(self._main_thread, signum)
        else:
            signal.raise_signal(signum)


def _is_dropped_in(frame: FrameType | None) -> bool:
    """Whether an exception would be dropped: in an import, or in the hook for what was dropped."""
    hook = _Signals.show_unraisable.__code__
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTING or frame.f_code is hook:
            return True
        frame = frame.f_back
    return False
