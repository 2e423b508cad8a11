"""The saved memories as a list, and the choice of those that can go."""

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from indexmem_cli.errors import ConfigError, MemoryFileError
from indexmem_cli.events import SavedMemory
from indexmem_cli.library import CHECKPOINT, Library
from indexmem_cli.library.disk import folder_bytes
from indexmem_cli.library.manifest import Manifest
from indexmem_cli.library.sources import changed_files

_FILTER = re.compile(r"\s*(used|created|size)\s*([<>])\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]+)\s*")
_SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_UNKNOWN = "?"  # in place of what a manifest says
_BYTES = {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def list_memories(library: Library) -> Iterator[SavedMemory]:
    """Describe every memory, whatever its state."""
    for memory_id in library.ids():
        yield describe(library, memory_id)


def describe(library: Library, memory_id: str, looks_around: bool = True) -> SavedMemory:
    """Describe one memory: whole, unfinished or damaged.

    Args:
        looks_around: sum its files, and compare it with its source as it is now. Otherwise it has
            0 bytes, and what is whole is ok.
    """
    num_bytes = folder_bytes(library.folder(memory_id)) if looks_around else 0
    try:
        manifest = library.load(memory_id)
    except MemoryFileError as error:
        try:
            begun = library.load(memory_id, CHECKPOINT)
        except MemoryFileError:
            if library.is_whole(memory_id) or library.has_file(memory_id, CHECKPOINT):
                return _unreadable(memory_id, "damaged", error.message, num_bytes)
            return _unreadable(memory_id, "unfinished", "nothing of it is saved yet", num_bytes)
        return _describe(begun, "unfinished", "reading was cut short", num_bytes, begun.created_s)
    status, detail = _freshness(manifest) if looks_around else ("ok", "")
    return _describe(manifest, status, detail, num_bytes, library.used_s(memory_id))


def find_memory(library: Library, text: str) -> str:
    """Return the id of the memory that a user means to look at, move or remove.

    Args:
        text: its name, its id, the start of one, or the file or folder that was read.

    Raises:
        MemoryFileError: it means nothing here, or more than one memory.
    """
    with contextlib.suppress(MemoryFileError):
        return library.resolve(text)
    every = (describe(library, memory_id, looks_around=False) for memory_id in library.ids())
    known = [memory for memory in every if memory.policy != _UNKNOWN]  # others have but an id
    place = Path(text).resolve()
    found = [m for m in known if m.path and Path(m.path).resolve() == place]
    found = found or [m for m in known if text in (m.source, Path(m.source).name)]
    if len(found) == 1:
        return found[0].id
    if not found:
        return library.resolve(text)  # which says what is wrong
    listed = "; ".join(
        f"{m.id} of {m.path or m.source}, budget {m.budget_tokens:,} by {m.policy}" for m in found
    )
    raise MemoryFileError(f"{len(found)} memories are meant by {text!r}: {listed}", "give an id")


def parse_filters(texts: Sequence[str]) -> Callable[[SavedMemory], bool]:
    """Read filters such as `used>30d`, `created<2h` and `size>1GB`; a memory must meet them all.

    Raises:
        ConfigError: a text is no filter.
    """
    tests = [_parse(text, time.time()) for text in texts]
    return lambda memory: all(test(memory) for test in tests)


def _parse(text: str, now_s: float) -> Callable[[SavedMemory], bool]:
    match = _FILTER.fullmatch(text)
    what, unit = (match[1], match[4].lower()) if match else ("", "")
    scale = _SECONDS.get(unit)
    if what == "size":
        scale = _BYTES.get(re.sub(r"(?<=.)i?b$", "", unit))
    if not match or scale is None:
        raise ConfigError(
            f"not a filter: {text!r}", "write it as 'used>30d', 'created>2w' or 'size>1GB'"
        )
    limit, more = float(match[3]) * scale, match[2] == ">"

    def test(memory: SavedMemory) -> bool:
        since = {"used": memory.used_s, "created": memory.created_s}
        value = memory.num_bytes if what == "size" else now_s - since[what]
        return value > limit if more else value < limit

    return test


def _freshness(manifest: Manifest) -> tuple[str, str]:
    """Compare a memory with its source as it is now."""
    changed = changed_files(manifest.files)
    if not changed:
        return "ok", ""
    if not any(file.path and os.path.lexists(file.path) for file in manifest.files):
        return "gone", f"{manifest.source} is no longer there"
    if len(manifest.files) == 1:
        return "stale", f"{manifest.source} has changed"
    named = ", ".join(changed[:3]) + (" …" if len(changed) > 3 else "")
    return "stale", f"{len(changed):,} of {len(manifest.files):,} files have changed: {named}"


def _describe(
    manifest: Manifest, status: str, detail: str, num_bytes: int, used_s: float
) -> SavedMemory:
    settings = manifest.key.settings
    return SavedMemory(
        id=manifest.id,
        name=manifest.name,
        status=status,
        detail=detail,
        source=manifest.source,
        path=manifest.path,
        files=len(manifest.files),
        model=manifest.model,
        budget_tokens=int(settings.get("budget_tokens") or 0),
        policy=manifest.policy,
        question=manifest.key.question,
        tokens=manifest.tokens,
        num_bytes=num_bytes,
        recall_from=manifest.recall_from,
        latent=manifest.latent,
        created_s=manifest.created_s,
        used_s=used_s,
    )


def _unreadable(memory_id: str, status: str, detail: str, num_bytes: int) -> SavedMemory:
    return SavedMemory(
        id=memory_id,
        name=None,
        status=status,
        detail=detail,
        source=_UNKNOWN,
        path=None,
        files=0,
        model=_UNKNOWN,
        budget_tokens=0,
        policy=_UNKNOWN,
        question=None,
        tokens=0,
        num_bytes=num_bytes,
        recall_from=_UNKNOWN,
        latent=_UNKNOWN,
        created_s=0.0,
        used_s=0.0,
    )
