"""The second question of a long text that is saved: what is read again, and what it costs.

python benchmarks/second.py prose/*.jsonl.xz --tokens 500k --runs 5

Where INDEXMEM_HOME is set the memory stays there, and is not made again the next time.
"""

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path

from needles import cut
from recall import lines_of

from indexmem_cli.bench import rows
from indexmem_cli.checkpoint import find_checkpoint
from indexmem_cli.config import parse_size
from indexmem_cli.tokens import load_tokenizer

COLUMNS = ["tokens", "tokens_reused", "cores_used", "n", "process_s", "process_cpu_s", "load_s"]
COLUMNS += ["first_token_s", "first_word_s", "saved_bytes"]
QUESTIONS = ("Who lives in the house?", "Where does the road lead?", "What was said of the king?")


def command_of(source: Path, question: str, options: Namespace) -> list[str]:
    """What a user would type."""
    command = [sys.executable, "-m", "indexmem_cli", "ask", str(source), question]
    command += ["--model", options.model, "--dtype", options.dtype, "--device", options.device]
    return [*command, "--budget", str(options.budget), "--chunk", str(options.chunk), "--offline"]


def ask(source: Path, question: str, options: Namespace) -> rows.Row:
    """Ask in a process of its own, from its start to its end."""
    command = [*command_of(source, question, options), "--json"]
    before, started = os.times(), time.perf_counter()
    done = subprocess.run(command, capture_output=True, check=True)
    wall, after = time.perf_counter() - started, os.times()
    answer = json.loads(done.stdout)
    return {
        "process_s": wall,
        "process_cpu_s": sum(after[2:4]) - sum(before[2:4]),
        **answer["timing"],
        **answer["memories"][0],
    }


def wait_for_first_word(source: Path, question: str, options: Namespace) -> float:
    """Seconds from the start of the process to the first byte of its answer."""
    command, started = [*command_of(source, question, options), "-q"], time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        process.stdout.read(1)
        waited = time.perf_counter() - started
        process.stdout.read()
    return waited


def measure(source: Path, options: Namespace) -> rows.Row:
    """Read a text, then ask it again and again."""
    first = ask(source, QUESTIONS[0], options)
    turns = []
    for question, _ in zip(itertools.cycle(QUESTIONS), range(options.runs)):
        waited = wait_for_first_word(source, question, options)
        turns.append({**ask(source, question, options), "first_word_s": waited})
    spreads = ("process_s", "process_cpu_s", "load_s", "first_token_s", "first_word_s")
    return {
        "tokens": first["tokens"],
        "tokens_reused": min(turn["tokens_reused"] for turn in turns),
        "saved_bytes": turns[-1]["saved_bytes"],
        "read_s": round(first["read_s"], 1),
        "n": len(turns),
        **{name: rows.spread(turn[name] for turn in turns) for name in spreads},
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure once, append the row, print it."""
    parser = rows.option_parser(__doc__.partition("\n")[0], "second")
    parser.set_defaults(threads=2)
    add = parser.add_argument
    add("texts", nargs="+", help="texts, PDFs or .jsonl.xz files of at least --tokens tokens")
    add("--tokens", type=parse_size, default="500k")
    add("--runs", type=int, default=5)
    options = parser.parse_args(arguments)

    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))[: options.threads]
        os.sched_setaffinity(0, cores)  # of what is started here
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    checkpoint = find_checkpoint(options.model, offline=True)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "text.txt"
        text = cut(lines_of(options.texts), options.tokens, load_tokenizer(checkpoint.path))
        source.write_text(text, encoding="utf-8")
        os.environ.setdefault("INDEXMEM_HOME", str(Path(folder) / "home"))
        row = {"benchmark": "second", "cores_used": options.threads, "budget": options.budget}
        row |= {"chunk_tokens": options.chunk, **measure(source, options)}
    row = rows.common_fields(checkpoint, options.device) | row
    rows.append_row(options.out, row)
    rows.print_table([row], COLUMNS)


if __name__ == "__main__":
    main()
