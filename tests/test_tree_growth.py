"""Kernels that grow a tree: the compiled ones, their Python, and scikit-learn agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.tree import DecisionTreeClassifier

from crypto_ml import tree_growth as growth
from crypto_ml.forest import number_values


def grown(X: np.ndarray, y: np.ndarray, **limits: int) -> tuple[np.ndarray, np.ndarray, int]:
    rows, width = X.shape
    leaf = limits.get("leaf", 1)
    asked = [limits.get("features", width), leaf, max(2, 2 * leaf), limits.get("depth", 99)]
    ints, floats = np.zeros((2 * rows, 5), np.int64), np.zeros((2 * rows, 5))
    codes, values = number_values(X)
    packed = 1 + (np.int64(1) << (growth.BITS * (1 + y.astype(np.int64))))
    seed = int(np.random.RandomState(0).randint(0, 2**31 - 1))
    table = (codes, values, packed, np.array(asked))
    samples = np.arange(rows, dtype=np.uint32)
    count, depth = growth.grow(samples, table, 0.0, seed, ints, floats)
    return ints[:count], floats[:count], depth


@given(
    rows=st.integers(2, 120),
    kinds=st.lists(
        st.sampled_from(["normal", "few", "close", "constant", "large"]), min_size=1, max_size=4
    ),
    leaf=st.integers(1, 4),
    depth=st.integers(1, 9),
    seed=st.integers(0, 1000),
)
@settings(max_examples=80, deadline=None)
def test_a_tree_is_that_of_scikit_learn(
    rows: int, kinds: list[str], leaf: int, depth: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    make = {
        "normal": lambda: rng.normal(size=rows),
        "few": lambda: rng.integers(0, 3, rows),
        "close": lambda: rng.integers(0, 9, rows) * 4e-8,
        "constant": lambda: np.full(rows, 7.0),
        "large": lambda: 60_000 + rng.normal(size=rows).cumsum(),
    }
    X = np.column_stack([make[kind]() for kind in kinds]).astype(np.float32)
    y = rng.integers(0, 2, rows)
    y[:2] = 0, 1
    features = int(rng.integers(1, len(kinds) + 1))
    ints, floats, deep = grown(X, y, features=features, leaf=leaf, depth=depth)
    peer = DecisionTreeClassifier(
        max_features=features, min_samples_leaf=leaf, max_depth=depth, random_state=0
    )
    tree = peer.fit(X, y).tree_
    inner = tree.children_left != -1
    assert np.array_equal(ints[:, 0], tree.children_left)
    assert np.array_equal(ints[:, 1], tree.children_right)
    assert np.array_equal(ints[:, 2], tree.feature)
    assert np.array_equal(ints[inner, 4], tree.missing_go_to_left[inner])
    assert np.array_equal(floats[:, 0], tree.threshold)
    assert deep == tree.max_depth
    assert np.array_equal(ints[:, 3], tree.n_node_samples)
    assert np.array_equal(floats[:, 1], tree.impurity)
    assert np.array_equal(floats[:, 2], tree.weighted_n_node_samples)
    assert np.array_equal(floats[:, 3:], tree.value[:, 0])


def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every kernel run as the Python that it was compiled from."""
    for name, kernel in vars(growth).copy().items():
        if hasattr(kernel, "py_func"):
            monkeypatch.setattr(growth, name, kernel.py_func)


def test_the_compiled_kernels_do_what_their_python_does(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    X = rng.normal(size=(90, 3)).astype(np.float32)
    X[:, 1] = np.round(X[:, 1])
    X[:, 2] = 1
    y = rng.integers(0, 2, 90)
    compiled = grown(X, y, features=2, leaf=2)
    plain(monkeypatch)
    python = grown(X, y, features=2, leaf=2)
    assert compiled[2] == python[2]
    assert np.array_equal(compiled[0], python[0])
    assert np.array_equal(compiled[1], python[1])


@pytest.mark.parametrize("python", [False, True])
@given(chosen=st.lists(st.integers(0, 4999), min_size=1, max_size=60))
@settings(max_examples=30, deadline=None)
def test_both_ways_to_list_codes_sort_them(python: bool, chosen: list[int]) -> None:
    def of(kernel: Any) -> Any:
        return kernel.py_func if python else kernel

    codes, samples = np.array(chosen, np.uint32), np.arange(len(chosen), dtype=np.uint32)
    packed = np.ones(len(chosen), np.int64)
    few, every = growth.new_buffers(5000), growth.new_buffers(5000)
    count = of(growth.list_few)(codes, samples, packed, few)
    other = of(growth.list_all)(codes, samples, packed, every[0], every[1])
    distinct, times = np.unique(codes, return_counts=True)
    for buffers, found in ((few, count), (every, other)):
        assert np.array_equal(buffers[1][:found], distinct)
        assert np.array_equal(buffers[0][distinct], times)
    assert not few[2].any()
    assert not few[3].any()


def test_the_lowest_bit() -> None:
    for kernel in (growth.lowest_bit, growth.lowest_bit.py_func):
        assert [kernel(1 << k) for k in range(32)] == list(range(32))
        assert kernel(0b1011000) == 3


def test_random_numbers_are_those_of_xorshift() -> None:
    for kernel in (growth.draw, growth.draw.py_func):
        state, x = np.array([2463534242]), 2463534242
        for _ in range(50):
            x ^= x << 13 & 0xFFFFFFFF
            x ^= x >> 17
            x ^= x << 5 & 0xFFFFFFFF
            assert kernel(state) == x % 2**31
        zero = np.array([0])
        assert kernel(zero) == kernel(np.array([1]))
