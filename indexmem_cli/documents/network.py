"""Pages and files from the network, for those who allow it."""

import re
from typing import BinaryIO

from indexmem_cli.config import ReadConfig
from indexmem_cli.errors import ConfigError, DocumentError

_TIMEOUT_S = 30
_BROKE_OFF = "the connection broke off"


def is_address(source: str) -> bool:
    """Tell whether a source is named by an address of the web."""
    return re.match(r"https?://", source, re.IGNORECASE) is not None


def open_address(source: str, config: ReadConfig) -> BinaryIO:
    """Open an address; its content comes as it is read.

    Raises:
        ConfigError: nobody allowed it.
        DocumentError: it cannot be had.
    """
    if not config.allow_network:
        raise ConfigError(
            f"{source}: the network is not used without permission",
            "--allow-network without --offline gives it; or download the file and name that",
        )
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    try:
        request = Request(source, headers={"User-Agent": "indexmem"})
        # Of a file, only what `_Response` has is used.
        return _Response(urlopen(request, timeout=_TIMEOUT_S))  # type: ignore[return-value]
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(error, HTTPError):
            error.close()  # it is an answer, too, and holds the connection
        raise DocumentError(f"{source}: {getattr(error, 'reason', None) or error}") from error


class _Response:
    """The body of an answer, whose failures are those of a file."""

    def __init__(self, response: BinaryIO) -> None:
        self._response = response

    def read(self, size: int) -> bytes:
        from http.client import HTTPException

        try:
            data = self._response.read(size)
        except HTTPException as error:
            raise OSError(_BROKE_OFF) from error
        if size and not data and getattr(self._response, "length", None):  # bytes still to come
            raise OSError(_BROKE_OFF)
        return data

    def close(self) -> None:
        self._response.close()
