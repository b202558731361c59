"""Exchanges: the real ccxt classes against a loopback server that behaves, or does not."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from exchange_server import EXCHANGES, ExchangeServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crypto_ml.errors import CandlesError
from crypto_ml.exchange import Exchange, Page, Patience, open_exchange

HOUR = pd.Timedelta("1h")
DAY = pd.Timedelta("1D")
SYMBOLS = {
    "binance": "BTC/USDT",
    "bitbank": "BTC/JPY",
    "bybit": "BTC/USDT",
    "coinbase": "BTC/USD",
    "kraken": "BTC/USD",
    "okx": "BTC/USDT",
}
FAR = [name for name in EXCHANGES if name != "kraken"]
QUICK = Patience(attempts=4, first_wait=0.005, longest_wait=0.02, timeout=10)
BEGIN = pd.Timestamp("2023-06-01", tz="UTC")


def walk(bars: int, timeframe: str = "1h", begin: pd.Timestamp = BEGIN) -> pd.DataFrame:
    rng = np.random.default_rng(7)
    index = pd.date_range(begin, periods=bars, freq=pd.Timedelta(timeframe), name="timestamp")
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.01, bars)))
    opened = np.concatenate([[100.0], close[:-1]])
    high, low = np.maximum(opened, close) * 1.01, np.minimum(opened, close) * 0.99
    columns = {"open": opened, "high": high, "low": low, "close": close}
    return pd.DataFrame({**columns, "volume": rng.gamma(2, 5, bars)}, index=index.as_unit("ms"))


YEAR = walk(24 * 365)
END = YEAR.index[-1] + HOUR


@pytest.fixture
def server() -> Iterator[ExchangeServer]:
    candles = {(name, symbol): YEAR.copy() for name, symbol in SYMBOLS.items()}
    with ExchangeServer(candles) as running:
        yield running


def connect(name: str, server: ExchangeServer, **options: Any) -> Exchange:
    return open_exchange(name, url=server.url, **{"patience": QUICK, **options})


def fetch(
    exchange: Exchange, start: pd.Timestamp, end: pd.Timestamp, timeframe: str = "1h"
) -> list[Page]:
    return list(exchange.pages(SYMBOLS[exchange.name], timeframe, start, end))


def joined(pages: list[Page]) -> pd.DataFrame:
    return pd.concat([page.frame for page in pages])


def assert_equal(pages: list[Page], frame: pd.DataFrame) -> None:
    """The pages hold these bars, each once and in its own page, and touch each other."""
    for page, after in pairwise(pages):
        assert page.end == after.start
    for page in pages:
        assert ((page.frame.index >= page.start) & (page.frame.index < page.end)).all()
    pd.testing.assert_frame_equal(joined(pages), frame, check_freq=False)


# ---- six dialects


@pytest.mark.parametrize(
    ("name", "requests"),
    [("bitbank", 365), ("binance", 9), ("bybit", 9), ("coinbase", 30), ("okx", 30)],
)
def test_a_year_of_hours_is_what_was_served(
    name: str, requests: int, server: ExchangeServer
) -> None:
    with connect(name, server) as exchange:
        pages = fetch(exchange, BEGIN, END)
    assert_equal(pages, YEAR)
    assert (pages[0].start, pages[-1].end) == (BEGIN, END)
    assert len(server.candle_requests) == requests == exchange.counts.requests
    assert exchange.counts.bars == len(YEAR)
    assert exchange.counts.for_missing == 0
    assert {request.exchange for request in server.requests} == {name}


def test_kraken_gives_its_newest_720_bars_and_says_so_of_older_ones(server: ExchangeServer) -> None:
    server.now = END - pd.Timedelta("30min")
    with connect("kraken", server) as exchange:
        oldest = END - 720 * HOUR
        assert_equal(fetch(exchange, oldest, END - HOUR), YEAR[-720:-1])
        assert len(server.candle_requests) == 1
        with pytest.raises(CandlesError) as caught:
            exchange.pages("XBTUSD", "1h", oldest - HOUR, END)
        assert "no market 'XBTUSD'" in str(caught.value)
        with pytest.raises(CandlesError) as caught:
            exchange.pages("BTCUSD", "1h", oldest - HOUR, END)
    assert "kraken serves only its newest 720 bars, 1h bars since 2024-05-01 00:00" in str(
        caught.value
    )
    assert "2024-04-30 23:00 was asked for" in str(caught.value)
    assert "longer bars" in str(caught.value)
    assert len(server.candle_requests) == 1


@pytest.mark.parametrize("name", FAR)
@pytest.mark.parametrize(
    ("timeframe", "start", "end"),
    [
        ("1h", "2023-12-30 17:00", "2024-01-02 03:00"),
        ("1h", "2024-02-28 23:59:59", "2024-03-01 00:00:01"),
        ("1h", "2024-01-01", "2024-01-01 01:00"),
        ("1d", "2023-06-01", "2024-05-30"),
        ("1d", "2023-12-31", "2024-01-02"),
    ],
)
def test_no_bar_is_lost_at_borders(
    name: str, timeframe: str, start: str, end: str, server: ExchangeServer
) -> None:
    first, last = (pd.Timestamp(text, tz="UTC") for text in (start, end))
    rules = {"open": "first", "high": "max", "low": "min", "close": "last", "volume": "sum"}
    frame = YEAR.resample(pd.Timedelta(timeframe.upper())).agg(rules) if timeframe != "1h" else YEAR
    with connect(name, server) as exchange:
        pages = fetch(exchange, first, last, timeframe)
    assert_equal(pages, frame[(frame.index >= first) & (frame.index < last)])
    assert (pages[0].start, pages[-1].end) == (first, last)


@pytest.fixture(scope="module")
def small() -> Iterator[dict[str, Exchange]]:
    """Four months with holes, on a server whose answers are shorter than its documentation says."""
    frame = holed()
    candles = {(name, symbol): frame for name, symbol in SYMBOLS.items()}
    with ExchangeServer(candles, cap=170) as running:
        exchanges = {name: connect(name, running) for name in FAR}
        yield exchanges
        for exchange in exchanges.values():
            exchange.close()


def holed() -> pd.DataFrame:
    frame = walk(24 * 120)
    rng = np.random.default_rng(1)
    lost = np.concatenate([rng.choice(len(frame), 40), np.arange(1000, 1080), [0]])
    return frame.drop(frame.index[np.unique(lost)])


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(FAR), st.integers(-30, 2700), st.integers(1, 1200))
def test_any_span_of_a_market_with_holes(
    small: dict[str, Exchange], name: str, hour: int, hours: int
) -> None:
    frame = holed()
    start = BEGIN + hour * HOUR
    end = min(start + hours * HOUR, frame.index[-1] + HOUR)
    if start < end:
        pages = fetch(small[name], start, end)
        assert (pages[0].start, pages[-1].end) == (start, end)
        assert_equal(pages, frame[(frame.index >= start) & (frame.index < end)])


def test_a_hole_is_asked_for_once_more_and_what_is_there_is_not() -> None:
    frame = YEAR.drop(YEAR.index[100:104])
    with (
        ExchangeServer({("bitbank", "BTC/JPY"): frame}) as server,
        connect("bitbank", server) as exchange,
    ):
        assert_equal(fetch(exchange, BEGIN - DAY, BEGIN + 9 * DAY), frame[: 9 * 24 - 4])
        days = [request.path[-8:] for request in server.candle_requests]
    expected = [f"202306{day:02}" for day in range(1, 10)]
    assert days == ["20230531", "20230531", *expected[:5], "20230605", *expected[5:]]
    assert exchange.counts.for_missing == 2


def test_longer_bars_of_bitbank_come_by_the_year(server: ExchangeServer) -> None:
    with connect("bitbank", server) as exchange:
        bars = joined(fetch(exchange, BEGIN, END, "4h"))
    assert len(bars) == len(YEAR) / 4
    assert [r.path.split("/")[-1] for r in server.candle_requests] == ["2023", "2024"]


# ---- the clock


def test_the_bar_that_forms_is_the_last_and_nothing_is_asked_of_the_future(
    server: ExchangeServer,
) -> None:
    for name in EXCHANGES:
        server.now = END - pd.Timedelta("45min")
        with connect(name, server) as exchange:
            assert abs(exchange.clock() - server.now) < pd.Timedelta("2s")
            pages = fetch(exchange, END - 30 * HOUR, END + 400 * DAY)
            assert pages[-1].end == END
            bars = joined(pages)
            pd.testing.assert_frame_equal(bars[:-1], YEAR[-30:-1], check_freq=False)
            assert bars["volume"].iloc[-1] == pytest.approx(YEAR["volume"].iloc[-1] / 4)
            asked = len(server.candle_requests)
            assert asked <= 3
            assert fetch(exchange, END, END + DAY) == []
            assert len(server.candle_requests) == asked
            server.requests.clear()


def test_a_bar_of_which_nothing_is_over_is_no_page(server: ExchangeServer) -> None:
    server.now = END - HOUR
    with connect("binance", server) as exchange:
        assert fetch(exchange, END - HOUR, END) == []


def test_a_clock_that_is_wrong_is_noticed(
    server: ExchangeServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.now = pd.Timestamp.now("UTC")
    for name in ("binance", "bitbank"):
        server.skew = pd.Timedelta("5s")
        with caplog.at_level(logging.WARNING), connect(name, server):
            assert not caplog.records
        server.misbehave("skew", by="10min")
        with caplog.at_level(logging.WARNING), connect(name, server) as exchange:
            assert abs(exchange.skew - pd.Timedelta("10min")) < pd.Timedelta("2s")
        (record,) = caplog.records
        assert "this machine's clock is 00:0" in record.getMessage()
        assert f"behind {name}'s" in record.getMessage()
        caplog.clear()


def test_a_day_passes_for_an_open_connection(server: ExchangeServer) -> None:
    server.now = END - 2 * DAY
    for name in ("binance", "bitbank"):
        with connect(name, server) as exchange:
            fetch(exchange, END - 3 * DAY, END - 2 * DAY)
            server.advance(DAY)
            fetch(exchange, END - 3 * DAY, END - 2 * DAY)
            assert abs(exchange.clock() - server.now) < pd.Timedelta("2s")
        server.advance(-DAY)


# ---- misbehaviour

PASSING = [
    ("500", {}, "HTTP 500, the exchange or its gateway is out of order"),
    ("502", {}, "HTTP 502, the exchange or its gateway is out of order"),
    ("503", {"retry_after": "0.01"}, "HTTP 503"),
    ("429", {"retry_after": "0.01"}, "HTTP 429, too many requests"),
    ("429", {}, "HTTP 429, too many requests"),
    ("418", {"retry_after": "0.01"}, "HTTP 418, banned for too many requests"),
    ("html", {}, "an answer that is no JSON: '<html>"),
    ("truncated", {}, "an answer that is no JSON"),
    ("cut", {}, "the connection broke in the middle of the answer"),
    ("reset", {}, "the connection was closed without an answer"),
    ("no_rows", {}, "its answer cannot be used, no list of bars in it"),
    ("conflict", {}, "its answer cannot be used: 1 bar twice with different values"),
    ("impossible", {}, "its answer cannot be used: high below open or close"),
    ("nan", {}, "its answer cannot be used: close is NaN"),
    ("off_grid", {}, "its answer cannot be used: bars that do not open on the 1h grid"),
    ("other_day", {}, "its answer cannot be used: bars of another time"),
]
HARMLESS = [
    ("duplicates", {}),
    ("unordered", {}),
    ("gap", {}),
    ("empty", {}),
    ("gap", {"share": 0.01}),
]
BOTH = ["bitbank", "binance"]
SPAN = (BEGIN + 40 * DAY, BEGIN + 45 * DAY)
WANTED = YEAR[(YEAR.index >= SPAN[0]) & (YEAR.index < SPAN[1])]


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize(("kind", "options", "words"), PASSING)
def test_what_passes_leaves_no_trace_and_what_stays_is_named(
    name: str, kind: str, options: dict[str, Any], words: str, server: ExchangeServer
) -> None:
    with connect(name, server) as exchange:
        server.misbehave(kind, times=2, after=name == "bitbank", **options)
        assert_equal(fetch(exchange, *SPAN), WANTED)
        assert sum(bool(request.fault) for request in server.requests) == 2
        server.misbehave(kind, times=-1, after=2, **options)
        pages: list[Page] = []
        with pytest.raises(CandlesError) as caught:
            pages.extend(exchange.pages(SYMBOLS[name], "1h", SPAN[0], SPAN[0] + 100 * DAY))
    message = str(caught.value)
    assert words in message
    assert f"{name} did not give 1h bars of {SYMBOLS[name]}, " in message
    assert "asked 4 times in " in message
    assert "Try again later; what was stored before is kept" in message
    assert_equal(pages, YEAR[(YEAR.index >= SPAN[0]) & (YEAR.index < pages[-1].end)])
    assert pages[-1].end < SPAN[0] + 100 * DAY


@pytest.mark.parametrize("name", FAR)
@pytest.mark.parametrize(("kind", "options"), HARMLESS)
def test_rows_in_disorder_or_lost_once(
    name: str, kind: str, options: dict[str, Any], server: ExchangeServer
) -> None:
    with connect(name, server) as exchange:
        server.misbehave(kind, times=1, **options)
        assert_equal(fetch(exchange, *SPAN), WANTED)


@pytest.mark.parametrize("name", BOTH)
def test_no_answer_in_time(name: str, server: ExchangeServer) -> None:
    patience = Patience(attempts=2, first_wait=0.01)
    with connect(name, server, patience=patience) as exchange:
        exchange.client.timeout = 500  # from now on; opening may take its time
        server.misbehave("timeout", seconds=1)
        assert_equal(fetch(exchange, *SPAN), WANTED)
        server.misbehave("timeout", seconds=1, times=2)
        with pytest.raises(CandlesError, match=r"no answer within 0.5 s; asked 2 times"):
            fetch(exchange, *SPAN)


@pytest.mark.parametrize("name", BOTH)
def test_a_bar_revised_is_given_as_it_is_now(name: str, server: ExchangeServer) -> None:
    with connect(name, server) as exchange:
        before = joined(fetch(exchange, *SPAN))
        server.revise(name, SYMBOLS[name], "1h", SPAN[0] + 5 * HOUR, volume=12.5)
        after = joined(fetch(exchange, *SPAN))
    changed = before.compare(after)
    assert list(changed.index) == [SPAN[0] + 5 * HOUR]
    assert changed["volume", "other"].item() == 12.5


@pytest.mark.parametrize("name", FAR)
def test_one_request_in_five_fails(name: str, server: ExchangeServer) -> None:
    patience = Patience(attempts=12, first_wait=0.002, longest_wait=0.01)
    server.misbehave("500", probability=0.1)
    server.misbehave("cut", probability=0.05)
    server.misbehave("429", probability=0.05, retry_after=0)
    with connect(name, server, patience=patience) as exchange:
        assert_equal(fetch(exchange, BEGIN, BEGIN + 60 * DAY), YEAR[: 60 * 24])


def test_an_answer_about_something_else_is_refused(server: ExchangeServer) -> None:
    for name, words in {
        "bitbank": "about '1day', and '1hour'",
        "bybit": "about 'ETHUSDT', and",
    }.items():
        with connect(name, server) as exchange:
            server.misbehave("other_market", times=4)
            with pytest.raises(CandlesError, match=words):
                fetch(exchange, *SPAN)


def test_access_refused_is_not_asked_for_again(server: ExchangeServer) -> None:
    for name in EXCHANGES:
        with connect(name, server) as exchange:
            server.requests.clear()
            server.misbehave("403")
            with pytest.raises(
                CandlesError, match=f"{name} refuses 1h bars.*HTTP 403, access is refused"
            ):
                fetch(exchange, END - DAY, END)
            assert len(server.candle_requests) == 1


def test_an_unclear_complaint_is_asked_again(server: ExchangeServer) -> None:
    with connect("bitbank", server) as exchange:
        server.misbehave("busy", times=2)
        assert_equal(fetch(exchange, *SPAN), WANTED)
        server.misbehave("busy", times=-1)
        with pytest.raises(CandlesError, match=r"the exchange is out of order.*asked 4 times"):
            fetch(exchange, *SPAN)


def test_the_exchange_says_how_long_to_wait(server: ExchangeServer) -> None:
    with connect("binance", server) as exchange:
        server.misbehave("429", retry_after=1)
        begun = time.monotonic()
        assert_equal(fetch(exchange, *SPAN), WANTED)
        assert time.monotonic() - begun >= 1
        server.misbehave("418", retry_after=4000)
        begun = time.monotonic()
        with pytest.raises(
            CandlesError, match=r"asked once. It asks to wait 4000 s: try again after"
        ):
            fetch(exchange, *SPAN)
        assert time.monotonic() - begun < 60


def test_opening_is_tried_again_too(server: ExchangeServer) -> None:
    server.misbehave("500", times=2, scope="markets")
    server.misbehave("truncated", times=1, scope="time")
    with connect("binance", server) as exchange:
        assert exchange.resolve_symbol("BTCUSDT") == "BTC/USDT"
    server.misbehave("html", times=4, scope="markets")
    with pytest.raises(
        CandlesError, match="binance did not give its list of markets: an answer that"
    ):
        connect("binance", server)


# ---- what is asked for and cannot be had


@pytest.mark.parametrize("name", EXCHANGES)
def test_a_delisted_market_is_explained(name: str, server: ExchangeServer) -> None:
    server.delist(name, SYMBOLS[name])
    with connect(name, server) as exchange, pytest.raises(CandlesError) as caught:
        fetch(exchange, END - 2 * DAY, END)
    assert f"{name} seems to trade {SYMBOLS[name]} no longer: take its candles from a file" in str(
        caught.value
    )


def test_history_of_a_delisted_market_is_served_where_it_still_is(server: ExchangeServer) -> None:
    server.delist("binance", "BTC/USDT", refused=False)
    with connect("binance", server) as exchange:
        assert_equal(fetch(exchange, *SPAN), WANTED)


def test_a_market_gone_after_its_listing(server: ExchangeServer) -> None:
    with connect("binance", server) as exchange:
        server.delist("binance", "BTC/USDT")
        with pytest.raises(CandlesError, match=r"Invalid symbol.*no longer"):
            fetch(exchange, *SPAN)
    server.delist("binance", "BTC/USDT", listed=False)
    with (
        connect("binance", server) as exchange,
        pytest.raises(CandlesError, match="lists no market"),
    ):
        exchange.market("BTCUSDT", "1h")


def test_markets_timeframes_and_spans_that_do_not_exist(server: ExchangeServer) -> None:
    with connect("bitbank", server) as exchange:
        assert str(exchange.market("btc_jpy", "1h")) == "bitbank BTCJPY 1h"
        with pytest.raises(CandlesError, match="bitbank serves no bars of '2h'; it serves 1m, 5m"):
            exchange.pages("BTCJPY", "2h", *SPAN)
        with pytest.raises(CandlesError, match="lists no market 'BTC/EUR'; it lists BTC/JPY"):
            exchange.pages("BTC/EUR", "1h", *SPAN)
        with pytest.raises(
            CandlesError, match="must end after it begins; 2023-07-16 00:00 to 2023-07-11"
        ):
            exchange.pages("BTCJPY", "1h", *SPAN[::-1])
    with pytest.raises(CandlesError, match="no exchange 'bitbak' in ccxt; did you mean 'bitbank'"):
        open_exchange("bitbak")
    with pytest.raises(CandlesError, match="serves no candles of its own"):
        open_exchange("coinmate", url=server.url)


def test_contracts_are_their_own_markets() -> None:
    candles = {("binance", "BTC/USDT"): YEAR, ("binance", "BTC/USDT:USDT"): YEAR * 2}
    with ExchangeServer(candles) as server, connect("binance", server) as exchange:
        assert exchange.resolve_symbol("BTCUSDT") == "BTC/USDT"
        assert exchange.resolve_symbol("BTCUSDT.USDT") == "BTC/USDT:USDT"
        assert exchange.market("BTC/USDT:USDT", "1h").symbol == "BTCUSDT.USDT"
        pages = list(exchange.pages("BTCUSDT.USDT", "1h", *SPAN))
        assert_equal(pages, WANTED * 2)
        exchange.name = "another"
        with pytest.raises(CandlesError, match="may count its volume in contracts"):
            exchange.market("BTC/USDT:USDT", "1h")


# ---- around


def test_progress_is_told(server: ExchangeServer, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[int, float]] = []
    progress = lambda page, share: told.append((len(page), share))  # noqa: E731
    with connect("bitbank", server, progress=progress) as exchange:
        fetch(exchange, *SPAN)
        assert told == [(24, (day + 1) / 5) for day in range(5)]
        exchange.progress = True
        fetch(exchange, *SPAN)
    assert capsys.readouterr().err == ""  # no terminal, no bar


def test_the_environment_names_a_mirror(
    server: ExchangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    with open_exchange("okx") as exchange:
        assert_equal(list(exchange.pages("BTCUSDT", "1h", *SPAN)), WANTED)


def test_the_server_runs_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "bitbank_BTCJPY_1h.parquet"
    YEAR[:100].reset_index().to_parquet(path)
    script = Path(__file__).with_name("exchange_server.py")
    command = [sys.executable, str(script), "--exchange", "bitbank", "--candles", str(path)]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout
        url = process.stdout.readline().split()[-1]
        try:
            with open_exchange("bitbank", url=url) as exchange:
                assert_equal(fetch(exchange, BEGIN, BEGIN + 50 * HOUR), YEAR[:50])
        finally:
            process.kill()


def test_real_hours_of_a_year(real_candles_folder: Path) -> None:
    """A year with an outage (2023-03-24) of real bars, by three dialects."""
    table = pd.read_parquet(real_candles_folder / "binance_BTCUSDT_1h.parquet")
    frame = table.set_index("timestamp").loc["2023-03-01":"2023-05-31"]
    frame.index = pd.DatetimeIndex(frame.index).as_unit("ms")
    candles = {(name, SYMBOLS[name]): frame for name in ("binance", "bitbank", "coinbase")}
    with ExchangeServer(candles) as server:
        for name in ("binance", "bitbank", "coinbase"):
            with connect(name, server) as exchange:
                pages = fetch(exchange, frame.index[0], frame.index[-1] + HOUR)
                assert_equal(pages, frame)
                assert exchange.counts.for_missing == 1
