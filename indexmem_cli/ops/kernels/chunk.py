"""K5: attention of a chunk in the forms that PyTorch's flash attention lacks.

Those are logits under a softcap, with a sliding window or not, and the log of the normaliser, by
which a latent memory is joined. No map of tokens by slots is ever held. All else is left to flash
attention, which is faster than this on any card it runs on.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from indexmem_cli.ops.kernels.decode import _cap, _softmax_end, _softmax_step
from indexmem_cli.ops.kernels.launch import (
    INTERPRETED,
    block,
    insist,
    insist_rows,
    insist_shape,
    launch,
    precision,
    strides,
    tiles,
    tuned,
)


@tuned(
    tiles(
        [
            ({"TILE_T": 32, "TILE_N": 16}, 4, 2),  # fits with heads of 256 in fp32
            ({"TILE_T": 64, "TILE_N": 32}, 4, 2),
            ({"TILE_T": 64, "TILE_N": 64}, 4, 3),
            ({"TILE_T": 128, "TILE_N": 32}, 8, 2),
            ({"TILE_T": 128, "TILE_N": 64}, 8, 3),
        ]
    ),
    key=["SIZE", "GROUP", "slots_bucket", "CAUSAL", "CAPPED"],
)
@triton.jit
def _attend_chunk_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    bias_ptr,
    out_ptr,
    lse_ptr,
    scale,
    softcap,
    window,
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
    stride_bias_b,
    stride_bias_g,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOWED: tl.constexpr,
    BIASED: tl.constexpr,
    CAPPED: tl.constexpr,
    PRECISION: tl.constexpr,
    UP: tl.constexpr,
    TILE_T: tl.constexpr,
    TILE_N: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)  # batch * query heads
    batch, head = row // (HEADS * GROUP), row % (HEADS * GROUP)
    first_token = tl.program_id(0) * TILE_T
    offs_token, offs_size = first_token + tl.arange(0, TILE_T), tl.arange(0, BLOCK_SIZE)
    mask_token, mask_size = offs_token < tokens, offs_size < SIZE
    query_ptr += batch * stride_query_b + head * stride_query_h
    query_at = query_ptr + offs_token[:, None] * stride_query_t + offs_size[None, :]
    query = tl.load(query_at, mask_token[:, None] & mask_size[None, :], 0.0)
    if UP:
        query = query.to(tl.float32)
    key_ptr += batch * stride_key_b + (head // GROUP) * stride_key_g
    value_ptr += batch * stride_value_b + (head // GROUP) * stride_value_g
    bias_ptr += batch * stride_bias_b + (head // GROUP) * stride_bias_g
    peak = tl.full((TILE_T,), float("-inf"), tl.float32)
    mass = tl.zeros((TILE_T,), tl.float32)
    acc = tl.zeros((TILE_T, BLOCK_SIZE), tl.float32)
    older = slots - tokens
    start, end = 0, slots
    if CAUSAL:
        end = tl.minimum(older + first_token + TILE_T, slots)
    if WINDOWED:
        start = tl.maximum(older + first_token - window + 1, 0) // TILE_N * TILE_N
    for first in range(start, end, TILE_N):
        offs = first + tl.arange(0, TILE_N)
        mask = offs < end
        here = mask[:, None] & mask_size[None, :]
        key = tl.load(key_ptr + offs[:, None] * stride_key_n + offs_size[None, :], here, 0.0)
        value = tl.load(value_ptr + offs[:, None] * stride_value_n + offs_size[None, :], here, 0.0)
        if UP:
            key, value = key.to(tl.float32), value.to(tl.float32)
        paid = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
        if CAPPED:
            paid = _cap(paid, softcap)
        if BIASED:
            paid += tl.load(bias_ptr + offs, mask, 0.0)[None, :]
        seen = mask[None, :]
        if CAUSAL:
            seen = seen & (offs[None, :] <= older + offs_token[:, None])
        if WINDOWED:
            seen = seen & (offs[None, :] > older + offs_token[:, None] - window)
        weights, fade, peak, mass = _softmax_step(tl.where(seen, paid, float("-inf")), peak, mass)
        acc = acc * fade[:, None] + tl.dot(
            weights.to(value.dtype), value, input_precision=PRECISION
        )
    acc, lse = _softmax_end(acc, peak, mass)
    at = row * tokens + offs_token
    tl.store(lse_ptr + at, lse, mask_token)
    at = out_ptr + at[:, None] * SIZE + offs_size[None, :]
    tl.store(at, acc, mask_token[:, None] & mask_size[None, :])


def attend_with_lse_triton(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    bias: Tensor | None = None,
    softcap: float | None = None,
    causal: bool = True,
    window: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The kernel behind `ops.attend_with_lse`."""
    batch, heads, tokens, size = query.shape
    kv_heads, slots = key.shape[1:3]
    query = query.to(key.dtype)
    insist(heads % kv_heads == 0, f"{heads} query heads are no multiple of {kv_heads}")
    insist_shape(key, (batch, kv_heads, slots, size), "key")
    insist_shape(value, key.shape, "value")
    insist(value.dtype == key.dtype, "keys and values must be of one dtype")
    insist(not causal or tokens <= slots, "the last slots must be the queries' own tokens")
    insist(causal or window is None, "a window goes back from a token of its own")
    if bias is not None:
        insist_shape(bias, key.shape[:3], "bias")
    insist_rows(query=query, key=key, value=value, bias=bias)
    out = torch.empty(query.shape, dtype=torch.float32, device=query.device)
    lse = torch.empty(query.shape[:3], dtype=torch.float32, device=query.device)
    if lse.numel():
        launch(
            _attend_chunk_kernel,
            lambda meta: (triton.cdiv(tokens, meta["TILE_T"]), batch * heads),
            query,
            key,
            value,
            bias if bias is not None else query,
            out,
            lse,
            scale,
            softcap or 1.0,
            window or 0,
            tokens,
            slots,
            triton.next_power_of_2(slots),
            *query.stride()[:3],
            *key.stride()[:3],
            *value.stride()[:3],
            *strides(bias, 2),
            HEADS=kv_heads,
            GROUP=heads // kv_heads,
            SIZE=size,
            BLOCK_SIZE=block(size),
            CAUSAL=causal,
            WINDOWED=window is not None,
            BIASED=bias is not None,
            CAPPED=softcap is not None,
            PRECISION=precision(query),
            UP=INTERPRETED,
        )
    return out, lse
