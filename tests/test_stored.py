"""Candles of an exchange through the store: what is asked for, and what is asked again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from exchange_server import ExchangeServer

from crypto_ml.pagination import Page
from crypto_ml.settings import CandlesError, SettingsError
from crypto_ml.simulate import simulate
from crypto_ml.store import Store
from crypto_ml.stored import Wish, open_stored, progress_lines, stored_market

DAYS = 12
END = pd.Timestamp("2024-03-01", tz="UTC")
NOW = END - pd.Timedelta(hours=11.5)
BARS = simulate("sim:vol", bars=24 * DAYS, end=END).candles.frame
MARKET = stored_market("bitbank", "BTC/JPY", "1h")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ExchangeServer]:
    with ExchangeServer({("bitbank", "BTC/JPY"): BARS}, now=NOW) as running:
        monkeypatch.setenv("CRYPTO_ML_EXCHANGE_URLS", f"bitbank={running.url}")
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_the_last_days_end_at_the_last_bar_that_is_over(
    server: ExchangeServer, store: Store
) -> None:
    opened = open_stored(MARKET, Wish(days=3), symbol="BTC/JPY", store=store)
    last = NOW.floor("1h")
    pd.testing.assert_frame_equal(
        opened.candles.frame, BARS.loc[last - pd.Timedelta(days=3) : last - pd.Timedelta(hours=1)]
    )
    assert opened.requests == 4
    assert opened.revisions.empty


def test_a_bar_that_has_only_just_closed_is_left_for_later(
    server: ExchangeServer, store: Store
) -> None:
    server.now = NOW.floor("1h")
    opened = open_stored(MARKET, Wish(days=2), store=store)
    assert opened.candles.known_at[-1] == server.now - pd.Timedelta(hours=1)


def test_a_span_of_the_past_that_is_stored_asks_for_nothing(
    server: ExchangeServer, store: Store
) -> None:
    wish = Wish(start="2024-02-22", end="2024-02-26T12:00")
    first = open_stored(MARKET, wish, store=store)
    asked = len(server.requests)
    again = open_stored(MARKET, wish, store=store)
    assert len(server.requests) == asked
    assert (first.requests, again.requests) == (5, 0)
    assert again.candles.sha256 == first.candles.sha256
    assert again.candles.known_at[-1] == pd.Timestamp("2024-02-26 12:00", tz="UTC")


def test_the_next_day_asks_for_the_new_bars_only(server: ExchangeServer, store: Store) -> None:
    open_stored(MARKET, Wish(days=8), store=store)
    server.advance("10h")
    asked = len(server.candle_requests)
    opened = open_stored(MARKET, Wish(days=8), store=store)
    assert len(server.candle_requests) - asked <= 2
    assert len(opened.candles) == 8 * 24


@pytest.mark.parametrize(("which", "close"), [("first_final", None), ("latest", "revised")])
def test_a_revised_bar_is_read_as_asked(
    server: ExchangeServer, store: Store, which: str, close: str | None
) -> None:
    open_stored(MARKET, Wish(days=2), store=store)
    time = NOW.floor("1h") - pd.Timedelta(hours=1)
    revised = BARS["high"][time]
    server.revise("bitbank", "BTC/JPY", "1h", time, close=revised)
    server.advance("1h")
    opened = open_stored(MARKET, Wish(days=2), revisions=which, store=store)  # type: ignore[arg-type]
    assert opened.revisions["time"].tolist() == [time]
    assert opened.candles.frame["close"][time] == (revised if close else BARS["close"][time])


@pytest.mark.parametrize(
    ("symbol", "timeframe", "words"),
    [("", "1h", "symbol is not given"), ("BTC/JPY", "", "timeframe is not given"),
     ("", "", "symbol and timeframe is not given")],
)  # fmt: skip
def test_a_market_needs_symbol_and_timeframe(symbol: str, timeframe: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        stored_market("bitbank", symbol, timeframe)


def test_a_whole_history_must_be_asked_for(server: ExchangeServer, store: Store) -> None:
    with pytest.raises(SettingsError, match="how much of it"):
        open_stored(MARKET, Wish(), store=store)


def test_an_unknown_symbol_is_an_error_that_names_the_nearest(
    server: ExchangeServer, store: Store
) -> None:
    with pytest.raises(CandlesError, match="BTC/JPY"):
        open_stored(stored_market("bitbank", "BTC/JPX", "1h"), Wish(days=2), store=store)
    assert store.markets() == []


def test_progress_is_a_line_for_each_tenth() -> None:
    lines: list[str] = []
    note = progress_lines(lines.append)
    page = Page(BARS.index[0], BARS.index[10], BARS.head(10))
    for share in (0.05, 0.12, 0.15, 0.4, 1.0):
        note(page, share)
    assert lines == [
        "12% of the span fetched, 20 bars",
        "40% of the span fetched, 40 bars",
        "100% of the span fetched, 50 bars",
    ]
