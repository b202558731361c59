"""Check everything that CI checks, or the named gates only: `python .ci/check.py [GATE ...]`."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from queue import Queue

import gates

ROOT = Path(__file__).resolve().parent.parent
CORES = os.cpu_count() or 1


def timed(check: Callable[[], list[str]]) -> tuple[list[str], float]:
    """Run a check; give its problems and how many seconds it took."""
    start = time.perf_counter()
    try:
        problems = check()
    except Exception as error:  # a gate that breaks has not been passed; the others go on
        problems = [f"{type(error).__name__}: {error}"]
    return problems, time.perf_counter() - start


def check_gates(checks: Mapping[str, Callable[[], list[str]]]) -> list[str]:
    """Run checks side by side, print a line for each as it ends, and name those that failed."""
    failed = []
    with ThreadPoolExecutor(CORES) as pool:
        running = {pool.submit(timed, check): name for name, check in checks.items()}
        for future in as_completed(running):
            problems, seconds = future.result()
            outcome = "FAILED" if problems else "ok"
            print(f"{running[future]:<28} {outcome:<6} {seconds:6.1f} s", flush=True)
            for problem in problems:
                print("    " + problem.replace("\n", "\n    "), flush=True)
            if problems:
                failed.append(running[future])
    return failed


def notebook_checks(executors: ExitStack) -> dict[str, Callable[[], list[str]]]:
    """Return a check for each notebook: runs first, which take longest, by papermill."""
    free: Queue[gates.Executor] = Queue()
    for _ in range(CORES):
        free.put(executors.enter_context(gates.Executor(ROOT)))

    def execute(name: str) -> list[str]:
        executor = free.get()
        try:
            return executor.execute(name)
        finally:
            free.put(executor)

    names = sorted({path.stem for path in (ROOT / "nbs").glob("*.ipynb")} - gates.QUICK.keys())
    return {
        **{f"notebook {name}": partial(gates.execute, ROOT, name) for name in gates.QUICK},
        **{f"notebook {name}": partial(execute, name) for name in names},
    }


def run_tests() -> bool:
    """Run pytest on all cores, with coverage; its own words are the outcome."""
    workers = ["-n", str(min(CORES, 8)), "--dist", "worksteal"] if CORES > 1 else []
    options = ["--cov", "--cov-report=term", "--durations=10"]
    command = [sys.executable, "-m", "pytest", *workers, *options]
    return subprocess.run(command, cwd=ROOT, env=gates.ENVIRONMENT, check=False).returncode == 0


def main(wanted: list[str]) -> int:
    """Run the wanted gates, or all; the tests come last."""
    known = [*gates.GATES, "notebooks", "tests"]
    if unknown := [name for name in wanted if name not in known]:
        print(f"No gate is called {', '.join(unknown)}. There are: {', '.join(known)}")
        return 2
    wanted = wanted or known
    checks = {name: partial(gate, ROOT) for name, gate in gates.GATES.items() if name in wanted}
    with ExitStack() as executors:
        if "notebooks" in wanted:
            checks |= notebook_checks(executors)
        failed = check_gates(checks)
    if "tests" in wanted and not run_tests():
        failed.append("tests")
    if failed:
        print(f"Failed: {', '.join(failed)}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
