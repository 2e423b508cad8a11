"""What `inspect` shows."""

from rich.table import Table
from rich.text import Text

from indexmem_cli.events import FileReport, Inspection
from indexmem_cli.render.safe import safe_line
from indexmem_cli.render.screen import open_console
from indexmem_cli.render.wording import describe_skipped, format_bytes

_INSPECTED_FILES = 40


def show_inspection(inspection: Inspection, verbose: bool) -> None:
    """Print what reading the sources would mean."""
    console = open_console(stderr=False)
    table = Table(box=None, pad_edge=False)
    table.add_column("FILE", overflow="fold")
    table.add_column("KIND")
    for column in ("PAGES", "TOKENS", "SIZE"):
        table.add_column(column, justify="right", no_wrap=True)
    shown = inspection.files if verbose else inspection.files[:_INSPECTED_FILES]
    folders = _folder_totals(inspection.files)
    for file in shown:
        name, depth = file.name, 0
        if file.inner is not None:
            *outer, name = file.inner.split("/")
            root = file.name.removesuffix(file.inner)
            for depth in range(len(outer) + 1):
                folder = root + "".join(f"{part}/" for part in outer[:depth])
                if folder in folders:
                    tokens, size = folders.pop(folder)
                    label = outer[depth - 1] + "/" if depth else root
                    _add_row(table, depth, label, "", "", tokens, size)
            depth += 1
        pages = f"{file.pages:,}" if file.pages else "-"
        _add_row(table, depth, name, file.kind, pages, file.tokens, file.size_bytes)
    console.print(table)
    if hidden := len(inspection.files) - len(shown):
        console.print(Text(f"… and {hidden:,} more files (-v lists them)"))
    for line in _inspection_lines(inspection, verbose):
        console.print(Text(safe_line(line)))


def _folder_totals(files: tuple[FileReport, ...]) -> dict[str, tuple[int, int]]:
    """Sum tokens and bytes of every folder, and of those above it up to the one that was named."""
    totals: dict[str, tuple[int, int]] = {}
    for file in files:
        if file.inner is None:
            continue
        folder = file.name.removesuffix(file.inner)
        for part in ["", *file.inner.split("/")[:-1]]:
            folder += f"{part}/" if part else ""
            tokens, size = totals.get(folder, (0, 0))
            totals[folder] = (tokens + file.tokens, size + file.size_bytes)
    return totals


def _add_row(
    table: Table, depth: int, name: str, kind: str, pages: str, tokens: int, size_bytes: int
) -> None:
    cells = (kind, pages, f"{tokens:,}", format_bytes(size_bytes))
    indented = Text("  " * depth + safe_line(name))
    table.add_row(indented, *(Text(safe_line(cell)) for cell in cells))


def _inspection_lines(inspection: Inspection, verbose: bool) -> list[str]:
    coverage = inspection.coverage
    num_files = len(inspection.files)
    lines = [f"{coverage.tokens_total:,} tokens in {num_files:,} file{'s' * (num_files != 1)}"]
    if coverage.pages_total:
        lines[0] += f", {coverage.pages_total:,} pages"
    if coverage.messages_read:
        lines[0] += f", {coverage.messages_read:,} messages"
    if coverage.messages_not_selected:
        lines[0] += f" ({coverage.messages_not_selected:,} more are not selected)"
    if coverage.files_skipped:
        lines.append(f"skipped: {describe_skipped(coverage)}")
    if coverage.pages_without_text:
        named = coverage.pages_without_text if verbose else coverage.pages_without_text[:5]
        rest = len(coverage.pages_without_text) - len(named)
        lines.append(
            f"no text on {len(coverage.pages_without_text):,} pages: {', '.join(named)}"
            + (f" and {rest:,} more (-v lists them)" if rest else "")
        )
    lines.append(
        f"KV cache of {inspection.model}, {format_bytes(inspection.kv_bytes_per_token)} per token: "
        f"{format_bytes(inspection.full_kv_bytes)} full, {format_bytes(inspection.kv_bytes)} at a "
        f"budget of {inspection.budget_tokens:,} tokens"
    )
    return lines
