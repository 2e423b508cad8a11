"""The methods that `bench quality` compares: full attention, every scorer, recall, passages."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from indexmem_cli.bench.baselines import best_passages
from indexmem_cli.bench.streams import Stream, open_full, open_stream
from indexmem_cli.bench.suites import MAIN, Method, add_method
from indexmem_cli.config import FOCUS, POLICIES, AnswerConfig, MemoryConfig
from indexmem_cli.documents import Sources, open_text
from indexmem_cli.language_model import LanguageModel
from indexmem_cli.session import Memory

PASSAGE_CHARS = 500
"""About the size of a block that recall reads again; a third of the budget where that is less."""


@dataclass(frozen=True)
class Asked:
    """A question on a text, and what may be kept."""

    text: str
    question: str
    max_tokens: int
    chunk_tokens: int
    budget_tokens: int


@dataclass(frozen=True)
class Reply:
    """An answer, and what it took."""

    text: str
    kv_bytes: int
    """Of the keys and values kept when the text was read."""
    read_s: float
    answer_s: float


def answer_by_stream(
    model: LanguageModel, asked: Asked, open: Callable[[LanguageModel, Asked], Stream | None]
) -> Reply | None:
    """Read all of the text in a stream, then answer from what it keeps."""
    stream = open(model, asked)
    if stream is None:
        return None
    ids = model.tokenizer.encode(asked.text)
    closing = model.prompt.closing(model.tokenizer.encode(asked.question))
    started = time.perf_counter()
    stream.read(ids)
    read, kept = time.perf_counter(), stream.nbytes
    given = stream.write(closing, AnswerConfig(asked.max_tokens), model.backbone.eos_ids)
    text = model.tokenizer.decode(given).strip()
    return Reply(text, kept, read - started, time.perf_counter() - read)


answer_in_full = partial(answer_by_stream, open=open_full)
"""Keep everything, as an ordinary cache does; None beyond the model's trained window."""


def answer_streamed(model: LanguageModel, asked: Asked, **settings: Any) -> Reply:
    """Read in a stream within the budget, as `indexmem ask` does.

    Args:
        settings: fields of `MemoryConfig`: the policy, whether there is recall.
    """
    memory = MemoryConfig(asked.budget_tokens, asked.chunk_tokens, **settings)
    sources = Sources([open_text(asked.text)], name="text")
    started = time.perf_counter()
    answer = Memory(sources, memory, engine=model).ask(asked.question, max_tokens=asked.max_tokens)
    read_s = answer.timing.read_s
    return Reply(
        answer.text, answer.memory.kv_bytes, read_s, time.perf_counter() - started - read_s
    )


def answer_passages(model: LanguageModel, asked: Asked) -> Reply | None:
    """Give the model the best passages by BM25 that the budget has room for, and no memory.

    What it keeps is what was read of them, so the budget is theirs; the window is the limit.
    """
    started = time.perf_counter()
    window = model.backbone.info.window_tokens
    room = min(asked.budget_tokens, window - asked.max_tokens - window // 8)
    chars_per_token = len(asked.text) / max(1, len(model.tokenizer.encode(asked.text)))
    size = min(PASSAGE_CHARS, int(room * chars_per_token / 3))
    found = best_passages(asked.text, asked.question, size)
    taken: list[tuple[int, str]] = []
    for place, passage in found:
        room -= len(model.tokenizer.encode(passage))
        if room < 0:
            break
        taken.append((place, passage))
    text = "\n".join(passage for _, passage in sorted(taken)) or "-"
    reply = answer_in_full(
        model, Asked(text, asked.question, asked.max_tokens, asked.chunk_tokens, 0)
    )
    if reply is None:
        return None
    answer_s = time.perf_counter() - started  # nothing was read before the question came
    return Reply(reply.text, reply.kv_bytes, 0.0, answer_s)


for _name, _method in {
    "full": Method(answer_in_full, uses_budget=False, open=open_full, group=MAIN),
    "recall": Method(answer_streamed, group=MAIN),
    "passages": Method(answer_passages, group=MAIN),
}.items():
    add_method(_name, _method)
for _policy in POLICIES:
    # What the question decides cannot be read without one.
    _open = None if _policy == FOCUS else partial(open_stream, policy=_policy)
    _answer = partial(answer_streamed, policy=_policy, recall=False)
    add_method(_policy, Method(_answer, open=_open, group=MAIN))
