"""Permutation importance, collinear pairs and drift against independent computations."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from crypto_ml.importance import collinear_pairs, feature_drift, permutation_importance_table
from crypto_ml.settings import ScoreError


def problem(rows: int = 800, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray, LogisticRegression]:
    generator = np.random.default_rng(seed)
    X = pd.DataFrame(generator.normal(size=(2 * rows, 3)), columns=["strong", "weak", "noise"])
    y = (generator.random(2 * rows) < 1 / (1 + np.exp(-X["strong"] - 0.3 * X["weak"]))).to_numpy()
    return X[rows:], y[rows:].astype(int), LogisticRegression().fit(X[:rows], y[:rows])


def positive(model: LogisticRegression):
    return lambda X: model.predict_proba(X)[:, 1]


def test_values_equal_scikit_learn() -> None:
    X, y, model = problem()
    table = permutation_importance_table(positive(model), X, y, repeats=60, resamples=50)
    theirs = permutation_importance(
        model, X, y, scoring="neg_log_loss", n_repeats=60, random_state=1
    ).importances_mean
    mine = table.set_index("feature")["value"].reindex(X.columns)
    np.testing.assert_allclose(mine, theirs, atol=0.004)
    assert table["feature"].tolist() == ["strong", "weak", "noise"]


def test_interval_covers_the_true_growth_about_as_often_as_it_says() -> None:
    _, _, model = problem(4000)
    truth = permutation_importance_table(
        positive(model), *problem(40_000, 99)[:2], repeats=3, resamples=10
    )
    truth = truth.set_index("feature")["value"].reindex(["strong", "weak", "noise"])
    covered = []
    for seed in range(60):
        X, y, _ = problem(400, seed)
        table = (
            permutation_importance_table(
                positive(model), X, y, repeats=5, resamples=300, block_length=1, seed=seed
            )
            .set_index("feature")
            .reindex(truth.index)
        )
        covered.append((table["low"] <= truth) & (truth <= table["high"]))
    assert 0.88 <= np.mean(covered) <= 0.99


def test_blocks_widen_the_interval_of_dependent_rows() -> None:
    X, y, model = problem(300)
    X = X.loc[X.index.repeat(6)].reset_index(drop=True)
    y = np.repeat(y, 6)
    table = permutation_importance_table(positive(model), X, y)
    alone = permutation_importance_table(positive(model), X, y, block_length=1)
    width, naive = (t.set_index("feature").eval("high - low")["strong"] for t in (table, alone))
    assert table.attrs["block_length"] > 3
    assert width > 1.5 * naive


def test_same_seed_same_table_and_nothing_is_changed() -> None:
    X, y, model = problem(200)
    before = X.copy()
    first, second, third = (
        permutation_importance_table(positive(model), X, y, resamples=40, seed=seed)
        for seed in (7, 7, 8)
    )
    pd.testing.assert_frame_equal(first, second)
    assert not first.equals(third)
    pd.testing.assert_frame_equal(X, before)


def test_certain_and_wrong_probabilities_stay_finite() -> None:
    X, y, _ = problem(50)
    table = permutation_importance_table(lambda X: np.ones(len(X)), X, y, resamples=20)
    assert (table[["value", "low", "high"]] == 0).all(axis=None)
    assert table.attrs["block_length"] == 1


def test_a_group_is_shuffled_with_one_order() -> None:
    X, y, model = problem(300)
    twins = X.assign(twin=X["strong"])

    def predict(frame: pd.DataFrame) -> np.ndarray:
        assert np.array_equal(frame["strong"], frame["twin"])
        return positive(model)(frame[["strong", "weak", "noise"]])

    groups = {"both": ["strong", "twin"]}
    table = permutation_importance_table(predict, twins, y, groups=groups, resamples=20)
    assert table["feature"].tolist() == ["both"] and table["value"][0] > 0.05


def test_value_is_the_growth_of_the_mean_log_loss() -> None:
    X, y, model = problem(100)
    table = permutation_importance_table(
        positive(model), X, y, groups={"all": list(X)}, repeats=1, resamples=10, seed=3
    )
    order = np.random.default_rng(3).permutation(len(X))
    grown = log_loss(y, positive(model)(X.iloc[order])) - log_loss(y, positive(model)(X))
    assert table["value"][0] == pytest.approx(grown)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": np.zeros(3)}, "100 rows and 3 outcomes"),
        ({"y": np.full(100, 2)}, "must be 0 or 1, and one is 2"),
        ({"X": pd.DataFrame(), "y": np.zeros(0)}, "at least 2 rows"),
        ({"predict": lambda X: np.zeros((len(X), 2))}, "shape .100, 2. for 100 rows"),
        ({"groups": {"g": ["strong", "absent"]}}, "no feature is called absent"),
    ],
)
def test_misfits_are_refused(change: dict[str, object], message: str) -> None:
    X, y, model = problem(100)
    given = {"predict": positive(model), "X": X, "y": y, **change}
    with pytest.raises(ScoreError, match=message):
        permutation_importance_table(**given)


def test_collinear_pairs_are_found_either_way_strongest_first() -> None:
    generator = np.random.default_rng(0)
    a = generator.normal(size=500)
    frame = pd.DataFrame({"a": a, "b": -(a**3), "c": a + generator.normal(0, 0.1, 500), "d": 1.0})
    pairs = collinear_pairs(frame, 0.95)
    assert pairs[["first", "second"]].to_numpy().tolist() == [["a", "b"], ["a", "c"], ["b", "c"]]
    assert pairs["correlation"].tolist()[0] == pytest.approx(-1)
    assert pairs["correlation"].iloc[1] == pytest.approx(stats.spearmanr(a, frame["c"]).statistic)
    assert collinear_pairs(frame[["a"]]).empty


@pytest.mark.filterwarnings("ignore:ks_2samp")
@settings(max_examples=50)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 999))
def test_drift_is_the_largest_distance_of_the_distributions(n: int, m: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 9, n + m).astype(float)
    fold = SimpleNamespace(name="0", train=np.arange(n), test=np.arange(n, n + m))
    back = SimpleNamespace(name="0", train=fold.test, test=fold.train)
    frame = pd.DataFrame({"x": values})
    expected = max(
        abs((values[:n] <= edge).mean() - (values[n:] <= edge).mean()) for edge in values
    )
    distance = feature_drift(frame, [fold]).loc["x", "0"]
    assert distance == pytest.approx(expected) and 0 <= distance <= 1
    assert distance == pytest.approx(stats.ks_2samp(values[:n], values[n:]).statistic)
    assert distance == pytest.approx(feature_drift(frame, [back]).loc["x", "0"])


def test_drift_ends_and_gaps() -> None:
    frame = pd.DataFrame(
        {"moved": [0.0, 1, 2, 7, 8, 9], "same": [1.0] * 6, "late": [np.nan] * 3 + [1.0] * 3}
    )
    fold = SimpleNamespace(name="holdout", train=np.arange(3), test=np.arange(3, 6))
    drift = feature_drift(frame, [fold])["holdout"]
    assert drift["moved"] == 1 and drift["same"] == 0 and np.isnan(drift["late"])
    assert feature_drift(frame, []).shape == (3, 0)
