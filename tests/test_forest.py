"""The faster forest: the bytes of scikit-learn's, which also grows what it cannot."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import RandomForestClassifier

from crypto_ml import forest, tree_growth
from crypto_ml.features import feature_matrix
from crypto_ml.forest import Grower, fit_forest, is_usual, same_tree
from crypto_ml.labels import make_labels
from crypto_ml.model_files import model_bytes, model_from_bytes
from crypto_ml.models import make_model
from crypto_ml.simulate import simulate


@pytest.fixture(scope="module")
def rows() -> tuple[pd.DataFrame, np.ndarray]:
    candles = simulate("sim:clear", bars=2_500).candles
    features = feature_matrix(candles).dropna()
    y = make_labels(candles, "threshold", horizon=1, threshold=0.003).y
    index = features.index.intersection(y.index)
    return features.loc[index], y.loc[index].to_numpy()


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note how many trees scikit-learn is asked to grow."""
    asked: list[int] = []
    original = RandomForestClassifier.fit

    def fit(self: Any, *given: Any) -> Any:
        asked.append(self.n_estimators)
        return original(self, *given)

    monkeypatch.setattr(RandomForestClassifier, "fit", fit)
    return asked


KINDS: list[dict[str, Any]] = [
    {"n_estimators": 30, "max_depth": 12},
    {"n_estimators": 5},
    {"n_estimators": 5, "max_features": None, "min_samples_leaf": 9},
    {"n_estimators": 5, "max_features": 1, "min_samples_split": 40},
    {"n_estimators": 5, "bootstrap": False, "max_features": 0.4},
    {"n_estimators": 5, "max_samples": 0.3, "min_impurity_decrease": 5e-4},
]


@pytest.mark.parametrize("parameters", KINDS, ids=str)
def test_every_byte_is_that_of_scikit_learn(
    rows: Any, parameters: dict[str, Any], refuse: list[int]
) -> None:
    X, y = rows
    ours = fit_forest(make_model("random_forest", parameters, 42), X, y)
    assert refuse == [1]  # scikit-learn grew the tree that is compared, and no other
    plain = make_model("random_forest", parameters, 42).fit(X, y)
    assert model_bytes(ours) == model_bytes(plain)
    assert ours.get_params() == plain.get_params()
    assert ours.__dict__.keys() == plain.__dict__.keys()
    assert np.array_equal(ours.predict_proba(X), plain.predict_proba(X))
    for own, other in zip(ours.estimators_, plain.estimators_, strict=True):
        assert own.__dict__.keys() == other.__dict__.keys()
        assert own.random_state == other.random_state


def test_it_can_be_saved_pickled_and_fitted_again(rows: Any) -> None:
    X, y = rows
    model = fit_forest(make_model("random_forest", {"n_estimators": 4}, 1), X, y)
    expected = model.predict_proba(X)
    loaded = model_from_bytes("random_forest", model_bytes(model), X.shape[1])
    assert np.array_equal(loaded.predict_proba(X), expected)
    assert np.array_equal(pickle.loads(pickle.dumps(model)).predict_proba(X), expected)
    assert np.array_equal(fit_forest(model, X, y).predict_proba(X), expected)


OTHERS: list[dict[str, Any]] = [
    {"criterion": "entropy"},
    {"class_weight": "balanced"},
    {"max_leaf_nodes": 9},
    {"min_samples_leaf": 0.01},
    {"min_weight_fraction_leaf": 0.01},
    {"ccp_alpha": 1e-3},
    {"oob_score": True, "n_estimators": 40},
    {"n_estimators": 1},
]


@pytest.mark.parametrize("parameters", OTHERS, ids=str)
def test_other_forests_are_scikit_learn_s_own(rows: Any, parameters: dict[str, Any]) -> None:
    X, y = rows[0][:400], rows[1][:400]
    given = {"n_estimators": 3, **parameters}
    ours = make_model("random_forest", given, 3)
    assert not is_usual(ours)
    fit_forest(ours, X, y)
    assert model_bytes(ours) == model_bytes(make_model("random_forest", given, 3).fit(X, y))


def test_rows_that_cannot_be_packed_are_left_to_scikit_learn(
    rows: Any, refuse: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = rows[0][:300], rows[1][:300].astype(int)
    three = np.arange(300) % 3
    holes = X.to_numpy().copy()
    holes[5, 0] = np.nan
    for values, labels in ((X, three), (holes, y)):
        model = fit_forest(RandomForestClassifier(3, random_state=1), values, labels)
        assert len(model.estimators_) == 3
    assert refuse == [1, 3, 1, 3]
    monkeypatch.setattr(tree_growth, "MOST_ROWS", 299)
    fit_forest(RandomForestClassifier(3, random_state=1), X, y)
    assert refuse[4:] == [1, 3]


def test_a_tree_that_differs_gives_all_to_scikit_learn(
    rows: Any, refuse: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = rows[0][:500], rows[1][:500]
    plain = model_bytes(RandomForestClassifier(4, random_state=1).fit(X, y))
    original = Grower.tree

    def one_bit_off(self: Grower, seed: int) -> Any:
        ints, floats, depth = original(self, seed)
        floats[-1, 4] = np.nextafter(floats[-1, 4], 2)
        return ints, floats, depth

    monkeypatch.setattr(Grower, "tree", one_bit_off)
    model = fit_forest(RandomForestClassifier(4, random_state=1), X, y)
    assert refuse == [4, 1, 4]
    assert model_bytes(model) == plain


def test_equal_is_told_from_almost_equal(rows: Any) -> None:
    X, y = rows
    one, other = (RandomForestClassifier(1, random_state=k).fit(X, y) for k in (1, 2))
    assert same_tree(one.estimators_[0], one.estimators_[0])
    assert not same_tree(one.estimators_[0], other.estimators_[0])


def test_a_failed_fit_leaves_the_parameters(rows: Any) -> None:
    model = RandomForestClassifier(7, max_depth=-3, random_state=1)
    with pytest.raises(ValueError, match="max_depth"):
        fit_forest(model, *rows)
    assert model.n_estimators == 7


def test_labels_need_not_be_0_and_1(rows: Any) -> None:
    X, y = rows
    named = np.where(y == 1, "up", "down")
    ours = fit_forest(RandomForestClassifier(3, random_state=1), X, named)
    assert list(ours.classes_) == ["down", "up"]
    plain = RandomForestClassifier(3, random_state=1).fit(X, named)
    assert np.array_equal(ours.predict(X), plain.predict(X))


def test_values_are_numbered_in_order() -> None:
    X = np.array([[3.0, 1.0], [-1.0, 1.0], [3.0, 2.0]], dtype=np.float32)
    codes, values = forest.number_values(X)
    assert codes.tolist() == [[1, 0, 1], [0, 0, 1]]
    assert values.tolist() == [[-1.0, 3.0, 0.0], [1.0, 2.0, 0.0]]
