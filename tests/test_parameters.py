"""Run parameters: every wrong value is named at once, and nothing is turned into something else."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from crypto_ml import parameters as module
from crypto_ml.errors import CryptoMLError, InputError, RunError, SettingsError, nearest_name
from crypto_ml.parameters import (
    TIMEFRAMES,
    RunParameters,
    expectation,
    parameter_table,
    resolve_parameters,
    utc_time,
)

FIELDS = RunParameters.model_fields
DEFAULTS = RunParameters()


def problems(**values: Any) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        RunParameters(**values)
    assert len(caught.value.problems) == len(str(caught.value).splitlines()) - 1
    return caught.value.problems


def only(**values: Any) -> str:
    (line,) = problems(**values)
    return line


# What each parameter takes, and values just beyond it.
GOOD_AND_BAD: dict[str, tuple[list[Any], list[Any]]] = {
    "source": (["sim:none", "data/binance_BTCUSDT_1h.parquet"], ["", " sim:none", 7]),
    "exchange": ([""], ["bin ance", "a/b", None]),
    "symbol": ([""], ["BTC USDT", "BTC_JPY", 7]),
    "timeframe": (["", "1m", "1w"], ["60m", "1H", "1M", 60]),
    "resample": (["", "4h"], ["4hours", 4]),
    "days": ([0, 0.5, 360], [-1, "360", True, math.nan, math.inf, None]),
    "start": (
        ["", "2024-01-31", "2024-01-31T12:00Z"],
        ["yesterday", "2024-01-31T12:00+02:00", 2024],
    ),
    "end": (["", "2024-01-31"], ["31.01.2024", None]),
    "max_gap": ([0, 10], [-1, 1.0, "3", True]),
    "missing": (["drop", "keep"], ["fill", ""]),
    "revisions": (["first_final", "latest"], ["first", None]),
    "label": (["direction", "threshold", "triple_barrier"], ["treshold", "", 1]),
    "horizon": ([1, 48], [0, 1.5, True]),
    "threshold": ([0, 0.003, 0.5], [-0.1, 0.51, "0.003", math.nan]),
    "upper_multiple": ([0.5, 3], [0, -1, math.inf]),
    "lower_multiple": ([0.5, 3], [0, "2"]),
    "volatility_window": ([2, 100], [1, 2.0]),
    "features": ([["close"], ("close", "rsi_14")], [[], ["close", "close"], "close", ["a b"], [7]]),
    "feature_set": (["", "catalogue", "btc-hourly@2"], ["Btc", "btc@0", "two words", 12]),
    "expand": (
        [{}, {"timeframes": ["4h", "1d"], "lags": [1, 24]}, {"symbols": ["ETHUSDT"]}],
        [
            {"timeframe": ["4h"]},
            {"lags": []},
            {"lags": [1, 1]},
            {"lags": [0]},
            {"lags": ["1"]},
            {"timeframes": ["4hours"]},
            {"symbols": [7]},
            ["4h"],
        ],
    ),
    "weights": (
        [{"lightgbm": 1}, {"xgboost": 0.3, "random_forest": 0}],
        [
            {},
            {"lightgbm": 0},
            {"lightgbm": -1, "xgboost": 2},
            {"catboost": 1},
            {"xgboost": math.nan},
        ],
    ),
    "decision_threshold": ([0.01, 0.99], [0, 1, 0.0, 1.0]),
    "lightgbm": (
        [{}, {"max_depth": 3}],
        [{"seed": 1}, {"n_jobs": 2}, {"x": math.nan}, {"x": {1}}, 7],
    ),
    "xgboost": ([{"eta": 0.1}], [{"nthread": 2}, {"random_state": 1}, {"verbosity": 0}]),
    "random_forest": ([{"max_depth": None}], [{"random_state": 1}, {"n_jobs": -1}]),
    "n_splits": ([2, 100], [1, 101, 5.0]),
    "holdout": ([0.05, 0.5], [0, 0.04, 0.6, True]),
    "embargo": ([0, 24], [-1, 0.5]),
    "max_train_size": ([0, 100], [-1, 1.0]),
    "resamples": ([40, 10000], [19, 1000.0]),
    "confidence": ([0.5, 0.99], [0.49, 1, 95]),
    "round_trip_cost": ([0, 0.01], [-0.001, 0.6]),
    "surrogates": ([0, 19], [-1, 1001, 1.0]),
    "seed": ([0, 2**31 - 1], [-1, 2**31, 1.0, False]),
    "jobs": ([0, 8], [-1, 1.5]),
    "run_folder": (["", "runs/x"], [None, 1]),
}


def test_every_parameter_is_tested() -> None:
    assert list(GOOD_AND_BAD) == list(FIELDS)


@pytest.mark.parametrize("name", FIELDS)
def test_good_values_are_kept_as_they_are(name: str) -> None:
    for value in GOOD_AND_BAD[name][0]:
        kept = getattr(RunParameters(**{name: value}), name)
        assert kept == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize("name", FIELDS)
def test_a_bad_value_is_named_with_what_was_expected(name: str) -> None:
    for value in GOOD_AND_BAD[name][1]:
        line = only(**{name: value})
        assert line.startswith(name) and " = " in line, line
        assert f"expected {expectation(FIELDS[name])}" in line


def test_every_problem_is_in_one_error() -> None:
    bad = {name: values[0] for name, (_, values) in GOOD_AND_BAD.items()}
    lines = problems(**bad, dayz=1)
    assert len(lines) == len(bad) + 1
    assert {line.split(" ")[0].split(".")[0] for line in lines} == {*bad, "dayz"}


@pytest.mark.parametrize(
    ("name", "meant"), [("dayz", "days"), ("Horizon", "horizon"), ("n_split", "n_splits")]
)
def test_an_unknown_name_suggests_the_nearest(name: str, meant: str) -> None:
    assert only(**{name: 1}) == f"{name} = 1: no such parameter; did you mean {meant!r}?"


CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"days": 10, "start": "2024-01-01"}, "either days, or start and end"),
    ({"days": 10, "end": "2024-01-01"}, "either days, or start and end"),
    ({"start": "2024-01-02", "end": "2024-01-02"}, "start must lie before end"),
    ({"start": "2024-01-02", "end": "2024-01-01T23:59Z"}, "start must lie before end"),
    ({"timeframe": "1h", "resample": "1h"}, "whole multiple of timeframe"),
    ({"timeframe": "4h", "resample": "1h"}, "whole multiple of timeframe"),
    ({"timeframe": "2h", "resample": "3h"}, "whole multiple of timeframe"),
    ({"exchange": "binance"}, "a simulated market has its own name"),
    ({"source": "sim:none", "symbol": "BTCUSDT"}, "a simulated market has its own name"),
    ({"feature_set": "catalogue", "features": ("close",)}, "name a set or list features"),
    ({"max_train_size": 99}, "at least 100 rows"),
    ({"resamples": 39}, "more resamples or less confidence"),
    ({"resamples": 100, "confidence": 0.99}, "more resamples or less confidence"),
]


@pytest.mark.parametrize(("values", "words"), CONTRADICTIONS)
def test_contradictions_are_refused(values: dict[str, Any], words: str) -> None:
    line = only(**values)
    assert words in line
    assert all(f"{name} = {value!r}" in line for name, value in values.items())


@pytest.mark.parametrize(
    "values",
    [
        {"start": "2024-01-01", "end": "2024-01-02"},
        {"timeframe": "1h", "resample": "4h"},
        {"source": "prices.csv", "exchange": "binance", "symbol": "BTCUSDT", "timeframe": "1h"},
        {"resamples": 40},
        {"resamples": 200, "confidence": 0.99},
        {"label": "direction", "threshold": 0.01},
        {"feature_set": "catalogue", "features": DEFAULTS.features},
    ],
)
def test_what_only_looks_contradictory_is_accepted(values: dict[str, Any]) -> None:
    assert RunParameters(**values).model_dump(include=set(values)) == values


def test_contradictions_are_listed_beside_wrong_values_but_not_about_them() -> None:
    lines = problems(horizon=0, days=10, start="2024-01-01", end="soon")
    assert sum("either days" in line for line in lines) == 0  # end is among its names, and wrong
    assert len(lines) == 2
    lines = problems(horizon=0, start="2024-01-02", end="2024-01-01")
    assert len(lines) == 2 and "start must lie before end" in lines[1]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([*FIELDS, "dayz"]), JSON, max_size=4))
@example({"days": 10**400})
@example({"weights": {"lightgbm": 10**400}})
@example({"start": "0001-01-01T00:00+23:59"})
def test_anything_is_either_accepted_unchanged_or_refused_by_name(given_: dict[str, Any]) -> None:
    try:
        resolved = resolve_parameters(DEFAULTS, given_)
    except SettingsError as error:
        assert error.problems
        assert all(any(name in line for name in given_) for line in error.problems)
    else:
        dumped = json.loads(json.dumps(resolved.model_dump(mode="json"), allow_nan=False))
        for name, value in given_.items():
            assert dumped[name] == value and isinstance(dumped[name], bool) == isinstance(
                value, bool
            )
        assert RunParameters(**dumped) == resolved


def test_given_values_win_over_defaults_as_a_whole() -> None:
    defaults = RunParameters(lightgbm={"n_estimators": 10, "max_depth": 3}, days=30)
    resolved = resolve_parameters(defaults, {"lightgbm": {"n_estimators": 50}, "horizon": 4})
    assert resolved.lightgbm == {"n_estimators": 50}
    assert (resolved.days, resolved.horizon) == (30, 4)
    assert defaults.lightgbm == {"n_estimators": 10, "max_depth": 3}


def test_parameters_are_frozen_and_share_nothing() -> None:
    with pytest.raises(ValidationError):
        DEFAULTS.days = 3  # type: ignore[misc]
    given_ = {"lightgbm": {"max_depth": 3}}
    resolved = resolve_parameters(DEFAULTS, given_)
    given_["lightgbm"]["max_depth"] = 4
    assert resolved.lightgbm == {"max_depth": 3}
    RunParameters().weights["lightgbm"] = 9.0
    assert RunParameters().weights["lightgbm"] == 0.4


def test_the_defaults_are_those_of_the_design() -> None:
    assert DEFAULTS.lightgbm == {
        "n_estimators": 200,
        "learning_rate": 0.1,
        "max_depth": 8,
        "num_leaves": 31,
    }
    assert DEFAULTS.xgboost == {"n_estimators": 200, "learning_rate": 0.1, "max_depth": 8}
    assert DEFAULTS.random_forest == {"n_estimators": 200, "max_depth": 12}
    assert DEFAULTS.weights == {"lightgbm": 0.4, "xgboost": 0.4, "random_forest": 0.2}
    assert (DEFAULTS.n_splits, DEFAULTS.holdout, DEFAULTS.seed) == (5, 0.2, 42)
    assert DEFAULTS.features[:2] == ("close", "volume") and len(DEFAULTS.features) == 12


def test_the_table_explains_every_parameter_but_the_internal_one() -> None:
    table = parameter_table()
    assert list(table.index) == [name for name in FIELDS if name != "run_folder"]
    assert (table["description"].str.len() > 5).all() and (table["expected"].str.len() > 3).all()
    assert [json.loads(text) for text in table["default"]] == [
        DEFAULTS.model_dump(mode="json")[name] for name in table.index
    ]


def test_a_long_value_is_cut_in_a_message() -> None:
    assert len(only(symbol="x " * 1000)) < 300


@pytest.mark.parametrize("text", ["2024-01-31", "2024-01-31T00:00Z", "2024-01-31 00:00:00+00:00"])
def test_utc_times(text: str) -> None:
    assert utc_time(text).isoformat() == "2024-01-31T00:00:00+00:00"


def test_another_offset_says_which_utc_time_is_meant() -> None:
    with pytest.raises(ValueError, match="write 2024-01-31T10:00:00"):
        utc_time("2024-01-31T12:00+02:00")
    with pytest.raises(ValueError, match="not an ISO date"):
        utc_time("0001-01-01T00:00+23:59")


def test_bar_lengths_fit_into_a_day_or_are_whole_days() -> None:
    assert all(1440 % minutes == 0 or minutes % 1440 == 0 for minutes in TIMEFRAMES.values())
    assert len(set(TIMEFRAMES.values())) == len(TIMEFRAMES)


def test_errors_are_one_family_with_exit_codes() -> None:
    assert issubclass(SettingsError, InputError) and issubclass(InputError, CryptoMLError)
    assert (SettingsError.exit_code, RunError.exit_code) == (2, 1)
    error = SettingsError.listing("with x", ["a", "b"])
    assert type(error) is SettingsError and error.problems == ("a", "b")
    assert str(error) == "2 problems with x:\n- a\n- b"


@given(st.lists(st.text("abcdef_", min_size=3, max_size=12), min_size=1, max_size=8, unique=True))
def test_the_nearest_name_of_a_name_is_itself(names: list[str]) -> None:
    assert all(nearest_name(name.upper(), names) == name for name in names)
    assert nearest_name("123456789", names) is None


def test_no_private_name_is_public() -> None:
    assert all(hasattr(module, name) for name in module.__all__)
    assert not any(name.startswith("_") for name in module.__all__)


def test_a_set_beside_the_default_features_as_a_notebook_hands_them_over() -> None:
    given = {"feature_set": "catalogue", "features": list(DEFAULTS.features)}
    assert RunParameters(**given).feature_set == "catalogue"
