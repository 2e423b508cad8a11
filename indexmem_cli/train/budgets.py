"""How a budget is split: by what the answers lose when one layer, or one head, alone is evicted.

In a small model one layer may do all the finding: it needs every token it can get, and the others
next to none. What was tried before, and failed, stands in benchmarks/LOG.md.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from indexmem_cli.checkpoint import find_checkpoint
from indexmem_cli.config import ModelConfig
from indexmem_cli.errors import ConfigError
from indexmem_cli.loading import load_backbone
from indexmem_cli.memory.adapter import load_adapter, save_adapter
from indexmem_cli.memory.indexer import TokenIndexer
from indexmem_cli.train.adapter import AdapterRecipe, Batch, make_batch
from indexmem_cli.train.data import Corpus, insist_on_tokenizer, prepare
from indexmem_cli.train.episodes import EpisodeMaker
from indexmem_cli.train.loss import reverse_kl
from indexmem_cli.train.teachers import Streaming, WholeModel, hide_evicted

UNITS = ("head", "layer")


@torch.no_grad()
def measure_damage(
    model: WholeModel,
    indexer: TokenIndexer,
    batch: Batch,
    stream: Streaming,
    keep_fraction: float,
    unit: str = "head",
) -> Tensor:
    """What the eviction of each layer, or of each of its heads, alone does to a batch's answers.

    Returns:
        fp32 [L] or [L, G], KL( whole model || the one evicted ) in nats per token of the answers.
    """
    whole = model.run(batch.ids, watched=indexer.config.watched_layers)
    truth = model.predict_from(whole.output[batch.answering])
    pins = stream.sink_tokens + stream.recent_tokens
    budgets = [max(pins + 1, int(end * keep_fraction)) for end in batch.ends]
    damage = []
    for place, score in enumerate(indexer(whole.hidden)):
        hidden = hide_evicted(score, batch.ends, budgets, stream)
        nothing = torch.zeros_like(hidden)
        for alone in [hidden] if unit == "layer" else _by_head(hidden, model.kv_shapes[0][0]):
            gates = [alone if i == place else nothing for i in range(len(model.managed))]
            output = model.run(batch.ids, gates=gates).output
            damage.append(reverse_kl(truth, model.predict_from(output[batch.answering])))
    found = torch.stack(damage).cpu()
    return found if unit == "layer" else found.view(len(model.managed), -1)


def _by_head(hidden: Tensor, heads: int) -> Iterator[Tensor]:
    """The mask [B, 1 or G, T, T] of each head alone: 0 for the others, [B, G, T, T]."""
    wide = hidden.expand(-1, heads, -1, -1)
    for head in range(heads):
        alone = torch.zeros_like(wide)
        alone[:, head] = wide[:, head]
        yield alone


def shares_of(damage: Tensor, power: float) -> Tensor:
    """Shares in what a budget has above its floor, fp32 like `damage`, 1 on average."""
    weights = damage.clamp(min=1e-6) ** power
    return weights / weights.mean()


def calibrate_budgets(
    model: str,
    data: Path,
    cache: Path,
    adapter_file: Path,
    *,
    unit: str = "head",
    keep_fraction: float = 0.125,
    power: float = 0.25,
    num_batches: int = 4,
    seed: int = 0,
    threads: int = 3,
) -> list[float]:
    """Measure the shares of the heads or layers and write them into the adapter's file.

    Shares of heads go before those of layers; measuring those of layers takes them out again.

    Args:
        unit: head | layer, what gets a share of its own.
        keep_fraction: part of a text that is kept of the one that is evicted alone.
        power: of the damage that a share is in proportion to; 0 makes all shares equal.

    Returns:
        The shares, 1 on average; of heads those of the first layer first.

    Raises:
        ConfigError: no such unit, or the adapter's scores depend on queries.
        BackboneError: it does not fit, or the model has another tokenizer than the embedded one.
    """
    if unit not in UNITS:
        raise ConfigError(f"budgets by {unit!r} are not known", f"choose one of {UNITS}")
    torch.set_num_threads(threads)
    checkpoint = find_checkpoint(model)
    adapter = load_adapter(adapter_file, checkpoint.path)
    if not isinstance(adapter.indexer, TokenIndexer):
        raise ConfigError("budgets are measured for adapters that score a token once")
    insist_on_tokenizer(checkpoint.path)
    backbone = load_backbone(checkpoint, ModelConfig(model, dtype="float32", device="cpu"))
    encoding = prepare(data, cache, checkpoint.path)
    maker = EpisodeMaker(Corpus(cache, encoding), data)
    whole, recipe, damage = WholeModel(backbone, in_bf16=True), AdapterRecipe(), []
    for number in range(num_batches):
        rng = Random(f"budgets {seed} {number}")
        batch = make_batch(maker, rng, recipe.rows, recipe.length_tokens)
        damage.append(
            measure_damage(whole, adapter.indexer, batch, recipe.stream, keep_fraction, unit)
        )
    shares = shares_of(torch.stack(damage).mean(0), power)
    tables = {"head_shares": None, f"{unit}_shares": shares}
    save_adapter(replace(adapter, **tables), adapter_file)
    return list(map(float, shares.flatten()))
