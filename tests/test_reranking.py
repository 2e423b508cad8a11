"""What the model says of passages one by one, and the order that recall makes of it."""

import pytest

from indexmem_cli import Memory
from indexmem_cli.asking import _reranker
from indexmem_cli.config import DEFAULT_MODEL, ModelConfig
from indexmem_cli.language_model import load_language_model
from indexmem_cli.memory.recall import (
    RERANKED,
    Recall,
    judge,
    likely_of,
    load_gate,
    rate,
)
from indexmem_cli.reranking import MOST_QUESTION_TOKENS, Reranker
from indexmem_cli.train.gate import Book

FILLER = [f"Nothing of note happened on day {n} of the long voyage by sea." for n in range(200)]
QUESTION = "Who painted the harbour of Vell in the spring?"
ANSWER = "Captain Obed painted the harbour of Vell in May.\n"
DECOYS = [
    "In the spring the harbour of Vell was full of ships, and nobody had time to paint.\n",
    "The harbour of Vell froze in the winter, and in the spring it was painted white.\n",
    "Martha Reed sailed out of the harbour of Vell.\n",
]


@pytest.fixture(scope="module")
def model():
    return load_language_model(ModelConfig(DEFAULT_MODEL, device="cpu", offline=True))


@pytest.fixture(scope="module")
def reranker(model):
    return Reranker(model.backbone, model.prompt, model.tokenizer)


@pytest.fixture
def archive(tmp_path, model):
    lines = [f"{line}\n" for line in FILLER]
    for number, line in zip((20, 60, 100, 140), (*DECOYS[:2], ANSWER, DECOYS[2]), strict=True):
        lines[number] = line
    return Book("".join(lines), tmp_path / "a.sqlite", model.tokenizer).archive


def make_recall(archive, ask_model=None):
    return Recall(archive, QUESTION, load_gate(), ask_model)


def number_of(archive, line):
    return next(block.number for block in archive if line.strip() in archive.text(block))


def test_a_passage_that_answers_leaves_less_to_refusing(archive, reranker):
    numbers = [number_of(archive, line) for line in (ANSWER, FILLER[180], *DECOYS)]
    answers, empty, *decoys = reranker.read(QUESTION, [archive.block(n) for n in numbers])
    assert answers[0] < min(refusal for refusal, _ in (empty, *decoys))
    assert answers[1] > empty[1], "words of the question stand in the passage"
    assert all(value < 0 for verdict in (answers, empty, *decoys) for value in verdict)


def test_each_passage_is_read_alone(archive, reranker):
    blocks = [archive.block(number) for number in range(3)]
    together = reranker.read(QUESTION, blocks)
    assert together == [reranker.read(QUESTION, [block])[0] for block in blocks]
    assert reranker.read(QUESTION, []) == []


def test_what_answers_comes_before_what_only_shares_words(archive, reranker):
    by_words = make_recall(archive).rate_first()
    read = make_recall(archive, lambda blocks: reranker.read(QUESTION, blocks)).rate_first()
    answering = number_of(archive, ANSWER)
    assert by_words[0][1] != answering == read[0][1]
    assert sorted(number for _, number in by_words) == sorted(number for _, number in read)
    assert read == sorted(read, key=lambda pair: -pair[0])


@pytest.mark.parametrize("shift", [0.0, -40.0])
def test_a_model_that_says_the_same_of_all_leaves_their_order(archive, shift):
    by_words = make_recall(archive).rate_first()
    asked = []

    def same_of_all(blocks):
        asked.extend(block.number for block in blocks)
        return [(shift, shift)] * len(blocks)

    read = make_recall(archive, same_of_all).rate_first()
    assert [number for _, number in read] == [number for _, number in by_words]
    assert asked == [number for _, number in likely_of(by_words)]
    assert 2 <= len(asked) <= RERANKED


def test_what_a_model_gives_to_refusing_counts_beside_its_other_verdicts():
    gate, rated = load_gate(), [(0.5, 4), (0.4, 7), (0.3, 9)]
    verdicts = [(-0.1, -3.0), (-0.2, -3.0), (-6.0, -3.0)]
    shifted = [(refusal - 5.0, question - 2.0) for refusal, question in verdicts]
    [best, *_] = once = rate(gate.rerank, judge(rated, verdicts))
    assert best[1] == 9
    again = rate(gate.rerank, judge(rated, shifted))
    assert again == [(pytest.approx(odds), number) for odds, number in once]


def test_a_single_likely_block_is_not_read(archive):
    def nothing_to_choose(blocks):
        raise AssertionError(blocks)

    recall = Recall(archive, "Captain Obed May", load_gate(), nothing_to_choose)
    recall.run(200, 400)
    assert number_of(archive, ANSWER) in [block.number for block in recall.blocks]


@pytest.mark.parametrize("room", [160, 512])
def test_nothing_is_asked_where_all_likely_blocks_fit(archive, room):
    asked = []

    def note(blocks):
        asked.extend(block.end - block.first for block in blocks)
        return [(-1.0, -1.0)] * len(blocks)

    make_recall(archive, note).run(room, 1024)
    assert bool(asked) == (room == 160)
    assert room == 512 or sum(asked) > room


def test_a_long_question_is_not_read_with_every_passage(model):
    assert _reranker(model, QUESTION) is not None
    assert _reranker(model, "silver " * (MOST_QUESTION_TOKENS + 1)) is None


def test_the_model_is_asked_unless_told_not_to(tmp_path):
    path = tmp_path / "a.txt"
    lines = list(FILLER)
    lines[20], lines[100] = DECOYS[1].strip(), ANSWER.strip()
    path.write_text("\n".join(lines))
    odds = {}
    for rerank in (True, False):
        memory = Memory.read(path, budget=512, offline=True, device="cpu", rerank=rerank)
        first, *_ = memory.ask(QUESTION, max_tokens=8).recall
        odds[rerank] = [block.odds for block in first.blocks]
    assert odds[True] != odds[False]
