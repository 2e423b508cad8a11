"""Files made to do harm, through the real command: text or one clear error, in time and memory."""

import copy
import os
import socket
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from test_documents_pdf import make_pdf
from typer.testing import CliRunner

from indexmem_cli.cli.app import app
from indexmem_cli.config import ReadConfig
from indexmem_cli.documents import apart, open_sources

MANY = 10_000


def inspect(*sources: object):
    """Read to the end, without a model."""
    return CliRunner().invoke(app, ["inspect", *map(str, sources)])


def pdf_of(objects: list[bytes], root: int = 1) -> bytes:
    """Write objects by hand, with a table of where they are."""
    out, places = bytearray(b"%PDF-1.7\n"), []
    for number, content in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    xref = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % at for at in places)
    size = len(objects) + 1
    return bytes(out) + b"trailer<</Size %d/Root %d 0 R>>\nstartxref\n%d\n%%%%EOF" % (
        *(size, root),
        xref,
    )


CATALOG = b"<</Type/Catalog/Pages 2 0 R>>"
FONT = b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"


def one_page(content: bytes, extra: bytes = b"", *more: bytes) -> bytes:
    """A PDF of one page whose content is a stream with the given dictionary entries."""
    page = (
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]/Contents 4 0 R"
        b"/Resources<</Font<</F 5 0 R>>/XObject<</X 6 0 R>>>>>>"
    )
    stream = b"<</Length %d%s>>stream\n%s\nendstream" % (len(content), extra, content)
    return pdf_of([CATALOG, b"<</Type/Pages/Kids[3 0 R]/Count 1>>", page, stream, FONT, *more])


def flate(data: bytes, times: int = 1) -> bytes:
    for _ in range(times):
        data = zlib.compress(data, 9)
    return data


def form(content: bytes) -> bytes:
    return (
        b"<</Type/XObject/Subtype/Form/BBox[0 0 9 9]/Resources<</XObject<</X 6 0 R>>>>"
        b"/Length %d>>stream\n%s\nendstream" % (len(content), content)
    )


BOMB = flate(b"(A) Tj " * 15_000_000)
PDFS: dict[str, Callable[[], bytes]] = {
    "a stream of 105 MB in 100 kB": lambda: one_page(BOMB, b"/Filter/FlateDecode"),
    "a stream packed three times": lambda: one_page(
        flate(b"\0" * 100_000_000, 3), b"/Filter[/FlateDecode/FlateDecode/FlateDecode]"
    ),
    "a drawing that draws itself": lambda: one_page(b"/X Do", b"", form(b"/X Do /X Do")),
    "deep nesting of arrays": lambda: pdf_of([CATALOG, b"[" * MANY + b"]" * MANY]),
    "deep nesting of dictionaries": lambda: pdf_of([CATALOG, b"<</A" * MANY + b">>" * MANY]),
    "deep nesting on a page": lambda: one_page(b"[" * MANY + b"]" * MANY + b" TJ"),
    "states saved without end": lambda: one_page(b"q " * 1_000_000),
    "a page tree that is its own child": lambda: pdf_of(
        [CATALOG, b"<</Type/Pages/Kids[2 0 R 2 0 R]/Count 2/Parent 2 0 R>>"]
    ),
    "a billion pages by its count": lambda: pdf_of(
        [CATALOG, b"<</Type/Pages/Kids[3 0 R]/Count 999999999>>", b"<</Type/Page/Parent 2 0 R>>"]
    ),
    "an object that is itself": lambda: pdf_of([CATALOG, b"2 0 R"]),
    "a length that is itself": lambda: one_page(b"x").replace(b"/Length 1", b"/Length 4 0 R"),
    "a picture of huge dimensions": lambda: one_page(
        b"/X Do",
        b"",
        b"<</Type/XObject/Subtype/Image/Width 999999999/Height 999999999/BitsPerComponent 8"
        b"/ColorSpace/DeviceRGB/Filter/FlateDecode/Length 8>>stream\nxxxxxxxx\nendstream",
    ),
    "a table of a billion objects": lambda: pdf_of([CATALOG]).replace(
        b"xref\n0 2", b"xref\n0 999999999"
    ),
    "a table that follows itself": lambda: pdf_of([CATALOG]).replace(
        b"/Root", b"/Prev 60/XRefStm 60/Root"
    ),
    "no table": lambda: pdf_of([CATALOG, b"<</Kids[]>>"]).split(b"xref")[0],
    "a table at a place that is none": lambda: pdf_of([CATALOG])[:-6] + b"9" * 40 + b"\n%%EOF",
    "a number of a million digits": lambda: pdf_of([CATALOG, b"9" * 1_000_000]),
    "predictors of huge width": lambda: one_page(
        flate(b"x" * 999),
        b"/Filter/FlateDecode/DecodeParms<</Predictor 15/Columns 2147483647/Colors 99>>",
    ),
    "names by a cyclic map of characters": lambda: one_page(b"BT /F 9 Tf (abc) Tj ET").replace(
        FONT, b"<</Type/Font/Subtype/Type0/ToUnicode 5 0 R/Encoding 5 0 R>>"
    ),
}


@pytest.mark.parametrize("name", PDFS)
def test_hostile_pdfs(name, tmp_path):
    path = tmp_path / "x.pdf"
    path.write_bytes(PDFS[name]())
    assert path.stat().st_size < 3_000_000
    refused_or_read(path)


def refused_or_read(path: Path, limit_s: float = 20.0) -> str:
    """See that reading ends soon in text or one error; return what was shown."""
    started = time.monotonic()
    result = inspect(path)
    assert time.monotonic() - started < limit_s
    assert result.exit_code in (0, 3), result.output
    assert "Traceback" not in result.output
    if result.exit_code == 3:
        lines = result.stderr.strip().splitlines()
        assert lines[0].startswith(f"error: {path}"), lines
        assert len(lines) <= 2 and all(len(line) < 400 for line in lines)
    return result.output


CONTAINER = '<container><rootfiles><rootfile full-path="{}"/></rootfiles></container>'
PACKAGE = (
    '<package><manifest><item id="a" href="{}" media-type="application/xhtml+xml"/></manifest>'
    '<spine><itemref idref="a"/></spine></package>'
)
W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
LAUGHS = '<!DOCTYPE x [<!ENTITY a "ha">{}]>'.format(
    "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True))
)
ZIPS: dict[str, dict[str, str]] = {
    "a Word file of ten billion laughs": {
        "word/document.xml": f"{LAUGHS}<w:document {W}><w:p><w:r><w:t>&i;</w:t></w:r></w:p>"
        "</w:document>"
    },
    "a Word file that reads another file": {
        "word/document.xml": '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>'
        f"<w:document {W}><w:p><w:r><w:t>&a;</w:t></w:r></w:p></w:document>"
    },
    "a Word file nested deeply": {
        "word/document.xml": f"<w:document {W}>" + "<w:tbl>" * MANY + "</w:tbl>" * MANY
    },
    "a Word file in a line of 50 MB": {
        "word/document.xml": f"<w:document {W}><w:p><w:r><w:t>{'x' * 50_000_000}</w:t></w:r></w:p>"
        "</w:document>"
    },
    "a book that leads out of itself": {
        "META-INF/container.xml": CONTAINER.format("p.opf"),
        "p.opf": PACKAGE.format("../../../../../../../../etc/passwd"),
    },
    "a book whose package is outside": {
        "META-INF/container.xml": CONTAINER.format("../../../../etc/passwd")
    },
    "a book of ten billion laughs": {
        "META-INF/container.xml": CONTAINER.format("p.opf"),
        "p.opf": LAUGHS + "<package>&i;</package>",
    },
    "a page nested deeply": {
        "META-INF/container.xml": CONTAINER.format("p.opf"),
        "p.opf": PACKAGE.format("a.xhtml"),
        "a.xhtml": "<div>" * MANY + "deep" + "</div>" * MANY,
    },
    "members that leave the folder": {
        "users.json": '[{"id":"U1"}]',
        "../../evil/2024-01-01.json": '[{"type":"message","user":"U1","text":"hi","ts":"1"}]',
        "/abs/2024-01-01.json": '[{"type":"message","user":"U1","text":"hi","ts":"1"}]',
    },
}


@pytest.mark.parametrize("name", ZIPS)
def test_hostile_zips(name, tmp_path, monkeypatch):
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    path = folder / "x"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for member, content in ZIPS[name].items():
            made.writestr(member, content)
    output = refused_or_read(path)
    assert "root:" not in output
    assert {p.name for p in folder.iterdir()} == {"x"}, "nothing was unpacked"
    assert not list(tmp_path.rglob("2024-01-01.json")) and not Path("/abs").exists()


def test_a_zip_of_one_member_that_is_mostly_nothing(tmp_path):
    path = tmp_path / "x"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("word/document.xml", f"<w:document {W}>" + "<w:p/>" * 3_000_000)
    refused_or_read(path)


def test_a_zip_of_the_same_bytes_many_times_over(tmp_path):
    """Members that overlap: each is small, all together are not."""
    path = tmp_path / "x"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("word/document.xml", f"<w:document {W}>" + "<w:p/>" * 20_000)
        for number in range(5_000):
            again = copy.copy(made.filelist[0])
            again.filename = f"word/{number}.xml"
            made.filelist.append(again)
    refused_or_read(path)


LINES = "one line\n"
TEXTS: dict[str, Callable[[], bytes]] = {
    "NULs after text": lambda: b"text " * 20_000 + b"\0" * 100_000,
    "lone surrogates": lambda: b"a \xed\xa0\x80\xed\xbf\xbf b\n" * 99,
    "UTF-16 cut within a character": lambda: "words ☃𝄞".encode("utf-16") * 99 + b"\x3d",
    "UTF-32 of impossible values": lambda: b"\xff\xfe\0\0" + b"\xff\xff\xff\xff" * 99,
    "mixed encodings": lambda: "é".encode("latin-1") * 99 + "é☃".encode() * 99 + b"\x81\x8d" * 9,
    "right-to-left overrides": lambda: "a \u202e exe.txt \u2066 b\n".encode() * 99,
    "a line of 5 MB": lambda: b"word " * 1_000_000,
    "a line of 3 MB without a space": lambda: b"x" * 3_000_000,
    "many blank lines": lambda: b"a" + b"\n" * 200_000 + b"b",
    "escapes without end": lambda: b"a \x1b]8;;" * 200_000,
    "JSON nested deeply": lambda: b'{"messages":' + b"[" * 500_000,
    "JSON of one long number": lambda: b'[{"role":"user","content":' + b"9" * 2_000_000,
    "HTML nested deeply": lambda: b"<!doctype html><body>" + b"<div>" * 20_000 + b"deep",
    "HTML of many attributes": lambda: b"<!doctype html><body><p " + b"a=b " * 500_000 + b">x",
    "mail of many parts": lambda: (
        b"From: a@b\nTo: c@d\nSubject: x\nContent-Type: multipart/mixed;"
        b' boundary="b"\n\n' + b"--b\n\n" * 3_000
    ),
    "mail nested deeply": lambda: (
        b"From: a@b\nTo: c@d\nSubject: x\n"
        + b"".join(
            b'Content-Type: multipart/mixed; boundary="%d"\n\n--%d\n' % (n, n) for n in range(500)
        )
    ),
    "a chat of headers alone": lambda: b"31.12.21, 10:00 - Ann: \n" * 20_000,
}


@pytest.mark.parametrize("name", TEXTS)
def test_hostile_texts(name, tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(TEXTS[name]())
    output = refused_or_read(path, limit_s=30.0)
    assert not any(control in output for control in "\0\x1b\u202e\u2066")


@pytest.mark.parametrize(
    "encoding",
    [
        *("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "utf-7", "cp1252", "cp1251"),
        *("cp437", "koi8_r", "shift_jis", "euc_jp", "iso2022_jp", "gb18030", "big5", "euc_kr"),
        *("hz", "mac_roman", "cp037", "punycode", "idna", "rot13", "base64", "undefined"),
    ],
)
def test_every_encoding_by_name(encoding, tmp_path):
    """Also those that are no encodings of text, and those that are not those of the file."""
    path = tmp_path / "x.txt"
    path.write_bytes("Grüße – 文 Привет\n".encode() * 9 + b"\xff\xfe\x80~{")
    result = CliRunner().invoke(app, ["inspect", str(path), "--encoding", encoding])
    assert result.exit_code in (0, 2, 3) and "Traceback" not in result.output
    assert len(result.stderr.strip().splitlines()) <= 2


def test_what_is_no_file_is_not_waited_for(tmp_path):
    folder = tmp_path / "all"
    folder.mkdir()
    (folder / "a.txt").write_text(LINES)
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
    (folder / "loop").symlink_to("loop")
    (folder / "round").symlink_to(folder, target_is_directory=True)
    (folder / "out").symlink_to("/etc/passwd")
    (folder / "endless").symlink_to("/dev/zero")
    started = time.monotonic()
    opened = open_sources([str(folder)], ReadConfig())
    assert [document.name for document in opened.documents] == [str(folder / "a.txt")]
    assert sum(opened.skipped.values()) == 6
    for name in ("/dev/zero", "/dev/null", str(folder / "socket"), str(folder / "loop")):
        result = inspect(name)
        assert result.exit_code == 3 and result.stderr.count("error:") == 1, result.output
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("num_files", [1_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_many_tiny_files(num_files, tmp_path):
    folder = tmp_path / "all"
    for number in range(num_files // 100):
        (folder / f"{number}").mkdir(parents=True)
        for inner in range(100):
            (folder / f"{number}" / f"{inner}.txt").write_text(LINES)
    opened = open_sources([str(folder)], ReadConfig())
    open_files = Path("/proc/self/fd")
    before = len(list(open_files.iterdir())) if open_files.exists() else 0
    num_lines = sum(1 for document in opened.documents for _ in document.passages())
    assert num_lines == 2 * num_files, "a line and a header each"
    if before:
        assert len(list(open_files.iterdir())) <= before + 3


@pytest.mark.slow
def test_a_line_of_a_gigabyte(tmp_path):
    path = tmp_path / "x.txt"
    with path.open("wb") as file:
        for _ in range(1_000):
            file.write(b"word " * 200_000)
    [document] = open_sources([str(path)], ReadConfig()).documents
    tracemalloc.start()
    try:
        assert sum(len(p.text) for p in document.passages()) == 1_000_000_000
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_names_of_every_byte(tmp_path):
    folder = tmp_path / "all"
    folder.mkdir()
    for byte in range(1, 256):
        if byte != ord("/"):
            name = os.fsdecode(b"x" + bytes([byte]) + b".txt")
            (folder / name).write_text(LINES)
    result = inspect(folder, "-v")
    assert result.exit_code == 0, result.output
    assert not set(result.output) & set("\x1b\x07\x9b\r\x7f")


def test_a_bomb_in_a_folder_does_not_keep_the_rest_from_being_read(tmp_path, monkeypatch):
    monkeypatch.setattr(apart, "MAX_MEMORY_BYTES", 300 << 20)
    folder = tmp_path / "all"
    folder.mkdir()
    bombs = ("a stream packed three times", "deep nesting of arrays", "an object that is itself")
    for number, name in enumerate(bombs):
        (folder / f"{number}.pdf").write_bytes(PDFS[name]())
    make_pdf(folder / "good.pdf", [["the good one"]])
    (folder / "good.txt").write_text("the other good one\n")
    opened = open_sources([str(folder)], ReadConfig())
    text = "".join(p.text for document in opened.documents for p in document.passages())
    assert "the good one" in text and "the other good one" in text
    assert sum(opened.skipped.values()) == len(bombs)
