"""Every op in plain PyTorch, written to be read: what the fast paths are tested against."""

from dataclasses import dataclass

import torch
from torch import Tensor


def attention_weights_reference(
    query: Tensor,
    key: Tensor,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Softmax attention of the newest tokens over all slots, before the values.

    A[h, t, n] = softmax_n( cap(q[h, t] . k[g(h), n] * scale) ),  n <= N - T + t, in the window

    The last T of the N slots are the queries' own tokens: earlier slots are visible to all of them.

    Args:
        query: shape [B, H, T, D].
        key: shape [B, G, N, D], H a multiple of G, N >= T.
        scale: factor of the logits.
        window: tokens visible back from a query, itself included; None for all.
        softcap: logits become softcap * tanh(logits / softcap); None for no cap.

    Returns:
        Weights of shape [B, H, T, N] in fp32; each row sums to 1.
    """
    group = query.shape[1] // key.shape[1]
    grouped = query.float().unflatten(1, (-1, group))  # [B, G, H / G, T, D]
    logits = (grouped @ key.float().unsqueeze(2).transpose(-1, -2)).flatten(1, 2) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    visible = causal_mask(query.shape[2], key.shape[2], window, key.device)
    return logits.masked_fill(~visible, float("-inf")).softmax(dim=-1)


def attend_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attention of the newest tokens over all slots; arguments as `attention_weights_reference`.

    Returns:
        Shape [B, H, T, D] in the dtype of `query`; sums in fp32.
    """
    weights = attention_weights_reference(query, key, scale, window, softcap)
    return weigh_values(weights, value)


def weigh_values(weights: Tensor, value: Tensor) -> Tensor:
    """Sum values [B, G, N, D] by attention weights [B, H, T, N]: [B, H, T, D] in their dtype."""
    grouped = weights.unflatten(1, (value.shape[1], -1))  # [B, G, H / G, T, N]
    return (grouped @ value.float().unsqueeze(2)).flatten(1, 2).to(value.dtype)


def causal_mask(
    new_tokens: int, slots: int, window: int | None, device: torch.device | str
) -> Tensor:
    """Which slots each new token sees: bool [T, N]; the last token sees up to the last slot."""
    visible = torch.ones(new_tokens, slots, dtype=torch.bool, device=device)
    visible = visible.tril(slots - new_tokens)
    return visible if window is None else visible.triu(slots - new_tokens - window + 1)


def attend_with_lse_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    bias: Tensor | None = None,
    softcap: float | None = None,
    causal: bool = True,
    window: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention with the log of its normaliser, so that two sets of keys can be merged.

    lse[h, t] = log sum_n exp( cap(q[h, t] . k[g(h), n] * scale) + bias[g(h), n] )

    Args:
        query: [B, H, T, D]. key, value: [B, G, N, D]. bias: fp32 [B, G, N]; -inf hides.
        causal: as in `attention_weights_reference`; False shows every key to every query.
        window: of causal attention, as there.

    Returns:
        Output fp32 [B, H, T, D] (0 where no key is seen) and lse fp32 [B, H, T] (-inf there).
    """
    group = query.shape[1] // key.shape[1]
    key, value = exact(key), exact(value)
    grouped = exact(query).unflatten(1, (-1, group))  # [B, G, H / G, T, D]
    logits = grouped @ key.unsqueeze(2).transpose(-1, -2) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if bias is not None:
        logits = logits + bias[:, :, None, None]
    if causal:
        visible = causal_mask(query.shape[2], key.shape[2], window, key.device)
        logits = logits.masked_fill(~visible, float("-inf"))
    lse = logits.logsumexp(-1)
    weights = (logits - lse.unsqueeze(-1)).exp().nan_to_num(0.0)
    return (weights @ value.unsqueeze(2)).flatten(1, 2), lse.flatten(1, 2)


def merge_attention(out: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> Tensor:
    """Joint attention over two disjoint sets of keys, from the attention over each.

    o = o1 + sigmoid(lse2 - lse1) (o2 - o1). A side that saw nothing has lse -inf and no part.

    Args:
        out, other: fp32 [..., D]. lse, other_lse: fp32 [...].
    """
    share = torch.sigmoid(other_lse - lse)
    share = share.masked_fill(other_lse == float("-inf"), 0.0)
    share = share.masked_fill((lse == float("-inf")) & (other_lse > float("-inf")), 1.0)
    return torch.lerp(out, other, share.unsqueeze(-1))


def exact(tensor: Tensor) -> Tensor:
    """Return `tensor` in fp32, or in fp64 where it is: so that tests can ask for the truth."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@dataclass(frozen=True)
class Segment:
    """A set of keys that one new token attends to, and the query as that set sees it."""

    query: Tensor
    """[B, H, D]."""
    key: Tensor
    """[B, G, N, D] in the dtype of the query, or int8 with `key_scale`."""
    value: Tensor
    """[B, G, N, D] like `key`."""
    cos: Tensor | None = None
    """fp32 [1 or B * G, N, R / 2], if keys are to be turned as they are read: the first R of the D
    columns, as pairs (d, d + R / 2)."""
    sin: Tensor | None = None
    key_scale: Tensor | None = None
    """fp32 [B, G, N]: what a row of int8 keys is multiplied by."""
    value_scale: Tensor | None = None
    bias: Tensor | None = None
    """fp32 [B, G, N], added to the logits; -inf hides a slot."""
    length: Tensor | None = None
    """int32 [B, G]: slots in use, the first ones; None for all."""


def attend_segments_reference(
    segments: list[Segment], scale: float, softcap: float | None = None, want_logits: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Attention of one new token over several sets of keys at once.

        o = softmax over all segments of ( cap(q . turn(k) * scale) + bias ) times the values

    Returns:
        Output fp32 [B, H, D] (0 where nothing is seen), the log of the normaliser fp32 [B, H] (-inf
        there), and if asked for the logits of the first segment, fp32 [B, H, N], -inf beyond
        `length`.
    """
    logits, values = [], []
    for segment in segments:
        key, value = exact(segment.key), exact(segment.value)
        if segment.query.dtype == torch.float64:
            key, value = key.double(), value.double()
        if segment.key_scale is not None and segment.value_scale is not None:
            key = key * segment.key_scale.to(key.dtype).unsqueeze(-1)
            value = value * segment.value_scale.to(key.dtype).unsqueeze(-1)
        if segment.cos is not None:
            key = turn_halves(key, segment.cos, segment.sin)
        query = exact(segment.query).unflatten(1, (key.shape[1], -1))  # [B, G, H / G, D]
        paid = query @ key.transpose(-1, -2) * scale
        if softcap is not None:
            paid = softcap * torch.tanh(paid / softcap)
        if segment.bias is not None:
            paid = paid + segment.bias.to(paid.dtype).unsqueeze(2)
        if segment.length is not None:
            place = torch.arange(key.shape[2], device=key.device)
            beyond = place >= segment.length[:, :, None, None]
            paid = paid.masked_fill(beyond, float("-inf"))
            value = value.masked_fill(beyond.transpose(-1, -2), 0.0)
        logits.append(paid)
        values.append(value)
    paid = torch.cat(logits, dim=-1)
    lse = paid.logsumexp(-1)
    weights = (paid - lse.unsqueeze(-1)).exp().nan_to_num(0.0)
    out = weights @ torch.cat(values, dim=2)
    first = logits[0].flatten(1, 2) if want_logits else None
    return out.flatten(1, 2), lse.flatten(1, 2), first


def turn_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first R columns of x [B, G, N, D] as pairs (d, d + R / 2) by angles [X, N, R / 2].

    X is 1, or B * G for angles of their own in every head.
    """
    half = cos.shape[-1]
    batch, heads = x.shape[:2]
    own = cos.shape[0] == batch * heads
    shape = (batch, heads) if own else (1, 1)
    cos, sin = (a.to(x.dtype).reshape(*shape, *a.shape[1:]) for a in (cos, sin))
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Store rows [..., D] as int8 with one scale each: x ~ rows * scale.

    Returns:
        int8 [..., D], and fp32 [...]: the largest entry of the row over 127.
    """
    x = x.float()
    scale = x.abs().amax(dim=-1) / 127
    rows = (x / scale.clamp(min=1e-30).unsqueeze(-1)).round()
    return rows.to(torch.int8), scale
