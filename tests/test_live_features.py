"""Bar by bar comes out what the batch says: each of the 97, on made-up, broken and real markets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numba
import numpy as np
import pandas as pd
import pytest
from feature_markets import cut, degenerate_candles, random_candles, same
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_ml import live_averages, live_step, live_windows
from crypto_ml.candles import Candles, load_candles
from crypto_ml.catalogue import CATALOGUE_FEATURES
from crypto_ml.errors import CandlesError, FeatureError
from crypto_ml.features import DEFAULT_FEATURES, feature_matrix, get_feature
from crypto_ml.live_features import LIVE_FEATURES, LiveFeatures, live_engine_hash
from crypto_ml.live_step import COMPUTED, LIVE_DEFINITIONS, RULES, record_definitions

HOUR = 3_600_000
START = 500_000 * HOUR
RECURSIVE = {  # TA-Lib's averages; its compiler may join a product and a sum into one rounding
    *("ema_5", "ema_10", "ema_20", "ema_50", "ema_100", "ema_200", "trix_14"),
    *("rsi_14", "rsi_oversold", "rsi_overbought", "atr_14", "keltner_upper", "keltner_lower"),
    *("macd", "macd_signal", "macd_histogram", "macd_cross_up", "macd_cross_down"),
    *("adx_14", "plus_di_14", "minus_di_14", "trend_direction", "mass_index"),
}
# numpy's exponential is not that of the C library; its plain sum of a single window adds in pairs
NEAR = {"level_strength", "cci_20"}


def step_of(candles: Candles) -> int:
    return int(candles.timeframe / pd.Timedelta("1ms"))


def opened(
    candles: Candles, names: Sequence[str] = LIVE_FEATURES, max_gap: int = 3
) -> LiveFeatures:
    return LiveFeatures(names, timeframe_ms=step_of(candles), max_gap=max_gap)


def streamed(
    candles: Candles, names: Sequence[str] = LIVE_FEATURES, max_gap: int = 3
) -> np.ndarray:
    """The features of every bar, each taken with `update`."""
    live = opened(candles, names, max_gap)
    columns = [values.tolist() for values in candles.arrays().values()]
    return np.array([live.update(*bar) for bar in zip(*columns, strict=True)])


def scale_of(candles: Candles, name: str) -> np.ndarray:
    """What a difference is measured by, where the value itself is smaller."""
    if get_feature(name).scale == "price":
        return candles.frame["high"].rolling(200, min_periods=1).max().to_numpy()
    if get_feature(name).scale == "volume":
        return candles.frame["volume"].rolling(40, min_periods=1).max().to_numpy()
    return np.ones(len(candles))


def differences(candles: Candles, live: np.ndarray, max_gap: int = 3) -> dict[str, float]:
    """The largest difference from the batch of each feature; NaN stands at the same places."""
    batch = feature_matrix(candles, LIVE_FEATURES, max_gap)
    assert np.array_equal(np.isnan(live), batch.isna().to_numpy())
    found = {}
    for place, name in enumerate(LIVE_FEATURES):
        values = batch[name].to_numpy()
        scale = np.maximum(np.abs(values), scale_of(candles, name))
        apart = np.abs(live[:, place] - values) / np.where(scale == 0, 1.0, scale)
        found[name] = float(np.nanmax(apart, initial=0.0))
    return found


def agree(candles: Candles, max_gap: int = 3) -> None:
    found = differences(candles, streamed(candles, max_gap=max_gap), max_gap)
    assert {name: size for name, size in found.items() if size > 1e-12} == {}
    assert {name for name, size in found.items() if size} <= RECURSIVE | NEAR


# ---- the names


def test_the_live_features_are_the_catalogue() -> None:
    assert LIVE_FEATURES == CATALOGUE_FEATURES
    assert sorted(COMPUTED) == sorted(CATALOGUE_FEATURES)


def test_the_definitions_are_those_of_the_batch(tmp_path: Path) -> None:
    record_definitions(tmp_path / "now.json")
    now = {item["name"]: item for item in json.loads((tmp_path / "now.json").read_text())}
    changed = [name for name in now if now[name] != LIVE_DEFINITIONS.get(name)]
    assert not changed, (
        "these definitions have changed since their live twins were compared with them; once the "
        "comparison passes, call crypto_ml.live_step.record_definitions()"
    )


def test_parameters_that_the_kernels_repeat() -> None:
    for name, value in (
        ("rsi_14", live_averages.RSI_FLAT),
        ("mass_index", live_averages.MASS_FLAT),
        ("adx_14", live_averages.DIRECTION_FLAT),
    ):
        assert get_feature(name).parameters["flat_after"] == value


# ---- live is batch


@st.composite
def markets(draw: st.DrawFn) -> Candles:
    """Random bars with stretches that are missing, stand still, trade nothing, or jump."""
    candles = random_candles(
        draw(st.integers(0, 2**32 - 1)),
        draw(st.sampled_from([90, 700, 1750])),
        price=draw(st.sampled_from([1e-6, 100.0, 1e7])),
        volatility=draw(st.sampled_from([1e-4, 0.01, 0.05])),
        tick=draw(st.sampled_from([0.0, 1e-8])),
        still=draw(st.sampled_from([0.0, 0.3])),
        timeframe=draw(st.sampled_from(["1m", "1h", "1d"])),
    )
    frame, bars = candles.frame.copy(), len(candles)
    kinds = st.sampled_from(["gap", "flat", "silent", "jump"])
    spots = st.tuples(kinds, st.integers(1, bars - 2), st.integers(1, 420))
    missing = np.zeros(bars, dtype=bool)
    for kind, at, length in draw(st.lists(spots, max_size=5)):
        part = slice(at, at + length)
        if kind == "gap":
            missing[at : at + length % 9] = True
        elif kind == "flat":
            frame.iloc[part, :4] = frame["close"].iloc[at]
        elif kind == "silent":
            frame.iloc[part, 4] = 0.0
        else:
            frame.iloc[part, :4] *= draw(st.sampled_from([0.02, 3.0, 50.0]))
    missing[-1] = False
    return cut(replace(candles, frame=frame), ~missing)


@given(markets(), st.integers(0, 6))
@settings(max_examples=30, deadline=None)
def test_live_equals_batch(candles: Candles, max_gap: int) -> None:
    agree(candles, max_gap)


def test_live_equals_batch_on_degenerate_markets() -> None:
    for candles in degenerate_candles(800).values():
        agree(candles)


@pytest.mark.parametrize(
    "name", ["binance_BTCUSDT_1h", "binance_FTTUSDT_1h", "coinbase_BANDUSD_5m"]
)
def test_live_equals_batch_on_real_candles(real_candles_folder: Path, name: str) -> None:
    candles = load_candles(real_candles_folder / f"{name}.parquet")
    agree(cut(candles, slice(-9000, None)))


@pytest.mark.parametrize("missing", [3, 4])
def test_windows_start_anew_after_more_than_max_gap_missing_bars(missing: int) -> None:
    whole = random_candles(5, 60)
    candles = cut(whole, np.r_[:40, 40 + missing : 60])
    agree(candles)
    live = opened(candles, ["zscore"])
    live.load(*candles.arrays().values())
    assert live.bars == (60 - missing if missing == 3 else 60 - 40 - missing)
    assert np.isnan(streamed(candles, ["zscore"])[-1, 0]) == (missing == 4)


def test_without_the_compiler_the_numbers_are_the_same(tmp_path: Path) -> None:
    lively = random_candles(8, 880, tick=0.01)
    frame = lively.frame.copy()
    frame.iloc[80:470, :4] = frame["close"].iloc[79]
    candles = cut(replace(lively, frame=frame), np.r_[:20, 30:880])
    np.savez(tmp_path / "bars.npz", **candles.arrays())
    code = (
        "import sys, numpy as np\n"
        "from crypto_ml.live_features import LIVE_FEATURES, LiveFeatures\n"
        f"bars = np.load({str(tmp_path / 'bars.npz')!r})\n"
        "live = LiveFeatures(LIVE_FEATURES, timeframe_ms=3_600_000)\n"
        "columns = [bars[name].tolist() for name in bars.files]\n"
        f"np.save({str(tmp_path / 'rows.npy')!r}, [live.update(*bar) for bar in zip(*columns)])\n"
    )
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    plain, compiled = np.load(tmp_path / "rows.npy"), streamed(candles)
    assert np.array_equal(np.isnan(plain), np.isnan(compiled))
    assert np.nanmax(np.abs(plain - compiled) / np.maximum(np.abs(plain), 1.0)) <= 1e-12
    assert max(differences(candles, plain).values()) <= 1e-12


# ---- the object


def test_names_choose_the_values_and_their_order() -> None:
    candles = random_candles(3, 420)
    whole = streamed(candles)
    names = [*reversed(DEFAULT_FEATURES), "hour"]
    same(streamed(candles, names), whole[:, [LIVE_FEATURES.index(name) for name in names]])
    live = opened(candles, DEFAULT_FEATURES)
    assert live.names == DEFAULT_FEATURES
    assert live.warm_up == max(get_feature(name).lookback for name in DEFAULT_FEATURES)


def test_loading_is_updating() -> None:
    candles = random_candles(4, 1650)
    rows, arrays = streamed(candles), list(candles.arrays().values())
    live = opened(candles)
    assert live.last is None and live.bars == 0
    assert np.isnan(live.load(*(values[:0] for values in arrays))).all()
    assert live.last is None and live.bars == 0
    same(live.load(*(values[:700] for values in arrays)), rows[699])
    same(live.load(*(values[700:-1] for values in arrays)), rows[-2])
    assert live.bars == 1649
    same(live.update(*(values[-1].item() for values in arrays)), rows[-1])
    assert live.last == arrays[0][-1] and live.bars == 1650


def test_a_row_is_the_callers_own() -> None:
    live = LiveFeatures(["close"], timeframe_ms=HOUR)
    first = live.update(START, 5.0, 6.0, 4.0, 5.5, 1.0)
    live.update(START + HOUR, 5.0, 6.0, 4.0, 4.5, 1.0)
    assert first.tolist() == [5.5]


def test_two_objects_do_not_touch() -> None:
    candles, other = random_candles(1, 500), random_candles(2, 500)
    lives = opened(candles), opened(other)
    bars = [zip(*c.arrays().values(), strict=True) for c in (candles, other)]
    rows = [
        [live.update(*bar) for live, bar in zip(lives, pair, strict=True)]
        for pair in zip(*bars, strict=True)
    ]
    same([row[0] for row in rows], streamed(candles))
    same([row[1] for row in rows], streamed(other))


SOUND = (START + 30 * HOUR, 10.0, 11.0, 9.0, 10.5, 3.0)
UNSOUND = [
    *((0, (SOUND[0], value, 11.0, 9.0, 10.5, 3.0)) for value in (np.nan, np.inf)),
    (0, (*SOUND[:4], np.nan, 3.0)),
    (0, (*SOUND[:4], np.inf, 3.0)),
    (0, (*SOUND[:5], np.nan)),
    (1, (SOUND[0], 10.0, 11.0, 0.0, 10.5, 3.0)),
    (1, (*SOUND[:4], -10.5, 3.0)),
    (2, (SOUND[0], 10.0, 10.4, 9.0, 10.5, 3.0)),
    (3, (SOUND[0], 10.0, 11.0, 10.1, 10.5, 3.0)),
    (4, (*SOUND[:5], -1.0)),
    (5, (SOUND[0] * 1_000_000, *SOUND[1:])),
    (5, (-HOUR, *SOUND[1:])),
    (6, (SOUND[0] + 60_000, *SOUND[1:])),
    (7, (START + 29 * HOUR, *SOUND[1:])),
    (7, (START, *SOUND[1:])),
]


@pytest.mark.parametrize(("rule", "bar"), UNSOUND)
def test_an_unsound_bar_is_refused_and_changes_nothing(rule: int, bar: tuple[float, ...]) -> None:
    rows = [(START + hour * HOUR, *SOUND[1:]) for hour in range(30)]
    history = [np.array(column) for column in zip(*rows, strict=True)]
    live, twin = (LiveFeatures(LIVE_FEATURES, timeframe_ms=HOUR) for _ in range(2))
    same(live.load(*history), twin.load(*history))
    with pytest.raises(CandlesError, match=RULES[rule]) as caught:
        live.update(*bar)
    assert "the last one opened at 2027-01-16 13:00:00 UTC" in str(caught.value)
    many = [np.array(column) for column in zip(SOUND, bar, strict=True)]
    if rule != 7:  # which in this company is sound, or the refused one's fault
        with pytest.raises(CandlesError, match=RULES[rule]):
            live.load(*many)
    assert live.last == twin.last
    same(live.update(*SOUND), twin.update(*SOUND))


def test_the_first_bar_may_be_refused() -> None:
    live = LiveFeatures(["close"], timeframe_ms=HOUR)
    with pytest.raises(CandlesError, match="0 or less") as caught:
        live.update(START, 0.0, 11.0, 0.0, 10.0, 1.0)
    assert "the last one" not in str(caught.value)
    assert live.last is None and live.bars == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: {**arrays, "timestamp": arrays["timestamp"].astype(float)},
        lambda arrays: {**arrays, "timestamp": arrays["timestamp"].astype("M8[ms]")},
        lambda arrays: {**arrays, "close": arrays["close"][1:]},
        lambda arrays: {name: values[:, None] for name, values in arrays.items()},
    ],
)
def test_arrays_that_are_no_bars_are_refused(change: object) -> None:
    candles = random_candles(1, 30)
    with pytest.raises(CandlesError, match="six arrays of one length"):
        opened(candles).load(**change(candles.arrays()))  # type: ignore[operator]


def test_a_value_that_is_not_finite_is_no_answer() -> None:
    live = LiveFeatures(["close", "mfi_14"], timeframe_ms=HOUR)
    for bar in range(14):
        assert np.isnan(live.update(START + bar * HOUR, 1e10, 1e10, 1e10, 1e10 + bar * 0, 1e300)[1])
    with pytest.raises(FeatureError, match="'mfi_14' is nan at 2027-01-15 22:00:00 UTC"):
        live.update(START + 14 * HOUR, 2e10, 2e10, 2e10, 2e10, 1e300)
    assert live.last == START + 14 * HOUR


@pytest.mark.parametrize(
    ("names", "arguments", "words"),
    [
        ("close", {}, "list of feature names"),
        ([], {}, "list of feature names"),
        (["close", "rsi_15"], {}, "'rsi_15' cannot be computed bar by bar; did you mean 'rsi_14'"),
        (["close", "close"], {}, "'close' is named more than once"),
        (["close"], {"timeframe_ms": 0}, "timeframe_ms=0"),
        (["close"], {"timeframe_ms": 3.6e6}, "timeframe_ms=3600000.0"),
        (["close"], {"max_gap": -1}, "max_gap=-1"),
        (["close"], {"max_gap": True}, "max_gap=True"),
        (["close"], {"definitions": {"close": "ab" * 32}}, "defined by abababababab"),
        (["close"], {"definitions": {}}, "defined by unknown"),
    ],
)
def test_what_cannot_be_computed_is_refused(
    names: Sequence[str], arguments: dict[str, object], words: str
) -> None:
    with pytest.raises(FeatureError, match=words):
        LiveFeatures(names, **{"timeframe_ms": HOUR, **arguments})  # type: ignore[arg-type]


def test_the_definitions_of_a_model_are_compared() -> None:
    hashes = {name: get_feature(name).definition_hash for name in DEFAULT_FEATURES}
    live = LiveFeatures(DEFAULT_FEATURES, timeframe_ms=HOUR, definitions=hashes)
    assert live.names == DEFAULT_FEATURES


# ---- kept on disk, and light


def test_stored_code_is_looked_up_by_the_hash_of_all_kernels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def constants() -> list[object]:
        function = live_step.compiled_step.__wrapped__().py_func
        return [cell.cell_contents for cell in function.__closure__]

    before = live_engine_hash()
    assert int(before[:15], 16) in constants()
    for name in live_step.MODULES:
        source = Path(live_step.__file__).with_name(f"{name}.py").read_bytes()
        (tmp_path / f"{name}.py").write_bytes(source)
    (tmp_path / "live_features.json").write_bytes(live_step.DEFINITIONS_FILE.read_bytes())
    monkeypatch.setattr(live_step, "DEFINITIONS_FILE", tmp_path / "live_features.json")
    assert live_engine_hash() == before
    with (tmp_path / "live_averages.py").open("a") as file:
        file.write("# another kernel")
    assert int(live_engine_hash()[:15], 16) in constants()
    assert live_engine_hash() != before


def test_where_nothing_can_be_kept_it_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    njit = numba.njit

    def without_a_folder(*arguments: object, cache: bool = False, **options: object) -> object:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(*arguments, **options)

    monkeypatch.setattr(numba, "njit", without_a_folder)
    assert live_step.compiled_step.__wrapped__().py_func.__name__ == "advance"


def test_neither_pandas_nor_talib_nor_sklearn() -> None:
    code = (
        "import sys\n"
        "from crypto_ml.live_features import LIVE_FEATURES, LiveFeatures\n"
        "assert not {'pandas', 'talib', 'sklearn'} & set(sys.modules)\n"
        "live = LiveFeatures(LIVE_FEATURES, timeframe_ms=3_600_000)\n"
        "live.update(1_800_000_000_000, 5.0, 6.0, 4.0, 5.0, 1.0)\n"
        "assert not {'pandas', 'talib', 'sklearn'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_windows_are_no_longer_than_what_is_kept() -> None:
    assert live_windows.KEPT >= 219 + 1 and live_windows.CAPACITY == 2 * live_windows.KEPT
