"""Checks of what is kept on the disk: models, downloads, saved memories."""

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from indexmem_cli import settings
from indexmem_cli.catalogue import download, find_models, plan_download
from indexmem_cli.checkpoint import Checkpoint, find_checkpoint, missing_files
from indexmem_cli.config import DEFAULT_MODEL, expand_home, is_path
from indexmem_cli.errors import IndexMemError
from indexmem_cli.estimate import read_weights
from indexmem_cli.health.finding import Finding
from indexmem_cli.library import Library
from indexmem_cli.library.disk import feed, folder_bytes
from indexmem_cli.library.transfer import verify_memory

STALE_S = 24 * 3600
"""A download that nobody has written to for so long is not going on any more."""


def check_model(name: str) -> Iterator[Finding]:
    """The model's files, and whether it can be used without a network."""
    try:
        yield Finding("model", "ok", _check_files(name))
    except IndexMemError as error:
        damaged = _damaged_hub_files(name)
        can_fetch = "/" in name and not is_path(expand_home(name))
        yield Finding(
            "model",
            "failure",
            error.message,
            f"indexmem models pull {name}" if can_fetch else error.hint,
            fix=(lambda: _fetch_again(name, damaged)) if can_fetch else None,
        )
        try:
            _check_files(name)  # it may have been mended since
        except IndexMemError:
            yield Finding("offline", "failure", f"{name} cannot be used without a network")
            return
    yield Finding("offline", "ok", f"{name} needs no network")


def _check_files(name: str) -> str:
    """Say how a model was checked.

    Raises:
        IndexMemError: something is wrong with its files.
    """
    checkpoint = find_checkpoint(name, offline=True)
    if missing := missing_files(checkpoint.path):
        raise IndexMemError(f"{name}: {missing[0]} is missing")
    read_weights(checkpoint)
    damaged, checked = _damaged_files(checkpoint)
    if damaged:
        raise IndexMemError(f"{name}: {damaged[0].name} is damaged (its checksum is wrong)")
    how = f"{checked} checksums right" if checked else "its files are whole"
    return f"{name}, {checkpoint.family}: {how}"


def _damaged_files(checkpoint: Checkpoint) -> tuple[list[Path], int]:
    """Compare files of the hub's cache with the checksums they are stored under.

    Returns:
        The damaged files, and how many were compared.
    """
    damaged, checked = [], 0
    for file in sorted(checkpoint.path.iterdir()):
        blob = file.resolve()
        if not file.is_symlink() or blob.parent.name != "blobs":
            continue
        checked += 1
        if _blob_digest(blob) != blob.name:
            damaged.append(file)
    return damaged, checked


def _blob_digest(blob: Path) -> str:
    """The name the hub gives a file: SHA-256 of large files, git's SHA-1 of the others."""
    if len(blob.name) == 64:
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(b"blob %d\0" % blob.stat().st_size, usedforsecurity=False)
    feed(digest, blob)
    return digest.hexdigest()


def _damaged_hub_files(name: str) -> list[Path]:
    with contextlib.suppress(IndexMemError, OSError):
        return _damaged_files(find_checkpoint(name, offline=True))[0]
    return []


def _fetch_again(name: str, damaged: list[Path]) -> str:
    plan_download(name)  # fails before anything is removed where there is no connection
    for file in damaged:
        file.resolve().unlink()
        file.unlink()
    download(name)
    return f"{name} was fetched again"


def model_in_force() -> str:
    """The model in force: the variable, the file, or the default."""
    named = os.environ.get("INDEXMEM_MODEL")
    if named is None:
        with contextlib.suppress(IndexMemError):  # a broken file has a finding of its own
            named = settings.read_settings().get("model")
    return named or DEFAULT_MODEL


def check_downloads() -> Iterator[Finding]:
    """What stopped downloads left behind, and models that cannot be used."""
    stale = [
        file
        for file in _hub_cache().glob("models--*/blobs/*.incomplete")
        if time.time() - file.stat().st_mtime > STALE_S
    ]
    if stale:
        size = sum(file.stat().st_size for file in stale)
        found = f"{len(stale)} stopped downloads take {size / 2**20:.1f} MiB"
        yield Finding(
            "downloads", "warning", found, "indexmem doctor --fix", lambda: _remove(stale)
        )
    models = find_models()
    broken = [model for model in models if model.origin == "hub" and model.problem]
    found = f"{len(models) - len(broken)} models here"
    if broken:
        found += f"; {len(broken)} more in the cache cannot be used"
    yield Finding("downloads", "ok", found, "indexmem models list -v" if broken else None)


def _remove(files: list[Path]) -> str:
    for file in files:
        file.unlink(missing_ok=True)
    return f"{len(files)} stopped downloads were removed"


def check_memories() -> Iterator[Finding]:
    """Check every byte of every saved memory."""
    library, damaged = Library(), 0
    if left := library.leftovers():
        size = sum(map(folder_bytes, left))
        found = (
            f"{len(left)} removals or imports that a crash cut short take {size / 2**20:.1f} MiB"
        )
        advice = "indexmem doctor --fix"
        yield Finding("memories", "warning", found, advice, lambda: _sweep(library))
    whole = [memory_id for memory_id in library.ids() if library.is_whole(memory_id)]
    for memory_id in whole:
        try:
            verify_memory(library, memory_id)
        except IndexMemError as error:
            damaged += 1
            yield Finding("memories", "failure", error.message, error.hint)
    if not damaged:
        yield Finding("memories", "ok", f"{len(whole)} saved, every byte as it was written")


def _sweep(library: Library) -> str:
    return f"{library.sweep() / 2**20:.1f} MiB were freed"


def _hub_cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)
