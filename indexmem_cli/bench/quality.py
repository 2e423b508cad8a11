"""`bench quality`: how many answers are right, by task, length, method and budget. Resumable."""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from random import Random

from indexmem_cli.bench import qa, ruler  # noqa: F401 - they make their tasks known
from indexmem_cli.bench.baselines import split_sentences
from indexmem_cli.bench.methods import Asked, usable_methods
from indexmem_cli.bench.rows import Row, append_row, common_fields, read_rows, spread
from indexmem_cli.bench.scores import sum_up
from indexmem_cli.bench.suites import METHODS, SUITES, Draw, Sample
from indexmem_cli.bench.tasks import EXAMPLES, text_of
from indexmem_cli.checkpoint import find_checkpoint
from indexmem_cli.config import ModelConfig
from indexmem_cli.errors import ConfigError
from indexmem_cli.language_model import LanguageModel, load_language_model
from indexmem_cli.tokens import Tokenizer
from indexmem_cli.train.data import NUM_VALIDATION_BOOKS, PROSE_SHARDS, read_records

FULL_COUNT = 200
FULL_SHARES = (0.5, 0.25, 0.125, 0.0625)
SPARE_TOKENS = 8
"""Tokens may be more where pieces meet than they are one by one."""


@dataclass(frozen=True)
class QualityConfig:
    """What to ask, in which ways."""

    model: ModelConfig
    suite: str = "ruler"
    tasks: tuple[str, ...] = ()
    """None: all of the suite."""
    methods: tuple[str, ...] = ()
    """None: all that the model can be asked by."""
    lengths: tuple[int, ...] = (1024,)
    """Tokens of a text with its prompt, question and answer."""
    budgets: tuple[int | float, ...] = (0.25,)
    """Tokens kept: numbers, or shares of the length."""
    count: int = 10
    """Samples of each task and length; the same ones for every method and budget."""
    chunk_tokens: int = 128
    threads: int = 1
    seed: int = 0
    data: Path | None = None
    """Folder of training with held-out books; None: the example book."""


@dataclass(frozen=True)
class Cell:
    """What one row is of."""

    suite: str
    task: str
    length: int
    method: str
    kept: float | None
    """The budget as a share of the length; None where the budget is not used."""
    budget: int
    chunk_tokens: int
    seed: int
    prose: str


@dataclass
class Progress:
    """How far the run is."""

    done: int
    total: int
    cell: Cell
    remaining_s: float


@dataclass
class _Run:
    """What stays the same for all cells."""

    config: QualityConfig
    model: LanguageModel
    fields: Row
    prose: Sequence[str]
    samples: dict[tuple[str, int], list[Sample]] = field(default_factory=dict)


def bench_quality(config: QualityConfig, out: Path | None) -> Iterator[Row | Progress]:
    """Yield a row for each cell, and between them how far it is.

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
    run = _Run(config, model, describe(config, model), prose)
    cells = list(make_cells(config, usable_methods(model), origin))
    rows, begun = (out and out / f"quality{part}.jsonl" for part in ("", "-partial"))
    finished, known = (
        {_identity(row): row for row in (read_rows(path) if path else []) if not row["dirty"]}
        for path in (rows, begun)
    )
    started, measured = time.monotonic(), 0
    for at, cell in enumerate(cells):
        said = run.fields | asdict(cell) | {"n": config.count}
        if (row := finished.get(_identity(said))) is not None:
            yield row
            continue
        results = []
        for number in range(config.count):
            key = said | {"number": number}
            if (result := known.get(_identity(key))) is None:
                result = key | measure(run, cell, number)
                measured += 1
                if begun:
                    append_row(begun, result)
            results.append(result)
            each = (time.monotonic() - started) / max(1, measured)
            left = (len(cells) - at) * config.count - number - 1
            done = at * config.count + number + 1
            yield Progress(done, len(cells) * config.count, cell, each * left)
        row = said | summarise(results)
        if rows:
            append_row(rows, row)
        yield row
    if begun:
        begun.unlink(missing_ok=True)


def check_names(config: QualityConfig) -> None:
    """See that suite, tasks and methods are known."""
    for what, names, known in (
        ("suite", (config.suite,), SUITES),
        ("task", config.tasks, SUITES.get(config.suite, {})),
        ("method", config.methods, METHODS),
    ):
        if unknown := [name for name in names if name not in known]:
            raise ConfigError(f"unknown {what}: {unknown[0]}", f"there are: {', '.join(known)}")


def load_prose(data: Path | None) -> tuple[list[str], str]:
    """Return sentences of books that nothing was trained on, and where they are from."""
    if data is None:
        book = EXAMPLES / "short-history-of-the-world.pdf"
        if not book.exists():
            raise ConfigError("there is no book to hide things in", "name one: --data DIR")
        text, origin = text_of(book), book.name
    else:
        shard = data / "prose" / f"{PROSE_SHARDS[-1]}.jsonl.xz"
        if not shard.exists():
            raise ConfigError(f"no such file: {shard}", "leave --data out for the example book")
        books = [record["text"] for record in read_records(shard)][-NUM_VALIDATION_BOOKS:]
        text, origin = "\n\n".join(books), shard.name
    paragraphs = (" ".join(part.split()) for part in text.split("\n\n"))
    return [s for part in paragraphs for s in split_sentences(part)], origin


def describe(config: QualityConfig, model: LanguageModel) -> Row:
    """Return what all rows say."""
    info = model.backbone.info
    checkpoint = find_checkpoint(config.model.model, config.model.offline)
    named = {"benchmark": "quality", "dtype": info.dtype, "quant": info.quant}
    named |= {"kv_dtype": info.kv_dtype, "adapter": model.adapter_hash}
    return common_fields(checkpoint, config.model.device) | named


def make_cells(config: QualityConfig, methods: Sequence[str], origin: str) -> Iterator[Cell]:
    """Go through all there is to measure, so that each length and task is complete early."""
    for length in config.lengths:
        for task in config.tasks or SUITES[config.suite]:
            for name in config.methods or methods:
                for budget in config.budgets if METHODS[name].uses_budget else (None,):
                    tokens = budget if isinstance(budget, int) else round((budget or 1) * length)
                    kept = None if budget is None else round(tokens / length, 4)
                    place = (config.suite, task, length, name, kept, tokens)
                    yield Cell(*place, config.chunk_tokens, config.seed, origin)


def measure(run: _Run, cell: Cell, number: int) -> Row:
    """Ask one sample in one way."""
    task = SUITES[cell.suite][cell.task]
    if (key := (cell.task, cell.length)) not in run.samples:
        run.samples = {key: []}  # no others are held: texts may be long
    samples = run.samples[key]
    while len(samples) <= number:
        samples.append(make_sample(run, cell, len(samples)))
    sample = samples[number]
    asked = Asked(sample.text, sample.question, task.max_tokens, cell.chunk_tokens, cell.budget)
    reply = METHODS[cell.method].answer(run.model, asked)
    row: Row = {"depth": sample.depth, "tokens": len(run.model.tokenizer.encode(sample.text))}
    if reply is None:
        return row | {"score": None}
    row |= {"score": task.score(reply.text, sample.answers), "answer": reply.text}
    return row | {name: getattr(reply, name) for name in ("kv_bytes", "read_s", "answer_s")}


def make_sample(run: _Run, cell: Cell, number: int) -> Sample:
    """Make a sample: the same for every method and budget."""
    task, model = SUITES[cell.suite][cell.task], run.model
    frame = len(model.prompt.opening) + len(model.prompt.closing([])) + SPARE_TOKENS
    rng = Random(f"{cell.task} {cell.length} {cell.seed} {number}")
    room = cell.length - task.max_tokens - frame
    count = partial(_count, model.tokenizer)
    return task.make(Draw(rng, room, count, run.prose, number, run.config.data))


def _count(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer.encode(text))


def summarise(results: Sequence[Row]) -> Row:
    """Sum up the samples of a cell; without a score where its texts are too long for it."""
    row: Row = {"tokens": round(statistics.mean(result["tokens"] for result in results))}
    scores = [result["score"] for result in results]
    if None in scores:
        return row | {"value": None, "note": "longer than the model's window"}
    whole = all(score in (0, 1) for score in scores)
    row |= sum_up([bool(score) for score in scores] if whole else scores)
    row |= {"kv_bytes": round(statistics.median(result["kv_bytes"] for result in results))}
    row |= {name: spread(result[name] for result in results) for name in ("read_s", "answer_s")}
    row["scores"] = [round(score, 4) for score in scores]
    if all(result["depth"] is not None for result in results):
        row["depths"] = [round(result["depth"], 3) for result in results]
    return row


def tabulate(rows: Sequence[Row]) -> list[Row]:
    """Return a line for each length, method and budget: its scores by task, and their mean."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault((row["length"], row["method"], row["kept"]), []).append(row)
    lines = []
    for (length, method, kept), found in groups.items():
        found = [row for row in found if row["value"] is not None]
        line: Row = {"length": length, "method": method, "kept": kept}
        if found:
            line["kv_mib"] = round(statistics.mean(row["kv_bytes"] for row in found) / 2**20, 2)
            line["mean"] = round(100 * statistics.mean(row["value"] for row in found), 1)
        lines.append(line | {row["task"]: round(100 * row["value"], 1) for row in found})
    return lines


def _identity(row: Row) -> tuple:
    """What a measurement is of: the same identity, the same result; uncommitted code has none."""
    names = ("commit", "dirty", "revision", "dtype", "quant", "kv_dtype", "adapter", "gpu", "n")
    names += (*Cell.__dataclass_fields__, "number")
    return tuple(row.get(name) for name in names)
