"""The documents that clients brought, and the model that answers about them."""

import hashlib
import secrets
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from indexmem_cli.config import (
    FOCUS,
    AnswerConfig,
    MemoryConfig,
    ModelConfig,
    ReadConfig,
    StoreConfig,
)
from indexmem_cli.documents import Document, Sources, join_sources, open_sources, open_text
from indexmem_cli.documents.text import kind_of
from indexmem_cli.errors import ConfigError, IndexMemError, MemoryFileError
from indexmem_cli.events import Event
from indexmem_cli.library import Library
from indexmem_cli.library.manifest import Manifest
from indexmem_cli.session import Memory


class UnknownMemory(IndexMemError):
    """There is no memory of that id."""


@dataclass(frozen=True)
class Brought:
    """A document that a client brought."""

    id: str
    name: str
    size_bytes: int
    pages: int
    document: Document


class Shelf:
    """Documents by id, and the memories that were made of them; the least used go first."""

    def __init__(self, memory: MemoryConfig, model: ModelConfig, most: int) -> None:
        self.memory, self.model, self._most = memory, model, most
        self._kept = tempfile.TemporaryDirectory(
            prefix="indexmem-serve-", ignore_cleanup_errors=True
        )
        self._brought: OrderedDict[str, Brought] = OrderedDict()
        self._memories: OrderedDict[tuple[str, ...], Memory] = OrderedDict()
        # Every memory is made of this one, and shares the model that one of them loaded.
        self._blank = Memory([], memory, model, store=StoreConfig(save=False))
        self._lock = threading.Lock()

    def add(self, name: str, data: bytes) -> Brought:
        """Keep a document; the same one brought twice is kept once.

        Raises:
            DocumentError: it cannot be read.
        """
        shown = Path(name.replace("\\", "/")).name or "document"
        digest = hashlib.sha256(shown.encode() + b"\0" + data).hexdigest()[:12]
        with self._lock:
            if digest in self._brought:
                self._brought.move_to_end(digest)
                return self._brought[digest]
        # Nothing of the name ever reaches the disk; and two clients may bring the same at once.
        path = Path(self._kept.name) / f"{digest}-{secrets.token_hex(4)}"
        path.write_bytes(data)
        try:
            (document,) = open_sources([str(path)], ReadConfig()).documents
        except IndexMemError as error:
            path.unlink()
            # Where it was kept is nobody's business.
            error.message = error.message.replace(str(path), shown)
            error.hint = error.hint and error.hint.replace(str(path), shown)
            raise
        document.name = shown
        if document.kind == "text":
            document.kind = kind_of(shown)
        brought = Brought(digest, shown, len(data), document.pages_total, document)
        with self._lock:
            if digest in self._brought:
                path.unlink()
                return self._brought[digest]
            self._brought[digest] = brought
            while len(self._brought) > self._most:
                self._forget(self._brought.popitem(last=False)[1])
        return brought

    def all(self) -> list[Brought]:
        """Every document, the last brought or used last."""
        with self._lock:
            return list(self._brought.values())

    def saved(self) -> list[Manifest]:
        """What the user has saved of this model and for any question, the newest first."""
        of_model = (
            manifest
            for manifest in Library().manifests()
            if manifest.model == self.model.model and manifest.key.question is None
        )
        return sorted(of_model, key=lambda manifest: -manifest.created_s)

    def remove(self, memory_id: str) -> None:
        """Forget a document.

        Raises:
            UnknownMemory: there is none of that id.
            ConfigError: it is one that the user has saved.
        """
        self.check([memory_id])
        if memory_id not in self._brought:
            hint = f"indexmem memories rm {memory_id}"
            raise ConfigError(f"memory {memory_id!r} is saved, not brought", hint)
        with self._lock:
            if brought := self._brought.pop(memory_id, None):
                self._forget(brought)

    def check(self, ids: Sequence[str]) -> None:
        """See that every id is known.

        Raises:
            UnknownMemory: one is not.
        """
        with self._lock:
            for memory_id in ids:
                if memory_id not in self._brought:
                    _load_saved(memory_id)
                    continue
                self._brought.move_to_end(memory_id)

    def events(
        self, ids: Sequence[str], text: str, question: str, answer: AnswerConfig
    ) -> Generator[Event, None, None]:
        """Answer from documents, and a text after them; only for the worker's thread."""
        memory = self._memory_of(tuple(ids), text)
        try:
            for event in memory.events(question, answer):
                # Before the event is told: whoever gets it may count the question's tokens at once.
                self._share_engine(memory)
                yield event
        finally:  # also where it fails before the first event that has the model
            self._share_engine(memory)

    def question_tokens(self, question: str) -> int:
        """Tokens of a question with the prompt around it, once the model is loaded."""
        engine = self._blank.engine
        return len(engine.prompt.closing(engine.tokenizer.encode(question))) if engine else 0

    @property
    def is_loaded(self) -> bool:
        """Whether the model is in memory."""
        return self._blank.engine is not None

    def close(self) -> None:
        """Remove what was kept on the disk."""
        self._kept.cleanup()

    def _memory_of(self, ids: tuple[str, ...], text: str) -> Memory:
        """Return the memory of these documents, sharing the model that is loaded already."""
        with self._lock:
            brought = [self._brought[name] for name in ids if name in self._brought]
            saved = [_load_saved(name) for name in ids if name not in self._brought]
            # By what a name stands for now: it may have been read again since.
            key = (*(one.id for one in brought), *(manifest.id for manifest in saved))
            memory = self._memories.get(key) if not text else None
            # One that never got the model is made anew, with that of the others.
            if memory is None or memory.engine is None:
                memory = self._make_memory(brought, saved, text)
            if key and not text:
                self._memories[key] = memory
                self._memories.move_to_end(key)
                while len(self._memories) > self._most:
                    self._memories.popitem(last=False)
        return memory

    def _share_engine(self, memory: Memory) -> None:
        """Give the model that a memory loaded to those that are made from now on."""
        if memory.engine is not None:
            # With the model goes the budget that was found to fit it.
            self._blank.memory, self._blank.engine = memory.memory, memory.engine

    def _make_memory(self, brought: list[Brought], saved: list[Manifest], text: str) -> Memory:
        fresh = [Sources([one.document], name=one.name) for one in brought]
        if text:
            fresh.append(Sources([open_text(text, "messages")], name="messages"))
        can_look_up = self.memory.recall and self.memory.policy != FOCUS
        if saved and not can_look_up and len(saved) + len(fresh) > 1:
            raise ConfigError("several memories can be asked together only with recall")
        # A conversation goes on from its documents.
        if fresh and (text or not can_look_up) or not saved and not fresh:
            fresh = [join_sources(fresh)]
        parts: list[Sources | Manifest] = [*saved, *fresh]
        return replace(self._blank, sources=parts, library=Library())

    def _forget(self, brought: Brought) -> None:
        if brought.document.path is not None:
            brought.document.path.unlink(missing_ok=True)
        for ids in [ids for ids in self._memories if brought.id in ids]:
            del self._memories[ids]


def _load_saved(name: str) -> Manifest:
    """Return the memory that the user has saved by this name or id.

    Raises:
        UnknownMemory: there is none.
    """
    library = Library()
    try:
        return library.load(library.resolve(name))
    except MemoryFileError as error:
        hint = "POST the document again, or ingest it"
        raise UnknownMemory(f"no memory {name!r} ({error.message})", hint) from error
