"""The methods that `indexers.py` compares: scorers, budgets and memories, each with its control.

A method is a name with parts, such as `shared+budgets+centroids`: a scorer, `NAME:shuffled` for its
twin, then what is added to it. A memory is paid for: its bytes are taken out of the budget.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import torch
from safetensors.torch import load_file, save_file

from indexmem_cli.bench.presses import PREFIX, PRESSES
from indexmem_cli.checkpoint import find_checkpoint
from indexmem_cli.config import POLICIES, ModelConfig
from indexmem_cli.engine import Reader
from indexmem_cli.loading import load_backbone
from indexmem_cli.memory.adapter import Adapter
from indexmem_cli.memory.latent import CentroidMemory, FastWeightMemory, FastWeights
from indexmem_cli.train.adapter import AdapterRecipe, train_adapter
from indexmem_cli.train.budgets import calibrate_budgets
from indexmem_cli.train.data import Corpus
from indexmem_cli.train.memory import fit_model
from indexmem_cli.train.teachers import WholeModel

FULL = "full"
FORMS = {
    "shared": ("shared", 1),
    "query": ("query", 1),
    "query-reuse": ("query", 4),
    "retention": ("retention", 1),
    "grouped": ("grouped", 2),
}
"""Adapters by name: their form, and how many layers share a score. The paper's reuse is over 4."""
BUDGETS = {"budgets": "moved", "heads": "heads-shuffled"}
"""Tables of budgets, each with its control."""
MEMORIES = {"centroids": "mixed", "fast": "fast-mixed"}
"""Memories, each with its control; `NAME-removed` pays for the memory and has none."""
FAST_FILE = "fast.safetensors"
FAST_TEXTS, FAST_TOKENS, FAST_STEPS = 8, 576, 100


class Oracle:
    """Keeps the evidence of every question, then the most recent tokens."""

    needs_queries = needs_question = accumulates = False

    def __init__(self, spans: list[tuple[int, int]], offset: int) -> None:
        self.spans = [(first + offset, end + offset) for first, end in spans]

    def score(self, block):
        places = block.positions(0)[:, :1]
        score = places.float() / 1e6
        for first, end in self.spans:
            score = score + 1.0 * ((places >= first) & (places < end))
        return [score] * len(block.state.managed)


class Mixed(CentroidMemory):
    """The control of the centroids: clusters with each other's mean values."""

    def means(self):
        """Mean keys, and mean values moved on by one among the live clusters."""
        keys, values = super().means()
        for row, count in zip(values.flatten(0, 1), self.count.flatten(0, 1), strict=True):
            live = count.nonzero()[:, 0]
            row[live] = row[live.roll(1)]
        return keys, values


class FastMixed(FastWeightMemory):
    """The control of the fast weights: every key is written with another's value."""

    def write(self, keys, values):
        return super().write(keys, values.roll(1, dims=2))


def default_modes(adapters: Iterable[str], controlled: str) -> list[str]:
    """Every training-free scorer, every adapter with its twin, and the bounds.

    Args:
        controlled: the adapter that budgets and memories are tried with; empty for none.
    """
    learned = [name + part for name in adapters for part in ("", ":shuffled")]
    parts = [*BUDGETS, *BUDGETS.values()]
    for name, twin in MEMORIES.items():
        parts += [f"budgets+{part}" for part in (name, twin, f"{name}-removed")]
    added = [f"{controlled}+{part}" for part in parts if controlled]
    free = [policy for policy in POLICIES if policy != "learned"]
    return [FULL, "oracle", *free, *learned, *added]


def twin_of(mode: str) -> str | None:
    """The control of what a mode has last: a memory, a table of budgets, or a learned score."""
    start, plus, part = mode.rpartition("+")
    twin = (BUDGETS | MEMORIES).get(part)
    if plus:
        return f"{start}+{twin}" if twin else None
    return None if ":" in mode else f"{mode}:shuffled"


def prepare_adapters(
    folder: Path, model: str, data: Path, steps: int, threads: int
) -> dict[str, str]:
    """Train what is missing of an adapter of every form; return their files by name.

    The first one gets both tables of budgets as well.
    """
    files = {name: folder / name / "adapter.safetensors" for name in FORMS}
    for name, file in files.items():
        if not file.exists():
            form, layers = FORMS[name]
            recipe = AdapterRecipe(form, layers, steps)
            train_adapter(model, data, file.parent, recipe, resume=True, threads=threads)
            if name == next(iter(FORMS)):
                for unit in ("layer", "head"):
                    cache = file.parent / "cache"
                    calibrate_budgets(model, data, cache, file, unit=unit, threads=threads)
    return {name: str(file) for name, file in files.items()}


def fit_fast(
    file: Path, adapter: Adapter, settings: ModelConfig, corpus: Corpus
) -> list[FastWeights]:
    """The paper's memory for every managed layer: read from `file`, or trained and written."""
    if not file.exists():
        backbone = load_backbone(find_checkpoint(settings.model, offline=True), settings)
        chance = Random(0)
        texts = [corpus.packed(chance, "prose", FAST_TOKENS) for _ in range(FAST_TEXTS)]
        fitted = fit_model(WholeModel(backbone), adapter.indexer, texts, num_steps=FAST_STEPS)
        states = [slow.state_dict().items() for slow, _ in fitted]
        weights = {f"{i}.{name}": t for i, state in enumerate(states) for name, t in state}
        save_file(weights, file)
    tensors, made = load_file(file), []
    for layer in range(len(adapter.indexer.config.layers)):
        slow = FastWeights(adapter.indexer.config.head_size).requires_grad_(False)
        slow.load_state_dict({name: tensors[f"{layer}.{name}"] for name in slow.state_dict()})
        made.append(slow)
    return made


def split_mode(mode: str) -> tuple[str, list[str], str]:
    """The scorer of a mode, its tables of budgets, and its memory with what became of it."""
    name, *parts = mode.split("+")
    tables = [part for part in parts if part in {*BUDGETS, *BUDGETS.values()}]
    memories = [part for part in parts if part not in tables]
    return name, tables, memories[0] if memories else ""


def shares_of(adapter: Adapter, table: str) -> list[float]:
    """Shares of the budget by the adapter's table of layers or heads, or by the table's control."""
    if table in ("budgets", "moved"):
        shares = adapter.layer_shares.tolist()
        return shares if table == "budgets" else shares[1:] + shares[:1]
    shares = adapter.head_shares.flatten().tolist()
    if table == "heads":
        return shares
    order = torch.randperm(len(shares), generator=torch.Generator().manual_seed(0))
    return [shares[i] for i in order]


def press_of(mode: str) -> str | None:
    """The class of kvpress that a mode `kvpress-NAME` runs; None for methods of this package."""
    start, _, name = mode.partition(PREFIX)
    return None if start else PRESSES[name]


def kind_of(memory: str) -> str:
    """The memory that is paid for: `centroids` or `fast`."""
    twins = {twin: name for name, twin in MEMORIES.items()}
    return twins.get(memory, memory.removesuffix("-removed"))


def price(memory: str, slots: int, size: int, itemsize: int) -> int:
    """Tokens of a head whose keys and values take as many bytes as its memory.

    Args:
        slots: clusters of centroids. size, itemsize: of a key.
    """
    if kind_of(memory) == "centroids":
        taken = CentroidMemory.nbytes_of(slots, size)
    else:  # W and b
        taken = 4 * size * (size + 1)
    return math.ceil(taken / (2 * size * itemsize))


def add_memory(
    reader: Reader, memory: str, slots: int, adapter: Adapter | None, fast: Sequence[FastWeights]
) -> None:
    """Give every managed part of a reader an empty memory, or none where it is removed."""
    if memory.endswith("removed"):
        return
    parts = reader.state.managed
    for place, part in enumerate(parts):
        layer = place * reader.backbone.layer_windows.count(None) // len(parts)
        if kind_of(memory) == "fast":
            part.latent = (FastWeightMemory if memory == "fast" else FastMixed)(fast[layer])
            continue
        bias = None
        if adapter is not None and adapter.log_mass is not None:
            bias = adapter.log_mass[layer]
            if len(parts) == adapter.log_mass.numel():
                bias = adapter.log_mass.flatten()[place : place + 1]
        part.latent = (CentroidMemory if memory == "centroids" else Mixed)(slots, bias)


def read_once(reader: Reader, chunks: Iterable[Sequence[int]]) -> Iterator[int]:
    """The paper's protocol: read everything with the whole cache, then compress it once."""
    chunks, plan, shares = [*chunks], reader.plan, reader.shares
    room = reader.state.seen + sum(map(len, chunks))
    reader.plan, reader.shares = replace(plan, budget_tokens=max(room, plan.budget_tokens)), ()
    yield from reader.read(chunks[:-1])
    reader.plan, reader.shares = plan, shares
    yield from reader.read(chunks[-1:])
