"""K3: attention of one new token per sequence over kept slots, centroids and recalled passages.

Memory-bound: each key and value is read once, for all query heads of its group. The slots of a
segment are split over programs, and the parts are merged by their log-sum-exp.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from indexmem_cli.ops.kernels.launch import (
    INTERPRETED,
    block,
    insist,
    insist_rows,
    insist_shape,
    launch,
    precision,
    processors,
    strides,
    tiles,
    tuned,
)
from indexmem_cli.ops.reference import Segment

MAX_SPLITS = 64
MERGE_COLUMNS = 64


@triton.jit
def _load_half(ptr, rows, mask_rows, stride, first, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Columns [first, first + WIDTH) of some rows, padded to BLOCK columns of 0."""
    offs = tl.arange(0, BLOCK)
    at = ptr + rows[:, None] * stride + first + offs[None, :]
    return tl.load(at, mask_rows[:, None] & (offs < WIDTH)[None, :], 0.0)


@triton.jit
def _softmax_step(paid, peak, mass):
    """Take one more tile of logits, [rows, slots], into a softmax that is read tile by tile.

    Returns:
        The weights of the tile, by how much what was summed before fades, and peak and mass anew.
        A row that has seen nothing has peak -inf and mass 0, and stays free of NaN.
    """
    higher = tl.maximum(peak, tl.max(paid, 1))
    safe = tl.where(higher == float("-inf"), 0.0, higher)
    weights = tl.exp(paid - safe[:, None])
    fade = tl.exp(peak - safe)
    return weights, fade, higher, mass * fade + tl.sum(weights, 1)


@triton.jit
def _softmax_end(acc, peak, mass):
    """The weighted mean and the log of the normaliser; 0 and -inf where nothing was seen."""
    some = mass > 0
    whole = tl.where(some, mass, 1.0)
    return acc / whole[:, None], tl.where(some, peak + tl.log(whole), float("-inf"))


@triton.jit
def _cap(paid, softcap):
    """softcap * tanh(paid / softcap), by the exponential alone."""
    return softcap * (2.0 / (1.0 + tl.exp(-2.0 * paid / softcap)) - 1.0)


@tuned(
    tiles(
        [
            ({"TILE_N": 32}, 4, 2),
            ({"TILE_N": 64}, 4, 3),
            ({"TILE_N": 64}, 8, 2),
            ({"TILE_N": 128}, 4, 2),
            ({"TILE_N": 128}, 8, 3),
        ]
    ),
    key=["SIZE", "GROUP", "slots_bucket", "TURN", "SCALED"],
)
@triton.jit
def _attend_split_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    key_scale_ptr,
    value_scale_ptr,
    cos_ptr,
    sin_ptr,
    bias_ptr,
    length_ptr,
    out_ptr,
    lse_ptr,
    logits_ptr,
    scale,
    softcap,
    slots,
    slots_bucket,
    split_slots,
    first_split,
    all_splits,
    stride_key_b,
    stride_key_g,
    stride_key_n,
    stride_value_b,
    stride_value_g,
    stride_value_n,
    stride_scale_b,
    stride_scale_g,
    stride_bias_b,
    stride_bias_g,
    stride_turn_r,
    stride_turn_n,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    TURN: tl.constexpr,
    SCALED: tl.constexpr,
    BIASED: tl.constexpr,
    CAPPED: tl.constexpr,
    WANT_LOGITS: tl.constexpr,
    PRECISION: tl.constexpr,
    UP: tl.constexpr,
    TILE_N: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)  # batch * KV heads
    batch, head = row // HEADS, row % HEADS
    split = tl.program_id(1)
    offs_group = tl.arange(0, BLOCK_GROUP)
    mask_group = offs_group < GROUP
    query_rows = row * GROUP + offs_group
    first_half = _load_half(query_ptr, query_rows, mask_group, SIZE, 0, HALF, BLOCK_HALF)
    second_half = _load_half(query_ptr, query_rows, mask_group, SIZE, HALF, HALF, BLOCK_HALF)
    rest = _load_half(query_ptr, query_rows, mask_group, SIZE, 2 * HALF, REST, BLOCK_REST)
    if UP:
        first_half, second_half = first_half.to(tl.float32), second_half.to(tl.float32)
        rest = rest.to(tl.float32)
    key_ptr += batch * stride_key_b + head * stride_key_g
    value_ptr += batch * stride_value_b + head * stride_value_g
    scale_at = batch * stride_scale_b + head * stride_scale_g
    bias_ptr += batch * stride_bias_b + head * stride_bias_g
    length = tl.minimum(tl.load(length_ptr + row), slots)
    offs_size, offs_half = tl.arange(0, BLOCK_SIZE), tl.arange(0, BLOCK_HALF)
    peak = tl.full((BLOCK_GROUP,), float("-inf"), tl.float32)
    mass = tl.zeros((BLOCK_GROUP,), tl.float32)
    acc = tl.zeros((BLOCK_GROUP, BLOCK_SIZE), tl.float32)
    end = tl.minimum((split + 1) * split_slots, length)
    for first in range(split * split_slots, end, TILE_N):
        offs = first + tl.arange(0, TILE_N)
        mask = offs < end
        left = _load_half(key_ptr, offs, mask, stride_key_n, 0, HALF, BLOCK_HALF)
        right = _load_half(key_ptr, offs, mask, stride_key_n, HALF, HALF, BLOCK_HALF)
        if TURN:
            turn_at = row * stride_turn_r + offs[:, None] * stride_turn_n + offs_half[None, :]
            here = mask[:, None] & (offs_half < HALF)[None, :]
            cos, sin = tl.load(cos_ptr + turn_at, here, 0.0), tl.load(sin_ptr + turn_at, here, 0.0)
            a, b = left.to(tl.float32), right.to(tl.float32)
            left, right = a * cos - b * sin, b * cos + a * sin
        left, right = left.to(first_half.dtype), right.to(first_half.dtype)
        paid = tl.dot(first_half, tl.trans(left), input_precision=PRECISION)
        paid += tl.dot(second_half, tl.trans(right), input_precision=PRECISION)
        if REST > 0:
            other = _load_half(key_ptr, offs, mask, stride_key_n, 2 * HALF, REST, BLOCK_REST)
            other = tl.trans(other.to(rest.dtype))
            paid += tl.dot(rest, other, input_precision=PRECISION)
        paid *= scale
        if SCALED:
            paid *= tl.load(key_scale_ptr + scale_at + offs, mask, 0.0).to(tl.float32)[None, :]
        if CAPPED:
            paid = _cap(paid, softcap)
        if BIASED:
            paid += tl.load(bias_ptr + offs, mask, 0.0)[None, :]
        paid = tl.where(mask[None, :], paid, float("-inf"))
        if WANT_LOGITS:
            logits_at = logits_ptr + query_rows[:, None] * slots + offs[None, :]
            tl.store(logits_at, paid, mask_group[:, None] & mask[None, :])
        weights, fade, peak, mass = _softmax_step(paid, peak, mass)
        value_at = value_ptr + offs[:, None] * stride_value_n + offs_size[None, :]
        value = tl.load(value_at, mask[:, None] & (offs_size < SIZE)[None, :], 0.0)
        if SCALED:
            factor = tl.load(value_scale_ptr + scale_at + offs, mask, 0.0).to(tl.float32)
            weights = weights * factor[None, :]
        value = value.to(first_half.dtype)
        acc = acc * fade[:, None] + tl.dot(
            weights.to(value.dtype), value, input_precision=PRECISION
        )
    acc, lse = _softmax_end(acc, peak, mass)
    at = query_rows * all_splits + first_split + split
    tl.store(lse_ptr + at, lse, mask_group)
    at = out_ptr + at[:, None] * SIZE + offs_size[None, :]
    tl.store(at, acc, mask_group[:, None] & (offs_size < SIZE)[None, :])


@triton.jit
def _merge_splits_kernel(
    parts_ptr,
    parts_lse_ptr,
    out_ptr,
    lse_ptr,
    splits,
    SIZE: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    offs = tl.arange(0, BLOCK_SPLITS)
    offs_size = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    mask, mask_size = offs < splits, offs_size < SIZE
    lse = tl.load(parts_lse_ptr + row * splits + offs, mask, float("-inf"))
    peak = tl.max(lse, 0)
    safe = tl.where(peak == float("-inf"), 0.0, peak)
    weights = tl.exp(lse - safe)
    mass = tl.sum(weights, 0)
    at = (row * splits + offs[:, None]) * SIZE + offs_size[None, :]
    parts = tl.load(parts_ptr + at, mask[:, None] & mask_size[None, :], 0.0)
    some = mass > 0
    out = tl.sum(parts * weights[:, None], 0) / tl.where(some, mass, 1.0)
    tl.store(out_ptr + row * SIZE + offs_size, out, mask_size)
    lse = tl.where(some, safe + tl.log(tl.where(some, mass, 1.0)), float("-inf"))
    tl.store(lse_ptr + row, lse, tl.program_id(1) == 0)


def attend_segments_triton(
    segments: list[Segment], scale: float, softcap: float | None = None, want_logits: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The kernels behind `ops.attend_segments`."""
    batch, heads, size = segments[0].query.shape
    kv_heads, device = segments[0].key.shape[1], segments[0].query.device
    splits = [_splits(segment, batch * kv_heads) for segment in segments]
    total = sum(splits)
    like = {"dtype": torch.float32, "device": device}
    parts = torch.empty(batch, heads, total, size, **like)
    parts_lse = torch.empty(batch, heads, total, **like)
    logits = None
    if want_logits:
        shape = (batch, heads, segments[0].key.shape[2])
        logits = torch.full(shape, float("-inf"), **like)
    done = 0
    for segment, own in zip(segments, splits, strict=True):
        here = logits if segment is segments[0] else None
        _attend_split(segment, scale, softcap, parts, parts_lse, here, done, own)
        done += own
    out = torch.empty(batch, heads, size, **like)
    lse = torch.empty(batch, heads, **like)
    if total:
        launch(
            _merge_splits_kernel,
            (batch * heads, triton.cdiv(size, MERGE_COLUMNS)),
            parts,
            parts_lse,
            out,
            lse,
            total,
            SIZE=size,
            BLOCK_SPLITS=triton.next_power_of_2(total),
            BLOCK_COLUMNS=MERGE_COLUMNS,
            num_warps=4,
        )
        return out, lse, logits
    return out.zero_(), lse.fill_(float("-inf")), logits


def _splits(segment: Segment, rows: int) -> int:
    """Programs for one segment: enough to fill the device, none of them for fewer than a tile."""
    slots = segment.key.shape[2]
    wanted = triton.cdiv(2 * processors(segment.key.device), max(rows, 1))
    return int(min(MAX_SPLITS, wanted, triton.cdiv(slots, 128 if slots > 128 else 32)))


def _attend_split(
    segment: Segment,
    scale: float,
    softcap: float | None,
    parts: Tensor,
    parts_lse: Tensor,
    logits: Tensor | None,
    first_split: int,
    splits: int,
) -> None:
    """Attend over one segment, into its own part of `parts`."""
    if not splits:
        return
    query, key, value = segment.query.contiguous(), segment.key, segment.value
    batch, heads, size = query.shape
    kv_heads, slots = key.shape[1:3]
    insist(heads % kv_heads == 0, f"{heads} query heads are no multiple of {kv_heads}")
    insist_shape(key, (batch, kv_heads, slots, size), "key")
    insist_shape(value, key.shape, "value")
    insist_rows(key=key, value=value, cos=segment.cos, bias=segment.bias)
    insist_rows(key_scale=segment.key_scale, value_scale=segment.value_scale)
    half = segment.cos.shape[-1] if segment.cos is not None else size // 2
    if segment.cos is not None and segment.sin is not None:
        insist(segment.cos.shape[0] in (1, batch * kv_heads), "angles: one row, or one per head")
        insist(segment.cos.dtype == torch.float32, "angles must be fp32")
        insist(segment.cos.stride() == segment.sin.stride(), "cos and sin must lie alike")
    turn = segment.cos
    length = segment.length
    if length is None:
        length = torch.full((batch, kv_heads), slots, dtype=torch.int32, device=query.device)
    rest, group = size - 2 * half, heads // kv_heads
    launch(
        _attend_split_kernel,
        (batch * kv_heads, splits),
        query,
        key,
        value,
        *(t if t is not None else query for t in (segment.key_scale, segment.value_scale)),
        *(t if t is not None else query for t in (segment.cos, segment.sin, segment.bias)),
        length.contiguous(),
        parts,
        parts_lse,
        logits if logits is not None else parts,
        scale,
        softcap or 1.0,
        slots,
        triton.next_power_of_2(slots),
        triton.cdiv(slots, splits),
        first_split,
        parts.shape[2],
        *key.stride()[:3],
        *value.stride()[:3],
        *strides(segment.key_scale, 2),
        *strides(segment.bias, 2),
        0 if turn is None or turn.shape[0] == 1 else turn.stride(0),
        strides(turn, 2)[1],
        HEADS=kv_heads,
        GROUP=group,
        SIZE=size,
        HALF=half,
        REST=rest,
        BLOCK_GROUP=block(group),
        BLOCK_SIZE=block(size),
        BLOCK_HALF=block(half),
        BLOCK_REST=block(rest),
        TURN=turn is not None,
        SCALED=segment.key_scale is not None,
        BIASED=segment.bias is not None,
        CAPPED=softcap is not None,
        WANT_LOGITS=logits is not None,
        PRECISION=precision(query),
        UP=INTERPRETED,
    )
