"""Rows in blocks equal those in one piece; models of two workers are as good as those of one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from dask_workers import dask_scheduler, dask_workers
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from crypto_ml.candles import Candles, Market, trusted_candles
from crypto_ml.catalogue import CATALOGUE_FEATURES
from crypto_ml.errors import CandlesError, ModelError
from crypto_ml.features import DEFAULT_FEATURES, feature_matrix
from crypto_ml.labels import make_labels
from crypto_ml.large import Blocks, fit_large, open_blocks, write_blocks
from crypto_ml.model_files import model_bytes, model_from_bytes
from crypto_ml.models import make_model, positive_probability
from crypto_ml.simulate import simulate

CANDLES = simulate("sim:clear", bars=2_500, seed=3, gaps=6).candles
SMALL = {"n_estimators": 20, "learning_rate": 0.1, "max_depth": 4}


def pieces_of(candles: Candles, *starts: int) -> Iterator[Candles]:
    """Cut candles into pieces that begin at these bars."""
    edges = [0, *sorted(starts), len(candles)]
    for start, stop in itertools.pairwise(edges):
        if stop > start:
            frame = candles.frame.iloc[start:stop]
            yield trusted_candles(frame, candles.market, candles.source)


def unblocked(
    candles: Candles, features: tuple[str, ...] = DEFAULT_FEATURES, **label: Any
) -> pd.DataFrame:
    """Return the rows as a run makes them."""
    labels = make_labels(candles, **label).frame
    return feature_matrix(candles, features).loc[labels.index].dropna().join(labels)


def read_all(blocks: Blocks) -> pd.DataFrame:
    return pd.concat([blocks.read(block) for block in blocks.blocks])


def assert_same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(found, expected, rtol=1e-10, atol=1e-10, check_freq=False)


# Blocks


@settings(max_examples=12)
@given(st.lists(st.integers(300, 2_499), max_size=5, unique=True), st.integers(1, 30))
def test_blocks_hold_the_rows_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, starts: list[int], horizon: int
) -> None:
    folder = tmp_path_factory.mktemp("blocks") / "rows"
    label = {"kind": "threshold", "horizon": horizon}
    blocks = write_blocks(pieces_of(CANDLES, *starts), folder, label=label)
    assert_same(read_all(blocks), unblocked(CANDLES, **label))


def test_barriers_and_all_features_are_the_same_in_blocks(tmp_path: Path) -> None:
    features = CATALOGUE_FEATURES
    label = {"kind": "triple_barrier", "horizon": 12, "volatility_window": 50}
    candles = simulate("sim:clear", bars=7_000, seed=3, gaps=1).candles
    pieces = pieces_of(candles, 2_000, 6_000, 6_400)
    blocks = write_blocks(pieces, tmp_path / "rows", features, label)
    assert len(blocks.blocks) >= 3
    assert_same(read_all(blocks), unblocked(candles, features, **label))


def test_what_stands_about_blocks_is_true(tmp_path: Path) -> None:
    blocks = write_blocks(pieces_of(CANDLES, 900, 1_800), tmp_path / "rows")
    assert blocks == open_blocks(tmp_path / "rows")
    assert blocks.rows == len(read_all(blocks)) == sum(block.rows for block in blocks.blocks)
    for block in blocks.blocks:
        table = blocks.read(block)
        assert pd.Timestamp(block.first) == table.index[0]
        assert pd.Timestamp(block.known) == table["label_end"].max()
    limit = blocks.blocks[1].known
    assert blocks.until(limit).blocks == blocks.blocks[:2]
    assert blocks.until(pd.Timestamp(limit) - pd.Timedelta("1ms")).blocks == blocks.blocks[:1]


def test_what_cannot_be_made_into_blocks_is_refused(tmp_path: Path) -> None:
    first, second = pieces_of(CANDLES, 1_000)
    other = trusted_candles(second.frame, Market("simulated", "OTHER", "1h"), second.source)
    for pieces in ([second, first], [first, first], [first, other]):
        with pytest.raises(CandlesError, match="expected one market, in time order, no bar twice"):
            write_blocks(iter(pieces), tmp_path / "rows")
    with pytest.raises(CandlesError, match="no row has all features and a label"):
        write_blocks(pieces_of(CANDLES.as_of(CANDLES.index[50])), tmp_path / "rows")
    assert list(tmp_path.iterdir()) == []  # nothing is left behind
    with pytest.raises(ModelError, match=r"holds no blocks\.json"):
        open_blocks(tmp_path)
    blocks = write_blocks([first], tmp_path / "rows")
    with pytest.raises(CandlesError, match="is there already"):
        write_blocks([first], tmp_path / "rows")
    (tmp_path / "rows" / blocks.blocks[0].name).unlink()
    with pytest.raises(ModelError, match=r"lacks 00000\.parquet"):
        open_blocks(tmp_path / "rows")


# Fitting


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a scheduler with two workers."""
    folder = tmp_path_factory.mktemp("cluster")
    with dask_scheduler(folder) as address, dask_workers(address, folder) as start:
        start(), start()
        yield address


def test_models_of_two_workers_are_as_good_as_those_of_memory(
    scheduler: str, tmp_path: Path
) -> None:
    candles = simulate("sim:clear", bars=50_000, seed=5).candles
    blocks = write_blocks(pieces_of(candles, *range(4_000, 24_000, 4_000)), tmp_path / "rows")
    train = blocks.until(blocks.blocks[-2].known)
    rows, test = read_all(train), blocks.read(blocks.blocks[-1])
    assert 19_000 < len(rows) < 20_001 < len(test)
    names = list(DEFAULT_FEATURES)
    for name in ("lightgbm", "xgboost"):
        large = fit_large(name, SMALL, train, scheduler=scheduler, seed=1)
        small = make_model(name, SMALL, 1).fit(rows[names], rows["y"])
        of_large = positive_probability(large, test[names])
        of_small = positive_probability(small, test[names])
        aucs = [roc_auc_score(test["y"], p) for p in (of_large, of_small)]
        assert abs(aucs[0] - aucs[1]) < 0.01, (name, aucs)
        assert aucs[0] > 0.55
        assert np.corrcoef(of_large, of_small)[0, 1] > 0.9, name
        assert np.abs(of_large - of_small).mean() < 0.03, name
        # a bundle can keep it, by name and number for number, and says nothing of the machines
        assert list(large.feature_names_in_) == names
        content = model_bytes(large)
        assert b"127.0.0.1" not in content
        loaded = model_from_bytes(name, content, len(names))
        np.testing.assert_array_equal(positive_probability(loaded, test[names]), of_large)


def test_what_cannot_be_fitted_so_is_refused(tmp_path: Path) -> None:
    blocks = write_blocks([CANDLES], tmp_path / "rows")
    nowhere = "tcp://127.0.0.1:9"
    with pytest.raises(ModelError, match="random_forest has no version for Dask"):
        fit_large("random_forest", {}, blocks, scheduler=nowhere)
    with pytest.raises(ModelError, match="no model 'lightgmb'; did you mean 'lightgbm'"):
        fit_large("lightgmb", {}, blocks, scheduler=nowhere)
    with pytest.raises(ModelError, match="there is no 'max_dept'"):
        fit_large("xgboost", {"max_dept": 3}, blocks, scheduler=nowhere)
    with pytest.raises(ModelError, match="there are no blocks of"):
        fit_large("xgboost", {}, blocks.until("2000-01-01T00:00Z"), scheduler=nowhere)
