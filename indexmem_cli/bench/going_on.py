"""Tasks without a question: what text costs to predict by position, and whether long writing loops.

Both are of the books' own text; only methods that can read without a question take part.
"""

import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from indexmem_cli.bench.ruler import sentences
from indexmem_cli.bench.suites import Draw, Method, Sample, Task, add_task
from indexmem_cli.config import AnswerConfig

if TYPE_CHECKING:
    from indexmem_cli.bench.methods import Asked
    from indexmem_cli.language_model import LanguageModel

PARTS = 8
"""Of a text, for which its loss is given apart."""
WRITTEN_TOKENS = 512
GIVEN_TOKENS = 32
"""Last tokens of a text, which its continuation is asked with."""
GRAM = 4
LOOP_TOKENS = 96
LONGEST_LOOP = 32


def make_text(draw: Draw) -> Sample:
    """Take a run of sentences of a book."""
    return Sample(" ".join(draw.fill(sentences(draw))), "", ())


def make_beginning(draw: Draw) -> Sample:
    """The same, and beside it what comes after it, to compare with what is written."""
    drawn = sentences(draw)
    text, after, room = draw.fill(drawn), [], WRITTEN_TOKENS
    for sentence in drawn:
        after.append(sentence)
        room -= draw.count(" " + sentence)
        if room < 0:
            break
    return Sample(" ".join(text), "", (" ".join(after),))


def measure_loss(
    model: "LanguageModel", method: Method, asked: "Asked", sample: Sample
) -> dict[str, Any] | None:
    """Nats per token of the second half of a text, and of each of its eight parts."""
    stream = method.open(model, asked) if method.open else None
    if stream is None:
        return None
    started = time.perf_counter()
    losses = stream.losses(model.tokenizer.encode(sample.text))
    half = losses[len(losses) // 2 :]
    bounds = [round(i * len(losses) / PARTS) for i in range(PARTS + 1)]
    parts = [losses[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]
    return {
        "score": sum(half) / len(half),
        "by_position": [round(sum(part) / len(part), 4) for part in parts],
        "kv_bytes": stream.nbytes,
        "read_s": time.perf_counter() - started,
        "answer_s": 0.0,
    }


def measure_writing(
    model: "LanguageModel", method: Method, asked: "Asked", sample: Sample, temperature: float = 0
) -> dict[str, Any] | None:
    """Go on with a text for long: the share of n-grams that were written before."""
    stream = method.open(model, asked) if method.open else None
    if stream is None:
        return None
    ids = model.tokenizer.encode(sample.text)
    started = time.perf_counter()
    stream.read(ids[:-GIVEN_TOKENS])
    read, kept = time.perf_counter(), stream.nbytes
    config = AnswerConfig(asked.max_tokens, temperature)
    written = stream.write(ids[-GIVEN_TOKENS:], config, set())
    own = model.tokenizer.encode(sample.answers[0])[: len(written)]
    return {
        "score": share_repeated(written),
        "of_text": share_repeated(own),
        "loops": float(ends_in_loop(written)),
        "answer": model.tokenizer.decode(written),
        "kv_bytes": kept,
        "read_s": read - started,
        "answer_s": time.perf_counter() - read,
    }


def share_repeated(ids: Sequence[int], size: int = GRAM) -> float:
    """Return the share of n-grams that had come before."""
    grams = Counter(zip(*(ids[i:] for i in range(size)), strict=False))
    total = sum(grams.values())
    return 1 - len(grams) / total if total else 0.0


def ends_in_loop(ids: Sequence[int]) -> bool:
    """Say whether the last tokens are the same few again and again."""
    tail = ids[-LOOP_TOKENS:]
    return any(tail[step:] == tail[:-step] for step in range(1, min(LONGEST_LOOP, len(tail)) + 1))


def measure_sampled(
    model: "LanguageModel", method: Method, asked: "Asked", sample: Sample
) -> dict[str, Any] | None:
    """`measure_writing` with tokens drawn at temperature 0.8."""
    return measure_writing(model, method, asked, sample, 0.8)


_WRITING: dict[str, Any] = {"max_tokens": WRITTEN_TOKENS, "measure": f"repeated {GRAM}-grams"}
add_task("loss", "books", Task(make_text, 0, run=measure_loss, measure="nats per token"))
add_task("writing", "likeliest", Task(make_beginning, run=measure_writing, **_WRITING))
add_task("writing", "sampled", Task(make_beginning, run=measure_sampled, **_WRITING))
