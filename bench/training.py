"""Training beside the script that one would write: `python bench/training.py --pairs 3`.

The models of a run (`fit_folds`: five folds, the holdout, all rows; three models) beside
`cross_val_score` of each model on the same folds, then `fit` and `predict` on all rows, with the
estimators' own number of threads. A walk-forward of 250 windows beside 250 trainings. Each figure
comes from a process of its own, the two sides in turn; "inner" is the work itself, "process" all of
the process with imports and features, "CPU" the processor time of the work, "memory" the most that
the process ever held. Ratios are taken pair by pair; above 1, crypto_ml is faster or smaller.

Scores are compared row by row: the difference in log loss and in AUC with the 95 % interval of a
block bootstrap. Real candles come from CRYPTO_ML_DATA (../shared/data); without them, from the
simulated market. `--growth FILE` measures and plots how the cost grows with the rows instead.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from crypto_ml.splits import Fold

MODELS: dict[str, dict[str, Any]] = {
    "lightgbm": {"n_estimators": 200, "learning_rate": 0.1, "max_depth": 8, "num_leaves": 31},
    "xgboost": {"n_estimators": 200, "learning_rate": 0.1, "max_depth": 8},
    "random_forest": {"n_estimators": 200, "max_depth": 12},
}
WEIGHTS = {"lightgbm": 0.4, "xgboost": 0.4, "random_forest": 0.2}
DATA = Path(os.environ.get("CRYPTO_ML_DATA", "../shared/data"))
MARKETS = ("binance_BTCUSDT", "binance_ETHUSDT", "binance_SOLUSDT")
LONG = "bitfinex_BTCUSD_1m"
WINDOWS, TRAIN_ROWS, TEST_ROWS = 250, 8_640, 24

Rows = tuple["pd.DataFrame", "pd.Series[int]", "pd.DataFrame"]


def rows_of(market: str, count: int, threshold: float = 0.003) -> Rows:
    """Return the last rows of a market: features, outcomes, labels."""
    from crypto_ml.candles import load_candles
    from crypto_ml.features import feature_matrix
    from crypto_ml.labels import make_labels
    from crypto_ml.simulate import simulate

    file = DATA / f"{market}.parquet"
    real = load_candles(file) if file.exists() else None
    candles = real or simulate("sim:clear", bars=count + 1_000).candles
    features = feature_matrix(candles).dropna()
    labels = make_labels(candles, "threshold", horizon=1, threshold=threshold).frame
    index = features.index.intersection(labels.index)[-count:]
    if len(index) < count:
        sys.exit(f"{market} has {len(index)} rows, {count} are asked for")
    return features.loc[index], labels.loc[index, "y"], labels.loc[index]


def folds_of(labels: pd.DataFrame) -> list[Fold]:
    """Return the folds of a run."""
    from crypto_ml.splits import make_folds

    return make_folds(labels.index, labels["label_end"], n_splits=5, holdout=0.2)


def plain_model(name: str, **more: Any) -> Any:
    """Make an estimator as a script does, with its own number of threads."""
    from lightgbm import LGBMClassifier
    from sklearn.ensemble import RandomForestClassifier
    from xgboost import XGBClassifier

    quiet = {"verbosity": -1} if name == "lightgbm" else {}
    kinds = {
        "lightgbm": LGBMClassifier,
        "xgboost": XGBClassifier,
        "random_forest": RandomForestClassifier,
    }
    return kinds[name](**MODELS[name], **quiet, random_state=42, **more)


def fit_ours(rows: Rows) -> Any:
    """Do the model part of a run."""
    from crypto_ml.models import fit_folds

    features, y, labels = rows
    fits = fit_folds(features, y, folds_of(labels), MODELS, seed=42, jobs=0, final=True)
    return fits.probabilities


def fit_plain(rows: Rows) -> Any:
    """Do it as a script does."""
    from sklearn.model_selection import cross_val_score

    features, y, labels = rows
    folds = [(fold.train, fold.test) for fold in folds_of(labels)]
    for name in MODELS:
        cross_val_score(plain_model(name), features, y, cv=folds, scoring="roc_auc")
        plain_model(name).fit(features, y).predict(features)


def walk_windows(labels: pd.DataFrame) -> list[Fold]:
    """Return a window for each of the last 250 days."""
    from crypto_ml.walk_forward import walk_forward_windows

    return walk_forward_windows(
        labels.index, labels["label_end"], WINDOWS, test_size=TEST_ROWS, train_size=TRAIN_ROWS
    )


def walk_ours(rows: Rows) -> Any:
    """Walk forward."""
    from crypto_ml.walk_forward import walk_forward

    features, y, labels = rows
    found = walk_forward(features, y, walk_windows(labels), MODELS["lightgbm"], seed=42)
    return found.probabilities.to_frame()


def walk_plain(rows: Rows) -> Any:
    """Train anew for each window."""
    import numpy as np
    import pandas as pd

    features, y, labels = rows
    windows, found = walk_windows(labels), []
    for window in windows:
        model = plain_model("lightgbm", n_jobs=1)
        model.fit(features.iloc[window.train], y.iloc[window.train])
        found.append(model.predict_proba(features.iloc[window.test])[:, 1])
    places = np.concatenate([window.test for window in windows])
    return pd.DataFrame({"lightgbm": np.concatenate(found)}, index=labels.index[places])


SIDES: dict[str, tuple[Callable[[Rows], Any], Callable[[Rows], Any]]] = {
    "models": (fit_ours, fit_plain),
    "walk": (walk_ours, walk_plain),
}


def run_side(case: str, side: int, market: str, count: int, out: str) -> None:
    """Run one side and print what it took."""
    import crypto_ml.models
    import crypto_ml.walk_forward  # noqa: F401

    rows = rows_of(market, count)
    start, spent = time.perf_counter(), time.process_time()
    found = SIDES[case][side](rows)
    took = {"inner": time.perf_counter() - start, "CPU": time.process_time() - spent}
    if out and found is not None:
        found.to_pickle(out)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({**took, "memory": peak}))


def measure(case: str, side: int, market: str, count: int, out: str = "") -> dict[str, float]:
    """Run one side in a process of its own."""
    start = time.perf_counter()
    asked = ["--case", case, "--side", str(side), "--market", market, "--rows", str(count)]
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__)), *asked, "--out", out],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    process = time.perf_counter() - start
    return {**json.loads(done.stdout.splitlines()[-1]), "process": process}


def summary(values: list[float], digits: int = 3) -> str:
    """Write a median with its range."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}g} ({low:.{digits}g} to {high:.{digits}g})"


def differences(ours: np.ndarray, plain: np.ndarray, y: np.ndarray) -> dict[str, str]:
    """Compare two columns of probabilities, with intervals of a block bootstrap."""
    import numpy as np
    from arch.bootstrap import StationaryBootstrap, optimal_block_length
    from sklearn.metrics import roc_auc_score

    def loss(p: np.ndarray) -> np.ndarray:
        inside = np.clip(p, 1e-15, 1 - 1e-15)
        return -np.where(y == 1, np.log(inside), np.log(1 - inside))

    gap = loss(ours) - loss(plain)
    if not gap.any():
        return {"log loss": "0, every row equal", "AUC": "0, every row equal"}
    block = max(24.0, float(optimal_block_length(gap)["stationary"].iloc[0]))
    drawn = StationaryBootstrap(block, np.arange(len(y)), seed=42).bootstrap(1_000)
    rows = [positions[0][0] for positions in drawn]
    auc = roc_auc_score(y, ours) - roc_auc_score(y, plain)
    aucs = [roc_auc_score(y[r], ours[r]) - roc_auc_score(y[r], plain[r]) for r in rows]

    def said(value: float, draws: list[float]) -> str:
        low, high = np.percentile(draws, [2.5, 97.5])
        return f"{value:+.5f} [{low:+.5f}, {high:+.5f}]"

    losses = said(float(gap.mean()), [float(gap[r].mean()) for r in rows])
    return {"log loss": losses, "AUC": said(auc, aucs)}


def plain_probabilities(rows: Rows) -> pd.DataFrame:
    """Return what the script's models answer on the rows that they are scored on."""
    import numpy as np
    import pandas as pd

    features, y, labels = rows
    folds, found = folds_of(labels), {}
    for name in MODELS:
        answers = []
        for fold in folds:
            model = plain_model(name).fit(features.iloc[fold.train], y.iloc[fold.train])
            answers.append(model.predict_proba(features.iloc[fold.test])[:, 1])
        found[name] = np.concatenate(answers).astype(np.float64)
    return pd.DataFrame(found)


def print_speed(case: str, market: str, count: int, pairs: int, limits: dict[str, float]) -> None:
    """Measure both sides in turn and print a row for each figure."""
    ran = [[measure(case, side, market, count) for side in (0, 1)] for _ in range(pairs)]
    for name in ("inner", "CPU", "process", "memory"):
        ours, plain = ([pair[side][name] for pair in ran] for side in (0, 1))
        ratios = [other / own for own, other in zip(ours, plain, strict=True)]
        limit = f"≥ {limits[name]:.3g}" if name in limits else ""
        unit = "MB" if name == "memory" else "s"
        print(
            f"| {case}, {count:,} rows, {market} | {name}, {unit} | {summary(ours)} "
            f"| {summary(plain)} | {summary(ratios)} | {limit} |",
            flush=True,
        )


def print_scores(case: str, market: str, count: int) -> None:
    """Print the differences of the scores of both sides."""
    import numpy as np
    import pandas as pd

    rows = rows_of(market, count)
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / f"{side}.pickle") for side in (0, 1)]
        measure(case, 0, market, count, files[0])
        ours = pd.read_pickle(files[0])
        if case == "walk":
            measure(case, 1, market, count, files[1])
            plain = pd.read_pickle(files[1])
        else:
            plain = plain_probabilities(rows).set_axis(ours.index)
            weights = np.array([WEIGHTS[name] for name in MODELS])
            ours["ensemble"], plain["ensemble"] = ours @ weights, plain @ weights
    y = rows[1].reindex(ours.index).to_numpy()
    for name in ours:
        found = differences(ours[name].to_numpy(), plain[name].to_numpy(), y)
        print(
            f"| {case}, {count:,} rows, {market} | {name} | {found['log loss']} | {found['AUC']} |"
        )


def growth(file: str, counts: list[int]) -> None:
    """Measure one fit of each model on ever more rows, and plot it."""
    import matplotlib.pyplot as plt
    import pandas as pd

    from crypto_ml.models import fit_final

    fit_final(*rows_of(LONG, 2_000, 0.0005)[:2], MODELS, seed=42, jobs=1)
    table = []
    for count in counts:
        features, y, _ = rows_of(LONG, count, 0.0005)
        for name, parameters in MODELS.items():
            start = time.process_time()
            fit_final(features, y, {name: parameters}, seed=42, jobs=1)
            spent = time.process_time() - start
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            table.append({"model": name, "rows": count, "seconds": spent, "memory": peak})
            print(f"| {name} | {count:,} | {spent:.3g} | {peak:.0f} |", flush=True)
    figure, axes = plt.subplots(figsize=(7, 3))
    colours = {"lightgbm": "#0072B2", "xgboost": "#E69F00", "random_forest": "#009E73"}
    for name, part in pd.DataFrame(table).groupby("model"):
        axes.loglog(part["rows"], part["seconds"], "o-", color=colours[str(name)], label=name)
    axes.set(xlabel="rows", ylabel="processor time of one fit (s)")
    axes.legend()
    figure.tight_layout()
    figure.savefig(file)


def main() -> None:
    """Measure everything and print it as tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=3, help="pairs of processes per case")
    parser.add_argument("--growth", default="", help="plot the cost of more rows into this file")
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--only", choices=SIDES, default=None, help="only one of the cases")
    parser.add_argument("--rows", type=int, default=0, help="only this many rows")
    for hidden in ("case", "market", "out"):
        parser.add_argument(f"--{hidden}", default="", help=argparse.SUPPRESS)
    parser.add_argument("--side", type=int, choices=(0, 1), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        return run_side(given.case, given.side, given.market, given.rows, given.out)
    if given.growth:
        return growth(given.growth, given.counts)
    days = WINDOWS * TEST_ROWS + TRAIN_ROWS + TEST_ROWS
    speed = [
        ("models", "1h", 8_640, 5.0),
        ("models", "15m", 100_000, 2.5),
        ("walk", "1h", days, 4.0),
    ]
    asked = [case for case in speed if given.only in (None, case[0]) and given.rows in (0, case[2])]
    print("| case | figure | crypto_ml | script | ratio | limit |\n|---|---|---|---|---|---|")
    for case, frame, count, limit in asked:
        limits = {"inner": limit, "memory": 1 / 1.5}
        print_speed(case, f"{MARKETS[0]}_{frame}", count, given.pairs, limits)
    print("\n| case | model | log loss, difference | AUC, difference |\n|---|---|---|---|")
    for case, frame, count, _ in asked:
        for market in MARKETS if count < 50_000 else MARKETS[:1]:
            print_scores(case, f"{market}_{frame}", count)
    return None


if __name__ == "__main__":
    main()
