"""What is promised of all 97 columns holds for each of them, on made-up and on real markets."""

from __future__ import annotations

import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from feature_markets import (
    FUTURES,
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

from crypto_ml.candles import Candles, candles_from_frame, load_candles, segment_ids
from crypto_ml.catalogue import CATALOGUE, CATALOGUE_FEATURES, catalogue_table
from crypto_ml.errors import FeatureError
from crypto_ml.features import (
    DEFAULT_FEATURES,
    FEATURES,
    SCALES,
    Feature,
    feature_matrix,
    feature_schema,
    get_feature,
    warm_up,
)

SIZES = {
    "price and volume": 5,
    "lags": 5,
    "returns": 5,
    "EMA": 6,
    "price position": 4,
    "Bollinger": 6,
    "RSI": 3,
    "MACD": 5,
    "stochastic": 4,
    "volatility": 2,
    "volume": 11,
    "trend": 5,
    "oscillators": 4,
    "support and resistance": 5,
    "candle shapes": 4,
    "statistics": 2,
    "time": 5,
    "advanced": 10,
    "market state": 6,
}
# Made of TA-Lib's exponential and Wilder's averages, which forget, but never entirely.
RECURSIVE = {
    *(f"ema_{period}" for period in (5, 10, 20, 50, 100, 200)),
    *("rsi_14", "rsi_oversold", "rsi_overbought", "atr_14"),
    *("macd", "macd_signal", "macd_histogram", "macd_cross_up", "macd_cross_down"),
    *("adx_14", "plus_di_14", "minus_di_14", "trend_direction"),
    *("trix_14", "mass_index", "keltner_upper", "keltner_lower"),
}
WARM = 1581


def computed(candles: Candles, names: tuple[str, ...] = CATALOGUE_FEATURES) -> pd.DataFrame:
    """Compute the columns, with every warning an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return feature_matrix(candles, names)


# ---- the list


def test_97_columns_in_19_families() -> None:
    assert {family: len(names) for family, names in CATALOGUE.items()} == SIZES
    assert list(CATALOGUE) == list(SIZES)
    assert sum(SIZES.values()) == len(CATALOGUE_FEATURES) == len(set(CATALOGUE_FEATURES)) == 97
    assert [name for names in CATALOGUE.values() for name in names] == list(CATALOGUE_FEATURES)


def test_the_default_twelve_are_among_them() -> None:
    assert set(DEFAULT_FEATURES) <= set(CATALOGUE_FEATURES)
    for name in DEFAULT_FEATURES:
        assert FEATURES[name].function.__module__ == "crypto_ml.features"


def test_the_warm_up_is_that_of_the_longest_average() -> None:
    assert warm_up(CATALOGUE_FEATURES) == WARM == get_feature("ema_200").lookback


def test_the_table_says_everything() -> None:
    table = catalogue_table()
    assert tuple(table.index) == CATALOGUE_FEATURES
    assert table.index.name == "name"
    assert list(dict.fromkeys(table["family"])) == list(CATALOGUE)
    assert table["description"].str.len().gt(10).all()
    assert table["definition"].str.len().ge(table["description"].str.len()).all()
    assert set(table["scale"]) <= set(SCALES)
    schema = {item["name"]: item for item in feature_schema(CATALOGUE_FEATURES)}
    for name, row in table.iterrows():
        item = schema[str(name)]
        assert row["lookback"] == item["lookback"]
        assert row["inputs"].split() == item["inputs"]
        assert row["definition_hash"] == item["definition_hash"]
    assert table["definition_hash"].is_unique


def test_the_table_of_some() -> None:
    def homemade(close: np.ndarray) -> np.ndarray:
        return close

    FEATURES["homemade"] = Feature("homemade", homemade, ("close",), {}, 0, "price", "")
    try:
        table = catalogue_table(["ema_5", "homemade"])
    finally:
        del FEATURES["homemade"]
    assert list(table["family"]) == ["EMA", ""]
    assert list(table["definition"])[1] == ""
    with pytest.raises(FeatureError, match="no feature 'ema_6' is registered; did you mean"):
        catalogue_table(["ema_6"])


# ---- what is promised


@settings(max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 10**6),
    st.sampled_from(FUTURES),
    st.sampled_from([0.0, 0.4]),
)
def test_the_future_changes_nothing_before_it(
    seed: int, place: int, how: str, still: float
) -> None:
    candles = random_candles(seed, 1900, still=still, tick=0.01)
    now = 1 + place % (len(candles) - 1)
    before = computed(candles)[:now]
    after = computed(other_future(candles, now, how, seed))[:now]
    for name in CATALOGUE_FEATURES:
        same(after[name], before[name])


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 800), st.sampled_from([0.0, 0.2, 0.5]))
def test_no_column_depends_on_where_history_begins(seed: int, start: int, still: float) -> None:
    errors = history_error(random_candles(seed, 2500, still=still), start, CATALOGUE_FEATURES)
    assert set(errors) == set(CATALOGUE_FEATURES)
    assert max(errors.values()) < 1e-6, {name: e for name, e in errors.items() if e > 1e-6}
    assert not {name for name, error in errors.items() if error > 0} - RECURSIVE, errors


def test_after_a_crash_it_holds_too() -> None:
    """A market that moved a hundredfold more before, and is calm now."""
    wild = random_candles(1, 900, volatility=0.08)
    calm = random_candles(2, 1700, volatility=0.001, price=wild.frame["close"].iloc[-1])
    frame = pd.concat([wild.frame, calm.frame])
    frame.index = pd.date_range("2024-01-01", periods=2600, freq="1h", tz="UTC", unit="ms")
    candles = candles_from_frame(frame.rename_axis("timestamp"), calm.market, "crash")
    for start in (100, 880, 899):
        errors = history_error(candles, start, CATALOGUE_FEATURES)
        assert max(errors.values()) < 1e-6, {name: e for name, e in errors.items() if e > 1e-6}


@settings(max_examples=40)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([2.0**-30, 0.5, 2.0**20]),
    st.sampled_from([2.0**-20, 1.0, 2.0**30]),
)
def test_other_units_change_what_is_measured_in_them(seed: int, price: float, coin: float) -> None:
    """Powers of two, so that not even rounding differs: satoshis for bitcoins, say."""
    candles = random_candles(seed, 1700)
    plain, other = computed(candles), computed(scaled(candles, price, coin))
    for name in CATALOGUE_FEATURES:
        factor = {"price": price, "volume": coin}.get(get_feature(name).scale, 1.0)
        np.testing.assert_allclose(
            other[name], plain[name] * factor, rtol=1e-12, atol=1e-12 * factor, err_msg=name
        )


@pytest.mark.parametrize("kind", degenerate_candles())
def test_always_finite_on_degenerate_markets(kind: str) -> None:
    matrix = computed(degenerate_candles(2000)[kind])
    for name in CATALOGUE_FEATURES:
        item = get_feature(name)
        values = matrix[name].to_numpy()
        assert np.isnan(values[: item.lookback]).all(), name
        assert np.isfinite(values[item.lookback :]).all(), name
        if item.scale == "bounded":
            assert np.abs(values[item.lookback :]).max() <= 100 * (1 + 1e-12), name
        elif item.scale == "count":
            assert (values[item.lookback :] == np.round(values[item.lookback :])).all(), name


def test_segments_are_computed_alone() -> None:
    candles = random_candles(3, 4000)
    holed = cut(candles, np.r_[0:1900, 1910:2500, 2503:4000])  # nine missing, then three
    matrix = computed(holed)
    same(matrix[:1900], computed(cut(candles, slice(0, 1900))))
    same(matrix[1900:], computed(cut(candles, np.r_[1910:2500, 2503:4000])))
    assert matrix["ema_200"].isna().sum() == 2 * WARM


# ---- real markets


def sample_of(path: Path, bars: int) -> list[Candles]:
    """The first and the last bars of a file, as it stands but for the bad ticks' refusal."""
    frame = pq.read_table(path).to_pandas()
    frame = frame.set_index("timestamp") if "timestamp" in frame else frame
    parts = [frame] if len(frame) <= bars else [frame[: bars // 2], frame[-bars // 2 :]]
    exchange, symbol, timeframe = path.stem.split("_")
    market = {"exchange": exchange, "symbol": symbol, "timeframe": timeframe}
    return [load_candles(part, **market) for part in parts]


def test_always_finite_on_every_real_market(real_candles_folder: Path) -> None:
    paths = sorted(real_candles_folder.glob("*.parquet"))
    assert paths
    rows = 0
    for path in paths:
        for candles in sample_of(path, 20_000):
            matrix = computed(candles)
            ids = segment_ids(candles.index, candles.timeframe, 3)
            since = pd.Series(ids).groupby(ids).cumcount().to_numpy()
            for name in CATALOGUE_FEATURES:
                late = since >= get_feature(name).lookback
                assert np.isfinite(matrix[name].to_numpy()[late]).all(), (path.name, name)
            rows += (since >= WARM).sum()
    assert rows > 10_000


@pytest.mark.parametrize(
    "name",
    ["binance_BTCUSDT_1h", "binance_XRPUSDT_15m", "binance_BIFIUSDT_5m", "bitbank_BTCJPY_1m"],
)
def test_history_start_on_real_candles(real_candles_folder: Path, name: str) -> None:
    candles = load_candles(real_candles_folder / f"{name}.parquet")
    for start in np.random.default_rng(4).integers(2000, len(candles) - 4000, 3):
        near = cut(candles, slice(start - 2000, start + 4000))
        errors = history_error(near, 2000, CATALOGUE_FEATURES)
        errors = {column: error for column, error in errors.items() if error > 0}
        assert max(errors.values(), default=0) < 1e-6, (start, errors)
        assert not set(errors) - RECURSIVE, (start, errors)


def test_a_hundred_thousand_bars(capsys: pytest.CaptureFixture[str]) -> None:
    candles = random_candles(1, 100_000, volatility=0.001)
    start = time.process_time()
    matrix = computed(candles)
    with capsys.disabled():
        print(f" [97 columns of 100,000 bars: {time.process_time() - start:.1f} s]", end="")
    assert matrix.shape == (100_000, 97)
