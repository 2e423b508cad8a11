"""Methods to compare the policies with: latent memories, one-shot eviction, and twins of features.

A feature counts only where it beats its twin: the same with its scores shuffled, its values
swapped, its budgets moved to another layer, or without it.
"""

import copy
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from random import Random
from typing import Any

import torch
from torch import Tensor

from indexmem_cli.bench.methods import answer_by_stream
from indexmem_cli.bench.streams import open_stream
from indexmem_cli.bench.suites import Method, add_method
from indexmem_cli.checkpoint import find_checkpoint
from indexmem_cli.config import CENTROIDS, FOCUS, LEARNED, POLICIES, UNFOCUSED, ModelConfig
from indexmem_cli.engine import Reader
from indexmem_cli.language_model import LanguageModel
from indexmem_cli.loading import load_backbone
from indexmem_cli.memory.latent import (
    FastWeightMemory,
    FastWeights,
    LatentMemory,
)
from indexmem_cli.memory.policies import Block, Scorer
from indexmem_cli.tokens import load_tokenizer
from indexmem_cli.train.data import read_code
from indexmem_cli.train.memory import fit_fast_weights, replay
from indexmem_cli.train.teachers import Streaming, WholeModel

FITTED_TEXTS, FITTED_TOKENS, FITTED_CHUNK, FITTED_STEPS = 6, 512, 64, 100
FITTED_SHARE = 8  # an eighth of each text is kept
MOST_CHARS_PER_TOKEN = 6


class Shuffled:
    """The control of a scorer: the scores of the new tokens, each given to another of them."""

    def __init__(self, scorer: Scorer, seed: int = 0) -> None:
        self.scorer, self.chance = scorer, torch.Generator().manual_seed(seed)

    def __copy__(self) -> "Shuffled":
        """Return a control that shares the order of what is to come, of a copy of the scorer."""
        twin = Shuffled(copy.copy(self.scorer))
        twin.chance = self.chance
        return twin

    def __getattr__(self, name: str) -> Any:
        return getattr(self.scorer, name)

    def score(self, block: Block) -> list[Tensor]:
        """Score every slot; the same tensor for several layers stays one."""
        order = torch.randperm(block.new_tokens, generator=self.chance)
        done: dict[int, Tensor] = {}
        scores = self.scorer.score(block)
        for score in scores:
            if id(score) not in done:
                fresh = score[:, :, -block.new_tokens :]
                done[id(score)] = torch.cat(
                    [score[:, :, : -block.new_tokens], fresh[:, :, order.to(score.device)]], dim=2
                )
        return [done[id(score)] for score in scores]


class Swapped:
    """The control of a latent memory: each evicted token is written with the value of another."""

    def __init__(self, memory: LatentMemory, seed: int = 0) -> None:
        self.memory, self.chance = memory, torch.Generator().manual_seed(seed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.memory, name)

    def clone(self) -> "Swapped":
        """Return a control of a copy, for a question."""
        return Swapped(self.memory.clone())

    def write(self, keys: Tensor, values: Tensor) -> Tensor:
        """Write the keys with the values in another order."""
        order = torch.randperm(values.shape[2], generator=self.chance).to(values.device)
        return self.memory.write(keys, values[:, :, order])


def shuffle(model: LanguageModel, reader: Reader) -> None:
    """Take every new token's score from another."""
    reader.scorer = Shuffled(reader.scorer)


def level(shares: Sequence[float], layers: int) -> Sequence[float]:
    """Give all layers and heads the same budget."""
    return ()


def move(shares: Sequence[float], layers: int) -> Sequence[float]:
    """Give each layer, or each head, the budget of the next one."""
    return [*shares[1:], *shares[:1]]


def join_heads(shares: Sequence[float], layers: int) -> Sequence[float]:
    """Give the heads of a layer the same budget."""
    heads = len(shares) // layers
    if heads < 2:
        return shares
    return [sum(shares[i : i + heads]) / heads for i in range(0, len(shares), heads)]


def swap(model: LanguageModel, reader: Reader) -> None:
    """Have every latent memory written with the values of other tokens."""
    for part in reader.state.managed:
        if part.latent is not None:
            part.latent = Swapped(part.latent)


def add_fast_weights(model: LanguageModel, reader: Reader) -> None:
    """Give every managed layer the paper's memory, which is of one size whatever the budget."""
    info = model.backbone.info
    slow = fit_slow_weights(model.name, info.dtype, info.device)
    for layer, weights in zip(reader.state.managed, slow, strict=True):
        layer.latent = FastWeightMemory(weights)


def add_swapped_fast_weights(model: LanguageModel, reader: Reader) -> None:
    """The control of `add_fast_weights`."""
    add_fast_weights(model, reader)
    swap(model, reader)


@lru_cache(maxsize=1)
def fit_slow_weights(name: str, dtype: str, device: str) -> list[FastWeights]:
    """Fit the fast-weight memory's slow weights to a model, a layer at a time: a minute or less.

    The texts are of Python's standard library, which no task of `bench quality` asks about; what is
    evicted of them is drawn at random.
    """
    checkpoint = find_checkpoint(name)
    model = WholeModel(load_backbone(checkpoint, ModelConfig(name, dtype=dtype, device=device)))
    tokenizer = load_tokenizer(checkpoint.path)
    code = "\n".join(Random(0).sample(read_code()[0], 4 * FITTED_TEXTS))
    ids = tokenizer.encode(code[: FITTED_TEXTS * FITTED_TOKENS * MOST_CHARS_PER_TOKEN])
    chance = torch.Generator().manual_seed(0)
    tokens = min(FITTED_TOKENS, len(ids) // FITTED_TEXTS)
    by_text = []
    for first in range(0, tokens * FITTED_TEXTS, tokens):
        text = torch.tensor([ids[first : first + tokens]], device=model.device)
        score = torch.rand(1, 1, tokens, generator=chance).to(model.device)
        scores = [score] * len(model.managed)
        kept = tokens // FITTED_SHARE
        stream = Streaming(FITTED_CHUNK, sink_tokens=4, recent_tokens=kept // 4, span_tokens=1)
        by_text.append([*replay(model, text, scores, kept, stream)])
    fitted = []
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        for replays in zip(*by_text, strict=True):
            size = replays[0].layer.value.shape[3]
            slow = FastWeights(size).to(model.device)
            fit_fast_weights(list(replays), slow, FITTED_STEPS)
            fitted.append(slow.eval().requires_grad_(False))
    return fitted


def add_streamed(name: str, group: str, **settings: Any) -> None:
    """Make a method known that is a stream of the engine with settings of its own."""
    opened = partial(open_stream, **settings)
    answered = partial(answer_by_stream, open=opened)
    can_go_on = not settings.get("once")  # nothing was evicted before the last token
    add_method(name, Method(answered, open=opened if can_go_on else None, group=group))


def list_variants() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name all variants, with their groups and the arguments of `open_stream`."""
    unfocused = [policy for policy in POLICIES if policy != FOCUS]
    for policy in unfocused:
        centroids = {"policy": policy, "latent": CENTROIDS}
        # One set of slow weights serves a layer, so its heads have one budget.
        fast = {"policy": policy, "share": join_heads}
        yield f"{policy}+{CENTROIDS}", "memories", centroids
        yield f"{policy}+fast-weights", "memories", fast | {"change": add_fast_weights}
        if policy in (LEARNED, UNFOCUSED):
            yield f"{policy}+{CENTROIDS}-swapped", "twins", centroids | {"change": swap}
            twin = fast | {"change": add_swapped_fast_weights}
            yield f"{policy}+fast-weights-swapped", "twins", twin
    for policy in unfocused:
        if policy not in ("recency", "random"):
            yield f"{policy}-shuffled", "twins", {"policy": policy, "change": shuffle}
    for name, share in (("even", level), ("moved", move)):
        yield f"{LEARNED}-{name}", "twins", {"policy": LEARNED, "share": share}
    for policy in POLICIES:
        yield f"{policy}-once", "once", {"policy": policy, "once": True}


for _name, _group, _settings in list_variants():
    add_streamed(_name, _group, **_settings)
