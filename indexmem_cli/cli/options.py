"""The options that more than one command takes, and how they become configuration."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from indexmem_cli.config import (
    DATE_ORDERS,
    DEFAULT_MODEL,
    DTYPES,
    FOCUS,
    KV_DTYPES,
    LATENTS,
    POLICIES,
    QUANTS,
    RECALL_FROM,
    MemoryConfig,
    ModelConfig,
    ReadConfig,
    parse_budget,
    parse_pages,
    parse_size,
    parse_time,
)
from indexmem_cli.errors import ConfigError


def complete_model(incomplete: str) -> list[str]:
    """Name the models that are here, for the shell."""
    from indexmem_cli.catalogue import find_models

    return [m.name for m in find_models() if not m.problem and m.name.startswith(incomplete)]


def _complete(*choices: str) -> Callable[[str], list[str]]:
    return lambda incomplete: [choice for choice in choices if choice.startswith(incomplete)]


Budget = Annotated[
    str | None,
    typer.Option(
        "-b",
        "--budget",
        metavar="TOKENS",
        envvar="INDEXMEM_BUDGET",
        help="Tokens of the document kept in memory, such as 4k, or auto for the most that fits; "
        "4k unless the model's window is smaller.",
    ),
]
Chunk = Annotated[
    str | None,
    typer.Option(
        metavar="TOKENS",
        envvar="INDEXMEM_CHUNK",
        help="Tokens read at a time; derived from the model if left.",
    ),
]
Policy = Annotated[
    str | None,
    typer.Option(
        metavar="RULE",
        envvar="INDEXMEM_POLICY",
        autocompletion=_complete(*POLICIES),
        help=f"What decides what is kept: {', '.join(POLICIES)}.",
    ),
]
Span = Annotated[
    int,
    typer.Option(
        metavar="TOKENS",
        envvar="INDEXMEM_SPAN",
        help="Neighbours kept together; an odd number.",
    ),
]
Recall = Annotated[
    bool,
    typer.Option(
        "--recall/--no-recall",
        help="Look passages up on disk and read them again for the question.",
    ),
]
Rerank = Annotated[
    bool,
    typer.Option(
        "--rerank/--no-rerank",
        envvar="INDEXMEM_RERANK",
        help="Have the model read the likeliest passages first, to choose among them.",
    ),
]
RecallFrom = Annotated[
    str | None,
    typer.Option(
        "--recall-from",
        metavar="FORM",
        envvar="INDEXMEM_RECALL_FROM",
        autocompletion=_complete(*RECALL_FROM),
        help="What passages come back from: text, read again, or keys and values (int8, int4) that "
        "reading stores, a hundred times as much. Default: text; of a saved memory what it has.",
    ),
]
Latent = Annotated[
    str,
    typer.Option(
        metavar="KIND",
        envvar="INDEXMEM_LATENT",
        autocompletion=_complete(*LATENTS),
        help="What takes in evicted tokens: none, or centroids, paid for out of the budget.",
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
        envvar="INDEXMEM_ANSWER_FROM",
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
        autocompletion=complete_model,
        help=f"A local folder, a Hugging Face id, or {DEFAULT_MODEL}, which comes with indexmem.",
    ),
]
Quant = Annotated[
    str,
    typer.Option(
        metavar="FORM",
        envvar="INDEXMEM_QUANT",
        autocompletion=_complete(*QUANTS),
        help=f"Quantisation of the weights: {', '.join(QUANTS)}.",
    ),
]
KvDtype = Annotated[
    str,
    typer.Option(
        metavar="TYPE",
        envvar="INDEXMEM_KV_DTYPE",
        autocompletion=_complete(*KV_DTYPES),
        help="Keys and values that are kept: as computed (model), or int8.",
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        metavar="TYPE",
        envvar="INDEXMEM_DTYPE",
        autocompletion=_complete(*DTYPES),
        help=f"Number format to compute in: {', '.join(DTYPES)}.",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        metavar="DEVICE",
        envvar="INDEXMEM_DEVICE",
        help="auto, cpu, cuda, cuda:1, mps, or all: layers spread over every GPU, which auto does "
        "for a model larger than one.",
    ),
]
Offline = Annotated[
    bool,
    typer.Option(
        "--offline/--no-offline",
        envvar=["INDEXMEM_OFFLINE", "HF_HUB_OFFLINE"],
        help="Never open a network connection.",
    ),
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
MaxTokens = Annotated[
    int, typer.Option(metavar="TOKENS", envvar="INDEXMEM_MAX_TOKENS", help="Longest answer.")
]
Extract = Annotated[
    bool,
    typer.Option("--extract", help="Answer with one span of the text, copied word by word."),
]
Temperature = Annotated[
    float,
    typer.Option(
        metavar="NUMBER",
        envvar="INDEXMEM_TEMPERATURE",
        help="0: always the likeliest word; above 0: sample.",
    ),
]
Seed = Annotated[
    int,
    typer.Option(metavar="NUMBER", envvar="INDEXMEM_SEED", help="Seed of all sampling."),
]
Authors = Annotated[
    list[str] | None,
    typer.Option(
        "--author",
        "--from",
        metavar="NAME",
        help="Only messages by this person, a whole name or a word of it; may be repeated.",
    ),
]
Since = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Only messages from then on: 2024-03-05 or with a time."),
]
Until = Annotated[
    str | None, typer.Option(metavar="TIME", help="Only messages up to then, a day included.")
]
DateOrder = Annotated[
    str | None,
    typer.Option(
        metavar="ORDER",
        help=f"Order of dates such as 03/05/24: {', '.join(DATE_ORDERS)}; found out if left out.",
    ),
]
AllowNetwork = Annotated[
    bool, typer.Option("--allow-network", help="Sources may be addresses of the web.")
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Exit with 8 if anything could not be read.")
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document instead of text for people.")
]
Yes = Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")]
RemoveNothing = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")
]


def read_config(
    pages: str | None,
    encoding: str | None,
    password_file: Path | None,
    include: list[str] | None,
    exclude: list[str] | None,
    authors: list[str] | None = None,
    since: str | None = None,
    until: str | None = None,
    date_order: str | None = None,
    allow_network: bool = False,
) -> ReadConfig:
    """Check the options that say what to read.

    Raises:
        ConfigError: a page selection, an encoding or a time is not one, or the password file is
            unreadable.
    """
    return ReadConfig(
        pages=parse_pages(pages) if pages else (),
        encoding=encoding,
        password=read_first_line(password_file, "password") if password_file else None,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        authors=tuple(authors or ()),
        since=parse_time(since) if since else None,
        until=parse_time(until, is_end=True) if until else None,
        date_order=date_order,
        allow_network=allow_network,
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
    recall_from: str | None = None,
    latent: str = MemoryConfig.latent,
    rerank: bool = MemoryConfig.rerank,
) -> MemoryConfig:
    """Check the options that say what to keep.

    Raises:
        ConfigError: a size or a choice is wrong.
    """
    if focus and policy not in (None, FOCUS):
        raise ConfigError(f"--focus and --policy {policy} contradict each other", "leave one out")
    return MemoryConfig(
        budget_tokens=parse_budget(budget),
        chunk_tokens=parse_size(chunk) if chunk is not None else None,
        policy=FOCUS if focus else policy,
        recall=recall,
        rerank=rerank,
        recall_from=recall_from,
        latent=latent,
        span_tokens=span,
        seed=seed,
        answer_from_tokens=parse_size(answer_from) if answer_from is not None else None,
    )


def model_config(
    model: str, quant: str, dtype: str, device: str, offline: bool, kv_dtype: str = "model"
) -> ModelConfig:
    """Check the options that say which model answers.

    Raises:
        ConfigError: a choice is wrong.
    """
    # The hub's client reads this once, when it is imported.
    os.environ["HF_HUB_OFFLINE"] = str(int(offline))
    return ModelConfig(model, quant, dtype, device, offline, kv_dtype)


def read_first_line(path: Path, what: str) -> str:
    """Return the first line of a file that holds a secret, without its line end.

    Raises:
        ConfigError: it cannot be read, or is empty.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"the {what} file {path} cannot be read: {reason}") from error
    if not lines or not lines[0].strip():
        raise ConfigError(f"the {what} file {path} is empty", f"write the {what} on line 1")
    return lines[0]


def begin_imports(context: typer.Context) -> None:
    """Have the model's libraries imported meanwhile, where the process is the program's own."""
    if context.obj is not None:
        context.obj()
