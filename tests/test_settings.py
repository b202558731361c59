"""settings.ini: every key is used, every mistake is named, and text means what its type says."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crypto_ml import settings as module
from crypto_ml.settings import (
    INTERNAL,
    MODEL_NAMES,
    OPERATION,
    RunParameters,
    SettingsError,
    find_project,
    load_settings,
    parse_assignments,
    resolve_parameters,
    section_keys,
)

ROOT = Path(__file__).resolve().parent.parent
OWN = (ROOT / "settings.ini").read_text()
DEFAULTS = RunParameters()

# For each key another value than the default, in text and as it must be understood.
OTHER: dict[str, tuple[str, Any]] = {
    "lib_path": ("lib", "lib"),
    "nbs_path": ("notebooks", "notebooks"),
    "runs_path": ("../runs", "../runs"),
    "models_path": ("m", "m"),
    "source": ("sim:none", "sim:none"),
    "exchange": ("kraken", "kraken"),
    "symbol": ("007", "007"),
    "timeframe": ("1h", "1h"),
    "resample": ("4h", "4h"),
    "days": ("360", 360.0),
    "start": ("2024-01-31", "2024-01-31"),
    "end": ("2024-01-31T12:00Z", "2024-01-31T12:00Z"),
    "max_gap": ("5", 5),
    "missing": ("keep", "keep"),
    "revisions": ("latest", "latest"),
    "label": ("direction", "direction"),
    "horizon": ("4", 4),
    "threshold": ("1e-3", 0.001),
    "upper_multiple": ("3", 3.0),
    "lower_multiple": ("1.5", 1.5),
    "volatility_window": ("50", 50),
    "features": ("close,\n  rsi_14", ("close", "rsi_14")),
    "feature_set": ("catalogue", "catalogue"),
    "expand": ('{"timeframes": ["4h"], "lags": [1]}', {"timeframes": ["4h"], "lags": [1]}),
    "weights": ("lightgbm=1, xgboost=0.5", {"lightgbm": 1.0, "xgboost": 0.5}),
    "decision_threshold": ("0.6", 0.6),
    "n_splits": ("3", 3),
    "holdout": ("0.3", 0.3),
    "embargo": ("24", 24),
    "max_train_size": ("1000", 1000),
    "resamples": ("200", 200),
    "confidence": ("0.9", 0.9),
    "round_trip_cost": ("0", 0.0),
    "surrogates": ("19", 19),
    "seed": ("7", 7),
    "jobs": ("2", 2),
}
KEYS = [(section, key) for section, keys in section_keys().items() for key in keys]
ORDINARY = [(section, key) for section, key in KEYS if section not in {*MODEL_NAMES, *OPERATION}]
OPERATING = [(section, key) for section, key in KEYS if section in OPERATION]


def load(folder: Path, text: str) -> module.Settings:
    path = folder / "settings.ini"
    path.write_text(text)
    return load_settings(path)


def problems(folder: Path, text: str) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        load(folder, text)
    assert str(folder / "settings.ini") in str(caught.value)
    return caught.value.problems


def value_of(settings: module.Settings, section: str, key: str) -> object:
    return getattr(settings.project if section == "project" else settings.defaults, key)


def own() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, inline_comment_prefixes=("#",))
    parser.read_string(OWN)
    return parser


def test_the_file_says_the_same_as_the_class() -> None:
    settings = load_settings(ROOT / "settings.ini")
    assert settings.defaults == DEFAULTS
    assert settings.project == module.ProjectPaths()
    for section, kind in OPERATION.items():
        assert getattr(settings, section) == kind()
    assert settings.root == ROOT
    assert settings.runs_folder == ROOT / "runs" and settings.nbs_folder == ROOT / "nbs"
    assert settings.models_folder == ROOT / "models"


def test_the_file_holds_every_key_and_a_comment_for_each() -> None:
    parser = own()
    assert parser.sections() == list(section_keys())
    for section, keys in section_keys().items():
        if section not in MODEL_NAMES:
            assert tuple(parser[section]) == keys
    assert set(OTHER) == {key for _, key in ORDINARY}
    uncommented = [
        line for line in OWN.splitlines() if re.match(r"\w+ =", line) and "#" not in line
    ]
    own_models = [key for name in MODEL_NAMES for key in parser[name]]
    assert [line.split()[0] for line in uncommented] == ["features", *own_models]


def test_nbdev_reads_the_same_paths_in_pyproject() -> None:
    nbdev = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["nbdev"]
    project = load_settings(ROOT / "settings.ini").project
    assert (nbdev["lib_path"], nbdev["nbs_path"]) == (project.lib_path, project.nbs_path)


@pytest.mark.parametrize(("section", "key"), ORDINARY)
def test_each_key_is_used_and_may_be_left_out(section: str, key: str, tmp_path: Path) -> None:
    text, meant = OTHER[key]
    source = "source = prices.csv\n" if key in {"exchange", "symbol"} else ""
    changed = load(tmp_path, f"[{section}]\n{source}{key} = {text}\n")
    assert value_of(changed, section, key) == meant
    parser = own()
    parser.remove_option(section, key)
    with (tmp_path / "shorter.ini").open("w") as file:
        parser.write(file)
    assert load_settings(tmp_path / "shorter.ini").defaults == DEFAULTS


def other_than(default: object) -> tuple[str, object]:
    """Text of a value that is not the default, and what it must be read as."""
    if isinstance(default, bool):
        return str(not default).lower(), not default
    if isinstance(default, (int, float)):
        return str(default / 2 if isinstance(default, float) else default + 1), (
            default / 2 if isinstance(default, float) else default + 1
        )
    return "elsewhere", "elsewhere"


@pytest.mark.parametrize(("section", "key"), OPERATING)
def test_each_key_of_the_operation_is_read_or_refused_by_name(
    section: str, key: str, tmp_path: Path
) -> None:
    text, meant = other_than(getattr(OPERATION[section](), key))
    try:
        changed = load(tmp_path, f"[{section}]\n{key} = {text}\n")
    except SettingsError as error:
        assert f"[{section}] {key} = " in str(error)
        return
    assert getattr(getattr(changed, section), key) in (meant, (meant,))


def test_mistakes_of_the_operation_are_named_with_the_rest(tmp_path: Path) -> None:
    found = problems(
        tmp_path, "[gates]\nrequire_edg = true\n[production]\nexpires_after = -1\n[run]\nsed = 1\n"
    )
    assert len(found) == 3
    assert found[0].startswith("[gates] require_edg: no such key; did you mean 'require_edge'?")
    assert found[1].startswith("[production] expires_after = ") and "above 0" in found[1]
    assert "did you mean 'seed'" in found[2]


@pytest.mark.parametrize("model", MODEL_NAMES)
def test_a_models_section_is_all_that_the_estimator_is_given(model: str, tmp_path: Path) -> None:
    text = f"[{model}]\nn_estimators = 50\nboosting = dart\nx = null\ny = [1, 2]\nz = false\n"
    kept = getattr(load(tmp_path, text).defaults, model)
    assert kept == {"n_estimators": 50, "boosting": "dart", "x": None, "y": [1, 2], "z": False}
    assert getattr(load(tmp_path, "").defaults, model) == getattr(DEFAULTS, model)
    assert getattr(load(tmp_path, f"[{model}]\n").defaults, model) == {}


def test_every_mistake_is_in_one_error(tmp_path: Path) -> None:
    text = """[project]
    runs_path =
    [markets]
    [market]
    day = 3
    horizon = 2
    [label]
    threshold = 0,3 %
    Horizon = 2
    [features]
    features = ["close"
    [ensemble]
    weights = lightgbm
    [xgboost]
    max_depth = 1 2
    seed = 3
    [validation]
    n_splits = 1
    [run]
    run_folder = x
    """
    lines = problems(tmp_path, re.sub("^ +", "", text, flags=re.M))
    expected = [
        "[project] runs_path is empty",
        "[markets]: no such section; did you mean 'market'?",
        "[market] day: no such key; did you mean 'days'?",
        "[market] horizon: this key belongs in [label]",
        "[label] threshold = '0,3 %': expected a number",
        "[label] Horizon: no such key; did you mean 'horizon'?",
        "[features] features = '[\"close\"': expected a list of names, each once; not JSON",
        "[ensemble] weights = 'lightgbm': expected numbers",
        "[xgboost] max_depth = '1 2': write a plain value",
        "[run] run_folder: set by crypto-ml for each run, not here",
        "xgboost = {'seed': 3}: expected",
        "n_splits = 1: expected a whole number",
    ]
    assert len(lines) == len(expected)
    for start in expected:
        assert any(line.startswith(start) for line in lines), (start, lines)


@pytest.mark.parametrize(
    "text",
    [
        "days = 3\n",
        "[market]\ndays\n",
        "[market]\ndays = 3\ndays = 4\n",
        "[market]\ndays = 3\n[market]\nstart =\n",
    ],
)
def test_a_malformed_file_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="not a well-formed settings file"):
        load(tmp_path, text)


def test_the_default_section_of_configparser_is_no_back_door(tmp_path: Path) -> None:
    assert "no such section" in problems(tmp_path, "[DEFAULT]\ndays = 3\n[market]\n")[0]


def test_a_percent_sign_and_a_byte_order_mark_are_nothing_special(tmp_path: Path) -> None:
    settings = load(tmp_path, "\ufeff[market]\nsource = 100%(x)s.csv  # odd\n")
    assert settings.defaults.source == "100%(x)s.csv"


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere.ini cannot be read: No such file"):
        load_settings(tmp_path / "nowhere.ini")
    (tmp_path / "settings.ini").write_bytes(b"[market]\nsource = \xff\n")
    with pytest.raises(SettingsError, match="not a well-formed settings file"):
        load_settings(tmp_path / "settings.ini")


# Text and what it means


@pytest.mark.parametrize(("section", "key"), [pair for pair in ORDINARY if pair[0] != "project"])
def test_the_command_line_reads_as_the_file_does(section: str, key: str) -> None:
    text, meant = OTHER[key]
    given_ = parse_assignments([f"{key}={text}"])
    source = {"source": "prices.csv"} if key in {"exchange", "symbol"} else {}
    assert getattr(resolve_parameters(DEFAULTS, {**given_, **source}), key) == meant


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("lightgbm=linear_tree=True, x=None", {"linear_tree": True, "x": None}),
        ('features=["close", "rsi_14"]', ["close", "rsi_14"]),
        ("features= close , rsi_14 ,", ["close", "rsi_14"]),
        ('lightgbm={"n_estimators": 50}', {"n_estimators": 50}),
        ("lightgbm=n_estimators=50, boosting=dart", {"n_estimators": 50, "boosting": "dart"}),
        ("xgboost=", {}),
        ("source=a=b.csv", "a=b.csv"),
        ("symbol=007", "007"),
    ],
)
def test_text_is_read_by_the_parameters_type(text: str, value: object) -> None:
    assert parse_assignments([text]) == {text.partition("=")[0]: value}


@given(st.floats(0, 1e6), st.integers(1, 10**6), st.floats(0, 1))
def test_numbers_survive_being_written_out(days: float, horizon: int, weight: float) -> None:
    given_ = parse_assignments(
        [f"days={days!r}", f"horizon={horizon}", f"weights=lightgbm=1,xgboost={weight!r}"]
    )
    resolved = resolve_parameters(DEFAULTS, given_)
    assert (resolved.days, resolved.horizon) == (days, horizon)
    assert resolved.weights == {"lightgbm": 1, "xgboost": weight}


def test_every_unreadable_text_is_in_one_error() -> None:
    wrong = {
        "days=1y": "days = '1y': expected a number: at least 0; write a plain value",
        "horizon=007": "horizon = '007': expected a whole number: at least 1; write a plain value",
        "feature=close": "feature = 'close': no such parameter; did you mean 'features'?",
        "days.x=1": "days.x: days takes a number",
        "lightgbm.=1": "lightgbm.: lightgbm takes the estimator's parameters",
        "seed": "'seed': write name=value",
        "=3": "'=3': write name=value",
        "weights={": "weights = '{': expected",
        "weights=lightgbm=1,lightgbm=2": "weights = 'lightgbm=1,lightgbm=2': expected",
        "xgboost.max_depth=a b": "xgboost.max_depth = 'a b': expected",
        "xgboost.eta=0.1": "xgboost.eta: no defaults to start from; write xgboost={...}",
    }
    with pytest.raises(SettingsError) as caught:
        parse_assignments([*wrong, "jobs=1", "jobs=2"])
    assert len(caught.value.problems) == len(wrong) + 1
    for line, start in zip(caught.value.problems, wrong.values(), strict=False):
        assert line.startswith(start)
    assert caught.value.problems[-1] == "jobs is given more than once"


def test_a_dotted_name_changes_one_entry_and_keeps_the_rest() -> None:
    given_ = parse_assignments(
        ["lightgbm.n_estimators=50", "lightgbm.max_depth=null", "weights.xgboost=0"], DEFAULTS
    )
    assert given_["lightgbm"] == {**DEFAULTS.lightgbm, "n_estimators": 50, "max_depth": None}
    assert given_["weights"] == {**DEFAULTS.weights, "xgboost": 0}
    assert RunParameters() == DEFAULTS
    assert parse_assignments(["xgboost={}", "xgboost.eta=0.1"]) == {"xgboost": {"eta": 0.1}}


# Where the project lies


def test_the_project_is_found_from_any_folder_below(tmp_path: Path) -> None:
    (tmp_path / "settings.ini").touch()
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert find_project(tmp_path / "a" / "b") == find_project(tmp_path) == tmp_path


def test_without_one_above_the_installed_package_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_project() == ROOT
    assert load_settings().root == ROOT
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=f"no settings.ini in {re.escape(str(tmp_path))}"):
        find_project()


def test_importing_settings_is_light() -> None:
    code = (
        "import sys, crypto_ml.settings\n"
        "heavy = {'numpy', 'pandas', 'sklearn', 'matplotlib', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_what_is_chosen_per_run_cannot_stand_in_the_file() -> None:
    assert not {key for _, key in KEYS} & set(INTERNAL)
