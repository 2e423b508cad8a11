"""What stays on the disk, who can read it, and that nothing leaves the machine."""

import contextlib
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from test_documents_pdf import pdf_bytes
from typer.testing import CliRunner

from indexmem_cli.cli.app import app
from indexmem_cli.library import Library

SECRET = "zanzibar"
TEXT = f"the quick brown fox jumps over the lazy {SECRET}\n" * 40


@pytest.fixture
def run(tiny_model_dir):
    options = ["--model", str(tiny_model_dir), "-b", "96", "--chunk", "32", "--device", "cpu"]

    def invoke(command, *args, stdin=None):
        more = ["--max-tokens", "3"] if command == "ask" else []
        result = CliRunner().invoke(app, [command, *options, *more, *map(str, args)], input=stdin)
        assert result.exit_code == 0, result.output
        return result

    return invoke


def files_under(*folders):
    return {path for folder in folders for path in Path(folder).rglob("*")}


def test_files_and_folders_are_for_their_owner_alone(run, book):
    before = os.umask(0o022)
    try:
        run("ask", book, "Who?")
        run("chat", book, "--max-tokens", "2", stdin="Who?\n")
        run("ingest", book, "--name", "light", "--fresh")
        exported = book.with_name("memory.tar")
        memory_id, *_ = Library().ids()
        CliRunner().invoke(app, ["memories", "export", memory_id, "--out", str(exported)])
    finally:
        os.umask(before)
    home = Path(os.environ["INDEXMEM_HOME"])
    found = files_under(home) | {home, exported}
    assert len(found) > 6
    wrong = {str(path): oct(path.stat().st_mode) for path in found if path.stat().st_mode & 0o077}
    assert not wrong


def test_what_is_not_saved_leaves_nothing(run, book, tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    before = files_under(tmp_path)
    run("ask", "--no-save", book, "Who?")
    run("ask", "--no-save", "-", "Who?", stdin=pdf_bytes([[SECRET, "and more"]]))
    run("ask", "--no-save", "-", "Who?", stdin=io.StringIO(TEXT).getvalue())
    assert {path for path in files_under(tmp_path) if not path.is_dir()} == {
        path for path in before if not path.is_dir()
    }


def test_a_removed_memory_leaves_no_part_of_the_text(run, book):
    run("ask", book, f"Who is the {SECRET}?")
    home = Path(os.environ["INDEXMEM_HOME"])

    def holding() -> list[Path]:
        files = (path for path in files_under(home) if path.is_file())
        return [path for path in files if SECRET.encode() in path.read_bytes()]

    assert holding(), "else the test shows nothing"
    for memory_id in Library().ids():
        result = CliRunner().invoke(app, ["memories", "rm", memory_id, "--yes"])
        assert result.exit_code == 0
    assert holding() == []
    assert [path.name for path in files_under(home) if path.is_file()] in (
        [],
        [f"{memory_id}.lock"],
    )


def test_logs_hold_nothing_of_documents_questions_and_answers(run, book, caplog, monkeypatch):
    for part in ("ask", "ingest"):  # which would keep all logs from us
        monkeypatch.setattr(f"indexmem_cli.cli.{part}.hush_libraries", lambda verbose: None)
    with caplog.at_level(logging.DEBUG):
        answer = json.loads(run("ask", "--json", book, f"Who likes {SECRET}?").stdout)["answer"]
        run("ingest", book, "--fresh")
        logging.getLogger("indexmem").debug("still listening")
    logged = "\n".join(record.getMessage() for record in caplog.records)
    assert "still listening" in logged, "else the test shows nothing"
    assert SECRET not in logged and (not answer.strip() or answer not in logged)


@contextlib.contextmanager
def nothing_asked_of_a_network():
    """Python tells an audit hook of every socket, whoever asks for it, and of every browser."""
    seen, is_watching = [], True
    sys.addaudithook(lambda event, _: seen.append(event) if is_watching else None)
    yield
    is_watching = False
    assert "open" in seen, "else the hook shows nothing"
    asked = ("socket.", "urllib.", "http.", "webbrowser.", "os.system")
    assert not [event for event in seen if event.startswith(asked)]


def test_no_socket_is_asked_for(run, book):
    with book.open("a") as file:
        file.write("[the fox](http://127.0.0.1:9/x) <http://127.0.0.1:9/y> ![](file:///dev/null)\n")
    with nothing_asked_of_a_network():
        run("ask", book, "Who?")
        run("ask", book, "And who else?")
        run("ingest", book, "--fresh")
        run("chat", book, "--max-tokens", "2", stdin="Who is [this](http://127.0.0.1:9/z)?\n")
        CliRunner().invoke(app, ["inspect", str(book)])
        CliRunner().invoke(app, ["memories", "list"])


def test_measuring_asks_for_no_socket_either(tiny_model_dir, tmp_path):
    options = ["-m", str(tiny_model_dir), "--chunk", "32", "--count", "1", "--lengths", "220"]
    options += ["--methods", "full,recency,recall", "--budgets", "96", "--out", str(tmp_path)]
    commands = [
        ["quality", "--suite", "needle", *options],
        ["pictures", "memory", "--out", str(tmp_path)],
        ["tables", "--check"],
    ]
    with nothing_asked_of_a_network():
        for command in commands:
            result = CliRunner().invoke(app, ["bench", *command])
            assert result.exit_code == 0, result.output


def test_a_whole_program_needs_no_network(tiny_model_dir, book):
    """From its start to its end, on Linux in a namespace without even a loopback."""
    code = (
        "import socket, sys\n"
        "def hook(event, _):\n"
        "    if event.startswith('socket.'): print('asked for a', event, file=sys.stderr)\n"
        "sys.addaudithook(hook)\n"
        "socket.socket().close()\n"
        "from indexmem_cli.__main__ import main\n"
        "main()\n"
    )
    options = ["ask", str(book), "Who?", "--model", str(tiny_model_dir), "--max-tokens", "2"]
    apart = ["unshare", "-rn"]
    if shutil.which("unshare") is None or subprocess.run([*apart, "true"]).returncode:
        apart = []
    result = subprocess.run(
        [*apart, sys.executable, "-c", code, *options],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("asked for a") == 1, "one of the test, to see that it is seen"
