"""Kill readings, chats and removals at random moments: is what was there or what comes whole?

python benchmarks/crash.py --kills 500
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads sleep; read when torch loads

import argparse
import contextlib
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import torch

from indexmem_cli import conversation
from indexmem_cli.bench.rows import RESULTS, append_row, common_fields, print_table
from indexmem_cli.checkpoint import find_checkpoint
from indexmem_cli.cli.memories import prune
from indexmem_cli.config import (
    DEFAULT_MODEL,
    RECALL_FROM,
    TEXT,
    AnswerConfig,
    MemoryConfig,
    ModelConfig,
    ReadConfig,
    StoreConfig,
)
from indexmem_cli.conversation import LAST, Conversation, open_conversation
from indexmem_cli.documents import open_each
from indexmem_cli.engine import make_reader
from indexmem_cli.events import Notice
from indexmem_cli.growing import GrowingReading
from indexmem_cli.language_model import LanguageModel, load_language_model
from indexmem_cli.library import MANIFEST, Library
from indexmem_cli.library.manifest import Key
from indexmem_cli.library.saver import Saver
from indexmem_cli.plan import make_plan
from indexmem_cli.reading import Reading
from indexmem_cli.sessions import SessionStore, sessions_folder

CHUNK = 64
MEMORY = MemoryConfig(budget_tokens=128, chunk_tokens=CHUNK, policy="knorm")
COLUMNS = ["scene", "n", "moments", "whole", "resumed", "swept", "wrong"]


class Scene:
    """One text, read and saved again and again."""

    def __init__(self, engine: LanguageModel, text: str, folder: Path, kind: str) -> None:
        self.engine, self.kind = engine, kind
        self.source, self.library = folder / "text.txt", Library(folder / "memories")
        self.text, self.before = text, text[: len(text) * 2 // 3]

    def prepare(self) -> None:
        """Make what is there before what will be killed."""
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
        opening = self.engine.prompt.opening
        plan, _ = make_plan(MEMORY, 2048, len(opening), 64)
        [sources] = open_each([str(self.source)], ReadConfig())
        reader = make_reader(self.engine.backbone, plan, MEMORY, [])
        form = MEMORY.recall_from
        reading = Reading(sources, reader, self.engine.tokenizer, opening, form)
        key = Key("", "model", "tokenizer", {"chunk_tokens": CHUNK, "recall_from": form or TEXT})
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

    def expect(self) -> None:
        """Keep what must come of it in the end."""
        self.expected = digest(self.read(fresh=True))

    def judge(self, seen: Counter[str]) -> None:
        """Look at what is left, then read to the end."""
        folders = map(self.library.folder, self.library.ids())
        whole = [folder.name for folder in folders if (folder / MANIFEST).exists()]
        seen["whole"] += bool(whole)
        seen["wrong"] += self.kind in ("reading again", "grown text") and not whole
        for memory_id in whole:
            self.library.verify(memory_id)
        reading = self.read()
        seen["resumed"] += 0 < reading.tokens_reused < reading.tokens
        seen["wrong"] += not same(digest(reading), self.expected)

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
        """Work in a process that is killed after so long; tell whether it was still at work."""
        process = os.fork()
        if process == 0:
            with contextlib.suppress(BaseException):
                self.work()
                os._exit(0)
            traceback.print_exc()
            os._exit(1)
        time.sleep(seconds)
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status):
            raise RuntimeError("it failed before it was killed")
        return os.WIFSIGNALED(status)


class Pruning(Scene):
    """Four memories, of which two were not used for long."""

    def prepare(self) -> None:
        """Put all four back."""
        kept = self.library.root.with_name("kept")
        if not kept.exists():
            for number in range(4):
                self.source = kept.with_name(f"{number}.txt")
                self.source.write_text(f"Book {number}.\n{self.before}")
                self.read()
            self.library.root.rename(kept)
        shutil.rmtree(self.library.root, ignore_errors=True)
        shutil.copytree(kept, self.library.root)
        self.ids = sorted(self.library.ids())
        for memory_id in self.ids[:2]:
            long_ago = time.time() - 100 * 86400
            for path in self.library.folder(memory_id).iterdir():
                os.utime(path, (long_ago, long_ago))

    def work(self) -> None:
        """Prune, as the command does."""
        with Path(os.devnull).open("w") as nothing, contextlib.redirect_stdout(nothing):
            prune(["used>30d"], yes=True)

    def expect(self) -> None:
        """Only the two that are in use may stay."""
        assert sorted(self.library.ids()) == self.ids[2:]

    def judge(self, seen: Counter[str]) -> None:
        """Those in use are whole, the others whole or gone; pruning again ends it."""
        left = sorted(self.library.ids())
        seen["whole"] += len(left) == 4
        seen["resumed"] += len(left) == 3
        seen["wrong"] += left[-2:] != self.ids[2:]
        for memory_id in left:
            self.library.verify(memory_id)
        self.work()
        seen["wrong"] += sorted(self.library.ids()) != self.ids[2:]


class Chat(Scene):
    """A conversation of two turns, to which four are added; its memory is saved after each."""

    def open(self, **options) -> Conversation:
        """Open the conversation with the model that is loaded."""
        model = ModelConfig(self.engine.name, device="cpu", offline=True)
        talk = open_conversation([], memory=MEMORY, model=model, **options)
        talk._engine = self.engine
        return talk

    def say(self, talk: Conversation, numbers: range) -> None:
        """Say what belongs to each turn; tell whoever kills of each that was answered."""
        for number in numbers:
            for _ in talk.ask(question(number), AnswerConfig(max_tokens=3)):
                pass
            os.write(self.told, bytes([number]))

    def prepare(self) -> None:
        """Say the first two turns."""
        for folder in (self.library.root, sessions_folder()):
            shutil.rmtree(folder, ignore_errors=True)
        self.heard, self.told = os.pipe()
        talk = self.open()
        self.say(talk, range(1, 3))
        assert not talk.close()

    def work(self) -> None:
        """Go on with it."""
        talk = self.open(resumed=LAST)
        self.say(talk, range(3, 7))
        assert not talk.close()

    def expect(self) -> None:
        """What must come of it is what was said."""

    def judge(self, seen: Counter[str]) -> None:
        """Every answered turn is there, and the memory is that of the turns."""
        os.close(self.told)
        with os.fdopen(self.heard, "rb") as stream:
            answered = max(stream.read())
        for memory_id in self.library.ids():
            if (self.library.folder(memory_id) / MANIFEST).exists():
                seen["whole"] += 1
                self.library.verify(memory_id)
        store = SessionStore(sessions_folder())
        turns = store.turns(store.last().id)
        store.close()
        is_right = [turn.question for turn in turns] == [question(turn.number) for turn in turns]
        is_right &= [turn.number for turn in turns] == list(range(1, len(turns) + 1))
        is_right &= answered <= len(turns) <= answered + 1
        is_right &= all(turn.stop != "stopped" for turn in turns[:answered])
        resumed = self.recollect()
        seen["resumed"] += 0 < resumed.saved_turns < len(turns)
        for memory_id in self.library.ids():
            self.library.delete(memory_id)
        seen["wrong"] += not (is_right and same(digest(resumed), digest(self.recollect())))

    def recollect(self) -> GrowingReading:
        """The conversation as it is found: its saved memory, and what is read again."""
        talk = self.open(resumed=LAST)
        for event in talk.start():
            assert not isinstance(event, Notice), event
        talk.close(save=False)
        return talk._growing


SCENES = {
    "first reading": Scene,
    "reading again": Scene,
    "grown text": Scene,
    "removal": Scene,
    "pruning": Pruning,
    "chat": Chat,
}


def question(number: int) -> str:
    """What is said in a turn."""
    return f"Line {number}: the mill passes to heir number {number * 7 % 101}."


def digest(reading: Reading) -> list:
    """All that a memory holds, to be compared."""
    layers = [
        getattr(layer, name)[:, :, : layer.held].clone()
        for layer in reading.reader.state.layers
        for name in ("keys", "values", "positions")
    ]
    stored = reading.reader.stored
    if stored is not None:
        rows = bytearray(stored.shards.read(0, stored.shards.end))
        layers.append(torch.frombuffer(rows, dtype=torch.uint8))
    return [*layers, [block.ids for block in reading.archive]]


def same(one: list, other: list) -> bool:
    """Whether two memories hold the same, bit for bit."""
    tensors = zip(one[:-1], other[:-1], strict=True)
    return one[-1] == other[-1] and all(torch.equal(a, b) for a, b in tensors)


def run(engine: LanguageModel, text: str, kind: str, kills: int, seed: int) -> dict:
    """Kill a scene `kills` times, and look at what is left each time."""
    chance, seen = Random(seed), Counter()
    with tempfile.TemporaryDirectory() as name:
        os.environ["INDEXMEM_HOME"] = name
        scene = SCENES[kind](engine, text, Path(name), kind)
        for _ in range(2):  # the first time, modules are imported
            scene.prepare()
            started = time.monotonic()
            scene.work()
        longest_s = 1.2 * (time.monotonic() - started)
        scene.expect()
        for _ in range(kills):
            scene.prepare()
            seen["moments"] += scene.kill_at(chance.uniform(0, longest_s))
            seen["swept"] += scene.sweep()
            scene.judge(seen)
    return {"scene": kind, "n": kills, **{name: seen[name] for name in COLUMNS[2:]}}


def main() -> None:
    """Run every scene, append a row for each and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recall-from", choices=RECALL_FROM, help="what is stored for recall")
    parser.add_argument("--scenes", default=",".join(SCENES), help="those that are killed")
    parser.add_argument("--out", type=Path, default=RESULTS / "crash.jsonl")
    options = parser.parse_args()
    global MEMORY
    MEMORY = replace(MEMORY, recall_from=options.recall_from)
    torch.set_num_threads(1)  # threads do not survive a fork
    Saver.is_due = lambda saver: True  # save after every chunk: most kills hit a save
    conversation.CHECKPOINT_S, conversation._MAX_COST = 0.0, 1e9  # and after every turn
    engine = load_language_model(ModelConfig(model=options.model, device="cpu"))
    text = "".join(f"Line {i}: the mill passes to heir number {i * 7 % 101}.\n" for i in range(48))
    fields = common_fields(find_checkpoint(options.model), "cpu")
    fields["recall_from"] = options.recall_from or TEXT
    rows = []
    scenes = options.scenes.split(",")
    for number, kind in enumerate(scenes):
        kills = options.kills // len(scenes) + (number < options.kills % len(scenes))
        rows.append({**fields, **run(engine, text, kind, kills, options.seed + number)})
        append_row(options.out, rows[-1])
    print_table(rows, COLUMNS)


if __name__ == "__main__":
    main()
