"""What a command does to be ready sooner: imports begin early, and without what is never used.

For the program alone. A process of somebody else gets torch and transformers as they are.
"""

import contextlib
import gc
import importlib
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class LazyPackage(ModuleType):
    """A package whose own code, which is slow, runs when something of it is first used.

    Modules inside it can be imported before that, until it is closed.
    """

    _has_run = False

    def __init__(self, spec: ModuleSpec, **known: Any) -> None:
        """Stand for the package of `spec`.

        Args:
            known: what is answered without running the package's code.
        """
        super().__init__(spec.name)
        self.__spec__, self.__loader__, self.__package__ = spec, spec.loader, spec.name
        self.__file__, self.__path__ = spec.origin, spec.submodule_search_locations or []
        vars(self).update(known)

    def close(self) -> None:
        """From now on have the code run before a module inside it is imported, as always."""
        if not self._has_run:
            del self.__path__

    def __getattr__(self, name: str) -> Any:
        """Run the package's code, which may put another module in this one's place, and answer."""
        if self._has_run or (name.startswith("__") and name != "__path__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        self._has_run = True
        self.__path__ = self.__spec__.submodule_search_locations or []
        self.__spec__.loader.exec_module(self)
        return getattr(sys.modules[self.__name__], name)


def import_early() -> None:
    """Begin to import the model's libraries while the command line and the sources are read.

    A failure shows where they are used: there they are imported again.
    """
    threading.Thread(target=_import_all, name="imports", daemon=True).start()


def wait_for_imports() -> None:
    """Let `import_early` end, if it was called: two threads shall not import the same."""
    for thread in threading.enumerate():
        if thread.name == "imports":
            thread.join()


def _import_all() -> None:
    with contextlib.suppress(Exception), collecting_later(), _lean():
        importlib.import_module("indexmem_cli.loading")
        importlib.import_module("transformers.masking_utils")  # as every model does


@contextlib.contextmanager
def _lean() -> Iterator[None]:
    """Keep torch's compiler and torch.distributed out of what transformers imports.

    They are half of its time and serve training on many machines and `torch.compile`. For the
    compiler transformers only marks functions, so leaving these unmarked changes nothing else;
    torch may be built without distribution, so transformers runs without.
    """
    from unittest import mock

    import torch.distributed

    marks = dict.fromkeys(("disable", "allow_in_graph", "assume_constant_result"), _unmarked)
    compiler = _import_lazily("torch._dynamo", **marks)
    try:
        with mock.patch.object(torch.distributed, "is_available", return_value=False):
            import transformers  # noqa: F401

            # It has read its 3,300 files for their names, and this package would do so again.
            _import_lazily("transformers.models")
            yield
    finally:
        if isinstance(compiler, LazyPackage):
            compiler.close()


def _import_lazily(name: str, **known: Any) -> ModuleType:
    """Return the package as it was imported already, else one that has not run."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise ImportError(name)
    return sys.modules.setdefault(name, LazyPackage(spec, **known))


def _unmarked(function: Callable | None = None, *_: Any, **__: Any) -> Callable:
    """A decorator, with or without arguments, that does nothing."""
    return function if function is not None else _unmarked


@contextlib.contextmanager
def collecting_later() -> Iterator[None]:
    """Keep Python from looking for garbage among the many objects that stay: a second of five."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.unfreeze()  # into the oldest generation, which is rarely looked through
        if was_on:
            gc.enable()
