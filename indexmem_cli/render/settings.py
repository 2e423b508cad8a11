"""What `config show` shows."""

from collections.abc import Sequence
from typing import Any

from rich.text import Text

from indexmem_cli.render.safe import safe_line
from indexmem_cli.render.screen import open_console
from indexmem_cli.render.tables import print_table


def show_settings(rows: Sequence[dict[str, Any]], file: str, exists: bool) -> None:
    """Print every setting with its value and origin, and where the user's file is."""
    console = open_console(stderr=False)
    print_table(console, ("SETTING", "VALUE", "ORIGIN"), map(_cells, rows))
    console.print(Text(safe_line(f"file: {file}" + ("" if exists else " (none yet)"))))


def _cells(row: dict[str, Any]) -> tuple[str, str, str]:
    value, origin = row["value"], row["origin"]
    if value is None:
        value = f"({row['if_unset']})"
    elif isinstance(value, bool):
        value = str(value).lower()
    if origin == "flag":
        origin = f"--{row['name']}"
    return row["name"], str(value), row.get("variable") or origin
