"""`indexmem man`: the manual page, made from the commands themselves."""

from collections.abc import Iterator
from typing import Any

import typer

from indexmem_cli import __version__, errors
from indexmem_cli.settings import SETTINGS

_EXITS = {
    0: "Done.",
    1: "A fault while running.",
    130: "Ctrl-C.",
    141: "The reader of a pipe went away.",
    143: "Ended by SIGTERM.",
}


def man(context: typer.Context) -> None:
    """Print the manual page.

    \b
    Examples:
      indexmem man | man -l -
      indexmem man > indexmem.1
    """
    typer.echo("\n".join(_page(context.find_root().command)))


def walk(command: Any, name: str, parent: Any = None) -> Iterator[tuple[Any, Any]]:
    """Yield every command with its context: the groups before what is in them."""
    context = command.make_context(name, [], parent=parent, resilient_parsing=True)
    if command.hidden:
        return
    yield command, context
    for inner, each in getattr(command, "commands", {}).items():
        yield from walk(each, inner, context)


def _page(root: Any) -> Iterator[str]:
    commands = list(walk(root, "indexmem"))
    summary = root.help.partition("\n")[0].rstrip(".")
    yield f'.TH INDEXMEM 1 "" "indexmem {__version__}" "User Commands"'
    yield from (".SH NAME", f"indexmem \\- {_plain(summary)}")
    yield from (".SH SYNOPSIS", r"\fBindexmem\fR \fICOMMAND\fR [\fIOPTIONS\fR] ...")
    yield from (".SH DESCRIPTION", *_description(root))
    yield ".SH OPTIONS"
    yield from _options(*commands[0])
    yield ".SH COMMANDS"
    for command, context in commands[1:]:
        yield f'.SS "{_plain(context.command_path)}"'
        yield from _synopsis(command, context)
        yield from _description(command)
        yield from _options(command, context)
    yield from (".SH ENVIRONMENT", "A flag beats a variable, a variable beats the file.")
    for setting in SETTINGS.values():
        yield from (".TP", f"\\fB{', '.join(map(_plain, setting.variables))}\\fR")
        yield _plain(f"Like --{setting.name}.")
    yield from (".TP", r"\fBINDEXMEM_HOME\fR", "Folder of the settings and of all that is saved.")
    yield from (".TP", r"\fBINDEXMEM_DEBUG\fR", "Set: failures come with a traceback.")
    yield from (".SH FILES", ".TP", r"\fIconfig.toml\fR")
    yield _plain("The user's settings; `indexmem config path` says where.")
    yield ".SH EXIT STATUS"
    for code, meaning in sorted((dict(_failures(errors.IndexMemError)) | _EXITS).items()):
        yield from (".TP", f"\\fB{code}\\fR", _plain(meaning))


def _failures(kind: type[errors.IndexMemError]) -> Iterator[tuple[int, str]]:
    """Yield the exit codes of a class of errors and of those under it."""
    for inner in kind.__subclasses__():
        if inner.__module__ == errors.__name__:
            yield from _failures(inner)
    yield kind.exit_code, (kind.__doc__ or "").partition("\n")[0]


def _synopsis(command: Any, context: Any) -> Iterator[str]:
    pieces = " ".join(command.collect_usage_pieces(context))
    yield f"\\fB{_plain(context.command_path)}\\fR {_plain(pieces)}"


def _options(command: Any, context: Any) -> Iterator[str]:
    for parameter in command.params:
        if record := parameter.get_help_record(context):
            name = record[0].partition(" <")[0]  # without the type of an argument
            yield from (".TP", f"\\fB{_plain(name)}\\fR", _plain(record[1]) or "\\&")


def _description(command: Any) -> Iterator[str]:
    """The help text: paragraphs, and examples as they stand."""
    for paragraph in (command.help or "").split("\n\n"):
        yield ".PP"
        if not paragraph.startswith("\b\n"):
            yield _plain(" ".join(paragraph.split()))
            continue
        heading, *lines = paragraph.splitlines()[1:]
        yield from (_plain(heading), ".PP", ".RS 4", ".nf")
        yield from (_plain(line.strip()) for line in lines)
        yield from (".fi", ".RE")


def _plain(text: str) -> str:
    """Escape what troff would take for a command."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    text = text.replace('"', "\\(dq").replace("`", "\\(ga").replace("^", "\\(ha")
    text = text.replace("~", "\\(ti").replace("\n", " ")
    return f"\\&{text}" if text.startswith(".") else text
