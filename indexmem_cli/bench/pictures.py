"""Pictures of the rows in benchmarks/results, as PNG. Needs matplotlib: the extra `bench`.

A picture is a pair of functions: one takes what it shows out of the rows, the other draws that. The
first one's result is hashed into the file, so that it can be checked to be of these rows.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from indexmem_cli.bench.rows import Row, read_rows
from indexmem_cli.errors import ConfigError

MIB = 2**20
LIGHT = {"back": "#fcfcfa", "text": "#24292f", "grid": "#d8dadd"}
DARK = {"back": "#16191d", "text": "#e6e8ea", "grid": "#3a3f45"}
# Told apart also by those who see no red or green; source: Okabe and Ito 2008, lightened or
# darkened so that each stands out from both backgrounds.
COLOURS = ("#d95f02", "#1b86c4", "#0f9d76", "#c2578f", "#a67c00", "#7a6fd0", "#5f7f8f", "#b0413e")
MARKERS = "osD^vPX<>h"
HEAT = ("#e5695b", "#f2d675", "#58b277")
"""None right, half of them, all: light enough for the numbers on them."""
LEGEND = {"frameon": False, "fontsize": 9}
STAMP = "Rows"
"""Key of the hash in the PNG's text."""


@dataclass(frozen=True)
class Picture:
    """What is taken out of the rows of a folder, and how it is drawn on a figure."""

    take: Callable[[Path], Any]
    """Returns what JSON can hold; nothing where there are no rows for it."""
    draw: Callable[[Any, Any, dict[str, str]], None]
    """From that, a figure and the colours."""
    inches: tuple[float, float] = (6.4, 3.8)


def make_pictures(names: Iterable[str], results: Path, out: Path, dark: bool) -> list[Path]:
    """Draw pictures as `out/NAME.png`; those without rows are left out.

    Raises:
        ConfigError: a name is not known, or matplotlib is missing.
    """
    made = []
    for name in names:
        if data := _picture(name).take(results):
            made.append(_draw(name, data, out, dark))
    return made


def stale_pictures(names: Iterable[str], results: Path, out: Path) -> list[str]:
    """Return the pictures that are there and not of these rows, or not there at all."""
    from PIL import Image

    stale = []
    for name in names:
        path, expected = out / f"{name}.png", _hash(_picture(name).take(results))
        if not path.exists() or Image.open(path).text.get(STAMP) != expected:
            stale.append(name)
    return stale


def take_memory(results: Path) -> Any:
    """Peak memory and seconds of reading by length: [tokens, MiB, seconds] for each way."""
    rows = _of_newest(read_rows(results / "memory.jsonl"))
    newest = {(row["mode"], row["length_tokens"]): row for row in rows}
    ways: dict[str, list] = {}
    for (mode, _), row in sorted(newest.items()):
        name = "full cache" if mode == "full" else f"budget {row['budget_tokens']:,}"
        point = [row["tokens"], row["above_model_bytes"] / MIB, row["read_s"]]
        ways.setdefault(name, []).append(point)
    return ways


def draw_memory(ways: dict, figure: Any, colours: dict[str, str]) -> None:
    """Draw peak memory against length."""
    axes = figure.subplots()
    _lines(axes, {name: [(p[0], p[1]) for p in way] for name, way in ways.items()})
    _label(axes, colours, "tokens read", "peak above the loaded model, MiB", "Memory while reading")


def draw_seconds(ways: dict, figure: Any, colours: dict[str, str]) -> None:
    """Draw seconds of reading against length."""
    axes = figure.subplots()
    _lines(axes, {name: [(p[0], p[2]) for p in way] for name, way in ways.items()})
    _label(axes, colours, "tokens read", "seconds", "Time to read")


def take_quality(results: Path) -> Any:
    """Scores against bytes at the length with most of them: points of each method, and n."""
    rows = _newest_cells(results)
    cells: dict[tuple, list[Row]] = {}
    for row in rows:
        cells.setdefault((row["suite"], row["length"]), []).append(row)
    if not cells:
        return None
    (suite, length), found = max(cells.items(), key=lambda item: len(item[1]))
    tasks = {row["task"] for row in found}
    methods: dict[str, dict] = {}
    for row in found:
        methods.setdefault(row["method"], {}).setdefault(row["kept"], []).append(row)
    points = {
        method: sorted(_mean_of(group) for group in budgets.values() if len(group) == len(tasks))
        for method, budgets in methods.items()
    }
    n = sum({row["task"]: row["n"] for row in found}.values())
    title = f"{suite}, {length:,} tokens, n = {n}, {found[-1]['model']}"
    return {"title": title, "points": {name: p for name, p in points.items() if p}}


def draw_quality(data: dict, figure: Any, colours: dict[str, str]) -> None:
    """Draw right answers against bytes kept, with intervals."""
    axes = figure.subplots()
    ways = {name: [(p[0] / MIB, 100 * p[1]) for p in ps] for name, ps in data["points"].items()}
    _lines(axes, ways)
    for i, points in enumerate(data["points"].values()):
        for size, _, low, high in points:
            colour = COLOURS[i % len(COLOURS)]
            axes.plot([size / MIB] * 2, [100 * low, 100 * high], color=colour, alpha=0.35, lw=1)
    _label(axes, colours, "KV kept, MiB", "right, % (95 % interval)", data["title"], logs="x")
    axes.set_ylim(-3, 103)
    axes.legend(**LEGEND, labelcolor=colours["text"], loc="center left", bbox_to_anchor=(1, 0.5))


def take_needles(results: Path) -> Any:
    """Right answers by length and depth for each method and budget: [length, tenth, right, n]."""
    ways: dict[str, dict[tuple[int, int], list[float]]] = {}
    for row in _newest_cells(results):
        if row["suite"] == "needle" and "depths" in row:
            budget = "" if row["kept"] is None else f", budget {row['budget']:,}"
            cells = ways.setdefault(row["method"] + budget, {})
            for depth, score in zip(row["depths"], row["scores"], strict=True):
                cells.setdefault((row["length"], min(9, int(10 * depth))), []).append(score)
    return {
        name: [[*place, sum(scores), len(scores)] for place, scores in sorted(cells.items())]
        for name, cells in ways.items()
        if len({length for length, _ in cells}) > 2
    }


def draw_needles(ways: dict, figure: Any, colours: dict[str, str]) -> None:
    """Draw a heat map for each method, from red (none right) to green (all right)."""
    import numpy as np
    from matplotlib.colors import LinearSegmentedColormap

    heat = LinearSegmentedColormap.from_list("heat", HEAT)
    panels = figure.subplots(1, len(ways), squeeze=False, sharey=True)[0]
    for axes, (name, cells) in zip(panels, ways.items(), strict=True):
        lengths = sorted({cell[0] for cell in cells})
        shares = np.full((10, len(lengths)), np.nan)
        for length, tenth, right, n in cells:
            shares[tenth, lengths.index(length)] = right / n
        axes.imshow(shares, cmap=heat, vmin=0, vmax=1, aspect="auto")
        for (tenth, at), share in np.ndenumerate(shares):
            if not np.isnan(share):
                said = f"{100 * share:.0f}"
                axes.text(at, tenth, said, ha="center", va="center", fontsize=8, color="#111111")
        mean = 100 * sum(cell[2] for cell in cells) / sum(cell[3] for cell in cells)
        most = max(cell[3] for cell in cells)
        _label(axes, colours, "tokens", "", f"{name}: {mean:.0f} %, {most} a cell", logs="")
        axes.grid(False)
        axes.set_xticks(range(len(lengths)), [_short(length) for length in lengths])
        axes.set_yticks(range(10), [f"{10 * i}–{10 * i + 10} %" for i in range(10)])
    panels[0].set_ylabel("depth of the fact", color=colours["text"])


PICTURES = {
    "memory": Picture(take_memory, draw_memory),
    "seconds": Picture(take_memory, draw_seconds),
    "quality": Picture(take_quality, draw_quality),
    "needles": Picture(take_needles, draw_needles, (9.0, 4.0)),
}


def _picture(name: str) -> Picture:
    if name not in PICTURES:
        raise ConfigError(f"unknown picture: {name}", f"there are: {', '.join(PICTURES)}")
    return PICTURES[name]


def _draw(name: str, data: Any, out: Path, dark: bool) -> Path:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("matplotlib is not installed", "pip install 'indexmem[bench]'") from None
    picture, colours = PICTURES[name], DARK if dark else LIGHT
    figure = Figure(figsize=picture.inches, dpi=110, layout="constrained")
    figure.set_facecolor(colours["back"])
    FigureCanvasAgg(figure)
    picture.draw(data, figure, colours)
    out.mkdir(parents=True, exist_ok=True)
    partial = out / f".{name}.partial"
    figure.savefig(partial, format="png", metadata={"Software": None, STAMP: _hash(data)})
    return partial.replace(out / f"{name}.png")


def _lines(axes: Any, ways: dict[str, list[tuple[float, float]]]) -> None:
    """Draw a line for each way; a single point is a star."""
    for i, (name, points) in enumerate(ways.items()):
        marker, size = ("*", 12) if len(points) == 1 else (MARKERS[i % len(MARKERS)], 5)
        colour = COLOURS[i % len(COLOURS)]
        x, y = zip(*sorted(points), strict=True)
        style = {"marker": marker, "markersize": size, "color": colour, "lw": 1.6}
        axes.plot(x, y, "--" if i >= len(COLOURS) else "-", label=name, **style)


def _label(
    axes: Any, colours: dict[str, str], x: str, y: str, title: str, logs: str = "xy"
) -> None:
    """Write on the axes, with a legend where there is something to tell apart."""
    text = colours["text"]
    axes.set_facecolor(colours["back"])
    for axis in logs:
        getattr(axes, f"set_{axis}scale")("log", base=2)
        from matplotlib.ticker import FuncFormatter, NullFormatter

        one = getattr(axes, f"{axis}axis")
        one.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
        one.set_minor_formatter(NullFormatter())
    axes.set_xlabel(x, color=text)
    axes.set_ylabel(y, color=text)
    axes.set_title(title, color=text, fontsize=11)
    axes.tick_params(colors=text, which="both")
    axes.grid(color=colours["grid"], lw=0.6)
    for spine in axes.spines.values():
        spine.set_color(colours["grid"])
    if axes.get_legend_handles_labels()[0]:
        axes.legend(**LEGEND, labelcolor=text)


def _short(value: float) -> str:
    """Write a number with k and m of 1024."""
    for unit, size in (("m", 2**20), ("k", 1024)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _mean_of(rows: list[Row]) -> list[float]:
    """Bytes, mean value and its 95 % interval of one budget's tasks."""
    mean = sum(row["value"] for row in rows) / len(rows)
    reach = [
        sum(abs(row["interval_95"][end] - row["value"]) ** 2 for row in rows) ** 0.5 / len(rows)
        for end in (0, 1)
    ]
    size = sum(row["kv_bytes"] for row in rows) / len(rows)
    return [size, mean, mean - reach[0], mean + reach[1]]


def _newest_cells(results: Path) -> list[Row]:
    """The last row of every cell that has a value, of the weights measured last."""
    names = ("suite", "task", "length", "method", "kept")
    rows = _of_newest(read_rows(results / "quality.jsonl"))
    cells = {tuple(row[name] for name in names): row for row in rows}
    return [row for row in cells.values() if row["value"] is not None]


def _of_newest(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.get("revision") == rows[-1].get("revision")]


def _hash(data: Any) -> str:
    return hashlib.blake2b(json.dumps(data).encode(), digest_size=8).hexdigest()
