"""The adapter file: what was trained for one model, in one safetensors file with a manifest.

The manifest names the model and the tokenizer it was trained for by hashes of their files, so that
an adapter is never used with another.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from indexmem_cli.config import ADAPTER_FILE
from indexmem_cli.errors import BackboneError, first_line
from indexmem_cli.memory.indexer import IndexerConfig, QueryIndexer, TokenIndexer, make_indexer

FORMAT = 1
TABLES = ("layer_shares", "head_shares", "log_mass")
_PIECE_BYTES = 1 << 20


@dataclass
class Adapter:
    """Everything trained for one model."""

    indexer: TokenIndexer | QueryIndexer
    model_hash: str
    tokenizer_hash: str
    trained_tokens: list[int] = field(default_factory=list)
    """Lengths of the texts it was trained on."""
    scores: dict[str, float] = field(default_factory=dict)
    """What it measured on held-out text."""
    layer_shares: Tensor | None = None
    """Share of each managed layer in what the budget has above its floor, fp32 [L], 1 on average;
    see `memory.update.split_budget`."""
    head_shares: Tensor | None = None
    """The same of each head of every managed layer, fp32 [L, G]; it goes before `layer_shares`."""
    log_mass: Tensor | None = None
    """Calibrated bias of the centroid memory, fp32 [L, G], at most 0; -inf turns a head off."""
    digest: str = ""
    """Hash of the file it was read from."""

    @property
    def shares(self) -> list[float]:
        """Of the layers in the budget, or of all their heads; empty where all have the same."""
        table = self.layer_shares if self.head_shares is None else self.head_shares
        return [] if table is None else table.flatten().tolist()

    @property
    def kind(self) -> str:
        """trained, or quick: a linear score, fitted to one document."""
        return "trained" if self.indexer.config.hidden else "quick"


def hash_model(folder: Path) -> tuple[str, str]:
    """Hashes of a model's weights and of its tokenizer, from sizes and both ends of the files."""
    names = sorted(f for f in folder.glob("*.safetensors") if f.name != ADAPTER_FILE)
    return _hash_files(names), _hash_files([f for f in [folder / "tokenizer.json"] if f.exists()])


def _is_sound(name: str, tensor: Tensor) -> bool:
    """Tell whether there is no NaN in a tensor, and no infinity but one that turns a head off."""
    return not bool((tensor.isnan() if name == "log_mass" else ~tensor.isfinite()).any())


def _check_tables(tensors: dict[str, Tensor], config: IndexerConfig) -> None:
    """Raise ValueError if a table is not of the model's layers and heads, or no table of shares."""
    layers, heads = len(config.layers), config.kv_heads
    shapes = {"layer_shares": (layers,), "head_shares": (layers, heads)}
    for name, shape in (shapes | {"log_mass": (layers, heads)}).items():
        if name in tensors and tuple(tensors[name].shape) != shape:
            raise ValueError(f"{name} has the shape {list(tensors[name].shape)}, not {list(shape)}")
        if name in shapes and name in tensors and not bool((tensors[name] > 0).all()):
            raise ValueError(f"{name} holds numbers that are no shares")


def hash_adapter(path: Path) -> str:
    """Hash of a whole adapter file: what was trained, and for what."""
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def _hash_files(files: list[Path]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        size = file.stat().st_size
        digest.update(str(size).encode())
        with file.open("rb") as stream:
            digest.update(stream.read(_PIECE_BYTES))
            stream.seek(max(0, size - _PIECE_BYTES))
            digest.update(stream.read(_PIECE_BYTES))
    return digest.hexdigest()


def save_adapter(adapter: Adapter, path: Path) -> None:
    """Write an adapter in one move: the old file or the new one is there, never half of one."""
    tensors = {f"indexer.{name}": t for name, t in adapter.indexer.state_dict().items()}
    for name in TABLES:
        if getattr(adapter, name) is not None:
            tensors[name] = getattr(adapter, name)
    manifest = {
        "format": FORMAT,
        "model_hash": adapter.model_hash,
        "tokenizer_hash": adapter.tokenizer_hash,
        "indexer": asdict(adapter.indexer.config),
        "trained_tokens": adapter.trained_tokens,
        "scores": adapter.scores,
    }
    partial = path.with_suffix(".partial")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, partial, {"indexmem": json.dumps(manifest)})
    partial.chmod(0o644)  # safetensors writes it for the owner alone
    partial.replace(path)


def load_adapter(path: Path, model_folder: Path, device: torch.device | str = "cpu") -> Adapter:
    """Read an adapter and check that it belongs to the model in `model_folder`.

    Raises:
        BackboneError: the file cannot be read, or was trained for another model.
    """
    again = "train one: indexmem train adapter --model MODEL --data DIR --out DIR"
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            manifest = json.loads((file.metadata() or {})["indexmem"])
            if manifest["format"] != FORMAT:
                raise BackboneError(
                    f"{path.name} has format {manifest['format']}, not {FORMAT}", again
                )
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
        settings = manifest["indexer"]
        indexer = make_indexer(IndexerConfig(**{**settings, "layers": tuple(settings["layers"])}))
        prefix = "indexer."
        weights = {n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)}
        indexer.load_state_dict(weights)
        if wrong := [name for name, tensor in tensors.items() if not _is_sound(name, tensor)]:
            raise ValueError(f"{wrong[0]} holds numbers that are not finite")
        _check_tables(tensors, indexer.config)
        made_for = {what: str(manifest[f"{what}_hash"]) for what in ("model", "tokenizer")}
        trained, scores = manifest["trained_tokens"], manifest["scores"]
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        what = f"{path.name} is no readable adapter: {first_line(error)}"
        raise BackboneError(what, again) from error
    model_hash, tokenizer_hash = hash_model(model_folder)
    for what, found in (("model", model_hash), ("tokenizer", tokenizer_hash)):
        if made_for[what] != found:
            raise BackboneError(
                f"{path.name} was trained for another {what} "
                f"({made_for[what][:8]}, this one is {found[:8]})",
                again,
            )
    return Adapter(
        indexer.to(device).eval().requires_grad_(False),
        model_hash,
        tokenizer_hash,
        trained,
        scores,
        **{name: tensors.get(name) for name in TABLES},
        digest=hash_adapter(path),
    )
