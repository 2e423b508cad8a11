"""Every error a user can meet, with its exit code.

IndexMemError            1  a fault while running
├── ConfigError          2  an option or a combination of options is wrong
├── DocumentError        3  a source cannot be read (missing, encrypted, no text, unknown format)
├── BackboneError        5  a model is missing, unsupported, or cannot be had offline
├── OutOfMemory          6  the model and its budget do not fit the device
└── NotFullyRead         8  --strict was given and something was not read

Codes 4 (memory file) and 7 (lock) belong to saved memories. 130 is Ctrl-C, 141 a closed pipe.
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
    """A saved memory, or a part of it, is damaged or does not fit what it is wanted for."""

    exit_code = 4


class BackboneError(IndexMemError):
    """A model is missing, not supported, or cannot be had offline."""

    exit_code = 5


class OutOfMemory(IndexMemError):
    """The model and its budget do not fit the device."""

    exit_code = 6


class NotFullyRead(IndexMemError):
    """Some of the source was not read, and `--strict` forbids that."""

    exit_code = 8
