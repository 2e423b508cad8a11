"""What `inspect` shows."""

from rich.table import Table
from rich.text import Text

from indexmem_cli.events import Inspection
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
    for file in shown:
        pages = f"{file.pages:,}" if file.pages else "-"
        cells = (file.name, file.kind, pages, f"{file.tokens:,}", format_bytes(file.size_bytes))
        table.add_row(*(Text(safe_line(cell)) for cell in cells))
    console.print(table)
    if hidden := len(inspection.files) - len(shown):
        console.print(Text(f"… and {hidden:,} more files (-v lists them)"))
    for line in _inspection_lines(inspection, verbose):
        console.print(Text(safe_line(line)))


def _inspection_lines(inspection: Inspection, verbose: bool) -> list[str]:
    coverage = inspection.coverage
    num_files = len(inspection.files)
    lines = [f"{coverage.tokens_total:,} tokens in {num_files:,} file{'s' * (num_files != 1)}"]
    if coverage.pages_total:
        lines[0] += f", {coverage.pages_total:,} pages"
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
