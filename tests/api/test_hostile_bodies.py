"""Bodies that no client would send, to every operation of both APIs that takes one.

None is answered by a 5xx, none ends the daemon's connection loop, and each refusal is a fault.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from fastapi import FastAPI

from api.app import create_app
from api.intake import MAX_BODY_BYTES
from api.openstack.app import create_public_app
from bockd.identity.contract import PasswordCredentials

from .appserver import serving_app
from .memory_blockstorage import MemoryBlockStorage
from .memory_control import MemoryControl
from .memory_identity import ALICE, MemoryIdentity
from .memory_images import MemoryImages

BODIES: dict[str, bytes] = {
    "nothing": b"",
    "deep lists": b"[" * 30_000 + b"]" * 30_000,
    "deep lists, unfinished": b"[" * 60_000,
    "deep objects": b'{"a":' * 12_000 + b"1" + b"}" * 12_000,
    "not UTF-8": b'{"volume": {"display_name": "\xff\xfe"}}',
    "UTF-16": '{"volume": null}'.encode("utf-16"),
    "a BOM": b'\xef\xbb\xbf{"volume": null}',
    "NUL": b'{"volume": {"display_name": "a\x00b", "size": 1}}',
    "NUL escaped": b'{"volume": {"display_name": "a\\u0000b", "size": 1}}',
    "a lone surrogate": b'{"volume": {"display_name": "\\ud800", "size": 1}}',
    "a surrogate as a key": b'{"\\ud800": 1}',
    "a huge integer": b'{"volume": {"size": ' + b"9" * 5_000 + b"}}",
    "a huge exponent": b'{"volume": {"size": 1e999999}}',
    "NaN": b'{"volume": {"size": NaN}}',
    "Infinity": b'{"volume": {"size": -Infinity}}',
    "a number": b"1",
    "a huge number": b"1" * 20_000,
    "null": b"null",
    "a string": b'"volume"',
    "thousands of keys": b"{" + b",".join(b'"k%d":1' % n for n in range(5_000)) + b"}",
    "a key twice": b'{"volume": 1, "volume": {"size": 1}}',
    "only brackets": b"}{",
    "as large as may be": b'"' + b"x" * (MAX_BODY_BYTES - 2) + b'"',
    "a form": b"size=1&volume=2",
}


def operations(app: FastAPI) -> Iterator[tuple[str, str]]:
    """(method, path) of each operation that takes a body."""
    document: dict[str, Any] = app.openapi()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if "requestBody" in operation:
                yield method.upper(), path


def ask_all(app: FastAPI, places: dict[str, str], headers: dict[str, str]) -> int:
    """Send every body to every operation; the number of refusals."""
    refused = 0
    with serving_app(app) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        for method, path in operations(app):
            url = path.format_map(Places(places))
            for name, body in BODIES.items():
                answer = client.request(method, url, content=body, headers=headers)
                assert answer.status_code < 500, (method, path, name, answer.text)
                if answer.status_code >= 400:
                    refused += 1
                    assert len(answer.content) < 10_000, (method, path, name)
                    assert answer.json().keys(), (method, path, name)
    return refused


class Places(dict[str, str]):
    """What stands for the parts of a path."""

    def __missing__(self, key: str) -> str:
        return "1"


def public_app() -> tuple[FastAPI, dict[str, str]]:
    """The public API, and the headers of a client with a token."""
    identity = MemoryIdentity()
    app = create_public_app(MemoryBlockStorage(), identity)

    async def token() -> str:
        credentials = PasswordCredentials(ALICE.name, ALICE.password)
        return (await identity.issue_token(credentials, None)).token

    return app, {"X-Auth-Token": trio.run(token), "Content-Type": "application/json"}


def test_the_public_api_refuses_hostile_bodies() -> None:
    app, headers = public_app()
    assert ask_all(app, {"tenant": ALICE.tenants[0].id}, headers) > 100


def test_the_control_api_refuses_hostile_bodies(tmp_path: Path) -> None:
    app = create_app(MemoryControl(tmp_path), MemoryImages())
    assert ask_all(app, {}, {"Content-Type": "application/json"}) > 50


@pytest.mark.parametrize(
    "query", ["a=1&" * 4_000, "limit=" + "9" * 8_000, "limit=%00%ff%fe", "=" * 9_000]
)
def test_a_hostile_query_is_no_server_error(query: str) -> None:
    app, headers = public_app()
    with serving_app(app) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        for path in ("os-volumes", "os-volumes/detail", "os-snapshots", "limits"):
            answer = client.get(f"/v1.1/{ALICE.tenants[0].id}/{path}?{query}", headers=headers)
            assert answer.status_code < 500, (path, answer.text)
