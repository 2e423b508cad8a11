"""Every op's face against its reference in fp64-like arithmetic, over awkward sizes."""

from math import inf

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention.bias import causal_lower_right

from indexmem_cli import ops
from indexmem_cli.ops.reference import (
    attend_reference,
    attend_with_lse_reference,
    causal_mask,
)

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def tensors(heads, kv_heads, new, slots, size, dtype, batch=1):
    """Random query, key, value; key and value are views into a larger, NaN-filled buffer."""
    generator = torch.Generator().manual_seed(new * 1000 + slots)
    query = torch.randn(batch, heads, new, size, generator=generator).to(dtype)
    room = torch.full((2, batch, kv_heads, slots + 5, size), float("nan"), dtype=dtype)
    room[:, :, :, :slots] = torch.randn(2, batch, kv_heads, slots, size, generator=generator)
    return query, room[0, :, :, :slots], room[1, :, :, :slots]


def brute_force(query, key, value, scale, window):
    """One softmax at a time, in fp64."""
    batch, heads, new, _ = query.shape
    slots, group = key.shape[2], heads // key.shape[1]
    out = torch.empty(query.shape, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            for t in range(new):
                end = slots - new + t + 1
                first = max(0, end - window) if window else 0
                keys = key[b, h // group, first:end].double()
                weights = (keys @ query[b, h, t].double() * scale).softmax(0)
                out[b, h, t] = weights @ value[b, h // group, first:end].double()
    return out


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("new, slots", [(1, 1), (1, 63), (7, 7), (63, 64), (65, 130)])
@pytest.mark.parametrize("heads, kv_heads", [(1, 1), (4, 2), (7, 1)])
def test_attend_equals_one_softmax_at_a_time(heads, kv_heads, new, slots, window, dtype):
    query, key, value = tensors(heads, kv_heads, new, slots, 16, dtype, batch=2)
    truth = brute_force(query, key, value, 0.25, window)
    for attend in (ops.attend, attend_reference):
        out = attend(query, key, value, 0.25, window=window)
        assert out.dtype == dtype
        error = float((out.double() - truth).norm() / truth.norm())
        assert error <= TOLERANCE[dtype], f"{attend.__name__}: relative error {error:.1e}"


@pytest.mark.parametrize("dtype", [*TOLERANCE, torch.float64])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("is_biased", [True, False])
@pytest.mark.parametrize("new, slots", [(1, 1), (1, 63), (63, 64), (0, 5)])
@pytest.mark.parametrize("heads, kv_heads", [(1, 1), (4, 2)])
def test_attention_with_its_normaliser_equals_the_reference_in_fp64(
    heads, kv_heads, new, slots, is_biased, causal, window, softcap, dtype
):
    query, key, value = tensors(heads, kv_heads, new, slots, 16, dtype, batch=2)
    bias = torch.randn(2, kv_heads, slots) if is_biased else None
    if is_biased:
        bias[0, 0] = -inf  # a head that sees nothing
        bias[1, 0, ::2] = -inf
    how = bias, softcap, causal, window
    truth = attend_with_lse_reference(*(x.double() for x in (query, key, value)), 0.25, *how)
    mask = ops.make_mask(query, slots, window) if causal else None
    for shared in (None, mask):
        out, lse = ops.attend_with_lse(query, key, value, 0.25, *how, shared)
        assert out.dtype == lse.dtype == torch.promote_types(dtype, torch.float32)
        tolerance = TOLERANCE.get(dtype, 1e-12)
        torch.testing.assert_close(out.double(), truth[0], rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(lse.double(), truth[1], rtol=tolerance, atol=tolerance)


def test_attention_to_no_keys_says_nothing():
    query, key, value = tensors(4, 2, 3, 0, 16, torch.float32)
    out, lse = ops.attend_with_lse(query, key, value, 0.25, causal=False)
    assert not out.any() and lse.isneginf().all()


def test_the_normaliser_costs_no_map_of_tokens_by_keys():
    query, key, value = tensors(4, 2, 512, 2000, 16, torch.float32)
    mask = ops.make_mask(query, 2000)
    with torch.profiler.profile(profile_memory=True) as seen:
        ops.attend_with_lse(query, key, value, 0.25, mask=mask)
    largest = max(event.cpu_memory_usage for event in seen.events())
    assert largest < mask.nbytes  # the map of four heads would be four times as much


def test_softcap_bounds_the_logits():
    query, key, value = tensors(4, 2, 3, 9, 16, torch.float32)
    query *= 100
    weights = ops.attention_weights(query, key, 1.0, softcap=2.0)
    largest, smallest = weights[..., -1, :].amax(-1), weights[..., -1, :].amin(-1)
    assert (largest / smallest <= 2.718281828**4.001).all()
    out = ops.attend(query, key, value, 1.0, softcap=2.0)
    torch.testing.assert_close(out, ops.weigh_values(weights, value))


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("slots", [9, 20])
def test_a_mask_made_once_serves_every_layer(slots, window):
    query, key, value = tensors(4, 2, 9, slots, 16, torch.float32)
    mask = ops.make_mask(query, slots, window)
    assert torch.equal(
        mask, torch.zeros(9, slots).where(causal_mask(9, slots, window, "cpu"), -inf)
    )
    with_mask = ops.attend(query, key, value, 0.25, mask, window)
    assert torch.equal(with_mask, ops.attend(query, key, value, 0.25, None, window))


def test_the_word_causal_is_as_good_as_a_mask():
    query, key, value = tensors(4, 2, 9, 20, 16, torch.float32)
    word = causal_lower_right(9, 20)  # what a CUDA device gets
    expected = ops.attend(query, key, value, 0.25)
    torch.testing.assert_close(ops.attend(query, key, value, 0.25, word), expected)


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=30, unique=True).map(sorted),
    st.sampled_from([1, 3, 5, 17]),
    st.randoms(use_true_random=False),
)
def test_pooling_takes_the_best_of_true_neighbours(positions, span, chance):
    scores = [chance.random() for _ in positions]
    expected = [
        max(s for q, s in zip(positions, scores, strict=True) if abs(p - q) <= span // 2)
        for p in positions
    ]
    pooled = ops.pool_spans(torch.tensor([scores]), torch.tensor([positions]), span)
    torch.testing.assert_close(pooled, torch.tensor([expected]))


def test_a_gradient_of_weights_in_a_pair_is_one_too():
    plain, wanted = torch.ones(2), torch.ones(2, requires_grad=True)
    assert ops._wants_gradient(plain, (plain, wanted))
    assert not ops._wants_gradient(plain, (plain, plain), 0.5, None)
    with torch.no_grad():
        assert not ops._wants_gradient(wanted)
