"""Metrics: each plain value is scikit-learn's, each weighting that of the rows drawn that often."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from crypto_ml import metrics
from crypto_ml.metrics import (
    METRICS,
    PAST_RANKED,
    PLAIN_METRICS,
    Floats,
    Rows,
    answers,
    evaluate,
    metric_values,
    past_ranks,
)
from crypto_ml.settings import ScoreError


def calibration_error(y: Floats, p: Floats) -> float:
    """Weigh scikit-learn's calibration curve by the rows of each bin."""
    happened, said = calibration_curve(y, p, n_bins=10)
    rows = np.bincount(np.searchsorted(np.linspace(0, 1, 11)[1:-1], p))
    return float((np.abs(happened - said) * rows[rows > 0]).sum() / len(y))


REFERENCE: dict[str, Callable[[Floats, Floats, Floats], float]] = {
    "macro_f1": lambda y, p, s: sk.f1_score(y, s, average="macro", labels=[0, 1], zero_division=0),
    "positive_f1": lambda y, p, s: sk.f1_score(y, s, zero_division=0),
    "weighted_f1": lambda y, p, s: sk.f1_score(y, s, average="weighted", zero_division=0),
    "balanced_accuracy": lambda y, p, s: sk.balanced_accuracy_score(y, s),
    "mcc": lambda y, p, s: sk.matthews_corrcoef(y, s),
    "accuracy": lambda y, p, s: sk.accuracy_score(y, s),
    "log_loss": lambda y, p, s: sk.log_loss(y, p, labels=[0, 1]),
    "brier": lambda y, p, s: sk.brier_score_loss(y, p, pos_label=1),
    "roc_auc": lambda y, p, s: sk.roc_auc_score(y, p),
    "average_precision": lambda y, p, s: sk.average_precision_score(y, p),
    "calibration_error": lambda y, p, s: calibration_error(y, p),
}


@st.composite
def judged_rows(draw: st.DrawFn) -> tuple[Floats, Floats, Floats, float]:
    """Outcomes, probabilities with many ties and both ends, counts of drawing, a threshold."""
    size = draw(st.integers(2, 60))
    y = draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=size, max_size=size))
    steps = draw(st.sampled_from([1, 2, 4, 64]))
    p = draw(st.lists(st.integers(0, steps), min_size=size, max_size=size))
    counts = draw(st.lists(st.integers(0, 3), min_size=size, max_size=size).filter(any))
    threshold = draw(st.sampled_from([0.0, 0.25, 0.5, 0.9]))
    return np.array(y), np.array(p) / steps, np.array(counts, dtype=float), threshold


def one_fold(y: Floats, base_rate: float = 0.5) -> Rows:
    return Rows(y, 2 * y - 1, ((0, len(y)),), np.full(len(y), base_rate))


def agrees(name: str, ours: float, y: Floats, p: Floats, threshold: float) -> None:
    one_class = len(set(y)) == 1
    if name in ("roc_auc", "average_precision") and one_class:
        assert math.isnan(ours)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = REFERENCE[name](y, p, (p > threshold).astype(float))
    assert ours == pytest.approx(expected, abs=1e-9), name


@settings(max_examples=70, deadline=None)
@given(judged_rows())
def test_every_metric_equals_scikit_learn_on_the_rows_and_on_a_resample(
    sample: tuple[Floats, Floats, Floats, float],
) -> None:
    y, p, counts, threshold = sample
    plain = evaluate(y, p, PLAIN_METRICS, threshold)
    rows = one_fold(y)
    weights = np.stack([np.ones(len(y)), counts])
    both = metric_values(answers(rows, p, threshold), weights, PLAIN_METRICS)
    drawn = np.repeat(np.arange(len(y)), counts.astype(int))
    for name in REFERENCE:
        assert plain[name] == pytest.approx(both[name][0], nan_ok=True)
        agrees(name, plain[name], y, p, threshold)
        agrees(name, float(both[name][1]), y[drawn], p[drawn], threshold)


@settings(max_examples=60, deadline=None)
@given(judged_rows(), st.integers(0, 2**32 - 1))
def test_rankings_are_taken_within_folds_and_averaged_by_rows(
    sample: tuple[Floats, Floats, Floats, float], seed: int
) -> None:
    y, p, _, _ = sample
    rng = np.random.default_rng(seed)
    cut = int(rng.integers(1, len(y)))
    move = rng.choice([-1.0, 0.0, 1.0], len(y))
    rows = Rows(y, move, ((0, cut), (cut, len(y))), np.full(len(y), 0.5))
    ones = np.ones((1, len(y)))
    ours = metric_values(answers(rows, p), ones, ["roc_auc", "directional_auc"])
    for name, outcome, among in (
        ("roc_auc", y > 0, np.ones(len(y), dtype=bool)),
        ("directional_auc", move > 0, move != 0),
    ):
        total, mass = 0.0, 0
        for part in (slice(0, cut), slice(cut, len(y))):
            side, score = outcome[part][among[part]], p[part][among[part]]
            if len(set(side)) == 2:
                total += len(side) * sk.roc_auc_score(side, score)
                mass += len(side)
        expected = total / mass if mass else math.nan
        assert ours[name][0] == pytest.approx(expected, nan_ok=True)


def test_a_drifting_base_rate_earns_nothing() -> None:
    rng = np.random.default_rng(0)
    rates = np.repeat([0.1, 0.5, 0.9], 2000)
    y = (rng.random(6000) < rates).astype(float)
    spans = ((0, 2000), (2000, 4000), (4000, 6000))
    rows = Rows(y, 2 * y - 1, spans, rates)
    values = metric_values(answers(rows, rates), np.ones((1, 6000)), ["roc_auc"])
    assert values["roc_auc"][0] == pytest.approx(0.5)
    assert sk.roc_auc_score(y, rates) > 0.7


def test_brier_skill_compares_with_the_base_rate() -> None:
    y, p = np.array([1.0, 0, 0, 1]), np.array([0.9, 0.2, 0.4, 0.6])
    skill = evaluate(y, p, ["brier_skill"], base_rate=0.25)["brier_skill"]
    assert skill == pytest.approx(1 - np.mean((p - y) ** 2) / np.mean((0.25 - y) ** 2))
    assert evaluate(y, np.full(4, 0.25), ["brier_skill"], base_rate=0.25)["brier_skill"] == 0
    assert math.isnan(evaluate([0, 0], [0.1, 0.1], ["brier_skill"], base_rate=0)["brier_skill"])


def past_ranks_by_definition(p: Floats) -> Floats:
    return np.array(
        [
            (np.sum(p[: j + 1] < p[j]) + np.sum(p[: j + 1] == p[j]) / 2) / (j + 1) - 0.5
            for j in range(len(p))
        ]
    )


def past_ranked_by_definition(rows: Rows, p: Floats, drawn: Floats) -> float:
    """Take the definition row by row."""
    folds = [a + np.flatnonzero(rows.move[a:b]) for a, b in rows.spans]
    up = (rows.move > 0).astype(float)
    moved = sum(drawn[fold].sum() for fold in folds)
    ups = sum((drawn * up)[fold].sum() for fold in folds)
    if not moved or ups in (0, moved):
        return math.nan
    share, total, mass = ups / moved, 0.0, 0
    for fold in folds:
        own = drawn[fold].sum()
        if not own:
            continue
        others = moved - own + rows.elsewhere[1]
        expected = (ups - (drawn * up)[fold].sum() + rows.elsewhere[0]) / others if others else 0.5
        rank = past_ranks_by_definition(p[fold])
        covariance = (drawn[fold] * rank * (up[fold] - expected)).sum() / own
        total += len(fold) * covariance
        mass += len(fold)
    return 0.5 + total / mass / (share * (1 - share))


@settings(max_examples=60, deadline=None)
@given(judged_rows(), st.integers(0, 2**32 - 1), st.sampled_from([(0.0, 0.0), (30.0, 70.0)]))
def test_the_past_ranked_auc_is_its_definition(
    sample: tuple[Floats, Floats, Floats, float], seed: int, elsewhere: tuple[float, float]
) -> None:
    y, p, counts, _ = sample
    rng = np.random.default_rng(seed)
    cut, move = int(rng.integers(1, len(y))), rng.choice([-1.0, 0.0, 1.0], len(y))
    rows = Rows(y, move, ((0, cut), (cut, len(y))), np.full(len(y), 0.5), elsewhere)
    said = answers(rows, p)
    assert np.allclose(past_ranks(p), past_ranks_by_definition(p))
    weights = np.stack([np.ones(len(y)), counts])
    ours = metric_values(said, weights, [PAST_RANKED])[PAST_RANKED]
    for value, drawn in zip(ours, weights, strict=True):
        expected = past_ranked_by_definition(rows, p, drawn)
        assert value == pytest.approx(expected, nan_ok=True)


def test_no_later_row_can_change_a_past_rank() -> None:
    p = np.random.default_rng(1).random(200).round(2)
    for cut in (1, 50, 199):
        assert np.array_equal(past_ranks(p)[:cut], past_ranks(p[:cut]))


def test_the_past_ranked_auc_estimates_the_auc_where_scores_have_no_memory() -> None:
    rng = np.random.default_rng(2)
    spans = tuple((start, start + 4000) for start in range(0, 20000, 4000))
    score = rng.normal(size=20000)
    move = np.where(rng.normal(size=20000) + 0.5 * score > 0, 1.0, -1.0)
    rows = Rows((move > 0) * 1.0, move, spans, np.full(20000, 0.5))
    p = 1 / (1 + np.exp(-score))
    ones = np.ones((1, 20000))
    values = metric_values(answers(rows, p), ones, ["directional_auc", PAST_RANKED])
    assert values["directional_auc"][0] > 0.6
    assert values[PAST_RANKED][0] == pytest.approx(values["directional_auc"][0], abs=0.006)


@pytest.mark.parametrize("side", [-1, 1])
def test_on_random_walks_the_auc_of_the_price_level_is_biased_and_its_second_opinion_is_not(
    side: int,
) -> None:
    rng = np.random.default_rng(3)
    spans = tuple((start, start + 200) for start in range(0, 1000, 200))
    both = []
    for _ in range(120):
        steps = rng.choice([-1.0, 1.0], 1001)
        level = 0.5 + side * np.cumsum(steps)[:-1] / 5000
        rows = Rows((steps[1:] > 0) * 1.0, steps[1:], spans, np.full(1000, 0.5))
        metrics = ["directional_auc", PAST_RANKED]
        values = metric_values(answers(rows, level), np.ones((1, 1000)), metrics)
        both.append([values[name][0] for name in metrics])
    biased, unbiased = np.mean(both, axis=0)
    assert side * (biased - 0.5) < -0.04
    assert abs(unbiased - 0.5) < 3.5 * np.std(both, axis=0)[1] / math.sqrt(120)


def test_the_answer_is_yes_above_the_threshold_not_at_it() -> None:
    assert evaluate([1, 0], [0.5, 0.5], ["accuracy"])["accuracy"] == 0.5
    assert evaluate([1, 1], [0.5, 0.51], ["accuracy"])["accuracy"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([0, 1], [0.1, 1.2]), {}, "1 of 2 values are no probability, the first is 1.2 in row 1"),
        (([0, 1], [0.1, math.nan]), {}, "1 of 2 values are no probability, the first is nan"),
        (([0, 1], [0.1]), {}, "2 outcomes of .* and 1 probabilities"),
        (([], []), {}, "0 outcomes"),
        (([0, 2], [0.1, 0.2]), {}, r"outcomes of \[0.0, 2.0\]"),
        (([0, 1], [0.1, 0.2], ["roc_auk"]), {}, "did you mean 'roc_auc'"),
        (([0, 1], [0.1, 0.2], ["brier_skill"]), {}, "brier_skill needs base_rate"),
        (([0, 1], [0.1, 0.2], ["directional_auc"]), {}, "directional_auc needs move"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    arguments: tuple[object, ...], options: dict[str, object], message: str
) -> None:
    with pytest.raises(ScoreError, match=message):
        evaluate(*arguments, **options)  # type: ignore[arg-type]


def test_all_metrics_at_once() -> None:
    y = np.array([0, 1, 0, 1, 1])
    values = evaluate(y, [0.1, 0.8, 0.4, 0.3, 0.9], METRICS, move=2 * y - 1, base_rate=0.5)
    assert tuple(values) == METRICS
    assert values["roc_auc"] == values["directional_auc"] == 5 / 6
    nothing_moved = evaluate(y, y * 1.0, ["directional_auc"], move=np.zeros(5))
    assert math.isnan(nothing_moved["directional_auc"])


def test_compiled_passes_are_the_same_lines_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    y, p = rng.integers(0, 2, 80).astype(float), rng.random(80).round(2)
    weights = rng.multinomial(80, np.full(80, 1 / 80), size=3).astype(float)
    weights[2] *= y  # one class only
    ranking = metrics.ranking_of(y, p, np.arange(80))
    columns = np.ascontiguousarray(weights.T)
    compiled = metrics._ranked_scores(columns, *ranking)
    for part in ("_count_tie", "_defined"):
        monkeypatch.setattr(metrics, part, getattr(metrics, part).py_func)
    plain = metrics._ranked_scores.py_func(columns, *ranking)
    assert np.isnan(compiled[:, 2]).all()
    assert compiled == pytest.approx(plain, nan_ok=True)
    places = np.unique(p, return_inverse=True)[1]
    ranks = metrics._ranks_so_far(places, 81)
    assert np.array_equal(ranks, metrics._ranks_so_far.py_func(places, 81))
