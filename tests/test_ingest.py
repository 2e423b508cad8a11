"""Saved memories through the session and the real commands, with a tiny model."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from indexmem_cli import Memory
from indexmem_cli.cli.app import app
from indexmem_cli.errors import ConfigError, MemoryFileError
from indexmem_cli.library import MANIFEST, Library

FACTS = {
    "a.txt": "The lighthouse keeper is called Ruth",
    "b.txt": "The miller is called Tom",
    "c.txt": "The ferryman is called Bill",
}


@pytest.fixture
def books(tmp_path, monkeypatch):
    """Three files of 40 lines, each with a fact of its own."""
    monkeypatch.chdir(tmp_path)
    for name, fact in FACTS.items():
        lines = [f"{n}: {fact if n == 20 else 'the quick fox'}.\n" for n in range(40)]
        (tmp_path / name).write_text("".join(lines))
    return tmp_path


@pytest.fixture
def run(tiny_model_dir, books):
    options = ["--model", str(tiny_model_dir), "-b", "160", "--chunk", "32", "--device", "cpu"]

    def invoke(*args, stdin=None):
        return CliRunner().invoke(app, [args[0], *options, *args[1:]], input=stdin)

    return invoke


def ask(run, *args, stdin=None):
    result = run("ask", "--json", "--max-tokens", "4", *args, stdin=stdin)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_a_second_question_says_what_it_did_not_read_again(run):
    first, second = ask(run, "a.txt", "Who?"), ask(run, "a.txt", "What?")
    assert not first["memory"]["reused"] and second["memory"]["reused"]
    assert first["memory"]["id"] == second["memory"]["id"] == Library().ids()[0]
    assert second["timing"]["read_s"] == 0 and second["coverage"] == first["coverage"]
    shown = run("ask", "a.txt", "Who?", "--max-tokens", "2").stderr
    assert f"memory {first['memory']['id']} reused: " in shown and "tokens not re-read" in shown


def test_a_question_on_a_saved_memory_has_the_same_answer(run):
    question = "What is the lighthouse keeper called?"
    first, second = ask(run, "a.txt", question), ask(run, "a.txt", question)
    assert [first[k] for k in ("answer", "sources")] == [second[k] for k in ("answer", "sources")]
    assert first["recall"] == second["recall"] != []


def test_several_sources_have_a_memory_each_and_one_answer(run):
    names = list(FACTS)
    ask(run, "b.txt", "Who?")
    answer = ask(run, *names, "What is the ferryman called?")
    assert [m["source"] for m in answer["memories"]] == names
    assert [m["tokens_reused"] > 0 for m in answer["memories"]] == [False, True, False]
    assert len(Library().ids()) == 3
    recalled = [block for each in answer["recall"] for block in each["blocks"]]
    assert recalled[0]["file"] == "c.txt" and recalled[0]["line_start"] <= 21
    assert {source["file"] for source in answer["sources"]} <= set(names)
    assert answer["coverage"]["files_read"] == 3


def test_a_memory_named_before_a_file_leaves_the_files_settings_alone(run):
    run("ingest", "a.txt", "--name", "light", "--policy", "recency", "--budget", "100")
    ask(run, "light", "b.txt", "Who?")
    alone = ask(run, "b.txt", "Who?")
    assert alone["memory"]["reused"], "it was read as if it had been asked alone"
    settings = {m.source: m.key.settings for m in Library().manifests()}
    assert settings["a.txt"]["policy"] != settings["b.txt"]["policy"]
    assert settings["a.txt"]["budget_tokens"] != settings["b.txt"]["budget_tokens"]


def test_a_pipe_is_saved_by_its_content(run, books):
    text = (books / "a.txt").read_text()
    assert not ask(run, "Who?", stdin=text)["memory"]["reused"]
    assert ask(run, "-", "Who?", stdin=text)["memory"]["reused"]
    assert ask(run, "a.txt", "Who?")["memory"]["reused"], "content is what counts"


def test_what_is_not_to_be_saved_is_not(run):
    assert ask(run, "--no-save", "a.txt", "Who?")["memory"]["id"] is None
    assert Library().ids() == []


def test_a_memory_made_for_a_question_serves_no_other(run):
    first = ask(run, "--focus", "a.txt", "Who?")
    assert ask(run, "--focus", "a.txt", "Who?")["memory"]["reused"]
    other = ask(run, "--focus", "a.txt", "What?")
    assert not other["memory"]["reused"] and other["memory"]["id"] != first["memory"]["id"]
    assert Library().load(first["memory"]["id"]).key.question == "Who?"


def test_ingest_then_ask_by_name_without_the_source(run, books):
    result = run("ingest", "a.txt", "--name", "light")
    assert result.exit_code == 0 and result.stdout.startswith("a.txt: memory ")
    assert run("ingest", "a.txt", "-q").stdout.split() == Library().ids()
    (books / "a.txt").unlink()
    answer = ask(run, "light", "What is the lighthouse keeper called?")
    assert answer["memory"]["reused"] and answer["recall"]
    assert run("ingest", "b.txt", "--name", "light").exit_code == 2
    assert run("ask", "dark", "Who?").exit_code == 3


def test_a_dry_run_reads_nothing(run):
    result = run("ingest", "a.txt", "--dry-run")
    assert result.exit_code == 0 and "a.txt" in result.stdout and Library().ids() == []


def test_damage_gives_exit_code_4_and_no_answer(run):
    memory_id = ask(run, "a.txt", "Who?")["memory"]["id"]
    for part in Library().load(memory_id).parts:
        path = Library().folder(memory_id) / part
        good = path.read_bytes()
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        result = run("ask", "a.txt", "Who?")
        is_base = part in [state.part for state in Library().load(memory_id).states[:-1]]
        assert is_base or (result.exit_code == 4 and result.stdout == "")
        assert is_base or f"memories rm {memory_id}" in result.stderr
        path.write_bytes(good)
    path.write_bytes(b"")
    assert run("ask", "a.txt", "Who?", "--fresh").exit_code == 0
    assert ask(run, "a.txt", "Who?")["memory"]["reused"]


def test_python_saves_and_opens(tiny_model_dir, books):
    options = {"model": str(tiny_model_dir), "offline": True}
    memory = Memory.read("a.txt", budget=96, chunk_tokens=32, **options)
    memory_id = memory.save("light")
    first = memory.ask("What is the lighthouse keeper called?", max_tokens=4)
    opened = Memory.open("light", **options)
    again = opened.ask("What is the lighthouse keeper called?", max_tokens=4)
    assert (again.text, again.memories[0].id) == (first.text, memory_id)
    assert again.memory.budget_tokens == 96 and again.timing.read_s == 0
    with pytest.raises(MemoryFileError):
        Memory.open("dark")
    with pytest.raises(MemoryFileError, match="another weights"):
        list(Memory.open("light", model="indexmem-mini").ingest())
    with pytest.raises(ConfigError):
        Memory.read("a.txt", "b.txt", **options).save()


def test_a_reading_that_is_killed_goes_on(tiny_model_dir, books):
    (books / "long.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 150)
    code = (
        "import sys\n"
        "from indexmem_cli.library.saver import Saver\n"
        "Saver.is_due = lambda saver: True\n"
        "from indexmem_cli import Memory\n"
        f"memory = Memory.read('long.txt', model={str(tiny_model_dir)!r}, budget=96,\n"
        "    chunk_tokens=32, save=True, offline=True)\n"
        "for event in memory.ingest(): print(type(event).__name__, flush=True)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, text=True
    )
    for _ in range(12):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    [memory_id] = Library().ids()
    assert not (Library().folder(memory_id) / MANIFEST).exists()
    options = {"model": str(tiny_model_dir), "budget": 96, "chunk_tokens": 32, "offline": True}
    memory = Memory.read("long.txt", save=True, **options)
    notices = [event.message for event in memory.ingest() if hasattr(event, "message")]
    assert "cut short" in notices[0] and memory.readings[0].tokens_reused >= 5 * 32


def test_a_reading_that_is_interrupted_ends_its_chunk_and_goes_on(tiny_model_dir, books):
    (books / "long.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 150)
    code = (
        "import signal\n"
        "from indexmem_cli.reading import Reading\n"
        "keep = Reading._keep\n"
        "def interrupted(reading, *chunk):\n"
        "    if len(reading.chain.links) == 9: signal.raise_signal(signal.SIGINT)\n"
        "    keep(reading, *chunk)\n"
        "Reading._keep = interrupted\n"
        "from indexmem_cli.__main__ import main\n"
        "main()\n"
    )
    command = ["ingest", "long.txt", "--model", str(tiny_model_dir), "-b", "96", "--chunk", "32"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    stopped = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, env=environment
    )
    assert stopped.returncode == 130
    assert stopped.stderr.endswith("the same command goes on from there\ninterrupted\n")
    result = CliRunner().invoke(app, [*command, "--json"])
    assert json.loads(result.stdout)["memories"][0]["tokens_reused"] == 10 * 32
    assert "cut short" in result.stderr


def test_stdin_is_named_as_such(run):
    ask(run, "Who?", stdin=io.StringIO("the quick fox\n" * 40).getvalue())
    assert "stdin" in CliRunner().invoke(app, ["memories", "list"]).stdout
