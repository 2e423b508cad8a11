"""A text read in a stream under a budget: what it costs to predict it, and how it is gone on with.

What methods share below the level of questions. `EngineStream` is the product's engine.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from indexmem_cli.config import NO_LATENT, AnswerConfig, MemoryConfig
from indexmem_cli.engine import Reader, make_reader
from indexmem_cli.language_model import LanguageModel
from indexmem_cli.plan import Plan, make_plan, room_for_question

if TYPE_CHECKING:
    from indexmem_cli.bench.methods import Asked


class Stream(Protocol):
    """A memory that reads, and then writes."""

    @property
    def nbytes(self) -> int:
        """Of the keys and values that are kept."""
        ...

    def read(self, ids: Sequence[int]) -> None:
        """Read token ids in chunks, the prompt's opening before the first."""
        ...

    def losses(self, ids: Sequence[int]) -> list[float]:
        """Read them without the opening; return nats of each but the first, predicted by what is
        kept of the chunks before, and by its own chunk."""
        ...

    def write(self, closing: Sequence[int], config: AnswerConfig, stop: set[int]) -> list[int]:
        """Go on after what closes the prompt."""
        ...


@dataclass
class EngineStream:
    """The engine's reader."""

    model: LanguageModel
    reader: Reader
    in_one: bool = False
    """Whether all is read before anything is evicted."""

    @property
    def nbytes(self) -> int:
        return self.reader.state.nbytes

    def read(self, ids: Sequence[int]) -> None:
        opening = self.model.prompt.opening
        chunks = [[*opening, *ids]] if self.in_one else [*filter(None, [opening]), *self._cut(ids)]
        for _ in self.reader.read(chunks):
            pass

    def losses(self, ids: Sequence[int]) -> list[float]:
        decoder = self.model.backbone.decoder

        def states() -> Iterator[Tensor]:
            seen: list[Tensor] = []
            keep = lambda module, args, out: seen.append(out.last_hidden_state[0])  # noqa: E731
            hook = decoder.register_forward_hook(keep)
            try:
                for _ in self.reader.read(self._cut(ids)):
                    yield torch.cat(seen)
                    seen.clear()
            finally:
                hook.remove()

        found: list[float] = predict_losses(self.model.backbone.model, states(), ids)
        return found

    def write(self, closing: Sequence[int], config: AnswerConfig, stop: set[int]) -> list[int]:
        return [step.token_id for step in self.reader.answer(closing, config, stop)]

    def _cut(self, ids: Sequence[int]) -> list[Sequence[int]]:
        size = self.reader.plan.chunk_tokens
        return [ids[at : at + size] for at in range(0, len(ids), size)]


@torch.no_grad()
def predict_losses(model: nn.Module, states: Iterator[Tensor], ids: Sequence[int]) -> list[float]:
    """Return nats of each token but the first, from a decoder's last states [T, d_model]."""
    losses, last, at = [], None, 0
    for found in states:
        before = found[:-1] if last is None else torch.cat([last, found[:-1]])
        truth = torch.tensor(ids[at + (last is None) : at + len(found)], device=found.device)
        logits = model.get_output_embeddings()(before).float()
        losses += torch.nn.functional.cross_entropy(logits, truth, reduction="none").tolist()
        last, at = found[-1:], at + len(found)
    return losses


def open_stream(
    model: LanguageModel,
    asked: "Asked",
    *,
    policy: str,
    once: bool = False,
    share: Callable[[Sequence[float], int], Sequence[float]] = lambda shares, layers: shares,
    latent: str = NO_LATENT,
    change: Callable[[LanguageModel, Reader], None] = lambda model, reader: None,
) -> EngineStream | None:
    """Open a stream of the engine, with the settings that `indexmem ask` would take.

    Args:
        once: whether all is read before anything is evicted; None is returned where it is too long.
        share: what becomes of the adapter's shares of the budget, of layers or of all their heads.
        change: what is done to the reader before anything is read.
    """
    window = model.backbone.info.window_tokens
    closing = model.prompt.closing(model.tokenizer.encode(asked.question)) if asked.question else []
    size = asked.budget_tokens, asked.chunk_tokens
    config = MemoryConfig(*size, policy=policy, recall=False, latent=latent)
    lengths = len(model.prompt.opening), room_for_question(window)
    plan, _ = make_plan(config, window, *lengths, model.answer_from_tokens)
    if once:
        tokens = lengths[0] + len(model.tokenizer.encode(asked.text))
        if tokens + len(closing) + asked.max_tokens > window:
            return None
        plan = replace(plan, chunk_tokens=tokens)
    reader = make_reader(model.backbone, plan, config, closing)
    num_managed = sum(window is None for window in model.backbone.layer_windows)
    shares = share(reader.shares, num_managed)
    if shares is not reader.shares:  # a reader lays its memory out by them when it is made
        reader = Reader(model.backbone, plan, reader.scorer, closing, shares)
    change(model, reader)
    return EngineStream(model, reader, once)


def open_full(model: LanguageModel, asked: "Asked") -> EngineStream | None:
    """Open a stream that keeps everything; None beyond the model's trained window."""
    ids = model.tokenizer.encode(asked.text)
    closing = model.prompt.closing(model.tokenizer.encode(asked.question))
    opening, window = model.prompt.opening, model.backbone.info.window_tokens
    needed = len(opening) + len(ids) + len(closing) + asked.max_tokens
    if needed > window:
        return None
    plan = Plan(needed, asked.chunk_tokens, len(opening), 0, 1, needed, window)
    config = MemoryConfig(policy="recency", recall=False)
    return EngineStream(model, make_reader(model.backbone, plan, config, closing))
