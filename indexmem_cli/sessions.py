"""Conversations on disk: one SQLite file with what was said. The memories lie in the library.

What was said is written before it is answered, so that a crash costs at most an answer; a memory
that is behind, or lost, is made again from here.
"""

import contextlib
import json
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from indexmem_cli.config import show_time
from indexmem_cli.errors import MemoryFileError
from indexmem_cli.library import Library, home
from indexmem_cli.library.disk import blake2b, locked, make_folder

FORMAT = 1
_APPLICATION = 0x494D4348  # "IMCH", in the header of the file
_TITLE_CHARS = 80
_SCHEMA = f"""
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {FORMAT};
CREATE TABLE sessions (
    id TEXT PRIMARY KEY,
    created_s REAL NOT NULL,
    used_s REAL NOT NULL,
    model TEXT NOT NULL,
    budget_tokens INTEGER,   -- NULL: what the model allows; or the text auto
    sources TEXT NOT NULL    -- JSON: paths, or ids of memories
);
CREATE TABLE turns (
    session TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    number INTEGER NOT NULL,
    asked_s REAL NOT NULL,
    question TEXT NOT NULL,
    answer TEXT NOT NULL,
    stop TEXT NOT NULL,      -- end | length | stopped
    sources TEXT NOT NULL,   -- JSON: where the answer stands
    PRIMARY KEY (session, number)
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Turn:
    """What the user said, and what was answered."""

    number: int
    """From 1."""
    asked_s: float
    """In seconds since 1970."""
    question: str
    answer: str = ""
    stop: str = "stopped"
    """Why the answer ended: `end`, `length`, or `stopped` by the user or a crash."""
    sources: tuple[dict[str, Any], ...] = ()
    """Fields of `events.Source`."""


@dataclass(frozen=True)
class Session:
    """A conversation, without what was said."""

    id: str
    """12 hexadecimal digits."""
    model: str
    budget_tokens: int | Literal["auto"] | None
    sources: tuple[str, ...] = ()
    """Paths and ids of memories that are looked through too."""
    created_s: float = field(default_factory=time.time)
    used_s: float = field(default_factory=time.time)
    turns: int = 0
    title: str = ""
    """The beginning of the first question."""

    def as_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {
            "id": self.id,
            "title": self.title,
            "turns": self.turns,
            "model": self.model,
            "budget_tokens": self.budget_tokens,
            "sources": list(self.sources),
            "created": show_time(self.created_s),
            "used": show_time(self.used_s),
        }


def new_id() -> str:
    """Return an id that no session has."""
    return secrets.token_hex(6)


def sessions_folder() -> Path:
    """Where the conversations lie: next to the memories."""
    return home() / "sessions"


class SessionStore:
    """All conversations of a user, or one that is kept nowhere."""

    def __init__(self, folder: Path | None) -> None:
        """Open the conversations in a folder; None: hold them in memory alone.

        Raises:
            OSError: nothing can be written there.
            MemoryFileError: the file there is damaged, or of another version.
        """
        self.folder = folder
        self._path = None
        if folder is not None:
            make_folder(folder)
            self._path = folder / "sessions.sqlite"
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        with self._explained():
            self._db = sqlite3.connect(self._path or ":memory:", timeout=10)
            for pragma in (
                "trusted_schema = OFF",
                "cell_size_check = ON",
                "foreign_keys = ON",
                "secure_delete = ON",  # what is removed is overwritten
            ):
                self._db.execute(f"PRAGMA {pragma}")
            self._open_tables()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def put(self, session: Session) -> None:
        """Add a conversation, or change what is known of it: it was used now.

        Raises:
            OSError: it cannot be written.
        """
        now_s = time.time()
        values = (session.model, session.budget_tokens, json.dumps(session.sources), now_s)
        self._write(
            "INSERT INTO sessions (id, model, budget_tokens, sources, used_s, created_s)"
            " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE"
            " SET model = excluded.model, budget_tokens = excluded.budget_tokens,"
            " sources = excluded.sources, used_s = excluded.used_s",
            (session.id, *values, now_s),
        )

    def put_turn(self, session_id: str, turn: Turn) -> None:
        """Add a turn, or complete it.

        Raises:
            OSError: it cannot be written.
        """
        said = (turn.number, turn.asked_s, turn.question, turn.answer, turn.stop)
        self._write(
            "INSERT OR REPLACE INTO turns VALUES (?, ?, ?, ?, ?, ?, ?)",
            (session_id, *said, json.dumps(turn.sources)),
        )

    def delete(self, session_id: str) -> None:
        """Forget a conversation."""
        self._write("DELETE FROM sessions WHERE id = ?", (session_id,))

    def all(self) -> list[Session]:
        """Every conversation, the last used first."""
        with self._explained():
            rows = self._db.execute(
                "SELECT id, model, budget_tokens, sources, created_s, used_s,"
                " (SELECT count(*) FROM turns WHERE session = id),"
                " (SELECT substr(question, 1, 1000) FROM turns WHERE session = id"
                "  ORDER BY number LIMIT 1)"
                " FROM sessions ORDER BY used_s DESC, id"
            ).fetchall()
            return [
                Session(i, model, budget, tuple(json.loads(sources)), made, used, n, _title(asked))
                for i, model, budget, sources, made, used, n, asked in rows
            ]

    def resolve(self, text: str) -> Session:
        """Return the conversation that a user means by an id or the start of one.

        Raises:
            MemoryFileError: it means none, or more than one.
        """
        found = [
            s for s in self.all() if s.id == text or (len(text) >= 4 and s.id.startswith(text))
        ]
        if len(found) == 1:
            return found[0]
        what = f"{len(found)} sessions begin with {text!r}" if found else f"no session {text!r}"
        raise MemoryFileError(what, "indexmem sessions list shows those there are")

    def last(self) -> Session:
        """Return the conversation that was used last.

        Raises:
            MemoryFileError: there is none.
        """
        found = self.all()
        if not found:
            raise MemoryFileError("there is no session to continue", "begin one: indexmem chat")
        return found[0]

    def turns(self, session_id: str, after: int = 0) -> list[Turn]:
        """What was said, in order, from the turn that follows number `after`."""
        with self._explained():
            rows = self._db.execute(
                "SELECT number, asked_s, question, answer, stop, sources FROM turns"
                " WHERE session = ? AND number > ? ORDER BY number",
                (session_id, after),
            )
            return [
                Turn(number, asked_s, question, answer, stop, tuple(json.loads(sources)))
                for number, asked_s, question, answer, stop, sources in rows
            ]

    def questions(self, most: int) -> list[str]:
        """The last questions of all conversations, oldest first."""
        with self._explained():
            rows = self._db.execute(
                "SELECT question FROM turns ORDER BY asked_s DESC LIMIT ?", (most,)
            )
            return [question for (question,) in rows][::-1]

    @contextlib.contextmanager
    def lock(self, session_id: str) -> Iterator[None]:
        """Keep other processes out of a conversation.

        Raises:
            LockTimeout: another process has it open.
            OSError: nothing can be written here.
        """
        if self.folder is None:
            yield
            return
        said = f"session {session_id} is open in another process"
        hint = "close it there, or begin a new one: indexmem chat"
        with locked(self.folder / ".locks" / f"{session_id}.lock", 0, said, hint):
            yield

    def _open_tables(self) -> None:
        found = self._kind()
        if found == (0, 0):
            try:
                self._db.executescript(f"BEGIN EXCLUSIVE; {_SCHEMA} COMMIT;")
            except sqlite3.OperationalError as error:
                self._db.rollback()
                # Another process may have made the same tables; else nothing can be written.
                if self._kind() == (0, 0):
                    self._db.close()
                    raise OSError(str(error)) from error
        elif found != (_APPLICATION, FORMAT):
            raise MemoryFileError(
                f"{self._path}: not sessions of version {FORMAT}",
                "install a newer indexmem, or move the file away",
            )

    def _kind(self) -> tuple[int, int]:
        """What the header of the file says that it is; zeros in a new one."""
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        return application, version

    def _write(self, statement: str, values: Sequence[object]) -> None:
        try:
            with self._db:
                self._db.execute(statement, values)
        except sqlite3.Error as error:
            raise OSError(str(error)) from error

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, ValueError, TypeError) as error:
            raise MemoryFileError(f"{self._path}: {error}", "move the file away") from error


def content_of(session_id: str) -> str:
    """What stands for a conversation in the key of its memory: the same however long it grows."""
    return blake2b(f"conversation {session_id}".encode())


def delete_session(store: SessionStore, session_id: str, library: Library) -> int:
    """Remove a conversation with its memory; return the bytes of that.

    Raises:
        LockTimeout: it is open in another process.
        OSError: it cannot be removed.
    """
    with store.lock(session_id):
        freed = forget(library, content_of(session_id))
        store.delete(session_id)
    return freed


def forget(library: Library, content: str, but: str | None = None) -> int:
    """Remove the memories of a conversation, but for one; return the bytes freed."""
    ids = [m.id for m in library.manifests() if m.key.content == content and m.id != but]
    freed = 0
    for memory_id in ids:
        with contextlib.suppress(OSError):
            freed += library.delete(memory_id)
    return freed


def _title(question: str | None) -> str:
    words = " ".join((question or "").split())
    return words if len(words) <= _TITLE_CHARS else f"{words[: _TITLE_CHARS - 1]}…"
