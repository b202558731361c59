"""The live tail: every final bar once, through lateness and disconnects, until told to stop."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pandas as pd
import pytest
from exchange_server import ExchangeServer
from paged_exchange import PagedExchange, candles, utc

from crypto_ml.candles import Market
from crypto_ml.errors import CandlesError
from crypto_ml.exchange import open_exchange
from crypto_ml.rest import Patience, UnansweredError
from crypto_ml.store import Store
from crypto_ml.sync import sync_market
from crypto_ml.watch import Waits, _Patient, stop_on_signals, watch_market

HOURLY = Market("example", "BTCUSD", "1h")
AT_ONCE = Waits((0, 0), (0, 0, 0), 0)


class Ticking(PagedExchange):
    """Its clock goes on by a quarter of an hour whenever someone looks."""

    def clock(self) -> pd.Timestamp:
        self.now += pd.Timedelta("15min")
        return self.now


def ticking(now: str, **options: object) -> Ticking:
    return Ticking(candles("2024-01-01", 200, "1h"), utc(now), 24, **options)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def watch(exchange: PagedExchange, store: Store, bars: int, **options: object):
    """Return the first bars that come out of a watch."""
    stop, found = threading.Event(), []
    options = {"waits": AT_ONCE, **options}
    for bar in watch_market(exchange, store, "BTC/USD", "1h", stop=stop, **options):
        found.append(bar)
        if len(found) == bars:
            stop.set()
    return found


def test_each_final_bar_comes_out_once_and_is_stored(store):
    exchange = ticking("2024-01-02 00:05")
    bars = watch(exchange, store, 10)
    expected = exchange.frame["2024-01-02":][:10]
    assert [bar.time for bar in bars] == expected.index.tolist()
    for bar, row in zip(bars, expected.to_numpy(), strict=True):
        assert [bar.open, bar.high, bar.low, bar.close, bar.volume] == row.tolist()
        assert bar.known_at == bar.time + pd.Timedelta("1h") < bar.seen_at
    held = store.frame(HOURLY)
    assert held.index[-1] >= bars[-1].time and held.equals(exchange.frame.loc[held.index])
    assert str(bars[0]).startswith("2024-01-02 00:00  open ")


def test_what_was_missed_between_two_watches_comes_first(store):
    sync_market(ticking("2024-01-02 00:05"), store, "BTC/USD", "1h", start="2024-01-01")
    last = store.frame(HOURLY).index[-1]
    bars = watch(ticking("2024-01-04 06:05"), store, 60)
    times = pd.DatetimeIndex([bar.time for bar in bars])
    assert times[0] == last + pd.Timedelta("1h") and len(times) == 60
    assert (times[1:] - times[:-1] == pd.Timedelta("1h")).all()
    assert len(store.read(HOURLY)) >= 84  # and without a hole


def test_a_start_may_be_given(store):
    bars = watch(ticking("2024-01-02 00:05"), store, 3, start="2024-01-01 10:00")
    assert bars[0].time == utc("2024-01-01 10:00")


def test_disconnects_are_outlived_and_told(store, caplog):
    exchange = ticking("2024-01-02 00:05")
    exchange.failing = [UnansweredError("example does not answer") for _ in range(3)]
    with caplog.at_level(logging.WARNING):
        bars = watch(exchange, store, 4)
    assert [bar.time.hour for bar in bars] == [0, 1, 2, 3]
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 4 and "does not answer" in told[0] and "answers again" in told[-1]


def test_an_outage_may_last_for_days(store):
    exchange = ticking("2024-01-02 00:05")
    exchange.failing = [UnansweredError("example does not answer")]
    watch = _Patient(exchange, store, ("BTC/USD", "1h"), HOURLY, utc("2024-01-01"), Waits())
    watch.failures = 5000
    assert watch.patient_look() == [] and watch.seconds == 60


def test_other_errors_end_a_watch(store):
    exchange = ticking("2024-01-02 00:05")
    exchange.frame.iloc[23, 1] = 0.0
    with pytest.raises(CandlesError, match="high below open or close"):
        watch(exchange, store, 4)


def test_a_bar_served_late_is_waited_for(store):
    late = ticking("2024-01-02 00:05")
    whole, lag = late.bars, {utc("2024-01-02 01:00"): utc("2024-01-02 02:35")}

    def bars(start, end, step):
        found = whole(start, end, step)
        return found[[lag.get(time, time) <= late.now for time in found.index]]

    late.bars = bars
    assert [bar.time.hour for bar in watch(late, store, 3)] == [0, 1, 2]


def test_a_bar_the_exchange_does_not_have_is_left_out(store):
    exchange = ticking("2024-01-02 00:05")
    exchange.frame = exchange.frame.drop(utc("2024-01-02 01:00"))
    assert [bar.time.hour for bar in watch(exchange, store, 3)] == [0, 2, 3]


def test_a_market_that_has_no_bars_yet(store):
    exchange = ticking("2024-01-02 00:05")
    exchange.frame = exchange.frame["2024-01-02 03:00":]
    assert [bar.time.hour for bar in watch(exchange, store, 2)] == [3, 4]


def test_waits(store):
    """Until the close and a little, shorter when the bar is late, longer when nobody answers."""
    waited: list[float] = []

    class Stopping:
        def __call__(self) -> bool:
            return len(waited) >= 9

    exchange = PagedExchange(candles("2024-01-01", 200, "1h"), utc("2024-01-02 00:50:10"), 24)
    exchange.frame = exchange.frame.drop(utc("2024-01-02 00:00"))
    script = [
        ("2024-01-02 00:59:50", None),
        ("2024-01-02 01:00:10", None),
        ("2024-01-02 01:00:15", None),
        ("2024-01-02 01:00:30", None),
        ("2024-01-02 01:01:20", None),
        ("2024-01-02 02:00:10", UnansweredError("no")),
        ("2024-01-02 02:00:11", UnansweredError("no")),
        ("2024-01-02 02:00:13", None),
        ("2024-01-02 03:00:10", None),
    ]

    def pause(stop: object, seconds: float) -> bool:
        if seconds == 0:
            return False
        waited.append(round(seconds, 3))
        if len(waited) > len(script):
            return True
        time, error = script[len(waited) - 1]
        exchange.now = utc(time)
        exchange.failing = [error] if error else []
        return False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("crypto_ml.watch._pause", pause)
        found = list(
            watch_market(
                exchange, store, "BTC/USD", "1h", stop=Stopping(), waits=Waits(look_every=3600)
            )
        )
    assert [bar.time.hour for bar in found] == [1, 2]
    assert waited == [600, 20, 5, 15, 45, 3530, 1, 2, 3597, 3600]


def test_a_stop_may_be_a_function(store):
    exchange, looks = ticking("2024-01-02 00:05"), []

    def stop() -> bool:
        looks.append(1)
        return len(looks) > 5

    waits = Waits(look_every=0.01)
    assert list(watch_market(exchange, store, "BTC/USD", "1h", stop=stop, waits=waits)) is not None
    assert len(looks) > 5


def test_signals_set_the_event_and_are_given_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with stop_on_signals() as stop:
        assert not stop.is_set()
        signal.raise_signal(signal.SIGINT)
        assert stop.is_set()
        assert signal.getsignal(signal.SIGINT) is before[1]  # a second one ends the process
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


# ---- the real client, on loopback


def test_the_real_client_through_a_disconnect(store):
    frame = candles("2024-01-01", 24 * 8, "1h")
    quick = Patience(attempts=2, first_wait=0.001, longest_wait=0.002, timeout=2)
    with (
        ExchangeServer({("binance", "BTC/USDT"): frame}, now="2024-01-05T10:30") as server,
        open_exchange("binance", url=server.url, patience=quick) as exchange,
    ):
        stop, hours = threading.Event(), []
        waits = Waits((0.01, 0.02), (0.01,), 0.01)
        ticker = threading.Thread(
            target=lambda: [server.advance("15min") for _ in iter(lambda: stop.wait(0.1), True)]
        )
        ticker.start()
        try:
            for bar in watch_market(exchange, store, "BTC/USDT", "1h", stop=stop, waits=waits):
                hours.append(bar.time)
                if len(hours) == 2:
                    server.misbehave("reset", times=6)
                if len(hours) == 6:
                    stop.set()
        finally:
            stop.set()
            ticker.join()
        expected = pd.date_range("2024-01-05 10:00", periods=6, freq="1h", tz="UTC")
        assert hours == expected.tolist()
    held = store.frame(Market("binance", "BTCUSDT", "1h"))
    assert held.equals(frame.loc[held.index])


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_the_command_stops_cleanly_on_a_signal(tmp_path, kind):
    frame = candles("2024-01-01", 24 * 8, "1h")
    command = "from crypto_ml.data_commands import data; data()"
    with ExchangeServer({("binance", "BTC/USDT"): frame}, now="2024-01-05T10:30") as server:
        child = subprocess.Popen(
            [
                sys.executable,
                "-c",
                command,
                "watch",
                "binance:BTC/USDT:1h",
                "--start",
                "2024-01-05",
            ],
            env=os.environ | server.environment | {"CRYPTO_ML_STORE": str(tmp_path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(4)]
        child.send_signal(kind)
        *more, last = child.stdout.read().splitlines()
        child.stdout.close()
        child.wait(30)
    assert child.returncode == 0 and last == f"Stopped after {3 + len(more)} bars."
    assert lines[0].startswith("binance BTCUSDT 1h: waiting") and "2024-01-05 02:00" in lines[3]
    assert len(Store(tmp_path).frame(Market("binance", "BTCUSDT", "1h"))) >= 10
