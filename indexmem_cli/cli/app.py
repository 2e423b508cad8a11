"""The program as a whole: its commands, and how every failure becomes one line and an exit code."""

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from indexmem_cli.cli.ask import ask
from indexmem_cli.cli.bench import bench
from indexmem_cli.cli.chat import chat
from indexmem_cli.cli.config import config, defaults_from_file
from indexmem_cli.cli.doctor import doctor
from indexmem_cli.cli.ingest import ingest
from indexmem_cli.cli.inspect import inspect
from indexmem_cli.cli.manual import man
from indexmem_cli.cli.memories import memories
from indexmem_cli.cli.models import models
from indexmem_cli.cli.serve import serve
from indexmem_cli.cli.sessions import sessions
from indexmem_cli.cli.train import train
from indexmem_cli.cli.version import version_lines
from indexmem_cli.errors import IndexMemError

EXIT_INTERRUPTED = 130
EXIT_CLOSED_PIPE = 141


class Commands(TyperGroup):
    """The commands. Failures are caught here, before Typer prints or swallows them itself."""

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """Read the program's own options; failures leave as `typer.Exit`."""
        with _failures_shown():
            return super().make_context(*args, **extra)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command, and let the user's file speak for its options."""
        name, command, rest = super().resolve_command(ctx, args)
        # Help and completion show the program's own defaults, also where the file is broken.
        if not ctx.resilient_parsing and not {"-h", "--help"} & set(rest):
            ctx.default_map = {name: defaults_from_file(command, rest)}
        return name, command, rest

    def invoke(self, ctx: Any) -> Any:
        """Read the command's options and run it; failures leave as `typer.Exit`."""
        with _failures_shown():
            result = super().invoke(ctx)
            # A closed pipe must be met here, not by the interpreter on its way out.
            sys.stdout.flush()
            return result


@contextlib.contextmanager
def _failures_shown() -> Iterator[None]:
    """Turn every failure into one line on stderr and `typer.Exit` with its code."""
    try:
        yield
    except typer.Exit:
        raise
    except BrokenPipeError:
        _drop_output()
        raise typer.Exit(EXIT_CLOSED_PIPE) from None
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except IndexMemError as error:
        _show_failure(error.message, error.hint)
        raise typer.Exit(error.exit_code) from error
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        _show_failure(error.format_message(), f"{context.command_path} --help" if context else None)
        raise typer.Exit(error.exit_code) from error
    except Exception as error:
        detail = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        _show_failure(detail, "set INDEXMEM_DEBUG=1 to see the traceback")
        try:
            sys.stdout.flush()
        except OSError:  # a full disk
            _drop_output()
        raise typer.Exit(1) from error


def _show_failure(message: str, hint: str | None) -> None:
    from indexmem_cli.render import show_error

    details = traceback.format_exc() if os.environ.get("INDEXMEM_DEBUG") else None
    show_error(message, hint, details)


def _drop_output() -> None:
    """Point both streams at nothing, so that what they still hold fails no more at exit."""
    with contextlib.suppress(OSError):  # streams without a descriptor, in tests
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(version_lines())
        raise typer.Exit


app = typer.Typer(
    cls=Commands,
    # Plain help: file names and model names in it can never be taken for markup.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    invoke_without_command=True,
)
app.command()(ask)
app.command()(chat)
app.command()(ingest)
app.command()(inspect)
app.add_typer(memories, name="memories")
app.add_typer(sessions, name="sessions")
app.command()(doctor)
app.add_typer(config, name="config")
app.command()(man)
app.add_typer(models, name="models")
app.command()(serve)
app.add_typer(bench, name="bench")
app.add_typer(train, name="train")


@app.callback()
def indexmem(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "-V",
            "--version",
            callback=_show_version,
            help="Show the version and exit.",
        ),
    ] = False,
) -> None:
    """Ask questions of documents longer than your GPU's memory.

    A local model reads every token once, in a stream, inside a fixed memory budget.

    \b
    Examples:
      indexmem ask book.pdf "Who inherits the mill?"
      indexmem inspect ./service
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)
