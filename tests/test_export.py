"""Export: the same answers in other programs' formats, or none."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lightgbm import LGBMClassifier
from small_bundles import COLUMNS, WEIGHTS, about, ensemble, market, models, saved

from crypto_ml import compiled_graph
from crypto_ml.bundle import load_bundle, save_bundle
from crypto_ml.compiled import compile_bundle, load_compiled
from crypto_ml.ensemble import ProductionEnsemble
from crypto_ml.errors import BundleError
from crypto_ml.export import export_bundle
from crypto_ml.model_files import tree_tables

X_NEW, _ = market(300, seed=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("export") / "bundle")


@pytest.fixture(scope="module")
def session(folder: Path) -> Any:
    written = export_bundle(folder, "onnx", folder.parent / "ensemble.onnx")
    return onnxruntime.InferenceSession(written)


def edges(count: int = 3000) -> np.ndarray:
    """Make rows whose values lie on the models' thresholds or one step of 64 or 32 bits beside."""
    rng = np.random.default_rng(0)
    trees = [tree for model in models().values() for tree in tree_tables(model)]
    rows = np.empty((count, 3))
    for column in range(3):
        cuts = [t.threshold[(t.left != -1) & (t.feature == column)] for t in trees]
        value = rng.choice(np.concatenate(cuts), count)
        towards = rng.choice([-np.inf, np.inf], count)
        single = value.astype(np.float32)
        choices = [
            value,
            np.nextafter(value, towards),
            single.astype(float),
            np.nextafter(single, towards.astype(np.float32)).astype(float),
        ]
        rows[:, column] = np.choose(rng.integers(0, 4, count), choices)
    return rows


@pytest.mark.parametrize("kind", ["market", "edges", "far"])
def test_the_graph_answers_as_the_bundle_does(session: Any, kind: str) -> None:
    rows = {"market": X_NEW.to_numpy(), "edges": edges(), "far": X_NEW.to_numpy() * -1e7}[kind]
    whole, members = session.run(None, {"features": rows})
    assert (whole.dtype, members.dtype) == (np.float64, np.float64)
    assert (whole.shape, members.shape) == ((len(rows), 1), (len(rows), 3))
    assert np.abs(whole[:, 0] - ensemble().predict_proba(rows)[:, 1]).max() <= 1e-6
    parts = ensemble().member_probabilities(rows)
    assert list(parts) == list(WEIGHTS)
    assert np.abs(members - parts.to_numpy()).max() <= 1e-6


@given(st.lists(st.floats(-1e12, 1e12), min_size=3, max_size=3))
@settings(deadline=None)
def test_one_row_at_a_time_too(session: Any, row: list[float]) -> None:
    rows = np.array([row])
    given = session.run(["probability"], {"features": rows})[0][0, 0]
    assert abs(given - ensemble().predict_proba(rows)[0, 1]) <= 1e-6


def test_32_bit_thresholds_would_take_the_other_branch(session: Any) -> None:
    """The trap that the graph avoids: the same rows, rounded to 32 bits first."""
    rows = edges()
    exact = session.run(["probability"], {"features": rows})[0][:, 0]
    rounded = session.run(["probability"], {"features": rows.astype(np.float32).astype(float)})
    assert np.abs(rounded[0][:, 0] - exact).max() > 0.01


def test_the_graph_says_what_it_is(session: Any) -> None:
    about_it = session.get_modelmeta().custom_metadata_map
    info = {key: json.loads(text) for key, text in about_it.items() if key != "sha256"}
    told = {**ensemble().get_model_info(), "run_id": about()["run_id"]}
    assert {key: info[key] for key in told} == told
    assert info["feature_names"] == COLUMNS
    assert list(info["members"]) == list(info["weights"]) == list(WEIGHTS)
    assert [output.name for output in session.get_outputs()] == ["probability", "members"]
    with pytest.raises(Exception, match=r"(?i)invalid dimensions|got: 2 expected: 3"):
        session.run(None, {"features": np.zeros((1, 2))})


def test_the_file_is_the_compiled_ensemble(folder: Path, session: Any) -> None:
    written = folder.parent / "ensemble.onnx"
    assert written.read_bytes() == compile_bundle(folder)
    assert load_compiled(written).feature_names == tuple(COLUMNS)


def test_each_member_alone_and_odd_weights(tmp_path: Path) -> None:
    for name in models():
        one = ProductionEnsemble({name: models()[name]}, {name: 3})
        made = save_bundle(tmp_path / name, one, **about())
        written = export_bundle(made, "onnx", tmp_path / f"{name}.onnx")
        rows = X_NEW.to_numpy()
        given = onnxruntime.InferenceSession(written).run(["probability"], {"features": rows})
        assert np.abs(given[0][:, 0] - one.predict_proba(rows)[:, 1]).max() <= 1e-6


def test_what_the_graph_cannot_say_is_not_written(tmp_path: Path) -> None:
    X, y = market()
    X.iloc[::3] = 0.0
    model = LGBMClassifier(n_estimators=3, n_jobs=1, verbose=-1, zero_as_missing=True).fit(X, y)
    one = ProductionEnsemble({"lightgbm": model}, {"lightgbm": 1})
    made = save_bundle(tmp_path / "b", one, **about())
    with pytest.raises(BundleError, match="lightgbm cannot be compiled"):
        export_bundle(made, "onnx", tmp_path / "x.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_graph_that_differs_is_not_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = compiled_graph.bounds
    monkeypatch.setattr(
        compiled_graph, "bounds", lambda kind, t: np.nextafter(original(kind, t), -np.inf)
    )
    with pytest.raises(BundleError, match="answers differently from the models"):
        export_bundle(folder, "onnx", tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def test_a_pickle_holds_the_ensemble(folder: Path, tmp_path: Path) -> None:
    out = export_bundle(folder, "pickle", tmp_path / "deep" / "ensemble.pickle")
    twin = pickle.loads(out.read_bytes())
    assert np.array_equal(twin.predict_proba(X_NEW), ensemble().predict_proba(X_NEW))
    assert list(out.parent.iterdir()) == [out]
    out.write_bytes(b"older")
    assert export_bundle(folder, "pickle", out).stat().st_size > 1000
    with pytest.raises(BundleError):
        load_bundle(out.parent)


def test_unknown_formats_and_broken_bundles(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no format 'pickel'; did you mean 'pickle'"):
        export_bundle(folder, "pickel", tmp_path / "x")  # type: ignore[arg-type]
    with pytest.raises(BundleError, match="no folder can be read"):
        export_bundle(tmp_path / "nowhere", "pickle", tmp_path / "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match=r"cannot be written: (Not a directory|File exists)"):
        export_bundle(folder, "pickle", tmp_path / "file" / "x")
    assert (tmp_path / "file").read_text() == ""
