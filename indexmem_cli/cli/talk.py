"""The loop of a conversation: lines in, answers out, commands, and what Ctrl-C means."""

import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from indexmem_cli.cli.editor import edit_lines
from indexmem_cli.cli.interrupts import Interrupts
from indexmem_cli.config import AnswerConfig, expand_home, parse_size
from indexmem_cli.errors import ConfigError, IndexMemError
from indexmem_cli.render import JsonRenderer, View, show_error
from indexmem_cli.render.chat import (
    ChatRenderer,
    show_commands,
    show_explanation,
    show_remembered,
    show_statistics,
    show_status,
)

if TYPE_CHECKING:
    from indexmem_cli.conversation import Conversation
    from indexmem_cli.events import Answer, Event

COMMANDS = {
    "/add SOURCE...": "look through more files, folders or saved memories",
    "/sources": "what is looked through, and how long it is",
    "/stats": "what the last answer cost",
    "/explain": "what was looked up, kept and attended to for the last answer",
    "/budget TOKENS": "keep more or fewer tokens, such as 8k; what was said is read again",
    "/save": "save the memory of the conversation now, not only when you leave",
    "/clear": "begin a new conversation with the same sources",
    "/help": "this list",
    "/quit": "leave; so does Ctrl-D",
}
HISTORY = 1000
"""Questions of earlier sessions that the arrow keys bring back."""


@dataclass
class Talk:
    """A conversation with the person, or the pipe, at standard input."""

    conversation: "Conversation"
    answering: AnswerConfig
    view: View
    as_json: bool
    is_quiet: bool
    is_interactive: bool
    _interrupts: Interrupts = field(default_factory=Interrupts)
    _last: "Answer | None" = None

    def run(self) -> None:
        """Answer line after line until the input ends; then save and leave.

        Raises:
            IndexMemError: something failed, and there is no person to go on.
            KeyboardInterrupt: Ctrl-C twice, or once without a person.
        """
        is_whole = False
        try:
            self._show(self.conversation.start())
            if self.is_interactive:
                self._greet()
            for line in self._lines():
                if not self._take(line):
                    break
            is_whole = True
        finally:
            # Left in a hurry, nothing is saved: what was said is read again next time.
            for notice in self.conversation.close(save=is_whole):
                self._say(f"note: {notice}")
        if self.conversation.num_turns and self.conversation.save_turns and self.is_interactive:
            self._say(f"to go on: indexmem chat --session {self.conversation.session.id}")

    def _lines(self) -> Iterable[str]:
        if self.is_interactive:
            names = [name.partition(" ")[0] for name in COMMANDS]
            said = self.conversation.store.questions(HISTORY)
            return edit_lines(said, names, self._interrupts.press, self._say)
        # Whatever the bytes are, a line is a question. The type is that of any stream of text.
        sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
        return sys.stdin

    def _take(self, line: str) -> bool:
        """Answer a question or obey a command; say whether to go on."""
        line = line.rstrip("\r\n")
        if not line.strip():
            return True
        if line.partition(" ")[0] in ("/quit", "/exit"):
            return False
        try:
            if line.startswith("/"):
                self._obey(line)
            else:
                self._last = self._show(self.conversation.ask(line, self.answering)) or self._last
        except IndexMemError as error:
            if not self.is_interactive:
                raise
            show_error(error.message, error.hint)
        return True

    def _show(self, events: "Iterator[Event]") -> "Answer | None":
        """Show what happens, until it ends or is stopped."""
        renderer = (JsonRenderer if self.as_json else ChatRenderer)(self.view)
        with self._interrupts.caught():
            answer = renderer.follow(self._interrupts.until_stopped(events))
        if self._interrupts.is_stopping:
            if not self.is_interactive:
                raise KeyboardInterrupt
            self._say("stopped; Ctrl-C again leaves")
        return answer

    def _obey(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        commands: dict[str, Callable[[str], Any]] = {
            "/add": self._add,
            "/sources": lambda _: show_remembered(self.conversation.remembered),
            "/stats": lambda _: show_statistics(self._answered()),
            "/explain": lambda _: show_explanation(self._answered()),
            "/budget": lambda size: self._show(self.conversation.set_budget(parse_size(size))),
            "/save": lambda _: self._save(),
            "/clear": lambda _: self._clear(),
            "/help": lambda _: show_commands(COMMANDS),
        }
        if name not in commands:
            raise ConfigError(
                f"unknown command: {name}", "/help lists them; a question may begin with a space"
            )
        commands[name](rest.strip())

    def _add(self, rest: str) -> None:
        try:
            named = [str(expand_home(name)) for name in shlex.split(rest)]
        except ValueError as error:
            raise ConfigError(f"/add: {error}", "close the quotes") from error
        if not named:
            raise ConfigError("/add: nothing is named", "/add book.pdf")
        self._show(self.conversation.add(named))
        show_remembered(self.conversation.remembered)

    def _save(self) -> None:
        manifest = self.conversation.save()
        self._say(f"saved: session {self.conversation.session.id}, memory {manifest.id}")

    def _clear(self) -> None:
        left = self.conversation.session.id
        for notice in self.conversation.clear():
            self._say(f"note: {notice}")
        self._last = None
        self._say(f"a new conversation; the old one is session {left}")

    def _answered(self) -> "Answer":
        if self._last is None:
            raise ConfigError("there is no answer yet")
        return self._last

    def _greet(self) -> None:
        talk = self.conversation
        known = f"session {talk.session.id} goes on, {talk.num_turns:,} turns"
        self._say(f"{known if talk.num_turns else 'a new conversation'} · /help lists commands")

    def _say(self, text: str) -> None:
        if not self.is_quiet:
            show_status(text)
