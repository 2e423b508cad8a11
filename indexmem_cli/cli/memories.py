"""`indexmem memories`: what is saved of the documents that were read."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from indexmem_cli.cli import checks, options
from indexmem_cli.errors import ConfigError, IndexMemError, LockTimeout, MemoryFileError, reason

if TYPE_CHECKING:
    from indexmem_cli.library import Library

memories = typer.Typer(rich_markup_mode=None)

Ids = Annotated[
    list[str],
    typer.Argument(
        metavar="MEMORY", help="Names, ids, the first letters of an id, or files that were read."
    ),
]
Id = Annotated[
    str,
    typer.Argument(
        metavar="MEMORY", help="A name, an id, its first letters, or the file that was read."
    ),
]


@memories.callback()
def _memories() -> None:
    """List, check, move and remove saved memories.

    A memory holds the text of its document, readable to whoever can read the folder.

    \b
    Examples:
      indexmem memories list
      indexmem memories rm mill
    """


@memories.command("list")
def list_(
    as_json: options.Json = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Ids and nothing else.")] = False,
    full: Annotated[bool, typer.Option("--no-truncate", help="Never shorten a name.")] = False,
) -> None:
    """List the saved memories, the last used first.

    \b
    Examples:
      indexmem memories list
      indexmem memories list --json | jq '.memories[].id'
    """
    from indexmem_cli.library import Library
    from indexmem_cli.library.listing import list_memories
    from indexmem_cli.render import show_json, show_lines
    from indexmem_cli.render.memories import memories_json, show_memories

    found = sorted(list_memories(Library()), key=lambda memory: -memory.used_s)
    if as_json:
        show_json(memories_json(found))
    elif quiet:
        show_lines([memory.id for memory in found])
    else:
        show_memories(found, full)


@memories.command()
def show(memory: Id, as_json: options.Json = False) -> None:
    """Show all that is known of a memory without loading it.

    \b
    Examples:
      indexmem memories show mill
      indexmem memories show a1f3c9 --json
    """
    from indexmem_cli.library import Library
    from indexmem_cli.library.listing import describe, find_memory
    from indexmem_cli.render import show_json
    from indexmem_cli.render.memories import memory_json, show_memory

    library = Library()
    found = describe(library, find_memory(library, memory))
    folder = str(library.folder(found.id))
    if as_json:
        show_json({"schema": 1, **memory_json(found), "folder": folder})
    else:
        show_memory(found, folder)


@memories.command()
def verify(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="MEMORY", help="All if none is named.")
    ] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only what is wrong.")] = False,
) -> None:
    """Check every byte of memories; exit with 4 if one is damaged.

    \b
    Examples:
      indexmem memories verify
      indexmem memories verify mill
    """
    from indexmem_cli.library import Library
    from indexmem_cli.library.listing import find_memory
    from indexmem_cli.library.transfer import verify_memory
    from indexmem_cli.render import show_error, show_lines

    library, damaged = Library(), 0
    for memory_id in [find_memory(library, name) for name in names or ()] or library.ids():
        if not names and not library.is_whole(memory_id):
            continue  # a reading that was cut short has nothing yet that could be used
        try:
            manifest = verify_memory(library, memory_id)
        except MemoryFileError as error:
            damaged += 1
            show_error(error.message, error.hint)
        else:
            if not quiet:
                show_lines([f"{memory_id}  ok, {len(manifest.parts) + 1} files"])
    if damaged:
        raise typer.Exit(MemoryFileError.exit_code)


@memories.command()
def export(
    memory: Id,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="Default: its name, .tar.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
) -> None:
    """Write a memory to one file, to use it on another machine.

    \b
    Examples:
      indexmem memories export mill
      indexmem memories export a1f3c9 --out mill.tar
    """
    from indexmem_cli.library import Library
    from indexmem_cli.library.listing import find_memory
    from indexmem_cli.library.transfer import export_memory
    from indexmem_cli.render import format_bytes, show_lines

    library = Library()
    memory_id = find_memory(library, memory)
    path = out or Path(f"{Path(memory).name}.tar")
    try:
        size = export_memory(library, memory_id, path, force)
    except OSError as error:
        raise IndexMemError(f"{path} cannot be written: {reason(error)}") from error
    show_lines([f"{memory_id} → {path}, {format_bytes(size)}; it holds the document's text"])


@memories.command("import")
def import_(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Made by `export`.")],
) -> None:
    """Take in memories that were exported, after checking every byte.

    Import only from those you trust: answers are taken from what a memory holds.

    \b
    Examples:
      indexmem memories import mill.tar
      indexmem memories import mill.tar notes.tar
    """
    from indexmem_cli.library import Library
    from indexmem_cli.library.transfer import import_memory
    from indexmem_cli.render import format_bytes, show_lines

    for path in files:
        if not path.is_file():
            raise ConfigError(f"no such file: {path}", "indexmem memories import FILE")
        manifest, is_new = import_memory(Library(), path)
        what = f"imported from {path}" if is_new else "was here already"
        show_lines([f"{manifest.name or manifest.id} {what}, {format_bytes(manifest.num_bytes)}"])


@memories.command()
def rm(names: Ids, yes: options.Yes = False, dry_run: options.RemoveNothing = False) -> None:
    """Remove memories with all their files.

    \b
    Examples:
      indexmem memories rm mill
      indexmem memories rm a1f3c9 book.pdf --yes
    """
    from indexmem_cli.library import Library
    from indexmem_cli.library.listing import find_memory

    library = Library()
    found = dict.fromkeys(find_memory(library, name) for name in names)
    _remove(library, list(found), yes, dry_run)


@memories.command()
def prune(
    filters: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILTER", help="Such as 'used>30d', 'created>2w', 'size>1GB'."),
    ] = None,
    stale: Annotated[
        bool, typer.Option("--stale", help="Those whose source has changed or is gone.")
    ] = False,
    yes: options.Yes = False,
    dry_run: options.RemoveNothing = False,
) -> None:
    """Remove the memories that meet every filter; without one, what is damaged or unfinished.

    \b
    Examples:
      indexmem memories prune
      indexmem memories prune 'used>30d' 'size>1GB' --dry-run
    """
    from indexmem_cli.library import Library
    from indexmem_cli.library.listing import list_memories, parse_filters

    library = Library()
    meets = parse_filters(filters or ())
    wanted = {"stale", "gone"} if stale else {"damaged", "unfinished"} if not filters else None
    found = [m for m in list_memories(library) if (not wanted or m.status in wanted) and meets(m)]
    _remove(library, [memory.id for memory in found], yes, dry_run)
    if not dry_run:
        library.sweep()


def _remove(library: "Library", ids: Sequence[str], yes: bool, dry_run: bool) -> None:
    """Show what would go, ask, and remove it."""
    from indexmem_cli.library.listing import describe
    from indexmem_cli.render import format_bytes, show_lines
    from indexmem_cli.render.memories import show_memories

    found = [describe(library, memory_id) for memory_id in ids]
    if not found:
        show_lines(["nothing to remove"])
        return
    show_memories(found, full=False)
    if dry_run:
        return
    checks.ask_before_removal(yes)
    freed, kept = [], None
    for memory in found:
        try:
            freed.append(library.delete(memory.id))
        except LockTimeout as error:  # it is being written; the others can go
            kept = error
    show_lines([f"removed {len(freed)}, {format_bytes(sum(freed))} freed"])
    if kept:
        raise kept
