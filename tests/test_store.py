"""The store: what was said, when it was seen, whole or not at all."""

from __future__ import annotations

import errno
import itertools
import multiprocessing
import os
import resource
import shutil
import signal
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paged_exchange import Answered, candles, rewrite_and_die, utc

from crypto_ml import parts as parts_module
from crypto_ml.candles import COLUMNS, Candles, Market, load_candles
from crypto_ml.errors import CandlesError
from crypto_ml.pages import SETTLE, recheck_after
from crypto_ml.parts import locked
from crypto_ml.rows import decode_rows, encode, partitions_of, rows_of
from crypto_ml.spans import common, inside, joined, without
from crypto_ml.store import Store, Written, store_folder

HOURLY = Market("bitbank", "BTCJPY", "1h")
MINUTES = Market("bitbank", "BTCJPY", "1m")
HOUR = pd.Timedelta("1h")
LATER = utc("2025-01-01")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def page(frame: pd.DataFrame, start: str = "", end: str = "", step: str = "1h") -> Answered:
    first = utc(start) if start else frame.index[0]
    last = utc(end) if end else frame.index[-1] + pd.Timedelta(step)
    return Answered(first, last, frame)


def fingerprint(store: Store, market: Market = HOURLY) -> tuple[object, ...]:
    """All that a reader can see of a market, and its files."""
    if market not in store.markets():
        return ()
    folder = store.market_folder(market)
    names = sorted(path.name for path in folder.iterdir())
    return (store.read(market, unasked="keep").sha256, store.covered(market), names)


# ---- spans

MOMENTS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=8)


@settings(max_examples=200)
@given(MOMENTS, MOMENTS)
def test_spans_are_sets(one, other):
    def members(spans):
        return {n for a, b in spans for n in range(a, b)}

    assert members(joined(one)) == members(one)
    assert members(without(one, other)) == members(one) - members(other)
    assert members(common(one, other)) == members(one) & members(other)
    for spans in (joined(one), without(one, other), common(one, other)):
        assert all(a < b for a, b in spans) and all(x[1] < y[0] for x, y in pairwise(spans))
    times = np.arange(-1, 62)
    assert set(times[inside(times, one)].tolist()) == members(one)


# ---- rows and parts


def test_rows_survive_parquet_bit_for_bit():
    frame = candles("2024-01-01", 3000, "1m")
    frame.iloc[5, 4], frame.iloc[6, 4] = 5e-324, 0.1 + 0.2
    rows = rows_of(frame, 1_700_000_000_123)
    again = decode_rows(encode(rows))
    for name in ("times", "values", "seen"):
        assert getattr(again, name).tobytes() == getattr(rows, name).tobytes()


def test_files_are_neither_tiny_nor_large():
    for timeframe, per_year in (("1m", 12), ("5m", 12), ("15m", 1), ("1h", 1), ("1d", 1)):
        times = candles("2023-01-01", 365, "1d").index.asi8
        assert len(set(partitions_of(times, timeframe))) == per_year


# ---- what is final

RECORD = "defects/bitbank_BTCJPY_1h_revisions.parquet"


def sightings(folder: Path):
    """Yield the record's pages in the order in which they were seen."""
    record = pd.read_parquet(folder / RECORD)
    for seen, rows in record.groupby("seen_at"):
        yield seen, rows.set_index("timestamp")[list(COLUMNS)].sort_index()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, real_candles_folder) -> tuple[Store, list[Written]]:
    """A store to which the record's pages came as they were seen, and what each did."""
    store = Store(tmp_path_factory.mktemp("record"))
    return store, [
        store.write(HOURLY, page(frame), seen) for seen, frame in sightings(real_candles_folder)
    ]


def test_the_record_of_revised_hours_holds_no_revision_of_a_final_one(
    recorded, real_candles_folder
):
    store, counts = recorded
    final: dict[pd.Timestamp, np.ndarray] = {}
    unfinished = 0
    for seen, frame in sightings(real_candles_folder):
        for time, row in frame.iterrows():
            if time + HOUR + SETTLE <= seen:
                final.setdefault(time, row.to_numpy())
            else:
                unfinished += 1
    assert sum(one.unfinished for one in counts) == unfinished == 168
    assert sum(one.revised for one in counts) == 0
    assert sum(one.new for one in counts) == len(final) == 250
    held = store.frame(HOURLY)
    assert held.index.tolist() == sorted(final)
    assert np.array_equal(held.to_numpy(), np.array([final[time] for time in held.index]))


def test_the_record_as_of_any_moment(recorded, real_candles_folder):
    store, _ = recorded
    seen_by: dict[pd.Timestamp, dict[pd.Timestamp, np.ndarray]] = {}
    moments = []
    for seen, frame in sightings(real_candles_folder):
        moments.append(seen)
        for time, row in frame.iterrows():
            if time + HOUR + SETTLE <= seen:
                seen_by.setdefault(time, {})[seen] = row.to_numpy()
    for then in moments[::9]:
        held = store.frame(HOURLY, as_of=then)
        closed = sorted(time for time in seen_by if time + HOUR <= then)
        assert held.index.tolist() == closed
        for time, row in zip(closed, held.to_numpy(), strict=True):
            sights = sorted(seen_by[time])
            last = [seen for seen in sights if seen <= max(then, sights[0])][-1]
            assert np.array_equal(row, seen_by[time][last])


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(st.integers(0, 7), st.integers(1, 8), st.integers(0, 200), st.integers(0, 2)),
        min_size=1,
        max_size=12,
    )
)
def test_any_order_of_pages_against_a_plain_model(tmp_path_factory, steps):
    """Pages that overlap, repeat, revise, come early and late, beside dicts that do the same."""
    store = Store(tmp_path_factory.mktemp("model"))
    base = candles("2024-01-01", 15, "1h")
    sights: dict[pd.Timestamp, list[tuple[pd.Timestamp, float]]] = {}
    clock = utc("2024-01-01 00:30")
    for first, length, minutes, change in steps:
        clock += pd.Timedelta(minutes=minutes, seconds=1)
        frame = base.iloc[first : first + length].copy()
        frame["volume"] += change
        store.write(HOURLY, page(frame), clock)
        for time, value in frame["volume"].items():
            if time + HOUR + SETTLE <= clock:
                seen = sights.setdefault(time, [])
                if not seen or seen[-1][1] != value:
                    seen.append((clock, value))
    if not sights:
        return
    times = sorted(sights)
    first = store.frame(HOURLY)["volume"]
    latest = store.frame(HOURLY, revisions="latest")["volume"]
    assert latest.to_dict() == {time: sights[time][-1][1] for time in times}
    late = set(times) - set(first.index)
    assert first.to_dict() == {time: sights[time][0][1] for time in times if time not in late}
    for then in (clock, clock - pd.Timedelta("2h"), utc("2024-01-01 04:00")):
        if not any(time + HOUR <= then for time in times):
            continue
        held = store.frame(HOURLY, as_of=then)["volume"].to_dict()
        for time, value in held.items():
            assert time + HOUR <= then
            known = [v for s, v in sights[time] if s <= max(then, sights[time][0][0])]
            assert value == known[-1]
        assert set(held) >= {time for time in times if time + HOUR <= then} - late
    changed = {time for time in times if sights[time][-1][1] != sights[time][0][1]}
    assert set(store.revisions(HOURLY)["time"]) >= changed - late


def test_a_revision_keeps_both_values_and_both_times(store):
    frame = candles("2024-01-01", 5, "1h")
    store.write(HOURLY, page(frame), utc("2024-01-01 06:00"))
    other = frame.copy()
    other.iloc[2, 4] += 1
    written = store.write(HOURLY, page(other), utc("2024-01-03"))
    assert (written.unchanged, written.revised) == (4, 1)
    (row,) = store.revisions(HOURLY).to_dict("records")
    assert row == {
        "time": frame.index[2],
        "column": "volume",
        "first": frame["volume"].iloc[2],
        "latest": frame["volume"].iloc[2] + 1,
        "first_seen_at": utc("2024-01-01 06:00"),
        "seen_at": utc("2024-01-03"),
    }
    assert store.write(HOURLY, page(other), utc("2024-01-04")).revised == 0
    assert store.write(HOURLY, page(frame), utc("2024-01-05")).revised == 1  # and back again
    assert len(store.revisions(HOURLY)) == 0 and store.describe(HOURLY).revisions == 0
    between = store.frame(HOURLY, as_of=utc("2024-01-04 12:00"))
    assert between["volume"].iloc[2] == other["volume"].iloc[2]


def test_a_bar_that_appears_where_there_was_none_is_a_revision_of_nothing(store):
    frame = candles("2024-01-01", 5, "1h")
    store.write(HOURLY, page(frame.drop(frame.index[2])), utc("2024-01-02"))
    assert store.write(HOURLY, page(frame), utc("2024-01-03")).revised == 1
    assert len(store.read(HOURLY)) == 4
    assert store.read(HOURLY, revisions="latest").frame.equals(frame)
    assert len(store.read(HOURLY, as_of="2024-01-02 12:00")) == 4
    assert len(store.read(HOURLY, as_of="2024-01-03")) == 5
    told = store.revisions(HOURLY)
    assert len(told) == 5 and told["first"].isna().all() and told["first_seen_at"].isna().all()


def test_an_older_sighting_that_is_written_later_changes_nothing(store):
    frame = candles("2024-01-01", 5, "1h")
    store.write(HOURLY, page(frame), utc("2024-01-03"))
    assert store.write(HOURLY, page(frame + 1.0), utc("2024-01-02")).revised == 0
    assert store.read(HOURLY, revisions="latest").frame.equals(frame)


def test_what_was_asked_decides_not_when_the_answer_came(store):
    frame = candles("2024-01-01", 3, "1h")
    close = utc("2024-01-01 03:00")
    written = store.write(
        HOURLY, page(frame), close + pd.Timedelta("1min"), asked_at=close - pd.Timedelta("1s")
    )
    assert (written.new, written.unfinished) == (2, 1)
    assert store.missing(HOURLY, frame.index[0], close)[-1][1] == close


@pytest.mark.parametrize("timeframe", ["1m", "1h", "1w"])
def test_young_bars_are_missing_until_they_are_old(store, timeframe):
    step = pd.Timedelta({"1m": "1min", "1h": "1h", "1w": "7D"}[timeframe])
    market = Market("bitbank", "BTCJPY", timeframe)
    frame = candles("2024-01-01", 30, timeframe)
    end = frame.index[-1] + step
    store.write(market, Answered(frame.index[0], end, frame), end + SETTLE)
    young = end + SETTLE - recheck_after(timeframe)
    (missing,) = store.missing(market, frame.index[0], end)
    assert missing[0] <= young < missing[0] + step and missing[1] == end
    store.write(market, Answered(*missing, frame[missing[0] :]), end + recheck_after(timeframe))
    assert store.missing(market, frame.index[0], end) == []


# ---- pages that are refused


def broken(kind: str) -> Answered:
    frame = candles("2024-01-01", 6, "1h")
    if kind == "nan":
        frame.iloc[3, 1] = np.nan
    elif kind == "impossible":
        frame.iloc[3, 1] = 1.0
    elif kind == "unsorted":
        frame = frame.iloc[[0, 2, 1, 3]]
    elif kind == "twice":
        frame = frame.iloc[[0, 1, 1, 2]]
    elif kind == "grid":
        frame.index = frame.index + pd.Timedelta("1min")
    return page(frame, end="2024-01-01 03:00" if kind == "outside" else "2024-01-01 07:00")


@pytest.mark.parametrize("kind", ["nan", "impossible", "unsorted", "twice", "grid", "outside"])
def test_a_broken_page_is_refused_whole(store, kind):
    with pytest.raises(CandlesError, match=r"nothing was stored"):
        store.write(HOURLY, broken(kind), LATER)
    assert store.markets() == []


def test_a_sparse_page_is_no_defect(store):
    frame = candles("2024-01-01", 9, "1h").iloc[[0, 4, 8]]
    assert store.write(HOURLY, page(frame), LATER).new == 3


# ---- reading


def filled(store: Store, bars: int = 2000, market: Market = HOURLY) -> pd.DataFrame:
    frame = candles("2023-11-01", bars, market.timeframe)
    step = frame.index[1] - frame.index[0]
    for at in range(0, bars, 300):
        part = frame.iloc[at : at + 300]
        store.write(market, Answered(part.index[0], part.index[-1] + step, part), LATER)
    return frame


def test_candles_are_those_that_went_in(store):
    frame = filled(store)
    held = store.read(HOURLY)
    assert isinstance(held, Candles) and held.frame.equals(frame)
    assert held.sha256 == Candles(frame, HOURLY, "elsewhere").sha256
    assert held.source == "store bitbank:BTCJPY:1h" and held.frame.index.name == "timestamp"
    assert str(held.index.dtype) == "datetime64[ms, UTC]" and store.markets() == [HOURLY]
    held.frame.iloc[0, 0] = 1.0  # the caller's own, and writable


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("2023-12-31 22:00", "2024-01-01 02:00"),
        ("2023-11-03", None),
        (None, "2023-11-03 00:30"),
        ("2023-12-01 00:30", "2023-12-02"),
    ],
)
def test_a_span_is_the_bars_that_open_and_close_in_it(store, start, end):
    frame = filled(store)
    first = utc(start) if start else frame.index[0]
    last = utc(end) if end else frame.index[-1] + HOUR
    expected = frame[(frame.index >= first) & (frame.index + HOUR <= last)]
    assert store.read(HOURLY, start=start, end=end).frame.equals(expected)
    pd.testing.assert_frame_equal(
        store.frame(HOURLY, start=start, end=end, columns=["close", "open"]),
        expected[["close", "open"]],
        check_freq=False,
    )


def test_unasked_stretches_are_refused_unless_wanted(store):
    frame = candles("2024-01-01", 240, "1h")
    for part in (frame[:48], frame[96:144], frame[192:]):
        store.write(HOURLY, page(part), LATER)
    with pytest.raises(
        CandlesError, match="never asked about 2024-01-03 00:00 to 2024-01-05 00:00; 2024-01-07"
    ):
        store.read(HOURLY)
    assert len(store.read(HOURLY, unasked="keep")) == 144
    assert len(store.read(HOURLY, start="2024-01-01", end="2024-01-03")) == 48
    for span in (
        {"start": "2023-12-31", "end": "2024-01-02"},
        {"start": "2024-01-10", "end": "2024-02-01"},
    ):
        with pytest.raises(CandlesError, match="never asked"):
            store.read(HOURLY, **span)
    assert len(store.read(HOURLY, start="2024-01-09", as_of="2024-02-01")) == 48


def test_spans_and_markets_that_are_not_there(store):
    filled(store)
    with pytest.raises(
        CandlesError, match=r"no bar there; the store has bars from 2023-11-01 00:00"
    ):
        store.read(HOURLY, start="2025-01-01")
    with pytest.raises(CandlesError, match="the start must come before the end"):
        store.read(HOURLY, start="2024-01-01", end="2023-01-01")
    with pytest.raises(CandlesError, match="expected first_final or latest"):
        store.read(HOURLY, revisions="newest")
    with pytest.raises(CandlesError, match="did you mean 'bitbank:BTCJPY:1h'"):
        store.read(Market("bitbank", "BTCJPY", "4h"))
    with pytest.raises(CandlesError, match="it is empty"):
        Store(store.folder / "nowhere").read(HOURLY)


def test_a_market_that_was_asked_about_and_has_nothing(store):
    nothing = Answered(utc("2024-01-01"), utc("2024-01-02"), candles("2024-01-01", 1, "1h")[:0])
    assert store.write(HOURLY, nothing, LATER).counts == (0, 0, 0, 0, 0)
    assert store.missing(HOURLY, utc("2024-01-01"), utc("2024-01-02")) == []
    with pytest.raises(CandlesError, match="the store has bars nowhere"):
        store.read(HOURLY)
    summary = store.describe(HOURLY)
    assert (summary.bars, summary.first, summary.last, len(summary.gaps)) == (0, None, None, 0)


def test_odd_names_stay_in_their_folder(store):
    frame = candles("2024-01-01", 3, "1h")
    for symbol in ("../../X", ".HIDDEN", "BTCUSDT.USDT-240628", "币"):
        market = Market("bybit", symbol, "1h")
        store.write(market, page(frame), LATER)
        assert store.read(market).frame.equals(frame)
    assert len(store.markets()) == 4
    assert {path.relative_to(store.folder).parts[0] for path in store.folder.iterdir()} == {
        "bybit",
        ".locks",
    }


def test_the_summary(store):
    frame = candles("2024-01-01", 240, "1h")
    holes = [*range(30, 33), 60]
    kept = frame.drop(frame.index[holes])
    for part, end in ((kept[:100], ""), (kept[180:], "")):
        store.write(HOURLY, page(part, end=end), LATER)
    summary = store.describe(HOURLY)
    assert (summary.bars, summary.revisions, summary.files) == (156, 0, 1)
    assert summary.first == frame.index[0] and summary.last == frame.index[-1] + HOUR
    assert summary.gaps["missing"].tolist() == [3, 1]
    assert summary.gaps["start"].tolist() == [frame.index[30], frame.index[60]]
    assert summary.gaps["end"].tolist() == [frame.index[33], frame.index[61]]
    assert summary.unasked == [(kept.index[99] + HOUR, kept.index[180])]
    folder = store.market_folder(HOURLY)
    assert summary.bytes == sum(path.stat().st_size for path in folder.glob("*.parquet"))
    assert summary.last_sync == LATER


def test_where_the_store_is(monkeypatch, tmp_path):
    monkeypatch.setenv("CRYPTO_ML_STORE", str(tmp_path))
    assert store_folder() == Store().folder == tmp_path and str(tmp_path) in repr(Store())
    monkeypatch.delenv("CRYPTO_ML_STORE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert store_folder() == tmp_path / "crypto_ml" / "candles"


# ---- out of the store


def test_exports_are_candle_files(store, tmp_path):
    frame = filled(store, 500)
    for target in (tmp_path, tmp_path / "bitbank_BTCJPY_1h.csv"):
        made = store.export(HOURLY, target)
        assert load_candles(made).frame.equals(frame)
    with pytest.raises(CandlesError, match=r"ends in .parquet or .csv"):
        store.export(HOURLY, tmp_path / "bars.xlsx")
    with pytest.raises(CandlesError, match="cannot be written: "):
        store.export(HOURLY, tmp_path / "nowhere" / "bars.csv")
    assert len([path for path in tmp_path.iterdir() if path.is_file()]) == 2


def test_a_removed_market_is_gone(store):
    filled(store, 500)
    filled(store, 500, MINUTES)
    assert store.remove(HOURLY) == 500 and store.markets() == [MINUTES]
    with pytest.raises(CandlesError, match="has no bitbank:BTCJPY:1h"):
        store.remove(HOURLY)


# ---- damage


def parts_of(store: Store, market: Market = HOURLY) -> list[Path]:
    return [store.market_folder(market) / part.name for part in store.manifest(market).parts]


def alter(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "altered":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif how == "gone":
        path.unlink()
    else:
        path.write_bytes(b"")


WORDS = {
    "truncated": "bytes, but",
    "altered": "was altered",
    "gone": "is gone",
    "empty": "holds 0 bytes",
}


@pytest.mark.parametrize("how", WORDS)
def test_damage_is_noticed_and_mended_by_the_next_sync(store, how):
    frame = filled(store)
    alter(parts_of(store)[0], how)
    with pytest.raises(CandlesError, match=WORDS[how]) as told:
        store.read(HOURLY)
    assert "data remove bitbank:BTCJPY:1h --damaged" in str(told.value)
    assert store.read(HOURLY, start="2024-01-01").frame.equals(
        frame["2024-01-01":]
    )  # the rest is whole
    with pytest.raises(CandlesError, match=WORDS[how]):
        store.write(HOURLY, page(frame[:20]), LATER)
    lost = store.repair(HOURLY)
    assert (
        lost
        == [(frame.index[0], utc("2024-01-01"))]
        == store.missing(HOURLY, frame.index[0], frame.index[-1])
    )
    assert store.repair(HOURLY) == []
    store.write(HOURLY, page(frame[: utc("2023-12-31 23:00")]), LATER)
    assert store.read(HOURLY).frame.equals(frame)


def test_damaged_revisions_are_asked_about_again(store):
    frame = candles("2024-01-01", 40, "1h")
    store.write(HOURLY, page(frame), utc("2024-02-01"))
    other = frame.copy()
    other.iloc[[10, 12], 4] += 1
    store.write(HOURLY, page(other), utc("2024-02-02"))
    (later,) = store.market_folder(HOURLY).glob("revisions-*")
    alter(later, "altered")
    with pytest.raises(CandlesError, match="was altered"):
        store.read(HOURLY, revisions="latest")
    assert store.repair(HOURLY) == [(frame.index[10], frame.index[13])]
    store.write(HOURLY, page(other[10:13]), utc("2024-02-03"))
    assert store.read(HOURLY, revisions="latest").frame.equals(other)


def test_repair_keeps_revisions_of_whole_parts_only(store):
    frame = filled(store)
    other = frame.copy()
    other.iloc[[5, -5], 4] += 1
    store.write(HOURLY, page(other), utc("2025-02-01"))
    alter(parts_of(store)[0], "gone")
    store.repair(HOURLY)
    assert store.revisions(HOURLY)["time"].tolist() == [frame.index[-5]]
    alter(parts_of(store)[0], "gone")
    store.repair(HOURLY)
    assert store.revisions(HOURLY).empty and store.manifest(HOURLY).files == ()


@pytest.mark.parametrize("how", ["altered", "truncated", "empty"])
def test_a_damaged_manifest_is_noticed(store, how):
    filled(store, 300)
    alter(store.market_folder(HOURLY) / "market.json", how)
    with pytest.raises(CandlesError, match=r"market.json is damaged"):
        store.read(HOURLY)


def test_a_manifest_of_another_format_is_refused(store, monkeypatch):
    monkeypatch.setattr(parts_module, "FORMAT", 2)
    filled(store, 300)
    monkeypatch.undo()
    with pytest.raises(CandlesError, match="has format 2, this version reads 1"):
        store.read(HOURLY)


# ---- full disks and other obstacles


@pytest.mark.parametrize("revising", [False, True])
def test_a_disk_that_is_full_at_any_step(store, monkeypatch, revising):
    frame = candles("2023-12-30", 96, "1h")
    store.write(HOURLY, page(frame[:24]), utc("2024-02-01"))
    before, done, failures = fingerprint(store), False, 0
    new = page(frame + 1.0 if revising else frame)
    while not done:
        calls = iter(range(failures))
        real = os.fsync

        def fsync(handle, calls=calls, real=real):
            if next(calls, None) is None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(handle)

        monkeypatch.setattr(os, "fsync", fsync)
        try:
            store.write(HOURLY, new, utc("2024-03-01"))
            done = True
        except CandlesError as error:
            assert "No space left on device. Nothing of this page was stored" in str(error)
            monkeypatch.undo()
            assert fingerprint(store) == before
            failures += 1
        monkeypatch.undo()
    assert failures >= 4 and len(store.read(HOURLY)) == 96


def test_a_new_market_that_cannot_be_written_leaves_no_trace(store, monkeypatch):
    def full(_handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CandlesError, match="No space left"):
        store.write(HOURLY, page(candles("2024-01-01", 24, "1h")), LATER)
    assert store.markets() == [] and not store.market_folder(HOURLY).exists()


def write_with_little_room(folder: str, room: int) -> None:
    """Write a large page where no file may be larger than so many bytes; in a child."""
    store = Store(Path(folder))
    frame = candles("2023-11-01", 2000, "1h")
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    with pytest.raises(CandlesError, match=r"File too large|No space left"):
        store.write(HOURLY, page(frame), LATER)


def test_a_file_that_grows_too_large_for_the_disk(store):
    frame = candles("2023-11-01", 100, "1h")
    store.write(HOURLY, page(frame), LATER)
    before = fingerprint(store)
    child = multiprocessing.get_context("spawn").Process(
        target=write_with_little_room, args=(str(store.folder), 20_000)
    )
    child.start()
    child.join()
    assert child.exitcode == 0 and fingerprint(store) == before


def test_a_folder_that_may_not_be_written(store, monkeypatch):
    frame = filled(store, 300)
    before, real = fingerprint(store), Path.open

    def refuse(path, mode="r", *args, **kwargs):
        if "r" not in mode:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CandlesError, match=r"Permission denied.*CRYPTO_ML_STORE"):
        store.write(HOURLY, page(frame), LATER)
    assert store.read(HOURLY).frame.equals(frame)
    monkeypatch.undo()
    assert fingerprint(store) == before


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "store").write_text("")
    with pytest.raises(CandlesError, match="cannot be written in"):
        Store(tmp_path / "store").write(HOURLY, page(candles("2024-01-01", 3, "1h")), LATER)


def test_a_kill_at_every_step_leaves_the_old_or_the_new(tmp_path):
    before, after = Store(tmp_path / "before"), Store(tmp_path / "after")
    for store in (before, after):
        store.write(HOURLY, page(candles("2023-12-20", 400, "1h")), utc("2024-12-31"))
    after.write(HOURLY, page(candles("2023-12-20", 600, "1h") + 1.0), LATER)

    def state(store: Store) -> tuple[object, ...]:
        latest = store.read(HOURLY, revisions="latest")
        return store.read(HOURLY).sha256, latest.sha256, store.covered(HOURLY)

    seen, forks = [], multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["crypto_ml.sync"])
    for step in itertools.count():
        store = Store(tmp_path / f"{step}")
        shutil.copytree(before.folder, store.folder)
        child = forks.Process(target=rewrite_and_die, args=(str(store.folder), step))
        child.start()
        child.join()
        seen.append(state(store))
        store.write(HOURLY, page(candles("2023-12-20", 600, "1h") + 1.0), LATER)
        assert state(store) == state(after)
        held = {path.name for path in store.market_folder(HOURLY).iterdir()}
        assert held == {part.name for part in store.manifest(HOURLY).files} | {"market.json"}
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
    assert set(map(repr, seen)) == {repr(state(before)), repr(state(after))}
    assert step >= 10 and seen == sorted(seen, key=lambda one: one == state(after))


def test_strays_are_ignored_and_cleared_away(store):
    frame = filled(store, 300)
    folder = store.market_folder(HOURLY)
    for name in ("2023-0123456789abcdef.parquet", ".market.json.0123.partial", "notes.txt"):
        (folder / name).write_bytes(b"half")
    assert store.read(HOURLY).frame.equals(frame)
    store.write(HOURLY, page(frame), LATER)
    assert {path.name for path in folder.iterdir()} - {path.name for path in parts_of(store)} == {
        "market.json",
        "notes.txt",
    }


def test_a_stray_that_cannot_be_removed_is_in_nobodys_way(store, monkeypatch):
    frame = filled(store, 300)

    def refuse(path, missing_ok=False):
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(Path, "unlink", refuse)
    store.write(HOURLY, page(frame + 1.0), utc("2025-02-01"))
    monkeypatch.undo()
    assert store.describe(HOURLY).revisions == 300


def test_a_market_held_by_another_is_waited_for_and_then_given_up(tmp_path):
    held, second = (locked(HOURLY, tmp_path / "x.lock", seconds=0.1) for _ in range(2))
    words = "another process has been writing it for 0[.]1 seconds"
    with held, pytest.raises(CandlesError, match=words), second:
        raise AssertionError("both hold it")


def test_a_reader_sees_one_version_while_a_writer_goes_on(store):
    frame = filled(store, 300)
    with store.opened(HOURLY) as held:
        store.write(HOURLY, page(frame + 1.0), utc("2025-02-01"))
        store.write(HOURLY, page(candles("2023-11-01", 400, "1h")), utc("2025-02-02"))
        (part,) = held.manifest.parts
        assert decode_rows(held.content(part)).values.tobytes() == frame.to_numpy().T.tobytes()
    assert len(store.read(HOURLY)) == 400


def test_a_reader_that_comes_between_manifest_and_parts_takes_the_newer(store, monkeypatch):
    frame = filled(store, 300)
    real, calls = parts_module.manifest_in, []

    def slow(folder):
        found = real(folder)
        if not calls:
            calls.append(1)
            store.write(HOURLY, page(candles("2023-11-01", 400, "1h")), utc("2025-02-02"))
        return found

    monkeypatch.setattr(parts_module, "manifest_in", slow)
    assert len(store.read(HOURLY)) == 400 > len(frame)
