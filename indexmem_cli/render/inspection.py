"""What `inspect` shows."""

from rich.table import Table
from rich.text import Text

from indexmem_cli.events import FileReport, Inspection
from indexmem_cli.render.safe import safe_line
from indexmem_cli.render.screen import open_console
from indexmem_cli.render.wording import count, describe_skipped, format_bytes

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
    totals = _folder_totals(inspection.files)
    for file in shown:
        folders = _folders_of(file)
        for depth, (folder, label) in enumerate(folders):
            if folder in totals:  # before the first file in it
                _add_row(table, depth, label, "", "", *totals.pop(folder))
        name = file.name if file.inner is None else file.inner.rpartition("/")[2]
        pages = f"{file.pages:,}" if file.pages else "-"
        _add_row(table, len(folders), name, file.kind, pages, file.tokens, file.size_bytes)
    console.print(table)
    if hidden := len(inspection.files) - len(shown):
        console.print(Text(f"… and {hidden:,} more files (-v lists them)"))
    for line in _inspection_lines(inspection, verbose):
        console.print(Text(safe_line(line)))


def _folder_totals(files: tuple[FileReport, ...]) -> dict[str, tuple[int, int]]:
    """Sum tokens and bytes of every folder, and of those above it up to the one that was named."""
    totals: dict[str, tuple[int, int]] = {}
    for file in files:
        for folder, _ in _folders_of(file):
            tokens, size = totals.get(folder, (0, 0))
            totals[folder] = (tokens + file.tokens, size + file.size_bytes)
    return totals


def _folders_of(file: FileReport) -> list[tuple[str, str]]:
    """The folders that a file is in, from the one that was named: each as a path and its name."""
    if file.inner is None:
        return []
    root = file.name.removesuffix(file.inner)
    labels = [f"{part}/" for part in file.inner.split("/")[:-1]]
    return [("".join((root, *labels[:n])), label) for n, label in enumerate((root, *labels))]


def _add_row(
    table: Table, depth: int, name: str, kind: str, pages: str, tokens: int, size_bytes: int
) -> None:
    cells = (kind, pages, f"{tokens:,}", format_bytes(size_bytes))
    indented = Text("  " * depth + safe_line(name))
    table.add_row(indented, *(Text(safe_line(cell)) for cell in cells))


def _inspection_lines(inspection: Inspection, verbose: bool) -> list[str]:
    coverage = inspection.coverage
    lines = [f"{coverage.tokens_total:,} tokens in {count(len(inspection.files), 'file')}"]
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
    lines += inspection.notices
    lines.append(
        f"KV cache of {inspection.model}, {format_bytes(inspection.kv_bytes_per_token)} per token: "
        f"{format_bytes(inspection.full_kv_bytes)} full, {format_bytes(inspection.kv_bytes)} at a "
        f"budget of {inspection.budget_tokens:,} tokens"
    )
    return lines
