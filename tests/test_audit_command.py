"""`crypto-ml audit`: targets, report files, exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from click.testing import CliRunner, Result

from crypto_ml import audit_command, history, runs
from crypto_ml.audit_command import audit, report_markdown
from crypto_ml.leak_report import Finding, LeakReport
from crypto_ml.settings import CandlesError, SettingsError

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


def test_run_is_audited_on_its_own_data(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = SimpleNamespace(parameters={"source": "sim:vol", "days": 50.0})
    monkeypatch.setattr(history, "find_run", lambda folder, name: folder / name)
    monkeypatch.setattr(runs, "read_record", lambda folder: record)
    result = run("20250101-run")
    assert result.exit_code == 0, result.output
    assert "1,200 bars" in result.output


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
