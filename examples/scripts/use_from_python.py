"""The Python API: several sources, saving, reopening without the source, errors.

python examples/scripts/use_from_python.py
"""

import tempfile
from pathlib import Path

from indexmem_cli import IndexMemError, Memory

LETTER = "The mill passes to Ruth. The farm was sold to the Hale family in 1911.\n"
NOTES = "# Notes\nRuth lives at 12 Harbour Street. She keeps the key under the blue pot.\n"


def main(folder: Path) -> None:
    """Read two sources, save one, ask it again when its file is gone."""
    letter, notes = folder / "letter.txt", folder / "notes.md"
    letter.write_text(LETTER, "utf-8")
    notes.write_text(NOTES, "utf-8")

    both = Memory.read(letter, notes, budget=256)
    answer = both.ask("Where does Ruth keep the key?")
    print(answer, [Path(source.file).name for source in answer.sources])

    memory_id = Memory.read(letter, budget=256).save("letter")
    letter.unlink()
    reopened = Memory.open("letter")
    answer = reopened.ask("To whom was the farm sold?")
    reused = answer.memories[0].tokens_reused
    print(answer, f"(memory {memory_id}: {reused} tokens not read again)")

    print(answer.as_json()["coverage"])  # the same document as `indexmem ask --json`
    try:
        Memory.read(letter)
    except IndexMemError as error:
        print(f"exit code {error.exit_code}: {error.message.replace(str(folder), '')}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        main(Path(work))
