"""The model behind our cache is the model: exact, causal, and given back as it was."""

import pytest
import torch
from families import CONFIGS, make_backbone, make_model, token_ids

from indexmem_cli.memory.update import evict

LENGTH = 300
IDS = token_ids(LENGTH)


@pytest.fixture(scope="module", params=CONFIGS)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def plain_logits(family):
    """Logits [LENGTH, V] of the untouched model."""
    with torch.no_grad():
        return make_model(family)(torch.tensor([IDS])).logits[0]


def read_with_logits(backbone, ids, chunk):
    """Read in chunks; return the logits after each chunk, by position."""
    state = backbone.new_state(slots=16)
    logits = {}
    for first in range(0, len(ids), chunk):
        part = ids[first : first + chunk]
        logits[first + len(part) - 1] = backbone.predict(part, state)[0]
    return logits, state


@pytest.mark.parametrize("chunk", [1, 7, 64, 512])
def test_with_room_for_all_chunked_logits_equal_the_plain_models(family, plain_logits, chunk):
    logits, state = read_with_logits(make_backbone(family), IDS, chunk)
    worst = max(float((plain_logits[at] - row).abs().max()) for at, row in logits.items())
    assert worst <= 1e-5, f"{family}, chunk {chunk}: largest difference {worst:.1e}"
    assert state.seen == LENGTH


def test_compact_positions_change_nothing_while_nothing_is_evicted(family, plain_logits):
    backbone = make_backbone(family)
    state = backbone.new_state(slots=LENGTH)
    state.use_compact_positions()
    for first in range(0, LENGTH, 64):
        logits, _, _ = backbone.predict(IDS[first : first + 64], state)
    assert float((plain_logits[-1] - logits).abs().max()) <= 1e-5


def test_a_later_token_never_changes_an_earlier_row(family):
    backbone = make_backbone(family)
    changed = [*IDS[:-1], IDS[-1] % 298 + 2]
    rows = []
    for ids in (IDS, changed):
        state = backbone.new_state(slots=LENGTH)
        backbone.read(ids[:200], state)
        if state.managed:
            evict(state, [layer.scores[:, :, : layer.held] for layer in state.managed], 96)
        tokens = torch.tensor([ids[200:]])
        rows.append(_hidden(backbone, tokens, state))
    assert torch.equal(rows[0][:, :-1], rows[1][:, :-1])
    assert not torch.equal(rows[0][:, -1], rows[1][:, -1])


def _hidden(backbone, tokens, state):
    _, out = backbone._forward(backbone.decoder, tokens[0].tolist(), state)
    return out.last_hidden_state


def test_probe_leaves_no_trace(family):
    logits = []
    for probe in (False, True):
        backbone = make_backbone(family)
        state = backbone.new_state(slots=LENGTH)
        backbone.read(IDS[:150], state)
        if probe:
            paid = backbone.probe(IDS[150:170], state)
            assert all(weights.shape[2] == 150 for weights in paid)
            assert len(paid) == len(state.managed)
        logits.append(backbone.predict(IDS[200:230], state)[0])
    assert torch.equal(*logits)


@pytest.mark.parametrize("family", [name for name in CONFIGS if name != "mistral-sliding"])
def test_attention_shown_to_scorers_is_the_attention_paid(family):
    backbone = make_backbone(family)
    state = backbone.new_state(slots=LENGTH)
    backbone.read(IDS[:100], state)
    queries = backbone.read(IDS[100:160], state, want_queries=True)
    shown = backbone.block(state, 60, queries).attention(0, 40, 60)

    fresh = make_backbone(family)
    again = fresh.new_state(slots=LENGTH)
    fresh.read(IDS[:140], again)
    _, _, paid = fresh.predict(IDS[140:160], again, want_attention=True)
    by_group = shown.unflatten(1, (paid[0].shape[1], -1)).amax(dim=(2, 3))
    torch.testing.assert_close(by_group, paid[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(shown.sum(-1), torch.ones_like(shown.sum(-1)))


def test_detach_gives_the_model_back_unchanged(family, plain_logits):
    model = make_model(family)
    backbone = make_backbone(family, model)
    backbone.read(IDS[:10], backbone.new_state(slots=16))
    backbone.detach()
    with torch.no_grad():
        assert torch.equal(model(torch.tensor([IDS])).logits[0], plain_logits)


def test_a_full_cache_costs_what_is_said(family):
    backbone = make_backbone(family)
    state = backbone.new_state(slots=64)
    backbone.read(IDS[:40], state)
    assert state.nbytes == 40 * backbone.kv_bytes_per_token
