"""Exponential averages and bands are TA-Lib's, and remember no longer than they say."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pandas_ta_classic as second_opinion
import pytest
import talib
from feature_markets import history_error, random_candles, same
from hypothesis import given
from hypothesis import strategies as st

from crypto_ml.average_features import BOLLINGER, EMA
from crypto_ml.features import feature_matrix, get_feature, settle_bars

PERIODS = {5: 39, 10: 78, 20: 158, 50: 395, 100: 790, 200: 1581}
seeds, prices = st.integers(0, 2**32 - 1), st.sampled_from([1e-6, 100.0, 65_000.0])


@given(seeds, prices)
def test_the_averages_are_those_of_talib(seed: int, price: float) -> None:
    candles = random_candles(seed, 1700, price=price)
    matrix, close = feature_matrix(candles, EMA), candles.frame["close"].to_numpy()
    for period, first in PERIODS.items():
        values, expected = matrix[f"ema_{period}"].to_numpy(), talib.EMA(close, period)
        np.testing.assert_allclose(values[first:], expected[first:], rtol=1e-12)


def test_the_averages_are_the_recursion() -> None:
    close = random_candles(1, 2000).frame["close"].reset_index(drop=True)
    for period, first in PERIODS.items():
        start = close[:period].mean()
        rest = pd.concat([pd.Series([start]), close[period:]])
        expected = rest.ewm(span=period, adjust=False).mean().to_numpy()[first - period + 1 :]
        values = get_feature(f"ema_{period}").compute({"close": close.to_numpy()})[first:]
        np.testing.assert_allclose(values, expected, rtol=1e-12)


def test_their_lookback_is_what_it_takes_to_forget() -> None:
    for period, first in PERIODS.items():
        item = get_feature(f"ema_{period}")
        assert item.lookback == first == period - 1 + settle_bars(2 / (period + 1))
        assert (1 - 2 / (period + 1)) ** (first - period + 1) <= 1e-6


def test_half_the_lookback_would_not_do() -> None:
    close = random_candles(5, 4000).frame["close"].to_numpy()
    for name in EMA:
        item = get_feature(name)
        half = item.lookback // 2
        late = item.compute({"close": close[2000:]})[half]
        assert abs(late / item.compute({"close": close})[2000 + half] - 1) > 1e-6, name


@given(seeds, st.integers(1, 500))
def test_another_start_changes_less_than_a_millionth(seed: int, start: int) -> None:
    errors = history_error(random_candles(seed, 2300), start, EMA)
    assert max(errors.values()) < 1e-6, errors


# ---- bands


@given(seeds, prices)
def test_the_bands_are_talib(seed: int, price: float) -> None:
    candles = random_candles(seed, 300, price=price)
    matrix = feature_matrix(candles, BOLLINGER)[19:]
    upper, middle, lower = (
        band[19:] for band in talib.BBANDS(candles.frame["close"].to_numpy(), 20, 2.0, 2.0)
    )
    np.testing.assert_allclose(matrix["bb_upper"], upper, rtol=1e-9)
    np.testing.assert_allclose(matrix["bb_middle"], middle, rtol=1e-9)
    np.testing.assert_allclose(matrix["bb_lower"], lower, rtol=1e-9)
    np.testing.assert_allclose(matrix["bb_width"], (upper - lower) / middle, rtol=1e-7)


@given(seeds)
def test_a_second_opinion_on_width_and_squeeze(seed: int) -> None:
    candles = random_candles(seed, 700)
    matrix = feature_matrix(candles, BOLLINGER)
    bands = second_opinion.bbands(candles.frame["close"], 20, 2.0, ddof=0, talib=False)
    width = bands.filter(like="BBB").iloc[:, 0] / 100
    np.testing.assert_allclose(matrix["bb_width"][19:], width[19:], rtol=1e-9)
    np.testing.assert_allclose(
        matrix["bb_position"][19:], bands.filter(like="BBP").iloc[19:, 0], rtol=1e-9, atol=1e-10
    )
    narrowest = (width == width.rolling(125).min()).astype(float)
    same(matrix["bb_squeeze"][143:], narrowest[143:])
    assert matrix["bb_squeeze"].isna().sum() == 143


def test_one_narrow_place_is_a_squeeze_and_no_other() -> None:
    """Bands that widen for ever are never the narrowest; the first still bars after them are."""
    swing = np.where(np.arange(300) % 2, 1.0, -1.0)
    close = np.r_[100 + swing * np.linspace(0.1, 20, 300), np.full(60, 100.0)]
    squeezed = get_feature("bb_squeeze").compute({"close": close})
    assert squeezed[143:300].sum() == 0
    assert (squeezed[319:] == 1).all()


@pytest.mark.parametrize("price", [1e-8, 7.3, 123_456.789])
def test_a_flat_market_has_bands_without_width(price: float) -> None:
    arrays = {"close": np.full(300, price)}
    for name in ("bb_upper", "bb_middle", "bb_lower"):
        assert (get_feature(name).compute(arrays)[19:] == price).all()
    assert (get_feature("bb_width").compute(arrays)[19:] == 0).all()
    assert (get_feature("bb_squeeze").compute(arrays)[143:] == 1).all()
