"""`indexmem --version`; loads nothing heavy, so that it can answer before Typer is loaded."""

import sys
from importlib import metadata

from indexmem_cli import __version__

PARTS = ("torch", "transformers", "tokenizers", "safetensors", "triton", "bitsandbytes", "pypdf")
"""What answers and failures depend on most; bug reports need their versions."""


def version_lines() -> str:
    """Return name, version and interpreter, then the versions of its parts that are installed."""
    python = ".".join(map(str, sys.version_info[:3]))
    lines = [f"indexmem {__version__} (Python {python}, {sys.platform})"]
    for part in PARTS:
        try:
            lines.append(f"{part} {metadata.version(part)}")
        except metadata.PackageNotFoundError:
            continue  # of an extra, or of another system
    return "\n".join(lines)
