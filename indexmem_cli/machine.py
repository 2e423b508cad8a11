"""What this machine has: memory, GPUs and their driver, without loading torch."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from indexmem_cli.config import ALL_GPUS

# Where the system says what a container may take and has taken, by the version of its groups.
_GROUPS = Path("/sys/fs/cgroup")
_CGROUP_2 = (_GROUPS / "memory.max", _GROUPS / "memory.current")
_CGROUP_1 = (
    _GROUPS / "memory/memory.limit_in_bytes",
    _GROUPS / "memory/memory.usage_in_bytes",
)


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU, or a slice of one."""

    name: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class Machine:
    """Memory that a model could use here."""

    ram_total_bytes: int
    ram_free_bytes: int
    """What can still be taken: by the system, and by the container where there is one."""
    gpus: tuple[Gpu, ...]
    """Those that CUDA shows, in its order."""
    driver: str | None
    """Version of the NVIDIA driver; None where there is none."""

    def has_gpu(self, device: str) -> bool:
        """Say whether a device is one of the NVIDIA GPUs, or all of them."""
        return bool(self._gpus(device))

    def free_bytes(self, device: str) -> int:
        """Return what is free on a device: `auto`, `cpu`, `mps`, `cuda`, `cuda:1` or `all`."""
        gpus = self._gpus(device)
        return sum(gpu.free_bytes for gpu in gpus) if gpus else self.ram_free_bytes

    def name_of(self, device: str) -> str:
        """Say what `free_bytes` speaks of."""
        return " + ".join(gpu.name for gpu in self._gpus(device)) or "RAM"

    def _gpus(self, device: str) -> tuple[Gpu, ...]:
        if device in ("cpu", "mps"):
            return ()
        if device in ("auto", ALL_GPUS):  # what is larger than one is spread over all
            return self.gpus
        index = device.partition(":")[2]
        at = int(index) if index.isdecimal() else 0
        return self.gpus[at : at + 1]


def look_at_machine() -> Machine:
    """Ask the system and the NVIDIA driver."""
    import psutil

    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    for limit, used in (_CGROUP_2, _CGROUP_1):
        if (most := _read_number(limit)) is not None and most < total:
            total, free = most, min(free, max(0, most - (_read_number(used) or 0)))
    driver, gpus = _ask_driver()
    return Machine(total, free, gpus, driver)


def _read_number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # not there, or `max`
        return None


def _ask_driver() -> tuple[str | None, tuple[Gpu, ...]]:
    """Return the driver's version and the GPUs that CUDA would be shown."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver, or none that answers
        return None, ()
    try:
        driver = pynvml.nvmlSystemGetDriverVersion()
        shown = _shown(os.environ.get("CUDA_VISIBLE_DEVICES"), pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError:
        return None, ()
    else:
        return driver, tuple(_describe(pynvml, shown))
    finally:
        pynvml.nvmlShutdown()


def _shown(visible: str | None, count: int) -> list[int | str]:
    """Numbers, or UUIDs, of the cards that a program is shown: up to the first that is none.

    Args:
        visible: CUDA_VISIBLE_DEVICES. count: cards that the driver knows.
    """
    if visible is None:
        return list(range(count))
    shown: list[int | str] = []
    for name in (part.strip() for part in visible.split(",")):
        if not name.startswith(("GPU-", "MIG-")) and not (name.isdecimal() and int(name) < count):
            break
        shown.append(int(name) if name.isdecimal() else name)
    return shown


def _describe(pynvml: Any, shown: list[int | str]) -> Iterator[Gpu]:
    """Ask the driver about these cards, up to the first that it does not know."""
    by_number = pynvml.nvmlDeviceGetHandleByIndex
    for card in shown:
        try:
            if isinstance(card, int):
                handle = by_number(card)
            elif card.startswith("MIG-"):
                handle = pynvml.nvmlDeviceGetHandleByUUID(card)
            else:  # a UUID, of which the beginning will do
                every = map(by_number, range(pynvml.nvmlDeviceGetCount()))
                handle = next(h for h in every if pynvml.nvmlDeviceGetUUID(h).startswith(card))
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            yield Gpu(pynvml.nvmlDeviceGetName(handle), memory.total, memory.free)
        except (pynvml.NVMLError, StopIteration):
            return
