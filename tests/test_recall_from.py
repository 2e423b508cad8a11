"""Memories that store keys and values for recall: read, found again, continued, damaged, moved."""

import shutil

import pytest
from saved import full_disk
from test_reading import LINES

from indexmem_cli import Memory, session
from indexmem_cli.config import AnswerConfig, MemoryConfig, ModelConfig, ReadConfig, StoreConfig
from indexmem_cli.conversation import open_conversation
from indexmem_cli.errors import ConfigError, MemoryFileError
from indexmem_cli.events import Notice, Progress
from indexmem_cli.library import CHECKPOINT, MANIFEST, Library
from indexmem_cli.library.listing import describe
from indexmem_cli.library.saver import Saver
from indexmem_cli.library.transfer import export_memory, import_memory, verify_memory

FACTS = {7: "The lighthouse keeper is called Ruth", 90: "A mill stands by the old bridge"}
TEXT = "".join(f"Line {n}: {FACTS.get(n, 'the quick brown fox jumps')}.\n" for n in range(120))
QUESTION = "What is the lighthouse keeper called?"
OPTIONS = {"budget": 160, "chunk_tokens": 32, "offline": True}


def open_memory(book, model, form="int8", save=True, **options):
    options = {**OPTIONS, "model": str(model), "recall_from": form} | options
    return Memory.read(book, save=save, **options)


def told(memory, question=QUESTION):
    """Ask; return the answer and what was told on the way."""
    *events, answer = memory.events(question, AnswerConfig(max_tokens=4))
    return answer, [event.message for event in events if isinstance(event, Notice)]


def stored_of(memory):
    """All that is stored of the text, and the memory's manifest."""
    [reading] = memory.readings
    shards = reading.reader.stored.shards
    return shards.read(0, shards.end), reading.manifest


def shards_of(manifest):
    return [Library().folder(manifest.id) / name for name in manifest.states[-1].shards]


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_one_reading_serves_every_question_from_keys_and_values(book, tiny_model_dir, form):
    first, said = told(open_memory(book, tiny_model_dir, form))
    assert not said and first.recall[0].blocks and first.sources
    memory = open_memory(book, tiny_model_dir, form)
    again, said = told(memory)
    assert not said and again.text == first.text and again.sources == first.sources
    assert again.memories[0].tokens_reused == again.memories[0].tokens
    stored, manifest = stored_of(memory)
    bits = {"int8": 8, "int4": 4}[form]
    # 2 layers of 2 heads with 16 numbers in keys and in values, and a scale for each vector.
    tokens = memory.readings[0].reader.state.seen
    assert len(stored) == tokens * 8 * (16 * bits // 8 + 2)
    assert manifest.num_bytes > len(stored) and manifest.recall_from == form
    assert describe(Library(), manifest.id).recall_from == form
    assert describe(Library(), manifest.id).num_bytes > len(stored)


def test_passages_are_not_read_again(book, tiny_model_dir, monkeypatch):
    from indexmem_cli.backbone import Backbone

    memory = open_memory(book, tiny_model_dir)
    told(memory)
    read = []
    monkeypatch.setattr(Backbone, "read", lambda self, ids, *_: read.append(ids))
    answer, _ = told(memory)
    assert answer.recall[0].blocks and read == []


def test_sources_and_rounds_are_those_of_the_text(book, tiny_model_dir):
    text, int8 = (told(open_memory(book, tiny_model_dir, form))[0] for form in ("text", "int8"))
    assert int8.recall == text.recall and int8.coverage == text.coverage
    assert 8 in {line for s in int8.sources for line in range(s.line_start, s.line_end + 1)}


def test_each_form_has_a_memory_of_its_own_and_text_is_the_default(book, tiny_model_dir):
    ids = [
        told(open_memory(book, tiny_model_dir, form))[0].memories[0].id
        for form in ("text", None, "int8", "int4")
    ]
    assert ids[0] == ids[1] and len(set(ids)) == 3
    assert not any(Library().load(ids[0]).states[-1].shards)


def test_a_saved_memory_is_asked_from_what_it_has(book, tiny_model_dir):
    saved = {
        form: told(open_memory(book, tiny_model_dir, form))[0] for form in ("text", "int8", "int4")
    }
    options = {"model": str(tiny_model_dir), "offline": True}
    for form, wanted, notice in [
        ("int8", None, None),
        ("int8", "text", None),
        ("text", "int8", "recalled from text, not from int8"),
        ("int4", "int8", "recalled from int4, not from int8"),
    ]:
        memory = Memory.open(saved[form].memories[0].id, **options)
        memory.memory = MemoryConfig(recall_from=wanted)
        answer, said = told(memory)
        used = wanted if wanted == "text" else form
        assert answer.text == saved[used].text
        assert (memory.readings[0].reader.stored is None) == (used == "text")
        assert [notice in message for message in said] == ([True] if notice else [])


def test_several_sources_are_read_as_text_and_say_so(book, tiny_model_dir, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("The ferry goes at noon.\n" * 30)
    options = {**OPTIONS, "model": str(tiny_model_dir)}
    memory = Memory.read(book, other, recall_from="int8", **options)
    answer, said = told(memory)
    assert "several sources" in said[0] and answer.recall[0].blocks
    assert all(reading.reader.stored is None for reading in memory.readings)


def test_what_is_not_saved_is_brought_back_too_and_leaves_no_file(book, tiny_model_dir, tmp_path):
    saved, _ = told(open_memory(book, tiny_model_dir))
    before = set(tmp_path.rglob("*"))
    memory = open_memory(book, tiny_model_dir, save=False)
    assert told(memory)[0].text == saved.text
    assert set(tmp_path.rglob("*")) == before and memory.readings[0].reader.stored is not None


def test_an_unknown_form_is_refused():
    with pytest.raises(ConfigError, match="'int2'"):
        MemoryConfig(recall_from="int2")


def read_until(book, model, tokens):
    """Read a part; return the generator, which is left where it stands."""
    events = session.ingest(
        [str(book)],
        read=ReadConfig(),
        memory=MemoryConfig(160, 32, recall_from="int8"),
        model=ModelConfig(str(model), device="cpu", offline=True),
        store=StoreConfig(),
    )
    next(e for e in events if isinstance(e, Progress) and e.tokens_read >= tokens)
    return events


class TestGoingOn:
    def test_a_reading_that_was_killed_goes_on_from_its_last_checkpoint(
        self, book, tiny_model_dir, tmp_path, monkeypatch
    ):
        """What lies on the disk in the middle of a reading is what a kill leaves."""
        whole = open_memory(book, tiny_model_dir, save=False)
        told(whole)
        due = iter([False, True, False, True, False, False, False, False])
        monkeypatch.setattr(Saver, "is_due", lambda saver: next(due))
        events = read_until(book, tiny_model_dir, 7 * 32)
        shutil.copytree(tmp_path / "home" / "indexmem", tmp_path / "killed")
        monkeypatch.undo()
        events.close()
        monkeypatch.setenv("INDEXMEM_HOME", str(tmp_path / "killed"))
        [memory_id] = Library().ids()
        names = sorted(path.name[:2] for path in Library().folder(memory_id).iterdir())
        assert names.count("kv") >= 3, "two are whole, one is not"
        memory = open_memory(book, tiny_model_dir)
        answer, said = told(memory)
        assert "cut short: 128 tokens are not read again" in said[0]
        stored, manifest = stored_of(memory)
        [reading] = whole.readings
        assert stored == reading.reader.stored.shards.read(0, reading.reader.stored.shards.end)
        assert len(manifest.states[-1].shards) >= 3 and verify_memory(Library(), memory_id)
        assert answer.text == told(whole)[0].text
        left = {path.name for path in Library().folder(memory_id).iterdir()}
        assert left == {MANIFEST, *manifest.parts}

    def test_a_text_that_grew_takes_over_what_is_stored(self, book, tiny_model_dir):
        first, _ = told(open_memory(book, tiny_model_dir))
        book.write_text(TEXT + "".join(LINES[:20]))
        memory = open_memory(book, tiny_model_dir)
        _, said = told(memory)
        assert "has grown" in said[0]
        stored, manifest = stored_of(memory)
        whole = open_memory(book, tiny_model_dir, save=False)
        told(whole)
        shards = whole.readings[0].reader.stored.shards
        assert stored == shards.read(0, shards.end) and verify_memory(Library(), manifest.id)
        assert Library().ids() == [manifest.id] != [first.memories[0].id]

    def test_damage_of_a_checkpoint_costs_only_time(self, book, tiny_model_dir):
        read_until(book, tiny_model_dir, 10 * 32).close()
        [memory_id] = Library().ids()
        assert (Library().folder(memory_id) / CHECKPOINT).exists()
        [path] = Library().folder(memory_id).glob("kv*")
        flip(path, 5000)
        answer, said = told(open_memory(book, tiny_model_dir))
        assert "from its beginning" in said[0] and answer.memories[0].tokens_reused == 0
        assert verify_memory(Library(), memory_id)


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 16
    path.write_bytes(data)


class TestDamage:
    def test_a_flipped_bit_is_found_and_no_answer_comes_of_it(self, book, tiny_model_dir):
        memory = open_memory(book, tiny_model_dir)
        told(memory)
        (_, manifest), answers = stored_of(memory), set()
        for path in shards_of(manifest):
            good = path.read_bytes()
            for at in range(60, len(good), len(good) // 12):
                flip(path, at)
                with pytest.raises(MemoryFileError) as caught:
                    verify_memory(Library(), manifest.id)
                assert caught.value.exit_code == 4
                again = open_memory(book, tiny_model_dir)
                again.engine = memory.engine
                try:
                    answers.add(told(again)[0].text)
                except MemoryFileError as error:
                    assert error.exit_code == 4
                    answers.add(None)
                path.write_bytes(good)
        assert answers == {None, told(memory)[0].text}, "either refused, or of no effect"

    def test_a_missing_or_foreign_file_is_refused(self, book, tiny_model_dir):
        memory = open_memory(book, tiny_model_dir)
        told(memory)
        [path, *_] = shards_of(stored_of(memory)[1])
        good = path.read_bytes()
        path.unlink()
        with pytest.raises(MemoryFileError, match="is missing"):
            told(open_memory(book, tiny_model_dir))
        path.write_bytes(b"x" * len(good))
        with pytest.raises(MemoryFileError):
            told(open_memory(book, tiny_model_dir))

    def test_a_full_disk_costs_the_stored_keys_and_no_answer(self, book, tiny_model_dir):
        text, _ = told(open_memory(book, tiny_model_dir, "text", save=False))
        with full_disk(150_000):
            answers = [told(open_memory(book, tiny_model_dir, save=s)) for s in (True, False)]
        for answer, said in answers:
            assert "passages are read again as text" in said[0] and answer.text == text.text
        assert not any((Library().folder(i) / MANIFEST).exists() for i in Library().ids())


def test_what_was_said_in_a_chat_is_brought_back_on_another_day_too(book, tiny_model_dir):
    """Its own turns come back as keys and values, and what its sources hold as text."""

    def talk(said, resumed=None):
        opened = open_conversation(
            [str(book)] if resumed is None else [],
            memory=MemoryConfig(160, 32, recall_from="int8"),
            model=ModelConfig(str(tiny_model_dir), device="cpu", offline=True),
            resumed=resumed,
        )
        answers = []
        for message in said:
            answers.append(list(opened.ask(message, AnswerConfig(max_tokens=4))))
            if "number 2" in message or "number 4" in message:
                opened.save()
        assert opened.close() == []
        notices = [e for events in answers for e in events if isinstance(e, Notice)]
        return opened, [events[-1] for events in answers], notices

    foxes = [f"The quick brown fox number {n} jumps over the lazy dog." for n in range(6)]
    first, _, said = talk([*foxes, "My cat is called Moritz."])
    assert not said and first._growing.manifest.states[-1].shards
    for question, file in (("Moritz?", "conversation"), (QUESTION, str(book))):
        again, [answer], said = talk([question], first.session.id)
        assert not said and file in [b.file for r in answer.recall for b in r.blocks]
        assert again._growing.reader.stored.shards.end == again._growing.reader.state.seen
    assert len(again._growing.manifest.states[-1].shards) == 5, "one a time it was saved"
    assert verify_memory(Library(), again._growing.manifest.id)
    assert Library().load(again._attached.readings[str(book)].manifest.id).recall_from == "text"


def test_what_was_brought_back_is_explained_as_what_was_read_again(book, tiny_model_dir):
    memory = open_memory(book, tiny_model_dir)
    config = AnswerConfig(max_tokens=2, explain=True)
    *_, answer = memory.events(QUESTION, config)
    assert all(mass.recalled > 0 for mass in answer.explanation.attention)


def test_it_moves_to_another_machine_and_goes_without_a_trace(
    book, tiny_model_dir, tmp_path, monkeypatch
):
    memory = open_memory(book, tiny_model_dir)
    answer, _ = told(memory)
    stored, manifest = stored_of(memory)
    size = export_memory(Library(), manifest.id, tmp_path / "out.tar")
    assert size > len(stored)
    freed = Library().delete(manifest.id)
    assert freed > len(stored) and not Library().folder(manifest.id).exists()
    monkeypatch.setenv("INDEXMEM_HOME", str(tmp_path / "elsewhere"))
    imported, is_new = import_memory(Library(), tmp_path / "out.tar")
    assert is_new and imported.parts == manifest.parts
    memory = open_memory(book, tiny_model_dir)
    again, _ = told(memory)
    assert again.text == answer.text and again.memories[0].tokens_reused > 0
    assert stored_of(memory)[0] == stored
    for path in shards_of(manifest):
        assert path.stat().st_mode & 0o777 == 0o600
