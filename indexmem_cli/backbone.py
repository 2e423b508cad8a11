"""The Hugging Face model, with the hooks that make its cache ours.

Modelling code stays as transformers ships it. An attention function in its registry and a cache
layer hand keys and values to a `MemoryState`; a hook on the rotary embedding leaves queries and
keys unrotated, so that each pass can rotate them to the positions it wants.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor
from transformers import AttentionInterface, Cache

from indexmem_cli import ops
from indexmem_cli.errors import BackboneError, OutOfMemory
from indexmem_cli.events import ModelInfo
from indexmem_cli.memory.adapter import Adapter
from indexmem_cli.memory.policies import Block
from indexmem_cli.memory.room import explain_shortage
from indexmem_cli.memory.state import (
    HeadsState,
    LayerState,
    MemoryState,
    make_layer,
    managed_parts,
)
from indexmem_cli.passes import CacheLayer, Pass, device_of
from indexmem_cli.rotation import no_rotation, slot_positions, turn

ATTENTION = "indexmem"
FAR_TOKENS = 256  # the distance from which queries see a latent memory, which has no positions
SHORT_PASS_TOKENS = 16  # passes up to this length reuse rotated keys; longer ones rotate afresh


def _attention(module, query, key, value, attention_mask, scaling=None, **options):
    """Entry in transformers' attention registry; the backbone that owns `module` does the work."""
    (backbone,) = module.indexmem_backbone
    window, softcap = options.get("sliding_window"), options.get("softcap")
    return backbone.attend(module, query, key, value, scaling, window, softcap), None


class Backbone:
    """A decoder that reads and answers through a `MemoryState`."""

    def __init__(self, model, info: ModelInfo, layer_windows: Sequence[int | None]) -> None:
        """Take over a loaded transformers causal language model; `detach` gives it back."""
        self.model, self.info = model, info
        self.layer_windows: list[int | None] = list(layer_windows)
        self.decoder = model.get_decoder()
        self.device = device_of(self.decoder.get_input_embeddings())
        self.layer_devices = [device_of(layer) for layer in self.decoder.layers]
        self.load_adapter: Callable[[], Adapter] | None = None
        self._run: Pass | None = None
        self._rope = self.decoder.rotary_emb
        self._rope_by_layer_type = "layer_type" in inspect.signature(self._rope.forward).parameters
        self._attention_before = model.config._attn_implementation
        AttentionInterface.register(ATTENTION, _attention)
        model.set_attn_implementation(ATTENTION)
        self._hooks = [self._rope.register_forward_hook(no_rotation)]
        for layer in self.decoder.layers:
            # In a tuple, so that torch does not take the backbone for a submodule.
            layer.self_attn.indexmem_backbone = (self,)
            watch = layer.self_attn.register_forward_pre_hook(self._watch, with_kwargs=True)
            self._hooks.append(watch)

    def detach(self) -> None:
        """Give the model back as it was."""
        for hook in self._hooks:
            hook.remove()
        self.model.set_attn_implementation(self._attention_before)
        for layer in self.decoder.layers:
            del layer.self_attn.indexmem_backbone

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
        if not self.has_adapter:
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
    def kv_shapes(self) -> list[tuple[int, int]]:
        """Key/value heads and head size of each layer."""
        heads = self.model.config.get_text_config().num_key_value_heads
        return [(heads, layer.self_attn.head_dim) for layer in self.decoder.layers]

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values that one token takes in a full cache, over all layers."""
        return sum(2 * heads * size for heads, size in self.kv_shapes) * self.model.dtype.itemsize

    @property
    def eos_ids(self) -> set[int]:
        """Tokens that end an answer."""
        ids = self.model.generation_config.eos_token_id
        return set(ids) if isinstance(ids, list) else {ids} - {None}

    def gpu_peak_bytes(self) -> int | None:
        """Most memory of its GPUs held at once by this process; None on other devices."""
        if self.device.type != "cuda":
            return None
        return sum(map(torch.cuda.max_memory_allocated, {self.device, *self.layer_devices}))

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
            query = self._turn_new(module, queries[index], layer, run)[:, :, first:end]
            key = self.turn_slots(module, layer.all_keys()[:, :, :seen], layer, run, 0)
            softcap = getattr(module, "attn_logit_softcapping", None)
            weights = ops.attention_weights(query, key, module.scaling, None, softcap)
            return torch.nn.functional.pad(weights, (0, layer.held - seen))

        def rotate(index: int, x: Tensor, positions: Tensor) -> Tensor:
            return turn(modules[index], x, *self.angles(modules[index], x, positions[None]))

        def remembered(index: int) -> Tensor:
            module, layer, query = modules[index], state.managed[index], queries[index]
            if layer.latent is None or layer.latent.is_silent:
                return torch.zeros(query.shape[:3], device=query.device)
            key = self.turn_slots(module, layer.all_keys(), layer, run, 0)
            values = layer.all_values()
            softcap = getattr(module, "attn_logit_softcapping", None)
            turned = self._turn_new(module, query, layer, run)
            _, lse = ops.attend_with_lse(turned, key, values, module.scaling, None, softcap)
            return layer.latent.share(self._turn_far(module, query), lse, module.scaling)

        hidden = {i: h[:, h.shape[1] - new_tokens :] for i, h in state.hidden.items()}
        return Block(state, new_tokens, queries, hidden, [], attention, rotate, remembered)

    def attend(self, module, query, key, value, scaling, window, softcap) -> Tensor:
        """Attend in one layer, called by transformers; queries and keys arrive unrotated.

        Args:
            query: shape [B, H, T, D]. key, value: shape [B, G, N, D], all slots.

        Returns:
            Shape [B, T, H, D].
        """
        if self._run.fixed is not None:
            return self._run.fixed.attend(module, query, key, scaling, softcap)
        layer, how = self._run.state.layers[module.layer_idx], (scaling, window, softcap)
        if not isinstance(layer, HeadsState):
            return self._attend_part(module, query, key, value, layer, *how)
        found, queries = [], query.chunk(len(layer.heads), dim=1)  # those that share a key
        for head, q in zip(layer.heads, queries, strict=True):
            kv = head.all_keys(), head.all_values()
            found.append(self._attend_part(module, q, *kv, head, *how))
        return torch.cat(found, dim=2)

    def _attend_part(self, module, query, key, value, layer, scaling, window, softcap) -> Tensor:
        """Attend over the slots of a layer, or of one head of it."""
        run, managed = self._run, isinstance(layer, LayerState)
        if managed and run.want_queries:
            run.queries.append(query)
        turned_query = self._turn_new(module, query, layer, run)
        if managed and run.new_tokens == 1 and ops.uses_kernels(query):
            return self._attend_one(module, turned_query, query, layer, scaling, softcap)
        if managed and run.new_tokens <= SHORT_PASS_TOKENS:
            turned_key = layer.rotated_keys(
                lambda fresh, first: self.turn_slots(module, fresh, layer, run, first)
            )
        else:
            turned_key = self.turn_slots(module, key, layer, run, 0)
        window = None if managed else window
        latent = layer.latent if managed else None
        if latent is not None and not latent.is_silent:
            far_query = self._turn_far(module, query)
            out, lse = ops.attend_with_lse(turned_query, turned_key, value, scaling, None, softcap)
            out = latent.read(far_query, out, lse, scaling).to(query.dtype)
            if run.want_attention:
                weights = ops.attention_weights(turned_query, turned_key, scaling, None, softcap)
                run.note_attention(weights, key)
        elif managed and run.want_attention:
            weights = ops.attention_weights(turned_query, turned_key, scaling, window, softcap)
            run.note_attention(weights, key)
            out = ops.weigh_values(weights, value)
        else:
            mask = self._mask(run, query, key.shape[2], window)
            out = ops.attend(turned_query, turned_key, value, scaling, mask, window, softcap)
        return out.transpose(1, 2)

    def _attend_one(self, module, turned, query, layer, scaling, softcap) -> Tensor:
        """Attend from one token in one kernel, over slots and latent memory; [B, 1, H, D].

        Keys that all layers turn alike are turned as they are read; others are kept turned.
        """
        run, held = self._run, layer.held
        if run.state.uniform or run.state.compact:
            slots = {"key": layer.keys, "value": layer.values}
            if layer.int8:
                slots |= {"key_scale": layer.key_scales, "value_scale": layer.value_scales}
            slots = {name: rows[:, :, :held] for name, rows in slots.items()}
            positions = slot_positions(layer, run.state)[None]
            exact = torch.empty(0, device=query.device)  # angles are made in its dtype
            angles = self._shared_angles(module, exact, positions, run, 0)
            slots |= {
                name: angle[..., : angle.shape[-1] // 2]
                for name, angle in zip(("cos", "sin"), angles, strict=True)
            }
        else:
            key = layer.rotated_keys(
                lambda fresh, first: self.turn_slots(module, fresh, layer, run, first)
            )
            slots = {"key": key, "value": layer.all_values()}
        segments = [ops.Segment(turned[:, :, 0], **slots)]
        latent = layer.latent if layer.latent is not None and not layer.latent.is_silent else None
        joined = hasattr(latent, "segment")
        if joined:
            segments.append(latent.segment(self._turn_far(module, query)[:, :, 0]))
        out, lse, paid = ops.attend_segments(segments, scaling, softcap, run.want_attention)
        if run.want_attention:
            run.note_attention(paid.softmax(-1).unsqueeze(2), layer.keys)
        out = out.unsqueeze(2)
        if latent is not None and not joined:
            out = latent.read(self._turn_far(module, query), out, lse.unsqueeze(2), scaling)
        return out.to(query.dtype).transpose(1, 2)

    def _watch(self, module, args, options) -> None:
        """Forward pre-hook on attention: keep its input, if a scorer wants to see it."""
        run = self._run
        if run is not None and module.layer_idx in run.watched:
            states = options["hidden_states"] if "hidden_states" in options else args[0]
            run.hidden[module.layer_idx] = states

    @torch.no_grad()
    def _forward(self, model, ids, state, *, want_queries=False, want_attention=False, **options):
        layers = [CacheLayer(state, layer) for layer in state.layers]
        run = Pass(state, len(ids), want_queries, want_attention, state.watched_layers)
        tokens, before = torch.tensor([ids], device=self.device), state.marks()
        try:
            out = self.pass_tokens(model, run, tokens, layers, **options)
        except (RuntimeError, MemoryError, OutOfMemory):
            state.undo(before)
            raise
        state.seen += len(ids)
        state.note_hidden(run.hidden)
        return run, out

    def pass_tokens(self, model, run: Pass, tokens: Tensor, layers: list[CacheLayer], **options):
        """Pass tokens [B, T] through the model, whose attention looks into `run`."""
        self._run, options["past_key_values"] = run, Cache(layers=layers)
        try:
            with explain_shortage(self.device, self.info.device, tokens.shape[1]):
                return model(input_ids=tokens, use_cache=True, **options)
        finally:
            self._run = None

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

    def _mask(self, run: Pass, query: Tensor, slots: int, window: int | None) -> Tensor:
        """The causal mask of a pass, shared by the layers that hold as many slots."""
        key = (slots, window, query.device)
        if key not in run.masks:
            run.masks[key] = ops.make_mask(query, slots, window)
        return run.masks[key]

    def _turn_new(self, module, query: Tensor, layer, run: Pass) -> Tensor:
        """Rotate the queries of the newest tokens, [B, H, T, D], which every head holds alike."""
        positions = slot_positions(layer, run.state)
        first = positions.shape[-1] - query.shape[2]
        positions = positions.reshape(-1, positions.shape[-1])[:1, first:]
        return turn(module, query, *self._shared_angles(module, query, positions, run, first))

    def _turn_far(self, module, query: Tensor) -> Tensor:
        """Rotate queries to the fixed distance from which they see a latent memory."""
        far = torch.full((1, 1), FAR_TOKENS, device=query.device)
        return turn(module, query, *self.angles(module, query, far))

    def turn_slots(self, module, keys: Tensor, layer, run: Pass, first: int) -> Tensor:
        """Rotate the keys [B, G, n, D] of the slots from `first` on."""
        positions = slot_positions(layer, run.state)[..., first : first + keys.shape[2]]
        if positions.dim() == 1:
            shared = self._shared_angles(module, keys, positions[None], run, first)
            return turn(module, keys, *shared)
        rows = keys.flatten(0, 1).unsqueeze(1)  # heads that hold other positions become rows
        turned = turn(module, rows, *self.angles(module, rows, positions.flatten(0, 1)))
        return turned.reshape(keys.shape)

    def _shared_angles(self, module, like, positions: Tensor, run: Pass, first: int):
        """Angles of positions [1, n] that all layers of a kind hold alike, made once a pass."""
        if not (run.state.uniform or run.state.compact):
            return self.angles(module, like, positions)
        kind, count = getattr(module, "layer_type", None), positions.shape[1]
        key = (kind, first, count, like.device, like.dtype)
        if key not in run.angles:
            run.angles[key] = self.angles(module, like, positions)
        return run.angles[key]

    def angles(self, module, like: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine [X, n, r] of positions [X, n], by the model's own rotary embedding."""
        kind = (module.layer_type,) if self._rope_by_layer_type else ()
        cos, sin = self._rope.forward(like, positions, *kind)
        return cos.to(like.device), sin.to(like.device)
