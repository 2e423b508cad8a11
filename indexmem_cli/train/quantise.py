"""Stores a model's weights in int8 or nf4, in the form that transformers and bitsandbytes share.

Matrices of the blocks become int8 with one scale per output channel, or nf4 in blocks of 64 with
quantised scales. Embeddings and norms stay in bf16: bitsandbytes has no form for them.
"""

import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from indexmem_cli.checkpoint import find_checkpoint
from indexmem_cli.errors import ConfigError
from indexmem_cli.loading import make_quant_config

WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")


def quantise(model: str, out: Path, quant: str) -> int:
    """Write the model quantised into the folder `out`, with all its other files.

    Returns:
        Bytes of the new weight files.

    Raises:
        BackboneError: there is no such model.
        ConfigError: it is quantised already, or `out` is its own folder.
    """
    checkpoint = find_checkpoint(model, offline=True)
    if checkpoint.stored_quant:
        raise ConfigError(
            f"{model} is stored in {checkpoint.stored_quant} already", "quantise the full weights"
        )
    if out.resolve() == checkpoint.path.resolve():
        raise ConfigError(f"{out} holds the weights to read", "choose another folder to write to")
    loaded = AutoModelForCausalLM.from_pretrained(
        checkpoint.path,
        dtype=torch.bfloat16,
        quantization_config=make_quant_config(quant, torch.bfloat16),
        device_map={"": "cpu"},
        local_files_only=True,
    )
    out.mkdir(parents=True, exist_ok=True)
    for pattern in WEIGHT_FILES:
        for old in out.glob(pattern):
            old.unlink()
    # Before any forward pass: bitsandbytes repacks weights for the processor in the first one.
    loaded.save_pretrained(out)
    for file in checkpoint.path.iterdir():
        weights = any(file.match(pattern) for pattern in WEIGHT_FILES)
        if file.is_file() and not weights and not (out / file.name).exists():
            shutil.copyfile(file, out / file.name)
    files = list(out.glob("*.safetensors"))
    for file in files:
        file.chmod(0o644)  # safetensors writes them for the owner alone
    return sum(file.stat().st_size for file in files)
