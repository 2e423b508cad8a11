"""`indexmem train`: make the models that indexmem carries, and their adapters."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from indexmem_cli.cli import options
from indexmem_cli.cli.noise import hush_libraries
from indexmem_cli.config import DEFAULT_MODEL
from indexmem_cli.errors import ConfigError

train = typer.Typer(rich_markup_mode=None)


@train.callback()
def _train() -> None:
    """Train the models that indexmem carries.

    \b
    Examples:
      indexmem train base --recipe cpu --data corpus/ --out runs/mini
      indexmem train adapter --model runs/mini/model --data corpus/ --out runs/adapter
    """


@train.command()
def base(
    data: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the training text.")],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for checkpoints and the finished model.")
    ],
    recipe: Annotated[
        Literal["cpu", "gpu"], typer.Option(help="Size of the model and length of the run.")
    ] = "cpu",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in the out folder.")
    ] = False,
    seed: Annotated[
        int, typer.Option(metavar="NUMBER", help="Seed of weights and data order.")
    ] = 0,
    max_steps: Annotated[
        int | None, typer.Option(metavar="NUMBER", min=1, help="Stop after this many steps.")
    ] = None,
    max_minutes: Annotated[
        float | None,
        typer.Option(metavar="NUMBER", min=0.01, help="Stop after so long, and save."),
    ] = None,
    rehearse: Annotated[
        int | None,
        typer.Option(metavar="STEPS", min=1, help="Shrink all stages to this many steps in all."),
    ] = None,
    batch_tokens: Annotated[
        int | None, typer.Option(metavar="TOKENS", min=1, help="Tokens of a step.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="Train here: cpu or cuda.")
    ] = None,
) -> None:
    """Train the embedded language model from scratch.

    DIR holds prose/ and qa/train/ as docs/train-base.md says, or what `indexmem train pack` wrote.

    \b
    Examples:
      indexmem train base --recipe cpu --data corpus/ --out runs/mini
      indexmem train base --recipe gpu --data packed/ --out runs/mini --resume
    """
    insist_on_folder(data)
    from indexmem_cli.train.pretrain import train_base

    train_base(
        recipe,
        data,
        out,
        resume,
        seed,
        max_steps=max_steps,
        max_minutes=max_minutes,
        rehearse=rehearse,
        batch_tokens=batch_tokens,
        device=device,
    )


@train.command()
def pack(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Folder of the training text.")],
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for the parts.")],
    part_mib: Annotated[
        int, typer.Option(metavar="MIB", min=1, max=60, help="Greatest size of a part.")
    ] = 48,
    tokenizer: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Tokenizer to encode with. Default: build one."),
    ] = None,
) -> None:
    """Pack all that training needs into parts that can be carried to another machine.

    \b
    Examples:
      indexmem train pack corpus/ packed/
      indexmem train pack corpus/ packed/ --tokenizer models/indexmem-mini --part-mib 40
    """
    insist_on_folder(data)
    from indexmem_cli.train.packing import pack as pack_parts
    from indexmem_cli.train.recipes import RECIPES

    parts = pack_parts(data, out, part_mib, tokenizer, RECIPES["gpu"].window_tokens)
    typer.echo(f"{out}: {parts} parts of at most {part_mib} MiB, and held-out/ for the bench")


@train.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder with checkpoint/ in it.")],
) -> None:
    """Write RUN/model from RUN/checkpoint, where only the checkpoint was brought back.

    \b
    Examples:
      indexmem train export runs/mini
      indexmem train export runs/gpu
    """
    if not (run / "checkpoint" / "state.json").exists():
        raise ConfigError(f"there is no checkpoint in {run}", "name the --out folder of a run")
    from indexmem_cli.train.pretrain import export_run

    typer.echo(export_run(run))


@train.command()
def quantise(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model with full weights.")],
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for the quantised model.")],
    to: Annotated[
        Literal["int8", "nf4"],
        typer.Option(help="int8: one scale per output channel. nf4: 4 bits, blocks of 64."),
    ] = "int8",
) -> None:
    """Store a model's weights in fewer bits, in the form of transformers and bitsandbytes.

    Embeddings stay in bf16. Small models are read back as plain weights: they run as fast as full
    ones, without bitsandbytes. --quant int8 (or nf4) of the other commands runs them quantised.

    \b
    Examples:
      indexmem train quantise runs/mini/model models/mini
      indexmem train quantise runs/mini/model models/mini --to nf4
    """
    hush_libraries(False)
    from indexmem_cli.train.quantise import quantise as write_quantised

    size = write_quantised(model, out, to)
    typer.echo(f"{out}: {size / 1e6:.1f} MB of weights in {to}")


@train.command()
def adapter(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for checkpoints and the finished adapter.")
    ],
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the training text.")
    ] = None,
    quick: Annotated[
        Path | None,
        typer.Option(metavar="DOCUMENT", help="Fit to one document instead, in about a minute."),
    ] = None,
    model: options.Model = DEFAULT_MODEL,
    form: Annotated[
        Literal["shared", "grouped", "shared-heads", "retention", "query"],
        typer.Option(help="What has a score of its own: see docs of memory/indexer.py."),
    ] = "shared",
    steps: Annotated[
        int, typer.Option(metavar="NUMBER", min=1, help="Steps on what the whole model sees.")
    ] = 1000,
    stream_steps: Annotated[
        int, typer.Option(metavar="NUMBER", min=0, help="Steps on what is left in a stream.")
    ] = 0,
    group_layers: Annotated[
        int,
        typer.Option(metavar="NUMBER", min=1, help="Layers that share a score: grouped, query."),
    ] = 1,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in the out folder.")
    ] = False,
    seed: Annotated[int, typer.Option(metavar="NUMBER", help="Seed of weights and data.")] = 0,
    threads: Annotated[int, typer.Option(metavar="NUMBER", min=1, help="CPU threads.")] = 3,
) -> None:
    """Train what decides which tokens a model keeps. The model itself is not changed.

    Put the finished adapter.safetensors into the model's folder, and it is used from then on. One
    of --quick is used only with --policy learned.

    \b
    Examples:
      indexmem train adapter --data corpus/ --out runs/adapter
      indexmem train adapter -m Qwen/Qwen3-0.6B --quick book.pdf --out runs/adapter
    """
    hint = "see indexmem train adapter -h"
    if data is not None and quick is not None:
        raise ConfigError("--data and --quick contradict each other", hint)
    hush_libraries(False)
    if quick is not None:
        from indexmem_cli.train.quick import fit_adapter

        path, scores = fit_adapter(model, quick, out, threads=threads, seed=seed)
        typer.echo(f"held-out rank correlation {scores['rank_correlation']:.2f}", err=True)
        typer.echo(path)
        return
    if data is None:
        raise ConfigError("one of --data and --quick is needed", hint)
    insist_on_folder(data)
    from indexmem_cli.train.adapter import AdapterRecipe, train_adapter

    def report(row: dict[str, Any]) -> None:
        if row.get("step", 0) % 10 == 0:
            line = " · ".join(
                f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                for name, value in row.items()
            )
            typer.echo(line, err=True)

    recipe = AdapterRecipe(form, group_layers, steps, stream_steps)
    path = train_adapter(
        model, data, out, recipe, seed=seed, resume=resume, threads=threads, report=report
    )
    typer.echo(path)


@train.command()
def budgets(
    adapter_file: Annotated[
        Path, typer.Argument(metavar="ADAPTER", help="The adapter, which is written anew.")
    ],
    data: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the training text.")],
    cache: Annotated[Path, typer.Option(metavar="DIR", help="Its tokens: cache/ of a run.")],
    model: options.Model = DEFAULT_MODEL,
    by: Annotated[
        str, typer.Option(metavar="UNIT", help="head | layer: what gets a share of its own.")
    ] = "head",
    keep: Annotated[
        float, typer.Option(metavar="SHARE", min=0.01, max=0.99, help="Of a text, to plan for.")
    ] = 0.125,
    power: Annotated[
        float, typer.Option(metavar="NUMBER", min=0, help="0: all alike; 1: by what is lost.")
    ] = 0.25,
    seed: Annotated[int, typer.Option(metavar="NUMBER", help="Seed of the texts.")] = 0,
    threads: Annotated[int, typer.Option(metavar="NUMBER", min=1, help="CPU threads.")] = 3,
) -> None:
    """Split the budget among the heads or layers, by what is lost when one alone is evicted.

    \b
    Examples:
      indexmem train budgets a/adapter.safetensors --data corpus/ --cache a/cache
      indexmem train budgets adapter.safetensors --data data/ --cache cache/ --by layer
    """
    insist_on_folder(data)
    hush_libraries(False)
    from indexmem_cli.train.budgets import calibrate_budgets

    shares = calibrate_budgets(
        model,
        data,
        cache,
        adapter_file,
        unit=by,
        keep_fraction=keep,
        power=power,
        seed=seed,
        threads=threads,
    )
    typer.echo(" ".join(f"{share:.2f}" for share in shares))


@train.command()
def gate(
    data: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the training questions.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="File for the finished gate.")],
    seed: Annotated[int, typer.Option(metavar="NUMBER", help="Seed of all drawing.")] = 0,
) -> None:
    """Train the gate that says which passages are read again for a question.

    \b
    Examples:
      indexmem train gate --data corpus/ --out gate.json
      indexmem train gate --data corpus/ --out gate.json --seed 1
    """
    insist_on_folder(data)
    from indexmem_cli.train.gate import train_gate

    train_gate(data, out, seed)


def insist_on_folder(data: Path, hint: str | None = None) -> None:
    """See that there is a folder of data.

    Raises:
        ConfigError: there is none.
    """
    if not data.is_dir():
        raise ConfigError(f"the data folder does not exist: {data}", hint)
