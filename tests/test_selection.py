"""Selection: only training rows, the planted columns, nothing in noise, the same again."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import lightgbm
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline

from crypto_ml.features import DEFAULT_FEATURES, feature_matrix
from crypto_ml.labels import make_labels
from crypto_ml.ranking import SMALL_TREES, _resampled, forward_curve, importance_draws, rank_columns
from crypto_ml.redundancy import (
    cluster_columns,
    rank_correlation,
    single_importance,
    useless_columns,
)
from crypto_ml.scores import score_table
from crypto_ml.selection import FeatureSelector, SelectionOptions, selection_sentence
from crypto_ml.selection_plots import plot_chosen, plot_clusters, plot_forward, plot_set_scores
from crypto_ml.set_comparison import (
    compare_sets,
    comparison_sentence,
    draw_sets,
    set_columns,
)
from crypto_ml.settings import FeatureError, ModelError, SettingsError, SplitError
from crypto_ml.simulate import simulate
from crypto_ml.splits import Fold, PurgedTimeSeriesSplit, make_folds

TINY = {"n_estimators": 15, "num_leaves": 6, "learning_rate": 0.15, "min_child_samples": 30}
QUICK = {"resamples": 4, "intervals": 600, "trees": TINY}


def planted(
    count: int = 1200, noise: int = 10, seed: int = 0, strength: float = 1.5
) -> pd.DataFrame:
    """Rows whose answer depends on `signal` and `second`, with noise columns beside them."""
    generator = np.random.default_rng(seed)
    index = pd.date_range("2024-01-01", periods=count, freq="h", tz="UTC", name="timestamp")
    index = index.as_unit("ms")
    values = {f"noise_{number}": generator.normal(size=count) for number in range(noise)}
    values |= {"signal": generator.normal(size=count), "second": generator.normal(size=count)}
    rows = pd.DataFrame(values, index=index)
    push = strength * (rows["signal"] + rows["second"]) + generator.logistic(size=count)
    rows["y"] = (push > 0).astype(np.int8)
    rows["ret"] = np.where(rows["y"] > 0, 0.01, -0.01)
    rows["move"] = np.where(rows["y"] > 0, 1, -1).astype(np.int8)
    rows["label_end"] = index + pd.Timedelta(hours=2)
    return rows


def columns_of(rows: pd.DataFrame) -> list[str]:
    return [name for name in rows.columns if name not in ("y", "ret", "move", "label_end")]


def fitted(rows: pd.DataFrame, **changes: object) -> FeatureSelector:
    options = {"k": 3, "label_end": rows["label_end"], **QUICK, **changes}
    return FeatureSelector(**options).fit(rows[columns_of(rows)], rows["y"])


def same_choice(a: FeatureSelector, b: FeatureSelector) -> None:
    assert a.chosen_ == b.chosen_
    pd.testing.assert_frame_equal(a.draws_, b.draws_, check_exact=True)
    pd.testing.assert_frame_equal(a.correlation_, b.correlation_, check_exact=True)
    pd.testing.assert_series_equal(a.single_, b.single_, check_exact=True)


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return planted()


@pytest.fixture(scope="module")
def selector(rows: pd.DataFrame) -> FeatureSelector:
    return fitted(rows)


# What is chosen


def test_planted_columns_are_chosen_and_confirmed(selector: FeatureSelector) -> None:
    assert set(selector.chosen_[:2]) == {"signal", "second"}
    assert set(selector.confirmed_) == {"signal", "second"}
    assert selector.together_.high < 0
    assert selection_sentence(selector).startswith("3 were asked for, 2 are confirmed (")


def test_80_columns_of_noise_on_a_simulated_market() -> None:
    market = simulate("sim:strong", bars=2400)
    labels = make_labels(market.candles, "threshold", threshold=0.003).frame
    features = feature_matrix(market.candles)
    noise = [f"noise_{number}" for number in range(80)]
    features[noise] = np.random.default_rng(3).normal(size=(len(features), 80))
    table = features.dropna().join(labels, how="inner")
    found = fitted(table, k=12, resamples=3, trees=None)
    intruders = set(found.chosen_) & set(noise)
    real = len({members for members in found.clusters_ if not set(members) & set(noise)})
    assert real == 7  # the 12 defaults fall into so few clusters: at least 5 places go to noise
    assert len(intruders) <= 9
    assert found.chosen_[0] in DEFAULT_FEATURES
    assert not set(found.confirmed_) & set(noise)


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_confirmed_when_answers_are_shuffled(seed: int) -> None:
    rows = planted(900, noise=14, seed=seed, strength=0)
    found = fitted(rows, k=6, resamples=2)
    assert found.confirmed_ == ()
    assert "none is confirmed" in selection_sentence(found)


def test_copies_and_constants_never_reach_the_ranking(rows: pd.DataFrame) -> None:
    doubled = rows.assign(copy=rows["signal"], mirrored=-rows["second"], always=3.0)
    found = fitted(doubled)
    assert found.dropped_ == {"copy": "equal to signal", "always": "constant"}
    assert ("second", "mirrored") in found.clusters_
    assert len({"second", "mirrored"} & set(found.ranking_.index)) == 1
    assert {"signal"} <= set(found.confirmed_)


def test_the_member_that_predicts_best_alone_stands_for_its_cluster(rows: pd.DataFrame) -> None:
    blurred = rows["signal"] + 0.25 * np.random.default_rng(9).normal(size=len(rows))
    table = rows.drop(columns="signal")
    table.insert(0, "blurred", blurred)
    table.insert(1, "signal", rows["signal"])
    found = fitted(table)
    assert ("blurred", "signal") in found.clusters_
    assert found.single_["signal"] > found.single_["blurred"]
    assert "signal" in found.ranking_.index
    assert found.ranking_.loc["signal", "members"] == ("blurred", "signal")


def test_no_more_than_there_are_to_choose_from(rows: pd.DataFrame) -> None:
    few = rows[["signal", "noise_0", "y", "ret", "move", "label_end"]]
    found = fitted(few, k=12, resamples=0)
    assert set(found.chosen_) == {"signal", "noise_0"}
    assert "12 were asked for (2 are all there is to choose from)" in selection_sentence(found)


def test_a_single_column_is_chosen(rows: pd.DataFrame) -> None:
    found = fitted(rows[["signal", "y", "ret", "move", "label_end"]], k=1)
    assert found.chosen_ == ("signal",)
    assert "1 is confirmed (signal)" in selection_sentence(found)


# What it may look at


@pytest.mark.parametrize("tamper", ["features", "answers", "gone"])
def test_confirming_rows_choose_nothing(
    rows: pd.DataFrame, selector: FeatureSelector, tamper: str
) -> None:
    *_, confirming = make_folds(rows.index, rows["label_end"], 3, 0.25)
    changed, late = rows.copy(), rows.index[confirming.test]
    if tamper == "answers":
        changed.loc[late, "y"] = 1 - changed.loc[late, "y"]
    else:
        columns = columns_of(rows)
        noise = np.random.default_rng(1).normal(size=(len(late), len(columns)))
        changed.loc[late, columns] = noise if tamper == "features" else 0.0
    other = fitted(changed)
    same_choice(selector, other)
    assert other.curve_["log_loss"].iloc[-1] != selector.curve_["log_loss"].iloc[-1]


def test_the_choice_of_each_fold_sees_its_training_rows_only(rows: pd.DataFrame) -> None:
    folds = make_folds(rows.index, rows["label_end"], 2, 0.25)
    columns, ready = columns_of(rows), FeatureSelector(k=3, **QUICK)
    options = {"selector": ready, "parameters": TINY, "default": columns[:2], "draws": 1}
    plain = compare_sets(rows, columns, folds, resamples=50, jobs=1, **options)
    for number, fold in enumerate(folds):
        changed, after = rows.copy(), rows.index[fold.test[0] :]
        noise = np.random.default_rng(number).normal(size=(len(after), len(columns)))
        changed.loc[after, columns] = noise
        changed.loc[after, "y"] = 1 - changed.loc[after, "y"]
        other = compare_sets(
            changed,
            columns,
            [fold, folds[-1]] if number < 2 else folds,
            resamples=50,
            jobs=1,
            **options,
        )
        again = next(each for each in other.choices if each.fold.number == fold.number)
        same_choice(plain.choices[number].selector, again.selector)
        curve = plain.choices[number].selector.curve_
        pd.testing.assert_frame_equal(curve, again.selector.curve_, check_exact=True)


def test_models_are_judged_on_rows_after_all_that_they_were_fitted_on(rows: pd.DataFrame) -> None:
    fold = make_folds(rows.index, rows["label_end"], 3, 0)[1]
    drawn = _resampled(fold, rows["y"].to_numpy(np.int8), 5)
    assert set(drawn.train) < set(fold.train)
    assert len(drawn.train) == len(fold.train)
    assert (np.diff(drawn.train) >= 0).all()
    assert np.array_equal(drawn.test, fold.test)


def test_a_resample_has_both_answers() -> None:
    y = np.zeros(400, np.int8)
    y[7] = 1
    fold = Fold(0, "fold 0", np.arange(300), np.arange(300, 400))
    for seed in range(5):
        assert y[_resampled(fold, y, seed).train].sum() > 0


# The same again


def test_the_same_seed_gives_the_same_choice(rows: pd.DataFrame, selector: FeatureSelector) -> None:
    again = fitted(rows)
    same_choice(selector, again)
    pd.testing.assert_frame_equal(selector.curve_, again.curve_, check_exact=True)
    other = fitted(rows, seed=7)
    assert not other.draws_.equals(selector.draws_)


def test_any_number_of_processes_gives_the_same(rows: pd.DataFrame) -> None:
    folds = make_folds(rows.index, rows["label_end"], 2, 0.25)
    seen: list[tuple[int, int, str]] = []
    one, two = (
        compare_sets(
            rows,
            columns_of(rows),
            folds,
            selector=FeatureSelector(k=3, resamples=1, intervals=50, trees=TINY),
            parameters=TINY,
            default=["noise_0", "noise_1"],
            draws=2,
            resamples=60,
            jobs=jobs,
            progress=lambda *step: seen.append(step),
        )
        for jobs in (1, 2)
    )
    pd.testing.assert_frame_equal(one.predictions, two.predictions, check_exact=True)
    assert one.sentence == two.sentence
    assert [step[:2] for step in seen] == 2 * [(1, 3), (2, 3), (3, 3)]
    assert {step[2] for step in seen} == {"fold 0", "fold 1", "holdout"}


# Parts


def test_rank_correlation_is_that_of_scipy(rows: pd.DataFrame) -> None:
    table = rows[columns_of(rows)[:5]].assign(steps=np.arange(len(rows)) // 100)
    expected = np.abs(spearmanr(table.to_numpy()).statistic)
    assert np.allclose(rank_correlation(table), expected, rtol=0, atol=1e-12)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.floats(0.2, 1.0))
def test_every_pair_of_a_cluster_is_correlated(seed: int, threshold: float) -> None:
    generator = np.random.default_rng(seed)
    base = generator.normal(size=(60, 3))
    mixed = base @ generator.normal(size=(3, 9)) + 0.3 * generator.normal(size=(60, 9))
    table = pd.DataFrame(mixed, columns=[f"c{number}" for number in range(9)])
    clusters = cluster_columns(table, threshold)
    assert sorted(itertools.chain(*clusters)) == sorted(table.columns)
    strength = rank_correlation(table)
    for members in clusters:
        for a, b in itertools.combinations(members, 2):
            assert strength.loc[a, b] >= threshold - 1e-9


def test_useless_columns_are_told_apart() -> None:
    table = pd.DataFrame({"a": [0.0, 1.0], "b": [-0.0, 1.0], "c": [1.0, 1.0], "d": [1.0, 0.0]})
    assert useless_columns(table) == {"b": "equal to a", "c": "constant"}
    assert useless_columns(table.iloc[:0]) == dict.fromkeys("abcd", "constant")


def test_importance_of_a_column_by_itself_is_what_it_says(rows: pd.DataFrame) -> None:
    folds = make_folds(rows.index, rows["label_end"], 3, 0)
    gain = single_importance(rows[["signal", "noise_0"]], rows["y"], folds)
    expected = []
    for fold in folds:
        train, test = rows.iloc[fold.train], rows.iloc[fold.test]
        edges = [-np.inf, *train["signal"].quantile(np.arange(0.1, 0.95, 0.1)), np.inf]
        rate = (train["y"].sum() + 0.5) / (len(train) + 1)
        parts = train["y"].groupby(pd.cut(train["signal"], edges, right=False), observed=False)
        chance = (parts.sum() + 20 * rate) / (parts.count() + 20)
        said = pd.cut(test["signal"], edges, right=False).map(chance).astype(float)
        y = test["y"]
        loss = -(y * np.log(said) + (1 - y) * np.log(1 - said)).mean()
        base = -(y * np.log(rate) + (1 - y) * np.log(1 - rate)).mean()
        expected.append(base - loss)
    assert gain["signal"] == pytest.approx(np.mean(expected), abs=1e-12)
    assert gain["noise_0"] < gain["signal"]


def test_ranking_counts_how_often_a_column_is_among_the_first() -> None:
    draws = pd.DataFrame(
        {"a": [0.3, 0.2, 0.1], "b": [0.2, 0.3, -0.1], "c": [0.1, 0.1, 0.4], "d": [-1.0, -1, -1]}
    )
    table = rank_columns(draws, 2)
    assert table.index.tolist() == ["a", "b", "c", "d"]
    assert table["frequency"].tolist() == pytest.approx([1, 2 / 3, 1 / 3, 0])
    assert table.loc["c", "importance"] == pytest.approx(0.2)
    # harm done by luck among few columns is no merit: below 0 is never chosen
    assert rank_columns(draws[["d"]], 5)["frequency"].tolist() == [0]


def test_importance_of_what_no_tree_uses_is_zero(rows: pd.DataFrame) -> None:
    fold = make_folds(rows.index, rows["label_end"], 2, 0)[:1]
    stump = {"n_estimators": 1, "num_leaves": 2}
    draws = importance_draws(rows[["noise_0", "signal"]], rows["y"], fold, resamples=0, trees=stump)
    assert draws.index.tolist() == ["fold 0"]
    assert draws.loc["fold 0", "noise_0"] == 0
    assert draws.loc["fold 0", "signal"] > 0
    never = {"n_estimators": 1, "min_child_samples": 10**6}
    assert (
        not importance_draws(rows[["signal"]], rows["y"], fold, resamples=1, trees=never)
        .to_numpy()
        .any()
    )


def test_each_step_is_the_difference_of_two_losses(rows: pd.DataFrame) -> None:
    fold = make_folds(rows.index, rows["label_end"], 2, 0.25)[-1]
    table = rows[["signal", "second", "noise_0"]]
    curve, together = forward_curve(table, rows["y"], fold, trees=TINY, intervals=400)
    assert curve.index.tolist() == ["base rate", "signal", "second", "noise_0"]
    assert np.allclose(curve["log_loss"].diff().iloc[1:], curve["step"].iloc[1:])
    assert together.value == pytest.approx(curve["step"].sum())
    assert curve["confirmed"].tolist() == [False, True, True, False]
    wider, _ = forward_curve(table, rows["y"], fold, trees=TINY, intervals=400, confidence=0.999)
    assert (wider["high"] >= curve["high"]).iloc[1:].all()


# scikit-learn


def test_it_is_a_transformer_of_scikit_learn(rows: pd.DataFrame, selector: FeatureSelector) -> None:
    X = rows[columns_of(rows)]
    mask = selector.get_support()
    assert mask.dtype == bool
    assert X.columns[mask].tolist() == selector.get_feature_names_out().tolist()
    assert set(selector.get_feature_names_out()) == set(selector.chosen_)
    assert np.array_equal(selector.transform(X), X.loc[:, mask].to_numpy())
    bare = clone(selector)
    assert bare.get_params()["k"] == 3
    with pytest.raises(NotFittedError):
        bare.get_support()
    with pytest.raises(NotFittedError):
        selection_sentence(bare)


def test_it_works_in_a_pipeline_under_purged_cross_validation(rows: pd.DataFrame) -> None:
    model = lightgbm.LGBMClassifier(**TINY, n_jobs=1, verbose=-1, random_state=0)
    chooser = FeatureSelector(k=2, label_end=rows["label_end"], **(QUICK | {"resamples": 0}))
    pipeline = make_pipeline(chooser.set_output(transform="pandas"), model)
    scores = cross_val_score(
        pipeline,
        rows[columns_of(rows)],
        rows["y"],
        cv=PurgedTimeSeriesSplit(2, label_end=rows["label_end"]),
        scoring="roc_auc",
    )
    assert scores.min() > 0.75


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda s, X, y: (s.set_params(label_end=None), X, y), FeatureError, "label_end"),
        (lambda s, X, y: (s, X.to_numpy(), y), FeatureError, "DataFrame indexed by bar open"),
        (lambda s, X, y: (s, X.reset_index(drop=True), y), FeatureError, "indexed by bar open"),
        (lambda s, X, y: (s.set_params(k=0), X, y), FeatureError, "k of at least 1"),
        (lambda s, X, y: (s.set_params(threshold=1.5), X, y), FeatureError, "threshold is 1.5"),
        (lambda s, X, y: (s, X, y[:-1]), FeatureError, "y must hold 0 or 1"),
        (lambda s, X, y: (s, X, y + 1), FeatureError, "y must hold 0 or 1"),
        (lambda s, X, y: (s, X.assign(signal=np.nan), y), ModelError, "signal"),
        (lambda s, X, y: (s, X * 0, y), FeatureError, "nothing can be chosen"),
        (lambda s, X, y: (s, X, y * (np.arange(len(y)) > 400)), FeatureError, "have y = 0"),
        (lambda s, X, y: (s, X.iloc[::-1], y), SplitError, "time order"),
        (lambda s, X, y: (s.set_params(trees={"leaves": 3}), X, y), ModelError, "leaves"),
    ],
)
def test_what_cannot_be_chosen_from_is_refused(
    rows: pd.DataFrame, change: Callable[..., tuple], error: type[Exception], words: str
) -> None:
    bare = FeatureSelector(k=3, label_end=rows["label_end"], **QUICK)
    chooser, X, y = change(bare, rows[columns_of(rows)], rows["y"])
    with pytest.raises(error, match=words):
        chooser.fit(X, y)


def test_options_are_checked_together() -> None:
    assert SelectionOptions() == SelectionOptions("catalogue", 12, 20, "")
    with pytest.raises(SettingsError) as caught:
        SelectionOptions(candidates="", k=0, draws=True)
    assert len(caught.value.problems) == 3
    with pytest.raises(FeatureError, match="built-in"):
        SelectionOptions(name="default")
    with pytest.raises(FeatureError, match="cannot be called"):
        SelectionOptions(name="Mine")


# Sets side by side


@pytest.fixture(scope="module")
def compared(rows: pd.DataFrame):
    return compare_sets(
        rows,
        columns_of(rows),
        make_folds(rows.index, rows["label_end"], 3, 0.25),
        selector=FeatureSelector(k=2, **(QUICK | {"resamples": 2})),
        parameters=dict(SMALL_TREES),
        default=["noise_0", "noise_1", "noise_2"],
        draws=4,
        resamples=200,
        jobs=1,
    )


def test_chosen_beats_noise_and_keeps_up_with_all(compared) -> None:
    assert set(compared.kept.chosen_) == {"signal", "second"}
    assert compared.difference("chosen", "default", "log_loss").high < 0
    assert compared.difference("chosen", "random", "log_loss").high < 0
    assert compared.difference("chosen", "default", "roc_auc", "holdout").low > 0
    assert compared.outcome in ("gains", "no difference")
    assert "are better than the default set" in compared.sentence
    assert "holdout" in compared.sentence


def test_scores_of_sets_are_those_of_the_score_table(compared, rows: pd.DataFrame) -> None:
    table = compared.predictions
    assert table.index.is_monotonic_increasing
    assert len(table) == len(set(table.index))
    assert (table["y"] == rows.loc[table.index, "y"]).all()
    random = set_columns(table)["random"]
    assert random == list(compared.random_sets)
    names = ["chosen", "all", "base_rate", *random]
    for split in ("out_of_fold", "holdout"):
        expected = score_table(
            table, names, metrics=["log_loss", "directional_auc"], split=split, resamples=200
        ).set_index(["predictor", "metric"])
        mine = compared.scores.query("split == @split").set_index(["set", "metric"])
        for metric in ("log_loss", "directional_auc"):
            for name in ("chosen", "all", "base_rate"):
                for bound in ("value", "low", "high"):
                    assert mine.loc[(name, metric), bound] == pytest.approx(
                        expected.loc[(name, metric), bound]
                    )
            mean = expected.loc[[(name, metric) for name in random], "value"].mean()
            assert mine.loc[("random", metric), "value"] == pytest.approx(mean)


def test_random_sets_are_drawn_by_the_seed() -> None:
    names = [f"c{number}" for number in range(30)]
    drawn = draw_sets(names, 12, 5, 1)
    assert list(drawn) == [f"random_{number:02}" for number in range(5)]
    assert all(len(set(each)) == 12 and set(each) <= set(names) for each in drawn.values())
    assert drawn == draw_sets(names, 12, 5, 1) != draw_sets(names, 12, 5, 2)
    assert len({tuple(each) for each in drawn.values()}) == 5
    assert draw_sets(names[:3], 12, 1, 1) == {"random_00": names[:3]}


@pytest.mark.parametrize("problem", ["column", "draws"])
def test_sets_that_cannot_be_compared_are_refused(rows: pd.DataFrame, problem: str) -> None:
    names = [*columns_of(rows), "absent"] if problem == "column" else columns_of(rows)
    with pytest.raises(FeatureError, match="absent" if problem == "column" else "0 random"):
        compare_sets(
            rows,
            names,
            [],
            selector=FeatureSelector(),
            parameters={},
            default=["signal"],
            draws=0 if problem == "draws" else 1,
        )


@pytest.mark.parametrize(
    ("low", "high", "claim"),
    [
        (-0.2, -0.1, "97 features to 12 gains:"),
        (0.1, 0.2, "97 features to 12 costs:"),
        (-0.1, 0.1, "97 features to 12 neither costs nor gains anything that can be shown:"),
    ],
)
def test_the_sentence_says_what_the_interval_says(low: float, high: float, claim: str) -> None:
    pairs = [("chosen", "all"), ("chosen", "default"), ("chosen", "random")]
    lines = [
        (split, a, b, metric, (low + high) / 2, low, high)
        for split in ("out_of_fold", "holdout")
        for metric in ("log_loss", "roc_auc")
        for a, b in pairs
    ]
    columns = ["split", "a", "b", "metric", "value", "low", "high"]
    losses = {"chosen": 0.5, "default": 0.6, "all": 0.7, "random": 0.9, "base_rate": 0.65}
    scores = pd.DataFrame(
        [("out_of_fold", name, "log_loss", loss) for name, loss in losses.items()],
        columns=["split", "set", "metric", "value"],
    )
    sentence = comparison_sentence(scores, pd.DataFrame(lines, columns=columns), 97, 12)
    assert claim in sentence
    assert "base rate's 0.6500: chosen, default." in sentence
    verb = {-0.2: "are better than", 0.1: "are worse than"}.get(low, "cannot be told from")
    assert f"The chosen {verb} the default set" in sentence
    losses["base_rate"] = 0.4
    scores["value"] = scores["set"].map(losses)
    sentence = comparison_sentence(scores, pd.DataFrame(lines, columns=columns), 97, 12)
    assert "No set has a lower log loss than the base rate's 0.4000" in sentence


# Figures


def test_figures_say_what_they_show(selector: FeatureSelector, compared) -> None:
    label = plot_chosen(selector.ranking_, {"signal": 2}, 3).get_label()
    assert "signal" in label
    assert "Confirmed: " in label
    label = plot_forward(selector.curve_).get_label()
    assert "base rate" in label
    assert "second" in label
    scores = compared.scores.query("split == 'holdout' and metric == 'roc_auc'")
    assert "4 random draws" in plot_set_scores(scores, [0.5, 0.5, 0.6, 0.4], "ROC AUC").get_label()
    assert "No data" in plot_clusters(selector.ranking_, selector.correlation_).get_label()
    assert "No data" in plot_chosen(selector.ranking_.assign(chosen=False), {}, 3).get_label()
    assert "No data" in plot_forward(selector.curve_.iloc[:1]).get_label()
    assert "No data" in plot_set_scores(scores.iloc[:0], [0.5], "ROC AUC").get_label()
    sure = plot_chosen(selector.ranking_.assign(confirmed=True), {}, 3)
    assert len(sure.axes[0].containers) == 1
    together = selector.ranking_.copy()
    together.at["signal", "members"] = ("noise_0", "signal")
    label = plot_clusters(together, selector.correlation_).get_label()
    assert "Kept: signal for noise_0." in label
