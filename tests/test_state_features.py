"""Regimes rank by the past alone, clocks are UTC, and what has not moved has gone nowhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
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
from scipy import stats

from crypto_ml.candles import Candles, load_candles
from crypto_ml.features import feature_matrix, get_feature, warm_up
from crypto_ml.state_features import MARKET_STATE, STATISTICS, TIME

ALL = STATISTICS + TIME + MARKET_STATE
few = settings(max_examples=30, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def by_pandas(frame: pd.DataFrame) -> dict[str, pd.Series]:
    """Write the formulas out again, without TA-Lib and without crypto_ml."""
    close, volume = frame["close"], frame["volume"]
    change, moves = close.diff(), np.log(close).diff()
    volatility = moves.rolling(20).std(ddof=0)
    fast, slow = close.rolling(50).mean(), close.rolling(200).mean()
    order = {"c5s": 3, "cs5": 2, "5cs": 1, "sc5": -1, "5sc": -2, "s5c": -3}
    phases = [
        order["".join(sorted("c5s", key=lambda key: -row[key]))]
        for row in ({"c": c, "5": f, "s": s} for c, f, s in zip(close, fast, slow, strict=True))
    ]
    index = pd.DatetimeIndex(frame.index)
    return {
        "close_std_10": close.rolling(10).std(ddof=0),
        "efficiency_ratio_10": close.diff(10).abs() / change.abs().rolling(10).sum(),
        "trend_consistency": np.sign(change).rolling(20).mean(),
        "price_volume_correlation_20": close.rolling(20).corr(volume),
        "volatility_regime": volatility.rolling(200).apply(
            lambda x: stats.percentileofscore(x, x[-1], "mean") / 100, raw=True
        ),
        "momentum_quality": moves.rolling(20).mean() / np.sqrt((moves**2).rolling(20).mean()),
        "market_phase": pd.Series(phases, index),
        "hour": pd.Series(index.hour, index),
        "day_of_week": pd.Series(index.day_of_week, index),
        "weekend": pd.Series(index.day_name().isin(["Saturday", "Sunday"]), index),
        "asian_session": pd.Series(index.hour < 8, index),
        "us_session": pd.Series((index.hour >= 13) & (index.hour < 21), index),
    }


@few
@given(seeds, st.sampled_from([1e-4, 100.0, 65_000.0]))
def test_a_second_opinion_from_pandas(seed: int, price: float) -> None:
    candles = random_candles(seed, 600, price=price)
    matrix = feature_matrix(candles, ALL)
    for name, expected in by_pandas(candles.frame).items():
        first = get_feature(name).lookback
        size = price if get_feature(name).scale == "price" else 1.0
        np.testing.assert_allclose(
            matrix[name][first:], expected[first:], rtol=1e-9, atol=1e-9 * size, err_msg=name
        )


def test_talib_agrees_where_it_has_the_number() -> None:
    candles = random_candles(3)
    close, volume = (candles.frame[name].to_numpy() for name in ("close", "volume"))
    matrix = feature_matrix(candles, ALL)
    near = {"rtol": 1e-7, "atol": 1e-7}
    np.testing.assert_allclose(matrix["close_std_10"][9:], talib.STDDEV(close, 10)[9:], **near)
    expected = talib.CORREL(close, volume, 20)[19:]
    np.testing.assert_allclose(matrix["price_volume_correlation_20"][19:], expected, **near)


@pytest.mark.parametrize("name", ["binance_BTCUSDT_1h", "binance_BIFIUSDT_5m", "bitbank_BTCJPY_1m"])
def test_real_candles_agree_with_pandas(real_candles_folder: Path, name: str) -> None:
    candles = cut(load_candles(real_candles_folder / f"{name}.parquet"), slice(-4_000, None))
    matrix = feature_matrix(candles, ALL, max_gap=10**6)
    moves = np.log(candles.frame["close"]).diff()
    lively = (moves.abs().rolling(20).min() > 0).to_numpy()  # no ties, no 0/0
    lively = lively & (candles.frame["volume"].rolling(20).min() > 0).to_numpy()
    for column, expected in by_pandas(candles.frame).items():
        keep = np.flatnonzero(lively)
        keep = keep[keep >= get_feature(column).lookback]
        size = candles.frame["close"].iloc[-1] if column == "close_std_10" else 1.0
        # pandas keeps running sums: rounding alone can make equal ranks unequal there
        off = np.abs(matrix[column].to_numpy()[keep] - expected.to_numpy(float)[keep]) / size
        assert np.mean(off > 1e-6) < 0.002, (column, off.max())
    assert lively.sum() > 100


# ---- history and future


@few
@given(seeds, st.integers(1, 400), st.sampled_from([0.0, 0.5]), st.sampled_from([0.0, 0.05]))
def test_nothing_depends_on_where_history_begins(
    seed: int, start: int, still: float, tick: float
) -> None:
    errors = history_error(random_candles(seed, 800, still=still, tick=tick), start, ALL)
    assert all(error == 0 for error in errors.values()), errors


@few
@given(seeds, st.integers(230, 600), st.sampled_from(FUTURES), st.sampled_from([0.0, 0.5]))
def test_another_future_changes_nothing_before(seed: int, now: int, how: str, still: float) -> None:
    candles = random_candles(seed, 610, still=still)
    before = feature_matrix(candles, ALL).to_numpy()[:now]
    same(feature_matrix(other_future(candles, now, how), ALL).to_numpy()[:now], before)


# ---- values by definition


@pytest.mark.parametrize(("kind", "candles"), degenerate_candles().items())
def test_degenerate_markets_give_numbers(kind: str, candles: Candles) -> None:
    matrix = feature_matrix(candles, ALL)[warm_up(ALL) :]
    assert matrix.notna().all(axis=None), kind
    for name, low in {
        "efficiency_ratio_10": 0,
        "trend_consistency": -1,
        "price_volume_correlation_20": -1,
        "volatility_regime": 0,
        "momentum_quality": -1,
    }.items():
        assert matrix[name].between(low, 1).all(), (kind, name)


def test_a_market_at_rest() -> None:
    last = feature_matrix(degenerate_candles()["constant"], ALL).iloc[-1]
    expected = dict.fromkeys((*STATISTICS, *MARKET_STATE), 0.0) | {"volatility_regime": 0.5}
    assert last[list(expected)].to_dict() == expected


def test_a_market_that_rises_or_falls_steadily() -> None:
    for kind, sign in (("growth", 1), ("decline", -1)):
        last = feature_matrix(degenerate_candles()[kind], ALL).iloc[-1]
        assert last["efficiency_ratio_10"] == pytest.approx(1)
        assert last["trend_consistency"] == sign
        assert last["momentum_quality"] == pytest.approx(sign)
        assert last["market_phase"] == 3 * sign


@pytest.mark.parametrize("multiple", [0.1, 1.0, 10.0])
def test_the_regime_ranks_the_present_among_the_last_200(multiple: float) -> None:
    candles = random_candles(1, 300, volatility=0.01)
    frame = candles.frame.copy()
    moves = np.diff(np.log(frame["close"]), prepend=np.log(frame["close"].iloc[0]))
    moves[-20:] *= multiple
    close = 100 * np.exp(np.cumsum(moves))
    prices = np.tile(close, (4, 1))
    rank = feature_matrix(candles_of(prices, np.ones(300)), ["volatility_regime"]).iloc[-1, 0]
    assert {0.1: rank == 0.0025, 1.0: 0.0025 < rank < 0.9975, 10.0: rank > 0.95}[multiple]


@pytest.mark.parametrize(("timeframe", "bars"), [("15m", 900), ("1h", 400), ("1d", 30)])
def test_clocks(timeframe: str, bars: int) -> None:
    candles = random_candles(1, bars, timeframe=timeframe)
    matrix = feature_matrix(candles, TIME)
    for name, expected in by_pandas(candles.frame).items():
        if name in TIME:
            assert (matrix[name] == expected).all(), name
    assert matrix.notna().all(axis=None)


def test_clocks_do_not_wait_for_the_bar() -> None:
    candles = random_candles(1, 50)
    same(feature_matrix(other_future(candles, 3, "noise"), TIME), feature_matrix(candles, TIME))


@few
@given(
    seeds,
    st.sampled_from([2.0**-30, 0.37, 153.7]),
    st.sampled_from([0.0, 0.05]),
    st.sampled_from([0.0, 0.6]),
)
def test_money_of_another_kind(seed: int, factor: float, tick: float, still: float) -> None:
    candles = random_candles(seed, tick=tick, still=still)
    before = feature_matrix(candles, ALL)
    after = feature_matrix(scaled(candles, factor, 3.0), ALL)
    for name in ALL:
        expected = before[name] * (factor if get_feature(name).scale == "price" else 1.0)
        size = max(expected.abs().max(), 1e-300)
        np.testing.assert_allclose(after[name], expected, rtol=1e-9, atol=1e-9 * size)
