"""`indexmem bench`: measure a model on this machine."""

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from indexmem_cli.cli import options
from indexmem_cli.cli.bench_cost import everything, memory, speed
from indexmem_cli.cli.bench_quality import quality
from indexmem_cli.cli.bench_rows import compare, pictures, show_rows, tables
from indexmem_cli.cli.noise import hush_libraries
from indexmem_cli.cli.train import insist_on_folder
from indexmem_cli.config import DEFAULT_MODEL, parse_size
from indexmem_cli.errors import ConfigError

if TYPE_CHECKING:
    from indexmem_cli.bench.rows import Row

bench = typer.Typer(rich_markup_mode=None)
bench.command()(tables)
bench.command()(pictures)
bench.command()(compare)
bench.command()(quality)
bench.command()(memory)
bench.command()(speed)
bench.command("all")(everything)


@bench.callback()
def _bench() -> None:
    """Measure a model: what it finds, reads and refuses, and how fast.

    \b
    Examples:
      indexmem bench model --quick
      indexmem bench model --data corpus/ --json
    """


@bench.command()
def model(
    measured: options.Model = DEFAULT_MODEL,
    full: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="The full weights of a quantised model, to measure beside it."
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Held-out texts and questions: prose/ and qa/dev/."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Append the rows to DIR/model.jsonl. Default in a checkout: benchmarks/results.",
        ),
    ] = None,
    count: Annotated[
        int, typer.Option(metavar="NUMBER", min=10, help="Questions of each kind.")
    ] = 300,
    lengths: Annotated[
        str, typer.Option(metavar="TOKENS,...", help="Texts that facts are hidden in.")
    ] = "512,1k,2k,4k",
    only: Annotated[
        str, typer.Option(metavar="NAME", help="Only the tasks whose names begin with NAME.")
    ] = "",
    quick: Annotated[
        bool, typer.Option("--quick", help="Few questions, texts up to 1k tokens: two minutes.")
    ] = False,
    threads: Annotated[int, typer.Option(metavar="NUMBER", min=1, help="CPU threads.")] = 2,
    device: options.Device = "cpu",
    seed: Annotated[int, typer.Option(metavar="NUMBER", help="Seed of all drawing.")] = 0,
    as_json: options.Json = False,
) -> None:
    """Measure full and quantised weights beside each other and beside no model at all.

    Of a model with full weights, int8 ones are made on the way. Without --data, facts are hidden
    in the example book and in Python's own code, and questions of the data sets are left out.

    \b
    Examples:
      indexmem bench model --quick
      indexmem bench model --model indexmem-mini --full runs/mini/model --data corpus/ --json
      indexmem bench model --only needle --lengths 1k --count 2000 --data corpus/
    """
    if data is not None:
        insist_on_folder(data, "leave --data out")
    hush_libraries(False)
    from indexmem_cli.bench.model import BenchConfig, bench_model
    from indexmem_cli.bench.rows import append_row, folder_for, parse_sizes
    from indexmem_cli.render import show_json, show_measures

    sizes = parse_sizes(lengths)
    config = BenchConfig(
        measured, full, data, count, sizes, threads=threads, device=device, seed=seed, only=only
    )
    if quick:
        sizes = tuple(size for size in sizes if size <= 1024) or sizes
        config = replace(config, count=min(count, 20), lengths=sizes, windows=8, repeats=1)
    folder, rows = folder_for(out), []
    for event in bench_model(config):
        if not isinstance(event, dict):  # a notice
            typer.echo(f"note: {event.message}", err=True)
            continue
        rows.append(event)
        typer.echo(f"{event['weights']}: {event['task']}: {event['measure']}", err=True)
        if folder is not None:
            append_row(folder / "model.jsonl", event)
    if as_json:
        show_json({"schema": 1, "rows": rows})
    else:
        show_measures(rows)


Rehearse = Annotated[
    bool,
    typer.Option(
        "--rehearse", help="Tiny shapes on the CPU, to see that it runs; the times mean nothing."
    ),
]
Rows = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Append the rows to this file of JSON lines."),
]


@bench.command()
def kernels(
    compile_only: Annotated[
        bool,
        typer.Option("--compile-only", help="Compile for sm_80 and sm_90, which needs no device."),
    ] = False,
    every: Annotated[
        bool, typer.Option("--every", help="Compile all dtypes, head sizes, groups and tiles.")
    ] = False,
    rehearse: Rehearse = False,
    out: Rows = None,
    as_json: options.Json = False,
) -> None:
    """Time each GPU kernel against the card's own ceilings, PyTorch, torch.compile and flash.

    Ceilings are what this card reaches: a large copy, and a large product of matrices.

    \b
    Examples:
      indexmem bench kernels --out benchmarks/results/kernels.jsonl
      indexmem bench kernels --compile-only
    """
    if rehearse:
        os.environ |= {"INDEXMEM_KERNELS": "interpret", "TRITON_INTERPRET": "1"}
    hush_libraries(False)
    if compile_only:
        from indexmem_cli.bench.compiling import COLUMNS as FORMS
        from indexmem_cli.bench.compiling import compile_all

        columns: tuple[str, ...] = FORMS
        rows = _gather(compile_all(every), None)
    else:
        from indexmem_cli.bench.kernels import COLUMNS, bench_kernels, require_gpu

        columns = COLUMNS
        if not rehearse:
            require_gpu("bench kernels")
        rows = _gather(bench_kernels(rehearse), None if rehearse else out)
    show_rows(rows, columns, as_json)


@bench.command()
def device(
    models: Annotated[
        str, typer.Option(metavar="NAME,...", help="Shapes to build with random weights.")
    ] = "Llama-3.1-8B,Qwen2.5-7B,Mistral-7B-v0.3,Qwen3-4B",
    quant: Annotated[
        str, typer.Option(metavar="FORM", help="Quantisation of the weights: none, int8, nf4.")
    ] = "nf4",
    kv_dtype: options.KvDtype = "model",
    budget: Annotated[
        str, typer.Option("-b", "--budget", metavar="TOKENS", help="Tokens kept.")
    ] = "4k",
    lengths: Annotated[
        str, typer.Option(metavar="TOKENS,...", help="Where the stream is looked at.")
    ] = "32k,128k,1m",
    full: Annotated[
        str, typer.Option(metavar="TOKENS,...", help="Lengths of the full cache beside it.")
    ] = "4k,16k,32k,128k",
    rehearse: Rehearse = False,
    out: Rows = None,
    as_json: options.Json = False,
) -> None:
    """Measure whole models of real shapes on this GPU: memory, reading, decoding.

    Their weights are random numbers, so nothing is said of quality. Beside them stands the same
    model with a full cache, as long as that fits.

    \b
    Examples:
      indexmem bench device --out benchmarks/results/device.jsonl
      indexmem bench device --models Llama-3.1-8B --quant none --lengths 32k --kv-dtype int8
    """
    hush_libraries(False)
    from indexmem_cli.bench.device import COLUMNS, DeviceConfig, bench_device
    from indexmem_cli.bench.kernels import require_gpu
    from indexmem_cli.bench.rows import parse_names, parse_sizes
    from indexmem_cli.bench.shapes import SHAPES

    names = ("rehearsal",) if rehearse else parse_names(models)
    if unknown := set(names) - set(SHAPES):
        raise ConfigError(f"unknown shape: {', '.join(unknown)}", f"there are: {', '.join(SHAPES)}")
    if rehearse:
        config = DeviceConfig(names, "none", kv_dtype, 64, 32, lengths=(96,), full_lengths=(96,))
        config = replace(config, rehearse=True)
    else:
        require_gpu("bench device")
        looks, fulls = parse_sizes(lengths), parse_sizes(full)
        config = DeviceConfig(
            names, quant, kv_dtype, parse_size(budget), lengths=looks, full_lengths=fulls
        )
    show_rows(_gather(bench_device(config), None if rehearse else out), COLUMNS, as_json)


def _gather(rows: Iterable["Row"], out: Path | None) -> list["Row"]:
    """Write rows down as they come, so that nothing measured is lost."""
    from indexmem_cli.bench.rows import append_row, machine_fields

    gathered = []
    for row in rows:
        gathered.append(row)
        if out is not None:
            append_row(out, {**machine_fields(), **row})
    return gathered


@bench.command()
def card(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Model folder with README.md.")],
    rows: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Rows of `bench model`. Default: those of the checkout."),
    ] = None,
    log: Annotated[
        Path | None, typer.Option(metavar="FILE", help="log.jsonl of the training run.")
    ] = None,
) -> None:
    """Fill the measured parts of a model card, and ask its ten example questions.

    A part stands between <!-- NAME --> and <!-- /NAME -->: model, scores, examples, and with --log
    training. Run it in a checkout: the questions are about its examples.

    \b
    Examples:
      indexmem bench card models/indexmem-mini
      indexmem bench card models/indexmem-mini --log runs/mini/log.jsonl
    """
    hush_libraries(False)
    from indexmem_cli.bench import card as parts
    from indexmem_cli.bench.parts import write_parts
    from indexmem_cli.bench.rows import IN_CHECKOUT, RESULTS, read_rows
    from indexmem_cli.render import markdown_measures

    if not IN_CHECKOUT:
        raise ConfigError("the card's questions need the examples", "run it in a checkout")
    found = parts.newest_rows(read_rows(rows or RESULTS / "model.jsonl"), folder.resolve().name)
    scores = [parts.describe_origin(found), markdown_measures(found), parts.describe_depths(found)]
    wanted = {
        "model": lambda: parts.describe_model(folder),
        "scores": lambda: "\n\n".join(scores),
        "examples": lambda: parts.ask_examples(str(folder)),
    }
    if log is not None:
        wanted["training"] = lambda: parts.describe_training(log)
    write_parts(folder / "README.md", wanted)
    typer.echo(folder / "README.md")
