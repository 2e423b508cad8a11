"""The archives of several memories searched as one, under the names that their files have now.

Blocks are numbered through, and each archive's positions begin at a multiple of `STRIDE`, so that
for whoever looks something up they are one long text.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from indexmem_cli.archive import Archive, Block
from indexmem_cli.tokens import Entry

STRIDE = 1 << 40
"""More tokens than any text has."""


@dataclass(frozen=True)
class Archives:
    """What `Archive` offers to who searches it, over several of them."""

    parts: Sequence[Archive]
    names: Sequence[Mapping[str, str]]
    """For each archive the names of files that are other ones now."""

    def __len__(self) -> int:
        """Blocks of all."""
        return sum(map(len, self.parts))

    def places_of(self, words: Sequence[str], most: int) -> list[tuple[int, int]]:
        """Return the (block, passage) pairs that hold the words, as each archive does."""
        found, first = [], 0
        for part in self.parts:
            found += [(first + number, passage) for number, passage in part.places_of(words, most)]
            first += len(part)
        return found

    def block(self, number: int) -> Block:
        """Return a block by its number over all."""
        first = 0
        for index, part in enumerate(self.parts):
            if number < first + len(part):
                entries = part.block(number - first).entries
                return Block(number, tuple(self._here(index, entry) for entry in entries))
            first += len(part)
        return self.parts[-1].block(number - first + len(self.parts[-1]))  # which says so

    def text(self, block: Block) -> str:
        """Return the text of a block."""
        return self.parts[0].text(block)

    def text_of(self, entry: Entry) -> str:
        """Return the text of a passage."""
        return self.parts[0].text_of(entry)

    def find(self, position: int) -> Entry | None:
        """Return the passage that a position over all lies in."""
        return next(self.back_from(position), None)

    def back_from(self, position: int) -> Iterator[Entry]:
        """Yield the passage that a position over all lies in, then those before it; maybe none."""
        index, inside = divmod(position, STRIDE)
        if 0 <= index < len(self.parts):
            for entry in self.parts[index].back_from(inside):
                yield self._here(index, entry)

    def _here(self, index: int, entry: Entry) -> Entry:
        """An entry under its position and file name over all."""
        name = self.names[index].get(entry.place.file)
        place = entry.place if name is None else replace(entry.place, file=name)
        return Entry(entry.first + index * STRIDE, entry.ids, place)
