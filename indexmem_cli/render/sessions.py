"""What `sessions` shows: the list, and what was said."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.text import Text

from indexmem_cli.render.memories import ago
from indexmem_cli.render.safe import safe_text
from indexmem_cli.render.screen import open_console
from indexmem_cli.render.tables import print_table
from indexmem_cli.render.wording import count

COLUMNS = ("ID", "TITLE", "MODEL", "TURNS", "USED")


def show_sessions(sessions: Sequence[Mapping[str, Any]], used_s: Sequence[float]) -> None:
    """Print one line for each session, and how many there are."""
    console = open_console(stderr=False)
    rows = [
        (each["id"], each["title"] or "-", each["model"], f"{each['turns']:,}", ago(seconds))
        for each, seconds in zip(sessions, used_s, strict=True)
    ]
    if rows:
        print_table(console, COLUMNS, rows, right=("TURNS", "USED"))
    console.print(Text(count(len(rows), "session")))


def show_transcript(session: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> None:
    """Print what was said, as it was said."""
    console = open_console(stderr=False)
    for line in write_transcript(session, messages):
        console.print(Text(safe_text(line)), soft_wrap=True)


def write_transcript(
    session: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """Write a conversation as Markdown, line by line."""
    yield f"# Session {session['id']}"
    yield ""
    yield f"{count(session['turns'], 'turn')} · {session['model']} · {session['created']}"
    for message in messages:
        yield ""
        yield f"## {message['role']} · {message['time']}"
        yield ""
        yield message["content"]
