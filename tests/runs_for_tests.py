"""Whole run folders in a fraction of a second, without training: see `fabricated_run`."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from small_bundles import SMALL, WEIGHTS

from crypto_ml.bundle import save_bundle
from crypto_ml.candles import Candles, candles_from_frame, quality_summary
from crypto_ml.costs import cost_verdict
from crypto_ml.ensemble import ProductionEnsemble
from crypto_ml.features import feature_matrix, feature_schema, realised_volatility
from crypto_ml.labels import Labels, make_labels
from crypto_ml.leak_report import LeakReport
from crypto_ml.models import FoldFits, make_model
from crypto_ml.predictions import complete_rows, out_of_sample
from crypto_ml.runs import (
    CodePart,
    ProcessPart,
    RunRecord,
    StepPart,
    artifact_hashes,
    describe_data,
    describe_folds,
    package_versions,
    plain,
    read_record,
    write_atomically,
)
from crypto_ml.scores import BASELINES, baseline_probabilities, score_table
from crypto_ml.settings import RunParameters
from crypto_ml.simulate import SimulatedMarket, simulate
from crypto_ml.splits import Fold, make_folds
from crypto_ml.verdict import verdict

FEATURES = ("close", "rsi_14", "zscore")
LABEL = {"kind": "threshold", "horizon": 1, "threshold": 0.003}
HISTORY, ANCHOR = 12_000, pd.Timestamp("2025-01-01", tz="UTC")
EVIDENCE = {"resamples": 100, "confidence": 0.95, "seed": 42}
_numbers = itertools.count()


# The market


@functools.cache
def _simulated() -> SimulatedMarket:
    return simulate("sim:clear", bars=HISTORY, seed=7, end=ANCHOR)


@functools.cache
def _shift() -> pd.Timedelta:
    """Move the market so that its last bar closed within the last hour; the same all process."""
    return pd.Timestamp.now(tz="UTC").floor("h") - ANCHOR


def market_candles(bars: int = 9_000, days_old: float = 1) -> Candles:
    """Return the bars of SIM-CLEAR 1h that a fabricated run of the same arguments is about.

    The values are the same in every process and at every time of day; the time stamps are such
    that the last bar closed `days_old` days (to 1 hour more) ago. All spans are cut out of one
    history: runs of different ages overlap, and agree where they do. ``days_old=0`` goes up to
    now, so that ``market_candles(bars, 0)`` is what a trading process would see.
    """
    last = HISTORY - round(days_old * 24)
    if not 0 < bars <= last:
        raise ValueError(f"the history has {last} bars until then, not {bars}")
    frame = _simulated().candles.frame.iloc[last - bars : last]
    moved = frame.set_axis((frame.index + _shift()).as_unit("ms").rename("timestamp"))
    return candles_from_frame(moved, _simulated().candles.market, "sim:clear")


def _truth(candles: Candles) -> pd.DataFrame:
    truth = _simulated().true_probabilities("threshold", 1, LABEL["threshold"])  # type: ignore[arg-type]
    return truth.set_axis((truth.index + _shift()).as_unit("ms")).loc[candles.index]


# The predictions


def _chances(y: np.ndarray, skill: float, seed: int) -> np.ndarray:
    """Give the true probability of y = 1 for one who sees a noisy hint, skill deviations apart."""
    base = y.mean()
    rng = np.random.default_rng([seed, 1])
    if skill == 0:  # a probability that varies as real ones do, and knows nothing
        logit = np.log(base / (1 - base)) + 0.3 * rng.standard_normal(len(y))
    else:
        hint = skill * y + rng.standard_normal(len(y))
        logit = np.log(base / (1 - base)) + skill * hint - skill**2 / 2
    return 1 / (1 + np.exp(-logit))


def _predict(
    candles: Candles, rows: pd.DataFrame, labels: Labels, folds: list[Fold], p: np.ndarray
) -> pd.DataFrame:
    tested = np.concatenate([fold.test for fold in folds])
    numbers = np.concatenate([np.full(len(fold.test), fold.number) for fold in folds])
    members = pd.DataFrame(dict.fromkeys(WEIGHTS, p[tested]), index=rows.index[tested])
    fits = FoldFits(members, tested, numbers.astype(np.int8), {}, pd.DataFrame())
    volatility = realised_volatility(candles).reindex(rows.index)
    baselines = baseline_probabilities(
        labels.frame, folds, rows.index, volatility=volatility, timeframe=candles.timeframe
    )
    return out_of_sample(rows, folds, fits, WEIGHTS, baselines, _truth(candles))


# The models, really trained


@functools.cache
def _models(seed: int, bars: int, days_old: float) -> dict[str, Any]:
    candles = market_candles(bars, days_old)
    rows = complete_rows(feature_matrix(candles, FEATURES), make_labels(candles, **LABEL).frame)  # type: ignore[arg-type]
    X, y = rows[list(FEATURES)], rows["y"]
    return {name: make_model(name, SMALL[name], seed).fit(X, y) for name in SMALL}


# The run


def _clean_audit() -> dict[str, Any]:
    audited = [f"features: {name}" for name in FEATURES] + ["labels: y", "folds: holdout"]
    tried = {"features, future": "2 cuts", "labels, future": "2 cuts", "folds, overlap": "4 folds"}
    return LeakReport("the run", "simulated SIM-CLEAR 1h", [], audited, tried).to_dict()


def _evidence(predictions: pd.DataFrame, candles: Candles) -> dict[str, Any]:
    predictors = ["ensemble", *WEIGHTS, *BASELINES]
    scores = [
        score_table(predictions, predictors, split=split, resamples=0).assign(split=split)
        for split in ("out_of_fold", "holdout")
    ]
    close = candles.frame["close"]
    decided = verdict(predictions, **EVIDENCE)  # type: ignore[arg-type]
    return {
        "verdict": decided.to_dict(),
        "luck": {"trials": 1, "verdict": {"outcome": decided.outcome, "trials": 1}},
        "costs": cost_verdict(predictions, close, candles.timeframe, **EVIDENCE).to_dict(),  # type: ignore[arg-type]
        "scores": pd.concat(scores),
    }


@functools.cache
def _versions() -> dict[str, str]:
    return package_versions()


def _folder(runs_folder: Path, market: str, at: pd.Timestamp, seed: int) -> Path:
    mark = f"{(seed * 4096 + next(_numbers)) % 16**6:06x}"
    folder = runs_folder / f"{at:%Y%m%d-%H%M%S}-{market}-{mark}"
    folder.mkdir(parents=True)
    return folder


def merged(old: Any, new: Any) -> Any:
    """Merge mappings at every depth; anything else is replaced."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return new
    return {**old, **{key: merged(old.get(key), value) for key, value in new.items()}}


def change_record(run: Path, **changes: Any) -> Path:
    """Change the run.json of a fabricated run: mappings are merged, all else is replaced.

    ``change_record(run, verdict={"outcome": "worse than chance"}, status="failed")``
    """
    record = merged(read_record(run).model_dump(), plain(changes))
    write_atomically(run / "run.json", RunRecord.model_validate(record).model_dump_json(indent=1))
    return run


def rewrite_predictions(run: Path, alter: Callable[[pd.DataFrame], pd.DataFrame]) -> Path:
    """Change predictions.parquet of a fabricated run and record the new hash; scores stay."""
    path = run / "predictions.parquet"
    alter(pd.read_parquet(path)).to_parquet(path)
    return change_record(run, artifacts=artifact_hashes(run))


def fabricated_run(
    runs_folder: Path,
    *,
    edge: bool = True,
    days_old: float = 1,
    seed: int = 1,
    dirty: bool = False,
    skill: float | None = None,
    bars: int = 9_000,
    alter: Callable[[pd.DataFrame], pd.DataFrame] | None = None,
    **changes: Any,
) -> Path:
    """Make a whole run folder as `crypto-ml train` leaves it, and return it.

    ``run = fabricated_run(tmp_path / "runs")``. It takes a fraction of a second, the first one of
    a process some more (imports, and fits that are kept). The market is a simulated one, SIM-CLEAR
    1h, whose last bar closed `days_old` days ago: ``market_candles(days_old=0)`` gives its bars up
    to now, and ``load_bundle(run / "bundle").ensemble`` answers to the rows of
    ``feature_matrix(candles, FEATURES).dropna()``.

    Real are candles, three features, labels, three folds and a holdout, the bundle (three small
    models trained on the rows), baselines, verdict, costs, scores (without intervals) and every
    hash in run.json. Made up are the out-of-sample probabilities of the ensemble and its members
    (calibrated, and as skilful as asked for), a clean audit, the steps, and the report.

    With ``edge=True`` a run passes every gate of the default settings, against no champion.

    Parameters
    ----------
    runs_folder : Path
        Made where it is missing. The folder inside is named as a real run's; none twice.
    edge : bool
        Probabilities that know something of the outcome (verdict "edge"), or nothing.
    days_old : float
        Age of the last bar; the run ended a minute after it closed.
    seed : int
        Another seed gives other models and other probabilities of the same market and outcomes:
        a challenger for a champion.
    dirty : bool
        The code had uncommitted changes.
    skill : float, optional
        How much the probabilities know, instead of `edge`: the distance between the hints for yes
        and for no, in standard deviations. ``edge=True`` is 0.8 (an AUC of 0.71); 0 is a coin.
    bars : int
        At most the history less 24 for each day of age.
    alter : callable, optional
        Changes the table of predictions before anything is computed from it.
    **changes
        Parts of run.json to plant: mappings are merged, anything else is replaced, such as
        ``verdict={"outcome": "worse than chance"}``, ``audit={"clean": False}``,
        ``status="failed"``. ``parameters={"source": "binance"}`` makes it a run that is not
        simulated. `change_record` and `rewrite_predictions` do the same afterwards.
    """
    candles = market_candles(bars, days_old)
    labels = make_labels(candles, **LABEL)  # type: ignore[arg-type]
    features = feature_matrix(candles, FEATURES)
    rows = complete_rows(features[realised_volatility(candles).notna()], labels.frame)
    folds = make_folds(rows.index, rows["label_end"], 3, 0.2)
    skill = (0.8 if edge else 0.0) if skill is None else skill
    chances = _chances(rows["y"].to_numpy(dtype=float), skill, seed)
    predictions = _predict(candles, rows, labels, folds, chances)
    predictions = alter(predictions) if alter else predictions
    end = candles.known_at[-1] + pd.Timedelta(minutes=1)
    folder = _folder(runs_folder, "SIM-CLEAR-1h", end, seed)
    predictions.to_parquet(folder / "predictions.parquet")
    git = {"commit": "5a6a99b" + "0" * 33, "dirty": dirty}
    save_bundle(
        folder / "bundle",
        ProductionEnsemble(_models(seed, bars, days_old), WEIGHTS),
        feature_schema=feature_schema(FEATURES),
        label_definition=labels.definition,
        market=vars(candles.market),
        training_span=(rows.index[0], rows.index[-1]),
        run_id=folder.name,
        git=git,
    )
    title = f"<title>{folder.name}</title><h1>Run {folder.name}</h1>"
    (folder / "report.html").write_text(f"<!doctype html><html lang='en'>{title}</html>\n")
    notebook = {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (folder / "report.ipynb").write_text(json.dumps(notebook))
    (folder / "run.log").write_text(f"{end.isoformat()} [run] succeeded\n")
    parameters = RunParameters(
        source="sim:clear", features=FEATURES, n_splits=3, resamples=100, seed=seed, **SMALL
    )
    record = RunRecord(
        run_id=folder.name,
        status="succeeded",
        created_at=(end - pd.Timedelta(seconds=30)).isoformat(),
        finished_at=end.isoformat(),
        parameters=plain(parameters.model_dump(exclude={"run_folder"})),
        seed=seed,
        process=ProcessPart(pid=2**22 - 1, started=0.0, host="elsewhere"),
        code=CodePart(version="0.1.0", git_commit=str(git["commit"]), git_dirty=dirty),
        versions=_versions(),
        market=vars(candles.market),
        step="report",
        steps=[StepPart(name="models", seconds=12.5, peak_memory_mb=400.0)],
        data=plain(describe_data(candles, quality_summary(candles))),
        features=plain(feature_schema(FEATURES)),
        labels=plain(
            {
                **labels.definition,
                "hash": labels.definition_hash,
                "dropped": labels.dropped,
                "rows": len(rows),
                "base_rate": rows["y"].mean(),
            }
        ),
        folds=plain(describe_folds(folds, rows.index)),
        audit=_clean_audit(),
        **plain(_evidence(predictions, candles)),
        artifacts=artifact_hashes(folder),
    )
    write_atomically(folder / "run.json", record.model_dump_json(indent=1) + "\n")
    return change_record(folder, **changes) if changes else folder
