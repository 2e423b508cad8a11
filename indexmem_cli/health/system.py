"""Checks of the program itself and of the machine under it."""

import base64
import hashlib
import importlib
import importlib.metadata
import importlib.util
import platform
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from indexmem_cli import __version__, settings
from indexmem_cli.catalogue import nearest_folder
from indexmem_cli.errors import IndexMemError, reason
from indexmem_cli.health.finding import Finding
from indexmem_cli.library import home
from indexmem_cli.library.disk import feed
from indexmem_cli.machine import look_at_machine

LOW_DISK_BYTES = 2 * 2**30


def check_program() -> Iterator[Finding]:
    """What this program is, and whether its files are as they were installed."""
    system = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Finding("program", "ok", f"indexmem {__version__}, {system}")
    changed = changed_files()
    if changed:
        yield Finding(
            "program",
            "failure",
            f"{len(changed)} installed files are missing or changed: {changed[0]}",
            "pip install --force-reinstall --no-deps indexmem",
        )


def changed_files() -> list[str]:
    """Compare the installed files with what the installer wrote down of them."""
    try:
        distribution = importlib.metadata.distribution("indexmem")
    except importlib.metadata.PackageNotFoundError:
        return []  # run from a checkout
    changed = []
    for file in distribution.files or ():
        if file.hash is None or file.suffix == ".pyc":
            continue
        path = Path(str(file.locate()))
        if not path.is_file() or _digest(path, file.hash.mode) != file.hash.value:
            changed.append(str(file))
    return changed


def _digest(path: Path, mode: str) -> str:
    digest = hashlib.new(mode)
    feed(digest, path)
    return base64.urlsafe_b64encode(digest.digest()).rstrip(b"=").decode()


def check_settings() -> Iterator[Finding]:
    """The user's file."""
    path = settings.config_path()
    try:
        given = settings.read_settings()
    except IndexMemError as error:
        yield Finding("settings", "failure", error.message, "indexmem config edit")
        return
    what = f"{len(given)} set in {path}" if path.exists() else f"none set ({path} is not there)"
    yield Finding("settings", "ok", what)


def check_torch() -> Iterator[Finding]:
    """Whether torch can be imported, and adds up."""
    try:
        import torch

        transformers = importlib.metadata.version("transformers")
    except ImportError as error:
        yield Finding("torch", "failure", str(error), "pip install --force-reinstall indexmem")
        return
    builds = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    sum_ = float(torch.ones(64, 64).matmul(torch.ones(64, 64)).sum())
    status = "ok" if sum_ == 64.0**3 else "failure"
    yield Finding(
        "torch",
        status,
        f"torch {torch.__version__} ({builds}), transformers {transformers}",
    )


def check_gpu() -> Iterator[Finding]:
    """The GPUs, and whether torch can use them."""
    machine = look_at_machine()
    import torch

    usable = torch.cuda.is_available()
    if machine.driver is None:
        mps = torch.backends.mps.is_available()
        found = "Apple GPU through MPS" if mps else "none: models run on the CPU"
        yield Finding("gpu", "ok", found)
        return
    names = ", ".join(
        f"{gpu.name} ({gpu.free_bytes / 2**30:.1f} of {gpu.total_bytes / 2**30:.1f} GiB free)"
        for gpu in machine.gpus
    )
    found = f"driver {machine.driver}: {names or 'no GPU is shown to this program'}"
    if usable or not machine.gpus:
        yield Finding("gpu", "ok", found)
    elif torch.version.cuda is None:
        yield Finding(
            "gpu",
            "warning",
            f"{found}; torch is a build for CPUs and does not use it",
            "install a CUDA build of torch: https://pytorch.org/get-started",
        )
    else:
        yield Finding(
            "gpu",
            "warning",
            f"{found}; torch with CUDA {torch.version.cuda} cannot use it",
            "update the driver, or install a torch built for an older CUDA",
        )


def check_kernels() -> Iterator[Finding]:
    """Whether there is Triton, for kernels of our own."""
    import torch

    if importlib.util.find_spec("triton") is None:
        yield Finding("kernels", "ok", "no triton here: the operations run in plain torch")
        return
    triton = importlib.import_module("triton")
    where = "for the GPU" if torch.cuda.is_available() else "without a GPU it is not used"
    yield Finding("kernels", "ok", f"triton {triton.__version__}; {where}")


def check_quantisation() -> Iterator[Finding]:
    """Whether there is bitsandbytes."""
    if importlib.util.find_spec("bitsandbytes") is None:
        yield Finding(
            "quantisation", "warning", "no bitsandbytes: --quant int8 and nf4 do not work"
        )
        return
    version = importlib.metadata.version("bitsandbytes")
    yield Finding("quantisation", "ok", f"bitsandbytes {version}")


def check_memory() -> Iterator[Finding]:
    """The memory that is free."""
    machine = look_at_machine()
    free, total = machine.ram_free_bytes / 2**30, machine.ram_total_bytes / 2**30
    found = f"{free:.1f} of {total:.1f} GiB of RAM free"
    low = free < 1
    advice = "close other programs" if low else None
    yield Finding("memory", "warning" if low else "ok", found, advice)


def check_data() -> Iterator[Finding]:
    """Whether the folders of the program can be written to."""
    for folder in _own_folders():
        existing = nearest_folder(folder)
        try:
            with tempfile.TemporaryFile(dir=existing):
                pass
        except OSError as error:
            yield Finding(
                "data",
                "failure",
                f"{folder} cannot be written to: {reason(error)}",
                f"chown or chmod {existing}, or set INDEXMEM_HOME",
            )
        else:
            yield Finding("data", "ok", f"{folder} can be written to")


def check_disk() -> Iterator[Finding]:
    """The room that is left on the disks of the program's folders and of the models."""
    from huggingface_hub.constants import HF_HUB_CACHE

    seen = set()
    for folder in (*_own_folders(), Path(HF_HUB_CACHE)):
        existing = nearest_folder(folder)
        device = existing.stat().st_dev
        if device in seen:
            continue
        seen.add(device)
        free = shutil.disk_usage(existing).free
        found = f"{free / 2**30:.1f} GiB free for {folder}"
        low = free < LOW_DISK_BYTES
        advice = "free some room; `hf cache rm` removes models" if low else None
        yield Finding("disk", "warning" if low else "ok", found, advice)


def _own_folders() -> tuple[Path, ...]:
    return tuple(dict.fromkeys((settings.config_path().parent, home())))
