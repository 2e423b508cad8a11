"""K4: writing evicted tokens into a latent memory, without atomics.

Each sum is made by one program that walks the tokens in their order, so that the same tokens give
the same memory, bit for bit, on every run. Evicted tokens are read where they lie in the cache.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from indexmem_cli.ops.kernels.launch import (
    block,
    insist,
    insist_rows,
    insist_shape,
    launch,
    precision,
    tiles,
    tuned,
)

SUM_COLUMNS = 32


@tuned(
    tiles([({"TILE_E": 32}, 4, 2), ({"TILE_E": 64}, 4, 3), ({"TILE_E": 128}, 8, 2)]),
    key=["SIZE", "BLOCK_MEMORY"],
)
@triton.jit
def _assign_kernel(
    key_ptr,
    index_ptr,
    mean_ptr,
    count_ptr,
    slot_ptr,
    apart_ptr,
    width,
    stride_key_b,
    stride_key_g,
    stride_key_n,
    HEADS: tl.constexpr,
    MEMORY: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_MEMORY: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
    TILE_E: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    key_ptr += (row // HEADS) * stride_key_b + (row % HEADS) * stride_key_g
    offs_memory = tl.arange(0, BLOCK_MEMORY)
    mask_memory = offs_memory < MEMORY
    live = tl.load(count_ptr + row * MEMORY + offs_memory, mask_memory, 0.0) > 0
    offs = tl.program_id(1) * TILE_E + tl.arange(0, TILE_E)
    mask = offs < width
    token = tl.load(index_ptr + row * width + offs, mask, -1).to(tl.int64)
    there = token >= 0
    # |k - c|^2 = |k|^2 - 2 k.c + |c|^2, a stretch of columns at a time
    apart = tl.full((TILE_E, BLOCK_MEMORY), 0.0, tl.float32)
    own = tl.full((TILE_E,), 0.0, tl.float32)
    for first in range(0, SIZE, COLUMNS):
        offs_size = first + tl.arange(0, COLUMNS)
        mask_size = offs_size < SIZE
        mean_at = mean_ptr + (row * MEMORY + offs_memory[:, None]) * SIZE + offs_size[None, :]
        mean = tl.load(mean_at, mask_memory[:, None] & mask_size[None, :], 0.0)
        key_at = key_ptr + token[:, None] * stride_key_n + offs_size[None, :]
        key = tl.load(key_at, there[:, None] & mask_size[None, :], 0.0).to(tl.float32)
        products = tl.dot(key, tl.trans(mean), input_precision=PRECISION)
        apart += tl.sum(mean * mean, 1)[None, :] - 2.0 * products
        own += tl.sum(key * key, 1)
    apart = tl.where(live[None, :], apart, float("inf"))
    slot = tl.argmin(apart, 1)
    nearest = tl.maximum(tl.min(apart, 1) + own, 0.0)
    tl.store(slot_ptr + row * width + offs, tl.where(there, slot, -1), mask)
    tl.store(apart_ptr + row * width + offs, tl.where(there, tl.sqrt(nearest), -1.0), mask)


@tuned(
    tiles([({"TILE_E": 32}, 4, 2), ({"TILE_E": 64}, 4, 3), ({"TILE_E": 128}, 4, 3)]),
    key=["SIZE", "BLOCK_MEMORY"],
)
@triton.jit
def _add_kernel(
    key_ptr,
    value_ptr,
    index_ptr,
    slot_ptr,
    key_sum_ptr,
    value_sum_ptr,
    count_ptr,
    width,
    stride_key_b,
    stride_key_g,
    stride_key_n,
    stride_value_b,
    stride_value_g,
    stride_value_n,
    HEADS: tl.constexpr,
    MEMORY: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_MEMORY: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
    TILE_E: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    batch, head = row // HEADS, row % HEADS
    offs_memory = tl.arange(0, BLOCK_MEMORY)
    offs_size = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask_size = offs_size < SIZE
    if tl.program_id(2) == 0:
        source, stride = key_ptr + batch * stride_key_b + head * stride_key_g, stride_key_n
        target = key_sum_ptr
    else:
        source = value_ptr + batch * stride_value_b + head * stride_value_g
        stride, target = stride_value_n, value_sum_ptr
    acc = tl.zeros((BLOCK_MEMORY, COLUMNS), tl.float32)
    count = tl.zeros((BLOCK_MEMORY,), tl.float32)
    for first in range(0, width, TILE_E):
        offs = first + tl.arange(0, TILE_E)
        mask = offs < width
        token = tl.load(index_ptr + row * width + offs, mask, -1).to(tl.int64)
        slot = tl.load(slot_ptr + row * width + offs, mask, -1)
        there = (token >= 0)[:, None] & mask_size[None, :]
        rows = tl.load(source + token[:, None] * stride + offs_size[None, :], there, 0.0)
        mine = (offs_memory[:, None] == slot[None, :]).to(tl.float32)
        acc += tl.dot(mine, rows.to(tl.float32), input_precision=PRECISION)
        count += tl.sum(mine, 1)
    at = target + (row * MEMORY + offs_memory[:, None]) * SIZE + offs_size[None, :]
    both = (offs_memory < MEMORY)[:, None] & mask_size[None, :]
    tl.store(at, acc, both)
    if (tl.program_id(1) == 0) & (tl.program_id(2) == 0):
        tl.store(count_ptr + row * MEMORY + offs_memory, count, offs_memory < MEMORY)


def assign_clusters_triton(
    key: Tensor, index: Tensor, mean: Tensor, count: Tensor
) -> tuple[Tensor, Tensor]:
    """The kernel behind `ops.assign_clusters`."""
    batch, heads, width = index.shape
    memory, size = mean.shape[2:]
    insist_rows(key=key)
    insist_shape(mean, (batch, heads, memory, key.shape[3]), "means")
    insist_shape(count, (batch, heads, memory), "count")
    index, mean, count = index.int().contiguous(), mean.contiguous(), count.contiguous()
    slot = torch.empty_like(index)
    apart = torch.empty(index.shape, dtype=torch.float32, device=key.device)
    if index.numel():
        grid = lambda meta: (batch * heads, triton.cdiv(width, meta["TILE_E"]))  # noqa: E731
        launch(
            _assign_kernel,
            grid,
            key,
            index,
            mean,
            count,
            slot,
            apart,
            width,
            *key.stride()[:3],
            HEADS=heads,
            MEMORY=memory,
            SIZE=size,
            BLOCK_MEMORY=block(memory),
            COLUMNS=SUM_COLUMNS,
            PRECISION=precision(mean),
        )
    return slot, apart


def sum_clusters_triton(
    key: Tensor, value: Tensor, index: Tensor, slot: Tensor, memory: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The kernel behind `ops.sum_clusters`."""
    batch, heads, width = index.shape
    size = key.shape[3]
    insist_rows(key=key, value=value)
    insist_shape(value, key.shape, "value")
    insist_shape(slot, index.shape, "slot")
    like = {"dtype": torch.float32, "device": key.device}
    key_sum, value_sum = (torch.empty(batch, heads, memory, size, **like) for _ in "kv")
    count = torch.empty(batch, heads, memory, **like)
    if count.numel():
        launch(
            _add_kernel,
            (batch * heads, triton.cdiv(size, SUM_COLUMNS), 2),
            key,
            value,
            index.int().contiguous(),
            slot.int().contiguous(),
            key_sum,
            value_sum,
            count,
            width,
            *key.stride()[:3],
            *value.stride()[:3],
            HEADS=heads,
            MEMORY=memory,
            SIZE=size,
            BLOCK_MEMORY=block(memory),
            COLUMNS=SUM_COLUMNS,
            PRECISION=precision(key_sum),
        )
    return key_sum, value_sum, count


@tuned(
    tiles([({"TILE_E": 32}, 4, 2), ({"TILE_E": 64}, 4, 2), ({"TILE_E": 64}, 8, 2)]),
    key=["SIZE", "FEATURES"],
)
@triton.jit
def _fast_weights_kernel(
    key_ptr,
    value_ptr,
    index_ptr,
    map_ptr,
    weights_ptr,
    norm_ptr,
    new_weights_ptr,
    new_norm_ptr,
    decay_ptr,
    width,
    stride_key_b,
    stride_key_g,
    stride_key_n,
    stride_value_b,
    stride_value_g,
    stride_value_n,
    HEADS: tl.constexpr,
    FEATURES: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
    TILE_E: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    batch, head = row // HEADS, row % HEADS
    offs_feature = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    offs_size = tl.arange(0, BLOCK_SIZE)
    mask_feature, mask_size = offs_feature < FEATURES, offs_size < SIZE
    key_ptr += batch * stride_key_b + head * stride_key_g
    value_ptr += batch * stride_value_b + head * stride_value_g
    both = mask_feature[:, None] & mask_size[None, :]
    feature_map = tl.load(map_ptr + offs_feature[:, None] * SIZE + offs_size[None, :], both, 0.0)
    feature_map = tl.trans(feature_map.to(tl.float32))
    at = (row * FEATURES + offs_feature[:, None]) * SIZE + offs_size[None, :]
    decay = tl.load(decay_ptr)  # on the device, so that the host need not wait for it
    acc = decay * tl.load(weights_ptr + at, both, 0.0)
    norm_at = row * FEATURES + offs_feature
    norm = decay * tl.load(norm_ptr + norm_at, mask_feature, 0.0)
    for first in range(0, width, TILE_E):
        offs = first + tl.arange(0, TILE_E)
        token = tl.load(index_ptr + row * width + offs, offs < width, -1).to(tl.int64)
        there = (token >= 0)[:, None] & mask_size[None, :]
        key_at = key_ptr + token[:, None] * stride_key_n + offs_size[None, :]
        value_at = value_ptr + token[:, None] * stride_value_n + offs_size[None, :]
        key = tl.load(key_at, there, 0.0).to(tl.float32)
        value = tl.load(value_at, there, 0.0).to(tl.float32)
        features = tl.dot(key, feature_map, input_precision=PRECISION)
        acc += tl.dot(tl.trans(features), value, input_precision=PRECISION)
        norm += tl.sum(features * features, 0)
    tl.store(new_weights_ptr + at, acc, both)
    tl.store(new_norm_ptr + norm_at, norm, mask_feature)


def update_fast_weights_triton(
    key: Tensor,
    value: Tensor,
    index: Tensor,
    feature_map: Tensor,
    weights: Tensor,
    norm: Tensor,
    decay: Tensor,
) -> tuple[Tensor, Tensor]:
    """The kernel behind `ops.update_fast_weights`."""
    batch, heads, width = index.shape
    features, size = feature_map.shape
    insist_rows(key=key, value=value)
    insist_shape(weights, (batch, heads, features, size), "weights")
    insist_shape(norm, (batch, heads, features), "norm")
    insist(size == key.shape[3] == value.shape[3], "the map is for another head size")
    weights, norm = weights.contiguous(), norm.contiguous()
    new_weights, new_norm = torch.empty_like(weights), torch.empty_like(norm)
    if norm.numel():
        launch(
            _fast_weights_kernel,
            (batch * heads, triton.cdiv(features, SUM_COLUMNS)),
            key,
            value,
            index.int().contiguous(),
            feature_map.contiguous(),
            weights,
            norm,
            new_weights,
            new_norm,
            decay.float(),
            width,
            *key.stride()[:3],
            *value.stride()[:3],
            HEADS=heads,
            FEATURES=features,
            SIZE=size,
            BLOCK_SIZE=block(size),
            COLUMNS=SUM_COLUMNS,
            PRECISION=precision(weights),
        )
    return new_weights, new_norm
