"""`bench device`: whole models of real shapes on this card. Memory, reading and decoding.

Weights are random: time and memory are those of the shape, and nothing is said of quality.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from indexmem_cli.backbone import Backbone
from indexmem_cli.bench.kernels import measure_ceilings, time_on_cpu, time_on_gpu
from indexmem_cli.bench.rows import Row, spread
from indexmem_cli.bench.shapes import checkpoint_of, make_backbone, weights_of
from indexmem_cli.config import MemoryConfig, ModelConfig
from indexmem_cli.decoding import FixedDecoder, find_attended, read_back
from indexmem_cli.engine import Reader, make_reader
from indexmem_cli.estimate import GPU_OVERHEAD_BYTES, estimate_need
from indexmem_cli.memory.indexer import IndexerConfig, make_indexer, make_indexer_scorer
from indexmem_cli.memory.latent import CentroidMemory
from indexmem_cli.memory.policies import make_scorer
from indexmem_cli.memory.state import LayerState, MemoryState
from indexmem_cli.plan import Plan, make_plan

COLUMNS = (
    "model",
    "quant",
    "kv_dtype",
    "task",
    "batch",
    "tokens",
    "tokens_per_s",
    "ms_per_token",
    "of_floor",
    "share",
    "peak_bytes",
    "kv_bytes",
    "weight_bytes",
    "estimated_weight_bytes",
    "estimated_peak_bytes",
    "estimate_over_measured",
    "out_of_memory",
)
DECODE_TOKENS = 64
LATENT_SLOTS = 64
SHARE_CHUNKS = 16
ROUNDS = 5


@dataclass(frozen=True)
class DeviceConfig:
    """What to run of a whole model."""

    models: tuple[str, ...]
    """Names in `bench.shapes.SHAPES`."""
    quant: str = "nf4"
    """none | int8 | nf4."""
    kv_dtype: str = "model"
    budget_tokens: int = 4096
    chunk_tokens: int = 2048
    policy: str = "keydiff"
    lengths: tuple[int, ...] = (2**15, 2**17, 2**20)
    """Tokens after which the stream is looked at."""
    full_lengths: tuple[int, ...] = (2**12, 2**14, 2**15, 2**17)
    """Tokens of a full cache to compare with, where it fits."""
    batches: tuple[int, ...] = (1, 8)
    """Sequences that are decoded at once."""
    rehearse: bool = False
    """Tiny shapes on the CPU, to see that everything runs."""


def bench_device(config: DeviceConfig) -> Iterator[Row]:
    """Yield rows of memory, reading and decoding for each model."""
    device, dtype = ("cpu", "float32") if config.rehearse else ("cuda", "bfloat16")
    clock = time_on_cpu if config.rehearse else time_on_gpu
    ceilings = measure_ceilings(device, clock, config.rehearse)
    for name in config.models:
        before = _allocated(device)
        backbone = make_backbone(name, config.quant, dtype, device, config.kv_dtype)
        weights = _allocated(device) - before
        row: Row = {"model": name, "quant": config.quant, "kv_dtype": config.kv_dtype}
        row |= {"budget": config.budget_tokens, "chunk": config.chunk_tokens, "dtype": dtype}
        memory = MemoryConfig(config.budget_tokens, config.chunk_tokens, config.policy)
        plan, _ = make_plan(memory, backbone.info.window_tokens)
        reader = make_reader(backbone, plan, memory, [])
        yield from (row | measured for measured in _read(reader, config))
        yield row | _compare_estimate(name, config, dtype, weights, _peak(device) - before)
        yield from (row | r for r in _shares(backbone, plan, config))
        yield from (row | r for r in _decode(reader, weights, ceilings["bytes_per_s"], config))
        del reader
        backbone.detach()
        for batch in config.batches:
            yield from (row | measured for measured in _run_full(backbone, config, batch))
        del backbone
        if device == "cuda":
            torch.cuda.empty_cache()


def _read(reader: Reader, config: DeviceConfig) -> Iterator[Row]:
    """Read one stream of random tokens; look at rate and peak at every length."""
    backbone = reader.backbone
    _reset_peak(backbone)
    started, done = _now(backbone), 0
    for length in config.lengths:
        while done < length:
            for tokens in reader.read([_tokens(backbone, config.chunk_tokens, done)]):
                done += tokens
        seconds = _now(backbone) - started
        yield {
            "task": "read",
            "tokens": done,
            "tokens_per_s": done / seconds,
            "peak_bytes": _peak(backbone.device.type),
            "kv_bytes": reader.state.nbytes,
        }


def _compare_estimate(name: str, config: DeviceConfig, dtype: str, weights: int, peak: int) -> Row:
    """What was foretold from the shape, beside what the allocator says."""
    model = ModelConfig(name, config.quant, dtype, kv_dtype=config.kv_dtype)
    memory = MemoryConfig(config.budget_tokens, config.chunk_tokens, config.policy)
    need = estimate_need(checkpoint_of(name), weights_of(name), memory, model, True)
    foretold = need.total_bytes - GPU_OVERHEAD_BYTES  # of which the allocator knows nothing
    return {
        "task": "estimate",
        "weight_bytes": weights,
        "estimated_weight_bytes": need.weight_bytes,
        "peak_bytes": peak,
        "estimated_peak_bytes": foretold,
        "estimate_over_measured": foretold / peak if peak else None,
    }


def _shares(backbone: Backbone, plan: Plan, config: DeviceConfig) -> Iterator[Row]:
    """What an indexer, and a latent memory beside it, take of the time to read."""
    torch.manual_seed(0)
    kv_heads, size = backbone.kv_shapes[0]
    shape = backbone.model.config
    heads, width = shape.num_attention_heads, shape.hidden_size
    layers = tuple(range(len(backbone.layer_windows)))
    indexer = make_indexer(IndexerConfig("retention", layers, width, kv_heads, heads, size))
    indexer = indexer.to(backbone.device, backbone.model.dtype).requires_grad_(False)
    bare = 0.0
    for task, scorer, slots in (
        ("read by recency", make_scorer("recency"), 0),
        ("read with an indexer", make_indexer_scorer(indexer), 0),
        ("read with an indexer and memory", make_indexer_scorer(indexer), LATENT_SLOTS),
    ):
        reader = Reader(backbone, plan, scorer)
        for part in reader.state.managed:
            part.latent = CentroidMemory(slots) if slots else None
        chunks = [_tokens(backbone, config.chunk_tokens, i) for i in range(SHARE_CHUNKS)]
        list(reader.read(chunks[: SHARE_CHUNKS // 2]))  # fills the budget, tunes the kernels
        started = _now(backbone)
        list(reader.read(chunks[SHARE_CHUNKS // 2 :]))
        seconds = _now(backbone) - started
        bare = bare or seconds
        tokens = config.chunk_tokens * SHARE_CHUNKS // 2
        yield {"task": task, "tokens_per_s": tokens / seconds, "share": 1 - bare / seconds}


def _decode(
    reader: Reader, weights: int, bytes_per_s: float, config: DeviceConfig
) -> Iterator[Row]:
    """Steps of one token over the kept slots, beside the time to read weights and slots once."""
    backbone = reader.backbone
    room = (ROUNDS + 1) * DECODE_TOKENS

    def replayed(state: MemoryState) -> Callable[[], tuple[Tensor, Tensor]]:
        decoder = FixedDecoder(backbone, state, state.seen)

        def step() -> tuple[Tensor, Tensor]:
            logits, _, found = decoder.predict(17, room)
            return logits[0], found

        return step

    def plain(state: MemoryState) -> Callable[[], tuple[Tensor, Tensor]]:
        def step() -> tuple[Tensor, Tensor]:
            logits, _, paid = backbone.predict([17], state, want_attention=True)
            return logits, find_attended(state, paid, state.seen)

        return step

    for batch in config.batches:
        ways = {"decode": replayed} | ({"decode, no graph": plain} if batch == 1 else {})
        for task, make in ways.items():
            run = make(_repeat(reader.state, batch))

            def read_one(_: int, run: Callable[[], tuple[Tensor, Tensor]] = run) -> Any:
                logits, found = run()
                return read_back(logits, found, True)

            seconds = _time_steps(backbone, read_one)
            floor = (weights + batch * reader.state.nbytes) / bytes_per_s
            yield {
                "task": task,
                "batch": batch,
                "tokens": reader.state.seen,
                "slots": reader.state.held,
                "ms_per_token": spread(1e3 * s for s in seconds),
                "of_floor": floor / spread(seconds)["median"] if weights else None,
            }


def _repeat(state: MemoryState, batch: int) -> MemoryState:
    """The same memory for a batch of sequences."""
    many = state.clone()
    for part in many.managed:
        rows = {name: getattr(part, name)[:, :, : part.held] for name in part.buffers}
        rows = {name: kept.expand(batch, *kept.shape[1:]) for name, kept in rows.items()}
        fresh = LayerState(part.limit, part.int8)
        fresh.restore(rows, part.dtype)
        vars(part).update(vars(fresh))
    return many


def _run_full(backbone: Backbone, config: DeviceConfig, batch: int) -> Iterator[Row]:
    """The same model with transformers' own cache and attention, as long as it fits."""
    model = backbone.model
    cache, done = DynamicCache(config=model.config), 0
    started = _now(backbone)
    _reset_peak(backbone)
    try:
        for length in config.full_lengths:
            while done < length:
                ids = _tokens(backbone, config.chunk_tokens, done)
                done += len(ids)
                _plain_step(model, ids, cache, batch)
            row = {"task": "full cache", "batch": batch, "tokens": done}
            row["tokens_per_s"] = batch * done / (_now(backbone) - started)
            began = _now(backbone)
            seconds = _time_steps(
                backbone, lambda token: int(_plain_step(model, [token], cache, batch).argmax())
            )
            row["ms_per_token"] = spread(1e3 * s for s in seconds)
            yield row | {"peak_bytes": _peak(backbone.device.type)}
            started += _now(backbone) - began
    except torch.OutOfMemoryError:
        yield {"task": "full cache", "batch": batch, "tokens": done, "out_of_memory": True}


@torch.no_grad()
def _plain_step(model: PreTrainedModel, ids: list[int], cache: DynamicCache, batch: int) -> Tensor:
    tokens = torch.tensor([ids] * batch, device=model.device)
    out = model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return out.logits[0, -1]


def _time_steps(backbone: Backbone, step: Callable[[int], object]) -> list[float]:
    """Seconds a token that the host waits for, in rounds; the first warms up and is left out."""
    seconds = []
    for _ in range(ROUNDS + 1):
        started = _now(backbone)
        for _ in range(DECODE_TOKENS):
            step(17)
        seconds.append((_now(backbone) - started) / DECODE_TOKENS)
    return seconds[1:]


def _tokens(backbone: Backbone, count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    words = backbone.model.config.vocab_size
    return list(map(int, torch.randint(words, (count,), generator=generator)))


def _now(backbone: Backbone) -> float:
    if backbone.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _allocated(device: str) -> int:
    return torch.cuda.memory_allocated() if device == "cuda" else 0


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else 0


def _reset_peak(backbone: Backbone) -> None:
    if backbone.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
