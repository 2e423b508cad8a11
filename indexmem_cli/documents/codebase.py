"""The files of a folder that are worth reading, as git and a reader would choose them.

Nothing is followed out of the folder, and nothing but regular files and folders is opened.
"""

import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pathspec import GitIgnoreSpec

from indexmem_cli.config import ReadConfig
from indexmem_cli.errors import ConfigError

MAX_FILE_BYTES = 10_000_000

_ALWAYS_IGNORED = (
    "node_modules/ bower_components/ vendor/ third_party/ site-packages/ .venv/ venv/ __pycache__/"
    " build/ dist/ target/ .eggs/ *.egg-info/ .tox/ .nox/ .mypy_cache/ .pytest_cache/ .ruff_cache/"
    " .hypothesis/ .idea/ .gradle/ .next/ .nuxt/ .terraform/ .cache/ *.pyc .DS_Store"
)
_VERSION_CONTROL = {".git", ".hg", ".svn", ".jj"}
_MANIFESTS = (
    "pyproject.toml setup.py setup.cfg package.json cargo.toml go.mod pom.xml build.gradle"
    " build.gradle.kts gemfile composer.json mix.exs cmakelists.txt makefile dockerfile"
    " requirements.txt"
)
_GENERATED_NAMES = (
    "package-lock.json npm-shrinkwrap.json yarn.lock pnpm-lock.yaml bun.lock poetry.lock uv.lock"
    " pdm.lock Pipfile.lock Cargo.lock Gemfile.lock composer.lock go.sum flake.lock mix.lock"
    " *.min.js *.min.css *.min.mjs *.js.map *.css.map *_pb2.py *_pb2_grpc.py *.pb.go"
    " tokenizer.json *.tiktoken"
)
_GENERATED_SPEC = GitIgnoreSpec.from_lines(_GENERATED_NAMES.split())
_MANIFEST_NAMES = frozenset(_MANIFESTS.split())
_GENERATED_MARK = re.compile(
    rb"^\s*(?:#|//|/\*|\*|--|;|%|<!--|\"\"\").*"
    rb"(?:@generated|\bDO NOT EDIT\b|\bauto-?generated\b|automatically generated)",
    re.IGNORECASE,
)
_MARK_LINES = 10
_BAD_PATTERN = (ValueError, re.error)
_MINIFIED_LINE_BYTES = 300
_FOLDER_MARK = "ps_d"  # the group of pathspec's patterns that matches the slash after a folder


@dataclass(frozen=True)
class _Line:
    """A line of an ignore file."""

    regex: re.Pattern[str]
    ignores: bool
    is_name: bool
    """Whether it has no slash but perhaps a last one, and so holds for names in any folder."""
    is_contents: bool
    """Whether it ends in `/**`, and so holds for what is in a folder, not for the folder."""

    def names(self, path: str, is_dir: bool) -> bool:
        """Tell whether the line means this path itself.

        What a line says of a folder is not said of what is in it, as `!*/` shows; but the library
        says it of both.
        """
        slash = "/" if is_dir and not self.is_contents else ""
        match = self.regex.search((path.rpartition("/")[2] if self.is_name else path) + slash)
        if match is None or not match.groupdict().get(_FOLDER_MARK):
            return match is not None
        return match.end(_FOLDER_MARK) == len(match.string)


@dataclass(frozen=True)
class _Rules:
    """The ignore files that hold for a folder, weakest first, each with the folder it is in."""

    specs: tuple[tuple[Path, tuple[_Line, ...]], ...]
    include: GitIgnoreSpec | None
    exclude: GitIgnoreSpec
    root: Path

    def ignore(self, path: Path, is_dir: bool) -> bool:
        """Tell whether a path is left out; git's rule: the last match of the deepest file wins."""
        slash = "/" if is_dir else ""
        inner = path.relative_to(self.root).as_posix() + slash
        if self.exclude.match_file(inner):
            return True
        if not is_dir and self.include is not None and not self.include.match_file(inner):
            return True
        for folder, spec in reversed(self.specs):
            for line in reversed(spec):
                if line.names(path.relative_to(folder).as_posix(), is_dir):
                    return line.ignores
        return False

    def enter(self, folder: Path) -> "_Rules":
        """Add the ignore file of a folder, if it has one."""
        spec = _load_spec(folder / ".gitignore")
        if spec is None:
            return self
        return _Rules((*self.specs, (folder, spec)), self.include, self.exclude, self.root)


def find_files(root: Path, config: ReadConfig, skipped: Counter[str]) -> Iterator[Path]:
    """Yield the files of a folder: in each folder README and manifests, other files, subfolders.

    What is left out is counted in `skipped` by reason; an ignored folder counts once.
    """
    root = root.resolve()
    folders = [(root, _outer_rules(root, config))]
    while folders:
        folder, rules = folders.pop()
        rules = rules.enter(folder)
        try:
            with os.scandir(folder) as scan:
                entries = sorted(scan, key=_reading_order)
        except OSError:
            skipped["unreadable"] += 1
            continue
        inner = []
        for entry in entries:
            path = Path(entry.path)
            reason = _refusal(entry, path, rules)
            if reason:
                skipped[reason] += 1
            elif entry.is_dir(follow_symlinks=False):
                if entry.name not in _VERSION_CONTROL:
                    inner.append((path, rules))
            else:
                yield path
        folders.extend(reversed(inner))


def is_generated(name: str, kind: str, head: bytes) -> bool:
    """Tell by name and first bytes whether a machine wrote a file: lock file, minified, marked."""
    if _GENERATED_SPEC.match_file(name):
        return True
    if kind != "code":
        return False
    lines = head.splitlines() or [b""]
    marked = any(_GENERATED_MARK.match(line) for line in lines[:_MARK_LINES])
    return marked or len(head) / len(lines) > _MINIFIED_LINE_BYTES


def _refusal(entry: os.DirEntry[str], path: Path, rules: _Rules) -> str | None:
    """Say why an entry is neither read nor entered; None if it is."""
    try:
        if entry.is_symlink():
            # What a link inside the folder points to is read where it lies.
            inside = path.resolve(strict=True).is_relative_to(rules.root)
            return "ignored" if inside else "link out of the folder"
        mode = entry.stat(follow_symlinks=False)
    except (OSError, RuntimeError):  # RuntimeError: a loop of links, before Python 3.13
        return "unreadable"
    is_dir = stat.S_ISDIR(mode.st_mode)
    if not is_dir and not stat.S_ISREG(mode.st_mode):
        return "not a file"
    if rules.ignore(path, is_dir):
        return "ignored"
    return "too large" if not is_dir and mode.st_size > MAX_FILE_BYTES else None


def _outer_rules(root: Path, config: ReadConfig) -> _Rules:
    """Collect the rules from outside: our own, and those of the repository that holds the root."""
    above = [root, *root.parents]
    top = next((folder for folder in above if (folder / ".git").exists()), root)
    paths = [(top, top / ".git" / "info" / "exclude")]
    paths += [(folder, folder / ".gitignore") for folder in above[above.index(top) : 0 : -1]]
    outer = [(folder, spec) for folder, path in paths if (spec := _load_spec(path))]
    # Who names a folder that its repository ignores wants it read all the same.
    for folder, spec in outer:
        inner = root.relative_to(folder)
        steps = [path.as_posix() for path in (inner, *inner.parents)][:-1]
        lines = (line for step in steps for line in reversed(spec) if line.names(step, True))
        if next((line.ignores for line in lines), False):
            outer = []
    specs = [(root, _parse_lines(_ALWAYS_IGNORED.split())), *outer]
    return _Rules(
        tuple(specs),
        _user_spec(config.include) if config.include else None,
        _user_spec(config.exclude),
        root,
    )


def _user_spec(patterns: tuple[str, ...]) -> GitIgnoreSpec:
    try:
        return GitIgnoreSpec.from_lines(patterns)
    except _BAD_PATTERN as error:
        raise ConfigError(f"not a pattern for files: {' '.join(patterns)}", str(error)) from error


def _load_spec(path: Path) -> tuple[_Line, ...] | None:
    try:
        if not stat.S_ISREG(path.lstat().st_mode):  # git does not follow a link here either
            return None
        return _parse_lines(path.read_bytes().decode("utf-8", "replace").splitlines())
    except OSError:
        return None


def _parse_lines(lines: list[str]) -> tuple[_Line, ...]:
    parsed = []
    for line in lines:
        try:
            patterns = GitIgnoreSpec.from_lines([line]).patterns
        except _BAD_PATTERN:  # git passes over a line that is no pattern
            continue
        plain = line.rstrip()
        parsed += [
            _Line(
                pattern.regex,
                pattern.include,
                is_name="/" not in plain.rstrip("/"),
                is_contents=plain.endswith("/**"),
            )
            for pattern in patterns
            if pattern.include is not None and pattern.regex is not None
        ]
    return tuple(parsed)


def _reading_order(entry: os.DirEntry[str]) -> tuple[int, str]:
    name = entry.name.lower()
    return (0 if name.startswith("readme") else 1 if name in _MANIFEST_NAMES else 2, entry.name)
