"""Bundle: whole or refused, the same bytes, the same bits, and never by halves."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.naive_bayes import GaussianNB
from small_bundles import COLUMNS, about, ensemble, in_child, killed_before, market, models, saved

from crypto_ml import bundle as bundles
from crypto_ml.bundle import (
    Bundle,
    Manifest,
    json_bytes,
    library_versions,
    load_bundle,
    load_member,
    manifest_bytes,
    open_bundle,
    save_bundle,
)
from crypto_ml.ensemble import ProductionEnsemble
from crypto_ml.errors import BundleError
from crypto_ml.models import make_model

TESTS = Path(__file__).resolve().parent
X_NEW, _ = market(200, seed=2)
FILES = {
    "lightgbm_model.txt",
    "xgboost_model.ubj",
    "random_forest_model.skops",
    "ensemble.json",
    "manifest.json",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("bundles") / "bundle")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# saving and loading


def test_probabilities_after_loading_are_those_before(folder: Path) -> None:
    loaded = load_bundle(folder)
    original = ensemble()
    for rows in (X_NEW, X_NEW.iloc[[3]], X_NEW[COLUMNS[::-1]], X_NEW.to_numpy()):
        assert np.array_equal(loaded.ensemble.predict_proba(rows), original.predict_proba(rows))
    assert np.array_equal(loaded.ensemble.predict(X_NEW), original.predict(X_NEW))
    assert loaded.ensemble.get_model_info() == original.get_model_info()
    assert loaded.check_difference == 0
    assert {path.name for path in folder.iterdir()} == FILES
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


@given(
    weights=st.lists(st.floats(0, 1e6), min_size=3, max_size=3).filter(lambda w: max(w) > 1e-6),
    threshold=st.floats(0.001, 0.999),
    chosen=st.sets(st.sampled_from(["lightgbm", "xgboost", "random_forest"]), min_size=1),
)
@settings(max_examples=12, deadline=None)
def test_any_weights_threshold_and_members_come_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory,
    weights: list[float],
    threshold: float,
    chosen: set[str],
) -> None:
    members = {name: model for name, model in models().items() if name in chosen}
    given_weights = dict(zip(members, [w + 1e-3 for w in weights], strict=False))
    original = ProductionEnsemble(members, given_weights, threshold)
    place = tmp_path_factory.mktemp("any") / "bundle"
    loaded = load_bundle(save_bundle(place, original, **about())).ensemble
    assert np.array_equal(loaded.predict_proba(X_NEW), original.predict_proba(X_NEW))
    assert loaded.weights_ == original.weights_
    assert loaded.decision_threshold == threshold
    again = save_bundle(place.with_name("again"), loaded, **about())
    assert content(again) == content(place), "saving what was loaded changes no byte"


def test_what_is_in_the_files(folder: Path) -> None:
    loaded = load_bundle(folder)
    metadata, manifest = loaded.metadata, loaded.manifest
    assert json.loads((folder / "ensemble.json").read_bytes()) == json.loads(json.dumps(metadata))
    assert list(metadata["members"]) == list(metadata["weights"]) == list(models())
    for name, member in metadata["members"].items():
        assert member["kind"] == name
        assert member["file"] in FILES
        assert member["parameters"]["n_estimators"] == 12
    assert metadata["classes"] == [0, 1]
    assert metadata["decision_threshold"] == 0.5
    assert metadata["feature_schema"] == about()["feature_schema"]
    assert metadata["label_definition"] == about()["label_definition"]
    assert metadata["market"] == about()["market"]
    assert metadata["training_span"]["start"] == "2024-01-01T00:00:00+00:00"
    assert metadata["extra"] == {}
    assert manifest["run_id"] == about()["run_id"]
    assert manifest["git"] == about()["git"]
    assert manifest["format_version"] == 1
    assert manifest["library_versions"] == library_versions()
    assert manifest["files"].keys() == FILES - {"manifest.json"}
    for name, entry in manifest["files"].items():
        data = (folder / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    assert "run_id" not in (folder / "ensemble.json").read_text(), "a replay is another run"


def test_the_same_models_give_the_same_files_in_another_process(
    folder: Path, tmp_path: Path
) -> None:
    code = f"import pathlib, small_bundles as b; b.saved(pathlib.Path({str(tmp_path / 'other')!r}))"
    environment = {**os.environ, "PYTHONHASHSEED": "5", "PYTHONPATH": str(TESTS)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert content(tmp_path / "other") == content(folder)
    later = saved(tmp_path / "later", run_id="another-run")
    different = {name for name in FILES if content(later)[name] != content(folder)[name]}
    assert different == {"manifest.json"}


def test_one_member_alone(folder: Path) -> None:
    for name, model in models().items():
        member = load_member(folder, name)
        assert np.array_equal(member.predict_proba(X_NEW), model.predict_proba(X_NEW))
    with pytest.raises(
        BundleError, match="has no member 'random_forrest'; did you mean 'random_fo"
    ):
        load_member(folder, "random_forrest")


def test_extra_is_kept(tmp_path: Path) -> None:
    extra = {"note": "first", "nested": {"list": [1, 2.5, None]}}
    assert load_bundle(saved(tmp_path / "b", extra=extra)).metadata["extra"] == extra


def test_relative_paths_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_bundle("b", ensemble(), **about())
    assert load_bundle("b").check_difference == 0


# what cannot be saved


def test_a_bundle_is_never_overwritten(folder: Path) -> None:
    before = content(folder)
    with pytest.raises(BundleError, match="a bundle never takes the place of another"):
        saved(folder, seed=7)
    assert content(folder) == before
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature_schema": [{"name": "close", "definition_hash": "x"}]}, "names \\['close'\\]"),
        ({"feature_schema": about()["feature_schema"][::-1]}, "same names in the same order"),
        ({"feature_schema": [{"name": n} for n in COLUMNS]}, "feature_schema.0.definition_hash"),
        ({"training_span": ("2024-01-01", "2024-02-01")}, "2024-01-01 has no time zone"),
        ({"market": {"symbol": {1, 2}}}, "plain values only"),
        ({"extra": {"share": float("nan")}}, "plain values only|extra"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        saved(tmp_path / "b", **changes)
    assert not list(tmp_path.iterdir())


def test_members_that_cannot_be_saved(tmp_path: Path) -> None:
    bayes = GaussianNB().fit(*market())
    with pytest.raises(BundleError, match="a GaussianNB cannot be saved"):
        save_bundle(tmp_path / "b", ProductionEnsemble({"bayes": bayes}, {"bayes": 1}), **about())
    odd = ProductionEnsemble({"../x": models()["lightgbm"]}, {"../x": 1})
    with pytest.raises(BundleError, match=r"member '\.\./x': in a bundle, names are made of"):
        save_bundle(tmp_path / "b", odd, **about())


def test_what_was_written_is_proved_to_answer_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles, "_check_answers", lambda opened, made: 1e-9)
    with pytest.raises(BundleError, match="answer differently from those in memory"):
        saved(tmp_path / "b")
    assert not list(tmp_path.iterdir())


def test_check_rows_lie_on_and_beside_thresholds() -> None:
    rows = bundles._check_rows(models(), 3)
    cuts = np.concatenate(
        [t.threshold[t.left != -1] for m in models().values() for t in bundles.tree_tables(m)]
    )
    assert np.isin(rows[::2], np.append(cuts, 0)).all()
    assert np.isin(np.nextafter(rows[1::2], -np.inf), np.append(cuts, 0)).all()
    stump = {"random_forest": make_model("random_forest", {"max_depth": 1}, 1).fit(*market())}
    assert (bundles._check_rows(stump, 3).shape) == (32, 3)


# what cannot be loaded


def test_what_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no folder can be read at .*nowhere: No such file"):
        load_bundle(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"has no manifest\.json: it is no whole bundle"):
        load_bundle(tmp_path)


@pytest.mark.parametrize("name", sorted(FILES))
def test_every_kind_of_damage_to_every_file_is_refused(
    folder: Path, tmp_path: Path, name: str
) -> None:
    """Single bytes at many places, cuts, appended bytes, and the file lost: refused N of N."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    original = (copy / name).read_bytes()
    rng = random.Random(name)
    places = {0, len(original) - 1, *(rng.randrange(len(original)) for _ in range(150))}
    damaged = []
    for place in places:
        byte = original[place] ^ (1 << rng.randrange(8))
        damaged.append(original[:place] + bytes([byte]) + original[place + 1 :])
    damaged += [original[:place] for place in rng.sample(sorted(places), 20)]
    damaged += [original + b"\0", b"", original[::-1], original * 2]
    refused = accepted = 0
    for data in damaged:
        (copy / name).write_bytes(data)
        try:
            opened = open_bundle(copy)
        except BundleError as error:
            assert name in str(error) or name == "manifest.json"
            refused += 1
        else:
            # a manifest may be written otherwise and say the same, or name another run or commit
            assert name == "manifest.json"
            assert opened.manifest.files == open_bundle(folder).manifest.files
            accepted += 1
    assert refused + accepted == len(damaged)
    assert accepted == 0 or name == "manifest.json"
    (copy / name).unlink()
    missing = "has no manifest.json" if name == "manifest.json" else f"\n- {name} is missing"
    with pytest.raises(BundleError, match=re.escape(missing)):
        load_bundle(copy)
    (copy / name).write_bytes(original)
    assert load_bundle(copy).check_difference == 0


def test_extra_files_and_swapped_files_are_refused(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / ".DS_Store").write_bytes(b"")
    with pytest.raises(BundleError, match=r"\.DS_Store is not in the manifest"):
        load_bundle(copy)
    (copy / ".DS_Store").unlink()
    other = saved(tmp_path / "other", seed=7)
    shutil.copy(other / "xgboost_model.ubj", copy)
    with pytest.raises(BundleError, match=r"1 problem .*\n- xgboost_model\.ubj (was changed|has)"):
        load_bundle(copy)
    shutil.copy(other / "manifest.json", copy)
    with pytest.raises(BundleError, match=r"3 problems .*copy the whole folder from its run again"):
        load_bundle(copy)


def reseal(folder: Path) -> None:
    """Write a manifest that fits the files as they are, as a careless or hostile hand would."""
    manifest = Manifest.model_validate(json.loads((folder / "manifest.json").read_bytes()))
    files = {k: v for k, v in content(folder).items() if k != "manifest.json"}
    sealed = manifest_bytes(files, manifest.run_id, manifest.git, manifest.library_versions)
    (folder / "manifest.json").write_bytes(sealed)


def change_ensemble(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda given: given.update(changes)


def swap_features(given: dict[str, Any]) -> None:
    given["feature_schema"].reverse()


def drop_feature(given: dict[str, Any]) -> None:
    given["feature_schema"].pop()


def rename_file(given: dict[str, Any]) -> None:
    given["members"]["lightgbm"]["file"] = "other_model.txt"


def climb(given: dict[str, Any]) -> None:
    given["members"]["lightgbm"]["file"] = "../secret.txt"


def cross(given: dict[str, Any]) -> None:
    given["members"]["lightgbm"]["file"] = "xgboost_model.ubj"


def other_kind(given: dict[str, Any]) -> None:
    given["members"]["lightgbm"]["kind"] = "pickle"


def other_answer(given: dict[str, Any]) -> None:
    given["check"]["probabilities"]["xgboost"][5] += 1e-5


def no_answers(given: dict[str, Any]) -> None:
    del given["check"]["probabilities"]["xgboost"]


def hole(given: dict[str, Any]) -> None:
    given["check"]["rows"][0].pop()


def no_hash(given: dict[str, Any]) -> None:
    del given["feature_schema"][0]["definition_hash"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_ensemble(surprise=1), "surprise: Extra inputs are not permitted"),
        (lambda given: given.pop("weights"), "weights: Field required"),
        (
            change_ensemble(weights={"lightgbm": "0.4"}),
            r"weights\.lightgbm: Input should be a valid",
        ),
        (change_ensemble(weights={"lightgbm": -1, "xgboost": 1, "random_forest": 1}), "weight of"),
        (change_ensemble(weights={"lightgbm": 1}), "'xgboost' has no weight"),
        (change_ensemble(decision_threshold=1.5), "decision_threshold is 1.5"),
        (change_ensemble(classes=[1, 0]), "classes"),
        (change_ensemble(members={}), "at least one fitted model"),
        (swap_features, "was trained on .*ensemble.json names"),
        (drop_feature, "cannot be read"),
        (rename_file, r"has no other_model\.txt, which ensemble\.json names"),
        (climb, r"members\.lightgbm\.file: String should match pattern"),
        (cross, "the lightgbm model cannot be read"),
        (other_kind, r"members\.lightgbm\.kind: Input should be"),
        (other_answer, r"answer differently here .* by up to 1e-05.*the same are installed"),
        (no_answers, "the check rows are damaged"),
        (hole, "the check rows are damaged"),
        (no_hash, r"feature_schema\.0\.definition_hash: Field required"),
    ],
)
def test_a_wrong_ensemble_file_is_refused_even_with_a_fitting_manifest(
    folder: Path, tmp_path: Path, change: Any, message: str
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    given = json.loads((copy / "ensemble.json").read_bytes())
    change(given)
    (copy / "ensemble.json").write_bytes(json_bytes(given))
    reseal(copy)
    with pytest.raises(BundleError, match=message):
        load_bundle(copy)


def edit_manifest(folder: Path, **changes: Any) -> None:
    given = json.loads((folder / "manifest.json").read_bytes())
    (folder / "manifest.json").write_bytes(json_bytes({**given, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "has format version 2; this crypto_ml reads up to 1. Install"),
        ({"format_version": 2, "new_key": []}, "has format version 2"),
        ({"format_version": 0}, "format_version: Input should be 1"),
        ({"format_version": "1"}, "format_version: Input should be 1"),
        ({"format": "something else"}, "format: Input should be 'crypto_ml bundle'"),
        ({"git": {"commit": "x"}}, "git.dirty: Field required"),
        ({"files": {"a.txt": {"sha256": "short", "size": 1}}}, "sha256: String should match"),
        ({"files": {}}, "4 problems"),
    ],
)
def test_a_wrong_manifest_is_refused(
    folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    edit_manifest(copy, **changes)
    with pytest.raises(BundleError, match=message):
        load_bundle(copy)


@pytest.mark.parametrize("text", [b"", b"[]", b"null", b"{", b"\xff\xfe", b'"text"', b"7"])
@pytest.mark.parametrize("name", ["manifest.json", "ensemble.json"])
def test_what_is_no_json_object_is_refused(
    folder: Path, tmp_path: Path, name: str, text: bytes
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / name).write_bytes(text)
    if name == "ensemble.json":
        reseal(copy)
    with pytest.raises(BundleError, match=rf"{re.escape(name)}( is not JSON| \()"):
        load_bundle(copy)


def test_a_forest_of_another_scikit_learn(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    here = library_versions()
    edit_manifest(copy, library_versions={**here, "scikit-learn": "1.2.2"})
    with pytest.raises(BundleError, match=r"saved by scikit-learn 1\.2\.2, and .* is installed"):
        load_bundle(copy)
    with pytest.raises(BundleError, match="allow_version_mismatch=True"):
        load_member(copy, "random_forest")
    assert load_member(copy, "lightgbm").kind == "lightgbm"
    allowed = load_bundle(copy, allow_version_mismatch=True)
    assert np.array_equal(allowed.ensemble.predict_proba(X_NEW), ensemble().predict_proba(X_NEW))
    major, minor, *_ = here["scikit-learn"].split(".")
    edit_manifest(copy, library_versions={**here, "scikit-learn": f"{major}.{minor}.99"})
    assert load_bundle(copy).check_difference == 0
    edit_manifest(copy, library_versions={})
    with pytest.raises(BundleError, match="saved by scikit-learn unknown"):
        load_bundle(copy)


def test_other_answers_name_the_versions_that_changed(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    given = json.loads((copy / "ensemble.json").read_bytes())
    other_answer(given)
    (copy / "ensemble.json").write_bytes(json_bytes(given))
    reseal(copy)
    edit_manifest(copy, library_versions={**library_versions(), "xgboost": "1.0"})
    with pytest.raises(BundleError, match=r"saved with \(xgboost 1\.0, here \d"):
        load_bundle(copy)


def test_a_small_difference_is_told_and_accepted(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    given = json.loads((copy / "ensemble.json").read_bytes())
    given["check"]["probabilities"]["xgboost"][5] += 5e-8
    (copy / "ensemble.json").write_bytes(json_bytes(given))
    reseal(copy)
    assert 4e-8 < load_bundle(copy).check_difference < 6e-8


def test_links_are_not_followed(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "lightgbm_model.txt").unlink()
    (copy / "lightgbm_model.txt").symlink_to(folder / "lightgbm_model.txt")
    with pytest.raises(BundleError, match="it is a link"):
        load_bundle(copy)


def test_nothing_is_unpickled_and_nothing_is_started(folder: Path) -> None:
    def load() -> None:
        def forbid(event: str, arguments: tuple[Any, ...]) -> None:
            started = event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn")
            assert event != "pickle.find_class", arguments
            assert not started, arguments

        sys.addaudithook(forbid)
        assert load_bundle(folder).check_difference == 0
        load_member(folder, "random_forest")
        with pytest.raises(AssertionError):
            pickle.loads(pickle.dumps(GaussianNB()))

    assert in_child(load) == 0


def test_the_modules_have_no_way_to_unpickle() -> None:
    for name in ("bundle", "model_files", "ensemble", "folders", "models", "training"):
        tree = ast.parse((TESTS.parent / "crypto_ml" / f"{name}.py").read_text())
        names = {
            n.name.split(".")[0]
            for i in ast.walk(tree)
            if isinstance(i, ast.Import)
            for n in i.names
        }
        called = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
        assert not names & {"pickle", "cloudpickle", "dill", "shelve", "marshal"}
        assert not called & {"read_pickle", "load_pickle", "eval", "exec"}


# kills


def test_killed_at_every_step_of_a_save_leaves_nothing_that_loads_by_halves(
    tmp_path: Path,
) -> None:
    expected = ensemble(7).predict_proba(X_NEW)
    outcomes = []
    models(42)
    for step in range(200):
        place = tmp_path / str(step)
        place.mkdir()
        target = place / "bundle"
        killed = killed_before(step, place, partial(saved, target))
        if target.exists():
            assert load_bundle(target).check_difference == 0
        for path in place.iterdir():
            try:
                found = load_bundle(path)
            except BundleError:
                continue
            assert np.array_equal(
                found.ensemble.predict_proba(X_NEW), ensemble().predict_proba(X_NEW)
            ), "what loads is whole, wherever it lies"
        outcomes.append(target.exists())
        if not target.exists() and step % 5 == 0:
            saved(target, seed=7)
            assert np.array_equal(load_bundle(target).ensemble.predict_proba(X_NEW), expected)
        if not killed:
            break
    assert not killed
    assert outcomes == sorted(outcomes)
    assert outcomes.count(False) >= 12
    assert outcomes.count(True) >= 2


def test_killed_at_random_moments_of_a_save(tmp_path: Path) -> None:
    rng = random.Random(3)
    models(42)
    for attempt in range(25):
        target = tmp_path / str(attempt) / "bundle"
        child = os.fork()
        if not child:
            saved(target)
            os._exit(0)
        time.sleep(rng.uniform(0, 0.25))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if target.exists():
            assert load_bundle(target).check_difference == 0


def test_a_bundle_is_a_value(folder: Path) -> None:
    loaded = load_bundle(folder)
    assert isinstance(loaded, Bundle)
    with pytest.raises(AttributeError):
        loaded.ensemble = None  # type: ignore[misc, assignment]
    assert loaded.folder == folder
    rows = pd.DataFrame(loaded.metadata["check"]["rows"], columns=COLUMNS)
    found = loaded.ensemble.member_probabilities(rows)
    assert found.to_dict("list") == loaded.metadata["check"]["probabilities"]
