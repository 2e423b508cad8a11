"""Read many documents at once on a Ray cluster: one worker per GPU, else one per few CPU cores.

Documents and saved memories are files, which every node has to see under the same paths. A worker
that dies is started again, and its document goes on from the last checkpoint; the store's locks and
manifests see to it that every memory is whole and there once.
"""

import contextlib
import importlib.util
import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from indexmem_cli import session
from indexmem_cli.config import MemoryConfig, ModelConfig, ReadConfig, StoreConfig
from indexmem_cli.coverage import join_coverage
from indexmem_cli.errors import ConfigError, IndexMemError
from indexmem_cli.events import Event, Ingested, Notice, Progress
from indexmem_cli.fitting import settle_budget
from indexmem_cli.language_model import LanguageModel, load_language_model
from indexmem_cli.library import home

CPUS_PER_WORKER = 4
TRIES = 3
"""Workers that a document may lose before it is given up."""


def ingest(
    sources: Sequence[str],
    *,
    address: str,
    read: ReadConfig,
    memory: MemoryConfig,
    model: ModelConfig,
    store: StoreConfig,
) -> Iterator[Event]:
    """Read each source into a memory of its own, on a cluster's workers; ends with `Ingested`.

    Args:
        address: of a running cluster: `auto`, `HOST:PORT`, or `ray://HOST:PORT`.

    Raises:
        IndexMemError: the cluster cannot be used, or a source could not be read; the others are
            read all the same.
    """
    if "-" in sources:
        raise ConfigError("standard input cannot be read on a cluster", "name files instead")
    if model.device not in ("auto", "cpu", "cuda"):
        raise ConfigError(
            f"--device {model.device} is for one process, and a cluster has several",
            "leave --device out: each worker gets a GPU of its own",
        )
    session.open_to_ingest(sources, read=read, memory=memory, store=store)
    started = time.perf_counter()
    done: dict[int, Ingested] = {}
    failures: list[IndexMemError] = []
    with _connected(address) as ray:
        count, kind, what = _plan_workers(ray, len(sources), model, memory)
        yield Notice(f"{len(sources)} sources are read by {count} workers with {what} each")
        place = (str(Path.cwd()), str(home().absolute()))

        def start() -> Any:
            return kind.remote(place, memory, model, read)

        for index, result in _share_out(ray, start, count, sources, store):
            if isinstance(result, Notice):
                yield result
                continue
            if isinstance(result, IndexMemError):
                failures.append(result)
                yield Notice(result.message)
                continue
            notices, done[index] = result
            yield from notices
            tokens = sum(one.coverage.tokens_read for one in done.values())
            share, elapsed_s = len(done) / len(sources), time.perf_counter() - started
            yield Progress(sources[index], tokens, share, elapsed_s)
    if failures:
        saved = f"{len(done)} of {len(sources)} sources are saved"
        raise type(failures[0])(failures[0].message, failures[0].hint or saved)
    in_order = [done[index] for index in sorted(done)]
    yield Ingested(
        memories=tuple(memory for one in in_order for memory in one.memories),
        coverage=join_coverage([one.coverage for one in in_order]),
        read_s=time.perf_counter() - started,
    )


class _Worker:
    """A process of the cluster that holds the model and reads one document after the other."""

    def __init__(
        self, place: tuple[str, str], memory: MemoryConfig, model: ModelConfig, read: ReadConfig
    ) -> None:
        folder, os.environ["INDEXMEM_HOME"] = place
        os.environ["HF_HUB_OFFLINE"] = str(int(model.offline))
        os.chdir(folder)
        self._memory, self._model, self._read = memory, model, read
        self._engine: LanguageModel | None = None

    def is_up(self) -> bool:
        """Answer, once there is a process to do so."""
        return True

    def ingest(
        self, source: str, store: StoreConfig
    ) -> tuple[list[Notice], Ingested] | IndexMemError:
        """Read a source, or return why it could not be read."""
        try:
            if self._engine is None:
                self._memory, _ = settle_budget(self._memory, self._model)
                self._engine = load_language_model(self._model)
            events = session.ingest(
                [source],
                read=self._read,
                memory=self._memory,
                model=self._model,
                store=store,
                engine=self._engine,
            )
            notices = []
            for event in events:
                if isinstance(event, Notice):
                    notices.append(event)
                elif isinstance(event, Ingested):
                    return notices, event
        except IndexMemError as error:
            return error
        raise AssertionError("a reading ends with what was read")


class _OwnThread:
    """A stream that takes what one thread writes: Ray's own report failures on standard output."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._owner = stream, threading.get_ident()

    def write(self, text: str) -> int:
        is_own = threading.get_ident() == self._owner
        return self._stream.write(text) if is_own else len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Join the cluster for a while; yields the library."""
    if not importlib.util.find_spec("ray"):
        raise IndexMemError("ray is not installed", "pip install 'indexmem[ray]'")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with contextlib.redirect_stdout(_OwnThread(sys.stdout)):
        try:
            if address != "auto":  # Ray itself takes minutes to find nobody there
                host, _, port = address.rpartition("/")[2].rpartition(":")
                if not port.isdecimal():
                    raise ValueError("an address is auto, HOST:PORT or ray://HOST:PORT")
                socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
            import ray

            ray.init(address, log_to_driver=False, logging_level="error")
        except (ConnectionError, RuntimeError, ValueError, ImportError, OSError) as error:
            raise IndexMemError(
                f"no Ray cluster at {address} can be used: {_last_line(error)}",
                "start one: ray start --head; if it asks for a token: RAY_AUTH_MODE=token",
            ) from error
        try:
            yield ray
        finally:
            ray.shutdown()


def _plan_workers(
    ray: Any, most: int, model: ModelConfig, memory: MemoryConfig
) -> tuple[int, Any, str]:
    """Plan a worker per GPU, or per share of the CPU cores, but no more than `most`.

    Returns:
        Their number, the class to start, and what each of them has.

    Raises:
        ConfigError: each would take all free memory of a machine that several share.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(sum(node.get("GPU", 0) for node in nodes)) if model.device != "cpu" else 0
    cores = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    share = min([CPUS_PER_WORKER, *cores])
    count = min(most, gpus or sum(number // share for number in cores))
    if count == 0:
        raise IndexMemError("the Ray cluster has neither a GPU nor a CPU core")
    if memory.budget_tokens == "auto" and not gpus:
        raise ConfigError(
            "--budget auto needs a GPU for each worker; here they share a machine's memory",
            "name a number: indexmem models show says what a budget takes",
        )
    resources = {"num_gpus": 1} if gpus else {"num_cpus": share, "num_gpus": 0}
    what = "a GPU" if gpus else f"{share} CPU cores"
    return count, ray.remote(_Worker).options(**resources), what


def _share_out(
    ray: Any, start: Callable[[], Any], count: int, sources: Sequence[str], store: StoreConfig
) -> Iterator[tuple[int, Any]]:
    """Give each worker that is free the next source; yield what becomes of them, by index."""
    waiting, left, tries = deque(range(len(sources))), len(sources), [0] * len(sources)
    running: dict[Any, tuple[int | None, Any]] = {
        worker.is_up.remote(): (None, worker) for worker in (start() for _ in range(count))
    }
    while left:
        [ready], _ = ray.wait(list(running), num_returns=1)
        index, worker = running.pop(ready)
        try:
            result = ray.get(ready)
        except ray.exceptions.RayActorError as error:
            if index is None:
                raise IndexMemError(f"no worker could start: {_last_line(error)}") from error
            tries[index] += 1
            result = IndexMemError(
                f"{sources[index]}: {TRIES} workers died of it", "a lower --chunk takes less memory"
            )
            if tries[index] < TRIES:
                result = Notice(f"a worker died while it read {sources[index]}: another goes on")
                waiting.appendleft(index)
                left += 1
            worker = start()
            running[worker.is_up.remote()] = (None, worker)
        except ray.exceptions.RayError as error:
            source = "a worker" if index is None else sources[index]
            result = IndexMemError(f"{source}: {_last_line(error)}")
        if index is not None:
            left -= 1
            yield index, result
        if waiting and (None, worker) not in running.values():
            index = waiting.popleft()
            running[worker.ingest.remote(sources[index], store)] = (index, worker)


def _last_line(error: Exception) -> str:
    """The last line of what an error says: where a traceback has its reason."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
