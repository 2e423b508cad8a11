"""Every error a user can meet, with its exit code.

IndexMemError            1  a fault while running
├── ConfigError          2  an option or a combination of options is wrong
├── DocumentError        3  a source cannot be read (missing, encrypted, no text, unknown format)
├── MemoryFileError      4  a saved memory is damaged, or does not fit what is asked of it
├── BackboneError        5  a model is missing, unsupported, or cannot be had offline
├── OutOfMemory          6  the model and its budget do not fit the device
├── LockTimeout          7  another process kept a saved memory for too long
└── NotFullyRead         8  --strict was given and something was not read

130 is Ctrl-C, 141 a closed pipe, 143 SIGTERM.
"""


class IndexMemError(Exception):
    """One clear failure: what was asked and found, and in `hint` what to do next."""

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(IndexMemError):
    """An option, or a combination of options, is wrong."""

    exit_code = 2


class DocumentError(IndexMemError):
    """A source cannot be read, or holds no text."""

    exit_code = 3


class MemoryFileError(IndexMemError):
    """A saved memory is damaged, or does not fit what is asked of it."""

    exit_code = 4


class BackboneError(IndexMemError):
    """A model is missing, not supported, or cannot be had offline."""

    exit_code = 5


class OutOfMemory(IndexMemError):
    """The model and its budget do not fit the device."""

    exit_code = 6


class LockTimeout(IndexMemError):
    """Another process kept a saved memory for too long."""

    exit_code = 7


class NotFullyRead(IndexMemError):
    """Some of the source was not read, and `--strict` forbids that."""

    exit_code = 8


def first_line(error: Exception) -> str:
    """What an error says, cut after its first line; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def reason(error: Exception) -> str:
    """What the system says of a failure, without its number and the file's name."""
    return getattr(error, "strerror", None) or str(error)
