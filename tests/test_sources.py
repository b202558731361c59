"""Where a run's candles come from, and that nothing ever stands in for them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from exchange_server import ExchangeServer

from crypto_ml.candles import Market
from crypto_ml.settings import CandlesError, RunParameters, SettingsError
from crypto_ml.simulate import simulate
from crypto_ml.sources import (
    is_exchange,
    needed_bars,
    open_companions,
    open_market,
    source_market,
)

END = pd.Timestamp("2024-03-01", tz="UTC")
BARS = simulate("sim:vol", bars=24 * 60, end=END).candles.frame
OTHER = simulate("sim:vol", bars=24 * 60, end=END, seed=5).candles.frame
SMALL: dict[str, Any] = {"features": ("returns_1", "zscore"), "n_splits": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for symbol, bars in {"BTCUSDT": BARS, "ETHUSDT": OTHER}.items():
        bars.reset_index().to_parquet(tmp_path / f"binance_{symbol}_1h.parquet")
    return tmp_path


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ExchangeServer]:
    candles = {("bitbank", "BTC/JPY"): BARS, ("bitbank", "ETH/JPY"): OTHER}
    with ExchangeServer(candles, now=END - pd.Timedelta(minutes=30)) as running:
        monkeypatch.setenv("CRYPTO_ML_EXCHANGE_URLS", f"bitbank={running.url}")
        monkeypatch.setenv("CRYPTO_ML_STORE", str(tmp_path / "store"))
        yield running


def test_a_plain_word_is_an_exchange_unless_a_file_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_exchange("bitbank") and is_exchange("okx")
    assert not any(map(is_exchange, ["sim:clear", "a/b", "prices.csv", "Bitbank", "x_1h"]))
    (tmp_path / "bitbank").touch()
    assert not is_exchange("bitbank")


@pytest.mark.parametrize(
    ("parameters", "market"),
    [
        ({"source": "sim:vol"}, Market("simulated", "SIM-VOL", "1h")),
        ({"source": "x/binance_BTCUSDT_1h.parquet", "resample": "4h"},
         Market("binance", "BTCUSDT", "4h")),
        ({"source": "bitbank", "symbol": "btc-jpy", "timeframe": "15m"},
         Market("bitbank", "BTCJPY", "15m")),
        ({"source": "okx", "symbol": "BTC/USDT:USDT", "timeframe": "1m", "resample": "1h"},
         Market("okx", "BTCUSDT.USDT", "1h")),
    ],
)  # fmt: skip
def test_a_run_is_named_before_anything_is_read(parameters: Any, market: Market) -> None:
    assert source_market(RunParameters(**parameters)) == market


def test_an_exchange_is_opened_resampled_and_remembered(server: ExchangeServer) -> None:
    parameters = RunParameters(
        source="bitbank", symbol="BTC/JPY", timeframe="1h", days=55, resample="2h", **SMALL
    )
    said: list[str] = []
    opened = open_market(parameters, say=said.append)
    assert opened.candles.market == Market("bitbank", "BTCJPY", "2h")
    assert len(opened.candles) == 55 * 12 - 1  # the days begin and end between two long bars
    assert opened.stored is not None and opened.stored.requests >= 55
    assert any(line.startswith("100% of the span") for line in said)
    again = open_market(parameters)
    assert again.stored is not None and again.stored.requests <= 2
    assert again.candles.sha256 == opened.candles.sha256


def test_companions_of_an_exchange_are_other_markets_of_it(server: ExchangeServer) -> None:
    parameters = RunParameters(
        source="bitbank", symbol="BTC/JPY", timeframe="1h", days=50,
        expand={"symbols": ["ETH/JPY"]}, **SMALL,
    )  # fmt: skip
    candles = open_market(parameters).candles
    (companion,) = open_companions(parameters, candles).values()
    assert companion.market == Market("bitbank", "ETHJPY", "1h")
    pd.testing.assert_frame_equal(companion.frame, OTHER.loc[companion.index])


def test_companions_of_a_file_stand_beside_it_and_end_with_the_base(folder: Path) -> None:
    parameters = RunParameters(
        source=str(folder / "binance_BTCUSDT_1h.parquet"), end="2024-02-20",
        expand={"symbols": ["ETHUSDT"]}, **SMALL,
    )  # fmt: skip
    candles = open_market(parameters).candles
    companion = open_companions(parameters, candles)["ETHUSDT"]
    assert companion.market.symbol == "ETHUSDT"
    assert companion.known_at[-1] == candles.known_at[-1]
    missing = parameters.model_copy(update={"expand": {"symbols": ["XRPUSDT"]}})
    with pytest.raises(CandlesError, match=r"binance_XRPUSDT_1h\.parquet"):
        open_companions(missing, candles)


@pytest.mark.parametrize(
    ("parameters", "error", "words"),
    [
        ({"source": "bitbnk", "symbol": "BTC/JPY", "timeframe": "1h", "days": 9}, CandlesError,
         "bitbank"),
        ({"source": "bitbank", "symbol": "BTC/JPY"}, SettingsError, "timeframe is not given"),
        ({"source": "bitbank", "symbol": "BTC/JPY", "timeframe": "1h"}, SettingsError,
         "how much of it"),
        ({"source": "bitbank", "exchange": "okx", "symbol": "BTC/JPY", "timeframe": "1h",
          "days": 9}, SettingsError, "leave the second out"),
        ({"source": "no/such.parquet", "exchange": "x", "symbol": "Y", "timeframe": "1h"},
         CandlesError, "no/such.parquet"),
        ({"source": "sim:clear", "start": "2024-01-01"}, SettingsError, "none of its own"),
        ({"source": "sim:clear", "days": 5.0}, CandlesError, "120 bars"),
    ],
)  # fmt: skip
def test_whatever_is_wrong_nothing_stands_in(
    server: ExchangeServer, parameters: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        open_market(RunParameters(**parameters))


def test_a_simulated_market_has_no_companions() -> None:
    parameters = RunParameters(expand={"symbols": ["ETHUSDT"]})
    with pytest.raises(SettingsError, match="no neighbours"):
        open_companions(parameters, simulate("sim:clear", bars=300).candles)


def test_an_expansion_needs_more_bars() -> None:
    plain = RunParameters(**SMALL)
    expanded = RunParameters(**SMALL, expand={"timeframes": ["1d"]})
    assert needed_bars(expanded)[0] > needed_bars(plain)[0] + 20 * 24
