"""K2: which slots stay, and moving those that do: together, or to where others were evicted.

Selection reads the scores a few times and writes lists; moving copies rows. Nothing is sorted,
nothing is gathered into a second cache, and the host never waits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from indexmem_cli.ops.kernels.launch import insist, insist_rows, insist_shape, launch
from indexmem_cli.ops.slots_reference import Selection

TILE = 1024
MOVE_ROWS = 32


@triton.jit
def _rank_bits(scores_ptr, pinned_ptr, offs, mask):
    """Scores as integers of the same order: NaN lowest, -0 equal to 0, pinned above all."""
    score = tl.load(scores_ptr + offs, mask, 0.0)
    pinned = tl.load(pinned_ptr + offs, mask, 0) != 0
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)
    rank = tl.where(bits < 0, ~bits, bits ^ -2147483648).to(tl.uint32, bitcast=True)
    rank = tl.where(score != score, 0, rank)
    return tl.where(pinned, 0xFFFFFFFF, rank).to(tl.uint32)


@triton.jit
def _earliness(positions_ptr, offs, mask):
    """Positions as integers that fall: of equal scores the earlier stays."""
    position = tl.load(positions_ptr + offs, mask, 0)
    return (2147483647 - position).to(tl.uint32)


@triton.jit
def _next_digit(
    scores_ptr,
    positions_ptr,
    pinned_ptr,
    held,
    limit,
    found,
    need,
    SHIFT: tl.constexpr,
    BY_POSITION: tl.constexpr,
    TILE: tl.constexpr,
):
    """The next eight bits of the `need`-th largest number that begins with the bits of `found`.

    Numbers are ranks of scores, or positions of the slots whose rank is `limit`.

    Returns:
        Those bits in their place, and how many are still needed of the numbers that share them.
    """
    counts = tl.full((256,), 0, tl.int32)
    for first in range(0, held, TILE):
        offs = first + tl.arange(0, TILE)
        alike = offs < held
        number = _rank_bits(scores_ptr, pinned_ptr, offs, alike)
        if BY_POSITION:
            alike = alike & (number == limit)
            number = _earliness(positions_ptr, offs, offs < held)
        if SHIFT < 24:
            alike = alike & ((number >> (SHIFT + 8)) == (found >> (SHIFT + 8)))
        counts += tl.histogram(((number >> SHIFT) & 255).to(tl.int32), 256, alike)
    above = tl.sum(counts, 0) - tl.cumsum(counts, 0)
    here = (above < need) & (above + counts >= need)
    digit = tl.sum(tl.where(here, tl.arange(0, 256), 0), 0)
    return digit.to(tl.uint32) << SHIFT, need - tl.sum(tl.where(here, above, 0), 0)


@triton.jit
def _select_kernel(
    scores_ptr,
    positions_ptr,
    pinned_ptr,
    budget_ptr,
    held_ptr,
    kept_ptr,
    evicted_ptr,
    holes_ptr,
    arrivals_ptr,
    count_ptr,
    moves_ptr,
    slots,
    width,
    TILE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    scores_ptr += row * slots
    positions_ptr += row * slots
    pinned_ptr += row * slots
    held = tl.load(held_ptr + row)
    stay = tl.minimum(tl.load(budget_ptr + row), held)
    # The score of the last that stays, eight bits at a time from the top.
    limit = tl.full((), 0, tl.uint32)
    need = stay
    for step in tl.static_range(4):
        digit, need = _next_digit(
            scores_ptr,
            positions_ptr,
            pinned_ptr,
            held,
            limit,
            limit,
            need,
            24 - 8 * step,
            False,
            TILE,
        )
        limit = limit | digit
    # Among equals of it, the position of the last that stays.
    last = tl.full((), 0, tl.uint32)
    for step in tl.static_range(4):
        digit, need = _next_digit(
            scores_ptr,
            positions_ptr,
            pinned_ptr,
            held,
            limit,
            last,
            need,
            24 - 8 * step,
            True,
            TILE,
        )
        last = last | digit
    live = tl.where(stay > 0, held, 0)  # without a budget nothing stays, pinned or not
    num_kept = 0
    num_gone = 0
    num_holes = 0
    num_arrivals = 0
    for first in range(0, held, TILE):
        offs = first + tl.arange(0, TILE)
        mask = offs < held
        rank = _rank_bits(scores_ptr, pinned_ptr, offs, mask)
        early = _earliness(positions_ptr, offs, mask)
        kept = (offs < live) & ((rank > limit) | ((rank == limit) & (early >= last)))
        gone = mask & (kept == 0)
        hole, arrival = gone & (offs < stay), kept & (offs >= stay)
        num_kept = _list(kept_ptr + row * width, num_kept, offs, kept)
        num_gone = _list(evicted_ptr + row * slots, num_gone, offs, gone)
        num_holes = _list(holes_ptr + row * slots, num_holes, offs, hole)
        num_arrivals = _list(arrivals_ptr + row * slots, num_arrivals, offs, arrival)
    tl.store(count_ptr + row, num_kept)
    tl.store(moves_ptr + row, num_arrivals)


@triton.jit
def _list(list_ptr, count, offs, chosen):
    """Append the chosen slots to a list; return its new length."""
    chosen_int = chosen.to(tl.int32)
    tl.store(list_ptr + count + tl.cumsum(chosen_int, 0) - chosen_int, offs, chosen)
    return count + tl.sum(chosen_int, 0)


def select_slots_triton(
    scores: Tensor, positions: Tensor, pinned: Tensor, budget: Tensor, held: Tensor, width: int
) -> Selection:
    """The kernel behind `ops.select_slots`."""
    batch, heads, slots = scores.shape
    for name, tensor in (("positions", positions), ("pinned", pinned)):
        insist_shape(tensor, scores.shape, name)
    for name, tensor in (("budget", budget), ("held", held)):
        insist_shape(tensor, (batch, heads), name)
    scores, positions, pinned = (
        t.contiguous() for t in (scores.float(), positions.int(), pinned.to(torch.int8))
    )
    like = {"dtype": torch.int32, "device": scores.device}
    kept = torch.full((batch, heads, width), -1, **like)
    evicted, holes, arrivals = (torch.full(scores.shape, -1, **like) for _ in range(3))
    count, moves = (torch.zeros(batch, heads, **like) for _ in range(2))
    if scores.numel():
        launch(
            _select_kernel,
            (batch * heads,),
            scores,
            positions,
            pinned,
            budget.int().contiguous(),
            held.int().contiguous(),
            kept,
            evicted,
            holes,
            arrivals,
            count,
            moves,
            slots,
            width,
            TILE=TILE,
            num_warps=8,
        )
    return Selection(kept, evicted, count, holes, arrivals, moves)


@triton.jit
def _move_rows_kernel(
    rows_ptr,
    from_ptr,
    to_ptr,
    count_ptr,
    list_width,
    stride_batch,
    stride_head,
    stride_slot,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    TO_FRONT: tl.constexpr,
    TILE_R: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    parts = tl.num_programs(2)
    rows_ptr += (row // HEADS) * stride_batch + (row % HEADS) * stride_head
    from_ptr += row * list_width
    offs_size = tl.program_id(1) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    count = tl.load(count_ptr + row)
    for first in range(tl.program_id(2) * TILE_R, count, parts * TILE_R):
        offs = first + tl.arange(0, TILE_R)
        mask = offs < count
        source = tl.load(from_ptr + offs, mask, 0).to(tl.int64)
        if TO_FRONT:
            target = offs.to(tl.int64)
        else:
            target = tl.load(to_ptr + row * list_width + offs, mask, 0).to(tl.int64)
        both = mask[:, None] & (offs_size < SIZE)[None, :]
        values = tl.load(rows_ptr + source[:, None] * stride_slot + offs_size[None, :], both)
        # A row of this tile may be another's target: all are read before any is written.
        tl.debug_barrier()
        tl.store(rows_ptr + target[:, None] * stride_slot + offs_size[None, :], values, both)


def compact_slots_triton(
    buffers: list[Tensor], index: Tensor, count: Tensor, target: Tensor | None
) -> None:
    """The kernel behind `ops.compact_slots`: rows of `index` go to `target`, or to the front."""
    batch, heads, width = index.shape
    index, count = index.int().contiguous(), count.int().contiguous()
    insist(target is None or target.is_contiguous(), "target must be contiguous")
    for rows in buffers:
        rows = rows if rows.dim() == 4 else rows.unsqueeze(-1)
        insist_shape(rows[:, :, 0, 0], (batch, heads), "buffer")
        insist_rows(buffer=rows)
        size = rows.shape[3]
        tile = min(64, triton.next_power_of_2(size))
        # In order, one program has to go through a head's rows from the front.
        parts = 1 if target is None else max(1, min(8, triton.cdiv(width, MOVE_ROWS)))
        if index.numel():
            launch(
                _move_rows_kernel,
                (batch * heads, triton.cdiv(size, tile), parts),
                rows,
                index,
                index if target is None else target,
                count,
                width,
                *rows.stride()[:3],
                HEADS=heads,
                SIZE=size,
                TO_FRONT=target is None,
                TILE_R=MOVE_ROWS,
                BLOCK_SIZE=tile,
                num_warps=4,
            )
