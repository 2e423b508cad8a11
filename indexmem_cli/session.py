"""The use cases of documents: look at, read, ask.

Yields events and never prints. Parts that need torch are imported when they are used.
"""

import contextlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, BinaryIO

from indexmem_cli.asking import answer as answer_question
from indexmem_cli.config import (
    FOCUS,
    LEARNED,
    NO_LATENT,
    TEXT,
    AnswerConfig,
    MemoryConfig,
    ModelConfig,
    ReadConfig,
    StoreConfig,
    is_path,
    parse_budget,
    parse_pages,
)
from indexmem_cli.coverage import join_coverage
from indexmem_cli.documents import Sources, join_sources, open_each, open_text
from indexmem_cli.errors import ConfigError, MemoryFileError, OutOfMemory
from indexmem_cli.events import (
    Answer,
    Event,
    Ingested,
    Loaded,
    Notice,
)
from indexmem_cli.fitting import describe_shortage, settle_budget
from indexmem_cli.language_model import LanguageModel, load_language_model, plan_of
from indexmem_cli.library import Library
from indexmem_cli.library.manifest import Key, Manifest
from indexmem_cli.plan import Plan, make_plan, room_for_question
from indexmem_cli.reading import Reading


def ask(
    sources: Sequence[str],
    question: str,
    *,
    read: ReadConfig,
    memory: MemoryConfig,
    model: ModelConfig,
    answer: AnswerConfig,
    store: StoreConfig,
    stdin: BinaryIO | None = None,
) -> Iterator[Event]:
    """Read the sources, or find what was read of them, and answer one question.

    Raises:
        IndexMemError: see `errors.py`; sources are checked before a model is loaded.
    """
    parts = open_parts(sources, read, memory, store, stdin)
    yield from Memory(parts, memory, model, read, store).events(question, answer)


def ingest(
    sources: Sequence[str],
    *,
    read: ReadConfig,
    memory: MemoryConfig,
    model: ModelConfig,
    store: StoreConfig,
    stdin: BinaryIO | None = None,
    engine: LanguageModel | None = None,
) -> Iterator[Event]:
    """Read the sources and save what was read, for questions to come; ends with `Ingested`.

    Args:
        engine: the model, where it is loaded already.

    Raises:
        IndexMemError: see `errors.py`; sources are checked before a model is loaded.
    """
    parts = open_to_ingest(sources, read=read, memory=memory, store=store, stdin=stdin)
    yield from Memory(parts, memory, model, read, store, engine=engine).ingest()


def open_to_ingest(
    sources: Sequence[str],
    *,
    read: ReadConfig,
    memory: MemoryConfig,
    store: StoreConfig,
    stdin: BinaryIO | None = None,
) -> list[Sources | Manifest]:
    """Open the sources, and check that memories can be made of them.

    Raises:
        IndexMemError: see `errors.py`.
    """
    if memory.policy == FOCUS:
        raise ConfigError("a memory for later questions cannot be read with one in mind")
    if store.name is not None and len(sources) > 1:
        raise ConfigError("a name is for one memory", "ingest the sources one by one")
    if store.name is not None:
        Library().check_name(store.name, str(Path(sources[0]).absolute()))
    return open_parts(sources, read, memory, store, stdin)


@dataclass
class Memory:
    """Documents to ask about; `read`, `read_text` and `open` make one.

    They are read once, when the first question comes, and passages are looked up for each question
    and read again. With the policy `question` (the default without recall) what is kept depends on
    the question, so the documents are read anew for each.
    """

    sources: Sequence[Sources | Manifest] | Sources
    """What to ask about, each with a memory of its own: opened documents, or what was saved."""
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    read_config: ReadConfig = field(default_factory=ReadConfig)
    store: StoreConfig = field(default_factory=lambda: StoreConfig(save=False))
    library: Library = field(default_factory=Library)
    engine: LanguageModel | None = field(default=None, repr=False)
    """The loaded model, which several may share; None: `model` is loaded when it is needed."""
    is_looked_up: bool = False
    """Only passages are wanted, for answers that are written from another memory."""
    readings: list[Reading] = field(default_factory=list, repr=False)
    """What was read of each source; empty before the first question."""

    @property
    def _parts(self) -> Sequence[Sources | Manifest]:
        return [self.sources] if isinstance(self.sources, Sources) else self.sources

    @classmethod
    def read(
        cls,
        *paths: str | Path,
        budget: int | str | None = None,
        pages: str | None = None,
        password: str | None = None,
        save: bool = False,
        **options: Any,
    ) -> "Memory":
        """Open files or folders to ask about.

        Args:
            budget: tokens kept per layer and head, as 4096 or "4k".
            pages: a selection of PDF pages, as "10-40".
            save: look for a saved memory first, and save what is read.
            options: fields of `ModelConfig` (model, quant, dtype, device, offline) and of
                `MemoryConfig` (policy, chunk_tokens, span_tokens, …).

        Raises:
            IndexMemError: a source cannot be read, or an option is wrong.
        """
        memory, model = _configs(budget, options)
        read = ReadConfig(pages=parse_pages(pages) if pages else (), password=password)
        store = StoreConfig(save=save)
        parts = open_parts([str(path) for path in paths], read, memory, store)
        return cls(parts, memory, model, read, store)

    @classmethod
    def read_text(cls, text: str, *, budget: int | str | None = None, **options: Any) -> "Memory":
        """Take a text to ask about; arguments as in `read`."""
        return cls([Sources([open_text(text)], name="text")], *_configs(budget, options))

    @classmethod
    def open(cls, memory: str, *, library: Library | None = None, **options: Any) -> "Memory":
        """Open a saved memory to ask about; its source is not needed any more.

        Args:
            memory: its name, its id, or the first letters of that.
            options: fields of `ModelConfig`; the model is the one that read, unless it is named.

        Raises:
            MemoryFileError: there is no such memory, or it is damaged.
        """
        library = library or Library()
        manifest = library.load(library.resolve(memory))
        model = ModelConfig(**{"model": manifest.model, **options})
        return cls([manifest], MemoryConfig(), model, library=library)

    def save(self, name: str | None = None) -> str:
        """Save the memory of the one source; return its id.

        Best before the first question: what was read without saving is read again.
        """
        if len(self._parts) != 1:
            raise ConfigError("more than one source", "each of them has a memory of its own")
        self.store = replace(self.store, save=True, name=name)
        *_, done = self.ingest()
        saved = done.memories[0].id if isinstance(done, Ingested) else None
        if saved is None:
            raise MemoryFileError("the memory could not be saved", "look at the free disk space")
        return saved

    def ask(
        self,
        question: str,
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
        extract: bool = False,
    ) -> Answer:
        """Answer one question. The answer prints as its text; it has sources and statistics.

        Args:
            extract: answer with one span of the text, copied word by word.
        """
        *_, answer = self.events(question, AnswerConfig(max_tokens, temperature, seed, extract))
        assert isinstance(answer, Answer), "it comes last"
        return answer

    def ingest(self) -> Iterator[Event]:
        """Read everything that is not read yet, yielding what happens; `Ingested` comes last."""
        self.readings = []
        engine = yield from self._load_engine()
        plan, notices = plan_for(self.memory, engine, 0)
        yield from map(Notice, notices)
        with explained(self.memory, self.model):
            yield from self._remember(engine, plan, "", [])
        yield Ingested(
            memories=tuple(reading.remembered for reading in self.readings),
            coverage=join_coverage([r.coverage for r in self.readings if r.coverage is not None]),
            read_s=sum(reading.seconds for reading in self.readings),
        )

    def events(self, question: str, config: AnswerConfig) -> Iterator[Event]:
        """Answer one question, yielding what happens on the way; the answer comes last."""
        if not question.strip():
            raise ConfigError("the question is empty", "say what you want to know")
        if config.extract and not self.memory.recall:
            raise ConfigError(
                "--extract quotes passages that are looked up", "leave out --no-recall"
            )
        engine = yield from self._load_engine()
        closing = engine.prompt.closing(engine.tokenizer.encode(question))
        plan, notices = plan_for(self.memory, engine, len(closing))
        yield from map(Notice, notices)
        if not self.readings or self.memory.policy == FOCUS:
            with explained(self.memory, self.model):
                yield from self._remember(engine, plan, question, closing)
        try:
            with explained(self.memory, self.model):
                yield from answer_question(
                    engine, self.readings, question, closing, self.memory, config, tuple(notices)
                )
        finally:  # also when the answer was stopped: what was read need not be read again
            for reading in self.readings:
                reading.seconds, reading.tokens_reused = 0.0, reading.tokens

    def _load_engine(self) -> Generator[Event, None, LanguageModel]:
        self.memory, self.engine = yield from load_engine(self.memory, self.model, self.engine)
        return self.engine

    def _remember(
        self, engine: LanguageModel, plan: Plan, question: str, closing: list[int]
    ) -> Iterator[Event]:
        """Read or load every source."""
        from indexmem_cli.engine import make_reader

        readings, config = [], self.memory
        several = len(self._parts) > 1 or self.is_looked_up
        wanted = config.recall_from or TEXT
        if several and wanted != TEXT:
            yield Notice("several sources share no keys and values: passages are read as text")
        for part in self._parts:
            its_plan, its_config = plan, config
            if isinstance(part, Manifest):
                if wanted not in (TEXT, part.recall_from):
                    how = f"to be recalled from {part.recall_from}, not from {wanted}"
                    yield Notice(f"memory {part.id} was read {how}")
                its_plan = plan_of(part, plan, engine)
                its_config = replace(config, policy=part.policy, latent=part.latent)
            documents = Sources(name=part.source) if isinstance(part, Manifest) else part
            reader = make_reader(engine.backbone, its_plan, its_config, closing)
            prompt = engine.tokenizer, engine.prompt.opening
            reading = Reading(documents, reader, *prompt, config.recall_from)
            if isinstance(part, Manifest):
                reading.load(self.library, part, with_state=not several)
            else:
                key = key_for(self.memory, self.read_config, engine, plan, question)
                yield from reading.remember(
                    key, engine.name, self.store, self.library, with_state=not several
                )
            if several:
                reading.forget_state()
            readings.append(reading)
        self.readings = readings


def plan_for(
    memory: MemoryConfig, engine: LanguageModel, closing_tokens: int
) -> tuple[Plan, list[str]]:
    """Work out the settings; but for one question, they leave room for most questions."""
    window = engine.backbone.info.window_tokens
    if memory.policy != FOCUS:
        room = room_for_question(window)
        closing_tokens = max(1, -(-closing_tokens // room)) * room
    around = (len(engine.prompt.opening), closing_tokens)
    plan, notices = make_plan(memory, window, *around, engine.answer_from_tokens)
    if None not in engine.backbone.layer_windows:
        notices.append("all layers of this model have a sliding window: the budget is not used")
    return plan, notices


def key_for(
    memory: MemoryConfig, read: ReadConfig, engine: LanguageModel, plan: Plan, question: str
) -> Key:
    """All that a memory depends on, but for the content."""
    info = engine.backbone.info
    settings = asdict(plan)
    del settings["answer_from_tokens"]  # of interest only when a question comes
    settings |= {
        "policy": memory.policy,
        "seed": memory.seed,
        "dtype": info.dtype,
        "quant": info.quant,
        # Which files of a folder are read shows in the content; the rest of it is said here.
        "read": str(replace(read, password=None, include=(), exclude=())),
    }
    chosen = {"kv_dtype": info.kv_dtype, "latent": memory.latent}
    chosen["recall_from"] = memory.recall_from or TEXT
    settings |= {name: how for name, how in chosen.items() if how not in ("model", NO_LATENT, TEXT)}
    focused = question if memory.policy == FOCUS else None
    adapter = engine.adapter_hash if memory.policy == LEARNED else None
    return Key("", info.revision, engine.tokenizer_hash, settings, adapter, question=focused)


def load_engine(
    memory: MemoryConfig, model: ModelConfig, engine: LanguageModel | None
) -> Generator[Event, None, tuple[MemoryConfig, LanguageModel]]:
    """Load the model if it is not, with a budget that fits; yield what the user should know.

    Returns:
        The settings as they are with this model, and the model.

    Raises:
        OutOfMemory: the model or the smallest budget does not fit.
        BackboneError: it cannot be loaded.
    """
    if engine is None:
        memory, notices = settle_budget(memory, model)
        yield from map(Notice, notices)
        with explained(memory, model):
            engine = load_language_model(model, memory)
    yield Loaded(engine.backbone.info, engine.load_s)
    return memory.settled(engine.backbone), engine


@contextlib.contextmanager
def explained(memory: MemoryConfig, model: ModelConfig) -> Iterator[None]:
    """Say of a lack of memory what would fit."""
    try:
        yield
    except OutOfMemory as error:
        raise describe_shortage(memory, model) from error


def open_parts(
    sources: Sequence[str],
    read: ReadConfig,
    memory: MemoryConfig,
    store: StoreConfig,
    stdin: BinaryIO | None = None,
) -> list[Sources | Manifest]:
    """Open what is named: files, folders, a pipe, and memories where there is no such file.

    Where nothing is looked up later, all of it is one text.
    """
    library, saved = Library(), {}
    for name in sources:
        if name != "-" and not is_path(name):
            with contextlib.suppress(MemoryFileError):
                saved[name] = library.load(library.resolve(name))
    if saved and len(sources) == 1:
        return [saved[sources[0]]]
    can_join = memory.recall and memory.policy != FOCUS
    if saved and not can_join:
        raise ConfigError("several memories can be asked together only with recall")
    opened = open_each([s for s in sources if s not in saved], read, stdin, store.save)
    if not can_join and len(opened) > 1:
        return [join_sources(opened)]
    rest = iter(opened)
    return [saved.get(name) or next(rest) for name in sources] if saved else list(opened)


def _configs(budget: int | str | None, options: dict[str, Any]) -> tuple[MemoryConfig, ModelConfig]:
    """Sort keyword options into the two configurations they belong to."""
    names = {f.name for f in fields(ModelConfig)}
    model = {name: value for name, value in options.items() if name in names}
    memory = {name: value for name, value in options.items() if name not in names}
    unknown = set(memory) - {f.name for f in fields(MemoryConfig)}
    if unknown:
        raise ConfigError(f"unknown option: {', '.join(sorted(unknown))}")
    tokens = parse_budget(budget) if isinstance(budget, str) else budget
    return MemoryConfig(budget_tokens=tokens, **memory), ModelConfig(**model)
