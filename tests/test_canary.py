"""Canary: a version comes in by stages, on evidence, and goes by itself when it is worse."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd
import pytest
from runs_for_tests import fabricated_run, market_candles
from small_bundles import killed_before

import crypto_ml.shadow
from crypto_ml.audit_log import read_log, verify_log
from crypto_ml.canary import Evidence, judge_challenger, outcomes, realised_pairs, stretch, weigh
from crypto_ml.candles import Candles, candles_from_frame
from crypto_ml.errors import CandlesError
from crypto_ml.gate_results import GateReport, GateResult
from crypto_ml.guard import advance, situation, tend
from crypto_ml.labels import make_labels
from crypto_ml.lineup import StageError, abort, move, read_line_up, stage_times, start
from crypto_ml.production import ProductionError, load_production
from crypto_ml.recorded import (
    FAILURES,
    Book,
    Ledger,
    Recorded,
    RecordError,
    note_failure,
    read_failures,
)
from crypto_ml.registry import LocalRegistry
from crypto_ml.registry_interface import PromotionRefused
from crypto_ml.router import LineUp
from crypto_ml.settings import ProductionSettings, Settings, load_settings
from crypto_ml.shadow import Answering
from crypto_ml.versions import RegistryError, Version

STEP = 40
HOUR, LATE = pd.Timedelta(hours=1), pd.Timedelta(minutes=5)
PASSED = GateReport((GateResult("all", "pass", 1.0, 0.0, "All is well."),))
FAILED = GateReport((GateResult("all", "fail", 0.0, 1.0, "Nothing is well."),))


def pass_all(run: Path, settings: Settings, **more: Any) -> GateReport:
    return PASSED


@pytest.fixture(scope="module")
def candles() -> Candles:
    return market_candles(1_200, days_old=0)


@pytest.fixture(scope="module")
def origin(candles: Candles) -> pd.Timestamp:
    """When the first version went live: 800 bars before the end of the candles."""
    return candles.known_at[-800] + LATE


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, origin: pd.Timestamp) -> Settings:
    """Version v0001 is live, v0002 is a candidate."""
    root = tmp_path_factory.mktemp("project")
    settings = replace(
        load_settings(), root=root, production=ProductionSettings(canary_outcomes=STEP)
    )
    runs = [
        fabricated_run(settings.runs_folder, seed=seed, bars=800, days_old=45) for seed in (1, 2)
    ]
    registry = LocalRegistry(settings.models_folder, settings, pass_all)
    registry.promote(runs[0], now=origin)
    registry.register(runs[1], PASSED, now=origin)
    return settings


@pytest.fixture
def registry(project: Settings, tmp_path: Path) -> LocalRegistry:
    """A registry of its own for each test."""
    shutil.copytree(project.root, tmp_path / "project")
    settings = replace(project, root=tmp_path / "project")
    return LocalRegistry(settings.models_folder, settings, pass_all)


def names(registry: LocalRegistry) -> tuple[str, str]:
    first, second = registry.versions()
    return first.name, second.name


def until(candles: Candles, now: pd.Timestamp) -> Candles:
    closed = candles.frame[candles.known_at <= now]
    return candles_from_frame(closed, candles.market, candles.source)


def chances(candles: Candles, version: Version, skill: float) -> pd.Series:
    """Return calibrated probabilities that know as much as asked for; below 0 they mislead."""
    y = outcomes(version, candles, candles.known_at[-1])["y"]
    base = y.mean()
    hint = abs(skill) * y + np.random.default_rng(5).standard_normal(len(y))
    logit = np.log(base / (1 - base)) + np.sign(skill) * (abs(skill) * hint - skill**2 / 2)
    return 1 / (1 + np.exp(-logit))


def speak(
    registry: LocalRegistry,
    candles: Candles,
    said: dict[str, float],
    since: pd.Timestamp,
    bars: int,
) -> pd.Timestamp:
    """Let versions of given skills speak about some bars; return when all outcomes are known."""
    book = Book(registry.models_folder)
    span = candles.index[candles.index >= since][:bars]
    for name, skill in said.items():
        told = chances(candles, registry.version(name), skill).reindex(span, fill_value=0.3)
        ledger = book.ledger(name)
        ledger.path.parent.mkdir(exist_ok=True)
        lines = [
            {"bar": int(bar.timestamp() * 1000), "probability": p, "answered": True, "stage": "x",
             "at": int((bar + HOUR + LATE).timestamp() * 1000)}
            for bar, p in told.items()
        ]  # fmt: skip
        with ledger.path.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    return span[-1] + 2 * HOUR + LATE


# the whole life


def test_from_candidate_to_live_and_back_by_itself(
    registry: LocalRegistry, candles: Candles, origin: pd.Timestamp
) -> None:
    first, second = names(registry)
    start(registry, second, now=origin)
    now = origin
    for stage in ("canary-10", "canary-50", "live"):
        soon = speak(registry, candles, {first: 0.8, second: 0.75}, now, STEP - 1)
        with pytest.raises(
            StageError, match=f"{STEP - 1} of {STEP} outcomes of this stage are kno"
        ):
            advance(registry, candles=until(candles, soon), now=soon)
        now = speak(registry, candles, {first: 0.8, second: 0.75}, soon - 2 * HOUR, 1)
        found = situation(registry, candles=until(candles, now), now=now)
        assert found.challenger is not None
        assert (found.challenger.decision, found.challenger.needed) == ("advance", 0)
        version = advance(registry, candles=until(candles, now), now=now)
        assert version.stage == stage
    assert read_line_up(registry) == LineUp(second, champion=first)
    entry = next(e for e in reversed(read_log(registry.models_folder)) if e.action == "promote")
    assert [gate["name"] for gate in entry.gates or ()] == ["all", "realised log loss"]
    assert not entry.forced
    assert tend(registry, candles=until(candles, now), now=now) == []
    now = speak(registry, candles, {second: -1.2, first: 1.2}, now, 2 * STEP)
    assert tend(registry, candles=until(candles, now), now=now)[0].startswith(f"{first} is live")
    assert read_line_up(registry) == LineUp(first)
    last = registry.history()[-1]
    assert (last.action, last.version, last.previous) == ("rollback", first, second)
    assert last.why.startswith(f"automatic: {second} (live) is worse than the version before it")
    assert verify_log(registry.models_folder).intact
    assert tend(registry, candles=until(candles, now), now=now) == [], "and there it stays"
    stages = [e.subject["stage"] for e in read_log(registry.models_folder) if e.action == "stage"]
    assert stages == ["shadow", "canary-10", "canary-50"]


def test_a_challenger_that_misleads_is_aborted(
    registry: LocalRegistry, candles: Candles, origin: pd.Timestamp
) -> None:
    first, second = names(registry)
    start(registry, second, now=origin)
    now = speak(registry, candles, {first: 1.2, second: -1.2}, origin, STEP)
    with pytest.raises(StageError, match="is worse than may be"):
        advance(registry, candles=until(candles, now), now=now)
    assert "was aborted" in tend(registry, candles=until(candles, now), now=now)[0]
    assert registry.stage_of(second) == "candidate"
    assert read_log(registry.models_folder)[-1].gates[0]["outcome"] == "fail"  # type: ignore[index]
    again = start(registry, second, now=now)
    assert stage_times(registry, second).began == now.floor("ms")
    found = situation(registry, candles=until(candles, now), now=now)
    assert found.challenger is not None
    assert found.challenger.evidence.known == 0, "a second attempt begins without the past"
    assert again.stage == "shadow"


def test_force_needs_a_reason_and_is_logged(
    registry: LocalRegistry, candles: Candles, origin: pd.Timestamp
) -> None:
    start(registry, names(registry)[1], now=origin)
    here = until(candles, origin)
    with pytest.raises(RegistryError, match="force needs a reason"):
        advance(registry, force=True, candles=here, now=origin)
    for _ in range(3):
        advance(registry, force=True, reason="we cannot wait", candles=here, now=origin)
    log = read_log(registry.models_folder)
    forced = [e for e in log if e.action in ("stage", "promote") and e.why == "we cannot wait"]
    assert [entry.forced for entry in forced] == [True] * 3
    assert registry.live_name() == names(registry)[1]
    with pytest.raises(StageError, match="no version is on its way"):
        advance(registry, candles=here, now=origin)
    with pytest.raises(StageError, match="no version is on its way"):
        abort(registry, reason="none")


def test_who_may_start(registry: LocalRegistry, tmp_path: Path, origin: pd.Timestamp) -> None:
    run = registry.settings.runs_folder / registry.versions()[1].run_id
    second = start(registry, run, now=origin)
    assert second.name == names(registry)[1], "the candidate that the run is already"
    with pytest.raises(StageError, match="needs a reason"):
        abort(registry, reason=" ")
    abort(registry, reason="another comes first", now=origin)
    other = fabricated_run(registry.settings.runs_folder, seed=1, bars=800, days_old=45)
    registry.judge = lambda *_, **__: FAILED
    with pytest.raises(PromotionRefused):
        start(registry, other, now=origin)
    assert read_log(registry.models_folder)[-1].action == "refused"
    third = start(registry, other, force=True, reason="to see it", now=origin)
    assert (third.stage, third.metadata["forced"]) == ("shadow", True)
    abort(registry, reason="seen", now=origin)
    with pytest.raises(StageError, match="came in against its gates"):
        start(registry, third.name, now=origin)
    with pytest.raises(RegistryError, match="expired"):
        start(registry, second.name, now=origin + pd.Timedelta(days=91))
    empty = LocalRegistry(tmp_path / "none", registry.settings, pass_all)
    assert tend(empty) == []
    with pytest.raises(StageError, match="nothing is live"):
        situation(empty)
    with pytest.raises(StageError, match="is not on its way"):
        stage_times(registry, second.name)


# health


def test_health_rolls_back_only_where_another_model_helps(
    registry: LocalRegistry, candles: Candles, origin: pd.Timestamp
) -> None:
    first, second = names(registry)
    assert tend(registry, failed=["prediction"], now=origin) == [], "there is no way back"
    registry.promote(second, now=origin)
    here = until(candles, origin)
    assert tend(registry, failed=["disk", "clock", "candles"], candles=here, now=origin) == []
    told = tend(registry, failed=["prediction", "disk"], now=origin)
    assert told == [f"{first} is live again. health fails: prediction"]
    assert registry.live_name() == first
    assert registry.history()[-1].why == "automatic: health fails: prediction"


# evidence


def test_no_outcome_is_used_before_it_is_known(
    registry: LocalRegistry, candles: Candles, origin: pd.Timestamp
) -> None:
    """With the whole future in hand, the same as with the candles up to now."""
    version = registry.versions()[0]
    label = {key: value for key, value in version.metadata["label"].items() if key != "source"}
    for later in (0, 7, 100):
        now = origin + later * HOUR
        known = outcomes(version, candles, now)
        assert known["label_end"].max() <= now
        here = until(candles, now)
        expected = make_labels(here, **label).frame
        pd.testing.assert_frame_equal(known, expected[["y", "move", "label_end"]])
        assert known.index[-1] == here.index[-2], "the newest bar's outcome is open"
    short = candles_from_frame(candles.frame.iloc[:1], candles.market, "x")
    assert outcomes(version, short, candles.known_at[0]).empty


def test_what_was_said_too_late_does_not_count(registry: LocalRegistry, candles: Candles) -> None:
    book, bars = Book(registry.models_folder), candles.index[500:510]
    version = registry.versions()[0]
    known = outcomes(version, candles, candles.known_at[-1])
    for number, bar in enumerate(bars):
        opened = int(bar.timestamp() * 1000)
        for name, delay in (("a", 1), ("b", 2 if number >= 6 else 1.99)):
            at = opened + int(delay * 3_600_000)
            book.ledger(name).add(Recorded(opened, 0.4, False, "shadow", at))
    pairs = realised_pairs(book, "a", "b", known, bars[2])
    assert list(pairs.index) == list(bars[2:6])
    assert realised_pairs(book, "a", "nobody", known, bars[0]).empty


def made_up(rng: np.random.Generator, rows: int, excess: float) -> pd.DataFrame:
    """Return bars on which `first` loses so much more than `second`, which knows the truth."""
    truth = rng.uniform(0.2, 0.4, rows)
    y = (rng.random(rows) < truth).astype("int8")
    away = np.sqrt(2 * excess / 0.205) * rng.choice([-1.0, 1.0], rows)
    first = 1 / (1 + np.exp(-(np.log(truth / (1 - truth)) + away)))
    index = pd.date_range("2025-01-01", periods=rows, freq="h", tz="UTC", name="timestamp")
    table = {"y": y, "move": y, "first": first, "second": truth}
    return pd.DataFrame(table, index=index).assign(split="realised", fold=np.int8(0))


def test_noise_moves_production_less_often_than_its_level(project: Settings) -> None:
    """Three looks at versions that are worse by exactly what is allowed, the worst case."""
    rng, margin, tries, step = np.random.default_rng(3), 0.02, 120, 100
    defaults = project.defaults.model_copy(update={"resamples": 100})
    production = ProductionSettings(canary_outcomes=step)
    settings = replace(project, defaults=defaults, production=production)
    worse = forward = 0
    for _ in range(tries):
        rows = made_up(rng, 3 * step, margin)
        looks = [weigh(rows.iloc[: n * step], ("a", "b"), margin, settings) for n in (1, 2, 3)]
        worse += any(look.finding == "worse" for look in looks)
        forward += any(look.finding == "fit" for look in looks)
    level = (1 - defaults.confidence) / 2
    slack = 3 * np.sqrt(level * (1 - level) / tries)
    assert worse / tries <= level + slack, worse
    assert forward / tries <= level + slack, forward


def test_the_risk_of_all_looks_together() -> None:
    normal = NormalDist()
    bounds = [stretch(look, 0.95) * normal.inv_cdf(0.975) for look in range(1, 1_000)]
    assert sum(2 * (1 - normal.cdf(bound)) for bound in bounds) == pytest.approx(0.05, rel=0.01)


def test_between_two_looks_nothing_changes(project: Settings) -> None:
    rows = made_up(np.random.default_rng(4), 3 * STEP, 0.3)
    found = [weigh(rows.iloc[:n], ("a", "b"), 0.02, project) for n in range(STEP - 1, 2 * STEP + 1)]
    assert found[0].difference is None
    assert found[0].finding == "open"
    assert {f.difference for f in found[1:-1]} == {found[1].difference}
    assert found[-1].difference != found[1].difference
    assert [f.used for f in (found[1], found[-2], found[-1])] == [STEP, STEP, 2 * STEP]
    assert weigh(rows, ("a", "b"), 0.02, project).finding == "worse"
    better = weigh(
        rows.rename(columns={"first": "second", "second": "first"}), ("b", "a"), 0.0, project
    )
    assert better.finding == "fit"


def test_what_is_being_waited_for() -> None:
    evidence = Evidence("b", "a", 95, 80, None, 0.02)
    assert judge_challenger(evidence, 10, "canary-10", STEP).needed == 30
    assert judge_challenger(evidence, 60, "canary-10", STEP).needed == 25, "up to the next look"


# the record


def row(bar: int, probability: float = 0.4) -> Recorded:
    return Recorded(bar, probability, False, "shadow", bar + 1)


def cut_short(handle: int, length: int, cut: Callable[[int, int], None] = os.ftruncate) -> None:
    """Cut a file as a power cut does: the lines that were flushed before stay."""
    content = Path(f"/proc/self/fd/{handle}").read_bytes()
    flushed = content[:-1].rfind(b"\n") + 1
    cut(handle, max(length, (flushed + len(content)) // 2))


def test_killed_while_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever step it dies at: every earlier line is there, and the next is added once."""
    monkeypatch.setattr(os, "ftruncate", cut_short)
    outcomes_seen = set()
    for step in range(1_000):
        path = tmp_path / str(step) / "predictions" / "v0001-a.jsonl"
        for bar in (1, 2):
            Ledger(path).add(row(bar))
        with path.open("ab") as file:
            file.write(b'{"bar":3,"prob')  # of a writer that was killed before
        killed = killed_before(step, path.parent, lambda path=path: Ledger(path).add(row(3)))
        found = [line.bar for line in Ledger(path).read()]
        assert found in ([1, 2], [1, 2, 3])
        outcomes_seen.add(len(found))
        assert Ledger(path).add(row(3)) == (len(found) == 2)
        assert Ledger(path).add(row(4))
        assert [line.bar for line in Ledger(path).read()] == [1, 2, 3, 4]
        if not killed:
            break
    assert step > 2
    assert outcomes_seen == {2, 3}


def test_two_processes_record_the_same_bars_once(tmp_path: Path) -> None:
    path, bars = tmp_path / "v0001-a.jsonl", 60
    children = []
    for number in range(2):
        child = os.fork()
        if not child:
            ledger = Ledger(path)
            added = [ledger.add(row(bar, 0.1 + 0.1 * number)) for bar in range(bars)]
            os._exit(100 * (not any(added)))
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] != [100, 100]
    assert sorted(line.bar for line in Ledger(path).read()) == list(range(bars))


def test_a_ledger_notices_what_others_did(tmp_path: Path) -> None:
    one, other = Ledger(tmp_path / "a.jsonl"), Ledger(tmp_path / "a.jsonl")
    assert one.add(row(1))
    assert other.add(row(2))
    assert not one.add(row(2))
    one.path.unlink()
    assert one.add(row(2)), "the file is gone, and so is what it held"
    one.path.write_bytes(b"")
    assert one.add(row(2))


@pytest.mark.parametrize(
    "line",
    [b"{}", b"[1]", b'{"bar":1.5,"probability":0.4,"answered":true,"stage":"x","at":2}',
     b'{"bar":1,"probability":1.4,"answered":true,"stage":"x","at":2}', b"\xff"],
)  # fmt: skip
def test_damage_is_named(tmp_path: Path, line: bytes) -> None:
    ledger = Ledger(tmp_path / "a.jsonl")
    ledger.add(row(1))
    with ledger.path.open("ab") as file:
        file.write(line + b"\n")
    for work in (ledger.read, lambda: Ledger(ledger.path).add(row(2))):
        with pytest.raises(RecordError, match=r"line 2 of .*a\.jsonl is no recorded prediction"):
            work()


def test_what_is_no_probability_is_not_recorded(tmp_path: Path) -> None:
    for bad in (float("nan"), 1.1, -0.1, float("inf")):
        with pytest.raises(RecordError, match="is no probability"):
            Ledger(tmp_path / "a.jsonl").add(row(1, bad))
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="cannot be made"):
        Ledger(tmp_path / "file" / "a.jsonl").add(row(1))


def test_failures_survive_a_torn_line(tmp_path: Path) -> None:
    book = Book(tmp_path)
    assert read_failures(book) == []
    note_failure(book, "v0002", ValueError("x" * 900), 1, 2)
    with (book.folder / FAILURES).open("ab") as file:
        file.write(b'{"bar": 2, "ver')
    note_failure(book, "record", OSError("no space left"), 3, 4)
    assert [entry["version"] for entry in read_failures(book)] == ["v0002", "record"]


# the trading process


@pytest.fixture
def trading(registry: LocalRegistry, origin: pd.Timestamp) -> Answering:
    start(registry, names(registry)[1], now=origin)
    return Answering(registry.settings)


def asked(trading: Answering, candles: Candles, now: pd.Timestamp) -> Any:
    return trading.answer(until(candles, now), now=now)


def test_both_are_asked_and_the_bar_s_version_answers(
    trading: Answering, registry: LocalRegistry, candles: Candles, origin: pd.Timestamp
) -> None:
    first, second = names(registry)
    alone = load_production(registry.models_folder, settings=registry.settings, now=origin)
    told = asked(trading, candles, origin)
    assert told.answer == alone.predict_latest(until(candles, origin), now=origin)
    assert (told.probability, told.due, told.failed) == (told.answer.probability, first, {})
    assert set(told.others) == {second}
    assert told.others[second].probability != told.probability
    move(registry, second, "shadow", "canary-50", why="to see both")
    heard = set()
    for hour in range(1, 9):
        now = origin + hour * HOUR
        told = asked(trading, candles, now)
        opened = int(told.answer.time.timestamp() * 1000)
        assert (
            told.answer.version == told.line_up.answering(str(candles.market), opened) == told.due
        )
        assert asked(trading, candles, now).answer == told.answer, "asked again, the same"
        heard.add(told.answer.version)
    assert heard == {first, second}
    book = Book(registry.models_folder)
    tables = [book.table(name) for name in (first, second)]
    assert [len(table) for table in tables] == [9, 9]
    assert (tables[0]["answered"] ^ tables[1]["answered"]).all(), "one answered each bar"
    assert list(tables[1]["stage"]) == ["shadow"] + ["canary-50"] * 8
    assert not trading.failures


def test_a_failing_shadow_breaks_nothing_and_is_seen(
    trading: Answering, registry: LocalRegistry, candles: Candles, origin: pd.Timestamp
) -> None:
    first, second = names(registry)
    move(registry, second, "shadow", "canary-50", why="to see both", now=origin)
    model = next((registry.archive / second).glob("xgboost*"))
    whole = model.read_bytes()
    model.chmod(0o644)
    model.write_bytes(whole[:-9])
    due = set()
    for hour in range(6):
        told = asked(trading, candles, origin + hour * HOUR)
        assert told.answer.version == first
        assert "xgboost" in told.failed[second]
        due.add(told.due)
    assert due == {first, second}, "the live version answers for the canary too"
    assert trading.failures[second] == 6
    now = origin + 6 * HOUR
    found = situation(registry, candles=until(candles, now), now=now)
    assert list(found.said.set_index("version").loc[second, ["spoke", "failures"]]) == [0, 6]
    model.write_bytes(whole)
    assert not asked(trading, candles, now).failed, "once it is whole again, it speaks"


@pytest.mark.parametrize("error", [MemoryError("x"), ZeroDivisionError("y"), CandlesError("z")])
def test_whatever_a_shadow_raises(
    trading: Answering,
    registry: LocalRegistry,
    candles: Candles,
    origin: pd.Timestamp,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def opened(name: str, *_: object) -> None:
        raise error

    monkeypatch.setattr(crypto_ml.shadow, "open_archived", opened)
    told = asked(trading, candles, origin)
    assert told.failed == {names(registry)[1]: f"{type(error).__name__}: {error}"}


def test_the_record_may_fail(
    trading: Answering, registry: LocalRegistry, candles: Candles, origin: pd.Timestamp
) -> None:
    first, _ = names(registry)
    (registry.models_folder / "predictions").write_text("not a folder")
    told = asked(trading, candles, origin)
    assert told.answer.version == first
    assert "cannot be made" in told.failed["record"]
    assert trading.failures["record"] == 3, "two lines, and the note of it"


def test_a_switch_is_seen_at_the_next_bar_and_a_broken_one_is_not_taken(
    trading: Answering, registry: LocalRegistry, candles: Candles, origin: pd.Timestamp
) -> None:
    first, second = names(registry)
    asked(trading, candles, origin)
    registry.promote(second, now=origin)
    told = asked(trading, candles, origin + HOUR)
    assert (told.answer.version, set(told.others)) == (second, {first})
    assert list(Book(registry.models_folder).table(first)["stage"]) == ["live", "champion"]
    registry.rollback(reason="x", now=origin)
    shutil.rmtree(registry.live_folder)
    told = asked(trading, candles, origin + 2 * HOUR)
    assert told.answer.version == second, "what is held goes on"
    assert "ProductionError" in told.failed["registry"]
    with pytest.raises(ProductionError, match="nothing is live"):
        asked(Answering(registry.settings), candles, origin)


def test_the_live_version_s_own_refusals_stay(
    trading: Answering, registry: LocalRegistry, candles: Candles, origin: pd.Timestamp
) -> None:
    with pytest.raises(CandlesError, match="end too early"):
        trading.answer(until(candles, origin), now=origin + 5 * HOUR)
    assert not (registry.models_folder / "predictions").exists()
