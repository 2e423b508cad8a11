"""A budget split among layers and heads: exact, never below the floor, and really freed."""

from functools import partial

import pytest
import torch
from families import make_backbone, stream, token_ids
from hypothesis import given
from hypothesis import strategies as st

from indexmem_cli.config import AnswerConfig
from indexmem_cli.engine import Reader
from indexmem_cli.errors import BackboneError
from indexmem_cli.explain import explain
from indexmem_cli.memory.adapter import Adapter, hash_model, load_adapter, save_adapter
from indexmem_cli.memory.indexer import IndexerConfig, make_indexer, make_indexer_scorer
from indexmem_cli.memory.latent import CentroidMemory
from indexmem_cli.memory.policies import make_scorer
from indexmem_cli.memory.store import load_state, save_state
from indexmem_cli.memory.update import split_budget
from indexmem_cli.train.adapter import Batch
from indexmem_cli.train.budgets import measure_damage, shares_of
from indexmem_cli.train.teachers import Streaming, WholeModel

IDS = token_ids(400)
QUESTION = token_ids(9, seed=1)
SHARES = [0.3, 1.9, 0.8]
HEAD_SHARES = [0.2, 0.4, 2.4, 1.3, 0.6, 1.1]


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


def read(backbone, shares, scorer=None, budget=96, **options):
    options = {"budget": budget, "question": QUESTION, "shares": shares} | options
    return stream(backbone, scorer or shared_scorer(), IDS, **options)


def held(reader):
    """Positions by layer and head, however they are stored."""
    heads = [head for part in reader.state.managed for head in part.positions[0, :, : part.held]]
    return [[heads[i].tolist(), heads[i + 1].tolist()] for i in range(0, len(heads), 2)]


def answer(reader, tokens=4):
    config = AnswerConfig(max_tokens=tokens)
    return [step.token_id for step in reader.fork().answer(QUESTION, config, set())]


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


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("policy", ["learned", "keydiff", "h2o", "expected-attention"])
def test_uneven_heads_hold_their_part_and_no_slot_for_a_rectangle(backbone, policy, positions):
    scorer = shared_scorer() if policy == "learned" else make_scorer(policy)
    reader = read(backbone, HEAD_SHARES, scorer, positions=positions)
    parts = reader.state.managed
    assert [part.held for part in parts] == split_budget(96, HEAD_SHARES, 24)
    assert sum(part.held for part in parts) == 96 * 6 and len({p.held for p in parts}) > 4
    even = read(backbone, (), make_scorer("keydiff"))
    assert reader.state.nbytes == even.state.nbytes and reader.state.held == 96
    for part in parts:
        assert part.keys.shape[2] <= part.held + 32 + len(QUESTION)
        places = part.positions[0, 0, : part.held]
        assert (places < reader.state.sink_tokens).sum() == 4
    steps = list(reader.fork().answer(QUESTION, AnswerConfig(max_tokens=4), set()))
    assert len(steps) == 4 and all(step.attended for step in steps)


@pytest.mark.parametrize("policy", ["learned", "keydiff", "snapkv", "h2o", "random"])
@pytest.mark.parametrize("latent", [False, True])
def test_heads_stored_apart_are_the_heads_stored_together(backbone, policy, latent):
    """Equal shares: what is kept, and what is answered from it, is that of plain layers."""

    def scorer():
        return shared_scorer() if policy == "learned" else make_scorer(policy)

    make_latent = partial(CentroidMemory, 8) if latent else None
    apart, together = (
        read(backbone, shares, scorer(), make_latent=make_latent) for shares in ([1.0] * 6, ())
    )
    assert len(apart.state.managed) == 6 and len(together.state.managed) == 3
    assert held(apart) == held(together)
    assert answer(apart, 6) == answer(together, 6)
    assert latent or apart.state.nbytes == together.state.nbytes


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral-sliding", "gemma2", "gemma3"])
def test_with_room_for_all_uneven_heads_are_the_plain_model(family):
    backbone = make_backbone(family)
    count = 2 * backbone.layer_windows.count(None)
    apart = read(backbone, [1.1, 0.9] * (count // 2), make_scorer("keydiff"), budget=900)
    assert answer(apart) == answer(read(backbone, (), make_scorer("keydiff"), budget=900))


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


def test_a_long_question_leaves_small_layers_room_for_a_long_answer(backbone):
    reader = read(backbone, (0.3, 1.9, 0.8))
    question = token_ids(80, seed=2)
    steps = list(reader.fork().answer(question, AnswerConfig(max_tokens=256), frozenset()))
    assert len(steps) == 256


@pytest.mark.parametrize("shares", [SHARES, HEAD_SHARES])
def test_the_kept_set_does_not_depend_on_the_chunks(backbone, shares):
    kept = [
        held(read(backbone, shares, ByPlace(), chunk=chunk, span_tokens=1))
        for chunk in (7, 50, 100)
    ]
    assert kept[0] == kept[1] == kept[2]


@pytest.mark.parametrize(
    "shares, error", [(SHARES, "different numbers"), (HEAD_SHARES, "layer 0 is missing")]
)
def test_an_uneven_memory_is_saved_and_goes_on(backbone, tmp_path, shares, error):
    reader = read(backbone, shares)
    layout = save_state(tmp_path / "state", reader.state, reader.scorer)
    again = Reader(backbone, reader.plan, shared_scorer(), QUESTION, shares)
    data = (tmp_path / "state").read_bytes()
    shapes = backbone.kv_shapes
    kinds = (shapes, torch.float32, [torch.device("cpu")] * len(shapes))
    load_state(data, layout, again.state, again.scorer, *kinds)
    for one in (reader, again):
        list(one.read([token_ids(40, seed=5)]))
    assert held(again) == held(reader) and answer(again) == answer(reader)
    even = read(backbone, ())
    layout = {**layout, "uniform": True}
    with pytest.raises(ValueError, match=error):
        load_state(data, layout, backbone.new_state(0), even.scorer, *kinds)


def test_shares_follow_what_is_lost_without_a_layer():
    damage = torch.tensor([0.01, 2.0, 0.1])
    shares = shares_of(damage, 1.0)
    assert shares.mean() == pytest.approx(1) and shares[1] > 2.8 and shares[0] < shares[2]
    assert shares_of(damage, 0.5)[1] < shares[1]
    assert torch.equal(shares_of(damage, 0.0), torch.ones(3))


def test_heads_stored_apart_are_explained_together(backbone):
    shown, plain = (
        explain(reader, reader, QUESTION)
        for reader in (read(backbone, [1.0] * 6), read(backbone, ()))
    )
    assert shown.kept == plain.kept and len(shown.attention) == 3
    for one, other in zip(shown.attention, plain.attention, strict=True):
        assert one.kept == pytest.approx(other.kept, abs=1e-4)


def test_a_table_by_head_goes_before_one_by_layer_and_comes_back_from_its_file(tmp_path):
    adapter = Adapter(shared_scorer().indexer, *hash_model(tmp_path))
    assert adapter.shares == []
    adapter.layer_shares = torch.tensor([0.5, 1.5, 1.0])
    assert adapter.shares == [0.5, 1.5, 1.0]
    adapter.head_shares = torch.arange(1.0, 7).view(3, 2)
    save_adapter(adapter, tmp_path / "adapter.safetensors")
    read = load_adapter(tmp_path / "adapter.safetensors", tmp_path)
    assert read.shares == [1, 2, 3, 4, 5, 6] and read.layer_shares.tolist() == [0.5, 1.5, 1.0]
    for wrong in (torch.ones(2, 3), torch.zeros(3, 2)):
        adapter.head_shares = wrong
        save_adapter(adapter, tmp_path / "adapter.safetensors")
        with pytest.raises(BackboneError, match="head_shares"):
            load_adapter(tmp_path / "adapter.safetensors", tmp_path)


@pytest.mark.parametrize("form", ["shared", "retention"])
def test_the_damage_of_heads_is_measured_one_by_one(form):
    """A head that nothing is evicted from does no damage; a layer is all its heads at once."""
    model = WholeModel(make_backbone("llama"))
    torch.manual_seed(0)
    indexer = make_indexer(IndexerConfig(form, (0, 1, 2), 64, 2, 4, 16))
    ids = torch.tensor([token_ids(90)])
    answering = torch.arange(90)[None] >= 80
    batch = Batch(ids, [80], torch.ones_like(answering), answering, answering)
    streaming = Streaming(16, 4, 4, 3)
    heads = measure_damage(model, indexer, batch, streaming, 0.2, "head")
    layers = measure_damage(model, indexer, batch, streaming, 0.2, "layer")
    assert heads.shape == (3, 2) and layers.shape == (3,)
    assert (heads > 0).all() and (heads.amax(1) < 3 * layers).all()
    assert measure_damage(model, indexer, batch, streaming, 1.0, "head").abs().max() < 1e-5
    assert len({*heads.flatten().tolist()}) == 6


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
