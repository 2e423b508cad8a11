"""What was kept and attended to, told truly."""

import json
from functools import partial

import pytest
from families import make_backbone, stream, token_ids
from kept import kept_positions
from typer.testing import CliRunner

from indexmem_cli.cli.app import app
from indexmem_cli.errors import ConfigError
from indexmem_cli.explain import explain
from indexmem_cli.memory.latent import CentroidMemory
from indexmem_cli.memory.policies import make_scorer
from indexmem_cli.render.explanation import SHADES, draw_explanation, explanation_lines

IDS = token_ids(200)
QUESTION = token_ids(9, seed=1)


def read(policy, latent=False, family="qwen3"):
    make_latent = partial(CentroidMemory, 8) if latent else None
    return stream(make_backbone(family), make_scorer(policy), IDS, make_latent=make_latent)


def test_what_is_held_is_what_is_shown():
    reader = read("recency")
    shown = explain(reader, reader, QUESTION)
    (group,) = shown.kept
    assert group.layers == (0, 1, 2) and shown.tokens == 200
    spans = [range(first, end) for first, end, share in group.runs if share == 1]
    assert [i for span in spans for i in span] == kept_positions(reader.state)
    line = explanation_lines(shown, width=50)[1]
    assert line == "  layers 0–2 │" + SHADES[-1] + SHADES[0] * 34 + SHADES[-1] * 15 + "│"
    assert reader.state.held == 64 and reader.state.seen == 200


def test_heads_that_differ_show_as_shares():
    reader = read("keydiff", family="gemma2")
    (group,) = explain(reader, reader, QUESTION).kept
    assert group.layers == (1,), "layers with a window of their own are not shown"
    assert sum((end - first) * share for first, end, share in group.runs) == 64
    assert {share for *_, share in group.runs} == {0.5, 1.0}


@pytest.mark.parametrize("latent", [False, True])
def test_the_parts_of_the_attention_add_up(latent):
    reader = read("keydiff", latent)
    for i, mass in enumerate(explain(reader, reader, QUESTION).attention):
        parts = (mass.sinks, mass.kept, mass.recent, mass.question, mass.memory)
        assert mass.layer == i and sum(parts) == pytest.approx(1, abs=1e-4)
        assert min(parts[:4]) > 0 and (mass.memory > 0) == latent


def test_what_was_read_again_is_told_apart():
    reader = read("recency")
    fork = reader.fork_for(QUESTION)
    fork.recall(IDS[40:60])
    before = fork.state.held
    shown = explain(reader, fork, QUESTION)
    assert all(mass.recalled > 0 for mass in shown.attention)
    assert shown.kept == explain(reader, reader, QUESTION).kept
    assert fork.state.held == before, "the reader stays as it was"
    assert "read again" in explanation_lines(shown)[-1]


def test_a_picture_is_drawn(tmp_path):
    shown = explain(read("keydiff"), read("keydiff"), QUESTION)
    draw_explanation(shown, tmp_path / "kept.png")
    assert (tmp_path / "kept.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with pytest.raises(ConfigError, match="cannot be written"):
        draw_explanation(shown, tmp_path / "nowhere" / "kept.png")


def test_an_answer_explains_itself_when_asked(tmp_path, tiny_model_dir):
    book = tmp_path / "book.txt"
    book.write_text("".join(f"Line {i}: the quick brown fox.\n" for i in range(60)))
    arguments = ["ask", str(book), "Which fox?", "-m", str(tiny_model_dir), "--budget", "96"]
    arguments += ["--chunk", "32", "--max-tokens", "2", "--device", "cpu", "--offline"]
    picture = tmp_path / "kept.png"
    shown = CliRunner().invoke(app, [*arguments, "--explain-png", str(picture)])
    assert shown.exit_code == 0, shown.output
    assert "from the first to the last:" in shown.stderr and "layer 1 " in shown.stderr
    assert picture.exists()
    plain = json.loads(CliRunner().invoke(app, [*arguments, "--json", "--explain"]).stdout)
    explained = plain["explanation"]
    assert explained["kept"][0]["runs"][0][0] == 0 and len(explained["attention"]) == 2
    assert "from the first" not in CliRunner().invoke(app, arguments).stderr
