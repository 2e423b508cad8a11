"""`indexmem bench quality`: right answers by task, length, method and budget."""

from pathlib import Path
from typing import Annotated

import typer

from indexmem_cli.cli import options
from indexmem_cli.cli.noise import hush_libraries
from indexmem_cli.config import DEFAULT_MODEL, ModelConfig, parse_size
from indexmem_cli.errors import ConfigError


def quality(
    measured: options.Model = DEFAULT_MODEL,
    suite: Annotated[str, typer.Option(metavar="NAME", help="ruler, needle, qa, or one added.")] = (
        "ruler"
    ),
    tasks: Annotated[
        str, typer.Option(metavar="NAME,...", help="Of the suite. Default: all.")
    ] = "",
    methods: Annotated[
        str, typer.Option(metavar="NAME,...", help="full, recall, passages, policies.")
    ] = "",
    budgets: Annotated[
        str, typer.Option(metavar="TOKENS,...", help="Kept: 1k, or a share of the length: 25%.")
    ] = "25%",
    lengths: Annotated[
        str, typer.Option(metavar="TOKENS,...", help="Of a text with its question and answer.")
    ] = "1k",
    count: Annotated[
        int, typer.Option(metavar="NUMBER", min=1, help="Samples of each task and length.")
    ] = 10,
    full: Annotated[
        bool,
        typer.Option(
            "--full", help="The long run: all methods, 50, 25, 12.5 and 6.25 %, 200 samples. A day."
        ),
    ] = False,
    add: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A Python file that adds tasks or methods. It is run."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Held-out books and questions: prose/, qa/dev/."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Append the rows to DIR/quality.jsonl. Default in a checkout: benchmarks/results.",
        ),
    ] = None,
    chunk: Annotated[str, typer.Option(metavar="TOKENS", help="Read at a time.")] = "128",
    threads: Annotated[int, typer.Option(metavar="NUMBER", min=1, help="CPU threads.")] = 1,
    device: options.Device = "cpu",
    seed: Annotated[int, typer.Option(metavar="NUMBER", help="Seed of all drawing.")] = 0,
    as_json: options.Json = False,
) -> None:
    """Compare ways to remember a text: the tasks of RULER made offline, or facts at ten depths.

    A run that was cut short goes on where it stopped, and what has a row of the same code and model
    is not measured again. A method that cannot take a length is left empty.

    \b
    Examples:
      indexmem bench quality --methods full,recency,keydiff,recall --count 5
      indexmem bench quality --suite needle --lengths 1k,4k,16k --budgets 512 --count 50 --json
    """
    hush_libraries(False)
    from indexmem_cli.bench.quality import (
        FULL_COUNT,
        FULL_SHARES,
        QualityConfig,
        bench_quality,
        tabulate,
    )
    from indexmem_cli.bench.rows import IN_CHECKOUT, RESULTS, print_table
    from indexmem_cli.bench.suites import load_additions
    from indexmem_cli.render import show_json

    for path in add or ():
        load_additions(path)
    config = QualityConfig(
        ModelConfig(measured, device=device),
        suite=suite,
        tasks=_names(tasks),
        methods=() if full else _names(methods),
        lengths=tuple(map(parse_size, _names(lengths))),
        budgets=FULL_SHARES if full else tuple(map(parse_kept, _names(budgets))),
        count=FULL_COUNT if full else count,
        chunk_tokens=parse_size(chunk),
        threads=threads,
        seed=seed,
        data=data,
    )
    rows = []
    for event in bench_quality(config, out or (RESULTS if IN_CHECKOUT else None)):
        if isinstance(event, dict):
            rows.append(event)
            continue
        cell = event.cell
        said = f"{event.done}/{event.total}  {cell.task} {cell.length:,} {cell.method}"
        said += f" {cell.budget:,}  about {event.remaining_s / 60:.0f} min left"
        typer.echo(said, err=True)
    if as_json:
        show_json({"schema": 1, "rows": rows})
    else:
        table = tabulate(rows)
        print_table(table, list(dict.fromkeys(name for line in table for name in line)))


def parse_kept(text: str) -> int | float:
    """Read a budget: a number of tokens, or a share such as `12.5%`.

    Raises:
        ConfigError: it is neither, or not between 0 and 100 %.
    """
    if not text.endswith("%"):
        return parse_size(text)
    try:
        share = float(text[:-1]) / 100
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise ConfigError(f"not a share: {text!r}", "write it as 25% or 12.5%")
    return share


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
