"""The parts of a Markdown file that are made by machine.

A part stands between `<!-- NAME -->` and `<!-- /NAME -->`; everything else is left as it is.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from indexmem_cli.errors import ConfigError


def fill_parts(path: Path, parts: Mapping[str, Callable[[], str]]) -> str:
    """Return the text of a file with its marked parts filled; nothing is written.

    Raises:
        ConfigError: there is no such file, or it has no mark for one of the parts.
    """
    if not path.exists():
        raise ConfigError(f"no such file: {path}", "write it with the marks of its parts")
    text = path.read_text("utf-8")
    marks = {name: re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.S) for name in parts}
    for name, mark in marks.items():
        if not mark.search(text):
            raise ConfigError(
                f"{path} has no part {name!r}", f"add <!-- {name} --><!-- /{name} -->"
            )
    for name, mark in marks.items():
        content = parts[name]().replace("\\", r"\\")  # taken as it is, not as a template
        text = mark.sub(rf"\g<1>{content}\n\g<2>", text)
    return text


def write_parts(path: Path, parts: Mapping[str, Callable[[], str]]) -> None:
    """Fill the marked parts of a file; errors as in `fill_parts`."""
    partial = path.with_suffix(".partial")
    partial.write_text(fill_parts(path, parts), encoding="utf-8")
    partial.replace(path)


def markdown_table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Write a table; an empty cell is one space."""
    rows = ["|" + "".join(f" {cell} |" if cell else " |" for cell in row) for row in (head, *lines)]
    rows.insert(1, "|" + "---|" * len(head))
    return "\n".join(rows)
