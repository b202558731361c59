"""Execute notebooks top to bottom, each in a process of its own that starts with libraries loaded.

Reads the path of a notebook from each line of its input; answers with a line of JSON: the exit code
and what the cells wrote. A kernel for each would spend most of its time importing the same.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

# Big and used by most notebooks; the project itself is imported anew in every process.
LIBRARIES = (
    "lightgbm",
    "matplotlib.pyplot",
    "pandas",
    "pyarrow.parquet",
    "pydantic",
    "scipy.stats",
    "sklearn.ensemble",
    "sklearn.linear_model",
    "talib",
    "xgboost",
)


def run_cells(path: Path) -> int:
    """Run the code cells of a notebook in its folder; return 1 at the first that fails."""
    os.chdir(path.parent)
    settings = Config()
    settings.HistoryManager.enabled = False
    settings.InteractiveShell.colors = "nocolor"
    shell = InteractiveShell.instance(config=settings)
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            shell.user_ns.pop("exit", None)
            if not shell.run_cell(cell.source, store_history=True).success:
                return 1
    return 0


def in_child(path: Path, output: int) -> None:
    """Run a notebook in this forked process, and end with it."""
    os.dup2(output, 1)
    os.dup2(output, 2)
    code = 1
    try:
        code = run_cells(path)
    except SystemExit as stop:
        print(f"a cell ended the process: {stop!r}")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Answer each line until the input ends."""
    for name in LIBRARIES:
        importlib.import_module(name)
    for line in sys.stdin:
        with tempfile.TemporaryFile() as output:
            child = os.fork()
            if not child:
                in_child(Path(line.strip()), output.fileno())
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            output.seek(0)
            said = output.read().decode(errors="replace")
        print(json.dumps({"code": code, "output": said}), flush=True)


if __name__ == "__main__":
    main()
