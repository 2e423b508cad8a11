"""A conversation as a text that grows: read turn by turn into one memory, saved as memories are."""

import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime

from indexmem_cli.archive import QUESTION, Archive
from indexmem_cli.config import TEXT
from indexmem_cli.documents import Passage, Place
from indexmem_cli.documents.chats.messages import Message, show_time, write_message
from indexmem_cli.events import Coverage
from indexmem_cli.library import Library
from indexmem_cli.library.manifest import Key, Manifest, damaged
from indexmem_cli.library.saver import Chain, Saver
from indexmem_cli.reading import Reading
from indexmem_cli.sessions import Turn, forget
from indexmem_cli.tokens import Chunk, read_chunks

NAME = "conversation"
USER, ASSISTANT = "user", "assistant"
# One sentence or more, all of them questions.
_ASKS_ALONE = re.compile(r"(?:(?:[^.!?？…\n]|[.!…](?!\s))*[?？])+")


@dataclass
class GrowingReading(Reading):
    """A text to whose end passages are added, and which can be asked at any time."""

    question_tokens: int = 8
    """Longest question; what a longer message says before it is read as text."""
    turns: int = 0
    """Turns of which all is read."""
    saved_turns: int = 0
    _coming: list[tuple[Iterator[Chunk], bool]] = field(default_factory=list)

    def begin(self) -> None:
        """Start with an empty text."""
        self.archive = Archive.create(None, self.tokenizer.decode)
        if self.recall_from is not None and self.recall_from != TEXT:
            self._store_keys(self.recall_from, None)
        for _ in self.reader.read([self.opening] if self.opening else []):
            pass
        self._count()

    def resume(self, library: Library, manifest: Manifest) -> None:
        """Go on from what was saved; what is read from now on does not change the saved files.

        Raises:
            MemoryFileError: it is not as it was written, or not of this model.
        """
        self.load(library, manifest)
        saved, self.archive = self.archive, self.archive.copied()
        saved.close()
        self.chain = Chain()
        for block in self.archive:
            self.chain.add(block.ids)
        if self.chain.links[-1:] != list(manifest.chain[-1:]):
            raise damaged(manifest.id, "its text is not the one that was read")
        self.chain.links = list(manifest.chain)
        assert self.coverage is not None, "it was just loaded"
        self.turns = self.saved_turns = self.coverage.messages_read

    @property
    def tokens(self) -> int:
        """Tokens of text in the memory."""
        return self.chain.tokens

    def add(self, passages: Iterable[Passage], ends_turn: bool) -> None:
        """Put passages at the end of the text; `read` reads them."""
        # Chunks are made when they are read, because only then it is known where they begin.
        self._coming.append((self._chunks(list(passages)), ends_turn))

    def read(self) -> Iterator[int]:
        """Read what was added, chunk by chunk; yield the tokens of each.

        May be left after any chunk and called again: nothing is read twice or left out.
        """
        while self._coming:
            chunks, ends_turn = self._coming[0]
            for chunk in chunks:
                started = time.perf_counter()
                for _ in self.reader.read([chunk.ids]):
                    pass
                if self.reader.stored is not None and self.reader.stored.failure is not None:
                    self.reader.forget_stored()  # from now on passages are read again as text
                self.chain.add(chunk.ids)
                self.archive.reopen_last()
                self.archive.add(chunk.entries)
                self.archive.commit(last=True)
                self._count()
                self.seconds += time.perf_counter() - started
                yield len(chunk.ids)
            del self._coming[0]
            self.turns += ends_turn
            self._count()

    @property
    def is_behind(self) -> bool:
        """Whether something was added that is not read yet."""
        return bool(self._coming)

    def split(self, message: str) -> tuple[str, str]:
        """Cut a message that is too long for a question before its last paragraph, or line."""
        room = self.question_tokens

        def fits(text: str) -> bool:
            return len(text) <= room or len(self.tokenizer.encode(text)) <= room

        if fits(message):
            return "", message
        for gap in ("\n\n", "\n"):
            body, found, question = message.rpartition(gap)
            if found and fits(question):
                return body, question
        length = min(len(message), 8 * room)
        while not fits(message[-length:]):
            length -= -(-length // 4)
        length -= max(0, message[-length:].find(" "))
        return message[:-length], message[-length:]

    def save(self, library: Library, key: Key, model: str, title: str) -> Manifest:
        """Save the memory as it is; older ones of the same conversation go.

        Raises:
            OSError, MemoryFileError, LockTimeout: it cannot be saved; the last one is as it was.
        """
        blank = Manifest(
            key=key,
            name=None,
            source=title,
            path=None,
            model=model,
        )
        plan, reader = self.reader.plan, self.reader
        with library.lock(key.id, timeout_s=10):
            saver = Saver(library, blank, plan.chunk_tokens, chain=self.chain)
            saver.begin()
            if reader.stored is not None:
                saver.shards, reader.stored.shards.new_path = reader.stored.shards, saver.new_shard
            path, coverage = saver.new_archive(), vars(self.coverage)
            try:
                self.archive.copied(path).close()
                self.manifest = saver.finish(
                    reader.state, reader.scorer, path, coverage, self.seconds
                )
            except BaseException:
                saver.abandon()
                raise
            finally:
                if reader.stored is not None:  # what comes next has no name until it is saved
                    reader.stored.shards.new_path = None
        if not self.saved_turns:  # those of another model or budget
            forget(library, key.content, but=key.id)
        self.saved_turns = self.turns
        return self.manifest

    def _chunks(self, passages: list[Passage]) -> Iterator[Chunk]:
        first = self.reader.state.seen
        yield from read_chunks(passages, self.tokenizer, self.reader.plan.chunk_tokens, first)

    def _count(self) -> None:
        tokens = self.chain.tokens
        self.coverage = Coverage(
            tokens_total=tokens,
            tokens_read=tokens,
            files_read=1,
            files_skipped={},
            pages_total=0,
            pages_read=0,
            pages_without_text=(),
            messages_read=self.turns,
        )


def said(turn: Turn, author: str, text: str) -> list[Passage]:
    """What one side said in a turn, as a message of a chat log is written."""
    asked = datetime.fromtimestamp(turn.asked_s)
    place = Place(
        NAME,
        page=None,
        page_label=None,
        line=turn.number,
        unit=QUESTION if author == USER and _ASKS_ALONE.fullmatch(text) else "turn",
        member=f"turn {turn.number}",
        author=author,
        time=show_time(asked),
    )
    return list(write_message(Message(text, author, asked), place))
