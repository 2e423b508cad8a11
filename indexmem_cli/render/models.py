"""What `models` shows."""

from collections.abc import Sequence
from typing import Any

from rich.text import Text

from indexmem_cli.render.safe import safe_line
from indexmem_cli.render.screen import open_console
from indexmem_cli.render.tables import print_table
from indexmem_cli.render.wording import count, format_bytes


def show_models(rows: Sequence[dict[str, Any]], machine: dict[str, Any], num_found: int) -> None:
    """Print the models that are here, and whether they fit."""
    console = open_console(stderr=False)
    columns = ("MODEL", "FAMILY", "FILES", "WINDOW", "BUDGET", "NEEDS", "FITS", "FROM")
    right = ("FILES", "WINDOW", "BUDGET", "NEEDS")
    print_table(console, columns, map(_cells, rows), right)
    console.print(
        Text(safe_line(f"{machine['memory']}: {format_bytes(machine['free_bytes'])} free"))
    )
    if hidden := num_found - len(rows):
        console.print(Text(f"{hidden} more cannot be used (-v lists them)"))


def show_model(row: dict[str, Any]) -> None:
    """Print all about one model."""
    console = open_console(stderr=False)
    need, machine = row["need"], row["machine"]
    sliding = f", {row['sliding_layers']} of them sliding" if row["sliding_layers"] else ""
    quant = "" if row["quant"] == "none" else f"{row['quant']}, "
    lines = [
        f"{row['name']} ({row['origin']}{', default' if row['default'] else ''})",
        f"{row['family']} · {format_count(row['parameters'])} parameters"
        f" · {row['layers']} layers{sliding} · window {row['window_tokens']:,} tokens"
        f" · revision {row['revision']}",
        f"files: {format_bytes(row['file_bytes'])} in {row['path']}",
        f"KV cache: {format_bytes(row['kv_bytes_per_token'])} per token in {row['dtype']}",
        f"here, {quant}{row['dtype']}, budget {row['budget_tokens']:,} tokens: about"
        f" {format_bytes(need['total_bytes'])}"
        f" (weights {format_bytes(need['weight_bytes'])}, memory {format_bytes(need['kv_bytes'])},"
        f" work {format_bytes(need['working_bytes'])},"
        f" program {format_bytes(need['overhead_bytes'])})",
        f"{machine['memory']}: {format_bytes(machine['free_bytes'])} free, so it"
        f" {'fits' if row['fits'] else 'does not fit'}",
        "",
        "Largest budget, in tokens, that a GPU of this size has room for:",
    ]
    for line in lines:
        console.print(Text(safe_line(line)))
    forms = [name for name in row["cards"][0] if name != "gib"]
    rows = (
        [f"{card['gib']} GB", *(_budget(card[form]) for form in forms)] for card in row["cards"]
    )
    print_table(console, ("CARD", *forms), rows, right=forms)


def describe_download(model: str, revision: str, files: int, size_bytes: int) -> str:
    """Say what is going to be fetched."""
    if not files:
        return f"{model} is here already (revision {revision})"
    return f"{model} (revision {revision}): {count(files, 'file')}, {format_bytes(size_bytes)}"


def format_count(number: int) -> str:
    """Write a number of parameters as 5.2M or 4.0B."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    name = f"{row['name']} *" if row["default"] else row["name"]
    if row["problem"]:
        return (name, "-", "-", "-", "-", "-", row["problem"], row["origin"])
    return (
        name,
        row["family"],
        format_bytes(row["file_bytes"]),
        f"{row['window_tokens']:,}",
        f"{row['budget_tokens']:,}",
        format_bytes(row["need"]["total_bytes"]),
        "yes" if row["fits"] else "no",
        row["origin"],
    )


def _budget(tokens: int | None) -> str:
    return "does not fit" if tokens is None else f"{tokens:,}"
