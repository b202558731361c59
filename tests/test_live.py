"""A bar at a time gives what all candles at once give, or a refusal."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from small_bundles import SMALL, WEIGHTS

from crypto_ml import live as module
from crypto_ml.bundle import load_bundle, save_bundle
from crypto_ml.candles import Candles, candles_from_frame
from crypto_ml.compiled import COMPILED_FILE, compile_bundle
from crypto_ml.encryption import EncryptionError, encrypt_folder, new_encryption_key
from crypto_ml.ensemble import ProductionEnsemble
from crypto_ml.errors import BundleError, CandlesError
from crypto_ml.features import feature_matrix, feature_schema
from crypto_ml.labels import make_labels
from crypto_ml.live import ExpiredModelError, LiveError, LivePredictor
from crypto_ml.manifest import Git, json_bytes, manifest_bytes
from crypto_ml.models import fit_final
from crypto_ml.production import Production
from crypto_ml.signatures import SignatureError, new_key, sign_folder
from crypto_ml.simulate import simulate
from crypto_ml.versions import parse_version

NAMES = ("close", "rsi_14", "atr_14", "zscore")
RUN = "20250101-000000-SIM-CLEAR-1h-5f2a1c"
MARKET = {"exchange": "simulated", "symbol": "SIM-CLEAR", "timeframe": "1h"}
TODAY = datetime(2025, 1, 10, tzinfo=UTC)
HOUR = 3_600_000


@functools.cache
def candles(gaps: int = 0) -> Candles:
    return simulate("sim:clear", bars=900, seed=5, end="2025-01-08", gaps=gaps).candles


def seal(folder: Path, **changes: Any) -> None:
    """Write the files that make a bundle a version, and the manifest over all."""
    described = {
        "version": "v0001-example",
        "run_id": RUN,
        "promoted_at": "2025-01-08T00:00:00+00:00",
        "expires_after": 30,
        "n_features": len(NAMES),
        "feature_names": list(NAMES),
        "individual_models": {},
        "weights": WEIGHTS,
        "decision_threshold": 0.5,
        "score": {},
        "gates": [],
        "market": MARKET,
        "inputs": {"features": list(NAMES), "expand": {}, "max_gap": 3},
        **changes,
    }
    (folder / module.METADATA).write_bytes(json_bytes(described))
    files = {f.name: f.read_bytes() for f in folder.iterdir() if f.suffix != ".sig"}
    old = json.loads(files.pop("manifest.json"))
    git = Git(commit="0" * 40, dirty=False)
    new = manifest_bytes(files, changes.get("run_id", RUN), git, old["library_versions"])
    (folder / "manifest.json").write_bytes(new)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("live") / "version"
    matrix, labels = feature_matrix(candles(), NAMES).dropna(), make_labels(candles())
    rows = matrix.index.intersection(labels.frame.index)
    models = fit_final(matrix.loc[rows], labels.frame.loc[rows, "y"], SMALL, seed=1, jobs=1)
    save_bundle(
        folder,
        ProductionEnsemble(models, WEIGHTS),
        feature_schema=feature_schema(NAMES),
        label_definition=labels.definition,
        market=MARKET,
        training_span=(rows[0], rows[-1]),
        run_id=RUN,
        git={"commit": "0" * 40, "dirty": False},
    )
    (folder / COMPILED_FILE).write_bytes(compile_bundle(folder))
    seal(folder)
    return folder


@pytest.fixture
def version(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "version"))


def opened(folder: Path, **options: Any) -> LivePredictor:
    return LivePredictor(
        folder, **{"trusted": [], "require_signature": False, "now": TODAY, **options}
    )


def bars_of(some: Candles) -> list[list[float]]:
    times = some.index.as_unit("ms").asi8.tolist()
    values = some.frame[list(module.COLUMNS)].to_numpy().tolist()
    return [[time, *bar] for time, bar in zip(times, values, strict=True)]


def reference(folder: Path, some: Candles) -> pd.Series:
    data = (folder / module.METADATA).read_bytes()
    production = Production(parse_version(data, folder, "live"), load_bundle(folder))
    return production.predict_proba(some, now=some.known_at[-1])


# Parity


@given(st.integers(300, 900), st.integers(0, 40), st.integers(0, 2))
@settings(max_examples=12, deadline=None)
def test_bar_by_bar_is_what_all_candles_give(made: Path, stop: int, tail: int, gaps: int) -> None:
    some = candles(gaps)
    some = candles_from_frame(some.frame.iloc[:stop], some.market, some.source)
    try:
        expected = reference(made, some).reindex(some.index)
    except CandlesError:  # the newest bar follows a gap
        assume(False)
    live = opened(made)
    bars = bars_of(some)
    begin = stop - 1 - tail
    loaded = live.load(
        *(np.array(column) for column in zip(*bars[:begin], strict=True)), market=MARKET
    )
    given_ = [loaded, *(live.update(*bar) for bar in bars[begin:])]
    for answer, wanted in zip(given_, expected.iloc[begin - 1 :], strict=True):
        assert (answer is None) == np.isnan(wanted)
        assert answer is None or abs(answer - wanted) <= 1e-6


def test_candles_warm_it_up_at_once(made: Path) -> None:
    live = opened(made)
    assert live.ensemble.engine == "onnxruntime"
    last = live.load(candles())
    assert live.ensemble.engine == "numba"
    assert abs(last - reference(made, candles()).iloc[-1]) <= 1e-6  # type: ignore[operator]
    other = candles_from_frame(candles().frame, type(candles().market)("x", "Y", "1h"), "x")
    with pytest.raises(CandlesError, match="knows"):
        opened(made).load(other)


def test_times_in_other_forms(made: Path) -> None:
    bars = bars_of(candles())
    forms = [
        lambda t: t,
        np.int64,
        lambda t: np.datetime64(t, "ms"),
        lambda t: pd.Timestamp(t, unit="ms", tz="UTC"),
        lambda t: datetime.fromtimestamp(t / 1000, UTC),
    ]
    answers = []
    for form in forms:
        live = opened(made)
        live.load(candles_from_frame(candles().frame.iloc[:-1], candles().market, "sim"))
        answers.append(live.update(form(bars[-1][0]), *bars[-1][1:]))
    assert len(set(answers)) == 1
    with pytest.raises(CandlesError, match="expected its open"):
        opened(made).update("2025-01-01", *bars[0][1:])
    with pytest.raises(CandlesError, match="expected its open"):
        opened(made).update(datetime(2025, 1, 1), *bars[0][1:])


# Bars that are refused


@pytest.mark.parametrize("moved", [0, -HOUR, HOUR // 2, HOUR + 60_000])
def test_a_bar_out_of_order_or_off_the_grid(made: Path, moved: int) -> None:
    live = opened(made)
    live.load(candles_from_frame(candles().frame.iloc[:-1], candles().market, "sim"))
    before, last = bars_of(candles())[-2:]
    with pytest.raises(CandlesError):
        live.update(before[0] + moved, *last[1:])
    assert live.update(*last) == pytest.approx(reference(made, candles()).iloc[-1], abs=1e-6)


@pytest.mark.parametrize("place", range(1, 6))
@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_a_bar_that_is_no_bar(made: Path, place: int, value: float) -> None:
    bar = bars_of(candles())[0]
    bar[place] = value
    with pytest.raises(CandlesError):
        opened(made).update(*bar)


# Versions that are refused


def test_age_is_that_of_the_bar(made: Path) -> None:
    live = opened(made)
    end = datetime(2025, 2, 7, tzinfo=UTC)
    assert live.expires_at == end
    with pytest.raises(ExpiredModelError, match="expired 2025-02-07 00:00 UTC"):
        opened(made, now=end)
    opened(made, now=end - timedelta(seconds=1))
    bar = bars_of(candles())[0][1:]
    last = round(end.timestamp() * 1000) - HOUR
    assert live.update(last - HOUR, *bar) is None
    with pytest.raises(ExpiredModelError, match="allow_stale=True"):
        live.update(last, *bar)
    assert opened(made, now=end, allow_stale=True).update(last, *bar) is None


@pytest.mark.parametrize("name", [COMPILED_FILE, module.METADATA, "lightgbm_model.txt"])
def test_files_missing_and_changed(version: Path, name: str) -> None:
    path = version / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-9] + b"X" + whole[-8:])
    with pytest.raises(BundleError, match="was changed"):
        opened(version)
    path.unlink()
    with pytest.raises(BundleError, match="is missing"):
        opened(version)


def test_versions_that_cannot_answer_bar_by_bar(version: Path, monkeypatch: Any) -> None:
    whole = (version / COMPILED_FILE).read_bytes()
    seal(version, inputs={})
    with pytest.raises(LiveError, match="does not describe a version"):
        opened(version)
    seal(version, market={**MARKET, "symbol": "BTCUSDT"})
    with pytest.raises(LiveError, match="BTCUSDT"):
        opened(version)
    seal(version, run_id="20250102-000000-SIM-CLEAR-1h-000000")
    with pytest.raises(LiveError, match="was not made of the models beside it"):
        opened(version)
    (version / COMPILED_FILE).unlink()
    seal(version)
    with pytest.raises(LiveError, match=r"has no ensemble\.onnx"):
        opened(version)
    (version / COMPILED_FILE).write_bytes(whole)
    seal(version)
    monkeypatch.setattr("crypto_ml.live_features.live_engine_hash", lambda: "f" * 64)
    with pytest.raises(LiveError, match="compiled with other code for live features"):
        opened(version).load(candles())


def test_features_without_a_live_twin(version: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("crypto_ml.compiled_checks.live_proof", lambda *given: None)
    for name in (COMPILED_FILE, module.METADATA):
        (version / name).unlink()
    files = {f.name: f.read_bytes() for f in version.iterdir() if f.name != "manifest.json"}
    versions = json.loads((version / "manifest.json").read_bytes())["library_versions"]
    git = Git(commit="0" * 40, dirty=False)
    (version / "manifest.json").write_bytes(manifest_bytes(files, RUN, git, versions))
    (version / COMPILED_FILE).write_bytes(compile_bundle(version))
    seal(version)
    with pytest.raises(LiveError, match="features without a live twin"):
        opened(version)


def test_signatures_count_as_asked(version: Path, tmp_path: Path) -> None:
    with pytest.raises(SignatureError, match="is not signed"):
        opened(version, require_signature=True)
    key = new_key(tmp_path / "keys", "lab")
    sign_folder(version, key)
    live = opened(version, trusted=[key.public], require_signature=True)
    assert live.signer is not None
    with pytest.raises(SignatureError, match="stranger"):
        opened(version, require_signature=True)


def test_a_version_encrypted_at_rest(version: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Signed as it was, encrypted since; the members are compared in the clear."""
    expected = opened(version).load(candles())
    signing, key = new_key(tmp_path / "keys", "lab"), new_encryption_key()
    sign_folder(version, signing)
    encrypt_folder(version, key)
    assert not (version / COMPILED_FILE).exists()
    monkeypatch.delenv("CRYPTO_ML_ENCRYPTION_KEY", raising=False)
    with pytest.raises(EncryptionError, match="no key is set"):
        opened(version)
    monkeypatch.setenv("CRYPTO_ML_ENCRYPTION_KEY", new_encryption_key().secret.reveal())
    with pytest.raises(EncryptionError, match="another one"):
        opened(version)
    monkeypatch.setenv("CRYPTO_ML_ENCRYPTION_KEY", key.secret.reveal())
    live = opened(version, trusted=[signing.public], require_signature=True)
    assert live.signer is not None
    assert live.load(candles()) == expected
    path = version / f"{COMPILED_FILE}.enc"
    path.write_bytes(path.read_bytes()[:-1] + b"X")
    with pytest.raises(EncryptionError, match="was damaged, changed or moved"):
        opened(version)


def test_the_projects_own_settings_and_folder(version: Path, monkeypatch: Any) -> None:
    models = version.parent / "models"
    models.mkdir()
    version.rename(models / "production")
    production = SimpleNamespace(require_signature=False)
    found = SimpleNamespace(root=version.parent, models_folder=models, production=production)
    monkeypatch.setattr(module, "load_settings", lambda: found)
    assert LivePredictor(now=TODAY).name == "v0001-example"


# Imports


def test_a_trading_process_needs_few_packages(made: Path) -> None:
    bars = bars_of(candles())[-300:]
    code = f"""
import json, sys
from datetime import datetime, timezone
from crypto_ml.live import LivePredictor
live = LivePredictor({str(made)!r}, trusted=[], require_signature=False,
                     now=datetime(2025, 1, 10, tzinfo=timezone.utc))
first = live.ensemble.probability([60000.0, 50.0, 100.0, 0.0])
early = "numba" in sys.modules
answers = [live.update(*bar) for bar in json.load(sys.stdin)]
heavy = ("sklearn", "lightgbm", "xgboost", "pandas", "skops", "talib")
print(json.dumps([early, [name for name in heavy if name in sys.modules], answers[-1]]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(bars),
        capture_output=True,
        text=True,
        check=True,
    )
    early, heavy, last = json.loads(done.stdout)
    assert not early
    assert heavy == []
    assert 0 < last < 1
