"""Run for long: does memory, or the number of open files, grow with reading, talking, serving?

python benchmarks/soak.py --tokens 5000000 --turns 10000 --requests 2000

A part that is stopped by Ctrl-C leaves its row too, of what was done until then.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads sleep; read when torch loads

import argparse
import contextlib
import gc
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import psutil
import torch

from indexmem_cli.bench.rows import RESULTS, ROOT, append_row, common_fields, print_table
from indexmem_cli.checkpoint import find_checkpoint
from indexmem_cli.config import (
    DEFAULT_MODEL,
    AnswerConfig,
    MemoryConfig,
    ModelConfig,
    StoreConfig,
)
from indexmem_cli.conversation import open_conversation
from indexmem_cli.documents import open_sources
from indexmem_cli.events import Answer, Notice, Progress
from indexmem_cli.session import Memory, ReadConfig

sys.path.insert(0, str(ROOT / "tests"))
from serving import bring, serve  # noqa: E402

COLUMNS = ["part", "n", "rss_early_mib", "rss_late_mib", "files_early", "files_late", "outcomes"]
CLIENTS = 32
EARLY = 0.2
"""By this share of the work everything is in place that will be kept."""


class Gauge:
    """Resident memory and open files of this process, early and late in some work."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._seen: list[tuple[float, int, int]] = []

    def note(self, share: float) -> None:
        """Look, at a share of the work that is done."""
        gc.collect()
        resident = self._process.memory_info().rss
        self._seen.append((share, resident, self._process.num_fds()))

    def note_if_due(self, share: float) -> None:
        """Look fifty times in all."""
        if int(share * 50) >= len(self._seen):
            self.note(share)

    def row(self) -> dict[str, Any]:
        """The highest early values and the last ones."""
        early = [seen for seen in self._seen if seen[0] <= EARLY] or self._seen[:1]
        return {
            "rss_early_mib": max(seen[1] for seen in early) >> 20,
            "rss_late_mib": self._seen[-1][1] >> 20,
            "files_early": max(seen[2] for seen in early),
            "files_late": self._seen[-1][2],
        }


def book(folder: Path, num_lines: int) -> Path:
    """Write a text of numbered lines, no two alike."""
    path = folder / "book.txt"
    with path.open("w", encoding="utf-8") as file:
        for i in range(num_lines):
            file.write(f"Line {i}: the mill of heir {i * 7919 % 100_003} passes to the next one.\n")
    return path


def read_on(model: ModelConfig, memory: MemoryConfig, folder: Path, tokens: int) -> dict[str, Any]:
    """Read so many tokens of one text, without saving."""
    gauge, seen = Gauge(), 0
    parts = [open_sources([str(book(folder, tokens // 12))], ReadConfig())]
    reading = Memory(parts, memory, model, ReadConfig(), StoreConfig(save=False)).ingest()
    with contextlib.suppress(KeyboardInterrupt), contextlib.closing(reading):
        for event in reading:
            if isinstance(event, Progress):
                seen = event.tokens_read
                gauge.note_if_due(seen / tokens)
                if seen >= tokens:
                    break
    gauge.note(1.0)
    return {"part": "reading", "n": seen, **gauge.row()}


def talk_on(model: ModelConfig, memory: MemoryConfig, folder: Path, turns: int) -> dict[str, Any]:
    """Say so many things, a fact and a question in turns, in one conversation that is saved."""
    gauge, outcomes = Gauge(), Counter()
    os.environ["INDEXMEM_HOME"] = str(folder)
    talk = open_conversation([], memory=memory, model=model)
    with contextlib.suppress(KeyboardInterrupt):
        for number in range(turns):
            heir = number // 2 * 7919 % 100_003
            said = f"Who has mill {heir}?" if number % 2 else f"Heir {number} has mill {heir}."
            config = AnswerConfig(max_tokens=4, temperature=0.7, seed=number)
            *_, answer = (e for e in talk.ask(said, config) if not isinstance(e, Notice))
            outcomes["answered"] += isinstance(answer, Answer)
            gauge.note_if_due(number / turns)
    gauge.note(1.0)
    outcomes["kept"] = len(talk.store.turns(talk.session.id))
    notices = talk.close()
    gauge.note(1.0)
    assert not notices, notices
    tokens = answer.memory.full_kv_tokens
    row = {"part": "chat", "n": outcomes["answered"], "tokens": tokens, **gauge.row()}
    return {**row, "outcomes": listed(outcomes)}


def serve_on(
    model: ModelConfig, memory: MemoryConfig, folder: Path, requests: int
) -> dict[str, Any]:
    """Let clients ask, leave, wait too little, send too much, and use wrong keys, all at once."""
    gauge, outcomes, lock = Gauge(), Counter(), threading.Lock()
    options = {"api_key": "right", "most_bytes": 100_000, "most_waiting": CLIENTS // 2}
    text = book(folder, 100).read_bytes()
    with serve(model, memory, **options) as address:
        right = {"Authorization": "Bearer right"}
        memory_id = bring(address, "book.txt", text, **right).json()["id"]

        def ask(client: httpx2.Client, is_left: bool = False) -> str:
            body = {
                "model": "any",
                "messages": [{"role": "user", "content": "Who has the mill?"}],
                "memories": [memory_id],
                "max_tokens": 200 if is_left else 4,
                "stream": is_left,
            }
            url = f"{address}/v1/chat/completions"
            if not is_left:
                return str(client.post(url, json=body, headers=right).status_code)
            with client.stream("POST", url, json=body, headers=right) as answer:
                next(answer.iter_bytes(), b"")
            return "left" if answer.status_code == 200 else str(answer.status_code)

        def send(client: httpx2.Client, data: bytes, key: str) -> str:
            url, headers = f"{address}/v1/memories?name=x.txt", {"Authorization": f"Bearer {key}"}
            return str(client.post(url, content=data, headers=headers).status_code)

        kinds: dict[str, Callable[[httpx2.Client], str]] = {
            "ask": ask,
            "leave": lambda client: ask(client, is_left=True),
            "too large": lambda client: send(client, b"x" * 200_000, "right"),
            "wrong key": lambda client: send(client, text, "wrong"),
            "not a text": lambda client: send(client, b"\0" * 999, "right"),
        }

        def run(number: int) -> None:
            kind = random.Random(number).choice((*kinds, "ask", "ask"))
            timeout = 0.05 if number % 29 == 0 else 120
            try:
                with httpx2.Client(timeout=timeout) as client:
                    found = kinds[kind](client)
            except httpx2.TimeoutException:
                found = "timed out"
            with lock:
                outcomes[f"{kind}: {found}"] += 1
                gauge.note_if_due(sum(outcomes.values()) / requests)

        ask(httpx2.Client(timeout=120))  # loads the model
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(run, range(requests)))
        for _ in range(600):  # the turns of those who left come to their end
            if ask(httpx2.Client(timeout=120)) == "200":
                break
            time.sleep(0.2)
        gauge.note(1.0)
    found = {**gauge.row(), "outcomes": listed(outcomes)}
    return {"part": "server", "n": requests, "clients": CLIENTS, **found}


def listed(outcomes: Counter[str]) -> list[str]:
    """What came of how many, by name."""
    return [f"{name} ×{number}" for name, number in sorted(outcomes.items())]


def parts_of(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Do one thing after the other."""
    model = ModelConfig(model=options.model, device="cpu", offline=True)
    memory = MemoryConfig(budget_tokens=128, chunk_tokens=128, policy="keydiff")
    works = (
        (read_on, options.tokens),
        (talk_on, options.turns),
        (serve_on, options.requests),
    )
    for work, number in works:
        if number:
            with tempfile.TemporaryDirectory() as name:
                started = time.monotonic()
                row = work(model, memory, Path(name), number)
                yield {**row, "seconds": round(time.monotonic() - started)}


def main(arguments: list[str] | None = None) -> None:
    """Run every part, append a row for each and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--tokens", type=int, default=5_000_000)
    parser.add_argument("--turns", type=int, default=10_000)
    parser.add_argument("--requests", type=int, default=2_000)
    parser.add_argument("--out", type=Path, default=RESULTS / "soak.jsonl")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    fields = common_fields(find_checkpoint(options.model), "cpu")
    rows = []
    for row in parts_of(options):
        rows.append({**fields, **row})
        append_row(options.out, rows[-1])
    print_table(rows, COLUMNS)


if __name__ == "__main__":
    main()
