"""Training-free scorers: what each keeps when the budget is full, one short class each.

A scorer is asked after a block of new tokens has passed every layer, so it may look at any layer's
states. To add one: write a class with `score`, enter it in `SCORERS`, name it in `config.POLICIES`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from indexmem_cli.memory.state import MemoryState


@dataclass
class Block:
    """New tokens that have passed every layer, and what a scorer may ask about them.

    Lists hold one entry per managed layer. The block's own tokens are the last of the N slots.
    """

    state: MemoryState
    new_tokens: int
    queries: list[Tensor]
    """Queries before rotation, [B, H, T, D]; filled when the scorer `needs_queries`."""
    hidden: dict[int, Tensor]
    """Attention inputs [B, T, d_model] by layer of the model: those in `state.watched_layers`."""
    question_attention: list[Tensor]
    """Largest attention of any token of the question and any query head of the group to each slot,
    fp32 [B, G, N]; filled when the scorer `needs_question`."""
    attention: Callable[[int, int, int], Tensor]
    """attention(layer, first, end): weights fp32 [B, H, R, N] of the block's rows [first, end)."""
    rotate: Callable[[int, Tensor, Tensor], Tensor]
    """rotate(layer, x [B, X, n, D], positions int64 [n]): x turned to those positions."""
    turned_keys: Callable[[int], Tensor]
    """turned_keys(layer): keys [B, G, N, D], each turned to where its own head holds it."""
    remembered: Callable[[int], Tensor]
    """remembered(layer): share of each row's attention that the latent memory takes, [B, H, T]."""

    def keys(self, layer: int) -> Tensor:
        """Keys of a managed layer before rotation, [B, G, N, D]."""
        return self.state.managed[layer].all_keys()

    def values(self, layer: int) -> Tensor:
        """Values of a managed layer, [B, G, N, D]."""
        return self.state.managed[layer].all_values()

    def positions(self, layer: int) -> Tensor:
        """Positions of a managed layer's slots in the text, int64 [B, G, N]."""
        held = self.state.managed[layer]
        return held.positions[:, :, : held.held]

    def by_kv_head(self, per_query_head: Tensor, layer: int) -> Tensor:
        """Split [B, H, ...] into [B, G, H / G, ...]."""
        return per_query_head.unflatten(1, (self.keys(layer).shape[1], -1))


class Scorer(Protocol):
    """Says how much each slot is worth keeping."""

    needs_queries: bool
    """Whether it looks at the queries of the new tokens."""
    needs_question: bool
    """Whether it looks at what the question attends to."""
    accumulates: bool
    """Whether it has to see every block, also while nothing needs to be evicted."""

    def score(self, block: Block) -> list[Tensor]:
        """Score every slot of every managed layer: fp32 [B, G, N] each, higher stays longer.

        The same tensor object for every layer, of shape [B, 1, N], means one choice for all.
        """
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Return what was gathered so far, to be saved with the memory."""
        ...

    def set_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take over what another scorer of this kind had gathered.

        Raises:
            ValueError: it is not what `tensors` of this kind returns.
        """
        ...


class GathersNothing:
    """A scorer that depends on nothing but the memory in front of it."""

    def tensors(self) -> dict[str, Tensor]:
        """Return what was gathered so far: nothing."""
        return {}

    def set_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take over nothing."""
        if tensors:
            raise ValueError(f"nothing is gathered by {type(self).__name__}")


class _Plain(GathersNothing):
    """A scorer that looks at keys, values and positions alone."""

    needs_queries = False
    needs_question = False
    accumulates = False

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed


class Recency(_Plain):
    """Keep the most recent tokens. Source: StreamingLLM (Xiao et al. 2023); sinks are pinned."""

    def score(self, block: Block) -> list[Tensor]:
        age = (block.positions(0)[:, :1] - block.state.seen).float()
        return [age] * len(block.state.managed)


class Random(_Plain):
    """Keep a random sample, by the seed and each token's position alone: the control."""

    def score(self, block: Block) -> list[Tensor]:
        mixed = (block.positions(0)[:, :1] + 1) * 0x9E3779B1 + self.seed * 0x85EBCA6B
        for _ in range(3):  # xorshift-multiply rounds of a 32-bit integer hash
            mixed = ((mixed ^ (mixed >> 15)) * 0x2C1B3C6D) & 0xFFFFFFFF
        return [(mixed >> 9).float()] * len(block.state.managed)


class KeyNorm(_Plain):
    """Keep keys of small norm. Source: Devoto et al. 2024, "A simple and effective L2 norm"."""

    def score(self, block: Block) -> list[Tensor]:
        return [-block.keys(i).float().norm(dim=-1) for i in range(len(block.state.managed))]


class KeyDiff(_Plain):
    """Keep keys unlike the mean unit key, before rotation. Source: KeyDiff (Park et al. 2025)."""

    def score(self, block: Block) -> list[Tensor]:
        scores = []
        for i in range(len(block.state.managed)):
            unit = torch.nn.functional.normalize(block.keys(i).float(), dim=-1)
            anchor = torch.nn.functional.normalize(unit.mean(dim=2, keepdim=True), dim=-1)
            scores.append(-(unit * anchor).sum(-1))
        return scores


class SnapKV(_Plain):
    """Keep what the last queries of the block attend to. Source: SnapKV (Li et al. 2024)."""

    needs_queries = True
    rows = 32

    def score(self, block: Block) -> list[Tensor]:
        first = max(0, block.new_tokens - self.rows)
        scores = []
        for i in range(len(block.state.managed)):
            weights = block.attention(i, first, block.new_tokens)
            scores.append(block.by_kv_head(weights.mean(dim=2), i).mean(dim=2))
        return scores


class Tova(_Plain):
    """Keep what the last token attends to, averaged over heads. Source: TOVA (Oren et al. 2024)."""

    needs_queries = True

    def score(self, block: Block) -> list[Tensor]:
        last = block.new_tokens - 1
        return [
            block.attention(i, last, last + 1).mean(dim=(1, 2)).unsqueeze(1)
            for i in range(len(block.state.managed))
        ]


class HeavyHitters(_Plain):
    """Keep what has received most attention since it was read. Source: H2O (Zhang et al. 2023)."""

    needs_queries = True
    accumulates = True
    rows = 128

    def score(self, block: Block) -> list[Tensor]:
        scores = []
        for i, layer in enumerate(block.state.managed):
            total = layer.scores[:, :, : layer.held].clone()
            for first in range(0, block.new_tokens, self.rows):
                end = min(first + self.rows, block.new_tokens)
                received = block.attention(i, first, end).sum(dim=2)
                total += block.by_kv_head(received, i).sum(dim=2)
            scores.append(total)
        return scores


class ExpectedAttention(_Plain):
    """Keep what a Gaussian fitted to the queries so far would attend to in the next 512 positions.

    score = softmax_n( mu' . k_n / sqrt(D) + k_n^T Sigma' k_n / 2 D ) * |v_n|, where mu' and Sigma'
    are the running mean and covariance of the queries before rotation, turned by the average
    rotation of those positions. Source: Expected Attention (Devoto et al. 2025).
    """

    needs_queries = True
    accumulates = True
    future_tokens = 512

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.count = 0
        # Per layer the sums of q [B, H, D] and of q q^T [B, H, D, D].
        self.sums: list[tuple[Tensor, Tensor]] = []
        # How the future positions turn a vector of ones, and on average each axis.
        self.turned = torch.empty(0), torch.empty(0)

    def score(self, block: Block) -> list[Tensor]:
        self._observe(block)
        scores = []
        for i in range(len(block.state.managed)):
            mean, cov = self._future_queries(block, i)
            keys, size = block.turned_keys(i).float(), mean.shape[-1]
            keys = keys.repeat_interleave(mean.shape[1] // keys.shape[1], dim=1)  # [B, H, N, D]
            logits = (keys @ mean.unsqueeze(-1)).squeeze(-1) / size**0.5
            logits += ((keys @ cov) * keys).sum(-1) / (2 * size)
            expected = block.by_kv_head(logits.softmax(-1), i).mean(dim=2)
            scores.append(expected * block.values(i).float().norm(dim=-1))
        return scores

    def tensors(self) -> dict[str, Tensor]:
        sums = {
            f"{i}.{name}": x
            for i, two in enumerate(self.sums)
            for name, x in zip("qo", two, strict=True)
        }
        return {"count": torch.tensor(self.count), **sums}

    def set_tensors(self, tensors: dict[str, Tensor]) -> None:
        layers = range((len(tensors) - 1) // 2)
        if tensors.keys() != {"count", *(f"{i}.{name}" for i in layers for name in "qo")}:
            raise ValueError("not the sums of queries")
        sums = [(tensors[f"{i}.q"], tensors[f"{i}.o"]) for i in layers]
        for total, outer in sums:
            if total.dim() != 3 or outer.shape != (*total.shape, total.shape[-1]):
                raise ValueError("not the sums of queries")
        self.count, self.sums = int(tensors["count"]), sums

    def _observe(self, block: Block) -> None:
        self.count += block.new_tokens
        sums = []
        for i, queries in enumerate(block.queries):
            queries = queries.float()
            total, outer = queries.sum(2), queries.transpose(-1, -2) @ queries
            if self.sums:
                total, outer = (
                    new + old.to(new.device)
                    for new, old in zip((total, outer), self.sums[i], strict=True)
                )
            sums.append((total, outer))
        self.sums = sums  # a list of its own: copies of the scorer share the old one

    def _future_queries(self, block: Block, layer: int) -> tuple[Tensor, Tensor]:
        """Mean [B, H, D] and covariance [B, H, D, D] of the queries at the positions to come."""
        total, outer = self.sums[layer]
        mean = total / self.count
        cov = outer / self.count - mean.unsqueeze(-1) * mean.unsqueeze(-2)
        size = mean.shape[-1]
        next_position = block.state.held if block.state.compact else block.state.seen
        future = torch.arange(self.future_tokens, device=mean.device) + next_position
        ones = block.rotate(layer, torch.ones(1, 1, len(future), size, device=mean.device), future)
        if not torch.equal(ones.cpu(), self.turned[0]):  # most layers turn alike
            basis = torch.eye(size, device=mean.device)[None, :, None, :]
            basis = basis.expand(-1, -1, len(future), -1)
            self.turned = ones.cpu(), block.rotate(layer, basis, future).mean(dim=2)[0]
        turn = self.turned[1].to(mean.device)  # row d: average image of axis d
        return mean @ turn, turn.T @ cov @ turn


class Question(_Plain):
    """Keep what the question attends to: one score for all layers and heads.

    score[n] = max over layers, heads and question tokens of the attention paid to slot n.
    The question has to be known before reading. Where heads hold other tokens, the maximum is
    taken over those that hold a token, and each head ranks its own.
    """

    needs_question = True

    def score(self, block: Block) -> list[Tensor]:
        if not block.state.uniform:
            return self._score_by_token(block)
        first = block.question_attention[0].device  # layers may lie on several
        by_layer = [paid.amax(dim=1).to(first) for paid in block.question_attention]
        best = torch.stack(by_layer).amax(dim=0)
        return [best.unsqueeze(1)] * len(block.state.managed)

    def _score_by_token(self, block: Block) -> list[Tensor]:
        first = block.question_attention[0].device  # layers may lie on several
        paid = [weights.to(first) for weights in block.question_attention]
        best = paid[0].new_zeros(len(paid[0]), block.state.seen)
        where = [block.positions(i).flatten(1).to(first) for i in range(len(paid))]
        for places, weights in zip(where, paid, strict=True):
            best.scatter_reduce_(1, places, weights.flatten(1), "amax")
        pairs = zip(where, paid, strict=True)
        return [best.gather(1, places).view_as(weights) for places, weights in pairs]


SCORERS: dict[str, type] = {
    "question": Question,
    "recency": Recency,
    "knorm": KeyNorm,
    "keydiff": KeyDiff,
    "snapkv": SnapKV,
    "tova": Tova,
    "h2o": HeavyHitters,
    "expected-attention": ExpectedAttention,
    "random": Random,
}


def make_scorer(policy: str, seed: int = 0) -> Scorer:
    """Make a fresh scorer for one stream; `policy` is a key of `SCORERS`."""
    scorer: Scorer = SCORERS[policy](seed)
    return scorer
