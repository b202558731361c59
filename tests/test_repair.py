"""Every way to break a model's folder has its own words, and the command named there mends it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from operation_projects import add_run, project, registry, train

from crypto_ml import faults as faults_module
from crypto_ml.bundle import load_bundle
from crypto_ml.consistency import TRAINING_METADATA, compare, comparison_lines, folder_faults
from crypto_ml.features import FEATURES
from crypto_ml.folders import _read_file
from crypto_ml.manifest import Manifest, manifest_bytes
from crypto_ml.production import load_production
from crypto_ml.repair import carry_out, plan_repairs, repair_lines
from crypto_ml.settings import Settings
from crypto_ml.versions import METADATA


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a project with a run that was trained and promoted."""
    root = tmp_path_factory.mktemp("project")
    settings = project(root)
    run = add_run(settings)
    train(settings, run)
    registry(settings).promote(run)
    return root


@pytest.fixture
def settings(template: Path, tmp_path: Path) -> Settings:
    shutil.copytree(template, tmp_path / "project", copy_function=shutil.copy2)
    return project(tmp_path / "project")


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def overwrite(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


def cut(path: Path) -> None:
    overwrite(path, path.read_bytes()[:100])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    overwrite(path, bytes(data))


def empty(path: Path) -> None:
    overwrite(path, b"")


def half_json(path: Path) -> None:
    overwrite(path, path.read_bytes()[: len(path.read_bytes()) // 2])


def other_json(path: Path) -> None:
    overwrite(path, b'{"hello": 1}')


BREAKS: list[tuple[str, Callable[[Path], object], str, str]] = [
    ("xgboost_model.ubj", Path.unlink, "missing file", "it is missing"),
    ("xgboost_model.ubj", cut, "truncated", "cut off: 100 of"),
    ("random_forest_model.skops", empty, "truncated", "cut off: 0 of"),
    ("lightgbm_model.txt", flip, "changed", "SHA-256 is not the manifest's"),
    ("ensemble.json", half_json, "corrupt JSON", "not JSON"),
    ("ensemble.json", other_json, "wrong content", "Field required"),
    ("ensemble.json", empty, "truncated", "it is empty"),
    ("manifest.json", Path.unlink, "missing file", "it is missing"),
    ("manifest.json", half_json, "corrupt JSON", "not JSON"),
    ("manifest.json", other_json, "wrong content", "Field required"),
    ("METADATA", Path.unlink, "missing file", "it is missing"),
    ("METADATA", half_json, "corrupt JSON", "not JSON"),
    ("stranger.txt", lambda path: path.write_text("?"), "extra file", "does not know it"),
]


@pytest.mark.parametrize("side", ["training", "production"])
@pytest.mark.parametrize(("file", "spoil", "kind", "words"), BREAKS)
def test_each_damage_is_named_and_its_remedy_mends_it(
    settings: Settings, side: str, file: str, spoil: Callable[[Path], object], kind: str, words: str
) -> None:
    metadata = TRAINING_METADATA if side == "training" else METADATA
    folder = settings.models_folder / side
    before = files_of(folder)
    spoil(folder / (metadata if file == "METADATA" else file))
    found = folder_faults(folder, metadata, settings)
    assert found[0].kind == kind and words in found[0].sentence
    assert found[0].remedy == "crypto-ml repair"
    assert compare(settings).problems
    assert all(result.done for result in carry_out(plan_repairs(settings)))
    assert files_of(folder) == before
    assert not compare(settings).problems and not plan_repairs(settings)
    load_bundle(folder)
    if side == "production":
        load_production(settings=settings)


@pytest.mark.parametrize("side", ["training", "production"])
def test_a_missing_folder_comes_back(settings: Settings, side: str) -> None:
    folder = settings.models_folder / side
    before = files_of(folder)
    shutil.rmtree(folder)
    kind = folder_faults(folder, METADATA, settings)[0].kind
    assert kind == "missing folder"
    assert all(result.done for result in carry_out(plan_repairs(settings)))
    assert files_of(folder) == before


def test_a_file_that_may_not_be_read_is_no_damage(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = settings.models_folder / "training"

    def refuse(name: object, *rest: object, **more: object) -> int:
        if name == "xgboost_model.ubj":
            raise PermissionError(13, "Permission denied", str(name))
        return opened(name, *rest, **more)

    opened = os.open
    with monkeypatch.context() as patch:
        patch.setattr(_read_file.__globals__["os"], "open", refuse)
        (fault,) = folder_faults(folder, TRAINING_METADATA, settings)
        (repair,) = [item for item in plan_repairs(settings) if item.where == "training"]
    assert fault.kind == "permission" and fault.where.endswith("xgboost_model.ubj")
    assert fault.remedy == f"chmod -R u+rX {folder}"
    assert repair.work is None and repair.command == fault.remedy
    assert not folder_faults(folder, TRAINING_METADATA, settings)


def test_another_library_says_which_to_install(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = settings.models_folder / "production"
    saved = json.loads((folder / "manifest.json").read_bytes())["library_versions"]["scikit-learn"]
    with monkeypatch.context() as patch:
        patch.setattr(faults_module, "version", lambda _name: "9.1.0")
        found = folder_faults(folder, METADATA, settings)
        (repair,) = [item for item in plan_repairs(settings) if item.where == "production"]
    assert [fault.kind for fault in found] == ["other library version"]
    assert found[0].remedy == repair.command == f"pip install scikit-learn=={saved}"
    assert not folder_faults(folder, METADATA, settings)  # once it is installed


def test_another_definition_says_how_to_train_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = settings.models_folder / "production"
    monkeypatch.setitem(FEATURES, "zscore", FEATURES["rsi_14"])
    (fault,) = folder_faults(folder, METADATA, settings)
    assert fault.kind == "feature mismatch" and "'zscore' is defined otherwise" in fault.sentence
    assert fault.remedy.startswith("crypto-ml train -p features=close,rsi_14,zscore -p 'lightgbm={")
    monkeypatch.delitem(FEATURES, "rsi_14")
    assert "not registered" in folder_faults(folder, METADATA, settings)[0].sentence


def test_a_newer_format_names_the_version_that_reads_it(settings: Settings) -> None:
    path = settings.models_folder / "training" / "manifest.json"
    content = {**json.loads(path.read_bytes()), "format_version": 2}
    overwrite(path, json.dumps(content).encode())
    (fault,) = folder_faults(path.parent, TRAINING_METADATA, settings)
    assert fault.kind == "newer format" and fault.remedy.startswith("pip install 'crypto_ml>=")


def test_an_archived_version_is_healed_from_production_and_run(settings: Settings) -> None:
    (kept,) = (settings.models_folder / "archive").glob("v*")
    before = files_of(kept)
    for name in ("run.json", METADATA, "xgboost_model.ubj"):
        cut(kept / name)
    half_json(kept / "manifest.json")
    flip(settings.models_folder / "production" / "xgboost_model.ubj")  # so the run must help
    plan = plan_repairs(settings)
    assert [item.where for item in plan] == [f"archive {kept.name}", "production"]
    assert all(result.done for result in carry_out(plan))
    assert files_of(kept) == before == files_of(settings.models_folder / "production")
    actions = [line for line in (settings.models_folder / "audit.jsonl").read_text().splitlines()]
    assert sum('"repair"' in line for line in actions) == 1


def test_without_any_copy_only_training_again_helps(settings: Settings) -> None:
    (run,) = settings.runs_folder.glob("2*")
    shutil.rmtree(run)
    for folder in settings.models_folder.rglob("lightgbm_model.txt"):
        cut(folder)
    plan = plan_repairs(settings)
    assert len(plan) == 3 and not any(item.work for item in plan)
    for item in plan:
        assert item.command.startswith("crypto-ml train -p ")
        assert "-p features=close,rsi_14,zscore " in item.command
        assert "only training again helps" in "\n".join(repair_lines(item))
    assert not any(result.done for result in carry_out(plan))


def test_a_version_whose_metadata_are_lost_everywhere_names_all_parameters(
    settings: Settings,
) -> None:
    for path in settings.models_folder.rglob(METADATA):
        cut(path)
    plan = plan_repairs(settings)
    assert [item.work for item in plan] == [None, None]
    for item in plan:  # those of the run, which are more than the bundle knows
        assert item.command.endswith("-p n_splits=3 -p resamples=100 -p seed=1")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("ensemble_config", {"weights": {"lightgbm": 1.0}}, "weights: it says"),
        ("12_features", ["close"], "number of features: it says 1, and the models are 3"),
        ("12_features", ["close", "zscore", "rsi_14"], "12_features: it says"),
        ("run_id", "another", "run_id: it says 'another'"),
        ("individual_models", {}, "files of the models"),
    ],
)
def test_metadata_that_lie_are_found_out(
    settings: Settings, key: str, value: object, words: str
) -> None:
    folder = settings.models_folder / "training"
    files = files_of(folder)
    made_by = Manifest.model_validate_json(files.pop("manifest.json"))
    told = {**json.loads(files[TRAINING_METADATA]), key: value}
    files[TRAINING_METADATA] = json.dumps(told).encode()
    sealed = manifest_bytes(files, made_by.run_id, made_by.git, made_by.library_versions)
    (folder / TRAINING_METADATA).write_bytes(files[TRAINING_METADATA])
    (folder / "manifest.json").write_bytes(sealed)
    problems = compare(settings).problems
    assert [problem.where for problem in problems] == [TRAINING_METADATA]
    assert words in problems[0].sentence and problems[0].remedy == "crypto-ml repair"
    assert words in "\n".join(comparison_lines(compare(settings)))
    assert all(result.done for result in carry_out(plan_repairs(settings)))
    assert not compare(settings).problems
