"""Parsers in a process of their own: whatever becomes of it, the program goes on."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_documents_pdf import make_pdf

from indexmem_cli.config import ReadConfig
from indexmem_cli.documents import apart, open_sources
from indexmem_cli.errors import ConfigError, DocumentError

BEHAVIOURS = {
    "crashes": ("os.kill(os.getpid(), 11)", r"crashed \(SIGSEGV\)"),
    "leaves": ("os._exit(7)", r"crashed \(exit code -?7\)"),
    "spins": ("any(iter(int, 1))", "stood still for 1 s"),
    "sleeps": ("time.sleep(99)", "stood still"),
    "eats memory": ("bytearray(1 << 40)", "needs more than"),
    "eats memory slowly": ("[bytearray(1 << 24) for _ in iter(int, 1)]", "needs more than"),
    "babbles": ("(os.write(out.fileno(), b'no frame' * 99), time.sleep(99))", "crashed"),
}


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch):
    """Return a function that makes the parser of PDFs do something on pages that say BREAK."""
    monkeypatch.setattr(apart, "MAX_MEMORY_BYTES", 400 << 20)

    def breaks(what: str) -> None:
        apart.end_idle()
        is_slow = "bytearray" not in what  # memory may take its time, on a busy machine
        monkeypatch.setattr(apart, "MAX_STEP_S", 1 if is_slow else 30)
        monkeypatch.setattr(apart, "MAX_WAIT_S", 3 if is_slow else 60)
        code = (
            "import os, time, pypdf; from indexmem_cli.documents import parser; "
            "out = os.fdopen(os.dup(1), 'wb'); page = pypdf.PageObject; whole = page.extract_text; "
            f"page.extract_text = lambda self: ({what}) if 'BREAK' in whole(self) else whole(self);"
        )
        monkeypatch.setattr(apart, "PROGRAM", apart.PROGRAM.replace("main()", f"{code} main()"))

    yield breaks
    apart.end_idle()


def read(*paths: Path, config: ReadConfig | None = None) -> str:
    opened = open_sources(list(map(str, paths)), config or ReadConfig())
    return "".join(p.text for document in opened.documents for p in document.passages())


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_a_parser_that_fails_is_one_error_that_names_the_file(name, tmp_path, broken):
    what, message = BEHAVIOURS[name]
    path = make_pdf(tmp_path / "bad.pdf", [["one"], ["BREAK"]])
    broken(what)
    started = time.monotonic()
    with pytest.raises(DocumentError, match=message) as error:
        read(path)
    assert error.value.exit_code == 3
    assert error.value.message.startswith(f"{path}: ") and "\n" not in error.value.message
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("name", ["crashes", "spins", "eats memory slowly"])
def test_the_rest_of_a_folder_is_read(name, tmp_path, broken):
    make_pdf(tmp_path / "a.pdf", [["BREAK"]])
    make_pdf(tmp_path / "b.pdf", [["good"]])
    (tmp_path / "c.txt").write_text("text\n")
    broken(BEHAVIOURS[name][0])
    opened = open_sources([str(tmp_path)], ReadConfig())
    text = "".join(p.text for document in opened.documents for p in document.passages())
    assert "good\n" in text and "text\n" in text
    assert sum(opened.skipped.values()) == 1


def test_a_process_serves_file_after_file(tmp_path):
    for number in range(3):
        assert read(make_pdf(tmp_path / f"{number}.pdf", [[f"page {number}"]]))
    [parser] = apart.idle
    pid = parser.pid
    assert read(make_pdf(tmp_path / "x.pdf", [["more"]])) == "more\n"
    assert apart.idle[0].pid == pid


def test_a_large_program_has_parsers_that_are_used_again(tmp_path):
    ballast = bytearray(b"x") * 600_000_000
    apart.end_idle()
    assert read(make_pdf(tmp_path / "a.pdf", [["one"]])) and len(ballast)
    assert len(apart.idle) == 1


def test_one_that_died_while_it_waited_is_replaced(tmp_path):
    path = make_pdf(tmp_path / "a.pdf", [["one"]])
    assert read(path) == "one\n"
    os.kill(apart.idle[0].pid, 9)
    time.sleep(0.05)
    assert read(path) == "one\n"


def test_two_documents_are_read_by_turns(tmp_path):
    paths = [make_pdf(tmp_path / f"{n}.pdf", [[f"{n} a"], [f"{n} b"]]) for n in range(2)]
    documents = [open_sources([str(path)], ReadConfig()).documents[0] for path in paths]
    pairs = zip(*(document.passages() for document in documents), strict=True)
    assert [(a.text, b.text) for a, b in pairs] == [("0 a\n", "1 a\n"), ("0 b\n", "1 b\n")]
    assert len(apart.idle) == 1


def test_a_document_that_is_renamed_is_called_so_from_then_on(tmp_path):
    """As the server does, whose clients are not told where their files are kept."""
    path = make_pdf(tmp_path / "a.pdf", [["one"], []])
    [document] = open_sources([str(path)], ReadConfig()).documents
    document.name = "shown.pdf"
    assert [p.place.file for p in document.passages()] == ["shown.pdf"]
    assert document.pages_without_text == ["shown.pdf p. 2"]


def test_what_is_left_half_way_starts_anew(tmp_path):
    path = make_pdf(tmp_path / "a.pdf", [["one"], ["two"]])
    [document] = open_sources([str(path)], ReadConfig()).documents
    passages = document.passages()
    assert next(passages).text == "one\n"
    passages.close()
    assert [p.text for p in document.passages()] == ["one\n", "two\n"]
    assert document.pages_read == 2


def test_text_without_end_is_refused(tmp_path, monkeypatch):
    path = make_pdf(tmp_path / "a.pdf", [["word " * 9] * 9 for _ in range(9)])
    monkeypatch.setattr(apart, "MAX_TEXT_CHARS", 100)
    with pytest.raises(DocumentError, match="more than 100 characters"):
        read(path)


def test_pages_and_passwords_reach_the_parser_and_no_command_line(tmp_path):
    path = make_pdf(tmp_path / "a.pdf", [["one"], ["two"]], encrypt="s3cret")
    assert read(path, config=ReadConfig(pages=((2, 2),), password="s3cret")) == "two\n"
    with pytest.raises(ConfigError, match="no page 9"):
        read(path, config=ReadConfig(pages=((9, 9),), password="s3cret"))
    with pytest.raises(DocumentError, match="the password does not open it"):
        read(path, config=ReadConfig(password="wrong"))
    assert read(path, config=ReadConfig(password="s3cret")) == "one\ntwo\n"
    process = Path(f"/proc/{apart.idle[0].pid}")
    if process.exists():
        told = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        assert b"s3cret" not in told


def test_the_process_knows_no_torch_and_not_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "pypdf.py").write_text("raise SystemExit('run')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    apart.end_idle()
    assert read(make_pdf(tmp_path / "a.pdf", [["one"]])) == "one\n"
    maps = Path(f"/proc/{apart.idle[0].pid}/maps")
    assert not maps.exists() or "torch" not in maps.read_text()


def test_no_process_outlives_the_program(tmp_path):
    path = make_pdf(tmp_path / "a.pdf", [["one"]])
    code = (
        "import sys; from indexmem_cli.config import ReadConfig;"
        "from indexmem_cli.documents import apart, open_sources;"
        f"open_sources([{str(path)!r}], ReadConfig()); print(apart.idle[0].pid)"
    )
    pid = int(subprocess.check_output([sys.executable, "-c", code]))
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
