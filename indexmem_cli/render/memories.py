"""What `memories` shows."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import OverflowMethod
from rich.table import Table
from rich.text import Text

from indexmem_cli.config import CENTROIDS, show_time
from indexmem_cli.events import SavedMemory
from indexmem_cli.render.safe import safe_line
from indexmem_cli.render.screen import open_console
from indexmem_cli.render.wording import format_bytes


def memory_json(memory: SavedMemory) -> dict[str, Any]:
    """Return a memory as plain JSON values."""
    data = asdict(memory)
    for name in ("created_s", "used_s"):
        data[name.removesuffix("_s")] = show_time(data.pop(name))
    return data


def memories_json(memories: Sequence[SavedMemory]) -> dict[str, Any]:
    """Return the list as plain JSON values; `schema` 1 is stable."""
    total = sum(memory.num_bytes for memory in memories)
    return {"schema": 1, "memories": list(map(memory_json, memories)), "total_bytes": total}


def show_memories(memories: Sequence[SavedMemory], full: bool) -> None:
    """Print one line for each memory and the total."""
    console = open_console(stderr=False)
    table = Table(box=None, pad_edge=False)
    overflow: OverflowMethod = "fold" if full else "ellipsis"
    table.add_column("ID", no_wrap=True)
    for column in ("NAME", "SOURCE", "MODEL"):
        table.add_column(column, overflow=overflow, no_wrap=not full)
    for column in ("TOKENS", "SIZE", "USED"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("STATUS", no_wrap=True)
    for memory in memories:
        cells = (
            memory.id,
            memory.name or "-",
            "stdin" if memory.source == "-" else memory.source,
            memory.model,
            f"{memory.tokens:,}",
            format_bytes(memory.num_bytes),
            ago(memory.used_s),
            memory.status,
        )
        table.add_row(*(Text(safe_line(cell)) for cell in cells))
    if memories:
        console.print(table)
    for memory in memories:
        if memory.detail:
            console.print(Text(safe_line(f"{memory.id}: {memory.detail}")))
    total = format_bytes(sum(memory.num_bytes for memory in memories))
    noun = "memory" if len(memories) == 1 else "memories"
    console.print(Text(f"{len(memories):,} {noun}, {total}"))


def show_memory(memory: SavedMemory, folder: str) -> None:
    """Print all that is known of one memory."""
    console = open_console(stderr=False)
    chooser = "the model's adapter" if memory.policy == "learned" else memory.policy
    kept = f"at most {memory.budget_tokens:,} tokens, by {chooser}"
    kept += " (centroids of the others)" if memory.latent == CENTROIDS else ""
    facts = {
        "memory": f"{memory.id}{f' ({memory.name})' if memory.name else ''}",
        "status": memory.status + (f": {memory.detail}" if memory.detail else ""),
        "source": "stdin" if memory.source == "-" else memory.path or memory.source,
        "files": f"{memory.files:,}",
        "model": memory.model,
        "read": f"{memory.tokens:,} tokens",
        "kept": kept + (f", for the question: {memory.question}" if memory.question else ""),
        "recalled": f"from {memory.recall_from}",
        "size": format_bytes(memory.num_bytes),
        "created": show_time(memory.created_s),
        "used": show_time(memory.used_s),
        "folder": folder,
    }
    for name, value in facts.items():
        console.print(Text(f"{name:<9}{safe_line(value)}"))


def ago(seconds: float) -> str:
    """Say how long ago something was, in its largest unit."""
    if not seconds:
        return "-"
    age_s = max(0.0, time.time() - seconds)
    for limit_s, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if age_s >= limit_s:
            return f"{int(age_s // limit_s)} {unit} ago"
    return "now"
