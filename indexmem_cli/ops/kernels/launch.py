"""What all launches share: interpreter or device, tile choices, and what kernels insist on."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

# Multiply and add in one rounding, whatever the version of Triton takes for granted.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

INTERPRETED: bool = triton.knobs.runtime.interpret
MIN_DOT = 16
"""Smallest side of a tile that tensor cores multiply."""


def tuned(configs: list[triton.Config], key: list[str]) -> Callable[[Any], Any]:
    """Like `triton.autotune`, which cannot run under the interpreter: there the first tiles serve.

    Never for a kernel that works in place: tuning runs it many times over.
    """
    if not INTERPRETED:
        tune: Callable[[Any], Any] = triton.autotune(configs=configs, key=key)
        return tune
    return lambda kernel: _Fixed(kernel, configs[0])


class _Fixed:
    """A kernel with its tiles filled in."""

    def __init__(self, kernel: Any, config: triton.Config) -> None:
        self.kernel, self.config = kernel, config

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        first = self.config.kwargs
        at = grid if not callable(grid) else lambda given: grid({**given, **first})
        return lambda *args, **options: self.kernel[at](*args, **options, **first)


@dataclass(frozen=True)
class Launch:
    """A launch that was asked for while launches are recorded."""

    kernel: Any
    args: tuple[Any, ...]
    options: dict[str, Any]


_recorded: ContextVar[list[Launch] | None] = ContextVar("recorded", default=None)


@contextmanager
def record_launches() -> Iterator[list[Launch]]:
    """Gather launches instead of running them, to compile them for a device that is not here."""
    launches: list[Launch] = []
    token = _recorded.set(launches)
    try:
        yield launches
    finally:
        _recorded.reset(token)


def launch(kernel: Any, grid: Any, *args: Any, **options: Any) -> None:
    """Run a kernel over a grid, or record that it would have run."""
    gathered = _recorded.get()
    if gathered is None:
        # Triton launches on the current device, which need not be the one the tensors are on.
        with torch.cuda.device_of(args[0]):
            kernel[grid](*args, **options)
    else:
        gathered.append(Launch(kernel, args, options))


def tiles(choices: Iterable[tuple[dict[str, int], int, int]]) -> list[triton.Config]:
    """Make configurations of (tile sizes, warps, stages)."""
    return [triton.Config(t, num_warps=w, num_stages=s) for t, w, s in choices]


def block(size: int, least: int = MIN_DOT) -> int:
    """The power of two that a tile needs to hold `size`."""
    return max(least, int(triton.next_power_of_2(size)))


def precision(tensor: Tensor) -> str:
    """How products of fp32 tiles are made: split in three, so that nothing is lost to TF32."""
    return "ieee" if INTERPRETED or tensor.dtype != torch.float32 else "tf32x3"


def insist(condition: bool, what: str) -> None:
    """Refuse a call that would read the wrong memory.

    Raises:
        ValueError: `what` a caller has to see to does not hold.
    """
    if not condition:
        raise ValueError(what)


def insist_rows(**tensors: Tensor | None) -> None:
    """The last axis of each must be contiguous, since a row is read as one stretch."""
    for name, tensor in tensors.items():
        insist(tensor is None or tensor.stride(-1) == 1, f"{name}: last axis must be contiguous")


def insist_shape(tensor: Tensor, shape: Sequence[int], name: str) -> None:
    """Refuse a tensor of another shape."""
    insist(tuple(tensor.shape) == tuple(shape), f"{name}: {tuple(tensor.shape)} is not {shape}")


def strides(tensor: Tensor | None, axes: int) -> tuple[int, ...]:
    """The strides of the first axes; 0 for a tensor that is not there."""
    return tensor.stride()[:axes] if tensor is not None else (0,) * axes


def processors(device: torch.device) -> int:
    """Streaming multiprocessors to keep busy; under the interpreter few, so that tests split."""
    if device.type != "cuda":
        return 4
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
