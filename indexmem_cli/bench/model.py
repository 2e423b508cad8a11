"""Measures a model as the product uses it: what it finds, reads, refuses, and how fast.

Full and quantised weights answer the same questions in one run, so that their difference has an
interval of its own.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from math import log
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from indexmem_cli.bench import baselines, speed, tasks
from indexmem_cli.bench.reader import ModelReader, Reply
from indexmem_cli.bench.rows import Row, common_fields
from indexmem_cli.bench.scores import compare, refuses, score_exact, score_f1, sum_up
from indexmem_cli.bench.tasks import HeldOut, Question
from indexmem_cli.checkpoint import find_checkpoint
from indexmem_cli.config import DEFAULT_MODEL, ModelConfig
from indexmem_cli.errors import ConfigError
from indexmem_cli.events import Notice
from indexmem_cli.tokens import Tokenizer
from indexmem_cli.train.quantise import quantise
from indexmem_cli.train.tasks import make_blind_fact

FULL, SPEED = "full", "speed"
TEXT_TOKENS = 1024
READING_SETS = {"squadshifts": "SQuADShifts", "fairytaleqa": "FairytaleQA"}

Values = dict[tuple[str, str], list[Any]]
Scorer = Callable[[Question, Reply], float | bool | None]


@dataclass(frozen=True)
class BenchConfig:
    """What is measured, and how often."""

    model: str = DEFAULT_MODEL
    full: str | None = None
    """The full weights of a model that is stored quantised."""
    data: Path | None = None
    count: int = 300
    """Questions of each kind, at least 10."""
    lengths: tuple[int, ...] = (512, 1024, 2048, 4096)
    """Tokens of the texts that needles are hidden in, question included."""
    windows: int = 48
    """Windows of 1024 tokens of each kind of text."""
    repeats: int = 5
    """Times that each speed is measured."""
    threads: int = 2
    device: str = "cpu"
    seed: int = 0
    only: str = ""
    """How the names of the tasks that are measured begin; empty: all."""

    def wants(self, task: str) -> bool:
        """Whether a task is measured."""
        return task.lower().startswith(self.only.lower())


@dataclass(frozen=True)
class Task:
    """Questions of one kind, and what is counted of their answers (None: not of this one)."""

    name: str
    questions: list[Question]
    measures: dict[str, Scorer]


def contains(question: Question, reply: Reply) -> bool:
    """Whether the expected words stand in the answer."""
    return question.answers[0].lower() in reply.text.lower()


READING: dict[str, Scorer] = {
    "F1": lambda q, r: score_f1(r.text, q.answers),
    "exact match": lambda q, r: score_exact(r.text, q.answers),
    "wrongly refused": lambda q, r: refuses(r.text),
}
REFUSING: dict[str, Scorer] = {
    "rightly refused": lambda q, r: None if q.answers else refuses(r.text),
    "wrongly refused": lambda q, r: refuses(r.text) if q.answers else None,
}


def bench_model(config: BenchConfig) -> Iterator[Row | Notice]:
    """Yield a row for every measure of every form of the weights, then their differences.

    Raises:
        IndexMemError: a model cannot be found or loaded, or no task is named so.
    """
    torch.set_num_threads(config.threads)
    held_out = tasks.load_held_out(config.data)
    suite = make_suite(config, held_out)
    yield from what_is_missing(config, suite)
    values: dict[str, Values] = {}
    with tempfile.TemporaryDirectory() as folder:
        forms = find_forms(config, Path(folder))
        for form, model in forms.items():
            checkpoint = find_checkpoint(model, offline=True)
            shared = common_fields(checkpoint, config.device)
            shared |= {"model": Path(config.model).name, "benchmark": "model", "weights": form}
            shared |= {"weight_bytes": checkpoint.weight_bytes, "seed": config.seed}
            values[form] = {}
            for row in measure_form(config, model, suite, held_out, values[form]):
                yield shared | row
        for row in compare_forms(values):
            yield shared | row
        for row in measure_baselines(suite, held_out, config):
            yield shared | row


def find_forms(config: BenchConfig, folder: Path) -> dict[str, str]:
    """Return the forms of the weights: those named, or full ones and int8 made of them here."""
    stored = find_checkpoint(config.model, offline=True).stored_quant
    if stored:
        return ({FULL: config.full} if config.full else {}) | {stored: config.model}
    if find_spec("bitsandbytes") is None:
        return {FULL: config.model}
    quantise(config.model, folder / "int8", "int8")
    return {FULL: config.model, "int8": str(folder / "int8")}


def make_suite(config: BenchConfig, held_out: HeldOut) -> list[Task]:
    """Draw the questions of every task that there is data for."""
    count, seed, data = config.count, config.seed, config.data
    suite = []
    for length in config.lengths:
        needles = list(tasks.make_needles(held_out, length, count, seed))
        suite.append(Task(f"needle, {length} tokens", needles, {"accuracy": contains}))
    blind = list(tasks.make_needles(held_out, TEXT_TOKENS, count, seed, make_blind_fact))
    suite.append(Task(f"blind needle, {TEXT_TOKENS} tokens", blind, {"accuracy": contains}))
    absent = tasks.make_unanswerable(held_out, min(count, 200), seed)
    suite.append(Task("synthetic facts", absent, REFUSING))
    for name, title in READING_SETS.items():
        if data and (data / "qa" / "dev" / f"{name}.jsonl.xz").exists():
            pool = tasks.shuffle_reading(data, name, seed)
            given = pool[:count]
            mixed = tasks.mix_paragraphs(given, pool, seed)
            suite.append(Task(f"{title}, paragraph given", given, READING))
            suite.append(Task(f"{title}, ten paragraphs", mixed, READING))
    if data and (data / "qa" / "dev" / "clapnq.jsonl.xz").exists():
        suite.append(Task("ClapNQ", tasks.draw_unanswerable(data, min(count, 200), seed), REFUSING))
    names = [task.name for task in suite] + [SPEED, *(f"text, {s}" for s in held_out.corpus.arrays)]
    if not any(map(config.wants, names)):
        raise ConfigError(f"no task begins with {config.only!r}", f"one of: {'; '.join(names)}")
    return [task for task in suite if config.wants(task.name)]


def what_is_missing(config: BenchConfig, suite: list[Task]) -> Iterator[Notice]:
    """Say what is not measured, and what it would need."""
    names = {task.name.partition(",")[0] for task in suite}
    absent = sorted(filter(config.wants, {*READING_SETS.values(), "ClapNQ"} - names))
    if absent:
        where = f"{config.data} lacks their files" if config.data else "no --data is given"
        yield Notice(f"not measured: {', '.join(absent)}: {where}. Needed:\n{tasks.DATA_LAYOUT}")
    if find_checkpoint(config.model, offline=True).stored_quant and not config.full:
        yield Notice(f"{config.model} is stored quantised: --full FOLDER measures both forms")


def measure_form(
    config: BenchConfig, model: str, suite: list[Task], held_out: HeldOut, values: Values
) -> Iterator[Row]:
    """Measure one form of the weights; what each item scored is left in `values`."""
    reader = ModelReader(ModelConfig(model=model, device=config.device, offline=True))
    info = reader.model.backbone.info
    form = {"quant": info.quant, "dtype": info.dtype, "window_tokens": info.window_tokens}
    for task in suite:
        for row in measure_task(reader, task, values):
            yield form | row
    if config.wants(SPEED):
        for name, unit, row in measure_speed(config, model, reader):
            yield form | {"task": SPEED, "measure": name, "unit": unit} | row
    plain = reader.release()
    for source, texts in draw_texts(held_out, config).items():
        found = [bits_per_byte(plain, reader.model.tokenizer, text) for text in texts]
        values[f"text, {source}", "bits per byte"] = found
        row = {"task": f"text, {source}", "measure": "bits per byte", "unit": "bits"}
        yield form | row | sum_up(found) | {"origin": held_out.origin[source]}


def measure_speed(
    config: BenchConfig, model: str, reader: ModelReader
) -> Iterator[tuple[str, str, Row]]:
    """Measure rates of a loaded model, then a whole command; name, unit and row of each."""
    yield from speed.measure_rates(reader.model, config.repeats)
    repeats = min(3, config.repeats)
    yield from speed.measure_command(model, config.device, config.threads, repeats)


def measure_task(reader: ModelReader, task: Task, values: Values) -> Iterator[Row]:
    """Ask all questions of a task; one row for each measure."""
    replies = [reader.answer(question.text, question.question) for question in task.questions]
    pairs = list(zip(task.questions, replies, strict=True))
    streamed = sum(reply.streamed for reply in replies)
    for measure, score in task.measures.items():
        scored = [(q, value) for q, r in pairs if (value := score(q, r)) is not None]
        found = [value for _, value in scored]
        values[task.name, measure] = found
        row: Row = {"task": task.name, "measure": measure, "unit": "share"} | sum_up(found)
        if measure == "accuracy":
            depths = [[v for q, v in scored if q.depth == d] for d in range(tasks.NUM_DEPTHS)]
            row["by_depth"] = [round(sum(part) / max(1, len(part)), 3) for part in depths]
        yield row | {"streamed": streamed}


def draw_texts(held_out: HeldOut, config: BenchConfig) -> dict[str, list[str]]:
    """Draw windows of every held-out source."""
    corpus, drawn = held_out.corpus, {}
    for source in corpus.arrays:
        rng = Random(config.seed)
        windows = (corpus.window(rng, source, TEXT_TOKENS) for _ in range(config.windows))
        drawn[source] = [corpus.encoding.decode(ids) for ids in windows if len(ids) > 1]
    return {source: texts for source, texts in drawn.items() if config.wants(f"text, {source}")}


@torch.no_grad()
def bits_per_byte(model: PreTrainedModel, tokenizer: Tokenizer, text: str) -> float:
    """Return what a byte of the text costs the model, each token told from all before it."""
    window = model.config.get_text_config().max_position_embeddings
    ids = torch.tensor([tokenizer.encode(text)[:window]], device=model.device)
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits[0].float()
    loss: float = cross_entropy(logits, ids[0, 1:], reduction="sum").item() / log(2)
    return loss / len(tokenizer.decode(ids[0, 1:].tolist()).encode())


def compare_forms(values: dict[str, Values]) -> Iterator[Row]:
    """Say what quantising costs on the same items: full less quantised."""
    if len(values) < 2:
        return
    (_, full), (form, less) = values.items()
    for (task, measure), found in full.items():
        row = {"weights": f"{FULL} - {form}", "task": task, "measure": measure}
        unit = "bits" if measure == "bits per byte" else "share"
        yield row | {"unit": unit} | compare(found, less[task, measure])


def _first_of_kind(kind: str, question: Question) -> str:
    return baselines.first_of_kind(question.text, question.question, kind)


def measure_baselines(suite: list[Task], held_out: HeldOut, config: BenchConfig) -> Iterator[Row]:
    """Measure what is reached without a model on the same questions and texts."""
    for task in suite:
        if task.measures is not READING:
            continue
        answers = (answer for question in task.questions for answer in question.answers[:1])
        kind = baselines.most_frequent_kind(answers)
        given: dict[str, Callable[[Question], str]] = {
            "best sentence (BM25)": lambda q: baselines.best_sentence(q.text, q.question),
            f"first {kind}": partial(_first_of_kind, kind),
        }
        for name, answer in given.items():
            pairs = [(question, Reply(answer(question), False)) for question in task.questions]
            for measure in ("F1", "exact match"):
                scores = (READING[measure](*pair) for pair in pairs)
                found = [score for score in scores if score is not None]
                row = {"weights": name, "task": task.name, "measure": measure, "unit": "share"}
                yield row | sum_up(found)
    for source, texts in draw_texts(held_out, config).items():
        value = baselines.compressed_bits_per_byte([text.encode() for text in texts])
        row = {"weights": "xz", "task": f"text, {source}", "measure": "bits per byte"}
        yield row | {"unit": "bits", "value": round(value, 5), "n": len(texts)}
