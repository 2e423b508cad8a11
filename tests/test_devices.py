"""A model whose layers lie on several devices reads and answers as it does on one."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from families import make_backbone, make_model, token_ids
from pretend import Pretend, PretendDevices

from indexmem_cli import loading
from indexmem_cli.backbone import Backbone
from indexmem_cli.checkpoint import read_checkpoint
from indexmem_cli.config import AnswerConfig, MemoryConfig, ModelConfig
from indexmem_cli.engine import Reader, make_reader
from indexmem_cli.errors import BackboneError, OutOfMemory
from indexmem_cli.memory.store import load_state, save_state
from indexmem_cli.plan import make_plan

CASES = [
    ("qwen3", "question"),
    ("qwen3", "h2o"),
    ("qwen3", "expected-attention"),
    ("gemma3", "keydiff"),
    ("gemma3", "snapkv"),
]
IDS, QUESTION = token_ids(200), token_ids(12, seed=1)
FIRST, SECOND = torch.device("maia:0"), torch.device("maia:1")  # types that need no start


def new_reader(backbone: Backbone, policy: str) -> Reader:
    config = MemoryConfig(budget_tokens=64, chunk_tokens=32, policy=policy)
    plan, _ = make_plan(config, 1024, 0, len(QUESTION))
    return make_reader(backbone, plan, config, QUESTION)


def read_and_answer(backbone: Backbone, policy: str) -> tuple[Reader, list[int]]:
    reader = new_reader(backbone, policy)
    for _ in reader.read([IDS[first : first + 32] for first in range(0, len(IDS), 32)]):
        pass
    steps = list(reader.fork().answer(QUESTION, AnswerConfig(12), set()))
    assert all(step.attended for step in steps)
    return reader, [step.token_id for step in steps]


@contextmanager
def spread(model: Any) -> Iterator[Any]:
    """Put the last layers of a model on a second device, as accelerate does; yield it."""
    places = {"embed_tokens": FIRST, "rotary_emb": FIRST, "norm": SECOND}
    decoder = model.get_decoder()
    blocks = [(getattr(decoder, name), place) for name, place in places.items()]
    blocks += [(layer, SECOND if i else FIRST) for i, layer in enumerate(decoder.layers)]
    blocks.append((model.lm_head, FIRST))
    with torch.no_grad(), PretendDevices():
        for block, place in blocks:
            for part in block.modules():
                for tensors in (part._parameters, part._buffers):
                    for name, tensor in tensors.items():
                        if isinstance(tensor, torch.Tensor) and not isinstance(tensor, Pretend):
                            tensors[name] = Pretend(tensor.detach(), place)
            hook = AlignDevicesHook(execution_device=place)
            hook.init_hook = lambda module: module  # the weights are there
            add_hook_to_module(block, hook)
        yield model


@pytest.mark.parametrize(("family", "policy"), CASES)
@pytest.mark.filterwarnings("ignore:at..frobenius_norm is deprecated")
def test_two_devices_give_what_one_gives(family: str, policy: str, tmp_path: Path) -> None:
    reader, expected = read_and_answer(make_backbone(family), policy)
    with spread(make_model(family)) as model:
        backbone = make_backbone(family, model)
        assert backbone.layer_devices == [FIRST, SECOND, SECOND]
        spread_reader, answer = read_and_answer(backbone, policy)
        assert answer == expected
        for one, other in zip(reader.state.layers, spread_reader.state.layers, strict=True):
            keys = other.keys[:, :, : other.held]
            torch.testing.assert_close(keys.inner, one.keys[:, :, : one.held])
        devices = [layer.keys.device for layer in spread_reader.state.layers]
        assert devices == backbone.layer_devices
        again = save_and_load(spread_reader, policy, tmp_path / "state")
        assert [layer.keys.device for layer in again.state.layers] == devices
        list(again.read([IDS[:32]]))
        steps = again.answer(QUESTION, AnswerConfig(12), set())
        list(reader.read([IDS[:32]]))
        both = zip(steps, reader.answer(QUESTION, AnswerConfig(12), set()), strict=True)
        assert all(one.token_id == other.token_id for one, other in both)


def save_and_load(reader: Reader, policy: str, path: Path) -> Reader:
    layout = save_state(path, reader.state, reader.scorer)
    backbone, again = reader.backbone, new_reader(reader.backbone, policy)
    shape = (backbone.kv_shapes, backbone.model.dtype, backbone.layer_devices)
    load_state(path.read_bytes(), layout, again.state, again.scorer, *shape)
    return again


def test_weights_that_accelerate_keeps_on_disk(tmp_path: Path) -> None:
    _, expected = read_and_answer(make_backbone("gemma3"), "keydiff")
    model = make_model("gemma3")
    names = [name for name, _ in model.named_children() if name != "model"]
    names += [f"model.{name}" for name, _ in model.model.named_children() if name != "layers"]
    places = dict.fromkeys([*names, "model.layers.0"], "cpu")
    places |= {"model.layers.1": "disk", "model.layers.2": "disk"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = dispatch_model(model, places, main_device="cpu", offload_dir=tmp_path)
    backbone = make_backbone("gemma3", model)
    assert next(model.model.layers[2].parameters()).device.type == "meta"
    assert backbone.layer_devices == [torch.device("cpu")] * 3
    assert read_and_answer(backbone, "keydiff")[1] == expected


class TestWhereToLoad:
    @pytest.fixture
    def gpus(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        """Say what is free on GPUs that are not there."""
        free: list[int] = []
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: (free[i], free[i]))
        return free

    def room(self, folder: Path, device: str) -> dict[int, int]:
        checkpoint = read_checkpoint("tiny", folder)
        return loading._room_on_several(checkpoint, ModelConfig("tiny", "none", "float32", device))

    def test_all_are_used_where_one_will_not_do(self, gpus: Any, tiny_model_dir: Path) -> None:
        gpus[:] = [10**9, 10**9]
        assert self.room(tiny_model_dir, "auto") == {}
        assert self.room(tiny_model_dir, "cuda:1") == self.room(tiny_model_dir, "cpu") == {}
        assert self.room(tiny_model_dir, "all") == {0: 8 * 10**8, 1: 8 * 10**8}
        gpus[:] = [100_000, 200_000]
        assert self.room(tiny_model_dir, "auto") == {0: 80_000, 1: 160_000}
        gpus[:] = [100_000]
        assert self.room(tiny_model_dir, "auto") == {}

    def test_what_all_cannot_hold_is_refused(self, gpus: Any, tiny_model_dir: Path) -> None:
        gpus[:] = [20_000, 20_000]
        with pytest.raises(OutOfMemory, match="does not fit 2 GPUs together"):
            self.room(tiny_model_dir, "auto")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
    def test_all_needs_one(self, tiny_model_dir: Path) -> None:
        checkpoint = read_checkpoint("tiny", tiny_model_dir)
        with pytest.raises(BackboneError, match="cannot be used"):
            loading.load_backbone(checkpoint, ModelConfig(device="all"))
