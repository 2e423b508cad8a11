"""The files around the code: they parse, name what exists, and speak of this version."""

import re
from pathlib import Path

import pytest
import yaml

from indexmem_cli import __version__

ROOT = Path(__file__).parents[1]
FORMS = sorted((ROOT / ".github").rglob("*.yml"))


def load(path: Path) -> dict:
    return yaml.safe_load(path.read_text("utf-8"))


@pytest.mark.parametrize("path", FORMS, ids=lambda p: p.name)
def test_workflows_and_forms_have_what_github_asks_for(path: Path) -> None:
    form = load(path)
    if path.parent.name == "workflows":
        assert form[True]["push"]["branches"] == ["main"]  # YAML takes the key `on` for a truth
        assert form["permissions"] == {"contents": "read"}
        steps = [step for job in form["jobs"].values() for step in job["steps"]]
        assert all(re.fullmatch(r"[\w-]+/[\w-]+@v\d+", s["uses"]) for s in steps if "uses" in s)
    elif path.name != "config.yml":
        assert form["name"] and form["description"]
        ids = [part["id"] for part in form["body"]]
        assert len(ids) == len(set(ids))


def test_the_workflow_runs_what_ci_runs_on_every_python_supported() -> None:
    (job,) = load(ROOT / ".github" / "workflows" / "ci.yml")["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    oldest = re.search(r'requires-python = ">=(3\.\d+)"', text)[1]
    assert job["strategy"]["matrix"]["python"][0] == oldest


def test_commands_in_workflows_are_targets_of_make() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for path in (ROOT / ".github" / "workflows").iterdir():
        for target in re.findall(r"run: make ([a-z]+)", path.read_text("utf-8")):
            assert f"\n{target}: install" in makefile


def test_the_citation_is_of_this_version() -> None:
    citation = load(ROOT / "CITATION.cff")
    assert citation["version"] == __version__
    assert citation.keys() >= {"cff-version", "message", "title", "authors"}


def test_contributing_is_ten_lines() -> None:
    lines = (ROOT / "CONTRIBUTING.md").read_text("utf-8").splitlines()
    numbered = [line for line in lines if line[:1].isdigit()]
    assert [int(line.partition(".")[0]) for line in numbered] == list(range(1, 11))
