"""The life of a model, from its training to its end, by the commands; run this file to read it."""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pandas as pd
import pytest
from click.testing import CliRunner
from operation_projects import train as put_into_training
from runs_for_tests import change_record, fabricated_run, market_candles

import crypto_ml.audit_log
import crypto_ml.canary_commands
import crypto_ml.guard
import crypto_ml.registry
from crypto_ml.canary_commands import canary
from crypto_ml.candles import Candles, candles_from_frame
from crypto_ml.log_commands import audit_log
from crypto_ml.operation_commands import repair
from crypto_ml.registry_commands import production, promote, rollback
from crypto_ml.runs import read_record
from crypto_ml.settings import load_settings
from crypto_ml.shadow import Answering
from crypto_ml.terminal import Friendly

OUTCOMES = 20
HOUR = pd.Timedelta(hours=1)


class Clock:
    """The time that the registry and the commands see."""

    def __init__(self, start: pd.Timestamp) -> None:
        self.time = start

    def now(self, _zone: object = None) -> datetime:
        return self.time.to_pydatetime()

    def install(self, patch: pytest.MonkeyPatch) -> None:
        clock = self

        class Time(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
                return clock.now().astimezone(tz or UTC)

        patch.setattr(crypto_ml.audit_log, "datetime", Time)
        patch.setattr(crypto_ml.registry, "_now", lambda: clock.time)
        patch.setattr(crypto_ml.canary_commands, "_now", lambda: clock.time)


class Life:
    """A project, its commands, and a trading process that asks for an answer every hour."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        text = (load_settings().root / "settings.ini").read_text(encoding="utf-8")
        text, changed = re.subn(r"canary_outcomes = \d+", f"canary_outcomes = {OUTCOMES}", text)
        assert changed == 1
        (root / "settings.ini").write_text(text, encoding="utf-8")
        patch.chdir(root)
        patch.setattr(crypto_ml.guard, "candles_by_now", lambda _version: self.market())
        self.settings = load_settings()
        self.history = market_candles(1_500, days_old=0)
        self.clock = Clock(self.history.known_at[-900] + pd.Timedelta(minutes=5))
        self.clock.install(patch)
        self.trading = Answering(self.settings)
        self.told: list[str] = []
        self.runs: dict[str, str] = {}

    def market(self, bars: int = 1_500) -> Candles:
        """Return the newest closed bars."""
        closed = self.history.frame[self.history.known_at <= self.clock.time].iloc[-bars:]
        return candles_from_frame(closed, self.history.market, "sim:clear")

    def say(self, text: str) -> None:
        self.told.append(text)

    def train(self, **about: Any) -> str:
        run = fabricated_run(self.settings.runs_folder, days_old=40, **about)
        scores = [score.model_dump() for score in read_record(run).scores]
        scores = [{**score, "low": score["value"], "high": score["value"]} for score in scores]
        names = ("lightgbm", "xgboost", "random_forest", "ensemble")
        overfit = [{"model": name, "metric": "weighted_f1", "in_sample": 0.9} for name in names]
        change_record(run, scores=scores, overfit=overfit)
        put_into_training(self.settings, run)
        self.say(f"$ crypto-ml train\nrun {run.name}: succeeded")
        return run.name

    def run(self, command: click.Command, *arguments: str, code: int = 0) -> str:
        """Run a command as `crypto-ml` does, and return what it printed."""
        main = Friendly("crypto-ml", commands={"it": command})
        result = CliRunner().invoke(main, ["it", *arguments])
        assert result.exit_code == code, result.output
        quoted = [f'"{word}"' if " " in word else word for word in arguments]
        self.say(f"$ crypto-ml {' '.join([command.name or '', *quoted])}\n{result.output.rstrip()}")
        return result.output

    def trade(self, hours: int, failing: tuple[str, ...] = ()) -> list[str]:
        """Ask for so many answers, one each hour; return which version gave each."""
        answered = []
        for _ in range(hours):
            self.clock.time += HOUR
            routed = self.trading.answer(self.market(300), now=self.clock.time)
            answered.append(routed.answer.version)
            assert tuple(routed.failed) == failing, routed.failed
        counts = ", ".join(f"{answered.count(name)} by {name}" for name in dict.fromkeys(answered))
        failed = "".join(f"; {what}: {why}" for what, why in routed.failed.items())
        self.say(f"(hours: {hours}, answers: {counts}{failed})")
        return answered


def live_one_life(life: Life) -> None:
    first = life.train(skill=0.8, seed=1)
    life.run(promote, first, "--reason", "the first model")
    life.trade(3)
    second = life.train(skill=1.2, seed=2)
    assert "is in the shadow" in life.run(canary, "start", second)
    assert "20 more outcomes are needed" in life.run(canary, "status")
    assert "outcomes of this stage" in life.run(canary, "advance", code=2)
    life.run(canary, "abort", "--reason", "the desk asks for another day")
    life.run(canary, "start", "v0002")
    assert set(life.trade(OUTCOMES + 2)) == {f"v0001-{first}"}
    assert "Nothing has to be done" in life.run(canary, "guard")
    assert "is canary-10" in life.run(canary, "advance")
    by = life.trade(OUTCOMES + 2)
    assert 0 < by.count(f"v0002-{second}") < OUTCOMES / 2
    assert "is canary-50" in life.run(canary, "advance")
    by = life.trade(OUTCOMES + 2)
    assert OUTCOMES / 4 < by.count(f"v0002-{second}") < OUTCOMES
    life.run(canary, "status")
    assert "is live: it answers 100 %" in life.run(canary, "advance")
    assert set(life.trade(OUTCOMES + 2)) == {f"v0002-{second}"}
    assert "keep" in life.run(canary, "status")
    assert "Nothing has to be done" in life.run(canary, "guard")
    third = life.train(skill=0.8, seed=3)
    assert "better than the champion" in life.run(canary, "start", third, code=1)
    live = life.settings.models_folder / "production"
    model = live / "xgboost.ubj"
    model = model if model.exists() else next(live.glob("xgboost*"))
    model.chmod(0o644)
    model.write_bytes(model.read_bytes()[:-100])
    life.say(f"(100 bytes of {model.name} are lost)")
    assert set(life.trade(1, ("registry",))) == {f"v0002-{second}"}, "in memory"
    assert "whole again" in life.run(repair)
    life.run(rollback, "--reason", "the desk wants the old one back")
    assert set(life.trade(2)) == {f"v0001-{first}"}
    life.run(production, "history")
    life.run(audit_log, "verify")


def test_the_life_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train, gates, shadow, canary, live, a worse one refused, damage, repair, rollback, audit."""
    live_one_life(Life(tmp_path, monkeypatch))


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        life = Life(Path(place), patch)
        try:
            live_one_life(life)
        finally:
            sys.stdout.write("\n\n".join(life.told) + "\n")
