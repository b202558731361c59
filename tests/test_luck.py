"""Luck: the papers' own figures, a plain loop beside the fast one, noise beside skill."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kurtosis, norm, skew

from crypto_ml.errors import ScoreError
from crypto_ml.luck import (
    SharpeRatio,
    corrected_confidence,
    corrected_verdict,
    deflated_sharpe_ratio,
    effective_trials,
    expected_maximum_sharpe,
    minimum_track_record_length,
    probabilistic_sharpe_ratio,
    probability_of_backtest_overfitting,
    sharpe_ratio,
    widened,
)
from crypto_ml.luck_report import (
    LuckSummary,
    candidate_returns,
    luck_summary,
    sharpe_variance,
    strategy_returns,
)
from crypto_ml.scores import Score
from crypto_ml.verdict import Verdict, verdict

FUND = SharpeRatio(0.458, 24, -2.448, 10.164)
FOUND = SharpeRatio(2.5 / math.sqrt(250), 1250, -3.0, 10.0)

JUDGED = Verdict(
    outcome="edge",
    statistic=Score("directional_auc", 0.530, 0.508, 0.552),
    past_ranked=Score("past_ranked_auc", 0.528, 0.507, 0.549),
    rows=5600,
    moves=3000,
    ups=1500,
    downs=1500,
    minimum_detectable_edge=0.03,
    minimum_detectable_accuracy=0.03,
    persistence_difference=Score("directional_auc", 0.02, 0.0, 0.04),
    label_auc=Score("roc_auc", 0.55, 0.53, 0.57),
    volatility_auc=Score("roc_auc", 0.54, 0.52, 0.56),
    volatility_share=0.8,
)


# Sharpe ratios


def test_the_sharpe_ratio_efficient_frontier_s_figures() -> None:
    """Bailey and López de Prado 2012: a hedge fund's 24 months, and lengths of track records."""
    assert probabilistic_sharpe_ratio(SharpeRatio(0.458, 24)) == pytest.approx(0.982, abs=5e-4)
    assert probabilistic_sharpe_ratio(FUND) == pytest.approx(0.913, abs=5e-4)
    for year, years in ((250, 2.73), (52, 2.83), (12, 3.24)):
        two = SharpeRatio(2 / math.sqrt(year), 10)
        needed = minimum_track_record_length(two, 1 / math.sqrt(year)) / year
        assert needed == pytest.approx(years, abs=5e-3)
    tails = SharpeRatio(2 / math.sqrt(12), 10, -0.72, 5.78)
    assert minimum_track_record_length(tails, 1 / math.sqrt(12)) / 12 == pytest.approx(
        4.99, abs=5e-3
    )


def test_the_deflated_sharpe_ratio_s_worked_example() -> None:
    """Bailey and López de Prado 2014: 100 trials, yearly variance 1/2, 1,250 days."""
    variance = 0.5 / 250
    assert expected_maximum_sharpe(100, variance) == pytest.approx(0.1132, abs=5e-5)
    assert deflated_sharpe_ratio(FOUND, 100, variance) == pytest.approx(0.9004, abs=5e-5)
    assert deflated_sharpe_ratio(FOUND, 46, variance) == pytest.approx(0.9505, abs=5e-5)
    normal = replace(FOUND, skewness=0.0, kurtosis=3.0)
    assert deflated_sharpe_ratio(normal, 88, variance) == pytest.approx(0.9505, abs=5e-5)


@pytest.mark.parametrize("trials", [5, 20, 100, 1000])
def test_the_luckiest_is_what_a_simulation_finds(trials: int) -> None:
    best = np.random.default_rng(trials).normal(0, 0.1, (4000, trials)).max(axis=1)
    expected = expected_maximum_sharpe(trials, 0.01)
    assert expected == pytest.approx(best.mean(), rel=0.03 if trials > 5 else 0.06)


@given(st.floats(-0.3, 0.3), st.integers(10, 5000), st.floats(-1, 1), st.floats(2.5, 12))
def test_probabilities_and_lengths_agree(
    value: float, periods: int, skewness: float, tails: float
) -> None:
    sharpe = SharpeRatio(value, periods, skewness, tails)
    sure = probabilistic_sharpe_ratio(sharpe)
    assert 0 <= sure <= 1
    assert probabilistic_sharpe_ratio(sharpe, value) == pytest.approx(0.5)
    needed = minimum_track_record_length(sharpe)
    if value > 0.01 and 0.55 < sure < 0.999999:
        assert (periods >= needed) == (sure >= 0.95) or sure == pytest.approx(0.95)
        assert minimum_track_record_length(sharpe, confidence=sure) == pytest.approx(periods)
    if value <= 0:
        assert needed == math.inf


@given(st.floats(1, 1e6), st.floats(1, 1e6), st.floats(0, 1))
def test_more_trials_never_help(a: float, b: float, variance: float) -> None:
    fewer, more = sorted((a, b))
    assert (
        expected_maximum_sharpe(fewer, variance) <= expected_maximum_sharpe(more, variance) + 1e-9
    )
    first, second = (deflated_sharpe_ratio(FOUND, n, variance) for n in (fewer, more))
    assert second <= first + 1e-9
    assert deflated_sharpe_ratio(FOUND, 1, variance) == probabilistic_sharpe_ratio(FOUND)


def test_moments_are_scipy_s() -> None:
    returns = np.random.default_rng(0).standard_t(5, 500) / 100 + 0.0005
    found = sharpe_ratio(returns)
    assert found.value == pytest.approx(returns.mean() / returns.std(ddof=1))
    assert found.skewness == pytest.approx(skew(returns))
    assert found.kurtosis == pytest.approx(kurtosis(returns, fisher=False))
    assert sharpe_ratio(np.full(9, 0.01)).value == 0


def test_the_probability_holds_in_simulation() -> None:
    """Of fat-tailed samples with a true Sharpe ratio of 0.1, 90 % bounds hold in about 90 %."""
    rng = np.random.default_rng(3)
    draws = rng.standard_t(6, (1500, 400)) / math.sqrt(1.5) + 0.1
    held = [probabilistic_sharpe_ratio(sharpe_ratio(row), 0.1) < 0.9 for row in draws]
    assert np.mean(held) == pytest.approx(0.9, abs=0.025)


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (lambda: sharpe_ratio([0.1]), "two or more"),
        (lambda: sharpe_ratio([0.1, math.nan]), "not finite"),
        (lambda: expected_maximum_sharpe(0.5, 1), "0.5 trials"),
        (lambda: expected_maximum_sharpe(math.inf, 1), "trials"),
        (lambda: expected_maximum_sharpe(5, -1), "variance"),
        (lambda: corrected_confidence(0, 5), "confidence"),
        (lambda: corrected_confidence(0.9, 0), "trials"),
        (lambda: effective_trials(np.zeros(5)), "shape"),
        (lambda: probability_of_backtest_overfitting(np.zeros((100, 1))), "strategies"),
        (lambda: probability_of_backtest_overfitting(np.zeros((100, 3)), 7), "even"),
        (lambda: probability_of_backtest_overfitting(np.zeros((31, 3))), "31 periods"),
        (lambda: probability_of_backtest_overfitting([[0, math.nan]] * 40), "strategy 1 in per"),
    ],
)
def test_nonsense_is_refused(action, words) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ScoreError, match=words):
        action()


# Trials that resemble each other


@pytest.mark.parametrize(("r", "count"), [(0.0, 40.0), (0.3, 28.3), (0.9, 4.9), (1.0, 1.0)])
def test_effective_trials_is_between_one_and_all(r: float, count: float) -> None:
    rng = np.random.default_rng(0)
    common, own = rng.normal(size=(20_000, 1)), rng.normal(size=(20_000, 40))
    found = effective_trials(math.sqrt(r) * common + math.sqrt(1 - r) * own)
    assert found == pytest.approx(count, abs=0.7)


def test_effective_trials_of_few() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(size=(50, 1))
    assert effective_trials(one) == 1
    assert effective_trials(np.hstack([one, np.zeros((50, 3))])) == 1
    assert effective_trials(np.hstack([one, -one])) == 2  # opposites are no fewer than two


def test_observed_variance_or_effective_number_but_not_both() -> None:
    """Both ways of allowing for correlation find the luckiest of equally correlated trials."""
    rng = np.random.default_rng(5)
    r, trials, periods = 0.6, 50, 250
    best, variances = [], []
    for _ in range(300):
        common, own = rng.normal(size=(periods, 1)), rng.normal(size=(periods, trials))
        returns = math.sqrt(r) * common + math.sqrt(1 - r) * own
        sharpes = returns.mean(axis=0) / returns.std(axis=0)
        best.append(sharpes.max())
        variances.append(sharpes.var(ddof=1))
    observed = expected_maximum_sharpe(trials, float(np.mean(variances)))
    effective = expected_maximum_sharpe(r + (1 - r) * trials, 1 / (periods - 1))
    both = expected_maximum_sharpe(r + (1 - r) * trials, float(np.mean(variances)))
    assert observed == pytest.approx(np.mean(best), rel=0.1)
    assert effective > np.mean(best)  # strict
    assert both < observed


# Overfitting


def overfitting_by_loop(returns: np.ndarray, partitions: int) -> tuple[list[float], list[int]]:
    """Follow the paper's text step by step."""
    borders = np.linspace(0, len(returns), partitions + 1).astype(int)
    parts = [returns[a:b] for a, b in pairwise(borders)]
    logits, chosen = [], []
    for past in combinations(range(partitions), partitions // 2):
        inside = np.vstack([parts[i] for i in past])
        outside = np.vstack([parts[i] for i in range(partitions) if i not in past])
        first, second = (
            [m / s if s > 0 else 0.0 for m, s in zip(h.mean(0), h.std(0, ddof=1), strict=True)]
            for h in (inside, outside)
        )
        best = int(np.argmax(first))
        rank = (
            sum(x < second[best] for x in second) + (sum(x == second[best] for x in second) + 1) / 2
        )
        share = rank / (len(second) + 1)
        logits.append(math.log(share / (1 - share)))
        chosen.append(best)
    return logits, chosen


@pytest.mark.parametrize(
    ("periods", "strategies", "partitions"), [(80, 5, 8), (101, 12, 6), (9, 3, 4)]
)
def test_the_fast_way_is_the_plain_loop(periods: int, strategies: int, partitions: int) -> None:
    returns = np.random.default_rng(periods).standard_t(4, (periods, strategies)) / 100
    returns[: periods // 2, 0] = 0.0  # a strategy that slept through half of the time
    found = probability_of_backtest_overfitting(returns, partitions)
    logits, chosen = overfitting_by_loop(returns, partitions)
    np.testing.assert_allclose(found.logits, logits, atol=1e-12)
    assert found.chosen.tolist() == chosen
    assert found.probability == np.mean(np.array(logits) <= 0)
    assert len(logits) == math.comb(partitions, partitions // 2)


def test_sixteen_parts_give_12870_choices() -> None:
    found = probability_of_backtest_overfitting(np.random.default_rng(0).normal(size=(640, 6)))
    assert len(found.logits) == 12_870
    assert found.to_dict()["strategies"] == 6


def test_noise_is_one_half_and_skill_near_zero() -> None:
    noise, skill = [], []
    for seed in range(60):
        returns = np.random.default_rng(seed).normal(size=(400, 20))
        noise.append(probability_of_backtest_overfitting(returns, 8).probability)
        returns[:, 7] += 0.4
        found = probability_of_backtest_overfitting(returns, 8)
        skill.append(found.probability)
        assert found.loss < 0.1
        assert (found.chosen == 7).mean() > 0.9
    assert 0.42 < np.mean(noise) < 0.58
    assert max(skill) < 0.05


def test_in_sample_excess_is_paid_back_where_there_is_no_skill() -> None:
    found = probability_of_backtest_overfitting(np.random.default_rng(1).normal(size=(320, 40)), 8)
    assert found.slope < 0
    assert found.in_sample.mean() > found.out_of_sample.mean()


def test_fitted_to_noise_is_worse_than_drawing_lots() -> None:
    """Strategies that each shine in one stretch and pay for it elsewhere: the paper's warning."""
    rng = np.random.default_rng(0)
    returns = rng.normal(0, 0.2, (320, 8))
    for number in range(8):
        mine = slice(40 * number, 40 * number + 40)
        returns[:, number] -= 1 / 7
        returns[mine, number] += 1 / 7 + 1
    found = probability_of_backtest_overfitting(returns, 8)
    assert found.probability > 0.95
    assert found.loss > 0.95


def test_strategies_that_are_all_the_same_are_in_the_middle() -> None:
    same = np.repeat(np.random.default_rng(0).normal(size=(64, 1)), 4, axis=1)
    found = probability_of_backtest_overfitting(same, 4)
    assert found.probability == 1.0  # never above the median
    assert np.allclose(found.logits, 0)
    flat = probability_of_backtest_overfitting(np.zeros((64, 3)), 4)
    assert math.isnan(flat.slope)
    assert flat.to_dict()["slope"] is None


# The verdict


@given(st.floats(0.5, 0.999), st.integers(1, 10_000))
def test_intervals_at_the_corrected_level_hold_together(confidence: float, trials: int) -> None:
    level = corrected_confidence(confidence, trials)
    assert level**trials == pytest.approx(confidence)
    assert level >= confidence


def test_the_correction_holds_for_correlated_trials_too() -> None:
    rng = np.random.default_rng(0)
    trials, level = 20, corrected_confidence(0.95, 20)
    bound = norm.ppf(0.5 + level / 2)
    for r in (0.0, 0.5, 0.95):
        draws = math.sqrt(r) * rng.normal(size=(20_000, 1)) + math.sqrt(1 - r) * rng.normal(
            size=(20_000, trials)
        )
        together = (np.abs(draws) <= bound).all(axis=1).mean()
        assert together > 0.945
        above = (draws > bound).any(axis=1).mean()
        assert above < 0.03  # one-sided, as for one verdict alone


def test_widening_is_proportional_and_undone() -> None:
    score = Score("x", 0.53, 0.51, 0.56)
    wide = widened(score, 0.95, 0.999)
    assert wide.low < score.low < score.high < wide.high
    back = widened(wide, 0.999, 0.95)
    assert (back.low, back.high) == (pytest.approx(score.low), pytest.approx(score.high))
    assert (wide.value - wide.low) / (score.value - score.low) == pytest.approx(
        norm.ppf(0.9995) / norm.ppf(0.975)
    )


def test_an_edge_that_many_tries_take_away() -> None:
    first = corrected_verdict(JUDGED, 1)
    assert first.outcome == first.before == "edge"
    assert first.statistic.low == pytest.approx(JUDGED.statistic.low)
    outcomes = [corrected_verdict(JUDGED, n).outcome for n in (1, 3, 10, 30, 100)]
    assert outcomes == sorted(outcomes)  # edge first, no evidence afterwards, never back
    many = corrected_verdict(JUDGED, 100)
    assert many.outcome == "no evidence of an edge"
    assert "no longer 'edge'" in many.sentence
    assert "100 trials" in many.sentence
    assert "99.949%" in many.sentence
    assert many.to_dict()["statistic"]["low"] < 0.5
    stays = corrected_verdict(replace(JUDGED, statistic=Score("a", 0.6, 0.57, 0.63)), 100)
    assert "stays: edge" in stays.sentence
    few = corrected_verdict(replace(JUDGED, ups=3), 7)
    assert "too little" in few.sentence


# The report's part


def predictions(rows: int = 1600, skill: float = 0.0, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    hours = pd.date_range("2024-01-01", periods=rows, freq="h", tz="UTC", name="timestamp")
    ret = rng.normal(0, 0.006, rows)
    told = skill * ret / 0.006 + rng.normal(0, 0.6, (2, rows))
    frame = pd.DataFrame(dict(zip("ab", 1 / (1 + np.exp(-told)), strict=True)), index=hours)
    frame["ensemble"] = frame[["a", "b"]].mean(axis=1)
    return frame.assign(
        persistence=rng.random(rows),
        volatility_only=rng.random(rows),
        majority=0.5,
        fold=0,
        split="out_of_fold",
        y=(ret > 0).astype(int),
        move=np.sign(ret).astype(int),
        ret=ret,
        label_end=hours + pd.Timedelta("3h"),
    )


def test_returns_stand_at_the_bars_that_decided_and_nowhere_else() -> None:
    table = predictions(50)
    table["ensemble"] = 0.0
    table.iloc[[3, 4, 8], table.columns.get_loc("ensemble")] = 0.9
    found = strategy_returns(table, round_trip_cost=0.001)
    assert np.flatnonzero(found).tolist() == [3, 8]  # at 4 the first position was still open
    assert found.iloc[3] == pytest.approx(table["ret"].iloc[3] - 0.001)
    assert len(found) == 50


def test_candidates_are_every_model_at_every_threshold_that_acted() -> None:
    table = predictions()
    names = list(candidate_returns(table, decision_threshold=0.55, thresholds=(0.5, 0.999999)))
    assert names == [f"{m} above {t}" for m in ("a", "b", "ensemble") for t in ("0.5", "0.55")]


def summary_of(skill: float, trials: int, **options: object) -> LuckSummary:
    table = predictions(skill=skill)
    judged = verdict(table, resamples=100)
    return luck_summary(table, judged, trials=trials, **options)  # type: ignore[arg-type]


def test_skill_survives_many_tries_and_noise_does_not() -> None:
    skilled = summary_of(1.0, 30, round_trip_cost=0.0)
    assert skilled.verdict.outcome == "edge"
    assert skilled.deflated is not None
    assert skilled.deflated > 0.99
    assert skilled.overfitting is not None
    noise = summary_of(0.0, 30, round_trip_cost=0.0)
    assert noise.verdict.outcome == "no evidence of an edge"
    assert noise.deflated is not None
    assert noise.deflated < 0.9
    assert "luckiest of 30" in noise.sentence
    assert 1 <= noise.effective_candidates < len(noise.candidates)
    assert noise.table()["value"].map(type).eq(str).all()
    assert noise.to_dict()["overfitting"]["partitions"] == 16


def test_candidates_are_chosen_before_costs() -> None:
    """After costs the one that trades least is always best, which is no skill."""
    table = predictions()
    judged = verdict(table, resamples=50)
    cheap, dear = (luck_summary(table, judged, round_trip_cost=cost) for cost in (0.0, 0.05))
    assert cheap.overfitting is not None
    assert dear.overfitting is not None
    assert cheap.overfitting.probability == dear.overfitting.probability
    after = candidate_returns(table, round_trip_cost=0.05)
    assert probability_of_backtest_overfitting(after).probability == 0


def test_a_first_try_is_not_deflated() -> None:
    first = summary_of(0.0, 1)
    assert first.luckiest == 0
    assert first.sharpe is not None
    assert first.deflated == probabilistic_sharpe_ratio(first.sharpe)
    assert "only trial" in first.sentence


def test_what_never_acted_says_so() -> None:
    table = predictions()
    judged = verdict(table, resamples=50)
    quiet = luck_summary(table.assign(a=0.1, b=0.1, ensemble=0.1), judged, trials=4)
    assert quiet.sharpe is None
    assert quiet.overfitting is None
    assert "never acted" in quiet.sentence
    assert "too little to choose" in quiet.sentence
    assert quiet.to_dict()["minimum_bars"] is None
    assert "never" not in set(quiet.table()["value"])


def test_the_scatter_of_trials() -> None:
    assert sharpe_variance([], 101) == 0.01
    assert sharpe_variance([0.0, 0.4], 101) == pytest.approx(0.08)
    assert sharpe_variance([0.0, 0.01], 101) == 0.01
    many = np.linspace(0, 0.01, 10)
    assert sharpe_variance(many.tolist(), 101) == pytest.approx(many.var(ddof=1))
