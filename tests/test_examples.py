"""The example documents are what examples/README.md says, and its answers stand in them."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pypdf
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
BOOK = EXAMPLES / "short-history-of-the-world.pdf"

SMALL_BOOK = """A Title
PREFACE
Read it like a "novel"--almost.
{vii}
CONTENTS
CHAPTER PAGE I. THE SEA 1 II. KING ASOKA AND DARIUS I 5
{1}
I
THE SEA
The sea is deep, {2} and it's salt.
[Illustration: A CALM SEA, SEEN
FROM THE SHORE]
====================
Ships sail on it. [1]
[1] Not all of them.
{5}
II
KING ASOKA AND DARIUS I
He reigned & ruled.
CHRONOLOGICAL TABLE
About this time.
B.C.
264. He began to reign, and
reigned long.
A.D. 14. Another reign.
INDEX
Sea, 1
"""


def read_table(heading: str) -> list[list[str]]:
    """Rows of the table under `heading` in examples/README.md, without its two header lines."""
    section = (EXAMPLES / "README.md").read_text(encoding="utf-8").split(f"## {heading}\n")[1]
    rows = [line for line in section.split("\n## ")[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def join_lines(text: str) -> str:
    return re.sub(r"\s+", " ", text)


@pytest.fixture(scope="module")
def book() -> pypdf.PdfReader:
    return pypdf.PdfReader(BOOK)


@pytest.fixture(scope="module")
def make_book():
    spec = importlib.util.spec_from_file_location("make_book", EXAMPLES / "make_book.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_book"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["make_book"]


def test_book_is_whole_and_labelled(book):
    labels = book.page_labels
    num_body_pages = len(labels) - 6
    assert labels[:6] == ["i", "ii", "iii", "iv", "v", "vi"]
    assert labels[6:] == [str(number) for number in range(1, num_body_pages + 1)]
    assert 300 <= len(labels) <= 420
    assert BOOK.stat().st_size < 1_500_000
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert f"{len(labels)} pages, 67 chapters, page labels i–vi and 1–{num_body_pages}" in readme


def test_book_prints_its_labels_and_opens_chapters_where_the_outline_says(book):
    for label, page in list(zip(book.page_labels, book.pages, strict=True))[2::25]:
        assert page.extract_text().split()[-1] == label
    titles = [entry.title for entry in book.outline]
    assert len(titles) == 68
    assert titles[0] == "I. The World in Space"
    assert titles[19] == "XX. The Last Babylonian Empire and the Empire of Darius I"
    for entry in book.outline[:67:11]:
        numeral, title = entry.title.split(". ")
        text = join_lines(book.pages[book.get_destination_page_number(entry)].extract_text())
        assert text.startswith(f"{numeral} {title}")


def test_book_holds_no_leftovers_of_the_transcription(book):
    text = "".join(page.extract_text() for page in book.pages)
    assert not re.search(r"Illustration|\[Map|Gutenberg|Transcriber|et seq|==|[{}\"]|--", text)


def test_book_states_the_facts_of_the_readme(book):
    facts = read_table("Facts in the book")
    assert len(facts) == 21
    for label, _, answer, sentence in facts:
        page = book.pages[book.page_labels.index(label)]
        assert sentence in join_lines(page.extract_text())
        for name_or_number in re.findall(r"[A-Z]\w+|\d[\d,]*", answer):
            assert name_or_number in sentence


def test_small_book_is_parsed(make_book):
    book = make_book.parse_book(SMALL_BOOK)
    assert book.preface == ["Read it like a “novel”—almost."]
    sea, asoka, table = book.chapters
    assert (sea.name, asoka.name) == ("I. The Sea", "II. King Asoka and Darius I")
    assert sea.paragraphs == [
        "The sea is deep, and it’s salt.",
        "Ships sail on it. [1]",
        "[1] Not all of them.",
    ]
    assert table.paragraphs == [
        "About this time.",
        "B.C.",
        "264. He began to reign, and reigned long.",
        "A.D. 14. Another reign.",
    ]


def test_the_same_text_gives_the_same_bytes(make_book, tmp_path):
    for name in ("first.pdf", "second.pdf"):
        make_book.make_book(SMALL_BOOK, tmp_path / name)
    assert (tmp_path / "first.pdf").read_bytes() == (tmp_path / "second.pdf").read_bytes()
    reader = pypdf.PdfReader(tmp_path / "first.pdf")
    assert reader.page_labels == ["i", "ii", "iii", "iv", "1", "2", "3"]
    assert "He reigned & ruled." in reader.pages[5].extract_text()


@pytest.mark.parametrize(
    ("number", "numeral"), [(1, "I"), (4, "IV"), (19, "XIX"), (49, "XLIX"), (67, "LXVII")]
)
def test_roman_numerals(make_book, number, numeral):
    assert make_book.to_roman(number) == numeral


def test_codebase_passes_its_own_tests(tmp_path):
    project = shutil.copytree(EXAMPLES / "stockroom", tmp_path / "stockroom")
    command = [sys.executable, "-m", "unittest"]
    run = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert re.search(r"Ran [5-9] tests", run.stderr)


def test_codebase_has_a_file_that_its_gitignore_names():
    assert "*.log" in (EXAMPLES / "stockroom" / ".gitignore").read_text(encoding="utf-8").split()
    assert (EXAMPLES / "stockroom" / "receive.log").is_file()


def test_codebase_and_chat_state_the_facts_of_the_readme():
    codebase = "".join(
        path.read_text(encoding="utf-8")
        for path in (EXAMPLES / "stockroom").rglob("*")
        if path.suffix in {".py", ".md"}
    ).replace("10_000", "10,000")
    texts = {
        "`stockroom/`": codebase,
        "`chat.txt`": (EXAMPLES / "chat.txt").read_text(encoding="utf-8"),
    }
    facts = read_table("Facts in the codebase and in the chat")
    assert len(facts) == 8
    for document, _, answer, _ in facts:
        assert answer in texts[document]
