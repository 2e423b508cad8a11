"""A conversation that never runs out of context: a use case, like those of `session`.

What was said is read turn by turn into one memory of a fixed size. For each question passages are
looked up in all that was said and in the sources, and read again on top of it. Yields events and
never prints.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace

from indexmem_cli.asking import answer as answer_question
from indexmem_cli.attached import Attached
from indexmem_cli.config import (
    FOCUS,
    AnswerConfig,
    MemoryConfig,
    ModelConfig,
    ReadConfig,
    StoreConfig,
)
from indexmem_cli.documents import Sources
from indexmem_cli.documents.text import clean
from indexmem_cli.errors import ConfigError, IndexMemError, MemoryFileError, reason
from indexmem_cli.events import Answer, Event, Notice, Progress, Remembered, TokenText
from indexmem_cli.growing import ASSISTANT, NAME, USER, GrowingReading, said
from indexmem_cli.language_model import LanguageModel, for_conversation
from indexmem_cli.library import Library
from indexmem_cli.library.manifest import Key, Manifest
from indexmem_cli.library.saver import CHECKPOINT_S
from indexmem_cli.plan import Plan, room_for_question
from indexmem_cli.session import explained, key_for, load_engine, plan_for
from indexmem_cli.sessions import Session, SessionStore, Turn, content_of, new_id, sessions_folder

LAST = ""
"""Stands for the session that was used last."""
LEAST_QUESTION_TOKENS = 48
"""Room for one sentence, also in a model with a small window."""
_MAX_COST = 1 / 20  # share of the time that saving may take


def open_conversation(
    sources: Sequence[str],
    *,
    memory: MemoryConfig,
    model: ModelConfig,
    save: bool = True,
    resumed: str | None = None,
    given: frozenset[str] = frozenset(),
) -> "Conversation":
    """Begin a conversation, or go on with one; nothing heavy is loaded, and nothing written yet.

    Args:
        sources: files, folders and saved memories to look through too.
        save: keep it on the disk.
        resumed: id of a session, or the first letters of one, or `LAST`.
        given: of `model` and `budget`, what is meant to replace what the session was begun with.

    Raises:
        IndexMemError: a source cannot be read, or there is no such session, or it is open
            elsewhere.
    """
    if memory.policy == FOCUS:
        raise ConfigError("a conversation cannot be read with one question in mind")
    notices: list[str] = []
    try:
        store = SessionStore(sessions_folder() if save or resumed is not None else None)
    except OSError as error:
        notices.append(f"this conversation is not saved: {reason(error)}")
        save, store = False, SessionStore(None)
    stored = None
    if resumed is None:
        session = Session(new_id(), model.model, memory.budget_tokens)
    else:
        session = stored = store.last() if resumed == LAST else store.resolve(resumed)
        if "model" not in given:
            model = replace(model, model=session.model)
        if "budget" not in given:
            memory = replace(memory, budget_tokens=session.budget_tokens)
        session = replace(session, model=model.model, budget_tokens=memory.budget_tokens)
    attached = Attached(StoreConfig(save=save))
    talk = Conversation(store, session, memory, model, save, _attached=attached, _stored=stored)
    try:
        talk._enter()
        talk._notices += [*notices, *attached.open_known(session.sources, memory)]
        attached.open_new(sources, memory)
    except BaseException:
        talk.close()
        raise
    return talk


@dataclass
class Conversation:
    """Turns of a user and a model, and what is looked through for them. `open_conversation`."""

    store: SessionStore
    session: Session
    memory: MemoryConfig
    model: ModelConfig
    save_turns: bool
    """Whether anything goes to the disk."""
    library: Library = field(default_factory=Library)
    num_turns: int = 0
    """Turns so far, those of earlier days included."""
    _number: int = 0
    """That of the last turn; one that could not be written leaves its number free."""
    _stored: Session | None = None
    """The session as the store has it; None in a new one."""
    _attached: Attached = field(kw_only=True)
    _notices: list[str] = field(default_factory=list)
    _engine: LanguageModel | None = None
    _prompted: LanguageModel | None = None
    _growing: GrowingReading | None = None
    _is_broken: bool = False
    """Whether reading failed on the way, so that the memory may not be of what was said."""
    _lock: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _saved_at_s: float = field(default_factory=time.monotonic)
    _cost_s: float = 0.0

    @property
    def remembered(self) -> list[Remembered]:
        """The memory of the conversation, and of each source that was read."""
        readings = [self._growing] if self._growing else []
        return [reading.remembered for reading in (*readings, *self._attached.readings.values())]

    @property
    def sources(self) -> list[str]:
        """What is looked through besides the conversation."""
        return list(self._attached.names)

    def start(self) -> Iterator[Event]:
        """Load the model, and read what is not read yet: sources, and turns of earlier days."""
        while self._notices:
            yield Notice(self._notices.pop(0))
        yield from self._prepare()

    def _prepare(self) -> Iterator[Event]:
        yield from self._load()
        yield from self._attached.read(self.memory, self.model, self._engine)
        with explained(self.memory, self.model):
            if self._growing is None or self._is_broken:
                yield from self._recollect()
            yield from self._catch_up()
        # Only what worked is written down; a source that is not there now may be back another day.
        sources = tuple(dict.fromkeys([*self.session.sources, *self.sources]))
        self.session = replace(self.session, sources=sources)
        if self.num_turns and self.session != self._stored:
            self._put()

    def _load(self) -> Iterator[Event]:
        self.memory, self._engine = yield from load_engine(self.memory, self.model, self._engine)
        # What `auto` came to is what the conversation has from now on.
        self.session = replace(self.session, budget_tokens=self.memory.budget_tokens)

    def ask(self, message: str, config: AnswerConfig) -> Iterator[Event]:
        """Take in what the user says, and answer; the answer comes last.

        Stopping early keeps the turn with what was answered so far.

        Raises:
            ConfigError: the message is empty.
        """
        message = clean(message.replace("\r\n", "\n").replace("\r", "\n")).strip()
        if not message:
            raise ConfigError("the question is empty", "say what you want to know")
        yield from self.start()
        with explained(self.memory, self.model):
            yield from self._take_turn(message, config)
        yield from self._save_if_due()

    def _take_turn(self, message: str, config: AnswerConfig) -> Iterator[Event]:
        talk, engine = self._talk, self._talking
        turn = Turn(self._number + 1, time.time(), message)
        self._number, self.num_turns = turn.number, self.num_turns + 1
        self._record(turn)
        text, answer, question = "", None, self._queue_body(turn)
        try:
            yield from self._catch_up()
            closing = engine.prompt.closing(engine.tokenizer.encode(question))
            readings = [talk, *self._attached.readings.values()]
            for event in answer_question(
                engine, readings, question, closing, self.memory, config, (), from_first=True
            ):
                text += event.text if isinstance(event, TokenText) else ""
                answer = event if isinstance(event, Answer) else None
                yield event
        finally:
            if answer is not None:
                places = tuple(asdict(source) for source in answer.sources)
                turn = replace(turn, answer=answer.text, stop=answer.stop, sources=places)
            turn = replace(turn, answer=turn.answer or text.strip())
            self._record(turn)
            was_behind = talk.is_behind
            self._queue_rest(turn, question)
            if not was_behind:  # else it was stopped in the middle of a long message
                for _ in self._read_on():
                    pass
            self._note_read()

    def add(self, sources: Sequence[str]) -> Iterator[Event]:
        """Look through more sources from now on; they are read at once.

        Raises:
            DocumentError: one cannot be read.
        """
        self._attached.open_new(sources, self.memory)
        yield from self.start()

    def set_budget(self, tokens: int) -> Iterator[Event]:
        """Keep more or fewer tokens from now on: what was said is read again.

        Raises:
            ConfigError: it cannot hold what always stays.
        """
        yield from self._load()
        memory = replace(self.memory, budget_tokens=tokens)
        self._make_plan(memory)
        self.memory = memory
        self._growing = None
        yield from self.start()

    def save(self) -> Manifest:
        """Save the memory of the conversation now.

        Raises:
            IndexMemError: nothing of it is to be saved, or it cannot be.
        """
        if not self.save_turns or not self.num_turns:
            why = "--no-save is given" if self.num_turns else "nothing was said yet"
            raise ConfigError(f"there is nothing to save: {why}")
        for event in self._prepare():
            if isinstance(event, Notice):
                self._notices.append(event.message)
        started = time.monotonic()
        key, title = self._key(), f"chat {self.session.id}"
        try:
            manifest = self._talk.save(self.library, key, self._talking.name, title)
        except OSError as error:
            raise MemoryFileError(
                f"the memory of this conversation is not saved: {reason(error)}",
                "look at the free disk space; what was said is read again next time",
            ) from error
        finally:
            self._saved_at_s = time.monotonic()
            self._cost_s = self._saved_at_s - started
        return manifest

    def clear(self) -> list[str]:
        """Leave this conversation and begin a new one with the same sources; as `close`."""
        notices = self._leave()
        self.session = Session(
            new_id(), self.model.model, self.memory.budget_tokens, self.session.sources
        )
        self._growing, self.num_turns = None, 0
        self._enter()
        return notices

    def close(self, save: bool = True) -> list[str]:
        """Leave the conversation; return what the user should know.

        Args:
            save: save its memory; else what was said is read again next time.
        """
        notices = self._leave(save)
        self.store.close()
        return notices

    def _enter(self) -> None:
        self._lock.enter_context(self.store.lock(self.session.id))
        self.num_turns = self.session.turns

    def _leave(self, save: bool = True) -> list[str]:
        talk = self._growing
        try:
            is_behind = talk and not self._is_broken and talk.saved_turns < self.num_turns
            if save and self.save_turns and is_behind:
                self.save()
        except IndexMemError as error:
            self._notices.append(error.message)
        finally:
            self._lock.close()
        notices, self._notices = self._notices, []
        return notices

    def _recollect(self) -> Iterator[Event]:
        """Take over the saved memory, or begin one; turns that are not in it are queued."""
        from indexmem_cli.engine import make_reader

        plan, notices = self._make_plan(self.memory)
        yield from map(Notice, notices)
        engine, manifest, key = self._talking, None, self._key()
        room = room_for_question(engine.backbone.info.window_tokens)
        room = max(LEAST_QUESTION_TOKENS, room - len(engine.prompt.closing([])))
        turns = self.store.turns(self.session.id)
        if self.save_turns and turns:
            try:
                manifest = self.library.find(key)
            except MemoryFileError as error:
                yield Notice(f"{error.message}: what was said is read again")
        for saved in (manifest, None):
            reader = make_reader(engine.backbone, plan, self.memory, [])
            prompt = engine.tokenizer, engine.prompt.opening
            talk = GrowingReading(Sources(name=NAME), reader, *prompt, self.memory.recall_from)
            talk.question_tokens = room
            try:
                talk.resume(self.library, saved) if saved else talk.begin()
            except MemoryFileError as error:
                yield Notice(f"{error.message}: what was said is read again")
            else:
                if talk.turns <= len(turns):
                    break
        self._growing, self._is_broken = talk, False
        self.num_turns, self._number = len(turns), turns[-1].number if turns else 0
        for turn in turns[talk.turns :]:
            self._queue_rest(turn, self._queue_body(turn))

    def _catch_up(self) -> Iterator[Event]:
        """Read what is queued."""
        talk, started, tokens = self._talk, time.perf_counter(), 0
        for num in self._read_on():
            tokens += num
            fraction = talk.turns / (self.num_turns or 1)
            yield Progress(NAME, tokens, fraction, time.perf_counter() - started)
        self._note_read()

    def _read_on(self) -> Iterator[int]:
        """Read what is queued; after a failure all that was said is read again, the next time."""
        try:
            yield from self._talk.read()
        except IndexMemError:
            self._is_broken = True
            raise

    def _note_read(self) -> None:
        """From now on what was read counts as known."""
        for reading in (self._talk, *self._attached.readings.values()):
            reading.seconds, reading.tokens_reused = 0.0, reading.tokens

    def _queue_body(self, turn: Turn) -> str:
        """Queue what comes before the question of a long message; return the question."""
        body, question = self._talk.split(turn.question)
        self._talk.add(said(turn, USER, body), ends_turn=False)
        return question

    def _queue_rest(self, turn: Turn, question: str) -> None:
        whole = [*said(turn, USER, question), *said(turn, ASSISTANT, turn.answer)]
        self._talk.add(whole, ends_turn=True)

    def _record(self, turn: Turn) -> None:
        """Write a turn down, as far as the disk lets."""
        if self._put():
            try:
                self.store.put_turn(self.session.id, turn)
            except OSError as error:
                self._notices.append(f"what was said is not saved: {reason(error)}")

    def _put(self) -> bool:
        """Write down what the session is; say whether that could be done."""
        try:
            self.store.put(self.session)
        except OSError as error:
            self._notices.append(f"this conversation is not saved: {reason(error)}")
            return False
        self._stored = self.session
        return True

    def _save_if_due(self) -> Iterator[Event]:
        waited_s = time.monotonic() - self._saved_at_s
        if self.save_turns and waited_s > max(CHECKPOINT_S, self._cost_s / _MAX_COST):
            try:
                self.save()
            except (OSError, IndexMemError) as error:
                yield Notice(str(error))

    @property
    def _talk(self) -> GrowingReading:
        """The memory of the conversation."""
        assert self._growing is not None, "`start` makes it"
        return self._growing

    @property
    def _talking(self) -> LanguageModel:
        """The model with the prompt of a conversation."""
        assert self._engine is not None, "`start` loads it"
        if self._prompted is None or self._prompted.backbone is not self._engine.backbone:
            self._prompted = for_conversation(self._engine, self.model)
        return self._prompted

    def _make_plan(self, memory: MemoryConfig) -> tuple[Plan, list[str]]:
        return plan_for(memory, self._talking, 0)

    def _key(self) -> Key:
        """All that the memory of the conversation depends on."""
        plan, _ = self._make_plan(self.memory)
        key = key_for(self.memory, ReadConfig(), self._talking, plan, "")
        return replace(key, content=content_of(self.session.id))
