"""gazer.config.kinds: durations and sizes, exact or refused."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gazer.config.kinds import (
    SECOND,
    parse_duration,
    parse_size,
    parse_whole,
    show_duration,
    show_size,
)


@pytest.mark.parametrize(
    "text, value",
    [
        ("60", 60 * SECOND), ("60s", 60 * SECOND), ("500ms", SECOND // 2), ("2m", 120 * SECOND),
        ("1h", 3600 * SECOND), ("1.5s", 1_500_000_000), ("1.5", 1_500_000_000), ("7us", 7000),
        ("0.000000001", 1), ("3 s", 3 * SECOND), ("0", 0), ("1ns", 1),
    ],
)  # fmt: skip
def test_durations(text, value):
    assert parse_duration(text) == value


@pytest.mark.parametrize(
    "text, value",
    [
        ("65535", 65535), ("64MiB", 64 << 20), ("16MB", 16_000_000), ("256KiB", 256 << 10),
        ("1.5KiB", 1536), ("2 GiB", 2 << 30), ("1kB", 1000), ("1KB", 1000), ("5B", 5),
        ("1TiB", 1 << 40),
    ],
)  # fmt: skip
def test_sizes(text, value):
    assert parse_size(text) == value


@pytest.mark.parametrize(
    "text",
    ["", " ", "s", "-1", "+1", "1e3", "1_000", ".5s", "5.s", "1.2.3s", "0x10", "1:30", "1s1", "s1",
     "1S", "1 day", "inf", "nan", "\u0663s", "\xb2s", "1" * 21, "0.0000000001s", "1\n", "1s "],
)  # fmt: skip
def test_no_durations(text):
    with pytest.raises(ValueError):
        parse_duration(text)


@pytest.mark.parametrize("text", ["", "KiB", "1mib", "1M", "1k", "0.5", "1.0001KiB", "-1", "1Kib"])
def test_no_sizes(text):
    with pytest.raises(ValueError):
        parse_size(text)


@settings(deadline=None)
@given(st.integers(0, 10**19))
@example(0)
@example(60 * SECOND)
def test_durations_round_trip(ns):
    assert parse_duration(show_duration(ns)) == ns


@settings(deadline=None)
@given(st.integers(0, 10**19))
def test_sizes_round_trip(size):
    assert parse_size(show_size(size)) == size


@settings(deadline=None)
@given(
    st.decimals(0, 10**9, places=9, allow_nan=False),
    st.sampled_from([("s", 10**9), ("ms", 10**6), ("us", 1000), ("ns", 1), ("", 10**9)]),
)
def test_fractions_are_exact_or_refused(number, unit):
    text = f"{number:f}{unit[0]}"
    exact = Decimal(number) * unit[1]
    if exact == int(exact):
        assert parse_duration(text) == int(exact)
    else:
        with pytest.raises(ValueError):
            parse_duration(text)


@settings(deadline=None)
@given(st.text(alphabet="0123456789.smhuKMGiB -+_e\u0663", max_size=30) | st.text(max_size=10))
def test_any_text_is_a_quantity_or_a_value_error(text):
    for function in (parse_duration, parse_size, parse_whole):
        try:
            value = function(text)
        except ValueError:
            continue
        assert isinstance(value, int) and value >= 0
