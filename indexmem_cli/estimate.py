"""How much memory a model needs at a budget, worked out from its files without loading it."""

from collections.abc import Iterable
from dataclasses import dataclass

from indexmem_cli.checkpoint import DTYPE_BYTES, LARGE_MODEL_BYTES, Checkpoint
from indexmem_cli.config import MemoryConfig, ModelConfig
from indexmem_cli.errors import BackboneError, ConfigError
from indexmem_cli.plan import Plan, plan_ahead

CARD_GIB = (8, 12, 16, 24, 48, 80)
QUESTION_TOKENS = 128
"""Room for the question and what surrounds it."""
CPU_OVERHEAD_BYTES = 480 * 2**20
"""torch and transformers themselves; measured on Linux with torch 2.13, 2026-11."""
GPU_OVERHEAD_BYTES = 700 * 2**20
"""CUDA context, libraries and what the allocator cannot use; assumed, not measured."""

# Bytes per weight of a quantised matrix, and per row, as bitsandbytes stores them: nf4 has a byte
# of scale per 64 weights and 4 bytes per 256 of those (double quantisation); int8 4 bytes per row.
_QUANTISED = {"nf4": (0.5 + 1 / 64 + 4 / (64 * 256), 0), "int8": (1.0, 4)}
_KEPT_WHOLE = ("embed", "lm_head")
# What bitsandbytes stores beside its weights: `x.weight.absmax` and the like for 4 bits.
_BESIDE = (".SCB", ".weight_format")
_STATE = ".quant_state."


@dataclass(frozen=True)
class Weights:
    """What the weight files hold, by how it is stored after loading."""

    matrices: int
    """Parameters that quantisation shrinks."""
    rows: int
    """Rows of those matrices."""
    others: int
    """Parameters that stay in the number format computed in: embeddings, norms, biases."""
    file_bytes: int

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.matrices + self.others

    def nbytes(self, quant: str, dtype: str) -> int:
        """Bytes in memory in one form of loading."""
        each = DTYPE_BYTES[dtype]
        per_weight, per_row = _QUANTISED.get(quant, (each, 0))
        return int(self.matrices * per_weight + self.rows * per_row + self.others * each)


@dataclass(frozen=True)
class Need:
    """Memory that reading and answering takes at its peak, in bytes."""

    quant: str
    dtype: str
    budget_tokens: int
    weight_bytes: int
    kv_bytes: int
    """The memory while reading, the copy that answers, and rotated keys."""
    working_bytes: int
    """One chunk on its way through a layer."""
    overhead_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weight_bytes + self.kv_bytes + self.working_bytes + self.overhead_bytes


def sort_weights(shapes: Iterable[tuple[str, list[int]]], file_bytes: int, tied: bool) -> Weights:
    """Sort tensors, by name and shape, into what quantisation shrinks and what it leaves."""
    matrices = rows = others = 0
    shapes = list(shapes)
    packed = {name.partition(_STATE)[0] for name, _ in shapes if _STATE in name}
    for name, shape in shapes:
        if ".weight." in name or name.endswith(_BESIDE):
            continue
        count = 2 if name in packed else 1  # two weights of 4 bits in a byte
        for size in shape:
            count *= size
        if tied and "lm_head" in name:
            continue  # the embedding, stored twice
        if len(shape) == 2 and not any(part in name for part in _KEPT_WHOLE):
            matrices, rows = matrices + count, rows + shape[0]
        else:
            others += count
    return Weights(matrices, rows, others, file_bytes)


def read_weights(checkpoint: Checkpoint) -> Weights:
    """Read names and shapes from the heads of the weight files.

    Raises:
        BackboneError: a file is cut off, or no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    shapes = []
    for file in checkpoint.weight_files:
        try:
            with safe_open(file, "np") as tensors:
                names = tensors.keys()
                shapes += [(name, tensors.get_slice(name).get_shape()) for name in names]
        except (OSError, SafetensorError) as error:
            raise BackboneError(
                f"{checkpoint.id}: {file.name} is damaged: {error}", "indexmem doctor --fix"
            ) from error
    tied = bool(checkpoint.config.get("tie_word_embeddings"))
    return sort_weights(shapes, checkpoint.weight_bytes, tied)


def choose_form(checkpoint: Checkpoint, weights: Weights, model: ModelConfig, gpu: bool) -> Need:
    """Say what `auto` comes to, as a need without memory: quant, dtype and weights."""
    dtype = model.dtype if model.dtype != "auto" else "bfloat16" if gpu else "float32"
    large_on_gpu = gpu and weights.file_bytes > LARGE_MODEL_BYTES
    quant = checkpoint.form_of_stored(model.quant, large_on_gpu) or model.quant
    if quant == "auto":
        quant = "nf4" if large_on_gpu else "none"
    as_stored = checkpoint.stored_quant == quant
    weight_bytes = weights.file_bytes if as_stored else weights.nbytes(quant, dtype)
    overhead = GPU_OVERHEAD_BYTES if gpu else CPU_OVERHEAD_BYTES
    return Need(quant, dtype, 0, weight_bytes, 0, 0, overhead)


def estimate_need(
    checkpoint: Checkpoint, weights: Weights, memory: MemoryConfig, model: ModelConfig, gpu: bool
) -> Need:
    """Estimate the peak of reading and answering at a budget.

    Raises:
        ConfigError: the budget does not go with the model's window.
    """
    form = choose_form(checkpoint, weights, model, gpu)
    plan = plan_ahead(memory, checkpoint.window_tokens)
    return Need(
        form.quant,
        form.dtype,
        plan.budget_tokens,
        form.weight_bytes,
        _kv_bytes(checkpoint, plan, form.dtype, model.kv_dtype == "int8", gpu),
        _working_bytes(checkpoint, plan, form.dtype, model.kv_dtype == "int8"),
        form.overhead_bytes,
    )


def largest_budget(
    checkpoint: Checkpoint,
    weights: Weights,
    model: ModelConfig,
    total_bytes: int,
    gpu: bool = True,
    chunk_tokens: int | None = None,
) -> int | None:
    """Return the largest budget, in tokens, with which a device of this size is enough.

    At most what fits the model's window; None where not even a budget of 256 fits.
    """
    low, high = 256, checkpoint.window_tokens

    def fits(budget: int) -> bool:
        try:
            memory = MemoryConfig(budget, chunk_tokens)
            need = estimate_need(checkpoint, weights, memory, model, gpu)
        except ConfigError:
            return False
        return need.total_bytes <= total_bytes

    if not fits(low):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return plan_ahead(MemoryConfig(low, chunk_tokens), checkpoint.window_tokens).budget_tokens


def _kv_bytes(checkpoint: Checkpoint, plan: Plan, dtype: str, int8: bool, gpu: bool) -> int:
    heads, size = checkpoint.kv_shape
    pair = 2 * heads * size * DTYPE_BYTES[dtype]
    stored = 2 * heads * (size + 4) if int8 else pair
    slots = plan.budget_tokens + plan.chunk_tokens + QUESTION_TOKENS
    copied = min(2 * plan.budget_tokens, slots)  # a copy has room for twice what it holds
    total = 0.0
    for window in checkpoint.layer_windows:
        if window is None:
            # Reading: keys, values, and 12 bytes of position and score per head. Answering: a copy
            # and its keys rotated, which a GPU does as it reads int8 ones.
            rotated = 0.0 if int8 and gpu else 0.5 * pair
            total += slots * (stored + 12 * heads) + copied * (stored + rotated)
        else:
            total += 2 * (window + plan.chunk_tokens) * pair
    return int(total)


def _working_bytes(checkpoint: Checkpoint, plan: Plan, dtype: str, int8: bool) -> int:
    config, (kv_heads, size) = checkpoint.config, checkpoint.kv_shape
    each, tokens = DTYPE_BYTES[dtype], plan.chunk_tokens
    slots = plan.budget_tokens + tokens + QUESTION_TOKENS
    heads = int(config["num_attention_heads"])
    layer = tokens * each * (4 * int(config["hidden_size"]) + 3 * int(config["intermediate_size"]))
    attention = tokens * heads * size * each * 4 + slots * heads * size * each * 2
    if int8:  # the rows of one layer as numbers of the dtype computed in
        attention += slots * kv_heads * size * (2 * each + 4)
    mask = tokens * slots * (each + 1)
    probe = 3 * 4 * QUESTION_TOKENS * slots * heads
    logits = 4 * 2 * int(config["vocab_size"])
    return max(layer, attention + mask, probe) + logits
