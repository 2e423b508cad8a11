"""What a session tells its caller, in order: all that rendering knows.

Notice*  Loaded  Progress*  TokenText*  Answer
"""

from dataclasses import asdict, dataclass, field
from typing import Any

LEAST_SUPPORT = 0.5
NO_LOSS = frozenset({"ignored", "binary", "generated", "not a file", "not selected"})
"""Reasons for which a file of a folder may be left out with nothing lost."""


@dataclass(frozen=True)
class Notice:
    """Something the user should know although nothing failed."""

    message: str


@dataclass(frozen=True)
class ModelInfo:
    """The model that answers, as it was loaded."""

    id: str
    revision: str
    """Commit of a hub model; for a folder a hash of its config and its weight files' heads."""
    quant: str
    """none, int8, nf4; int8-weights (or nf4-): stored so, and running as plain weights."""
    dtype: str
    device: str
    window_tokens: int
    """Longest context the model was trained for."""
    kv_dtype: str = "model"
    """model: kept keys and values are of the dtype computed in; int8: rows with a scale each."""


@dataclass(frozen=True)
class Loaded:
    """The model is in memory."""

    model: ModelInfo
    load_s: float


@dataclass(frozen=True)
class Progress:
    """A chunk was read."""

    source: str
    tokens_read: int
    fraction: float | None
    """Share of all sources read so far, in [0, 1]; None when the length is not known (a pipe)."""
    elapsed_s: float


@dataclass(frozen=True)
class TokenText:
    """The next piece of the answer; never half a character."""

    text: str


@dataclass(frozen=True)
class Source:
    """A place of the document that the answer rests on. Pages and lines count from 1."""

    file: str
    page: int | None
    """Index of the page, from 1; None where there are no pages."""
    page_label: str | None
    """The page number printed in the document, where it has labels."""
    line_start: int
    line_end: int
    """Lines of the file, or of the page where there are pages; both ends included."""
    weight: float
    """Share in [0, 1] of the answer's attention to the document that fell here."""
    quote: str
    """What stands here, white space as single spaces; `…` where it is cut off."""
    unit: str = "line"
    """What `line_start` and `line_end` count: line | row | message | paragraph."""
    member: str | None = None
    """Part of the file: a chapter, a heading, a channel, the subject of a mail."""
    author: str | None = None
    time: str | None = None
    """When a message was written, as `2024-03-05 14:02`; in a recording, `00:14:02`."""
    symbol: str | None = None
    """Function or class of source code, as `Reader.read`."""
    holds: float = 0.0
    """Share in [0, 1] of the answer's words, rare ones counting more, that stand here and in no
    source before this one."""
    quote_start: int = 0
    """Characters from the beginning of `line_start`, as it was read, to the quotation's first."""
    quote_end: int = 0
    """The same to the end of its last; it may lie in a later line."""


@dataclass(frozen=True)
class RecalledBlock:
    """A block of the text that was read again for the question. Pages and lines count from 1."""

    number: int
    """Of the block in the archive, from 0."""
    file: str
    page: int | None
    page_label: str | None
    line_start: int
    line_end: int
    tokens: int
    odds: float
    """How likely the gate thought it to hold the answer, in (0, 1)."""
    unit: str = "line"
    """This and what follows as in `Source`."""
    member: str | None = None
    author: str | None = None
    time: str | None = None
    symbol: str | None = None


@dataclass(frozen=True)
class RecallRound:
    """One look into the archive."""

    query: str
    blocks: tuple[RecalledBlock, ...]
    """What it brought, in the order of the text; nothing if the gate let nothing through."""


@dataclass(frozen=True)
class Coverage:
    """What was read of what was asked for."""

    tokens_total: int
    tokens_read: int
    files_read: int
    files_skipped: dict[str, int]
    """Number of files not read, by reason (binary, ignored, generated, too large, unreadable)."""
    pages_total: int
    pages_read: int
    pages_without_text: tuple[str, ...]
    """Pages of no text, as `file p. 12`."""
    pages_not_selected: int = 0
    messages_read: int = 0
    messages_not_selected: int = 0

    @property
    def complete(self) -> bool:
        """Whether everything that was asked for was read.

        Files of a folder that are no text to begin with, or are not meant to be read, do not count.
        """
        skipped = sum(n for why, n in self.files_skipped.items() if why not in NO_LOSS)
        return self.tokens_read == self.tokens_total and not self.pages_without_text and not skipped


@dataclass(frozen=True)
class MemoryUse:
    """What was kept, against what a full cache would have cost."""

    policy: str
    budget_tokens: int
    kv_tokens: int
    """Tokens kept at the end of reading, per layer and head."""
    kv_bytes: int
    full_kv_tokens: int
    full_kv_bytes: int
    process_peak_bytes: int
    gpu_peak_bytes: int | None
    adapter: str | None = None
    """What chose what was kept, with the policy `learned`: trained | quick."""
    latent_bytes: int = 0
    """Of `kv_bytes`, those of the latent memory of what was evicted."""


@dataclass(frozen=True)
class Remembered:
    """The memory of one source, as an answer used it."""

    source: str
    id: str | None
    """None: it is not saved."""
    tokens: int
    """Tokens of text in it."""
    tokens_reused: int
    """Of these, the tokens that were not read again."""
    saved_bytes: int
    """Bytes on the disk; 0: it is not saved."""


@dataclass(frozen=True)
class Timing:
    """Seconds and rates of each stage."""

    load_s: float
    read_s: float
    read_tokens_per_s: float
    first_token_s: float
    """From the end of reading to the first token of the answer."""
    decode_tokens_per_s: float


@dataclass(frozen=True)
class KeptByLayers:
    """Layers that keep the same tokens, and which."""

    layers: tuple[int, ...]
    runs: tuple[tuple[int, int, float], ...]
    """Spans [first, end) of tokens, and the share of the layer's heads that holds them."""


@dataclass(frozen=True)
class LayerMass:
    """Where the attention of a question goes in one layer; the parts add up to 1."""

    layer: int
    sinks: float
    """The first tokens of the stream."""
    kept: float
    """What else was kept of the text."""
    recent: float
    """The last tokens of the text."""
    recalled: float
    """Passages that were read again."""
    question: float
    """The question's own tokens."""
    memory: float
    """The latent memory of what was evicted."""


@dataclass(frozen=True)
class Explanation:
    """What was kept of a text, and what a question makes of it."""

    tokens: int
    """Of the text, with the prompt's opening."""
    kept: tuple[KeptByLayers, ...]
    attention: tuple[LayerMass, ...]
    """By layer whose cache is kept under a budget."""


@dataclass(frozen=True)
class Answer:
    """The answer, where it comes from, and what it cost. Prints as its text."""

    text: str
    sources: tuple[Source, ...]
    coverage: Coverage
    memory: MemoryUse
    timing: Timing
    model: ModelInfo
    stop: str
    """Why the answer ended: `end` or `length`."""
    notices: tuple[str, ...] = field(default=())
    recall: tuple[RecallRound, ...] | None = None
    """What was looked up and read again, round by round; None without an archive."""
    memories: tuple[Remembered, ...] = ()
    """The memory of each source."""
    explanation: Explanation | None = None
    """What was kept, where that was asked for."""

    @property
    def supported(self) -> bool:
        """Whether at least half of the answer, by its words, stands in its sources."""
        return sum(source.holds for source in self.sources) >= LEAST_SUPPORT

    def __str__(self) -> str:
        return self.text

    def as_json(self) -> dict[str, Any]:
        """Return the answer as plain JSON values; `schema` 1 is stable."""
        data = asdict(self)
        data["coverage"]["complete"] = self.coverage.complete
        text = data.pop("text")
        data["supported"] = self.supported
        if self.memories:
            data["memory"]["id"] = self.memories[0].id
            data["memory"]["reused"] = all(m.tokens_reused == m.tokens for m in self.memories)
        return {"schema": 1, "answer": text, **data}


@dataclass(frozen=True)
class Ingested:
    """All sources are read."""

    memories: tuple[Remembered, ...]
    coverage: Coverage
    read_s: float

    def as_json(self) -> dict[str, Any]:
        """Return it as plain JSON values; `schema` 1 is stable."""
        return {"schema": 1, **asdict(self)}


Event = Notice | Loaded | Progress | TokenText | Answer | Ingested


@dataclass(frozen=True)
class SavedMemory:
    """A saved memory as the list of them shows it."""

    id: str
    name: str | None
    status: str
    """ok | stale (its source changed) | gone (its source is no longer there) | unfinished (reading
    was cut short) | damaged."""
    detail: str
    """What is meant by the status, in words; empty for ok."""
    source: str
    """As the user named it; `-` for a pipe."""
    path: str | None
    files: int
    model: str
    budget_tokens: int
    policy: str
    question: str | None
    """The question that decided what was kept, where one did."""
    tokens: int
    """Tokens of text read."""
    num_bytes: int
    """Bytes on the disk."""
    recall_from: str
    """What passages come back from: text | int8 | int4."""
    latent: str
    """What took in the tokens that were evicted: none | centroids."""
    created_s: float
    used_s: float
    """When it was saved and last used, in seconds since 1970."""


@dataclass(frozen=True)
class FileReport:
    """One file as `inspect` sees it."""

    name: str
    kind: str
    pages: int
    tokens: int
    size_bytes: int
    inner: str | None = None
    """Path inside the folder that was named; None for a file that was named itself."""


@dataclass(frozen=True)
class Inspection:
    """What reading the sources would mean, without loading a model."""

    files: tuple[FileReport, ...]
    coverage: Coverage
    model: str
    budget_tokens: int
    kv_bytes: int
    full_kv_bytes: int
    kv_bytes_per_token: int
    notices: tuple[str, ...] = ()
    """What the user should know of the sources."""

    def as_json(self) -> dict[str, Any]:
        """Return the inspection as plain JSON values; `schema` 1 is stable."""
        return {"schema": 1, **asdict(self)}
