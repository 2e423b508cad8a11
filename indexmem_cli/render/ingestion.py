"""What `ingest` shows."""

from collections.abc import Iterable

from rich.text import Text

from indexmem_cli.events import Event, Ingested, Loaded, Notice, Progress
from indexmem_cli.render.answers import ReadingBar
from indexmem_cli.render.safe import safe_line
from indexmem_cli.render.screen import open_console, show_json, show_lines, show_note
from indexmem_cli.render.wording import describe_coverage, describe_memory, format_seconds


def show_ingestion(events: Iterable[Event], quiet: bool, as_json: bool) -> Ingested:
    """Show the events as they come: the memories on stdout, everything else on stderr."""
    console = open_console(stderr=True)
    done = None
    with ReadingBar(console, wanted=not quiet) as bar:
        for event in events:
            match event:
                case Loaded() | Progress():
                    bar.show(event)
                case Notice(message) if not quiet:
                    show_note(console, message)
                case Ingested():
                    done = event
    assert done is not None, "an ingestion ends with what was ingested"
    if as_json:
        show_json(done.as_json())
    elif quiet:
        show_lines([memory.id for memory in done.memories if memory.id])
    else:
        for memory in done.memories:
            show_lines([f"{memory.source}: {describe_memory(memory)}"])
        took = f" · {format_seconds(done.read_s)}" if done.read_s else ""
        console.print(Text(safe_line(describe_coverage(done.coverage) + took), style="dim"))
    return done
