"""A loopback server that sends Binance's kline streams by websocket, well or badly.

It speaks what ccxt.pro's own binance class expects, and hands every other request on to an
`ExchangeServer`, so that one address serves both::

    with ExchangeServer(candles, now=...) as rest, StreamServer(rest) as server:
        with open_exchange("binance", url=server.url) as exchange:
            stream = BarStream(exchange, "BTC/USDT", "1h", url=server.url)
            server.wait_for_line()                # somebody subscribed
            server.send("2024-01-05 10:00")       # the bar as it is
            server.cut()                          # every line, without a goodbye
            server.refusing = True                # and no new one
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
import urllib.request
from types import TracebackType
from typing import Any, Self

import pandas as pd
from aiohttp import WSMsgType, web
from exchange_server import ExchangeServer


class StreamServer:
    """Binance's websocket on loopback, with the REST of another server behind it."""

    def __init__(self, rest: ExchangeServer) -> None:
        self.rest = rest
        self.port = 0
        self.refusing = self.mute = False
        self.subscribed: list[str] = []  # streams, in the order of subscribing
        self.paths: list[str] = []
        self._lines: dict[web.WebSocketResponse, str] = {}
        self._loop = asyncio.new_event_loop()
        self._ready, self._end = threading.Event(), self._loop.create_future()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        return {"CRYPTO_ML_EXCHANGE_URLS": f"binance={self.url},bitbank={self.rest.url}"}

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._end.cancel)
        self._thread.join(10)

    # ---- what a test does

    def wait_for_line(self, count: int = 1) -> None:
        """Wait until so many subscriptions have been made since the start."""
        until = time.monotonic() + 10
        while len(self.subscribed) < count:
            assert time.monotonic() < until, f"{len(self.subscribed)} subscriptions"
            time.sleep(0.005)

    @property
    def lines(self) -> int:
        """How many are connected and subscribed."""
        return len(self._lines)

    def send(self, opened: str | pd.Timestamp, close: float = 1.0, final: bool = False) -> None:
        """Send a bar to every line."""
        stamp = pd.Timestamp(opened)
        stamp = stamp.tz_localize("UTC") if stamp.tz is None else stamp
        self._call(self._send(stamp.value // 1_000_000, close, final))

    def say(self, text: str) -> None:
        """Send a text to every line."""
        self._call(self._say(text))

    def cut(self) -> None:
        """Break every line off."""
        self._call(self._cut())

    def goodbye(self) -> None:
        """Close every line in good order, as Binance does after a day."""
        self._call(self._goodbye())

    # ---- in the server's thread

    def _call(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        app = web.Application()
        app.router.add_get("/{host}/ws/{number}", self._stream)
        app.router.add_get("/{host}/market/ws/{number}", self._stream)
        app.router.add_get("/{rest:.*}", self._forward)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.port = runner.addresses[0][1]
        self._ready.set()
        await asyncio.wait([self._end])
        await self._cut()
        await runner.cleanup()

    async def _forward(self, request: web.Request) -> web.Response:
        def ask() -> tuple[int, bytes]:
            try:
                with urllib.request.urlopen(self.rest.url + request.path_qs) as answer:
                    return answer.status, answer.read()
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, error.read()

        status, body = await asyncio.to_thread(ask)
        return web.Response(status=status, body=body, content_type="application/json")

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        self.paths.append(request.path)
        if self.refusing:
            return web.Response(status=503)
        line = web.WebSocketResponse()
        await line.prepare(request)
        try:
            async for message in line:
                if message.type is WSMsgType.TEXT:
                    asked = json.loads(message.data)
                    assert asked["method"] == "SUBSCRIBE", asked
                    (name,) = asked["params"]
                    await line.send_json({"result": None, "id": asked["id"]})
                    self._lines[line] = name
                    self.subscribed.append(name)
        finally:
            self._lines.pop(line, None)
        return line

    async def _send(self, opened: int, close: float, final: bool) -> None:
        for line, name in list(self._lines.items()):
            symbol, _, kind = name.partition("@kline_")
            length = int(pd.Timedelta(kind).total_seconds() * 1000)
            values = dict.fromkeys("ohlc", str(close)) | {"v": "1.0", "q": "1.0"}
            bar = {"t": opened, "T": opened + length - 1, "s": symbol.upper(), "i": kind}
            bar |= values | {"f": 1, "L": 2, "n": 2, "x": final, "V": "0.5", "Q": "0.5", "B": "0"}
            text = {"e": "kline", "E": opened + 1, "s": symbol.upper(), "k": bar}
            if not self.mute:
                await line.send_json(text)

    async def _say(self, text: str) -> None:
        for line in list(self._lines):
            await line.send_str(text)

    async def _cut(self) -> None:
        for line in list(self._lines):
            transport = line._req.transport  # type: ignore[union-attr]
            if transport is not None:
                transport.abort()
        self._lines.clear()

    async def _goodbye(self) -> None:
        for line in list(self._lines):
            await line.close(code=1001)
