"""Events → the screen or JSON while a question is answered."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, ProgressColumn, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

from indexmem_cli.events import Answer, Event, Loaded, Notice, Progress, Source, TokenText
from indexmem_cli.render.explanation import explanation_lines
from indexmem_cli.render.safe import safe_line, safe_text
from indexmem_cli.render.screen import open_console, show_json, show_note
from indexmem_cli.render.wording import (
    describe_bytes,
    describe_coverage,
    describe_memory,
    describe_place,
    describe_policy,
    describe_progress,
    describe_recall,
    describe_round,
    format_bytes,
    format_rate,
    format_seconds,
)


@dataclass(frozen=True)
class View:
    """What is shown besides the answer, all of it on standard error."""

    stream: bool = True
    """Print the answer while it is written, not at its end."""
    progress: bool = True
    notices: bool = True
    sources: bool = True
    stats: bool = True
    verbose: bool = False
    """Quote the sources and add a line of details to the statistics."""


class Renderer:
    """Shows a session to a person: the answer on stdout, everything else on stderr."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._console = open_console(stderr=True)
        self._last_written = ""

    def consume(self, events: Iterable[Event]) -> Answer:
        """Show the events as they come, and return the answer that ends them."""
        answer = self.follow(events)
        assert answer is not None, "a session ends with an answer"
        return answer

    def follow(self, events: Iterable[Event]) -> Answer | None:
        """Show the events as they come; return the answer, where there is one."""
        answer = None
        try:
            with ReadingBar(self._console, self._view.progress) as bar:
                for event in events:
                    match event:
                        case Loaded() | Progress():
                            bar.show(event)
                        case Notice(message):
                            self.show_notice(message)
                        case TokenText(text):
                            self.show_token(text, bar)
                        case Answer():
                            answer = event
        except BrokenPipeError:
            raise
        except BaseException:
            self._end_line()
            raise
        if answer is None:
            self._end_line()
        else:
            self.show_answer(answer)
        return answer

    def show_notice(self, message: str) -> None:
        """Show something that the user should know."""
        if self._view.notices:
            show_note(self._console, message)

    def show_token(self, text: str, bar: "ReadingBar") -> None:
        """Write a piece of the answer at once, or keep the bar until the answer is whole."""
        if self._view.stream:
            bar.close()
            self._write(text)
        else:
            bar.show_answering()

    def show_answer(self, answer: Answer) -> None:
        """Finish the answer, then say where it stands and what it cost."""
        if not self._last_written:
            self._write(answer.text)
        self._end_line()
        if answer.stop == "length":
            self.show_notice("the answer was cut at its greatest length; see --max-tokens")
        if not answer.text.strip():
            self.show_notice("the model ended its answer before the first word; ask in other words")
        if self._view.sources:
            self.show_sources(answer.sources)
            if answer.text.strip() and answer.sources and not answer.supported:
                self.show_notice("the words of the answer do not stand in these places")
        if answer.explanation is not None:
            lines = explanation_lines(answer.explanation, min(72, self._console.width - 16))
            self._console.print(Text("\n".join(lines)))
        if self._view.stats:
            lines = statistics(answer, self._view.verbose)
            self._console.print(Text("\n".join(map(safe_line, lines)), style="dim"))

    def show_sources(self, sources: tuple[Source, ...]) -> None:
        """Say where an answer stands, with what stands there if the view is verbose."""
        places: dict[str, list[Source]] = {}
        for source in sources:
            places.setdefault(describe_place(source), []).append(source)
        numbered = [f"[{number}] {place}" for number, place in enumerate(places, start=1)]
        if not self._view.verbose:
            if numbered:
                self._console.print(Text.assemble(("Sources  ", "bold"), "   ".join(numbered)))
            return
        for label, group in zip(numbered, places.values(), strict=True):
            self._console.print(Text(label, style="bold"))
            for source in group:
                quote = f"{source.weight:.0%}  “{safe_line(source.quote)}”"
                self._console.print(Padding(Text(quote), (0, 0, 0, 4), expand=False))

    def _write(self, text: str) -> None:
        safe = safe_text(text)
        self._last_written = safe or self._last_written  # first: Ctrl-C may come right after
        sys.stdout.write(safe)
        sys.stdout.flush()

    def _end_line(self) -> None:
        if self._last_written and not self._last_written.endswith("\n"):
            self._write("\n")


class JsonRenderer(Renderer):
    """Shows a session to a program: one JSON document on stdout, progress on stderr."""

    def show_token(self, text: str, bar: "ReadingBar") -> None:
        """Leave the text to the document."""
        bar.show_answering()

    def show_answer(self, answer: Answer) -> None:
        """Print the document."""
        show_json(answer.as_json())


class ReadingBar:
    """The bar of loading and reading on a terminal; elsewhere, and when not wanted, nothing."""

    def __init__(self, console: Console, wanted: bool) -> None:
        self._narrow = console.width < 72
        bar_width = 0 if self._narrow else 10 if console.width < 100 else 30
        # Gaps, and the `^C` that a terminal echoes: on a second line it would keep the bar there.
        self._room = console.width - bar_width - 5
        columns: list[ProgressColumn] = [
            TextColumn("{task.description}", markup=False),
            TextColumn("{task.fields[figures]}", markup=False),
        ]
        if not self._narrow:
            columns.insert(1, BarColumn(bar_width=bar_width))
        self._bar = Bar(
            *columns,
            console=console,
            transient=True,
            redirect_stdout=False,
            disable=not (wanted and console.is_terminal),
        )
        self._task = self._bar.add_task("Loading the model", total=None, figures="")

    def __enter__(self) -> "ReadingBar":
        self._bar.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def show(self, event: Loaded | Progress) -> None:
        """Show that the model is there, or how far reading has come."""
        if isinstance(event, Loaded):
            self._bar.update(self._task, description="Reading")
            return
        figures = describe_progress(event, self._narrow)
        description = Text(f"Reading {safe_line(event.source)}")
        description.truncate(max(self._room - len(figures), 8), overflow="ellipsis")
        self._bar.update(
            self._task,
            description=description.plain,
            total=None if event.fraction is None else 1.0,
            completed=event.fraction or 0.0,
            figures=figures,
        )

    def show_answering(self) -> None:
        """Show that reading is over and the answer is being written."""
        self._bar.update(self._task, description="Answering", total=None, figures="")

    def close(self) -> None:
        """Remove the bar; more than once does no harm."""
        self._bar.stop()


def statistics(answer: Answer, verbose: bool) -> list[str]:
    """Return the lines on what was read and kept, and what it cost."""
    memory, timing, model = answer.memory, answer.timing, answer.model
    peak = f"peak {format_bytes(memory.process_peak_bytes)}"
    if memory.gpu_peak_bytes is not None:
        peak += f", GPU {format_bytes(memory.gpu_peak_bytes)}"
    quant = "" if model.quant == "none" else f"{model.quant} "
    lines = [
        f"{describe_coverage(answer.coverage)}"
        f" · KV {memory.kv_tokens:,} of {memory.full_kv_tokens:,} tokens"
        f" by {describe_policy(memory)}"
        f" · {describe_bytes(memory)} vs {format_bytes(memory.full_kv_bytes)} full"
        + ("" if answer.recall is None else f" · {describe_recall(answer.recall)}"),
        (
            f"prefill {format_seconds(timing.read_s)} at {format_rate(timing.read_tokens_per_s)} · "
            if timing.read_s
            else ""
        )
        + f"first token {format_seconds(timing.first_token_s)}"
        f" · {format_rate(timing.decode_tokens_per_s)}"
        f" · {peak}"
        f" · {model.id}, {quant}{model.dtype} on {model.device}"
        + "".join(f" · {describe_memory(memory)}" for memory in answer.memories[:1]),
    ]
    if verbose:
        lines.append(
            f"budget {memory.budget_tokens:,} tokens by {memory.policy}"
            f" · window {model.window_tokens:,} tokens · revision {model.revision}"
            f" · loaded in {format_seconds(timing.load_s)} · stopped by {answer.stop}"
        )
        lines += [f"{m.source}: {describe_memory(m)}" for m in answer.memories[1:]]
        for number, recalled in enumerate(answer.recall or (), start=1):
            lines.append(describe_round(number, recalled))
        lines += [f"no text: {page}" for page in answer.coverage.pages_without_text]
    return lines
