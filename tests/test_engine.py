"""Reading and answering: bounded, pinned, the same for any chunk, exact with room for all."""

import pytest
import torch
from families import WINDOW, make_backbone, make_model, token_ids
from kept import kept_positions

from indexmem_cli.config import POLICIES, AnswerConfig, MemoryConfig
from indexmem_cli.engine import DECODE_BLOCK_TOKENS, make_reader
from indexmem_cli.errors import BackboneError, ConfigError
from indexmem_cli.memory.adapter import Adapter
from indexmem_cli.memory.indexer import IndexerConfig, make_indexer
from indexmem_cli.plan import make_plan

IDS = token_ids(500)
QUESTION = token_ids(9, seed=1)
OPENING_TOKENS = 2


@pytest.fixture(scope="module")
def backbone():
    backbone = make_backbone("qwen3")
    torch.manual_seed(0)
    indexer = make_indexer(IndexerConfig("shared", (0, 1, 2), 64, 2, 4, 16))
    backbone.load_adapter = lambda: Adapter(indexer, "", "")
    return backbone


def start(backbone, **options):
    """A reader for the question, and its plan."""
    config = MemoryConfig(**options)
    plan, _ = make_plan(config, WINDOW, OPENING_TOKENS, len(QUESTION))
    return make_reader(backbone, plan, config, QUESTION), plan


def chunks(ids, size):
    return [ids[first : first + size] for first in range(0, len(ids), size)]


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("policy", POLICIES)
def test_never_more_than_budget_and_chunk_is_held(backbone, policy, positions):
    reader, plan = start(
        backbone, budget_tokens=96, chunk_tokens=64, policy=policy, positions=positions
    )
    for _ in reader.read(chunks(IDS, 64)):
        assert reader.state.held <= plan.budget_tokens
        for layer in reader.state.managed:
            assert layer.keys.shape[2] <= 96 + 64 + len(QUESTION)
    assert reader.state.seen == len(IDS)
    for layer in reader.state.managed:
        positions_held = layer.positions[0, :, : layer.held]
        assert (positions_held.diff(dim=-1) > 0).all(), "a position is held twice or out of order"


@pytest.mark.parametrize("policy", POLICIES)
def test_sinks_recent_tokens_and_pins_always_stay(backbone, policy):
    reader, plan = start(backbone, budget_tokens=96, chunk_tokens=50, policy=policy)
    reader.state.pins.append((100, 105))
    for _ in reader.read(chunks(IDS, 50)):
        pass
    seen = reader.state.seen
    must_stay = {*range(plan.sink_tokens), *range(100, 105)}
    must_stay |= set(range(seen - plan.recent_tokens, seen))
    for layer in reader.state.managed:
        for head in layer.positions[0, :, : layer.held].tolist():
            assert must_stay <= set(head)


def test_an_answer_leaves_what_a_scorer_gathered_as_it_was(backbone):
    reader, _ = start(backbone, budget_tokens=96, chunk_tokens=64, policy="expected-attention")
    for _ in reader.read(chunks(IDS, 64)):
        pass
    before = {name: value.clone() for name, value in reader.scorer.tensors().items()}
    for _ in reader.fork().answer(QUESTION, AnswerConfig(max_tokens=200), frozenset()):
        pass
    for name, value in reader.scorer.tensors().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("policy", ["recency", "random"])
def test_kept_set_does_not_depend_on_the_chunk_size(backbone, policy):
    kept = []
    for size in (1, 7, 64, 500):
        reader, _ = start(
            backbone, budget_tokens=96, chunk_tokens=size, policy=policy, span_tokens=1
        )
        for _ in reader.read(chunks(IDS[:400], size)):
            pass
        kept.append(kept_positions(reader.state))
    assert kept[0] == kept[1] == kept[2] == kept[3]


def test_random_keeps_a_sample_from_everywhere(backbone):
    reader, _ = start(backbone, budget_tokens=96, chunk_tokens=64, policy="random", span_tokens=1)
    for _ in reader.read(chunks(IDS, 64)):
        pass
    middle = [p for p in kept_positions(reader.state) if 50 <= p < 400]
    assert 30 <= len(middle) <= 90


def test_greedy_answer_equals_plain_generation_while_all_fits(backbone):
    reader, _ = start(backbone, budget_tokens=800, chunk_tokens=64, policy="keydiff")
    for _ in reader.read(chunks(IDS[:300], 64)):
        pass
    answer = [step.token_id for step in reader.answer(QUESTION, AnswerConfig(max_tokens=40), set())]
    model = make_model("qwen3")
    with torch.no_grad():
        plain = model.generate(
            torch.tensor([IDS[:300] + QUESTION]),
            attention_mask=torch.ones(1, 309, dtype=torch.long),
            max_new_tokens=40,
            min_new_tokens=40,
            do_sample=False,
            eos_token_id=None,
        )
    assert answer == plain[0, 309:].tolist()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_long_answer_stays_bounded_and_keeps_its_question(backbone, policy):
    reader, plan = start(backbone, budget_tokens=96, chunk_tokens=64, policy=policy)
    for _ in reader.read(chunks(IDS, 64)):
        pass
    first = reader.state.seen
    most = 0
    for _ in reader.answer(QUESTION, AnswerConfig(max_tokens=400), set()):
        most = max(most, reader.state.held)
    assert most <= plan.budget_tokens + len(QUESTION) + DECODE_BLOCK_TOKENS
    for layer in reader.state.managed:
        for head in layer.positions[0, :, : layer.held].tolist():
            assert set(range(first, first + len(QUESTION))) <= set(head)


def test_positions_turn_compact_in_the_middle_of_the_window(backbone):
    reader, plan = start(backbone, budget_tokens=96, chunk_tokens=64, policy="recency")
    ids = token_ids(WINDOW + 200)
    for _ in reader.read(chunks(ids, 64)):
        within = reader.state.seen + len(QUESTION) <= WINDOW // 2
        assert reader.state.compact != within


def test_answering_from_a_fork_leaves_the_memory_alone(backbone):
    reader, _ = start(backbone, budget_tokens=96, chunk_tokens=64, policy="snapkv")
    for _ in reader.read(chunks(IDS, 64)):
        pass
    config = AnswerConfig(max_tokens=150)
    first = [step.token_id for step in reader.fork().answer(QUESTION, config, set())]
    second = [step.token_id for step in reader.fork().answer(QUESTION, config, set())]
    assert first == second
    assert reader.state.seen == len(IDS)


def test_sampling_is_seeded(backbone):
    answers = []
    for seed in (0, 0, 1):
        reader, _ = start(backbone, budget_tokens=96, chunk_tokens=64, policy="recency")
        for _ in reader.read(chunks(IDS[:100], 64)):
            pass
        config = AnswerConfig(max_tokens=30, temperature=3.0, seed=seed)
        answers.append([step.token_id for step in reader.answer(QUESTION, config, set())])
    assert answers[0] == answers[1] != answers[2]


def test_generation_ends_at_a_stop_token(backbone):
    reader, _ = start(backbone, budget_tokens=96, chunk_tokens=64, policy="recency")
    for _ in reader.read(chunks(IDS[:100], 64)):
        pass
    config = AnswerConfig(max_tokens=30)
    free = [step.token_id for step in reader.fork().answer(QUESTION, config, set())]
    stopped = [step.token_id for step in reader.fork().answer(QUESTION, config, {free[5]})]
    assert stopped == free[: free.index(free[5])]


def test_attended_places_lie_in_the_text(backbone):
    reader, plan = start(backbone, budget_tokens=96, chunk_tokens=64, policy="question")
    for _ in reader.read(chunks(IDS, 64)):
        pass
    kept = set(kept_positions(reader.state))
    for step in reader.answer(QUESTION, AnswerConfig(max_tokens=5), set()):
        assert step.attended
        weights = [weight for _, weight in step.attended]
        assert weights == sorted(weights, reverse=True)
        for position, weight in step.attended:
            assert position in kept and plan.sink_tokens <= position < len(IDS)
            assert 0 <= weight <= 1


def test_budget_is_lowered_to_what_the_window_holds():
    plan, notices = make_plan(MemoryConfig(budget_tokens=5000, chunk_tokens=256), 2048, 3, 20)
    assert plan.budget_tokens == 2048 - 256 - 20
    assert len(notices) == 1 and "5,000" in notices[0] and "1,772" in notices[0]
    plan, notices = make_plan(MemoryConfig(), 2048, 3, 20)
    assert plan.budget_tokens == 2048 - 512 - 20 and not notices
    plan, notices = make_plan(MemoryConfig(), 32768, 3, 20)
    assert (plan.budget_tokens, plan.chunk_tokens) == (4096, 2048) and not notices


@pytest.mark.parametrize(
    "options",
    [
        {"budget_tokens": 16, "recent_tokens": 14},
        {"chunk_tokens": 2048},
    ],
)
def test_impossible_budgets_and_chunks_are_refused(options):
    with pytest.raises(ConfigError) as caught:
        make_plan(MemoryConfig(**options), 2048, 3, 20)
    assert caught.value.hint


def test_pins_over_the_budget_are_refused(backbone):
    reader, _ = start(backbone, budget_tokens=96, chunk_tokens=64, policy="recency")
    reader.state.pins.append((0, 200))
    with pytest.raises(ConfigError, match="budget of 96"):
        for _ in reader.read(chunks(IDS, 64)):
            pass


def test_an_answer_is_written_from_what_the_question_attends_to_most(backbone):
    reader, plan = start(
        backbone, budget_tokens=96, chunk_tokens=64, policy="question", answer_from_tokens=30
    )
    for _ in reader.read(chunks(IDS, 64)):
        pass
    kept = set(kept_positions(reader.state))
    block = backbone.block(reader.state, 0, [])
    block.question_attention = backbone.probe(QUESTION, reader.state)
    scores = reader.scorer.score(block)[0][0, 0]
    positions = reader.state.managed[0].positions[0, 0, : reader.state.held]
    peak = int(positions[plan.sink_tokens + scores[plan.sink_tokens :].argmax()])
    answering = reader.fork()
    next(answering.answer(QUESTION, AnswerConfig(max_tokens=5), set()))
    narrowed = [p for p in kept_positions(answering.state) if p < len(IDS)]
    assert len(narrowed) == 30 and set(narrowed) <= kept
    assert {*range(plan.sink_tokens), peak} <= set(narrowed)
    assert reader.state.held == 96, "the memory itself is not narrowed"


def test_a_model_may_say_how_much_it_answers_from_and_the_user_overrules_it():
    config = MemoryConfig(budget_tokens=900)
    assert make_plan(config, 2048)[0].answer_from_tokens == 900
    assert make_plan(config, 2048, answer_from_tokens=96)[0].answer_from_tokens == 96
    config = MemoryConfig(budget_tokens=900, answer_from_tokens=300)
    assert make_plan(config, 2048, answer_from_tokens=96)[0].answer_from_tokens == 300


def test_the_learned_policy_wants_an_adapter():
    with pytest.raises(BackboneError, match="has no adapter") as caught:
        start(make_backbone("qwen3"), budget_tokens=96, policy="learned")
    assert "indexmem train adapter" in caught.value.hint
