"""What `bench model` shows: one line for each measure, the forms of the weights side by side."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from indexmem_cli.render.safe import safe_line
from indexmem_cli.render.screen import open_console


def show_measures(rows: Sequence[dict[str, Any]]) -> None:
    """Print the rows of one run as a table."""
    table = Table(box=None, pad_edge=False)
    table.add_column("MEASURE", overflow="fold")
    table.add_column("N", justify="right", no_wrap=True)
    forms = list(dict.fromkeys(row["weights"] for row in rows if "quant" in row))
    for form in forms:
        table.add_column(form.upper(), no_wrap=True)
    if any(" - " in row["weights"] for row in rows):
        table.add_column("LOSS", no_wrap=True)
    table.add_column("WITHOUT A MODEL")
    for cells in tabulate_measures(rows):
        table.add_row(*(Text(safe_line(cell)) for cell in cells))
    open_console(stderr=False).print(table)


def tabulate_measures(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return for each measure its name, n, a cell for each form, the loss, and the baselines."""
    forms = list(dict.fromkeys(row["weights"] for row in rows if "quant" in row))
    losses = list(dict.fromkeys(row["weights"] for row in rows if " - " in row["weights"]))
    lines = []
    for task, measure in dict.fromkeys((row["task"], row["measure"]) for row in rows):
        found = {r["weights"]: r for r in rows if (r["task"], r["measure"]) == (task, measure)}
        others = [name for name in found if name not in (*forms, *losses)]
        name = measure if task == "speed" else f"{task}: {measure}"
        first = next(iter(found.values()))
        cells = [describe_value(found[form]) if form in found else "" for form in (*forms, *losses)]
        beside = ", ".join(f"{other} {describe_value(found[other])}" for other in others)
        lines.append([name, f"{first['n']:,}", *cells, beside])
    return lines


def describe_value(row: dict[str, Any]) -> str:
    """Write a value with its interval: shares in percent, everything else in its own unit."""
    low, high = row.get("interval_95") or row.get("p20_p80") or (None, None)
    if row["unit"] == "share":
        text = f"{100 * row['value']:.1f} %"
        return text if low is None else f"{text} ({100 * low:.1f} to {100 * high:.1f})"
    digits = 0 if abs(row["value"]) >= 100 else 2
    text = f"{row['value']:,.{digits}f}"
    if low is not None:
        text += f" ({low:,.{digits}f} to {high:,.{digits}f})"
    return f"{text} {row['unit']}"
