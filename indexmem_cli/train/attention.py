"""Causal attention in tiles of queries, for training on a CPU.

A tile looks at the keys up to its own end and no further, so that little is computed to be masked.
Compiled, a step of 1,024 tokens takes half the time of PyTorch's fused attention, whose backward
pass is slow there (`benchmarks/LOG.md`).
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

TILES = "tiles"
TILE_TOKENS = 256


def attend_in_tiles(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend causally, as an entry of transformers' attention registry; the softmax is fp32.

    Args:
        query: shape [B, H, T, D]. key, value: shape [B, G, T, D]. attention_mask: not looked at;
            rows are padded at their end alone.

    Returns:
        Shape [B, T, H, D].
    """
    heads, tokens = query.shape[1:3]
    grouped = query.unflatten(1, (key.shape[1], -1))  # [B, G, H / G, T, D]
    found = []
    for first in range(0, tokens, TILE_TOKENS):
        end = min(first + TILE_TOKENS, tokens)
        rows = grouped[:, :, :, first:end].flatten(2, 3)
        scores = (rows @ key[:, :, :end].mT).float().unflatten(2, (-1, end - first)) * scaling
        places = torch.arange(end, device=query.device)
        scores = scores.masked_fill(places > places[first:, None], float("-inf"))
        weights = scores.softmax(-1).to(value.dtype).flatten(2, 3)
        found.append((weights @ value[:, :, :end]).unflatten(2, (-1, end - first)))
    return torch.cat(found, dim=3).flatten(1, 2).transpose(1, 2), None


AttentionInterface.register(TILES, attend_in_tiles)
