"""Combinatorial splits: nothing kept overlaps, nothing is dropped in vain, paths are complete."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skfolio.model_selection import CombinatorialPurgedCV
from sklearn.dummy import DummyClassifier
from sklearn.model_selection import cross_val_score

from crypto_ml import paths
from crypto_ml.errors import SplitError
from crypto_ml.paths import CombinatorialPurgedSplit, overlapping_rows
from crypto_ml.splits import audit_split

HOUR = pd.Timedelta("1h")


def bar_opens(rows: int, gaps: dict[int, int] | None = None) -> pd.DatetimeIndex:
    steps = np.ones(rows, dtype=np.int64)
    for row, missing in (gaps or {}).items():
        if row < rows:
            steps[row] += missing
    start = pd.Timestamp("2024-01-01", tz="UTC")
    return pd.DatetimeIndex(start + (steps.cumsum() - 1) * HOUR, name="timestamp").as_unit("ms")


@st.composite
def labelled_rows(draw: st.DrawFn) -> tuple[pd.DatetimeIndex, pd.Series, int, int]:
    """Rows with gaps, each with its own horizon, and numbers of groups they are enough for."""
    n_groups = draw(st.integers(2, 6))
    n_test = draw(st.integers(1, n_groups - 1))
    rows = draw(st.integers(n_groups, 60))
    gaps = draw(st.dictionaries(st.integers(1, rows), st.integers(1, 50), max_size=4))
    index = bar_opens(rows, gaps)
    horizons = draw(st.lists(st.integers(0, 15), min_size=rows, max_size=rows))
    ends = pd.Series(index + (np.asarray(horizons) + 1) * HOUR, index=index)
    return index, ends, n_groups, n_test


def kept_by_definition(
    test: np.ndarray, index: pd.DatetimeIndex, ends: pd.Series, embargo: pd.Timedelta
) -> list[int]:
    """Go through the rows one by one, as one would by hand."""
    tested = set(test.tolist())
    return [
        i
        for i in range(len(index))
        if i not in tested
        and not any(index[i] < ends.iloc[j] + embargo and index[j] < ends.iloc[i] for j in test)
    ]


def splits_or_nothing(
    cv: CombinatorialPurgedSplit, index: pd.DatetimeIndex
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Splits until one has nothing left to train on, which must be said in so many words."""
    found = []
    try:
        for split in cv.split(pd.DataFrame(index=index)):
            found.append(split)  # noqa: PERF402
    except SplitError as error:
        assert "no training row left" in str(error)
    return found


@settings(max_examples=80, deadline=None)
@given(labelled_rows(), st.integers(0, 10))
def test_what_is_kept_is_exactly_what_shares_no_time_with_the_test(
    sample: tuple[pd.DatetimeIndex, pd.Series, int, int], embargo: int
) -> None:
    index, ends, n_groups, n_test = sample
    step = int(np.diff(index.as_unit("ns").asi8).min())
    cv = CombinatorialPurgedSplit(n_groups, n_test, label_end=ends, embargo=embargo)
    for train, test in splits_or_nothing(cv, index):
        delay = pd.Timedelta(step * embargo, unit="ns")
        assert train.tolist() == kept_by_definition(test, index, ends, delay)
        assert audit_split(train, test, index, ends) == 0
        assert train.dtype == test.dtype == np.int64


@settings(max_examples=60, deadline=None)
@given(labelled_rows())
def test_every_path_holds_every_row_once_and_no_prediction_twice(
    sample: tuple[pd.DatetimeIndex, pd.Series, int, int],
) -> None:
    index, _, n_groups, n_test = sample
    ends = pd.Series(index + HOUR, index=index)
    cv = CombinatorialPurgedSplit(n_groups, n_test, label_end=ends)
    frame = pd.DataFrame(index=index)
    splits = list(cv.split(frame))
    assert len(splits) == cv.get_n_splits() == math.comb(n_groups, n_test)
    assert cv.n_paths == math.comb(n_groups - 1, n_test - 1)
    named = [1000.0 * number + test for number, (_, test) in enumerate(splits)]
    table = cv.paths(frame, named)
    assert table.shape == (len(index), cv.n_paths)
    assert (table.to_numpy() % 1000 == np.arange(len(index))[:, None]).all()
    used = np.sort(table.to_numpy().ravel())
    assert np.array_equal(used, np.sort(np.concatenate(named)))  # each prediction exactly once


@settings(max_examples=40, deadline=None)
@given(
    st.integers(3, 7), st.integers(2, 4), st.integers(0, 3), st.integers(0, 2), st.integers(60, 97)
)
def test_equals_skfolio_where_the_horizon_is_constant_and_no_bar_is_missing(
    n_groups: int, n_test: int, horizon: int, embargo: int, rows: int
) -> None:
    n_test = min(n_test, n_groups - 1)
    index = bar_opens(rows)
    ends = pd.Series(index + (horizon + 1) * HOUR, index=index)
    theirs = CombinatorialPurgedCV(n_groups, n_test, purged_size=horizon, embargo_size=embargo)
    ours = CombinatorialPurgedSplit(n_groups, n_test, label_end=ends, embargo=embargo)
    frame = pd.DataFrame({"x": 0.0}, index=index)
    for (train, test), (other, tests) in zip(ours.split(frame), theirs.split(frame), strict=True):
        assert np.array_equal(train, other)
        assert np.array_equal(test, np.sort(np.concatenate(tests)))
    assert np.array_equal(ours.path_splits(), theirs.recombined_paths.T)


def test_a_constant_purge_leaks_or_wastes_where_labels_vary() -> None:
    index = bar_opens(120)
    horizons = np.random.default_rng(0).integers(0, 8, 120)
    ends = pd.Series(index + (horizons + 1) * HOUR, index=index)
    frame = pd.DataFrame({"x": 0.0}, index=index)
    ours = list(CombinatorialPurgedSplit(6, 2, label_end=ends).split(frame))
    kept, leaks = {}, {}
    for purged in (0, 3, 7):
        theirs = CombinatorialPurgedCV(6, 2, purged_size=purged)
        splits = [(train, np.concatenate(tests)) for train, tests in theirs.split(frame)]
        kept[purged] = sum(len(train) for train, _ in splits)
        leaks[purged] = sum(audit_split(train, test, index, ends) for train, test in splits)
    assert leaks[0] > leaks[3] > 0 == leaks[7]
    assert kept[7] < sum(len(train) for train, _ in ours)
    assert sum(audit_split(train, test, index, ends) for train, test in ours) == 0


def test_behind_a_gap_nothing_is_purged() -> None:
    index = bar_opens(20, {10: 100})
    ends = pd.Series(index + 5 * HOUR, index=index)
    cv = CombinatorialPurgedSplit(2, 1, label_end=ends)
    assert [len(train) for train, _ in cv.split(pd.DataFrame(index=index))] == [10, 10]


def test_a_far_label_is_dropped_and_its_neighbour_is_not() -> None:
    index = bar_opens(30)
    horizons = np.zeros(30, dtype=int)
    horizons[2] = 20
    ends = pd.Series(index + (horizons + 1) * HOUR, index=index)
    touched = overlapping_rows([20], index, ends)
    assert np.flatnonzero(touched).tolist() == [2, 20]


def test_the_property_goes_red_without_the_purge(monkeypatch: pytest.MonkeyPatch) -> None:
    index = bar_opens(60)
    ends = pd.Series(index + 4 * HOUR, index=index)
    monkeypatch.setattr(
        paths, "overlapping_rows", lambda test, index, *_: np.isin(np.arange(len(index)), test)
    )
    cv = CombinatorialPurgedSplit(6, 2, label_end=ends)
    leaks = [audit_split(a, b, index, ends) for a, b in cv.split(pd.DataFrame(index=index))]
    assert min(leaks) > 0


def test_the_order_of_splits_and_paths_is_that_of_combinations() -> None:
    cv = CombinatorialPurgedSplit(5, 3, label_end=pd.Series(dtype="datetime64[ms, UTC]"))
    assert cv.test_groups().tolist() == [list(c) for c in combinations(range(5), 3)]
    for path in cv.path_splits():
        assert all(group in cv.test_groups()[split] for group, split in enumerate(path))


def test_goes_where_scikit_learn_takes_a_splitter() -> None:
    index = bar_opens(90)
    ends = pd.Series(index + 3 * HOUR, index=index)
    X = pd.DataFrame({"x": np.arange(90.0)}, index=index)
    y = np.arange(90) % 2
    cv = CombinatorialPurgedSplit(5, 2, label_end=ends)
    assert len(cross_val_score(DummyClassifier(), X, y, cv=cv)) == 10
    assert len(cross_val_score(DummyClassifier(), X.to_numpy(), y, cv=cv)) == 10
    assert "label_end" not in repr(cv)


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (lambda e, X: CombinatorialPurgedSplit(4, 4, label_end=e), "cannot be made"),
        (lambda e, X: CombinatorialPurgedSplit(4, 0, label_end=e), "cannot be made"),
        (lambda e, X: CombinatorialPurgedSplit(30, 15, label_end=e), "155,117,520 splits"),
        (lambda e, X: list(CombinatorialPurgedSplit(31, 2, label_end=e).split(X)), "too few|cut"),
        (lambda e, X: list(CombinatorialPurgedSplit(3, label_end=e[:9]).split(X)), "missing for"),
        (lambda e, X: list(CombinatorialPurgedSplit(3, label_end=e).split(np.ones(4))), "no times"),
        (lambda e, X: CombinatorialPurgedSplit(3, label_end=e).paths(X, [[1.0]]), "of 1 splits"),
        (lambda e, X: CombinatorialPurgedSplit(3, label_end=e).paths(X, [[1.0]] * 3), "shape"),
        (
            lambda e, X: list(CombinatorialPurgedSplit(3, label_end=e, embargo=-1).split(X)),
            "embargo",
        ),
    ],
)
def test_what_does_not_fit_fails_with_the_reason(action, words) -> None:  # type: ignore[no-untyped-def]
    index = bar_opens(30)
    ends = pd.Series(index + 2 * HOUR, index=index)
    with pytest.raises(SplitError, match=words):
        action(ends, pd.DataFrame(index=index))
