"""Texts that share words with a question, in rows of real questions."""

from pathlib import Path
from random import Random

import pytest
from test_train import data_folder, maker  # noqa: F401

from indexmem_cli.train import episodes
from indexmem_cli.train.neighbours import Neighbours
from indexmem_cli.train.reading import Context
from indexmem_cli.train.renaming import Renaming
from indexmem_cli.train.tasks import Turn

TOWNS = ("Oslo", "Lisbon", "Turku", "Cork")
TEXTS = [f"The ferry of {town} is grey." for town in TOWNS] + ["Figs grow in the south.", "A, b!"]


def test_texts_are_found_by_the_words_of_a_question() -> None:
    neighbours = Neighbours(TEXTS)
    assert neighbours.find("Which ferries does Turku have?", 2)[0] == 2
    assert sorted(neighbours.find("Which ferry?", 9)) == [0, 1, 2, 3]
    assert len(neighbours.find("Which ferry?", 3)) == 3
    assert neighbours.find("Why is it so?", 9) == neighbours.find('"', 9) == []


def test_rows_of_real_questions_hold_the_texts_nearest_to_one(
    data_folder: Path,  # noqa: F811
    maker: episodes.EpisodeMaker,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = episodes.EpisodeMaker(maker.corpus, data_folder)
    contexts = [Context(text, (Turn(f"{text[:-1]}?", text[4:7]),), (None,)) for text in TEXTS * 9]
    own.contexts["squadshifts"] = contexts
    own.neighbours["squadshifts"] = Neighbours([context.text for context in contexts])
    alike = 0
    for seed in range(200):
        drawn = own.draw_contexts(Random(seed), "squadshifts")
        assert 1 <= len(drawn) <= episodes.MOST_CONTEXTS + 1
        alike += len({"ferry" in context.text for context in drawn}) == 1
    assert 70 < alike < 130
    monkeypatch.setattr(episodes, "NEIGHBOUR_FRACTION", 1.0)
    for seed in range(20):
        first, *others = own.draw_contexts(Random(seed), "squadshifts")
        assert all(id(first) != id(other) for other in others)
        [_] = {"ferry" in context.text for context in (first, *others)}
    del own.neighbours["squadshifts"]
    drawn = own.draw_contexts(Random(0), "squadshifts")
    assert len(drawn) == episodes.MOST_CONTEXTS and len({c.text for c in drawn}) > 3


def test_texts_read_together_are_renamed_alike(
    data_folder: Path,  # noqa: F811
    maker: episodes.EpisodeMaker,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = episodes.EpisodeMaker(maker.corpus, data_folder, renamed_fraction=1.0)
    renaming = Renaming(own.lexicon, Random(3))
    first, _ = renaming.rename("Ada Kerr saw 1234 gates.", [])
    again, turns = renaming.rename("1234 gates, said Ada.", [Turn("saw 1234 gates?", "Ada")])
    name, number = first.split()[0], first.split()[3]
    assert again == f"{number} gates, said {name}."
    assert turns == [Turn(f"saw {number} gates?", name)]
    made: list[Renaming] = []
    monkeypatch.setattr(
        episodes, "Renaming", lambda *given: made.append(Renaming(*given)) or made[-1]
    )
    own.make_qa(Random(0), 192)
    assert len(made) == 1
