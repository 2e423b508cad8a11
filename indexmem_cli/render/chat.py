"""What a conversation shows: answers as Markdown on a terminal, and what its commands say."""

from collections.abc import Iterable, Mapping

from rich.text import Text

from indexmem_cli.events import Answer, Remembered
from indexmem_cli.render.answers import Renderer, View, statistics
from indexmem_cli.render.markdown import MarkdownPage
from indexmem_cli.render.safe import safe_line
from indexmem_cli.render.screen import open_console
from indexmem_cli.render.wording import count, describe_memory, describe_round


class ChatRenderer(Renderer):
    """Shows one answer: rendered on a terminal, as it was written elsewhere."""

    def __init__(self, view: View) -> None:
        super().__init__(view)
        console = open_console(stderr=False)
        self._page = MarkdownPage(console) if console.is_terminal else None

    def _write(self, text: str) -> None:
        if self._page is None:
            super()._write(text)
        else:
            self._last_written = text or self._last_written
            self._page.write(text)

    def _end_line(self) -> None:
        if self._page is None:
            super()._end_line()
        else:
            self._page.close()


def show_status(text: str) -> None:
    """Print one line beside the answers."""
    open_console(stderr=True).print(Text(safe_line(text), style="dim"))


def show_commands(commands: Mapping[str, str]) -> None:
    """List the commands of a conversation, each with what it does."""
    console, width = open_console(stderr=True), max(map(len, commands))
    for command, purpose in commands.items():
        console.print(Text(f"{command:<{width}}  {purpose}"))


def show_remembered(memories: Iterable[Remembered]) -> None:
    """List the conversation and its sources with their tokens."""
    console = open_console(stderr=True)
    for memory in memories:
        line = f"{memory.source}  {count(memory.tokens, 'token')} · {describe_memory(memory)}"
        console.print(Text(safe_line(line)))


def show_statistics(answer: Answer) -> None:
    """Say what an answer cost."""
    console = open_console(stderr=True)
    for line in statistics(answer, verbose=True):
        console.print(Text(safe_line(line)))


def show_explanation(answer: Answer) -> None:
    """Say what was looked up, kept and attended to for an answer."""
    console, memory = open_console(stderr=True), answer.memory
    kept = f"kept: {memory.kv_tokens:,} of {memory.full_kv_tokens:,} tokens by {memory.policy}"
    rounds = answer.recall or ()
    looked_up = [describe_round(number, each) for number, each in enumerate(rounds, start=1)]
    for line in (kept, *(looked_up or ["recall: nothing was looked up"])):
        console.print(Text(safe_line(line)))
    if not answer.sources:
        console.print(Text("attended: nothing of what was read"))
    else:
        console.print(Text("attended:"))
        Renderer(View(verbose=True)).show_sources(answer.sources)
