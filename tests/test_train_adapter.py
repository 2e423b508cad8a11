"""Training an adapter, and measuring it, on tiny data."""

import importlib
import json
import sys
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load_file
from test_train import TINY, data_folder, maker  # noqa: F401

from indexmem_cli.errors import BackboneError
from indexmem_cli.memory.adapter import load_adapter
from indexmem_cli.train import adapter, data, pretrain

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def tiny_folder(data_folder: Path, tmp_path: Path) -> Path:  # noqa: F811
    """An untrained model in a folder of its own, with the tokenizer of the tiny data."""
    folder = tmp_path / "tiny"
    encoding = data.prepare(data_folder, tmp_path / "cache", folder, 192)
    pretrain.export(pretrain.build_model(TINY, encoding.n_vocab, 0), folder)
    return folder


@pytest.mark.parametrize("form", ["shared", "query"])
def test_a_resumed_adapter_is_the_uninterrupted_one(form, data_folder, tiny_folder, tmp_path):  # noqa: F811
    recipe = adapter.AdapterRecipe(form, distil_steps=2, stream_steps=2, rows=2, length_tokens=160)
    runs, rows = [tmp_path / "whole", tmp_path / "parts"], []
    options = {"seed": 3, "threads": 1, "report": rows.append}
    first = adapter.train_adapter(str(tiny_folder), data_folder, runs[0], recipe, **options)
    for stop in (1, 3, recipe.num_steps):
        second = adapter.train_adapter(
            str(tiny_folder), data_folder, runs[1], recipe, last_step=stop, resume=True, **options
        )
    one, other = load_file(first), load_file(second)
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(
            one[name], other[name], atol=0, rtol=0, msg=lambda m, n=name: n + m
        )
    assert rows[recipe.num_steps - 1]["step"] == recipe.num_steps
    assert -1 <= rows[recipe.num_steps]["rank_correlation"] <= 1
    untrained = adapter.train_adapter(
        str(tiny_folder), data_folder, tmp_path / "none", recipe, last_step=0, **options
    )
    assert any(not torch.equal(one[n], tensor) for n, tensor in load_file(untrained).items())
    read = load_adapter(first, tiny_folder)
    assert (
        read.trained_tokens == [160, *([320] if form == "shared" else [])]
        and read.indexer.config.form == form
    )
    assert (read.log_mass is None) == (form == "query")


def test_answers_are_watched_after_the_document_and_nothing_before(maker):  # noqa: F811
    batch = adapter.make_batch(maker, Random(0), rows=6, length=160)
    assert not (batch.answering & ~batch.asking).any() and batch.answering.any(1).all()
    for ids, end, asking in zip(batch.ids.tolist(), batch.ends, batch.asking, strict=True):
        assert ids[end : end + len(maker.close)] == maker.close
        assert not asking[:end].any() and asking[end]
    held_out = adapter.make_batch(maker, Random(0), rows=6, length=160, held_out=True)
    assert held_out.answering.any(1).all()


def test_an_adapter_is_not_trained_on_a_strangers_tokenizer(tiny_model_dir, data_folder, tmp_path):  # noqa: F811
    with pytest.raises(BackboneError, match="tokenizer.tiktoken"):
        adapter.train_adapter(str(tiny_model_dir), data_folder, tmp_path)


@pytest.fixture
def bench(monkeypatch):
    """The benchmark of indexers as a module."""
    threads = torch.get_num_threads()
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("indexers")
    torch.set_num_threads(threads)
    sys.modules.pop("indexers", None)


def test_all_scorers_are_asked_of_the_same_texts(bench, data_folder, tiny_folder, tmp_path):  # noqa: F811
    recipe = adapter.AdapterRecipe(distil_steps=0, stream_steps=0, rows=2, length_tokens=160)
    path = adapter.train_adapter(str(tiny_folder), data_folder, tmp_path, recipe, threads=1)
    arguments = [
        *("--data", str(data_folder), "--cache", str(tmp_path / "cache")),
        *("--model", str(tiny_folder), "--adapter", f"net={path}", "--tokens", "300"),
        *("--chunk", "32", "--fractions", "0.5", "--span", "3"),
        *("--tasks", "single,keys,values,chain,prose"),
        *("--modes", "full,oracle,recency,net,net:shuffled,net+centroids,net+mixed"),
        *("--out", str(tmp_path / "rows.jsonl"), "--raw", str(tmp_path / "raw.jsonl")),
    ]
    bench.main([*arguments, "--count", "1"])
    raw = tmp_path / "raw.jsonl"
    before = raw.read_text()
    raw.write_text(before.rpartition('{"task": "prose"')[0])  # as if it had been cut short
    (tmp_path / "rows.jsonl").unlink()
    bench.main([*arguments, "--count", "2"])
    assert raw.read_text().startswith(before), "what was measured is not measured again"
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    cells = {(row["task"], row["mode"]): row for row in rows}
    assert len(cells) == len(rows) == 4 * 7 + 6
    questions = {"single": 3, "keys": 4, "values": 1, "chain": 2, "prose": 1}
    for (task, mode), row in cells.items():
        assert row["documents"] == 2 and row["n"] == 2 * questions[task]
        low, high = row["interval_95"]
        assert low <= row["score"] <= high
        assert row["kept"] == (1.0 if mode == "full" else 0.5)
        if mode == "full" and task != "prose" or (task, mode) == ("values", "oracle"):
            assert row["evidence_kept"] == 1
    net, twin = (cells["prose", mode]["score"] for mode in ("net", "net:shuffled"))
    assert cells["prose", "net"]["over_twin"][0] == pytest.approx(net - twin)
    assert cells["prose", "recency"]["over_twin"] is None
    assert cells["prose", "net"]["score"] != cells["prose", "net:shuffled"]["score"]
    assert cells["prose", "net+centroids"]["score"] != cells["prose", "net+mixed"]["score"]


def test_intervals_draw_whole_documents(bench):
    assert bench.bootstrap([[1, 1, 1], [1]]) == (1, 1)
    low, high = bench.bootstrap([[1, 1, 1, 1], [0, 0, 0, 0]] * 10)
    assert 0.2 < low < 0.4 and 0.6 < high < 0.8
