"""A run whose feature peeks is refused by `train`; an honest one can be audited by its name."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest
from test_end_to_end import ASSIGNMENTS, crypto_ml_command, edited_project

from crypto_ml.history import list_runs

OWN_FEATURE = """
from crypto_ml.features import Array, feature


@feature(lookback=2, scale="ratio")
def peek(close: Array) -> Array:
    \"\"\"Return from the bar before last to the next.\"\"\"
    return np.r_[np.nan, np.nan, close[3:] / close[:-3] - 1, 0.0]
"""


def add_feature(notebook: nbformat.NotebookNode) -> None:
    place = next(
        number for number, cell in enumerate(notebook.cells) if "open_market" in cell.source
    )
    source = f"import numpy as np\n{OWN_FEATURE}"
    notebook.cells.insert(place, nbformat.v4.new_code_cell(source))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return edited_project(tmp_path_factory.mktemp("project"), add_feature)


def train(project: Path, *names: str) -> tuple[int, str]:
    words = ["--source", "sim:clear", *ASSIGNMENTS, "-p", f"features={','.join(names)}"]
    words += ["-p", 'weights={"lightgbm": 1}', "-p", "surrogates=0"]
    done = crypto_ml_command(project, "train", *words)
    return done.returncode, done.stdout + done.stderr


def test_train_refuses_to_score_what_peeks(project: Path) -> None:
    code, said = train(project, "close", "peek")
    assert code == 1, said
    assert "'audit'" in said and "peek: uses bars after its own" in said
    assert "2024-11-" in said and "it looks up to 1 bar ahead" in said
    [(folder, record)] = list_runs(project / "runs")
    assert (record.status, record.error and record.error.kind) == ("failed", "LeakError")
    assert [finding["column"] for finding in record.audit["findings"]] == ["peek"]
    assert not record.scores and not record.verdict
    assert not (folder / "predictions.parquet").exists()
    assert not (project / "models" / "training").exists()


def test_run_that_is_kept_is_audited(project: Path) -> None:
    code, said = train(project, "close", "rsi_14")
    assert code == 0, said
    folder, record = list_runs(project / "runs")[0]
    done = crypto_ml_command(project, "audit", record.run_id[-6:])
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"CLEAN: run {record.run_id}" in done.stdout
    report = json.loads(next((project / "runs" / "audits").glob("*/report.json")).read_text())
    assert report["audited"][:2] == ["features: close", "features: rsi_14"]
    assert not any("the run" in note for note in report["notes"])
    assert list_runs(project / "runs")[0][0] == folder
