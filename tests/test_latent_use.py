"""A latent memory that the user asks for: paid for out of the budget, saved, found again."""

import shutil
from dataclasses import replace

import pytest
import torch
from families import make_backbone, stream, token_ids
from test_adapter_use import put_adapter
from test_recall_from import OPTIONS, QUESTION, TEXT, told  # noqa: F401 (the fixture `book` writes TEXT)

from indexmem_cli import Memory
from indexmem_cli.checkpoint import find_checkpoint
from indexmem_cli.config import CENTROIDS, DEFAULT_MODEL, AnswerConfig, MemoryConfig, ModelConfig
from indexmem_cli.engine import make_reader
from indexmem_cli.errors import ConfigError
from indexmem_cli.library import Library
from indexmem_cli.library.listing import describe
from indexmem_cli.loading import load_backbone
from indexmem_cli.memory.policies import make_scorer
from indexmem_cli.plan import plan_ahead

WITH = MemoryConfig(policy="keydiff", latent=CENTROIDS)


def read_tokens(reader, tokens, chunk=64):
    ids = token_ids(tokens)
    return [*reader.read(ids[i : i + chunk] for i in range(0, tokens, chunk))]


def open_memory(book, model, save=True, **options):
    return Memory.read(book, save=save, **{**OPTIONS, "model": str(model)} | options)


@pytest.mark.parametrize("kv_dtype", ["model", "int8"])
def test_a_memory_with_centroids_takes_no_more_bytes_than_one_without(kv_dtype):
    backbone = make_backbone("qwen3")
    backbone.info = replace(backbone.info, kv_dtype=kv_dtype)
    plan = plan_ahead(MemoryConfig(256, 64), backbone.info.window_tokens)
    bare = make_reader(backbone, plan, replace(WITH, latent="none"), [])
    reader = make_reader(backbone, plan, WITH, [])
    for each in (bare, reader):
        read_tokens(each, 1024)
    latents = [part.latent for part in reader.state.managed]
    assert [latent.slots for latent in latents] == [256 // 32] * len(latents)
    assert all(float(latent.count.sum()) > 500 for latent in latents)
    one_token = bare.state.nbytes / bare.state.held
    assert abs(reader.state.nbytes - bare.state.nbytes) < one_token
    assert reader.state.held < bare.state.held == 256
    # With what is kept and a chunk they weigh as much as the window that the model knows.
    window = backbone.info.window_tokens
    assert {latent.most_tokens for latent in latents} == {window - 256 - 64}


def test_a_budget_without_room_for_it_is_refused():
    backbone = make_backbone("qwen3")
    plan = plan_ahead(MemoryConfig(16, 16, recent_tokens=8), backbone.info.window_tokens)
    with pytest.raises(ConfigError, match=r"budget of 16 tokens cannot hold a latent") as caught:
        make_reader(backbone, plan, WITH, [])
    least = int(caught.value.hint.split("above ")[1].split(",")[0])
    for budget, fits in ((least, False), (least + 1, True)):
        given = replace(plan, budget_tokens=budget)
        if fits:
            assert read_tokens(make_reader(backbone, given, WITH, []), 128)
        else:
            with pytest.raises(ConfigError):
                make_reader(backbone, given, WITH, [])
    with pytest.raises(ConfigError, match="unknown latent memory: 'fast'"):
        MemoryConfig(latent="fast")


def test_the_shipped_adapter_calibrates_every_head():
    backbone = load_backbone(find_checkpoint(DEFAULT_MODEL), ModelConfig(offline=True))
    plan = plan_ahead(MemoryConfig(256), backbone.info.window_tokens)
    reader = make_reader(backbone, plan, MemoryConfig(latent=CENTROIDS), [])
    mass = backbone.adapter.log_mass.flatten()
    found = torch.cat([part.latent.bias for part in reader.state.managed])
    assert torch.equal(found, mass) and mass.unique().numel() > 1


def test_what_was_evicted_is_saved_and_found_again(book, tiny_model_dir):
    first, _ = told(open_memory(book, tiny_model_dir, latent=CENTROIDS))
    assert 0 < first.memory.latent_bytes < first.memory.kv_bytes
    again = open_memory(book, tiny_model_dir, latent=CENTROIDS)
    second, _ = told(again)
    assert second.memories[0].tokens_reused == second.memories[0].tokens
    assert second.text == first.text and second.memory.latent_bytes == first.memory.latent_bytes
    [saved] = again.readings
    assert describe(Library(), saved.manifest.id).latent == CENTROIDS
    # By its id it is what it was, whatever is asked for now; without the option it is another.
    by_id, _ = told(open_memory(saved.manifest.id, tiny_model_dir))
    assert by_id.memory.latent_bytes == first.memory.latent_bytes
    without, _ = told(open_memory(book, tiny_model_dir))
    assert not without.memory.latent_bytes and not without.memories[0].tokens_reused


def test_the_question_finds_part_of_its_answer_in_what_was_evicted(book, tiny_model_dir):
    options = {"policy": "recency", "recall": False, "save": False}
    asked = AnswerConfig(max_tokens=4, explain=True)
    shares = []
    for latent in ("none", CENTROIDS):
        memory = open_memory(book, tiny_model_dir, latent=latent, **options)
        *_, answer = memory.events(QUESTION, asked)
        shares.append(sum(mass.memory for mass in answer.explanation.attention))
    assert shares[0] == 0 < shares[1]


def test_a_model_with_an_adapter_takes_it_too(book, tiny_model_dir, tmp_path):
    folder = tmp_path / "with-adapter"
    shutil.copytree(tiny_model_dir, folder)
    put_adapter(folder, seed=0)
    answer, _ = told(open_memory(book, folder, latent=CENTROIDS))
    assert answer.memory.policy == "learned" and answer.memory.latent_bytes


def test_nothing_is_evicted_while_all_fits():
    backbone = make_backbone("qwen3")
    plan = plan_ahead(MemoryConfig(256, 64), backbone.info.window_tokens)
    reader = make_reader(backbone, plan, WITH, [])
    read_tokens(reader, 128)
    bare = stream(backbone, make_scorer("keydiff"), token_ids(128), budget=256)
    assert all(part.latent.is_silent for part in reader.state.managed)
    assert reader.state.nbytes == bare.state.nbytes
