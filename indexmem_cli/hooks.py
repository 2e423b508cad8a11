"""The hooks that make the attention of a transformers model ours.

Modelling code stays as transformers ships it. An attention function in its registry hands queries,
keys and values over; a hook on the rotary embedding leaves queries and keys unrotated, so that
each run can rotate them to the positions it wants.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from indexmem_cli.events import ModelInfo
from indexmem_cli.passes import device_of
from indexmem_cli.rotation import no_rotation, turn

ATTENTION = "indexmem"
FAR_TOKENS = 256  # the distance from which queries see a latent memory, which has no positions


class Run(Protocol):
    """What every run of a model has, whatever its attention does."""

    watched: tuple[int, ...]
    """Layers whose attention inputs are collected in `hidden`."""
    hidden: dict[int, Tensor]
    """Those inputs, [B, T, d_model]."""


RunT = TypeVar("RunT", bound=Run)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **options: Any,
) -> tuple[Tensor, None]:
    """Entry in transformers' attention registry; the model that owns `module` does the work."""
    (owner,) = module.indexmem_owner
    window, softcap = options.get("sliding_window"), options.get("softcap")
    return owner.attend(
        owner.current_run, module, query, key, value, scaling, window, softcap
    ), None


class HookedModel(ABC, Generic[RunT]):
    """A decoder whose attention is what `attend` makes of it, in one run at a time."""

    def __init__(
        self, model: PreTrainedModel, info: ModelInfo, layer_windows: Sequence[int | None]
    ) -> None:
        """Take over a loaded transformers causal language model; `detach` gives it back."""
        self.model, self.info = model, info
        self.layer_windows = list(layer_windows)
        self.decoder = model.get_decoder()
        self.device = device_of(self.decoder.get_input_embeddings())
        self.layer_devices = [device_of(layer) for layer in self.decoder.layers]
        self._run: RunT | None = None
        self._rope = self.decoder.rotary_emb
        self._rope_by_layer_type = "layer_type" in inspect.signature(self._rope.forward).parameters
        self._attention_before = model.config._attn_implementation
        AttentionInterface.register(ATTENTION, _attention)
        model.set_attn_implementation(ATTENTION)
        self._hooks = [self._rope.register_forward_hook(no_rotation)]
        for layer in self.decoder.layers:
            # In a tuple, so that torch does not take the owner for a submodule.
            layer.self_attn.indexmem_owner = (self,)
            watch = layer.self_attn.register_forward_pre_hook(self._watch, with_kwargs=True)
            self._hooks.append(watch)

    def detach(self) -> None:
        """Give the model back as it was."""
        for hook in self._hooks:
            hook.remove()
        self.model.set_attn_implementation(self._attention_before)
        for layer in self.decoder.layers:
            del layer.self_attn.indexmem_owner

    @property
    def kv_shapes(self) -> list[tuple[int, int]]:
        """Key/value heads and head size of each layer."""
        heads = self.model.config.get_text_config().num_key_value_heads
        return [(heads, layer.self_attn.head_dim) for layer in self.decoder.layers]

    @property
    def current_run(self) -> RunT:
        """What the model is run for at this moment."""
        assert self._run is not None, "the model is run by `running` alone"
        return self._run

    @contextmanager
    def running(self, run: RunT) -> Iterator[None]:
        """Let the attention of the model work for `run`."""
        self._run = run
        try:
            yield
        finally:
            self._run = None

    @abstractmethod
    def attend(
        self,
        run: RunT,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """Attend in one layer, called by transformers; queries and keys arrive unrotated.

        Args:
            query: shape [B, H, T, D]. key, value: shape [B, G, N, D], all that the layer holds.

        Returns:
            Shape [B, T, H, D].
        """

    def angles(self, module: nn.Module, like: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine [X, n, r] of positions [X, n], by the model's own rotary embedding."""
        kind = (module.layer_type,) if self._rope_by_layer_type else ()
        cos, sin = self._rope.forward(like, positions, *kind)
        return cos.to(like.device), sin.to(like.device)

    def turn_far(self, module: nn.Module, query: Tensor) -> Tensor:
        """Rotate queries to the fixed distance from which they see a latent memory."""
        far = torch.full((1, 1), FAR_TOKENS, device=query.device)
        return turn(module, query, *self.angles(module, query, far))

    def _watch(self, module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Forward pre-hook on attention: keep its input, if a scorer wants to see it."""
        run = self._run
        if run is not None and module.layer_idx in run.watched:
            states = options["hidden_states"] if "hidden_states" in options else args[0]
            run.hidden[module.layer_idx] = states
