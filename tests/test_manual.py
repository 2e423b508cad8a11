"""The examples of every help page, run in a shell; the manual page; completion."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_hub import LocalHub, serve_models
from saved import blank, save
from typer.main import get_command
from typer.testing import CliRunner

from indexmem_cli import settings
from indexmem_cli.cli.app import app
from indexmem_cli.cli.manual import walk
from indexmem_cli.library import Library
from indexmem_cli.library.transfer import export_memory
from indexmem_cli.sessions import Session, SessionStore, Turn, sessions_folder

TESTS = Path(__file__).parent
COMMANDS = list(walk(get_command(app), "indexmem"))
README = (TESTS.parent / "README.md").read_text(encoding="utf-8")
HELP = [
    line.strip()
    for command, _ in COMMANDS
    for line in command.help.partition("Examples:\n")[2].partition("\n\n")[0].splitlines()
    if line.strip()
]
SHOWN = [
    line.partition("  #")[0].strip()
    for kind, block in re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
    if not kind
]
EXAMPLES = list(dict.fromkeys([*HELP, *(line for line in SHOWN if "indexmem" in line)]))
# Programs that examples name and that a machine may lack.
STANDINS = {
    "jq": """import json, sys
found = [json.load(sys.stdin)]
for name in sys.argv[1].strip('.').split('.'):
    found = [value[name.removesuffix('[]')] for value in found]
    if name.endswith('[]'):
        found = [value for values in found for value in values]
print(*found)""",
    "man": "import sys; assert sys.stdin.read().startswith('.TH INDEXMEM')",
    "code": "import sys; open(sys.argv[2])",
}
# What trains, measures or needs a cluster: its options are read, and no more.
LONG = ("indexmem bench", "indexmem train", "indexmem ingest library/*.pdf --ray")
# A server runs until it is stopped.
ENDLESS = {"indexmem serve"}
# Asks before it goes on.
ASKING = ("indexmem memories rm mill", "indexmem memories rm book.pdf")


@pytest.fixture(scope="module")
def hub(tiny_model_dir: Path) -> Iterator[LocalHub]:
    with serve_models() as hub:
        hub.models |= dict.fromkeys(("Qwen/Qwen3-0.6B", "Qwen/Qwen3-4B"), tiny_model_dir)
        yield hub


@pytest.fixture
def shell(tmp_path: Path, hub: LocalHub, tiny_model_dir: Path) -> dict[str, str]:
    """A folder with what the examples name, and an environment to run them in."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, code in STANDINS.items():
        write_program(programs / name, f'{sys.executable} -c "{code}" "$@"')
    program = f"{sys.executable} {TESTS / 'fake_session.py'}"
    # A server has no use for a fake session.
    choice = f'[ "$1" = serve ] && exec {sys.executable} -m indexmem_cli "$@"'
    write_program(programs / "indexmem", f'{program} "$@"', choice)
    for folder in ("service/tests", "corpus", "runs/mini"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("app.log", "service/main.py", "book.pdf", "notes.md", "key.txt", "chat.txt"):
        (tmp_path / name).write_text("the mill passes to Ruth\n")
    shutil.copytree(tiny_model_dir, tmp_path / "my-models" / "tiny")
    return {
        **os.environ,
        **hub.environment(tmp_path / "hub"),
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(TESTS.parent),
        "EDITOR": "true",
    }


def write_program(path: Path, command: str, before: str = "") -> None:
    path.write_text(f"#!/bin/sh\n{before}\nexec {command}\n")
    path.chmod(0o755)


def save_memories(example: str, folder: Path) -> str:
    """Save what the examples of `memories` name; return the example with the ids they got."""
    library = Library()
    mill = save(library, blank("mill", name="mill"))
    notes = save(library, blank("notes", name="notes", source="book.pdf"))
    if "import" in example:
        for memory in (mill, notes):
            export_memory(library, memory.id, folder / f"{memory.name}.tar")
            library.delete(memory.id)
    return example.replace("a1f3c9", mill.id[:6])


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_runs(
    example: str, shell: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "config-backup" in example:
        settings.create_config()
    if example.startswith(LONG):
        root, words = get_command(app), shlex.split(example)[1:]
        while hasattr(root, "commands"):
            root = root.commands[words.pop(0)]
        monkeypatch.chdir(tmp_path)
        assert root.make_context(root.name, words)
        return
    if any(example.startswith(name) for name in ENDLESS):
        with subprocess.Popen(
            ["bash", "-c", f"exec {example}"], cwd=tmp_path, env=shell, stderr=-1, text=True
        ) as process:
            assert process.stderr.readline().startswith("http://127.0.0.1:")
            process.send_signal(signal.SIGINT)
            process.stderr.read()
        assert process.returncode == 130
        return
    if example.startswith("indexmem memories"):
        example = save_memories(example, tmp_path)
    if example.startswith("indexmem sessions"):
        store = SessionStore(sessions_folder())
        store.put(Session("5e55a0123456", "tiny", None))
        store.put_turn("5e55a0123456", Turn(1, 0.0, "Who inherits the mill?", "Ruth"))
        store.close()
    stdin = subprocess.DEVNULL
    if example in ASKING:
        keyboard, stdin = os.openpty()
        os.write(keyboard, b"y\n")
    command = ["bash", "-o", "pipefail", "-c", example]
    result = subprocess.run(
        command, cwd=tmp_path, env=shell, capture_output=True, text=True, stdin=stdin
    )
    if example in ASKING:
        os.close(keyboard)
        os.close(stdin)
    assert result.returncode == 0, result.stderr
    assert "rror" not in result.stderr


@pytest.mark.parametrize("line", [line for line in SHOWN if "indexmem" not in line])
def test_every_other_command_of_the_readme_is_a_target(line: str) -> None:
    program, target = shlex.split(line)
    assert program == "make"
    assert re.search(rf"^{target}:.*## ", (TESTS.parent / "Makefile").read_text("utf-8"), re.M)


@pytest.mark.parametrize(("command", "context"), COMMANDS)
def test_every_help_page_has_two_examples_of_itself(command, context) -> None:
    lines = command.help.partition("Examples:\n")[2].partition("\n\n")[0].splitlines()
    assert len([line for line in lines if context.command_path in line]) >= 2
    words = context.command_path.split()[1:]
    long, short = (CliRunner().invoke(app, [*words, flag]) for flag in ("--help", "-h"))
    assert long.exit_code == 0 and short.stdout == long.stdout


class TestManual:
    def test_it_names_every_command_and_option(self) -> None:
        text = CliRunner().invoke(app, ["man"], prog_name="indexmem").stdout.replace("\\-", "-")
        for command, context in COMMANDS:
            assert context.command_path in text
            for option in (name for each in command.params for name in each.opts):
                assert not option.startswith("--") or option in text
        table = README.partition("| exit code |")[2].partition("\n\n")[0]
        codes = re.findall(r"\d+", " ".join(re.findall(r"^\| (.*?) \|", table, re.M)))
        assert {"0", "4", "7", "141"} <= set(codes)
        for code in codes:
            assert f"\\fB{code}\\fR" in text

    @pytest.mark.skipif(shutil.which("groff") is None, reason="needs groff")
    def test_troff_has_no_complaint(self) -> None:
        page = CliRunner().invoke(app, ["man"], prog_name="indexmem").stdout
        shown = subprocess.run(
            ["groff", "-ww", "-man", "-Tutf8"], input=page, capture_output=True, text=True
        )
        assert (shown.returncode, shown.stderr) == (0, "")
        assert "indexmem models pull Qwen/Qwen3-0.6B\n" in shown.stdout


class TestCompletion:
    def complete(self, line: str) -> list[str]:
        words = line.split(" ")
        environment = {
            "_INDEXMEM_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words) - 1),
        }
        result = CliRunner().invoke(app, [], prog_name="indexmem", env=environment)
        return result.stdout.split()

    @pytest.mark.parametrize(
        ("line", "expected"),
        [
            ("indexmem ins", ["inspect"]),
            ("indexmem models p", ["pull"]),
            ("indexmem ask --polic", ["--policy"]),
            ("indexmem ask --policy k", ["knorm", "keydiff"]),
            ("indexmem ask --quant n", ["none", "nf4"]),
            ("indexmem ask -m indexmem-", ["indexmem-mini"]),
            ("indexmem models show indexmem-", ["indexmem-mini"]),
        ],
    )
    def test_words(self, line: str, expected: list[str]) -> None:
        assert self.complete(line) == expected

    def test_a_broken_file_does_not_break_it(self) -> None:
        settings.create_config().write_text("nonsense")
        assert self.complete("indexmem config sh") == ["show"]

    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_each_shell_has_its_script(self, shell: str) -> None:
        result = CliRunner().invoke(app, ["--show-completion", shell], prog_name="indexmem")
        if result.exit_code:  # the shell is found out, not named
            pytest.skip("this Typer takes no shell's name")
        assert "_INDEXMEM_COMPLETE" in result.stdout
