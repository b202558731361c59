"""Registry: one atomic switch, one log, one version at a time, whatever happens in between."""

from __future__ import annotations

import collections
import errno
import functools
import itertools
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from runs_for_tests import change_record, fabricated_run
from small_bundles import in_child, killed_before

import crypto_ml.registry
from crypto_ml import folders
from crypto_ml.audit_log import append_entry, read_log, verify_log
from crypto_ml.bundle import load_bundle
from crypto_ml.errors import BundleError, CryptoMLError, RunError
from crypto_ml.folders import read_folder
from crypto_ml.gate_results import GateReport, GateResult
from crypto_ml.production import load_production
from crypto_ml.production_settings import ProductionSettings
from crypto_ml.registry import LocalRegistry
from crypto_ml.registry_interface import PromotionRefused
from crypto_ml.settings import Settings, load_settings
from crypto_ml.signatures import SignatureError, new_key
from crypto_ml.versions import METADATA, RegistryError, read_version

ROUNDS = int(os.environ.get("CRYPTO_ML_REGISTRY_ROUNDS", "6"))
STRIDE = int(os.environ.get("CRYPTO_ML_REGISTRY_STRIDE", "3"))  # 1: kill at every single step
PASSED = GateReport((GateResult("all", "pass", 1.0, 0.0, "All is well."),))
FAILED = GateReport((GateResult("all", "fail", 0.0, 1.0, "Nothing is well."),))


def pass_all(run: Path, settings: Settings, **more: Any) -> GateReport:
    return PASSED


def fail_all(run: Path, settings: Settings, **more: Any) -> GateReport:
    return FAILED


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Two runs; v0001 of the first was live, v0002 of the second is, v0003 of it is a candidate."""
    root = tmp_path_factory.mktemp("project")
    settings = replace(load_settings(), root=root)
    runs = [fabricated_run(settings.runs_folder, seed=seed, bars=800) for seed in (1, 2)]
    registry = LocalRegistry(settings.models_folder, settings, pass_all)
    registry.promote(runs[0])
    registry.promote(runs[1])
    registry.register(runs[1], PASSED)
    return settings


@pytest.fixture
def registry(project: Settings, tmp_path: Path) -> LocalRegistry:
    """A registry of its own for each test, with the runs of all."""
    return copied(project, tmp_path)


def copied(project: Settings, place: Path) -> LocalRegistry:
    models = shutil.copytree(project.models_folder, place / "models")
    return LocalRegistry(models, project, pass_all)


def runs_of(project: Settings) -> list[Path]:
    return sorted(project.runs_folder.iterdir())


def number(name: str) -> str:
    return name[:5]


def the_live_one(registry: LocalRegistry) -> str:
    """The live version's name, after checking that folder, archive, history and log agree."""
    live = registry.production()
    assert live is not None
    assert read_folder(registry.live_folder) == read_folder(registry.archive / live.name)
    assert registry.history()[-1].version == live.name
    stages = {version.name: version.stage for version in registry.versions()}
    assert [name for name, stage in stages.items() if stage == "live"] == [live.name]
    return number(live.name)


def check_after(registry: LocalRegistry, allowed: set[str]) -> str:
    """Check what a reader and the next writer find; return which version is live."""
    live = the_live_one(registry)
    assert live in allowed
    with registry.alone():
        pass
    assert the_live_one(registry) == live, "the next writer finds what the reader found"
    assert verify_log(registry.models_folder).intact
    assert registry.state().pending is None
    assert not [path for path in registry.models_folder.rglob("*.partial") if path.is_dir()]
    return live


# killed


def cut_short(handle: int, length: int, cut: Callable[[int, int], None] = os.ftruncate) -> None:
    """Cut a file as a power cut does: what was flushed before, the log's earlier lines, stays."""
    content = Path(f"/proc/self/fd/{handle}").read_bytes()
    flushed = content[:-1].rfind(b"\n") + 1 if content.startswith(b'{"action"') else 0
    cut(handle, max(length, (flushed + len(content)) // 2))


def killed_at_every_step(
    project: Settings,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    work: Callable[[LocalRegistry], object],
    allowed: set[str],
) -> collections.Counter[str]:
    outcomes: collections.Counter[str] = collections.Counter()
    monkeypatch.setattr(os, "ftruncate", cut_short)
    for step in itertools.count(step=STRIDE):
        registry = copied(project, place / str(step))
        killed = killed_before(step, registry.models_folder, functools.partial(work, registry))
        outcomes[check_after(registry, allowed)] += 1
        if step % (8 * STRIDE) == 0:
            load_production(registry.models_folder, settings=project)
            live = registry.promote(runs_of(project)[0], force=True, reason="and on it goes")
            assert the_live_one(registry) == number(live.name)
        shutil.rmtree(place / str(step))
        if not killed:
            return outcomes
    raise AssertionError


def test_promote_killed_at_every_step(
    project: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run into the archive and live: the old version or the new one, never a mixture."""

    def promote(registry: LocalRegistry) -> None:
        registry.promote(runs_of(project)[0], force=True, reason="again")

    outcomes = killed_at_every_step(project, tmp_path, monkeypatch, promote, {"v0002", "v0004"})
    assert STRIDE * outcomes["v0002"] > 50
    assert STRIDE * outcomes["v0004"] > 10


def test_rollback_killed_at_every_step(
    project: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rollback(registry: LocalRegistry) -> None:
        registry.rollback(reason="worse than before")

    outcomes = killed_at_every_step(project, tmp_path, monkeypatch, rollback, {"v0002", "v0001"})
    assert STRIDE * outcomes["v0002"] > 30
    assert STRIDE * outcomes["v0001"] > 10


def test_where_two_folders_cannot_be_exchanged(
    project: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two renames then, and a kill between them leaves no production: the old one comes back."""
    monkeypatch.setattr("crypto_ml.folders.exchange_folders", lambda one, other: False)
    registry = copied(project, tmp_path)
    shutil.rmtree(registry.live_folder)
    subject = {"version": registry.at(pd.Timestamp.now(tz="UTC")).name, "previous": ""}  # type: ignore[union-attr]
    intent = {**subject, "version": registry.version("v0003").name, "previous": subject["version"]}
    append_entry(registry.models_folder, "promote", why="", subject=intent)
    assert check_after_loss(registry) == "v0002"
    assert number(registry.promote("v0003").name) == the_live_one(registry) == "v0003"


def check_after_loss(registry: LocalRegistry) -> str:
    with registry.alone():
        pass
    return the_live_one(registry)


def test_the_intent_is_on_disk_before_the_switch_and_the_outcome_after(
    registry: LocalRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    exchange = folders.replace_folder

    def look(new: Path, target: Path) -> None:
        seen.append([entry.action for entry in read_log(registry.models_folder)][-1])
        exchange(new, target)

    monkeypatch.setattr(crypto_ml.registry, "replace_folder", look)
    registry.promote("v0003", reason="seen")
    registry.rollback()
    assert seen == ["promote", "rollback"]
    assert [entry.action for entry in read_log(registry.models_folder)][-4:] == [
        *("promote", "switched", "rollback", "switched")
    ]


# at once


def promoter(project: Settings, models: Path, name: Path, start: Any, rounds: int) -> None:
    start.wait()
    for _ in range(rounds):
        LocalRegistry(models, project, pass_all).promote(name, force=True, reason="a round")


def reader(project: Settings, models: Path, stop: Any, loads: Any) -> None:
    """Load until told to stop; every load must be all of one version."""
    while not stop.is_set():
        loaded = load_production(models, settings=project)
        assert loaded.bundle.manifest["run_id"] == loaded.version.run_id
        files = read_folder(models / "production")
        version = read_version(models / "production").name
        loads.value += 1
        if f'"{version}"'.encode() in files[METADATA]:
            archived = read_folder(models / "archive" / version)
            assert files == archived


def test_two_promoters_at_once_with_a_reader(project: Settings, tmp_path: Path) -> None:
    """Each promotion is in the history, in order, each in the place of the one before."""
    registry, context = copied(project, tmp_path), multiprocessing.get_context("fork")
    start, stop, loads = context.Event(), context.Event(), context.Value("i", 0)
    models, (one, other) = registry.models_folder, runs_of(project)
    work = [
        context.Process(target=promoter, args=(project, models, run, start, ROUNDS))
        for run in (one, other)
    ]
    reading = context.Process(target=reader, args=(project, models, stop, loads))
    for process in (*work, reading):
        process.start()
    start.set()
    for process in work:
        process.join()
    stop.set()
    reading.join()
    assert [process.exitcode for process in (*work, reading)] == [0, 0, 0]
    made = registry.history()
    assert len(made) == 2 + 2 * ROUNDS
    assert all(b.previous == a.version for a, b in itertools.pairwise(made))
    assert [switch.time for switch in made] == sorted(switch.time for switch in made)
    assert loads.value > 0
    check_after(registry, {number(made[-1].version)})


def test_who_holds_a_version_keeps_it(registry: LocalRegistry, project: Settings) -> None:
    held = load_production(registry.models_folder, settings=project)
    registry.rollback()
    rows = held.bundle.metadata["check"]["rows"]
    assert held.version.name.startswith("v0002")
    assert len(held.bundle.ensemble.predict_proba(pd.DataFrame(rows).to_numpy())) == len(rows)
    assert load_production(registry.models_folder, settings=project).version.name[:5] == "v0001"


def test_a_lock_that_is_not_given_back(registry: LocalRegistry) -> None:
    with registry.alone():
        waiting = LocalRegistry(registry.models_folder, registry.settings, pass_all)
        waiting.wait = 0.05
        with pytest.raises(RegistryError, match="another process has been changing"):
            waiting.rollback()


# full disks, read-only folders


@pytest.mark.parametrize("action", ["promote", "rollback"])
def test_a_full_disk_at_every_write(
    project: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    """Each flush fails in its turn, with all that follow: an error, one version or the other."""
    flush = os.fsync
    for allowed in itertools.count():
        registry = copied(project, tmp_path / str(allowed))
        left = itertools.count(allowed, -1)

        def full(handle: int, left: Iterator[int] = left) -> None:
            if next(left) <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            flush(handle)

        monkeypatch.setattr(os, "fsync", full)
        try:
            registry.promote("v0003") if action == "promote" else registry.rollback()
            refused = False
        except CryptoMLError as error:
            assert "No space left on device" in str(error)
            refused = True
        monkeypatch.setattr(os, "fsync", flush)
        check_after(registry, {"v0002", "v0003" if action == "promote" else "v0001"})
        shutil.rmtree(tmp_path / str(allowed))
        if not refused:
            assert allowed > 10
            return


def test_a_read_only_folder(project: Settings) -> None:
    """Root may write anywhere, so the child gives that right up first, where it has it."""
    place = Path(tempfile.mkdtemp())  # which others may enter, unlike the folders of pytest
    place.chmod(0o755)
    registry = copied(project, place)
    before = the_live_one(registry)
    folders = [registry.models_folder, registry.archive, registry.live_folder]

    def attempt() -> None:
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        works: list[Callable[[], object]] = [registry.rollback, lambda: registry.promote("v0003")]
        for work in works:
            with pytest.raises(CryptoMLError, match=r"Permission denied|cannot be written"):
                work()
        assert the_live_one(registry) == before

    try:
        for folder in folders:
            folder.chmod(0o555)
        assert in_child(attempt) == 0
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert check_after(registry, {before}) == before
    shutil.rmtree(place)


# what is refused


def test_a_failing_gate_refuses_and_is_in_the_log(
    registry: LocalRegistry, project: Settings
) -> None:
    run = fabricated_run(project.runs_folder.parent / "more", bars=800, seed=3)
    registry.judge = fail_all
    with pytest.raises(PromotionRefused, match="- all: Nothing is well") as caught:
        registry.promote(run)
    assert caught.value.exit_code == 1
    assert caught.value.report is FAILED
    last = read_log(registry.models_folder)[-1]
    assert (last.action, last.gates) == ("refused", FAILED.to_dict())
    with pytest.raises(RegistryError, match="force needs a reason"):
        registry.promote(run, force=True, reason=" ")
    with pytest.raises(PromotionRefused):
        registry.register(run, FAILED)
    made = registry.promote(run, force=True, reason="I know better")
    assert made.metadata["forced"]
    assert made.metadata["reason"] == "I know better"
    assert not made.gates_passed
    switch = registry.history()[-1]
    assert (switch.forced, switch.why) == (True, "I know better")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": "failed"}, "is failed; only a succeeded run"),
        ({"kind": "selection"}, "is a selection"),
        ({"artifacts": {"predictions.parquet": "0" * 64}}, "predictions.parquet"),
    ],
)
def test_a_run_that_is_not_fit(
    registry: LocalRegistry, tmp_path: Path, project: Settings, changes: Any, message: str
) -> None:
    run = shutil.copytree(runs_of(project)[0], tmp_path / "run")
    change_record(run, **changes)
    with pytest.raises(RunError, match=message):
        registry.promote(run, force=True, reason="even so")
    assert the_live_one(registry) == "v0002"


def test_code_that_is_not_clean(registry: LocalRegistry, tmp_path: Path) -> None:
    run = fabricated_run(tmp_path / "runs", bars=800, dirty=True)
    demanded = replace(registry.settings, production=ProductionSettings(require_clean_code=True))
    strict = LocalRegistry(registry.models_folder, demanded, pass_all)
    with pytest.raises(RegistryError, match=r"uncommitted changes, and settings.ini demands"):
        strict.promote(run, force=True, reason="even so")
    assert registry.promote(run).metadata["code"]["git_dirty"]


def test_what_is_live_already_and_what_never_was(
    registry: LocalRegistry, project: Settings
) -> None:
    first, second = runs_of(project)
    with pytest.raises(RegistryError, match=r"v0002.* is live already"):
        registry.promote(second)
    with pytest.raises(RegistryError, match=r"v0002.* is live already"):
        registry.rollback("v0002")
    with pytest.raises(RegistryError, match="was never live"):
        registry.rollback("v0003")
    with pytest.raises(RegistryError, match="there is no version 'v0009'"):
        registry.rollback("v0009")
    with pytest.raises(RegistryError, match=r"matches v0001.*, v0002"):
        registry.version("SIM")
    assert number(registry.promote(first).name) == "v0004", "what was live once begins anew"
    assert number(registry.rollback().name) == "v0002"
    assert number(registry.rollback().name) == "v0001"
    with pytest.raises(RegistryError, match="no way back"):
        registry.rollback()
    assert number(registry.rollback("v0004").name) == "v0004"


def test_an_expired_version_is_no_way_back(registry: LocalRegistry) -> None:
    later = pd.Timestamp.now(tz="UTC") + pd.Timedelta(days=91)
    with pytest.raises(RegistryError, match=r"expired .* 90 days after"):
        registry.rollback(now=later)
    with pytest.raises(RegistryError, match=r"expired .* 90 days after"):
        registry.promote("v0003", now=later)
    assert number(registry.rollback(force=True, now=later).name) == "v0001"


@pytest.mark.parametrize("name", ["xgboost_model.ubj", METADATA, "predictions.parquet", "run.json"])
def test_an_archived_version_that_was_changed(registry: LocalRegistry, name: str) -> None:
    path = registry.archive / registry.version("v0001").name / name
    assert path.stat().st_mode & 0o222 == 0
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b"0", b"1", 1) + b" ")
    with pytest.raises(RegistryError, match=r"v0001.* cannot become live"):
        registry.rollback()
    assert the_live_one(registry) == "v0002"
    assert read_log(registry.models_folder)[-1].action in ("register", "abandoned")


def test_a_version_under_another_name(registry: LocalRegistry) -> None:
    one, other = (registry.archive / registry.version(name).name for name in ("v0001", "v0002"))
    shutil.rmtree(one)
    shutil.copytree(other, one)
    with pytest.raises(RegistryError, match=r"v0001.* cannot become live: .* holds v0002"):
        registry._switch("rollback", one.name, other.name, "")


def test_the_run_of_a_version_is_gone(registry: LocalRegistry, tmp_path: Path) -> None:
    elsewhere = replace(registry.settings, root=tmp_path / "elsewhere")
    moved = LocalRegistry(registry.models_folder, elsewhere, pass_all)
    with pytest.raises(RegistryError, match="is gone, so its gates cannot be evaluated"):
        moved.promote("v0003")


def test_a_log_that_was_tampered_with_stops_every_change(registry: LocalRegistry) -> None:
    log = registry.models_folder / "audit.jsonl"
    log.write_bytes(log.read_bytes().replace(b"gates passed", b"gates failed", 1))
    with pytest.raises(CryptoMLError, match=r"audit\.jsonl"):
        registry.rollback()


# stages, history, damage


def test_stages(registry: LocalRegistry) -> None:
    assert registry.stage_of("v0003") == "candidate"
    for stage in ("shadow", "canary-10", "canary-50"):
        assert registry.set_stage("v0003", stage, reason="so far so good").stage == stage
    assert registry.set_stage("v0003", "live").stage == "live"
    assert [version.stage for version in registry.versions()] == ["retired", "retired", "live"]
    with pytest.raises(RegistryError, match="is live; a promotion or a rollback ends that"):
        registry.set_stage("v0003", "shadow")
    with pytest.raises(RegistryError, match="no stage 'canary'; did you mean 'canary-"):
        registry.set_stage("v0001", "canary")  # type: ignore[arg-type]


def test_what_was_live_at_a_time(project: Settings, tmp_path: Path) -> None:
    registry = LocalRegistry(tmp_path / "models", project, pass_all)
    assert registry.production() is None
    assert not registry.history() and not registry.versions()
    days = [pd.Timestamp(2026, 5, day, 14, tz="UTC") for day in (1, 2, 3)]
    first, second = runs_of(project)
    registry.promote(first, now=days[0])
    registry.promote(second, now=days[1])
    registry.rollback(now=days[2])
    hour = pd.Timedelta(hours=1)
    assert registry.at(days[0] - hour) is None
    names = [registry.at(day + hour).name[:5] for day in days]  # type: ignore[union-attr]
    assert names == ["v0001", "v0002", "v0001"]


def test_restore_puts_the_archived_one_back(registry: LocalRegistry) -> None:
    (registry.live_folder / METADATA).unlink()
    with pytest.raises(BundleError, match="no version of the registry"):
        registry.production()
    assert number(registry.restore(reason="damaged").name) == "v0002"
    assert check_after(registry, {"v0002"})
    (registry.live_folder / METADATA).unlink()
    assert number(registry.rollback().name) == "v0001", "damage does not close the way back"
    shutil.rmtree(registry.live_folder)
    assert number(registry.restore().name) == "v0001"
    empty = LocalRegistry(registry.models_folder.parent / "none", registry.settings)
    with pytest.raises(RegistryError, match="nothing was ever live"):
        empty.restore()


def test_a_version_is_a_bundle_with_its_evidence(
    registry: LocalRegistry, project: Settings
) -> None:
    live = registry.production()
    assert live is not None
    run = project.runs_folder / live.run_id
    assert load_bundle(live.folder).check_difference == 0
    for name in ("predictions.parquet", "run.json", "bundle/ensemble.json"):
        assert (live.folder / Path(name).name).read_bytes() == (run / name).read_bytes()
    wanted = {"model_type", "n_features", "feature_names", "individual_models", "weights", "run_id"}
    assert wanted | {"promoted_at", "score", "gates"} <= live.metadata.keys()
    assert live.metadata["model_type"] == "ProductionEnsemble"


# signatures


def test_signatures(
    registry: LocalRegistry, project: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = new_key(tmp_path / "keys", "ada")
    demanded = replace(
        project, root=tmp_path, production=ProductionSettings(require_signature=True)
    )
    strict = LocalRegistry(registry.models_folder, demanded, pass_all)
    with pytest.raises(SignatureError):
        strict.promote(runs_of(project)[0])
    with pytest.raises(RegistryError, match="cannot become live"):
        strict.rollback()
    with pytest.raises(BundleError, match="sign"):
        load_production(registry.models_folder, settings=demanded)
    monkeypatch.setenv("CRYPTO_ML_SIGNING_KEY", (tmp_path / "keys" / "ada.pem").read_text())
    with pytest.raises(SignatureError):
        strict.promote(runs_of(project)[0])
    (tmp_path / "keys" / "trusted").mkdir()
    shutil.copy(tmp_path / "keys" / "ada.pub", tmp_path / "keys" / "trusted")
    signed = strict.promote(runs_of(project)[0])
    loaded = load_production(registry.models_folder, settings=demanded)
    assert loaded.version.name == signed.name
    assert loaded.bundle.signer is not None
    assert loaded.bundle.signer.key_id == key.key_id
    assert verify_log(registry.models_folder, [key.public]).signed == 3
