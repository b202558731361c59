"""Small projects with a run, a training bundle and live versions, for the tests of operation."""

from __future__ import annotations

from pathlib import Path

from runs_for_tests import change_record, fabricated_run

from crypto_ml.gates import GateReport, GateResult
from crypto_ml.registry import LocalRegistry
from crypto_ml.repair import metadata_from_record
from crypto_ml.runs import read_record
from crypto_ml.settings import ProjectPaths, RunParameters, Settings
from crypto_ml.training import write_training

MEMBERS = ("lightgbm", "xgboost", "random_forest")


def passing(*_: object, **__: object) -> GateReport:
    """Judge as gates that let everything pass."""
    return GateReport((GateResult("anything", "pass", 1.0, 1.0, "It passes."),))


def project(root: Path) -> Settings:
    """Describe a project in a folder."""
    return Settings(root, ProjectPaths(), RunParameters())


def registry(settings: Settings) -> LocalRegistry:
    return LocalRegistry(settings.models_folder, settings, judge=passing)


def add_run(settings: Settings, seed: int = 1) -> Path:
    """Add a run with the scores that a real one has."""
    run = fabricated_run(settings.runs_folder, seed=seed)
    scores = [score.model_dump() for score in read_record(run).scores]
    for score in scores:
        score["low"], score["high"] = score["value"], score["value"]
    rows = [
        {"model": name, "metric": "weighted_f1", "in_sample": 0.9}
        for name in (*MEMBERS, "ensemble")
    ]
    return change_record(run, scores=scores, overfit=rows)


def train(settings: Settings, run: Path) -> None:
    """Put a run's bundle into models/training, as its last cell does."""
    metadata = metadata_from_record(read_record(run), run / "bundle")
    write_training(settings.models_folder / "training", run / "bundle", metadata)
