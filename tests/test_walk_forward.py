"""Walk-forward: nothing from the future, LightGBM's own leaf values, the same for any jobs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lightgbm import LGBMClassifier
from sklearn.metrics import log_loss

from crypto_ml import walk_forward as module
from crypto_ml.errors import ModelError, SplitError
from crypto_ml.splits import audit_split
from crypto_ml.walk_forward import add_leaves, refit_leaves, walk_forward, walk_forward_windows

ROWS = 1_500
INDEX = pd.date_range("2024-01-01", periods=ROWS, freq="h", tz="UTC", name="timestamp")
SMALL = {"n_estimators": 25, "max_depth": 4, "learning_rate": 0.1}


def label_end(horizon: int = 3) -> pd.Series:
    return pd.Series(INDEX + pd.Timedelta(hours=horizon + 1), index=INDEX)


def market(seed: int = 1) -> tuple[pd.DataFrame, pd.Series]:
    rng = np.random.default_rng(seed)
    X = pd.DataFrame(rng.normal(size=(ROWS, 3)), index=INDEX, columns=["a", "b", "c"])
    return X, (X["a"] + rng.normal(size=ROWS) > 0.5).astype("int8")


WINDOWS = walk_forward_windows(INDEX, label_end(), 30, test_size=20, train_size=600)


@given(
    horizon=st.integers(1, 30),
    count=st.integers(2, 20),
    size=st.integers(1, 40),
    train=st.one_of(st.none(), st.integers(50, 600)),
    embargo=st.integers(0, 24),
)
@settings(max_examples=40, deadline=None)
def test_no_window_trains_on_an_outcome_that_was_not_known(
    horizon: int, count: int, size: int, train: int | None, embargo: int
) -> None:
    ends = label_end(horizon)
    windows = walk_forward_windows(
        INDEX, ends, count, test_size=size, train_size=train, embargo=embargo
    )
    tests = np.concatenate([window.test for window in windows])
    assert np.array_equal(tests, np.arange(ROWS - count * size, ROWS))
    for window in windows:
        known = ends.iloc[window.train] + pd.Timedelta(hours=embargo)
        assert (known <= INDEX[window.test[0]]).all()
        assert audit_split(window.train, window.test, INDEX, ends) == 0
        assert train is None or len(window.train) <= train


def test_the_future_changes_nothing() -> None:
    """Other rows and outcomes from a window on leave every earlier answer as it was."""
    X, y = market()
    before = walk_forward(X, y, WINDOWS, SMALL, seed=1, jobs=1, refit_every=7).probabilities
    cut = WINDOWS[16]
    X2, y2 = X.copy(), y.copy()
    X2.iloc[cut.test[0] :] = 99.0
    unknown = (label_end() > INDEX[cut.test[0]]).to_numpy()
    y2[unknown] = 1 - y2[unknown]
    after = walk_forward(X2, y2, WINDOWS, SMALL, seed=1, jobs=1, refit_every=7).probabilities
    past = before.index < INDEX[cut.test[0]]
    assert np.array_equal(before[past], after[past])
    assert not np.array_equal(before[~past], after[~past])


def test_every_window_is_answered_by_its_own_training_rows() -> None:
    """Outcomes before a window's training rows do not matter, but for the trees of its block."""
    X, y = market()
    found = walk_forward(X, y, WINDOWS, SMALL, seed=1, jobs=1, refit_every=1)
    for window in (WINDOWS[0], WINDOWS[13], WINDOWS[29]):
        model = LGBMClassifier(
            **SMALL, random_state=1, n_jobs=1, deterministic=True, force_row_wise=True, verbosity=-1
        ).fit(X.iloc[window.train], y.iloc[window.train])
        expected = model.predict_proba(X.iloc[window.test])[:, 1]
        assert np.array_equal(found.probabilities.loc[INDEX[window.test]], expected)


@pytest.mark.parametrize("penalty", [0.0, 3.0])
def test_on_the_same_rows_the_leaf_values_are_lightgbm_s_own(penalty: float) -> None:
    X, y = market()
    model = LGBMClassifier(
        n_estimators=40, max_depth=5, reg_lambda=penalty, n_jobs=1, verbosity=-1, random_state=1
    ).fit(X, y)
    leaves = np.ascontiguousarray(model.predict(X, pred_leaf=True).T, dtype=np.uint16)
    values = np.zeros((40, 32))
    start = refit_leaves(leaves, y.to_numpy(float), 0.1, penalty, values)
    ours = add_leaves(leaves, values, start)
    assert np.abs(ours - model.predict_proba(X)[:, 1]).max() < 1e-5
    other = np.zeros((40, 32))
    python = refit_leaves.py_func(leaves[:, :60], y.to_numpy(float)[:60], 0.1, penalty, other)
    again = np.zeros((40, 32))
    few = np.ascontiguousarray(leaves[:, :60])
    assert python == pytest.approx(
        refit_leaves(few, y.to_numpy(float)[:60], 0.1, penalty, again), rel=1e-12
    )
    assert np.allclose(other, again, rtol=1e-9, atol=1e-12)
    assert np.allclose(add_leaves.py_func(few, other, python), add_leaves(few, again, python))


def test_the_same_bits_for_any_number_of_jobs() -> None:
    X, y = market()
    one, two = (walk_forward(X, y, WINDOWS, SMALL, seed=1, jobs=j, refit_every=4) for j in (1, 2))
    assert np.array_equal(one.probabilities, two.probabilities)
    assert np.array_equal(one.test_positions, two.test_positions)
    columns = ["window", "rows", "own_trees"]
    pd.testing.assert_frame_equal(one.windows[columns], two.windows[columns])
    assert one.windows["own_trees"].tolist() == [k % 4 == 0 for k in range(30)]
    assert one.probabilities.index.equals(INDEX[one.test_positions])


def test_refitted_leaves_score_as_well_as_new_trees() -> None:
    """Paired over windows and markets: the mean difference is within its own noise, or better."""
    gaps = []
    for seed in range(2):
        X, y = market(seed)
        cold, warm = (
            walk_forward(X, y, WINDOWS, SMALL, seed=1, jobs=1, refit_every=k) for k in (1, 10)
        )
        truth = y.iloc[cold.test_positions].to_numpy()
        for window in range(0, len(truth), 20):
            part = slice(window, window + 20)
            losses = [
                log_loss(truth[part], f.probabilities.iloc[part], labels=[0, 1])
                for f in (warm, cold)
            ]
            gaps.append(losses[0] - losses[1])
    error = np.std(gaps) / np.sqrt(len(gaps))
    assert np.mean(gaps) < 2 * error
    assert np.abs(np.mean(gaps)) < 0.01


def test_refitted_leaves_follow_the_market() -> None:
    """When outcomes turn around, refitted leaves learn it and stale ones would not."""
    X, y = market()
    turned = y.copy()
    turned.iloc[700:] = 1 - turned.iloc[700:]
    found = walk_forward(X, turned, WINDOWS, SMALL, seed=1, jobs=1, refit_every=30)
    truth = turned.iloc[found.test_positions].to_numpy()
    assert log_loss(truth[-200:], found.probabilities.iloc[-200:]) < 0.6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"refit_every": 0}, "refit_every is 0"),
        ({"parameters": {"reg_alpha": 1.0, "subsample": 0.5}}, "reg_alpha, subsample of lightgbm"),
        ({"parameters": {"n_estimator": 1}, "refit_every": 1}, "did you mean 'n_estimators'"),
        ({"jobs": -1}, "jobs is -1"),
    ],
)
def test_refusals_say_what_to_do(changes: dict[str, Any], message: str) -> None:
    X, y = market()
    given = {"parameters": SMALL, "seed": 1, "jobs": 1, **changes}
    with pytest.raises(ModelError, match=message):
        walk_forward(X, y, WINDOWS, **given)


def test_bad_data_are_refused_before_anything_is_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = market()
    monkeypatch.setattr(module, "_block", lambda *_, **__: pytest.fail("fitted"))
    with pytest.raises(ModelError, match="window 0 cannot be trained"):
        walk_forward(X, y * 0, WINDOWS, SMALL, seed=1)
    with pytest.raises(SplitError, match="test_size is 0"):
        walk_forward_windows(INDEX, label_end(), 5, test_size=0)
    with pytest.raises(SplitError, match="too few"):
        walk_forward_windows(INDEX, label_end(), 500, test_size=20)
