"""Features look back only, forget where history began, and are TA-Lib's numbers."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
import talib
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crypto_ml import features as module
from crypto_ml.candles import Candles, Market, candles_from_frame, load_candles, segment_ids
from crypto_ml.errors import FeatureError
from crypto_ml.features import (
    DEFAULT_FEATURES,
    FEATURES,
    feature,
    feature_matrix,
    feature_schema,
    get_feature,
    log_return_std,
    realised_volatility,
    rolling_mean,
    rolling_std,
    settle_bars,
    warm_up,
)
from crypto_ml.settings import RunParameters

WARM = 395
quick = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def make_candles(
    seed: int,
    bars: int = 900,
    *,
    price: float = 100.0,
    volatility: float = 0.01,
    tick: float = 0.0,
    still: float = 0.0,
    timeframe: str = "1h",
) -> Candles:
    """Random bars; `tick` rounds prices as an exchange does, `still` is the share without trade."""
    rng = np.random.default_rng(seed)
    moves = rng.standard_t(4, bars) * volatility * (rng.random(bars) >= still)
    close = price * np.exp(np.cumsum(np.clip(moves, -0.3, 0.3)))
    opened = np.r_[price, close[:-1]]
    wick = np.abs(rng.normal(0, volatility, (2, bars))) * (moves != 0)
    high = np.maximum(opened, close) * (1 + wick[0])
    low = np.minimum(opened, close) * (1 - np.minimum(wick[1], 0.5))
    values = np.array([opened, high, low, close])
    if tick:
        values = np.maximum(np.round(values / tick), 1) * tick
    volume = rng.lognormal(0, 1, bars) * (moves != 0)
    index = pd.date_range("2024-01-01", periods=bars, freq=timeframe.replace("m", "min"), tz="UTC")
    frame = pd.DataFrame(
        np.vstack([values, volume]).T,
        index=index.as_unit("ms").rename("timestamp"),
        columns=["open", "high", "low", "close", "volume"],
    )
    return candles_from_frame(frame, Market("test", "AAABBB", timeframe), "random bars")


def cut(candles: Candles, keep: slice | np.ndarray) -> Candles:
    return replace(candles, frame=candles.frame.iloc[keep])


def same(a: object, b: object) -> None:
    """Assert equality bit for bit, NaN included."""
    left, right = np.asarray(a), np.asarray(b)
    assert left.shape == right.shape
    differ = np.argwhere(left.view(np.int64) != right.view(np.int64))
    assert len(differ) == 0 or np.array_equal(left, right, equal_nan=True), differ[:3]


markets = st.builds(
    make_candles,
    seed=st.integers(0, 2**32 - 1),
    bars=st.integers(420, 900),
    price=st.sampled_from([1e-6, 0.3, 100.0, 65_000.0, 1e7]),
    volatility=st.sampled_from([1e-4, 0.003, 0.01, 0.05]),
    tick=st.sampled_from([0.0, 1e-8]),
    still=st.sampled_from([0.0, 0.1, 0.5]),
)


# ---- what TA-Lib and pandas say


def by_talib(frame: pd.DataFrame) -> dict[str, np.ndarray]:
    high, low, close = (frame[name].to_numpy() for name in ("high", "low", "close"))
    line, signal, _ = talib.MACD(close, 12, 26, 9)
    return {
        "rsi_14": talib.RSI(close, 14),
        "macd": line,
        "macd_signal": signal,
        "atr_14": talib.ATR(high, low, close, 14),
        "ema_20": talib.EMA(close, 20),
        "ema_50": talib.EMA(close, 50),
        "returns_1": talib.ROCP(close, 1),
    }


def like_talib(name: str, ours: np.ndarray, theirs: np.ndarray, frame: pd.DataFrame) -> None:
    """Assert 12 equal digits: TA-Lib adds up and divides in another order."""
    units: dict[str, Any] = {"rsi_14": 100.0, "atr_14": theirs, "returns_1": 1e-12}
    scale = units.get(name, frame["close"].to_numpy())
    assert (np.abs(ours - theirs) <= 1e-12 * scale).all(), name


def seeded(values: pd.Series, period: int, alpha: float, first: int) -> pd.Series:
    """Exponential average that starts at `first` from the mean of the `period` values up to it."""
    start = values.iloc[first - period + 1 : first + 1].mean()
    rest = pd.concat(
        [pd.Series([start], index=values.index[first : first + 1]), values[first + 1 :]]
    )
    return rest.ewm(alpha=alpha, adjust=False).mean().reindex(values.index)


def by_pandas(frame: pd.DataFrame) -> dict[str, pd.Series]:
    """Write the formulas out again, without TA-Lib and without crypto_ml."""
    frame = frame.reset_index(drop=True)
    close, previous = frame["close"], frame["close"].shift()
    change = close.diff()
    gain = seeded(change.clip(lower=0), 14, 1 / 14, 14)
    loss = seeded(-change.clip(upper=0), 14, 1 / 14, 14)
    reach = pd.concat(
        [
            frame["high"] - frame["low"],
            (frame["high"] - previous).abs(),
            (frame["low"] - previous).abs(),
        ],
        axis=1,
    ).max(axis=1)
    line = seeded(close, 12, 2 / 13, 25) - seeded(close, 26, 2 / 27, 25)
    mean, deviation = close.rolling(20).mean(), close.rolling(20).std(ddof=0)
    return {
        "close": close,
        "volume": frame["volume"],
        "returns_1": close / previous - 1,
        "rsi_14": 100 * gain / (gain + loss),
        "macd": line,
        "macd_signal": seeded(line, 9, 0.2, 33),
        "atr_14": seeded(reach, 14, 1 / 14, 14),
        "bb_position": (close - (mean - 2 * deviation)) / (4 * deviation),
        "ema_20": seeded(close, 20, 2 / 21, 19),
        "ema_50": seeded(close, 50, 2 / 51, 49),
        "zscore": (close - mean) / deviation,
        "volume_ratio": frame["volume"] / frame["volume"].rolling(20).mean(),
    }


@quick
@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-6, 100.0, 65_000.0]))
def test_the_recursive_ones_are_those_of_talib(seed: int, price: float) -> None:
    candles = make_candles(seed, price=price)
    matrix = feature_matrix(candles)
    for name, values in by_talib(candles.frame).items():
        first = get_feature(name).lookback
        like_talib(name, matrix[name].to_numpy()[first:], values[first:], candles.frame[first:])


@quick
@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-6, 100.0, 65_000.0]))
def test_a_second_opinion_from_pandas(seed: int, price: float) -> None:
    candles = make_candles(seed, price=price)
    matrix = feature_matrix(candles)
    for name, values in by_pandas(candles.frame).items():
        first = get_feature(name).lookback
        scale = {"macd": price, "macd_signal": price, "zscore": 1.0, "bb_position": 1.0}
        floor = {"returns_1": 1e-12}.get(name, 1e-9 * scale.get(name, 0.0))
        np.testing.assert_allclose(
            matrix[name][first:], values[first:], rtol=1e-9, atol=floor, err_msg=name
        )


def test_talib_agrees_on_the_bands() -> None:
    candles = make_candles(3)
    close = candles.frame["close"].to_numpy()
    upper, middle, lower = talib.BBANDS(close, 20, 2.0, 2.0)
    matrix = feature_matrix(candles)[19:]
    np.testing.assert_allclose(
        matrix["bb_position"], ((close - lower) / (upper - lower))[19:], rtol=1e-9, atol=1e-10
    )
    deviation = talib.STDDEV(close, 20)[19:]
    np.testing.assert_allclose(
        matrix["zscore"], (close - middle)[19:] / deviation, rtol=1e-9, atol=1e-10
    )


@pytest.mark.parametrize(
    "name",
    ["binance_BTCUSDT_1h", "binance_FTTUSDT_1h", "binance_BIFIUSDT_5m", "binance_DOGEUSDT_4h"],
)
def test_real_candles_agree_with_talib_and_pandas(real_candles_folder: Path, name: str) -> None:
    candles = load_candles(real_candles_folder / f"{name}.parquet")
    candles = cut(candles, slice(-25_000, None))
    matrix = feature_matrix(candles)
    ids = segment_ids(candles.index, candles.timeframe, 3)
    for segment in np.unique(ids):
        frame, values = candles.frame[ids == segment], matrix[ids == segment]
        if len(frame) <= WARM:
            continue
        calm = values["rsi_14"].to_numpy() == 50.0  # decided by definition, not by TA-Lib
        assert calm.mean() < 0.01
        for column, expected in by_talib(frame).items():
            keep = np.flatnonzero(~calm if column == "rsi_14" else np.ones(len(frame), bool))
            keep = keep[keep >= get_feature(column).lookback]
            like_talib(column, values[column].to_numpy()[keep], expected[keep], frame.iloc[keep])
        price = frame["close"].to_numpy()
        for column in ("zscore", "volume_ratio"):
            moved = frame["close"].rolling(20).std().to_numpy() > 1e-4 * price
            moved &= frame["volume"].rolling(20).mean().to_numpy() > 1e-6
            expected = by_pandas(frame)[column].to_numpy()
            np.testing.assert_allclose(values[column][moved], expected[moved], rtol=1e-7, atol=1e-7)


# ---- history and future


def scale_of(name: str, frame: pd.DataFrame, values: pd.Series) -> np.ndarray:
    if name in ("rsi_14", "bb_position", "zscore", "returns_1"):
        return np.full(len(frame), 100.0 if name == "rsi_14" else 1.0)
    return (frame["close"] if name.startswith("macd") else values).to_numpy()


def history_error(candles: Candles, start: int, length: int) -> dict[str, float]:
    """Largest relative difference after warm-up between the whole history and one from `start`."""
    whole = feature_matrix(cut(candles, slice(0, start + length)))[start:]
    part_of = cut(candles, slice(start, start + length))
    part = feature_matrix(part_of)
    errors = {}
    for name in DEFAULT_FEATURES:
        first = get_feature(name).lookback
        error = np.abs(part[name] - whole[name]) / scale_of(name, part_of.frame, whole[name])
        errors[name] = float(error.iloc[first:].max())
    return errors


FINITE = ("close", "volume", "returns_1", "bb_position", "zscore", "volume_ratio")


@quick
@given(st.integers(0, 2**32 - 1), st.integers(1, 400), st.sampled_from([0.0, 0.2, 0.5]))
def test_no_value_depends_on_where_history_begins(seed: int, start: int, still: float) -> None:
    candles = make_candles(seed, 1000, still=still)
    errors = history_error(candles, start, 1000 - start)
    assert max(errors.values()) < 1e-6, errors
    assert all(errors[name] == 0 for name in FINITE), errors


@pytest.mark.parametrize(
    "name",
    ["binance_BTCUSDT_1h", "binance_XRPUSDT_15m", "binance_BIFIUSDT_5m", "bitbank_BTCJPY_1m"],
)
def test_history_start_on_real_candles(real_candles_folder: Path, name: str) -> None:
    candles = load_candles(real_candles_folder / f"{name}.parquet")
    for start in np.random.default_rng(1).integers(1500, len(candles) - 2000, 6):
        near = cut(candles, slice(start - 1500, start + 2000))
        errors = history_error(near, 1500, 2000)
        assert max(errors.values()) < 1e-6, (start, errors)
        assert all(errors[column] == 0 for column in FINITE), (start, errors)


def test_a_crash_long_ago_is_forgotten() -> None:
    """A market that moved a hundredfold more before, and is calm now: the worst for RSI and ATR."""
    wild, calm = make_candles(1, 500, volatility=0.1), make_candles(2, 700, volatility=0.001)
    ratio = wild.frame["close"].iloc[-1] / 100
    prices = calm.frame[["open", "high", "low", "close"]] * ratio
    frame = pd.concat([wild.frame, prices.assign(volume=calm.frame["volume"])])
    frame.index = pd.date_range("2024-01-01", periods=1200, freq="1h", tz="UTC", unit="ms")
    candles = candles_from_frame(frame.rename_axis("timestamp"), calm.market, "crash")
    for start in (100, 495, 499):
        assert max(history_error(candles, start, 600).values()) < 1e-6


def test_the_lookback_is_needed() -> None:
    """Half the lookback would not do: what `settle_bars` adds is not there for safety alone."""
    candles = make_candles(5, 1500)
    whole = feature_matrix(candles)
    part = feature_matrix(cut(candles, slice(700, None)))
    for name in ("rsi_14", "macd", "macd_signal", "atr_14", "ema_20", "ema_50"):
        item = get_feature(name)
        early = item.compute(cut(candles, slice(700, None)).arrays())[item.lookback // 2]
        error = abs(early - whole[name].iloc[700 + item.lookback // 2])
        assert error / scale_of(name, candles.frame[700:], part[name])[-1] > 1e-6, name


@quick
@given(
    markets, st.integers(0, 10**6), st.sampled_from(["noise", "scale", "reverse", "cut", "tick"])
)
def test_changing_the_future_changes_nothing_before(candles: Candles, place: int, how: str) -> None:
    now = 1 + place % (len(candles) - 1)
    before = feature_matrix(candles)
    frame = candles.frame.copy()
    rng = np.random.default_rng(place)
    prices = ["open", "high", "low", "close"]
    if how == "noise":
        noise = np.exp(rng.normal(0, 0.1, len(frame) - now))
        frame.iloc[now:, :4] = frame.iloc[now:, :4].to_numpy() * noise[:, None]
        frame.iloc[now:, 4] = rng.lognormal(3, 1, len(frame) - now)
    elif how == "scale":
        frame.iloc[now:] *= 1000
    elif how == "reverse":
        frame.iloc[now:] = frame.iloc[now:].to_numpy()[::-1]
    elif how == "tick":
        frame.iloc[now, :4] = 1e9
    else:
        frame = frame.iloc[:now]
    assert (frame[prices] > 0).all(axis=None)
    after = feature_matrix(replace(candles, frame=frame))
    same(after.to_numpy()[:now], before.to_numpy()[:now])
    same(
        realised_volatility(replace(candles, frame=frame)).to_numpy()[:now],
        realised_volatility(candles).to_numpy()[:now],
    )


# ---- segments


def test_segments_are_independent() -> None:
    candles = make_candles(7, 1500)
    holed = cut(candles, np.r_[0:600, 604:610, 613:1500])  # four missing, then three
    matrix = feature_matrix(holed)
    same(matrix[:600], feature_matrix(cut(candles, slice(0, 600))))
    same(matrix[600:], feature_matrix(cut(candles, np.r_[604:610, 613:1500])))
    assert matrix["returns_1"].isna().sum() == 2
    wide = feature_matrix(holed, max_gap=4)
    assert wide["returns_1"].isna().sum() == 1
    strict = feature_matrix(holed, max_gap=2)
    assert strict["returns_1"].isna().sum() == 3


def test_nan_is_warm_up_and_nothing_else() -> None:
    candles = cut(make_candles(8, 1200), np.r_[0:450, 460:465, 480:1200])
    matrix = feature_matrix(candles)
    for name in DEFAULT_FEATURES:
        lookback = get_feature(name).lookback
        expected = sum(min(lookback, length) for length in (450, 5, 720))
        assert matrix[name].isna().sum() == expected, name
    assert matrix.index.equals(candles.index)
    assert (matrix.dtypes == np.float64).all()


def test_a_segment_shorter_than_the_lookback_is_not_computed() -> None:
    calls = []

    @feature(lookback=10, scale="price")
    def counted(close: np.ndarray) -> np.ndarray:
        calls.append(len(close))
        return close

    candles = cut(make_candles(9, 100), np.r_[0:10, 20:31, 40:100])
    values = feature_matrix(candles, ["counted"])["counted"]
    assert calls == [11, 60]
    assert values.notna().sum() == 1 + 50
    del FEATURES["counted"]


@pytest.mark.parametrize("bars", [1, 2, 19, 20, 395, 396])
def test_short_histories(bars: int) -> None:
    matrix = feature_matrix(make_candles(1, bars))
    assert matrix.shape == (bars, 12)
    assert matrix.notna().all(axis=1).sum() == max(0, bars - WARM)


# ---- defined results


def constant(bars: int, price: float, volume: float) -> Candles:
    index = pd.date_range("2024-01-01", periods=bars, freq="1h", tz="UTC", unit="ms")
    frame = pd.DataFrame(
        price, index=index.rename("timestamp"), columns=["open", "high", "low", "close"]
    )
    market = Market("test", "AAABBB", "1h")
    return candles_from_frame(frame.assign(volume=volume), market, "constant bars")


@pytest.mark.parametrize("price", [1e-8, 0.1, 7.3, 1e6, 123_456.789])
@pytest.mark.parametrize("volume", [0.0, 0.1, 1e9])
def test_a_market_that_stands_still(price: float, volume: float) -> None:
    matrix = feature_matrix(constant(450, price, volume))[WARM:]
    expected = {
        "close": price,
        "volume": volume,
        "returns_1": 0.0,
        "rsi_14": 50.0,
        "atr_14": 0.0,
        "bb_position": 0.5,
        "zscore": 0.0,
        "volume_ratio": 1.0,
    }
    for name, value in expected.items():
        assert (matrix[name] == value).all(), name
    np.testing.assert_allclose(matrix[["ema_20", "ema_50"]], price, rtol=1e-12)
    np.testing.assert_allclose(matrix[["macd", "macd_signal"]] / price, 0, atol=1e-12)
    assert (realised_volatility(constant(450, price, volume))[20:] == 0).all()


def test_a_market_that_stops_moving() -> None:
    """The RSI keeps what the last movement left until that is older than the lookback, then 50."""
    lookback = get_feature("rsi_14").lookback
    close = np.r_[np.linspace(90, 100, 400), np.full(lookback + 50, 100.0)]
    values = get_feature("rsi_14").compute({"close": close})
    assert (values[lookback : 399 + lookback] > 99).all()
    assert (values[399 + lookback :] == 50).all()


@quick
@given(markets)
def test_always_finite_and_without_a_warning(candles: Candles) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        matrix = feature_matrix(candles)[WARM:]
    assert np.isfinite(matrix.to_numpy()).all()
    assert matrix["rsi_14"].between(0, 100).all()
    assert (matrix["zscore"].abs() <= math.sqrt(19) * (1 + 1e-12)).all()
    np.testing.assert_allclose(matrix["zscore"], 4 * matrix["bb_position"] - 2, atol=1e-14)
    assert matrix["volume_ratio"].between(0, 20 * (1 + 1e-12)).all()
    assert (matrix["atr_14"] >= 0).all()


@pytest.mark.parametrize(
    ("price", "step"), [(1e6, 2.0**-20), (1e-8, 1e-8), (65_000.0, 0.01), (1e-5, 1e-8), (1.0, 1e6)]
)
def test_windows_against_exact_arithmetic(price: float, step: float) -> None:
    values = price + step * np.random.default_rng(0).integers(0, 4, 80)
    values[40] = 1e9  # a bad tick must leave no trace
    mean, deviation = rolling_mean(values, 20), rolling_std(values, 20)
    assert np.isnan(mean[:19]).all()
    assert np.isnan(deviation[:19]).all()
    for place in range(19, 80):
        window = [Fraction(value) for value in values[place - 19 : place + 1]]
        exact = sum(window) / 20
        variance = sum((value - exact) ** 2 for value in window) / 20
        assert mean[place] == pytest.approx(float(exact), rel=1e-14)
        assert deviation[place] == pytest.approx(math.sqrt(variance), rel=1e-12)


def test_windows_longer_than_the_values() -> None:
    assert np.isnan(rolling_mean(np.ones(4), 5)).all()
    assert np.isnan(rolling_std(np.ones(4), 5)).all()
    assert rolling_mean(np.empty(0), 5).shape == (0,)
    assert np.isnan(get_feature("zscore").compute({"close": np.ones(4)})).all()
    assert log_return_std(np.ones(1), 2).shape == (1,)


def test_how_long_an_average_remembers() -> None:
    for period in (9, 20, 50):
        alpha = 2 / (period + 1)
        bars = settle_bars(alpha)
        assert (1 - alpha) ** bars <= 1e-6 < (1 - alpha) ** (bars - 1)
    assert settle_bars(1 / 14, ratio=100) > settle_bars(1 / 14)


# ---- the registry


def test_the_twelve_in_order() -> None:
    expected = (
        "close volume returns_1 rsi_14 macd macd_signal atr_14 bb_position "
        "ema_20 ema_50 zscore volume_ratio"
    )
    assert " ".join(DEFAULT_FEATURES) == expected
    assert tuple(RunParameters().features) == DEFAULT_FEATURES
    assert tuple(feature_matrix(make_candles(1, 30)).columns) == DEFAULT_FEATURES
    assert warm_up() == WARM == max(FEATURES[name].lookback for name in DEFAULT_FEATURES)
    assert warm_up(["close"]) == 0


def test_order_and_choice_of_columns_do_not_change_values() -> None:
    candles = make_candles(1, 500)
    whole = feature_matrix(candles)
    some = feature_matrix(candles, ["zscore", "close", "rsi_14"])
    assert list(some.columns) == ["zscore", "close", "rsi_14"]
    pd.testing.assert_frame_equal(some, whole[some.columns], check_exact=True)


def test_the_schema_is_json() -> None:
    schema = feature_schema()
    assert json.loads(json.dumps(schema)) == schema
    assert [item["name"] for item in schema] == list(DEFAULT_FEATURES)
    assert schema[3]["parameters"] == {"period": 14, "flat_after": 263}
    assert schema[6]["inputs"] == ["high", "low", "close"]


@pytest.fixture
def registry() -> Iterator[dict[str, module.Feature]]:
    """Leave the registry as it was found."""
    before = dict(FEATURES)
    yield FEATURES
    FEATURES.clear()
    FEATURES.update(before)


def test_a_feature_is_one_function(registry: dict[str, module.Feature]) -> None:
    @feature(lookback=3, scale="ratio", bars=3)
    def reach(high: np.ndarray, low: np.ndarray, bars: int, power: float = 1.0) -> np.ndarray:
        """Range of the bar.

        And more.
        """
        return np.asarray((high / low - 1) ** power)

    item = registry["reach"]
    assert (item.inputs, item.lookback, item.scale) == (("high", "low"), 3, "ratio")
    assert dict(item.parameters) == {"bars": 3, "power": 1.0}
    assert item.description == "Range of the bar."
    assert callable(reach)
    values = feature_matrix(make_candles(1, 30), ["reach"])["reach"]
    assert values.isna().sum() == 3
    with pytest.raises(TypeError):
        item.parameters["bars"] = 4  # type: ignore[index]


def test_timestamps_are_milliseconds_of_the_open(registry: dict[str, module.Feature]) -> None:
    @feature(lookback=0, scale="count")
    def hour_of_open(timestamp: np.ndarray) -> np.ndarray:
        return np.asarray(timestamp // 3_600_000 % 24)

    candles = make_candles(1, 30)
    values = feature_matrix(candles, ["hour_of_open"])["hour_of_open"]
    assert values.tolist() == [float(t.hour) for t in candles.index]


def test_a_cell_that_is_run_again_replaces_its_feature(registry: dict[str, module.Feature]) -> None:
    def again() -> Callable[[np.ndarray], np.ndarray]:
        @feature(lookback=0, scale="price")
        def mine(close: np.ndarray) -> np.ndarray:
            return close

        return mine

    again()
    second = again()
    assert registry["mine"].function is second
    with pytest.raises(
        FeatureError, match=r"'zscore' is already registered by crypto_ml\.features"
    ):

        @feature(lookback=0, scale="price")
        def zscore(close: np.ndarray) -> np.ndarray:
            return close


def no_inputs(a: int) -> int:
    return a


def all_of(*close: float, **rest: float) -> float:
    return close[0]


def fine(close: np.ndarray, n: object = 1) -> np.ndarray:
    return close


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (fine, {"lookback": -1}, "lookback=-1 is not a whole number of bars"),
        (fine, {"lookback": 1.5}, "lookback=1.5 is not"),
        (fine, {"lookback": True}, "lookback=True is not"),
        (fine, {"scale": None}, "scale=None is unknown; known: price, volume"),
        (fine, {"scale": "prices"}, "scale='prices' is unknown; did you mean 'price'?"),
        (fine, {"m": 3}, "parameter 'm' is not among its arguments; known: n"),
        (fine, {"close": 3}, "parameter 'close' is not among its arguments"),
        (fine, {"n": math.nan}, "parameter n=nan is no finite number"),
        (fine, {"n": object()}, "is no finite number, text or list"),
        (no_inputs, {"a": 1}, "it takes none of the inputs open, high"),
        (no_inputs, {}, "argument 'a' is neither input nor parameter"),
        (all_of, {}, r"\*close hides what it uses(.|\n)*\*rest hides"),
        (lambda close: close, {}, "a lambda has no name"),
    ],
)
def test_what_cannot_be_registered(
    function: Callable[..., object], arguments: dict[str, object], message: str
) -> None:
    before = dict(FEATURES)
    with pytest.raises(FeatureError, match=message):
        feature(**{"lookback": 0, "scale": "price", **arguments})(function)  # type: ignore[arg-type]
    assert before == FEATURES


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["rsi14"], "no feature 'rsi14' is registered; did you mean 'rsi_14'?"),
        (["rsi14", "close", "qqq"], "'rsi14'(.|\n)*no feature 'qqq' is registered; known: close"),
        (["close", "zscore", "close"], "named more than once: close"),
        ([None], "no feature None is registered; known: close"),
        ("close", "expected a list of feature names, got 'close'"),
        ([], r"expected a list of feature names, got \[\]"),
    ],
)
def test_names_are_checked(names: list[str], message: str) -> None:
    for action in (lambda: feature_matrix(make_candles(1, 30), names), lambda: warm_up(names)):
        with pytest.raises(FeatureError, match=message):
            action()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (lambda close: close[1:], r"returned an array of shape \(29,\) for bars of shape \(30,\)"),
        (lambda close: close.mean(), r"returned an array of shape \(\)"),
        (lambda close: 1 / 0, "could not be computed: ZeroDivisionError"),
        (lambda close: ["a"] * len(close), "could not be computed: ValueError"),
        (lambda close: close.sort(), "could not be computed: ValueError.*read-only"),
        (lambda close: np.where(np.arange(30) == 7, np.inf, close), "is inf at 2024-01-01 07:00"),
        (lambda close: np.where(np.arange(30) >= 7, np.nan, close), r"is nan.*bar 7 .*23 such"),
    ],
)
def test_what_a_feature_may_not_return(
    registry: dict[str, module.Feature], body: Callable[[np.ndarray], object], message: str
) -> None:
    @feature(lookback=2, scale="price")
    def broken(close: np.ndarray) -> object:
        return body(close)

    with pytest.raises(FeatureError, match=f"feature 'broken' .*{message}"):
        feature_matrix(make_candles(1, 30), ["close", "broken"])


@pytest.mark.parametrize("name", ["timestamp", "close"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_feature_cannot_write_into_the_bars(
    registry: dict[str, module.Feature], name: str, order: Literal["C", "F"]
) -> None:
    @feature(lookback=0, scale="price")
    def writes(timestamp: np.ndarray, close: np.ndarray) -> np.ndarray:
        {"timestamp": timestamp, "close": close}[name][0] = 1
        return close

    candles = make_candles(1, 30)
    values = np.array(candles.frame.to_numpy(), order=order)
    frame = pd.DataFrame(values, index=candles.index, columns=candles.frame.columns)
    with pytest.raises(FeatureError, match="read-only"):
        feature_matrix(replace(candles, frame=frame), ["writes"])


def test_a_changed_unstable_period_is_refused() -> None:
    talib.set_unstable_period("RSI", 7)
    try:
        with pytest.raises(FeatureError, match=r"unstable period was changed.*'RSI': 7"):
            feature_matrix(make_candles(1, 30))
    finally:
        talib.set_unstable_period("RSI", 0)
    feature_matrix(make_candles(1, 30))


# ---- volatility and speed


def test_realised_volatility_is_what_pandas_says() -> None:
    candles = make_candles(4, 500)
    returns = np.log(candles.frame["close"]).diff()
    for window in (2, 20, 50):
        values = realised_volatility(candles, window)
        np.testing.assert_allclose(values, returns.rolling(window).std(ddof=0), rtol=1e-9)
        assert values.isna().sum() == window


def test_realised_volatility_starts_anew_after_a_gap() -> None:
    candles = make_candles(4, 500)
    holed = cut(candles, np.r_[0:200, 204:210, 230:500])
    values = realised_volatility(holed, 20)
    assert values.isna().sum() == 20 + 6 + 20
    same(values[:200], realised_volatility(cut(candles, slice(0, 200)), 20))
    same(values[206:], realised_volatility(cut(candles, slice(230, 500)), 20))
    assert realised_volatility(holed, 20, max_gap=30).isna().sum() == 20


@pytest.mark.parametrize("window", [1, 0, 2.0, True])
def test_a_window_that_is_none(window: int) -> None:
    with pytest.raises(FeatureError, match="whole number of bars, 2 or more"):
        realised_volatility(make_candles(1, 30), window)


def test_a_hundred_thousand_bars_take_a_moment() -> None:
    candles = make_candles(1, 100_000, volatility=0.001)
    spent = []
    for _ in range(3):
        start = time.process_time()
        feature_matrix(candles)
        spent.append(time.process_time() - start)
    assert min(spent) < 0.2, spent


def test_many_gaps_take_a_moment(real_candles_folder: Path) -> None:
    candles = load_candles(real_candles_folder / "coinbase_BANDUSD_5m.parquet")
    start = time.process_time()
    matrix = feature_matrix(candles)
    assert time.process_time() - start < 2
    assert matrix["close"].notna().all()
    assert matrix.notna().all(axis=1).sum() == 1410
