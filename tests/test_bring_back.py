"""Keys and values brought back from the disk: as they were, and nothing counts twice."""

import pytest
import torch
from families import WINDOW, make_backbone, stream, token_ids

from indexmem_cli.config import AnswerConfig, MemoryConfig
from indexmem_cli.engine import Reader
from indexmem_cli.errors import ConfigError, MemoryFileError
from indexmem_cli.memory.bring_back import EXACT_BITS, StoredKeys, pack, unpack, width
from indexmem_cli.memory.latent import CentroidMemory, FastWeightMemory, FastWeights
from indexmem_cli.memory.policies import make_scorer
from indexmem_cli.memory.shards import ROW_TOKENS, Shards
from indexmem_cli.plan import make_plan

IDS = token_ids(400)
QUESTION = token_ids(9, seed=1)
SPANS = [(30, 50), (200, 231)]
BROUGHT = [place for span in SPANS for place in range(*span)]
HEAD_SHARES = [0.2, 0.4, 2.4, 1.3, 0.6, 1.1]
COARSEST = {EXACT_BITS: 0.0, 8: 1 / 250, 4: 1 / 13}
"""Largest error of a number, as a share of the largest of its vector."""


class Watched(Reader):
    """A reader that remembers what a full cache would hold: everything, before any is evicted."""

    def _fit(self, new_tokens, queries, budget):
        if new_tokens:
            new = [part.all_keys(part.held - new_tokens) for part in self.state.managed]
            self.full = [torch.cat(p, 2) for p in zip(self.full, new, strict=True)]
            new = [part.all_values(part.held - new_tokens) for part in self.state.managed]
            self.full_values = [torch.cat(p, 2) for p in zip(self.full_values, new, strict=True)]
        super()._fit(new_tokens, queries, budget)


@pytest.fixture(scope="module")
def backbone():
    return make_backbone("qwen3")


def read(backbone, policy="keydiff", bits=EXACT_BITS, latent=0, shares=(), **options):
    options = {"budget_tokens": 96, "chunk_tokens": 32} | options
    plan, _ = make_plan(MemoryConfig(**options), WINDOW, 0, len(QUESTION))
    reader = Watched(backbone, plan, make_scorer(policy), QUESTION, shares)
    empty = [torch.zeros(1, 2 // (1 + bool(shares)), 0, 16) for _ in reader.state.managed]
    reader.full, reader.full_values = list(empty), list(empty)
    reader.stored = StoredKeys(Shards(), bits)
    for part in reader.state.managed if latent else ():
        part.latent = CentroidMemory(latent)
    step = plan.chunk_tokens
    for _ in reader.read(IDS[first : first + step] for first in range(0, len(IDS), step)):
        pass
    return reader


def recall(reader, spans=SPANS):
    fork = reader.fork_for(QUESTION)
    fork.recall([], reader.stored, spans)
    return fork


def places_of(part):
    return part.positions[0, :, : part.held]


@pytest.mark.parametrize("bits", [EXACT_BITS, 8, 4])
@pytest.mark.parametrize("size", [16, 64, 80, 128])
def test_rounded_numbers_are_near_and_take_the_bytes_foretold(bits, size):
    vectors = torch.randn(7, 6, size, generator=torch.Generator().manual_seed(0)) * 30
    vectors[2, 3] = 0
    raw = pack(vectors, bits)
    assert raw.dtype == torch.uint8 and raw.shape == (7, width(6, size, bits))
    error = (unpack(raw, 6, size, bits) - vectors).abs().amax(-1)
    assert (error <= COARSEST[bits] * vectors.abs().amax(-1)).all()


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("policy", ["keydiff", "recency"])
@pytest.mark.parametrize("bits", [EXACT_BITS, 8, 4])
def test_what_comes_back_is_what_a_full_cache_holds(backbone, bits, policy, positions):
    reader = read(backbone, policy, bits, positions=positions)
    before = [part.keys.clone() for part in reader.state.managed]
    fork = recall(reader)
    for i, part in enumerate(fork.state.managed):
        for head, places in enumerate(places_of(part)):
            slots = torch.isin(places, torch.tensor(BROUGHT))
            for now, full in (
                (part.all_keys(), reader.full[i]),
                (part.all_values(), reader.full_values[i]),
            ):
                expected = full[0, head, places[slots]]
                error = (now[0, head, slots] - expected).abs().amax(-1)
                assert (error <= COARSEST[bits] * expected.abs().amax(-1)).all()
    for part, keys in zip(reader.state.managed, before, strict=True):
        assert torch.equal(part.keys, keys), "a question changes nothing"


@pytest.mark.parametrize("shares", [(), HEAD_SHARES], ids=["even", "by head"])
def test_every_head_holds_what_is_brought_back_once_in_the_order_of_the_text(backbone, shares):
    reader = read(backbone, shares=shares)
    fork = recall(reader)
    for part, whole in zip(fork.state.managed, reader.state.managed, strict=True):
        for places, before in zip(places_of(part).tolist(), places_of(whole).tolist(), strict=True):
            assert places == sorted(set(places))
            assert set(places) >= {*range(4), *BROUGHT}
            assert set(places) <= {*before, *BROUGHT}
            assert len(places) == len(BROUGHT) + min(45, len(set(before) - set(BROUGHT)))
    steps = list(fork.answer(QUESTION, AnswerConfig(max_tokens=4), set()))
    assert len(steps) == 4 and all(step.attended for step in steps)


def test_a_slot_that_is_still_held_keeps_its_own_numbers(backbone):
    reader = read(backbone, bits=4)
    fork = recall(reader)
    for part, whole in zip(fork.state.managed, reader.state.managed, strict=True):
        for head in range(2):
            before = {int(p): i for i, p in enumerate(places_of(whole)[head])}
            kept = [
                (i, before[p]) for i, p in enumerate(places_of(part)[head].tolist()) if p in before
            ]
            assert any(int(places_of(part)[head][i]) in BROUGHT for i, _ in kept)
            for now, then in kept:
                assert torch.equal(part.keys[0, head, now], whole.keys[0, head, then])


def test_with_all_of_the_text_brought_back_the_answer_is_the_full_caches(backbone):
    whole = read(backbone, budget_tokens=800)
    fork = recall(whole, [(0, len(IDS))])
    assert fork.state.held == len(IDS)
    for part, full in zip(fork.state.managed, whole.full, strict=True):
        assert torch.equal(part.all_keys(), full)
    config = AnswerConfig(max_tokens=6)
    answers = [
        [step.token_id for step in reader.answer(QUESTION, config, set())]
        for reader in (fork, whole.fork())
    ]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("shares", [(), [1.0] * 6], ids=["even", "by head"])
@pytest.mark.parametrize("policy", ["keydiff", "recency"])
def test_nothing_counts_twice_in_a_latent_memory(backbone, policy, shares):
    """Of every head, what slots and clusters hold together is the whole text, before and after."""
    reader = read(backbone, policy, latent=6, shares=shares, chunk_tokens=8, budget_tokens=80)
    homes = [part.latent.home.shape[-1] for part in reader.state.managed]
    assert max(homes) > 6, "clusters were merged, so tags and slots differ"
    fork = recall(reader)
    for i, part in enumerate(fork.state.managed):
        count = part.latent.count.sum(-1) + part.held
        assert torch.equal(count, torch.full_like(count, len(IDS)))
        assert (part.latent.count >= 0).all()
        for held, sums, full in (
            (part.all_keys(), part.latent.keys, reader.full[i]),
            (part.all_values(), part.latent.values, reader.full_values[i]),
        ):
            torch.testing.assert_close(held.sum(2) + sums.sum(2), full.sum(2), atol=1e-3, rtol=1e-4)
    before = [part.latent.count.sum(-1) + part.held for part in reader.state.managed]
    assert all((count == len(IDS)).all() for count in before), "the memory itself stays"


def test_each_token_is_taken_out_of_the_cluster_it_went_to(backbone):
    """Every cluster is the sum of those of its tokens that no slot holds, also after merges."""
    reader = read(backbone, latent=6, chunk_tokens=8, budget_tokens=80)
    tags = reader.stored.tags(reader.state, [(0, len(IDS))])
    fork = recall(reader)
    for part, tag, full in zip(fork.state.managed, tags, reader.full, strict=True):
        for head in range(2):
            gone, given = (numbers[0, head] for numbers in part.evicted)
            tag[0, head, gone] = given
            left = torch.ones(len(IDS), dtype=torch.bool)
            left[places_of(part)[head]] = False
            cluster = part.latent.home[0, head][tag[0, head, left]]
            sums = torch.zeros(6, 16).index_add_(0, cluster, full[0, head, left])
            assert torch.equal(part.latent.count[0, head], cluster.bincount(minlength=6).float())
            torch.testing.assert_close(part.latent.keys[0, head], sums, atol=1e-3, rtol=1e-4)


def test_fast_weights_are_refused(backbone):
    reader = read(backbone)
    reader.state.managed[1].latent = FastWeightMemory(FastWeights(16))
    with pytest.raises(ConfigError, match="fast weights"):
        recall(reader)


def test_a_token_whose_cluster_is_not_known_is_an_error(backbone):
    reader = read(backbone, latent=6)
    reader.stored.shards._open[1].execute("DELETE FROM evicted")
    with pytest.raises(MemoryFileError, match="not stored where"):
        recall(reader)


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="Triton interprets only where there is no device"
)
def test_kernels_bring_back_the_same(backbone, monkeypatch):
    reader, forks = read(backbone, bits=8, budget_tokens=80), []
    for choice in ("reference", "interpret"):
        monkeypatch.setenv("INDEXMEM_KERNELS", choice)
        forks.append(recall(reader))
    for one, other in zip(*(fork.state.managed for fork in forks), strict=True):
        assert torch.equal(places_of(one), places_of(other))
        assert torch.equal(one.all_keys(), other.all_keys())


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "gemma2", "gemma3"])
def test_every_family_answers_from_what_is_brought_back(family):
    backbone = make_backbone(family)
    stored, scorer = StoredKeys(Shards(), 8), make_scorer("keydiff")
    reader = stream(backbone, scorer, IDS, budget=96, question=QUESTION, stored=stored)
    fork = recall(reader)
    for part in fork.state.managed:
        assert torch.isin(torch.tensor(BROUGHT), places_of(part)[0]).all()
    steps = list(fork.answer(QUESTION, AnswerConfig(max_tokens=3), set()))
    assert len(steps) == 3


class TestShards:
    ROWS = bytes(range(256)) * 2  # 128 tokens of 4 bytes

    def written(self, tmp_path, sealed=()):
        shards, names = Shards(sealed), iter(range(9))
        shards.new_path = lambda: tmp_path / f"{len(shards.sealed)}-{next(names)}.sqlite"
        return shards

    def test_they_go_on_where_the_last_ends(self, tmp_path):
        shards = self.written(tmp_path)
        shards.append(self.ROWS, 128)
        shards.seal()
        [first] = shards.sealed
        shards.append(self.ROWS[:40], 10)
        assert shards.read(100, 138) == self.ROWS[400:] + self.ROWS[:40]
        again = self.written(tmp_path, [first])
        assert again.end == 128 and first.stat().st_mode & 0o777 == 0o600
        again.append(self.ROWS[:40], 10)
        again.note_evicted([(3, 1, 7)])
        assert again.read(100, 138) == shards.read(100, 138)
        assert again.tags(0, 200) == [(3, 1, 7)] and shards.tags(0, 200) == []
        again.seal(), again.seal()
        assert len(again.sealed) == 2 and again.end == 138

    def test_what_had_no_name_gets_one(self, tmp_path):
        shards = Shards()
        shards.append(self.ROWS, 128)
        shards.seal()
        assert shards.sealed == []
        shards.new_path = lambda: tmp_path / "named.sqlite"
        shards.seal()
        assert Shards(shards.sealed).read(0, 128) == shards.read(0, 128) == self.ROWS

    def test_what_is_missing_is_an_error(self, tmp_path):
        shards = self.written(tmp_path)
        shards.append(self.ROWS, 128)
        with pytest.raises(MemoryFileError, match="token 128"):
            shards.read(100, 129)
        shards.seal()
        with pytest.raises(MemoryFileError, match="come next"):
            Shards([*shards.sealed, *shards.sealed])
        (tmp_path / "other").write_bytes(b"SQLite format 3\0" + bytes(4000))
        with pytest.raises(MemoryFileError):
            Shards([tmp_path / "other"])

    @pytest.mark.parametrize(
        "change", ["data = zeroblob(256)", "tokens = 32", "tokens = 'x'", "digest = x'00'"]
    )
    def test_damage_is_found_when_it_is_read_and_not_before(self, tmp_path, change):
        shards = self.written(tmp_path)
        shards.append(self.ROWS, 128)
        shards._open[1].execute(f"UPDATE rows SET {change} WHERE first = {ROW_TOKENS}")
        assert shards.read(0, ROW_TOKENS) == self.ROWS[: 4 * ROW_TOKENS]
        with pytest.raises(MemoryFileError) as caught:
            shards.read(0, 128)
        assert caught.value.exit_code == 4 and "--recall-from text" in caught.value.hint
