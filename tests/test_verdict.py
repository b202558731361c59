"""Verdict: the rule is the declared one, and what is said follows from the numbers."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

import crypto_ml
from crypto_ml import verdict as module
from crypto_ml.scores import Score, paired_difference, score_table
from crypto_ml.settings import ScoreError
from crypto_ml.verdict import EDGE, NO_EVIDENCE, WORSE, decide, minimum_detectable_edge, verdict

OPTIONS = {"resamples": 200}


def predictions(rows: int = 3000, edge: float = 0.4, seed: int = 0) -> pd.DataFrame:
    """Five folds and a holdout; big moves cluster, the direction leans by `edge` of a deviation."""
    rng = np.random.default_rng(seed)
    score, size = rng.normal(size=rows), np.exp(0.8 * rng.normal(size=rows))
    ret = size * (rng.normal(size=rows) + edge * score)
    move = np.where(np.abs(ret) > 1, np.sign(ret), 0)
    fold = np.arange(rows) * 6 // rows
    y = (move > 0).astype(int)
    return pd.DataFrame(
        {
            "fold": fold,
            "split": np.where(fold == 5, "holdout", "out_of_fold"),
            "y": y,
            "move": move,
            "ensemble": 1 / (1 + np.exp(-(score * np.sign(edge or 1) + 2 * np.log(size) - 1))),
            "persistence": np.concatenate([[0], y[:-1]]),
            "volatility_only": 1 / (1 + np.exp(1 - 2 * np.log(size))),
        },
        index=pd.date_range("2024-01-01", periods=rows, freq="h", tz="UTC"),
    )


finite = st.floats(0.0, 1.0)


@given(finite, finite, finite, st.floats(-0.5, 0.5), st.integers(0, 100))
def test_the_rule(a: float, b: float, c: float, ahead: float, moves: int) -> None:
    low, value, high = sorted((a, b, c))
    outcome = decide(Score("", value, low, high), ahead, moves)
    if moves < 30:
        assert outcome == NO_EVIDENCE
    elif low > 0.5 and ahead >= 0:
        assert outcome == EDGE
    elif high < 0.5:
        assert outcome == WORSE
    else:
        assert outcome == NO_EVIDENCE


def test_bounds_at_one_half_and_numbers_that_are_not_defined_are_no_evidence() -> None:
    nan = math.nan
    for low, high, ahead in ((0.5, 0.6, 0.1), (0.4, 0.5, 0.1), (0.6, 0.7, nan), (nan, nan, nan)):
        assert decide(Score("", 0.5, low, high), ahead, 100) == NO_EVIDENCE
    assert decide(Score("", 0.6, 0.51, 0.7), 0.0, 30) == EDGE


def test_the_numbers_are_those_of_the_scores() -> None:
    table = predictions()
    judged = verdict(table, **OPTIONS)
    outside = table[table["split"] == "out_of_fold"]
    moved = outside[outside["move"] != 0]
    folds = [
        (len(part), roc_auc_score(part["move"] > 0, part["ensemble"]))
        for _, part in moved.groupby("fold")
    ]
    expected = sum(n * auc for n, auc in folds) / len(moved)
    assert judged.statistic.value == pytest.approx(expected)
    row = score_table(table, ["ensemble"], metrics=["directional_auc"], **OPTIONS).iloc[0]
    assert (judged.statistic.low, judged.statistic.high) == (row["low"], row["high"])
    names = ["ensemble", "persistence"]
    difference = paired_difference(table, *names, "directional_auc", **OPTIONS)
    assert judged.persistence_difference.value == pytest.approx(difference.value)
    assert judged.persistence_difference.low == pytest.approx(difference.low)
    assert (judged.rows, judged.moves) == (len(outside), len(moved))
    assert (judged.ups, judged.downs) == ((moved["move"] > 0).sum(), (moved["move"] < 0).sum())
    assert judged.statistic.low <= judged.past_ranked.low
    share = (judged.volatility_auc.value - 0.5) / (judged.label_auc.value - 0.5)
    assert judged.volatility_share == pytest.approx(share)
    held = table[(table["split"] == "holdout") & (table["move"] != 0)]
    assert judged.holdout is not None
    assert judged.holdout.value == pytest.approx(roc_auc_score(held["move"] > 0, held["ensemble"]))


def test_an_edge_is_found_and_its_mirror_image_is_worse_than_chance() -> None:
    found = verdict(predictions(), **OPTIONS)
    assert (found.outcome, found.holdout_agrees) == (EDGE, True)
    assert found.sentence.startswith("Edge: of two rows that moved")
    assert f"directional AUC {found.statistic.value:.3f}" in found.sentence
    assert "Four in five samples" in found.sentence
    assert "volatility alone reaches" in found.sentence
    assert "The holdout, scored once, agrees" in found.sentence
    mirrored = predictions()
    mirrored["ensemble"] = 1 - mirrored["ensemble"]
    worse = verdict(mirrored, **OPTIONS)
    assert (worse.outcome, worse.holdout_agrees) == (WORSE, True)
    assert worse.statistic.value == pytest.approx(1 - found.statistic.value)
    assert worse.volatility_share is None


def test_volatility_alone_is_no_edge_however_well_it_predicts_the_label() -> None:
    table = predictions(edge=0.0)
    judged = verdict(table, predictor="volatility_only", **OPTIONS)
    assert judged.label_auc.low > 0.7
    assert judged.outcome == NO_EVIDENCE
    assert judged.volatility_share == 1
    assert "100% of what is above 0.5" in judged.sentence


def test_no_better_than_persistence_is_no_edge() -> None:
    table = predictions()
    table["persistence"] = (table["move"] > 0) * 1.0  # as if it knew
    judged = verdict(table, **OPTIONS)
    assert judged.statistic.low > 0.5
    assert judged.outcome == NO_EVIDENCE
    assert "repeating the last known outcome does better by" in judged.sentence
    as_good = predictions()
    as_good["persistence"] = as_good["ensemble"]
    equal = verdict(as_good, **OPTIONS)
    assert equal.persistence_difference.value == 0
    assert equal.outcome == EDGE


def test_following_the_price_is_no_edge_and_the_sentence_says_why() -> None:
    steps = np.random.default_rng(9).choice([-1, 1], 3001)
    table = predictions(3000)
    table["move"], table["y"] = steps[1:], (steps[1:] > 0).astype(int)
    table["ensemble"] = 0.5 - np.cumsum(steps)[:-1] / 10000
    judged = verdict(table, **OPTIONS)
    assert judged.statistic.value > 0.52
    assert judged.outcome == NO_EVIDENCE
    assert "ranked against earlier scores only it is" in judged.sentence
    assert "For the label itself" not in judged.sentence  # it is the statistic itself


@pytest.mark.parametrize(("ups", "downs"), [(29, 400), (400, 29), (0, 0), (3, 0)])
def test_too_few_moves_are_an_answer_and_no_error(ups: int, downs: int) -> None:
    table = predictions()
    move = np.zeros(len(table))
    moved = np.random.default_rng(0).choice(2500, ups + downs, replace=False)
    move[moved[:ups]], move[moved[ups:]] = 1, -1
    knowing = table.assign(move=move, y=move > 0, ensemble=0.5 + 0.4 * move)
    judged = verdict(knowing, **OPTIONS)
    assert judged.outcome == NO_EVIDENCE
    assert f"only {ups} of 2,500 rows went up beyond the threshold and {downs}" in judged.sentence
    json.dumps(judged.to_dict(), allow_nan=False)


def test_moves_that_never_share_a_fold_cannot_be_compared() -> None:
    table = predictions()
    move = np.where(table["fold"] % 2 == 0, 1, -1)
    judged = verdict(table.assign(move=move, y=move > 0), **OPTIONS)
    assert judged.outcome == NO_EVIDENCE
    assert "no fold had moves both ways" in judged.sentence
    assert math.isnan(judged.minimum_detectable_edge)
    assert judged.holdout_agrees is None


def test_the_holdout_takes_no_part_in_the_outcome() -> None:
    table = predictions()
    held = table["split"] == "holdout"
    turned = table.assign(ensemble=table["ensemble"].where(~held, 1 - table["ensemble"]))
    judged, contradicted = verdict(table, **OPTIONS), verdict(turned, **OPTIONS)
    assert contradicted.statistic == judged.statistic
    assert contradicted.outcome == EDGE
    assert contradicted.holdout_agrees is False
    assert "does not agree" in contradicted.sentence
    alone = verdict(table[~held], **OPTIONS)
    assert alone.statistic == judged.statistic
    assert (alone.holdout, alone.holdout_agrees) == (None, None)
    on_holdout = verdict(table, split="holdout", **OPTIONS)
    assert on_holdout.statistic == judged.holdout
    assert on_holdout.holdout is None


def test_no_evidence_agrees_with_a_holdout_that_cannot_tell_either() -> None:
    judged = verdict(predictions(edge=0.0), **OPTIONS)
    assert judged.outcome == NO_EVIDENCE
    assert judged.holdout is not None
    assert judged.holdout_agrees is (judged.holdout.low <= 0.5 <= judged.holdout.high)


def test_the_minimum_detectable_edge_is_found_in_four_of_five_samples() -> None:
    rng, found, folds = np.random.default_rng(0), 0, np.repeat(np.arange(4), 250)
    frame = pd.DataFrame({"fold": folds, "split": "out_of_fold"})
    move = rng.choice([-1, 1], 1000)
    coin = frame.assign(move=move, y=move > 0, ensemble=rng.random(1000))
    size = minimum_detectable_edge(coin, resamples=100)
    assert size.accuracy == pytest.approx(2.8 * 0.5 / math.sqrt(1000), rel=0.1)
    # two normal scores d apart have an AUC of Phi(d / sqrt 2)
    apart = size.directional_auc * 2 * math.sqrt(math.pi)
    for _ in range(60):
        move = rng.choice([-1, 1], 1000)
        score = rng.normal(size=1000) + apart * (move > 0)
        table = frame.assign(move=move, y=move > 0, ensemble=1 / (1 + np.exp(-score)))
        rows = score_table(table, ["ensemble"], metrics=["directional_auc"], resamples=100)
        found += rows["low"].iloc[0] > 0.5
    assert 0.62 < found / 60 < 0.93


def test_clustered_moves_make_the_detectable_edge_larger() -> None:
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({"fold": np.repeat([0, 1], 600), "split": "out_of_fold"})
    runs = np.repeat(rng.choice([-1, 1], 60), 20)  # outcomes over 20 bars overlap
    slow = np.repeat(rng.random(60), 20)
    clustered = minimum_detectable_edge(frame.assign(move=runs, y=runs > 0, ensemble=slow))
    mixed = rng.permutation(runs)
    shuffled = minimum_detectable_edge(
        frame.assign(move=mixed, y=mixed > 0, ensemble=rng.random(1200))
    )
    assert clustered.directional_auc > 2 * shuffled.directional_auc
    assert clustered.accuracy > 2 * shuffled.accuracy


def test_verdicts_are_the_same_every_time_and_fit_into_json() -> None:
    table = predictions(1200)
    first, again = verdict(table, **OPTIONS), verdict(table, **OPTIONS)
    assert first == again
    plain = json.loads(json.dumps(first.to_dict(), allow_nan=False))
    assert plain["outcome"] == first.outcome
    assert plain["statistic"]["low"] == first.statistic.low
    assert plain["holdout"]["value"] == first.holdout.value  # type: ignore[union-attr]


def test_missing_baselines_are_an_error() -> None:
    with pytest.raises(ScoreError, match="lack the columns persistence, volatility_only"):
        verdict(predictions().drop(columns=["persistence", "volatility_only"]))


def test_the_cost_verdict_can_be_imported_from_here() -> None:
    assert module.cost_verdict is crypto_ml.costs.cost_verdict
