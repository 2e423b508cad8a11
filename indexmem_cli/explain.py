"""What a memory kept of a text, and what a question makes of it."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from indexmem_cli.engine import Reader
from indexmem_cli.events import Explanation, KeptByLayers, LayerMass
from indexmem_cli.memory.state import MemoryState

Part = TypeVar("Part")


def explain(
    memory: Reader, grounds: Reader, closing_ids: list[int], back: Sequence[int] = ()
) -> Explanation:
    """Say what `memory` kept, and what the question attends to; both readers stay as they were.

    Args:
        grounds: what the answer is written from: `memory` itself, or a fork of it that has read
            passages again since.
        closing_ids: the question with what surrounds it.
        back: positions whose keys and values were brought back instead.
    """
    seen = memory.state.seen
    layers = [i for i, window in enumerate(memory.backbone.layer_windows) if window is None]
    return Explanation(
        tokens=seen,
        kept=tuple(_kept_by_layers(memory.state, layers)),
        attention=tuple(_attention(grounds.fork(), closing_ids, layers, seen, back)),
    )


def _kept_by_layers(state: MemoryState, numbers: list[int]) -> list[KeptByLayers]:
    """Neighbouring layers that keep the same tokens are one group."""
    groups: list[KeptByLayers] = []
    for number, parts in zip(numbers, _by_layer(state.managed, numbers), strict=True):
        share = torch.zeros(state.seen)
        for part in parts:
            places = part.positions[0, :, : part.held]
            each = torch.full((places.numel(),), 1 / (len(places) * len(parts)))
            share.index_add_(0, places.flatten().cpu(), each)
        runs = _runs(share)
        if groups and groups[-1].runs == runs:
            groups[-1] = KeptByLayers((*groups[-1].layers, number), runs)
        else:
            groups.append(KeptByLayers((number,), runs))
    return groups


def _by_layer(parts: list[Part], numbers: list[int]) -> list[list[Part]]:
    """What each layer has of a list with an entry for every part: one, or one a head."""
    heads = len(parts) // max(1, len(numbers))
    return [parts[first : first + heads] for first in range(0, len(parts), heads or 1)]


def _runs(share: Tensor) -> tuple[tuple[int, int, float], ...]:
    """Spans [first, end) of tokens that the same share of heads, more than none, holds."""
    values, sizes = torch.unique_consecutive(share, return_counts=True)
    ends = sizes.cumsum(0).tolist()
    firsts = [0, *ends[:-1]]
    runs = zip(firsts, ends, values.tolist(), strict=True)
    return tuple((first, end, round(value, 4)) for first, end, value in runs if value)


def _attention(
    fork: Reader, closing_ids: list[int], numbers: list[int], seen: int, back: Sequence[int]
) -> Iterator[LayerMass]:
    """Yield where the question's attention goes in each layer; `fork` is used up."""
    fork.narrow()
    state, backbone, question = fork.state, fork.backbone, len(closing_ids)
    before = state.seen
    fork.number_slots(question)
    block = backbone.block(state, question, backbone.read(closing_ids, state, want_queries=True))
    assert block.attention is not None and block.remembered is not None, "it has its queries"
    masses = []
    for i in range(len(state.managed)):
        weights, places = block.attention(i, 0, question)[0], block.positions(i)[0]
        memory = block.remembered(i)[0].mean().item()
        asked, again = places >= before, (places >= seen) & (places < before)
        again |= torch.isin(
            places, torch.tensor(list(back), dtype=torch.int64, device=places.device)
        )
        sinks = (places < state.sink_tokens) & ~again
        recent = (places >= seen - state.recent_tokens) & ~(sinks | again | asked)
        kept = ~(sinks | recent | again | asked)
        grouped = weights.unflatten(0, (len(places), -1)).mean(dim=(1, 2))  # [G, N]
        parts = [
            float((grouped * part).sum(-1).mean()) * (1 - memory)
            for part in (sinks, kept, recent, again, asked)
        ]
        masses.append([*parts, memory])
    for number, heads in zip(numbers, _by_layer(masses, numbers), strict=True):
        yield LayerMass(number, *(sum(parts) / len(heads) for parts in zip(*heads, strict=True)))
