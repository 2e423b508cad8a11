"""How counts, places and progress are put into words."""

from indexmem_cli.events import (
    Coverage,
    MemoryUse,
    Progress,
    RecalledBlock,
    RecallRound,
    Remembered,
    Source,
)
from indexmem_cli.render.safe import safe_line


def describe_coverage(coverage: Coverage) -> str:
    """Say how much was read; 100% only when no token is missing."""
    if coverage.tokens_read == coverage.tokens_total:
        share = "100%"
    else:
        share = f"{int(1000 * coverage.tokens_read / coverage.tokens_total) / 10}%"
    parts = []
    if coverage.pages_total:
        parts.append(f"{coverage.pages_read:,}/{coverage.pages_total:,} pages")
    if coverage.files_read != 1:
        parts.append(f"{coverage.files_read:,} files")
    if coverage.pages_without_text:
        parts.append(f"{len(coverage.pages_without_text):,} without text")
    if coverage.pages_not_selected:
        parts.append(f"{coverage.pages_not_selected:,} not selected")
    if coverage.messages_read:
        parts.append(count(coverage.messages_read, "message"))
    if coverage.messages_not_selected:
        parts.append(f"{coverage.messages_not_selected:,} messages not selected")
    if coverage.files_skipped:
        parts.append(f"skipped {describe_skipped(coverage)}")
    details = f" ({'; '.join(parts)})" if parts else ""
    return f"read {share} of {coverage.tokens_total:,} tokens{details}"


def describe_skipped(coverage: Coverage) -> str:
    """Say how many files were not read, by reason."""
    return ", ".join(f"{num:,} {reason}" for reason, num in coverage.files_skipped.items())


def describe_recall(rounds: tuple[RecallRound, ...]) -> str:
    """Say how much was read again, and how many looks into the archive brought it."""
    blocks = [block for each in rounds for block in each.blocks]
    if not blocks:
        return "nothing recalled"
    tokens = sum(block.tokens for block in blocks)
    brought = sum(bool(each.blocks) for each in rounds)
    return f"recalled {tokens:,} tokens in {count(brought, 'round')}"


def describe_memory(memory: Remembered) -> str:
    """Say what became of a memory: `memory a1f3c9 reused: 412,380 tokens not re-read`."""
    if memory.id is None:
        return "memory not saved"
    saved = f"saved ({format_bytes(memory.saved_bytes)})"
    if memory.tokens_reused == memory.tokens:
        return f"memory {memory.id} reused: {memory.tokens:,} tokens not re-read"
    if memory.tokens_reused:
        return (
            f"memory {memory.id} {saved}: {memory.tokens_reused:,} tokens not re-read, "
            f"{memory.tokens - memory.tokens_reused:,} read"
        )
    return f"memory {memory.id} {saved}"


def describe_policy(memory: MemoryUse) -> str:
    """Return what chose what was kept."""
    if memory.adapter is not None:
        return "a quick adapter" if memory.adapter == "quick" else "the model's adapter"
    return "the question" if memory.policy == "question" else f"{memory.policy}, without training"


def describe_bytes(memory: MemoryUse) -> str:
    """Return what is kept in bytes, and how many of them are of what was evicted."""
    kept = format_bytes(memory.kv_bytes)
    if not memory.latent_bytes:
        return kept
    return f"{kept} ({format_bytes(memory.latent_bytes)} for evicted ones)"


def describe_round(number: int, recalled: RecallRound) -> str:
    """Say what one look into the archive brought."""
    places = [f"{describe_place(block)} ({block.odds:.0%})" for block in recalled.blocks]
    query = safe_line(recalled.query)
    return f"recall {number}: “{query}” → {', '.join(places) or 'nothing'}"


def count(number: int, noun: str) -> str:
    """Write a number with its noun: `1 round`, `2 rounds`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def describe_place(source: Source | RecalledBlock) -> str:
    """Return where to look.

    `book.pdf p. 311`, `app.log lines 3–9`, `chat.txt · 2024-03-05 14:02 · Ann`,
    `read.py:12–30 (Reader.read)`, `book.epub · Chapter 3 · paragraph 12`.
    """
    name = "stdin" if source.file == "-" else safe_line(source.file)
    if source.page is not None:
        return f"{name} p. {safe_line(source.page_label or str(source.page))}"
    several = "" if source.line_end == source.line_start else f"–{source.line_end}"
    if source.symbol:
        return f"{name}:{source.line_start}{several} ({safe_line(source.symbol)})"
    where = f"{source.unit}{'s' * bool(several)} {source.line_start}{several}"
    named = [safe_line(part) for part in (source.member, source.time, source.author) if part]
    if not named:
        return f"{name} {where}"
    return " · ".join([name, *named] if source.time else [name, *named, where])


def describe_progress(event: Progress, narrow: bool) -> str:
    """Return tokens, rate and, where the length is known, the time left."""
    rate = format_rate(event.tokens_read / event.elapsed_s if event.elapsed_s > 0 else 0.0)
    if not event.fraction:
        return f"{event.tokens_read:,} tokens · {rate}"
    left_s = event.elapsed_s * (1 - event.fraction) / event.fraction
    left = f"{left_s:.0f} s" if left_s < 59.5 else format_seconds(left_s)
    if narrow:
        return f"{event.fraction:.0%} · {rate} · {left}"
    return f"{event.tokens_read:,} tokens · {rate} · {left} left"


def format_bytes(num_bytes: int) -> str:
    """Write a number of bytes as B, KiB, MiB, GiB or TiB."""
    if num_bytes < 1024:
        return f"{num_bytes} B"
    size = float(num_bytes)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        size /= 1024
        if size < 1023.95 or unit == "TiB":
            break
    return f"{size:.1f} {unit}"


def format_seconds(seconds: float) -> str:
    """Write a duration as `0.42 s`, `45.2 s`, `3 min 05 s` or `2 h 07 min`."""
    if seconds < 59.95:
        return f"{seconds:.3g} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
    )


def format_rate(tokens_per_s: float) -> str:
    """Write a rate of tokens; decimals only where they matter."""
    return f"{tokens_per_s:,.0f} tok/s" if tokens_per_s >= 10 else f"{tokens_per_s:.1f} tok/s"
