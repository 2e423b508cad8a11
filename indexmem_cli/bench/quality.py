"""`bench quality`: how many answers are right, by task, length, method and budget. Resumable."""

import math
import statistics
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from indexmem_cli.bench.cells import (
    Cell,
    QualityConfig,
    Samples,
    check_names,
    load_prose,
    make_cells,
    measure,
    summarise,
    usable_methods,
)
from indexmem_cli.bench.rows import Row, append_row, common_fields, read_rows
from indexmem_cli.checkpoint import find_checkpoint
from indexmem_cli.language_model import LanguageModel, load_language_model

FULL_COUNT = 200
FULL_SHARES = (0.5, 0.25, 0.125, 0.0625)
ROUNDS = (10, 20, 50, 100)
"""Samples that every cell has before any has more, so that a run that is stopped can be used."""
PROBED_FROM = 300
"""A run of so many samples says first what it will take: by one sample of each method."""

Identity = tuple[Any, ...]
"""What a measurement is of: the same identity, the same result."""
Job = tuple[Cell, int]
"""A sample to measure: its cell, and its number."""


@dataclass(frozen=True)
class Progress:
    """How far the run is."""

    left: int
    """Samples that are not measured yet."""
    total: int
    """With those that were measured before."""
    cell: Cell
    remaining_s: float


@dataclass(frozen=True)
class Estimate:
    """What is still to be done, by what was measured so far."""

    cells: int
    samples: int
    seconds: float
    by_task: dict[str, float]
    """Seconds of one sample, the mean over methods and budgets, by suite and task."""
    by_method: dict[str, float]
    """The same by method."""


@dataclass
class Pace:
    """How long samples take, by method."""

    seconds: dict[str, float] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)
    left: Counter[str] = field(default_factory=Counter)
    """Cost of the samples that are not measured yet."""

    @property
    def remaining_s(self) -> float:
        return sum(self.expect(method, cost) for method, cost in self.left.items() if cost)

    def add(self, cell: Cell, seconds: float) -> None:
        """Take note of a sample."""
        self.seconds[cell.method] = self.seconds.get(cell.method, 0.0) + seconds
        self.costs[cell.method] = self.costs.get(cell.method, 0.0) + cell.cost

    def expect(self, method: str, cost: float) -> float:
        """Return the seconds that a method will take for work of that cost."""
        if self.costs.get(method):
            return self.seconds[method] / self.costs[method] * cost
        return sum(self.seconds.values()) / (sum(self.costs.values()) or 1) * cost


@dataclass
class _Run:
    """What stays the same for all cells, and what there is of them."""

    config: QualityConfig
    model: LanguageModel
    fields: Row
    samples: Samples
    num_samples: int
    """Of all cells, with those that were measured before."""
    num_left: int = 0
    """Samples that are not measured yet."""
    written: set[Identity] = field(default_factory=set)
    """Rows that are there, with their n."""
    results: dict[Cell, dict[int, Row]] = field(default_factory=dict)
    pace: Pace = field(default_factory=Pace)

    def say(self, cell: Cell) -> Row:
        """What a row and a sample of a cell begin with."""
        return self.fields | asdict(cell)


def bench_quality(config: QualityConfig, out: Path | None) -> Iterator[Row | Progress | Estimate]:
    """Yield a row for each cell, and between them how far it is.

    All cells get as many samples as `ROUNDS` says before any gets more.

    Args:
        out: folder of `quality.jsonl`, which rows are appended to, and of `quality-partial.jsonl`,
            what there is of a run that was cut short. Cells and samples found there, of the same
            code and model, are not measured again.

    Raises:
        ConfigError: a suite, task or method is not known, or a budget cannot be kept.
    """
    import torch

    torch.set_num_threads(config.threads)
    check_names(config)
    model = load_language_model(config.model)
    prose, origin = load_prose(config.data)
    samples = Samples(model, prose, config.data)
    cells = list(make_cells(config, usable_methods(config, model), origin))
    run = _Run(config, model, describe(config, model), samples, len(cells) * config.count)
    rows, begun = (out and out / f"quality{part}.jsonl" for part in ("", "-partial"))
    yield from _take_up(run, cells, rows, begun)
    minutes = math.inf if config.minutes is None else config.minutes
    deadline = time.monotonic() + 60 * minutes
    probes, rest = _plan_jobs(run)
    in_time = yield from _run_jobs(run, probes, rows, begun, deadline)
    if probes and run.num_left == len(rest):  # also where the last probe took what time there was
        yield estimate(run, rest)
        if config.only_estimate:
            return
    if not (in_time and (yield from _run_jobs(run, rest, rows, begun, deadline))):
        yield from [_finish(run, c, rows) for c in list(run.results) if run.results[c]]
        return
    if begun:
        _forget(begun, {_identity(run.say(cell)) for cell in cells})


def _take_up(
    run: _Run, cells: Sequence[Cell], rows: Path | None, begun: Path | None
) -> Iterator[Row]:
    """Find what was measured before; yield the rows that are there."""
    finished, known = (
        [row for row in (read_rows(path) if path else []) if not row["dirty"]]
        for path in (rows, begun)
    )
    whole = {_identity(row): row for row in finished if row["n"] == run.config.count}
    run.written = {(*_identity(row), row["n"]) for row in finished}
    samples: dict[Identity, dict[int, Row]] = {}
    for row in known:
        measured = {name: value for name, value in row.items() if name not in run.fields}
        samples.setdefault(_identity(row), {})[row["number"]] = _cut_down(measured)
    for cell in cells:
        of = _identity(run.say(cell))
        if of in whole:
            yield whole[of]
            continue
        found = samples.get(of, {})
        run.results[cell] = {n: row for n, row in found.items() if n < run.config.count}
        for row in run.results[cell].values():
            run.pace.add(cell, row.get("read_s", 0.0) + row.get("answer_s", 0.0))
        if len(run.results[cell]) == run.config.count:
            yield _finish(run, cell, rows)


def order_jobs(results: dict[Cell, dict[int, Row]], count: int) -> Iterator[Job]:
    """Go through the samples that are missing, in rounds over all cells."""
    ends = [end for end in ROUNDS if end < count]
    for first, end in pairwise([0, *ends, count]):
        for cell, found in results.items():
            yield from ((cell, number) for number in range(first, end) if number not in found)


def _plan_jobs(run: _Run) -> tuple[list[Job], list[Job]]:
    """Return what is to be measured: of a long run first a sample of each method, then the rest."""
    todo = list(order_jobs(run.results, run.config.count))
    probes: dict[str, Job] = {}
    if len(todo) >= PROBED_FROM or run.config.only_estimate:
        probes = {cell.method: (cell, number) for cell, number in reversed(todo)}
    chosen = set(probes.values())
    rest = [job for job in todo if job not in chosen]
    for cell, _ in (*probes.values(), *rest):
        run.pace.left[cell.method] += cell.cost
    run.num_left = len(todo)
    return list(probes.values()), rest


def _run_jobs(
    run: _Run, jobs: Sequence[Job], rows: Path | None, begun: Path | None, deadline: float
) -> Generator[Row | Progress, None, bool]:
    """Measure samples, and sum up the cells that have all of theirs; say whether it was in time."""
    for cell, number in jobs:
        _measure_one(run, cell, number, begun)
        yield Progress(run.num_left, run.num_samples, cell, run.pace.remaining_s)
        if len(run.results[cell]) == run.config.count:
            yield _finish(run, cell, rows)
        if time.monotonic() > deadline:
            return False
    return True


def _measure_one(run: _Run, cell: Cell, number: int, begun: Path | None) -> None:
    """Measure a sample, and write it down."""
    started = time.monotonic()
    sample = run.samples.get(cell, number)
    result = measure(run.model, cell, sample)
    run.pace.add(cell, time.monotonic() - started)
    run.results[cell][number] = _cut_down(result)
    if begun:
        append_row(begun, run.say(cell) | {"number": number} | result)
    run.pace.left[cell.method] -= cell.cost
    run.num_left -= 1


def _cut_down(sample: Row) -> Row:
    """Leave out what a cell is not summed up from: there may be very many samples."""
    unwanted = {"answer", "number", *Cell.__dataclass_fields__}
    return {name: value for name, value in sample.items() if name not in unwanted}


def _finish(run: _Run, cell: Cell, rows: Path | None) -> Row:
    """Sum up a cell, and append its row."""
    results = [result for _, result in sorted(run.results.pop(cell).items())]
    row = run.say(cell) | {"n": len(results)} | summarise(cell, results)
    if rows and (*_identity(row), row["n"]) not in run.written:
        append_row(rows, row)
    return row


def estimate(run: _Run, todo: Sequence[Job]) -> Estimate:
    """Say what is left to do."""
    tasks: dict[str, list[float]] = {}
    methods: dict[str, list[float]] = {}
    for cell, _ in todo:
        seconds = run.pace.expect(cell.method, cell.cost)
        tasks.setdefault(f"{cell.suite} {cell.task}", []).append(seconds)
        methods.setdefault(cell.method, []).append(seconds)
    by_task, by_method = (
        {name: statistics.mean(found) for name, found in each.items()} for each in (tasks, methods)
    )
    seconds = sum(map(sum, tasks.values()))
    return Estimate(len({c for c, _ in todo}), len(todo), seconds, by_task, by_method)


def _forget(begun: Path, done: set[Identity]) -> None:
    """Take the samples of finished cells out of the file; the last one out takes the file."""
    left = [row for row in read_rows(begun) if _identity(row) not in done]
    begun.unlink(missing_ok=True)
    for row in left:
        append_row(begun, row)


def describe(config: QualityConfig, model: LanguageModel) -> Row:
    """Return what all rows say."""
    info = model.backbone.info
    checkpoint = find_checkpoint(config.model.model, config.model.offline)
    named: Row = {"benchmark": "quality", "dtype": info.dtype, "quant": info.quant}
    named |= {"kv_dtype": info.kv_dtype, "adapter": model.adapter_hash}
    return common_fields(checkpoint, config.model.device) | named


def tabulate(rows: Sequence[Row]) -> list[Row]:
    """Return a line for each suite, length, method and budget: scores by task, and their mean.

    Shares are written in percent.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        place = (row["suite"], row["length"], row["method"], row["kept"])
        groups.setdefault(place, []).append(row)
    lines = []
    for (suite, length, method, kept), found in groups.items():
        found = [row for row in found if row["value"] is not None]
        line: Row = {"suite": suite, "length": length, "method": method, "kept": kept}
        scale, digits = (1, 3) if any("measure" in row for row in found) else (100, 1)
        if found:
            line["kv_mib"] = round(statistics.mean(row["kv_bytes"] for row in found) / 2**20, 2)
            mean = statistics.mean(row["value"] for row in found)
            line["mean"] = round(scale * mean, digits)
        lines.append(line | {row["task"]: round(scale * row["value"], digits) for row in found})
    return lines


def _identity(row: Row) -> Identity:
    """What a row was measured of; outside of git the version says which code it was."""
    code = ("commit", "dirty", "version")
    model = ("revision", "dtype", "quant", "kv_dtype", "adapter", "gpu", "threads")
    return tuple(row.get(name) for name in (*code, *model, *Cell.__dataclass_fields__))
