"""Levels are known five bars late and no sooner; candle shapes are TA-Lib's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import talib
from feature_markets import (
    FUTURES,
    candles_of,
    cut,
    degenerate_candles,
    history_error,
    other_future,
    random_candles,
    same,
    scaled,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_ml.candles import Candles, load_candles
from crypto_ml.features import feature_matrix, get_feature, warm_up
from crypto_ml.structure_features import CANDLE_SHAPES, SUPPORT_RESISTANCE, confirmed_lows

ALL = SUPPORT_RESISTANCE + CANDLE_SHAPES
few = settings(max_examples=30, deadline=None)
seeds = st.integers(0, 2**32 - 1)


# ---- pivots and levels, bar by bar, from the definition


def pivots_by_hand(low: np.ndarray, side: int = 5) -> list[tuple[int, float]]:
    """(bar at which it is known, price) of every pivot low."""
    found = []
    for bar in range(side, len(low) - side):
        lower_than_before = all(low[bar] < low[bar - k] for k in range(1, side + 1))
        not_above_after = all(low[bar] <= low[bar + k] for k in range(1, side + 1))
        if lower_than_before and not_above_after:
            found.append((bar + side, low[bar]))
    return found


def levels_by_hand(candles: Candles) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Support, resistance and strength at each bar from bar 99 on."""
    frame = candles.frame
    high, low, close = (frame[name].to_numpy() for name in ("high", "low", "close"))
    lows, highs = pivots_by_hand(low), [(bar, -price) for bar, price in pivots_by_hand(-high)]
    support, resistance, strength = np.full((3, len(close)), np.nan)
    for bar in range(99, len(close)):
        start = bar - 99
        # a pivot whose five bars on either side, too, lie in the window
        below = [price for known, price in lows if start + 10 <= known <= bar]
        above = [price for known, price in highs if start + 10 <= known <= bar]
        support[bar] = max(
            [p for p in below if p <= close[bar]], default=low[start : bar + 1].min()
        )
        resistance[bar] = min(
            [p for p in above if p >= close[bar]], default=high[start : bar + 1].max()
        )
        ranges = [
            max(high[k], close[k - 1]) - min(low[k], close[k - 1])
            for k in range(start + 1, bar + 1)
        ]
        strength[bar] = sum(
            np.exp(-abs(price - level) / np.mean(ranges))
            for level in (support[bar], resistance[bar])
            for price in below + above
        )
    return support, resistance, strength


@settings(max_examples=8, deadline=None)
@given(seeds, st.sampled_from([0.0, 0.5]))
def test_levels_are_what_the_definition_says(seed: int, tick: float) -> None:
    candles = random_candles(seed, 220, tick=tick, still=0.1)
    support, resistance, strength = levels_by_hand(candles)
    matrix = feature_matrix(candles, SUPPORT_RESISTANCE)
    close = candles.frame["close"].to_numpy()
    near = {"rtol": 1e-9, "atol": 1e-12}
    np.testing.assert_allclose(matrix["support_distance"], (close - support) / close, **near)
    np.testing.assert_allclose(matrix["resistance_distance"], (resistance - close) / close, **near)
    np.testing.assert_allclose(matrix["level_strength"], strength, **near)
    up, down = close[1:] > resistance[:-1], close[1:] < support[:-1]
    assert (matrix["breakout_up"][100:] == up[99:]).all()
    assert (matrix["breakout_down"][100:] == down[99:]).all()


@few
@given(seeds)
def test_pivots_are_known_five_bars_later_and_no_sooner(seed: int) -> None:
    low = random_candles(seed, 200).frame["low"].to_numpy()
    known = confirmed_lows(low, 5)
    expected = dict(pivots_by_hand(low))
    at = np.flatnonzero(~np.isnan(known))
    assert dict(zip(at.tolist(), known[at], strict=True)) == expected
    for bar in expected:
        sooner = confirmed_lows(low[:bar], 5)  # the bar that confirms it is not there yet
        assert low[bar - 5] not in sooner[bar - 5 :]


def test_a_valley_becomes_support_on_the_fifth_bar() -> None:
    """The close stays above a low made at bar 120; support moves up to it at bar 125."""
    close = np.full(140, 110.0)
    close[:20] = np.linspace(90, 110, 20)
    low, high = close - 1, close + 1
    low[120] = 105.0
    candles = candles_of(np.array([close, high, low, close]), np.ones(140))
    distance = feature_matrix(candles, ["support_distance"])["support_distance"].to_numpy()
    before, after = (110 - 105) / 110, (110 - 105) / 110
    assert distance[119] == pytest.approx((110 - low[20:120].min()) / 110)
    assert distance[124] == pytest.approx(before)  # as the lowest low of the window, not a pivot
    assert distance[125] == pytest.approx(after)
    strength = feature_matrix(candles, ["level_strength"])["level_strength"].to_numpy()
    assert strength[124] == 0
    assert strength[125] >= 1


def test_of_equal_lows_the_first_is_the_pivot() -> None:
    low = np.array([9, 8, 7, 6, 5, 3, 5, 3, 5, 6, 7, 8, 9, 9, 9], float)
    assert pivots_by_hand(low) == [(10, 3.0)]
    assert np.flatnonzero(~np.isnan(confirmed_lows(low, 5))).tolist() == [10]


# ---- candle shapes


def shapes_by_talib(candles: Candles) -> dict[str, np.ndarray]:
    bars = [candles.frame[name].to_numpy() for name in ("open", "high", "low", "close")]
    return {
        "doji": np.sign(talib.CDLDOJI(*bars)),
        "hammer": np.sign(talib.CDLHAMMER(*bars)),
        "engulfing": np.sign(talib.CDLENGULFING(*bars)),
    }


@few
@given(seeds, st.sampled_from([1e-4, 100.0, 65_000.0]))
def test_shapes_are_talibs(seed: int, price: float) -> None:
    candles = random_candles(seed, price=price)
    matrix = feature_matrix(candles, CANDLE_SHAPES)
    for name, expected in shapes_by_talib(candles).items():
        first = max(get_feature(name).lookback, 2)  # TA-Lib judges no second bar
        assert (matrix[name].to_numpy()[first:] == expected[first:]).all(), name


@pytest.mark.parametrize("name", ["binance_BTCUSDT_1h", "binance_DOGEUSDT_4h", "bitbank_BTCJPY_1m"])
def test_shapes_on_real_candles(real_candles_folder: Path, name: str) -> None:
    """Where TA-Lib differs, the bar meets a limit exactly, and rounding decided there."""
    candles = cut(load_candles(real_candles_folder / f"{name}.parquet"), slice(-12_000, None))
    matrix = feature_matrix(candles, CANDLE_SHAPES, max_gap=10**6)
    for column, expected in shapes_by_talib(candles).items():
        values = matrix[column].to_numpy()
        differ = np.flatnonzero(values != expected)
        differ = differ[differ >= max(get_feature(column).lookback, 2)]
        assert len(differ) <= 0.01 * len(values), column
        if column == "doji":
            frame = candles.frame
            body = (frame["close"] - frame["open"]).abs()
            limit = 0.1 * (frame["high"] - frame["low"]).rolling(10).mean().shift()
            apart = (body - limit).abs() / frame["close"]
            assert (apart.iloc[differ] < 1e-12).all()
        else:
            assert len(differ) == 0 or column == "hammer"
    assert 0.001 < matrix["hammer"].mean() < 0.1
    assert (matrix["pin_bar"].value_counts(normalize=True) > 0.01).all()


def bar(opened: float, high: float, low: float, close: float) -> Candles:
    """Twenty bars of body 1 and range 2, falling, and then the one to be judged."""
    before = np.array([[k + 0.5, k + 1, k - 1, k - 0.5] for k in range(120, 100, -1)])
    prices = np.vstack([before, [opened, high, low, close]]).T
    return candles_of(prices, np.ones(21))


@pytest.mark.parametrize(
    ("prices", "shapes"),
    [
        ((100.0, 101.0, 99.0, 100.1), "doji"),
        ((100.0, 101.0, 99.0, 100.2), "doji"),  # exactly 0.1 of the mean range: met
        ((100.0, 101.0, 99.0, 100.21), ""),
        ((100.0, 100.6, 98.0, 100.5), "hammer pin_bar"),
        ((100.3, 100.6, 98.0, 100.5), "doji hammer pin_bar"),
        ((100.0, 103.0, 99.9, 100.5), "-pin_bar"),
        ((100.0, 103.0, 100.0, 101.0), "-pin_bar"),  # exactly two thirds: met
        ((100.5, 102.0, 100.0, 101.6), "engulfing"),
        ((100.5, 102.0, 100.0, 101.4), ""),
        ((100.0, 100.0, 100.0, 100.0), "doji"),  # no range: no pin
    ],
)
def test_shapes_by_example(prices: tuple[float, ...], shapes: str) -> None:
    last = feature_matrix(bar(*prices), CANDLE_SHAPES).iloc[-1]
    named = {shape.strip("-"): -1 if shape[0] == "-" else 1 for shape in shapes.split()}
    assert {name: value for name, value in last.items() if value} == named


def test_engulfing_both_ways() -> None:
    rows = np.array([[10, 12, 9, 11], [11, 12, 8, 9.0], [8.5, 12, 8, 11.5], [11.5, 12, 8, 8.5]])
    values = feature_matrix(candles_of(rows.T, np.ones(4)), ["engulfing"])["engulfing"]
    assert values.tolist()[1:] == [-1, 1, 0]  # the last covers a body equal to its own


# ---- history and future


@few
@given(seeds, st.integers(1, 500), st.sampled_from([0.0, 0.5]), st.sampled_from([0.0, 0.05]))
def test_nothing_depends_on_where_history_begins(
    seed: int, start: int, still: float, tick: float
) -> None:
    errors = history_error(random_candles(seed, 800, still=still, tick=tick), start, ALL)
    assert all(error == 0 for error in errors.values()), errors


@few
@given(seeds, st.integers(120, 600), st.sampled_from(FUTURES), st.sampled_from([0.0, 0.05]))
def test_another_future_changes_nothing_before(seed: int, now: int, how: str, tick: float) -> None:
    candles = random_candles(seed, 610, tick=tick)
    before = feature_matrix(candles, ALL).to_numpy()[:now]
    same(feature_matrix(other_future(candles, now, how), ALL).to_numpy()[:now], before)


@pytest.mark.parametrize(("kind", "candles"), degenerate_candles().items())
def test_degenerate_markets_give_numbers(kind: str, candles: Candles) -> None:
    matrix = feature_matrix(candles, ALL)
    assert matrix[warm_up(ALL) :].notna().all(axis=None), kind
    assert (matrix[["support_distance", "resistance_distance"]][99:] >= 0).all(axis=None), kind


def test_a_market_at_rest_has_no_levels() -> None:
    last = feature_matrix(degenerate_candles()["constant"], ALL).iloc[-1]
    assert last["doji"] == 1
    assert (last.drop("doji") == 0).all()


@few
@given(seeds, st.sampled_from([2.0**-30, 0.37, 153.7]), st.sampled_from([0.0, 0.05]))
def test_money_of_another_kind(seed: int, factor: float, tick: float) -> None:
    """Ticks make bars that meet a limit exactly; in other units they must meet it still."""
    candles = random_candles(seed, tick=tick)
    before = feature_matrix(candles, ALL)
    after = feature_matrix(scaled(candles, factor, 3.0), ALL)
    np.testing.assert_allclose(after, before, rtol=1e-9, atol=1e-11)
