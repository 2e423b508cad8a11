"""One reading of documents: into a memory and an archive, and out again for each question."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from indexmem_cli.archive import Archive, Block
from indexmem_cli.documents import Document, Passage, Sources
from indexmem_cli.events import Progress, RecalledBlock, RecallRound
from indexmem_cli.tokens import SourceMap, Tokenizer, read_chunks

if TYPE_CHECKING:
    from indexmem_cli.engine import Reader

LEAST_RECALL_TOKENS = 160
"""Room for passages even where a model answers from fewer tokens: for one block."""


@dataclass(frozen=True)
class Recalled:
    """What one question is answered from."""

    reader: "Reader"
    places: SourceMap
    origins: dict[int, int]
    """First position of the tokens read again, by their new one."""
    rounds: tuple[RecallRound, ...] | None


@dataclass
class Reading:
    """Documents on their way into a reader, and what is known of them when they are in."""

    sources: Sources
    reader: "Reader"
    tokenizer: Tokenizer
    places: SourceMap = field(default_factory=SourceMap)
    archive: Archive | None = None
    """What is read is written through to it."""
    tokens: int = 0
    seconds: float = 0.0
    _current: Document | None = None

    def run(self, opening_ids: list[int]) -> Iterator[Progress]:
        """Read everything, chunk by chunk."""
        started = time.perf_counter()
        state, plan = self.reader.state, self.reader.plan
        for _ in self.reader.read([opening_ids] if opening_ids else []):
            pass  # the prompt's opening is not counted as text
        chunks = read_chunks(self._passages(), self.tokenizer, plan.chunk_tokens, state.seen)
        for chunk in chunks:
            self.places.add(chunk)
            if self.archive is not None:
                self.archive.add(chunk.entries)
            for tokens in self.reader.read([chunk.ids]):
                self.tokens += tokens
            self.places.keep(state.kept_positions())
            self.seconds = time.perf_counter() - started
            name = self._current.name if self._current else ""
            yield Progress(name, self.tokens, self._fraction(), self.seconds)
        if self.archive is not None:
            self.archive.commit(last=True)

    def recall(self, question: str, closing: list[int]) -> Recalled:
        """Return a reader to answer one question from, with the passages it needs read again."""
        if self.archive is None:
            return Recalled(self.reader.fork(), self.places, {}, None)
        from indexmem_cli.memory.recall import Recall, load_gate

        reader = self.reader.fork_for(closing)
        state, plan = reader.state, reader.plan
        if state.held == state.seen <= plan.answer_from_tokens:
            return Recalled(reader, self.places, {}, ())  # the whole text is in memory
        budget = plan.budget_tokens - plan.sink_tokens
        room = max(plan.answer_from_tokens // 2, LEAST_RECALL_TOKENS)
        recall = Recall(self.archive, question, load_gate())
        recall.run(min(room, budget), budget)
        entries = [entry for block in recall.blocks for entry in block.entries]
        again = [entry.first + i for entry in entries for i in range(len(entry.ids))]
        origins = dict(zip(range(state.seen, state.seen + len(again)), again, strict=True))
        if entries:
            reader.recall([i for entry in entries for i in entry.ids])
        rounds = tuple(
            RecallRound(query, tuple(_describe(one.block, one.odds) for one in found))
            for query, found in recall.rounds
        )
        return Recalled(reader, self.places.joined(entries), origins, rounds)

    def _passages(self) -> Iterator[Passage]:
        for document in self.sources.documents:
            self._current = document
            yield from document.passages()

    def _fraction(self) -> float | None:
        """Share of all bytes read so far; None where a size is not known."""
        documents = self.sources.documents
        sizes = [document.size_bytes for document in documents]
        if None in sizes or not sum(sizes) or self._current is None:
            return None
        at = next(i for i, document in enumerate(documents) if document is self._current)
        share = self._current.fraction
        return None if share is None else (sum(sizes[:at]) + sizes[at] * share) / sum(sizes)


def _describe(block: Block, odds: float) -> RecalledBlock:
    first, last = block.entries[0].place, block.entries[-1].place
    return RecalledBlock(
        number=block.number,
        file=first.file,
        page=first.page,
        page_label=first.page_label,
        line_start=first.line,
        line_end=last.line,
        tokens=block.end - block.first,
        odds=odds,
    )
