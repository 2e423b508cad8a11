"""The engine with its kernels, interpreted: the same memory and answers as without them."""

import pytest
import torch
from families import WINDOW, make_backbone, token_ids

from indexmem_cli import Memory, ops
from indexmem_cli.config import AnswerConfig, MemoryConfig
from indexmem_cli.engine import Reader
from indexmem_cli.errors import ConfigError
from indexmem_cli.memory.indexer import IndexerConfig, make_indexer, make_indexer_scorer
from indexmem_cli.memory.latent import CentroidMemory, FastWeightMemory, FastWeights
from indexmem_cli.memory.policies import make_scorer
from indexmem_cli.plan import make_plan

pytest.importorskip("triton")
from indexmem_cli.ops.kernels import chunk, decode, remember, score, select

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="Triton interprets only where there is no device"
)

IDS, QUESTION = token_ids(96), token_ids(7, seed=1)


def scorer_of(policy):
    if policy not in ("shared", "query", "retention"):
        return make_scorer(policy)
    torch.manual_seed(3)
    indexer = make_indexer(IndexerConfig(policy, (0, 1, 2), 64, 2, 4, 16, hidden=32))
    return make_indexer_scorer(indexer.requires_grad_(False))


def answer(policy="keydiff", family="qwen3", make_latent=None, positions="auto"):
    """Read 96 tokens into 32 slots and answer with 3: ids, evidence, what was kept, latent."""
    backbone = make_backbone(family)
    config = MemoryConfig(32, 48, sink_tokens=2, recent_tokens=8, positions=positions)
    plan, _ = make_plan(config, WINDOW)
    reader = Reader(backbone, plan, scorer_of(policy), QUESTION)
    for layer in reader.state.managed:
        layer.latent = make_latent() if make_latent else None
    for _ in reader.read([IDS[:48], IDS[48:]]):
        pass
    steps = list(reader.answer(QUESTION, AnswerConfig(max_tokens=3), set()))
    managed = reader.state.managed
    kept = [layer.positions[:, :, : layer.held].tolist() for layer in managed]
    latents = [t for layer in managed if layer.latent for t in layer.latent.save().values()]
    return [step.token_id for step in steps], [step.attended for step in steps], kept, latents


OPS = {
    "attend_segments": decode,
    "attend_with_lse": chunk,
    "select_slots": select,
    "compact_slots": select,
    "score_states": score,
    "score_pairs": score,
    "assign_clusters": remember,
    "sum_clusters": remember,
    "update_fast_weights": remember,
}


def watch(monkeypatch):
    """Return the names of the kernels that run from now on."""
    ran = set()
    for name, home in OPS.items():
        op = getattr(home, f"{name}_triton")
        spy = lambda *a, name=name, op=op, **o: ran.add(name) or op(*a, **o)  # noqa: E731
        monkeypatch.setattr(home, f"{name}_triton", spy)
    return ran


def agree(monkeypatch, also=(), **options):
    """Answer with and without kernels, and see that those ops ran."""
    ran = watch(monkeypatch)
    monkeypatch.setenv("INDEXMEM_KERNELS", "reference")
    expected = answer(**options)
    assert not ran
    monkeypatch.setenv("INDEXMEM_KERNELS", "interpret")
    found = answer(**options)
    assert ran == {"attend_segments", "select_slots", "compact_slots", *also}
    assert found[0] == expected[0], "other words"
    for one, other in zip(found[1], expected[1], strict=True):
        assert dict(one) == pytest.approx(dict(other), rel=1e-3)
    assert found[2] == expected[2], "other slots"
    for one, other in zip(found[3], expected[3], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("policy", "positions", "also"),
    [
        ("keydiff", "original", ()),
        ("keydiff", "compact", ()),
        ("question", "compact", ()),
        ("shared", "original", ("score_states",)),
        ("retention", "compact", ("score_states",)),
        ("query", "original", ("score_pairs",)),
    ],
)
def test_policies_keep_and_answer_the_same(monkeypatch, policy, positions, also):
    agree(monkeypatch, also, policy=policy, positions=positions)


@pytest.mark.parametrize(
    ("family", "also"),
    [("gemma2", ("attend_with_lse",)), ("gemma3", ()), ("llama-3.1", ()), ("phi3", ())],
)
def test_other_families_answer_the_same(monkeypatch, family, also):
    agree(monkeypatch, also, family=family)


def fast_weights():
    torch.manual_seed(2)
    slow = FastWeights(16, 8).requires_grad_(False)
    slow.gate.bias.fill_(0.0)
    return FastWeightMemory(slow)


@pytest.mark.parametrize(
    ("make_latent", "also"),
    [
        (lambda: CentroidMemory(4), ("assign_clusters", "sum_clusters", "attend_with_lse")),
        (fast_weights, ("update_fast_weights", "attend_with_lse")),
    ],
)
def test_latent_memories_take_in_and_answer_the_same(monkeypatch, make_latent, also):
    agree(monkeypatch, also, make_latent=make_latent)


@pytest.mark.parametrize(
    ("family", "make_latent"),
    [("qwen3", lambda: CentroidMemory(4)), ("qwen3", fast_weights), ("gemma2", lambda: None)],
)
def test_beyond_the_window_logits_are_the_same(monkeypatch, family, make_latent):
    ran, logits = watch(monkeypatch), []
    for choice in ("reference", "interpret"):
        monkeypatch.setenv("INDEXMEM_KERNELS", choice)
        plan, _ = make_plan(MemoryConfig(32, 32, sink_tokens=2, recent_tokens=8), 80)
        reader = Reader(make_backbone(family), plan, make_scorer("keydiff"))
        for layer in reader.state.managed:
            layer.latent = make_latent()
        list(reader.read([IDS[:32], IDS[32:64], IDS[64:]]))
        assert reader.state.compact and reader.state.seen > plan.window_tokens
        logits.append(reader.backbone.predict(QUESTION, reader.state)[0])
    assert "attend_with_lse" in ran
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)


def test_what_needs_a_gradient_runs_without_kernels(monkeypatch):
    monkeypatch.setenv("INDEXMEM_KERNELS", "interpret")
    query, key = torch.randn(1, 2, 3, 16, requires_grad=True), torch.randn(1, 1, 5, 16)
    out, _ = ops.attend_with_lse(query, key, key, 0.25)
    out.sum().backward()
    assert query.grad is not None


def test_the_embedded_model_answers_the_same(monkeypatch):
    text = (
        "The mill stands by the river. Its miller is called Orlin Vask. "
        + "Rain fell on the hills for days, and the carts stood idle in the yard. " * 9
        + "In autumn the flour is sold in Brennen."
    )
    answers = []
    for choice in ("reference", "interpret"):
        monkeypatch.setenv("INDEXMEM_KERNELS", choice)
        memory = Memory.read_text(text, budget=96, chunk_tokens=96)
        answers.append(memory.ask("What is the miller called?", max_tokens=6))
    assert answers[0].memory.kv_tokens < answers[0].memory.full_kv_tokens
    assert "Orlin Vask" in str(answers[0])
    assert [str(answer) for answer in answers] == [str(answers[0])] * 2


def test_an_unknown_choice_of_kernels_is_refused(monkeypatch):
    monkeypatch.setenv("INDEXMEM_KERNELS", "fast")
    with pytest.raises(ConfigError, match="INDEXMEM_KERNELS: 'fast'"):
        ops.uses_kernels(torch.zeros(1))
