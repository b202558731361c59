"""Google Secret Manager: its own client, speaking to a server on this computer."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from concurrent import futures

import pytest

pytest.importorskip("google.cloud.secretmanager", reason="pip install 'crypto_ml[google]'")

import grpc
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import DefaultCredentialsError
from google.cloud import secretmanager
from google.cloud.secretmanager_v1.services.secret_manager_service.transports import (
    SecretManagerServiceGrpcTransport,
)

from crypto_ml.secrets import PROVIDERS, GoogleSecrets, SecretError, find_secret, read_secret

PLANTED = "hunter2-9f31"


@pytest.fixture(scope="module")
def google() -> Iterator[GoogleSecrets]:
    kept = {"GOOD": PLANTED.encode(), "EMPTY": b"", "BINARY": b"\xff\xfe"}
    codes = {"DENIED": grpc.StatusCode.PERMISSION_DENIED}

    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        asked = secretmanager.AccessSecretVersionRequest.deserialize(request).name
        start, _, rest = asked.partition("/secrets/CRYPTO_ML_")
        name = rest.removesuffix("/versions/latest")
        assert start == "projects/acme"
        if name not in kept:
            context.abort(codes.get(name, grpc.StatusCode.NOT_FOUND), f"{PLANTED} is not told")
        payload = secretmanager.SecretPayload(data=kept[name])
        found = secretmanager.AccessSecretVersionResponse(name=asked, payload=payload)
        return bytes(type(found).serialize(found))

    server = grpc.server(futures.ThreadPoolExecutor(1))
    method = grpc.unary_unary_rpc_method_handler(answer)
    service = "google.cloud.secretmanager.v1.SecretManagerService"
    handler = grpc.method_handlers_generic_handler(service, {"AccessSecretVersion": method})
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        transport = SecretManagerServiceGrpcTransport(
            channel=channel, credentials=AnonymousCredentials()
        )
        yield GoogleSecrets("acme", secretmanager.SecretManagerServiceClient(transport=transport))
    server.stop(0)


def test_google_secret_manager(google: GoogleSecrets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROVIDERS, "google", lambda project: google)
    assert read_secret("GOOD", provider="google:acme").reveal() == PLANTED
    assert find_secret("EMPTY", provider="google:acme") is None
    assert find_secret("NOWHERE", provider="google:acme") is None
    for name, kind in (("DENIED", "PermissionDenied"), ("BINARY", "UnicodeDecodeError")):
        with pytest.raises(SecretError, match=rf"{name}/versions/latest .*\({kind}\)") as caught:
            find_secret(name, provider="google:acme")
        assert "Secret Manager Secret Accessor" in str(caught.value)
        assert PLANTED not in "".join(traceback.format_exception(caught.value))
    assert "client" not in repr(google)


def test_google_without_an_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> None:
        raise DefaultCredentialsError("no credentials")

    monkeypatch.setattr(secretmanager, "SecretManagerServiceClient", nobody)
    with pytest.raises(SecretError, match=r"DefaultCredentialsError.*gcloud auth application-def"):
        find_secret("A", provider="google:acme")
