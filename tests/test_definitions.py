"""A definition's hash follows behaviour: everything that decides values, and nothing else."""

from __future__ import annotations

import functools
import importlib.util
import linecache
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import nbformat
import numpy as np
import pytest

from crypto_ml import features
from crypto_ml.definitions import definition_hash, source_of
from crypto_ml.errors import FeatureError
from crypto_ml.features import DEFAULT_FEATURES, FEATURES, Feature

ROOT = Path(__file__).resolve().parent.parent

BASE = '''
import numpy as np
from crypto_ml.features import feature

SHIFT = 1
POWER = 2

def deepest(x):
    return x + 3

def helper(x, power=POWER):
    return deepest(x) ** power

@feature(lookback=2, scale="ratio", period=2)
def hashed(close, period):
    """Say something."""
    inner = lambda values: values * SHIFT
    return inner(helper(close)) / period
'''


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Callable[..., Feature]]:
    """Make modules of the same name out of sources, one after the other."""
    number = 0

    def make(source: str) -> Feature:
        nonlocal number
        number += 1
        path = tmp_path / f"version_{number}.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location("made_for_a_test", path)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return FEATURES["hashed"]

    yield make
    FEATURES.pop("hashed", None)


def test_the_base_is_stable(build: Callable[..., Feature]) -> None:
    assert build(BASE).definition_hash == build(BASE).definition_hash
    assert re.fullmatch("[0-9a-f]{64}", build(BASE).definition_hash)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("/ period\n", "* period\n"),  # the body
        ("** power", "* power"),  # a helper
        ("x + 3", "x + 4"),  # a helper of a helper
        ("SHIFT = 1", "SHIFT = 2"),  # a constant, read by a nested function
        ("SHIFT = 1", "SHIFT = 1.0"),  # its type
        ("POWER = 2", "POWER = 3"),  # a helper's default, by value
        ('scale="ratio", period=2', 'scale="ratio", period=3'),
        ("lookback=2", "lookback=3"),
        ('scale="ratio"', 'scale="price"'),
        ("close, period):", "open, period):"),  # an input, and so the body
        ("import numpy as np", "import numpy as np\ndeepest = np.exp"),  # what a name stands for
    ],
)
def test_a_change_that_counts(build: Callable[..., Feature], old: str, new: str) -> None:
    changed = BASE.replace(old, new).replace("close", "open" if "open, period" in new else "close")
    if "deepest = np.exp" in new:
        changed = changed.replace("def deepest(x):\n    return x + 3\n", "")
    assert changed != BASE
    assert build(BASE).definition_hash != build(changed).definition_hash


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""Say something."""', '"""Say something else.\n\n    At length.\n    """'),
        ('    """Say something."""\n', ""),
        ("x + 3", "(\n        x  +  3  # three\n    )"),
        ("def deepest(x):", 'def deepest(x: "int") -> "float":\n    """Add."""'),
        ("\nSHIFT", "\n# moved down\n\n\nUNUSED = 9\nSHIFT"),
        ("import numpy as np\n", ""),
        ("lookback=2, scale", "\n    lookback=2,\n    scale"),
        ("lookback=2", "lookback=1 + 1"),
        ("@feature", "# a comment above\n@feature"),
        ("def helper", "def unused(x):\n    return x\n\ndef helper"),
    ],
)
def test_a_change_that_does_not_count(build: Callable[..., Feature], old: str, new: str) -> None:
    changed = BASE.replace(old, new)
    assert changed != BASE
    assert build(BASE).definition_hash == build(changed).definition_hash


HALVE = """SHIFT = 1

import functools

def divided(by):
    def decorate(function):
        @functools.wraps(function)
        def inner(close, period):
            return function(close, period) / by
        return inner
    return decorate
"""


@pytest.mark.parametrize(("old", "new"), [("/ by", "* by"), ("@divided(2)", "@divided(3)")])
def test_a_further_decorator_counts(build: Callable[..., Feature], old: str, new: str) -> None:
    decorated = BASE.replace("SHIFT = 1", HALVE).replace("def hashed", "@divided(2)\ndef hashed")
    first = build(decorated).definition_hash
    assert first == build(decorated.replace("SHIFT", "SHIFT")).definition_hash
    assert first != build(BASE).definition_hash
    assert first != build(decorated.replace(old, new)).definition_hash
    assert first != build(decorated.replace("x + 3", "x + 4")).definition_hash


def test_a_notebook_kernel_and_the_package_agree() -> None:
    """The exported cells, run as a kernel runs them (module __main__), give the same hashes."""
    notebook = nbformat.read(ROOT / "nbs" / "20_features.ipynb", as_version=4)
    kernel = types.ModuleType("__main__")
    for position, cell in enumerate(notebook.cells):
        if cell.cell_type == "code" and cell.source.startswith("#| export"):
            name = f"<cell {position}>"
            linecache.cache[name] = (1, None, cell.source.splitlines(keepends=True), name)
            exec(compile(cell.source, name, "exec"), vars(kernel))
    assert kernel.FEATURES["rsi_14"].function.__module__ == "__main__"
    for name in DEFAULT_FEATURES:
        assert kernel.FEATURES[name].definition_hash == FEATURES[name].definition_hash, name


def test_another_process_agrees() -> None:
    code = (
        "from crypto_ml.features import feature_schema; "
        "print(*[item['definition_hash'] for item in feature_schema()])"
    )
    command = [sys.executable, "-c", code]
    seeded = {
        "PYTHONHASHSEED": "7",
        "PATH": "",
        "PYTHONPATH": str(Path(features.__file__).parents[1]),
    }
    told = subprocess.run(command, env=seeded, capture_output=True, text=True, check=True)
    assert told.stdout.split() == [FEATURES[name].definition_hash for name in DEFAULT_FEATURES]


def test_the_twelve_differ() -> None:
    assert len({FEATURES[name].definition_hash for name in DEFAULT_FEATURES}) == 12


def test_helpers_of_the_package_are_followed() -> None:
    names = {name for name, _ in source_of(FEATURES["bb_position"].function)}
    assert {"bb_position", "standard_score", "deviations", "ratio"} <= names


def closure(amount: object) -> Callable[..., object]:
    def inner(close):  # type: ignore[no-untyped-def]
        return close, amount

    return inner


def test_a_closure_counts_by_value() -> None:
    assert source_of(closure(2)) == source_of(closure(2))
    assert source_of(closure(2)) != source_of(closure(3))


class Own:
    def value(self) -> int:
        return LIMIT


LIMIT = 5


def uses_class() -> int:
    return Own().value()


@functools.cache
def cached(x: int) -> int:
    return x + LIMIT


def keywords(x: int, *, most: int = LIMIT) -> int:
    return cached(min(x, most))


def test_classes_wrapped_functions_and_keyword_defaults_are_followed() -> None:
    assert {name for name, _ in source_of(uses_class)} == {"uses_class", "Own", "LIMIT"}
    found = dict(source_of(keywords))
    assert set(found) == {"keywords", "keywords default most", "cached", "LIMIT"}
    assert "x + LIMIT" in found["cached"]
    assert found["keywords default most"] == "5"


def test_arrays_are_constants_and_libraries_are_names() -> None:
    table = np.array([1.0, 2.0])
    assert dict(source_of(closure(table)))["amount"] == '["float64", [1.0, 2.0]]'
    assert dict(source_of(closure(np.float32(2))))["amount"] == '["float32", 2.0]'
    assert dict(source_of(closure(np)))["amount"] == "module numpy"
    assert dict(source_of(closure(np.diff)))["amount"] == "numpy.diff"
    assert "exp" in dict(source_of(closure(np.exp)))["amount"]


def recursive(n: int) -> int:
    return n and recursive(n - 1)


def test_recursion_ends() -> None:
    assert [name for name, _ in source_of(recursive)] == ["recursive"]


@pytest.mark.parametrize("value", [object(), {1, 2}, features])
def test_what_cannot_be_hashed_is_refused(value: object | ModuleType) -> None:
    with pytest.raises(FeatureError, match=r"'amount'.*cannot be hashed; expected a constant"):
        source_of(closure(value))


def test_code_without_source_is_refused() -> None:
    namespace: dict[str, Callable[..., object]] = {}
    exec("def typed(close):\n    return close", namespace)
    namespace["typed"].__module__ = "__main__"
    with pytest.raises(FeatureError, match="source of 'typed' cannot be read"):
        source_of(namespace["typed"])


def test_the_hash_of_a_definition() -> None:
    assert definition_hash({"a": 1, "b": (2,)}) == definition_hash({"b": [2], "a": 1})
    assert definition_hash({"a": 20}) != definition_hash({"a": 20.0})
