"""`doctor` on a healthy and on broken installations, and what it mends."""

import errno
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from local_hub import serve_models
from saved import save
from typer.testing import CliRunner, Result

from indexmem_cli import catalogue, settings
from indexmem_cli.cli.app import app
from indexmem_cli.health import examine, files, system
from indexmem_cli.library import Library


def doctor(*args: str) -> Result:
    return CliRunner().invoke(app, ["doctor", *args], prog_name="indexmem")


def statuses(*args: str) -> dict[str, str]:
    """Return the worst status of each check."""
    found: dict[str, str] = {}
    for finding in json.loads(doctor("--json", *args).stdout)["findings"]:
        if found.get(finding["name"]) != "failure":
            found[finding["name"]] = finding["status"]
    return found


def refusing(folder: Path, act: Callable[..., Any]) -> Callable[..., Any]:
    """Have the files of a folder refused, as those of another user are; root may look at all."""

    def refuse(path: Path, *args: Any, **options: Any) -> Any:
        if path.parent == folder:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return act(path, *args, **options)

    return refuse


class TestHealthy:
    def test_every_check_is_shown(self) -> None:
        result = doctor()
        assert result.exit_code == 0, result.stdout
        lines = [line.split() for line in result.stdout.splitlines()]
        assert not [line for line in lines if line[0] == "FAIL"]
        names = "program settings torch gpu kernels quantisation memory data disk model offline"
        assert set(names.split()) <= {line[1] for line in lines}

    def test_json(self) -> None:
        document = json.loads(doctor("--json").stdout)
        assert (document["schema"], document["healthy"]) == (1, True)
        assert set(document["findings"][0]) == {
            *("name", "status", "detail", "advice", "can_fix", "fixed")
        }

    def test_nothing_is_written(self, tmp_path: Path) -> None:
        before = sorted(tmp_path.rglob("*"))
        doctor("--fix")
        assert sorted(tmp_path.rglob("*")) == before


class TestBroken:
    def test_what_a_crash_left_of_memories(self) -> None:
        root = Library().root
        for name, age_s in ((".gone-a", 10**6), (".incoming-b", 10**6), (".incoming-c", 0)):
            (root / name).mkdir(parents=True)
            (root / name / "part").write_bytes(bytes(2**20))
            os.utime(root / name, (time.time() - age_s,) * 2)
        assert "2 removals or imports that a crash cut short take 2.0 MiB" in doctor().stdout
        assert "2.0 MiB were freed" in doctor("--fix").stdout
        assert [path.name for path in root.iterdir()] == [".incoming-c"]

    def test_a_memory_that_may_not_be_looked_into(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is a damaged one to `doctor` and `memories`, and stands in the way of no other."""
        other, refused = save(Library()).id, Library().folder("0" * 12)
        refused.mkdir()
        for name in ("open", "stat"):
            monkeypatch.setattr(Path, name, refusing(refused, getattr(Path, name)))
        assert "memory 000000000000 is damaged" in doctor().stdout
        listed = CliRunner().invoke(app, ["memories", "list", "--json"])
        found = {each["id"]: each["status"] for each in json.loads(listed.stdout)["memories"]}
        assert found == {other: "ok", refused.name: "damaged"}
        assert CliRunner().invoke(app, ["memories", "rm", "book.txt", "--yes"]).exit_code == 0
        assert Library().ids() == [refused.name]

    def test_settings(self) -> None:
        settings.create_config().write_text("nonsense = 1\n")
        result = doctor()
        assert result.exit_code == 1
        assert "unknown setting: 'nonsense'" in result.stdout
        assert "try: indexmem config edit" in result.stdout
        assert statuses()["model"] == "ok"

    def test_a_folder_that_cannot_be_written_to(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("INDEXMEM_HOME", str(tmp_path / "file" / "home"))
        result = doctor()
        assert result.exit_code == 1 and "home cannot be written to: Not a dir" in result.stdout

    def test_a_model_that_is_not_here(self) -> None:
        result = doctor("-m", "test/none")
        assert result.exit_code == 1
        assert "model 'test/none' is not in the cache, and the network is off" in result.stdout
        assert "try: indexmem models pull test/none" in result.stdout
        assert "test/none cannot be used without a network" in result.stdout

    def test_the_model_that_is_set_is_looked_at(self, monkeypatch: pytest.MonkeyPatch) -> None:
        settings.write_setting("model", "test/file")
        assert "test/file" in doctor().stdout
        monkeypatch.setenv("INDEXMEM_MODEL", "test/variable")
        assert "test/variable" in doctor().stdout

    def test_a_model_cut_off(self, tiny_model_dir: Path, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "tiny"))
        os.truncate(folder / "model.safetensors", 5000)
        found = statuses("-m", str(folder))
        assert (found["model"], found["offline"]) == ("failure", "failure")

    def test_installed_files_that_were_changed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "indexmem_cli").mkdir()
        module = tmp_path / "indexmem_cli" / "engine.py"
        module.write_text("x = 1\n")
        info = tmp_path / "indexmem-9.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Name: indexmem\nVersion: 9\n")
        digest = system._digest(module, "sha256")
        (info / "RECORD").write_text(f"indexmem_cli/engine.py,sha256={digest},6\n")
        monkeypatch.syspath_prepend(tmp_path)
        assert statuses()["program"] == "ok"
        module.write_text("x = 2\n")
        result = doctor()
        assert result.exit_code == 1
        assert "1 installed files are missing or changed: indexmem_cli/engine.py" in result.stdout

    def test_a_check_that_breaks_does_not_stop_the_others(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken() -> None:
            raise ZeroDivisionError("of\nzero")

        monkeypatch.setattr(system, "check_gpu", broken)
        found = {finding.name: finding for finding in examine()}
        assert found["gpu"].detail == "ZeroDivisionError: of"
        assert found["model"].status == "ok"


def test_a_damaged_download_is_found_and_fetched_again(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(catalogue.find_models())  # imports the hub's client, which binds its cache for good
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with serve_models(tiny=tiny_model_dir) as hub:
        files_at = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", files_at)
        folder = catalogue.download("test/tiny").path
        assert "test/tiny, Qwen3: 6 checksums right" in doctor("-m", "test/tiny").stdout
        blob = (folder / "model.safetensors").resolve()
        data = bytearray(blob.read_bytes())
        data[-1] ^= 1
        blob.write_bytes(data)
        stale, fresh = (blob.with_name(f"{name}.incomplete") for name in "ab")
        for file in (stale, fresh):
            file.touch()
        os.utime(stale, (0, time.time() - files.STALE_S - 60))
        ill = doctor("-m", "test/tiny")
        assert ill.exit_code == 1
        assert "model.safetensors is damaged (its checksum is wrong)" in ill.stdout
        assert "1 stopped downloads take 0.0 MiB" in ill.stdout
        mended = doctor("-m", "test/tiny", "--fix")
        assert "test/tiny was fetched again" in mended.stdout
        assert mended.exit_code == 0, mended.stdout
        assert "1 stopped downloads were removed" in mended.stdout
        assert (stale.exists(), fresh.exists()) == (False, True)
    assert doctor("-m", "test/tiny").exit_code == 0
