"""What `bench quality` knows: tasks in suites, and methods that answer. Others add their own.

A file given by `--add` calls `add_task` or `add_method`; see examples/bench_additions.py.
"""

import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from indexmem_cli.errors import ConfigError

if TYPE_CHECKING:
    from indexmem_cli.bench.methods import Asked, Reply
    from indexmem_cli.bench.streams import Stream
    from indexmem_cli.language_model import LanguageModel

ADDED = "added"
MAIN = "main"
GROUPS = {
    MAIN: "full attention, recall, the best passages alone, and every policy",
    "kvpress": "kvpress's scorers under the same streaming budget",
    "memories": "policies with a latent memory of what is evicted",
    "twins": "what a feature has to beat: the same shuffled, swapped, moved or taken away",
    "once": "everything is read before anything is evicted, once: the protocol of the papers",
    ADDED: "what files given by --add hold",
}
"""Of methods. The first and the last are measured where none is named."""


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
    beside: Mapping[str, Callable[[str, Sequence[str]], float]] = field(default_factory=dict)
    """Further scores of the same answer, by the name they have in the rows."""
    run: "Callable[[LanguageModel, Method, Asked, Sample], dict[str, Any] | None] | None" = None
    """What is measured in place of an answer; returns `score`, `kv_bytes`, `read_s`, `answer_s`,
    and numbers or lists of its own, which are averaged. None where the method cannot."""
    measure: str | None = None
    """What `score` is, with its unit; None: a share of right answers. Lower is then better."""
    needs_data: bool = False
    """Whether it is left out where there is no data folder."""


@dataclass(frozen=True)
class Method:
    """A way to answer a question on a text."""

    answer: "Callable[[LanguageModel, Asked], Reply | None]"
    """None where the text is too long for it."""
    uses_budget: bool = True
    """Whether it is measured at every budget, or once."""
    open: "Callable[[LanguageModel, Asked], Stream | None] | None" = None
    """For tasks that read or write on without a question; None where it cannot."""
    group: str = ADDED


SUITES: dict[str, dict[str, Task]] = {}
METHODS: dict[str, Method] = {}


def add_task(suite: str, name: str, task: Task) -> None:
    """Make a task known under a name, in a suite that there is or a new one."""
    SUITES.setdefault(suite, {})[name] = task


def add_method(name: str, method: Method) -> None:
    """Make a method known under a name."""
    METHODS[name] = method


def load_own() -> None:
    """Make known what this package has: a module adds its tasks and methods on import."""
    importlib.import_module("indexmem_cli.bench.cells")


def names_of(wanted: Sequence[str]) -> list[str]:
    """Return the methods that names and groups stand for; `all` for every one.

    Raises:
        ConfigError: one of them is not known.
    """
    found: dict[str, None] = {}
    for name in wanted or (MAIN, ADDED):
        members = [n for n, method in METHODS.items() if name in (n, method.group, "all")]
        if not members and name not in GROUPS:
            known = ", ".join([*(f"{group} (a group)" for group in GROUPS), "all", *METHODS])
            raise ConfigError(f"unknown method: {name}", f"there are: {known}")
        found |= dict.fromkeys(members)
    return list(found)


def load_additions(path: Path) -> None:
    """Run a Python file that adds tasks or methods.

    Raises:
        ConfigError: there is no such file, or it is no Python.
    """
    if not path.is_file():
        raise ConfigError(f"no such file: {path}", "--add takes a Python file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"not a Python file: {path}", "--add takes one whose name ends in .py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
