"""Latent memories fitted to a frozen model: replayed as read, and never worse than none."""

from functools import partial

import pytest
import torch
from families import Fixed, make_backbone, stream, token_ids
from kept import kept_positions

from indexmem_cli.memory.latent import CentroidMemory, FastWeightMemory, FastWeights
from indexmem_cli.train.memory import BIASES, calibrate_centroids, fit_fast_weights, head_errors
from indexmem_cli.train.memory import replay as replay_text
from indexmem_cli.train.teachers import Streaming, WholeModel

CHUNK, BUDGET = 32, 48


def replays(num_texts=2, heads=1):
    """Replays of some texts, by layer, under random scores."""
    whole = WholeModel(make_backbone("qwen3"))
    found = []
    for seed in range(num_texts):
        ids = torch.tensor([token_ids(160 + CHUNK, seed)])
        scores = [torch.rand(1, heads, ids.shape[1])] * 3
        found.append([*replay_text(whole, ids, scores, BUDGET, Streaming(CHUNK, 4, 6, 3))])
    return [list(layer) for layer in zip(*found, strict=True)]


def test_a_replay_evicts_what_a_stream_evicts():
    ids = token_ids(160 + CHUNK)
    table = torch.rand(1, 1, len(ids))
    options = {"budget": BUDGET, "chunk": CHUNK, "span_tokens": 3, "recent_tokens": 6}
    latent = partial(CentroidMemory, 8)
    reader = stream(make_backbone("qwen3"), Fixed(table), ids[:160], make_latent=latent, **options)
    whole = WholeModel(make_backbone("qwen3"))
    layers = replay_text(whole, torch.tensor([ids]), [table] * 3, BUDGET, Streaming(CHUNK, 4, 6, 3))
    first = next(layers)
    kept = (first.kept[0, 0, :160] == 0).nonzero()[:, 0].tolist()
    assert kept == kept_positions(reader.state)
    assert sum(gone.shape[1] for gone in first.writes) == 160 - BUDGET and len(first.writes) > 2
    memory = CentroidMemory(8)
    first.write_to(memory)
    streamed = reader.state.managed[0].latent
    # Layer 0 sees the tokens alone, so its keys are those of the stream.
    torch.testing.assert_close(memory.keys, streamed.keys, atol=1e-3, rtol=1e-3)
    assert torch.equal(memory.count, streamed.count)


def test_a_slot_for_each_token_brings_the_output_nearer():
    for layer in replays():
        bare = head_errors(layer, lambda: None)
        assert (head_errors(layer, lambda: CentroidMemory(400)) < bare).any()
        assert (bare > 0).all()


def test_calibration_never_does_worse_than_no_memory():
    layers = replays()
    table = calibrate_centroids(layers, slots=8)
    assert table.shape == (3, 2) and set(table.flatten().tolist()) <= set(BIASES)
    for layer, bias in zip(layers, table, strict=True):
        bare = head_errors(layer, lambda: None)
        fitted = head_errors(layer, lambda bias=bias: CentroidMemory(8, bias))
        assert (fitted <= bare + 1e-6).all()


def test_a_memory_of_wrong_values_is_turned_off(monkeypatch):
    layers = replays()
    means = CentroidMemory.means

    def wrong(self):
        keys, values = means(self)
        return keys, values * -30

    monkeypatch.setattr(CentroidMemory, "means", wrong)
    assert (calibrate_centroids(layers, slots=8) == float("-inf")).all()


def test_fast_weights_learn_to_lower_the_error():
    layer = replays()[0]
    torch.manual_seed(0)
    slow = FastWeights(16)
    before = {name: weight.clone() for name, weight in slow.state_dict().items()}
    bare = head_errors(layer, lambda: None).mean().item()
    untrained = head_errors(layer, lambda: FastWeightMemory(slow)).mean().item()
    assert untrained == pytest.approx(bare, rel=0.05), "untrained it does next to nothing"
    losses = fit_fast_weights(layer, slow, num_steps=60, lr=1e-2)
    assert len(losses) == 60
    assert head_errors(layer, lambda: FastWeightMemory(slow)).mean() < 0.99 * untrained
    for name, weight in slow.state_dict().items():
        assert not torch.equal(weight, before[name]), name
