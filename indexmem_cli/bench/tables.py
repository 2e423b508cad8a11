"""The tables of README.md, made of the rows in benchmarks/results.

To add one: write a function of all rows, enter it in `TABLES`, and set its marks in README.md.
"""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from indexmem_cli.bench.parts import fill_parts, markdown_table, write_parts
from indexmem_cli.bench.rows import RESULTS, ROOT, Row, matching, middle_run, of_newest, read_rows
from indexmem_cli.config import ModelConfig
from indexmem_cli.estimate import CARD_GIB, largest_budget

README = ROOT / "README.md"
MIB = 2**20

NOVEL = {"texts": ["castaways.txt"]}
# Label of a line in the table of facts, and which row it is of.
FACTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("recall (the default)", "recall", NOVEL | {"mode": "recall", "wrap_chars": None}),
    ("the same, in lines of 72 characters", "recall", NOVEL | {"mode": "recall", "wrap_chars": 72}),
    (
        "the best passages by words, up to 512 tokens, narrowed to 96, no memory",
        "recall",
        {"mode": "passages", "wrap_chars": None},
    ),
    ("`--focus --no-recall`", "needles", {"mode": "question"}),
    ("`--policy learned --no-recall` (the adapter alone)", "needles", {"mode": "learned"}),
    ("`--policy keydiff --no-recall`", "needles", {"mode": "keydiff"}),
    ("`--policy recency --no-recall`", "needles", {"mode": "recency"}),
)


def newest(rows: Iterable[Row], **wanted: Any) -> Row | None:
    """Return the last row whose fields are as wanted, if there is one."""
    found = matching(rows, **wanted)
    return found[-1] if found else None


def tabulate_memory(results: Path) -> str:
    """Write how much memory reading takes, by length: streamed, and beside it the full cache.

    All rows are of the weights that were measured last: others keep more or less.
    """
    rows = of_newest(read_rows(results / "memory.jsonl"))
    lines = []
    for length in sorted({row["length_tokens"] for row in rows}):
        streamed = middle_run(rows, mode="question", length_tokens=length)
        full = middle_run(rows, mode="full", length_tokens=length)
        if streamed is None:
            continue
        cells = [f"{streamed['tokens']:,}"]
        for row in (streamed, full):
            sizes = (row["kv_bytes"], row["above_model_bytes"]) if row else ()
            cells += [_mib(size) for size in sizes] or ["", ""]
        lines.append(cells)
    head = ["tokens", "KV kept", "peak above the loaded model"]
    return markdown_table([*head, "full cache: KV", "full cache: peak"], lines)


def tabulate_facts(results: Path) -> str:
    """Write how many hidden facts are answered, by way of answering.

    All rows are of the weights that were measured last, as above.
    """
    lines = []
    for label, file, wanted in FACTS:
        row = newest(of_newest(read_rows(results / f"{file}.jsonl")), **wanted)
        if row is not None:
            low, high = (f"{end:.2f}".lstrip("0") for end in row["interval_95"])
            hidden_in = _text_tokens(results, row)
            right = f"{row['right']} of {row['n']}"
            lines.append([label, f"{hidden_in:,}", right, f"{low} to {high}"])
    return markdown_table(["", "tokens", "right", "95 % interval"], lines)


def tabulate_cards(results: Path) -> str:
    """Write the largest budget that GPUs of each size have room for, by model and form.

    Estimated from the models' shapes as `models show` does; no row is read.
    """
    from indexmem_cli.bench.shapes import SHAPES, checkpoint_of, weights_of

    lines = []
    for name in SHAPES:
        if name == "rehearsal":  # no model of anyone
            continue
        checkpoint, weights = checkpoint_of(name), weights_of(name)
        for quant, form in (("none", "bfloat16"), ("nf4", "nf4")):
            config = ModelConfig(name, quant, "bfloat16")
            budgets = (largest_budget(checkpoint, weights, config, gib * 2**30) for gib in CARD_GIB)
            size = f"{weights.nbytes(quant, 'bfloat16') / 2**30:.1f} GiB"
            cells = ("does not fit" if budget is None else f"{budget:,}" for budget in budgets)
            lines.append([name, form, size, *cells])
    return markdown_table(["", "form", "weights", *(f"{gib} GB" for gib in CARD_GIB)], lines)


TABLES: dict[str, Callable[[Path], str]] = {
    "memory": tabulate_memory,
    "facts": tabulate_facts,
    "cards": tabulate_cards,
}


def write_tables(readme: Path = README, results: Path = RESULTS) -> None:
    """Make the tables of a README anew.

    Raises:
        ConfigError: it has no marks for one of them.
    """
    write_parts(readme, _parts(results))


def are_current(readme: Path = README, results: Path = RESULTS) -> bool:
    """Say whether the tables of a README are those of the rows; errors as in `write_tables`."""
    return fill_parts(readme, _parts(results)) == readme.read_text("utf-8")


def _parts(results: Path) -> dict[str, Callable[[], str]]:
    return {f"table: {name}": partial(make, results) for name, make in TABLES.items()}


def _text_tokens(results: Path, row: Row) -> int:
    """Tokens that the facts were hidden in: passages alone do not say of which text they are."""
    if row["mode"] != "passages":
        return int(row["tokens"])
    names = ("commit", "texts", "wrap_chars", "n", "seed", "length_tokens")
    same = {name: row.get(name) for name in names}
    rows = matching(read_rows(results / "recall.jsonl"), **same)
    return max(int(row["tokens"]) for row in rows)


def _mib(size: int) -> str:
    """Write bytes as MiB: a decimal where there are few."""
    mib = size / MIB
    return f"{mib:,.0f} MiB" if mib >= 100 else f"{mib:.1f} MiB"
