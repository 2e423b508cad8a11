"""Answers that copy: whatever is chosen at each step, the result is a span of the text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexmem_cli.copying import Copying
from indexmem_cli.errors import ConfigError
from indexmem_cli.session import Memory

STOP = 1_000_000
TEXT = 'The mill passed to Ruth Amsel\nin 1764. "Never sell," he said (twice); café Été – kept.'
PLAIN = " ".join(TEXT.split())


def copy(tokenizer, texts, choose):
    """The text that comes of choosing among what may come next until the end is chosen."""
    copying = Copying(tokenizer, frozenset({STOP}))
    for text in texts:
        copying.add_text(text)
    ids = []
    while (token := choose(list(copying.next_ids()))) != STOP:
        copying.push(token)
        ids.append(token)
    return tokenizer.decode(ids).strip()


@given(data=st.data())
def test_whatever_is_chosen_is_a_span_of_whole_words(tokenizer, data):
    answer = copy(tokenizer, [TEXT], lambda ids: data.draw(st.sampled_from(ids)))
    at = PLAIN.find(answer)
    spans = []
    while at >= 0:
        before, after = PLAIN[at - 1 : at], PLAIN[at + len(answer) :][:1]
        spans.append(not before.isalnum() and not after.isalnum())
        at = PLAIN.find(answer, at + 1)
    assert answer and any(spans)


def spell(tokenizer, wanted):
    """A choice that writes `wanted`, if it may."""
    ids = [*tokenizer.encode(f" {wanted}"), STOP]
    return lambda allowed: next(i for i in [ids.pop(0)] if i in allowed)


@pytest.mark.parametrize(
    "wanted",
    ["Ruth Amsel in 1764", "The", "1764", "Never sell", "twice", "café Été", "kept", PLAIN],
)
def test_every_span_can_be_copied(tokenizer, wanted):
    assert copy(tokenizer, [TEXT], spell(tokenizer, wanted)) == wanted


@pytest.mark.parametrize("wanted", ["Ruth in", "Rut", "msel", "Amsel 1764", "ruth", "sold"])
def test_nothing_else_can(tokenizer, wanted):
    with pytest.raises(StopIteration):
        copy(tokenizer, [TEXT], spell(tokenizer, wanted))


def test_a_span_lies_in_one_text(tokenizer):
    assert copy(tokenizer, ["one two", "three"], spell(tokenizer, "three")) == "three"
    with pytest.raises(StopIteration):
        copy(tokenizer, ["one two", "three"], spell(tokenizer, "two three"))


def test_an_answer_is_not_empty_and_ends_with_the_text(tokenizer):
    copying = Copying(tokenizer, frozenset({STOP}))
    copying.add_text("one")
    (only,) = copying.next_ids()
    copying.push(only)
    assert copying.next_ids() == [STOP]


@pytest.fixture(scope="module")
def memory():
    fillers = [f"Nothing of note happened on day {n} of the voyage." for n in range(60)]
    return Memory.read_text("\n".join([*fillers[:30], TEXT, *fillers[30:]]), budget=256)


@pytest.mark.parametrize("temperature", [0.0, 5.0])
def test_an_extract_stands_in_a_passage_that_was_looked_up(memory, temperature):
    answer = memory.ask("To whom did the mill pass?", extract=True, temperature=temperature)
    assert answer.text and answer.text in PLAIN


def test_where_no_passage_fits_nothing_is_quoted(memory):
    answer = memory.ask("Zyxq vwpt?", extract=True)
    assert answer.text == "" and [each.blocks for each in answer.recall] == [()]
    assert any("nothing to quote" in notice for notice in answer.notices)


def test_extracts_need_recall():
    with pytest.raises(ConfigError, match="--extract"):
        Memory.read_text(TEXT, recall=False).ask("Who?", extract=True)
