"""Windows are decided by their own values, in any order of history, to the last bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from feature_markets import same
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from crypto_ml.rolling import (
    ratio,
    rolling_max,
    rolling_min,
    rolling_sum,
    rolling_weighted_mean,
    shifted,
)

numbers = arrays(np.float64, st.integers(0, 60), elements=st.floats(-1e9, 1e9, width=32))
windows = st.integers(1, 25)


def weighted(values: np.ndarray, window: int) -> np.ndarray:
    return rolling_weighted_mean(values, np.abs(np.sin(values)), window)


ROLLING = pytest.mark.parametrize("function", [rolling_sum, rolling_max, rolling_min, weighted])


def by_window(values: np.ndarray, window: int, what: Callable[[np.ndarray], float]) -> list[float]:
    places = range(len(values))
    return [what(values[n - window + 1 : n + 1]) if n >= window - 1 else np.nan for n in places]


@given(numbers, windows)
def test_each_window_by_itself(values: np.ndarray, window: int) -> None:
    same(rolling_max(values, window), by_window(values + 0.0, window, max))
    same(rolling_min(values, window), by_window(values + 0.0, window, min))
    exact = by_window(values, window, np.sum)
    scale = 1e-15 * max(1.0, np.abs(values).sum())
    np.testing.assert_allclose(rolling_sum(values, window), exact, rtol=1e-14, atol=scale)


@given(numbers, arrays(np.float64, 60, elements=st.sampled_from([0.0, 0.25, 1.0, 9.0])), windows)
def test_weighted_means(values: np.ndarray, weights: np.ndarray, window: int) -> None:
    weights = weights[: len(values)]
    mean = rolling_weighted_mean(values, weights, window)
    for place in range(len(values)):
        part = slice(place - window + 1, place + 1)
        if place < window - 1:
            assert np.isnan(mean[place])
            continue
        used = weights[part] if weights[part].any() else np.ones(window)
        expected = np.average(values[part], weights=used)
        assert mean[place] == pytest.approx(expected, rel=1e-12, abs=1e-14 * np.abs(values).sum())


@ROLLING
@given(values=numbers, window=windows, start=st.integers(0, 30))
def test_nothing_before_the_window_matters(
    function: Callable[[np.ndarray, int], np.ndarray], values: np.ndarray, window: int, start: int
) -> None:
    whole = function(values, window)[start + window - 1 :]
    same(function(values[start:], window)[window - 1 :], whole)


@ROLLING
def test_a_bad_tick_leaves_no_trace(function: Callable[[np.ndarray, int], np.ndarray]) -> None:
    values = np.random.default_rng(0).exponential(size=100)
    spoilt = values.copy()
    spoilt[30] = 1e18
    same(function(spoilt, 20)[50:], function(values, 20)[50:])
    assert function(spoilt, 20)[49] != function(values, 20)[49] or function is rolling_min


@pytest.mark.parametrize("function", [rolling_sum, rolling_max, rolling_min])
def test_a_missing_value_spoils_the_windows_that_hold_it_and_no_other(
    function: Callable[[np.ndarray, int], np.ndarray],
) -> None:
    values = np.arange(30.0)
    values[10] = np.nan
    unknown = np.isnan(function(values, 5))
    assert list(np.flatnonzero(unknown)) == [0, 1, 2, 3, 10, 11, 12, 13, 14]


@ROLLING
@pytest.mark.parametrize("length", [0, 1, 4])
def test_windows_longer_than_the_values(
    function: Callable[[np.ndarray, int], np.ndarray], length: int
) -> None:
    assert np.isnan(function(np.ones(length), 5)).all()


@pytest.mark.parametrize("price", [7.3, 1e-8, 123_456.789])
def test_equal_values_have_exactly_that_mean(price: float) -> None:
    weights = np.random.default_rng(0).exponential(size=50)
    assert (rolling_weighted_mean(np.full(50, price), weights, 20)[19:] == price).all()
    assert (rolling_weighted_mean(np.full(50, price), 0 * weights, 20)[19:] == price).all()


def test_ratio() -> None:
    above, below = np.array([1.0, 0.0, 3.0, np.nan]), np.array([2.0, 0.0, 0.0, 1.0])
    same(ratio(above, below, 0.5), [0.5, 0.5, 0.5, np.nan])
    assert np.isnan(ratio(np.ones(1), np.array([np.nan]), 0.5)).all()


def test_shifted() -> None:
    values = np.arange(5.0)
    same(shifted(values, 2), [np.nan, np.nan, 0, 1, 2])
    same(shifted(values, 0), values)
    assert np.isnan(shifted(values, 5)).all()
    assert np.isnan(shifted(values, 9)).all()
