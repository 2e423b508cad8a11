"""One thread that has the model to itself; requests wait their turn and none is lost."""

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from indexmem_cli.errors import IndexMemError

_END = object()


class Overloaded(IndexMemError):
    """More requests wait than the server lets wait."""


@dataclass
class _Job:
    """A request: what to run, and where its events go."""

    run: Callable[[], Generator[Any, None, None]]
    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)
    abandoned: threading.Event = field(default_factory=threading.Event)

    def tell(self, event: Any) -> None:
        """Hand an event to the request, from the worker's thread."""
        try:
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)
        except RuntimeError:  # the server is closing and its loop is gone
            self.abandoned.set()


class Worker:
    """Runs jobs one after the other, in the order they came."""

    def __init__(self, most_waiting: int) -> None:
        self._jobs: queue.Queue[_Job | None] = queue.Queue(most_waiting)
        self._is_closing = False
        self._thread = threading.Thread(target=self._work, name="indexmem-model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests whose turn has not come."""
        return self._jobs.qsize()

    async def events(
        self, run: Callable[[], Generator[Any, None, None]]
    ) -> AsyncGenerator[Any, None]:
        """Run a job when its turn comes, and yield its events; leaving early ends it.

        Raises:
            Overloaded: too many wait already.
            Exception: whatever the job raised.
        """
        job = _Job(run, asyncio.get_running_loop())
        try:
            self._jobs.put_nowait(job)
        except queue.Full as error:
            raise Overloaded("too many requests are waiting", "ask again in a while") from error
        try:
            while (event := await job.events.get()) is not _END:
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            job.abandoned.set()

    def close(self) -> None:
        """End the running job at its next event, then the thread."""
        self._is_closing = True
        while True:
            try:
                waiting = self._jobs.get_nowait()
            except queue.Empty:
                break
            if waiting is not None:
                waiting.abandoned.set()
        self._jobs.put(None)
        self._thread.join(timeout=10)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if job.abandoned.is_set():
                continue
            try:
                self._run(job)
            except BaseException as error:  # noqa: BLE001 (raised again where it is awaited)
                job.tell(error)
            job.tell(_END)

    def _run(self, job: _Job) -> None:
        with closing(job.run()) as events:
            for event in events:
                if job.abandoned.is_set() or self._is_closing:
                    return
                job.tell(event)
