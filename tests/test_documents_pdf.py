"""PDF files: their text as prose, their pages, and the ones that cannot be read."""

import io
import itertools
import logging
from pathlib import Path

import pypdf
import pytest
from reportlab.pdfgen import canvas
from test_documents import READ, open_one, text_of

from indexmem_cli.config import ReadConfig
from indexmem_cli.documents import open_sources
from indexmem_cli.documents.passages import Place
from indexmem_cli.documents.pdf import Line, mend_word, page_lines
from indexmem_cli.errors import ConfigError, DocumentError


def pdf_bytes(pages: list[list[str]], encrypt: str | None = None, labels: bool = False) -> bytes:
    """Print lines on pages; a page without lines has a drawing and no text."""
    out = io.BytesIO()
    sheet = canvas.Canvas(out)
    for lines in pages:
        sheet.rect(50, 50, 20, 20)
        for number, line in enumerate(lines):
            sheet.drawString(72, 780 - 14 * number, line)
        sheet.showPage()
    sheet.save()
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(out.getvalue()))
    if labels:
        writer.set_page_label(0, 1, style="/r")
        writer.set_page_label(2, len(pages) - 1, style="/D", start=1)
    if encrypt is not None:
        writer.encrypt(encrypt, "owner", algorithm="AES-256")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def make_pdf(path: Path, pages: list[list[str]], **options) -> Path:
    path.write_bytes(pdf_bytes(pages, **options))
    return path


PROSE = [
    "The mill passes to the niece of Ada, who was born in the house by the river and recon-",
    "structed the wheel that had been lost in the flood of the year before. The second will",
    "was found in the clock.",
    "1 The Farm",
    "Nobody knows what became of the farm, and Ruth has never spoken of it to a living soul.",
    "• It was sold at the end of the war, said some, and the others kept their peace about",
    "it.",
]


def test_a_paragraph_reads_on_and_broken_words_are_whole(tmp_path):
    document = open_one(make_pdf(tmp_path / "a.pdf", [PROSE]))
    passages = list(document.passages())
    assert [p.place.line for p in passages] == [1, 2, 3, 4, 5, 6, 7]
    assert passages[0].text.endswith("river and reconstructed")
    assert passages[1].text.startswith(" the wheel")
    assert text_of(document).split("\n") == [
        PROSE[0][:-1] + PROSE[1] + " " + PROSE[2],
        *PROSE[3:5],
        PROSE[5] + " " + PROSE[6],
        "",
    ]


def test_a_paragraph_reads_on_over_the_page_but_not_into_a_header(tmp_path):
    first = [
        "the first line of a paragraph that is as long as",
        "all of the other lines and goes on with",
    ]
    on = open_one(make_pdf(tmp_path / "a.pdf", [first, ["words that were", "of its own."]]))
    assert "goes on with words" in text_of(on)
    off = open_one(
        make_pdf(tmp_path / "b.pdf", [first, ["THE HEADER OF THE NEXT PAGE, AS LONG AS"]])
    )
    assert "goes on with\nTHE HEADER" in text_of(off)


def test_rows_of_a_table_and_verse_stay_lines(tmp_path):
    table = [
        "Alabama 18,870 23,022 22,650 859",
        "alaska  209 3,062 3,209 191 18",
        "and 1 2 3 4 5 6 7 8",
    ]
    verse = [
        "Tyger Tyger, burning bright",
        "In the forests of the night",
        "What immortal hand or eye",
    ]
    for lines in (table, verse):
        document = open_one(make_pdf(tmp_path / "a.pdf", [lines]))
        assert text_of(document) == "\n".join(lines) + "\n"


def print_cells(path: Path, rows: list[list[str]], width: int) -> Path:
    """Print every cell for itself, with no rule between them."""
    sheet = canvas.Canvas(str(path))
    for number, row in enumerate(rows):
        for column, cell in enumerate(row):
            sheet.drawString(72 + width * column, 780 - 14 * number, cell)
    sheet.save()
    return path


def test_cells_without_rules_are_rows_and_an_index_is_not(tmp_path):
    table = [["Oar", f"B-{n}", f"{n}.50", "ok"] for n in range(10)]
    document = open_one(print_cells(tmp_path / "a.pdf", table, 90))
    rows = text_of(document).splitlines()
    assert rows == [" | ".join(row) for row in table]
    assert [passage.place.line for passage in document.passages()] == list(range(1, 11))
    index = [[f"Anchor, {n}", f"Mast, {n}"] for n in range(10)]
    document = open_one(print_cells(tmp_path / "b.pdf", index, 200))
    assert "|" not in text_of(document)


@pytest.mark.parametrize(
    ("last", "line", "page", "expected"),
    [
        ("will recon-", "struct the", "", ("will reconstruct", "the")),
        ("will recon-", "struct", "", ("will reconstruct", "")),
        ("the Anglo-", "Saxon king", "", ("the Anglo-Saxon", "king")),
        ("from 1914-", "1918, and", "", ("from 1914-1918,", "and")),
        ("a 16-", "bit number", "", ("a 16-bit", "number")),
        ("the FAA-", "approved list", "", ("the FAA-approved", "list")),
        ("state-of-the-", "art work", "", ("state-of-the-art", "work")),
        ("a human-", "human talk", "in human-human talk", ("a human-human", "talk")),
        ("recon\u00ad", "struct it", "", ("reconstruct", "it")),
        ("call 206\u2013", "231 now", "", ("call 206\u2013231", "now")),
        ("he said \u2013", "and went", "", None),
        ("a list -", "of items", "", None),
        ("no hyphen", "here", "", None),
    ],
)
def test_hyphens_at_the_line_end(last, line, page, expected):
    place = Place("a.pdf", 1, None, 1)
    first, second = (Line(text, place, True, page) for text in (last, line))
    assert mend_word(first, second) == (expected is not None)
    assert (first.text, second.text) == (expected or (last, line))


def test_a_header_is_not_the_rest_of_a_word():
    first = Line("from 1914-", Place("a.pdf", 1, None, 9), True, "")
    assert not mend_word(first, Line("1918 Chapter", Place("a.pdf", 2, None, 1), True, ""))


def test_ligatures_soft_hyphens_and_minus_signs():
    text = "e\ufb03cient \ufb01re \ufb02ow sti\ufb00 fa\ufb06 x\u00b2 4\x001\x07"
    [line] = page_lines(text, "a.pdf", 1, None)
    # NFKC of the rest would turn x² into x2.
    assert line.text == "efficient fire flow stiff fast x\u00b2 4\u22121"


def test_only_the_number_of_the_page_itself_is_left_out():
    def shown(text, page, label=None):
        return [line.text for line in page_lines(text, "a.pdf", page, label)]

    assert shown("12\ntext\n\n", 12) == ["text"]
    assert shown("text\n\nxiv", 14, "xiv") == ["text"]
    assert shown("text\n1918", 12) == ["text", "1918"]
    assert shown("7\n12\ntext", 7) == ["12", "text"]
    assert shown("12", 12) == ["12"]
    assert shown("\x01\n", 12) == []
    assert shown("Chapter 12\ntext", 12) == ["Chapter 12", "text"]


def test_pages_have_an_index_and_a_label(tmp_path):
    path = make_pdf(tmp_path / "a.pdf", [["preface"], [], ["one"], ["two"]], labels=True)
    document = open_one(path)
    places = [(p.place.page, p.place.page_label) for p in document.passages()]
    assert places == [(1, "i"), (3, "1"), (4, "2")]
    assert document.pages_without_text == [f"{path} p. ii"]
    assert (document.pages_total, document.pages_read, document.fraction) == (4, 3, 1.0)
    assert text_of(document) and document.pages_read == 3  # the counts begin anew


def test_memory_of_earlier_pages_is_given_back(tmp_path, monkeypatch, parsed_here):
    monkeypatch.setattr("indexmem_cli.documents.pdf._PAGES_CACHED", 2)
    readers, held = [], []

    class Watched(pypdf.PdfReader):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            readers.append(self)

    monkeypatch.setattr("indexmem_cli.documents.pdf.PdfReader", Watched)
    document = open_one(make_pdf(tmp_path / "a.pdf", [[f"page {n}"] for n in range(9)]))
    for n, passage in enumerate(document.passages()):
        assert passage.text == f"page {n}\n"
        held.append(len(readers[-1].resolved_objects))
    assert any(after < before for before, after in itertools.pairwise(held))


def test_pages_without_labels_have_none(tmp_path):
    document = open_one(make_pdf(tmp_path / "a.pdf", [["one"], []]))
    assert [p.place.page_label for p in document.passages()] == [None]
    assert document.pages_without_text == [f"{tmp_path / 'a.pdf'} p. 2"]


def test_selected_pages(tmp_path):
    path = make_pdf(tmp_path / "a.pdf", [[f"page {n}"] for n in range(1, 6)])
    document = open_one(path, ReadConfig(pages=((2, 2), (4, 0))))
    assert text_of(document) == "page 2\npage 4\npage 5\n"
    assert (document.pages_total, document.pages_read, document.pages_not_selected) == (5, 3, 2)
    for pages in (((6, 0),), ((1, 9),)):
        with pytest.raises(ConfigError, match="5 pages"):
            open_one(path, ReadConfig(pages=pages))


def test_encrypted(tmp_path):
    path = make_pdf(tmp_path / "a.pdf", [["secret"]], encrypt="pässword")
    for password in (None, "wrong"):
        with pytest.raises(DocumentError, match="encrypted") as error:
            open_one(path, ReadConfig(password=password))
        assert "--password-file" in error.value.hint
    assert text_of(open_one(path, ReadConfig(password="pässword"))) == "secret\n"
    plain = make_pdf(tmp_path / "b.pdf", [["open"]], encrypt="")
    assert text_of(open_one(plain)) == "open\n"
    assert text_of(open_one(plain, ReadConfig(password="not needed"))) == "open\n"


def test_a_scan_is_refused_when_it_is_opened(tmp_path):
    path = make_pdf(tmp_path / "my scan.pdf", [[], []])
    with pytest.raises(DocumentError, match="2 of 2 pages have no text layer") as error:
        open_one(path)
    assert f"ocrmypdf '{path}'" in error.value.hint


def _broken_files() -> dict[str, bytes]:
    good = pdf_bytes([["some text"], ["more"]])
    return {
        "only a header": b"%PDF-1.7\n",
        "cut": good[: len(good) // 3],
        "no pages": good.replace(b"/Kids", b"/Kinds").replace(b"/Count", b"/Cound"),
        "pages in pages": good.replace(b"/Type /Page\n", b"/Type /Pages\n/Kids [ 1 0 R ]\n"),
    }


@pytest.mark.parametrize("name", _broken_files())
def test_broken_files_give_one_line_and_no_noise(tmp_path, name, capfd, caplog, parsed_here):
    path = tmp_path / "a.pdf"
    path.write_bytes(_broken_files()[name])
    with pytest.raises(DocumentError) as error:
        open_one(path)
    assert "\n" not in error.value.message and len(error.value.message) < 400
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert logging.getLogger("pypdf").level == logging.NOTSET


def test_a_broken_page_counts_as_one_without_text(tmp_path, monkeypatch, parsed_here):
    path = make_pdf(tmp_path / "a.pdf", [["one"], ["two"]])
    extract = pypdf.PageObject.extract_text

    def fails_on_two(page):
        text = extract(page)
        return {}["/Bug"] if "two" in text else text

    monkeypatch.setattr(pypdf.PageObject, "extract_text", fails_on_two)
    document = open_one(path)
    assert text_of(document) == "one\n"
    assert document.pages_without_text == [f"{path} p. 2"]

    def loops(page):
        return loops(page)

    monkeypatch.setattr(pypdf.PageObject, "extract_text", loops)
    with pytest.raises(DocumentError, match="RecursionError"):
        open_one(path)


def test_bad_labels_are_passed_over(tmp_path, monkeypatch, parsed_here):
    path = make_pdf(tmp_path / "a.pdf", [["one"], [], []], labels=True)
    monkeypatch.setattr(pypdf.PdfReader, "page_labels", property(lambda self: [][0]))
    assert [p.place.page_label for p in open_one(path).passages()] == [None]


def test_a_pdf_from_a_pipe():
    data = pdf_bytes([["one"], ["two"]])
    [document] = open_sources([], READ, io.BytesIO(data)).documents
    assert (document.name, document.kind, document.size_bytes) == ("-", "pdf", len(data))
    assert text_of(document) == text_of(document) == "one\ntwo\n"
    with pytest.raises(DocumentError, match="no text"):
        open_sources(["-"], READ, io.BytesIO(pdf_bytes([[]])))


def test_in_a_folder_the_readable_ones_are_read(tmp_path):
    make_pdf(tmp_path / "a.pdf", [["one"]])
    make_pdf(tmp_path / "locked.pdf", [["secret"]], encrypt="x")
    make_pdf(tmp_path / "scan.pdf", [[]])
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.7\n")
    (tmp_path / "notes.txt").write_text("note\n")
    sources = open_sources([str(tmp_path)], ReadConfig(pages=((1, 4),)))
    texts = [text_of(document) for document in sources.documents]
    assert texts == ["==== a.pdf ====\none\n", "==== notes.txt ====\nnote\n", ""]
    assert sources.skipped == {"encrypted": 1, "malformed": 1, "no text": 1}
    for name in ("a.pdf", "notes.txt"):
        (tmp_path / name).unlink()
    with pytest.raises(DocumentError, match="nothing in the folder"):
        open_sources([str(tmp_path)], READ)
