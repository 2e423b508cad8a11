"""Numbers that are none, devices that are full, and answers that repeat bit for bit."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families import Full, make_backbone, stream, token_ids
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from indexmem_cli.cli.app import app
from indexmem_cli.config import AnswerConfig
from indexmem_cli.errors import BackboneError, OutOfMemory
from indexmem_cli.library import Library
from indexmem_cli.memory.adapter import Adapter, hash_model, load_adapter, save_adapter
from indexmem_cli.memory.indexer import IndexerConfig, make_indexer
from indexmem_cli.memory.policies import make_scorer

TEXT = "the quick brown fox jumps over the lazy dog\n" * 40
QUESTION = token_ids(9, seed=1)


def ask(model, book, *options):
    command = ["ask", str(book), "Who?", "--model", str(model), "-b", "96", "--chunk", "32"]
    return CliRunner().invoke(app, [*command, "--device", "cpu", "--max-tokens", "8", *options])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["layers.0.self_attn.k_proj", "layers.1.mlp.down_proj", "norm"])
def test_a_broken_model_is_named_and_nothing_of_it_is_saved(
    name, value, tiny_model_dir, tmp_path, book
):
    model = tmp_path / "broken"
    shutil.copytree(tiny_model_dir, model)
    weights = load_file(model / "model.safetensors")
    weights[f"model.{name}.weight"].view(-1)[3] = value
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    result = ask(model, book)
    assert result.exit_code == 5 and result.stdout == ""
    assert "broken computes numbers that are not finite (in float32)" in result.stderr
    assert not any((Library().folder(i) / "manifest.json").exists() for i in Library().ids())


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_broken_adapter_is_named(value, tiny_model_dir, tmp_path):
    indexer = make_indexer(IndexerConfig("shared", (0, 1), 32, 2, 4, 16))
    path, hashes = tmp_path / "adapter.safetensors", hash_model(tiny_model_dir)
    save_adapter(Adapter(indexer, *hashes, log_mass=torch.full((2, 2), float("-inf"))), path)
    load_adapter(path, tiny_model_dir)
    next(indexer.parameters()).data.view(-1)[0] = value
    save_adapter(Adapter(indexer, *hashes), path)
    with pytest.raises(BackboneError, match=r"adapter.safetensors .* not finite"):
        load_adapter(path, tiny_model_dir)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_seed_repeats_bit_for_bit(dtype, tiny_model_dir, book):
    options = ("--json", "--no-save", "--dtype", dtype, "--temperature", "1.5", "--seed")
    texts = [json.loads(ask(tiny_model_dir, book, *options, s).stdout)["answer"] for s in "112"]
    assert texts[0] == texts[1] != texts[2]


def read(backbone, policy="knorm", tokens=300):
    ids = token_ids(tokens)
    return stream(backbone, make_scorer(policy), ids, budget=96, question=QUESTION)


@pytest.mark.parametrize("family", ["qwen3", "gemma3", "mistral-sliding"])
@pytest.mark.parametrize("policy", ["recency", "snapkv", "question"])
@pytest.mark.parametrize(("room", "failures"), [(16, 1), (10, 2)])
def test_a_full_device_reads_in_smaller_pieces_and_keeps_the_same(
    family, policy, room, failures, monkeypatch
):
    backbone = make_backbone(family)
    expected = read(backbone, policy)
    full = Full(backbone, monkeypatch, room)
    reader = read(backbone, policy)
    assert full.num_failures == failures, "it tries again only with halves"
    assert reader.step_tokens == 32 // 2**failures
    assert (reader.state.seen, reader.state.held) == (expected.state.seen, expected.state.held)
    for one, other in zip(reader.state.layers, expected.state.layers, strict=True):
        if hasattr(one, "positions"):
            assert torch.equal(one.positions[:, :, : one.held], other.positions[:, :, : other.held])
        last = min(one.held, other.held)  # a window holds what its last piece saw
        keys = [layer.keys[:, :, layer.held - last : layer.held] for layer in (one, other)]
        torch.testing.assert_close(*keys)
    full.room = 1000
    answers = [[s.token_id for s in r.fork().answer(QUESTION, AnswerConfig(8), set())]
               for r in (reader, expected)]  # fmt: skip
    assert answers[0] == answers[1]


@pytest.mark.parametrize("tokens", [0, 300])
@pytest.mark.parametrize("room", [0, 7])
def test_two_halvings_are_all_then_one_error_and_a_state_as_it_was(tokens, room, monkeypatch):
    backbone = make_backbone("gemma3")
    reader = read(backbone, tokens=tokens)
    held = [layer.held for layer in reader.state.layers]
    full = Full(backbone, monkeypatch, room)
    with pytest.raises(OutOfMemory, match="out of memory on cpu while reading 8 tokens") as error:
        list(reader.read([token_ids(32, seed=4)]))
    assert full.num_failures == 3 and error.value.exit_code == 6 and "--chunk" in error.value.hint
    assert reader.state.seen == tokens and [layer.held for layer in reader.state.layers] == held


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are those of Linux")
def test_a_full_machine_gives_the_same_error():
    code = (
        "import resource; from families import make_backbone, token_ids\n"
        "from indexmem_cli.errors import OutOfMemory\n"
        "backbone = make_backbone('qwen3'); state = backbone.new_state(0)\n"
        "backbone.read(token_ids(8), state)\n"
        "pages = int(open('/proc/self/statm').read().split()[0])\n"
        "limit = pages * resource.getpagesize() + (64 << 20)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "try: backbone.read(token_ids(30_000), state)\n"
        "except OutOfMemory as error: print('out', state.seen, error.exit_code)\n"
    )
    tests = Path(__file__).parent
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tests,
        env={"PYTHONPATH": f"{tests.parent}:{tests}", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.stdout == "out 8 6\n", result.stderr[-500:]
