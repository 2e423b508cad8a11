"""A memory as one tar file, and back. Of a tar's features only plain files are ever accepted."""

import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from indexmem_cli.errors import ConfigError, MemoryFileError
from indexmem_cli.library import MANIFEST, Library
from indexmem_cli.library.disk import BLOCK_BYTES, make_folder, new_name, sync, writing
from indexmem_cli.library.manifest import (
    ID,
    MAX_MANIFEST_BYTES,
    PART,
    Manifest,
    damaged,
    parse_manifest,
)

MAX_IMPORT_BYTES = 64 << 30
_RECORD = tarfile.BLOCKSIZE


def export_memory(library: Library, memory_id: str, path: Path, replace: bool = False) -> int:
    """Write a memory to one file, after checking every byte of it; return the file's size.

    Raises:
        MemoryFileError: the memory is damaged.
        ConfigError: the file exists and `replace` is not set.
        OSError: the file cannot be written; nothing is left behind.
    """
    if path.exists() and not replace:
        raise ConfigError(f"{path} exists", "choose another file with --out, or add --force")
    manifest = library.verify(memory_id)
    with writing(path) as out:
        for name in (MANIFEST, *sorted(manifest.parts)):
            _append(out, library.folder(memory_id) / name, f"{memory_id}/{name}", manifest)
        out.write(bytes(2 * _RECORD))
        return out.tell()


def import_memory(library: Library, path: Path) -> tuple[Manifest, bool]:
    """Take a memory out of a file made by `export_memory`, once every byte of it is checked.

    Returns:
        Its manifest, and whether it is new here.

    Raises:
        MemoryFileError: the file is no such memory, damaged, too large, or made to do harm.
        OSError: it cannot be read, or there is no room for it.
    """
    make_folder(library.root)
    staging = Library(library.root / new_name(".incoming", ""))
    try:
        manifest = _unpack_checked(path, staging)
        with library.lock(manifest.id):
            target = library.folder(manifest.id)
            if (target / MANIFEST).exists():
                return library.verify(manifest.id), False
            if manifest.name and any(m.name == manifest.name for m in library.manifests()):
                manifest = manifest.renamed(None)
                staging.write(manifest)
            if target.exists():  # a reading that was cut short
                shutil.rmtree(target)
            staging.folder(manifest.id).rename(target)
            sync(library.root)
        return manifest, True
    finally:
        shutil.rmtree(staging.root, ignore_errors=True)


def _unpack_checked(path: Path, staging: Library) -> Manifest:
    with path.open("rb") as stream:
        memory_id = _unpack(stream, path, staging)
    try:
        return verify_memory(staging, memory_id)
    except MemoryFileError as error:
        raise _refused(path, error.message) from error


def _append(out: BinaryIO, path: Path, name: str, manifest: Manifest) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = path.stat().st_size, int(manifest.created_s), 0o600
    out.write(info.tobuf(tarfile.GNU_FORMAT))
    with path.open("rb") as stream:
        shutil.copyfileobj(stream, out, BLOCK_BYTES)
    out.write(bytes(-info.size % _RECORD))


def _unpack(stream: BinaryIO, path: Path, staging: Library) -> str:
    """Write the files to a folder of their own; the manifest comes first and says what may come.

    Returns:
        The id of the memory.
    """
    members = _members(stream, path)
    name, size = next(members, ("", 0))
    memory_id, _, file = name.partition("/")
    if not ID.fullmatch(memory_id) or file != MANIFEST or size > MAX_MANIFEST_BYTES:
        raise _refused(path, "it does not begin with a memory's manifest")
    data = _read(stream, size, path)
    try:
        manifest = parse_manifest(data, memory_id)
    except MemoryFileError as error:
        raise _refused(path, error.message) from error
    total = manifest.num_bytes
    if total > MAX_IMPORT_BYTES:
        raise _refused(path, f"{total:,} bytes are more than {MAX_IMPORT_BYTES:,}")
    free = shutil.disk_usage(staging.root.parent).free
    if total > free:
        raise _refused(path, f"there is no room for {total:,} bytes: {free:,} are free")
    folder = staging.folder(memory_id)
    make_folder(folder)
    (folder / MANIFEST).touch(mode=0o600)
    (folder / MANIFEST).write_bytes(data)
    missing = dict(manifest.parts)
    for name, size in members:
        inside, _, file = name.partition("/")
        if inside != memory_id or not PART.fullmatch(file) or file not in missing:
            raise _refused(path, f"it holds {name!r}, which belongs to no memory")
        if missing.pop(file).size_bytes != size:
            raise _refused(path, f"{name} has {size:,} bytes, which is not what it should have")
        (folder / file).touch(mode=0o600)
        with (folder / file).open("wb") as out:
            while size:
                block = _read(stream, min(size, BLOCK_BYTES), path)
                out.write(block)
                size -= len(block)
        sync(folder / file)
    if missing:
        raise _refused(path, f"{', '.join(missing)} is missing")
    return memory_id


def _members(stream: BinaryIO, path: Path) -> Iterator[tuple[str, int]]:
    """Name and size of each plain file. Whoever asks for the next has read this one's content.

    Read by hand, because tarfile follows extended headers of any size before it shows a member.
    """
    while True:
        block = _read(stream, _RECORD, path)
        if not any(block):
            return
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.HeaderError, UnicodeError, ValueError) as error:
            raise _refused(path, "it is no tar file, or damaged") from error
        if info.type != tarfile.REGTYPE or info.size < 0:
            raise _refused(path, f"{info.name!r} is no plain file")
        yield info.name, info.size
        _read(stream, -info.size % _RECORD, path)


def _read(stream: BinaryIO, size: int, path: Path) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise _refused(path, "it ends too early")
    return data


def verify_memory(library: Library, memory_id: str) -> Manifest:
    """Check every byte of a memory, and that its text can be searched.

    Raises:
        MemoryFileError: something is not as it was written.
    """
    manifest = library.verify(memory_id)
    _check_archive(library, manifest)
    return manifest


def _check_archive(library: Library, manifest: Manifest) -> None:
    """Have SQLite look at every page of the text, and of keys and values that are stored."""
    from indexmem_cli.archive import ARCHIVE
    from indexmem_cli.memory.shards import SHARD

    folder = library.folder(manifest.id)
    try:
        if manifest.archive is not None:
            ARCHIVE.check(folder / manifest.archive)
        for name in {name for state in manifest.states for name in state.shards}:
            SHARD.check(folder / name)
    except MemoryFileError as error:
        raise damaged(manifest.id, error.message) from error


def _refused(path: Path, why: str) -> MemoryFileError:
    return MemoryFileError(
        f"{path}: not a memory that can be imported: {why}",
        "export it again where it was made: indexmem memories export",
    )
