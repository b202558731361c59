"""Scores: the resamples are stationary bootstraps within folds, and the intervals cover."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from arch.bootstrap import StationaryBootstrap, optimal_block_length
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from crypto_ml import resampling, scores
from crypto_ml.metrics import METRICS, PAST_RANKED, Floats, evaluate
from crypto_ml.scores import (
    Score,
    block_length,
    edge_captured,
    fold_scores,
    interval,
    paired_difference,
    resample_counts,
    resampled_scores,
    score_of,
    score_table,
    select_rows,
)
from crypto_ml.settings import ScoreError


def predictions(rows: int = 600, folds: int = 3, seed: int = 0, edge: float = 0.5) -> pd.DataFrame:
    """Out-of-fold rows of some folds and a holdout of the same size as each."""
    rng = np.random.default_rng(seed)
    index = pd.date_range("2024-01-01", periods=rows, freq="h", tz="UTC", name="timestamp")
    score = rng.normal(size=rows)
    ret = rng.normal(size=rows) + edge * score
    move = np.where(np.abs(ret) > 0.5, np.sign(ret), 0)
    fold = np.arange(rows) * (folds + 1) // rows
    return pd.DataFrame(
        {
            "fold": fold.astype("int8"),
            "split": np.where(fold == folds, "holdout", "out_of_fold"),
            "y": (move > 0).astype("int8"),
            "move": move.astype("int8"),
            "skilled": 1 / (1 + np.exp(-score)),
            "blind": rng.random(rows),
            "majority": 0.3,
        },
        index=index,
    )


def test_the_table_holds_the_plain_metrics_of_the_rows_of_its_split() -> None:
    table = predictions()
    result = score_table(table, ["skilled", "majority"], resamples=50)
    assert list(result.columns) == ["predictor", "metric", "value", "low", "high", "rows"]
    assert list(zip(result["predictor"], result["metric"], strict=True)) == [
        (name, metric) for name in ("skilled", "majority") for metric in METRICS
    ]
    outside = table[table["split"] == "out_of_fold"]
    plain = evaluate(outside["y"], outside["skilled"], METRICS, move=outside["move"], base_rate=0.3)
    ours = result[result["predictor"] == "skilled"].set_index("metric")
    ranked = {"roc_auc", "average_precision", "directional_auc"}
    for metric in set(METRICS) - ranked:
        assert ours.loc[metric, "value"] == pytest.approx(plain[metric])
    by_fold = [roc_auc_score(part["y"], part["skilled"]) for _, part in outside.groupby("fold")]
    assert ours.loc["roc_auc", "value"] == pytest.approx(np.mean(by_fold))
    assert (result["low"] <= result["value"]).all()
    assert (result["value"] <= result["high"]).all()
    moved = int((outside["move"] != 0).sum())
    assert ours.loc["directional_auc", "rows"] == moved < len(outside)
    assert (ours.drop("directional_auc")["rows"] == len(outside)).all()


def test_scores_are_the_same_every_time_and_change_with_the_seed() -> None:
    table = predictions()
    first, again = (score_table(table, ["skilled"], resamples=40, seed=3) for _ in range(2))
    pd.testing.assert_frame_equal(first, again)
    other = score_table(table, ["skilled"], resamples=40, seed=4)
    assert first["value"].equals(other["value"])
    assert not first["low"].equals(other["low"])


def test_a_score_does_not_depend_on_which_other_predictors_are_asked_for() -> None:
    table = predictions()
    alone = score_table(table, ["skilled"], resamples=60)
    together = score_table(table, ["blind", "skilled"], resamples=60)
    part = together[together["predictor"] == "skilled"].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, part)
    one = score_table(table, ["skilled"], metrics=["mcc", "directional_auc"], resamples=60)
    joined = one.merge(alone, on=["predictor", "metric"], suffixes=("", "_all"))
    assert joined["low"].equals(joined["low_all"])
    assert joined["high"].equals(joined["high_all"])


def test_chunks_of_resamples_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    table = predictions()
    whole = score_table(table, ["skilled"], resamples=50)
    monkeypatch.setattr(resampling, "CHUNK", 2000)  # four resamples at a time
    pieces = score_table(table, ["skilled"], resamples=50)
    pd.testing.assert_frame_equal(whole, pieces, rtol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    block=st.floats(1.0, 12.0),
    resamples=st.integers(1, 30),
    seed=st.integers(0, 1000),
)
def test_resamples_are_those_of_arch_and_stay_within_their_fold(
    sizes: list[int], block: float, resamples: int, seed: int
) -> None:
    edges = np.concatenate([[0], np.cumsum(sizes)]).tolist()
    spans = list(pairwise(edges))
    counts = np.concatenate(list(resample_counts(spans, block, resamples, seed)))
    assert counts.shape == (resamples, edges[-1])
    for start, stop in spans:
        part = counts[:, start:stop]
        assert (part.sum(axis=1) == stop - start).all()
        generator = np.random.default_rng([seed, start])
        theirs = StationaryBootstrap(block, np.arange(stop - start), seed=generator)  # type: ignore[arg-type]
        for row, (drawn, _) in zip(part, theirs.bootstrap(resamples), strict=True):
            assert np.array_equal(row, np.bincount(drawn[0], minlength=stop - start))


def test_block_lengths_are_chosen_from_the_data() -> None:
    rng = np.random.default_rng(0)
    white = rng.normal(size=3000)
    slow = np.convolve(rng.normal(size=3100), np.ones(40) / 40)[:3000]
    assert block_length(white, 1000) < 5
    assert 20 < block_length(slow, 1000) < 300
    assert block_length(slow, 10) == 10
    assert block_length(np.ones(100), 50) == block_length(white[:7], 50) == 1
    assert block_length(white[:20], 0.3) == 1


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(16, 900),
    memory=st.floats(-0.95, 0.99),
    digits=st.integers(0, 6),
    seed=st.integers(0, 1000),
)
def test_block_lengths_are_those_of_arch(rows: int, memory: float, digits: int, seed: int) -> None:
    shocks = np.random.default_rng(seed).normal(size=rows)
    series = np.array([0.0] * rows)
    for row in range(1, rows):
        series[row] = memory * series[row - 1] + shocks[row]
    series = series.round(digits)
    assume(np.ptp(series) > 0)
    with np.errstate(all="ignore"):
        theirs = float(optimal_block_length(series)["stationary"].iloc[0])
    assume(math.isfinite(theirs))
    assert block_length(series, math.inf) == pytest.approx(max(1.0, theirs), rel=1e-9)


def test_compiled_counts_are_those_of_the_same_lines_in_python() -> None:
    rng = np.random.default_rng(3)
    starts, turns = rng.integers(50, size=50), rng.random(50)
    compiled, plain = np.zeros(50), np.zeros(50)
    resampling._count_blocks(starts, turns, 0.2, compiled)
    resampling._count_blocks.py_func(starts, turns, 0.2, plain)
    assert np.array_equal(compiled, plain) and plain.sum() == 50


def walk(length: int, seed: int, stay: float) -> Floats:
    """Draw outcomes that stay as they are with some probability: dependent, with mean one half."""
    rng = np.random.default_rng(seed)
    turns = rng.random(length) > stay
    return ((np.cumsum(turns) + rng.integers(2)) % 2).astype(float)


def covered(stay: float, markets: int) -> float:
    hits = 0
    for seed in range(markets):
        y = walk(1500, seed, stay)
        table = pd.DataFrame({"fold": np.arange(1500) // 500, "split": "out_of_fold", "y": y})
        table = table.assign(move=2 * y - 1, yes=1.0)
        row = score_table(table, ["yes"], metrics=["accuracy"], resamples=150).iloc[0]
        hits += row["low"] <= 0.5 <= row["high"]
    return hits / markets


def test_intervals_cover_where_outcomes_are_independent_and_where_they_cluster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert covered(0.5, 60) > 0.88
    assert covered(0.8, 60) > 0.84
    monkeypatch.setattr(scores, "block_length", lambda series, longest: 1.0)
    assert covered(0.8, 60) < 0.8  # without blocks the clusters are overlooked


def level_on_random_walks(walks: int) -> tuple[float, float]:
    """Count how often the price level beats a random walk, by the AUC alone and as judged."""
    alone = judged = 0
    for seed in range(walks):
        steps = np.random.default_rng(seed).choice([-1, 1], 1501)
        price = np.cumsum(steps)[:-1]
        table = pd.DataFrame({"fold": np.arange(1500) // 300, "split": "out_of_fold"})
        table = table.assign(y=steps[1:] > 0, move=steps[1:], p=0.5 - price / 10000)
        rows, chances = select_rows(table, ["p"])
        draws = resampled_scores(rows, chances, ["directional_auc"], resamples=200)
        own = {metric: values for (_, metric), values in draws.items()}
        alone += interval("", own["directional_auc"]).low > 0.5
        judged += score_of("directional_auc", own).low > 0.5
    return alone / walks, judged / walks


def test_a_score_that_follows_the_price_does_not_beat_a_random_walk() -> None:
    alone, judged = level_on_random_walks(100)
    assert alone > 0.7
    assert judged <= 0.06


def test_the_directional_interval_covers_both_opinions() -> None:
    rows, chances = select_rows(predictions(), ["skilled"])
    draws = resampled_scores(rows, chances, ["directional_auc"], resamples=200)
    own = {metric: values for (_, metric), values in draws.items()}
    both = [interval("", own[name]) for name in ("directional_auc", PAST_RANKED)]
    score = score_of("directional_auc", own)
    assert score.value == both[0].value
    assert score.low == min(part.low for part in both)
    assert score.high == max(part.high for part in both)
    undefined = {**own, PAST_RANKED: np.full(201, math.nan)}
    assert math.isnan(score_of("directional_auc", undefined).low)


def test_the_interval_is_bias_corrected() -> None:
    rng = np.random.default_rng(0)
    centred = interval("x", np.concatenate([[0.0], rng.normal(size=20000)]))
    assert (centred.low, centred.high) == pytest.approx((-1.96, 1.96), abs=0.06)
    # replicates one half too high: the interval moves down by as much again
    high = interval("x", np.concatenate([[0.0], 0.5 + rng.normal(size=20000)]))
    assert (high.low, high.high) == pytest.approx((-2.46, 1.46), abs=0.12)
    narrow = interval("x", np.concatenate([[0.0], rng.normal(size=20000)]), confidence=0.5)
    assert narrow.high == pytest.approx(0.674, abs=0.05)
    above = interval("x", np.concatenate([[0.0], 10 + rng.random(500)]))
    assert above.low <= above.value <= above.high


@pytest.mark.parametrize(
    "draws",
    [[math.nan, 1.0, 2.0, 3.0], [1.0], [1.0, math.nan, math.nan, 2.0], [math.nan] * 4],
)
def test_what_is_not_defined_has_no_interval(draws: list[float]) -> None:
    score = interval("x", np.array(draws))
    assert math.isnan(score.low)
    assert math.isnan(score.high)


def test_the_calibration_interval_reaches_down_for_its_noise_but_not_below_zero() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(0.1, 0.9, 2000)
    table = pd.DataFrame({"fold": 0, "split": "out_of_fold", "y": rng.random(2000) < p})
    table = table.assign(move=0, right=p, wrong=p**3)
    result = score_table(table, ["right", "wrong"], metrics=["calibration_error"], resamples=300)
    right, wrong = result.to_dict("records")
    assert right["low"] == 0 < right["value"] < 0.04
    assert 0.1 < wrong["low"] < np.abs(p - p**3).mean() < wrong["high"] < 0.4


def test_differences_are_taken_on_shared_resamples() -> None:
    table = predictions(rows=2400)
    table["shifted"] = table["skilled"] * 0.999
    same = paired_difference(table, "skilled", "skilled", "macro_f1", resamples=30)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    nearly = paired_difference(table, "skilled", "shifted", "log_loss", resamples=200)
    losses = score_table(table, ["skilled", "shifted"], metrics=["log_loss"], resamples=200)
    width = (losses["high"] - losses["low"]).min()
    assert nearly.high - nearly.low < width / 20
    better = paired_difference(table, "skilled", "blind", "directional_auc", resamples=200)
    assert 0 < better.low < better.value < better.high
    assert better.name == "directional_auc: skilled - blind"
    worse = paired_difference(table, "blind", "skilled", "directional_auc", resamples=200)
    assert worse.value == pytest.approx(-better.value)


def test_majority_gives_its_class_whatever_the_threshold() -> None:
    table = predictions()
    strict = score_table(
        table, ["majority", "skilled"], metrics=["accuracy"], resamples=0, decision_threshold=0.2
    ).set_index("predictor")["value"]
    outside = table[table["split"] == "out_of_fold"]
    assert strict["majority"] == pytest.approx((outside["y"] == 0).mean())
    assert strict["skilled"] == pytest.approx(((outside["skilled"] > 0.2) == outside["y"]).mean())


def test_every_fold_by_itself() -> None:
    table = predictions()
    result = fold_scores(table, ["skilled"], metrics=["roc_auc", "accuracy"], resamples=0)
    assert list(result.columns[:3]) == ["fold", "predictor", "metric"]
    assert result["low"].isna().all()
    for fold, part in table[table["split"] == "out_of_fold"].groupby("fold"):
        own = result[result["fold"] == fold].set_index("metric")["value"]
        assert own["roc_auc"] == pytest.approx(roc_auc_score(part["y"], part["skilled"]))
    held = fold_scores(table, ["skilled"], split="holdout", metrics=["accuracy"], resamples=20)
    assert held["fold"].tolist() == [3]
    assert held["low"].notna().all()


def test_the_share_of_ups_expected_elsewhere_never_comes_from_the_holdout() -> None:
    table = predictions()
    holdout = table["split"] == "holdout"
    outside = table[~holdout]
    whole, _ = select_rows(table, ["skilled"])
    assert whole.elsewhere == (0, 0)
    held, _ = select_rows(table, ["skilled"], "holdout")
    assert held.elsewhere == ((outside["move"] > 0).sum(), (outside["move"] != 0).sum())
    one, _ = select_rows(table, ["skilled"], fold=1)
    others = outside[outside["fold"] != 1]
    assert one.elsewhere == ((others["move"] > 0).sum(), (others["move"] != 0).sum())
    assert len(one) == (outside["fold"] == 1).sum()


def test_share_of_the_attainable_edge() -> None:
    half = edge_captured(Score("auc", 0.52, 0.50, 0.54), 0.5, 0.54)
    assert (half.value, half.low, half.high) == pytest.approx((0.5, 0.0, 1.0))
    loss = edge_captured(Score("log_loss", 0.69, 0.68, 0.70), 0.70, 0.66)
    assert (loss.value, loss.low, loss.high) == pytest.approx((0.25, 0.0, 0.5))
    assert math.isnan(edge_captured(Score("auc", 0.52, 0.5, 0.54), 0.5, 0.5).value)


def test_a_score_in_words_and_in_json() -> None:
    assert str(Score("auc", 0.5123, 0.4, 0.6)) == "0.512 [0.400, 0.600]"
    assert Score("auc", 0.5, math.nan, math.inf).to_dict() == {
        "name": "auc",
        "value": 0.5,
        "low": None,
        "high": None,
    }


def test_one_outcome_only_gives_no_number_and_no_error() -> None:
    table = predictions().assign(y=0, move=0)
    result = score_table(table, ["skilled"], resamples=20).set_index("metric")
    for metric in ("roc_auc", "average_precision", "directional_auc"):
        assert result.loc[metric, ["value", "low", "high"]].isna().all()
    assert np.isfinite(result.loc["accuracy", "low"])
    # a fold with one outcome only is left out of the mean
    partly = predictions()
    partly.loc[partly["fold"] == 0, ["y", "move"]] = 0
    rest = partly[partly["fold"] != 0]
    for metric in ("roc_auc", "directional_auc"):
        a, b = (
            score_table(part, ["skilled"], metrics=[metric], resamples=0)["value"].iloc[0]
            for part in (partly, rest)
        )
        assert a == pytest.approx(b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns=["fold", "skilled"]), "lack the columns fold, skilled"),
        (lambda t: t[t["split"] == "holdout"], "no rows of split 'out_of_fold'.*holdout"),
        (lambda t: t.iloc[:0], "no rows of split 'out_of_fold'.*none at all"),
        (lambda t: t.iloc[::-1], "not in time order"),
        (lambda t: t.assign(fold=2 - t["fold"]), "not in time order"),
        (lambda t: t.assign(y=t["y"] + 1), "y is 2 in a row"),
        (lambda t: t.assign(move=t["move"] * 0.5), r"move is -?0.5 in a row"),
        (lambda t: t.assign(skilled=np.nan), "skilled: 450 of 450 values are no probability"),
        (lambda t: t.drop(columns="majority"), "brier_skill compares with the training base rate"),
    ],
)
def test_predictions_that_cannot_be_scored_are_refused(change: object, message: str) -> None:
    with pytest.raises(ScoreError, match=message):
        score_table(change(predictions()), ["skilled"], resamples=0)  # type: ignore[operator]


def test_an_unknown_metric_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ScoreError, match="did you mean 'log_loss'"):
        score_table(predictions(), ["skilled"], metrics=["logloss"], resamples=0)
