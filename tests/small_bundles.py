"""Small fitted models and bundles, made once per test session, and processes that are killed."""

from __future__ import annotations

import functools
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from crypto_ml.bundle import save_bundle
from crypto_ml.ensemble import ProductionEnsemble
from crypto_ml.models import fit_final

COLUMNS = ["close", "rsi_14", "zscore"]
WEIGHTS = {"lightgbm": 0.4, "xgboost": 0.4, "random_forest": 0.2}
SMALL = {
    "lightgbm": {"n_estimators": 12, "max_depth": 5},
    "xgboost": {"n_estimators": 12, "max_depth": 5},
    "random_forest": {"n_estimators": 12, "max_depth": 6},
}


def market(rows: int = 500, seed: int = 1) -> tuple[pd.DataFrame, pd.Series]:
    rng = np.random.default_rng(seed)
    index = pd.date_range("2024-01-01", periods=rows, freq="h", tz="UTC", name="timestamp")
    X = pd.DataFrame(rng.normal(size=(rows, 3)), index=index, columns=COLUMNS)
    X["close"] = 60_000 + 300 * X["close"].cumsum()
    return X, (X["zscore"] + rng.normal(size=rows) > 0.4).astype("int8")


@functools.cache
def models(seed: int = 42) -> dict[str, Any]:
    X, y = market(seed=seed)
    return fit_final(X, y, SMALL, seed=seed, jobs=1)


def ensemble(seed: int = 42) -> ProductionEnsemble:
    return ProductionEnsemble(models(seed), WEIGHTS)


def about(**changes: Any) -> dict[str, Any]:
    return {
        "feature_schema": [{"name": n, "definition_hash": n * 2, "lookback": 14} for n in COLUMNS],
        "label_definition": {"kind": "threshold", "horizon": 1, "threshold": 0.003},
        "market": {"exchange": "simulated", "symbol": "SIM-CLEAR", "timeframe": "1h"},
        "training_span": (
            pd.Timestamp("2024-01-01", tz="UTC"),
            pd.Timestamp("2024-02-01", tz="UTC"),
        ),
        "run_id": "20240208-000000-SIM-CLEAR-1h-5f2a1c",
        "git": {"commit": "0" * 40, "dirty": False},
        **changes,
    }


def saved(folder: Path, seed: int = 42, **changes: Any) -> Path:
    return save_bundle(folder, ensemble(seed), **about(**changes))


# Processes. A child is forked, so it has the models and libraries at once; nothing that it does
# reaches this process but what it leaves on disk.


def in_child(work: Callable[[], object]) -> int:
    """Run in a forked process; return its exit status, or minus the signal that ended it."""
    child = os.fork()
    if not child:
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_before(step: int, folder: Path, work: Callable[[], object]) -> bool:
    """Run in a child that kills itself before the step-th thing it does in a folder; say if it did.

    Steps are the audit events of Python that name a path in the folder (open, mkdir, rename,
    remove, rmtree, rmdir), each flush to disk, and each call into the C library; when it is killed
    at a flush, the file has lost its second half.
    """
    place = str(folder)

    def doomed() -> None:
        done = 0

        def count() -> bool:
            nonlocal done
            done += 1
            return done > step

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            names_place = any(
                isinstance(a, (str, bytes, Path)) and place in os.fsdecode(a) for a in arguments
            )
            library = event == "ctypes.dlsym" and arguments[1] == "renameat2"
            if (
                (names_place and event.startswith(("open", "os.", "shutil."))) or library
            ) and count():
                os.kill(os.getpid(), signal.SIGKILL)

        flush = os.fsync

        def lossy_flush(handle: int) -> None:
            if count():
                try:
                    os.ftruncate(handle, os.fstat(handle).st_size // 2)
                finally:
                    os.kill(os.getpid(), signal.SIGKILL)
            flush(handle)

        os.fsync = lossy_flush
        sys.addaudithook(watch)
        work()

    status = in_child(doomed)
    assert status in (0, -signal.SIGKILL), status
    return status != 0
