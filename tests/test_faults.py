"""Full disks, clocks that run backwards, many processes, models that vanish, signals."""

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from saved import full_disk
from typer.testing import CliRunner

from indexmem_cli import Memory
from indexmem_cli.cli.app import app
from indexmem_cli.config import AnswerConfig, ModelConfig
from indexmem_cli.errors import BackboneError
from indexmem_cli.language_model import load_language_model
from indexmem_cli.library import Library
from indexmem_cli.sessions import SessionStore, sessions_folder

LINES = "the quick brown fox jumps over the lazy dog\n"
TEXT = LINES * 40
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture
def ask(tiny_model_dir, book):
    def invoke(*args):
        options = ["--model", str(tiny_model_dir), "-b", "96", "--chunk", "32", "--device", "cpu"]
        command = ["ask", str(book), "Who?", *options, "--json", "--max-tokens", "3", *args]
        return CliRunner().invoke(app, command)

    return invoke


@pytest.fixture
def talk(tiny_model_dir):
    def invoke(*said):
        options = ["--model", str(tiny_model_dir), "-b", "96", "--chunk", "32", "--device", "cpu"]
        options += ["--max-tokens", "2", "--json", *(word for word in said if word[0] == "-")]
        lines = "\n".join(line for line in said if line[0] != "-")
        return CliRunner().invoke(app, ["chat", *options], input=lines)

    return invoke


def answered_unsaved(result):
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["memory"]["id"] is None and document["coverage"]["tokens_read"] > 300
    assert "not saved" in " ".join(document["notices"]) + result.stderr
    return document


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("call", ["sync", "write_atomic", "make_folder", "checksum"])
def test_a_disk_that_fails_costs_the_memory_and_not_the_answer(call, code, ask, monkeypatch):
    def fails(*_):
        raise OSError(code, os.strerror(code))

    whole = ask("--no-save").stdout
    for module in ("disk", "saver", "transfer", None):
        name = "indexmem_cli.library" + (f".{module}" if module else "")
        monkeypatch.setattr(f"{name}.{call}", fails, raising=False)
    answer = answered_unsaved(ask())["answer"]
    assert answer == json.loads(whole)["answer"]
    monkeypatch.undo()


@pytest.mark.skipif(sys.platform != "linux", reason="limits of file size are those of Linux")
@pytest.mark.parametrize("limit_bytes", [0, 30_000])
@needs_fork
def test_a_disk_that_is_full_at_any_byte(limit_bytes, ask):
    """Each file may grow so far: the text is stopped by the one limit, keys and values by both."""

    def limited():
        with full_disk(limit_bytes):
            result = ask()
        document = json.loads(result.stdout)
        return result.exit_code, document["memory"]["id"], document["answer"]

    expected = json.loads(ask("--no-save").stdout)["answer"]
    [told] = in_processes(1, limited)
    assert told == [0, None, expected]
    assert not [i for i in Library().ids() if (Library().folder(i) / "manifest.json").exists()]


@pytest.mark.skipif(sys.platform != "linux", reason="limits of file size are those of Linux")
@pytest.mark.parametrize("limit_bytes", [0, 4_096, 20_000])
@needs_fork
def test_a_disk_that_is_full_costs_the_session_and_not_the_talk(limit_bytes, talk):
    said = [f"Is the fox number {number} quick? {'Or lazy? ' * 99}" for number in range(6)]

    def limited():
        with full_disk(limit_bytes):
            result = talk(*said)
        return result.exit_code, len(result.stdout.splitlines()), result.stderr

    [(code, num_answers, told)] = in_processes(1, limited)
    assert (code, num_answers) == (0, len(said)), "every question is answered"
    assert "not saved" in told and "Traceback" not in told
    listed = CliRunner().invoke(app, ["sessions", "list", "--json"])
    assert listed.exit_code == 0, "what was written before the disk was full is whole"


def test_a_home_that_cannot_be_written(ask, tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    for home in (blocked, blocked / "inner", Path("/proc/none")):
        monkeypatch.setenv("INDEXMEM_HOME", str(home))
        answered_unsaved(ask())


def test_a_clock_that_runs_backwards(ask, monkeypatch):
    first = json.loads(ask().stdout)["memory"]
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 10 * 365 * 86400)
    second = json.loads(ask().stdout)["memory"]
    assert second["reused"] and second["id"] == first["id"]
    assert not json.loads(ask("--fresh").stdout)["memory"]["reused"]
    for command in ("list", "prune used>30d --dry-run", f"verify {first['id']}"):
        result = CliRunner().invoke(app, ["memories", *command.split()])
        assert result.exit_code == 0, result.output
    assert Library().verify(first["id"])
    for path in Library().folder(first["id"]).iterdir():
        os.utime(path, (-86400, -86400))
    assert json.loads(ask().stdout)["memory"]["reused"]


def test_a_clock_that_runs_backwards_while_one_talks(talk, monkeypatch):
    now, first = time.time, "The mill passes to Ruth."
    assert talk(first).exit_code == 0
    for years in (10, 20):
        monkeypatch.setattr(time, "time", lambda years=years: now() - years * 365 * 86400)
        result = talk("-c", f"It was {years} years ago.")
        assert result.exit_code == 0, result.stderr
    with contextlib.closing(SessionStore(sessions_folder())) as store:
        [session] = store.all()
        assert [turn.question for turn in store.turns(session.id)] == [
            *(first, "It was 10 years ago.", "It was 20 years ago."),
        ]
        [memory_id] = Library().ids()
        assert Library().verify(memory_id).coverage["messages_read"] == 3
    for command in ("list", f"show {session.id}", f"rm {session.id} --yes"):
        result = CliRunner().invoke(app, ["sessions", *command.split()])
        assert result.exit_code == 0, result.output
    assert not Library().ids()


def in_processes(number, work):
    """Run a function in so many forks at once; return what each of them returned."""
    import torch

    torch.set_num_threads(1)  # threads do not survive a fork: one that waits for them never ends
    pipes = []
    for _ in range(number):
        read, write = os.pipe()
        if (process := os.fork()) == 0:
            try:
                os.write(write, json.dumps(work()).encode())
            finally:
                os._exit(0)
        os.close(write)
        pipes.append((process, read))
    told = []
    for process, read in pipes:
        with os.fdopen(read, "rb") as stream:
            told.append(json.loads(stream.read() or b"null"))
        os.waitpid(process, 0)
    return told


@needs_fork
@pytest.mark.parametrize("number", [2, 20])
def test_many_processes_read_a_document_once(number, tiny_model_dir, book):
    model = ModelConfig(model=str(tiny_model_dir), device="cpu")
    engine = load_language_model(model)

    def read():
        memory = Memory.read(book, budget=96, chunk_tokens=32, save=True, model=model.model)
        memory.engine = engine
        *_, done = memory.ingest()
        [remembered] = done.memories
        return [remembered.id, remembered.tokens, remembered.tokens_reused]

    told = in_processes(number, read)
    assert len({(memory_id, tokens) for memory_id, tokens, _ in told}) == 1
    reused = sorted(again for _, _, again in told)
    assert reused == [0, *[told[0][1]] * (number - 1)], "one reads, the others take what it read"
    assert Library().verify(told[0][0])


def test_a_model_that_vanishes(tiny_model_dir, tmp_path, book):
    model = tmp_path / "model"
    shutil.copytree(tiny_model_dir, model)
    memory = Memory.read(book, budget=96, chunk_tokens=32, model=str(model))
    first = memory.ask("Who?", max_tokens=4)
    gone = Memory.read(book, budget=96, chunk_tokens=32, model=str(model))
    shutil.rmtree(model)
    assert memory.ask("Who?", max_tokens=4).text == first.text, "what is loaded needs no files"
    with pytest.raises(BackboneError, match="model") as error:
        list(gone.events("Who?", AnswerConfig(max_tokens=1)))
    assert error.value.exit_code == 5
    model.mkdir()
    with pytest.raises(BackboneError):
        list(gone.events("Who?", AnswerConfig(max_tokens=1)))


def test_a_document_that_vanishes_while_it_is_read(tiny_model_dir, tmp_path):
    folder = tmp_path / "all"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.txt").write_text(LINES * 400)
    memory = Memory.read(folder, budget=96, chunk_tokens=32, model=str(tiny_model_dir))
    events = memory.events("Who?", AnswerConfig(max_tokens=1))
    for event in events:
        if type(event).__name__ == "Progress":
            (folder / "2.txt").unlink(missing_ok=True)
    coverage = event.coverage
    assert coverage.files_skipped == {"unreadable": 1} and coverage.files_read == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "moments"),
    [(signal.SIGINT, 60), (signal.SIGTERM, 20), (signal.SIGPIPE, 20)],
    ids=["SIGINT", "SIGTERM", "SIGPIPE"],
)
def test_signals_at_every_stage(sent, moments, tiny_model_dir, tmp_path):
    """Moments from start to end: the documented exit code, no traceback, no damage."""
    book = tmp_path / "book.txt"
    book.write_text(LINES * 1000)
    program = [sys.executable, "-m", "indexmem_cli", "ask", str(book), "Who?", "--fresh"]
    options = ["--model", str(tiny_model_dir), "-b", "96", "--chunk", "32"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    started = time.monotonic()
    subprocess.run([*program, *options], env=environment, capture_output=True, check=True)
    longest_s = time.monotonic() - started
    for number in range(1, moments + 1):
        with subprocess.Popen(
            [*program, *options], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            # Before 0.3 s the interpreter itself starts.
            time.sleep(0.3 + longest_s * number / moments)
            sent_s = time.monotonic()
            if sent == signal.SIGPIPE:
                process.stdout.close()
            else:
                process.send_signal(sent)
            err = process.stderr.read()
            code = process.wait(60)
            took_s = time.monotonic() - sent_s
        allowed = {signal.SIGINT: (130, -2), signal.SIGTERM: (-15, 143), signal.SIGPIPE: (141,)}
        # By then all may be written, and the program about to end.
        is_too_late = took_s < 1 or sent == signal.SIGPIPE
        assert code in allowed[sent] or (code == 0 and is_too_late), (number, took_s, err)
        assert b"Traceback" not in err
        for memory_id in Library().ids():
            if (Library().folder(memory_id) / "manifest.json").exists():
                Library().verify(memory_id)
