"""Baselines: each knows at a bar only what was known at its close."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from crypto_ml.baselines import BASELINES, baseline_probabilities, last_known_outcome
from crypto_ml.settings import ScoreError
from crypto_ml.splits import make_folds

HOUR = pd.Timedelta("1h")


@dataclass
class PlainFold:
    number: int
    train: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]


def sample(rows: int = 400, horizon: int = 1, seed: int = 0) -> tuple[pd.DataFrame, pd.Series]:
    rng = np.random.default_rng(seed)
    index = pd.date_range("2024-01-01", periods=rows, freq="h", tz="UTC", unit="ms")
    volatility = pd.Series(np.exp(rng.normal(size=rows)), index=index)
    chance = 1 / (1 + np.exp(-np.log(volatility)))
    labels = pd.DataFrame(
        {
            "y": (rng.random(rows) < chance).astype("int8"),
            "label_end": index + (horizon + 1) * HOUR,
        },
        index=index,
    )
    return labels, volatility


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(1, 12)), min_size=1, max_size=25),
    st.lists(st.integers(-2, 40), min_size=1, max_size=10),
)
def test_persistence_repeats_the_latest_row_whose_label_has_ended(
    rows: list[tuple[int, int]], asked: list[int]
) -> None:
    start = pd.Timestamp("2024-01-01", tz="UTC")
    index = pd.DatetimeIndex([start + k * HOUR for k in range(len(rows))])
    ends = [start + (k + length) * HOUR for k, (_, length) in enumerate(rows)]
    labels = pd.DataFrame({"y": [y for y, _ in rows], "label_end": ends}, index=index)
    times = pd.DatetimeIndex([start + k * HOUR for k in asked])
    expected = [
        next((y for (y, _), end in zip(rows[::-1], ends[::-1], strict=True) if end <= t), np.nan)
        for t in times
    ]
    assert np.array_equal(last_known_outcome(labels, times), expected, equal_nan=True)


@pytest.mark.parametrize("horizon", [1, 5, 24])
def test_no_baseline_sees_an_outcome_that_was_not_known(horizon: int) -> None:
    """Flip every outcome that ends after a bar's close: nothing said at that bar may change."""
    labels, volatility = sample(horizon=horizon)
    folds = make_folds(labels.index, labels["label_end"], 3, 0.2)

    def said(table: pd.DataFrame) -> pd.DataFrame:
        return baseline_probabilities(
            table, folds, labels.index, volatility=volatility, timeframe=HOUR
        )

    honest = said(labels)
    for bar in honest.index[[0, 7, 100, -1]]:
        unknown = labels["label_end"] > bar + HOUR
        flipped = labels.assign(y=labels["y"].where(~unknown, 1 - labels["y"]))
        # a fold is fitted on labels that ended before its first test bar, so it is the same fit
        assert said(flipped).loc[bar].equals(honest.loc[bar])
    last = labels.index.get_loc(honest.index[50])
    assert honest["persistence"].iloc[50] == labels["y"].iloc[last - horizon]


def test_each_baseline_is_what_its_name_says() -> None:
    labels, volatility = sample(rows=3000)
    folds = make_folds(labels.index, labels["label_end"], 4, 0.2)
    table = baseline_probabilities(
        labels, folds, labels.index, volatility=volatility, timeframe=HOUR, seed=1
    )
    assert tuple(table.columns) == BASELINES
    assert (table.index == labels.index[np.concatenate([fold.test for fold in folds])]).all()
    assert (table["always_long"] == 1).all()
    for fold in folds:
        part = table.loc[labels.index[fold.test]]
        base_rate = labels["y"].iloc[fold.train].mean()
        assert (part["majority"] == base_rate).all()
        assert set(part["stratified"]) == {0.0, 1.0}
        assert part["stratified"].mean() == pytest.approx(base_rate, abs=0.1)
        model = make_pipeline(StandardScaler(), LogisticRegression())
        logs = np.log(volatility.to_numpy())[:, None]
        model.fit(logs[fold.train], labels["y"].iloc[fold.train])
        assert np.allclose(part["volatility_only"], model.predict_proba(logs[fold.test])[:, 1])
    again = baseline_probabilities(
        labels, folds, labels.index, volatility=volatility.to_numpy(), timeframe=HOUR, seed=1
    )
    assert again.equals(table)
    other = baseline_probabilities(
        labels, folds, labels.index, volatility=volatility, timeframe=HOUR, seed=2
    )
    assert not other["stratified"].equals(table["stratified"])


def test_a_market_that_stood_still_and_one_outcome_only() -> None:
    labels, volatility = sample()
    folds = [PlainFold(0, np.arange(200), np.arange(202, 400))]

    def volatile(y: pd.Series, size: pd.Series) -> pd.Series:
        return baseline_probabilities(
            labels.assign(y=y), folds, labels.index, volatility=size, timeframe=HOUR
        )["volatility_only"]

    still = volatile(labels["y"], volatility * 0)
    assert (still == labels["y"].iloc[:200].mean()).all()
    assert (volatile(labels["y"] * 0, volatility) == 0).all()
    assert volatile(labels["y"], volatility * 0 + 2).nunique() == 1
    some = volatile(labels["y"], volatility.where(volatility > 0.5, 0.0))
    assert np.isfinite(some).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.1])
def test_volatility_must_be_known_for_every_row(bad: float) -> None:
    labels, volatility = sample()
    folds = [PlainFold(0, np.arange(200), np.arange(202, 400))]
    volatility.iloc[300] = bad
    with pytest.raises(ScoreError, match="400 values for 400 rows"):
        baseline_probabilities(labels, folds, labels.index, volatility=volatility, timeframe=HOUR)
    with pytest.raises(ScoreError, match="3 values for 400 rows"):
        baseline_probabilities(labels, folds, labels.index, volatility=np.ones(3), timeframe=HOUR)


def test_rows_without_a_label_or_without_any_known_outcome_are_refused() -> None:
    labels, volatility = sample()
    folds = [PlainFold(0, np.arange(200), np.arange(202, 400))]
    with pytest.raises(ScoreError, match="1 of 400 rows have no label"):
        baseline_probabilities(
            labels.drop(labels.index[5]), folds, labels.index, volatility=volatility, timeframe=HOUR
        )
    backwards = [PlainFold(0, np.arange(200, 400), np.arange(100))]
    with pytest.raises(ScoreError, match="no outcome is known yet"):
        baseline_probabilities(
            labels, backwards, labels.index, volatility=volatility, timeframe=HOUR
        )
