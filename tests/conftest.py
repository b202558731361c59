"""Fixtures and settings that every test shares."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import matplotlib as mpl
import pytest

ROOT = Path(__file__).resolve().parent.parent

# Before any numeric library is loaded: fits run side by side in processes, one thread in each.
for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")

# Not by a variable: kernels that a test starts shall draw into their notebooks as ever.
mpl.use("agg")

# A busy machine is no defect; in CI the same examples are tried every time.
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(scope="session")
def real_candles_folder() -> Path:
    """Folder of real exchange candles: CRYPTO_ML_DATA, or ../shared/data beside the repository.

    A test is skipped only where nobody said that there are candles and none are there.
    """
    named = os.environ.get("CRYPTO_ML_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if named and not any(folder.glob("*.parquet")):
        pytest.fail(f"CRYPTO_ML_DATA names {folder}, which holds no Parquet file")
    if not folder.is_dir():
        pytest.skip(f"no real candles in {folder}; set CRYPTO_ML_DATA to run this test")
    return folder


@pytest.fixture(autouse=True, scope="session")
def compiled_forms() -> Iterator[dict[str, Callable[[Path], bytes]]]:
    """Make versions without the compiled form of their models; give it to the tests about it."""
    made = importlib.import_module("crypto_ml.versions").FURTHER_FILES
    forms = dict(made)
    made.clear()
    yield forms
    made.update(forms)
