"""Every figure on ordinary and on degenerate input, and the numbers that the figures compute."""

from __future__ import annotations

import struct
from collections.abc import Callable

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, roc_auc_score
from statsmodels.stats.proportion import proportion_confint

from crypto_ml import feature_plots, interval_plots, plots, score_plots
from crypto_ml.settings import ScoreError


def hours(rows: int) -> pd.DatetimeIndex:
    return pd.date_range(
        "2024-01-01", periods=rows, freq="h", tz="UTC", unit="ms", name="timestamp"
    )


def make_predictions(rows: int = 1200, seed: int = 0) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    ensemble = generator.random(rows)
    up = generator.random(rows) < 0.3 + 0.4 * ensemble
    moved = generator.random(rows) < 0.5
    return pd.DataFrame(
        {
            "fold": np.arange(rows) * 6 // rows,
            "split": np.where(np.arange(rows) < rows * 5 // 6, "out_of_fold", "holdout"),
            "y": (moved & up).astype("int8"),
            "move": np.where(moved, np.where(up, 1, -1), 0).astype("int8"),
            "ensemble": ensemble,
            "volatility_only": generator.random(rows),
            "majority": 0.25,
        },
        index=hours(rows),
    )


CANDLES = pd.DataFrame(
    {"close": 100 * np.exp(np.cumsum(np.random.default_rng(1).normal(0, 0.01, 6000)))}, hours(6000)
).drop(hours(6000)[3000:3100])
FOLDS = pd.DataFrame(
    {
        "number": [0, 1],
        "name": ["0", "holdout"],
        "start": CANDLES.index[[2000, 4000]],
        "end": CANDLES.index[[4000, 5800]],
    }
)
GAPS = pd.DataFrame({"start": hours(6000)[[3000]], "end": hours(6000)[[3100]], "missing": [100]})
FEATURES = pd.DataFrame(np.random.default_rng(2).normal(size=(300, 4)), columns=[*"abcd"])
DRIFT = pd.DataFrame({"0": [0.1, 0.9], "holdout": [0.2, np.nan]}, index=["rsi_14", "close"])
LABELS = pd.DataFrame({"y": np.random.default_rng(3).integers(0, 2, 3000)}, hours(3000))
PREDICTIONS = make_predictions()
SCORES = pd.DataFrame(
    [
        {"fold": fold, "predictor": name, "metric": metric, "value": 0.5, "low": 0.4, "high": 0.6}
        for fold in range(3)
        for name in ("ensemble", "volatility_only", "majority")
        for metric in ("directional_auc", "roc_auc", "macro_f1", "log_loss")
    ]
)
FOREST = pd.DataFrame(
    {
        "predictor": ["ensemble", "majority"],
        "feature": ["close", "rsi_14"],
        "name": ["in use", "equal"],
        "value": [0.53, -0.5],
        "low": [0.51, -0.6],
        "high": [0.56, -0.4],
    }
)
GAP = pd.DataFrame({"model": ["a", "b"], "in_sample": [0.9, 0.99], "out_of_sample": [0.5, 0.6]})
EQUITY = pd.DataFrame({"gross": 1.1, "net": 0.9, "buy_and_hold": 1.0}, index=hours(50))

FIGURES: dict[str, Callable[[], Figure]] = {
    "price": lambda: plots.plot_price(CANDLES, FOLDS, GAPS, unit="USDT"),
    "price_log": lambda: plots.plot_price(CANDLES, log=True),
    "distributions": lambda: feature_plots.plot_feature_distributions(FEATURES),
    "correlation": lambda: feature_plots.plot_feature_correlation(FEATURES),
    "drift": lambda: feature_plots.plot_feature_drift(DRIFT),
    "labels": lambda: plots.plot_labels(LABELS, {"not_yet_known": 1, "no_volatility": 0}),
    "ranking": lambda: score_plots.plot_ranking(PREDICTIONS),
    "calibration": lambda: score_plots.plot_calibration(PREDICTIONS),
    "over_time": lambda: score_plots.plot_score_over_time(PREDICTIONS),
    "verdict": lambda: interval_plots.plot_verdict(FOREST, 0.03),
    "folds": lambda: interval_plots.plot_fold_scores(SCORES),
    "importance": lambda: interval_plots.plot_importance(FOREST),
    "gap": lambda: interval_plots.plot_overfit_gap(GAP, baseline=0.7),
    "weights": lambda: interval_plots.plot_weights(FOREST),
    "equity": lambda: interval_plots.plot_equity(EQUITY),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figure_is_labelled_wide_and_legible(name: str) -> None:
    figure = FIGURES[name]()
    assert len(str(figure.get_label())) > 20, "no alternative text"
    assert "nan" not in str(figure.get_label()).split()
    assert figure.get_figwidth() == plots.WIDTH
    figure.draw_without_rendering()
    for axes in figure.axes:
        ticks = [
            *(axes.get_xticklabels() if axes.xaxis.get_visible() else []),
            *(axes.get_yticklabels() if axes.yaxis.get_visible() else []),
        ]
        assert all(tick.get_fontsize() >= 10 for tick in ticks if tick.get_text())
    used = [axes for axes in figure.axes if axes.axison]
    named = [axes.get_xlabel() or axes.get_ylabel() or axes.get_title() for axes in used]
    assert all(named) or figure.axes[0].images, "an axis without a name"


@pytest.mark.parametrize("name", FIGURES)
def test_same_input_same_bytes_whatever_the_global_style(name: str) -> None:
    before = dict(mpl.rcParams)
    first = plots.figure_png(FIGURES[name]())
    assert dict(mpl.rcParams) == before, "the global style changed"
    with mpl.rc_context(
        {"font.size": 30, "axes.grid": True, "savefig.dpi": 33, "lines.linewidth": 9}
    ):
        second = plots.figure_png(FIGURES[name]())
    assert first == second
    assert b"Software" not in first and b"matplotlib" not in first.lower()
    width, _ = struct.unpack(">II", first[16:24])
    assert width == round(plots.WIDTH * 144)


def test_importing_changes_no_style() -> None:
    defaults = mpl.rcParamsDefault
    assert mpl.rcParams["font.size"] == defaults["font.size"]
    assert mpl.rcParams["axes.spines.top"] == defaults["axes.spines.top"]


def test_series_differ_without_colour() -> None:
    looks = [(style, marker) for _, style, marker in plots.LINES.values()]
    assert len(set(looks)) == len(looks)
    assert plots.line_of("a_new_one", 1) == [*plots.LINES.values()][1]
    assert plots.line_of("ensemble", 5) == plots.LINES["ensemble"]


ONE_CLASS = PREDICTIONS.assign(y=0, move=0)
NAN_SCORES = SCORES.assign(value=np.nan)
EMPTY: dict[str, Callable[[], Figure]] = {
    "price": lambda: plots.plot_price(CANDLES.head(0)),
    "price_nan": lambda: plots.plot_price(CANDLES * np.nan),
    "distributions": lambda: feature_plots.plot_feature_distributions(FEATURES.head(0)),
    "correlation_one_column": lambda: feature_plots.plot_feature_correlation(FEATURES[["a"]]),
    "correlation_one_row": lambda: feature_plots.plot_feature_correlation(FEATURES.head(1)),
    "drift": lambda: feature_plots.plot_feature_drift(DRIFT.head(0)),
    "labels": lambda: plots.plot_labels(LABELS.head(0), {"no_volatility": 3}),
    "ranking_one_class": lambda: score_plots.plot_ranking(ONE_CLASS),
    "ranking_empty": lambda: score_plots.plot_ranking(PREDICTIONS.head(0)),
    "calibration": lambda: score_plots.plot_calibration(PREDICTIONS.head(0)),
    "over_time_one_class": lambda: score_plots.plot_score_over_time(ONE_CLASS),
    "over_time_one_row": lambda: score_plots.plot_score_over_time(PREDICTIONS.head(1)),
    "over_time_one_label": lambda: score_plots.plot_score_over_time(ONE_CLASS, statistic="roc_auc"),
    "verdict": lambda: interval_plots.plot_verdict(FOREST.assign(value=np.nan)),
    "verdict_other": lambda: interval_plots.plot_verdict(SCORES, statistic="mcc"),
    "folds": lambda: interval_plots.plot_fold_scores(NAN_SCORES),
    "importance": lambda: interval_plots.plot_importance(FOREST.head(0)),
    "gap": lambda: interval_plots.plot_overfit_gap(GAP.assign(in_sample=np.nan)),
    "weights": lambda: interval_plots.plot_weights(FOREST.head(0)),
    "equity": lambda: interval_plots.plot_equity(EQUITY.head(0)),
    "equity_nan": lambda: interval_plots.plot_equity(EQUITY * np.nan),
}


@pytest.mark.parametrize("name", EMPTY)
def test_nothing_to_draw_is_said(name: str) -> None:
    figure = EMPTY[name]()
    assert str(figure.get_label()).startswith("No data: ")
    assert figure.texts[0].get_text().replace("\n", " ") == figure.get_label()


SMALL: dict[str, Callable[[], Figure]] = {
    "one_candle": lambda: plots.plot_price(CANDLES.head(1), log=True),
    "three_candles": lambda: plots.plot_price(CANDLES.head(3)),
    "empty_folds": lambda: plots.plot_price(CANDLES.head(9), FOLDS.head(0), GAPS.head(0)),
    "constant_price": lambda: plots.plot_price(CANDLES.head(9) * 0 + 5, log=True),
    "wide_price": lambda: plots.plot_price(
        CANDLES.head(99) ** np.linspace(0, 3, 99)[:, None], log=True
    ),
    "constant_feature": lambda: feature_plots.plot_feature_distributions(FEATURES * 0),
    "nan_feature": lambda: feature_plots.plot_feature_distributions(FEATURES * np.nan),
    "infinite_feature": lambda: feature_plots.plot_feature_distributions(FEATURES + np.inf),
    "constant_columns": lambda: feature_plots.plot_feature_correlation(FEATURES * 0),
    "anticorrelated": lambda: feature_plots.plot_feature_correlation(
        FEATURES.assign(e=-FEATURES["a"])
    ),
    "one_label": lambda: plots.plot_labels(LABELS.head(1)),
    "one_class_labels": lambda: plots.plot_labels(LABELS * 0, {}),
    "a_month_of_labels": lambda: plots.plot_labels(LABELS.head(700)),
    "one_prediction": lambda: score_plots.plot_calibration(PREDICTIONS.head(1)),
    "constant_prediction": lambda: score_plots.plot_calibration(PREDICTIONS, "majority"),
    "holdout": lambda: score_plots.plot_ranking(PREDICTIONS, ["ensemble"], "holdout"),
    "one_metric": lambda: interval_plots.plot_fold_scores(SCORES, ["log_loss"], ["ensemble"]),
    "names": lambda: interval_plots.plot_fold_scores(
        SCORES, ["mcc", "roc_auc"], names={2: "holdout"}
    ),
    "no_edge_known": lambda: interval_plots.plot_verdict(FOREST.head(1)),
    "no_baseline": lambda: interval_plots.plot_overfit_gap(GAP.head(1)),
    "net_only": lambda: interval_plots.plot_equity(
        EQUITY[["net"]] * np.linspace(1, 400, 50)[:, None]
    ),
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.filterwarnings("error")
def test_small_and_odd_input_is_drawn_without_a_warning(name: str) -> None:
    figure = SMALL[name]()
    assert not str(figure.get_label()).startswith("No data")
    assert len(plots.figure_png(figure, dpi=40)) > 500


BAD: dict[str, tuple[Callable[[], object], str]] = {
    "candles": (
        lambda: plots.plot_price(CANDLES.rename(columns={"close": "Close"})),
        "close.*Close",
    ),
    "naive": (lambda: plots.plot_price(CANDLES.tz_localize(None)), "indexed by time in UTC"),
    "numbers": (lambda: plots.plot_labels(LABELS.reset_index()), "indexed by time in UTC"),
    "folds": (lambda: plots.plot_price(CANDLES, FOLDS.drop(columns="end")), "the folds lacks.*end"),
    "gaps": (lambda: plots.plot_price(CANDLES, None, GAPS[["end"]]), "start, missing"),
    "labels": (lambda: plots.plot_labels(LABELS.rename(columns={"y": "x"})), "column y"),
    "predictor": (lambda: score_plots.plot_ranking(PREDICTIONS, ["nobody"]), "nobody"),
    "nan": (
        lambda: score_plots.plot_calibration(PREDICTIONS.assign(ensemble=np.nan)),
        "no value of",
    ),
    "scores": (lambda: interval_plots.plot_fold_scores(SCORES.drop(columns="low")), "low"),
    "forest": (lambda: interval_plots.plot_importance(FOREST.drop(columns="high")), "high"),
    "gap": (lambda: interval_plots.plot_overfit_gap(GAP[["model"]]), "in_sample, out_of_sample"),
    "returns": (lambda: interval_plots.plot_equity(EQUITY - 1), "1.1 for"),
    "no_curve": (lambda: interval_plots.plot_equity(EQUITY[[]]), "gross, net, buy_and_hold"),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_input_is_refused_by_name(name: str) -> None:
    call, message = BAD[name]
    with pytest.raises(ScoreError, match=message):
        call()


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=400),
    st.integers(2, 100),
)
def test_thinning_keeps_extremes_and_order(values: list[float], most: int) -> None:
    series = pd.Series(values, index=range(len(values)))
    kept = plots.thin(series, most)
    assert len(kept) <= max(most, min(len(series), most))
    assert kept.min() == series.min() and kept.max() == series.max()
    assert kept.index.is_monotonic_increasing and kept.index.is_unique
    assert (series[kept.index] == kept).all()


def test_a_long_hole_breaks_the_line_and_a_short_one_does_not() -> None:
    for hole, broken in ((100, True), (2, False)):
        figure = plots.plot_price(CANDLES.head(3000).drop(CANDLES.index[1000 : 1000 + hole]))
        line = figure.axes[0].lines[0].get_ydata()
        assert bool(np.isnan(line).any()) is broken


def test_price_keeps_the_spike() -> None:
    spiky = CANDLES.copy()
    spiky.iloc[4321, 0] = 9999.0
    assert np.nanmax(plots.plot_price(spiky).axes[0].lines[0].get_ydata()) == 9999.0


def test_log_axis_has_several_labelled_ticks() -> None:
    for reach in (1.2, 3, 30, 3e4):
        figure = plots.plot_price(
            pd.DataFrame({"close": np.geomspace(1, reach, 50)}, hours(50)), log=True
        )
        plots.figure_png(figure)
        low, high = figure.axes[0].get_ylim()
        shown = [tick for tick in figure.axes[0].get_yticks() if low <= tick <= high]
        assert len(shown) >= 3
        assert not isinstance(figure.axes[0].yaxis.get_major_formatter(), NullFormatter)


@given(st.integers(0, 500), st.integers(0, 500), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_wilson_equals_statsmodels(successes: int, failures: int, confidence: float) -> None:
    trials = successes + failures
    low, high = plots.wilson_interval(successes, trials, confidence)
    if not trials:
        assert (low, high) == (0.0, 1.0)
        return
    expected = proportion_confint(successes, trials, 1 - confidence, method="wilson")
    np.testing.assert_allclose([low, high], expected, atol=1e-12)
    assert 0 <= low <= successes / trials <= high <= 1


@pytest.mark.parametrize(
    ("days", "period"), [(10, "day"), (60, "week"), (700, "month"), (4000, "quarter")]
)
def test_labels_are_counted_by_a_readable_period(days: int, period: str) -> None:
    index = pd.date_range("2014-01-01", periods=days, freq="D", tz="UTC")
    labels = pd.DataFrame({"y": np.arange(days) % 4 == 0}, index=index)
    figure = plots.plot_labels(labels)
    assert f"per {period} between" in str(figure.get_label())
    segments = figure.axes[1].collections[0].get_segments()
    assert sum(segment[1][1] for segment in segments) == days
    assert len(segments) <= 62


def test_mean_curves_are_the_mean_over_folds() -> None:
    curves, area, precision = score_plots.mean_curves(PREDICTIONS, "ensemble")
    folds = [group for _, group in PREDICTIONS[PREDICTIONS["fold"] < 5].groupby("fold")]
    assert area == pytest.approx(np.mean([roc_auc_score(f["y"], f["ensemble"]) for f in folds]))
    assert precision == pytest.approx(
        np.mean([average_precision_score(f["y"], f["ensemble"]) for f in folds])
    )
    assert np.trapezoid(curves["true_positive_rate"], curves["rate"]) == pytest.approx(
        area, abs=0.01
    )
    assert curves["precision"][1:].mean() == pytest.approx(precision, abs=0.02)
    assert curves["true_positive_rate"].is_monotonic_increasing
    assert curves["precision"].iloc[-1] == pytest.approx(
        np.mean([f["y"].mean() for f in folds]), abs=0.01
    )


def test_a_drifting_base_rate_earns_nothing() -> None:
    rows = make_predictions(3000, 5)
    rate = rows["fold"].map({0: 0.1, 1: 0.3, 2: 0.5, 3: 0.7, 4: 0.9, 5: 0.9})
    rows = rows.assign(y=(np.random.default_rng(0).random(3000) < rate).astype(int), rule=rate)
    early = rows[rows["fold"] < 5]
    assert roc_auc_score(early["y"], early["rule"]) > 0.7, "pooled, the rule looks skilled"
    assert score_plots.mean_curves(rows, "rule")[1] == 0.5


@given(st.integers(20, 400), st.integers(2, 12), st.integers(0, 99))
def test_calibration_bins_equal_scikit_learn(rows: int, bins: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    p = generator.random(rows)
    y = generator.random(rows) < p
    table = score_plots.calibration_bins(y, p, bins)
    assert table["rows"].sum() == rows and table["rows"].max() - table["rows"].min() <= 2
    assert table["predicted"].is_monotonic_increasing
    assert (table["low"] <= table["observed"]).all() and (table["observed"] <= table["high"]).all()
    if rows % bins == 0:
        observed, predicted = calibration_curve(y, p, n_bins=bins, strategy="quantile")
        if len(observed) == len(table):
            np.testing.assert_allclose(table["predicted"], predicted, atol=0.05)


def test_equal_probabilities_stay_in_one_bin() -> None:
    table = score_plots.calibration_bins([0, 1, 1, 0], [0.2, 0.2, 0.2, 0.2])
    assert table["rows"].tolist() == [4] and table["observed"].tolist() == [0.5]
    assert score_plots.calibration_bins([], []).empty


@given(st.integers(0, 999))
def test_paired_auc_is_the_pair_weighted_mean_over_folds(seed: int) -> None:
    generator = np.random.default_rng(seed)
    fold = np.sort(generator.integers(0, 3, 60))
    score = generator.integers(0, 8, 60) / 8  # with ties
    target = generator.random(60) < 0.5
    wins = pairs = 0.0
    for number in range(3):
        for one in score[(fold == number) & target]:
            for other in score[(fold == number) & ~target]:
                wins += float(one > other) + 0.5 * float(one == other)
                pairs += 1
    assert score_plots._paired_auc(target, score, fold) == pytest.approx(wins / pairs)


def test_rolling_auc_is_the_auc_of_each_window() -> None:
    rows = PREDICTIONS.assign(fold=0)
    table = score_plots.rolling_auc(rows, statistic="roc_auc", window=300, points=4)
    assert table.attrs["window"] == 300 and len(table) == 4
    for end, value in zip(table.index, table["value"], strict=True):
        part = rows.loc[:end].tail(300)
        assert value == pytest.approx(roc_auc_score(part["y"], part["ensemble"]))
    assert (table["low"] < table["value"]).all() and (table["value"] < table["high"]).all()


def test_directional_windows_hold_only_rows_that_moved() -> None:
    still = PREDICTIONS.assign(
        ensemble=np.where(PREDICTIONS["move"] == 0, 0.99, PREDICTIONS["ensemble"])
    )
    expected = score_plots.rolling_auc(PREDICTIONS)
    pd.testing.assert_frame_equal(score_plots.rolling_auc(still), expected)


def test_the_band_covers_a_coin_about_as_often_as_it_says() -> None:
    covered = []
    for seed in range(150):
        generator = np.random.default_rng(seed)
        rows = pd.DataFrame(
            {"fold": 0, "y": generator.integers(0, 2, 400), "move": 0, "p": generator.random(400)},
            index=hours(400),
        )
        last = score_plots.rolling_auc(rows, "p", "roc_auc", window=400).iloc[-1]
        covered.append(last["low"] <= 0.5 <= last["high"])
    assert 0.88 <= np.mean(covered) <= 0.99


def test_intervals_are_drawn_where_they_are() -> None:
    figure = interval_plots.plot_verdict(FOREST, 0.03)
    axes = figure.axes[0]
    (line, strong) = axes.collections[:2] if len(axes.collections) >= 2 else (None, None)
    segments = [segment for each in (line, strong) for segment in each.get_segments()]
    assert {(round(s[0][0], 6), round(s[1][0], 6)) for s in segments} == {
        (0.51, 0.56),
        (-0.6, -0.4),
    }
    assert [text.get_text() for text in axes.get_yticklabels()] == ["ensemble", "majority"]
    assert [text.get_text() for text in axes.texts] == [
        "0.530 [0.510, 0.560]",
        "−0.500 [−0.600, −0.400]",
    ]


def test_verdict_reads_its_statistic_from_a_tidy_table() -> None:
    tidy = SCORES.assign(value=np.where(SCORES["metric"] == "roc_auc", 0.9, 0.5))
    assert "0.900" not in str(interval_plots.plot_verdict(tidy).get_label())
    assert "0.900" in str(interval_plots.plot_verdict(tidy, statistic="roc_auc").get_label())


def test_importance_is_sorted_and_cut() -> None:
    table = pd.DataFrame({"feature": [f"f{i}" for i in range(30)], "value": np.arange(30.0)})
    figure = interval_plots.plot_importance(table.assign(low=0.0, high=30.0), most=5)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == [
        "f29",
        "f28",
        "f27",
        "f26",
        "f25",
    ]
