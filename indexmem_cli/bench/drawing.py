"""How pictures look: colours that are legible on light and dark, lines, axes."""

from typing import Any

LIGHT = {"back": "#fcfcfa", "text": "#24292f", "grid": "#d8dadd"}
DARK = {"back": "#16191d", "text": "#e6e8ea", "grid": "#3a3f45"}
# Told apart also by those who see no red or green; source: Okabe and Ito 2008, lightened or
# darkened so that each stands out from both backgrounds.
COLOURS = ("#d95f02", "#1b86c4", "#0f9d76", "#c2578f", "#a67c00", "#7a6fd0", "#5f7f8f", "#b0413e")
MARKERS = "osD^vPX<>hpd8"
HEAT = ("#e5695b", "#f2d675", "#58b277")
"""None right, half of them, all: light enough for the numbers on them."""
LEGEND = {"frameon": False, "fontsize": 9}
# A method has the same colour and marker in every picture; what is made of one has its colour.
ORDER = (
    *("recall", "learned", "full", "keydiff", "recency", "question", "passages", "snapkv"),
    *("h2o", "expected-attention", "tova", "knorm", "random"),
)
TWINS = ("-swapped", "-shuffled", "-even", "-moved")


def group_of(method: str) -> str:
    """Return the panel that a method is drawn in."""
    if method.startswith("kvpress-"):
        return "kvpress"
    if method.endswith(TWINS):
        return "twins"
    return "memories" if "+" in method else "once" if method.endswith("-once") else "main"


def style_of(name: str, taken: dict[str, int]) -> dict[str, Any]:
    """Return colour, marker and line of a method.

    Args:
        taken: numbers of names that are not in `ORDER`, which is added to.
    """
    base = name.partition(",")[0].removeprefix("kvpress-").partition("+")[0]
    parts = [part for part in ORDER if base == part or base.startswith(f"{part}-")]
    stem = max(parts, key=len, default=None)
    number = ORDER.index(stem) if stem else taken.setdefault(base, len(ORDER) + len(taken))
    endings = ("+centroids", "+fast-weights", *TWINS)
    dashes = ((4, 1.5), (1, 1), (6, 1, 1, 1), (3, 1, 1, 1), (2, 2), (5, 3))
    matching = [dash for end, dash in zip(endings, dashes, strict=True) if name.endswith(end)]
    line: Any = (0, matching[0]) if matching else "-" if number < len(COLOURS) else (0, (5, 1))
    look = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
    hollow = {"markerfacecolor": "none"} if name.endswith("-once") else {}
    return look | hollow | {"linestyle": line}


def draw_panels(
    figure: Any,
    ways: dict[str, list[list[float]]],
    colours: dict[str, str],
    x: str,
    y: str,
    title: str,
    logs: str = "",
) -> None:
    """Draw a line for each method, a panel for each group: main first, and faint in the others.

    Args:
        ways: points [x, y] of each method, or [x, y, low, high] with an interval.
    """
    groups: dict[str, dict[str, list[list[float]]]] = {}
    for name, points in sorted(ways.items(), key=lambda way: group_of(way[0]) != "main"):
        groups.setdefault(group_of(name), {})[name] = points
    columns = min(2, len(groups))
    panels = figure.subplots(-(-len(groups) // columns), columns, squeeze=False, sharey=True)
    for axes in panels.flat[len(groups) :]:
        axes.set_axis_off()
    for axes, (group, found) in zip(panels.flat, groups.items(), strict=False):
        if group != "main":
            draw_lines(axes, groups.get("main", {}), faint=True)
        draw_lines(axes, found)
        label_axes(axes, colours, x, y, title if len(groups) == 1 else group, logs)
    if len(groups) > 1:
        figure.suptitle(title, color=colours["text"], fontsize=12)


def size_of_panels(ways: dict[str, Any]) -> tuple[float, float]:
    """Return the inches that `draw_panels` needs."""
    panels = len({group_of(name) for name in ways})
    return (7.6, 4.2) if panels == 1 else (14.0, 0.5 + 4.4 * -(-panels // 2))


def draw_lines(axes: Any, ways: dict[str, list[list[float]]], faint: bool = False) -> None:
    """Draw a line for each way; a single point is a star where it stands for the whole cache."""
    taken: dict[str, int] = {}
    for name, points in ways.items():
        style = style_of(name, taken) | {"markersize": 5, "lw": 1.6, "label": name}
        if faint:
            style |= {"alpha": 0.25, "label": None}
        elif name == "full" and len(points) == 1:
            style |= {"marker": "*", "markersize": 12}
        axes.plot(*zip(*sorted(point[:2] for point in points), strict=True), **style)
        for at, _, *ends in () if faint else points:
            if ends:
                axes.plot([at] * 2, ends, color=style["color"], alpha=0.3, lw=1)


def label_axes(
    axes: Any, colours: dict[str, str], x: str, y: str, title: str, logs: str = "xy"
) -> None:
    """Write on the axes, with a legend beside them where there is something to tell apart."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    text = colours["text"]
    axes.set_facecolor(colours["back"])
    for axis in logs:
        getattr(axes, f"set_{axis}scale")("log", base=2)
        one = getattr(axes, f"{axis}axis")
        one.set_major_formatter(FuncFormatter(lambda value, _: shorten(value)))
        one.set_minor_formatter(NullFormatter())
    axes.set_xlabel(x, color=text)
    axes.set_ylabel(y, color=text)
    axes.set_title(title, color=text, fontsize=11)
    axes.tick_params(colors=text, which="both")
    axes.grid(color=colours["grid"], lw=0.6)
    for spine in axes.spines.values():
        spine.set_color(colours["grid"])
    if axes.get_legend_handles_labels()[0]:
        beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
        axes.legend(**LEGEND, **beside, labelcolor=text)


def shorten(value: float) -> str:
    """Write a number with k and m of 1024."""
    for unit, size in (("m", 2**20), ("k", 1024)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
