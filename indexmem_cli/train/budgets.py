"""How a budget is split among layers: measured along an adapter's own ranking, kept in its file.

Layers that spread their attention over more of what the adapter ranks low get more slots.
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
from indexmem_cli.ops import pool_spans
from indexmem_cli.train.adapter import AdapterRecipe, Batch, make_batch
from indexmem_cli.train.data import Corpus, prepare
from indexmem_cli.train.episodes import EpisodeMaker
from indexmem_cli.train.teachers import WholeModel

STEPS = 256
"""Points of a curve: shares of the tokens kept, from 1 / STEPS to 1."""
FLOOR = 0.25
"""Part of the budget that every layer has; as in `memory.update.evict`."""


@torch.no_grad()
def attention_curves(
    model: WholeModel, indexer: TokenIndexer, batch: Batch, recipe: AdapterRecipe
) -> Tensor:
    """Share of the answers' attention to a text that its best-ranked tokens receive.

    Returns:
        fp32 [L, STEPS], the mean over the batch's texts; entry i keeps (i + 1) / STEPS of a text.
    """
    watched = indexer.config.watched_layers
    whole = model.run(batch.ids, watched=watched, rows=batch.answering)
    counted, curves = batch.counted(recipe.sink_tokens).to(batch.ids.device), []
    for score, received in zip(indexer(whole.hidden), whole.received, strict=True):
        score = score.expand_as(received)
        for b, mine in enumerate(counted):
            where = mine.nonzero()[:, 0]
            pooled = pool_spans(score[b, :, where].float(), where, recipe.span_tokens)
            order = pooled.argsort(dim=-1, descending=True, stable=True)
            paid = received[b, :, where].gather(1, order).mean(0).cumsum(0)
            at = torch.arange(1, STEPS + 1) * len(where) / STEPS
            curves.append(paid[at.ceil().long() - 1] / paid[-1])
    return torch.stack(curves).unflatten(0, (len(whole.received), -1)).mean(1).cpu()


def fill_up(curves: Tensor, keep_fraction: float) -> Tensor:
    """Shares above the floor that bring all layers to the same part of their attention.

    Args:
        curves: as `attention_curves` returns them. keep_fraction: of the text, on average.

    Returns:
        fp32 [L], 1 on average.
    """
    total = keep_fraction * len(curves)
    floor = FLOOR * keep_fraction

    def needed(part: float) -> Tensor:
        steps = (curves < part).sum(1) + 1
        return (steps.clamp(max=STEPS) / STEPS).clamp(min=floor)

    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if float(needed(middle).sum()) <= total else (low, middle)
    above = needed(low) - floor
    return above / above.mean() if above.sum() > 0 else torch.ones(len(curves))


def calibrate_budgets(
    model: str,
    data: Path,
    cache: Path,
    adapter_file: Path,
    *,
    keep_fraction: float = 0.125,
    num_batches: int = 16,
    seed: int = 0,
    threads: int = 3,
) -> list[float]:
    """Measure the shares of the layers and write them into the adapter's file.

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
    whole, recipe, curves = WholeModel(backbone, in_bf16=True), AdapterRecipe(), []
    for number in range(num_batches):
        rng = Random(f"budgets {seed} {number}")
        batch = make_batch(maker, rng, recipe.rows, recipe.length_tokens)
        curves.append(attention_curves(whole, adapter.indexer, batch, recipe))
    shares = fill_up(torch.stack(curves).mean(0), keep_fraction)
    save_adapter(replace(adapter, layer_shares=shares), adapter_file)
    return shares.tolist()
