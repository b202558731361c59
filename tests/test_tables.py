"""Tables of bars: every spelling means one thing, and what could mean two is refused."""

from __future__ import annotations

import gzip
import re
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto_ml.errors import CandlesError
from crypto_ml.tables import (
    ALIASES,
    COLUMNS,
    EPOCH_UNITS,
    read_table,
    read_times,
    standardise,
)

HEADER = "timestamp,open,high,low,close,volume\n"
ROW = "2024-01-01T00:00Z,1,2,0.5,1.5,10\n"
INSTANTS = pd.DatetimeIndex(["2024-01-01 00:00", "2024-01-01 01:00"], tz="UTC")


def bars(**columns: Any) -> pd.DataFrame:
    values = {
        "timestamp": INSTANTS,
        "open": 1.0,
        "high": 2.0,
        "low": 0.5,
        "close": 1.5,
        "volume": 9,
    }
    return pd.DataFrame({**values, **columns})


def times(values: Any, timezone: str = "") -> tuple[list[str], list[str]]:
    read, problems = read_times(pd.Series(values), timezone)
    assert str(read.tz) == "UTC" and len(read) == len(values)
    return ["" if time is pd.NaT else time.isoformat() for time in read], problems


# Which column is which


@pytest.mark.parametrize(
    "names",
    [
        ["timestamp", "open", "high", "low", "close", "volume"],
        ["Date", "Open", "High", "Low", "Close", "Volume"],
        ["open_time", "open", "high", "low", "close", "volume"],
        ["Open time", "O", "H", "L", "C", "V"],
        ["ts", "open", "high", "low", "close", "vol"],
        ["Timestamp (UTC)", "Open Price", "High Price", "Low Price", "Close Price", "Volume BTC"],
        ["unix", "o", "h", "l", "c", "volume_btc"],
    ],
)
def test_common_names_are_recognised(names: list[str]) -> None:
    table = bars().set_axis(names, axis=1)
    read = standardise(table.sample(frac=1, axis=1, random_state=1), "BTCUSDT")
    assert read.problems == [] and read.ignored == ()
    assert tuple(read.frame.columns) == COLUMNS
    assert read.frame.iloc[0].tolist() == [1.0, 2.0, 0.5, 1.5, 9.0]
    assert (read.frame.index == INSTANTS).all()


@pytest.mark.parametrize(("standard", "aliases"), ALIASES.items())
def test_every_alias_stands_for_one_column_only(standard: str, aliases: str) -> None:
    others = " ".join(text for name, text in ALIASES.items() if name != standard).split()
    assert not set(aliases.split()) & set(others)


def test_two_columns_that_could_be_one_are_refused_until_it_is_said_which() -> None:
    table = bars(date=["x", "y"], Close=7.0)
    read = standardise(table)
    assert read.problems == [
        "'timestamp' and 'date' could each be timestamp: say which, columns={'timestamp': ...}",
        "'close' and 'Close' could each be close: say which, columns={'close': ...}",
    ]
    said = standardise(table, columns={"timestamp": "timestamp", "close": "Close"})
    assert said.problems == [] and said.ignored == ("close", "date")
    assert said.frame["close"].tolist() == [7.0, 7.0]


def test_base_and_quote_volume_are_told_apart_by_the_symbol() -> None:
    table = bars(**{"Volume USDT": 5.0}).rename(columns={"volume": "Volume BTC"})
    assert standardise(table, "BTCUSDT").ignored == ("Volume USDT",)
    assert standardise(table, "BTCUSDT").frame["volume"].tolist() == [9.0, 9.0]
    assert "missing columns: volume" in standardise(table, "ETHUSDT").problems[0]
    assert "missing columns: volume" in standardise(table).problems[0]


def test_missing_columns_are_named_with_those_that_are_there() -> None:
    read = standardise(bars().drop(columns=["low", "volume"]))
    assert read.problems == [
        "missing columns: low, volume; the columns are timestamp, open, high, close"
    ]
    assert tuple(read.frame.columns) == ("open", "high", "close")
    assert "the columns are none" in standardise(pd.DataFrame()).problems[0]


def test_columns_that_are_said_must_exist_and_be_standard() -> None:
    said = {"close": "Schluss", "vol": "volume"}
    problems = standardise(bars(), columns=said).problems
    assert problems[0] == "columns={'vol': ...}: did you mean 'volume'?"
    assert problems[1].startswith("missing columns: Schluss;")


@pytest.mark.parametrize("name", [None, "timestamp", "Date", "whatever"])
def test_times_may_stand_in_the_index(name: str | None) -> None:
    read = standardise(bars().set_index("timestamp").rename_axis(name))
    assert read.problems == [] and (read.frame.index == INSTANTS).all()


def test_numbers_in_a_named_index_are_times() -> None:
    table = bars(timestamp=[1704067200, 1704070800]).set_index("timestamp")
    assert (standardise(table).frame.index == INSTANTS).all()


def test_times_in_the_index_and_in_a_column_are_refused() -> None:
    table = bars().set_index("timestamp", drop=False)
    assert "'timestamp (index)' and 'timestamp' could each be" in standardise(table).problems[0]


def test_what_is_no_number_becomes_nan_and_minus_zero_zero() -> None:
    mixed = [Decimal("1.5"), "n/a"]
    read = standardise(bars(open=["1.25", None], close=mixed, volume=[-0.0, 3])).frame
    assert read["open"].tolist()[0] == 1.25 and np.isnan(read["open"].iloc[1])
    assert read["close"].tolist()[0] == 1.5 and np.isnan(read["close"].iloc[1])
    assert not np.signbit(read["volume"]).any()


# What time is it


@given(
    st.lists(st.integers(1_000_000_000, 9_199_999_999), min_size=1, max_size=5),
    st.sampled_from(list(EPOCH_UNITS)),
    st.sampled_from(["int", "text", "float"]),
)
def test_the_unit_of_a_number_is_told_by_its_size(seconds: list[int], unit: str, kind: str) -> None:
    expected = [datetime.fromtimestamp(second, UTC).isoformat() for second in seconds]
    numbers = [second * {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit] for second in seconds]
    values = {"int": numbers, "text": [str(number) for number in numbers]}
    if kind == "float":
        if unit == "ns":
            return  # float64 has no room for nanoseconds
        values["float"] = [float(number) for number in numbers]
    assert times(values[kind]) == (expected, [])


@pytest.mark.parametrize(
    "numbers",
    [
        [1704067200, 1704070800000],
        [1],
        [20240131],
        [-1704067200],
        [999_999_999],
        [9_200_000_000],
        [1e30],
    ],
)
def test_other_numbers_are_refused(numbers: list[float]) -> None:
    read, problems = times(numbers)
    assert not any(read)
    (line,) = problems
    assert line.startswith(f"timestamps are numbers from {min(numbers)}")
    assert "in the years 2001 to 2261" in line


@pytest.mark.parametrize(
    "text",
    [
        "2024-01-31T12:00Z",
        "2024-01-31T12:00:00.000Z",
        "2024-01-31 12:00:00+00:00",
        "2024-01-31 12:00:00+0000",
        " 2024-01-31 12:00:00+00 ",
    ],
)
def test_utc_text_is_read(text: str) -> None:
    assert times([text]) == (["2024-01-31T12:00:00+00:00"], [])


@pytest.mark.parametrize(
    "value",
    [
        pd.Timestamp("2024-01-31T12:00Z"),
        datetime(2024, 1, 31, 12, tzinfo=UTC),
        pd.Timestamp("2024-01-31T12:00Z").tz_convert("Etc/UTC"),
    ],
)
def test_utc_datetimes_are_read(value: object) -> None:
    assert times([value]) == (["2024-01-31T12:00:00+00:00"], [])
    assert times(pd.Series([value], dtype=object)) == (["2024-01-31T12:00:00+00:00"], [])


@pytest.mark.parametrize("text", ["2024-01-31 12:00", "2024-01-31T12:00:00", "2024-01-31"])
def test_naive_times_are_a_defect_unless_the_zone_is_given(text: str) -> None:
    for values in ([text], [pd.Timestamp(text)], [pd.Timestamp(text).to_pydatetime()]):
        (line,) = times(values)[1]
        assert line.startswith("naive time: 1 timestamp without a time zone, as in 2024-01-31")
        expected = pd.Timestamp(text, tz="Asia/Tokyo").tz_convert("UTC").isoformat()
        assert times(values, "Asia/Tokyo") == ([expected], [])


@pytest.mark.parametrize("offset", ["+09:00", "-05:00", "+0530", "+01"])
def test_other_offsets_are_a_defect_unless_a_zone_is_given(offset: str) -> None:
    text = f"2024-01-31 12:00{offset}"
    read, (line,) = times([text, "2024-01-31T13:00Z"])
    assert line.startswith(f"non-UTC time: 1 timestamp, for example {text}")
    assert times([text], "UTC") == (read[:1], [])


def test_another_zone_in_a_frame_is_a_defect_unless_a_zone_is_given() -> None:
    values = INSTANTS.tz_convert("Europe/London").to_series()
    assert times(values)[1][0].startswith("non-UTC time: timestamps are in Europe/London")
    assert times(values, "UTC") == ([time.isoformat() for time in INSTANTS], [])


@pytest.mark.parametrize("timezone", ["", "Asia/Tokyo"])
def test_some_times_without_a_zone_are_refused_always(timezone: str) -> None:
    (line,) = times(["2024-01-31T12:00Z", "2024-01-31T13:00"], timezone)[1]
    assert line.startswith("naive time beside times with a zone: 1 timestamp, for example 2024-01")


def test_hours_that_a_zone_has_twice_or_never_are_refused() -> None:
    clock = ["2024-03-31 02:30", "2024-10-27 02:30", "2024-07-01 12:00"]
    read, (line,) = times(clock, "Europe/Berlin")
    assert read == ["", "", "2024-07-01T10:00:00+00:00"]
    assert line.startswith("2 timestamps missing or unreadable, for example row 0:")


def test_missing_and_unreadable_times_are_shown_by_row() -> None:
    read, (line,) = times(["2024-01-31T12:00Z", None, "31.01.2024"])
    assert read[1:] == ["", ""]
    assert line.startswith("2 timestamps missing or unreadable, for example row 1: ")
    assert "row 2: '31.01.2024'" in line
    assert "row 1: nan" in times([1704067200.0, np.nan])[1][0]
    assert times([None, None])[1][0].startswith("2 timestamps missing or unreadable")
    many = times(["2024-01-31T12:00Z"] + ["x"] * 30)[1][0]
    assert many.count("row") == 10 and many.startswith("30 timestamps")


def test_an_unknown_zone_suggests_the_nearest() -> None:
    with pytest.raises(
        CandlesError, match="'Asia/Tokio' is no time zone; did you mean 'Asia/Tokyo'"
    ):
        read_times(pd.Series(["2024-01-31"]), "Asia/Tokio")


# Files


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_csv_of_any_delimiter(mark: str, name: str, start: str, tmp_path: Path) -> None:
    path = write(tmp_path, name, start + (HEADER + ROW).replace(",", mark))
    read = standardise(read_table(path))
    assert read.problems == [] and read.frame.iloc[0].tolist() == [1, 2, 0.5, 1.5, 10]


@given(st.lists(st.floats(1e-8, 1e8), min_size=1, max_size=20))
def test_csv_numbers_are_read_exactly(
    tmp_path_factory: pytest.TempPathFactory, values: list[float]
) -> None:
    folder = tmp_path_factory.mktemp("exact")
    path = write(folder, "x.csv", HEADER + "".join(f"1704067200,1,2,0.5,{x!r},1\n" for x in values))
    assert standardise(read_table(path)).frame["close"].tolist() == values


def test_parquet_with_the_time_as_column_or_index(tmp_path: Path) -> None:
    bars().to_parquet(tmp_path / "a.parquet")
    bars().set_index("timestamp").to_parquet(tmp_path / "b.pq")
    first, second = (standardise(read_table(tmp_path / name)) for name in ("a.parquet", "b.pq"))
    pd.testing.assert_frame_equal(first.frame, second.frame, check_names=False)


DUMP = "1704067200000,1,2,0.5,1.5,10,1704070799999,15,3,5,7.5,0\n"


def test_a_binance_dump_needs_no_header(tmp_path: Path) -> None:
    later = DUMP.replace("17040672", "17040708").replace("17040707", "17040743")
    read = standardise(read_table(write(tmp_path, "x.csv", DUMP + later)))
    assert read.problems == [] and (read.frame.index == INSTANTS).all()
    assert read.frame.iloc[1].tolist() == [1, 2, 0.5, 1.5, 10]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            ROW.replace("2024-01-01T00:00Z", "1704067200"),
            "no header, and 6 columns may mean anything",
        ),
        (DUMP.replace("1704070799999", "1704067199998"), "is none of Binance's dumps"),
        (DUMP + DUMP.replace("1704070799999", "1704070799990"), "is none of Binance's dumps"),
        ("", "the first line must name the columns"),
        ("timestamp open high\n", "it reads 'timestamp open high'"),
        ("a,b;c\n", "one delimiter"),
        ("close,open,close\n1,2,3\n", "a column name stands twice"),
        (HEADER + ROW.replace("\n", ",7\n"), "does not match length of data"),
        (HEADER + ROW + ROW.replace("\n", ",7\n"), "Expected 6 fields in line 3, saw 7"),
    ],
)
def test_a_csv_that_would_need_a_guess_is_refused(text: str, words: str, tmp_path: Path) -> None:
    path = write(tmp_path, "x.csv", text)
    with pytest.raises(CandlesError, match=re.escape(words)) as caught:
        read_table(path)
    assert str(caught.value).startswith(f"{path} cannot be read: ")


@pytest.mark.parametrize("name", ["x.parquet", "x.csv.gz", "x.csv"])
def test_garbage_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x1f\x8b\xff\x00,garbage" * 3)
    with pytest.raises(CandlesError, match="cannot be read"):
        read_table(tmp_path / name)


def test_a_cut_off_archive_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "x.csv.gz", (HEADER + ROW) * 100)
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(CandlesError, match="cannot be read"):
        read_table(path)


def test_a_missing_file_names_what_is_near(tmp_path: Path) -> None:
    names = ["binance_BTCUSDT_1h.parquet", "binance_BTCUSDT_4h.parquet", "zebra.txt"]
    for name in names:
        (tmp_path / name).touch()
    path = tmp_path / "binance_BTCUSD_1h.parquet"
    with pytest.raises(CandlesError) as caught:
        read_table(path)
    assert str(caught.value) == f"{path} is no file; near it there is {', '.join(names[:2])}"
    with pytest.raises(CandlesError, match=f"there is {names[0]}, {names[1]}, zebra.txt"):
        read_table(tmp_path)
    with pytest.raises(CandlesError, match=r"no such file, and there is no folder .*nowhere"):
        read_table(tmp_path / "nowhere" / "x.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CandlesError, match="there is no file"):
        read_table(tmp_path / "empty" / "x.csv")


def test_other_suffixes_and_simulated_markets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CandlesError, match=r"expected a file named .parquet, .csv or .csv.gz"):
        read_table(write(tmp_path, "x.xlsx", ""))
    with pytest.raises(CandlesError, match=r"crypto_ml\.simulate makes its candles"):
        read_table(Path("sim:clear"))
