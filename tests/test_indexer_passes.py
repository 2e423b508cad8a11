"""Passes that the benchmark of indexers shares between methods: as many memories, read alone."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from families import VOCABULARY, WINDOW, make_backbone, stream, token_ids

from indexmem_cli.config import AnswerConfig
from indexmem_cli.memory.indexer import IndexerConfig, make_indexer, make_indexer_scorer
from indexmem_cli.memory.latent import CentroidMemory, FastWeightMemory, FastWeights
from indexmem_cli.memory.policies import make_scorer

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def passes(monkeypatch):
    """The module of the benchmark."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("indexer_passes")
    sys.modules.pop("indexer_passes")


def make_latent():
    """The paper's memory, with seeded weights and its gate half open."""
    torch.manual_seed(3)
    slow = FastWeights(16).requires_grad_(False)
    slow.gate.bias.zero_()
    return FastWeightMemory(slow)


def read_all(backbone, ids):
    """Readers of every kind: even and uneven budgets, heads of their own, latent memories."""
    torch.manual_seed(0)
    by_head = [0.3, 0.1, 0.2, 0.1, 0.1, 0.2]
    indexer = make_indexer(IndexerConfig("query", (0, 1, 2), 64, 2, 4, 16, group_layers=2))
    return [
        stream(backbone, make_scorer("recency"), ids),
        stream(backbone, make_scorer("expected-attention"), ids, budget=40),
        stream(backbone, make_indexer_scorer(indexer), ids),
        stream(backbone, make_scorer("keydiff"), ids, shares=[0.5, 0.3, 0.2]),
        stream(backbone, make_scorer("keydiff"), ids, shares=by_head),
        stream(backbone, make_scorer("snapkv"), ids, make_latent=lambda: CentroidMemory(4)),
        stream(backbone, make_scorer("tova"), ids, make_latent=make_latent),
        stream(backbone, make_scorer("keydiff"), ids, shares=by_head, make_latent=make_latent),
    ]


@pytest.mark.parametrize("tokens", [96, 3 * WINDOW])
def test_answers_together_are_those_of_each_memory_alone(passes, tokens):
    backbone, closings = make_backbone("qwen3"), [token_ids(7, seed=1), token_ids(5, seed=2)]
    backbone.model.generation_config.eos_token_id = [*range(0, VOCABULARY, 17)]
    readers = read_all(backbone, token_ids(tokens))
    config, stop = AnswerConfig(max_tokens=12), backbone.eos_ids
    alone = [
        [[step.token_id for step in r.fork().answer(closing, config, stop)] for r in readers]
        for closing in closings
    ]
    assert passes.answer_together(backbone, readers, closings, 12) == alone
    assert len({*map(len, alone[0])}) > 2, "rows end at different times"


def test_what_nobody_has_evicted_is_read_once(passes, monkeypatch):
    plain, ids = make_backbone("qwen3"), token_ids(200)
    alone = read_all(plain, ids)
    shared, read = passes.SharedStart(plain), []
    one = plain.read
    monkeypatch.setattr(plain, "read", lambda *a, **b: read.append(len(a[0])) or one(*a, **b))
    together = read_all(shared, ids)
    for first, second in zip(alone, together, strict=True):
        for a, b in zip(first.state.managed, second.state.managed, strict=True):
            assert torch.equal(a.positions[..., : a.held], b.positions[..., : b.held])
            assert torch.allclose(a.all_values(), b.all_values(), atol=1e-5)
    # The first chunk, and the second as it comes in, are the same for all eight.
    assert sum(read) <= 8 * 200 - 7 * 64
    with pytest.raises(ValueError, match="another text"):
        stream(shared, make_scorer("recency"), token_ids(64, seed=2))
    shared.forget()
    stream(shared, make_scorer("recency"), token_ids(64, seed=2))


def test_the_control_of_a_memory_stays_one_when_a_question_is_asked(passes):
    methods = importlib.import_module("indexer_methods")
    torch.manual_seed(0)
    keys, values = torch.randn(2, 1, 2, 40, 16)
    memory = methods.Mixed(4)
    memory.write(keys, values)
    assert torch.equal(memory.clone().means()[1], memory.means()[1])
    assert isinstance(methods.FastMixed(FastWeights(16)).clone(), methods.FastMixed)
