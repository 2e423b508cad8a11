"""Fits latent memories to a frozen model: what would attention have found in what is gone?

For rows of text the stream's evictions are replayed; the last rows then attend to what is kept, to
what is kept with the memory, and to everything. Memories are judged by their distance to the last.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from indexmem_cli.memory.indexer import TokenIndexer
from indexmem_cli.memory.latent import CentroidMemory, FastWeightMemory, FastWeights, LatentMemory
from indexmem_cli.ops import attend_with_lse
from indexmem_cli.train.teachers import LayerPass, Streaming, WholeModel, hide_evicted

BIASES = (0.0, -0.5, -1.0, -2.0, -4.0, float("-inf"))
"""Log masses that calibration chooses from; the last one turns a head's memory off."""


@dataclass(frozen=True)
class Replay:
    """One layer of one text after its stream was read, seen by the text's last rows."""

    layer: LayerPass
    asking: slice
    """The last rows, whose attention is judged."""
    writes: list[Tensor]
    """Tokens that were evicted together, int64 [G, E], in their order."""
    kept: Tensor
    """fp32 [1, G, N]: 0 where a token before `asking` is kept, else -inf."""

    def attend(self, memory: LatentMemory | None) -> Tensor:
        """What the last rows get of the kept tokens and `memory`: fp32 [1, H, R, D]."""
        parts = self.layer
        query = parts.query[:, :, self.asking]
        out, lse = attend_with_lse(
            query, parts.key, parts.value, parts.scale, self.kept, parts.softcap
        )
        if memory is None or memory.is_silent:
            return out
        return memory.read(parts.far_query[:, :, self.asking], out, lse, parts.scale)

    def everything(self) -> Tensor:
        """What they would get of all tokens."""
        parts = self.layer
        query = parts.query[:, :, self.asking]
        seen = parts.key, parts.value
        return attend_with_lse(query, *seen, parts.scale, None, parts.softcap)[0]

    def write_to(self, memory: LatentMemory) -> None:
        """Hand what was evicted to a memory, in the stream's own portions."""
        for gone in self.writes:
            wide = gone[None, :, :, None].expand(-1, -1, -1, self.layer.value.shape[3])
            memory.write(self.layer.stored_key.gather(2, wide), self.layer.value.gather(2, wide))


@torch.no_grad()
def replay(
    model: WholeModel,
    ids: Tensor,
    scores: list[Tensor],
    budget: int,
    stream: Streaming,
) -> Iterator[Replay]:
    """Replay the reading of one text [1, T], layer by layer; its last chunk does the asking.

    Args:
        scores: per managed layer, fp32 [1, 1 or G, T]. budget: slots.
    """
    run, chunk = model.run(ids, want_layers=True), stream.chunk_tokens
    text = ids.shape[1] - chunk
    for layer, score in zip(run.layers, scores, strict=True):
        heads = layer.key.shape[1]
        hidden = hide_evicted(score, [text], [budget], stream)[0]
        hidden = hidden.expand(heads, -1, -1)  # [G, T, T]
        gone_before = torch.zeros(heads, text, dtype=torch.bool, device=ids.device)
        writes = []
        for end in [*range(chunk, text, chunk), text]:
            gone = hidden[:, end, :text] < 0
            fresh = gone & ~gone_before
            if fresh.any():
                writes.append(fresh.nonzero()[:, 1].view(heads, -1))
            gone_before = gone
        yield Replay(layer, slice(text, ids.shape[1]), writes, hidden[None, :, text].clone())


def head_errors(replays: list[Replay], make: Callable[[], LatentMemory | None]) -> Tensor:
    """Squared distance to attention over everything, with a fresh memory each: fp32 [G].

    Args:
        make: function of nothing that returns an empty memory, or None for none at all.
    """
    errors = []
    for each in replays:
        memory = make()
        if memory is not None:
            each.write_to(memory)
        apart = (each.attend(memory) - each.everything()).pow(2)
        errors.append(apart.unflatten(1, (each.layer.key.shape[1], -1)).mean(dim=(0, 2, 3, 4)))
    return torch.stack(errors).mean(dim=0)


@torch.no_grad()
def calibrate_centroids(by_layer: list[list[Replay]], slots: int) -> Tensor:
    """The log mass of each layer's and head's centroids that does least harm: fp32 [L, G].

    Where no bias brings the output nearer to that of the full cache, the memory is turned off.
    """
    table = []
    for replays in by_layer:
        heads = replays[0].layer.key.shape[1]
        errors = []
        for bias in BIASES[:-1]:
            mass = torch.full((heads,), bias, device=replays[0].kept.device)
            errors.append(head_errors(replays, partial(CentroidMemory, slots, mass)))
        errors.append(head_errors(replays, lambda: None))
        best = torch.stack(errors).argmin(dim=0)
        table.append(torch.tensor(BIASES)[best.cpu()])
    return torch.stack(table)


def calibrate_model(
    model: WholeModel,
    indexer: TokenIndexer,
    texts: list[list[int]],
    stream: Streaming,
    keep_fraction: float = 0.125,
) -> Tensor:
    """The table of `calibrate_centroids` for an indexer, on texts of two chunks or more each."""
    slots = max(8, min(stream.budget(len(text), keep_fraction) for text in texts) // 8)
    return calibrate_centroids(replay_texts(model, indexer, texts, stream, keep_fraction), slots)


@torch.no_grad()
def replay_texts(
    model: WholeModel,
    indexer: TokenIndexer,
    texts: list[list[int]],
    stream: Streaming,
    keep_fraction: float,
) -> list[list[Replay]]:
    """What every layer evicts and asks for while an indexer decides, by layer, text by text."""
    by_text = []
    for text in texts:
        ids = torch.tensor([text], device=model.device)
        hidden = model.run(ids, watched=indexer.config.watched_layers).hidden
        scores = [score.float() for score in indexer(hidden)]
        budget = stream.budget(len(text), keep_fraction)
        by_text.append([*replay(model, ids, scores, budget, stream)])
    return [list(layer) for layer in zip(*by_text, strict=True)]


def fit_model(
    model: WholeModel,
    indexer: TokenIndexer,
    texts: list[list[int]],
    keep_fraction: float = 0.125,
    num_steps: int = 100,
) -> list[tuple[FastWeights, list[float]]]:
    """Train the paper's memory for every layer on texts of several writes each.

    Returns:
        By layer the slow weights, and the losses of `fit_fast_weights`.
    """
    found = []
    for replays in replay_texts(model, indexer, texts, Streaming(), keep_fraction):
        slow = FastWeights(replays[0].layer.value.shape[3]).to(model.device)
        found.append((slow, fit_fast_weights(replays, slow, num_steps)))
    return found


def fit_fast_weights(
    replays: list[Replay], slow: FastWeights, num_steps: int = 100, lr: float = 3e-3
) -> list[float]:
    """Train one layer's slow weights on texts of several writes each; returns the losses.

    loss = mean (o_full - o_kept - g(q) m(q))^2, relative to that without a memory.
    """
    with torch.no_grad():
        bare = head_errors(replays, lambda: None).mean()
    scalars = [slow.decay_logit, *slow.gate.parameters()]  # far from where they begin
    groups = [{"params": slow.map.parameters()}, {"params": scalars, "lr": 0.1}]
    optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=0.0, eps=1e-16)
    losses = []
    for step in range(num_steps):
        each = replays[step % len(replays)]
        loss = head_errors([each], lambda: FastWeightMemory(slow)).mean() / bare
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses
