"""A source is read once: found again by its content, continued when it grew, resumed when cut."""

import os
import threading
import time

import pytest
import torch
from saved import full_disk

from indexmem_cli.config import MemoryConfig, ModelConfig, ReadConfig, StoreConfig
from indexmem_cli.documents import open_each
from indexmem_cli.engine import make_reader
from indexmem_cli.errors import LockTimeout, MemoryFileError
from indexmem_cli.events import Notice, Progress
from indexmem_cli.inspecting import inspect
from indexmem_cli.language_model import load_language_model
from indexmem_cli.library import CHECKPOINT, MANIFEST, Library
from indexmem_cli.library.manifest import Key
from indexmem_cli.library.saver import Saver
from indexmem_cli.plan import make_plan
from indexmem_cli.reading import Reading

CHUNK = 32
LINES = [f"Line {number}: the quick brown fox number {number}.\n" for number in range(30)]
TEXT = "".join(LINES)


@pytest.fixture(scope="module")
def engine(tiny_model_dir):
    return load_language_model(ModelConfig(model=str(tiny_model_dir), device="cpu", offline=True))


@pytest.fixture
def library():
    return Library()


def new_reading(engine, source, **options):
    config = MemoryConfig(budget_tokens=96, chunk_tokens=CHUNK, policy="knorm")
    plan, _ = make_plan(config, 256, len(engine.prompt.opening), 20)
    return Reading(
        open_each([str(source)], ReadConfig(), keep_pipes=True)[0],
        make_reader(engine.backbone, plan, config, []),
        engine.tokenizer,
        engine.prompt.opening,
    )


def remember(engine, library, source, wait_s=5.0, model="model", **store):
    """Read a source; return the reading and its events."""
    reading = new_reading(engine, source)
    key = Key("", model, "tokenizer", {"chunk_tokens": CHUNK})
    events = list(reading.remember(key, "tiny", StoreConfig(**store), library, wait_s=wait_s))
    return reading, events


def notices(events):
    return [event.message for event in events if isinstance(event, Notice)]


def kept(reading):
    state = reading.reader.state
    return [layer.keys[:, :, : layer.held] for layer in state.layers]


def assert_same_memory(one, other):
    for a, b in zip(kept(one), kept(other), strict=True):
        assert torch.equal(a, b)
    texts = [list(reading.archive) for reading in (one, other)]
    assert [b.ids for b in texts[0]] == [b.ids for b in texts[1]]
    assert one.tokens == other.tokens


class TestReuse:
    def test_a_second_question_reads_nothing(self, engine, library, book):
        first, events = remember(engine, library, book)
        assert events and not notices(events)
        assert (first.tokens_reused, first.tokens) == (0, events[-1].tokens_read)
        second, events = remember(engine, library, book)
        assert events == []
        assert second.tokens_reused == second.tokens == first.tokens
        assert second.remembered.id == first.remembered.id == library.ids()[0]
        assert second.coverage == first.coverage
        assert_same_memory(first, second)

    def test_content_is_what_counts_not_its_place(self, engine, library, book, tmp_path):
        remember(engine, library, book)
        other = tmp_path / "renamed.md"
        other.write_text(TEXT)
        assert remember(engine, library, other)[0].tokens_reused > 0

    def test_another_model_has_another_memory(self, engine, library, book):
        remember(engine, library, book)
        assert remember(engine, library, book, model="other")[0].tokens_reused == 0
        assert len(library.ids()) == 2

    def test_without_saving_nothing_is_written(self, engine, library, book):
        reading, _ = remember(engine, library, book, save=False)
        assert not library.root.exists()
        assert reading.remembered.id is None and len(reading.archive) > 0
        assert_same_memory(reading, remember(engine, library, book)[0])

    def test_fresh_reads_again(self, engine, library, book):
        first, _ = remember(engine, library, book)
        again, _ = remember(engine, library, book, fresh=True)
        assert again.tokens_reused == 0 and again.manifest.id == first.manifest.id
        assert not set(first.manifest.parts) & set(again.manifest.parts)

    def test_damage_is_an_error_never_an_answer(self, engine, library, book):
        first, _ = remember(engine, library, book)
        for name in [MANIFEST, *first.manifest.parts]:
            path = library.folder(first.manifest.id) / name
            good = path.read_bytes()
            path.write_bytes(good[:-9] + b"xxxxxxxxx")
            with pytest.raises(MemoryFileError, match=first.manifest.id) as caught:
                if name == first.manifest.states[0].part and len(first.manifest.states) > 1:
                    library.verify(first.manifest.id)  # a base, which no answer comes from
                else:
                    remember(engine, library, book)
            assert "memories rm" in caught.value.hint
            path.write_bytes(good)
        path.write_bytes(b"")
        again, _ = remember(engine, library, book, fresh=True)
        assert again.tokens_reused == 0 and library.verify(again.manifest.id)


def test_characters_that_cannot_be_decoded_are_told(engine, library, book):
    book.write_bytes("schön, größer, über\n".encode() * 30 + b"a bad \xff byte\n")
    told = f"1 character of {book} cannot be decoded; --encoding names another encoding"
    assert notices(remember(engine, library, book)[1]) == [told]
    seen = inspect([str(book)], read=ReadConfig(), memory=MemoryConfig(), model=ModelConfig())
    assert seen.notices == (told,)


class TestGrowth:
    def test_a_text_that_grew_is_continued(self, engine, library, book):
        first, _ = remember(engine, library, book, name="fox")
        book.write_text(TEXT + "".join(LINES[:20]))
        second, events = remember(engine, library, book)
        assert first.tokens - CHUNK <= second.tokens_reused <= first.tokens < second.tokens
        assert "has grown" in notices(events)[0] and first.manifest.id in notices(events)[0]
        assert library.ids() == [second.manifest.id], "the old one is part of the new one"
        assert second.manifest.name == "fox"
        assert_same_memory(second, remember(engine, library, book, save=False)[0])

    def test_a_last_line_that_was_not_complete_may_go_on(self, engine, library, book):
        book.write_text(TEXT + "An unfinished")
        remember(engine, library, book)
        book.write_text(TEXT + "An unfinished line.\n\nAnd more.\n")
        second, _ = remember(engine, library, book)
        assert second.tokens_reused > 0.9 * second.tokens - 2 * CHUNK
        assert_same_memory(second, remember(engine, library, book, save=False)[0])

    def test_a_text_that_changed_is_read_again(self, engine, library, book):
        first, _ = remember(engine, library, book, name="fox")
        book.write_text(TEXT.replace("Line 3:", "Line x:"))
        second, events = remember(engine, library, book)
        assert second.tokens_reused == 0 and "has changed" in notices(events)[0]
        assert sorted(library.ids()) == sorted([first.manifest.id, second.manifest.id])
        assert library.resolve("fox") == second.manifest.id
        assert_same_memory(second, remember(engine, library, book, save=False)[0])

    def test_changed_files_of_a_folder_are_counted_and_named(self, engine, library, tmp_path):
        folder = tmp_path / "src"
        folder.mkdir()
        for number in range(12):
            (folder / f"f{number:02}.py").write_text("".join(LINES[:5]))
        remember(engine, library, folder)
        assert remember(engine, library, folder)[1] == []
        for number in (3, 4, 8):
            (folder / f"f{number:02}.py").write_text("changed = 1\n")
        (folder / "new.py").write_text("new = 1\n")
        second, events = remember(engine, library, folder)
        [message] = notices(events)
        assert "of 13 files 3 changed, 1 new (" in message and "f03.py" in message
        assert_same_memory(second, remember(engine, library, folder, save=False)[0])


class TestInterruption:
    def test_a_reading_that_was_cut_short_goes_on(self, engine, library, book):
        events = new_reading(engine, book).remember(
            Key("", "model", "tokenizer", {"chunk_tokens": CHUNK}), "tiny", StoreConfig(), library
        )
        for event in events:
            if isinstance(event, Progress) and event.tokens_read >= 10 * CHUNK:
                break
        events.close()
        [memory_id] = library.ids()
        names = {path.name for path in library.folder(memory_id).iterdir()}
        assert CHECKPOINT in names and MANIFEST not in names and len(names) == 2
        second, events = remember(engine, library, book)
        assert second.tokens_reused == 10 * CHUNK and "cut short" in notices(events)[0]
        assert library.verify(memory_id) and not (library.folder(memory_id) / CHECKPOINT).exists()
        assert_same_memory(second, remember(engine, library, book, save=False)[0])

    def test_a_reading_that_goes_on_may_be_cut_short_at_once(
        self, engine, library, book, monkeypatch
    ):
        """While what is known is passed over, there is nothing new to save."""
        remember(engine, library, book)
        book.write_text(TEXT + "".join(LINES[:5]))
        monkeypatch.setattr(Saver, "is_due", lambda saver: True)
        events = new_reading(engine, book).remember(
            Key("", "model", "tokenizer", {"chunk_tokens": CHUNK}), "tiny", StoreConfig(), library
        )
        next(event for event in events if isinstance(event, Progress))
        events.close()
        second, _ = remember(engine, library, book)
        assert_same_memory(second, remember(engine, library, book, save=False)[0])

    def test_a_damaged_checkpoint_costs_only_time(self, engine, library, book):
        events = new_reading(engine, book).remember(
            Key("", "model", "tokenizer", {"chunk_tokens": CHUNK}), "tiny", StoreConfig(), library
        )
        next(events), events.close()
        [memory_id] = library.ids()
        [part] = library.folder(memory_id).glob("state*")
        part.write_bytes(part.read_bytes()[:-9] + b"xxxxxxxxx")
        second, events = remember(engine, library, book)
        assert second.tokens_reused == 0 and "from its beginning" in notices(events)[0]
        assert library.verify(memory_id)

    def test_a_source_that_changes_while_it_is_read_is_not_saved(self, engine, library, book):
        reading = new_reading(engine, book)
        key = Key("", "model", "tokenizer", {"chunk_tokens": CHUNK})
        events = reading.remember(key, "tiny", StoreConfig(), library)
        next(events)
        with book.open("a") as stream:
            stream.write("more\n")
        assert "changed while it was read" in notices(list(events))[0]
        assert reading.manifest is None and library.ids() == [] and len(reading.archive) > 0


class TestDisk:
    @pytest.mark.parametrize("limit", [1, 30_000, 45_000])
    def test_a_full_disk_costs_the_saved_memory_and_nothing_else(
        self, engine, library, book, limit, monkeypatch
    ):
        monkeypatch.setattr(Saver, "is_due", lambda saver: True)
        whole, _ = remember(engine, library, book, save=False)
        with full_disk(limit):
            reading, events = remember(engine, library, book)
        [message] = notices(events)
        assert "not saved" in message
        assert reading.remembered.id is None
        assert not any((library.folder(i) / MANIFEST).exists() for i in library.ids())
        assert_same_memory(reading, whole)

    def test_a_home_that_cannot_be_written_is_told(self, engine, book, tmp_path):
        (tmp_path / "file").write_text("")
        library = Library(tmp_path / "file" / "memories")
        reading, events = remember(engine, library, book)
        assert "not saved" in notices(events)[0] and reading.tokens > 0

    def test_a_saved_memory_is_used_where_nothing_can_be_written(
        self, engine, library, book, monkeypatch
    ):
        remember(engine, library, book)

        def refuse(*_, **__):
            raise PermissionError(13, "Read-only file system")

        for name in ("utime", "replace", "mkdir"):
            monkeypatch.setattr(os, name, refuse)
        reading, events = remember(engine, library, book)
        assert events == [] and reading.tokens_reused == reading.tokens


class TestTwoAtOnce:
    def test_one_reads_and_the_other_waits_and_reuses(self, engine, library, book):
        first = new_reading(engine, book)
        key = Key("", "model", "tokenizer", {"chunk_tokens": CHUNK})
        events = first.remember(key, "tiny", StoreConfig(), library)
        next(events)
        got = []
        other = threading.Thread(target=lambda: got.append(remember(engine, library, book)))
        other.start()
        time.sleep(0.3)
        assert other.is_alive(), "it must not read what is being read"
        list(events)
        other.join(20)
        [(second, told)] = got
        assert "waiting" in notices(told)[0]
        assert second.tokens_reused == second.tokens == first.tokens

    def test_who_waits_too_long_says_so(self, engine, library, book):
        events = new_reading(engine, book).remember(
            Key("", "model", "tokenizer", {"chunk_tokens": CHUNK}), "tiny", StoreConfig(), library
        )
        next(events)
        with pytest.raises(LockTimeout) as caught:
            remember(engine, library, book, wait_s=0.1)
        assert caught.value.exit_code == 7 and "--no-save" in caught.value.hint
        events.close()
