"""Signatures: whatever is not as a trusted key signed it is refused, to the byte."""

from __future__ import annotations

import hashlib
import json
import pickle
import random
import shutil
import stat
import subprocess
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from small_bundles import killed_before, saved

from crypto_ml import bundle as bundles
from crypto_ml.bundle import load_bundle, load_member, open_bundle
from crypto_ml.encryption import EncryptionKey, encrypt_files
from crypto_ml.errors import BundleError
from crypto_ml.manifest import Git, json_bytes, manifest_bytes
from crypto_ml.secrets import Secret, SecretError
from crypto_ml.signatures import (
    KeyPair,
    PublicKey,
    SignatureError,
    Signer,
    check_bytes,
    find_signing_key,
    new_key,
    read_private,
    read_public,
    sign_bytes,
    sign_folder,
    signature_bytes,
    signing_key,
    trusted_keys,
    verify_folder,
)
from crypto_ml.training import training_metadata, write_training


def fixed_key(name: str) -> KeyPair:
    return KeyPair(
        name, Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())
    )


ANNA, STRANGER = fixed_key("anna"), fixed_key("stranger")
BOX = EncryptionKey(Secret("ab" * 32))


def tiny_bundle() -> dict[str, bytes]:
    """Return the files of a signed bundle that opens; its model is never loaded."""
    content = {
        "members": {"m": {"file": "m.txt", "kind": "lightgbm", "parameters": {}}},
        "weights": {"m": 1.0},
        "decision_threshold": 0.5,
        "classes": [0, 1],
        "feature_schema": [{"name": "close", "definition_hash": "5f"}],
        "label_definition": {},
        "market": {"symbol": "X"},
        "training_span": {"start": "2024", "end": "2025"},
        "check": {"rows": [[1.0]], "probabilities": {"m": [0.5]}},
        "extra": {},
    }
    files = {"ensemble.json": json_bytes(content), "m.txt": b"tree\n"}
    manifest = manifest_bytes(files, "r1", Git(commit="0" * 40, dirty=False), {"python": "3"})
    return {**files, "manifest.json": manifest, "manifest.sig": signature_bytes(manifest, ANNA)}


def opens(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(bundles, "read_folder", lambda folder: dict(files))
    try:
        opened = open_bundle("b", trusted=[ANNA.public], required=True)
    except BundleError:
        return False
    assert opened.signer == Signer("anna", ANNA.key_id)
    assert "manifest.sig" not in opened.files
    return True


# every byte


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_bundle_altered_in_any_byte_is_refused(
    monkeypatch: pytest.MonkeyPatch, encrypted: bool
) -> None:
    monkeypatch.setenv("CRYPTO_ML_ENCRYPTION_KEY", BOX.secret.reveal())
    files = tiny_bundle()
    files = encrypt_files(files, BOX) if encrypted else files
    assert opens(files, monkeypatch)
    rng, tried = random.Random(1), 0
    for name, data in files.items():
        for place in range(len(data)):
            others = {data[place] ^ 1 << bit for bit in range(8)} | {rng.randrange(256)}
            changed = [
                data[:place] + bytes([byte]) + data[place + 1 :] for byte in others - {data[place]}
            ]
            changed.append(data[:place] + data[place + 1 :])
            for altered in changed:
                tried += 1
                assert not opens({**files, name: altered}, monkeypatch), (name, place, altered)
    assert tried >= 9 * sum(map(len, files.values()))


def test_files_lost_added_renamed_and_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    files = tiny_bundle()
    for name, data in files.items():
        rest = {k: v for k, v in files.items() if k != name}
        assert not opens(rest, monkeypatch)
        assert not opens({**rest, f"x{name}": data}, monkeypatch)
        assert not opens({**files, name: b""}, monkeypatch)
    assert not opens({**files, "more.txt": b""}, monkeypatch)
    manifest = manifest_bytes({"m.txt": b"x"}, "r1", Git(commit="", dirty=False), {})
    other = {"m.txt": b"x", "manifest.json": manifest, "manifest.sig": files["manifest.sig"]}
    assert not opens(other, monkeypatch)
    resigned = signature_bytes(files["manifest.json"], STRANGER)
    assert not opens({**files, "manifest.sig": resigned}, monkeypatch)
    claimed = resigned.replace(STRANGER.key_id.encode(), ANNA.key_id.encode())
    assert not opens({**files, "manifest.sig": claimed}, monkeypatch)


# the signature's file


def refused(signature: bytes, manifest: bytes = b"{}") -> str:
    files = {"manifest.json": manifest, "manifest.sig": signature}
    with pytest.raises(SignatureError) as caught:
        verify_folder(files, [ANNA.public], required=True, where="b")
    return str(caught.value)


GOOD = signature_bytes(b"{}", ANNA)


def test_a_signature_has_one_form() -> None:
    content = json.loads(GOOD)
    assert verify_folder(
        {"manifest.json": b"{}", "manifest.sig": GOOD}, [ANNA.public], required=True
    )
    rewritten = [
        GOOD + b"\n", GOOD + b" ", b" " + GOOD, GOOD[:-1], GOOD.replace(b"\n", b"\r\n"),
        GOOD.replace(b": ", b":"), GOOD.replace(b"\n ", b"\n\t"), b"\xef\xbb\xbf" + GOOD,
        json.dumps(content).encode(), json_bytes(dict(sorted(content.items()))),
        json_bytes({**content, "signature": content["signature"].upper()}),
        json_bytes({**content, "more": 1}), json_bytes([content]), b"", b"null", b"[" * 100_000,
        GOOD.replace(b"{\n", b'{\n "key": "' + b"0" * 16 + b'",\n', 1),
        GOOD.replace(b"Ed25519", b"\\u0045d25519"), json_bytes({**content, "format_version": 1.0}),
    ]  # fmt: skip
    for text in rewritten:
        assert text != GOOD
        assert "is damaged or was changed" in refused(text), text


@given(st.binary(max_size=400) | st.text(max_size=200).map(str.encode))
def test_any_bytes_for_a_signature_are_refused(data: bytes) -> None:
    assert "damaged" in refused(data)


@given(st.integers(0, len(GOOD)), st.integers(0, 40), st.binary(max_size=8))
def test_any_splice_of_a_signature_is_refused(start: int, length: int, new: bytes) -> None:
    spliced = GOOD[:start] + new + GOOD[start + length :]
    if spliced != GOOD:
        refused(spliced)


def test_a_signature_cannot_be_turned_into_another_that_holds() -> None:
    """S and S + L name the same point; only the smaller is a signature."""
    order = 2**252 + 27742317777372353535851937790883648493
    raw = bytes.fromhex(json.loads(GOOD)["signature"])
    larger = int.from_bytes(raw[32:], "little") + order
    twin = raw[:32] + larger.to_bytes(32, "little")
    assert "was changed after it was signed" in refused(
        GOOD.replace(raw.hex().encode(), twin.hex().encode())
    )


def test_a_signature_is_for_one_purpose() -> None:
    mark = sign_bytes(b"x", ANNA, "audit head")
    assert check_bytes(b"x", mark, ANNA.key_id, "audit head", [ANNA.public]) == Signer(
        "anna", ANNA.key_id
    )
    for data, purpose, key in ((b"x", "manifest", ANNA), (b"y", "audit head", ANNA)):
        with pytest.raises(SignatureError, match="not what anna"):
            check_bytes(data, mark, key.key_id, purpose, [ANNA.public])
    assert check_bytes(b"x", mark, STRANGER.key_id, "audit head", [ANNA.public]) is None
    with pytest.raises(SignatureError, match="not what anna"):
        check_bytes(b"x", "no hex", ANNA.key_id, "audit head", [ANNA.public])


def test_openssl_finds_the_same_signature_right(tmp_path: Path) -> None:
    if not shutil.which("openssl"):
        pytest.skip("no openssl to compare with")
    key = new_key(tmp_path, "anna")
    (tmp_path / "data").write_bytes(b"crypto_ml manifest 1\n{}")
    mark = bytes.fromhex(json.loads(signature_bytes(b"{}", key))["signature"])
    (tmp_path / "mark").write_bytes(mark)
    options = ["pkeyutl", "-verify", "-pubin", "-inkey", "anna.pub", "-rawin", "-in", "data"]
    command = ["openssl", *options, "-sigfile", "mark"]
    assert subprocess.run(command, cwd=tmp_path, check=False, capture_output=True).returncode == 0
    (tmp_path / "mark").write_bytes(mark[::-1])
    assert subprocess.run(command, cwd=tmp_path, check=False, capture_output=True).returncode != 0


# demanded or not


def test_what_is_required_and_what_is_not() -> None:
    plain = {"manifest.json": b"{}"}
    theirs = {**plain, "manifest.sig": signature_bytes(b"{}", STRANGER)}
    assert verify_folder(plain, [ANNA.public], required=False) is None
    assert verify_folder(theirs, [ANNA.public], required=False) is None
    assert verify_folder(theirs, [], required=False) is None
    assert verify_folder(theirs, [ANNA.public, STRANGER.public], required=True) is not None
    with pytest.raises(SignatureError, match=r"is not signed, and .*nobody yet"):
        verify_folder(plain, [], required=True)
    with pytest.raises(SignatureError, match=rf"stranger, {STRANGER.key_id}.*anna \({ANNA.key_id}"):
        verify_folder(theirs, [ANNA.public], required=True)
    wrong = {"manifest.json": b"{ }", "manifest.sig": GOOD}
    for required in (True, False):
        with pytest.raises(SignatureError, match="was changed after it was signed"):
            verify_folder(wrong, [ANNA.public], required=required)
        with pytest.raises(SignatureError, match="is damaged"):
            verify_folder({**plain, "manifest.sig": b""}, [], required=required)


def test_a_signed_bundle_loads(tmp_path: Path) -> None:
    folder = saved(tmp_path / "b")
    before = load_bundle(folder)
    sign_folder(folder, ANNA)
    loaded = load_bundle(folder, trusted=[ANNA.public], required=True)
    assert (loaded.signer, before.signer) == (Signer("anna", ANNA.key_id), None)
    assert loaded.manifest == before.manifest
    assert load_bundle(folder).signer is None
    with pytest.raises(SignatureError, match="stranger"):
        load_bundle(folder, trusted=[STRANGER.public], required=True)
    for load in (open_bundle, load_bundle, partial(load_member, name="lightgbm")):
        load(folder, trusted=[ANNA.public], required=True)
        (folder / "manifest.sig").unlink()
        with pytest.raises(SignatureError, match="is not signed"):
            load(folder, trusted=[ANNA.public], required=True)
        sign_folder(folder, ANNA)
    assert [path.name for path in tmp_path.iterdir()] == ["b"], "nothing is left beside it"


def test_the_latest_training_does_not_inherit_a_signature(tmp_path: Path) -> None:
    folder = saved(tmp_path / "b")
    sign_folder(folder, ANNA)
    names = ("f1_score", "f1_low", "f1_high", "f1_majority", "f1_in_sample_weighted")
    members = ("lightgbm", "xgboost", "random_forest")
    metadata = training_metadata(
        load_bundle(folder),
        created_at=pd.Timestamp("2025-01-01", tz="UTC").to_pydatetime(),
        scores={member: dict.fromkeys(names, 0.5) for member in members},
        cross_validation={"n_splits": 3, "method": "x", "purge": 1, "embargo": 0},
    )
    opened = open_bundle(write_training(tmp_path / "training", folder, metadata))
    assert "manifest.sig" not in opened.manifest.files
    assert not (tmp_path / "training" / "manifest.sig").exists()


def test_signing_is_all_or_nothing(tmp_path: Path) -> None:
    """Killed at every step, the folder opens with the signature or without it."""
    place, signed = tmp_path / "p", []
    for step in range(60):
        folder = place / "bundle"
        folder.mkdir(parents=True)
        for name, data in tiny_bundle().items():
            if name != "manifest.sig":
                (folder / name).write_bytes(data)
        killed = killed_before(step, place, partial(sign_folder, folder, ANNA))
        signed.append(open_bundle(folder, trusted=[ANNA.public]).signer is not None)
        shutil.rmtree(place)
        if not killed:
            break
    assert not killed
    assert signed == sorted(signed)
    assert {*signed} == {True, False}


def test_what_cannot_be_signed(tmp_path: Path) -> None:
    with pytest.raises(SignatureError, match="cannot be signed: No such file"):
        sign_folder(tmp_path, ANNA)
    assert not list(tmp_path.iterdir())


# keys


def test_a_new_key_is_guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = new_key(tmp_path / "own", "anna")
    private, public = tmp_path / "own" / "anna.pem", tmp_path / "own" / "anna.pub"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert stat.S_IMODE(private.parent.stat().st_mode) == 0o700
    assert read_public(public) == key.public
    assert {path.name for path in private.parent.iterdir()} == {"anna.pem", "anna.pub"}
    before = private.read_bytes()
    for action in (lambda: None, private.unlink):
        action()
        with pytest.raises(SecretError, match="choose another name"):
            new_key(tmp_path / "own", "anna")
    public.unlink()
    private.write_bytes(before)
    with pytest.raises(SecretError, match="never overwritten"):
        new_key(tmp_path / "own", "anna")
    assert private.read_bytes() == before
    (tmp_path / "file").write_text("")
    with pytest.raises(SecretError, match="cannot be written"):
        new_key(tmp_path / "file", "anna")
    for name in ("", "../x", "a b", ".x", "x.pub", "x" * 70, "ü"):
        with pytest.raises(SignatureError, match="cannot be called"):
            new_key(tmp_path, name)


def test_a_key_is_never_seen_by_halves_or_by_others(tmp_path: Path) -> None:
    """Killed at every step, a private key is whole or not there, and open to its owner only."""
    made = []
    for step in range(60):
        place = tmp_path / str(step)
        killed = killed_before(step, place, partial(new_key, place, "anna"))
        for path in place.glob("*"):
            if path.suffix != ".pub":
                assert stat.S_IMODE(path.stat().st_mode) == 0o600
        private = place / "anna.pem"
        made.append(private.exists())
        if private.exists():
            assert read_private(Secret(private.read_text()), "anna", "x").name == "anna"
        if not killed:
            break
    assert not killed
    assert made == sorted(made)


def test_nothing_shows_a_private_key(tmp_path: Path) -> None:
    key = new_key(tmp_path, "anna")
    text = (tmp_path / "anna.pem").read_text()
    assert text.split("\n")[1] not in repr(key) + str(key) + repr(vars(key))
    with pytest.raises(TypeError):
        pickle.dumps(key)


def test_the_key_to_sign_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRYPTO_ML_KEYS", str(tmp_path))
    monkeypatch.delenv("CRYPTO_ML_SIGNING_KEY", raising=False)
    assert find_signing_key() is None
    with pytest.raises(SignatureError, match="no key to sign with"):
        signing_key()
    with pytest.raises(SignatureError, match="there is none yet: crypto-ml keys new"):
        find_signing_key("anna")
    anna = new_key(tmp_path, "anna")
    assert signing_key().public == anna.public
    otto = new_key(tmp_path, "otto")
    with pytest.raises(SignatureError, match=r"several keys: anna, otto"):
        signing_key()
    assert signing_key("otto").key_id == otto.key_id
    with pytest.raises(SignatureError, match="did you mean 'anna'"):
        signing_key("ana")
    text = (tmp_path / "otto.pem").read_text()
    for form in (text, text.replace("\n", " "), text.replace("\n", "\\n"), text.strip()):
        monkeypatch.setenv("CRYPTO_ML_SIGNING_KEY", form)
        assert signing_key().key_id == otto.key_id
        assert signing_key("anna").key_id == anna.key_id
    (tmp_path / "anna.pem").chmod(0o644)
    with pytest.raises(SecretError, match=r"chmod 600"):
        signing_key("anna")


def test_what_is_no_key(tmp_path: Path) -> None:
    good = new_key(tmp_path, "anna")
    text = (tmp_path / "anna.pem").read_text()
    body = text.split("\n")[1]
    rsa = subprocess.run(
        ["openssl", "genpkey", "-algorithm", "x25519"], capture_output=True, check=False
    )
    for bad in (
        "",
        "hunter2",
        body,
        text.replace(body, body[:-4]),
        good.public.pem(),
        rsa.stdout.decode(),
    ):
        with pytest.raises(SignatureError, match="the secret holds no private Ed25519") as caught:
            read_private(Secret(bad), "x", "the secret")
        assert "hunter2" not in str(caught.value)
        assert body not in str(caught.value)
    path = tmp_path / "keys"
    path.mkdir()
    assert trusted_keys(path) == trusted_keys(tmp_path / "nowhere") == []
    (path / "b.pub").write_text(good.public.pem())
    assert trusted_keys(path) == [PublicKey("b", good.public.data)]
    (path / "a.pub").write_text(text)
    with pytest.raises(SignatureError, match=r"a\.pub holds no public Ed25519 key"):
        trusted_keys(path)
    with pytest.raises(SignatureError, match="cannot be read: No such file"):
        read_public(path / "c.pub")


def test_the_remedy_can_be_pasted(tmp_path: Path) -> None:
    folder = tmp_path / "my models"
    with pytest.raises(SignatureError, match=r"crypto-ml keys sign '.*my models'"):
        verify_folder({"manifest.json": b""}, [], required=True, where=str(folder))
