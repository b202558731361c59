"""The next bar's features beside the batch: `python bench/live.py --rounds 7`.

Bar by bar (`LiveFeatures.update`), `feature_matrix` over the warm-up window and the same window in
plain pandas (the 12 default features only), in turn in one process, on the last real hours of
binance_BTCUSDT_1h.parquet (CRYPTO_ML_DATA, or ../shared/data beside the repository). Ratios are
taken round by round; medians and the range are shown. Then a second process that finds the
compiled code on disk, and one that has to compile.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from crypto_ml.candles import Candles

BARS = 400
LIMIT = 50.0  # microseconds for all 97
START = """
from crypto_ml.live_features import LIVE_FEATURES, LiveFeatures
live = LiveFeatures(LIVE_FEATURES, timeframe_ms=3_600_000)
live.update(1_800_000_000_000, 5.0, 6.0, 4.0, 5.0, 1.0)
"""


def last_hours(bars: int) -> Candles:
    """Return real bars."""
    from dataclasses import replace

    from crypto_ml.candles import load_candles

    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("CRYPTO_ML_DATA", beside))
    candles = load_candles(folder / "binance_BTCUSDT_1h.parquet")
    return replace(candles, frame=candles.frame.iloc[-bars:])


def plain(bars: pd.DataFrame) -> pd.DataFrame:
    """Compute the default features as one would write them in pandas."""
    import pandas as pd

    high, low, close, volume = (bars[name] for name in ("high", "low", "close", "volume"))
    change, previous = close.diff(), close.shift()
    gain = change.clip(lower=0).ewm(alpha=1 / 14, adjust=False).mean()
    loss = (-change.clip(upper=0)).ewm(alpha=1 / 14, adjust=False).mean()
    ranges = pd.concat([high - low, (high - previous).abs(), (low - previous).abs()], axis=1)
    macd = close.ewm(span=12, adjust=False).mean() - close.ewm(span=26, adjust=False).mean()
    mean, deviation = close.rolling(20).mean(), close.rolling(20).std(ddof=0)
    columns = {
        "close": close,
        "volume": volume,
        "returns_1": close.pct_change(),
        "rsi_14": 100 - 100 / (1 + gain / loss),
        "macd": macd,
        "macd_signal": macd.ewm(span=9, adjust=False).mean(),
        "atr_14": ranges.max(axis=1).ewm(alpha=1 / 14, adjust=False).mean(),
        "bb_position": (close - mean + 2 * deviation) / (4 * deviation),
        "ema_20": close.ewm(span=20, adjust=False).mean(),
        "ema_50": close.ewm(span=50, adjust=False).mean(),
        "zscore": (close - mean) / deviation,
        "volume_ratio": volume / volume.rolling(20).mean(),
    }
    return pd.DataFrame(columns)


def timed(work: Callable[[], object]) -> float:
    """Return how many microseconds of wall time the work took."""
    start = time.perf_counter_ns()
    work()
    return (time.perf_counter_ns() - start) / 1000


def one_round(candles: Candles, names: Sequence[str]) -> dict[str, float]:
    """Return microseconds per bar of each side, one after the other."""
    from dataclasses import replace

    from crypto_ml.features import DEFAULT_FEATURES, feature_matrix
    from crypto_ml.live_features import LiveFeatures

    live = LiveFeatures(names, timeframe_ms=3_600_000)
    arrays = candles.arrays()
    live.load(*(values[:-BARS] for values in arrays.values()))
    rows = list(zip(*(values[-BARS:].tolist() for values in arrays.values()), strict=True))
    bars = sorted(timed(lambda row=row: live.update(*row)) for row in rows)  # type: ignore[misc]
    window = replace(candles, frame=candles.frame.iloc[-live.warm_up - 1 :])
    found = {"p50": bars[BARS // 2], "p99": bars[BARS * 99 // 100]}
    found["batch"] = statistics.median(timed(lambda: feature_matrix(window, names)) for _ in "abc")
    if tuple(names) == DEFAULT_FEATURES:
        found["pandas"] = statistics.median(timed(lambda: plain(window.frame)) for _ in "abc")
    return found


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Return the median, with the smallest and the largest."""
    middle, least, most = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({least:.{digits}f} to {most:.{digits}f})"


def start_up(cache: Path | None) -> tuple[float, float]:
    """Return wall and CPU seconds of a process that takes its first bar."""
    environment = {**os.environ, **({"NUMBA_CACHE_DIR": str(cache)} if cache else {})}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", START], check=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start, used


def main() -> None:
    """Measure the sides in turn and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    from crypto_ml.catalogue import CATALOGUE_FEATURES
    from crypto_ml.features import DEFAULT_FEATURES

    candles = last_hours(4000)
    sides = {"12": DEFAULT_FEATURES, "97": CATALOGUE_FEATURES}
    for names in sides.values():
        one_round(candles, names)
    found = [
        {label: one_round(candles, names) for label, names in sides.items()} for _ in range(rounds)
    ]
    print("| features | µs per bar, p50 | p99 | limit | feature_matrix / live | pandas / live |")
    print("|---|---|---|---|---|---|")
    for label in sides:
        each = [one[label] for one in found]
        ratios = {
            side: spread([one[side] / one["p50"] for one in each], 0)
            for side in ("batch", "pandas")
            if side in each[0]
        }
        p50, p99 = (spread([one[key] for one in each]) for key in ("p50", "p99"))
        cells = (label, p50, p99, f"{LIMIT:.0f}", ratios["batch"], ratios.get("pandas", ""))
        print(f"| {' | '.join(cells)} |")
    print("\n| first bar of a new process | wall, s | CPU, s |\n|---|---|---|")
    start_up(None)
    warm = [start_up(None) for _ in range(min(rounds, 5))]
    with tempfile.TemporaryDirectory() as folder:
        cold = [start_up(Path(folder))]
    for label, pairs in (("compiled code on disk", warm), ("nothing on disk", cold)):
        wall, used = (spread([pair[k] for pair in pairs], 2) for k in (0, 1))
        print(f"| {label} | {wall} | {used} |")


if __name__ == "__main__":
    main()
