"""No command shows a secret: not in what it prints, logs, writes or raises.

Secrets are planted in the environment, and every command that there is (found by walking through
`crypto-ml`, so a new one is tried too) is run in a small project: with secrets that are in order,
and with such that cannot be read. Nothing reaches the network, no process is started, and a command
that goes on and on is stopped.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import os
import signal
import socket
import subprocess
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import click
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from runs_for_tests import fabricated_run

from crypto_ml.cli import main
from crypto_ml.keys_commands import keys
from crypto_ml.log_commands import audit_log
from crypto_ml.settings import load_settings

SEED = bytes(range(32))
KEY = Ed25519PrivateKey.from_private_bytes(SEED)
PEM = KEY.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
).decode()
BOX = "5ec7e7" * 10 + "5ec7"
TOKEN = "hunter2-tOkEn-7731"
SOUND = {
    "SIGNING_KEY": PEM,
    "ENCRYPTION_KEY": BOX,
    "NOTIFY": f"discord://131313/{TOKEN}",
    "NOTIFY_WARNING": f"discord://131313/{TOKEN}",
}
BROKEN = {name: f"no {TOKEN} at all" for name in SOUND}
# what would give a secret away, however it is written
TELLTALE = [
    *(PEM.split("\n")[1][20:], SEED.hex(), base64.b64encode(SEED).decode()[:-2], BOX, TOKEN),
    *(text.upper() for text in (BOX, SEED.hex())),
]
SECONDS = 1.5
WORDS = {
    "market": "bitbank:BTC/JPY:1h",
    "exchange": "bitbank",
    "symbol": "BTC/JPY",
    "timeframe": "1h",
}


class Stopped(BaseException):
    """A command took too long, as those do that watch something."""


def commands(
    group: click.Command, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if isinstance(group, click.Group):
        for name, command in sorted(group.commands.items()):
            yield from commands(command, (*path, name))
    else:
        yield path, group


def plausible(parameter: click.Parameter, scratch: Path) -> list[str]:
    """Return words that give a command what it cannot do without."""
    if not parameter.required:
        return []
    kind, name = parameter.type, str(parameter.name)
    value = WORDS.get(name, "latest")
    if isinstance(kind, click.Choice):
        value = str(next(iter(kind.choices)))
    elif kind.name in ("integer", "float"):
        value = "1"
    elif isinstance(kind, click.Path):
        value = str(scratch / name)
    return [value] if isinstance(parameter, click.Argument) else [parameter.opts[-1], value]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    (root / "settings.ini").write_text("[market]\nsource = absent_X_1h.csv\n")
    monkeypatch.chdir(root)
    monkeypatch.setenv("CRYPTO_ML_KEYS", str(tmp_path / "own"))
    monkeypatch.setenv("CRYPTO_ML_STORE", str(tmp_path / "store"))

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("not in this test")

    for module, name in (
        (socket.socket, "connect"),
        (socket, "getaddrinfo"),
        (subprocess, "Popen"),
    ):
        monkeypatch.setattr(module, name, refuse)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    return root


@contextlib.contextmanager
def limited() -> Iterator[None]:
    def stop(_: int, __: FrameType | None) -> None:
        raise Stopped

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS, 0.2)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def everything_said(root: click.Group, words: list[str], caplog: pytest.LogCaptureFixture) -> str:
    """Run a command; return its output, what it logged, and the error with its whole traceback."""
    caplog.clear()
    error: BaseException | None = None
    result = None
    with contextlib.suppress(Stopped), limited():
        result = CliRunner().invoke(root, ["--debug", *words], standalone_mode=True)
        error = result.exception
    said = result.output if result else ""
    said += "\n".join(record.getMessage() + str(record.exc_text or "") for record in caplog.records)
    return said + ("".join(traceback.format_exception(error)) if error else "")


def leaks(said: str, folder: Path) -> list[str]:
    """Name the places where a secret shows: what was said, and the files of a folder."""
    found = ["what it says"] * any(text in said for text in TELLTALE)
    marks = [text.encode() for text in TELLTALE] + [SEED]
    for path in folder.rglob("*"):
        if path.is_file() and any(mark in path.read_bytes() for mark in marks):
            found.append(str(path.relative_to(folder)))
    return found


def plant(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    for name, value in values.items():
        monkeypatch.setenv(f"CRYPTO_ML_{name}", value)


def whole() -> click.Group:
    """Return `crypto-ml` with all its commands."""
    root = click.Group("crypto-ml", params=main.params, callback=main.callback)
    root.commands = {**main.commands, "keys": keys, "audit-log": audit_log}
    return root


@pytest.mark.parametrize("values", [SOUND, BROKEN], ids=["sound", "broken"])
def test_no_command_shows_a_secret(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    values: dict[str, str],
) -> None:
    caplog.set_level(logging.DEBUG)
    run = fabricated_run(load_settings().runs_folder)
    plant(monkeypatch, values)
    root, tried = whole(), []
    for path, command in commands(root):
        words = [word for p in command.params for word in plausible(p, project.parent)]
        for variant in ([*path, *words], [*path, *words, "--no-such-option"]):
            said = everything_said(root, variant, caplog)
            assert not leaks(said, project), (variant, leaks(said, project))
        tried.append(" ".join(path))
    assert {"train", "runs", "show", "keys sign", "keys list", "audit-log show"} <= {*tried}
    assert run.is_dir()


def test_a_leak_would_be_found(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plant(monkeypatch, SOUND)
    key = "CRYPTO_ML_NOTIFY"

    def log() -> None:
        logging.getLogger("crypto_ml.leaky").warning("to %s", os.environ[key])

    def write() -> None:
        (project / "runs").mkdir()
        (project / "runs" / "run.log").write_text(os.environ[key])

    def fail() -> None:
        raise ValueError(f"cannot send to {os.environ[key]}")

    def forever() -> None:
        click.echo("begun")
        while True:
            time.sleep(60)

    root = click.Group("crypto-ml", params=main.params)
    for function in (lambda: click.echo(os.environ[key]), log, fail, write):
        root.add_command(click.Command("leaky", callback=function))
        assert leaks(everything_said(root, ["leaky"], caplog), project)
    (project / "runs" / "run.log").unlink()
    root.add_command(click.Command("forever", callback=forever))
    start = time.monotonic()
    assert not leaks(everything_said(root, ["forever"], caplog), project)
    assert time.monotonic() - start < 4 * SECONDS
