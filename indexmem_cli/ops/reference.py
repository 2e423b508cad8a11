"""Every op in plain PyTorch, written to be read: what the fast paths are tested against."""

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
) -> tuple[Tensor, Tensor]:
    """Attention with the log of its normaliser, so that two sets of keys can be merged.

    lse[h, t] = log sum_n exp( cap(q[h, t] . k[g(h), n] * scale) + bias[g(h), n] )

    Args:
        query: [B, H, T, D]. key, value: [B, G, N, D]. bias: fp32 [B, G, N]; -inf hides.
        causal: as in `attention_weights_reference`; False shows every key to every query.

    Returns:
        Output fp32 [B, H, T, D] (0 where no key is seen) and lse fp32 [B, H, T] (-inf there).
    """
    group = query.shape[1] // key.shape[1]
    grouped = query.float().unflatten(1, (-1, group))  # [B, G, H / G, T, D]
    logits = grouped @ key.float().unsqueeze(2).transpose(-1, -2) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if bias is not None:
        logits = logits + bias[:, :, None, None]
    if causal:
        visible = causal_mask(query.shape[2], key.shape[2], None, key.device)
        logits = logits.masked_fill(~visible, float("-inf"))
    lse = logits.logsumexp(-1)
    weights = (logits - lse.unsqueeze(-1)).exp().nan_to_num(0.0)
    return (weights @ value.float().unsqueeze(2)).flatten(1, 2), lse.flatten(1, 2)


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
