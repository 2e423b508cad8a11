"""The parts of a model card that are measured or asked: written between marks in its README."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path

from safetensors import safe_open

from indexmem_cli.bench.parts import markdown_table
from indexmem_cli.bench.reader import ModelReader
from indexmem_cli.bench.rows import EXAMPLE_BOOK, EXAMPLES, Row
from indexmem_cli.bench.scores import score_exact, score_f1
from indexmem_cli.bench.tasks import text_of
from indexmem_cli.checkpoint import Checkpoint, find_checkpoint
from indexmem_cli.config import NOT_STATED, ModelConfig
from indexmem_cli.errors import ConfigError

AROUND_CHARS = 2800
BOOK = EXAMPLE_BOOK.name
NOTE = "The meeting starts at nine. Bring the blue folder and two pens. Maria will drive the van."
VAULT = " The combination of the bank vault is 7-40-19."


@dataclass(frozen=True)
class Example:
    """A question on an example document."""

    kind: str
    source: str
    """A file of examples/, or a text of its own."""
    near: str
    """Words of the passage that is given; empty for the beginning."""
    question: str
    expected: str
    added: str = ""
    """A sentence put into the passage."""


EXAMPLES_ASKED = (
    Example("when", BOOK, "1224 Frederick", "When was the University of Naples founded?", "1224"),
    Example("who", BOOK, "founded the Yuan", "Who founded the Yuan dynasty?", "Kublai Khan"),
    Example(
        "what",
        BOOK,
        "founded the Yuan",
        "Which dynasty did Kublai Khan found?",
        "the Yuan dynasty",
    ),
    Example("where", BOOK, "Burgoyne", "Where did General Burgoyne surrender?", "Saratoga"),
    Example(
        "date",
        BOOK,
        "monk Rasputin",
        "On what date was the monk Rasputin murdered?",
        "December 29th, 1916",
    ),
    Example("absent", BOOK, "Prince Albert", "What is the capital of Australia?", NOT_STATED),
    Example("number", BOOK, "Burgoyne", "What is the combination of the vault?", "7-40-19", VAULT),
    Example("chat", "chat.txt", "", "What is the new name of the band?", "The Low Tide"),
    Example(
        "function",
        "stockroom/stockroom/ledger.py",
        "",
        "What does the function reorder_level return?",
        "REORDER_LEVELS.get(self.part, DEFAULT_REORDER_LEVEL)",
    ),
    Example("one line", NOTE, "", "What time does the meeting start?", "nine"),
)


def newest_rows(rows: Iterable[Row], model: str) -> list[Row]:
    """Return the last row of every measure of a model, of one commit: that of the newest."""
    mine = [row for row in rows if row.get("benchmark") == "model" and row["model"] == model]
    if not mine:
        raise ConfigError(f"no rows of {model}", f"indexmem bench model --model {model}")
    mine = [row for row in mine if row["commit"] == mine[-1]["commit"]]
    keyed = {(row["weights"], row["task"], row["measure"]): row for row in mine}
    return list(keyed.values())


def describe_model(folder: Path) -> str:
    """Write the table of what the model is."""
    checkpoint = find_checkpoint(str(folder), offline=True)
    c = checkpoint.config
    heads, (kv_heads, size) = c["num_attention_heads"], checkpoint.kv_shape
    shape = (
        f"{c['model_type'].capitalize()} (transformers): {c['num_hidden_layers']} layers, hidden "
        f"{c['hidden_size']}, {heads} query and {kv_heads} key/value heads of {size}, MLP "
        f"{c['intermediate_size']}, tied embeddings, QK-norm, RoPE theta "
        f"{c['rope_parameters']['rope_theta']:,.0f}"
    )
    kept = checkpoint.stored_quant or c.get("dtype", "")
    stored = f"{count_parameters(checkpoint):,} ({kept}, {checkpoint.weight_bytes / 1e6:.1f} MB)"
    lines = [("architecture", shape), ("parameters", stored)]
    lines += [("trained window", f"{checkpoint.window_tokens} tokens")]
    return markdown_table(["", ""], lines)


def count_parameters(checkpoint: Checkpoint) -> int:
    """Count the weights, those of int8 and bf16 alike; scales are none."""
    total = 0
    for file in checkpoint.weight_files:
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - safe_open has no iterator
                part = tensors.get_slice(name)
                if name.endswith(".weight"):
                    packed = part.get_dtype() == "U8"  # two to a byte
                    total += prod(part.get_shape()) * (2 if packed else 1)
    return total


def describe_depths(rows: Iterable[Row]) -> str:
    """Write needle accuracy by tenth of the text, of the form measured last."""
    found = {
        row["task"]: row for row in rows if row["task"].startswith("needle, ") and "by_depth" in row
    }
    head = ["needle accuracy in %, by tenth of the text", *map(str, range(1, 11))]
    lines = (
        [task.removeprefix("needle, "), *(f"{100 * share:.0f}" for share in row["by_depth"])]
        for task, row in found.items()
    )
    return markdown_table(head, lines)


def describe_origin(rows: list[Row]) -> str:
    """Say what the rows were measured with."""
    row = next(row for row in rows if "quant" in row)
    dirty = ", with changes" if row["dirty"] else ""
    return (
        f"Measured by `indexmem bench model` on {row['cpu']}, {row['threads']} threads, "
        f"{row['dtype']}, seed {row['seed']}, torch {row['torch']}, transformers "
        f"{row['transformers']}, commit {row['commit']}{dirty}, {row['date'][:10]}; 95 % intervals."
    )


def describe_training(log: Path) -> str:
    """Say how long a run was, from the last step of its log."""
    rows = map(json.loads, log.read_text("utf-8").splitlines())
    *_, last = (row for row in rows if "loss" in row)
    minutes = last["elapsed_s"] / 60
    return (
        f"{last['step']:,} steps, {last['num_tokens'] / 1e6:.1f} M tokens, {minutes:.0f} minutes."
    )


def ask_examples(model: str) -> str:
    """Ask the ten example questions, with all of each passage in memory; write the table."""
    reader = ModelReader(ModelConfig(model=model, device="cpu", offline=True))
    lines: list[list[str]] = []
    texts: dict[str, str] = {}
    for one in EXAMPLES_ASKED:
        passage = texts.setdefault(one.source, " ".join(load_example(one.source).split()))
        name = one.source if (EXAMPLES / one.source).exists() else f"“{one.source}”"
        if one.near:
            at = passage.index(one.near)
            passage = passage[max(0, at - AROUND_CHARS) : at + AROUND_CHARS]
        else:
            passage = passage[: 2 * AROUND_CHARS]
        if one.added:
            cut = passage.index(". ", len(passage) // 3) + 1
            passage = passage[:cut] + one.added + passage[cut:]
            name += f", with “{one.added.strip()}”"
        given = reader.answer(passage, one.question).text
        tokens = len(reader.model.tokenizer.encode(passage))
        cells = (one.kind, f"{name}, {tokens:,} tokens", one.question, given, judge(given, one))
        lines.append([cell.replace("|", "\\|") for cell in cells])
    return markdown_table(["kind", "text", "question", "answer", ""], lines)


def load_example(source: str) -> str:
    """Return the text of an example file, or the text itself."""
    path = EXAMPLES / source
    if len(source) > 60 or not path.exists():
        return source
    return text_of(path) if path.suffix == ".pdf" else path.read_text("utf-8")


def judge(given: str, example: Example) -> str:
    """Say whether an answer is right, partly so, or wrong."""
    accepted = [example.expected]
    if score_exact(given, accepted):
        return "right"
    verdict = "partly right" if score_f1(given, accepted) > 0.3 else "wrong"
    return f"{verdict}: {example.expected}"
