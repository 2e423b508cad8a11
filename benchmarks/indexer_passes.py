"""Passes of the model that methods share: the start of a text, and answers as rows of a batch.

Both change what a measurement costs and, but for rounding, nothing of what it finds.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence

from indexmem_cli import ops
from indexmem_cli.backbone import Backbone
from indexmem_cli.config import AnswerConfig
from indexmem_cli.engine import Reader
from indexmem_cli.memory.state import MemoryState, managed_parts
from indexmem_cli.passes import CacheLayer, Pass
from indexmem_cli.rotation import slot_positions, turn


class SharedStart:
    """A backbone that reads a text's start once, for all memories that have evicted nothing yet.

    Until then keys, values and queries are the same, whatever decides what will be evicted.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.last_states: Tensor = torch.empty(0)
        """The decoder's output for the newest chunk, [T, d_model]."""
        backbone.decoder.register_forward_hook(self._note)
        self.forget()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backbone, name)

    def _note(self, module: nn.Module, args: Any, out: Any) -> None:
        self.last_states = out.last_hidden_state[0]

    def forget(self) -> None:
        """Have another text next."""
        self.whole = self.backbone.new_state(0)
        self.whole.watched_layers = tuple(range(len(self.whole.layers)))
        self.known: dict[int, tuple[list[int], list[Tensor], dict[int, Tensor], Tensor]] = {}

    def read(
        self, ids: Sequence[int], state: MemoryState, want_queries: bool = False
    ) -> list[Tensor]:
        """Read a chunk, as `Backbone.read`, or take over what it became before."""
        first, end = state.seen, state.seen + len(ids)
        if any(part.held < first for part in state.parts):
            return self.backbone.read(ids, state, want_queries)
        if first == self.whole.seen:
            if state.compact:
                self.whole.use_compact_positions()
            queries = self.backbone.read(ids, self.whole, want_queries=True)
            self.known[first] = [*ids], queries, self.whole.hidden, self.last_states
            self.whole.hidden = {}
        known, queries, hidden, self.last_states = self.known[first]
        if known != [*ids]:
            raise ValueError("another text, or other chunks: forget() what was read")
        for layer, of_whole in zip(state.layers, self.whole.layers, strict=True):
            rows = (x[:, :, first:end] for x in (of_whole.keys, of_whole.values))
            layer.append(*rows, first)
        state.seen = end
        state.note_hidden({i: hidden[i] for i in state.watched_layers})
        if not want_queries:
            return []
        pairs = zip(state.layers, queries, strict=True)
        return [part for layer, q in pairs for part in q.chunk(len(managed_parts(layer)), dim=1)]


class _Rows:
    """One layer of several memories: a row for each KV head of each, the newest tokens last."""

    def __init__(self, backbone: Backbone, index: int, states: Sequence[MemoryState]) -> None:
        module = backbone.decoder.layers[index].self_attn
        keys, values, held, following = [], [], [], []
        for state in states:
            run = Pass(state, 0)
            for part in managed_parts(state.layers[index]):
                turned = backbone.turn_slots(module, part.all_keys(), part, run, 0)
                keys += turned[0]
                values += part.all_values()[0]
                held += [part.held] * turned.shape[1]
                last = int(slot_positions(part, state).max()) + 1
                following += [last if state.compact else state.seen] * turned.shape[1]
        self.keys = pad_sequence(keys, batch_first=True, padding_side="left")  # [R, N, D]
        self.values = pad_sequence(values, batch_first=True, padding_side="left")
        self.empty = self.keys.shape[1] - torch.tensor(held)[:, None, None, None]
        self.following = torch.tensor(following)[:, None]  # position of the next token, [R, 1]
        self.latents = [getattr(state.layers[index], "live_latent", None) for state in states]


class Together:
    """Memories of one text that are asked the same question, each as a row of a batch."""

    def __init__(self, backbone: Backbone, states: Sequence[MemoryState]) -> None:
        self.backbone, self.states = backbone, states
        self.layers = [_Rows(backbone, i, states) for i in range(len(states[0].layers))]

    @torch.no_grad()
    def predict(self, ids: Tensor) -> Tensor:
        """Add tokens, int64 [B, T], to every memory; return fp32 logits [B, V] after the last."""
        run = Pass(self.states[0], ids.shape[1], fixed=self)
        layers = [_CacheLayer(self.states[0], rows) for rows in self.layers]
        model = self.backbone.model
        out = self.backbone.pass_tokens(model, run, ids, layers, logits_to_keep=1)
        for rows in self.layers:
            rows.following += ids.shape[1]
        return out.logits[:, -1].float()

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, scaling: float, softcap: float | None
    ) -> Tensor:
        """Attend in one layer from queries [B, H, T, D], as `passes.Attends` says."""
        rows, (batch, heads, new, size) = self.layers[module.layer_idx], query.shape
        count = batch * key.shape[1]
        angles = self.backbone.angles(module, query, rows.following + torch.arange(new))
        turned = turn(module, query.reshape(count, -1, new, size), *angles)
        fresh = turn(module, key.reshape(count, 1, new, size), *angles)[:, 0]
        rows.keys = torch.cat([rows.keys, fresh], dim=1)
        slots = torch.arange(rows.keys.shape[1])
        causal = slots <= slots[-new:, None]
        spread = (x[:, None].expand(-1, turned.shape[1], -1, -1) for x in (rows.keys, rows.values))
        mask = causal & (slots >= rows.empty)
        out = scaled_dot_product_attention(turned, *spread, attn_mask=mask, scale=scaling)
        out = out.reshape(batch, heads, new, size)
        for i, latent in enumerate(rows.latents):
            if latent is not None:
                of = slice(i * key.shape[1], (i + 1) * key.shape[1])
                full = slice(int(rows.empty[of].max()), None)
                kv = (x[of, full][None] for x in (rows.keys, rows.values))
                near = turned[of].reshape(1, heads, new, size)
                found = ops.attend_with_lse(near, *kv, scaling, None, softcap)
                far = self.backbone.turn_far(module, query[i : i + 1])
                out[i] = latent.read(far, *found, scaling)[0]
        return out.transpose(1, 2)


class _CacheLayer(CacheLayer):
    """A cache layer that leaves the keys, which are not turned yet, to `Together.attend`."""

    def __init__(self, state: MemoryState, rows: _Rows) -> None:
        super().__init__(state, state.layers[0])
        self.rows = rows

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.rows.values = torch.cat([self.rows.values, value_states.flatten(0, 1)], dim=1)
        return key_states, value_states


def answer_together(
    backbone: Backbone, readers: Sequence[Reader], closing: list[int], max_tokens: int
) -> list[list[int]]:
    """The greedy answer of every memory to one question, as `Reader.answer` gives it of a copy.

    Not together where layers have windows of their own, or on a GPU.
    """
    if not readers:
        return []
    room = len(closing) + max_tokens
    if any(backbone.layer_windows) or backbone.device.type != "cpu":
        config, stop = AnswerConfig(max_tokens=max_tokens), backbone.eos_ids
        forks = [reader.fork() for reader in readers]
        return [[step.token_id for step in one.answer(closing, config, stop)] for one in forks]
    states = []
    for reader in readers:
        past_window = reader.state.seen + room > reader.plan.window_tokens
        states.append(replace(reader.state, compact=reader.state.compact or past_window))
    memories, answers = Together(backbone, states), [[] for _ in readers]
    ids, going = torch.tensor([closing] * len(readers)), set(range(len(readers)))
    while going and max_tokens:
        best = memories.predict(ids).argmax(dim=-1)
        going = {i for i in going if int(best[i]) not in backbone.eos_ids}
        for i in going:
            answers[i].append(int(best[i]))
        ids, max_tokens = best[:, None], max_tokens - 1
    return answers
