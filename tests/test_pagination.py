"""Pagination: requests tile any span without gap or overlap, and rows become bars or an error."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto_ml.defects import timeframe_delta
from crypto_ml.errors import CandlesError
from crypto_ml.pagination import (
    RULES,
    SETTLING,
    Page,
    Window,
    answer_defect,
    bars_of,
    ceil_time,
    confirmed_span,
    doubtful_span,
    floor_time,
    page_of,
    request_of,
    rules_of,
    windows,
)
from crypto_ml.settings import TIMEFRAMES

HOUR = pd.Timedelta("1h")
DAY = pd.Timestamp("2024-03-01", tz="UTC")
TILED = [name for name in RULES if name != "kraken"] + ["another"]

timeframes = st.sampled_from(["1m", "5m", "1h", "4h", "1d", "1w"])
moments = st.integers(1_400_000_000, 1_800_000_000).map(
    lambda second: pd.Timestamp(second, unit="s", tz="UTC")
)


def milliseconds(time: pd.Timestamp) -> int:
    return time.value // 1_000_000


def rows_of(opens: list[pd.Timestamp], price: float = 100.0) -> list[list[float]]:
    return [[milliseconds(t), price, price + 1, price - 1, price + 0.5, 7.0] for t in opens]


@given(st.sampled_from(TILED), timeframes, moments, st.integers(1, 3000), st.integers(0, 59))
def test_windows_tile_a_span(
    name: str, timeframe: str, start: pd.Timestamp, bars: int, rest: int
) -> None:
    rules, step = rules_of(name), timeframe_delta(timeframe)
    end = start + min(bars * step + pd.Timedelta(seconds=rest), pd.Timedelta("700D"))
    tiles = list(windows(start, end, timeframe, rules))
    assert tiles[0].start == start
    assert tiles[-1].end == end
    assert all(one.end == other.start for one, other in pairwise(tiles))
    assert all(tile.start < tile.end for tile in tiles)
    for tile in tiles:
        request = request_of(name, tile, timeframe, rules, end)
        assert request["since"] <= milliseconds(tile.start)
        if rules.calendar:
            first, last = tile.answer or (end, end)
            assert first <= tile.start < tile.end <= last
            assert first.strftime("%Y%m%d").startswith(request["params"]["yyyymmdd"])
            assert (last - first).days == (
                1 if TIMEFRAMES[timeframe] <= 60 else 365 + first.is_leap_year
            )
        else:
            reach = request["since"] + request["limit"] * step // pd.Timedelta("1ms")
            assert reach >= milliseconds(tile.end)
            assert request["limit"] <= rules.limit + rules.lead
            assert tile.end - tile.start <= rules.limit * step


@given(st.sampled_from(TILED), timeframes, moments, moments, st.integers(1, 500))
def test_spans_that_overlap_are_cut_at_the_same_places(
    name: str, timeframe: str, one: pd.Timestamp, other: pd.Timestamp, bars: int
) -> None:
    rules, span = rules_of(name), bars * timeframe_delta(timeframe)
    span = min(span, pd.Timedelta("400D"))
    end = max(one, other) + span
    first = {w.start for w in windows(end - 2 * span, end, timeframe, rules)}
    second = {w.start for w in windows(end - span, end, timeframe, rules)}
    assert {cut for cut in first if cut > end - span} == second - {end - span}


@given(timeframes, moments)
def test_the_grid_is_that_of_candles(timeframe: str, time: pd.Timestamp) -> None:
    low, high, step = (
        floor_time(time, timeframe),
        ceil_time(time, timeframe),
        timeframe_delta(timeframe),
    )
    assert low <= time <= high
    assert high - low in (pd.Timedelta(0), step)
    assert floor_time(low, timeframe) == low == ceil_time(low, timeframe)


def test_kraken_is_asked_once_and_others_by_what_ccxt_says() -> None:
    tiles = list(windows(DAY, DAY + 700 * HOUR, "1h", RULES["kraken"]))
    assert [(t.start, t.end) for t in tiles] == [(DAY, DAY + 700 * HOUR)]
    assert rules_of("gate", 1000).limit == 999
    assert rules_of("unheard_of").limit == 99
    window = next(windows(DAY, DAY + 5 * HOUR, "1h", rules_of("gate", 1000)))
    assert request_of("gate", window, "1h", rules_of("gate", 1000), DAY) == {
        "since": milliseconds(DAY - HOUR),
        "limit": 6,
        "params": {},
    }


@pytest.mark.parametrize(("bars", "place"), [(1399, "Candles"), (1402, "HistoryCandles")])
def test_okx_keeps_old_bars_elsewhere(bars: int, place: str) -> None:
    window = Window(DAY, DAY + HOUR)
    request = request_of("okx", window, "1h", RULES["okx"], DAY + bars * HOUR)
    assert request["params"] == {"type": place}


def test_rows_in_any_order_and_repeated_become_sorted_bars() -> None:
    opens = [DAY + n * HOUR for n in (3, 0, 2, 2, 1)]
    bars = bars_of(rows_of(opens), "1h", Window(DAY, DAY + 3 * HOUR))
    assert list(bars.index) == [DAY, DAY + HOUR, DAY + 2 * HOUR]
    assert str(bars.index.dtype) == "datetime64[ms, UTC]"
    assert bars.index.name == "timestamp"
    assert list(bars.columns) == ["open", "high", "low", "close", "volume"]
    assert (bars.dtypes == "float64").all()
    nothing = bars_of([], "1h", Window(DAY, DAY + HOUR))
    assert nothing.empty
    assert nothing.index.dtype == bars.index.dtype


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            [DAY + HOUR, 100.0, 101.0, 99.0, 100.7, 7.0],
            "1 bar twice with different values: 2024-03-01 01:00",
        ),
        ([DAY + 5 * HOUR, 100.0, 90.0, 89.0, 100.0, 7.0], "high below open or close"),
        ([DAY + 5 * HOUR, 100.0, 101.0, 100.5, 100.0, 7.0], "low above open or close"),
        ([DAY + 5 * HOUR, 100.0, float("inf"), 99.0, 100.0, 7.0], "high is NaN, infinite"),
        ([DAY + 5 * HOUR, 100.0, 101.0, 99.0, 100.0, -7.0], "negative volume"),
        ([DAY + 5 * HOUR, 0.0, 101.0, 0.0, 100.0, 7.0], "a price of 0 or less"),
        ([DAY + 5 * HOUR, None, 101.0, 99.0, 100.0, 7.0], "open is NaN"),
        (
            [DAY + pd.Timedelta("90min"), 100.0, 101.0, 99.0, 100.0, 7.0],
            "do not open on the 1h grid",
        ),
        ([DAY - HOUR, 100.0, 101.0, 99.0, 100.0, 7.0], "bars of another time, 2024-02-29 23:00"),
        (
            [DAY + 24 * HOUR, 100.0, 101.0, 99.0, 100.0, 7.0],
            "bars of another time, 2024-03-02 00:00",
        ),
        ([None, 100.0, 101.0, 99.0, 100.0, 7.0], "rows that are not time, open"),
        ([DAY, 100.0], "rows that are not time, open"),
    ],
)
def test_rows_that_cannot_be_are_named(row: list[object], words: str) -> None:
    if isinstance(row[0], pd.Timestamp):
        row = [milliseconds(row[0]), *row[1:]]
    rows = [*rows_of([DAY, DAY + HOUR]), row]
    window = next(windows(DAY, DAY + 24 * HOUR, "1h", RULES["bitbank"]))
    with pytest.raises(CandlesError, match=words):
        bars_of(rows, "1h", window)


def test_rows_from_outside_are_left_out_where_that_is_usual() -> None:
    rows = rows_of([DAY - 9 * HOUR, DAY, DAY + 9 * HOUR])
    assert list(bars_of(rows, "1h", Window(DAY, DAY + HOUR)).index) == [DAY]
    (window,) = windows(DAY, DAY + HOUR, "1h", RULES["binance"])
    assert list(bars_of(rows_of([DAY - HOUR, DAY, DAY + HOUR]), "1h", window).index) == [DAY]
    with pytest.raises(CandlesError, match="bars of another time"):
        bars_of(rows, "1h", window)


@given(st.sets(st.integers(0, 40)), st.integers(1, 40), st.integers(1, 7), st.booleans())
def test_what_is_missing_is_asked_for_until_it_was_missing_twice(
    there: set[int], bars: int, limit: int, newest: bool
) -> None:
    """Against an exchange that gives at most so many bars of what it has, from either end."""

    def answer(span: tuple[pd.Timestamp, pd.Timestamp]) -> pd.DatetimeIndex:
        served = [DAY + n * HOUR for n in sorted(there) if span[0] <= DAY + n * HOUR < span[1]]
        return pd.DatetimeIndex(served[-limit:] if newest else served[:limit], tz="UTC")

    window = (DAY - pd.Timedelta("10min"), DAY + bars * HOUR)
    index, confirmed, asked = answer(window), [], 1
    while span := doubtful_span(index, "1h", window, confirmed):
        asked += 1
        again = answer(span)
        known = index[(index >= span[0]) & (index < span[1])]
        if again.difference(known).empty:
            confirmed.append(confirmed_span(known, again, span))
        index = index.union(again)
    assert list(index) == [DAY + n * HOUR for n in sorted(there) if n < bars]
    missing = [DAY + n * HOUR for n in range(bars) if n not in there]
    assert all(any(first <= bar < last for first, last in confirmed) for bar in missing)
    assert asked <= 4 + 2 * bars // limit


def test_answers_that_have_nothing_in_common_are_no_confirmation() -> None:
    known = pd.DatetimeIndex([DAY + HOUR, DAY + 3 * HOUR])
    span = (DAY, DAY + 5 * HOUR)
    assert confirmed_span(known, known, span) == span
    assert confirmed_span(known, known[:1], span) == (DAY, DAY + 3 * HOUR)
    assert confirmed_span(known, known[1:], span) == (DAY + HOUR, DAY + 5 * HOUR)
    with pytest.raises(
        CandlesError, match="two answers about 2024-03-01 00:00 to 2024-03-01 05:00"
    ):
        confirmed_span(known, known[:0], span)


def frame_until(end: pd.Timestamp) -> pd.DataFrame:
    return bars_of(rows_of(list(pd.date_range(DAY, end - HOUR, freq="h"))), "1h", Window(DAY, end))


@pytest.mark.parametrize(
    ("served", "now", "end"),
    [
        ("12:00", "12:05", "12:00"),  # the forming bar is not there yet
        ("13:00", "12:05", "13:00"),  # it is
        ("11:00", "12:05", "11:00"),  # the bar that was just over is late
        ("11:00", "12:30", "12:00"),  # it was over half an hour ago: the exchange has none
        ("09:00", "12:05", "11:00"),  # only the newest may be late
    ],
)
def test_a_page_claims_no_more_than_is_known(served: str, now: str, end: str) -> None:
    def at(text: str) -> pd.Timestamp:
        return DAY + pd.Timedelta(f"{text}:00")

    page = page_of(frame_until(at(served)), "1h", Window(DAY, at("13:00")), at(now))
    assert (page.start, page.end) == (DAY, at(end))
    assert len(page) == len(frame_until(at(served)))
    old = page_of(frame_until(at(served)), "1h", Window(DAY, at("13:00")), at("20:00"))
    assert old.end == at("13:00")


def test_an_empty_page_of_now_is_no_page() -> None:
    nothing = bars_of([], "1h", Window(DAY, DAY + HOUR))
    assert page_of(nothing, "1h", Window(DAY, DAY + HOUR), DAY + SETTLING).end == DAY
    assert page_of(nothing, "1h", Window(DAY, DAY + HOUR), DAY + 3 * HOUR) == Page(
        DAY, DAY + HOUR, nothing
    )


def test_answers_are_about_what_was_asked() -> None:
    row = [1, 2]
    sound = {
        "binance": [row],
        "bitbank": {"data": {"candlestick": [{"type": "1hour", "ohlcv": [row]}]}},
        "bybit": {"result": {"symbol": "BTCUSDT", "list": []}},
        "coinbase": {"candles": []},
        "kraken": {"result": {"BTCUSDT": [row], "last": 0}},
        "okx": {"data": []},
    }
    assert set(sound) == set(RULES)
    for name, answer in sound.items():
        assert answer_defect(name, answer, "BTCUSDT", "1hour") == ""
        assert "no list of bars" in answer_defect(
            name, {"data": {"candlestick": []}}, "BTCUSDT", "1hour"
        )
        assert "no list of bars" in answer_defect(name, {"message": "down"}, "BTCUSDT", "1hour")
    assert "it is about '1hour', and '1min' was asked for" in answer_defect(
        "bitbank", sound["bitbank"], "btc_jpy", "1min"
    )
    assert "'ETHUSDT' was asked" in answer_defect("bybit", sound["bybit"], "ETHUSDT", "60")
    assert "no list" in answer_defect("kraken", sound["kraken"], "XETHZUSD", "60")
    assert answer_defect("gate", {"anything": 1}, "", "") == ""


def test_values_are_those_of_the_rows() -> None:
    rng = np.random.default_rng(3)
    rows = rows_of(list(pd.date_range(DAY, periods=50, freq="h")))
    for row in rows:
        row[5] = rng.gamma(2, 5)
    bars = bars_of(rows, "1h", Window(DAY, DAY + 50 * HOUR))
    assert np.array_equal(bars.to_numpy(), np.array(rows)[:, 1:])
