"""Measures a model folder, plainly through transformers: `python -m indexmem_cli.train.evaluate`.

Prints one JSON line per measure, with the number of samples and a 95 % interval.
"""

import argparse
import json
import lzma
import math
import os
import re
import string
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import Qwen3ForCausalLM  # noqa: E402

from indexmem_cli.train.data import Corpus, prepare, read_records  # noqa: E402
from indexmem_cli.train.episodes import EpisodeMaker  # noqa: E402
from indexmem_cli.train.tasks import Turn, make_development_fact  # noqa: E402
from indexmem_cli.train.templates import NOT_STATED  # noqa: E402

NUM_DEPTHS = 10
NEEDLE_LENGTHS = (512, 1024, 2048)
MAX_ANSWER_TOKENS = 48
PROMPT_TOKENS = 40
"""Room left for the question and its frame."""
Row = dict[str, object]


def normalise(answer: str) -> list[str]:
    """Lower-case, drop punctuation and articles, split (the SQuAD script's way)."""
    plain = "".join(c for c in answer.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def score_f1(answer: str, accepted: list[str]) -> float:
    """Return the best word F1 of `answer` against the accepted ones."""
    best, given = 0.0, normalise(answer)
    for reference in map(normalise, accepted):
        common = sum((Counter(given) & Counter(reference)).values())
        if common:
            best = max(best, 2 * common / (len(given) + len(reference)))
    return best


def score_exact(answer: str, accepted: list[str]) -> bool:
    """Say whether `answer` is one of the accepted ones, normalised."""
    return normalise(answer) in [normalise(reference) for reference in accepted]


def refuses(answer: str) -> bool:
    """Say whether the model answered that the text does not say."""
    return answer.strip().startswith(NOT_STATED.rstrip("."))


def wilson(right: int, total: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a share."""
    z = 1.96
    share, spread = right / total, z * z / total
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def share_row(measure: str, hits: list[bool]) -> Row:
    """Report a share with its interval."""
    low, high = wilson(sum(hits), len(hits))
    value = sum(hits) / len(hits)
    return {"measure": measure, "value": value, "low": low, "high": high, "n": len(hits)}


def mean_row(measure: str, values: list[float]) -> Row:
    """Report a mean with its normal interval."""
    mean = float(np.mean(values))
    half = 1.96 * float(np.std(values)) / math.sqrt(len(values))
    return {
        "measure": measure,
        "value": mean,
        "low": mean - half,
        "high": mean + half,
        "n": len(values),
    }


class Reader:
    """A model with its tokenizer, asked as the product asks it."""

    def __init__(self, model: Qwen3ForCausalLM, maker: EpisodeMaker) -> None:
        self.model, self.maker = model, maker

    def answer(self, text: str, question: str) -> str:
        """Answer greedily, with the whole text in an ordinary cache."""
        most = self.model.config.max_position_embeddings - 120
        return self.answer_ids(self.maker.encode(text)[:most], question)

    @torch.no_grad()
    def answer_ids(self, text_ids: list[int], question: str) -> str:
        """Answer a question on a text given as tokens."""
        maker = self.maker
        prompt = [maker.user, *maker.open, *text_ids, *maker.close, *maker.encode(question)]
        prompt += [maker.end, maker.assistant]
        output = self.model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=MAX_ANSWER_TOKENS,
            do_sample=False,
        )
        answer = output[0, len(prompt) :].tolist()
        if answer and answer[-1] == maker.end:
            answer.pop()
        return maker.corpus.encoding.decode(answer).strip()


@torch.no_grad()
def measure_text(model: Qwen3ForCausalLM, held_out: Corpus, num_windows: int = 48) -> Iterator[Row]:
    """Bits per byte of held-out text in windows of 1024 tokens, beside xz on the same bytes."""
    for source, array in held_out.arrays.items():
        rng = Random(0)
        bits, texts = [], []
        for _ in range(num_windows):
            start = rng.randrange(len(array) - 1025)
            ids = torch.from_numpy(array[start : start + 1025].astype(np.int64))[None]
            logits = model(input_ids=ids[:, :-1]).logits.float()
            loss = torch.nn.functional.cross_entropy(logits[0], ids[0, 1:], reduction="sum")
            texts.append(held_out.encoding.decode_bytes(ids[0, 1:].tolist()))
            bits.append(loss.item() / math.log(2) / len(texts[-1]))
        yield mean_row(f"bits per byte, {source}", bits)
        whole = b"".join(texts)
        packed = len(lzma.compress(whole)) * 8 / len(whole)
        yield {"measure": f"bits per byte of xz, {source}", "value": packed, "n": num_windows}


def measure_needles(reader: Reader, per_depth: int) -> Iterator[Row]:
    """Needle accuracy in held-out prose by length and depth; two more facts lie in the text.

    An answer is right when it contains the expected one.
    """
    for length in NEEDLE_LENGTHS:
        rng, hits = Random(length), [[] for _ in range(NUM_DEPTHS)]
        for i in range(NUM_DEPTHS * per_depth):
            depth = i % NUM_DEPTHS
            text_ids, turn = place_needle(reader.maker, rng, length, (depth + 0.5) / NUM_DEPTHS)
            given = reader.answer_ids(text_ids, turn.question)
            hits[depth].append(turn.answer.lower() in given.lower())
        yield share_row(f"needle accuracy at {length} tokens", [hit for row in hits for hit in row])
        by_depth = [round(float(np.mean(row)), 3) for row in hits]
        yield {
            "measure": f"needle accuracy by depth at {length}",
            "value": by_depth,
            "n": per_depth,
        }


def place_needle(
    maker: EpisodeMaker, rng: Random, length: int, depth: float
) -> tuple[list[int], Turn]:
    """Hide a fact at the sentence start nearest to `depth` (0 to 1) of `length` tokens of prose."""
    facts = [make_development_fact(rng) for _ in range(3)]
    turn = rng.choice(facts[0].turns)
    pieces = [maker.encode(" " + fact.sentences[0]) for fact in facts]
    prose = maker.corpus.window(rng, "prose", length - sum(map(len, pieces)) - PROMPT_TOKENS)
    starts = [0, *maker.corpus.sentence_starts(prose), len(prose)]
    places = [min(starts, key=lambda start: abs(start - depth * len(prose)))]
    places += rng.choices(starts, k=2)
    text, last = [], 0
    for place, piece in sorted(zip(places, pieces, strict=True)):
        text += [*prose[last:place], *piece]
        last = place
    return text + prose[last:], turn


def measure_reading(reader: Reader, data: Path, name: str, count: int) -> Iterator[Row]:
    """F1 and exact match of real questions with their paragraph given."""
    exact, f1, refused = [], [], []
    for text, record in draw_questions(data, name, count):
        answer = reader.answer(text, record["question"])
        exact.append(score_exact(answer, record["answers"]))
        f1.append(score_f1(answer, record["answers"]))
        refused.append(refuses(answer))
    yield mean_row(f"{name} dev F1, paragraph given", f1)
    yield share_row(f"{name} dev exact match, paragraph given", exact)
    yield share_row(f"{name} dev, wrongly refused", refused)


def draw_questions(data: Path, name: str, count: int) -> Iterator[tuple[str, dict]]:
    """Draw answerable questions of a development set with the paragraph that holds the answer."""
    folder = data / "qa" / "dev"
    documents = {r["doc_id"]: r["text"] for r in read_records(folder / "docs.jsonl.xz")}
    records = [r for r in read_records(folder / f"{name}.jsonl.xz") if r["answerable"]]
    for record in Random(0).sample(records, min(count, len(records))):
        text = record.get("context") or documents[record["doc_id"]]
        if record.get("evidence") and "doc_id" in record:
            spans = record["evidence"]
            text = text[min(s for s, _ in spans) : max(e for _, e in spans)]
        yield text, record


def measure_refusals(reader: Reader, data: Path, count: int) -> Iterator[Row]:
    """Share refused of questions that the text does not, and does, answer."""
    records = list(read_records(data / "qa" / "dev" / "clapnq.jsonl.xz"))
    for answerable, verdict in ((False, "rightly"), (True, "wrongly")):
        pool = [record for record in records if record["answerable"] == answerable]
        drawn = Random(0).sample(pool, min(count, len(pool)))
        hits = [refuses(reader.answer(r["context"], r["question"])) for r in drawn]
        yield share_row(f"clapnq dev, {verdict} refused", hits)
    rng, maker = Random(1), reader.maker
    hits = {"rightly": [], "wrongly": []}
    for _ in range(count):
        shown, hidden = make_development_fact(rng), make_development_fact(rng)
        before, after = (
            maker.corpus.encoding.decode(maker.corpus.window(rng, "prose", 150)) for _ in range(2)
        )
        text = f"{before} {shown.sentences[0]} {after}"
        for verdict, fact in (("rightly", hidden), ("wrongly", shown)):
            hits[verdict].append(refuses(reader.answer(text, rng.choice(fact.turns).question)))
    for verdict, found in hits.items():
        yield share_row(f"synthetic development questions, {verdict} refused", found)


def evaluate(folder: Path, data: Path, cache: Path, count: int, dtype: str) -> Iterator[Row]:
    """Yield every measure of the model in `folder`."""
    model = Qwen3ForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    encoding = prepare(data, cache, folder, model.config.max_position_embeddings)
    held_out = Corpus(cache, encoding, "valid")
    maker = EpisodeMaker(held_out, data, with_questions=False)
    reader = Reader(model, maker)
    yield from measure_text(model, held_out)
    yield from measure_needles(reader, max(1, count // NUM_DEPTHS))
    yield from measure_reading(reader, data, "squadshifts", count)
    yield from measure_reading(reader, data, "fairytaleqa", count)
    yield from measure_refusals(reader, data, min(count, 200))


def main() -> None:
    """Read the options, measure, and print JSON lines."""
    parser = argparse.ArgumentParser(description="Measure a model folder.")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True, help="token cache of the training run")
    parser.add_argument("--count", type=int, default=300, help="questions per measure")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    described = {"model": options.model.name, "dtype": options.dtype, "seed": 0}
    rows = evaluate(options.model, options.data, options.cache, options.count, options.dtype)
    for row in rows:
        print(json.dumps(described | row), flush=True)


if __name__ == "__main__":
    main()
