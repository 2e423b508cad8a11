"""`bench kernels --compile-only`: every kernel for devices that are not here."""

import os
from collections.abc import Iterator
from typing import Any

from indexmem_cli.bench.rows import Row
from indexmem_cli.errors import ConfigError

COLUMNS = ("kernel", "form", "arch", "registers", "spilled_bytes", "shared_bytes", "num_warps")


def compile_all(every: bool) -> Iterator[Row]:
    """Compile for sm_80 and sm_90, with the tiles that fit everywhere.

    Args:
        every: all dtypes, head sizes and groups, and of bf16 and heads of 128 all tiles; else that
            form alone. Hours of one core the first time; Triton keeps what was compiled.

    Raises:
        ConfigError: Triton is not here, or interprets.
    """
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise ConfigError("TRITON_INTERPRET is set, so nothing can be compiled", "unset it")
    try:
        import triton  # noqa: F401
    except ImportError:
        raise ConfigError(
            "Triton is not installed", "it exists for Linux: pip install triton"
        ) from None
    from indexmem_cli.ops.kernels import compiled

    usual = (compiled.DTYPES[0], 128, 4)
    forms = [usual]
    if every:
        forms += [
            (dtype, size, group)
            for group in sorted(compiled.GROUPS, key=lambda group: group != usual[2])
            for dtype in compiled.DTYPES
            for size in compiled.HEAD_SIZES
        ]
    done: set[tuple[Any, ...]] = set()
    for form in forms:
        tiles = every and form is usual
        for one in compiled.compile_kernels(*form, compiled.ARCHITECTURES, tiles, done):
            yield vars(one)
