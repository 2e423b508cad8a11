"""The wheel: what it carries, what it asks for, and that it works without the checkout."""

import contextlib
import email
import importlib.metadata
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import indexmem_cli

ROOT = Path(__file__).parents[1]
MODEL = "indexmem_cli/models/indexmem-mini"
MAX_WHEEL_BYTES = 40 * 2**20

LINUX = {"sys_platform": "linux", "platform_machine": "x86_64", "extra": ""}
MAC_ARM = {"sys_platform": "darwin", "platform_machine": "arm64", "extra": ""}
MAC_INTEL = {"sys_platform": "darwin", "platform_machine": "x86_64", "extra": ""}
WINDOWS = {"sys_platform": "win32", "platform_machine": "AMD64", "extra": ""}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    build = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert build.returncode == 0, build.stdout + build.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def metadata(unpacked):
    (path,) = unpacked.glob("*.dist-info/METADATA")
    return email.message_from_string(path.read_text(encoding="utf-8"))


def run_unpacked(unpacked: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run Python in `cwd` with the unpacked wheel before everything else on its path."""
    environment = os.environ | {"PYTHONPATH": str(unpacked), "INDEXMEM_HOME": str(cwd / "home")}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


def requirements_on(metadata, environment: dict[str, str]) -> set[str]:
    found = map(Requirement, metadata.get_all("Requires-Dist"))
    return {item.name for item in found if not item.marker or item.marker.evaluate(environment)}


def test_wheel_carries_the_model(unpacked):
    for name in ("config.json", "model.safetensors", "adapter.safetensors", "tokenizer.json"):
        packed = unpacked / MODEL / name
        assert packed.read_bytes() == (ROOT / "models" / "indexmem-mini" / name).read_bytes()
    assert "model_type" in json.loads((unpacked / MODEL / "config.json").read_text("utf-8"))


def test_wheel_carries_every_module_and_the_licence(unpacked):
    in_tree = {str(path.relative_to(ROOT)) for path in (ROOT / "indexmem_cli").rglob("*.py")}
    packed = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*.py")}
    assert packed == in_tree
    assert (unpacked / "indexmem_cli/server/page.html").is_file()
    (licence,) = unpacked.glob("*.dist-info/licenses/LICENSE")
    assert "Apache License" in licence.read_text(encoding="utf-8")
    (entry_points,) = unpacked.glob("*.dist-info/entry_points.txt")
    assert "indexmem = indexmem_cli.__main__:main" in entry_points.read_text(encoding="utf-8")


def test_wheel_carries_nothing_else(wheel, unpacked):
    top = {path.name for path in unpacked.iterdir() if not path.name.endswith(".dist-info")}
    assert top == {"indexmem_cli"}
    with zipfile.ZipFile(wheel) as archive:  # what was unpacked may have been run since
        names = [name for name in archive.namelist() if name.startswith("indexmem_cli/")]
    kinds = {PurePosixPath(name).suffix for name in names}
    assert kinds <= {
        ".py",
        ".json",
        ".jinja",
        ".md",
        ".safetensors",
        ".png",
        ".tiktoken",
        ".typed",
        ".html",
    }
    assert {path.name for path in (unpacked / "indexmem_cli/models").iterdir()} == {"indexmem-mini"}
    assert wheel.stat().st_size < MAX_WHEEL_BYTES


def test_metadata_names_the_package(metadata):
    assert metadata["Name"] == "indexmem"
    assert metadata["Version"] == indexmem_cli.__version__
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_payload().startswith("# indexmem")


def test_dependencies_follow_the_platform(metadata):
    everywhere = {"torch", "transformers", "safetensors", "pypdf", "tiktoken", "typer", "rich"}
    for environment in (LINUX, MAC_ARM, MAC_INTEL, WINDOWS):
        assert everywhere <= requirements_on(metadata, environment)
        assert not {"pytest", "matplotlib", "fastapi"} & requirements_on(metadata, environment)
    assert {"triton", "bitsandbytes"} <= requirements_on(metadata, LINUX)
    assert "triton" not in requirements_on(metadata, MAC_ARM)
    assert "triton" not in requirements_on(metadata, WINDOWS)
    assert "bitsandbytes" in requirements_on(metadata, WINDOWS)
    assert "bitsandbytes" not in requirements_on(metadata, MAC_INTEL)


def test_nothing_is_pinned_but_in_the_constraints(metadata):
    # CUDA builds of torch pin triton themselves: any pin of ours makes them uninstallable.
    for text in metadata.get_all("Requires-Dist"):
        operators = {item.operator for item in Requirement(text).specifier}
        assert not operators & {"==", "==="}, text
    assert "torch==" in (ROOT / "constraints.txt").read_text(encoding="utf-8")


def test_wheel_finds_its_own_model(unpacked, tmp_path):
    code = (
        "from indexmem_cli.checkpoint import find_checkpoint as f; print(f('indexmem-mini').path)"
    )
    run = run_unpacked(unpacked, tmp_path, "-c", code)
    assert run.returncode == 0, run.stderr
    assert Path(run.stdout.strip()) == unpacked / MODEL


@pytest.mark.slow
def test_wheel_answers_outside_the_checkout(unpacked, tmp_path):
    chat = ROOT / "examples" / "chat.txt"
    arguments = ["ask", str(chat), "Who keeps the cash box?", "--offline", "--json"]
    run = run_unpacked(unpacked, tmp_path, "-m", "indexmem_cli", *arguments)
    assert run.returncode == 0, run.stderr
    document = json.loads(run.stdout)
    coverage = document["coverage"]
    assert document["answer"].strip()
    assert coverage["tokens_read"] == coverage["tokens_total"] > 0


def listed_dependencies(part: int) -> list[list[str]]:
    """The rows of a table in the page on dependencies."""
    text = (ROOT / "docs" / "dependencies.md").read_text("utf-8")
    rows = text.split("## Known holes")[part].splitlines()
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows if row[:1] == "|"][2:]


def test_nothing_with_a_known_hole_is_allowed_pinned_or_installed(metadata) -> None:
    requirements = [*metadata.get_all("Requires-Dist"), *importlib.metadata.requires("fastapi")]
    pins = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    allowed = [Requirement(text) for text in requirements]
    pinned = [Requirement(text) for text in pins if text[:1] not in ("", "#")]
    for name, mended, _ in listed_dependencies(part=1):
        named = [one for one in (*allowed, *pinned) if canonicalize_name(one.name) == name]
        lowest = [
            Version(s.version) for one in named for s in one.specifier if s.operator[0] in ">="
        ]
        assert lowest and min(lowest) >= Version(mended), f"{name}: {min(lowest, default=None)}"
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # of an extra
            assert Version(importlib.metadata.version(name)) >= Version(mended), name


def test_every_dependency_is_listed_with_its_licence() -> None:
    if sys.version_info < (3, 11):
        pytest.skip("reads pyproject.toml")
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [
        Requirement(line)
        for name, lines in {"": project["dependencies"], **extras}.items()
        for line in lines
        if name != "dev"
    ]
    licences = {name: licence for name, _, licence in listed_dependencies(part=0)}
    names = [canonicalize_name(one.name) for one in wanted]
    assert not [name for name in names if not licences.get(name)]
