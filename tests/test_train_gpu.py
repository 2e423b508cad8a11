"""What the GPU recipe needs: packed inputs, checkpoints in shards, processes that make batches."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_train import SHIPPED, TINY, data_folder, make_prose, maker, write_records  # noqa: F401
from transformers import Qwen3ForCausalLM

from indexmem_cli.errors import BackboneError, ConfigError
from indexmem_cli.tokens import load_tiktoken
from indexmem_cli.train import data, episodes, feeding, packing, pretrain, state
from indexmem_cli.train.reading import QUESTIONS_FILE, read_questions
from indexmem_cli.train.recipes import RECIPES


@pytest.fixture
def packed(data_folder: Path, tmp_path: Path) -> Path:  # noqa: F811
    """The tiny data folder in parts of 1 MiB."""
    chat = data_folder / "prose" / "chat.jsonl.xz"
    write_records(chat, [{"text": make_prose(seed, 4000)} for seed in range(40)])
    assert packing.pack(data_folder, tmp_path / "packed", 1, None, 192) >= 2
    return tmp_path / "packed"


def test_packed_parts_give_back_tokens_questions_and_tokenizer(
    packed: Path,
    data_folder: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    for part in packed.glob("part-*"):
        assert sum(file.stat().st_size for file in part.iterdir()) <= 2**20
    packing.unpack(packed, tmp_path / "cache", tmp_path / "tokenizer")
    data.make_tokenizer(data_folder, tmp_path / "tokenizer", 192)
    plain = data.prepare(data_folder, tmp_path / "plain", tmp_path / "tokenizer")
    for path in (tmp_path / "plain").glob("*.npy"):
        assert np.array_equal(np.load(path), np.load(tmp_path / "cache" / path.name))
    assert plain.n_vocab > 200
    contexts, functions = read_questions(tmp_path / "cache" / QUESTIONS_FILE)
    direct = episodes.load_questions(data_folder)
    assert (contexts, functions) == direct and contexts["squadshifts"] and functions
    assert (packed / "held-out" / "qa" / "dev" / "squadshifts.jsonl.xz").exists()


def test_a_part_that_did_not_come_whole_is_named(packed: Path, tmp_path: Path) -> None:
    shard = max(packed.glob("part-1/*.npy"))
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(ConfigError, match=f"part-1/{shard.name} has"):
        packing.unpack(packed, tmp_path / "cache", tmp_path / "tokenizer")
    shard.unlink()
    with pytest.raises(ConfigError, match=f"part-1/{shard.name} is missing"):
        packing.unpack(packed, tmp_path / "cache", tmp_path / "tokenizer")


@pytest.mark.parametrize("second", ["elsewhere", "packed"])
def test_what_is_packed_later_is_unpacked_over_what_was_unpacked_before(
    second: str,
    data_folder: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    places = tmp_path / "cache", tmp_path / "tokenizer"
    packing.pack(data_folder, tmp_path / "packed", 1, SHIPPED, 192)
    packing.unpack(tmp_path / "packed", *places)
    write_records(data_folder / "prose" / "modern.jsonl.xz", [{"text": "Something else."}])
    packing.pack(data_folder, tmp_path / second, 1, SHIPPED, 192)
    packing.unpack(tmp_path / second, *places)
    tokens = np.load(tmp_path / "cache" / "modern.train.npy")
    assert load_tiktoken(SHIPPED).decode(tokens) == f"Something else.{data.END}"


def test_parts_are_unpacked_again_where_the_tokenizer_is_gone_or_the_tokens_were_cut_off(
    data_folder: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packed, cache, folder = (tmp_path / name for name in ("packed", "cache", "tokenizer"))  # noqa: F811
    packing.pack(data_folder, packed, 1, SHIPPED, 192)
    packing.unpack(packed, cache, folder)
    whole = (cache / "prose.train.npy").read_bytes()
    (folder / "tokenizer.tiktoken").unlink()

    def cut_off(path: Path, array: np.ndarray) -> None:
        path.write_bytes(b"cut off")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(packing.np, "save", cut_off)
        packing.unpack(packed, cache, folder)
    packing.unpack(packed, cache, folder)
    assert (cache / "prose.train.npy").read_bytes() == whole
    assert (folder / "tokenizer.tiktoken").exists()


@pytest.mark.parametrize("lacking", packing.TOKENIZER_FILES)
def test_a_tokenizer_to_pack_with_must_have_all_its_files(lacking: str, tmp_path: Path) -> None:
    for name in {*packing.TOKENIZER_FILES} - {lacking}:
        (tmp_path / name).touch()
    with pytest.raises(BackboneError, match=f"has no {lacking}") as refusal:
        packing.pack(tmp_path / "data", tmp_path / "out", 1, tmp_path, 192)
    assert "--tokenizer" in refusal.value.hint
    assert not (tmp_path / "out").exists()


def test_a_run_from_packed_parts_stops_in_one_stage_and_ends_in_the_next(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RECIPES, "tiny", replace(TINY, weights_only=True, device="cuda"))
    out = tmp_path / "run"
    options = {"rehearse": 3, "batch_tokens": 192, "device": "cpu", "resume": True}
    pretrain.train_base("tiny", packed, out, max_steps=1, **options)
    half = load_file(next((out / "checkpoint").glob("*.safetensors")))
    assert {weight.dtype for weight in half.values()} == {torch.bfloat16}
    assert all(name.startswith("model.") for name in half)
    pretrain.train_base("tiny", packed, out, **options)
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [row["length_tokens"] for row in rows] == [96, 192]
    assert rows[0]["num_tokens"] < rows[1]["num_tokens"]
    assert rows[1]["lr_fraction"] <= 2 / pretrain.REWARM_STEPS
    wanted = load_file(out / "model" / "model.safetensors")
    for file in (out / "model").glob("*.safetensors"):
        file.unlink()
    found = Qwen3ForCausalLM.from_pretrained(pretrain.export_run(out), dtype=torch.bfloat16)
    for name, weight in found.named_parameters():
        assert torch.equal(weight, wanted[name]), name


def test_checkpoints_come_in_shards_and_replace_the_last_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "SHARD_BYTES", state.HEADER_BYTES + 1000)
    tensors = {f"t{i}": torch.full((100,), float(i)) for i in range(6)}
    state.save_state(tmp_path, tensors, {"step": 1})
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    state.save_state(tmp_path, {name: tensor + 1 for name, tensor in tensors.items()}, {"step": 2})
    assert {file.name[:6] for file in tmp_path.glob("*.safetensors")} == {"000002"}
    found, numbers = state.load_state(tmp_path)
    assert numbers == {"step": 2}
    assert all(torch.equal(found[name], tensor + 1) for name, tensor in tensors.items())
    next(tmp_path.glob("*-1.safetensors")).unlink()
    with pytest.raises(BackboneError, match="000002-1.safetensors"):
        state.load_state(tmp_path)


def test_a_run_begun_anew_and_cut_off_is_not_resumed_from_an_older_checkpoint(
    data_folder: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(RECIPES, "tiny", TINY)
    monkeypatch.setitem(RECIPES, "further", replace(TINY, start="tiny"))
    monkeypatch.setattr(pretrain, "draw_loss", lambda out: None)
    begun_at: list[int] = []

    def train(run: pretrain.Run, last_step: int, *_: object) -> None:
        begun_at.append(run.step)
        run.step = last_step
        run.save()

    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrain, "train", train)
    pretrain.train_base("further", data_folder, tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pretrain, "train", cut_off)
        pretrain.train_base("further", data_folder, tmp_path)
    pretrain.train_base("further", data_folder, tmp_path, resume=True)
    assert begun_at == [0, 0, 0, 0], "the start and what follows it, both begun twice"


def test_processes_make_the_batches_that_a_thread_makes(
    data_folder: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    data.make_tokenizer(data_folder, tmp_path / "model", 192)
    encoding = data.prepare(data_folder, tmp_path / "cache", tmp_path / "model")
    corpus = data.Corpus(tmp_path / "cache", encoding)
    # The code of the real library, as a new process reads it.
    own = episodes.EpisodeMaker(corpus, data_folder)
    mix = {"lm": 0.4, "copy": 0.3, "facts": 0.3}
    stages = tuple(replace(stage, mix=mix) for stage in TINY.stages)
    recipe = replace(TINY, stages=stages, makers=1)
    with feeding.feed(own, recipe, 7, 1, data_folder, tmp_path) as batches:
        for step in (1, 2, 3):
            for found, wanted in zip(
                next(batches), feeding.make_batch(own, recipe, 7, step), strict=True
            ):
                assert np.array_equal(found, wanted)


def test_a_rehearsal_keeps_every_stage() -> None:
    recipe = RECIPES["gpu"]
    small = recipe.rehearsed(50, 1024, "cpu")
    assert len(small.stages) == len(recipe.stages)
    assert small.num_steps == pytest.approx(50, abs=3)
    assert {stage.batch_tokens for stage in small.stages} == {1024}
    assert not any(stage.compiled for stage in small.stages)
    assert recipe.rehearsed(None, None, None) == recipe
