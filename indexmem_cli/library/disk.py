"""Writing that a crash cannot tear, locks, and checksums of what was written."""

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from indexmem_cli.errors import LockTimeout

BLOCK_BYTES = 1 << 20


def new_name(stem: str, suffix: str) -> str:
    """Return a file name that no other process can choose at the same time."""
    return f"{stem}-{secrets.token_hex(4)}{suffix}"


def make_folder(folder: Path) -> None:
    """Make a folder that only its owner can look into: a memory holds recoverable text."""
    for parent in reversed(folder.parents):  # which `parents=True` would make for everybody
        if not parent.exists():
            parent.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Write a file, for its owner alone, so that a crash leaves the old or the new one whole.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    part = path.with_name(new_name(f".{path.name}", ".part"))
    try:
        number = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(number, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
    sync(path.parent)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a whole file; as `writing`."""
    with writing(path) as stream:
        stream.write(data)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    try:
        number = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders
        return
    try:
        os.fsync(number)
    finally:
        os.close(number)


@contextlib.contextmanager
def locked(path: Path, timeout_s: float, message: str, hint: str) -> Iterator[None]:
    """Keep other processes out that ask for the same file.

    Raises:
        LockTimeout: another one has kept it for longer than `timeout_s`; in these words.
        OSError: nothing can be written here.
    """
    make_folder(path.parent)
    lock = FileLock(path, mode=0o600)
    try:
        lock.acquire(timeout=timeout_s)
    except Timeout as error:
        raise LockTimeout(message, hint) from error
    try:
        yield
    finally:
        lock.release()


def blake2b(data: bytes) -> str:
    """Return the checksum of bytes, 64 hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=32).hexdigest()


def checksum(path: Path) -> tuple[int, str]:
    """Return size in bytes and checksum of a file, as `blake2b`.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.blake2b(digest_size=32)
    return feed(digest, path), digest.hexdigest()


def feed(digest: "hashlib._Hash | hashlib.blake2b", path: Path) -> int:
    """Put the content of a file into a hash; return its bytes.

    Raises:
        OSError: it cannot be read.
    """
    size = 0
    with path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            digest.update(block)
            size += len(block)
    return size


def folder_bytes(folder: Path) -> int:
    """Bytes of the files in a folder, at any depth."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # gone meanwhile
            if not path.is_dir():
                total += path.lstat().st_size
    return total
