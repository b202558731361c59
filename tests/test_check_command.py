"""The command: what it says, where, and its exit code."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from crypto_ml.candles import CandlesError, Market
from crypto_ml.check_command import check, check_source, read_source
from crypto_ml.simulate import simulate
from crypto_ml.store import Store

MARKET = Market("example", "BTCJPY", "1h")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A clean file, one with a hole of the source, one with a repeated hour, and a late one."""
    frame = simulate("vol", bars=3000, seed=2).candles.frame
    gone = (frame.index >= "2024-10-01") & (frame.index < "2024-10-11")
    tables = {
        "clean": frame,
        "holed": frame[~gone],
        "doubled": pd.concat([frame[:50], frame[49:]]),
        "late": frame.shift(freq="9h"),
    }
    paths = {}
    for name, table in tables.items():
        paths[name] = tmp_path / f"example_BTCUSDT_1h_{name}.parquet"
        table.reset_index().to_parquet(paths[name])
    named = tmp_path / "example_BTCUSDT_1h.parquet"
    frame.reset_index().to_parquet(named)
    return {**paths, "reference": named}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(check, [str(argument) for argument in arguments])


def test_exit_codes(files: dict[str, Path]) -> None:
    for name, code, words in (
        ("clean", 0, "clean (example BTCUSDT 1h, 3,000 bars"),
        ("holed", 1, "usable with care"),
        ("doubled", 2, "unfit duplicates: 1 timestamp repeated with equal values"),
    ):
        result = run(files[name])
        assert result.exit_code == code and words in result.output
        assert "Traceback" not in result.output
    assert run(files["clean"], files["holed"]).exit_code == 1
    both = run(files["doubled"], files["clean"])
    assert both.exit_code == 2 and both.output.count("example_BTCUSDT_1h_") == 2
    assert run().exit_code == 2


def test_a_reference_and_the_clock(files: dict[str, Path]) -> None:
    result = run(files["late"], "--reference", files["reference"])
    assert result.exit_code == 2 and "9 hours (9 bars) late" in " ".join(result.output.split())
    stale = run(files["clean"], "--now", "2025-02-01")
    assert stale.exit_code == 1 and "stale" in stale.output
    assert run("sim:vol", "--reference", "sim:vol").exit_code == 0


def test_what_cannot_be_read_is_said_and_hides_nothing(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRYPTO_ML_STORE", str(tmp_path / "store"))
    result = run("nothing.parquet", files["clean"], "bitbank:BTC/JPY:1h")
    assert result.exit_code == 2 and "3,000 bars" in result.output
    assert "is no file" in result.output and "neither a file nor a market" in result.output
    assert isinstance(run("sim:vol", "--reference", "nothing.csv").exception, CandlesError)


def test_written_findings_and_picture(files: dict[str, Path], tmp_path: Path) -> None:
    out, png = tmp_path / "findings.json", tmp_path / "coverage.png"
    result = run(files["holed"], "nothing.parquet", "--json", out)
    first, second = json.loads(out.read_text())
    assert result.exit_code == 2 and first["exit_code"] == 1 and second["exit_code"] == 2
    assert first["findings"][0]["kind"] == "sourcing_hole" and first["bars"] == 2760
    assert run(files["reference"], "--png", png).exit_code == 0
    assert png.read_bytes().startswith(b"\x89PNG")
    twice = run(files["clean"], files["reference"], "--png", png)
    assert isinstance(twice.exception, CandlesError) and "name one" in str(twice.exception)


def test_a_market_of_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRYPTO_ML_STORE", str(tmp_path))
    frame = simulate("vol", bars=500).candles.frame
    last = frame.index[-1] + pd.Timedelta("1h")
    store = Store()
    cut = frame.index[300]
    pages = [(frame.index[0], frame.index[250]), (cut, last)]
    for start, end in pages:
        rows = frame[(frame.index >= start) & (frame.index < end)]
        page = SimpleNamespace(start=start, end=end, frame=rows)
        store.write(MARKET, page, last + pd.Timedelta("1h"))
    changed = frame[400:403].copy()
    changed[["high", "close"]] = changed[["high", "close"]].max(axis=None) * 1.5
    page = SimpleNamespace(
        start=changed.index[0], end=changed.index[-1] + pd.Timedelta("1h"), frame=changed
    )
    store.write(MARKET, page, last + pd.Timedelta("2h"))
    for source in ("example:BTC/JPY:1h", "example BTCJPY 1h", "example_btcjpy_1h"):
        found = check_source(source, now=str(last.tz_localize(None)))
        kinds = {finding.kind: finding.severity for finding in found.findings}
        assert kinds["unasked"] == "warning" and kinds["revised"] == "warning"
        assert found.bars == 450 == len(read_source(source))
    result = run("example:BTC/JPY:1h")
    assert result.exit_code == 2 or result.exit_code == 1
    assert "stale" in result.output  # the wall clock is past 2025
