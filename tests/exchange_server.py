"""A loopback server that speaks the public candle dialects of six exchanges, well or badly.

The real ccxt classes are pointed at it; nothing of ccxt is replaced. bitbank, Binance, Bybit,
Kraken, Coinbase and OKX are told apart by their paths, so that one address serves them all::

    candles = {("bitbank", "BTC/JPY"): hourly_frame}          # house frames: UTC index, 5 columns
    with ExchangeServer(candles, now="2024-03-01T12:30") as server:
        with open_exchange("bitbank", url=server.url) as exchange:
            pages = list(exchange.pages("BTC/JPY", "1h", start, end))
        server.advance("1D")                       # the exchange's clock stands still otherwise
        server.misbehave("500", times=3)           # the next three candle requests fail
        server.misbehave("cut", probability=0.2)   # and one in five from then on, seeded
        server.behave()                            # all is well again
        server.revise("bitbank", "BTC/JPY", "1h", "2024-02-01", close=1.0)
        server.delist("bitbank", "BTC/JPY")        # listed as not traded, its candles refused
        server.requests                            # what was asked, with the answer's status
        subprocess.run(command, env=os.environ | server.environment)

A value of `candles` may be one frame (bars of longer timeframes are built from it) or a dict of
frames by timeframe. The bar that `now` falls into is served unfinished: open, high, low, close and
volume as far as they have come; later bars are not served. A new Exchange reads the clock when it
opens; where an exchange has no time to ask for, it is the Date header of the newest answer.

Run by hand::

    python tests/exchange_server.py --exchange bitbank --candles binance_BTCUSDT_1h.parquet --port 0
"""

from __future__ import annotations

import argparse
import json
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import pandas as pd

from crypto_ml.candles import timeframe_delta
from crypto_ml.values import TIMEFRAMES

COLUMNS = ["open", "high", "low", "close", "volume"]
EXCHANGES = ("binance", "bitbank", "bybit", "coinbase", "kraken", "okx")
Row = list[Any]  # time in ms, open, high, low, close, volume

# What can go wrong: before the answer is made, with its rows, or on its way.
REFUSALS = ("429", "418", "500", "502", "503", "403", "html", "timeout", "busy")
ROW_FAULTS = (
    "duplicates",
    "conflict",
    "unordered",
    "gap",
    "empty",
    "revised",
    "impossible",
    "nan",
    "off_grid",
    "other_day",
)
WIRE_FAULTS = ("truncated", "cut", "reset", "other_market", "no_rows")
KINDS = REFUSALS + ROW_FAULTS + WIRE_FAULTS


@dataclass(frozen=True)
class Request:
    """One request as it came in, and how it was answered."""

    exchange: str
    path: str
    query: Mapping[str, str]
    candles: bool
    status: int
    fault: str = ""
    rows: int = 0


@dataclass
class _Fault:
    kind: str
    times: int
    probability: float
    after: int
    scope: str
    options: dict[str, Any]


@dataclass
class _Market:
    """Bars of one market by timeframe, as float64 arrays of time (ms) and five columns."""

    exchange: str
    symbol: str
    given: dict[str, pd.DataFrame]
    built: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    traded: bool = True
    refused: bool = False
    listed: bool = True

    def bars(self, timeframe: str) -> np.ndarray[Any, Any]:
        if timeframe not in self.built:
            self.built[timeframe] = _matrix(self._frame(timeframe))
        return self.built[timeframe]

    def _frame(self, timeframe: str) -> pd.DataFrame:
        if timeframe in self.given:
            return self.given[timeframe]
        shorter = [name for name in self.given if TIMEFRAMES[name] < TIMEFRAMES[timeframe]]
        if not shorter:
            return next(iter(self.given.values())).iloc[:0]
        frame = self.given[max(shorter, key=lambda name: TIMEFRAMES[name])]
        rules = {"open": "first", "high": "max", "low": "min", "close": "last", "volume": "sum"}
        start = pd.Timestamp("1970-01-05", tz="UTC")  # a Monday: weeks begin there
        groups = frame.resample(timeframe_delta(timeframe), origin=start)
        return groups.agg(rules)[groups.size() > 0]

    @property
    def base(self) -> str:
        return self.symbol.split("/")[0]

    @property
    def quote(self) -> str:
        return self.symbol.split("/")[1].split(":")[0]


def _matrix(frame: pd.DataFrame) -> np.ndarray[Any, Any]:
    times = pd.DatetimeIndex(frame.index).as_unit("ms").asi8.astype(float)
    return np.column_stack([times, frame[COLUMNS].to_numpy(float)])


def _spelled(value: float) -> str:
    """A number as exchanges write it, which reads back as the very same float."""
    text = repr(float(value))
    return text[:-2] if text.endswith(".0") else text


class ExchangeServer:
    """Serves candles over HTTP on loopback; see the module's text.

    Parameters
    ----------
    candles : mapping
        (exchange, unified symbol) to a frame, or to frames by timeframe.
    now : str or Timestamp, optional
        The exchange's clock; by default the end of the last bar of all.
    timeframe : str
        What single frames are; by default the smallest distance of two bars.
    seed : int
        For faults with a probability.
    cap : int, optional
        Most bars in one answer, where that is fewer than the exchange's own limit.
    """

    def __init__(
        self,
        candles: Mapping[tuple[str, str], pd.DataFrame | Mapping[str, pd.DataFrame]],
        now: str | pd.Timestamp | None = None,
        *,
        timeframe: str = "",
        seed: int = 0,
        cap: int | None = None,
        port: int = 0,
    ) -> None:
        self.markets = {
            key: _Market(*key, _by_timeframe(value, timeframe)) for key, value in candles.items()
        }
        unknown = {exchange for exchange, _ in candles} - set(EXCHANGES)
        if unknown:
            raise ValueError(f"no dialect of {', '.join(sorted(unknown))}; known: {EXCHANGES}")
        ends = [
            frame.index[-1] + timeframe_delta(name)
            for market in self.markets.values()
            for name, frame in market.given.items()
            if len(frame)
        ]
        self.now = now if now is not None else max(ends)
        self.skew = pd.Timedelta(0)
        self.cap = cap
        self.requests: list[Request] = []
        self._faults: list[_Fault] = []
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    # ---- what a test sets and reads

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables that point every exchange of a child process at this server."""
        return {"CRYPTO_ML_EXCHANGE_URLS": ",".join(f"{name}={self.url}" for name in EXCHANGES)}

    @property
    def now(self) -> pd.Timestamp:
        return self._now

    @now.setter
    def now(self, time: str | pd.Timestamp) -> None:
        stamp = pd.Timestamp(time)
        self._now = stamp.tz_localize("UTC") if stamp.tz is None else stamp.tz_convert("UTC")

    def advance(self, time: str | pd.Timedelta) -> None:
        """Let so much time pass on the exchange."""
        self.now = self._now + pd.Timedelta(time)

    @property
    def clock(self) -> pd.Timestamp:
        """What the exchange says the time is: `now`, off by `skew`."""
        return self._now + self.skew

    @property
    def candle_requests(self) -> list[Request]:
        return [request for request in self.requests if request.candles]

    def misbehave(
        self,
        kind: str,
        *,
        times: int = 0,
        probability: float = 0.0,
        after: int = 0,
        scope: str = "candles",
        **options: Any,
    ) -> None:
        """Answer badly: `times` requests in a row, or each with a probability, until `behave`.

        Parameters
        ----------
        kind : str
            One of `KINDS`; ``skew`` sets the clock off by the option `by`.
        times : int
            How many requests; 1 where neither this nor a probability is given; -1 for all.
        probability : float
            Of each request, from the server's seed.
        after : int
            How many requests are answered well first.
        scope : {"candles", "markets", "time", "any"}
            Which requests.
        **options
            ``retry_after`` (seconds or a header's text) for 429, 418 and 503; ``seconds`` for
            timeout; ``share`` of rows lost for gap; ``by`` for skew.
        """
        if kind == "skew":
            self.skew = pd.Timedelta(options["by"])
            return
        if kind not in KINDS:
            raise ValueError(f"{kind!r} is no misbehaviour; known: {', '.join(KINDS)}, skew")
        many = times or (0 if probability else 1)
        with self._lock:
            self._faults.append(_Fault(kind, many, probability, after, scope, options))

    def behave(self) -> None:
        """Answer well again; a revised or delisted market stays so."""
        with self._lock:
            self._faults.clear()
        self.skew = pd.Timedelta(0)

    def revise(
        self, exchange: str, symbol: str, timeframe: str, time: str | pd.Timestamp, **values: float
    ) -> None:
        """Report a bar differently from now on."""
        bars = self.markets[exchange, symbol].bars(timeframe)
        stamp = pd.Timestamp(time)
        stamp = stamp.tz_localize("UTC") if stamp.tz is None else stamp
        (row,) = np.flatnonzero(bars[:, 0] == stamp.value // 1_000_000)
        for name, value in values.items():
            bars[row, 1 + COLUMNS.index(name)] = value

    def delist(
        self, exchange: str, symbol: str, *, refused: bool = True, listed: bool = True
    ) -> None:
        """Trade a market no longer: its candles refused or not, in the list of markets or not."""
        market = self.markets[exchange, symbol]
        market.traded, market.refused, market.listed = False, refused, listed

    # ---- what the dialects use

    def fault_for(self, scope: str) -> _Fault | None:
        """Choose what goes wrong with this request, if anything."""
        with self._lock:
            for fault in self._faults:
                if fault.scope not in (scope, "any"):
                    continue
                if fault.after:
                    fault.after -= 1
                elif fault.probability:
                    if self._random.random() < fault.probability:
                        return fault
                elif fault.times:
                    fault.times -= fault.times > 0
                    return fault
        return None

    def log(self, request: Request) -> None:
        with self._lock:
            self.requests.append(request)

    def wait(self, seconds: float) -> None:
        self._closing.wait(seconds)

    def find(self, exchange: str, matches: Callable[[_Market], bool]) -> _Market | None:
        found = (m for (name, _), m in self.markets.items() if name == exchange and matches(m))
        return next(found, None)

    def of(self, exchange: str) -> list[_Market]:
        return [m for (name, _), m in self.markets.items() if name == exchange and m.listed]

    def rows(self, market: _Market, timeframe: str, first: float, last: float) -> list[Row]:
        """Bars that open from `first` to `last` (ms), both included; the newest one unfinished."""
        bars, now = market.bars(timeframe), self._now.value // 1_000_000
        low = np.searchsorted(bars[:, 0], first, "left")
        high = np.searchsorted(bars[:, 0], min(last, now), "right")
        rows = [[int(bar[0]), *bar[1:].tolist()] for bar in bars[low:high]]
        length = TIMEFRAMES[timeframe] * 60_000
        if rows and rows[-1][0] + length > now:
            if rows[-1][0] == now:
                rows.pop()  # not a moment of it is over
            else:
                rows[-1] = _so_far(rows[-1], (now - rows[-1][0]) / length)
        return rows

    def limited(self, rows: list[Row], limit: int, *, newest: bool = False) -> list[Row]:
        most = min(limit, self.cap or limit)
        return rows[-most:] if newest else rows[:most]


def _so_far(row: Row, share: float) -> Row:
    """A bar of which a share is over."""
    time, opened, high, low, close, volume = row
    now = opened + share * (close - opened)
    top, bottom = max(opened, now), min(opened, now)
    reached_high = top + share * max(high - top, 0.0)
    return [
        time,
        opened,
        reached_high,
        bottom - share * max(bottom - low, 0.0),
        now,
        volume * share,
    ]


def _by_timeframe(
    value: pd.DataFrame | Mapping[str, pd.DataFrame], timeframe: str
) -> dict[str, pd.DataFrame]:
    if not isinstance(value, pd.DataFrame):
        return dict(value)
    if not timeframe:
        times = pd.DatetimeIndex(value.index).as_unit("ms").asi8
        step = int(np.diff(times).min()) if len(times) > 1 else 3_600_000
        timeframe = next(name for name, minutes in TIMEFRAMES.items() if minutes * 60_000 == step)
    return {timeframe: value}


# ---- faults


def _spoil(rows: list[Row], fault: _Fault, random_: random.Random, length: int) -> list[Row]:
    """Rows as a faulty exchange gives them."""
    if not rows:
        return rows
    middle = len(rows) // 2
    bad = list(rows[middle])
    if fault.kind == "duplicates":
        return [row for row in rows for _ in range(1 + (row[0] // length % 3 == 0))]
    if fault.kind == "conflict":
        bad[4] = (bad[4] + bad[3]) / 2 if bad[4] != bad[3] else bad[4] * 0.999
        bad[3] = min(bad[3], bad[4])
        return [*rows[: middle + 1], bad, *rows[middle + 1 :]]
    if fault.kind == "unordered":
        return random_.sample(rows, len(rows))
    if fault.kind == "gap":
        lost = max(1, int(len(rows) * fault.options.get("share", 0.2)))
        start = (len(rows) - lost) // 2
        return rows[:start] + rows[start + lost :]
    if fault.kind == "empty":
        return []
    if fault.kind == "other_day":
        return [[row[0] - 86_400_000 * 400, *row[1:]] for row in rows]
    if fault.kind == "revised":
        bad[5] = bad[5] * 2 + 1
    elif fault.kind == "impossible":
        bad[2], bad[3] = bad[3] * 0.9, bad[2]
    elif fault.kind == "nan":
        bad[4] = float("nan")
    elif fault.kind == "off_grid":
        bad[0] += 1_000
    return [*rows[:middle], bad, *rows[middle + 1 :]]


# ---- dialects: (status, body) of a request, and rows as each exchange writes them


class _RefusedError(Exception):
    """An exchange's own error answer."""

    def __init__(self, status: int, body: object) -> None:
        super().__init__(status)
        self.status, self.body = status, body


Spoil = Callable[[list[Row], str], list[Row]]


def _number(query: Mapping[str, str], name: str, default: float) -> float:
    return float(query[name]) if name in query else default


class _Bitbank:
    """One UTC day of bars per request up to 1h, one year from 4h on; 404 where there is none."""

    TYPES: ClassVar[dict[str, Any]] = {f"{n}min": f"{n}m" for n in (1, 5, 15, 30)} | {
        f"{n}hour": f"{n}h" for n in (1, 4, 8, 12)
    }
    TYPES |= {"1day": "1d", "1week": "1w"}
    ABSENT: ClassVar[dict[str, Any]] = {"success": 0, "data": {"code": 10000}}

    @classmethod
    def markets(cls, server: ExchangeServer, path: str, query: Mapping[str, str]) -> object:
        pairs = [
            {
                "name": f"{m.base}_{m.quote}".lower(),
                "base_asset": m.base.lower(),
                "quote_asset": m.quote.lower(),
                "maker_fee_rate_quote": "-0.0002",
                "taker_fee_rate_quote": "0.0012",
                "unit_amount": "0.0001",
                "limit_max_amount": "1000",
                "market_max_amount": "10",
                "price_digits": 0,
                "amount_digits": 4,
                "is_enabled": m.traded,
                "stop_order": not m.traded,
                "stop_order_and_cancel": False,
            }
            for m in server.of("bitbank")
        ]
        return {"success": 1, "data": {"pairs": pairs}}

    @classmethod
    def candles(
        cls, server: ExchangeServer, path: str, query: Mapping[str, str], spoil: Spoil
    ) -> object:
        pair, _, kind, date = path.strip("/").split("/")
        market = server.find("bitbank", lambda m: f"{m.base}_{m.quote}".lower() == pair)
        timeframe = cls.TYPES.get(kind, "")
        yearly = timeframe and TIMEFRAMES[timeframe] > 60
        if not market or market.refused or not timeframe or len(date) != (4 if yearly else 8):
            raise _RefusedError(404, cls.ABSENT)
        start = pd.Timestamp(f"{date}0101" if yearly else date, tz="UTC")
        end = start + (pd.DateOffset(years=1) if yearly else pd.Timedelta("1D"))
        first, last = start.value // 1_000_000, end.value // 1_000_000 - 1
        rows = spoil(server.rows(market, timeframe, first, last), timeframe)
        if not rows:
            raise _RefusedError(404, cls.ABSENT)
        ohlcv = [[*map(_spelled, row[1:]), row[0]] for row in rows]
        stamp = server.clock.value // 1_000_000
        stick = [{"type": kind, "ohlcv": ohlcv}]
        return {"success": 1, "data": {"candlestick": stick, "timestamp": stamp}}


class _Binance:
    """Up to 1,000 bars from startTime on, oldest first."""

    @classmethod
    def markets(cls, server: ExchangeServer, path: str, query: Mapping[str, str]) -> object:
        if not path.startswith(("/api/", "/fapi/")):
            return {"symbols": []}
        swaps = path.startswith("/fapi/")
        symbols = [
            {
                "symbol": m.base + m.quote,
                "status": "TRADING" if m.traded else "BREAK",
                "baseAsset": m.base,
                "quoteAsset": m.quote,
                "isSpotTradingAllowed": m.traded,
                "permissions": ["SPOT"],
                "filters": [],
                **({"contractType": "PERPETUAL", "marginAsset": m.quote} if swaps else {}),
            }
            for m in server.of("binance")
            if (":" in m.symbol) == swaps
        ]
        return {"timezone": "UTC", "symbols": symbols}

    @classmethod
    def time(cls, server: ExchangeServer) -> object:
        return {"serverTime": server.clock.value // 1_000_000}

    @classmethod
    def candles(
        cls, server: ExchangeServer, path: str, query: Mapping[str, str], spoil: Spoil
    ) -> object:
        swaps = path.startswith("/fapi/")
        market = server.find(
            "binance",
            lambda m: m.base + m.quote == query["symbol"] and (":" in m.symbol) == swaps,
        )
        if not market or market.refused:
            raise _RefusedError(400, {"code": -1121, "msg": "Invalid symbol."})
        timeframe, limit = query["interval"], min(int(query.get("limit", 500)), 1000)
        length = TIMEFRAMES[timeframe] * 60_000
        rows = server.rows(
            market, timeframe, _number(query, "startTime", 0), _number(query, "endTime", 4e12)
        )
        rows = server.limited(rows, limit, newest="startTime" not in query)
        return [
            [r[0], *map(_spelled, r[1:]), r[0] + length - 1, "0", 1, "0", "0", "0"]
            for r in spoil(rows, timeframe)
        ]


class _Bybit:
    """Up to 1,000 bars, newest first; from `start` on where that is given."""

    INTERVALS: ClassVar[dict[str, Any]] = {
        str(n): name for name, n in TIMEFRAMES.items() if n < 1440
    } | {
        "D": "1d",
        "W": "1w",
    }

    @classmethod
    def markets(cls, server: ExchangeServer, path: str, query: Mapping[str, str]) -> object:
        category = query.get("category", "spot")
        listed = [
            {
                "symbol": m.base + m.quote,
                "baseCoin": m.base,
                "quoteCoin": m.quote,
                "status": "Trading" if m.traded else "Closed",
                "lotSizeFilter": {"basePrecision": "0.000001", "quotePrecision": "0.01"},
                "priceFilter": {"tickSize": "0.01"},
            }
            for m in server.of("bybit")
            if category == "spot"
        ]
        return cls._answer(server, {"category": category, "list": listed, "nextPageCursor": ""})

    @classmethod
    def time(cls, server: ExchangeServer) -> object:
        return cls._answer(server, {"timeSecond": str(server.clock.value // 10**9)})

    @classmethod
    def _answer(cls, server: ExchangeServer, result: object) -> dict[str, object]:
        stamp = server.clock.value // 1_000_000
        return {"retCode": 0, "retMsg": "OK", "result": result, "retExtInfo": {}, "time": stamp}

    @classmethod
    def candles(
        cls, server: ExchangeServer, path: str, query: Mapping[str, str], spoil: Spoil
    ) -> object:
        market = server.find("bybit", lambda m: m.base + m.quote == query["symbol"])
        if not market or market.refused:
            raise _RefusedError(
                200, {"retCode": 10001, "retMsg": "Not supported symbols", "result": {}}
            )
        timeframe, limit = cls.INTERVALS[query["interval"]], min(int(query.get("limit", 200)), 1000)
        rows = server.rows(
            market, timeframe, _number(query, "start", 0), _number(query, "end", 4e12)
        )
        rows = spoil(server.limited(rows, limit, newest="start" not in query), timeframe)
        listed = [[str(r[0]), *map(_spelled, r[1:]), "0"] for r in reversed(rows)]
        found = {"symbol": query["symbol"], "category": query["category"], "list": listed}
        return cls._answer(server, found)


class _Kraken:
    """The newest 720 bars, however old `since` is; the newest always, `since` excluded."""

    ASSETS: ClassVar[dict[str, Any]] = {
        "BTC": "XXBT",
        "ETH": "XETH",
        "USD": "ZUSD",
        "EUR": "ZEUR",
        "JPY": "ZJPY",
    }

    @classmethod
    def _id(cls, market: _Market) -> str:
        return cls.ASSETS.get(market.base, market.base) + cls.ASSETS.get(market.quote, market.quote)

    @classmethod
    def markets(cls, server: ExchangeServer, path: str, query: Mapping[str, str]) -> object:
        pairs = {
            cls._id(m): {
                "altname": m.base.replace("BTC", "XBT") + m.quote,
                "wsname": f"{m.base.replace('BTC', 'XBT')}/{m.quote}",
                "base": cls.ASSETS.get(m.base, m.base),
                "quote": cls.ASSETS.get(m.quote, m.quote),
                "pair_decimals": 1,
                "lot_decimals": 8,
                "leverage_buy": [],
                "fees": [[0, 0.4]],
                "fees_maker": [[0, 0.25]],
                "ordermin": "0.0001",
                "status": "online" if m.traded else "delisted",
            }
            for m in server.of("kraken")
        }
        return {"error": [], "result": pairs}

    @classmethod
    def time(cls, server: ExchangeServer) -> object:
        return {"error": [], "result": {"unixtime": server.clock.value // 10**9}}

    @classmethod
    def candles(
        cls, server: ExchangeServer, path: str, query: Mapping[str, str], spoil: Spoil
    ) -> object:
        market = server.find("kraken", lambda m: cls._id(m) == query["pair"])
        if not market or market.refused:
            raise _RefusedError(200, {"error": ["EQuery:Unknown asset pair"]})
        minutes = int(query.get("interval", 1))
        timeframe = next(name for name, length in TIMEFRAMES.items() if length == minutes)
        rows = server.rows(market, timeframe, 0, 4e12)[-min(720, server.cap or 720) :]
        since = _number(query, "since", 0) * 1000
        kept = [row for row in rows if row[0] > since] or rows[-1:]
        listed = [
            [r[0] // 1000, *map(_spelled, r[1:5]), _spelled(r[4]), _spelled(r[5]), 1]
            for r in spoil(kept, timeframe)
        ]
        last = kept[-2][0] // 1000 if len(kept) > 1 else 0
        return {"error": [], "result": {query["pair"]: listed, "last": last}}


class _Coinbase:
    """Bars from start to end, both included, newest first; refused where that is more than 350."""

    GRAINS: ClassVar[dict[str, Any]] = {
        "ONE_MINUTE": "1m",
        "FIVE_MINUTE": "5m",
        "FIFTEEN_MINUTE": "15m",
        "THIRTY_MINUTE": "30m",
        "ONE_HOUR": "1h",
        "TWO_HOUR": "2h",
        "SIX_HOUR": "6h",
        "ONE_DAY": "1d",
    }

    @classmethod
    def markets(cls, server: ExchangeServer, path: str, query: Mapping[str, str]) -> object:
        products = [
            {
                "product_id": f"{m.base}-{m.quote}",
                "base_currency_id": m.base,
                "quote_currency_id": m.quote,
                "product_type": "SPOT",
                "trading_disabled": not m.traded,
                "base_increment": "0.00000001",
                "price_increment": "0.01",
                "alias_to": [],
            }
            for m in server.of("coinbase")
            if query.get("product_type", "SPOT") == "SPOT"
        ]
        return {"products": products, "num_products": len(products)}

    @classmethod
    def time(cls, server: ExchangeServer) -> object:
        stamp = server.clock.value // 10**9
        return {"data": {"iso": server.clock.isoformat(), "epoch": stamp}}

    @classmethod
    def candles(
        cls, server: ExchangeServer, path: str, query: Mapping[str, str], spoil: Spoil
    ) -> object:
        product = path.strip("/").split("/")[-2]
        market = server.find("coinbase", lambda m: f"{m.base}-{m.quote}" == product)
        if not market or market.refused:
            words = {"error": "NOT_FOUND", "error_details": "valid product_id is required"}
            raise _RefusedError(404, words)
        timeframe = cls.GRAINS[query["granularity"]]
        first, last = (int(query[name]) * 1000 for name in ("start", "end"))
        if (last - first) / (TIMEFRAMES[timeframe] * 60_000) >= 350:
            words = {"error": "INVALID_ARGUMENT", "error_details": "more than 350 candles"}
            raise _RefusedError(400, words)
        rows = server.rows(market, timeframe, first, last)
        rows = spoil(server.limited(rows, 350, newest=True), timeframe)
        names = ["start", "open", "high", "low", "close", "volume"]
        return {
            "candles": [
                dict(zip(names, [str(r[0] // 1000), *map(_spelled, r[1:])], strict=True))
                for r in reversed(rows)
            ]
        }


class _Okx:
    """Bars after `before` and before `after`, newest first; `candles` only the newest 1,440."""

    BARS: ClassVar[dict[str, Any]] = {
        name if n < 60 else name.upper() + ("utc" if n >= 360 else ""): name
        for name, n in TIMEFRAMES.items()
    }

    @classmethod
    def markets(cls, server: ExchangeServer, path: str, query: Mapping[str, str]) -> object:
        data = [
            {
                "instId": f"{m.base}-{m.quote}",
                "instType": "SPOT",
                "baseCcy": m.base,
                "quoteCcy": m.quote,
                "state": "live" if m.traded else "suspend",
                "lotSz": "0.00000001",
                "tickSz": "0.1",
                "minSz": "0.00001",
            }
            for m in server.of("okx")
            if query.get("instType") == "SPOT"
        ]
        return {"code": "0", "msg": "", "data": data}

    @classmethod
    def time(cls, server: ExchangeServer) -> object:
        return {"code": "0", "msg": "", "data": [{"ts": str(server.clock.value // 1_000_000)}]}

    @classmethod
    def candles(
        cls, server: ExchangeServer, path: str, query: Mapping[str, str], spoil: Spoil
    ) -> object:
        market = server.find("okx", lambda m: f"{m.base}-{m.quote}" == query["instId"])
        if not market or market.refused:
            raise _RefusedError(
                200, {"code": "51001", "msg": "Instrument ID doesn't exist", "data": []}
            )
        timeframe, limit = cls.BARS[query["bar"]], min(int(query.get("limit", 100)), 300)
        after, before = _number(query, "after", 4e12), _number(query, "before", -1)
        length = TIMEFRAMES[timeframe] * 60_000
        if not path.endswith("history-candles"):
            before = max(before, server.now.value // 1_000_000 - 1440 * length)
        rows = server.rows(market, timeframe, before + 1, after - 1)
        rows = spoil(server.limited(rows, limit, newest=True), timeframe)
        now = server.now.value // 1_000_000
        data = [
            [str(r[0]), *map(_spelled, r[1:]), "0", "0", str(int(r[0] + length <= now))]
            for r in reversed(rows)
        ]
        return {"code": "0", "msg": "", "data": data}


DIALECTS: dict[str, Any] = {
    "bitbank": _Bitbank,
    "binance": _Binance,
    "bybit": _Bybit,
    "kraken": _Kraken,
    "coinbase": _Coinbase,
    "okx": _Okx,
}
# Order matters: Coinbase's paths begin like Binance's.
ROUTES = [
    (r"/api/v3/brokerage/market/products/[^/]+/candles", "coinbase", "candles"),
    (r"/api/v3/brokerage/market/products", "coinbase", "markets"),
    (r"/v2/time", "coinbase", "time"),
    (r"/(api/v3|fapi/v1)/klines", "binance", "candles"),
    (r"/(api/v3|[fd]api/v1)/exchangeInfo", "binance", "markets"),
    (r"/(api/v3|[fd]api/v1)/time", "binance", "time"),
    (r"/v5/market/kline", "bybit", "candles"),
    (r"/v5/market/instruments-info", "bybit", "markets"),
    (r"/v5/market/time", "bybit", "time"),
    (r"/0/public/OHLC", "kraken", "candles"),
    (r"/0/public/AssetPairs", "kraken", "markets"),
    (r"/0/public/Time", "kraken", "time"),
    (r"/api/v5/market/(history-)?candles", "okx", "candles"),
    (r"/api/v5/public/instruments", "okx", "markets"),
    (r"/api/v5/public/time", "okx", "time"),
    (r"/[a-z0-9]+_[a-z]+/candlestick/[^/]+/\d+", "bitbank", "candles"),
    (r"/spot/pairs", "bitbank", "markets"),
]
PAGE = "<html><head><title>Just a moment...</title></head><body>Checking your browser</body></html>"


def _another_market(body: object) -> object:
    """An answer about something else than was asked, as far as the dialect names what it is."""
    text = json.dumps(body)
    for names in (("1hour", "1day"), ("BTCUSDT", "ETHUSDT"), ("XXBTZUSD", "XETHZUSD")):
        text = text.replace(f'"{names[0]}"', f'"{names[1]}"')
    return json.loads(text)


def _without_rows(body: object) -> object:
    """Sound JSON of another shape: what a gateway says when something behind it is down."""
    if isinstance(body, list):
        return {"result": "ok"}
    kept = {"success": 1, "data": {}} if "success" in body else dict(body)  # type: ignore[operator, call-overload]
    for name in ("result", "candles"):
        kept.pop(name, None)
    if "data" in kept and "code" in kept:
        kept.pop("data")
    return kept


def _handler(server: ExchangeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing on the terminal; `server.requests` is the log."""

        def date_time_string(self, timestamp: float | None = None) -> str:
            return format_datetime(server.clock.floor("s").to_pydatetime(), usegmt=True)

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            query = dict(parse_qsl(parts.query))
            for pattern, exchange, scope in ROUTES:
                if re.fullmatch(pattern, parts.path):
                    self._serve(exchange, scope, parts.path, query)
                    return
            server.log(Request("", parts.path, query, False, 404))
            self._send(404, json.dumps({"message": f"no such path: {parts.path}"}))

        def _serve(self, exchange: str, scope: str, path: str, query: dict[str, str]) -> None:
            fault = server.fault_for(scope)
            kind = fault.kind if fault else ""
            served: list[Row] = []

            def spoil(rows: list[Row], timeframe: str) -> list[Row]:
                length = TIMEFRAMES[timeframe] * 60_000
                spoiled = (
                    _spoil(rows, fault, server._random, length)
                    if fault and kind in ROW_FAULTS
                    else rows
                )
                served.extend(spoiled)
                return spoiled

            def log(status: int) -> None:
                candles = scope == "candles"
                server.log(Request(exchange, path, query, candles, status, kind, len(served)))

            if fault and kind in REFUSALS:
                log(int(kind) if kind.isdecimal() else 0 if kind == "timeout" else 200)
                self._refuse(fault)
                return
            dialect = DIALECTS[exchange]
            try:
                if scope == "candles":
                    body = dialect.candles(server, path, query, spoil)
                elif scope == "markets":
                    body = dialect.markets(server, path, query)
                else:
                    body = dialect.time(server)
            except _RefusedError as refusal:
                log(refusal.status)
                self._send(refusal.status, json.dumps(refusal.body))
                return
            if kind == "other_market":
                body = _another_market(body)
            elif kind == "no_rows":
                body = _without_rows(body)
            log(200)
            self._send(200, json.dumps(body), kind)

        def _refuse(self, fault: _Fault) -> None:
            kind = fault.kind
            if kind == "timeout":
                server.wait(fault.options.get("seconds", 2.0))
                self.close_connection = True
                return
            headers = {}
            if "retry_after" in fault.options:
                headers["Retry-After"] = str(fault.options["retry_after"])
            words = {"message": "the exchange is out of order", "code": -1, "success": 0}
            status = int(kind) if kind.isdecimal() else 200
            page = kind in ("html", "502")
            content = "text/html" if page else "application/json"
            text = PAGE if page else json.dumps(words)
            self._send(status, text, content=content, headers=headers)

        def _send(
            self,
            status: int,
            text: str,
            kind: str = "",
            *,
            content: str = "application/json",
            headers: Mapping[str, str] | None = None,
        ) -> None:
            body = text.encode()
            if kind == "truncated":
                body = body[: len(body) // 2]
            self.send_response(status)
            self.send_header("Content-Type", content)
            self.send_header("Content-Length", str(len(body)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            if kind == "reset":
                self.close_connection = True
                self._headers_buffer = []  # type: ignore[attr-defined]
                return
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if kind == "cut" else body)
            self.wfile.flush()
            self.close_connection = self.close_connection or kind == "cut"

    return Handler


def _candles_of(path: Path) -> pd.DataFrame:
    frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    times = pd.DatetimeIndex(pd.to_datetime(frame["timestamp"], utc=True), name="timestamp")
    return frame.set_index(times)[COLUMNS].astype(float)


def main() -> None:
    """Serve a file's bars until interrupted."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--exchange", choices=EXCHANGES, required=True)
    parser.add_argument("--candles", type=Path, required=True, help="Parquet or CSV of bars")
    parser.add_argument("--symbol", default="", help="unified, BTC/JPY; from the file's name")
    parser.add_argument(
        "--now", default="", help="the exchange's clock; default: after the last bar"
    )
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--fail", type=float, default=0.0, help="share of requests that fail")
    given = parser.parse_args()
    named = given.candles.stem.split("_")[1] if "_" in given.candles.stem else "BTCUSDT"
    cut = next((n for q in ("USDT", "USDC") if named.endswith(q) for n in [-4]), -3)
    symbol = given.symbol or f"{named[:cut]}/{named[cut:]}"
    candles = {(given.exchange, symbol): _candles_of(given.candles)}
    with ExchangeServer(candles, now=given.now or None, port=given.port) as server:
        if given.fail:
            server.misbehave("500", probability=given.fail)
        print(f"{given.exchange} {symbol} at {server.url}", flush=True)
        print(
            f"clock {server.now}; export CRYPTO_ML_EXCHANGE_URLS={given.exchange}={server.url}",
            flush=True,
        )
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            print(f"{len(server.requests)} requests answered")


if __name__ == "__main__":
    main()
