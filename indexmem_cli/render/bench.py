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


def markdown_measures(rows: Sequence[dict[str, Any]]) -> str:
    """Return the same table for a Markdown file."""
    forms = list(dict.fromkeys(row["weights"] for row in rows if "quant" in row))
    losses = ["loss"] if any(" - " in row["weights"] for row in rows) else []
    head = ["measure", "n", *forms, *losses, "without a model"]
    lines = [head, ["---"] * len(head), *tabulate_measures(rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def describe_value(row: dict[str, Any]) -> str:
    """Write a value with its interval: shares in percent, everything else in its own unit."""
    around = row.get("interval_95") or row.get("p20_p80")
    if row["unit"] == "share":
        text = f"{100 * row['value']:.1f} %"
        return f"{text} ({100 * around[0]:.1f} to {100 * around[1]:.1f})" if around else text
    digits = 0 if abs(row["value"]) >= 100 else 2
    text = f"{row['value']:,.{digits}f}"
    if around:
        text += f" ({around[0]:,.{digits}f} to {around[1]:,.{digits}f})"
    return f"{text} {row['unit']}"
