"""Write the pages that come from the code: one for each command, and the import diagram.

python docs/generate.py            # writes docs/commands/ and the marked part of architecture.md
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

import indexmem_cli
from indexmem_cli.cli.app import app
from indexmem_cli.cli.manual import walk

DOCS = Path(__file__).parent
PACKAGE = Path(indexmem_cli.__file__).parent
BEGIN, END = "<!-- imports: begin -->\n", "<!-- imports: end -->\n"
NOTE = "<!-- Made by docs/generate.py from the command itself. -->\n"
LEAVES = {"__init__", "__main__", "config", "errors"}
"""Modules that the diagram leaves out: nearly all import them, or they are ways in."""


def make_pages() -> dict[Path, str]:
    """Return the text of every page that is made from the code, by its path below `docs`."""
    pages = {Path("commands", f"{name}.md"): text for name, text in _command_pages()}
    architecture = (DOCS / "architecture.md").read_text("utf-8")
    before, _, rest = architecture.partition(BEGIN)
    after = rest.partition(END)[2]
    imports = read_imports()
    drawn = "\n".join(("```mermaid", *draw_imports(imports), "```\n"))
    table = "\n".join(("| module | its job |", "|---|---|", *_jobs(imports), ""))
    pages[Path("architecture.md")] = f"{before}{BEGIN}\n{drawn}\n{table}\n{END}{after}"
    return pages


def _command_pages() -> Iterator[tuple[str, str]]:
    """Yield name and page of every command; a group has one page for all that is in it."""
    root = get_command(app)
    found = {
        context.command_path: (command, context) for command, context in walk(root, "indexmem")
    }
    for name in root.commands:
        path = f"indexmem {name}"
        parts = [each for key, each in found.items() if key == path or key.startswith(f"{path} ")]
        if parts:
            yield name, NOTE + "\n".join(_section(*part) for part in parts)


def _section(command: Any, context: Any) -> str:
    """One command: what it does, its usage and examples, and a table of its options."""
    level = "#" if context.command_path.count(" ") == 1 else "##"
    lines = [f"{level} {context.command_path}", ""]
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    for paragraph in command.help.split("\n\n"):
        if paragraph.startswith("\b\n"):
            examples = [line.removeprefix("  ") for line in paragraph.splitlines()[2:]]
            lines += ["```", usage, "", *examples, "```", ""]
        else:
            lines += [_cell(paragraph), ""]
    records = [record for each in command.params if (record := each.get_help_record(context))]
    if records:
        lines += ["| option | what it does |", "|---|---|"]
        lines += [f"| `{name.replace('|', '/')}` | {_cell(text)} |" for name, text in records]
        lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Put a text on one line in which Markdown finds no tags and no columns."""
    text = " ".join(text.split()).replace("|", "\\|").replace("*", "\\*")
    return text.replace("<", "&lt;").replace(">", "&gt;")


def read_imports() -> dict[str, set[str]]:
    """Return which modules of the first level each imports, anywhere in its files."""
    imports: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        imports.setdefault(_module_of(path), set()).update(_imported(path))
    known = imports.keys() - LEAVES
    return {module: imports[module] & known - {module} for module in sorted(known)}


def _module_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            names = [alias.name for alias in getattr(node, "names", ()) if hasattr(alias, "name")]
        for parts in (name.split(".") for name in names):
            if parts[0] == PACKAGE.name and len(parts) > 1:
                yield parts[1]


def draw_imports(imports: dict[str, set[str]]) -> Iterator[str]:
    """Yield a mermaid flowchart; an arrow that follows from others is left out."""
    yield "flowchart TD"
    for module, targets in imports.items():
        behind = {far for near in targets for far in reached(imports, near) - {near}}
        for target in sorted(targets - behind):
            yield f"  {module} --> {target}"


def reached(imports: dict[str, set[str]], start: str) -> set[str]:
    """Return a module and all that it imports, directly or through others."""
    found, left = set(), [start]
    while left:
        module = left.pop()
        if module not in found:
            found.add(module)
            left += imports[module]
    return found


def _jobs(imports: dict[str, set[str]]) -> Iterator[str]:
    for module in imports:
        path = PACKAGE / f"{module}.py"
        path = path if path.exists() else PACKAGE / module / "__init__.py"
        job = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n")[0]
        yield f"| `{path.relative_to(PACKAGE).as_posix()}` | {_cell(job)} |"


def main() -> None:
    """Write all pages."""
    for path, text in make_pages().items():
        (DOCS / path).parent.mkdir(exist_ok=True)
        (DOCS / path).write_text(text, "utf-8")


if __name__ == "__main__":
    main()
