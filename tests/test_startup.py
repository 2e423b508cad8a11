"""A program that begins its imports early: what is left out, and what is there all the same."""

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from indexmem_cli.config import ModelConfig
from indexmem_cli.startup import LazyPackage

ROOT = Path(__file__).parents[1]
LEFT_OUT = ("torch.distributed.tensor", "torch._inductor", "torch._dynamo.utils")
CODE = f"""
import json, sys
from indexmem_cli import startup
startup.import_early()
from indexmem_cli.config import ModelConfig
from indexmem_cli.language_model import load_language_model
model = load_language_model(ModelConfig(sys.argv[1], offline=True))
left_out = [name for name in {LEFT_OUT} if name not in sys.modules]
logits = model.backbone.predict([5, 6, 7], model.backbone.new_state(8))[0]
import torch, transformers
compiled = torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item()
print(json.dumps([left_out, logits.tolist(), compiled, torch.distributed.is_available(),
                  transformers.models.llama.__name__, transformers.models.__name__]))
"""


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own, beside the package."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_compiler_and_distribution_are_left_out_and_there_when_they_are_wanted(tiny_model_dir):
    import torch

    from indexmem_cli.language_model import load_language_model

    done = run(CODE, tiny_model_dir)
    assert done.returncode == 0, done.stderr
    left_out, logits, compiled, is_available, llama, models = json.loads(done.stdout)
    assert left_out == list(LEFT_OUT)
    backbone = load_language_model(ModelConfig(str(tiny_model_dir), offline=True)).backbone
    expected = backbone.predict([5, 6, 7], backbone.new_state(8))[0]
    assert torch.equal(torch.tensor(logits), expected)
    assert (compiled, is_available) == (2.0, torch.distributed.is_available())
    assert (llama, models) == ("transformers.models.llama", "transformers.models")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that writes down that it ran, not imported yet."""
    folder = tmp_path / "slowly"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from pathlib import Path\nwith Path(__file__).with_name('ran').open('a') as file:\n"
        "    file.write('.')\nfrom slowly.inner import VALUE\nmark = 'real'\n"
    )
    (folder / "inner.py").write_text("VALUE = 7\n")
    (folder / "other.py").write_text("VALUE = 8\n")
    monkeypatch.syspath_prepend(tmp_path)
    lazy = LazyPackage(importlib.util.find_spec("slowly"), mark="known")
    monkeypatch.setitem(sys.modules, "slowly", lazy)
    for name in ("inner", "other"):
        monkeypatch.delitem(sys.modules, f"slowly.{name}", raising=False)
    return lazy, folder / "ran"


def test_a_lazy_package_runs_once_and_when_something_unknown_of_it_is_used(package):
    lazy, ran = package
    assert lazy.mark == "known" and importlib.import_module("slowly.inner").VALUE == 7
    assert not hasattr(lazy, "__wrapped__") and not ran.exists()
    assert (lazy.VALUE, lazy.mark) == (7, "real")
    assert not hasattr(lazy, "nothing") and ran.read_text() == "."


def test_a_closed_lazy_package_runs_before_a_module_inside_it(package):
    lazy, ran = package
    lazy.close()
    assert importlib.import_module("slowly.other").VALUE == 8
    assert ran.read_text() == "." and lazy.mark == "real"


def test_at_the_end_all_is_done_but_the_look_through_all_objects():
    code = (
        "import atexit, os, sys, torch\n"
        "import indexmem_cli.__main__, indexmem_cli.cli.app as cli\n"
        "class Kept:\n"
        "    def __del__(self, write=os.write): write(1, b'looked through')\n"
        "sys.kept = Kept()\n"
        "def app(**_):\n"
        "    atexit.register(print, 'closed')\n"
        "    print('answered', end=' ')\n"
        "    sys.exit(8)\n"
        "cli.app = app\n"
        "indexmem_cli.__main__.main()"
    )
    done = run(code)
    assert (done.returncode, done.stdout, done.stderr) == (8, "answered closed\n", "")
    done = run(code.replace(", torch", ""))
    assert (done.returncode, done.stdout) == (8, "answered closed\nlooked through")
