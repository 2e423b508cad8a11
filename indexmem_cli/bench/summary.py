"""The card: one PNG that sums a model up, for a README."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from indexmem_cli.bench.drawing import LEGEND, ORDER
from indexmem_cli.bench.rows import Row, read_rows

SHOWN = ("recall", "learned", "question", "full", "keydiff", "recency", "passages")
"""Methods of a card: it has no room for all."""
NUM_HEATMAPS = 2
NUM_PARTS = 4
# Task and measure of `bench model`, and what the card says of it.
FACTS = (
    ("needle, 1024 tokens", "accuracy", "facts found in 1k tokens"),
    ("SQuADShifts, paragraph given", "F1", "F1, SQuADShifts"),
    ("FairytaleQA, paragraph given", "F1", "F1, FairytaleQA"),
    ("text, prose", "bits per byte", "bits per byte of prose"),
    ("speed", "reading", "tokens/s reading"),
    ("speed", "decoding", "tokens/s writing"),
)


def take_card(results: Path, parts: dict[str, Any]) -> Any:
    """Return the numbers and the pictures that there are rows for, cut down to a few methods."""
    rows = read_rows(results / "model.jsonl")
    rows = [row for row in rows if row.get("commit") == rows[-1]["commit"] and "quant" in row]
    found = {(row["task"], row["measure"]): row for row in rows}  # the form measured last
    facts = [
        [describe(found[task, measure]), said]
        for task, measure, said in FACTS
        if (task, measure) in found
    ]
    if needles := parts.get("needles"):
        parts["needles"] = dict(list(needles.items())[:NUM_HEATMAPS])
    for name in ("quality", "memory", "answers", "loss"):
        if parts.get(name):
            few = _few(parts[name]["ways"])
            parts[name] = {**parts[name], "ways": few} if few else None
    parts = dict([(name, data) for name, data in parts.items() if data][:NUM_PARTS])
    if not parts:
        return None
    row = rows[-1] if rows else {}
    of = [row[name] for name in ("dtype", "cpu") if row.get(name)]
    said = ", ".join([*of, f"commit {row['commit'][:7]}"]) if of else ""
    return {"name": row.get("model", ""), "of": said, "facts": facts, "parts": parts}


def describe(row: Row) -> str:
    """Write a value shortly: shares in percent."""
    if row["unit"] == "share":
        return f"{100 * row['value']:.0f} %"
    return f"{row['value']:,.0f}" if row["value"] >= 100 else f"{row['value']:.3g}"


def _few(ways: dict[str, Any]) -> dict[str, Any]:
    known = sorted((name for name in ways if name in SHOWN), key=ORDER.index)
    return {name: ways[name] for name in known}


def draw_card(
    data: dict[str, Any],
    figure: Any,
    colours: dict[str, str],
    draw: dict[str, Callable[..., None]],
) -> None:
    """Draw the numbers above, the pictures below, two beside each other."""
    parts = data["parts"]
    rows = -(-len(parts) // 2)
    top, below = figure.subfigures(2, 1, height_ratios=[0.34, rows], hspace=0.02)
    for part in (top, below):
        part.set_facecolor(colours["back"])
    _write_facts(top, data, colours)
    panels = []
    for i, row in enumerate(below.subfigures(rows, 1, squeeze=False).flat):
        panels += row.subfigures(1, min(2, len(parts) - 2 * i), squeeze=False).flat
    for panel, (name, taken) in zip(panels, parts.items(), strict=True):
        panel.set_facecolor(colours["back"])
        draw[name](taken, panel, colours)
        for axes in panel.axes:
            axes.title.set_fontsize(9)
            if axes.get_legend():
                axes.legend(**{**LEGEND, "fontsize": 8}, labelcolor=colours["text"])


def _write_facts(top: Any, data: dict[str, Any], colours: dict[str, str]) -> None:
    text = colours["text"]
    top.text(0.015, 0.85, data["name"], color=text, fontsize=14, weight="bold", va="center")
    top.text(0.985, 0.85, data["of"], color=text, fontsize=9, va="center", ha="right")
    for i, (value, said) in enumerate(data["facts"]):
        at = 0.015 + i * 0.98 / len(data["facts"])
        top.text(at, 0.42, value, color=text, fontsize=17, weight="bold", va="center")
        top.text(at, 0.12, said, color=text, fontsize=9, va="center")
