"""`crypto-ml select`, from the command line to the report, and select.ipynb by hand."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import click
import nbformat
import pandas as pd
import pytest
from click.testing import CliRunner

from crypto_ml import execute
from crypto_ml.feature_sets import load_feature_set
from crypto_ml.runs import read_record
from crypto_ml.select_command import echo_selection, select, selection_lines
from crypto_ml.settings import CryptoMLError, RunParameters

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["resamples=60", "n_splits=2", 'lightgbm={"n_estimators": 10}', "jobs=1"]
OPTIONS = ["--source", "sim:strong", "--days", "60", "--candidates", "default"]
PROGRAM = "from crypto_ml.select_command import select; select(prog_name='select')"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lay out a project that uses this repository's notebooks and keeps its own runs and sets."""
    folder = tmp_path_factory.mktemp("project")
    text = (ROOT / "settings.ini").read_text()
    text = re.sub(r"(?m)^nbs_path *=.*$", f"nbs_path = {ROOT / 'nbs'}", text)
    (folder / "settings.ini").write_text(text)
    return folder


@pytest.fixture(scope="module")
def done(project: Path) -> subprocess.CompletedProcess[str]:
    words = [*OPTIONS, "--k", "4", "--draws", "2", "--name", "strong-hourly"]
    assigned = [word for each in SMALL for word in ("-p", each)]
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *words, *assigned],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(done: subprocess.CompletedProcess[str]) -> Path:
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(re.search(r"Report: (.*)/report\.html", done.stdout)[1])


def test_it_prints_the_sentence_the_set_and_the_report(
    done: subprocess.CompletedProcess[str], folder: Path, project: Path
) -> None:
    assert folder.parent == project / "runs"
    printed = " ".join(done.stdout.split())
    assert "Going from 12 features to 4 " in printed
    assert "4 were asked for, " in printed
    assert "Chosen of default@1:" in printed
    assert "Saved as strong-hourly@1" in printed
    assert len(re.findall(r"% of draws, \d of 3 folds", printed)) == 4


def test_the_record_holds_all_that_was_found(folder: Path) -> None:
    record = read_record(folder)
    assert record.kind == "selection"
    assert record.status == "succeeded"
    assert record.verdict["outcome"] in ("gains", "costs", "no difference")
    found = record.selection
    assert len(found["chosen"]) == 4
    assert set(found["confirmed"]) <= set(found["chosen"])
    assert set(found["by_fold"]) == {"fold 0", "fold 1", "holdout"}
    assert found["by_fold"]["holdout"] == found["chosen"]
    assert len(found["random_sets"]) == 2
    assert found["options"] == {
        "candidates": "default",
        "k": 4,
        "draws": 2,
        "name": "strong-hourly",
    }
    scored = {(score.split, score.predictor) for score in record.scores}
    sets = {"chosen", "default", "all", "random", "base_rate"}
    assert scored == {(split, each) for split in ("out_of_fold", "holdout") for each in sets}
    predictions = pd.read_parquet(folder / "predictions.parquet")
    assert set(predictions["split"]) == {"out_of_fold", "holdout"}
    assert "predictions.parquet" in record.artifacts


def test_the_saved_set_says_where_it_comes_from(folder: Path, project: Path) -> None:
    record = read_record(folder)
    saved = load_feature_set(project / "feature_sets", "strong-hourly")
    assert list(saved.features) == record.selection["chosen"]
    assert record.selection["saved"] == {"set": "strong-hourly@1", "hash": saved.hash}
    assert saved.origin["run"] == record.run_id
    assert saved.origin["procedure"]["k"] == 4
    assert "label_end" not in saved.origin["procedure"]
    holdout = next(fold for fold in record.folds if fold["name"] == "holdout")
    assert pd.Timestamp(saved.origin["span"][1]) <= pd.Timestamp(holdout["start"])


def test_the_report_is_whole(folder: Path) -> None:
    html = (folder / "report.html").read_text()
    assert "SIMULATED MARKET" in re.search(r"<title>(.*?)</title>", html, re.S)[1]
    assert "Going from 12 features to 4" in html
    assert html.count("<img ") >= 5
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?:https?:)?//""", html)
    assert "feature_set=strong-hourly@1" in html
    executed = nbformat.read(folder / "report.ipynb", as_version=4)
    assert not [
        output
        for cell in executed.cells
        for output in cell.get("outputs", [])
        if output.output_type == "error"
    ]


def test_its_notebook_asks_for_parameters_that_exist() -> None:
    notebook = nbformat.read(ROOT / "nbs" / "select.ipynb", as_version=4)
    cell = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    names = re.findall(r"(?m)^(\w+): \w+ = None  # \S", cell.source)
    assert len(names) == len(cell.source.splitlines())
    assert set(names) - {"candidates", "k", "draws", "name"} <= set(RunParameters.model_fields)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--candidates", "catalog"], "did you mean 'catalogue'"),
        (["--k", "0"], "k = 0: expected a whole number"),
        (["--name", "default"], "built-in"),
        (["-p", "thresold=1"], "did you mean 'threshold'"),
    ],
)
def test_wrong_input_ends_before_anything_is_run(
    project: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(project)
    before = sorted((project / "runs").glob("*"))
    result = CliRunner().invoke(select, words)
    assert isinstance(result.exception, CryptoMLError)
    assert message in str(result.exception)
    assert sorted((project / "runs").glob("*")) == before


def test_expansion_is_refused_in_words(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    result = CliRunner().invoke(select, [*OPTIONS, "-p", 'expand={"lags": [1]}'])
    assert isinstance(result.exception, CryptoMLError)
    assert "Give expand={}" in str(result.exception)


def test_the_command_executes_the_notebook_of_its_options(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    asked: dict[str, object] = {}

    def pretend(parameters: RunParameters, *_: object, **more: object) -> SimpleNamespace:
        asked.update(more, source=parameters.source)
        record = SimpleNamespace(
            verdict={"sentence": "It gains."},
            selection={
                "sentence": "12 were asked for.",
                "candidates": {"set": "catalogue@1"},
                "by_fold": {},
                "ranking": [],
                "saved": {},
            },
        )
        return SimpleNamespace(folder=Path("somewhere"), record=record)

    monkeypatch.setattr(execute, "execute_run", pretend)
    monkeypatch.setattr(execute, "update_leaderboard", lambda folder: folder)
    result = CliRunner().invoke(select, ["--source", "sim:faint", "--draws", "5"])
    assert result.exit_code == 0, result.output
    assert asked == {
        "source": "sim:faint",
        "notebook": "select.ipynb",
        "more": {"candidates": "catalogue", "k": 12, "draws": 5, "name": ""},
    }
    assert "It gains." in result.output
    assert "Report: somewhere/report.html" in result.output


def test_lines_show_only_what_was_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    selection = {
        "sentence": "2 were asked for.",
        "candidates": {"set": "stationary@1"},
        "by_fold": {"fold 0": ["a"], "holdout": ["a", "b"]},
        "ranking": [
            {"feature": "a", "frequency": 1.0, "chosen": True, "confirmed": True},
            {"feature": "b", "frequency": 0.5, "chosen": True, "confirmed": False},
            {"feature": "c", "frequency": 0.5, "chosen": False, "confirmed": False},
        ],
        "saved": {},
    }
    lines = selection_lines(json.loads(json.dumps(selection)))
    assert [line.split()[0] for line in lines] == ["Chosen", "a", "b"]
    assert lines[1].endswith("2 of 2 folds  confirmed")
    assert lines[2].endswith("50% of draws, 1 of 2 folds")
    record = SimpleNamespace(verdict={"sentence": "S."}, selection=selection)
    echo_selection(SimpleNamespace(folder=Path("f"), record=record))
    assert capsys.readouterr().out.endswith("Report: f/report.html\n")


def test_it_is_a_command_without_a_parent() -> None:
    assert isinstance(select, click.Command)
    assert select.name == "select"
    assert {"source", "candidates", "k", "draws", "name"} <= {each.name for each in select.params}
