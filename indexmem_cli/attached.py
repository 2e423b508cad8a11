"""The sources attached to a conversation: opened at once, and read before the next question."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from indexmem_cli.config import MemoryConfig, ModelConfig, ReadConfig, StoreConfig, is_path
from indexmem_cli.documents import Sources
from indexmem_cli.errors import ConfigError, DocumentError, IndexMemError
from indexmem_cli.events import Event, Notice, Progress
from indexmem_cli.language_model import LanguageModel
from indexmem_cli.library.manifest import Manifest
from indexmem_cli.reading import Reading
from indexmem_cli.session import Memory, open_parts


@dataclass
class Attached:
    """Files, folders and saved memories that are looked through besides what was said."""

    store: StoreConfig
    readings: dict[str, Reading] = field(default_factory=dict)
    """What was read, by name."""
    unread: dict[str, Sources | Manifest] = field(default_factory=dict)
    known: set[str] = field(default_factory=set)
    """Names that come from the session: the conversation goes on without what is not there."""

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(dict.fromkeys([*self.readings, *self.unread]))

    def open_known(self, names: Sequence[str], memory: MemoryConfig) -> list[str]:
        """Open what a session knows, as far as it is still there; return what to tell the user."""
        notices = []
        self.known.update(names)
        for name in names:
            try:
                (self.unread[name],) = open_parts([name], ReadConfig(), memory, self.store)
            except DocumentError as error:
                notices.append(f"{error.message}: it is not looked through this time")
        return notices

    def open_new(self, names: Sequence[str], memory: MemoryConfig) -> None:
        """Open what the user names now.

        Raises:
            ConfigError: it is where the questions come from.
            DocumentError: one cannot be read.
        """
        if not names:
            return
        if "-" in names:
            raise ConfigError("standard input is where the questions come from")
        parts = open_parts(names, ReadConfig(), memory, self.store)
        paths = [str(Path(name).absolute()) if is_path(name) else name for name in names]
        self.unread |= dict(zip(paths, parts, strict=True))
        self.known -= set(paths)

    def read(
        self, memory: MemoryConfig, model: ModelConfig, engine: LanguageModel | None
    ) -> Iterator[Event]:
        """Read what is not read yet.

        Raises:
            IndexMemError: one that the user named cannot be read; it is let go, else no question
                could be asked.
        """
        as_text = replace(memory, recall_from=None)  # the state is that of what was said
        while self.unread:
            name, part = next(iter(self.unread.items()))
            one = Memory([part], as_text, model, store=self.store, is_looked_up=True, engine=engine)
            try:
                for event in one.ingest():
                    if isinstance(event, Notice | Progress):
                        yield event
            except IndexMemError as error:
                del self.unread[name]
                if name not in self.known:
                    yield Notice(f"{name} is not looked through")
                    raise
                yield Notice(f"{name} is not looked through this time: {error.message}")
            else:
                (self.readings[name],) = one.readings
                del self.unread[name]
