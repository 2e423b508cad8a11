"""Quantised weights: written by `train quantise`, read back plain or run through bitsandbytes."""

import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from indexmem_cli.checkpoint import find_checkpoint
from indexmem_cli.config import ModelConfig
from indexmem_cli.errors import BackboneError, ConfigError
from indexmem_cli.loading import load_backbone
from indexmem_cli.train.quantise import quantise

pytest.importorskip("bitsandbytes")
MATRIX = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module", params=["int8", "nf4"])
def stored(request, tiny_model_dir, tmp_path_factory):
    """The tiny model, quantised, and the name of the quantisation."""
    folder = tmp_path_factory.mktemp("quantised") / request.param
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what bitsandbytes says of itself is not under test
        size = quantise(str(tiny_model_dir), folder, request.param)
    assert size == (folder / "model.safetensors").stat().st_size
    return folder, request.param


def load(folder, quant="auto"):
    config = ModelConfig(model=str(folder), quant=quant, dtype="float32", device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_backbone(find_checkpoint(str(folder)), config)


def test_plain_weights_are_those_that_bitsandbytes_would_use(stored, tiny_model_dir):
    import bitsandbytes as bnb

    folder, quant = stored
    plain, run = load(folder), load(folder, quant)
    assert (plain.info.quant, run.info.quant) == (f"{quant}-weights", quant)
    found = dict(plain.model.named_parameters())
    layer = run.model.model.layers[1].mlp.down_proj
    if quant == "int8":
        wanted = layer.weight.data.float() * layer.weight.SCB[:, None] / 127
    else:
        wanted = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    assert isinstance(layer, (bnb.nn.Linear8bitLt, bnb.nn.Linear4bit))
    torch.testing.assert_close(found[MATRIX].data, wanted.float(), rtol=0.01, atol=1e-4)
    full = load_file(tiny_model_dir / "model.safetensors")
    step = full[MATRIX].abs().amax() / (127 if quant == "int8" else 3)
    assert 0 < (found[MATRIX] - full[MATRIX]).abs().max() <= step
    norm = "model.norm.weight"
    assert torch.equal(found[norm].data, full[norm])


def test_quantised_models_keep_tokenizer_and_ends_of_answers(stored, tiny_model_dir):
    folder, _ = stored
    names = {file.name for file in tiny_model_dir.iterdir()}
    assert names <= {file.name for file in folder.iterdir()}
    assert load(folder).eos_ids == load(tiny_model_dir).eos_ids != set()


def test_one_quantisation_is_not_taken_for_another(stored):
    folder, quant = stored
    other = {"int8": "nf4", "nf4": "int8"}[quant]
    with pytest.raises(ConfigError, match=f"{other}.*stored in {quant}"):
        load(folder, other)
    with pytest.raises(ConfigError, match="already"):
        quantise(str(folder), folder.parent / "again", other)
    assert not (folder.parent / "again").exists()


def test_weights_without_their_scales_are_refused(stored, tmp_path):
    folder, quant = stored
    broken = shutil.copytree(folder, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    scale = {"int8": MATRIX.replace("weight", "SCB"), "nf4": f"{MATRIX}.absmax"}[quant]
    del weights[scale]
    save_file(weights, broken / "model.safetensors")
    with pytest.raises(BackboneError, match="cannot be loaded"):
        load(broken)
