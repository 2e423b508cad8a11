"""`indexmem chat`: a conversation that never runs out of context."""

import sys
from typing import Annotated

import typer

from indexmem_cli.cli import options
from indexmem_cli.cli.noise import hush_libraries
from indexmem_cli.config import DEFAULT_MODEL, AnswerConfig, MemoryConfig, ModelConfig
from indexmem_cli.errors import ConfigError


def chat(
    context: typer.Context,
    *,
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE", help="Files, folders and saved memories to look through too."
        ),
    ] = None,
    continue_last: Annotated[
        bool, typer.Option("-c", "--continue", help="Go on with the last session.")
    ] = False,
    session: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Go on with this session; its first letters will do."),
    ] = None,
    budget: options.Budget = None,
    chunk: options.Chunk = None,
    policy: options.Policy = None,
    span: options.Span = MemoryConfig.span_tokens,
    answer_from: options.AnswerFrom = None,
    rerank: options.Rerank = MemoryConfig.rerank,
    recall_from: options.RecallFrom = None,
    latent: options.Latent = MemoryConfig.latent,
    model: options.Model = DEFAULT_MODEL,
    quant: options.Quant = ModelConfig.quant,
    dtype: options.Dtype = ModelConfig.dtype,
    kv_dtype: options.KvDtype = ModelConfig.kv_dtype,
    device: options.Device = ModelConfig.device,
    offline: options.Offline = ModelConfig.offline,
    save: Annotated[
        bool,
        typer.Option(
            "--save/--no-save",
            help="Keep what is said, to go on another day. It holds the text: not for secrets.",
        ),
    ] = True,
    max_tokens: options.MaxTokens = AnswerConfig.max_tokens,
    temperature: options.Temperature = AnswerConfig.temperature,
    seed: options.Seed = AnswerConfig.seed,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document for each answer, on one line.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("-q", "--quiet", help="The answers and nothing else.")
    ] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Quote the sources.")] = False,
    stats: Annotated[
        bool, typer.Option("--stats/--no-stats", help="What each answer cost. Default: no.")
    ] = False,
    show_sources: Annotated[
        bool, typer.Option("--sources/--no-sources", help="Where answers stand. Default: yes.")
    ] = True,
) -> None:
    """Talk, about documents or anything, for as long as you like.

    All that was said is read into one memory of a fixed size; what is needed again is looked up.

    Through a pipe, every line is a question, and the answers go to standard output.

    \b
    Examples:
      indexmem chat book.pdf --budget 4k
      echo "Who inherits the mill?" | indexmem chat book.pdf
    """
    if continue_last and session is not None:
        raise ConfigError("--continue and --session name two sessions", "leave one out")
    resumed = "" if continue_last else session
    if resumed is not None and not save:
        raise ConfigError("a session that goes on is saved", "leave --no-save out")
    how = (budget, chunk, policy, span, seed, answer_from)
    memory = options.memory_config(*how, recall_from=recall_from, latent=latent, rerank=rerank)
    backbone = options.model_config(model, quant, dtype, device, offline, kv_dtype)
    answering = AnswerConfig(max_tokens=max_tokens, temperature=temperature, seed=seed)

    hush_libraries(verbose)
    options.begin_imports(context)
    from indexmem_cli import conversation
    from indexmem_cli.cli.editor import is_terminal
    from indexmem_cli.cli.talk import Talk
    from indexmem_cli.render import View

    view = View(
        progress=not quiet,
        notices=not quiet,
        sources=show_sources and not quiet,
        stats=stats and not quiet,
        verbose=verbose,
    )
    if sys.stdin is None:
        raise ConfigError("there is no standard input to read questions from")
    opened = conversation.open_conversation(
        sources or [],
        memory=memory,
        model=backbone,
        save=save,
        resumed=resumed,
        given=frozenset(
            name
            for name in ("model", "budget")
            if (source := context.get_parameter_source(name)) and source.name == "COMMANDLINE"
        ),
    )
    Talk(opened, answering, view, as_json, quiet, is_terminal()).run()
