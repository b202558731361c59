"""The live model answers from candles, the same as its run did, or refuses and says what to do."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from runs_for_tests import fabricated_run, market_candles

import crypto_ml.production
import crypto_ml.registry_commands as commands
from crypto_ml import expansion, versions
from crypto_ml.bundle import load_bundle
from crypto_ml.candles import Candles
from crypto_ml.encryption import encrypt_folder, new_encryption_key
from crypto_ml.errors import CandlesError, CryptoMLError
from crypto_ml.features import FEATURES, feature_matrix
from crypto_ml.gate_results import GateReport, GateResult
from crypto_ml.production import (
    Production,
    ProductionError,
    StaleModelError,
    judge_run,
    load_production,
    realised_predictions,
    run_inputs,
)
from crypto_ml.registry import LocalRegistry
from crypto_ml.registry_interface import PromotionRefused
from crypto_ml.settings import Settings, load_settings

PASSED = GateReport((GateResult("all", "pass", 1.0, 0.0, "All is well."),))
HOUR = pd.Timedelta(hours=1)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    settings = replace(load_settings(), root=tmp_path_factory.mktemp("project"))
    run = fabricated_run(settings.runs_folder, bars=1_200, days_old=30)
    LocalRegistry(settings.models_folder, settings, lambda *_, **__: PASSED).promote(run)
    return settings


@pytest.fixture(scope="module")
def live(project: Settings) -> Production:
    return load_production(settings=project)


@pytest.fixture(scope="module")
def candles() -> Candles:
    return market_candles(400, days_old=0)


def test_answers_are_those_of_the_run_s_bundle(
    live: Production, candles: Candles, project: Settings
) -> None:
    run = next(project.runs_folder.iterdir())
    rows = feature_matrix(candles, live.version.metadata["feature_names"]).dropna()
    expected = load_bundle(run / "bundle").ensemble.predict_proba(rows)[:, 1]
    for given in (candles, candles.frame, candles.frame.reset_index()):
        told = live.predict_proba(given)
        assert np.array_equal(told.to_numpy(), expected)
        assert told.index.equals(rows.index)
    answer = live.predict_latest(candles)
    assert (answer.time, answer.known_at) == (candles.index[-1], candles.known_at[-1])
    assert answer.probability == expected[-1]
    assert answer.yes == (expected[-1] > 0.5)
    assert answer.version == live.version.name
    shortest = candles.frame.tail(live.warm_up + 1)
    assert len(live.predict_proba(shortest)) == 1


def gap(candles: Candles, bars: int) -> pd.DataFrame:
    return candles.frame.drop(candles.index[-30 - bars : -30])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: replace(c, market=replace(c.market, symbol="X")), "trained on simulated SIM-CL"),
        (
            lambda c: replace(c, market=replace(c.market, exchange="y")),
            "candles are of y SIM-CLEAR",
        ),
        (lambda c: replace(c, market=replace(c.market, timeframe="4h")), "SIM-CLEAR 4h, and the"),
        (lambda c: c.frame.iloc[::4], "the timeframe is said to be 1h"),
        (lambda c: c.frame.iloc[:-2], "end too early: their last bar is .* the newest closed one"),
        (lambda c: c.frame.tail(20), "The features need 264 bars .* there are 20: give more"),
        (lambda c: gap(c, 4), "without a gap of more than 3, .* there are 30"),
        (lambda c: c.frame.drop(columns="volume"), "missing columns: volume"),
        (lambda c: replace(c, frame=c.frame.drop(columns="volume")), "columns: expected open"),
        (lambda c: c.frame.assign(close=-1.0), "close"),
        (lambda c: c.frame.iloc[::-1], "unsorted: earlier than the row before"),
        (lambda c: c.frame.iloc[:0], "0 bars|no bars|empty"),
    ],
)
def test_candles_that_are_refused(
    live: Production, candles: Candles, spoil: Callable[[Candles], Any], message: str
) -> None:
    with pytest.raises(CandlesError, match=message):
        live.predict_proba(spoil(candles))


def test_a_short_gap_is_no_reason(live: Production, candles: Candles) -> None:
    assert live.predict_latest(gap(candles, 3)).time == candles.index[-1]


def test_how_late_the_newest_candle_may_be(live: Production, candles: Candles) -> None:
    closed = candles.known_at[-1]
    for late in (0, 30, 89):
        live.predict_proba(candles, now=closed + pd.Timedelta(minutes=late))
    with pytest.raises(CandlesError, match="end too early"):
        live.predict_proba(candles, now=closed + pd.Timedelta(minutes=90))
    with pytest.raises(CandlesError, match=r"is not over before .*: leave it out"):
        live.predict_proba(candles, now=closed - pd.Timedelta(seconds=1))


def test_a_stale_model(live: Production, candles: Candles, project: Settings) -> None:
    expiry = live.version.expires_at
    assert expiry == live.version.created_at + pd.Timedelta(days=90)
    load_production(settings=project, now=expiry - HOUR)
    with pytest.raises(StaleModelError, match=r"expired .* 90 days after its promotion: train"):
        load_production(settings=project, now=expiry)
    with pytest.raises(StaleModelError, match="train again and promote"):
        live.predict_proba(candles, now=expiry)
    old = load_production(settings=project, now=expiry, allow_stale=True)
    with pytest.raises(CandlesError, match="end too early"):
        old.predict_proba(candles, now=expiry)


def test_other_markets_must_be_given(live: Production, candles: Candles) -> None:
    with pytest.raises(CandlesError, match=r"needs the candles of \[\] besides .* \['ETHUSDT'\]"):
        live.predict_proba(candles, others={"ETHUSDT": candles})


# features


def test_a_feature_that_is_defined_otherwise_now(
    project: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = expansion.expansion_schema

    def changed(*given: Any, **more: Any) -> list[dict[str, Any]]:
        return [
            entry | ({"definition_hash": "f" * 64} if entry["name"] == "rsi_14" else {})
            for entry in schema(*given, **more)
        ]

    monkeypatch.setattr(crypto_ml.production, "expansion_schema", changed)
    with pytest.raises(ProductionError, match=r"1 problem .*commit 5a6a99b.*\n- rsi_14 is defined"):
        load_production(settings=project)
    monkeypatch.setattr(
        crypto_ml.production, "expansion_schema", lambda *a, **m: schema(*a, **m)[::-1]
    )
    with pytest.raises(ProductionError, match="the model's columns are"):
        load_production(settings=project)


def test_a_feature_that_is_not_here(project: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(FEATURES, "zscore")
    with pytest.raises(ProductionError, match=r"needs a feature that is not here: .*zscore"):
        load_production(settings=project)


# damage


@pytest.fixture
def copy(project: Settings, tmp_path: Path) -> Path:
    return shutil.copytree(project.models_folder, tmp_path / "models")


def test_nothing_is_live(project: Settings, tmp_path: Path) -> None:
    with pytest.raises(ProductionError, match=r"nothing is live: .*`crypto-ml promote RUN`"):
        load_production(tmp_path, settings=project)
    run = next(project.runs_folder.iterdir())
    shutil.copytree(run / "bundle", tmp_path / "production")
    with pytest.raises(
        ProductionError, match=r"has no production_model_metadata\.json, so it is no version"
    ):
        load_production(tmp_path, settings=project)


def test_any_file_that_is_damaged_or_lost(project: Settings, copy: Path) -> None:
    folder = copy / "production"
    for path in sorted(folder.iterdir()):
        original = path.read_bytes()
        path.chmod(0o644)
        for data in (
            original[:-9],
            original[:9] + bytes([original[9] ^ 1]) + original[10:],
            b"",
            None,
        ):
            path.unlink() if data is None else path.write_bytes(data)
            with pytest.raises(ProductionError, match=r"crypto-ml (repair|promote)"):
                load_production(copy, settings=project)
        path.write_bytes(original)
    load_production(copy, settings=project)


def test_an_encrypted_version(
    project: Settings, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = new_encryption_key()
    encrypt_folder(copy / "production", key)
    with pytest.raises(CryptoMLError, match="encrypt"):
        load_production(copy, settings=project)
    monkeypatch.setenv("CRYPTO_ML_ENCRYPTION_KEY", key.secret.reveal())
    assert load_production(copy, settings=project).version.name.startswith("v0001")


def test_version_and_models_are_of_one_folder(
    project: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A switch between two reads is noticed: the description must be the one in the manifest."""
    read = versions.metadata_bytes
    told = [b"{}", b"{}"]

    def switched(folder: Path) -> bytes:
        return told.pop() if told else read(folder)

    monkeypatch.setattr(crypto_ml.production, "metadata_bytes", switched)
    assert load_production(settings=project).version.name.startswith("v0001")
    monkeypatch.setattr(crypto_ml.production, "metadata_bytes", lambda folder: b"{}")
    with pytest.raises(ProductionError, match="replaced faster than it can be read"):
        load_production(settings=project)


# what it was worth, and what comes next


def test_realised_rows_come_after_everything_that_was_learned(live: Production) -> None:
    candles = market_candles(1_200, days_old=0)
    rows = realised_predictions(live, candles)
    assert rows.index[0] == pd.Timestamp(live.version.metadata["data"]["end"])
    assert rows["label_end"].max() <= candles.known_at[-1]
    assert rows.index[0] > pd.Timestamp(live.version.metadata["training_span"]["end"])
    assert len(rows) == 30 * 24 - 1
    again = live.predict_proba(candles)
    assert rows["ensemble"].equals(again.loc[rows.index].rename("ensemble"))


def test_what_a_run_learned_from(project: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    run = next(project.runs_folder.iterdir())
    assert run_inputs(run) is None, "the market's seed gives other candles: not the run's"
    same = market_candles(1_200, days_old=30)
    opened = type("Opened", (), {"candles": same})
    monkeypatch.setattr(crypto_ml.production, "open_market", lambda parameters: opened)
    inputs = run_inputs(run)
    assert inputs is not None
    assert list(inputs.columns) == ["close", "rsi_14", "zscore"]
    assert not inputs.isna().to_numpy().any()
    seen: list[Any] = []
    monkeypatch.setattr(
        crypto_ml.production, "evaluate_gates", lambda run, s, **more: seen.append(more["inputs"])
    )
    judge_run(run, project)
    judge_run(run, project, champion=project.models_folder / "production")
    assert seen[0] is None
    assert inputs.equals(seen[1])


# commands


@pytest.fixture
def crypto_ml_in(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    def run(settings: Settings, command: Any, *arguments: str) -> str:
        monkeypatch.setattr(commands, "load_settings", lambda: settings)
        return CliRunner().invoke(command, arguments, catch_exceptions=False).output

    return run


def test_the_commands(project: Settings, tmp_path: Path, crypto_ml_in: Callable[..., str]) -> None:
    ours = replace(project, root=tmp_path)
    say = functools.partial(crypto_ml_in, ours)
    assert (
        say(commands.production) == "Nothing is live; `crypto-ml promote RUN` makes a run live.\n"
    )
    assert say(commands.production, "history") == "Nothing was ever live.\n"
    first = fabricated_run(ours.runs_folder, days_old=30, bars=1_200)
    fabricated_run(ours.runs_folder, bars=1_200)
    with pytest.raises(PromotionRefused, match="enough rows"):
        say(commands.promote, first.name)
    told = say(commands.promote, first.name, "--force", "--reason", "to begin")
    assert "promote (forced): v0001-" in told
    assert "fail           enough rows" in told
    assert ", in the place of v0001-" in say(commands.promote, "latest", "--force", "--reason", "2")
    assert "rollback: v0001-" in say(commands.rollback, "--reason", "worse")
    shown = say(commands.production)
    assert "why      rollback: worse" in shown
    assert "now: not known. 0 outcomes are known in sim:clear since its training" in shown
    assert len(say(commands.production, "history").splitlines()) == 3
    moment = pd.Timestamp.now(tz="UTC") + HOUR
    at = say(commands.production, "history", "--at", f"{moment:%Y-%m-%d %H:%M} UTC")
    assert "rollback: v0001-" in at
    assert len(at.splitlines()) == 1
    assert say(commands.production, "history", "--at", "2020-01-01").startswith("Nothing was live")
    assert "--at 'soon'" in say(commands.production, "history", "--at", "soon")
    assert "v0002-" in say(commands.promote, "v0002", "--force", "--reason", "after all")


def test_the_score_now(
    project: Settings, monkeypatch: pytest.MonkeyPatch, crypto_ml_in: Callable[..., str]
) -> None:
    newest: Any = (market_candles(1_200, days_old=0), {})
    monkeypatch.setattr(crypto_ml.production, "newest_candles", lambda run: newest)
    shown = crypto_ml_in(project, commands.production)
    assert "719" in shown.splitlines()[-1]
    assert shown.splitlines()[-1].startswith("  rows")
