"""No column of the stationary set knows in what money or in what coins a market is counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
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
from crypto_ml.catalogue import CATALOGUE_FEATURES
from crypto_ml.errors import FeatureError
from crypto_ml.features import FEATURES, feature, feature_matrix, get_feature, warm_up
from crypto_ml.stationary import (
    DIFFERENCES,
    FORMS,
    LEVELS,
    STATIONARY,
    log_ratio,
    relative_to_close,
    stationary_table,
)

OWN = tuple(dict.fromkeys(form for form in FORMS.values() if form not in CATALOGUE_FEATURES))
BARS = warm_up(STATIONARY) + 400
few = settings(max_examples=10, deadline=None)
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture
def registry() -> Iterator[None]:
    before = dict(FEATURES)
    yield
    FEATURES.clear()
    FEATURES.update(before)


# ---- which columns


def test_every_feature_with_units_has_a_form_without() -> None:
    with_units = {n for n in CATALOGUE_FEATURES if get_feature(n).scale in ("price", "volume")}
    assert set(FORMS) == with_units
    assert not {get_feature(name).scale for name in STATIONARY} & {"price", "volume"}


def test_the_set_is_the_catalogue_with_forms_in_their_place() -> None:
    assert len(set(STATIONARY)) == len(STATIONARY)
    assert set(STATIONARY) == {FORMS.get(name, name) for name in CATALOGUE_FEATURES}
    assert [n for n in STATIONARY if n in CATALOGUE_FEATURES][:3] == [
        "returns_1",
        "returns_3",
        "returns_2",
    ]
    assert len(CATALOGUE_FEATURES) == 97
    assert len(STATIONARY) == 91


def test_the_table_says_what_became_of_each() -> None:
    table = stationary_table()
    assert list(table.index) == list(CATALOGUE_FEATURES)
    assert table.loc["rsi_14", "definition"] == "as it is"
    assert table.loc["ema_20", "form"] == "ema_20_to_close"
    assert table.loc["ema_20", "definition"] == "`ema_20` / close − 1."
    assert table.loc["atr_14", "definition"] == "`atr_14` / close."


# ---- the promise


@few
@given(
    seeds,
    st.sampled_from([1e-4, 0.37, 153.7, 1e5]),
    st.sampled_from([1e-3, 2.9, 1e4]),
    st.sampled_from([0.3, 65_000.0]),
)
def test_other_units_change_nothing(seed: int, money: float, coins: float, price: float) -> None:
    candles = random_candles(seed, BARS, price=price)
    before = feature_matrix(candles, STATIONARY)
    after = feature_matrix(scaled(candles, money, coins), STATIONARY)
    for name in STATIONARY:
        np.testing.assert_allclose(after[name], before[name], rtol=1e-9, atol=1e-9, err_msg=name)


@few
@given(seeds, st.sampled_from([0.0, 0.5]), st.integers(-20, 20), st.integers(-20, 20))
def test_units_of_a_power_of_two_change_no_bit(
    seed: int, still: float, money: int, coins: int
) -> None:
    """Where prices move in ticks, thresholds are hit exactly: rounding must not decide."""
    candles = random_candles(seed, BARS, still=still, tick=2.0**-7)
    before = feature_matrix(candles, STATIONARY)
    after = feature_matrix(scaled(candles, 2.0**money, 2.0**coins), STATIONARY)
    for name in STATIONARY:
        same(after[name], before[name])


def test_prices_alone_do_change() -> None:
    """The check sees what it should: the columns with units fail it."""
    candles = random_candles(1, BARS)
    with_units = list(FORMS)
    before = feature_matrix(candles, with_units)[-1:]
    after = feature_matrix(scaled(candles, 2.0, 4.0), with_units)[-1:]
    ratio = (after / before).iloc[0]
    for name in with_units:
        assert ratio[name] == pytest.approx(2 if get_feature(name).scale == "price" else 4), name


REAL = ["binance_BTCUSDT_1h", "binance_BIFIUSDT_5m", "bitbank_BTCJPY_1m", "binance_DOTUSDT_4h"]


@pytest.mark.parametrize("name", REAL)
def test_real_candles(real_candles_folder: Path, name: str) -> None:
    candles = cut(load_candles(real_candles_folder / f"{name}.parquet"), slice(-5000, None))
    before = feature_matrix(candles, STATIONARY)
    assert len(before.dropna()) > 2000
    same(feature_matrix(scaled(candles, 2.0**7, 2.0**-5), STATIONARY), before)
    later = feature_matrix(scaled(candles, 153.7, 0.0021), STATIONARY)
    moved = (later - before).abs() > 1e-9 * before.abs().clip(lower=1.0)
    # of thresholds that ticks hit exactly, rounding may decide a few in odd units
    assert moved.to_numpy().mean() < 1e-4, moved.sum().nlargest(3)
    errors = history_error(candles, 1111, STATIONARY)
    assert max(errors.values()) < 1e-6, errors


# ---- the forms


def test_prices_are_relative_to_the_close() -> None:
    candles = random_candles(2, BARS)
    close = candles.frame["close"].to_numpy()
    for names, whole in ((LEVELS, 1.0), (DIFFERENCES, 0.0)):
        original = feature_matrix(candles, names)
        forms = feature_matrix(candles, [f"{name}_to_close" for name in names])
        for name in names:
            expected = original[name].to_numpy() / close - whole
            item, form = get_feature(name), get_feature(f"{name}_to_close")
            made = forms[f"{name}_to_close"].to_numpy()
            settled = form.lookback
            np.testing.assert_array_equal(made[settled:], expected[settled:], err_msg=name)
            assert np.isnan(made[:settled]).all()
            longer = name.startswith(("ema", "keltner"))
            assert settled > item.lookback if longer else settled == item.lookback
            assert form.parameters == item.parameters
            assert "close" in form.inputs


def test_volumes_are_logarithms_of_ratios() -> None:
    candles = random_candles(2, 300)
    volume = candles.frame["volume"]
    mean = volume.rolling(20).mean()
    expected = {
        "volume_log_ratio": np.log(volume / mean),
        "volume_lag_1_log_ratio": np.log(volume.shift(1) / mean),
        "volume_lag_4_log_ratio": np.log(volume.shift(4) / mean),
        "volume_lag_5_log_ratio": np.log(volume.shift(5) / mean),
        "volume_sma_20_log_ratio": np.log(mean / volume.rolling(100).mean()),
    }
    matrix = feature_matrix(candles, list(expected))
    for name, values in expected.items():
        first = get_feature(name).lookback
        floored = np.maximum(values, np.log(0.01))
        np.testing.assert_allclose(matrix[name][first:], floored[first:], rtol=1e-9, atol=1e-9)


def test_balances_are_shares_of_what_was_traded() -> None:
    candles = random_candles(2, 300, still=0.2)
    close, volume = candles.frame["close"], candles.frame["volume"]
    balance = (np.sign(close.diff()) * volume).rolling(20).sum()
    traded = volume.rolling(20).sum()
    matrix = feature_matrix(candles, ["obv_20_share", "obv_sma_20_share"])
    np.testing.assert_allclose(matrix["obv_20_share"][20:], (balance / traded)[20:], rtol=1e-9)
    smooth = balance.rolling(20).sum() / traded.rolling(20).sum()
    np.testing.assert_allclose(matrix["obv_sma_20_share"][39:], smooth[39:], rtol=1e-9, atol=1e-12)


def test_no_trade_is_a_number() -> None:
    assert log_ratio(np.array([0.0, 0.0, 2.0, 3.0]), np.array([0.0, 5.0, 2.0, 0.0])).tolist() == [
        0.0,
        np.log(0.01),
        0.0,
        0.0,
    ]
    silent = candles_of(np.full((4, 200), 7.0), np.r_[np.ones(150), np.zeros(50)])
    matrix = feature_matrix(silent, ["volume_log_ratio", "volume_sma_20_log_ratio"])
    assert matrix.iloc[150].tolist() == [np.log(0.01), pytest.approx(np.log(0.95 / 0.99))]
    assert matrix["volume_log_ratio"].iloc[-1] == 0
    assert matrix["volume_sma_20_log_ratio"].iloc[-1] == np.log(0.01)


@pytest.mark.parametrize(("kind", "candles"), degenerate_candles(BARS).items())
def test_degenerate_markets_give_numbers(kind: str, candles: Candles) -> None:
    matrix = feature_matrix(candles, STATIONARY)
    assert matrix[warm_up(STATIONARY) :].notna().all(axis=None), kind


@few
@given(seeds, st.integers(300, 799), st.sampled_from(FUTURES), st.sampled_from([0.0, 0.3]))
def test_another_future_changes_nothing_before(seed: int, now: int, how: str, still: float) -> None:
    candles = random_candles(seed, 800, still=still)
    before = feature_matrix(candles, OWN).to_numpy()[:now]
    same(feature_matrix(other_future(candles, now, how), OWN).to_numpy()[:now], before)


@few
@given(seeds, st.integers(1, 400), st.sampled_from([0.0, 0.3]))
def test_no_value_depends_on_where_history_begins(seed: int, start: int, still: float) -> None:
    errors = history_error(random_candles(seed, BARS + 400, still=still), start, OWN)
    assert max(errors.values()) < 1e-6, errors


# ---- what a form is made of


def test_hashes_are_their_own() -> None:
    hashes = [get_feature(name).definition_hash for name in STATIONARY]
    assert len(set(hashes)) == len(hashes)


def test_the_definition_covers_the_original(registry: None) -> None:
    def form_of(original: object, **parameters: object) -> str:
        FEATURES.pop("line", None)
        FEATURES.pop("line_to_close", None)
        original.__name__ = original.__qualname__ = "line"  # type: ignore[attr-defined]
        feature(lookback=0, scale="price", **parameters)(original)  # type: ignore[arg-type]
        level = relative_to_close("line", level=True)
        first = get_feature(level).definition_hash
        FEATURES.pop(level)
        assert get_feature(relative_to_close("line", level=False)).definition_hash != first
        return first

    def one(close: np.ndarray) -> np.ndarray:
        return close * 1.0

    def two(close: np.ndarray) -> np.ndarray:
        return close * 2.0

    def many(close: np.ndarray, factor: float) -> np.ndarray:
        return close * factor

    hashes = [form_of(one), form_of(two), form_of(many, factor=1.0), form_of(many, factor=2.0)]
    assert len(set(hashes)) == 4
    assert form_of(one) == hashes[0]


def test_a_form_of_a_feature_without_the_close(registry: None) -> None:
    @feature(lookback=2, scale="price", factor=3.0)
    def triple_high(high: np.ndarray, factor: float) -> np.ndarray:
        return high * factor

    name = relative_to_close("triple_high", level=True)
    candles = random_candles(1, 30)
    frame = candles.frame
    expected = (frame["high"] * 3 / frame["close"] - 1)[2:]
    np.testing.assert_array_equal(feature_matrix(candles, [name])[name][2:], expected)
    assert get_feature(name).inputs == ("close", "high")
    assert relative_to_close("triple_high", level=True) == name  # again: the same feature


def test_what_is_no_price_is_refused() -> None:
    with pytest.raises(FeatureError, match="'rsi_14' is of scale 'bounded'; expected 'price'"):
        relative_to_close("rsi_14", level=True)
    with pytest.raises(FeatureError, match="no feature 'ema_21'"):
        relative_to_close("ema_21", level=True)


def test_a_market_in_other_units_is_another_market() -> None:
    candles = random_candles(1, 30)
    assert scaled(candles, 2.0, 1.0).sha256 != replace(candles).sha256
