"""Trend, oscillators and channels are TA-Lib's numbers where TA-Lib has them, and forget."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import talib
from feature_markets import (
    FUTURES,
    PRICES,
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
from crypto_ml.trend_features import ADVANCED, ADX_14, OSCILLATORS, TREND

ALL = TREND + OSCILLATORS + ADVANCED
WINDOWED = (
    *("trend_strength", "cci_20", "williams_r_14", "ultimate_oscillator", "momentum_14"),
    *("roc_10", "roc_20", "donchian_upper", "donchian_lower"),
    *("ichimoku_conversion", "ichimoku_base"),
)
few = settings(max_examples=30, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def by_talib(frame: pd.DataFrame) -> dict[str, np.ndarray]:
    high, low, close = (frame[name].to_numpy() for name in ("high", "low", "close"))
    plus, minus = talib.PLUS_DI(high, low, close, 14), talib.MINUS_DI(high, low, close, 14)
    with np.errstate(invalid="ignore"):
        direction = (plus - minus) / (plus + minus)
    middle, reach = talib.EMA(close, 20), talib.ATR(high, low, close, 10)
    return {
        "adx_14": talib.ADX(high, low, close, 14),
        "plus_di_14": plus,
        "minus_di_14": minus,
        "trend_direction": direction,
        "trend_strength": talib.CORREL(close, np.arange(len(close), dtype=float), 20) ** 2,
        "cci_20": talib.CCI(high, low, close, 20),
        "williams_r_14": talib.WILLR(high, low, close, 14),
        "ultimate_oscillator": talib.ULTOSC(high, low, close, 7, 14, 28),
        "momentum_14": talib.MOM(close, 14),
        "roc_10": talib.ROC(close, 10),
        "roc_20": talib.ROC(close, 20),
        "trix_14": talib.TRIX(close, 14),
        "keltner_upper": middle + 2 * reach,
        "keltner_lower": middle - 2 * reach,
        "donchian_upper": talib.MAX(high, 20),
        "donchian_lower": talib.MIN(low, 20),
        "ichimoku_conversion": talib.MIDPRICE(high, low, 9),
        "ichimoku_base": talib.MIDPRICE(high, low, 26),
    }


SIZE = {  # what an error is relative to: the scale's width, or the price
    **dict.fromkeys(("adx_14", "plus_di_14", "minus_di_14", "cci_20", "williams_r_14"), 100.0),
    **{"ultimate_oscillator": 100.0, "trend_direction": 1.0, "trend_strength": 1.0},
    **dict.fromkeys(("roc_10", "roc_20", "trix_14"), 1.0),
}


@few
@given(seeds, st.sampled_from([1e-4, 0.3, 100.0, 65_000.0]))
def test_they_are_talibs_numbers(seed: int, price: float) -> None:
    candles = random_candles(seed, price=price)
    matrix = feature_matrix(candles, ALL)
    for name, expected in by_talib(candles.frame).items():
        first = get_feature(name).lookback
        # TA-Lib's correlation is from running sums of squares: exact to about half the digits
        tolerance = 1e-5 if name == "trend_strength" else 1e-9
        np.testing.assert_allclose(
            matrix[name][first:],
            expected[first:],
            rtol=tolerance,
            atol=tolerance * SIZE.get(name, price),
            err_msg=name,
        )


def exponential(values: pd.Series, period: int) -> pd.Series:
    return values.ewm(span=period, adjust=False).mean()


@few
@given(seeds)
def test_a_second_opinion_from_pandas(seed: int) -> None:
    """The formulas written out again, for what TA-Lib lacks or sums up with rounding errors."""
    candles = random_candles(seed)
    frame = candles.frame.reset_index(drop=True)
    high, low, close = frame["high"], frame["low"], frame["close"]
    previous = close.shift()
    floor, ceiling = np.minimum(low, previous), np.maximum(high, previous)
    spread = exponential(high - low, 9)
    typical = (high + low + close) / 3
    deviation = typical.rolling(20).apply(lambda x: np.abs(x - x.mean()).mean(), raw=True)
    pressure = [
        (close - floor).rolling(n).sum() / (ceiling - floor).rolling(n).sum() for n in (7, 14, 28)
    ]
    lines = close.rolling(20).apply(lambda x: np.corrcoef(x, np.arange(20))[0, 1] ** 2, raw=True)
    expected = {
        "mass_index": (spread / exponential(spread, 9)).rolling(25).sum(),
        "cci_20": (typical - typical.rolling(20).mean()) / (0.015 * deviation),
        "ultimate_oscillator": 100 * (4 * pressure[0] + 2 * pressure[1] + pressure[2]) / 7,
        "trend_strength": lines,
    }
    matrix = feature_matrix(candles, list(expected))
    for name, values in expected.items():
        first = get_feature(name).lookback
        size = 25.0 if name == "mass_index" else SIZE[name]
        np.testing.assert_allclose(
            matrix[name][first:], values[first:], rtol=1e-8, atol=1e-9 * size, err_msg=name
        )


@pytest.mark.parametrize("name", ["binance_BTCUSDT_1h", "binance_BIFIUSDT_5m", "bitbank_BTCJPY_1m"])
def test_real_candles_agree_with_talib(real_candles_folder: Path, name: str) -> None:
    candles = cut(load_candles(real_candles_folder / f"{name}.parquet"), slice(-12_000, None))
    matrix = feature_matrix(candles, ALL, max_gap=10**6)
    close = candles.frame["close"]
    moved = (close.rolling(20).std() > 1e-6 * close).to_numpy()  # limits are ours, not TA-Lib's
    ranges = (candles.frame["high"] > candles.frame["low"]).rolling(7).max().to_numpy()
    moved = moved & (ranges > 0)
    digits = {"binance_BTCUSDT_1h": 2, "binance_BIFIUSDT_5m": 1, "bitbank_BTCJPY_1m": 0}[name]
    whole = (candles.frame[PRICES] * 10**digits).round()  # in ticks, which TA-Lib adds exactly
    assert np.abs(whole / 10**digits / candles.frame[PRICES] - 1).max(axis=None) < 1e-14
    of_ticks = by_talib(whole)
    for column, in_money in by_talib(candles.frame).items():
        expected = of_ticks[column] if column in TREND else in_money
        keep = np.flatnonzero(moved)
        keep = keep[keep >= get_feature(column).lookback]
        tolerance = 1e-4 if column == "trend_strength" else 1e-8
        np.testing.assert_allclose(
            matrix[column].to_numpy()[keep],
            expected[keep],
            rtol=tolerance,
            atol=tolerance * SIZE.get(column, float(close.iloc[-1])),
            err_msg=column,
        )
    assert np.mean(moved) > 0.9


# ---- history and future


@few
@given(seeds, st.integers(1, 390), st.sampled_from([0.0, 0.2, 0.5]), st.sampled_from([0.0, 0.01]))
def test_no_value_depends_on_where_history_begins(
    seed: int, start: int, still: float, tick: float
) -> None:
    errors = history_error(random_candles(seed, 1100, still=still, tick=tick), start, ALL)
    assert max(errors.values()) < 1e-6, errors
    assert all(errors[name] == 0 for name in WINDOWED), errors


@pytest.mark.parametrize(
    "name", ["binance_XRPUSDT_15m", "binance_BIFIUSDT_5m", "bitbank_BTCJPY_1m"]
)
def test_history_start_on_real_candles(real_candles_folder: Path, name: str) -> None:
    candles = load_candles(real_candles_folder / f"{name}.parquet")
    for start in np.random.default_rng(1).integers(1500, len(candles) - 2000, 4):
        near = cut(candles, slice(start - 1500, start + 2000))
        errors = history_error(near, 1500, ALL)
        assert max(errors.values()) < 1e-6, (start, errors)
        assert all(errors[column] == 0 for column in WINDOWED), (start, errors)


def test_the_settle_length_is_needed() -> None:
    """A third of it would leave more than a millionth of what another start gives."""
    candles = random_candles(5, 1600)
    recursive = [name for name in ALL if name not in WINDOWED]
    whole = feature_matrix(candles, recursive)
    arrays = cut(candles, slice(700, None)).arrays()
    for name in recursive:
        item = get_feature(name)
        third = item.lookback // 3
        late = whole[name].to_numpy()[700 + third - 20 : 700 + third]
        assert np.nanmax(np.abs(item.compute(arrays)[third - 20 : third] / late - 1)) > 1e-6, name


@few
@given(seeds, st.integers(500, 899), st.sampled_from(FUTURES), st.sampled_from([0.0, 0.3]))
def test_another_future_changes_nothing_before(seed: int, now: int, how: str, still: float) -> None:
    candles = random_candles(seed, still=still)
    before = feature_matrix(candles, ALL).to_numpy()[:now]
    same(feature_matrix(other_future(candles, now, how), ALL).to_numpy()[:now], before)


# ---- values by definition


@pytest.mark.parametrize(("kind", "candles"), degenerate_candles().items())
def test_degenerate_markets_give_numbers(kind: str, candles: Candles) -> None:
    matrix = feature_matrix(candles, ALL)  # refuses NaN and infinity after the lookback
    assert matrix[warm_up(ALL) :].notna().all(axis=None)
    for start in (100, 310, 333):
        errors = history_error(candles, start, ALL)
        assert max(errors.values()) < 1e-6, (kind, start, errors)


def test_a_market_at_rest() -> None:
    for kind in ("constant", "constant and silent", "stopped"):
        last = feature_matrix(degenerate_candles()[kind], ALL).iloc[-1]
        for name in ("adx_14", "plus_di_14", "minus_di_14", "trend_direction", "trend_strength"):
            assert last[name] == pytest.approx(0, abs=1e-6), (kind, name)
        assert last["williams_r_14"] == -50
        assert last["ultimate_oscillator"] == 50
        assert last["mass_index"] == 25
        assert last["cci_20"] == last["momentum_14"] == last["roc_20"] == 0


def test_a_market_that_rises_steadily() -> None:
    last = feature_matrix(degenerate_candles()["growth"], ALL).iloc[-1]
    assert last["adx_14"] == pytest.approx(100)
    assert last["trend_direction"] == pytest.approx(1)
    assert last["plus_di_14"] == pytest.approx(100)
    assert last["minus_di_14"] == pytest.approx(0, abs=1e-9)
    assert last["williams_r_14"] == 0
    assert last["ultimate_oscillator"] == pytest.approx(100)


def test_bounds() -> None:
    for candles in (random_candles(3, still=0.3, tick=0.05), *degenerate_candles().values()):
        matrix = feature_matrix(candles, ALL)[ADX_14:]
        slack = 1e-9
        for name, (low, high) in {
            **dict.fromkeys(("adx_14", "plus_di_14", "minus_di_14"), (0, 100)),
            **{"trend_direction": (-1, 1), "trend_strength": (0, 1)},
            **{"williams_r_14": (-100, 0), "ultimate_oscillator": (0, 100)},
        }.items():
            assert matrix[name].between(low - slack, high + slack).all(), name


@few
@given(seeds, st.sampled_from([2.0**-30, 0.37, 153.7, 2.0**20]))
def test_money_of_another_kind(seed: int, factor: float) -> None:
    """Prices in other units: price columns scale along, the others stay, even in satoshi."""
    candles = random_candles(seed, still=0.2)
    before = feature_matrix(candles, ALL)
    after = feature_matrix(scaled(candles, factor, 3.0), ALL)
    for name in ALL:
        expected = before[name] * (factor if get_feature(name).scale == "price" else 1.0)
        size = expected.abs().max()
        np.testing.assert_allclose(after[name], expected, rtol=1e-9, atol=1e-10 * size)


def test_a_bad_tick_is_forgotten_entirely() -> None:
    calm = random_candles(4)
    ticked = calm.frame.copy()
    ticked.iloc[200, :4] = 1e12
    before = feature_matrix(calm, WINDOWED)[240:]
    same(feature_matrix(Candles(ticked, calm.market, "tick"), WINDOWED)[240:], before)


@pytest.mark.parametrize("bars", [1, 2, 7, 19, 28])
def test_short_histories(bars: int) -> None:
    matrix = feature_matrix(random_candles(1, bars), ALL)
    assert matrix.shape == (bars, len(ALL))
    for name in ALL:
        assert matrix[name].count() == max(0, bars - get_feature(name).lookback)
