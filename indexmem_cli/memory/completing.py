"""Blocks that begin or end within a sentence: the lines beside them that complete it."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from indexmem_cli.archive import Block
    from indexmem_cli.memory.naming import Searched
    from indexmem_cli.tokens import Entry

MOST_TOKENS = 48
"""Of what completes a block, on each side."""
_SENTENCE_END = re.compile(r"[.!?\u2026][\"')\]\u201d\u2019\u00bb]*\s*$")


def complete(archive: "Searched", block: "Block", room_tokens: int) -> "tuple[Entry, ...]":
    """Return the passages in which the first sentence of a block begins and its last one ends.

    They are lines of running text whose line ends were not the text's own (PDF, hard-wrapped text).
    None of them are returned if together they take more than `room_tokens`.
    """
    before = archive.block(block.number - 1).entries if block.number else ()
    after = archive.block(block.number + 1).entries if block.number + 1 < len(archive) else ()
    completing: list[Entry] = []
    edge, room = block.entries[0], MOST_TOKENS
    for entry in reversed(before):
        room -= len(entry.ids)
        if room < 0 or not _goes_on(archive, entry, edge):
            break
        completing.append(edge := entry)
    edge, room = block.entries[-1], MOST_TOKENS
    for entry in after:
        room -= len(entry.ids)
        if room < 0 or not _goes_on(archive, edge, entry):
            break
        completing.append(edge := entry)
    fits = sum(len(entry.ids) for entry in completing) <= room_tokens
    return tuple(completing) if fits else ()


def _goes_on(archive: "Searched", entry: "Entry", following: "Entry") -> bool:
    text = archive.text_of(entry)
    ends = text.endswith("\n") or _SENTENCE_END.search(text)
    return not ends and entry.place.file == following.place.file
