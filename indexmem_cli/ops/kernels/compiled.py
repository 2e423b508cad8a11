"""Compile every kernel for devices that are not here, and say what each takes of them.

Compilation needs no GPU. It proves that a kernel is a legal program for the device, and says how
many registers it uses and what it spills; it says nothing of results or speed.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from indexmem_cli.ops.kernels import chunk, decode, launch, remember, score, select
from indexmem_cli.ops.reference import Segment

ARCHITECTURES = (80, 90)
HEAD_SIZES = (64, 80, 96, 128, 256)
GROUPS = (1, 4, 7, 8)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
WARP = 32


@dataclass(frozen=True)
class Compiled:
    """One kernel, in one form, for one architecture."""

    kernel: str
    form: str
    """What it was compiled for: dtype, head size, query heads per KV head, tile sizes."""
    arch: int
    ptx_bytes: int
    registers: int
    """Per thread."""
    spilled_bytes: int
    """Stack per thread: registers that did not fit."""
    shared_bytes: int
    num_warps: int


def compile_kernels(
    dtype: torch.dtype, size: int, group: int, archs: tuple[int, ...], every_tile: bool = False
) -> Iterator[Compiled]:
    """Compile all kernels for one dtype, head size and number of query heads per KV head.

    Args:
        every_tile: all tile sizes that tuning chooses from, not the first alone.
    """
    with launch.record_launches() as launches:
        _launch_all(dtype, size, group)
    name = f"{str(dtype).removeprefix('torch.')} D{size} G{group}"
    done = set()
    for one in launches:
        configs = getattr(one.kernel, "configs", None) or [None]
        for config in configs if every_tile else configs[:1]:
            options = dict(one.options)
            chosen = {"num_warps": options.pop("num_warps", 4), "num_stages": 3}
            if config is not None:
                options |= config.kwargs
                chosen = {"num_warps": config.num_warps, "num_stages": config.num_stages}
            source = _source(one.kernel, one.args, options)
            tiles = " ".join(
                f"{k.removeprefix('TILE_')}{v}" for k, v in options.items() if "TILE" in k
            )
            for arch in archs:
                if (source.hash(), arch, *chosen.values()) not in done:
                    done.add((source.hash(), arch, *chosen.values()))
                    yield _compile(source, f"{name} {tiles}".strip(), arch, chosen)


def _source(kernel: Any, args: tuple[Any, ...], constants: dict[str, Any]) -> ASTSource:
    """What the just-in-time compiler would make of these arguments."""
    plain = getattr(kernel, "fn", kernel) if hasattr(kernel, "configs") else kernel
    names = plain.arg_names
    signature, divisible = {}, {}
    for place, (name, value) in enumerate(zip(names, args, strict=False)):
        signature[name] = _type_of(value)
        if isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0):
            divisible[(place,)] = [["tt.divisibility", 16]]
    signature |= dict.fromkeys(names[len(args) :], "constexpr")
    return ASTSource(fn=plain, signature=signature, constexprs=constants, attrs=divisible)


def _type_of(value: Any) -> str:
    if isinstance(value, Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        short = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
        return "*" + short.get(kind, kind.replace("int", "i"))
    return "fp32" if isinstance(value, float) else "i32"


def _compile(source: ASTSource, form: str, arch: int, options: dict[str, int]) -> Compiled:
    program = triton.compile(source, target=GPUTarget("cuda", arch, WARP), options=options)
    registers, spilled = _resources(program.asm["cubin"])
    return Compiled(
        kernel=source.name.strip("_").removesuffix("_kernel"),
        form=form,
        arch=arch,
        ptx_bytes=len(program.asm["ptx"]),
        registers=registers,
        spilled_bytes=spilled,
        shared_bytes=program.metadata.shared,
        num_warps=options["num_warps"],
    )


def _resources(program: bytes) -> tuple[int, int]:
    """Registers and spilled bytes per thread, as written into a program."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(program)
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(file)]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: int(size) for name, size in re.findall(r"\b([A-Z]+):(\d+)", usage)}
    return found["REG"], found["STACK"] + found["LOCAL"]


def _launch_all(dtype: torch.dtype, size: int, group: int) -> None:
    """Ask for every kernel at the shapes of an 8B model, on tensors that take no memory."""
    heads, slots, tokens, memory, width = 8, 6144, 2048, 64, 4096

    def make(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    pair = (make(width), make(width))
    inner, inner_norm = (make(256, width), make(256)), (make(256), make(256))
    out = (make(heads, 256), make(heads))
    score.score_states_triton(
        make(1, tokens, width, dtype=dtype), pair, inner, inner_norm, out, 1e-5
    )
    index_query = make(1, tokens, heads, max(4, size // 8), dtype=dtype)
    index_key = make(1, slots, max(4, size // 8), dtype=dtype)
    gate = make(1, tokens, heads)
    score.score_pairs_triton(index_query, gate, index_key, make(1, slots), True)
    scores, positions = make(1, heads, slots), make(1, heads, slots, dtype=torch.int64)
    per_head = make(1, heads, dtype=torch.int32)
    pinned = make(1, heads, slots, dtype=torch.bool)
    chosen = select.select_slots_triton(scores, positions, pinned, per_head, per_head, slots)
    key, value = (make(1, heads, slots, size, dtype=dtype) for _ in "kv")
    moved = [key, scores, positions]
    select.compact_slots_triton(moved, chosen.kept, chosen.count, None)
    select.compact_slots_triton(moved, chosen.arrivals, chosen.moves, chosen.holes)
    query = make(1, heads * group, size, dtype=dtype)
    angles = make(1, slots, size // 2)
    small = [make(1, heads, slots, size, dtype=torch.int8) for _ in "kv"]
    scales = [make(1, heads, slots) for _ in "kv"]
    centroids = [make(1, heads, memory, size, dtype=dtype) for _ in "kv"]
    segments = [
        Segment(query, key, value),
        Segment(query, key, value, angles, angles, length=per_head),
        Segment(query, small[0], small[1], angles, angles, scales[0], scales[1]),
        Segment(query, centroids[0], centroids[1], bias=make(1, heads, memory)),
    ]
    decode.attend_segments_triton(segments, 0.1, None, True)
    chunk_query = make(1, heads * group, tokens, size, dtype=dtype)
    chunk.attend_with_lse_triton(chunk_query, key, value, 0.1)
    chunk.attend_with_lse_triton(chunk_query, key, value, 0.1, None, 30.0, True, 4096)
    means, values = centroids
    bias = make(1, heads, memory)
    chunk.attend_with_lse_triton(chunk_query, means, values, 0.1, bias, None, False)
    means, count = make(1, heads, memory, size), make(1, heads, memory)
    remember.assign_clusters_triton(key, chosen.evicted, means, count)
    remember.sum_clusters_triton(key, value, chosen.evicted, chosen.evicted, memory)
    feature_map, norm = make(size, size), make(1, heads, size)
    weights = make(1, heads, size, size)
    remember.update_fast_weights_triton(
        key, value, chosen.evicted, feature_map, weights, norm, make(1)
    )
