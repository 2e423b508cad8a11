"""The operations on keys and values, one documented face each; `reference.py` specifies them."""

import torch
from torch import Tensor
from torch.nn import functional

from indexmem_cli.ops.reference import (
    attend_reference,
    attend_with_lse_reference,
    attention_weights_reference,
    causal_mask,
    merge_attention,
    weigh_values,
)

__all__ = [
    "attend",
    "attend_with_lse",
    "attention_weights",
    "make_mask",
    "merge_attention",
    "pool_spans",
    "weigh_values",
]

attention_weights = attention_weights_reference
attend_with_lse = attend_with_lse_reference


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    mask: Tensor | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attend from the newest tokens to all slots, through PyTorch's fused attention.

    The equation is that of `attention_weights_reference`, then a weighted sum of `value`.

    Args:
        query: shape [B, H, T, D]. key, value: shape [B, G, N, D]; any strides, D contiguous.
        mask: `make_mask(query, N, window)`, to share it between layers; None makes it here.
        window, softcap: as in the reference. With a softcap the reference itself runs, since the
            fused kernels have none.

    Returns:
        Shape [B, H, T, D] in the dtype of `query`; softmax in fp32.
    """
    if softcap is not None:
        return attend_reference(query, key, value, scale, window, softcap)
    batch, heads, new_tokens, size = query.shape
    kv_heads, slots = key.shape[1], key.shape[2]
    if new_tokens == 1 and window is None:
        # One token sees every slot: its query heads become rows, so keys are not repeated.
        packed = query.reshape(batch, kv_heads, heads // kv_heads, size)
        out = functional.scaled_dot_product_attention(packed, key, value, scale=scale)
        return out.reshape(batch, heads, 1, size)
    if mask is None:
        mask = make_mask(query, slots, window)
    # Each KV head becomes a batch row, seen by its group of query heads through a stride of 0.
    group = heads // kv_heads
    key = key.flatten(0, 1).unsqueeze(1).expand(-1, group, -1, -1)
    value = value.flatten(0, 1).unsqueeze(1).expand(-1, group, -1, -1)
    rows = query.reshape(batch * kv_heads, group, new_tokens, size)
    out = functional.scaled_dot_product_attention(rows, key, value, attn_mask=mask, scale=scale)
    return out.reshape(batch, heads, new_tokens, size)


def make_mask(query: Tensor, slots: int, window: int | None = None) -> Tensor:
    """Return `causal_mask` as numbers to add to logits: 0 or -inf, [T, N], like `query`.

    Fused attention takes a bool mask too, but turns it into this one in every layer.
    """
    visible = causal_mask(query.shape[2], slots, window, query.device)
    zeros = torch.zeros(visible.shape, dtype=query.dtype, device=query.device)
    return zeros.masked_fill_(~visible, float("-inf"))


def pool_spans(scores: Tensor, positions: Tensor, span_tokens: int) -> Tensor:
    """Give every slot the highest score among its `span_tokens` neighbours in the text.

    A phrase then stays or goes as a whole: attention lands where an answer begins, and the rest of
    the answer must survive with it. Slots that became neighbours by eviction do not count.

    Args:
        scores: fp32 [..., S], slots in the order of the text.
        positions: int64, broadcastable to `scores`: where each slot stood in the text.
        span_tokens: odd; 1 changes nothing.

    Returns:
        The shape of `scores`.
    """
    best = scores.clone()
    nothing = torch.tensor(float("-inf"), device=scores.device)
    reach = span_tokens // 2
    for step in range(1, min(reach, scores.shape[-1] - 1) + 1):
        near = positions[..., step:] - positions[..., :-step] <= reach
        earlier, later = best[..., :-step], best[..., step:]
        torch.maximum(earlier, torch.where(near, scores[..., step:], nothing), out=earlier)
        torch.maximum(later, torch.where(near, scores[..., :-step], nothing), out=later)
    return best
