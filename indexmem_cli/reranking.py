"""The model itself, asked of passages one by one how likely each answers the question.

What it gives to the question after a passage is the score of Sachan et al. 2022 (arXiv:2204.07496);
what it gives to refusing an answer is there because the prompt asks for a refusal where the
document does not say.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from indexmem_cli.archive import Block
from indexmem_cli.backbone import Backbone
from indexmem_cli.config import NOT_STATED
from indexmem_cli.loading import Prompt
from indexmem_cli.memory.recall import Verdict
from indexmem_cli.tokens import Tokenizer

MOST_QUESTION_TOKENS = 256
"""Of a longer question nothing is asked: it would be read with every passage."""


@dataclass(frozen=True)
class Reranker:
    """A model that reads passages beside the memory, which stays as it is."""

    backbone: Backbone
    prompt: Prompt
    tokenizer: Tokenizer
    reread: Callable[[Sequence[int]], list[int]] = list
    """The tokens that a passage is read by, no more of them than its own."""

    def read(self, question: str, blocks: Sequence[Block]) -> list[Verdict]:
        """Read each block alone, with the question after it.

        Returns:
            For each, log-probabilities: of a refusal's first token where the answer would begin,
            and, as a mean, of the question's tokens.

        Raises:
            BackboneError: the model computes numbers that are not finite.
            OutOfMemory: there is no room for a block and the question.
        """
        asked = self.tokenizer.encode(question)
        refusals = sorted(
            {self.tokenizer.encode(text)[0] for text in (NOT_STATED, f" {NOT_STATED}")}
        )
        closing = self.prompt.closing(asked)
        looked_at = len(asked) + len(self.prompt.ending) + 1
        longest = max((len(block.ids) for block in blocks), default=0)
        opened = self.backbone.new_state(len(self.prompt.opening) + longest + len(closing))
        if self.prompt.opening:
            self.backbone.read(self.prompt.opening, opened)
        verdicts = []
        for block in blocks:
            ids = [i for entry in block.entries for i in self.reread(entry.ids)]
            logits = self.backbone.predict_last([*ids, *closing], opened.clone(), looked_at)
            likely = logits.log_softmax(-1)
            of_question = likely[range(len(asked)), asked].mean()
            verdicts.append((float(likely[-1, refusals].logsumexp(0)), float(of_question)))
        return verdicts
