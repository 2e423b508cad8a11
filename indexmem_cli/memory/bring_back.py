"""Evicted tokens brought back as keys and values from the disk, in place of reading them again.

They come back as if they had never been evicted: with the keys and values they had when the text
was read, rounded, in their own places of the text. A slot that is still held is not doubled, and
what a latent memory took in is taken out of it.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from indexmem_cli.errors import ConfigError, MemoryFileError
from indexmem_cli.memory.latent import CentroidMemory
from indexmem_cli.memory.shards import Shards
from indexmem_cli.memory.state import LayerState, MemoryState
from indexmem_cli.memory.update import select_kept
from indexmem_cli.ops import pool_spans

BITS = {"int8": 8, "int4": 4}
EXACT_BITS = 32
"""float32, rounded by nothing: what the others are compared with."""
_GROUP = 64  # 4-bit numbers that share a scale, where vectors are as long
_LEAST_SCALE = 2.0**-14  # the smallest normal number of 16 bits
_MOST_SCALE = 65504.0

Spans = Sequence[tuple[int, int]]
"""Stream positions [first, end), ascending, none of them twice."""


class StoredKeys:
    """Keys (before rotation) and values of every token that was read, in shards on the disk."""

    def __init__(self, shards: Shards, bits: int) -> None:
        """Take over shards; what they hold was, and will be, written with so many bits."""
        self.shards, self.bits = shards, bits
        self.failure: MemoryFileError | None = None
        """Why no more is written, and nothing can be brought back."""

    def append(self, state: MemoryState, tokens: int) -> None:
        """Write the newest tokens of a memory, before any is evicted."""
        rows = []
        for part in state.managed:
            first = part.held - tokens
            both = torch.cat([part.all_keys(first), part.all_values(first)], dim=1)[0]
            rows.append(pack(both.transpose(0, 1), self.bits).cpu())
        data = torch.cat(rows, dim=1).numpy().tobytes()
        self._try(partial(self.shards.append, data, tokens))

    def note_evicted(self, state: MemoryState) -> None:
        """Write down where the latent memories put what was evicted last."""
        gone: list[list[int]] = []
        first = 0
        for part in state.managed:
            heads, _ = _shape(part)
            if part.evicted is not None:
                positions, tags = part.evicted
                numbers = torch.arange(first, first + heads, device=positions.device)
                numbers = numbers[:, None].expand_as(positions[0])
                gone += torch.stack([positions[0], numbers, tags[0]]).flatten(1).T.tolist()
                part.evicted = None
            first += heads
        if gone:
            self._try(partial(self.shards.note_evicted, gone))

    def read(self, state: MemoryState, spans: Spans) -> list[tuple[Tensor, Tensor]]:
        """Return keys and values of the tokens of the spans, by managed part: [1, G, T, D] fp32.

        Raises:
            MemoryFileError: they are damaged, or not those of this model.
        """
        raw = bytearray(b"".join(self.shards.read(*span) for span in spans))
        shapes = [_shape(part) for part in state.managed]
        widths = [width(2 * heads, size, self.bits) for heads, size in shapes]
        tokens = sum(end - first for first, end in spans)
        if len(raw) != tokens * sum(widths):
            raise MemoryFileError(
                f"{tokens:,} tokens have {len(raw):,} bytes of keys and values, not those of this "
                f"model, {tokens * sum(widths):,}",
                "read their text instead: --recall-from text",
            )
        rows, found = torch.frombuffer(raw, dtype=torch.uint8).view(tokens, -1), []
        for part, one, (heads, size) in zip(
            state.managed, rows.split(widths, dim=1), shapes, strict=True
        ):
            both = unpack(one, 2 * heads, size, self.bits).transpose(0, 1)[None]
            keys, values = both.to(part.keys.device).chunk(2, dim=1)
            found.append((keys, values))
        return found

    def tags(self, state: MemoryState, spans: Spans) -> list[Tensor]:
        """Return what the latent memories gave the tokens, by part: int64 [1, G, T]; -1: none."""
        place = {p: i for i, p in enumerate(p for span in spans for p in range(*span))}
        heads = [_shape(part)[0] for part in state.managed]
        tags = torch.full((sum(heads), len(place)), -1)
        for span in spans:
            for position, head, tag in self.shards.tags(*span):
                if head < len(tags):
                    tags[head, place[position]] = tag
        return list(tags[None].split(heads, dim=1))

    def _try(self, write: Callable[[], None]) -> None:
        """Write, or remember why not: a reading goes on without."""
        if self.failure is None:
            try:
                write()
            except MemoryFileError as error:
                self.failure = error


def open_stored(form: str, sealed: Sequence[Path] = ()) -> StoredKeys:
    """Open what is stored in a form of `BITS`, or begin with nothing; `sealed` as in `Shards`.

    Raises:
        MemoryFileError: a file is missing or damaged.
    """
    return StoredKeys(Shards(sealed), BITS[form])


def pack(vectors: Tensor, bits: int) -> Tensor:
    """Round vectors [T, V, D] to so many bits: uint8 [T, `width`].

    Numbers are whole multiples of a scale of 16 bits: one for each vector with 8 bits, one for
    each group of at most 64 with 4.
    """
    vectors = vectors.float()
    if bits == EXACT_BITS:
        return vectors.flatten(1).contiguous().view(torch.uint8)
    groups = vectors.unflatten(-1, (-1, _group(vectors.shape[-1], bits)))
    top = 2 ** (bits - 1) - 1
    scale = (groups.abs().amax(dim=-1, keepdim=True) / top).clamp(_LEAST_SCALE, _MOST_SCALE).half()
    codes = (groups / scale.float()).round().clamp(-top, top).to(torch.int8).flatten(1)
    raw = codes.view(torch.uint8)
    if bits == 4:
        raw = (raw[:, ::2] << 4) | (raw[:, 1::2] & 15)
    return torch.cat([raw, scale.flatten(1).view(torch.uint8)], dim=1)


def unpack(raw: Tensor, vectors: int, size: int, bits: int) -> Tensor:
    """Return what `pack` made of vectors [T, V, D], in fp32."""
    if bits == EXACT_BITS:
        return raw.contiguous().view(torch.float32).unflatten(1, (vectors, size))
    group = _group(size, bits)
    codes, scale = raw.split([vectors * size * bits // 8, 2 * vectors * size // group], dim=1)
    codes = codes.contiguous().view(torch.int8)
    if bits == 4:
        codes = torch.stack([codes >> 4, (codes << 4) >> 4], dim=-1).flatten(1)
    groups = codes.float().unflatten(1, (-1, group))
    scale = scale.contiguous().view(torch.float16).float()
    return (groups * scale.unsqueeze(-1)).view(len(raw), vectors, size)


def width(vectors: int, size: int, bits: int) -> int:
    """Bytes of so many vectors of a size."""
    scales = 0 if bits == EXACT_BITS else 2 * vectors * size // _group(size, bits)
    return vectors * size * bits // 8 + scales


def bring_back(
    state: MemoryState,
    scores: list[Tensor],
    keep_tokens: int,
    span_tokens: int,
    stored: StoredKeys,
    spans: Spans,
) -> None:
    """Narrow a memory down to the best of its other slots, and put the tokens of the spans back.

    Afterwards every head holds all tokens of the spans once: its own copy where it held them
    still. They are no longer in the latent memories.

    Args:
        scores: of the slots held, as `memory.update.evict` takes them.
        keep_tokens: slots that stay in each head beside those of the spans; sinks are among them.
        span_tokens: neighbours whose scores are pooled.

    Raises:
        MemoryFileError: what is stored is damaged.
        ConfigError: a latent memory forgets, so that nothing can be taken out of it.
    """
    found = stored.read(state, spans)
    parts = state.managed
    latent = [part.latent for part in parts if part.latent is not None]
    if not all(isinstance(memory, CentroidMemory) for memory in latent):
        raise ConfigError(
            "what fast weights took in cannot be taken out of them again",
            "read passages again as text: recall_from='text'",
        )
    tags = stored.tags(state, spans) if latent else [torch.empty(0)] * len(parts)
    places = torch.cat([torch.arange(first, end) for first, end in spans])
    shared = all(score is scores[0] for score in scores) and scores[0].shape[1] == 1
    for part, score, (keys, values), tag in zip(parts, scores, found, tags, strict=True):
        device = part.keys.device
        back, tag = places.to(device), tag.to(device)
        held = part.positions[:, :, : part.held]
        slot, is_held = _find(held, back)
        wide = slot.unsqueeze(-1).expand_as(keys)
        keys = torch.where(is_held[..., None], part.all_keys().gather(2, wide).float(), keys)
        values = torch.where(is_held[..., None], part.all_values().gather(2, wide).float(), values)
        _, is_back = _find(back.expand(*held.shape[:2], -1), held)
        pooled = pool_spans(score.to(device).expand_as(held), held, span_tokens)
        pooled = pooled.nan_to_num(nan=float("-inf")).masked_fill(is_back, float("-inf"))
        pinned = ~is_back & (held < state.sink_tokens)
        part.keep(select_kept(pooled, pinned, min(keep_tokens, int((~is_back).sum(-1).min()))))
        if isinstance(part.latent, CentroidMemory):
            part.latent.remove(keys, values, _tags_now(part, back, tag))
        part.insert(keys, values, back)
    state.uniform = state.uniform and shared


def _tags_now(part: LayerState, back: Tensor, tags: Tensor) -> Tensor:
    """The tags that tokens have in a latent memory, which by now holds all of them."""
    if part.evicted is not None:  # what was held till now has been evicted just now
        positions, given = part.evicted
        where, is_new = _find(positions, back)
        tags = torch.where(is_new, given.gather(2, where), tags)
    if bool((tags < 0).any()):
        raise MemoryFileError(
            "it is not stored where a latent memory has these tokens",
            "read their text instead: recall_from='text'",
        )
    return tags


def _find(places: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Find positions in ascending ones [B, G, S]; wanted [T] or [B, G, T], ascending or not.

    Returns:
        For each the index where it stands or could stand, int64 [B, G, T], and whether it is there.
    """
    wanted = wanted.expand(*places.shape[:2], -1).contiguous()
    if places.shape[2] == 0:
        return torch.zeros_like(wanted), torch.zeros_like(wanted, dtype=torch.bool)
    index = torch.searchsorted(places.contiguous(), wanted).clamp_max(places.shape[2] - 1)
    return index, places.gather(2, index) == wanted


def _shape(part: LayerState) -> tuple[int, int]:
    """Heads and head size of a part that holds something."""
    return part.keys.shape[1], part.keys.shape[3]


def _group(size: int, bits: int) -> int:
    """Numbers that share a scale."""
    return size if bits == 8 else math.gcd(size, _GROUP)
