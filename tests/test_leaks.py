"""The leak auditor: what it must say, and that it says nothing of what is clean."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crypto_ml.candles import Candles
from crypto_ml.errors import ScoreError
from crypto_ml.expansion import expand_features, expansion_warm_up
from crypto_ml.features import DEFAULT_FEATURES, feature_matrix, warm_up
from crypto_ml.labels import make_labels
from crypto_ml.leaks import LeakError, LeakReport, audit_stage
from crypto_ml.look_ahead import choose_cuts
from crypto_ml.parameters import RunParameters
from crypto_ml.run_audit import audit_pipeline, fast_audit, input_stage, label_stage
from crypto_ml.simulate import PRESETS, simulate
from crypto_ml.splits import make_folds
from crypto_ml.tampering import CHANGES, tamper

WARM = warm_up(DEFAULT_FEATURES)


@pytest.fixture(scope="module")
def candles() -> Candles:
    return simulate("vol", bars=500, seed=5, gaps=2).candles


def quick(stage: Callable[..., object], candles: Candles, **options: object) -> LeakReport:
    return audit_stage(stage, candles, cuts=6, **options)  # type: ignore[arg-type]


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ahead=st.integers(1, 40))
def test_distance_is_exact(candles: Candles, ahead: int) -> None:
    report = quick(lambda c: c.frame["close"].shift(-ahead), candles, probes=["future"])
    (finding,) = report.findings
    assert (finding.kind, finding.bars_ahead) == ("future_bars", ahead)
    assert finding.row == candles.index[0]


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(window=st.integers(1, 60), name=st.sampled_from(["mean", "max", "std"]))
def test_windows_of_the_past_are_clean(candles: Candles, window: int, name: str) -> None:
    def past(candles: Candles) -> object:
        rolling = candles.frame["close"].rolling(window)
        return rolling.apply(getattr(np, name), raw=True)

    assert quick(past, candles, probes=["future", "history"]).clean


def test_values_shown_are_those_of_the_stage(candles: Candles) -> None:
    def tomorrow(c: Candles) -> object:
        return c.frame["close"].shift(-1).rename("tomorrow")

    (finding,) = quick(tomorrow, candles, changes=["scale_up"]).findings
    assert finding.before == candles.frame["close"].iloc[1]
    assert finding.after == 1000 * finding.before
    assert "multiplied by 1,000" in finding.sentence


def test_change_that_catches_a_late_maximum_only(candles: Candles) -> None:
    def rounded(c: Candles) -> object:
        return c.frame["close"].round(6 - int(np.log10(c.frame["close"].max())))

    assert quick(rounded, candles, changes=["reverse", "truncate"], probes=["future"]).clean
    assert not quick(rounded, candles, changes=["scale_up"], probes=["future"]).clean


def test_rows_and_columns_of_the_future(candles: Candles) -> None:
    def dummies(c: Candles) -> pd.DataFrame:
        doubled = c.frame["close"] > 100 * c.frame["close"].iloc[0]
        return pd.get_dummies(doubled.map({True: "high", False: "low"}), dtype=float)

    kinds = {f.column: f.kind for f in quick(dummies, candles).findings}
    assert kinds["high"] == "whole_sample"


def test_a_custom_tolerance_forgives(candles: Candles) -> None:
    def faint(c: Candles) -> object:
        close = c.frame["close"]
        return (close + 1e-9 * close.mean()).rename("faint")

    assert not quick(faint, candles, changes=["noise"], probes=["future"]).clean
    assert quick(faint, candles, changes=["noise"], tolerance=1e-6, probes=["future"]).clean


def test_live_path_that_answers_nothing(candles: Candles) -> None:
    def close(c: Candles) -> object:
        return c.frame["close"]

    (finding,) = quick(close, candles, live=lambda c: {}).findings
    assert finding.kind == "live_mismatch" and finding.after == "no value"
    assert quick(close, candles, live=lambda c: c.frame[["close"]]).clean
    assert quick(close, candles, live=lambda c: c.frame["close"].tail(1).set_axis(["close"])).clean
    words = quick(
        lambda c: pd.DataFrame({"day": c.index.day_name()}, index=c.index),
        candles,
        live=lambda c: {"day": c.index.day_name()[-1]},
    )
    assert words.clean


def test_declared_times_are_believed(candles: Candles) -> None:
    def late(c: Candles) -> pd.DataFrame:
        frame = pd.DataFrame({"next": c.frame["close"].shift(-2)}).dropna()
        return frame.assign(known=frame.index + 6 * c.timeframe)

    assert quick(late, candles, known_at="known", probes=["future"]).clean
    assert not quick(late, candles, probes=["future"]).clean


@pytest.mark.parametrize("kind", ["direction", "threshold", "triple_barrier"])
@pytest.mark.parametrize("horizon", [1, 6])
def test_labels_keep_their_word(candles: Candles, kind: str, horizon: int) -> None:
    def honest(c: Candles) -> object:
        return make_labels(c, kind, horizon=horizon)  # type: ignore[arg-type]

    def hasty(c: Candles) -> pd.DataFrame:
        frame = make_labels(c, kind, horizon=horizon).frame  # type: ignore[arg-type]
        return frame.assign(label_end=frame["label_end"] - c.timeframe)

    assert quick(honest, candles).clean
    probes, changes = ["future"], ["noise", "scale_up"]
    found = audit_stage(hasty, candles, cuts=30, probes=probes, changes=changes).findings
    assert found and {f.kind for f in found} == {"label_end"}


def test_errors_name_what_was_wrong(candles: Candles) -> None:
    with pytest.raises(ScoreError, match="did you mean 'history'"):
        audit_stage(feature_matrix, candles, probes=["histroy"])
    with pytest.raises(ScoreError, match="cannot be cut"):
        choose_cuts(candles, 3, first=len(candles))
    with pytest.raises(ZeroDivisionError):
        audit_stage(lambda c: 1 / 0, candles)
    with pytest.raises(LeakError, match="uses bars after its own"):
        quick(lambda c: c.frame["close"].shift(-1), candles).raise_if_leaking()


def test_changes_leave_the_past_alone(candles: Candles) -> None:
    for change in CHANGES:
        changed = tamper(candles.frame, change, 300)
        assert changed.iloc[:300].equals(candles.frame.iloc[:300])
        assert not changed.equals(candles.frame)


def test_the_same_audit_says_the_same(candles: Candles) -> None:
    def twice() -> dict[str, object]:
        return quick(lambda c: c.frame["close"] / c.frame["close"].mean(), candles).to_dict()

    assert twice() == twice()


@pytest.mark.parametrize("seed", range(20))
def test_no_false_alarm_on_simulated_markets(seed: int) -> None:
    preset = list(PRESETS)[seed % len(PRESETS)]
    candles = simulate(preset, bars=1000, seed=seed, gaps=seed % 4).candles
    report = audit_stage(feature_matrix, candles, cuts=4, warm_up=WARM, seed=seed)
    assert report.clean, str(report)


def run_parts(candles: Candles, parameters: RunParameters) -> dict[str, object]:
    labels = label_stage(parameters)
    rows = feature_matrix(candles).join(labels(candles).frame, how="inner").dropna()
    folds = make_folds(rows.index, rows["label_end"], parameters.n_splits, parameters.holdout)
    return {"labels": labels, "rows": rows, "folds": folds}


def test_a_run_audits_itself_quickly() -> None:
    candles = simulate("vol", bars=8640).candles
    parts = run_parts(candles, RunParameters())
    started = time.process_time()
    report = fast_audit(candles, features=DEFAULT_FEATURES, **parts)
    assert report.clean and time.process_time() - started < 5
    assert set(report.to_dict()) >= {"clean", "findings", "tried", "audited"}


def test_a_run_that_was_not_purged_is_refused(candles: Candles) -> None:
    longer = simulate("vol", bars=1200).candles
    parts = run_parts(longer, RunParameters(horizon=6))
    parts["folds"] = make_folds(
        parts["rows"].index,  # type: ignore[attr-defined]
        parts["rows"]["label_end"] - pd.Timedelta("5h"),  # type: ignore[index]
    )
    report = fast_audit(longer, features=DEFAULT_FEATURES, **parts)
    assert {finding.kind for finding in report.findings} == {"overlap_before"}
    assert not audit_pipeline(longer, RunParameters(horizon=6), parts["rows"], parts["folds"]).clean


def test_missing_bars_prolong_a_warm_up(candles: Candles) -> None:
    whole = simulate("vol", bars=800, seed=3).candles
    lacking = Candles(whole.frame.drop(whole.index[[41, 90]]), whole.market, whole.source)
    options = {"timeframes": ("4h",), "lags": (2,)}

    def expanded(c: Candles) -> pd.DataFrame:
        return expand_features(c, ["zscore"], **options).frame

    warm = expansion_warm_up(lacking, ["zscore"], **options)
    assert quick(expanded, lacking, warm_up=warm, probes=["history"]).clean

    def since_start(c: Candles) -> object:
        return c.frame["close"].expanding(min_periods=30).mean().rename("mean")

    (finding,) = quick(since_start, lacking, warm_up=20, probes=["history"]).findings
    assert (finding.kind, finding.row) == ("history_start", lacking.index[30])
    never = quick(lambda c: c.frame["close"] * np.nan, lacking, probes=["history"])
    assert never.clean and "1 column without any value" in never.notes[-1]
    all_or_none = quick(
        lambda c: c.frame["close"] * (1 if len(c) == len(lacking) else np.nan), lacking
    )
    assert not all_or_none.clean


def test_future_of_another_market_is_changed_too() -> None:
    base = simulate("vol", bars=1200).candles
    others = {"ETHUSDT": simulate("vol", bars=1200, seed=7).candles}
    parameters = RunParameters(features=("close",), expand={"symbols": ["ETHUSDT"]})
    rows = input_stage(parameters)(base, **others).join(label_stage(parameters)(base).frame)
    rows = rows.dropna()
    folds = make_folds(rows.index, rows["label_end"])

    def peeking(candles: Candles, **near: Candles) -> pd.DataFrame:
        return pd.DataFrame({"next": near["ETHUSDT"].frame["close"].shift(-1)}, candles.index)

    parts = {"labels": label_stage(parameters), "rows": rows, "folds": folds, "others": others}
    assert fast_audit(base, features=input_stage(parameters), warm=1, **parts).clean
    (finding,) = fast_audit(base, features=peeking, warm=1, **parts).findings
    assert (finding.column, finding.bars_ahead) == ("next", 1)
    thorough = audit_pipeline(base, parameters, rows, folds, features=peeking, others=others)
    assert {f.column for f in thorough.findings} == {"next"}
