"""What commands see to before and after their work: sources, a yes, everything read."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, BinaryIO

import typer

from indexmem_cli.errors import ConfigError, NotFullyRead

if TYPE_CHECKING:
    from indexmem_cli.events import Coverage


def sources_or_pipe(sources: Sequence[str] | None, example: str) -> list[str]:
    """Return the sources, or `-` where something is piped in; `example` is a command with one.

    Raises:
        ConfigError: there is nothing to read.
    """
    if not sources and (sys.stdin is None or sys.stdin.isatty()):
        raise ConfigError("nothing to read: no source is given and nothing is piped in", example)
    return list(sources or ["-"])


def ask_before_removal(yes: bool) -> None:
    """Have a person say yes, unless `--yes` did.

    Raises:
        ConfigError: there is no person to ask.
        typer.Exit: the answer is no.
    """
    if yes:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        raise ConfigError("removing needs a yes", "add --yes, or --dry-run to look first")
    if not typer.confirm("Remove?", err=True):
        raise typer.Exit(1)


def insist_on_all(coverage: "Coverage", hint: str) -> None:
    """See that everything was read, as `--strict` asks.

    Raises:
        NotFullyRead: something was not.
    """
    if not coverage.complete:
        raise NotFullyRead("not everything was read, and --strict asks for that", hint)


def stdin_of(sources: Sequence[str]) -> BinaryIO | None:
    """Return standard input if the sources name it, so that nothing else ever reads it."""
    return sys.stdin.buffer if "-" in sources else None
