"""The Hugging Face model that reads into a memory and answers from it.

The layers of its cache hand keys and values to a `MemoryState`, which its attention looks into.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from indexmem_cli import ops
from indexmem_cli.attention import SlotAttention
from indexmem_cli.errors import BackboneError, OutOfMemory
from indexmem_cli.memory.adapter import Adapter
from indexmem_cli.memory.policies import Block
from indexmem_cli.memory.room import explain_shortage
from indexmem_cli.memory.state import MemoryState, make_layer, managed_parts
from indexmem_cli.passes import CacheLayer, Pass
from indexmem_cli.rotation import turn


class Backbone(SlotAttention):
    """A decoder that reads and answers through a `MemoryState`."""

    load_adapter: Callable[[], Adapter] | None = None
    """Reads what was trained for the model, if anything was."""

    @property
    def has_adapter(self) -> bool:
        """Whether something was trained for this model."""
        return self.load_adapter is not None

    @property
    def reads_by_adapter(self) -> bool:
        """Whether an adapter decides what is kept where nothing else is asked for.

        One that was fitted quickly does not: it measures worse than policies without training.
        """
        return self.has_adapter and self.adapter.kind == "trained"

    @cached_property
    def adapter(self) -> Adapter:
        """What was trained for this model, read when it is first needed.

        Raises:
            BackboneError: there is none, or it does not fit the model.
        """
        if self.load_adapter is None:
            raise BackboneError(
                f"{self.info.id} has no adapter, which the policy 'learned' needs",
                "choose another --policy, or train one: indexmem train adapter",
            )
        if len({self.device, *self.layer_devices}) > 1:
            raise BackboneError(
                f"the policy 'learned' needs {self.info.id} on one device, not {self.info.device}",
                "choose another --policy, or one GPU: --device cuda:0",
            )
        return self.load_adapter()

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values that one token takes in a full cache, over all layers."""
        itemsize: int = self.model.dtype.itemsize
        return sum(2 * heads * size for heads, size in self.kv_shapes) * itemsize

    @property
    def eos_ids(self) -> set[int]:
        """Tokens that end an answer."""
        ids = self.model.generation_config.eos_token_id
        return set(ids) if isinstance(ids, list) else {ids} - {None}

    def gpu_peak_bytes(self) -> int | None:
        """Most memory of its GPUs held at once by this process; None on other devices."""
        if self.device.type != "cuda":
            return None
        devices = {self.device, *self.layer_devices}
        return sum(int(torch.cuda.max_memory_allocated(device)) for device in devices)

    def new_state(
        self, slots: int, sink_tokens: int = 0, recent_tokens: int = 0, by_head: bool = False
    ) -> MemoryState:
        """Return an empty memory.

        Args:
            slots: most slots per head that will be held at once, as far as known.
            by_head: whether the heads of a layer hold different numbers.
        """
        how = slots, self.info.kv_dtype == "int8", self.kv_shapes[0][0] if by_head else 0
        layers = [make_layer(window, *how) for window in self.layer_windows]
        return MemoryState(layers, 0, sink_tokens, recent_tokens)

    def read(
        self, ids: Sequence[int], state: MemoryState, want_queries: bool = False
    ) -> list[Tensor]:
        """Pass new tokens through every layer and add them to `state`; no logits are made.

        Returns:
            If asked for, the queries before rotation per managed layer, [1, H, T, D]; else nothing.
        """
        run, out = self._forward(self.decoder, ids, state, want_queries=want_queries)
        self.insist_finite(bool(out.last_hidden_state[:, -1].isfinite().all()))
        return run.queries

    def predict(
        self,
        ids: Sequence[int],
        state: MemoryState,
        want_queries: bool = False,
        want_attention: bool = False,
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Add new tokens to `state` and say what comes next.

        Returns:
            Logits fp32 [V] after the last token, for the caller to look at with `insist_finite`
            when it reads them; queries as in `read`; attention as in `probe`, over all slots with
            the new ones.
        """
        run, out = self._forward(
            self.model,
            ids,
            state,
            want_queries=want_queries,
            want_attention=want_attention,
            logits_to_keep=1,
        )
        return out.logits[0, -1].float(), run.queries, run.attention

    def predict_last(self, ids: Sequence[int], state: MemoryState, tokens: int) -> Tensor:
        """Add new tokens to `state` and say what comes next after each of the last.

        Returns:
            Logits fp32 [tokens, V].
        """
        _, out = self._forward(self.model, ids, state, logits_to_keep=tokens)
        logits: Tensor = out.logits[0].float()
        self.insist_finite(bool(logits.isfinite().all()))
        return logits

    def probe(self, ids: Sequence[int], state: MemoryState) -> list[Tensor]:
        """See what `ids` would attend to if they came next, leaving `state` as it was.

        Returns:
            Per managed layer the largest weight that any of `ids` and any query head of the group
            gives to each slot held: fp32 [1, G, S].
        """
        watched, state.watched_layers = state.watched_layers, ()
        run, _ = self._forward(self.decoder, ids, state, want_attention=True)
        state.watched_layers = watched
        for part in state.parts:
            part.drop_last(len(ids))
        state.seen -= len(ids)
        return [paid[:, :, : -len(ids)] for paid in run.attention]

    def block(self, state: MemoryState, new_tokens: int, queries: list[Tensor]) -> Block:
        """Describe the newest tokens of `state` to a scorer; `queries` as returned by `read`."""
        run = Pass(state, new_tokens)
        layers = zip(self.decoder.layers, state.layers, strict=True)
        modules = [m.self_attn for m, layer in layers for _ in managed_parts(layer)]

        def attention(index: int, first: int, end: int) -> Tensor:
            module, layer = modules[index], state.managed[index]
            seen = layer.held - (new_tokens - end)  # slots up to the last row asked for
            query = self.turn_new(module, queries[index], layer, run)[:, :, first:end]
            key = self.turn_slots(module, layer.all_keys()[:, :, :seen], layer, run, 0)
            softcap = getattr(module, "attn_logit_softcapping", None)
            weights = ops.attention_weights(query, key, module.scaling, None, softcap)
            return torch.nn.functional.pad(weights, (0, layer.held - seen))

        def rotate(index: int, x: Tensor, positions: Tensor) -> Tensor:
            return turn(modules[index], x, *self.angles(modules[index], x, positions[None]))

        def turned_keys(index: int) -> Tensor:
            layer = state.managed[index]
            return self.turn_slots(modules[index], layer.all_keys(), layer, run, 0)

        def remembered(index: int) -> Tensor:
            module, layer, query = modules[index], state.managed[index], queries[index]
            if (latent := layer.live_latent) is None:
                return torch.zeros(query.shape[:3], device=query.device)
            key, values = turned_keys(index), layer.all_values()
            softcap = getattr(module, "attn_logit_softcapping", None)
            turned = self.turn_new(module, query, layer, run)
            _, lse = ops.attend_with_lse(turned, key, values, module.scaling, None, softcap)
            return latent.share(self.turn_far(module, query), lse, module.scaling)

        hidden = {i: h[:, h.shape[1] - new_tokens :] for i, h in state.hidden.items()}
        asked = (attention, rotate, turned_keys, remembered)
        return Block(state, new_tokens, queries, hidden, [], *asked)

    def _forward(
        self,
        model: nn.Module,
        ids: Sequence[int],
        state: MemoryState,
        *,
        want_queries: bool = False,
        want_attention: bool = False,
        **options: Any,
    ) -> tuple[Pass, Any]:
        """Add new tokens to `state`; return what was seen of them and the model's own output."""
        layers = [CacheLayer(state, layer) for layer in state.layers]
        run = Pass(state, len(ids), want_queries, want_attention, state.watched_layers)
        tokens, before = torch.tensor([ids], device=self.device), state.marks()
        try:
            with torch.no_grad():
                out = self.pass_tokens(model, run, tokens, layers, **options)
        except (RuntimeError, MemoryError, OutOfMemory):
            state.undo(before)
            raise
        state.seen += len(ids)
        state.note_hidden(run.hidden)
        return run, out

    def pass_tokens(
        self,
        model: nn.Module,
        run: Pass,
        tokens: Tensor,
        layers: Sequence[CacheLayer],
        **options: Any,
    ) -> Any:
        """Pass tokens [B, T] through the model, whose attention looks into `run`."""
        cache = Cache(layers=list(layers))
        shortage = explain_shortage(self.device, self.info.device, tokens.shape[1])
        with self.running(run), shortage:
            return model(input_ids=tokens, past_key_values=cache, use_cache=True, **options)

    def insist_finite(self, finite: bool) -> None:
        """Refuse a model whose last token was not `finite`: what is wrong shows there."""
        if not finite:
            raise BackboneError(
                f"{self.info.id} computes numbers that are not finite (in {self.info.dtype})",
                "its weights are damaged, or --dtype float32 is needed",
            )

    def give_back(self) -> None:
        """Let the device have the memory that nothing is in."""
        torch.cuda.empty_cache()  # does nothing where there is no GPU
