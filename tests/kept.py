"""What a memory holds, as tests look at it."""

import torch

from indexmem_cli.memory.state import MemoryState


def kept_positions(state: MemoryState) -> list[int]:
    """The positions held by at least one layer and head, ascending."""
    held = [layer.positions[:, :, : layer.held].reshape(-1) for layer in state.managed]
    return torch.cat(held).unique().tolist()
