"""Attention over what a memory holds: slots at the positions they have now, and latent memories."""

import torch
from torch import Tensor, nn

from indexmem_cli import ops
from indexmem_cli.hooks import HookedModel
from indexmem_cli.memory.state import LayerState, WindowState
from indexmem_cli.passes import Pass
from indexmem_cli.rotation import slot_positions, turn

SHORT_PASS_TOKENS = 16  # passes up to this length reuse rotated keys; longer ones rotate afresh


class SlotAttention(HookedModel[Pass]):
    """A model whose attention looks into the memory of a pass."""

    def attend(
        self,
        run: Pass,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """Attend in one layer over the slots it holds, as `HookedModel.attend` says."""
        if run.fixed is not None:
            return run.fixed.attend(module, query, key, scaling, softcap)
        layer, how = run.state.layers[module.layer_idx], (scaling, softcap)
        if isinstance(layer, LayerState):
            return self._attend_slots(run, module, query, key, value, layer, *how)
        if isinstance(layer, WindowState):
            turned_query = self.turn_new(module, query, layer, run)
            turned_key = self.turn_slots(module, key, layer, run, 0)
            mask = self._mask(run, query, key.shape[2], window)
            out = ops.attend(turned_query, turned_key, value, scaling, mask, window, softcap)
            return out.transpose(1, 2)
        found, queries = [], query.chunk(len(layer.heads), dim=1)  # those that share a key
        for head, q in zip(layer.heads, queries, strict=True):
            kv = head.all_keys(), head.all_values()
            found.append(self._attend_slots(run, module, q, *kv, head, *how))
        return torch.cat(found, dim=2)

    def _attend_slots(
        self,
        run: Pass,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layer: LayerState,
        scaling: float,
        softcap: float | None,
    ) -> Tensor:
        """Attend over the slots of a managed layer, or of one head of it."""
        if run.want_queries:
            run.queries.append(query)
        turned_query = self.turn_new(module, query, layer, run)
        if run.new_tokens == 1 and ops.uses_kernels(query):
            return self._attend_one(run, module, turned_query, query, layer, scaling, softcap)
        if run.new_tokens <= SHORT_PASS_TOKENS:
            turned_key = layer.rotated_keys(
                lambda fresh, first: self.turn_slots(module, fresh, layer, run, first)
            )
        else:
            turned_key = self.turn_slots(module, key, layer, run, 0)
        if run.want_attention:
            weights = ops.attention_weights(turned_query, turned_key, scaling, None, softcap)
            run.note_attention(weights, key)
        if (latent := layer.live_latent) is not None:
            far_query = self.turn_far(module, query)
            out, lse = ops.attend_with_lse(
                turned_query,
                turned_key,
                value,
                scaling,
                softcap=softcap,
                mask=self._mask(run, query, key.shape[2], None),
            )
            out = latent.read(far_query, out, lse, scaling).to(query.dtype)
        elif run.want_attention:
            out = ops.weigh_values(weights, value)
        else:
            mask = self._mask(run, query, key.shape[2], None)
            out = ops.attend(turned_query, turned_key, value, scaling, mask, None, softcap)
        return out.transpose(1, 2)

    def _attend_one(
        self,
        run: Pass,
        module: nn.Module,
        turned: Tensor,
        query: Tensor,
        layer: LayerState,
        scaling: float,
        softcap: float | None,
    ) -> Tensor:
        """Attend from one token in one kernel, over slots and latent memory; [B, 1, H, D].

        Keys that all layers turn alike are turned as they are read; others are kept turned.
        """
        held = layer.held
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
        latent = layer.live_latent
        segment = getattr(latent, "segment", None)
        if segment is not None:
            segments.append(segment(self.turn_far(module, query)[:, :, 0]))
        out, lse, paid = ops.attend_segments(segments, scaling, softcap, run.want_attention)
        if run.want_attention:
            run.note_attention(paid.softmax(-1).unsqueeze(2), layer.keys)
        out = out.unsqueeze(2)
        if latent is not None and segment is None:
            out = latent.read(self.turn_far(module, query), out, lse.unsqueeze(2), scaling)
        return out.to(query.dtype).transpose(1, 2)

    def _mask(self, run: Pass, query: Tensor, slots: int, window: int | None) -> Tensor:
        """The causal mask of a pass: the right end of the one for the fullest layer."""
        if query.is_cuda and window is None:  # a word, not numbers
            return ops.make_mask(query, slots)
        key = (window, query.device)
        if key not in run.masks:
            run.masks[key] = ops.make_mask(query, run.most_slots, window)
        return run.masks[key][:, -slots:]

    def turn_new(
        self, module: nn.Module, query: Tensor, layer: LayerState | WindowState, run: Pass
    ) -> Tensor:
        """Rotate the queries of the newest tokens, [B, H, T, D], which every head holds alike."""
        positions = slot_positions(layer, run.state)
        first = positions.shape[-1] - query.shape[2]
        positions = positions.reshape(-1, positions.shape[-1])[:1, first:]
        return turn(module, query, *self._shared_angles(module, query, positions, run, first))

    def turn_slots(
        self,
        module: nn.Module,
        keys: Tensor,
        layer: LayerState | WindowState,
        run: Pass,
        first: int,
    ) -> Tensor:
        """Rotate the keys [B, G, n, D] of the slots from `first` on."""
        positions = slot_positions(layer, run.state)[..., first : first + keys.shape[2]]
        if positions.dim() == 1:
            shared = self._shared_angles(module, keys, positions[None], run, first)
            return turn(module, keys, *shared)
        rows = keys.flatten(0, 1).unsqueeze(1)  # heads that hold other positions become rows
        turned = turn(module, rows, *self.angles(module, rows, positions.flatten(0, 1)))
        return turned.reshape(keys.shape)

    def _shared_angles(
        self, module: nn.Module, like: Tensor, positions: Tensor, run: Pass, first: int
    ) -> tuple[Tensor, Tensor]:
        """Angles of positions [1, n] that all layers of a kind hold alike, made once a pass."""
        if not (run.state.uniform or run.state.compact):
            return self.angles(module, like, positions)
        kind, count = getattr(module, "layer_type", None), positions.shape[1]
        if run.state.compact:  # a slot's rank is its place in one table for the fullest layer
            table = (kind, like.device, like.dtype)
            if table not in run.angles:
                ranks = torch.arange(run.most_slots, device=positions.device)[None]
                run.angles[table] = self.angles(module, like, ranks)
            cos, sin = run.angles[table]
            return cos[:, first : first + count], sin[:, first : first + count]
        key = (kind, first, count, like.device, like.dtype)
        if key not in run.angles:
            run.angles[key] = self.angles(module, like, positions)
        return run.angles[key]
