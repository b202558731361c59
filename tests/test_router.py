"""Router: the bar decides, everywhere the same way, and in the right share."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_ml.router import SHARES, LineUp, bar_point, goes_to_canary

MARKET, FIRST, HOUR = "binance BTCUSDT 1h", 1_735_689_600_000, 3_600_000
markets = st.text(min_size=1, max_size=30)
opens = st.integers(0, 2**42)


@given(markets, opens, st.integers(0, 100), st.integers(0, 100))
@settings(max_examples=200, deadline=None)
def test_a_bar_of_a_small_canary_stays_with_a_larger_one(
    market: str, opened: int, one: int, other: int
) -> None:
    small, large = sorted((one, other))
    assert goes_to_canary(market, opened, small) <= goes_to_canary(market, opened, large)
    assert not goes_to_canary(market, opened, 0)
    assert goes_to_canary(market, opened, 100)
    assert 0 <= bar_point(market, opened) < 2**64


def test_the_share_of_bars_is_within_binomial_error() -> None:
    """Bars an hour, a minute and a day apart, of several markets."""
    bars = 20_000
    for market, step in [(MARKET, HOUR), ("kraken ETHEUR 1m", 60_000), ("x Y 1d", 24 * HOUR)]:
        points = np.array([bar_point(market, FIRST + n * step) for n in range(bars)]) / 2**64
        for percent in (10, 50):
            share = percent / 100
            error = np.sqrt(share * (1 - share) / bars)
            assert abs((points < share).mean() - share) < 4 * error
        after = np.corrcoef(points[:-1], points[1:])[0, 1]
        assert abs(after) < 4 / np.sqrt(bars), "one bar says nothing about the next"


def test_markets_are_routed_by_themselves() -> None:
    both = [
        [goes_to_canary(market, FIRST + n * HOUR, 50) for n in range(4_000)]
        for market in (MARKET, "binance ETHUSDT 1h")
    ]
    assert abs(np.mean(np.equal(*both)) - 0.5) < 4 * np.sqrt(0.25 / 4_000)


def test_every_process_routes_alike() -> None:
    """Known values, also in a process whose own hashes are salted otherwise."""
    known = [bar_point(MARKET, FIRST + n * HOUR) for n in range(3)]
    assert known[0] == 7105217574108721792
    code = (
        "from crypto_ml.router import bar_point\n"
        f"print([bar_point({MARKET!r}, {FIRST} + n * {HOUR}) for n in range(3)])"
    )
    for salt in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": salt, "LC_ALL": "C"}
        told = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
        assert told.stdout.strip() == str(known)


@given(opens)
@settings(max_examples=100, deadline=None)
def test_who_answers(opened: int) -> None:
    assert LineUp("a").answering(MARKET, opened) == "a"
    for stage, percent in SHARES.items():
        line_up = LineUp("a", "b", stage, "c")
        assert line_up.percent == percent
        expected = "b" if goes_to_canary(MARKET, opened, percent) else "a"
        assert line_up.answering(MARKET, opened) == expected
        assert line_up.shadows == ("b", "c")
    assert LineUp("a", stage="canary-50").percent == 0
