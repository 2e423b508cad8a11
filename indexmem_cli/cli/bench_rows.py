"""`indexmem bench` on rows that are there: tables, pictures and comparisons. Measures nothing."""

from pathlib import Path
from typing import Annotated

import typer

from indexmem_cli.errors import ConfigError

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
    from indexmem_cli.bench.rows import IN_CHECKOUT, RESULTS

    if results is None and not IN_CHECKOUT:
        raise ConfigError("there are no rows outside of a checkout", "name a folder: --results DIR")
    if results is not None and not results.is_dir():
        raise ConfigError(f"the folder of rows does not exist: {results}")
    return results or RESULTS
