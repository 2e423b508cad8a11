"""Facts hidden in a text of any length, one reading, many questions: with recall and without.

python benchmarks/recall.py prose/*.jsonl.xz --tokens 1m --count 100 --modes recall,no-recall
"""

import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from random import Random
from textwrap import fill

from needles import WORDINGS, Needle, cut, hide, make_needles

from indexmem_cli import Memory
from indexmem_cli.archive import Archive, Block
from indexmem_cli.bench import rows
from indexmem_cli.bench.rows import Row
from indexmem_cli.checkpoint import find_checkpoint
from indexmem_cli.config import FOCUS, MemoryConfig, ReadConfig, parse_size
from indexmem_cli.documents import open_sources
from indexmem_cli.memory.candidates import find_candidates
from indexmem_cli.memory.completing import complete
from indexmem_cli.tokens import load_tokenizer
from indexmem_cli.train.data import read_records
from indexmem_cli.train.tasks import make_chain_fact

MODES = {
    "recall": {},
    "no-rerank": {"rerank": False},
    "no-recall": {"recall": False, "policy": "keydiff"},
    "focus": {"recall": False, "policy": FOCUS},
    "focus+recall": {"policy": FOCUS},
    "passages": {},
    "full": {"recall": False, "policy": FOCUS},
}
"""What each mode asks of a memory. `passages` gives the model the best passages and no memory;
`full` keeps everything, where that fits the window."""
COLUMNS = ["mode", "sort", "tokens", "n", "right", "accuracy", "interval_95", "found", "recalled"]
COLUMNS += ["ask_s", "process_peak_bytes"]


@dataclass(frozen=True)
class Question:
    """A question with what has to be found for it."""

    text: str
    answer: str
    sentences: tuple[str, ...]


def make_questions(options: Namespace) -> tuple[list[Question], list[Needle]]:
    """Draw the questions, and the sentences to hide at their depths."""
    if options.sort == "facts":
        needles = make_needles(options.count, options.seed, options.wordings)
        return [Question(n.question, n.answer, (n.sentence,)) for n in needles], needles
    chance, questions, needles = Random(options.seed), [], []
    for _ in range(options.count):
        fact = make_chain_fact(chance)
        turn = fact.turns[0]
        questions.append(Question(turn.question, turn.answer, fact.sentences))
        needles += [Needle(s, turn.question, turn.answer, chance.random()) for s in fact.sentences]
    return questions, sorted(needles, key=lambda needle: needle.depth)


def lines_of(paths: Sequence[str]) -> Iterator[str]:
    """The lines of texts, PDFs and .jsonl.xz files of records, one after the other."""
    for path in paths:
        if path.endswith(".jsonl.xz"):
            for record in read_records(Path(path)):
                yield from record["text"].splitlines(keepends=True)
                yield "\n"
        else:
            for document in open_sources([path], ReadConfig()).documents:
                yield from (passage.text for passage in document.passages())


def put_inside(text: str, needles: Sequence[Needle]) -> str:
    """Put the sentences that were hidden in lines of their own inside the paragraph before."""
    for needle in needles:
        text = text.replace(f"\n{needle.sentence}\n", f" {needle.sentence} ")
    return text


def hard_wrap(text: str, chars: int) -> str:
    """Break the lines of a text between words, so that none is longer than `chars` characters."""
    broken = (
        fill(line, chars, break_long_words=False, break_on_hyphens=False)
        for line in text.split("\n")
    )
    return "\n".join(broken)


def ask_all(mode: str, path: Path, questions: list[Question], options: Namespace) -> Row:
    """Ask every question of one reading, in a process of its own; the row of the mode."""
    import torch

    torch.set_num_threads(options.threads)
    memory = Memory.read(path, **_settings(mode, options))
    results = [_ask(mode, memory, question, options) for question in questions]
    answers = [result.pop("answer") for result in results]
    first, last = answers[0], answers[-1]
    return {
        "tokens": first.coverage.tokens_read,
        "budget": options.budget,
        "chunk_tokens": options.chunk,
        "kv_bytes": first.memory.kv_bytes,
        "dtype": first.model.dtype,
        **rows.count_right(results),
        "found": None if first.recall is None else _mean(results, "found"),
        "recalled": _mean(results, "recalled"),
        "read_s": round(first.timing.read_s, 1),
        "tokens_per_s": round(first.timing.read_tokens_per_s),
        "ask_s": rows.spread(result["seconds"] for result in results[1:] or results),
        "process_peak_bytes": last.memory.process_peak_bytes,
        "results": results,
    }


def _mean(results: Sequence[dict], name: str) -> float:
    return sum(result[name] for result in results) / len(results)


def _settings(mode: str, options: Namespace) -> dict:
    budget = parse_size("1m") if mode == "full" else options.budget
    settings = {"budget": budget, "chunk_tokens": options.chunk, "dtype": options.dtype}
    settings |= {"device": options.device, "model": options.model, "offline": True}
    return settings | {"span_tokens": MemoryConfig.span_tokens} | MODES[mode]


def _ask(mode: str, memory: Memory, question: Question, options: Namespace) -> dict:
    """Ask one question; whether the answer is right, and whether all it takes was recalled."""
    started = time.perf_counter()
    answer = memory.ask(question.text, max_tokens=options.max_tokens)
    read_s = answer.timing.read_s
    archive = memory.readings[0].archive
    blocks = [archive.block(b.number) for each in answer.recall or () for b in each.blocks]
    if mode == "passages":
        started = time.perf_counter()
        blocks = best_passages(archive, question.text, options.passage_tokens)
        text = "".join(map(archive.text, blocks))
        alone = Memory.read_text(text or "-", **_settings("focus", options))
        alone.engine = memory.engine
        answer = replace(alone.ask(question.text, max_tokens=options.max_tokens), recall=())
        read_s = 0.0  # reading the passages is part of answering
    entries = [entry for block in blocks for entry in block.entries]
    if mode != "passages":  # those are read as they are
        entries += [e for block in blocks for e in complete(archive, block, options.budget)]
    texts = {entry.first: archive.text_of(entry) for entry in entries}
    text = " ".join("".join(texts[first] for first in sorted(texts)).split())
    return {
        "question": question.text,
        "expected": question.answer,
        "text": answer.text,
        "right": question.answer.lower() in answer.text.lower(),
        "found": all(" ".join(sentence.split()) in text for sentence in question.sentences),
        "blocks": [block.number for block in blocks],
        "recalled": sum(len(block.ids) for block in blocks),
        "seconds": round(time.perf_counter() - started - read_s, 4),
        "answer": answer,
    }


def best_passages(archive: Archive, question: str, room_tokens: int) -> list[Block]:
    """The blocks that share most words with the question, in the order of the text."""
    blocks = []
    for candidate in find_candidates(archive, question):
        block = archive.block(candidate.number)
        room_tokens -= len(block.ids)
        if room_tokens < 0:
            break
        blocks.append(block)
    return sorted(blocks, key=lambda block: block.number)


def main(arguments: list[str] | None = None) -> None:
    """Measure what the options ask for, append rows, print a table."""
    parser = rows.option_parser(__doc__.partition("\n")[0], "recall")
    parser.set_defaults(threads=1)
    add = parser.add_argument
    add("texts", nargs="+", help="texts, PDFs or .jsonl.xz files of at least --tokens tokens")
    add("--tokens", default="200k", help="lengths, as 16k,1m")
    add("--count", type=int, default=50, help="number of questions")
    add("--sort", choices=("facts", "chains"), default="facts", help="one step or two")
    add("--wordings", choices=WORDINGS, default="development")
    add("--wrap", type=int, metavar="CHARS", help="break lines after so many, facts inside")
    add("--modes", default="recall,no-recall", help=f"of {', '.join(MODES)}")
    add("--passage-tokens", type=parse_size, default="512", help="room of the mode `passages`")
    add("--max-tokens", type=int, default=32, help="longest answer")
    add("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    checkpoint = find_checkpoint(options.model, offline=True)
    tokenizer = load_tokenizer(checkpoint.path)
    questions, needles = make_questions(options)
    settings: Row = {"benchmark": "recall", "sort": options.sort, "seed": options.seed}
    settings |= {"wordings": options.wordings, "threads": options.threads}
    settings |= {"wrap_chars": options.wrap} if options.wrap else {}
    settings |= {"texts": [Path(path).name for path in options.texts], "device": options.device}
    measured = []
    for length in rows.parse_sizes(options.tokens):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "text.txt"
            text = hide(cut(lines_of(options.texts), length, tokenizer), needles)
            if options.wrap:
                text = hard_wrap(put_inside(text, needles), options.wrap)
            path.write_text(text, encoding="utf-8")
            for mode in options.modes.split(","):
                if mode == "full" and length + 256 > checkpoint.window_tokens:
                    print(f"full attention: {length:,} tokens do not fit the window")
                    continue
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                    row = pool.submit(ask_all, mode, path, questions, options).result()
                said = rows.common_fields(checkpoint, options.device)
                row = said | settings | {"mode": mode, "length_tokens": length} | row
                rows.append_row(options.out, row)
                measured.append(row)
                rows.print_table(measured, COLUMNS)


if __name__ == "__main__":
    main()
