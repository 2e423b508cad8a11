"""indexmem: ask questions of documents longer than a local model's memory.

Importing this package is free: the public names are resolved on first use.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# torch reads it once, on import: idle threads must sleep, not spin on cores that others use.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if os.environ.get("INDEXMEM_KERNELS") == "interpret":
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it once, and others may import Triton

__version__ = "0.1.0"
__all__ = ["Answer", "IndexMemError", "Memory", "__version__"]

if TYPE_CHECKING:
    from indexmem_cli.errors import IndexMemError
    from indexmem_cli.events import Answer
    from indexmem_cli.session import Memory


def __getattr__(name: str) -> Any:
    """Resolve a public name on first use (PEP 562)."""
    home = {"Memory": "session", "Answer": "events", "IndexMemError": "errors"}.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)
