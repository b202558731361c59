"""The simulated market: sound bars, a known truth that is true, and Bayes scores that are right."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, log_loss, roc_auc_score

import crypto_ml.simulate as sim
from crypto_ml.candles import timeframe_delta, validate_candles
from crypto_ml.settings import CandlesError, LabelError, ScoreError
from crypto_ml.simulate import PRESETS, SimulatedMarket, bayes_scores, simulate

ROOT = Path(__file__).resolve().parent.parent
LONG = 200_000
TRADED = ("faint", "clear", "strong")


@cache
def long_market(name: str) -> SimulatedMarket:
    return simulate(name, bars=LONG, seed=7)


def log_returns(market: SimulatedMarket) -> np.ndarray:
    frame = market.candles.frame
    return np.log(frame["close"] / frame["open"]).to_numpy()


def next_returns(market: SimulatedMarket) -> np.ndarray:
    close = market.candles.frame["close"].to_numpy()
    return close[1:] / close[:-1] - 1


def autocorrelation(values: np.ndarray, lags: range) -> np.ndarray:
    centred = values - values.mean()
    return np.array([centred[lag:] @ centred[:-lag] for lag in lags]) / (centred @ centred)


def realised_auc(outcome: np.ndarray, score: np.ndarray) -> float:
    return float(roc_auc_score(outcome, score))


# --- the same bytes again ---

DIGEST = """
import hashlib
import numpy as np
from crypto_ml.simulate import simulate

def digest(seed):
    market = simulate("clear", bars=3000, gaps=4, seed=seed)
    values = np.column_stack([market.candles.frame, market.truth])
    return hashlib.sha256(values.tobytes() + market.candles.index.asi8.tobytes()).hexdigest()
"""


def test_bit_identical_across_runs_and_processes() -> None:
    here: dict[str, Callable[[int], str]] = {}
    exec(DIGEST, here)
    digest = here["digest"]
    assert digest(42) == digest(42) != digest(43)
    other = subprocess.run(
        [sys.executable, "-c", DIGEST + "print(digest(42))"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert other.stdout.strip() == digest(42)


def test_the_first_bars_are_the_ones_that_were_always_there() -> None:
    # Rounded to ten significant digits: the last bits of exp and log may differ between processors.
    frame = simulate("strong", bars=200).candles.frame
    text = "\n".join(f"{value:.9e}" for value in frame.to_numpy().ravel())
    assert hashlib.sha256(text.encode()).hexdigest() == (
        "167a287992e2c0550e6e2b06a4ea735501c0552aad9969007df823808a2e7412"
    )


# --- sound bars ---


@settings(max_examples=60, deadline=None)
@given(
    preset=st.sampled_from(sorted(PRESETS)),
    bars=st.integers(1, 400),
    timeframe=st.sampled_from(["1m", "5m", "15m", "1h", "4h", "1d", "1w"]),
    seed=st.integers(0, 2**32),
    share=st.floats(0, 1),
    end=st.sampled_from(
        ["2025-01-01", "2024-02-29T13:47", pd.Timestamp("2030-06-01", tz="Asia/Tokyo")]
    ),
)
def test_bars_are_sound(
    preset: str, bars: int, timeframe: str, seed: int, share: float, end: str | pd.Timestamp
) -> None:
    gaps = int(share * max(0, (bars - 2) // 2))
    market = simulate(preset, bars=bars, timeframe=timeframe, seed=seed, end=end, gaps=gaps)
    frame, step = market.candles.frame, timeframe_delta(timeframe)
    close_of_last = (
        pd.Timestamp(end) if isinstance(end, pd.Timestamp) else pd.Timestamp(end, tz="UTC")
    )
    validate_candles(frame, market.candles.market, now=close_of_last)
    assert frame.index[-1] + 2 * step > close_of_last
    assert frame.index.name == "timestamp" and str(frame.index.dtype) == "datetime64[ms, UTC]"
    assert (frame.dtypes == np.float64).all() and (frame["volume"] > 0).all()
    assert market.truth.index.equals(frame.index)
    assert np.isfinite(market.truth.to_numpy()).all() and (market.truth["volatility"] > 0).all()
    # Outages are exactly as many as asked for, at most 47 bars each, and leave both ends.
    missing = np.diff(frame.index.asi8) // (step // pd.Timedelta(1, "ms")) - 1
    assert (missing > 0).sum() == gaps and missing.max(initial=0) < 48
    assert len(frame) + missing.sum() == bars


def test_outages_only_hide_bars() -> None:
    whole, holed = simulate("clear", bars=5000), simulate("clear", bars=5000, gaps=25)
    seen = whole.candles.index.isin(holed.candles.index)
    assert seen[0] and seen[-1] and 25 <= (~seen).sum() < 25 * 48
    pd.testing.assert_frame_equal(whole.candles.frame[seen], holed.candles.frame)
    pd.testing.assert_frame_equal(whole.truth[seen], holed.truth)
    there = simulate("clear", bars=5000, gaps=25, seed=1).candles.index
    assert not there.equals(holed.candles.index)


def test_a_bar_opens_where_the_last_one_closed() -> None:
    frame = simulate("vol", bars=500).candles.frame
    assert (frame["open"].to_numpy()[1:] == frame["close"].to_numpy()[:-1]).all()


def test_one_seed_shares_its_shocks_between_presets() -> None:
    calm, wild = log_returns(simulate("none", bars=3000)), log_returns(simulate("vol", bars=3000))
    assert np.array_equal(np.sign(calm), np.sign(wild)) and not np.allclose(calm, wild)


def test_highs_and_lows_are_those_of_a_brownian_path() -> None:
    # Without drift the maximum of a Brownian motion is distributed as its |end point| (reflection
    # principle), whatever speed the bar has; so is minus its minimum.
    frame = long_market("none").candles.frame
    scale = sim.HOURLY_VOLATILITY * math.sqrt(4 / 6)
    for reach in (np.log(frame["high"] / frame["open"]), -np.log(frame["low"] / frame["open"])):
        uniform = 2 * stats.t.cdf(reach / scale, 6) - 1
        assert stats.kstest(uniform, "uniform").statistic < 1.63 / math.sqrt(LONG)


# --- the presets are what they say ---


def test_none_is_a_random_walk_of_constant_volatility() -> None:
    market, lags = long_market("none"), range(1, 49)
    returns, bound = log_returns(market), 4 / math.sqrt(LONG)
    assert np.abs(autocorrelation(returns, lags)).max() < bound
    assert np.abs(autocorrelation(np.abs(returns), lags)).max() < bound
    assert stats.kstest(returns / sim.HOURLY_VOLATILITY * math.sqrt(1.5), "t", (6,)).pvalue > 0.001
    hours = [group for _, group in pd.Series(np.abs(returns)).groupby(market.candles.index.hour)]
    assert stats.kruskal(*hours).pvalue > 0.001
    for threshold in (0.0, 0.003, 0.02):
        truth = market.true_probabilities("threshold", 1, threshold)
        assert (truth.nunique() == 1).all()
    # Volume goes with the move of its own bar and says nothing about the next.
    volume = stats.rankdata(market.candles.frame["volume"])
    assert stats.spearmanr(volume, np.abs(returns)).statistic > 0.4
    for following in (returns[1:], np.abs(returns[1:])):
        assert abs(stats.spearmanr(volume[:-1], following).statistic) < bound


def test_vol_clusters_but_its_direction_is_a_coin() -> None:
    market = long_market("vol")
    returns, bound = log_returns(market), 4 / math.sqrt(LONG)
    memory = autocorrelation(np.abs(returns), range(1, 200))
    assert memory[:3].min() > 0.2 and memory[23] > memory[11] and memory[167] > 0.05
    assert stats.kurtosis(returns) > 3
    signs = np.sign(returns)
    assert np.abs(autocorrelation(signs, range(1, 49))).max() < bound
    frame = market.candles.frame
    features = [
        returns,
        frame["close"] / frame["close"].rolling(20).mean(),
        frame["volume"] / frame["volume"].rolling(20).mean(),
        np.abs(returns),
        market.truth["volatility"],
    ]
    for feature in features:
        seen = np.nan_to_num(np.asarray(feature), nan=1.0)[:-1]
        assert abs(realised_auc(signs[1:] > 0, seen) - 0.5) < 2 * bound
    truth = market.true_probabilities("direction", 1, 0)
    assert (truth == 0.5).all(axis=None)
    threshold = market.true_probabilities("threshold", 1, 0.003)
    scores = bayes_scores(threshold["up"], threshold["down"])
    assert scores["roc_auc"] > 0.6 and abs(scores["directional_auc"] - 0.5) < 0.001


@pytest.mark.parametrize(
    ("name", "accuracy"),
    [("none", 0.5), ("vol", 0.5), ("faint", 0.517), ("clear", 0.534), ("strong", 0.568)],
)
def test_bayes_accuracy_of_direction(name: str, accuracy: float) -> None:
    truth = long_market(name).true_probabilities("direction", 1, 0)
    assert bayes_scores(truth["up"], truth["down"])["accuracy"] == pytest.approx(
        accuracy, abs=0.0015
    )


def test_without_the_edge_nothing_is_left_of_it() -> None:
    market = simulate(replace(PRESETS["strong"], name="flat", edge=0.0), bars=20_000)
    truth = market.true_probabilities("direction", 1, 0)
    assert bayes_scores(truth["up"], truth["down"])["accuracy"] == 0.5
    assert market.candles.market.symbol == "SIM-FLAT"
    same_market = simulate("vol", bars=20_000)
    pd.testing.assert_frame_equal(market.candles.frame, same_market.candles.frame)


@pytest.mark.parametrize("name", TRADED)
def test_both_mechanisms_carry_a_real_share(name: str) -> None:
    truth = long_market(name).truth
    shares = {
        part: np.abs(sim._exceeds(-truth[part].to_numpy()) - 0.5).mean()
        for part in ("reversion", "momentum")
    }
    assert min(shares.values()) > 0.2 * sum(shares.values())
    up = next_returns(long_market(name)) > 0
    for part in ("reversion", "momentum"):
        acts = (truth[part] != 0).to_numpy()[:-1]
        right = (truth[part].to_numpy()[:-1][acts] > 0) == up[acts]
        if part == "momentum":  # where the other force is silent
            right = right[(truth["reversion"] == 0).to_numpy()[:-1][acts]]
        assert right.mean() > 0.5 + 3 / math.sqrt(len(right))


def test_scale_is_that_of_bitcoin_by_the_hour() -> None:
    for name in PRESETS:
        returns = next_returns(long_market(name))
        assert 0.005 < returns.std() < 0.0068
        assert 0.2 < (returns > 0.003).mean() < 0.3
        assert 0.2 < (returns < -0.003).mean() < 0.3


@pytest.mark.parametrize("name", ["none", "vol"])
def test_volatility_grows_with_the_square_root_of_time(name: str) -> None:
    spread = {}
    for timeframe in ("15m", "4h", "1d"):
        bars = 30_000 if timeframe != "1d" else 20_000
        end = "2025-01-01"
        market = simulate(name, bars=bars, timeframe=timeframe, seed=3, end=end)
        spread[timeframe] = log_returns(market).std() / math.sqrt(
            timeframe_delta(timeframe) / pd.Timedelta(1, "h")
        )
    assert max(spread.values()) / min(spread.values()) < 1.12, spread


def test_the_day_has_a_rhythm_unless_a_bar_is_a_day_long() -> None:
    market = long_market("vol")
    hour = market.candles.index.hour
    move = pd.Series(np.abs(log_returns(market))).groupby(hour).mean()
    volume = market.candles.frame["volume"].groupby(hour).mean()
    assert move.idxmax() in (14, 15, 16) and move.max() > 1.5 * move.min()
    assert volume.idxmax() in (14, 15, 16)
    hours = np.arange(0.0, 24.0)
    assert sim._day_rhythm(hours, 1.0).mean() == pytest.approx(0, abs=1e-12)
    for length in (24.0, 168.0):
        assert sim._day_rhythm(np.zeros(1), length) == pytest.approx(0, abs=1e-12)


# --- the truth is true, and knowable ---


def read_from_the_bars(market: SimulatedMarket) -> pd.DataFrame:
    """The truth, worked out from the candles alone, bar by bar, by someone who knows the rules."""
    frame, index = market.candles.frame, market.candles.index
    zscore = (frame["close"] - frame["close"].rolling(20).mean()) / frame["close"].rolling(20).std(
        ddof=0
    )
    ratio = frame["volume"] / frame["volume"].rolling(20).mean()
    move = np.log(frame["close"] / frame["open"])
    edge = market.preset.edge
    pull = -edge * np.sign(zscore) * (zscore.abs() > 1.5)
    push = 1.25 * edge * np.sign(move) * (ratio > 2)
    drift = (pull.fillna(0) + push).to_numpy()
    hours = timeframe_delta(market.candles.market.timeframe) / pd.Timedelta(1, "h")
    fast = slow = 0.0
    expected = []

    def pattern(opens: pd.DatetimeIndex) -> np.ndarray:
        # The rhythm averaged over the bar by brute force, not by sinc.
        inside = (np.arange(400) + 0.5) / 400 * hours
        start = ((opens - opens.normalize()) / pd.Timedelta(1, "h")).to_numpy()
        angle = 2 * np.pi * (start[:, None] + inside - 15.5) / 24
        return (np.cos(angle) + 0.45 * np.cos(2 * angle)).mean(axis=1)

    step = pd.Timedelta(hours, "h")
    day = pd.date_range("2024-01-01", periods=24, freq="1h")
    level = 0.0058 * math.sqrt(hours) / math.sqrt(np.exp(0.54 * pattern(day)).mean())
    rhythm = pattern(pd.DatetimeIndex(index + step))
    sigma = level * math.exp(0.27 * pattern(index[:1])[0] - 0.22**2 - 0.28**2)
    before = 0.0
    for t in range(len(frame)):
        shock = move.iloc[t] / sigma - before
        score = 7 * shock**2 / (4 + shock**2) - 1
        memories = 0.5 ** (hours / 8), 0.5 ** (hours / 240)
        gains = [
            s * math.sqrt((1 - m**2) / (12 / 9))
            for s, m in zip((0.22, 0.28), memories, strict=True)
        ]
        fast = memories[0] * fast + gains[0] * score
        slow = memories[1] * slow + gains[1] * score
        sigma = level * math.exp(0.27 * rhythm[t] + fast + slow - 0.22**2 - 0.28**2)
        before = drift[t]
        expected.append((sigma, before))
    return pd.DataFrame(expected, index, ["volatility", "drift"])


@pytest.mark.parametrize("timeframe", ["5m", "1h"])
def test_the_truth_follows_from_bars_up_to_the_close_alone(timeframe: str) -> None:
    market = simulate("strong", bars=2500, timeframe=timeframe, seed=11)
    expected = read_from_the_bars(market)
    drift = market.truth["reversion"] + market.truth["momentum"]
    np.testing.assert_allclose(drift, expected["drift"], atol=1e-12)
    np.testing.assert_allclose(market.truth["volatility"], expected["volatility"], rtol=1e-5)
    assert (drift[:19] == 0).all() and (drift[19:] != 0).any()


@pytest.mark.parametrize("name", sorted(PRESETS))
@pytest.mark.parametrize(
    ("kind", "threshold"), [("direction", 0.0), ("threshold", 0.003), ("threshold", 0.02)]
)
def test_the_truth_is_calibrated(name: str, kind: str, threshold: float) -> None:
    market = long_market(name)
    truth = market.true_probabilities(kind, 1, threshold).iloc[:-1]
    returns = next_returns(market)
    for side, happened in (("up", returns > threshold), ("down", returns < -threshold)):
        said = truth[side].to_numpy()
        levels = np.unique(np.quantile(said, np.linspace(0, 1, 11)))
        group = np.searchsorted(levels, said)
        for number in np.unique(group):
            rows = group == number
            error = 4 * math.sqrt(said[rows].mean() * (1 - said[rows].mean()) / rows.sum())
            assert abs(happened[rows].mean() - said[rows].mean()) < error + 1 / rows.sum()


def test_the_shock_is_what_the_truth_leaves_over() -> None:
    market = long_market("strong")
    drift = (market.truth["reversion"] + market.truth["momentum"]).to_numpy()
    shock = log_returns(market)[1:] / market.truth["volatility"].to_numpy()[:-1] - drift[:-1]
    assert stats.kstest(shock * math.sqrt(1.5), "t", (6,)).pvalue > 0.001
    assert np.abs(autocorrelation(shock, range(1, 25))).max() < 4 / math.sqrt(LONG)
    assert np.abs(autocorrelation(np.abs(shock), range(1, 25))).max() < 4 / math.sqrt(LONG)


def test_probabilities_are_those_of_the_t_distribution() -> None:
    market = simulate("strong", bars=500)
    drift = market.truth["reversion"] + market.truth["momentum"]
    shock = stats.t(6, scale=math.sqrt(4 / 6))
    for threshold in (0.0, 0.003, 0.05):
        truth = market.true_probabilities("threshold", 1, threshold)
        up = shock.sf(math.log(1 + threshold) / market.truth["volatility"] - drift)
        down = shock.cdf(math.log(1 - threshold) / market.truth["volatility"] - drift)
        np.testing.assert_allclose(truth["up"], up, rtol=1e-9)
        np.testing.assert_allclose(truth["down"], down, rtol=1e-9)
    direction = market.true_probabilities("direction", 1, 0.05)
    pd.testing.assert_frame_equal(direction, market.true_probabilities("threshold", 1, 0.0))
    assert np.allclose(direction.sum(axis=1), 1)


def test_a_plain_model_that_sees_the_features_captures_most_of_the_edge() -> None:
    market = long_market("strong")
    frame = market.candles.frame
    close, volume = frame["close"], frame["volume"]
    zscore = (close - close.rolling(20).mean()) / close.rolling(20).std(ddof=0)
    heavy = volume / volume.rolling(20).mean() > 2
    features = pd.DataFrame(
        {
            "pull": np.sign(zscore) * (zscore.abs() > 1.5),
            "push": np.sign(close - frame["open"]) * heavy,
        }
    ).iloc[19:-1]
    up = (next_returns(market) > 0)[19:]
    half = len(up) // 2
    model = LogisticRegression().fit(features[:half], up[:half])
    found = accuracy_score(up[half:], model.predict(features[half:])) - 0.5
    truth = market.true_probabilities("direction", 1, 0).iloc[19:-1]
    there = bayes_scores(truth["up"][half:], truth["down"][half:])["accuracy"] - 0.5
    assert 0.9 * there < found < 1.05 * there
    # The raw features, as a model gets them, still show a good part of it.
    raw = np.column_stack([zscore, np.sign(close - frame["open"]) * heavy])[19:-1]
    linear = LogisticRegression().fit(raw[:half], up[:half])
    assert accuracy_score(up[half:], linear.predict(raw[half:])) - 0.5 > 0.5 * there


# --- Bayes scores ---


def by_brute_force(up: np.ndarray, down: np.ndarray) -> dict[str, float]:
    """Every pair and every cut, one by one."""
    rows = range(len(up))

    def area(score: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> float:
        won = pairs = 0.0
        for i in rows:
            for j in rows:
                if i != j:
                    weight = positive[i] * negative[j]
                    pairs += weight
                    won += weight * ((score[i] > score[j]) + 0.5 * (score[i] == score[j]))
        return won / pairs if pairs else math.nan

    ranked, best = sorted(up, reverse=True), 0.0
    for cut in range(len(up) + 1):
        yes, no = ranked[:cut], ranked[cut:]
        f1 = []
        for right, answered, there in (
            (sum(yes), len(yes), sum(up)),
            (len(no) - sum(no), len(no), len(up) - sum(up)),
        ):
            f1.append(2 * right / (answered + there) if answered + there else 0.0)
        best = max(best, sum(f1) / 2)
    entropy = [-sum(q * math.log(q) for q in (p, 1 - p) if q > 0) for p in up]
    moves = np.where(up + down > 0, up + down, 1)
    return {
        "accuracy": float(np.mean([max(p, 1 - p) for p in up])),
        "macro_f1": best,
        "roc_auc": area(up, up, 1 - up),
        "log_loss": float(np.mean(entropy)),
        "directional_auc": area(np.where(up + down > 0, up / moves, 0.5), up, down),
    }


PROBABILITY = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.7, 1.0]) | st.floats(0.001, 1)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(PROBABILITY, PROBABILITY), min_size=1, max_size=12))
def test_bayes_scores_equal_brute_force(rows: list[tuple[float, float]]) -> None:
    up = np.array([a * min(1.0, 1 / (a + b)) if a + b else 0.0 for a, b in rows])
    down = np.minimum([b * min(1.0, 1 / (a + b)) if a + b else 0.0 for a, b in rows], 1 - up)
    expected, scores = by_brute_force(up, down), bayes_scores(up, down)
    assert list(scores) == list(expected)
    for name, value in expected.items():
        assert scores[name] == pytest.approx(value, rel=1e-6, abs=1e-9, nan_ok=True), name


@pytest.mark.parametrize("name", ["none", "vol", "strong"])
def test_bayes_scores_are_what_the_best_predictor_reaches(name: str) -> None:
    # Outcomes drawn anew from the truth of 200,000 bars, twice.
    truth = long_market(name).true_probabilities("threshold", 1, 0.003)
    up, down = np.tile(truth["up"], 2), np.tile(truth["down"], 2)
    rng = np.random.default_rng(5)
    drawn = rng.random(len(up))
    y, moved = drawn < up, (drawn < up) | (drawn > 1 - down)
    expected = bayes_scores(up, down)
    # Ties are split at random: they are all there is in a market without information.
    ranked = y[np.lexsort([rng.random(len(up)), -up])]
    f1 = [
        f1_score(ranked, np.arange(len(up)) < cut * len(up), average="macro")
        for cut in np.linspace(0.2, 0.4, 9)
    ]
    realised = {
        "accuracy": accuracy_score(y, up > 0.5),
        "macro_f1": max(f1),
        "roc_auc": realised_auc(y, up),
        "log_loss": log_loss(y, up),
        "directional_auc": realised_auc(y[moved], (up / (up + down))[moved]),
    }
    for metric, value in realised.items():
        assert value == pytest.approx(expected[metric], abs=0.004), metric


def test_bayes_scores_agree_with_what_happened() -> None:
    market = long_market("clear")
    returns = next_returns(market)
    for kind, threshold in (("direction", 0.0), ("threshold", 0.003)):
        truth = market.true_probabilities(kind, 1, threshold).iloc[:-1]
        up, down = truth["up"].to_numpy(), truth["down"].to_numpy()
        y, moved = returns > threshold, np.abs(returns) > threshold
        scores = bayes_scores(up, down)
        assert accuracy_score(y, up > 0.5) == pytest.approx(scores["accuracy"], abs=0.005)
        assert realised_auc(y, up) == pytest.approx(scores["roc_auc"], abs=0.005)
        assert log_loss(y, up) == pytest.approx(scores["log_loss"], abs=0.005)
        assert realised_auc(y[moved], (up / (up + down))[moved]) == pytest.approx(
            scores["directional_auc"], abs=0.007
        )


def test_no_predictor_beats_the_bayes_score() -> None:
    # The expected macro F1 of any other answer, at random or by another order, is no higher.
    truth = simulate("strong", bars=4000).true_probabilities("threshold", 1, 0.003)
    up = truth["up"].to_numpy()
    best, rng = bayes_scores(up, truth["down"])["macro_f1"], np.random.default_rng(0)
    for noise in (0.0, 0.05, 0.3, 5.0):
        for share in np.linspace(0.02, 0.98, 20):
            score = up + noise * rng.standard_normal(len(up))
            yes = score > np.quantile(score, 1 - share)
            first = 2 * up[yes].sum() / (yes.sum() + up.sum())
            second = 2 * (1 - up[~yes]).sum() / ((~yes).sum() + (1 - up).sum())
            assert (first + second) / 2 <= best + 1e-12


def test_direction_has_one_area() -> None:
    truth = simulate("clear", bars=3000).true_probabilities("direction", 1, 0)
    scores = bayes_scores(truth["up"], truth["down"])
    assert scores["roc_auc"] == pytest.approx(scores["directional_auc"], abs=1e-9)


def test_bayes_scores_of_one_row() -> None:
    scores = bayes_scores([0.3], [0.2])
    assert scores["accuracy"] == 0.7 and math.isnan(scores["roc_auc"])
    assert math.isnan(scores["directional_auc"])


# --- what is refused ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "sim:clera"}, "did you mean sim:clear"),
        ({"preset": "zzzz"}, "no simulated market 'zzzz'"),
        ({"bars": 0}, "bars = 0"),
        ({"bars": True}, "bars = True"),
        ({"bars": 24.0}, "bars = 24.0"),
        ({"seed": -1}, "seed = -1"),
        ({"gaps": -1}, "gaps = -1"),
        ({"bars": 20, "gaps": 10}, "at most 9 outages"),
        ({"bars": 1, "gaps": 1}, "at most 0 outages"),
        ({"timeframe": "7h"}, "7h"),
        ({"end": "soon"}, "soon"),
        ({"timeframe": "1w", "bars": 9000}, "1852"),
    ],
)
def test_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(CandlesError, match=message):
        simulate(**{"preset": "clear", "bars": 30, **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "horizon", "threshold", "message"),
    [
        ("triple_barrier", 1, 0.003, "not available in closed form"),
        ("direction", 2, 0.0, "over 2 bars are not available"),
        ("threshold", 24, 0.003, "closed form"),
        ("threshold", 1, -0.01, "threshold = -0.01"),
        ("threshold", 1, 1.0, "threshold = 1.0"),
        ("threshold", 1, math.nan, "threshold = nan"),
    ],
)
def test_labels_without_a_known_truth(
    kind: str, horizon: int, threshold: float, message: str
) -> None:
    with pytest.raises(LabelError, match=message):
        simulate("clear", bars=30).true_probabilities(kind, horizon, threshold)


@pytest.mark.parametrize(
    ("up", "down", "message"),
    [
        ([], [], "one row at least"),
        ([0.5, 0.5], [0.5], "shape"),
        ([[0.5]], [[0.5]], "shape"),
        ([0.5, math.nan], [0.5, 0.5], "row 1"),
        ([0.5, 0.7], [0.5, 0.5], "1 of 2 rows"),
        ([-0.1], [0.5], "row 0"),
    ],
)
def test_rows_that_are_no_probabilities(up: list[float], down: list[float], message: str) -> None:
    with pytest.raises(ScoreError, match=message):
        bayes_scores(up, down)
