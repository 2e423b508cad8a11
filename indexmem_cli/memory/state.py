"""What is kept of the text that was read: keys, values and their positions, per layer.

Axes, everywhere in this package:
    B batch   H query heads   G key/value heads   T new tokens   S kept tokens   D head size
    N all slots that a pass attends to (S + T)    R rows: a few query tokens that are looked at
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from indexmem_cli.memory.latent import LatentMemory
from indexmem_cli.ops import compact_slots, quantise_rows, uses_kernels

NO_ROWS, NO_ENTRIES = torch.empty(0, 0, 0, 0), torch.empty(0, 0, 0)
"""What a layer that holds nothing has in the place of its tensors; never written to."""


class LayerState:
    """The kept keys and values of one layer, in the order of the text.

    Keys are stored before rotation, so that a slot can be given any position later. `rotated` holds
    rotated copies of the first `num_rotated` keys while decoding, and is dropped by every eviction.
    """

    def __init__(self, limit: int, int8: bool = False) -> None:
        """Make a layer that holds nothing.

        Args:
            limit: slots that will ever be needed, as far as known; growth stops there first.
            int8: keep keys and values as int8 rows, each with a scale of its own.
        """
        self.limit, self.int8 = limit, int8
        self.held = 0
        self.dtype = torch.float32  # of keys and values outside of this memory, once there are any
        self.keys: Tensor = NO_ROWS  # [B, G, capacity, D]
        self.values: Tensor = NO_ROWS  # [B, G, capacity, D]
        self.key_scales: Tensor = NO_ENTRIES  # fp32 [B, G, capacity], of int8 rows
        self.value_scales: Tensor = NO_ENTRIES  # fp32 [B, G, capacity], of int8 rows
        self.positions: Tensor = NO_ENTRIES  # int64 [B, G, capacity], ascending
        self.scores: Tensor = NO_ENTRIES  # fp32 [B, G, capacity]: what the scorer last said
        self.notes: Tensor | None = None  # [B, 1, <= held, E]: what a scorer keeps of each slot
        self.rotated: Tensor = NO_ROWS  # [B, G, capacity, D]
        self.num_rotated = 0
        self.latent: LatentMemory | None = None  # takes in what is evicted
        # Positions and tags, int64 [B, G, E], of what the latent memory took in last.
        self.evicted: tuple[Tensor, Tensor] | None = None

    @property
    def buffers(self) -> tuple[str, ...]:
        """Names of the tensors that hold an entry for every slot."""
        scales = ("key_scales", "value_scales") if self.int8 else ()
        return ("keys", "values", *scales, "positions", "scores")

    def append(self, keys: Tensor, values: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Add T tokens at positions `first`, `first` + 1, …; keys and values [B, G, T, D].

        Returns:
            All keys and values, [B, G, S + T, D], as views; copies of int8 rows.
        """
        new = keys.shape[2]
        self._reserve(self.held + new, keys)
        fresh = slice(self.held, self.held + new)
        if self.int8:
            keys, self.key_scales[:, :, fresh] = quantise_rows(keys)
            values, self.value_scales[:, :, fresh] = quantise_rows(values)
        self.keys[:, :, fresh] = keys
        self.values[:, :, fresh] = values
        self.positions[:, :, fresh] = torch.arange(first, first + new, device=keys.device)
        self.scores[:, :, fresh] = 0
        self.held += new
        return self.all_keys(), self.all_values()

    def restore(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
        """Take over slots that were saved: a tensor [B, G, S, …] for each of `buffers`."""
        keys = tensors["keys"]
        self._reserve(keys.shape[2], keys.new_empty(*keys.shape[:2], 0, keys.shape[3], dtype=dtype))
        self.held = keys.shape[2]
        for name in self.buffers:
            getattr(self, name)[:, :, : self.held] = tensors[name]

    def all_keys(self, first: int = 0) -> Tensor:
        """Keys before rotation of the slots held, from `first` on: [B, G, S, D] in `dtype`."""
        return self._rows("key", lambda buffer: buffer[:, :, first : self.held])

    def all_values(self, first: int = 0) -> Tensor:
        """Values of the slots held, from `first` on: [B, G, S, D] in `dtype`."""
        return self._rows("value", lambda buffer: buffer[:, :, first : self.held])

    def _rows(self, what: str, pick: Callable[[Tensor], Tensor]) -> Tensor:
        """The picked keys or values, in `dtype`."""
        rows = pick(getattr(self, f"{what}s"))
        if not self.int8:
            return rows
        return (rows * pick(getattr(self, f"{what}_scales")).unsqueeze(-1)).to(self.dtype)

    def drop_last(self, tokens: int) -> None:
        """Forget the newest tokens, as if they had never been appended."""
        self.held -= tokens
        self.num_rotated = min(self.num_rotated, self.held)
        if self.notes is not None:
            self.notes = self.notes[:, :, : self.held]

    def keep(self, index: Tensor) -> None:
        """Keep only these slots: int64 [B, G, K], ascending along K. In place; frees nothing."""
        kept = index.shape[2]
        if self.latent is not None:
            positions, keys, values = self._all_but(index)
            self.evicted = positions, self.latent.write(keys, values)
        if uses_kernels(self.keys):
            buffers = [getattr(self, name) for name in self.buffers]
            count = torch.full(index.shape[:2], kept, device=index.device)
            compact_slots(buffers, index, count, None)
        else:
            self._gather(index)
        if self.notes is not None:
            self.notes = rows_at(self.notes, index[:, :1])
        self.held = kept
        self.forget_rotation()

    def insert(self, keys: Tensor, values: Tensor, positions: Tensor) -> None:
        """Add tokens in their own places of the text: keys and values [B, G, T, D].

        Args:
            positions: int64 [T], none of which is held.
        """
        self.append(keys.to(self.dtype), values.to(self.dtype), 0)
        self.positions[:, :, self.held - len(positions) : self.held] = positions
        self._gather(self.positions[:, :, : self.held].argsort(dim=2))
        self.notes = None  # nothing is noted of what comes back
        self.forget_rotation()

    def _gather(self, index: Tensor) -> None:
        """Put these slots first: int64 [B, G, K]."""
        for buffer in (getattr(self, name) for name in self.buffers):
            buffer[:, :, : index.shape[2]] = rows_at(buffer, index)

    def _all_but(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Positions [B, G, E], keys and values [B, G, E, D] of the slots not in `index`."""
        gone = torch.ones(*index.shape[:2], self.held, dtype=torch.int8, device=index.device)
        gone.scatter_(2, index, 0)
        left = self.held - index.shape[2]
        # A sort, so that the host need not wait to learn how many there are.
        slots = gone.argsort(dim=2, descending=True, stable=True)[..., :left]
        pick = partial(rows_at, index=slots)
        return pick(self.positions), self._rows("key", pick), self._rows("value", pick)

    def rotated_keys(self, rotate: Callable[[Tensor, int], Tensor]) -> Tensor:
        """Return rotated keys [B, G, S, D]; only those not rotated since the last eviction cost.

        Args:
            rotate: function of (keys [B, G, n, D], first slot) that returns them rotated.
        """
        if self.rotated.shape[2] < self.held:
            self.rotated, self.num_rotated = torch.empty_like(self.keys, dtype=self.dtype), 0
        if self.num_rotated < self.held:
            first = self.num_rotated
            self.rotated[:, :, first : self.held] = rotate(self.all_keys(first), first)
            self.num_rotated = self.held
        return self.rotated[:, :, : self.held]

    def forget_rotation(self) -> None:
        """Drop the rotated copies; needed when slots are given other positions."""
        self.rotated, self.num_rotated = NO_ROWS, 0

    @property
    def live_latent(self) -> LatentMemory | None:
        """The latent memory, if reading it changes anything."""
        return None if self.latent is None or self.latent.is_silent else self.latent

    @property
    def nbytes(self) -> int:
        """Bytes of the kept keys and values and of the latent memory, without spare room."""
        batch, heads, _, size = self.keys.shape
        latent = self.latent.nbytes if self.latent is not None else 0
        row = size * self.keys.element_size() + (4 if self.int8 else 0)
        return int(2 * batch * heads * self.held * row + latent)

    def clone(self) -> "LayerState":
        """Return an independent copy of what is held."""
        copy = LayerState(self.limit, self.int8)
        copy.latent = self.latent.clone() if self.latent is not None else None
        if self.held:
            held = {name: getattr(self, name)[:, :, : self.held] for name in self.buffers}
            copy.restore(held, self.dtype)
            copy.notes = self.notes  # never changed in place
        return copy

    def make_room(self, slots: int) -> None:
        """Have room for so many slots, in a layer that holds some."""
        batch, heads, _, size = self.keys.shape
        self._reserve(slots, self.keys.new_empty(batch, heads, 0, size, dtype=self.dtype))

    def _reserve(self, slots: int, like: Tensor) -> None:
        capacity = self.keys.shape[2]
        if slots <= capacity:
            return
        self.dtype = like.dtype
        capacity = max(slots, min(2 * capacity, self.limit))
        batch, heads, _, size = like.shape
        kind = torch.int8 if self.int8 else like.dtype
        dtypes = {"keys": kind, "values": kind, "positions": torch.int64}
        made = {}
        for name in self.buffers:
            row = (size,) if name in ("keys", "values") else ()
            dtype = dtypes.get(name, torch.float32)
            made[name] = torch.empty(batch, heads, capacity, *row, dtype=dtype, device=like.device)
            if self.held:
                made[name][:, :, : self.held] = getattr(self, name)[:, :, : self.held]
        # Last, so that a layer is as it was where there is no room for a larger one.
        for name, buffer in made.items():
            setattr(self, name, buffer)
        self.forget_rotation()


def rows_at(rows: Tensor, index: Tensor) -> Tensor:
    """The rows [B, G, K, ...] of `rows` [B, G, N, ...] at int64 [B, G, K]: a quicker `gather`."""
    before = torch.arange(index.shape[:2].numel(), device=index.device) * rows.shape[2]
    flat = index + before.reshape(*index.shape[:2], 1)
    return rows.flatten(0, 2).index_select(0, flat.flatten()).reshape(*index.shape, *rows.shape[3:])


class HeadsState:
    """A layer whose heads hold different numbers of tokens: a `LayerState` of one head each.

    No slot is held for the sake of a rectangle: a small head takes fewer bytes.
    """

    def __init__(self, heads: list[LayerState]) -> None:
        self.heads = heads

    def append(self, keys: Tensor, values: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Add T tokens, [B, G, T, D], to every head; return them, since what is held is ragged."""
        for i, head in enumerate(self.heads):
            head.append(keys[:, i : i + 1], values[:, i : i + 1], first)
        return keys, values

    def clone(self) -> "HeadsState":
        """Return an independent copy."""
        return HeadsState([head.clone() for head in self.heads])


class WindowState:
    """The last tokens of a sliding-window layer: it keeps its own window and is never managed."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.keys: Tensor = NO_ROWS  # [B, G, <= window - 1 + T, D], before rotation
        self.values: Tensor = NO_ROWS

    @property
    def held(self) -> int:
        """Tokens held now."""
        return int(self.keys.shape[2])

    def append(self, keys: Tensor, values: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Add T tokens; return every key and value that one of them can see, in order."""
        if self.held:
            out_of_sight = max(0, self.held - (self.window - 1))
            keys = torch.cat([self.keys[:, :, out_of_sight:], keys], dim=2)
            values = torch.cat([self.values[:, :, out_of_sight:], values], dim=2)
        self.keys, self.values = keys, values
        return keys, values

    def drop_last(self, tokens: int) -> None:
        """Forget the newest tokens, at most as many as were last appended."""
        end = self.held - tokens
        self.keys, self.values = self.keys[:, :, :end], self.values[:, :, :end]

    @property
    def nbytes(self) -> int:
        """Bytes of the window's keys and values."""
        return int(2 * self.keys.nbytes)

    def clone(self) -> "WindowState":
        """Return an independent copy."""
        copy = WindowState(self.window)
        if self.held:
            copy.keys, copy.values = self.keys.clone(), self.values.clone()
        return copy


Layer = LayerState | HeadsState | WindowState


def make_layer(window: int | None, slots: int, int8: bool, heads: int = 0) -> Layer:
    """Make an empty layer: with a window of its own, or to be managed.

    Args:
        slots, int8: as in `LayerState`. heads: that may hold different numbers; 0: all alike.
    """
    if window:
        return WindowState(window)
    if not heads:
        return LayerState(slots, int8)
    return HeadsState([LayerState(slots, int8) for _ in range(heads)])


def managed_parts(layer: Layer) -> list[LayerState]:
    """What of a layer is kept or evicted: itself, each of its heads, or nothing."""
    if isinstance(layer, WindowState):
        return []
    return layer.heads if isinstance(layer, HeadsState) else [layer]


@dataclass
class MemoryState:
    """Everything a model remembers of one stream of tokens."""

    layers: list[Layer]
    seen: int = 0
    """Tokens read so far: the position of the next one."""
    sink_tokens: int = 0
    """The first tokens of the stream, which always stay."""
    recent_tokens: int = 0
    """The last tokens of the stream, which always stay."""
    pins: list[tuple[int, int]] = field(default_factory=list)
    """Spans of positions [first, end) that always stay."""
    compact: bool = False
    """Whether slots are numbered by rank instead of by their position in the text."""
    uniform: bool = True
    """Whether every layer and head holds the same positions."""
    watched_layers: tuple[int, ...] = ()
    """Layers whose attention inputs are collected in `hidden`, for a scorer that looks at them."""
    hidden: dict[int, Tensor] = field(default_factory=dict)
    """Attention inputs of the tokens not yet scored, by layer: [B, T, d_model]."""

    @property
    def named_parts(self) -> list[tuple[str, LayerState | WindowState]]:
        """What holds tokens, in the order of the model: layers, or the heads of one, by name."""
        parts: list[tuple[str, LayerState | WindowState]] = []
        for i, layer in enumerate(self.layers):
            if isinstance(layer, HeadsState):
                parts += [(f"{i}.heads.{h}", head) for h, head in enumerate(layer.heads)]
            else:
                parts.append((f"{i}", layer))
        return parts

    @property
    def parts(self) -> list[LayerState | WindowState]:
        """What holds tokens: every layer, or each head of it where heads hold other numbers."""
        return [part for _, part in self.named_parts]

    @property
    def managed(self) -> list[LayerState]:
        """The parts whose slots are kept or evicted."""
        return [part for layer in self.layers for part in managed_parts(layer)]

    @property
    def held(self) -> int:
        """Slots held per managed layer and head, on average; 0 where no layer is managed."""
        managed = self.managed
        return sum(layer.held for layer in managed) // len(managed) if managed else 0

    @property
    def nbytes(self) -> int:
        """Bytes of all kept keys and values."""
        return sum(part.nbytes for part in self.parts)

    def undo(self, before: list[tuple[int, Tensor, Tensor]]) -> None:
        """Go back to `marks`, from a pass that failed in the middle."""
        for layer, (held, keys, values) in zip(self.parts, before, strict=True):
            if isinstance(layer, LayerState):
                layer.drop_last(layer.held - held)
            else:
                layer.keys, layer.values = keys, values

    def marks(self) -> list[tuple[int, Tensor, Tensor]]:
        """Return what `undo` needs to take back the tokens that are appended next."""
        return [(part.held, part.keys, part.values) for part in self.parts]

    def note_hidden(self, fresh: dict[int, Tensor]) -> None:
        """Add the attention inputs of new tokens, [B, T, d_model] by layer, to `hidden`."""
        for layer, states in fresh.items():
            before = [self.hidden[layer]] if layer in self.hidden else []
            self.hidden[layer] = torch.cat([*before, states], dim=1)

    def use_compact_positions(self) -> None:
        """Number slots by rank from now on."""
        if not self.compact:
            self.compact = True
            for layer in self.managed:
                layer.forget_rotation()

    def clone(self) -> "MemoryState":
        """Return an independent copy, to ask one question of without changing this one."""
        return MemoryState(
            [layer.clone() for layer in self.layers],
            self.seen,
            self.sink_tokens,
            self.recent_tokens,
            list(self.pins),
            self.compact,
            self.uniform,
            self.watched_layers,
            dict(self.hidden),
        )
