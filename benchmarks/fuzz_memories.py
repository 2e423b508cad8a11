"""Change the files of a saved memory at random: is it refused every time, or loaded as it was?

python benchmarks/fuzz_memories.py --cases 10000
"""

import argparse
import json
import struct
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import crash
import torch
from crash import Scene, digest, same
from safetensors.torch import load, save

from indexmem_cli.bench.rows import RESULTS, append_row, common_fields, print_table
from indexmem_cli.checkpoint import find_checkpoint
from indexmem_cli.config import DEFAULT_MODEL, RECALL_FROM, TEXT, ModelConfig
from indexmem_cli.errors import MemoryFileError
from indexmem_cli.language_model import load_language_model
from indexmem_cli.library import MANIFEST
from indexmem_cli.library.disk import blake2b
from indexmem_cli.library.manifest import Part

COLUMNS = ["kind", "n", "refused", "unchanged", "wrong"]
TYPES = (torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.uint8)


def flip(data: bytearray, chance: Random) -> None:
    """Flip one to eight bits."""
    for _ in range(chance.choice((1, 1, 1, 8))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def cut(data: bytearray, chance: Random) -> None:
    """End early."""
    del data[chance.randrange(len(data)) :]


def overwrite(data: bytearray, chance: Random) -> None:
    """Put zeros, or anything, over a piece: a block that was never written, or another file's."""
    at, length = chance.randrange(len(data)), chance.choice((1, 64, 4096))
    length = len(data[at : at + length])
    data[at : at + length] = chance.choice((bytes(length), chance.randbytes(length)))


def lengthen(data: bytearray, chance: Random) -> None:
    """Go on after the end, or put something in."""
    at = chance.choice((len(data), chance.randrange(len(data))))
    data[at:at] = chance.randbytes(chance.randrange(1, 4096))


DAMAGE: dict[str, Callable[[bytearray, Random], None]] = {
    "bits flipped": flip,
    "cut off": cut,
    "overwritten": overwrite,
    "lengthened": lengthen,
}


def change_header(data: bytes, chance: Random) -> bytes:
    """Claim another length of the header, or places outside of the file; the rest is kept."""
    (size,) = struct.unpack("<Q", data[:8])
    if chance.random() < 0.5:
        wrong = chance.choice((0, 1, size - 1, size + 1, 2**27, 2**62, chance.getrandbits(64)))
        return struct.pack("<Q", wrong) + data[8:]
    header = json.loads(data[8 : 8 + size])
    name = chance.choice([name for name in header if name != "__metadata__"])
    first, end = header[name]["data_offsets"]
    more = chance.choice((1, 4, 10**9, 2**40))
    changes = ([first, end + more], [end, first - 1], [-more, end], [first + more, end + more])
    header[name]["data_offsets"] = chance.choice(changes)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def change_tensors(data: bytes, chance: Random) -> bytes:
    """Write a valid file of tensors that cannot be those of this model and text."""
    tensors = load(data)
    name = chance.choice([name for name in sorted(tensors) if name.startswith("layers")])
    old = tensors.pop(name)
    kind = chance.randrange(6)
    axis = chance.randrange(old.dim())
    if kind == 0:
        tensors[name] = old.narrow(axis, 0, old.shape[axis] - 1).contiguous()
    elif kind == 1:
        tensors[name] = torch.cat([old, old.narrow(axis, 0, 1)], axis)
    elif kind == 2:
        tensors[name] = old.to(chance.choice(TYPES))
    elif kind == 3:
        tensors[name.replace("layers", "layer")] = old
    elif kind == 4:
        tensors[name] = old[0]
    return save(tensors)  # 5: the tensor is missing


def change_manifest(inner: dict[str, Any], chance: Random) -> None:
    """Say something that no manifest of this format and memory says; its checksum is right."""
    state = inner["states"][-1]
    other = chance.choice((-1, 0, 2, 99, "1", None, [], 1.5, 2**70))
    kind = chance.randrange(8)
    if kind == 0:
        inner["format"] = chance.choice((0, 2, 3, 99, "1", None, [], 1.5))
    elif kind == 1:
        inner["tokens"] = other
    elif kind == 2:
        inner["chain"] = inner["chain"][:-1]
    elif kind == 3:
        del inner[chance.choice(sorted(inner))]
    elif kind == 4:
        inner[f"more{chance.randrange(99)}"] = other
    elif kind == 5:
        state["layout"]["windows"] = [other]
    elif kind == 6:
        state["layout"]["seen"] = other
    else:
        state["part"] = chance.choice(("../x.safetensors", "/etc/passwd", "", "x", None))


class Target:
    """A saved memory that is damaged, looked at and repaired, again and again."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        scene.prepare()
        self.manifest = scene.read().manifest
        self.expected = digest(scene.read())
        self.folder = scene.library.folder(self.manifest.id)
        self.good = {path.name: path.read_bytes() for path in self.folder.iterdir()}

    def damage(self, kind: str, chance: Random) -> None:
        """Change the files on the disk."""
        part = self.manifest.states[-1].part
        if kind in DAMAGE:
            name = chance.choice(sorted(self.good))
            data = bytearray(self.good[name])
            DAMAGE[kind](data, chance)
            (self.folder / name).write_bytes(data)
        elif kind == "other manifest":
            inner = json.loads(self.good[MANIFEST])["manifest"]
            change_manifest(inner, chance)
            text = json.dumps(inner, sort_keys=True, separators=(",", ":"))
            outer = {"checksum": blake2b(text.encode()), "manifest": inner}
            (self.folder / MANIFEST).write_text(json.dumps(outer))
        else:  # with checksums that are right, as if another program had written it
            change = change_header if kind == "other header" else change_tensors
            data = change(self.good[part], chance)
            (self.folder / part).write_bytes(data)
            parts = {**self.manifest.parts, part: Part(len(data), blake2b(data))}
            (self.folder / MANIFEST).write_bytes(replace(self.manifest, parts=parts).dump())

    def outcome(self) -> str:
        """Ask for the memory as a question does."""
        try:
            reading = self.scene.read()
            found = digest(reading)  # where keys and values are stored, they are looked at now
        except MemoryFileError as error:
            return "refused" if error.hint and self.manifest.id in error.message else "wrong"
        except Exception as error:  # what this looks for
            print(f"{type(error).__name__}: {error}", flush=True)
            return "wrong"
        is_same = reading.tokens_reused == reading.tokens and same(found, self.expected)
        return "unchanged" if is_same else "wrong"

    def repair(self) -> None:
        """Put everything back."""
        for name, data in self.good.items():
            (self.folder / name).write_bytes(data)


def main(arguments: list[str] | None = None) -> None:
    """Run every kind of damage, append a row for each and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "fuzz_memories.jsonl")
    parser.add_argument("--recall-from", choices=RECALL_FROM, help="what is stored for recall")
    options = parser.parse_args(arguments)
    crash.MEMORY = replace(crash.MEMORY, recall_from=options.recall_from)
    engine = load_language_model(ModelConfig(model=options.model, device="cpu"))
    text = "".join(f"Line {i}: the mill passes to heir number {i * 7 % 101}.\n" for i in range(48))
    kinds = (*DAMAGE, "other header", "other tensors", "other manifest")
    seen = {kind: Counter() for kind in kinds}
    chance = Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        target = Target(Scene(engine, text, Path(name), "reading again"))
        for number in range(options.cases):
            kind = kinds[number % len(kinds)]
            target.damage(kind, chance)
            seen[kind][target.outcome()] += 1
            target.repair()
        if target.outcome() != "unchanged":
            raise RuntimeError("the memory was not put back")
    fields = common_fields(find_checkpoint(options.model), "cpu")
    fields["recall_from"] = options.recall_from or TEXT
    rows = [
        {**fields, "kind": kind, "n": found.total(), **{name: found[name] for name in COLUMNS[2:]}}
        for kind, found in seen.items()
    ]
    for row in rows:
        append_row(options.out, row)
    print_table(rows, COLUMNS)


if __name__ == "__main__":
    main()
