"""Typeset examples/short-history-of-the-world.pdf from a plain text of the book.

The text holds one paragraph to a line, as README.md in this folder describes. The same text
gives the same bytes.

    python examples/make_book.py short-history.txt examples/short-history-of-the-world.pdf
"""

import argparse
import re
import string
from dataclasses import dataclass, field
from pathlib import Path

from reportlab import rl_config
from reportlab.lib.enums import TA_CENTER, TA_JUSTIFY, TA_LEFT
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import inch
from reportlab.platypus import (
    BaseDocTemplate,
    Frame,
    PageBreak,
    PageTemplate,
    Paragraph,
    Spacer,
)
from reportlab.platypus.tableofcontents import TableOfContents

TITLE = "A Short History of the World"
AUTHOR = "H. G. Wells"
COLOPHON = [
    "First published in 1922.",
    "Herbert George Wells, 1866–1946.",
    "This edition was typeset as an example document for the indexmem project. It follows the text "
    "of the edition of 1922 (J. J. Little &amp; Ives Company, New York); illustrations, maps and "
    "index are left out.",
    "The text is in the public domain in the United States of America.",
]
TABLE_TITLE = "Chronological Table"

PAGE_SIZE = (5.5 * inch, 8.5 * inch)
MARGIN_SIDE = 0.7 * inch
MARGIN_TOP = 0.75 * inch
MARGIN_FOOT = 0.85 * inch

BODY = ParagraphStyle(
    "body",
    fontName="Times-Roman",
    fontSize=11,
    leading=14.2,
    alignment=TA_JUSTIFY,
    firstLineIndent=14,
    allowWidows=0,
    allowOrphans=0,
)
OPENING = ParagraphStyle("opening", BODY, firstLineIndent=0)
NOTE = ParagraphStyle("note", BODY, fontSize=9, leading=11.5, firstLineIndent=0, spaceBefore=8)
ENTRY = ParagraphStyle("entry", BODY, firstLineIndent=-28, leftIndent=28, spaceAfter=1)
CENTERED = ParagraphStyle("centered", BODY, alignment=TA_CENTER, firstLineIndent=0)
NUMERAL = ParagraphStyle("numeral", CENTERED, fontSize=13, leading=18, spaceAfter=6)
HEADING = ParagraphStyle(
    "heading", CENTERED, fontName="Times-Bold", fontSize=14, leading=18, spaceAfter=26
)
BOOK_TITLE = ParagraphStyle(
    "book-title", CENTERED, fontName="Times-Bold", fontSize=26, leading=32, spaceAfter=40
)
BOOK_AUTHOR = ParagraphStyle("book-author", CENTERED, fontName="Times-Italic", fontSize=16)
CONTENTS_ENTRY = ParagraphStyle(
    "contents-entry",
    BODY,
    alignment=TA_LEFT,
    fontSize=10,
    leading=13,
    leftIndent=22,
    firstLineIndent=-22,
)


@dataclass
class Chapter:
    """One section of the book that the contents page names; `numeral` is empty for the table."""

    numeral: str
    title: str
    paragraphs: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.numeral}. {self.title}" if self.numeral else self.title


@dataclass
class Book:
    preface: list[str]
    chapters: list[Chapter]


def to_roman(number: int) -> str:
    values = (100, 90, 50, 40, 10, 9, 5, 4, 1)
    numeral = ""
    letters_of = ("C", "XC", "L", "XL", "X", "IX", "V", "IV", "I")
    for value, letters in zip(values, letters_of, strict=True):
        numeral += letters * (number // value)
        number %= value
    return numeral


def to_title_case(heading: str) -> str:
    """Turn a heading in capitals into title case; kings keep their numerals."""
    small = {"a", "and", "at", "in", "into", "of", "that", "the", "to", "under"}
    words = []
    for word in heading.lower().split():
        if re.fullmatch(r"[ivx]+", word):
            words.append(word.upper())
        else:
            words.append(word if word in small and words else string.capwords(word))
    return " ".join(words)


def set_quotes(text: str) -> str:
    """Replace typewriter quotes and dashes by the printer's."""
    text = re.sub(r"(^|[\s(\[—-])\"", r"\1“", text).replace('"', "”")
    text = re.sub(r"(^|[\s(\[“—-])'", r"\1‘", text).replace("'", "’")
    return re.sub(r"\s?--\s?", "—", text).replace("·", " ")


def clean_lines(text: str) -> list[str]:
    """Keep the author's lines: drop captions, rules and the page numbers of the printed edition."""
    text = re.sub(r"\A.*?^\*\*\* ?START OF.*?$|^\*\*\* ?END OF.*\Z", "", text, flags=re.S | re.M)
    text = re.sub(r"\[(?:Illustration|Map|Transcriber)[^\]]*\]", "", text)
    text = re.sub(r" ?\{[ivxl\d]+\}|={10,}", "", text)
    lines = (re.sub(r"\s+", " ", line).strip() for line in text.splitlines())
    return [line for line in lines if line and not re.fullmatch(r"[*\s-]+", line)]


def join_entries(lines: list[str]) -> list[str]:
    """Join the wrapped lines of the chronological table: an entry starts with its year."""
    entries: list[str] = []
    for line in lines:
        if re.match(r"\d+(-\d+)?\. |[AB]\.[DC]\.|About|The next", line):
            entries.append(line)
        else:
            entries[-1] += " " + line
    return entries


def parse_book(text: str) -> Book:
    """Split the text into preface, numbered chapters and chronological table."""
    lines = clean_lines(text)
    preface_start = lines.index("PREFACE") + 1
    contents_start = lines.index("CONTENTS")
    table_start = lines.index("CHRONOLOGICAL TABLE")
    end = lines.index("INDEX", table_start) if "INDEX" in lines[table_start:] else len(lines)

    chapters: list[Chapter] = []
    body = iter(lines[contents_start + 1 : table_start])
    for line in body:
        if line == to_roman(len(chapters) + 1):
            chapters.append(Chapter(line, set_quotes(to_title_case(next(body)))))
        elif chapters:
            chapters[-1].paragraphs.append(set_quotes(line))
    if not chapters:
        raise SystemExit("error: no chapter found: a chapter starts with its numeral on a line")
    entries = [set_quotes(entry) for entry in join_entries(lines[table_start + 1 : end])]
    chapters.append(Chapter("", TABLE_TITLE, entries))
    return Book([set_quotes(line) for line in lines[preface_start:contents_start]], chapters)


class Heading(Paragraph):
    """A heading that opens a chapter: it enters the outline and the contents page."""

    def __init__(self, chapter: Chapter):
        super().__init__(escape(chapter.title), HEADING)
        self.chapter = chapter


class BookTemplate(BaseDocTemplate):
    """Number front matter in roman and the body in arabic, at the foot and as PDF page labels."""

    def __init__(self, path: str):
        super().__init__(
            path,
            pagesize=PAGE_SIZE,
            title=TITLE,
            author=AUTHOR,
            subject="History",
            creator="make_book.py",
            lang="en",
            invariant=1,
            pageCompression=1,
        )
        width, height = PAGE_SIZE
        text_size = (width - 2 * MARGIN_SIDE, height - MARGIN_TOP - MARGIN_FOOT)
        frame = Frame(MARGIN_SIDE, MARGIN_FOOT, *text_size, 0, 0, 0, 0)
        # The number is drawn when the page is full, so that it ends the page's text.
        self.addPageTemplates(PageTemplate("page", [frame], onPageEnd=self.draw_number))

    def beforeDocument(self):
        self.num_front_pages = None
        self.canv.addPageLabel(0, style="ROMAN_LOWER", start=1)

    def afterFlowable(self, flowable):
        if not isinstance(flowable, Heading):
            return
        if self.num_front_pages is None:
            self.num_front_pages = self.page - 1
            self.canv.addPageLabel(self.num_front_pages, style="ARABIC", start=1)
        name = flowable.chapter.name
        anchor = flowable.chapter.numeral or "table"
        self.canv.bookmarkPage(anchor)
        self.canv.addOutlineEntry(name, anchor)
        # The number is part of the entry: drawn by itself, it would come before the name when the
        # text is extracted.
        entry = f"{escape(name)}&nbsp;&nbsp;&nbsp;<i>{self.page - self.num_front_pages}</i>"
        self.notify("TOCEntry", (0, entry, self.page, anchor))

    def draw_number(self, canvas, _):
        if self.page <= 2:  # title page and colophon
            return
        front = self.num_front_pages is None
        label = to_roman(self.page).lower() if front else str(self.page - self.num_front_pages)
        canvas.setFont("Times-Roman", 10)
        canvas.drawCentredString(PAGE_SIZE[0] / 2, 0.5 * inch, label)


def escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def lay_out_front(book: Book) -> list:
    return [
        Spacer(1, 1.6 * inch),
        Paragraph(TITLE.replace(" of ", "<br/>of "), BOOK_TITLE),
        Paragraph(AUTHOR, BOOK_AUTHOR),
        PageBreak(),
        Spacer(1, 4.2 * inch),
        *[Paragraph(line, NOTE) for line in COLOPHON],
        PageBreak(),
        Spacer(1, 0.8 * inch),
        Paragraph("Preface", HEADING),
        *lay_out_paragraphs(book.preface),
        PageBreak(),
        Paragraph("Contents", HEADING),
        TableOfContents(levelStyles=[CONTENTS_ENTRY], dotsMinLevel=-1, formatter=lambda _: ""),
    ]


def lay_out_paragraphs(paragraphs: list[str]) -> list:
    flowables = []
    for i, text in enumerate(paragraphs):
        plain = BODY if i else OPENING
        style = NOTE if re.match(r"\[\d+\] ", text) else plain
        flowables.append(Paragraph(escape(text), style))
    return flowables


def lay_out_table(entries: list[str]) -> list:
    flowables = []
    for entry in entries:
        if entry == "B.C.":
            flowables += [Spacer(1, 8), Paragraph(entry, CENTERED), Spacer(1, 4)]
        else:
            style = ENTRY if re.match(r"\d|A\.D\.", entry) else BODY
            flowables.append(Paragraph(escape(entry), style))
    return flowables


def lay_out_chapter(chapter: Chapter) -> list:
    opening = [PageBreak(), Spacer(1, 0.8 * inch)]
    if not chapter.numeral:
        return [*opening, Heading(chapter), *lay_out_table(chapter.paragraphs)]
    numeral = Paragraph(chapter.numeral, NUMERAL)
    return [*opening, numeral, Heading(chapter), *lay_out_paragraphs(chapter.paragraphs)]


def make_book(text: str, path: Path) -> None:
    """Typeset `text` and write it to `path`.

    Raises: ValueError, when the text has no preface, contents or chronological table.
    """
    book = parse_book(text)
    rl_config.useA85 = 0
    story = lay_out_front(book)
    for chapter in book.chapters:
        story += lay_out_chapter(chapter)
    BookTemplate(str(path)).multiBuild(story)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path, help="plain text of the book, one paragraph to a line")
    parser.add_argument("pdf", type=Path, help="file to write")
    options = parser.parse_args()
    make_book(options.text.read_text(encoding="utf-8"), options.pdf)


if __name__ == "__main__":
    main()
