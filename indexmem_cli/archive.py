"""The archive: every block of the text that was read, on disk, to be found again by its words.

One SQLite file. Text is data only: what a question or a document holds never becomes a query.
"""

import contextlib
import json
import sqlite3
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from indexmem_cli.database import Kind, configured, explained
from indexmem_cli.documents import Place
from indexmem_cli.errors import MemoryFileError
from indexmem_cli.terms import searchable
from indexmem_cli.tokens import Entry

BLOCK_TOKENS = 128
"""A block ends before the passage that would make it longer than this."""
QUESTION = "question"
"""Passages of this unit are kept but not found: nothing is as like a question as itself."""
_PLACE = [field.name for field in fields(Place)][1:]
_DEFAULTS = {field.name: field.default for field in fields(Place)}
_MOST_PASSAGES = 256  # in a block: none is without a token
_TABLES = """
CREATE TABLE files (number INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE blocks (
    number INTEGER PRIMARY KEY,
    first INTEGER NOT NULL,  -- stream position of the first token
    ids BLOB NOT NULL,       -- token ids, 4 bytes each, little-endian
    passages TEXT NOT NULL   -- JSON: [tokens, file, page, page label, line, …] of each passage
);
CREATE VIRTUAL TABLE words USING fts5(text, content='', tokenize='porter unicode61');
"""
ARCHIVE = Kind("archive", 0x494D454D, 1, _TABLES)  # "IMEM"

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive passages of one file."""

    number: int
    """Counted from 0 in the order of the text."""
    entries: tuple[Entry, ...]

    @property
    def first(self) -> int:
        """Stream position of its first token."""
        return self.entries[0].first

    @property
    def end(self) -> int:
        """Stream position after its last token."""
        return self.entries[-1].end

    @property
    def ids(self) -> list[int]:
        """All of its tokens."""
        return [i for entry in self.entries for i in entry.ids]


class Archive:
    """Blocks of text in one file, written while a text is read and searched afterwards."""

    def __init__(self, path: Path | None, connection: sqlite3.Connection, decode: Decode) -> None:
        """Take over a connection; `create` and `open` make archives."""
        self.path = path
        """None: it has no file of its own."""
        self._db = connection
        self._decode = decode
        self._uncommitted: list[Entry] = []
        self._open: list[Entry] = []  # of the block that is still growing
        self._files: dict[str, int] = {}
        self.end = 0
        """Stream position after the last token held."""

    @classmethod
    def create(cls, path: Path | None, decode: Decode) -> "Archive":
        """Make an empty archive to write into.

        Args:
            path: a file that is not there yet. None: SQLite's own temporary file, which has no
                name and goes with the connection.
            decode: function of token ids that returns their text.

        Raises:
            MemoryFileError: the file exists, or cannot be written.
        """
        return cls(path, ARCHIVE.create(path), decode)

    @classmethod
    def open(cls, path: Path, decode: Decode) -> "Archive":
        """Open an archive to search it, without changing the file.

        Raises:
            MemoryFileError: it is missing, damaged, or of another version.
        """
        return cls(path, ARCHIVE.open(path), decode)

    def close(self) -> None:
        """Close the file; what was not committed is lost."""
        self._db.close()

    def add(self, entries: Iterable[Entry]) -> None:
        """Take in passages in the order of the text; one that is known already is passed over."""
        for entry in entries:
            if entry.first < self.end:
                continue
            self._uncommitted.append(entry)
            tokens = sum(len(known.ids) for known in self._open)
            other_file = self._open and self._open[0].place.file != entry.place.file
            if self._open and (other_file or tokens + len(entry.ids) > BLOCK_TOKENS):
                self._write(self._open)
                self._open = []
            self._open.append(entry)
            self.end = entry.end

    def commit(self, *, last: bool = False) -> None:
        """Make what was written survive a crash.

        Args:
            last: write the block that is still growing too; see `reopen_last`.
        """
        if last and self._open:
            self._write(self._open)
            self._open = []
        with explained(self.path):
            self._db.commit()
        self._uncommitted = list(self._open)

    def copied(self, path: Path | None = None) -> "Archive":
        """Return a copy of all that was committed, to go on writing in; `path` as in `create`."""
        connection = ARCHIVE.create(path)
        with explained(path):
            self._db.backup(connection)
        copy = Archive(path, connection, self._decode)
        copy.end = copy.block(len(copy) - 1).end if len(copy) else 0
        return copy

    def in_memory(self) -> "Archive":
        """Return a copy of all that was added, also of what could not be written any more."""
        with contextlib.suppress(sqlite3.Error):  # there may be nothing to take back
            self._db.rollback()
        copy = Archive(None, configured(":memory:"), self._decode)
        copy._db.executescript(f"BEGIN; {ARCHIVE.schema} COMMIT;")
        for block in self:
            copy.add(block.entries)
        copy.add(self._uncommitted)
        return copy

    def back_from(self, position: int) -> Iterator[Entry]:
        """Yield the passage that a stream position lies in, then those before it; maybe none."""
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            block = self.block(middle)
            if block.end <= position:
                low = middle + 1
            elif block.first > position:
                high = middle
            else:
                yield from (entry for entry in block.entries[::-1] if entry.first <= position)
                for number in range(middle - 1, -1, -1):
                    yield from self.block(number).entries[::-1]
                return

    def __len__(self) -> int:
        """Blocks written."""
        [(last,)] = self._run("SELECT max(number) FROM blocks")
        return 0 if last is None else last + 1

    def __iter__(self) -> Iterator[Block]:
        """All blocks in the order of the text, one at a time."""
        for number in range(len(self)):
            yield self.block(number)

    def block(self, number: int) -> Block:
        """Return a block by its number.

        Raises:
            MemoryFileError: there is none, or it is damaged.
        """
        rows = self._run("SELECT first, ids, passages FROM blocks WHERE number = ?", number)
        if not rows:
            raise MemoryFileError(f"{self.path}: there is no block {number}")
        entries = []
        try:
            first, ids, passages = rows[0][0], _unpack(rows[0][1]), json.loads(rows[0][2])
            for tokens, file, *rest in passages:
                place = Place(self._file_name(file), *rest)
                entries.append(Entry(first, ids[:tokens], place))
                first, ids = first + tokens, ids[tokens:]
        except (TypeError, ValueError) as error:
            raise MemoryFileError(f"{self.path}: block {number} is damaged") from error
        if not entries or ids:
            raise MemoryFileError(f"{self.path}: block {number} is damaged")
        return Block(number, tuple(entries))

    def text(self, block: Block) -> str:
        """Return the text of a block."""
        return self._decode(block.ids)

    def text_of(self, entry: Entry) -> str:
        """Return the text of a passage."""
        return self._decode(entry.ids)

    def places_of(self, words: Sequence[str], most: int) -> list[tuple[int, int]]:
        """Find the passages that hold these words one after the other, in any form of them.

        Returns:
            (block number, index of the passage in it), ascending; at most `most` of them.
        """
        phrase = " ".join(word.replace('"', " ").replace("\0", " ") for word in words)
        query = "SELECT rowid FROM words WHERE words MATCH ? LIMIT ?"
        rows = self._run(query, f'"{phrase}"', most)
        return [divmod(row, _MOST_PASSAGES) for (row,) in rows]

    def _write(self, entries: list[Entry]) -> None:
        number = len(self)
        rows = []
        for entry in entries:
            place = entry.place
            file = self._file_number(place.file)
            row = [getattr(place, name) for name in _PLACE]
            while row[3:] and row[-1] == _DEFAULTS[_PLACE[len(row) - 1]]:
                row.pop()  # most places have nothing there
            rows.append([len(entry.ids), file, *row])
        ids = [i for entry in entries for i in entry.ids]
        places = json.dumps(rows, separators=(",", ":"))
        first = entries[0].first
        self._run("INSERT INTO blocks VALUES (?, ?, ?, ?)", number, first, pack_ids(ids), places)
        for words in self._rows(number, entries):
            self._run("INSERT INTO words (rowid, text) VALUES (?, ?)", *words)

    def _rows(self, number: int, entries: Sequence[Entry]) -> list[tuple[int, str]]:
        """What the index holds of a block: one row for each passage that can be found."""
        first = number * _MOST_PASSAGES
        return [
            (first + i, searchable(self._decode(entry.ids)))
            for i, entry in enumerate(entries)
            if entry.place.unit != QUESTION
        ]

    def reopen_last(self) -> None:
        """Take the last block out, to go on with it: until `commit(last=True)`."""
        if not len(self):
            return
        block = self.block(len(self) - 1)
        for gone in self._rows(block.number, block.entries):
            self._run("INSERT INTO words (words, rowid, text) VALUES ('delete', ?, ?)", *gone)
        self._run("DELETE FROM blocks WHERE number = ?", block.number)
        self._open, self.end = list(block.entries), block.end

    def _file_number(self, name: str) -> int:
        if name not in self._files:
            rows = self._run("SELECT number FROM files WHERE name = ?", name)
            if not rows:
                rows = self._run("INSERT INTO files (name) VALUES (?) RETURNING number", name)
            self._files = {name: rows[0][0]}  # files come one after the other
        return self._files[name]

    def _file_name(self, number: int) -> str:
        rows = self._run("SELECT name FROM files WHERE number = ?", number)
        if not rows:
            raise MemoryFileError(f"{self.path}: there is no file {number}")
        return str(rows[0][0])

    def _run(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Run one statement and return its rows."""
        with explained(self.path):
            return self._db.execute(statement, values).fetchall()


def pack_ids(ids: Sequence[int]) -> bytes:
    """Return token ids as bytes, four for each, little-endian."""
    packed = array("I", ids)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def _unpack(data: bytes) -> list[int]:
    ids = array("I", data)
    if sys.byteorder == "big":
        ids.byteswap()
    return ids.tolist()
