"""The options that more than one command takes, and how they become configuration."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from indexmem_cli.config import (
    DEFAULT_MODEL,
    DTYPES,
    FOCUS,
    POLICIES,
    QUANTS,
    MemoryConfig,
    ModelConfig,
    ReadConfig,
    parse_pages,
    parse_size,
)
from indexmem_cli.errors import ConfigError

Budget = Annotated[
    str | None,
    typer.Option(
        "-b",
        "--budget",
        metavar="TOKENS",
        envvar="INDEXMEM_BUDGET",
        help="Tokens of the document kept in memory, such as 4k; 4k unless the model's window "
        "is smaller.",
    ),
]
Chunk = Annotated[
    str | None,
    typer.Option(metavar="TOKENS", help="Tokens read at a time; derived from the model if left."),
]
Policy = Annotated[
    str | None,
    typer.Option(metavar="RULE", help=f"What decides what is kept: {', '.join(POLICIES)}."),
]
Span = Annotated[
    int, typer.Option(metavar="TOKENS", help="Neighbours kept together; an odd number.")
]
Recall = Annotated[
    bool,
    typer.Option(
        "--recall/--no-recall",
        help="Look passages up on disk and read them again for the question.",
    ),
]
Focus = Annotated[
    bool, typer.Option("--focus", help="Read with the question in mind: --policy question.")
]
AnswerFrom = Annotated[
    str | None,
    typer.Option(
        "--answer-from",
        metavar="TOKENS",
        help="Of the tokens kept, answer from those the question attends to most; what the model "
        "asks for if left, else all.",
    ),
]
Model = Annotated[
    str,
    typer.Option(
        "-m",
        "--model",
        metavar="MODEL",
        envvar="INDEXMEM_MODEL",
        help=f"A local folder, a Hugging Face id, or {DEFAULT_MODEL}, which comes with indexmem.",
    ),
]
Quant = Annotated[
    str, typer.Option(metavar="FORM", help=f"Quantisation of the weights: {', '.join(QUANTS)}.")
]
Dtype = Annotated[
    str, typer.Option(metavar="TYPE", help=f"Number format to compute in: {', '.join(DTYPES)}.")
]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda, cuda:1 or mps.")]
Offline = Annotated[
    bool,
    typer.Option("--offline", envvar="HF_HUB_OFFLINE", help="Never open a network connection."),
]
Pages = Annotated[
    str | None,
    typer.Option(metavar="RANGES", help="Only these pages, counted from 1: 10-40 or 1,5,10-."),
]
Encoding = Annotated[
    str | None, typer.Option(metavar="NAME", help="Encoding of text files; detected if left out.")
]
PasswordFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="File whose first line is the password of encrypted PDFs."),
]
Include = Annotated[
    list[str] | None,
    typer.Option(metavar="PATTERN", help="Only files of a folder that match; may be repeated."),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(metavar="PATTERN", help="No files of a folder that match; may be repeated."),
]
Save = Annotated[
    bool,
    typer.Option(
        "--save/--no-save",
        help="Keep what was read for the next question. It holds the text: not for secrets.",
    ),
]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="Read again, and replace what was saved before.")
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document instead of text for people.")
]


def read_config(
    pages: str | None,
    encoding: str | None,
    password_file: Path | None,
    include: list[str] | None,
    exclude: list[str] | None,
) -> ReadConfig:
    """Check the options that say what to read.

    Raises:
        ConfigError: a page selection or encoding is not one, or the password file is unreadable.
    """
    return ReadConfig(
        pages=parse_pages(pages) if pages else (),
        encoding=_check_encoding(encoding),
        password=_read_password(password_file),
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
    )


def memory_config(
    budget: str | None,
    chunk: str | None = None,
    policy: str | None = None,
    span: int = MemoryConfig.span_tokens,
    seed: int = MemoryConfig.seed,
    answer_from: str | None = None,
    recall: bool = MemoryConfig.recall,
    focus: bool = False,
) -> MemoryConfig:
    """Check the options that say what to keep.

    Raises:
        ConfigError: a size or a choice is wrong.
    """
    if focus and policy not in (None, FOCUS):
        raise ConfigError(f"--focus and --policy {policy} contradict each other", "leave one out")
    return MemoryConfig(
        budget_tokens=parse_size(budget) if budget is not None else None,
        chunk_tokens=parse_size(chunk) if chunk is not None else None,
        policy=FOCUS if focus else policy,
        recall=recall,
        span_tokens=span,
        seed=seed,
        answer_from_tokens=parse_size(answer_from) if answer_from is not None else None,
    )


def model_config(model: str, quant: str, dtype: str, device: str, offline: bool) -> ModelConfig:
    """Check the options that say which model answers.

    Raises:
        ConfigError: a choice is wrong.
    """
    if offline:
        # The hub's client reads this once, when it is imported.
        os.environ["HF_HUB_OFFLINE"] = "1"
    return ModelConfig(model=model, quant=quant, dtype=dtype, device=device, offline=offline)


def _check_encoding(encoding: str | None) -> str | None:
    try:
        "".encode(encoding or "utf-8")
    except LookupError:
        raise ConfigError(
            f"unknown encoding: {encoding!r}", "write it as utf-8, cp1252 or latin-1"
        ) from None
    return encoding


def _read_password(path: Path | None) -> str | None:
    """Return the first line of the file, without its line end."""
    if path is None:
        return None
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"the password file {path} cannot be read: {reason}") from error
    if not lines:
        raise ConfigError(f"the password file {path} is empty", "write the password on line 1")
    return lines[0]


def is_path(text: str) -> bool:
    """Say whether the text names something that exists."""
    try:
        return Path(text).exists()
    except OSError:  # longer than a name may be
        return False


def stdin_of(sources: Sequence[str]) -> BinaryIO | None:
    """Return standard input if the sources name it, so that nothing else ever reads it."""
    return sys.stdin.buffer if "-" in sources else None
