"""Budgets that fit, what is advised where none does, and int8 keys and values."""

import json
from dataclasses import replace

import pytest
import torch
from families import WINDOW, make_backbone, token_ids
from hypothesis import given
from hypothesis import strategies as st

from indexmem_cli import fitting, session
from indexmem_cli.checkpoint import Checkpoint
from indexmem_cli.config import AnswerConfig, MemoryConfig, ModelConfig
from indexmem_cli.engine import Reader
from indexmem_cli.errors import OutOfMemory
from indexmem_cli.estimate import Weights, estimate_need
from indexmem_cli.machine import Gpu, Machine
from indexmem_cli.memory.policies import make_scorer
from indexmem_cli.memory.update import evict
from indexmem_cli.ops import quantise_rows
from indexmem_cli.plan import make_plan

IDS, QUESTION = token_ids(200), token_ids(7, seed=1)
GIB = 2**30

# Public config.json values: layers, width, inner width, heads, KV heads, head size, window, words,
# embeddings tied or not; and the parameters that follow, in matrices and others.
SHAPES = {
    "Qwen2.5-7B": (28, 3584, 18944, 28, 4, 128, 32768, 152064, False),
    "Llama-3.1-8B": (32, 4096, 14336, 32, 8, 128, 131072, 128256, False),
    "Mistral-7B-v0.3": (32, 4096, 14336, 32, 8, 128, 32768, 32768, False),
    "Qwen3-4B": (36, 2560, 9728, 32, 8, 128, 40960, 151936, True),
}
PARAMETERS = {
    "Qwen2.5-7B": 7.62e9,
    "Llama-3.1-8B": 8.03e9,
    "Mistral-7B-v0.3": 7.25e9,
    "Qwen3-4B": 4.02e9,
}


def shape_of(name):
    """A checkpoint of that shape without files, and its weights."""
    layers, width, inner, heads, kv_heads, size, window, words, tied = SHAPES[name]
    config = {
        "model_type": "llama",
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": size,
        "max_position_embeddings": window,
        "vocab_size": words,
    }
    rows = 2 * heads * size + 2 * kv_heads * size + 3 * inner  # roughly: for scales of int8
    matrices = layers * (2 * width * size * (heads + kv_heads) + 3 * width * inner)
    others = words * width * (1 if tied else 2)
    weights = Weights(matrices, layers * rows, others, 2 * (matrices + others))
    return Checkpoint(name, None, "", config), weights


@pytest.mark.parametrize("name", SHAPES)
def test_estimates_follow_from_the_shape(name):
    checkpoint, weights = shape_of(name)
    assert weights.parameters == pytest.approx(PARAMETERS[name], rel=0.01)
    layers, _, _, _, kv_heads, size, *_ = SHAPES[name]
    needs = [
        estimate_need(checkpoint, weights, MemoryConfig(budget), ModelConfig(name, "nf4"), True)
        for budget in (4096, 8192)
    ]
    # A budget is held once while reading and once while answering, half of it rotated besides.
    per_token = layers * (2 * kv_heads * size * 2 * 2.5 + 12 * kv_heads)
    assert needs[1].kv_bytes - needs[0].kv_bytes == pytest.approx(4096 * per_token, rel=1e-6)
    assert needs[0].weight_bytes == pytest.approx(
        weights.matrices * (0.5 + 1 / 64 + 1 / 4096) + weights.others * 2, rel=1e-6
    )
    assert needs[0].total_bytes < 12 * GIB


@given(st.sampled_from(sorted(SHAPES)), st.sampled_from([8, 12, 16, 24, 80]), st.booleans())
def test_what_is_advised_fits(name, gib, int8):
    checkpoint, weights = shape_of(name)
    model = ModelConfig(name, "none", kv_dtype="int8" if int8 else "model", device="cuda")
    memory = MemoryConfig(32768)
    machine = Machine(0, 0, (Gpu("a card", gib * GIB, gib * GIB),), "1")
    advice = list(fitting.settings_that_fit(checkpoint, weights, memory, model, machine))
    for text in advice:
        chosen = dict(part.split(" ") for part in text.removeprefix("--").split(" --"))
        form = replace(
            model,
            quant=chosen.get("quant", model.quant),
            kv_dtype=chosen.get("kv-dtype", model.kv_dtype),
        )
        chunk = int(chosen["chunk"]) if "chunk" in chosen else None
        less = MemoryConfig(int(chosen.get("budget", 32768)), chunk)
        assert estimate_need(checkpoint, weights, less, form, True).total_bytes <= gib * GIB
    if gib >= 12:
        assert len(advice) >= 3


def reader_of(int8=False):
    backbone = make_backbone("qwen3")
    if int8:
        backbone.info = replace(backbone.info, kv_dtype="int8")
    plan, _ = make_plan(MemoryConfig(64, 64, sink_tokens=2, recent_tokens=8), WINDOW)
    return Reader(backbone, plan, make_scorer("keydiff"), QUESTION)


@given(st.integers(1, 5), st.floats(1e-20, 1e4))
def test_a_row_of_int8_is_within_half_a_step_of_the_row(rows, size):
    x = size * torch.randn(rows, 16, generator=torch.Generator().manual_seed(rows))
    x[0] = 0
    stored, scale = quantise_rows(x)
    assert stored.dtype == torch.int8 and not stored[0].any()
    step = x.abs().amax(-1, keepdim=True) / 127
    assert ((stored * scale.unsqueeze(-1) - x).abs() <= 0.51 * step).all()


def test_int8_halves_what_is_kept_and_hardly_changes_it():
    readers = [reader_of(int8) for int8 in (False, True)]
    for reader in readers:
        list(reader.read([IDS[:64]]))
    plain, small = (reader.state for reader in readers)
    assert small.nbytes == plain.nbytes * (16 + 4) / 64  # fp32 here: rows of 16 and a scale
    for one, other in zip(plain.managed, small.managed, strict=True):
        apart = (one.all_values() - other.all_values()).norm() / one.all_values().norm()
        assert apart < 0.02
    logits = [reader.backbone.predict(QUESTION, reader.state)[0] for reader in readers]
    assert torch.corrcoef(torch.stack(logits))[0, 1] > 0.999


def test_int8_slots_move_copy_and_rotate_as_their_numbers_do():
    reader = reader_of(int8=True)
    for _ in reader.read([IDS[:64]]):
        pass
    layer = reader.state.managed[0]
    keys, copy = layer.all_keys().clone(), layer.clone()
    evict(reader.state, [torch.rand(1, 2, 64)] * 3, budget=20)
    index = layer.positions[:, :, :20, None].expand(-1, -1, -1, 16)
    assert torch.equal(layer.all_keys(), keys.gather(2, index))
    assert torch.equal(copy.all_keys(), keys)
    assert torch.equal(layer.rotated_keys(lambda fresh, first: 2 * fresh), 2 * layer.all_keys())


def test_a_budget_of_auto_is_the_most_that_fits(tiny_model_dir, monkeypatch):
    text = "the quick brown fox jumps over the lazy dog. " * 30
    memory = session.Memory.read_text(text, budget="auto", model=str(tiny_model_dir))
    events = list(memory.events("who jumps?", AnswerConfig(max_tokens=2)))
    notices = [event.message for event in events if hasattr(event, "message")]
    assert any("with a budget of" in notice and "are free" in notice for notice in notices)
    window = json.loads((tiny_model_dir / "config.json").read_text())["max_position_embeddings"]
    assert window // 2 < events[-1].memory.budget_tokens < window - window // 4
    assert not any("lowered" in notice for notice in notices)
    nothing = Machine(GIB, 1000, (), None)
    monkeypatch.setattr(fitting, "look_at_machine", lambda: nothing)
    with pytest.raises(OutOfMemory, match="needs about .* are free") as shortage:
        list(session.Memory.read_text(text, budget="auto", model=str(tiny_model_dir)).ingest())
    assert shortage.value.exit_code == 6
