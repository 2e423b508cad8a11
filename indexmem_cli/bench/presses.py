"""kvpress's scorers as methods: under the same streaming budget, and one-shot as in its papers.

kvpress (github.com/NVIDIA/kvpress, Apache-2.0) is imported only when it is asked for. It wants an
older transformers than this package, so it goes into a folder of its own on PYTHONPATH:
benchmarks/README.md. It runs on the plain model, at true positions, without pins and spans.
"""

import contextlib
import copy
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from indexmem_cli.bench.methods import answer_by_stream
from indexmem_cli.bench.plain import kv_bytes
from indexmem_cli.bench.streams import predict_losses
from indexmem_cli.bench.suites import Method, add_method
from indexmem_cli.checkpoint import find_checkpoint
from indexmem_cli.config import AnswerConfig, ModelConfig
from indexmem_cli.engine import DECODE_BLOCK_TOKENS, sample
from indexmem_cli.errors import ConfigError
from indexmem_cli.language_model import LanguageModel
from indexmem_cli.loading import load_backbone

if TYPE_CHECKING:
    from indexmem_cli.bench.methods import Asked

PRESSES = {
    "keydiff": "KeyDiffPress",
    "snapkv": "SnapKVPress",
    "tova": "TOVAPress",
    "expected-attention": "ExpectedAttentionPress",
    "knorm": "KnormPress",
    "recency": "StreamingLLMPress",
}
PREFIX = "kvpress-"


def is_installed() -> bool:
    """Say whether kvpress can be imported."""
    return importlib.util.find_spec("kvpress") is not None


@dataclass
class PressStream:
    """A plain transformers model under a press."""

    model: LanguageModel
    plain: Any
    press: Any
    """Of kvpress; None where nothing is evicted any more."""
    chunk_tokens: int
    in_one: bool = False
    cache: DynamicCache = field(init=False)
    seen: int = 0

    def __post_init__(self) -> None:
        self.cache = DynamicCache(config=self.plain.config)

    @property
    def nbytes(self) -> int:
        return kv_bytes(self.cache)

    def fork(self) -> "PressStream":
        """Return a stream with a copy of the cache, to answer from without changing this one."""
        fork = copy.copy(self)
        fork.cache, fork.press = copy.deepcopy((self.cache, self.press))
        return fork

    @torch.no_grad()
    def read(self, ids: Sequence[int]) -> None:
        for _ in self._states([*self.model.prompt.opening, *ids]):
            pass
        if self.in_one:
            self.press = None  # after that, nothing is evicted

    @torch.no_grad()
    def losses(self, ids: Sequence[int]) -> list[float]:
        found: list[float] = predict_losses(self.plain, self._states(ids), ids)
        return found

    @torch.no_grad()
    def write(self, closing: Sequence[int], config: AnswerConfig, stop: set[int]) -> list[int]:
        chance = torch.Generator().manual_seed(config.seed)
        given: list[int] = []
        if self.press is not None:
            self.press.compression_interval = DECODE_BLOCK_TOKENS
        state = self._step(closing)[-1]  # not under the press: the question stays, as it does here
        with self._pressed():
            while True:
                logits = self.plain.get_output_embeddings()(state).float()
                token = sample(logits, config.temperature, chance)
                if token in stop:
                    return given
                given.append(token)
                if len(given) == config.max_tokens:
                    return given
                state = self._step([token])[-1]

    def _states(self, ids: Sequence[int]) -> Iterator[Tensor]:
        size = len(ids) if self.in_one else self.chunk_tokens
        # The first chunk takes what is over: SnapKV wants 64 tokens in the last one.
        cuts = [0, *range(len(ids) % size + size, len(ids) + 1, size)]
        if len(ids) <= size:
            cuts = [0, len(ids)]
        with self._pressed():
            for first, end in zip(cuts, cuts[1:], strict=False):
                yield self._step(ids[first:end])

    def _pressed(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self.press is None else self.press(self.plain)

    def _step(self, ids: Sequence[int]) -> Tensor:
        """Read tokens at their true positions; return the decoder's last states, [T, d_model]."""
        device = self.plain.device
        places = torch.arange(self.seen, self.seen + len(ids), device=device)
        out = self.plain.model(
            input_ids=torch.tensor([list(ids)], device=device),
            past_key_values=self.cache,
            position_ids=places[None],
            cache_position=places,  # the hooks of kvpress 0.5.5 want it
            use_cache=True,
        )
        self.seen += len(ids)
        return out.last_hidden_state[0]


def open_press(
    model: LanguageModel, asked: "Asked", *, name: str, once: bool = False
) -> PressStream | None:
    """Open a stream under a press of kvpress.

    Args:
        once: whether all is read before anything is evicted; None is returned where it is too long.

    Raises:
        ConfigError: kvpress is not installed.
    """
    if not once:
        return make_press_stream(model, name, asked.budget_tokens, asked.chunk_tokens)
    tokens = len(model.prompt.opening) + len(model.tokenizer.encode(asked.text))
    closing = model.prompt.closing(model.tokenizer.encode(asked.question))
    if tokens + len(closing) + asked.max_tokens > model.backbone.info.window_tokens:
        return None
    return make_press_stream(model, name, asked.budget_tokens, asked.chunk_tokens, tokens)


def make_press_stream(
    model: LanguageModel, name: str, budget_tokens: int, chunk_tokens: int, once: int | None = None
) -> PressStream:
    """Make a stream under a press of kvpress.

    Args:
        name: of its class. once: tokens of the text, where all is read before anything is evicted.

    Raises:
        ConfigError: kvpress is not installed.
    """
    kvpress, info = import_kvpress(), model.backbone.info
    plain, scorer = _load_plain(model.name, info.dtype, info.device), getattr(kvpress, name)()
    if once is None:
        press = kvpress.DecodingPress(scorer, compression_interval=1, target_size=budget_tokens)
        return PressStream(model, plain, press, chunk_tokens)
    # Half a token more, so that rounding down leaves the budget.
    scorer.compression_ratio = max(0.0, 1 - (budget_tokens + 0.5) / once)
    return PressStream(model, plain, scorer, chunk_tokens, in_one=True)


@lru_cache(maxsize=1)
def import_kvpress() -> Any:
    """Import kvpress, and put back the attention functions that it wraps on import.

    The wrapping is for presses that mask heads, which none of `PRESSES` does, and it hands
    arguments on by position that are not in that place in this package's attention.

    Raises:
        ConfigError: it is not installed.
    """
    if not is_installed():
        raise ConfigError("kvpress is not installed", "see benchmarks/README.md, or leave it out")
    before = dict(ALL_ATTENTION_FUNCTIONS.items())
    import kvpress

    for name, function in before.items():
        ALL_ATTENTION_FUNCTIONS[name] = function
    return kvpress


@lru_cache(maxsize=1)
def _load_plain(name: str, dtype: str, device: str) -> Any:
    """Load the model a second time, as transformers has it."""
    backbone = load_backbone(find_checkpoint(name), ModelConfig(name, dtype=dtype, device=device))
    backbone.detach()
    return backbone.model


for _short, _name in PRESSES.items():
    for _once in (False, True):
        _open = partial(open_press, name=_name, once=_once)
        _method = Method(
            partial(answer_by_stream, open=_open), open=None if _once else _open, group="kvpress"
        )
        add_method(f"{PREFIX}{_short}{'-once' * _once}", _method)
