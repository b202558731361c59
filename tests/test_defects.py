"""The rules for sound bars: each defect is found where it was planted, and nowhere else."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from crypto_ml.defects import (
    bar_defects,
    grid_position,
    moment,
    repeated_times,
    time_defects,
    timeframe_delta,
    when,
)
from crypto_ml.errors import CandlesError
from crypto_ml.values import TIMEFRAMES

START = pd.Timestamp("2024-01-01", tz="UTC")  # a Monday
timeframes = st.sampled_from(list(TIMEFRAMES))


def bars(count: int = 20, timeframe: str = "1h", seed: int = 0) -> pd.DataFrame:
    """Sound bars of a random walk."""
    rng = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.01, count)))
    opened = np.concatenate([[100.0], close[:-1]])
    high, low = np.maximum(opened, close) * 1.01, np.minimum(opened, close) * 0.99
    index = START + np.arange(count) * timeframe_delta(timeframe)
    columns = {"open": opened, "high": high, "low": low, "close": close}
    return pd.DataFrame({**columns, "volume": rng.gamma(2, 5, count)}, index=index)


PLANTS = {
    "nan": ("close", np.nan, "close is NaN, infinite or no number"),
    "infinite": ("volume", np.inf, "volume is NaN, infinite or no number"),
    "zero": ("low", 0.0, "a price of 0 or less"),
    "negative": ("low", -1.0, "a price of 0 or less"),
    "high": ("high", 1.0, "high below open or close"),
    "low": ("low", 1e6, "low above open or close"),
    "volume": ("volume", -1.0, "negative volume"),
}


@given(timeframes, st.integers(1, 40))
def test_sound_bars_have_no_defects(timeframe: str, count: int) -> None:
    frame = bars(count, timeframe)
    assert bar_defects(frame) == []
    end = frame.index[-1] + timeframe_delta(timeframe)
    assert time_defects(frame, timeframe, now=end) == []


@given(st.sampled_from(list(PLANTS)), st.sets(st.integers(0, 19), min_size=1))
def test_every_planted_value_is_reported_and_nothing_else(kind: str, rows: set[int]) -> None:
    column, value, words = PLANTS[kind]
    frame = bars()
    frame.iloc[sorted(rows), frame.columns.get_loc(column)] = value
    (line,) = bar_defects(frame)
    count = f"{len(rows)} bar" + "s" * (len(rows) > 1)
    assert line.startswith(f"{words}: {count}, for example {when(frame.index[min(rows)])} (")
    assert line.count("; ") == min(len(rows), 10) - 1
    assert f"{column} {value:.8g}" in line


@pytest.mark.parametrize(("opened", "close"), [(100.0, 102.0), (102.0, 100.0)])
def test_high_and_low_must_hold_the_farther_of_open_and_close(opened: float, close: float) -> None:
    frame = bars(1).assign(open=opened, close=close, high=102.0, low=100.0, volume=0.0)
    assert bar_defects(frame) == []
    (line,) = bar_defects(frame.assign(high=101.0))
    assert line.startswith("high below open or close")
    (line,) = bar_defects(frame.assign(low=101.0))
    assert line.startswith("low above open or close")


@given(st.lists(st.sampled_from(list(PLANTS)), unique=True, min_size=2))
def test_all_kinds_are_reported_together(kinds: list[str]) -> None:
    frame = bars()
    for row, kind in enumerate(kinds):
        frame.iloc[row, frame.columns.get_loc(PLANTS[kind][0])] = PLANTS[kind][1]
    lines = bar_defects(frame)
    assert {line.partition(":")[0] for line in lines} == {PLANTS[kind][2] for kind in kinds}


@pytest.mark.parametrize("missing", ["open", "close"])
def test_rules_are_asked_of_the_columns_that_are_there(missing: str) -> None:
    frame = bars().drop(columns=missing)
    frame.iloc[3, frame.columns.get_loc("high")] = 1.0
    assert [line.partition(":")[0] for line in bar_defects(frame)] == ["high below open or close"]
    assert bar_defects(frame[["high", "low"]]) == []
    assert bar_defects(frame[["volume"]]) == []
    assert bar_defects(frame[[]]) == []


def test_a_row_without_a_time_is_shown_by_its_number() -> None:
    frame = bars(3)
    frame.iloc[1, 0] = np.nan
    frame.index = pd.DatetimeIndex([START, pd.NaT, START + pd.Timedelta("2h")])
    assert "for example row 1 (open nan)" in bar_defects(frame)[0]
    assert time_defects(frame, "1h") == []


# Times


@given(
    st.sets(st.integers(0, 19), max_size=8),
    st.sets(st.integers(0, 19), max_size=8),
    st.randoms(use_true_random=False),
)
def test_equal_and_conflicting_repeats_are_told_apart(
    equal: set[int], conflicting: set[int], random: object
) -> None:
    frame = bars()
    equal = equal - conflicting
    other = frame.iloc[sorted(conflicting)] * [1, 1, 1, 1, 2]
    whole = pd.concat([frame, frame.iloc[sorted(equal)], frame.iloc[sorted(equal)], other])
    order = list(range(len(whole)))
    random.shuffle(order)  # type: ignore[attr-defined]
    same, conflict = repeated_times(whole.iloc[order])
    assert list(same) == list(frame.index[sorted(equal)])
    assert list(conflict) == list(frame.index[sorted(conflicting)])
    text = "\n".join(time_defects(whole.sort_index(kind="stable"), "1h"))
    assert "unsorted" not in text
    assert ("repeated with equal values" in text) == bool(equal)
    assert ("repeated with conflicting values" in text) == bool(conflicting)


def test_nan_beside_nan_is_equal() -> None:
    frame = bars(2)
    frame.iloc[:, 0] = np.nan
    same, conflict = repeated_times(pd.concat([frame, frame]))
    assert len(same) == 2 and len(conflict) == 0


@given(st.permutations(range(12)))
def test_unsorted_bars_are_counted(order: list[int]) -> None:
    steps_back = sum(later < earlier for earlier, later in pairwise(order))
    lines = time_defects(bars(12).iloc[order], "1h")
    found = [line for line in lines if line.startswith("unsorted")]
    assert lines == found and len(found) == (steps_back > 0)
    if steps_back:
        assert f": {steps_back} bar" in found[0]


@given(timeframes, st.integers(1, 59), st.sets(st.integers(0, 19), min_size=1, max_size=9))
def test_bars_off_the_grid_are_found(timeframe: str, seconds: int, rows: set[int]) -> None:
    frame = bars(20, timeframe)
    late = np.where(np.isin(np.arange(20), sorted(rows)), seconds, 0)
    frame.index = frame.index + pd.to_timedelta(late, unit="s")
    off = [line for line in time_defects(frame, timeframe) if line.startswith("not on the")]
    assert len(off) == 1 and f": {len(rows)} bar" in off[0]
    assert when(frame.index[min(rows)]) in off[0]


@given(
    st.sampled_from(["1m", "15m", "1h", "4h", "1d"]),
    st.sampled_from(["5m", "1h", "4h", "1d", "1w"]),
)
def test_a_wrong_timeframe_says_what_the_spacing_looks_like(true: str, said: str) -> None:
    assume(true != said)
    text = "\n".join(time_defects(bars(20, true), said))
    assert f"said to be {said}, but the bars are usually {true} apart" in text


@given(
    st.sets(st.integers(0, 500), min_size=9, max_size=60),
    st.sampled_from(["5m", "1h"]),
)
def test_sparse_bars_are_no_wrong_timeframe(present: set[int], timeframe: str) -> None:
    rows = sorted(present | {100, 101})
    frame = bars(501, timeframe).iloc[rows]
    assert time_defects(frame, timeframe) == []


def test_two_bars_and_a_gap_prove_no_timeframe() -> None:
    frame = bars(20)
    assert time_defects(frame.iloc[[0, 3]], "1h") == []
    assert time_defects(frame.iloc[[0, 2, 6]], "1h") == []
    assert len(time_defects(frame.iloc[[0, 2, 4]], "1h")) == 1
    assert time_defects(frame.iloc[[0]], "1h") == time_defects(frame.iloc[[]], "1h") == []


def test_odd_spacing_is_shown_as_it_is() -> None:
    frame = bars(20, "1m").iloc[::7]
    assert "usually 0 days 00:07:00 apart" in time_defects(frame, "1m")[0]


@given(st.integers(0, 20 * 60))
def test_bars_that_are_not_over_are_found(minutes: int) -> None:
    now = START + pd.Timedelta(minutes=minutes)
    frame = bars()
    unfinished = 20 - minutes // 60
    lines = time_defects(frame, "1h", now=now)
    assert len(lines) == (unfinished > 0)
    if unfinished:
        assert lines[0].startswith(f"not over at {when(now)}")
        assert f": {unfinished} bar" in lines[0]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_the_unit_of_the_index_does_not_matter(unit: str) -> None:
    frame = bars(12).iloc[::-1]
    frame.index = frame.index.as_unit(unit)
    assert time_defects(frame, "1h") == time_defects(bars(12).iloc[::-1], "1h")


# The grid


@given(timeframes, st.datetimes(pd.Timestamp("1990-01-01"), pd.Timestamp("2200-01-01")))
def test_the_grid_is_that_of_pandas(timeframe: str, time: object) -> None:
    stamp = pd.Timestamp(time, tz="UTC").floor("us")  # type: ignore[arg-type]
    number, late = grid_position(pd.DatetimeIndex([stamp]), timeframe)
    if timeframe == "1w":
        opened = (stamp - pd.Timedelta(days=stamp.day_of_week)).normalize()
    else:
        opened = stamp.floor(timeframe_delta(timeframe))
    assert stamp - pd.Timedelta(int(late[0]), unit="us") == opened
    assert (
        pd.Timestamp("1970-01-05", tz="UTC") + int(number[0]) * timeframe_delta(timeframe) == opened
    )


def test_lengths_and_moments() -> None:
    assert timeframe_delta("15m") == pd.Timedelta(minutes=15)
    assert timeframe_delta("1w") == pd.Timedelta(days=7)
    with pytest.raises(CandlesError, match="'60m' is no length of a bar; write one of 1m, 2m"):
        timeframe_delta("60m")
    noon = pd.Timestamp("2024-01-31 12:00", tz="UTC")
    assert moment("2024-01-31T12:00") == moment(noon.tz_convert("Asia/Tokyo")) == noon
    assert moment(noon.to_pydatetime()) == noon
    for wrong in ("noon", "2024-01-31T12:00+01:00"):
        with pytest.raises(CandlesError, match="expected a UTC time"):
            moment(wrong)
    assert when(noon) == "2024-01-31 12:00"
    assert when(noon + pd.Timedelta("1s")) == "2024-01-31 12:00:01"
