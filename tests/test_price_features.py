"""Price features are what pandas and TA-Lib say they are."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import talib
from feature_markets import random_candles, same
from hypothesis import given
from hypothesis import strategies as st

from crypto_ml.features import feature_matrix, get_feature, realised_volatility
from crypto_ml.price_features import LAGS, PRICE_POSITION, PRICE_VOLUME, RETURNS, VOLATILITY

NAMES = (*PRICE_VOLUME, *LAGS, *RETURNS, *PRICE_POSITION, *VOLATILITY)
seeds, prices = st.integers(0, 2**32 - 1), st.sampled_from([1e-6, 100.0, 65_000.0])


def by_pandas(frame: pd.DataFrame) -> dict[str, pd.Series]:
    """Write every formula out again, without crypto_ml."""
    close, volume = frame["close"], frame["volume"]
    lags = {"close_lag_1": 1, "close_lag_3": 3}
    volume_lags = {"volume_lag_1": 1, "volume_lag_4": 4, "volume_lag_5": 5}
    log_returns = np.log(close).diff()
    return {
        **{name: frame[name] for name in PRICE_VOLUME},
        **{name: close.shift(bars) for name, bars in lags.items()},
        **{name: volume.shift(bars) for name, bars in volume_lags.items()},
        **{f"returns_{bars}": close / close.shift(bars) - 1 for bars in (1, 2, 3, 5, 10)},
        "sma_20_position": close / close.rolling(20).mean() - 1,
        "sma_50_position": close / close.rolling(50).mean() - 1,
        "above_sma_20": (close > close.rolling(20).mean()).astype(float),
        "bar_position": (close - frame["low"]) / (frame["high"] - frame["low"]),
        "std_20": log_returns.rolling(20).std(ddof=0),
    }


@given(seeds, prices)
def test_what_pandas_says(seed: int, price: float) -> None:
    candles = random_candles(seed, 400, price=price)
    matrix = feature_matrix(candles, NAMES)
    expected = by_pandas(candles.frame)
    assert {*expected, "atr_14"} == set(NAMES)
    for name, values in expected.items():
        first = get_feature(name).lookback
        floor = 1e-12 if get_feature(name).scale == "ratio" else 0.0
        np.testing.assert_allclose(
            matrix[name][first:], values[first:], rtol=1e-9, atol=floor, err_msg=name
        )
        assert matrix[name].isna().sum() == first


@given(seeds, prices)
def test_what_talib_says(seed: int, price: float) -> None:
    candles = random_candles(seed, 300, price=price)
    matrix, frame = feature_matrix(candles, NAMES), candles.frame
    close = frame["close"].to_numpy()
    for bars in (1, 2, 3, 5, 10):
        same(matrix[f"returns_{bars}"], talib.ROCP(close, bars))
    for window in (20, 50):
        expected = close / talib.SMA(close, window) - 1
        values = matrix[f"sma_{window}_position"]
        np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-11)
    scatter = np.r_[np.full(20, np.nan), talib.STDDEV(np.diff(np.log(close)), 20)[19:]]
    np.testing.assert_allclose(matrix["std_20"], scatter, rtol=1e-9)
    same(matrix["std_20"], realised_volatility(candles, 20))


def test_where_the_formula_divides_zero_by_zero() -> None:
    """A bar without a range closes in its middle; closes that are equal are at their mean."""
    flat = np.full(120, 7.3)
    arrays = {name: flat for name in ("open", "high", "low", "close", "volume")}
    for name in (*RETURNS, *PRICE_POSITION, *VOLATILITY):
        item = get_feature(name)
        values = item.compute(arrays)[item.lookback :]
        assert (values == (0.5 if name == "bar_position" else 0.0)).all(), name


@pytest.mark.parametrize(("close", "place"), [(9.0, 0.0), (10.0, 0.25), (13.0, 1.0)])
def test_the_place_within_the_bar(close: float, place: float) -> None:
    arrays = {"high": np.array([13.0]), "low": np.array([9.0]), "close": np.array([close])}
    assert get_feature("bar_position").compute(arrays)[0] == place
