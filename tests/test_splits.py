"""Splits: no training label reaches into a test window, and the arithmetic is scikit-learn's."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, find, given, settings
from hypothesis import strategies as st
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, TimeSeriesSplit, cross_val_score

from crypto_ml import splits
from crypto_ml.settings import SplitError
from crypto_ml.splits import (
    PurgedTimeSeriesSplit,
    align_label_end,
    audit_split,
    holdout_split,
    make_folds,
)

HOUR = pd.Timedelta("1h")


def bar_opens(rows: int, gaps: dict[int, int] | None = None) -> pd.DatetimeIndex:
    """Hourly bar opens; `gaps` maps a row to the number of bars missing before it."""
    steps = np.ones(rows, dtype=np.int64)
    for row, missing in (gaps or {}).items():
        if row < rows:
            steps[row] += missing
    start = pd.Timestamp("2024-01-01", tz="UTC")
    return pd.DatetimeIndex(start + (steps.cumsum() - 1) * HOUR, name="timestamp").as_unit("ms")


def constant_labels(index: pd.DatetimeIndex, horizon: int) -> pd.Series:
    return pd.Series(index + (horizon + 1) * HOUR, index=index)


@st.composite
def labelled_rows(draw: st.DrawFn) -> tuple[pd.DatetimeIndex, pd.Series, int]:
    """Rows with gaps, each with its own horizon, and a number of folds they are enough for."""
    n_splits = draw(st.integers(2, 6))
    rows = draw(st.integers(n_splits + 1, 120))
    gaps = draw(st.dictionaries(st.integers(1, rows), st.integers(1, 50), max_size=5))
    index = bar_opens(rows, gaps)
    horizons = draw(st.lists(st.integers(1, 30), min_size=rows, max_size=rows))
    ends = pd.Series(index + (np.asarray(horizons) + 1) * HOUR, index=index)
    return index, ends, n_splits


def overlaps_by_definition(
    train: np.ndarray, test: np.ndarray, index: pd.DatetimeIndex, ends: pd.Series
) -> int:
    """Count pair by pair, as one would by hand."""
    return sum(
        any(index[i] < ends.iloc[j] and index[j] < ends.iloc[i] for j in test) for i in train
    )


class Unpurged(TimeSeriesSplit):
    """What PurgedTimeSeriesSplit would be without its purge."""


def worst_overlap(splitter: object, index: pd.DatetimeIndex, ends: pd.Series) -> int:
    frame = pd.DataFrame(index=index)
    return max(
        audit_split(train, test, index, ends)
        for train, test in splitter.split(frame)  # type: ignore[attr-defined]
    )


def folds_or_nothing(
    splitter: PurgedTimeSeriesSplit, index: pd.DatetimeIndex
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Folds until one has nothing left to train on, which must be said in so many words."""
    folds = []
    try:
        for fold in splitter.split(pd.DataFrame(index=index)):
            folds.append(fold)  # noqa: PERF402
    except SplitError as error:
        assert "no training row left" in str(error)
    return folds


@settings(max_examples=150, deadline=None)
@given(labelled_rows(), st.integers(0, 20), st.one_of(st.none(), st.integers(1, 30)))
def test_no_training_label_overlaps_a_test_window(
    sample: tuple[pd.DatetimeIndex, pd.Series, int], embargo: int, most: int | None
) -> None:
    index, ends, n_splits = sample
    cv = PurgedTimeSeriesSplit(n_splits, label_end=ends, embargo=embargo, max_train_size=most)
    for train, test in folds_or_nothing(cv, index):
        assert overlaps_by_definition(train, test, index, ends) == 0
        assert train.max() < test.min()
        assert ((ends.iloc[train] + embargo * HOUR) <= index[test[0]]).all()
        # nothing was dropped without need: the row is missing only if its label is late
        kept = np.flatnonzero((ends + embargo * HOUR) <= index[test[0]])
        kept = kept[kept < test[0]]
        assert np.array_equal(train, kept[-most:] if most else kept)


def test_the_property_fails_without_the_purge() -> None:
    def leaks(sample: tuple[pd.DatetimeIndex, pd.Series, int]) -> bool:
        index, ends, n_splits = sample
        return worst_overlap(Unpurged(n_splits), index, ends) > 0

    index, ends, n_splits = find(labelled_rows(), leaks)
    assert worst_overlap(Unpurged(n_splits), index, ends) > 0


def test_the_property_fails_when_the_purge_is_taken_out_of_the_splitter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    index = bar_opens(60)
    cv = PurgedTimeSeriesSplit(4, label_end=constant_labels(index, 5))
    assert worst_overlap(cv, index, cv.label_end) == 0
    monkeypatch.setattr(splits, "purged_rows", lambda index, ends, start, embargo: np.arange(start))
    assert worst_overlap(cv, index, cv.label_end) == 5


@settings(max_examples=60, deadline=None)
@given(labelled_rows())
def test_the_audit_counts_what_the_definition_counts(
    sample: tuple[pd.DatetimeIndex, pd.Series, int],
) -> None:
    index, ends, n_splits = sample
    for train, test in Unpurged(n_splits).split(index):
        shuffled = np.random.default_rng(1).permutation(test)
        expected = overlaps_by_definition(train, test, index, ends)
        assert audit_split(train, test, index, ends) == expected
        assert audit_split(train[::-1], shuffled, index, ends) == expected
    # training after the test overlaps too, when the test's label reaches into it
    rows = np.arange(len(index))
    assert audit_split(rows[3:], rows[:3], index, ends) == overlaps_by_definition(
        rows[3:], rows[:3], index, ends
    )


def reference(
    rows: int, n_splits: int, gap: int, most: int | None, size: int | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cv = TimeSeriesSplit(n_splits, gap=gap, max_train_size=most, test_size=size)
        yield from cv.split(np.zeros(rows))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=st.integers(8, 400),
    n_splits=st.integers(2, 8),
    horizon=st.integers(0, 12),
    embargo=st.integers(0, 5),
    most=st.one_of(st.none(), st.integers(1, 100)),
    size=st.one_of(st.none(), st.integers(1, 40)),
)
def test_equals_time_series_split_for_a_constant_horizon(
    rows: int, n_splits: int, horizon: int, embargo: int, most: int | None, size: int | None
) -> None:
    index = bar_opens(rows)
    cv = PurgedTimeSeriesSplit(
        n_splits,
        label_end=constant_labels(index, horizon),
        embargo=embargo,
        max_train_size=most,
        test_size=size,
    )
    try:
        expected = list(reference(rows, n_splits, horizon + embargo, most, size))
    except ValueError:
        with pytest.raises(SplitError, match=r"too few|no training row left"):
            list(cv.split(pd.DataFrame(index=index)))
        return
    ours = list(cv.split(pd.DataFrame(index=index)))
    assert cv.get_n_splits() == len(ours) == len(expected)
    for (train, test), (train_expected, test_expected) in zip(ours, expected, strict=True):
        assert np.array_equal(train, train_expected)
        assert np.array_equal(test, test_expected)


def test_works_in_cross_val_score_and_grid_search_on_parts_of_the_rows() -> None:
    index = bar_opens(300)
    rng = np.random.default_rng(1)
    X, y = pd.DataFrame(rng.normal(size=(300, 2)), index=index), rng.integers(0, 2, 300)
    ends = constant_labels(index, 7)
    cv = PurgedTimeSeriesSplit(4, label_end=ends)
    gap = TimeSeriesSplit(4, gap=7)
    model = LogisticRegression()
    assert np.array_equal(cross_val_score(model, X, y, cv=cv), cross_val_score(model, X, y, cv=gap))
    # an outer split hands only part of the rows on; as an array it must have every row
    inner = GridSearchCV(model, {"C": [0.1, 1.0]}, cv=cv)
    outer = cross_val_score(inner, X, y, cv=cv, error_score="raise")
    assert np.array_equal(
        outer, cross_val_score(GridSearchCV(model, {"C": [0.1, 1.0]}, cv=gap), X, y, cv=gap)
    )
    as_array = cross_val_score(DummyClassifier(), X.to_numpy(), y, cv=cv, error_score="raise")
    assert np.array_equal(as_array, cross_val_score(DummyClassifier(), X, y, cv=cv))


def test_embargo_is_a_time_or_a_number_of_bars() -> None:
    index = bar_opens(100, {40: 30})
    ends = constant_labels(index, 2)
    frame = pd.DataFrame(index=index)
    bars = PurgedTimeSeriesSplit(3, label_end=ends, embargo=5).split(frame)
    time = PurgedTimeSeriesSplit(3, label_end=ends, embargo=5 * HOUR).split(frame)
    for (a, _), (b, _) in zip(bars, time, strict=True):
        assert np.array_equal(a, b)
    assert "rows" not in repr(PurgedTimeSeriesSplit(3, label_end=ends)).split("embargo")[0]


INDEX = bar_opens(40)
ENDS = constant_labels(INDEX, 1)


@pytest.mark.parametrize(
    ("splitter", "rows", "message"),
    [
        ({"n_splits": 40}, INDEX, "40 rows are too few for 40 folds"),
        ({"n_splits": 4, "test_size": 10}, INDEX, "Expected more than 40 rows"),
        ({"embargo": 100}, INDEX, "fold 0 has no training row left"),
        ({"embargo": -1}, INDEX, "embargo is -1"),
        ({"label_end": ENDS.iloc[:-2]}, INDEX, "missing for 2 of 40 rows, the first at"),
        ({"label_end": pd.concat([ENDS, ENDS.iloc[:1]])}, INDEX, "twice"),
        ({"label_end": ENDS.tz_localize(None)}, INDEX, "Expected bar opens in UTC"),
        ({"label_end": ENDS.reset_index(drop=True)}, INDEX, "Expected bar opens in UTC"),
        ({"label_end": ENDS - 2 * HOUR}, INDEX, "must come after its own bar's open"),
        ({}, INDEX[::-1], "not in time order: row 1"),
        ({}, INDEX.insert(3, INDEX[3]), "not in time order: row 4"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(
    splitter: dict[str, object], rows: pd.DatetimeIndex, message: str
) -> None:
    cv = PurgedTimeSeriesSplit(**{"label_end": ENDS, **splitter})  # type: ignore[arg-type]
    with pytest.raises(SplitError, match=message):
        list(cv.split(pd.DataFrame(index=rows)))


def test_an_array_of_another_length_and_bad_parameters_are_refused() -> None:
    with pytest.raises(SplitError, match="X has 3 rows and no times, label_end has 40 rows"):
        list(PurgedTimeSeriesSplit(2, label_end=ENDS).split(np.zeros(3)))
    with pytest.raises(SplitError, match="Expected 2 or more folds"):
        PurgedTimeSeriesSplit(1, label_end=ENDS)
    with pytest.raises(SplitError, match=r"max_train_size=-1.*positive sizes"):
        PurgedTimeSeriesSplit(2, label_end=ENDS, max_train_size=-1)


def test_label_ends_are_found_whatever_the_unit_of_time() -> None:
    nanoseconds = pd.Series(pd.DatetimeIndex(ENDS).as_unit("ns"), index=INDEX.as_unit("ns"))
    assert (align_label_end(INDEX, nanoseconds) == pd.DatetimeIndex(ENDS)).all()


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(30, 300),
    n_splits=st.integers(2, 5),
    holdout=st.floats(0.05, 0.5),
    horizon=st.integers(0, 3),
    most=st.one_of(st.just(0), st.none(), st.integers(1, 50)),
)
def test_folds_of_a_run(
    rows: int, n_splits: int, holdout: float, horizon: int, most: int | None
) -> None:
    index = bar_opens(rows)
    ends = constant_labels(index, horizon)
    try:
        folds = make_folds(index, ends, n_splits, holdout, max_train_size=most)
    except SplitError as error:
        assert "too few" in str(error) or "no training row left" in str(error)
        return
    assert [fold.number for fold in folds] == list(range(n_splits + 1))
    assert [fold.name for fold in folds] == [f"fold {k}" for k in range(n_splits)] + ["holdout"]
    last = folds[-1]
    assert 0 <= len(last.test) - rows * holdout < 1
    assert last.test[-1] == rows - 1
    expected = reference(rows - len(last.test), n_splits, horizon, most or None, None)
    for fold, (train, test) in zip(folds[:-1], expected, strict=True):
        assert np.array_equal(fold.train, train)
        assert np.array_equal(fold.test, test)
    assert last.train[-1] == last.test[0] - horizon - 1
    assert len(last.train) == min(most or rows, last.test[0] - horizon)
    everything = np.concatenate([fold.test for fold in folds])
    assert (np.diff(everything) > 0).all()
    assert not any(audit_split(fold.train, fold.test, index, ends) for fold in folds)


def test_a_run_without_a_holdout_and_one_that_has_no_room_for_it() -> None:
    assert [fold.name for fold in make_folds(INDEX, ENDS, 2, 0)] == ["fold 0", "fold 1"]
    with pytest.raises(SplitError, match="holdout is 1"):
        holdout_split(INDEX, ENDS, 1.0)
    with pytest.raises(SplitError, match="1 rows are too few"):
        holdout_split(INDEX[:1], ENDS, 0.5)
    with pytest.raises(SplitError, match="the holdout has no training row left"):
        holdout_split(INDEX, ENDS, 0.5, embargo=100)
    train, test = holdout_split(INDEX, ENDS, 0.1)
    assert len(test) == 4  # 0.1 * 40 is 4, not 4.000000000000001 rounded up
    assert train[-1] == 34
