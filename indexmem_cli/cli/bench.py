"""`indexmem bench`: measure a model on this machine."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from indexmem_cli.cli import options
from indexmem_cli.cli.noise import hush_libraries
from indexmem_cli.config import DEFAULT_MODEL, parse_size
from indexmem_cli.errors import ConfigError

bench = typer.Typer(rich_markup_mode=None)


@bench.callback()
def _bench() -> None:
    """Measure a model: what it finds, reads and refuses, and how fast.

    \b
    Examples:
      indexmem bench model --quick
      indexmem bench model --data corpus/ --json
    """


@bench.command()
def model(
    measured: options.Model = DEFAULT_MODEL,
    full: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="The full weights of a quantised model, to measure beside it."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Held-out texts and questions: prose/ and qa/dev/."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Append the rows to DIR/model.jsonl. Default in a checkout: benchmarks/results.",
        ),
    ] = None,
    count: Annotated[
        int, typer.Option(metavar="NUMBER", min=10, help="Questions of each kind.")
    ] = 300,
    lengths: Annotated[
        str, typer.Option(metavar="TOKENS,...", help="Texts that facts are hidden in.")
    ] = "512,1k,2k,4k",
    quick: Annotated[
        bool, typer.Option("--quick", help="Few questions, texts up to 1k tokens: two minutes.")
    ] = False,
    threads: Annotated[int, typer.Option(metavar="NUMBER", min=1, help="CPU threads.")] = 2,
    device: options.Device = "cpu",
    seed: Annotated[int, typer.Option(metavar="NUMBER", help="Seed of all drawing.")] = 0,
    as_json: options.Json = False,
) -> None:
    """Measure full and quantised weights beside each other and beside no model at all.

    Of a model with full weights, int8 ones are made on the way. Without --data, facts are hidden
    in the example book and in Python's own code, and questions of the data sets are left out.

    \b
    Examples:
      indexmem bench model --quick
      indexmem bench model --model indexmem-mini --full runs/mini/model --data corpus/ --json
    """
    if data is not None and not data.is_dir():
        raise ConfigError(f"the data folder does not exist: {data}", "leave --data out")
    hush_libraries(False)
    from indexmem_cli.bench.model import BenchConfig, bench_model
    from indexmem_cli.bench.rows import IN_CHECKOUT, RESULTS, append_row
    from indexmem_cli.render import show_json, show_measures

    sizes = tuple(parse_size(length) for length in lengths.split(","))
    config = BenchConfig(
        measured, full, data, count, sizes, threads=threads, device=device, seed=seed
    )
    if quick:
        sizes = tuple(size for size in sizes if size <= 1024) or sizes
        config = replace(config, count=min(count, 20), lengths=sizes, windows=8, repeats=1)
    folder = out or (RESULTS if IN_CHECKOUT else None)
    rows = []
    for event in bench_model(config):
        if not isinstance(event, dict):  # a notice
            typer.echo(f"note: {event.message}", err=True)
            continue
        rows.append(event)
        typer.echo(f"{event['weights']}: {event['task']}: {event['measure']}", err=True)
        if folder is not None:
            append_row(folder / "model.jsonl", event)
    if as_json:
        show_json({"schema": 1, "rows": rows})
    else:
        show_measures(rows)


@bench.command()
def card(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Model folder with README.md.")],
    rows: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Rows of `bench model`. Default: those of the checkout."),
    ] = None,
    log: Annotated[
        Path | None, typer.Option(metavar="FILE", help="log.jsonl of the training run.")
    ] = None,
) -> None:
    """Fill the measured parts of a model card, and ask its ten example questions.

    A part stands between <!-- NAME --> and <!-- /NAME -->: model, scores, examples, and with --log
    training. Run it in a checkout: the questions are about its examples.

    \b
    Examples:
      indexmem bench card models/indexmem-mini
      indexmem bench card models/indexmem-mini --log runs/mini/log.jsonl
    """
    hush_libraries(False)
    from indexmem_cli.bench import card as parts
    from indexmem_cli.bench.rows import IN_CHECKOUT, RESULTS, read_rows
    from indexmem_cli.render import markdown_measures

    if not IN_CHECKOUT:
        raise ConfigError("the card's questions need the examples", "run it in a checkout")
    found = parts.newest_rows(read_rows(rows or RESULTS / "model.jsonl"), folder.resolve().name)
    scores = [parts.describe_origin(found), markdown_measures(found), parts.describe_depths(found)]
    wanted = {
        "model": lambda: parts.describe_model(folder),
        "scores": lambda: "\n\n".join(scores),
        "examples": lambda: parts.ask_examples(str(folder)),
    }
    if log is not None:
        wanted["training"] = lambda: parts.describe_training(log)
    parts.write_parts(folder / "README.md", wanted)
    typer.echo(folder / "README.md")
