"""Saving while a text is read: checkpoints on the way, the whole memory at the end; and loading."""

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from indexmem_cli.archive import pack_ids
from indexmem_cli.config import RECALL_FROM
from indexmem_cli.errors import MemoryFileError
from indexmem_cli.library import CHECKPOINT, MANIFEST, Library
from indexmem_cli.library.disk import checksum, make_folder, new_name, sync
from indexmem_cli.library.manifest import Manifest, Part, SavedState, damaged

if TYPE_CHECKING:
    import torch

    from indexmem_cli.memory.bring_back import StoredKeys
    from indexmem_cli.memory.policies import Scorer
    from indexmem_cli.memory.shards import Shards
    from indexmem_cli.memory.state import MemoryState

CHECKPOINT_S = 30.0
"""Reading that a crash can cost, in seconds."""
BASE_CHUNKS = 8
"""A text of fewer chunks is read again when it grows: that is as fast as going on from a base."""
_MAX_COST = 1 / 20  # share of the time that checkpoints may take


class Chain:
    """Hashes of a stream of tokens, one after each chunk."""

    def __init__(self) -> None:
        self.links: list[str] = []
        self.tokens = 0
        self._digest = hashlib.blake2b(digest_size=8)

    def add(self, ids: Sequence[int]) -> None:
        """Take in the next chunk."""
        self._digest.update(pack_ids(ids))
        self.links.append(self._digest.hexdigest())
        self.tokens += len(ids)


def known_chunks(chunks: Iterable[Sequence[int]], links: Sequence[str]) -> int:
    """Count the chunks of a text, from its beginning, that a memory has read."""
    chain = Chain()
    for ids, link in zip(chunks, links, strict=False):
        chain.add(ids)
        if chain.links[-1] != link:
            return len(chain.links) - 1
    return len(chain.links)


def find_base(manifest: Manifest, known: int, chunk_tokens: int) -> SavedState | None:
    """Return the last state that a text can go on from of which `known` chunks were read.

    Only states after whole chunks count: so the memory comes out as if it had been read at once.
    """
    usable = [s for s in manifest.states if s.chunks <= known and s.tokens % chunk_tokens == 0]
    return usable[-1] if usable else None


@dataclass
class Saver:
    """Writes one memory. The caller holds its lock and counts on nothing until `finish` returns."""

    library: Library
    blank: Manifest
    """What is known of the memory before anything is read."""
    chunk_tokens: int
    checkpoint_s: float = CHECKPOINT_S
    chain: Chain = field(default_factory=Chain)
    shards: "Shards | None" = None
    """All keys and values, where they are stored: sealed with every state that is written."""
    _base: SavedState | None = None
    _parts: dict[str, Part] = field(default_factory=dict)
    _saved_at_s: float = field(default_factory=time.monotonic)
    _cost_s: float = 0.0

    @property
    def folder(self) -> Path:
        """Where the parts are written."""
        return self.library.folder(self.blank.id)

    def begin(self) -> Manifest | None:
        """Make the folder; return the last checkpoint of a reading that was cut short, if any.

        Raises:
            OSError: nothing can be written here.
        """
        make_folder(self.folder)
        self.library.clean(self.blank.id)
        return self.library.load_checkpoint(self.blank.key)

    def new_archive(self) -> Path:
        """Return a path for the text of this reading."""
        return self.folder / new_name("text", ".sqlite")

    def new_shard(self) -> Path:
        """Return a path for keys and values of this reading."""
        return self.folder / new_name("kv", ".sqlite")

    def take_over(self, older: Manifest, base: SavedState) -> None:
        """Have the shards of a state that this reading goes on from.

        Raises:
            MemoryFileError: one is not as it was written.
            OSError: there is no room for them.
        """
        for name in base.shards:
            there, here = self.library.check_part(older, name), self.folder / name
            if older.id != self.blank.id:
                try:
                    os.link(there, here)  # what is sealed never changes
                except OSError:
                    shutil.copyfile(there, here)
            self._parts[name] = older.parts[name]

    def is_due(self) -> bool:
        """Tell whether it is time for a checkpoint; they never take much of the reading time."""
        wait_s = max(self.checkpoint_s, self._cost_s / _MAX_COST)
        return time.monotonic() - self._saved_at_s >= wait_s

    def checkpoint(self, state: "MemoryState", scorer: "Scorer") -> None:
        """Save what was kept so far, for a reading that is cut short.

        Raises:
            OSError: it cannot be written; the last checkpoint is as it was.
        """
        started, before = time.monotonic(), self._base
        if before is not None and before.chunks == len(self.chain.links):
            return
        self._base = self._write_state(state, scorer)
        parts = {name: self._parts[name] for name in self._base.files}
        self.library.write(self._manifest((self._base,), None, parts), CHECKPOINT)
        if before is not None:
            self._forget(before)
        self._saved_at_s = time.monotonic()
        self._cost_s = self._saved_at_s - started

    def finish(
        self,
        state: "MemoryState",
        scorer: "Scorer",
        archive: Path | None,
        coverage: dict[str, Any],
        read_s: float,
    ) -> Manifest:
        """Save the memory as a whole.

        Args:
            archive: the closed file of the text, at a path of `new_archive`.
            coverage: what was read of what was asked for.

        Raises:
            OSError: it cannot be written; what was saved before is as it was.
        """
        end = self._base
        if end is None or end.chunks != len(self.chain.links):
            end = self._write_state(state, scorer)
        # After a whole chunk a grown text can go on from the end itself.
        base = self._base if end.tokens % self.chunk_tokens else None
        states = (base, end) if base is not None else (end,)
        if archive is not None:
            sync(archive)
            self._parts[archive.name] = Part(*checksum(archive))
        names = {name for saved in states for name in saved.files}
        names |= {archive.name} if archive else set()
        parts = {name: self._parts[name] for name in sorted(names)}
        manifest = replace(
            self._manifest(states, archive.name if archive else None, parts),
            coverage=coverage,
            read_s=read_s,
        )
        self.library.write(manifest, MANIFEST)
        with contextlib.suppress(OSError):
            (self.folder / CHECKPOINT).unlink(missing_ok=True)
            self.library.clean(manifest.id)
        return manifest

    def abandon(self, keep_checkpoint: bool = True) -> None:
        """Remove what was written since the last checkpoint, as far as the disk lets."""
        with contextlib.suppress(OSError):
            if not keep_checkpoint:
                (self.folder / CHECKPOINT).unlink(missing_ok=True)
            self.library.clean(self.blank.id)
            self.folder.rmdir()  # where nothing was saved at all

    def _manifest(
        self, states: tuple[SavedState, ...], archive: str | None, parts: dict[str, Part]
    ) -> Manifest:
        return replace(
            self.blank,
            tokens=self.chain.tokens,
            chain=tuple(self.chain.links),
            states=states,
            archive=archive,
            parts=parts,
            created_s=time.time(),
        )

    def _write_state(self, state: "MemoryState", scorer: "Scorer") -> SavedState:
        from indexmem_cli.memory.store import save_state

        path = self.folder / new_name("state", ".safetensors")
        try:
            layout = save_state(path, state, scorer)
            written = [path]
            if self.shards is not None:
                self.shards.seal()
                written += [shard for shard in self.shards.sealed if shard.name not in self._parts]
                layout["shards"] = [shard.name for shard in self.shards.sealed]
            for file in written:
                sync(file)
                self._parts[file.name] = Part(*checksum(file))
        except BaseException:
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        return SavedState(path.name, len(self.chain.links), self.chain.tokens, layout)

    def _forget(self, saved: SavedState) -> None:
        del self._parts[saved.part]
        with contextlib.suppress(OSError):
            (self.folder / saved.part).unlink()


def open_keys(folder: Path, manifest: Manifest, saved: SavedState) -> "StoredKeys":
    """Open the keys and values of all that was read up to a state.

    Args:
        folder: where the files are.

    Raises:
        MemoryFileError: they are damaged, or not of this text.
    """
    from indexmem_cli.memory.bring_back import open_stored

    if manifest.recall_from not in RECALL_FROM:
        raise damaged(manifest.id, f"it is to be recalled from {manifest.recall_from!r:.40}")
    try:
        stored = open_stored(manifest.recall_from, [folder / name for name in saved.shards])
    except MemoryFileError as error:
        raise damaged(manifest.id, error.message) from error
    if stored.shards.end != saved.layout.get("seen"):
        raise damaged(manifest.id, "its keys and values are not those of its text")
    return stored


def restore(
    library: Library,
    manifest: Manifest,
    saved: SavedState,
    state: "MemoryState",
    scorer: "Scorer",
    shapes: Sequence[tuple[int, int]],
    dtype: "torch.dtype",
    devices: "Sequence[torch.device]",
) -> None:
    """Fill an empty memory with what was saved; arguments as in `memory/store.py`.

    Raises:
        MemoryFileError: a part is not as it was written, or not of this model.
    """
    from indexmem_cli.memory.store import load_state

    data = library.read_part(manifest, saved.part)
    try:
        load_state(data, saved.layout, state, scorer, shapes, dtype, devices)
    except ValueError as error:
        raise damaged(manifest.id, f"{saved.part}: {error}") from error
