"""`crypto-ml keys` and `crypto-ml audit-log`, as one types them."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from crypto_ml.audit_log import append_entry
from crypto_ml.bundle import json_bytes
from crypto_ml.keys_commands import keys
from crypto_ml.log_commands import audit_log
from crypto_ml.manifest import Git, manifest_bytes
from crypto_ml.signatures import new_key


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("SIGNING_KEY", "ENCRYPTION_KEY", "SECRETS"):
        monkeypatch.delenv(f"CRYPTO_ML_{name}", raising=False)
    monkeypatch.setenv("CRYPTO_ML_KEYS", str(tmp_path / "own"))
    root = tmp_path / "project"
    root.mkdir()
    (root / "settings.ini").write_text("")
    monkeypatch.chdir(root)
    return root


def bundle(folder: Path) -> Path:
    folder.mkdir(parents=True)
    files = {"a.txt": b"first", "ensemble.json": json_bytes({})}
    (folder / "manifest.json").write_bytes(
        manifest_bytes(files, "r1", Git(commit="", dirty=False), {})
    )
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def run(*words: str, group: object = keys) -> Result:
    result = CliRunner().invoke(group, words)  # type: ignore[arg-type]
    if result.exception and not isinstance(result.exception, SystemExit):
        result.output_bytes += str(result.exception).encode()
    return result


def test_from_a_new_key_to_a_bundle_that_is_trusted(project: Path, tmp_path: Path) -> None:
    folder = bundle(project / "models" / "production")
    assert "there is no key to sign with" in run("sign", "production").output
    said = run("new", "anna").output
    assert "crypto-ml keys trust anna" in said
    private = (tmp_path / "own" / "anna.pem").read_text()
    assert private.split("\n")[1] not in said
    assert stat.S_IMODE((tmp_path / "own" / "anna.pem").stat().st_mode) == 0o600
    assert (
        "does not trust that key yet: crypto-ml keys trust anna" in run("sign", "production").output
    )
    assert "signed by a key that this project does not trust" in run("verify", "production").output
    assert "not trusted: keys trust anna" in run("list").output
    assert "Commit keys/trusted/anna.pub" in run("trust", "anna").output
    assert "signed by anna" in run("verify", str(folder)).output
    (project / "settings.ini").write_text("[production]\nrequire_signature = true\n")
    assert "signature is required" in run("list").output
    assert run("verify", "production").exit_code == 0
    (folder / "manifest.sig").unlink()
    assert "is not signed, and the settings demand" in run("verify", "production").output
    assert [path.name for path in (project / "keys").rglob("*.p*")] == ["anna.pub"]


def test_a_key_in_the_project_must_be_insisted_on(project: Path) -> None:
    assert "is inside the project" in run("new", "a", "--folder", "keys").output
    assert not (project / "keys").exists()
    assert run("new", "a", "--folder", "keys", "--inside-project").exit_code == 0
    assert (project / "keys" / "a.pem").exists()


def test_trusting_others(project: Path, tmp_path: Path) -> None:
    otto, other = new_key(tmp_path / "one", "otto"), new_key(tmp_path / "two", "otto")
    assert otto.key_id in run("trust", str(tmp_path / "one" / "otto.pub")).output
    assert run("trust", str(tmp_path / "one" / "otto.pub")).exit_code == 0, "once more is no harm"
    said = run("trust", str(tmp_path / "two" / "otto.pub")).output
    assert f"is another key, {otto.key_id}; trust {other.key_id} under another --name" in said
    run("trust", str(tmp_path / "two" / "otto.pub"), "--name", "ottilie")
    assert {path.name for path in (project / "keys" / "trusted").iterdir()} == {
        "otto.pub",
        "ottilie.pub",
    }
    assert (
        "cannot be called"
        in run("trust", str(tmp_path / "two" / "otto.pub"), "--name", "../x").output
    )
    assert "cannot be read: No such file" in run("trust", "nobody").output


def test_a_changed_bundle_is_not_signed(project: Path) -> None:
    folder = bundle(project / "b")
    run("new", "anna")
    (folder / "a.txt").write_bytes(b"other")
    assert "a.txt was changed" in run("sign", "b").output
    assert not (folder / "manifest.sig").exists()


def test_which_bundle_is_meant(project: Path) -> None:
    run("new", "anna")
    for place, word in (
        (project / "elsewhere" / "b", str(project / "elsewhere" / "b")),
        (project / "models" / "archive" / "v0001", "v0001"),
        (project / "runs" / "20250101-000000-X-1h-abcdef" / "bundle", "abcdef"),
        (project / "runs" / "20250101-000000-X-1h-abcdef" / "bundle", "latest"),
    ):
        if not place.exists():
            bundle(place)
        if place.name == "bundle":
            (place.parent / "run.json").write_text("{}")
        assert f"{place} is signed" in run("sign", word).output
    assert "nothing is in production" in run("verify", "production").output
    assert "No run in" in run("verify", "nothing").output


def test_encryption(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = bundle(project / "b")
    assert "no key to encrypt with" in run("encrypt", "b").output
    said = run("new", "box", "--encryption").output
    text = (tmp_path / "own" / "box.key").read_text()
    assert text.strip() not in said
    assert stat.S_IMODE((tmp_path / "own" / "box.key").stat().st_mode) == 0o600
    assert "never overwritten" in run("new", "box", "--encryption").output
    monkeypatch.setenv("CRYPTO_ML_ENCRYPTION_KEY", f"{text.strip()} {'ab' * 32}\n")
    assert "is encrypted with key" in run("encrypt", "b").output
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json",
        "a.txt.enc",
        "ensemble.json.enc",
    }
    assert ", encrypted." in run("verify", "b").output
    listed = run("list").output
    assert "box" in listed
    assert "decrypts only" in listed
    assert "encrypted already" in run("encrypt", "b").output
    run("new", "anna")
    assert "is signed by anna" in run("sign", "b").output
    assert "not encrypted any more" in run("decrypt", "b").output
    assert (folder / "a.txt").read_bytes() == b"first"
    monkeypatch.setenv("CRYPTO_ML_SIGNING_KEY", (tmp_path / "own" / "anna.pem").read_text())
    assert "CRYPTO_ML_SIGNING_KEY" in run("list").output
    inside = bundle(project / "runs" / "r" / "bundle")
    (inside.parent / "run.json").write_text("{}")
    assert "belongs to a run, which is never changed" in run("encrypt", "r").output


def test_the_audit_log(project: Path) -> None:
    assert "Nothing was done to production yet" in run("show", group=audit_log).output
    assert "is intact: 0 entries" in run("verify", group=audit_log).output
    gates = [{"name": "calibration", "outcome": "fail"}, {"name": "verdict", "outcome": "pass"}]
    models = project / "models"
    append_entry(models, "promote", why="first", subject={"version": "v0001"})
    append_entry(
        models, "promote", why="second", subject={"version": "v2"}, gates=gates, forced=True
    )
    said = run("show", group=audit_log).output
    assert "promote FORCED, by" in said
    assert "gates failed: calibration\n" in said
    assert said.index("first") < said.index("second")
    assert "first" not in run("show", "--last", "1", group=audit_log).output
    raw = run("show", "--json", group=audit_log).output
    assert raw == (models / "audit.jsonl").read_text()
    verified = run("verify", group=audit_log)
    assert (verified.exit_code, "intact: 2 entries, 0 signed" in verified.output) == (0, True)
    state = verified.output.split()[-1]
    lines = raw.splitlines(keepends=True)
    (models / "audit.jsonl").write_text(lines[0])
    for words in ([], ["--since", state]):
        broken = run("verify", *words, group=audit_log)
        assert broken.exit_code == 1
        assert "truncated" in broken.output
        assert "entry 2 is cut off after line 1" in broken.output
    assert "signs that this was changed" in run("show", group=audit_log).output
    (models / "audit.jsonl").write_text(raw + lines[0][:40])
    torn = run("verify", group=audit_log)
    assert (torn.exit_code, "line 3 is unfinished" in torn.output) == (0, True)
    (models / "audit.jsonl").write_text(raw)
    (project / "settings.ini").write_text("[production]\nrequire_signature = true\n")
    assert "line 1 is not signed" in run("verify", group=audit_log).output


def test_who_acted_in_ci_is_shown(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTOR", "otto")
    append_entry(project / "models", "promote", why="weekly", subject={})
    assert "by otto in CI: weekly" in run("show", group=audit_log).output
