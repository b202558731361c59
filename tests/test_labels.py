"""Labels are what a slow loop says, look no further than `label_end`, and keep no row for luck."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_ml.candles import Candles, Market, candles_from_frame, load_candles
from crypto_ml.errors import LabelError
from crypto_ml.features import realised_volatility
from crypto_ml.labels import Labels, make_labels

KINDS = ("direction", "threshold", "triple_barrier")
HOUR = pd.Timedelta("1h")
quick = settings(max_examples=60, deadline=None)


def candles_of(frame: pd.DataFrame, hours: np.ndarray) -> Candles:
    index = pd.DatetimeIndex(pd.Timestamp("2024-01-01", tz="UTC") + HOUR * hours)
    frame = frame.set_index(index.as_unit("ms").rename("timestamp")).astype(np.float64)
    return candles_from_frame(frame, Market("test", "AAABBB", "1h"), "bars of a test")


@st.composite
def markets(draw: st.DrawFn, least: int = 30) -> Candles:
    """Bars on a coarse grid of prices, so that barriers are touched exactly, with gaps."""
    bars = draw(st.integers(least, 120))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    steps = rng.integers(-3, 4, bars) * (rng.random(bars) > draw(st.sampled_from([0.0, 0.4])))
    close = np.maximum(200 + np.cumsum(steps), 5).astype(float)
    opened = np.r_[200.0, close[:-1]]
    high = np.maximum(opened, close) + rng.integers(0, 4, bars)
    low = np.maximum(np.minimum(opened, close) - rng.integers(0, 4, bars), 1)
    columns = {"open": opened, "high": high, "low": low, "close": close, "volume": 1.0}
    missing = rng.random(bars) < draw(st.sampled_from([0.0, 0.03, 0.15]))
    hours = np.cumsum(1 + missing * rng.integers(1, 6, bars))
    return candles_of(pd.DataFrame(columns), hours)


arguments = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(KINDS),
        "horizon": st.integers(1, 9),
        "threshold": st.sampled_from([0.0, 0.003, 0.01]),
        "upper_multiple": st.sampled_from([0.5, 1.0, 2.5]),
        "lower_multiple": st.sampled_from([0.5, 1.0, 2.5, 500.0]),
        "volatility_window": st.integers(2, 12),
        "max_gap": st.integers(0, 4),
    }
)


def label(candles: Candles, arguments: dict[str, Any]) -> Labels | None:
    try:
        return make_labels(candles, **arguments)
    except LabelError as error:
        assert "none of the" in str(error)
        return None


def slowly(
    candles: Candles,
    kind: str,
    horizon: int,
    threshold: float,
    upper_multiple: float,
    lower_multiple: float,
    volatility_window: int,
    max_gap: int,
) -> dict[pd.Timestamp, tuple[int, pd.Timestamp, float, int]]:
    """Label bar by bar, looking each later bar up by its time."""
    bars = candles.frame
    volatility = realised_volatility(candles, volatility_window, max_gap)
    labels = {}
    for now in bars.index:
        ahead = [now + HOUR * step for step in range(1, horizon + 1)]
        if not all(time in bars.index for time in ahead):
            continue
        close, known = bars["close"][now], ahead[-1] + HOUR
        ret, move = (bars["close"][ahead[-1]] - close) / close, 0
        if kind == "direction":
            move = int(np.sign(ret))
        elif kind == "threshold":
            move = 1 if ret > threshold else -1 if ret < -threshold else 0
        else:
            up, down = upper_multiple * volatility[now], lower_multiple * volatility[now]
            if not (up > 1e-15 and down > 1e-15):
                continue
            for time in ahead:
                low, high = bars["low"][time], bars["high"][time]
                if low <= close * (1 - down):
                    move, ret, known = -1, -down, time + HOUR
                    break
                if high >= close * (1 + up):
                    move, ret, known = 1, up, time + HOUR
                    break
        labels[now] = (int(move == 1), known, ret, move)
    return labels


@quick
@given(markets(), arguments)
def test_it_is_what_a_slow_loop_says(candles: Candles, arguments: dict[str, Any]) -> None:
    expected = slowly(candles, **arguments)
    labels = label(candles, arguments)
    if labels is None:
        assert not expected
        return
    assert list(labels.frame.index) == list(expected)
    y, label_end, ret, move = zip(*expected.values(), strict=True)
    assert tuple(labels.y) == y
    assert tuple(labels.label_end) == label_end
    assert tuple(labels.frame["ret"]) == ret
    assert tuple(labels.frame["move"]) == move
    assert len(labels.frame) + sum(labels.dropped.values()) == len(candles)


def test_the_frame() -> None:
    candles = walk(200)
    for kind in KINDS:
        frame = make_labels(candles, kind, horizon=3).frame
        assert [str(dtype) for dtype in frame.dtypes] == [
            "int8",
            "datetime64[ms, UTC]",
            "float64",
            "int8",
        ]
        assert list(frame.columns) == ["y", "label_end", "ret", "move"]
        assert frame.index.name == "timestamp"
        assert frame.index.isin(candles.index).all()
        assert frame.notna().all(axis=None)
        assert (frame["label_end"] > frame.index + HOUR).all()
        assert (frame["label_end"] <= frame.index + 4 * HOUR).all()
        assert (frame["y"] == (frame["move"] == 1)).all()


def walk(bars: int, seed: int = 0) -> Candles:
    rng = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.01, bars)))
    opened = np.r_[100, close[:-1]]
    columns = {
        "open": opened,
        "high": np.maximum(opened, close) * 1.004,
        "low": np.minimum(opened, close) * 0.996,
        "close": close,
        "volume": 1.0,
    }
    return candles_of(pd.DataFrame(columns), np.arange(bars))


# ---- what a label may know


@quick
@given(markets(), arguments, st.integers(0, 10**6))
def test_nothing_after_label_end_counts(
    candles: Candles, arguments: dict[str, Any], place: int
) -> None:
    """Change every bar from some moment on: labels known by then stay as they are, bit for bit."""
    before = label(candles, arguments)
    if before is None:
        return
    now = candles.index[1 + place % (len(candles) - 1)]
    frame = candles.frame.copy()
    frame.loc[now:] = frame.loc[now:].to_numpy()[::-1] * 3
    after = label(replace(candles, frame=frame), arguments)
    known = before.frame[before.label_end <= now]
    if len(known):
        assert after is not None
        pd.testing.assert_frame_equal(after.frame.loc[known.index], known, check_exact=True)


@quick
@given(markets(), arguments)
def test_every_bar_up_to_label_end_counts(candles: Candles, arguments: dict[str, Any]) -> None:
    """The bar that ends at `label_end` decides: without what it did, the label is another."""
    labels = label(candles, arguments)
    if labels is None or arguments["kind"] != "triple_barrier":
        return
    touched = labels.frame[labels.frame["move"] != 0].iloc[:5]
    for start, row in touched.iterrows():
        frame = candles.frame.copy()
        last = row["label_end"] - HOUR
        frame.loc[last, ["open", "high", "low", "close"]] = frame.loc[start, "close"]
        other = make_labels(replace(candles, frame=frame), **arguments).frame.loc[start]
        assert other["label_end"] > row["label_end"] or other["move"] == 0


@quick
@given(markets(least=60), arguments, st.integers(0, 10**6))
def test_older_bars_count_only_through_volatility(
    candles: Candles, arguments: dict[str, Any], place: int
) -> None:
    before = label(candles, arguments)
    if before is None:
        return
    now = 1 + place % (len(candles) - 1)
    frame = candles.frame.copy()
    frame.iloc[:now] *= 1.7
    after = label(replace(candles, frame=frame), arguments)
    memory = arguments["volatility_window"] if arguments["kind"] == "triple_barrier" else 0
    if now + memory < len(candles):
        later = before.frame[before.frame.index >= candles.index[now + memory]]
        if len(later):
            assert after is not None
            pd.testing.assert_frame_equal(after.frame.loc[later.index], later, check_exact=True)


@quick
@given(markets(), arguments, st.integers(1, 30))
def test_more_bars_add_labels_and_change_none(
    candles: Candles, arguments: dict[str, Any], fewer: int
) -> None:
    """What is not yet known becomes known; what was dropped for a gap stays dropped."""
    early = replace(candles, frame=candles.frame.iloc[: max(1, len(candles) - fewer)])
    before, after = label(early, arguments), label(candles, arguments)
    if before is None:
        return
    assert after is not None
    later = after.frame[after.frame.index.isin(early.index)]
    pd.testing.assert_frame_equal(later.loc[before.frame.index], before.frame, check_exact=True)
    added = len(later) - len(before.frame)
    assert 0 <= added <= before.dropped["not_yet_known"]


def test_rows_are_not_kept_by_their_outcome() -> None:
    """A barrier touched at once does not save a row whose vertical barrier lies beyond the end."""
    candles = walk(200)
    frame = candles.frame.copy()
    frame.iloc[-9:, 1] *= 2  # the last rows all touch their upper barrier in the next bar
    labels = make_labels(replace(candles, frame=frame), "triple_barrier", horizon=10)
    assert labels.frame.index[-1] == candles.index[-11]
    assert labels.dropped == {"not_yet_known": 10, "crosses_missing_bar": 0, "no_volatility": 20}


# ---- cases by hand


def bars(*rows: tuple[float, float, float], warm: int = 3) -> Candles:
    """(high, low, close) after a warm-up that alternates between 100 and 101, ending at 100."""
    start = [(101.0, 100.0, 101.0 if n % 2 else 100.0) for n in range(2 * warm + 1)]
    frame = pd.DataFrame([*start, *rows], columns=["high", "low", "close"])
    frame["open"] = frame[["high", "low", "close"]].median(axis=1)
    return candles_of(frame.assign(volume=1.0), np.arange(len(frame)))


def barrier_at_100(*rows: tuple[float, float, float], **changed: float) -> pd.Series:
    """Label of the last bar of the warm-up, whose volatility is log(1.01) and close is 100."""
    candles = bars(*rows)
    arguments = {"horizon": len(rows), "volatility_window": 4, "upper_multiple": 2, **changed}
    return make_labels(candles, "triple_barrier", **arguments).frame.loc[candles.index[6]]  # type: ignore[arg-type]


SIGMA = math.log(1.01)


@pytest.mark.parametrize(
    ("rows", "y", "move", "ret", "hours"),
    [
        ([(102.5, 99.5, 100.0), (101.0, 90.0, 95.0)], 1, 1, 2 * SIGMA, 2),
        ([(101.0, 97.5, 100.0), (110.0, 100.0, 105.0)], 0, -1, -2 * SIGMA, 2),
        ([(102.5, 97.5, 100.0), (101.0, 99.0, 100.0)], 0, -1, -2 * SIGMA, 2),  # both in one bar
        ([(101.0, 99.0, 100.0), (102.5, 99.0, 99.0)], 1, 1, 2 * SIGMA, 3),
        ([(101.0, 99.0, 100.0), (101.5, 99.0, 101.0)], 0, 0, 0.01, 3),  # vertical: up, but y = 0
        ([(101.0, 99.0, 100.0), (101.0, 99.0, 99.0)], 0, 0, -0.01, 3),
        ([(110.0, 109.0, 110.0), (110.0, 90.0, 90.0)], 1, 1, 2 * SIGMA, 2),  # opens beyond it
    ],
)
def test_barriers(
    rows: list[tuple[float, float, float]], y: int, move: int, ret: float, hours: int
) -> None:
    row = barrier_at_100(*rows)
    assert (row["y"], row["move"]) == (y, move)
    assert row["ret"] == pytest.approx(ret, rel=1e-12)
    assert row["label_end"] == row.name + HOUR * hours


def test_a_barrier_is_touched_when_it_is_met_exactly() -> None:
    upper, lower = 100 * (1 + 2 * SIGMA), 100 * (1 - 2 * SIGMA)
    for edge in (-1e-9, 0.0, 1e-9):
        assert barrier_at_100((upper + edge, 99.0, 100.0))["move"] == (edge >= 0)
        assert barrier_at_100((101.0, lower + edge, 100.0))["move"] == -(edge <= 0)


def test_each_multiple_moves_its_own_barrier() -> None:
    day = (101.5, 98.5, 100.0)
    assert barrier_at_100(day)["move"] == 0
    assert barrier_at_100(day, upper_multiple=1)["move"] == 1
    assert barrier_at_100(day, lower_multiple=1)["move"] == -1
    assert barrier_at_100(day, lower_multiple=1, upper_multiple=1)["move"] == -1


def test_a_market_without_movement_has_no_barriers() -> None:
    candles = bars(*[(100.0, 100.0, 100.0)] * 10)
    labels = make_labels(candles, "triple_barrier", volatility_window=4, horizon=2)
    assert labels.dropped == {"not_yet_known": 2, "crosses_missing_bar": 0, "no_volatility": 9}
    assert len(labels.frame) + 11 == len(candles)


def test_a_return_of_zero_went_neither_way() -> None:
    candles = bars((100.0, 100.0, 100.0), (100.2, 100.0, 100.2), (100.2, 99.9, 99.9))
    labels = make_labels(candles, "direction").frame.iloc[-3:]
    assert labels["y"].tolist() == [0, 1, 0]
    assert labels["move"].tolist() == [0, 1, -1]
    labels = make_labels(candles, "threshold", threshold=0.0025).frame.iloc[-3:]
    assert labels["y"].tolist() == [0, 0, 0]
    assert labels["move"].tolist() == [0, 0, -1]
    assert labels["ret"].tolist() == pytest.approx([0, 0.002, -0.3 / 100.2])


def test_a_threshold_of_zero_is_direction() -> None:
    candles = walk(100)
    pd.testing.assert_frame_equal(
        make_labels(candles, "direction", horizon=4).frame,
        make_labels(candles, "threshold", horizon=4, threshold=0).frame,
    )


def test_gaps_and_the_end_are_told_apart() -> None:
    candles = walk(30)
    holed = replace(candles, frame=candles.frame.drop(candles.index[[10, 28]]))
    labels = make_labels(holed, "direction", horizon=3)
    # 7, 8, 9 and 25, 26, 27 look across a hole; 29, the last bar, may still be answered
    assert labels.dropped == {"not_yet_known": 1, "crosses_missing_bar": 6}
    assert not labels.frame.index.isin(candles.index[[7, 8, 9, 25, 26, 27, 29]]).any()


# ---- the definition


def test_the_definition_is_what_decides() -> None:
    candles = walk(100)
    assert make_labels(candles).definition_hash == make_labels(walk(90, 1)).definition_hash
    seen = set()
    for kind in KINDS:
        labels = make_labels(candles, kind)
        assert json.loads(json.dumps(labels.definition)) == labels.definition
        assert labels.definition["kind"] == kind
        seen.add(labels.definition_hash)
    changed: list[dict[str, Any]] = [
        {"horizon": 2},
        {"threshold": 0.004},
        {"kind": "direction", "horizon": 2},
        {"kind": "triple_barrier", "horizon": 2},
        {"kind": "triple_barrier", "upper_multiple": 3},
        {"kind": "triple_barrier", "lower_multiple": 3},
        {"kind": "triple_barrier", "volatility_window": 10},
        {"kind": "triple_barrier", "max_gap": 2},
    ]
    seen |= {make_labels(candles, **arguments).definition_hash for arguments in changed}
    assert len(seen) == len(KINDS) + len(changed)


def test_what_a_kind_does_not_use_is_not_in_its_definition() -> None:
    candles = walk(100)
    plain = make_labels(candles, "direction")
    other = make_labels(candles, "direction", threshold=0.1, upper_multiple=9.0, max_gap=0)
    assert plain.definition == other.definition
    assert set(plain.definition) == {"kind", "horizon", "source"}
    whole = make_labels(candles, "threshold", threshold=1, horizon=np.int64(2))  # type: ignore[arg-type]
    assert whole.definition_hash == make_labels(candles, threshold=1.0, horizon=2).definition_hash


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "tripple_barrier"}, "kind='tripple_barrier' is unknown; did you mean 'triple_b"),
        ({"kind": None}, "kind=None is unknown; known: direction"),
        ({"horizon": 0}, "horizon=0: expected a whole number of bars, at least 1"),
        ({"horizon": 1.0}, r"horizon=1\.0: expected a whole number"),
        ({"horizon": True}, "horizon=True: expected a whole number"),
        ({"threshold": -0.001}, r"threshold=-0\.001: expected a finite number, 0 or more"),
        ({"threshold": math.nan}, "threshold=nan: expected a finite number"),
        ({"threshold": math.inf}, "threshold=inf: expected a finite number"),
        ({"threshold": "0.3 %"}, "threshold='0.3 %': expected a finite number"),
        ({"upper_multiple": 0}, "upper_multiple=0: expected a finite number, above 0"),
        ({"lower_multiple": -1}, "lower_multiple=-1: expected a finite number, above 0"),
        ({"volatility_window": 1}, "volatility_window=1: expected .* at least 2"),
        ({"max_gap": -1, "horizon": 0}, r"horizon=0(.|\n)*max_gap=-1: expected .* at least 0"),
    ],
)
def test_parameters_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(LabelError, match=message):
        make_labels(walk(50), **arguments)


def test_no_row_is_an_error_that_says_why() -> None:
    message = r"none of the 5 bars of test AAABBB 1h .* 5 bars: .*'not_yet_known': 5.*more bars"
    with pytest.raises(LabelError, match=message):
        make_labels(walk(5), horizon=5)
    with pytest.raises(LabelError, match="'no_volatility': 4"):
        make_labels(walk(5), "triple_barrier")


# ---- real candles


def test_bitcoin(real_candles_folder: Path) -> None:
    """The default label of the last 360 days: some 17 % of the bars rise by more than 0.3 %."""
    candles = load_candles(real_candles_folder / "binance_BTCUSDT_1h.parquet", days=360)
    labels = make_labels(candles)
    assert 0.15 < labels.y.mean() < 0.2
    assert labels.dropped["not_yet_known"] == 1
    assert abs((labels.frame["move"] == 1).mean() - (labels.frame["move"] == -1).mean()) < 0.02


def test_a_market_of_gaps(real_candles_folder: Path) -> None:
    candles = load_candles(real_candles_folder / "coinbase_BANDUSD_5m.parquet")
    labels = make_labels(candles)
    assert labels.dropped["crosses_missing_bar"] == 16_305
    assert (labels.label_end - labels.frame.index.to_series() == 2 * candles.timeframe).all()
    barriers = make_labels(candles, "triple_barrier", horizon=12)
    assert len(barriers.frame) + sum(barriers.dropped.values()) == len(candles)


def test_a_hundred_thousand_bars_take_a_moment() -> None:
    candles = walk(100_000)
    start = time.process_time()
    make_labels(candles, "triple_barrier", horizon=24)
    assert time.process_time() - start < 1
