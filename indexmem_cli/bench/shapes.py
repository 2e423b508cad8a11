"""Shapes of models by their public config.json, to measure time and memory without their weights.

Weights are seeded random numbers: nothing that is measured on them says anything of quality.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from indexmem_cli.backbone import Backbone
from indexmem_cli.checkpoint import Checkpoint
from indexmem_cli.estimate import Weights, sort_weights
from indexmem_cli.events import ModelInfo


def _shape(
    family: str,
    layers: int,
    width: int,
    inner: int,
    heads: int,
    kv_heads: int,
    window: int,
    words: int,
    **others: int | None,
) -> dict[str, Any]:
    return {
        "model_type": family,
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 128,
        "max_position_embeddings": window,
        "vocab_size": words,
        "tie_word_embeddings": False,
        **others,
    }


SHAPES = {
    "Qwen2.5-7B": _shape("qwen2", 28, 3584, 18944, 28, 4, 32768, 152064),
    "Llama-3.1-8B": _shape("llama", 32, 4096, 14336, 32, 8, 131072, 128256),
    "Mistral-7B-v0.3": _shape("mistral", 32, 4096, 14336, 32, 8, 32768, 32768, sliding_window=None),
    "Qwen3-4B": _shape("qwen3", 36, 2560, 9728, 32, 8, 40960, 151936, tie_word_embeddings=True),
    "rehearsal": _shape("qwen3", 2, 64, 96, 4, 2, 1024, 300, head_dim=16),
}


def checkpoint_of(name: str) -> Checkpoint:
    """A checkpoint of that shape, without files."""
    return Checkpoint(name, Path(name), "random", SHAPES[name])


def weights_of(name: str) -> Weights:
    """What its weight files would hold in 16 bits."""
    with torch.device("meta"):
        model = _build(name, torch.bfloat16)
    shapes = [(key, list(value.shape)) for key, value in model.named_parameters()]
    return sort_weights(shapes, sum(p.nbytes for p in model.parameters()), False)


def make_backbone(name: str, quant: str, dtype: str, device: str, kv_dtype: str) -> Backbone:
    """Make a model of that shape with seeded random weights."""
    torch.manual_seed(0)
    with torch.device(device):
        model = _build(name, getattr(torch, dtype)).eval()
    if quant != "none":
        _quantise(model, quant, getattr(torch, dtype))
    checkpoint = checkpoint_of(name)
    window = checkpoint.window_tokens
    info = ModelInfo(name, "random", quant, dtype, device, window, kv_dtype)
    return Backbone(model, info, checkpoint.layer_windows)


def _build(name: str, dtype: torch.dtype) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**SHAPES[name])
    return AutoModelForCausalLM.from_config(config, dtype=dtype)


def _quantise(model: nn.Module, quant: str, dtype: torch.dtype) -> None:
    """Replace matrices by bitsandbytes' own, one after the other; embeddings and head stay."""
    import bitsandbytes

    for layer in model.get_decoder().layers:
        for name, old in list(layer.named_modules()):
            if not isinstance(old, nn.Linear):
                continue
            size = (old.in_features, old.out_features, old.bias is not None)
            with torch.device("meta"):
                if quant == "nf4":
                    new = bitsandbytes.nn.Linear4bit(
                        *size, compute_dtype=dtype, compress_statistics=True, quant_type="nf4"
                    )
                else:
                    new = bitsandbytes.nn.Linear8bitLt(*size, has_fp16_weights=False)
            device = old.weight.device
            kind = type(new.weight)
            options = {"quant_type": "nf4", "compress_statistics": True} if quant == "nf4" else {}
            new.weight = kind(old.weight.data.cpu(), requires_grad=False, **options).to(device)
            new.bias = old.bias
            parent, _, last = name.rpartition(".")
            setattr(layer.get_submodule(parent), last, new)
