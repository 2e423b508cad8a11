"""Rotary positions: which position each slot has, and turning queries and keys to it."""

import sys
from typing import Any

import torch
from torch import Tensor, nn

from indexmem_cli.memory.state import LayerState, MemoryState, WindowState


def slot_positions(layer: LayerState | WindowState, state: MemoryState) -> Tensor:
    """The position each slot is rotated to: int64 [N] where all heads agree, else [B, G, N]."""
    if isinstance(layer, WindowState) or state.compact:
        return torch.arange(layer.held, device=layer.keys.device)
    positions = layer.positions[:, :, : layer.held]
    return positions[0, 0] if state.uniform else positions


def no_rotation(module: nn.Module, args: Any, output: Any) -> tuple[Tensor, Tensor]:
    """Forward hook on the rotary embedding: angle 0 for everything."""
    cos, sin = output
    return torch.ones_like(cos), torch.zeros_like(sin)


def turn(module: nn.Module, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [X, heads, n, D] by angles [X or 1, n, r] in the layout of the model's own code."""
    apply = sys.modules[type(module).__module__].apply_rotary_pos_emb
    part = x[..., : cos.shape[-1]]
    turned, _ = apply(part, part[:, :0], cos, sin)  # the second argument is for keys: none here
    return torch.cat([turned, x[..., cos.shape[-1] :]], dim=-1) if part is not x else turned
