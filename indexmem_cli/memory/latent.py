"""What is left of evicted tokens: small memories, one for each managed layer.

`CentroidMemory` keeps means of clusters and joins them inside the softmax; it needs no training.
`FastWeightMemory` is the paper's. Both change nothing at all while they are empty or switched off.
Axes as in `state.py`; M memory slots, E evicted tokens.
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from indexmem_cli import ops

MERGE_EVERY = 8
"""Writes between two looks at whether a slot is better spent elsewhere."""
LLOYD_ROUNDS = 10
TOKENS_PER_CLUSTER = 32
"""Of a budget, for each cluster of a `CentroidMemory`."""


class LatentMemory(Protocol):
    """A memory of evicted keys (before rotation) and values."""

    @property
    def is_silent(self) -> bool:
        """Whether reading would change nothing, so that it can be left out."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of the state."""
        ...

    def write(self, keys: Tensor, values: Tensor) -> Tensor:
        """Take in evicted tokens, [B, G, E, D]; return a tag for each, int64 [B, G, E]."""
        ...

    def remove(self, keys: Tensor, values: Tensor, tags: Tensor) -> None:
        """Take tokens out again that were written with these tags."""
        ...

    def read(self, query: Tensor, out: Tensor, lse: Tensor, scale: float) -> Tensor:
        """Join what is remembered to the attention over kept slots.

        Args:
            query: turned to one fixed distance, [B, H, T, D]. out: fp32 [B, H, T, D], with its
                log normaliser lse: fp32 [B, H, T].
        """
        ...

    def share(self, query: Tensor, lse: Tensor, scale: float) -> Tensor:
        """The part of the output that `read` takes from the memory: fp32 [B, H, T]."""
        ...

    def save(self) -> dict[str, Tensor]:
        """Return the state as named tensors."""
        ...

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over a state that `save` returned."""
        ...

    def clone(self) -> "LatentMemory":
        """Return an independent copy."""
        ...


class CentroidMemory:
    """Clusters of evicted tokens: counts and sums of keys and values, fp32.

        z_m = q . mean key_m * scale + log n_m + bias;  o = softmax(z) . mean values;  lse = LSE(z)

    By Jensen's inequality lse is at most that of the tokens themselves, so the memory never claims
    more attention than they had. Beyond `most_tokens` all n_m shrink alike, to that sum: attention
    among more tokens than a model was trained on is nothing that it knows. Sums make a token
    removable exactly: a slot is merged with another or started anew, and never split.
    """

    _parts = ("count", "keys", "values", "home", "tags")

    def __init__(
        self, slots: int, bias: Tensor | None = None, most_tokens: float = float("inf")
    ) -> None:
        """Make an empty memory.

        Args:
            slots: clusters per head. bias: calibrated log mass, fp32 [G], at most 0.
            most_tokens: that all clusters together may weigh as much as.
        """
        self.slots, self.bias, self.most_tokens = slots, bias, most_tokens
        # Without elements until something is written.
        self.count = torch.empty(0, 0, 0)  # fp32 [B, G, M]
        self.keys = torch.empty(0, 0, 0, 0)  # fp32 [B, G, M, D], sums
        self.values = torch.empty(0, 0, 0, 0)  # fp32 [B, G, M, D], sums
        self.home = torch.empty(0, 0, 0)  # int64 [B, G, tags]: the slot where a tag's tokens are
        self.tags = torch.empty(0, 0, 0)  # int64 [B, G, M]: the tag that a slot gives out now
        self.writes = 0

    @property
    def _is_empty(self) -> bool:
        return not self.count.numel()

    @property
    def is_silent(self) -> bool:
        if self._is_empty:
            return True
        return self.bias is not None and bool((self.bias == float("-inf")).all())

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.save().values())

    @staticmethod
    def nbytes_of(slots: int, size: int) -> int:
        """Bytes that clusters take in one head with keys of a size: two sums, a count, two tags."""
        return slots * (2 * 4 * size + 4 + 2 * 8)

    def write(self, keys: Tensor, values: Tensor) -> Tensor:
        if keys.shape[2] == 0:
            return torch.empty(keys.shape[:3], dtype=torch.int64, device=keys.device)
        keys, values = keys.float(), values.float()
        if self._is_empty:
            self._make_room(keys)
            slot = self._first_slots(keys)
        else:
            slot = self._next_slots(keys)
        self.writes += 1
        if ops.uses_kernels(keys):
            sums = ops.sum_clusters(keys, values, _all_of(keys), slot, self.slots)
            for total, added in zip((self.keys, self.values, self.count), sums, strict=True):
                total += added
        else:
            self._add(slot, keys, values)
        return self.tags.gather(2, slot)

    def remove(self, keys: Tensor, values: Tensor, tags: Tensor) -> None:
        self._add(self.home.gather(2, tags), keys.float(), values.float(), -1)
        empty = (self.count < 0.5).unsqueeze(-1)
        self.count.clamp_(min=0)
        self.keys.masked_fill_(empty, 0.0)
        self.values.masked_fill_(empty, 0.0)

    def _add(self, slot: Tensor, keys: Tensor, values: Tensor, sign: int = 1) -> None:
        """Add tokens to the sums of their slots, int64 [B, G, E], or take them away."""
        heads = self.count.shape[:2].numel()
        where = slot.flatten(0, 1) + self.slots * torch.arange(heads, device=slot.device)[:, None]
        one = torch.ones(where.numel(), device=slot.device)
        for sums, added in ((self.count, one), (self.keys, keys), (self.values, values)):
            rows = added.reshape(-1, *sums.shape[3:])
            sums.view(-1, *sums.shape[3:]).index_add_(0, where.flatten(), rows, alpha=sign)

    def read(self, query: Tensor, out: Tensor, lse: Tensor, scale: float) -> Tensor:
        return ops.merge_attention(out, lse, *self._attend(query, scale))

    def share(self, query: Tensor, lse: Tensor, scale: float) -> Tensor:
        return torch.sigmoid(self._attend(query, scale)[1] - lse)

    def _attend(self, query: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        keys, values = self.means()
        found = ops.attend_with_lse(query, keys, values, scale, self._log_mass(), causal=False)
        return found[0], found[1]

    def _log_mass(self) -> Tensor:
        share = (self.most_tokens / self.count.sum(-1, keepdim=True)).clamp(max=1)
        bias = (self.count * share).log()  # -inf where nothing is
        return bias if self.bias is None else bias + self.bias[:, None]

    def segment(self, query: Tensor) -> ops.Segment:
        """The clusters as keys to attend to, by queries [B, H, D] at the one distance."""
        return ops.Segment(query.float(), *self.means(), bias=self._log_mass())

    def means(self) -> tuple[Tensor, Tensor]:
        """Mean keys and values of the clusters, fp32 [B, G, M, D]; 0 where a cluster is empty."""
        count = self.count.clamp(min=1).unsqueeze(-1)
        return self.keys / count, self.values / count

    def save(self) -> dict[str, Tensor]:
        if self._is_empty:
            return {}
        parts = {name: getattr(self, name) for name in self._parts}
        return parts | {"writes": torch.tensor([self.writes])}

    def load(self, tensors: dict[str, Tensor]) -> None:
        if tensors and tensors.keys() != {*self._parts, "writes"}:
            raise ValueError("not the parts of a centroid memory")
        for name, tensor in tensors.items():
            setattr(self, name, int(tensor) if name == "writes" else tensor.clone())

    def clone(self) -> "CentroidMemory":
        copy = type(self)(self.slots, self.bias, self.most_tokens)
        copy.load(self.save())
        return copy

    def _make_room(self, keys: Tensor) -> None:
        batch, heads, _, size = keys.shape
        like = {"dtype": torch.float32, "device": keys.device}
        self.count = torch.zeros(batch, heads, self.slots, **like)
        self.keys, self.values = (torch.zeros(batch, heads, self.slots, size, **like) for _ in "kv")
        self.tags = torch.arange(self.slots, device=keys.device).expand(batch, heads, -1).clone()
        self.home = self.tags.clone()

    def _first_slots(self, keys: Tensor) -> Tensor:
        """Group the first batch: each its own slot, or farthest points first, then Lloyd."""
        batch, heads, tokens, size = keys.shape
        if tokens <= self.slots:
            order = torch.arange(tokens, device=keys.device)
            return order.expand(batch, heads, -1).contiguous()
        centres = keys[:, :, :1]
        distance = (keys - centres).pow(2).sum(-1)
        for _ in range(self.slots - 1):
            far = distance.argmax(-1)[..., None, None].expand(-1, -1, 1, size)
            centre = keys.gather(2, far)
            centres = torch.cat([centres, centre], dim=2)
            distance = torch.minimum(distance, (keys - centre).pow(2).sum(-1))
        for _ in range(LLOYD_ROUNDS):
            slot = torch.cdist(keys, centres).argmin(-1)
            count = torch.zeros_like(self.count).scatter_add_(2, slot, torch.ones_like(distance))
            wide = slot.unsqueeze(-1).expand_as(keys)
            means = torch.zeros_like(self.keys).scatter_add_(2, wide, keys)
            means = means / count.clamp(min=1).unsqueeze(-1)
            centres = torch.where(count.unsqueeze(-1) > 0, means, centres)
        return torch.cdist(keys, centres).argmin(-1)

    def _next_slots(self, keys: Tensor) -> Tensor:
        """The nearest live slot of each; now and then the farthest newcomer gets one of its own."""
        if ops.uses_kernels(keys):
            means = self.means()[0]
            slot, distance = ops.assign_clusters(keys, _all_of(keys), means, self.count)
            slot = slot.long()
        else:
            empty = self.count == 0
            apart = torch.cdist(keys, self.means()[0]).masked_fill(empty.unsqueeze(2), float("inf"))
            distance, slot = apart.min(dim=-1)
        if self.writes % MERGE_EVERY == 0:
            far = distance.argmax(-1)
            for b in range(slot.shape[0]):
                for g in range(slot.shape[1]):
                    freed = self._free_a_slot(b, g, float(distance[b, g, far[b, g]]))
                    if freed is not None:
                        slot[b, g, far[b, g]] = freed
        return slot

    def _free_a_slot(self, b: int, g: int, distance: float) -> int | None:
        """An empty slot; or one of the two closest, if they are closer than `distance`.

        Those two are merged: sums add, and the tags of the one move to the other.
        """
        count = self.count[b, g]
        if bool((count == 0).any()):
            freed = int((count == 0).int().argmax())
        else:
            apart = torch.cdist(self.means()[0][b, g], self.means()[0][b, g])
            apart.fill_diagonal_(float("inf"))
            stays, freed = divmod(int(apart.argmin()), self.slots)
            if distance <= float(apart[stays, freed]):
                return None
            for sums in (self.count, self.keys, self.values):
                sums[b, g, stays] += sums[b, g, freed]
                sums[b, g, freed] = 0
            self.home[b, g][self.home[b, g] == freed] = stays
        fresh = torch.full_like(self.home[..., :1], freed)
        self.home = torch.cat([self.home, fresh], dim=2)
        self.tags[b, g, freed] = self.home.shape[2] - 1
        return freed


def count_clusters(budget_tokens: int) -> int:
    """How many clusters a centroid memory has beside a budget; at least four."""
    return max(4, budget_tokens // TOKENS_PER_CLUSTER)


def _all_of(tokens: Tensor) -> Tensor:
    """The index of every token of [B, G, E, D]: int32 [B, G, E]."""
    every = torch.arange(tokens.shape[2], dtype=torch.int32, device=tokens.device)
    return every.expand(*tokens.shape[:3])


class FastWeights(nn.Module):
    """The slow weights of the paper's memory for one layer: a feature map, decay, and a gate."""

    def __init__(self, head_size: int, features: int | None = None) -> None:
        super().__init__()
        self.map = nn.Linear(head_size, features or head_size, bias=False)
        self.gate = nn.Linear(head_size, 1)
        self.decay_logit = nn.Parameter(torch.tensor(4.0))
        nn.init.zeros_(self.gate.weight)
        # A gate of 0.001: untrained it does next to nothing.
        nn.init.constant_(self.gate.bias, -6.9)

    @property
    def decay(self) -> Tensor:
        """What a write leaves of what was there, in (0, 1)."""
        return torch.sigmoid(self.decay_logit)


class FastWeightMemory:
    """The paper's memory: linear attention with online weights, added through a gate.

        m(q) = (f(q)^T W) / (f(q)^2 . b + eps);   o = o_kept + g(q) m(q);   f = map
        W <- decay W + sum_i f(k_i) v_i^T;   b <- decay b + sum_i f(k_i)^2

    One feature map and gate serve all heads of a layer, while each KV head has weights of its own.
    The factor of a write cancels between W and b, so there is none. Tokens can be removed exactly
    only while the decay is 1. Source: IndexMem (arXiv 2605.25475), section 4.
    """

    eps = 1e-6

    def __init__(self, slow: FastWeights) -> None:
        self.slow = slow
        # Without elements until something is written.
        self.weights = torch.empty(0, 0, 0, 0)  # fp32 [B, G, F, D]
        self.norm = torch.empty(0, 0, 0)  # fp32 [B, G, F]

    @property
    def _is_empty(self) -> bool:
        return not self.weights.numel()

    @property
    def is_silent(self) -> bool:
        return self._is_empty or bool(self.slow.gate.bias == float("-inf"))

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.save().values())

    def write(self, keys: Tensor, values: Tensor) -> Tensor:
        if self._is_empty:
            batch, heads, _, size = keys.shape
            features = self.slow.map.out_features
            self.weights = torch.zeros(batch, heads, features, size, device=keys.device)
            self.norm = torch.zeros(batch, heads, features, device=keys.device)
        if keys.shape[2]:
            old = self.slow.map.weight, self.weights, self.norm
            new = ops.update_fast_weights(keys, values, _all_of(keys), *old, self.slow.decay)
            self.weights, self.norm = new
        return torch.zeros(keys.shape[:3], dtype=torch.int64, device=keys.device)

    def remove(self, keys: Tensor, values: Tensor, tags: Tensor) -> None:
        features = self.slow.map(keys.float())
        self.weights = self.weights - features.transpose(-1, -2) @ values.float()
        self.norm = self.norm - features.pow(2).sum(2)

    def read(self, query: Tensor, out: Tensor, lse: Tensor, scale: float) -> Tensor:
        grouped = query.float().unflatten(1, (self.weights.shape[1], -1))  # [B, G, H / G, T, D]
        features = self.slow.map(grouped)
        norm = (features.pow(2) * self.norm[:, :, None, None]).sum(-1, keepdim=True)
        found = (features @ self.weights.unsqueeze(2)) / (norm + self.eps)
        return out + (torch.sigmoid(self.slow.gate(grouped)) * found).flatten(1, 2)

    def share(self, query: Tensor, lse: Tensor, scale: float) -> Tensor:
        grouped = query.float().unflatten(1, (self.weights.shape[1], -1))
        return torch.sigmoid(self.slow.gate(grouped)).squeeze(-1).flatten(1, 2)

    def save(self) -> dict[str, Tensor]:
        return {} if self._is_empty else {"weights": self.weights, "norm": self.norm}

    def load(self, tensors: dict[str, Tensor]) -> None:
        if tensors and tensors.keys() != {"weights", "norm"}:
            raise ValueError("not the parts of a fast-weight memory")
        for name, tensor in tensors.items():
            setattr(self, name, tensor)

    def clone(self) -> "FastWeightMemory":
        copy = type(self)(self.slow)
        copy.load(self.save())  # never changed in place
        return copy
