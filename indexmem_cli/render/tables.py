"""Tables without lines, for the commands that list things."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from indexmem_cli.render.safe import safe_line


def print_table(
    console: Console,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    right: Sequence[str] = (),
) -> None:
    """Print rows of untrusted text under their headings; columns in `right` are set flush right."""
    table = Table(box=None, pad_edge=False)
    for column in columns:
        if column in right:
            table.add_column(column, justify="right", no_wrap=True)
        else:
            table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(safe_line(cell)) for cell in row))
    console.print(table)
