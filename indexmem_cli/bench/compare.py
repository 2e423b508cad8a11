"""`bench compare`: two sets of rows side by side, so that a regression is seen."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from indexmem_cli.bench.rows import Row, read_rows
from indexmem_cli.bench.scores import compare as paired
from indexmem_cli.errors import ConfigError

COLUMNS = ("of", "measure", "a", "b", "difference", "interval_95", "verdict")
# What a row is of: rows that agree in all of these are compared.
KEYS = (
    *("benchmark", "suite", "set", "sort", "wordings", "texts", "book", "task", "measure"),
    *("length", "length_tokens", "method", "mode", "kept", "budget", "budget_tokens"),
    *("chunk_tokens", "answer_from_tokens", "weights", "model", "shape", "kernel", "form", "kind"),
    *("scene", "part", "quant", "kv_dtype", "dtype", "seed", "run", "threads", "alone"),
    *("size", "batch", "recall_from", "round_tokens", "protocol", "prose"),
)
SHOWN = (
    *("benchmark", "suite", "set", "task", "length", "length_tokens", "method", "mode", "kept"),
    *("weights", "kernel", "kind", "scene"),
)
_HIGHER = ("value", "accuracy", "score", "tokens_per_s", "f1", "found", "of_bare", "of_roofline")
_LOWER = (
    *("read_s", "ask_s", "answer_s", "ms", "first_token_s", "kv_bytes", "above_model_bytes"),
    *("process_peak_bytes", "gpu_peak_bytes", "wrong"),
)
HIGHER_IS_BETTER = dict.fromkeys(_HIGHER, True) | dict.fromkeys(_LOWER, False)
LOWER_UNITS = ("s", "MiB", "bits")
TOLERANCE = 0.02
"""Share by which a number without an interval may differ: bytes differ by pages."""
SLOWER = 0.1
"""The same for times of a single run."""


def rows_of(name: str, results: Path) -> list[Row]:
    """Return the rows of a file, or those of a commit among all files of a folder.

    Raises:
        ConfigError: there are none.
    """
    path = Path(name)
    if path.is_file():
        return read_rows(path)
    found = [row for file in sorted(results.glob("*.jsonl")) for row in read_rows(file)]
    mine = [row for row in found if (row.get("commit") or "-").startswith(name)]
    if not name or not mine:
        commits = dict.fromkeys(row["commit"] for row in found if row.get("commit"))
        raise ConfigError(
            f"neither a file of rows nor a commit with rows: {name}",
            f"there are: {', '.join(list(commits)[-8:]) or 'none'}",
        )
    return mine


def compare_rows(before: Sequence[Row], after: Sequence[Row]) -> list[Row]:
    """Return a line for each measure of each thing that both sides measured, worst first.

    Of several rows of the same thing the last counts. `difference` is b - a; for times, rates and
    bytes b / a - 1.
    """
    first, second = ({_key(row): row for row in rows} for rows in (before, after))
    lines = [line for key in first if key in second for line in _lines(first[key], second[key])]
    order = {"worse": 0, "better": 1}
    return sorted(lines, key=lambda line: order.get(line["verdict"], 2))


def _lines(a: Row, b: Row) -> Iterator[Row]:
    of = " ".join(str(a[name]) for name in SHOWN if a.get(name) is not None)
    for name, higher in HIGHER_IS_BETTER.items():
        one, two = a.get(name), b.get(name)
        if one is None or two is None:
            continue
        higher = higher and not (name in ("value", "score") and _is_lower_better(a))
        measure = a.get("measure", name) if name == "value" else name
        line = {"of": of, "measure": measure, "a": _number(one), "b": _number(two)}
        difference, interval, sign = _difference(name, a, b)
        verdict = "same" if not sign else "better" if (sign > 0) == higher else "worse"
        yield line | {"difference": difference, "interval_95": interval, "verdict": verdict}


def _is_lower_better(row: Row) -> bool:
    """Of the `value` or `score` of a row: it is not of what is right, but a cost."""
    if row.get("benchmark") == "quality":
        return "measure" in row
    if row.get("benchmark") == "indexers":
        return row.get("task") == "prose"  # nats per token
    is_cost = row.get("unit") in LOWER_UNITS or row.get("measure") == "wrongly refused"
    # Full less quantised is what quantising takes away; of a cost, what it saves.
    is_loss = str(row.get("weights")).startswith("full - ")
    return is_loss != is_cost


def _difference(name: str, a: Row, b: Row) -> tuple[float, list[float] | None, int]:
    """How far b is from a, the interval of that if there is one, and whether it is beyond it."""
    one, two = _number(a[name]), _number(b[name])
    ends = "interval_95" if name in ("value", "accuracy", "score") else f"{name}_interval_95"
    if name == "value" and len(a.get("scores", ())) == len(b.get("scores", ())) > 1:
        found = paired(b["scores"], a["scores"])  # the same samples: question by question
        return found["value"], found["interval_95"], _beyond(found["interval_95"])
    if a.get(ends) and b.get(ends):
        # Of two independent estimates. Source: Newcombe 1998, method 10.
        (low_a, high_a), (low_b, high_b) = a[ends], b[ends]
        gap = two - one
        low = gap - ((two - low_b) ** 2 + (high_a - one) ** 2) ** 0.5
        high = gap + ((high_b - two) ** 2 + (one - low_a) ** 2) ** 0.5
        interval = [round(low, 5), round(high, 5)]
        return round(gap, 5), interval, _beyond(interval)
    change = round(two / one - 1, 4) if one else float(two != one)
    if isinstance(a[name], dict) and isinstance(b[name], dict):
        apart = b[name]["p20"] > a[name]["p80"] or b[name]["p80"] < a[name]["p20"]
        return change, None, (change > 0) - (change < 0) if apart else 0
    limit = TOLERANCE if name.endswith("bytes") else 0 if name == "wrong" else SLOWER
    return change, None, (change > limit) - (change < -limit)


def _beyond(interval: Sequence[float]) -> int:
    """1 or -1 where zero lies outside of an interval."""
    return (interval[0] > 0) - (interval[1] < 0)


def _number(value: Any) -> float:
    number: float = value["median"] if isinstance(value, dict) else value
    return number


def _key(row: Row) -> tuple[str, ...]:
    return tuple(str(row.get(name)) for name in KEYS)
