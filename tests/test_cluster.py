"""Reading on a real Ray cluster on this machine, with a worker that is killed on the way."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from indexmem_cli.cli.app import app
from indexmem_cli.config import MemoryConfig, ModelConfig, ReadConfig
from indexmem_cli.inspecting import inspect
from indexmem_cli.library import Library

ROOT = Path(__file__).parents[1]
CPUS = 8  # two workers
VARIABLES = {
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "0" * 32,
}
START = f"""
import ray, sys
cluster = ray.init(num_cpus={CPUS}, num_gpus=0, include_dashboard=False, _temp_dir=sys.argv[1],
                   object_store_memory=80_000_000, logging_level="error")
print(cluster.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""
WORDS = ["mill", "weir", "barn", "ferry", "lock"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Start Ray, and yield its address; everything of it ends with the process."""
    pytest.importorskip("ray")
    # Ray puts sockets there, whose paths must be short.
    with (
        tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder,
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", START, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **VARIABLES},
        ) as process,
    ):
        yield process.stdout.readline().strip()
        process.stdin.close()


def start_ingest(address: str, model: Path, folder: Path, *args: str) -> subprocess.Popen[str]:
    options = ["-m", str(model), "-b", "96", "--chunk", "32", "--offline", "--ray", address]
    return subprocess.Popen(
        [sys.executable, "-m", "indexmem_cli", "ingest", *options, *args],
        cwd=folder,
        env={**os.environ, **VARIABLES},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def write_documents(folder: Path, count: int) -> list[str]:
    names = [f"{number}.txt" for number in range(count)]
    for number, name in enumerate(names):
        lines = (f"{WORDS[(number + line) % 5]} {number * line}\n" for line in range(300))
        (folder / name).write_text("".join(lines))
    return names


def kill_a_worker_at_work(runner: subprocess.Popen[str]) -> None:
    """Wait until memories arrive, then kill a process that is reading another."""
    until = time.monotonic() + 200
    while time.monotonic() < until and runner.poll() is None:
        saved = sum((Library().folder(name) / "manifest.json").exists() for name in Library().ids())
        for process in psutil.process_iter(["name", "cmdline"]):
            title = (process.info["cmdline"] or [""])[0]
            if saved >= 3 and title == "ray::_Worker.ingest":
                process.send_signal(signal.SIGKILL)
                assert saved < 18
                return
        time.sleep(0.02)
    pytest.fail(f"no worker was seen at work: {runner.communicate()}")


@pytest.mark.slow
def test_a_killed_worker_loses_no_memory_and_makes_none_twice(
    cluster: str, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = write_documents(tmp_path, 20)
    runner = start_ingest(cluster, tiny_model_dir, tmp_path, "--json", *names)
    kill_a_worker_at_work(runner)
    out, told = runner.communicate(timeout=300)
    assert runner.returncode == 0, told
    assert "20 sources are read by 2 workers with 4 CPU cores each" in told
    assert told.count("a worker died while it read") == 1
    memories = json.loads(out)["memories"]
    assert [memory["source"] for memory in memories] == names
    assert sorted(memory["id"] for memory in memories) == Library().ids()
    assert len(Library().ids()) == 20
    how = {"read": ReadConfig(), "memory": MemoryConfig(96, 32)}
    files = inspect(names, model=ModelConfig(str(tiny_model_dir)), **how).files
    for memory, file in zip(memories, files, strict=True):
        Library().verify(memory["id"])
        assert Library().load(memory["id"]).tokens == memory["tokens"] == file.tokens


@pytest.mark.slow
def test_what_one_source_lacks_keeps_no_other_from_being_read(
    cluster: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    names = write_documents(tmp_path, 2)
    first = start_ingest(cluster, tiny_model_dir, tmp_path, *names)
    out, told = first.communicate(timeout=300)
    assert first.returncode == 0, told
    assert [line.partition(":")[0] for line in out.splitlines()] == names
    damaged, _ = Library().ids()
    source = Library().load(damaged).source
    for part in Library().load(damaged).parts:
        (Library().folder(damaged) / part).write_bytes(b"")
    again = start_ingest(cluster, tiny_model_dir, tmp_path, "--json", *names, "1.txt")
    out, told = again.communicate(timeout=300)
    assert (again.returncode, out) == (4, ""), told
    assert f"memory {damaged}" in told and "Traceback" not in told
    assert source in names


def test_workers_that_share_a_machine_do_not_each_take_all_its_memory(
    cluster: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("the mill")
    asked = start_ingest(cluster, tiny_model_dir, tmp_path, "a.txt", "--budget", "auto")
    _, told = asked.communicate(timeout=300)
    assert asked.returncode == 2 and "share a machine's memory" in told


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["a.txt", "--ray", "127.0.0.1:9"], 1, "no Ray cluster at 127.0.0.1:9 can be used"),
        (["a.txt", "--ray", "nowhere"], 1, "no Ray cluster at nowhere can be used"),
        (["-", "--ray", "auto"], 2, "standard input cannot be read on a cluster"),
        (["a.txt", "--ray", "auto", "--device", "cuda:1"], 2, "--device cuda:1 is for one process"),
        (["none.txt", "--ray", "auto"], 3, "none.txt"),
    ],
)
def test_what_cannot_be_done_is_said_at_once(
    args: list[str], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if code == 1:
        pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("the mill")
    result = CliRunner().invoke(app, ["ingest", *args], input="")
    assert (result.exit_code, result.stdout) == (code, ""), result.stderr
    assert message in result.stderr and "Traceback" not in result.stderr
