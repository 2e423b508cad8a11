"""Training text as token arrays: sources, hold-outs, caches, and what a token looks like.

Documents of one source lie one after the other in a uint16 array, each closed by `<|end|>`.
"""

import hashlib
import json
import lzma
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import tiktoken

from indexmem_cli.errors import BackboneError, ConfigError
from indexmem_cli.tokens import load_tiktoken
from indexmem_cli.train.tokenizer import build_tokenizer, write_tokenizer

EXAMPLE_BOOK = "gutenberg:35461"
NEEDLE_BOOK = "gutenberg:46597"
HELD_OUT_BOOKS = frozenset({EXAMPLE_BOOK, NEEDLE_BOOK})
PROSE_SHARDS = ("gutenberg-00", "gutenberg-03")
HELD_OUT_SHARD = f"{PROSE_SHARDS[-1]}.jsonl.xz"
NUM_VALIDATION_BOOKS = 12
"""The last books of the last shard, never trained on."""
VALIDATION_FRACTION = 0.05
"""The last share of the chat logs and of the code files, never trained on."""
SOURCES = ("prose", "modern", "chat", "code")
TOKENIZER_SAMPLE = {
    "prose": (14_000_000, 40_000),
    "modern": (6_000_000, 20_000),
    "chat": (3_000_000, 30_000),
    "code": (3_500_000, 20_000),
}
"""Characters of each source that the tokenizer is trained on: in all, and of one document."""
END = "<|end|>"
MANIFEST = Path("part-0") / "manifest.json"
"""Where a folder that `indexmem train pack` wrote names its files."""


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON lines of an .xz file.

    Raises:
        ConfigError: it is not there.
    """
    if not path.exists():
        raise ConfigError(
            f"no such file: {path}",
            "docs/train-base.md says what a folder of training text holds",
        )
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def read_prose(data: Path) -> tuple[list[str], list[str]]:
    """Return the training and the validation books as texts."""
    train, valid = [], []
    for shard in PROSE_SHARDS:
        books = list(read_records(data / "prose" / f"{shard}.jsonl.xz"))
        last = shard == PROSE_SHARDS[-1]
        cut = len(books) - (NUM_VALIDATION_BOOKS if last else 0)
        train += [book["text"] for book in books[:cut] if book["id"] not in HELD_OUT_BOOKS]
        valid += [book["text"] for book in books[cut:] if book["id"] not in HELD_OUT_BOOKS]
    return train, valid


def read_held_out_books(data: Path) -> list[str]:
    """Return the texts of the books that are kept for validation, for whoever measures."""
    books = list(read_records(data / "prose" / HELD_OUT_SHARD))[-NUM_VALIDATION_BOOKS:]
    return [book["text"] for book in books]


def read_modern(data: Path) -> tuple[list[str], list[str]]:
    """Return textbooks, manuals and speeches; all of them are for training."""
    return [r["text"] for r in read_records(data / "prose" / "modern.jsonl.xz")], []


def read_chat(data: Path) -> tuple[list[str], list[str]]:
    """Return the chat logs, the last ones for validation."""
    return split_last([r["text"] for r in read_records(data / "prose" / "chat.jsonl.xz")])


def read_code() -> tuple[list[str], list[str]]:
    """Return the sources of this Python's standard library, without its tests."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = sorted(
        path
        for path in root.rglob("*.py")
        if not {"site-packages", "test", "tests", "idle_test"} & set(path.relative_to(root).parts)
    )
    return split_last([path.read_text(encoding="utf-8", errors="ignore") for path in paths])


def split_last(texts: list[str]) -> tuple[list[str], list[str]]:
    """Keep the last `VALIDATION_FRACTION` of the texts, at least one, for validation."""
    cut = len(texts) - max(1, round(len(texts) * VALIDATION_FRACTION))
    return texts[:cut], texts[cut:]


def encode_documents(encoding: tiktoken.Encoding, texts: list[str]) -> np.ndarray:
    """Encode and join the texts, each closed by `<|end|>`; uint16 [T]."""
    end = encoding.encode_single_token(END)
    parts = [encoding.encode_ordinary(text) + [end] for text in texts]
    joined: np.ndarray = np.concatenate([np.array(part, dtype=np.uint16) for part in parts])
    return joined


def sample_texts(rng: Random, texts: list[str], num_chars: int, max_chars: int) -> list[str]:
    """Cut one piece of at most `max_chars` from each text until `num_chars` are reached."""
    pieces, total = [], 0
    for text in texts:
        start = rng.randrange(max(1, len(text) - max_chars))
        pieces.append(text[start : start + max_chars])
        total += len(pieces[-1])
        if total >= num_chars:
            break
    return pieces


def insist_on_tokenizer(folder: Path) -> None:
    """See that a model's folder holds a tokenizer that the training text can be made with.

    Raises:
        BackboneError: it holds another one.
    """
    if not (folder / "tokenizer.tiktoken").exists():
        raise BackboneError(
            f"{folder} has no tokenizer.tiktoken: the training text is made for models that "
            "indexmem trained",
            "fit an adapter to a document of yours: indexmem train adapter --quick DOCUMENT",
        )


def make_tokenizer(data: Path, folder: Path, max_length_tokens: int) -> None:
    """Build a tokenizer from the data folder, unless there is one."""
    if (folder / "tokenizer.tiktoken").exists():
        return
    rng, texts = Random(0), read_texts(data)
    sample = [
        piece
        for source, (num_chars, max_chars) in TOKENIZER_SAMPLE.items()
        for piece in sample_texts(rng, texts[source][0], num_chars, max_chars)
    ]
    write_tokenizer(build_tokenizer(sample), folder, max_length_tokens)


def read_texts(data: Path) -> dict[str, tuple[list[str], list[str]]]:
    """Return the texts of every source, those for training and those for validation."""
    return {
        "prose": read_prose(data),
        "modern": read_modern(data),
        "chat": read_chat(data),
        "code": read_code(),
    }


def stamp_of(data: Path, tokenizer: Path) -> str:
    """What a cache of tokens is of: the text, packed or not, and the tokenizer."""
    digest = hashlib.blake2b((tokenizer / "tokenizer.tiktoken").read_bytes(), digest_size=16)
    if (data / MANIFEST).exists():
        digest.update((data / MANIFEST).read_bytes())
    return f"{digest.hexdigest()} {data.resolve()}\n"


def prepare(data: Path, cache: Path, tokenizer: Path) -> tiktoken.Encoding:
    """Cache `<source>.{train,valid}.npy` in the tokenizer's ids, unless that is done.

    Raises:
        BackboneError: the folder `tokenizer` holds none that the text can be made with.
        ConfigError: the folder `data` is not one of training text.
    """
    insist_on_tokenizer(tokenizer)
    encoding, done, stamp = load_tiktoken(tokenizer), cache / "done", stamp_of(data, tokenizer)
    if done.exists() and done.read_text() == stamp:
        return encoding
    cache.mkdir(parents=True, exist_ok=True)
    done.unlink(missing_ok=True)
    for source, splits in read_texts(data).items():
        for name, split in zip(("train", "valid"), splits, strict=True):
            if split:
                np.save(cache / f"{source}.{name}.npy", encode_documents(encoding, split))
    done.write_text(stamp)
    return encoding


class Corpus:
    """Random windows of tokens from the cached sources."""

    def __init__(self, cache: Path, encoding: tiktoken.Encoding, split: str = "train") -> None:
        self.encoding = encoding
        self.end = encoding.encode_single_token(END)
        self.arrays = {
            source: np.load(cache / f"{source}.{split}.npy", mmap_mode="r")
            for source in SOURCES
            if (cache / f"{source}.{split}.npy").exists()
        }
        self.closes_sentence, self.opens_sentence = sentence_tables(encoding)

    def window(self, rng: Random, source: str, num_tokens: int) -> list[int]:
        """Draw tokens of one document, at most `num_tokens`: fewer where the document ends."""
        array = self.arrays[source]
        start = rng.randrange(max(1, len(array) - num_tokens))
        ids = array[start : start + num_tokens]
        ends = np.flatnonzero(ids == self.end)
        if len(ends):
            edges = [0, *(ends + 1), len(ids) + 1]
            longest = max(range(len(edges) - 1), key=lambda i: edges[i + 1] - edges[i])
            ids = ids[edges[longest] : edges[longest + 1] - 1]
        return list(map(int, ids))

    def packed(self, rng: Random, source: str, num_tokens: int) -> list[int]:
        """Draw exactly `num_tokens`, running over the ends of documents."""
        array = self.arrays[source]
        start = rng.randrange(max(1, len(array) - num_tokens))
        return list(map(int, array[start : start + num_tokens]))

    def sentence_starts(self, ids: list[int]) -> list[int]:
        """Return the places inside `ids` where a new sentence begins."""
        array = np.array(ids, dtype=np.int64)
        if len(array) < 2:
            return []
        hits = self.closes_sentence[array[:-1]] & self.opens_sentence[array[1:]]
        return [int(place) + 1 for place in np.flatnonzero(hits)]


def sentence_tables(encoding: tiktoken.Encoding) -> tuple[np.ndarray, np.ndarray]:
    """Say of every token whether it can close, and whether it can open, a sentence; bool [V]."""
    closes: np.ndarray = np.zeros(encoding.n_vocab, dtype=bool)
    opens: np.ndarray = np.zeros(encoding.n_vocab, dtype=bool)
    for token in range(encoding.max_token_value + 1 - len(encoding.special_tokens_set)):
        text = encoding.decode_single_token_bytes(token).decode("utf-8", errors="replace")
        closes[token] = text.endswith("\n") or text.strip("\"”’')") in (".", "?", "!")
        opens[token] = text[:1] == " " and text[1:2].isupper() or text[:1].isupper()
    return closes, opens
