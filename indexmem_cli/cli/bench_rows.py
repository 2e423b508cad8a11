"""`indexmem bench` on rows that are there: tables, pictures and comparisons. Measures nothing."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from indexmem_cli.cli import options
from indexmem_cli.errors import ConfigError

if TYPE_CHECKING:
    from indexmem_cli.bench.rows import Row

Results = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder of rows. Default: the checkout's benchmarks/results."),
]


def tables(
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail where README is not current.")
    ] = False,
    readme: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: README.md of the checkout.")
    ] = None,
    results: Results = None,
) -> None:
    """Make the tables of README.md from the rows, between their marks.

    \b
    Examples:
      indexmem bench tables
      indexmem bench tables --check
    """
    from indexmem_cli.bench.tables import README, are_current, write_tables

    readme, results = readme or README, folder_of_rows(results)
    if not check:
        write_tables(readme, results)
        typer.echo(readme)
    elif not are_current(readme, results):
        raise ConfigError(f"the tables of {readme} are not those of the rows", "run: make tables")


def folder_of_rows(results: Path | None) -> Path:
    """Return the folder that rows are read from.

    Raises:
        ConfigError: there is none.
    """
    from indexmem_cli.bench.rows import folder_for

    folder = folder_for(results)
    if folder is None:
        raise ConfigError("there are no rows outside of a checkout", "name a folder: --results DIR")
    if results is not None and not results.is_dir():
        raise ConfigError(f"the folder of rows does not exist: {results}")
    return folder


def pictures(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            help="memory, seconds, answers, quality, needles, loss, card. Default: all.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write NAME.png to.")] = Path(
        "pictures"
    ),
    dark: Annotated[bool, typer.Option("--dark", help="On a dark background.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Draw nothing; fail where a picture is not current.")
    ] = False,
    results: Results = None,
) -> None:
    """Draw the rows: cost against length, quality against bytes, needles by depth, a card of all.

    \b
    Examples:
      indexmem bench pictures --out pictures
      indexmem bench pictures memory quality --out docs/pictures --check
    """
    from indexmem_cli.bench.pictures import PICTURES, make_pictures, stale_pictures

    names, results = names or list(PICTURES), folder_of_rows(results)
    if not check:
        for path in make_pictures(names, results, out, dark):
            typer.echo(path)
    elif stale := stale_pictures(names, results, out):
        said = ", ".join(stale)
        raise ConfigError(f"pictures in {out} are not of these rows: {said}", "run: make tables")


def compare(
    before: Annotated[str, typer.Argument(metavar="A", help="File of rows, or a commit.")],
    after: Annotated[str, typer.Argument(metavar="B", help="File of rows, or a commit.")],
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 where something is worse.")
    ] = False,
    results: Results = None,
    as_json: options.Json = False,
) -> None:
    """Compare what two commits or two machines measured of the same things; worse comes first.

    Something is better or worse where zero is outside the 95 % interval of the difference (question
    by question, where both were asked the same), where the 20th to 80th percentiles of times do not
    overlap, or where single numbers differ by more than 2 % (bytes) or 10 % (times).

    \b
    Examples:
      indexmem bench compare 75d01f8 7e46dde
      indexmem bench compare old/quality.jsonl benchmarks/results/quality.jsonl --check
    """
    from indexmem_cli.bench.compare import COLUMNS, compare_rows, rows_of
    from indexmem_cli.bench.rows import folder_for

    folder = folder_for(results) or Path()
    lines = compare_rows(rows_of(before, folder), rows_of(after, folder))
    if not lines:
        raise ConfigError("nothing was measured on both sides", "same tasks, lengths and settings?")
    show_rows(lines, COLUMNS, as_json)
    worse = sum(line["verdict"] == "worse" for line in lines)
    typer.echo(f"{worse} of {len(lines)} worse", err=True)
    if check and worse:
        raise typer.Exit(1)


def show_rows(rows: list["Row"], columns: tuple[str, ...], as_json: bool) -> None:
    """Print rows: as JSON, or as a table of those columns that any of them has."""
    from indexmem_cli.bench.rows import print_table
    from indexmem_cli.render import show_json

    if as_json:
        show_json({"schema": 1, "rows": rows})
    else:
        print_table(rows, [name for name in columns if any(name in row for row in rows)])
