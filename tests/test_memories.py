"""`indexmem memories`: listed, checked, moved and removed, through the real commands."""

import errno
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
from saved import begin, blank, file_of, save
from typer.testing import CliRunner

from indexmem_cli.cli.app import app
from indexmem_cli.errors import ConfigError, LockTimeout, MemoryFileError
from indexmem_cli.library import MANIFEST, Library
from indexmem_cli.library.disk import blake2b
from indexmem_cli.library.listing import describe, find_memory, parse_filters
from indexmem_cli.library.manifest import Part
from indexmem_cli.library.transfer import export_memory, import_memory, verify_memory

DAY_S = 86400


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def library():
    return Library()


def run(*args, stdin=None):
    return CliRunner().invoke(app, ["memories", *map(str, args)], input=stdin)


def of(source, tmp_path, text="text"):
    """A blank manifest of a file that is there."""
    path = tmp_path / source
    path.write_text(text)
    return blank(content=text.ljust(64), source=source, path=str(path), files=(file_of(path),))


class TestList:
    def test_where_nothing_is_saved_it_says_so_and_makes_no_folder(self, library):
        assert run("list").stdout == "0 memories, 0 B\n"
        assert not library.root.exists()

    def test_all_states_are_told_apart(self, library, tmp_path):
        ids = {}
        for name in ("ok", "stale", "gone", "damaged"):
            ids[name] = save(library, of(f"{name}.txt", tmp_path, name)).id
        ids["unfinished"] = begin(library, of("unfinished.txt", tmp_path, "unfinished"))
        (tmp_path / "stale.txt").write_text("other")
        (tmp_path / "gone.txt").unlink()
        (library.folder(ids["damaged"]) / MANIFEST).write_text("{}")
        listed = json.loads(run("list", "--json").stdout)
        assert {m["status"]: m["id"] for m in listed["memories"]} == ids
        assert listed["total_bytes"] == sum(m["num_bytes"] for m in listed["memories"]) > 0
        result = run("list")
        assert "stale.txt has changed" in result.stdout and "5 memories, " in result.stdout
        assert sorted(run("list", "-q").stdout.split()) == sorted(ids.values())

    def test_a_file_that_was_only_touched_is_not_stale(self, library, tmp_path):
        memory = save(library, of("book.txt", tmp_path))
        os.utime(tmp_path / "book.txt", (1, 1))
        assert describe(library, memory.id).status == "ok"
        (tmp_path / "book.txt").write_text("tixt")
        assert describe(library, memory.id).status == "stale"

    def test_what_was_read_of_several_files_or_an_odd_name_is_not_gone(self, library, tmp_path):
        memory = save(library, replace(of("book.txt", tmp_path), path=str(tmp_path / "a.txt b")))
        assert describe(library, memory.id).status == "ok"
        (tmp_path / "book.txt").unlink()
        assert describe(library, memory.id).status == "gone"

    def test_a_reading_that_has_saved_nothing_yet_is_unfinished(self, library):
        library.folder("a" * 12).mkdir(parents=True)
        assert describe(library, "a" * 12).status == "unfinished"

    def test_sizes_are_those_on_the_disk(self, library):
        memory = save(library)
        sizes = [path.stat().st_size for path in library.folder(memory.id).iterdir()]
        assert describe(library, memory.id).num_bytes == sum(sizes) > memory.num_bytes

    def test_the_last_used_comes_first(self, library):
        first, second = save(library, blank("1" * 64)), save(library, blank("2" * 64))
        os.utime(library.folder(first.id) / MANIFEST, (1, 1))
        assert run("list", "-q").stdout.split() == [second.id, first.id]
        library.touch(first.id)
        os.utime(library.folder(second.id) / MANIFEST, (1, 1))
        assert run("list", "-q").stdout.split() == [first.id, second.id]

    def test_control_characters_of_names_never_reach_the_terminal(self, library):
        save(library, blank(source="evil\x1b]52;c;x\x07\n.txt"))
        assert "\x1b" not in run("list").stdout and "\x07" not in run("list").stdout

    def test_show(self, library):
        memory = save(library, blank(name="mill"))
        shown = run("show", "mill").stdout
        assert memory.id in shown and "40 tokens" in shown and str(library.root) in shown
        assert "at most 96 tokens, by knorm" in shown
        assert json.loads(run("show", memory.id[:6], "--json").stdout)["name"] == "mill"


class TestNames:
    def test_a_memory_is_found_by_name_id_and_start_of_id(self, library):
        memory = save(library, blank(name="mill"))
        for text in ("mill", memory.id, memory.id[:4]):
            assert library.resolve(text) == memory.id
        for text in ("mil", memory.id[:3], "nothing", ""):
            with pytest.raises(MemoryFileError):
                library.resolve(text)

    @pytest.mark.parametrize("text", ["mill", "book.txt", "./book.txt", "other/../book.txt"])
    def test_commands_take_the_file_that_was_read(self, library, tmp_path, text):
        memory = save(library, replace(of("book.txt", tmp_path), name="mill"))
        (tmp_path / "other").mkdir()
        for where in (text, tmp_path / "book.txt"):
            assert json.loads(run("show", where, "--json").stdout)["id"] == memory.id
        assert f"{memory.id} ok" in run("verify", text).stdout
        assert run("rm", text, "--yes").exit_code == 0 and not library.ids()

    def test_a_file_is_found_by_its_name_from_another_folder(self, library, tmp_path, monkeypatch):
        memory = save(library, of("book.txt", tmp_path))
        monkeypatch.chdir("/")
        assert find_memory(library, "book.txt") == memory.id

    def test_to_find_a_memory_no_source_and_no_folder_is_looked_at(
        self, library, tmp_path, monkeypatch
    ):
        memory = save(library, of("book.txt", tmp_path))
        for look in ("changed_files", "folder_bytes"):
            monkeypatch.setattr(f"indexmem_cli.library.listing.{look}", None)
        assert find_memory(library, "book.txt") == memory.id

    def test_a_reading_that_was_cut_short_is_found_by_its_file(self, library, tmp_path):
        begun = begin(library, of("book.txt", tmp_path))
        assert find_memory(library, "book.txt") == begun

    def test_several_memories_of_one_file_are_listed_and_none_is_removed(self, library, tmp_path):
        first = of("book.txt", tmp_path)
        key = replace(first.key, settings={**first.key.settings, "budget_tokens": 64})
        ids = {save(library, m).id for m in (first, replace(first, key=key))}
        result = run("rm", "book.txt", "--yes")
        assert result.exit_code == MemoryFileError.exit_code
        assert all(memory_id in result.stderr for memory_id in ids) and "budget 64" in result.stderr
        assert set(library.ids()) == ids

    def test_a_question_is_never_answered_from_the_memory_of_a_file_elsewhere(
        self, library, tmp_path
    ):
        save(library, of("book.txt", tmp_path))
        with pytest.raises(MemoryFileError):
            library.resolve("book.txt")

    def test_a_name_belongs_to_one_memory(self, library):
        memory = save(library, blank(name="mill", path="/book.txt"))
        library.check_name("mill", "/book.txt")
        with pytest.raises(ConfigError, match=memory.id):
            library.check_name("mill")

    @pytest.mark.parametrize("name", ["", " a", "a/b", "..", "-x", "a\nb", "0" * 12, "x" * 101])
    def test_a_name_that_could_be_something_else_is_refused(self, library, name):
        with pytest.raises(ConfigError):
            library.check_name(name)

    def test_what_is_not_there_gives_exit_code_4(self):
        result = run("show", "nothing")
        assert result.exit_code == 4 and "nothing" in result.stderr


class TestVerify:
    def test_damage_is_named_with_the_command_that_mends_it(self, library):
        good, bad = save(library, blank("1" * 64)), save(library, blank("2" * 64))
        path = library.folder(bad.id) / bad.archive
        data = bytearray(path.read_bytes())
        data[5000] ^= 1
        path.write_bytes(data)
        result = run("verify")
        assert result.exit_code == 4
        assert good.id in result.stdout and bad.id not in result.stdout
        assert f"indexmem memories rm {bad.id}" in result.stderr
        assert run("verify", good.id).exit_code == 0

    def test_a_text_that_brings_its_own_code_is_refused(self, library):
        """Its checksum is right, as in a file that somebody made to do harm."""
        memory = save(library)
        path = library.folder(memory.id) / memory.archive
        with sqlite3.connect(path) as database:
            database.execute("CREATE TRIGGER t AFTER INSERT ON files BEGIN DELETE FROM blocks; END")
        database.close()
        data = path.read_bytes()
        library.write(
            replace(memory, parts={**memory.parts, path.name: Part(len(data), blake2b(data))})
        )
        with pytest.raises(MemoryFileError, match="no archive has"):
            verify_memory(library, memory.id)


class TestRemove:
    def test_deleting_really_deletes(self, library):
        memory = save(library, blank(name="mill"))
        size = describe(library, memory.id).num_bytes
        result = run("rm", "mill", "--yes")
        assert result.exit_code == 0 and f"removed 1, {size / 1024:.1f} KiB freed" in result.stdout
        assert [p for p in library.root.rglob("*") if p.is_file() and p.suffix != ".lock"] == []

    def test_it_asks_first(self, library):
        memory = save(library)
        assert run("rm", memory.id, "--dry-run").exit_code == 0
        result = run("rm", memory.id, stdin="y\n")
        assert result.exit_code == 2 and "--yes" in result.stderr, "a pipe is not asked"
        assert library.ids() == [memory.id]

    def test_a_memory_that_is_being_written_is_not_removed(self, library):
        memory = save(library)
        with library.lock(memory.id):
            result = run("rm", memory.id, "--yes")
        assert result.exit_code == 7 and library.verify(memory.id)

    def test_prune_takes_what_is_of_no_use(self, library):
        good, bad = save(library, blank("1" * 64)), save(library, blank("2" * 64))
        begun = begin(library, blank("3" * 64))
        (library.folder(bad.id) / bad.archive).unlink()
        left = library.root / ".gone-x"
        left.mkdir()
        os.utime(left, (1, 1))
        assert run("prune", "--dry-run").exit_code == 0 and len(library.ids()) == 3
        assert run("prune", "-y").exit_code == 0
        assert library.ids() == [good.id] and begun not in library.ids() and not left.exists()

    def test_prune_removes_nothing_before_the_yes(self, library):
        begin(library, blank())
        left = library.root / ".gone-x"
        left.mkdir()
        os.utime(left, (1, 1))
        assert run("prune").exit_code == 2 and left.exists()
        assert run("prune", "-y").exit_code == 0 and not left.exists()

    def test_prune_needs_no_yes_for_what_a_crash_left(self, library):
        left = library.root / ".gone-x"
        left.mkdir(parents=True)
        os.utime(left, (1, 1))
        assert run("prune").stdout == "nothing to remove\n" and not left.exists()

    def test_what_is_being_written_keeps_the_others_from_nothing(self, library, monkeypatch):
        ids = [begin(library, blank(digit * 64)) for digit in "123"]
        delete = Library.delete

        def busy(self, memory_id):
            if memory_id == sorted(ids)[0]:
                raise LockTimeout(f"memory {memory_id} is being written")
            return delete(self, memory_id)

        monkeypatch.setattr(Library, "delete", busy)
        result = run("prune", "-y")
        assert result.exit_code == 7 and "removed 2, " in result.stdout
        assert library.ids() == sorted(ids)[:1]

    def test_prune_takes_what_every_filter_meets(self, library):
        old, new = save(library, blank("1" * 64)), save(library, blank("2" * 64))
        os.utime(library.folder(old.id) / MANIFEST, (time.time() - 31 * DAY_S,) * 2)
        assert run("prune", "used>30d", "size>1GB", "-y").stdout == "nothing to remove\n"
        assert run("prune", "used>30d", "size<1GB", "-y").exit_code == 0
        assert library.ids() == [new.id]

    def test_prune_stale(self, library, tmp_path):
        fresh = save(library, of("a.txt", tmp_path, "a"))
        save(library, of("b.txt", tmp_path, "b"))
        (tmp_path / "b.txt").unlink()
        run("prune", "--stale", "-y")
        assert library.ids() == [fresh.id]

    @pytest.mark.parametrize("text", ["used", "used>30", "used=30d", "size>1d", "used>1GB", "a>1d"])
    def test_what_is_no_filter_is_refused(self, text):
        with pytest.raises(ConfigError, match="not a filter"):
            parse_filters([text])

    def test_filters_know_their_units(self, library):
        memory = describe(library, save(library).id)
        now = time.time()
        memory = replace(memory, used_s=now - 100, created_s=now - 2 * DAY_S, num_bytes=1536)
        for text in ("used<2m", "used>1m", "created>1d", "created<1w", "size>1k", "size>1KiB"):
            assert parse_filters([text])(memory), text
        for text in ("used>2m", "created<1d", "size>1.5KB", "size>1M", "size<1b"):
            assert not parse_filters([text])(memory), text


class TestTransfer:
    def test_a_memory_goes_to_another_machine_whole(self, library, tmp_path):
        memory = save(library, blank(name="mill"))
        assert run("export", "mill").exit_code == 0
        with tarfile.open("mill.tar") as tar:
            assert {Path(name).name for name in tar.getnames()} == {MANIFEST, *memory.parts}
        shutil.rmtree(library.root)
        result = run("import", "mill.tar")
        assert result.exit_code == 0, result.stderr
        assert library.verify(memory.id) == memory
        assert run("import", "mill.tar").stdout.startswith("mill was here already")

    def test_a_file_is_replaced_only_by_force(self, library):
        memory = save(library)
        Path("out.tar").write_text("mine")
        assert run("export", memory.id, "-o", "out.tar").exit_code == 2
        assert Path("out.tar").read_text() == "mine"
        assert run("export", memory.id, "-o", "out.tar", "--force").exit_code == 0

    def test_a_full_disk_is_a_fault_and_no_misuse(self, library, monkeypatch):
        def fail(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("indexmem_cli.library.transfer.export_memory", fail)
        result = run("export", save(library).id)
        assert result.exit_code == 1 and "No space left on device" in result.stderr

    def test_a_name_that_is_taken_stays_where_it_is(self, library, tmp_path):
        memory = save(library, blank(name="mill"))
        export_memory(library, memory.id, tmp_path / "a.tar")
        library.delete(memory.id)
        other = save(library, blank("2" * 64, name="mill"))
        imported, _ = import_memory(library, tmp_path / "a.tar")
        assert imported.name is None and library.resolve("mill") == other.id

    def test_every_cut_and_flipped_bit_is_refused_or_harmless(self, library, tmp_path):
        memory = save(library)
        path = tmp_path / "a.tar"
        export_memory(library, memory.id, path)
        good = path.read_bytes()
        library.delete(memory.id)
        for case in range(0, len(good), len(good) // 25):
            data = bytearray(good)
            data[case] ^= 4
            for bad in (bytes(data), good[:case]):
                path.write_bytes(bad)
                try:
                    found, _ = import_memory(library, path)
                except MemoryFileError as error:
                    assert str(path) in error.message
                    assert library.ids() == []
                else:
                    assert found == memory == library.verify(memory.id)
                    library.delete(memory.id)
        assert [p.name for p in library.root.iterdir()] == [".locks"]

    @pytest.mark.parametrize(
        "change",
        [
            {"name": "../../evil"},
            {"name": "/tmp/evil"},
            {"name": "{id}/../evil"},
            {"name": "{id}/evil.sqlite"},
            {"name": "{id}/manifest.json"},
            {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
            {"type": tarfile.LNKTYPE, "linkname": "x"},
            {"type": tarfile.FIFOTYPE},
            {"type": tarfile.CHRTYPE},
            {"type": tarfile.DIRTYPE},
            {"type": tarfile.XHDTYPE},
            {"type": tarfile.GNUTYPE_LONGNAME},
            {"type": tarfile.GNUTYPE_SPARSE},
        ],
        ids=str,
    )
    def test_nothing_but_the_named_plain_files_is_taken(self, library, tmp_path, change):
        memory = save(library)
        export_memory(library, memory.id, tmp_path / "a.tar")
        library.delete(memory.id)
        info = tarfile.TarInfo("x")
        for name, value in {"name": "{id}/x", **change}.items():
            setattr(info, name, value.format(id=memory.id) if isinstance(value, str) else value)
        good = (tmp_path / "a.tar").read_bytes()
        with tarfile.open(tmp_path / "a.tar") as tar:
            end = tar.getmembers()[0]
            second = (end.offset_data + end.size + 511) // 512 * 512
        header = info.tobuf(tarfile.GNU_FORMAT)[:512]
        bad = tmp_path / "evil.tar"
        for at in (0, second, len(good) - 1024):
            bad.write_bytes(good[:at] + header + good[at:])
            with pytest.raises(MemoryFileError):
                import_memory(library, bad)
        assert library.ids() == [] and not (tmp_path.parent / "evil").exists()

    def test_what_says_that_it_is_too_large_is_refused_before_it_is_written(
        self, library, tmp_path, monkeypatch
    ):
        memory = save(library)
        path = tmp_path / "a.tar"
        export_memory(library, memory.id, path)
        library.delete(memory.id)
        monkeypatch.setattr("indexmem_cli.library.transfer.MAX_IMPORT_BYTES", 1000)
        with pytest.raises(MemoryFileError, match="more than 1,000"):
            import_memory(library, path)

    def test_a_file_that_is_no_tar_is_refused(self, library, tmp_path):
        for data in (b"", b"hello", bytes(10240), os.urandom(4096)):
            (tmp_path / "a.tar").write_bytes(data)
            result = run("import", "a.tar")
            assert result.exit_code == 4 and "a.tar" in result.stderr
        assert run("import", "missing.tar").exit_code == 2


class TestProcesses:
    def test_one_writes_and_the_other_waits(self, library):
        code = (
            "import sys, time; from indexmem_cli.library import Library\n"
            "with Library().lock('0' * 12):\n"
            "    print('held', flush=True); sys.stdin.read()\n"
        )
        held = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[1],
        )
        assert held.stdout.readline() == b"held\n"
        started = time.monotonic()
        with pytest.raises(LockTimeout) as caught, library.lock("0" * 12, timeout_s=0.2):
            pass
        assert caught.value.exit_code == 7 and time.monotonic() - started >= 0.2
        held.kill()
        held.communicate()
        with library.lock("0" * 12, timeout_s=5):
            pass  # what was killed holds nothing

    def test_listing_needs_no_torch(self, library):
        save(library)
        code = (
            "import sys; from indexmem_cli.library import Library\n"
            "from indexmem_cli.library.listing import list_memories\n"
            "from indexmem_cli.library.transfer import verify_memory\n"
            "assert [m.status for m in list_memories(Library())] == ['ok']\n"
            "print('torch' in sys.modules, 'numpy' in sys.modules)"
        )
        shown = subprocess.check_output(
            [sys.executable, "-c", code], text=True, cwd=Path(__file__).parents[1]
        )
        assert shown == "False False\n"

    def test_a_folder_that_cannot_be_written_gives_a_plain_error(self, library):
        memory = save(library)
        (library.root / ".locks").write_text("a file where a folder should be")
        result = run("rm", memory.id, "--yes")
        assert result.exit_code == 1 and library.verify(memory.id)


class TestSlackFolders:
    DAY = '[{"type": "message", "user": "U1", "ts": "1700000000.0", "text": "hi"}]'

    @pytest.fixture
    def export(self, tmp_path):
        """A folder whose files are one source, with a folder in a channel that is not read."""
        folder = tmp_path / "export"
        (folder / "general" / "files").mkdir(parents=True)
        (folder / "users.json").write_text('[{"id": "U1", "name": "ann"}]')
        (folder / "general" / "2023-11-14.json").write_text(self.DAY)
        return folder

    @pytest.fixture
    def memory(self, library, export):
        from indexmem_cli.config import ReadConfig
        from indexmem_cli.documents import open_sources
        from indexmem_cli.library.sources import describe_files

        files = describe_files(open_sources([str(export)], ReadConfig()).documents)
        return save(library, blank(source="export", path=str(export), files=files))

    def test_one_that_was_only_touched_is_not_stale(self, library, export, memory):
        os.utime(export / "users.json", (2e9, 2e9))
        assert describe(library, memory.id).status == "ok"
        (export / "users.json").write_text('[{"id": "U1", "name": "bob"}]')
        assert describe(library, memory.id).status == "stale"

    def test_only_files_that_are_read_make_one_stale(self, library, export, memory):
        from indexmem_cli.library.sources import changed_while_read

        (export / "general" / "files" / "new.txt").write_text("new")
        assert describe(library, memory.id).status == "ok"
        assert changed_while_read(memory.files) == []
        (export / "general" / "2023-11-15.json").write_text(self.DAY)
        assert describe(library, memory.id).status == "stale"
        assert changed_while_read(memory.files) == [str(export)]

    def test_a_day_that_came_after_it_was_opened_is_no_part_of_it(self, export):
        from indexmem_cli.config import ReadConfig
        from indexmem_cli.documents import open_sources
        from indexmem_cli.library.sources import changed_files, describe_files

        documents = open_sources([str(export)], ReadConfig()).documents
        (export / "general" / "2023-11-15.json").write_text(self.DAY)
        assert changed_files(describe_files(documents)) == [str(export)]
