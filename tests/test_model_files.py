"""Model files: the same bytes and bits, and nothing that runs or crashes."""

from __future__ import annotations

import faulthandler
import hashlib
import io
import json
import os
import pickle
import random
import re
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import skops.io
from hypothesis import given, settings
from hypothesis import strategies as st
from lightgbm import LGBMClassifier
from sklearn.base import clone, is_classifier
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
from sklearn.naive_bayes import GaussianNB
from small_bundles import COLUMNS, in_child, market, models
from xgboost import XGBClassifier

from crypto_ml import model_files
from crypto_ml.errors import BundleError, ModelError
from crypto_ml.model_files import (
    BoosterClassifier,
    Tree,
    booster_of,
    check_tree,
    model_bytes,
    model_from_bytes,
    tree_tables,
)
from crypto_ml.models import describe_model, make_model, member_features, model_kind
from crypto_ml.values import MODEL_NAMES

TESTS = Path(__file__).resolve().parent
X_NEW, Y_NEW = market(200, seed=2)
every_kind = pytest.mark.parametrize("kind", MODEL_NAMES)


# the same bits and bytes


@every_kind
def test_a_loaded_model_gives_the_same_bits_and_bytes(kind: str) -> None:
    model = models()[kind]
    data = model_bytes(model)
    loaded = model_from_bytes(kind, data, 3, describe_model(model)["parameters"])
    for rows in (X_NEW, X_NEW.iloc[[7]], X_NEW * 1e9, X_NEW * 0):
        assert np.array_equal(loaded.predict_proba(rows), model.predict_proba(rows))
    assert loaded.predict_proba(X_NEW).dtype == model.predict_proba(X_NEW).dtype
    assert np.array_equal(loaded.predict(X_NEW), model.predict(X_NEW))
    assert model_bytes(loaded) == data
    assert describe_model(loaded) == describe_model(model)
    assert member_features(loaded) == COLUMNS
    assert loaded.n_features_in_ == 3
    assert list(loaded.classes_) == [0, 1]
    assert model_kind(loaded) == kind
    assert is_classifier(loaded)


@every_kind
@given(
    depth=st.integers(1, 7),
    trees=st.integers(1, 8),
    seed=st.integers(0, 99),
    rows=st.integers(20, 90),
)
@settings(max_examples=15, deadline=None)
def test_so_does_any_other_model(kind: str, depth: int, trees: int, seed: int, rows: int) -> None:
    X, _ = market(rows, seed)
    y = np.arange(rows) % 2
    model = make_model(kind, {"max_depth": depth, "n_estimators": trees}, seed).fit(X, y)
    loaded = model_from_bytes(kind, model_bytes(model), 3)
    assert np.array_equal(loaded.predict_proba(X_NEW), model.predict_proba(X_NEW))
    assert model_bytes(loaded) == model_bytes(model)


@pytest.mark.parametrize(
    "parameters",
    [
        {"class_weight": {0: 1.0, 1: 2.5}},
        {"class_weight": "balanced", "max_features": 0.5},
        {"monotonic_cst": [1, 0, -1]},
        {"max_leaf_nodes": 9, "ccp_alpha": 0.001},
        {"bootstrap": True, "max_samples": 0.5, "criterion": "log_loss"},
        {"max_depth": np.int64(3)},
    ],
)
def test_forests_of_every_sort_are_kept(parameters: dict[str, Any]) -> None:
    X, y = market()
    model = make_model("random_forest", {"n_estimators": 4, **parameters}, 1).fit(X, y)
    loaded = model_from_bytes("random_forest", model_bytes(model), 3)
    assert np.array_equal(loaded.predict_proba(X_NEW), model.predict_proba(X_NEW))
    assert model_bytes(loaded) == model_bytes(model)


def test_boosters_of_other_sorts_are_kept() -> None:
    X, y = market()
    for kind, parameters in (
        ("lightgbm", {"boosting_type": "dart"}),
        ("lightgbm", {"boosting_type": "rf", "subsample": 0.5, "subsample_freq": 1}),
        ("lightgbm", {"min_child_samples": 10_000}),
        ("xgboost", {"booster": "dart"}),
        ("xgboost", {"tree_method": "exact", "gamma": 0.5, "max_depth": 9}),
        ("xgboost", {"scale_pos_weight": 3.0}),
        ("xgboost", {"base_score": 0.2}),
    ):
        model = make_model(kind, {"n_estimators": 5, **parameters}, 1).fit(X, y)
        loaded = model_from_bytes(kind, model_bytes(model), 3)
        assert np.array_equal(loaded.predict_proba(X_NEW), model.predict_proba(X_NEW)), parameters


def test_another_interpreter_writes_the_same_bytes() -> None:
    code = (
        "import hashlib, small_bundles as b; from crypto_ml.model_files import model_bytes; "
        "print(*(hashlib.sha256(model_bytes(m)).hexdigest() for m in b.models().values()))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "99", "PYTHONPATH": str(TESTS)}
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    here = [hashlib.sha256(model_bytes(model)).hexdigest() for model in models().values()]
    assert ran.stdout.split() == here


def test_a_copy_of_a_forest_has_its_bytes_whatever_memory_held() -> None:
    """The unused bytes of scikit-learn's node records are not part of the model."""
    forest = models()["random_forest"]
    expected = model_bytes(forest)
    copies = [pickle.loads(pickle.dumps(forest)) for _ in range(3)]
    for copy in copies:
        for estimator in copy.estimators_:
            state = estimator.tree_.__getstate__()
            raw = state["nodes"].view(np.uint8).reshape(len(state["nodes"]), -1)
            raw[:, 57:64] = np.random.default_rng(0).integers(0, 255, raw[:, 57:64].shape)
            estimator.tree_.__setstate__(state)
        assert model_bytes(copy) == expected


def test_a_forest_file_holds_no_address_and_no_date() -> None:
    with zipfile.ZipFile(io.BytesIO(model_bytes(models()["random_forest"]))) as file:
        assert {entry.date_time for entry in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        schema = file.read("schema.json").decode()
        names = {entry.filename for entry in file.infolist()}
    assert "__id__" not in schema
    assert names == set(re.findall(r"[0-9a-f]{32}\.npy", schema)) | {"schema.json"}


# trees as tables


def walk(tree: Tree, row: np.ndarray, left_if: Callable[[float, float], bool]) -> float:
    node = 0
    while tree.left[node] != -1:
        goes_left = left_if(row[tree.feature[node]], tree.threshold[node])
        node = int(tree.left[node] if goes_left else tree.right[node])
    return float(tree.value[node])


@every_kind
def test_walking_the_tables_gives_the_probabilities(kind: str) -> None:
    model, rows = models()[kind], X_NEW.to_numpy()[:60]
    cuts = np.concatenate([t.threshold[t.left != -1] for t in tree_tables(model)])
    rows = np.vstack([rows, np.random.default_rng(0).choice(cuts, (60, 3))])
    rounded = rows if kind == "lightgbm" else rows.astype(np.float32).astype(float)
    less = (lambda x, t: x < t) if kind == "xgboost" else (lambda x, t: x <= t)
    total = np.array([sum(walk(t, row, less) for t in tree_tables(model)) for row in rounded])
    if kind == "random_forest":
        found = total / len(model.estimators_)
    else:
        base = 0.0
        if kind == "xgboost":
            config = json.loads(booster_of(model).save_config())["learner"]["learner_model_param"]
            share = float(config["base_score"].strip("[]"))
            base = np.log(share / (1 - share))
        found = 1 / (1 + np.exp(-total - base))
    expected = model.predict_proba(pd.DataFrame(rows, columns=COLUMNS))[:, 1]
    assert np.abs(found - expected).max() < 5e-7


@pytest.mark.parametrize(
    "change",
    [
        {"left": [1, 5, -1]},
        {"left": [0, -1, -1]},
        {"right": [2, -1, 1]},
        {"right": [-2, -1, -1]},
        {"left": [1, -2, -1]},
        {"feature": [3, 0, 0]},
        {"feature": [-1, 0, 0]},
        {"value": [0, np.nan, 1]},
        {"value": [0, 1]},
        {"threshold": []},
        {"left": [], "right": [], "feature": [], "threshold": [], "value": []},
    ],
)
def test_a_tree_that_leads_nowhere_is_refused(change: dict[str, list[float]]) -> None:
    good = {
        "feature": [0, 0, 0],
        "threshold": [0.5, 0, 0],
        "left": [1, -1, -1],
        "right": [2, -1, -1],
        "value": [0, 0.2, 0.8],
    }
    kinds = {"threshold": "f8", "value": "f8"}

    def tree(columns: dict[str, list[float]]) -> Tree:
        return Tree(**{k: np.array(v, kinds.get(k, "i8")) for k, v in columns.items()})

    check_tree(tree(good), 3)
    with pytest.raises((ValueError, IndexError)):
        check_tree(tree({**good, **change}), 3)


# what must not be loaded


def rewrite(data: bytes, change: Callable[[dict[str, bytes]], None]) -> bytes:
    """Change the parts of a skops file."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    change(parts)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, content in parts.items():
            file.writestr(name, content)
    return out.getvalue()


def change_schema(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, bytes]], None]:
    def apply(parts: dict[str, bytes]) -> None:
        schema = json.loads(parts["schema.json"])
        change(schema)
        parts["schema.json"] = json.dumps(schema).encode()

    return apply


def first_tree(schema: dict[str, Any]) -> dict[str, Any]:
    trees = schema["content"]["content"]["estimators_"]["content"]
    return dict(trees[0]["content"]["content"]["tree_"])


def plant_function(schema: dict[str, Any]) -> None:
    schema["content"]["content"]["planted"] = {
        "__class__": "system",
        "__module__": "os",
        "__loader__": "FunctionNode",
    }


def plant_method(schema: dict[str, Any]) -> None:
    schema["content"]["content"]["planted"] = {
        "__class__": "dict",
        "__module__": "builtins",
        "__loader__": "MethodNode",
        "content": {},
    }


def plant_type(schema: dict[str, Any]) -> None:
    schema["content"]["content"]["estimator"]["__class__"] = "ExtraTreeClassifier"


def plant_deep_type(schema: dict[str, Any]) -> None:
    first_tree(schema)["content"]["content"]["planted"] = {
        "__class__": "Popen",
        "__module__": "subprocess",
        "__loader__": "ObjectNode",
    }


def plant_disguise(schema: dict[str, Any]) -> None:
    """A tree's loader for what says it is a list."""
    first_tree(schema)["content"].update(__loader__="ObjectNode")


def plant_alias(schema: dict[str, Any]) -> None:
    first_tree(schema)["content"]["content"]["nodes"]["__id__"] = 7


@pytest.mark.parametrize(
    ("plant", "named"),
    [
        (plant_function, "os.system (FunctionNode)"),
        (plant_method, "builtins.dict (MethodNode)"),
        (plant_type, "ExtraTreeClassifier"),
        (plant_deep_type, "subprocess.Popen"),
        (plant_disguise, "builtins.dict (ObjectNode)"),
        (plant_alias, "parts refer to each other"),
    ],
)
def test_a_planted_type_is_refused_and_named(plant: Any, named: str) -> None:
    data = rewrite(model_bytes(models()["random_forest"]), change_schema(plant))
    with pytest.raises(BundleError) as caught:
        model_from_bytes("random_forest", data, 3)
    assert named in str(caught.value)


@pytest.mark.parametrize("estimator", [GaussianNB(), ExtraTreesClassifier(2)])
def test_what_skops_itself_would_trust_is_refused_all_the_same(estimator: Any) -> None:
    X, y = market()
    data = skops.io.dumps(estimator.fit(X, y))
    skops.io.loads(data, trusted=["sklearn.tree._tree.Tree"])
    with pytest.raises(BundleError, match=type(estimator).__name__):
        model_from_bytes("random_forest", data, 3)


def spoil_nodes(field: str, value: int, row: int = 0) -> Callable[[dict[str, bytes]], None]:
    def apply(parts: dict[str, bytes]) -> None:
        name = first_tree(json.loads(parts["schema.json"]))["content"]["content"]["nodes"]["file"]
        array = np.load(io.BytesIO(parts[name]))
        array[field][row] = value
        out = io.BytesIO()
        np.save(out, array)
        parts[name] = out.getvalue()

    return apply


def spoil_count(schema: dict[str, Any]) -> None:
    first_tree(schema)["content"]["content"]["node_count"]["content"] = "100000"


def spoil_outputs(schema: dict[str, Any]) -> None:
    first_tree(schema)["__reduce__"]["args"]["content"][2]["content"] = "1000000"


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_nodes("left_child", 10**15),
        spoil_nodes("right_child", 0),
        spoil_nodes("feature", 10**15),
        spoil_nodes("feature", 3),
        spoil_nodes("left_child", -7),
        change_schema(spoil_count),
        change_schema(spoil_outputs),
    ],
)
def test_a_forest_that_would_read_foreign_memory_is_refused(spoil: Any) -> None:
    data = rewrite(model_bytes(models()["random_forest"]), spoil)
    with pytest.raises(
        BundleError, match="the random_forest model cannot be read: ValueError: a tree"
    ):
        model_from_bytes("random_forest", data, 3)


def test_such_a_forest_would_end_the_process_if_it_were_loaded() -> None:
    """Why trees are checked: skops loads it, and the first prediction is a segmentation fault."""
    data = rewrite(model_bytes(models()["random_forest"]), spoil_nodes("left_child", 10**15))

    def predict() -> None:
        faulthandler.disable()
        skops.io.loads(data, trusted=["sklearn.tree._tree.Tree"]).predict_proba(X_NEW)

    assert in_child(predict) < 0


def test_a_pickle_in_the_place_of_an_array_is_refused() -> None:
    def plant(parts: dict[str, bytes]) -> None:
        name = next(name for name in parts if name.endswith(".npy"))
        out = io.BytesIO()
        np.save(out, np.array([print], dtype=object), allow_pickle=True)
        parts[name] = out.getvalue()

    with pytest.raises(BundleError, match="cannot be read"):
        model_from_bytes("random_forest", rewrite(model_bytes(models()["random_forest"]), plant), 3)


def edit(old: str, new: str, count: int = 1) -> Callable[[str], str]:
    return lambda text: re.sub(old, new, text, count=count, flags=re.M)


@pytest.mark.parametrize(
    "spoil",
    [
        edit(r"^left_child=\S+", "left_child=99999"),
        edit(r"^right_child=\S+", "right_child=-99999"),
        edit(r"^split_feature=\S+", "split_feature=77777"),
        edit(r"^decision_type=\S+", "decision_type=1"),
        edit(r"^num_cat=0", "num_cat=1"),
        edit(r"^is_linear=0", "is_linear=1"),
        edit(r"^leaf_value=\S+", "leaf_value=nan"),
        edit(r"^leaf_value=\S+ ", "leaf_value="),
        edit(r"^num_leaves=\d+", "num_leaves=2"),
        edit(r"^tree_sizes=\d+", "tree_sizes=10"),
        edit(r"^tree_sizes=.*$", "tree_sizes="),
        edit(r"^end of trees", "end of"),
    ],
)
def test_a_lightgbm_text_with_wrong_links_is_refused(spoil: Callable[[str], str]) -> None:
    text = model_bytes(models()["lightgbm"]).decode()
    assert spoil(text) != text
    with pytest.raises(BundleError, match="the lightgbm model cannot be read"):
        # the sizes of the trees are kept right, so that the links themselves are looked at
        model_from_bytes("lightgbm", resized(spoil(text)).encode(), 3)


def resized(text: str) -> str:
    if "tree_sizes=10 " in text or "tree_sizes=\n" in text or "end of trees" not in text:
        return text
    starts = [m.start() for m in re.finditer(r"^Tree=\d+$", text, re.M)]
    ends = [*starts[1:], text.index("end of trees")]
    sizes = " ".join(str(b - a) for a, b in zip(starts, ends, strict=True))
    return re.sub(r"^tree_sizes=.*$", f"tree_sizes={sizes}", text, flags=re.M)


@every_kind
def test_a_model_cut_off_anywhere_is_an_error_and_no_crash(kind: str) -> None:
    """Each half-written file is tried in a child, which must live to tell."""
    data = model_bytes(models()[kind])
    rng = random.Random(1)
    places = [rng.randrange(len(data)) for _ in range(40)] + [0, 1, len(data) - 1]

    def try_all() -> None:
        for place in places:
            try:
                loaded = model_from_bytes(kind, data[:place], 3)
            except BundleError:
                continue
            # a text without its last lines, which hold no tree, still answers right
            assert np.array_equal(loaded.predict_proba(X_NEW), models()[kind].predict_proba(X_NEW))

    assert in_child(try_all) == 0


@every_kind
def test_random_damage_is_never_a_crash(kind: str) -> None:
    """Digits and bytes changed at random: refused, or a model that answers with numbers."""
    original = model_bytes(models()[kind])
    refused = []

    def damaged(rng: random.Random) -> bytes:
        if kind == "lightgbm":
            text = bytearray(original)
            digits = [i for i, c in enumerate(text) if chr(c).isdigit()]
            for _ in range(3):
                text[rng.choice(digits)] = ord(rng.choice("0123456789"))
            return bytes(text)

        if kind == "xgboost":
            raw = bytearray(original)
            raw[rng.randrange(len(raw))] = rng.randrange(256)
            return bytes(raw)

        def spoil(parts: dict[str, bytes]) -> None:
            name = rng.choice(sorted(parts))
            content = bytearray(parts[name])
            content[rng.randrange(len(content))] = rng.randrange(256)
            parts[name] = bytes(content)

        return rewrite(original, spoil)

    def try_all() -> None:
        rng = random.Random(2)
        for _ in range(30 if kind == "random_forest" else 100):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    loaded = model_from_bytes(kind, damaged(rng), 3)
                    loaded.predict_proba(X_NEW)
                except (BundleError, ValueError, AttributeError, TypeError, IndexError, KeyError):
                    refused.append(1)
        assert len(refused) > 3

    assert in_child(try_all) == 0


@every_kind
def test_a_model_of_another_width_is_refused(kind: str) -> None:
    with pytest.raises(BundleError, match="cannot be read"):
        model_from_bytes(kind, model_bytes(models()[kind]), 2)


@every_kind
def test_garbage_is_refused(kind: str) -> None:
    for garbage in (
        b"",
        b"garbage",
        b"{L",
        b"[$d]",
        b"[x1",
        b"\x80\x04\x95" + b"\x00" * 40,
        pickle.dumps(models()[kind]),
    ):
        with pytest.raises(BundleError, match=f"the {kind} model cannot be read"):
            model_from_bytes(kind, garbage, 3)


def test_a_forest_of_another_scikit_learn_needs_a_word() -> None:
    def older(schema: dict[str, Any]) -> None:
        schema["content"]["content"]["_sklearn_version"]["content"] = '"1.2.0"'

    data = rewrite(model_bytes(models()["random_forest"]), change_schema(older))
    with pytest.raises(BundleError, match="InconsistentVersionWarning"):
        model_from_bytes("random_forest", data, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = model_from_bytes("random_forest", data, 3, allow_version_mismatch=True)
    expected = models()["random_forest"].predict_proba(X_NEW)
    assert np.array_equal(loaded.predict_proba(X_NEW), expected)


def test_a_linear_booster_is_not_loaded() -> None:
    linear = XGBClassifier(booster="gblinear", n_estimators=2).fit(X_NEW, Y_NEW)
    with pytest.raises(BundleError, match="the xgboost model cannot be read"):
        model_from_bytes("xgboost", model_bytes(linear), 3)


def test_only_the_three_kinds_are_saved() -> None:
    with pytest.raises(BundleError, match="a GaussianNB cannot be saved"):
        model_bytes(GaussianNB().fit(X_NEW, Y_NEW))


def test_nothing_is_unpickled() -> None:
    data = {kind: model_bytes(model) for kind, model in models().items()}

    def load() -> None:
        def forbid(event: str, arguments: tuple[Any, ...]) -> None:
            assert event not in ("pickle.find_class", "os.system", "subprocess.Popen"), event

        sys.addaudithook(forbid)
        for kind, content in data.items():
            model_from_bytes(kind, content, 3).predict_proba(X_NEW)
        with pytest.raises(AssertionError):
            pickle.loads(pickle.dumps(GaussianNB()))

    assert in_child(load) == 0


# a loaded booster as a classifier


def test_a_loaded_booster_is_a_classifier_that_cannot_be_fitted() -> None:
    for kind in ("lightgbm", "xgboost"):
        coat = BoosterClassifier(booster_of(models()[kind]))
        assert booster_of(coat) is coat.booster
        for twin in (clone(coat), pickle.loads(pickle.dumps(coat))):
            assert np.array_equal(twin.predict_proba(X_NEW), coat.predict_proba(X_NEW))
        assert np.array_equal(coat.predict_proba(X_NEW.to_numpy()), coat.predict_proba(X_NEW))
        with pytest.raises(ModelError, match="cannot be fitted again"):
            coat.fit(X_NEW, Y_NEW)


def test_a_booster_fitted_without_names_has_none() -> None:
    light = LGBMClassifier(n_estimators=2, verbosity=-1).fit(X_NEW.to_numpy(), Y_NEW)
    assert member_features(BoosterClassifier(light.booster_)) is None
    forest = RandomForestClassifier(2).fit(X_NEW.to_numpy(), Y_NEW)
    loaded = model_from_bytes("random_forest", model_bytes(forest), 3)
    assert member_features(loaded) is None


def test_every_trusted_type_is_needed() -> None:
    X, y = market()
    weights = {"n_estimators": 3, "class_weight": {0: 1.0, 1: 2.0}}
    made = model_bytes(make_model("random_forest", weights, 1).fit(X, y))
    with zipfile.ZipFile(io.BytesIO(made)) as file:
        nodes = model_files._nodes(json.loads(file.read("schema.json")))
    used = {f"{node['__module__']}.{node['__class__']}" for node in nodes}
    assert used == model_files.TRUSTED_TYPES
