"""Volume features are TA-Lib's and pandas', and sums since the first bar are sums no more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pandas_ta_classic as second_opinion
import pytest
import talib
from feature_markets import cut, random_candles, same
from hypothesis import given
from hypothesis import strategies as st

from crypto_ml.candles import load_candles
from crypto_ml.features import feature_matrix, get_feature
from crypto_ml.volume_features import VOLUME

seeds, prices = st.integers(0, 2**32 - 1), st.sampled_from([1e-6, 100.0, 65_000.0])


def by_pandas(frame: pd.DataFrame) -> dict[str, pd.Series]:
    """Write every formula out again, without crypto_ml and without TA-Lib."""
    high, low, close, volume = (frame[name] for name in ("high", "low", "close", "volume"))
    price, mean = (high + low + close) / 3, volume.rolling(20).mean()
    weighted = (price * volume).rolling(20).sum() / volume.rolling(20).sum()
    flow = np.sign(close.diff()) * volume
    placed = ((close - low) - (high - close)) / (high - low) * volume
    up = (price * volume).where(price.diff() > 0, 0.0).rolling(14).sum()
    down = (price * volume).where(price.diff() < 0, 0.0).rolling(14).sum()
    return {
        "volume_sma_20": mean,
        "volume_ratio": volume / mean,
        "volume_trend": volume.rolling(5).mean() / mean - 1,
        "volume_breakout": (volume > 2 * mean).astype(float),
        "vwap_20": weighted,
        "vwap_20_distance": close / weighted - 1,
        "obv_20": flow.rolling(20).sum(),
        "obv_sma_20": flow.rolling(20).sum().rolling(20).mean(),
        "ad_20": placed.rolling(20).sum(),
        "cmf_20": placed.rolling(20).sum() / volume.rolling(20).sum(),
        "mfi_14": 100 * up / (up + down),
    }


@given(seeds, prices)
def test_what_pandas_says(seed: int, price: float) -> None:
    candles = random_candles(seed, 300, price=price)
    matrix, expected = feature_matrix(candles, VOLUME), by_pandas(candles.frame)
    assert set(expected) == set(VOLUME)
    for name, values in expected.items():
        first = get_feature(name).lookback
        floor = 1e-12 * price if name == "vwap_20" else 1e-9
        np.testing.assert_allclose(
            matrix[name][first:], values[first:], rtol=1e-9, atol=floor, err_msg=name
        )
        assert matrix[name].isna().sum() == first


@given(seeds, prices, st.sampled_from([0.0, 0.3]))
def test_what_talib_says(seed: int, price: float, still: float) -> None:
    candles = random_candles(seed, 300, price=price, still=still)
    matrix, frame = feature_matrix(candles, VOLUME), candles.frame
    high, low, close, volume = (frame[n].to_numpy() for n in ("high", "low", "close", "volume"))
    level = talib.OBV(close, volume)
    np.testing.assert_allclose(matrix["obv_20"][20:], level[20:] - level[:-20], atol=1e-9)
    level = talib.AD(high, low, close, volume)
    np.testing.assert_allclose(matrix["ad_20"][20:], level[20:] - level[:-20], atol=1e-9)
    np.testing.assert_allclose(
        matrix["volume_sma_20"], talib.SMA(volume, 20), rtol=1e-9, atol=1e-12
    )
    index = talib.MFI(high, low, close, volume, 14)
    np.testing.assert_allclose(matrix["mfi_14"][14:], index[14:], rtol=1e-9, atol=1e-9)


@given(seeds)
def test_a_second_opinion(seed: int) -> None:
    frame = random_candles(seed, 200).frame
    high, low, close, volume = (frame[name] for name in ("high", "low", "close", "volume"))
    arrays = {name: frame[name].to_numpy() for name in frame}
    expected = {
        "cmf_20": second_opinion.cmf(high, low, close, volume, length=20),
        "mfi_14": second_opinion.mfi(high, low, close, volume, length=14, talib=False),
        "vwap_20": second_opinion.vwma((high + low + close) / 3, volume, length=20),
        "obv_20": second_opinion.obv(close, volume, talib=False).diff(20),
        "ad_20": second_opinion.ad(high, low, close, volume, talib=False).diff(20),
    }
    for name, values in expected.items():
        computed = get_feature(name).compute(arrays)
        np.testing.assert_allclose(computed[40:], values[40:], rtol=1e-9, atol=1e-9, err_msg=name)


@given(seeds, st.integers(1, 300), st.sampled_from([0.0, 0.5]))
def test_not_a_bit_depends_on_where_history_begins(seed: int, start: int, still: float) -> None:
    candles = random_candles(seed, 500, still=still)
    whole = feature_matrix(candles, VOLUME)[start:]
    part = feature_matrix(cut(candles, slice(start, None)), VOLUME)
    for name in VOLUME:
        first = get_feature(name).lookback
        same(part[name][first:], whole[name][first:])


@pytest.mark.parametrize("name", VOLUME)
def test_a_bad_tick_is_forgotten(name: str) -> None:
    """As soon as it has left the window; what is summed from the start carries it for ever."""
    frame = random_candles(8, 300).frame
    arrays = {column: frame[column].to_numpy().copy() for column in frame}
    item = get_feature(name)
    clean = item.compute(arrays)
    for column, tick in (("volume", 1e18), ("high", 1e9)):
        spoilt = arrays[column].copy()
        spoilt[100] = tick
        values = item.compute({**arrays, column: spoilt})
        same(values[101 + item.lookback :], clean[101 + item.lookback :])


@pytest.mark.parametrize("volume", [0.0, 0.1, 1e9])
def test_a_market_that_stands_still(volume: float) -> None:
    arrays = {name: np.full(100, 7.3) for name in ("high", "low", "close")}
    arrays["volume"] = np.full(100, volume)
    expected = {"volume_sma_20": volume, "volume_ratio": 1.0, "vwap_20": 7.3, "mfi_14": 50.0}
    for name in VOLUME:
        item = get_feature(name)
        values = item.compute(arrays)[item.lookback :]
        assert (values == expected.get(name, 0.0)).all(), name


@pytest.mark.parametrize("unit", [1e-9, 1.0, 3.0])
def test_rounding_is_no_direction(unit: float) -> None:
    """Bars of the same typical price in decimals, whose sums differ in the last binary digit."""
    bars = np.array([[0.3, 0.1, 0.2], [0.25, 0.15, 0.2], [0.4, 0.1, 0.1]] * 20) * unit
    high, low, close = bars.T
    assert (np.diff(high + low + close) != 0).any()
    arrays = {"high": high, "low": low, "close": close, "volume": np.ones(60)}
    assert (get_feature("mfi_14").compute(arrays)[14:] == 50).all()


def test_moving_without_trading() -> None:
    """Prices that an index quotes, nobody trades at: each bar's price counts alike."""
    frame = random_candles(9, 100).frame.assign(volume=0.0)
    arrays = {name: frame[name].to_numpy() for name in frame}
    typical = frame[["high", "low", "close"]].mean(axis=1)
    mean = get_feature("vwap_20").compute(arrays)
    np.testing.assert_allclose(mean[19:], typical.rolling(20).mean()[19:], rtol=1e-12)
    zero = ("volume_sma_20", "volume_trend", "obv_20", "obv_sma_20", "cmf_20", "ad_20")
    for name in (*zero, "volume_breakout"):
        assert (get_feature(name).compute(arrays)[39:] == 0).all(), name
    assert (get_feature("mfi_14").compute(arrays)[14:] == 50).all()


@pytest.mark.parametrize("name", ["binance_BTCUSDT_1h", "binance_BIFIUSDT_5m"])
def test_real_candles_agree_with_talib(real_candles_folder: Path, name: str) -> None:
    candles = load_candles(real_candles_folder / f"{name}.parquet")
    frame = candles.frame.iloc[-5000:]
    arrays = {column: frame[column].to_numpy() for column in frame}
    prices = (arrays["high"], arrays["low"], arrays["close"])
    total = arrays["volume"].cumsum()[20:]
    level = talib.AD(*prices, arrays["volume"])
    values = get_feature("ad_20").compute(arrays)[20:]
    assert (np.abs(values - (level[20:] - level[:-20])) <= 1e-11 * total).all()
    level = talib.OBV(arrays["close"], arrays["volume"])
    values = get_feature("obv_20").compute(arrays)[20:]
    assert (np.abs(values - (level[20:] - level[:-20])) <= 1e-11 * total).all()
    traded = frame["volume"].rolling(14).sum().to_numpy() > 1e-6
    index, values = talib.MFI(*prices, arrays["volume"], 14), get_feature("mfi_14").compute(arrays)
    moved = traded & (index > 0)
    moved[:14] = False
    np.testing.assert_allclose(values[moved], index[moved], rtol=1e-6, atol=1e-6)
