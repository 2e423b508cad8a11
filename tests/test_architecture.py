"""The arrows between modules, and what may be imported where and when."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import indexmem_cli

PACKAGE = Path(indexmem_cli.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# Who may import whom. `config` and `errors` are leaves that anyone but themselves may import.
ALLOWED = {
    "__init__": {"events", "session"},
    "__main__": {"cli", "signals", "startup"},
    "cli": {
        "bench",
        "catalogue",
        "checkpoint",
        "cluster",
        "conversation",
        "estimate",
        "events",
        "health",
        "inspecting",
        "library",
        "machine",
        "render",
        "server",
        "session",
        "sessions",
        "settings",
        "train",
    },
    "catalogue": {"checkpoint", "estimate"},
    "estimate": {"checkpoint", "plan"},
    "fitting": {"checkpoint", "estimate", "machine"},
    "health": {"catalogue", "checkpoint", "estimate", "library", "machine", "settings"},
    "cluster": {"coverage", "events", "fitting", "language_model", "library", "session"},
    "machine": set(),
    "server": {"documents", "events", "library", "session"},
    "render": {"events"},
    "session": {
        "asking",
        "coverage",
        "documents",
        "engine",
        "events",
        "fitting",
        "language_model",
        "library",
        "plan",
        "reading",
    },
    "conversation": {
        "asking",
        "attached",
        "documents",
        "engine",
        "events",
        "growing",
        "language_model",
        "library",
        "plan",
        "session",
        "sessions",
    },
    "attached": {"documents", "events", "language_model", "library", "reading", "session"},
    "growing": {
        "archive",
        "documents",
        "events",
        "library",
        "reading",
        "sessions",
        "tokens",
    },
    "sessions": {"library"},
    "archives": {"archive", "tokens"},
    "copying": {"tokens"},
    "inspecting": {"checkpoint", "coverage", "documents", "events", "plan", "tokens"},
    "passes": {"memory"},
    "terms": set(),
    "asking": {
        "archive",
        "archives",
        "copying",
        "coverage",
        "engine",
        "events",
        "evidence",
        "explain",
        "language_model",
        "memory",
        "reading",
        "reranking",
        "tokens",
    },
    "reranking": {"archive", "backbone", "loading", "memory", "tokens"},
    "language_model": {"backbone", "checkpoint", "library", "loading", "plan", "startup", "tokens"},
    "startup": set(),
    "events": set(),
    "config": set(),
    "settings": set(),
    "signals": set(),
    "errors": set(),
    "documents": set(),
    "tokens": {"documents"},
    "checkpoint": set(),
    "evidence": {"archives", "events", "memory", "terms", "tokens"},
    "archive": {"database", "documents", "terms", "tokens"},
    "database": set(),
    "coverage": {"documents", "events"},
    "reading": {
        "archive",
        "coverage",
        "documents",
        "engine",
        "events",
        "library",
        "memory",
        "tokens",
    },
    "plan": set(),
    "library": {"archive", "documents", "events", "memory"},
    "explain": {"engine", "events", "memory"},
    "loading": {"backbone", "checkpoint", "dequantise", "estimate", "events", "memory"},
    "dequantise": set(),
    "hooks": {"events", "passes", "rotation"},
    "attention": {"hooks", "memory", "ops", "passes", "rotation"},
    "backbone": {"attention", "memory", "ops", "passes", "rotation"},
    "rotation": {"memory"},
    "engine": {"backbone", "decoding", "memory", "plan"},
    "decoding": {"backbone", "memory", "ops", "passes", "rotation"},
    "memory": {"archive", "database", "ops", "terms", "tokens"},
    "ops": set(),
    "train": {
        "archive",
        "backbone",
        "checkpoint",
        "documents",
        "hooks",
        "loading",
        "memory",
        "ops",
        "reranking",
        "rotation",
        "terms",
        "tokens",
    },
    "bench": {
        "backbone",
        "checkpoint",
        "decoding",
        "documents",
        "engine",
        "estimate",
        "events",
        "language_model",
        "loading",
        "memory",
        "ops",
        "plan",
        "session",
        "tokens",
        "train",
    },
}
LEAVES = {"config": {"config", "errors"}, "errors": {"errors"}}
HEAVY = {"torch", "transformers", "triton", "bitsandbytes"}
LIGHT_MODULES = {
    "__init__",
    "__main__",
    "archive",
    "archives",
    "asking",
    "attached",
    "catalogue",
    "checkpoint",
    "cli",
    "cluster",
    "config",
    "copying",
    "conversation",
    "coverage",
    "database",
    "documents",
    "errors",
    "estimate",
    "events",
    "evidence",
    "fitting",
    "growing",
    "language_model",
    "library",
    "health",
    "machine",
    "plan",
    "reading",
    "render",
    "session",
    "sessions",
    "settings",
    "signals",
    "startup",
    "tokens",
    "inspecting",
    "terms",
}
# Libraries that only some modules may know, wherever they import them.
KEEPERS = {
    "rich": {"render"},
    "typer": {"cli"},
    "ray": {"cluster"},
    "prompt_toolkit": {"cli"},
    "transformers": {"backbone", "hooks", "loading", "passes", "startup", "train", "bench"},
    "pickle": set(),
    "tests": set(),
    "examples": set(),
}
MAX_LINES = 400
MAX_BODY_LINES = 60
# Tables of wordings are data, and read as such.
LONGER = {"train/kinds.py": 600}


def module_of(path: Path) -> str:
    """Return the module of the first level that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def name_of(path: Path) -> str:
    """Return the file's name inside the package."""
    return path.relative_to(PACKAGE).as_posix()


each_file = pytest.mark.parametrize("path", FILES, ids=name_of)


def imported_names(node: ast.AST) -> list[str]:
    """Return the full names that an import statement may load; nothing for other nodes."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and not node.level:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def own_modules(tree: ast.AST) -> set[str]:
    """Return the modules of this package that a file imports anywhere."""
    names = (name.split(".") for node in ast.walk(tree) for name in imported_names(node))
    known = {module_of(path) for path in FILES}
    return {parts[1] for parts in names if parts[0] == PACKAGE.name and parts[1] in known}


def nodes_run_on_import(node: ast.AST) -> Iterator[ast.AST]:
    """Walk a file without the bodies of functions and of `if TYPE_CHECKING`."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        yield from nodes_run_on_import(child)


@each_file
def test_arrows(path: Path) -> None:
    module = module_of(path)
    allowed = ALLOWED[module] | LEAVES.get(module, {"config", "errors"}) | {module}
    forbidden = own_modules(ast.parse(path.read_text("utf-8"))) - allowed
    assert not forbidden


@pytest.mark.parametrize("module", ALLOWED)
def test_no_arrow_is_allowed_that_is_not_there(module: str) -> None:
    files = [path for path in FILES if module_of(path) == module]
    assert ALLOWED[module] <= set().union(*(own_modules(ast.parse(f.read_text())) for f in files))


@each_file
def test_imports_are_absolute(path: Path) -> None:
    nodes = ast.walk(ast.parse(path.read_text("utf-8")))
    assert not [node.lineno for node in nodes if isinstance(node, ast.ImportFrom) and node.level]


@pytest.mark.parametrize(
    "path", [path for path in FILES if module_of(path) in LIGHT_MODULES], ids=name_of
)
def test_nothing_heavy_is_imported_early(path: Path) -> None:
    nodes = nodes_run_on_import(ast.parse(path.read_text("utf-8")))
    libraries = {name.split(".")[0] for node in nodes for name in imported_names(node)}
    assert not libraries & HEAVY


def test_light_modules_do_not_load_torch() -> None:
    """What the walk cannot see: heavy imports behind another module's."""
    names = [name for name in LIGHT_MODULES - {"__init__"} if (PACKAGE / f"{name}.py").exists()]
    names += ["cli.app", "documents"]
    code = "import sys\n" + "\n".join(f"import {PACKAGE.name}.{name}" for name in names)
    code += f"\nprint(sorted(set(sys.modules) & {HEAVY!r}))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent
    )
    assert result.stdout == "[]\n", result.stderr


@each_file
def test_libraries_stay_with_their_keepers(path: Path) -> None:
    nodes = ast.walk(ast.parse(path.read_text("utf-8")))
    libraries = {name.split(".")[0] for node in nodes for name in imported_names(node)}
    module = module_of(path)
    assert not {name for name in libraries & KEEPERS.keys() if module not in KEEPERS[name]}


@each_file
def test_files_fit_in_the_head(path: Path) -> None:
    limit = LONGER.get(name_of(path), MAX_LINES)
    num_lines = len(path.read_text("utf-8").splitlines())
    assert num_lines <= limit


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the lines of a function below its signature and its docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (function.end_lineno or 0) - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("path", [p for p in FILES if "kernels" not in p.parts], ids=name_of)
def test_functions_fit_in_the_head(path: Path) -> None:
    """But for kernels: each is one program, and its launch names every argument."""
    nodes = ast.walk(ast.parse(path.read_text("utf-8")))
    functions = [n for n in nodes if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    assert not [f.name for f in functions if body_lines(f) > MAX_BODY_LINES]


@each_file
def test_torch_reads_and_writes_no_pickles(path: Path) -> None:
    nodes = ast.walk(ast.parse(path.read_text("utf-8")))
    used = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
    assert not used & {"torch.load", "torch.save"}


def test_the_engine_never_prints() -> None:
    path = PACKAGE / "engine.py"
    nodes = ast.walk(ast.parse(path.read_text("utf-8")))
    calls = [node.func for node in nodes if isinstance(node, ast.Call)]
    names = {call.id for call in calls if isinstance(call, ast.Name)}
    assert not names & {"print", "open", "input"}


@pytest.mark.parametrize(
    ("code", "modules"),
    [
        ("from indexmem_cli import session, __version__", {"session"}),
        ("from indexmem_cli.render import Text", {"render"}),
        ("def f():\n    import indexmem_cli.events as e", {"events"}),
        ("import json\nfrom pathlib import Path", set()),
    ],
)
def test_the_walk_finds_imports(code: str, modules: set[str]) -> None:
    tree = ast.parse(code)
    known = {"session", "render", "events"}
    assert own_modules(tree) & known == modules & {module_of(path) for path in FILES}


@pytest.mark.parametrize(
    ("code", "seen"),
    [
        ("import torch.nn", True),
        ("class A:\n    from torch import nn", True),
        ("try:\n    import torch\nexcept ImportError:\n    pass", True),
        ("def f():\n    import torch", False),
        ("if TYPE_CHECKING:\n    import torch", False),
    ],
)
def test_the_walk_knows_when_an_import_runs(code: str, seen: bool) -> None:
    nodes = nodes_run_on_import(ast.parse(code))
    assert any(name.startswith("torch") for node in nodes for name in imported_names(node)) == seen
