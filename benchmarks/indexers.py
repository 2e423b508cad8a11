"""What is still known of a text when most of its cache is gone, by scorer: questions unseen.

python benchmarks/indexers.py --data DIR --adapters RUNS --quick     # every method, 10 texts
python benchmarks/indexers.py --data DIR --adapters RUNS --raw FILE  # the grid, to be resumed
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads sleep; read when torch loads

import math
import re
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain, groupby
from multiprocessing import get_context
from pathlib import Path
from time import monotonic

import numpy as np
import torch
from indexer_methods import (
    FAST_FILE,
    FULL,
    Oracle,
    add_memory,
    default_modes,
    fit_fast,
    kind_of,
    prepare_adapters,
    press_of,
    price,
    read_once,
    shares_of,
    split_mode,
)
from indexer_passes import SharedStart, answer_together
from indexer_rows import UNANSWERABLE, complete, summarise
from indexer_texts import TASKS, Ask, Text, Texts

from indexmem_cli.bench.presses import PressStream, make_press_stream
from indexmem_cli.bench.rows import (
    Row,
    append_row,
    common_fields,
    option_parser,
    print_table,
    read_rows,
    state_of_code,
)
from indexmem_cli.bench.scores import score_f1
from indexmem_cli.bench.variants import Shuffled
from indexmem_cli.checkpoint import find_checkpoint
from indexmem_cli.config import AnswerConfig, ModelConfig
from indexmem_cli.engine import Reader
from indexmem_cli.loading import load_backbone, load_prompt
from indexmem_cli.memory.adapter import hash_adapter, load_adapter
from indexmem_cli.memory.indexer import make_indexer_scorer
from indexmem_cli.memory.policies import make_scorer
from indexmem_cli.plan import Plan
from indexmem_cli.tokens import load_tiktoken
from indexmem_cli.train.data import Corpus, prepare

FRACTIONS = (0.125, 0.25, 0.0625, 0.5)
"""Parts of the cache, the most telling first, so that a run that is cut short says most."""
PORTIONS = 10
"""A tenth of every cell is measured before the next tenth."""
SAMPLES = 200
QUESTIONS = {"keys": 4, "single": 3, "squadshifts": 3, "chain": 2, "fairytaleqa": 2.1}
"""Asked of a text; of those not named, one."""
QUICK = {"tasks": "keys,squadshifts,prose", "fractions": "0.125", "count": 10}
MAX_ANSWER_TOKENS = 24
Job = tuple[str, int, float]
COLUMNS = ["task", "kept", "mode", "n", "documents", "score", "interval_95", "evidence_kept"]
COLUMNS += ["over_twin"]


class Bench:
    """One model reading texts under one scorer after the other."""

    def __init__(self, options: dict) -> None:
        torch.set_num_threads(options["threads"])
        self.options = options
        checkpoint = find_checkpoint(options["model"], offline=True)
        settings = ModelConfig(options["model"], dtype=options["dtype"], device=options["device"])
        self.backbone = SharedStart(load_backbone(checkpoint, settings))
        self.prompt = load_prompt(checkpoint)
        encoding = load_tiktoken(checkpoint.path)
        corpus = Corpus(Path(options["cache"]), encoding, "valid")
        self.encoding = encoding
        self.texts = Texts(corpus, Path(options["data"]), options["tokens"])
        self.text: tuple[tuple[str, int], Text] | None = None
        self.adapters = {
            name: load_adapter(Path(path), checkpoint.path, self.backbone.device)
            for name, path in options["adapters"].items()
        }
        self.fast = {}
        for name in {m.split("+")[0] for m in options["modes"] if "fast" in m}:
            train = Corpus(Path(options["cache"]), encoding, "train")
            file = Path(options["adapters"][name]).with_name(FAST_FILE)
            self.fast[name] = fit_fast(file, self.adapters[name], settings, train)
        self.done = {identity(row) for row in known(options["raw"])}

    def reader(self, mode: str, text: Text, fraction: float, closing: list[int] = ()) -> Reader:
        """A fresh reader of a method, as `indexer_methods` names them."""
        name, tables, memory = split_mode(mode)
        adapter = self.adapters.get(name.partition(":")[0])
        plan = self.plan(name, fraction, len(text.ids))
        slots = max(4, plan.budget_tokens // 32)
        if memory:
            size = self.backbone.kv_shapes[0][1]
            paid = price(kind_of(memory), slots, size, self.backbone.model.dtype.itemsize)
            plan = replace(plan, budget_tokens=plan.budget_tokens - paid)
        shares = shares_of(adapter, tables[0]) if tables else ()
        reader = Reader(self.backbone, plan, self.scorer(name, text), closing, shares)
        if memory:
            add_memory(reader, memory, slots, adapter, self.fast.get(name, ()))
        return reader

    def scorer(self, mode: str, text: Text):
        """A fresh scorer of that name."""
        name, _, twin = mode.partition(":")
        if name == "oracle":
            spans = [span for ask in text.asks for span in ask.evidence]
            return Oracle(spans, len(self.prompt.opening))
        if name in self.adapters:
            scorer = make_indexer_scorer(self.adapters[name].indexer)
        else:
            scorer = make_scorer("recency" if name == FULL else name)
        return Shuffled(scorer) if twin == "shuffled" else scorer

    def plan(self, mode: str, fraction: float, tokens: int) -> Plan:
        """The budget is that share of all tokens of the text; opening and sinks are part of it."""
        budget = tokens + 64 if mode == FULL else round(tokens * fraction)
        sinks = len(self.prompt.opening) + 4
        recent = min(64, budget // 8)
        window = self.backbone.info.window_tokens // 2  # as `make_plan` does it
        span = self.options["span"]
        return Plan(budget, self.options["chunk"], sinks, recent, span, budget, window)

    def run(self, task: str, number: int, fraction: float) -> Iterator[Row]:
        """Read one text under every scorer; yield what came of each, once."""
        same = {"task": task, "number": number, "kept": fraction}
        rows = [same | {"mode": m, "of": self.options["of"][m]} for m in self.options["modes"]]
        rows = [row for row in rows if self.is_wanted(row)]
        if not rows:
            return
        if self.text is None or self.text[0] != (task, number):
            self.text = (task, number), self.texts.make(task, number)
            self.backbone.forget()
        measure = self.measure_losses if task == "prose" else self.measure_answers
        measured = measure(self.text[1], [row["mode"] for row in rows], fraction)
        for row, found in zip(rows, measured, strict=True):
            yield row | found

    def is_wanted(self, row: Row) -> bool:
        """Whether there is such a thing, and it was not measured before."""
        again = row["mode"] == FULL and row["kept"] != self.options["fractions"][0]
        nothing = again or (row["task"], row["mode"]) in UNANSWERABLE
        return not nothing and identity(row) not in self.done

    def measure_losses(self, text: Text, modes: list[str], fraction: float) -> Iterator[Row]:
        """The loss over the second half of a text."""
        for mode in modes:
            if press := press_of(mode):
                losses = self.press(press, fraction, text).losses(text.ids)
                loss = float(np.mean(losses[len(text.ids) // 2 :]))
            else:
                loss = self.loss(text, self.reader(mode, text, fraction))
            yield {"scores": [loss], "evidence_kept": []}

    def measure_answers(self, text: Text, modes: list[str], fraction: float) -> list[Row]:
        """Scores of a text's questions, which all methods answer at once."""
        closings = [
            self.prompt.closing(self.encoding.encode_ordinary(ask.question)) for ask in text.asks
        ]
        readers, streams = [], []
        for mode in modes:
            if press := press_of(mode):
                stream = self.press(press, fraction, text)
                stream.read(text.ids)
                streams.append((mode, stream))
                continue
            # What knows the question reads the text for each.
            for closing in closings if mode == "question" else closings[:1]:
                reader = self.reader(mode, text, fraction, closing)
                for _ in self.take_in(reader, self.prompt.opening + text.ids):
                    pass
                readers.append((mode, closing, reader))
        found = {mode: {"scores": [], "evidence_kept": []} for mode in modes}
        config, stop = AnswerConfig(MAX_ANSWER_TOKENS), self.backbone.eos_ids
        together = [reader for *_, reader in readers]
        answers = answer_together(self.backbone, together, closings, MAX_ANSWER_TOKENS)
        for ask, closing, answer in zip(text.asks, closings, answers, strict=True):
            given = []
            for (mode, read_for, reader), ids in zip(readers, answer, strict=True):
                if mode != "question" or read_for is closing:
                    given.append((mode, ids))
                    found[mode]["evidence_kept"].append(self.evidence_kept(reader, ask))
            for mode, stream in streams:
                given.append((mode, stream.fork().write(closing, config, stop)))
            for mode, ids in given:
                said = self.encoding.decode(ids).strip()
                found[mode]["scores"].append(grade(text.task, said, ask))
        return [found[mode] for mode in modes]

    def press(self, name: str, fraction: float, text: Text) -> PressStream:
        """A stream under one of kvpress's scorers, of the same budget."""
        budget = round(len(text.ids) * fraction)
        model = Namespace(name=self.options["model"], backbone=self.backbone, prompt=self.prompt)
        once = len(self.prompt.opening + text.ids) if self.options["one_shot"] else None
        return make_press_stream(model, name, budget, self.options["chunk"], once)

    def take_in(self, reader: Reader, ids: list[int]) -> Iterator[int]:
        """Read in a stream, or with the whole cache and one compression at the end."""
        size = self.options["chunk"]
        if not self.options["one_shot"]:
            return reader.read(ids[first : first + size] for first in range(0, len(ids), size))
        # The first chunk is the short one: scorers that look at the last queries want them all.
        cuts = [0, *range(len(ids) % size or size, len(ids) + 1, size)]
        return read_once(reader, [ids[a:b] for a, b in zip(cuts, cuts[1:], strict=False)])

    def evidence_kept(self, reader: Reader, ask: Ask) -> float:
        """Share of an answer's evidence that is held, over all layers and heads."""
        shift = len(self.prompt.opening)
        shares = []
        for layer in reader.state.managed:
            places = layer.positions[..., : layer.held]
            for first, end in ask.evidence:
                inside = (places >= first + shift) & (places < end + shift)
                shares.append(float(inside.float().sum(-1).mean()) / (end - first))
        return float(np.mean(shares))

    @torch.no_grad()
    def loss(self, text: Text, reader: Reader) -> float:
        """Nats per token over the second half, each chunk read over what is kept before it.

        In one shot the first half is compressed once, and the memory kept to its budget after it.
        """
        half, size = len(text.ids) // 2, self.options["chunk"]
        start = half if self.options["one_shot"] else 0
        chunks = [text.ids[i : i + size] for i in range(start, len(text.ids), size)]
        passes = chain(self.take_in(reader, text.ids[:start]), reader.read(chunks))
        states = torch.cat([self.backbone.last_states for _ in passes])
        logits = self.backbone.model.get_output_embeddings()(states[half:-1]).float()
        truth = torch.tensor(text.ids[half + 1 :], device=logits.device)
        return float(torch.nn.functional.cross_entropy(logits, truth))


def grade(task: str, given: str, ask: Ask) -> float:
    """Needles: share of the values that stand in the answer; reading: word F1."""
    if task in ("squadshifts", "fairytaleqa"):
        return score_f1(given, list(ask.answers))
    return float(np.mean([answer.lower() in given.lower() for answer in ask.answers]))


def known(raw: Path | None) -> list[Row]:
    """What was measured before; nothing of code that differs from its commit."""
    return read_rows(raw) if raw and state_of_code()[1] is False else []


def identity(row: Row) -> tuple:
    """What a measurement is of: the same identity, the same result."""
    return tuple(row[name] for name in ("of", "task", "number", "mode", "kept"))


def order_jobs(
    tasks: Sequence[str], fractions: Sequence[float], first: int, count: int | None
) -> list[Job]:
    """Texts and fractions to measure, in portions that each hold a part of every cell.

    A text has its fractions one after the other, so that its start is read once for all.

    Args:
        first: number of the first text. count: texts of each task; None for `SAMPLES` questions.
    """
    texts = []
    for place, task in enumerate(tasks):
        num_texts = count or math.ceil(SAMPLES / QUESTIONS.get(task, 1))
        texts += [(i * PORTIONS // num_texts, i, place) for i in range(num_texts)]
    return [(tasks[place], first + i, f) for _, i, place in sorted(texts) for f in fractions]


def run_share(share: list[Job], options: dict) -> list[Row]:
    """Run some texts in a process of their own, until the time is up."""
    bench, rows, started, measured = Bench(options), [], monotonic(), 0
    for at, job in enumerate(share, 1):
        before = len(rows)
        for row in bench.run(*job):
            rows.append(row)
            if options["raw"]:
                append_row(options["raw"], row)
            if monotonic() > options["until"]:
                return rows
        measured += len(rows) > before
        if measured and at % 10 == 0:
            left = (monotonic() - started) / measured * (len(share) - at)
            print(f"{at:,} of {len(share):,}, {left / 60:,.0f} minutes left", file=sys.stderr)
    return rows


def parse(arguments: list[str] | None) -> Namespace:
    """Read the options."""
    parser = option_parser(__doc__.partition("\n")[0], "indexers", budget=False)
    add = parser.add_argument
    add("--data", type=Path, required=True)
    add("--cache", type=Path, help="token cache of a training run; default: that of --adapters")
    add("--adapters", type=Path, help="folder with an adapter of each form, trained where missing")
    add("--steps", type=int, default=1000, help="training steps of an adapter that is missing")
    add("--adapter", action="append", default=[], metavar="NAME=FILE")
    add("--tasks", default=",".join(TASKS))
    add("--modes", default=None, help="default: all, with their controls")
    add("--quick", action="store_true", help="ten texts of three tasks at 12.5 %%")
    add("--one-shot", action="store_true", help="read everything, then compress once: the paper's")
    add("--fractions", default=",".join(map(str, FRACTIONS)))
    add("--tokens", type=int, default=1024, help="length of a text")
    add("--count", type=int, help="texts of each task; default: those of 200 questions")
    add("--first", type=int, default=0, help="number of the first text")
    add("--span", type=int, default=17)
    add("--workers", type=int, default=1)
    add("--raw", type=Path, help="file that every measurement goes to, and is not repeated from")
    add("--minutes", type=float, default=float("inf"), help="stop after so long")
    parser.set_defaults(threads=1, chunk=128)
    options = parser.parse_args(arguments)
    for name, value in QUICK.items() if options.quick else ():
        setattr(options, name, value)
    if options.cache is None:
        if options.adapters is None:
            parser.error("--cache or --adapters is needed")
        options.cache = options.adapters / "shared" / "cache"
    return options


def measure_all(options: Namespace, adapters: dict[str, str], modes: list[str]) -> list[Row]:
    """Measure what is not measured yet; return all there is of these texts and scorers."""
    settings = {name: getattr(options, name) for name in ("model", "dtype", "device", "threads")}
    shape = ("tokens", "chunk", "span", "one_shot")
    settings |= {name: getattr(options, name) for name in (*shape, "raw")}
    settings |= {"data": str(options.data), "cache": str(options.cache), "adapters": adapters}
    settings |= {"modes": modes, "fractions": [float(f) for f in options.fractions.split(",")]}
    checkpoint = find_checkpoint(options.model, offline=True)
    # Here, not in the workers: they would all write the same files at the same time.
    prepare(options.data, options.cache, checkpoint.path)
    of = [*state_of_code(), checkpoint.revision, *(settings[n] for n in ("dtype", *shape))]
    hashes = {name: hash_adapter(Path(path)) for name, path in adapters.items()}
    settings["of"] = {
        mode: " ".join(map(str, [*of, hashes.get(re.split("[:+]", mode)[0], "")])) for mode in modes
    }
    settings["until"] = monotonic() + 60 * options.minutes
    if options.workers > 1 and any("fast" in mode for mode in modes):
        Bench(settings)  # so with the paper's memory, which is trained where it is missing
    before = known(options.raw)
    tasks = options.tasks.split(",")
    jobs = order_jobs(tasks, settings["fractions"], options.first, options.count)
    texts = [[*of_text] for _, of_text in groupby(jobs, key=lambda job: job[:2])]
    shares = [[*chain(*texts[i :: options.workers])] for i in range(options.workers)]
    run = partial(run_share, options=settings)
    if options.workers == 1:
        results = run(jobs)
    else:
        with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
            results = [row for share in pool.map(run, shares) for row in share]
    before = [
        row
        for row in before
        if row["of"] == settings["of"].get(row["mode"])
        and (row["task"], row["number"], row["kept"]) in jobs
    ]
    once = {identity(row): row for row in before + results}  # two runs may share a raw file
    return complete([*once.values()], modes)


def main(arguments: list[str] | None = None) -> None:
    """Measure all scorers on the same texts, append rows, print a table."""
    options = parse(arguments)
    adapters, added = dict(item.split("=", 1) for item in options.adapter), ""
    if options.adapters:
        trained = (options.model, options.data, options.steps, options.threads)
        adapters |= prepare_adapters(options.adapters, *trained)
        added = "shared"
    modes = options.modes.split(",") if options.modes else default_modes(adapters, added)
    if options.one_shot and "prose" in options.tasks and any(map(press_of, modes)):
        sys.exit("kvpress evicts nothing after its one shot: leave prose out of --tasks")
    results = measure_all(options, adapters, modes)
    said = common_fields(find_checkpoint(options.model, offline=True), options.device)
    said |= {"benchmark": "indexers", "threads": options.threads, "tokens": options.tokens}
    said |= {"chunk_tokens": options.chunk, "span_tokens": options.span, "dtype": options.dtype}
    said |= {"protocol": "one-shot" if options.one_shot else "streaming"}
    rows = list(summarise(results))
    for row in rows:
        append_row(options.out, said | row)
    print_table(sorted(rows, key=lambda r: (r["task"], -r["kept"], -r["score"])), COLUMNS)


if __name__ == "__main__":
    main()
