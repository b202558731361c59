"""Models: parameters, equal results however they are fitted, and nothing left running."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lightgbm import LGBMClassifier
from nbclient import NotebookClient
from sklearn.ensemble import RandomForestClassifier
from xgboost import XGBClassifier

from crypto_ml import models
from crypto_ml.models import FoldFits, fit_final, fit_folds, make_model, worker_count
from crypto_ml.settings import MODEL_NAMES, ModelError
from crypto_ml.splits import Fold

TESTS = Path(__file__).resolve().parent
SMALL = {
    "lightgbm": {"n_estimators": 12, "max_depth": 4, "subsample": 0.7, "subsample_freq": 1},
    "xgboost": {"n_estimators": 12, "max_depth": 4, "subsample": 0.7},
    "random_forest": {"n_estimators": 12, "max_depth": 6},
}
ROWS = 600


def market(rows: int = ROWS, seed: int = 3) -> tuple[pd.DataFrame, pd.Series]:
    rng = np.random.default_rng(seed)
    index = pd.date_range("2024-01-01", periods=rows, freq="h", tz="UTC", name="timestamp")
    X = pd.DataFrame(rng.normal(size=(rows, 4)), index=index, columns=["a", "b", "c", "d"])
    X["a"] = 60_000 + 500 * X["a"].cumsum()
    y = (X["b"] + rng.normal(size=rows) > 0.5).astype("int8")
    return X, y


def folds_of(rows: int = ROWS) -> list[Fold]:
    edges = [rows // 3, rows // 2, rows * 2 // 3, rows]
    return [
        Fold(k, f"fold {k}" if k < 2 else "holdout", np.arange(a - 1), np.arange(a, b))
        for k, (a, b) in enumerate(itertools.pairwise(edges))
    ]


def workers() -> set[int]:
    """Process numbers of the living worker processes of this one."""
    children = psutil.Process().children(recursive=True)
    living = [c for c in children if c.status() != psutil.STATUS_ZOMBIE]
    return {c.pid for c in living if "LokyProcess" in " ".join(c.cmdline())}


@pytest.fixture(autouse=True)
def no_new_workers() -> Iterator[None]:
    """No test here starts a process; those of other files may still be idling."""
    before = workers()
    yield
    assert workers() <= before


def fingerprint(fits: FoldFits) -> dict[str, str]:
    """SHA-256 of every number and every model that a call of fit_folds gives."""

    def digest(data: bytes) -> str:
        return hashlib.sha256(data).hexdigest()

    out = {
        "probabilities": digest(fits.probabilities.to_numpy().tobytes()),
        "in_sample": digest(fits.in_sample.to_numpy().tobytes()),
    }
    for kept in ("holdout_models", "final_models"):
        found = getattr(fits, kept)
        if found:
            out[f"{kept}.lightgbm"] = digest(found["lightgbm"].booster_.model_to_string().encode())
            out[f"{kept}.xgboost"] = digest(found["xgboost"].get_booster().save_raw("ubj"))
            forest = b"".join(
                tree.tree_.threshold.tobytes() + tree.tree_.value.tobytes()
                for tree in found["random_forest"].estimators_
            )
            out[f"{kept}.random_forest"] = digest(forest)
    return out


@pytest.fixture(scope="module")
def one_process() -> FoldFits:
    X, y = market()
    return fit_folds(X, y, folds_of(), SMALL, seed=42, jobs=1, final=True)


# parameters


@pytest.mark.parametrize("name", MODEL_NAMES)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_misspelt_parameter_is_always_refused(name: str, data: st.DataObject) -> None:
    known = sorted(set(make_model(name, {}, 0).get_params()))
    word = data.draw(st.sampled_from(known))
    place = data.draw(st.integers(0, len(word) - 1))
    letter = data.draw(st.sampled_from(["", "x", "_", word[place] * 2]))
    wrong = word[:place] + letter + word[place + 1 :]
    if wrong in known:
        return
    with pytest.raises(ModelError) as caught:
        make_model(name, {wrong: 1}, 0)
    assert repr(wrong) in str(caught.value)


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_every_parameter_of_the_estimator_is_accepted_and_arrives(name: str) -> None:
    plain = {"lightgbm": LGBMClassifier, "xgboost": XGBClassifier}.get(
        name, RandomForestClassifier
    )()
    for parameter in plain.get_params():
        if parameter in ("n_jobs", "random_state", "objective", "missing"):
            with pytest.raises(ModelError, match=f"{name}:\n- '{parameter}' cannot be set"):
                make_model(name, {parameter: 1}, 0)
        else:
            assert make_model(name, {parameter: 3}, 0).get_params()[parameter] == 3
    made = make_model(name, {}, 5).get_params()
    assert made["n_jobs"] == 1
    assert made["random_state"] == 5


def test_all_problems_of_a_model_are_told_at_once() -> None:
    with pytest.raises(ModelError) as caught:
        make_model("xgboost", {"n_estimator": 1, "n_jobs": 4, "zzzzzz": 2}, 0)
    message = str(caught.value)
    assert message.startswith("3 problems in the parameters of xgboost")
    assert "did you mean 'n_estimators'?" in message
    assert "'n_jobs' cannot be set: each fit uses one thread" in message
    assert "no 'zzzzzz'; known: base_score, " in message


def test_a_booster_without_trees_is_refused() -> None:
    with pytest.raises(ModelError, match="'gblinear' cannot be used"):
        make_model("xgboost", {"booster": "gblinear"}, 0)
    assert make_model("xgboost", {"booster": "dart"}, 0).booster == "dart"


def test_an_unknown_model_is_named_with_its_neighbour() -> None:
    with pytest.raises(ModelError, match="did you mean 'lightgbm'"):
        make_model("lightgmb", {}, 0)
    with pytest.raises(ModelError, match="known: lightgbm, xgboost, random_forest"):
        make_model("q", {}, 0)


# results


def test_equal_to_a_plain_loop_over_the_folds(one_process: FoldFits) -> None:
    X, y = market()
    plain = {
        "lightgbm": LGBMClassifier(
            **SMALL["lightgbm"],
            random_state=42,
            n_jobs=1,
            deterministic=True,
            force_row_wise=True,
            verbosity=-1,
        ),
        "xgboost": XGBClassifier(**SMALL["xgboost"], random_state=42, n_jobs=1),
        "random_forest": RandomForestClassifier(**SMALL["random_forest"], random_state=42),
    }
    for name, model in plain.items():
        expected = []
        for fold in folds_of():
            model.fit(X.iloc[fold.train], y.iloc[fold.train])
            expected.append(model.predict_proba(X.iloc[fold.test])[:, 1])
        got = one_process.probabilities[name].to_numpy()
        assert np.array_equal(got, np.concatenate(expected).astype(float))
        in_sample = model.predict_proba(X.iloc[folds_of()[-1].train])[:, 1]
        assert np.array_equal(one_process.in_sample[name].to_numpy(), in_sample.astype(float))


def test_rows_and_columns_are_those_asked_for(one_process: FoldFits) -> None:
    X, _ = market()
    folds = folds_of()
    positions = np.concatenate([f.test for f in folds])
    assert np.array_equal(one_process.test_positions, positions)
    assert one_process.test_positions.dtype == np.int64
    assert one_process.fold_numbers.dtype == np.int8
    assert one_process.probabilities.index.equals(X.index[positions])
    assert list(one_process.probabilities) == list(SMALL)
    assert (one_process.probabilities.dtypes == np.float64).all()
    assert one_process.in_sample.index.equals(X.index[folds[-1].train])
    assert list(one_process.holdout_models) == list(SMALL) == list(one_process.final_models)
    assert len(one_process.timings) == 12
    assert (one_process.timings[["started", "seconds"]] >= 0).all(axis=None)


def test_two_processes_give_the_same_bits_and_leave_nothing_running(one_process: FoldFits) -> None:
    X, y = market()
    done: list[tuple[int, int, str, int]] = []
    two = fit_folds(
        X,
        y,
        folds_of(),
        SMALL,
        seed=42,
        jobs=2,
        final=True,
        progress=lambda n, total, label: done.append((n, total, label, os.getpid())),
    )
    assert fingerprint(two) == fingerprint(one_process)
    assert [n for n, *_ in done] == list(range(1, 13))
    assert {total for _, total, *_ in done} == {12}
    assert {pid for *_, pid in done} == {os.getpid()}
    assert len({label for *_, label, _ in done}) == 12


def test_another_interpreter_gives_the_same_bits(one_process: FoldFits) -> None:
    code = (
        "import json, test_models as t; X, y = t.market(); "
        "print(json.dumps(t.fingerprint(t.fit_folds(X, y, t.folds_of(), t.SMALL, seed=42, jobs=1,"
        " final=True))))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": str(TESTS)}
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert json.loads(ran.stdout.splitlines()[-1]) == fingerprint(one_process)


def test_the_seed_matters(one_process: FoldFits) -> None:
    X, y = market()
    other = fit_folds(X, y, folds_of(), SMALL, seed=43, jobs=1)
    assert not (other.probabilities == one_process.probabilities).all().any()


def test_what_is_tested_does_not_reach_what_is_fitted(one_process: FoldFits) -> None:
    """Changing a fold's test rows and everything after changes no earlier probability."""
    X, y = market()
    X2, y2 = X.copy(), y.copy()
    start = folds_of()[-1].test[0]
    X2.iloc[start:] = 1e6
    y2.iloc[start - 1 :] = 1 - y2.iloc[start - 1 :]
    again = fit_folds(X2, y2, folds_of(), SMALL, seed=42, jobs=1)
    before = one_process.fold_numbers < 2
    pd.testing.assert_frame_equal(
        again.probabilities[before], one_process.probabilities[before], check_exact=True
    )
    assert np.array_equal(again.in_sample, one_process.in_sample)
    assert not np.array_equal(again.probabilities[~before], one_process.probabilities[~before])


def test_final_models_are_those_of_fit_final(one_process: FoldFits) -> None:
    X, y = market()
    final = fit_final(X, y, SMALL, seed=42, jobs=1)
    for name, model in final.items():
        expected = one_process.final_models[name].predict_proba(X)
        assert np.array_equal(model.predict_proba(X), expected)
        assert list(model.feature_names_in_) == list(X.columns)
    assert fit_folds(X, y, folds_of(), SMALL, seed=42, jobs=1).final_models == {}


def test_the_longest_fits_start_first() -> None:
    X, y = market()
    labels: list[str] = []
    big = {**SMALL, "lightgbm": {"n_estimators": 1000, "max_depth": 1}}
    fit_folds(
        X, y, folds_of(), big, seed=1, jobs=1, progress=lambda n, total, label: labels.append(label)
    )
    assert [label for label in labels if label.startswith("random_forest")] == [
        "random_forest, holdout",
        "random_forest, fold 1",
        "random_forest, fold 0",
    ]
    assert labels[0] == "lightgbm, holdout"


# refusals


def test_a_fold_of_one_class_is_named_before_anything_is_fitted() -> None:
    X, y = market()
    y.iloc[: folds_of()[0].train[-1] + 1] = 1
    seen: list[int] = []
    with pytest.raises(ModelError) as caught:
        fit_folds(
            X, y, folds_of(), SMALL, seed=1, jobs=1, progress=lambda n, total, label: seen.append(n)
        )
    message = str(caught.value)
    assert "fold 0" in message
    assert "199 training rows" in message
    assert "0 have y = 0 and 199 have y = 1" in message
    assert str(X.index[0]) in message
    assert str(X.index[198]) in message
    assert "n_splits" in message
    assert not seen
    with pytest.raises(ModelError, match="all rows cannot be trained"):
        fit_final(X, np.zeros(len(X)), SMALL, seed=1)
    empty = Fold(0, "fold 0", np.arange(0), np.arange(5))
    with pytest.raises(ModelError, match="its 0 training rows \\(none\\)"):
        fit_folds(X, y, [empty], SMALL, seed=1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_located(value: float) -> None:
    X, y = market()
    X.iloc[77, 2] = value
    with pytest.raises(ModelError) as caught:
        fit_final(X, y, SMALL, seed=1)
    assert f"'c' is {value} at row 77 ({X.index[77]})" in str(caught.value)


def test_other_bad_inputs_say_what_they_are() -> None:
    X, y = market()
    with pytest.raises(ModelError, match="'a' appears more than once"):
        fit_final(pd.concat([X, X[["a"]]], axis=1), y, SMALL, seed=1)
    with pytest.raises(ModelError, match="'b' holds str"):
        fit_final(X.assign(b="x"), y, SMALL, seed=1)
    with pytest.raises(ModelError, match=r"shape \(3,\), features 600 rows"):
        fit_final(X, [0, 1, 0], SMALL, seed=1)
    with pytest.raises(ModelError, match="label 2 at row 5"):
        fit_final(X, y.where(np.arange(ROWS) != 5, 2), SMALL, seed=1)
    with pytest.raises(ModelError, match="label nan at row 0"):
        fit_final(X, np.full(ROWS, np.nan), SMALL, seed=1)
    with pytest.raises(ModelError, match="0 models"):
        fit_final(X, y, {}, seed=1)
    with pytest.raises(ModelError, match="0 folds"):
        fit_folds(X, y, [], SMALL, seed=1)
    with pytest.raises(ModelError, match="jobs is -1"):
        fit_final(X, y, SMALL, seed=1, jobs=-1)
    with pytest.raises(ModelError, match="of random_forest:\n- there is no 'n_tree'"):
        fit_final(X, y, {**SMALL, "random_forest": {"n_tree": 3}}, seed=1)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failed_fit_names_model_fold_and_parameters_and_leaves_no_worker(jobs: int) -> None:
    X, y = market()
    wrong = {**SMALL, "random_forest": {"n_estimators": -4}}
    with pytest.raises(ModelError) as caught:
        fit_folds(X, y, folds_of(), wrong, seed=1, jobs=jobs)
    message = str(caught.value)
    assert message.startswith("random_forest, ")
    assert "'n_estimators': -4" in message


def test_worker_count() -> None:
    assert worker_count(0, 100) == models.cpu_count()
    assert worker_count(3, 100) == 3
    assert worker_count(8, 2) == 2
    assert worker_count(0, 0) == 1


# processes


def test_an_interrupt_in_the_progress_callback_leaves_no_worker() -> None:
    X, y = market()

    def interrupt(done: int, total: int, label: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_folds(X, y, folds_of(), SMALL, seed=1, jobs=2, progress=interrupt)


def test_what_has_not_begun_never_does_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = market()
    begun: list[str] = []

    def fails(task: Any, *_: object) -> None:
        begun.append(task.label)
        if len(begun) > 1:
            time.sleep(1)
        raise ModelError("the first one failed")

    monkeypatch.setattr(models, "_fit", fails)
    with pytest.raises(ModelError, match="the first one failed"):
        fit_folds(X, y, folds_of(), SMALL, seed=1, jobs=2)
    assert len(begun) < 9
    assert not [t for t in threading.enumerate() if t.name.startswith("fit")]


def test_two_fits_really_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = market()
    both, plain = threading.Barrier(2, timeout=30), models._fit

    def meet(task: Any, *rest: Any) -> Any:
        both.wait()
        return plain(task, *rest)

    monkeypatch.setattr(models, "_fit", meet)
    two = {name: SMALL[name] for name in ("lightgbm", "random_forest")}
    fits = fit_folds(X, y, folds_of()[:1], two, seed=1, jobs=2)
    assert len(fits.timings) == 2


def test_a_worker_watches_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr(models.os, "_exit", lambda code: ended.set())
    models.exit_with(os.getppid())
    assert not ended.wait(0.2)
    models.exit_with(-5)
    assert ended.wait(5)


def test_two_fits_at_once_need_no_other_process() -> None:
    X, y = market()
    before, seen = workers(), set[int]()

    def look(done: int, total: int, label: str) -> None:
        seen.update(workers())

    fit_folds(X, y, folds_of(), SMALL, seed=1, jobs=2, progress=look)
    assert seen <= before


def test_works_in_a_jupyter_kernel(tmp_path: Path, one_process: FoldFits) -> None:
    """Also with the functions defined in the notebook itself, as when 50_models.ipynb is run."""
    source = (
        f"import sys; sys.path.insert(0, {str(TESTS)!r})\n"
        "import test_models as t\n"
        "X, y = t.market()\n"
        "fits = t.fit_folds(X, y, t.folds_of(), t.SMALL, seed=42, jobs=2, final=True)\n"
        "print(t.fingerprint(fits)['probabilities'], len(t.workers()))"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    NotebookClient(
        notebook,
        timeout=120,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    text = notebook.cells[0].outputs[-1]["text"].split()
    assert text[-2:] == [fingerprint(one_process)["probabilities"], "0"]
