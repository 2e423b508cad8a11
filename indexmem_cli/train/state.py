"""The checkpoint of a training run: safetensors shards, and a JSON file that names them.

`state.json` is written last and names the shards that belong together, so a run that is cut off
while it saves keeps its earlier checkpoint whole. Nothing here can run code when it is read.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from indexmem_cli.errors import BackboneError, ConfigError

SHARD_BYTES = 16 * 1024**2
HEADER_BYTES = 64 * 1024  # room for a shard's own header


def save_state(folder: Path, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    """Write a checkpoint in shards of at most 16 MiB, unless one tensor alone is larger."""
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, Tensor]] = [{}]
    room = SHARD_BYTES - HEADER_BYTES
    for name, tensor in tensors.items():
        if shards[-1] and tensor.nbytes > room:
            shards.append({})
            room = SHARD_BYTES - HEADER_BYTES
        shards[-1][name] = tensor.detach().cpu().contiguous()
        room -= tensor.nbytes
    names = [f"{numbers['step']:06}-{i}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        save_file(shard, folder / name)
    partial = folder / "state.partial"
    partial.write_text(json.dumps({**numbers, "shards": names}) + "\n", encoding="utf-8")
    partial.replace(folder / "state.json")
    for old in folder.glob("*.safetensors"):
        if old.name not in names:
            old.unlink()


def load_state(folder: Path, of: Any = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint, on the CPU; returns its tensors and the rest.

    Args:
        of: what the run is, as it was saved under "of"; None takes any.

    Raises:
        BackboneError: a shard is missing or damaged.
        ConfigError: it is the checkpoint of another run.
    """
    numbers = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    found = numbers.pop("of", of)
    if of is not None and found != of:
        raise ConfigError(
            f"checkpoint {folder} is of another run: {found}, not {of}",
            "give the settings it was begun with, or another --out",
        )
    tensors: dict[str, Tensor] = {}
    for name in numbers.pop("shards"):
        try:
            tensors |= load_file(folder / Path(name).name)
        except Exception as error:
            raise BackboneError(
                f"checkpoint {folder}: {name} cannot be read ({type(error).__name__})",
                "copy all shards that state.json names",
            ) from error
    return tensors, numbers


def forget_state(folder: Path) -> None:
    """Take back a checkpoint; its shards go with the next one that is written."""
    (folder / "state.json").unlink(missing_ok=True)


def gather(
    model: torch.nn.Module, optimizers: list[torch.optim.Optimizer], weights_only: bool
) -> dict[str, Tensor]:
    """Name every tensor of a run; with `weights_only` the weights alone, in bf16."""
    tensors = {f"model.{name}": weight for name, weight in model.named_parameters()}
    if weights_only:
        return {name: weight.to(torch.bfloat16) for name, weight in tensors.items()}
    for i, optimizer in enumerate(optimizers):
        for number, state in optimizer.state_dict()["state"].items():
            for key, value in state.items():
                tensors[f"optimizer.{i}.{number}.{key}"] = value
    return tensors


def scatter(
    tensors: dict[str, Tensor], model: torch.nn.Module, optimizers: list[torch.optim.Optimizer]
) -> None:
    """Put gathered tensors back; optimizers that were not saved begin afresh."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(tensors[f"model.{name}"])
    for i, optimizer in enumerate(optimizers):
        states: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith(f"optimizer.{i}."):
                number, key = name.removeprefix(f"optimizer.{i}.").split(".", 1)
                states.setdefault(int(number), {})[key] = value
        if states:
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": states, "param_groups": groups})
