"""What is still known of a text when most of its cache is gone, by scorer: questions unseen.

python benchmarks/indexers.py --data DIR --cache DIR --count 20
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads sleep; read when torch loads

from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from random import Random

import numpy as np
import torch

from indexmem_cli.bench.rows import Row, append_row, common_fields, option_parser, print_table
from indexmem_cli.bench.scores import score_f1
from indexmem_cli.checkpoint import find_checkpoint
from indexmem_cli.config import POLICIES, AnswerConfig, ModelConfig
from indexmem_cli.engine import Reader
from indexmem_cli.loading import load_backbone, load_prompt
from indexmem_cli.memory.adapter import load_adapter
from indexmem_cli.memory.indexer import make_indexer_scorer
from indexmem_cli.memory.latent import CentroidMemory
from indexmem_cli.memory.policies import make_scorer
from indexmem_cli.plan import Plan
from indexmem_cli.train.data import Corpus, prepare, read_records
from indexmem_cli.train.tasks import capitalise, fill, make_development_fact, make_kind_fact
from indexmem_cli.train.templates import DEVELOPMENT_KINDS

TASKS = ("single", "keys", "values", "chain", "squadshifts", "fairytaleqa", "prose")
FRACTIONS = (0.5, 0.25, 0.125, 0.0625)
FULL = "full"
LEARNED_VARIANTS = ("", ":shuffled", "+centroids", "+mixed")
MAX_ANSWER_TOKENS = 24
COLUMNS = ["task", "kept", "mode", "n", "documents", "score", "interval_95", "evidence_kept"]
COLUMNS += ["over_twin"]


@dataclass(frozen=True)
class Ask:
    """One question of a text."""

    question: str
    answers: tuple[str, ...]
    evidence: tuple[tuple[int, int], ...]
    """Tokens of the text [first, end) that hold the answer."""


@dataclass
class Text:
    """A text with what is asked of it afterwards; without questions its tokens are predicted."""

    task: str
    ids: list[int]
    asks: list[Ask] = field(default_factory=list)


class Texts:
    """Makes texts in wordings, of books and of question sets that nothing was trained on."""

    def __init__(self, corpus: Corpus, data: Path, tokens: int) -> None:
        self.corpus, self.data, self.tokens = corpus, data, tokens
        self.encode = corpus.encoding.encode_ordinary
        self._passages: dict[str, list] = {}

    def make(self, task: str, number: int) -> Text:
        """Make text `number` of a task: the same whenever it is asked for."""
        rng = Random(f"{task} {number}")
        if task == "prose":
            return Text(task, self.corpus.packed(rng, "prose", self.tokens))
        if task in ("squadshifts", "fairytaleqa"):
            return self._reading(task, rng)
        return self._needles(task, *getattr(self, f"_{task}")(rng))

    def _single(self, rng: Random):
        fact = make_development_fact(rng)
        turn = rng.choice(fact.turns)
        return rng, list(fact.sentences), [(turn.question, (turn.answer,), (0,))]

    def _keys(self, rng: Random):
        kinds, facts, known = (rng.choice(DEVELOPMENT_KINDS),), [], set()
        while len(facts) < 4:
            fact = make_kind_fact(rng, kinds, with_article=False)
            turn = rng.choice(fact.turns)
            if turn.question not in known:
                known.add(turn.question)
                facts.append((fact.sentences[0], turn))
        asked = [(t.question, (t.answer,), (i,)) for i, (_, t) in enumerate(facts)]
        return rng, [sentence for sentence, _ in facts], asked

    def _values(self, rng: Random):
        person: dict[str, str] = {}
        things = []
        while len(things) < 3:
            values = dict(person)
            sentence = fill(rng, "Among the goods of {person} is the {thing}.", values)
            person = {"person": values["person"]}
            things.append((sentence, values["thing"]))
        question = fill(rng, "Name the goods of {person}.", person)
        answers = tuple(thing for _, thing in things)
        return rng, [sentence for sentence, _ in things], [(question, answers, (0, 1, 2))]

    def _chain(self, rng: Random):
        values: dict[str, str] = {}
        first = fill(rng, "The keeper of the {thing} is {person}.", values)
        second = fill(rng, "{person} may be found in {place}.", values)
        question = fill(rng, "In what place may the keeper of the {thing} be found?", values)
        return rng, [first, second], [(question, (values["place"],), (0, 1))]

    def _needles(self, task: str, rng: Random, sentences: list[str], asked) -> Text:
        pieces = [self.encode(" " + capitalise(sentence)) for sentence in sentences]
        room = self.tokens - sum(map(len, pieces))
        prose = self.corpus.packed(rng, "prose", room)
        places = [0, *self.corpus.sentence_starts(prose)]
        if len(places) < len(pieces):  # a text without sentences
            places = range(len(prose))
        chosen = sorted(rng.sample(places, len(pieces)))
        order = list(range(len(pieces)))
        rng.shuffle(order)
        ids, spans, last = [], {}, 0
        for place, i in zip(chosen, order, strict=True):
            ids += prose[last:place]
            spans[i] = (len(ids), len(ids) + len(pieces[i]))
            ids += pieces[i]
            last = place
        ids += prose[last:]
        asks = [Ask(q, answers, tuple(spans[i] for i in of)) for q, answers, of in asked]
        return Text(task, ids, asks)

    def _reading(self, name: str, rng: Random) -> Text:
        passages = self.passages(name)
        chosen = rng.sample(passages, 40)
        gold, records = next(p for p in chosen if len(self.encode(p[0])) < self.tokens // 2)
        parts = [gold]
        left = self.tokens - len(self.encode("\n" + gold + "\n"))
        for other, _ in chosen:
            size = len(self.encode("\n" + other + "\n"))
            if other != gold and size <= left:
                parts.append(other)
                left -= size
        rng.shuffle(parts)
        ids, span = [], (0, 0)
        for part in parts:
            fresh = self.encode("\n" + part + "\n")
            if part == gold:
                span = (len(ids), len(ids) + len(fresh))
            ids += fresh
        asks = []
        for record in rng.sample(records, min(3, len(records))):
            near = _answer_tokens(self.encode, gold, record["answers"], span)
            asks.append(Ask(record["question"], tuple(record["answers"]), (near,)))
        return Text(name, ids, asks)

    def passages(self, name: str) -> list:
        """Passages of a development set, each with its answerable questions."""
        if name not in self._passages:
            folder = self.data / "qa" / "dev"
            documents = {r["doc_id"]: r["text"] for r in read_records(folder / "docs.jsonl.xz")}
            grouped = defaultdict(list)
            for record in read_records(folder / f"{name}.jsonl.xz"):
                if not record["answerable"]:
                    continue
                text = record.get("context") or documents[record["doc_id"]]
                if record.get("evidence") and "doc_id" in record:
                    spans = record["evidence"]
                    text = text[min(s for s, _ in spans) : max(e for _, e in spans)]
                grouped[text].append(record)
            self._passages[name] = sorted(grouped.items())
        return self._passages[name]


def _answer_tokens(encode, gold: str, answers: Sequence[str], span: tuple[int, int]):
    """The tokens around an answer's place in its passage; the whole passage if it has none."""
    place = next((gold.find(a) for a in answers if a in gold), -1)
    if place < 0:
        return span
    start = span[0] + len(encode("\n" + gold[:place]))
    return max(span[0], start - 24), min(span[1], start + 24)


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

    def reader(self, mode: str, text: Text, fraction: float, closing: list[int] = ()) -> Reader:
        """A fresh reader: scorer, `:shuffled` for its twin, `+centroids` for a latent memory.

        The memory's slots are taken out of the budget. `+mixed` is its twin: each cluster has the
        mean value of another.
        """
        name, _, memory = mode.partition("+")
        plan = self.plan(name, fraction, len(text.ids))
        slots = max(8, plan.budget_tokens // 8) if memory else 0
        plan = replace(plan, budget_tokens=plan.budget_tokens - slots)
        reader = Reader(self.backbone, plan, self.scorer(name, text), closing)
        for layer in reader.state.managed if memory else ():
            layer.latent = {"centroids": CentroidMemory, "mixed": Mixed}[memory](slots)
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
        """Read one text under every scorer and budget; yield what came of each."""
        text = self.texts.make(task, number)
        for fraction in self.options["fractions"]:
            for mode in self.options["modes"]:
                if mode == FULL and fraction != self.options["fractions"][0]:
                    continue
                if task == "prose" and mode in ("oracle", "question"):
                    continue
                row = {"task": task, "number": number, "mode": mode, "kept": fraction}
                yield row | self.measure(text, mode, fraction)

    def measure(self, text: Text, mode: str, fraction: float) -> Row:
        """Scores of one text's questions, or the loss over its second half."""
        if text.task == "prose":
            loss = self.loss(text, self.reader(mode, text, fraction))
            return {"scores": [loss], "evidence_kept": None}
        scores, kept, reader = [], [], None
        for ask in text.asks:
            closing = self.prompt.closing(self.encoding.encode_ordinary(ask.question))
            if reader is None or mode == "question":  # it reads anew for every question
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


def run_share(share: list[tuple[str, int]], options: dict) -> list[Row]:
    """Run some texts in a process of their own."""
    bench = Bench(options)
    return [row for task, number in share for row in bench.run(task, number)]


def bootstrap(by_document: Sequence[Sequence[float]], draws: int = 2000) -> tuple[float, float]:
    """The 95 % interval of a mean over questions, drawing whole documents."""
    sums = np.array([[sum(scores), len(scores)] for scores in by_document], dtype=float)
    picks = np.random.default_rng(0).integers(len(sums), size=(draws, len(sums)))
    totals = sums[picks].sum(axis=1)
    return tuple(float(x) for x in np.quantile(totals[:, 0] / totals[:, 1], (0.025, 0.975)))


def twin_of(mode: str) -> str | None:
    """The control of a scorer or of a memory."""
    if mode.endswith("+centroids"):
        return mode.replace("+centroids", "+mixed")
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
    parser.set_defaults(threads=1, chunk=128)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure all scorers on the same texts, append rows, print a table."""
    options = parse(arguments)
    adapters = dict(item.split("=", 1) for item in options.adapter)
    modes = options.modes.split(",") if options.modes else default_modes(adapters)
    settings = {name: getattr(options, name) for name in ("model", "dtype", "device", "threads")}
    settings |= {name: getattr(options, name) for name in ("tokens", "chunk", "span")}
    settings |= {"data": str(options.data), "cache": str(options.cache), "adapters": adapters}
    settings |= {"modes": modes, "fractions": [float(f) for f in options.fractions.split(",")]}
    numbers = range(options.first, options.first + options.count)
    jobs = [(task, number) for number in numbers for task in options.tasks.split(",")]
    shares = [jobs[i :: options.workers] for i in range(options.workers)]
    run = partial(run_share, options=settings)
    if options.workers == 1:
        results = run(jobs)
    else:
        with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
            results = [row for share in pool.map(run, shares) for row in share]
    said = common_fields(find_checkpoint(options.model, offline=True), options.device)
    said |= {"benchmark": "indexers", "threads": options.threads, "tokens": options.tokens}
    said |= {"chunk_tokens": options.chunk, "span_tokens": options.span, "dtype": options.dtype}
    rows = list(summarise(results))
    for row in rows:
        append_row(options.out, said | row)
    print_table(sorted(rows, key=lambda r: (r["task"], -r["kept"], -r["score"])), COLUMNS)


if __name__ == "__main__":
    main()
