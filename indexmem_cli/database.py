"""SQLite files that are parts of a memory: made for their owner alone, and checked when opened.

Nothing that such a file defines is ever run: only the tables that its kind has are looked at.
"""

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from indexmem_cli.errors import MemoryFileError, reason

_CACHE_KIB = 256  # as fast as 2,048, and long texts take no more than short ones


@dataclass(frozen=True)
class Kind:
    """What a file is for."""

    name: str
    """Without an article, as in `archive`."""
    application: int
    """Number in the header of the file."""
    version: int
    tables: str
    """The statements that make them."""

    def create(self, path: Path | None) -> sqlite3.Connection:
        """Make a file with empty tables.

        Args:
            path: a file that is not there yet. None: SQLite's own temporary file, which has no
                name and goes with the connection.

        Raises:
            MemoryFileError: the file exists, or cannot be written.
        """
        connection = self._make(path) if path else configured("")
        with explained(path, f"the {self.name}"):
            connection.executescript(f"BEGIN; {self.schema} COMMIT;")
        return connection

    def open(self, path: Path, mode: str = "ro") -> sqlite3.Connection:
        """Connect to a file that is there, and see that it is of this kind; mode `ro` or `rw`.

        Raises:
            MemoryFileError: it is missing, damaged, or of another kind or version.
        """
        if not path.is_file():
            raise MemoryFileError(f"{path}: no such {self.name}")
        connection = _connect(path, mode)
        with explained(path):
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
        if (application, version) != (self.application, self.version):
            connection.close()
            raise MemoryFileError(f"{path}: no {self.name} of version {self.version}")
        return connection

    def check(self, path: Path) -> None:
        """See that a file is of this kind and nothing else, and look at every page of it.

        Raises:
            MemoryFileError: it is damaged, or holds tables that are none of this kind.
        """
        expected = sqlite3.connect(":memory:")
        expected.executescript(f"BEGIN; {self.schema} COMMIT;")
        query = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name"
        found = self.open(path)
        try:
            with explained(path):
                # What is defined in the file is looked at before anything of it is run.
                if found.execute(query).fetchall() != expected.execute(query).fetchall():
                    raise MemoryFileError(f"{path}: it defines what no {self.name} has")
                (result,) = found.execute("PRAGMA quick_check(1)").fetchone()
                if result != "ok":
                    raise MemoryFileError(f"{path}: {result}")
        finally:
            found.close()
            expected.close()

    @property
    def schema(self) -> str:
        """The statements that make an empty file of this kind."""
        return (
            f"PRAGMA application_id = {self.application};"
            f"PRAGMA user_version = {self.version};{self.tables}"
        )

    def _make(self, path: Path) -> sqlite3.Connection:
        """Make an empty file for its owner alone, where SQLite would make it for everybody."""
        try:
            path.touch(mode=0o600, exist_ok=False)
        except FileExistsError as error:
            raise MemoryFileError(f"{path}: there is such a file already") from error
        except OSError as error:
            raise MemoryFileError(f"{path}: {reason(error)}") from error
        return _connect(path, "rw")


def configured(uri: str) -> sqlite3.Connection:
    """Connect to a file by its address, to one in memory, or to a temporary one ("")."""
    connection = sqlite3.connect(uri, uri=uri.startswith("file:"), check_same_thread=False)
    for pragma in (
        "trusted_schema = OFF",
        "cell_size_check = ON",
        "mmap_size = 0",
        f"cache_size = -{_CACHE_KIB}",
        # A file that was not finished is never opened again, and a finished one is synced.
        "synchronous = OFF",
    ):
        connection.execute(f"PRAGMA {pragma}")
    return connection


class explained:
    """Turns SQLite's errors into one that names the file."""

    def __init__(
        self, path: Path | None, otherwise: str = "the archive", hint: str | None = None
    ) -> None:
        self._name, self._hint = path or otherwise, hint

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, sqlite3.Error):
            raise MemoryFileError(f"{self._name}: {error}", self._hint) from error


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    with explained(path):
        return configured(f"{path.absolute().as_uri()}?mode={mode}")
