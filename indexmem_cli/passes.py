"""One run of a model over new tokens, and the cache that transformers sees in it."""

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.cache_utils import CacheLayerMixin

from indexmem_cli.memory.state import Layer, MemoryState


class Attends(Protocol):
    """What takes over attention for a step of fixed shape."""

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, scaling: float, softcap: float | None
    ) -> Tensor:
        """Attend from one token, [B, H, 1, D] with its key, both unrotated: [B, 1, H, D]."""
        ...


@dataclass
class Pass:
    """One run of the model over new tokens: what the attention function needs to know."""

    state: MemoryState
    new_tokens: int
    want_queries: bool = False
    want_attention: bool = False
    watched: tuple[int, ...] = ()
    fixed: Attends | None = None
    hidden: dict[int, Tensor] = field(default_factory=dict)
    queries: list[Tensor] = field(default_factory=list)
    attention: list[Tensor] = field(default_factory=list)
    # Layers on one device share these, cut to the slots they hold.
    masks: dict[tuple[int | None, torch.device], Tensor] = field(default_factory=dict)
    angles: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = field(default_factory=dict)
    most_slots: int = field(init=False)
    """In the fullest layer, the new tokens among them."""

    def __post_init__(self) -> None:
        self.most_slots = max(part.held for part in self.state.parts) + self.new_tokens

    def note_attention(self, weights: Tensor, key: Tensor) -> None:
        """Keep the largest weight of any row and head of the group: [B, H, T, N] to [B, G, N]."""
        self.attention.append(weights.unflatten(1, (key.shape[1], -1)).amax(dim=(2, 3)))


class CacheLayer(CacheLayerMixin):
    """A transformers cache layer that writes into one layer of a `MemoryState`."""

    is_sliding = False

    def __init__(self, state: MemoryState, layer: Layer) -> None:
        super().__init__()
        self.state, self.layer = state, layer

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        pass

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return self.layer.append(key_states, value_states, self.state.seen)

    def get_seq_length(self) -> int:
        return self.state.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        raise AssertionError("masks are made in the attention function")

    def get_max_length(self) -> int:
        return -1


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes; accelerate may keep its weights elsewhere, and fetch them."""
    place = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    return next(module.parameters()).device if place is None else torch.device(place)
