"""A budget split among the layers: exact, never below the floor, and really freed."""

import pytest
import torch
from families import WINDOW, make_backbone, token_ids
from hypothesis import given
from hypothesis import strategies as st

from indexmem_cli.config import AnswerConfig, MemoryConfig
from indexmem_cli.engine import Reader
from indexmem_cli.memory.indexer import IndexerConfig, make_indexer, make_indexer_scorer
from indexmem_cli.memory.policies import make_scorer
from indexmem_cli.memory.store import load_state, save_state
from indexmem_cli.memory.update import split_budget
from indexmem_cli.plan import make_plan
from indexmem_cli.train.budgets import shares_of

IDS = token_ids(400)
QUESTION = token_ids(9, seed=1)
SHARES = [0.3, 1.9, 0.8]


@given(
    st.integers(1, 5000),
    st.lists(st.floats(0.01, 10), min_size=1, max_size=40),
    st.floats(0, 1),
)
def test_the_parts_of_a_budget_add_up_exactly(budget, shares, part):
    floor = int(budget * part)
    parts = split_budget(budget, shares, floor)
    assert sum(parts) == budget * len(shares) and min(parts) >= floor
    order = sorted(range(len(shares)), key=lambda i: shares[i])
    assert all(parts[a] <= parts[b] + 1 for a, b in zip(order, order[1:], strict=False))


@pytest.fixture(scope="module")
def backbone():
    return make_backbone("qwen3")


class ByPlace:
    """A score frozen at creation: by layer, and where a token stands."""

    needs_queries = needs_question = accumulates = False

    def score(self, block):
        layers = range(len(block.state.managed))
        return [(block.positions(i) * (7919 + i) % 1009).float() for i in layers]


def shared_scorer():
    torch.manual_seed(0)
    return make_indexer_scorer(make_indexer(IndexerConfig("shared", (0, 1, 2), 64, 2, 4, 16)))


def read(backbone, shares, scorer=None, chunk=32, positions="auto", budget=96, span=17):
    config = MemoryConfig(budget, chunk, "keydiff", positions=positions, span_tokens=span)
    plan, _ = make_plan(config, WINDOW, 0, len(QUESTION))
    reader = Reader(backbone, plan, scorer or shared_scorer(), QUESTION, shares)
    for _ in reader.read(IDS[first : first + chunk] for first in range(0, len(IDS), chunk)):
        pass
    return reader


def held(reader):
    return [layer.positions[0, :, : layer.held].tolist() for layer in reader.state.managed]


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("policy", ["learned", "keydiff", "h2o"])
def test_uneven_layers_hold_their_part_and_no_more_bytes(backbone, policy, positions):
    def scorer():
        return shared_scorer() if policy == "learned" else make_scorer(policy)

    reader = read(backbone, SHARES, scorer(), positions=positions)
    sizes = [layer.held for layer in reader.state.managed]
    assert sizes == split_budget(96, SHARES, 24) and sizes[0] < sizes[2] < sizes[1]
    even = read(backbone, (), scorer(), positions=positions)
    assert reader.state.held == even.state.held == 96
    assert reader.state.nbytes == even.state.nbytes
    for layer in reader.state.managed:
        assert layer.keys.shape[2] <= layer.held + 2 * (32 + len(QUESTION)) + 96
        places = layer.positions[0, :, : layer.held]
        assert (places < reader.state.sink_tokens).sum(-1).tolist() == [4, 4]
    steps = list(reader.fork().answer(QUESTION, AnswerConfig(max_tokens=4), set()))
    assert len(steps) == 4 and all(step.attended for step in steps)


def test_one_score_with_uneven_budgets_keeps_nested_sets(backbone):
    small, large, middle = ({*heads[0]} for heads in held(read(backbone, SHARES)))
    pinned = {*range(4), *range(len(IDS) - 12, len(IDS))}
    assert small > pinned
    assert small < large and middle < large


def test_a_small_layer_is_full_before_the_others(backbone):
    reader = read(backbone, SHARES, make_scorer("keydiff"), budget=400)
    sizes = split_budget(400, SHARES, 100)
    assert [layer.held for layer in reader.state.managed] == [min(400, size) for size in sizes]


def test_equal_shares_are_the_even_budget(backbone):
    assert held(read(backbone, [1.0, 1.0, 1.0])) == held(read(backbone, ()))


def test_with_room_for_all_uneven_shares_change_nothing(backbone):
    reader, plain = (read(backbone, shares, budget=900) for shares in ([1, 1.2, 0.8], ()))
    assert held(reader) == held(plain)
    answers = [
        [step.token_id for step in r.answer(QUESTION, AnswerConfig(max_tokens=4), set())]
        for r in (reader, plain)
    ]
    assert answers[0] == answers[1]


def test_the_kept_set_does_not_depend_on_the_chunks(backbone):
    kept = [held(read(backbone, SHARES, ByPlace(), chunk=chunk, span=1)) for chunk in (7, 50, 100)]
    assert kept[0] == kept[1] == kept[2]


def test_an_uneven_memory_is_saved_and_goes_on(backbone, tmp_path):
    reader = read(backbone, SHARES)
    layout = save_state(tmp_path / "state", reader.state, reader.scorer)
    again = Reader(backbone, reader.plan, shared_scorer(), QUESTION, SHARES)
    data = (tmp_path / "state").read_bytes()
    shapes = backbone.kv_shapes
    kinds = (shapes, torch.float32, [torch.device("cpu")] * len(shapes))
    load_state(data, layout, again.state, again.scorer, *kinds)
    for one in (reader, again):
        list(one.read([token_ids(40, seed=5)]))
    assert held(again) == held(reader)
    even = read(backbone, ())
    layout = {**layout, "uniform": True}
    with pytest.raises(ValueError, match="different numbers"):
        load_state(data, layout, backbone.new_state(0), even.scorer, *kinds)


def test_shares_follow_what_is_lost_without_a_layer():
    damage = torch.tensor([0.01, 2.0, 0.1])
    shares = shares_of(damage, 1.0)
    assert shares.mean() == pytest.approx(1) and shares[1] > 2.8 and shares[0] < shares[2]
    assert shares_of(damage, 0.5)[1] < shares[1]
    assert torch.equal(shares_of(damage, 0.0), torch.ones(3))


def test_a_question_finds_its_tokens_in_heads_that_hold_others(backbone):
    """Uneven layers, and heads of other tokens: a token is worth what any holder's head says."""
    for reader in (read(backbone, SHARES), read(backbone, (), make_scorer("keydiff"))):
        fork = reader.fork_for(QUESTION)
        block = backbone.block(fork.state, 0, [])
        block.question_attention = backbone.probe(QUESTION, fork.state)
        scores, best = fork.scorer.score(block), {}
        for i, paid in enumerate(block.question_attention):
            for place, weight in zip(block.positions(i).flatten(), paid.flatten(), strict=True):
                best[int(place)] = max(float(weight), best.get(int(place), 0.0))
        for i, score in enumerate(scores):
            for place, value in zip(block.positions(i).flatten(), score.flatten(), strict=True):
                assert float(value) == best[int(place)]
        fork.recall(IDS[40:60])
        assert max(layer.held for layer in fork.state.managed) <= 96
