"""`crypto-ml audit`: targets, report files, exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from click.testing import CliRunner, Result

from crypto_ml import audit_command, history, runs
from crypto_ml.audit_command import audit, report_markdown, write_audit
from crypto_ml.execute import update_leaderboard
from crypto_ml.feature_sets import make_feature_set, save_feature_set
from crypto_ml.features import feature_schema
from crypto_ml.leak_report import Finding, LeakReport
from crypto_ml.settings import CandlesError, RunError, SettingsError
from crypto_ml.simulate import simulate

CELLS = """
import pandas as pd
from crypto_ml.candles import Candles
from crypto_ml.features import Array, feature

@feature(lookback=0, scale="price")
def my_{name}(close: Array) -> Array:
    return {formula}

def _private(candles: Candles) -> pd.Series:
    return candles.frame["close"].shift(-1)
"""
HONEST, PEEKING = "close * 2", "close / close.max()"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "settings.ini").write_text(
        "[project]\nlib_path = crypto_ml\nnbs_path = nbs\nruns_path = runs\nmodels_path = models\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(audit, list(arguments))


def write_notebook(path: Path, *cells: str) -> str:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbformat.write(notebook, path)
    return str(path)


def reports(project: Path) -> list[dict[str, object]]:
    files = sorted((project / "runs" / "audits").glob("*/report.json"))
    return [json.loads(file.read_text()) for file in files]


def test_notebook_that_peeks_exits_1(project: Path) -> None:
    path = write_notebook(
        project / "mine.ipynb", "%config x", CELLS.format(name="share", formula=PEEKING)
    )
    result = run(path, "--days", "40")
    assert result.exit_code == 1, result.output
    assert "uses a statistic of the whole sample" in result.output
    (report,) = reports(project)
    assert report["clean"] is False and report["findings"][0]["column"] == "my_share"  # type: ignore[index]
    text = next((project / "runs" / "audits").glob("*/report.md")).read_text()
    assert "| my_share |" in text


def test_honest_notebook_exits_0(project: Path) -> None:
    path = write_notebook(project / "fine.ipynb", CELLS.format(name="double", formula=HONEST))
    result = run(path, "--days", "40", "--source", "sim:none")
    assert result.exit_code == 0, result.output
    assert "CLEAN" in result.output and reports(project)[0]["clean"] is True


def test_function_of_the_working_directory(project: Path) -> None:
    (project / "own_columns.py").write_text(
        "def past(candles):\n    return candles.frame['close'].diff()\n"
        "def peek(candles):\n    return candles.frame['close'].diff(-1)\n"
    )
    assert run("own_columns:past", "--days", "40").exit_code == 0
    assert run("own_columns:peek", "--days", "40").exit_code == 1


def test_pipeline_of_the_settings(project: Path) -> None:
    result = run("--days", "60", "--source", "sim:clear")
    assert result.exit_code == 0, result.output
    assert "fold 0" in str(reports(project)[0]["audited"])


def test_pipeline_is_what_train_sees(project: Path) -> None:
    expand = 'expand={"timeframes": ["4h"], "lags": [2]}'
    words = ["--source", "sim:vol", "--days", "60", "-p", "features=close,returns_1", "-p", expand]
    assert run(*words).exit_code == 0
    columns = reports(project)[0]["audited"]
    assert isinstance(columns, list)
    assert columns[:3] == ["features: close", "features: returns_1", "features: close_lag_2"]
    assert "features: returns_1_4h_lag_2" in columns


def test_pipeline_of_a_named_set(project: Path) -> None:
    save_feature_set(project / "feature_sets", make_feature_set("mine", ["close", "rsi_14"]))
    result = run("--source", "sim:vol", "--days", "60", "-p", "feature_set=mine")
    assert result.exit_code == 0, result.output
    columns = reports(project)[0]["audited"]
    assert columns[:3] == ["features: close", "features: rsi_14", "labels: y"]  # type: ignore[index]


def test_pipeline_with_another_market(project: Path) -> None:
    for seed, symbol in enumerate(("BTCUSDT", "ETHUSDT")):
        frame = simulate("vol", bars=1500, seed=seed).candles.frame
        frame.reset_index().to_parquet(project / f"binance_{symbol}_1h.parquet")
    expand = 'expand={"symbols": ["ETHUSDT"]}'
    words = ["--source", "binance_BTCUSDT_1h.parquet", "-p", "features=close,rsi_14", "-p", expand]
    result = run(*words)
    assert result.exit_code == 0, result.output
    assert "features: rsi_14_ethusdt" in reports(project)[0]["audited"]  # type: ignore[operator]


def test_run_is_audited_on_its_own_data(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = SimpleNamespace(
        run_id="20250101-run",
        parameters={"source": "sim:vol", "days": 50.0, "features": ["close", "zscore"]},
        data={"sha256": "another"},
        features=[{"name": "close", "definition_hash": "another"}, *feature_schema(["zscore"])],
    )
    monkeypatch.setattr(history, "find_run", lambda folder, name: folder / name)
    monkeypatch.setattr(runs, "read_record", lambda folder: record)
    result = run("20250101-run")
    assert result.exit_code == 0, result.output
    assert "CLEAN: run 20250101-run" in result.output and "1,200 bars" in result.output
    assert "are not those that the run had" in result.output
    assert "otherwise than in the run: close\n" in result.output
    for words in (["--days", "3"], ["--source", "sim:none"], ["-p", "horizon=2"]):
        refused = run("20250101-run", *words)
        assert isinstance(refused.exception, SettingsError)
        assert "its own parameters" in str(refused.exception)


def test_an_audit_is_no_run(project: Path) -> None:
    write_audit(LeakReport("f", "data", [], ["x"], {}), project / "runs", "latest")
    assert history.list_runs(project / "runs") == []
    for name in ("latest", "audits", "f"):
        with pytest.raises(RunError, match="There are none yet"):
            history.find_run(project / "runs", name)
    assert "audits" not in update_leaderboard(project / "runs").read_text()


def test_module_of_a_project_notebook(project: Path) -> None:
    path = write_notebook(
        project / "20_features.ipynb", "#| default_exp features", "raise SystemError"
    )
    stages = audit_command.notebook_stages(Path(path))
    assert "features" in stages


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("nowhere.ipynb", CandlesError),
        ("no_such_module:f", SettingsError),
        ("crypto_ml.leaks:nothing", SettingsError),
        ("empty.ipynb", SettingsError),
    ],
)
def test_bad_targets_are_named(project: Path, target: str, error: type[Exception]) -> None:
    write_notebook(project / "empty.ipynb", "x = 1")
    result = run(target)
    assert isinstance(result.exception, error)


def test_markdown_of_a_clean_report() -> None:
    report = LeakReport("f", "data", [], ["x"], {"future": "3 cuts"}, ["refused NaN"])
    text = report_markdown(report)
    assert text.startswith("# CLEAN") and "refused NaN" in text and "|" not in text
    leaking = LeakReport("f", "data", [Finding("same_rows", "fold 0")], ["x"], {})
    assert "| fold 0 |" in report_markdown(leaking)
