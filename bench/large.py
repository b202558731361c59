"""More rows than the memory of a worker: `python bench/large.py --bars 10000000`.

Simulated minutes, made in stretches of a million that are joined end to end, written in blocks and
fitted by two Dask workers, each under a memory limit at which Dask ends it. The last tenth of the
rows is scored, block by block. Beside it the same rows in one process with as much memory as one
worker (RLIMIT_DATA), which is expected to fail. Memory is the most that each process ever held.
"""

from __future__ import annotations

import argparse
import logging
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crypto_ml.candles import Candles

STRETCH = 1_000_000
PARAMETERS = {"n_estimators": 100, "learning_rate": 0.1, "max_depth": 8}
MEMORY_ALONE = """
import resource, sys
from pathlib import Path
limit = int(sys.argv[2])
import pandas as pd
from crypto_ml.large import open_blocks
from crypto_ml.models import make_model
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
blocks = open_blocks(Path(sys.argv[1]))
rows = pd.concat([blocks.read(block) for block in blocks.blocks])
make_model("lightgbm", {"n_estimators": 100}, 42).fit(rows[list(blocks.features)], rows["y"])
"""


def stretches(bars: int) -> Iterator[Candles]:
    """Simulate minutes piece by piece, each beginning where the last one ended."""
    import pandas as pd

    from crypto_ml.candles import trusted_candles
    from crypto_ml.simulate import simulate

    counts = [STRETCH] * (bars // STRETCH) + [bars % STRETCH] * bool(bars % STRETCH)
    end = pd.Timestamp("2025-01-01", tz="UTC") - bars * pd.Timedelta("1min")
    last = None
    for number, count in enumerate(counts):
        end += count * pd.Timedelta("1min")
        piece = simulate("sim:clear", bars=count, timeframe="1m", seed=number, end=end).candles
        frame = piece.frame.copy()
        if last is not None:
            frame[["open", "high", "low", "close"]] *= last / frame["open"].iloc[0]
        last = frame["close"].iloc[-1]
        yield trusted_candles(frame, piece.market, piece.source)


def peak() -> float:
    """Return the most that this process ever held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def score(model: Any, blocks: Any, tested: Any) -> float:
    """Return the AUC on blocks, read one at a time."""
    import numpy as np
    from sklearn.metrics import roc_auc_score

    from crypto_ml.models import positive_probability

    parts = []
    for block in tested:
        table = blocks.read(block)
        chance = positive_probability(model, table[list(blocks.features)])
        parts.append(np.column_stack([table["y"], chance]))
    answers, chances = np.concatenate(parts).T
    return float(roc_auc_score(answers, chances))


def main() -> None:
    """Write, fit, score, print a table."""
    import dask
    from distributed import Client, LocalCluster

    from crypto_ml.large import fit_large, write_blocks

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bars", type=int, default=10_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit", type=float, default=2.0, help="GB for each worker")
    arguments = parser.parse_args()
    limit = int(arguments.limit * 1e9)
    # nothing is moved to disk: a fit needs its rows, and what does not fit shall fail
    dask.config.set({f"distributed.worker.memory.{what}": False for what in ("target", "spill")})
    print("| step | rows | seconds | most memory of a process, MB | AUC on the last tenth |")
    print("|---|---:|---:|---:|---:|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        pieces = stretches(arguments.bars)
        blocks = write_blocks(pieces, Path(folder) / "rows", label={"kind": "direction"})
        print(f"| blocks | {blocks.rows:,} | {time.perf_counter() - start:.0f} | {peak():.0f} | |")
        kept = max(1, len(blocks.blocks) * 9 // 10)
        train = blocks.until(blocks.blocks[kept - 1].known)
        for name in ("lightgbm", "xgboost"):
            with LocalCluster(
                n_workers=arguments.workers,
                threads_per_worker=1,
                memory_limit=limit,
                host="127.0.0.1",
                dashboard_address=None,
                silence_logs=logging.ERROR,
            ) as cluster:
                start = time.perf_counter()
                address = cluster.scheduler_address
                model = fit_large(name, PARAMETERS, train, scheduler=address)
                seconds = time.perf_counter() - start
                with Client(address, set_as_default=False) as client:
                    most = max(client.run(peak).values())
            auc = score(model, blocks, blocks.blocks[kept:] or blocks.blocks)
            print(
                f"| {name} | {train.rows:,} | {seconds:.0f} | {most:.0f} | {auc:.4f} |", flush=True
            )
        command = [sys.executable, "-c", MEMORY_ALONE, str(Path(folder) / "rows"), str(limit)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        outcome = "fits" if not done.returncode else f"fails: {said[:60]}"
        print(f"\nAll rows in one process with {arguments.limit:g} GB: {outcome}")


if __name__ == "__main__":
    main()
