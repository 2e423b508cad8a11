"""What `bench quality` knows: tasks in suites, and methods that answer. Others add their own.

A file given by `--add` calls `add_task` or `add_method`; see examples/bench_additions.py.
"""

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from indexmem_cli.errors import ConfigError

if TYPE_CHECKING:
    from indexmem_cli.bench.methods import Asked, Reply
    from indexmem_cli.language_model import LanguageModel


@dataclass(frozen=True)
class Sample:
    """A text with one question."""

    text: str
    question: str
    answers: tuple[str, ...]
    """References: all of them are asked for."""
    depth: float | None = None
    """Where the answer stands, as a share of the text; None where it is in several places."""


@dataclass(frozen=True)
class Draw:
    """What a task makes one sample from; the same seed, the same sample."""

    rng: Random
    room: int
    """Tokens for text and question together."""
    count: Callable[[str], int]
    """Number of tokens of a text, by the tokenizer of the model that is measured."""
    prose: Sequence[str]
    """Sentences of public-domain books, in order."""
    number: int
    """Of the sample, counted from 0."""
    data: Path | None = None
    """Folder of training, of which only held-out parts are used."""

    def fill(self, pieces: Iterable[str], *fixed: str) -> list[str]:
        """Return as many pieces as there is room for beside what is fixed."""
        left, taken = self.room - sum(self.count(text) + 1 for text in fixed), []
        for piece in pieces:
            left -= self.count(" " + piece)
            if left < 0:
                break
            taken.append(piece)
        return taken


def share_found(given: str, answers: Sequence[str]) -> float:
    """Return the share of references that stand in an answer, in any case: RULER's metric."""
    return sum(answer.lower() in given.lower() for answer in answers) / len(answers)


@dataclass(frozen=True)
class Task:
    """A kind of sample, and how answers to it are scored."""

    make: Callable[[Draw], Sample]
    max_tokens: int = 128
    """Longest answer."""
    score: Callable[[str, Sequence[str]], float] = share_found
    """From an answer and the references to 0..1."""


@dataclass(frozen=True)
class Method:
    """A way to answer a question on a text."""

    answer: "Callable[[LanguageModel, Asked], Reply | None]"
    """None where the text is too long for it."""
    uses_budget: bool = True
    """Whether it is measured at every budget, or once."""


SUITES: dict[str, dict[str, Task]] = {}
METHODS: dict[str, Method] = {}


def add_task(suite: str, name: str, task: Task) -> None:
    """Make a task known under a name, in a suite that there is or a new one."""
    SUITES.setdefault(suite, {})[name] = task


def add_method(name: str, method: Method) -> None:
    """Make a method known under a name."""
    METHODS[name] = method


def load_additions(path: Path) -> None:
    """Run a Python file that adds tasks or methods.

    Raises:
        ConfigError: there is no such file.
    """
    if not path.is_file():
        raise ConfigError(f"no such file: {path}", "--add takes a Python file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
