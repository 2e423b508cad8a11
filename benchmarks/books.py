"""Real and made-up questions on book-length documents: recall beside every other way, and sources.

python benchmarks/books.py DATA --sets squadshifts,chains --lengths window,8k,all

All that is compared is asked the same questions, in one run; `chains` asks questions of two steps.
"""

import itertools
import tempfile
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from book_sets import WINDOW_TOKENS, Asked, Part, ask_pages, make_books
from recall import best_passages

from indexmem_cli import Memory
from indexmem_cli.archive import Archive
from indexmem_cli.bench import rows
from indexmem_cli.bench.reader import ModelReader
from indexmem_cli.bench.rows import Row, wilson_interval
from indexmem_cli.bench.scores import compare, normalise, refuses, score_f1, sum_up
from indexmem_cli.checkpoint import find_checkpoint
from indexmem_cli.config import FOCUS, ModelConfig, parse_size

PASSAGE_TOKENS = {"passages": 512, "passage": 160}
"""The best passages by words, and no memory; 160 is what recall has in its first round."""
MODES = ("recall", "no-rerank", "no-recall", "focus", *PASSAGE_TOKENS, "full")
FULL_TOKENS = 1.15 * WINDOW_TOKENS
FOCUS_TOKENS = 10_000
"""Every question reads the text again, so no longer ones unless they are asked for."""
COLUMNS = ["set", "length", "mode", "tokens", "n", "right", "accuracy", "interval_95", "f1"]
COLUMNS += [
    "recall_ahead",
    "refused",
    "found",
    "recalled",
    "source_of_right",
    "precision_of_right",
    "ask_s",
]


class Ways:
    """The ways to answer, on one loaded model."""

    def __init__(self, options: Namespace) -> None:
        self.options = options
        self.model = {"model": options.model, "dtype": options.dtype, "device": options.device}
        self.plain = ModelReader(ModelConfig(**self.model, offline=True))
        self.engine = None

    def memory(self, path: Path | None, text: str = "", **settings) -> Memory:
        """A memory of a text that is read when it is first asked."""
        settings = {"budget": self.options.budget, "chunk_tokens": self.options.chunk} | settings
        settings |= {**self.model, "offline": True}
        made = Memory.read(path, **settings) if path else Memory.read_text(text, **settings)
        made.engine = self.engine
        return made

    def read(self, path: Path) -> "ReadBook":
        """Read a book for all questions."""
        memory = self.memory(path)
        memory.ask("-", max_tokens=1)
        self.engine = memory.engine
        # What is kept is the same in all of them: one reading serves all.
        ways = {"recall": memory}
        for mode, without in (("no-rerank", {"rerank": False}), ("no-recall", {"recall": False})):
            ways[mode] = replace(memory, memory=replace(memory.memory, **without))
            ways[mode].engine, ways[mode].readings = self.engine, memory.readings
        return ReadBook(self, path, ways)


@dataclass(frozen=True)
class ReadBook:
    """A book that was read, to ask in any of the ways."""

    ways: Ways
    path: Path
    memories: dict[str, Memory]
    """What was read, by the mode it is asked in."""

    @property
    def archive(self) -> Archive:
        """Its text."""
        return self.memories["recall"].readings[0].archive

    @property
    def tokens(self) -> int:
        """Tokens of text in it."""
        return self.memories["recall"].readings[0].tokens

    def ask(self, mode: str, question: str) -> Row | None:
        """Answer in one of the ways; None where the book is too long for it."""
        if mode == "full":
            if self.tokens > FULL_TOKENS:
                return None
            text = "".join(self.archive.text(block) for block in self.archive)
            reply = self.ways.plain.answer(text, question)
            return None if reply.streamed else {"text": reply.text}
        if mode == "focus":
            if self.tokens > self.ways.options.focus_tokens:
                return None
            memory = self.ways.memory(self.path, recall=False, policy=FOCUS)
            return row_of(memory, question, self.ways.options.max_tokens)
        if mode in PASSAGE_TOKENS:
            blocks = best_passages(self.archive, question, PASSAGE_TOKENS[mode])
            text = "".join(self.archive.text(block) for block in blocks) or "-"
            memory = self.ways.memory(None, text, recall=False, policy=FOCUS, budget=1024)
            found = row_of(memory, question, self.ways.options.max_tokens)
            return {"text": found["text"], "blocks": [block.number for block in blocks]}
        return row_of(self.memories[mode], question, self.ways.options.max_tokens)


def row_of(memory: Memory, question: str, max_tokens: int) -> Row:
    """What is kept of an answer."""
    answer = memory.ask(question, max_tokens=max_tokens)
    blocks = answer.recall and [block.number for each in answer.recall for block in each.blocks]
    kept = {"policy": answer.memory.policy, "blocks": blocks}
    return {"text": answer.text, "sources": answer.sources, **kept}


def holds_words(text: str, accepted: Sequence[str]) -> bool:
    """Whether a text holds an accepted answer word for word."""
    given = f" {' '.join(normalise(text))} "
    return any(f" {' '.join(normalise(a))} " in given for a in accepted if normalise(a))


def judge(result: Row, asked: Asked, text: str, archive: Archive) -> Row:
    """Score one answer and the sources shown with it."""
    lines = [
        (text.count("\n", 0, start) + 1, text.count("\n", 0, max(start, end - 1)) + 1)
        for start, end in asked.spans
    ]

    def holds(place) -> bool:
        if asked.page is not None:
            return place.page == asked.page
        return any(place.line_start <= last and place.line_end >= first for first, last in lines)

    f1 = score_f1(result["text"], asked.answers)
    judged = {
        "question": asked.question,
        "expected": asked.answers[0],
        "text": result["text"],
        "right": holds_words(result["text"], asked.answers) or f1 >= 0.5,
        "f1": round(f1, 3),
        "refused": refuses(result["text"]),
        "policy": result.get("policy"),
    }
    if result.get("blocks") is not None:
        held = [archive.block(number) for number in result["blocks"]]
        judged["recalled"] = sum(len(block.ids) for block in held)
        spots = {(entry.place.page, entry.place.line) for b in held for entry in b.entries}
        reached = [
            any((None, line) in spots for line in range(first, last + 1)) for first, last in lines
        ] or [any(page == asked.page for page, _ in spots)]
        words = " ".join(archive.text(block) for block in held)
        stands = any(holds_words(text[s:e], asked.answers) for s, e in asked.spans)
        judged["found"] = all(reached) and (not stands or holds_words(words, asked.answers))
    if "sources" in result:
        judged["sources"] = [holds(source) for source in result["sources"]]
    return judged


def sum_mode(judged: Sequence[Row], seconds: Sequence[float]) -> Row:
    """The row of a mode: shares with intervals."""
    right = [one for one in judged if one["right"]]
    row: Row = {"policy": judged[0]["policy"], **rows.count_right(judged)}
    f1 = sum_up([one["f1"] for one in judged])
    row |= {"f1": f1["value"], "f1_interval_95": f1["interval_95"]}
    row["refused"] = sum(one["refused"] for one in judged) / len(judged)
    for name in ("found", "recalled"):
        if name in judged[0]:
            row[name] = sum(one[name] for one in judged) / len(judged)
    if "sources" in judged[0]:
        for name, group in (("", judged), ("_of_right", right)):
            shown = Counter(holds for one in group for holds in one["sources"])
            row[f"source{name}"] = sum(any(one["sources"]) for one in group) / max(1, len(group))
            row[f"source{name}_interval_95"] = wilson_interval(
                sum(any(one["sources"]) for one in group), max(1, len(group))
            )
            row[f"precision{name}"] = shown[True] / max(1, shown.total())
            row[f"sources_shown{name}"] = shown.total() / max(1, len(group))
    row["ask_s"] = rows.spread(seconds)
    return row


def ahead_of(ours: Sequence[Row], theirs: Sequence[Row]) -> Row:
    """How far ours are ahead in F1, question by question of those that both were asked."""
    known = {(one["book"], one["question"]): one["f1"] for one in ours}
    both = [one for one in theirs if (one["book"], one["question"]) in known]
    ahead = compare(
        [known[one["book"], one["question"]] for one in both], [one["f1"] for one in both]
    )
    return {"recall_ahead": ahead["value"], "recall_ahead_interval_95": ahead["interval_95"]}


def measure(name: str, length: str, ways: Ways, options: Namespace, folder: Path) -> Iterator[Row]:
    """Ask every question of one set at one length in every way."""
    if name == "pages":
        chosen = Random(options.seed).sample(ask_pages(Random(options.seed)), options.count)
        books = [(rows.EXAMPLE_BOOK, Part("", tuple(chosen)))]
    else:
        books = []
        for i, book in enumerate(make_books(name, length, options)):
            path = folder / f"{name}-{length}-{i}.txt"
            path.write_text(book.text, encoding="utf-8")
            books.append((path, book))
    modes = options.modes.split(",")
    results: dict[str, list[Row]] = {mode: [] for mode in modes}
    seconds: dict[str, list[float]] = {mode: [] for mode in modes}
    tokens = []
    for number, (path, book) in enumerate(books):
        read = ways.read(path)
        tokens.append(read.tokens)
        for mode, asked in itertools.product(modes, book.asked):
            started = time.perf_counter()
            result = read.ask(mode, asked.question)
            if result is not None:
                seconds[mode].append(round(time.perf_counter() - started, 4))
                judged = judge(result, asked, book.text, read.archive)
                results[mode].append({"book": number, **judged})
    for mode in modes:
        if results[mode]:
            shared = {"set": name, "length": length, "mode": mode, "books": len(books)}
            shared["tokens"] = round(sum(tokens) / len(tokens))
            row = shared | sum_mode(results[mode], seconds[mode])
            if mode != "recall" and results.get("recall"):
                row |= ahead_of(results["recall"], results[mode])
            yield row | {"results": results[mode]}


def main(arguments: list[str] | None = None) -> None:
    """Measure what the options ask for, append rows, print a table."""
    parser = rows.option_parser(__doc__.partition("\n")[0], "books")
    parser.set_defaults(threads=1)
    add = parser.add_argument
    add("data", type=Path, help="folder with prose/ and qa/dev/ (docs/train-base.md)")
    add("--sets", default="squadshifts,fairytaleqa,qmsum,prose,chains,pages")
    add("--lengths", default="window,8k,all", help="window: what full attention can hold")
    add("--modes", default=",".join(MODES))
    add("--count", type=int, default=100, help="questions for each set and length")
    add("--focus-tokens", type=parse_size, default=FOCUS_TOKENS, help="longest text for focus")
    add("--max-tokens", type=int, default=48, help="longest answer")
    add("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(options.threads)
    checkpoint, ways = find_checkpoint(options.model, offline=True), Ways(options)
    settings: Row = {"benchmark": "books", "seed": options.seed, "device": options.device}
    settings |= {"budget": options.budget, "chunk_tokens": options.chunk}
    settings |= {"answer_from_tokens": checkpoint.answer_from_tokens}
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        for name, length in itertools.product(options.sets.split(","), options.lengths.split(",")):
            if name == "pages" and length != "all":
                continue
            for row in measure(name, length, ways, options, Path(folder)):
                row = rows.common_fields(checkpoint, options.device) | settings | row
                rows.append_row(options.out, row)
                measured.append(row)
            rows.print_table(measured, COLUMNS)


if __name__ == "__main__":
    main()
