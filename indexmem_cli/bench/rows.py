"""Rows of measurements: the fields that every row has, JSON lines on disk, tables for people.

A row names the hardware as the system does, and never a machine, a user or a path.
"""

import argparse
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from indexmem_cli import __version__
from indexmem_cli.checkpoint import Checkpoint
from indexmem_cli.config import DEFAULT_MODEL, parse_size

ROOT = Path(__file__).resolve().parents[2]
IN_CHECKOUT = (ROOT / "pyproject.toml").exists()
RESULTS = ROOT / "benchmarks" / "results"
EXAMPLES = ROOT / "examples"
EXAMPLE_BOOK = EXAMPLES / "short-history-of-the-world.pdf"
_MEASURED = ("indexmem_cli", "models", "benchmarks/*.py")  # what a number depends on

Row = dict[str, Any]


def common_fields(checkpoint: Checkpoint, device: str = "auto") -> Row:
    """Return what every row of a model says: `machine_fields`, and which model.

    Args:
        device: where the model ran, as torch names it; auto: the GPU if there is one.
    """
    model = {"model": Path(checkpoint.id).name, "revision": checkpoint.revision}
    return machine_fields(device) | model


def machine_fields(device: str = "auto") -> Row:
    """Return what every row says: when, which code, where, with which versions."""
    import torch
    import transformers

    commit, dirty = state_of_code()
    on_gpu = torch.cuda.is_available() if device == "auto" else device.startswith("cuda")
    return {
        "schema": 1,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit,
        "dirty": dirty,
        "version": __version__,
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **(_gpu() if on_gpu else {"gpu": None}),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def option_parser(description: str, benchmark: str, budget: bool = True) -> argparse.ArgumentParser:
    """Return a parser with the options that benchmarks of reading share.

    Args:
        budget: whether there is a --budget; without it, budgets are the benchmark's own matter.
    """
    parser = argparse.ArgumentParser(description=description)
    add = parser.add_argument
    add("--model", default=DEFAULT_MODEL)
    add("--dtype", default="auto")
    add("--device", default="auto")
    add("--threads", type=int, default=os.cpu_count())
    if budget:
        add("--budget", type=parse_size, default="1k")
    add("--chunk", type=parse_size, default="512")
    add("--out", type=Path, default=RESULTS / f"{benchmark}.jsonl")
    return parser


def parse_sizes(text: str) -> tuple[int, ...]:
    """Read numbers of tokens such as `16k,64k`; none in an empty text or in `none`."""
    return tuple(map(parse_size, parse_names(text.replace("none", ""))))


def parse_names(text: str) -> tuple[str, ...]:
    """Split a list such as `recall,full`."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def state_of_code() -> tuple[str | None, bool | None]:
    """Return the commit, and whether what is measured differs from it; None outside of git."""
    if not IN_CHECKOUT:
        return None, None
    try:
        commit = _git("rev-parse", "--short=12", "HEAD").strip()
        return commit, bool(_git("status", "--porcelain", "--", *_MEASURED))
    except (OSError, subprocess.CalledProcessError):
        return None, None


def folder_for(out: Path | None) -> Path | None:
    """Return where rows go: the folder that is named, else that of the checkout, else nowhere."""
    return out or (RESULTS if IN_CHECKOUT else None)


def of_newest(rows: list[Row]) -> list[Row]:
    """Return those of the weights that were measured last."""
    return [row for row in rows if row.get("revision") == rows[-1].get("revision")]


def matching(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """Return the rows whose fields are as wanted."""
    return [row for row in rows if all(row.get(name) == wanted[name] for name in wanted)]


def middle_run(rows: Iterable[Row], field: str = "above_model_bytes", **wanted: Any) -> Row | None:
    """Return, of the runs like the last one whose fields are as wanted, the middle one."""
    found = matching(rows, **wanted)
    alike = ("commit", "budget_tokens", "chunk_tokens")
    same = [row for row in found if all(row.get(n) == found[-1].get(n) for n in alike)]
    return sorted(same, key=lambda row: float(row[field]))[len(same) // 2] if same else None


def append_row(path: Path, row: Row) -> None:
    """Add a row to a file of JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file, oldest first; none where there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def print_table(rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Print the named fields of rows as a Markdown table; a field that is not there is empty."""
    lines = [list(columns), *([_cell(row.get(name)) for name in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    for line in lines:
        print("| " + " | ".join(map(str.ljust, line, widths)) + " |")


def spread(values: Iterable[float]) -> Row:
    """Sum up repeats of one measurement: median, p20, p80, and all of them as measured."""
    values = [float(f"{value:.5g}") for value in values]
    ordered = sorted(values)
    shares = {"median": 0.5, "p20": 0.2, "p80": 0.8}
    return {name: _quantile(ordered, at) for name, at in shares.items()} | {"all": values}


def wilson_interval(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Return the interval of a share, 95 % for z = 1.96. Source: Wilson 1927."""
    share, square = right / n, z * z / n
    middle = (share + square / 2) / (1 + square)
    reach = z / (1 + square) * (share * (1 - share) / n + square / (4 * n)) ** 0.5
    return max(0.0, middle - reach), min(1.0, middle + reach)


def count_right(results: Sequence[Row]) -> Row:
    """Sum up results that are `right` or not: how many of how many, and the share's interval."""
    n, right = len(results), sum(result["right"] for result in results)
    return {"n": n, "right": right, "accuracy": right / n, "interval_95": wilson_interval(right, n)}


def _quantile(ordered: list[float], at: float) -> float:
    """The value at a share of an ascending list, between neighbours in proportion."""
    low, part = divmod(at * (len(ordered) - 1), 1)
    high = min(int(low) + 1, len(ordered) - 1)
    return float(f"{ordered[int(low)] * (1 - part) + ordered[high] * part:.5g}")


def _cell(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(_cell, value))
    if isinstance(value, dict):  # a spread
        ends = f" ({_cell(value['p20'])}–{_cell(value['p80'])})" if len(value["all"]) > 1 else ""
        return _cell(value["median"]) + ends
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _git(*arguments: str) -> str:
    run = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(run, check=True, capture_output=True, text=True).stdout


def _cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _gpu() -> Row:
    """Name of the GPU, and what drives it."""
    import torch
    import triton

    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    name = torch.cuda.get_device_name()
    return {"gpu": name, "driver": driver, "cuda": torch.version.cuda, "triton": triton.__version__}
