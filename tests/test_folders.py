"""Folders: whole or absent at every moment, for whoever looks and whoever is killed."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import time
from functools import partial
from pathlib import Path

import pytest
from small_bundles import in_child, killed_before

from crypto_ml import folders
from crypto_ml.errors import BundleError
from crypto_ml.folders import exchange_folders, read_folder, replace_folder, write_folder

NAMES = ("a.txt", "b.txt", "list.txt")


def version(number: int) -> dict[str, bytes]:
    return {name: f"{name} of version {number}\n".encode() * 200 for name in NAMES}


def swap_in(target: Path, number: int) -> None:
    replace_folder(write_folder(target, version(number)), target)


@pytest.fixture(params=["exchange", "two renames"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of replacing a folder: in one system call, and where the system has none."""
    if request.param == "two renames":
        monkeypatch.setattr(folders, "exchange_folders", lambda one, other: False)
    return str(request.param)


def test_what_was_written_is_read(tmp_path: Path, way: str) -> None:
    target = tmp_path / "deep" / "production"
    for number in range(3):
        hidden = write_folder(target, version(number))
        assert hidden.parent == target.parent
        assert hidden.name.startswith(".production.")
        assert target.exists() == (number > 0)
        replace_folder(hidden, target)
        assert read_folder(target) == version(number)
    assert list(target.parent.iterdir()) == [target]


def test_an_empty_target_is_taken(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    swap_in(tmp_path / "x", 1)
    assert read_folder(tmp_path / "x") == version(1)


def test_the_exchange_is_one_system_call_here(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert exchange_folders(tmp_path / "a", tmp_path / "b")
    assert list((tmp_path / "a").iterdir()) == [tmp_path / "a" / "b"]
    assert not exchange_folders(tmp_path / "a", tmp_path / "missing")


@pytest.mark.parametrize("name", ["renamex_np", ""])
def test_other_systems(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class System:
        """A C library with one function, or none."""

        def __getattr__(self, asked: str) -> object:
            if asked != name:
                raise AttributeError(asked)
            return lambda one, other, flag: 0 if flag == 2 else -1

    monkeypatch.setattr(folders.ctypes, "CDLL", lambda *_, **__: System())
    assert exchange_folders(tmp_path, tmp_path) == bool(name)


def test_everything_is_flushed_before_the_name_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    flush, rename = os.fsync, Path.rename

    def noted_flush(handle: int) -> None:
        events.append(Path(f"/proc/self/fd/{handle}").readlink().name.split(".")[0])
        flush(handle)

    def noted_rename(self: Path, target: Path) -> Path:
        events.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", noted_flush)
    monkeypatch.setattr(Path, "rename", noted_rename)
    swap_in(tmp_path / "x", 1)
    assert events == ["a", "b", "list", "", "rename", tmp_path.name.split(".")[0]]


def test_killed_at_every_step_leaves_old_or_new(tmp_path: Path, way: str) -> None:
    """SIGKILL before each step of replacing version 1 by version 2, until none is left."""
    outcomes: list[str] = []
    for step in range(200):
        place = tmp_path / str(step)
        target = place / "production"
        swap_in(target, 1)
        killed = killed_before(step, place, partial(swap_in, target, 2))
        if target.exists():
            found = read_folder(target)
            assert found in (version(1), version(2))
            outcomes.append("old" if found == version(1) else "new")
        else:
            asides = [p for p in place.iterdir() if read_folder(p) == version(1)]
            assert way == "two renames"
            assert len(asides) == 1, "the old folder must still be there, under a hidden name"
            outcomes.append("absent")
        swap_in(target, 3)
        assert read_folder(target) == version(3), "what a kill leaves must not be in the way"
        if not killed:
            break
    assert not killed
    assert outcomes[-1] == "new"
    assert outcomes == sorted(outcomes, key=["old", "absent", "new"].index)
    assert outcomes.count("absent") == (way == "two renames")
    assert outcomes.count("old") >= 8
    assert outcomes.count("new") >= 4


def test_killed_at_random_moments(tmp_path: Path) -> None:
    target = tmp_path / "production"
    swap_in(target, 0)

    def forever() -> None:
        number = 0
        while True:
            number += 1
            swap_in(target, number)

    rng = random.Random(0)
    for _ in range(30):
        child = os.fork()
        if not child:
            forever()
        time.sleep(rng.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = read_folder(target)
        assert found == version(int(found["a.txt"].split()[3]))


def test_readers_see_one_version_at_a_time(tmp_path: Path, way: str) -> None:
    target = tmp_path / "production"
    swap_in(target, 0)
    writer = os.fork()
    if not writer:
        for number in range(1, 150):
            swap_in(target, number)
        os._exit(0)
    seen = []
    while os.waitpid(writer, os.WNOHANG) == (0, 0):
        found = read_folder(target)
        number = int(found["a.txt"].split()[3])
        assert found == version(number)
        seen.append(number)
    assert seen == sorted(seen)
    assert len(set(seen)) > 5
    assert read_folder(target) == version(149)


def test_two_writers_at_once(tmp_path: Path) -> None:
    for attempt in range(10):
        target = tmp_path / f"production{attempt}"

        def write_ten(first: int, target: Path = target) -> None:
            for number in range(first, first + 10):
                swap_in(target, number)

        other = os.fork()
        if not other:
            write_ten(100)
            os._exit(0)
        write_ten(200)
        assert os.waitpid(other, 0)[1] == 0
        assert read_folder(target) in (version(109), version(209))
    assert not list(tmp_path.glob(".*"))


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    swap_in(tmp_path / "x", 1)

    def write() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with pytest.raises(BundleError, match="x cannot be written: File too large"):
            swap_in(tmp_path / "x", 2)

    assert in_child(write) == 0
    assert list(tmp_path.iterdir()) == [tmp_path / "x"]
    assert read_folder(tmp_path / "x") == version(1)


def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "x", version(1))
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="cannot be written: Not a directory"):
        write_folder(tmp_path / "file" / "x", version(1))
    with pytest.raises(BundleError, match="file cannot be replaced: Not a directory"):
        swap_in(tmp_path / "file", 1)


def test_when_the_second_rename_fails_the_first_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "x"
    swap_in(target, 1)
    hidden = write_folder(target, version(2))
    rename, calls = Path.rename, []

    def fail_third(self: Path, goal: Path) -> Path:
        calls.append(self)
        if len(calls) == 3:
            raise OSError(errno.EIO, "broken disk")
        return rename(self, goal)

    monkeypatch.setattr(folders, "exchange_folders", lambda one, other: False)
    monkeypatch.setattr(Path, "rename", fail_third)
    with pytest.raises(OSError, match="broken disk"):
        replace_folder(hidden, target)
    assert read_folder(target) == version(1)


@pytest.mark.parametrize("kind", ["link", "loop", "folder", "pipe"])
def test_only_plain_files_are_read(tmp_path: Path, kind: str) -> None:
    swap_in(tmp_path / "x", 1)
    odd = tmp_path / "x" / "odd"
    if kind == "link":
        odd.symlink_to("a.txt")
    elif kind == "loop":
        odd.symlink_to("odd")
    elif kind == "folder":
        odd.mkdir()
    else:
        os.mkfifo(odd)
    with pytest.raises(BundleError, match=r"x/odd cannot be read: it is (a link|not a plain file)"):
        read_folder(tmp_path / "x")


def test_what_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match=r"no folder can be read at .*file: Not a directory"):
        read_folder(tmp_path / "file")
    started = time.monotonic()
    with pytest.raises(BundleError, match=r"no folder can be read at .*missing: No such file"):
        read_folder(tmp_path / "missing")
    assert time.monotonic() - started < 0.5, "nobody is replacing it: there is nothing to wait for"


def test_a_reader_waits_for_a_replacement_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swap_in(tmp_path / "x", 1)
    (tmp_path / "x").rename(tmp_path / ".x.0123.partial")
    naps: list[float] = []
    monkeypatch.setattr(folders.time, "sleep", naps.append)
    with pytest.raises(BundleError, match="absent, or replaced faster than it is read"):
        read_folder(tmp_path / "x")
    assert 0.5 < sum(naps) < 5

    def arrive(seconds: float) -> None:
        (tmp_path / ".x.0123.partial").rename(tmp_path / "x")

    monkeypatch.setattr(folders.time, "sleep", arrive)
    assert read_folder(tmp_path / "x") == version(1)


def test_a_file_that_vanishes_is_read_from_the_new_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is replaced, and half removed, between listing it and reading its second file."""
    target = tmp_path / "x"
    swap_in(target, 1)
    read = folders._read_file
    pending = [2]

    def slow_read(folder: Path, name: str, handle: int) -> bytes:
        content = read(folder, name, handle)
        if pending:
            swap_in(target, pending.pop())
        return content

    monkeypatch.setattr(folders, "_read_file", slow_read)
    assert read_folder(target) == version(2)


def test_a_folder_that_is_gone_before_it_is_listed_is_not_taken_for_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "x"
    swap_in(target, 1)
    listdir, pending = os.listdir, [2]

    def slow_listdir(place: int) -> list[str]:
        if isinstance(place, int) and pending:
            swap_in(target, pending.pop())
        return listdir(place)

    monkeypatch.setattr(folders.os, "listdir", slow_listdir)
    assert read_folder(target) == version(2)
