"""Finding a model's files, and loading them in the form asked for."""

import json
import shutil
from contextlib import suppress

import pytest

from indexmem_cli.checkpoint import FAMILIES, find_checkpoint, read_checkpoint
from indexmem_cli.config import ModelConfig
from indexmem_cli.errors import BackboneError, IndexMemError
from indexmem_cli.loading import load_backbone, load_prompt


@pytest.fixture
def model_copy(tiny_model_dir, tmp_path):
    return shutil.copytree(tiny_model_dir, tmp_path / "model")


SHAPE = {
    "max_position_embeddings": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "hidden_size": 32, "intermediate_size": 64, "vocab_size": 99,
}  # fmt: skip


def checkpoint_of(folder, **config):
    (folder / "m.safetensors").write_bytes(b"")
    (folder / "config.json").write_text(json.dumps(SHAPE | config))
    return read_checkpoint("m", folder)


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_embedded_model_is_found_by_its_name():
    checkpoint = find_checkpoint("indexmem-mini", offline=True)
    assert checkpoint.id == "indexmem-mini"
    assert checkpoint.window_tokens >= 1024


def test_a_folder_is_found_by_its_path(model_copy):
    checkpoint = find_checkpoint(str(model_copy))
    assert checkpoint.path == model_copy.resolve()
    assert checkpoint.window_tokens == 256
    assert checkpoint.layer_windows == [None, None]
    assert checkpoint.kv_bytes_per_token("float32") == 2 * 2 * 2 * 16 * 4


def test_the_revision_follows_the_weights(model_copy):
    before = find_checkpoint(str(model_copy)).revision
    weights = model_copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[300] ^= 1
    weights.write_bytes(data)
    assert find_checkpoint(str(model_copy)).revision != before


def test_what_is_not_there_is_named_with_a_remedy():
    for name in ("no-such-model", "some-one/no-such-model", "/no/such/folder"):
        with pytest.raises(BackboneError) as caught:
            find_checkpoint(name, offline=True)
        assert name in caught.value.message and caught.value.hint


def test_other_families_and_formats_are_refused(model_copy):
    change_config(model_copy, model_type="mamba")
    with pytest.raises(BackboneError, match="mamba") as caught:
        find_checkpoint(str(model_copy))
    assert "Qwen3" in caught.value.hint
    change_config(model_copy, model_type="qwen3")
    (model_copy / "model.safetensors").rename(model_copy / "pytorch_model.bin")
    with pytest.raises(BackboneError, match="safetensors"):
        find_checkpoint(str(model_copy))
    (model_copy / "config.json").write_text("{")
    with pytest.raises(BackboneError, match="config.json"):
        find_checkpoint(str(model_copy))


@pytest.mark.parametrize(
    "config, windows",
    [
        ({"sliding_window": 64}, [64, 64]),
        ({"sliding_window": 64, "use_sliding_window": False}, [None, None]),
        (
            {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]},
            [64, None],
        ),
        ({"sliding_window": None}, [None, None]),
        ({}, [4096, 4096]),
    ],
)
def test_layer_windows(tmp_path, config, windows):
    assert checkpoint_of(tmp_path, model_type="mistral", **config).layer_windows == windows


@pytest.mark.parametrize("said", [{}, {"sliding_window": 64, "use_sliding_window": True}])
@pytest.mark.parametrize("family", [*FAMILIES.keys() - {"gemma3"}])
def test_what_a_config_does_not_say_of_its_layers_is_what_transformers_takes(
    tmp_path, family, said
):
    from transformers import AutoConfig

    sizes = {"num_hidden_layers": 31, "num_attention_heads": 4, "num_key_value_heads": 2}
    full = AutoConfig.for_model(family, **sizes, **said)
    window = getattr(full, "sliding_window", None)
    kinds = getattr(full, "layer_types", None) or ["sliding_attention"] * 31
    expected = [window if kind == "sliding_attention" else None for kind in kinds]
    found = checkpoint_of(tmp_path, model_type=family, **sizes, **said)
    assert found.layer_windows == expected


def test_the_config_of_the_text_model_counts(tmp_path):
    text = {**SHAPE, "model_type": "gemma3_text", "max_position_embeddings": 99}
    found = checkpoint_of(tmp_path, model_type="gemma3", text_config=text)
    assert found.window_tokens == 99


def test_a_config_that_leaves_sizes_out_has_those_that_transformers_takes(tmp_path):
    from transformers import AutoConfig

    said = {"num_hidden_layers": 3, "hidden_size": 64, "intermediate_size": 128}
    (tmp_path / "m.safetensors").write_bytes(b"")
    text = {"model_type": "gemma3_text", **said}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    found, full = read_checkpoint("m", tmp_path), AutoConfig.for_model("gemma3_text", **said)
    assert found.kv_shape == (full.num_key_value_heads, full.head_dim)
    for name in ("max_position_embeddings", "vocab_size", "num_attention_heads"):
        assert found.config[name] == getattr(full, name)


@pytest.mark.parametrize(
    "config",
    ["[]", '{"text_config": 3}', '{"model_type": ["llama"]}', '{"model_type": "llama"}', "7"],
)
def test_a_config_of_no_model_is_one_clear_error(model_copy, config):
    (model_copy / "config.json").write_text(config)
    with pytest.raises(BackboneError, match="config.json|is not supported"):
        find_checkpoint(str(model_copy))


def test_a_home_that_nobody_has_is_no_model():
    with pytest.raises(BackboneError):
        find_checkpoint("~nobody-here/model", offline=True)


def load(folder, **options):
    from indexmem_cli.loading import load_backbone

    checkpoint = find_checkpoint(str(folder))
    return load_backbone(checkpoint, ModelConfig(model=str(folder), device="cpu", **options))


def test_weights_are_loaded_in_the_dtype_asked_for(model_copy):
    import torch

    backbone = load(model_copy, dtype="bfloat16")
    assert backbone.model.dtype == torch.bfloat16 and backbone.info.dtype == "bfloat16"
    assert load(model_copy).info.dtype == "float32"


def test_broken_weights_and_absent_devices_are_errors_not_tracebacks(model_copy):
    from indexmem_cli.loading import load_backbone

    with pytest.raises(IndexMemError, match="cuda:7"):
        load_backbone(find_checkpoint(str(model_copy)), ModelConfig(device="cuda:7"))
    weights = model_copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BackboneError, match="cannot be loaded"):
        load(model_copy)


def test_the_prompt_is_the_models_own_template(model_copy):
    from transformers import AutoTokenizer

    from indexmem_cli.loading import load_prompt
    from indexmem_cli.tokens import load_tokenizer

    prompt = load_prompt(find_checkpoint(str(model_copy)))
    ours = load_tokenizer(model_copy)
    document, question = ours.encode("the fox\n"), ours.encode("Which?")
    theirs = AutoTokenizer.from_pretrained(model_copy)
    whole = theirs.decode(prompt.opening + document + prompt.closing(question))
    assert whole == ("<|user|><document>\nthe fox\n\n</document>\n\nWhich?<|end|><|assistant|>")


def test_a_template_without_a_system_role_takes_the_instruction_in_the_users_turn(model_copy):
    from transformers import AutoTokenizer

    from indexmem_cli.loading import INSTRUCTION, load_prompt

    strict = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}<|user|>{{ m.content }}<|end|>{% endfor %}<|assistant|>"
    )
    (model_copy / "chat_template.jinja").write_text(strict)
    prompt = load_prompt(find_checkpoint(str(model_copy)))
    opening = AutoTokenizer.from_pretrained(model_copy).decode(prompt.opening)
    assert opening == f"<|user|>{INSTRUCTION}\n\n<document>\n"


def test_a_base_model_without_a_template_gets_a_plain_prompt(model_copy):
    from transformers import AutoTokenizer

    from indexmem_cli.loading import load_prompt

    (model_copy / "chat_template.jinja").unlink()
    prompt = load_prompt(find_checkpoint(str(model_copy)))
    tokenizer = AutoTokenizer.from_pretrained(model_copy)
    assert tokenizer.decode(prompt.ending) == "\nAnswer:"


@pytest.mark.parametrize("content", ["[", "[1]"])
def test_a_damaged_tokenizer_is_one_clear_error_that_speaks_of_no_code(model_copy, content):
    from indexmem_cli.loading import load_prompt

    (model_copy / "tokenizer_config.json").write_text(content)
    with pytest.raises(BackboneError, match="tokenizer cannot be loaded") as caught:
        load_prompt(find_checkpoint(str(model_copy)))
    assert "whole" in caught.value.hint


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "mistral", "gemma3_text"])
def test_code_beside_a_model_is_never_run(model_copy, family, monkeypatch):
    change_config(model_copy, model_type=family, auto_map={"AutoConfig": "evil.Evil"})
    path = model_copy / "tokenizer_config.json"
    named = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    path.write_text(json.dumps(json.loads(path.read_text()) | named))
    (model_copy / "evil.py").write_text(
        "from transformers import PreTrainedTokenizerFast as Evil\n"
        f"open({str(model_copy / 'ran')!r}, 'w').close()\n"
    )
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    checkpoint = read_checkpoint("m", model_copy)
    for load in (load_prompt, lambda found: load_backbone(found, ModelConfig("m"))):
        with suppress(BackboneError):
            load(checkpoint)
    assert not (model_copy / "ran").exists()
