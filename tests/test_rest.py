"""One request: what passes, what stays, how long is waited, and what is never read."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from typing import Any

import pandas as pd
import pytest

from crypto_ml.errors import CandlesError, SettingsError
from crypto_ml.rest import (
    PassingError,
    Patience,
    UnansweredError,
    _network_words,
    ask,
    http_time,
    mirror_of,
    open_client,
)

QUICK = Patience(attempts=3, first_wait=0.01, longest_wait=0.02, timeout=5)
TIME = '{"serverTime": 1700000000000}'
Answer = tuple[int, str, dict[str, str]]


class Scripted:
    """A server that gives prepared answers, then a time."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.asked: list[str] = []
        script = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                script.asked.append(self.path)
                status, body, headers = script.answers.pop(0) if script.answers else (200, TIME, {})
                self.send_response_only(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = HTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    script = Scripted()
    yield script
    script.http.shutdown()
    script.http.server_close()
    script.thread.join()


def ask_time(script: Scripted, *answers: Answer, patience: Patience = QUICK) -> Any:
    client = open_client("binance", script.url, patience)
    script.answers[:] = answers
    return ask(client, "its time", client.fetch_time, patience)


def test_an_answer_comes_after_failures_that_pass(scripted: Scripted) -> None:
    failures = [(500, "", {}), (200, "<html>", {"Content-Type": "text/html"})]
    assert ask_time(scripted, *failures) == 1_700_000_000_000
    assert scripted.asked == ["/api/v3/time"] * 3


@pytest.mark.parametrize(
    ("status", "body", "times", "words"),
    [
        (503, "{}", 3, "binance did not give its time: HTTP 503, the exchange or its gateway"),
        (408, "{}", 3, "HTTP 408"),
        (429, "{}", 3, "HTTP 429, too many requests; asked 3 times"),
        (200, "half of", 3, "an answer that is no JSON: 'half of'; asked 3 times"),
        (200, '{"code": -1003, "msg": "queue is full"}', 3, "queue is full.*asked 3 times"),
        (
            400,
            '{"code": -1100, "msg": "illegal"}',
            1,
            "binance refuses its time: HTTP 400, the request",
        ),
        (401, "{}", 1, "HTTP 401, the request is refused"),
        (403, "<html>no</html>", 1, "HTTP 403, access is refused"),
        (451, "{}", 1, "HTTP 451, not available in this country"),
        (404, "{}", 1, "HTTP 404, there is no such thing"),
    ],
)
def test_what_is_tried_again(
    scripted: Scripted, status: int, body: str, times: int, words: str
) -> None:
    with pytest.raises(UnansweredError, match=words) as caught:
        ask_time(scripted, *[(status, body, {})] * 9)
    assert len(scripted.asked) == times
    assert caught.value.status == status
    assert scripted.url not in str(caught.value)


def test_nobody_there() -> None:
    for url, words in {
        "http://127.0.0.1:9": "the connection was refused; asked 3 times",
        "http://nowhere.invalid": "its name was not resolved; is there a network",
    }.items():
        client = open_client("binance", url, QUICK)
        client.proxies = {}
        with pytest.raises(UnansweredError, match=words):
            ask(client, "its time", client.fetch_time, QUICK)


def test_a_login_page_is_no_exchange(scripted: Scripted) -> None:
    there = [(302, "", {"Location": scripted.url})] * 40
    words = "binance refuses its time: it sends from one address to the next; is there a login"
    with pytest.raises(UnansweredError, match=words) as caught:
        ask_time(scripted, *there)
    assert caught.value.status == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("certificate verify failed", "its certificate is not trusted"),
        ("what nobody foresaw", "the connection failed: ValueError"),
    ],
)
def test_words_for_what_goes_wrong_on_the_way(text: str, words: str) -> None:
    error = ValueError("binance GET")
    error.__cause__ = OSError(text)
    assert words in _network_words(error, 1.0)


def test_errors_of_this_program_are_not_hidden(scripted: Scripted) -> None:
    client = open_client("binance", scripted.url, QUICK)
    with pytest.raises(ZeroDivisionError):
        ask(client, "its time", lambda: 1 // 0, QUICK)


def test_waits_grow_and_are_bounded(scripted: Scripted) -> None:
    times: list[float] = []

    def call() -> None:
        times.append(time.monotonic())
        raise PassingError("never")

    patience = Patience(attempts=6, first_wait=0.02, longest_wait=0.08)
    with pytest.raises(UnansweredError, match="never; asked 6 times"):
        ask(open_client("binance", scripted.url), "anything", call, patience)
    waits = [later - earlier for earlier, later in pairwise(times)]
    for wait, whole in zip(waits, [0.02, 0.04, 0.08, 0.08, 0.08], strict=True):
        assert whole / 2 <= wait <= whole + 2


@pytest.mark.parametrize("spelled", ["seconds", "date"])
def test_retry_after_is_obeyed(scripted: Scripted, spelled: str) -> None:
    later = pd.Timestamp.now("UTC").ceil("s") + pd.Timedelta("1s")
    after = "0.8" if spelled == "seconds" else format_datetime(later.to_pydatetime(), usegmt=True)
    begun = time.monotonic()
    assert ask_time(scripted, (429, "{}", {"Retry-After": after})) == 1_700_000_000_000
    assert time.monotonic() - begun >= 0.75


@pytest.mark.parametrize(
    ("after", "words"),
    [
        ("3600", "asked once. It asks to wait 3600 s: try again after 20"),
        ("soon", "asked 3 times in . s. Try again later"),
        ("0", "asked 3 times in . s. Try again later"),
    ],
)
def test_how_long_to_wait(scripted: Scripted, after: str, words: str) -> None:
    with pytest.raises(UnansweredError, match=words):
        ask_time(scripted, *[(418, "{}", {"Retry-After": after})] * 3)


def test_the_clock_is_read_from_every_answer(scripted: Scripted) -> None:
    client = open_client("binance", scripted.url, QUICK)
    now = pd.Timestamp.now("UTC")

    def hear(seconds: float, **more: str) -> float:
        then = (now + pd.Timedelta(seconds=seconds)).to_pydatetime()
        scripted.answers[:] = [(200, TIME, {"Date": format_datetime(then, usegmt=True), **more})]
        ask(client, "its time", client.fetch_time, QUICK)
        return float(client.offset.total_seconds())

    assert hear(-3600) == pytest.approx(-3600, abs=2)
    client.offset = pd.Timedelta("-3599.8s")
    assert hear(-3600) == -3599.8  # a measurement that a Date, cut to the second, bears out
    assert hear(0, Age="600") == pytest.approx(600, abs=2)
    assert hear(0, Age="long") == pytest.approx(0, abs=2)
    scripted.answers[:] = [(200, TIME, {"Date": "yesterday"})]
    ask(client, "its time", client.fetch_time, QUICK)
    assert client.offset.total_seconds() == pytest.approx(0, abs=2)


def test_times_of_http() -> None:
    expected = pd.Timestamp("2015-10-21 07:28", tz="UTC")
    assert http_time("Wed, 21 Oct 2015 07:28:00 GMT") == expected
    assert http_time("Wed, 21 Oct 2015 07:28:00 -0000") == expected
    assert http_time("") is None


def test_the_rate_limit_is_kept(scripted: Scripted) -> None:
    client = open_client("binance", scripted.url, QUICK)
    assert client.enableRateLimit is False  # a server of one's own
    assert open_client("binance").enableRateLimit is True
    assert open_client("binance", "https://mirror.example").enableRateLimit is True
    client.enableRateLimit, client.rateLimit = True, 50
    begun = time.monotonic()
    for _ in range(5):
        client.throttle(1)
    assert time.monotonic() - begun >= 4 * 0.05
    begun = time.monotonic()
    client.throttle()
    client.throttle(0.1)
    assert 0.05 <= time.monotonic() - begun < 5
    scripted.answers[:] = []
    client.fetch_time()  # costs less than a whole turn, and takes none of ccxt's own waiting
    assert len(scripted.asked) == 1


def test_no_key_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BINANCE_APIKEY", "BINANCE_SECRET", "APIKEY", "SECRET"):
        monkeypatch.setenv(name, "a key")
    client = open_client("binance")
    assert not client.apiKey
    assert not client.secret
    assert client.session.trust_env is False  # neither .netrc


def test_a_proxy_of_the_environment_is_used_but_not_for_this_machine(
    monkeypatch: pytest.MonkeyPatch, scripted: Scripted
) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "mirror.example")
    assert open_client("binance").proxies["https"] == "http://127.0.0.1:9"
    assert open_client("binance", "https://other.example").proxies["http"] == "http://127.0.0.1:9"
    assert not open_client("binance", "https://mirror.example").proxies
    assert ask_time(scripted) == 1_700_000_000_000


def test_mirrors_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CRYPTO_ML_EXCHANGE_URLS", raising=False)
    assert mirror_of("bitbank") == ""
    monkeypatch.setenv("CRYPTO_ML_EXCHANGE_URLS", "bitbank=http://one:1, okx=https://two/api,")
    assert [mirror_of(name) for name in ("bitbank", "okx", "kraken")] == [
        "http://one:1",
        "https://two/api",
        "",
    ]
    monkeypatch.setenv("CRYPTO_ML_EXCHANGE_URLS", "bitbank=http://one:1,okx")
    with pytest.raises(
        SettingsError, match="CRYPTO_ML_EXCHANGE_URLS says 'okx'; expected exchange="
    ):
        mirror_of("bitbank")


def test_addresses_keep_their_paths() -> None:
    client = open_client("binance", "http://mirror.example:80/b/")
    assert client.urls["api"]["public"] == "http://mirror.example:80/b/api/v3"
    assert open_client("okx", "http://m").urls["api"]["rest"] == "http://m"


def test_exchanges_that_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        CandlesError, match=r"no exchange 'binnance' in ccxt; did you mean 'binance"
    ):
        open_client("binnance")
    with pytest.raises(CandlesError, match="serves no candles of its own; choose another"):
        open_client("coinmate")
    monkeypatch.setitem(sys.modules, "ccxt", None)
    with pytest.raises(CandlesError, match=r"pip install 'crypto_ml\[exchanges\]'"):
        open_client("binance")
