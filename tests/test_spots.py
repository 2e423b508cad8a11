"""Finer places of texts: the heading, the row, the function that a passage is in."""

import subprocess
from pathlib import Path

import pytest

from indexmem_cli.config import ReadConfig
from indexmem_cli.documents import open_sources
from indexmem_cli.documents.symbols import find_symbols
from indexmem_cli.errors import DocumentError

READ = ReadConfig()
STOCKROOM = Path(__file__).parents[1] / "examples" / "stockroom"

SOURCES = {
    ".py": (
        "import x\n@dec\nclass A:\n  def f(self):\n    def g(): pass\n    return g\nX = (\n1)\n",
        [None, "A", "A", "A.f", "A.f.g", "A.f", "X", "X"],
    ),
    ".js": ("const f = () => {\n};\nclass B {\n  m() { }\n}\nlet z = 3;\n", "f f B B.m B -"),
    ".jsx": ("function F() {\n  return <a/>;\n}\n", "F F F"),
    ".ts": ("namespace N {\n export function q(): void {\n }\n}\n", "N N.q N.q N"),
    ".tsx": ("interface P { a: string }\nexport const C = (p: P) => {\n <b/>\n};\n", "P C C C"),
    ".go": ("package p\nfunc (r *Reader[T]) Read() {\n}\ntype S struct {\n}\n",
            "- Reader.Read Reader.Read S S"),
    ".rs": ("impl<T> R<T> {\n  fn read(&self) {\n  }\n}\nstruct S;\n",
            "R<T> R<T>.read R<T>.read R<T> S"),
    ".java": ("class A {\n  A() {}\n  void run() {\n  }\n}\n", "A A.A A.run A.run A"),
    ".c": ("struct p *make(int a)\n{\n}\nstruct p { int x; };\nint y;\n", "make make make p -"),
    ".cpp": ("namespace n {\nint A::run() {\n}\nclass B { void f() {} };\n}\n",
             "n n.A::run n.A::run n.B.f n"),
    ".rb": ("module M\n class A\n  def self.x\n  end\n end\nend\n", "M M.A M.A.x M.A.x M.A M"),
    ".php": ("<?php\nclass A {\n function b() {\n }\n}\n", "- A A.b A.b A"),
    ".cs": ("class A {\n int P { get; }\n void F() {\n }\n}\n", "A A.P A.F A.F A"),
    ".sh": ("run() {\n  echo\n}\n", "run run run"),
}  # fmt: skip


@pytest.mark.parametrize("suffix", SOURCES)
def test_every_language_names_its_functions(tmp_path, suffix):
    source, expected = SOURCES[suffix]
    if isinstance(expected, str):
        expected = [None if name == "-" else name for name in expected.split()]
    path = tmp_path / f"x{suffix}"
    path.write_bytes(source.replace("\n", "\r\n").encode())
    [document] = open_sources([str(path)], READ).documents
    passages = list(document.passages())
    assert [passage.place.symbol for passage in passages] == expected
    assert "".join(passage.text for passage in passages) == source


def test_code_that_does_not_parse_or_is_nested_deeply_does_no_harm():
    assert find_symbols(b"def f(:\n  (((\nclass", ".py").get(9) is None
    assert find_symbols(b"def a():\n  pass\n)))\ndef b():\n  pass\n", ".py")[5] == "b"
    deep = b"function f() {\n" * 5000
    assert find_symbols(deep + b"}" * 5000, ".js")[4000].count("f") <= 10


def test_the_names_of_the_example_are_those_in_the_file():
    path = STOCKROOM / "stockroom" / "ledger.py"
    [document] = open_sources([str(path)], READ).documents
    for passage in document.passages():
        if passage.text.startswith(("def ", "    def ")):
            name = passage.text.split("def ")[1].split("(")[0]
            assert passage.place.symbol.split(".")[-1] == name


def test_markdown_names_its_headings(tmp_path):
    path = tmp_path / "a.md"
    path.write_text(
        "top\n# One #\ntext\n```\n# no heading\n```\n## Two\n~~~~\n```\n# no\n~~~~\n#tag\n"
    )
    [document] = open_sources([str(path)], READ).documents
    headings = [passage.place.member for passage in document.passages()]
    assert headings == [None, *["One"] * 5, *["Two"] * 6]


def test_rows_are_counted_where_a_row_has_several_lines(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(f'name,note\nAnn,"two\nlines"\nBob,{"x " * 1500}\nEve,"one ""word"""\n')
    [document] = open_sources([str(path)], READ).documents
    places = [passage.place for passage in document.passages()]
    assert [place.line for place in places] == [1, 2, 2, 3, 3, 3, 4]
    assert {place.unit for place in places} == {"row"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"t": "a 5\\" disk"}\n{"t": "b"}\n{"t": "c"}\n'),
        ("a.tsv", 'screen\t5" wide\nb\t1\nc\t2\n'),
        ("a.csv", 'a,"say ""hi, you"""\nb,""\nc,5" or "so"\n'),
    ],
)
def test_a_quotation_mark_within_a_row_opens_nothing(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    [document] = open_sources([str(path)], READ).documents
    assert [passage.place.line for passage in document.passages()] == [1, 2, 3]


def test_every_ignore_rule_means_what_it_means_to_git(tmp_path):
    """More of them, in folders that are nested, than the ones that were thought of one by one."""
    names = ["a", "b.txt", "ab", "x.y", " s", "[q]"]
    patterns = r"a a/ /a *.txt !b.txt **/ab a/** !a/ x.? [a-b]* \[q] !*/ * b.txt/ a/*/ab !x.y #x"
    patterns = [*patterns.split(), r"\ s", "**/a/b.txt"]
    for top in names[:3]:
        for inner in names:
            folder = tmp_path / "d" / top / inner
            folder.mkdir(parents=True)
            for name in names:
                (folder / name).write_text("x\n")
    git = ["git", "-C", str(tmp_path), "-c", "core.quotepath=off", "-c", "core.excludesFile="]
    subprocess.run([*git, "init", "-q"], check=True)
    for at in range(len(patterns)):
        first = [patterns[at], patterns[(at * 7 + 3) % len(patterns)]]
        second = [patterns[(at * 5 + 1) % len(patterns)], patterns[(at * 3 + 2) % len(patterns)]]
        (tmp_path / ".gitignore").write_text("\n".join(first) + "\n")
        (tmp_path / "d" / "a" / ".gitignore").write_text("\n".join(second) + "\n")
        listed = [*git, "ls-files", "-z", "--others", "--exclude-standard"]
        run = subprocess.run(listed, check=True, capture_output=True)
        expected = set(run.stdout.decode().split("\0")) - {""}
        try:
            documents = open_sources([str(tmp_path)], READ).documents
        except DocumentError:  # nothing to read
            documents = []
        found = {Path(document.name).relative_to(tmp_path).as_posix() for document in documents}
        assert found == expected, (first, second)
