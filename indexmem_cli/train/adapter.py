"""Trains the indexer of a model whose weights stay frozen.

A run lives in one folder: `cache/` (tokens), `checkpoint/`, `log.jsonl` and the finished
`adapter.safetensors`. The batch of a step depends on seed and step alone, so a resumed run repeats
the uninterrupted one.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from indexmem_cli.checkpoint import find_checkpoint
from indexmem_cli.config import ADAPTER_FILE, ModelConfig
from indexmem_cli.errors import IndexMemError
from indexmem_cli.loading import load_backbone
from indexmem_cli.memory.adapter import Adapter, hash_model, save_adapter
from indexmem_cli.memory.indexer import IndexerConfig, QueryIndexer, TokenIndexer, make_indexer
from indexmem_cli.train.data import Corpus, insist_on_tokenizer, prepare
from indexmem_cli.train.episodes import EpisodeMaker, Row
from indexmem_cli.train.loss import ATTENDED, distil_loss, reverse_kl, soft_gate, streaming_kl
from indexmem_cli.train.memory import calibrate_model
from indexmem_cli.train.state import forget_state, gather, load_state, save_state, scatter
from indexmem_cli.train.tasks import Fact, make_development_fact, make_fact
from indexmem_cli.train.teachers import Streaming, Whole, WholeModel, attention_labels, hide_evicted

MIX = {"facts": 0.38, "qa": 0.34, "natural": 0.16, "chat": 0.05, "code": 0.07}
KEEP_FRACTIONS = (0.5, 0.25, 0.125, 0.0625)
CHECKPOINT_STEPS = 25


@dataclass(frozen=True)
class AdapterRecipe:
    """Everything that decides a run, but model, data and seed."""

    form: str = "shared"
    group_layers: int = 1
    distil_steps: int = 1000
    """Steps on the states of the model with all its cache."""
    stream_steps: int = 0
    """Steps on the states of a stream under eviction, through the soft gate as well. Each costs
    five times as much; not yet shown to help, so none by default."""
    rows: int = 8
    length_tokens: int = 512
    """Length of most rows; every fourth step has half as many of twice the length."""
    lr: float = 2e-3
    warmup_steps: int = 20
    stream: Streaming = Streaming()
    gate_weight: float = 0.3
    """Weight of the end-to-end loss beside that of the labels."""

    @property
    def num_steps(self) -> int:
        """Steps of all stages; the paper's form is trained on labels alone."""
        return self.distil_steps + (0 if self.form == "query" else self.stream_steps)

    def shape_at(self, step: int) -> tuple[int, int]:
        """Rows, and their length in tokens."""
        if step % 4 == 3:
            return max(1, self.rows // 2), 2 * self.length_tokens
        return self.rows, self.length_tokens

    def lr_at(self, step: int) -> float:
        """Learning rate: warm-up, then a cosine down to a twentieth."""
        progress = step / max(1, self.num_steps)
        cosine = 0.05 + 0.95 * (1 + math.cos(math.pi * progress)) / 2
        return self.lr * min(1.0, (step + 1) / self.warmup_steps) * cosine


@dataclass
class Batch:
    """Rows of a document each, with questions and answers after it."""

    ids: Tensor
    ends: list[int]
    """Where the document of each row ends."""
    real: Tensor
    """Tokens that are no padding, bool [B, T]."""
    asking: Tensor
    """Tokens after the document, bool [B, T]."""
    answering: Tensor
    """Tokens from which an answer's next token is predicted, bool [B, T]."""

    def counted(self, sinks: int) -> Tensor:
        """Tokens that may be evicted, bool [B, T]."""
        places = torch.arange(self.ids.shape[1])
        return (places >= sinks) & (places < torch.tensor(self.ends)[:, None])


def make_batch(
    maker: EpisodeMaker, rng: Random, rows: int, length: int, held_out: bool = False
) -> Batch:
    """Draw rows whose questions come after the document."""
    ids: np.ndarray = np.full((rows, length), maker.pad, dtype=np.int64)
    real: np.ndarray = np.zeros((rows, length), dtype=bool)
    asking, answering = real.copy(), real.copy()
    ends: list[int] = []
    while len(ends) < rows:
        if held_out:
            row = _sparse_facts(maker, rng, length, make_development_fact)
        else:
            row = _training_row(maker, rng, length)
        end = _end_of_document(row.ids, maker.close)
        if end is None or len(row.ids) > length:
            continue
        i, size = len(ends), len(row.ids)
        ids[i, :size], real[i, :size] = row.ids, True
        asking[i, end:size] = True
        answering[i, : size - 1] = np.array(row.loss[1:]) > 0
        ends.append(end)
    marks = map(torch.from_numpy, (real, asking, answering))
    return Batch(torch.from_numpy(ids), ends, *marks)


def _training_row(maker: EpisodeMaker, rng: Random, length: int) -> Row:
    sort = rng.choices(tuple(MIX), tuple(MIX.values()))[0]
    if sort == "facts":
        return _sparse_facts(maker, rng, length, make_fact)
    return maker.makers[sort](rng, length)


def _sparse_facts(
    maker: EpisodeMaker, rng: Random, length: int, make: Callable[[Random], Fact]
) -> Row:
    """A few facts in much prose, all of them asked: what is not asked is not needed."""
    facts = [make(rng) for _ in range(rng.randint(1, max(2, length // 96)))]
    pieces = [tuple(maker.encode(" " + s)) for f in facts for s in f.sentences]
    turns = [turn for f in facts for turn in rng.sample(f.turns, min(len(f.turns), 2))]
    rng.shuffle(turns)
    return maker.compose(rng, pieces, turns, length)


def _end_of_document(ids: list[int], close: list[int]) -> int | None:
    for i in range(len(ids) - len(close)):
        if ids[i : i + len(close)] == close:
            return i
    return None


class Run:
    """One training run: the indexer, its optimizer, and the step they stand at."""

    def __init__(
        self, recipe: AdapterRecipe, model: WholeModel, maker: EpisodeMaker, out: Path, seed: int
    ) -> None:
        torch.manual_seed(seed)
        self.recipe, self.model, self.maker, self.out, self.seed = recipe, model, maker, out, seed
        shape = model.model.config.get_text_config()
        self.indexer = make_indexer(
            IndexerConfig(
                form=recipe.form,
                layers=model.managed,
                width=shape.hidden_size,
                kv_heads=shape.num_key_value_heads,
                heads=shape.num_attention_heads,
                head_size=model.decoder.layers[0].self_attn.head_dim,
                group_layers=recipe.group_layers,
            )
        ).to(model.device)
        self.trained = torch.nn.Module()
        self.trained.indexer = self.indexer
        self.trained.gate_scale = torch.nn.Parameter(torch.ones(len(model.managed)))
        params = self.trained.parameters()
        self.optimizer = torch.optim.AdamW(params, lr=recipe.lr, weight_decay=0.01)
        self.step = 0

    def labels(self, whole: Whole) -> list[Tensor]:
        """What each score should say, from a pass whose questions were watched."""
        config = self.indexer.config
        by_head = config.form in ("retention", "shared-heads")
        groups = [(i,) for i in range(len(config.layers))] if by_head else config.groups
        return attention_labels(whole.received, groups, by_head)

    def dense(self, batch: Batch, paper: bool = False) -> Whole:
        """Pass a batch with the whole cache, watching what the answers attend to.

        The paper's teacher is another: the largest logits of all rows.
        """
        watched = self.indexer.config.watched_layers
        rows = batch.real if paper else batch.answering
        with torch.no_grad():
            return self.model.run(batch.ids, watched=watched, rows=rows, want_logits=paper)

    def train_step(self) -> dict[str, float]:
        """Do one update and return what the log shows of it."""
        recipe = self.recipe
        rng = Random(f"{self.seed}-{self.step}")
        rows, length = recipe.shape_at(self.step)
        batch = make_batch(self.maker, rng, rows, length)
        whole = self.dense(batch, paper=recipe.form == "query")
        counted = batch.counted(recipe.stream.sink_tokens)
        shown: dict[str, float] = {}
        if isinstance(self.indexer, QueryIndexer):
            loss = self.query_loss(batch, whole, counted)
        elif self.step < recipe.distil_steps:
            loss = distil_loss(self.indexer(whole.hidden), self.labels(whole), counted)
        else:
            loss, shown = self.stream_loss(batch, whole, counted, rng)
        self.optimizer.param_groups[0]["lr"] = recipe.lr_at(self.step)
        if not loss.isfinite():
            raise IndexMemError(
                f"the loss is {loss.item()} at step {self.step + 1}",
                "go on from the last checkpoint with --resume and another --seed",
            )
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return {"loss": loss.item(), **shown}

    def query_loss(self, batch: Batch, whole: Whole, counted: Tensor) -> Tensor:
        """The paper's loss: over all tokens as queries, the sinks no keys."""
        config, losses = self.indexer.config, []
        for group, layer in enumerate(config.watched_layers):
            best = self.largest_relevance(batch, whole, group, layer)
            teacher = torch.stack([whole.logits[p] for p in config.groups[group]]).amax(dim=(0, 2))
            losses.append(streaming_kl(best, teacher, counted))
        return torch.stack(losses).mean()

    def largest_relevance(self, batch: Batch, whole: Whole, group: int, layer: int) -> Tensor:
        """What any query from a token on says of it, by the paper's indexer: fp32 [B, T]."""
        states, query = whole.hidden[layer], whole.queries[self.indexer.config.groups[group][0]]
        keys = self.indexer.make_keys(group, states)
        paid = self.indexer.relevance(group, query, states, keys)
        asks = torch.ones_like(paid, dtype=torch.bool).tril() & batch.real[:, :, None]
        return paid.masked_fill(~asks, torch.finfo(paid.dtype).min).amax(dim=1)

    def stream_loss(
        self, batch: Batch, whole: Whole, counted: Tensor, rng: Random
    ) -> tuple[Tensor, dict[str, float]]:
        """Labels of the whole cache on states under eviction, and the answers' KL to the model's.

        Everything after the first pass sees only what a stream would have kept.
        """
        stream = self.recipe.stream
        budgets = [stream.budget(end, rng.choice(KEEP_FRACTIONS)) for end in batch.ends]
        watched = self.indexer.config.watched_layers
        with torch.no_grad():
            hidden = self.hide(self.indexer(whole.hidden), batch, budgets)
            evicted = self.model.run(batch.ids, watched=watched, gates=hidden)
        scores = self.indexer(evicted.hidden)
        loss = distil_loss(scores, self.labels(whole), counted)
        if not self.recipe.gate_weight:
            return loss, {}
        with torch.no_grad():
            hidden = self.hide(scores, batch, budgets)
            chance = torch.Generator().manual_seed(rng.getrandbits(32))
            for mask in {id(mask): mask for mask in hidden}.values():
                shape = (*mask.shape[:2], 1, mask.shape[3])
                again = torch.rand(shape, generator=chance).to(mask.device) < 0.1
                mask.masked_fill_(again, 0.0)  # some come back, to be judged by the answers too
        recent, sinks = self.recipe.stream.recent_tokens, self.recipe.stream.sink_tokens
        gates = []
        for i, (score, mask) in enumerate(zip(scores, hidden, strict=True)):
            gates.append(soft_gate(score, mask, recent, sinks) * self.trained.gate_scale[i] + mask)
        student = self.model.run(batch.ids, gates=gates)
        mine = self.model.predict_from(student.output[batch.answering])
        with torch.no_grad():
            truth = self.model.predict_from(whole.output[batch.answering])
        kl = reverse_kl(mine, truth)
        return loss + self.recipe.gate_weight * kl, {"kl": kl.item(), "labels": loss.item()}

    def hide(self, scores: list[Tensor], batch: Batch, budgets: list[int]) -> list[Tensor]:
        """Masks of what a stream would have evicted, one for all layers that share a score."""
        masks: dict[int, Tensor] = {}
        for score in scores:
            if id(score) not in masks:
                masks[id(score)] = hide_evicted(
                    score.detach(), batch.ends, budgets, self.recipe.stream
                )
        return [masks[id(score)] for score in scores]

    @torch.no_grad()
    def measure(self, maker: EpisodeMaker, num_batches: int = 4) -> dict[str, float]:
        """Held-out facts in held-out prose: rank correlation, and needed tokens kept at 12.5 %."""
        correlations, kept = [], []
        for i in range(num_batches):
            batch = make_batch(maker, Random(f"held out {i}"), 8, self.recipe.length_tokens, True)
            whole = self.dense(batch)
            counted = batch.counted(self.recipe.stream.sink_tokens)
            scores = self.score_whole(batch, whole)
            labels = attention_labels(whole.received, [tuple(range(len(scores)))], False)[0][:, 0]
            hidden = self.hide(scores, batch, [end // 8 for end in batch.ends])[-1]
            for b, end in enumerate(batch.ends):
                mine, truth = scores[-1][b].mean(0)[counted[b]], labels[b][counted[b]]
                correlations.append(rank_correlation(mine, truth))
                needed = counted[b] & (labels[b] > ATTENDED)
                visible = (hidden[b, :, end, :] == 0).float().mean(0)
                if needed.any():
                    kept.append(float(visible[needed].mean()))
        return {
            "rank_correlation": float(np.mean(correlations)),
            "needed_kept_at_12.5": float(np.mean(kept)) if kept else 0.0,
        }

    def score_whole(self, batch: Batch, whole: Whole) -> list[Tensor]:
        """Scores of a pass with the whole cache; the paper's from all queries of the row."""
        if not isinstance(self.indexer, QueryIndexer):
            return list(self.indexer(whole.hidden))
        config, scores = self.indexer.config, []
        for group, layer in enumerate(config.watched_layers):
            best = self.largest_relevance(batch, whole, group, layer).unsqueeze(1)
            scores += [best] * len(config.groups[group])
        return scores

    def save(self) -> None:
        """Write the checkpoint: the old one or the new one is whole."""
        tensors = gather(self.trained, [self.optimizer], weights_only=False)
        save_state(self.out / "checkpoint", tensors, {"step": self.step, "of": self.what})

    @property
    def what(self) -> list[Any]:
        """What a checkpoint must be of to go on with."""
        recipe = self.recipe
        return [recipe.form, recipe.group_layers, recipe.num_steps, self.model.info.revision]

    def resume(self) -> None:
        """Continue from the checkpoint in the run's folder, if there is one."""
        if (self.out / "checkpoint" / "state.json").exists():
            tensors, numbers = load_state(self.out / "checkpoint", self.what)
            scatter(tensors, self.trained, [self.optimizer])
            self.step = numbers["step"]


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation of two vectors."""
    ranks = [x.argsort().argsort().double() for x in (a, b)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def train_adapter(
    model: str,
    data: Path,
    out: Path,
    recipe: AdapterRecipe | None = None,
    *,
    seed: int = 0,
    resume: bool = False,
    threads: int = 3,
    last_step: int | None = None,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
) -> Path:
    """Train an indexer for a model on the data folder; returns the adapter's path.

    Without `resume` a checkpoint in `out` is removed. `last_step` ends earlier, without changing
    the schedule. `report` is called with each row of the log.

    Raises:
        BackboneError: no such model, or it has another tokenizer than the embedded one.
    """
    recipe = recipe or AdapterRecipe()
    torch.set_num_threads(threads)
    checkpoint = find_checkpoint(model)
    folder = checkpoint.path
    insist_on_tokenizer(folder)
    backbone = load_backbone(checkpoint, ModelConfig(model, dtype="float32", device="cpu"))
    out.mkdir(parents=True, exist_ok=True)
    encoding = prepare(data, out / "cache", folder)
    maker = EpisodeMaker(Corpus(out / "cache", encoding), data)
    run = Run(recipe, WholeModel(backbone, in_bf16=True), maker, out, seed)
    if resume:
        run.resume()
    else:
        forget_state(out / "checkpoint")
        (out / "log.jsonl").unlink(missing_ok=True)
    last = recipe.num_steps if last_step is None else min(recipe.num_steps, last_step)
    started = time.monotonic()
    with (out / "log.jsonl").open("a", encoding="utf-8") as log:
        while run.step < last:
            row = {"step": run.step + 1, "of": recipe.num_steps, **run.train_step()}
            row["elapsed_s"] = round(time.monotonic() - started, 1)
            log.write(json.dumps(row) + "\n")
            report(row)
            if run.step % CHECKPOINT_STEPS == 0 or run.step == last:
                log.flush()
                run.save()
        held_out = EpisodeMaker(Corpus(out / "cache", encoding, "valid"), data, False)
        scores = run.measure(held_out)
        log.write(json.dumps(scores) + "\n")
        report(scores)
    path = out / ADAPTER_FILE
    lengths = sorted({recipe.shape_at(step)[1] for step in range(last)})
    adapter = Adapter(run.indexer, *hash_model(folder), lengths, scores)
    if isinstance(run.indexer, TokenIndexer):
        prose = Random(0)
        texts = [held_out.corpus.packed(prose, "prose", recipe.length_tokens) for _ in range(4)]
        adapter.log_mass = calibrate_model(run.model, run.indexer, texts, recipe.stream)
    save_adapter(adapter, path)
    return path
