"""Where a model's files are and what its config says, without loading a model or torch."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from indexmem_cli.config import ADAPTER_FILE, expand_home, is_folder
from indexmem_cli.errors import BackboneError, first_line

FAMILIES = {
    "llama": "Llama",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "mistral": "Mistral",
    "phi3": "Phi-3",
    "gemma2": "Gemma-2",
    "gemma3": "Gemma-3",
    "gemma3_text": "Gemma-3",
}
"""`model_type` of the decoders that can be read with, and the family each belongs to."""

_NEEDED = (
    *("max_position_embeddings", "num_hidden_layers", "num_attention_heads"),
    *("hidden_size", "intermediate_size", "vocab_size"),
)
_WINDOW = {"sliding_window": 4096}
_UNSAID: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("gemma2", "mistral", "qwen2", "qwen3"), _WINDOW),
    "gemma3_text": {
        **_WINDOW,
        "max_position_embeddings": 131_072,
        "vocab_size": 262_208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
    },
}
"""What transformers takes where a config is silent, as those of Gemma-3 on the hub are."""
_GLOBAL_EVERY = {"gemma2": 2, "gemma3_text": 6}
"""One layer of so many sees everything, where a config does not say which do."""

LARGE_MODEL_BYTES = 4 * 1024**3  # above this, quant "auto" quantises on a GPU
PLAIN = "-weights"  # ends the name of a quantisation whose weights run as plain ones
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
FILES = ["*.json", "*.safetensors", "*.tiktoken", "*.jinja"]


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk."""

    id: str
    """As the user named it."""
    path: Path
    revision: str
    """Commit of a hub model; for a folder a short hash of its config and weight files' heads."""
    config: dict[str, Any]
    """config.json, of the text model where there are several."""

    @property
    def family(self) -> str:
        """Name of the family, as people write it."""
        return FAMILIES[self.config["model_type"]]

    @property
    def window_tokens(self) -> int:
        """Longest context the model was trained for."""
        return int(self.config["max_position_embeddings"])

    @property
    def answer_from_tokens(self) -> int | None:
        """How much of its memory the model wants to answer from; see `MemoryConfig`."""
        return self.config.get("indexmem_answer_from_tokens")

    @property
    def spaces_lines(self) -> bool:
        """Whether passages are read again with a space before the first word of each line.

        A small model knows words after a space far better than the same at a line's beginning.
        """
        return self.config.get("indexmem_spaces_lines") is True

    @property
    def layer_windows(self) -> list[int | None]:
        """Sliding window of each layer in tokens; None where a layer sees everything."""
        config, family = self.config, self.config["model_type"]
        window = config.get("sliding_window")
        if not config.get("use_sliding_window", not family.startswith("qwen")):
            window = None
        if kinds := config.get("layer_types"):
            return [window if kind == "sliding_attention" else None for kind in kinds]
        # Older files do not say it of each layer: what transformers takes them to mean.
        every = config.get("sliding_window_pattern") or _GLOBAL_EVERY.get(family)
        first = config.get("max_window_layers", 28) if family.startswith("qwen") else 0
        return [
            window if i >= first and (not every or (i + 1) % every) else None
            for i in range(config["num_hidden_layers"])
        ]

    @property
    def stored_quant(self) -> str | None:
        """How the weights are stored: int8, nf4 or fp4 of bitsandbytes, another method, None."""
        stored = self.config.get("quantization_config")
        if not stored:
            return None
        method = stored.get("quant_method", "stored")
        if method != "bitsandbytes":
            return str(method)
        return (
            "int8" if stored.get("load_in_8bit") else str(stored.get("bnb_4bit_quant_type", "fp4"))
        )

    def form_of_stored(self, asked: str, large_on_gpu: bool) -> str | None:
        """What weights that are stored quantised run as: their form, or that with PLAIN."""
        stored = self.stored_quant
        if stored not in ("int8", "nf4", "fp4"):
            return stored
        return stored if asked == stored or (asked == "auto" and large_on_gpu) else stored + PLAIN

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight files."""
        return sum(file.stat().st_size for file in self.weight_files)

    @property
    def weight_files(self) -> list[Path]:
        """The files of the weights, without the adapter."""
        return _weight_files(self.path)

    @property
    def adapter_path(self) -> Path | None:
        """The adapter shipped with the model, if there is one."""
        path = self.path / ADAPTER_FILE
        return path if path.is_file() else None

    def tokenizer_hash(self) -> str:
        """Hash of all files that decide how a text and what surrounds it become tokens."""
        digest = hashlib.blake2b(digest_size=16)
        for file in sorted(self.path.glob("*token*")) + sorted(self.path.glob("*.jinja")):
            digest.update(f"{file.name} {file.stat().st_size} ".encode() + file.read_bytes())
        return digest.hexdigest()

    @property
    def kv_shape(self) -> tuple[int, int]:
        """Key/value heads of a layer, and the size of each."""
        heads = int(self.config["num_attention_heads"])
        size = self.config.get("head_dim") or self.config["hidden_size"] // heads
        return int(self.config.get("num_key_value_heads") or heads), int(size)

    def likely_dtype(self, dtype: str, device: str) -> str:
        """What `auto` will come to, as far as it can be told without torch."""
        if dtype != "auto":
            return dtype
        gpu = device.startswith("cuda") or Path("/proc/driver/nvidia/version").exists()
        return "bfloat16" if gpu and device != "cpu" else "float32"

    def kv_bytes_per_token(self, dtype: str = "bfloat16") -> int:
        """Bytes of keys and values that one token takes in a full cache, over all layers."""
        heads, size = self.kv_shape
        return 2 * int(self.config["num_hidden_layers"]) * heads * size * DTYPE_BYTES[dtype]


def find_checkpoint(model: str, offline: bool = False) -> Checkpoint:
    """Find a model's files: shipped with the package, a local folder, or the Hugging Face cache.

    A hub model that is not in the cache is downloaded, unless `offline`; one that is there is used
    as it is, whatever the hub has by now.

    Raises:
        BackboneError: nothing of that name, files missing, or a family that is not supported.
    """
    path, revision = _shipped(model), ""
    if path is None and is_folder(folder := expand_home(model)):
        path = folder.resolve()
    if path is None:
        path, revision = _from_hub(model, offline)
    return read_checkpoint(model, path, revision)


def read_checkpoint(model: str, path: Path, revision: str = "") -> Checkpoint:
    """Read and check the config of a model folder.

    Raises:
        BackboneError: config or weights are missing, or the family is not supported.
    """
    config = read_config(model, path)
    weights = _weight_files(path)
    if not weights:
        raise BackboneError(
            f"{model}: no .safetensors weights in {path}",
            "other formats can run code when they are loaded, so they are refused",
        )
    return Checkpoint(model, path, revision or _fingerprint(path, weights), config)


def read_config(model: str, path: Path) -> dict[str, Any]:
    """Read the config of a model folder, of the text model where there are several.

    Raises:
        BackboneError: it is missing, or the family is not supported.
    """
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BackboneError(
            f"{model}: no readable config.json in {path} ({type(error).__name__})",
            "give a folder in Hugging Face layout",
        ) from error
    text_model = config.get("text_config") or {} if isinstance(config, dict) else None
    if not isinstance(text_model, dict):
        raise BackboneError(f"{model}: config.json in {path} is not of a model")
    config = {**config, **text_model}
    family = config.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        names = ", ".join(dict.fromkeys(FAMILIES.values()))
        raise BackboneError(f"{model}: family {family!r} is not supported", f"supported: {names}")
    config = _UNSAID.get(family, {}) | config
    if missing := [name for name in _NEEDED if not isinstance(config.get(name), int)]:
        raise BackboneError(f"{model}: config.json lacks {', '.join(missing)}")
    return config


def shipped_folders() -> list[Path]:
    """Where models come with the program: inside the package, or beside it in a checkout."""
    package = Path(__file__).parent
    return [package / "models", package.parent / "models"]


def _weight_files(path: Path) -> list[Path]:
    return sorted(file for file in path.glob("*.safetensors") if file.name != ADAPTER_FILE)


def missing_files(path: Path) -> list[str]:
    """Return the weight files that a model's index names and that are not there."""
    try:
        index = json.loads((path / "model.safetensors.index.json").read_text("utf-8"))
        names = set(index["weight_map"].values())
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ["model.safetensors.index.json"]
    return sorted(name for name in names if not (path / name).is_file())


def _shipped(model: str) -> Path | None:
    """A model inside the installed package, or beside it in a checkout."""
    if not model or os.sep in model or model.startswith("."):
        return None
    folders = (folder / model for folder in shipped_folders())
    return next((folder for folder in folders if (folder / "config.json").is_file()), None)


def _from_hub(model: str, offline: bool) -> tuple[Path, str]:
    """The folder of a hub model, and its commit; the hub is not asked where all of it is here."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    with hub_failures(model, offline):
        try:
            folder = Path(snapshot_download(model, allow_patterns=FILES, local_files_only=True))
            is_here = bool(_weight_files(folder)) and not missing_files(folder)
        except LocalEntryNotFoundError:
            if offline:
                raise
            is_here = False
        if not is_here and not offline:
            folder = Path(snapshot_download(model, allow_patterns=FILES))
    return folder, folder.name


@contextlib.contextmanager
def hub_failures(model: str, offline: bool) -> Iterator[None]:
    """Turn what the hub's client raises into a `BackboneError`."""
    # HTTPError is that of the HTTP library the client stands on, passed on without saying so.
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        GatedRepoError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except HFValidationError as error:
        raise BackboneError(
            f"no model {model!r}: not shipped, not a folder, not a hub id",
            "give a folder, or an id such as Qwen/Qwen3-4B",
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        offline = offline or isinstance(error, OfflineModeIsEnabled)
        where = "in the cache, and the network is off" if offline else "in the cache or on the hub"
        raise BackboneError(
            f"model {model!r} is not {where}",
            f"with a connection: indexmem models pull {model}",
        ) from error
    except GatedRepoError as error:
        raise BackboneError(
            f"model {model!r} is given out on conditions",
            "accept them on its page on the hub, then: hf auth login",
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        what = "revision" if isinstance(error, RevisionNotFoundError) else "model"
        raise BackboneError(
            f"model {model!r}: no such {what} on the hub",
            "check the spelling; for a private one: hf auth login",
        ) from error
    except (OSError, HTTPError) as error:
        raise BackboneError(
            f"model {model!r} could not be downloaded: {first_line(error)}",
            "check the name and the connection, or use a model that is already here",
        ) from error


def _fingerprint(path: Path, weights: list[Path]) -> str:
    digest = hashlib.blake2b((path / "config.json").read_bytes(), digest_size=6)
    for file in weights:
        digest.update(f"{file.name} {file.stat().st_size}".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(65536))
    return digest.hexdigest()
