"""Passages to chunks of tokens, and from a token back to its place. Nothing about models."""

import base64
import codecs
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from indexmem_cli.documents import Passage, Place
from indexmem_cli.errors import BackboneError

if TYPE_CHECKING:
    import tiktoken

_RANKS, _SPEC = "tokenizer.tiktoken", "tiktoken.json"
_BATCH_CHARS = 8192
_BATCH_PASSAGES = 128
_SENTENCE_CHARS = 80  # shorter sentences stay with the next
_SENTENCE_END = re.compile(r"""[.!?…]["'”’)\]]*(?= \S)""")
_MAX_UNFINISHED_TOKENS = 8
"""A character has at most 4 bytes, so at most 4 tokens; after 8 the bytes are no character."""


class TextStream(Protocol):
    """Tokens to text, one token at a time."""

    def push(self, token_id: int) -> str:
        """Return the text that the token completes: whole characters only, perhaps none."""

    def flush(self) -> str:
        """Return what is left at the end; U+FFFD for an unfinished character."""


class Tokenizer(Protocol):
    """Text to token ids and back."""

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Control tokens, which no text becomes."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of an ordinary text, which can never yield a control token."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode each text for itself."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of the ids; control tokens and unknown ids have none."""

    def text_stream(self) -> TextStream:
        """Return a new stream for an answer."""


def load_tokenizer(model_dir: Path) -> Tokenizer:
    """Load the tokenizer of a model folder: tiktoken's files if it has them, else tokenizer.json.

    Raises:
        BackboneError: there is none, or it is damaged.
    """
    hub = model_dir / "tokenizer.json"
    try:
        if all((model_dir / name).is_file() for name in (_RANKS, _SPEC)):
            return _TiktokenTokenizer(load_tiktoken(model_dir))
        if hub.is_file():
            return _HubTokenizer(json.loads(hub.read_text("utf-8")))
    except OSError as error:
        raise BackboneError(f"cannot read the tokenizer in {model_dir}: {error}") from error
    # The readers of both formats raise errors of any type on files they cannot parse.
    except Exception as error:
        raise BackboneError(f"the tokenizer in {model_dir} is damaged: {error}") from error
    raise BackboneError(
        f"no tokenizer in {model_dir}", "it needs tokenizer.json (a `fast` tokenizer)"
    )


def load_tiktoken(model_dir: Path) -> "tiktoken.Encoding":
    """Read lines of `base64 rank`, and {"pattern": str, "special_tokens": {text: id}}."""
    import tiktoken

    rows = (line.split() for line in (model_dir / _RANKS).read_bytes().splitlines() if line)
    ranks = {base64.b64decode(token): int(rank) for token, rank in rows}
    spec = json.loads((model_dir / _SPEC).read_text("utf-8"))
    return tiktoken.Encoding(
        model_dir.name,
        pat_str=spec["pattern"],
        mergeable_ranks=ranks,
        special_tokens=spec["special_tokens"],
        explicit_n_vocab=len(ranks) + len(spec["special_tokens"]),  # ids have no holes
    )


class _TiktokenTokenizer:
    """Byte-level BPE through tiktoken: ten times as fast as tokenizer.json, the same ids."""

    def __init__(self, encoding: "tiktoken.Encoding") -> None:
        self._encoding = encoding
        control = sorted(encoding.special_tokens_set)
        self.special_tokens = {text: encoding.encode_single_token(text) for text in control}
        self._num_ordinary = encoding.n_vocab - len(control)

    def encode(self, text: str) -> list[int]:
        return self._encoding.encode_ordinary(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        # tiktoken's own batch starts threads, which cost more than short texts take.
        return [self._encoding.encode_ordinary(text) for text in texts]

    def token_bytes(self, token_id: int) -> bytes:
        if not 0 <= token_id < self._num_ordinary:
            return b""
        return self._encoding.decode_single_token_bytes(token_id)

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def text_stream(self) -> TextStream:
        return _ByteStream(self)


class _ByteStream:
    def __init__(self, tokenizer: _TiktokenTokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        return self._decoder.decode(b"", True)


class _HubTokenizer:
    """Any tokenizer.json of the Hugging Face hub."""

    def __init__(self, spec: dict[str, Any]) -> None:
        """Change the tokenizer so that pieces of a document encode like the whole.

        Neither truncation nor padding, and no space put before each text. Every added token that
        looks like a tag counts as a control token: models use some that are not marked so
        (`<tool_call>`, `<think>`).
        """
        import tokenizers

        self.special_tokens = {
            token["content"]: token["id"] for token in spec["added_tokens"] if _is_control(token)
        }
        spec = {**_without_added_space(spec), "truncation": None, "padding": None}
        self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(spec))
        self._tokenizer.encode_special_tokens = True
        self._control_ids = frozenset(self.special_tokens.values())
        self._control_texts = re.compile(
            "|".join(map(re.escape, self.special_tokens)) or "(?!)", re.IGNORECASE
        )
        self._num_ids = self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        texts = [_well_formed(text) for text in texts]
        encoded = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [
            ids if self._control_ids.isdisjoint(ids) else self._encode_apart(text)
            for text, ids in zip(texts, (item.ids for item in encoded), strict=True)
        ]

    def _encode_apart(self, text: str) -> list[int]:
        """Encode text with strings that would become control tokens, cut within each of them."""
        cuts = [match.start() + 1 for match in self._control_texts.finditer(text)]
        parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        encoded = self._tokenizer.encode_batch_fast(parts, add_special_tokens=False)
        return [id_ for item in encoded for id_ in item.ids if id_ not in self._control_ids]

    def decode(self, ids: Sequence[int]) -> str:
        shown = [i for i in ids if 0 <= i < self._num_ids and i not in self._control_ids]
        return self._tokenizer.decode(shown, skip_special_tokens=False)

    def text_stream(self) -> TextStream:
        return _WindowStream(self)


class _WindowStream:
    """Decodes the last finished tokens together with the new ones, and shows what is added.

    One token alone may decode to something else: a byte of a character, a word without its space.
    """

    def __init__(self, tokenizer: _HubTokenizer) -> None:
        self._tokenizer = tokenizer
        self._shown: list[int] = []
        self._new: list[int] = []

    def push(self, token_id: int) -> str:
        self._new.append(token_id)
        text = self._added()
        if text.endswith("\ufffd") and len(self._new) < _MAX_UNFINISHED_TOKENS:
            return ""
        if text:
            self._shown, self._new = self._new, []
        return text

    def flush(self) -> str:
        text = self._added()
        self._shown, self._new = [], []
        return text

    def _added(self) -> str:
        before = self._tokenizer.decode(self._shown)
        return self._tokenizer.decode(self._shown + self._new)[len(before) :]


@dataclass(frozen=True, slots=True)
class Entry:
    """A passage, or some sentences of a long one, as tokens."""

    first: int
    """Position of its first token in the stream of all tokens read."""
    ids: list[int]
    place: Place

    @property
    def end(self) -> int:
        """Position after its last token."""
        return self.first + len(self.ids)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive tokens, as many as are read at a time."""

    first: int
    """Stream position of the first token."""
    ids: list[int]
    entries: list[Entry]
    """The passages that begin or go on in the chunk, in order, each as a whole."""


def read_chunks(
    passages: Iterable[Passage], tokenizer: Tokenizer, chunk_tokens: int, first: int = 0
) -> Iterator[Chunk]:
    """Encode passages lazily into chunks of `chunk_tokens`, the last one perhaps shorter.

    Args:
        first: stream position of the first token.
    """
    ids: list[int] = []
    entries: list[Entry] = []
    for batch in _batches(passages):
        encoded = tokenizer.encode_batch([passage.text for passage in batch])
        for passage, passage_ids in zip(batch, encoded, strict=True):
            if not passage_ids:  # a tokenizer may drop what it has no token for
                continue
            entry = Entry(first + len(ids), passage_ids, passage.place)
            entries.append(entry)
            ids += passage_ids
            while len(ids) >= chunk_tokens:
                yield Chunk(first, ids[:chunk_tokens], entries)
                ids = ids[chunk_tokens:]
                first += chunk_tokens
                entries = [entry] if ids else []
    if ids:
        yield Chunk(first, ids, entries)


def count_tokens(passages: Iterable[Passage], tokenizer: Tokenizer) -> int:
    """Count the tokens of passages, lazily."""
    return sum(
        len(ids)
        for batch in _batches(passages)
        for ids in tokenizer.encode_batch([passage.text for passage in batch])
    )


def _sentences(passage: Passage) -> Iterator[Passage]:
    """Cut a long passage after sentences, where tokens begin anew; all pieces keep its place."""
    start = 0
    for match in _SENTENCE_END.finditer(passage.text):
        if match.end() - start >= _SENTENCE_CHARS:
            yield Passage(passage.text[start : match.end()], passage.place)
            start = match.end()
    yield Passage(passage.text[start:], passage.place) if start else passage


def _batches(passages: Iterable[Passage]) -> Iterator[list[Passage]]:
    """Group passages: large enough to spread the cost of a call, small enough to read on."""
    batch, num_chars = [], 0
    for passage in (piece for whole in passages for piece in _sentences(whole)):
        batch.append(passage)
        num_chars += len(passage.text)
        if num_chars >= _BATCH_CHARS or len(batch) >= _BATCH_PASSAGES:
            yield batch
            batch, num_chars = [], 0
    if batch:
        yield batch


def _is_control(token: dict[str, Any]) -> bool:
    return token["special"] or re.fullmatch(r"[<\[{].+[>\]}]", token["content"]) is not None


def _without_added_space(spec: Any) -> Any:
    """Remove the steps of a tokenizer.json that put a space before each text or take it off."""
    if isinstance(spec, list):
        changed = [_without_added_space(item) for item in spec]
        return [
            new for old, new in zip(spec, changed, strict=True) if new is not None or old is None
        ]
    if not isinstance(spec, dict):
        return spec
    kind = spec.get("type")
    if kind == "Prepend" or (kind == "Strip" and spec.get("content") == " "):
        return None
    spec = {
        key: value if key in ("vocab", "merges") else _without_added_space(value)
        for key, value in spec.items()
    }
    if kind == "Metaspace":
        spec["prepend_scheme"] = "never"
    if "add_prefix_space" in spec:
        spec["add_prefix_space"] = False
    return spec


def _well_formed(text: str) -> str:
    """Replace lone surrogates, which `tokenizers` refuses, by U+FFFD."""
    return text if text.isascii() else re.sub("[\ud800-\udfff]", "\ufffd", text)
