"""Memories without a model behind them, for tests of what happens to them on the disk."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from indexmem_cli.archive import Archive
from indexmem_cli.documents import Place
from indexmem_cli.library import Library
from indexmem_cli.library.manifest import Key, Manifest, SourceFile
from indexmem_cli.library.saver import Saver
from indexmem_cli.memory.policies import make_scorer
from indexmem_cli.memory.state import LayerState, MemoryState
from indexmem_cli.tokens import Entry

CHUNK = 16


@contextmanager
def full_disk(limit_bytes: int) -> Iterator[None]:
    """Let no file grow beyond a size: writing fails as on a full disk.

    No module is compiled meanwhile: Python would keep what was cut short, and fail on it later.
    """
    import resource

    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    compiles, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        sys.dont_write_bytecode = compiles
        signal.signal(signal.SIGXFSZ, before)


def blank(content: str = "c" * 64, chunk_tokens: int = CHUNK, **changes) -> Manifest:
    """What is known of a memory before anything is read."""
    settings = {"chunk_tokens": chunk_tokens, "budget_tokens": 96, "policy": "knorm"}
    fields = {
        "key": Key(content, "model", "tokenizer", settings),
        "name": None,
        "source": "book.txt",
        "path": None,
        "model": "tiny",
        "version": "0",
    }
    return Manifest(**{**fields, **changes})


def file_of(path) -> SourceFile:
    """Describe a file as it is now."""
    import hashlib

    stat = path.stat()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return SourceFile(path.name, str(path), digest, stat.st_size, stat.st_mtime_ns)


def save(library: Library, manifest: Manifest | None = None, words: int = 40) -> Manifest:
    """Save a memory of a layer of zeros and a text of numbered words."""
    saver = Saver(library, manifest or blank(), CHUNK)
    saver.begin()
    path = saver.new_archive()
    archive = Archive.create(path, lambda ids: "".join(f" w{i}" for i in ids))
    layer = LayerState(words)
    for first in range(0, words, CHUNK):
        ids = list(range(first, min(words, first + CHUNK)))
        archive.add([Entry(first, ids, Place("book.txt", None, None, first + 1))])
        layer.append(torch.zeros(1, 1, len(ids), 4), torch.zeros(1, 1, len(ids), 4), first)
        saver.chain.add(ids)
    archive.commit(last=True)
    archive.close()
    state = MemoryState([layer], seen=words)
    return saver.finish(state, make_scorer("knorm"), path, {"tokens_read": words}, 1.0)


def begin(library: Library, manifest: Manifest | None = None) -> str:
    """Leave a reading that was cut short; return its id."""
    saver = Saver(library, manifest or blank(), CHUNK)
    saver.begin()
    layer = LayerState(CHUNK)
    layer.append(torch.zeros(1, 1, CHUNK, 4), torch.zeros(1, 1, CHUNK, 4), 0)
    saver.chain.add(range(CHUNK))
    saver.checkpoint(MemoryState([layer], seen=CHUNK), make_scorer("knorm"))
    return saver.blank.id
