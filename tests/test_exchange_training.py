"""Training on an exchange, as its user types it: first time, again, a day later, in bad weather."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from exchange_server import ExchangeServer
from test_end_to_end import ASSIGNMENTS, COMMAND, make_project

from crypto_ml.runs import RunRecord, read_record
from crypto_ml.simulate import simulate

END = pd.Timestamp("2024-03-01", tz="UTC")
BARS = simulate("sim:vol", bars=24 * 80, end=END).candles.frame
BITBANK = ["--source", "bitbank", "--symbol", "BTC/JPY", "--timeframe", "1h"]
SMALL = [word for word in ASSIGNMENTS if word != "days=60"]
SMALL.remove("-p")

Train = Callable[..., tuple[RunRecord, int]]


@pytest.fixture
def server() -> Iterator[ExchangeServer]:
    now = END - pd.Timedelta(days=2, minutes=20)
    with ExchangeServer({("bitbank", "BTC/JPY"): BARS}, now=now) as running:
        yield running


@pytest.fixture
def command(
    server: ExchangeServer, tmp_path: Path
) -> Callable[..., subprocess.CompletedProcess[str]]:
    project = make_project(tmp_path)
    environment = os.environ | server.environment | {"CRYPTO_ML_STORE": str(tmp_path / "store")}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *words],
            cwd=project,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture
def train(
    server: ExchangeServer,
    command: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> Train:
    def run() -> tuple[RunRecord, int]:
        before = len(server.candle_requests)
        done = command("train", *BITBANK, "--days", "60", *SMALL)
        assert done.returncode == 0, done.stderr
        folder = max((tmp_path / "runs").glob("*-BTCJPY-1h-*"))
        return read_record(folder), len(server.candle_requests) - before

    return run


def test_a_year_is_not_downloaded_twice_and_a_revision_is_not_trained_on(
    server: ExchangeServer,
    train: Train,
    command: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    first, requests = train()
    assert requests >= 60
    assert (first.data["bars"], first.data["revised_bars"]) == (60 * 24, 0)
    end = server.now.floor("1h")
    assert pd.Timestamp(first.data["end"]) == end
    server.revise("bitbank", "BTC/JPY", "1h", end - pd.Timedelta(hours=1), volume=1.5)
    server.advance("1D")
    server.misbehave("500", probability=0.2)
    later, requests = train()
    assert requests <= 8
    assert later.data["revised_bars"] == 1
    assert pd.Timestamp(later.data["end"]) == end + pd.Timedelta(days=1)
    server.misbehave("500")
    before = len(server.requests)
    replayed = command("replay", first.run_id)
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr
    assert "Identical" in replayed.stdout
    assert len(server.requests) == before


def test_when_the_exchange_is_down_the_message_says_so_and_nothing_stands_in(
    server: ExchangeServer, command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    server.delist("bitbank", "BTC/JPY")
    done = command("train", *BITBANK, "--days", "60", *SMALL)
    assert done.returncode == 2
    assert "BTC/JPY" in done.stderr and "bitbank" in done.stderr
    (failed,) = (json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*/run.json"))
    assert failed["status"] == "failed"
