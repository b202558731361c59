"""The ledger of trials: it only grows, many may write at once, and it says when it was touched."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from crypto_ml import chain, trials
from crypto_ml.candles import Market
from crypto_ml.errors import RunError
from crypto_ml.luck import SharpeRatio
from crypto_ml.runs import RunRecord
from crypto_ml.settings import RunParameters
from crypto_ml.trials import (
    LEDGER,
    Ledger,
    Trial,
    count_trials,
    read_trials,
    record_trial,
    record_trials,
    trial_of_run,
    tried_hash,
)

HOURLY = Market("binance", "BTCUSDT", "1h")
FIRST = Trial(
    run_id="20250101-120000-BTCUSDT-1h-a1b2c3",
    market=str(HOURLY),
    label="3f2a",
    data="77aa",
    features="12fe",
    parameters="90cd",
    start="2024-01-01",
    end="2025-01-01",
    statistic=0.512,
    sharpe=0.004,
    periods=5000,
)


def count(folder: Path) -> int:
    return count_trials(folder, HOURLY, "3f2a").distinct


def test_what_was_recorded_is_read_back(tmp_path: Path) -> None:
    assert read_trials(tmp_path) == Ledger(())
    assert count_trials(tmp_path, HOURLY, "3f2a").distinct == 0
    written = record_trial(tmp_path / "new" / "runs", FIRST)
    assert written.time.endswith("+00:00")
    assert read_trials(tmp_path / "new" / "runs").trials == (written,)
    assert written.sharpe_ratio == SharpeRatio(0.004, 5000)
    assert replace(FIRST, sharpe=None).sharpe_ratio is None


def test_the_same_trial_counts_once(tmp_path: Path) -> None:
    record_trial(tmp_path, FIRST)
    record_trial(tmp_path, replace(FIRST, run_id="another", kind="replay"))
    record_trial(tmp_path, replace(FIRST, statistic=0.512 + 1e-9))  # the last bits may differ
    found = count_trials(tmp_path, HOURLY, "3f2a")
    assert (found.distinct, found.recorded, found.by_kind) == (1, 3, {"run": 1})
    assert "2 repeated, counted once" in found.sentence
    assert found.best == 0.512
    assert found.sharpes == (0.004,)


@pytest.mark.parametrize(
    "change",
    [
        {"parameters": "x"},
        {"features": "x"},
        {"data": "x"},
        {"statistic": 0.513},
        {"statistic": None},
    ],
)
def test_whatever_was_tried_differently_is_another_trial(
    tmp_path: Path, change: dict[str, object]
) -> None:
    record_trials(tmp_path, [FIRST, replace(FIRST, **change)])  # type: ignore[arg-type]
    assert count(tmp_path) == 2


@pytest.mark.parametrize("change", [{"market": "binance BTCUSDT 4h"}, {"label": "other"}])
def test_other_markets_and_labels_are_counted_apart(tmp_path: Path, change: dict[str, str]) -> None:
    record_trials(tmp_path, [FIRST, replace(FIRST, **change)])  # type: ignore[arg-type]
    assert count(tmp_path) == 1
    found = count_trials(tmp_path, HOURLY, "3f2a")
    assert found.on_market == (2 if "label" in change else 1)
    assert ("1 more with other labels" in found.sentence) == ("label" in change)
    assert json.loads(json.dumps(found.to_dict()))["distinct"] == 1


@given(
    st.lists(
        st.builds(
            Trial,
            run_id=st.text(max_size=8),
            market=st.sampled_from(["a 1h", "b 1h"]),
            label=st.sampled_from("xy"),
            data=st.sampled_from("12"),
            features=st.just("f"),
            parameters=st.sampled_from("pq"),
            start=st.text(max_size=5),
            end=st.just(""),
            statistic=st.none() | st.floats(0, 1),
            sharpe=st.none() | st.floats(-1, 1),
            kind=st.sampled_from(["run", "tuned", "selection", "replay"]),
        ),
        max_size=12,
    ),
    st.integers(0, 11),
)
def test_it_only_grows_and_the_order_of_writing_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, given_trials: list[Trial], cut: int
) -> None:
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    before = 0
    for trial in given_trials:
        record_trial(one, trial)
        assert (one / LEDGER).stat().st_size > before
        before = (one / LEDGER).stat().st_size
    for part in (given_trials[cut:], given_trials[:cut]):
        record_trials(two, part)
    for market in ("a 1h", "b 1h"):
        a, b = (count_trials(folder, market, "x") for folder in (one, two))
        assert (a.distinct, a.recorded, a.best) == (b.distinct, b.recorded, b.best)
        assert a.distinct == len(
            {t.fingerprint for t in given_trials if (t.market, t.label) == (market, "x")}
        )
    assert not read_trials(one).broken


# Many writers, killed writers, editors


def _write(folder: Path, writer: int) -> None:
    for number in range(20):
        record_trials(folder, [replace(FIRST, parameters=f"{writer}-{number}-{i}") for i in (0, 1)])


def test_many_writers_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(tmp_path, number)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert read_trials(tmp_path).remark == ""
    assert count(tmp_path) == 4 * 20 * 2


def test_a_writer_killed_at_any_moment_leaves_a_ledger(tmp_path: Path) -> None:
    code = f"""
        from dataclasses import replace
        from pathlib import Path
        from crypto_ml.trials import Trial, record_trial
        first = Trial(**{asdict(FIRST)!r})
        for number in range(100_000):
            record_trial(Path({str(tmp_path)!r}), replace(first, parameters=str(number)))
    """
    writer = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    try:
        deadline = time.monotonic() + 30
        while count(tmp_path) < 20 and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
    held = count(tmp_path)
    assert held >= 20
    record_trial(tmp_path, replace(FIRST, parameters="afterwards"))  # the lock died with it
    assert count(tmp_path) == held + 1


@pytest.mark.parametrize("left", [1, 40, -2])
def test_a_torn_last_line_is_left_out_and_said(tmp_path: Path, left: int) -> None:
    record_trials(tmp_path, [FIRST, replace(FIRST, parameters="torn")])
    path = tmp_path / LEDGER
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][:left])
    assert count(tmp_path) == 1
    assert read_trials(tmp_path).unreadable == (2,)
    record_trial(tmp_path, replace(FIRST, parameters="next"))
    found = read_trials(tmp_path)
    assert (len(found.trials), found.unreadable, found.broken) == (2, (2,), ())
    assert "Line 2 of trials.jsonl cannot be read" in count_trials(tmp_path, HOURLY, "x").sentence


def test_a_line_longer_than_the_tail_is_followed_rightly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain, "TAIL", 16)
    for number in range(4):
        record_trial(tmp_path, replace(FIRST, parameters=str(number)))
    assert read_trials(tmp_path).broken == ()


def test_edits_are_seen(tmp_path: Path) -> None:
    record_trials(tmp_path, [replace(FIRST, parameters=str(number)) for number in range(8)])
    path = tmp_path / LEDGER
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3] + lines[4:]))
    assert read_trials(tmp_path).broken == (4,)
    assert "edited" in count_trials(tmp_path, HOURLY, "3f2a").remark
    path.write_bytes(whole.replace(b'"parameters": "5"', b'"parameters": "6"'))
    assert read_trials(tmp_path).broken == (7,)
    path.write_bytes(b"".join(lines[2:]))
    assert read_trials(tmp_path).broken == (1,)
    path.write_bytes(whole)
    assert read_trials(tmp_path).remark == ""


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"3",
        b"{}",
        b"\xff\xfe",
        b'{"run_id": "x"}',
        json.dumps({**asdict(FIRST), "kind": "dream"}).encode(),
        json.dumps({**asdict(FIRST), "market": 3}).encode(),
        json.dumps({**asdict(FIRST), "sharpe": "high"}).encode(),
    ],
)
def test_what_is_no_trial_is_not_counted(tmp_path: Path, line: bytes) -> None:
    (tmp_path / LEDGER).write_bytes(line + b"\n")
    found = read_trials(tmp_path)
    assert (found.trials, found.unreadable) == ((), (1,))
    record_trial(tmp_path, FIRST)
    assert (count(tmp_path), read_trials(tmp_path).broken) == (1, ())


def test_many_bad_lines_are_named_shortly(tmp_path: Path) -> None:
    (tmp_path / LEDGER).write_bytes(b"x\n" * 9)
    assert "Lines 1, 2, 3, 4, 5, … of trials.jsonl" in read_trials(tmp_path).remark


def test_a_line_of_a_later_version_is_read(tmp_path: Path) -> None:
    line = json.dumps({**asdict(FIRST), "previous": "e3b0c44298fc1c14", "mood": "good"})
    (tmp_path / LEDGER).write_text(line + "\n")
    assert read_trials(tmp_path).trials == (FIRST,)


def test_the_ledger_outlives_the_runs(tmp_path: Path) -> None:
    (tmp_path / FIRST.run_id).mkdir()
    record_trial(tmp_path, FIRST)
    shutil.rmtree(tmp_path / FIRST.run_id)
    assert count(tmp_path) == 1


def test_a_held_ledger_is_an_error_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "LOCK_SECONDS", 0.1)
    with FileLock(tmp_path / f".{LEDGER}.lock"), pytest.raises(RunError, match="held by another"):
        record_trial(tmp_path, FIRST)


def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(chain.os, "write", lambda handle, text: write(handle, text[:50]))
    with pytest.raises(RunError, match="disk full"):
        record_trial(tmp_path, FIRST)
    monkeypatch.undo()
    record_trial(tmp_path, FIRST)
    assert count(tmp_path) == 1


def test_a_ledger_that_is_no_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / LEDGER).mkdir()
    with pytest.raises(RunError, match="cannot be read"):
        read_trials(tmp_path)


# From a run


def record_of(**parameters: object) -> RunRecord:
    given_parameters = RunParameters(**parameters).model_dump(mode="json")  # type: ignore[arg-type]
    return RunRecord(
        run_id="r",
        status="running",
        created_at="",
        parameters=given_parameters,
        seed=42,
        process={"pid": 1, "started": 0.0, "host": ""},  # type: ignore[arg-type]
        code={"version": "", "git_commit": None, "git_dirty": None},  # type: ignore[arg-type]
        versions={},
        market=vars(HOURLY),
        data={"sha256": "77", "first_bar": "2024", "end": "2025"},
        features=[{"name": "close", "definition_hash": "1"}],
        labels={"kind": "threshold", "horizon": 1, "threshold": 0.003, "hash": "3f2a", "rows": 5},
    )


def test_a_run_becomes_a_trial() -> None:
    found = trial_of_run(record_of(), 0.52, SharpeRatio(0.01, 100, -1.0, 5.0))
    assert (found.market, found.label, found.label_name) == (
        "binance BTCUSDT 1h",
        "3f2a",
        "threshold 1 0.003",
    )
    assert found.sharpe_ratio == SharpeRatio(0.01, 100, -1.0, 5.0)
    silent = trial_of_run(record_of(), float("nan"), None, kind="replay")
    assert (silent.statistic, silent.sharpe, silent.kind) == (None, None, "replay")


def test_what_makes_another_trial_of_a_run() -> None:
    first = trial_of_run(record_of(), 0.52, None).parameters
    for same in ({"jobs": 3}, {"resamples": 50}, {"source": "other.csv"}, {"confidence": 0.9}):
        assert trial_of_run(record_of(**same), 0.52, None).parameters == first
    for other in ({"seed": 1}, {"n_splits": 4}, {"round_trip_cost": 0.0}):
        assert trial_of_run(record_of(**other), 0.52, None).parameters != first
    tuned = trial_of_run(record_of(), 0.52, None, kind="tuned", lightgbm={"max_depth": 3})
    assert tuned.parameters != first
    assert tried_hash({"a": 1, "jobs": 2}) == tried_hash({"jobs": 3, "a": 1})
