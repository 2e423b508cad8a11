"""Events → screen or JSON. The only file that imports rich.

The one place where untrusted text (of models, documents, file names) is made safe for a terminal:
every such string passes `safe_text`, and meets Rich as `Text`, never as markup.
"""

import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, ProgressColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from indexmem_cli.events import (
    Answer,
    Coverage,
    Event,
    Inspection,
    Loaded,
    Notice,
    Progress,
    Source,
    TokenText,
)

# Per character and without state, so that a stream is filtered the same wherever it is split.
_DROPPED = (
    *(code for code in range(0x20) if chr(code) not in "\n\t"),  # C0: escape sequences begin here
    *range(0x7F, 0xA0),  # DEL and C1, the one-byte escapes
    *(0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)),  # bidi
    *(0x2028, 0x2029),  # line and paragraph separators
    *range(0xE0000, 0xE0080),  # tags: invisible text
)
_SAFE: dict[int, str | None] = {
    **dict.fromkeys(_DROPPED),
    # Halves of characters, as in undecodable file names: no terminal can be sent these.
    **dict.fromkeys(range(0xD800, 0xE000), "\ufffd"),
}
_INSPECTED_FILES = 40
# Output that is no terminal is never wrapped: a log keeps one fact on one line.
_UNWRAPPED = 100_000


def safe_text(text: str) -> str:
    """Drop everything that a terminal could take for a command; keep newlines and tabs."""
    return text.translate(_SAFE)


def safe_line(text: str) -> str:
    """Make text safe and put it on one line, as names and quotes need."""
    return " ".join(safe_text(text).split())


@dataclass(frozen=True)
class View:
    """What is shown besides the answer, all of it on standard error."""

    stream: bool = True
    """Print the answer while it is written, not at its end."""
    progress: bool = True
    notices: bool = True
    sources: bool = True
    stats: bool = True
    verbose: bool = False
    """Quote the sources and add a line of details to the statistics."""


class Renderer:
    """Shows a session to a person: the answer on stdout, everything else on stderr."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._console = _console(stderr=True)
        self._last_written = ""

    def consume(self, events: Iterable[Event]) -> Answer:
        """Show the events as they come, and return the answer that ends them."""
        answer = None
        try:
            with ReadingBar(self._console, self._view.progress) as bar:
                for event in events:
                    match event:
                        case Loaded() | Progress():
                            bar.show(event)
                        case Notice(message):
                            self.show_notice(message)
                        case TokenText(text):
                            self.show_token(text, bar)
                        case Answer():
                            answer = event
        except BrokenPipeError:
            raise
        except BaseException:
            self._end_line()
            raise
        assert answer is not None, "a session ends with an answer"
        self.show_answer(answer)
        return answer

    def show_notice(self, message: str) -> None:
        """Show something that the user should know."""
        if self._view.notices:
            self._console.print(Text.assemble(("note: ", "yellow"), safe_text(message)))

    def show_token(self, text: str, bar: "ReadingBar") -> None:
        """Write a piece of the answer at once, or keep the bar until the answer is whole."""
        if self._view.stream:
            bar.close()
            self._write(text)
        else:
            bar.show_answering()

    def show_answer(self, answer: Answer) -> None:
        """Finish the answer, then say where it stands and what it cost."""
        if not self._last_written:
            self._write(answer.text)
        self._end_line()
        if answer.stop == "length":
            self.show_notice("the answer was cut at its greatest length; see --max-tokens")
        if self._view.sources:
            self._show_sources(answer.sources)
        if self._view.stats:
            lines = statistics(answer, self._view.verbose)
            self._console.print(Text("\n".join(map(safe_line, lines)), style="dim"))

    def _show_sources(self, sources: tuple[Source, ...]) -> None:
        places: dict[str, list[Source]] = {}
        for source in sources:
            places.setdefault(describe_place(source), []).append(source)
        numbered = [f"[{number}] {place}" for number, place in enumerate(places, start=1)]
        if not self._view.verbose:
            if numbered:
                self._console.print(Text.assemble(("Sources  ", "bold"), "   ".join(numbered)))
            return
        for label, group in zip(numbered, places.values(), strict=True):
            self._console.print(Text(label, style="bold"))
            for source in group:
                quote = f"{source.weight:.0%}  “{safe_line(source.quote)}”"
                self._console.print(Padding(Text(quote), (0, 0, 0, 4), expand=False))

    def _write(self, text: str) -> None:
        safe = safe_text(text)
        self._last_written = safe or self._last_written  # first: Ctrl-C may come right after
        sys.stdout.write(safe)
        sys.stdout.flush()

    def _end_line(self) -> None:
        if self._last_written and not self._last_written.endswith("\n"):
            self._write("\n")


class JsonRenderer(Renderer):
    """Shows a session to a program: one JSON document on stdout, progress on stderr."""

    def show_token(self, text: str, bar: "ReadingBar") -> None:
        """Leave the text to the document."""
        bar.show_answering()

    def show_answer(self, answer: Answer) -> None:
        """Print the document."""
        show_json(answer.as_json())


class ReadingBar:
    """The bar of loading and reading on a terminal; elsewhere, and when not wanted, nothing."""

    def __init__(self, console: Console, wanted: bool) -> None:
        self._narrow = console.width < 72
        bar_width = 0 if self._narrow else 10 if console.width < 100 else 30
        # Gaps, and the `^C` that a terminal echoes: on a second line it would keep the bar there.
        self._room = console.width - bar_width - 5
        columns: list[ProgressColumn] = [
            TextColumn("{task.description}", markup=False),
            TextColumn("{task.fields[figures]}", markup=False),
        ]
        if not self._narrow:
            columns.insert(1, BarColumn(bar_width=bar_width))
        self._bar = Bar(
            *columns,
            console=console,
            transient=True,
            redirect_stdout=False,
            disable=not (wanted and console.is_terminal),
        )
        self._task = self._bar.add_task("Loading the model", total=None, figures="")

    def __enter__(self) -> "ReadingBar":
        self._bar.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def show(self, event: Loaded | Progress) -> None:
        """Show that the model is there, or how far reading has come."""
        if isinstance(event, Loaded):
            self._bar.update(self._task, description="Reading")
            return
        figures = describe_progress(event, self._narrow)
        description = Text(f"Reading {safe_line(event.source)}")
        description.truncate(max(self._room - len(figures), 8), overflow="ellipsis")
        self._bar.update(
            self._task,
            description=description.plain,
            total=None if event.fraction is None else 1.0,
            completed=event.fraction or 0.0,
            figures=figures,
        )

    def show_answering(self) -> None:
        """Show that reading is over and the answer is being written."""
        self._bar.update(self._task, description="Answering", total=None, figures="")

    def close(self) -> None:
        """Remove the bar; more than once does no harm."""
        self._bar.stop()


def statistics(answer: Answer, verbose: bool) -> list[str]:
    """Return the lines on what was read and kept, and what it cost."""
    memory, timing, model = answer.memory, answer.timing, answer.model
    peak = f"peak {format_bytes(memory.process_peak_bytes)}"
    if memory.gpu_peak_bytes is not None:
        peak += f", GPU {format_bytes(memory.gpu_peak_bytes)}"
    quant = "" if model.quant == "none" else f"{model.quant} "
    lines = [
        f"{describe_coverage(answer.coverage)}"
        f" · KV {memory.kv_tokens:,} of {memory.full_kv_tokens:,} tokens"
        f" · {format_bytes(memory.kv_bytes)} vs {format_bytes(memory.full_kv_bytes)} full",
        f"prefill {format_seconds(timing.read_s)} at {format_rate(timing.read_tokens_per_s)}"
        f" · first token {format_seconds(timing.first_token_s)}"
        f" · {format_rate(timing.decode_tokens_per_s)}"
        f" · {peak}"
        f" · {model.id}, {quant}{model.dtype} on {model.device}",
    ]
    if verbose:
        lines.append(
            f"budget {memory.budget_tokens:,} tokens by {memory.policy}"
            f" · window {model.window_tokens:,} tokens · revision {model.revision}"
            f" · loaded in {format_seconds(timing.load_s)} · stopped by {answer.stop}"
        )
        lines += [f"no text: {page}" for page in answer.coverage.pages_without_text]
    return lines


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
    if coverage.files_skipped:
        parts.append(f"skipped {describe_skipped(coverage)}")
    details = f" ({'; '.join(parts)})" if parts else ""
    return f"read {share} of {coverage.tokens_total:,} tokens{details}"


def describe_skipped(coverage: Coverage) -> str:
    """Say how many files were not read, by reason."""
    return ", ".join(f"{num:,} {reason}" for reason, num in coverage.files_skipped.items())


def describe_place(source: Source) -> str:
    """Return where to look: `book.pdf p. 311`, or `app.log lines 3–9` where there are no pages."""
    name = "stdin" if source.file == "-" else safe_line(source.file)
    if source.page is not None:
        return f"{name} p. {safe_line(source.page_label or str(source.page))}"
    if source.line_end == source.line_start:
        return f"{name} line {source.line_start}"
    return f"{name} lines {source.line_start}–{source.line_end}"


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


def show_inspection(inspection: Inspection, verbose: bool) -> None:
    """Print what reading the sources would mean."""
    console = _console(stderr=False)
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


def show_json(document: dict[str, Any]) -> None:
    """Print one JSON document on one line. It needs no filter: all but ASCII is escaped."""
    sys.stdout.write(json.dumps(document, ensure_ascii=True, allow_nan=False) + "\n")
    sys.stdout.flush()


def show_error(message: str, hint: str | None, details: str | None = None) -> None:
    """Print one failure, what to do next, and the traceback where it is asked for."""
    console = _console(stderr=True)
    if details:
        console.print(Text(safe_text(details)))
    console.print(Text.assemble(("error: ", "bold red"), safe_line(message)))
    if hint:
        console.print(Text(f"  try: {safe_text(hint)}"))


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


def _console(stderr: bool) -> Console:
    """Return a console that colours and wraps only on a capable terminal."""
    stream = sys.stderr if stderr else sys.stdout
    capable = stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    return Console(
        stderr=stderr,
        force_terminal=capable,
        width=None if stream.isatty() else _UNWRAPPED,
        highlight=False,
        markup=False,
        emoji=False,
    )
