"""Each gate passes a good run and fails on the defect that it is there for."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from runs_for_tests import (
    FEATURES,
    SMALL,
    WEIGHTS,
    change_record,
    fabricated_run,
    market_candles,
    rewrite_predictions,
)

from crypto_ml import bundle_checks, gates, run_gates
from crypto_ml.bundle import Bundle, load_bundle
from crypto_ml.bundle_checks import (
    answer_spread,
    edge_problems,
    edge_rows,
    prediction_milliseconds,
    round_trip_problems,
)
from crypto_ml.ensemble import ProductionEnsemble
from crypto_ml.errors import ModelError, RunError
from crypto_ml.features import feature_matrix
from crypto_ml.gate_results import GateReport, GateResult, not_above, not_applicable, not_below
from crypto_ml.gate_settings import GateSettings
from crypto_ml.gates import GATES, evaluate_gates, live_version
from crypto_ml.models import make_model
from crypto_ml.runs import RunRecord, plain, read_record
from crypto_ml.settings import Settings, load_settings

Alter = Callable[[pd.DataFrame], pd.DataFrame]


def settings(**limits: Any) -> Settings:
    return dataclasses.replace(load_settings(), gates=GateSettings(**limits))


def failed(run: Path, /, *, champion: Path | None = None, **limits: Any) -> set[str]:
    report = evaluate_gates(run, settings(**limits), champion=champion)
    assert report.passed == (not report.failed)
    assert [result.name for result in report.results] == list(GATES)
    assert all(result.sentence.endswith(".") for result in report.results)
    return {result.name for result in report.failed}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fabricated_run(tmp_path_factory.mktemp("good") / "runs")


def answer(run: Path, gate: str, **options: Any) -> GateResult:
    """Ask one gate only."""
    limits = GateSettings(**options.pop("limits", {}))
    now = options.pop("now", pd.Timestamp.now(tz="UTC"))
    evidence = run_gates.Evidence(run, read_record(run), limits, now, **options)
    return gates._ask(gate, GATES[gate], evidence)


# Good runs, and the fabricated run itself


def test_a_good_run_passes_every_gate(good: Path) -> None:
    report = evaluate_gates(good, settings())
    assert report.passed, report.sentence
    assert report.sentence == "Would be promoted: 14 gates passed, 2 not applicable."
    passing = {r.name for r in report.results if r.outcome == "pass"}
    assert passing == set(GATES) - {"data fresh", "better than the champion"}


def test_the_fabricated_run_is_a_real_one(good: Path) -> None:
    record, bundle = read_record(good), load_bundle(good / "bundle")
    assert record.verdict["outcome"] == "edge"
    rows = feature_matrix(market_candles(), FEATURES).dropna()
    assert np.isfinite(bundle.ensemble.predict_proba(rows)).all()
    assert str(market_candles().known_at[-1].isoformat()) == record.data["end"]


def test_fabricated_runs_of_other_ages_tell_the_same_history(tmp_path: Path) -> None:
    old, new = market_candles(500, 10), market_candles(500, 2)
    shared = old.index.intersection(new.index)
    assert len(shared) == 500 - 8 * 24
    pd.testing.assert_frame_equal(old.frame.loc[shared], new.frame.loc[shared])


def test_gates_are_recorded_and_fit_the_schema(good: Path) -> None:
    noted = plain(evaluate_gates(good, settings()).to_dict())
    record = RunRecord.model_validate(read_record(good).model_dump() | {"gates": noted})
    assert [part.model_dump() for part in record.gates] == noted
    json.dumps(noted, allow_nan=False)


# Real histories


def constant_yes(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(ensemble=0.5 + table["ensemble"] / 2)


def nearly_always_wrong(table: pd.DataFrame) -> pd.DataFrame:
    right = np.arange(len(table)) % 125 == 0  # 0.8 %
    return table.assign(ensemble=np.where(right == (table["y"] == 1), 0.97, 0.03))


def random_numbers(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(ensemble=np.random.default_rng(3).uniform(size=len(table)))


def test_the_weekly_job_that_promoted_an_f1_of_0_23(tmp_path: Path) -> None:
    run = fabricated_run(tmp_path, alter=constant_yes)
    table = pd.read_parquet(run / "predictions.parquet")
    evidence = run_gates.Evidence(run, read_record(run), GateSettings(), pd.Timestamp.now("UTC"))
    assert len(table) and evidence.score("macro_f1") < 0.23
    assert failed(run) >= {"better than one answer", "calibrated", "both answers"}
    assert answer(run, "better than one answer", limits={"max_calibration_error": 1}).value < -0.2


def test_the_model_of_0_8_percent_accuracy(tmp_path: Path) -> None:
    run = fabricated_run(tmp_path, alter=nearly_always_wrong)
    evidence = run_gates.Evidence(run, read_record(run), GateSettings(), pd.Timestamp.now("UTC"))
    assert evidence.score("accuracy") < 0.01
    assert failed(run) >= {"verdict", "better than one answer", "calibrated"}
    assert "worse than chance" in answer(run, "verdict").sentence


def test_random_numbers_of_the_right_shape(tmp_path: Path) -> None:
    run = fabricated_run(tmp_path, alter=random_numbers)
    assert "calibrated" in failed(run)
    assert failed(run, require_edge=True) >= {"calibrated", "verdict"}


def test_the_dummy_that_held_for_days(good: Path, tmp_path: Path) -> None:
    class Holder:
        def predict_proba(self, X: pd.DataFrame) -> np.ndarray:
            return np.tile([0.9, 0.1], (len(X), 1))

    problems = edge_problems(Holder(), ["close", "rsi_14"])
    assert any("a row without close was answered" in text for text in problems)
    assert any("rsi_14 = nan was answered" in text for text in problems)
    silent = fabricated_run(tmp_path, alter=lambda table: table.assign(ensemble=0.2))
    assert failed(silent) >= {"probabilities vary", "both answers"}


# One defect each, planted in the record

PLANTED: dict[str, dict[str, Any]] = {
    "whole run": {"status": "failed"},
    "no leak": {"audit": {"clean": False, "findings": [{"title": "uses bars after its own"}]}},
    "few bars missing": {"data": {"missing_share": 0.02}},
    "few odd bars": {"data": {"flat_bars": 500}},
    "enough rows": {"verdict": {"minimum_detectable_edge": 0.05}},
    "verdict": {"verdict": {"outcome": "worse than chance"}},
}


@pytest.mark.parametrize("gate", PLANTED)
def test_a_planted_defect_fails_its_gate(gate: str, good: Path, tmp_path: Path) -> None:
    assert failed(altered_copy(good, tmp_path, **PLANTED[gate])) == {gate}


@pytest.mark.parametrize(
    ("gate", "change"),
    [
        ("whole run", {"kind": "selection"}),
        ("whole run", {"run_id": "another"}),
        ("whole run", {"market": {"symbol": "SIM-FAINT"}}),
        ("whole run", {"labels": {"threshold": 0.004}}),
        ("whole run", {"features": []}),
        ("whole run", {"verdict": {"statistic": {"value": 0.9}}}),
        ("whole run", {"verdict": {"statistic": {"value": None}}}),
        ("no leak", {"audit": {"clean": "yes"}}),
        ("no leak", {"audit": {"audited": []}}),
        ("no leak", {"null_control": {"passed": False}}),
        ("few odd bars", {"data": {"zero_volume_bars": 500}}),
        ("few odd bars", {"data": {"suspicious_ticks": 500}}),
        ("few bars missing", {"data": {"missing_share": None}}),
        ("enough rows", {"verdict": {"minimum_detectable_edge": None}}),
        ("enough rows", {"parameters": {"confidence": 0.5}}),
        ("verdict", {"parameters": {"confidence": 0.5}}),
        ("verdict", {"parameters": {"resamples": 2}}),
        ("verdict", {"verdict": {"outcome": "no idea"}}),
    ],
)
def test_more_planted_defects(
    gate: str, change: dict[str, Any], good: Path, tmp_path: Path
) -> None:
    result = answer(altered_copy(good, tmp_path, **change), gate)
    assert result.outcome == "fail", result.sentence


def altered_copy(run: Path, folder: Path, **changes: Any) -> Path:
    """Link a run's files into another folder and change its record there."""
    copy = folder / run.name
    (copy / "bundle").mkdir(parents=True)
    for path in (path for path in run.rglob("*") if path.is_file() and path.name != "run.json"):
        (copy / path.relative_to(run)).hardlink_to(path)
    (copy / "run.json").write_bytes((run / "run.json").read_bytes())
    return change_record(copy, **changes)


@pytest.mark.parametrize("part", ["audit", "data", "verdict", "parameters", "features", "labels"])
def test_missing_evidence_is_a_failure(part: str, good: Path, tmp_path: Path) -> None:
    run = altered_copy(good, tmp_path)
    record = json.loads((run / "run.json").read_text())
    record[part] = type(record[part])()
    (run / "run.json").write_text(json.dumps(record))
    expected = {
        "audit": {"no leak"},
        "data": {"few bars missing", "few odd bars"},
        "verdict": {"whole run", "enough rows", "verdict"},
        "parameters": {"data fresh", "enough rows", "verdict", "both answers"},
        "features": {"whole run"},
        "labels": {"whole run"},
    }
    assert failed(run) >= expected[part]


def test_files_that_are_gone_or_changed(good: Path, tmp_path: Path) -> None:
    run = altered_copy(good, tmp_path / "one")
    (run / "predictions.parquet").unlink()
    assert failed(run) == {
        "whole run",
        "better than one answer",
        "calibrated",
        "probabilities vary",
        "both answers",
    }
    other = altered_copy(good, tmp_path / "two")
    (other / "bundle" / "ensemble.json").unlink()
    (other / "bundle" / "ensemble.json").write_text("{}")
    wrong = failed(other)
    assert wrong >= {"whole run", "edge inputs", "loads again", "quick", "small"}
    with pytest.raises(RunError, match=r"holds no run\.json"):
        evaluate_gates(tmp_path, settings())


def test_a_report_that_was_changed_or_files_that_were_added_are_noticed(
    good: Path, tmp_path: Path
) -> None:
    run = altered_copy(good, tmp_path)
    (run / "report.html").unlink()
    (run / "report.html").write_text("better")
    (run / "more.txt").touch()
    result = answer(run, "whole run")
    assert (result.outcome, result.value) == ("fail", 2)
    assert result.sentence.startswith("more.txt is not as the run left it; report.html is not")
    assert "compared when all are there" in answer(run, "whole run", finished=False).sentence


def test_predictions_exchanged_with_their_hash_are_noticed(tmp_path: Path) -> None:
    run = rewrite_predictions(fabricated_run(tmp_path), nearly_always_wrong)
    assert "whole run" in failed(run)


def test_rows_that_are_not_out_of_sample_do_not_count(tmp_path: Path) -> None:
    def inside(table: pd.DataFrame) -> pd.DataFrame:
        """Add 5,000 perfect in-sample rows before the others."""
        more = table.head(5000).assign(split="in_sample", ensemble=lambda rows: rows["y"] * 1.0)
        return pd.concat([more.set_axis(more.index - pd.Timedelta(days=900)), table]).sort_index()

    run = fabricated_run(tmp_path, alter=constant_yes)
    before = answer(run, "calibrated").value
    assert answer(rewrite_predictions(run, inside), "calibrated").value == before
    only = rewrite_predictions(run, lambda table: table.assign(split="in_sample"))
    assert "no rows out of sample" in answer(only, "calibrated").sentence


# Time


def test_a_simulated_market_has_no_age_and_a_real_one_has(good: Path, tmp_path: Path) -> None:
    assert answer(good, "data fresh").outcome == "not applicable"
    real = altered_copy(good, tmp_path, parameters={"source": "binance"})
    end = pd.Timestamp(read_record(real).data["end"])
    for days, outcome in ((0, "pass"), (7, "pass"), (7.1, "fail"), (-0.1, "fail")):
        result = answer(real, "data fresh", now=end + pd.Timedelta(days=days))
        assert (result.outcome, result.value) == (outcome, pytest.approx(days))


def test_a_run_that_still_writes_its_report_is_not_asked_for_it(good: Path, tmp_path: Path) -> None:
    run = altered_copy(good, tmp_path, status="running", artifacts={"report.html": "0"})
    assert answer(run, "whole run").outcome == "fail"
    assert answer(run, "whole run", finished=False).outcome == "pass"
    wrong = change_record(run, verdict={"statistic": {"value": 0.9}})
    assert answer(wrong, "whole run", finished=False).outcome == "fail"


# Thresholds: each is used, and is met by the value that equals it

THRESHOLDS = {
    "detectable_edge": ("enough rows", -1),
    "max_calibration_error": ("calibrated", -1),
    "min_spread": ("probabilities vary", 1),
    "max_one_answer": ("both answers", -1),
    "min_f1_gain": ("better than one answer", 1),
    "max_bundle_size": ("small", -1),
}


@pytest.mark.parametrize("key", THRESHOLDS)
def test_each_threshold_decides(key: str, good: Path) -> None:
    gate, stricter = THRESHOLDS[key]
    value = answer(good, gate).value
    assert value is not None
    for limit, outcome in ((value, "pass"), (math.nextafter(value, stricter * math.inf), "fail")):
        result = answer(good, gate, limits={key: limit})
        assert (result.outcome, result.limit) == (outcome, limit)


def test_the_other_thresholds_decide(good: Path, tmp_path: Path) -> None:
    assert answer(good, "quick", limits={"max_latency": 1e-6}).outcome == "fail"
    data = read_record(good).data
    run = altered_copy(good, tmp_path, data={**data, "missing_share": 0.2, "flat_bars": 1800})
    for gate, key in (("few bars missing", "max_missing"), ("few odd bars", "max_odd_bars")):
        assert answer(run, gate, limits={key: 0.2}).outcome == "pass"
        assert answer(run, gate, limits={key: 0.19}).outcome == "fail"


def test_an_edge_is_asked_for_only_where_the_settings_say_so(good: Path, tmp_path: Path) -> None:
    run = fabricated_run(tmp_path, edge=False)
    assert answer(run, "verdict").outcome == "pass"
    assert answer(run, "verdict", limits={"require_edge": True}).outcome == "fail"
    assert answer(good, "verdict", limits={"require_edge": True}).outcome == "pass"
    lucky = altered_copy(
        good, tmp_path / "lucky", luck={"verdict": {"outcome": "no evidence of an edge"}}
    )
    assert answer(lucky, "verdict", limits={"require_edge": True}).outcome == "fail"
    assert answer(lucky, "verdict").outcome == "pass"
    unknown = altered_copy(good, tmp_path / "unknown", luck={"verdict": None})
    assert answer(unknown, "verdict", limits={"require_edge": True}).outcome == "fail"


# The bundle


@pytest.fixture(scope="module")
def bundle(good: Path) -> Bundle:
    return load_bundle(good / "bundle")


def test_odd_rows(bundle: Bundle) -> None:
    names = list(FEATURES)
    assert edge_problems(bundle.ensemble, names) == []
    assert np.isfinite(edge_rows(names).to_numpy()).all()

    class Broken:
        def __init__(self, answers: Callable[[pd.DataFrame], Any]) -> None:
            self.answers = answers

        def predict_proba(self, X: pd.DataFrame) -> Any:
            if list(X.columns) != names or not np.isfinite(X.to_numpy()).all():
                raise ModelError("refused")
            return self.answers(X)

    plain_answers = np.full((len(edge_rows(names)), 2), 0.5)
    assert edge_problems(Broken(lambda X: np.full((len(X), 2), 0.5)), names) == []
    outside = plain_answers.copy()
    outside[3] = [-0.5, 1.5]
    missing = plain_answers.copy()
    missing[5] = math.nan
    for wrong in (outside, missing):
        assert "got no probability" in edge_problems(Broken(lambda X, w=wrong: w), names)[0]  # type: ignore[misc]
    assert "shape" in edge_problems(Broken(lambda X: np.ones(len(X))), names)[0]
    assert "ZeroDivisionError" in edge_problems(Broken(lambda X: 1 // 0), names)[0]

    class Crash(Broken):
        def predict_proba(self, X: pd.DataFrame) -> Any:
            if np.isnan(X.to_numpy()).any():
                raise ValueError("NaN in column 0")
            return super().predict_proba(X)

    found = edge_problems(Crash(lambda X: np.full((len(X), 2), 0.5)), names)
    assert found == [f"{name} = nan gave ValueError, not a plain refusal" for name in names]


def test_the_round_trip(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    assert round_trip_problems(bundle) == []
    drifted = dataclasses.replace(bundle, check_difference=1e-9)
    assert "differ from those when saved" in round_trip_problems(drifted)[0]
    unknown = dataclasses.replace(bundle, check_difference=math.nan)
    assert "differ from those when saved" in round_trip_problems(unknown)[0]
    X = pd.DataFrame(np.random.default_rng(1).normal(size=(60, 3)), columns=list(FEATURES))
    other = make_model("xgboost", SMALL["xgboost"], 1).fit(X, (X["zscore"] > 0).astype(int))
    exchanged = ProductionEnsemble({**bundle.ensemble.models, "xgboost": other}, WEIGHTS)
    found = round_trip_problems(dataclasses.replace(bundle, ensemble=exchanged))
    assert found == ["xgboost, saved again, is not the same bytes"]


def test_the_gates_hand_on_what_a_bundle_does_wrong(
    good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("edge_problems", "round_trip_problems"):
        monkeypatch.setattr(gates, name, lambda *_: ["one", "two", "three", "four", "five"])
    for gate in ("edge inputs", "loads again"):
        result = answer(good, gate)
        assert (result.outcome, result.value) == ("fail", 5.0)
        assert result.sentence == "one; two; three (and 2 more)."


def test_a_bundle_that_always_says_the_same_has_no_spread(
    bundle: Bundle, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert answer_spread(bundle) > 0.01
    monkeypatch.setattr(run_gates, "answer_spread", lambda _: 0.0)
    assert answer(good, "probabilities vary").outcome == "fail"


def test_one_row_is_timed_after_a_first_one(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 9.0, *(x for i in range(9) for x in (float(i), i + 0.002))])
    monkeypatch.setattr(bundle_checks.time, "perf_counter", lambda: next(clock))

    class Nothing:
        def predict_proba(self, X: pd.DataFrame) -> Any:
            return None

    assert prediction_milliseconds(Nothing(), ["close"]) == pytest.approx(2)


# What is said


def test_results_and_reports() -> None:
    assert not_above("x", math.nan, 1, ".").outcome == "fail"
    assert not_below("x", None, -1, ".").outcome == "fail"
    assert not_below("x", 1, 1, ".").outcome == "pass"
    nothing = GateReport(())
    idle = GateReport((not_applicable("x", "y."),))
    assert not nothing.passed and not idle.passed
    assert "no gate had anything" in nothing.sentence and "no gate had anything" in idle.sentence
    report = GateReport((not_above("calibrated", 0.31, 0.1, "Off."), *idle.results))
    assert report.sentence == (
        "Would not be promoted, because 1 of 2 gates failed. calibrated: Off. (limit 0.1)"
    )
    table = report.table()
    assert list(table[""]) == ["✕", "–"] and list(table["limit"]) == ["0.1", ""]
    whole = GateReport((not_below("x", 2, 1, "."),))
    assert whole.sentence == "Would be promoted: 1 gate passed."


def test_which_version_is_live(tmp_path: Path) -> None:
    assert live_version(tmp_path) is None
    (tmp_path / "production").mkdir()
    (tmp_path / "production" / ".gitkeep").touch()
    assert live_version(tmp_path) is None
    (tmp_path / "production" / "manifest.json").touch()
    assert live_version(tmp_path) == tmp_path / "production"
