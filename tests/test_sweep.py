"""Sweeps: grids, resume, workers that are killed; runs are a stand-in that writes a made-up record.

A project of the tests has a `train.ipynb` of a few lines: it takes a made-up record (of
`runs_for_tests`) for its own. Everything around it is the real thing: papermill, kernels, joblib's
processes, a Dask scheduler with two worker processes.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import nbformat
import psutil
import pytest
from dask_workers import dask_scheduler, dask_workers
from hypothesis import given
from hypothesis import strategies as st
from runs_for_tests import fabricated_run

import crypto_ml.sweep
from crypto_ml import cluster
from crypto_ml.cluster import ClusterError
from crypto_ml.errors import RunError, SettingsError
from crypto_ml.execute import Outcome, RunFailedError
from crypto_ml.grid import Grid, anywhere, combinations, read_grid
from crypto_ml.runs import read_record
from crypto_ml.settings import RunParameters, Settings, load_settings
from crypto_ml.sweep import (
    State,
    Task,
    describe_sweep,
    finished,
    read_state,
    run_combination,
    run_sweep,
)

ROOT = Path(__file__).resolve().parent.parent
STAND_IN = """
import json, os, pathlib, time
folder = pathlib.Path(run_folder)
root = folder.parent.parent
with (root / "begun").open("a") as file:
    file.write(f"{seed}\\n")
record = json.loads((root / "record.json").read_text())
start = float(pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
boot = [line for line in open("/proc/stat") if line.startswith("btime")][0].split()[1]
process = {"pid": os.getpid(), "started": float(boot) + start / os.sysconf("SC_CLK_TCK")}
record |= {"run_id": folder.name, "status": "running", "seed": seed}
record["process"] = {**process, "host": os.uname().nodename}
(folder / "run.json").write_text(json.dumps(record))
for _ in range(600):
    if not (root / f"hold-{seed}").exists():
        break
    time.sleep(0.1)
if seed == 13:
    raise ValueError("thirteen")
record["status"] = "succeeded"
(folder / "run.json").write_text(json.dumps(record))
"""


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Record of a made-up run."""
    folder = fabricated_run(tmp_path_factory.mktemp("made-up"))
    return dict(json.loads((folder / "run.json").read_text()))


@pytest.fixture
def project(tmp_path: Path, record: dict[str, Any]) -> Settings:
    """Project whose runs are the stand-in's."""
    shutil.copy2(ROOT / "settings.ini", tmp_path)
    (tmp_path / "nbs").mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "record.json").write_text(json.dumps(record))
    first = nbformat.v4.new_code_cell("run_folder, seed = '', 0", metadata={"tags": ["parameters"]})
    notebook = nbformat.v4.new_notebook(cells=[first, nbformat.v4.new_code_cell(STAND_IN)])
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, tmp_path / "nbs" / "train.ipynb")
    return load_settings(tmp_path / "settings.ini")


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch, project: Settings) -> Callable[..., Any]:
    """Runs of this process that take no time; the function may be told what a run does."""
    acts: dict[int, Exception] = {}

    def execute(parameters: RunParameters, settings: Settings, echo: object) -> Outcome:
        folder = Path(parameters.run_folder)
        with (settings.root / "begun").open("a") as file:
            file.write(f"{parameters.seed}\n")
        if parameters.seed in acts:
            raise acts[parameters.seed]
        folder.mkdir()
        made_up = json.loads((settings.root / "record.json").read_text())
        made_up |= {"run_id": folder.name, "seed": parameters.seed}
        (folder / "run.json").write_text(json.dumps(made_up))
        return Outcome(folder, read_record(folder))

    def here(tasks: list[Task], jobs: int, say: object) -> Iterator[State]:
        return map(run_combination, tasks)

    monkeypatch.setattr(crypto_ml.sweep, "execute_run", execute)
    monkeypatch.setattr(crypto_ml.sweep, "_in_processes", here)
    return acts.__setitem__


def grid_of(settings: Settings, *seeds: int, name: str = "grid") -> Path:
    path = settings.root / f"{name}.yaml"
    path.write_text(f"vary: {{seed: {list(seeds)}}}\nfixed: {{source: 'sim:clear'}}\n")
    return path


def begun(settings: Settings) -> list[int]:
    path = settings.root / "begun"
    return sorted(map(int, path.read_text().split())) if path.exists() else []


def until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


# The grid


@given(
    st.lists(st.integers(1, 500), min_size=1, max_size=4, unique=True),
    st.lists(st.sampled_from([1, 2, 3, 5, 8]), min_size=1, max_size=4, unique=True),
)
def test_every_combination_once_in_order_with_keys_of_its_own(
    seeds: list[int], depths: list[int]
) -> None:
    grid = Grid({"days": 60}, {"seed": seeds, "lightgbm.max_depth": depths})
    found = combinations(grid, RunParameters())
    values = [(c.parameters.seed, c.parameters.lightgbm["max_depth"]) for c in found]
    assert values == [(seed, depth) for seed in seeds for depth in depths]
    assert len({c.key for c in found}) == len(found)
    assert {c.parameters.days for c in found} == {60.0}
    assert {c.parameters.jobs for c in found} == {1}
    default = RunParameters().lightgbm
    assert all({**default, **c.changes} != default for c in found)
    assert all(c.parameters.lightgbm["num_leaves"] == default["num_leaves"] for c in found)


def test_the_key_is_of_the_parameters_not_of_the_place_in_the_grid() -> None:
    one = combinations(Grid({"days": 60}, {"seed": [1, 2]}), RunParameters())
    other = combinations(Grid({}, {"seed": [2], "days": [60.0, 90]}), RunParameters())
    assert one[1].key == other[0].key
    assert one[1].key not in {one[0].key, other[1].key}
    changed = RunParameters(max_gap=4)
    assert combinations(Grid({"days": 60}, {"seed": [2]}), changed)[0].key != one[1].key


def test_text_stays_text_and_numbers_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(
        "vary:\n  start: [2024-01-01]\n  lightgbm.learning_rate: [1e-2, .5, -1, +2.]\n"
        "fixed: {days: 6_0, symbol: 1e, missing: keep, seed: 7}\n"
    )
    grid = read_grid(path)
    assert grid.vary["start"] == ["2024-01-01"]
    assert grid.vary["lightgbm.learning_rate"] == [0.01, 0.5, -1, 2.0]
    assert grid.fixed == {"days": 60, "symbol": "1e", "missing": "keep", "seed": 7}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1, 2]", "it is no mapping"),
        ("fixed: {days: 3}", "vary: nothing varies"),
        ("vary: []", "vary: nothing varies"),
        ("varry: {days: [1]}", "varry: no such part; did you mean 'vary'?"),
        ("vary: [days]", "vary: expected parameters by name, got ['days']"),
        ("vary: {horizn: [1]}", "vary: horizn: no such parameter; did you mean 'horizon'?"),
        ("vary: {run_folder: [x]}", "vary: run_folder: no such parameter"),
        ("vary: {days: 3}", "vary: days: expected a list of values, got 3"),
        ("vary: {days: []}", "vary: days: expected a list of values, got []"),
        ("vary: {days.x: [3]}", "vary: days.x: days has no entries of its own"),
        ("vary: {lightgbm.: [3]}", "lightgbm has no entries of its own; only expand, weights"),
        ("vary: {days: [3]}\nfixed: {days: 3}", "days is fixed and varies"),
        (
            "vary: {lightgbm: [{}], lightgbm.max_depth: [3]}",
            "lightgbm varies as a whole, and lightgbm.max_depth is given too",
        ),
        ("vary: {days: [1], days: [2]}", "'days' stands twice"),
        ("vary: {days: [1}", "is no YAML"),
    ],
)
def test_a_wrong_grid_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        read_grid(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"absent\.yaml cannot be read"):
        read_grid(tmp_path / "absent.yaml")
    (tmp_path / "grid.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(SettingsError, match="cannot be read"):
        read_grid(tmp_path / "grid.yaml")


@pytest.mark.parametrize(
    ("vary", "words"),
    [
        ({"days": [60, -1]}, "{'days': -1}: "),
        ({"lightgbm.max_dept": [3]}, "there is no 'max_dept'; did you mean 'max_depth'?"),
        ({"source": ["candles.csv"]}, "{'source': 'candles.csv'}"),
        ({"days": [60, 60.0]}, "the same run twice: days=60; days=60.0"),
    ],
)
def test_a_wrong_combination_is_refused_before_anything_runs(
    vary: dict[str, list[Any]], words: str
) -> None:
    with pytest.raises(SettingsError, match="with the combinations of the grid") as caught:
        combinations(Grid({}, vary), RunParameters())
    assert words in str(caught.value)


def test_workers_elsewhere_get_whole_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert anywhere(RunParameters(source="x/b_B_1h.csv")).source == f"{tmp_path}/x/b_B_1h.csv"
    for source in ("sim:clear", "binance"):
        assert anywhere(RunParameters(source=source)).source == source


# What is known of a combination


@given(st.data())
def test_a_torn_state_counts_as_none(tmp_path_factory: Any, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("state") / "abc.json"
    state = State(key="abc", status="succeeded", run="some", attempts=2, words="an edge")
    whole = state.model_dump_json().encode()
    path.write_bytes(whole)
    assert read_state(path) == state
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    assert read_state(path) is None


def test_only_a_run_that_is_there_and_succeeded_is_finished(tmp_path: Path) -> None:
    folder = fabricated_run(tmp_path)
    state = State(key="abc", status="succeeded", run=folder.name)
    assert finished(state, tmp_path)
    assert not finished(None, tmp_path)
    assert not finished(state.model_copy(update={"status": "started"}), tmp_path)
    assert not finished(state.model_copy(update={"run": "gone"}), tmp_path)
    (folder / "run.json").write_text("{}")
    assert not finished(state, tmp_path)


# All of them, in this process


def test_what_succeeded_is_not_done_again(
    project: Settings, instant: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    instant(2, RunFailedError("no luck\nat all"))
    instant(3, OSError(28, "No space left on device"))
    states = run_sweep(grid_of(project, 1, 2, 3, 4), project)
    assert [state.status for state in states] == ["succeeded", "failed", "failed", "succeeded"]
    assert states[1].words == "no luck\nat all"
    assert states[2].words == "OSError: [Errno 28] No space left on device"
    said = capsys.readouterr().out
    assert said.startswith("4 combinations, 0 of them done before\n[1/4] seed=1: ")
    assert "[2/4] seed=2: no luck (0 s, about 0 s left)\n" in said
    assert "[4/4] seed=4: " in said.splitlines()[-1]
    words = describe_sweep(states, project)
    assert "2 of 4 runs succeeded." in words
    assert ": no luck\n" in words
    assert "Held against the luck of 2 tries (97.47% interval)" in words
    page = (project.runs_folder / "index.html").read_text()
    assert states[0].run in page

    instant(2, ValueError("other"))
    again = run_sweep(grid_of(project, 1, 2, 3, 4), project)
    assert begun(project) == [1, 2, 2, 3, 3, 4]
    assert (again[0], again[3]) == (states[0], states[3])
    assert (again[1].words, again[1].attempts) == ("ValueError: other", 2)


def test_what_was_lost_or_damaged_is_done_again(
    project: Settings, instant: Callable[..., Any]
) -> None:
    states = run_sweep(grid_of(project, 1, 2, 3), project)
    folder = project.runs_folder / "sweeps" / "grid"
    (folder / f"{states[0].key}.json").write_text('{"key": "tor')
    shutil.rmtree(project.runs_folder / states[1].run)
    again = run_sweep(grid_of(project, 1, 2, 3, 4), project)
    assert begun(project) == [1, 1, 2, 2, 3, 4]
    assert [state.attempts for state in again] == [1, 2, 1, 1]
    assert again[2] == states[2]


def test_a_combination_that_kills_three_workers_has_failed(
    project: Settings, instant: Callable[..., Any]
) -> None:
    state = run_sweep(grid_of(project, 1), project)[0]
    path = project.runs_folder / "sweeps" / "grid" / f"{state.key}.json"
    lost = state.model_copy(update={"status": "started", "lost": 2, "attempts": 3})
    task = Task(str(project.root / "settings.ini"), str(path), {}, state.sweep, False)
    parameters = RunParameters(source="sim:clear", seed=1).model_dump(mode="json")

    path.write_text(lost.model_dump_json())
    failed = run_combination(task._replace(parameters=parameters))
    assert (failed.status, failed.attempts) == ("failed", 3)
    assert failed.words == "its worker was lost 3 times: killed, or out of memory"
    assert read_state(path) == failed
    # in another sweep it is given another chance
    path.write_text(lost.model_dump_json())
    again = run_combination(task._replace(parameters=parameters, sweep="another"))
    assert (again.status, again.attempts, again.lost) == ("succeeded", 4, 0)


def test_a_lost_run_is_recorded_as_interrupted(
    project: Settings, instant: Callable[..., Any]
) -> None:
    state = run_sweep(grid_of(project, 1), project)[0]
    path = project.runs_folder / "sweeps" / "grid" / f"{state.key}.json"
    path.write_text(state.model_copy(update={"status": "started"}).model_dump_json())
    lost = project.runs_folder / state.run / "run.json"
    lost.write_text(json.dumps({**json.loads(lost.read_text()), "status": "running"}))
    again = run_sweep(grid_of(project, 1), project)[0]
    assert again.run != state.run
    assert read_record(lost.parent).status == "interrupted"


def test_two_sweeps_at_once_do_each_combination_once(
    project: Settings, instant: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[State]] = []
    inner = crypto_ml.sweep.execute_run

    def execute(parameters: RunParameters, *rest: Any) -> Outcome:
        if not seen:  # while this one runs, another sweep of the same grid begins
            seen.append([])
            task = Task(*given_task[:4], wait=False)
            seen[0] = [run_combination(task)]
        return inner(parameters, *rest)

    state = run_sweep(grid_of(project, 1), project)[0]
    path = project.runs_folder / "sweeps" / "grid" / f"{state.key}.json"
    path.unlink()
    parameters = RunParameters(source="sim:clear", seed=1).model_dump(mode="json")
    given_task = (str(project.root / "settings.ini"), str(path), parameters, "x", False)
    monkeypatch.setattr(crypto_ml.sweep, "execute_run", execute)
    assert run_combination(Task(*given_task)).status == "succeeded"
    assert seen == [[State(key=state.key, status="held")]]
    assert begun(project) == [1, 1]


def test_a_held_combination_is_waited_for_in_the_next_round(
    project: Settings, instant: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: list[list[bool]] = []

    def held_first(tasks: list[Task], jobs: int, say: object) -> Iterator[State]:
        rounds.append([task.wait for task in tasks])
        for task in tasks:
            hold = len(rounds) == 1 and task.parameters["seed"] == 2
            yield (
                State(key=Path(task.state_file).stem, status="held")
                if hold
                else run_combination(task)
            )

    monkeypatch.setattr(crypto_ml.sweep, "_in_processes", held_first)
    states = run_sweep(grid_of(project, 1, 2, 3), project)
    assert rounds == [[False] * 3, [True]]
    assert [state.status for state in states] == ["succeeded"] * 3


def test_workers_that_cannot_begin_end_the_sweep(
    project: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crypto_ml.sweep, "_in_processes", lambda *_: iter(()))
    with pytest.raises(RunError, match="workers end before they begin a run"):
        run_sweep(grid_of(project, 1), project)


def test_a_worker_without_the_project_ends_the_sweep(tmp_path: Path) -> None:
    task = Task(str(tmp_path / "settings.ini"), str(tmp_path / "x.json"), {}, "x", False)
    with pytest.raises(RunError, match=r"this worker sees no .*settings\.ini: start"):
        run_combination(task)


def test_a_folder_that_cannot_be_written_ends_the_sweep(project: Settings) -> None:
    state = project.root / "absent" / "x.json"
    (project.root / "absent").write_text("a file")
    task = Task(str(project.root / "settings.ini"), str(state), {}, "x", False)
    with pytest.raises(RunError, match=r"x\.json cannot be written"):
        run_combination(task)


def test_the_leaderboard_never_stops_a_sweep(
    project: Settings, instant: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crypto_ml.sweep, "LEADERBOARD_SECONDS", 0.0)
    broken = project.runs_folder / "20200101-000000-X-1h-000000"
    broken.mkdir()
    (broken / "run.json").write_text("{}")
    said: list[str] = []
    states = run_sweep(grid_of(project, 1, 2), project, say=said.append)
    assert [state.status for state in states] == ["succeeded"] * 2
    assert sum("The leaderboard is not up to date" in line for line in said) >= 2


def test_an_interrupted_sweep_says_where_it_stands(
    project: Settings, instant: Callable[..., Any]
) -> None:
    instant(2, KeyboardInterrupt())  # type: ignore[arg-type]
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run_sweep(grid_of(project, 1, 2, 3), project, say=said.append)
    assert said[-1] == "Stopped: 1 of 3 are done; the same command does the others."
    instant(2, ValueError("now it ends"))
    states = run_sweep(grid_of(project, 1, 2, 3), project)
    assert [state.status for state in states] == ["succeeded", "failed", "succeeded"]
    assert begun(project) == [1, 2, 2, 3]


def test_runs_without_a_statistic_are_told_apart(
    project: Settings, instant: Callable[..., Any], record: dict[str, Any]
) -> None:
    nothing = {**record["verdict"], "outcome": "no evidence of an edge"}
    nothing["statistic"] = {**nothing["statistic"], "low": None}
    (project.root / "record.json").write_text(json.dumps({**record, "verdict": nothing}))
    states = run_sweep(grid_of(project, 1), project)
    assert states[0].words == "no evidence of an edge"
    assert describe_sweep(states, project) == "1 of 1 runs succeeded."


# Processes of this machine


SWEEP = """
import sys
from pathlib import Path
from crypto_ml.settings import load_settings
from crypto_ml.sweep import run_sweep
if __name__ == "__main__":
    run_sweep(Path(sys.argv[1]), load_settings(Path(sys.argv[2])), jobs=2)
"""


def test_a_sweep_that_is_killed_goes_on_where_it_was(project: Settings) -> None:
    script = project.root / "sweep.py"
    script.write_text(SWEEP)
    grid = grid_of(project, 1, 2)
    (project.root / "hold-2").touch()
    command = [sys.executable, str(script), str(grid), str(project.root / "settings.ini")]
    with (project.root / "out").open("w+") as out:
        first = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
        until(lambda: begun(project) == [1, 2])
        workers = psutil.Process(first.pid).children(recursive=True)
        first.kill()  # the sweep alone: its worker lives on, in the middle of run 2
        first.wait()
    (project.root / "hold-2").unlink()
    states = run_sweep(grid, project, jobs=2)
    assert [state.status for state in states] == ["succeeded"] * 2
    # the worker that was left finished run 2; the new sweep waited for it and took its result
    assert begun(project) == [1, 2]
    assert [state.attempts for state in states] == [1, 1]
    assert len(list(project.runs_folder.glob("*/run.json"))) == 2
    for process in workers:  # idle by now: they would end by themselves after five minutes
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


# Two workers of a cluster


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a scheduler without workers."""
    with dask_scheduler(tmp_path_factory.mktemp("scheduler")) as address:
        yield address


Workers = Callable[[], subprocess.Popen[bytes]]


@pytest.fixture
def worker(scheduler: str, tmp_path: Path) -> Iterator[Workers]:
    """Start a worker of the scheduler; all are stopped in the end."""
    with dask_workers(scheduler, tmp_path) as start:
        yield start


def running(settings: Settings, seed: int) -> int:
    """Process that is executing the run of a seed; 0 for none."""
    for path in settings.runs_folder.glob("*/run.json"):
        with contextlib.suppress(ValueError):
            found = json.loads(path.read_text())
            if (found["seed"], found["status"]) == (seed, "running"):
                return int(found["process"]["pid"])
    return 0


def test_what_a_killed_worker_was_running_is_done_again_elsewhere(
    project: Settings, scheduler: str, worker: Workers
) -> None:
    both = [worker(), worker()]
    (project.root / "hold-3").touch()
    said: list[str] = []

    def kill_the_worker_of_run_3(line: str) -> None:
        """Between the first result and the second, when run 3 has begun."""
        said.append(line)
        if line.startswith("[1/"):
            kernel = psutil.Process(until(lambda: running(project, 3)))
            above = {process.pid for process in kernel.parents()}
            (its_worker,) = (one for one in both if one.pid in above)
            left.extend(psutil.Process(its_worker.pid).children(recursive=True))
            its_worker.kill()
            letting_go.start()

    def let_go() -> None:
        """What is left of the first run 3 waits until there is a second."""
        until(lambda: begun(project).count(3) == 2)
        (project.root / "hold-3").unlink()

    letting_go = Thread(target=let_go, daemon=True)

    left: list[psutil.Process] = []
    grid = grid_of(project, 3, 1, 2, 4)
    states = run_sweep(grid, project, scheduler=scheduler, say=kill_the_worker_of_run_3)
    assert [state.status for state in states] == ["succeeded"] * 4
    assert sorted(one.poll() == -signal.SIGKILL for one in both) == [False, True]
    # one run was begun twice, and what the killed worker left of it ended without success
    assert [state.attempts for state in states] == [2, 1, 1, 1]
    assert begun(project) == [1, 2, 3, 3, 4]
    records = [read_record(path.parent) for path in project.runs_folder.glob("*/run.json")]
    statuses = sorted(record.status for record in records)
    assert statuses == ["interrupted", *["succeeded"] * 4]
    assert len([line for line in said if line.startswith("[")]) == 4
    assert not [process for process in left if process.is_running()]
    # the same again needs no worker at all
    assert run_sweep(grid, project, scheduler="tcp://127.0.0.1:9") == states


def test_a_cluster_that_cannot_be_used_is_named(
    project: Settings, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = grid_of(project, 1)
    for address in ("10.0.0.1", "10.0.0.1:8786", "http://a:1", "tcp://a:x", "tcp://a:99999"):
        with pytest.raises(ClusterError, match="is no address of a Dask scheduler"):
            run_sweep(grid, project, scheduler=address)
    with pytest.raises(ClusterError, match=r"no Dask scheduler answers at tcp://127\.0"):
        run_sweep(grid, project, scheduler="tcp://127.0.0.1:9")
    with pytest.raises(ClusterError, match=f"{scheduler} has no workers; start some with"):
        run_sweep(grid, project, scheduler=scheduler)
    with socket.socket() as deaf:  # something listens there, and is no scheduler
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        monkeypatch.setattr(cluster, "CONNECT_SECONDS", 0.5)
        with pytest.raises(ClusterError, match="no Dask scheduler answers"):
            run_sweep(grid, project, scheduler=f"tcp://127.0.0.1:{deaf.getsockname()[1]}")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ClusterError, match=r"pip install 'crypto_ml\[dask\]'"):
        run_sweep(grid, project, scheduler=scheduler)
