"""The model that reads and answers, with its tokenizer and prompt; loaded when it is needed."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from indexmem_cli.checkpoint import Checkpoint, find_checkpoint
from indexmem_cli.config import MemoryConfig, ModelConfig
from indexmem_cli.errors import MemoryFileError
from indexmem_cli.library.disk import blake2b
from indexmem_cli.library.manifest import Manifest
from indexmem_cli.plan import Plan, make_plan
from indexmem_cli.startup import collecting_later, wait_for_imports
from indexmem_cli.tokens import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from indexmem_cli.backbone import Backbone
    from indexmem_cli.loading import Prompt


@dataclass
class LanguageModel:
    """A loaded model with all that goes with it."""

    backbone: "Backbone"
    prompt: "Prompt"
    tokenizer: Tokenizer
    load_s: float
    answer_from_tokens: int | None
    name: str
    """Of the model, as the user named it."""
    tokenizer_hash: str
    """Of the tokenizer and the prompt before the document."""
    spaces_lines: bool = False
    """As in `Checkpoint`."""

    def reread(self, ids: Sequence[int]) -> list[int]:
        """Return the tokens by which a passage is read again: no more than `ids`, its own.

        Where they are others, only those of the first word are, which has a space before it then.
        """
        if self.spaces_lines and (text := self.tokenizer.decode(ids))[:1].isalpha():
            spaced = self.tokenizer.encode(f" {text}")
            if len(spaced) <= len(ids):
                return spaced
        return list(ids)

    @property
    def adapter_hash(self) -> str | None:
        """Of what was trained for the model, if anything was."""
        return self.backbone.adapter.digest if self.backbone.has_adapter else None


def load_language_model(config: ModelConfig, memory: MemoryConfig | None = None) -> LanguageModel:
    """Load a model with all that goes with it.

    Args:
        memory: what it is loaded for; a budget that cannot do is refused before the weights come.

    Raises:
        IndexMemError: the model cannot be loaded, or the budget does not go with it.
    """
    started = time.perf_counter()
    checkpoint = find_checkpoint(config.model, config.offline)
    tokenizer = load_tokenizer(checkpoint.path)
    wait_for_imports()
    with collecting_later():
        from indexmem_cli.loading import load_backbone, load_prompt

        prompt = load_prompt(checkpoint)
        if memory is not None:
            make_plan(memory, checkpoint.window_tokens, len(prompt.opening))
        backbone = load_backbone(checkpoint, config)
    load_s = time.perf_counter() - started
    return LanguageModel(
        backbone,
        prompt,
        tokenizer,
        load_s,
        checkpoint.answer_from_tokens,
        config.model,
        _hash(checkpoint, prompt),
        checkpoint.spaces_lines,
    )


def for_conversation(model: LanguageModel, config: ModelConfig) -> LanguageModel:
    """Return a loaded model with a prompt for talking, where its chat template takes one."""
    from indexmem_cli.loading import CHAT_INSTRUCTION, load_prompt

    checkpoint = find_checkpoint(config.model, config.offline)
    prompt = load_prompt(checkpoint, CHAT_INSTRUCTION)
    return replace(model, prompt=prompt, tokenizer_hash=_hash(checkpoint, prompt))


def _hash(checkpoint: Checkpoint, prompt: "Prompt") -> str:
    return blake2b(f"{checkpoint.tokenizer_hash()} {prompt.opening}".encode())


def check_fits(manifest: Manifest, model: LanguageModel) -> None:
    """See that a saved memory is one of this model.

    Raises:
        MemoryFileError: another model or tokenizer read it.
    """
    info, key = model.backbone.info, manifest.key
    made = {
        "dtype": key.settings.get("dtype"),
        "quantisation": key.settings.get("quant"),
        "type of keys and values": key.settings.get("kv_dtype", "model"),
    }
    here = dict(zip(made, (info.dtype, info.quant, info.kv_dtype), strict=True))
    wrong = [name for name in made if made[name] != here[name]]
    if key.model != info.revision:
        wrong = ["weights"]
    elif key.tokenizer != model.tokenizer_hash:
        wrong = ["tokenizer or prompt"]
    elif key.adapter is not None and key.adapter != model.adapter_hash:
        wrong = ["adapter"]
    if wrong:
        raise MemoryFileError(
            f"memory {manifest.id} was made by {manifest.model} with another {' and '.join(wrong)}",
            f"choose --model {manifest.model} as it was then, or ingest {manifest.source} again",
        )


def plan_of(manifest: Manifest, plan: Plan, model: LanguageModel) -> Plan:
    """The plan that a saved memory was read by, to answer by what this one says of answers.

    Raises:
        MemoryFileError: another model or tokenizer read it, or it does not say how.
    """
    check_fits(manifest, model)
    names = {f.name for f in fields(Plan)} - {"answer_from_tokens"}
    known = manifest.key.settings.items()
    settings = {name: n for name, n in known if name in names and type(n) is int}
    if settings.keys() != names:
        raise MemoryFileError(f"memory {manifest.id} does not say how it was read")
    answer_from = min(plan.answer_from_tokens, settings["budget_tokens"])
    return Plan(**settings, answer_from_tokens=answer_from)
