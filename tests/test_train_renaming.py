"""Real questions in other names, numbers and words."""

from pathlib import Path
from random import Random

import pytest
from test_train import data_folder, maker  # noqa: F401

from indexmem_cli.config import NOT_STATED
from indexmem_cli.train import episodes, renaming
from indexmem_cli.train.renaming import Lexicon, Renaming
from indexmem_cli.train.tasks import Turn

TEXT = "In 1874 Ada Kerr painted 36 walls. The walls stood near Oslo, and Kerr was paid."
TURNS = [
    Turn("Who painted the walls in 1874?", "Ada Kerr"),
    Turn("How many walls did Kerr paint?", "36 walls"),
    Turn("Who paid Kerr?", NOT_STATED),
]
OTHERS = (
    "Bruno Hale carved gates. A gate. They carve, carved. Lisbon had a gate; we mend roofs. "
    "A wall. To paint walls, painted: painting. She is mending a roof, mended roofs. Oslo. "
    "Now the gate, a roof and she; if they say it, in time, near Lisbon. "
)


@pytest.fixture
def lexicon(monkeypatch: pytest.MonkeyPatch) -> Lexicon:
    monkeypatch.setattr(renaming, "NUM_COMMON", 0)
    monkeypatch.setattr(renaming, "WORDS_FRACTIONS", (1.0,))
    monkeypatch.setattr(renaming, "NAMES_FRACTION", 1.0)
    return Lexicon([TEXT, *[OTHERS] * renaming.MIN_COUNT])


def test_text_questions_and_answers_change_alike(lexicon: Lexicon) -> None:
    changed = 0
    for seed in range(40):
        text, turns = Renaming(lexicon, Random(seed)).rename(TEXT, TURNS)
        assert [turn.answer for turn in turns][2] == NOT_STATED
        assert turns[0].answer in text
        assert turns[1].answer in text
        assert "Kerr" not in turns[0].answer or "Kerr" in text
        year, number = text.split(" ")[1], turns[1].answer.split(" ")[0]
        assert year in turns[0].question
        assert (len(year), year[:2], len(number)) == (4, "18", 2)
        surname = turns[0].answer.split(" ")[1]
        assert text.count(surname) >= 2
        assert surname in turns[1].question
        changed += text != TEXT
    assert changed == 40


def test_words_change_with_their_like_and_keep_endings(lexicon: Lexicon) -> None:
    assert lexicon.stems[frozenset({"", "s"})] == ["gate", "roof", "wall"]
    assert renaming.split("painted", lexicon.plain) == ("paint", "ed")
    drawn = {Renaming(lexicon, Random(seed)).rename("The walls", [])[0] for seed in range(40)}
    assert drawn == {"The walls", "The gates", "The roofs"}
    drawn = {
        Renaming(lexicon, Random(seed)).rename("Painted, painting", [])[0] for seed in range(40)
    }
    assert drawn == {"Painted, painting", "Mended, mending"}


def test_common_and_short_words_and_sentence_openers_stay(
    lexicon: Lexicon, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = "The gate is a gate, and so it was."
    for seed in range(20):
        text, _ = Renaming(lexicon, Random(seed)).rename(plain, [])
        assert text.replace("roof", "gate").replace("wall", "gate") == plain
    monkeypatch.setattr(renaming, "NUM_COMMON", 1000)
    common = Lexicon([TEXT, *[OTHERS] * renaming.MIN_COUNT])
    assert Renaming(common, Random(0)).rename(plain, []) == (plain, [])


def test_a_question_whose_answer_is_lost_is_dropped(lexicon: Lexicon) -> None:
    text, turns = Renaming(lexicon, Random(0)).rename(
        "Seen in 1874.", [Turn("In what decade?", "187")]
    )
    assert "187" not in text
    assert turns == []


def test_rows_hold_renamed_questions(
    data_folder: Path,  # noqa: F811
    maker: episodes.EpisodeMaker,  # noqa: F811
) -> None:
    corpus, years = maker.corpus, []
    for fraction in (0.0, 1.0):
        own = episodes.EpisodeMaker(corpus, data_folder, renamed_fraction=fraction)
        rows = [own.make_qa(Random(seed), 192) for seed in range(40)]
        texts = [corpus.encoding.decode(row.ids) for row in rows]
        years.append(sum("1874" in text for text in texts))
    assert years[0] > 20
    assert years[1] < years[0] / 2
