"""`indexmem inspect`: what reading the sources would mean, without loading a model."""

from typing import Annotated

import typer

from indexmem_cli.cli import checks, options
from indexmem_cli.cli.noise import hush_libraries
from indexmem_cli.config import DEFAULT_MODEL, ModelConfig


def inspect(
    *,
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE",
            help="Files and folders. - is standard input, which is also read if none is given.",
        ),
    ] = None,
    budget: options.Budget = None,
    model: options.Model = DEFAULT_MODEL,
    quant: options.Quant = ModelConfig.quant,
    dtype: options.Dtype = ModelConfig.dtype,
    device: options.Device = ModelConfig.device,
    offline: options.Offline = ModelConfig.offline,
    pages: options.Pages = None,
    encoding: options.Encoding = None,
    password_file: options.PasswordFile = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    authors: options.Authors = None,
    since: options.Since = None,
    until: options.Until = None,
    date_order: options.DateOrder = None,
    allow_network: options.AllowNetwork = False,
    as_json: options.Json = False,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="List every file and every page without text.")
    ] = False,
) -> None:
    """Show files, pages and tokens, what is skipped, and the memory that reading takes.

    \b
    Examples:
      indexmem inspect book.pdf --budget 4k
      indexmem inspect ./service --exclude "tests/" --json
    """
    sources = checks.sources_or_pipe(sources, "indexmem inspect book.pdf")
    chosen = (authors, since, until, date_order, allow_network and not offline)
    read = options.read_config(pages, encoding, password_file, include, exclude, *chosen)
    memory = options.memory_config(budget=budget)
    backbone = options.model_config(model, quant, dtype, device, offline)

    hush_libraries(verbose)
    from indexmem_cli import inspecting
    from indexmem_cli.render import show_inspection, show_json

    stdin = checks.stdin_of(sources)
    inspection = inspecting.inspect(sources, read=read, memory=memory, model=backbone, stdin=stdin)
    if as_json:
        show_json(inspection.as_json())
    else:
        show_inspection(inspection, verbose)
