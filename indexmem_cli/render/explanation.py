"""What was kept of a text, over the text: some lines for a terminal, and a picture."""

from pathlib import Path

from indexmem_cli.errors import ConfigError, reason
from indexmem_cli.events import Explanation, KeptByLayers

SHADES = " ░▒▓█"
PARTS = {
    "sinks": "the text's first tokens",
    "kept": "what was kept",
    "recent": "its last tokens",
    "recalled": "read again",
    "question": "the question",
    "memory": "the latent memory",
}
PICTURE_COLUMNS = 2000


def explanation_lines(explanation: Explanation, width: int = 72) -> list[str]:
    """The text from left to right: the darker, the more of that part was kept. Then attention."""
    names = [_name(group.layers) for group in explanation.kept]
    room = max(map(len, names), default=0)
    lines = [f"kept of {explanation.tokens:,} tokens, from the first to the last:"]
    for name, group in zip(names, explanation.kept, strict=True):
        cells = "".join(map(_shade, _shares(group, explanation.tokens, width)))
        lines.append(f"  {name:<{room}} │{cells}│")
    lines.append("where the question's attention goes:")
    for mass in explanation.attention:
        shares = ((text, getattr(mass, part)) for part, text in PARTS.items())
        said = " · ".join(f"{text} {share:.0%}" for text, share in shares if share >= 0.005)
        lines.append(f"  {f'layer {mass.layer}':<{room}}  {said}")
    return lines


def draw_explanation(explanation: Explanation, path: Path) -> None:
    """Write a heat map over the text, and the attention by layer beside it, as a PNG.

    Raises:
        ConfigError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.colors import PowerNorm
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "a picture needs matplotlib, which is not installed", "pip install 'indexmem[bench]'"
        ) from error
    tokens, masses = explanation.tokens, explanation.attention
    columns = min(tokens, PICTURE_COLUMNS)
    figure = Figure(figsize=(11, 1.6 + 0.35 * len(masses)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2.4, 1))
    left.imshow(
        [_shares(group, tokens, columns) for group in explanation.kept],
        aspect="auto",
        interpolation="nearest",
        cmap="viridis",
        norm=PowerNorm(0.3, 0, 1),  # of a long text little is kept anywhere: that must be seen
        extent=(0, tokens, len(explanation.kept) - 0.5, -0.5),
    )
    left.set(xlabel="token of the text", title="kept, by layers")
    left.locator_params(axis="x", nbins=5)
    left.xaxis.set_major_formatter("{x:,.0f}")
    left.set_yticks(range(len(explanation.kept)), [_name(g.layers) for g in explanation.kept])
    start = [0.0] * len(masses)
    for part, text in PARTS.items():
        sizes = [getattr(mass, part) for mass in masses]
        right.barh([str(mass.layer) for mass in masses], sizes, left=start, label=text)
        start = [a + b for a, b in zip(start, sizes, strict=True)]
    right.set(xlim=(0, 1), title="attention of the question, by layer")
    right.invert_yaxis()
    figure.legend(ncols=len(PARTS), loc="outside lower center", frameon=False)
    try:
        figure.savefig(path, dpi=120, format="png")
    except OSError as error:
        raise ConfigError(f"the picture cannot be written to {path}: {reason(error)}") from error


def _shares(group: KeptByLayers, tokens: int, parts: int) -> list[float]:
    """Share that is held of each of so many equal parts of the text."""
    parts = min(parts, tokens)
    shares, size = [0.0] * parts, tokens / max(parts, 1)
    for first, end, share in group.runs:
        for i in range(int(first / size), min(parts, int((end - 1) / size) + 1)):
            overlap = min(end, (i + 1) * size) - max(first, i * size)
            shares[i] += share * max(0.0, overlap) / size
    return [min(1.0, share) for share in shares]


def _shade(share: float) -> str:
    return SHADES[-1 if share > 0.9999 else int(share * 3.999 + 0.999)]


def _name(layers: tuple[int, ...]) -> str:
    first, last = layers[0], layers[-1]
    return f"layer {first}" if first == last else f"layers {first}–{last}"
