"""Training an adapter, and measuring it, on tiny data."""

import importlib
import json
import shutil
import sys
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

import pytest
import torch
from families import WINDOW, make_backbone, token_ids
from kept import kept_positions
from safetensors.torch import load_file
from test_train import TINY, data_folder, maker  # noqa: F401

from indexmem_cli.checkpoint import find_checkpoint
from indexmem_cli.config import POLICIES, AnswerConfig, MemoryConfig, ModelConfig
from indexmem_cli.engine import Reader
from indexmem_cli.errors import BackboneError, ConfigError
from indexmem_cli.loading import load_backbone
from indexmem_cli.memory.adapter import hash_model, load_adapter, save_adapter
from indexmem_cli.memory.indexer import FORMS, IndexerConfig, make_indexer, make_indexer_scorer
from indexmem_cli.memory.latent import CentroidMemory, FastWeightMemory, FastWeights
from indexmem_cli.memory.policies import make_scorer
from indexmem_cli.plan import make_plan
from indexmem_cli.train import adapter, budgets, data, pretrain
from indexmem_cli.train.teachers import WholeModel

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def tiny_folder(data_folder: Path, tmp_path: Path) -> Path:  # noqa: F811
    """An untrained model in a folder of its own, with the tokenizer of the tiny data."""
    folder = tmp_path / "tiny"
    data.make_tokenizer(data_folder, folder, 192)
    encoding = data.prepare(data_folder, tmp_path / "cache", folder)
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


@pytest.mark.parametrize("other", [("retention", 1), ("grouped", 2)])
def test_a_checkpoint_of_another_run_is_not_gone_on_with(other, data_folder, tiny_folder, tmp_path):  # noqa: F811
    for shape, resume in ((("grouped", 1), False), (other, True)):
        recipe = adapter.AdapterRecipe(*shape, distil_steps=1, stream_steps=1, rows=2)
        more = {"threads": 1, "last_step": 1, "resume": resume}
        with pytest.raises(ConfigError, match="of another run") if resume else nullcontext():
            adapter.train_adapter(str(tiny_folder), data_folder, tmp_path / "out", recipe, **more)


def test_an_adapter_begun_anew_and_cut_off_is_not_resumed_from_an_older_checkpoint(
    data_folder,  # noqa: F811
    tiny_folder,
    tmp_path,
):
    recipe, rows = adapter.AdapterRecipe("shared", distil_steps=1, rows=1, length_tokens=160), []
    run = partial(
        adapter.train_adapter, str(tiny_folder), data_folder, tmp_path / "out", recipe, threads=1
    )

    def cut_off(row):
        raise KeyboardInterrupt

    run()
    with pytest.raises(KeyboardInterrupt):
        run(report=cut_off)
    run(resume=True, report=rows.append)
    assert rows[0]["step"] == 1


def test_a_tokenizer_that_is_not_ours_is_left_as_it_is(
    data_folder,  # noqa: F811
    tiny_folder,
    tiny_model_dir,
    tmp_path,
):
    recipe = adapter.AdapterRecipe("shared", distil_steps=1, stream_steps=0, rows=2)
    path = adapter.train_adapter(
        str(tiny_folder), data_folder, tmp_path / "out", recipe, threads=1, last_step=0
    )
    foreign = shutil.copytree(tiny_model_dir, tmp_path / "foreign")
    made = load_adapter(path, tiny_folder)
    made.model_hash, made.tokenizer_hash = hash_model(foreign)
    save_adapter(made, path)
    before = {file.name: file.read_bytes() for file in foreign.iterdir()}
    with pytest.raises(BackboneError, match="tokenizer.tiktoken"):
        budgets.calibrate_budgets(str(foreign), data_folder, tmp_path / "cache", path, threads=1)
    assert {file.name: file.read_bytes() for file in foreign.iterdir()} == before


def test_padding_asks_for_nothing(maker, tiny_folder, tmp_path):  # noqa: F811
    """What stands after the end of a row changes nothing of what the paper's indexer learns."""
    recipe = adapter.AdapterRecipe("query", rows=6, length_tokens=160)
    backbone = load_backbone(find_checkpoint(str(tiny_folder)), ModelConfig(dtype="float32"))
    run = adapter.Run(recipe, WholeModel(backbone), maker, tmp_path, 0)
    batch = adapter.make_batch(maker, Random(0), rows=6, length=160)
    assert not batch.real.all() and batch.real[:, 0].all()
    losses = []
    for filler in (maker.pad, 5):
        ids = torch.where(batch.real, batch.ids, filler)
        other = replace(batch, ids=ids)
        whole = run.dense(other, paper=True)
        losses.append(run.query_loss(other, whole, other.counted(recipe.stream.sink_tokens)))
    torch.testing.assert_close(*losses)


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
    for name in ("indexers", "indexer_methods", "indexer_rows"):
        sys.modules.pop(name, None)


@pytest.fixture
def small(bench, monkeypatch):
    """Training and calibration on next to nothing, answers of two words."""
    little = partial(adapter.AdapterRecipe, rows=1, length_tokens=160, warmup_steps=1)
    methods = importlib.import_module("indexer_methods")
    for module in (methods, budgets):
        monkeypatch.setattr(module, "AdapterRecipe", little)

    # Layers of random weights suffer alike, but for chance: no table would differ from its control.
    def unlike(damage, _power):
        return torch.linspace(1.2, 0.8, damage.numel()).view_as(damage)

    monkeypatch.setattr(budgets, "shares_of", unlike)
    monkeypatch.setattr(methods, "FAST_TEXTS", 1)
    monkeypatch.setattr(methods, "FAST_STEPS", 9)
    monkeypatch.setattr(methods, "FAST_TOKENS", 160)
    monkeypatch.setattr(bench, "MAX_ANSWER_TOKENS", 2)
    monkeypatch.setattr(bench, "state_of_code", lambda: ("a" * 12, False))


def arguments(data, folder, tmp_path, *more):
    return [
        *("--data", str(data), "--model", str(folder), "--adapters", str(tmp_path / "runs")),
        *("--steps", "0", "--tokens", "200", "--chunk", "50", "--fractions", "0.5", "--span", "3"),
        *("--out", str(tmp_path / "rows.jsonl"), "--raw", str(tmp_path / "raw.jsonl"), *more),
    ]


def read_cells(tmp_path):
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    cells = {(row["task"], row["mode"]): row for row in rows}
    assert len(cells) == len(rows)
    return cells


def test_one_command_makes_a_row_with_every_method(
    bench,
    small,
    data_folder,  # noqa: F811
    tiny_folder,
    tmp_path,
):
    tasks = ("--tasks", "values,prose", "--count", "1")
    command = arguments(data_folder, tiny_folder, tmp_path, *tasks)
    bench.main(command)
    raw = tmp_path / "raw.jsonl"
    before = raw.read_text()
    raw.write_text(before.rpartition('{"task": "prose"')[0])  # as if it had been cut short
    (tmp_path / "rows.jsonl").unlink()
    bench.main(command)
    assert raw.read_text().count("\n") == before.count("\n")
    kept = before.rpartition('{"task": "prose"')[0]
    assert raw.read_text().startswith(kept), "what was measured is not measured again"
    cells = read_cells(tmp_path)
    modes = {mode for _, mode in cells}
    methods = importlib.import_module("indexer_methods")
    learned = {name + twin for name in methods.FORMS for twin in ("", ":shuffled")}
    memories = ["centroids", "mixed", "centroids-removed", "fast", "fast-mixed", "fast-removed"]
    parts = ["budgets", "moved", "heads", "heads-shuffled", *(f"budgets+{m}" for m in memories)]
    assert modes >= {"full", "oracle", "question", "snapkv", *learned}
    assert modes >= {f"shared+{part}" for part in parts} and len(cells) == 2 * len(modes) - 2
    for (task, mode), row in cells.items():
        assert row["documents"] == row["n"] == 1 and row["protocol"] == "streaming"
        low, high = row["interval_95"]
        assert low <= row["score"] <= high
        assert row["kept"] == (1.0 if mode == "full" else 0.5)
        if mode == "full" and task != "prose":
            assert row["evidence_kept"] == 1
    net, twin = (cells["prose", mode]["score"] for mode in ("shared", "shared:shuffled"))
    assert cells["prose", "shared"]["over_twin"][0] == pytest.approx(net - twin)
    controlled = ("shared", "shared+budgets", "shared+budgets+centroids", "shared+budgets+fast")
    assert all(cells["prose", mode]["over_twin"] for mode in controlled)
    prose = {mode: cells["prose", mode]["score"] for mode in modes if ("prose", mode) in cells}
    assert [m for m in controlled if prose[m] == prose[methods.twin_of(m)]] == []
    for memory in ("centroids", "fast"):
        removed = cells["prose", f"shared+budgets+{memory}-removed"]
        assert removed["score"] != cells["prose", "shared+budgets"]["score"], (
            "the removed memory is still paid for"
        )
    (tmp_path / "rows.jsonl").unlink()
    bench.main([*command, "--one-shot", "--modes", "full,shared,keydiff"])
    once = read_cells(tmp_path)
    assert {row["protocol"] for row in once.values()} == {"one-shot"}
    assert once["prose", "full"]["score"] == pytest.approx(
        cells["prose", "full"]["score"], abs=1e-4
    )


def test_the_cache_of_tokens_is_made_once_before_the_workers_open_it(
    bench,
    data_folder,  # noqa: F811
    tiny_folder,
    tmp_path,
    monkeypatch,
):
    made, prepare = [], bench.prepare
    monkeypatch.setattr(bench, "prepare", lambda *of: made.append(of) or prepare(*of))
    monkeypatch.setattr(bench, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))
    cache, out = tmp_path / "new", tmp_path / "rows.jsonl"
    options = f"--data {data_folder} --model {tiny_folder} --cache {cache} --workers 2 --out {out}"
    options += " --modes recency --tasks prose --fractions 0.5 --count 2 --tokens 100"
    bench.main(options.split())
    assert made == [(data_folder, cache, tiny_folder)]
    assert read_cells(tmp_path)["prose", "recency"]["n"] == 2


def read_in(bench, scorer, budget, once, span=17):
    """A reader of 200 tokens, in a stream or in one shot; and the most held after a chunk."""
    config = MemoryConfig(budget, 32, "keydiff", span_tokens=span)
    plan, _ = make_plan(config, WINDOW, 0, 9)
    reader = Reader(make_backbone("qwen3"), plan, scorer, token_ids(9, seed=1))
    ids, most = token_ids(200), 0
    chunks = [ids[first : first + 32] for first in range(0, 200, 32)]
    for _ in bench.read_once(reader, chunks) if once else reader.read(chunks):
        most = max(most, reader.state.held)
    return reader, most


@pytest.mark.parametrize("name", [*(p for p in POLICIES if p != "learned"), *FORMS])
def test_one_shot_is_streaming_where_nothing_is_evicted(bench, name):
    def scorer():
        torch.manual_seed(0)
        if name in FORMS:
            config = IndexerConfig(name, (0, 1, 2), 64, 2, 4, 16, group_layers=2)
            return make_indexer_scorer(make_indexer(config))
        return make_scorer(name)

    for budget, most in ((300, 200), (64, 192)):
        streamed, once = (read_in(bench, scorer(), budget, one) for one in (False, True))
        assert (streamed[1], once[1]) == (min(budget, 200), most)
        given = []
        for reader, _ in (streamed, once):
            steps = reader.fork().answer(token_ids(9, seed=1), AnswerConfig(max_tokens=5), set())
            given.append([step.token_id for step in steps])
        if budget == 300:
            assert given[0] == given[1]
        for one, other in zip(streamed[0].state.managed, once[0].state.managed, strict=True):
            if budget == 300:
                assert torch.equal(one.all_keys(), other.all_keys())
                assert torch.equal(one.all_values(), other.all_values())
            assert one.held == other.held == min(budget, 200)


def test_frozen_scores_keep_the_same_in_one_shot_and_in_a_stream(bench):
    kept = [
        kept_positions(read_in(bench, make_scorer("random"), 64, once, span=1)[0].state)
        for once in (False, True)
    ]
    assert kept[0] == kept[1] and len(kept[0]) == 64


def test_a_memory_costs_what_its_bytes_are_worth(bench):
    methods = importlib.import_module("indexer_methods")
    memory, (keys, values) = CentroidMemory(8), torch.randn(2, 1, 2, 40, 16)
    memory.write(keys, values)
    bytes_of_a_head = 2 * 16 * 4  # of a token
    assert methods.price("centroids", 8, 16, 4) == -(-memory.nbytes // 2 // bytes_of_a_head)
    fast = FastWeightMemory(FastWeights(16).requires_grad_(False))
    fast.write(keys, values)
    assert methods.price("fast", 8, 16, 4) == -(-fast.nbytes // 2 // bytes_of_a_head)


def test_the_twin_of_a_table_by_head_is_the_table_in_another_order(bench):
    methods = importlib.import_module("indexer_methods")
    table = Namespace(head_shares=torch.arange(1.0, 13).view(6, 2))
    heads, mixed = (methods.shares_of(table, name) for name in ("heads", "heads-shuffled"))
    assert heads != mixed and heads == sorted(mixed)
    assert methods.twin_of("a+heads") == "a+heads-shuffled"


def test_the_first_part_of_the_grid_has_every_cell(bench):
    jobs = bench.order_jobs(["keys", "prose"], [0.1, 0.5], 100, None)
    texts = {"keys": 50, "prose": 200}
    for task, count in texts.items():
        for fraction in (0.1, 0.5):
            numbers = [number for job, number, kept in jobs if (job, kept) == (task, fraction)]
            assert numbers == [*range(100, 100 + count)]
    assert len(jobs) == 500 and jobs[0] == ("keys", 100, 0.1)
    first = jobs[: 500 // bench.PORTIONS]
    assert {(task, fraction) for task, _, fraction in first} == {
        (task, fraction) for task in texts for fraction in (0.1, 0.5)
    }
    assert len(bench.order_jobs(["keys", "prose"], [0.1], 0, 3)) == 6


def test_intervals_draw_whole_documents(bench):
    rows = importlib.import_module("indexer_rows")
    assert rows.bootstrap([[1, 1, 1], [1]]) == (1, 1)
    low, high = rows.bootstrap([[1, 1, 1, 1], [0, 0, 0, 0]] * 10)
    assert 0.2 < low < 0.4 and 0.6 < high < 0.8


def test_a_text_is_measured_at_all_budgets_by_one_worker(bench):
    jobs = bench.order_jobs(["single", "keys"], [0.5, 0.25], 3, None)
    assert len(jobs) == len({*jobs}) == 2 * (67 + 50)
    assert all(jobs[i][:2] == jobs[i + 1][:2] for i in range(0, len(jobs), 2))
    tenth = [task for task, number, _ in jobs[: len(jobs) // 10]]
    assert {task: tenth.count(task) // 2 for task in tenth} == {"single": 6, "keys": 5}
