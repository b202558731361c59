"""The compiled ensemble: the models' own answers from one file, or none."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lightgbm import LGBMClassifier
from onnx import helper
from small_bundles import COLUMNS, WEIGHTS, about, ensemble, market, models, saved

from crypto_ml import compiled as module
from crypto_ml import (
    compiled_batch,
    compiled_checks,
    compiled_graph,
    compiled_kernels,
    compiled_trees,
)
from crypto_ml.bundle import Bundle, load_bundle, save_bundle
from crypto_ml.compiled import CompiledEnsemble, compile_bundle, load_compiled, verify_compiled
from crypto_ml.compiled_checks import hard_rows, live_proof
from crypto_ml.compiled_graph import LARGEST, bounds, join_parts, part_of, read_forest
from crypto_ml.ensemble import ProductionEnsemble
from crypto_ml.errors import BundleError, ModelError
from crypto_ml.features import feature_schema
from crypto_ml.model_files import Tree
from crypto_ml.models import make_model

ENGINES = ("onnxruntime", "numba")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("compiled") / "bundle")


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return load_bundle(folder)


@pytest.fixture(scope="module")
def data(folder: Path) -> bytes:
    return compile_bundle(folder)


@pytest.fixture(scope="module")
def loaded(data: bytes) -> dict[str, CompiledEnsemble]:
    return {name: load_compiled(data, engine=name) for name in ENGINES}  # type: ignore[arg-type]


# Bounds


@given(st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(-3, 3))
def test_a_bound_parts_values_as_rounding_to_32_bits_does(t: float, steps: int) -> None:
    for kind, goes_left in (
        ("xgboost", lambda x: np.float32(x) < np.float32(t)),
        ("random_forest", lambda x: np.float64(np.float32(x)) <= t),
    ):
        bound = float(bounds(kind, [t])[0])
        x = bound if np.isfinite(bound) else float(np.copysign(LARGEST, bound))
        for _ in range(abs(steps)):
            x = float(np.nextafter(x, np.inf if steps > 0 else -np.inf))
        if abs(x) <= LARGEST:
            assert (x <= bound) == goes_left(x)


@given(st.floats(-1e300, 1e300), st.floats(-1e38, 1e38))
def test_bounds_of_64_bit_thresholds_and_any_value(t: float, x: float) -> None:
    assert (x <= bounds("random_forest", [t])[0]) == (np.float64(np.float32(x)) <= t)
    seen = 0.0 if abs(x) <= float(np.float32(1e-35)) else x
    assert (x <= bounds("lightgbm", [t])[0]) == (seen <= t)


def test_lightgbm_takes_the_smallest_numbers_for_zero() -> None:
    tiny = float(np.float32(1e-35))
    X = np.repeat([[-tiny * 2], [0.0], [tiny * 2]], 50, axis=0)
    y = np.repeat([0, 1, 0], 50)
    model = make_model("lightgbm", {"n_estimators": 3, "min_child_samples": 1}, 1).fit(X, y)
    forest = join_parts([part_of("lightgbm", model)], {"lightgbm": 1.0}, 1)
    rows = np.array([[-tiny * 3], [-tiny], [-tiny / 2], [0.0], [-0.0], [tiny / 2], [tiny]])
    expected = model.predict_proba(rows)[:, 1]
    assert len(np.unique(expected)) > 1
    assert np.abs(kernel_answers(forest, rows)[:, -1] - expected).max() < 1e-12


def kernel_answers(forest: Any, rows: np.ndarray, function: Any = None) -> np.ndarray:
    tables = tuple(compiled_kernels.make_tables(forest))
    out = np.empty((len(rows), len(forest.scale) + 1))
    links = forest.scale, forest.shift, forest.logistic, forest.weights
    assert (function or compiled_kernels.answer)(rows, np.inf, tables, *links, out) == -1
    return out


# Answers


@pytest.mark.parametrize("engine", ENGINES)
def test_hard_rows_get_the_models_own_answers(
    loaded: dict[str, CompiledEnsemble], bundle: Bundle, engine: str
) -> None:
    compiled = loaded[engine]
    assert compiled.engine == engine
    rows = hard_rows(read_forest(compiled.data), 3000, seed=1)
    expected = bundle.ensemble.member_probabilities(rows)
    assert np.abs(compiled.member_probabilities(rows) - expected.to_numpy()).max() <= 1e-6
    assert np.abs(compiled.predict_proba(rows) - bundle.ensemble.predict_proba(rows)).max() <= 1e-6
    decided = bundle.ensemble.predict_proba(rows)[:, 1]
    clear = np.abs(decided - 0.5) > 1e-6
    assert np.array_equal(compiled.predict(rows)[clear], bundle.ensemble.predict(rows)[clear])


CUTS = np.unique(
    np.concatenate([t.threshold for m in models().values() for t in part_of("m", m).trees])
)
VALUES = st.one_of(
    st.floats(-3e38, 3e38, allow_subnormal=True),
    st.sampled_from(CUTS.tolist()),
    st.sampled_from(np.nextafter(CUTS, np.inf).tolist()),
    st.sampled_from(compiled_checks.EXTREMES),
)


@given(st.lists(VALUES, min_size=3, max_size=3))
@settings(deadline=None, max_examples=100)
def test_one_row_at_a_time(loaded: dict[str, CompiledEnsemble], row: list[float]) -> None:
    expected = ensemble().predict_proba(np.array([row]))[0, 1]
    for compiled in loaded.values():
        assert abs(compiled.probability(row) - expected) <= 1e-6
    fast = loaded["numba"]
    assert fast.probability(row) == fast.predict_proba([row, row])[1, 1]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3.5e38, -1e300])
def test_what_the_models_refuse_is_refused(
    loaded: dict[str, CompiledEnsemble], engine: str, value: float
) -> None:
    rows = np.zeros((1100, 3))
    rows[1050, 1] = value
    with pytest.raises((ModelError, ValueError)):
        ensemble().predict_proba(rows)
    with pytest.raises(ModelError, match=r"rsi_14 is .* in row 1050; expected finite"):
        loaded[engine].predict_proba(rows)
    with pytest.raises(ModelError, match="rsi_14 is"):
        loaded[engine].probability(rows[1050])


def test_rows_come_as_the_features_are_named(loaded: dict[str, CompiledEnsemble]) -> None:
    X, _ = market(20, seed=3)
    compiled = loaded["numba"]
    expected = compiled.predict_proba(X.to_numpy())
    assert np.array_equal(compiled.predict_proba(X[COLUMNS[::-1]]), expected)
    for bad in (X[COLUMNS[:2]], np.zeros((0, 3)), np.zeros((2, 4)), np.zeros(3)):
        with pytest.raises(ModelError, match="expected"):
            compiled.predict_proba(bad)
    with pytest.raises(ModelError, match=r"shape \(2,\); expected \(3,\)"):
        compiled.probability([1.0, 2.0])


def batch_answers(forest: Any, rows: np.ndarray) -> np.ndarray:
    tables = tuple(compiled_batch.make_batch_tables(forest))
    links = forest.scale, forest.shift, forest.logistic, forest.weights
    return compiled_batch.answer_many(rows, tables, links)


@pytest.mark.parametrize("count", [64, 255, 256, 257, 3000])
def test_many_rows_get_the_answers_of_single_ones(
    loaded: dict[str, CompiledEnsemble], count: int
) -> None:
    compiled = loaded["numba"]
    rows = hard_rows(read_forest(compiled.data), count, seed=count)
    many = compiled.predict_proba(rows)
    few = [compiled.predict_proba(rows[i : i + 63]) for i in range(0, count, 63)]
    assert np.abs(many - np.concatenate(few)).max() <= 1e-12
    one = np.array([compiled.probability(row) for row in rows[-5:]])
    assert np.abs(many[-5:, 1] - one).max() <= 1e-12


def test_the_kernel_for_many_rows_uncompiled_answers_the_same(monkeypatch: Any) -> None:
    forest = join_parts([part_of(n, m)._replace(trees=part_of(n, m).trees[:2])
                         for n, m in models().items()], WEIGHTS, 3)  # fmt: skip
    rows = hard_rows(forest, 40)
    names = ("_encode", "_leave_tops", "_walk", "sum_leaves")
    before = {n: getattr(compiled_batch, n) for n in names}
    expected = batch_answers(forest, rows)
    try:
        vars(compiled_batch).update({n: kernel.py_func for n, kernel in before.items()})
        monkeypatch.setattr(compiled_batch, "BLOCK", 48)
        with np.errstate(over="ignore"):
            given_ = batch_answers(forest, rows)
    finally:
        vars(compiled_batch).update(before)
    assert np.abs(given_ - expected).max() <= 1e-14


def test_a_forest_too_large_for_16_bits(data: bytes, monkeypatch: Any) -> None:
    X, _ = market(200, seed=4)
    expected = load_compiled(data, engine="numba").predict_proba(X)
    monkeypatch.setattr(compiled_batch, "MOST", 20)
    compiled = load_compiled(data, engine="numba")
    assert compiled._engine.batch is None
    assert np.abs(compiled.predict_proba(X) - expected).max() <= 1e-12


def test_a_kernel_for_many_rows_that_differs_never_answers(data: bytes, monkeypatch: Any) -> None:
    original = compiled_batch.make_batch_tables

    def wrong(forest: Any) -> Any:
        return original(replace(forest, bound=np.nextafter(forest.bound, -np.inf)))

    monkeypatch.setattr(compiled_batch, "make_batch_tables", wrong)
    compiled = load_compiled(data, engine="numba")
    compiled.predict_proba(np.zeros((63, 3)))
    with pytest.raises(BundleError, match="two kernels differ from each other by 0"):
        compiled.predict_proba(np.zeros((64, 3)))


def test_the_kernels_uncompiled_answer_the_same() -> None:
    forest = join_parts([part_of(n, m) for n, m in models().items()], WEIGHTS, 3)
    rows = hard_rows(forest, 3)
    names = ("_search", "_exit", "_below", "_eight", "_sum_leaves", "answer")
    plain = {n: getattr(compiled_kernels, n).py_func for n in names}
    before = {n: getattr(compiled_kernels, n) for n in names}
    expected = kernel_answers(forest, rows)
    try:
        vars(compiled_kernels).update(plain)
        with np.errstate(over="ignore"):
            given_ = kernel_answers(forest, rows)
            bad = rows.copy()
            bad[1, 0] = np.nan
            tables, one = tuple(compiled_kernels.make_tables(forest)), np.ones(3)
            args = tables, one, one, forest.logistic, one, np.empty((3, 4))
            assert compiled_kernels.answer(bad, np.inf, *args) == 1
    finally:
        vars(compiled_kernels).update(before)
    assert np.abs(given_ - expected).max() < 1e-14


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_random_trees_of_any_shape(seed: int) -> None:
    """Against a plain walk: trees of one leaf, chains, and bushes of more than 32 leaves."""
    rng = np.random.default_rng(seed)
    trees = [
        random_tree(rng, int(rng.choice([0, 1, 5, 31, 32, 90]))) for _ in range(rng.integers(1, 80))
    ]
    cut = rng.integers(0, len(trees) + 1)
    parts = [
        compiled_graph.Part(name, "lightgbm", some, 1.0, 0.0, False)
        for name, some in (("a", trees[:cut]), ("b", trees[cut:]))
        if some
    ]
    forest = join_parts(parts, {"a": 1.0, "b": 1.0}, 3)
    rows = rng.choice(np.append(forest.bound, [-1.0, 9.0]), (20, 3))
    for given_ in (kernel_answers(forest, rows), batch_answers(forest, rows)):
        for part, column in zip(parts, given_.T[:-1], strict=True):
            expected = [sum(walk(tree, row) for tree in part.trees) for row in rows]
            assert np.allclose(column, expected, rtol=0, atol=1e-9)


def random_tree(rng: np.random.Generator, inner: int) -> Any:
    left, right = [-1], [-1]
    for _ in range(inner):
        leaves = [n for n, link in enumerate(left) if link == -1]
        node = leaves[-1] if rng.random() < 0.3 else int(rng.choice(leaves))
        left[node], right[node] = len(left), len(left) + 1
        left, right = [*left, -1, -1], [*right, -1, -1]
    size = len(left)
    return Tree(
        rng.integers(0, 3, size), rng.integers(0, 6, size) / 2, np.array(left), np.array(right),
        rng.normal(size=size),
    )  # fmt: skip


def walk(tree: Any, row: np.ndarray) -> float:
    node = 0
    while tree.left[node] != -1:
        right = row[tree.feature[node]] > tree.threshold[node]
        node = tree.right[node] if right else tree.left[node]
    return float(tree.value[node])


# What the file says, and what was changed


def test_the_file_says_what_it_is(loaded: dict[str, CompiledEnsemble], bundle: Bundle) -> None:
    said = loaded["onnxruntime"].about
    assert said["feature_names"] == COLUMNS
    assert [entry["definition_hash"] for entry in said["features"]] == [n * 2 for n in COLUMNS]
    assert (said["weights"], said["decision_threshold"]) == (WEIGHTS, 0.5)
    assert said["run_id"] == about()["run_id"]
    assert said["market"] == about()["market"]
    assert said["label_definition"] == about()["label_definition"]
    files = bundle.manifest["files"]
    assert all(m["sha256"] == files[f"{n}_model.{end}"]["sha256"] for (n, m), end in
               zip(said["members"].items(), ("txt", "ubj", "skops"), strict=True))  # fmt: skip
    assert said["live"] is None  # these features are defined nowhere


def test_verification_finds_both_engines(data: bytes, bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "ensemble.onnx").write_bytes(data)
    check = verify_compiled(tmp_path / "ensemble.onnx", bundle)
    assert check.engines == ENGINES
    assert 0 < check.max_difference <= 1e-6
    assert check.rows == 4096


@given(st.integers(0, 10**9), st.integers(0, 7))
@settings(max_examples=30)
def test_no_changed_bit_is_loaded(data: bytes, place: int, bit: int) -> None:
    changed = bytearray(data)
    changed[place % len(data)] ^= 1 << bit
    with pytest.raises(BundleError, match=r"SHA-256 differs|no compiled ensemble"):
        load_compiled(bytes(changed))


def test_files_that_are_none(data: bytes, tmp_path: Path, monkeypatch: Any) -> None:
    for bad in (b"", data[:-1], data[:5000]):
        with pytest.raises(BundleError, match="no compiled ensemble"):
            load_compiled(bad)
    with pytest.raises(BundleError, match="cannot be read: No such file"):
        load_compiled(tmp_path / "none.onnx")
    with pytest.raises(BundleError, match="ONNX Runtime cannot read"):
        load_compiled(module._sealed(b"nonsense"))
    with pytest.raises(ModelError, match="no engine 'numbo'; did you mean 'numba'"):
        load_compiled(data, engine="numbo")  # type: ignore[arg-type]
    with pytest.raises(BundleError, match=r"no crypto_ml compiled ensemble"):
        load_compiled(edited(data, format='"other"'))
    with pytest.raises(BundleError, match="format version 2"):
        load_compiled(edited(data, format_version="2"))
    monkeypatch.setitem(sys.modules, "numba", None)
    for name in ("compiled_kernels", "compiled_graph"):
        monkeypatch.delitem(sys.modules, f"crypto_ml.{name}")
    with pytest.raises(ModelError, match="numba is not installed"):
        load_compiled(data, engine="numba")
    assert not load_compiled(data).accelerate()


def edited(data: bytes, leaves: float = 0.0, **entries: str) -> bytes:
    """Change a file as one could who seals it anew."""
    model = onnx.load_model_from_string(data[:-76])
    kept = {entry.key: entry.value for entry in model.metadata_props} | entries
    del model.metadata_props[:]
    helper.set_model_props(model, kept)
    if leaves:
        for attribute in model.graph.node[0].attribute:
            if attribute.name == "leaf_weights":
                values = np.frombuffer(attribute.t.raw_data).copy() + leaves
                attribute.t.raw_data = values.tobytes()
    return module._sealed(model.SerializeToString())


def test_other_models_are_noticed(data: bytes, bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="answers differently from the models"):
        load_compiled(edited(data, leaves=1e-3))
    other = load_bundle(saved(tmp_path / "other", seed=7))
    with pytest.raises(BundleError, match="not made of lightgbm of"):
        verify_compiled(data, other)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda kind, t: np.nextafter(bounds(kind, t), -np.inf),  # below, not at most
        lambda kind, t: np.asarray(t, dtype=float),  # no rounding to 32 bits
    ],
    ids=["< for <=", "no 32 bits"],
)
def test_verification_names_row_and_members(
    folder: Path, bundle: Bundle, monkeypatch: Any, wrong: Any
) -> None:
    """Mutations of the comparison: each must be found."""
    monkeypatch.setattr(compiled_graph, "bounds", wrong)
    monkeypatch.setattr(module, "_check_answers", lambda compiled: None)
    broken = compile_bundle(folder)
    with pytest.raises(
        BundleError, match=r"from the models in row \d+ \(.*(xgboost|forest) by 0\.\d+"
    ):
        verify_compiled(broken, bundle)


def test_kernels_that_differ_never_answer(data: bytes, monkeypatch: Any) -> None:
    original = compiled_kernels.make_tables

    def wrong(forest: Any) -> Any:
        return original(replace(forest, bound=np.nextafter(forest.bound, -np.inf)))

    monkeypatch.setattr(compiled_kernels, "make_tables", wrong)
    compiled = load_compiled(data)
    with pytest.raises(BundleError, match="kernels differ from ONNX Runtime by 0"):
        compiled.accelerate()
    assert compiled.engine == "onnxruntime"


def test_an_engine_that_answers_nan_is_not_used(loaded: dict[str, CompiledEnsemble]) -> None:
    easy = SimpleNamespace(probability=lambda row: 0.5, engine="easy")
    with pytest.raises(BundleError, match="easy answers a row with nan"):
        module._check_refusals(easy, np.zeros(3))  # type: ignore[arg-type]
    loop = SimpleNamespace(
        feature=np.zeros(1, int), bound=np.zeros(1), left=np.zeros(1, int), right=np.zeros(1, int),
        value=np.zeros(1), width=1,
    )  # fmt: skip
    with pytest.raises(BundleError, match="lead back"):
        compiled_trees.lay_out(loop, np.zeros((1, 32), int))


# Members of other kinds


def test_each_member_alone_and_options_of_lightgbm(tmp_path: Path) -> None:
    X, y = market()
    averaged = {"boosting_type": "rf", "subsample": 0.5, "subsample_freq": 1, "n_estimators": 5}
    fitted = {**models(), "averaged": make_model("lightgbm", averaged, 1).fit(X, y)}
    fitted["stump"] = make_model("random_forest", {"n_estimators": 3, "max_depth": 1}, 1).fit(X, y)
    for name, model in fitted.items():
        place = save_bundle(
            tmp_path / name, ProductionEnsemble({name: model}, {name: 3}), **about()
        )
        assert verify_compiled(compile_bundle(place), load_bundle(place), 512).max_difference < 1e-6


def test_what_trees_cannot_say_is_refused(tmp_path: Path) -> None:
    X, y = market()
    X.iloc[::3] = 0.0
    options = {"n_estimators": 3, "n_jobs": 1, "verbose": -1}
    model = LGBMClassifier(zero_as_missing=True, **options).fit(X, y)
    place = save_bundle(tmp_path / "b", ProductionEnsemble({"m": model}, {"m": 1}), **about())
    with pytest.raises(BundleError, match="m cannot be compiled: it takes 0 for missing"):
        compile_bundle(place)
    with pytest.raises(BundleError, match="its objective is not logistic"):
        compiled_graph._lightgbm_scale("objective=regression", "m", 1)


# Live features


def test_live_features_are_compared_before_they_are_vouched_for(monkeypatch: Any) -> None:
    schema = feature_schema(("close", "rsi_14"))
    proof = live_proof(schema, "1h")
    assert proof is not None
    assert (len(proof["engine"]), proof["timeframe_ms"]) == (64, 3_600_000)
    assert live_proof([{**schema[0], "definition_hash": "0" * 64}], "1h") is None
    assert live_proof([{**schema[0], "name": "mine"}], "1h") is None
    monkeypatch.setattr(compiled_checks, "_compare_features", lambda *given: (9, float("nan")))
    with pytest.raises(BundleError, match="live features differ from the feature matrix"):
        live_proof(schema, "1h")


# Imports


def test_production_needs_few_packages(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "ensemble.onnx").write_bytes(data)
    heavy = ("sklearn", "lightgbm", "xgboost", "pandas", "skops", "talib", "numba")
    code = f"""
import json, sys
from crypto_ml.compiled import load_compiled
compiled = load_compiled({str(tmp_path / "ensemble.onnx")!r})
first = compiled.probability([1.0, 2.0, 3.0])
early = [name for name in {heavy!r} if name in sys.modules]
compiled.accelerate()
late = [name for name in {heavy!r} if name in sys.modules]
print(json.dumps([early, late, first, compiled.probability([1.0, 2.0, 3.0])]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    early, late, first, second = json.loads(done.stdout)
    assert early == []
    assert late == ["numba"]
    assert abs(first - second) <= 1e-12
