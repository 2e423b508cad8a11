"""`bench speed`: reading rate beside the bare model, which bounds this design, and the full cache.

All readers take turns in one process, so that a slow minute of the machine hits them alike: in
every round each reads the next tokens of its own stream, and ratios compare times of one round.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, Qwen3Config, Qwen3ForCausalLM
from transformers.utils.logging import disable_progress_bar

from indexmem_cli.bench import rows
from indexmem_cli.bench.rows import Row
from indexmem_cli.checkpoint import Checkpoint, find_checkpoint, read_checkpoint
from indexmem_cli.config import MemoryConfig, ModelConfig
from indexmem_cli.engine import make_reader
from indexmem_cli.errors import ConfigError
from indexmem_cli.loading import load_backbone
from indexmem_cli.plan import make_plan

OPENING_TOKENS = 8
QUESTION_TOKENS = 24
WARMUP_CHUNKS = 8  # fills the memory, and at 512 each passes a window of 2048 or 4096 tokens

Seconds = dict[str, list[float]]  # of each reader, for each of its rounds


@dataclass(frozen=True)
class SpeedConfig:
    """What reads, and how far."""

    model: ModelConfig
    shape: str | None = None
    """In place of the model a Qwen3 of random weights: width x layers, as 768x12."""
    policies: tuple[str, ...] = ("recency", "question")
    budget_tokens: int = 1024
    chunk_tokens: int = 512
    lengths: tuple[int, ...] = (16384, 65536)
    """Of the full cache."""
    round_tokens: int = 4096
    """That each reader reads in turn."""
    repeats: int = 3
    threads: int = 1

    def __post_init__(self) -> None:
        if not self.lengths or any(length % self.round_tokens for length in self.lengths):
            raise ConfigError(
                f"one length or more: multiples of a round of {self.round_tokens:,} tokens"
            )


class Plain:
    """The plain model's forward, no logits: each chunk for itself, or with transformers' cache."""

    def __init__(self, decoder: Any, cache: DynamicCache | None = None) -> None:
        self.decoder, self.cache = decoder, cache

    @torch.no_grad()
    def read(self, ids: torch.Tensor) -> None:
        """Read the next chunk, int64 [1, T]."""
        self.decoder(input_ids=ids, past_key_values=self.cache, use_cache=self.cache is not None)


class Engine:
    """The engine with one policy."""

    def __init__(self, backbone: Any, config: MemoryConfig) -> None:
        question = list(range(QUESTION_TOKENS))
        window = backbone.info.window_tokens
        plan, notices = make_plan(config, window, OPENING_TOKENS, len(question))
        if notices:  # another budget than the row would say
            raise ConfigError("\n".join(notices))
        self.reader = make_reader(backbone, plan, config, question)

    def read(self, ids: torch.Tensor) -> None:
        """Read the next chunk, int64 [1, T]."""
        list(self.reader.read(ids.tolist()))


def bench_speed(config: SpeedConfig) -> Iterator[Row]:
    """Yield a row for each reader, and one for each length of the full cache.

    Raises:
        ConfigError: the budget does not fit the model.
    """
    torch.set_num_threads(config.threads)
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        shape, name = config.shape, config.model.model
        checkpoint = _random_model(shape, folder) if shape else find_checkpoint(name)
        yield from measure(checkpoint, config)


def measure(checkpoint: Checkpoint, options: SpeedConfig) -> list[Row]:
    """Let the readers take turns; return a row for each, and one for each length of the full cache.

    Rates are in tokens/s.
    """
    device, dtype = options.model.device, options.model.dtype
    config = ModelConfig(checkpoint.id, "none", dtype, device, offline=True)
    backbone, plain = load_backbone(checkpoint, config), load_backbone(checkpoint, config)
    plain.detach()
    sizes = options.budget_tokens, options.chunk_tokens
    memories = [MemoryConfig(*sizes, policy, recall=False) for policy in options.policies]
    repeats = []
    for _ in range(options.repeats):
        readers: dict[str, Any] = {"bare": Plain(plain.decoder)}
        readers |= {str(memory.policy): Engine(backbone, memory) for memory in memories}
        readers["full"] = Plain(plain.decoder, DynamicCache())
        repeats.append(_take_turns(readers, checkpoint.config["vocab_size"], options))
    common = rows.common_fields(checkpoint, backbone.info.device) | {
        "benchmark": "speed",
        "dtype": backbone.info.dtype,
        "parameters": plain.model.num_parameters(),
        "budget_tokens": options.budget_tokens,
        "chunk_tokens": options.chunk_tokens,
        "question_tokens": QUESTION_TOKENS,
        "round_tokens": options.round_tokens,
        "repeats": options.repeats,
        "seed": 0,
    }
    found = [{"mode": "bare", "kv_bytes": 0} | _beside_bare("bare", repeats, options.round_tokens)]
    allowed = _allowed_of_bare(plain, options)
    for name in options.policies:
        kept = {"mode": name, "kv_bytes": readers[name].reader.state.nbytes}
        found.append(
            kept | _beside_bare(name, repeats, options.round_tokens) | {"allowed_of_bare": allowed}
        )
    for length in options.lengths:
        kept = {"mode": "full", "kv_bytes": length * plain.kv_bytes_per_token}
        found.append(kept | _beside_full(length, repeats, options.round_tokens))
    return [common | row for row in found]


def _take_turns(readers: dict[str, Any], vocabulary: int, options: SpeedConfig) -> Seconds:
    """Let every reader read random tokens, a round at a time, after a warm-up."""
    device = readers["full"].decoder.device
    chance = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (1, max(options.lengths)), generator=chance).to(device)
    full = Plain(readers["full"].decoder, DynamicCache())  # the measured one starts empty
    for reader in (readers | {"full": full}).values():
        size = options.chunk_tokens
        for chunk in ids[:, : WARMUP_CHUNKS * size].split(size, dim=1):
            reader.read(chunk)
    seconds: Seconds = {name: [] for name in readers}
    for tokens in ids.split(options.round_tokens, dim=1):
        for name, reader in readers.items():
            _wait(device)
            started = time.perf_counter()
            for chunk in tokens.split(options.chunk_tokens, dim=1):
                reader.read(chunk)
            _wait(device)
            seconds[name].append(time.perf_counter() - started)
    return seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _allowed_of_bare(plain: Any, options: SpeedConfig) -> float:
    """Bare model's operations by the engine's, without scoring: no engine can reach more."""
    inner = plain.model.num_parameters() - plain.model.get_input_embeddings().weight.numel()
    config = plain.model.config.get_text_config()
    width = config.num_attention_heads * plain.decoder.layers[0].self_attn.head_dim
    own = (options.chunk_tokens + 1) / 2  # tokens of its chunk that one sees, on average
    per_slot = 4 * width * config.num_hidden_layers
    whole = 2 * inner + per_slot * (options.budget_tokens + own)
    return float((2 * inner + per_slot * own) / whole)


def _beside_bare(name: str, repeats: list[Seconds], round_tokens: int) -> Row:
    """Rate of a reader, and its share of the bare model's."""
    own = [seconds for run in repeats for seconds in run[name]]
    bare = [seconds for run in repeats for seconds in run["bare"]]
    return {
        "n": len(own),
        "tokens_per_s": rows.spread(round_tokens / seconds for seconds in own),
        "of_bare": rows.spread(b / s for b, s in zip(bare, own, strict=True)),
    }


def _beside_full(length: int, repeats: list[Seconds], round_tokens: int) -> Row:
    """Rate of the full cache up to a length, rate in its last round, and how often others' rates.

    `x_over_full` is over all rounds up to the length, `x_over_full_last` in the last of them.
    """
    end = length // round_tokens
    row: Row = {"n": len(repeats), "length_tokens": length}
    row["tokens_per_s"] = rows.spread(length / sum(run["full"][:end]) for run in repeats)
    row["last_tokens_per_s"] = rows.spread(round_tokens / run["full"][end - 1] for run in repeats)
    for name in [name for name in repeats[0] if name != "full"]:
        total = [sum(run["full"][:end]) / sum(run[name][:end]) for run in repeats]
        last = [run["full"][end - 1] / run[name][end - 1] for run in repeats]
        row |= {
            f"{name}_over_full": rows.spread(total),
            f"{name}_over_full_last": rows.spread(last),
        }
    return row


def _random_model(shape: str, folder: str) -> Checkpoint:
    """Write a Qwen3 of seeded random weights; `shape`: width x layers, with heads of 64."""
    width, layers = map(int, shape.split("x"))
    config = Qwen3Config(
        vocab_size=32768,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 128,
        head_dim=64,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return read_checkpoint(f"random-{shape}", Path(folder))


def tabulate(found: Sequence[Row]) -> list[tuple[list[Row], list[str]]]:
    """Return two tables with their columns: beside the bare model, and beside the full cache."""
    full = [row for row in found if row["mode"] == "full"]
    others = [row for row in found if row["mode"] != "full"]
    ratios = [name for row in full[:1] for name in row if "_over_full" in name]
    columns = ["length_tokens", "kv_bytes", "tokens_per_s", "last_tokens_per_s", *ratios]
    beside = ["mode", "kv_bytes", "tokens_per_s", "of_bare", "allowed_of_bare"]
    return [(others, beside), (full, ["mode", *columns])]
