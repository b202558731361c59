"""A challenger takes over only where it is better on rows that neither has seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs_for_tests import FEATURES, fabricated_run, market_candles, rewrite_predictions

from crypto_ml import challenger as module
from crypto_ml.challenger import (
    ComparisonError,
    Contender,
    clean_from,
    compare,
    out_of_sample_rows,
    own_answers,
    paired_rows,
    read_contender,
)
from crypto_ml.errors import BundleError
from crypto_ml.features import feature_matrix, feature_schema
from crypto_ml.gate_settings import GateSettings
from crypto_ml.gates import GATES, _ask, evaluate_gates
from crypto_ml.run_gates import Evidence
from crypto_ml.runs import read_record
from crypto_ml.settings import load_settings

MARKET = {"exchange": "simulated", "symbol": "SIM-CLEAR", "timeframe": "1h"}
LABEL = {"kind": "threshold", "horizon": 1, "threshold": 0.003}


def contender(
    p: np.ndarray, y: np.ndarray, name: str = "a", start: str = "2024-01-01"
) -> Contender:
    index = pd.date_range(start, periods=len(y), freq="h", tz="UTC", name="timestamp")
    split = np.where(np.arange(len(y)) < 0.8 * len(y), "out_of_fold", "holdout")
    rows = pd.DataFrame(
        {
            "split": split,
            "y": y.astype("int8"),
            "move": y.astype("int8"),
            "label_end": index + pd.Timedelta(hours=2),
            "ensemble": p,
            "majority": 0.5,
        },
        index=index,
    )
    return Contender(name, rows, MARKET, LABEL, index[-1])


def hints(y: np.ndarray, skill: float, rng: np.random.Generator) -> np.ndarray:
    """Give calibrated probabilities of one who sees a noisy hint."""
    hint = skill * y + rng.standard_normal(len(y))
    return np.asarray(1 / (1 + np.exp(skill**2 / 2 - skill * hint)))


# What a comparison must say


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(20, 120),
    steps=st.sampled_from([1, 3, 1000]),
    confidence=st.sampled_from([0.5, 0.8, 0.95]),
)
def test_identical_predictions_never_beat_the_champion(
    seed: int, rows: int, steps: int, confidence: float
) -> None:
    rng = np.random.default_rng(seed)
    p = rng.integers(0, steps + 1, rows) / (steps + 1)
    y = (rng.random(rows) < p).astype(int)
    one, other = contender(p, y), contender(p, y, "b")
    found = compare(one, other, fewest=1, confidence=confidence, resamples=20)
    assert (found.gain.value, found.gain.low, found.gain.high) == (0, 0, 0)
    assert not found.gain.low > GateSettings().min_gain


def test_a_truly_better_challenger_wins_and_a_worse_one_loses() -> None:
    rng = np.random.default_rng(5)
    y = rng.integers(0, 2, 3000)
    weak, strong = hints(y, 0.3, rng), hints(y, 0.6, rng)
    ahead = compare(contender(strong, y), contender(weak, y, "b"), resamples=200)
    behind = compare(contender(weak, y), contender(strong, y, "b"), resamples=200)
    assert ahead.gain.low > 0 > behind.gain.high
    assert ahead.gain.value == pytest.approx(-behind.gain.value)
    loss = [-np.log(np.where(y == 1, p, 1 - p)).mean() for p in (weak, strong)]
    assert ahead.gain.value == pytest.approx((loss[0] - loss[1]) / np.log(2))
    assert "which neither had seen" in ahead.sentence and "+" in ahead.sentence


def test_noise_does_not_pass_more_often_than_the_level_says() -> None:
    """Two models of the same skill: one in forty passes a lower bound of a 95 % interval."""
    rng = np.random.default_rng(11)
    passes, better, trials = 0, 0, 80
    for _ in range(trials):
        y = rng.integers(0, 2, 600)
        old = contender(hints(y, 0.3, rng), y, "b")
        passes += compare(contender(hints(y, 0.3, rng), y), old, resamples=100).gain.low > 0
        better += compare(contender(hints(y, 0.8, rng), y), old, resamples=20).gain.low > 0
    assert passes <= 7  # 2 expected; more than 7 come once in 1,000
    assert better >= 0.9 * trials


# Which rows


def test_only_rows_that_both_have_out_of_sample_count_and_the_newest_of_them() -> None:
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, 900)
    one, other = contender(rng.random(900), y), contender(rng.random(900), y, "b")
    older = replace(other, predictions=other.predictions.iloc[:700])
    rows, whose = paired_rows(one, older, newest=300, fewest=100)
    assert list(rows.index) == list(one.predictions.index[400:700])
    assert "stored" in whose
    with pytest.raises(ComparisonError, match=r"have 99 out-of-sample bars in common.*100 are"):
        paired_rows(
            one, replace(other, predictions=other.predictions.iloc[:99]), newest=300, fewest=100
        )


def test_what_the_champion_was_trained_on_is_left_out_of_its_own_answers() -> None:
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, 900)
    one = contender(rng.random(900), y)
    index = one.predictions.index
    champion = replace(contender(rng.random(900), y, "b"), trained_until=index[500])
    assert clean_from(champion) == index[502]  # the label of bar 500 is known when 502 opens
    longer = replace(champion, label={**LABEL, "horizon": 4})
    assert clean_from(longer) == index[505]
    later = pd.Series(0.5, index=index)
    rows, whose = paired_rows(one, champion, newest=5000, fewest=398, later=later)
    assert rows.index[0] == index[502] and len(rows) == 398 and "its own" in whose
    assert (rows["champion"] == 0.5).all()
    rows, whose = paired_rows(one, champion, newest=5000, fewest=399, later=later)
    assert len(rows) == 900 and "stored" in whose
    holes = later.where(np.arange(900) < 600)
    assert len(paired_rows(one, champion, newest=5000, fewest=98, later=holes)[0]) == 98


def test_other_questions_are_not_compared() -> None:
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, 600)
    one, other = contender(rng.random(600), y), contender(rng.random(600), y, "b")
    for changed, words in (
        (replace(other, run_id="a"), "the champion itself"),
        (replace(other, market={**MARKET, "timeframe": "4h"}), "SIM-CLEAR 1h and the champion"),
        (replace(other, label={**LABEL, "threshold": 0.01}), r"threshold 0\.003 against 0\.01"),
        (replace(other, label={**LABEL, "more": 1}), "more None against 1"),
    ):
        with pytest.raises(ComparisonError, match=words):
            compare(one, changed)


def test_revised_outcomes_are_left_out_and_other_candles_refused() -> None:
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, 600)
    one = contender(rng.random(600), y)
    for revised, fewer in ((6, 6), (7, None)):
        turned = y.copy()
        turned[:revised] = 1 - turned[:revised]
        other = contender(rng.random(600), turned, "b")
        if fewer is None:
            with pytest.raises(ComparisonError, match="outcomes of 7 of 600 common bars differ"):
                paired_rows(one, other, newest=5000, fewest=1)
        else:
            assert len(paired_rows(one, other, newest=5000, fewest=1)[0]) == 600 - fewer
    later = one.predictions.assign(label_end=lambda rows: rows["label_end"] + pd.Timedelta(hours=1))
    with pytest.raises(ComparisonError, match="outcomes of 600"):
        paired_rows(one, replace(one, run_id="b", predictions=later), newest=5000, fewest=1)


# Folders


def test_stored_rows_are_read_with_care(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    table = contender(rng.random(60), rng.integers(0, 2, 60)).predictions
    path = tmp_path / "predictions.parquet"
    with pytest.raises(ComparisonError, match="is not there"):
        out_of_sample_rows(path)
    for wrong, words in (
        (table.drop(columns=["ensemble", "y"]), "lacks the columns y, ensemble"),
        (table.iloc[::-1], "not one for each bar"),
        (pd.concat([table, table]).sort_index(), "not one for each bar"),
        (table.iloc[:0], "no rows out of sample"),
        (table.assign(split="in_sample"), "no rows out of sample"),
    ):
        wrong.to_parquet(path)
        with pytest.raises(ComparisonError, match=words):
            out_of_sample_rows(path)
    table.assign(split=["in_sample"] * 20 + ["holdout"] * 40).to_parquet(path)
    assert len(out_of_sample_rows(path)) == 40


def test_a_champion_may_be_a_run_or_a_version(tmp_path: Path) -> None:
    run = fabricated_run(tmp_path / "runs")
    flat = tmp_path / "version"
    flat.mkdir()
    for path in (run / "bundle").iterdir():
        (flat / path.name).write_bytes(path.read_bytes())
    (flat / "predictions.parquet").write_bytes((run / "predictions.parquet").read_bytes())
    with pytest.raises(BundleError, match=r"predictions\.parquet is not in the manifest"):
        read_contender(flat)
    (flat / "predictions.parquet").unlink()
    with pytest.raises(ComparisonError, match="is not there"):
        read_contender(flat)
    found = read_contender(run)
    assert found.run_id == run.name and found.market == MARKET
    assert found.trained_until == pd.Timestamp(read_record(run).folds[-1]["end"])


def test_the_champion_answers_rows_with_its_features_only(tmp_path: Path) -> None:
    run = fabricated_run(tmp_path / "runs")
    rows = feature_matrix(market_candles(300, 0), FEATURES).dropna()
    schema = feature_schema(FEATURES)
    answers = own_answers(run, rows[list(reversed(FEATURES))].assign(more=1.0), schema)
    assert answers is not None and answers.index.equals(rows.index)
    assert answers.between(0, 1).all() and answers.nunique() > 10
    changed = [{**entry, "definition_hash": "0"} for entry in schema]
    assert own_answers(run, rows, changed) is None
    assert own_answers(run, rows, schema[1:]) is None


# The gate


def asked(run: Path, champion: Path | None, inputs: pd.DataFrame | None = None, **limits: float):  # type: ignore[no-untyped-def]
    limits = {"newest_rows": 1500, **limits}
    now = pd.Timestamp.now(tz="UTC")
    evidence = Evidence(run, read_record(run), GateSettings(**limits), now, champion, inputs)  # type: ignore[arg-type]
    return _ask("better than the champion", GATES["better than the champion"], evidence)


def test_the_gate(tmp_path: Path) -> None:
    champion = fabricated_run(tmp_path, skill=0.5, days_old=8)
    better = fabricated_run(tmp_path, skill=0.9, seed=2)
    result = asked(better, champion)
    assert result.outcome == "pass" and result.value > 0 and result.limit == 0
    assert asked(better, champion, min_gain=result.value).outcome == "fail"
    assert asked(better, None).outcome == "not applicable"
    few = asked(better, champion, min_common_rows=7000, newest_rows=7000)
    assert few.outcome == "fail" and "out-of-sample bars in common" in few.sentence
    assert asked(champion, better).outcome == "fail"
    assert "the champion itself" in asked(champion, champion).sentence
    assert asked(champion, champion, min_gain=-1).outcome == "fail"
    gone = asked(better, tmp_path / "nowhere")
    assert gone.outcome == "fail"
    rewrite_predictions(champion, lambda table: table.assign(ensemble=np.nan))
    assert asked(better, champion).outcome == "fail"


def test_a_gain_that_may_be_luck_is_none(tmp_path: Path) -> None:
    champion = fabricated_run(tmp_path, skill=0.5, days_old=8)
    close = fabricated_run(tmp_path, skill=0.55, seed=2)
    found = compare(read_contender(close), read_contender(champion), newest=1500)
    assert found.gain.value > 0 > found.gain.low
    result = asked(close, champion)
    assert (result.outcome, result.value) == ("fail", found.gain.low)
    daring = asked(close, champion, confidence=0.5)
    assert result.value + 0.01 < daring.value < found.gain.value


def test_a_deployed_champion_is_asked_about_the_bars_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundle, trained on all rows, must never be asked about those."""
    champion = fabricated_run(tmp_path, days_old=40)
    better = fabricated_run(tmp_path, skill=0.9, seed=2)
    candles = market_candles()
    rows = feature_matrix(candles, FEATURES).dropna()
    result = asked(better, champion, rows)
    assert result.outcome == "pass" and "its own answers since" in result.sentence
    assert "On the newest 935 common bars" in result.sentence
    report = evaluate_gates(better, load_settings(), champion=champion, inputs=rows)
    assert report.results[-1].sentence == result.sentence
    monkeypatch.setattr(module, "clean_from", lambda one: one.trained_until - pd.Timedelta(days=99))
    assert "935" not in asked(better, champion, rows).sentence
