"""Ensemble: the vote, its weights, and everything that it must refuse."""

from __future__ import annotations

import copy
import json
import math
import pickle

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.base import clone, is_classifier
from sklearn.ensemble import VotingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.inspection import permutation_importance
from sklearn.metrics import log_loss
from sklearn.model_selection import cross_val_score
from sklearn.naive_bayes import GaussianNB
from sklearn.preprocessing import LabelEncoder
from sklearn.utils import estimator_checks
from sklearn.utils.validation import check_is_fitted

from crypto_ml.ensemble import (
    ProductionEnsemble,
    best_weights,
    blend,
    match_features,
    normalise_weights,
)
from crypto_ml.models import Classifier, fit_final, model_kind
from crypto_ml.settings import ModelError

NAMES = ["lightgbm", "xgboost", "random_forest"]
WEIGHTS = {"lightgbm": 0.4, "xgboost": 0.4, "random_forest": 0.2}
COLUMNS = ["close", "rsi_14", "zscore"]
SMALL = {
    "lightgbm": {"n_estimators": 10, "max_depth": 4},
    "xgboost": {"n_estimators": 10, "max_depth": 4},
    "random_forest": {"n_estimators": 10, "max_depth": 6},
}


def market(rows: int = 500, seed: int = 1) -> tuple[pd.DataFrame, pd.Series]:
    rng = np.random.default_rng(seed)
    index = pd.date_range("2024-01-01", periods=rows, freq="h", tz="UTC", name="timestamp")
    X = pd.DataFrame(rng.normal(size=(rows, 3)), index=index, columns=COLUMNS)
    X["close"] = 60_000 + 300 * X["close"].cumsum()
    return X, (X["zscore"] + rng.normal(size=rows) > 0.4).astype("int8")


@pytest.fixture(scope="module")
def members() -> dict[str, Classifier]:
    X, y = market()
    return fit_final(X, y, SMALL, seed=42, jobs=1)


@pytest.fixture()
def ensemble(members: dict[str, Classifier]) -> ProductionEnsemble:
    return ProductionEnsemble(members, WEIGHTS)


X_NEW, Y_NEW = market(200, seed=2)

# weights

amounts = st.floats(0, 1e300, allow_subnormal=True)


@given(st.lists(amounts, min_size=3, max_size=3).filter(any))
def test_weights_keep_their_proportions_and_sum_to_one(values: list[float]) -> None:
    given_weights = dict(zip(NAMES, values, strict=True))
    before = dict(given_weights)
    scaled = normalise_weights(given_weights, NAMES)
    assert given_weights == before
    assert scaled is not given_weights
    assert list(scaled) == NAMES
    assert math.isclose(math.fsum(scaled.values()), 1, rel_tol=1e-12)
    assert all(0 <= w <= 1 for w in scaled.values())
    largest = max(values)
    for name, value in given_weights.items():
        expected = (value / largest) * max(scaled.values())
        assert math.isclose(scaled[name], expected, rel_tol=1e-9, abs_tol=1e-300)
    assert normalise_weights(scaled, NAMES) == scaled, "normalising twice must change no bit"


@given(
    st.sampled_from(NAMES),
    st.sampled_from([-1e-9, -3, math.inf, -math.inf, math.nan, "0.4", None, True, 1j]),
)
def test_a_weight_that_makes_no_sense_is_named(name: str, value: object) -> None:
    wrong = {**WEIGHTS, name: value}
    with pytest.raises(ModelError) as caught:
        normalise_weights(wrong, NAMES)
    assert f"the weight of {name!r} is {value!r}" in str(caught.value)


def test_unknown_missing_and_zero_weights() -> None:
    with pytest.raises(ModelError) as caught:
        normalise_weights({"lightgbm": 1, "catboost": 1}, NAMES)
    assert str(caught.value).startswith("3 problems in the weights")
    assert "'catboost' is no member" in str(caught.value)
    assert "'xgboost' has no weight" in str(caught.value)
    with pytest.raises(ModelError, match="all weights are 0"):
        normalise_weights(dict.fromkeys(NAMES, 0.0), NAMES)


# vote

frames = st.integers(1, 8).flatmap(
    lambda n: st.lists(
        st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=n, max_size=n
    ).map(lambda rows: pd.DataFrame(rows, columns=NAMES))
)


@given(frames, st.lists(st.floats(0, 10), min_size=3, max_size=3).filter(lambda w: sum(w) > 1e-6))
def test_the_blend_is_the_weighted_mean_row_by_row(
    frame: pd.DataFrame, values: list[float]
) -> None:
    weights = dict(zip(NAMES, values, strict=True))
    mixed = blend(frame, weights)
    assert np.allclose(mixed, np.average(frame, axis=1, weights=values), atol=1e-12)
    used = frame[[name for name in NAMES if weights[name] > 0]]
    assert (mixed >= used.min(axis=1) - 1e-12).all()
    assert (mixed <= used.max(axis=1) + 1e-12).all()
    assert mixed.between(0, 1).all()
    for row in range(len(frame)):
        assert blend(frame.iloc[[row]], weights).iloc[0] == mixed.iloc[row]


def test_equal_to_the_vote_of_scikit_learn(members: dict[str, Classifier]) -> None:
    peer = VotingClassifier(list(members.items()), voting="soft", weights=[0.4, 0.4, 0.2])
    peer.estimators_ = list(members.values())
    peer.le_ = LabelEncoder().fit([0, 1])
    peer.classes_ = peer.le_.classes_
    ours = ProductionEnsemble(members, {"random_forest": 1, "lightgbm": 2, "xgboost": 2})
    assert np.allclose(ours.predict_proba(X_NEW), peer.predict_proba(X_NEW), atol=1e-15)
    assert np.array_equal(ours.predict(X_NEW), peer.predict(X_NEW))


def test_probabilities_are_the_blend_of_the_members(ensemble: ProductionEnsemble) -> None:
    parts = ensemble.member_probabilities(X_NEW)
    assert list(parts) == NAMES
    assert parts.index.equals(X_NEW.index)
    probability = ensemble.predict_proba(X_NEW)
    assert probability.shape == (200, 2)
    assert probability.dtype == np.float64
    assert np.array_equal(probability[:, 1], blend(parts, WEIGHTS))
    assert np.array_equal(probability.sum(axis=1), np.ones(200))
    for row in (0, 99, 199):
        alone = ensemble.predict_proba(X_NEW.iloc[[row]])
        assert np.array_equal(alone[0], probability[row])


def test_a_member_without_weight_has_no_say(members: dict[str, Classifier]) -> None:
    only = ProductionEnsemble(members, {"lightgbm": 0, "xgboost": 0, "random_forest": 5})
    expected = members["random_forest"].predict_proba(X_NEW)[:, 1]
    assert np.array_equal(only.predict_proba(X_NEW)[:, 1], expected)


@given(st.floats(0.001, 0.999))
@settings(deadline=None, max_examples=25)
def test_predict_is_predict_proba_at_the_threshold(threshold: float) -> None:
    X, y = market()
    forest = {
        "random_forest": fit_final(X, y, {"random_forest": {"n_estimators": 3}}, seed=1, jobs=1)[
            "random_forest"
        ]
    }
    for chosen in (
        threshold,
        ProductionEnsemble(forest, {"random_forest": 1}).predict_proba(X_NEW)[7, 1],
    ):
        if 0 < chosen < 1:
            vote = ProductionEnsemble(forest, {"random_forest": 1}, float(chosen))
            yes = vote.predict(X_NEW) == 1
            assert np.array_equal(yes, vote.predict_proba(X_NEW)[:, 1] >= chosen)
            assert set(np.unique(vote.predict(X_NEW))) <= {0, 1}


def test_exactly_at_the_threshold_is_yes(ensemble: ProductionEnsemble) -> None:
    exact = float(ensemble.predict_proba(X_NEW)[3, 1])
    ensemble.set_params(decision_threshold=exact)
    assert ensemble.predict(X_NEW)[3] == 1
    ensemble.set_params(decision_threshold=float(np.nextafter(exact, 1)))
    assert ensemble.predict(X_NEW)[3] == 0


@pytest.mark.parametrize("threshold", [0, 1, -0.1, 1.5, math.nan, "0.5", None, True])
def test_a_threshold_outside_zero_to_one_is_refused(
    members: dict[str, Classifier], threshold: object
) -> None:
    with pytest.raises(ModelError, match="decision_threshold is"):
        ProductionEnsemble(members, WEIGHTS, threshold)  # type: ignore[arg-type]


# features


@given(st.permutations(COLUMNS))
@settings(max_examples=6)
def test_columns_in_another_order_give_the_same_rows(order: list[str]) -> None:
    matched = match_features(X_NEW[order], COLUMNS, 3)
    pd.testing.assert_frame_equal(matched, X_NEW)


def test_columns_in_another_order_give_the_same_answer(ensemble: ProductionEnsemble) -> None:
    expected = ensemble.predict_proba(X_NEW)
    assert np.array_equal(ensemble.predict_proba(X_NEW[COLUMNS[::-1]]), expected)
    assert np.array_equal(ensemble.predict_proba(X_NEW.to_numpy()), expected)
    shuffled = ensemble.predict_proba(X_NEW[COLUMNS[::-1]].set_axis(COLUMNS, axis=1))
    assert not np.array_equal(shuffled, expected), "the order matters, or this test shows nothing"


def test_wrong_missing_and_extra_columns_are_named(ensemble: ProductionEnsemble) -> None:
    with pytest.raises(ModelError) as caught:
        ensemble.predict_proba(X_NEW.rename(columns={"rsi_14": "rsi14"}).drop(columns="close"))
    message = str(caught.value)
    assert "3 problems with the features" in message
    assert "'close' is missing\n" in message
    assert "'rsi_14' is missing; 'rsi14' was given instead?" in message
    assert "'rsi14' is not a feature" in message
    with pytest.raises(ModelError, match="'macd' is not a feature"):
        ensemble.predict(X_NEW.assign(macd=1.0))
    with pytest.raises(ModelError, match="'close' appears more than once"):
        ensemble.predict(pd.concat([X_NEW, X_NEW[["close"]]], axis=1))


@pytest.mark.parametrize("shape", [(4, 2), (4, 4), (3,), (2, 3, 1), ()])
def test_an_array_of_another_width_is_refused_with_both_numbers(
    ensemble: ProductionEnsemble, shape: tuple[int, ...]
) -> None:
    with pytest.raises(ModelError) as caught:
        ensemble.predict_proba(np.zeros(shape))
    assert f"shape {shape}" in str(caught.value)
    assert "3 columns (close, rsi_14, zscore)" in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_hole_is_located(ensemble: ProductionEnsemble, value: float) -> None:
    rows = X_NEW.copy()
    rows.iloc[5, 1] = value
    with pytest.raises(ModelError, match=f"'rsi_14' is {value} at row 5 .{rows.index[5]:%Y-%m-%d}"):
        ensemble.predict_proba(rows)
    with pytest.raises(ModelError, match=r"at row 5 \(5\)"):
        ensemble.predict_proba(rows.to_numpy())


def test_other_rows_that_cannot_be_answered(ensemble: ProductionEnsemble) -> None:
    with pytest.raises(ModelError, match="no rows were given"):
        ensemble.predict_proba(X_NEW.iloc[:0])
    with pytest.raises(ModelError, match="'close' holds str, not numbers"):
        ensemble.predict_proba(X_NEW.assign(close="high"))
    nullable = X_NEW.astype("Float64")
    assert np.array_equal(ensemble.predict_proba(nullable), ensemble.predict_proba(X_NEW))
    nullable.iloc[2, 0] = pd.NA
    with pytest.raises(ModelError, match="'close' is <NA> at row 2"):
        ensemble.predict_proba(nullable)


def test_extreme_and_constant_rows_get_an_answer(ensemble: ProductionEnsemble) -> None:
    for value in (0.0, 1e-300, -1e12, 1e12, 1e37):
        probability = ensemble.predict_proba(np.full((2, 3), value))
        assert np.isfinite(probability).all()
        assert ((probability >= 0) & (probability <= 1)).all()


# members


def test_members_that_do_not_fit_together_are_refused(members: dict[str, Classifier]) -> None:
    X, y = market()
    with pytest.raises(ModelError, match="at least one fitted model"):
        ProductionEnsemble({}, {})
    with pytest.raises(ModelError, match="'random_forest' is not fitted"):
        ProductionEnsemble({"random_forest": clone(members["random_forest"])}, {"random_forest": 1})
    three = GaussianNB().fit(X, np.arange(len(X)) % 3)
    with pytest.raises(ModelError, match=r"'a' knows the classes \[.*2.*\]; expected 0 and 1"):
        ProductionEnsemble({"a": three}, {"a": 1})
    other = GaussianNB().fit(X[COLUMNS[::-1]], y)
    with pytest.raises(ModelError, match="'b' was trained on zscore, rsi_14, close, 'xgboost' on"):
        ProductionEnsemble({"xgboost": members["xgboost"], "b": other}, {"xgboost": 1, "b": 1})
    nameless = GaussianNB().fit(X.to_numpy(), y)
    with pytest.raises(ModelError, match="'c' was trained on 3 columns without names"):
        ProductionEnsemble({"xgboost": members["xgboost"], "c": nameless}, {"xgboost": 1, "c": 1})


def test_members_without_names_take_any_table_of_the_right_width() -> None:
    X, y = market()
    nameless = GaussianNB().fit(X.to_numpy(), y)
    vote = ProductionEnsemble({"c": nameless}, {"c": 1})
    assert not hasattr(vote, "feature_names_in_")
    expected = nameless.predict_proba(X_NEW.to_numpy())
    assert np.allclose(vote.predict_proba(X_NEW), expected, atol=1e-15)
    assert vote.member_probabilities(X_NEW).index.equals(X_NEW.index)
    with pytest.raises(ModelError, match=r"two dimensions and 3 columns$"):
        vote.predict_proba(X_NEW[["close"]])


# scikit-learn


def test_clone_copy_and_pickle_answer_alike(ensemble: ProductionEnsemble) -> None:
    expected = ensemble.predict_proba(X_NEW)
    for twin in (clone(ensemble), copy.deepcopy(ensemble), pickle.loads(pickle.dumps(ensemble))):
        assert np.array_equal(twin.predict_proba(X_NEW), expected)
        assert twin.get_params()["weights"] == WEIGHTS
        assert twin.models is not ensemble.models


@pytest.mark.parametrize(
    "name",
    [
        "check_estimator_cloneable",
        "check_estimator_repr",
        "check_estimator_tags_renamed",
        "check_valid_tag_types",
        "check_get_params_invariance",
        "check_mixin_order",
    ],
)
def test_checks_of_scikit_learn_for_what_needs_no_fit(
    ensemble: ProductionEnsemble, name: str
) -> None:
    getattr(estimator_checks, name)("ProductionEnsemble", ensemble)


def test_it_is_a_fitted_classifier(ensemble: ProductionEnsemble) -> None:
    assert is_classifier(ensemble)
    check_is_fitted(ensemble)
    assert list(ensemble.classes_) == [0, 1]
    assert list(ensemble.feature_names_in_) == COLUMNS
    assert ensemble.n_features_in_ == 3
    assert 0.5 < ensemble.score(X_NEW, Y_NEW) <= 1
    importance = permutation_importance(ensemble, X_NEW, Y_NEW, n_repeats=2, random_state=0)
    assert importance.importances_mean.argmax() == COLUMNS.index("zscore")


def test_it_can_never_be_scored_on_rows_it_was_trained_on(ensemble: ProductionEnsemble) -> None:
    with pytest.raises(ModelError, match="cannot be fitted"):
        ensemble.fit(X_NEW, Y_NEW)
    with pytest.raises(ModelError, match="cannot be fitted"):
        cross_val_score(ensemble, X_NEW, Y_NEW, error_score="raise")


def test_an_unfitted_member_of_scikit_learn_is_no_member() -> None:
    with pytest.raises(NotFittedError):
        check_is_fitted(GaussianNB())


# changes


def test_new_weights_take_effect_together_or_not_at_all(ensemble: ProductionEnsemble) -> None:
    before = ensemble.predict_proba(X_NEW)
    for wrong in ({"lightgbm": 1}, {**WEIGHTS, "xgboost": -1}, dict.fromkeys(NAMES, 0), {"q": 1}):
        with pytest.raises(ModelError):
            ensemble.update_weights(wrong)
        assert ensemble.weights_ == WEIGHTS
        assert np.array_equal(ensemble.predict_proba(X_NEW), before)
    mine = {"random_forest": 3, "xgboost": 1, "lightgbm": 0}
    assert ensemble.update_weights(mine) is ensemble
    assert mine == {"random_forest": 3, "xgboost": 1, "lightgbm": 0}
    assert ensemble.weights_ == {"lightgbm": 0, "xgboost": 0.25, "random_forest": 0.75}
    assert not np.array_equal(ensemble.predict_proba(X_NEW), before)


def test_the_callers_dicts_are_neither_changed_nor_followed(members: dict[str, Classifier]) -> None:
    mine, models = {"lightgbm": 2, "xgboost": 2, "random_forest": 1}, dict(members)
    vote = ProductionEnsemble(models, mine)
    expected = vote.predict_proba(X_NEW)
    assert mine == {"lightgbm": 2, "xgboost": 2, "random_forest": 1}
    mine["lightgbm"] = 50
    models.pop("xgboost")
    vote.weights_["lightgbm"] = 9
    assert np.array_equal(vote.predict_proba(X_NEW), expected)
    assert vote.weights_ == WEIGHTS


def test_unknown_parameters_are_refused(ensemble: ProductionEnsemble) -> None:
    with pytest.raises(ModelError, match="no parameter 'weight'; did you mean 'weights'"):
        ensemble.set_params(weight=WEIGHTS)
    assert ensemble.set_params() is ensemble


def test_the_description_is_plain_data(ensemble: ProductionEnsemble) -> None:
    info = ensemble.get_model_info()
    assert json.loads(json.dumps(info, allow_nan=False)) == info
    assert info["model_type"] == "ProductionEnsemble"
    assert info["n_features"] == 3
    assert info["feature_names"] == COLUMNS
    assert info["weights"] == WEIGHTS
    assert info["decision_threshold"] == 0.5
    assert list(info["individual_models"]) == NAMES
    for name, described in info["individual_models"].items():
        assert described["kind"] == name
        assert described["parameters"]["n_estimators"] == 10
        assert described["parameters"]["random_state"] == 42
    assert model_kind(GaussianNB()) == "GaussianNB"


# the best weights


def simulated(seed: int, rows: int = 400) -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=rows)
    y = (rng.random(rows) < 1 / (1 + np.exp(-truth))).astype(int)
    noise = rng.normal(size=(rows, 3)) * rng.uniform(0.1, 2, 3)
    p = 1 / (1 + np.exp(-(truth[:, None] * rng.uniform(0.3, 2, 3) + noise)))
    return pd.DataFrame(p, columns=NAMES), y


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_no_other_weights_do_better(seed: int) -> None:
    p, y = simulated(seed)
    best = best_weights(p, y)
    assert math.isclose(sum(best.values()), 1, rel_tol=1e-9)
    found = log_loss(y, blend(p, best))

    def loss(w: np.ndarray) -> float:
        return float(log_loss(y, np.clip(p.to_numpy() @ (w / w.sum()), 1e-15, 1 - 1e-15)))

    peer = minimize(
        loss,
        np.full(3, 1 / 3),
        method="SLSQP",
        bounds=[(0, 1)] * 3,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
    )
    corners = [loss(w) for w in np.eye(3)]
    assert found <= min(peer.fun, *corners) + 1.1e-6
    order = NAMES[::-1]
    again = best_weights(p[order], y)
    assert all(math.isclose(again[name], best[name], abs_tol=1e-4) for name in NAMES)


def test_the_right_member_alone_wins_when_the_others_only_harm() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.05, 0.95, 2000)
    y = (rng.random(2000) < truth).astype(int)
    p = pd.DataFrame({"lightgbm": 1 - truth, "xgboost": truth, "random_forest": rng.random(2000)})
    assert best_weights(p, y)["xgboost"] > 0.95


def test_best_weights_of_one_member_and_of_twins() -> None:
    p, y = simulated(1)
    assert best_weights(p[["xgboost"]], y) == {"xgboost": 1.0}
    twins = p.assign(xgboost=p["lightgbm"], random_forest=p["lightgbm"])
    assert all(math.isclose(w, 1 / 3, rel_tol=1e-9) for w in best_weights(twins, y).values())


def test_best_weights_refuses_what_it_cannot_weigh() -> None:
    p, y = simulated(2)
    with pytest.raises(ModelError, match=r"shape \(400, 3\) need as many labels"):
        best_weights(p, y[:-1])
    with pytest.raises(ModelError, match="each 0 or 1"):
        best_weights(p, y * 2)
    with pytest.raises(ModelError, match="between 0 and 1"):
        best_weights(p.mask(p > 0.9), y)
    with pytest.raises(ModelError, match="between 0 and 1"):
        best_weights(p * 1.5, y)
