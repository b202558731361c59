"""models/training/: the latest bundle, whole, with what its consumers look for."""

from __future__ import annotations

import json
import os
import shutil
import time
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_bundles import COLUMNS, SMALL, WEIGHTS, ensemble, killed_before, market, saved

from crypto_ml.bundle import load_bundle, load_member
from crypto_ml.errors import BundleError
from crypto_ml.training import training_metadata, write_training

X_NEW, _ = market(100, seed=2)
VALIDATION = {"n_splits": 5, "method": "PurgedTimeSeriesSplit", "purge": "label_end", "embargo": 0}
SCORE = {
    "f1_score": 0.56,
    "f1_low": 0.54,
    "f1_high": 0.58,
    "f1_majority": 0.43,
    "f1_in_sample_weighted": 0.95,
    "roc_auc": 0.6,
}


def metadata_of(folder: Path, **changes: Any) -> dict[str, Any]:
    arguments = {
        "created_at": datetime(2024, 2, 8, 9, tzinfo=timezone(timedelta(hours=9))),
        "scores": dict.fromkeys(SMALL, SCORE),
        "cross_validation": VALIDATION,
        **changes,
    }
    return training_metadata(load_bundle(folder), **arguments)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    place = tmp_path_factory.mktemp("runs")
    return [saved(place / name, seed, run_id=name) for name, seed in (("first", 42), ("second", 7))]


def answers(folder: Path) -> np.ndarray:
    return load_bundle(folder).ensemble.predict_proba(X_NEW)


def test_consumers_find_their_keys(two: list[Path], tmp_path: Path) -> None:
    training = write_training(tmp_path / "models" / "training", two[0], metadata_of(two[0]))
    found = json.loads((training / "training_metadata.json").read_text())
    assert found["created_at"] == "2024-02-08T00:00:00+00:00"
    assert found["script"] == "nbs/train.ipynb"
    assert found["run_id"] == "first"
    assert "feature_optimization" in found
    assert found["12_features"] == COLUMNS
    assert found["timeseriesplit_cv"] == VALIDATION
    assert found["ensemble_config"]["weights"] == WEIGHTS
    assert found["ensemble_config"]["production_file"].startswith("models/production/")
    for name, described in found["individual_models"].items():
        assert {key: described[key] for key in SCORE} == SCORE
        assert (training / described["file"]).exists()
        assert described["file"].startswith(f"{name}_model.")
        assert described["parameters"]["n_estimators"] == SMALL[name]["n_estimators"]
    assert list(training.parent.iterdir()) == [training]


def test_the_training_folder_is_a_bundle_of_the_same_bytes(two: list[Path], tmp_path: Path) -> None:
    training = write_training(tmp_path / "training", two[0], metadata_of(two[0]))
    assert np.array_equal(answers(training), ensemble().predict_proba(X_NEW))
    for path in two[0].iterdir():
        if path.name != "manifest.json":
            assert (training / path.name).read_bytes() == path.read_bytes()
    member = load_member(training, "xgboost")
    assert np.array_equal(
        member.predict_proba(X_NEW), ensemble().models["xgboost"].predict_proba(X_NEW)
    )
    damaged = training / "training_metadata.json"
    damaged.write_text(damaged.read_text().replace("0.56", "0.96"))
    with pytest.raises(BundleError, match=r"training_metadata\.json was changed"):
        load_bundle(training)
    damaged.unlink()
    with pytest.raises(BundleError, match=r"training_metadata\.json is missing"):
        load_bundle(training)


def test_the_next_one_takes_its_place(two: list[Path], tmp_path: Path) -> None:
    target = tmp_path / "training"
    for source in (*two, *two):
        write_training(target, source, metadata_of(source))
        assert load_bundle(target).manifest["run_id"] == source.name
        assert np.array_equal(answers(target), answers(source))
    assert list(tmp_path.iterdir()) == [target]


def test_what_would_mislead_is_refused(two: list[Path], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"of run 'first', the bundle .* is of run 'second'"):
        write_training(tmp_path / "t", two[1], metadata_of(two[0]))
    with pytest.raises(BundleError, match="plain values only"):
        write_training(tmp_path / "t", two[0], {"run_id": "first", "odd": {1}})
    with pytest.raises(BundleError, match="no folder can be read"):
        write_training(tmp_path / "t", tmp_path / "nowhere", {})
    assert not list(tmp_path.iterdir())


def test_metadata_that_lack_something_are_refused_with_everything_named(two: list[Path]) -> None:
    lame = {**SCORE, "f1_low": float("nan"), "f1_high": None}
    with pytest.raises(BundleError) as caught:
        metadata_of(
            two[0],
            scores={"lightgbm": SCORE, "xgboost": lame, "random_forest": SCORE, "catboost": SCORE},
            cross_validation={"n_splits": 5},
            created_at=datetime(2024, 1, 1),
        )
    message = str(caught.value)
    assert message.startswith("7 problems in what training_metadata.json is to say")
    assert "'catboost' is no member" in message
    assert "scores of xgboost: f1_low is nan" in message
    assert "scores of xgboost: f1_high is None" in message
    assert "cross_validation has no 'purge'" in message
    assert "without a time zone" in message
    assert metadata_of(two[0], created_at=datetime(2024, 1, 1, tzinfo=UTC))["run_id"] == "first"


def test_killed_at_every_step_leaves_the_first_or_the_second(
    two: list[Path], tmp_path: Path
) -> None:
    described = [metadata_of(path) for path in two]
    outcomes = []
    first = write_training(tmp_path / "first", two[0], described[0])
    for step in range(200):
        target = tmp_path / str(step) / "training"
        shutil.copytree(first, target)
        again = partial(write_training, target, two[1], described[1])
        killed = killed_before(step, target.parent, again)
        found = load_bundle(target)
        assert found.check_difference == 0
        outcomes.append(found.manifest["run_id"])
        if not killed:
            break
    assert not killed
    assert outcomes == sorted(outcomes)
    assert outcomes.count("first") >= 12
    assert outcomes.count("second") >= 6


def test_readers_load_the_first_or_the_second_while_they_alternate(
    two: list[Path], tmp_path: Path
) -> None:
    target = tmp_path / "training"
    described = [metadata_of(path) for path in two]
    expected = {path.name: answers(path) for path in two}
    write_training(target, two[0], described[0])
    writer = os.fork()
    if not writer:
        stop = time.monotonic() + 4
        number = 0
        while time.monotonic() < stop:
            number = 1 - number
            write_training(target, two[number], described[number])
        os._exit(0)
    seen: list[str] = []
    while os.waitpid(writer, os.WNOHANG) == (0, 0):
        found = load_bundle(target)
        name = found.manifest["run_id"]
        assert np.array_equal(found.ensemble.predict_proba(X_NEW), expected[name])
        seen.append(name)
    assert len(seen) >= 4
    assert set(seen) == {"first", "second"}
