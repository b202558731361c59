"""Random and degenerate candles, and the promises that every feature is held to on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from crypto_ml.candles import Candles, Market, candles_from_frame
from crypto_ml.features import feature_matrix, get_feature

PRICES = ["open", "high", "low", "close"]


def candles_of(
    prices: np.ndarray, volume: np.ndarray, timeframe: str = "1h", start: str = "2024-01-01"
) -> Candles:
    """Candles from prices of shape (4, n) and volumes of shape (n,)."""
    step = timeframe.replace("m", "min").replace("d", "D")
    index = pd.date_range(start, periods=len(volume), freq=step, tz="UTC", unit="ms")
    frame = pd.DataFrame(
        np.vstack([prices, volume]).T, index.rename("timestamp"), [*PRICES, "volume"]
    )
    return candles_from_frame(frame, Market("test", "AAABBB", timeframe), "made-up bars")


def random_candles(
    seed: int,
    bars: int = 900,
    *,
    price: float = 100.0,
    volatility: float = 0.01,
    tick: float = 0.0,
    still: float = 0.0,
    timeframe: str = "1h",
) -> Candles:
    """Random bars; `tick` rounds prices as an exchange does, `still` is the share without trade."""
    rng = np.random.default_rng(seed)
    traded = rng.random(bars) >= still
    moves = np.clip(rng.standard_t(4, bars) * volatility * traded, -0.3, 0.3)
    close = price * np.exp(np.cumsum(moves))
    opened = np.r_[price, close[:-1]]
    wick = np.abs(rng.normal(0, volatility, (2, bars))) * traded
    high = np.maximum(opened, close) * (1 + wick[0])
    low = np.minimum(opened, close) * (1 - np.minimum(wick[1], 0.5))
    values = np.array([opened, high, low, close])
    if tick:
        values = np.maximum(np.round(values / tick), 1) * tick
    return candles_of(values, rng.lognormal(0, 1, bars) * traded, timeframe)


def _shaped(bars: int, shape: Callable[[np.ndarray], np.ndarray], volume: float = 1.0) -> Candles:
    close = np.asarray(shape(np.arange(bars)), float) * np.ones(bars)
    return candles_of(np.tile(close, (4, 1)), np.full(bars, volume))


def degenerate_candles(bars: int = 1100) -> dict[str, Candles]:
    """Markets that have been seen, or could be: nothing moves, nothing trades, one tick only."""
    lively = random_candles(1, bars, tick=0.01)
    stopped = lively.frame.copy()
    stopped.iloc[300:, :4] = stopped["close"].iloc[299]
    stopped.iloc[300:, 4] = 0.0
    restarted = stopped.copy()
    restarted.iloc[-60:] = lively.frame.iloc[-60:]
    silent = lively.frame.assign(volume=0.0)
    tiny = lively.frame.copy()
    tiny[PRICES] *= 1e-10
    ranges_only = lively.frame.assign(open=100.0, close=100.0, high=101.0, low=99.0)
    return {
        "constant": _shaped(bars, lambda n: 7.3 + 0 * n),
        "constant and silent": _shaped(bars, lambda n: 7.3 + 0 * n, 0.0),
        "satoshi": _shaped(bars, lambda n: 1e-8 * (1 + (n // 40) % 2)),
        "stairs": _shaped(bars, lambda n: 100.0 + n // 7),
        "growth": _shaped(bars, lambda n: 100.0 * 1.01**n),
        "decline": _shaped(bars, lambda n: 1e6 * 0.99**n),
        "to and fro": _shaped(bars, lambda n: 100.0 + n % 2),
        "one tick": _shaped(bars, lambda n: np.where(n == 450, 1000.0, 1.0)),
        "stopped": replace(lively, frame=stopped),
        "restarted": replace(lively, frame=restarted),
        "no volume": replace(lively, frame=silent),
        "tiny prices": replace(lively, frame=tiny),
        "same bar again": replace(lively, frame=ranges_only),
        "mostly still": random_candles(2, bars, still=0.97, tick=0.01),
        "large": random_candles(3, bars, price=1e9),
    }


def cut(candles: Candles, keep: slice | np.ndarray) -> Candles:
    return replace(candles, frame=candles.frame.iloc[keep])


def same(a: object, b: object) -> None:
    """Assert equality bit for bit, NaN included."""
    left, right = np.asarray(a), np.asarray(b)
    assert left.shape == right.shape
    differ = np.argwhere(left.view(np.int64) != right.view(np.int64))
    assert len(differ) == 0 or np.array_equal(left, right, equal_nan=True), differ[:3]


FUTURES = ("noise", "scale", "reverse", "cut", "tick", "still")


def other_future(candles: Candles, now: int, how: str, seed: int = 0) -> Candles:
    """The same candles up to bar `now`, and something else from there on."""
    frame, rng = candles.frame.copy(), np.random.default_rng(seed)
    if how == "noise":
        noise = np.exp(rng.normal(0, 0.1, len(frame) - now))
        frame.iloc[now:, :4] = frame.iloc[now:, :4].to_numpy() * noise[:, None]
        frame.iloc[now:, 4] = rng.lognormal(3, 1, len(frame) - now)
    elif how == "scale":
        frame.iloc[now:] *= 1000
    elif how == "reverse":
        frame.iloc[now:] = frame.iloc[now:].to_numpy()[::-1]
    elif how == "tick":
        frame.iloc[now, :4] = 1e9
    elif how == "still":
        frame.iloc[now:, :4] = frame["close"].iloc[now - 1]
        frame.iloc[now:, 4] = 0.0
    else:
        frame = frame.iloc[:now]
    return replace(candles, frame=frame)


def history_error(
    candles: Candles, start: int, names: Sequence[str], stop: int | None = None
) -> dict[str, float]:
    """Largest difference after warm-up between the whole history and one from bar `start`.

    Relative to the price for what is in price units, to 100 or to 1 for what is bounded so, and
    for other numbers to their own size or 1, whichever is larger.
    """
    whole = feature_matrix(cut(candles, slice(0, stop)), names)[start:]
    part = feature_matrix(cut(candles, slice(start, stop)), names)
    price = candles.frame["close"].iloc[start:stop]
    errors = {}
    for name in names:
        item = get_feature(name)
        scale = price if item.scale == "price" else np.maximum(whole[name].abs(), 1.0)
        error = (part[name] - whole[name]).abs() / scale
        errors[name] = float(error.iloc[item.lookback :].max())
    return errors


def scaled(candles: Candles, price: float, volume: float) -> Candles:
    """The same market in other units of money and of coins."""
    frame = candles.frame.copy()
    frame[PRICES] *= price
    frame["volume"] *= volume
    return replace(candles, frame=frame)
