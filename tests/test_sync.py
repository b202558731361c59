"""Syncing: only what is missing, resumed after any end, and never a bar that is not final."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from pathlib import Path

import pandas as pd
import pytest
from exchange_server import ExchangeServer
from paged_exchange import PagedExchange, candles, sync_example, utc

from crypto_ml.candles import COLUMNS, Market
from crypto_ml.errors import CandlesError
from crypto_ml.exchange import open_exchange
from crypto_ml.rest import Patience, UnansweredError
from crypto_ml.store import Store
from crypto_ml.sync import SyncStoppedError, sync_market

HOURLY = Market("example", "BTCUSD", "1h")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def hourly(now: str, **options: object) -> PagedExchange:
    return PagedExchange(candles("2024-01-01", 1000, "1h"), utc(now), 24, **options)


def sync(exchange: PagedExchange, store: Store, start: str = "2024-01-01", **options: object):
    return sync_market(exchange, store, "BTC/USD", "1h", start=start, **options)


def test_a_first_sync_stores_every_final_bar_and_no_other(store):
    exchange = hourly("2024-01-11 12:00:20")
    result = sync(exchange, store)
    assert result.bars.counts == (252, 0, 0, 1, 0) and result.requests == len(exchange.asked) == 11
    held = store.read(HOURLY)
    pd.testing.assert_frame_equal(held.frame, exchange.frame[:252], check_freq=False)
    assert str(result) == (
        "example BTCUSD 1h, 2024-01-01 00:00 to 2024-01-11 12:00:20 UTC: 252 new bars in 11 pages,"
        f" 1 unfinished bar left out; {result.seconds:.1f} s."
    )


def test_a_bar_just_closed_is_not_final(store):
    assert sync(hourly("2024-01-01 05:00:09"), store).bars.new == 4
    assert sync(hourly("2024-01-01 05:00:10"), store).bars.new == 1


def test_a_second_sync_asks_only_for_the_newest_bars(store):
    sync(hourly("2024-01-11 12:00:20"), store)
    exchange = hourly("2024-01-11 12:05")
    result = sync(exchange, store)
    assert exchange.asked == [(utc("2024-01-11 09:00"), utc("2024-01-11 12:05"))]
    assert result.bars.counts == (0, 3, 0, 1, 0)


def test_a_complete_past_is_not_asked_about(store):
    sync(hourly("2024-01-11 12:00:20"), store)
    exchange = hourly("2024-01-11 12:05")
    result = sync(exchange, store, end="2024-01-11 08:00")
    assert exchange.asked == [] and "nothing was asked" in str(result)


def test_a_day_later_only_the_day_is_asked_about(store):
    sync(hourly("2024-01-11 12:00:20"), store)
    exchange = hourly("2024-01-12 12:30")
    sync(exchange, store)
    assert exchange.asked[0][0] == utc("2024-01-11 09:00") and len(exchange.asked) == 2
    assert len(store.read(HOURLY)) == 276


def test_missing_stretches_are_asked_about_in_order(store):
    for start, end in (("2024-01-03", "2024-01-04"), ("2024-01-07", "2024-01-09")):
        sync(hourly("2024-02-01"), store, start, end=end)
    exchange = hourly("2024-02-01")
    result = sync(exchange, store, "2024-01-02", end="2024-01-10")
    spans = [
        ("2024-01-02", "2024-01-03"),
        ("2024-01-04", "2024-01-07"),
        ("2024-01-09", "2024-01-10"),
    ]
    assert result.spans == tuple((utc(a), utc(b)) for a, b in spans)
    assert len(store.read(HOURLY, start="2024-01-02", end="2024-01-10")) == 192


def test_an_old_hole_is_covered_and_a_recent_one_asked_about_again(store):
    exchange = hourly("2024-01-11 12:30")
    exchange.frame = exchange.frame.drop(exchange.frame.index[[100, 101, 250]])
    sync(exchange, store)
    exchange.asked.clear()
    sync(exchange, store, end="2024-01-11 09:00")
    assert exchange.asked == []
    exchange.frame = candles("2024-01-01", 1000, "1h")  # the recent one was only late
    result = sync(exchange, store)
    assert result.bars.new == 1 and result.bars.revised == 0
    assert len(store.read(HOURLY)) == 250


def test_a_revision_of_a_young_bar_keeps_both_values(store):
    exchange = hourly("2024-01-01 10:00:20")
    sync(exchange, store)
    exchange.frame.loc["2024-01-01 09:00", "volume"] += 1
    exchange.now = utc("2024-01-01 10:10")
    result = sync(exchange, store)
    assert result.bars.revised == 1 and "1 bar revised (both values are kept)" in str(result)
    first, latest = (store.read(HOURLY, revisions=kind).frame for kind in ("first_final", "latest"))
    assert latest["volume"].iloc[9] == first["volume"].iloc[9] + 1


def test_a_bar_no_longer_reported_is_kept_and_told(store):
    exchange = hourly("2024-01-01 10:00:20")
    sync(exchange, store)
    exchange.frame = exchange.frame.drop(exchange.frame.index[8])
    exchange.now = utc("2024-01-01 10:10")
    assert "1 stored bar no longer reported (kept)" in str(sync(exchange, store))
    assert len(store.read(HOURLY)) == 10


@pytest.mark.parametrize("error", [UnansweredError("example does not answer"), KeyboardInterrupt()])
def test_a_sync_that_is_stopped_says_what_is_stored(store, error):
    exchange, told = hourly("2024-01-11 12:30"), []

    def progress(page, share):
        told.append(share)
        if len(told) == 3:
            exchange.failing.append(error)

    kind = SyncStoppedError if isinstance(error, KeyboardInterrupt) else UnansweredError
    with pytest.raises(kind, match="72 new bars were stored, complete up to 2024-01-04 00:00 UTC"):
        sync(exchange, store, progress=progress)
    assert told == sorted(told) and 0 < told[0] < told[-1] < 1
    exchange.asked.clear()
    sync(exchange, store)
    assert exchange.asked[0][0] == utc("2024-01-04") and len(store.read(HOURLY)) == 252


def test_a_sync_that_gets_no_page_says_so(store):
    exchange = hourly("2024-01-11 12:30", failing=[UnansweredError("no answer")])
    with pytest.raises(UnansweredError, match="Nothing was fetched before that"):
        sync(exchange, store)


@pytest.mark.parametrize(
    "span", [{"start": "2025-01-01"}, {"start": "2024-01-03", "end": "2024-01-02"}]
)
def test_a_span_without_length_is_refused(store, span):
    with pytest.raises(CandlesError, match="the start must come before the end"):
        sync(hourly("2024-02-01"), store, **span)


# ---- against real clients on loopback


def test_the_real_client_fills_the_store_and_asks_no_more(store):
    frame = candles("2024-01-01", 24 * 40, "1h")
    with ExchangeServer({("bitbank", "BTC/JPY"): frame}, now="2024-02-05T12:20") as server:
        for day in range(3):
            with open_exchange("bitbank", url=server.url) as exchange:
                before = len(server.candle_requests)
                result = sync_market(exchange, store, "BTC/JPY", "1h", start="2024-01-01")
            asked = len(server.candle_requests) - before
            held = store.read(result.market)
            over = frame.index + pd.Timedelta("1h") <= server.now
            pd.testing.assert_frame_equal(held.frame, frame[over], check_freq=False)
            if day == 0:
                assert asked == 36  # one per UTC day
            elif day == 1:
                assert asked <= 2 and result.bars.new == 0
                server.advance("1D")
            else:
                assert asked <= 3 and result.bars.new == 24


def test_a_server_that_fails_one_request_in_five_makes_no_difference(store):
    frame = candles("2024-01-01", 24 * 30, "1h")
    quick = Patience(first_wait=0.001, longest_wait=0.002, timeout=5)
    with ExchangeServer({("bitbank", "BTC/JPY"): frame}, now="2024-01-29T00:00:30") as server:
        server.misbehave("500", probability=0.2)
        with open_exchange("bitbank", url=server.url, patience=quick) as exchange:
            market = sync_market(exchange, store, "BTC/JPY", "1h", start="2024-01-01").market
    pd.testing.assert_frame_equal(store.read(market).frame, frame[: 24 * 28], check_freq=False)


# ---- killed

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["crypto_ml.sync"])
MINUTES = Market("example", "BTCUSD", "1m")
BARS, PER_PAGE, KILLS = 100_000, 400, 50


def check_prefix(store: Store, truth: pd.DataFrame) -> int:
    """Assert that what is there is the beginning of the truth, bit for bit; return its length."""
    if MINUTES not in store.markets():
        return 0
    held = store.read(MINUTES).frame
    assert held.index.equals(truth.index[: len(held)])
    assert held[list(COLUMNS)].to_numpy().tobytes() == truth.iloc[: len(held)].to_numpy().tobytes()
    (covered,) = store.covered(MINUTES)
    assert covered[0] == truth.index[0]
    if len(held) < len(truth):
        assert covered[1] == held.index[-1] + pd.Timedelta("1min")
    return len(held)


def stray_files(store: Store) -> set[str]:
    """Files that no manifest names."""
    folder = store.market_folder(MINUTES)
    named = {part.name for part in store.manifest(MINUTES).files} | {"market.json"}
    return {path.name for path in folder.glob("*")} - named


@pytest.fixture
def uncounted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not measure the coverage of children that are killed: their figures would be torn."""
    for name in [name for name in os.environ if name.startswith("COV")]:
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("uncounted")
def test_a_sync_killed_fifty_times_loses_doubles_and_tears_nothing(tmp_path):
    truth, store = candles("2024-01-20", BARS, "1m"), Store(tmp_path)
    dice, kills, reached, strays = random.Random(7), 0, 0, 0
    while kills < KILLS:
        child = FORKS.Process(target=sync_example, args=(str(tmp_path), BARS, PER_PAGE))
        child.start()
        done = check_prefix(store, truth)
        if done < reached:
            raise AssertionError(f"{reached} bars were there, now {done}")
        reached = done
        time.sleep(dice.uniform(0.0, 0.25))
        child.kill()
        child.join()
        kills += child.exitcode == -9
        strays += len(stray_files(store)) > 0
        if child.exitcode == 0:  # it was done: from the beginning again
            assert check_prefix(store, truth) == BARS
            store.remove(MINUTES)
            reached = 0
    sync_example(str(tmp_path), BARS, PER_PAGE)
    assert check_prefix(store, truth) == BARS
    assert strays and not stray_files(store)  # some kills came in the midst of a commit
    assert len(store.revisions(MINUTES)) == 0


@pytest.mark.usefixtures("uncounted")
def test_two_processes_sync_one_market_at_once(tmp_path):
    both = [
        FORKS.Process(target=sync_example, args=(str(tmp_path), 30_000, per_page))
        for per_page in (250, 333)
    ]
    for child in both:
        child.start()
    for child in both:
        child.join(60)
    assert [child.exitcode for child in both] == [0, 0]
    assert check_prefix(Store(tmp_path), candles("2024-01-20", 30_000, "1m")) == 30_000
    assert len(Store(tmp_path).revisions(MINUTES)) == 0
