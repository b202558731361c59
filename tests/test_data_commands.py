"""`crypto-ml data`, as one types it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from exchange_server import ExchangeServer
from paged_exchange import Answered, candles, utc

from crypto_ml.candles import Market, load_candles
from crypto_ml.data_commands import coverage_picture, data, parse_market
from crypto_ml.errors import CandlesError
from crypto_ml.store import Store

HOURLY = Market("bitbank", "BTCJPY", "1h")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("CRYPTO_ML_STORE", str(tmp_path / "store"))
    return Store()


def run(*words: str, answer: str = "") -> Result:
    result = CliRunner().invoke(data, words, input=answer)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def fill(store: Store, start: str, bars: int, market: Market = HOURLY) -> pd.DataFrame:
    frame = candles(start, bars, market.timeframe)
    step = frame.index[1] - frame.index[0]
    store.write(market, Answered(frame.index[0], frame.index[-1] + step, frame), utc("2026-01-01"))
    return frame


@pytest.mark.parametrize(
    "words",
    [
        ["bitbank:BTC/JPY:1h"],
        ["bitbank:BTCJPY:1h"],
        ["bitbank", "BTC/JPY", "1h"],
        ["bitbank BTCJPY 1h"],
        ["bitbank_BTCJPY_1h"],
        ["Bitbank", "btc_jpy", "1h"],
    ],
)
def test_spellings_of_a_market(words):
    assert parse_market(words) == parse_market(words, [HOURLY]) == HOURLY


def test_contracts_are_markets_of_their_own():
    perpetual = Market("binance", "BTCUSDT.USDT", "1h")
    assert parse_market(["binance:BTC/USDT:USDT:1h"], [perpetual]) == perpetual
    assert parse_market(["binance:BTCUSDT.USDT:1h"]) == perpetual
    dated = Market("bybit", "BTCUSDT.USDT-240628", "4h")
    assert parse_market(["bybit:BTC/USDT:USDT-240628:4h"], [dated]) is dated


@pytest.mark.parametrize("words", [["bitbank"], ["bitbank:BTC/JPY"], [":::"]])
def test_what_is_no_market_is_told(words):
    with pytest.raises(CandlesError, match=r"names no market.*The store has bitbank:BTCJPY:1h"):
        parse_market(words, [HOURLY])


def test_sync_list_show_export_remove(store, tmp_path):
    frame = candles("2024-01-01", 24 * 40, "1h")
    with (
        ExchangeServer({("bitbank", "BTC/JPY"): frame}, now="2024-02-05T12:20") as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in server.environment.items():
            patch.setenv(name, value)
        with pytest.raises(CandlesError, match="not in the store yet: say --days or --start"):
            run("sync", "bitbank", "BTC/JPY", "1h")
        with pytest.raises(CandlesError, match="either --days or --start"):
            run("sync", "bitbank", "BTC/JPY", "1h", "--days", "3", "--start", "2024-02-01")
        first = run("sync", "bitbank", "BTC/JPY", "1h", "--days", "30").output
        asked = len(server.candle_requests)
        again = run("sync", "bitbank", "btc_jpy", "1h").output
        assert len(server.candle_requests) - asked <= 2
        run("sync", "bitbank", "BTCJPY", "1h", "--start", "2024-01-01", "--end", "2024-01-03")
    assert "719 new bars" in first or "720 new bars" in first
    assert "0 new bars" in again and "as before" in again
    listed = run("list").output
    assert (
        "bitbank:BTCJPY:1h" in listed
        and "2024-02-05 12:00" in listed
        and str(store.folder) in listed
    )
    shown = run("show", "bitbank:BTC/JPY:1h").output
    assert "never asked 2024-01-03 00:00 to 2024-01-06 1" in shown and "\n2024-01  ██???" in shown
    assert (
        run("export", "bitbank", "BTC/JPY", "1h", str(tmp_path / "bitbank_BTCJPY_1h.csv")).exit_code
        == 0
    )
    assert load_candles(tmp_path / "bitbank_BTCJPY_1h.csv").frame.index[-1] == utc(
        "2024-02-05 11:00"
    )
    assert "No damage." in run("remove", "bitbank:BTCJPY:1h", "--damaged").output
    assert "removed" not in run("remove", "bitbank:BTCJPY:1h", answer="n\n").output
    assert "bars removed" in run("remove", "bitbank:BTCJPY:1h", answer="y\n").output
    assert "is empty; `crypto-ml data sync` fills it" in run("list").output


def test_a_market_that_is_not_there_is_told_with_what_is(store):
    fill(store, "2024-01-01", 48)
    for command in (["show"], ["remove", "--yes"], ["remove", "--damaged"]):
        with pytest.raises(CandlesError, match="did you mean 'bitbank:BTCJPY:1h'"):
            run(*command, "bitbank:BTC/JPX:1h")
    with pytest.raises(CandlesError, match="did you mean 'bitbank:BTCJPY:1h'"):
        run("export", "bitbank:BTC/JPX:1h", "bars.csv")


def test_damaged_files_are_taken_out(store):
    fill(store, "2024-01-01", 48)
    (part,) = store.market_folder(HOURLY).glob("*.parquet")
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(CandlesError, match="--damaged"):
        run("show", "bitbank:BTCJPY:1h")
    told = run("remove", "bitbank:BTCJPY:1h", "--damaged").output
    assert (
        told
        == "Taken out, to be fetched by the next sync: 2024-01-01 00:00 to 2024-01-03 00:00 UTC\n"
    )


def test_a_market_without_bars_is_shown_and_listed(store):
    empty = candles("2024-01-01", 1, "1h")[:0]
    store.write(HOURLY, Answered(utc("2024-01-01"), utc("2024-01-02"), empty), utc("2026-01-01"))
    assert "bars        0\nspan        - to - UTC" in run("show", "bitbank:BTCJPY:1h").output
    assert "-" in run("list").output


def test_revisions_and_gaps_are_shown(store):
    frame = fill(store, "2024-01-01", 48)
    other = frame.copy()
    other.iloc[3, 4] += 1
    store.write(HOURLY, Answered(frame.index[0], frame.index[-1], other[:-1]), utc("2026-02-01"))
    later = candles("2024-01-05", 24, "1h")
    page = Answered(
        frame.index[-1] + pd.Timedelta("1h"), later.index[-1] + pd.Timedelta("1h"), later
    )
    store.write(HOURLY, page, utc("2026-02-01"))
    shown = run("show", "bitbank:BTCJPY:1h").output
    assert "revisions   1 bars" in shown
    assert "gaps        1, 48 bars, longest 48 from 2024-01-03 00:00" in shown
    assert "2024-01  ██··█\n" in shown


@pytest.mark.parametrize("width", [40, 59, 60, 80, 200])
def test_pictures_fit_the_terminal(store, width):
    fill(store, "2019-03-10", 900, Market("bitbank", "BTCJPY", "1d"))
    day = Market("bitbank", "BTCJPY", "1d")
    times = store.frame(day).index
    lines = coverage_picture(store.describe(day), times, width).splitlines()[:-1]
    assert [line[:4] for line in lines] == ["2019", "2020", "2021"]
    assert max(map(len, lines)) <= width
    assert set("".join(line[4:] for line in lines)) <= {" ", "█"}
    assert len(lines[1]) == (4 + 2 + 53 if width >= 60 else 4 + 2 + 12)


def test_one_missing_minute_of_a_day_shows(store):
    minutes = Market("bitbank", "BTCJPY", "1m")
    frame = candles("2024-01-01", 3 * 1440, "1m")
    kept = frame.drop(frame.index[2000])
    page = Answered(frame.index[0], frame.index[-1] + pd.Timedelta("1min"), kept)
    store.write(minutes, page, utc("2026-01-01"))
    picture = coverage_picture(store.describe(minutes), store.frame(minutes).index, 80)
    assert picture.startswith("2024-01  █▇█\n")


def test_the_commands_import_little():
    code = (
        "import crypto_ml.data_commands, sys; print('pandas' in sys.modules, 'ccxt' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["False", "False"]
    assert isinstance(data, click.Group)
    assert set(data.commands) >= {"sync", "list", "show", "export", "remove", "watch"}
