"""Several processes training one model."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_train import TINY, data_folder  # noqa: F401
from torch import Tensor
from torch.multiprocessing.spawn import ProcessRaisedException

from indexmem_cli.train import pretrain
from indexmem_cli.train.recipes import RECIPES
from indexmem_cli.train.workers import Peers, run_together

TWO_WORKERS = replace(TINY, rounds=1, workers=2, share_steps=2, measure_steps=100, threads=1)


def share_rank(peers: Peers, out: Path) -> None:
    tensors = {"rank": torch.full((3,), float(peers.rank)), "same": torch.ones(())}
    late = [peers.share(tensors, late=False), peers.share(tensors, late=peers.rank == 1)]
    found = {name: tensor.tolist() for name, tensor in tensors.items()}
    (out / f"{peers.rank}.json").write_text(json.dumps([found, late]))


def fail_in_the_second(peers: Peers) -> None:
    if peers.rank == 1:
        raise ValueError("the second failed")
    peers.share({"weight": torch.ones(1)}, late=False)


def test_processes_share_means_and_stop_together(tmp_path: Path) -> None:
    run_together(share_rank, 3, (tmp_path,))
    for rank in range(3):
        shared, late = json.loads((tmp_path / f"{rank}.json").read_text())
        assert shared == {"rank": [1.0, 1.0, 1.0], "same": 1.0}
        assert late == [False, True]


def test_one_that_fails_ends_the_others() -> None:
    with pytest.raises(ProcessRaisedException, match="the second failed"):
        run_together(fail_in_the_second, 2, ())


def wait_for_ever(peers: Peers, out: Path) -> None:
    (out / str(peers.rank)).touch()
    time.sleep(600)


def test_ctrl_c_ends_all_without_a_word(tmp_path: Path) -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "from test_train_workers import run_together, wait_for_ever\n"
        "if __name__ == '__main__':\n"
        f"    try: run_together(wait_for_ever, 2, (Path({str(tmp_path)!r}),))\n"
        "    except KeyboardInterrupt: print('stopped')\n"
    )
    script = tmp_path / "program.py"
    script.write_text(program)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, script], start_new_session=True, **pipes)
    while not all((tmp_path / rank).exists() for rank in "01") and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    shown, complaints = process.communicate(timeout=60)
    assert (process.returncode, shown, complaints) == (0, "stopped\n", "")
    with pytest.raises(ProcessLookupError):
        for _ in range(100):  # what cleans up after them ends a little later
            os.killpg(process.pid, 0)
            time.sleep(0.1)


def weights_of(folder: Path) -> Tensor:
    weights = pretrain.load_weights(folder)
    return torch.cat([weights[name].flatten() for name in sorted(weights)])


def test_a_run_of_two_resumes_as_it_would_have_gone_on(
    data_folder: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(RECIPES, "two", TWO_WORKERS)
    straight = weights_of(pretrain.train_base("two", data_folder, tmp_path / "straight"))
    half = weights_of(pretrain.train_base("two", data_folder, tmp_path / "parts", max_steps=4))
    whole = weights_of(pretrain.train_base("two", data_folder, tmp_path / "parts", resume=True))
    assert torch.equal(straight, whole)
    assert not torch.equal(straight, half)
    rows = [json.loads(row) for row in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [4, 6], "the first process alone writes"
    assert rows[-1]["num_tokens"] == 6 * 2 * 384


def test_two_processes_learn_from_rows_of_their_own(
    data_folder: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()  # of the code to ask about: new processes read the real library
    monkeypatch.setitem(RECIPES, "two", TWO_WORKERS)
    monkeypatch.setitem(RECIPES, "one", replace(TWO_WORKERS, workers=1))
    two = weights_of(pretrain.train_base("two", data_folder, tmp_path / "two"))
    one = weights_of(pretrain.train_base("one", data_folder, tmp_path / "one"))
    assert not torch.allclose(two, one, atol=1e-3)
