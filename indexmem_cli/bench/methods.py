"""The methods that `bench quality` compares: full attention, every scorer, recall, passages."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from indexmem_cli.bench.baselines import best_passages
from indexmem_cli.bench.suites import METHODS, Method, add_method
from indexmem_cli.config import LEARNED, POLICIES, AnswerConfig, MemoryConfig
from indexmem_cli.documents import Sources, open_text
from indexmem_cli.engine import Reader
from indexmem_cli.language_model import LanguageModel
from indexmem_cli.memory.policies import make_scorer
from indexmem_cli.plan import Plan
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


def answer_in_full(model: LanguageModel, asked: Asked) -> Reply | None:
    """Keep everything, as an ordinary cache does; None beyond the model's trained window."""
    ids = model.tokenizer.encode(asked.text)
    closing = model.prompt.closing(model.tokenizer.encode(asked.question))
    opening, window = model.prompt.opening, model.backbone.info.window_tokens
    needed = len(opening) + len(ids) + len(closing) + asked.max_tokens
    if needed > window:
        return None
    plan = Plan(needed, asked.chunk_tokens, len(opening), 0, 1, needed, window)
    reader = Reader(model.backbone, plan, make_scorer("recency"), closing)
    size, started = asked.chunk_tokens, time.perf_counter()
    for _ in reader.read([*filter(None, [opening]), *_cut(ids, size)]):
        pass
    read, kept = time.perf_counter(), reader.state.nbytes
    steps = reader.answer(closing, AnswerConfig(asked.max_tokens), model.backbone.eos_ids)
    text = model.tokenizer.decode([step.token_id for step in steps]).strip()
    return Reply(text, kept, read - started, time.perf_counter() - read)


def answer_streamed(model: LanguageModel, asked: Asked, **settings: object) -> Reply:
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


def _cut(ids: Sequence[int], size: int) -> list[Sequence[int]]:
    return [ids[at : at + size] for at in range(0, len(ids), size)]


add_method("full", Method(answer_in_full, uses_budget=False))
add_method("recall", Method(answer_streamed))
add_method("passages", Method(answer_passages))
for _policy in POLICIES:
    add_method(_policy, Method(partial(answer_streamed, policy=_policy, recall=False)))


def usable_methods(model: LanguageModel) -> list[str]:
    """Return all methods that a model can be asked by: `learned` needs an adapter."""
    return [name for name in METHODS if name != LEARNED or model.backbone.reads_by_adapter]
