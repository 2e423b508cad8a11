"""One source and its memory: found where it is saved, else read chunk by chunk and saved.

A failure to save never stops a reading; it is told once, and the memory is then held by this
process alone.
"""

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from indexmem_cli.archive import Archive
from indexmem_cli.config import TEXT, StoreConfig
from indexmem_cli.coverage import coverage_of, describe_undecoded
from indexmem_cli.documents import Document, Passage, Sources
from indexmem_cli.errors import LockTimeout, MemoryFileError, reason
from indexmem_cli.events import Coverage, Event, Notice, Progress, Remembered
from indexmem_cli.library import LOCK_TIMEOUT_S, Library
from indexmem_cli.library.manifest import Key, Manifest, SavedState, damaged
from indexmem_cli.library.saver import (
    BASE_CHUNKS,
    Chain,
    Saver,
    find_base,
    known_chunks,
    open_keys,
    restore,
)
from indexmem_cli.library.sources import (
    changed_while_read,
    content_of,
    describe_changes,
    describe_files,
    path_of,
)
from indexmem_cli.tokens import Chunk, Tokenizer, read_chunks

if TYPE_CHECKING:
    from indexmem_cli.engine import Reader

_SAVING = (OSError, sqlite3.Error, MemoryFileError)


@dataclass
class Reading:
    """Documents on their way into a memory, and what is known of them when they are in."""

    sources: Sources
    reader: "Reader"
    tokenizer: Tokenizer
    opening: list[int]
    """Tokens of the prompt before the document."""
    recall_from: str | None = None
    """What passages shall be recalled from, of `RECALL_FROM`. None: text, or what is saved."""
    archive: Archive = field(init=False)
    chain: Chain = field(default_factory=Chain)
    coverage: Coverage | None = None
    manifest: Manifest | None = None
    """Of the saved memory, where there is one."""
    tokens_reused: int = 0
    seconds: float = 0.0
    """Time that reading took, now."""
    names: dict[str, str] = field(default_factory=dict)
    """Of files that were called otherwise when they were read, what they are called now."""
    _saver: Saver | None = None
    _current: Document | None = None

    @property
    def source(self) -> str:
        """As the user named it."""
        return self.sources.name

    @property
    def tokens(self) -> int:
        """Tokens of text in the memory."""
        return self.manifest.tokens if self.manifest else self.chain.tokens

    @property
    def remembered(self) -> Remembered:
        """What an answer says of this memory."""
        saved = self.manifest
        return Remembered(
            source=self.source,
            id=saved.id if saved else None,
            tokens=self.tokens,
            tokens_reused=self.tokens_reused,
            saved_bytes=saved.num_bytes if saved else 0,
        )

    def remember(
        self,
        key: Key,
        model: str,
        store: StoreConfig,
        library: Library,
        with_state: bool = True,
        wait_s: float = LOCK_TIMEOUT_S,
    ) -> Iterator[Event]:
        """Find the saved memory, or read the source and save it.

        Args:
            key: what the memory depends on, but for the content.
            model: name of the model.
            with_state: load what was kept, not the text alone.
            wait_s: how long to wait for another process that reads the same.

        Raises:
            MemoryFileError: there is a saved memory that cannot be used.
            LockTimeout: another process has been reading the source for too long.
            DocumentError: the source cannot be read.
        """
        if not store.save:
            yield from self._read(None)
            return
        blank = self._describe(key, model, store)
        found = not store.fresh and self._find(library, blank, with_state)
        if not found:
            try:
                lock = contextlib.ExitStack()
                try:
                    lock.enter_context(library.lock(blank.id, timeout_s=0))
                except LockTimeout:
                    yield Notice(f"another process is reading {self.source}: waiting for it")
                    lock.enter_context(library.lock(blank.id, wait_s))
            except OSError as error:
                yield _unsaved(error)
                yield from self._read(None)
                return
            with lock:
                # Whoever held the lock may have read what is wanted here.
                found = not store.fresh and self._find(library, blank, with_state)
                if not found:
                    yield from self._read_and_save(library, blank, store)
        if found:
            yield from self._rename(library, store.name)

    def load(self, library: Library, manifest: Manifest, with_state: bool = True) -> None:
        """Take over a saved memory; nothing is read.

        Args:
            with_state: load what was kept too; else the text alone.

        Raises:
            MemoryFileError: it is not as it was written, or not of this model.
        """
        if manifest.archive is None:
            raise damaged(manifest.id, "its text is missing")
        if with_state:
            self._restore(library, manifest, manifest.states[-1], library.folder(manifest.id))
        path = library.check_part(manifest, manifest.archive)
        self.archive = Archive.open(path, self.tokenizer.decode)
        known = {part.name for part in fields(Coverage)}
        if manifest.coverage.keys() != known:
            raise damaged(manifest.id, "it does not say what was read")
        pages = tuple(manifest.coverage["pages_without_text"])
        self.coverage = Coverage(**{**manifest.coverage, "pages_without_text": pages})
        self.manifest, self.tokens_reused = manifest, manifest.tokens
        library.touch(manifest.id)

    def _rename(self, library: Library, name: str | None) -> Iterator[Event]:
        """Give a memory that was there already the name that is wanted for it now."""
        manifest = self.manifest
        if name is None or manifest is None or name == manifest.name:
            return
        try:
            self.manifest = library.rename(manifest, name)
        except (OSError, LockTimeout) as error:
            yield Notice(f"memory {manifest.id} keeps its name: {reason(error)}")

    def forget_state(self) -> None:
        """Let go of what was kept; the text stays."""
        self.reader.state = self.reader.backbone.new_state(0)
        self.reader.forget_stored()

    def _find(self, library: Library, blank: Manifest, with_state: bool) -> bool:
        manifest = library.find(blank.key)
        if manifest is None:
            return False
        try:
            self.load(library, manifest, with_state)
        except MemoryFileError:
            newer = library.find(blank.key)
            if newer is None or newer == manifest:
                raise
            manifest = newer  # replaced by another process in between
            self.load(library, manifest, with_state)
        pairs = zip(manifest.files, blank.files, strict=True)
        self.names = {old.name: new.name for old, new in pairs if old.name != new.name}
        return True

    def _describe(self, key: Key, model: str, store: StoreConfig) -> Manifest:
        """What is known of the memory before anything is read."""
        documents = self.sources.documents
        files = describe_files(documents)
        key = Key(**{**vars(key), "content": content_of(documents, files)})
        return Manifest(
            key=key,
            name=store.name,
            source=self.source,
            path=path_of(self.source, documents),
            files=files,
            model=model,
        )

    def _read_and_save(
        self, library: Library, blank: Manifest, store: StoreConfig
    ) -> Iterator[Event]:
        """Read with checkpoints, going on from what there is of this text; then save."""
        saver = Saver(library, blank, self.reader.plan.chunk_tokens, chain=self.chain)
        older, base = None, None
        try:
            begun = saver.begin()
        except OSError as error:
            yield _unsaved(error)
            yield from self._read(None)
            return
        older = None if store.fresh else begun or library.find_older(blank)
        if older is not None:
            base, notice = self._go_on_from(saver, older)
            yield notice
        if older and older.name and not blank.name:
            saver.blank = blank.renamed(older.name)
        yield from self._read(saver, base)
        if self.manifest and older and older.id != blank.id:
            library.supersede(older, self.manifest, is_continued=base is not None)

    def _go_on_from(self, saver: Saver, older: Manifest) -> tuple[SavedState | None, Notice]:
        """Fill the memory with what is saved of the beginning of this text, if anything is."""
        blank, chunk_tokens = saver.blank, self.reader.plan.chunk_tokens
        chunks = read_chunks(self._passages(), self.tokenizer, chunk_tokens, len(self.opening))
        known = known_chunks((chunk.ids for chunk in chunks), older.chain)
        base = find_base(older, known, chunk_tokens)
        if base is not None:
            try:
                saver.take_over(older, base)
                self._restore(saver.library, older, base, saver.folder)
            except (MemoryFileError, OSError) as error:
                return None, Notice(f"{reason(error)}: {self.source} is read from its beginning")
        kept = f"{base.tokens:,} tokens are not read again" if base else "all of it is read again"
        if older.id == blank.id:
            return base, Notice(f"reading of {self.source} was cut short: {kept}")
        what = describe_changes(older.files, blank.files, known >= len(older.chain) - 1)
        return base, Notice(f"{self.source}: {what} since memory {older.id} was made: {kept}")

    def _restore(
        self, library: Library, manifest: Manifest, saved: SavedState, folder: Path
    ) -> None:
        by_text = TEXT in (self.recall_from, manifest.recall_from)
        stored = None if by_text else open_keys(folder, manifest, saved)
        if saved.layout.get("seen") != len(self.opening) + saved.tokens:
            raise damaged(manifest.id, f"{saved.part} is not of the text it is said to be of")
        backbone, reader = self.reader.backbone, self.reader
        like = backbone.kv_shapes, backbone.model.dtype, backbone.layer_devices
        restore(library, manifest, saved, reader.state, reader.scorer, *like)
        reader.stored = stored

    def _read(self, saver: Saver | None, base: SavedState | None = None) -> Iterator[Event]:
        """Read what comes after the base, chunk by chunk; all of the text goes to the archive."""
        started, self._saver = time.perf_counter(), saver
        notices: list[str] = []
        self._open_archive(notices)
        first, plan = len(self.opening), self.reader.plan
        try:
            if self.recall_from is not None and self.recall_from != TEXT:
                self._store_keys(self.recall_from, base)
            if base is None:
                for _ in self.reader.read([self.opening] if self.opening else []):
                    pass  # the prompt's opening is not counted as text
            else:
                self.tokens_reused = base.tokens
            for chunk in read_chunks(self._passages(), self.tokenizer, plan.chunk_tokens, first):
                with self._saving(notices):
                    if len(chunk.ids) < plan.chunk_tokens and len(self.chain.links) >= BASE_CHUNKS:
                        self._checkpoint()
                if base is None or len(self.chain.links) >= base.chunks:
                    self._take_in(chunk, notices)
                self._keep(chunk, notices)
                while notices:
                    yield Notice(notices.pop(0))
                self.seconds = time.perf_counter() - started
                name = self._current.name if self._current else ""
                share = self.sources.fraction(self._current)
                yield Progress(name, self.chain.tokens, share, self.seconds)
            self._finish(notices)
            yield from map(Notice, notices)
        except GeneratorExit:  # between two chunks, so what is kept is whole
            with self._saving(notices):
                self._checkpoint()
            raise
        finally:
            if self._saver is not None and self.manifest is None:
                self.archive.close()
                self.reader.forget_stored()
                self._saver.abandon()

    def _open_archive(self, notices: list[str]) -> None:
        self.archive = Archive.create(None, self.tokenizer.decode)
        with self._saving(notices):
            if self._saver is not None:
                self.archive = Archive.create(self._saver.new_archive(), self.tokenizer.decode)

    def _store_keys(self, form: str, base: SavedState | None) -> None:
        """Write down all keys and values from now on."""
        from indexmem_cli.memory.bring_back import open_stored

        if base is None or self.reader.stored is None:
            self.reader.stored = open_stored(form)
        if self._saver is not None:
            self._saver.shards = self.reader.stored.shards
            self._saver.shards.new_path = self._saver.new_shard

    def _take_in(self, chunk: Chunk, notices: list[str]) -> None:
        """Pass a chunk through the model."""
        step = self.reader.step_tokens
        for _ in self.reader.read([chunk.ids]):
            pass
        self._check_keys(notices)
        if (now := self.reader.step_tokens) < step:
            notices.append(f"out of memory: {now:,} tokens are read at a time from here")

    def _check_keys(self, notices: list[str]) -> None:
        """Go on without keys and values where they cannot be written."""
        stored = self.reader.stored
        if stored is not None and stored.failure is not None:
            if self._saver is not None:
                self._stop_saving(reason(stored.failure), notices)
            else:
                notices.append(f"passages are read again as text: {reason(stored.failure)}")
            self.reader.forget_stored()

    def _keep(self, chunk: Chunk, notices: list[str]) -> None:
        """Put a chunk that was read into the archive, and save the memory when it is time to."""
        self.chain.add(chunk.ids)
        with self._saving(notices):
            self.archive.add(chunk.entries)
            self.archive.commit()
            if self._saver is not None and self._saver.is_due():
                self._checkpoint()
        self.archive.add(chunk.entries)  # those that failed, to an archive in memory by now

    def _finish(self, notices: list[str]) -> None:
        """Complete the archive, then save the memory if its source is still what it was."""
        with self._saving(notices):
            self.archive.commit(last=True)
        self.coverage = coverage_of(self.sources, self.chain.tokens)
        notices += describe_undecoded(self.sources)
        if self._saver is None:
            return
        changed = changed_while_read(self._saver.blank.files)
        if changed:
            reason = f"{', '.join(changed[:3])} changed while it was read"
            self._stop_saving(reason, notices, keep_checkpoint=False)
            return
        with self._saving(notices):
            path = self.archive.path
            assert path is not None, "what is saved has an archive on the disk"
            state, scorer = self.reader.state, self.reader.scorer
            coverage: dict[str, Any] = vars(self.coverage)
            self.manifest = self._saver.finish(state, scorer, path, coverage, self.seconds)
            self.archive.close()
            self.archive = Archive.open(path, self.tokenizer.decode)

    def _checkpoint(self) -> None:
        # While known text is passed over, the memory is ahead of it.
        if self._saver is not None and self.chain.tokens >= self.tokens_reused:
            self._saver.checkpoint(self.reader.state, self.reader.scorer)

    @contextlib.contextmanager
    def _saving(self, notices: list[str]) -> Iterator[None]:
        """Go on without saving where saving fails."""
        try:
            yield
        except _SAVING as error:
            if self._saver is None:
                raise
            self._stop_saving(reason(error), notices)

    def _stop_saving(self, reason: str, notices: list[str], keep_checkpoint: bool = True) -> None:
        archive, saver = self.archive, self._saver
        self.archive, self._saver = archive.in_memory(), None
        archive.close()
        told = "" if self.reader.stored is None else "; its passages are read again as text"
        self.reader.forget_stored()  # its files go with what is not saved
        if saver is not None:
            saver.abandon(keep_checkpoint)
        notices.append(f"the memory of {self.source} is not saved: {reason}{told}")

    def _passages(self) -> Iterator[Passage]:
        for document in self.sources.documents:
            self._current = document
            yield from document.passages()


def _unsaved(error: Exception) -> Notice:
    return Notice(f"the memory is not saved: {reason(error)}")
