"""Scores beside plain scikit-learn: `make bench`, or `python bench/run.py --pairs 3`.

Each figure comes from a process of its own, the two sides in turn, so that a machine that is busy
for a while is busy for both. "inner" is the second call of the work itself, "process" all of the
process with its imports. Ratios are taken pair by pair; above 1, crypto_ml is faster.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROWS = 4_000
RESAMPLES = 100

Work = Callable[[], object]


def predictions() -> object:
    """Make out-of-sample predictions of five folds, as a run stores them."""
    import numpy as np
    import pandas as pd

    random = np.random.default_rng(42)
    index = pd.date_range("2024-01-01", periods=ROWS, freq="1h", tz="UTC", name="timestamp")
    ret = random.standard_t(4, ROWS) * 0.004
    return pd.DataFrame(
        {
            "fold": (np.arange(ROWS) * 5 // ROWS).astype("int8"),
            "split": "out_of_fold",
            "y": (ret > 0.003).astype("int8"),
            "ret": ret,
            "move": (np.sign(ret) * (np.abs(ret) > 0.003)).astype("int8"),
            "label_end": index + pd.Timedelta("2h"),
            "majority": float(np.mean(ret > 0.003)),
            "ensemble": 1 / (1 + np.exp(1 - 50 * ret - random.normal(size=ROWS))),
        },
        index=index.astype("datetime64[ms, UTC]"),
    )


def scores_ours() -> Work:
    """Score predictions with block-bootstrap intervals."""
    from crypto_ml.scores import score_table

    made = predictions()
    return lambda: score_table(made, ["ensemble"], resamples=RESAMPLES)


def scores_plain() -> Work:
    """Score resamples one after the other with scikit-learn's functions."""
    import numpy as np
    from arch.bootstrap import StationaryBootstrap
    from sklearn import metrics

    made = predictions()
    y, p, fold = (made[name].to_numpy() for name in ("y", "ensemble", "fold"))
    move = made["move"].to_numpy()

    def by_fold(keep: np.ndarray, truth: np.ndarray, score: np.ndarray, of: np.ndarray) -> float:
        return float(
            np.mean(
                [
                    metrics.roc_auc_score(truth[keep & (of == n)], score[keep & (of == n)])
                    for n in range(5)
                ]
            )
        )

    def score(rows: np.ndarray) -> list[float]:
        truth, shown, part, went = y[rows], p[rows], fold[rows], move[rows]
        answer = (shown > 0.5).astype(int)
        return [
            metrics.f1_score(truth, answer, average="macro"),
            metrics.f1_score(truth, answer),
            metrics.f1_score(truth, answer, average="weighted"),
            metrics.accuracy_score(truth, answer),
            metrics.balanced_accuracy_score(truth, answer),
            metrics.matthews_corrcoef(truth, answer),
            metrics.average_precision_score(truth, shown),
            metrics.log_loss(truth, shown),
            metrics.brier_score_loss(truth, shown),
            by_fold(np.ones(len(rows), bool), truth, shown, part),
            by_fold(went != 0, (went > 0).astype(int), shown, part),
        ]

    def plain() -> np.ndarray:
        bootstrap = StationaryBootstrap(24, np.arange(len(y)), seed=42)
        drawn = [score(data[0][0]) for data in bootstrap.bootstrap(RESAMPLES)]
        return np.percentile(drawn, [2.5, 97.5], axis=0)

    return plain


CASES = {
    f"scores of {ROWS:,} rows, {RESAMPLES} resamples": (scores_ours, scores_plain),
}


def measure(case: str, side: int) -> tuple[float, float]:
    """Run one side of a case in a process of its own; give its inner and whole seconds."""
    command = [sys.executable, str(Path(__file__)), "--case", case, "--side", str(side)]
    start = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.split()[-1]), time.perf_counter() - start


def summary(values: list[float]) -> str:
    """Write a median with its range."""
    return f"{statistics.median(values):8.3g} ({min(values):.3g} to {max(values):.3g})"


def main() -> None:
    """Measure every case and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5, help="pairs of processes per case")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--side", type=int, choices=(0, 1), help=argparse.SUPPRESS)
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if given.case:
        work = CASES[given.case][given.side]()
        work()
        start = time.perf_counter()
        work()
        print(time.perf_counter() - start)
        return
    print(f"seconds: median (range) of {given.pairs} pairs, ours and plain in turn")
    for case in CASES:
        pairs = [(measure(case, 0), measure(case, 1)) for _ in range(given.pairs)]
        for position, name in enumerate(("inner", "process")):
            ours, plain = ([pair[side][position] for pair in pairs] for side in (0, 1))
            ratios = [theirs / own for own, theirs in zip(ours, plain, strict=True)]
            print(f"{case:<40} {name:<8} crypto_ml {summary(ours)}", end="  ")
            print(f"plain {summary(plain)}  ratio {summary(ratios)}")


if __name__ == "__main__":
    main()
