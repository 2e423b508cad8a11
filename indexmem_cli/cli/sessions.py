"""`indexmem sessions`: the conversations that are saved."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from indexmem_cli.cli import checks, options
from indexmem_cli.config import show_time
from indexmem_cli.errors import ConfigError, IndexMemError, reason

sessions = typer.Typer(rich_markup_mode=None)

Id = Annotated[str, typer.Argument(metavar="SESSION", help="An id, or its first letters.")]


@sessions.callback()
def _sessions() -> None:
    """List, show, export and remove conversations.

    A session holds what was said, readable to whoever can read the folder.

    \b
    Examples:
      indexmem sessions list
      indexmem sessions show 5e55a0
    """


@sessions.command("list")
def list_(
    as_json: options.Json = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Ids and nothing else.")] = False,
) -> None:
    """List the sessions, the last used first.

    \b
    Examples:
      indexmem sessions list
      indexmem sessions list --json | jq '.sessions[].id'
    """
    from indexmem_cli.render import show_json, show_lines
    from indexmem_cli.render.sessions import show_sessions

    found = _open_store().all()
    if as_json:
        show_json({"schema": 1, "sessions": [session.as_json() for session in found]})
    elif quiet:
        show_lines([session.id for session in found])
    else:
        show_sessions([s.as_json() for s in found], [s.used_s for s in found])


@sessions.command()
def show(session: Id, as_json: options.Json = False) -> None:
    """Show what was said.

    \b
    Examples:
      indexmem sessions show 5e55a0
      indexmem sessions show 5e55a0 --json | jq '.messages[].content'
    """
    from indexmem_cli.render import show_json
    from indexmem_cli.render.sessions import show_transcript

    about, messages = _read(session)
    if as_json:
        show_json({"schema": 1, **about, "messages": messages})
    else:
        show_transcript(about, messages)


@sessions.command()
def export(
    session: Id,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FILE", help="Default: its id, .json or .md."),
    ] = None,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Write Markdown; else JSON, which ask can read.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
) -> None:
    """Write what was said to a file.

    \b
    Examples:
      indexmem sessions export 5e55a0
      indexmem sessions export 5e55a0 --markdown --out talk.md
    """
    from indexmem_cli.library.disk import write_atomic
    from indexmem_cli.render import format_bytes, show_lines
    from indexmem_cli.render.sessions import write_transcript

    about, messages = _read(session)
    path = out or Path(f"{about['id']}.{'md' if as_markdown else 'json'}")
    if path.exists() and not force:
        raise ConfigError(f"{path} is there already", "add --force, or choose another --out")
    if as_markdown:
        text = "\n".join(write_transcript(about, messages))
    else:
        text = json.dumps({"schema": 1, **about, "messages": messages}, indent=1)
    try:
        write_atomic(path, f"{text}\n".encode("utf-8", "replace"))
    except OSError as error:
        raise IndexMemError(f"{path} cannot be written: {reason(error)}") from error
    show_lines([f"{about['id']} → {path}, {format_bytes(path.stat().st_size)}"])


@sessions.command()
def rm(
    names: Annotated[
        list[str], typer.Argument(metavar="SESSION", help="Ids, or their first letters.")
    ],
    yes: options.Yes = False,
    dry_run: options.RemoveNothing = False,
) -> None:
    """Remove sessions: what was said, and its memory.

    \b
    Examples:
      indexmem sessions rm 5e55a0 --dry-run
      indexmem sessions rm 5e55a0 --yes
    """
    from indexmem_cli.library import Library
    from indexmem_cli.render import format_bytes, show_lines
    from indexmem_cli.render.sessions import show_sessions
    from indexmem_cli.sessions import delete_session

    store = _open_store()
    found = list({s.id: s for s in map(store.resolve, names)}.values())
    show_sessions([s.as_json() for s in found], [s.used_s for s in found])
    if dry_run:
        return
    checks.ask_before_removal(yes)
    freed = sum(delete_session(store, session.id, Library()) for session in found)
    show_lines([f"removed {len(found)}, {format_bytes(freed)} of memories freed"])


def _open_store() -> Any:
    from indexmem_cli.sessions import SessionStore, sessions_folder

    folder = sessions_folder()
    try:
        # Looking at what is not there makes nothing.
        return SessionStore(folder if (folder / "sessions.sqlite").exists() else None)
    except OSError as error:
        raise IndexMemError(f"{folder} cannot be opened: {reason(error)}") from error


def _read(name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A session, and what was said in the form that most programs use."""
    store = _open_store()
    session = store.resolve(name)
    messages: list[dict[str, Any]] = []
    for turn in store.turns(session.id):
        time = show_time(turn.asked_s)
        messages.append({"role": "user", "content": turn.question, "time": time})
        said = {"role": "assistant", "content": turn.answer, "time": time}
        messages.append({**said, "stop": turn.stop, "sources": list(turn.sources)})
    return session.as_json(), messages
