"""Every example in the notebooks, run against the installed module, so that coverage counts it."""

from __future__ import annotations

import importlib
import linecache
from pathlib import Path

import gates
import matplotlib.pyplot as plt
import nbformat
import pytest
from IPython.display import display

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "nbs").glob("[0-9][0-9]_*.ipynb"))


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_examples_of_notebook(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    notebook = nbformat.read(path, as_version=4)
    module = importlib.import_module(f"crypto_ml.{gates.exported_module(notebook)}")
    namespace = {**vars(module), "display": display}
    try:
        for position, directive, source in gates.code_cells(notebook):
            if directive not in {"export", "default_exp"}:
                # With its source in the cache, a traceback shows the line of the cell.
                name = f"{path.stem}[{position}]"
                linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
                exec(compile(source, name, "exec"), namespace)
    finally:
        plt.close("all")
