"""Load a model from disk in the form asked for, and its chat template."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from indexmem_cli.backbone import Backbone
from indexmem_cli.checkpoint import LARGE_MODEL_BYTES, PLAIN, Checkpoint
from indexmem_cli.config import ALL_GPUS, NOT_STATED, ModelConfig
from indexmem_cli.dequantise import read_dequantised
from indexmem_cli.errors import BackboneError, ConfigError, OutOfMemory, first_line
from indexmem_cli.estimate import choose_form, read_weights
from indexmem_cli.events import ModelInfo
from indexmem_cli.memory.adapter import load_adapter
from indexmem_cli.memory.room import is_out_of_memory

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig

INSTRUCTION = (
    "Answer the question from the document alone, in few words. If the document does not say, "
    f"answer: {NOT_STATED}"
)
CHAT_INSTRUCTION = (
    "You talk with a user. The document holds what was said before and passages of the user's "
    "documents. Answer the user's last message; where it asks for facts, take them from the "
    "document, and say so if they are not there."
)
_WEIGHT_SHARE = 0.8  # of what is free on a GPU; the rest is for the memory and its work
_LOAD_FAULTS = (
    *(OSError, ValueError, RuntimeError, ImportError, KeyError, MemoryError, SafetensorError),
)
_DOCUMENT, _QUESTION = "\ue000document\ue000", "\ue000question\ue000"


@dataclass(frozen=True)
class Prompt:
    """The token ids around a document and a question, by the model's own chat template."""

    opening: list[int]
    """Before the document."""
    middle: list[int]
    """Between the document and the question."""
    ending: list[int]
    """From the question to where the answer starts."""

    def closing(self, question_ids: list[int]) -> list[int]:
        """All that follows the document."""
        return self.middle + question_ids + self.ending


def load_backbone(checkpoint: Checkpoint, config: ModelConfig) -> Backbone:
    """Load a model from disk in the form asked for.

    Raises:
        BackboneError: the weights cannot be loaded, or the device is not there.
        ConfigError: the quantisation does not go with this device, or with the stored weights.
        OutOfMemory: the weights do not fit the device.
    """
    device = _choose_device(config.device)
    quant = _choose_quant(config.quant, checkpoint, device)
    dtype = _choose_dtype(config.dtype, device)
    options = {}
    if quant in ("int8", "nf4") and not checkpoint.stored_quant:
        options["quantization_config"] = make_quant_config(quant, dtype)
    if options or device.type != "cpu":
        options["device_map"] = {"": device}
    if room := _room_on_several(checkpoint, config):
        options |= {"device_map": "auto", "max_memory": room}
    load = _load_plain if quant.endswith(PLAIN) else _load_stored
    try:
        with _without_bar():
            model = load(checkpoint, dtype, options).eval()
    except _LOAD_FAULTS as error:
        if is_out_of_memory(error):
            raise _too_large(checkpoint, str(device)) from error
        raise BackboneError(
            f"{checkpoint.id}: cannot be loaded: {first_line(error)}",
            "check that all files of the model are there",
        ) from error
    places = getattr(model, "hf_device_map", {}).values() if room else [device]
    if room and {"cpu", "disk"} & set(map(str, places)):
        raise _too_large(checkpoint, "all GPUs together")
    info = ModelInfo(
        id=checkpoint.id,
        revision=checkpoint.revision,
        quant=quant,
        dtype=str(dtype).removeprefix("torch."),
        device="+".join(sorted({str(torch.device(place)) for place in places})),
        window_tokens=checkpoint.window_tokens,
        kv_dtype=config.kv_dtype,
    )
    backbone = Backbone(model, info, checkpoint.layer_windows)
    if checkpoint.adapter_path:
        backbone.load_adapter = partial(
            load_adapter, checkpoint.adapter_path, checkpoint.path, device
        )
    return backbone


@contextmanager
def _without_bar() -> Iterator[None]:
    """Keep transformers' progress bar out of the programs of others; `Loaded` is what they get."""
    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


def _load_stored(
    checkpoint: Checkpoint, dtype: torch.dtype, options: dict[str, Any]
) -> PreTrainedModel:
    """Let transformers read the files, quantised ones too."""
    return AutoModelForCausalLM.from_pretrained(
        checkpoint.path,
        dtype=dtype,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        **options,
    )


def _load_plain(
    checkpoint: Checkpoint, dtype: torch.dtype, options: dict[str, Any]
) -> PreTrainedModel:
    """Make plain weights of quantised ones while reading them."""
    config = AutoConfig.from_pretrained(checkpoint.path, trust_remote_code=False)
    del config.quantization_config
    weights = read_dequantised(checkpoint.weight_files, dtype)
    model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
        None, config=config, state_dict=weights, dtype=dtype, **options
    )
    if (checkpoint.path / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(checkpoint.path)
    return model


def load_prompt(checkpoint: Checkpoint, instruction: str = INSTRUCTION) -> Prompt:
    """Read the model's chat template and cut it where the document and the question stand.

    The document and the question are encoded apart from it, as plain text, so nothing in them can
    become a special token.

    Raises:
        BackboneError: the tokenizer cannot be loaded without running code of the model's own.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            checkpoint.path, local_files_only=True, trust_remote_code=False
        )
    except (ValueError, OSError, LookupError, TypeError, AttributeError) as error:
        wants_code = "trust_remote_code" in str(error)
        raise BackboneError(
            f"{checkpoint.id}: its tokenizer cannot be loaded: {first_line(error)}",
            "code that comes with a model is never run; choose a model that needs none"
            if wants_code
            else "check that all files of the model are there and whole",
        ) from error
    content = f"<document>\n{_DOCUMENT}\n</document>\n\n{_QUESTION}"
    text = f"{content}\nAnswer:"
    if tokenizer.chat_template:
        text = _render(tokenizer, content, instruction)
    opening, _, rest = text.partition(_DOCUMENT)
    middle, _, ending = rest.partition(_QUESTION)
    pieces = [tokenizer(part, add_special_tokens=False).input_ids for part in (middle, ending)]
    first = tokenizer(opening, add_special_tokens=not tokenizer.chat_template).input_ids
    return Prompt(first, *pieces)


def _render(tokenizer: PreTrainedTokenizerBase, content: str, instruction: str) -> str:
    user = {"role": "user", "content": content}
    options = {"tokenize": False, "add_generation_prompt": True}
    system = {"role": "system", "content": instruction}
    try:
        return str(tokenizer.apply_chat_template([system, user], **options))
    except Exception as error:  # templates raise what they like where there is no system role
        if type(error).__module__.partition(".")[0] != "jinja2":
            raise
        user["content"] = f"{instruction}\n\n{content}"
        return str(tokenizer.apply_chat_template([user], **options))


def _room_on_several(checkpoint: Checkpoint, config: ModelConfig) -> dict[int, int]:
    """Bytes that weights may take on each GPU, where one will not do; nothing where it will.

    Raises:
        OutOfMemory: all of them will not do.
    """
    count = torch.cuda.device_count() if config.device in ("auto", ALL_GPUS) else 0
    if count < 2:
        return {}
    room = {i: int(_WEIGHT_SHARE * torch.cuda.mem_get_info(i)[0]) for i in range(count)}
    need = choose_form(checkpoint, read_weights(checkpoint), config, gpu=True).weight_bytes
    if config.device == "auto" and need <= room[torch.cuda.current_device()]:
        return {}
    if need > sum(room.values()):
        raise _too_large(checkpoint, f"{count} GPUs together")
    return room


def _too_large(checkpoint: Checkpoint, place: str) -> OutOfMemory:
    return OutOfMemory(
        f"{checkpoint.id} ({checkpoint.weight_bytes / 2**30:.1f} GiB on disk) does not fit {place}",
        "choose --quant nf4, a smaller model, or --device cpu",
    )


def _choose_device(name: str) -> torch.device:
    if name == ALL_GPUS:
        name = "cuda"
    if name != "auto":
        try:
            device = torch.device(name)
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError) as error:
            raise BackboneError(
                f"device {name!r} cannot be used: {first_line(error)}",
                "leave --device out to take what is there",
            ) from error
        return device
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _choose_dtype(name: str, device: torch.device) -> torch.dtype:
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.float16 if device.type == "mps" else torch.float32


def _choose_quant(name: str, checkpoint: Checkpoint, device: torch.device) -> str:
    """What the weights run as: none, int8, nf4, a method of transformers, or those with PLAIN."""
    large_on_gpu = device.type == "cuda" and checkpoint.weight_bytes > LARGE_MODEL_BYTES
    stored = checkpoint.stored_quant
    if stored and name not in ("auto", "none", stored):
        raise ConfigError(
            f"--quant {name} is asked for, but {checkpoint.id} is stored in {stored}",
            "leave --quant out",
        )
    if form := checkpoint.form_of_stored(name, large_on_gpu):
        return form
    if name == "auto":
        return "nf4" if large_on_gpu else "none"
    if name != "none" and device.type == "mps":
        raise ConfigError(f"--quant {name} does not run on {device}", "leave --quant out")
    return name


def make_quant_config(quant: str, dtype: torch.dtype) -> "BitsAndBytesConfig":
    """Say to transformers how bitsandbytes shall quantise: int8, or nf4 with quantised scales."""
    from transformers import BitsAndBytesConfig

    if quant == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
