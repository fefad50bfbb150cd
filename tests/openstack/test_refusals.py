"""Bad input to the real service: each kind gets its fault and changes nothing."""

from __future__ import annotations

import json
import socket
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from api.intake import MAX_BODY_BYTES

from ..api.public import Served, fault_of

JSON = {"Content-Type": "application/json"}
FORM = "application/x-www-form-urlencoded"
BAD_IDS = ["abc", "-1", "0", "1.0", "1e1", "%20", "9" * 30, "9" * 4400, "..%2f..%2fetc%2fpasswd"]
BAD_IDS += ["%00", "%ff%fe", "1%2f2", "%2e%2e", "null", "'%20or%201=1", "%EF%BC%91"]

MALFORMED = [
    b'{"vo',
    b"{'volume': {'size': 1}}",
    b'{"volume": {"size": 1}} x',
    b'{"volume": {"size": NaN}}',
    b'{"volume": {"size": 1e999}}',
    b'{"volume": {"size": 1' + b"0" * 5000 + b"}}",
    b'{"volume": {"size": 1, "display_name": "\\ud800"}}',
    b'{"volume": {"size": 1, "display_name": "\xff"}}',
    b'{"volume": {"size": 1, "display_name": "a\nb"}}',
    b"[" * 60_000,
    b"\xff\xfe\x00",
]

WRONG: list[Any] = [
    {},
    [],
    None,
    1,
    "volume",
    {"volume": None},
    {"volume": []},
    {"volume": "x"},
    {"volume": {}},
    {"size": 1},
    {"volume": {"size": 1, "source_volid": 1.5}},
    {"volume": {"size": 1, "source_volid": 1, "snapshot_id": 1}},
    {"volume": {"size": 1, "source_replica": 7}},
    {"volume": {"size": 1, "bockd": {"size": 1}}},
    {"volume": {"size": 1, "display_name": 7}},
    {"volume": {"size": 1, "display_name": "x" * 256}},
    {"volume": {"size": 1, "display_description": ["x"]}},
    {"volume": {"size": 1, "metadata": []}},
    {"volume": {"size": 1, "metadata": {"a": 1}}},
    {"volume": {"size": 1, "metadata": {"a": {"b": "c"}}}},
    {"volume": {"size": 1, "snapshot_id": 1.5}},
    {"volume": {"size": 1, "snapshot_id": True}},
    {"volume": {"size": 1, "snapshot_id": [1]}},
    {"volume": {"size": 1, "imageRef": 7}},
    {"volume": {"size": 1, "snapshot_id": 1, "imageRef": "x"}},
]


def post(client: httpx.Client, body: bytes, content_type: str = JSON["Content-Type"]) -> Any:
    """Status and name of the fault for a body sent to create a volume."""
    headers = {"Content-Type": content_type} if content_type else {}
    answer = client.post("/os-volumes", content=body, headers=headers)
    return fault_of(answer)[:2]


def assert_nothing_there(client: httpx.Client) -> None:
    assert client.get("/os-volumes").json() == {"volumes": []}
    assert client.get("/os-snapshots").json() == {"snapshots": []}


def test_malformed_json(served: Served) -> None:
    with served.client() as client:
        for body in MALFORMED:
            assert post(client, body) == (400, "badRequest"), body[:60]
        assert_nothing_there(client)


def test_wrong_types_and_missing_keys(served: Served) -> None:
    with served.client() as client:
        for body in WRONG:
            answer = client.post("/os-volumes", content=json.dumps(body), headers=JSON)
            status, name, message = fault_of(answer)
            assert (status, name) == (400, "badRequest"), (body, message)
            assert "\n" not in message
        assert_nothing_there(client)


def test_empty_body(served: Served) -> None:
    with served.client() as client:
        for body in (b"", b"  \r\n"):
            for content_type in ("", JSON["Content-Type"]):
                assert post(client, body, content_type) == (422, "unprocessableEntity")


def test_media_types(served: Served) -> None:
    good = b'{"volume": {"size": 1}}'
    with served.client() as client:
        for content_type in ("text/plain", "application/xml", "application/jsonp", "x", "x; json"):
            assert post(client, good, content_type) == (415, "badMediaType"), content_type
        assert post(client, b"size=1&display_name=a", FORM) == (415, "badMediaType")
        assert_nothing_there(client)
        for content_type in ("", "application/json; charset=UTF-8", "Application/JSON", FORM):
            headers = {"Content-Type": content_type} if content_type else {}
            answer = client.post("/os-volumes", content=good, headers=headers)
            assert answer.status_code == 200, content_type


def test_ids_that_name_nothing(served: Served) -> None:
    with served.client() as client:
        for bad in BAD_IDS:
            for path in (f"/os-volumes/{bad}", f"/os-snapshots/{bad}"):
                for method in ("GET", "DELETE"):
                    answer = client.request(method, path)
                    assert fault_of(answer)[:2] == (404, "itemNotFound"), (method, path)
            attached = f"/servers/1/os-volume_attachments/{bad}"
            assert fault_of(client.get(attached))[:2] == (404, "itemNotFound"), bad
            assert fault_of(client.delete(attached))[:2] == (404, "itemNotFound"), bad


@pytest.mark.parametrize("bad", ["abc", "-1", -1, 10**40, "9" * 400, "1 ", "\u0661", "../1"])
def test_ids_in_bodies_that_name_nothing(served: Served, bad: object) -> None:
    with served.client() as client:
        for path, body in [
            ("/os-volumes", {"volume": {"size": 1, "snapshot_id": bad}}),
            ("/os-snapshots", {"snapshot": {"volume_id": bad}}),
            ("/servers/1/os-volume_attachments", {"volumeAttachment": {"volumeId": bad}}),
        ]:
            assert fault_of(client.post(path, json=body))[:2] == (404, "itemNotFound"), path
        assert_nothing_there(client)


def test_wrong_methods(served: Served) -> None:
    with served.client() as client:
        for method, path, allowed in [
            ("PUT", "/os-volumes", "GET, HEAD, POST"),
            ("POST", "/os-volumes/1", "DELETE, GET, HEAD, PUT"),
            ("DELETE", "/os-volumes/detail", "GET, HEAD"),
            ("PATCH", "/os-snapshots/1", "DELETE, GET, HEAD, PUT"),
            ("PUT", "/servers/1/os-volume_attachments/1", "DELETE, GET, HEAD, POST"),
            ("DELETE", "/limits", "GET, HEAD"),
            ("POST", f"{served.url}/", "GET, HEAD"),
            ("DELETE", f"{served.url}/v1.1/", "GET, HEAD"),
            ("GET", f"{served.url}/v2.0/tokens", "POST"),
        ]:
            answer = client.request(method, path)
            assert fault_of(answer)[:2] == (405, "badMethod"), (method, path)
            assert answer.headers["allow"] == allowed, (method, path)


def test_unknown_paths(served: Served) -> None:
    with served.client() as client:
        base = str(client.base_url)
        for url in (f"{base}colour", base, f"{base}os-volumes/1/colour", f"{served.url}/v1.0/"):
            assert fault_of(client.get(url))[:2] == (404, "itemNotFound"), url
        for url in (
            f"{served.url}/v1.1/..%2f..%2fetc/os-volumes",
            f"{served.url}/v1.1//os-volumes",
        ):
            assert fault_of(client.get(url))[:2] == (403, "forbidden"), url


def test_oversized_body(served: Served) -> None:
    with served.client() as client:
        assert post(client, b" " * (MAX_BODY_BYTES + 1)) == (413, "overLimit")
        assert_nothing_there(client)


def exchange(served: Served, request: bytes) -> bytes:
    """What comes back for raw bytes, until the other side hangs up."""
    address = urlsplit(served.url)
    answer = b""
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(request)
        while piece := connection.recv(4096):
            answer += piece
    return answer


def test_slow_body(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.intake.BODY_TIMEOUT_SECONDS", 0.05)
    with served.client() as client:
        token = client.headers["X-Auth-Token"]
        path = f"/v1.1/{served.service.account.tenant_id}/os-volumes"
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\nx-auth-token: {token}\r\n"
        body = f"{head}content-type: application/json\r\ncontent-length: 23\r\n\r\n{{"
        answer = exchange(served, body.encode())
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b'{"badRequest":' in answer
        assert_nothing_there(client)
