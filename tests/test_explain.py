"""What was kept and attended to, told truly."""

import pytest
import torch
from families import WINDOW, make_backbone, token_ids
from kept import kept_positions

from indexmem_cli.config import MemoryConfig
from indexmem_cli.engine import Reader
from indexmem_cli.explain import SHADES, explain
from indexmem_cli.memory.latent import CentroidMemory
from indexmem_cli.memory.policies import make_scorer
from indexmem_cli.plan import make_plan

IDS = token_ids(200)
QUESTION = token_ids(9, seed=1)


def read(policy, latent=False, family="qwen3"):
    backbone = make_backbone(family)
    plan, _ = make_plan(MemoryConfig(64, 32, policy), WINDOW, 0, len(QUESTION))
    reader = Reader(backbone, plan, make_scorer(policy))
    for layer in reader.state.managed if latent else ():
        layer.latent = CentroidMemory(8)
    for _ in reader.read(IDS[first : first + 32] for first in range(0, 200, 32)):
        pass
    return reader


def test_what_is_held_is_what_is_shown():
    reader = read("recency")
    shown = explain(reader, QUESTION)
    assert shown.layers == ((0, 1, 2),) and shown.held.shape == (1, 200)
    assert shown.held[0].nonzero()[:, 0].tolist() == kept_positions(reader.state)
    (line,) = shown.lines(width=50)
    assert line == "layers 0–2 │" + SHADES[-1] + SHADES[0] * 34 + SHADES[-1] * 15 + "│"
    assert reader.state.held == 64 and reader.state.seen == 200


def test_heads_that_differ_show_as_shares():
    reader = read("keydiff", family="gemma2")
    shown = explain(reader, QUESTION)
    assert shown.layers == ((1,),), "layers with a window of their own are not shown"
    torch.testing.assert_close(shown.held.sum(-1), torch.tensor([64.0]))
    assert set(shown.held.unique().tolist()) == {0.0, 0.5, 1.0}


@pytest.mark.parametrize("latent", [False, True])
def test_the_parts_of_the_attention_add_up(latent):
    shown = explain(read("keydiff", latent), QUESTION)
    for i, mass in enumerate(shown.masses):
        parts = (mass.sinks, mass.kept, mass.recent, mass.question, mass.memory)
        assert mass.layer == i and sum(parts) == pytest.approx(1, abs=1e-4)
        assert min(parts[:4]) > 0 and (mass.memory > 0) == latent


def test_a_picture_is_drawn(tmp_path):
    explain(read("keydiff"), QUESTION).draw(tmp_path / "kept.png")
    assert (tmp_path / "kept.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
