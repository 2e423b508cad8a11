"""The example scripts run, and print what they promise."""

import re
import runpy
from pathlib import Path

import pytest
import torch

from indexmem_cli.config import POLICIES
from indexmem_cli.memory.policies import SCORERS
from indexmem_cli.train import quick

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = EXAMPLES / "scripts"


def run(name: str, *arguments: str, capsys) -> str:
    """Call `main` of a script; return what it printed."""
    main = runpy.run_path(str(SCRIPTS / f"{name}.py"))["main"]
    main(*arguments)
    shown = capsys.readouterr()
    assert not shown.err  # no bars of libraries in the programs of others
    return shown.out


def test_ask_a_book(capsys) -> None:
    book = str(EXAMPLES / "short-history-of-the-world.pdf")
    question = "Which dynasty did Kublai Khan found?"
    shown = run("ask_a_book", book, question, "353-356", capsys=capsys).splitlines()
    assert "Yuan" in shown[0]
    assert shown[1].startswith("  page 349: ") and "Kublai Khan" in shown[1]
    assert "MiB kept instead of" in shown[-1]


def test_the_program_in_the_readme_runs(tmp_path, monkeypatch, capsys) -> None:
    readme = (EXAMPLES.parent / "README.md").read_text("utf-8")
    (code,) = re.findall(r"^```python\n(from .*?)^```$", readme, re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    Path("book.pdf").write_text("The mill was left to Ruth. She inherits the mill.\n")
    exec(code, {})
    assert "Ruth" in capsys.readouterr().out


def test_ask_a_codebase(capsys) -> None:
    question = "Where is the class NotEnoughStock defined?"
    shown = run("ask_a_codebase", str(EXAMPLES / "stockroom"), question, capsys=capsys)
    assert "  stockroom/errors.py:8 NotEnoughStock\n" in shown
    assert "left out: 1 (ignored)\n" in shown


def test_ask_a_chat(capsys) -> None:
    chat, question = str(EXAMPLES / "chat.txt"), "What was the reference number of the form?"
    shown = run("ask_a_chat", chat, question, "Tomasz", "Petra", capsys=capsys).splitlines()
    assert shown[0] == "4417-HS" and shown[1].startswith("  2024-05-11 17:20 Tomasz: ")
    read, _, _, left_out, *_ = shown[-1].split()
    assert 1 < int(read) < 79 and int(read) + int(left_out) == 79


def test_use_from_python(capsys, tmp_path: Path) -> None:
    both, reopened, coverage, error = run("use_from_python", tmp_path, capsys=capsys).splitlines()
    assert both == "the blue pot ['notes.md']"
    assert reopened.endswith(": 24 tokens not read again)")
    assert "'tokens_read': 24" in coverage
    assert error == "exit code 3: no such file or folder: /letter.txt"


def test_train_an_adapter(capsys, tmp_path: Path, tiny_model_dir: Path, monkeypatch) -> None:
    # A model of random weights has nothing to fit: only whether all runs through can be tested.
    monkeypatch.setattr(quick, "LEAST_CORRELATION", -1.0)
    monkeypatch.setattr(quick, "CHUNK_TOKENS", 60)
    text, out = tmp_path / "text.txt", tmp_path / "out"
    text.write_text("the mill passes to Ruth, and the brown fox to her lazy dog\n" * 30, "utf-8")
    threads = torch.get_num_threads()
    shown = run("train_an_adapter", str(tiny_model_dir), str(text), str(out), capsys=capsys)
    torch.set_num_threads(threads)
    assert shown.startswith(f"{out}/adapter.safetensors: quick, held-out rank correlation ")
    assert "until then keydiff keeps" in shown


def test_add_a_scorer(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    for table in (SCORERS, POLICIES):
        monkeypatch.setitem(table, "surprise", None)  # taken away again after the test
    shown = run("add_a_scorer", str(EXAMPLES / "chat.txt"), capsys=capsys).splitlines()
    early = {line.split()[0]: int(line.split()[1]) for line in shown}
    assert list(early) == ["surprise", "keydiff", "recency"]
    assert early["surprise"] > early["recency"]
