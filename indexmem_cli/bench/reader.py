"""A model that answers questions on texts, loaded once: with a full cache, or streaming past it."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from indexmem_cli.checkpoint import find_checkpoint
from indexmem_cli.config import AnswerConfig, MemoryConfig, ModelConfig
from indexmem_cli.engine import make_reader
from indexmem_cli.loading import load_backbone, load_prompt
from indexmem_cli.plan import Plan, make_plan
from indexmem_cli.tokens import load_tokenizer

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
        self.checkpoint = find_checkpoint(config.model, config.offline)
        self.tokenizer = load_tokenizer(self.checkpoint.path)
        self.prompt = load_prompt(self.checkpoint)
        self.backbone = load_backbone(self.checkpoint, config)
        self.window_tokens = self.checkpoint.window_tokens

    def answer(self, text: str | Sequence[int], question: str) -> Reply:
        """Answer greedily on a text or its tokens.

        What fits the trained window is kept whole, as by an ordinary cache. A longer text is read
        as by `ask --focus --no-recall`: in a stream, in the budget that the window allows.
        """
        ids = self.tokenizer.encode(text) if isinstance(text, str) else list(text)
        closing = self.prompt.closing(self.tokenizer.encode(question))
        opening = self.prompt.opening
        needed = len(opening) + len(ids) + len(closing) + MAX_ANSWER_TOKENS
        streamed = needed > self.window_tokens
        memory = MemoryConfig(policy="question" if streamed else "recency")
        if streamed:
            lengths = (len(opening), len(closing))
            asks_for = self.checkpoint.answer_from_tokens
            plan, _ = make_plan(memory, self.window_tokens, *lengths, asks_for)
        else:
            plan = Plan(needed, CHUNK_TOKENS, len(opening), 0, 1, needed, self.window_tokens)
        reader = make_reader(self.backbone, plan, memory, closing)
        size = plan.chunk_tokens
        chunks = [ids[at : at + size] for at in range(0, len(ids), size)]
        for _ in reader.read([opening, *chunks] if opening else chunks):
            pass
        steps = reader.answer(closing, AnswerConfig(MAX_ANSWER_TOKENS), self.backbone.eos_ids)
        return Reply(self.tokenizer.decode([s.token_id for s in steps]).strip(), streamed)

    def release(self) -> PreTrainedModel:
        """Return the plain transformers model; this reader cannot answer any more."""
        self.backbone.detach()
        return self.backbone.model
