"""Peak memory while reading, at several lengths, beside the full cache of plain transformers.

Every measurement has a process of its own: load the model, read a little as a warm-up, reset the
system's peak, read a text file of the wanted length. Bounded runs go through `session.Memory`.

python benchmarks/memory.py --lengths 16k,64k,256k,1m --full-lengths 16k,64k
"""

import argparse
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
from dataclasses import replace
from pathlib import Path

import torch
from transformers import DynamicCache

from indexmem_cli.bench import rows
from indexmem_cli.bench.rows import Row
from indexmem_cli.checkpoint import find_checkpoint
from indexmem_cli.config import MemoryConfig, ModelConfig, ReadConfig
from indexmem_cli.documents import Sources, open_sources
from indexmem_cli.loading import load_backbone
from indexmem_cli.session import Memory
from indexmem_cli.tokens import load_tokenizer, read_chunks

BOOK = rows.ROOT / "examples" / "short-history-of-the-world.pdf"
QUESTION = "On what date was the monk Rasputin murdered?"
ANSWER_TOKENS = 4
WARMUP_CHUNKS = 8
# Freed memory goes back to the system at once. Otherwise what the warm-up freed is used again and
# hides what the run takes, and the system's numbers depend on fragmentation.
MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "131072",
}


def main(arguments: list[str] | None = None) -> None:
    """Measure what the options ask for and has no row yet, append the rows, print a table."""
    options = _parse(arguments)
    asked = [("full", length) for length in options.full_lengths]
    asked += [(policy, length) for policy in options.policies for length in options.lengths]
    shown = []
    with tempfile.TemporaryDirectory() as folder:
        texts = _write_texts(Path(folder), options, {length for _, length in asked})
        for run, (mode, length) in itertools.product(range(1, options.runs + 1), asked):
            settings = _settings(options, mode, length, run)
            known = [row for row in rows.read_rows(options.out) if settings.items() <= row.items()]
            if settings["dirty"] is not False:
                known = []  # of code that is in no commit nobody can tell what was measured
            shown += known[:1] or _in_new_process(options, settings, texts)
    _print_summary(shown)


def measure(settings: Row, model: ModelConfig, warmup: str, text: str) -> Row:
    """Measure one run in this process and return its row; sizes in bytes."""
    run = _read_full if settings["mode"] == "full" else _read_bounded
    measured = run(settings, model, _open(warmup), _open(text))
    measured["tokens_per_s"] = round(measured["tokens"] / measured["read_s"], 1)
    return rows.common_fields(find_checkpoint(model.model), model.device) | settings | measured


def _read_bounded(settings: Row, model: ModelConfig, warmup: Sources, text: Sources) -> Row:
    """Read and answer as `indexmem ask` does."""
    kept = MemoryConfig(
        settings["budget_tokens"], settings["chunk_tokens"], policy=settings["mode"], recall=False
    )
    first = Memory(warmup, kept, model)
    device = first.ask(QUESTION, max_tokens=ANSWER_TOKENS).model.device
    memory = replace(first, sources=text, _readings=[])
    del first
    before = _reset_peak(device)
    answer = memory.ask(QUESTION, max_tokens=ANSWER_TOKENS)
    return _peaks(device, before) | {
        "tokens": answer.coverage.tokens_read,
        "kv_tokens": answer.memory.kv_tokens,
        "kv_bytes": answer.memory.kv_bytes,
        "read_s": answer.timing.read_s,
    }


def _read_full(settings: Row, model: ModelConfig, warmup: Sources, text: Sources) -> Row:
    """Read the same chunks with plain transformers and keep everything; no logits, no answer."""
    checkpoint = find_checkpoint(model.model)
    tokenizer = load_tokenizer(checkpoint.path)
    backbone = load_backbone(checkpoint, model)
    backbone.detach()

    @torch.no_grad()
    def read(sources: Sources) -> DynamicCache:
        cache = DynamicCache()
        passages = (passage for document in sources.documents for passage in document.passages())
        for chunk in read_chunks(passages, tokenizer, settings["chunk_tokens"]):
            ids = torch.tensor([chunk.ids], device=backbone.device)
            backbone.decoder(input_ids=ids, past_key_values=cache, use_cache=True)
        return cache

    read(warmup)
    before, started = _reset_peak(backbone.info.device), time.perf_counter()
    cache = read(text)
    return _peaks(backbone.info.device, before) | {
        "tokens": cache.get_seq_length(),
        "kv_tokens": cache.get_seq_length(),
        "kv_bytes": sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers),
        "read_s": time.perf_counter() - started,
    }


def _reset_peak(device: str) -> int:
    """Forget the peak so far; return the bytes held now on the device of the model."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from VmRSS; Linux only
    if device == "cpu":
        return _status_bytes("VmRSS")
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _peaks(device: str, before: int) -> Row:
    """Most memory held since the reset, by the process, by the GPU, and above the loaded model."""
    process = _status_bytes("VmHWM")
    gpu = None if device == "cpu" else torch.cuda.max_memory_allocated(device)
    above = (process if gpu is None else gpu) - before
    return {"process_peak_bytes": process, "gpu_peak_bytes": gpu, "above_model_bytes": above}


def _status_bytes(name: str) -> int:
    status = Path("/proc/self/status").read_text("utf-8")
    return int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) * 1024


def _settings(options: argparse.Namespace, mode: str, length: int, run: int) -> Row:
    """What is measured, in the words of a row."""
    checkpoint = find_checkpoint(options.model)
    commit, dirty = rows.state_of_code()
    return {
        "benchmark": "memory",
        "commit": commit,
        "dirty": dirty,
        "revision": checkpoint.revision,
        "dtype": checkpoint.likely_dtype(options.dtype, options.device),
        "threads": options.threads,
        "malloc": MALLOC,
        "mode": mode,
        "budget_tokens": None if mode == "full" else options.budget,
        "chunk_tokens": options.chunk,
        "length_tokens": length,
        "run": run,
        "n": 1,
    }


def _in_new_process(options: argparse.Namespace, settings: Row, texts: dict[int, str]) -> list[Row]:
    """Measure, append the row and return it; none where it failed, as without memory enough."""
    model = {"model": options.model, "quant": "none", "dtype": options.dtype, "offline": True}
    model["device"] = options.device
    job = [settings, model, texts[0], texts[settings["length_tokens"]]]
    threads = {"OMP_NUM_THREADS": str(options.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, __file__, "--job", json.dumps(job)]
    environment = {**os.environ, **threads, **MALLOC}
    # Linux counts pages per processor and adds them up in batches: on one, less is missed.
    one = {max(os.sched_getaffinity(0))} if options.threads == 1 else os.sched_getaffinity(0)
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
        return []
    row = json.loads(done.stdout)
    rows.append_row(options.out, row)
    above, seconds = row["above_model_bytes"] / 2**20, row["read_s"]
    print(what, f"{above:.1f} MiB above the model, {seconds:.0f} s", file=sys.stderr, flush=True)
    return [row]


def _open(path: str) -> Sources:
    return open_sources([path], ReadConfig())


def _write_texts(folder: Path, options: argparse.Namespace, lengths: set[int]) -> dict[int, str]:
    """Write the book again and again into one file per length in tokens; 0 is the warm-up."""
    (book,) = _open(str(BOOK)).documents
    text = "".join(passage.text for passage in book.passages())
    tokenizer = load_tokenizer(find_checkpoint(options.model).path)
    chars_per_token = len(text) / len(tokenizer.encode(text))
    files = {length: folder / f"{length}.txt" for length in {0, *lengths}}
    for length, path in files.items():
        chars = int(chars_per_token * (length or WARMUP_CHUNKS * options.chunk))
        times, rest = divmod(chars, len(text))
        path.write_text(text * times + text[:rest], "utf-8")
    return {length: str(path) for length, path in files.items()}


def _print_summary(shown: list[Row]) -> None:
    """Print the medians over runs, and how far apart the lengths of each policy are."""
    lines = []
    for mode, length in dict.fromkeys((row["mode"], row["length_tokens"]) for row in shown):
        runs = [r for r in shown if (r["mode"], r["length_tokens"]) == (mode, length)]
        above = [row["above_model_bytes"] / 2**20 for row in runs]
        line = {"mode": mode, "tokens": runs[0]["tokens"], "KV MiB": runs[0]["kv_bytes"] / 2**20}
        line |= {"peak above model, MiB": statistics.median(above), "each run": above}
        line["process MiB"] = statistics.median(r["process_peak_bytes"] for r in runs) / 2**20
        line["tokens/s"] = statistics.median(row["tokens_per_s"] for row in runs)
        lines.append(line)
    rows.print_table(lines, list(lines[0]) if lines else [])
    for mode in dict.fromkeys(line["mode"] for line in lines if line["mode"] != "full"):
        peaks = [line["peak above model, MiB"] for line in lines if line["mode"] == mode]
        print(f"\n{mode}: the largest peak is {max(peaks) / min(peaks) - 1:.1%} above the smallest")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = rows.option_parser(__doc__.splitlines()[0], "memory")
    add, sizes = parser.add_argument, rows.parse_sizes
    add("--policies", type=lambda text: text.split(","), default="question")
    add("--lengths", type=sizes, default="16k,64k,256k,1m")
    add("--full-lengths", type=sizes, default="16k,64k", help="of the full cache; '' for none")
    add("--runs", type=int, default=3)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        settings, model, warmup, text = json.loads(sys.argv[2])
        print(json.dumps(measure(settings, ModelConfig(**model), warmup, text)))
    else:
        main()
