"""What it looks like when a device has no more memory."""

import torch


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
