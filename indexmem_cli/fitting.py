"""What of a model and a budget fits the memory that is free; what to do where it does not."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

from indexmem_cli.checkpoint import Checkpoint, find_checkpoint
from indexmem_cli.config import AUTO, MemoryConfig, ModelConfig
from indexmem_cli.errors import OutOfMemory
from indexmem_cli.estimate import Need, Weights, estimate_need, largest_budget, read_weights
from indexmem_cli.machine import Machine, look_at_machine

SPARE = 0.95
"""Share of what is free that an estimate may use up."""
LARGE_BYTES = 2**30
"""Models above this size say what they will need before they are loaded."""


def settle_budget(memory: MemoryConfig, model: ModelConfig) -> tuple[MemoryConfig, list[str]]:
    """Replace a budget of `auto` by the most that fits, before anything is loaded.

    Returns:
        The settings, still with `auto` if all that the model's window allows fits, and what the
        user should know before a long wait.

    Raises:
        OutOfMemory: not even the smallest budget fits.
    """
    checkpoint = find_checkpoint(model.model, model.offline)
    weights = read_weights(checkpoint)
    if memory.budget_tokens != AUTO and weights.file_bytes < LARGE_BYTES:
        return memory, []
    machine = look_at_machine()
    gpu, free = machine.has_gpu(model.device), machine.free_bytes(model.device)
    if memory.budget_tokens == AUTO:
        chunk = memory.chunk_tokens
        budget = largest_budget(checkpoint, weights, model, int(SPARE * free), gpu, chunk)
        if budget is None:
            raise describe_shortage(memory, model)
        need = estimate_need(checkpoint, weights, memory, model, gpu)
        if budget < need.budget_tokens:  # else the model's window is the limit, not the memory
            memory = replace(memory, budget_tokens=budget)
    need = estimate_need(checkpoint, weights, memory, model, gpu)
    return memory, [
        f"{checkpoint.id} with a budget of {need.budget_tokens:,} tokens needs about "
        f"{_gib(need.total_bytes)} (weights {_gib(need.weight_bytes)} as {_form(need)}, keys and "
        f"values {_gib(need.kv_bytes)}); {_gib(free)} of {machine.name_of(model.device)} are free"
    ]


def describe_shortage(memory: MemoryConfig, model: ModelConfig) -> OutOfMemory:
    """Say what was needed, what is free, and up to three settings that fit."""
    checkpoint = find_checkpoint(model.model, model.offline)
    weights, machine = read_weights(checkpoint), look_at_machine()
    gpu, free = machine.has_gpu(model.device), machine.free_bytes(model.device)
    memory = replace(memory, budget_tokens=None) if memory.budget_tokens == AUTO else memory
    need = estimate_need(checkpoint, weights, memory, model, gpu)
    found = list(settings_that_fit(checkpoint, weights, memory, model, machine))[:3]
    advice = "; or ".join(found) or "choose a smaller model"
    return OutOfMemory(
        f"out of memory on {machine.name_of(model.device)}: {checkpoint.id} with a budget of "
        f"{need.budget_tokens:,} tokens needs about {_gib(need.total_bytes)}, and {_gib(free)} are "
        "free",
        f"{'these fit: ' if found else ''}{advice}",
    )


def settings_that_fit(
    checkpoint: Checkpoint,
    weights: Weights,
    memory: MemoryConfig,
    model: ModelConfig,
    machine: Machine,
) -> Iterator[str]:
    """Find settings that ask for less than these and fit, those that change least first."""
    gpu, free = machine.has_gpu(model.device), machine.free_bytes(model.device)
    now = estimate_need(checkpoint, weights, memory, model, gpu)
    quants = [model.quant]
    if gpu and checkpoint.stored_quant is None:
        quants += [quant for quant in ("int8", "nf4") if quant != now.quant]
    seen = set()
    chunks, kv_dtypes = (memory.chunk_tokens, 512, 128), dict.fromkeys((model.kv_dtype, "int8"))
    for chunk, quant, kv_dtype in itertools.product(chunks, quants, kv_dtypes):
        form = replace(model, quant=quant, kv_dtype=kv_dtype)
        most = largest_budget(checkpoint, weights, form, int(SPARE * free), gpu, chunk)
        if most is None:
            continue
        budget = min(most, now.budget_tokens)
        changes = [f"--budget {budget}"] if budget < now.budget_tokens else []
        changes += [f"--quant {quant}"] * (quant != model.quant)
        changes += [f"--kv-dtype {kv_dtype}"] * (kv_dtype != model.kv_dtype)
        changes += [f"--chunk {chunk}"] * (chunk != memory.chunk_tokens)
        text = " ".join(changes)
        if text and text not in seen:
            seen.add(text)
            yield text


def _form(need: Need) -> str:
    return need.dtype if need.quant == "none" else need.quant


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
