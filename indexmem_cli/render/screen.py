"""Consoles, errors and JSON: what every command shows in the same way."""

import json
import os
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.text import Text

from indexmem_cli.render.safe import safe_line, safe_text

# Output that is no terminal is never wrapped: a log keeps one fact on one line.
_UNWRAPPED = 100_000


def show_json(document: dict[str, Any]) -> None:
    """Print one JSON document on one line. It needs no filter: all but ASCII is escaped."""
    sys.stdout.write(json.dumps(document, ensure_ascii=True, allow_nan=False) + "\n")
    sys.stdout.flush()


def show_lines(lines: Iterable[str]) -> None:
    """Print plain lines, each made safe and kept on one line."""
    console = open_console(stderr=False)
    for line in lines:
        console.print(Text(safe_line(line)), soft_wrap=True)


def show_error(message: str, hint: str | None, details: str | None = None) -> None:
    """Print one failure, what to do next, and the traceback where it is asked for."""
    console = open_console(stderr=True)
    if details:
        console.print(Text(safe_text(details)))
    console.print(Text.assemble(("error: ", "bold red"), safe_line(message)))
    if hint:
        console.print(Text(f"  try: {safe_text(hint)}"))


def show_note(console: Console, message: str) -> None:
    """Print something that the user should know."""
    console.print(Text.assemble(("note: ", "yellow"), safe_text(message)))


def show_line(text: str) -> None:
    """Print one line on standard error."""
    open_console(stderr=True).print(Text(safe_line(text)))


def open_console(stderr: bool) -> Console:
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
