"""What is done to slots and memories, in plain PyTorch: scores, selection, writing a memory."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from indexmem_cli.ops.reference import causal_mask, exact

Affine = tuple[Tensor, Tensor]
"""Weight and bias."""
MAX_HIDDEN = 512
"""Most hidden units of a net that `score_states` takes: those of one token fill a tile."""


def score_states_reference(
    states: Tensor, norm: Affine, inner: Affine, inner_norm: Affine, out: Affine, eps: float
) -> Tensor:
    """Score tokens by their hidden states alone: LN, W1, LN, GELU, W2.

    Args:
        states: [B, T, width]. norm: over width. inner: W1 [hidden, width]. out: W2 [O, hidden].

    Returns:
        fp32 [B, O, T]; sums in fp32.
    """
    x = exact(states)
    weights = [(w.to(x.dtype), b.to(x.dtype)) for w, b in (norm, inner, inner_norm, out)]
    x = functional.layer_norm(x, x.shape[-1:], *weights[0], eps)
    x = functional.linear(x, *weights[1])
    x = functional.gelu(functional.layer_norm(x, x.shape[-1:], *weights[2], eps))
    return functional.linear(x, *weights[3]).transpose(1, 2)


def score_pairs_reference(
    query: Tensor, gate: Tensor, key: Tensor, before: Tensor, relu: bool
) -> Tensor:
    """Score slots by what any query so far says of them.

        best[n] = max(before[n], max over t that see n of sum_i gate[t, i] act(q[t, i] . k[n]))

    Source: IndexMem (arXiv 2605.25475), section 3.

    Args:
        query: index queries of the last T of the N slots, [B, T, I, d]. gate: [B, T, I].
        key: index keys [B, N, d]. before: fp32 [B, N], -inf where nothing was said yet.

    Returns:
        fp32 [B, N].
    """
    paid = torch.einsum("btid,bnd->btin", exact(query), exact(key))
    paid = torch.einsum("bti,btin->btn", gate.to(paid.dtype), paid.relu() if relu else paid)
    seen = causal_mask(query.shape[1], key.shape[1], None, key.device)
    paid = paid.masked_fill(~seen, float("-inf"))
    return torch.cat([paid, before.to(paid.dtype).unsqueeze(1)], dim=1).amax(dim=1)


@dataclass(frozen=True)
class Selection:
    """Which slots stay, per head. Lists hold slots in ascending order, then -1."""

    kept: Tensor
    """int32 [B, G, width]."""
    evicted: Tensor
    """int32 [B, G, S]."""
    count: Tensor
    """Slots kept, int32 [B, G]."""
    holes: Tensor
    """Evicted slots among the first `count`, int32 [B, G, S]."""
    arrivals: Tensor
    """Kept slots beyond the first `count`, int32 [B, G, S]: as many as holes."""
    moves: Tensor
    """How many those are, int32 [B, G]."""


def select_slots_reference(
    scores: Tensor, positions: Tensor, pinned: Tensor, budget: Tensor, held: Tensor, width: int
) -> Selection:
    """Choose which slots stay: the pinned, then those of the highest score.

    Of equal scores the earlier position stays; NaN is the lowest score.

    Args:
        scores: fp32 [B, G, S]. positions: int [B, G, S], different in every slot of a head.
        pinned: bool [B, G, S]. budget: slots that stay per head, int [B, G], at most `width`.
        held: slots in use per head, the first ones, int [B, G].
    """
    batch, heads, slots = scores.shape
    lists = {name: torch.full((batch, heads, slots), -1) for name in ("gone", "hole", "new")}
    kept_list = torch.full((batch, heads, width), -1)
    count, moves = torch.zeros(batch, heads), torch.zeros(batch, heads)
    for b in range(batch):
        for g in range(heads):
            live = int(held[b, g])
            stay = min(int(budget[b, g]), live)
            pins, value = pinned[b, g, :live], scores[b, g, :live]
            nan = value.isnan() & ~pins
            value = value.masked_fill(nan | pins, 0.0)
            columns = (~pins, nan, -value, positions[b, g, :live], torch.arange(live))
            rows = zip(*(column.tolist() for column in columns), strict=True)
            kept = sorted(row[-1] for row in sorted(rows)[:stay])
            gone = sorted(set(range(live)) - set(kept))
            holes, new = [s for s in gone if s < stay], [s for s in kept if s >= stay]
            kept_list[b, g, : len(kept)] = torch.tensor(kept)
            for name, found in (("gone", gone), ("hole", holes), ("new", new)):
                lists[name][b, g, : len(found)] = torch.tensor(found)
            count[b, g], moves[b, g] = len(kept), len(new)
    results = (kept_list, lists["gone"], count, lists["hole"], lists["new"], moves)
    return Selection(*(t.to(torch.int32).to(scores.device) for t in results))


def compact_slots_reference(
    buffers: list[Tensor], index: Tensor, count: Tensor, target: Tensor | None
) -> None:
    """Move the rows `index` of every head to `target`, or in their order to the front. In place.

    Args:
        buffers: [B, G, S, D] or [B, G, S] each. index, target: int [B, G, K], of which `count`,
            int [B, G], are used; without `target`, `index` ascends.
    """
    for rows in buffers:
        for b in range(rows.shape[0]):
            for g in range(rows.shape[1]):
                used = int(count[b, g])
                source = index[b, g, :used].long()
                to = torch.arange(used) if target is None else target[b, g, :used].long()
                rows[b, g, to] = rows[b, g, source]


def assign_clusters_reference(
    key: Tensor, index: Tensor, mean: Tensor, count: Tensor
) -> tuple[Tensor, Tensor]:
    """Find the nearest live cluster of each evicted key, and how far it is.

    Args:
        key: [B, G, S, D]. index: slots that are evicted, int [B, G, E], -1 for none.
        mean: fp32 [B, G, M, D]. count: fp32 [B, G, M]; a cluster of 0 is not live.

    Returns:
        Cluster int32 and distance fp32, [B, G, E]; -1 where `index` is. Of equally near clusters
        the first.
    """
    rows = _rows(key, index)
    apart = torch.cdist(rows, mean.to(rows.dtype), compute_mode="donot_use_mm_for_euclid_dist")
    apart = apart.masked_fill((count <= 0).unsqueeze(2), float("inf"))
    nearest = apart.min(-1)
    gone = index < 0
    slot = nearest.indices.to(torch.int32).masked_fill(gone, -1)
    return slot, nearest.values.masked_fill(gone, -1.0)


def sum_clusters_reference(
    key: Tensor, value: Tensor, index: Tensor, slot: Tensor, memory: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum evicted keys and values by cluster, in the order of `index`.

    Args:
        key, value: [B, G, S, D]. index, slot: int [B, G, E], -1 for none.

    Returns:
        Sums of keys and of values fp32 [B, G, M, D], and counts fp32 [B, G, M].
    """
    rows, other = _rows(key, index), _rows(value, index)
    mine = (slot.unsqueeze(2) == torch.arange(memory, device=slot.device)[:, None]).to(rows.dtype)
    mine = mine.masked_fill((index < 0).unsqueeze(2), 0.0)
    return mine @ rows, mine @ other, mine.sum(-1)


def update_fast_weights_reference(
    key: Tensor,
    value: Tensor,
    index: Tensor,
    feature_map: Tensor,
    weights: Tensor,
    norm: Tensor,
    decay: Tensor,
) -> tuple[Tensor, Tensor]:
    """Write evicted tokens into linear attention with online weights.

        W' = decay W + sum_i f(k_i) v_i^T;   b' = decay b + sum_i f(k_i)^2;   f(k) = map k

    Source: IndexMem (arXiv 2605.25475), section 4.

    Args:
        key, value: [B, G, S, D]. index: slots that are evicted, int [B, G, E], -1 for none.
        feature_map: [F, D]. weights: fp32 [B, G, F, D]. norm: fp32 [B, G, F]. decay: fp32 [].

    Returns:
        New weights and norm.
    """
    features = _rows(key, index)
    features = features @ feature_map.to(features.dtype).T
    added = features.transpose(-1, -2) @ _rows(value, index)
    return decay * weights + added, decay * norm + features.pow(2).sum(2)


def _rows(buffer: Tensor, index: Tensor) -> Tensor:
    """Rows [B, G, E, D] of a buffer in fp32 or better; 0 where `index` is -1."""
    where = index.clamp(min=0).long().unsqueeze(-1).expand(-1, -1, -1, buffer.shape[3])
    return exact(buffer.gather(2, where)).masked_fill((index < 0).unsqueeze(-1), 0.0)
