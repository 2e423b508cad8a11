"""What a token is worth, seen from afterwards: attention that it received, in whole passes.

`WholeModel` runs rows of text through the frozen model at once, without a cache, and can watch
attention, gate it, and hide what a stream would have evicted. Nothing here is used while reading.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from indexmem_cli.backbone import Backbone
from indexmem_cli.hooks import HookedModel
from indexmem_cli.memory.update import select_kept
from indexmem_cli.ops import attend, pool_spans
from indexmem_cli.rotation import turn

ROWS_AT_ONCE = 128
LABEL_SPAN_TOKENS = 5


@dataclass(frozen=True)
class LayerPass:
    """What attention in one managed layer was given."""

    query: Tensor
    """Turned to its position, [B, H, T, D]."""
    far_query: Tensor
    """Turned to the fixed distance from which a latent memory is seen."""
    key: Tensor
    """Turned to its position, [B, G, T, D]."""
    stored_key: Tensor
    """As it is stored: before rotation."""
    value: Tensor
    scale: float
    softcap: float | None


@dataclass
class Whole:
    """One pass over rows of T tokens. Lists have one entry per managed layer."""

    watched: tuple[int, ...] = ()
    rows: Tensor | None = None
    """Rows whose attention is watched: bool [B, T]."""
    gates: list[Tensor] | None = None
    """Numbers to add to the logits: [B, 1 or G, T, T]; -inf hides."""
    want_logits: bool = False
    """Whether the largest logits are watched too."""
    want_layers: bool = False
    """Whether `layers` is filled."""
    layers: list[LayerPass] = field(default_factory=list)
    hidden: dict[int, Tensor] = field(default_factory=dict)
    """Attention inputs [B, T, d_model] of the watched layers."""
    queries: list[Tensor] = field(default_factory=list)
    """Queries before rotation, [B, H, T, D]."""
    received: list[Tensor] = field(default_factory=list)
    """Largest attention that any watched row and head of the group pays: fp32 [B, G, T]."""
    logits: list[Tensor] = field(default_factory=list)
    """The same of the logits before the softmax."""
    output: Tensor = field(init=False)
    """The decoder's last states, [B, T, d_model]; there once the pass is over."""


class WholeModel(HookedModel[Whole]):
    """A model for training: no memory, whole rows, gradients where they are wanted."""

    def __init__(self, backbone: Backbone, in_bf16: bool = False) -> None:
        """Take the model over from `backbone`, which can no longer be used."""
        backbone.detach()
        self.in_bf16 = in_bf16
        super().__init__(backbone.model, backbone.info, backbone.layer_windows)
        self.model.requires_grad_(False)
        self.managed = tuple(i for i, window in enumerate(self.layer_windows) if window is None)

    def run(self, ids: Tensor, **options: Any) -> Whole:
        """Pass rows of token ids [B, T] through all layers; options are fields of `Whole`."""
        run = Whole(**options)
        precision = torch.autocast(self.device.type, torch.bfloat16, enabled=self.in_bf16)
        with self.running(run), precision:
            run.output = self.decoder(input_ids=ids, use_cache=False).last_hidden_state
        return run

    def predict_from(self, states: Tensor) -> Tensor:
        """Logits fp32 [..., V] of the decoder's last states."""
        logits = self.model.get_output_embeddings()(states).float()
        cap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def attend(
        self,
        run: Whole,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """Attend in one layer to all that came before, as `HookedModel.attend` says."""
        positions = torch.arange(query.shape[2], device=query.device)[None]
        angles = self.angles(module, query, positions)
        turned, keys = (turn(module, x, *angles) for x in (query, key))
        managed = module.layer_idx in self.managed
        gates = None
        if managed:
            run.queries.append(query)
            if run.gates is not None:
                gates = run.gates[self.managed.index(module.layer_idx)]
            if run.want_layers:
                far = self.turn_far(module, query)
                run.layers.append(LayerPass(turned, far, keys, key, value, scaling, softcap))
            if run.rows is not None:
                with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                    self._watch_rows(run, run.rows, turned, keys, scaling, softcap)
        if gates is None:
            window = None if managed else window
            return attend(turned, keys, value, scaling, None, window, softcap).transpose(1, 2)
        logits = _grouped_logits(turned, keys, scaling, softcap) + gates.unsqueeze(2)
        causal = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
        weights = logits.masked_fill(~causal, float("-inf")).softmax(-1).to(value.dtype)
        return (weights @ value.unsqueeze(2)).flatten(1, 2).transpose(1, 2)

    def _watch_rows(
        self,
        run: Whole,
        watched: Tensor,
        query: Tensor,
        keys: Tensor,
        scaling: float,
        softcap: float | None,
    ) -> None:
        """Note the largest weights of the watched rows, a block of rows at a time."""
        best = top = None
        most = int(watched.sum(1).max())
        # The watched rows of each text first, then others, which are struck out again.
        where = watched.int().sort(dim=1, descending=True, stable=True).indices[:, :most]
        for first in range(0, most, ROWS_AT_ONCE):
            rows = where[:, first : first + ROWS_AT_ONCE]  # [B, R]
            wide = rows[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3])
            logits = _grouped_logits(query.gather(2, wide), keys, scaling, softcap)
            seen = torch.arange(keys.shape[2], device=rows.device) <= rows.unsqueeze(-1)
            logits = logits.masked_fill(~seen[:, None, None], float("-inf"))
            off = ~watched.gather(1, rows)[:, None, None, :, None]
            paid = logits.softmax(-1).masked_fill(off, 0).amax(dim=(2, 3))
            best = paid if best is None else torch.maximum(best, paid)
            if run.want_logits:
                paid = logits.masked_fill(off, float("-inf")).amax(dim=(2, 3))
                top = paid if top is None else torch.maximum(top, paid)
        run.received.append(best)
        if run.want_logits:
            run.logits.append(top)


def _grouped_logits(query: Tensor, key: Tensor, scaling: float, softcap: float | None) -> Tensor:
    """Logits [B, G, H / G, T, N] in fp32."""
    grouped = query.float().unflatten(1, (key.shape[1], -1))
    logits = grouped @ key.float().unsqueeze(2).transpose(-1, -2) * scaling
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def attention_labels(
    received: list[Tensor], groups: Sequence[tuple[int, ...]], by_head: bool
) -> list[Tensor]:
    """The largest attention each token received, by group of layers.

    Args:
        received: per managed layer, fp32 [B, G, T].
        groups: places of the layers that share a score.
        by_head: keep the heads apart.

    Returns:
        Per managed layer fp32 [B, G or 1, T], pooled over a few neighbours.
    """
    labels = []
    for group in groups:
        best = torch.stack([received[place] for place in group]).amax(dim=0)
        best = best if by_head else best.amax(dim=1, keepdim=True)
        where = torch.arange(best.shape[-1], device=best.device)
        labels += [pool_spans(best, where, LABEL_SPAN_TOKENS)] * len(group)
    return labels


@torch.no_grad()
def reconstruction_scores(
    model: WholeModel,
    text: Tensor,
    before: list[int],
    between: list[int],
    watched: tuple[int, ...] = (),
) -> tuple[list[Tensor], dict[int, Tensor]]:
    """The largest attention each token receives while the text is repeated, chunk by chunk.

    One chunk and its repetition are all that is ever held, so any length can be scored.
    Source: KVzip (Kim et al. 2025).

    Args:
        text: token ids of chunks, [B, C]. before, between: what stands before a chunk, and between
            it and its repetition. watched: layers whose attention inputs are wanted.

    Returns:
        Per managed layer fp32 [B, G, C], and the inputs [B, C, d_model] of the watched layers.
    """
    frame = (torch.tensor(part, device=text.device).long() for part in (before, between))
    above, amid = (part.expand(len(text), -1) for part in frame)
    ids = torch.cat([above, text, amid, text], dim=1)
    first, size = len(before), text.shape[1]
    rows = torch.zeros_like(ids, dtype=torch.bool)
    rows[:, -size - 1 :] = True
    run = model.run(ids, rows=rows, watched=watched)
    hidden = {layer: states[:, first : first + size] for layer, states in run.hidden.items()}
    return [paid[:, :, first : first + size] for paid in run.received], hidden


@dataclass(frozen=True)
class Streaming:
    """How the training text is read in a stream, and what of it always stays."""

    chunk_tokens: int = 64
    sink_tokens: int = 7
    recent_tokens: int = 16
    span_tokens: int = 17

    def budget(self, tokens: int, keep_fraction: float) -> int:
        """Slots for a text of so many tokens: that part of it, and room for more than pins."""
        return max(2 * (self.sink_tokens + self.recent_tokens) + 2, int(tokens * keep_fraction))


def hide_evicted(scores: Tensor, ends: list[int], budgets: list[int], stream: Streaming) -> Tensor:
    """What each row may see when the text before it was read in chunks under a budget.

    Args:
        scores: fp32 [B, 1 or G, T]. ends: where the text of each row ends; what follows is never
            evicted. budgets: slots for each row.

    Returns:
        0 where visible and -inf where evicted before: fp32 [B, 1 or G, T, T], not yet causal.
    """
    batch, heads, tokens = scores.shape
    deadline = torch.full((batch, heads, tokens), tokens, device=scores.device)
    for b, (end, budget) in enumerate(zip(ends, budgets, strict=True)):
        alive = torch.empty(heads, 0, dtype=torch.int64, device=scores.device)
        for first in range(0, end, stream.chunk_tokens):
            last = min(first + stream.chunk_tokens, end)
            fresh = torch.arange(first, last, device=scores.device).expand(heads, -1)
            alive = torch.cat([alive, fresh], dim=1)
            if alive.shape[1] > budget:
                pinned = (alive < stream.sink_tokens) | (alive >= last - stream.recent_tokens)
                pooled = pool_spans(scores[b].gather(1, alive), alive, stream.span_tokens)
                alive = alive.gather(1, select_kept(pooled, pinned, budget))
                gone = deadline[b, :, :last] >= tokens
                gone.scatter_(1, alive, False)
                deadline[b, :, :last].masked_fill_(gone, last - 1)
    rows = torch.arange(tokens, device=scores.device)[:, None]
    return torch.zeros(batch, heads, tokens, tokens, device=scores.device).masked_fill_(
        rows > deadline.unsqueeze(2), float("-inf")
    )
