"""Latent memories: exact where they can be, silent when empty, never claiming too much."""

from math import inf, log

import pytest
import torch
from families import make_backbone, stream, token_ids
from hypothesis import given
from hypothesis import strategies as st

from indexmem_cli import ops
from indexmem_cli.config import AnswerConfig
from indexmem_cli.memory.latent import CentroidMemory, FastWeightMemory, FastWeights
from indexmem_cli.memory.policies import make_scorer

IDS = token_ids(300)
QUESTION = token_ids(9, seed=1)
CLOSE = {"atol": 1e-5, "rtol": 1e-4}


def evicted(tokens, batch=2, heads=2, size=16, seed=0):
    """Random keys and values of evicted tokens."""
    chance = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, heads, tokens, size, generator=chance) for _ in "kv")


def query_and_kept(kept=11, new=3, scale=1.0):
    chance = torch.Generator().manual_seed(9)
    query = scale * torch.randn(2, 4, new, 16, generator=chance)
    return query, *evicted(kept, seed=5)


def seeded_slow(gate=0.0):
    torch.manual_seed(2)
    slow = FastWeights(16, 8).requires_grad_(False)
    slow.gate.bias.fill_(gate)
    return slow


def memories():
    return [CentroidMemory(6), FastWeightMemory(seeded_slow())]


def joint(query, sets):
    """Attention over all the keys at once, seen by every query."""
    keys = torch.cat([keys for keys, _ in sets], dim=2)
    values = torch.cat([values for _, values in sets], dim=2)
    return ops.attend_with_lse(query, keys, values, 0.25, causal=False)


@pytest.mark.parametrize("scale", [1.0, 3e3])
def test_merging_two_sets_is_joint_attention(scale):
    query, *kept = query_and_kept(scale=scale)
    other = evicted(7)
    one = ops.attend_with_lse(query, *kept, 0.25, causal=False)
    two = ops.attend_with_lse(query, *other, 0.25, causal=False)
    whole, _ = joint(query, [kept, other])
    torch.testing.assert_close(ops.merge_attention(*one, *two), whole, **CLOSE)


@given(st.sampled_from([-1e4, -3.0, 0.0, 2.0, 1e4, float("-inf"), float("inf")]),
       st.sampled_from([-1e4, -3.0, 0.0, 2.0, 1e4, float("-inf")]))  # fmt: skip
def test_a_merge_is_a_number_between_its_sides(mine, other):
    first, second = torch.tensor([1.0, 2.0]), torch.tensor([3.0, -4.0])
    merged = ops.merge_attention(first, torch.tensor(mine), second, torch.tensor(other))
    assert merged.isfinite().all()
    if other == float("-inf"):
        assert torch.equal(merged, first)
    elif mine == float("-inf"):
        assert torch.equal(merged, second)


def test_a_set_nobody_sees_says_nothing():
    query, keys, values = query_and_kept()
    nothing = torch.full(keys.shape[:3], float("-inf"))
    out, lse = ops.attend_with_lse(query, keys, values, 0.25, nothing, causal=False)
    assert (out == 0).all() and (lse == float("-inf")).all()


def test_one_slot_a_token_is_the_full_attention():
    query, *kept = query_and_kept()
    gone = evicted(5)
    memory = CentroidMemory(6)
    memory.write(*gone)
    out, lse = ops.attend_with_lse(query, *kept, 0.25, causal=False)
    whole, _ = joint(query, [kept, gone])
    torch.testing.assert_close(memory.read(query, out, lse, 0.25), whole, **CLOSE)


def test_equal_keys_share_a_slot_without_loss():
    query, *kept = query_and_kept()
    keys, values = evicted(3)
    keys = keys.repeat_interleave(4, dim=2)
    values = values.repeat_interleave(4, dim=2) + torch.arange(12)[:, None]
    memory = CentroidMemory(6)
    memory.write(keys, values)
    out, lse = ops.attend_with_lse(query, *kept, 0.25, causal=False)
    whole, _ = joint(query, [kept, (keys, values)])
    torch.testing.assert_close(memory.read(query, out, lse, 0.25), whole, atol=1e-4, rtol=1e-4)


def test_the_memory_claims_at_most_the_attention_of_what_it_holds():
    query, *_ = query_and_kept(new=40, scale=2.0)
    memory, gone = CentroidMemory(4), []
    for seed in range(12):
        gone.append(evicted(9, seed=seed))
        memory.write(*gone[-1])
    means = memory.means()
    _, claimed = ops.attend_with_lse(query, *means, 0.25, memory.count.log(), causal=False)
    _, true = joint(query, gone)
    assert (claimed <= true + 1e-4).all() and (claimed < true - 0.1).any()
    assert memory.count.sum(-1).eq(12 * 9).all()


def test_a_memory_of_more_tokens_than_it_may_weigh_claims_no_more():
    query, *_ = query_and_kept()
    memories = [CentroidMemory(8), CentroidMemory(8, None, 60), CentroidMemory(8, None, 15)]
    for memory in memories:
        memory.write(*evicted(60))
    free, full, bounded = (memory.clone() for memory in memories)
    nothing = torch.zeros_like(query), torch.full(query.shape[:3], -inf)
    share = [memory.share(query, torch.zeros(query.shape[:3]), 0.25).logit() for memory in memories]
    assert torch.equal(share[0], share[1])
    torch.testing.assert_close(share[2], share[0] - log(60 / 15))
    # Where nothing is beside it, it says the same.
    found = [memory.read(query, *nothing, 0.25) for memory in (free, bounded)]
    torch.testing.assert_close(*found)
    assert bounded.most_tokens == 15 and torch.equal(full.count, free.count)


@pytest.mark.parametrize("memory", memories(), ids=lambda m: type(m).__name__)
def test_removing_what_was_written_leaves_what_was_there(memory):
    if isinstance(memory, FastWeightMemory):
        memory.slow.decay_logit.fill_(float("inf"))
    memory.write(*evicted(20, seed=1))
    before = {name: tensor.clone() for name, tensor in memory.save().items()}
    gone = evicted(7, seed=2)
    memory.remove(*gone, memory.write(*gone))
    for name in before.keys() - {"writes"}:  # counts how often it was written to, no more
        torch.testing.assert_close(memory.save()[name], before[name], **CLOSE)


def test_tags_find_their_tokens_after_slots_were_merged():
    memory, written = CentroidMemory(4), []
    for seed in range(20):
        gone = evicted(3, seed=seed)
        gone = gone[0] * (1 + seed), gone[1]  # farther and farther out, so that slots are merged
        written.append((*gone, memory.write(*gone)))
    assert memory.home.shape[2] > 4, "no slot was ever merged"
    for gone in written:
        memory.remove(*gone)
    assert (memory.count == 0).all()
    assert (memory.keys == 0).all() and (memory.values == 0).all()


def test_sums_do_not_depend_on_the_order_of_a_batch():
    first, second = evicted(20, seed=1), evicted(12, seed=2)
    states = []
    for order in (torch.arange(12), torch.randperm(12)):
        memory = CentroidMemory(6)
        memory.write(*first)
        memory.write(*(tensor[:, :, order] for tensor in second))
        states.append(memory.save())
    for name in ("count", "keys", "values"):
        torch.testing.assert_close(states[0][name], states[1][name], **CLOSE)


def test_fast_weights_written_at_once_or_in_parts_are_the_same_without_decay():
    slow = seeded_slow()
    slow.decay_logit.fill_(float("inf"))
    at_once, in_parts = FastWeightMemory(slow), FastWeightMemory(slow)
    keys, values = evicted(12)
    at_once.write(keys, values)
    for part in (slice(0, 1), slice(1, 8), slice(8, 12)):
        in_parts.write(keys[:, :, part], values[:, :, part])
    torch.testing.assert_close(at_once.weights, in_parts.weights, **CLOSE)
    torch.testing.assert_close(at_once.norm, in_parts.norm, **CLOSE)


def test_fast_weights_follow_the_papers_formulas_token_by_token():
    slow = seeded_slow(gate=0.3)
    torch.nn.init.normal_(slow.gate.weight)
    memory, gone = FastWeightMemory(slow), [evicted(5, seed=1), evicted(4, seed=2)]
    for part in gone:
        memory.write(*part)
    query, *_ = query_and_kept()
    out = torch.randn(2, 4, 3, 16)
    read = memory.read(query, out, torch.zeros(2, 4, 3), 0.25)
    for b in range(2):
        for h in range(4):
            weights, norm = torch.zeros(8, 16), torch.zeros(8)
            for keys, values in gone:
                weights, norm = slow.decay * weights, slow.decay * norm
                for key, value in zip(keys[b, h // 2], values[b, h // 2], strict=True):
                    feature = slow.map.weight @ key
                    weights = weights + torch.outer(feature, value)
                    norm = norm + feature**2
            for t in range(3):
                q = query[b, h, t]
                feature = slow.map.weight @ q
                found = feature @ weights / (feature**2 @ norm + 1e-6)
                gate = torch.sigmoid(slow.gate.weight[0] @ q + 0.3)
                torch.testing.assert_close(
                    read[b, h, t], out[b, h, t] + gate * found, atol=1e-4, rtol=1e-3
                )


def test_every_slow_weight_learns_when_there_are_several_writes():
    torch.manual_seed(0)
    slow = FastWeights(16, 8)
    memory = FastWeightMemory(slow)
    memory.write(*evicted(5, seed=1))
    memory.write(*evicted(5, seed=2))
    query, *kept = query_and_kept()
    out, lse = ops.attend_with_lse(query, *kept, 0.25, causal=False)
    (memory.read(query, out, lse, 0.25) - 1).pow(2).sum().backward()
    for name, weight in slow.named_parameters():
        assert weight.grad is not None and weight.grad.abs().max() > 0, name


@pytest.mark.parametrize("memory", memories(), ids=lambda m: type(m).__name__)
def test_saved_loaded_and_cloned_it_says_the_same_and_shares_nothing(memory):
    memory.write(*evicted(20, seed=1))
    memory.write(*evicted(9, seed=2))
    query, *kept = query_and_kept()
    seen = ops.attend_with_lse(query, *kept, 0.25, causal=False)
    said = memory.read(query, *seen, 0.25)
    other = type(memory)(*([6] if isinstance(memory, CentroidMemory) else [memory.slow]))
    other.load(memory.save())
    copy = memory.clone()
    assert torch.equal(other.read(query, *seen, 0.25), said)
    other.write(*evicted(9, seed=3))
    copy.write(*evicted(9, seed=3))
    assert all(torch.equal(part, copy.save()[name]) for name, part in other.save().items())
    assert not torch.equal(copy.read(query, *seen, 0.25), said)
    assert torch.equal(memory.read(query, *seen, 0.25), said)
    assert memory.nbytes == sum(tensor.nbytes for tensor in memory.save().values()) > 0


def read_and_predict(make_latent=None, policy="keydiff", ids=IDS, **options):
    """A reader that has read `ids`, and the answer it gives."""
    backbone = make_backbone("qwen3")
    reader = stream(backbone, make_scorer(policy), ids, make_latent=make_latent, **options)
    logits, _, _ = backbone.predict(QUESTION, reader.fork().state)
    return reader, logits


def test_a_memory_that_is_off_or_empty_changes_nothing_bit_for_bit():
    _, plain = read_and_predict()
    off = torch.full((2,), float("-inf"))
    _, centroids = read_and_predict(lambda: CentroidMemory(8, off))
    _, fast = read_and_predict(lambda: FastWeightMemory(seeded_slow(float("-inf"))))
    assert torch.equal(plain, centroids) and torch.equal(plain, fast)
    _, on = read_and_predict(lambda: CentroidMemory(8))
    assert not torch.equal(plain, on)
    _, all_kept = read_and_predict(budget=400)
    _, empty = read_and_predict(lambda: CentroidMemory(8), budget=400)
    assert torch.equal(all_kept, empty)


def test_what_is_evicted_and_nothing_else_is_written():
    reader, _ = read_and_predict(lambda: CentroidMemory(8))
    for layer in reader.state.managed:
        assert (layer.latent.count.sum(-1) + layer.held == len(IDS)).all()
        assert layer.nbytes == 2 * 2 * 64 * 16 * 4 + layer.latent.nbytes


def test_a_memory_with_room_for_all_comes_near_the_full_cache():
    _, full = read_and_predict(budget=400, positions="compact")
    far = 0
    for make in (lambda: CentroidMemory(400), None):
        _, logits = read_and_predict(make, budget=200, positions="compact")
        distance = float((logits - full).norm())
        assert distance > far, "the memory brings the answer no nearer"
        far = distance


def test_the_memory_knows_nothing_of_later_tokens():
    changed = [*IDS[:-1], 7]
    first, _ = read_and_predict(lambda: CentroidMemory(8), policy="recency")
    second, _ = read_and_predict(lambda: CentroidMemory(8), policy="recency", ids=changed)
    for one, other in zip(first.state.managed, second.state.managed, strict=True):
        assert torch.equal(one.keys[:, :, :63], other.keys[:, :, :63])
        assert torch.equal(one.latent.keys, other.latent.keys)


def test_answering_from_a_fork_leaves_the_memory_alone():
    reader, _ = read_and_predict(lambda: CentroidMemory(8))
    before = [layer.latent.keys.clone() for layer in reader.state.managed]
    for _ in reader.fork().answer(QUESTION, AnswerConfig(max_tokens=200), set()):
        pass
    for layer, keys in zip(reader.state.managed, before, strict=True):
        assert torch.equal(layer.latent.keys, keys)
