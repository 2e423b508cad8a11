"""Adapters of every form on tiny Llama, Qwen2, Mistral and Gemma models: trained, saved, used."""

import copy
import shutil

import pytest
import torch
from families import CONFIGS, WINDOW, make_backbone, make_model, token_ids
from test_train import data_folder, maker  # noqa: F401
from typer.testing import CliRunner

from indexmem_cli import Memory
from indexmem_cli.cli.app import app
from indexmem_cli.config import ADAPTER_FILE, MemoryConfig
from indexmem_cli.engine import Reader
from indexmem_cli.errors import BackboneError, ConfigError
from indexmem_cli.memory.adapter import Adapter, hash_model, load_adapter, save_adapter
from indexmem_cli.memory.indexer import FORMS, make_indexer_scorer
from indexmem_cli.plan import make_plan
from indexmem_cli.train import quick
from indexmem_cli.train.adapter import AdapterRecipe, Run
from indexmem_cli.train.teachers import WholeModel

FAMILIES = ("llama", "qwen2", "mistral", "gemma2", "gemma3")


def train(family, model, maker, form, out):  # noqa: F811
    """One step of each stage; returns the indexer, which is no longer what it was."""
    recipe = AdapterRecipe(form, 2, distil_steps=1, stream_steps=1, rows=1, length_tokens=160)
    whole = WholeModel(make_backbone(family, model))
    run = Run(recipe, whole, maker, out, seed=0)
    before = copy.deepcopy(run.indexer.state_dict())
    while run.step < recipe.num_steps:
        assert run.train_step()["loss"] > 0
    whole.detach()
    assert any(not torch.equal(before[n], t) for n, t in run.indexer.state_dict().items())
    return run.indexer


@pytest.mark.parametrize("family", FAMILIES)
def test_every_form_trains_loads_and_reads(family, maker, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(CONFIGS[family], "vocab_size", maker.corpus.encoding.n_vocab)
    model = make_model(family)
    model.save_pretrained(tmp_path)
    frozen = copy.deepcopy(model.state_dict())
    plan, _ = make_plan(MemoryConfig(96, 32), WINDOW)
    ids = token_ids(200)
    for form in FORMS:
        indexer = train(family, model, maker, form, tmp_path)
        save_adapter(Adapter(indexer, *hash_model(tmp_path)), tmp_path / ADAPTER_FILE)
        loaded = load_adapter(tmp_path / ADAPTER_FILE, tmp_path)
        assert loaded.indexer.config == indexer.config and loaded.indexer.config.form == form
        backbone = make_backbone(family, model)
        reader = Reader(backbone, plan, make_indexer_scorer(loaded.indexer))
        for _ in reader.read(ids[first : first + 32] for first in range(0, 200, 32)):
            pass
        assert {layer.held for layer in reader.state.managed} == {96}, form
        assert all(layer.scores.isfinite().all() for layer in reader.state.managed), form
        backbone.detach()
    assert all(torch.equal(frozen[n], t) for n, t in model.state_dict().items()), "it is frozen"


def test_a_model_whose_layers_all_keep_windows_of_their_own_has_nothing_to_score(
    maker,  # noqa: F811
    tmp_path,
):
    with pytest.raises(ConfigError, match="a layer whose cache is kept under a budget"):
        train("mistral-sliding", make_model("mistral-sliding"), maker, "shared", tmp_path)


@pytest.fixture
def folders(tiny_model_dir, tmp_path):
    """A folder for each family: its tiny model with the tokenizer of the tiny Qwen3."""
    made = {}
    for family in FAMILIES:
        made[family] = tmp_path / family
        make_model(family).save_pretrained(made[family])
        for file in tiny_model_dir.glob("*token*"):
            shutil.copy(file, made[family])
        for file in tiny_model_dir.glob("chat_template*"):
            shutil.copy(file, made[family])
    return made


def test_a_quick_adapter_serves_its_own_family_and_no_other(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(quick, "CHUNK_TOKENS", 60)
    monkeypatch.setattr(quick, "LEAST_CORRELATION", -1.0)
    text, threads = tmp_path / "text.txt", torch.get_num_threads()
    text.write_text("the mill passes to Ruth, and the brown fox to her lazy dog\n" * 30, "utf-8")
    for family, folder in folders.items():
        command = f"train adapter -m {folder} --quick {text} --out {folder} --threads 1"
        done = CliRunner().invoke(app, command.split())
        assert done.exit_code == 0, done.output
        options = {"budget": 96, "chunk_tokens": 32, "offline": True, "device": "cpu"}
        memory = Memory.read(text, model=str(folder), policy="learned", save=False, **options)
        answer = memory.ask("Who?", max_tokens=2)
        assert (answer.memory.policy, answer.memory.adapter) == ("learned", "quick"), family
    torch.set_num_threads(threads)
    for family, other in zip(FAMILIES, FAMILIES[1:], strict=False):
        with pytest.raises(BackboneError, match="trained for another model"):
            load_adapter(folders[family] / ADAPTER_FILE, folders[other])
