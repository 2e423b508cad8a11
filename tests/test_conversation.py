"""Conversations with a tiny model of random weights: what is read, kept, saved and found again."""

import contextlib
import json
import shutil
import sqlite3
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from families import Full
from typer.testing import CliRunner

from indexmem_cli import fitting
from indexmem_cli.checkpoint import find_checkpoint
from indexmem_cli.cli.app import app
from indexmem_cli.config import AnswerConfig, MemoryConfig, ModelConfig
from indexmem_cli.conversation import LAST, Conversation, open_conversation
from indexmem_cli.errors import (
    BackboneError,
    ConfigError,
    DocumentError,
    LockTimeout,
    MemoryFileError,
    OutOfMemory,
)
from indexmem_cli.estimate import estimate_need, read_weights
from indexmem_cli.events import Answer, Notice, Progress, TokenText
from indexmem_cli.library import Library
from indexmem_cli.machine import Machine
from indexmem_cli.session import Memory
from indexmem_cli.sessions import Session, SessionStore, Turn, sessions_folder

SAID = [f"The quick brown fox number {number} jumps over the lazy dog." for number in range(6)]


@pytest.fixture(autouse=True)
def _one_moment(monkeypatch):
    """The time stands in the text: two conversations are equal only within a minute."""
    monkeypatch.setattr("indexmem_cli.conversation.time.time", lambda: 1.7e9)


@pytest.fixture
def begin(tiny_model_dir):
    """A function that opens a conversation with the tiny model; all are closed at the end."""
    opened: list[Conversation] = []

    def open_one(sources=(), **options) -> Conversation:
        memory = MemoryConfig(budget_tokens=options.pop("budget", 128), chunk_tokens=32)
        folder = options.pop("model", tiny_model_dir)
        model = ModelConfig(str(folder), device="cpu", offline=True)
        talk = open_conversation(list(map(str, sources)), memory=memory, model=model, **options)
        if opened:  # the same weights, loaded once
            talk._engine = next((t._engine for t in opened if t._engine), None)
        opened.append(talk)
        return talk

    yield open_one
    for talk in opened:
        talk.close(save=False)


def ask(talk: Conversation, message: str) -> list:
    return list(talk.ask(message, AnswerConfig(max_tokens=4)))


def hear(talk: Conversation, messages=SAID) -> None:
    for message in messages:
        ask(talk, message)


def answers_of(talk: Conversation) -> list[str]:
    return [turn.answer for turn in talk.store.turns(talk.session.id)]


def kept(talk: Conversation) -> list[torch.Tensor]:
    """Keys and positions of the memory, layer by layer."""
    layers = talk._growing.reader.state.managed
    parts = [part[:, :, : layer.held] for layer in layers for part in (layer.keys, layer.positions)]
    return [*parts, torch.tensor(talk._growing.chain.tokens)]


def same(ours, theirs) -> bool:
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


def lose(talk: Conversation, messages, monkeypatch) -> None:
    """Say something that cannot be written down, because the disk is full."""

    def full(*_):
        raise OSError("full")

    with monkeypatch.context() as patch:
        patch.setattr(SessionStore, "put_turn", full)
        hear(talk, messages)


def on_disk() -> Session:
    """The session that was used last, as another process would find it."""
    with contextlib.closing(SessionStore(sessions_folder())) as store:
        return store.last()


def text_of(talk: Conversation) -> str:
    archive = talk._growing.archive
    return "".join(archive.text(block) for block in archive)


def notices_of(events) -> str:
    return " ".join(event.message for event in events if isinstance(event, Notice))


def test_the_memory_never_outgrows_its_budget(begin):
    talk = begin()
    for message in SAID:
        answer = ask(talk, message)[-1]
        assert isinstance(answer, Answer)
        assert answer.memory.kv_tokens <= 128
    assert answer.memory.full_kv_tokens > 2 * 128
    assert answer.coverage.messages_read == len(SAID) - 1  # the last one was being answered
    assert talk._growing.reader.state.held == 128
    assert all(said in text_of(talk) for said in SAID)


def test_what_was_said_is_cited_with_turn_time_and_speaker(begin):
    talk = begin()
    hear(talk)
    [found] = [
        entry.place
        for block in talk._growing.archive
        for entry in block.entries
        if "number 3" in talk._growing.archive.text_of(entry) and entry.place.author == "user"
    ]
    assert (found.file, found.member, found.line) == ("conversation", "turn 4", 4)
    assert found.time and len(found.time) == len("2024-03-05 14:02")


def test_an_old_turn_is_looked_up_and_read_again(begin):
    talk = begin()
    hear(talk, ["The spare key is under the blue stone.", *SAID])
    answer = ask(talk, "Where is the spare key?")[-1]
    blocks = [talk._growing.archive.block(b.number) for r in answer.recall for b in r.blocks]
    assert "blue stone" in "".join(map(talk._growing.archive.text, blocks))


def test_a_question_is_not_found_by_its_own_words(begin):
    talk = begin()
    hear(talk, ["Where is Zanzibar? And Timbuktu?", "Zanzibar is far. Is it?"])
    archive = talk._growing.archive
    assert not archive.places_of(["timbuktu"], 9)
    assert len(archive.places_of(["zanzibar"], 9)) == 1
    assert "Timbuktu" in text_of(talk)


def test_a_session_that_goes_on_is_as_if_it_had_never_been_closed(begin):
    open_all_along, first = begin(save=False), begin()
    hear(open_all_along)
    hear(first, SAID[:3])
    assert first.close() == []
    again = begin(resumed=first.session.id)
    events = list(again.start())
    assert not [event for event in events if isinstance(event, Progress)], "something was read"
    hear(again, SAID[3:])
    assert again.num_turns == len(SAID)
    assert answers_of(again) == answers_of(open_all_along)
    assert same(kept(again), kept(open_all_along))
    assert again._growing.chain.links == open_all_along._growing.chain.links


def test_what_a_killed_session_had_not_saved_is_read_again(begin):
    talk = begin()
    hear(talk, SAID[:2])
    talk.save()
    hear(talk, SAID[2:4])
    before = kept(talk)
    talk.close(save=False)
    again = begin(resumed=LAST)
    assert [event for event in again.start() if isinstance(event, Progress)]
    assert again._growing.saved_turns == 2
    assert same(kept(again), before)


def test_a_damaged_memory_is_made_again_from_what_was_said(begin):
    talk = begin()
    hear(talk, SAID[:3])
    before = kept(talk)
    talk.close()
    [state] = Library().root.glob("*/state-*")
    state.write_bytes(b"x" * state.stat().st_size)
    again = begin(resumed=talk.session.id)
    assert "is damaged" in notices_of(again.start())
    assert same(kept(again), before)


def test_a_turn_that_is_stopped_is_kept_with_what_was_answered(begin):
    talk = begin()
    hear(talk, SAID[:1])
    events = talk.ask(SAID[1], AnswerConfig(max_tokens=50))
    pieces = (event.text for event in events if isinstance(event, TokenText))
    text = "".join(next(pieces) for _ in range(20))
    events.close()
    turn = talk.store.turns(talk.session.id)[-1]
    assert (turn.stop, turn.answer) == ("stopped", text.strip())
    assert SAID[1] in text_of(talk)
    assert talk._growing.turns == 2
    assert ask(talk, SAID[2])[-1].coverage.messages_read == 2


def test_a_long_message_is_read_in_chunks_before_its_last_paragraph_is_answered(begin):
    talk = begin()
    log = "\n".join(SAID * 4)
    events = ask(talk, f"{log}\n\nWhich fox?")
    read = [event.tokens_read for event in events if isinstance(event, Progress)]
    assert len(read) > 10 and read == sorted(read)
    assert events[-1].recall[0].query == "Which fox?"
    assert events[-1].memory.kv_tokens <= 128
    assert talk.store.turns(talk.session.id)[0].question.endswith("Which fox?")


def test_a_long_message_that_is_stopped_is_read_on_with_the_next(begin):
    stopped = begin(save=False)
    log = "\n".join(SAID * 4)
    events = stopped.ask(f"{log}\n\nWhich fox?", AnswerConfig(max_tokens=4))
    next(event for event in events if isinstance(event, Progress))
    events.close()
    assert stopped._growing.turns == 0
    ask(stopped, "Go on.")
    assert stopped._growing.turns == 2
    assert all(text_of(stopped).count(said) == 4 for said in SAID)


@pytest.mark.parametrize("message", ["x" * 900, "word " * 300, "one\ntwo " * 90])
def test_no_message_is_too_long(begin, message):
    talk = begin(save=False)
    assert isinstance(ask(talk, message)[-1], Answer)
    body, question = talk._growing.split(message)
    assert body + question == message or body + "\n" + question == message
    assert 0 < len(talk._engine.tokenizer.encode(question)) <= talk._growing.question_tokens


def test_sources_are_looked_through_with_what_was_said(begin, tmp_path):
    book = tmp_path / "book.txt"
    book.write_text("\n".join(["The mill of Zanzibar passes to Ruth.", *SAID]))
    talk = begin([book])
    hear(talk, ["My cat is called Moritz."])
    for question, file in (("Who has the mill of Zanzibar?", str(book)), ("Moritz?", None)):
        held = talk._growing.reader.state.held
        answer = ask(talk, question)[-1]
        assert answer.memory.kv_tokens == held, "answered without what was kept of the talk"
        recalled = [b.file for r in answer.recall for b in r.blocks]
        assert (file or "conversation") in recalled
    assert talk.close() == []
    again = begin(resumed=LAST)
    list(again.start())
    assert again.sources == [str(book)]
    assert again.remembered[1].tokens_reused == again.remembered[1].tokens > 0


def test_sources_can_be_added_and_lost(begin, tmp_path):
    book, talk = tmp_path / "book.txt", begin()
    book.write_text("The mill passes to Ruth.\n")
    hear(talk, SAID[:1])
    with pytest.raises(DocumentError, match="no such file"):
        list(talk.add([str(tmp_path / "nothing.txt")]))
    list(talk.add([str(book)]))
    assert ask(talk, "Who?")[-1].coverage.files_read == 2
    talk.close()
    book.unlink()
    again = begin(resumed=talk.session.id)
    assert "not looked through this time" in notices_of(again.start())
    assert again.sources == []
    again.close()
    book.write_text("The mill passes to Ruth.\n")
    assert begin(resumed=talk.session.id).sources == [str(book)]


def test_a_session_stays_as_it_was_until_what_is_asked_of_it_works(begin, tmp_path, monkeypatch):
    book = tmp_path / "book.txt"
    book.write_text("The mill passes to Ruth.\n")
    talk = begin([book])
    hear(talk, SAID[:1])
    talk.close()
    before = on_disk()
    monkeypatch.setattr("time.time", lambda: 1.8e9)
    for wrong, error in (({"model": "no/such-typo"}, BackboneError), ({"budget": 16}, ConfigError)):
        again = begin(resumed=LAST, given=frozenset(wrong), **wrong)
        again._engine = None  # the one that was loaded would do for any name
        with pytest.raises(error):
            list(again.start())
        again.close()
        assert on_disk() == before
    book.unlink()
    list(begin(resumed=LAST, given=frozenset({"budget"}), budget=160).start())
    assert on_disk() == replace(before, budget_tokens=160, used_s=1.8e9)


@pytest.mark.parametrize("kind", [LockTimeout, OutOfMemory, DocumentError])
def test_a_talk_goes_on_without_a_source_of_earlier_days(begin, tmp_path, monkeypatch, kind):
    (tmp_path / "book.txt").write_text("The mill passes to Ruth.\n")
    talk = begin([tmp_path / "book.txt"])
    hear(talk, SAID[:1])
    talk.close()
    again = begin(resumed=LAST)
    monkeypatch.setattr(Memory, "ingest", lambda _: (_ for _ in ()).throw(kind("not now")))
    told = notices_of(ask(again, SAID[1]))
    assert "book.txt is not looked through this time: not now" in told
    assert again.sources == []
    assert on_disk().sources == (str(tmp_path / "book.txt"),)


def test_a_source_that_cannot_be_read_is_let_go(begin, tmp_path, monkeypatch):
    (tmp_path / "book.txt").write_text("The mill passes to Ruth.\n")
    talk = begin()
    hear(talk, SAID[:1])
    with monkeypatch.context() as patch:
        patch.setattr(Memory, "ingest", lambda _: (_ for _ in ()).throw(DocumentError("damaged")))
        events = talk.add([str(tmp_path / "book.txt")])
        told = next(event.message for event in events if isinstance(event, Notice))
        assert told.endswith("book.txt is not looked through")
        with pytest.raises(DocumentError, match="damaged"):
            next(events)
    assert talk.sources == [] == list(talk.store.all()[0].sources)
    assert isinstance(ask(talk, SAID[1])[-1], Answer)


def test_another_budget_reads_what_was_said_again(begin):
    talk = begin()
    hear(talk)
    talk.save()
    with pytest.raises(ConfigError, match="cannot hold"):
        list(talk.set_budget(16))
    assert talk._growing.reader.state.held == 128
    list(talk.set_budget(160))
    assert talk._growing.reader.state.held == 160
    talk.close()
    assert begin(resumed=talk.session.id).memory.budget_tokens == 160
    assert len(Library().ids()) == 1, "the memory of the old budget is still there"


def test_a_budget_of_auto_is_settled_once_for_the_whole_conversation(
    begin, tiny_model_dir, tmp_path, monkeypatch
):
    folder = shutil.copytree(tiny_model_dir, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["max_position_embeddings"] = 2048
    (folder / "config.json").write_text(json.dumps(config))
    checkpoint, memory, model = find_checkpoint(str(folder)), MemoryConfig("auto", 32), "tiny"
    need = estimate_need(checkpoint, read_weights(checkpoint), memory, ModelConfig(model), False)
    free = int((need.total_bytes - need.kv_bytes / 2) / fitting.SPARE)
    monkeypatch.setattr(fitting, "look_at_machine", lambda: Machine(2 * free, free, (), None))
    talk = begin(budget="auto", model=folder)
    assert "are free" in notices_of(ask(talk, SAID[0]))
    budget = talk.memory.budget_tokens
    assert 256 <= budget < need.budget_tokens
    talk.close()
    assert begin(resumed=talk.session.id).memory.budget_tokens == budget


def test_a_lack_of_memory_is_answered_with_what_fits(begin, monkeypatch):
    nothing = Machine(2**30, 1000, (), None)
    with monkeypatch.context() as patch:
        patch.setattr(fitting, "look_at_machine", lambda: nothing)
        with pytest.raises(OutOfMemory, match="needs about .* are free"):
            list(begin(budget="auto").start())
    talk = begin()
    list(talk.start())
    Full(talk._engine.backbone, monkeypatch, room=0)
    with pytest.raises(OutOfMemory, match="needs about .* are free") as shortage:
        ask(talk, SAID[0])
    assert shortage.value.hint.startswith("these fit: --kv-dtype int8")


def test_a_new_conversation_begins_without_what_was_said(begin):
    talk = begin()
    hear(talk, SAID[:2])
    old = talk.session.id
    assert talk.clear() == []
    hear(talk, SAID[2:3])
    assert talk.session.id != old and talk.num_turns == 1
    assert SAID[0] not in text_of(talk)
    assert {session.turns for session in talk.store.all()} == {1, 2}


def test_two_processes_cannot_have_one_session(begin):
    talk = begin()
    hear(talk, SAID[:1])
    with pytest.raises(LockTimeout, match="open in another process"):
        begin(resumed=talk.session.id)


def test_nothing_is_written_of_a_conversation_that_is_not_saved(begin, tmp_path):
    talk = begin(save=False)
    hear(talk, SAID[:2])
    assert talk.close() == []
    assert not [path for path in (tmp_path / "home").rglob("*") if path.is_file()]


def test_a_disk_that_cannot_be_written_does_not_end_the_talk(begin, monkeypatch):
    talk = begin()
    hear(talk, SAID[:1])
    error = OSError("No space left on device")

    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr(SessionStore, "put_turn", full)
    events = ask(talk, SAID[1])
    assert isinstance(next(e for e in events if isinstance(e, Answer)), Answer)
    assert "No space left" in notices_of(ask(talk, SAID[2]))
    assert SAID[1] in text_of(talk)

    monkeypatch.setattr(SessionStore, "put", full)
    assert "No space left" in notices_of([*talk.set_budget(160), *ask(talk, SAID[3])])
    assert talk.close(save=False) is not talk._notices == []


def test_a_turn_that_could_not_be_written_leaves_its_number_free(begin, monkeypatch):
    talk = begin()
    hear(talk, SAID[:1])
    lose(talk, SAID[1:2], monkeypatch)
    hear(talk, SAID[2:3])
    talk.close()
    again = begin(resumed=talk.session.id)
    hear(again, SAID[3:4])
    turns = [(turn.number, turn.question) for turn in again.store.turns(again.session.id)]
    assert turns == [(1, SAID[0]), (3, SAID[2]), (4, SAID[3])]


def test_what_is_saved_is_not_saved_again_because_a_turn_was_lost(begin, monkeypatch):
    talk = begin()
    hear(talk, SAID[:1])
    lose(talk, SAID[1:2], monkeypatch)
    hear(talk, SAID[2:3])
    talk.close()
    saved = []
    for _ in range(2):
        again = begin(resumed=LAST)
        list(again.start())
        assert again.num_turns == on_disk().turns == 2
        again.close()
        saved.append(list(Library().manifests()))
    assert saved[0] == saved[1]


def test_a_notice_is_not_lost_while_the_memory_is_saved(begin, monkeypatch):
    talk = begin()
    lose(talk, SAID[:1], monkeypatch)
    talk.save()
    assert "what was said is not saved: full" in notices_of(ask(talk, SAID[1]))


def test_what_saving_has_to_say_is_said(begin):
    talk = begin()
    hear(talk, SAID[:1])
    talk.close()
    [state] = Library().root.glob("*/state-*")
    state.write_bytes(b"x" * state.stat().st_size)
    again = begin(resumed=LAST)
    again.save()
    assert "is damaged" in " ".join(again.close())


def test_what_failed_to_be_read_is_read_after_all(begin, monkeypatch):
    talk = begin()
    hear(talk, SAID[:2])
    with monkeypatch.context() as patch:
        Full(talk._engine.backbone, patch, room=0)
        with pytest.raises(OutOfMemory):
            ask(talk, SAID[2])
    hear(talk, SAID[3:5])
    assert all(said in text_of(talk) for said in SAID[:5])
    before = kept(talk)
    talk.close(save=False)
    again = begin(resumed=talk.session.id)
    list(again.start())
    assert same(before, kept(again))


class TestStore:
    def test_what_is_put_in_comes_out(self):
        store = SessionStore(sessions_folder())
        session = Session("abcdef012345", "tiny", None, ("book.txt",))
        turn = Turn(1, 5.0, "Who?\nAnd why?", "Ruth", "end", ({"file": "b", "page": 3},))
        store.put(session)
        store.put_turn(session.id, turn)
        store.put_turn(session.id, replace(turn, answer="Ada"))
        store.close()
        store = SessionStore(sessions_folder())
        [found] = store.all()
        assert (found.id, found.sources, found.turns) == (session.id, ("book.txt",), 1)
        assert found.title == "Who? And why?"
        assert store.turns(session.id) == [replace(turn, answer="Ada")]
        assert store.questions(5) == ["Who?\nAnd why?"]
        assert store.resolve("abcd").id == store.last().id == session.id

    def test_it_is_its_owners_alone(self):
        store = SessionStore(sessions_folder())
        with store.lock("abcdef012345"):
            modes = {
                path.name: stat.S_IMODE(path.stat().st_mode) for path in sessions_folder().iterdir()
            }
        assert modes == {"sessions.sqlite": 0o600, ".locks": 0o700}
        assert stat.S_IMODE(sessions_folder().stat().st_mode) == 0o700

    @pytest.mark.parametrize("name", ["abc", "ffff", "abcde"])
    def test_a_name_that_means_no_one_session(self, name):
        store = SessionStore(None)
        for end in "01":
            store.put(Session(f"abcde000000{end}", "tiny", None))
        with pytest.raises(MemoryFileError, match="session"):
            store.resolve(name)

    def test_a_damaged_file_and_one_of_another_version_are_named(self):
        sessions_folder().mkdir(parents=True)
        path = sessions_folder() / "sessions.sqlite"
        path.write_bytes(b"x" * 4096)
        with pytest.raises(MemoryFileError, match=r"sessions\.sqlite"):
            SessionStore(sessions_folder())
        path.unlink()
        SessionStore(sessions_folder()).close()
        with sqlite3.connect(path) as other:
            other.execute("PRAGMA user_version = 9")
        other.close()
        with pytest.raises(MemoryFileError, match="version 1"):
            SessionStore(sessions_folder())


class TestCommand:
    @pytest.fixture
    def session(self, begin) -> str:
        talk = begin()
        hear(talk, SAID[:2])
        talk.close()
        return talk.session.id

    def run(self, *args: str):
        return CliRunner().invoke(app, ["sessions", *args])

    def test_list_and_show(self, session):
        listed = json.loads(self.run("list", "--json").stdout)["sessions"]
        assert [(each["id"], each["turns"]) for each in listed] == [(session, 2)]
        assert self.run("list", "-q").stdout == f"{session}\n"
        assert SAID[0] in self.run("list").stdout
        assert SAID[1] in self.run("show", session[:5]).stdout
        messages = json.loads(self.run("show", session, "--json").stdout)["messages"]
        assert [message["role"] for message in messages] == ["user", "assistant"] * 2

    def test_what_is_exported_can_be_asked(self, session, tmp_path, monkeypatch, begin):
        monkeypatch.chdir(tmp_path)
        assert self.run("export", session).exit_code == 0
        assert self.run("export", session).exit_code == 2, "a file was replaced"
        assert self.run("export", session, "--markdown", "-o", "talk.md").exit_code == 0
        assert SAID[0] in Path("talk.md").read_text()
        talk = begin([f"{session}.json"], save=False)
        list(talk.start())
        [read] = talk._attached.readings.values()
        [place] = {
            (entry.place.author, entry.place.unit)
            for entry in read.archive.block(0).entries
            if "number 0" in read.archive.text_of(entry)
        }
        assert place[0] == "user"
        assert isinstance(ask(talk, "Which number?")[-1], Answer)

    def test_rm_takes_the_memory_too(self, session):
        assert self.run("rm", session).exit_code == 2, "removed without a yes"
        assert self.run("rm", session, "--dry-run").exit_code == 0
        assert len(Library().ids()) == 1
        assert self.run("rm", session, "--yes").exit_code == 0
        assert Library().ids() == []
        assert self.run("show", session).exit_code == 4

    def test_looking_makes_no_file(self, tmp_path):
        assert "0 sessions" in self.run("list").stdout
        assert not sessions_folder().exists()

    def test_one_that_is_open_elsewhere_stays(self, begin):
        talk = begin()
        hear(talk, SAID[:1])
        result = self.run("rm", talk.session.id, "--yes")
        assert result.exit_code == 7
        assert "open in another process" in result.stderr
