"""Passes of the model that methods share: the start of a text, and answers as rows of a batch.

Both change what a measurement costs and, but for rounding, nothing of what it finds.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence

from indexmem_cli import ops
from indexmem_cli.backbone import Backbone
from indexmem_cli.config import AnswerConfig
from indexmem_cli.engine import Reader
from indexmem_cli.memory.latent import LatentMemory
from indexmem_cli.memory.state import MemoryState, managed_parts
from indexmem_cli.passes import CacheLayer, Pass
from indexmem_cli.rotation import turn


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
    """One layer of several memories: a row for each KV head of each, with room after its slots."""

    def __init__(
        self, backbone: Backbone, index: int, states: Sequence[MemoryState], room: int
    ) -> None:
        module = backbone.decoder.layers[index].self_attn
        keys, values, held, following = [], [], [], []
        for state in states:
            run = Pass(state, 0)
            for part in managed_parts(state.layers[index]):
                turned = backbone.turn_slots(module, part.all_keys(), part, run, 0)
                keys += turned[0]
                values += part.all_values()[0]
                held += [part.held] * turned.shape[1]
                following += [part.held if state.compact else state.seen] * turned.shape[1]
        self.slots = max(held)
        self.keys, self.values = (
            pad(pad_sequence(rows, batch_first=True, padding_side="left"), (0, 0, 0, room))
            for rows in (keys, values)
        )  # [R, slots + room, D]
        self.empty = self.slots - torch.tensor(held)  # slots of a row that hold nothing, first
        self.following = torch.tensor(following)  # position of the next token
        parts = [managed_parts(state.layers[index]) for state in states]
        self.latents = [[part.live_latent for part in of_one] for of_one in parts]

    def take(self, chosen: list[int]) -> "_Rows":
        """Return copies of the rows of some memories."""
        taken, heads = copy.copy(self), len(self.keys) // len(self.latents)
        where = torch.arange(len(self.keys)).view(-1, heads)[chosen].flatten()
        for name in ("keys", "values", "empty", "following"):
            setattr(taken, name, getattr(self, name)[where])
        taken.latents = [self.latents[i] for i in chosen]
        return taken

    def live_latents(self) -> Iterator[tuple[slice, LatentMemory]]:
        """The latent memories that say something, of layers or of heads, each with its rows."""
        heads = len(self.keys) // len(self.latents)
        for i, latents in enumerate(self.latents):
            rows = heads // len(latents)
            for first, latent in zip(range(i * heads, (i + 1) * heads, rows), latents, strict=True):
                if latent is not None:
                    yield slice(first, first + rows), latent


class Together:
    """Memories of one text that are asked the same questions, each as a row of a batch."""

    def __init__(self, backbone: Backbone, states: Sequence[MemoryState], room: int) -> None:
        """Turn what is held once; `room` is for the tokens of one question with its answer."""
        self.backbone, self.states = backbone, states
        layers = range(len(states[0].layers))
        self.whole = self.rows = [_Rows(backbone, i, states, room) for i in layers]
        self.asked = 0  # tokens that came after what is held

    @torch.no_grad()
    def answer(self, closing: list[int], max_tokens: int) -> list[list[int]]:
        """Answer greedily; the memories stay as they are."""
        self.rows, self.asked = self.whole, 0
        answers, ended = [[] for _ in self.states], set()
        going = [*range(len(answers))]
        ids = torch.tensor([closing] * len(going))
        for _ in range(max_tokens):
            best = self._predict(ids).argmax(dim=-1)
            for i, token in zip(going, best.tolist(), strict=True):
                if token in self.backbone.eos_ids:
                    ended.add(i)
                elif i not in ended:
                    answers[i].append(token)
            left = [place for place, i in enumerate(going) if i not in ended]
            if not left:
                break
            if 2 * len(left) <= len(going):
                self.rows = [rows.take(left) for rows in self.rows]
                best, going = best[left], [going[place] for place in left]
            ids = best[:, None]
        return answers

    def _predict(self, ids: Tensor) -> Tensor:
        """Logits fp32 [B, V] after tokens [B, T]."""
        run, state = Pass(self.states[0], ids.shape[1], fixed=self), self.states[0]
        layers = [_CacheLayer(state, self, rows) for rows in self.rows]
        model = self.backbone.model
        out = self.backbone.pass_tokens(model, run, ids, layers, logits_to_keep=1)
        self.asked += ids.shape[1]
        return out.logits[:, -1].float()

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, scaling: float, softcap: float | None
    ) -> Tensor:
        """Attend in one layer from queries [B, H, T, D], as `passes.Attends` says."""
        assert softcap is None, "models with it have windows, and answer one by one"
        rows, (batch, heads, new, size) = self.rows[module.layer_idx], query.shape
        end, count = rows.slots + self.asked, len(rows.keys)
        places = rows.following[:, None] + torch.arange(self.asked, self.asked + new)
        angles = self.backbone.angles(module, query, places)
        query = query.reshape(count, -1, new, size)
        turned = turn(module, query, *angles)
        fresh = slice(end, end + new)
        rows.keys[:, fresh] = turn(module, key.reshape(count, 1, new, size), *angles)[:, 0]
        slots = torch.arange(end + new)
        kept = slots >= rows.empty[:, None, None, None]
        mask = kept & (slots <= slots[end:, None])
        held = [x[:, : end + new] for x in (rows.keys, rows.values)]
        spread = (x[:, None].expand(-1, turned.shape[1], -1, -1) for x in held)
        out = scaled_dot_product_attention(turned, *spread, attn_mask=mask, scale=scaling)
        for of, latent in rows.live_latents():
            kv = (x[of, int(rows.empty[of].max()) :][None] for x in held)
            near, far = (x[of].reshape(1, -1, new, size) for x in (turned, query))
            found = ops.attend_with_lse(near, *kv, scaling)
            joined = latent.read(self.backbone.turn_far(module, far), *found, scaling)
            out[of] = joined.reshape(out[of].shape)
        return out.reshape(batch, heads, new, size).transpose(1, 2)


class _CacheLayer(CacheLayer):
    """A cache layer that leaves the keys, which are not turned yet, to `Together.attend`."""

    def __init__(self, state: MemoryState, of: Together, rows: _Rows) -> None:
        super().__init__(state, state.layers[0])
        self.of, self.rows = of, rows

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        first = self.rows.slots + self.of.asked
        fresh = value_states.flatten(0, 1)
        self.rows.values[:, first : first + fresh.shape[1]] = fresh
        return key_states, value_states


def answer_together(
    backbone: Backbone, readers: Sequence[Reader], closings: Sequence[list[int]], max_tokens: int
) -> list[list[list[int]]]:
    """The greedy answers of every memory, by question, as `Reader.answer` gives them of a copy.

    Not together where layers have windows of their own, or on a GPU.
    """
    if not readers:
        return [[] for _ in closings]
    if any(backbone.layer_windows) or backbone.device.type != "cpu":
        config, stop = AnswerConfig(max_tokens=max_tokens), backbone.eos_ids
        return [
            [[s.token_id for s in r.fork().answer(closing, config, stop)] for r in readers]
            for closing in closings
        ]
    room, states = max(map(len, closings)) + max_tokens, []
    for reader in readers:
        past_window = reader.state.seen + room > reader.plan.window_tokens
        states.append(replace(reader.state, compact=reader.state.compact or past_window))
    memories = Together(backbone, states, room)
    return [memories.answer(closing, max_tokens) for closing in closings]
