"""A loopback server that speaks the webhook dialect of Discord, well or badly.

Apprise really sends to it; only the address of Discord's own service is another::

    with WebhookServer() as server:
        monkeypatch.setattr(NotifyDiscord, "notify_url", server.url)
        server.misbehave("429", times=2)     # the next two requests are answered so
        ...
        server.embeds                        # what arrived and was taken, in order
        server.requests                      # all that was asked, with the answer's status

A webhook is one path; a request is refused as Discord refuses it: 404 for another path, 400 for
what is no message (no content and no embeds, too long, an image that was not sent along), 429
with ``retry_after`` when told to. The picture comes as a part of a form, ``files[0]``.
"""

from __future__ import annotations

import email.parser
import email.policy
import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

WEBHOOK = "417429632418316298/JHZ7lQml277CDHmQKMHI8qBe7bk2ZwO5UKjCiOAF7711o33MyqU344Qpgv7YTpadV"
ADDRESS = f"discord://{WEBHOOK}/"
TOKEN = WEBHOOK.split("/")[1]
FAULTS = ("429", "429 without a body", "500", "404", "400", "drop", "slow", "spent")
PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Request:
    """One request, and how it was answered."""

    path: str
    payload: dict[str, Any]
    files: dict[str, bytes]
    status: int


@dataclass
class WebhookServer:
    """Discord on a free port of this machine."""

    retry_after: float = 0.65
    requests: list[Request] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                owner._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.handle_error = lambda *_: None  # who asked has gone away, as some tests do
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def root(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    @property
    def url(self) -> str:
        return f"http://{self.root}/api/webhooks"

    @property
    def embeds(self) -> list[dict[str, Any]]:
        taken = [request for request in self.requests if request.status in (200, 204)]
        return [embed for request in taken for embed in request.payload.get("embeds", [])]

    def misbehave(self, fault: str, times: int = 1) -> None:
        assert fault in FAULTS, fault
        self.faults += [fault] * times

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        payload, files = _read(handler.headers["Content-Type"], body)
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "slow":
            time.sleep(0.4)
        status = int(fault[:3]) if fault[:3].isdigit() else _status(handler.path, payload, files)
        self.requests.append(
            Request(handler.path, payload, files, 0 if fault == "drop" else status)
        )
        if fault == "drop":
            handler.close_connection = True
            handler.connection.close()
            return
        handler.send_response(status)
        text = b""
        if fault == "429":
            text = json.dumps(
                {"message": "You are being rate limited.", "retry_after": self.retry_after}
            ).encode()
            handler.send_header("Content-Type", "application/json")
        if fault.startswith("429"):
            handler.send_header("Retry-After", str(int(self.retry_after) + 1))
        if fault == "spent":
            handler.send_header("X-RateLimit-Remaining", "0")
            handler.send_header("X-RateLimit-Reset-After", str(self.retry_after))
        handler.send_header("Content-Length", str(len(text)))
        handler.end_headers()
        handler.wfile.write(text)


def _read(kind: str, body: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Read a JSON message, or a form with one and its files."""
    if kind.startswith("application/json"):
        return json.loads(body), {}
    head = f"Content-Type: {kind}\r\n\r\n".encode()
    form = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
    payload, files = {}, {}
    for part in form.iter_parts():
        value = part.get_payload(decode=True)
        name = part.get_param("name", header="content-disposition")
        if name == "payload_json":
            payload = json.loads(value)
        else:
            assert name.startswith("files["), name
            files[part.get_filename()] = value
    return payload, files


def _status(path: str, payload: dict[str, Any], files: dict[str, bytes]) -> int:
    """Judge a message as Discord does."""
    if path.partition("?")[0].rstrip("/") != f"/api/webhooks/{WEBHOOK}":
        return 404
    embeds = payload.get("embeds", [])
    if not (payload.get("content") or embeds) or len(payload.get("content", "")) > 2000:
        return 400
    for embed in embeds:
        fields = embed.get("fields", [])
        texts = [embed.get("title", ""), embed.get("description", "")]
        texts += [text for item in fields for text in (item["name"], item["value"])]
        texts.append(embed.get("footer", {}).get("text", ""))
        image = embed.get("image", {}).get("url", "")
        name = image.removeprefix("attachment://")
        if (
            len(fields) > 25
            or len(texts[0]) > 256
            or len(texts[1]) > 4096
            or sum(map(len, texts)) > 6000
            or not all(item["name"] and item["value"] for item in fields)
            or (image and (name == image or not files.get(name, b"").startswith(PNG)))
        ):
            return 400
    return 204
