"""Sources: the places that hold the answer's words, and what is said where none does."""

import textwrap

import pytest
from test_documents_pdf import make_pdf

from indexmem_cli.archive import Archive
from indexmem_cli.archives import Archives
from indexmem_cli.config import NOT_STATED, ReadConfig
from indexmem_cli.documents import open_each, open_text
from indexmem_cli.evidence import QUOTE_CHARS, Evidence, _cut
from indexmem_cli.tokens import read_chunks

LINES = (
    "The king of the north had three daughters and no son.",
    "Caxton was printing in Westminster in 1477, after long",
    "years in Bruges among the merchants of the wool trade.",
    "The mill by the river passed to Ruth, the niece of Ada.",
    "Ruth had a mill of her own, and sold it to the king.",
    " ".join(f"word{number}" for number in range(90)) + " and the treasure of Ansgar.",
)


@pytest.fixture
def places(tokenizer):
    archive = Archive.create(None, tokenizer.decode)
    lines = "".join(f"{line}\n" for line in LINES)
    for chunk in read_chunks(open_text(lines).passages(), tokenizer, 64):
        archive.add(chunk.entries)
    archive.commit(last=True)
    yield Archives([archive], [{}])
    archive.close()


def sources_of(places, answer, attention, read_again=()):
    """The sources of an answer, by the attention to each line and what was read again."""
    firsts = {}
    for block in places.parts[0]:
        for entry in block.entries:
            firsts.setdefault(entry.place.line, entry.first)
    origins = {1000 + i: firsts[line] for i, line in enumerate(read_again)}
    evidence = Evidence(origins=origins)
    evidence.add([(firsts[line], weight) for line, weight in attention.items()])
    return evidence.sources(places, answer, "Who was it?")


def lines_of(sources):
    return [(source.line_start, source.line_end) for source in sources]


def test_places_with_the_words_of_the_answer_go_before_those_attended_to_more(places):
    found = sources_of(places, "Caxton", {1: 9.0, 2: 0.5, 4: 7.0})
    assert lines_of(found) == [(2, 2)]
    assert found[0].holds == 1 and found[0].weight == pytest.approx(0.5 / 16.5)


def test_what_was_read_again_counts_without_attention(places):
    assert lines_of(sources_of(places, "Caxton", {1: 9.0}, read_again=[2])) == [(2, 2)]


def test_an_answer_that_goes_on_in_the_next_line_shows_both_as_one_place(places):
    found = sources_of(places, "after long years in Bruges", {1: 1.0, 2: 1.0, 3: 1.0, 4: 2.0})
    assert lines_of(found) == [(2, 3)] and found[0].holds == pytest.approx(1)
    assert found[0].quote.startswith("Caxton was") and found[0].quote.endswith("wool trade.")


def test_of_places_that_hold_the_same_the_one_attended_to_more_is_shown(places):
    assert lines_of(sources_of(places, "Ruth", {4: 1.0, 5: 2.0})) == [(5, 5)]
    assert lines_of(sources_of(places, "Ruth", {4: 2.0, 5: 1.0})) == [(4, 4)]


def test_an_answer_from_two_places_shows_both(places):
    found = sources_of(places, "Caxton, Ada", {1: 5.0, 2: 1.0, 4: 1.0})
    assert sorted(lines_of(found)) == [(2, 2), (4, 4)]
    assert sum(source.holds for source in found) == pytest.approx(1, abs=0.1)


def test_words_far_into_a_long_passage_are_seen(places):
    [found] = sources_of(places, "Ansgar", {1: 5.0, 6: 1.0})
    assert found.line_start == 6 and len(found.quote) <= QUOTE_CHARS
    assert found.quote.startswith("…word") and found.quote.endswith("the treasure of Ansgar.")


@pytest.mark.parametrize("text", ["漢" * 600, "漢" * 500 + " " + "漢" * 100, "a" * 620])
def test_a_quotation_of_a_text_with_few_spaces_holds_the_word(text):
    text = text[:400] + "答え" + text[402:]
    quote, start, end = _cut(text, frozenset({"答え"}))
    assert "答え" in quote and len(quote) <= QUOTE_CHARS
    assert text[start:end] == quote.strip("…")


def test_without_the_words_the_most_attended_places_are_shown_as_what_they_are(places):
    found = sources_of(places, "Napoleon", {1: 5.0, 2: 0.5, 4: 4.0})
    assert lines_of(found) == [(1, 1), (4, 4)]
    assert [source.holds for source in found] == [0, 0]


def test_a_refusal_and_an_answer_without_attention_rest_on_nothing(places):
    assert sources_of(places, NOT_STATED, {1: 5.0}) == ()
    assert sources_of(places, "Napoleon", {}) == ()


LONG = "No one knew it. " * 40 + "Then Gudrun\tsang of Sigurd. " + "All was still. " * 40
MESSAGES = "".join(
    f"[25/03/2024, 14:0{minute}:00] {author}: {text}\n"
    for minute, (author, text) in enumerate(
        [
            ("Ann", "Where is it?"),
            ("Ben", "In the shed.\nBehind Gudrun's bicycle, I think."),
            ("Ann", "Ah"),
        ]
    )
)
DOCUMENTS = {
    "notes.txt": f"\n\nFirst.\r\n\r\n{LONG}\r\n  Last line,  far away.\n",
    "chat.txt": MESSAGES,
    "table.csv": 'name,note\n"Sigurd","killed\na dragon"\n"Gudrun","sang"\n',
}


def sources_in(path, tokenizer, answer, word, folder=None):
    """The one source of an answer, and all passages of the document, by what holds a word."""
    (documents,) = open_each([str(folder or path)], ReadConfig())
    passages = [p for document in documents.documents for p in document.passages()]
    archive = Archive.create(None, tokenizer.decode)
    for chunk in read_chunks(passages, tokenizer, 64):
        archive.add(chunk.entries)
    archive.commit(last=True)
    evidence = Evidence()
    for block in archive:
        for entry in block.entries:
            if word in archive.text_of(entry):
                evidence.add([(entry.first, 1.0)])
    [source] = evidence.sources(Archives([archive], [{}]), answer, "Who was it?")
    return source, passages


def quoted(source, passages):
    """What stands between the offsets of a source, in the text from its first line on."""
    text = "".join(
        passage.text
        for passage in passages
        if passage.place.page == source.page
        and passage.place.file == source.file
        and passage.place.line >= source.line_start
        and not passage.text.startswith("====")
    )
    return " ".join(text[source.quote_start : source.quote_end].split())


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.parametrize("in_folder", [False, True])
def test_a_quotation_stands_where_its_offsets_say(tmp_path, tokenizer, name, in_folder):
    path = tmp_path / "folder" / name
    path.parent.mkdir()
    path.write_bytes(DOCUMENTS[name].encode())
    folder = path.parent if in_folder else None
    source, passages = sources_in(path, tokenizer, "Gudrun", "Gudrun", folder)
    assert "Gudrun" in quoted(source, passages)
    assert quoted(source, passages) == source.quote.strip("…")
    if name == "notes.txt":  # as it stands in the file, line ends apart
        lines = DOCUMENTS[name].replace("\r\n", "\n").split("\n")
        text = "\n".join(lines[source.line_start - 1 :])[source.quote_start : source.quote_end]
        assert " ".join(text.split()) == source.quote.strip("…") and source.quote_start > 500


def test_a_quotation_of_a_page_stands_where_its_offsets_say(tmp_path, tokenizer):
    pages = [
        ["The first page says nothing."],
        ["Of Sigurd it was said", "that Gudrun sang of him."],
    ]
    path = make_pdf(tmp_path / "book.pdf", pages)
    source, passages = sources_in(path, tokenizer, "Gudrun sang", "Gudrun")
    assert (source.page, source.quote) == (2, "that Gudrun sang of him.")
    assert quoted(source, passages) == source.quote


def test_a_quotation_of_joined_lines_stands_where_the_file_has_it(tmp_path, tokenizer):
    prose = "Nobody in the valley knew who had first told the story of the dragon. Some said " * 4
    text = textwrap.fill(f"{prose}that Gudrun sang of it, and Sigurd wept. {prose}", 60)
    path = tmp_path / "notes.txt"
    path.write_text(f"A title.\n\n{text}\n")
    source, passages = sources_in(path, tokenizer, "Gudrun", "Gudrun")
    assert any(not passage.text.endswith("\n") for passage in passages)
    lines = path.read_text().split("\n")
    assert "Gudrun" in "".join(lines[source.line_start - 1 : source.line_end])
    quote = "\n".join(lines[source.line_start - 1 :])[source.quote_start : source.quote_end]
    assert " ".join(quote.split()) == source.quote.strip("…") and quote == quote.strip()


def test_what_defines_a_name_of_the_question_is_a_source_whatever_the_answer(tmp_path, tokenizer):
    path = tmp_path / "shelf.py"
    path.write_text('"""The shelf."""\n\nROOM = 3\n\n\nclass NotEnough(Exception):\n    code = 3\n')
    archive = Archive.create(None, tokenizer.decode)
    (document,) = open_each([str(path)], ReadConfig())[0].documents
    for chunk in read_chunks(document.passages(), tokenizer, 64):
        archive.add(chunk.entries)
    archive.commit(last=True)
    places, evidence = Archives([archive], [{}]), Evidence()
    evidence.add([(entry.first, 1.0) for block in archive for entry in block.entries])
    first = evidence.sources(places, "the shelf", "Where is the class defined?")
    assert lines_of(first) == [(1, 1)]
    named = evidence.sources(places, "the shelf", "Where is the class NotEnough defined?")
    assert lines_of(named) == [(1, 1), (6, 6)] and named[1].symbol == "NotEnough"
