"""A Glance of the tests' own: an HTTP server on the loopback interface that gives the answers which
Glance's API reference documents for `GET /v2/images/{id}` and `GET /v2/images/{id}/file`."""

from __future__ import annotations

import hashlib
import json
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WAIT_SECONDS = 120.0


@dataclass
class Glance:
    """Its images and what was asked of it."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    downloads: list[str] = field(default_factory=list)
    """The ids of the files that were asked for."""
    tokens: set[str] = field(default_factory=set)
    """Those that came with requests."""
    hidden_from: set[str] = field(default_factory=set)
    """Tokens that are not shown any image."""
    answers: dict[str, bytes] = field(default_factory=dict)
    """What is answered in place of an image's record."""
    broken: bool = False
    """Answers 500 to everything."""
    go_on: threading.Event = field(default_factory=threading.Event)
    """Cleared: files stop half-way until it is set."""
    half_sent: threading.Event = field(default_factory=threading.Event)

    def add(self, content: bytes, disk_format: str = "qcow2", **changes: Any) -> str:
        """An image as Glance would describe it, but for `changes`; returns its id."""
        image = str(uuid.uuid4())
        self.files[image] = content
        self.records[image] = {
            "id": image,
            "name": "debian",
            "status": "active",
            "visibility": "private",
            "protected": False,
            "container_format": "bare",
            "disk_format": disk_format,
            "size": len(content),
            "virtual_size": None,
            "min_disk": 0,
            "min_ram": 0,
            "checksum": hashlib.md5(content).hexdigest(),
            "os_hash_algo": "sha512",
            "os_hash_value": hashlib.sha512(content).hexdigest(),
            "os_hidden": False,
            "tags": [],
            "self": f"/v2/images/{image}",
            "file": f"/v2/images/{image}/file",
            "schema": "/v2/schemas/image",
            **changes,
        }
        return image


class _Handler(BaseHTTPRequestHandler):
    glance: Glance

    def do_GET(self) -> None:
        """Answer as Glance does."""
        glance = self.glance
        token = self.headers.get("X-Auth-Token", "")
        glance.tokens.add(token)
        image, _, file = self.path.removeprefix("/v2/images/").partition("/")
        if glance.broken:
            self._answer(500, b"", "text/html")
        elif not token:
            self._answer(401, b"", "text/html")
        elif image not in glance.records or token in glance.hidden_from:
            self._answer(404, b"<html>No image found</html>", "text/html")
        elif not file:
            answer = glance.answers.get(image) or json.dumps(glance.records[image]).encode()
            self._answer(200, answer, "application/json")
        else:
            self._send_file(image)

    def _send_file(self, image: str) -> None:
        glance, content = self.glance, self.glance.files[image]
        glance.downloads.append(image)
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        self.wfile.flush()
        glance.half_sent.set()
        if glance.go_on.wait(WAIT_SECONDS):
            self.wfile.write(content[len(content) // 2 :])

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Tests print nothing."""

    def handle(self) -> None:
        """A daemon that is killed hangs up."""
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True


@contextmanager
def running_glance() -> Iterator[Glance]:
    """A Glance for the duration."""
    glance = Glance()
    glance.go_on.set()
    handler = type("Handler", (_Handler,), {"glance": glance})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        glance.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield glance
        finally:
            glance.go_on.set()
            server.shutdown()
            thread.join()
