"""Kill readings and removals at random moments: is the old or the new memory whole every time?

python benchmarks/crash.py --kills 500
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads sleep; read when torch loads

import argparse
import contextlib
import signal
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from random import Random

import torch

from indexmem_cli.bench.rows import RESULTS, append_row, common_fields, print_table
from indexmem_cli.checkpoint import find_checkpoint
from indexmem_cli.config import DEFAULT_MODEL, MemoryConfig, ModelConfig, ReadConfig, StoreConfig
from indexmem_cli.documents import open_each
from indexmem_cli.engine import make_reader
from indexmem_cli.language_model import load_language_model
from indexmem_cli.library import MANIFEST, Library
from indexmem_cli.library.manifest import Key
from indexmem_cli.library.saver import Saver
from indexmem_cli.plan import make_plan
from indexmem_cli.reading import Reading

CHUNK = 64
SCENES = ("first reading", "reading again", "grown text", "removal")
COLUMNS = ["scene", "n", "moments", "whole", "resumed", "swept", "wrong"]


class Scene:
    """One text, read and saved again and again."""

    def __init__(self, engine, text: str, folder: Path, kind: str) -> None:
        self.engine, self.kind = engine, kind
        self.source, self.library = folder / "text.txt", Library(folder / "memories")
        self.text, self.before = text, text[: len(text) * 2 // 3]

    def prepare(self) -> None:
        """Make what is there before a reading that will be killed."""
        for memory_id in self.library.ids():
            self.library.delete(memory_id)
        if self.kind == "grown text":
            self.source.write_text(self.before)
            self.read()
        self.source.write_text(self.text)
        if self.kind in ("reading again", "removal"):
            self.read()

    def read(self, **store) -> Reading:
        """Read the source, or load its memory."""
        config = MemoryConfig(budget_tokens=128, chunk_tokens=CHUNK, policy="knorm")
        opening = self.engine.prompt.opening
        plan, _ = make_plan(config, 2048, len(opening), 64)
        [sources] = open_each([str(self.source)], ReadConfig())
        reader = make_reader(self.engine.backbone, plan, config, [])
        reading = Reading(sources, reader, self.engine.tokenizer, opening)
        key = Key("", "model", "tokenizer", {"chunk_tokens": CHUNK})
        for _ in reading.remember(key, "tiny", StoreConfig(**store), self.library):
            pass
        return reading

    def work(self) -> None:
        """Do what will be killed."""
        if self.kind == "removal":
            for memory_id in self.library.ids():
                self.library.delete(memory_id)
        else:
            self.read(fresh=self.kind == "reading again")

    def sweep(self) -> int:
        """Remove what a killed removal left, as if an hour had passed; count it."""
        left = list(self.library.root.glob(".gone-*"))
        for folder in left:
            os.utime(folder, (1, 1))
        self.library.sweep()
        if any(folder.exists() for folder in left):
            raise RuntimeError("a removed memory is still on the disk")
        return len(left)

    def kill_at(self, seconds: float) -> bool:
        """Read in a process that is killed after so long; tell whether it was still at work."""
        process = os.fork()
        if process == 0:
            with contextlib.suppress(BaseException):
                Saver.is_due = lambda saver: True  # save after every chunk: most kills hit a save
                self.work()
                os._exit(0)
            traceback.print_exc()
            os._exit(1)
        time.sleep(seconds)
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status):
            raise RuntimeError("the reading failed before it was killed")
        return os.WIFSIGNALED(status)


def digest(reading: Reading) -> list:
    """All that a memory holds, to be compared."""
    layers = [
        getattr(layer, name)[:, :, : layer.held].clone()
        for layer in reading.reader.state.layers
        for name in ("keys", "values", "positions")
    ]
    return [*layers, [block.ids for block in reading.archive]]


def same(one: list, other: list) -> bool:
    """Whether two memories hold the same, bit for bit."""
    tensors = zip(one[:-1], other[:-1], strict=True)
    return one[-1] == other[-1] and all(torch.equal(a, b) for a, b in tensors)


def run(engine, text: str, kind: str, kills: int, seed: int) -> dict:
    """Kill a scene `kills` times; look at what is left, then read to the end."""
    chance, seen = Random(seed), Counter()
    with tempfile.TemporaryDirectory() as name:
        scene = Scene(engine, text, Path(name), kind)
        scene.prepare()
        started = time.monotonic()
        expected = digest(scene.read(fresh=True))
        longest_s = 2.5 * (time.monotonic() - started)  # saving after every chunk takes longer
        if kind == "removal":
            started = time.monotonic()
            scene.work()
            longest_s = 2.5 * (time.monotonic() - started)
        scene.prepare()
        for _ in range(kills):
            seen["moments"] += scene.kill_at(chance.uniform(0, longest_s))
            folders = map(scene.library.folder, scene.library.ids())
            whole = [folder.name for folder in folders if (folder / MANIFEST).exists()]
            seen["whole"] += bool(whole)
            seen["swept"] += scene.sweep()
            if kind in ("reading again", "grown text") and not whole:
                seen["wrong"] += 1
            for memory_id in whole:
                scene.library.verify(memory_id)
            reading = scene.read()
            seen["resumed"] += 0 < reading.tokens_reused < reading.tokens
            seen["wrong"] += not same(digest(reading), expected)
            scene.prepare()
    return {"scene": kind, "n": kills, **{name: seen[name] for name in COLUMNS[2:]}}


def main() -> None:
    """Run every scene, append a row for each and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "crash.jsonl")
    options = parser.parse_args()
    torch.set_num_threads(1)  # threads do not survive a fork
    engine = load_language_model(ModelConfig(model=options.model, device="cpu"))
    text = "".join(f"Line {i}: the mill passes to heir number {i * 7 % 101}.\n" for i in range(48))
    fields = common_fields(find_checkpoint(options.model), "cpu")
    rows = []
    for number, kind in enumerate(SCENES):
        kills = options.kills // len(SCENES) + (number < options.kills % len(SCENES))
        rows.append({**fields, **run(engine, text, kind, kills, options.seed + number)})
        append_row(options.out, rows[-1])
    print_table(rows, COLUMNS)


if __name__ == "__main__":
    main()
