"""Null control: honest procedures stay at chance, leaking ones do not, and p-values mean it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest
from sklearn.linear_model import LogisticRegression

from crypto_ml import luck_plots, null_control
from crypto_ml.candles import load_candles
from crypto_ml.errors import ScoreError
from crypto_ml.features import DEFAULT_FEATURES, feature_matrix
from crypto_ml.labels import make_labels
from crypto_ml.luck import probability_of_backtest_overfitting
from crypto_ml.null_control import (
    DIRECTIONAL,
    GAIN,
    NullControl,
    Surrogate,
    purged_folds,
    surrogate_offsets,
    turned,
)
from crypto_ml.paths import CombinatorialPurgedSplit
from crypto_ml.predictions import complete_rows
from crypto_ml.scores import Score
from crypto_ml.simulate import simulate
from crypto_ml.splits import Fold, audit_split, make_folds

SMALL = {"n_estimators": 10, "learning_rate": 0.1, "max_depth": 3}
HOUR = pd.Timedelta("1h")


def market(
    preset: str = "none", bars: int = 1500, seed: int = 0, kind: str = "direction", horizon: int = 1
) -> tuple[pd.DataFrame, pd.DataFrame, list[Fold]]:
    candles = simulate(preset, bars=bars, seed=seed).candles
    labels = make_labels(candles, kind, horizon=horizon)  # type: ignore[arg-type]
    rows = complete_rows(feature_matrix(candles), labels.frame)
    folds = make_folds(rows.index, rows["label_end"], n_splits=3, holdout=0.2)[:-1]
    return rows[list(DEFAULT_FEATURES)], rows, folds


def logistic(X: pd.DataFrame, rows: pd.DataFrame, folds: Sequence[Fold]) -> np.ndarray:
    """Honest and quick: scaled by the first fold's training rows, fitted fold by fold."""
    first = X.iloc[folds[0].train]
    scaled = ((X - first.mean()) / first.std()).clip(-5, 5).to_numpy()
    y = rows["y"].to_numpy()
    return np.concatenate(
        [
            LogisticRegression(C=0.1)
            .fit(scaled[fold.train], y[fold.train])
            .predict_proba(scaled[fold.test])[:, 1]
            for fold in folds
        ]
    )


# The surrogate


@given(st.integers(25, 400), st.integers(0, 2**31 - 1), st.data())
def test_a_turn_keeps_the_outcomes_and_how_they_follow_each_other(
    count: int, seed: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    index = pd.date_range("2024-01-01", periods=count, freq="h", tz="UTC", name="timestamp")
    move = rng.integers(-1, 2, count)
    rows = pd.DataFrame({"y": (move > 0).astype("int8"), "move": move}, index=index)
    rows["label_end"] = index + pd.to_timedelta(rng.integers(1, 9, count), "h")
    offset = data.draw(st.integers(0, count))
    other = turned(rows, offset)
    back = turned(other, count - offset % count)
    pd.testing.assert_frame_equal(back[["y", "move"]], rows[["y", "move"]])
    assert (back["label_end"].to_numpy() == rows["label_end"].to_numpy()).all()
    assert np.array_equal(np.roll(move, -offset), other["move"])
    took = pd.DatetimeIndex(rows["label_end"]) - index
    assert (pd.DatetimeIndex(other["label_end"]) - index).equals(
        took[np.roll(np.arange(count), -offset)]
    )


@given(st.integers(2, 5000), st.integers(0, 100))
def test_turns_are_far_and_differ(rows: int, seed: int) -> None:
    most = rows - 2 * max(1, rows // 20) + 1
    drawn = surrogate_offsets(rows, min(most, 30), seed)
    assert len(set(drawn.tolist())) == len(drawn)
    assert drawn.min() >= max(1, rows // 20)
    assert drawn.max() <= rows - max(1, rows // 20)
    for wrong in (0, most + 1):
        with pytest.raises(ScoreError, match="cannot be made"):
            surrogate_offsets(rows, wrong, seed)


def test_the_surrogate_s_own_label_windows_are_purged() -> None:
    _, rows, folds = market(kind="triple_barrier", horizon=12)
    other = turned(rows, 500)
    before = sum(audit_split(f.train, f.test, rows.index, other["label_end"]) for f in folds)
    kept = purged_folds(folds, other)
    assert before > 0
    assert all(audit_split(f.train, f.test, rows.index, other["label_end"]) == 0 for f in kept)
    assert all(len(a.train) - len(b.train) < 13 for a, b in zip(folds, kept, strict=True))
    assert [fold.name for fold in kept] == [fold.name for fold in folds]


# Honest procedures


def test_the_default_control_is_cheap_and_passes_on_noise() -> None:
    X, rows, folds = market()
    control = null_control.null_control(X, rows, folds, SMALL, resamples=100)
    assert control.passed
    assert len(control.surrogates) == 1
    assert control.p_value is None
    assert control.real == {}
    assert "passes" in control.sentence
    assert json.loads(json.dumps(control.to_dict()))["passed"] is True
    again = null_control.null_control(X, rows, folds, SMALL, resamples=100)
    assert again == control
    assert list(control.table().columns) == ["labels", DIRECTIONAL, GAIN]


def test_p_values_on_noise_are_those_of_chance() -> None:
    """Forty markets without an edge, nine surrogates each."""
    found = []
    for seed in range(40):
        X, rows, folds = market(bars=700, seed=seed)
        control = null_control.null_control(
            X, rows, folds, procedure=logistic, surrogates=9, resamples=0, seed=seed
        )
        assert control.p_value is not None
        found.append(control.p_value)
    low = np.mean(np.array(found) <= 0.1)
    print(f"p-values on noise: mean {np.mean(found):.2f}, at most 0.1 in {low:.0%}")
    assert low <= 0.25
    assert 0.3 < np.mean(found) < 0.7
    assert kstest(np.array(found) - 0.05, "uniform").pvalue > 0.001


def test_a_feature_that_truly_predicts_is_no_leak() -> None:
    X, rows, folds = market()
    noise = np.random.default_rng(0).normal(0, 3, len(rows))
    told: list[tuple[int, int, str]] = []
    control = null_control.null_control(
        X.assign(oracle=rows["move"] + noise),
        rows,
        folds,
        procedure=logistic,
        surrogates=12,
        resamples=50,
        progress=lambda *step: told.append(step),
    )
    assert control.passed
    assert control.p_value == pytest.approx(1 / 13)
    assert control.real[DIRECTIONAL].value > 0.55
    assert [(done, total) for done, total, _ in told] == [(i, 12) for i in range(1, 13)]
    assert "p = 0.077" in control.sentence


# Leaking procedures


def chosen_on_all_rows(X: pd.DataFrame, rows: pd.DataFrame, folds: Sequence[Fold]) -> np.ndarray:
    strength = np.abs(X.to_numpy().T @ (rows["move"].to_numpy() - rows["move"].mean()))
    best = X.iloc[:, np.argsort(strength)[-20:]]
    return logistic(best, rows, folds)


def fitted_on_the_test_rows(
    X: pd.DataFrame, rows: pd.DataFrame, folds: Sequence[Fold]
) -> np.ndarray:
    every = [Fold(f.number, f.name, np.arange(len(X)), f.test) for f in folds]
    wide = X.assign(
        **{f"noise_{i}": np.random.default_rng(i).normal(size=len(X)) for i in range(60)}
    )
    return logistic(wide, rows, every)


def encoded_by_neighbours(X: pd.DataFrame, rows: pd.DataFrame, folds: Sequence[Fold]) -> np.ndarray:
    """Encode each row by the mean outcome of the six hours around it, its own among them."""
    means = rows["y"].groupby(np.arange(len(rows)) // 6).transform("mean")
    return logistic(X.assign(encoded=means), rows, folds)


@pytest.mark.parametrize(
    "procedure", [chosen_on_all_rows, fitted_on_the_test_rows, encoded_by_neighbours]
)
def test_a_procedure_that_looks_at_the_test_rows_is_caught(procedure) -> None:  # type: ignore[no-untyped-def]
    X, rows, folds = market(bars=2500)
    noise = np.random.default_rng(1).normal(size=(len(rows), 400))
    wide = pd.DataFrame(noise, index=rows.index).add_prefix("noise_")
    given_features = wide if procedure is chosen_on_all_rows else X
    control = null_control.null_control(
        given_features, rows, folds, procedure=procedure, resamples=100
    )
    assert not control.passed
    assert "FAILS" in control.sentence


def test_a_weak_leak_shows_in_many_surrogates_together() -> None:
    X, rows, folds = market(bars=1200)

    def leaky(X: pd.DataFrame, rows: pd.DataFrame, folds: Sequence[Fold]) -> np.ndarray:
        told = 0.04 * rows["move"].to_numpy()[np.concatenate([fold.test for fold in folds])]
        noise = np.random.default_rng(abs(hash(rows["move"].to_numpy().tobytes())) % 2**32)
        return np.clip(0.5 + told + noise.normal(0, 0.2, len(told)), 0, 1)

    one = null_control.null_control(X, rows, folds, procedure=leaky, resamples=50)
    many = null_control.null_control(X, rows, folds, procedure=leaky, surrogates=20, resamples=50)
    assert not any("mean" in words for words in one.leaks)
    assert any("mean directional AUC" in words for words in many.leaks)


def test_a_log_loss_below_the_base_rate_s_is_a_leak_by_itself() -> None:
    """Knowing how large the next move is says nothing about its direction, and is a leak too."""
    X, rows, folds = market("vol", kind="threshold")

    def knows_size(X: pd.DataFrame, rows: pd.DataFrame, folds: Sequence[Fold]) -> np.ndarray:
        moved = rows["move"].to_numpy()[np.concatenate([fold.test for fold in folds])] != 0
        return np.where(moved, 0.5, 0.05)

    control = null_control.null_control(X, rows, folds, procedure=knows_size, resamples=50)
    assert [words for words in control.leaks if words.startswith("log loss")]
    assert not [words for words in control.leaks if words.startswith("directional")]


# Edges


def made_up(auc: float, gain: tuple[float, float, float], real: float | None = None) -> NullControl:
    one = Surrogate(
        7,
        Score(DIRECTIONAL, auc, auc - 0.01, auc + 0.01),
        Score("past_ranked_auc", auc, auc - 0.01, auc + 0.01),
        Score(GAIN, *gain),
    )
    scores = {} if real is None else {DIRECTIONAL: Score(DIRECTIONAL, real, real, real)}
    return NullControl((one,), scores, None, (), 0.95)


def test_the_sentence_says_how_the_log_loss_compares() -> None:
    assert "worse by 0.0100 than" in made_up(0.5, (-0.01, -0.02, -0.001)).sentence
    assert "within its error (+0.0010 better) of" in made_up(0.5, (0.001, -0.01, 0.01)).sentence
    assert "better by 0.0100 than" in made_up(0.5, (0.01, 0.001, 0.02)).sentence
    assert "one sound control in 20" in made_up(0.52, (0.0, 0.0, 0.0)).sentence
    assert "one sound" not in made_up(0.505, (0.0, 0.0, 0.0)).sentence
    assert "shows nothing" in made_up(math.nan, (0.0, 0.0, 0.0)).sentence


def test_without_moves_both_ways_it_shows_nothing() -> None:
    X, rows, folds = market(bars=700)
    still = rows.assign(move=0)
    control = null_control.null_control(
        X, still, folds, procedure=logistic, surrogates=12, resamples=20
    )
    assert "shows nothing" in control.sentence
    assert control.p_value is None
    assert control.to_dict()["real"][DIRECTIONAL]["value"] is None


def test_the_real_labels_can_be_left_out_and_asked_for() -> None:
    X, rows, folds = market(bars=700)
    many = null_control.null_control(
        X, rows, folds, procedure=logistic, surrogates=2, real=False, resamples=20
    )
    assert many.p_value is None
    assert many.sentence.endswith("(chance is 0.5).")
    one = null_control.null_control(X, rows, folds, procedure=logistic, real=True, resamples=20)
    assert one.p_value is None
    assert one.table()["labels"].tolist()[0] == "real"


def test_a_procedure_that_returns_something_else_is_refused() -> None:
    X, rows, folds = market(bars=700)
    with pytest.raises(ScoreError, match="shape"):
        null_control.null_control(X, rows, folds, procedure=lambda *_: [0.5])


def test_on_real_candles(real_candles_folder: Path) -> None:
    candles = load_candles(real_candles_folder / "binance_BTCUSDT_4h.parquet", days=360)
    rows = complete_rows(feature_matrix(candles), make_labels(candles).frame)
    folds = make_folds(rows.index, rows["label_end"])[:-1]
    control = null_control.null_control(
        rows[list(DEFAULT_FEATURES)], rows, folds, SMALL, resamples=200
    )
    assert control.passed


# Figures


@pytest.mark.parametrize("count", [1, 7, 8, 50])
@pytest.mark.parametrize("real", [None, 0.55])
def test_the_control_is_drawn(count: int, real: float | None) -> None:
    one = made_up(0.51, (0.0, 0.0, 0.0), real)
    figure = luck_plots.plot_null(NullControl(one.surrogates * count, one.real, None, (), 0.95))
    axes = figure.axes[0]
    assert figure.get_label()
    assert axes.get_xlabel() == "directional AUC"
    texts = [text.get_text() for text in axes.get_yticklabels()]
    assert texts == (["turned by 7 rows"] * count if count < 8 else [f"{count} surrogates"])
    legend = axes.get_legend()
    assert legend is not None
    assert len(legend.get_texts()) == (1 if real is None else 2)


def test_nothing_to_draw_is_said() -> None:
    for figure in (
        luck_plots.plot_null(made_up(math.nan, (0.0, 0.0, 0.0))),
        luck_plots.plot_overfitting(None),
        luck_plots.plot_trials([], 0.1),
        luck_plots.plot_splits([], pd.DatetimeIndex([])),
    ):
        assert figure.get_label()


def test_overfitting_trials_and_splits_are_drawn() -> None:
    rng = np.random.default_rng(0)
    found = probability_of_backtest_overfitting(rng.normal(size=(64, 4)), 4)
    figure = luck_plots.plot_overfitting(found)
    shares = [bar.get_height() for bar in figure.axes[0].patches]  # type: ignore[attr-defined]
    assert sum(shares) == pytest.approx(1)
    same = probability_of_backtest_overfitting(np.zeros((64, 3)), 4)
    assert len(luck_plots.plot_overfitting(same).axes[0].patches) == 1
    lines = luck_plots.plot_trials([0.01, -0.02, 0.03], 0.0001).axes[0].get_lines()
    assert np.asarray(lines[1].get_ydata()).tolist() == [0.01, 0.01, 0.03]
    index = pd.date_range("2024-01-01", periods=40, freq="h", tz="UTC", name="timestamp")
    cv = CombinatorialPurgedSplit(4, 2, label_end=pd.Series(index + 3 * HOUR, index=index))
    splits = list(cv.split(pd.DataFrame(index=index)))
    figure = luck_plots.plot_splits(splits, index)
    left_out = 1 - sum(len(a) + len(b) for a, b in splits) / (6 * 40)
    assert f"6 splits of 40 rows; {left_out:.1%} left out" in str(figure.get_label())
