"""`indexmem bench quality`: right answers by task, length, method and budget."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from indexmem_cli.cli import options
from indexmem_cli.cli.noise import hush_libraries
from indexmem_cli.config import DEFAULT_MODEL, ModelConfig, parse_size
from indexmem_cli.errors import ConfigError

if TYPE_CHECKING:
    from indexmem_cli.bench.cells import QualityConfig
    from indexmem_cli.bench.quality import Estimate

Data = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Held-out books and questions: prose/, qa/dev/."),
]


def quality(
    measured: options.Model = DEFAULT_MODEL,
    suite: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help="ruler, needle, qa, long-qa, conversation, loss, writing, one added, or all. "
            "Default: ruler.",
        ),
    ] = "",
    tasks: Annotated[
        str, typer.Option(metavar="NAME,...", help="Of the suite. Default: all.")
    ] = "",
    methods: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help="Names, or groups: main, kvpress, memories, twins, once, all. "
            "--list names all of them. Default: main.",
        ),
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
            "--full",
            help="The long run: all suites and methods unless some are named, 50, 25, 12.5 and "
            "6.25 % kept, 200 samples. Days: see --estimate and --minutes.",
        ),
    ] = False,
    only_estimate: Annotated[
        bool, typer.Option("--estimate", help="Only say what it would take, after a short trial.")
    ] = False,
    minutes: Annotated[
        float | None,
        typer.Option(metavar="NUMBER", min=0, help="Stop then; rows of what there is are written."),
    ] = None,
    show_list: Annotated[
        bool, typer.Option("--list", help="Only name suites, tasks and methods.")
    ] = False,
    add: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A Python file that adds tasks or methods. It is run."),
    ] = None,
    data: Data = None,
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
    """Compare ways to remember a text: the tasks of RULER made offline, facts at ten depths, more.

    All cells get 10 samples before any gets 20, and so on, so a run can be stopped at any time. The
    same command goes on where it stopped: what is there of the same code and model is not measured
    again. A method that cannot take a task or length is left empty.

    \b
    Examples:
      indexmem bench quality --methods full,recency,keydiff,recall --count 5
      indexmem bench quality --full --methods main --minutes 60
    """
    hush_libraries(False)
    from indexmem_cli.bench.cells import QualityConfig
    from indexmem_cli.bench.quality import FULL_COUNT, FULL_SHARES
    from indexmem_cli.bench.rows import parse_names, parse_sizes
    from indexmem_cli.bench.suites import load_additions

    for path in add or ():
        load_additions(path)
    if show_list:
        list_known()
        return
    config = QualityConfig(
        ModelConfig(measured, device=device),
        suites=parse_names(suite) or (("all",) if full else ("ruler",)),
        tasks=parse_names(tasks),
        methods=parse_names(methods) or (("all",) if full else ()),
        lengths=parse_sizes(lengths),
        budgets=FULL_SHARES if full else tuple(map(parse_kept, parse_names(budgets))),
        count=FULL_COUNT if full else count,
        chunk_tokens=parse_size(chunk),
        threads=threads,
        seed=seed,
        data=data,
        minutes=minutes,
        only_estimate=only_estimate,
    )
    run_quality(config, out, as_json)


def run_quality(config: "QualityConfig", out: Path | None, as_json: bool) -> None:
    """Measure, say how far it is, and show the rows."""
    from indexmem_cli.bench.quality import Progress, bench_quality, tabulate
    from indexmem_cli.bench.rows import folder_for, print_table
    from indexmem_cli.render import format_seconds, show_json

    rows = []
    try:
        for event in bench_quality(config, folder_for(out)):
            if isinstance(event, dict):
                rows.append(event)
            elif isinstance(event, Progress):
                cell = event.cell
                done = event.total - event.left
                said = f"{done}/{event.total}  {cell.task} {cell.length:,} {cell.method}"
                left = format_seconds(event.remaining_s)
                typer.echo(f"{said} {cell.budget:,}  about {left} left", err=True)
            else:
                show_estimate(event)
    except KeyboardInterrupt:
        typer.echo("stopped: the same command goes on from here", err=True)
        raise
    if as_json:
        show_json({"schema": 1, "rows": rows})
        return
    for name in dict.fromkeys(row["suite"] for row in rows):
        table = tabulate([row for row in rows if row["suite"] == name])
        print_table(table, list(dict.fromkeys(name for line in table for name in line)))


def show_estimate(estimate: "Estimate") -> None:
    """Say on stderr what a run will take, and what takes longest."""
    from indexmem_cli.render import format_seconds

    total = format_seconds(estimate.seconds)
    typer.echo(f"{estimate.samples:,} samples in {estimate.cells:,} cells: about {total}", err=True)
    for what in ("task", "method"):
        each = getattr(estimate, f"by_{what}").items()
        longest = sorted(each, key=lambda item: -item[1])
        said = ", ".join(f"{name} {seconds:.2f}" for name, seconds in longest)
        typer.echo(f"seconds a sample by {what}: {said}", err=True)


def list_known() -> None:
    """Name all suites with their tasks, and all groups of methods with theirs."""
    from indexmem_cli.bench.suites import GROUPS, METHODS, SUITES, load_own

    load_own()
    for suite, tasks in SUITES.items():
        typer.echo(f"suite {suite}: {', '.join(tasks)}")
    for group, said in GROUPS.items():
        names = [name for name, method in METHODS.items() if method.group == group]
        if names:
            typer.echo(f"group {group} ({said}): {', '.join(names)}")


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
