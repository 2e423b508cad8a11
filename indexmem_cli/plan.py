"""A memory's settings worked out for one model: what fits its trained window."""

from dataclasses import dataclass

from indexmem_cli.config import DEFAULT_BUDGET_TOKENS, MemoryConfig
from indexmem_cli.errors import ConfigError


@dataclass(frozen=True)
class Plan:
    """A memory's settings with every default worked out for one model."""

    budget_tokens: int
    chunk_tokens: int
    sink_tokens: int
    recent_tokens: int
    span_tokens: int
    answer_from_tokens: int
    """Slots that an answer is written from, at most the budget."""
    window_tokens: int
    """From this position on, slots are numbered by rank; 0 does so from the start."""


def room_for_question(window_tokens: int) -> int:
    """Return what a reading leaves for questions, so that one memory serves most of them."""
    return max(1, min(256, window_tokens // 8))


def make_plan(
    config: MemoryConfig,
    window_tokens: int,
    opening_tokens: int = 0,
    closing_tokens: int = 0,
    answer_from_tokens: int | None = None,
) -> tuple[Plan, list[str]]:
    """Work out a memory's settings for a model trained on `window_tokens`.

    What the model attends to at once (budget, a chunk, the question) has to fit that window.

    Args:
        opening_tokens, closing_tokens: length of the prompt before and after the document; 0 where
            they are not known yet.
        answer_from_tokens: what the model's config asks for, where `config` leaves it open.

    Returns:
        The plan, and what the user should know about it.

    Raises:
        ConfigError: the budget cannot hold what always stays, or there is no room for a budget.
    """
    notices = []
    chunk = config.chunk_tokens or max(1, min(2048, window_tokens // 4))
    room = window_tokens - chunk - closing_tokens
    sinks = config.sink_tokens + opening_tokens
    if room <= sinks:
        raise ConfigError(
            f"chunk of {chunk:,} tokens and question of {closing_tokens:,} leave no room in the "
            f"model's window of {window_tokens:,}",
            "lower --chunk, or shorten the question",
        )
    asked = config.budget_tokens or min(DEFAULT_BUDGET_TOKENS, room)
    budget = room if asked == "auto" else asked
    if budget > room:
        notices.append(
            f"budget lowered from {budget:,} to {room:,} tokens: with a chunk of {chunk:,} "
            f"that fills the {window_tokens:,} tokens this model was trained for"
        )
        budget = room
    recent = config.recent_tokens
    if recent is None:
        recent = min(64, budget // 8)
    if sinks + recent >= budget:
        raise ConfigError(
            f"budget of {budget:,} tokens cannot hold the {sinks + recent:,} that always stay "
            f"(the prompt's opening, {config.sink_tokens} sinks, {recent} recent)",
            f"raise --budget above {sinks + recent:,}",
        )
    answer_from = config.answer_from_tokens or answer_from_tokens or budget
    answer_from = max(sinks + 1, min(budget, answer_from))
    # Few texts fill the window that a model is trained on, so its far half is the weaker one.
    switch = {"auto": window_tokens // 2, "compact": 0, "original": 2**62}[config.positions]
    plan = Plan(budget, chunk, sinks, recent, config.span_tokens, answer_from, switch)
    return plan, notices


def plan_ahead(config: MemoryConfig, window_tokens: int) -> Plan:
    """Work out a memory's settings before prompt and question are known; errors as `make_plan`."""
    return make_plan(config, window_tokens, closing_tokens=room_for_question(window_tokens))[0]
