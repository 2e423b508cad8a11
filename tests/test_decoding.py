"""Answers in steps of fixed shape: the same as without, replayable, and one wait a token."""

import contextlib
import warnings
from dataclasses import replace

import pretend
import pytest
import torch
from families import WINDOW, make_backbone, make_model, token_ids
from test_devices import FIRST
from test_kernels_engine import scorer_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from indexmem_cli import decoding, engine
from indexmem_cli.config import AnswerConfig, MemoryConfig
from indexmem_cli.engine import Reader
from indexmem_cli.errors import BackboneError, ConfigError
from indexmem_cli.memory.latent import CentroidMemory
from indexmem_cli.plan import make_plan

IDS, QUESTION = token_ids(96), token_ids(7, seed=1)
TOKENS = 20
CASES = [
    ("llama-3.1", "keydiff", "original", "model"),  # every head holds other positions
    ("qwen3", "keydiff", "compact", "model"),
    ("qwen3", "recency", "original", "model"),
    ("qwen2", "question", "compact", "int8"),  # looks from the question at what is held
    ("qwen2", "question", "compact", "model"),
    ("phi3", "shared", "original", "model"),  # looks at hidden states
    ("qwen3", "snapkv", "original", "model"),  # looks at queries
    ("qwen3", "shared", "original", "by head"),  # every head holds another number of tokens
]
HEAD_SHARES = (1.0, 1.5, 0.5, 0.8, 1.2, 1.0)


@pytest.fixture(autouse=True)
def _often_evicted(monkeypatch):
    monkeypatch.setattr(engine, "DECODE_BLOCK_TOKENS", 6)


def answer(family, policy, positions, kv_dtype, backbone=None, config=None):
    """Read 96 tokens into 32 slots and write an answer: its steps, and what is held after it."""
    backbone = backbone or make_backbone(family)
    backbone.info = replace(backbone.info, kv_dtype=kv_dtype)
    memory = MemoryConfig(32, 48, sink_tokens=2, recent_tokens=8, positions=positions)
    plan, _ = make_plan(memory, WINDOW)
    shares = HEAD_SHARES if kv_dtype == "by head" else ()
    reader = Reader(backbone, plan, scorer_of(policy), QUESTION, shares)
    list(reader.read([IDS[:48], IDS[48:]]))
    steps = list(reader.answer(QUESTION, config or AnswerConfig(TOKENS), set()))
    held = [layer.positions[:, :, : layer.held].tolist() for layer in reader.state.managed]
    return steps, held


def agree(found, expected):
    assert [step.token_id for step in found[0]] == [step.token_id for step in expected[0]]
    for one, other in zip(found[0], expected[0], strict=True):
        assert dict(one.attended) == pytest.approx(dict(other.attended), rel=1e-3, abs=1e-6)
    assert found[1] == expected[1], "other slots"


def fix_steps(monkeypatch):
    """Let answers be written in steps of fixed shape, which else only a GPU is worth."""
    made = []

    class Watched(decoding.FixedDecoder):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(engine, "has_fixed_steps", lambda backbone, state: True)
    monkeypatch.setattr(engine, "FixedDecoder", Watched)
    return made


@pytest.mark.parametrize("case", CASES)
def test_fixed_steps_write_the_same(monkeypatch, case):
    expected = answer(*case)
    made = fix_steps(monkeypatch)
    agree(answer(*case), expected)
    assert len(made) == 1 and made[0].steps == TOKENS - 1


class Recorded:
    """What a CUDA graph does, on the CPU: the operations of one run, done again on its tensors."""

    made: list = []

    def __init__(self):
        self.done, self.replays = [], 0
        Recorded.made.append(self)

    def replay(self):
        self.replays += 1
        for func, args, options, out in self.done:
            fresh = func(*args, **options)
            mine = {t.untyped_storage().data_ptr() for t in tensors((args, options))}
            for old, new in zip(tensors(out), tensors(fresh), strict=True):
                if old.untyped_storage().data_ptr() not in mine:  # else a view, or done in place
                    old.copy_(new)


def tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class Record(TorchDispatchMode):
    def __init__(self, graph):
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "the host would wait"
        out = func(*args, **(kwargs or {}))
        self.graph.done.append((func, args, kwargs or {}, out))
        return out


def capture_on_the_cpu(monkeypatch):
    Recorded.made = []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recorded)
    monkeypatch.setattr(torch.cuda, "graph", Record)
    plain = decoding.FixedDecoder.__init__

    def init(self, *args):
        plain(self, *args)
        self.may_capture = True

    monkeypatch.setattr(decoding.FixedDecoder, "__init__", init)


@pytest.mark.parametrize("case", CASES)
def test_a_step_recorded_once_and_replayed_writes_the_same(monkeypatch, case):
    expected = answer(*case)
    fix_steps(monkeypatch)
    capture_on_the_cpu(monkeypatch)
    agree(answer(*case), expected)
    graphs = Recorded.made
    assert sum(graph.replays for graph in graphs) == TOKENS - 1 - decoding.TOKENS_BEFORE_CAPTURE
    assert len(graphs) <= 2, "the graph outlives evictions"


def test_where_no_graph_can_be_made_the_answer_is_written_without(monkeypatch):
    expected = answer(*CASES[0])
    fix_steps(monkeypatch)
    capture_on_the_cpu(monkeypatch)

    @contextlib.contextmanager
    def refuse(graph):
        yield
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        agree(answer(*CASES[0]), expected)
    texts = [str(one.message) for one in said if "CUDA graph" in str(one.message)]
    assert texts == [
        "answers are written without a CUDA graph: operation not permitted when stream is capturing"
    ]


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_token_waits_for_the_device_once(monkeypatch, fixed, temperature):
    case, config = ("qwen3", "keydiff", "compact", "model"), AnswerConfig(12, temperature)
    monkeypatch.setattr(engine, "DECODE_BLOCK_TOKENS", 64)  # nothing is evicted
    expected = answer(*case, config=config)
    if fixed:
        fix_steps(monkeypatch)
    else:
        monkeypatch.setattr(engine, "has_fixed_steps", lambda backbone, state: False)
    counts = []
    read_back = engine.read_back

    def counting(*args):
        counts.append(list(pretend.waits))
        pretend.waits.clear()
        back = read_back(*args)
        assert pretend.waits == ["cpu"]
        pretend.waits.clear()
        return back

    monkeypatch.setattr(engine, "read_back", counting)
    model = make_model("qwen3")
    with torch.no_grad(), pretend.PretendDevices():
        for part in model.modules():
            for kind in (part._parameters, part._buffers):
                for name, tensor in kind.items():
                    if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                        kind[name] = pretend.Pretend(tensor.detach(), FIRST)
        found = answer(*case, backbone=make_backbone("qwen3", model), config=config)
    assert [s.token_id for s in found[0]] == [s.token_id for s in expected[0]]
    later = counts[2 + decoding.TOKENS_BEFORE_CAPTURE :]
    assert len(later) > 5 and all(waits == [] for waits in later), later


def test_damage_shows_in_any_step(monkeypatch):
    fix_steps(monkeypatch)
    backbone = make_backbone("qwen3")
    forward = backbone.decoder.norm.forward
    monkeypatch.setattr(
        backbone.decoder.norm,
        "forward",
        lambda x: forward(x) * (float("nan") if x.shape[1] == 1 else 1.0),
    )
    with pytest.raises(BackboneError, match="not finite"):
        answer(*CASES[1], backbone=backbone)


def test_what_has_no_fixed_steps(monkeypatch):
    backbone = make_backbone("qwen3")
    state = backbone.new_state(8)
    backbone.read(IDS[:4], state)
    monkeypatch.setattr(decoding.ops, "uses_kernels", lambda tensor: True)
    assert not decoding.has_fixed_steps(backbone, state)  # no GPU
    backbone.device = torch.device("cuda")
    backbone.layer_devices = [backbone.device]
    assert decoding.has_fixed_steps(backbone, state)
    state.managed[0].latent = CentroidMemory(4)
    assert not decoding.has_fixed_steps(backbone, state)
    state.managed[0].latent = None
    monkeypatch.setenv("INDEXMEM_CUDA_GRAPHS", "0")
    assert not decoding.has_fixed_steps(backbone, state)
    monkeypatch.setenv("INDEXMEM_CUDA_GRAPHS", "yes")
    with pytest.raises(ConfigError, match="INDEXMEM_CUDA_GRAPHS: 'yes'"):
        decoding.has_fixed_steps(backbone, state)
