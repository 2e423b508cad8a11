"""What is made of rows: tables, pictures, comparisons."""

import json

import pytest
from typer.testing import CliRunner

from indexmem_cli.bench import tables
from indexmem_cli.cli.app import app

MARKED = "".join(f"<!-- table: {name} -->\n<!-- /table: {name} -->\n" for name in tables.TABLES)


def run(*arguments):
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


def write(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def test_the_tables_of_the_readme_are_those_of_the_rows():
    assert tables.are_current(), "run: make tables"


@pytest.fixture
def results(tmp_path):
    """A README with marks, and a few rows."""
    read = {"mode": "question", "length_tokens": 16384, "tokens": 16584, "kv_bytes": 4 * 2**20}
    full = {**read, "mode": "full", "kv_bytes": 300 * 2**20, "above_model_bytes": 2**30}
    read["above_model_bytes"] = 2**24
    older = {**read, "tokens": 1}
    write(tmp_path / "results" / "memory.jsonl", [older, full, read])
    fact = {"mode": "question", "tokens": 17261, "right": 35, "n": 50, "interval_95": [0.562, 0.81]}
    write(tmp_path / "results" / "needles.jsonl", [fact])
    (tmp_path / "README.md").write_text(f"# R\n{MARKED}end\n", "utf-8")
    return tmp_path


def test_tables_take_the_newest_rows(results):
    options = ["--readme", results / "README.md", "--results", results / "results"]
    stale = run("tables", "--check", *options)
    assert stale.exit_code == 2 and "make tables" in stale.stderr
    assert run("tables", *options).exit_code == 0
    lines = (results / "README.md").read_text("utf-8").splitlines()
    assert "| 16,584 | 4.0 MiB | 16.0 MiB | 300 MiB | 1,024 MiB |" in lines
    assert "| `--focus --no-recall` | 17,261 | 35 of 50 | .56 to .81 |" in lines
    assert (lines[0], lines[-1]) == ("# R", "end")
    assert run("tables", "--check", *options).exit_code == 0


def test_a_readme_without_marks_is_refused(results):
    (results / "README.md").write_text("# R\n", "utf-8")
    refused = run("tables", "--readme", results / "README.md", "--results", results / "results")
    assert refused.exit_code == 2 and "table: memory" in refused.stderr
