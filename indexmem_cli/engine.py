"""Two loops: read a stream of tokens into a bounded memory, and answer from it. Never prints."""

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from indexmem_cli.backbone import Backbone
from indexmem_cli.config import CENTROIDS, LEARNED, AnswerConfig, MemoryConfig
from indexmem_cli.decoding import (
    FixedDecoder,
    best_attended,
    find_attended,
    has_fixed_steps,
    read_back,
)
from indexmem_cli.errors import ConfigError, OutOfMemory
from indexmem_cli.memory.bring_back import Spans, StoredKeys, bring_back
from indexmem_cli.memory.indexer import make_indexer_scorer
from indexmem_cli.memory.latent import CentroidMemory, count_clusters
from indexmem_cli.memory.policies import Scorer, make_scorer
from indexmem_cli.memory.state import MemoryState
from indexmem_cli.memory.update import evict, split_among_parts
from indexmem_cli.plan import Plan

DECODE_BLOCK_TOKENS = 128  # while answering, the memory is brought back to its budget this often
LEAST_PIECE = 4
"""A chunk that does not fit the device is read in two pieces, then in this many, then given up."""


@dataclass(frozen=True)
class Step:
    """One token of an answer."""

    token_id: int
    attended: list[tuple[int, float]]
    """Positions of the text that the token rests on and the attention each received, best first."""


class Constraint(Protocol):
    """Which tokens an answer may go on with."""

    def next_ids(self) -> Sequence[int]:
        """Return the tokens that may come next, at least one."""

    def push(self, token_id: int) -> None:
        """Take note of the token that came."""


@dataclass
class Reader:
    """A backbone reading one stream into one memory."""

    backbone: Backbone
    plan: Plan
    scorer: Scorer
    closing_ids: list[int] = field(default_factory=list)
    """The question with what surrounds it, for a scorer that `needs_question`."""
    shares: Sequence[float] = ()
    """Of the budget, by managed layer or by each head of them, as in `memory.update.split_budget`;
    none for all alike."""
    stored: StoredKeys | None = None
    """Where keys and values of all that is read go too; None: what is evicted is gone."""
    state: MemoryState = field(init=False)
    step_tokens: int = field(init=False)
    """Most tokens that pass the model at once; halved where memory runs out."""

    def __post_init__(self) -> None:
        plan = self.plan
        self.step_tokens = plan.chunk_tokens
        slots = plan.budget_tokens + plan.chunk_tokens + len(self.closing_ids)
        by_head = len(self.shares) > self.backbone.layer_windows.count(None)
        self.state = self.backbone.new_state(slots, plan.sink_tokens, plan.recent_tokens, by_head)
        budgets = split_among_parts(self.state, plan.budget_tokens, self.shares)
        for part, budget in zip(self.state.managed, budgets, strict=True):
            part.limit += budget - plan.budget_tokens
        self.state.watched_layers = getattr(self.scorer, "watched_layers", ())

    def fork(self) -> "Reader":
        """Return a reader with a copy of the memory, to answer from without changing this one."""
        scorer = copy.copy(self.scorer)  # it may go on gathering
        fork = Reader(self.backbone, self.plan, scorer, self.closing_ids, self.shares)
        fork.state = self.state.clone()
        return fork

    def forget_stored(self) -> None:
        """Write no more keys and values down, and bring none back."""
        if self.stored is not None:
            self.stored.shards.close()
            self.stored = None

    def fork_for(self, closing_ids: list[int]) -> "Reader":
        """Like `fork`, with a question that decides from now on what stays."""
        copy = Reader(self.backbone, self.plan, make_scorer("question"), closing_ids)
        copy.state = self.state.clone()
        copy.state.watched_layers, copy.state.hidden = (), {}
        return copy

    def recall(
        self, ids: Sequence[int], stored: StoredKeys | None = None, spans: Spans = ()
    ) -> None:
        """Read passages again on top of what the question attends to most of the memory.

        Both together take no more than an answer is written from, or what the passages and the
        sinks need: the caller sees to it that this is within the budget.

        Args:
            stored, spans: passages of this text whose keys and values are brought back instead.
        """
        tokens = len(ids) + sum(end - first for first, end in spans)
        keep = max(self.plan.sink_tokens, self.plan.answer_from_tokens - tokens)
        if stored is not None and spans:
            bring_back(self.state, self._score(0, []), keep, self.plan.span_tokens, stored, spans)
        else:
            self._keep_best(keep)
        self.plan = replace(self.plan, answer_from_tokens=self.plan.budget_tokens)
        step = self.plan.chunk_tokens
        for first in range(0, len(ids), step):
            part = ids[first : first + step]
            self.number_slots(len(part) + len(self.closing_ids))
            self._take_in(part, want_queries=False)

    def read(self, chunks: Iterable[Sequence[int]]) -> Iterator[int]:
        """Read token ids chunk by chunk; yield the number of tokens after each.

        When a chunk has passed every layer, all layers are brought back to the budget, so that at
        most budget + chunk slots are ever held.
        """
        for ids in chunks:
            self.number_slots(len(ids) + len(self.closing_ids))
            queries = self._take_in(ids, self.scorer.needs_queries)
            if self.stored is not None:
                self.stored.append(self.state, len(ids))
            self._fit(len(ids), queries, self.plan.budget_tokens)
            if self.stored is not None:
                self.stored.note_evicted(self.state)
            yield len(ids)

    def _take_in(self, ids: Sequence[int], want_queries: bool) -> list[Tensor]:
        """Pass tokens through the model, from now on in smaller pieces where there is no room.

        Nothing is evicted between the pieces: what is kept depends on them by rounding alone.

        Raises:
            OutOfMemory: not even for a quarter of a chunk.
        """
        parts, at = [], 0
        while at < len(ids):
            piece = ids[at : at + self.step_tokens]
            try:
                parts.append(self.backbone.read(piece, self.state, want_queries))
                at += len(piece)
                continue
            except OutOfMemory:
                if len(piece) <= self.plan.chunk_tokens // LEAST_PIECE:
                    raise
                self.step_tokens = -(-len(piece) // 2)
            self.backbone.give_back()  # out here, where the error holds nothing any more
        if len(parts) == 1:
            return parts[0]
        return [torch.cat(layer, dim=2) for layer in zip(*parts, strict=True)]

    def answer(
        self,
        closing_ids: Sequence[int],
        config: AnswerConfig,
        stop_ids: set[int],
        constraint: Constraint | None = None,
    ) -> Iterator[Step]:
        """Generate an answer; the question stays in memory until it is complete.

        Ends without a word more at a token of `stop_ids`, or after `config.max_tokens`.
        """
        state = self.state
        self.narrow()
        question = (state.seen, state.seen + len(closing_ids))
        state.pins.append(question)
        self.number_slots(len(closing_ids) + config.max_tokens)
        chance = torch.Generator().manual_seed(config.seed)
        pending: list[list[Tensor]] = []
        ids, unscored, decoder = list(closing_ids), 0, None
        full = self.plan.budget_tokens + len(closing_ids) + DECODE_BLOCK_TOKENS
        greedy = config.temperature == 0 and constraint is None
        for left in range(config.max_tokens, 0, -1):
            if decoder:
                room = max(1, min(left, full - state.held))
                logits, queries, found = decoder.predict(ids[0], room)
                logits = logits[0]
            else:
                logits, queries, paid = self.backbone.predict(
                    ids, state, self.scorer.needs_queries, want_attention=True
                )
                found = find_attended(state, paid, question[0])
            pending.append(queries)
            unscored += len(ids)
            finite, pairs, choice = read_back(logits, found, greedy)
            self.backbone.insist_finite(finite)
            if constraint:
                choice = only(choice, constraint.next_ids())
            token = int(choice) if greedy else sample(choice, config.temperature, chance)
            if token in stop_ids:
                break
            if constraint:
                constraint.push(token)
            yield Step(token, best_attended(pairs))
            ids = [token]
            if state.held >= full:
                merged = [torch.cat(layer, dim=2) for layer in zip(*pending, strict=True)]
                self._fit(unscored, merged, self.plan.budget_tokens + len(closing_ids))
                pending, unscored = [], 0
            if decoder is None and has_fixed_steps(self.backbone, state):
                decoder = FixedDecoder(self.backbone, state, question[0], self.scorer.needs_queries)

    def narrow(self) -> None:
        """Keep only what the question attends to most, of old and new tokens alike.

        Small models find more in less; measured in benchmarks/LOG.md.
        """
        if self.scorer.needs_question and self.plan.answer_from_tokens < self.plan.budget_tokens:
            self._keep_best(self.plan.answer_from_tokens)

    def _keep_best(self, tokens: int) -> None:
        """Bring the memory to `tokens` slots by the question alone, however recent they are."""
        recent, self.state.recent_tokens = self.state.recent_tokens, 0
        self._fit(0, [], tokens)
        self.state.recent_tokens = recent

    def number_slots(self, more_tokens: int) -> None:
        """Leave the text's own positions behind before they pass the trained window."""
        if self.state.seen + more_tokens > self.plan.window_tokens:
            self.state.use_compact_positions()

    @torch.no_grad()
    def _fit(self, new_tokens: int, queries: list[Tensor], budget: int) -> None:
        """Score all slots and bring every layer to the budget."""
        full = self.state.held > budget or self.shares  # a small layer is full before the others
        if not self.state.managed or not (full or self.scorer.accumulates):
            return
        scores = self._score(new_tokens, queries)
        evict(self.state, scores, budget, self.plan.span_tokens, self.shares)
        self.state.hidden = {}

    @torch.no_grad()
    def _score(self, new_tokens: int, queries: list[Tensor]) -> list[Tensor]:
        """Score all slots, by managed part."""
        block = self.backbone.block(self.state, new_tokens, queries)
        if self.scorer.needs_question:
            block.question_attention = self.backbone.probe(self.closing_ids, self.state)
        return self.scorer.score(block)


def only(logits: Tensor, ids: Sequence[int]) -> Tensor:
    """Return logits [V] that leave nothing possible but `ids`."""
    allowed = torch.full_like(logits, float("-inf"))
    allowed[list(ids)] = logits[list(ids)]
    return allowed


def sample(logits: Tensor, temperature: float, chance: torch.Generator) -> int:
    """Choose the next token from logits fp32 [V]; the likeliest one at temperature 0."""
    if temperature == 0:
        return int(logits.argmax())
    odds = torch.softmax(logits.cpu() / temperature, dim=-1)
    return int(torch.multinomial(odds, 1, generator=chance))


def make_reader(
    backbone: Backbone, plan: Plan, config: MemoryConfig, closing_ids: list[int]
) -> Reader:
    """Make a reader with a fresh scorer and an empty memory.

    Raises:
        BackboneError: the policy is `learned`, and the model has no adapter that fits.
        ConfigError: the budget cannot hold a latent memory besides what always stays.
    """
    config = config.settled(backbone)
    scorer: Scorer
    if config.policy == LEARNED:
        adapter = backbone.adapter
        scorer = make_indexer_scorer(adapter.indexer)
        shares, mass = adapter.shares, adapter.log_mass
    else:
        assert config.policy is not None, "the configuration chose one"
        scorer = make_scorer(config.policy, config.seed)
        shares, mass = [], None
    if config.latent != CENTROIDS:
        return Reader(backbone, plan, scorer, closing_ids, shares)
    clusters = count_clusters(plan.budget_tokens)
    room = backbone.info.window_tokens - plan.budget_tokens - plan.chunk_tokens
    reader = Reader(backbone, _pay_for(clusters, plan, backbone), scorer, closing_ids, shares)
    parts = reader.state.managed
    biases = [None] * len(parts) if mass is None else mass.reshape(len(parts), -1)
    for part, bias in zip(parts, biases, strict=True):
        part.latent = CentroidMemory(clusters, bias, max(clusters, room))
    return reader


def _pay_for(clusters: int, plan: Plan, backbone: Backbone) -> Plan:
    """Take the tokens out of a budget whose bytes clusters take in each head."""
    info, (_, size) = backbone.info, backbone.kv_shapes[0]
    row = size + 4 if info.kv_dtype == "int8" else size * backbone.model.dtype.itemsize
    price = math.ceil(CentroidMemory.nbytes_of(clusters, size) / (2 * row))
    least = plan.sink_tokens + plan.recent_tokens
    if plan.budget_tokens - price <= least:
        raise ConfigError(
            f"budget of {plan.budget_tokens:,} tokens cannot hold a latent memory of {price:,} "
            f"besides the {least:,} that always stay",
            f"raise --budget above {least + price:,}, or leave --latent out",
        )
    return replace(plan, budget_tokens=plan.budget_tokens - price)
