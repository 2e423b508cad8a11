"""One question of memories: the passages it needs are read again, then the answer is written."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from indexmem_cli.archive import Block
from indexmem_cli.archives import STRIDE, Archives
from indexmem_cli.config import FOCUS, LEARNED, AnswerConfig, MemoryConfig
from indexmem_cli.copying import Copying
from indexmem_cli.coverage import join_coverage
from indexmem_cli.events import (
    Answer,
    Event,
    Explanation,
    MemoryUse,
    RecalledBlock,
    RecallRound,
    Timing,
    TokenText,
)
from indexmem_cli.evidence import Evidence, locate
from indexmem_cli.language_model import LanguageModel
from indexmem_cli.reading import Reading
from indexmem_cli.tokens import Entry

if TYPE_CHECKING:
    from indexmem_cli.engine import Reader, Step
    from indexmem_cli.reranking import Reranker

LEAST_RECALL_TOKENS = 160
"""Room for passages even where a model answers from fewer tokens: for one block."""


@dataclass(frozen=True)
class Grounds:
    """What one question is answered from."""

    reader: "Reader"
    places: Archives
    passages: Sequence[Entry] = ()
    """What was looked up, or all there is where that fits; in the order of the text."""
    origins: dict[int, int] = field(default_factory=dict)
    """First position of the tokens read again, by their new one; that of those brought back."""
    rounds: tuple[RecallRound, ...] | None = None
    """None: nothing was looked up."""


def find_grounds(
    readings: Sequence[Reading],
    question: str,
    closing: list[int],
    look_up: bool,
    from_first: bool = False,
    reranker: "Reranker | None" = None,
    reread: Callable[[Sequence[int]], list[int]] = list,
) -> Grounds:
    """Bring a memory into the state to answer one question from, without changing it.

    Several memories are looked through as one archive. Their states cannot be joined, because each
    was computed after its own text alone: such an answer is written from the passages and the
    opening of the prompt.

    Args:
        look_up: whether passages are looked up; with several memories they always are.
        from_first: what the first memory kept is answered from too, as that of a conversation.
        reranker: what reads the likeliest passages first, to say which of them answer.
        reread: the tokens that a passage is read again by, as `LanguageModel.reread` returns them.
    """
    places = Archives([r.archive for r in readings], [r.names for r in readings])
    first, several = readings[0], len(readings) > 1
    if not look_up and not several:
        return Grounds(first.reader.fork(), places)
    from indexmem_cli.memory.recall import Recall, load_gate

    stands_alone = several and not from_first
    reader = _new_reader(first, closing) if stands_alone else first.reader.fork_for(closing)
    state, plan = reader.state, reader.plan
    if not several and state.held == state.seen <= plan.answer_from_tokens:
        every = [e for number in range(len(places)) for e in places.block(number).entries]
        return Grounds(reader, places, every, rounds=())  # the whole text is in memory
    budget = plan.budget_tokens - plan.sink_tokens
    ask_model = None if reranker is None else partial(reranker.read, question)
    recall = Recall(places, question, load_gate(), ask_model)
    recall.run(min(max(plan.answer_from_tokens // 2, LEAST_RECALL_TOKENS), budget), budget)
    stored = None if stands_alone else first.reader.stored
    spans: list[tuple[int, int]] = []  # of the first text, whose keys and values come back
    for entry in recall.entries if stored is not None else ():
        if entry.first < STRIDE:
            goes_on = bool(spans) and spans[-1][1] == entry.first
            spans.append((spans.pop()[0] if goes_on else entry.first, entry.end))
    back = {place: place for span in spans for place in range(*span)}
    entries = [entry for entry in recall.entries if entry.first not in back]
    parts = [(entry, reread(entry.ids)) for entry in entries]
    again = [place for entry, ids in parts for place in range(entry.end - len(ids), entry.end)]
    origins = back | dict(zip(range(state.seen, state.seen + len(again)), again, strict=True))
    if origins:
        reader.recall([i for _, ids in parts for i in ids], stored, spans)
    rounds = tuple(
        RecallRound(query, tuple(_describe(one.block, one.odds) for one in found))
        for query, found in recall.rounds
    )
    return Grounds(reader, places, recall.entries, origins, rounds)


def answer(
    model: LanguageModel,
    readings: Sequence[Reading],
    question: str,
    closing: list[int],
    memory: MemoryConfig,
    config: AnswerConfig,
    notices: tuple[str, ...],
    from_first: bool = False,
) -> Iterator[Event]:
    """Answer one question, yielding the text as it is written; the answer comes last.

    Args:
        closing: the question's tokens with what surrounds it.
        notices: what the user was told already.
        from_first: as in `find_grounds`.
    """
    started, text, times = time.perf_counter(), "", []
    reranker = _reranker(model, question) if memory.rerank else None
    looking = (memory.recall, from_first, reranker, model.reread)
    grounds = find_grounds(readings, question, closing, *looking)
    saved = readings[0].manifest
    policy = saved.policy if saved else memory.policy
    use = _memory_use(model, readings, grounds, str(policy or ""), from_first)
    explanation = _explain(readings, grounds, closing) if config.explain else None
    evidence, stream = Evidence(origins=grounds.origins), model.tokenizer.text_stream()
    steps: Iterable[Step] = ()
    if config.extract and not grounds.passages:
        notices = (*notices, "no passage fits the question: there is nothing to quote")
    else:
        copying = _copying(model, grounds) if config.extract else None
        steps = grounds.reader.answer(closing, config, model.backbone.eos_ids, copying)
    for step in steps:
        times.append(time.perf_counter())
        evidence.add(step.attended)
        text += (piece := _continue(text, stream.push(step.token_id)))
        yield TokenText(piece)
    text += (piece := _continue(text, stream.flush()))
    yield TokenText(piece)
    first = times[0] if times else time.perf_counter()
    decode_s = times[-1] - first if len(times) > 1 else 0.0
    read_s = sum(reading.seconds for reading in readings)
    tokens = sum(reading.tokens - reading.tokens_reused for reading in readings)
    yield Answer(
        text=text.rstrip(),
        sources=evidence.sources(grounds.places, text.rstrip(), question),
        coverage=join_coverage([reading.coverage for reading in readings if reading.coverage]),
        memory=replace(
            use,
            process_peak_bytes=_process_peak_bytes(),
            gpu_peak_bytes=model.backbone.gpu_peak_bytes(),
        ),
        timing=Timing(
            load_s=model.load_s,
            read_s=read_s,
            read_tokens_per_s=tokens / read_s if read_s else 0.0,
            first_token_s=first - started,
            decode_tokens_per_s=(len(times) - 1) / decode_s if decode_s else 0.0,
        ),
        model=model.backbone.info,
        stop="length" if len(times) == config.max_tokens else "end",
        notices=notices,
        recall=grounds.rounds,
        memories=tuple(reading.remembered for reading in readings),
        explanation=explanation,
    )


def _explain(readings: Sequence[Reading], grounds: Grounds, closing: list[int]) -> Explanation:
    """What was kept of the text; of several, what is left of the passages they are answered by."""
    from indexmem_cli.explain import explain

    memory = readings[0].reader if len(readings) == 1 else grounds.reader
    back = [place for place, origin in grounds.origins.items() if place == origin]
    return explain(memory, grounds.reader, closing, back)


def _copying(model: LanguageModel, grounds: Grounds) -> Copying:
    """What lets an answer be one span of what was looked up."""
    copying = Copying(model.tokenizer, frozenset(model.backbone.eos_ids))
    text, end = "", None
    for entry in grounds.passages:
        if entry.first != end:
            copying.add_text(text)
            text = ""
        text += grounds.places.text_of(entry)
        end = entry.end
    copying.add_text(text)
    return copying


def _memory_use(
    model: LanguageModel,
    readings: Sequence[Reading],
    grounds: Grounds,
    policy: str,
    from_first: bool,
) -> MemoryUse:
    """What is kept of what was read; of several sources, what the answer is written from."""
    reader = readings[0].reader if from_first or len(readings) == 1 else grounds.reader
    latents = [part.latent for part in reader.state.managed]
    full = sum(len(model.prompt.opening) + reading.tokens for reading in readings)
    return MemoryUse(
        policy=policy,
        adapter=model.backbone.adapter.kind if policy == LEARNED else None,
        budget_tokens=readings[0].reader.plan.budget_tokens,
        kv_tokens=reader.state.held,
        kv_bytes=reader.state.nbytes,
        full_kv_tokens=full,
        full_kv_bytes=full * model.backbone.kv_bytes_per_token,
        latent_bytes=sum(latent.nbytes for latent in latents if latent is not None),
        process_peak_bytes=0,  # known when the answer is written
        gpu_peak_bytes=None,
    )


def _new_reader(reading: Reading, closing: list[int]) -> "Reader":
    """A reader that knows the prompt's opening and the question, and no text yet."""
    from indexmem_cli.engine import Reader
    from indexmem_cli.memory.policies import make_scorer

    old = reading.reader
    reader = Reader(old.backbone, old.plan, make_scorer(FOCUS), closing)
    for _ in reader.read([reading.opening] if reading.opening else []):
        pass
    return reader


def _reranker(model: LanguageModel, question: str) -> "Reranker | None":
    """What reads passages for a question that is not too long to be read with each."""
    from indexmem_cli.reranking import MOST_QUESTION_TOKENS, Reranker

    if len(model.tokenizer.encode(question)) > MOST_QUESTION_TOKENS:
        return None
    return Reranker(model.backbone, model.prompt, model.tokenizer, model.reread)


def _describe(block: Block, odds: float) -> RecalledBlock:
    return RecalledBlock(
        number=block.number,
        tokens=block.end - block.first,
        odds=odds,
        **locate(block.entries[0], block.entries[-1]),
    )


def _continue(text: str, piece: str) -> str:
    """The next piece of an answer, which never begins with white space."""
    return piece if text else piece.lstrip()


def _process_peak_bytes() -> int:
    """Largest resident size of this process so far; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
