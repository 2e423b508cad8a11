"""Tiny seeded models of every supported family, with sharp attention, and readers of them."""

import copy

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from indexmem_cli.backbone import Backbone
from indexmem_cli.checkpoint import Checkpoint
from indexmem_cli.config import MemoryConfig
from indexmem_cli.engine import Reader
from indexmem_cli.events import ModelInfo
from indexmem_cli.plan import make_plan

VOCABULARY = 300
WINDOW = 1024
_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": WINDOW,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
_MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
CONFIGS = {
    "llama": LlamaConfig(**_SHAPE),
    "llama-3.1": LlamaConfig(**_SHAPE, rope_parameters=_LLAMA3),
    "qwen2": Qwen2Config(**_SHAPE),
    "qwen3": Qwen3Config(**_SHAPE, head_dim=16),
    "mistral": MistralConfig(**_SHAPE, sliding_window=None),
    "mistral-sliding": MistralConfig(**_SHAPE, sliding_window=48),
    "phi3": Phi3Config(**_SHAPE),
    "gemma2": Gemma2Config(**_SHAPE, head_dim=16, sliding_window=48, query_pre_attn_scalar=16),
    "gemma3": Gemma3TextConfig(**_SHAPE, head_dim=16, sliding_window=48, layer_types=_MIXED),
}


def make_model(family: str):
    """A seeded model in fp32; matrices times 4, so that attention is far from uniform."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[family])).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.mul_(4)
    model.set_attn_implementation("eager")
    return model


def make_backbone(family: str, model=None) -> Backbone:
    """A backbone around `make_model(family)`, or around the model given."""
    config = CONFIGS[family].to_dict()
    windows = Checkpoint(family, None, "", config).layer_windows
    info = ModelInfo(family, "", "none", "float32", "cpu", WINDOW)
    return Backbone(model or make_model(family), info, windows)


def token_ids(count: int, seed: int = 0) -> list[int]:
    """Seeded ids without the special ones."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCABULARY, (count,), generator=generator).tolist()


def stream(
    backbone,
    scorer,
    ids: list[int],
    *,
    budget: int = 64,
    chunk: int = 32,
    question=(),
    shares=(),
    stored=None,
    make_latent=None,
    **memory,
) -> Reader:
    """A reader that has read the ids in chunks; `memory` is what else a `MemoryConfig` says."""
    plan, _ = make_plan(MemoryConfig(budget, chunk, **memory), WINDOW, 0, len(question))
    reader = Reader(backbone, plan, scorer, list(question), shares, stored)
    for layer in reader.state.managed if make_latent else ():
        layer.latent = make_latent()
    chunks = [ids[first : first + chunk] for first in range(0, len(ids), chunk)]
    for part, num_read in zip(chunks, reader.read(chunks), strict=True):
        assert num_read == len(part)
        assert reader.state.held <= max(budget, chunk)
    return reader


class Fixed:
    """A scorer by position alone, from a table of [1, G, positions], or [1, 1, positions]."""

    needs_queries = needs_question = accumulates = False

    def __init__(self, table: torch.Tensor) -> None:
        self.table = table

    def score(self, block) -> list[torch.Tensor]:
        return [self.table[:, :, block.positions(0)[0, 0]]] * len(block.state.managed)


class Full:
    """A device without room for passes of more than so many tokens."""

    def __init__(self, backbone: Backbone, monkeypatch, room: int) -> None:
        self.room, self.num_failures = room, 0
        mlp = backbone.decoder.layers[1].mlp
        whole = mlp.forward

        def forward(x):  # in the second layer: the first one has taken the tokens in by then
            if x.shape[1] > self.room:
                self.num_failures += 1
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return whole(x)

        monkeypatch.setattr(mlp, "forward", forward)
