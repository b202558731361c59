"""What must hold of the repository: each gate takes its folder and returns what is wrong."""

from __future__ import annotations

import ast
import filecmp
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import nbformat
import readme
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

BIN = Path(sys.executable).parent
MODULE_NOTEBOOK = re.compile(r"(\d\d)_\w+")
MOST_CELLS, MOST_LINES, MOST_CELL_LINES = 60, 300, 30
UNSUITABLE = {".parquet", ".feather", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".h5", ".skops"}
MACHINE_PATH = re.compile(r"(?<![\w.$}>])/(?:work|root|home|Users|tmp)/[\w.]")

WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)

Gate = Callable[[Path], list[str]]

# A git hook sets the first three: git would then work on that repository, in whatever folder it is
# called. A measured test sets the last: the copies that gates work on are not what is measured.
NOT_PASSED_ON = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "COVERAGE_PROCESS_CONFIG"}
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name not in NOT_PASSED_ON},
    "NO_COLOR": "1",
    **{f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")},
}


def project_files(root: Path) -> list[Path]:
    """List the files of the project, relative to it: all but what .gitignore names."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    with tempfile.TemporaryDirectory() as empty:
        if not (root / ".git").exists():
            create = ["git", "init", "--quiet", "--bare", empty]
            subprocess.run(create, env=ENVIRONMENT, check=True)
            command[1:1] = ["--git-dir", empty, "--work-tree", "."]
        listed = subprocess.run(
            command, cwd=root, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=True
        )
    names = {name for name in listed.stdout.split("\0") if name}
    return sorted(Path(name) for name in names if (root / name).is_file())


@contextmanager
def project_copy(root: Path) -> Iterator[Path]:
    """Give a copy of the project that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="crypto_ml-") as folder:
        copy = Path(folder).resolve()
        for path in project_files(root):
            (copy / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / path, copy / path)
        yield copy


def run(command: Sequence[str | Path], root: Path, package: Path | None = None) -> list[str]:
    """Run a program in the folder; what it prints is the problem if it fails.

    It imports crypto_ml from there, or from another folder.
    """
    done = subprocess.run(
        command,
        cwd=root,
        env={**ENVIRONMENT, "PYTHONPATH": str(package or root)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    name = Path(command[0]).name
    return [f"{name} (exit code {done.returncode}):\n{done.stdout.strip()}"] * bool(done.returncode)


def notebooks(root: Path) -> dict[str, nbformat.NotebookNode]:
    """Read every notebook of nbs/, by its name without the ending."""
    return {
        path.stem: nbformat.read(path, as_version=4)
        for path in sorted((root / "nbs").glob("*.ipynb"))
    }


def code_cells(notebook: nbformat.NotebookNode) -> list[tuple[int, str, str]]:
    """List the code cells as position, first directive (such as "export") and source."""
    cells = []
    for position, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            directive = re.match(r"#\|\s*(\w+)", cell.source)
            cells.append((position, directive[1] if directive else "", cell.source))
    return cells


def exported_module(notebook: nbformat.NotebookNode) -> str | None:
    """Name the module that a notebook exports, if it exports one."""
    for _, directive, source in code_cells(notebook):
        if directive == "default_exp":
            return source.splitlines()[0].split("default_exp")[1].strip()
    return None


def sync(root: Path) -> list[str]:
    """Notebooks and modules say the same, both ways, and the notebooks are clean."""
    with project_copy(root) as copy:
        for module in (copy / "crypto_ml").glob("*.py"):
            if module.name != "__init__.py":
                module.unlink()
        problems = run([BIN / "nbdev-export"], copy) or run([BIN / "nbdev-clean"], copy)
        if problems:
            return problems
        folders = ("nbs", "crypto_ml")
        committed = {path for path in project_files(root) if path.parts[0] in folders}
        fresh = {path for path in project_files(copy) if path.parts[0] in folders}
        problems += [f"{path}: exported by no notebook; delete it" for path in committed - fresh]
        problems += [f"{path}: missing; run make export" for path in fresh - committed]
        problems += [
            f"{path}: "
            + ("not clean" if path.suffix == ".ipynb" else "differs from its notebook")
            + "; run make export"
            for path in committed & fresh
            if not filecmp.cmp(root / path, copy / path, shallow=False)
        ]
    return sorted(problems)


def lint(root: Path) -> list[str]:
    """Style and plain mistakes: ruff on all that is written by hand, names on what is generated."""
    ruff = BIN / "ruff"
    names = ["--select=F821", "--target-version=py311"]
    written = [name for name in ("nbs", "tests", "bench", "docs", ".ci") if (root / name).exists()]
    return [
        *run([ruff, "check", "--no-cache", "--output-format=concise", *written], root),
        *run([ruff, "format", "--no-cache", "--check", *written], root),
        *run([ruff, "check", "--no-cache", "--isolated", *names, "crypto_ml"], root),
    ]


def types(root: Path) -> list[str]:
    """Types, as strictly as mypy can."""
    return run([BIN / "mypy", "--no-error-summary"], root)


def _imported_modules(tree: ast.AST) -> Iterator[str]:
    """Name the modules of crypto_ml that a syntax tree imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "crypto_ml." * bool(node.level) + (node.module or "")
            names = [f"{base.rstrip('.')}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.split(".")[1] for name in names if re.match(r"crypto_ml\.\w", name))


def floors(root: Path) -> list[str]:
    """Let a notebook import only from lower numbers; its examples may import its own module."""
    read = notebooks(root)
    floor = {
        module: int(match[1])
        for name, notebook in read.items()
        if (match := MODULE_NOTEBOOK.fullmatch(name)) and (module := exported_module(notebook))
    }
    problems = []
    for name, notebook in read.items():
        if not (match := MODULE_NOTEBOOK.fullmatch(name)):
            continue
        for position, directive, source in code_cells(notebook):
            try:
                imported = set(_imported_modules(ast.parse(source)))
            except SyntaxError as error:
                problems.append(f"nbs/{name}.ipynb cell {position}: {error.msg}; plain Python only")
                continue
            if directive != "export":
                imported.discard(exported_module(notebook) or "")
            problems += [
                f"nbs/{name}.ipynb cell {position} imports crypto_ml.{module} of floor "
                f"{floor[module]:02}; only numbers below {match[1]} may be imported"
                for module in sorted(imported)
                if floor.get(module, -1) >= int(match[1])
            ]
    return problems


def _code_lines(source: str) -> int:
    """Count the lines of a cell that are neither blank, nor of a docstring, nor a directive."""
    tree = ast.parse(source)
    lines = {n for n, line in enumerate(source.splitlines(), 1) if line.strip()}
    lines -= {n for n, line in enumerate(source.splitlines(), 1) if line.startswith("#|")}
    for node in ast.walk(tree):
        if isinstance(node, WITH_DOCSTRING) and ast.get_docstring(node, clean=False) is not None:
            lines -= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return len(lines)


def shape(root: Path) -> list[str]:
    """Notebooks open with a title and a summary and stay short enough to be read."""
    problems = []
    modules: dict[str, str] = {}
    for name, notebook in notebooks(root).items():
        where = f"nbs/{name}.ipynb"
        opening = "\n".join(
            cell.source for cell in notebook.cells[:2] if cell.cell_type == "markdown"
        )
        module = exported_module(notebook)
        summary = r"\n+> \S" if module else ""
        if not re.match(rf"# \S.*{summary}", opening):
            problems.append(f"{where}: must open with '# Title' and '> summary in one line'")
        if bool(module) != bool(MODULE_NOTEBOOK.fullmatch(name)):
            problems.append(
                f"{where}: a notebook that exports a module is named NN_name.ipynb, and only such"
            )
        if module:
            if module in modules:
                problems.append(f"{where}: {modules[module]} exports crypto_ml.{module} already")
            modules[module] = where
            problems += _length(where, notebook)
    return problems


def _length(where: str, notebook: nbformat.NotebookNode) -> list[str]:
    """Say what of a module's notebook is too long."""
    problems = []
    lines = {
        position: _code_lines(source)
        for position, directive, source in code_cells(notebook)
        if directive == "export"
    }
    problems += [
        f"{where} cell {position}: {count} lines of code in an exported cell, {MOST_CELL_LINES} at "
        "most"
        for position, count in lines.items()
        if count > MOST_CELL_LINES
    ]
    if sum(lines.values()) > MOST_LINES:
        problems.append(f"{where}: exports {sum(lines.values())} lines, {MOST_LINES} at most")
    if len(notebook.cells) > MOST_CELLS:
        problems.append(f"{where}: {len(notebook.cells)} cells, {MOST_CELLS} at most")
    return problems


def rendered(root: Path) -> list[str]:
    """README.md is what nbs/index.ipynb renders to."""
    if (root / "README.md").read_text() != readme.render(root / "nbs" / "index.ipynb"):
        return ["README.md differs from nbs/index.ipynb; edit the notebook and run make export"]
    return []


def locked(root: Path) -> list[str]:
    """requirements.lock pins what pyproject.toml asks for, with hashes and without addresses."""
    lock = (root / "requirements.lock").read_text()
    project = tomllib.loads((root / "pyproject.toml").read_text())
    pinned: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", lock, re.MULTILINE):
        pinned.setdefault(canonicalize_name(name), []).append(version)
    groups = [
        project["project"]["dependencies"],
        *project["project"].get("optional-dependencies", {}).values(),
        *project.get("dependency-groups", {}).values(),
    ]
    problems = []
    for wanted in (Requirement(text) for group in groups for text in group):
        versions = pinned.get(canonicalize_name(wanted.name), [])
        if not versions or not all(wanted.specifier.contains(version) for version in versions):
            found = ", ".join(versions) or "nothing"
            problems.append(f"pyproject.toml asks for {wanted}, requirements.lock has {found}")
    entries = re.findall(r"^[\w.-]+==(?:.*\\\n)*.*", lock, re.MULTILINE)
    problems += [f"no hash: {entry}" for entry in entries if "--hash=sha256:" not in entry]
    addresses = re.findall(r".*(?:://|--index-url|--find-links).*", lock)
    return problems + [f"requirements.lock names an address: {line.strip()}" for line in addresses]


def tidy(root: Path) -> list[str]:
    """No large, binary or generated file is kept, and no path of somebody's machine."""
    problems = []
    for path in project_files(root):
        content = (root / path).read_bytes()
        if len(content) > 2**20:
            problems.append(f"{path}: {len(content) / 2**20:.1f} MiB; 1 MiB at most")
        if path.suffix in UNSUITABLE:
            problems.append(f"{path}: data and models are not kept in the repository")
        if path.parts[0] in {"runs", "models"} and path.name != ".gitkeep":
            problems.append(f"{path}: the contents of {path.parts[0]}/ are not kept")
        if b"\0" not in content:
            problems += [
                f"{path}:{number}: a path of one machine: {line.strip()[:100]}"
                for number, line in enumerate(content.decode(errors="replace").splitlines(), 1)
                if MACHINE_PATH.search(line)
            ]
    return problems


def light(root: Path) -> list[str]:
    """`import crypto_ml` loads nothing heavy, so that every command answers at once."""
    heavy = ["numpy", "pandas", "scipy", "sklearn", "matplotlib", "lightgbm", "xgboost", "pyarrow"]
    code = (
        "import sys, crypto_ml; "
        f"loaded = [name for name in {heavy} if name in sys.modules]; "
        "sys.exit(f'import crypto_ml loads {loaded}' if loaded else 0)"
    )
    return run([sys.executable, "-c", code], root)


def docs(root: Path) -> list[str]:
    """Build the site, offline and without a warning."""
    source = root / "docs" / "_build" / "source"
    source.mkdir(parents=True, exist_ok=True)
    options = ["-qEW", "--keep-going", "-c", "docs"]
    return run([BIN / "sphinx-build", *options, source, source.parent / "html"], root)


# Whole runs in seconds: few bars, few folds, few resamples; the models are the default ones.
SMALL = {"source": "sim:clear", "days": 60, "n_splits": 2, "resamples": 100, "jobs": 1}
QUICK = {"train": SMALL, "select": {**SMALL, "candidates": "default", "k": 3, "draws": 2}}


def modified(root: Path) -> dict[Path, int]:
    """Return when each file of the project was last changed."""
    return {path: (root / path).stat().st_mtime_ns for path in project_files(root)}


class Executor:
    """A copy of the project, and a process that executes its notebooks; one at a time.

    The package is that of the project itself: what numba compiles is compiled once for all.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._parts = ExitStack()
        self.copy = self._parts.enter_context(project_copy(root))
        self.process = self._parts.enter_context(
            subprocess.Popen(
                [sys.executable, Path(__file__).with_name("executor.py")],
                cwd=self.copy,
                env={**ENVIRONMENT, "PYTHONPATH": str(root), "MPLBACKEND": "agg"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.stdin.close()
        self._parts.close()

    def execute(self, name: str) -> list[str]:
        """Execute a notebook top to bottom; it may leave nothing."""
        before = modified(self.copy)
        self.process.stdin.write(f"{self.copy / 'nbs' / name}.ipynb\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline() or '{"code": -9, "output": "no answer"}')
        after = modified(self.copy)
        changed = sorted(path for path in before | after if before.get(path) != after.get(path))
        for path in changed:
            (self.copy / path).unlink(missing_ok=True)
            if path in before:
                shutil.copy2(self.root / path, self.copy / path)
        output = answer["output"].strip()[-4000:]
        return [f"exit code {answer['code']}:\n{output}"] * bool(answer["code"]) + [
            f"{name} changes {path}" for path in changed
        ]


def execute(root: Path, name: str) -> list[str]:
    """Execute a notebook that makes runs by papermill; it may leave nothing but runs."""
    with project_copy(root) as copy:
        before = modified(copy)
        notebook, output = copy / "nbs" / f"{name}.ipynb", copy / "runs" / f"{name}.ipynb"
        command = [BIN / "papermill", notebook, output, "-k", "python3", "--no-progress-bar"]
        command += [part for key, value in QUICK[name].items() for part in ("-p", key, str(value))]
        output.parent.mkdir(exist_ok=True)
        # What papermill prints before the notebook's own traceback is about papermill.
        problems = [
            problem.split("PapermillExecutionError:")[-1] for problem in run(command, copy, root)
        ]
        if not problems:
            problems = _run_succeeded(copy / "runs", name)
        after = modified(copy)
        problems += [f"{name} changes {path}" for path in after if after[path] != before.get(path)]
        return problems


def _run_succeeded(runs: Path, name: str) -> list[str]:
    """Say why the one run below a folder cannot be believed to have succeeded."""
    records = sorted(runs.glob("*/run.json"))
    if len(records) != 1:
        return [f"{name}.ipynb must leave one run with a run.json, and left {len(records)}"]
    status = json.loads(records[0].read_text()).get("status")
    return [] if status == "succeeded" else [f"{name}.ipynb left a run with status {status}"]


GATES: dict[str, Gate] = {
    "sync": sync,
    "lint": lint,
    "types": types,
    "floors": floors,
    "shape": shape,
    "readme": rendered,
    "lock": locked,
    "tidy": tidy,
    "light": light,
    "docs": docs,
}
