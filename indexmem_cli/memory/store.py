"""A reader's memory as a safetensors file, and back. Nothing is pickled, nothing is guessed.

Tensors: `layers.I.keys` and `.values` [1, G, S, D]; for managed layers also `.positions` int64 and
`.scores` fp32 [1, G, S], and where there are any `.notes` [1, 1, S, E] and `.latent.*`; heads that
hold different numbers of tokens have `layers.I.heads.J.*` with a G of 1; `scorer.*` for what a
scorer has gathered. What they do not say of themselves is the layout: plain JSON values,
which the caller keeps beside the file.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from indexmem_cli.memory.policies import Scorer
from indexmem_cli.memory.state import LayerState, MemoryState, WindowState


def save_state(path: Path, state: MemoryState, scorer: Scorer) -> dict[str, Any]:
    """Write a memory to a file; return its layout.

    Raises:
        OSError: the file cannot be written.
    """
    tensors = {f"scorer.{name}": value for name, value in scorer.tensors().items()}
    for place, part in state.named_parts:
        for name in _names(part):
            value = getattr(part, name)
            if value is not None and part.held:
                tensors[f"layers.{place}.{name}"] = value[:, :, : part.held]
        if (latent := getattr(part, "latent", None)) is not None:
            tensors |= {f"layers.{place}.latent.{name}": t for name, t in latent.save().items()}
    try:
        save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, path)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    return {
        "windows": [getattr(layer, "window", None) for layer in state.layers],
        "seen": state.seen,
        "sink_tokens": state.sink_tokens,
        "recent_tokens": state.recent_tokens,
        "pins": [list(pin) for pin in state.pins],
        "compact": state.compact,
        "uniform": state.uniform,
    }


def load_state(
    data: bytes,
    layout: dict[str, Any],
    state: MemoryState,
    scorer: Scorer,
    shapes: Sequence[tuple[int, int]],
    dtype: torch.dtype,
    devices: Sequence[torch.device],
) -> None:
    """Fill an empty memory with what was saved.

    Args:
        data: content of the file.
        layout: as `save_state` returned it.
        state, scorer: new ones for the same model and settings; on error the layers stay empty.
        shapes: key/value heads and head size of each layer of the model.
        dtype, devices: of keys and values, the devices by layer.

    Raises:
        ValueError: the data are no memory of this model.
    """
    try:
        tensors = load(data)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"not a safetensors file: {error}") from error
    windows = [getattr(layer, "window", None) for layer in state.layers]
    if layout.get("windows") != windows:
        raise ValueError("its layers are not those of the model")
    seen = _count(layout, "seen")
    made, latents = [], []
    for place, layer in state.named_parts:
        index, _, head = place.partition(".")
        (heads, size), device = shapes[int(index)], devices[int(index)]
        parts = _take(tensors, f"layers.{place}.", _names(layer))
        if isinstance(layer, LayerState) and layer.latent is not None:
            latents.append((layer.latent, _take(tensors, f"layers.{place}.latent."), device))
        if parts:
            shape = (1 if head else heads, size)
            made.append((layer, _checked(parts, layer, place, shape, dtype, seen), device))
        elif seen:
            raise ValueError(f"layer {place} is missing")
    held = {parts["keys"].shape[2] for layer, parts, _ in made if isinstance(layer, LayerState)}
    if len(held) > 1 and layout.get("uniform") is not False:
        raise ValueError("its layers hold different numbers of tokens")
    pins = layout.get("pins")
    if not isinstance(pins, list) or not all(map(_is_span, pins)):
        raise ValueError("its pins are no spans")
    counts = {name: _count(layout, name) for name in ("seen", "sink_tokens", "recent_tokens")}
    flags = {name: _flag(layout, name) for name in ("compact", "uniform")}
    gathered = {n.removeprefix("scorer."): value.to(devices[0]) for n, value in tensors.items()}
    if any(not name.startswith("scorer.") for name in tensors):
        raise ValueError("it holds tensors that belong to nothing")
    for latent, parts, device in latents:
        _fill_latent(latent, parts, device)
    scorer.set_tensors(gathered)
    for layer, parts, device in made:
        _fill(layer, parts, dtype, device)
    state.pins = [(first, end) for first, end in pins]
    for name, value in (counts | flags).items():
        setattr(state, name, value)


def _names(layer: LayerState | WindowState) -> tuple[str, ...]:
    if isinstance(layer, LayerState):
        return (*layer.buffers, "notes")
    return ("keys", "values")


def _take(
    tensors: dict[str, Tensor], prefix: str, names: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """Take the tensors of a prefix out: those of the names, or all."""
    wanted = [
        name
        for name in tensors
        if name.startswith(prefix) and (names is None or name.removeprefix(prefix) in names)
    ]
    return {name.removeprefix(prefix): tensors.pop(name) for name in wanted}


def _checked(
    parts: dict[str, Tensor],
    layer: LayerState | WindowState,
    index: str,
    shape: tuple[int, int],
    dtype: torch.dtype,
    seen: int,
) -> dict[str, Tensor]:
    """Return the tensors of a layer if they can be those of this model."""
    if parts.keys() - {"notes"} != set(_names(layer)) - {"notes"}:
        raise ValueError(f"layer {index} is not whole")
    held = parts["keys"].shape[2] if parts["keys"].dim() == 4 else -1
    heads, size = shape
    stored = torch.int8 if getattr(layer, "int8", False) else dtype
    expected = {
        "keys": ((1, heads, held, size), stored),
        "values": ((1, heads, held, size), stored),
        "key_scales": ((1, heads, held), torch.float32),
        "value_scales": ((1, heads, held), torch.float32),
        "positions": ((1, heads, held), torch.int64),
        "scores": ((1, heads, held), torch.float32),
    }
    notes = parts.get("notes")
    if notes is not None and (notes.dim() != 4 or notes.shape[:3] != (1, 1, held)):
        raise ValueError(f"notes of layer {index} have the wrong shape")
    for name in (name for name in expected if name in parts):
        tensor = parts[name]
        if (tuple(tensor.shape), tensor.dtype) != expected[name]:
            found = f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
            raise ValueError(f"{name} of layer {index} have the wrong shape or type: {found}")
    if not 0 < held <= seen:
        raise ValueError(f"layer {index} holds {held} tokens, where {seen} were read")
    if isinstance(layer, LayerState):
        positions = parts["positions"]
        in_order = bool((positions.diff(dim=-1) > 0).all())
        if not in_order or int(positions.min()) < 0 or int(positions.max()) >= seen:
            raise ValueError(f"positions of layer {index} are not in the order of the text")
    return parts


def _fill(
    layer: LayerState | WindowState,
    parts: dict[str, Tensor],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    parts = {name: tensor.to(device) for name, tensor in parts.items()}
    if isinstance(layer, LayerState):
        layer.restore(parts, dtype)
        layer.notes = parts.get("notes")
    else:
        layer.append(parts["keys"], parts["values"], 0)


def _fill_latent(latent: Any, parts: dict[str, Tensor], device: torch.device) -> None:
    try:
        latent.load({name: tensor.to(device) for name, tensor in parts.items()})
    except (KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"not a latent memory of this kind: {error}") from error


def _count(layout: dict[str, Any], name: str) -> int:
    value = layout.get(name)
    if type(value) is not int or value < 0:
        raise ValueError(f"{name} is no number of tokens: {value!r:.40}")
    return value


def _flag(layout: dict[str, Any], name: str) -> bool:
    value = layout.get(name)
    if type(value) is not bool:
        raise ValueError(f"{name} is neither true nor false: {value!r:.40}")
    return value


def _is_span(pin: Any) -> bool:
    return (
        isinstance(pin, list)
        and len(pin) == 2
        and all(type(end) is int for end in pin)
        and 0 <= pin[0] <= pin[1]
    )
