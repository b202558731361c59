"""Encryption at rest: opens for who holds the key, and for nobody else."""

from __future__ import annotations

import shutil
import traceback
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_bundles import ensemble, killed_before, market, saved

from crypto_ml.bundle import load_bundle, load_member, open_bundle
from crypto_ml.encryption import (
    EncryptionError,
    EncryptionKey,
    decrypt_files,
    decrypt_folder,
    encrypt_files,
    encrypt_folder,
    encryption_keys,
    is_encrypted,
    new_encryption_key,
)
from crypto_ml.errors import BundleError
from crypto_ml.folders import read_folder, write_folder
from crypto_ml.manifest import Git, manifest_bytes
from crypto_ml.secrets import Secret

KEY, OTHER = EncryptionKey(Secret("ab" * 32)), EncryptionKey(Secret("cd" * 32))


def with_manifest(files: dict[str, bytes]) -> dict[str, bytes]:
    return {**files, "manifest.json": manifest_bytes(files, "r", Git(commit="", dirty=True), {})}


FILES = {**with_manifest({"a.txt": b"first", "b.txt": b"second"}), "manifest.sig": b"{}"}
SEALED = encrypt_files(FILES, KEY)


@given(st.dictionaries(st.from_regex(r"[a-z]{1,5}\.(txt|json)", fullmatch=True), st.binary()))
def test_what_was_encrypted_comes_back(contents: dict[str, bytes]) -> None:
    files = with_manifest(contents)
    sealed = encrypt_files(files, KEY)
    assert decrypt_files(sealed, "b", keys=[OTHER, KEY]) == files
    for name, content in contents.items():
        assert len(content) < 4 or content not in sealed[f"{name}.enc"].partition(b"\n")[2]
    assert is_encrypted(sealed) == bool(contents)


def test_each_file_has_a_nonce_of_its_own() -> None:
    names = [f"{number}.txt" for number in range(200)]
    sealed = encrypt_files(with_manifest(dict.fromkeys(names, b"same")), KEY)
    again = encrypt_files(with_manifest(dict.fromkeys(names, b"same")), KEY)
    start = SEALED["a.txt.enc"].index(b"\n") + 1
    nonces = {
        files[f"{name}.enc"][start : start + 12] for files in (sealed, again) for name in names
    }
    assert len(nonces) == 400


def refused(files: dict[str, bytes], keys: list[EncryptionKey] | None = None) -> str:
    with pytest.raises(EncryptionError) as caught:
        decrypt_files(files, "b", keys=[KEY] if keys is None else keys)
    assert "ab" * 8 not in "".join(traceback.format_exception(caught.value))
    return str(caught.value)


def test_what_does_not_open() -> None:
    assert f"encrypted with key {KEY.key_id}; no key is set" in refused(SEALED, [])
    assert f"is another one, {OTHER.key_id}" in refused(SEALED, [OTHER])
    renamed = {**SEALED, "c.txt.enc": SEALED["b.txt.enc"]}
    swapped = {**SEALED, "a.txt.enc": SEALED["b.txt.enc"], "b.txt.enc": SEALED["a.txt.enc"]}
    moved = {**SEALED, "manifest.json": FILES["manifest.json"].replace(b'"r"', b'"s"')}
    claimed = SEALED["a.txt.enc"].replace(KEY.key_id.encode(), OTHER.key_id.encode())
    short = {**SEALED, "a.txt.enc": SEALED["a.txt.enc"][:50]}
    for files in (renamed, swapped, moved, short, {**SEALED, "a.txt.enc": claimed}):
        assert "damaged, changed or moved here" in refused(files, [KEY, OTHER])
    for data in (b"", b"first", SEALED["a.txt.enc"][1:]):
        assert "b/a.txt.enc was damaged" in refused({**SEALED, "a.txt.enc": data})
    assert "but c.txt in it is not" in refused({**SEALED, "c.txt": b""})
    del moved["manifest.json"]
    assert "damaged" in refused(moved)
    assert decrypt_files(FILES, "b", keys=[]) == FILES


# keys


def test_keys_from_the_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CRYPTO_ML_ENCRYPTION_KEY", raising=False)
    assert encryption_keys() == []
    monkeypatch.setenv("CRYPTO_ML_ENCRYPTION_KEY", f" {'AB' * 32}, {'cd' * 32}\n")
    assert [key.key_id for key in encryption_keys()] == [KEY.key_id, OTHER.key_id]
    assert decrypt_files(encrypt_files(FILES, encryption_keys()[1]), "b") == FILES
    assert encryption_keys(secret=KEY.secret) == [KEY]
    assert len({new_encryption_key().key_id for _ in range(20)}) == 20
    for bad in ("hunter2", "ab" * 31, "ab" * 33, "zz" * 32, f"{'ab' * 32} hunter2"):
        monkeypatch.setenv("CRYPTO_ML_ENCRYPTION_KEY", bad)
        with pytest.raises(EncryptionError, match="64 hexadecimal digits") as caught:
            encryption_keys()
        assert bad not in str(caught.value)
        assert "hunter2" not in str(caught.value)
    assert repr(KEY) == "EncryptionKey(secret=***)"


# folders


def test_an_encrypted_bundle_loads_where_the_key_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CRYPTO_ML_ENCRYPTION_KEY", raising=False)
    folder = saved(tmp_path / "b")
    plain = read_folder(folder)
    encrypt_folder(folder, KEY)
    assert not (plain.keys() - {"manifest.json"}) & {path.name for path in folder.iterdir()}
    for load in (open_bundle, load_bundle, partial(load_member, name="lightgbm")):
        with pytest.raises(EncryptionError, match=r"no key is set\. Set the secret CRYPTO_ML_ENC"):
            load(folder)
    with pytest.raises(EncryptionError, match="encrypted already"):
        encrypt_folder(folder, KEY)
    monkeypatch.setenv("CRYPTO_ML_ENCRYPTION_KEY", KEY.secret.reveal())
    loaded, rows = load_bundle(folder), market(50, seed=2)[0]
    assert np.array_equal(loaded.ensemble.predict_proba(rows), ensemble().predict_proba(rows))
    assert loaded.check_difference == 0
    assert load_member(folder, "lightgbm").kind == "lightgbm"
    monkeypatch.delenv("CRYPTO_ML_ENCRYPTION_KEY")
    (tmp_path / "secret").write_text(f"CRYPTO_ML_ENCRYPTION_KEY={KEY.secret.reveal()}\n")
    (tmp_path / "secret").chmod(0o600)
    assert load_bundle(folder, secrets=f"file:{tmp_path / 'secret'}").check_difference == 0
    decrypt_folder(folder, [OTHER, KEY])
    assert read_folder(folder) == plain


def test_only_a_whole_bundle_is_encrypted_or_decrypted(tmp_path: Path) -> None:
    folder = tmp_path / "b"
    write_folder(folder, {**FILES, "a.txt": b"other"}).rename(folder)
    with pytest.raises(BundleError, match=r"a\.txt was changed|a\.txt has"):
        encrypt_folder(folder, KEY)
    shutil.rmtree(folder)
    write_folder(folder, {k: v for k, v in SEALED.items() if k != "a.txt.enc"}).rename(folder)
    with pytest.raises(BundleError, match=r"a\.txt is missing"):
        decrypt_folder(folder, [KEY])


@pytest.mark.parametrize("back", [False, True])
def test_killed_at_every_step_a_folder_is_whole(tmp_path: Path, back: bool) -> None:
    place = tmp_path / "p"
    folder, states = place / "b", []
    for step in range(120):
        place.mkdir()
        write_folder(folder, SEALED if back else FILES).rename(folder)
        work = (
            partial(decrypt_folder, folder, [KEY]) if back else partial(encrypt_folder, folder, KEY)
        )
        killed = killed_before(step, place, work)
        files = read_folder(folder)
        states.append(is_encrypted(files))
        assert decrypt_files(files, "b", keys=[KEY]) == FILES
        shutil.rmtree(place)
        if not killed:
            break
    assert not killed
    assert states == sorted(states, reverse=back)
    assert {*states} == {True, False}
