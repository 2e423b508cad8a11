"""`indexmem bench memory`, `speed` and `all`: what reading costs, and everything in one run."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from indexmem_cli.cli import options
from indexmem_cli.cli.bench_quality import Data, parse_kept, run_quality
from indexmem_cli.cli.noise import hush_libraries
from indexmem_cli.config import DEFAULT_MODEL, ModelConfig, parse_size
from indexmem_cli.errors import ConfigError, IndexMemError

Out = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Append the rows to DIR/NAME.jsonl. Default in a checkout: benchmarks/results.",
    ),
]
Budget = Annotated[str, typer.Option("-b", "--budget", metavar="TOKENS", help="Tokens kept.")]
Chunk = Annotated[str, typer.Option(metavar="TOKENS", help="Read at a time.")]
Threads = Annotated[int, typer.Option(metavar="NUMBER", min=1, help="CPU threads.")]


def memory(
    measured: options.Model = DEFAULT_MODEL,
    methods: Annotated[
        str, typer.Option(metavar="NAME,...", help="Names or groups of `bench quality`.")
    ] = "question",
    budget: Budget = "1k",
    chunk: Chunk = "512",
    lengths: Annotated[
        str, typer.Option(metavar="TOKENS,...", help="Of the text.")
    ] = "16k,64k,256k,1m",
    full_lengths: Annotated[
        str, typer.Option(metavar="TOKENS,...", help="Of the full cache; none for none.")
    ] = "16k,64k",
    runs: Annotated[int, typer.Option(metavar="NUMBER", min=1, help="Of each.")] = 3,
    threads: Threads = 1,
    device: options.Device = "cpu",
    out: Out = None,
    as_json: options.Json = False,
) -> None:
    """Measure peak memory, seconds to read and seconds to answer, by length; on Linux.

    Each measurement has a process of its own, and one that has a row of the same commit is not
    made again. Beside it stands plain transformers with a full cache.

    \b
    Examples:
      indexmem bench memory --runs 1
      indexmem bench memory --methods main --lengths 4k,16k,64k --runs 1 --json
    """
    hush_libraries(False)
    from indexmem_cli.bench.memory import PeakConfig, bench_memory, summarise
    from indexmem_cli.bench.rows import parse_names, parse_sizes, print_table
    from indexmem_cli.render import show_json

    config = PeakConfig(
        ModelConfig(measured, device=device),
        parse_names(methods),
        parse_size(budget),
        parse_size(chunk),
        parse_sizes(lengths),
        parse_sizes(full_lengths),
        runs,
        threads,
    )
    rows = list(bench_memory(config, _file(out, "memory")))
    if as_json:
        show_json({"schema": 1, "rows": rows})
        return
    lines, said = summarise(rows)
    print_table(lines, list(lines[0]) if lines else [])
    typer.echo("\n".join(["", *said]))


def speed(
    measured: options.Model = DEFAULT_MODEL,
    shape: Annotated[
        str | None,
        typer.Option(metavar="WIDTHxLAYERS", help="Not a model: random weights, as 768x12."),
    ] = None,
    policies: Annotated[
        str, typer.Option(metavar="NAME,...", help="Policies beside the bare model.")
    ] = "recency,question",
    budget: Budget = "1k",
    chunk: Chunk = "512",
    lengths: Annotated[
        str, typer.Option(metavar="TOKENS,...", help="Of the full cache.")
    ] = "16k,64k",
    round_tokens: Annotated[
        str, typer.Option("--round", metavar="TOKENS", help="That each reads in turn.")
    ] = "4k",
    repeats: Annotated[int, typer.Option(metavar="NUMBER", min=1, help="Of all.")] = 3,
    threads: Threads = 1,
    device: options.Device = "cpu",
    out: Out = None,
    as_json: options.Json = False,
) -> None:
    """Measure the reading rate beside the bare model without a cache, and beside a full cache.

    All take turns in one process, so a slow minute of the machine hits them alike.

    \b
    Examples:
      indexmem bench speed --repeats 1
      indexmem bench speed --shape 768x12 --lengths 16k --repeats 1
    """
    hush_libraries(False)
    from indexmem_cli.bench.rows import append_row, parse_names, parse_sizes, print_table
    from indexmem_cli.bench.turns import SpeedConfig, bench_speed, tabulate
    from indexmem_cli.render import show_json

    config = SpeedConfig(
        ModelConfig(measured, device=device),
        shape,
        parse_names(policies),
        parse_size(budget),
        parse_size(chunk),
        parse_sizes(lengths),
        parse_size(round_tokens),
        repeats,
        threads,
    )
    rows = list(bench_speed(config))
    if file := _file(out, "speed"):
        for row in rows:
            append_row(file, row)
    if as_json:
        show_json({"schema": 1, "rows": rows})
        return
    for lines, columns in tabulate(rows):
        print_table(lines, columns)
        typer.echo()


def everything(
    measured: options.Model = DEFAULT_MODEL,
    methods: Annotated[
        str, typer.Option(metavar="NAME,...", help="Names or groups of `bench quality`.")
    ] = "",
    budgets: Annotated[
        str, typer.Option(metavar="TOKENS,...", help="Kept, for quality.")
    ] = "50%,25%,12.5%,6.25%",
    lengths: Annotated[
        str, typer.Option(metavar="TOKENS,...", help="Of the texts of quality.")
    ] = "1k",
    reading: Annotated[
        str, typer.Option(metavar="TOKENS,...", help="Of the texts of memory and speed.")
    ] = "16k",
    count: Annotated[
        int, typer.Option(metavar="NUMBER", min=1, help="Samples of each task of quality.")
    ] = 10,
    minutes: Annotated[
        float | None, typer.Option(metavar="NUMBER", min=0, help="Most for quality.")
    ] = None,
    data: Data = None,
    threads: Threads = 1,
    device: options.Device = "cpu",
    out: Out = None,
) -> None:
    """Measure all there is: memory, speed, quality by every suite, the model, on a GPU its kernels.

    Then the pictures of the rows, the card among them, are drawn into DIR/pictures. What fails does
    not keep the rest from running. Memory and quality are not measured again where there are rows
    of this commit.

    \b
    Examples:
      indexmem bench all --out bench --count 5
      indexmem bench all --out bench --data corpus/ --methods all --minutes 600
    """
    hush_libraries(False)
    from indexmem_cli.bench.cells import QualityConfig
    from indexmem_cli.bench.pictures import PICTURES, make_pictures
    from indexmem_cli.bench.rows import folder_for, parse_names, parse_sizes
    from indexmem_cli.cli.bench import device as measure_device
    from indexmem_cli.cli.bench import kernels
    from indexmem_cli.cli.bench import model as measure_model
    from indexmem_cli.machine import look_at_machine

    folder = folder_for(out) or Path("bench")
    asked = parse_names(methods) or ("main",)
    config = QualityConfig(
        ModelConfig(measured, device=device),
        suites=("all",),
        methods=asked,
        lengths=parse_sizes(lengths),
        budgets=tuple(map(parse_kept, parse_names(budgets))),
        count=count,
        threads=threads,
        data=data,
        minutes=minutes,
    )
    same: dict[str, Any] = {
        "measured": measured,
        "device": device,
        "out": folder,
        "threads": threads,
    }
    shared = {**same, "runs": 1, "lengths": reading, "full_lengths": reading}
    steps: dict[str, Callable[[], Any]] = {
        "memory": lambda: memory(**shared, methods=",".join(asked)),
        "speed": lambda: speed(**same, lengths=reading, repeats=1),
        "quality": lambda: run_quality(config, folder, as_json=False),
        "model": lambda: measure_model(**same, data=data, quick=True),
    }
    if look_at_machine().has_gpu("cuda"):
        steps["kernels"] = lambda: kernels(out=folder / "kernels.jsonl")
        steps["device"] = lambda: measure_device(out=folder / "device.jsonl")
    steps["pictures"] = lambda: make_pictures(PICTURES, folder, folder / "pictures", dark=False)
    run_steps(steps)


def run_steps(steps: dict[str, Callable[[], Any]]) -> None:
    """Run one after the other, whatever fails.

    Raises:
        ConfigError: something failed; what, was said.
    """
    failed = []
    for name, step in steps.items():
        typer.echo(f"== {name}", err=True)
        try:
            step()
        except IndexMemError as error:
            failed.append(name)
            typer.echo(f"{name} failed: {error}", err=True)
    if failed:
        raise ConfigError(f"not measured: {', '.join(failed)}", "the reasons stand above")


def _file(out: Path | None, name: str) -> Path | None:
    from indexmem_cli.bench.rows import folder_for

    folder = folder_for(out)
    return folder and folder / f"{name}.jsonl"
