"""What `bench quality` measures: cells of task, length, method and budget, and their samples."""

import itertools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from random import Random

# They make their tasks and methods known.
from indexmem_cli.bench import going_on, presses, qa, ruler, talks, variants  # noqa: F401
from indexmem_cli.bench.baselines import split_sentences
from indexmem_cli.bench.methods import Asked
from indexmem_cli.bench.rows import EXAMPLE_BOOK, Row, spread
from indexmem_cli.bench.scores import sum_up
from indexmem_cli.bench.suites import METHODS, SUITES, Draw, Sample, Task, names_of
from indexmem_cli.bench.tasks import text_of
from indexmem_cli.config import LEARNED, ModelConfig
from indexmem_cli.errors import ConfigError
from indexmem_cli.language_model import LanguageModel
from indexmem_cli.tokens import Tokenizer
from indexmem_cli.train.data import HELD_OUT_SHARD, read_held_out_books

WRITING_COST = 20
"""Time of a token that is written, in those of tokens that are read; about, on a CPU."""
ANSWER_TOKENS = 12
"""Of a usual answer; a task that measures something else writes all it may."""
LEAST_ROOM = 32
SPARE_TOKENS = 8
"""Tokens may be more where pieces meet than they are one by one."""


@dataclass(frozen=True)
class QualityConfig:
    """What to ask, in which ways."""

    model: ModelConfig
    suites: tuple[str, ...] = ("ruler",)
    """Names, or all."""
    tasks: tuple[str, ...] = ()
    """None: all of the suites that can be made of the data there is."""
    methods: tuple[str, ...] = ()
    """Names and groups. None: the main ones that the model can be asked by."""
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
    minutes: float | None = None
    """Stop after so long, and sum up what there is of every cell."""
    only_estimate: bool = False
    """Measure nothing but what the run would take."""


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

    @property
    def what(self) -> Task:
        """What is asked."""
        return SUITES[self.suite][self.task]

    @property
    def cost(self) -> int:
        """Work of a sample, in tokens read."""
        written = self.what.max_tokens
        return self.length + WRITING_COST * (
            written if self.what.run else min(ANSWER_TOKENS, written)
        )


def check_names(config: QualityConfig) -> None:
    """See that suites, tasks and methods are known.

    Raises:
        ConfigError: one is not.
    """
    suites = [name for name in config.suites if name != "all"]
    tasks = [task for name in suites or SUITES for task in SUITES.get(name, {})]
    for what, names, known in (("suite", suites, SUITES), ("task", config.tasks, tasks)):
        if unknown := [name for name in names if name not in known]:
            raise ConfigError(f"unknown {what}: {unknown[0]}", f"there are: {', '.join(known)}")
    names_of(config.methods)


def usable_methods(config: QualityConfig, model: LanguageModel) -> list[str]:
    """Return the methods asked for, without those of a group that cannot be had here.

    What needs an adapter needs one of the model; what needs kvpress needs that.
    """
    cannot = []
    if not model.backbone.reads_by_adapter:
        cannot.append(LEARNED)
    if not presses.is_installed():
        cannot.append(presses.PREFIX)
    return [
        name
        for name in names_of(config.methods)
        if name in config.methods or not name.startswith(tuple(cannot))
    ]


def load_prose(data: Path | None) -> tuple[list[str], str]:
    """Return sentences of books that nothing was trained on, and where they are from."""
    if data is None:
        if not EXAMPLE_BOOK.exists():
            raise ConfigError("there is no book to hide things in", "name one: --data DIR")
        text, origin = text_of(EXAMPLE_BOOK), EXAMPLE_BOOK.name
    else:
        shard = data / "prose" / HELD_OUT_SHARD
        if not shard.exists():
            raise ConfigError(f"no such file: {shard}", "leave --data out for the example book")
        text, origin = "\n\n".join(read_held_out_books(data)), shard.name
    paragraphs = (" ".join(part.split()) for part in text.split("\n\n"))
    return [s for part in paragraphs for s in split_sentences(part)], origin


def make_cells(config: QualityConfig, methods: Sequence[str], origin: str) -> Iterator[Cell]:
    """Go through all there is to measure, so that each length and task is complete early."""
    tasks = list(_wanted_tasks(config))
    for length, (suite, task), name in itertools.product(config.lengths, tasks, methods):
        if SUITES[suite][task].run and METHODS[name].open is None:
            continue  # it can only answer
        for budget in config.budgets if METHODS[name].uses_budget else (None,):
            tokens = budget if isinstance(budget, int) else round((budget or 1) * length)
            kept = None if budget is None else round(tokens / length, 4)
            place = (suite, task, length, name, kept, tokens)
            yield Cell(*place, config.chunk_tokens, config.seed, origin)


def _wanted_tasks(config: QualityConfig) -> Iterator[tuple[str, str]]:
    """Suite and task: those named, else all that there is data for."""
    for suite in SUITES if "all" in config.suites else config.suites:
        for task, what in SUITES[suite].items():
            if task in config.tasks or (
                not config.tasks and (config.data is not None or not what.needs_data)
            ):
                yield suite, task


@dataclass
class Samples:
    """Makes samples: the same ones for every method and budget."""

    model: LanguageModel
    prose: Sequence[str]
    data: Path | None
    held: dict[tuple[str, str, int], dict[int, Sample]] = field(default_factory=dict)

    def get(self, cell: Cell, number: int) -> Sample:
        """Return a sample of a cell."""
        key = (cell.suite, cell.task, cell.length)
        if key not in self.held:
            self.held = {key: {}}  # no others are held: texts may be long
        if number not in self.held[key]:
            self.held[key][number] = self._make(cell, number)
        return self.held[key][number]

    def _make(self, cell: Cell, number: int) -> Sample:
        prompt = self.model.prompt
        frame = len(prompt.opening) + len(prompt.closing([])) + SPARE_TOKENS
        room = cell.length - cell.what.max_tokens - frame
        if room < LEAST_ROOM:
            least = cell.length - room + LEAST_ROOM
            raise ConfigError(
                f"{cell.length:,} tokens are too few for {cell.task}", f"choose at least {least:,}"
            )
        rng = Random(f"{cell.task} {cell.length} {cell.seed} {number}")
        count = partial(_count, self.model.tokenizer)
        return cell.what.make(Draw(rng, room, count, self.prose, number, self.data))


def measure(model: LanguageModel, cell: Cell, sample: Sample) -> Row:
    """Measure one sample in one way."""
    task, method = cell.what, METHODS[cell.method]
    asked = Asked(sample.text, sample.question, task.max_tokens, cell.chunk_tokens, cell.budget)
    row: Row = {"depth": sample.depth, "tokens": len(model.tokenizer.encode(sample.text))}
    if task.run:
        found = task.run(model, method, asked, sample)
        return row | (found or {"score": None})
    reply = method.answer(model, asked)
    if reply is None:
        return row | {"score": None}
    row |= {"score": task.score(reply.text, sample.answers), "answer": reply.text}
    row |= {name: float(of(reply.text, sample.answers)) for name, of in task.beside.items()}
    return row | {name: getattr(reply, name) for name in ("kv_bytes", "read_s", "answer_s")}


def _count(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer.encode(text))


def summarise(cell: Cell, results: Sequence[Row]) -> Row:
    """Sum up the samples of a cell; without a value where the method cannot take them."""
    task = cell.what
    row: Row = {"tokens": round(statistics.mean(result["tokens"] for result in results))}
    if task.measure:
        row["measure"] = task.measure
    scores = [result["score"] for result in results]
    if None in scores:
        why = "the method cannot" if task.run else "longer than the model's window"
        return row | {"value": None, "note": why}
    row |= _sum_up(scores, task.measure is None)
    row |= {"kv_bytes": round(statistics.median(result["kv_bytes"] for result in results))}
    row |= {name: spread(result[name] for result in results) for name in ("read_s", "answer_s")}
    row["scores"] = [round(score, 4) for score in scores]
    known = {*row, *asdict(cell), "score", "number", "depth", "answer"}
    for name, first in results[0].items():
        values = [result[name] for result in results]
        if isinstance(first, list):
            row[name] = [round(statistics.mean(part), 4) for part in zip(*values, strict=True)]
        elif isinstance(first, float) and name not in known:
            found = _sum_up(values, True)
            row |= {name: found["value"], f"{name}_interval_95": found["interval_95"]}
    if all(result["depth"] is not None for result in results):
        row["depths"] = [round(result["depth"], 3) for result in results]
    return row


def _sum_up(scores: Sequence[float], can_be_shares: bool) -> Row:
    whole = can_be_shares and all(score in (0, 1) for score in scores)
    return sum_up([bool(score) for score in scores] if whole else scores)
