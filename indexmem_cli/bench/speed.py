"""How fast a model reads and answers here, and what the whole command costs in a new process."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

from indexmem_cli.bench.rows import Row, spread
from indexmem_cli.config import MemoryConfig
from indexmem_cli.engine import make_reader
from indexmem_cli.language_model import LanguageModel
from indexmem_cli.plan import make_plan

READ_TOKENS = 4096
DECODE_TOKENS = 64
PAGE = (
    "Minutes of the harbour board, 14 May 1931.\n"
    "The engineer reported that the north pier had lost nine stones in the gales of February, and "
    "that the lamp at its head burns badly. Mr Hollis asked what the repair would cost. The "
    "engineer named 412 pounds, of which the county pays half.\n"
    "The clerk read a letter from the fishermen's club, which asks for a second crane. It was "
    "agreed to hire one for the herring season and to decide in October.\n"
) * 4
QUESTION = "What would the repair of the pier cost?"


def measure_rates(model: LanguageModel, repeats: int) -> Iterator[tuple[str, str, Row]]:
    """Measure reading as `indexmem ask` reads, at the default budget, and decoding after it."""
    closing = model.prompt.closing(model.tokenizer.encode(QUESTION))
    memory, opening = MemoryConfig(), model.prompt.opening
    lengths = (len(opening), len(closing))
    window = model.backbone.info.window_tokens
    plan, _ = make_plan(memory, window, *lengths, model.answer_from_tokens)
    page = model.tokenizer.encode(PAGE)
    ids = [Random(0).choice(page) for _ in range(READ_TOKENS)]
    size = plan.chunk_tokens
    chunks = [ids[at : at + size] for at in range(0, READ_TOKENS, size)]
    read, decoded = [], []
    for _ in range(repeats + 1):
        engine = make_reader(model.backbone, plan, memory, closing)
        started = time.perf_counter()
        for _ in engine.read([opening, *chunks] if opening else chunks):
            pass
        read.append(READ_TOKENS / (time.perf_counter() - started))
        state = engine.state
        model.backbone.predict(closing, state)
        started = time.perf_counter()
        for token in page[:DECODE_TOKENS]:
            model.backbone.predict([token], state)
        decoded.append(DECODE_TOKENS / (time.perf_counter() - started))
    # The first round warms up.
    yield "reading", "tokens/s", _median(read[1:])
    yield "decoding", "tokens/s", _median(decoded[1:])


def measure_command(
    model: str, device: str, threads: int, repeats: int
) -> Iterator[tuple[str, str, Row]]:
    """Ask a text of one page in new processes: seconds to the first token, and peak memory."""
    seconds, peaks = [], []
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.txt"
        page.write_text(PAGE, encoding="utf-8")
        asked = [str(page), QUESTION, "--model", model, "--device", device]
        plain = ["--offline", "--no-stats", "--no-save"]  # so that every process reads the page
        command = [sys.executable, "-m", "indexmem_cli", "ask", *asked, *plain]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        for _ in range(repeats):
            started = time.perf_counter()
            run = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
            )
            assert run.stdout is not None, "it is piped"
            run.stdout.read(1)
            seconds.append(time.perf_counter() - started)
            run.stdout.read()
            _, status, usage = os.wait4(run.pid, 0)
            run.returncode = os.waitstatus_to_exitcode(status)
            run.stdout.close()
            if run.returncode:
                raise RuntimeError(f"indexmem ask ended with {run.returncode}")
            peaks.append(usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10))
    yield "first token of ask, new process, one page", "s", _median(seconds)
    yield "peak memory of ask, one page", "MiB", _median(peaks)


def _median(values: list[float]) -> Row:
    """Sum up repeats: the median, with the 20th and 80th percentile in the interval's place."""
    found = spread(values)
    return {
        "value": found["median"],
        "p20_p80": [found["p20"], found["p80"]],
        "n": len(values),
        "all": found["all"],
    }
