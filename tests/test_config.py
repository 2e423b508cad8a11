"""Sizes, page ranges and the checks of every option."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexmem_cli.config import (
    POLICIES,
    AnswerConfig,
    MemoryConfig,
    ModelConfig,
    parse_pages,
    parse_size,
)
from indexmem_cli.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("1", 1), ("4096", 4096), ("4k", 4096), ("4K", 4096), ("1.5k", 1536), ("1m", 1 << 20)],
)
def test_sizes(text: str, tokens: int) -> None:
    assert parse_size(text) == tokens
    assert parse_size(f" {text} ") == tokens


@pytest.mark.parametrize(
    "text", ["", "0", "-4", "4kb", "k", "1.5", "0.1k", "4 k", "1e3", "nan", "inf", "4k4", "0x10"]
)
def test_sizes_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not a number of tokens") as caught:
        parse_size(text)
    assert caught.value.exit_code == 2
    assert "4k" in (caught.value.hint or "")


@given(st.integers(1, 10**9))
def test_plain_numbers_stay(tokens: int) -> None:
    assert parse_size(str(tokens)) == tokens


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_a_config_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert parse_size(text) >= 1


@pytest.mark.parametrize(
    ("text", "ranges"),
    [
        ("7", ((7, 7),)),
        ("10-40", ((10, 40),)),
        ("10-", ((10, 0),)),
        (" 1, 5 ,10 - 12 ", ((1, 1), (5, 5), (10, 12))),
    ],
)
def test_pages(text: str, ranges: tuple[tuple[int, int], ...]) -> None:
    assert parse_pages(text) == ranges


@pytest.mark.parametrize("text", ["", "0", "0-3", "4-2", "-3", "a", "1,,2", "1-2-3", "1;2", "1.5"])
def test_pages_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not a selection of pages"):
        parse_pages(text)


@given(st.text(max_size=12))
def test_any_text_is_pages_or_a_config_error(text: str) -> None:
    try:
        ranges = parse_pages(text)
    except ConfigError:
        return
    assert all(first >= 1 and (last == 0 or last >= first) for first, last in ranges)


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (MemoryConfig, {"budget_tokens": 0}, "budget must be at least 16, not 0"),
        (MemoryConfig, {"chunk_tokens": 0}, "chunk must be at least 1"),
        (MemoryConfig, {"policy": "magic"}, "unknown policy: 'magic'"),
        (MemoryConfig, {"span_tokens": 4}, "odd"),
        (MemoryConfig, {"span_tokens": -1}, "odd"),
        (MemoryConfig, {"sink_tokens": -1}, "sinks"),
        (MemoryConfig, {"recent_tokens": -1}, "recent"),
        (MemoryConfig, {"positions": "bent"}, "position mode"),
        (ModelConfig, {"quant": "int3"}, "unknown quantisation: 'int3'"),
        (ModelConfig, {"dtype": "float8"}, "unknown dtype"),
        (AnswerConfig, {"max_tokens": 0}, "longest answer"),
        (AnswerConfig, {"temperature": -0.1}, "temperature"),
    ],
)
def test_wrong_options_are_refused(config: type, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**options)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_is_a_choice(policy: str) -> None:
    assert MemoryConfig(policy=policy).policy == policy


def test_an_unknown_choice_names_the_others() -> None:
    with pytest.raises(ConfigError) as caught:
        ModelConfig(quant="int3")
    assert caught.value.hint == "choose one of: auto, none, int8, nf4"


def test_a_temperature_must_be_a_number() -> None:
    with pytest.raises(ConfigError, match="temperature"):
        AnswerConfig(temperature=float("nan"))
