"""Change real files at random and read them: is there ever anything but text or one clear error?

python benchmarks/fuzz.py --mutations 2000 --corpus DIR
"""

import argparse
import io
import re
import tempfile
import time
import zipfile
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path
from random import Random

from indexmem_cli.bench.rows import (
    EXAMPLE_BOOK,
    EXAMPLES,
    RESULTS,
    append_row,
    print_table,
    state_of_code,
)
from indexmem_cli.config import ReadConfig
from indexmem_cli.documents import apart, open_sources
from indexmem_cli.errors import DocumentError

MAX_BYTES = 500_000
NUMBERS = (b"0", b"-1", b"1", b"255", b"65536", b"2147483647", b"4294967296", b"9" * 19, b"1e999")
WORDS = (b"<<", b">>", b"obj", b"endobj", b"stream", b"/Kids", b"/Length", b"<", b"</", b"&", b'"')
COLUMNS = ["n", "read", "refused", "parser_ended", "wrong", "longest_s", "parser_peak_bytes"]
_CONTROLS = re.compile(r"[\0-\x08\x0b-\x1f\x7f\ud800-\udfff]")


def mutate(data: bytes, chance: Random) -> bytes:
    """Return the bytes with one to eight things wrong."""
    if zipfile.is_zipfile(io.BytesIO(data)) and chance.random() < 0.6:
        return _mutate_member(data, chance)
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 8))):
        at = chance.randrange(len(changed) + 1)
        length = chance.choice((1, 4, 64, 4096))
        kind = chance.randrange(8)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            changed[at : at + length] = chance.randbytes(length)
        elif kind == 2:
            del changed[at : at + length]
        elif kind == 3:
            changed[at:at] = changed[at : at + length] * chance.choice((1, 2, 50))
        elif kind == 4:
            del changed[at:]
        elif kind == 5:
            changed[at:at] = chance.choice(WORDS) * chance.choice((1, 1, 3, 2000))
        else:
            numbers = list(re.finditer(rb"\d+", bytes(changed)))
            if numbers:
                found = chance.choice(numbers)
                changed[found.start() : found.end()] = chance.choice(NUMBERS)
    return bytes(changed)


def _mutate_member(data: bytes, chance: Random) -> bytes:
    """Change a file inside a zip, and pack the zip again."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w", 8) as new:
        names = old.namelist()
        likely = [name for name in names if name.endswith(("ml", "opf", "ncx", "json"))]
        chosen = chance.choice(likely or names)
        for name in names:
            content = old.read(name)
            if name == chosen:
                content = mutate(content, chance)
            new.writestr(name, content)
    return made.getvalue()


def corpus(folder: Path | None) -> list[Path]:
    """Return the files to begin with; those of the examples are always among them."""
    examples = [EXAMPLES / "chat.txt", EXAMPLE_BOOK]
    files = sorted(folder.rglob("*")) if folder is not None else []
    return examples + [f for f in files if f.is_file() and f.stat().st_size <= MAX_BYTES]


def read(path: Path) -> str:
    """Read a file to its end; say what came of it."""
    try:
        [document] = open_sources([str(path)], ReadConfig()).documents
        for passage in document.passages():
            if _CONTROLS.search(passage.text):
                return "wrong: a control character in a text"
    except DocumentError as error:
        if "\n" in error.message or not error.message.startswith(str(path)):
            return f"wrong: {error.message}"
        ended = re.search("stood still|needs more than|crashed", error.message)
        return f"parser ended: {error.message}" if ended else "refused"
    except Exception as error:  # what this looks for
        return f"wrong: {type(error).__name__}: {error}"
    return "read"


def parser_peak_bytes() -> int:
    """Most memory that the waiting parser ever held; 0 where there is none, or no Linux."""
    for parser in apart.idle:
        status = Path(f"/proc/{parser.pid}/status")
        if status.exists() and (found := re.search(r"VmHWM:\s+(\d+)", status.read_text())):
            return int(found[1]) * 1024
    return 0


def main(arguments: list[str] | None = None) -> None:
    """Read the mutations, append a row and print it; keep the files that went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=2000)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for files that went wrong")
    parser.add_argument("--out", type=Path, default=RESULTS / "fuzz.jsonl")
    options = parser.parse_args(arguments)
    chance, files = Random(options.seed), corpus(options.corpus)
    seen, longest_s, peak_bytes = Counter(), 0.0, 0
    with tempfile.TemporaryDirectory() as name:
        for number in range(options.mutations):
            path = chance.choice(files)
            changed = Path(name) / f"{number}{path.suffix}"
            changed.write_bytes(mutate(path.read_bytes(), chance))
            started = time.monotonic()
            outcome, _, detail = read(changed).partition(": ")
            longest_s = max(longest_s, time.monotonic() - started)
            peak_bytes = max(peak_bytes, parser_peak_bytes())
            seen[outcome] += 1
            if detail:
                print(f"{number} {path.name}: {detail}", flush=True)
                if options.keep:
                    options.keep.mkdir(parents=True, exist_ok=True)
                    (options.keep / changed.name).write_bytes(changed.read_bytes())
            changed.unlink()
    commit, dirty = state_of_code()
    row = {
        "schema": 1,
        "benchmark": "fuzz",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit,
        "dirty": dirty,
        "seed": options.seed,
        "files": len(files),
        "n": options.mutations,
        "read": seen["read"],
        "refused": seen["refused"],
        "parser_ended": seen["parser ended"],
        "wrong": seen["wrong"],
        "longest_s": round(longest_s, 1),
        "parser_peak_bytes": peak_bytes,
    }
    append_row(options.out, row)
    print_table([row], COLUMNS)


if __name__ == "__main__":
    main()
