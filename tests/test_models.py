"""`models`: what is here, what it needs, what fits, and fetching from a hub over real HTTP."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from families import CONFIGS
from local_hub import COMMIT, LocalHub, serve_models
from typer.testing import CliRunner, Result

from indexmem_cli import machine, settings
from indexmem_cli.checkpoint import missing_files, read_checkpoint
from indexmem_cli.cli.app import app
from indexmem_cli.config import MemoryConfig, ModelConfig
from indexmem_cli.estimate import (
    CARD_GIB,
    choose_form,
    estimate_need,
    largest_budget,
    read_weights,
    sort_weights,
)
from indexmem_cli.memory.state import LayerState, MemoryState, WindowState

GIB = 2**30
_QWEN3 = {"vocab_size": 151_936, "num_key_value_heads": 8, "head_dim": 128}
# Family, parameters as its hub page says, and shape.
SHAPES = {
    "Qwen3-4B": (
        "qwen3",
        4_022_468_096,
        {
            **_QWEN3,
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "tie_word_embeddings": True,
        },
    ),
    "Qwen3-8B": (
        "qwen3",
        8_190_735_360,
        {
            **_QWEN3,
            "hidden_size": 4096,
            "intermediate_size": 12_288,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "tie_word_embeddings": False,
        },
    ),
    "Llama-3.1-8B": (
        "llama",
        8_030_261_248,
        {
            "vocab_size": 128_256,
            "hidden_size": 4096,
            "intermediate_size": 14_336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "tie_word_embeddings": False,
        },
    ),
}
ROOT = Path(__file__).parents[1]


def run(*args: str) -> Result:
    return CliRunner().invoke(app, args, prog_name="indexmem")


def program(hub: LocalHub, home: Path, *args: str, **extra: str) -> subprocess.CompletedProcess:
    """Run the real program against a hub; its client reads the environment once, on import."""
    environment = {**os.environ, **hub.environment(home), "PYTHONPATH": str(ROOT), **extra}
    command = [sys.executable, "-m", "indexmem_cli", *args]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


@pytest.fixture
def folder(tiny_model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "shelf" / "tiny"))


@pytest.fixture(scope="module")
def saved_families(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from families import make_model

    folder = tmp_path_factory.mktemp("families")
    for family in CONFIGS:
        make_model(family).save_pretrained(folder / family)
    return folder


class TestEstimate:
    @pytest.mark.parametrize("family", CONFIGS)
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_weights_are_what_the_loader_takes(
        self, family: str, dtype: str, saved_families: Path
    ) -> None:
        from indexmem_cli.loading import load_backbone

        checkpoint = read_checkpoint(family, saved_families / family)
        backbone = load_backbone(checkpoint, ModelConfig(dtype=dtype, device="cpu"))
        loaded = sum(weight.nbytes for weight in backbone.model.parameters())
        assert read_weights(checkpoint).nbytes("none", dtype) == loaded

    @pytest.mark.parametrize("name", SHAPES)
    def test_weights_of_models_that_are_used_counted_by_shape(self, name: str) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        kind, parameters, shape = SHAPES[name]
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape))
        tied = model.config.tie_word_embeddings
        shapes = [(name, list(weight.shape)) for name, weight in model.state_dict().items()]
        weights = sort_weights(shapes, 0, tied)
        assert weights.parameters == parameters
        assert weights.nbytes("none", "bfloat16") == 2 * parameters
        linear = (part for part in model.modules() if isinstance(part, torch.nn.Linear))
        packed = sum(part.weight.numel() for part in linear if part is not model.lm_head)
        assert weights.matrices == packed  # what bitsandbytes quantises

    @pytest.mark.parametrize("quant", ["int8", "nf4"])
    def test_quantised_weights_are_what_the_loader_takes(
        self, quant: str, saved_families: Path
    ) -> None:
        from indexmem_cli.loading import load_backbone

        checkpoint = read_checkpoint("qwen3", saved_families / "qwen3")
        form = ModelConfig(quant=quant, dtype="bfloat16", device="cpu")
        loaded = sum(map(stored_bytes, load_backbone(checkpoint, form).model.parameters()))
        assert read_weights(checkpoint).nbytes(quant, "bfloat16") == pytest.approx(loaded, rel=0.02)

    @pytest.mark.parametrize("quant", ["int8", "nf4"])
    def test_weights_stored_quantised_are_counted_as_the_plain_ones_they_run_as(
        self, quant: str, saved_families: Path, tmp_path: Path
    ) -> None:
        from indexmem_cli.loading import load_backbone
        from indexmem_cli.train.quantise import quantise

        quantise(str(saved_families / "qwen3"), tmp_path / quant, quant)
        checkpoint = read_checkpoint(quant, tmp_path / quant)
        form = ModelConfig(dtype="float32", device="cpu")
        backbone = load_backbone(checkpoint, form)
        need = choose_form(checkpoint, read_weights(checkpoint), form, gpu=False)
        assert need.quant == backbone.info.quant
        assert need.weight_bytes == sum(w.nbytes for w in backbone.model.parameters())

    @pytest.mark.parametrize("gpu", [True, False])
    @pytest.mark.parametrize("more", [0, 1])
    def test_large_models_are_quantised_on_a_gpu_and_nowhere_else(
        self, gpu: bool, more: int, saved_families: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import torch

        from indexmem_cli import loading

        checkpoint = read_checkpoint("qwen3", saved_families / "qwen3")
        size = 4 * 2**30 + more
        monkeypatch.setattr(type(checkpoint), "weight_bytes", property(lambda _: size))
        weights = replace(read_weights(checkpoint), file_bytes=size)
        device = torch.device("cuda" if gpu else "cpu")
        quant = "nf4" if gpu and more else "none"
        assert loading._choose_quant("auto", checkpoint, device) == quant
        assert choose_form(checkpoint, weights, ModelConfig(), gpu).quant == quant

    @pytest.mark.parametrize("family", ["qwen3", "mistral-sliding", "gemma3"])
    def test_memory_is_what_the_state_takes(self, family: str, saved_families: Path) -> None:
        import torch

        checkpoint = read_checkpoint(family, saved_families / family)
        weights = read_weights(checkpoint)
        memory, budget, chunk = MemoryConfig(256, 64), 256, 64
        need = estimate_need(checkpoint, weights, memory, ModelConfig(dtype="float32"), False)
        layers = [
            WindowState(window) if window else LayerState(budget + chunk + 128)
            for window in checkpoint.layer_windows
        ]
        config = checkpoint.config
        for layer in layers:
            shape = (1, config["num_key_value_heads"], budget, config.get("head_dim") or 16)
            layer.append(torch.zeros(shape), torch.zeros(shape), 0)
            layer.append(*(torch.zeros(*shape[:2], chunk, shape[3]) for _ in "kv"), budget)
        state = MemoryState(layers)
        assert state.nbytes <= need.kv_bytes <= 3.8 * state.nbytes

    def test_quantising_needs_less_and_a_budget_more(self, tiny_model_dir: Path) -> None:
        checkpoint = read_checkpoint("tiny", tiny_model_dir)
        weights = read_weights(checkpoint)

        def total(budget: int, quant: str) -> int:
            form = ModelConfig(quant=quant)
            return estimate_need(
                checkpoint, weights, MemoryConfig(budget, 32), form, True
            ).total_bytes

        assert total(64, "nf4") < total(64, "int8") < total(64, "none") < total(96, "none")

    def test_the_largest_budget_fits_and_one_more_step_does_not(self, tiny_model_dir: Path) -> None:
        checkpoint = read_checkpoint("tiny", tiny_model_dir)
        big = {"max_position_embeddings": 1 << 24, "num_hidden_layers": 40, "vocab_size": 150_000}
        big |= {"hidden_size": 4096, "intermediate_size": 12_288, "num_attention_heads": 32}
        big |= {"num_key_value_heads": 8, "head_dim": 128}
        checkpoint = replace(checkpoint, config=checkpoint.config | big)
        weights = replace(read_weights(checkpoint), matrices=7 * 10**9, rows=10**6)
        form, budgets = ModelConfig(quant="nf4", dtype="bfloat16"), []
        for gib in CARD_GIB:
            budgets.append(largest_budget(checkpoint, weights, form, gib * GIB))
            for more, fits in ((0, True), (1, False)):
                memory = MemoryConfig(budgets[-1] + more)
                need = estimate_need(checkpoint, weights, memory, form, True)
                assert (need.total_bytes <= gib * GIB) == fits
        assert budgets == sorted(budgets)
        assert largest_budget(checkpoint, weights, form, 4 * GIB) is None
        whole = ModelConfig(quant="none", dtype="bfloat16")
        assert largest_budget(checkpoint, weights, whole, 12 * GIB) is None


def stored_bytes(weight: Any) -> int:
    """Bytes of a parameter with what quantisation keeps beside it."""
    total, state = weight.nbytes, getattr(weight, "quant_state", None)
    if state is not None:
        total += state.absmax.nbytes + state.state2.absmax.nbytes
    scales = getattr(weight, "SCB", None)
    return total + (0 if scales is None else scales.nbytes)


class TestMachine:
    def test_this_machine(self) -> None:
        seen = machine.look_at_machine()
        assert 0 < seen.ram_free_bytes <= seen.ram_total_bytes
        assert (seen.driver is None) == (not seen.gpus)

    def test_a_container_limits_what_is_free(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        limit, used = tmp_path / "limit", tmp_path / "used"
        limit.write_text(f"{GIB}\n")
        used.write_text(f"{GIB - 1000}\n")
        monkeypatch.setattr(machine, "_CGROUP_2", (limit, used))
        seen = machine.look_at_machine()
        assert (seen.ram_total_bytes, seen.ram_free_bytes) == (GIB, 1000)
        limit.write_text("max\n")
        assert machine.look_at_machine().ram_total_bytes > GIB

    @pytest.mark.parametrize(
        ("visible", "shown"),
        [
            (None, [0, 1, 2, 3]),
            ("", []),
            ("1", [1]),
            ("3, 0", [3, 0]),
            ("-1", []),
            ("0,7,1", [0]),
            ("GPU-a1,2", ["GPU-a1", 2]),
            ("MIG-7,x", ["MIG-7"]),
        ],
    )
    def test_cards_are_those_that_cuda_shows(self, visible: str | None, shown: list) -> None:
        assert machine._shown(visible, 4) == shown

    @pytest.mark.parametrize(
        ("visible", "names"),
        [
            ("GPU-b", ["B"]),
            ("1,MIG-b7", ["B", "B slice"]),
            ("0,GPU-c,1", ["A"]),
            ("MIG-none", []),
        ],
    )
    def test_cards_go_by_number_by_the_beginning_of_a_uuid_or_by_slice(
        self, visible: str, names: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import pynvml

        cards = {0: "GPU-a11", 1: "GPU-b22", "MIG-b7": "MIG-b7"}
        known = {"GPU-a11": "A", "GPU-b22": "B", "MIG-b7": "B slice"}

        def by_uuid(uuid: str) -> str:
            if uuid not in cards:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
            return uuid

        answers = {
            "Init": lambda: None,
            "Shutdown": lambda: None,
            "SystemGetDriverVersion": lambda: "600.1",
            "DeviceGetCount": lambda: 2,
            "DeviceGetHandleByIndex": cards.__getitem__,
            "DeviceGetHandleByUUID": by_uuid,
            "DeviceGetUUID": lambda card: card,
            "DeviceGetName": known.__getitem__,
            "DeviceGetMemoryInfo": lambda card: SimpleNamespace(total=8, free=7),
        }
        for name, answer in answers.items():
            monkeypatch.setattr(pynvml, f"nvml{name}", answer)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        seen = machine.look_at_machine()
        assert [gpu.name for gpu in seen.gpus] == names and seen.driver == "600.1"

    def test_devices(self) -> None:
        gpus = (machine.Gpu("A", 8 * GIB, 7 * GIB), machine.Gpu("B", 80 * GIB, 79 * GIB))
        here = machine.Machine(16 * GIB, 10 * GIB, gpus, "600.1")
        names = [here.name_of(name) for name in ("all", "cuda", "cuda:1", "cpu", "cuda:9")]
        assert names == ["A + B", "A", "B", "RAM", "RAM"]
        assert here.free_bytes("auto") == 86 * GIB
        assert here.free_bytes("cuda:1") == 79 * GIB and here.free_bytes("mps") == 10 * GIB


class TestList:
    def test_shipped_and_folders(self, folder: Path) -> None:
        result = run("models", "list", str(folder.parent), "-b", "1k")
        assert result.exit_code == 0, result.stderr
        lines = result.stdout.splitlines()
        columns = ["MODEL", "FAMILY", "FILES", "WINDOW", "BUDGET", "NEEDS", "FITS", "FROM"]
        assert lines[0].split() == columns
        assert lines[1].startswith("indexmem-mini *")
        assert lines[1].split()[-2:] == ["yes", "shipped"]
        assert lines[2].startswith(str(folder)) and lines[2].split()[-1] == "folder"
        assert lines[-1].startswith(("RAM: ", "NVIDIA")) and lines[-1].endswith(" free")

    def test_json(self, folder: Path) -> None:
        document = json.loads(run("models", "list", str(folder), "-b", "100", "--json").stdout)
        assert document["schema"] == 1 and document["machine"]["free_bytes"] > 0
        row = document["models"][-1]
        assert (row["name"], row["origin"], row["fits"]) == (str(folder), "folder", True)
        need = row["need"]
        assert need.pop("total_bytes") == sum(need.values())

    def test_names_alone(self, folder: Path) -> None:
        assert run("models", "list", "-q", str(folder)).stdout == f"indexmem-mini\n{folder}\n"

    def test_what_does_not_fit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        small = machine.Machine(GIB, 1000, (), None)
        monkeypatch.setattr(machine, "look_at_machine", lambda: small)
        rows = json.loads(run("models", "list", "--json").stdout)["models"]
        assert [row["fits"] for row in rows] == [False]

    @pytest.mark.parametrize(
        ("spoil", "problem"),
        [
            (lambda f: (f / "config.json").write_text('{"model_type": "bert"}'), "'bert' is not"),
            (lambda f: (f / "config.json").write_text("{"), "no readable config.json"),
            (lambda f: (f / "model.safetensors").unlink(), "no .safetensors weights"),
            (lambda f: os.truncate(f / "model.safetensors", 2000), "model.safetensors is damaged"),
            (lambda f: write_index(f, "model-2.safetensors"), "model-2.safetensors is missing"),
            (lambda f: (f / "model.safetensors.index.json").write_text("[]"), "not all here"),
        ],
    )
    def test_what_cannot_be_used_is_counted_and_named(
        self, spoil: Any, problem: str, folder: Path
    ) -> None:
        spoil(folder)
        result = run("models", "list", str(folder))
        assert result.exit_code == 0, result.stderr
        assert str(folder) not in result.stdout
        assert result.stdout.endswith("1 more cannot be used (-v lists them)\n")
        assert problem in run("models", "list", str(folder), "-v").stdout


def write_index(folder: Path, *names: str) -> None:
    weights = {name: name for name in ("model.safetensors", *names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))


class TestShow:
    def test_the_table_of_cards(self) -> None:
        """The shipped model is stored in int8: it runs so, or as plain weights, and not in nf4."""
        result = run("models", "show", "indexmem-mini", "-b", "1k")
        assert result.exit_code == 0, result.stderr
        lines = result.stdout.splitlines()
        assert lines[0] == "indexmem-mini (shipped, default)"
        assert "budget 1,024 tokens: about" in result.stdout
        table = [line.split() for line in lines[-7:]]
        assert table[0] == ["CARD", "bfloat16", "int8"]
        assert [row[0] for row in table[1:]] == [str(gib) for gib in CARD_GIB]

    def test_json_of_the_default(self, folder: Path) -> None:
        settings.write_setting("model", str(folder))
        row = json.loads(run("models", "show", "--json", "-b", "64", "--dtype", "float16").stdout)
        assert (row["name"], row["default"], row["layers"]) == (str(folder), True, 2)
        assert [set(card) for card in row["cards"]] == [{"gib", "float16", "int8", "nf4"}] * 6

    def test_what_is_not_here(self) -> None:
        result = run("models", "show", "test/none", "--offline")
        assert (result.exit_code, result.stdout) == (5, "")
        assert "error: model 'test/none' is not in the cache, and the network is off" in (
            result.stderr
        )
        assert "  try: with a connection: indexmem models pull test/none" in result.stderr

    def test_a_damaged_one(self, folder: Path) -> None:
        os.truncate(folder / "model.safetensors", 2000)
        result = run("models", "show", str(folder))
        assert result.exit_code == 5 and "model.safetensors is damaged" in result.stderr


class TestDefault:
    def test_set_and_shown(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert run("models", "default").stdout == "indexmem-mini\n"
        monkeypatch.chdir(folder.parent)
        assert run("models", "default", "tiny").exit_code == 0
        monkeypatch.chdir("/")
        assert run("models", "default").stdout == f"{folder}\n"
        assert settings.read_settings() == {"model": str(folder)}

    def test_a_variable_that_beats_it_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("INDEXMEM_MODEL", "other/model")
        result = run("models", "default", "indexmem-mini")
        assert "note: INDEXMEM_MODEL is set, and beats the file: other/model" in result.stderr

    def test_only_what_is_here(self) -> None:
        result = run("models", "default", "test/none")
        assert result.exit_code == 5 and "indexmem models pull test/none" in result.stderr
        assert settings.read_settings() == {}


class TestHub:
    def test_look_fetch_list_and_use_offline(self, folder: Path, tmp_path: Path) -> None:
        home = tmp_path / "hub"
        with serve_models(tiny=folder) as hub:
            shown = program(hub, home, "models", "show", "test/tiny", "-b", "64", "--json")
            assert json.loads(shown.stdout)["origin"] == "not here", shown.stderr
            assert not list(home.rglob("model.safetensors"))
            dry = program(hub, home, "models", "pull", "test/tiny", "--dry-run")
            assert dry.stderr.startswith(f"test/tiny (revision {COMMIT}): 5 files, "), dry.stderr
            assert (dry.returncode, dry.stdout) == (0, "")
            assert not list(home.rglob("model.safetensors"))
            pulled = program(hub, home, "models", "pull", "test/tiny")
            assert pulled.returncode == 0, pulled.stderr
            snapshot = Path(pulled.stdout.strip())
            assert (snapshot / "model.safetensors").read_bytes() == (
                folder / "model.safetensors"
            ).read_bytes()
            again = program(hub, home, "models", "pull", "test/tiny")
            assert again.stderr == f"test/tiny is here already (revision {COMMIT})\n"
            text = tmp_path / "a.txt"
            text.write_text("the mill passes to Ruth")
            hub.asked.clear()
            asked = program(
                hub, home, "inspect", str(text), "-b", "64", "-m", "test/tiny", "--json"
            )
            assert (asked.returncode, hub.asked) == (0, []), asked.stderr  # nobody hears of it
        listed = program(hub, home, "models", "list", "-q")  # the hub is gone
        assert listed.stdout == "indexmem-mini\ntest/tiny\n", listed.stderr
        command = ["inspect", str(text), "-b", "64", "-m", "test/tiny", "--offline", "--json"]
        assert program(hub, home, *command).returncode == 0

    def test_an_interrupted_download_goes_on(self, folder: Path, tmp_path: Path) -> None:
        home = tmp_path / "hub"
        with serve_models(tiny=folder) as hub:
            hub.break_after = 30_000
            broken = program(hub, home, "models", "pull", "test/tiny")
            assert broken.returncode == 5, broken.stderr
            assert "error: model 'test/tiny' could not be downloaded" in broken.stderr
            listed = program(hub, home, "models", "list", "-q")
            assert listed.stdout == "indexmem-mini\n"
            hub.break_after = None
            text = tmp_path / "a.txt"
            text.write_text("the mill passes to Ruth")
            asked = program(hub, home, "inspect", str(text), "-b", "64", "-m", "test/tiny")
            assert asked.returncode == 0, asked.stderr  # what was half here is fetched whole

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["test/none"], "error: model 'test/none': no such model on the hub"),
            (["test/tiny", "--revision", "v9"], "no such revision on the hub"),
            (["test/gated"], "error: model 'test/gated' is given out on conditions"),
            (["test/bert"], "error: test/bert: family 'bert' is not supported"),
            (["test/pickled"], "error: test/pickled: no .safetensors weights"),
            (["not an id"], "error: no model 'not an id': not shipped"),
        ],
    )
    def test_what_cannot_be_fetched(
        self, args: list[str], message: str, folder: Path, tmp_path: Path
    ) -> None:
        bert, pickled = tmp_path / "bert", tmp_path / "pickled"
        bert.mkdir()
        (bert / "config.json").write_text('{"model_type": "bert"}')
        shutil.copytree(folder, pickled).joinpath("model.safetensors").rename(pickled / "m.bin")
        with serve_models(tiny=folder, bert=bert, pickled=pickled, gated=folder) as hub:
            hub.gated.add("test/gated")
            result = program(hub, tmp_path / "hub", "models", "pull", *args)
        assert (result.returncode, result.stdout) == (5, ""), result.stderr
        assert message in result.stderr and "Traceback" not in result.stderr
        assert not [request for request in hub.asked if "GET" in request and ".safet" in request]

    def test_no_hub_at_all(self, tmp_path: Path) -> None:
        hub = LocalHub("http://127.0.0.1:9")
        unreachable, off = "could not be downloaded: ", "is not in the cache, and the network is"
        for variables, message in (({}, unreachable), ({"HF_HUB_OFFLINE": "1"}, off)):
            started = time.monotonic()
            result = program(hub, tmp_path, "models", "pull", "test/tiny", **variables)
            assert result.returncode == 5, result.stderr
            assert f"error: model 'test/tiny' {message}" in result.stderr
            assert time.monotonic() - started < 10


def test_a_disk_too_small_is_said_before_fetching(folder: Path, tmp_path: Path) -> None:
    full = shutil.disk_usage(tmp_path)._replace(free=10)
    code = (
        "import shutil; from indexmem_cli import catalogue;"
        f"shutil.disk_usage = lambda path: type('U', (), {{'free': {full.free}}})();"
        "catalogue.plan_download('test/tiny')"
    )
    with serve_models(tiny=folder) as hub:
        environment = {**os.environ, **hub.environment(tmp_path), "PYTHONPATH": str(ROOT)}
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment
        )
    assert "the disk of the cache has 0.0" in result.stderr


def test_a_shard_that_the_index_does_not_name_is_no_fault(folder: Path) -> None:
    write_index(folder)
    assert missing_files(folder) == []
