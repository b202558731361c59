"""How often is the verdict wrong, and how often do the intervals cover? `make calibration`.

Many simulated markets, a small LightGBM each, judged as a run is judged. On `sim:none` (label
`direction`) and `sim:vol` (label `threshold`) there is no edge to be found: `edge` is a false
alarm, nominally in 2.5 % of the markets. On `sim:clear` the true odds of every bar are known, so
the score that the very predictions earn on average is known too, and a 95 % interval has to cover
it in 95 %. The interval of the plain directional AUC is shown beside the one that is used, which
also covers the past-ranked AUC: nbs/40_metrics.ipynb says why.

    python bench/calibration.py --seeds 100 --presets none vol clear --out calibration.csv
"""

from __future__ import annotations

import argparse
import time
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from scipy.stats import binomtest

from crypto_ml.features import feature_matrix, realised_volatility
from crypto_ml.labels import make_labels
from crypto_ml.metrics import Rows, answers, metric_values
from crypto_ml.models import make_model
from crypto_ml.scores import (
    baseline_probabilities,
    interval,
    resampled_scores,
    score_of,
    select_rows,
)
from crypto_ml.simulate import simulate
from crypto_ml.splits import make_folds
from crypto_ml.verdict import verdict

KINDS = {"none": "direction", "vol": "threshold"}  # every other preset: direction
THRESHOLD = {"direction": 0.0, "threshold": 0.003}
POOLED = ("accuracy", "macro_f1", "balanced_accuracy", "log_loss", "brier", "calibration_error")
COVERED = ("directional_auc", "roc_auc", "average_precision", *POOLED)
MODEL = {"n_estimators": 50, "learning_rate": 0.1, "max_depth": 8, "num_leaves": 31}


def predicted_market(preset: str, kind: str, bars: int, seed: int) -> pd.DataFrame:
    """Predict every fold of a simulated market by a small LightGBM, beside the true odds."""
    market = simulate(preset, bars=bars, seed=seed)
    truth = market.true_probabilities(kind, 1, THRESHOLD[kind])
    features = feature_matrix(market.candles).dropna()
    labels = make_labels(market.candles, kind, horizon=1, threshold=THRESHOLD[kind]).frame
    index = features.index.intersection(labels.index).intersection(truth.index)
    X, y = features.loc[index], labels.loc[index, "y"]
    folds = make_folds(index, labels["label_end"], n_splits=5, holdout=0.2)[:-1]
    parts = []
    for fold in folds:
        model = make_model("lightgbm", MODEL, 42).fit(X.iloc[fold.train], y.iloc[fold.train])
        part = labels.loc[index[fold.test], ["y", "move"]].assign(fold=fold.number)
        parts.append(part.assign(ensemble=model.predict_proba(X.iloc[fold.test])[:, 1]))
    baselines = baseline_probabilities(
        labels,
        folds,
        index,
        volatility=realised_volatility(market.candles),
        timeframe=market.candles.timeframe,
    )
    return pd.concat(parts).assign(split="out_of_fold").join(baselines).join(truth)


def expected_scores(
    rows: Rows, p: np.ndarray, up: np.ndarray, down: np.ndarray
) -> dict[str, float]:
    """Score that predictions earn on average over the outcomes, given the true odds.

    Every row is taken three times, as having gone up, down, and neither way, with the probability
    of each as its weight.
    """
    odds = np.concatenate([up, down, 1 - up - down])
    move = np.repeat([1.0, -1.0, 0.0], len(p))
    tripled, base = np.tile(p, 3), np.tile(rows.base_rate, 3)

    def expected(chosen: np.ndarray, metrics: tuple[str, ...]) -> dict[str, float]:
        part = Rows((move > 0)[chosen] * 1.0, move[chosen], ((0, len(chosen)),), base[chosen])
        said = answers(part, tripled[chosen])
        values = metric_values(said, odds[None, chosen], metrics)
        return {name: float(value[0]) for name, value in values.items()}

    result = expected(np.arange(3 * len(p)), POOLED)
    folds = [np.arange(start, stop) for start, stop in rows.spans]
    for metric in ("directional_auc", "roc_auc", "average_precision"):
        values = [
            expected(np.concatenate([fold, fold + len(p), fold + 2 * len(p)]), (metric,))[metric]
            for fold in folds
        ]
        moved = [float((rows.move[fold] != 0).sum()) for fold in folds]
        sizes = moved if metric == "directional_auc" else [float(len(fold)) for fold in folds]
        result[metric] = float(np.average(values, weights=sizes))
    return result


def judge(preset: str, bars: int, resamples: int, seed: int) -> list[dict[str, object]]:
    """Judge one market: the verdict, and for each metric whether its interval covers the truth."""
    kind = KINDS.get(preset, "direction")
    table = predicted_market(preset, kind, bars, seed)
    rows, chances = select_rows(table, ["ensemble"])
    draws = resampled_scores(rows, chances, COVERED, resamples=resamples)
    own = {metric: values for (_, metric), values in draws.items()}
    truth = expected_scores(
        rows, chances["ensemble"], table["up"].to_numpy(), table["down"].to_numpy()
    )
    scores = {metric: score_of(metric, own) for metric in COVERED}
    scores["directional_auc, plain"] = interval("plain", own["directional_auc"])
    truth["directional_auc, plain"] = truth["directional_auc"]
    outcome = verdict(table, resamples=resamples).outcome
    return [
        {
            "preset": preset,
            "label": kind,
            "seed": seed,
            "outcome": outcome,
            "metric": metric,
            "true": truth[metric],
            "value": score.value,
            "low": score.low,
            "high": score.high,
        }
        for metric, score in scores.items()
    ]


def share(hits: pd.Series) -> str:
    """Share of a number of markets with its exact binomial 95 % interval."""
    found = binomtest(int(hits.sum()), len(hits)).proportion_ci(0.95, method="exact")
    return f"{hits.mean():6.1%} [{found.low:.1%}, {found.high:.1%}]"


def report(results: pd.DataFrame) -> str:
    """Put the shares of verdicts and the coverage of each interval into words."""
    lines = []
    for (preset, kind), part in results.groupby(["preset", "label"], sort=False):
        markets = part.drop_duplicates("seed")
        lines.append(f"\nsim:{preset}, label {kind}: {len(markets)} markets")
        plain = part[part["metric"] == "directional_auc, plain"]
        lines += [
            f"  verdict edge                {share(markets['outcome'] == 'edge')}",
            f"  verdict worse than chance   {share(markets['outcome'] == 'worse than chance')}",
            f"  plain AUC alone above 0.5   {share(plain['low'] > 0.5)}",
            f"  plain AUC alone below 0.5   {share(plain['high'] < 0.5)}",
            f"  {'95 % interval covers':<28}{'':>22}    value     true",
        ]
        for metric, rows in part.groupby("metric", sort=False):
            covered = (rows["low"] <= rows["true"]) & (rows["true"] <= rows["high"])
            means = f"{rows['value'].mean():.4f}   {rows['true'].mean():.4f}"
            lines.append(f"    {metric:<26}{share(covered):<24}  {means}")
    return "\n".join(lines)


def main() -> None:
    """Judge the markets, print the shares and write every score."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, default=100, help="markets of each preset")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--presets", nargs="+", default=["none", "vol", "clear"])
    parser.add_argument("--bars", type=int, default=8640, help="bars of each market (1h)")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--out", type=Path, help="CSV file for every score of every market")
    options = parser.parse_args()
    begun = time.monotonic()
    tasks = [
        delayed(judge)(preset, options.bars, options.resamples, seed)
        for preset in options.presets
        for seed in range(options.first, options.first + options.seeds)
    ]
    results = pd.DataFrame(chain.from_iterable(Parallel(options.jobs)(tasks)))
    if options.out:
        results.to_csv(options.out, index=False)
    print(report(results))
    print(f"\n{len(tasks)} markets in {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
