"""RSI, MACD and stochastic are TA-Lib's, and their signals are what their words say."""

from __future__ import annotations

import numpy as np
import pandas_ta_classic as second_opinion
import pytest
import talib
from feature_markets import cut, random_candles, same
from hypothesis import given
from hypothesis import strategies as st

from crypto_ml.features import feature_matrix, get_feature
from crypto_ml.momentum_features import MACD, MACD_CROSS, RSI, RSI_SIGNAL, STOCHASTIC

SIGNALS = (*RSI[1:], *MACD[3:])
seeds, prices = st.integers(0, 2**32 - 1), st.sampled_from([1e-6, 100.0, 65_000.0])


@given(seeds, prices)
def test_signals_of_the_rsi(seed: int, price: float) -> None:
    candles = random_candles(seed, 700, price=price)
    matrix = feature_matrix(candles, RSI)[RSI_SIGNAL:]
    strength = talib.RSI(candles.frame["close"].to_numpy(), 14)[RSI_SIGNAL:]
    same(matrix["rsi_oversold"], (strength < 30).astype(float))
    same(matrix["rsi_overbought"], (strength > 70).astype(float))


@given(seeds, prices)
def test_the_histogram_and_its_crossings(seed: int, price: float) -> None:
    candles = random_candles(seed, 700, price=price)
    matrix = feature_matrix(candles, MACD)
    line, signal, histogram = talib.MACD(candles.frame["close"].to_numpy(), 12, 26, 9)
    apart = np.abs(matrix["macd_histogram"].to_numpy() - histogram)[275:]
    assert (apart <= 1e-12 * candles.frame["close"].to_numpy()[275:]).all()
    for bar in range(MACD_CROSS, 700):
        above, before = line[bar] > signal[bar], line[bar - 1] > signal[bar - 1]
        assert matrix["macd_cross_up"].iloc[bar] == (above and not before), bar
        assert matrix["macd_cross_down"].iloc[bar] == (before and not above), bar


def test_a_second_opinion_on_the_histogram() -> None:
    close = random_candles(3, 900).frame["close"]
    expected = second_opinion.macd(close, 12, 26, 9, talib=False).filter(like="MACDh").iloc[:, 0]
    values = get_feature("macd_histogram").compute({"close": close.to_numpy()})
    np.testing.assert_allclose(values[275:], expected[275:], atol=1e-6 * close.iloc[-1])


@given(seeds, prices, st.sampled_from([0.0, 0.01]))
def test_the_stochastic_is_talib(seed: int, price: float, tick: float) -> None:
    candles = random_candles(seed, 300, price=price, tick=tick * price)
    frame, matrix = candles.frame, feature_matrix(candles, STOCHASTIC)
    high, low, close = (frame[name].to_numpy() for name in ("high", "low", "close"))
    fast, slow = talib.STOCHF(high, low, close, 14, 3, 0)
    np.testing.assert_allclose(matrix["stoch_k"][15:], fast[15:], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(matrix["stoch_d"][15:], slow[15:], rtol=1e-9, atol=1e-9)
    place = matrix["stoch_k"][13:]
    same(matrix["stoch_oversold"][13:], (place < 20).astype(float))
    same(matrix["stoch_overbought"][13:], (place > 80).astype(float))
    assert place.between(0, 100).all()


def test_a_second_opinion_on_the_stochastic() -> None:
    candles = random_candles(4, 400)
    prices = (candles.frame[name] for name in ("high", "low", "close"))
    expected = second_opinion.stoch(*prices, k=14, d=3, smooth_k=1, talib=False)
    matrix = feature_matrix(candles, STOCHASTIC)[["stoch_k", "stoch_d"]]
    np.testing.assert_allclose(matrix[15:], expected[-len(matrix) + 15 :].iloc[:, :2], rtol=1e-9)


@given(seeds, st.integers(1, 400), st.sampled_from([0.0, 0.5]))
def test_signals_do_not_depend_on_where_history_begins(seed: int, start: int, still: float) -> None:
    candles = random_candles(seed, 1000, still=still)
    whole = feature_matrix(candles, SIGNALS)[start:]
    part = feature_matrix(cut(candles, slice(start, None)), SIGNALS)
    for name in SIGNALS:
        first = get_feature(name).lookback
        same(part[name][first:], whole[name][first:])


def test_signals_settle_a_million_times_closer_than_their_numbers() -> None:
    """At the lookback of a signal the number behind it has forgotten all but 1e-12 of its start."""
    close = random_candles(6, 3000).frame["close"].to_numpy()
    for name, first, scale in (("rsi_14", RSI_SIGNAL, 100.0), ("macd_histogram", MACD_CROSS, 100)):
        item = get_feature(name)
        worst = 0.0
        for start in range(100, 1600, 100):
            error = (
                item.compute({"close": close[start:]})[first:]
                - item.compute({"close": close})[start + first :]
            )
            worst = max(worst, np.abs(error).max() / scale)
        assert worst < 1e-12, name


@pytest.mark.parametrize("price", [1e-8, 7.3, 123_456.789])
def test_a_market_that_stands_still(price: float) -> None:
    arrays = {name: np.full(700, price) for name in ("high", "low", "close")}
    expected = {"rsi_14": 50.0, "stoch_k": 50.0, "stoch_d": 50.0}
    for name in (*RSI, *SIGNALS, *STOCHASTIC):
        item = get_feature(name)
        values = item.compute(arrays)[item.lookback :]
        assert (values == expected.get(name, 0.0)).all(), name


def test_rounding_does_not_cross() -> None:
    """After a long standstill the histogram is rounding; when trade resumes, up is a crossing."""
    start = random_candles(7, 500).frame["close"].to_numpy()
    close = np.r_[start, np.full(900, start[-1]), start[-1] * 1.01 ** np.arange(1, 20)]
    up = get_feature("macd_cross_up").compute({"close": close})
    down = get_feature("macd_cross_down").compute({"close": close})
    assert up[900:1400].sum() == 0
    assert down[900:1400].sum() == 0
    assert up[1400] == 1
    noise = 1 + 1e-15 * np.random.default_rng(0).standard_normal(2000)
    for name in MACD[3:]:
        assert get_feature(name).compute({"close": 100 * noise})[MACD_CROSS:].sum() == 0
