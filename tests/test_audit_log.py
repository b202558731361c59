"""The audit log: whatever is done to it is found, and what a kill leaves is mended."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from small_bundles import in_child

from crypto_ml import audit_entries, audit_log, chain
from crypto_ml.audit_entries import canonical, make_entry, make_head, read_entry
from crypto_ml.audit_log import (
    AUDIT_HEAD,
    AUDIT_LOG,
    START,
    AuditError,
    Entry,
    append_entry,
    read_head,
    read_log,
    verify_log,
    who_acts,
)
from crypto_ml.signatures import KeyPair

NOON = datetime(2025, 3, 1, 12, tzinfo=UTC)


def fixed_key(name: str) -> KeyPair:
    return KeyPair(
        name, Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())
    )


ANNA, STRANGER = fixed_key("anna"), fixed_key("stranger")


def add(folder: Path, why: str = "because", **options: Any) -> Entry:
    return append_entry(folder, "promote", why=why, subject={"version": "v1"}, now=NOON, **options)


def log_of(folder: Path, count: int, key: KeyPair | None = None) -> list[bytes]:
    for number in range(count):
        add(folder, f"reason {number}", key=key)
    return (folder / AUDIT_LOG).read_bytes().splitlines(keepends=True) if count else []


@pytest.fixture(scope="module", params=["plain", "signed"])
def eight(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Give a folder whose log is written anew by each test, and its eight lines."""
    folder, key = tmp_path_factory.mktemp("log"), ANNA if request.param == "signed" else None
    lines = log_of(folder, 8, key)
    head = (folder / AUDIT_HEAD).read_bytes()
    return SimpleNamespace(folder=folder, lines=lines, head=head, signed=key is not None)


def found(eight: Any, data: bytes, head: bytes | None = None) -> set[tuple[int, str]]:
    (eight.folder / AUDIT_LOG).write_bytes(data)
    (eight.folder / AUDIT_HEAD).write_bytes(eight.head if head is None else head)
    report = verify_log(eight.folder, [ANNA.public], required=eight.signed)
    assert report.intact == (not report.flaws)
    return {(flaw.line, flaw.kind) for flaw in report.flaws}


# what is written


def test_entries_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in audit_entries.CI_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert verify_log(tmp_path / "nowhere").intact
    assert read_log(tmp_path) == []
    assert verify_log(tmp_path).state == "0:"
    gates = SimpleNamespace(to_dict=lambda: [{"name": "verdict", "outcome": "fail", "value": 0.5}])
    first = append_entry(
        tmp_path / "new" / "models",
        "promote",
        why="tests",
        subject={"version": "v1", "sha256": "ab", "score": 0.1},
        gates=gates,
        forced=True,
    )
    monkeypatch.setenv("GITHUB_ACTOR", "anna")
    monkeypatch.setenv("GITHUB_RUN_ID", "77")
    second = add(tmp_path / "new" / "models", gates=[])
    assert read_log(tmp_path / "new" / "models") == [first, second]
    assert first.gates == gates.to_dict()
    assert (first.forced, second.forced, second.gates) == (True, False, [])
    assert (first.number, first.previous, second.previous) == (1, START, first.hash)
    assert abs(datetime.fromisoformat(first.at) - datetime.now(UTC)).total_seconds() < 60
    assert second.at == "2025-03-01T12:00:00.000+00:00"
    assert first.who.ci == {}
    assert second.who.ci == {"GITHUB_ACTOR": "anna", "GITHUB_RUN_ID": "77"}
    assert second.who.user
    assert read_head(tmp_path / "new" / "models").entries == 2


def test_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 987654)
    assert who_acts().user == "uid 987654"


def test_only_plain_values_are_kept(tmp_path: Path) -> None:
    for bad in ({"x": {1}}, {"x": float("nan")}, {"x": datetime.now(UTC)}):
        with pytest.raises(AuditError, match="plain values only"):
            append_entry(tmp_path, "promote", why="", subject=bad)
    with pytest.raises(AuditError, match="entry's action is not as expected"):
        append_entry(tmp_path, "Promote!", why="", subject={})
    with pytest.raises(AuditError, match="entry's gates is not as expected"):
        add(tmp_path, gates="all")
    assert not (tmp_path / AUDIT_LOG).exists()


# what is done to it


def test_every_byte_of_log_and_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any byte changed or left out, any blank put in: found, N of N, on its line."""
    lines, tried = log_of(tmp_path, 2), 0
    monkeypatch.setattr(os, "access", lambda *_: False)  # read without a lock: nobody writes
    whole, head = b"".join(lines), (tmp_path / AUDIT_HEAD).read_bytes()
    for place in range(len(whole)):
        line = 1 + whole[:place].count(b"\n")
        others = [whole[place] ^ (1 if place % 2 else 0x20)]
        altered = [whole[:place] + bytes([b]) + whole[place + 1 :] for b in others]
        altered.append(whole[:place] + b" " + whole[place:])
        for data in [*altered, whole[:place] + whole[place + 1 :]]:
            (tmp_path / AUDIT_LOG).write_bytes(data)
            flaws = audit_log.verify_log(tmp_path).flaws
            assert flaws, (place, data)
            assert abs(min(flaw.line for flaw in flaws) - line) <= 1
            tried += 1
    (tmp_path / AUDIT_LOG).write_bytes(whole)
    for place in range(len(head)):
        for bit in (0, 1, 5):
            altered_head = head[:place] + bytes([head[place] ^ 1 << bit]) + head[place + 1 :]
            (tmp_path / AUDIT_HEAD).write_bytes(altered_head)
            try:
                assert verify_log(tmp_path).flaws, altered_head
            except AuditError as error:
                assert "damaged or was changed" in str(error)
            tried += 1
    assert tried == 3 * len(whole) + 3 * len(head)


@given(removed=st.sets(st.integers(0, 7), min_size=1))
def test_any_deletion_is_found_and_named(eight: Any, removed: set[int]) -> None:
    kept = [line for number, line in enumerate(eight.lines) if number not in removed]
    flaws = found(eight, b"".join(kept))
    expected = set()
    for number in range(8):
        if number in removed and number + 1 not in removed:
            after = sum(k not in removed for k in range(number + 1))
            expected.add((after + 1, "deleted") if number < 7 else (len(kept), "truncated"))
    assert flaws - {(len(kept), "unsigned")} == expected


@given(st.permutations(range(8)))
def test_any_order_but_the_right_one_is_found(eight: Any, order: list[int]) -> None:
    flaws = found(eight, b"".join(eight.lines[number] for number in order))
    assert bool(flaws) == (order != list(range(8)))
    assert {kind for _, kind in flaws} <= {"reordered"}
    assert {line for line, _ in flaws} == {
        line for line, number in enumerate(order, 1) if number + 1 != line
    }


@given(st.integers(0, 6), st.integers(0, 7))
def test_any_swap_is_named(eight: Any, one: int, other: int) -> None:
    lines = list(eight.lines)
    lines[one], lines[other] = lines[other], lines[one]
    flaws = found(eight, b"".join(lines))
    expected = {one + 1, other + 1} if one != other else set()
    assert flaws == {(line, "reordered") for line in expected}


def test_any_cut_is_found(eight: Any) -> None:
    whole, tried = b"".join(eight.lines), 0
    ends = [sum(map(len, eight.lines[:count])) for count in range(1, 9)]
    sizes = {*range(0, len(whole), 37), *(size + k for size in ends for k in (-1, 0, 1))}
    for size in sizes - {len(whole), len(whole) + 1}:
        flaws = found(eight, whole[:size])
        lines = whole[:size].count(b"\n")
        assert (lines, "truncated") in flaws, size
        tried += 1
    assert tried > 70


@given(st.integers(0, 7), st.integers(0, 8))
def test_any_repeated_line_is_found(eight: Any, line: int, place: int) -> None:
    lines = [*eight.lines[:place], eight.lines[line], *eight.lines[place:]]
    assert {kind for _, kind in found(eight, b"".join(lines))} & {"reordered", "edited"}


@given(line=st.integers(0, 7), field=st.sampled_from(["why", "at", "previous", "action", "who"]))
def test_an_edit_with_a_fitting_hash_is_found_and_named(eight: Any, line: int, field: str) -> None:
    """Whoever edits cleverly computes the line's own hash anew; the chain still shows it."""
    values = json.loads(eight.lines[line])
    new = {"previous": "ab" * 32, "who": {**values["who"], "user": "otto"}, "at": "2020-01-01"}
    entry = Entry(**{**values, field: new.get(field, "other")})
    forged = entry.model_copy(update={"hash": entry.own_hash()}).line()
    assert read_entry(forged) is not None
    lines = [*eight.lines[:line], forged + b"\n", *eight.lines[line + 1 :]]
    flaws = found(eight, b"".join(lines))
    assert (line + 1, "edited") in flaws
    assert {number for number, _ in flaws} == {line + 1}


@given(st.binary(min_size=1, max_size=40).filter(lambda b: b != b"\n"), st.integers(0, 8))
def test_any_foreign_line_is_found(eight: Any, text: bytes, place: int) -> None:
    lines = [*eight.lines[:place], text.replace(b"\n", b" ") + b"\n", *eight.lines[place:]]
    assert (place + 1, "edited") in found(eight, b"".join(lines))


def test_a_removed_or_older_head_is_found(eight: Any) -> None:
    whole = b"".join(eight.lines)
    found(eight, whole)
    (eight.folder / AUDIT_HEAD).unlink()
    assert [f.kind for f in verify_log(eight.folder).flaws] == ["head"]
    entries = [read_entry(line.strip()) for line in eight.lines]
    key = ANNA if eight.signed else None
    older = [canonical(make_head(e.number, e.hash, key).model_dump()) + b"\n" for e in entries if e]
    assert [bool(found(eight, whole, head)) for head in older] == [True] * 6 + [False] * 2
    assert not found(eight, whole, older[6])
    assert "does not count entry 8 yet" in verify_log(eight.folder).remarks[0]
    for number in (0, 7):
        other = canonical(make_head(number, entries[7].hash, key).model_dump()) + b"\n"  # type: ignore[union-attr]
        assert (number + 1, "head") in found(eight, whole, other)
    with pytest.raises(AuditError, match=r"audit\.head is damaged"):
        found(eight, whole, b"")


def test_nothing_is_added_to_a_log_that_was_changed(tmp_path: Path) -> None:
    lines = log_of(tmp_path, 3)
    path, head = tmp_path / AUDIT_LOG, (tmp_path / AUDIT_HEAD).read_bytes()
    whole = b"".join(lines)
    for data in (lines[0] + lines[1], whole[:-5], whole[:-1], b"", whole + b"x", whole + b"x\n"):
        path.write_bytes(data)
        with pytest.raises(AuditError, match="not as it was written, so nothing is added"):
            add(tmp_path)
        assert path.read_bytes() == data, "the evidence stays as it is"
        assert (tmp_path / AUDIT_HEAD).read_bytes() == head
        assert not verify_log(tmp_path).intact
        with pytest.raises(AuditError, match=r"problems? with .*audit\.jsonl \(restore"):
            read_log(tmp_path)
    path.write_bytes(whole)
    assert add(tmp_path).number == 4


# signatures


def forge(lines: list[bytes], key: KeyPair | None) -> tuple[bytes, bytes]:
    """Make up a whole history, with fitting hashes, numbers and head."""
    previous, made = START, []
    for number, line in enumerate(lines, 1):
        values = {
            k: v for k, v in json.loads(line).items() if k not in ("key", "signature", "hash")
        }
        entry = make_entry({**values, "number": number, "previous": previous}, key)
        previous = entry.hash
        made.append(entry.line() + b"\n")
    return b"".join(made), canonical(make_head(len(made), previous, key).model_dump()) + b"\n"


def test_a_made_up_history_is_found_by_signatures_or_a_noted_state(tmp_path: Path) -> None:
    lines = log_of(tmp_path, 5, ANNA)
    noted = verify_log(tmp_path, [ANNA.public], required=True)
    assert (noted.intact, noted.signed) == (True, 5)
    for key in (None, STRANGER):
        data, head = forge([*lines[:2], *lines[3:]], key)
        (tmp_path / AUDIT_LOG).write_bytes(data)
        (tmp_path / AUDIT_HEAD).write_bytes(head)
        assert verify_log(tmp_path, [ANNA.public]).signed == 0
        flaws = verify_log(tmp_path, [ANNA.public], required=True).flaws
        assert {flaw.kind for flaw in flaws} == {"unsigned"}
        assert [flaw.line for flaw in flaws] == [1, 2, 3, 4, 4], "the head's is the last"
        found = verify_log(tmp_path, since=noted.state).flaws
        assert ["does not hold entry 5" in flaw.sentence for flaw in found] == [True]
    data, head = forge(lines[:3], ANNA)  # an old log put back with its head: only a note tells
    (tmp_path / AUDIT_LOG).write_bytes(data)
    (tmp_path / AUDIT_HEAD).write_bytes(head)
    assert verify_log(tmp_path, [ANNA.public], required=True).intact
    assert verify_log(tmp_path, [ANNA.public], required=True, since=noted.state).flaws
    assert verify_log(tmp_path, since="0:").intact


def test_a_signature_cannot_be_taken_off_or_exchanged(tmp_path: Path) -> None:
    lines = log_of(tmp_path, 2, ANNA)
    values = json.loads(lines[1])
    other = json.loads(lines[0])["signature"]
    for change in ({"key": "", "signature": ""}, {"signature": other}, {"key": STRANGER.key_id}):
        entry = Entry(**{**values, **change})
        entry = entry.model_copy(update={"hash": entry.own_hash()})
        (tmp_path / AUDIT_LOG).write_bytes(lines[0] + entry.line() + b"\n")
        head = canonical(make_head(2, entry.hash, None).model_dump()) + b"\n"
        (tmp_path / AUDIT_HEAD).write_bytes(head)
        report = verify_log(tmp_path, [ANNA.public], required=True)
        assert {flaw.line for flaw in report.flaws} == {2}
    report = verify_log(tmp_path, [ANNA.public])
    assert report.remarks == (
        "audit.head is not signed, so signed entries may be missing at the end",
    )
    half = json.loads(lines[1]) | {"key": ""}
    assert read_entry(Entry(**half).line()) is None


def test_signed_and_unsigned_entries_may_follow_one_another(tmp_path: Path) -> None:
    for key in (ANNA, None, ANNA):
        add(tmp_path, key=key)
    assert verify_log(tmp_path, [ANNA.public]).intact
    flaws = verify_log(tmp_path, [ANNA.public], required=True).flaws
    assert [(flaw.line, flaw.kind) for flaw in flaws] == [(2, "unsigned")]


# kills


def dying(step: int, folder: Path, written: float, work: Callable[[], object]) -> int:
    """Run in a child that dies before the step-th call that changes the disk.

    A write that it dies in has put part of its bytes there.
    """

    def doomed() -> None:
        left = [step]

        def wrap(module: Any, name: str) -> None:
            real = getattr(module, name)

            def call(*arguments: Any, **options: Any) -> Any:
                left[0] -= 1
                if left[0] < 0:
                    if name == "write":
                        real(arguments[0], arguments[1][: int(len(arguments[1]) * written)])
                    os._exit(9)
                return real(*arguments, **options)

            setattr(module, name, call)

        for name in ("write", "fsync", "replace", "rename"):
            wrap(os, name)
        wrap(Path, "open")
        wrap(Path, "replace")
        work()

    return in_child(doomed)


@pytest.mark.parametrize("written", [0.3, 1])
@pytest.mark.parametrize(("before", "counted"), [(0, 0), (2, 2), (2, 1)])
def test_killed_at_every_step_of_adding(
    tmp_path: Path, before: int, counted: int, written: float
) -> None:
    """No entry is lost that was returned, none is invented, and the next one mends the rest.

    Where the head counts one entry less, an earlier writer was killed just before it was done.
    """
    counts = []
    for step in range(60):
        folder = tmp_path / str(step)
        folder.mkdir()
        log_of(folder, counted)
        head = (folder / AUDIT_HEAD).read_bytes() if counted < before else b""
        for number in range(counted, before):
            add(folder, f"reason {number}")
            (folder / AUDIT_HEAD).write_bytes(head)
        status = dying(step, folder, written, lambda folder=folder: add(folder, "doomed"))
        assert status in (0, 9)
        report = verify_log(folder)
        assert report.intact, (step, report.flaws)
        assert [e.why for e in report.entries[:before]] == [f"reason {n}" for n in range(before)]
        assert len(report.entries) - before in ((0, 1) if status else (1,))
        counts.append(len(report.entries))
        assert len(read_log(folder)) == counts[-1]
        assert add(folder, "after").number == counts[-1] + 1
        after = verify_log(folder)
        assert (after.intact, after.remarks, len(after.entries)) == (True, (), counts[-1] + 1)
        if not status:
            break
    assert not status
    assert counts == sorted(counts)


def test_every_torn_line_is_told_from_tampering_and_mended(tmp_path: Path) -> None:
    lines = log_of(tmp_path, 2)
    path = tmp_path / AUDIT_LOG
    whole, head = b"".join(lines), (tmp_path / AUDIT_HEAD).read_bytes()
    torn = add(tmp_path, "torn").line()
    for size in {1, 5, 12, *range(1, len(torn), 11), len(torn) - 1, len(torn)}:
        for left in (torn[:size], torn[:size] + b"\0" * 30):
            path.write_bytes(whole + left)
            (tmp_path / AUDIT_HEAD).write_bytes(head)
            report = verify_log(tmp_path)
            assert report.intact
            assert f"line 3 is unfinished ({len(left)} bytes)" in report.remarks[0]
            assert len(read_log(tmp_path)) == 2
    assert add(tmp_path).torn == len(left)
    assert verify_log(tmp_path).remarks == ()
    path.write_bytes(whole + b"hello")
    (tmp_path / AUDIT_HEAD).write_bytes(head)
    assert [(flaw.line, flaw.kind) for flaw in verify_log(tmp_path).flaws] == [(3, "added")]


def _write(folder: Path, writer: int) -> None:
    for number in range(12):
        add(folder, f"{writer}-{number}", key=ANNA if writer % 2 else None)


def test_many_writers_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(tmp_path, number)) for number in range(4)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert verify_log(tmp_path, [ANNA.public]).intact
    assert [writer.exitcode for writer in writers] == [0] * 4
    reasons = [entry.why for entry in read_log(tmp_path)]
    assert sorted(reasons) == sorted(f"{w}-{n}" for w in range(4) for n in range(12))
    for writer in range(4):
        own = [reason for reason in reasons if reason.startswith(f"{writer}-")]
        assert own == [f"{writer}-{n}" for n in range(12)]


# what cannot be written or read


def test_a_full_disk_leaves_the_log_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_of(tmp_path, 2)
    before = (tmp_path / AUDIT_LOG).read_bytes()
    write = os.write

    def full(handle: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    for broken in (lambda handle, data: write(handle, data[:50]), full):
        monkeypatch.setattr(chain.os, "write", broken)
        with pytest.raises(AuditError, match=r"disk full|No space left"):
            add(tmp_path)
        monkeypatch.undo()
        assert (tmp_path / AUDIT_LOG).read_bytes() == before
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda *_: full(0, b""))
    with pytest.raises(AuditError, match=r"audit\.head cannot be written: No space"):
        add(tmp_path)
    monkeypatch.setattr(Path, "replace", replace)
    assert add(tmp_path).number == 4, "the entry before it is on disk, and counted now"


def test_a_held_log_is_an_error_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_log, "LOCK_SECONDS", 0.05)
    with FileLock(tmp_path / f".{AUDIT_LOG}.lock"):
        for action in (add, verify_log):
            with pytest.raises(AuditError, match=r"held by another process for 0\.05 seconds"):
                action(tmp_path)


def test_a_place_that_cannot_be_written_or_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / AUDIT_LOG).mkdir()
    with pytest.raises(AuditError, match=r"cannot be (read|added to)"):
        verify_log(tmp_path)
    (tmp_path / AUDIT_LOG).rmdir()
    log_of(tmp_path, 2)
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(audit_log, "held", None)
    assert verify_log(tmp_path).intact, "a read-only log is read without a lock"
    monkeypatch.undo()
    (tmp_path / AUDIT_HEAD).unlink()
    (tmp_path / AUDIT_HEAD).mkdir()
    with pytest.raises(AuditError, match=r"audit\.head cannot be read"):
        verify_log(tmp_path)

    def nowhere(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(chain.FileLock, "acquire", nowhere)
    with pytest.raises(AuditError, match=r"audit\.jsonl cannot be written: Permission denied"):
        add(tmp_path)


def test_a_line_longer_than_the_tail_is_followed_rightly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain, "TAIL", 16)
    log_of(tmp_path, 4)
    assert verify_log(tmp_path).intact
