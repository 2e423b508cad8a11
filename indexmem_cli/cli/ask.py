"""`indexmem ask`: read the sources, answer one question."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from indexmem_cli.cli import checks, options
from indexmem_cli.cli.noise import hush_libraries
from indexmem_cli.config import (
    DEFAULT_MODEL,
    AnswerConfig,
    MemoryConfig,
    ModelConfig,
    StoreConfig,
    is_path,
)
from indexmem_cli.errors import ConfigError


def ask(
    *,
    context: typer.Context,
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE",
            help="Files, folders and saved memories. - is standard input, which is also read if "
            "none is given.",
        ),
    ] = None,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="The question, in quotes.")],
    budget: options.Budget = None,
    chunk: options.Chunk = None,
    recall: options.Recall = MemoryConfig.recall,
    rerank: options.Rerank = MemoryConfig.rerank,
    recall_from: options.RecallFrom = None,
    latent: options.Latent = MemoryConfig.latent,
    focus: options.Focus = False,
    policy: options.Policy = None,
    span: options.Span = MemoryConfig.span_tokens,
    answer_from: options.AnswerFrom = None,
    model: options.Model = DEFAULT_MODEL,
    quant: options.Quant = ModelConfig.quant,
    dtype: options.Dtype = ModelConfig.dtype,
    kv_dtype: options.KvDtype = ModelConfig.kv_dtype,
    device: options.Device = ModelConfig.device,
    offline: options.Offline = ModelConfig.offline,
    pages: options.Pages = None,
    encoding: options.Encoding = None,
    password_file: options.PasswordFile = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    save: options.Save = True,
    fresh: options.Fresh = False,
    authors: options.Authors = None,
    since: options.Since = None,
    until: options.Until = None,
    date_order: options.DateOrder = None,
    allow_network: options.AllowNetwork = False,
    extract: options.Extract = False,
    max_tokens: options.MaxTokens = AnswerConfig.max_tokens,
    temperature: options.Temperature = AnswerConfig.temperature,
    seed: options.Seed = AnswerConfig.seed,
    as_json: options.Json = False,
    stream: Annotated[
        bool, typer.Option("--stream/--no-stream", help="Print the answer as it is written.")
    ] = True,
    quiet: Annotated[
        bool, typer.Option("-q", "--quiet", help="The answer and nothing else.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Quote the sources, show every detail.")
    ] = False,
    stats: Annotated[
        bool | None,
        typer.Option("--stats/--no-stats", help="What was read, and what it cost. Default: yes."),
    ] = None,
    show_sources: Annotated[
        bool | None,
        typer.Option("--sources/--no-sources", help="Where the answer stands. Default: yes."),
    ] = None,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Show what was kept, and what the question attends to."),
    ] = False,
    picture: Annotated[
        Path | None,
        typer.Option("--explain-png", metavar="FILE", help="The same as a picture."),
    ] = None,
    strict: options.Strict = False,
) -> None:
    """Ask one question of documents of any length.

    What was read is saved: the next question reads nothing again, unless the document changed.

    The answer goes to standard output; progress, sources and statistics go to standard error.

    \b
    Examples:
      indexmem ask book.pdf "Who inherits the mill?" --budget 4k
      cat app.log | indexmem ask "Why did it restart?" --json | jq .answer
    """
    named = _check_sources(sources or (), question)
    chosen = (authors, since, until, date_order, allow_network and not offline)
    read = options.read_config(pages, encoding, password_file, include, exclude, *chosen)
    how = (seed, answer_from, recall, focus, recall_from, latent, rerank)
    memory = options.memory_config(budget, chunk, policy, span, *how)
    backbone = options.model_config(model, quant, dtype, device, offline, kv_dtype)
    store = StoreConfig(save=save, fresh=fresh)
    explain = explain or picture is not None
    answering = AnswerConfig(max_tokens, temperature, seed, extract, explain)

    hush_libraries(verbose)
    options.begin_imports(context)
    from indexmem_cli import session
    from indexmem_cli.render import JsonRenderer, Renderer, View, draw_explanation

    view = View(
        stream=stream,
        progress=not quiet,
        notices=not quiet,
        sources=not quiet if show_sources is None else show_sources,
        stats=not quiet if stats is None else stats,
        verbose=verbose,
    )
    stdin = checks.stdin_of(named)
    events = session.ask(
        named,
        question,
        read=read,
        memory=memory,
        model=backbone,
        answer=answering,
        store=store,
        stdin=stdin,
    )
    answer = (JsonRenderer if as_json else Renderer)(view).consume(events)
    if picture is not None and answer.explanation is not None:
        draw_explanation(answer.explanation, picture)
    if strict:
        hint = "the statistics and `indexmem inspect` say what is missing"
        checks.insist_on_all(answer.coverage, hint)


def _check_sources(sources: Sequence[str], question: str) -> Sequence[str]:
    """Return what to read, `-` for a pipe.

    Raises:
        ConfigError: there is no question, or nothing to read.
    """
    if not question.strip():
        raise ConfigError("the question is empty", 'indexmem ask book.pdf "your question"')
    if is_path(question):
        named, asked = [*sources, question], "your question"
        if sources and " " in sources[0] and not is_path(sources[0]):
            asked = named.pop(0)
        shown = shlex.join(named) if len(named) < 4 else "SOURCE..."
        raise ConfigError(
            f"a question is missing: the last argument, {question}, is a file or folder",
            f'indexmem ask {shown} "{asked}"',
        )
    return checks.sources_or_pipe(sources, 'indexmem ask book.pdf "your question"')
