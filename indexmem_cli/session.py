"""The use cases: inspect, read, ask. The only place where documents, model and memory meet.

Yields events and never prints. Parts that need torch are imported when they are used.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from indexmem_cli.archive import Archive
from indexmem_cli.checkpoint import find_checkpoint
from indexmem_cli.config import (
    AnswerConfig,
    MemoryConfig,
    ModelConfig,
    ReadConfig,
    parse_pages,
    parse_size,
)
from indexmem_cli.documents import Sources, open_sources, open_text
from indexmem_cli.errors import ConfigError
from indexmem_cli.events import (
    Answer,
    Coverage,
    Event,
    FileReport,
    Inspection,
    Loaded,
    MemoryUse,
    Notice,
    Timing,
    TokenText,
)
from indexmem_cli.evidence import Evidence
from indexmem_cli.plan import make_plan
from indexmem_cli.reading import Reading
from indexmem_cli.tokens import Tokenizer, count_tokens, load_tokenizer

if TYPE_CHECKING:
    from indexmem_cli.backbone import Backbone
    from indexmem_cli.loading import Prompt


def ask(
    sources: Sequence[str],
    question: str,
    *,
    read: ReadConfig,
    memory: MemoryConfig,
    model: ModelConfig,
    answer: AnswerConfig,
    stdin: BinaryIO | None = None,
) -> Iterator[Event]:
    """Read the sources and answer one question of them, yielding what happens on the way.

    Raises:
        IndexMemError: see `errors.py`; sources are checked before a model is loaded.
    """
    opened = open_sources(sources, read, stdin)
    yield from Memory(opened, memory, model).events(question, answer)


def inspect(
    sources: Sequence[str],
    *,
    read: ReadConfig,
    memory: MemoryConfig,
    model: ModelConfig,
    stdin: BinaryIO | None = None,
) -> Inspection:
    """Count what reading the sources would mean, without loading a model."""
    opened = open_sources(sources, read, stdin)
    checkpoint = find_checkpoint(model.model, model.offline)
    tokenizer = load_tokenizer(checkpoint.path)
    files = []
    for document in opened.documents:
        tokens = count_tokens(document.passages(), tokenizer)
        size = document.size_bytes or 0
        files.append(FileReport(document.name, document.kind, document.pages_total, tokens, size))
    total = sum(file.tokens for file in files)
    plan, _ = make_plan(memory, checkpoint.window_tokens)
    per_token = checkpoint.kv_bytes_per_token(checkpoint.likely_dtype(model.dtype, model.device))
    return Inspection(
        files=tuple(files),
        coverage=_coverage(opened, total),
        model=model.model,
        budget_tokens=plan.budget_tokens,
        kv_bytes=min(total, plan.budget_tokens) * per_token,
        full_kv_bytes=total * per_token,
        kv_bytes_per_token=per_token,
    )


@dataclass
class _Engine:
    """A loaded model with all that goes with it."""

    backbone: "Backbone"
    prompt: "Prompt"
    tokenizer: Tokenizer
    load_s: float
    answer_from_tokens: int | None


@dataclass
class Memory:
    """Documents to ask about; `read` and `read_text` make one.

    They are read once, when the first question comes, and passages are looked up for each question
    and read again. With the policy `question` (the default without recall) what is kept depends on
    the question, so the documents are read anew for each.
    """

    sources: Sources
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    _engine: _Engine | None = field(default=None, repr=False)
    _reading: Reading | None = field(default=None, repr=False)

    @classmethod
    def read(
        cls,
        *paths: str | Path,
        budget: int | str | None = None,
        pages: str | None = None,
        password: str | None = None,
        **options: Any,
    ) -> "Memory":
        """Open files or folders to ask about.

        Args:
            budget: tokens kept per layer and head, as 4096 or "4k".
            pages: a selection of PDF pages, as "10-40".
            options: fields of `ModelConfig` (model, quant, dtype, device, offline) and of
                `MemoryConfig` (policy, chunk_tokens, span_tokens, …).

        Raises:
            IndexMemError: a source cannot be read, or an option is wrong.
        """
        memory, model = _configs(budget, options)
        read = ReadConfig(pages=parse_pages(pages) if pages else (), password=password)
        return cls(open_sources([str(path) for path in paths], read), memory, model)

    @classmethod
    def read_text(cls, text: str, *, budget: int | str | None = None, **options: Any) -> "Memory":
        """Take a text to ask about; arguments as in `read`."""
        return cls(Sources([open_text(text)]), *_configs(budget, options))

    def ask(
        self, question: str, *, max_tokens: int = 256, temperature: float = 0.0, seed: int = 0
    ) -> Answer:
        """Answer one question. The answer prints as its text; it has sources and statistics."""
        *_, answer = self.events(question, AnswerConfig(max_tokens, temperature, seed))
        return answer

    def events(self, question: str, config: AnswerConfig) -> Iterator[Event]:
        """Answer one question, yielding what happens on the way; the answer comes last."""
        from indexmem_cli.engine import make_reader

        if not question.strip():
            raise ConfigError("the question is empty", "say what you want to know")
        self._engine = engine = self._engine or _load(self.model)
        backbone, prompt = engine.backbone, engine.prompt
        yield Loaded(backbone.info, engine.load_s)
        closing = prompt.closing(engine.tokenizer.encode(question))
        window = backbone.info.window_tokens
        around = (len(prompt.opening), len(closing))
        plan, notices = make_plan(self.memory, window, *around, engine.answer_from_tokens)
        if None not in backbone.layer_windows:
            notices.append("all layers of this model have a sliding window: the budget is not used")
        yield from map(Notice, notices)
        read_s = 0.0
        if self._reading is None or self._reading.reader.scorer.needs_question:
            reader = make_reader(backbone, plan, self.memory, closing)
            self._reading = Reading(self.sources, reader, engine.tokenizer)
            if self.memory.recall:
                self._reading.archive = Archive.temporary(engine.tokenizer.decode)
            yield from self._reading.run(prompt.opening)
            read_s = self._reading.seconds
        yield from self._answer(engine, question, closing, config, read_s, tuple(notices))

    def _answer(
        self,
        engine: _Engine,
        question: str,
        closing: list[int],
        config: AnswerConfig,
        read_s: float,
        notices: tuple[str, ...],
    ) -> Iterator[Event]:
        reading, backbone = self._reading, engine.backbone
        stream, text, times = engine.tokenizer.text_stream(), "", []
        started = time.perf_counter()
        recalled = reading.recall(question, closing)
        evidence = Evidence(origins=recalled.origins)
        for step in recalled.reader.answer(closing, config, backbone.eos_ids):
            times.append(time.perf_counter())
            evidence.add(step.attended)
            text += (piece := _continue(text, stream.push(step.token_id)))
            yield TokenText(piece)
        text += (piece := _continue(text, stream.flush()))
        yield TokenText(piece)
        first = times[0] if times else time.perf_counter()
        decode_s = times[-1] - first if len(times) > 1 else 0.0
        yield Answer(
            text=text.rstrip(),
            sources=evidence.sources(recalled.places, engine.tokenizer),
            coverage=_coverage(self.sources, reading.tokens),
            memory=_memory_use(backbone, reading, self.memory.policy),
            timing=Timing(
                load_s=engine.load_s,
                read_s=read_s,
                read_tokens_per_s=reading.tokens / read_s if read_s else 0.0,
                first_token_s=first - started,
                decode_tokens_per_s=(len(times) - 1) / decode_s if decode_s else 0.0,
            ),
            model=backbone.info,
            stop="length" if len(times) == config.max_tokens else "end",
            notices=notices,
            recall=recalled.rounds,
        )


def _continue(text: str, piece: str) -> str:
    """The next piece of an answer, which never begins with white space."""
    return piece if text else piece.lstrip()


def _load(config: ModelConfig) -> _Engine:
    started = time.perf_counter()
    checkpoint = find_checkpoint(config.model, config.offline)
    tokenizer = load_tokenizer(checkpoint.path)
    from indexmem_cli.loading import load_backbone, load_prompt

    backbone, prompt = load_backbone(checkpoint, config), load_prompt(checkpoint)
    load_s = time.perf_counter() - started
    return _Engine(backbone, prompt, tokenizer, load_s, checkpoint.answer_from_tokens)


def _configs(budget: int | str | None, options: dict[str, Any]) -> tuple[MemoryConfig, ModelConfig]:
    """Sort keyword options into the two configurations they belong to."""
    names = {f.name for f in fields(ModelConfig)}
    model = {name: value for name, value in options.items() if name in names}
    memory = {name: value for name, value in options.items() if name not in names}
    unknown = set(memory) - {f.name for f in fields(MemoryConfig)}
    if unknown:
        raise ConfigError(f"unknown option: {', '.join(sorted(unknown))}")
    tokens = parse_size(budget) if isinstance(budget, str) else budget
    return MemoryConfig(budget_tokens=tokens, **memory), ModelConfig(**model)


def _coverage(sources: Sources, tokens: int) -> Coverage:
    documents = sources.documents
    return Coverage(
        tokens_total=tokens,
        tokens_read=tokens,
        files_read=sum(document.skipped_as is None for document in documents),
        files_skipped=dict(sources.skipped),
        pages_total=sum(document.pages_total for document in documents),
        pages_read=sum(document.pages_read for document in documents),
        pages_without_text=tuple(p for d in documents for p in d.pages_without_text),
        pages_not_selected=sum(document.pages_not_selected for document in documents),
    )


def _memory_use(backbone: "Backbone", reading: Reading, policy: str) -> MemoryUse:
    state, plan = reading.reader.state, reading.reader.plan
    return MemoryUse(
        policy=policy,
        budget_tokens=plan.budget_tokens,
        kv_tokens=state.held,
        kv_bytes=state.nbytes,
        full_kv_tokens=state.seen,
        full_kv_bytes=state.seen * backbone.kv_bytes_per_token,
        process_peak_bytes=_process_peak_bytes(),
        gpu_peak_bytes=backbone.gpu_peak_bytes(),
    )


def _process_peak_bytes() -> int:
    """Largest resident size of this process so far; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
