"""The options of each act as frozen, checked dataclasses. Imports nothing heavy."""

import os
import re
import time
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from indexmem_cli.errors import ConfigError

DEFAULT_MODEL = "indexmem-mini"
ADAPTER_FILE = "adapter.safetensors"  # beside the weights of the model it was trained for
DEFAULT_BUDGET_TOKENS = 4096
LEAST_BUDGET_TOKENS = 16
"""Below it the first tokens and the prompt's opening, which always stay, leave no choice."""
NOT_STATED = "Not stated in the document."
"""What models are asked to answer where the document does not say."""
FOCUS = "question"
"""The policy that has to know the question before reading."""
LEARNED = "learned"
"""The policy that needs an adapter."""
UNFOCUSED = "keydiff"
"""The policy for a reading that is asked later, for a model without an adapter."""
BY_MODEL = "auto"
"""In place of a policy: `LEARNED` for a model with a trained adapter, else `UNFOCUSED`."""
ALL_GPUS = "all"
"""The device that is every GPU there is."""
QUANTS = ("auto", "none", "int8", "nf4")
DTYPES = ("auto", "float32", "bfloat16", "float16")
KV_DTYPES = ("model", "int8")
TEXT = "text"
"""What passages are recalled from: their text, which is read again."""
RECALL_FROM = (TEXT, "int8", "int4")
NO_LATENT, CENTROIDS = LATENTS = ("none", "centroids")
"""What takes in evicted tokens: nothing, or means of clusters of them."""
AUTO = "auto"
POSITIONS = ("auto", "original", "compact")
DATE_ORDERS = ("dmy", "mdy", "ymd")
POLICIES = {
    "question": "keeps what the question attends to (the question is known before reading)",
    "learned": "keeps what a net trained for this model expects to be asked (its adapter)",
    "recency": "keeps the first and the most recent tokens (StreamingLLM)",
    "knorm": "keeps keys of small norm",
    "keydiff": "keeps keys unlike the mean key",
    "snapkv": "keeps what the last queries of each chunk attend to",
    "tova": "keeps what the last token of each chunk attends to",
    "h2o": "keeps what has received most attention so far",
    "expected-attention": "keeps what a Gaussian of past queries will attend to",
    "random": "keeps a seeded random sample; the control",
}

_SIZE = re.compile(r"(\d+(?:\.\d+)?)([kKmM]?)")
_SCALE = {"": 1, "k": 1024, "m": 1024 * 1024}


def parse_size(text: str) -> int:
    """Read a number of tokens such as `4096`, `4k`, `1.5k` or `1m` (k = 1024).

    Raises:
        ConfigError: the text is not such a number, or it is not a whole, positive one.
    """
    match = _SIZE.fullmatch(text.strip())
    tokens = Fraction(match[1]) * _SCALE[match[2].lower()] if match else Fraction()
    if tokens < 1 or tokens.denominator != 1:
        raise ConfigError(
            f"not a number of tokens: {text!r}", "write it as 4096, 4k, 1.5k or 1m (k = 1024)"
        )
    return int(tokens)


def parse_budget(text: str | None) -> int | Literal["auto"] | None:
    """Read a budget: a number of tokens, `auto`, or None for what suits the model.

    Raises:
        ConfigError: it is none of them.
    """
    if text is None:
        return None
    return "auto" if text == AUTO else parse_size(text)


def parse_pages(text: str) -> tuple[tuple[int, int], ...]:
    """Read a selection of pages such as `10-40` or `1,5,10-`: inclusive pairs counted from 1.

    An open end is returned as 0.

    Raises:
        ConfigError: the text is not a selection, or a range runs backwards.
    """
    ranges = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:(-)\s*(\d*))?\s*", part)
        first = int(match[1]) if match else 0
        last = first if match and not match[2] else int(match[3] or 0) if match else 0
        if first < 1 or (last and last < first):
            raise ConfigError(f"not a selection of pages: {text!r}", "write it as 10-40 or 1,5,10-")
        ranges.append((first, last))
    return tuple(ranges)


def is_path(text: str | Path) -> bool:
    """Say whether a text names a file or folder; not if it is too long, or forbidden, to ask."""
    return os.path.exists(text)  # noqa: PTH110 (Path.exists raises for those)


def is_folder(text: str | Path) -> bool:
    """Say whether a text names a folder; as `is_path`."""
    return os.path.isdir(text)  # noqa: PTH112 (as above)


def expand_home(text: str) -> Path:
    """Return the path that a text means, with `~` for a home; as it stands if there is none."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 (Path.expanduser raises then)


def parse_time(text: str, is_end: bool = False) -> datetime:
    """Read a date or a time such as `2024-03-05` or `2024-03-05 14:02`.

    Args:
        is_end: return the last moment of the day or the minute that is named, not the first.

    Raises:
        ConfigError: the text is not a time.
    """
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ConfigError(
            f"not a time: {text!r}", "write it as 2024-03-05 or '2024-03-05 14:02'"
        ) from None
    moment = moment.replace(tzinfo=None)
    if not is_end:
        return moment
    is_day = re.fullmatch(r"[\dW-]+", text.strip())
    span = timedelta(days=1) if is_day else timedelta(minutes=1)
    return moment + (span - timedelta(microseconds=1))


def show_time(seconds: float) -> str:
    """Write seconds since 1970 as `2024-03-05T14:02:11Z`."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _check_choice(name: str, value: str | None, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"unknown {name}: {value!r}", f"choose one of: {', '.join(choices)}")


def _check_at_least(name: str, value: float | None, least: float, hint: str | None = None) -> None:
    if value is not None and not value >= least:  # NaN is refused too
        raise ConfigError(f"{name} must be at least {least:g}, not {value:g}", hint)


@dataclass(frozen=True)
class ReadConfig:
    """What to read of the sources, and how."""

    pages: tuple[tuple[int, int], ...] = ()
    """Page ranges counted from 1, both ends included, 0 for an open end. Empty means all."""
    encoding: str | None = None
    """Encoding of text files; None detects it (byte-order mark, UTF-8, then statistics)."""
    password: str | None = None
    """Password of encrypted PDFs."""
    include: tuple[str, ...] = ()
    """Only files of a folder that match one of these patterns (gitignore syntax)."""
    exclude: tuple[str, ...] = ()
    """Never files of a folder that match one of these patterns (gitignore syntax)."""
    authors: tuple[str, ...] = ()
    """Only messages by one of these: a whole name or a word of it, in any case. Empty means all."""
    since: datetime | None = None
    """Only messages from this moment on, by the clock of the source."""
    until: datetime | None = None
    """Only messages up to this moment, by the clock of the source."""
    date_order: str | None = None
    """dmy | mdy | ymd, for dates such as 03/05/24. None finds out."""
    allow_network: bool = False
    """Whether sources may be addresses of the web."""

    def __post_init__(self) -> None:
        try:
            b"x".decode(self.encoding or "utf-8", "replace")
        except (LookupError, UnicodeError) as error:
            raise ConfigError(
                f"unknown encoding: {self.encoding!r}",
                "utf-8, cp1252, utf-16 or another one of Python's",
            ) from error
        if self.date_order is not None:
            _check_choice("order of dates", self.date_order, DATE_ORDERS)
        if self.since and self.until and self.since > self.until:
            raise ConfigError(f"no time is since {self.since} and until {self.until}")


@dataclass(frozen=True)
class ModelConfig:
    """Which model, and in what form it is loaded."""

    model: str = DEFAULT_MODEL
    """A model shipped with the package, a local folder, or a Hugging Face id."""
    quant: str = "auto"
    """auto | none | int8 | nf4. auto quantises large models on a GPU, nothing on a CPU. Weights
    stored by bitsandbytes run as plain ones, unless their own form is named or they are large."""
    dtype: str = "auto"
    """auto | float32 | bfloat16 | float16."""
    device: str = "auto"
    """auto | cpu | cuda | cuda:1 | all | mps. auto is one GPU, and all of them, like `all`, where
    the weights do not fit one."""
    offline: bool = False
    """Never open a network connection."""
    kv_dtype: str = "model"
    """What kept keys and values are stored in. model: the dtype computed in. int8: half of 16 bits,
    with a scale for every token and head."""

    def __post_init__(self) -> None:
        _check_choice("type of keys and values", self.kv_dtype, KV_DTYPES)
        _check_choice("quantisation", self.quant, QUANTS)
        _check_choice("dtype", self.dtype, DTYPES)


@dataclass(frozen=True)
class MemoryConfig:
    """How much is kept while reading, and by which rule."""

    budget_tokens: int | Literal["auto"] | None = None
    """Tokens kept per layer and head, at least 16. None: 4096, or what the model's window allows.
    auto: the most that fits the memory that is free."""
    chunk_tokens: int | None = None
    """Tokens read at a time, at least 1. None: a quarter of the window, at most 2048."""
    policy: str | None = None
    """The scorer that decides what stays: a key of POLICIES. None: `BY_MODEL` with recall, so that
    one reading serves every question, and `FOCUS` without."""
    recall: bool = True
    """Whether passages are looked up in the archive and read again when a question comes."""
    rerank: bool = True
    """Whether the model reads the likeliest passages one by one first, to say which answer."""
    recall_from: str | None = None
    """text | int8 | int4: read the passages again, or bring back their keys and values, which
    reading then writes to the disk in so many bits. None: text; of a saved memory what it holds."""
    latent: str = NO_LATENT
    """none | centroids: the memory of what is evicted, paid for out of the budget."""
    sink_tokens: int = 4
    """First tokens of the stream that always stay, besides the prompt's own opening."""
    recent_tokens: int | None = None
    """Last tokens that always stay. None: an eighth of the budget, at most 64."""
    span_tokens: int = 17
    """Scores are max-pooled over this many neighbours, so that whole phrases stay. Odd."""
    answer_from_tokens: int | None = None
    """Of what was kept, the tokens that an answer is written from: those that the question attends
    to most. For the policy `question`. None: what the model's config asks for, else all."""
    positions: Literal["auto", "original", "compact"] = "auto"
    """auto: the document's own positions in the first half of the trained window, compact ones
    beyond it."""
    seed: int = 0
    """Seed of the random policy."""

    def __post_init__(self) -> None:
        if self.policy is None:
            object.__setattr__(self, "policy", BY_MODEL if self.recall else FOCUS)
        _check_choice("policy", self.policy, (*POLICIES, BY_MODEL))
        _check_choice("position mode", self.positions, POSITIONS)
        _check_choice("latent memory", self.latent, LATENTS)
        if self.recall_from is not None:
            _check_choice("form to recall from", self.recall_from, RECALL_FROM)
        if self.budget_tokens != "auto":
            hint = "it counts tokens: --budget 1k keeps 1,024 of them in every layer"
            _check_at_least("budget", self.budget_tokens, LEAST_BUDGET_TOKENS, hint)
        _check_at_least("chunk", self.chunk_tokens, 1)
        _check_at_least("number of tokens to answer from", self.answer_from_tokens, 1)
        _check_at_least("recent window", self.recent_tokens, 0)
        _check_at_least("number of sinks", self.sink_tokens, 0)
        if self.span_tokens < 1 or self.span_tokens % 2 == 0:
            raise ConfigError(f"span must be an odd number of tokens, not {self.span_tokens}")

    def settled(self, backbone: Any) -> "MemoryConfig":
        """Return it with the policy that `BY_MODEL` comes to for a loaded model.

        Raises:
            ConfigError: keys and values are to be brought back, and the model drops them all.
        """
        if self.recall_from not in (None, TEXT) and None not in backbone.layer_windows:
            raise ConfigError(
                f"--recall-from {self.recall_from}: all layers of this model have a sliding window",
                "leave it out: passages are read again as text",
            )
        if self.policy != BY_MODEL:
            return self
        return replace(self, policy=LEARNED if backbone.reads_by_adapter else UNFOCUSED)


@dataclass(frozen=True)
class StoreConfig:
    """What becomes of a memory on the disk."""

    save: bool = True
    """Look for a saved memory first, and save what was read."""
    fresh: bool = False
    """Read again although there is a saved memory, and replace it."""
    name: str | None = None
    """A name for the memory, to be used in place of its id."""

    def __post_init__(self) -> None:
        if not self.save and (self.fresh or self.name):
            raise ConfigError("what is not saved can have no name and replaces nothing")


@dataclass(frozen=True)
class AnswerConfig:
    """How an answer is generated."""

    max_tokens: int = 256
    """Longest answer, in tokens, at least 1."""
    temperature: float = 0.0
    """0 takes the likeliest token every time; above 0 samples."""
    seed: int = 0
    """Seed of the sampling."""
    extract: bool = False
    """Answer with one span of what was looked up, copied word by word."""
    explain: bool = False
    """Whether to say which tokens were kept, and what the question attends to."""

    def __post_init__(self) -> None:
        _check_at_least("longest answer", self.max_tokens, 1)
        _check_at_least("temperature", self.temperature, 0)
