"""The websocket: a bar's close heard at once, every bar once, whatever becomes of the line."""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from exchange_server import ExchangeServer
from paged_exchange import candles, utc
from stream_server import StreamServer

from crypto_ml.candles import Market
from crypto_ml.data_commands import data
from crypto_ml.errors import CandlesError
from crypto_ml.exchange import Exchange, open_exchange
from crypto_ml.rest import Patience
from crypto_ml.store import Store
from crypto_ml.stream import BarStream, LineWaits, Turn, Turns, _mirrored, _open_line
from crypto_ml.watch import Waits, watch_market

QUICK = Patience(attempts=2, first_wait=0.001, longest_wait=0.002, timeout=5)
SOON = LineWaits(back_off=(0.02, 0.1))
FRAME = candles("2024-01-01", 24 * 8, "1h")
HOURLY = Market("binance", "BTCUSDT", "1h")


def never() -> bool:
    return False


@pytest.fixture
def server() -> Iterator[StreamServer]:
    markets = {("binance", "BTC/USDT"): FRAME, ("bitbank", "BTC/JPY"): FRAME}
    with ExchangeServer(markets, now="2024-01-05T10:30") as rest, StreamServer(rest) as streams:
        yield streams


@pytest.fixture
def exchange(server: StreamServer) -> Iterator[Exchange]:
    with open_exchange("binance", url=server.url, patience=QUICK) as opened:
        yield opened


def stream_of(exchange: Exchange, server: StreamServer, **options: object) -> BarStream:
    return BarStream(exchange, "BTC/USDT", "1h", **{"url": server.url, "waits": SOON} | options)


def stream_threads() -> list[threading.Thread]:
    return [found for found in threading.enumerate() if found.name.startswith("stream ")]


# ---- which bar is over


def rows(*times: int) -> list[list[float]]:
    return [[time, 1.0, 1.0, 1.0, float(time), 1.0] for time in times]


def test_a_bar_is_over_when_a_later_one_begins():
    turns = Turns()
    assert turns.heard(rows(0)) == turns.heard(rows(0)) == turns.heard([]) == []
    assert turns.heard(rows(60_000)) == [Turn(utc("1970-01-01"), 0.0)]
    assert turns.heard(rows(60_000, 0)) == []
    later = turns.heard(rows(180_000, 60_000, 120_000))  # as one answer, in no order
    assert [turn.time.minute for turn in later] == [1, 2]
    assert turns.heard([[None] * 6, [240_000, 1, 1, 1, None, 1]]) == []


def test_of_a_history_sent_first_nothing_is_news():
    turns = Turns()
    assert turns.heard(rows(0, 60_000, 120_000)) == []
    assert [turn.close for turn in turns.heard(rows(180_000))] == [120_000.0]


def test_addresses_at_a_mirror():
    urls = {
        "ws": {"spot": "wss://stream.binance.com:9443/ws"},
        "public": "wss://stream.{hostname}/v5/public/spot",
        "rest": "https://api.kucoin.com/api/v1",
    }
    assert _mirrored(urls, "https://mirror:81/") == {
        "ws": {"spot": "wss://mirror:81/stream.binance.com/ws"},
        "public": "wss://mirror:81/stream.{hostname}/v5/public/spot",
        "rest": "https://mirror:81/api/v1",
    }


def test_a_proxy_is_used_but_not_for_this_machine(exchange, monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "near")
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://proxy:3128")
    market, seen = exchange.markets["BTC/USDT"], {}
    for url in ("", "https://mirror:81", "https://near:81", "http://127.0.0.1:81"):
        seen[url] = _open_line("binance", url, market, print).check_ws_proxy_settings()[1]
    assert list(seen.values()) == ["http://proxy:3128", "http://proxy:3128", None, None]


@pytest.mark.parametrize("name", ["bitbank", "coinbase"])  # unknown to ccxt.pro; known, no bars
def test_an_exchange_without_a_websocket_is_refused_with_the_remedy(name, exchange):
    exchange.name = name
    with pytest.raises(CandlesError, match=f"{name} sends no bars.* leave --websocket out"):
        BarStream(exchange, "BTC/USDT", "1h")
    assert not stream_threads()


# ---- the real class of ccxt.pro, on loopback


def test_a_close_is_heard_within_a_second(exchange, server):
    told: list[Turn] = []
    with stream_of(exchange, server, told=told.append) as stream:
        server.wait_for_line()
        assert server.subscribed == ["btcusdt@kline_1h"]
        assert server.paths == ["/stream.binance.com/ws/0"]
        server.send("2024-01-05 10:00", 41.0)
        for hour in range(11, 16):
            server.send(f"2024-01-05 {hour - 1}:00", hour, final=True)
            begun = time.monotonic()
            server.send(f"2024-01-05 {hour}:00", 0.5)  # no word comes after it
            turn = stream.wait(5, never)
            assert turn == Turn(utc(f"2024-01-05 {hour - 1}:00"), float(hour))
            assert time.monotonic() - begun < 1
        assert len(told) == 5 and stream.wait(0.05, never) is None
    assert [request for request in server.rest.candle_requests] == []


def test_a_wait_ends_when_it_is_told_to(exchange, server):
    with stream_of(exchange, server) as stream:
        begun = time.monotonic()
        assert stream.wait(30, lambda: time.monotonic() - begun > 0.1) is None
        assert time.monotonic() - begun < 1


@pytest.mark.parametrize("how", ["cut", "goodbye"])
def test_a_lost_line_is_told_once_and_made_again(how, exchange, server, caplog):
    with caplog.at_level(logging.WARNING), stream_of(exchange, server) as stream:
        server.wait_for_line()
        server.send("2024-01-05 10:00")
        time.sleep(0.1)
        server.refusing = True
        getattr(server, how)()
        while len(server.paths) < 4:
            time.sleep(0.005)
        server.refusing = False
        server.wait_for_line(2)
        server.send("2024-01-05 11:00")  # a bar has closed meanwhile
        assert stream.wait(5, never) == Turn(utc("2024-01-05 10:00"), 1.0)
    told = [record.getMessage() for record in caplog.records if "stream" in record.name]
    assert len(told) == 2 and told[1] == "binance BTCUSDT 1h: the websocket is back"
    assert "1h: no websocket (" in told[0] and "bars are asked for meanwhile" in told[0]


def test_silence_is_taken_for_a_dead_line(exchange, server, caplog):
    waits = LineWaits(silence=0.1, back_off=(0.02, 0.1))
    with caplog.at_level(logging.WARNING), stream_of(exchange, server, waits=waits) as stream:
        server.wait_for_line(3)
        assert server.lines <= 1
        assert stream.wait(0.01, never) is None
    assert any("nothing heard for 0.1 s" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("text", ['{"e": "kline", "k": {', '{"e": "kline", "k": {}}', "[]", "hm"])
def test_what_makes_no_sense_costs_no_more_than_the_line(text, exchange, server, caplog):
    with stream_of(exchange, server) as stream:  # which would wait ten minutes in silence
        server.wait_for_line()
        server.send("2024-01-05 10:00")
        time.sleep(0.05)
        server.say(text)
        for hour in range(11, 40):
            server.send(utc("2024-01-05") + pd.Timedelta(hours=hour))
            if turn := stream.wait(0.1, never):
                break
        assert turn is not None
    assert not [record for record in caplog.records if record.levelno > logging.WARNING]


def test_waits_grow_and_stay_finite(exchange, server):
    server.refusing = True
    begun = time.monotonic()
    with stream_of(exchange, server, waits=LineWaits(back_off=(0.01, 0.05))) as stream:
        stream._line._listener.failures = 5000
        while len(server.paths) < 3:
            time.sleep(0.005)
        assert time.monotonic() - begun < 5
    assert not stream_threads()


# ---- with the watch


def watching(exchange, server, store, stream, waits, drive, bars):
    """Return the bars that come out of a watch while somebody drives the exchange."""
    stop, found = threading.Event(), []
    driver = threading.Thread(target=drive, args=(stop,))
    driver.start()
    try:
        for bar in watch_market(
            exchange, store, "BTC/USDT", "1h", stop=stop, waits=waits, stream=stream
        ):
            found.append(bar)
            if len(found) == bars:
                stop.set()
    finally:
        stop.set()
        driver.join()
    return found


def assert_sound(found, bars, store):
    expected = pd.date_range("2024-01-05 10:00", periods=bars, freq="1h", tz="UTC")
    assert [bar.time for bar in found] == expected.tolist()
    held = store.frame(HOURLY)
    assert held.equals(FRAME.loc[held.index]) and held.index.is_unique


def test_a_watch_wakes_when_a_bar_is_over(exchange, server, tmp_path):
    """Its own next look would come in a minute."""

    def drive(stop):
        server.wait_for_line()
        server.send(server.rest.now.floor("h"))
        while not stop.wait(0.1):
            server.rest.advance("1h")
            server.send(server.rest.now.floor("h"))

    store, begun = Store(tmp_path), time.monotonic()
    with stream_of(exchange, server) as stream:
        found = watching(exchange, server, store, stream, Waits(), drive, 4)
    assert_sound(found, 4, store)
    assert time.monotonic() - begun < 10


def test_the_settle_rule_stands(exchange, server, tmp_path):
    """A bar heard to be over is not stored before it is final."""
    store, stop = Store(tmp_path), threading.Event()

    def told(turn):
        server.rest.now = "2024-01-05T11:00:09.500"  # asked now, it would not be final
        threading.Timer(0.4, stop.set).start()

    def drive(_stop):
        server.wait_for_line()
        server.send("2024-01-05 10:00")
        time.sleep(0.05)
        server.send("2024-01-05 11:00")

    driver = threading.Thread(target=drive, args=(stop,))
    driver.start()
    with stream_of(exchange, server, told=told) as stream:
        found = list(watch_market(exchange, store, "BTC/USDT", "1h", stop=stop, stream=stream))
    driver.join()
    assert found == [] and utc("2024-01-05 10:00") not in (
        store.frame(HOURLY).index if store.markets() else []
    )


def test_every_bar_once_through_cuts_and_silence(exchange, server, tmp_path):
    def drive(stop):
        step = 0
        while not stop.wait(0.05):
            step += 1
            server.rest.advance("15min")
            server.mute = 12 < step < 24
            server.refusing = 24 < step < 36
            if step % 7 == 0 or server.refusing:
                server.cut()
            server.send(server.rest.now.floor("h"))

    waits, store = Waits((0.05, 0.1), (0.05,), 0.2), Store(tmp_path)
    line = LineWaits(silence=0.2, back_off=(0.02, 0.1))
    with stream_of(exchange, server, waits=line) as stream:
        found = watching(exchange, server, store, stream, waits, drive, 14)
    assert_sound(found, 14, store)
    assert len(server.paths) > 5  # the line was made again


def test_nothing_is_left_over(exchange, server, caplog, recwarn):
    warnings.simplefilter("always")
    for index in range(4):
        server.refusing = index == 3
        with stream_of(exchange, server) as stream:
            if index < 2:
                server.wait_for_line(len(server.subscribed) + 1 if index else 1)
            if index == 1:
                server.cut()
            stream.wait(0.02 * index, never)
        stream.close()  # a second time
    gc.collect()
    assert not stream_threads()
    assert not [found for found in recwarn if found.category is ResourceWarning]
    noise = ("nclosed", "never retrieved", "never awaited", "destroyed", "release all")
    assert not [text for text in caplog.text.splitlines() if any(word in text for word in noise)]


# ---- the command


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_the_command_tells_the_close_and_stops_cleanly(server, tmp_path, kind):
    child = subprocess.Popen(
        [
            *(sys.executable, "-X", "dev", "-W", "default::ResourceWarning:aiohttp"),
            *("-c", "from crypto_ml.data_commands import data; data()"),
            *("watch", "binance:BTC/USDT:1h", "--websocket"),
        ],
        env=os.environ | server.environment | {"CRYPTO_ML_STORE": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None and child.stderr is not None
    with child:
        assert "waiting" in child.stdout.readline()
        server.wait_for_line()
        server.send("2024-01-05 10:00", 42.5)
        time.sleep(0.1)
        server.rest.now = "2024-01-05T11:00:12"
        server.send("2024-01-05 11:00")
        assert child.stdout.readline().startswith("2024-01-05 10:00  over at 42.5")
        assert child.stdout.readline().startswith("2024-01-05 10:00  open ")
        child.send_signal(kind)
        output, errors = child.communicate(timeout=30)
    assert child.returncode == 0 and output == "Stopped after 1 bars.\n"
    for word in ("nclosed", "Traceback", "never retrieved", "destroyed", "release all"):
        assert word not in errors, errors


def test_the_command_refuses_an_exchange_without(server, tmp_path: Path, monkeypatch):
    for name, value in (server.environment | {"CRYPTO_ML_STORE": str(tmp_path)}).items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(data, ["watch", "bitbank:BTC/JPY:1h", "--websocket"])
    assert isinstance(result.exception, CandlesError)
    assert "leave --websocket out" in str(result.exception)
