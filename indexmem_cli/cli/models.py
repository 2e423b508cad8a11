"""`indexmem models`: what is here, what fits this machine, fetching, and the default."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from indexmem_cli import settings
from indexmem_cli.cli import options
from indexmem_cli.cli.noise import hush_libraries
from indexmem_cli.config import DEFAULT_MODEL, MemoryConfig, ModelConfig, expand_home, is_folder
from indexmem_cli.errors import BackboneError, IndexMemError, reason

if TYPE_CHECKING:
    from indexmem_cli.catalogue import FoundModel
    from indexmem_cli.checkpoint import Checkpoint
    from indexmem_cli.estimate import Weights
    from indexmem_cli.machine import Machine

models = typer.Typer(rich_markup_mode=None)
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="A Hugging Face id.")]


@models.callback()
def _models() -> None:
    """See which models are here and what fits this machine; fetch others.

    \b
    Examples:
      indexmem models list
      indexmem models show indexmem-mini
    """


@models.command("list")
def list_models(
    *,
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FOLDER", help="Look in these folders of models too."),
    ] = None,
    model: options.Model = DEFAULT_MODEL,
    budget: options.Budget = None,
    chunk: options.Chunk = None,
    quant: options.Quant = ModelConfig.quant,
    dtype: options.Dtype = ModelConfig.dtype,
    device: options.Device = ModelConfig.device,
    as_json: options.Json = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Names and nothing else.")] = False,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="List what cannot be used, and why.")
    ] = False,
) -> None:
    """List the models that are here, and whether each fits this machine at this budget.

    Shipped models, the Hugging Face cache, and the folders named. * marks the default.

    \b
    Examples:
      indexmem models list --budget 8k
      indexmem models list ./my-models --json
    """
    memory = options.memory_config(budget, chunk)
    form = ModelConfig(model, quant, dtype, device)
    hush_libraries(verbose)
    from indexmem_cli.catalogue import find_models
    from indexmem_cli.machine import look_at_machine
    from indexmem_cli.render import show_json, show_lines, show_models

    machine = look_at_machine()
    found = find_models(folders or ())
    rows = [_as_row(entry, model, memory, form, machine) for entry in found]
    usable = [row for row in rows if not row["problem"]]
    if as_json:
        show_json({"schema": 1, "machine": _machine_row(machine, device), "models": rows})
    elif quiet:
        show_lines(row["name"] for row in usable)
    else:
        show_models(rows if verbose else usable, _machine_row(machine, device), len(rows))


@models.command()
def show(
    *,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            autocompletion=options.complete_model,
            help="The default model if left out.",
        ),
    ] = None,
    model: options.Model = DEFAULT_MODEL,
    budget: options.Budget = None,
    chunk: options.Chunk = None,
    quant: options.Quant = ModelConfig.quant,
    dtype: options.Dtype = ModelConfig.dtype,
    device: options.Device = ModelConfig.device,
    offline: options.Offline = ModelConfig.offline,
    as_json: options.Json = False,
) -> None:
    """Show one model, what it needs here, and the largest budget on cards of 8 to 80 GB.

    A model that is not here is looked up on the hub without fetching its weights.

    \b
    Examples:
      indexmem models show indexmem-mini --budget 1k
      indexmem models show Qwen/Qwen3-4B --json
    """
    memory = options.memory_config(budget, chunk)
    form = options.model_config(name or model, quant, dtype, device, offline)
    hush_libraries(False)
    from indexmem_cli.estimate import CARD_GIB, largest_budget
    from indexmem_cli.machine import look_at_machine
    from indexmem_cli.render import show_json, show_model

    entry = _find(form.model, offline)
    checkpoint, weights = entry.checkpoint, entry.weights
    assert checkpoint is not None and weights is not None, "only models without a problem"
    machine = look_at_machine()
    cards: list[dict[str, int | None]] = [
        {
            "gib": gib,
            **{
                name: largest_budget(checkpoint, weights, as_loaded, gib * 2**30)
                for name, as_loaded in _card_forms(checkpoint, form).items()
            },
        }
        for gib in CARD_GIB
    ]
    row = _as_row(entry, model, memory, form, machine) | _details(checkpoint, weights)
    row |= {"cards": cards, "machine": _machine_row(machine, device)}
    if as_json:
        show_json({"schema": 1, **row})
    else:
        show_model(row)


@models.command()
def pull(
    *,
    model: ModelName,
    revision: Annotated[
        str | None, typer.Option(metavar="NAME", help="Branch, tag or commit; main if left out.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be fetched, and fetch nothing.")
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Show no progress.")] = False,
) -> None:
    """Fetch a model into the Hugging Face cache, going on where an earlier try stopped.

    \b
    Examples:
      indexmem models pull Qwen/Qwen3-0.6B
      indexmem models pull Qwen/Qwen3-4B --dry-run
    """
    bars = not quiet and sys.stderr.isatty()
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = str(int(not bars))
    hush_libraries(False)
    from indexmem_cli import catalogue
    from indexmem_cli.render import describe_download, show_line

    plan = catalogue.plan_download(model, revision)
    if not quiet:
        show_line(describe_download(plan.model, plan.revision, plan.files, plan.size_bytes))
    if not dry_run:
        typer.echo(catalogue.download(model, revision).path)


@models.command()
def default(
    context: typer.Context,
    *,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            autocompletion=options.complete_model,
            help="The model to use from now on.",
        ),
    ] = None,
    model: options.Model = DEFAULT_MODEL,
) -> None:
    """Show the default model, or set it in your configuration file.

    \b
    Examples:
      indexmem models default
      indexmem models default indexmem-mini
    """
    if name is None:
        typer.echo(model)
        return
    hush_libraries(False)
    from indexmem_cli.checkpoint import find_checkpoint
    from indexmem_cli.render import show_line

    found = find_checkpoint(name, offline=True)
    if is_folder(folder := expand_home(name)) and found.path == folder.resolve():
        name = str(found.path)  # a relative folder would mean another one elsewhere
    try:
        file = settings.write_setting("model", name)
    except OSError as error:
        raise IndexMemError(
            f"{settings.config_path()} cannot be written: {reason(error)}", "set INDEXMEM_HOME"
        ) from error
    show_line(f"default model: {name} ({file})")
    source = context.get_parameter_source("model")
    if source and source.name == "ENVIRONMENT":
        show_line(f"note: INDEXMEM_MODEL is set, and beats the file: {model}")


def _find(name: str, offline: bool) -> "FoundModel":
    """Find a model here, or on the hub.

    Raises:
        BackboneError: it is in neither place, or cannot be used.
    """
    from indexmem_cli.catalogue import FoundModel, find_models, look_up

    folder = expand_home(name)
    for entry in find_models([folder] if (folder / "config.json").is_file() else []):
        if entry.name == str(folder) or entry.name == name:
            if entry.problem:
                raise BackboneError(f"{name}: {entry.problem}", f"indexmem models pull {name}")
            return entry
    if offline or folder.is_dir():
        from indexmem_cli.checkpoint import find_checkpoint

        find_checkpoint(name, offline=True)  # says what is wrong
    return FoundModel(name, "not here", *look_up(name))


def _card_forms(checkpoint: "Checkpoint", form: ModelConfig) -> dict[str, ModelConfig]:
    """The forms a model can take on a GPU, by name: plain weights, and quantised ones."""
    stored = checkpoint.stored_quant
    if stored not in (None, "int8", "nf4", "fp4"):
        return {"stored": form}
    dtype = form.dtype if form.dtype != "auto" else "bfloat16"
    whole = {dtype: ModelConfig(form.model, "none", dtype)}
    quants = [quant for quant in ("int8", "nf4") if stored in (None, quant)]
    return whole | {quant: ModelConfig(form.model, quant, dtype) for quant in quants}


def _as_row(
    entry: "FoundModel", default: str, memory: MemoryConfig, form: ModelConfig, machine: "Machine"
) -> dict[str, Any]:
    """Describe a model as list and show print it."""
    from indexmem_cli.estimate import estimate_need

    row: dict[str, Any] = {
        "name": entry.name,
        "origin": entry.origin,
        "default": entry.name == default,
        "problem": entry.problem,
    }
    if entry.checkpoint is None or entry.weights is None:
        return row
    gpu = machine.has_gpu(form.device)
    need = estimate_need(entry.checkpoint, entry.weights, memory, form, gpu)
    return row | {
        "family": entry.checkpoint.family,
        "file_bytes": entry.weights.file_bytes,
        "window_tokens": entry.checkpoint.window_tokens,
        "kv_bytes_per_token": entry.checkpoint.kv_bytes_per_token(need.dtype),
        "quant": need.quant,
        "dtype": need.dtype,
        "budget_tokens": need.budget_tokens,
        "need": {
            "weight_bytes": need.weight_bytes,
            "kv_bytes": need.kv_bytes,
            "working_bytes": need.working_bytes,
            "overhead_bytes": need.overhead_bytes,
            "total_bytes": need.total_bytes,
        },
        "fits": need.total_bytes <= machine.free_bytes(form.device),
    }


def _machine_row(machine: "Machine", device: str) -> dict[str, Any]:
    return {
        "memory": machine.name_of(device),
        "free_bytes": machine.free_bytes(device),
        "ram_total_bytes": machine.ram_total_bytes,
        "ram_free_bytes": machine.ram_free_bytes,
        "driver": machine.driver,
        "gpus": [
            {"name": gpu.name, "total_bytes": gpu.total_bytes, "free_bytes": gpu.free_bytes}
            for gpu in machine.gpus
        ],
    }


def _details(checkpoint: "Checkpoint", weights: "Weights") -> dict[str, Any]:
    return {
        "path": str(checkpoint.path),
        "revision": checkpoint.revision,
        "parameters": weights.parameters,
        "layers": checkpoint.config["num_hidden_layers"],
        "sliding_layers": sum(window is not None for window in checkpoint.layer_windows),
        "answer_from_tokens": checkpoint.answer_from_tokens,
    }
