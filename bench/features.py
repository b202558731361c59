"""Features beside plain pandas, TA-Lib and a copy: `python bench/features.py --rounds 5`.

The last 100,000 bars of binance_BTCUSDT_15m.parquet (CRYPTO_ML_DATA, or ../shared/data beside the
repository); all sides in turn in one process, CPU time, ratios taken round by round, medians with
the range. "Naive pandas" is the code of the tutorials: a column at a time with rolling, ewm and
concat, and `rolling.apply` where pandas has no function of its own. Of the 97 it computes those of
`NAIVE`, and is compared with the same columns here. "The copy" is `numpy.copy` of the columns.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from crypto_ml.candles import Candles

BARS = 100_000
MINUTES = "bitfinex_BTCUSD_1m"
MANY = 10_000_000


def data() -> Path:
    """Return the folder of real candles."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("CRYPTO_ML_DATA", beside))


def last_bars(bars: int) -> Candles:
    """Return real bars."""
    from dataclasses import replace

    from crypto_ml.candles import load_candles

    candles = load_candles(data() / "binance_BTCUSDT_15m.parquet")
    return replace(candles, frame=candles.frame.iloc[-bars:])


def naive_twelve(bars: pd.DataFrame) -> pd.DataFrame:
    """Compute the default features as the tutorials do."""
    import pandas as pd

    df = bars.copy()
    df["returns_1"] = df["close"].pct_change()
    delta = df["close"].diff()
    gain = delta.where(delta > 0, 0).ewm(alpha=1 / 14, adjust=False).mean()
    loss = (-delta.where(delta < 0, 0)).ewm(alpha=1 / 14, adjust=False).mean()
    df["rsi_14"] = 100 - 100 / (1 + gain / loss)
    fast = df["close"].ewm(span=12, adjust=False).mean()
    slow = df["close"].ewm(span=26, adjust=False).mean()
    df["macd"] = fast - slow
    df["macd_signal"] = df["macd"].ewm(span=9, adjust=False).mean()
    high_low = df["high"] - df["low"]
    high_close = (df["high"] - df["close"].shift()).abs()
    low_close = (df["low"] - df["close"].shift()).abs()
    true_range = pd.concat([high_low, high_close, low_close], axis=1).max(axis=1)
    df["atr_14"] = true_range.ewm(alpha=1 / 14, adjust=False).mean()
    middle = df["close"].rolling(20).mean()
    upper = middle + 2 * df["close"].rolling(20).std(ddof=0)
    lower = middle - 2 * df["close"].rolling(20).std(ddof=0)
    df["bb_position"] = (df["close"] - lower) / (upper - lower)
    df["ema_20"] = df["close"].ewm(span=20, adjust=False).mean()
    df["ema_50"] = df["close"].ewm(span=50, adjust=False).mean()
    mean, deviation = df["close"].rolling(20).mean(), df["close"].rolling(20).std(ddof=0)
    df["zscore"] = (df["close"] - mean) / deviation
    df["volume_ratio"] = df["volume"] / df["volume"].rolling(20).mean()
    return df.drop(columns=["open", "high", "low"])


def by_talib(bars: pd.DataFrame) -> pd.DataFrame:
    """Compute the default features with TA-Lib."""
    import pandas as pd
    import talib

    high, low, close, volume = (
        bars[name].to_numpy() for name in ("high", "low", "close", "volume")
    )
    line, signal, _ = talib.MACD(close, 12, 26, 9)
    upper, middle, lower = talib.BBANDS(close, 20, 2.0, 2.0)
    columns = {
        "close": close,
        "volume": volume,
        "returns_1": talib.ROCP(close, 1),
        "rsi_14": talib.RSI(close, 14),
        "macd": line,
        "macd_signal": signal,
        "atr_14": talib.ATR(high, low, close, 14),
        "bb_position": (close - lower) / (upper - lower),
        "ema_20": talib.EMA(close, 20),
        "ema_50": talib.EMA(close, 50),
        "zscore": (close - middle) / talib.STDDEV(close, 20),
        "volume_ratio": volume / talib.SMA(volume, 20),
    }
    return pd.DataFrame(columns, index=bars.index)


def by_classic(bars: pd.DataFrame) -> list[object]:
    """Compute the nine that need more than a shift with pandas-ta-classic."""
    import pandas_ta_classic as ta  # type: ignore[import-untyped]

    high, low, close, volume = (bars[name] for name in ("high", "low", "close", "volume"))
    return [
        ta.rsi(close, 14, talib=False),
        ta.macd(close, 12, 26, 9, talib=False),
        ta.atr(high, low, close, 14, talib=False),
        ta.bbands(close, 20, 2, talib=False),
        ta.ema(close, 20, talib=False),
        ta.ema(close, 50, talib=False),
        ta.zscore(close, 20),
        volume / ta.sma(volume, 20, talib=False),
    ]


def naive_more(bars: pd.DataFrame) -> pd.DataFrame:
    """Compute more of the catalogue as people do where pandas has no function for it."""
    import numpy as np
    import pandas as pd

    high, low, close, volume = (bars[name] for name in ("high", "low", "close", "volume"))
    place = np.arange(20)
    typical = (high + low + close) / 3
    returns = pd.Series(np.log(close / close.shift()))
    volatility = returns.rolling(20).std(ddof=0)
    change = close.diff()

    def straightness(window: np.ndarray) -> float:
        return float(np.corrcoef(place, window)[0, 1] ** 2)

    def mean_distance(window: np.ndarray) -> float:
        return float(np.abs(window - window.mean()).mean())

    def rank(window: np.ndarray) -> float:
        return float((window < window[-1]).mean() + 0.5 * (window == window[-1]).mean())

    def rising(window: np.ndarray) -> float:
        return float(np.sign(window).mean())

    columns = {
        "trend_strength": close.rolling(20).apply(straightness, raw=True),
        "cci_20": (typical - typical.rolling(20).mean())
        / (0.015 * typical.rolling(20).apply(mean_distance, raw=True)),
        "volatility_regime": volatility.rolling(200).apply(rank, raw=True),
        "trend_consistency": change.rolling(20).apply(rising, raw=True),
        "price_volume_correlation_20": close.rolling(20).corr(volume),
        "efficiency_ratio_10": close.diff(10).abs() / change.abs().rolling(10).sum(),
        "stoch_k": 100
        * (close - low.rolling(14).min())
        / (high.rolling(14).max() - low.rolling(14).min()),
        "williams_r_14": -100
        * (high.rolling(14).max() - close)
        / (high.rolling(14).max() - low.rolling(14).min()),
        "vwap_20": (typical * volume).rolling(20).sum() / volume.rolling(20).sum(),
        "obv_20": (np.sign(change) * volume).rolling(20).sum(),
        "std_20": volatility,
        "donchian_upper": high.rolling(20).max(),
        "donchian_lower": low.rolling(20).min(),
        "ema_100": close.ewm(span=100, adjust=False).mean(),
        "ema_200": close.ewm(span=200, adjust=False).mean(),
        "bb_upper": close.rolling(20).mean() + 2 * close.rolling(20).std(ddof=0),
        "bb_lower": close.rolling(20).mean() - 2 * close.rolling(20).std(ddof=0),
        "momentum_14": close.diff(14),
        "roc_10": 100 * close.pct_change(10),
        "hour": pd.Series(pd.DatetimeIndex(bars.index).hour, index=bars.index, dtype=float),
    }
    return pd.DataFrame(columns)


def spent(work: Callable[[], object]) -> float:
    """Return how many milliseconds of CPU time the work took."""
    start = time.process_time_ns()
    work()
    return (time.process_time_ns() - start) / 1e6


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Return the median, with the smallest and the largest."""
    middle, least, most = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({least:.{digits}f} to {most:.{digits}f})"


def in_turn(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Measure every side once per round, after one round that does not count."""
    for work in works.values():
        work()
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            found[name].append(spent(work))
    return found


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Divide round by round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def default_table(rounds: int) -> None:
    """Compare the twelve with naive pandas, with the packages, and with a copy."""
    from crypto_ml.features import feature_matrix

    candles = last_bars(BARS)
    matrix = feature_matrix(candles).to_numpy()
    works: dict[str, Callable[[], object]] = {
        "naive pandas": lambda: naive_twelve(candles.frame),
        "crypto_ml": lambda: feature_matrix(candles),
        "a copy": matrix.copy,
        "TA-Lib": lambda: by_talib(candles.frame),
    }
    try:
        by_classic(candles.frame)
        works["pandas-ta-classic (8 of 12)"] = lambda: by_classic(candles.frame)
    except ImportError:
        print("pandas-ta-classic is not installed: left out")
    found = in_turn(works, rounds)
    print(f"| 12 features, {BARS:,} bars | CPU, ms | naive pandas / it | it / copy |")
    print("|---|---|---|---|")
    for name, values in found.items():
        faster = spread(ratios(found["naive pandas"], values))
        slower = spread(ratios(values, found["a copy"]))
        print(f"| {name} | {spread(values, 2)} | {faster} | {slower} |")
    print("| limit for crypto_ml | | 18 | 2.5 |\n")


def catalogue_table(rounds: int) -> None:
    """Compare columns of the catalogue with naive pandas, and show what all of them take."""
    from crypto_ml.catalogue import CATALOGUE_FEATURES
    from crypto_ml.features import DEFAULT_FEATURES, feature_matrix

    candles = last_bars(BARS)
    more = list(naive_more(candles.frame.iloc[:400]).columns)
    names = [*DEFAULT_FEATURES, *more]

    def naive() -> None:
        naive_twelve(candles.frame)
        naive_more(candles.frame)

    found = in_turn(
        {
            "naive pandas": naive,
            "crypto_ml, the same": lambda: feature_matrix(candles, names),
            "crypto_ml, all 97": lambda: feature_matrix(candles, CATALOGUE_FEATURES),
        },
        rounds,
    )
    print(f"| {len(names)} of the 97 features, {BARS:,} bars | CPU, ms | naive pandas / it |")
    print("|---|---|---|")
    for name, values in found.items():
        print(f"| {name} | {spread(values)} | {spread(ratios(found['naive pandas'], values))} |")
    print("| limit | | 25 |\n")


def from_disk() -> None:
    """Read the longest file and compute the twelve."""
    from crypto_ml.candles import load_candles
    from crypto_ml.features import feature_matrix

    wall, start = time.perf_counter(), time.process_time()
    candles = load_candles(data() / f"{MINUTES}.parquet")
    feature_matrix(candles)
    used, wall = time.process_time() - start, time.perf_counter() - wall
    print(f"{len(candles)} {used:.2f} {wall:.2f}")


def in_blocks() -> None:
    """Compute the twelve of many made-up bars in blocks; print the peak of memory."""
    import numpy as np
    import pandas as pd

    from crypto_ml.candles import Market, trusted_candles
    from crypto_ml.feature_blocks import feature_blocks

    close = np.random.default_rng(0).normal(0, 1e-3, MANY)
    np.exp(np.cumsum(close, out=close), out=close)
    times = 1_262_304_000_000 + 60_000 * np.arange(MANY)
    index = pd.DatetimeIndex(times.view("M8[ms]"), name="timestamp").tz_localize("UTC")
    columns = {"open": close, "high": close * 1.001, "low": close * 0.999, "close": close}
    frame = pd.DataFrame({**columns, "volume": np.abs(close - 1)}, index=index, copy=False)
    candles = trusted_candles(frame, Market("made", "UP", "1m"), "made-up bars")
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    start = time.process_time()
    rows = sum(len(block) for block in feature_blocks(candles))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{rows} {time.process_time() - start:.2f} {held:.2f} {peak:.2f}")


def alone(part: str) -> list[float]:
    """Run a part in a process of its own and return the numbers that it prints."""
    command = [sys.executable, str(Path(__file__)), "--part", part]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return [float(word) for word in done.stdout.split()]


def large_table(rounds: int) -> None:
    """Show the long file and the many bars."""
    files = [alone("disk") for _ in range(rounds)]
    bars = int(files[0][0])
    print("| | bars | CPU, s | wall, s | peak memory, GiB | limit |\n|---|---|---|---|---|---|")
    used, wall = (spread([file[k] for file in files], 2) for k in (1, 2))
    print(f"| {MINUTES} from disk to 12 features | {bars:,} | {used} | {wall} | | 3 s |")
    rows, seconds, held, peak = alone("blocks")
    print(f"| 12 features in blocks | {int(rows):,} | {seconds:.2f} | | {peak:.2f} | 1.5 GB |")
    print(f"\nThe bars themselves, and the making of them, took {held:.2f} GiB.")


def main() -> None:
    """Measure the sides in turn and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--part", choices=("disk", "blocks"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        {"disk": from_disk, "blocks": in_blocks}[given.part]()
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    default_table(4 * given.rounds)
    catalogue_table(max(given.rounds // 2, 1))
    large_table(max(given.rounds // 2, 1))


if __name__ == "__main__":
    main()
