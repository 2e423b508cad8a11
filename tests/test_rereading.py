"""Passages read again with a space before a line's first word, where the model asks for it."""

from dataclasses import replace

import pytest

from indexmem_cli import Memory
from indexmem_cli.asking import find_grounds
from indexmem_cli.config import DEFAULT_MODEL, ModelConfig
from indexmem_cli.language_model import load_language_model

FILLER = "Nothing of note happened on the {} day of the long voyage by sea, and nobody came.\n"
SENTENCE = "Doctor Cecil Wade travelled as far as Halmouth in the spring.\n"
QUESTION = "Who travelled as far as Halmouth?"


@pytest.fixture(scope="module")
def model():
    return load_language_model(ModelConfig(DEFAULT_MODEL, device="cpu", offline=True))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "voyage.txt"
    lines = [FILLER.format(number) for number in range(60)]
    path.write_text("".join([*lines[:40], SENTENCE, *lines[40:]]))
    return path


def read(path):
    memory = Memory.read(path, budget=256, offline=True, device="cpu")
    return memory, memory.ask(QUESTION, max_tokens=12)


def test_an_answer_that_opens_a_line_is_whole(path):
    memory, answer = read(path)
    assert answer.text == "Doctor Cecil Wade"
    assert any(source.line_start <= 41 <= source.line_end for source in answer.sources)
    memory.engine = replace(memory.engine, spaces_lines=False)
    assert memory.ask(QUESTION, max_tokens=12).text == "Cecil Wade", "or this test shows nothing"


@pytest.mark.parametrize(
    "text", ["1984 was cold.\n", " goes on.\n", "- a point\n", "\n", "    return x\n", "“Oh!”\n"]
)
def test_only_a_word_at_the_beginning_gets_a_space(model, text):
    ids = model.tokenizer.encode(text)
    assert model.reread(ids) == ids


@pytest.mark.parametrize("text", [SENTENCE, "Édouard left.\n", "a\n", "Xqzwvutrk came.\n"])
def test_no_passage_gets_longer_and_its_end_stays(model, text):
    ids = model.tokenizer.encode(text)
    again = model.reread(ids)
    assert len(again) <= len(ids) and again[-1] == ids[-1]
    assert model.tokenizer.decode(again).lstrip() == text
    assert replace(model, spaces_lines=False).reread(ids) == ids


def test_tokens_read_again_lead_back_to_their_own_places(path, model):
    memory, _ = read(path)
    grounds = find_grounds(
        memory.readings, QUESTION, [1, 2, 3], look_up=True, reread=memory.engine.reread
    )
    entries = {entry.first: entry for entry in grounds.passages}
    places = list(grounds.origins.values())
    assert places == sorted(set(places))
    for entry in entries.values():
        count = len(memory.engine.reread(entry.ids))
        assert set(range(entry.end - count, entry.end)) <= set(places)
    assert any(len(memory.engine.reread(e.ids)) < len(e.ids) for e in entries.values())
