"""Feature sets: immutable versions, checked definitions, errors that name the nearest."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from crypto_ml import feature_sets
from crypto_ml.feature_sets import (
    BUILT_IN,
    FeatureSet,
    changed_definitions,
    check_new_name,
    list_feature_sets,
    load_feature_set,
    make_feature_set,
    save_feature_set,
    saved_names,
)
from crypto_ml.features import DEFAULT_FEATURES, FEATURES, feature, get_feature
from crypto_ml.settings import FeatureError

ORIGIN = {"run": "r", "market": "binance BTCUSDT 1h", "span": ["2024-01-01", "2024-06-01"]}


def test_built_in_sets_have_the_promised_features(tmp_path: Path) -> None:
    assert load_feature_set(tmp_path / "none", "default").features == DEFAULT_FEATURES
    catalogue = load_feature_set(tmp_path, "catalogue")
    assert len(catalogue.features) == len(set(catalogue.features)) == 97
    stationary = load_feature_set(tmp_path, "stationary@1")
    scales = {get_feature(name).scale for name in stationary.features}
    assert "price" not in scales
    assert not list(tmp_path.iterdir())


def test_a_set_is_saved_and_loaded_as_it_was(tmp_path: Path) -> None:
    made = make_feature_set("btc-hourly", ["rsi_14", "zscore"], ORIGIN)
    saved = save_feature_set(tmp_path / "sets", made)
    assert saved.reference == "btc-hourly@1"
    loaded = load_feature_set(tmp_path / "sets", "btc-hourly")
    assert loaded == saved
    assert loaded.origin == ORIGIN
    assert loaded.definitions == tuple(get_feature(n).definition_hash for n in loaded.features)
    assert not [path for path in (tmp_path / "sets").iterdir() if path.name.startswith(".")]


def test_an_equal_set_is_not_saved_twice_and_another_is_the_next_version(tmp_path: Path) -> None:
    first = save_feature_set(tmp_path, make_feature_set("a", ["rsi_14", "zscore"], ORIGIN))
    before = (tmp_path / "a@1.json").read_bytes()
    again = save_feature_set(tmp_path, make_feature_set("a", ["rsi_14", "zscore"], {"run": "s"}))
    assert again == first
    other = save_feature_set(tmp_path, make_feature_set("a", ["zscore", "rsi_14"]))
    assert other.version == 2
    assert load_feature_set(tmp_path, "a").features == ("zscore", "rsi_14")
    assert load_feature_set(tmp_path, "a@1").features == ("rsi_14", "zscore")
    assert (tmp_path / "a@1.json").read_bytes() == before
    assert save_feature_set(tmp_path, first).version == 1


def test_versions_count_as_numbers(tmp_path: Path) -> None:
    names = list(BUILT_IN["catalogue"])
    for number in range(11):
        save_feature_set(tmp_path, make_feature_set("many", names[: number + 1]))
    assert load_feature_set(tmp_path, "many").version == 11


def test_savers_at_the_same_moment_never_share_a_version(tmp_path: Path) -> None:
    names = list(BUILT_IN["catalogue"])
    sets = [make_feature_set("many", names[: size + 1]) for size in range(12)]
    with ThreadPoolExecutor(6) as pool:
        saved = list(pool.map(lambda each: save_feature_set(tmp_path, each), sets))
    assert sorted(each.version for each in saved) == list(range(1, 13))
    for each in saved:
        assert load_feature_set(tmp_path, each.reference).features == each.features


def test_a_file_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(feature_sets.os, "link", full)
    with pytest.raises(OSError, match="no space"):
        save_feature_set(tmp_path, make_feature_set("a", ["rsi_14"]))
    assert not list(tmp_path.iterdir())


def test_a_changed_definition_is_named(tmp_path: Path) -> None:
    then = FeatureSet("a", ("rsi_14", "zscore"), ("0" * 64, get_feature("zscore").definition_hash))
    save_feature_set(tmp_path, then)
    with pytest.raises(FeatureError, match="rsi_14 has changed since") as caught:
        load_feature_set(tmp_path, "a")
    assert len(caught.value.problems) == 1
    assert "zscore" not in caught.value.problems[0]


def test_a_feature_that_is_gone_is_named(tmp_path: Path) -> None:
    @feature(lookback=0, scale="ratio")
    def short_lived(close: np.ndarray) -> np.ndarray:
        """Last digit of the price."""
        return close % 1

    try:
        saved = save_feature_set(tmp_path, make_feature_set("a", ["rsi_14", "short_lived"]))
        assert not changed_definitions(saved)
    finally:
        FEATURES.pop("short_lived")
    with pytest.raises(FeatureError, match="'short_lived'"):
        load_feature_set(tmp_path, "a")


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda c: c["features"].pop(), "hash does not fit"),
        (lambda c: c.update(schema_version=2), "hash does not fit"),
        (lambda c: c.pop("origin"), "KeyError"),
        (lambda c: c.update(features=3), "TypeError"),
    ],
)
def test_an_edited_file_is_refused(tmp_path: Path, edit: object, reason: str) -> None:
    save_feature_set(tmp_path, make_feature_set("a", ["rsi_14", "zscore"]))
    path = tmp_path / "a@1.json"
    content = json.loads(path.read_text())
    edit(content)  # type: ignore[operator]
    path.write_text(json.dumps(content))
    with pytest.raises(FeatureError, match=reason):
        load_feature_set(tmp_path, "a@1")
    assert list_feature_sets(tmp_path).loc["a@1", "problem"]


def test_half_a_file_is_refused(tmp_path: Path) -> None:
    save_feature_set(tmp_path, make_feature_set("a", ["rsi_14"]))
    path = tmp_path / "a@1.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(FeatureError, match="restore the file from git"):
        load_feature_set(tmp_path, "a")


@pytest.mark.parametrize("name", ["", "A", "1a", "a b", "../a", "a@2", "a" * 50])
def test_names_that_no_file_can_have_are_refused(name: str) -> None:
    with pytest.raises(FeatureError, match="cannot be called"):
        make_feature_set(name, ["rsi_14"])


@pytest.mark.parametrize("name", list(BUILT_IN))
def test_built_in_names_are_taken(name: str, tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match="built-in"):
        save_feature_set(tmp_path, make_feature_set(name, ["rsi_14"]))
    with pytest.raises(FeatureError, match="built-in"):
        check_new_name(name)


def test_features_are_each_named_once() -> None:
    with pytest.raises(FeatureError, match="rsi_14 more than once"):
        make_feature_set("a", ["rsi_14", "zscore", "rsi_14"])
    with pytest.raises(FeatureError, match="no features"):
        make_feature_set("a", [])
    with pytest.raises(FeatureError, match="did you mean 'rsi_14'"):
        make_feature_set("a", ["rsi_15"])


@pytest.mark.parametrize(
    ("reference", "hint"),
    [
        ("catalog", "did you mean 'catalogue'"),
        ("btc-hurly", "did you mean 'btc-hourly'"),
        ("btc-hourly@9", "Saved versions: btc-hourly@1"),
        ("default@2", "no version 2"),
        ("btc-hourly@x", "Saved versions"),
    ],
)
def test_unknown_sets_are_answered_with_what_there_is(
    tmp_path: Path, reference: str, hint: str
) -> None:
    save_feature_set(tmp_path, make_feature_set("btc-hourly", ["rsi_14"]))
    with pytest.raises(FeatureError, match=hint):
        load_feature_set(tmp_path, reference)


def test_the_list_shows_every_version_and_what_is_wrong(tmp_path: Path) -> None:
    save_feature_set(tmp_path, make_feature_set("a", ["rsi_14"], ORIGIN))
    save_feature_set(tmp_path, FeatureSet("a", ("rsi_14",), ("0" * 64,)))
    (tmp_path / "notes@x.json").write_text("{}")
    (tmp_path / "Bad Name@1.json").write_text("{}")
    table = list_feature_sets(tmp_path)
    assert table.index.tolist() == ["default@1", "catalogue@1", "stationary@1", "a@1", "a@2"]
    assert table.loc["a@1", "chosen_on"] == "2024-01-01 to 2024-06-01"
    assert table.loc["a@1", "problem"] == ""
    assert "rsi_14 has changed" in table.loc["a@2", "problem"]
    assert saved_names(tmp_path / "none") == ()
    assert len(list_feature_sets(tmp_path / "none")) == 3
