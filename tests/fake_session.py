"""A session without documents, model or torch: the real commands run on it in a moment.

`python tests/fake_session.py ask book.pdf "Who?"` shows the real screen; `FAKE_DELAY_S` is the
pause before each event.
"""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from indexmem_cli import events

MODEL = events.ModelInfo(
    id="indexmem-mini",
    revision="a1b2c3",
    quant="none",
    dtype="float32",
    device="cpu",
    window_tokens=2048,
)
COVERAGE = events.Coverage(
    tokens_total=412_380,
    tokens_read=412_380,
    files_read=1,
    files_skipped={},
    pages_total=620,
    pages_read=618,
    pages_without_text=("book.pdf p. 2", "book.pdf p. 4"),
)
SOURCES = (
    events.Source("book.pdf", 311, "299", 3, 5, 0.61, "the mill passes to\nAda's niece", holds=1.0),
    events.Source("book.pdf", 311, "299", 9, 9, 0.20, "her name was Ruth"),
    events.Source("notes.txt", None, None, 8123, 8130, 0.19, "the second will"),
)
ANSWER = events.Answer(
    text="The mill passes to Ruth.",
    sources=SOURCES,
    coverage=COVERAGE,
    memory=events.MemoryUse(
        policy="question",
        budget_tokens=1024,
        kv_tokens=1024,
        kv_bytes=4 << 20,
        full_kv_tokens=412_380,
        full_kv_bytes=1_689_108_480,
        process_peak_bytes=805_306_368,
        gpu_peak_bytes=None,
    ),
    timing=events.Timing(
        load_s=0.31,
        read_s=45.2,
        read_tokens_per_s=9_120.0,
        first_token_s=0.4,
        decode_tokens_per_s=38.0,
    ),
    model=MODEL,
    stop="end",
)
EVENTS: tuple[events.Event, ...] = (
    events.Loaded(MODEL, 0.31),
    events.Progress("book.pdf", 100_000, 0.25, 11.0),
    events.Progress("book.pdf", 412_380, 1.0, 45.2),
    events.Notice("the archive is read in bfloat16"),
    *(events.TokenText(text) for text in ("The mill", " passes to", " Ruth", ".")),
    ANSWER,
)
INGESTED = events.Ingested(
    memories=(events.Remembered("book.pdf", "a1f3c9d2e4b7", 412_380, 0, 9 << 20),),
    coverage=COVERAGE,
    read_s=45.2,
)
INSPECTION = events.Inspection(
    files=(
        events.FileReport("book.pdf", "pdf", 620, 412_000, 3_500_000),
        events.FileReport("notes.txt", "text", 0, 380, 1_900),
    ),
    coverage=COVERAGE,
    model="indexmem-mini",
    budget_tokens=1024,
    kv_bytes=4 << 20,
    full_kv_bytes=1_689_108_480,
    kv_bytes_per_token=4096,
)


@dataclass
class FakeSession:
    """Stands in for the module `indexmem_cli.session` and remembers how it was called."""

    script: tuple[events.Event, ...] = EVENTS
    inspection: events.Inspection = INSPECTION
    failure: BaseException | None = None
    """Raised in place of the last event, or of the inspection."""
    delay_s: float = 0.0
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)

    def ask(self, *args: Any, **options: Any) -> Iterator[events.Event]:
        """Yield the events, with a pause before each."""
        self.calls.append((args, options))
        for event in self.script[:-1] if self.failure else self.script:
            time.sleep(self.delay_s)
            yield event
        if self.failure:
            raise self.failure

    def ingest(self, *args: Any, **options: Any) -> Iterator[events.Event]:
        """Yield the events up to the end of reading, then what was ingested."""
        self.calls.append((args, options))
        yield from (e for e in self.script if isinstance(e, events.Loaded | events.Progress))
        if self.failure:
            raise self.failure
        yield INGESTED

    def inspect(self, *args: Any, **options: Any) -> events.Inspection:
        """Return the inspection."""
        self.calls.append((args, options))
        if self.failure:
            raise self.failure
        return self.inspection


class FakeConversation:
    """Stands in for `indexmem_cli.conversation` and what it opens: answers with a session's events.

    It tells what became of it on standard error, for tests that look at a process from outside.
    """

    LAST = ""

    def __init__(self, session: FakeSession) -> None:
        self.session = SimpleNamespace(id="5e55a0123456")
        self.store = SimpleNamespace(questions=lambda most: ["an earlier question"])
        self.num_turns, self.save_turns, self.remembered = 0, True, [INGESTED.memories[0]]
        self.fake = session
        self.asked: list[str] = []
        self.closed: bool | None = None

    def open_conversation(self, *args: Any, **options: Any) -> "FakeConversation":
        """Remember how it was called."""
        self.fake.calls.append((args, options))
        return self

    def start(self) -> Iterator[events.Event]:
        """The model is there at once."""
        yield events.Loaded(MODEL, 0.31)

    def ask(self, message: str, config: Any) -> Iterator[events.Event]:
        """Answer as the session does; whoever stops early is noted."""
        self.asked.append(message)
        self.num_turns += 1
        try:
            yield from self.fake.ask(message)
        except GeneratorExit:
            self.asked[-1] += " (stopped)"
            raise

    def add(self, sources: Any) -> Iterator[events.Event]:
        """Remember what is added."""
        self.asked.append(f"add {' '.join(sources)}")
        yield events.Loaded(MODEL, 0.31)

    def set_budget(self, tokens: int) -> Iterator[events.Event]:
        """Remember the budget."""
        self.asked.append(f"budget {tokens}")
        yield events.Loaded(MODEL, 0.31)

    def save(self) -> Any:
        """Save nothing."""
        return SimpleNamespace(id="a1f3c9d2e4b7")

    def clear(self) -> list[str]:
        """Forget nothing."""
        return []

    def close(self, save: bool = True) -> list[str]:
        """Note how it ended."""
        self.closed = save
        if "FAKE_TOLD" in os.environ:
            Path(os.environ["FAKE_TOLD"]).write_text(
                json.dumps({"asked": self.asked, "saved": save})
            )
        return []


def run_program() -> None:
    """Run the real program on a fake session.

    It answers `FAKE_TEXT` if that is set, and without an end if `FAKE_ENDLESS` is.
    """
    import indexmem_cli.__main__

    # Whoever runs the tests in the background hands down an ignored Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    session = FakeSession(delay_s=float(os.environ.get("FAKE_DELAY_S", "0")))
    if text := os.environ.get("FAKE_TEXT"):
        session.script = (events.TokenText(text), ANSWER)
    if "FAKE_ENDLESS" in os.environ:
        session.script = (*EVENTS[:4], *(events.TokenText("word ") for _ in range(100_000)), ANSWER)
    if pieces := os.environ.get("FAKE_PIECES"):
        session.script = (*map(events.TokenText, re.findall(r"\s*\S+|\s+$", pieces)), ANSWER)
    talk = FakeConversation(session)
    for name, fake in (("session", session), ("inspecting", session), ("conversation", talk)):
        sys.modules[f"indexmem_cli.{name}"] = fake  # type: ignore[assignment]
        setattr(indexmem_cli, name, fake)
    trainer = ModuleType("indexmem_cli.train.pretrain")
    trainer.train_base = lambda *_, **__: print("step 1")  # type: ignore[attr-defined]
    sys.modules[trainer.__name__] = trainer
    indexmem_cli.__main__.main()


if __name__ == "__main__":
    run_program()
