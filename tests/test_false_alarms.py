"""The auditor accuses nothing that is clean: every feature, expansion and label on every market.

Few cuts and changes on one span of each market, so that all of them fit into a test run. The span
of a file holds its largest gap and is long enough for the slowest feature to warm up after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from crypto_ml.candles import Candles, candles_from_frame, market_of
from crypto_ml.catalogue import CATALOGUE
from crypto_ml.expansion import expand_features, expansion_warm_up
from crypto_ml.features import DEFAULT_FEATURES, feature_matrix, get_feature, warm_up
from crypto_ml.labels import make_labels
from crypto_ml.leak_report import LeakReport
from crypto_ml.leaks import audit_stage
from crypto_ml.simulate import PRESETS, simulate
from crypto_ml.stationary import STATIONARY

CATALOGUED = [name for family in CATALOGUE.values() for name in family]
FEATURES = list(dict.fromkeys([*CATALOGUED, *STATIONARY, *DEFAULT_FEATURES]))
WARM = warm_up(FEATURES)
BARS = WARM + 400
LONGER = {"1m": "5m", "5m": "15m", "15m": "1h", "1h": "4h", "4h": "1d"}
LAG = 2
QUICK: dict[str, Any] = {
    "changes": ("noise", "truncate", "scale_up"),
    "probes": ("repeat", "future", "history"),
}


def span_of(path: Path) -> Candles:
    """Return bars around the file's largest gap, most of them after it."""
    frame = pd.read_parquet(path).set_index("timestamp")
    gap = int(np.argmax(np.diff(pd.DatetimeIndex(frame.index).as_unit("ms").asi8)))
    first = int(np.clip(gap - 100, 0, max(len(frame) - BARS, 0)))
    return candles_from_frame(
        frame.iloc[first : first + BARS], market_of(path, "", "", ""), path.name
    )


@pytest.fixture(scope="module")
def real(real_candles_folder: Path) -> dict[str, Candles]:
    spans = {path.stem: span_of(path) for path in sorted(real_candles_folder.glob("*.parquet"))}
    return {name: span for name, span in spans.items() if len(span) >= 500}


@pytest.fixture(scope="module")
def simulated() -> dict[str, Candles]:
    presets, timeframes = list(PRESETS), list(LONGER)
    return {
        f"{presets[seed % len(presets)]} {seed}": simulate(
            presets[seed % len(presets)],
            bars=BARS,
            seed=seed,
            gaps=seed % 3,
            timeframe=timeframes[seed % len(timeframes)],
        ).candles
        for seed in range(20)
    }


def audit_features(candles: Candles, _: int) -> LeakReport:
    """Audit the catalogue and the stationary set, and with them the default features."""
    return audit_stage(
        lambda c: feature_matrix(c, FEATURES), candles, cuts=1, warm_up=WARM, **QUICK
    )


def audit_expanded(candles: Candles, turn: int) -> LeakReport:
    """Audit the default features and a share of the others, of longer bars and lagged."""
    longer = LONGER[candles.market.timeframe]
    options: dict[str, Any] = {"timeframes": (longer,), "lags": (LAG,)}
    fast = [name for name in FEATURES if get_feature(name).lookback <= warm_up(DEFAULT_FEATURES)]
    names = list(dict.fromkeys([*DEFAULT_FEATURES, *fast[turn % 10 :: 10]]))
    warm = expansion_warm_up(candles, names, **options)
    return audit_stage(
        lambda c: expand_features(c, names, **options).frame,
        candles,
        cuts=1,
        warm_up=warm,
        **QUICK,
    )


def audit_labels(candles: Candles, turn: int) -> LeakReport:
    """Audit one kind of label with one horizon."""
    kind = ("direction", "threshold", "triple_barrier")[turn % 3]
    horizon = (1, 6)[turn % 2]
    return audit_stage(
        lambda c: make_labels(c, kind, horizon=horizon),  # type: ignore[arg-type]
        candles,
        cuts=2,
        **QUICK,
    )


AUDITS = pytest.mark.parametrize("audit", [audit_features, audit_expanded, audit_labels])


def alarms(
    audit: Callable[[Candles, int], LeakReport], markets: dict[str, Candles]
) -> Iterator[str]:
    for turn, (name, candles) in enumerate(markets.items()):
        report = audit(candles, turn)
        assert len(report.audited) >= 4
        yield from (f"{name}: {finding}" for finding in report.findings)


@AUDITS
def test_nothing_clean_is_accused_on_real_candles(
    audit: Callable[[Candles, int], LeakReport], real: dict[str, Candles]
) -> None:
    assert real
    assert not list(alarms(audit, real))


@AUDITS
def test_nothing_clean_is_accused_on_simulated_markets(
    audit: Callable[[Candles, int], LeakReport], simulated: dict[str, Candles]
) -> None:
    assert not list(alarms(audit, simulated))


def test_the_features_are_all_there() -> None:
    assert len(CATALOGUED) == 97
    assert set(DEFAULT_FEATURES) | set(STATIONARY) <= set(FEATURES)
