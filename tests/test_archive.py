"""The archive: blocks on disk, found by their words, whole after a crash."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from indexmem_cli.archive import ARCHIVE, BLOCK_TOKENS, Archive
from indexmem_cli.documents import Passage, Place
from indexmem_cli.errors import MemoryFileError
from indexmem_cli.terms import terms_of
from indexmem_cli.tokens import Entry, read_chunks

HOSTILE = [
    'he said "stop" AND OR NOT (NEAR *) col:val ^x -y',
    "'; DROP TABLE blocks; --",
    "a\0b \x1b[2J",
    "שלום עולם \u202e txt",
    "{text} : * ^ + - \\ %s",
]


class Bytes:
    """A tokenizer of which every byte is a token."""

    special_tokens: dict[str, int] = {}

    def encode(self, text):
        return list(text.encode())

    def encode_batch(self, texts):
        return [self.encode(text) for text in texts]

    def decode(self, ids):
        return bytes(ids).decode("utf-8", "replace")


TOKENIZER = Bytes()


def entries_of(lines, files=("book.txt",)):
    passages = [
        Passage(line + "\n", Place(file, page, f"v{page}", n))
        for file in files
        for page, n, line in ((1 + n // 3, n, line) for n, line in enumerate(lines, start=1))
    ]
    for chunk in read_chunks(passages, TOKENIZER, 50):
        yield chunk.entries


def write(path, lines, **options):
    archive = Archive.create(path, TOKENIZER.decode)
    for entries in entries_of(lines, **options):
        archive.add(entries)
    archive.commit(last=True)
    return archive


LINES = [f"line {n} tells of the fox number {n}" for n in range(40)]


def test_blocks_hold_the_whole_text_with_its_places(tmp_path):
    written = write(tmp_path / "a.sqlite", LINES)
    archive = Archive.open(tmp_path / "a.sqlite", TOKENIZER.decode)
    blocks = list(archive)
    assert written.end == blocks[-1].end
    assert "".join(map(archive.text, blocks)) == "".join(line + "\n" for line in LINES)
    assert all(block.end - block.first <= BLOCK_TOKENS for block in blocks) and len(blocks) > 5
    assert [block.end for block in blocks[:-1]] == [block.first for block in blocks[1:]]
    entry = blocks[-1].entries[-1]
    assert entry.place == Place("book.txt", 14, "v14", 40)
    assert archive.text_of(entry) == LINES[-1] + "\n"


def test_a_block_never_goes_on_in_another_file(tmp_path):
    archive = write(tmp_path / "a.sqlite", ["one line", "two lines"], files=("a.txt", "b.txt"))
    assert [{entry.place.file for entry in block.entries} for block in archive] == [
        {"a.txt"},
        {"b.txt"},
    ]


def test_words_are_found_in_any_form_and_pairs_in_their_order(tmp_path):
    archive = write(tmp_path / "a.sqlite", ["The founding of Rome", "He founded Rome Town", "x"])
    assert archive.places_of(["Founded"], 9) == [(0, 0), (0, 1)]
    assert archive.places_of(["rome", "town"], 9) == [(0, 1)]
    assert archive.places_of(["town", "rome"], 9) == []
    assert archive.places_of(["rome"], 1) == [(0, 0)]


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("北京是中国的首都", "首都"),
        ("def parseWordList(x):", "word list"),
        ("MAX_SIZE = 3", "size"),
    ],
)
def test_words_inside_names_and_of_scripts_without_spaces_are_found(tmp_path, text, asked):
    archive = write(tmp_path / "a.sqlite", [text])
    assert all(archive.places_of([term], 9) for term in terms_of(asked))


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_in_a_text_or_question_is_syntax(tmp_path, text):
    archive = write(tmp_path / "a.sqlite", [text, "an ordinary line"])
    assert archive.text(archive.block(0)) == text + "\nan ordinary line\n"
    assert archive.places_of([text], 9) == [(0, 0)]
    for word in ('"', '" OR "x', "", "*"):
        assert archive.places_of([word], 9) == []
    assert archive.places_of(["ordinary"], 9) == [(0, 1)]
    assert archive.places_of(['x" OR "ordinary'], 9) == []


def test_going_on_writes_what_one_go_would_have_written(tmp_path):
    whole = write(tmp_path / "whole.sqlite", LINES)
    pieces = list(entries_of(LINES))
    archive = Archive.create(tmp_path / "parts.sqlite", TOKENIZER.decode)
    for entries in pieces[:20]:
        archive.add(entries)
    archive.commit(last=True)
    archive.reopen_last()
    for entries in pieces[10:]:  # some are known already
        archive.add(entries)
    archive.commit(last=True)
    assert list(archive) == list(whole)
    assert archive.places_of(["tells"], 999) == whole.places_of(["tells"], 999)
    assert archive.places_of(["39"], 9) == whole.places_of(["39"], 9) != []


def test_opened_to_ask_it_cannot_be_changed(tmp_path):
    write(tmp_path / "a.sqlite", LINES).close()
    before = (tmp_path / "a.sqlite").read_bytes()
    archive = Archive.open(tmp_path / "a.sqlite", TOKENIZER.decode)
    with pytest.raises(MemoryFileError):
        archive.add(
            [Entry(archive.end + i, [65] * 100, Place("b", None, None, 1)) for i in (9, 99)]
        )
        archive.commit(last=True)
    archive.close()
    assert (tmp_path / "a.sqlite").read_bytes() == before
    assert [path.name for path in tmp_path.glob("a.*")] == ["a.sqlite"]


@pytest.mark.parametrize("damage", [b"", b"not a database at all" * 99])
def test_a_file_that_is_no_archive_is_named(tmp_path, damage):
    path = tmp_path / "a.sqlite"
    path.write_bytes(damage)
    with pytest.raises(MemoryFileError, match="a.sqlite"):
        Archive.open(path, TOKENIZER.decode)
    with pytest.raises(MemoryFileError, match="no such archive"):
        Archive.open(tmp_path / "other.sqlite", TOKENIZER.decode)


def test_what_is_cut_off_is_an_error_and_not_a_wrong_block(tmp_path):
    path = tmp_path / "a.sqlite"
    write(path, LINES * 20).close()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(MemoryFileError):
        list(Archive.open(path, TOKENIZER.decode))


WRITER = """
import sys
sys.path.insert(0, sys.argv[1])
from test_archive import TOKENIZER, Archive, Path, entries_of
archive = Archive.create(Path(sys.argv[2]), TOKENIZER.decode)
for n, entries in enumerate(entries_of(f"line {n} of the long text" for n in range(100_000))):
    archive.add(entries)
    if n % 7 == 0:
        archive.commit()
        print(len(archive), flush=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
@pytest.mark.parametrize("delay_s", [0.0, 0.05, 0.2])
def test_a_killed_writer_leaves_every_block_it_committed(tmp_path, delay_s):
    path = tmp_path / "a.sqlite"
    code = [sys.executable, "-c", WRITER, str(Path(__file__).parent), str(path)]
    with subprocess.Popen(code, stdout=subprocess.PIPE, text=True) as process:
        committed = int(process.stdout.readline()) + int(process.stdout.readline())
        time.sleep(delay_s)
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()
    committed = max([committed, *map(int, rest)])
    archive = Archive(path, ARCHIVE.open(path, "rw"), TOKENIZER.decode)
    blocks = list(archive)
    assert len(blocks) >= committed
    assert [block.end for block in blocks[:-1]] == [block.first for block in blocks[1:]]
    assert len(archive.places_of(["line"], 10**6)) == sum(len(block.entries) for block in blocks)
