"""Overhead of a run and scaling of a sweep: `python bench/sweep.py --runs 100 --rounds 1`.

The runs are small but whole: the real train.ipynb on `--days` of the simulated market, two folds,
100 resamples, 20 trees a model. They differ by their seed. One after the other, in as many
processes as there are cores, and on a Dask cluster of as many workers with one thread each, in turn
and in other order each round. "overhead" is what a run takes beyond the steps it records itself:
papermill, the kernel, imports, the sweep. Efficiency is the time of one after the other, divided by
the workers and by the time taken. On a busy machine, only the ratios say something.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("sequential", "processes", "dask")
GRID = """
vary: {{seed: {seeds}}}
fixed:
  source: "sim:clear"
  days: {days}
  n_splits: 2
  resamples: 100
  surrogates: 0
  lightgbm: {{n_estimators: 20}}
  xgboost: {{n_estimators: 20}}
  random_forest: {{n_estimators: 20}}
"""


@contextlib.contextmanager
def cluster(workers: int) -> Iterator[str]:
    """Give the address of a cluster of this machine."""
    import logging

    from distributed import LocalCluster

    options = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(host="127.0.0.1", silence_logs=logging.ERROR, **options) as found:
        yield found.scheduler_address


def sweep(kind: str, arguments: argparse.Namespace, workers: int) -> dict[str, float]:
    """Run a sweep in a project of its own and return what it took."""
    from crypto_ml.runs import read_record
    from crypto_ml.settings import load_settings
    from crypto_ml.sweep import run_sweep

    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        root = Path(folder)
        shutil.copy2(ROOT / "settings.ini", root)
        (root / "nbs").mkdir()
        shutil.copy2(ROOT / "nbs" / "train.ipynb", root / "nbs")
        grid = root / "bench.yaml"
        seeds = list(range(1, arguments.runs + 1))
        grid.write_text(GRID.format(seeds=seeds, days=arguments.days))
        settings = load_settings(root / "settings.ini")
        scheduler = stack.enter_context(cluster(workers)) if kind == "dask" else ""
        jobs, start = int(kind == "sequential"), time.perf_counter()
        states = run_sweep(grid, settings, jobs=jobs, scheduler=scheduler, say=lambda _: None)
        wall = time.perf_counter() - start
        if failed := [state.words for state in states if state.status != "succeeded"]:
            sys.exit(f"{len(failed)} runs failed: {failed[0]}")
        inside = [sum(s.seconds for s in read_record(p.parent).steps) for p in runs_of(settings)]
    over = statistics.mean(state.seconds for state in states) - statistics.mean(inside)
    return {"wall": wall, "overhead": over}


def runs_of(settings: object) -> list[Path]:
    """List the records of all runs."""
    return sorted(settings.runs_folder.glob("*/run.json"))  # type: ignore[attr-defined]


def main() -> None:
    """Measure in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--days", type=float, default=30)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for number in range(arguments.rounds):
        for kind in KINDS if number % 2 == 0 else reversed(KINDS):
            found[kind].append(sweep(kind, arguments, arguments.workers))
    alone = statistics.median(one["wall"] for one in found["sequential"])
    print(f"{arguments.runs} runs, {arguments.workers} workers, {arguments.rounds} rounds\n")
    print("| | seconds | seconds a run | overhead a run | speed-up | efficiency |")
    print("|---|---:|---:|---:|---:|---:|")
    for kind in KINDS:
        wall = statistics.median(one["wall"] for one in found[kind])
        over = statistics.median(one["overhead"] for one in found[kind])
        workers = 1 if kind == "sequential" else arguments.workers
        numbers = f"{wall:.1f} | {wall / arguments.runs:.2f} | {over:.2f} | {alone / wall:.2f}×"
        print(f"| {kind} | {numbers} | {alone / wall / workers:.0%} |")


if __name__ == "__main__":
    main()
