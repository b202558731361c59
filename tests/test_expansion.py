"""What is joined to a row was known then, was fresh, and is what it says it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from feature_markets import cut, random_candles, same
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_ml.candles import Candles, Market, load_candles, resample_candles, timeframe_delta
from crypto_ml.errors import CandlesError, CryptoMLError, FeatureError
from crypto_ml.expansion import (
    expand_features,
    expanded_names,
    expansion_schema,
    expansion_warm_up,
)
from crypto_ml.features import feature_matrix, feature_schema
from crypto_ml.joins import closed_values

NAMES = ["returns_1", "volume_ratio", "close"]
few = settings(max_examples=15, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def other_market(seed: int, bars: int = 900, timeframe: str = "1h") -> Candles:
    candles = random_candles(seed, bars, timeframe=timeframe)
    return replace(candles, market=Market("test", "ETHUSDT", timeframe))


def changed_after(candles: Candles, moment: pd.Timestamp, how: str, seed: int) -> Candles:
    """Everything that is not over at the moment is changed, or gone."""
    later = np.asarray(candles.known_at > moment)
    frame, rng = candles.frame.copy(), np.random.default_rng(seed)
    count = int(later.sum())
    if how == "noise":
        frame.loc[later] = frame.loc[later].mul(np.exp(rng.normal(0, 0.3, count)), axis=0)
    elif how == "scale":
        frame.loc[later] *= 100
    elif how == "reverse":
        frame.loc[later] = frame.loc[later].to_numpy()[::-1]
    elif how == "holes":
        keep = ~later | (rng.random(len(later)) < 0.7)
        frame = frame[keep]
    else:
        frame = frame[~later]
    return replace(candles, frame=frame)


# ---- values


def by_hand(base: Candles, column: Candles, name: str, lag: int) -> np.ndarray:
    """For each row of the base, search the last bar of the column's that had closed."""
    values = feature_matrix(column, [name])[name].to_numpy()
    closes, found = column.known_at.asi8, []
    for known in base.known_at.asi8:
        closed = np.flatnonzero(closes <= known)
        at = closed[-1] - lag if len(closed) else -1
        found.append(values[at] if at >= 0 else np.nan)
    return np.array(found)


@settings(max_examples=4, deadline=None)
@given(seeds, st.sampled_from(["2h", "4h", "1d"]), st.sampled_from([1, 2, 7]))
def test_columns_are_what_they_say(seed: int, timeframe: str, lag: int) -> None:
    base, other = random_candles(seed, 220), other_market(seed + 1, 220)
    frame = expand_features(
        base, NAMES, timeframes=[timeframe], lags=[lag], others={"ETHUSDT": other}
    ).frame
    for name in NAMES:
        same(frame[name], feature_matrix(base, [name])[name])
        for suffix, column in (
            ("", base),
            (f"_{timeframe}", resample_candles(base, timeframe)),
            ("_ethusdt", other),
            (f"_ethusdt_{timeframe}", resample_candles(other, timeframe)),
        ):
            same(frame[f"{name}{suffix}"], by_hand(base, column, name, 0))
            same(frame[f"{name}{suffix}_lag_{lag}"], by_hand(base, column, name, lag))


@pytest.mark.parametrize("timeframe", ["5m", "15m", "1h", "4h"])
def test_other_markets_of_any_timeframe(timeframe: str) -> None:
    base = random_candles(1, 200)
    bars = int(pd.Timedelta("200h") / timeframe_delta(timeframe))
    other = other_market(2, bars, timeframe)
    expanded = expand_features(base, NAMES, others={"ETH": other})
    for name in NAMES:
        same(expanded.frame[f"{name}_eth"], by_hand(base, other, name, 0))
    assert (expanded.available_at["eth"].dropna() <= base.known_at[-1]).all()


def test_a_timeframe_of_the_others_own_is_taken_as_it_is() -> None:
    base, other = random_candles(1, 200), other_market(2, 50, "4h")
    frame = expand_features(base, NAMES, timeframes=["4h"], others={"ETH": other}).frame
    for name in NAMES:
        same(frame[f"{name}_eth_4h"], frame[f"{name}_eth"])


# ---- the future


@few
@given(
    seeds,
    st.integers(150, 590),
    st.sampled_from(["noise", "scale", "reverse", "cut", "holes"]),
    st.sampled_from(["1h", "15m", "4h"]),
)
def test_another_future_of_either_market_changes_nothing_before(
    seed: int, row: int, how: str, timeframe: str
) -> None:
    base = random_candles(seed, 600)
    bars = int(pd.Timedelta("600h") / timeframe_delta(timeframe))
    other = other_market(seed + 1, bars, timeframe)
    moment = base.known_at[row]
    given_ = {"timeframes": ["4h", "1d"], "lags": [1, 2]}
    before = expand_features(base, NAMES, others={"ETH": other}, **given_)
    after = expand_features(
        changed_after(base, moment, how, seed),
        NAMES,
        others={"ETH": changed_after(other, moment, how, seed)},
        **given_,
    )
    same(after.frame[: row + 1], before.frame[: row + 1])
    for source in before.available_at:
        known = before.available_at[source]
        assert (known.isna() | (known <= base.known_at)).all()


def by_open(base: Candles, frame: pd.DataFrame) -> pd.DataFrame:
    return frame.reindex(base.index, method="ffill")


def honest(base: Candles) -> pd.DataFrame:
    return expand_features(base, ["close"], timeframes=["4h"]).frame


def naive(base: Candles) -> pd.DataFrame:
    return by_open(base, resample_candles(base, "4h", missing="keep").frame)


def naive_complete(base: Candles) -> pd.DataFrame:
    return by_open(base, resample_candles(base, "4h").frame)


def naive_pandas(base: Candles) -> pd.DataFrame:
    return by_open(base, base.frame.resample("4h").agg({"close": "last", "high": "max"}))


@pytest.mark.parametrize(
    ("join", "leaks"), [(honest, 0), (naive, 36), (naive_complete, 36), (naive_pandas, 36)]
)
def test_an_unfinished_bar_is_caught(join: Callable[[Candles], pd.DataFrame], leaks: int) -> None:
    """Of 48 moments, the naive joins leak at the 36 that are not the end of a 4-hour bar."""
    base = random_candles(1, 300)
    before, caught = join(base), 0
    for row in range(200, 248):
        after = join(changed_after(base, base.known_at[row], "scale", 0))
        caught += not after[: row + 1].equals(before[: row + 1])
    assert caught == leaks


# ---- history


@few
@given(seeds, st.integers(1, 200))
def test_no_value_depends_on_where_history_begins(seed: int, start: int) -> None:
    base, other = random_candles(seed, 600), other_market(seed + 1, 600)
    given_ = {"timeframes": ["4h"], "lags": [3]}
    warm = expansion_warm_up(base, NAMES, others={"ETH": other}, **given_)
    whole = expand_features(base, NAMES, others={"ETH": other}, **given_).frame[start:]
    part = expand_features(
        cut(base, slice(start, None)),
        NAMES,
        others={"ETH": cut(other, slice(start, None))},
        **given_,
    ).frame
    assert part[warm:].notna().all(axis=None)
    same(part[warm:], whole[warm:])


@few
@given(st.integers(0, 47), st.sampled_from(["2h", "4h", "6h", "1d"]), st.sampled_from([0, 1, 5]))
def test_the_warm_up_is_enough_and_no_more_than_a_bar_too_much(
    start: int, timeframe: str, lag: int
) -> None:
    base = cut(random_candles(1, 900), slice(start, None))
    given_ = {"timeframes": [timeframe], "lags": [lag] if lag else []}
    frame = expand_features(base, NAMES, **given_).frame
    warm = expansion_warm_up(base, NAMES, **given_)
    first = int(np.flatnonzero(frame.notna().all(axis=1))[0])
    assert first <= warm < first + timeframe_delta(timeframe) / base.timeframe
    assert frame[first:].notna().all(axis=None)


@pytest.mark.parametrize(
    ("own", "expected"),
    [("1h", 19), ("4h", 19 * 4 + 3 + 3), ("1d", 19 * 24 + 23 + 23), ("15m", 4), ("5m", 1)],
)
def test_warm_up_in_bars_of_the_base(own: str, expected: int) -> None:
    base, other = Market("test", "AAABBB", "1h"), Market("test", "ETHUSDT", own)
    assert expansion_warm_up(base, ["volume_ratio"], others={"ETH": other}) == max(19, expected)
    schema = expansion_schema(base, ["volume_ratio"], others={"ETH": other})
    assert [item["lookback"] for item in schema] == [19, expected]
    if own == "4h":
        assert expansion_warm_up(base, ["volume_ratio"], timeframes=["4h"]) == expected


# ---- gaps


def test_a_lag_does_not_cross_a_gap() -> None:
    candles = random_candles(3, 120)
    three, four = (cut(candles, np.r_[0:60, 60 + missing : 120]) for missing in (3, 4))
    near = expand_features(three, ["close"], lags=[1, 5]).frame
    far = expand_features(four, ["close"], lags=[1, 5]).frame
    assert near["close_lag_1"].isna().sum() == 1
    assert near["close_lag_5"].isna().sum() == 5
    assert far["close_lag_1"].isna().sum() == 2
    assert far["close_lag_5"].isna().sum() == 10
    assert near["close_lag_1"].iloc[60] == near["close"].iloc[59]
    wide = expand_features(four, ["close"], lags=[1, 5], max_gap=4).frame
    assert wide["close_lag_5"].isna().sum() == 5


def test_a_longer_bar_is_built_only_if_whole() -> None:
    candles = random_candles(3, 96)
    holed = cut(candles, np.r_[0:49, 50:96])  # an hour of the 4-hour bar that opens at hour 48
    expanded = expand_features(holed, ["close"], timeframes=["4h"])
    value, at = expanded.frame["close_4h"], expanded.available_at["4h"]
    hour = holed.index[0] + pd.Timedelta("1h") * np.arange(97)
    for row in (50, 51, 52, 53, 54):
        assert value[hour[row]] == candles.frame["close"].iloc[47], row
        assert at[hour[row]] == hour[48]
    assert value[hour[55]] == candles.frame["close"].iloc[55]


@pytest.mark.parametrize("max_gap", [0, 1, 3])
def test_a_stale_value_is_none(max_gap: int) -> None:
    base = random_candles(1, 200)
    other = cut(other_market(2, 200), np.r_[0:50, 60:200])
    expanded = expand_features(base, ["close"], others={"ETH": other}, max_gap=max_gap)
    missing = np.flatnonzero(expanded.frame["close_eth"].isna())
    assert missing.tolist() == list(range(50 + max_gap, 60))
    assert expanded.without_partner == {"eth": pytest.approx(len(missing) / 200)}
    longer = expand_features(base, ["close"], timeframes=["4h"], max_gap=max_gap)
    assert longer.frame["close_4h"][3:].notna().all()  # not stale before the next one is due


def test_a_gap_of_the_base_leaves_the_other_market_alone() -> None:
    base = cut(random_candles(1, 400), np.r_[0:200, 230:400])
    other = other_market(2, 400)
    frame = expand_features(base, ["volume_ratio"], others={"ETH": other}).frame
    assert frame["volume_ratio"].isna().sum() == 38
    assert frame["volume_ratio_eth"].isna().sum() == 19


def test_markets_that_do_not_overlap_are_refused() -> None:
    other = other_market(2, 300)
    far = replace(other, frame=other.frame.set_index(other.index + pd.Timedelta("900D")))
    with pytest.raises(
        FeatureError, match=r"ETHUSDT.* was known, and fresh, at any bar of Candles"
    ):
        expand_features(random_candles(1, 100), ["close"], others={"ETH": far})


def test_longer_bars_that_cannot_be_built_are_refused() -> None:
    base = random_candles(1, 100)
    with pytest.raises(CandlesError, match="bars of 1h do not make up bars of 15m"):
        expand_features(base, ["close"], timeframes=["15m"])
    with pytest.raises(CandlesError, match="holds no complete bar of 1w"):
        expand_features(base, ["close"], timeframes=["1w"])


# ---- names and definitions


def test_names() -> None:
    assert expanded_names(["a", "b"]) == ["a", "b"]
    names = expanded_names(["a"], ["4h"], [1, 2], ["ETHUSDT"])
    assert names == [
        *("a", "a_lag_1", "a_lag_2", "a_4h", "a_4h_lag_1", "a_4h_lag_2"),
        *("a_ethusdt", "a_ethusdt_lag_1", "a_ethusdt_lag_2"),
        *("a_ethusdt_4h", "a_ethusdt_4h_lag_1", "a_ethusdt_4h_lag_2"),
    ]
    assert expanded_names(["a"], symbols=["BTCUSDT.USDT"]) == ["a", "a_btcusdt_usdt"]


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"lags": [0]}, "lag 0 is not a whole number of bars, 1 or more"),
        ({"lags": [-1]}, "lag -1 is not"),
        ({"lags": [1.0]}, r"lag 1\.0 is not"),
        ({"lags": [True]}, "lag True is not"),
        ({"lags": [2, 2]}, r"a lag is named twice in \[2, 2\]"),
        ({"timeframes": ["4h", "4h"]}, "a timeframe is named twice"),
        ({"timeframes": "4h"}, "timeframes: expected a list, got '4h'"),
        ({"symbols": ["ETH", "eth"]}, "a symbol is named twice"),
        ({"symbols": ["4h"], "timeframes": ["4h"]}, "two columns called close_4h"),
        ({"lags": [0], "timeframes": ["4h", "4h"]}, "2 problems with the expansion"),
    ],
)
def test_what_cannot_be_expanded(given_: dict[str, object], message: str) -> None:
    with pytest.raises(FeatureError, match=message):
        expanded_names(["close"], **given_)  # type: ignore[arg-type]


def test_unknown_features_are_refused() -> None:
    with pytest.raises(CryptoMLError, match="no feature 'clos'"):
        expand_features(random_candles(1, 50), ["clos"], lags=[1])


def test_columns_names_and_schema_agree() -> None:
    base, other = random_candles(1, 300), other_market(2, 300)
    given_ = {"timeframes": ["4h", "1d"], "lags": [1, 24]}
    frame = expand_features(base, NAMES, others={"ETH": other}, **given_).frame
    schema = expansion_schema(base, NAMES, others={"ETH": other}, **given_)
    names = expanded_names(NAMES, symbols=["ETH"], **given_)
    assert list(frame) == names == [item["name"] for item in schema]
    assert schema[:3] == feature_schema(NAMES)
    hashes = [item["definition_hash"] for item in schema]
    assert len(set(hashes)) == len(hashes) == 3 * 2 * 3 * 3
    by_market = expansion_schema(base.market, NAMES, others={"ETH": other.market}, **given_)
    assert by_market == schema
    last = schema[-1]
    assert (last["feature"], last["timeframe"], last["lag"]) == ("close", "1d", 24)
    assert last["market"] == "test ETHUSDT"
    assert max(i["lookback"] for i in schema) == expansion_warm_up(
        base, NAMES, others={"ETH": other}, **given_
    )


def test_the_hash_covers_market_timeframe_and_lag() -> None:
    def hash_of(market: Market, **given_: object) -> str:
        base = Market("test", "AAABBB", "1h")
        schema = expansion_schema(base, ["close"], others={"ETH": market}, **given_)  # type: ignore[arg-type]
        return str(schema[-1]["definition_hash"])

    plain = Market("binance", "ETHUSDT", "1h")
    variants = [
        hash_of(plain),
        hash_of(replace(plain, exchange="kraken")),
        hash_of(replace(plain, symbol="ETHUSDC")),
        hash_of(replace(plain, timeframe="4h")),
        hash_of(plain, lags=[1]),
        hash_of(plain, lags=[2]),
        hash_of(plain, timeframes=["4h"]),
        hash_of(plain, timeframes=["6h"]),
    ]
    assert len(set(variants)) == len(variants)
    assert hash_of(plain) == variants[0]


# ---- real candles


@pytest.mark.parametrize("cut_off", [37, 38, 39, 40])
def test_real_candles(real_candles_folder: Path, cut_off: int) -> None:
    """Bitcoin beside ether with outages, and its own 4-hour bars as the exchange made them."""
    base = load_candles(real_candles_folder / "binance_BTCUSDT_1h.parquet", end="2018-03-01")
    other = load_candles(real_candles_folder / "binance_ETHUSDT_1h.parquet", end="2018-03-01")
    base, other = cut(base, slice(-1500, None)), cut(other, slice(-1500, None))
    given_ = {"timeframes": ["4h"], "lags": [1, 2]}
    before = expand_features(base, NAMES, others={"ETHUSDT": other}, **given_)
    moment = base.known_at[1200 + cut_off]
    after = expand_features(
        changed_after(base, moment, "noise", cut_off),
        NAMES,
        others={"ETHUSDT": changed_after(other, moment, "noise", cut_off)},
        **given_,
    )
    rows = np.asarray(base.known_at <= moment)
    same(after.frame[rows], before.frame[rows])
    exchange = load_candles(real_candles_folder / "binance_BTCUSDT_4h.parquet")
    whole = resample_candles(base, "4h").index
    kept = exchange.frame.loc[exchange.index.isin(whole), ["close"]]
    joined = closed_values(
        base.known_at, kept, pd.Timedelta("4h"), max_age=pd.Timedelta("16h") - pd.Timedelta("1ms")
    )
    np.testing.assert_allclose(before.frame["close_4h"], joined.frame["close"])
    assert 0 < before.without_partner["4h"] < 0.03  # the outage of 2018-02-08
