"""An exchange of a frame, page by page, with a clock set by hand; imports little, for children."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from crypto_ml.candles import COLUMNS, Market, timeframe_delta
from crypto_ml.spans import milliseconds, slot_ceil, time_of
from crypto_ml.store import Store
from crypto_ml.sync import sync_market


@dataclass(frozen=True)
class Answered:
    """What an exchange has in a stretch of time."""

    start: pd.Timestamp
    end: pd.Timestamp
    frame: pd.DataFrame


def utc(time: str) -> pd.Timestamp:
    return pd.Timestamp(time, tz="UTC")


def candles(start: str, bars: int, timeframe: str, seed: int = 42) -> pd.DataFrame:
    """Sound bars that are like nothing but themselves."""
    random = np.random.default_rng(seed)
    index = pd.date_range(
        start, periods=bars, freq=timeframe_delta(timeframe), tz="UTC", name="timestamp"
    ).as_unit("ms")
    close = 100 * np.exp(random.normal(0, 0.001, bars).cumsum())
    opened = close * np.exp(random.normal(0, 0.001, bars))
    high, low = np.maximum(opened, close) * 1.001, np.minimum(opened, close) * 0.999
    values = (opened, high, low, close, random.exponential(5, bars))
    return pd.DataFrame(dict(zip(COLUMNS, values, strict=True)), index=index)


@dataclass
class PagedExchange:
    """Serves a frame; the bar at the clock is served unfinished, later ones are not."""

    frame: pd.DataFrame
    now: pd.Timestamp
    per_page: int = 500
    asked: list[tuple[pd.Timestamp, pd.Timestamp]] = field(default_factory=list)
    failing: list[Exception] = field(default_factory=list)
    name: str = "example"

    def market(self, symbol: str, timeframe: str) -> Market:
        return Market(self.name, symbol.replace("/", ""), timeframe)

    def clock(self) -> pd.Timestamp:
        return self.now

    def pages(
        self, symbol: str, timeframe: str, start: pd.Timestamp, end: pd.Timestamp
    ) -> Iterator[Answered]:
        step = timeframe_delta(timeframe)
        opened = time_of(slot_ceil(milliseconds(start), timeframe))
        while opened < min(end, self.now):
            until = min(opened + self.per_page * step, end)
            self.asked.append((opened, until))
            if self.failing:
                raise self.failing.pop(0)
            yield Answered(opened, until, self.bars(opened, until, step))
            opened = until

    def bars(self, start: pd.Timestamp, end: pd.Timestamp, step: pd.Timedelta) -> pd.DataFrame:
        edges = self.frame.index.searchsorted([start, min(end, self.now)])
        found = self.frame.iloc[edges[0] : edges[1]].copy()
        if len(found) and found.index[-1] + step > self.now:
            found.iloc[-1, [3, 4]] = found.iloc[-1, 0], found.iloc[-1, 4] / 2
        return found


def sync_example(folder: str, bars: int, per_page: int) -> None:
    """Sync minutes; what a child process does until it is killed."""
    frame = candles("2024-01-20", bars, "1m")
    exchange = PagedExchange(frame, frame.index[-1] + pd.Timedelta("1D"), per_page)
    sync_market(exchange, Store(Path(folder)), "BTC/USD", "1m", start="2024-01-20")


def rewrite_and_die(folder: str, step: int) -> None:
    """Write a page and be killed at a step: amid a file, at a flush, a rename or a removal."""
    count, opened = itertools.count(), Path.open

    def dies(function):
        def call(*args, **kwargs):
            if next(count) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    def open_half(path, mode="r", *args, **kwargs):
        file = opened(path, mode, *args, **kwargs)
        if "b" not in mode or mode == "rb":
            return file

        class Half:
            def write(self, content):
                file.write(content[: len(content) // 2])
                file.flush()
                dies(file.write)(content[len(content) // 2 :])

            def __getattr__(self, name):
                return getattr(file, name)

            def __enter__(self):
                return self

            def __exit__(self, *_):
                file.close()

        return Half()

    Path.open, os.fsync = open_half, dies(os.fsync)
    Path.replace, Path.unlink = dies(Path.replace), dies(Path.unlink)
    frame = candles("2023-12-20", 600, "1h") + 1.0
    page = Answered(frame.index[0], frame.index[-1] + pd.Timedelta("1h"), frame)
    Store(Path(folder)).write(Market("bitbank", "BTCJPY", "1h"), page, utc("2025-01-01"))
