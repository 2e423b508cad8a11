"""Questions that name a function, a constant or an option: where source code defines it."""

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from indexmem_cli.terms import terms_of

if TYPE_CHECKING:
    from indexmem_cli.archive import Block
    from indexmem_cli.tokens import Entry

# parse_size, parseSize, --offline: no words of prose.
_BUILT = re.compile(r"--[a-z][\w-]+|\b[A-Za-z_]\w*(?:_|[a-z](?=[A-Z]))\w+")
_SAID = re.compile(
    r"\b(?:function|method|class|struct|type|constant|macro|variable|option)\s+(\w+)|(\w+)\(\)"
)
_MOST_PLACES = 400
_MOST_NAMES = 8
_DEFINING = r"\s*(?:(?:export|const|let|var|static|final|pub|public|private|inline|#\s*define)\s+)*"


class Searched(Protocol):
    """What is searched: an archive, or several as one."""

    def __len__(self) -> int: ...
    def places_of(self, words: Sequence[str], most: int) -> list[tuple[int, int]]: ...
    def block(self, number: int) -> "Block": ...
    def text(self, block: "Block") -> str: ...
    def text_of(self, entry: "Entry") -> str: ...


def find_names(question: str) -> list[str]:
    """Return what a question names: words that can be nothing but names, and those said to be."""
    said = (name for pair in _SAID.findall(question) for name in pair if name)
    return list(dict.fromkeys([*_BUILT.findall(question), *said]))[:_MOST_NAMES]


def find_definitions(archive: Searched, question: str) -> list[int]:
    """Return the blocks that define what the question names, in the order of the names."""
    numbers: list[int] = []
    for name in find_names(question):
        numbers += _definitions_of(archive, name)
    return list(dict.fromkeys(numbers))


def _definitions_of(archive: Searched, name: str) -> Iterator[int]:
    places = archive.places_of(terms_of(name), _MOST_PLACES + 1)
    if len(places) > _MOST_PLACES:
        return
    for number, passage in places:
        entry = archive.block(number).entries[passage]
        if defines(entry, archive.text_of(entry), name):
            yield number


def defines(entry: "Entry", text: str, name: str) -> bool:
    """Whether a passage with this text defines a name."""
    if name.startswith("--"):
        return re.search(rf"[\"'`]{re.escape(name)}\b", text) is not None
    symbol = entry.place.symbol or ""
    if re.split(r"[.:]+", symbol)[-1] == name:
        # The line that names it, not one that calls it from inside.
        return re.search(rf"(?<![\w.>]){name}\b", text) is not None
    if re.match(rf"\s*#\s*define\s+{name}\b", text):
        return True
    return re.match(rf"{_DEFINING}{name}\s*(?::[^=]+)?=(?!=)", text) is not None
