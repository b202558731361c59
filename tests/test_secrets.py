"""Secrets: found where they are said to be, and never shown."""

from __future__ import annotations

import copy
import json
import os
import pickle
import stat
import subprocess
import sys
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from crypto_ml.secrets import (
    PROVIDERS,
    FileSecrets,
    GoogleSecrets,
    Secret,
    SecretError,
    find_secret,
    open_providers,
    read_owner_only,
    read_secret,
)

PLANTED = "hunter2-9f31"


class Holder(BaseModel):
    address: Secret


@dataclass(frozen=True)
class Plain:
    address: Secret


# never shown


@given(st.text("abcxyz0189-/:@?=", min_size=4))
def test_no_way_of_showing_shows_the_value(value: str) -> None:
    secret = Secret(value)
    holder, plain = Holder(address=secret), Plain(secret)
    shown = [repr(secret), str(secret), f"{secret}", f"{secret!r:>30}", f"{secret:>30}"]
    shown += ["{:s}".format(secret), "%s %r" % (secret, secret)]  # noqa: UP031, UP032
    shown += [repr([secret, {"a": secret}]), repr(plain), repr(asdict(plain)), repr(holder)]
    shown += [repr(holder.model_dump()), holder.model_dump_json(), str(holder)]
    assert not [text for text in shown if value in text]
    assert json.loads(holder.model_dump_json()) == {"address": "***"}
    assert secret.reveal() == value == holder.address.reveal()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_secret_is_never_pickled(protocol: int) -> None:
    for value in (Secret(PLANTED), Plain(Secret(PLANTED)), [Holder(address=Secret(PLANTED))]):
        with pytest.raises(SecretError, match="never pickled") as caught:
            pickle.dumps(value, protocol)
        assert PLANTED not in "".join(traceback.format_exception(caught.value))


def test_a_secret_as_a_value() -> None:
    secret = Secret(PLANTED)
    assert copy.copy(secret) is copy.deepcopy(secret) is secret
    assert secret == Secret(PLANTED)
    assert secret != Secret("other")
    assert secret != PLANTED
    for refused in (hash, vars, json.dumps):
        with pytest.raises(TypeError) as caught:
            refused(secret)
        assert PLANTED not in str(caught.value)
    with pytest.raises(ValidationError, match="a secret is a text"):
        Holder(address=7)  # type: ignore[arg-type]
    assert Holder(address=PLANTED).address == secret  # type: ignore[arg-type]


# environment and files


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRYPTO_ML_ALARMS", PLANTED)
    assert read_secret("ALARMS").reveal() == PLANTED
    monkeypatch.setenv("CRYPTO_ML_ALARMS", "")
    assert find_secret("ALARMS") is None
    with pytest.raises(SecretError, match=r"no secret CRYPTO_ML_ALARMS \(environment\)"):
        read_secret("ALARMS")
    for name in ("alarms", "A B", "", "../X", "A\n"):
        with pytest.raises(SecretError, match="capitals, digits and _"):
            find_secret(name)


def guarded(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_file_of_lines(tmp_path: Path) -> None:
    text = f"# mine\nexport CRYPTO_ML_A='{PLANTED}'\nCRYPTO_ML_B=x=y \nCRYPTO_ML_C=\nOTHER=1\n"
    provider = f"file:{guarded(tmp_path / 'secrets', text)}"
    assert read_secret("A", provider=provider).reveal() == PLANTED
    assert read_secret("B", provider=provider).reveal() == "x=y"
    assert find_secret("C", provider=provider) is None
    assert find_secret("OTHER", provider=provider) is None


def test_a_folder_of_files(tmp_path: Path) -> None:
    guarded(tmp_path / "CRYPTO_ML_KEY", "one\ntwo\n", 0o400)
    assert read_secret("KEY", provider=f"file:{tmp_path}").reveal() == "one\ntwo"
    assert find_secret("OTHER", provider=f"file:{tmp_path}") is None
    with pytest.raises(SecretError, match="neither a file nor a folder"):
        find_secret("KEY", provider=f"file:{tmp_path / 'nowhere'}")


@pytest.mark.parametrize("bit", [0o040, 0o020, 0o010, 0o004, 0o002, 0o001])
def test_a_file_that_others_may_open_is_refused(tmp_path: Path, bit: int) -> None:
    path = guarded(tmp_path / "my secrets", f"CRYPTO_ML_A={PLANTED}\n", 0o600 | bit)
    for provider in (f"file:{path}", f"file:{tmp_path}"):
        guarded(tmp_path / "CRYPTO_ML_A", PLANTED, 0o600 | bit)
        with pytest.raises(SecretError, match=r"opened by others \(mode 06") as caught:
            find_secret("A", provider=provider)
        assert PLANTED not in str(caught.value)
    with pytest.raises(SecretError) as caught:
        read_owner_only(path)
    command = str(caught.value).partition("only: ")[2]
    assert os.system(command) == 0, "the message ends in a command that mends it"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert find_secret("A", provider=f"file:{path}") == Secret(PLANTED)


def test_other_files_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = guarded(tmp_path / "a", "x")
    path.write_bytes(b"\xff" + PLANTED.encode())
    with pytest.raises(SecretError, match="not UTF-8 text") as caught:
        read_owner_only(path)
    assert PLANTED not in "".join(traceback.format_exception(caught.value))
    with pytest.raises(SecretError, match="Is a directory"):
        read_owner_only(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_owner_only(tmp_path / "b")
    if os.geteuid():
        monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    else:
        os.chown(path, 12345, 12345)
    with pytest.raises(SecretError, match="belongs to user"):
        read_owner_only(path)


# which provider


def test_providers_are_asked_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = guarded(tmp_path / "s", "CRYPTO_ML_A=file\nCRYPTO_ML_B=file\n")
    monkeypatch.setenv("CRYPTO_ML_A", "environment")
    both = f"environment, file:{path}"
    assert [read_secret(x, provider=both).reveal() for x in "AB"] == ["environment", "file"]
    monkeypatch.setenv("CRYPTO_ML_SECRETS", f"file:{path}, environment")
    assert read_secret("A").reveal() == "file"
    assert read_secret("A", provider="environment").reveal() == "environment"
    with pytest.raises(SecretError, match=r"no secret CRYPTO_ML_C \(file:"):
        read_secret("C")


def test_unknown_providers() -> None:
    with pytest.raises(SecretError, match="did you mean 'environment'"):
        open_providers("enviroment")
    with pytest.raises(SecretError, match="without a place: google:WHERE"):
        open_providers("google")
    assert open_providers("google:acme") == [GoogleSecrets("acme")]
    assert open_providers("file:/x") == [FileSecrets(Path("/x"))]


def test_another_provider_is_a_class_with_one_method(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass
    class Vault:
        place: str

        def read(self, name: str) -> str | None:
            return f"{self.place}/{name}"

    monkeypatch.setitem(PROVIDERS, "vault", Vault)
    assert read_secret("A", provider="vault:here").reveal() == "here/A"


def test_google_without_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google.cloud.secretmanager", None)
    with pytest.raises(SecretError, match=r"pip install 'crypto_ml\[google\]'"):
        find_secret("A", provider="google:acme")


def test_nothing_of_google_is_loaded_before_it_is_asked() -> None:
    code = "import sys, crypto_ml.secrets; sys.exit('google.cloud' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
