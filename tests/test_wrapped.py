"""Lines of hard-wrapped paragraphs are joined; those of lists, tables, code, logs, verse stay."""

import textwrap
from itertools import count

import pytest

from indexmem_cli.config import ReadConfig
from indexmem_cli.documents import Passage, Place, open_sources
from indexmem_cli.documents.wrapped import MAX_LINES, find_soft_breaks, join_wrapped

PROSE = (
    "The harbour master of the town was Captain Edmund Harrow, who kept the key of the lighthouse"
    " in a blue jar. Nobody had seen it since the winter of 1871, when the ice broke the pier."
    " He was asked for it every spring, and said every time that the jar was empty."
)
LISTS = """\
- the key of the lighthouse, which nobody has seen since the winter
- the blue jar of the harbour master, which stands in his kitchen and
- the ice that broke the pier, and the boats that lay behind it then
"""
TABLE = """\
harbour      captain harrow       lighthouse   the winter of the year
pier         nobody at all        blue jar     the spring of the year
boats        the fishermen        kitchen      the autumn of the year
"""
LOG = """\
info the service was started by the operator after the long update
info the service was stopped by the operator before another update
info the service was started by the operator after another updates
info the service was stopped by the operator before the new update
"""
VERSE = """\
The sea is calm tonight and all
the ships are gone, the stars
are far above the harbour wall where nobody is waiting any more
and still the lighthouse burns
"""
MINUTES = """\
Ann went to the harbour with her brother and came back without him
Ben stayed in the kitchen and looked for the jar until it was dark
Eve wrote to the harbour master and waited for a letter from Crete
Tom had seen the lighthouse burn and told the fishermen about that
"""
CODE = """\
for name in sorted(names):
    if name.startswith("harbour") and name not in seen_so_far:
        yield name
    else:
        remember(name)
"""
TRACE = """\
Traceback of the last call that was made by the service of the harbour
    at harbour.service.start
    at harbour.operator.run in the first of all the threads there were
    at main
"""


def read(path, text):
    path.write_text(text)
    (document,) = open_sources([str(path)], ReadConfig()).documents
    return list(document.passages())


@pytest.mark.parametrize("width", [48, 72, 100])
@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.log"])
def test_a_wrapped_paragraph_reads_on_and_each_line_keeps_its_place(tmp_path, name, width):
    wrapped = textwrap.fill(PROSE, width)
    text = f"Chapter One\n\n{wrapped}\n\n{wrapped}\n"
    passages = read(tmp_path / name, text)
    read_text = "".join(passage.text for passage in passages)
    assert read_text == f"Chapter One\n\n{PROSE}\n\n{PROSE}\n"
    lines = text.split("\n")
    assert [p.text.strip() for p in passages] == [line for line in lines if line]
    assert [p.place.line for p in passages] == [i for i, line in enumerate(lines, 1) if line]


def test_paragraphs_without_blank_lines_between_them_keep_their_ends(tmp_path):
    paragraphs = [PROSE, "“Is it?” she asked.", PROSE.replace("jar", "small box"), "He nodded."]
    wrapped = "\n".join(textwrap.fill(paragraph, 70) for paragraph in paragraphs)
    read_text = "".join(passage.text for passage in read(tmp_path / "a.txt", wrapped))
    assert read_text == "\n".join(paragraphs)


def test_the_lines_of_an_item_are_joined_and_items_are_not(tmp_path):
    items = [textwrap.fill(PROSE, 60, initial_indent=f"{n}. ") for n in range(1, 4)]
    read_text = "".join(p.text for p in read(tmp_path / "a.md", "\n".join(items)))
    assert read_text == "\n".join(f"{n}. {PROSE}" for n in range(1, 4))


@pytest.mark.parametrize("text", [LISTS, TABLE, LOG, VERSE, MINUTES, CODE, TRACE])
def test_lines_that_are_no_wrapped_prose_stay(tmp_path, text):
    assert "".join(p.text for p in read(tmp_path / "a.txt", text)) == text


def test_code_and_tables_are_never_joined(tmp_path):
    wrapped = textwrap.fill(PROSE, 60)
    for name in ("a.py", "a.csv"):
        passages = read(tmp_path / name, f'"""{wrapped}"""\n')
        assert "".join(p.text for p in passages).count("\n") == wrapped.count("\n") + 1


def test_the_lines_of_a_mail_are_joined_but_not_its_signature_or_what_it_quotes(tmp_path):
    wrapped = textwrap.fill(PROSE, 72)
    quoted = textwrap.indent(wrapped, "> ")
    body = f"Hello,\n\n{wrapped}\n\nAnn wrote:\n{quoted}\n\n-- \nBen\nHarbour 3\n"
    passages = read(tmp_path / "a.eml", f"From: Ben\nTo: Ann\nSubject: Jar\n\n{body}")
    lines = "".join(passage.text for passage in passages).split("\n  ")
    expected = ["Hello,", PROSE, "Ann wrote:", *quoted.split("\n"), "--", "Ben", "Harbour 3\n"]
    assert lines[-len(expected) :] == expected


def test_lines_with_room_for_the_next_word_end_where_they_do():
    lines = textwrap.wrap(PROSE, 60)
    assert all(find_soft_breaks(lines))
    ragged = [line.rsplit(" ", 3)[0] if i % 2 else line for i, line in enumerate(lines)]
    assert not any(find_soft_breaks(ragged))
    assert find_soft_breaks([]) == find_soft_breaks(lines[:1]) == []


def test_of_a_paragraph_without_end_only_a_part_is_held():
    place = Place("a.txt", None, None, 1)
    endless = (Passage(f"{'so it goes on and on ' * 3}{n}\n", place) for n in count())
    next(join_wrapped(endless))
    assert next(endless).text.endswith(f" {MAX_LINES}\n")


def test_a_long_paragraph_is_joined_in_parts_and_loses_nothing(tmp_path):
    text = textwrap.fill(PROSE * 80, 60)
    read_text = "".join(p.text for p in read(tmp_path / "a.txt", text))
    assert read_text.split() == text.split() and len(read_text) == len(text)
    assert read_text.count("\n") <= 1 + text.count("\n") // 200
