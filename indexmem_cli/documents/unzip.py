"""Zip files, read member by member as streams; nothing is ever unpacked to the disk."""

import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from indexmem_cli.documents.passages import ByteSource, Damaged, read_whole

MAX_MEMBERS = 20_000
MAX_TOTAL_BYTES = 4_000_000_000
MAX_RATIO = 200
"""Unpacked to packed size of a member, from `MIN_SUSPECT_BYTES` on. Text packs to a twentieth."""

MIN_SUSPECT_BYTES = 5_000_000
_ENCRYPTED = 0x1
_LINK = 0o120000
_FAULTS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)


class Zip:
    """The regular files of a zip, in the order of its directory."""

    def __init__(self, stream: ByteSource) -> None:
        """Read the directory.

        `zipfile` never gives more of a member than the directory declares, so its sizes can be
        trusted as limits.

        Raises:
            Damaged: not a zip, or one with too many or too large members, or encrypted.
        """
        with _one_error("the zip"):
            self._zip = zipfile.ZipFile(stream)
        infos = self._zip.infolist()
        if len(infos) > MAX_MEMBERS:
            raise Damaged(f"the zip has {len(infos):,} members", reason="too large")
        if sum(info.file_size for info in infos) > MAX_TOTAL_BYTES:
            raise Damaged("the zip unpacks to more than 4 GB", reason="too large")
        self._infos = {info.filename: info for info in infos if _is_regular(info)}

    @property
    def names(self) -> list[str]:
        """Names of the members, as they stand in the zip. They are never used as paths."""
        return list(self._infos)

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """Open a member as a stream.

        Raises:
            Damaged: it is encrypted, or packed suspiciously well.
            KeyError: there is no such member.
        """
        info = self._infos[name]
        if info.flag_bits & _ENCRYPTED:
            raise Damaged(f"{name!r} in it is encrypted", reason="encrypted")
        size, packed = info.file_size, max(info.compress_size, 1)
        if size > MIN_SUSPECT_BYTES and size > MAX_RATIO * packed:
            raise Damaged(f"{name!r} in it unpacks to {size // packed:,} times its size")
        with _one_error(f"{name!r} in it"), self._zip.open(info) as stream:
            yield stream

    def read(self, name: str, max_bytes: int) -> bytes:
        """Return a whole member that is not larger than `max_bytes`."""
        with self.open(name) as stream:
            return read_whole(stream, max_bytes, f"{name!r} in it")


def _is_regular(info: zipfile.ZipInfo) -> bool:
    return not info.is_dir() and (info.external_attr >> 16) & 0o170000 != _LINK


@contextmanager
def _one_error(what: str) -> Iterator[None]:
    try:
        yield
    except _FAULTS as error:
        raise Damaged(f"{what} is damaged or cut off ({error})") from error
