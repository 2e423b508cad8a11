"""The saved memories of a user: one folder each, found by content, name or the start of an id.

Needs no torch. A memory is whole when its `manifest.json` is there, which is written last. Files
have names of their own, so that a new memory can be written beside the old one of the same id, and
a reader of the old one never sees a half. The lock saves work; it is not what keeps a memory whole.
"""

import contextlib
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from platformdirs import user_data_path

from indexmem_cli.errors import ConfigError, LockTimeout, MemoryFileError, reason
from indexmem_cli.library.disk import (
    blake2b,
    checksum,
    folder_bytes,
    locked,
    sync,
    write_atomic,
)
from indexmem_cli.library.manifest import (
    ID,
    MAX_MANIFEST_BYTES,
    Key,
    Manifest,
    damaged,
    parse_manifest,
)

MANIFEST = "manifest.json"
CHECKPOINT = "checkpoint.json"
LOCK_TIMEOUT_S = 3600.0
_LEFTOVER_S = 3600.0  # a folder that is being moved in or out is not touched for so long


def home() -> Path:
    """Folder of all that is saved: `INDEXMEM_HOME`, else the system's place for a user's data."""
    named = os.environ.get("INDEXMEM_HOME")
    return Path(named).expanduser() if named else user_data_path("indexmem", appauthor=False)


@dataclass
class Library:
    """All saved memories of a user."""

    root: Path = field(default_factory=lambda: home() / "memories")

    def folder(self, memory_id: str) -> Path:
        """Folder of a memory, which need not be there."""
        return self.root / memory_id

    def ids(self) -> list[str]:
        """Every memory, and every reading that was begun."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return sorted(e.name for e in os.scandir(self.root) if ID.fullmatch(e.name))
        return []

    def load(self, memory_id: str, file: str = MANIFEST) -> Manifest:
        """Read the manifest of a memory, or of its checkpoint, and see that its parts are there.

        Raises:
            MemoryFileError: there is none, or it is damaged or of another version.
        """
        folder = self.folder(memory_id)
        try:
            with (folder / file).open("rb") as stream:
                data = stream.read(MAX_MANIFEST_BYTES + 1)
        except FileNotFoundError as error:
            begun = (folder / CHECKPOINT).exists()
            why = "it was never read to its end" if begun else "there is no such memory"
            raise MemoryFileError(
                f"memory {memory_id}: {why}", "indexmem memories list shows those there are"
            ) from error
        except OSError as error:
            raise damaged(memory_id, f"{file}: {reason(error)}") from error
        if len(data) > MAX_MANIFEST_BYTES:
            raise damaged(memory_id, "its manifest is too large")
        manifest = parse_manifest(data, memory_id)
        for name, part in manifest.parts.items():
            try:
                found = (folder / name).lstat()
            except OSError as error:
                raise damaged(memory_id, f"{name} is missing") from error
            if not stat.S_ISREG(found.st_mode) or found.st_size != part.size_bytes:
                raise damaged(
                    memory_id,
                    f"{name} has {found.st_size:,} bytes, not {part.size_bytes:,}",
                )
        return manifest

    def find(self, key: Key) -> Manifest | None:
        """Return the whole memory of this key; None where there is none.

        Raises:
            MemoryFileError: there is one, but it cannot be used.
        """
        if not self.is_whole(key.id):
            return None
        manifest = self.load(key.id)
        if manifest.key != key:
            raise damaged(key.id, "it belongs to another document or model")
        return manifest

    def load_checkpoint(self, key: Key) -> Manifest | None:
        """Return the checkpoint of a reading that was cut short; None where none can be used."""
        with contextlib.suppress(MemoryFileError):
            manifest = self.load(key.id, CHECKPOINT)
            return manifest if manifest.key == key else None
        return None

    def is_whole(self, memory_id: str) -> bool:
        """Whether it was read to its end; what is damaged was too."""
        return self.has_file(memory_id, MANIFEST)

    def has_file(self, memory_id: str, file: str) -> bool:
        """Whether a file is in a memory's folder, even if nobody may look at it."""
        try:
            (self.folder(memory_id) / file).stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True
        return True

    def manifests(self) -> Iterator[Manifest]:
        """All whole memories that can be read, in no order; the others are passed over."""
        for memory_id in self.ids():
            with contextlib.suppress(MemoryFileError):
                yield self.load(memory_id)

    def find_older(self, blank: Manifest) -> Manifest | None:
        """Return the newest memory of the same source and settings that holds other content."""
        if blank.path is None:
            return None
        older = [
            manifest
            for manifest in self.manifests()
            if manifest.path == blank.path
            and manifest.id != blank.id
            and replace(manifest.key, content=blank.key.content) == blank.key
        ]
        return max(older, key=lambda manifest: manifest.created_s, default=None)

    def supersede(self, older: Manifest, newer: Manifest, is_continued: bool) -> None:
        """Remove a memory that another one holds all of; else only take its name away.

        A memory that cannot be changed now stays as it is.
        """
        with contextlib.suppress(OSError, LockTimeout):
            if is_continued:
                self.delete(older.id)
            elif older.name == newer.name is not None:
                self.rename(older, None)

    def resolve(self, text: str) -> str:
        """Return the id that a user means by a name, an id, or the start of one.

        Raises:
            MemoryFileError: it means nothing here, or more than one memory.
        """
        ids = self.ids()
        named = sorted((m.created_s, m.id) for m in self.manifests() if m.name == text)
        # A crash can leave a name with the memory that a newer one replaces.
        found = [named[-1][1]] if named else [i for i in ids if i == text]
        if not found and len(text) >= 4:
            found = [i for i in ids if i.startswith(text)]
        if len(found) == 1:
            return found[0]
        listed = ", ".join(found)
        what = f"{len(found)} memories begin with {text!r}: {listed}"
        what = what if found else f"no memory {text!r}"
        raise MemoryFileError(what, "indexmem memories list shows those there are")

    def rename(self, manifest: Manifest, name: str | None) -> Manifest:
        """Give a memory another name.

        Raises:
            LockTimeout: another process is writing it.
            OSError: it cannot be written.
        """
        with self.lock(manifest.id, timeout_s=0):
            self.write(renamed := manifest.renamed(name))
        return renamed

    def check_name(self, name: str, path: str | None = None) -> None:
        """See that a name can be given to a memory (of what lies at `path`).

        Raises:
            ConfigError: it is taken, or looks like an id or a path.
        """
        fits = name.isprintable() and name.strip() == name and 0 < len(name) <= 100
        if not fits or ID.fullmatch(name) or re.search(r"[/\\]|^[-.]", name):
            raise ConfigError(
                f"not a name for a memory: {name!r}",
                "use a short name that is no id, has no slash and begins with no - or .",
            )
        for manifest in self.manifests():
            if manifest.name == name and (path is None or manifest.path != path):
                raise ConfigError(
                    f"the name {name!r} is that of memory {manifest.id}",
                    f"choose another, or: indexmem memories rm {manifest.id}",
                )

    def read_part(self, manifest: Manifest, name: str) -> bytes:
        """Return the content of a part; what is returned is what was checked.

        Raises:
            MemoryFileError: it is not what the manifest says.
        """
        part = manifest.parts[name]
        try:
            with (self.folder(manifest.id) / name).open("rb") as stream:
                data = stream.read(part.size_bytes + 1)
        except OSError as error:
            raise damaged(manifest.id, f"{name}: {reason(error)}") from error
        if len(data) != part.size_bytes or blake2b(data) != part.blake2b:
            raise damaged(manifest.id, f"{name} is not as it was written")
        return data

    def check_part(self, manifest: Manifest, name: str) -> Path:
        """Return the path of a part that is as it was written.

        Raises:
            MemoryFileError: it is not.
        """
        path, part = self.folder(manifest.id) / name, manifest.parts[name]
        try:
            found = checksum(path)
        except OSError as error:
            raise damaged(manifest.id, f"{name}: {reason(error)}") from error
        if found != (part.size_bytes, part.blake2b):
            raise damaged(manifest.id, f"{name} is not as it was written")
        return path

    def verify(self, memory_id: str) -> Manifest:
        """Check every byte of a memory.

        Raises:
            MemoryFileError: something is not as it was written.
        """
        manifest = self.load(memory_id)
        for name in manifest.parts:
            self.check_part(manifest, name)
        return manifest

    def touch(self, memory_id: str) -> None:
        """Note that a memory was used now; where that cannot be written, nothing is noted."""
        with contextlib.suppress(OSError):
            os.utime(self.folder(memory_id) / MANIFEST)

    def used_s(self, memory_id: str) -> float:
        """When a memory was last used, in seconds since 1970; 0 if it is gone."""
        with contextlib.suppress(OSError):
            return (self.folder(memory_id) / MANIFEST).stat().st_mtime
        return 0.0

    def write(self, manifest: Manifest, file: str = MANIFEST) -> None:
        """Make a memory whole, or a checkpoint of it; its parts are on the disk already.

        Raises:
            OSError: it cannot be written; what was there before is untouched.
        """
        folder = self.folder(manifest.id)
        sync(folder)
        write_atomic(folder / file, manifest.dump())

    def clean(self, memory_id: str) -> None:
        """Remove the files of a memory's folder that neither its manifest nor its checkpoint needs.

        Only for who holds the lock.
        """
        folder, needed = self.folder(memory_id), set()
        for file in (MANIFEST, CHECKPOINT):
            with contextlib.suppress(MemoryFileError):
                needed |= {file, *self.load(memory_id, file).parts}
        for entry in os.scandir(folder):
            # A manifest that cannot be read stays: it is what says that the memory is damaged.
            if entry.name not in needed | {MANIFEST}:
                with contextlib.suppress(OSError):
                    Path(entry.path).unlink()

    def delete(self, memory_id: str) -> int:
        """Remove a memory with all its files; return the bytes freed.

        Raises:
            LockTimeout: another process is writing it.
            OSError: it cannot be removed.
        """
        with self.lock(memory_id, timeout_s=0):
            folder = self.folder(memory_id)
            freed = folder_bytes(folder)
            # First out of sight at once, then file by file: a crash leaves no half memory.
            gone = self.root / f".gone-{memory_id}-{os.getpid()}"
            folder.rename(gone)
            sync(self.root)
            shutil.rmtree(gone)
        return freed

    def sweep(self) -> int:
        """Remove what a crash left of deletions and imports; return the bytes freed."""
        freed = 0
        for folder in self.leftovers():
            freed += folder_bytes(folder)
            shutil.rmtree(folder, ignore_errors=True)
        return freed

    def leftovers(self) -> list[Path]:
        """Folders that deletions and imports leave where a crash cuts them short."""
        found = []
        with contextlib.suppress(OSError):
            for entry in os.scandir(self.root):
                if entry.name.startswith((".gone-", ".incoming-")):
                    with contextlib.suppress(OSError):  # another process removes them too
                        if time.time() - entry.stat().st_mtime > _LEFTOVER_S:
                            found.append(Path(entry.path))
        return found

    @contextlib.contextmanager
    def lock(self, memory_id: str, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
        """Keep other processes from writing a memory.

        Raises:
            LockTimeout: another process has kept it for longer than `timeout_s`.
            OSError: nothing can be written here.
        """
        said = f"memory {memory_id} is being written by another process"
        hint = "wait for it, or read without saving: --no-save"
        with locked(self.root / ".locks" / f"{memory_id}.lock", timeout_s, said, hint):
            yield
