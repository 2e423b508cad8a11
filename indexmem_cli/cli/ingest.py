"""`indexmem ingest`: read the sources now, ask later."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from indexmem_cli.cli import checks, options
from indexmem_cli.cli.interrupts import Interrupts
from indexmem_cli.cli.noise import hush_libraries
from indexmem_cli.config import DEFAULT_MODEL, MemoryConfig, ModelConfig, StoreConfig

if TYPE_CHECKING:
    from indexmem_cli.events import Event


def ingest(
    *,
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE",
            help="Files and folders, each for itself. - is standard input, which is also read if "
            "none is given.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="A name to ask it by, for one source.")
    ] = None,
    budget: options.Budget = None,
    chunk: options.Chunk = None,
    policy: options.Policy = None,
    span: options.Span = MemoryConfig.span_tokens,
    recall_from: options.RecallFrom = None,
    latent: options.Latent = MemoryConfig.latent,
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
    fresh: options.Fresh = False,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Read on the workers of this Ray cluster, such as auto or 10.0.0.1:6379; they "
            "must see the same files.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count what would be read, and read nothing.")
    ] = False,
    as_json: options.Json = False,
    quiet: Annotated[
        bool, typer.Option("-q", "--quiet", help="The ids of the memories and nothing else.")
    ] = False,
    strict: options.Strict = False,
) -> None:
    """Read documents into saved memories, for questions to come.

    A reading that is cut short goes on from its last checkpoint when the command is given again.

    \b
    Examples:
      indexmem ingest book.pdf --name mill
      indexmem ingest ./service notes.md --dry-run
      indexmem ingest library/*.pdf --ray auto
    """
    sources = checks.sources_or_pipe(sources, "indexmem ingest book.pdf")
    read = options.read_config(pages, encoding, password_file, include, exclude)
    memory = options.memory_config(
        budget, chunk, policy, span, recall_from=recall_from, latent=latent
    )
    backbone = options.model_config(model, quant, dtype, device, offline, kv_dtype)
    store = StoreConfig(fresh=fresh, name=name)

    hush_libraries(verbose=False)
    from indexmem_cli import inspecting, session
    from indexmem_cli.render import show_inspection, show_json
    from indexmem_cli.render.ingestion import show_ingestion

    stdin = checks.stdin_of(sources)
    if dry_run:
        found = inspecting.inspect(sources, read=read, memory=memory, model=backbone, stdin=stdin)
        show_json(found.as_json()) if as_json else show_inspection(found, verbose=False)
        return
    if ray is not None:
        from indexmem_cli import cluster

        events = cluster.ingest(
            sources, address=ray, read=read, memory=memory, model=backbone, store=store
        )
    else:
        events = session.ingest(
            sources, stdin=stdin, read=read, memory=memory, model=backbone, store=store
        )
    done = show_ingestion(_until_interrupted(events, goes_on=not fresh), quiet, as_json)
    if strict:
        checks.insist_on_all(done.coverage, "`indexmem inspect` says what is missing")


def _until_interrupted(events: "Iterator[Event]", goes_on: bool) -> "Iterator[Event]":
    """Pass events on; at Ctrl-C let the chunk end and be saved first."""
    interrupts = Interrupts()
    with interrupts.caught():
        yield from interrupts.until_stopped(events)
    if interrupts.is_stopping:
        if goes_on:
            typer.echo("what was read is saved: the same command goes on from there", err=True)
        raise KeyboardInterrupt
