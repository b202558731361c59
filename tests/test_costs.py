"""Costs: one position at a time, bought when the chance is known, sold when the label is."""

from __future__ import annotations

import json
import math

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crypto_ml.costs import break_even_accuracy, cost_verdict, mean_return, open_positions
from crypto_ml.settings import ScoreError

HOUR = pd.Timedelta("1h")


def predictions(
    returns: npt.ArrayLike, p: npt.ArrayLike, horizon: int = 1, rows_dropped: tuple[int, ...] = ()
) -> pd.DataFrame:
    ret = np.asarray(returns, dtype=float)
    index = pd.date_range(
        "2024-01-01", periods=len(ret), freq="h", tz="UTC", unit="ms", name="timestamp"
    )
    table = pd.DataFrame(
        {
            "fold": 0,
            "split": "out_of_fold",
            "y": (ret > 0).astype("int8"),
            "move": np.sign(ret).astype("int8"),
            "ret": ret,
            "label_end": index + (horizon + 1) * HOUR,
            "ensemble": p,
        },
        index=index,
    )
    return table.drop(table.index[list(rows_dropped)])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 9), st.booleans()), max_size=40),
)
def test_positions_never_overlap_and_none_is_missed(rows: list[tuple[int, int, bool]]) -> None:
    start = pd.Timestamp("2024-01-01", tz="UTC")
    at = np.cumsum([step for step, _, _ in rows])
    entries = pd.DatetimeIndex([start + int(k) * HOUR for k in at], tz="UTC")
    exits = pd.DatetimeIndex(
        [start + int(k + held) * HOUR for k, (_, held, _) in zip(at, rows, strict=True)], tz="UTC"
    )
    signals = np.array([signal for _, _, signal in rows], dtype=bool)
    expected, free = [], start
    for row in range(len(rows)):
        if signals[row] and entries[row] >= free:
            expected.append(row)
            free = exits[row]
    assert open_positions(entries, exits, signals).tolist() == expected


def test_a_hand_made_example() -> None:
    #          0      1      2      3      4     5
    returns = [0.01, -0.02, 0.03, 0.04, -0.01, 0.05]
    chances = [0.6, 0.7, 0.2, 0.6, 0.5, 0.9]
    table = predictions(returns, chances)
    judged = cost_verdict(table, round_trip_cost=0.001, resamples=200)
    taken = np.array([0.01, -0.02, 0.04, 0.05])  # not row 4: at the threshold is not above it
    assert (judged.trades, judged.rows) == (4, 6)
    assert judged.accuracy == 0.75
    assert judged.average_gain == pytest.approx(0.1 / 3)
    assert judged.average_loss == pytest.approx(0.02)
    assert judged.break_even_accuracy == pytest.approx((0.001 + 0.02) / (0.1 / 3 + 0.02))
    assert judged.gross.value == pytest.approx(taken.mean())
    assert judged.net.value == pytest.approx(taken.mean() - 0.001)
    assert judged.net.low == pytest.approx(judged.gross.low - 0.001)
    equity = judged.equity
    assert list(equity.columns) == ["gross", "net", "buy_and_hold"]
    assert (equity.iloc[0] == 1).all()
    assert equity.index[0] == table.index[0] + HOUR
    assert equity.index[-1] == table["label_end"].iloc[-1]
    assert equity["gross"].iloc[-1] == pytest.approx(np.prod(1 + taken))
    assert equity["net"].iloc[-1] == pytest.approx(np.prod(1 + taken - 0.001))
    assert equity["buy_and_hold"].iloc[-1] == pytest.approx(np.prod(1 + np.array(returns)))
    # after the close of bar 3 is bought, its outcome is known one bar later
    assert equity["gross"].loc[table.index[3] + HOUR] == pytest.approx(1.01 * 0.98)
    assert equity["gross"].loc[table.index[3] + 2 * HOUR] == pytest.approx(1.01 * 0.98 * 1.04)


def test_longer_labels_hold_one_position_at_a_time() -> None:
    returns = np.full(12, 0.01)
    judged = cost_verdict(predictions(returns, np.full(12, 0.9), horizon=3), resamples=20)
    assert judged.trades == 4
    assert judged.equity["buy_and_hold"].iloc[-1] == pytest.approx(1.01**4)
    assert judged.equity["gross"].iloc[-1] == pytest.approx(1.01**4)


def test_the_bar_is_the_shortest_step_unless_it_is_given() -> None:
    table = predictions(np.full(6, 0.01), np.full(6, 0.9), rows_dropped=(2, 3))
    assert cost_verdict(table, resamples=0).trades == 4
    sparse = predictions(np.full(6, 0.01), np.full(6, 0.9)).iloc[::2]
    sparse["label_end"] = sparse.index + 3 * HOUR
    assert cost_verdict(sparse, resamples=0).trades == 3
    # bought at the close of an hourly bar, sold at the same time as the next is bought
    assert cost_verdict(sparse, timeframe=HOUR, resamples=0).trades == 3
    sparse["label_end"] = sparse.index + 3 * HOUR + pd.Timedelta("1s")
    assert cost_verdict(sparse, timeframe=HOUR, resamples=0).trades == 2


def test_buy_and_hold_can_be_taken_from_prices() -> None:
    table = predictions(np.full(6, 0.01), np.full(6, 0.1))
    prices = pd.Series(
        100 * 1.01 ** np.arange(10), index=pd.date_range(table.index[0], periods=10, freq="h")
    )
    judged = cost_verdict(table, prices, HOUR, resamples=0)
    assert judged.equity["buy_and_hold"].iloc[-1] == pytest.approx(1.01**6)
    assert judged.equity.index[-1] == table["label_end"].iloc[-1]
    with pytest.raises(ScoreError, match="close has no price at 2024-01-01 01:00"):
        cost_verdict(table, prices.iloc[3:], HOUR, resamples=0)


def test_never_acted_and_acted_once() -> None:
    idle = cost_verdict(predictions([0.01, -0.01, 0.02], [0.1, 0.2, 0.3]))
    assert (idle.outcome, idle.trades) == ("never acted", 0)
    assert math.isnan(idle.accuracy)
    assert math.isnan(idle.net.value)
    assert idle.break_even_accuracy == pytest.approx((0.002 + 0.01) / (0.015 + 0.01))
    assert (idle.equity[["gross", "net"]] == 1).all(axis=None)
    assert "nothing was bought" in idle.sentence
    once = cost_verdict(predictions([0.01, -0.01, 0.02], [0.1, 0.2, 0.9]))
    assert (once.outcome, once.trades, once.accuracy) == ("not shown to pay", 1, 1.0)
    assert once.gross.value == 0.02
    assert math.isnan(once.gross.low)
    assert "made 1 trade." in once.sentence
    for judged in (idle, once):
        plain = json.loads(json.dumps(judged.to_dict(), allow_nan=False))
        assert plain["trades"] == judged.trades
        assert "equity" not in plain


@pytest.mark.parametrize(
    ("mean", "cost", "outcome", "words"),
    [
        (0.004, 0.001, "pays", "It pays its costs."),
        (0.0, 0.004, "loses", "It loses money after costs."),
        (0.001, 0.001, "not shown to pay", "not shown to pay its costs"),
        (0.0, 0.5, "loses", "no accuracy can earn a round trip of 50.00%"),
    ],
)
def test_what_is_left_after_costs_decides(
    mean: float, cost: float, outcome: str, words: str
) -> None:
    rng = np.random.default_rng(1)
    table = predictions(mean + 0.01 * rng.normal(size=2000), np.full(2000, 0.9))
    judged = cost_verdict(table, round_trip_cost=cost, resamples=200)
    assert judged.outcome == outcome
    assert words in judged.sentence
    right_often_enough = judged.accuracy > judged.break_even_accuracy
    assert right_often_enough == (judged.net.value > 0)


@given(
    gain=st.floats(1e-4, 0.1),
    loss=st.floats(1e-4, 0.1),
    cost=st.floats(0, 0.01),
)
def test_at_the_break_even_accuracy_nothing_is_earned(
    gain: float, loss: float, cost: float
) -> None:
    a = break_even_accuracy(gain, loss, cost)
    assert a * gain - (1 - a) * loss - cost == pytest.approx(0, abs=1e-12)
    assert math.isnan(break_even_accuracy(0, 0, cost))


def test_mean_returns_cover_their_mean() -> None:
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(60):
        returns = 0.001 + 0.01 * rng.standard_t(5, size=300)
        score = mean_return("x", returns, resamples=200, confidence=0.95, seed=0)
        hits += score.low <= 0.001 <= score.high
    assert hits >= 50


def test_only_the_chosen_split_is_traded() -> None:
    table = predictions(np.full(10, 0.01), np.full(10, 0.9))
    table.iloc[5:, table.columns.get_loc("split")] = "holdout"
    assert cost_verdict(table, resamples=0).trades == 5
    assert cost_verdict(table, split="holdout", resamples=0).rows == 5


def test_what_cannot_be_traded_is_refused() -> None:
    table = predictions([0.01, 0.02], [0.1, 0.2])
    with pytest.raises(ScoreError, match="Expected ret and label_end too"):
        cost_verdict(table.drop(columns="label_end"))
    with pytest.raises(ScoreError, match="indexed by bar open"):
        cost_verdict(table.reset_index(drop=True))
    with pytest.raises(ScoreError, match="single row does not tell how long a bar is"):
        cost_verdict(table.iloc[:1])
    assert cost_verdict(table.iloc[:1], timeframe=HOUR, resamples=0).trades == 0
    with pytest.raises(ScoreError, match="lack the columns unknown"):
        cost_verdict(table, predictor="unknown")
