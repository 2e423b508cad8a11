"""Everything that training needs, packed into parts small enough to be carried to a machine.

A packed folder holds `part-0`, `part-1`, …: token arrays cut into .npy shards, the questions, and
the tokenizer. `manifest.json` in part-0 names every file with its size. `held-out/` beside them is
a small data folder for `indexmem bench model`.
"""

import json
import lzma
import shutil
from pathlib import Path

import numpy as np

from indexmem_cli.errors import BackboneError, ConfigError
from indexmem_cli.train.data import (
    HELD_OUT_SHARD,
    MANIFEST,
    SOURCES,
    make_tokenizer,
    prepare,
    read_held_out_books,
    stamp_of,
)
from indexmem_cli.train.episodes import load_questions
from indexmem_cli.train.reading import QUESTIONS_FILE, write_questions

MIB = 1024**2
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.tiktoken",
    "tiktoken.json",
)


def pack(data: Path, out: Path, part_mib: int, tokenizer: Path | None, window_tokens: int) -> int:
    """Pack the data folder into parts of at most `part_mib` MiB; returns the number of parts.

    Args:
        tokenizer: folder of the tokenizer to encode with; None: one is built from the data.

    Raises:
        BackboneError: that folder lacks a file of the tokenizer.
        ConfigError: the folder `data` is not one of training text.
    """
    work = out / "work"
    made = work / "tokenizer"
    if tokenizer:
        missing = [name for name in TOKENIZER_FILES if not (tokenizer / name).exists()]
        if missing:
            raise BackboneError(
                f"{tokenizer} has no {', '.join(missing)}: it holds no tokenizer to pack with",
                "name the folder of a model that indexmem trained, or leave --tokenizer out",
            )
        made.mkdir(parents=True, exist_ok=True)
        for name in TOKENIZER_FILES:
            shutil.copyfile(tokenizer / name, made / name)
    make_tokenizer(data, made, window_tokens)
    prepare(data, work / "cache", made)
    parts = _Parts(out, part_mib * MIB)
    for name in TOKENIZER_FILES:
        parts.add(name, (made / name).read_bytes())
    questions = work / QUESTIONS_FILE
    write_questions(questions, *load_questions(data))
    parts.add(QUESTIONS_FILE, questions.read_bytes())
    for source in SOURCES:
        for split in ("train", "valid"):
            path = work / "cache" / f"{source}.{split}.npy"
            if path.exists():
                parts.add_array(f"{source}.{split}", np.load(path, mmap_mode="r"))
    manifest = json.dumps(parts.sizes, indent=1)
    (out / MANIFEST).write_text(manifest + "\n", encoding="utf-8")
    _hold_out(data, out / "held-out")
    shutil.rmtree(work)
    return parts.number + 1


class _Parts:
    """Fills one part after the other."""

    def __init__(self, out: Path, limit: int) -> None:
        self.out, self.limit = out, limit - 64 * 1024  # the manifest
        self.number, self.used = 0, 0
        self.sizes: dict[str, int] = {}

    def add(self, name: str, content: bytes) -> None:
        if self.used + len(content) > self.limit:
            self.number, self.used = self.number + 1, 0
        folder = self.out / f"part-{self.number}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        self.used += len(content)
        self.sizes[f"{folder.name}/{name}"] = len(content)

    def add_array(self, name: str, array: np.ndarray) -> None:
        """Cut an array where parts are full; shards are numbered in order."""
        at, shard = 0, 0
        while at < len(array):
            room = self.limit - self.used - 256  # the header of .npy
            count = room // array.itemsize
            if count < 1:
                self.number, self.used = self.number + 1, 0
                continue
            folder = self.out / f"part-{self.number}"
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{name}.{shard:03}.npy"
            np.save(path, array[at : at + count])
            self.used += path.stat().st_size
            self.sizes[f"{folder.name}/{path.name}"] = path.stat().st_size
            at, shard = at + count, shard + 1


def _hold_out(data: Path, folder: Path) -> None:
    """Write what the bench needs, in the layout of a data folder."""
    (folder / "prose").mkdir(parents=True, exist_ok=True)
    books = [{"text": text} for text in read_held_out_books(data)]
    with lzma.open(folder / "prose" / HELD_OUT_SHARD, "wt", encoding="utf-8") as lines:
        lines.writelines(json.dumps(book) + "\n" for book in books)
    shutil.copyfile(data / "prose" / "chat.jsonl.xz", folder / "prose" / "chat.jsonl.xz")
    if (data / "qa" / "dev").is_dir():
        shutil.copytree(data / "qa" / "dev", folder / "qa" / "dev", dirs_exist_ok=True)


def is_packed(data: Path) -> bool:
    """Say whether a folder was written by `pack`."""
    return (data / MANIFEST).exists()


def unpack(data: Path, cache: Path, tokenizer: Path) -> None:
    """Join the parts into a token cache and a tokenizer folder, unless that is done.

    Raises:
        ConfigError: a file that the manifest names is missing or cut off.
    """
    done = cache / "done"
    whole = all((tokenizer / name).exists() for name in TOKENIZER_FILES)
    if whole and done.exists() and done.read_text() == stamp_of(data, tokenizer):
        return
    sizes = json.loads((data / MANIFEST).read_text(encoding="utf-8"))
    for name, size in sizes.items():
        path = data / name
        found = path.stat().st_size if path.exists() else None
        if found != size:
            state = "is missing" if found is None else f"has {found:,} bytes, not {size:,}"
            raise ConfigError(f"{data}: {name} {state}", "carry every part whole")
    cache.mkdir(parents=True, exist_ok=True)
    tokenizer.mkdir(parents=True, exist_ok=True)
    done.unlink(missing_ok=True)
    shards: dict[str, list[Path]] = {}
    for name in sizes:
        path = data / name
        if path.suffix == ".npy":
            shards.setdefault(path.name.rsplit(".", 2)[0], []).append(path)
        else:
            folder = tokenizer if path.name in TOKENIZER_FILES else cache
            shutil.copyfile(path, folder / path.name)
    for array, paths in shards.items():
        paths.sort(key=lambda path: path.name)
        np.save(cache / f"{array}.npy", np.concatenate([np.load(path) for path in paths]))
    done.write_text(stamp_of(data, tokenizer))
