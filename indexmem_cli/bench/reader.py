"""A model that answers questions on texts, loaded once: with a full cache, or streaming past it."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from indexmem_cli.bench.streams import EngineStream
from indexmem_cli.config import AnswerConfig, MemoryConfig, ModelConfig
from indexmem_cli.engine import make_reader
from indexmem_cli.language_model import load_language_model
from indexmem_cli.plan import Plan, make_plan

MAX_ANSWER_TOKENS = 48
CHUNK_TOKENS = 512


@dataclass(frozen=True)
class Reply:
    """An answer, and whether the text was streamed because it is longer than the window."""

    text: str
    streamed: bool


class ModelReader:
    """A loaded model, asked through the product's engine."""

    def __init__(self, config: ModelConfig) -> None:
        self.model = load_language_model(config)

    def answer(self, text: str | Sequence[int], question: str) -> Reply:
        """Answer greedily on a text or its tokens.

        What fits the trained window is kept whole, as by an ordinary cache. A longer text is read
        as by `ask --focus --no-recall`: in a stream, in the budget that the window allows.
        """
        model, window = self.model, self.model.backbone.info.window_tokens
        ids = model.tokenizer.encode(text) if isinstance(text, str) else list(text)
        closing = model.prompt.closing(model.tokenizer.encode(question))
        lengths = (len(model.prompt.opening), len(closing))
        needed = sum(lengths) + len(ids) + MAX_ANSWER_TOKENS
        streamed = needed > window
        memory = MemoryConfig(policy="question" if streamed else "recency")
        if streamed:
            plan, _ = make_plan(memory, window, *lengths, model.answer_from_tokens)
        else:
            plan = Plan(needed, CHUNK_TOKENS, lengths[0], 0, 1, needed, window)
        stream = EngineStream(model, make_reader(model.backbone, plan, memory, closing))
        stream.read(ids)
        given = stream.write(closing, AnswerConfig(MAX_ANSWER_TOKENS), model.backbone.eos_ids)
        return Reply(model.tokenizer.decode(given).strip(), streamed)

    def release(self) -> PreTrainedModel:
        """Return the plain transformers model; this reader cannot answer any more."""
        self.model.backbone.detach()
        return self.model.backbone.model
