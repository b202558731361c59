"""From a run to a live answer: a version holds its models compiled, and they answer as it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from runs_for_tests import fabricated_run, market_candles

from crypto_ml import compiled, versions
from crypto_ml.bundle import BundleError
from crypto_ml.live import LivePredictor
from crypto_ml.production import load_production
from crypto_ml.registry import LocalRegistry
from crypto_ml.settings import load_settings

Forms = dict[str, Callable[[Path], bytes]]


def test_a_promoted_version_answers_bar_by_bar_as_it_does_from_candles(
    compiled_forms: Forms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "FURTHER_FILES", compiled_forms)
    settings = replace(load_settings(), root=tmp_path)
    run = fabricated_run(tmp_path / "runs")
    version = LocalRegistry(settings.models_folder, settings).promote(run)
    assert {"ensemble.onnx", "production_model_metadata.json"} <= {
        path.name for path in version.folder.iterdir()
    }
    frame = market_candles(1500, 0.0).frame
    now = frame.index[-1] + pd.Timedelta("1h")
    expected = load_production(settings.models_folder, settings=settings, now=now)
    answers = np.asarray(expected.predict_proba(frame, now=now)).ravel()
    live = LivePredictor(settings.models_folder / "production", now=now)
    start = len(frame) - 20
    values = [frame[name].to_numpy() for name in ("open", "high", "low", "close", "volume")]
    times = frame.index.as_unit("ms").asi8
    live.load(times[:start], *(column[:start] for column in values), market=asdict(expected.market))
    for bar in range(start, len(frame)):
        answer = live.update(int(times[bar]), *(float(column[bar]) for column in values))
        assert answer == pytest.approx(answers[bar - len(frame)], abs=1e-6)


def test_models_whose_compiled_form_answers_otherwise_are_not_promoted(
    compiled_forms: Forms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "FURTHER_FILES", compiled_forms)

    def off(*_: object) -> None:
        raise BundleError("the compiled ensemble differs from the models in row 3")

    monkeypatch.setattr(compiled, "verify_compiled", off)
    settings = replace(load_settings(), root=tmp_path)
    with pytest.raises(BundleError, match="differs from the models"):
        LocalRegistry(settings.models_folder, settings).promote(fabricated_run(tmp_path / "runs"))
    assert not (settings.models_folder / "production").exists()
