"""`indexmem train`: make the models that indexmem carries."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from indexmem_cli.errors import ConfigError

train = typer.Typer(rich_markup_mode=None)


@train.callback()
def _train() -> None:
    """Train the models that indexmem carries.

    \b
    Examples:
      indexmem train base --recipe cpu --data corpus/ --out runs/mini
      indexmem train base --recipe gpu --data corpus/ --out runs/mini --resume
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
) -> None:
    """Train the embedded language model from scratch.

    \b
    Examples:
      indexmem train base --recipe cpu --data corpus/ --out runs/mini
      indexmem train base --recipe gpu --data corpus/ --out runs/mini --resume
    """
    if not data.is_dir():
        raise ConfigError(f"the data folder does not exist: {data}")
    from indexmem_cli.train.pretrain import train_base

    train_base(recipe, data, out, resume, seed, max_steps)


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
    if not data.is_dir():
        raise ConfigError(f"the data folder does not exist: {data}")
    from indexmem_cli.train.gate import train_gate

    train_gate(data, out, seed)
