"""How a budget is split among layers: by what the answers lose when one layer alone is evicted.

In a small model one layer may do all the finding: it needs every token it can get, and the others
next to none. What was tried before, and failed, stands in benchmarks/LOG.md.
"""

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
from indexmem_cli.train.data import Corpus, prepare
from indexmem_cli.train.episodes import EpisodeMaker
from indexmem_cli.train.loss import reverse_kl
from indexmem_cli.train.teachers import WholeModel, hide_evicted


@torch.no_grad()
def layer_damage(
    model: WholeModel,
    indexer: TokenIndexer,
    batch: Batch,
    recipe: AdapterRecipe,
    keep_fraction: float,
) -> Tensor:
    """What each layer's eviction alone does to the answers of a batch.

    Returns:
        fp32 [L], KL( whole model || the one layer evicted ) in nats per token of the answers.
    """
    whole = model.run(batch.ids, watched=indexer.config.watched_layers)
    truth = model.predict_from(whole.output[batch.answering])
    pins = recipe.sink_tokens + recipe.recent_tokens
    budgets = [max(pins + 1, int(end * keep_fraction)) for end in batch.ends]
    damage = []
    for place, score in enumerate(indexer(whole.hidden)):
        hidden = hide_evicted(
            score,
            batch.ends,
            budgets,
            recipe.chunk_tokens,
            recipe.sink_tokens,
            recipe.recent_tokens,
            recipe.span_tokens,
        )
        nothing = torch.zeros_like(hidden)
        gates = [hidden if i == place else nothing for i in range(len(model.managed))]
        output = model.run(batch.ids, gates=gates).output
        damage.append(reverse_kl(truth, model.predict_from(output[batch.answering])))
    return torch.stack(damage).cpu()


def shares_of(damage: Tensor, power: float) -> Tensor:
    """Shares of the layers in what a budget has above its floor, fp32 [L], 1 on average."""
    weights = damage.clamp(min=1e-6) ** power
    return weights / weights.mean()


def calibrate_budgets(
    model: str,
    data: Path,
    cache: Path,
    adapter_file: Path,
    *,
    keep_fraction: float = 0.125,
    power: float = 0.25,
    num_batches: int = 4,
    seed: int = 0,
    threads: int = 3,
) -> list[float]:
    """Measure the shares of the layers and write them into the adapter's file.

    Args:
        keep_fraction: part of a text that a layer keeps when it alone is evicted.
        power: of the damage that a share is in proportion to; 0 makes all shares equal.

    Returns:
        The shares, 1 on average.

    Raises:
        ConfigError: the adapter's scores depend on queries. BackboneError: it does not fit.
    """
    torch.set_num_threads(threads)
    checkpoint = find_checkpoint(model)
    adapter = load_adapter(adapter_file, checkpoint.path)
    if not isinstance(adapter.indexer, TokenIndexer):
        raise ConfigError("budgets are measured for adapters that score a token once")
    backbone = load_backbone(checkpoint, ModelConfig(model, dtype="float32", device="cpu"))
    encoding = prepare(data, cache, checkpoint.path, checkpoint.window_tokens)
    maker = EpisodeMaker(Corpus(cache, encoding), data)
    whole, recipe, damage = WholeModel(backbone, in_bf16=True), AdapterRecipe(), []
    for number in range(num_batches):
        rng = Random(f"budgets {seed} {number}")
        batch = make_batch(maker, rng, recipe.rows, recipe.length_tokens)
        damage.append(layer_damage(whole, adapter.indexer, batch, recipe, keep_fraction))
    shares = shares_of(torch.stack(damage).mean(0), power)
    save_adapter(replace(adapter, layer_shares=shares), adapter_file)
    return shares.tolist()
