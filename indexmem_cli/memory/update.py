"""The pure step of eviction: scores and a budget in, the slots that stay out."""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from indexmem_cli.errors import ConfigError
from indexmem_cli.memory.state import MemoryState
from indexmem_cli.ops import pool_spans, select_slots, uses_kernels


def select_kept(scores: Tensor, pinned: Tensor, budget: int) -> Tensor:
    """Choose which slots stay: the pinned ones, then those of the highest score.

    Equal scores are settled in favour of the earlier token, so the choice never depends on the
    machine or on how the text was cut into chunks.

    Args:
        scores: fp32 [..., S], slots in the order of the text. NaN counts as the lowest score.
        pinned: bool, broadcastable to `scores`.
        budget: slots that stay, in [number of pinned, S].

    Returns:
        int64 [..., budget], ascending.
    """
    if uses_kernels(scores):
        rows = scores.reshape(1, -1, scores.shape[-1])
        place = torch.arange(rows.shape[2], device=rows.device).expand_as(rows)
        pins = pinned.expand_as(scores).reshape(rows.shape)
        counts = (budget, rows.shape[2])
        stay, held = (torch.full(rows.shape[:2], n, device=rows.device) for n in counts)
        kept = select_slots(rows, place, pins, stay, held, budget).kept
        return kept.long().reshape(*scores.shape[:-1], budget)
    ranked = scores.nan_to_num(nan=float("-inf")).masked_fill(pinned, float("inf"))
    order = ranked.sort(dim=-1, descending=True, stable=True).indices
    return order[..., :budget].sort(dim=-1).values


def split_budget(budget: int, shares: Sequence[float], floor: int) -> list[int]:
    """Give each layer, or head, its part of a budget: a floor, and its share of what is above.

    Args:
        budget: slots per head on average. shares: one per layer, or per head of each; 1 on average.
        floor: slots that every one has, at most `budget`.

    Returns:
        Slots per head for each; they add up to `budget` times the number of shares.
    """
    scale = len(shares) / sum(shares)
    exact = [(budget - floor) * share * scale for share in shares]
    parts = [int(part) for part in exact]
    most_cut = sorted(range(len(exact)), key=lambda i: parts[i] - exact[i])
    for i in most_cut[: (budget - floor) * len(shares) - sum(parts)]:
        parts[i] += 1
    return [floor + part for part in parts]


def split_among_parts(state: MemoryState, budget: int, shares: Sequence[float]) -> list[int]:
    """Slots per head for every managed part of a memory; the arguments are those of `evict`."""
    if not shares:
        return [budget] * len(state.managed)
    floor = min(budget, max(budget // 4, _most_pinned(state) + 1))
    return split_budget(budget, shares, floor)


def evict(
    state: MemoryState,
    scores: list[Tensor],
    budget: int,
    span_tokens: int = 1,
    shares: Sequence[float] = (),
) -> None:
    """Bring every managed part of `state` down to its budget per head, in place.

    Sinks, the recent window and the pins always stay. Ranking is by scores pooled over spans.

    Args:
        scores: one fp32 tensor per managed part, [B, G, S] (or with B or G of 1: shared). The same
            tensor object for all parts means one choice for all of them. They are remembered as
            each slot's last score.
        budget: slots per head, at least 1; of uneven parts the average.
        shares: of the parts, as in `split_budget`; none for all alike.

    Raises:
        ConfigError: more slots are pinned than the budget allows.
    """
    managed, budgets = state.managed, split_among_parts(state, budget, shares)
    shared = all(score is scores[0] for score in scores) and state.uniform and not shares
    one_for_all = shared and scores[0].shape[1] == 1
    for layer, score in zip(managed, scores, strict=True):
        layer.scores[:, :, : layer.held] = score
    full = [(layer, own) for layer, own in zip(managed, budgets, strict=True) if layer.held > own]
    choosing = full[:1] if shared else full
    ranked, pinned = [], []
    for layer, own in choosing:
        held = (slice(None), slice(1 if one_for_all else None), slice(layer.held))
        positions = layer.positions[held]
        ranked.append((layer.scores[held], positions))
        pinned.append(pinned_slots(state, positions))
        # Counting waits for the device, so only where there may be too many.
        most = int(pinned[-1].sum(-1).max()) if _most_pinned(state) > own else 0
        if most > own:
            raise ConfigError(
                f"budget of {own:,} tokens cannot hold the {most:,} that always stay",
                f"raise --budget to {most:,} or more",
            )
    pooled = _pool_parts(ranked, span_tokens, state.seen + span_tokens)
    kept = [
        select_kept(best, pins, own)
        for best, pins, (_, own) in zip(pooled, pinned, choosing, strict=True)
    ]
    for (layer, _), index in zip(full, kept * len(full) if shared else kept, strict=True):
        index = index.to(layer.keys.device)
        layer.keep(index.expand(*layer.positions.shape[:2], -1))
    state.uniform = state.uniform and (one_for_all or not full)


def _pool_parts(parts: list[tuple[Tensor, Tensor]], span_tokens: int, apart: int) -> list[Tensor]:
    """Do `pool_spans` for scores and positions [B, G, S] of many parts, one call for a device.

    Their rows are laid end to end, and their positions so far `apart` that none are neighbours.
    """
    pooled: list[Tensor] = []
    for _, group in groupby(parts, key=lambda part: part[0].device):
        scores, positions = zip(*group, strict=True)
        rows = [row for part in positions for row in part.flatten(0, 1)]
        line = torch.cat([row + i * apart for i, row in enumerate(rows)])
        best = pool_spans(torch.cat([score.flatten() for score in scores]), line, span_tokens)
        sizes = [score.numel() for score in scores]
        pooled += map(Tensor.view_as, best.split(sizes), scores)
    return pooled


def _most_pinned(state: MemoryState) -> int:
    """Slots that always stay, those that are pinned twice counted twice."""
    return state.sink_tokens + state.recent_tokens + sum(end - first for first, end in state.pins)


def pinned_slots(state: MemoryState, positions: Tensor) -> Tensor:
    """Which slots always stay, by their positions: bool, the shape of `positions`."""
    pinned = (positions < state.sink_tokens) | (positions >= state.seen - state.recent_tokens)
    for first, end in state.pins:
        pinned |= (positions >= first) & (positions < end)
    return pinned
