"""The models that are here: shipped, in the hub's cache, in folders; and how others are fetched."""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from indexmem_cli.checkpoint import (
    FILES,
    Checkpoint,
    hub_failures,
    missing_files,
    read_checkpoint,
    read_config,
    shipped_folders,
)
from indexmem_cli.errors import BackboneError
from indexmem_cli.estimate import Weights, read_weights, sort_weights


@dataclass(frozen=True)
class FoundModel:
    """A model that is here, or why it cannot be used."""

    name: str
    """What `--model` takes."""
    origin: str
    """shipped | hub | folder."""
    checkpoint: Checkpoint | None = None
    weights: Weights | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Download:
    """What fetching a model means."""

    model: str
    revision: str
    files: int
    """Files that are not here yet."""
    size_bytes: int
    free_bytes: int
    """Room left on the disk of the cache."""


def find_models(folders: Iterable[Path] = ()) -> list[FoundModel]:
    """List shipped models, those in the hub's cache, and those in or directly below `folders`."""
    found = []
    for parent in shipped_folders():
        found += [_look_at(path.name, path, "shipped") for path in _model_folders(parent)]
    found += [_look_at(name, path, "hub", path.name) for name, path in _cached()]
    for folder in folders:
        paths = [folder] if (folder / "config.json").is_file() else _model_folders(folder)
        found += [_look_at(str(path), path, "folder") for path in paths]
    return list({model.name: model for model in reversed(found)}.values())[::-1]


def look_up(model: str, revision: str | None = None) -> tuple[Checkpoint, Weights]:
    """Read a hub model's config and the heads of its weight files, without the weights.

    Raises:
        BackboneError: it cannot be reached, or its family is not supported.
    """
    from huggingface_hub import HfApi, hf_hub_download

    with hub_failures(model, offline=False):
        # First, because this alone is not tried again and again where there is no connection.
        api = HfApi()
        info = api.model_info(model, revision=revision, timeout=10)
        config = Path(hf_hub_download(model, "config.json", revision=info.sha))
        checkpoint = Checkpoint(
            model, config.parent, config.parent.name, read_config(model, config.parent)
        )
        if not any(file.rfilename.endswith(".safetensors") for file in info.siblings or ()):
            raise BackboneError(
                f"{model}: no .safetensors weights",
                "other formats can run code when they are loaded, so they are refused",
            )
        files = api.get_safetensors_metadata(model, revision=info.sha).files_metadata.values()
    tensors = [item for file in files for item in file.tensors.items()]
    shapes = [(name, tensor.shape) for name, tensor in tensors]
    size = sum(tensor.data_offsets[1] - tensor.data_offsets[0] for _, tensor in tensors)
    tied = bool(checkpoint.config.get("tie_word_embeddings"))
    return checkpoint, sort_weights(shapes, size, tied)


def plan_download(model: str, revision: str | None = None) -> Download:
    """See what fetching a hub model means; only its config is fetched.

    Raises:
        BackboneError: it cannot be reached, its family is not supported, or the disk is too small.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE

    commit = look_up(model, revision)[0].revision
    with hub_failures(model, offline=False):
        files = snapshot_download(model, revision=commit, allow_patterns=FILES, dry_run=True)
    wanted = [file for file in files if file.will_download]
    size = sum(file.file_size or 0 for file in wanted)
    free = shutil.disk_usage(nearest_folder(Path(HF_HUB_CACHE))).free
    if size > free:
        raise BackboneError(
            f"{model} takes {size / 2**30:.1f} GiB; the disk of the cache has {free / 2**30:.1f}",
            "free some room, or point HF_HOME to another disk",
        )
    return Download(model, commit, len(wanted), size, free)


def download(model: str, revision: str | None = None) -> Checkpoint:
    """Fetch a hub model into the hub's cache, going on where an earlier try stopped.

    Raises:
        BackboneError: it cannot be fetched, or is not whole.
    """
    from huggingface_hub import snapshot_download

    with hub_failures(model, offline=False):
        folder = Path(snapshot_download(model, revision=revision, allow_patterns=FILES))
    checkpoint = read_checkpoint(model, folder, folder.name)
    if missing := missing_files(folder):
        raise BackboneError(f"{model}: {missing[0]} is missing on the hub")
    return checkpoint


def _look_at(name: str, path: Path, origin: str, revision: str = "") -> FoundModel:
    try:
        checkpoint = read_checkpoint(name, path, revision)
        if missing := missing_files(path):
            raise BackboneError(f"not all here: {missing[0]} is missing")
        return FoundModel(name, origin, checkpoint, read_weights(checkpoint))
    except BackboneError as error:
        return FoundModel(name, origin, problem=error.message.removeprefix(f"{name}: "))


def _model_folders(parent: Path) -> list[Path]:
    return sorted(config.parent for config in parent.glob("*/config.json"))


def _cached() -> Iterator[tuple[str, Path]]:
    """Names and newest snapshots of the hub's cache, without those that were only looked at."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return
    for repository in sorted(repositories, key=lambda repository: repository.repo_id):
        revisions = [r for r in repository.revisions if any(_weights_in(r.snapshot_path))]
        if repository.repo_type == "model" and revisions:
            main = [revision for revision in revisions if "main" in revision.refs]
            newest = max(main or revisions, key=lambda revision: revision.last_modified)
            yield repository.repo_id, newest.snapshot_path


def _weights_in(folder: Path) -> Iterator[Path]:
    return (
        path for kind in ("*.safetensors", "*.bin", "*.index.json") for path in folder.glob(kind)
    )


def nearest_folder(path: Path) -> Path:
    """Return a path, or the nearest folder above it that is there."""
    return path if path.exists() else nearest_folder(path.parent)
