"""What is kept, what goes, and what each scorer looks at."""

import pytest
import torch
from families import make_backbone, make_model, token_ids
from hypothesis import given
from hypothesis import strategies as st
from kept import kept_positions

from indexmem_cli import config
from indexmem_cli.memory.policies import SCORERS, make_scorer
from indexmem_cli.memory.state import LayerState, MemoryState, WindowState
from indexmem_cli.memory.update import evict, select_kept

IDS = token_ids(96)


def filled(slots, heads=2, size=4, layers=2):
    """A memory holding positions 0 … slots - 1, with recognisable keys and values."""
    state = MemoryState([LayerState(slots) for _ in range(layers)])
    for layer in state.layers:
        values = torch.arange(slots * heads * size, dtype=torch.float32)
        values = values.reshape(1, heads, slots, size)
        layer.append(values, -values, 0)
    state.seen = slots
    return state


@given(st.integers(1, 40), st.data())
def test_selection_is_the_best_by_score_then_by_age(slots, data):
    scores = data.draw(st.lists(st.integers(0, 5), min_size=slots, max_size=slots))
    pinned = data.draw(st.lists(st.booleans(), min_size=slots, max_size=slots))
    budget = data.draw(st.integers(max(1, sum(pinned)), max(1, slots)))
    ranked = sorted(range(slots), key=lambda i: (not pinned[i], -scores[i] * (not pinned[i]), i))
    kept = select_kept(torch.tensor([scores]).float(), torch.tensor([pinned]), budget)
    assert kept.tolist() == [sorted(ranked[:budget])]


def test_a_score_that_is_no_number_goes_first():
    scores = torch.tensor([[1.0, float("nan"), 0.0, float("-inf"), 2.0]])
    kept = select_kept(scores, torch.zeros(1, 5, dtype=torch.bool), 3)
    assert kept.tolist() == [[0, 2, 4]]


def test_eviction_moves_keys_values_positions_and_scores_together():
    state = filled(slots=6)
    scores = [torch.tensor([[[0, 5, 1, 4, 2, 3.0], [5, 0, 4, 1, 3, 2.0]]]) for _ in range(2)]
    before = [layer.keys.clone() for layer in state.managed]
    evict(state, scores, budget=3)
    for layer, old in zip(state.managed, before, strict=True):
        assert layer.held == 3
        positions = layer.positions[0, :, :3]
        assert positions.tolist() == [[1, 3, 5], [0, 2, 4]]
        for head in range(2):
            assert torch.equal(layer.keys[0, head, :3], old[0, head, positions[head]])
            assert torch.equal(layer.values[0, head, :3], -old[0, head, positions[head]])
        assert layer.scores[0, :, :3].tolist() == [[5, 4, 3], [5, 4, 3]]
    assert not state.uniform
    assert kept_positions(state) == [0, 1, 2, 3, 4, 5]


def test_a_shared_score_keeps_the_same_positions_everywhere():
    state = filled(slots=6)
    evict(state, [torch.tensor([[[0, 5, 1, 4, 2, 3.0]]])] * 2, budget=3)
    assert state.uniform
    assert kept_positions(state) == [1, 3, 5]
    for layer in state.managed:
        assert layer.positions[0, :, :3].tolist() == [[1, 3, 5]] * 2


def test_spans_stay_whole():
    state = filled(slots=40)
    peak = torch.zeros(1, 1, 40)
    peak[..., 20] = 1
    evict(state, [peak] * 2, budget=5, span_tokens=5)
    assert kept_positions(state) == [18, 19, 20, 21, 22]


def test_spans_end_where_a_head_ends():
    state = filled(slots=40)
    scores = [torch.zeros(1, 2, 40) for _ in range(2)]
    for score in scores:
        score[..., 20] = 1
    scores[0][..., 39] = scores[1][0, 0, 39] = 2  # the last token, before another head's first
    evict(state, scores, budget=5, span_tokens=5)
    ends = [18, 19, 37, 38, 39]
    assert state.layers[0].positions[0, :, :5].tolist() == [ends, ends]
    assert state.layers[1].positions[0, :, :5].tolist() == [ends, [18, 19, 20, 21, 22]]


def test_what_is_dropped_never_comes_back():
    state = filled(slots=30)
    state.recent_tokens = 3
    gone = set()
    for _ in range(10):
        evict(state, [torch.rand(1, 2, state.held)] * 2, budget=20)
        for layer in state.managed:
            held = {(h, p) for h in range(2) for p in layer.positions[0, h, : layer.held].tolist()}
            assert not held & gone
        everything = {(h, p) for h in range(2) for p in range(state.seen)}
        gone |= everything - held
        for layer in state.layers:
            layer.append(torch.rand(1, 2, 5, 4), torch.rand(1, 2, 5, 4), state.seen)
        state.seen += 5


def test_clone_shares_nothing():
    state = filled(slots=6)
    state.pins.append((1, 2))
    copy = state.clone()
    evict(copy, [torch.rand(1, 2, 6)] * 2, budget=3)
    copy.pins.append((3, 4))
    copy.layers[0].keys.zero_()
    assert (state.held, copy.held) == (6, 3)
    assert state.pins == [(1, 2)] and state.layers[0].keys.any()


def test_bytes_are_those_of_what_is_held():
    state = filled(slots=6, heads=2, size=4, layers=2)
    assert state.nbytes == 2 * 2 * 2 * 6 * 4 * 4
    evict(state, [torch.rand(1, 1, 6)] * 2, budget=3)
    assert state.nbytes == 2 * 2 * 2 * 3 * 4 * 4


def test_a_window_layer_holds_what_its_window_needs_and_can_step_back():
    layer = WindowState(window=4)
    for first in range(0, 20, 5):
        keys = torch.arange(first, first + 5.0).reshape(1, 1, 5, 1)
        seen, _ = layer.append(keys, keys, first)
        assert seen.flatten().tolist() == list(range(max(0, first - 3), first + 5))
    before = layer.keys.flatten().tolist()[-3:]
    layer.append(torch.zeros(1, 1, 2, 1), torch.zeros(1, 1, 2, 1), 20)
    layer.drop_last(2)
    assert layer.keys.flatten().tolist()[-3:] == before


@pytest.fixture(scope="module")
def plain_attention():
    """Attention maps of the untouched model over IDS, per layer [H, T, T]."""
    with torch.no_grad():
        out = make_model("qwen3")(torch.tensor([IDS]), output_attentions=True)
    return [weights[0] for weights in out.attentions]


def read_block(chunk, policy=None, budget=96, seen=None):
    """Read IDS in chunks under a budget; return the last block and the scores after it.

    Args:
        seen: list that the queries of each chunk are added to.
    """
    backbone = make_backbone("qwen3")
    state = backbone.new_state(slots=len(IDS))
    scorer = make_scorer(policy)
    with torch.no_grad():
        for first in range(0, len(IDS), chunk):
            part = IDS[first : first + chunk]
            if state.held > (left := budget - len(part)):
                evict(state, [torch.rand(1, 2, state.held) for _ in state.managed], left)
            block = backbone.block(state, len(part), backbone.read(part, state, want_queries=True))
            if seen is not None:
                seen.append(block.queries)
            if scorer.needs_question:
                block.question_attention = backbone.probe(IDS[:5], state)
            scores = scorer.score(block)
            for layer, score in zip(state.managed, scores, strict=True):
                layer.scores[:, :, : layer.held] = score
    return block, scores


def per_group(rows):
    """[H, T] to [G, T] by the mean over each group of 2 heads."""
    return rows.unflatten(0, (2, 2)).mean(1)


@pytest.mark.parametrize("chunk", [32, 96])
def test_snapkv_tova_and_h2o_see_the_models_own_attention(chunk, plain_attention):
    _, snapkv = read_block(chunk, "snapkv")
    _, tova = read_block(chunk, "tova")
    _, h2o = read_block(chunk, "h2o")
    for i, weights in enumerate(plain_attention):
        close = {"atol": 1e-5, "rtol": 1e-4}
        torch.testing.assert_close(snapkv[i][0], per_group(weights[:, -32:].mean(1)), **close)
        torch.testing.assert_close(tova[i][0, 0], weights[:, -1].mean(0), **close)
        torch.testing.assert_close(h2o[i][0], 2 * per_group(weights.sum(1)), **close)


@pytest.mark.parametrize("budget", [96, 70])
def test_expected_attention_follows_its_formula_wherever_a_head_holds_its_keys(budget):
    queries = []
    block, scores = read_block(32, "expected-attention", budget, queries)
    where = block.positions(1)[0]
    assert torch.equal(where[0], where[1]) == (budget == 96)
    rope, size = make_backbone("qwen3").decoder.rotary_emb, 16
    for i in range(3):
        q = torch.cat([chunk[i][0] for chunk in queries], dim=1).double()  # [H, T, D], not rotated
        cos, sin = rope.forward(torch.zeros(1), torch.arange(96, 96 + 512)[None])
        half = torch.cat([torch.eye(size)[:, size // 2 :] * -1, torch.eye(size)[:, : size // 2]], 1)
        turn = (torch.eye(size) * cos[0, :, None, :] + half.T.T * sin[0, :, None, :]).mean(0)
        turn = turn.double()  # row d: the average image of axis d
        mean = q.mean(1) @ turn
        centred = q - q.mean(1, keepdim=True)
        cov = turn.T @ (centred.transpose(1, 2) @ centred / 96) @ turn
        held = enumerate(block.positions(i)[0])
        turned = [block.rotate(i, block.keys(i)[:, [g]], where)[0, 0] for g, where in held]
        keys = torch.stack(turned).double().repeat_interleave(2, 0)
        logits = (keys @ mean[..., None])[..., 0] / 4
        logits = logits + torch.einsum("hnd,hde,hne->hn", keys, cov, keys) / (2 * size)
        expected = per_group(logits.softmax(-1)) * block.values(i)[0].double().norm(dim=-1)
        torch.testing.assert_close(scores[i][0].double(), expected, atol=1e-5, rtol=1e-3)


def test_question_takes_the_largest_attention_of_any_layer_head_and_word():
    block, scores = read_block(32, "question")
    best = torch.stack([paid[0].amax(0) for paid in block.question_attention]).amax(0)
    assert torch.equal(scores[0][0, 0], best)
    assert all(score is scores[0] for score in scores)


def test_key_norm_and_key_diff_look_at_keys():
    block, norm = read_block(96, "knorm")
    _, diff = read_block(96, "keydiff")
    keys = block.keys(1)[0]
    torch.testing.assert_close(norm[1][0], -keys.norm(dim=-1))
    unit = keys / keys.norm(dim=-1, keepdim=True)
    cosine = torch.nn.functional.cosine_similarity(unit, unit.mean(1, keepdim=True), dim=-1)
    torch.testing.assert_close(diff[1][0], -cosine)


def test_random_depends_on_the_seed_and_nothing_else():
    block, first = read_block(96, "random")
    _, again = read_block(32, "random")
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], make_scorer("random", seed=1).score(block)[0])
    spread = first[0].flatten() / 2**23
    assert abs(float(spread.mean()) - 0.5) < 0.1 and len(spread.unique()) == 96


def test_every_policy_has_a_scorer_and_a_description():
    assert {*SCORERS, "learned"} == set(config.POLICIES)
