"""The twelve in one pass are the twelve functions, and blocks are the whole, bit for bit."""

from __future__ import annotations

import inspect
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from feature_markets import cut, degenerate_candles, random_candles, same

from crypto_ml import one_pass, state_features, structure_features, windows
from crypto_ml.candles import Candles
from crypto_ml.catalogue import CATALOGUE_FEATURES
from crypto_ml.errors import FeatureError
from crypto_ml.feature_blocks import feature_blocks
from crypto_ml.features import DEFAULT_FEATURES, feature_matrix, get_feature, warm_up
from crypto_ml.one_pass import ONE_PASS, carried_average, fill_segment

MARKETS = {
    **degenerate_candles(),
    "random": random_candles(0, 2500),
    "with gaps": cut(random_candles(1, 2500), np.r_[0:30, 40:500, 510:560, 600:2500]),
    "short": random_candles(2, 51),
}


def by_function(candles: Candles, name: str) -> np.ndarray:
    return get_feature(name).compute(candles.arrays())


# ---- one pass


def test_the_names_and_the_numbers_are_those_of_the_definitions() -> None:
    assert ONE_PASS == DEFAULT_FEATURES
    parameters = {name: dict(get_feature(name).parameters) for name in ONE_PASS}
    assert parameters["rsi_14"].pop("flat_after") == get_feature("rsi_14").lookback
    assert parameters["rsi_14"] == parameters["atr_14"] == {"period": one_pass.WILDER}
    macd = {"fast": one_pass.FAST, "slow": one_pass.SLOW}
    assert parameters["macd"] == macd
    assert parameters["macd_signal"] == macd | {"signal": one_pass.SMOOTH}
    assert parameters["ema_20"] == {"period": one_pass.SHORT}
    assert parameters["ema_50"] == {"period": one_pass.LONG}
    assert parameters["zscore"] == parameters["volume_ratio"] == {"window": one_pass.WINDOW}
    assert parameters["bb_position"] == {"window": one_pass.WINDOW, "deviations": 2.0}


@pytest.mark.parametrize("market", MARKETS)
def test_the_pass_is_the_twelve_functions(market: str) -> None:
    candles = MARKETS[market]
    if market == "with gaps":
        candles = cut(candles, slice(540, None))
    matrix = feature_matrix(candles)
    for name in DEFAULT_FEATURES:
        lookback = get_feature(name).lookback
        same(matrix[name].to_numpy()[lookback:], by_function(candles, name)[lookback:])


@pytest.mark.parametrize("stretch", [64, 333, 1000])
def test_the_stretches_leave_no_seam(stretch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    candles = MARKETS["with gaps"]
    whole = feature_matrix(candles)
    monkeypatch.setattr(one_pass, "STRETCH", stretch)
    same(feature_matrix(candles), whole)


def test_a_number_does_not_depend_on_its_company() -> None:
    candles = MARKETS["with gaps"]
    whole = feature_matrix(candles)
    for name in DEFAULT_FEATURES:
        same(feature_matrix(candles, [name])[name], whole[name])
    mixed = feature_matrix(candles, ["stoch_k", "zscore", "ema_5", "atr_14"])
    same(mixed[["zscore", "atr_14"]], whole[["zscore", "atr_14"]])


@pytest.mark.parametrize(
    ("column", "value", "name"),
    [
        ("close", 1e308, "macd"),
        ("close", np.inf, "close"),
        ("volume", np.inf, "volume"),
        ("high", np.inf, "atr_14"),
    ],
)
@pytest.mark.parametrize("at", [0, 30, 1200])
def test_what_is_not_finite_is_refused(column: str, value: float, name: str, at: int) -> None:
    candles = MARKETS["random"]
    frame = candles.frame.copy()
    frame.iloc[at : at + 25, list(frame.columns).index(column)] = value
    broken = replace(candles, frame=frame)
    with (
        np.errstate(all="ignore"),
        pytest.raises(FeatureError, match="every value must be finite"),
    ):
        feature_matrix(broken, [name, "stoch_k"])


def test_the_first_bars_are_looked_at() -> None:
    candles = random_candles(3, 40)
    frame = candles.frame.copy()
    frame.iloc[3, 4] = np.inf
    with pytest.raises(FeatureError, match="'volume' is inf"):
        feature_matrix(replace(candles, frame=frame), ["volume"])


@pytest.mark.parametrize("length", [0, 1, 4, 5, 9])
def test_an_average_of_few_values(length: int) -> None:
    values = np.arange(1.0, length + 1)
    average = carried_average(values, 5, 0.25)
    expected = [np.nan] * 4 + [3.0, 3.75, 4.5625, 5.421875, 6.31640625]
    same(average, expected[:length])


# ---- the loops themselves, not compiled


def python(function: object) -> object:
    return inspect.unwrap(function)  # type: ignore[arg-type]


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every kernel as it is written."""
    for module in (windows, one_pass, structure_features, state_features):
        for name, value in list(vars(module).items()):
            if hasattr(value, "py_func") and value.__module__ == module.__name__:
                monkeypatch.setattr(module, name, value.py_func)
    for name in ("fill_means", "fill_deviations"):
        monkeypatch.setattr(one_pass, name, getattr(windows, name))


def test_the_kernels_do_what_is_written(plain: None) -> None:
    candles = random_candles(4, 450, still=0.2)
    slow = feature_matrix(candles)
    names = ("level_strength", "support_distance", "volatility_regime", "cci_20", "obv_20")
    others = feature_matrix(candles, names)
    pytest.MonkeyPatch().undo()
    EXPECTED["slow"] = (candles, slow, others)


EXPECTED: dict[str, tuple[Candles, pd.DataFrame, pd.DataFrame]] = {}


def test_and_so_do_the_compiled_ones() -> None:
    candles, slow, others = EXPECTED["slow"]
    same(feature_matrix(candles), slow)
    fast = feature_matrix(candles, tuple(others.columns))
    np.testing.assert_allclose(fast, others, rtol=1e-14)


# ---- blocks


@pytest.mark.parametrize("block", [97, 700, 5000])
def test_blocks_are_the_whole(block: int) -> None:
    candles = MARKETS["with gaps"]
    whole = feature_matrix(candles)
    joined = pd.concat(feature_blocks(candles, block=block))
    assert joined.index.equals(whole.index)
    for name in ("close", "volume", "returns_1", "bb_position", "zscore", "volume_ratio"):
        same(joined[name], whole[name])
    scale = np.maximum(whole.abs(), candles.frame[["close"]].to_numpy())
    assert np.array_equal(joined.isna(), whole.isna())
    assert ((joined - whole).abs() <= 1e-12 * scale).where(whole.notna(), True).all(axis=None)


def test_blocks_of_the_catalogue() -> None:
    candles = random_candles(5, 5500)
    names = [name for name in CATALOGUE_FEATURES if name != "ema_200"]
    whole = feature_matrix(candles, names)
    joined = pd.concat(feature_blocks(candles, names, block=2000))
    scale = np.maximum(whole.abs(), candles.frame[["close"]].to_numpy())
    assert np.array_equal(joined.isna(), whole.isna())
    assert ((joined - whole).abs() <= 1e-12 * scale).where(whole.notna(), True).all(axis=None)


def test_parts_of_a_history() -> None:
    candles = random_candles(6, 1500)
    parts = [cut(candles, slice(at, at + 400)) for at in range(0, 1500, 400)]
    same(pd.concat(feature_blocks(iter(parts), block=300)), pd.concat(feature_blocks(candles)))
    with pytest.raises(FeatureError, match="in the order of time"):
        list(feature_blocks([parts[1], parts[0]]))


@pytest.mark.parametrize("block", [0, 1.5, True])
def test_a_block_that_is_none(block: int) -> None:
    with pytest.raises(FeatureError, match="expected a whole number of bars"):
        list(feature_blocks(MARKETS["short"], block=block))


def test_one_block_at_a_time() -> None:
    taken = []

    def parts() -> object:
        for at in range(0, 1200, 400):
            taken.append(at)
            yield cut(MARKETS["random"], slice(at, at + 400))

    blocks = feature_blocks(parts(), ["zscore"])  # type: ignore[arg-type]
    assert len(next(blocks)) == 400
    assert taken == [0]
    assert warm_up(["zscore"]) == 19


def test_segments_of_one_bar() -> None:
    candles = cut(random_candles(7, 600), np.r_[0:1, 10:11, 20:600])
    table = np.full((12, len(candles)), np.nan)
    assert fill_segment(candles.arrays(), 0, 1, 263, table)
    same(feature_matrix(candles)[2:], feature_matrix(cut(candles, slice(2, None))))
