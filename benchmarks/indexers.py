"""What is still known of a text when most of its cache is gone, by scorer: questions unseen.

python benchmarks/indexers.py --data DIR --cache DIR --count 20
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads sleep; read when torch loads

import re
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from time import monotonic

import numpy as np
import torch
from indexer_texts import TASKS, Ask, Text, Texts

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
from indexmem_cli.checkpoint import find_checkpoint
from indexmem_cli.config import POLICIES, AnswerConfig, ModelConfig
from indexmem_cli.engine import Reader
from indexmem_cli.loading import load_backbone, load_prompt
from indexmem_cli.memory.adapter import hash_adapter, load_adapter
from indexmem_cli.memory.indexer import make_indexer_scorer
from indexmem_cli.memory.latent import CentroidMemory
from indexmem_cli.memory.policies import make_scorer
from indexmem_cli.plan import Plan
from indexmem_cli.train.data import Corpus, prepare

FRACTIONS = (0.5, 0.25, 0.125, 0.0625)
FULL = "full"
UNANSWERABLE = {("prose", "oracle"), ("prose", "question")}
LEARNED_VARIANTS = ("", ":shuffled", "+centroids", "+mixed")
MAX_ANSWER_TOKENS = 24
COLUMNS = ["task", "kept", "mode", "n", "documents", "score", "interval_95", "evidence_kept"]
COLUMNS += ["over_twin"]


class Oracle:
    """Keeps the evidence of every question, then the most recent tokens."""

    needs_queries = needs_question = accumulates = False

    def __init__(self, spans: list[tuple[int, int]], offset: int) -> None:
        self.spans = [(first + offset, end + offset) for first, end in spans]

    def score(self, block):
        places = block.positions(0)[:, :1]
        score = places.float() / 1e6
        for first, end in self.spans:
            score = score + 1.0 * ((places >= first) & (places < end))
        return [score] * len(block.state.managed)


class Shuffled:
    """The control: the scores of the new tokens, each given to another of them."""

    def __init__(self, scorer, seed: int = 0) -> None:
        self.scorer, self.chance = scorer, torch.Generator().manual_seed(seed)

    def __getattr__(self, name):
        return getattr(self.scorer, name)

    def score(self, block):
        order, done = torch.randperm(block.new_tokens, generator=self.chance), {}
        scores = self.scorer.score(block)
        for score in scores:
            if id(score) not in done:
                mixed = score.clone()
                fresh = score[:, :, -block.new_tokens :]
                mixed[:, :, -block.new_tokens :] = fresh[:, :, order]
                done[id(score)] = mixed
        return [done[id(score)] for score in scores]


class Mixed(CentroidMemory):
    """The control of the memory: clusters with each other's mean values."""

    def means(self):
        """Mean keys, and mean values moved on by one among the live clusters."""
        keys, values = super().means()
        for row, count in zip(values.flatten(0, 1), self.count.flatten(0, 1), strict=True):
            live = count.nonzero()[:, 0]
            row[live] = row[live.roll(1)]
        return keys, values


LATENTS = {"centroids": CentroidMemory, "mixed": Mixed}


class Bench:
    """One model reading texts under one scorer after the other."""

    def __init__(self, options: dict) -> None:
        torch.set_num_threads(options["threads"])
        self.options = options
        checkpoint = find_checkpoint(options["model"], offline=True)
        settings = ModelConfig(options["model"], dtype=options["dtype"], device=options["device"])
        self.backbone = load_backbone(checkpoint, settings)
        self.prompt = load_prompt(checkpoint)
        encoding = prepare(
            Path(options["data"]), Path(options["cache"]), checkpoint.path, checkpoint.window_tokens
        )
        corpus = Corpus(Path(options["cache"]), encoding, "valid")
        self.encoding = encoding
        self.texts = Texts(corpus, Path(options["data"]), options["tokens"])
        self.adapters = {
            name: load_adapter(Path(path), checkpoint.path, self.backbone.device)
            for name, path in options["adapters"].items()
        }
        self.done = {identity(row) for row in read_rows(options["raw"])} if options["raw"] else {}

    def reader(self, mode: str, text: Text, fraction: float, closing: list[int] = ()) -> Reader:
        """A fresh reader: scorer, `:shuffled` for its twin, `+centroids` for a latent memory.

        The memory's slots are taken out of the budget. `+mixed` is its twin: each cluster has the
        mean value of another. `+budgets` splits the budget among the layers by the adapter's table,
        and its twin `+moved` by that of the next layer.
        """
        name, _, part = mode.partition("+")
        memory = part if part in LATENTS else ""
        plan = self.plan(name, fraction, len(text.ids))
        slots = max(8, plan.budget_tokens // 8) if memory else 0
        plan = replace(plan, budget_tokens=plan.budget_tokens - slots)
        reader = Reader(self.backbone, plan, self.scorer(name, text), closing)
        if part in ("budgets", "moved"):
            shares = self.adapters[name].shares
            reader.shares = shares if part == "budgets" else shares[1:] + shares[:1]
        for layer in reader.state.managed if memory else ():
            layer.latent = LATENTS[memory](slots)
        if memory and name in self.adapters and self.adapters[name].log_mass is not None:
            for layer, bias in zip(reader.state.managed, self.adapters[name].log_mass, strict=True):
                layer.latent.bias = bias
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
        window = self.backbone.info.window_tokens
        span = self.options["span"]
        return Plan(budget, self.options["chunk"], sinks, recent, span, budget, window)

    def run(self, task: str, number: int) -> Iterator[Row]:
        """Read one text under every scorer and budget; yield what came of each, once."""
        text = self.texts.make(task, number)
        for fraction in self.options["fractions"]:
            for mode in self.options["modes"]:
                if mode == FULL and fraction != self.options["fractions"][0]:
                    continue
                if (task, mode) in UNANSWERABLE:
                    continue
                row = {"task": task, "number": number, "mode": mode, "kept": fraction}
                row["of"] = self.options["of"][mode]
                if identity(row) not in self.done:
                    yield row | self.measure(text, mode, fraction)

    def measure(self, text: Text, mode: str, fraction: float) -> Row:
        """Scores of one text's questions, or the loss over its second half."""
        if text.task == "prose":
            loss = self.loss(text, self.reader(mode, text, fraction))
            return {"scores": [loss], "evidence_kept": None}
        scores, kept, reader = [], [], None
        for ask in text.asks[:1] if mode == "question" else text.asks:
            closing = self.prompt.closing(self.encoding.encode_ordinary(ask.question))
            if reader is None:
                reader = self.reader(mode, text, fraction, closing)
                for _ in reader.read([*self.chunks(self.prompt.opening + text.ids)]):
                    pass
            kept.append(self.evidence_kept(reader, ask))
            config = AnswerConfig(max_tokens=MAX_ANSWER_TOKENS)
            steps = reader.fork().answer(closing, config, self.backbone.eos_ids)
            given = self.encoding.decode([step.token_id for step in steps]).strip()
            scores.append(grade(text.task, given, ask))
        return {"scores": scores, "evidence_kept": float(np.mean(kept))}

    def chunks(self, ids: list[int]) -> Iterator[list[int]]:
        """Cut into chunks."""
        size = self.options["chunk"]
        return (ids[first : first + size] for first in range(0, len(ids), size))

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
        """Nats per token over the second half, each chunk read over what is kept before it."""
        states: list = []
        hook = self.backbone.decoder.register_forward_hook(
            lambda module, args, out: states.append(out.last_hidden_state[0])
        )
        for _ in reader.read(self.chunks(text.ids)):
            pass
        hook.remove()
        half = len(text.ids) // 2
        logits = self.backbone.model.get_output_embeddings()(torch.cat(states)[half:-1]).float()
        truth = torch.tensor(text.ids[half + 1 :], device=logits.device)
        return float(torch.nn.functional.cross_entropy(logits, truth))


def grade(task: str, given: str, ask: Ask) -> float:
    """Needles: share of the values that stand in the answer; reading: word F1."""
    if task in ("squadshifts", "fairytaleqa"):
        return score_f1(given, list(ask.answers))
    return float(np.mean([answer.lower() in given.lower() for answer in ask.answers]))


def identity(row: Row) -> tuple:
    """What a measurement is of: the same identity, the same result."""
    return tuple(row[name] for name in ("of", "task", "number", "mode", "kept"))


def run_share(share: list[tuple[str, int]], options: dict) -> list[Row]:
    """Run some texts in a process of their own, until the time is up."""
    bench, rows = Bench(options), []
    for task, number in share:
        for row in bench.run(task, number):
            rows.append(row)
            if options["raw"]:
                append_row(options["raw"], row)
            if monotonic() > options["until"]:
                return rows
    return rows


def complete(results: list[Row], modes: Sequence[str]) -> list[Row]:
    """Leave out texts that were not read under every scorer, budget by budget."""
    found = defaultdict(set)
    for row in results:
        found[row["task"], row["number"], row["kept"]].add(row["mode"])
    wanted = {
        task: {m for m in modes if m != FULL and (task, m) not in UNANSWERABLE}
        for task, _, _ in found
    }
    whole = {key for key, has in found.items() if wanted[key[0]] <= has}
    return [row for row in results if (row["task"], row["number"], row["kept"]) in whole]


def bootstrap(by_document: Sequence[Sequence[float]], draws: int = 2000) -> tuple[float, float]:
    """The 95 % interval of a mean over questions, drawing whole documents."""
    sums = np.array([[sum(scores), len(scores)] for scores in by_document], dtype=float)
    picks = np.random.default_rng(0).integers(len(sums), size=(draws, len(sums)))
    totals = sums[picks].sum(axis=1)
    return tuple(float(x) for x in np.quantile(totals[:, 0] / totals[:, 1], (0.025, 0.975)))


def twin_of(mode: str) -> str | None:
    """The control of a scorer or of a memory."""
    for part, twin in (("+centroids", "+mixed"), ("+budgets", "+moved")):
        if mode.endswith(part):
            return mode.replace(part, twin)
    return None if "+" in mode or ":" in mode else f"{mode}:shuffled"


def over_twin(found: list[Row], twin: list[Row]) -> list[float] | None:
    """Mean difference to the twin on the same questions, with its 95 % interval."""
    if not twin:
        return None
    pairs = zip(found, sorted(twin, key=lambda result: result["number"]), strict=True)
    apart = [[a - b for a, b in zip(x["scores"], y["scores"], strict=True)] for x, y in pairs]
    return [float(np.mean([d for document in apart for d in document])), *bootstrap(apart)]


def summarise(results: list[Row]) -> Iterator[Row]:
    """One row for each task, share kept and scorer."""
    cells = defaultdict(list)
    for result in results:
        cells[result["task"], result["kept"], result["mode"]].append(result)
    for (task, kept, mode), found in cells.items():
        found.sort(key=lambda result: result["number"])
        scores = [result["scores"] for result in found]
        flat = [score for document in scores for score in document]
        held = [r["evidence_kept"] for r in found if r["evidence_kept"] is not None]
        yield {
            "task": task,
            "kept": 1.0 if mode == FULL else kept,
            "mode": mode,
            "n": len(flat),
            "documents": len(found),
            "score": float(np.mean(flat)),
            "interval_95": bootstrap(scores),
            "evidence_kept": float(np.mean(held)) if held else None,
            "over_twin": over_twin(found, cells.get((task, kept, twin_of(mode)), [])),
            "results": [[round(score, 4) for score in document] for document in scores],
        }


def default_modes(adapters: dict[str, str]) -> list[str]:
    """Every training-free scorer, every adapter with its shuffled twin, and the bounds."""
    learned = [name + part for name in adapters for part in LEARNED_VARIANTS]
    return [FULL, "oracle", *(policy for policy in POLICIES if policy != "learned"), *learned]


def parse(arguments: list[str] | None) -> Namespace:
    """Read the options."""
    parser = option_parser(__doc__.partition("\n")[0], "indexers")
    add = parser.add_argument
    add("--data", type=Path, required=True)
    add("--cache", type=Path, required=True, help="token cache of a training run")
    add("--adapter", action="append", default=[], metavar="NAME=FILE")
    add("--tasks", default=",".join(TASKS))
    add("--modes", default=None, help="default: all, and of each adapter the shuffled twin")
    add("--fractions", default=",".join(map(str, FRACTIONS)))
    add("--tokens", type=int, default=1024, help="length of a text")
    add("--count", type=int, default=10, help="texts of each task")
    add("--first", type=int, default=0, help="number of the first text")
    add("--span", type=int, default=17)
    add("--workers", type=int, default=1)
    add("--raw", type=Path, help="file that every measurement goes to, and is not repeated from")
    add("--minutes", type=float, default=float("inf"), help="stop after so long")
    parser.set_defaults(threads=1, chunk=128)
    return parser.parse_args(arguments)


def measure_all(options: Namespace, adapters: dict[str, str], modes: list[str]) -> list[Row]:
    """Measure what is not measured yet; return all there is of these texts and scorers."""
    settings = {name: getattr(options, name) for name in ("model", "dtype", "device", "threads")}
    settings |= {name: getattr(options, name) for name in ("tokens", "chunk", "span", "raw")}
    settings |= {"data": str(options.data), "cache": str(options.cache), "adapters": adapters}
    settings |= {"modes": modes, "fractions": [float(f) for f in options.fractions.split(",")]}
    revision = find_checkpoint(options.model, offline=True).revision
    of = [*state_of_code(), revision, *(settings[n] for n in ("dtype", "tokens", "chunk", "span"))]
    hashes = {name: hash_adapter(Path(path)) for name, path in adapters.items()}
    settings["of"] = {
        mode: " ".join(map(str, [*of, hashes.get(re.split("[:+]", mode)[0], "")])) for mode in modes
    }
    settings["until"] = monotonic() + 60 * options.minutes
    before = read_rows(options.raw) if options.raw else []
    numbers = range(options.first, options.first + options.count)
    tasks = options.tasks.split(",")
    jobs = [(task, number) for number in numbers for task in tasks]
    shares = [jobs[i :: options.workers] for i in range(options.workers)]
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
        and (row["task"], row["number"]) in jobs
        and row["kept"] in settings["fractions"]
    ]
    once = {identity(row): row for row in before + results}  # two runs may share a raw file
    return complete([*once.values()], modes)


def main(arguments: list[str] | None = None) -> None:
    """Measure all scorers on the same texts, append rows, print a table."""
    options = parse(arguments)
    adapters = dict(item.split("=", 1) for item in options.adapter)
    modes = options.modes.split(",") if options.modes else default_modes(adapters)
    results = measure_all(options, adapters, modes)
    said = common_fields(find_checkpoint(options.model, offline=True), options.device)
    said |= {"benchmark": "indexers", "threads": options.threads, "tokens": options.tokens}
    said |= {"chunk_tokens": options.chunk, "span_tokens": options.span, "dtype": options.dtype}
    rows = list(summarise(results))
    for row in rows:
        append_row(options.out, said | row)
    print_table(sorted(rows, key=lambda r: (r["task"], -r["kept"], -r["score"])), COLUMNS)


if __name__ == "__main__":
    main()
