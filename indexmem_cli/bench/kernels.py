"""`bench kernels`: each kernel against what the card can do, PyTorch, torch.compile and flash."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from indexmem_cli import ops
from indexmem_cli.bench.rows import Row, spread
from indexmem_cli.errors import ConfigError, first_line
from indexmem_cli.ops import reference, slots_reference

COLUMNS = (
    "size",
    "kernel",
    "ms",
    "bytes_per_s",
    "flop_per_s",
    "of_roofline",
    "plain_over_kernel",
    "compiled_over_kernel",
    "flash_over_kernel",
)


@dataclass(frozen=True)
class Size:
    """The layer of a model that kernels run at."""

    name: str
    width: int
    heads: int
    kv_heads: int
    head_size: int
    slots: int
    """Budget and chunk together."""
    tokens: int
    """Of a chunk."""
    memory: int
    """Latent slots per head."""


SIZES = (
    Size("Llama-3.1-8B", 4096, 32, 8, 128, 4096 + 2048, 2048, 64),
    Size("Qwen2.5-7B", 3584, 28, 4, 128, 4096 + 2048, 2048, 64),
)
REHEARSAL = Size("rehearsal", 64, 8, 2, 32, 96, 32, 8)


@dataclass(frozen=True)
class Case:
    """One op at one size, in the ways there are to do it."""

    kernel: str
    run: Callable[[], Any]
    plain: Callable[[], Any]
    """The reference in PyTorch."""
    nbytes: int
    """What has to be read and written at the least."""
    flops: int
    flash: Callable[[], Any] | None = None
    """PyTorch's own fused attention, where it does the same work."""


Clock = Callable[[Callable[[], Any]], Row]
"""Milliseconds that a call takes: their median and their spread."""
Normal = Callable[..., Tensor]
"""Draws a tensor of a shape; `dtype` is fp32 where it is left out."""


def require_gpu(command: str) -> None:
    """Refuse to time on a machine without a CUDA device.

    Raises:
        ConfigError: there is none.
    """
    if not torch.cuda.is_available():
        raise ConfigError(
            f"{command} needs a CUDA device, and this machine has none",
            "--rehearse runs the command on the CPU with tiny shapes; its times mean nothing",
        )


def bench_kernels(rehearse: bool) -> Iterator[Row]:
    """Yield the card's ceilings, then a row for each kernel and size."""
    device = "cpu" if rehearse else "cuda"
    clock = time_on_cpu if rehearse else time_on_gpu
    ceilings = measure_ceilings(device, clock, rehearse)
    yield {"kernel": "ceilings", **ceilings}
    dtype = torch.float32 if rehearse else torch.bfloat16
    for size in (REHEARSAL,) if rehearse else SIZES:
        for case in make_cases(size, dtype, device):
            yield {"size": size.name, **_measure(case, clock, ceilings, rehearse)}


def _measure(case: Case, clock: Clock, ceilings: Row, rehearse: bool) -> Row:
    milliseconds = clock(case.run)
    seconds = milliseconds["median"] / 1e3
    floor = max(case.nbytes / ceilings["bytes_per_s"], case.flops / ceilings["flop_per_s"])
    row = {
        "kernel": case.kernel,
        "ms": milliseconds,
        "bytes_per_s": case.nbytes / seconds,
        "flop_per_s": case.flops / seconds,
        "of_roofline": floor / seconds,
        "plain_over_kernel": clock(case.plain)["median"] / milliseconds["median"],
    }
    if case.flash is not None:
        row["flash_over_kernel"] = clock(case.flash)["median"] / milliseconds["median"]
    if not rehearse:
        try:
            compiled = clock(torch.compile(case.plain, dynamic=False))["median"]
            row["compiled_over_kernel"] = compiled / milliseconds["median"]
        except RuntimeError as error:  # it has no compiler here, or cannot compile this
            row["compiled_over_kernel"] = None
            row["not_compiled"] = first_line(error)
        torch._dynamo.reset()
    return row


def time_on_gpu(run: Callable[[], Any]) -> Row:
    """Milliseconds of a call, with the cache of the card emptied before each."""
    from triton.testing import do_bench

    return spread(do_bench(run, warmup=100, rep=300, return_mode="all")[:200])


def time_on_cpu(run: Callable[[], Any]) -> Row:
    """Milliseconds of one call, to see that it runs."""
    started = time.perf_counter()
    run()
    return spread([1e3 * (time.perf_counter() - started)])


def measure_ceilings(device: str, clock: Clock, rehearse: bool) -> Row:
    """What this card reaches: a large copy, and a large product of bf16 matrices."""
    count, side = (2**12, 64) if rehearse else (2**29, 8192)
    source = torch.empty(count, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    copying = clock(lambda: target.copy_(source))["median"] / 1e3
    matrix = torch.randn(side, side, device=device).to(torch.bfloat16)
    product = clock(lambda: matrix @ matrix)["median"] / 1e3
    return {"bytes_per_s": 2 * source.nbytes / copying, "flop_per_s": 2 * side**3 / product}


def make_cases(size: Size, dtype: torch.dtype, device: str) -> Iterator[Case]:
    """All kernels at a size; inputs are made once and stay the same."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device).to(dtype)

    key, value = (normal(1, size.kv_heads, size.slots, size.head_size, dtype=dtype) for _ in "kv")
    yield from _score_cases(size, dtype, normal)
    yield from _slot_cases(size, key, value, normal)
    yield from _attention_cases(size, key, value, normal)
    yield from _memory_cases(size, key, value, normal)


def _score_cases(size: Size, dtype: torch.dtype, normal: Normal) -> Iterator[Case]:
    states = normal(1, size.tokens, size.width, dtype=dtype)
    for kind in dict.fromkeys((torch.float32, dtype)):
        shapes = [(size.width,), (256, size.width), (256,), (size.kv_heads, 256)]
        net = [(normal(*shape, dtype=kind), normal(shape[0], dtype=kind)) for shape in shapes]
        norm, inner, inner_norm, out = net
        weights = sum(w.nbytes + b.nbytes for w, b in net)
        yield Case(
            f"score_states, weights {str(kind).removeprefix('torch.')}",
            partial(ops.score_states, states, *net, 1e-5),
            partial(
                slots_reference.score_states_reference, states, norm, inner, inner_norm, out, 1e-5
            ),
            states.nbytes + weights + 4 * size.tokens * size.kv_heads,
            2 * size.tokens * 256 * (size.width + size.kv_heads),
        )
    heads, small = max(1, size.heads // 4), max(4, size.head_size // 8)
    query, gate = normal(1, size.tokens, heads, small), normal(1, size.tokens, heads)
    index_key, before = normal(1, size.slots, small), normal(1, size.slots)
    inputs = (query, gate, index_key, before, True)
    pairs = size.tokens * (size.slots - size.tokens // 2)
    yield Case(
        "score_pairs",
        lambda: ops.score_pairs(*inputs),
        lambda: slots_reference.score_pairs_reference(*inputs),
        query.nbytes + gate.nbytes + index_key.nbytes + 2 * before.nbytes,
        2 * pairs * heads * (small + 1),
    )


def _slot_cases(size: Size, key: Tensor, value: Tensor, normal: Normal) -> Iterator[Case]:
    budget = size.slots - size.tokens
    scores = normal(1, size.kv_heads, size.slots)
    positions = torch.arange(size.slots, device=key.device).expand(scores.shape)
    pinned = (positions < 4) | (positions >= size.slots - 64)
    counts = (torch.full(scores.shape[:2], n, device=key.device) for n in (budget, size.slots))
    inputs = (scores, positions, pinned, *counts, budget)
    chosen = ops.select_slots(*inputs)
    yield Case(
        "select_slots",
        lambda: ops.select_slots(*inputs),
        lambda: scores.masked_fill(pinned, float("inf")).sort(dim=-1, descending=True, stable=True),
        scores.nbytes + 4 * positions.numel() + pinned.numel() + 4 * scores.numel(),
        0,
    )
    buffers = [key.clone(), value.clone()]
    where = chosen.kept.long().clamp(min=0).unsqueeze(-1).expand(-1, -1, -1, size.head_size)
    row = size.head_size * key.element_size()

    def gathered() -> None:
        for rows in buffers:
            rows[:, :, :budget] = rows.gather(2, where)

    moves = int(chosen.moves.sum())
    for name, lists, moved in (
        ("in order", (chosen.kept, chosen.count, None), budget * size.kv_heads),
        ("refill", (chosen.arrivals, chosen.moves, chosen.holes), moves),
    ):
        yield Case(
            f"compact_slots, {name}",
            partial(ops.compact_slots, buffers, *lists),
            gathered,
            2 * 2 * moved * row,
            0,
        )


def _attention_cases(size: Size, key: Tensor, value: Tensor, normal: Normal) -> Iterator[Case]:
    budget, half = size.slots - size.tokens, size.head_size // 2
    query = normal(1, size.heads, size.head_size, dtype=key.dtype)
    kept, values = key[:, :, :budget], value[:, :, :budget]
    angle = normal(1, budget, half)
    turn = {"cos": angle.cos(), "sin": angle.sin()}
    (small, key_scale), (small_v, value_scale) = map(ops.quantise_rows, (kept, values))
    means = [normal(1, size.kv_heads, size.memory, size.head_size, dtype=key.dtype) for _ in "kv"]
    bias = normal(1, size.kv_heads, size.memory)
    centroids = ops.Segment(query, means[0], means[1], bias=bias)
    scale = size.head_size**-0.5
    forms = {
        "turned keys": [ops.Segment(query, kept, values)],
        "keys turned as read, centroids": [ops.Segment(query, kept, values, **turn), centroids],
        "int8": [
            ops.Segment(query, small, small_v, **turn, key_scale=key_scale, value_scale=value_scale)
        ],
    }
    packed = query.unflatten(1, (size.kv_heads, -1))
    for name, segments in forms.items():
        read = [t for s in segments for t in (s.key, s.value, s.bias, s.key_scale, s.value_scale)]
        tensors = [*read, segments[0].cos, segments[0].sin, query]
        slots = sum(s.key.shape[2] for s in segments)
        yield Case(
            f"attend_segments, {name}",
            partial(ops.attend_segments, segments, scale),
            partial(reference.attend_segments_reference, segments, scale),
            sum(t.numel() * t.element_size() for t in tensors if t is not None),
            4 * size.heads * slots * size.head_size,
            lambda: functional.scaled_dot_product_attention(packed, kept, values, scale=scale),
        )
    chunk = normal(1, size.heads, size.tokens, size.head_size, dtype=key.dtype)
    mask = ops.make_mask(chunk, size.slots)
    for name, softcap in (("", None), (", softcap", 30.0)):
        yield Case(
            f"attend_with_lse{name}",
            partial(ops.attend_with_lse, chunk, key, value, scale, None, softcap),
            partial(reference.attend_with_lse_reference, chunk, key, value, scale, None, softcap),
            3 * chunk.nbytes + key.nbytes + value.nbytes,
            4 * size.heads * size.tokens * (budget + size.tokens // 2) * size.head_size,
            lambda: ops.attend(chunk, key, value, scale, mask),
        )


def _memory_cases(size: Size, key: Tensor, value: Tensor, normal: Normal) -> Iterator[Case]:
    shape = (1, size.kv_heads, size.tokens)
    index = torch.arange(size.tokens, dtype=torch.int32, device=key.device).expand(shape)
    mean = normal(1, size.kv_heads, size.memory, size.head_size)
    count = torch.ones(1, size.kv_heads, size.memory, device=key.device)
    slot, _ = ops.assign_clusters(key, index, mean, count)
    rows = size.kv_heads * size.tokens * size.head_size
    once = rows * key.element_size()
    products = 2 * rows * size.memory
    yield Case(
        "assign_clusters",
        lambda: ops.assign_clusters(key, index, mean, count),
        lambda: slots_reference.assign_clusters_reference(key, index, mean, count),
        once + mean.nbytes + 12 * index.numel(),
        products,
    )
    inputs = (key, value, index, slot)
    yield Case(
        "sum_clusters",
        lambda: ops.sum_clusters(*inputs, size.memory),
        lambda: slots_reference.sum_clusters_reference(*inputs, size.memory),
        2 * once + 2 * mean.nbytes,
        2 * products,
    )
    weights = normal(1, size.kv_heads, size.head_size, size.head_size)
    old = (normal(size.head_size, size.head_size), weights, weights[..., 0].contiguous())
    decay = torch.tensor(0.9, device=key.device)
    yield Case(
        "update_fast_weights",
        lambda: ops.update_fast_weights(key, value, index, *old, decay),
        lambda: slots_reference.update_fast_weights_reference(key, value, index, *old, decay),
        2 * once + 2 * weights.nbytes,
        4 * rows * size.head_size,
    )
