"""`indexmem --version`; imports nothing, so that it can answer before Typer is loaded."""

import sys

from indexmem_cli import __version__


def version_line() -> str:
    """Return name, version and interpreter, as bug reports need them."""
    python = ".".join(map(str, sys.version_info[:3]))
    return f"indexmem {__version__} (Python {python}, {sys.platform})"
