"""Each gate of .ci/gates.py catches what it is there for: the project is copied and spoilt."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import check
import gates
import nbformat
import pytest
import readme
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parent.parent
GROUND, ABOVE = "10_ground", "20_above"

PYPROJECT = """
[project]
name = "crypto_ml"
version = "1"
dependencies = ["numpy>=2"]

[dependency-groups]
dev = ["pytest>=8"]

[tool.nbdev]
lib_name = "crypto_ml"
lib_path = "crypto_ml"
nbs_path = "nbs"
allowed_cell_metadata_keys = ["tags"]

[tool.mypy]
strict = true
files = ["crypto_ml"]
"""
LOCK = """# compiled with --no-emit-index-url
numpy==2.1 \\
    --hash=sha256:00
    # via crypto-ml
pytest==8.3 ; python_version >= '3' \\
    --hash=sha256:11 \\
    --hash=sha256:22
"""


def notebook(*code: str, title: str = "# Title\n> A summary") -> nbformat.NotebookNode:
    """Make a clean notebook of code cells below a title."""
    cells = [new_markdown_cell(title, id="title")]
    cells += [new_code_cell(source, id=f"cell{number}") for number, source in enumerate(code)]
    kernel = {"display_name": "python3", "language": "python", "name": "python3"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel})


def write(project: Path, name: str, content: nbformat.NotebookNode) -> None:
    nbformat.write(content, project / "nbs" / f"{name}.ipynb")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a small project that passes every gate."""
    root = tmp_path_factory.mktemp("sound")
    for folder in ("nbs", "crypto_ml", "runs", "models"):
        (root / folder).mkdir()
    (root / "pyproject.toml").write_text(PYPROJECT)
    (root / "requirements.lock").write_text(LOCK)
    shutil.copy2(ROOT / ".gitignore", root)
    (root / "crypto_ml" / "__init__.py").write_text('"""Package."""\n\n__version__ = "1"\n')
    one = '#| export\ndef one() -> int:\n    """Return 1."""\n    return 1'
    write(root, GROUND, notebook("#| default_exp ground", one, "one()"))
    imports = "#| export\nfrom crypto_ml.ground import one"
    two = '#| export\ndef two() -> int:\n    """Return 2."""\n    return 2 * one()'
    write(root, ABOVE, notebook("#| default_exp above", imports, two, "two()"))
    write(root, "index", notebook())
    (root / "README.md").write_text("# Title\n> A summary\n")
    assert gates.run([gates.BIN / "nbdev-export"], root) == []
    assert gates.run([gates.BIN / "nbdev-clean"], root) == []
    return root


@pytest.fixture
def project(sound: Path) -> Iterator[Path]:
    with gates.project_copy(sound) as copy:
        yield copy


CHEAP = ["floors", "shape", "readme", "lock", "tidy", "light"]


@pytest.mark.parametrize("name", [name for name in gates.GATES if name != "docs"])
def test_a_sound_project_passes(sound: Path, name: str) -> None:
    assert gates.GATES[name](sound) == []


@pytest.mark.parametrize("name", CHEAP)
def test_this_project_passes_the_cheap_gates(name: str) -> None:
    assert gates.GATES[name](ROOT) == []


def problems_after(project: Path, gate: gates.Gate, *expected: str) -> None:
    """Assert that the gate finds exactly as many problems as named, each with its words."""
    found = gate(project)
    assert len(found) == len(expected), found
    for problem, words in zip(found, expected, strict=True):
        assert words in problem


def test_sync_catches_a_module_edited_by_hand(project: Path) -> None:
    module = project / "crypto_ml" / "ground.py"
    module.write_text(module.read_text().replace("return 1", "return 3"))
    problems_after(project, gates.sync, "crypto_ml/ground.py: differs from its notebook")


def test_sync_catches_a_notebook_edited_without_export(project: Path) -> None:
    path = project / "nbs" / f"{GROUND}.ipynb"
    path.write_text(path.read_text().replace("return 1", "return 3"))
    problems_after(project, gates.sync, "crypto_ml/ground.py: differs from its notebook")


def test_sync_catches_a_new_notebook_without_its_module(project: Path) -> None:
    write(project, "30_new", notebook("#| default_exp new", "#| export\ndef three(): ..."))
    problems_after(
        project, gates.sync, "crypto_ml/_modidx.py: differs", "crypto_ml/new.py: missing"
    )


def test_sync_catches_a_stale_module(project: Path) -> None:
    (project / "nbs" / f"{ABOVE}.ipynb").unlink()
    problems_after(
        project, gates.sync, "crypto_ml/_modidx.py: differs", "crypto_ml/above.py: exported by no"
    )


def test_sync_catches_a_module_written_without_a_notebook(project: Path) -> None:
    (project / "crypto_ml" / "secret.py").write_text("x = 1\n")
    problems_after(project, gates.sync, "crypto_ml/secret.py: exported by no notebook")


@pytest.mark.parametrize("spoil", ["execution_count", "metadata"])
def test_sync_catches_a_notebook_that_is_not_clean(project: Path, spoil: str) -> None:
    path = project / "nbs" / f"{GROUND}.ipynb"
    content = nbformat.read(path, as_version=4)
    content.cells[-1][spoil] = 7 if spoil == "execution_count" else {"collapsed": True}
    nbformat.write(content, path)
    problems_after(project, gates.sync, f"nbs/{GROUND}.ipynb: not clean")


def test_sync_keeps_the_tags_that_papermill_needs(project: Path) -> None:
    content = notebook("days = 0")
    content.cells[1].metadata["tags"] = ["parameters"]
    write(project, "train", content)
    assert gates.run([gates.BIN / "nbdev-clean"], project) == []
    cleaned = nbformat.read(project / "nbs" / "train.ipynb", as_version=4)
    assert cleaned.cells[1].metadata == {"tags": ["parameters"]}


def test_sync_leaves_the_project_as_it_is(project: Path) -> None:
    def stamps() -> dict[Path, int]:
        return {path: (project / path).stat().st_mtime_ns for path in gates.project_files(project)}

    before = stamps()
    gates.sync(project)
    assert stamps() == before


def test_lint_catches_a_name_that_only_the_notebook_knows(project: Path) -> None:
    code = ["import math", "#| export\ndef root() -> float:\n    return math.sqrt(2)"]
    write(project, "30_new", notebook("#| default_exp new", *code))
    assert gates.run([gates.BIN / "nbdev-export"], project) == []
    problems_after(project, gates.lint, "F821")


def test_lint_catches_an_unused_import_and_a_bad_layout_in_a_notebook(project: Path) -> None:
    write(project, "train", notebook("import os", "x  =  1"))
    problems_after(project, gates.lint, "F401", "would be reformatted")


def test_types_catches_a_wrong_and_a_missing_annotation(project: Path) -> None:
    module = project / "crypto_ml" / "ground.py"
    module.write_text(module.read_text().replace("return 1", "return 'one'") + "\ndef f(x): ...\n")
    (problem,) = gates.types(project)
    assert "return-value" in problem
    assert "no-untyped-def" in problem


@pytest.mark.parametrize(
    "code",
    [
        "#| export\nfrom crypto_ml.above import two",
        "from crypto_ml.above import two",
        "from crypto_ml import above",
        "import crypto_ml.above as upstairs",
        "def late():\n    import crypto_ml.above",
        "#| export\nfrom .above import two",
        "#| export\nfrom . import above",
        "from crypto_ml.beside import something",
    ],
)
def test_floors_catches_an_import_from_the_same_or_a_higher_floor(project: Path, code: str) -> None:
    write(project, "10_beside", notebook("#| default_exp beside"))
    content = nbformat.read(project / "nbs" / f"{GROUND}.ipynb", as_version=4)
    content.cells.append(new_code_cell(code))
    write(project, GROUND, content)
    problems_after(project, gates.floors, "only numbers below 10 may be imported")


def test_floors_lets_an_example_import_its_own_module_but_no_exported_cell(project: Path) -> None:
    own = "from crypto_ml.new import THREE"
    code = ["#| default_exp new", own, "#| export\nfrom crypto_ml.ground import one\nTHREE = 3"]
    write(project, "30_new", notebook(*code))
    assert gates.floors(project) == []
    write(project, "30_new", notebook(*code, f"#| export\n{own}"))
    problems_after(project, gates.floors, "cell 4 imports crypto_ml.new of floor 30")


def test_floors_catches_a_magic(project: Path) -> None:
    write(project, "30_new", notebook("#| default_exp new", "%time 1"))
    problems_after(project, gates.floors, "plain Python only")


def lines(count: int) -> str:
    return "\n".join(f"a{number} = {number}" for number in range(count))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("30_new", notebook("#| default_exp new", title="Title"), "must open with"),
        ("30_new", notebook("#| default_exp new", title="# Title"), "must open with"),
        ("train", notebook(title="Title"), "must open with"),
        ("new", notebook("#| default_exp new"), "NN_name.ipynb"),
        ("30_new", notebook("1"), "NN_name.ipynb"),
        ("30_new", notebook("#| default_exp ground"), "exports crypto_ml.ground already"),
        ("30_new", notebook("#| default_exp new", *["1"] * 59), "61 cells, 60 at most"),
        (
            "30_new",
            notebook("#| default_exp new", f"#| export\n{lines(31)}"),
            "31 lines of code in an exported cell",
        ),
        (
            "30_new",
            notebook("#| default_exp new", *[f"#| export\n{lines(30)}"] * 10, "#| export\na = 1"),
            "exports 301 lines",
        ),
    ],
)
def test_shape_catches(
    project: Path, name: str, content: nbformat.NotebookNode, expected: str
) -> None:
    write(project, name, content)
    problems_after(project, gates.shape, expected)


def test_shape_counts_no_docstring_no_blank_line_and_no_example(project: Path) -> None:
    docstring = '    """Say.\n\n' + "    much\n" * 40 + '    """\n'
    exported = f"#| export\ndef say():\n{docstring}\n" + "    say()\n\n" * 29
    write(project, "30_new", notebook("#| default_exp new", exported, lines(100)))
    assert gates.shape(project) == []


def test_readme_is_rendered_with_outputs_and_links_from_the_root(project: Path) -> None:
    content = notebook("1 + 1", "print('a')", title="# T\n> S\n\n[a](10_a.ipynb) ![b](../b.png#c)")
    content.cells[1].outputs = [
        new_output("execute_result", data={"text/plain": "2"}, execution_count=1)
    ]
    content.cells[2].outputs = [new_output("stream", text="a\n")]
    write(project, "index", content)
    assert readme.render(project / "nbs" / "index.ipynb") == (
        "# T\n> S\n\n[a](nbs/10_a.ipynb) ![b](b.png#c)\n\n"
        "```python\n1 + 1\n```\n\n```\n2\n```\n\n```python\nprint('a')\n```\n\n```\na\n```\n"
    )
    problems_after(project, gates.rendered, "README.md differs")


@pytest.mark.parametrize("link", ["https://example.org/a", "#part", "/absolute"])
def test_readme_leaves_other_links_alone(project: Path, link: str) -> None:
    write(project, "index", notebook(title=f"# T\n> S [a]({link})"))
    assert f"[a]({link})" in readme.render(project / "nbs" / "index.ipynb")


def test_every_file_that_the_readme_links_to_exists() -> None:
    text = (ROOT / "README.md").read_text()
    links = {link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link}
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        ("requirements.lock", "numpy==2.1", "mumpy==2.1", "asks for numpy>=2"),
        ("requirements.lock", "numpy==2.1", "numpy==1.9", "requirements.lock has 1.9"),
        ("pyproject.toml", '"pytest>=8"', '"pytest>=8", "ruff"', "requirements.lock has nothing"),
        ("requirements.lock", " \\\n    --hash=sha256:00", "", "no hash: numpy==2.1"),
        (
            "requirements.lock",
            "# compiled",
            "--index-url https://example.org\n# compiled",
            "names an address",
        ),
    ],
)
def test_lock_catches(project: Path, file: str, old: str, new: str, expected: str) -> None:
    text = (project / file).read_text()
    assert old in text
    (project / file).write_text(text.replace(old, new))
    problems_after(project, gates.locked, expected)


# Spelt in two parts, since this file is looked at too.
HOME = "/" + "home/somebody/data"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("nbs/big.svg", b"a" * 2**20 + b"a", "1 MiB at most"),
        ("candles.parquet", b"PAR1", "data and models are not kept"),
        ("model.pkl", b"\0", "data and models are not kept"),
        ("notes.md", f"see {HOME}".encode(), "notes.md:1: a path of one machine"),
    ],
)
def test_tidy_catches(project: Path, name: str, content: bytes, expected: str) -> None:
    (project / name).write_bytes(content)
    problems_after(project, gates.tidy, expected)


def test_tidy_catches_a_run_that_was_added_by_force(project: Path) -> None:
    (project / "runs" / "one").mkdir(parents=True)
    (project / "runs" / "one" / "run.json").write_text("{}")
    assert gates.tidy(project) == []
    subprocess.run(["git", "init", "--quiet"], cwd=project, check=True)
    assert gates.tidy(project) == []
    subprocess.run(["git", "add", "--force", "runs"], cwd=project, check=True)
    problems_after(project, gates.tidy, "the contents of runs/ are not kept")


def test_light_catches_a_heavy_import(project: Path) -> None:
    package = project / "crypto_ml" / "__init__.py"
    package.write_text(package.read_text() + "import numpy\n")
    problems_after(project, gates.light, "import crypto_ml loads ['numpy']")


EXECUTED: dict[str, tuple[str, str]] = {
    "good": ("from pathlib import Path\nassert Path('index.ipynb').exists()", ""),
    "fails": ("1 / 0", "ZeroDivisionError"),
    "exits": ("import sys; sys.exit(0)", "SystemExit"),
    "leaves": ("import os; os._exit(3)", "exit code 3"),
    "killed": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "exit code -9"),
    "writes": ("open('new.txt', 'w').close()", "writes changes nbs/new.txt"),
    "edits": ("open('index.ipynb', 'a').write(' ')", "edits changes nbs/index.ipynb"),
    "good_still": ("from pathlib import Path\nassert not Path('new.txt').exists()", ""),
}


def test_executor_runs_each_notebook_alone_and_catches_what_it_does(project: Path) -> None:
    for name, (code, _) in EXECUTED.items():
        write(project, name, notebook(code))
    with gates.Executor(project) as executor:
        for name, (_, expected) in EXECUTED.items():
            problems = executor.execute(name)
            assert expected in "".join(problems) if expected else not problems, (name, problems)


RUN = "import pathlib; f = pathlib.Path('runs/a'); f.mkdir(); (f / 'run.json').write_text({!r})"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (RUN.format('{"status": "succeeded"}'), []),
        (RUN.format('{"status": "failed"}'), ["train.ipynb left a run with status failed"]),
        ("1", ["train.ipynb must leave one run with a run.json, and left 0"]),
    ],
)
def test_execute_believes_only_the_run_that_train_leaves(
    project: Path, code: str, expected: list[str]
) -> None:
    write(project, "train", notebook(code))
    assert gates.execute(project, "train") == expected


def test_makefile_describes_every_target() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)", text, re.MULTILINE)
    assert phony
    assert re.findall(r"^([a-z]+):.*## ", text, re.MULTILINE) == phony[1].split()


def test_check_names_a_gate_that_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main(["lnit"]) == 2
    assert "No gate is called lnit" in capsys.readouterr().out


def test_check_goes_on_when_a_gate_breaks(capsys: pytest.CaptureFixture[str]) -> None:
    def breaks() -> list[str]:
        raise OSError("no such file")

    checks = {"breaks": breaks, "finds": lambda: ["one\ntwo"], "passes": list}
    assert sorted(check.check_gates(checks)) == ["breaks", "finds"]
    printed = capsys.readouterr().out
    assert "OSError: no such file" in printed
    assert "    one\n    two\n" in printed
    assert re.search(r"^passes +ok +\d+\.\d s$", printed, re.MULTILINE)
