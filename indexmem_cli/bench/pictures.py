"""Pictures of the rows in benchmarks/results, as PNG. Needs matplotlib: the extra `bench`.

A picture is a pair of functions: one takes what it shows out of the rows, the other draws that. The
first one's result is hashed into the file, so that it can be checked to be of these rows.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from indexmem_cli.bench.drawing import (
    DARK,
    HEAT,
    LIGHT,
    draw_panels,
    label_axes,
    shorten,
    size_of_panels,
)
from indexmem_cli.bench.rows import Row, middle_run, of_newest, read_rows
from indexmem_cli.errors import ConfigError

MIB = 2**20
STAMP = "Rows"
"""Key of the hash in the PNG's text."""
Colours = dict[str, str]


@dataclass(frozen=True)
class Picture:
    """What is taken out of the rows of a folder, and how it is drawn on a figure."""

    take: Callable[[Path], Any]
    """Returns what JSON can hold; nothing where there are no rows for it."""
    draw: Callable[[Any, Any, Colours], None]
    """From that, a figure and the colours."""
    inches: Callable[[Any], tuple[float, float]] = lambda data: (7.6, 4.2)


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
    wanted = {name: _hash(_picture(name).take(results)) for name in names}
    return [name for name, stamp in wanted.items() if _stamp_of(out / f"{name}.png") != stamp]


def _stamp_of(path: Path) -> str | None:
    """Of which rows a picture is, if it is there and says so."""
    from PIL import Image

    if not path.exists():
        return None
    with Image.open(path) as picture:
        stamp = picture.info.get(STAMP)
    return None if stamp is None else str(stamp)


def take_cost(results: Path, field: str, scale: float = 1) -> Any:
    """What reading or answering costs, by tokens read, for each method: and the title's end."""
    rows = [row for row in of_newest(read_rows(results / "memory.jsonl")) if field in row]
    if not rows:
        return None
    newest = [
        row
        for mode, length in sorted({(row["mode"], row["length_tokens"]) for row in rows})
        if (row := middle_run(rows, field, mode=mode, length_tokens=length))
    ]
    ways: dict[str, list[list[float]]] = {}
    for row in newest:
        ways.setdefault(row["mode"], []).append([row["tokens"], row[field] / scale])
    budgets = sorted({row["budget_tokens"] for row in newest if row["budget_tokens"]})
    of = " and ".join(f"{budget:,}" for budget in budgets)
    return {"ways": ways, "of": f"budget {of}, {rows[-1]['model']}"}


def draw_cost(data: Any, figure: Any, colours: Colours, what: str, y: str) -> None:
    """Draw bytes or seconds against length, all methods in one."""
    draw_panels(figure, data["ways"], colours, "tokens read", y, f"{what}, {data['of']}", logs="xy")


def take_quality(results: Path) -> Any:
    """Scores against bytes where most methods and budgets were measured, by method; and n."""
    rows = [row for row in newest_cells(results) if "measure" not in row]
    cells: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        cells.setdefault((row["suite"], row["length"]), []).append(row)
    if not cells:
        return None
    (suite, length), found = max(
        cells.items(), key=lambda item: len({(row["method"], row["kept"]) for row in item[1]})
    )
    tasks = {row["task"] for row in found}
    methods: dict[str, dict[float | None, list[Row]]] = {}
    for row in found:
        methods.setdefault(row["method"], {}).setdefault(row["kept"], []).append(row)
    ways = {}
    for method, budgets in methods.items():
        points = sorted(_mean_of(rows) for rows in budgets.values() if len(rows) == len(tasks))
        if points:
            ways[method] = points
    numbers = [sum(r["n"] for r in rows) for each in methods.values() for rows in each.values()]
    n = f"{min(numbers)} to {max(numbers)}" if len(set(numbers)) > 1 else numbers[0]
    many = f" ({len(tasks)} tasks)" if len(tasks) > 1 else ""
    title = f"{suite}{many}, {length:,} tokens, n = {n}, {found[-1]['model']}"
    return {"title": title, "ways": ways}


def draw_quality(data: Row, figure: Any, colours: Colours) -> None:
    """Draw right answers against bytes kept."""
    title = f"{data['title']}; 95 % intervals"
    ways = {
        name: [[size / MIB, *(100 * share for share in shares)] for size, *shares in points]
        for name, points in data["ways"].items()
    }
    draw_panels(figure, ways, colours, "KV kept, MiB", "right, %", title, logs="x")
    top = max(point[-1] for points in ways.values() for point in points)
    for axes in figure.axes:
        axes.set_ylim(-3, min(103, 1.1 * top))


def take_needles(results: Path) -> Any:
    """Right answers by length and depth for each method and budget: [length, tenth, right, n]."""
    ways: dict[str, dict[tuple[int, int], list[float]]] = {}
    for row in newest_cells(results):
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


def draw_needles(ways: dict[str, list[list[int]]], figure: Any, colours: Colours) -> None:
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
        n = sum(cell[3] for cell in cells)
        title = f"{name}: {100 * sum(cell[2] for cell in cells) / n:.0f} % of {n}"
        label_axes(axes, colours, "tokens", "", title, logs="")
        axes.grid(False)
        axes.set_xticks(range(len(lengths)), [shorten(length) for length in lengths])
        axes.set_yticks(range(10), [f"{10 * i}–{10 * i + 10} %" for i in range(10)])
    panels[0].set_ylabel("depth of the fact", color=colours["text"])


def take_loss(results: Path) -> Any:
    """Loss by position over that of full attention, where most methods were measured."""
    rows = [row for row in newest_cells(results) if "by_position" in row]
    places: dict[tuple[int, float], dict[str, Row]] = {}
    for row in rows:
        for kept in (
            {r["kept"] for r in rows if r["kept"]} if row["kept"] is None else {row["kept"]}
        ):
            places.setdefault((row["length"], kept), {})[row["method"]] = row
    if not places:
        return None
    (length, kept), found = max(places.items(), key=lambda item: (len(item[1]), item[0]))
    full = found.pop("full", None) if len(found) > 1 else None
    base = full["by_position"] if full else [0.0] * len(rows[0]["by_position"])
    ways = {}
    for name, row in found.items():
        step = row["tokens"] / len(base)
        pairs = enumerate(zip(row["by_position"], base, strict=True))
        ways[name] = [[(i + 0.5) * step, round(nats - less, 4)] for i, (nats, less) in pairs]
    n = min(row["n"] for row in found.values())
    title = f"{length:,} tokens of books, {100 * kept:.3g} % kept, n = {n}, {rows[-1]['model']}"
    above = "nats per token above full attention" if full else "nats per token"
    return {"title": title, "ways": ways, "above": above}


def draw_loss(data: Row, figure: Any, colours: Colours) -> None:
    """Draw nats per token by position."""
    draw_panels(figure, data["ways"], colours, "position", data["above"], data["title"])


def take_card(results: Path) -> Any:
    """What sums a model up: see `summary.py`."""
    from indexmem_cli.bench.summary import take_card as take

    names = ("quality", "needles", "memory", "answers", "loss")
    return take(results, {name: PICTURES[name].take(results) for name in names})


def draw_card(data: Row, figure: Any, colours: Colours) -> None:
    """Draw it with the other pictures' functions."""
    from indexmem_cli.bench.summary import draw_card as draw

    draw(data, figure, colours, {name: PICTURES[name].draw for name in data["parts"]})


def _cost(field: str, scale: float, what: str, y: str) -> Picture:
    take = partial(take_cost, field=field, scale=scale)
    return Picture(take, partial(draw_cost, what=what, y=y), _size)


def _size(data: Row) -> tuple[float, float]:
    return size_of_panels(data["ways"])


PICTURES = {
    "memory": _cost("above_model_bytes", MIB, "Peak memory", "above the loaded model, MiB"),
    "seconds": _cost("read_s", 1, "Time to read", "seconds"),
    "answers": _cost("answer_s", 1, "Time to answer, once read", "seconds"),
    "quality": Picture(take_quality, draw_quality, _size),
    "needles": Picture(take_needles, draw_needles, lambda ways: (1.5 + 3.6 * len(ways), 4.0)),
    "loss": Picture(take_loss, draw_loss, _size),
    "card": Picture(take_card, draw_card, lambda data: (11.0, 6.4)),
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
    figure = Figure(figsize=picture.inches(data), dpi=110, layout="constrained")
    figure.set_facecolor(colours["back"])
    FigureCanvasAgg(figure)
    picture.draw(data, figure, colours)
    out.mkdir(parents=True, exist_ok=True)
    partial = out / f".{name}.partial"
    figure.savefig(partial, format="png", metadata={"Software": None, STAMP: _hash(data)})
    return partial.replace(out / f"{name}.png")


def _mean_of(rows: list[Row]) -> list[float]:
    """Bytes, mean value and its 95 % interval of one budget's tasks."""
    mean = sum(row["value"] for row in rows) / len(rows)
    reach = [
        sum(abs(row["interval_95"][end] - row["value"]) ** 2 for row in rows) ** 0.5 / len(rows)
        for end in (0, 1)
    ]
    size = sum(row["kv_bytes"] for row in rows) / len(rows)
    return [size, mean, mean - reach[0], mean + reach[1]]


def newest_cells(results: Path) -> list[Row]:
    """The row of most samples of every cell, the last of those, of the weights measured last."""
    names = ("suite", "task", "length", "method", "kept")
    rows = [r for r in of_newest(read_rows(results / "quality.jsonl")) if r["value"] is not None]
    rows.sort(key=lambda row: row["n"])  # stable: of as many samples, the last row comes last
    return list({tuple(row[name] for name in names): row for row in rows}.values())


def _hash(data: Any) -> str:
    return hashlib.blake2b(json.dumps(data).encode(), digest_size=8).hexdigest()
