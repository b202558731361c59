"""Joins: only bars that have closed, whatever comes after; resampled bars equal the exchange's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_ml.candles import (
    Candles,
    CandlesError,
    Market,
    load_candles,
    resample_candles,
    segment_ids,
    trusted_candles,
)
from crypto_ml.joins import closed_values, join_candles
from crypto_ml.simulate import simulate

HOUR = pd.Timedelta("1h")
SIMULATED = simulate("vol", bars=1500, seed=3).candles


def holed(candles: Candles, share: float, seed: int) -> Candles:
    """The candles without a share of their bars."""
    kept = np.random.default_rng(seed).random(len(candles)) >= share
    kept[0] = True
    return trusted_candles(candles.frame[kept], candles.market, "holed")


def of_timeframe(timeframe: str) -> Candles:
    return SIMULATED if timeframe == "1h" else resample_candles(SIMULATED, timeframe)


# As of


@given(st.integers(0, 1499), st.integers(-30, 30))
def test_as_of_gives_what_was_known(row: int, minutes: int) -> None:
    time = SIMULATED.known_at[row] + pd.Timedelta(minutes=minutes)
    expected = SIMULATED.frame[SIMULATED.index + HOUR <= time]
    if expected.empty:
        with pytest.raises(CandlesError, match="no simulated SIM-VOL 1h bar was over"):
            SIMULATED.as_of(time)
    else:
        then = SIMULATED.as_of(time)
        pd.testing.assert_frame_equal(then.frame, expected)
        assert then.market == SIMULATED.market and then.source == SIMULATED.source


@given(st.integers(4, 1499), st.sampled_from(["4h", "1d"]), st.integers(0, 9))
def test_turning_the_clock_back_and_resampling_commute(row: int, long: str, seed: int) -> None:
    candles = holed(SIMULATED, 0.02, seed)
    time = SIMULATED.known_at[row]
    longer = resample_candles(candles, long)
    if longer.known_at[0] > time:
        return
    assert longer.as_of(time).sha256 == resample_candles(candles.as_of(time), long).sha256


def test_trusted_candles_take_only_the_form_of_candles() -> None:
    frame = SIMULATED.frame
    market, where = SIMULATED.market, SIMULATED.source
    assert trusted_candles(frame, market, where) == SIMULATED
    assert hash(trusted_candles(frame, market, where)) == hash(SIMULATED)
    assert trusted_candles(frame[:-1], market, where) != SIMULATED
    assert SIMULATED != "candles"
    for wrong, words in (
        (frame[::-1], "index: expected increasing"),
        (frame.set_axis(frame.index.as_unit("ns")), "datetime64\\[ms, UTC\\]"),
        (frame.rename_axis("time"), "called timestamp"),
        (pd.concat([frame[:2], frame[1:]]), "index: expected increasing"),
        (frame[["close", "open", "high", "low", "volume"]], "columns: expected open, high"),
        (frame.astype("float32"), "dtypes: expected float64"),
        (frame[:0], "0 bars, but at least 1"),
    ):
        with pytest.raises(CandlesError, match=words):
            trusted_candles(wrong, market, "here")


# Joins


@given(
    st.sampled_from(["1h", "4h", "1d"]),
    st.sampled_from(["1h", "4h", "1d"]),
    st.floats(0, 0.3),
    st.integers(0, 99),
    st.sampled_from([None, 0, 1, 3, 1000]),
)
def test_joins_equal_merge_asof(
    short: str, long: str, share: float, seed: int, bars: int | None
) -> None:
    base, other = (
        holed(of_timeframe(short), share, seed),
        holed(of_timeframe(long), share, seed + 1),
    )
    age = None if bars is None else bars * other.timeframe
    joined = closed_values(base.known_at, other.frame, other.timeframe, max_age=age)
    closed = other.frame.set_axis(other.known_at.as_unit("ms")).rename_axis("at").reset_index()
    expected = pd.merge_asof(
        pd.DataFrame({"known": base.known_at.as_unit("ms")}),
        closed.assign(closed=closed["at"]),
        left_on="known",
        right_on="at",
        allow_exact_matches=True,
        tolerance=3 * other.timeframe if age is None else age,
    )
    names = list(other.frame.columns)
    np.testing.assert_array_equal(joined.frame.to_numpy(), expected[names].to_numpy())
    at = joined.available_at.reset_index(drop=True)
    pd.testing.assert_series_equal(at, expected["closed"], check_names=False)
    assert joined.without_partner == pytest.approx(expected["closed"].isna().mean())
    assert f"{len(base)} rows, 5 columns" in repr(joined)


@settings(max_examples=40)
@given(st.integers(50, 1400), st.sampled_from(["1h", "4h", "1d"]), st.floats(0, 0.2))
def test_the_future_changes_nothing_before_it(cut: int, long: str, share: float) -> None:
    base, other = SIMULATED, holed(of_timeframe(long), share, cut)
    now = base.known_at[cut]
    changed = other.frame.copy()
    future = np.asarray(other.known_at > now)
    changed[future] = np.random.default_rng(cut).random((int(future.sum()), 5))
    for later in (changed, changed[~future]):
        before = closed_values(base.known_at[: cut + 1], other.frame, other.timeframe)
        after = closed_values(base.known_at[: cut + 1], later, other.timeframe)
        pd.testing.assert_frame_equal(before.frame, after.frame)
        pd.testing.assert_series_equal(before.available_at, after.available_at)
    known = before.available_at.dropna()
    assert (known <= known.index).all()
    # and the bar that closes at this very moment is known
    if now in other.known_at:
        assert before.available_at.iloc[-1] == now


def test_a_naive_join_leaks_and_the_safe_one_does_not() -> None:
    walk = simulate("none", bars=6000, seed=1).candles
    close = walk.frame["close"]
    long = resample_candles(walk, "4h").frame[["close"]]
    ahead = np.sign(close.shift(-1) - close)
    naive = np.sign(long["close"].reindex(walk.index, method="ffill") - close)
    safe = closed_values(walk.known_at, long, 4 * HOUR).frame["close"].to_numpy()
    right = [(signal == ahead)[signal != 0].mean() for signal in (naive, np.sign(safe - close))]
    assert right[0] > 0.65 and abs(right[1] - 0.5) < 0.03


def test_rows_in_any_order_and_without_partner() -> None:
    index = pd.DatetimeIndex(["2024-01-01 00:00", "2024-01-01 04:00"], tz="UTC")
    frame = pd.DataFrame({"a": [1, 2]}, index=index)
    known = (
        pd.DatetimeIndex(
            [
                "2024-01-01 09:00",
                "2024-01-01 03:59",
                "2024-01-01 04:00",
                "2024-01-05",
                "2024-01-01 20:00",
            ],
            tz="Asia/Tokyo",
        ).tz_convert("UTC")
        + 9 * HOUR
    )
    joined = closed_values(known, frame, 4 * HOUR)
    np.testing.assert_array_equal(joined.frame["a"], [2, np.nan, 1, np.nan, 2])
    assert joined.without_partner == 0.4
    assert closed_values(known[:0], frame, HOUR).without_partner == 0
    nothing = closed_values(known, frame[:0], HOUR)
    assert nothing.without_partner == 1 and nothing.available_at.isna().all()
    assert closed_values(known, frame, 4 * HOUR, max_age=pd.Timedelta(0)).without_partner == 0.8


def test_what_cannot_be_joined_is_said() -> None:
    known, frame = SIMULATED.known_at, SIMULATED.frame
    for times, table, length, age, words in (
        (known.tz_localize(None), frame, HOUR, None, "known_at must be times with a time zone"),
        (known, frame.reset_index(drop=True), HOUR, None, "the frame's index must be times"),
        (
            known[:2].append(pd.DatetimeIndex([pd.NaT], tz="UTC")),
            frame,
            HOUR,
            None,
            "row 2 is miss",
        ),
        (known, frame[::-1], HOUR, None, "must increase; row 1"),
        (known, frame.iloc[[0, 1, 1]], HOUR, None, "must increase; row 2"),
        (known, frame, 0 * HOUR, None, "a bar must have a length"),
        (known, frame, HOUR, -HOUR, "max_age .*expected 0 or more"),
    ):
        with pytest.raises(CandlesError, match=words):
            closed_values(times, table, length, max_age=age)


def test_another_market() -> None:
    other = simulate("vol", bars=1500, seed=8, gaps=30).candles
    joined = join_candles(SIMULATED, other, max_gap=0)
    assert 0 < joined.without_partner < 0.3
    assert join_candles(SIMULATED, other).without_partner < joined.without_partner
    with pytest.raises(CandlesError, match="max_gap=-1"):
        join_candles(SIMULATED, other, max_gap=-1)
    with pytest.raises(CandlesError, match="the two do not overlap"):
        join_candles(SIMULATED, simulate("vol", bars=50, end="2020-01-01").candles)


# Real candles

UNSOURCED = pd.Timestamp("2023-12-31", tz="UTC")  # in the files of 5m
ODD = {"2023-03-24 12:00", "2017-09-09 20:00"}


def test_resampled_bars_equal_the_exchanges_own_for_every_symbol(real_candles_folder: Path) -> None:
    """5m, 15m, 1h and 4h of one symbol agree but where short bars are missing or cut off."""
    symbols = sorted({path.name.split("_")[1] for path in real_candles_folder.glob("binance_*")})
    compared, differ = 0, set()
    for symbol in symbols:
        names = [f"binance_{symbol}_{timeframe}.parquet" for timeframe in ("5m", "15m", "1h", "4h")]
        loaded = [
            load_candles(path) for name in names if (path := real_candles_folder / name).exists()
        ]
        for position, short in enumerate(loaded):
            for own in loaded[position + 1 :]:
                dropped = resample_candles(short, own.market.timeframe)
                kept = resample_candles(short, own.market.timeframe, missing="keep")
                inside = own.index[(own.index >= kept.index[0]) & (own.index <= kept.index[-1])]
                inside = inside[inside.floor("D") != UNSOURCED]
                parts = short.index.floor(own.timeframe).value_counts()
                partial = parts.index[parts < own.timeframe // short.timeframe]
                # a bar wherever the exchange has one, and only whole ones unless said otherwise
                assert not set(inside) - set(kept.index)
                assert set(inside) - set(dropped.index) <= set(partial)
                for built in (dropped, kept):
                    both = built.index.intersection(own.index)
                    same = np.isclose(built.frame.loc[both], own.frame.loc[both], rtol=1e-9, atol=0)
                    compared += len(both)
                    differ |= {f"{time:%Y-%m-%d %H:%M}" for time in both[~same.all(axis=1)]}
    assert len(symbols) == 12
    assert compared > 1_000_000
    assert differ == ODD


def test_a_months_outage_leaves_rows_without_partner(real_candles_folder: Path) -> None:
    bitcoin = load_candles(real_candles_folder / "binance_BTCUSDT_1h.parquet")
    short = load_candles(real_candles_folder / "binance_BTCUSDT_15m.parquet")
    joined = join_candles(short, bitcoin)
    assert joined.without_partner == 0
    # one hour lacks a bar, so that the last one is used for longer
    age = joined.frame.index - pd.DatetimeIndex(joined.available_at)
    assert age.max() == pd.Timedelta("105min") and (age < HOUR).mean() > 0.9999
    own = joined.frame["close"].to_numpy()[age == pd.Timedelta(0)]
    at_the_hour = short.frame["close"].to_numpy()[age == pd.Timedelta(0)]
    assert (own == at_the_hour).mean() > 0.9999
    halt = load_candles(
        real_candles_folder / "bitfinex_BTCUSD_1m.parquet", start="2016-08-01", end="2016-08-12"
    )
    hours = join_candles(bitcoin.as_of("2017-09-01"), bitcoin)
    assert hours.without_partner == 0
    later = closed_values(
        pd.date_range("2016-08-01", "2016-08-12", freq="h", tz="UTC"), halt.frame, halt.timeframe
    )
    assert 0.7 < later.without_partner < 0.8


def test_segments_still_come_from_candles() -> None:
    index = SIMULATED.index.delete(slice(10, 20))
    assert segment_ids(index, HOUR, 3).max() == 1
    assert Market("example", "BTCUSDT", "1h").symbol == "BTCUSDT"
