"""Blocks brought back as keys and values from the disk, beside reading their text again.

python benchmarks/kv_recall.py DATA --sets facts,squadshifts
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads sleep; read when torch loads

import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import torch
from book_sets import Asked, Part, ask_prose, make_books
from books import holds_words
from needles import hide, make_needles

from indexmem_cli.archive import Archive
from indexmem_cli.archives import Archives
from indexmem_cli.bench import rows
from indexmem_cli.bench.rows import Row, wilson_interval
from indexmem_cli.bench.scores import score_f1
from indexmem_cli.checkpoint import find_checkpoint
from indexmem_cli.config import UNFOCUSED, AnswerConfig, MemoryConfig, ModelConfig
from indexmem_cli.documents import open_text
from indexmem_cli.engine import Reader
from indexmem_cli.language_model import load_language_model
from indexmem_cli.memory.policies import make_scorer
from indexmem_cli.memory.recall import Recall, load_gate
from indexmem_cli.plan import make_plan
from indexmem_cli.tokens import read_chunks

BITS = {"kv-fp32": 32, "kv-int8": 8, "kv-int4": 4}
MODES = ("text", *BITS)
ROOM_TOKENS = 160  # as much as recall has in its first round for a model that answers from 96
COLUMNS = ["set", "mode", "tokens", "n", "right", "accuracy", "interval_95", "f1"]
COLUMNS += ["bytes_per_token", "mib_per_million", "recall_s"]


class Store:
    """Keys, before rotation, and values of every token, on the disk; one record a token."""

    def __init__(self, path: Path, bits: int) -> None:
        self.path, self.bits = path, bits
        self.shape: tuple[int, ...] = ()  # of the numbers of a token: layers, 2, heads, size
        self.tokens = 0

    def append(self, numbers: torch.Tensor) -> None:
        """Write fp32 [T, layers, 2, heads, size]; each vector has a scale of its own."""
        self.shape = tuple(numbers.shape[1:])
        self.tokens += len(numbers)
        with self.path.open("ab") as file:
            file.write(self._pack(numbers).tobytes())

    def read(self, first: int, end: int) -> torch.Tensor:
        """Return the numbers of the tokens [first, end)."""
        size = self.path.stat().st_size // self.tokens
        raw = np.memmap(self.path, np.uint8, "r", first * size, (end - first, size))
        return self._unpack(np.array(raw))

    def _pack(self, numbers: torch.Tensor) -> np.ndarray:
        if self.bits == 32:
            return numbers.numpy()
        top = 2 ** (self.bits - 1) - 1
        scale = numbers.abs().amax(dim=-1, keepdim=True).clamp_min(1e-8) / top
        scale = scale.half()
        codes = (numbers / scale.float()).round().clamp(-top, top).to(torch.int8).numpy()
        codes = codes.reshape(len(codes), -1).view(np.uint8)
        if self.bits == 4:
            codes = (codes[:, ::2] << 4) | (codes[:, 1::2] & 15)
        return np.concatenate([codes, scale.numpy().reshape(len(codes), -1).view(np.uint8)], 1)

    def _unpack(self, raw: np.ndarray) -> torch.Tensor:
        if self.bits == 32:
            return torch.from_numpy(raw.view(np.float32).reshape(len(raw), *self.shape))
        count = int(np.prod(self.shape))
        codes, scale = np.split(raw, [count * self.bits // 8], axis=1)
        codes = np.ascontiguousarray(codes).view(np.int8)
        if self.bits == 4:
            low = (codes << 4) >> 4
            codes = np.stack([codes >> 4, low], axis=-1).reshape(len(raw), -1)
        scale = np.ascontiguousarray(scale).view(np.float16).astype(np.float32)
        numbers = torch.from_numpy(codes.astype(np.float32)).reshape(len(raw), *self.shape)
        return numbers * torch.from_numpy(scale).reshape(len(raw), *self.shape[:-1], 1)


class StoringReader(Reader):
    """A reader that writes the keys and values of each chunk to stores before any is evicted."""

    stores: Sequence[Store] = ()

    def _fit(self, new_tokens: int, queries: list, budget: int) -> None:
        if new_tokens:
            layers = [
                torch.stack([layer.keys, layer.values], dim=2)[0, :, :, : layer.held][
                    :, :, -new_tokens:
                ]
                for layer in self.state.managed
            ]
            numbers = torch.stack(layers).permute(3, 0, 2, 1, 4).contiguous()
            for store in self.stores:
                store.append(numbers.float())
        super()._fit(new_tokens, queries, budget)


def bring_back(reader: Reader, store: Store, spans: Sequence[tuple[int, int]]) -> None:
    """Put stored tokens on top of what `Reader.recall` keeps, as if they had been read again."""
    tokens = sum(end - first for first, end in spans)
    reader._keep_best(max(reader.plan.sink_tokens, reader.plan.answer_from_tokens - tokens))
    reader.plan = replace(reader.plan, answer_from_tokens=reader.plan.budget_tokens)
    reader._number_slots(tokens + len(reader.closing_ids))
    for first, end in spans:
        numbers = store.read(first, end).permute(1, 2, 3, 0, 4)  # [layers, 2, heads, T, size]
        for layer, (keys, values) in zip(reader.state.managed, numbers, strict=True):
            layer.append(keys[None], values[None], reader.state.seen)
        reader.state.seen += end - first


def measure(book: Part, options: Namespace, engine, folder: Path) -> Iterator[tuple[str, Row]]:
    """Read a book once and ask every question in every way."""
    backbone, tokenizer, opening = engine.backbone, engine.tokenizer, engine.prompt.opening
    config = MemoryConfig(budget_tokens=options.budget, chunk_tokens=options.chunk)
    around = (len(opening), 256)
    plan, _ = make_plan(config, backbone.info.window_tokens, *around, engine.answer_from_tokens)
    reader = StoringReader(backbone, plan, make_scorer(UNFOCUSED))
    reader.stores = [Store(folder / mode, bits) for mode, bits in BITS.items()]
    stores = dict(zip(BITS, reader.stores, strict=True))
    archive = Archive.create(None, tokenizer.decode)
    for _ in reader.read([opening] if opening else []):
        pass
    passages = open_text(book.text).passages()
    for chunk in read_chunks(passages, tokenizer, options.chunk, len(opening)):
        for _ in reader.read([chunk.ids]):
            pass
        archive.add(chunk.entries)
    archive.commit(last=True)
    places = Archives([archive], [{}])
    for asked in book.asked:
        closing = engine.prompt.closing(tokenizer.encode(asked.question))
        recall = Recall(places, asked.question, load_gate())
        recall.run(ROOM_TOKENS, plan.budget_tokens - plan.sink_tokens)
        for mode in MODES:
            started = time.perf_counter()
            copy = reader.fork_for(closing)
            if mode == "text":
                if recall.blocks:
                    copy.recall([i for block in recall.blocks for i in block.ids])
            elif recall.blocks:
                bring_back(copy, stores[mode], [(b.first, b.end) for b in recall.blocks])
            seconds = time.perf_counter() - started
            steps = copy.answer(closing, AnswerConfig(options.max_tokens), backbone.eos_ids)
            text = tokenizer.decode([step.token_id for step in steps]).strip()
            f1 = score_f1(text, asked.answers)
            right = holds_words(text, asked.answers) or f1 >= 0.5
            size = 4.0 if mode == "text" else stores[mode].path.stat().st_size / reader.state.seen
            result = {"question": asked.question, "expected": asked.answers[0], "text": text}
            yield mode, result | {"right": right, "f1": f1, "s": seconds, "bytes": size}


def facts_in_prose(options: Namespace) -> Part:
    """Hide facts of wordings never trained on in a held-out book."""
    prose = "".join(part.text for part in ask_prose(options.data, Random(0)))[1_000_000:1_230_000]
    needles = make_needles(options.count, options.seed, "development")
    asked = tuple(Asked(needle.question, (needle.answer,)) for needle in needles)
    return Part(hide(prose, needles), asked)


def main(arguments: list[str] | None = None) -> None:
    """Measure what the options ask for, append rows, print a table."""
    parser = rows.option_parser(__doc__.partition("\n")[0], "kv_recall")
    parser.set_defaults(threads=1)
    add = parser.add_argument
    add("data", type=Path, help="folder with prose/ and qa/dev/ (docs/train-base.md)")
    add("--sets", default="facts,squadshifts")
    add("--length", default="all")
    add("--count", type=int, default=100)
    add("--max-tokens", type=int, default=32)
    add("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    checkpoint = find_checkpoint(options.model, offline=True)
    model = ModelConfig(options.model, "auto", options.dtype, options.device, offline=True)
    engine, measured = load_language_model(model), []
    for name in options.sets.split(","):
        facts = name == "facts"
        books = [facts_in_prose(options)] if facts else make_books(name, options.length, options)
        results: dict[str, list[Row]] = {mode: [] for mode in MODES}
        for book in books:
            with tempfile.TemporaryDirectory() as folder:
                for mode, result in measure(book, options, engine, Path(folder)):
                    results[mode].append(result)
        tokens = sum(len(engine.tokenizer.encode(book.text)) for book in books) // len(books)
        for mode, group in results.items():
            right, size = sum(one["right"] for one in group), group[-1]["bytes"]
            row = rows.common_fields(checkpoint, options.device)
            row |= {"benchmark": "kv_recall", "set": name, "mode": mode, "tokens": tokens}
            row |= {"budget": options.budget, "chunk_tokens": options.chunk, "seed": options.seed}
            row |= {"n": len(group), "right": right, "accuracy": right / len(group)}
            row |= {"interval_95": wilson_interval(right, len(group))}
            row |= {"f1": round(sum(one["f1"] for one in group) / len(group), 4)}
            row |= {"bytes_per_token": round(size), "mib_per_million": round(size * 1e6 / 2**20)}
            row |= {"recall_s": rows.spread(one["s"] for one in group), "results": group}
            rows.append_row(options.out, row)
            measured.append(row)
        rows.print_table(measured, COLUMNS)


if __name__ == "__main__":
    main()
