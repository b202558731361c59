"""Health, the loop's actions, full check, validation and their commands, on small projects."""

from __future__ import annotations

import json
import os
import shutil
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from operation_projects import add_run, project, registry, train
from runs_for_tests import market_candles

from crypto_ml import monitor as monitor_module
from crypto_ml.checkup import Eyes, examine
from crypto_ml.errors import BundleError, CandlesError
from crypto_ml.events import Event
from crypto_ml.full_check import StageResult, check_health, run_stages, write_report
from crypto_ml.gates import GateReport, GateResult
from crypto_ml.health import HealthReport, HealthResult, check_disk, check_prediction
from crypto_ml.health_settings import HealthSettings
from crypto_ml.monitor import Metrics, Monitor, Teller, actions, record_turn
from crypto_ml.operation_commands import health_check, repair, status, validate, verify
from crypto_ml.settings import Settings
from crypto_ml.supervision_commands import full_check, watch
from crypto_ml.supervisor import Decision, take_turn
from crypto_ml.terminal import Friendly
from crypto_ml.validation import LIGHT_TESTS, validation_commands

ROOT = Path(__file__).resolve().parent.parent
EYES = Eyes(lambda _parameters: (market_candles(800, 0), {}), lambda _name: 0.5, lambda _p: 9e10)


def lively(settings: Settings) -> Settings:
    """Return settings under which every failure is acted upon at once."""
    health = HealthSettings(failures=1, recoveries=1, cool_down=0.0, actions=("repair", "rollback"))
    return replace(settings, health=health)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Make a project with two versions, the second of them live."""
    made = project(tmp_path_factory.mktemp("project"))
    (made.root / "settings.ini").write_text("[run]\nseed = 42\n")
    for seed in (1, 2):
        run = add_run(made, seed)
        registry(made).promote(run)
        train(made, run)
    return made


def outcomes(settings: Settings, eyes: Eyes = EYES, **more: object) -> dict[str, str]:
    return {item.name: item.outcome for item in examine(settings, eyes=eyes, **more).results}  # type: ignore[arg-type]


def test_a_sound_production_is_well(settings: Settings) -> None:
    assert set(outcomes(settings).values()) == {"ok"}


def test_each_illness_is_told_from_the_others(settings: Settings) -> None:
    def unwell(eyes: Eyes = EYES, **more: object) -> set[str]:
        return {name for name, found in outcomes(settings, eyes, **more).items() if found != "ok"}

    now = pd.Timestamp.now(tz="UTC")

    def no_candles(_parameters: object) -> tuple[object, dict[str, object]]:
        raise CandlesError("the exchange does not answer")

    assert unwell(replace(EYES, market=no_candles)) == {"candles"}
    assert unwell(replace(EYES, free_bytes=lambda _path: 2e9)) == {"disk"}
    assert unwell(now=now + pd.Timedelta(days=80)) == {"age"}
    assert outcomes(settings, now=now + pd.Timedelta(days=95))["age"] == "failed"
    assert unwell(seen=now + pd.Timedelta(minutes=5)) == {"clock"}
    short = replace(EYES, market=lambda _parameters: (market_candles(40, 0), {}))
    assert unwell(short) == {"features", "prediction"}


@pytest.mark.parametrize(
    ("answers", "outcome"),
    [([0.2, 0.3], "ok"), ([0.2, 1.2], "failed"), ([], "failed"), ([0.4] * 50, "failed")],
)
def test_answers_that_are_none(answers: list[float], outcome: str) -> None:
    assert check_prediction(np.array(answers, float)).outcome == outcome


def test_the_fullest_disk_counts() -> None:
    found = check_disk({"a": 9e9, "b": 0.5e9}, HealthSettings())
    assert found.outcome == "failed" and "0.5 GB free at b" in found.sentence


# The loop


def copied(settings: Settings, root: Path) -> Settings:
    shutil.copytree(settings.root, root)
    return lively(project(root))


def test_the_loop_repairs_and_tells_once(settings: Settings, tmp_path: Path) -> None:
    own = copied(settings, tmp_path / "project")
    events: list[Event] = []
    loop = Monitor(own, own.models_folder / "watch.json", EYES)
    teller = Teller(lambda _line: None, events.append, lambda: loop.report)
    metrics = Metrics("0")

    def turn() -> str:
        made = take_turn(loop.state_file, loop.see(), own.health, actions(loop))
        teller(made)
        record_turn(metrics, made, loop.report)
        return made.decision.action

    assert turn() == ""
    path = own.models_folder / "production" / "xgboost_model.ubj"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:50])
    assert [turn(), turn()] == ["repair", ""]
    titles = [event.title for event in events]
    assert titles == ["Production is unwell", "repair: done", "Production is well again"]
    address = f"http://127.0.0.1:{metrics.port}/metrics"
    with urllib.request.urlopen(address) as answer:
        text = answer.read().decode()
    metrics.server.shutdown()
    assert 'crypto_ml_actions_total{action="repair",outcome="done"} 1.0' in text
    assert "crypto_ml_healthy 1.0" in text


def test_the_loop_rolls_back_once_and_never_returns(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = copied(settings, tmp_path / "project")
    first, second = (version.name for version in registry(own).versions())
    monkeypatch.setattr(monitor_module, "examine", unwell_report)
    loop = Monitor(own, own.models_folder / "watch.json", EYES)
    done = [
        take_turn(loop.state_file, loop.see(), own.health, actions(loop)).decision.action
        for _ in range(4)
    ]
    assert done == ["rollback", "", "", ""]
    assert registry(own).live_name() == first != second


def unwell_report(settings: Settings, now: pd.Timestamp, **_: object) -> object:
    return HealthReport(now, "", (HealthResult("prediction", "failed", "nan"),))


def test_a_retraining_makes_a_candidate_and_promotes_nothing(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = copied(settings, tmp_path / "project")
    live = registry(own).live_name()
    fine = GateReport((GateResult("anything", "pass", 1.0, 1.0, "It passes."),))
    monkeypatch.setattr(monitor_module, "judge_run", lambda *_, **__: fine)
    loop = Monitor(own, own.models_folder / "watch.json", EYES, lambda _p: add_run(own, 3))
    words = actions(loop)["retrain"](Decision("retrain", "age", "expired"))
    assert "is a candidate" in words and registry(own).live_name() == live
    assert registry(own).versions()[-1].stage == "candidate"


# Full check and validation


def test_a_full_check_goes_on_after_a_failure_and_writes_both_reports(tmp_path: Path) -> None:
    def breaks() -> StageResult:
        raise CandlesError("2 problems:\n- one | two\n- three")

    stages = {"data": breaks, "health": lambda: StageResult("", "ok", "fine")}
    results = run_stages(stages, lambda _result: None, iter([0.0, 2.0, 2.0, 3.0]).__next__)
    assert [(item.outcome, item.seconds) for item in results] == [("failed", 2.0), ("ok", 1.0)]
    at = pd.Timestamp("2025-01-01", tz="UTC")
    path = write_report(results, tmp_path, at)
    assert write_report(results, tmp_path, at) != path
    told = json.loads(path.with_name("report.json").read_text())
    assert told["passed"] is False and told["stages"][0]["line"].startswith("2 problems")
    assert "| data | failed | 2.0 | 2 problems: - one \\| two |" in path.read_text()


def test_the_health_stage_takes_the_checks_over(settings: Settings, tmp_path: Path) -> None:
    assert check_health(examine(settings, eyes=EYES)).outcome == "ok"
    assert check_health(examine(project(tmp_path), eyes=EYES)).outcome == "skipped"


def test_light_and_full_differ_for_real() -> None:
    light, full = (validation_commands(ROOT, mode) for mode in ("light", "full"))  # type: ignore[arg-type]
    assert full["everything"][1:] == [str(ROOT / ".ci" / "check.py")]
    assert {"lint", "sync", "types"} <= set(light["gates"])
    assert all((ROOT / "tests" / f"test_{name}.py").is_file() for name in LIGHT_TESTS)


# The commands


@pytest.fixture
def inside(settings: Settings) -> Iterator[Settings]:
    before = Path.cwd()
    os.chdir(settings.root)
    yield settings
    os.chdir(before)


def run(*words: str) -> Result:
    group = Friendly("crypto-ml")
    for command in (health_check, repair, status, validate, verify, full_check, watch):
        group.add_command(command)
    return CliRunner().invoke(group, words)


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("health-check",), 0, "P(yes) is"),
        (("verify",), 0, "Nothing contradicts itself."),
        (("repair",), 0, "Nothing is damaged."),
        (("status",), 0, "audit log    6 entries"),
        (("validate",), 2, "nothing to validate"),
        (("full-check", "--without", "dat"), 2, "did you mean 'data'?"),
        (("watch", "--act", "restart"), 2, "known are reload"),
        (("watch", "--once"), 0, "all 10 checks are fine"),
        (("watch", "--metrics", "here"), 2, "write PORT or HOST:PORT"),
    ],
)
def test_commands(inside: Settings, words: tuple[str, ...], code: int, told: str) -> None:
    result = run(*words)
    assert (result.exit_code, told in result.output) == (code, True), result.output


def test_a_look_tends_the_stages_and_tells_what_it_did(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own, events, said = copied(settings, tmp_path / "project"), [], []
    loop = Monitor(own, own.models_folder / "watch.json", EYES)
    teller = Teller(said.append, events.append, lambda: loop.report, lambda: loop.staged)

    def turn() -> None:
        teller(take_turn(loop.state_file, loop.see(), own.health, actions(loop)))

    done = "v0001 is live again. It was worse"
    monkeypatch.setattr(monitor_module, "tend", lambda registry, *, now: [done])
    turn()
    assert loop.staged == (done,)
    assert [event.body for event in events] == [done]
    assert any(done in line for line in said)

    def broken(*_: object, **__: object) -> list[str]:
        raise BundleError("the version v0009 has no manifest")

    monkeypatch.setattr(monitor_module, "tend", broken)
    turn()
    assert loop.staged == ("the stages cannot be judged: the version v0009 has no manifest",)
    (own.models_folder / "production" / "xgboost_model.ubj").unlink()
    loop.see()
    assert loop.staged == ()  # what is unwell is for the loop's own actions
