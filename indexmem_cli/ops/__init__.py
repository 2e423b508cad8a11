"""The operations on keys and values, one documented face each.

`reference.py` and `slots_reference.py` specify them. Those with a Triton kernel run it on a CUDA
tensor; INDEXMEM_KERNELS=reference turns that off, and =interpret runs the kernels on the CPU,
slowly, to see what they do without a device.
"""

import os
from collections.abc import Callable
from functools import cache, wraps
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from indexmem_cli.errors import ConfigError
from indexmem_cli.ops import reference, slots_reference
from indexmem_cli.ops.reference import (
    Segment,
    attend_reference,
    attention_weights_reference,
    causal_mask,
    merge_attention,
    quantise_rows,
    weigh_values,
)
from indexmem_cli.ops.slots_reference import MAX_HIDDEN, Selection

__all__ = [
    "MAX_HIDDEN",
    "Segment",
    "Selection",
    "assign_clusters",
    "attend",
    "attend_segments",
    "attend_with_lse",
    "attention_weights",
    "compact_slots",
    "make_mask",
    "merge_attention",
    "pool_spans",
    "quantise_rows",
    "score_pairs",
    "score_states",
    "select_slots",
    "sum_clusters",
    "update_fast_weights",
    "uses_kernels",
    "weigh_values",
]

CHOICES = ("auto", "interpret", "reference")
attention_weights = attention_weights_reference


def uses_kernels(tensor: Tensor) -> bool:
    """Say whether ops on this tensor run as Triton kernels.

    Raises:
        ConfigError: INDEXMEM_KERNELS is none of `CHOICES`.
    """
    choice = os.environ.get("INDEXMEM_KERNELS", "auto")
    if choice not in CHOICES:
        raise ConfigError(f"INDEXMEM_KERNELS: {choice!r}", f"choose one of: {', '.join(CHOICES)}")
    if choice == "interpret":
        return _has_triton() and tensor.device.type == "cpu"
    return choice == "auto" and tensor.is_cuda and _has_triton() and _is_capable(tensor.device)


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@cache
def _is_capable(device: torch.device) -> bool:
    """Whether a device multiplies bf16 tiles; older ones run PyTorch's own code."""
    return bool(torch.cuda.get_device_capability(device) >= (8, 0))


def _face(name: str, home: ModuleType, file: str) -> Callable[..., Any]:
    """The face of an op: its reference, or `NAME_triton` of `kernels/FILE.py` where that serves.

    No kernel has a gradient, so where one is asked for the reference runs.
    """
    plain = getattr(home, f"{name}_reference")

    @wraps(plain)
    def face(first: Any, *args: Any, **options: Any) -> Any:
        tensor = first[0] if isinstance(first, list) else first
        tensor = getattr(tensor, "query", tensor)
        if not uses_kernels(tensor) or _wants_gradient(tensor, *args, *options.values()):
            return plain(first, *args, **options)
        kernels = import_module(f"indexmem_cli.ops.kernels.{file}")
        return getattr(kernels, f"{name}_triton")(first, *args, **options)

    return face


def _wants_gradient(*args: Any) -> bool:
    """Whether a gradient is asked for of a tensor, or of one in a pair of weights."""
    each = (x for arg in args for x in (arg if isinstance(arg, (list, tuple)) else (arg,)))
    return bool(torch.is_grad_enabled()) and any(
        isinstance(x, Tensor) and x.requires_grad for x in each
    )


score_states = _face("score_states", slots_reference, "score")
score_pairs = _face("score_pairs", slots_reference, "score")
select_slots = _face("select_slots", slots_reference, "select")
compact_slots = _face("compact_slots", slots_reference, "select")
attend_segments = _face("attend_segments", reference, "decode")
assign_clusters = _face("assign_clusters", slots_reference, "remember")
sum_clusters = _face("sum_clusters", slots_reference, "remember")
update_fast_weights = _face("update_fast_weights", slots_reference, "remember")
_attend_with_lse = _face("attend_with_lse", reference, "chunk")


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
        window, softcap: as in the reference. PyTorch's fused attention has no softcap: with one our
            own kernel runs, or the reference itself.

    Returns:
        Shape [B, H, T, D] in the dtype of `query`; softmax in fp32.
    """
    if softcap is not None and uses_kernels(query):
        out, _ = attend_with_lse(query, key, value, scale, None, softcap, True, window)
        return out.to(query.dtype)
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
    rows = _as_rows(query, key, value)
    out = functional.scaled_dot_product_attention(*rows, attn_mask=mask, scale=scale)
    return out.reshape(batch, heads, new_tokens, size)


def attend_with_lse(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    bias: Tensor | None = None,
    softcap: float | None = None,
    causal: bool = True,
    window: int | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention with the log of its normaliser, as `attend_with_lse_reference` says.

    On a CPU PyTorch's fused attention gives both, several times as fast as the reference.

    Args:
        mask: of causal attention: `make_mask(query, N, window)`, to share it; None makes it here.

    Returns:
        As there; of a 16-bit query on a CPU the output is rounded to 16 bits before it is fp32.
    """
    wants_more = softcap is not None or _wants_gradient(query, key, value, bias)
    fused = None if wants_more else _fused_with_lse(query, key)
    if fused is None:
        how = bias, softcap, causal, window
        found: tuple[Tensor, Tensor] = _attend_with_lse(query, key, value, scale, *how)
        return found
    if mask is None and causal:
        mask = make_mask(query, key.shape[2], window)
    dtype = torch.promote_types(query.dtype, key.dtype)
    if bias is not None:  # fp32 beside 16 bits, but fp64 where the logits are
        by_row = bias.to(torch.promote_types(bias.dtype, dtype)).flatten(0, 1)[:, None, None]
        mask = by_row if mask is None else by_row + mask
    rows = _as_rows(*(tensor.to(dtype) for tensor in (query, key, value)))
    out, lse = fused(*rows, attn_mask=mask, scale=scale)
    if mask is not None and bias is not None:  # where nothing is seen the fused code says 0
        lse = lse.masked_fill(mask.isneginf().all(-1), float("-inf"))
    return reference.exact(out).reshape(query.shape), reference.exact(lse).reshape(query.shape[:3])


def _fused_with_lse(query: Tensor, key: Tensor) -> Callable[..., tuple[Tensor, Tensor]] | None:
    """PyTorch's fused attention with its normaliser, which it has on a CPU; not of no keys."""
    if query.device.type != "cpu" or uses_kernels(query) or not (query.numel() and key.numel()):
        return None
    return getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)


def _as_rows(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Make each KV head a batch row, seen by its group of query heads through a stride of 0."""
    group = query.shape[1] // key.shape[1]
    key, value = (x.flatten(0, 1).unsqueeze(1).expand(-1, group, -1, -1) for x in (key, value))
    return query.reshape(-1, group, *query.shape[2:]), key, value


def make_mask(query: Tensor, slots: int, window: int | None = None) -> Tensor:
    """Return `causal_mask` in the form that is fastest for `attend`.

    Numbers to add to logits, 0 or -inf, [T, N], like `query`: fused attention takes a bool mask
    too, but turns it into this one in every layer. On a CUDA device, where there is no window, only
    the word that it is causal: flash attention takes no mask of numbers.
    """
    if query.is_cuda and window is None:
        from torch.nn.attention.bias import causal_lower_right  # slow to import

        return causal_lower_right(query.shape[2], slots)
    new_tokens = query.shape[2]
    if window is None:  # only new tokens can be hidden: the rest need not be looked at
        hidden = query.new_full((new_tokens, new_tokens), float("-inf")).triu_(1)
        return functional.pad(hidden, (slots - new_tokens, 0))
    visible = causal_mask(new_tokens, slots, window, query.device)
    return query.new_zeros(visible.shape).masked_fill_(~visible, float("-inf"))


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
