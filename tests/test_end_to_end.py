"""Whole runs: what a user, CI and a reader of the run's folder get, also when something breaks."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
from jsonschema import Draft202012Validator

import crypto_ml
from crypto_ml.bundle import load_bundle
from crypto_ml.feature_sets import make_feature_set, save_feature_set
from crypto_ml.history import changed_artifacts, list_runs, run_status
from crypto_ml.runs import RunRecord, artifact_hashes, read_record, run_schema
from crypto_ml.scores import score_table

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "nbs" / "train.ipynb"
SMALL = [
    "days=60",
    "resamples=100",
    "n_splits=3",
    "jobs=1",
    'lightgbm={"n_estimators": 15}',
    'xgboost={"n_estimators": 15}',
    'random_forest={"n_estimators": 15, "max_depth": 6}',
]
ASSIGNMENTS = [word for assignment in SMALL for word in ("-p", assignment)]
COMMAND = [str(Path(sys.executable).with_name("crypto-ml"))]


def make_project(folder: Path) -> Path:
    """Lay out a project that uses this repository's notebooks and keeps its own runs."""
    settings = (ROOT / "settings.ini").read_text()
    settings = re.sub(r"(?m)^nbs_path *=.*$", f"nbs_path = {ROOT / 'nbs'}", settings)
    (folder / "settings.ini").write_text(settings)
    return folder


def crypto_ml_command(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words], cwd=project, capture_output=True, text=True, check=False
    )


def papermill(
    project: Path, notebook: Path, words: Sequence[str], output: str = "out.ipynb"
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "papermill", str(notebook), output, "-k", "python3"]
    return subprocess.run(
        [*command, "--no-progress-bar", *words],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )


def small_yaml() -> list[str]:
    return [
        "-y",
        "days: 60.0\nresamples: 100\nn_splits: 3\nlightgbm: {n_estimators: 15}\n"
        "xgboost: {n_estimators: 15}\nrandom_forest: {n_estimators: 15, max_depth: 6}",
    ]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def trained(project: Path) -> Path:
    done = crypto_ml_command(project, "train", "--source", "sim:strong", *ASSIGNMENTS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Report:" in done.stdout
    folder = Path(re.search(r"Report: (.*)/report\.html", done.stdout)[1])
    assert folder.parent == project / "runs"
    return folder


def test_folder_is_complete_and_recorded(trained: Path) -> None:
    record = read_record(trained)
    assert record.status == "succeeded"
    assert re.fullmatch(r"\d{8}-\d{6}-SIM-STRONG-1h-[0-9a-f]{6}", record.run_id)
    names = set(record.artifacts)
    assert {"report.ipynb", "report.html", "predictions.parquet"} <= names
    assert {"bundle/manifest.json", "bundle/ensemble.json"} <= names
    assert changed_artifacts(trained, record) == []
    assert record.verdict["outcome"] in ("edge", "no evidence of an edge", "worse than chance")
    assert record.seed == 42
    assert all(step.seconds >= 0 and step.peak_memory_mb > 0 for step in record.steps)
    assert record.steps[0].name == "candles"


def test_record_fits_the_published_schema(trained: Path) -> None:
    published = Path(crypto_ml.__file__).with_name("run.schema.json")
    schema = json.loads(published.read_text())
    assert schema == run_schema()
    record = json.loads((trained / "run.json").read_text())
    Draft202012Validator(schema).validate(record)
    record["status"] = "splendid"
    assert not Draft202012Validator(schema).is_valid(record)


def test_recorded_scores_follow_from_the_stored_predictions(trained: Path) -> None:
    record = read_record(trained)
    predictions = pd.read_parquet(trained / "predictions.parquet")
    assert set(predictions["split"]) == {"out_of_fold", "holdout"}
    again = score_table(predictions, ["ensemble"], split="out_of_fold", resamples=100, seed=42)
    for row in again.itertuples():
        recorded = next(
            score
            for score in record.scores
            if (score.split, score.predictor, score.metric)
            == ("out_of_fold", "ensemble", row.metric)
        )
        for name in ("value", "low", "high"):
            assert getattr(recorded, name) == pytest.approx(getattr(row, name), nan_ok=True)


def test_bundle_loads_and_predicts(trained: Path) -> None:
    bundle = load_bundle(trained / "bundle")
    names = list(bundle.ensemble.feature_names_in_)
    rows = pd.DataFrame(np.random.default_rng(0).normal(size=(5, len(names))), columns=names)
    assert bundle.ensemble.predict_proba(rows).shape == (5, 2)
    assert read_record(trained).run_id in json.dumps(bundle.metadata) + json.dumps(bundle.manifest)


def test_training_folder_has_the_agreed_metadata(trained: Path, project: Path) -> None:
    folder = project / "models" / "training"
    metadata = json.loads((folder / "training_metadata.json").read_text())
    assert metadata["run_id"] == trained.name
    assert {"created_at", "script", "feature_optimization", "ensemble_config"} <= metadata.keys()
    assert len(metadata["12_features"]) == 12
    assert metadata["ensemble_config"]["weights"] == {
        "lightgbm": 0.4,
        "xgboost": 0.4,
        "random_forest": 0.2,
    }
    assert metadata["timeseriesplit_cv"].keys() >= {"n_splits", "method", "purge", "embargo"}
    scores = {
        (score.predictor, score.metric): score.value
        for score in read_record(trained).scores
        if score.split == "out_of_fold"
    }
    for name, model in metadata["individual_models"].items():
        assert model["f1_score"] == pytest.approx(scores[name, "macro_f1"])
        assert (folder / model["file"]).exists()
        assert model["f1_in_sample_weighted"] > model["f1_score"]


def test_report_is_self_contained_and_says_simulated(trained: Path) -> None:
    html = (trained / "report.html").read_text()
    assert "SIMULATED MARKET" in re.search(r"<title>(.*?)</title>", html, re.S)[1]
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?:https?:)?//""", html)
    assert len(html) < 4_000_000
    executed = nbformat.read(trained / "report.ipynb", as_version=4)
    nbformat.validate(executed)
    assert any(cell.get("outputs") for cell in executed.cells)


def test_list_show_and_export(trained: Path, project: Path) -> None:
    listed = crypto_ml_command(project, "runs")
    assert listed.returncode == 0
    assert trained.name in listed.stdout
    assert trained.name in (project / "runs" / "index.html").read_text()
    shown = crypto_ml_command(project, "show", "latest")
    assert "directional_auc" in shown.stdout
    written = crypto_ml_command(
        project, "export", trained.name, "--format", "pickle", "--out", "ensemble.pickle"
    )
    assert written.returncode == 0, written.stderr
    assert (project / "ensemble.pickle").stat().st_size > 0


def test_replay_is_identical_and_a_difference_is_named(trained: Path, project: Path) -> None:
    same = crypto_ml_command(project, "replay", trained.name)
    assert same.returncode == 0, same.stdout + same.stderr
    assert "Identical" in same.stdout
    copy = project / "runs" / "20200101-000000-SIM-STRONG-1h-abcdef"
    shutil.copytree(trained, copy)
    record = read_record(copy)
    record.run_id = copy.name
    record.artifacts["predictions.parquet"] = "0" * 64
    (copy / "run.json").write_text(record.model_dump_json())
    other = crypto_ml_command(project, "replay", copy.name)
    assert other.returncode == 1
    assert "predictions.parquet is the first file that differs" in other.stdout
    shutil.rmtree(copy)


def test_diff_compares_shared_rows_and_refuses_changed_predictions(
    trained: Path, project: Path
) -> None:
    weights = '{"lightgbm": 1, "xgboost": 0, "random_forest": 0}'
    done = crypto_ml_command(
        project, "train", "--source", "sim:strong", *ASSIGNMENTS, "-p", f"weights={weights}"
    )
    assert done.returncode == 0, done.stderr
    other = max(path for path in (project / "runs").iterdir() if path.is_dir())
    compared = crypto_ml_command(project, "diff", trained.name, other.name)
    assert compared.returncode == 0, compared.stderr
    assert "parameters.weights.lightgbm" in compared.stdout
    assert re.search(r"log_loss +[+-]0\.\d+ \[", compared.stdout)
    predictions = pd.read_parquet(other / "predictions.parquet")
    predictions["ensemble"] = predictions["y"].astype(float)
    predictions.to_parquet(other / "predictions.parquet")
    refused = crypto_ml_command(project, "diff", trained.name, other.name)
    assert refused.returncode == 1
    assert "changed" in refused.stderr
    shutil.rmtree(other)


def test_bare_papermill_leaves_the_whole_folder(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    done = papermill(project, NOTEBOOK, ["-p", "source", "sim:none", *small_yaml()])
    assert done.returncode == 0, done.stderr
    [(folder, record)] = list_runs(project / "runs")
    assert record.status == "succeeded"
    assert record.parameters["source"] == "sim:none"
    assert changed_artifacts(folder, record) == []
    html = (folder / "report.html").read_text()
    assert "sim:none" in html
    executed = nbformat.read(project / "out.ipynb", as_version=4)
    recorded = nbformat.read(folder / "report.ipynb", as_version=4)
    code = [
        [c.source.strip() for c in nb.cells if c.cell_type == "code"] for nb in (executed, recorded)
    ]
    assert code[0] == code[1]


def test_papermill_refuses_wrong_parameters_all_at_once(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    words = ["-p", "holdot", "0.3", "-p", "days", "many", "-p", "n_splits", "1"]
    done = papermill(project, NOTEBOOK, words)
    assert done.returncode != 0
    for part in ("holdot", "'holdout'", "days = 'many'", "n_splits = 1"):
        assert part in done.stderr
    assert not list((project / "runs").glob("*"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train", "-p", "holdot=0.3"], "holdout"),
        (["train", "--source", "sim:clair"], "clear"),
        (["train", "--source", "nowhere/binance_BTCUSDT_1h.parquet"], "binance_BTCUSDT_1h.parquet"),
        (["train", "--source", "sim:clear", "--days", "3"], "needs at least"),
        (["train", "-p", "features=close,volum"], "volume"),
        (["train", "-p", 'lightgbm={"n_estimator": 3}', "--days", "60"], "n_estimators"),
        (["show", "20990101"], "No run"),
        (["trian"], "train"),
    ],
)
def test_bad_input_is_one_paragraph_and_code_two(
    project: Path, words: list[str], expected: str
) -> None:
    done = crypto_ml_command(project, *words)
    assert done.returncode == (1 if words[0] == "show" else 2), done.stdout + done.stderr
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_debug_shows_the_traceback(project: Path) -> None:
    done = crypto_ml_command(project, "--debug", "show", "20990101")
    assert "Traceback" in done.stderr


def test_dry_run_leaves_nothing(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    done = crypto_ml_command(project, "train", "--source", "sim:clear", "--days", "60", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "1,440 bars of simulated SIM-CLEAR 1h" in done.stdout
    assert sorted(path.name for path in project.iterdir()) == ["settings.ini"]


def test_dry_run_fails_like_the_real_one(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    words = ["train", "--source", "sim:clear", "-p", "features=close,nonsense", "--dry-run"]
    done = crypto_ml_command(project, *words)
    assert done.returncode == 2
    assert "nonsense" in done.stderr


def edited_project(folder: Path, edit: Callable[[nbformat.NotebookNode], None]) -> Path:
    """Make a project whose train.ipynb was edited."""
    project = make_project(folder)
    (project / "nbs").mkdir()
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    edit(notebook)
    nbformat.write(notebook, project / "nbs" / "train.ipynb")
    settings = (project / "settings.ini").read_text()
    settings = re.sub(r"(?m)^nbs_path *=.*$", "nbs_path = nbs", settings)
    (project / "settings.ini").write_text(settings)
    return project


def insert_before_fit(source: str) -> Callable[[nbformat.NotebookNode], None]:
    def edit(notebook: nbformat.NotebookNode) -> None:
        position = next(
            number
            for number, cell in enumerate(notebook.cells)
            if "fit" in cell.metadata.get("tags", [])
        )
        notebook.cells.insert(position, nbformat.v4.new_code_cell(source))

    return edit


def test_failing_cell_is_recorded_with_its_step(tmp_path: Path) -> None:
    project = edited_project(tmp_path, insert_before_fit('raise ValueError("the well is dry")'))
    done = crypto_ml_command(project, "train", *ASSIGNMENTS)
    assert done.returncode == 1
    assert "the well is dry" in done.stderr
    [(folder, record)] = list_runs(project / "runs")
    assert record.status == "failed"
    assert record.error.kind == "ValueError"
    assert not (project / "models" / "training").exists()
    assert "the well is dry" in (folder / "run.log").read_text()
    assert "failed" in crypto_ml_command(project, "runs").stdout


@pytest.mark.parametrize("source", ["import sys; sys.exit(0)", "raise SystemExit(0)"])
def test_notebook_that_ends_early_is_no_success(tmp_path: Path, source: str) -> None:
    project = edited_project(tmp_path, insert_before_fit(source))
    done = crypto_ml_command(project, "train", *ASSIGNMENTS)
    assert done.returncode == 1
    [(_, record)] = list_runs(project / "runs")
    assert record.status != "succeeded"


def kernels_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "ipykernel_launcher" in " ".join(child.cmdline())]


@pytest.mark.parametrize("moment", ["candles", "models", "scores", "report"])
def test_killed_kernel_never_looks_successful(tmp_path: Path, moment: str) -> None:
    project = make_project(tmp_path)
    process = subprocess.Popen(
        [*COMMAND, "train", "--verbose", "--source", "sim:clear", *ASSIGNMENTS],
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    for line in process.stdout:
        if f"[{moment}] started".encode() in line:
            break
    for kernel in kernels_of(process):
        kernel.send_signal(signal.SIGKILL)
    _, words = process.communicate(timeout=120)
    assert process.returncode == 1, words
    assert b"interrupted" in words
    time.sleep(0.5)
    [(folder, record)] = list_runs(project / "runs")
    assert record.status == "running"
    assert run_status(record) == "interrupted"
    assert "interrupted" in crypto_ml_command(project, "runs").stdout
    refused = crypto_ml_command(project, "replay", folder.name)
    assert refused.returncode == 1


def test_hashes_ignore_what_is_no_artifact(tmp_path: Path) -> None:
    for name in ("run.json", "run.log", ".run.json.1.tmp", "predictions.parquet"):
        (tmp_path / name).write_text(name)
    assert list(artifact_hashes(tmp_path)) == ["predictions.parquet"]


def test_parameters_cell_matches_the_settings() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cell = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    lines = {line.split(":")[0]: line for line in cell.source.splitlines()}
    fields = crypto_ml.settings.RunParameters.model_fields
    assert list(lines) == list(fields)
    for name, field in fields.items():
        assert lines[name].endswith(f"= None  # {field.description}"), name


def test_record_of_an_unknown_schema_is_refused(tmp_path: Path) -> None:
    assert RunRecord.model_fields["schema_version"].default == 1
    (tmp_path / "run.json").write_text('{"schema_version": 2}')
    with pytest.raises(crypto_ml.settings.RunError, match="schema version 1"):
        read_record(tmp_path)


def test_a_saved_feature_set_is_trained_on_by_name_however_fast_it_warms_up(
    tmp_path: Path,
) -> None:
    project = make_project(tmp_path)
    saved = save_feature_set(project / "feature_sets", make_feature_set("fast", ["zscore"]))
    done = crypto_ml_command(project, "train", *ASSIGNMENTS, "-p", "feature_set=fast")
    assert done.returncode == 0, done.stdout + done.stderr
    ((_, record),) = list_runs(project / "runs")
    assert record.feature_set == {"reference": "fast@1", "hash": saved.hash}
    assert record.parameters["features"] == ["zscore"]
    assert record.audit and record.luck["trials"] == 1 and record.null_control["passed"]


def test_an_unknown_feature_set_starts_no_run(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    done = crypto_ml_command(project, "train", *ASSIGNMENTS, "-p", "feature_set=catalog")
    assert done.returncode == 2
    assert "did you mean 'catalogue'" in done.stderr
    assert not (project / "runs").exists()
