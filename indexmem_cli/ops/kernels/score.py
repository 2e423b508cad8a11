"""K1: scores of tokens. The retention net in one pass, and the paper's gated relevance.

Both read their inputs once and write one number per token: neither hidden units nor the map of
queries by keys ever reach memory.
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
    tiles,
    tuned,
)
from indexmem_cli.ops.slots_reference import MAX_HIDDEN, Affine


@triton.jit
def _moments(states_ptr, rows, mask_rows, stride, WIDTH: tl.constexpr, TILE_W: tl.constexpr):
    """Mean and variance of each row, tile by tile (Chan et al.): stable for states of any size."""
    mean = tl.zeros_like(rows).to(tl.float32)
    spread = mean
    for first in range(0, WIDTH, TILE_W):
        offs = first + tl.arange(0, TILE_W)
        mask = mask_rows[:, None] & (offs < WIDTH)[None, :]
        x = tl.load(states_ptr + rows[:, None] * stride + offs[None, :], mask, 0.0).to(tl.float32)
        count = tl.minimum(WIDTH - first, TILE_W) * 1.0
        tile_mean = tl.sum(x, 1) / count
        apart = tl.where(mask, x - tile_mean[:, None], 0.0)
        delta = tile_mean - mean
        mean += delta * count / (first + count)
        spread += tl.sum(apart * apart, 1) + delta * delta * first * count / (first + count)
    return mean, spread / WIDTH


@tuned(
    tiles(
        [
            ({"TILE_T": 32, "TILE_W": 32}, 8, 2),
            ({"TILE_T": 64, "TILE_W": 32}, 8, 2),
            ({"TILE_T": 64, "TILE_W": 64}, 8, 2),
            ({"TILE_T": 16, "TILE_W": 64}, 8, 3),
        ]
    ),
    key=["WIDTH", "HIDDEN", "tokens_bucket"],
)
@triton.jit
def _score_states_kernel(
    states_ptr,
    norm_weight_ptr,
    norm_bias_ptr,
    inner_weight_ptr,
    inner_bias_ptr,
    inner_norm_weight_ptr,
    inner_norm_bias_ptr,
    out_weight_ptr,
    out_bias_ptr,
    scores_ptr,
    rows_total,
    tokens,
    tokens_bucket,
    stride_row,
    eps,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
    PRECISION: tl.constexpr,
    UP: tl.constexpr,
    TILE_T: tl.constexpr,
    TILE_W: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * TILE_T + tl.arange(0, TILE_T)
    mask_rows = rows < rows_total
    mean, var = _moments(states_ptr, rows, mask_rows, stride_row, WIDTH, TILE_W)
    inverse = 1.0 / tl.sqrt(var + eps)
    offs_hidden = tl.arange(0, BLOCK_HIDDEN)
    mask_hidden = offs_hidden < HIDDEN
    acc = tl.zeros((TILE_T, BLOCK_HIDDEN), tl.float32)
    for first in range(0, WIDTH, TILE_W):
        offs = first + tl.arange(0, TILE_W)
        mask = offs < WIDTH
        at = states_ptr + rows[:, None] * stride_row + offs[None, :]
        x = tl.load(at, mask_rows[:, None] & mask[None, :], 0.0).to(tl.float32)
        gain = tl.load(norm_weight_ptr + offs, mask, 0.0).to(tl.float32)
        shift = tl.load(norm_bias_ptr + offs, mask, 0.0).to(tl.float32)
        x = (x - mean[:, None]) * inverse[:, None] * gain[None, :] + shift[None, :]
        weight_at = inner_weight_ptr + offs_hidden[:, None] * WIDTH + offs[None, :]
        weight = tl.load(weight_at, mask_hidden[:, None] & mask[None, :], 0.0)
        if UP:
            weight = weight.to(tl.float32)
        acc += tl.dot(x.to(weight.dtype), tl.trans(weight), input_precision=PRECISION)
    acc += tl.load(inner_bias_ptr + offs_hidden, mask_hidden, 0.0).to(tl.float32)[None, :]
    centre = tl.sum(tl.where(mask_hidden[None, :], acc, 0.0), 1) / HIDDEN
    acc = tl.where(mask_hidden[None, :], acc - centre[:, None], 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(acc * acc, 1) / HIDDEN + eps)
    gain = tl.load(inner_norm_weight_ptr + offs_hidden, mask_hidden, 0.0).to(tl.float32)
    shift = tl.load(inner_norm_bias_ptr + offs_hidden, mask_hidden, 0.0).to(tl.float32)
    acc = acc * inverse[:, None] * gain[None, :] + shift[None, :]
    acc = 0.5 * acc * (1.0 + tl.erf(acc * 0.7071067811865476))
    # The last layer is so narrow that a dot per output beats padding it for tensor cores.
    batch, token = rows // tokens, rows % tokens
    for out in tl.static_range(OUTPUTS):
        weight = tl.load(out_weight_ptr + out * HIDDEN + offs_hidden, mask_hidden, 0.0)
        score = tl.sum(acc * weight.to(tl.float32)[None, :], 1)
        score += tl.load(out_bias_ptr + out).to(tl.float32)
        tl.store(scores_ptr + (batch * OUTPUTS + out) * tokens + token, score, mask_rows)


def score_states_triton(
    states: Tensor, norm: Affine, inner: Affine, inner_norm: Affine, out: Affine, eps: float
) -> Tensor:
    """The kernel behind `ops.score_states`."""
    batch, tokens, width = states.shape
    hidden, outputs = inner[0].shape[0], out[0].shape[0]
    states = states.reshape(batch * tokens, width)
    insist_rows(states=states)
    insist_shape(inner[0], (hidden, width), "inner weight")
    insist(hidden <= MAX_HIDDEN, f"at most {MAX_HIDDEN} hidden units fit a tile")
    affine = [t for pair in (norm, inner, inner_norm, out) for t in pair]
    insist(all(t.is_contiguous() for t in affine), "weights must be contiguous")
    scores = torch.empty(batch, outputs, tokens, dtype=torch.float32, device=states.device)
    if scores.numel():
        rows = batch * tokens
        launch(
            _score_states_kernel,
            lambda meta: (triton.cdiv(rows, meta["TILE_T"]),),
            states,
            *affine,
            scores,
            rows,
            tokens,
            triton.next_power_of_2(rows),
            states.stride(0),
            eps,
            WIDTH=width,
            HIDDEN=hidden,
            OUTPUTS=outputs,
            BLOCK_HIDDEN=block(hidden),
            PRECISION=precision(inner[0]),
            UP=INTERPRETED,
        )
    return scores


@tuned(
    tiles(
        [
            ({"TILE_T": 32, "TILE_N": 32}, 4, 2),
            ({"TILE_T": 64, "TILE_N": 64}, 4, 3),
            ({"TILE_T": 128, "TILE_N": 64}, 8, 2),
            ({"TILE_T": 64, "TILE_N": 32}, 4, 3),
        ]
    ),
    key=["SIZE", "HEADS", "slots_bucket"],
)
@triton.jit
def _score_pairs_kernel(
    query_ptr,
    gate_ptr,
    key_ptr,
    before_ptr,
    best_ptr,
    tokens,
    slots,
    slots_bucket,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    RELU: tl.constexpr,
    PRECISION: tl.constexpr,
    UP: tl.constexpr,
    TILE_T: tl.constexpr,
    TILE_N: tl.constexpr,
):
    batch = tl.program_id(1).to(tl.int64)
    first_slot = tl.program_id(0) * TILE_N
    offs_slot = first_slot + tl.arange(0, TILE_N)
    offs_size = tl.arange(0, BLOCK_SIZE)
    mask_slot, mask_size = offs_slot < slots, offs_size < SIZE
    key_at = key_ptr + (batch * slots + offs_slot[:, None]) * SIZE + offs_size[None, :]
    key = tl.load(key_at, mask_slot[:, None] & mask_size[None, :], 0.0)
    if UP:
        key = key.to(tl.float32)
    key = tl.trans(key)
    best = tl.load(before_ptr + batch * slots + offs_slot, mask_slot, float("-inf"))
    older = slots - tokens
    # Token t sees the slots up to older + t: earlier ones are left out.
    start = tl.maximum(first_slot - older, 0) // TILE_T * TILE_T
    for first in range(start, tokens, TILE_T):
        offs_token = first + tl.arange(0, TILE_T)
        mask_token = offs_token < tokens
        row = (batch * tokens + offs_token) * HEADS
        total = tl.zeros((TILE_T, TILE_N), tl.float32)
        for head in tl.static_range(HEADS):
            query_at = query_ptr + (row[:, None] + head) * SIZE + offs_size[None, :]
            query = tl.load(query_at, mask_token[:, None] & mask_size[None, :], 0.0)
            gate = tl.load(gate_ptr + row + head, mask_token, 0.0).to(tl.float32)
            if UP:
                query = query.to(tl.float32)
            paid = tl.dot(query, key, input_precision=PRECISION)
            if RELU:
                paid = tl.maximum(paid, 0.0)
            total += gate[:, None] * paid
        seen = mask_token[:, None] & (offs_slot[None, :] <= older + offs_token[:, None])
        best = tl.maximum(best, tl.max(tl.where(seen, total, float("-inf")), 0))
    tl.store(best_ptr + batch * slots + offs_slot, best, mask_slot)


def score_pairs_triton(
    query: Tensor, gate: Tensor, key: Tensor, before: Tensor, relu: bool
) -> Tensor:
    """The kernel behind `ops.score_pairs`."""
    batch, tokens, heads, size = query.shape
    slots = key.shape[1]
    insist_shape(key, (batch, slots, size), "key")
    insist_shape(gate, (batch, tokens, heads), "gate")
    insist_shape(before, (batch, slots), "before")
    insist(tokens <= slots, "the last slots must be the queries' own tokens")
    insist(query.dtype == key.dtype, "queries and keys must be of one dtype")
    query, gate, key, before = (t.contiguous() for t in (query, gate, key, before.float()))
    best = torch.empty_like(before)
    if best.numel():
        launch(
            _score_pairs_kernel,
            lambda meta: (triton.cdiv(slots, meta["TILE_N"]), batch),
            query,
            gate,
            key,
            before,
            best,
            tokens,
            slots,
            triton.next_power_of_2(slots),
            HEADS=heads,
            SIZE=size,
            BLOCK_SIZE=block(size),
            RELU=relu,
            PRECISION=precision(query),
            UP=INTERPRETED,
        )
    return best
