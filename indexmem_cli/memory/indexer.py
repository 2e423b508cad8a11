"""The learned scorers: nets that say of each token how much it will be worth keeping.

`TokenIndexer` scores a token once, from its own hidden state; `QueryIndexer` is the paper's, whose
scores depend on the queries that were read. Both are plain modules; `TokenScorer` and `QueryScorer`
make them scorers of one stream.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from indexmem_cli.errors import ConfigError
from indexmem_cli.memory.policies import Block, GathersNothing
from indexmem_cli.ops import MAX_HIDDEN, score_pairs, score_states, uses_kernels

FORMS = ("shared", "grouped", "shared-heads", "retention", "query")


@dataclass(frozen=True)
class IndexerConfig:
    """The shape of an indexer; it follows from the model and the form."""

    form: str
    """shared: one score for all layers and heads, from the input of the last managed layer.
    grouped: one score per group of layers, from the input of the group's last layer.
    shared-heads: the shared score plus a term for each layer and head.
    retention: a score per layer and head, from that layer's own input.
    query: the paper's; one score per group of layers, from keys and queries of its first layer."""
    layers: tuple[int, ...]
    """The managed layers of the model."""
    width: int
    """Size of a hidden state."""
    kv_heads: int
    heads: int
    head_size: int
    group_layers: int = 1
    """Layers that share a score, for the forms `grouped` and `query`."""
    hidden: int = 256
    """Units inside the net; 0 for a linear one."""
    activation: str = "relu"
    """relu | none: what a dot product passes through in the form `query`."""

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ConfigError(f"unknown indexer: {self.form!r}", f"choose one of {FORMS}")
        if not self.layers or self.group_layers < 1:
            raise ConfigError("an indexer needs a layer whose cache is kept under a budget")

    @property
    def groups(self) -> list[tuple[int, ...]]:
        """Places among `layers` that share a net."""
        sizes = {"retention": 1, "shared": len(self.layers), "shared-heads": len(self.layers)}
        size = sizes.get(self.form, self.group_layers)
        places = range(len(self.layers))
        return [tuple(places[first : first + size]) for first in places[::size]]

    @property
    def watched_layers(self) -> tuple[int, ...]:
        """The layers of the model whose attention inputs the indexer reads."""
        place = 0 if self.form == "query" else -1
        return tuple(self.layers[group[place]] for group in self.groups)


class ScoreNet(nn.Module):
    """LN → W1 → LN → GELU → W2, in fp32. Norms first: states differ 100-fold over depth.

    With no units inside, LN → W.
    """

    def __init__(self, width: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        if hidden:
            self.inner = nn.Linear(width, hidden)
            self.inner_norm = nn.LayerNorm(hidden)
        self.out = nn.Linear(hidden or width, outputs)

    def forward(self, states: Tensor) -> Tensor:
        """Map [B, T, width] in any dtype to fp32 [B, T, outputs]."""
        fused = hasattr(self, "inner") and self.inner.out_features <= MAX_HIDDEN
        if fused and not torch.is_grad_enabled() and uses_kernels(states):
            layers = (self.norm, self.inner, self.inner_norm, self.out)
            pairs = ((layer.weight, layer.bias) for layer in layers)
            return score_states(states, *pairs, self.norm.eps).transpose(1, 2)
        states = self.norm(states.float())
        if hasattr(self, "inner"):
            states = nn.functional.gelu(self.inner_norm(self.inner(states)))
        return self.out(states)


class TokenIndexer(nn.Module):
    """Scores each token once, from hidden states alone, so that the choice needs no query."""

    def __init__(self, config: IndexerConfig) -> None:
        super().__init__()
        self.config = config
        outputs = config.kv_heads if config.form == "retention" else 1
        self.nets = nn.ModuleList(
            ScoreNet(config.width, config.hidden, outputs) for _ in config.groups
        )
        if config.form == "shared-heads":
            count = len(config.layers) * config.kv_heads
            self.head_term = nn.Linear(config.width, count)
            nn.init.zeros_(self.head_term.weight)
            nn.init.zeros_(self.head_term.bias)

    def forward(self, hidden: dict[int, Tensor]) -> list[Tensor]:
        """Score tokens from the attention inputs [B, T, width] of `config.watched_layers`.

        Returns:
            fp32 [B, G or 1, T] per managed layer; the same tensor object for layers that share.
        """
        config = self.config
        scores: list[Tensor] = []
        for net, group, layer in zip(self.nets, config.groups, config.watched_layers, strict=True):
            scores += [net(hidden[layer]).transpose(1, 2)] * len(group)
        if config.form == "shared-heads":
            states = hidden[config.watched_layers[-1]].float()
            terms = self.head_term(self.nets[0].norm(states)).transpose(1, 2)
            terms = terms.unflatten(1, (len(config.layers), config.kv_heads))
            scores = [score + terms[:, i] for i, score in enumerate(scores)]
        return scores


class QueryIndexer(nn.Module):
    """The paper's indexer: a token is worth what some query of the stream says of it.

        q = RMSNorm(U_q Q)  [T, I, d]     k = RMSNorm(U_k X)  [T, d]     alpha = G X / sqrt(I d)
        A[s, t] = sum_i alpha[s, i] act(q[s, i] . k[t]),  t <= s;    imp[t] = max over s of A[s, t]

    Q are the queries before rotation and X the attention input of the group's first layer, whose
    scores the other layers of the group reuse. I = H / 4 indexer heads, d = D / 8.
    Source: IndexMem (arXiv 2605.25475), section 3 and appendix B.3.
    """

    def __init__(self, config: IndexerConfig) -> None:
        super().__init__()
        self.config = config
        self.index_heads = max(1, config.heads // 4)
        self.index_size = max(4, config.head_size // 8)
        self.queries, self.keys, self.gates = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        flat = config.heads * config.head_size
        for _ in config.groups:
            self.queries.append(nn.Linear(flat, self.index_heads * self.index_size, bias=False))
            self.keys.append(nn.Linear(config.width, self.index_size, bias=False))
            self.gates.append(nn.Linear(config.width, self.index_heads, bias=False))
        self.query_norm, self.key_norm = (
            nn.ModuleList(nn.RMSNorm(self.index_size) for _ in config.groups) for _ in range(2)
        )

    def make_keys(self, group: int, states: Tensor) -> Tensor:
        """Index keys [B, T, d] of attention inputs [B, T, width]."""
        return self.key_norm[group](self.keys[group](states.float()))

    def relevance(self, group: int, query: Tensor, states: Tensor, keys: Tensor) -> Tensor:
        """A of T queries over N index keys, without the causal mask.

        Args:
            query: before rotation, [B, H, T, D]. states: attention inputs, [B, T, width].
            keys: [B, N, d].

        Returns:
            fp32 [B, T, N].
        """
        small, alpha = self.make_queries(group, query, states)
        dots = torch.einsum("bsid,btd->bsit", small, keys)
        if self.config.activation == "relu":
            dots = dots.relu()
        return torch.einsum("bsi,bsit->bst", alpha, dots)

    def make_queries(self, group: int, query: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """Index queries [B, T, I, d] and their gates [B, T, I]; arguments as `relevance`."""
        flat = query.float().transpose(1, 2).flatten(2)
        small = self.queries[group](flat).unflatten(2, (self.index_heads, self.index_size))
        alpha = self.gates[group](states.float()) / (self.index_heads * self.index_size) ** 0.5
        return self.query_norm[group](small), alpha


def make_indexer(config: IndexerConfig) -> TokenIndexer | QueryIndexer:
    """Make an untrained indexer."""
    return QueryIndexer(config) if config.form == "query" else TokenIndexer(config)


class TokenScorer(GathersNothing):
    """A `TokenIndexer` reading one stream: a token's score is made once and kept beside it."""

    needs_queries = False
    needs_question = False
    accumulates = True  # a score can only be made while the token's states are there

    def __init__(self, indexer: TokenIndexer) -> None:
        self.indexer = indexer
        self.watched_layers = indexer.config.watched_layers

    def score(self, block: Block) -> list[Tensor]:
        fresh = self.indexer(block.hidden) if block.new_tokens else None
        if fresh and (parts := len(block.state.managed) // len(fresh)) > 1:  # each head is one
            fresh = [part for score in fresh for part in _by_part(score, parts)]
        scores: list[Tensor] = []
        for i, layer in enumerate(block.state.managed):
            same = i and fresh and fresh[i] is fresh[i - 1]
            if same and layer.held == scores[-1].shape[2]:  # as many by one score: the same tokens
                scores.append(scores[-1])
                continue
            heads = fresh[i].shape[1] if fresh else layer.scores.shape[1]
            old = layer.scores[:, :heads, : layer.held - block.new_tokens]
            scores.append(torch.cat([old, fresh[i]], dim=2) if fresh else old.clone())
        return scores


class QueryScorer(GathersNothing):
    """A `QueryIndexer` reading one stream. Index keys lie beside the slots and leave with them."""

    needs_queries = True
    needs_question = False
    accumulates = True
    rows = 128

    def __init__(self, indexer: QueryIndexer) -> None:
        self.indexer = indexer
        self.watched_layers = indexer.config.watched_layers

    def score(self, block: Block) -> list[Tensor]:
        config, scores = self.indexer.config, []
        for group, places in enumerate(config.groups):
            layer = block.state.managed[places[0]]
            states = block.hidden[config.watched_layers[group]]
            fresh = self.indexer.make_keys(group, states)[:, None]
            notes = fresh if layer.notes is None else torch.cat([layer.notes, fresh], dim=2)
            layer.notes = notes
            best = layer.scores[:, :1, : layer.held].clone()
            best[..., layer.held - block.new_tokens :] = float("-inf")
            query = block.queries[places[0]]
            if uses_kernels(query) and block.new_tokens:
                asked = self.indexer.make_queries(group, query, states)
                relu = config.activation == "relu"
                best = score_pairs(*asked, notes[:, 0], best[:, 0], relu).unsqueeze(1)
                scores += [best] * len(places)
                continue
            for first in range(0, block.new_tokens, self.rows):
                end = min(first + self.rows, block.new_tokens)
                paid = self.indexer.relevance(
                    group, query[:, :, first:end], states[:, first:end], notes[:, 0]
                )
                seen = layer.held - block.new_tokens + first
                visible = torch.ones_like(paid, dtype=torch.bool).tril(seen)
                paid = paid.masked_fill(~visible, float("-inf"))
                torch.maximum(best, paid.amax(dim=1, keepdim=True), out=best)
            scores += [best] * len(places)
        return scores


def _by_part(score: Tensor, parts: int) -> list[Tensor]:
    """A layer's score [B, G or 1, T] for each of its heads; a shared one stays one tensor."""
    return [score] * parts if score.shape[1] == 1 else list(score.split(1, dim=1))


def make_indexer_scorer(indexer: TokenIndexer | QueryIndexer) -> TokenScorer | QueryScorer:
    """Make a fresh scorer for one stream."""
    return (QueryScorer if isinstance(indexer, QueryIndexer) else TokenScorer)(indexer)
