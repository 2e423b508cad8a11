"""K5: attention of a chunk whose far past stands at one constant distance (far-clamped).

Near keys are turned to their true positions as they are read; far ones are not turned at all, but
seen by a query turned to the one distance. Tiles that are all near or all far pay for one product.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from indexmem_cli.ops.kernels.decode import _load_half
from indexmem_cli.ops.kernels.launch import (
    INTERPRETED,
    block,
    insist,
    insist_rows,
    insist_shape,
    launch,
    precision,
    tiles,
    tuned,
)


@tuned(
    tiles(
        [
            ({"TILE_T": 64, "TILE_N": 32}, 8, 2),
            ({"TILE_T": 64, "TILE_N": 64}, 4, 2),
            ({"TILE_T": 128, "TILE_N": 32}, 8, 2),
            ({"TILE_T": 128, "TILE_N": 64}, 8, 2),
        ]
    ),
    key=["SIZE", "GROUP", "slots_bucket"],
)
@triton.jit
def _attend_far_clamped_kernel(
    near_ptr,
    far_ptr,
    key_ptr,
    value_ptr,
    cos_ptr,
    sin_ptr,
    position_ptr,
    out_ptr,
    lse_ptr,
    scale,
    near_tokens,
    tokens,
    slots,
    slots_bucket,
    stride_query_b,
    stride_query_h,
    stride_query_t,
    stride_key_b,
    stride_key_g,
    stride_key_n,
    stride_value_b,
    stride_value_g,
    stride_value_n,
    stride_turn_r,
    stride_position_r,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    PRECISION: tl.constexpr,
    UP: tl.constexpr,
    TILE_T: tl.constexpr,
    TILE_N: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)  # batch * query heads
    batch, head = row // (HEADS * GROUP), row % (HEADS * GROUP)
    kv_row = batch * HEADS + head // GROUP
    offs_token = tl.program_id(0) * TILE_T + tl.arange(0, TILE_T)
    mask_token = offs_token < tokens
    start = batch * stride_query_b + head * stride_query_h
    near_1 = _load_half(
        near_ptr + start, offs_token, mask_token, stride_query_t, 0, HALF, BLOCK_HALF
    )
    near_2 = _load_half(
        near_ptr + start, offs_token, mask_token, stride_query_t, HALF, HALF, BLOCK_HALF
    )
    far_1 = _load_half(far_ptr + start, offs_token, mask_token, stride_query_t, 0, HALF, BLOCK_HALF)
    far_2 = _load_half(
        far_ptr + start, offs_token, mask_token, stride_query_t, HALF, HALF, BLOCK_HALF
    )
    rest = _load_half(
        near_ptr + start, offs_token, mask_token, stride_query_t, 2 * HALF, REST, BLOCK_REST
    )
    if UP:
        near_1, near_2 = near_1.to(tl.float32), near_2.to(tl.float32)
        far_1, far_2, rest = far_1.to(tl.float32), far_2.to(tl.float32), rest.to(tl.float32)
    key_ptr += batch * stride_key_b + (head // GROUP) * stride_key_g
    value_ptr += batch * stride_value_b + (head // GROUP) * stride_value_g
    position_ptr += kv_row * stride_position_r
    older = slots - tokens
    now = tl.load(position_ptr + older + offs_token, mask_token, 0)
    # The edges of a tile, over rows that exist.
    first_now = tl.min(tl.where(mask_token, now, 2147483647), 0)
    last_now = tl.max(now, 0)
    offs_size, offs_half = tl.arange(0, BLOCK_SIZE), tl.arange(0, BLOCK_HALF)
    peak = tl.full((TILE_T,), float("-inf"), tl.float32)
    mass = tl.zeros((TILE_T,), tl.float32)
    acc = tl.zeros((TILE_T, BLOCK_SIZE), tl.float32)
    end = tl.minimum(older + (tl.program_id(0) + 1) * TILE_T, slots)
    for first in range(0, end, TILE_N):
        offs = first + tl.arange(0, TILE_N)
        mask = offs < end
        then = tl.load(position_ptr + offs, mask, 0)
        left = _load_half(key_ptr, offs, mask, stride_key_n, 0, HALF, BLOCK_HALF)
        right = _load_half(key_ptr, offs, mask, stride_key_n, HALF, HALF, BLOCK_HALF)
        if UP:
            left, right = left.to(tl.float32), right.to(tl.float32)
        some_far = last_now - tl.min(tl.where(mask, then, 2147483647), 0) >= near_tokens
        some_near = first_now - tl.max(tl.where(mask, then, 0), 0) < near_tokens
        paid = tl.zeros((TILE_T, TILE_N), tl.float32)
        if some_far:
            paid += tl.dot(far_1, tl.trans(left), input_precision=PRECISION)
            paid += tl.dot(far_2, tl.trans(right), input_precision=PRECISION)
        if some_near:
            turn_at = kv_row * stride_turn_r + offs[:, None] * HALF + offs_half[None, :]
            here = mask[:, None] & (offs_half < HALF)[None, :]
            cos, sin = tl.load(cos_ptr + turn_at, here, 0.0), tl.load(sin_ptr + turn_at, here, 0.0)
            a, b = left.to(tl.float32), right.to(tl.float32)
            turned_1 = (a * cos - b * sin).to(near_1.dtype)
            turned_2 = (b * cos + a * sin).to(near_2.dtype)
            close = tl.dot(near_1, tl.trans(turned_1), input_precision=PRECISION)
            close += tl.dot(near_2, tl.trans(turned_2), input_precision=PRECISION)
            paid = tl.where(now[:, None] - then[None, :] < near_tokens, close, paid)
        if REST > 0:
            other = _load_half(key_ptr, offs, mask, stride_key_n, 2 * HALF, REST, BLOCK_REST)
            other = tl.trans(other.to(rest.dtype))
            paid += tl.dot(rest, other, input_precision=PRECISION)
        seen = mask[None, :] & (offs[None, :] <= older + offs_token[:, None])
        paid = tl.where(seen, paid * scale, float("-inf"))
        higher = tl.maximum(peak, tl.max(paid, 1))
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp(paid - safe[:, None])
        fade = tl.exp(peak - safe)
        mass = mass * fade + tl.sum(weights, 1)
        value_at = value_ptr + offs[:, None] * stride_value_n + offs_size[None, :]
        value = tl.load(value_at, mask[:, None] & (offs_size < SIZE)[None, :], 0.0)
        if UP:
            value = value.to(tl.float32)
        acc = acc * fade[:, None] + tl.dot(
            weights.to(value.dtype), value, input_precision=PRECISION
        )
        peak = higher
    acc = acc / mass[:, None]  # every token sees at least itself
    at = row * tokens + offs_token
    tl.store(lse_ptr + at, peak + tl.log(mass), mask_token)
    at = out_ptr + at[:, None] * SIZE + offs_size[None, :]
    tl.store(at, acc, mask_token[:, None] & (offs_size < SIZE)[None, :])


def attend_far_clamped_triton(
    near: Tensor,
    far: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    near_tokens: int,
) -> tuple[Tensor, Tensor]:
    """The kernel behind `ops.attend_far_clamped`."""
    batch, heads, tokens, size = near.shape
    kv_heads, slots = key.shape[1:3]
    insist_shape(far, near.shape, "far query")
    insist_shape(value, key.shape, "value")
    insist(heads % kv_heads == 0, f"{heads} query heads are no multiple of {kv_heads}")
    insist(near.dtype == far.dtype == key.dtype == value.dtype, "one dtype for all")
    near, far = near.contiguous(), far.contiguous()
    rows = cos.shape[0]
    insist(rows in (1, batch * kv_heads), "angles: one row, or one per head")
    insist_shape(positions, (rows, slots), "positions")
    insist_rows(key=key, value=value)
    cos, sin = cos.float().contiguous(), sin.float().contiguous()
    positions = positions.int().contiguous()
    out = torch.empty(near.shape, dtype=torch.float32, device=near.device)
    lse = torch.empty(near.shape[:3], dtype=torch.float32, device=near.device)
    half = cos.shape[-1]
    if lse.numel():
        grid = lambda meta: (triton.cdiv(tokens, meta["TILE_T"]), batch * heads)  # noqa: E731
        launch(
            _attend_far_clamped_kernel,
            grid,
            near,
            far,
            key,
            value,
            cos,
            sin,
            positions,
            out,
            lse,
            scale,
            near_tokens,
            tokens,
            slots,
            triton.next_power_of_2(slots),
            *near.stride()[:3],
            *key.stride()[:3],
            *value.stride()[:3],
            0 if rows == 1 else slots * half,
            0 if rows == 1 else slots,
            HEADS=kv_heads,
            GROUP=heads // kv_heads,
            SIZE=size,
            HALF=half,
            REST=size - 2 * half,
            BLOCK_SIZE=block(size),
            BLOCK_HALF=block(half),
            BLOCK_REST=block(size - 2 * half),
            PRECISION=precision(near),
            UP=INTERPRETED,
        )
    return out, lse
