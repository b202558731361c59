"""The figure of a run's steps shows each of them with its time."""

from __future__ import annotations

import pandas as pd
import pytest

from crypto_ml.errors import CryptoMLError
from crypto_ml.plots import BLUE, GREY, ORANGE, figure_png
from crypto_ml.time_plots import plot_steps


def test_each_step_is_a_bar_and_fit_and_score_stand_out() -> None:
    steps = pd.DataFrame({"name": ["candles", "models", "scores"], "seconds": [0.0, 6.0, 2.0]})
    figure = plot_steps(steps)
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [0, 6, 2]
    assert [bar.get_facecolor() for bar in axes.patches] == [
        pytest.approx(rgb) for rgb in map(_rgba, (GREY, BLUE, ORANGE))
    ]
    assert [text.get_text() for text in axes.get_yticklabels()] == list(steps["name"])
    assert "models 6.0 s, 75%" in figure.get_label() and "8.0 seconds in all" in figure.get_label()
    assert figure_png(figure) == figure_png(plot_steps(steps))


def _rgba(colour: str) -> tuple[float, ...]:
    return (*(int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)), 1.0)


def test_steps_without_time_or_without_any_step() -> None:
    assert "0.0 seconds" in plot_steps(pd.DataFrame({"name": ["a"], "seconds": [0.0]})).get_label()
    nothing = plot_steps(pd.DataFrame({"name": [], "seconds": []}))
    assert "no step has ended" in nothing.get_label()
    with pytest.raises(CryptoMLError, match="seconds"):
        plot_steps(pd.DataFrame({"name": ["a"]}))
