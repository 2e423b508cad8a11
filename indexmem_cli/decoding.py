"""The tokens of an answer, one by one: what each rests on, and steps that a CUDA graph can replay.

Between two evictions nothing about a step changes but numbers. `FixedDecoder` keeps those in
tensors, so that no shape and no address depends on how many tokens came before.
"""

import math
import os
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from indexmem_cli import ops
from indexmem_cli.errors import ConfigError, OutOfMemory, first_line
from indexmem_cli.memory.state import LayerState, MemoryState, WindowState, managed_parts
from indexmem_cli.passes import CacheLayer, Pass
from indexmem_cli.rotation import turn

if TYPE_CHECKING:
    from indexmem_cli.backbone import Backbone

ATTENDED_PER_TOKEN = 16
TOKENS_BEFORE_CAPTURE = 3
"""Steps that run as they are first: kernels are tuned and libraries started in them."""


def find_attended(state: MemoryState, paid: list[Tensor], end: int) -> Tensor:
    """The best attended slots of each managed layer, after the sinks and before position `end`.

    Args:
        paid: fp32 [B, G, N] per managed layer, as `Backbone.predict` returns it.

    Returns:
        fp64 [2, any number]: positions and weights, -1 for a slot that does not count. Still on
        the device: the host waits for nothing.
    """
    found = []
    for layer, weights in zip(state.managed, paid, strict=True):
        positions = layer.positions[:, :, : weights.shape[2]]
        of_text = (positions >= state.sink_tokens) & (positions < end)
        weights = weights.masked_fill(~of_text, -1.0).flatten()
        top = weights.topk(min(ATTENDED_PER_TOKEN, len(weights)))
        pair = torch.stack([positions.flatten()[top.indices].double(), top.values.double()])
        found.append(pair.to(paid[0].device))  # layers may lie on several
    return torch.cat(found, dim=1) if found else torch.empty(2, 0, dtype=torch.float64)


def best_attended(found: list[list[float]]) -> list[tuple[int, float]]:
    """Positions and weights over all layers and heads, best first, of what was found."""
    best: dict[int, float] = {}
    for place, weight in zip(*found, strict=True):
        if weight >= 0:
            best[int(place)] = max(weight, best.get(int(place), 0.0))
    return sorted(best.items(), key=lambda item: -item[1])[:ATTENDED_PER_TOKEN]


def read_back(
    logits: Tensor, found: Tensor, greedy: bool
) -> tuple[bool, list[list[float]], Tensor]:
    """Bring a step's outcome to the host: the one time that a token waits for the device.

    Returns:
        Whether all logits were finite; `found` as lists; the likeliest token, int64 [1], or where
        the choice is not `greedy` the logits, fp32 [V].
    """
    head = logits.argmax().double().reshape(1) if greedy else logits.double()
    finite = logits.isfinite().all().double().reshape(1)
    found = found.to(logits.device)
    numbers = torch.cat([finite, found.flatten(), head]).cpu()
    pairs = numbers[1 : 1 + found.numel()].reshape(found.shape).tolist()
    head = numbers[1 + found.numel() :]
    return bool(numbers[0]), pairs, head.long() if greedy else head.float()


def wants_graphs() -> bool:
    """Whether INDEXMEM_CUDA_GRAPHS leaves graphs on.

    Raises:
        ConfigError: it is neither 0 nor 1.
    """
    choice = os.environ.get("INDEXMEM_CUDA_GRAPHS", "1")
    if choice not in ("0", "1"):
        raise ConfigError(f"INDEXMEM_CUDA_GRAPHS: {choice!r}", "choose 0 or 1")
    return choice == "1"


def has_fixed_steps(backbone: "Backbone", state: MemoryState) -> bool:
    """Whether answers from this memory are worth, and capable of, steps of fixed shape.

    Not with sliding windows or latent memories, whose shapes or values the host has to know; nor
    where int8 keys would have to be kept turned beside themselves.
    """
    one_device = len({backbone.device, *backbone.layer_devices}) == 1
    plain = not any(isinstance(layer, WindowState) for layer in state.layers)
    plain = plain and all(part.latent is None for part in state.managed)
    turnable = state.uniform or state.compact or not any(part.int8 for part in state.managed)
    fast = backbone.device.type == "cuda" and plain and ops.uses_kernels(state.managed[0].keys)
    return one_device and turnable and fast and wants_graphs()


class FixedDecoder:
    """Steps of one token over a memory, replayed as a CUDA graph where there is such a device.

    Others may evict from the memory between two steps: its new numbers are then taken over, and
    the graph stays as long as nothing had to move.
    """

    def __init__(
        self, backbone: "Backbone", state: MemoryState, end: int, want_queries: bool = False
    ) -> None:
        """Prepare for a memory that has read at least one token; `end` as in `find_attended`."""
        self.backbone, self.state, self.end = backbone, state, end
        self.want_queries = want_queries
        self.parts = state.managed
        numbers = iter(range(len(self.parts)))
        self.parts_of = [[next(numbers) for _ in managed_parts(one)] for one in state.layers]
        like = {"device": backbone.device, "dtype": torch.int64}
        self.ids = torch.zeros(self.parts[0].keys.shape[0], 1, **like)
        self.position = torch.zeros(1, **like)
        self.places = torch.zeros(len(self.parts), 1, **like)
        shapes = [part.keys.shape[:2] for part in self.parts]
        self.in_use = torch.zeros(sum(map(math.prod, shapes)), **like).int()
        views = self.in_use.split([math.prod(shape) for shape in shapes])
        self.lengths = [view.view(shape) for view, shape in zip(views, shapes, strict=True)]
        self.slots = [0] * len(self.parts)
        self.tables: dict[str | None, tuple[Tensor, Tensor]] = {}
        self.rotated: list[Tensor | None] = [None] * len(self.parts)
        self.run = Pass(state, 1, watched=state.watched_layers, fixed=self)
        self.graph: tuple[torch.cuda.CUDAGraph, tuple[Tensor, Tensor]] | None = None
        self.may_capture, self.steps = backbone.device.type == "cuda", 0
        self.known: tuple[Any, ...] = ()

    @torch.no_grad()
    def predict(self, token_id: int, room: int) -> tuple[Tensor, list[Tensor], Tensor]:
        """Add one token to the memory and say what comes next, without waiting for the device.

        Args:
            room: this and further tokens that may come before the next eviction.

        Returns:
            Logits fp32 [B, V], good until the next step; queries as in `Backbone.read`; and what
            `find_attended` finds.
        """
        if self._facts() != self.known:
            self._settle(room)
        self.ids.fill_(token_id)
        logits, found = self._step()
        for numbers in (self.position, self.places, self.in_use):
            numbers.add_(1)
        for part in self.parts:
            part.held += 1
            if not self.tables:
                part.num_rotated = part.held
        self.state.seen += 1
        self.state.note_hidden(self.run.hidden)
        self.known = self._facts()
        return logits, [query.clone() for query in self.run.queries], found

    def _facts(self) -> tuple[Any, ...]:
        """What others change when they touch the memory."""
        state = self.state
        held = [(part.held, part.keys.data_ptr(), part.num_rotated) for part in self.parts]
        return state.compact, state.uniform, state.seen, held

    def _settle(self, room: int) -> None:
        """Take over a memory that others changed; where tensors had to move, forget the graph."""
        state, before = self.state, self._addresses()
        for i, part in enumerate(self.parts):
            self.slots[i] = max(self.slots[i], part.held + room)
            part.make_room(self.slots[i])
            part.positions[:, :, part.held : self.slots[i]] = -1
            self.places[i].fill_(part.held)
            self.lengths[i].fill_(part.held + 1)
        self.position.fill_(state.seen)
        if state.uniform or state.compact:
            self._make_tables()
        else:
            self.tables = {}
            self._turn_keys()
        if self._addresses() != before:
            self.graph = None

    def _addresses(self) -> tuple[Any, ...]:
        tensors = [t for pair in self.tables.values() for t in pair]
        tensors += [getattr(part, name) for part in self.parts for name in part.buffers]
        tensors += [rows for rows in self.rotated if rows is not None]
        return tuple(self.slots), tuple(t.data_ptr() for t in tensors)

    def _make_tables(self) -> None:
        """Angles of all slots, those of tokens still to come included: fp32 [1, slots, R]."""
        state, first, slots = self.state, self.parts[0], max(self.slots)
        positions = torch.arange(slots, device=self.places.device)
        if not state.compact:
            positions += state.seen - first.held
            positions[: first.held] = first.positions[0, 0, : first.held]
        exact = torch.empty(0, device=positions.device)
        for layer in self.backbone.decoder.layers:
            kind = getattr(layer.self_attn, "layer_type", None)
            angles = self.backbone.angles(layer.self_attn, exact, positions[None])
            old = self.tables.get(kind)
            if old is not None and old[0].shape == angles[0].shape:
                for table, fresh in zip(old, angles, strict=True):
                    table.copy_(fresh)
            elif old is None or old[0] is not angles[0]:
                self.tables[kind] = angles

    def _turn_keys(self) -> None:
        """Keep keys turned where every head holds other positions."""
        for layer, numbers in zip(self.backbone.decoder.layers, self.parts_of, strict=True):
            for i in numbers:
                part, rows = self.parts[i], self.rotated[i]
                if rows is None or rows.shape != part.keys.shape:
                    rows = self.rotated[i] = torch.empty_like(part.keys, dtype=part.dtype)
                part.rotated, part.num_rotated = rows, 0
                rotate = partial(self._turn_rows, layer.self_attn, part)
                part.rotated_keys(rotate)

    def _turn_rows(self, module: nn.Module, part: LayerState, rows: Tensor, first: int) -> Tensor:
        return self.backbone.turn_slots(module, rows, part, self.run, first)

    def _step(self) -> tuple[Tensor, Tensor]:
        """Run the model on what lies in the tensors: as it is, or as a graph of it."""
        self.steps += 1
        if self.graph is None and self.may_capture and self.steps > TOKENS_BEFORE_CAPTURE:
            self._capture()
        if self.graph is None:
            return self._forward()
        graph, out = self.graph
        graph.replay()
        return out

    def _capture(self) -> None:
        """Record one step; where CUDA refuses, go on without and say so once."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                out = self._forward()
        except (RuntimeError, OutOfMemory) as error:
            self.may_capture = False
            said = f"answers are written without a CUDA graph: {first_line(error)}"
            warnings.warn(said, RuntimeWarning, stacklevel=2)
        else:
            self.graph = graph, out

    def _forward(self) -> tuple[Tensor, Tensor]:
        """One step in shapes that are always the same; nothing here may wait for the device."""
        run = self.run
        run.queries, run.attention, run.hidden = [], [], {}
        layers = [_FixedCacheLayer(self, i) for i in range(len(self.parts_of))]
        out = self.backbone.pass_tokens(
            self.backbone.model, run, self.ids, layers, logits_to_keep=1
        )
        return out.logits[:, -1].float(), find_attended(self.state, run.attention, self.end)

    def write(self, index: int, keys: Tensor, values: Tensor) -> None:
        """Put the keys and values of the token, [B, G, 1, D], into their slots of one layer."""
        numbers = self.parts_of[index]
        rows = (x.chunk(len(numbers), dim=1) for x in (keys, values))
        for i, key, value in zip(numbers, *rows, strict=True):
            part, place = self.parts[i], self.places[i]
            if part.int8:
                key, key_scales = ops.quantise_rows(key)
                value, value_scales = ops.quantise_rows(value)
                part.key_scales.index_copy_(2, place, key_scales)
                part.value_scales.index_copy_(2, place, value_scales)
            part.keys.index_copy_(2, place, key)
            part.values.index_copy_(2, place, value)
            part.positions.index_copy_(2, place, self.position.expand(*key.shape[:3]))
            part.scores.index_fill_(2, place, 0.0)

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, scaling: float, softcap: float | None
    ) -> Tensor:
        """Attend in one layer, as `passes.Attends` says."""
        numbers = self.parts_of[module.layer_idx]
        rows = (x.chunk(len(numbers), dim=1) for x in (query, key))
        parts = zip(numbers, *rows, strict=True)
        found = [self._attend_part(module, i, q, k, scaling, softcap) for i, q, k in parts]
        return torch.cat(found, 2)

    def _attend_part(
        self,
        module: nn.Module,
        i: int,
        query: Tensor,
        key: Tensor,
        scaling: float,
        softcap: float | None,
    ) -> Tensor:
        """Attend over a layer, or one head of it: [B, 1, H, D]."""
        run, part, place, slots = self.run, self.parts[i], self.places[i], self.slots[i]
        if self.want_queries:
            run.queries.append(query)
        rows, angles = {"key": part.keys, "value": part.values}, {}
        if self.tables:
            cos, sin = self.tables[getattr(module, "layer_type", None)]
            here_cos, here_sin = (x.index_select(1, place).to(query.dtype) for x in (cos, sin))
            if part.int8:
                rows |= {"key_scale": part.key_scales, "value_scale": part.value_scales}
            half = cos.shape[-1] // 2
            angles = {"cos": cos[:, :slots, :half], "sin": sin[:, :slots, :half]}
        else:
            here_cos, here_sin = self.backbone.angles(module, query, self.position[None])
            part.rotated.index_copy_(2, place, turn(module, key, here_cos, here_sin))
            rows["key"] = part.rotated
        rows = {name: held[:, :, :slots] for name, held in rows.items()}
        turned = turn(module, query, here_cos, here_sin)[:, :, 0]
        segment = ops.Segment(turned, **rows, **angles, length=self.lengths[i])
        out, _, paid = ops.attend_segments([segment], scaling, softcap, True)
        run.note_attention(paid.softmax(-1).unsqueeze(2), part.keys)
        return out.to(query.dtype).unsqueeze(1)


class _FixedCacheLayer(CacheLayer):
    """A cache layer that writes a token into the slot that is its own."""

    def __init__(self, decoder: FixedDecoder, index: int) -> None:
        super().__init__(decoder.state, decoder.state.layers[index])
        self.decoder, self.index = decoder, index

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.decoder.write(self.index, key_states, value_states)
        return key_states, value_states
