"""Keys and values of a whole text on the disk, as bytes that `bring_back.py` understands. No torch.

They lie in shards: SQLite files that are written one after the other while a text is read, and are
never changed once they are sealed, so that each can have a checksum in a manifest. A shard holds
rows of tokens, each with a digest of its own: a question reads few of them, and only those are
looked at. It holds too what became of tokens that were evicted, where a latent memory took them.
"""

import contextlib
import hashlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from indexmem_cli.database import Kind, explained
from indexmem_cli.errors import MemoryFileError

ROW_TOKENS = 64
"""Most tokens of a row: what is read for one token, and what one digest is of."""
_TABLES = """
CREATE TABLE rows (
    first INTEGER PRIMARY KEY,  -- stream position of the first token
    tokens INTEGER NOT NULL,
    data BLOB NOT NULL,         -- as many bytes for each token
    digest BLOB NOT NULL        -- BLAKE2b of position, tokens and data
);
CREATE TABLE evicted (
    position INTEGER NOT NULL,
    head INTEGER NOT NULL,      -- counted through all managed layers
    tag INTEGER NOT NULL,       -- what the latent memory gave it
    PRIMARY KEY (position, head)
) WITHOUT ROWID;
"""
SHARD = Kind("file of keys and values", 0x494D4B56, 1, _TABLES)  # "IMKV"
_HINT = "recall from its text (--recall-from text), or remove the memory and ingest again"
_PLACE = "the keys and values of the text"


class Shards:
    """Bytes for every token of a text, in the order of the text."""

    def __init__(self, sealed: Sequence[Path] = ()) -> None:
        """Open what there is, to read it and to go on where it ends.

        Args:
            sealed: shards that are whole, in the order of the text.

        Raises:
            MemoryFileError: one is missing or damaged.
        """
        self.new_path: Callable[[], Path] | None = None
        """Where the next shard goes. None: to a temporary file without a name."""
        self.sealed = list(sealed)
        self._open: tuple[Path | None, sqlite3.Connection] | None = None
        self._connections = [SHARD.open(path) for path in sealed]
        self.end = 0
        """Stream position after the last token held."""
        for path, connection in zip(self.sealed, self._connections, strict=True):
            query = "SELECT min(first), max(first + tokens) FROM rows"
            [(first, end)] = self._ask(connection, path, query)
            if first != self.end or type(end) is not int:
                raise MemoryFileError(f"{path}: its tokens are not those that come next")
            self.end = end

    def append(self, rows: bytes, tokens: int) -> None:
        """Add the next tokens, each with as many bytes.

        Raises:
            MemoryFileError: they cannot be written.
        """
        path, connection = self._writable()
        size = len(rows) // tokens
        with explained(path, _PLACE):
            for at in range(0, tokens, ROW_TOKENS):
                data = rows[at * size : (at + ROW_TOKENS) * size]
                row = (self.end + at, min(ROW_TOKENS, tokens - at), data)
                connection.execute("INSERT INTO rows VALUES (?, ?, ?, ?)", (*row, _digest(*row)))
            connection.commit()  # a full disk shows now, and not when a question comes
        self.end += tokens

    def note_evicted(self, gone: Iterable[Sequence[int]]) -> None:
        """Note (position, head, tag) of tokens that a latent memory took in.

        Raises:
            MemoryFileError: they cannot be written.
        """
        path, connection = self._writable()
        with explained(path, _PLACE):
            connection.executemany("INSERT OR REPLACE INTO evicted VALUES (?, ?, ?)", gone)
            connection.commit()

    def read(self, first: int, end: int) -> bytes:
        """Return the bytes of the tokens [first, end).

        Raises:
            MemoryFileError: some are missing, or are not as they were written.
        """
        found, at = b"", first
        query = "SELECT first, tokens, data, digest FROM rows WHERE first > ? AND first < ?"
        for path, row in self._all(f"{query} ORDER BY first", first - ROW_TOKENS, end):
            start, tokens, data, digest = row
            sound = type(tokens) is int and type(data) is bytes and 0 < tokens <= ROW_TOKENS
            if not sound or digest != _digest(start, tokens, data):
                raise self._damaged(path, start)
            size = len(data) // tokens
            if start <= at < start + tokens:
                found += data[(at - start) * size : (min(end, start + tokens) - start) * size]
                at = min(end, start + tokens)
        if at < end:
            raise self._damaged(self.sealed[-1] if self.sealed else None, at)
        return found

    def tags(self, first: int, end: int) -> list[tuple[int, int, int]]:
        """Return (position, head, tag) of what was evicted of the tokens [first, end)."""
        query = "SELECT position, head, tag FROM evicted WHERE position >= ? AND position < ?"
        return [row for _, row in self._all(query, first, end)]

    def seal(self) -> None:
        """End the shard that is being written, if there is one and a path for it.

        Raises:
            MemoryFileError: it cannot be written; what it holds is held still.
        """
        if self._open is None or self.new_path is None:
            return
        path, connection = self._open
        if path is None:  # it had no name so far
            path = self.new_path()
            with explained(path), contextlib.closing(SHARD.create(path)) as named:
                connection.backup(named)
        connection.close()
        self._open = None
        self._connections.append(SHARD.open(path))
        self.sealed.append(path)

    def close(self) -> None:
        """Close all files; what was not sealed is lost."""
        for connection in (*self._connections, *([self._open[1]] if self._open else [])):
            connection.close()
        self._connections, self._open = [], None

    def _writable(self) -> tuple[Path | None, sqlite3.Connection]:
        if self._open is None:
            path = self.new_path() if self.new_path else None
            self._open = path, SHARD.create(path)
        return self._open

    def _all(self, query: str, *values: int) -> Iterator[tuple[Path | None, tuple[Any, ...]]]:
        """Run a query in every shard."""
        places: list[tuple[Path | None, sqlite3.Connection]]
        places = list(zip(self.sealed, self._connections, strict=True))
        for path, connection in (*places, *([self._open] if self._open else [])):
            for row in self._ask(connection, path, query, *values):
                yield path, row

    def _ask(
        self, connection: sqlite3.Connection, path: Path | None, query: str, *values: int
    ) -> list[tuple[Any, ...]]:
        with explained(path, _PLACE, _HINT):
            return connection.execute(query, values).fetchall()

    def _damaged(self, path: Path | None, position: int) -> MemoryFileError:
        return MemoryFileError(
            f"{path or _PLACE}: what it holds of token {position:,} is not as it was written", _HINT
        )


def _digest(first: int, tokens: int, data: bytes) -> bytes:
    place = first.to_bytes(8, "little", signed=True) + tokens.to_bytes(8, "little")
    return hashlib.blake2b(place + data, digest_size=16).digest()
