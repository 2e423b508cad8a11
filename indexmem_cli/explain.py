"""What a memory kept of a text, and what a question makes of it: numbers, a picture, some lines."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from indexmem_cli.engine import Reader
from indexmem_cli.errors import ConfigError

SHADES = " ░▒▓█"


@dataclass(frozen=True)
class LayerMass:
    """Where the attention of a question goes in one layer; the parts add up to 1."""

    layer: int
    sinks: float
    """The first tokens of the stream."""
    kept: float
    """What else was kept of the text."""
    recent: float
    """The last tokens of the text."""
    question: float
    """The question's own tokens."""
    memory: float
    """The latent memory of what was evicted."""


@dataclass(frozen=True)
class Explanation:
    """What was kept of a text of N tokens, by groups of layers that keep the same."""

    layers: tuple[tuple[int, ...], ...]
    """The managed layers of each group."""
    held: Tensor
    """Share of a group's heads that hold each token, fp32 [groups, N]."""
    masses: tuple[LayerMass, ...]

    def lines(self, width: int = 72) -> list[str]:
        """One line a group over the whole text: the darker, the more of that part was kept."""
        lines = []
        for group, held in zip(self.layers, self.held, strict=True):
            parts = held.tensor_split(min(width, len(held)))
            cells = [SHADES[-1 if p.mean() == 1 else int(p.mean() * 3.999 + 0.999)] for p in parts]
            lines.append(f"{_name(group)} │{''.join(cells)}│")
        return lines

    def draw(self, path: Path) -> None:
        """Write a heat map over the text, and the attention by layer beside it, as a PNG.

        Raises:
            ConfigError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ConfigError(
                "a picture needs matplotlib, which is not installed",
                "pip install 'indexmem[bench]'",
            ) from error
        figure = Figure(figsize=(11, 1.6 + 0.35 * len(self.masses)), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(2.4, 1))
        left.imshow(
            self.held.numpy(),
            aspect="auto",
            interpolation="nearest",
            cmap="viridis",
            vmin=0,
            vmax=1,
        )
        left.set(xlabel="token of the text", title="kept, by layers")
        left.set_yticks(range(len(self.layers)), [_name(group) for group in self.layers])
        start = [0.0] * len(self.masses)
        for part in ("sinks", "kept", "recent", "question", "memory"):
            sizes = [getattr(mass, part) for mass in self.masses]
            right.barh([str(mass.layer) for mass in self.masses], sizes, left=start, label=part)
            start = [a + b for a, b in zip(start, sizes, strict=True)]
        right.set(xlim=(0, 1), title="attention of the question, by layer")
        right.invert_yaxis()
        right.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False)
        figure.savefig(path, dpi=120)


def explain(reader: Reader, closing_ids: list[int]) -> Explanation:
    """Say what `reader` kept, and what the question attends to; the reader stays as it was.

    Args:
        closing_ids: the question with what surrounds it.
    """
    fork = reader.fork()
    state, backbone = fork.state, reader.backbone
    seen, question = state.seen, len(closing_ids)
    numbers = [i for i, window in enumerate(backbone.layer_windows) if window is None]
    layers, rows = [], []
    for number, layer in zip(numbers, state.managed, strict=True):
        places = layer.positions[0, :, : layer.held]
        row = torch.zeros(seen).index_add_(
            0, places.flatten().cpu(), torch.full((places.numel(),), 1 / len(places))
        )
        if rows and torch.equal(rows[-1], row):
            layers[-1] += (number,)
        else:
            layers.append((number,))
            rows.append(row)
    fork._number_slots(question)
    queries = backbone.read(closing_ids, state, want_queries=True)
    block = backbone.block(state, question, queries)
    masses = []
    for i, number in enumerate(numbers):
        weights, places = block.attention(i, 0, question)[0], block.positions(i)[0]
        memory = block.remembered(i)[0].mean().item()
        asked = places >= seen
        sinks = places < state.sink_tokens
        recent = (places >= seen - state.recent_tokens) & ~asked & ~sinks
        grouped = weights.unflatten(0, (len(places), -1)).mean(dim=(1, 2))  # [G, N]
        parts = [
            float((grouped * part).sum(-1).mean()) * (1 - memory)
            for part in (sinks, ~(sinks | recent | asked), recent, asked)
        ]
        masses.append(LayerMass(number, *parts, memory))
    return Explanation(tuple(layers), torch.stack(rows), tuple(masses))


def _name(group: tuple[int, ...]) -> str:
    first, last = group[0], group[-1]
    return f"layer {first}" if first == last else f"layers {first}–{last}"
