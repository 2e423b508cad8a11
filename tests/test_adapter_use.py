"""A model with an adapter: used by default, named in what is said, part of what a memory is."""

import shutil

import pytest
import torch

from indexmem_cli import Memory
from indexmem_cli.bench.card import count_parameters
from indexmem_cli.checkpoint import find_checkpoint
from indexmem_cli.config import ADAPTER_FILE, DEFAULT_MODEL
from indexmem_cli.errors import BackboneError, MemoryFileError
from indexmem_cli.estimate import read_weights
from indexmem_cli.memory.adapter import Adapter, hash_model, load_adapter, save_adapter
from indexmem_cli.memory.indexer import IndexerConfig, make_indexer

TEXT = "".join(f"Line {number}: the quick brown fox number {number}.\n" for number in range(60))
OPTIONS = {"budget": 96, "chunk_tokens": 32, "offline": True, "device": "cpu", "save": True}


@pytest.fixture
def model(tiny_model_dir, tmp_path):
    """A copy of the tiny model with an adapter beside it."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    put_adapter(folder, seed=0)
    return folder


def put_adapter(folder, seed, hidden=8, hashes=None):
    torch.manual_seed(seed)
    indexer = make_indexer(IndexerConfig("shared", (0, 1), 32, 2, 4, 16, hidden=hidden))
    adapter = Adapter(indexer, *(hashes or hash_model(folder)))
    save_adapter(adapter, folder / ADAPTER_FILE)


def ask(book, model, **options):
    return Memory.read(book, model=str(model), **OPTIONS, **options).ask("Which fox?", max_tokens=4)


def test_a_model_with_an_adapter_reads_by_it_and_says_so(book, model, tiny_model_dir):
    used = ask(book, model).memory
    assert (used.policy, used.adapter) == ("learned", "trained")
    put_adapter(model, seed=0, hidden=0)
    assert ask(book, model).memory.policy == "keydiff", "a quick one has to be asked for"
    assert ask(book, model, policy="learned").memory.adapter == "quick"
    without = ask(book, tiny_model_dir).memory
    assert (without.policy, without.adapter) == ("keydiff", None)
    chosen = ask(book, model, policy="recency").memory
    assert (chosen.policy, chosen.adapter) == ("recency", None)


def test_a_memory_is_never_reused_with_another_adapter(book, model):
    first = ask(book, model)
    assert ask(book, model).memories[0].tokens_reused == first.memories[0].tokens
    put_adapter(model, seed=1)
    other = ask(book, model)
    assert other.memories[0].tokens_reused == 0 and other.memories[0].id != first.memories[0].id
    with pytest.raises(MemoryFileError, match="another adapter"):
        Memory.open(first.memories[0].id, offline=True, device="cpu").ask("Which fox?")
    put_adapter(model, seed=0)
    again = ask(book, model)
    assert again.memories[0].id == first.memories[0].id


def test_a_memory_of_another_policy_does_not_depend_on_the_adapter(book, model):
    first = ask(book, model, policy="recency").memories[0]
    put_adapter(model, seed=1)
    assert ask(book, model, policy="recency").memories[0].tokens_reused == first.tokens
    opened = Memory.open(first.id, offline=True, device="cpu").ask("Which fox?", max_tokens=4)
    assert opened.memory.policy == "recency", "a saved memory goes on as it was made"
    gathers = ask(book, model, policy="expected-attention").memories[0].id
    opened = Memory.open(gathers, offline=True, device="cpu").ask("Which fox?", max_tokens=2)
    assert opened.memory.policy == "expected-attention"


def test_an_adapter_of_another_model_is_refused(book, model):
    put_adapter(model, seed=0, hashes=("0" * 32, "0" * 32))
    with pytest.raises(BackboneError, match="trained for another model"):
        ask(book, model)
    assert ask(book, model, policy="recency").memory.policy == "recency"


def test_an_adapter_is_no_part_of_the_weights(model, tiny_model_dir):
    with_adapter, without = find_checkpoint(str(model)), find_checkpoint(str(tiny_model_dir))
    assert with_adapter.adapter_path and not without.adapter_path
    assert read_weights(with_adapter) == read_weights(without)
    assert count_parameters(with_adapter) == count_parameters(without)
    assert with_adapter.weight_bytes == without.weight_bytes


def test_the_shipped_model_comes_with_an_adapter_that_fits_it():
    checkpoint = find_checkpoint(DEFAULT_MODEL)
    adapter = load_adapter(checkpoint.adapter_path, checkpoint.path)
    assert adapter.kind == "trained" and adapter.indexer.config.form == "shared"
    assert checkpoint.adapter_path.stat().st_size < 1 << 20
