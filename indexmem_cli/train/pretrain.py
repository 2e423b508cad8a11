"""Trains the embedded model from nothing; the command is `indexmem train base`.

A run lives in one folder: `cache/` (tokens), `checkpoint/`, `log.jsonl`, `loss.png`, and `model/`
in Hugging Face layout. The batch of a step depends on seed and step alone, so a resumed
run repeats the uninterrupted one.
"""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from indexmem_cli.train.data import make_tokenizer, prepare
from indexmem_cli.train.episodes import EpisodeMaker
from indexmem_cli.train.feeding import feed, make_maker
from indexmem_cli.train.muon import Muon
from indexmem_cli.train.packing import is_packed, unpack
from indexmem_cli.train.probe import measure
from indexmem_cli.train.recipes import RECIPES, Recipe, Stage
from indexmem_cli.train.state import forget_state, gather, load_state, save_state, scatter
from indexmem_cli.train.tokenizer import SPECIAL_TOKENS
from indexmem_cli.train.workers import Peers, run_together

Batch = tuple[Tensor, Tensor]
ROWS = 256  # of logits at once: oneDNN keeps code for each number of rows it has met, for gigabytes
PEER_SEED = 1000  # apart, so that no two workers of any recipe draw the same rows
REWARM_STEPS = 20  # momentum and second moments look back about as far
ANSWER_FROM_TOKENS = 96  # small models find more in less: benchmarks/LOG.md


def build_model(recipe: Recipe, vocab_size: int, seed: int) -> Qwen3ForCausalLM:
    """Make the untrained model, weights in fp32."""
    torch.manual_seed(seed)
    first_special = vocab_size - len(SPECIAL_TOKENS)
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=recipe.hidden // recipe.heads,
        max_position_embeddings=recipe.window_tokens,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=first_special,
        pad_token_id=vocab_size - 1,
        indexmem_answer_from_tokens=ANSWER_FROM_TOKENS,
        indexmem_spaces_lines=True,
    )
    return Qwen3ForCausalLM(config).to(recipe.device)


def build_optimizers(model: Qwen3ForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for embeddings and norms."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    adam = torch.optim.AdamW(
        others, lr=recipe.adam_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    return [Muon(matrices, lr=recipe.muon_lr, weight_decay=0.01), adam]


def compute_loss(
    model: Qwen3ForCausalLM, body: Callable[..., Any], ids: Tensor, weights: Tensor
) -> tuple[Tensor, float]:
    """Weighted mean cross-entropy of the weighted tokens; also the plain mean of the answers.

    `ids` and `weights` are [rows, length]; logits are computed only where the weight is not 0.
    """
    device = model.device.type
    with torch.autocast(device, torch.bfloat16):
        hidden = body(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
        wanted = weights[:, 1:] > 0
        states = hidden[wanted]
        logits = model.lm_head(pad(states, (0, 0, 0, -len(states) % ROWS))).float()[: len(states)]
    losses = cross_entropy(logits, ids[:, 1:][wanted], reduction="none")
    weight = weights[:, 1:][wanted]
    answers = losses.detach()[weight >= 1.0]
    answer_loss = answers.mean().item() if len(answers) else math.nan
    return (losses * weight).sum() / weight.sum(), answer_loss


def deepen(weights: dict[str, Tensor], doubled: tuple[int, ...]) -> dict[str, Tensor]:
    """Follow each layer in `doubled` with a copy of it whose output is zero.

    The deeper model computes what the shallow one did, bit for bit, and learns on from there.
    Source: function-preserving growth, Net2Net (arXiv:1511.05641).
    """
    deeper = {}
    for name, weight in weights.items():
        if not name.startswith("model.layers."):
            deeper[name] = weight
            continue
        number, part = name.removeprefix("model.layers.").split(".", 1)
        place = int(number) + sum(layer < int(number) for layer in doubled)
        deeper[f"model.layers.{place}.{part}"] = weight
        if int(number) in doubled:
            silent = part in ("self_attn.o_proj.weight", "mlp.down_proj.weight")
            copy = torch.zeros_like(weight) if silent else weight.clone()
            deeper[f"model.layers.{place + 1}.{part}"] = copy
    return deeper


def load_weights(folder: Path) -> dict[str, Tensor]:
    """Load the weights of a model's folder in fp32."""
    weights: dict[str, Tensor]
    weights = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    return weights


def average(first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the mean of two models' weights, of one shape and one line of training.

    Source: weight-space ensembles of a model before and after fine-tuning (arXiv:2109.01903).
    """
    return {name: (weight + second[name].to(weight)) / 2 for name, weight in first.items()}


class Run:
    """One training run: the model, its optimizers, and the step they stand at."""

    def __init__(self, recipe: Recipe, maker: EpisodeMaker, out: Path, seed: int) -> None:
        self.recipe, self.maker, self.out, self.seed = recipe, maker, out, seed
        self.model = build_model(recipe, maker.corpus.encoding.n_vocab, seed)
        self.optimizers = build_optimizers(self.model, recipe)
        self.base_lrs = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]
        self.step = 0
        self.num_tokens = 0
        self.elapsed_s = 0.0
        self.fresh_from: int | None = None  # step from which optimizers began anew
        self.stage: Stage | None = None
        self.peers: Peers | None = None
        self.body: Callable[..., Any] = self.model.model

    def enter_stage(self) -> None:
        """Switch attention and compilation when a new stage begins."""
        stage = self.recipe.stage_at(self.step)
        if stage is not self.stage:
            self.stage = stage
            self.model.set_attn_implementation(stage.attention)
            self.body = self.model.model
            if stage.compiled and self.recipe.device == "cpu":
                self.body = torch.compile(self.model.model, dynamic=False)
            elif stage.compiled:
                # Layers are alike: one graph serves all, compiled in seconds instead of minutes.
                torch.compiler.reset()
                for layer in self.model.model.layers:
                    layer.compile(dynamic=False)

    def train_step(self, batch: Batch) -> dict[str, float]:
        """Do one update and return what the log shows of it."""
        self.enter_stage()
        ids, weights = (part.to(self.recipe.device) for part in batch)
        loss, answer_loss = compute_loss(self.model, self.body, ids, weights)
        loss.backward()
        fraction = self.recipe.lr_fraction(self.step)
        if self.fresh_from is not None:
            fraction *= min(1.0, (self.step - self.fresh_from + 1) / REWARM_STEPS)
        for optimizer, base in zip(self.optimizers, self.base_lrs, strict=True):
            optimizer.param_groups[0]["lr"] = base * fraction
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.num_tokens += ids.numel() * self.recipe.workers
        return {"loss": loss.item(), "answer_loss": answer_loss, "lr_fraction": fraction}

    def share(self, peers: Peers, late: bool, last_step: int) -> bool:
        """Share weights and optimizer states when that is due; returns whether all must stop."""
        if self.step % self.recipe.share_steps and self.step < last_step:
            return False
        return peers.share(gather(self.model, self.optimizers, weights_only=False), late)

    def save(self) -> None:
        """Write the checkpoint, then the model in bf16."""
        tensors = gather(self.model, self.optimizers, self.recipe.weights_only)
        numbers = {"step": self.step, "num_tokens": self.num_tokens, "elapsed_s": self.elapsed_s}
        config = self.model.config.to_dict()
        save_state(self.out / "checkpoint", tensors, {**numbers, "config": config, "of": self.what})
        export(self.model, self.out / "model")

    @property
    def what(self) -> list[int]:
        """What a checkpoint must be of to go on with: sizes of the model, and all steps."""
        recipe = self.recipe
        sizes = [recipe.hidden, recipe.layers, recipe.heads, recipe.kv_heads, recipe.intermediate]
        return [*sizes, recipe.num_steps]

    def resume(self) -> None:
        """Continue from the checkpoint in the run's folder, if there is one."""
        if not (self.out / "checkpoint" / "state.json").exists():
            return
        tensors, numbers = load_state(self.out / "checkpoint", self.what)
        scatter(tensors, self.model, self.optimizers)
        self.step, self.num_tokens = numbers["step"], numbers["num_tokens"]
        self.elapsed_s = numbers["elapsed_s"]
        if not any(name.startswith("optimizer.") for name in tensors):
            self.fresh_from = self.step

    def log(self, row: dict[str, Any]) -> None:
        """Append one JSON line to the run's log."""
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")


def train(run: Run, last_step: int, data: Path, max_s: float | None = None) -> None:
    """Train up to `last_step`, or for `max_s` seconds; log, measure and save on the way."""
    recipe = run.recipe
    begun = time.monotonic()
    started = begun - run.elapsed_s
    with feed(run.maker, recipe, run.seed, run.step, data, run.out) as batches:
        while run.step < last_step:
            ids, weights = map(torch.from_numpy, next(batches))
            row = run.train_step((ids, weights))
            run.elapsed_s = time.monotonic() - started
            late = bool(max_s and time.monotonic() - begun > max_s)
            if run.peers:
                late = run.share(run.peers, late, last_step)
            if late:
                last_step = run.step
            if run.peers and run.peers.rank:
                continue  # the first one writes
            if run.step % 10 == 0 or run.step == last_step:
                place = {"step": run.step, "length_tokens": ids.shape[1]}
                spent = {"num_tokens": run.num_tokens, "elapsed_s": round(run.elapsed_s, 1)}
                run.log({**place, **row, **spent})
            if run.step % recipe.measure_steps == 0:
                with torch.compiler.set_stance("force_eager"):
                    found = measure(run.model, run.maker, ids.shape[1])
                run.log({"step": run.step, **found})
            if run.step % recipe.checkpoint_steps == 0 or run.step == last_step:
                run.save()


def export(model: Qwen3ForCausalLM, folder: Path) -> None:
    """Write weights (bf16), config and generation config beside the tokenizer in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    copy = Qwen3ForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.config.use_cache = True
    copy.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    copy.to(torch.bfloat16).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)


def train_alone(
    peers: Peers | None,
    recipe: Recipe,
    data: Path,
    out: Path,
    seed: int,
    start: Path | None,
    resume: bool,
    last_step: int,
    max_s: float | None,
) -> None:
    """Train a recipe in this process, beside its peers if it has any; the first one writes."""
    torch.set_num_threads(recipe.threads or torch.get_num_threads())
    run = Run(recipe, make_maker(data, out, recipe), out, seed)
    run.peers = peers
    if start:
        begun = deepen(load_weights(start), recipe.doubled)
        run.model.load_state_dict(begun)
    if resume:
        run.resume()
    if peers:
        run.seed += PEER_SEED * peers.rank
    train(run, last_step, data, max_s)
    if recipe.averaged and not (peers and peers.rank):
        run.model.load_state_dict(average(begun, run.model.state_dict()))
        export(run.model, out / "model")


def draw_loss(out: Path) -> None:
    """Draw `loss.png` from the log; of a step logged twice (after a resume) the last row counts."""
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    steps = list({row["step"]: row for row in rows if "loss" in row}.values())
    steps.sort(key=lambda row: row["step"])
    needles = list({row["step"]: row for row in rows if "needle_accuracy" in row}.values())
    figure = Figure(figsize=(7, 4), layout="constrained")
    left = figure.subplots()
    left.plot([r["step"] for r in steps], [r["answer_loss"] for r in steps], lw=0.7)
    left.set(xlabel="step", ylabel="loss of answers (nats per token)", ylim=(0, None))
    right = left.twinx()
    right.plot([r["step"] for r in needles], [r["needle_accuracy"] for r in needles], "o-", c="C1")
    right.set(ylabel="needle accuracy at the stage's length", ylim=(0, 1.02))
    figure.savefig(out / "loss.png", dpi=120)


def export_run(out: Path) -> Path:
    """Write the model of a run's checkpoint, as where only the checkpoint came back."""
    tensors, numbers = load_state(out / "checkpoint")
    model = Qwen3ForCausalLM(Qwen3Config.from_dict(numbers["config"]))
    scatter(tensors, model, [])
    export(model, out / "model")
    return out / "model"


def train_base(
    recipe: str,
    data: Path,
    out: Path,
    resume: bool = False,
    seed: int = 0,
    max_steps: int | None = None,
    rehearse: int | None = None,
    batch_tokens: int | None = None,
    device: str | None = None,
    max_minutes: float | None = None,
) -> Path:
    """Train a recipe on a data folder, packed or not; returns the folder of the model.

    Without `resume` the checkpoint and the log of an earlier run in `out` are removed; its
    tokenizer stays, unless `data` is packed and brings another, and so do tokens of the same data.
    `max_steps` and `max_minutes` (of training alone) end the last recipe of a chain earlier,
    without changing the schedule; `rehearse`, `batch_tokens` and `device` change the recipe as
    `Recipe.rehearsed` says.
    """
    changes = (rehearse, batch_tokens, device)
    chosen = RECIPES[recipe].rehearsed(*changes)
    given = data
    if is_packed(data):
        unpack(data, out / "cache", out / "model")
        data = out / "cache"
    else:
        make_tokenizer(data, out / "model", chosen.window_tokens)
    prepare(given, out / "cache", out / "model")
    if not resume:
        # Before the start is trained: cut off there, the run would be resumed from an old one.
        forget_state(out / "checkpoint")
        (out / "log.jsonl").unlink(missing_ok=True)
    start = None
    if chosen.start:
        start = train_base(chosen.start, given, out / "start", resume, seed, None, *changes)
    last_step = min(chosen.num_steps, max_steps or chosen.num_steps)
    settings = (chosen, data, out, seed + chosen.seed_offset, start, resume, last_step)
    run_together(train_alone, chosen.workers, (*settings, max_minutes and 60 * max_minutes))
    draw_loss(out)
    return out / "model"
