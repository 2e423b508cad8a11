"""`bench kernels` and `bench device`: refused without a device, rehearsed, compiled for others."""

import json
import os
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from indexmem_cli.bench.shapes import SHAPES, weights_of
from indexmem_cli.cli.app import app

triton = pytest.importorskip("triton")
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")

KERNELS = {
    "score_states",
    "score_pairs",
    "select",
    "move_rows",
    "attend_split",
    "merge_splits",
    "attend_chunk",
    "assign",
    "add",
    "fast_weights",
}


def rows_of(*arguments, **environment):
    """Run the command in a process of its own, since Triton decides once whether to interpret."""
    command = [sys.executable, "-m", "indexmem_cli", "bench", *arguments, "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["rows"]


def test_every_kernel_compiles_for_both_architectures_and_spills_nothing():
    rows = rows_of("kernels", "--compile-only", TRITON_INTERPRET="0")
    assert {(row["kernel"], row["arch"]) for row in rows} == {
        (kernel, arch) for kernel in KERNELS for arch in (80, 90)
    }
    for row in rows:
        assert row["ptx_bytes"] > 1000 and 0 < row["registers"] <= 255
        assert row["spilled_bytes"] == 0, row
        assert row["shared_bytes"] <= 163 * 1024, row  # of an sm_80


@without_gpu
@pytest.mark.parametrize("command", ["kernels", "device"])
def test_without_a_device_times_are_refused(command):
    done = CliRunner().invoke(app, ["bench", command])
    assert done.exit_code == 2
    assert f"bench {command} needs a CUDA device, and this machine has none" in done.stderr


@without_gpu
def test_kernels_and_models_are_rehearsed_without_a_device():
    rows = rows_of("kernels", "--rehearse")
    assert len(rows) == 14 and all(row["ms"]["median"] > 0 for row in rows[1:])
    tasks = [row["task"] for row in rows_of("device", "--rehearse")]
    decoded = ["decode", "decode, no graph", "decode"]
    shares = ["read by recency", "read with an indexer", "read with an indexer and memory"]
    assert tasks == ["read", "estimate", *shares, *decoded, "full cache", "full cache"]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("Qwen2.5-7B", 7.616), ("Llama-3.1-8B", 8.030), ("Mistral-7B-v0.3", 7.248)]
    + [("Qwen3-4B", 4.022)],
)
def test_shapes_have_the_parameters_of_their_models(name, parameters):
    assert weights_of(name).parameters / 1e9 == pytest.approx(parameters, abs=1e-3)
    assert name in SHAPES
