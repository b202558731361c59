"""What the models see: sets by name, and the expansion."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from crypto_ml.candles import Candles, candles_from_frame
from crypto_ml.catalogue import CATALOGUE_FEATURES
from crypto_ml.feature_sets import make_feature_set, save_feature_set
from crypto_ml.features import DEFAULT_FEATURES, feature_matrix, feature_schema
from crypto_ml.inputs import build_inputs, input_warm_up, with_feature_set
from crypto_ml.settings import FeatureError, RunParameters
from crypto_ml.simulate import simulate

CANDLES = simulate("sim:vol", bars=2500).candles
EXPAND = {"timeframes": ["4h"], "lags": [2], "symbols": ["ETHUSDT"]}
SHORT = RunParameters(features=("returns_1", "zscore"), expand=EXPAND)


def other(seed: int = 7) -> Candles:
    return simulate("sim:vol", bars=2500, seed=seed).candles


def test_without_a_set_the_parameters_stay_as_they_are(tmp_path: Path) -> None:
    assert with_feature_set(RunParameters(), tmp_path) == (RunParameters(), None)


def test_a_set_becomes_its_features(tmp_path: Path) -> None:
    parameters, chosen = with_feature_set(RunParameters(feature_set="catalogue"), tmp_path)
    assert parameters.features == CATALOGUE_FEATURES and len(parameters.features) == 97
    assert chosen is not None and chosen.reference == "catalogue@1"
    assert RunParameters(**parameters.model_dump()) == parameters


def test_a_saved_set_is_found_by_name_and_by_version(tmp_path: Path) -> None:
    save_feature_set(tmp_path, make_feature_set("mine", ["close", "rsi_14"]))
    save_feature_set(tmp_path, make_feature_set("mine", ["zscore"]))
    for reference, features in {"mine": ("zscore",), "mine@1": ("close", "rsi_14")}.items():
        parameters, _ = with_feature_set(RunParameters(feature_set=reference), tmp_path)
        assert parameters.features == features


def test_an_unknown_set_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match="'stationary'"):
        with_feature_set(RunParameters(feature_set="stationery"), tmp_path)


def test_without_an_expansion_the_inputs_are_the_features() -> None:
    inputs = build_inputs(CANDLES, RunParameters())
    pd.testing.assert_frame_equal(inputs.frame, feature_matrix(CANDLES))
    assert inputs.schema == feature_schema(DEFAULT_FEATURES)
    assert inputs.without_partner == {}


def test_an_expansion_multiplies() -> None:
    inputs = build_inputs(CANDLES, SHORT, {"ETHUSDT": other()})
    assert inputs.frame.shape[1] == len(SHORT.features) * 2 * 2 * 2
    assert [entry["name"] for entry in inputs.schema] == list(inputs.frame.columns)
    assert set(inputs.without_partner) == {"4h", "ethusdt", "ethusdt_4h"}


def test_the_warm_up_is_enough() -> None:
    warm_up = input_warm_up(SHORT, CANDLES.market)
    frame = build_inputs(CANDLES, SHORT, {"ETHUSDT": other()}).frame
    assert frame.iloc[warm_up:].notna().all().all()
    assert frame.iloc[: warm_up // 2].isna().any(axis=1).all()


def test_nothing_of_any_market_reaches_back(cut: int = 2200) -> None:
    known = CANDLES.known_at[cut]

    def ruined(candles: Candles) -> Candles:
        frame = candles.frame.copy()
        frame[candles.known_at > known] *= 3.0
        return candles_from_frame(frame, candles.market, "ruined")

    whole = build_inputs(CANDLES, SHORT, {"ETHUSDT": other()}).frame
    changed = build_inputs(ruined(CANDLES), SHORT, {"ETHUSDT": ruined(other())}).frame
    pd.testing.assert_frame_equal(whole.iloc[: cut + 1], changed.iloc[: cut + 1], check_exact=True)
    assert not whole.iloc[cut + 1 :].equals(changed.iloc[cut + 1 :])
