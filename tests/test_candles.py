"""Candles: loaded as they are or refused with every defect; real files of seven years and more."""

from __future__ import annotations

import hashlib
import math
import pickle
import re
import struct
import time
import tracemalloc
from dataclasses import FrozenInstanceError, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto_ml.candles import (
    COLUMNS,
    Candles,
    CandlesError,
    Market,
    candles_from_frame,
    drop_equal_duplicates,
    drop_unfinished,
    find_suspicious_ticks,
    grid_position,
    load_candles,
    market_of,
    quality_summary,
    resample_candles,
    segment_ids,
    select_candles,
    timeframe_delta,
    validate_candles,
)

START = pd.Timestamp("2024-01-01", tz="UTC")
MARKET = Market("example", "BTCUSDT", "1h")
HOUR = pd.Timedelta("1h")


def frame_of(bars: int = 100, timeframe: str = "1h", seed: int = 0) -> pd.DataFrame:
    """Sound bars of a random walk."""
    rng = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.01, bars)))
    opened = np.concatenate([[100.0], close[:-1]])
    high, low = np.maximum(opened, close) * 1.01, np.minimum(opened, close) * 0.99
    index = START + np.arange(bars) * timeframe_delta(timeframe)
    columns = {"open": opened, "high": high, "low": low, "close": close}
    frame = pd.DataFrame({**columns, "volume": rng.gamma(2, 5, bars)}, index=index)
    return frame.rename_axis("timestamp")


def candles_of(frame: pd.DataFrame, timeframe: str = "1h") -> Candles:
    return candles_from_frame(frame, replace(MARKET, timeframe=timeframe), "example")


def defects(table: pd.DataFrame, market: Market = MARKET, **options: Any) -> tuple[str, ...]:
    with pytest.raises(CandlesError) as caught:
        validate_candles(table, market, **options)
    return caught.value.problems


# The object


def test_candles_are_in_one_form_whatever_the_table_was() -> None:
    frame = frame_of()
    table = frame.reset_index().rename(columns=str.upper).astype({"VOLUME": str})
    table = table[["CLOSE", "TIMESTAMP", "VOLUME", "LOW", "HIGH", "OPEN"]].assign(trades=3)
    candles = candles_of(table)
    assert candles.frame.index.dtype == "datetime64[ms, UTC]"
    assert candles.frame.index.name == "timestamp"
    assert tuple(candles.frame.columns) == COLUMNS
    assert (candles.frame.dtypes == "float64").all()
    assert candles.ignored == ("trades",)
    assert candles.sha256 == candles_of(frame).sha256
    assert len(candles) == 100 and candles.timeframe == HOUR
    assert (candles.known_at == candles.index + HOUR).all()
    arrays = candles.arrays()
    assert list(arrays) == ["timestamp", *COLUMNS]
    assert arrays["timestamp"].dtype == np.int64
    assert arrays["timestamp"][0] == START.timestamp() * 1000
    assert repr(candles).startswith(
        "Candles(example BTCUSDT 1h, 100 bars, 2024-01-01 00:00 to 2024-"
    )


def test_candles_are_frozen_equal_by_content_and_picklable() -> None:
    candles = candles_of(frame_of())
    with pytest.raises(FrozenInstanceError):
        candles.source = "else"  # type: ignore[misc]
    assert candles == candles_of(frame_of()) and hash(candles) == hash(candles_of(frame_of()))
    assert candles != candles_of(frame_of(seed=1))
    assert pickle.loads(pickle.dumps(candles)) == candles


def test_the_callers_table_is_left_as_it_was() -> None:
    frame = frame_of()
    before = frame.copy(deep=True)
    load_candles(frame, **vars(MARKET), days=2, resample="4h")
    pd.testing.assert_frame_equal(frame, before)


@given(st.sampled_from(["s", "ms", "us", "ns"]), st.sampled_from(["UTC", "Etc/UTC"]))
def test_the_fingerprint_does_not_depend_on_how_times_are_stored(unit: Any, zone: str) -> None:
    frame = frame_of()
    stored = frame.set_axis(pd.DatetimeIndex(frame.index).as_unit(unit).tz_convert(zone))
    assert candles_of(stored).sha256 == candles_of(frame).sha256
    assert candles_of(stored).frame.equals(candles_of(frame).frame)


@given(st.integers(0, 99), st.sampled_from(COLUMNS), st.booleans())
def test_the_fingerprint_changes_with_any_value(row: int, column: str, up: bool) -> None:
    frame, changed = frame_of(), frame_of()
    place = (row, changed.columns.get_loc(column))
    changed.iloc[place] = np.nextafter(changed.iloc[place], math.inf if up else 0)
    # high and low are 1 % away, so one unit in the last place makes no defect of it
    assert candles_of(changed).sha256 != candles_of(frame).sha256


def test_the_fingerprint_changes_with_time_order_and_length() -> None:
    frame = frame_of()
    later = frame.set_axis(frame.index + HOUR)
    swapped = frame.rename(columns={"open": "close", "close": "open"})
    prints = {candles_of(item).sha256 for item in (frame, later, swapped, frame[1:], frame[:-1])}
    assert len(prints) == 5


def test_the_fingerprint_is_the_same_everywhere() -> None:
    frame = pd.DataFrame(
        {"open": [1.0, 2.0], "high": 3.0, "low": 0.5, "close": [2.0, 2.5], "volume": [0.0, 10.0]},
        index=pd.DatetimeIndex(["2024-01-01", "2024-01-02"], tz="UTC"),
    )
    written = b"timestamp,open,high,low,close,volume" + struct.pack(
        "<2q10d", 1704067200000, 1704153600000, 1, 2, 3, 3, 0.5, 0.5, 2, 2.5, 0, 10
    )
    assert candles_of(frame, "1d").sha256 == hashlib.sha256(written).hexdigest()


@pytest.mark.parametrize("missing", [("exchange",), ("symbol", "timeframe")])
def test_a_market_is_known_in_full(missing: tuple[str, ...]) -> None:
    assert str(MARKET) == "example BTCUSDT 1h"
    with pytest.raises(CandlesError, match=f"the market's {' and '.join(missing)} must be known"):
        replace(MARKET, **dict.fromkeys(missing, ""))
    with pytest.raises(CandlesError, match="'60m' is no length of a bar"):
        replace(MARKET, timeframe="60m")


# Every defect in one error


def test_every_defect_is_in_one_error() -> None:
    frame = frame_of(40)
    frame.iloc[0, 0] = np.nan
    frame.iloc[1, 4] = np.inf
    frame.iloc[2, 2] = -1.0
    frame.iloc[3, 1] = 1.0
    frame.iloc[4, 2] = 1e6
    frame.iloc[5, 4] = -1.0
    conflicting = frame.iloc[[8]] * 1.01
    table = pd.concat([frame, frame.iloc[[7]], conflicting])
    index = table.index.to_series()
    index.iloc[20] += pd.Timedelta("7min")
    table.index = pd.DatetimeIndex(index).tz_localize(None)
    lines = defects(
        table.drop(columns="close").rename_axis("timestamp"),
        now=None,
        min_bars=500,
        why="50 of them warm up the features",
    )
    starts = [
        "missing columns: close; the columns are timestamp (index), open, high, low, volume",
        "naive time: 42 timestamps without a time zone",
        "open is NaN, infinite or no number: 1 bar, for example 2024-01-01 00:00 (open nan)",
        "volume is NaN, infinite or no number: 1 bar, for example 2024-01-01 01:00 (volume inf)",
        "a price of 0 or less: 1 bar, for example 2024-01-01 02:00",
        "high below open or close: 1 bar, for example 2024-01-01 03:00",
        "low above open or close: 1 bar, for example 2024-01-01 04:00",
        "negative volume: 1 bar, for example 2024-01-01 05:00 (volume -1)",
        "repeated with equal values: 1 timestamp, for example 2024-01-01 07:00",
        "repeated with conflicting values: 1 timestamp, for example 2024-01-01 08:00",
        "unsorted: earlier than the row before (sort by time): 1 bar, for example 2024-01-01 07:00",
        "not on the 1h grid of UTC: 1 bar, for example 2024-01-01 20:07",
        "42 bars, but at least 500 are needed (50 of them warm up the features)",
    ]
    assert len(lines) == len(starts)
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(start), (line, start)


def test_the_error_says_which_table_and_market() -> None:
    with pytest.raises(
        CandlesError, match="1 problem with prices as example BTCUSDT 1h:\n- close is"
    ):
        validate_candles(frame_of().assign(close=np.nan), MARKET, source="prices")


def test_an_unfinished_bar_is_refused_and_can_be_dropped_by_hand() -> None:
    frame = frame_of(10)
    now = START + pd.Timedelta("9h30min")
    (line,) = defects(frame, now=now)
    assert line.startswith("not over at 2024-01-01 09:30 (drop_unfinished removes them): 1 bar")
    dropped = drop_unfinished(frame, "1h", now)
    assert len(validate_candles(dropped, MARKET, now=now)) == 9
    assert len(drop_unfinished(frame, "1h", START + 9 * HOUR)) == 9  # over in that very moment
    as_column = drop_unfinished(frame.reset_index(), "1h", "2024-01-01T09:30")
    assert len(as_column) == 9 and "timestamp" in as_column
    with pytest.raises(CandlesError, match="naive time"):
        drop_unfinished(frame.tz_localize(None), "1h", now)


@given(st.sets(st.integers(0, 19), max_size=6), st.booleans())
def test_dropping_equal_duplicates_drops_nothing_else(rows: set[int], column: bool) -> None:
    frame = frame_of(20)
    repeated = pd.concat([frame, frame.iloc[sorted(rows)]]).sort_index(kind="stable")
    table = repeated.reset_index() if column else repeated
    cleaned = drop_equal_duplicates(table)
    assert candles_of(cleaned).frame.equals(candles_of(frame).frame)
    conflicting = pd.concat([frame, frame.iloc[sorted(rows)] * 1.01])
    assert len(drop_equal_duplicates(conflicting)) == 20 + len(rows)


def test_an_empty_table_is_refused() -> None:
    assert defects(frame_of(0)) == (
        "0 bars, but at least 1 are needed; take a longer span or shorter bars",
    )
    assert len(defects(pd.DataFrame())) == 2


def test_too_few_bars_are_counted_after_selecting_and_resampling() -> None:
    options = {**vars(MARKET), "min_bars": 50, "why": "features warm up"}
    assert len(load_candles(frame_of(), **options)) == 100
    for more in ({"days": 2}, {"resample": "4h"}):
        with pytest.raises(CandlesError, match=r"but at least 50 are needed \(features warm up\)"):
            load_candles(frame_of(), **options, **more)
    text = "25 bars, but at least 50"
    with pytest.raises(CandlesError, match=text):
        load_candles(frame_of(), **options, resample="4h")


# From files


@pytest.mark.parametrize("name", ["example_BTCUSDT_1h.parquet", "example_BTCUSDT_1h.csv.gz"])
def test_a_files_name_says_the_market(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    frame = frame_of()
    frame.to_parquet(path) if name.endswith("parquet") else frame.to_csv(path)
    candles = load_candles(str(path))
    assert candles.market == MARKET and candles.source == path.as_posix()
    assert candles.sha256 == candles_of(frame).sha256
    assert load_candles(path, **vars(MARKET)) == candles


@pytest.mark.parametrize(
    ("name", "given_", "expected"),
    [
        ("binance_BTCUSDT_1h.csv", {}, ("binance", "BTCUSDT", "1h")),
        ("binance_BTC-PERP_15m.parquet", {}, ("binance", "BTC-PERP", "15m")),
        ("binance_BTCUSDT_1h.csv", {"symbol": "ETHUSDT"}, "the name says symbol BTCUSDT"),
        ("binance_BTCUSDT_1h.csv", {"timeframe": "4h"}, "the name says timeframe 1h"),
        ("binance_BTCUSDT_7h.csv", {}, "'7h' is no length of a bar"),
        ("binance_btcusdt_1h.csv", {}, "exchange and symbol and timeframe must be known"),
        ("bars_2024_1h.csv", {}, "exchange and symbol and timeframe must be known"),
        ("binance_BTCUSDT_1h_old.csv", {"timeframe": "1h"}, "exchange and symbol must be known"),
        ("x.csv", {"exchange": "a", "symbol": "B", "timeframe": "1h"}, ("a", "B", "1h")),
    ],
)
def test_name_and_parameters_must_agree(name: str, given_: dict[str, str], expected: Any) -> None:
    values = {"exchange": "", "symbol": "", "timeframe": "", **given_}
    if isinstance(expected, tuple):
        assert market_of(Path("data") / name, **values) == Market(*expected)
    else:
        with pytest.raises(CandlesError, match=re.escape(expected)):
            market_of(Path("data") / name, **values)


def test_a_wrong_timeframe_is_refused() -> None:
    lines = defects(frame_of(40), replace(MARKET, timeframe="4h"))
    assert lines[0].startswith("not on the 4h grid of UTC: 30 bars")
    assert lines[1] == "the timeframe is said to be 4h, but the bars are usually 1h apart"
    lines = defects(frame_of(40), replace(MARKET, timeframe="15m"))
    assert lines == ("the timeframe is said to be 15m, but the bars are usually 1h apart",)


def test_columns_and_zone_can_be_said() -> None:
    frame = frame_of().reset_index().rename(columns={"close": "Schluss"})
    frame["timestamp"] = frame["timestamp"].dt.tz_localize(None)
    candles = load_candles(
        frame, **vars(MARKET), columns={"close": "Schluss"}, timezone="Asia/Tokyo"
    )
    assert candles.index[0] == pd.Timestamp("2024-01-01", tz="Asia/Tokyo")


# Selecting


@given(st.floats(0.05, 4.5), st.integers(0, 70), st.integers(1, 29))
def test_a_span_is_what_was_asked_for(days: float, begin: int, length: int) -> None:
    candles = candles_of(frame_of())
    last = select_candles(candles, days=days)
    assert last.known_at[-1] == candles.known_at[-1]
    assert last.index[0] >= candles.known_at[-1] - pd.Timedelta(days=days)
    expected = min(100, math.floor(round(days * 24, 9)))
    assert abs(len(last) - expected) <= (0 if days * 24 % 1 > 1e-6 else 1)
    start, end = candles.index[begin], candles.index[begin] + length * HOUR
    part = select_candles(candles, start=start.isoformat(), end=end.isoformat())
    assert part.index[0] == start and part.known_at[-1] == end and len(part) == length
    assert part.sha256 == candles_of(frame_of()[begin : begin + length]).sha256


@pytest.mark.parametrize(
    ("span", "words"),
    [
        ({"days": 6}, "which is not 6 days"),
        ({"start": "2023-12-30"}, "which is not 2023-12-30 00:00 to 2024-01-05 04:00"),
        ({"end": "2024-01-07"}, "which is not 2024-01-01 00:00 to 2024-01-07 00:00"),
        ({"days": 2, "end": "2024-01-02"}, "either days, or start and end"),
        ({"start": "soon"}, "'soon': expected a UTC time"),
        (
            {"start": "2024-01-02T00:10", "end": "2024-01-02T00:50"},
            "but has no bar from 2024-01-02",
        ),
        ({"start": "2024-01-03", "end": "2024-01-02"}, "but has no bar from"),
    ],
)
def test_a_span_that_is_not_there_is_refused(span: dict[str, Any], words: str) -> None:
    with pytest.raises(CandlesError, match=re.escape(words)):
        select_candles(candles_of(frame_of()), **span)


def test_a_day_of_grace_is_given_at_both_ends() -> None:
    candles = candles_of(frame_of())
    for span in ({"days": 5}, {"start": "2023-12-31"}, {"end": "2024-01-06"}):
        assert select_candles(candles, **span).frame.equals(candles.frame)


# Longer bars


def reference(frame: pd.DataFrame, timeframe: str) -> pd.DataFrame:
    """Resample with pandas, anchored on Monday for weeks."""
    rule, origin = timeframe_delta(timeframe), pd.Timestamp("1970-01-05", tz="UTC")
    how = {"open": "first", "high": "max", "low": "min", "close": "last", "volume": "sum"}
    grouped = frame.resample(rule, origin=origin)
    return grouped.agg(how).assign(count=grouped["close"].count())


@given(
    st.sets(st.integers(0, 399), max_size=120),
    st.sampled_from(["30m", "1h", "4h", "1d"]),
    st.integers(0, 30),
)
def test_longer_bars_equal_those_of_pandas(holes: set[int], timeframe: str, offset: int) -> None:
    frame = frame_of(400, "15m").iloc[offset:]
    frame = frame.drop(frame.index[[row for row in sorted(holes) if row < len(frame)]])
    candles = candles_of(frame, "15m")
    expected = reference(candles.frame, timeframe)
    over = expected.index + timeframe_delta(timeframe) <= candles.known_at[-1]
    wholes = timeframe_delta(timeframe) // pd.Timedelta("15min")
    for missing, kept in (
        ("keep", over & (expected["count"] > 0)),
        ("drop", over & (expected["count"] == wholes)),
    ):
        if not kept.any():
            with pytest.raises(CandlesError, match=f"holds no complete bar of {timeframe}"):
                resample_candles(candles, timeframe, missing)
            continue
        longer = resample_candles(candles, timeframe, missing)
        assert longer.market.timeframe == timeframe
        wanted = expected.loc[kept, list(COLUMNS)]
        pd.testing.assert_frame_equal(
            longer.frame, wanted, check_freq=False, check_index_type=False, rtol=1e-12
        )
        assert len(candles_of(longer.frame, timeframe)) == len(longer)  # sound bars in turn


def test_weeks_open_on_monday() -> None:
    longer = resample_candles(candles_of(frame_of(30, "1d"), "1d"), "1w")
    assert set(longer.index.day_of_week) == {0} and len(longer) == 4


@pytest.mark.parametrize(("short", "long"), [("1h", "1h"), ("4h", "1h"), ("2h", "3h")])
def test_longer_bars_hold_whole_shorter_ones(short: str, long: str) -> None:
    with pytest.raises(CandlesError, match=f"bars of {short} do not make up bars of {long}"):
        resample_candles(candles_of(frame_of(50, short), short), long)


def test_how_to_treat_missing_bars_must_be_one_of_two() -> None:
    with pytest.raises(CandlesError, match="missing='fill': expected drop or keep"):
        resample_candles(candles_of(frame_of()), "4h", missing="fill")


# Segments


@given(st.sets(st.integers(0, 200), min_size=1, max_size=80), st.integers(0, 10))
def test_a_segment_ends_where_more_than_max_gap_bars_are_missing(rows: set[int], gap: int) -> None:
    present = sorted(rows)
    index = pd.DatetimeIndex([START + row * HOUR for row in present])
    ids = segment_ids(index, HOUR, gap)
    assert ids.dtype == np.int64 and ids[0] == 0 and len(ids) == len(present)
    expected = [0]
    for earlier, later in pairwise(present):
        expected.append(expected[-1] + (later - earlier - 1 > gap))
    assert ids.tolist() == expected


def test_segments_of_nothing() -> None:
    assert len(segment_ids(pd.DatetimeIndex([], tz="UTC"), HOUR, 3)) == 0


# Quality


@given(st.sets(st.integers(1, 98), max_size=40))
def test_gaps_are_counted(holes: set[int]) -> None:
    frame = frame_of()
    candles = candles_of(frame.drop(frame.index[sorted(holes)]))
    quality = quality_summary(candles)
    assert quality.gaps["missing"].sum() == len(holes)
    assert quality.missing_share == pytest.approx(len(holes) / 100)
    for gap in quality.gaps.itertuples():
        assert gap.start not in candles.index and gap.end in candles.index
        assert gap.start - HOUR in candles.index
        assert (gap.end - gap.start) == gap.missing * HOUR


def test_flat_and_idle_bars_are_counted() -> None:
    frame = frame_of()
    frame.iloc[10:13] = 100.0
    frame.iloc[12:15, 4] = 0.0
    frame["high"] = np.maximum(frame["open"], frame["close"])  # often the open, and not flat
    quality = quality_summary(candles_of(frame.assign(extra=1)))
    assert (quality.flat_bars, quality.zero_volume_bars) == (3, 3)
    table = quality.table()
    assert table.loc["flat bars (high = low)"].tolist() == ["3", "3.00%"]
    assert table.loc["columns not used"].tolist() == ["1", "extra"]
    assert table.loc["gaps", "note"] == "" and table.loc["suspicious ticks", "note"] == ""


def spiked(row: int, factor: float, left: float = 0.0, column: str = "close") -> pd.DataFrame:
    """Bars with a jump at one row that is gone after the next bar but for a share of it."""
    frame = frame_of(300)
    close = frame["close"].to_numpy().copy()
    opened = frame["open"].to_numpy().copy()
    if column == "close":
        close[row] = close[row - 1] * factor
        close[row + 1 :] *= close[row - 1] * factor**left / close[row + 1]
        opened[1:] = close[:-1]
    else:
        opened[row] = close[row - 1] * factor
        close[row:] *= close[row - 1] * factor**left / close[row]
        opened[row + 1 :] = close[row:-1]
    frame["open"], frame["close"] = opened, close
    frame["high"], frame["low"] = np.maximum(opened, close), np.minimum(opened, close)
    return frame


@given(
    st.integers(1, 297),
    st.sampled_from([0.01, 0.5, 0.8, 1.25, 2.0, 100.0]),
    st.sampled_from([-0.2, 0.0, 0.2]),
    st.sampled_from(["open", "close"]),
)
def test_a_jump_that_reverts_is_suspicious(row: int, factor: float, left: float, kind: str) -> None:
    frame = spiked(row, factor, left, kind)
    (tick,) = find_suspicious_ticks(candles_of(frame)).reset_index().to_dict("records")
    assert tick["timestamp"] == frame.index[row] and tick["kind"] == kind
    assert tick["price"] == pytest.approx(tick["before"] * factor)
    assert tick["deviations"] > 10


@given(
    st.integers(1, 297),
    st.sampled_from([0.01, 0.5, 2.0, 100.0]),
    st.sampled_from([0.3, 0.6, 1.0, -0.3]),
    st.sampled_from(["open", "close"]),
)
def test_a_jump_that_stays_in_part_is_not(row: int, factor: float, left: float, kind: str) -> None:
    assert find_suspicious_ticks(candles_of(spiked(row, factor, left, kind))).empty


def test_the_size_of_a_jump_is_in_robust_standard_deviations() -> None:
    frame = spiked(150, 0.5)
    returns = np.diff(np.log(frame["close"]))
    spread = np.abs(returns - np.median(returns))
    around = spread[149 - 50 : 149 + 51]
    scale = 1.4826 * max(np.median(spread), np.median(around))
    (tick,) = find_suspicious_ticks(candles_of(frame)).to_dict("records")
    assert tick["deviations"] == pytest.approx(-math.log(0.5) / scale)
    assert find_suspicious_ticks(candles_of(frame), deviations=tick["deviations"] + 1).empty


def test_a_wild_stretch_is_no_series_of_errors() -> None:
    frame = frame_of(1000)
    calm = np.diff(np.log(frame["close"]), prepend=np.log(100))
    wild = np.where(np.arange(1000) < 200, 30 * calm, calm)
    wild[100], wild[101] = 1.0, -1.0  # 3 to 4 robust standard deviations here, 100 elsewhere
    wild[600], wild[601] = 1.0, -1.0
    frame["close"] = 100 * np.exp(np.cumsum(wild))
    frame["open"] = np.append(100.0, frame["close"].to_numpy()[:-1])
    frame["high"] = frame[["open", "close"]].max(axis=1)
    frame["low"] = frame[["open", "close"]].min(axis=1)
    found = find_suspicious_ticks(candles_of(frame)).index
    assert frame.index[600] in found and not set(found) & set(frame.index[50:150])


@pytest.mark.parametrize(("missing", "found"), [(0, 1), (3, 1), (4, 0)])
@pytest.mark.parametrize("after", [True, False])
def test_bars_across_an_outage_are_no_neighbours(missing: int, found: int, after: bool) -> None:
    frame = spiked(150, 0.5)
    moved = np.arange(300) > (150 if after else 149)
    frame = frame.set_axis(frame.index + moved * missing * HOUR)
    assert len(find_suspicious_ticks(candles_of(frame))) == found


def test_a_market_that_hardly_moves_is_judged_by_the_bars_that_do() -> None:
    frame = frame_of(300)
    frame[["open", "high", "low", "close"]] = 100.0
    assert find_suspicious_ticks(candles_of(frame)).empty
    frame.iloc[::10, [1, 3]] = 100.1
    assert find_suspicious_ticks(candles_of(frame)).empty
    frame.iloc[155, [1, 3]] = 150.0
    assert list(find_suspicious_ticks(candles_of(frame)).index) == [frame.index[155]]


@pytest.mark.parametrize("bars", [1, 2, 3])
def test_few_bars_have_a_quality_too(bars: int) -> None:
    quality = quality_summary(candles_of(frame_of(bars)))
    assert quality.suspicious_ticks.empty and quality.bars == bars
    assert quality.table().loc["bars", "count"] == str(bars)


# Real candles

# gaps, missing bars and zero-volume bars by file; the first two as the folder's README has them
CLEAN = re.compile(r"^\| (\S+\.parquet) \| (\d+) \| \S+ \S+ \| \S+ \S+ \| (\d+) \| (\d+) \|", re.M)


def test_every_real_file_loads_and_has_the_gaps_it_should(real_candles_folder: Path) -> None:
    listed = CLEAN.findall((real_candles_folder / "README.md").read_text())
    assert len(listed) > 30
    for name, bars, gaps, missing in listed:
        quality = quality_summary(load_candles(real_candles_folder / name))
        found = (quality.bars, len(quality.gaps), int(quality.gaps["missing"].sum()))
        assert found == (int(bars), int(gaps), int(missing)), name


def test_two_and_a_half_million_bars_are_validated_in_seconds(real_candles_folder: Path) -> None:
    table = pd.read_parquet(real_candles_folder / "bitfinex_BTCUSD_1m.parquet")
    begin = time.process_time()
    candles = validate_candles(table, Market("bitfinex", "BTCUSD", "1m"))
    assert len(candles) == 2_630_217
    assert time.process_time() - begin < 5  # under one second on an idle core


def test_repeated_bars_of_an_exchange_are_refused(real_candles_folder: Path) -> None:
    path = real_candles_folder / "defects" / "bittrex_DOGEBTC_5m_with_duplicates.parquet"
    with pytest.raises(CandlesError) as caught:
        load_candles(path, exchange="bittrex", symbol="DOGEBTC", timeframe="5m")
    (line,) = caught.value.problems
    assert line.startswith(
        "repeated with conflicting values: 209 timestamps, for example 2018-01-28"
    )
    assert line.count("2018-") == 10
    assert len(drop_equal_duplicates(pd.read_parquet(path))) == 29290


def test_revised_bars_are_refused(real_candles_folder: Path) -> None:
    path = real_candles_folder / "defects" / "bitbank_BTCJPY_1h_revisions.parquet"
    with pytest.raises(CandlesError) as caught:
        load_candles(path, exchange="bitbank", symbol="BTCJPY", timeframe="1h")
    (line,) = caught.value.problems
    assert line.startswith("repeated with conflicting values: 155 timestamps")
    first = pd.read_parquet(path).drop_duplicates("timestamp")
    unfinished = first[first["seen_at"] < first["timestamp"] + HOUR]
    assert len(unfinished) > 100
    for seen in unfinished["seen_at"][:5]:
        rows = first[first["timestamp"] <= seen]
        kept = drop_unfinished(rows, "1h", seen)
        assert len(kept) < len(rows) and (kept["timestamp"] + HOUR <= seen).all()


@pytest.mark.parametrize("symbol", ["BTCUSDT", "ETHUSDT", "XRPUSDT", "BNBUSDT"])
@pytest.mark.parametrize(("short", "long"), [("15m", "1h"), ("1h", "4h")])
def test_resampled_bars_equal_the_exchanges_own(
    symbol: str, short: str, long: str, real_candles_folder: Path
) -> None:
    own = load_candles(real_candles_folder / f"binance_{symbol}_{long}.parquet").frame
    fine = load_candles(real_candles_folder / f"binance_{symbol}_{short}.parquet")
    # the outage bar; and a 4h bar that begins with an hour without a trade, which Binance skips
    odd = {"2023-03-24 12:00", "2017-09-09 20:00"}
    for missing in ("drop", "keep"):
        built = resample_candles(fine, long, missing).frame
        both = built.index.intersection(own.index)
        prices = ["open", "high", "low", "close"]
        differs = (built.loc[both, prices] != own.loc[both, prices]).any(axis=1)
        assert {f"{time:%Y-%m-%d %H:%M}" for time in both[differs]} <= odd
        assert np.allclose(built.loc[both, "volume"], own.loc[both, "volume"], rtol=1e-9)
        ours = own.index[(own.index >= built.index[0]) & (own.index <= built.index[-1])]
        assert built.index.difference(own.index).empty
        if missing == "keep":
            assert ours.difference(built.index).empty  # a bar wherever the exchange has one


def test_minutes_make_hours(real_candles_folder: Path) -> None:
    path = real_candles_folder / "bitbank_BTCJPY_1m.parquet"
    candles = load_candles(path, resample="1h", days=90)
    assert candles.market == Market("bitbank", "BTCJPY", "1h")
    assert 2100 < len(candles) <= 2160
    assert (candles.index >= candles.known_at[-1] - pd.Timedelta(days=90)).all()


def test_an_exchange_without_idle_bars_needs_keep(real_candles_folder: Path) -> None:
    path = real_candles_folder / "coinbase_BANDUSD_5m.parquet"
    dropped = load_candles(path, resample="1h")
    kept = load_candles(path, resample="1h", missing="keep")
    assert len(dropped) < 500 and len(kept) == 6905
    assert dropped.frame.equals(kept.frame.loc[dropped.index])


def test_the_bad_ticks_of_2013_are_found_and_the_crash_of_2014_is_not(
    real_candles_folder: Path,
) -> None:
    candles = load_candles(real_candles_folder / "bitfinex_BTCUSD_1m.parquet")
    ticks = find_suspicious_ticks(candles)
    bad = {
        "2013-04-10 17:36": 19.9,
        "2013-04-11 12:34": 15.0,
        "2013-04-11 18:12": 1.06,
        "2013-04-14 02:44": 20.0,
        "2013-04-16 04:38": 0.01,
        "2013-04-26 08:21": 13.0,
        "2013-07-01 18:01": 1.0,
    }
    far = ticks[(ticks["price"] / ticks["before"] < 0.5)]["price"]
    assert {f"{time:%Y-%m-%d %H:%M}": price for time, price in far.items()} == bad
    assert ticks.loc["2014-02-10"].empty
    assert len(ticks) == 1067  # of 2.6 million bars: four in ten thousand


@pytest.mark.parametrize(
    ("name", "count"),
    [("binance_BTCUSDT_1h", 1), ("binance_ETHUSDT_1h", 3), ("bitbank_BTCJPY_1m", 273)],
)
def test_suspicious_ticks_are_few(name: str, count: int, real_candles_folder: Path) -> None:
    assert (
        len(find_suspicious_ticks(load_candles(real_candles_folder / f"{name}.parquet"))) == count
    )


def test_the_outages_of_binance_cut_segments(real_candles_folder: Path) -> None:
    candles = load_candles(real_candles_folder / "binance_BTCUSDT_1h.parquet")
    ids = segment_ids(candles.index, candles.timeframe, 3)
    starts = candles.index[np.flatnonzero(np.diff(ids)) + 1]
    assert "2018-02-09" in {f"{time:%Y-%m-%d}" for time in starts}
    gaps = quality_summary(candles).gaps
    assert len(starts) == (gaps["missing"] > 3).sum()
    assert (grid_position(candles.index, "1h")[1] == 0).all()


def test_memory_stays_a_small_multiple_of_the_bars(real_candles_folder: Path) -> None:
    table = pd.read_parquet(real_candles_folder / "bitbank_BTCJPY_1m.parquet")
    tracemalloc.start()
    validate_candles(table, Market("bitbank", "BTCJPY", "1m"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * table.memory_usage(deep=True).sum()
