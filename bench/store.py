"""The store beside plain files: `python bench/store.py --pairs 5`, or a part of bench/run.py.

In and out: bars per second into the store and out of it, beside CSV through pandas and one feather
and one Parquet file through pyarrow, with the bars of a year of minutes. Load: all minutes of
bitfinex_BTCUSD_1m.parquet (CRYPTO_ML_DATA) out of a store, beside a plain pyarrow read of that
file to pandas, and the memory that takes. Each figure comes from a process of its own, the sides
in turn; ratios are taken round by round, and medians shown.
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
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from crypto_ml.candles import Market
    from crypto_ml.store import Store

KINDS = ("store", "csv", "feather", "parquet")
BARS = 500_000
PER_PAGE = 10_000
MOST_TIME, MOST_MEMORY = 2.0, 2.5


def minutes() -> pd.DataFrame:
    """Return bars with as many digits as an exchange gives."""
    import numpy as np
    import pandas as pd

    random = np.random.default_rng(42)
    index = pd.date_range("2024-01-01", periods=BARS, freq="1min", tz="UTC", name="timestamp")
    close = (40_000 * np.exp(random.normal(0, 5e-4, BARS).cumsum())).round(1)
    opened = np.roll(close, 1)
    high, low = np.maximum(opened, close) + 3.5, np.minimum(opened, close) - 3.5
    volume = random.exponential(5, BARS).round(5)
    values = {"open": opened, "high": high, "low": low, "close": close, "volume": volume}
    return pd.DataFrame(values, index=index.as_unit("ms"))


def market(exchange: str = "bench") -> Market:
    """Return the market that the bars are said to be of."""
    from crypto_ml.candles import Market

    return Market(exchange, "BTCUSD", "1m")


def put(store: Store, frame: pd.DataFrame, per_page: int, which: Market) -> None:
    """Put bars into a store page by page."""
    import pandas as pd

    seen = frame.index[-1] + pd.Timedelta("1D")
    for at in range(0, len(frame), per_page):
        page = frame.iloc[at : at + per_page]
        end = frame.index[at + per_page] if at + per_page < len(frame) else seen
        answer = SimpleNamespace(start=page.index[0], end=end, frame=page)
        store.write(which, answer, seen + pd.Timedelta("1D"))


def in_store(folder: Path) -> Callable[[], object]:
    """Write pages into the store, each safe on disk before the next."""
    from crypto_ml.store import Store

    frame = minutes()
    return lambda: put(Store(folder / "store"), frame, PER_PAGE, market())


def in_csv(folder: Path) -> Callable[[], object]:
    """Write one CSV file with pandas."""
    frame = minutes()
    return lambda: frame.to_csv(folder / "bars.csv")


def in_feather(folder: Path) -> Callable[[], object]:
    """Write one feather file."""
    frame = minutes().reset_index()
    return lambda: frame.to_feather(folder / "bars.feather")


def in_parquet(folder: Path) -> Callable[[], object]:
    """Write one Parquet file."""
    frame = minutes()
    return lambda: frame.to_parquet(folder / "bars.parquet", compression="zstd")


def out_store(folder: Path) -> Callable[[], object]:
    """Read candles, hashes compared."""
    from crypto_ml.store import Store

    return lambda: Store(folder / "store").read(market())


def out_csv(folder: Path) -> Callable[[], object]:
    """Read the CSV file with pandas."""
    import pandas as pd

    return lambda: pd.read_csv(folder / "bars.csv", parse_dates=["timestamp"])


def out_feather(folder: Path) -> Callable[[], object]:
    """Read the feather file."""
    import pandas as pd

    return lambda: pd.read_feather(folder / "bars.feather")


def out_parquet(folder: Path) -> Callable[[], object]:
    """Read the Parquet file."""
    import pandas as pd

    return lambda: pd.read_parquet(folder / "bars.parquet")


def real_file() -> Path:
    """Return where the minutes of Bitfinex lie."""
    named = os.environ.get("CRYPTO_ML_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    return folder / "bitfinex_BTCUSD_1m.parquet"


def real_fill(folder: Path) -> Callable[[], object]:
    """Put the minutes of Bitfinex into a store, a month to a page."""
    import pandas as pd

    from crypto_ml.store import Store

    frame = pd.read_parquet(real_file()).set_index("timestamp")
    return lambda: put(Store(folder / "real"), frame, 43_200, market("bitfinex"))


def real_store(folder: Path) -> Callable[[], object]:
    """Load them out of the store."""
    from crypto_ml.store import Store

    store = Store(folder / "real")
    return lambda: store.read(market("bitfinex"))


def real_plain(folder: Path) -> Callable[[], object]:  # noqa: ARG001
    """Load them from their file with pyarrow."""
    import pyarrow.parquet as pq

    path = real_file()
    return lambda: pq.read_table(path).to_pandas()


SIDES = {
    name: value for name, value in list(globals().items()) if name[:3] in {"in_", "out", "rea"}
}
del SIDES["real_file"]


def measure(side: str, folder: Path) -> None:
    """Print the seconds of the work, the bytes that it grew the process by, and the rows.

    Reading is timed the second time, when all is imported; memory is that of the first.
    """
    work = SIDES[side](folder)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    seconds, made = timed(work)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    rows = len(made) if made is not None else 0
    if rows:
        del made
        seconds, _ = timed(work)
    print(seconds, max(grown, 0), rows)


def timed(work: Callable[[], object]) -> tuple[float, Any]:
    """Return how many seconds it took, and what it made."""
    begun = time.perf_counter()
    made = work()
    return time.perf_counter() - begun, made


def in_process(side: str, folder: Path) -> tuple[float, float, int]:
    """Measure one side in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return float(told[0]), float(told[1]), int(told[2])


def compare(pairs: int, folder: Path) -> list[str]:
    """Return the lines of the first table: the store beside CSV, feather and Parquet."""
    lines = []
    for way in ("in", "out"):
        names = [f"{way}_{kind}" for kind in KINDS]
        rounds = [{name: in_process(name, folder)[0] for name in names} for _ in range(pairs)]
        rate = BARS / statistics.median(one[f"{way}_store"] for one in rounds)
        ratios = [
            f"{statistics.median(one[name] / one[names[0]] for one in rounds):.2f} × {kind}"
            for name, kind in zip(names[1:], KINDS[1:], strict=True)
        ]
        lines.append(f"{way:<4}{rate:>12,.0f} bars/s, as fast as {', '.join(ratios)}")
    return lines


def load(pairs: int, folder: Path) -> tuple[list[str], bool]:
    """Return the lines of the second table, and whether both limits hold."""
    in_process("real_fill", folder)
    rounds = [
        (in_process("real_store", folder), in_process("real_plain", folder)) for _ in range(pairs)
    ]
    bars = rounds[0][0][2]
    slower = statistics.median(ours[0] / plain[0] for ours, plain in rounds)
    ours, plain = (
        statistics.median(one[side][1] for one in rounds) / (bars * 48) for side in (0, 1)
    )
    seconds = statistics.median(one[0][0] for one in rounds)
    lines = [
        f"{bars:,} bars in {seconds:.2f} s, {slower:.2f} times a plain read (at most {MOST_TIME})",
        f"memory {ours:.2f} times the columns (at most {MOST_MEMORY}); the plain read {plain:.2f}",
    ]
    return lines, slower <= MOST_TIME and ours <= MOST_MEMORY


def main() -> int:
    """Measure and print; 1 when a limit is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        measure(options.side, options.folder)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        print(*compare(options.pairs, folder), sep="\n")
        if not real_file().exists():
            print(f"no {real_file().name}; set CRYPTO_ML_DATA for the large load")
            return 0
        lines, held = load(options.pairs, folder)
        print(*lines, sep="\n")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
