"""Every Triton kernel against its reference in fp64; on the CPU through Triton's interpreter."""

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from indexmem_cli.ops import reference, slots_reference
from indexmem_cli.ops.kernels import chunk, decode, remember, score, select
from indexmem_cli.ops.reference import Segment

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
if DEVICE == "cpu":  # the interpreter computes in fp32 whatever the inputs are
    TOLERANCE = dict.fromkeys(TOLERANCE, 2e-5)
EXAMPLES = 12

if DEVICE == "cuda":  # one choice of tiles: results do not depend on it, and compiling takes time
    for module in (chunk, decode, remember, score):
        for kernel in vars(module).values():
            if hasattr(kernel, "configs"):
                kernel.configs = kernel.configs[:1]

dtypes = st.sampled_from(list(TOLERANCE))
groups = st.sampled_from([1, 4, 7, 8])
head_sizes = st.sampled_from([16, 64, 80, 96, 128, 256])
few = settings(max_examples=EXAMPLES)


@pytest.fixture(autouse=True)
def _nan_in_fresh_memory():
    """What a kernel forgets to write shows as NaN."""
    if DEVICE == "cuda":  # there it would forbid what the references use
        yield
        return
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


class Chance:
    """Seeded tensors on the device under test."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape, dtype=torch.float32):
        return torch.randn(*shape, generator=self.generator).to(DEVICE, dtype)

    def integers(self, high, *shape):
        return torch.randint(high, shape, generator=self.generator).to(DEVICE)

    def view(self, batch, heads, slots, size, dtype):
        """A view into a larger buffer whose other rows are NaN."""
        room = torch.full((batch, heads, slots + 5, size), float("nan"), dtype=dtype, device=DEVICE)
        room[:, :, :slots] = self.normal(batch, heads, slots, size, dtype=dtype)
        return room[:, :, :slots]


def agree(found, truth, dtype=torch.float32):
    """Compare in fp64: same shape, same infinities, small relative error."""
    assert found.shape == truth.shape
    found, truth = found.double(), truth.double()
    finite = truth.isfinite()
    assert torch.equal(found[~finite], truth[~finite])
    apart = (found[finite] - truth[finite]).norm()
    size = truth[finite].norm().clamp(min=1e-6)
    assert apart <= TOLERANCE[dtype] * size, f"relative error {float(apart / size):.1e}"


def angles(chance, rows, slots, half):
    turn = 6.28 * torch.rand(rows, slots, half, generator=chance.generator).to(DEVICE)
    return turn.cos(), turn.sin()


@few
@given(
    st.integers(0, 70),
    st.sampled_from([24, 64, 100]),
    st.sampled_from([16, 33]),
    st.sampled_from([1, 2, 8]),
    dtypes,
    st.sampled_from([1.0, 1e3]),
)
def test_the_score_net_in_one_pass(tokens, width, hidden, outputs, dtype, size):
    chance = Chance(tokens)
    states = (chance.normal(2, tokens, width) * size + size / 3).to(dtype)
    shapes = [(width,), (hidden, width), (hidden,), (outputs, hidden)]
    net = [(chance.normal(*shape) / 4, chance.normal(shape[0])) for shape in shapes]
    found = score.score_states_triton(states, *net, 1e-5)
    net = [(weight.double(), bias.double()) for weight, bias in net]
    agree(found, slots_reference.score_states_reference(states.double(), *net, 1e-5))


@few
@given(
    st.integers(0, 40),
    st.integers(0, 50),
    st.sampled_from([1, 3, 8]),
    st.sampled_from([4, 8, 16]),
    dtypes,
    st.booleans(),
)
def test_relevance_is_the_best_that_any_query_says(tokens, older, heads, size, dtype, relu):
    chance = Chance(tokens + older)
    slots = tokens + older
    query, key = chance.normal(2, tokens, heads, size), chance.normal(2, slots, size)
    query, key, gate = query.to(dtype), key.to(dtype), chance.normal(2, tokens, heads)
    before = chance.normal(2, slots)
    before[:, older:] = float("-inf")
    found = score.score_pairs_triton(query, gate, key, before, relu)
    inputs = (query.double(), gate.double(), key.double(), before.double())
    agree(found, slots_reference.score_pairs_reference(*inputs, relu), dtype)


@few
@given(st.integers(0, 90), st.integers(1, 4), st.integers(0, 3), st.booleans())
@example(1300, 2, 2, False)
def test_selection_is_exact_with_pins_ties_and_ragged_budgets(slots, heads, kinds, in_order):
    chance = Chance(slots)
    held = chance.integers(slots + 1, 2, heads)
    held[0, 0] = slots
    budget = chance.integers(max(slots, 1) + 1, 2, heads)
    scores = chance.normal(2, heads, slots)
    if kinds:  # many equal scores, both zeros, NaN and the infinities
        odd = torch.tensor([0.0, -0.0, 1.5, float("nan"), float("-inf"), -1.5], device=DEVICE)
        scores = odd[chance.integers(2 * kinds, 2, heads, slots)]
    order = torch.rand(2, heads, slots, generator=chance.generator).argsort(-1).to(DEVICE)
    positions = 1000 + 3 * order if not in_order else 3 * order.sort(-1).values
    pinned = chance.integers(8, 2, heads, slots) == 0
    inputs = (scores, positions, pinned, budget, held, max(slots, 1))
    found = select.select_slots_triton(*inputs)
    truth = slots_reference.select_slots_reference(*inputs)
    for name in ("kept", "evicted", "count", "holes", "arrivals", "moves"):
        assert torch.equal(getattr(found, name), getattr(truth, name)), name


@few
@given(st.integers(1, 90), st.integers(1, 4), dtypes, head_sizes, st.booleans())
def test_compaction_moves_the_kept_and_touches_nothing_else(slots, heads, dtype, size, refill):
    chance = Chance(slots)
    held = torch.full((2, heads), slots, device=DEVICE)
    scores = chance.normal(2, heads, slots)
    positions = torch.arange(slots, device=DEVICE).expand(2, heads, -1)
    budget = chance.integers(slots + 1, 2, heads)
    chosen = slots_reference.select_slots_reference(
        scores, positions, positions < 2, budget, held, slots
    )
    lists = (chosen.kept, chosen.count, None)
    if refill:
        lists = (chosen.arrivals, chosen.moves, chosen.holes)
    rows = chance.view(2, heads, slots, size, dtype)
    buffers = [rows, positions.clone(), scores]
    truth = [b.clone() for b in buffers]
    select.compact_slots_triton(buffers, *lists)
    slots_reference.compact_slots_reference(truth, *lists)
    for found, expected in zip(buffers, truth, strict=True):
        assert torch.equal(found, expected)
    for b in range(2):
        for g in range(heads):
            kept = chosen.kept[b, g, : int(chosen.count[b, g])]
            stays = buffers[1][b, g, : len(kept)]
            assert sorted(stays.tolist()) == kept.tolist()
            assert refill or stays.tolist() == kept.tolist()


def make_segment(chance, query, kv_heads, slots, dtype, kind, ragged):
    """Plain keys, keys to be turned, centroids with a bias, or int8 keys to be turned."""
    batch, _, size = query.shape
    key, value = (chance.view(batch, kv_heads, slots, size, dtype) for _ in "kv")
    extra = {}
    if kind in ("turned", "int8"):
        rows = 1 if not ragged else batch * kv_heads
        half = max(8, size // 2 - 8) if kind == "turned" else size // 2
        extra["cos"], extra["sin"] = angles(chance, rows, slots, half)
    if kind == "int8":
        key, value = (chance.integers(255, batch, kv_heads, slots, size) - 127 for _ in "kv")
        key, value = key.to(torch.int8), value.to(torch.int8)
        for name in ("key_scale", "value_scale"):
            extra[name] = chance.normal(batch, kv_heads, slots).abs() / 64
    if kind == "centroids":
        count = chance.integers(3, batch, kv_heads, slots).float()
        extra["bias"] = count.log()
    if ragged:
        extra["length"] = chance.integers(slots + 1, batch, kv_heads).int()
    return Segment(query, key, value, **extra)


@settings(max_examples=2 * EXAMPLES)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 150),
            st.sampled_from(["plain", "turned", "centroids", "int8"]),
            st.booleans(),
        ),
        min_size=1,
        max_size=3,
    ),
    groups,
    st.integers(1, 3),
    head_sizes,
    dtypes,
    st.sampled_from([None, 20.0]),
)
def test_decode_attention_over_segments(kinds, group, kv_heads, size, dtype, softcap):
    assume(group * kv_heads * size <= 2048)
    chance = Chance(size + kinds[0][0])
    segments = []
    for slots, kind, ragged in kinds:
        query = chance.normal(2, group * kv_heads, size, dtype=dtype)
        segments.append(make_segment(chance, query, kv_heads, slots, dtype, kind, ragged))
    found = decode.attend_segments_triton(segments, 0.25, softcap, True)
    exact = [Segment(**{**vars(s), "query": s.query.double()}) for s in segments]
    truth = reference.attend_segments_reference(exact, 0.25, softcap, True)
    for one, other in zip(found, truth, strict=True):
        assert not one.isnan().any()
        agree(one, other, dtype)


def test_attention_over_nothing_is_nothing():
    chance = Chance(0)
    query = chance.normal(1, 4, 64)
    empty = make_segment(chance, query, 2, 0, torch.float32, "plain", False)
    unused = make_segment(chance, query, 2, 40, torch.float32, "plain", True)
    unused.length.zero_()
    for segments in ([empty], [unused], [empty, unused]):
        out, lse, _ = decode.attend_segments_triton(segments, 1.0, None, False)
        assert not out.any() and bool((lse == float("-inf")).all())


@settings(max_examples=2 * EXAMPLES)
@given(
    st.integers(0, 70),
    st.integers(0, 90),
    groups,
    st.integers(1, 2),
    head_sizes,
    dtypes,
    st.sampled_from([None, 20.0]),
    st.sampled_from(["causal", "windowed", "all"]),
    st.booleans(),
)
@example(3, 0, 1, 1, 16, torch.float32, None, "all", True)
@example(70, 90, 4, 2, 64, torch.bfloat16, 20.0, "windowed", False)
def test_chunk_attention_with_its_normaliser(
    tokens, older, group, kv_heads, size, dtype, softcap, kind, biased
):
    assume(group * kv_heads * size <= 1024)
    chance = Chance(tokens + older)
    slots = tokens + older if kind != "all" else older
    query = chance.normal(2, tokens, group * kv_heads, size, dtype=dtype).transpose(1, 2)
    key, value = (chance.view(2, kv_heads, slots, size, dtype) for _ in "kv")
    bias = chance.integers(3, 2, kv_heads, slots).float().log() if biased else None
    tail = (0.25, bias, softcap, kind != "all", 40 if kind == "windowed" else None)
    found = chunk.attend_with_lse_triton(query, key, value, *tail)
    truth = reference.attend_with_lse_reference(*(t.double() for t in (query, key, value)), *tail)
    for one, other in zip(found, truth, strict=True):
        assert not one.isnan().any()
        agree(one, other, dtype)


@few
@given(st.integers(0, 80), st.integers(1, 3), st.integers(1, 40), head_sizes, dtypes)
def test_evicted_tokens_are_summed_into_their_nearest_cluster(tokens, heads, memory, size, dtype):
    chance = Chance(tokens)
    key, value = (chance.view(2, heads, tokens + 3, size, dtype) for _ in "kv")
    index = torch.stack(
        [torch.randperm(tokens + 3, generator=chance.generator)[:tokens] for _ in range(2 * heads)]
    )
    index = index.view(2, heads, tokens).to(DEVICE)
    index[..., tokens // 2 :: 3] = -1
    mean = chance.normal(2, heads, memory, size)
    count = chance.integers(3, 2, heads, memory).float()
    count[..., 0] = 1
    slot, apart = remember.assign_clusters_triton(key, index, mean, count)
    truth, distance = slots_reference.assign_clusters_reference(
        key.double(), index, mean.double(), count
    )
    agree(apart, distance, dtype)
    clear = truth == slot  # two clusters may be as near as fp32 can tell
    assert clear.float().mean() > 0.99 or not slot.numel()
    sums = remember.sum_clusters_triton(key, value, index, slot, memory)
    expected = slots_reference.sum_clusters_reference(
        key.double(), value.double(), index, slot, memory
    )
    for one, other in zip(sums, expected, strict=True):
        agree(one, other, dtype)


@few
@given(st.integers(0, 80), st.integers(1, 3), st.sampled_from([8, 40, 64]), head_sizes, dtypes)
def test_fast_weights_take_in_evicted_tokens(tokens, heads, features, size, dtype):
    chance = Chance(tokens)
    key, value = (chance.view(2, heads, tokens + 3, size, dtype) for _ in "kv")
    index = chance.integers(tokens + 4, 2, heads, tokens) - 1
    feature_map = chance.normal(features, size) / size**0.5
    weights, norm = chance.normal(2, heads, features, size), chance.normal(2, heads, features).abs()
    inputs = (key, value, index, feature_map, weights, norm)
    decay = torch.tensor(0.75, device=DEVICE)
    found = remember.update_fast_weights_triton(*inputs, decay)
    exact = (t if t is index else t.double() for t in inputs)
    truth = slots_reference.update_fast_weights_reference(*exact, decay)
    for one, other in zip(found, truth, strict=True):
        agree(one, other, dtype)


def test_a_kernel_refuses_memory_it_would_misread():
    chance = Chance(0)
    query, key = chance.normal(1, 4, 64), chance.normal(1, 2, 64, 9).transpose(2, 3)
    with pytest.raises(ValueError, match="key: last axis must be contiguous"):
        decode.attend_segments_triton([Segment(query, key, key)], 1.0, None, False)
    states, pair = chance.normal(1, 3, 8), (chance.normal(8), chance.normal(8))
    with pytest.raises(ValueError, match="inner weight"):
        inner = (chance.normal(16, 9), chance.normal(16))
        score.score_states_triton(states, pair, inner, pair, inner, 1e-5)
