"""`bench memory`: peak memory while reading, by length, beside the full cache of transformers.

Every measurement has a process of its own: load the model, read a little as a warm-up, reset the
system's peak, read a text file of the wanted length, answer a question. Linux only.
"""

import gc
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from indexmem_cli.bench import rows
from indexmem_cli.bench.plain import kv_bytes
from indexmem_cli.bench.rows import EXAMPLE_BOOK, Row
from indexmem_cli.checkpoint import find_checkpoint
from indexmem_cli.config import FOCUS, POLICIES, MemoryConfig, ModelConfig, ReadConfig
from indexmem_cli.documents import Sources, open_sources
from indexmem_cli.errors import ConfigError
from indexmem_cli.language_model import LanguageModel, load_language_model
from indexmem_cli.session import Memory
from indexmem_cli.tokens import load_tokenizer, read_chunks

QUESTION = "On what date was the monk Rasputin murdered?"
FULL, RECALL = "full", "recall"
ANSWER_TOKENS = 4
WARMUP_CHUNKS = 8
# Freed memory goes back to the system at once. Otherwise what the warm-up freed is used again and
# hides what the run takes, and the system's numbers depend on fragmentation.
MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "131072",
}


@dataclass(frozen=True)
class PeakConfig:
    """What to read, in which ways."""

    model: ModelConfig
    methods: tuple[str, ...] = (FOCUS,)
    """Of `bench quality`, without `full`."""
    budget_tokens: int = 1024
    chunk_tokens: int = 512
    lengths: tuple[int, ...] = (16384, 65536, 262144, 1048576)
    full_lengths: tuple[int, ...] = (16384, 65536)
    """Of the full cache."""
    runs: int = 3
    threads: int = 1

    def __post_init__(self) -> None:
        if not Path("/proc/self/clear_refs").exists():
            raise ConfigError("peaks can be measured on Linux alone")


def bench_memory(config: PeakConfig, out: Path | None) -> Iterator[Row]:
    """Yield a row for each run, length and method; one that `out` has is not measured again.

    Raises:
        ConfigError: a method is not known.
    """
    methods = [name for name in _known(config.methods) if name != FULL]
    asked = [(FULL, length) for length in config.full_lengths]
    asked += [(method, length) for method in methods for length in config.lengths]
    with tempfile.TemporaryDirectory() as folder:
        texts = _write_texts(Path(folder), config, {length for _, length in asked})
        for run, (mode, length) in itertools.product(range(1, config.runs + 1), asked):
            settings = _settings(config, mode, length, run)
            found = rows.read_rows(out) if out and settings["dirty"] is False else []
            known = [row for row in found if settings.items() <= row.items()]
            if known:
                yield known[0]
            elif row := _in_new_process(config, settings, texts):
                if out:
                    rows.append_row(out, row)
                yield row


def _known(names: Sequence[str]) -> list[str]:
    if all(name in (FULL, RECALL, *POLICIES) for name in names):
        return list(names)
    from indexmem_cli.bench import suites

    suites.load_own()
    return suites.names_of(names)


def measure(settings: Row, model: ModelConfig, warmup: str, text: str) -> Row:
    """Measure one run in this process and return its row; sizes in bytes."""
    mode = settings["mode"]
    ways = {FULL: _read_full, RECALL: _read_bounded} | dict.fromkeys(POLICIES, _read_bounded)
    run = ways.get(mode, _read_by_method)
    measured = run(settings, model, _open(warmup), _open(text))
    if measured["read_s"]:
        measured["tokens_per_s"] = round(measured["tokens"] / measured["read_s"], 1)
    return rows.common_fields(find_checkpoint(model.model), model.device) | settings | measured


def _read_bounded(settings: Row, model: ModelConfig, warmup: Sources, text: Sources) -> Row:
    """Read and answer as `indexmem ask` does."""
    kept = MemoryConfig(settings["budget_tokens"], settings["chunk_tokens"])
    if settings["mode"] != RECALL:
        kept = replace(kept, policy=settings["mode"], recall=False)
    first = Memory(warmup, kept, model)
    device = first.ask(QUESTION, max_tokens=ANSWER_TOKENS).model.device
    memory = replace(first, sources=text, readings=[])
    del first
    before, started = _reset_peak(device), time.perf_counter()
    answer = memory.ask(QUESTION, max_tokens=ANSWER_TOKENS)
    both, read_s = time.perf_counter() - started, answer.timing.read_s
    return _peaks(device, before) | {
        "tokens": answer.coverage.tokens_read,
        "kv_tokens": answer.memory.kv_tokens,
        "kv_bytes": answer.memory.kv_bytes,
        "read_s": read_s,
        # With the question in mind everything is read again for the next one.
        "answer_s": both if settings["mode"] == FOCUS else both - read_s,
    }


def _read_by_method(settings: Row, model: ModelConfig, warmup: Sources, text: Sources) -> Row:
    """Read and answer by any other method of `bench quality`, from the whole text in memory."""
    from indexmem_cli.bench import suites
    from indexmem_cli.bench.methods import Asked

    suites.load_own()
    engine, method = load_language_model(model), suites.METHODS[settings["mode"]]
    device, kept = engine.backbone.info.device, settings["budget_tokens"]

    def answer(sources: Sources) -> Any:
        whole = "".join(p.text for document in sources.documents for p in document.passages())
        asked = Asked(whole, QUESTION, ANSWER_TOKENS, settings["chunk_tokens"], kept)
        return len(engine.tokenizer.encode(whole)), method.answer(engine, asked)

    answer(warmup)
    before = _reset_peak(device)
    tokens, reply = answer(text)
    if reply is None:
        raise ConfigError(f"{settings['mode']} cannot take {tokens:,} tokens")
    found = {"tokens": tokens, "kv_bytes": reply.kv_bytes}
    return _peaks(device, before) | found | {"read_s": reply.read_s, "answer_s": reply.answer_s}


def _read_full(settings: Row, model: ModelConfig, warmup: Sources, text: Sources) -> Row:
    """Read the same chunks with plain transformers and keep everything.

    The peak is that of reading, before there are any logits; then a question is answered.
    """
    engine = load_language_model(model)
    backbone, info = engine.backbone, engine.backbone.info
    backbone.detach()

    @torch.no_grad()
    def read(sources: Sources) -> DynamicCache:
        cache = DynamicCache()
        passages = (passage for document in sources.documents for passage in document.passages())
        for chunk in read_chunks(passages, engine.tokenizer, settings["chunk_tokens"]):
            ids = torch.tensor([chunk.ids], device=backbone.device)
            backbone.decoder(input_ids=ids, past_key_values=cache, use_cache=True)
        return cache

    _answer_plainly(engine, read(warmup))
    before, started = _reset_peak(info.device), time.perf_counter()
    cache = read(text)
    read_s = time.perf_counter() - started
    found = _peaks(info.device, before) | {
        "tokens": cache.get_seq_length(),
        "kv_tokens": cache.get_seq_length(),
        "kv_bytes": kv_bytes(cache),
        "read_s": read_s,
    }
    started = time.perf_counter()
    _answer_plainly(engine, cache)
    return found | {"answer_s": time.perf_counter() - started}


@torch.no_grad()
def _answer_plainly(engine: LanguageModel, cache: DynamicCache) -> None:
    """Write a few tokens, whatever they are: beyond its window the model says nothing of use."""
    ids = engine.prompt.closing(engine.tokenizer.encode(QUESTION))
    for _ in range(ANSWER_TOKENS):
        new = torch.tensor([ids], device=engine.backbone.device)
        out = engine.backbone.model(
            input_ids=new, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        ids = [int(out.logits[0, -1].argmax())]


def _reset_peak(device: str) -> int:
    """Forget the peak so far; return the bytes held now on the device of the model."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from VmRSS; Linux only
    if device == "cpu":
        return _status_bytes("VmRSS")
    torch.cuda.reset_peak_memory_stats(device)
    return int(torch.cuda.memory_allocated(device))


def _peaks(device: str, before: int) -> Row:
    """Most memory held since the reset, by the process, by the GPU, and above the loaded model."""
    process = _status_bytes("VmHWM")
    gpu = None if device == "cpu" else torch.cuda.max_memory_allocated(device)
    above = (process if gpu is None else gpu) - before
    return {"process_peak_bytes": process, "gpu_peak_bytes": gpu, "above_model_bytes": above}


def _status_bytes(name: str) -> int:
    status = Path("/proc/self/status").read_text("utf-8")
    return int(re.findall(rf"{name}:\s+(\d+) kB", status)[0]) * 1024


def _settings(config: PeakConfig, mode: str, length: int, run: int) -> Row:
    """What is measured, in the words of a row."""
    checkpoint = find_checkpoint(config.model.model)
    commit, dirty = rows.state_of_code()
    return {
        "benchmark": "memory",
        "commit": commit,
        "dirty": dirty,
        "revision": checkpoint.revision,
        "dtype": checkpoint.likely_dtype(config.model.dtype, config.model.device),
        "threads": config.threads,
        "malloc": MALLOC,
        "mode": mode,
        "budget_tokens": None if mode == FULL else config.budget_tokens,
        "chunk_tokens": config.chunk_tokens,
        "length_tokens": length,
        "run": run,
        "n": 1,
    }


def _in_new_process(config: PeakConfig, settings: Row, texts: dict[int, str]) -> Row | None:
    """Measure; None where it failed, as without memory enough."""
    model: Row = {"model": config.model.model, "quant": "none", "dtype": config.model.dtype}
    model |= {"device": config.model.device, "offline": True}
    job = [settings, model, texts[0], texts[settings["length_tokens"]]]
    threads = {"OMP_NUM_THREADS": str(config.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-m", __name__, json.dumps(job)]
    paths = os.pathsep.join(filter(None, [str(rows.ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, **threads, **MALLOC, "PYTHONPATH": paths}
    # Linux counts pages per processor and adds them up in batches: on one, less is missed.
    one = {max(os.sched_getaffinity(0))} if config.threads == 1 else os.sched_getaffinity(0)
    done = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: os.sched_setaffinity(0, one),
    )
    what = f"{settings['mode']} {settings['length_tokens']:,}, run {settings['run']}:"
    if done.returncode:
        print(what, f"failed ({done.returncode})\n{done.stderr}", file=sys.stderr, flush=True)
        return None
    row: Row = json.loads(done.stdout.splitlines()[-1])
    above, seconds = row["above_model_bytes"] / 2**20, row["read_s"]
    print(what, f"{above:.1f} MiB above the model, {seconds:.0f} s", file=sys.stderr, flush=True)
    return row


def _open(path: str) -> Sources:
    return open_sources([path], ReadConfig())


def _write_texts(folder: Path, config: PeakConfig, lengths: set[int]) -> dict[int, str]:
    """Write the book again and again into one file per length in tokens; 0 is the warm-up."""
    if not EXAMPLE_BOOK.exists():
        raise ConfigError("the example book is not here", "run it in a checkout")
    (book,) = _open(str(EXAMPLE_BOOK)).documents
    text = "".join(passage.text for passage in book.passages())
    tokenizer = load_tokenizer(find_checkpoint(config.model.model).path)
    chars_per_token = len(text) / len(tokenizer.encode(text))
    files = {length: folder / f"{length}.txt" for length in {0, *lengths}}
    for length, path in files.items():
        chars = int(chars_per_token * (length or WARMUP_CHUNKS * config.chunk_tokens))
        times, rest = divmod(chars, len(text))
        path.write_text(text * times + text[:rest], "utf-8")
    return {length: str(path) for length, path in files.items()}


def summarise(shown: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """Return the medians over runs, and how far apart the peaks of each method's lengths are."""
    lines = []
    for mode, length in dict.fromkeys((row["mode"], row["length_tokens"]) for row in shown):
        runs = [r for r in shown if (r["mode"], r["length_tokens"]) == (mode, length)]
        above = [row["above_model_bytes"] / 2**20 for row in runs]
        line = {"mode": mode, "tokens": runs[0]["tokens"], "KV MiB": runs[0]["kv_bytes"] / 2**20}
        line |= {"peak above model, MiB": statistics.median(above), "each run": above}
        line["process MiB"] = statistics.median(r["process_peak_bytes"] for r in runs) / 2**20
        for name in ("read_s", "answer_s"):
            line[name] = statistics.median(row[name] for row in runs if name in row)
        lines.append(line)
    said = []
    for mode in dict.fromkeys(line["mode"] for line in lines if line["mode"] != FULL):
        peaks = [line["peak above model, MiB"] for line in lines if line["mode"] == mode]
        apart = max(peaks) / min(peaks) - 1
        said.append(f"{mode}: the largest peak is {apart:.1%} above the smallest")
    return lines, said


if __name__ == "__main__":
    _settings_here, _model, _warmup, _text = json.loads(sys.argv[1])
    print(json.dumps(measure(_settings_here, ModelConfig(**_model), _warmup, _text)))
