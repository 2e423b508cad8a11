"""Text, pipes and folders: what is read, how it is cut, and what is refused."""

import collections
import contextlib
import functools
import http.server
import io
import os
import subprocess
import threading
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexmem_cli.config import ReadConfig
from indexmem_cli.documents import Document, formats, open_each, open_sources, open_text
from indexmem_cli.documents.text import (
    MAX_PASSAGE_CHARS,
    clean,
    clean_blocks,
    is_binary,
    is_pdf,
    split_passages,
)
from indexmem_cli.errors import ConfigError, DocumentError

READ = ReadConfig()


def text_of(document: Document) -> str:
    return "".join(passage.text for passage in document.passages())


def open_one(path: Path, config: ReadConfig = READ) -> Document:
    [document] = open_sources([str(path)], config).documents
    return document


def names(root: Path, config: ReadConfig = READ) -> list[str]:
    documents = open_sources([str(root)], config).documents
    return [Path(document.name).relative_to(root).as_posix() for document in documents]


def make_files(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


# --- passages


def test_a_passage_is_a_line_with_the_blank_lines_after_it(tmp_path):
    path = tmp_path / "a.md"
    path.write_bytes(b"\xef\xbb\xbf\n\r\none\r\n\r\n \t\r\ntwo\rthree")
    document = open_one(path)
    passages = [(p.text, p.place.line) for p in document.passages()]
    assert passages == [("one\n\n \t\n", 3), ("two\n", 6), ("three", 7)]
    assert document.kind == "markdown"
    assert document.fraction == 1.0
    place = next(document.passages()).place
    assert (place.file, place.page, place.page_label) == (str(path), None, None)


@given(st.text(st.sampled_from("ab \n\t\r\x1b[m\x07é\ud800\0"), max_size=60))
def test_passages_joined_are_the_cleaned_text(text):
    cleaned = clean(text.replace("\r\n", "\n").replace("\r", "\n"))
    lines = cleaned.split("\n")
    while lines and (not lines[0] or lines[0].isspace()):
        del lines[0]
    passages = list(split_passages([cleaned], "f"))
    assert "".join(p.text for p in passages) == "\n".join(lines)
    assert all(p.text.strip() for p in passages)
    starts = [p.place.line for p in passages]
    assert starts == [n for n, line in enumerate(cleaned.split("\n"), 1) if line.strip()]


@given(
    st.lists(st.sampled_from(["word", " ", "\n", "\x1b[1m", "\x1b]0;t\x07", "x" * 900, "  "])),
    st.integers(1, 7),
)
def test_the_result_does_not_depend_on_the_blocks(pieces, size):
    text = "".join(pieces)
    blocks = [text[at : at + size] for at in range(0, len(text), size)]
    whole = list(split_passages([clean(text)], "f"))
    assert list(split_passages(clean_blocks(blocks), "f")) == whole


def test_a_long_line_is_cut_before_white_space():
    document = open_text("first\n" + "word " * 1000 + "\nlast")
    passages = list(document.passages())
    assert [p.place.line for p in passages] == [1, *[2] * (len(passages) - 2), 3]
    assert all(len(p.text) <= MAX_PASSAGE_CHARS + 1 for p in passages)
    assert all(p.text.startswith(" word") for p in passages[2:-1])
    assert "".join(p.text for p in passages) == "first\n" + "word " * 1000 + "\nlast"


class _Endless(io.RawIOBase):
    """A file of `size` bytes that is never whole in memory."""

    def __init__(self, piece: bytes, size: int) -> None:
        self.piece, self.left = piece, size

    def read(self, size: int = -1) -> bytes:
        size = min(size, self.left)
        self.left -= size
        return (self.piece * (size // len(self.piece) + 1))[:size]


@pytest.mark.parametrize("piece", [b"word ", b"x", b"\n", b" ", "ü".encode(), b"\x1b]0;", b"a\r\n"])
def test_memory_is_flat_whatever_the_lines_are(piece, monkeypatch):
    monkeypatch.setattr("indexmem_cli.documents.text.BLOCK_BYTES", 4096)
    [document] = open_sources([], READ, _Endless(piece, 400_000)).documents
    tracemalloc.start()
    with contextlib.suppress(DocumentError):  # where it is all blank
        collections.deque(document.passages(), maxlen=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000


def test_escape_sequences_and_controls_go_but_text_stays(tmp_path):
    path = tmp_path / "a.log"
    log = "\x1b[1;31mERROR\x1b[0m a[0]\t\x1b]8;;http://x\x1b\\link\x1b]8;;\x07\b\x7f done \x1b(B."
    path.write_text(log)
    assert text_of(open_one(path)) == "ERROR a[0]\tlink done ."


def test_an_unfinished_escape_sequence_hides_nothing():
    assert text_of(open_text("a\x1b]0;title and so on\nb\x1b[")) == "a]0;title and so on\nb["


# --- encodings


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
def test_encodings_are_detected(tmp_path, encoding):
    text = "Der Müller fährt über die Brücke – „schön“, größer als früher. Übrigens: naïve Café.\n"
    path = tmp_path / "a.txt"
    path.write_bytes((text * 4).encode(encoding))
    document = open_one(path)
    assert text_of(document) == text * 4
    assert document.undecodable_chars == 0


def test_the_encoding_is_chosen_where_ascii_ends(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"plain\n" * 20_000 + "Größe, Äpfel, süß, für Mädchen\n".encode("cp1252") * 3)
    assert text_of(open_one(path)).endswith("Größe, Äpfel, süß, für Mädchen\n")


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Les élèves étaient déjà là — près de l’école, où ça ?\n", "cp1252"),
        ("El niño comió una manzana en la montaña.\n", "cp1252"),
        ("Příliš žluťoučký kůň úpěl ďábelské ódy.\n", "cp1250"),
        ("Съешь же ещё этих мягких французских булок.\n", "koi8-r"),
        ("こんにちは世界。今日はいい天気ですね。\n", "shift_jis"),
    ],
)
def test_older_encodings_are_guessed(tmp_path, text, encoding):
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode(encoding))
    assert text_of(open_one(path)) == text


def test_wrong_bytes_in_utf8_are_replaced_and_counted(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("schön, größer, über\n".encode() * 9 + b"bad \xff byte, cut \xc3")
    document = open_one(path)
    assert text_of(document).endswith("bad \ufffd byte, cut \ufffd")
    assert document.undecodable_chars == 2


def test_a_given_encoding_is_used(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("žluťoučký".encode("utf-16-le"))
    assert text_of(open_one(path, ReadConfig(encoding="utf-16-le"))) == "žluťoučký"
    path.write_bytes(b"\xef\xbb\xbfmark")
    assert text_of(open_one(path, ReadConfig(encoding="UTF8"))) == "mark"
    for unknown in ("utf-99", "hex"):
        with pytest.raises(ConfigError, match="encoding"):
            open_one(path, ReadConfig(encoding=unknown))


def test_lone_surrogates_become_replacement_characters():
    assert text_of(open_text("a\ud800b\udfff")).count("\ufffd") >= 2


# --- what a file is


def test_files_are_told_by_content():
    assert is_pdf(b"%PDF-1.7\n") and is_pdf(b"junk\n%PDF-1.4") and is_pdf(b"\0\0%PDF-1.4")
    assert not is_pdf(b'if head.startswith(b"%PDF-1"):') and not is_pdf(b" " * 2000 + b"%PDF-1.4")
    assert is_binary(b"text\0") and is_binary(b"\x1f\x8b\x08\x01\x02") and not is_binary(b"")
    assert not is_binary("é".encode("utf-16")) and not is_binary(b"\x1b[0m log\r\n")


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"", "no text"), (b" \n\n\t", "no text"), (b"PK\x03\x04\0", "damaged"), (b"a\0b", "not a t")],
)
def test_files_without_text_are_refused(tmp_path, content, expected):
    path = tmp_path / "book.txt"
    path.write_bytes(content)
    with pytest.raises(DocumentError, match=expected):
        open_one(path)


def test_a_missing_file_names_what_is_near(tmp_path):
    (tmp_path / "book.txt").write_text("text")
    with pytest.raises(DocumentError, match="boook.txt") as error:
        open_one(tmp_path / "boook.txt")
    assert "book.txt" in error.value.hint
    with pytest.raises(DocumentError) as error:
        open_one(tmp_path / "none" / "x.txt")
    assert "no folder" in error.value.hint
    with pytest.raises(DocumentError):
        open_one(tmp_path / "book.txt" / "x")
    assert error.value.exit_code == 3


def test_devices_are_never_read():
    with pytest.raises(DocumentError, match="regular file"):
        open_one(Path("/dev/zero"))


# --- stdin


def test_stdin_is_read_once():
    [document] = open_sources([], READ, io.BytesIO(b"one\ntwo\n")).documents
    assert (document.name, document.kind, document.size_bytes) == ("-", "stdin", None)
    assert text_of(document) == "one\ntwo\n"
    assert document.fraction is None
    with pytest.raises(DocumentError, match="only once"):
        text_of(document)


@pytest.mark.parametrize(
    ("sources", "stdin"), [([], None), (["-"], None), ([], b""), (["-"], b""), (["-", "-"], b"x")]
)
def test_nothing_to_read_is_a_usage_error(sources, stdin):
    with pytest.raises(ConfigError):
        open_sources(sources, READ, None if stdin is None else io.BytesIO(stdin))


def test_blank_stdin_holds_no_text():
    [document] = open_sources(["-"], READ, io.BytesIO(b"\n \n")).documents
    with pytest.raises(DocumentError, match="no text"):
        text_of(document)


def test_a_named_pipe_that_the_user_names_is_read(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with subprocess.Popen(["sh", "-c", f"echo hello > {fifo}"]):
        assert text_of(open_one(fifo)) == "hello\n"


# --- folders


def test_readme_and_manifests_come_first_and_each_file_names_itself(tmp_path):
    files = {"b.py": "b = 1\n", "A.txt": "a\n", "pyproject.toml": "[x]\n", "readme.md": "# hi\n"}
    make_files(tmp_path, {**files, "pkg/z.py": "z\n", "pkg/README": "r\n", "pkg/empty.py": ""})
    assert names(tmp_path) == [
        *["readme.md", "pyproject.toml", "A.txt", "b.py"],
        *["pkg/README", "pkg/empty.py", "pkg/z.py"],
    ]
    documents = open_sources([str(tmp_path)], READ).documents
    assert text_of(documents[-1]) == "==== pkg/z.py ====\nz\n"
    assert text_of(documents[-2]) == "==== pkg/empty.py ====\n"
    assert [p.place.line for p in documents[-1].passages()] == [1, 1]


def test_what_is_not_worth_reading_is_counted(tmp_path):
    make_files(
        tmp_path,
        {
            "a.py": "a = 1\n",
            "logo.png": b"\x89PNG\r\n\x1a\n\0\0",
            "yarn.lock": "x\n",
            "model/tokenizer.json": '{"vocab": {}}',
            "lib.js": "x=1;" * 500,
            "api.go": "// Code generated by tool. DO NOT EDIT.\npackage x\n",
            "about.py": "GENERATED = '@generated'  # a mark that is not in a comment's place\n",
            "long.md": "one paragraph a line " * 60,
            "huge.csv": b"1,2\n" * 2_600_000,
            "node_modules/x.js": "x\n",
            ".git/config": "x\n",
            ".gitignore": "*.log\n",
            "x.log": "x\n",
        },
    )
    sources = open_sources([str(tmp_path)], READ)
    assert names(tmp_path) == [".gitignore", "a.py", "about.py", "long.md"]
    assert sources.skipped == {"binary": 1, "generated": 4, "too large": 1, "ignored": 2}


IGNORE_FILES = {
    ".gitignore": "*.log\n!keep.log\n/only_root.txt\ndoc/*\n!doc/api\nout/\n"
    "\\#x\na/**/z.txt\n!\n[z-a]\n",
    "sub/.gitignore": "!*.log\nkeep.log\n/here.txt\nout\n",
    "sub/deep/.gitignore": "*\n!yes.txt\n",
}
IGNORE_TRIED = (
    "x.log keep.log only_root.txt sub/only_root.txt doc/x.txt doc/api/x.txt out/x.txt sub/x.log"
    " sub/keep.log sub/here.txt sub/deep/here.txt sub/deep/yes.txt sub/out/x.txt #x a/z.txt"
    " a/b/c/z.txt sub/a/z.txt sub2/x.log ä.txt sp\N{NO-BREAK SPACE}ace.txt"
)


def test_ignore_files_mean_what_they_mean_to_git(tmp_path):
    make_files(tmp_path, {**dict.fromkeys(IGNORE_TRIED.split(" "), "x\n"), **IGNORE_FILES})
    git = ["git", "-C", str(tmp_path), "-c", "core.quotepath=off", "-c", "core.excludesFile="]
    subprocess.run([*git, "init", "-q"], check=True)
    listed = [*git, "ls-files", "-z", "--others", "--exclude-standard"]
    expected = subprocess.run(listed, check=True, capture_output=True).stdout.decode()
    assert sorted(names(tmp_path)) == sorted(expected.rstrip("\0").split("\0"))
    # The rules of the repository hold for a folder in it, too.
    assert names(tmp_path / "doc") == ["api/x.txt"]


def test_a_folder_that_its_repository_ignores_can_be_named(tmp_path):
    files = {".gitignore": "lib\n*.log\n", "lib/json/a.py": "a\n", "lib/json/.gitignore": "b*\n"}
    make_files(tmp_path, {**files, "lib/json/b.py": "b\n", ".git/HEAD": "x\n"})
    assert names(tmp_path / "lib" / "json") == [".gitignore", "a.py"]


def test_include_and_exclude(tmp_path):
    make_files(tmp_path, {"a.py": "a\n", "b.md": "b\n", "t/test_a.py": "t\n", "t/b.py": "b\n"})
    assert names(tmp_path, ReadConfig(include=("*.py",))) == ["a.py", "t/b.py", "t/test_a.py"]
    assert names(tmp_path, ReadConfig(include=("*.py",), exclude=("test_*",))) == ["a.py", "t/b.py"]
    assert names(tmp_path, ReadConfig(exclude=("t/",))) == ["a.py", "b.md"]
    with pytest.raises(ConfigError, match="pattern"):
        names(tmp_path, ReadConfig(exclude=("!",)))


def test_links_pipes_and_loops_are_not_followed(tmp_path):
    (tmp_path / "secret.txt").write_text("secret\n")
    root = make_files(tmp_path / "root", {"a.txt": "a\n", "sub/b.txt": "b\n"})
    (root / "out.txt").symlink_to(tmp_path / "secret.txt")
    (root / "up").symlink_to(tmp_path)
    (root / "sub/loop").symlink_to(root)
    (root / "self").symlink_to(root / "self")
    (root / "gone").symlink_to(root / "nowhere")
    os.mkfifo(root / "fifo")
    sources = open_sources([str(root)], READ)
    assert [Path(d.name).name for d in sources.documents] == ["a.txt", "b.txt"]
    assert sources.skipped == {
        "link out of the folder": 2,
        "ignored": 1,
        "unreadable": 2,
        "not a file": 1,
    }


def test_names_that_are_no_text_do_no_harm(tmp_path):
    odd = os.fsencode(tmp_path) + b"/a\xff\nb.txt"
    Path(os.fsdecode(odd)).write_text("x\n")
    [document] = open_sources([str(tmp_path)], READ).documents
    assert text_of(document) == "==== a\ufffd b.txt ====\nx\n"
    document.name.encode()


def test_a_file_that_goes_away_is_counted_and_the_others_are_read(tmp_path):
    make_files(tmp_path, {"a.txt": "a\n", "b.txt": "b\n"})
    sources = open_sources([str(tmp_path)], READ)
    (tmp_path / "a.txt").unlink()
    texts = [text_of(document) for document in sources.documents]
    assert texts == ["", "==== b.txt ====\nb\n"]
    assert sources.skipped == {"unreadable": 1}
    assert sources.documents[0].skipped_as == "unreadable"


def test_a_folder_of_nothing_is_an_error(tmp_path):
    with pytest.raises(DocumentError, match="nothing in the folder"):
        open_sources([str(tmp_path)], READ)
    make_files(tmp_path, {"x.bin": b"\0", "blank.txt": "\n"})
    with pytest.raises(DocumentError) as error:
        open_sources([str(tmp_path)], READ)
    assert "1 binary" in error.value.hint


def test_pages_are_for_pdfs(tmp_path):
    make_files(tmp_path, {"a.txt": "a\n"})
    with pytest.raises(ConfigError, match="no source has pages"):
        open_one(tmp_path / "a.txt", ReadConfig(pages=((1, 2),)))


# --- the network, and loaders of others


@pytest.fixture
def address(tmp_path):
    """A server of the files in a folder, on this machine."""
    handler = functools.partial(_Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_addresses_need_permission(tmp_path, address):
    make_files(tmp_path, {"a.txt": "one\n", "b.html": "<html><p>two</p></html>"})
    with pytest.raises(ConfigError, match="permission") as error:
        open_sources([f"{address}/a.txt"], READ)
    assert "--allow-network without --offline gives it" in error.value.hint
    allowed = ReadConfig(allow_network=True)
    text, page = open_sources([f"{address}/a.txt", f"{address}/b.html"], allowed).documents
    assert (text_of(text), text_of(page), page.kind) == ("one\n", "two\n\n", "html")
    with pytest.raises(DocumentError, match="not found"):
        open_sources([f"{address}/c.txt"], allowed)


def test_a_connection_that_breaks_off_is_named(tmp_path, address, monkeypatch):
    make_files(tmp_path, {"a.txt": "one\n" * 50_000})
    length = http.server.SimpleHTTPRequestHandler.send_header

    def too_long(self, name, value):
        length(self, name, str(int(value) + 9) if name == "Content-Length" else value)

    monkeypatch.setattr(_Quiet, "send_header", too_long)
    with pytest.raises(DocumentError, match="a.txt.*broke off"):
        open_each([f"{address}/a.txt"], ReadConfig(allow_network=True), keep_pipes=True)


@pytest.mark.parametrize("name", ["x" * 300, "x" * 300 + "/y", "~nobody-here/x"])
def test_a_name_that_cannot_be_looked_up_is_like_any_other_that_is_wrong(name):
    with pytest.raises(DocumentError, match="x"):
        open_sources([name], READ)


LOADER = """
from indexmem_cli.documents import Document, Passage, Place
class Loaded(Document):
    def _read(self):
        yield Passage("loaded", Place(self.name, None, None, 1))
def load(blob, config):
    if blob.head.startswith(b"BAD"):
        raise KeyError("x")
    return Loaded(blob.name, "mine", 1) if blob.head.startswith(b"MINE") else None
"""


def test_another_package_can_add_a_loader(tmp_path, monkeypatch):
    made = {"mine_loader.py": LOADER, "mine-1.dist-info/METADATA": "Name: mine\nVersion: 1\n"}
    points = {"mine-1.dist-info/entry_points.txt": "[indexmem.loaders]\nmine = mine_loader:load\n"}
    monkeypatch.syspath_prepend(make_files(tmp_path / "site", {**made, **points}))
    formats._loaders.cache_clear()
    files = {"a.x": b"MINE\0", "b.txt": "MIND\n", "c.txt": "BAD\n"}
    root = make_files(tmp_path / "docs", files)
    assert text_of(open_one(root / "a.x")) == "loaded"
    assert text_of(open_one(root / "b.txt")) == "MIND\n"
    with pytest.raises(DocumentError, match="mine_loader"):
        open_one(root / "c.txt")
    formats._loaders.cache_clear()


# --- what cannot be had, and what is closed then


ALLOWED = ReadConfig(allow_network=True)


def _denied(*_, **__):
    raise PermissionError(13, "Permission denied")


class _BrokenOff(io.BytesIO):
    def read(self, *_):
        raise OSError("it broke off")


@pytest.fixture
def page(monkeypatch):
    """What comes from every address."""
    stream = io.BytesIO(b"text\n")
    monkeypatch.setattr("indexmem_cli.documents.open_address", lambda *_: stream)
    return stream


@pytest.fixture
def no_space(monkeypatch):
    """A machine on which nothing can be put on the disk."""

    def refuse():
        raise FileNotFoundError(2, "No usable temporary directory")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)


def test_a_folder_that_cannot_be_looked_into_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "is_file", _denied)
    with pytest.raises(DocumentError, match=f"{tmp_path.name}: Permission denied"):
        open_sources([str(tmp_path)], READ)


def test_a_name_with_a_nul_is_that_of_a_missing_file(tmp_path):
    with pytest.raises(DocumentError, match="no such file"):
        open_sources([str(tmp_path / "a\0b")], READ)


def test_an_address_without_text_is_like_an_empty_file(tmp_path, address):
    make_files(tmp_path, {"a.txt": ""})
    with pytest.raises(DocumentError, match=r"a\.txt: the file holds no text"):
        open_sources([f"{address}/a.txt"], ALLOWED)


def test_the_answer_that_there_is_no_such_page_is_closed(address):
    with pytest.raises(DocumentError) as error:
        open_sources([f"{address}/none.txt"], ALLOWED)
    assert error.value.__cause__.fp.closed


def test_an_address_whose_first_bytes_do_not_come_is_closed(monkeypatch):
    page = _BrokenOff()
    monkeypatch.setattr("indexmem_cli.documents.open_address", lambda *_: page)
    with pytest.raises(DocumentError, match="broke off"):
        open_sources(["http://x/a.txt"], ALLOWED)
    assert page.closed


def test_a_pipe_of_which_no_copy_can_be_kept_is_named_and_closed(page, no_space, tmp_path):
    with pytest.raises(DocumentError, match="http://x/a.txt: No usable temporary"):
        open_each(["http://x/a.txt"], ALLOWED, keep_pipes=True)
    assert page.closed
    os.mkfifo(fifo := tmp_path / "fifo")
    with (
        subprocess.Popen(["sh", "-c", f"echo hello > {fifo}"]),
        pytest.raises(DocumentError, match="fifo: No usable temporary"),
    ):
        open_each([str(fifo)], READ, keep_pipes=True)


def test_an_empty_pipe_that_the_user_names_is_closed(tmp_path, monkeypatch):
    os.mkfifo(fifo := tmp_path / "fifo")
    opened, plain = [], Path.open
    monkeypatch.setattr(Path, "open", lambda *about: opened.append(plain(*about)) or opened[-1])
    with subprocess.Popen(["sh", "-c", f": > {fifo}"]), pytest.raises(ConfigError, match="empty"):
        open_one(fifo)
    assert [stream.closed for stream in opened] == [True]


@pytest.mark.parametrize(
    ("sources", "config"),
    [
        (["http://x/a.txt", "missing.txt"], ALLOWED),
        (["http://x/a.txt"], ReadConfig(allow_network=True, pages=((1, 2),))),
    ],
)
def test_an_address_is_closed_when_something_else_is_refused(page, sources, config):
    with pytest.raises((DocumentError, ConfigError)):
        open_each(sources, config)
    assert page.closed


def test_an_address_that_is_opened_stays_open_until_it_is_read(page):
    [document] = open_sources(["http://x/a.txt"], ALLOWED).documents
    assert not page.closed and text_of(document) == "text\n" and page.closed


def test_what_a_broken_pdf_brings_up_is_told_by_its_first_words():
    from indexmem_cli.documents.pdf import _one_error

    with pytest.raises(DocumentError, match=r"\(ValueError: odd\)"), _one_error("a.pdf"):
        raise ValueError("\nodd\nmore")
