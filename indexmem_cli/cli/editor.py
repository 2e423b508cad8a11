"""The line that a person types in: history, editing and completion by prompt_toolkit."""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

PROMPT = "> "


def is_terminal() -> bool:
    """Whether a person types and sees: standard input, and one of the outputs."""
    typed = sys.stdin is not None and sys.stdin.isatty()
    return typed and (sys.stdout.isatty() or sys.stderr.isatty())


def edit_lines(
    history: Sequence[str],
    commands: Sequence[str],
    interrupted: Callable[[], None],
    say: Callable[[str], None],
) -> Iterator[str]:
    """Let a person type lines until Ctrl-D; Alt-Enter begins a new line of the same question.

    Args:
        history: what the arrow keys bring back, oldest first.
        commands: what is completed at the beginning of a line.
        interrupted: called at Ctrl-C; raises KeyboardInterrupt to leave.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import InMemoryHistory
    from prompt_toolkit.output import create_output

    session: PromptSession[str] = PromptSession(
        history=InMemoryHistory(list(history)),
        completer=_completer(commands),
        key_bindings=_keys(),
        output=create_output(always_prefer_tty=True),
    )
    while True:
        try:
            line = session.prompt(PROMPT)
        except KeyboardInterrupt:
            interrupted()
            say("Ctrl-C again, or Ctrl-D, leaves")
        except EOFError:
            return
        else:
            yield line


def _completer(commands: Sequence[str]) -> "Completer":
    from prompt_toolkit.completion import Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    paths = PathCompleter(expanduser=True)

    class Commands(Completer):
        """The names of commands, and paths where they are asked for."""

        def get_completions(
            self, document: "Document", complete_event: "CompleteEvent"
        ) -> "Iterator[Completion]":
            line = document.text_before_cursor
            name, gap, rest = line.partition(" ")
            if gap and name == "/add":
                yield from paths.get_completions(Document(rest.split(" ")[-1]), complete_event)
            elif line.startswith("/") and not gap:
                yield from (Completion(c, -len(line)) for c in commands if c.startswith(line))

    return Commands()


def _keys() -> "KeyBindings":
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: "KeyPressEvent") -> None:
        event.current_buffer.insert_text("\n")

    return keys
