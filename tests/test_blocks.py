"""Web pages, books and Word files: what is read of them, in which order, and with which place."""

import io
import os
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from indexmem_cli.config import ReadConfig
from indexmem_cli.documents import Document, open_sources, unzip
from indexmem_cli.errors import DocumentError

READ = ReadConfig()


def open_one(path: Path, data: bytes | str | None = None) -> Document:
    if data is not None:
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    [document] = open_sources([str(path)], READ).documents
    return document


def text_of(document: Document) -> str:
    return "".join(passage.text for passage in document.passages())


def headings_of(document: Document) -> dict[str, str | None]:
    return {p.text.strip(): p.place.member for p in document.passages()}


def make_zip(path: Path, members: dict[str, str | bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in members.items():
            made.writestr(name, content)
    return path


# --- HTML

PAGE = """<!DOCTYPE html><html><head><title>The harbour</title><style>p {}</style></head><body>
<nav>Home</nav><div class="top-menu">Login</div><script>evil()</script>
<div hidden>no</div><span style="display: none">no</span>
<p>Before   any
heading.</p><h2>Boats</h2><div>Three <b>boats</b><br>lie here<p>Inner</p>and after</div>
<ul><li>one<li>two</ul><!-- no -->
<table><tr><th>Name<th>Price<tr><td><p>Oar</p><td>7&nbsp;€</table>
<table><tr><td><table><tr><td>layout</table><td><p>beside</p></table>
<pre>def f():
    pass</pre><footer>(c)</footer></body></html>"""


def test_a_page_is_read_without_its_menus(tmp_path):
    document = open_one(tmp_path / "page.txt", PAGE)
    assert document.kind == "html"
    assert text_of(document) == (
        "Before any heading.\n\nBoats\n\nThree boats\nlie here\nInner\n\nand after\none\ntwo\n"
        "Name | Price\nOar | 7 €\nlayout\nbeside\n\ndef f():\n    pass\n\n"
    )
    headings = headings_of(document)
    assert headings["Before any heading."] == "The harbour"
    assert headings["Oar | 7 €"] == "Boats"
    place = next(document.passages()).place
    assert (place.line, place.unit) == (1, "paragraph")


def test_the_main_part_of_a_page_is_taken_where_it_is_marked(tmp_path):
    page = "<html><body><div>chrome</div><main><h1>T</h1><p>x</p></main></body></html>"
    assert text_of(open_one(tmp_path / "a", page)) == "T\n\nx\n\n"
    page = "<html><body><article>a</article><article>b</article></body></html>"
    assert text_of(open_one(tmp_path / "a", page)) == "a\nb\n"


def test_pages_in_their_encodings(tmp_path):
    page = '<html><meta charset="windows-1250"><p>žluťoučký</p></html>'
    assert text_of(open_one(tmp_path / "a", page.encode("cp1250"))) == "žluťoučký\n\n"
    assert text_of(open_one(tmp_path / "a", "\ufeff<html><p>žluť</p>".encode())) == "žluť\n\n"


@pytest.mark.parametrize(
    "page", ["<html><body>" + "<div>" * 20_000 + "x", "<html>" + "<p" * 20_000, "<html></html>"]
)
def test_hostile_pages_give_text_or_one_error(tmp_path, page):
    try:
        text_of(open_one(tmp_path / "a", page))
    except DocumentError as error:
        assert error.exit_code == 3


def test_a_page_that_a_program_fills_in_is_code_in_a_folder(tmp_path):
    (tmp_path / "a.html").write_text("<html><p>{{ name }}</p></html>\n")
    (tmp_path / "b.html").write_text("<html><p>text</p></html>\n")
    assert [d.kind for d in open_sources([str(tmp_path)], READ).documents] == ["code", "html"]


# --- EPUB

CONTAINER = '<container><rootfiles><rootfile full-path="O/b.opf"/></rootfiles></container>'
PACKAGE = """<package xmlns="http://www.idpf.org/2007/opf"><manifest>
<item id="n" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>
<item id="b" href="text/b%20b.xhtml" media-type="application/xhtml+xml"/>
<item id="a" href="text/a.xhtml" media-type="application/xhtml+xml"/>
<item id="i" href="i.png" media-type="image/png"/></manifest>
<spine><itemref idref="n"/><itemref idref="b"/><itemref idref="i"/><itemref idref="a"/></spine>
</package>"""
NAV = """<html><body><nav><a href="text/b%20b.xhtml">One</a><a href="text/a.xhtml#x">Two</a>
<a href="text/a.xhtml#y">Three</a></nav></body></html>"""
BOOK = {
    "mimetype": "application/epub+zip",
    "META-INF/container.xml": CONTAINER,
    "O/b.opf": PACKAGE,
    "O/nav.xhtml": NAV,
    "O/text/b b.xhtml": "<html><head><title>Same</title></head><body><h4>small</h4><p>v<br/>w</p>",
    "O/text/a.xhtml": "<html><body><h2>Two</h2><p>x</p><h2>Three</h2><p>y</p></body></html>",
    "O/i.png": b"\x89PNG",
}


def test_a_book_is_read_along_its_spine(tmp_path):
    document = open_one(make_zip(tmp_path / "book.bin", BOOK))
    assert document.kind == "epub"
    assert text_of(document) == "small\n\nv\nw\n\nTwo\n\nx\n\nThree\n\ny\n\n"
    headings = headings_of(document)
    assert headings == {"small": "One", "v": "One", "w": "One",
                        "Two": "Two", "x": "Two", "Three": "Three", "y": "Three"}  # fmt: skip
    assert document.fraction == 1.0


def test_an_old_book_names_its_chapters_in_an_ncx(tmp_path):
    ncx = """<ncx><navMap><navPoint><navLabel><text>Uno</text></navLabel>
    <content src="text/b%20b.xhtml"/></navPoint>
    <navPoint><navLabel><text>leads nowhere</text></navLabel></navPoint></navMap></ncx>"""
    item = '<item id="c" href="toc.ncx" media-type="application/x-dtbncx+xml"/></manifest>'
    old = {**BOOK, "O/toc.ncx": ncx, "O/b.opf": PACKAGE.replace("</manifest>", item)}
    old["O/nav.xhtml"] = "<html></html>"
    assert headings_of(open_one(make_zip(tmp_path / "x", old)))["v"] == "Uno"


ENTITIES = '<!DOCTYPE x [<!ENTITY a "aaaaaaaa">]><package>&a;</package>'
LOCK = '<encryption><EncryptionMethod Algorithm="http://www.w3.org/aes"/></encryption>'
FONTS = (
    '<encryption><EncryptionMethod Algorithm="http://www.idpf.org/2008/embedding"/></encryption>'
)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"O/text/a.xhtml": None}, "missing"),
        ({"O/b.opf": None}, "package file"),
        ({"O/b.opf": ENTITIES}, "damaged"),
        ({"O/b.opf": "<package"}, "damaged"),
        ({"META-INF/encryption.xml": LOCK}, "encrypted"),
        ({"O/b.opf": PACKAGE.replace("text/a.xhtml", "../../../../etc/passwd")}, "missing"),
    ],
)
def test_books_that_cannot_be_read(tmp_path, change, found):
    members = {name: text for name, text in {**BOOK, **change}.items() if text is not None}
    with pytest.raises(DocumentError, match=found) as error:
        text_of(open_one(make_zip(tmp_path / "x.epub", members)))
    assert error.value.exit_code == 3 and "x.epub" in error.value.message


def test_obfuscated_fonts_lock_no_book(tmp_path):
    assert text_of(open_one(make_zip(tmp_path / "x", {**BOOK, "META-INF/encryption.xml": FONTS})))


# --- DOCX

W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
MC = 'xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006"'


def word(*parts: str) -> str:
    return f"<w:document {W} {MC}><w:body>{''.join(parts)}</w:body></w:document>"


def para(text: str, style: str = "") -> str:
    kept = f'<w:pPr><w:tabs><w:tab w:val="left"/></w:tabs><w:pStyle w:val="{style}"/></w:pPr>'
    return f"<w:p>{kept}<w:r><w:t>{text}</w:t></w:r></w:p>"


STYLES = f"""<w:styles {W}><w:style w:type="paragraph" w:styleId="berschrift1">
<w:name w:val="heading 1"/></w:style><w:style w:styleId="TOC1"><w:name w:val="toc 1"/></w:style>
</w:styles>"""
BODY = word(
    para("Top"),
    para("Boats", "berschrift1"),
    "<w:p><w:r><w:t>a</w:t><w:tab/><w:t>b</w:t><w:br/><w:t>c</w:t></w:r>"
    "<w:del><w:r><w:delText>gone</w:delText></w:r></w:del>"
    "<w:moveFrom><w:r><w:t>moved</w:t></w:r></w:moveFrom>"
    "<w:r><w:instrText>PAGE</w:instrText></w:r></w:p>",
    f"<w:tbl><w:tr><w:tc>{para('Oar')}{para('long')}</w:tc><w:tc>{para('7')}</w:tc></w:tr>"
    f"<w:tr><w:tc><w:tbl><w:tr><w:tc>{para('in')}</w:tc></w:tr></w:tbl></w:tc>"
    f"<w:tc>{para('8')}</w:tc></w:tr></w:tbl>",
    "<w:p><w:r><mc:AlternateContent><mc:Choice><w:txbxContent>" + para("box")
    + "</w:txbxContent></mc:Choice><mc:Fallback><w:txbxContent>" + para("box")
    + "</w:txbxContent></mc:Fallback></mc:AlternateContent><w:t>outer</w:t></w:r></w:p>",
    para("End"),
)  # fmt: skip
NOTES = f"<w:footnotes {W}><w:footnote>{para('A note.')}</w:footnote></w:footnotes>"
WORD = {"word/document.xml": BODY, "word/styles.xml": STYLES, "word/footnotes.xml": NOTES}


def test_a_word_file_is_read_in_order(tmp_path):
    document = open_one(make_zip(tmp_path / "x.zip", WORD))
    assert (document.kind, text_of(document)) == (
        "docx",
        "Top\nBoats\n\na\tb\nc\nOar long | 7\nin | 8\nbox\nouter\nEnd\nA note.\n",
    )
    headings = headings_of(document)
    assert (headings["Top"], headings["End"], headings["A note."]) == (None, "Boats", "Notes")
    numbers = [passage.place.line for passage in document.passages()]
    assert numbers == [1, 2, 3, 3, 4, 5, 6, 7, 8, 9], "lines of one paragraph are one place"


def test_memory_is_flat_however_long_a_word_file_is(tmp_path, parsed_here):
    peaks = []
    for num in (300, 300, 6000):  # the first pass warms up
        body = word(*(para(f"{n} " + "word " * 20) for n in range(num)))
        document = open_one(make_zip(tmp_path / "x", {"word/document.xml": body}))
        tracemalloc.start()
        assert sum(1 for _ in document.passages()) == num
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.5 * peaks[1]


BOMB = '<!DOCTYPE x [<!ENTITY a "{}"><!ENTITY b "{}">]>'.format("a" * 1000, "&a;" * 1000)


@pytest.mark.parametrize(
    "body",
    [
        BODY[:-40],
        "<w:document",
        "no xml",
        word(),
        BOMB + BODY.replace("End", "&b;" * 1000),
        '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>' + word(para("&a;")),
    ],
)
def test_broken_and_hostile_word_files_give_one_error_or_nothing_more(tmp_path, body):
    path = make_zip(tmp_path / "x.docx", {"word/document.xml": body})
    try:
        text = text_of(open_one(path))
        assert "root:" not in text and len(text) < 2_000
    except DocumentError as error:
        assert "x.docx" in error.message


# --- zips


def test_zips_of_other_things_are_refused(tmp_path):
    for member, found in {
        "xl/workbook.xml": "spreadsheet",
        "ppt/presentation.xml": "presentation",
        "notes.txt": "archive without",
    }.items():
        with pytest.raises(DocumentError, match=found) as error:
            open_one(make_zip(tmp_path / "x", {member: "x"}))
        assert error.value.hint


def test_zips_that_are_cut_off_or_changed_are_named(tmp_path):
    whole = make_zip(tmp_path / "x", BOOK).read_bytes()
    with pytest.raises(DocumentError, match="damaged or cut off"):
        open_one(tmp_path / "x", whole[: len(whole) // 2])
    at = whole.index(b"O/text/a.xhtml") + len("O/text/a.xhtml") + 5
    with pytest.raises(DocumentError, match="damaged or cut off"):
        text_of(open_one(tmp_path / "x", whole[:at] + b"\xff\xff\xff" + whole[at + 3 :]))


def test_bombs_are_refused_before_they_are_unpacked(tmp_path, monkeypatch, parsed_here):
    monkeypatch.setattr(unzip, "MIN_SUSPECT_BYTES", 100_000)
    bomb = make_zip(tmp_path / "x", {**WORD, "word/document.xml": BODY + " " * 10_000_000})
    tracemalloc.start()
    with pytest.raises(DocumentError, match="times its size"):
        open_one(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000
    monkeypatch.setattr(unzip, "MAX_MEMBERS", 2)
    with pytest.raises(DocumentError, match="3 members"):
        open_one(make_zip(tmp_path / "x", WORD))
    monkeypatch.setattr(unzip, "MAX_MEMBERS", 9)
    monkeypatch.setattr(unzip, "MAX_TOTAL_BYTES", 1000)
    with pytest.raises(DocumentError, match="more than"):
        open_one(make_zip(tmp_path / "x", WORD))


def test_links_and_locked_members_are_not_read(tmp_path):
    path = make_zip(tmp_path / "x", WORD)
    with zipfile.ZipFile(path, "a") as made:
        link = zipfile.ZipInfo("word/endnotes.xml")
        link.external_attr = 0o120777 << 16
        made.writestr(link, "/etc/passwd")
    assert text_of(open_one(path)).endswith("A note.\n")
    data = path.read_bytes()
    entry = data.rindex(b"PK\x01\x02", 0, data.rindex(b"word/document.xml"))
    locked = bytearray(data)
    locked[entry + 8] |= 1
    with pytest.raises(DocumentError, match="encrypted"):
        open_one(path, bytes(locked))


def test_a_book_in_a_folder_is_read_and_a_broken_one_is_counted(tmp_path):
    make_zip(tmp_path / "a.epub", BOOK)
    (tmp_path / "b.epub").write_bytes(b"PK\x03\x04 broken")
    (tmp_path / "c.txt").write_text("c\n")
    sources = open_sources([str(tmp_path)], READ)
    assert [document.kind for document in sources.documents] == ["epub", "text"]
    assert text_of(sources.documents[0]).startswith("==== a.epub ====\nsmall\n")
    assert sources.skipped == {"malformed": 1}


def test_a_book_comes_through_a_pipe(tmp_path):
    data = make_zip(tmp_path / "x", BOOK).read_bytes()
    [document] = open_sources([], READ, io.BytesIO(data)).documents
    assert (document.kind, document.name) == ("epub", "-")
    assert text_of(document).startswith("small")


# --- real files, where they are at hand

DOCUMENTS = os.environ.get("INDEXMEM_DOCUMENTS")


@pytest.mark.skipif(not DOCUMENTS, reason="INDEXMEM_DOCUMENTS names no folder of real files")
@pytest.mark.parametrize(
    ("name", "least", "most", "text", "heading"),
    [
        ("epub/winter-sports.epub", 330_000, 345_000, "skating", None),
        (
            "epub/wasteland.epub",
            20_000,
            27_000,
            "Who is the third who walks",
            "V. WHAT THE THUNDER",
        ),
        (
            "docx/handbook-872p.docx",
            780_000,
            830_000,
            "must not accept payments in currency",
            "5. C",
        ),
        (
            "html/wikipedia-microsoft.html",
            50_000,
            200_000,
            "silver certification from",
            "Environment",
        ),
    ],
)
def test_real_files_hold_what_their_index_says(name, least, most, text, heading):
    document = open_one(Path(DOCUMENTS) / name)
    passages = list(document.passages())
    assert least < sum(len(passage.text) for passage in passages) < most
    found = [passage for passage in passages if text in passage.text]
    assert found
    assert heading is None or found[0].place.member.startswith(heading)
