"""What it looks like when a device has no more memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from indexmem_cli.errors import OutOfMemory


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether an error means that a device, or the machine, has no more memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # On a processor torch has no class for it.
    return any(words in str(error) for words in ("can't allocate memory", "not enough memory"))


def describe_room(device: torch.device) -> str:
    """Say how full a GPU is, to be put after a message; nothing of other devices."""
    if device.type != "cuda":
        return ""
    sizes = (*torch.cuda.mem_get_info(device), torch.cuda.memory_reserved(device))
    free, total, held = (f"{size / 2**30:.1f}" for size in sizes)
    return f": {free} GiB of {total} are free, {held} are held by this process"


@contextmanager
def explain_shortage(device: torch.device, name: str, tokens: int) -> Iterator[None]:
    """Turn the many errors of a full device into one.

    Raises:
        OutOfMemory: the device called `name` has no room for so many tokens at a time.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"out of memory on {name} while reading {tokens:,} tokens at a time"
            + describe_room(device),
            "lower --chunk or --budget, or choose --quant nf4 or a smaller model",
        ) from error
