"""Coverage calendars: the shares are those of the bars, and every cell is where it belongs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import AxesImage

from crypto_ml.candles import Candles, Market, load_candles, trusted_candles
from crypto_ml.coverage_plots import LIMITS, NAMES, SHADES, coverage_table, plot_coverage
from crypto_ml.plots import figure_png
from crypto_ml.simulate import simulate


def holed(bars: int, timeframe: str, share: float, seed: int = 0) -> Candles:
    frame = simulate("none", bars=bars, timeframe=timeframe).candles.frame
    kept = np.random.default_rng(seed).random(bars) >= share
    kept[[0, -1]] = True
    return trusted_candles(frame[kept], Market("example", "BTCUSDT", timeframe), "example")


@pytest.mark.parametrize(("bars", "timeframe"), [(30_000, "1h"), (900, "1d"), (5000, "15m")])
def test_shares_are_those_of_the_bars(bars: int, timeframe: str) -> None:
    candles = holed(bars, timeframe, 0.2)
    table = coverage_table(candles)
    whole = pd.date_range(candles.index[0], candles.index[-1], freq=candles.timeframe)
    by_day = table.shape[1] == 31
    for time in candles.index[:: len(candles) // 20]:
        row = f"{time:%Y-%m}" if by_day else f"{time:%Y}"
        column = time.day if by_day else time.month
        same = "%Y%m%d" if by_day else "%Y%m"
        key = time.strftime(same)
        there = (candles.index.strftime(same) == key).sum()
        due = (whole.strftime(same) == key).sum()
        assert table.loc[row, column] == pytest.approx(there / due)
    assert table.shape[1] == (31 if timeframe == "15m" else 12)
    assert np.nanmax(table) <= 1 and np.nanmin(table) >= 0


def test_empty_months_are_nought_and_others_are_not_there() -> None:
    frame = simulate("none", bars=30_000, end="2024-05-10").candles.frame
    kept = (frame.index < "2022-03-01") | (frame.index >= "2022-05-01")
    candles = trusted_candles(frame[kept], Market("example", "BTCUSDT", "1h"), "example")
    table = coverage_table(candles)
    assert table.loc["2022", 3] == table.loc["2022", 4] == 0
    assert table.loc["2022", 2] == table.loc["2022", 5] == 1
    assert table.loc["2024"].notna().sum() == 5 and np.isnan(table.loc["2020", 1])


def test_figures() -> None:
    assert len(LIMITS) == len(SHADES) + 1 == len(NAMES) + 1
    for candles, rows in ((holed(30_000, "1h", 0.003), 4), (holed(2000, "1h", 0), 3)):
        figure = plot_coverage(candles)
        (image,) = [item for item in figure.axes[0].images if isinstance(item, AxesImage)]
        assert image.get_array().shape[0] == len(coverage_table(candles)) >= rows
        assert "example BTCUSDT 1h" in figure.axes[0].get_title(loc="left")
        assert "of the bars are missing" in figure.get_label()
        png = figure_png(figure, 72)
        assert png.startswith(b"\x89PNG") and png == figure_png(plot_coverage(candles), 72)
    texts = [text.get_text() for text in plot_coverage(holed(30_000, "1h", 0.003)).axes[0].texts]
    assert texts and "100" not in texts and "100.0" not in texts
    assert not plot_coverage(holed(2000, "1h", 0)).axes[0].texts


def test_a_real_market(real_candles_folder: Path) -> None:
    table = coverage_table(load_candles(real_candles_folder / "bitfinex_BTCUSD_1m.parquet"))
    assert table.loc["2014", 12] == 0 and table.loc["2016", 5] == 0
    assert 0 < table.loc["2016", 4] < 0.001 and table.loc["2018", 2] == 1
    assert list(table.index) == [str(year) for year in range(2013, 2020)]
