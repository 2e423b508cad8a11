"""Weights that bitsandbytes stored in int8 or 4 bits, read back as plain ones without it."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

_STATE = ".quant_state.bitsandbytes__"  # then nf4 or fp4
_EXTRAS = (".SCB", ".weight_format", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")
INT8_LEVELS = 127


def read_dequantised(files: Iterable[Path], dtype: torch.dtype) -> dict[str, Tensor]:
    """Read the weights of safetensors files, on the CPU; what is not quantised is only cast.

    Raises:
        KeyError, RuntimeError, ValueError: the parts of a quantised weight do not fit together.
    """
    stored: dict[str, Tensor] = {}
    for file in files:
        stored |= load_file(file)
    states = {name.partition(_STATE)[0]: name for name in stored if _STATE in name}
    weights = {}
    for name, tensor in stored.items():
        if _STATE in name or name.endswith(_EXTRAS):
            continue
        if name in states:
            tensor = _from_4bit(stored, name, states[name])
        elif tensor.dtype == torch.int8:
            scale = stored[f"{name.removesuffix('weight')}SCB"] / INT8_LEVELS
            tensor = tensor * scale[:, None]
        weights[name] = tensor.to(dtype)
    return weights


def _from_4bit(stored: dict[str, Tensor], name: str, state_name: str) -> Tensor:
    """Look the two codes of each byte up and scale them by block; scales may be codes themselves.

    Source: QLoRA (arXiv:2305.14314), layout of bitsandbytes' `QuantState`.
    """
    state = json.loads(bytes(stored[state_name].tolist()))
    scales = stored[f"{name}.absmax"]
    if f"{name}.nested_absmax" in stored:
        outer = stored[f"{name}.nested_absmax"].repeat_interleave(state["nested_blocksize"])
        inner = stored[f"{name}.nested_quant_map"][scales.long()]
        scales = inner * outer[: len(inner)] + state["nested_offset"]
    packed = stored[name].flatten()
    codes = torch.stack((packed >> 4, packed & 15), dim=-1).flatten()
    values = stored[f"{name}.quant_map"][codes.long()]
    return (values * scales.repeat_interleave(state["blocksize"])[: len(values)]).reshape(
        state["shape"]
    )
