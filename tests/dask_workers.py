"""A Dask scheduler and workers for tests: processes of this machine, on its loopback only."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Process = subprocess.Popen[bytes]


def _started(arguments: list[str], log: Path, words: str) -> Process:
    """Start a program of Dask and wait until it has said some words."""
    with log.open("w") as out:
        process = subprocess.Popen([sys.executable, "-m", *arguments], stdout=out, stderr=out)
    for _ in range(1200):
        if words in log.read_text():
            return process
        if process.poll() is not None:
            break
        time.sleep(0.05)
    process.kill()
    raise AssertionError(log.read_text())


@contextmanager
def dask_scheduler(folder: Path) -> Iterator[str]:
    """Give the address of a scheduler without workers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--host", "127.0.0.1", "--port", str(port), "--no-dashboard", "--no-show"]
    arguments = ["distributed.cli.dask_scheduler", *options]
    process = _started(arguments, folder / "scheduler.log", "Scheduler at:")
    try:
        yield f"tcp://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@contextmanager
def dask_workers(scheduler: str, folder: Path) -> Iterator[Callable[[], Process]]:
    """Give a function that starts a worker with one thread; all are stopped in the end."""
    running: list[Process] = []

    def start() -> Process:
        own = folder / f"worker-{len(running)}"
        own.mkdir()
        options = ["--host", "127.0.0.1", "--nthreads", "1", "--no-nanny", "--no-dashboard"]
        arguments = ["distributed.cli.dask_worker", *options, "--local-directory", str(own)]
        running.append(_started([*arguments, scheduler], own / "log", "Registered to"))
        return running[-1]

    try:
        yield start
    finally:
        for process in running:
            process.terminate()
            process.wait()
