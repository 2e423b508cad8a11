"""Markdown of untrusted text on a terminal, while it is written.

Nothing in it becomes a command of the terminal, a link that opens, or markup of another language.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment
from rich.text import Text

from indexmem_cli.render.safe import safe_text

_REFRESH_S = 1 / 15
_FENCES = ("```", "~~~")
_ECHO_COLUMNS = 3
"""Room for the `^C` that a terminal echoes: on a line of its own it would keep that line there."""


def safe_markdown(text: str) -> "SafeMarkdown":
    """Return Markdown to print: HTML stands as it is written, addresses beside what names them."""
    parser = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
    page = Markdown("", hyperlinks=False, code_theme="ansi_dark")
    page.parsed = parser.parse(safe_text(text))
    _clean(page.parsed)
    return SafeMarkdown(page)


@dataclass(frozen=True)
class SafeMarkdown:
    """Markdown without the empty lines that some of its blocks begin and end with."""

    page: Markdown

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render it, as Rich asks for."""
        width = max(1, options.max_width - _ECHO_COLUMNS)
        # Without the spaces that fill lines: they would wrap when the window becomes narrower.
        lines = [
            _without_fill(line)
            for line in console.render_lines(self.page, options.update(width=width), pad=False)
        ]
        full = [i for i, line in enumerate(lines) if line]
        for line in lines[full[0] : full[-1] + 1] if full else ():
            yield from line
            yield Segment.line()


def _without_fill(line: list[Segment]) -> list[Segment]:
    while line and not line[-1].text.strip():
        line = line[:-1]
    if line:
        text, style, control = line[-1]
        line = [*line[:-1], Segment(text.rstrip(), style, control)]
    return line


def _clean(tokens: Iterable[Token]) -> None:
    """Filter what was parsed once more: entities such as `&#x202e;` are characters by now."""
    for token in tokens:
        token.content = safe_text(token.content)
        token.attrs = {
            name: safe_text(value) if isinstance(value, str) else value
            for name, value in token.attrs.items()
        }
        _clean(token.children or ())


class MarkdownPage:
    """A text that grows: whole paragraphs are printed, and the one being written is shown."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._open = ""
        self._is_first = True
        self._live: Live | None = None
        self._shown_s = 0.0

    def write(self, text: str) -> None:
        """Add a piece of text."""
        blocks, self._open = split_blocks(self._open + safe_text(text))
        for block in blocks:
            self._print(block)
        if self._open.strip() and time.monotonic() - self._shown_s >= _REFRESH_S:
            self._show()

    def close(self) -> None:
        """Print what is left, and start anew."""
        rest, self._open = self._open, ""
        self._print(rest)
        self._is_first = True

    def _show(self) -> None:
        if self._live is None:
            if not self._is_first:
                self._console.print()
            self._live = Live(
                console=self._console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
                vertical_overflow="ellipsis",
            )
            self._live.start()
        self._live.update(safe_markdown(self._open), refresh=True)
        self._shown_s = time.monotonic()

    def _print(self, text: str) -> None:
        was_shown = self._live is not None
        if self._live is not None:
            # Emptied first: when it stops it would show all of it, be it higher than the screen.
            self._live.update(Text(), refresh=True)
            self._live.stop()
            self._live = None
        if not text.strip():
            return
        if not (self._is_first or was_shown):
            self._console.print()
        self._console.print(safe_markdown(text))
        self._is_first = False


def split_blocks(text: str) -> tuple[list[str], str]:
    """Cut after every empty line that is not inside a block of code; the last part is not whole."""
    blocks, block, fence = [], "", ""
    for line in text.splitlines(keepends=True):
        block += line
        mark = line.lstrip()[:3]
        if mark in _FENCES and fence in ("", mark):
            fence = "" if fence else mark
        if not fence and not line.strip() and line.endswith("\n"):
            blocks.append(block)
            block = ""
    return blocks, block
