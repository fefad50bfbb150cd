"""The control API over a real Hypercorn socket: what is answered, and how refusals look."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import trio

from api.app import create_app
from api.faults import STATUS_OF_ERROR
from api.intake import MAX_BODY_BYTES
from api.serve import serve_api
from bockd import errors
from bockd.control import DaemonInfo
from bockd.model import MIB, NodeKind

from .memory_control import MemoryControl
from .memory_images import MemoryImages

Client = httpx.AsyncClient


@asynccontextmanager
async def served(control: MemoryControl) -> AsyncIterator[Client]:
    """A client of the API over `control`."""
    socket = control.data_dir / "api.sock"
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_api, create_app(control, MemoryImages()), socket)
        transport = httpx.AsyncHTTPTransport(uds=str(socket))
        async with httpx.AsyncClient(transport=transport, base_url="http://bockd") as client:
            yield client
        nursery.cancel_scope.cancel()


def with_client(control: MemoryControl, scenario: Callable[[Client], Awaitable[None]]) -> None:
    """Run `scenario` against a server that ends with it."""

    async def run() -> None:
        async with served(control) as client:
            await scenario(client)

    trio.run(run)


async def create(client: Client, name: str, size_bytes: int = MIB, **more: object) -> Any:
    """Create a volume and return its record."""
    answer = await client.post(
        "/control/v1/volumes", json={"name": name, "size_bytes": size_bytes, **more}
    )
    assert answer.status_code == 201, answer.text
    return answer.json()


def fault_of(answer: httpx.Response) -> tuple[int, str, str]:
    """Status, code and message, from a body that has nothing else."""
    body = answer.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"code", "message"}
    return answer.status_code, body["error"]["code"], body["error"]["message"]


def test_life_of_a_volume_and_its_snapshots(tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        web = await create(client, "web", 4 * MIB)
        assert (web["id"], web["status"], web["connections"]) == (1, "available", 0)
        taken = await client.post("/control/v1/snapshots", json={"volume": "web", "name": "s"})
        assert taken.status_code == 201
        assert taken.json()["volume"] == web["id"]
        clone = await client.post(
            "/control/v1/volumes", json={"name": "clone", "from_snapshot": "s"}
        )
        assert clone.json()["size_bytes"] == 4 * MIB
        assert clone.json()["from_snapshot"] == taken.json()["id"]
        grown = await client.post("/control/v1/volumes/web/extend", json={"size_bytes": 8 * MIB})
        assert grown.json()["size_bytes"] == 8 * MIB
        reverted = await client.post("/control/v1/snapshots/s/revert")
        assert reverted.json()["id"] == web["id"]
        of_clone = await client.get("/control/v1/snapshots", params={"volume": "clone"})
        assert of_clone.json() == []
        assert (await client.get("/control/v1/info")).json()["snapshots"] == 1
        for path in ("volumes/1", "snapshots/s", "volumes/clone"):
            gone = await client.delete(f"/control/v1/{path}")
            assert (gone.status_code, gone.content) == (204, b"")
        assert (await client.get("/control/v1/volumes")).json() == []
        assert (await client.get("/control/v1/snapshots")).json() == []

    with_client(MemoryControl(tmp_path), scenario)


def test_pool_wide_answers(tmp_path: Path) -> None:
    control = MemoryControl(tmp_path, connections=lambda kind, _: int(kind is NodeKind.VOLUME))
    control.problems = ("leaf 3 of map 1 is gone",)

    async def scenario(client: Client) -> None:
        await create(client, "web")
        (counters,) = (await client.get("/control/v1/statistics")).json()
        assert (counters["kind"], counters["name"], counters["reads"]) == ("volume", "web", 1000)
        report = (await client.post("/control/v1/check")).json()
        assert (report["clean"], report["problems"]) == (False, ["leaf 3 of map 1 is gone"])
        space = (await client.get("/control/v1/volumes/web/space")).json()
        assert space == {"exclusive_bytes": 0, "shared_bytes": 0}
        document = (await client.get("/control/v1/openapi.json")).json()
        assert "/control/v1/volumes/{ref}" in document["paths"]

    with_client(control, scenario)


@pytest.mark.parametrize("name", ["a/b", "..", "ä b?c#d", "100%", "%2F", "a/space", "[red]"])
def test_any_name_is_reachable(tmp_path: Path, name: str) -> None:
    async def scenario(client: Client) -> None:
        await create(client, name)
        path = "/control/v1/volumes/" + quote(name, safe="").replace(".", "%2E")
        assert (await client.get(path)).json()["name"] == name
        assert (await client.get(f"{path}/space")).status_code == 200
        assert (await client.delete(path)).status_code == 204

    with_client(MemoryControl(tmp_path), scenario)


BAD_BODIES = [
    (b'{"na', "not JSON"),
    (b"", "body: Field required"),
    (b"[]", "body: "),
    (b"null", "body: "),
    (b"[" * 60_000, "parsing the body"),
    (b'{"size_bytes": 1048576}', "body.name: Field required"),
    (b'{"name": 7}', "body.name: Input should be a valid string"),
    (b'{"name": "a", "size_bytes": "1"}', "body.size_bytes: Input should be a valid integer"),
    (b'{"name": "a", "size_bytes": 1e6}', "body.size_bytes: Input should be a valid integer"),
    (b'{"name": "a", "size_bytes": true}', "body.size_bytes: Input should be a valid integer"),
    (b'{"name": "a", "size_bytes": NaN}', "body.size_bytes: Input should be a valid integer"),
    (b'{"name": "a", "size_bytes": 1048576, "colour": 1}', "body.colour: Extra inputs"),
    (b'{"name": "a", "size_bytes": 1048576, "\\ud800": 1}', "unicode"),
    (b'{"name": "\\ud800", "size_bytes": 1048576}', "Unicode text"),
    (b'{"name": "a", "size_bytes": -4096}', "out of range"),
    (b'{"name": "a", "size_bytes": 1' + b"0" * 300 + b"}", "out of range"),
    (b'{"name": "a", "size_bytes": 1' + b"0" * 5000 + b"}", "parsing the body"),
    (b'{"name": "a", "size_bytes": 1048577}', "not a multiple"),
    (b'{"name": "", "size_bytes": 1048576}', "1 to 255 bytes"),
    (b'{"name": "1", "size_bytes": 1048576}', "looks like an id"),
    (b'{"name": "a\\u0000", "size_bytes": 1048576}', "control characters"),
    (b"\xff\xfe\x00", "parsing the body"),
]


def test_bad_bodies_change_nothing(tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        for body, reason in BAD_BODIES:
            answer = await client.post(
                "/control/v1/volumes", content=body, headers={"content-type": "application/json"}
            )
            status, code, message = fault_of(answer)
            assert (status, code) == (400, "invalid"), (body[:50], message)
            assert reason in message, (body[:50], message)
            assert "\n" not in message
        assert (await client.get("/control/v1/volumes")).json() == []

    with_client(MemoryControl(tmp_path), scenario)


def test_many_unknown_keys_get_a_short_answer(tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        body = {f"key{number}": 1 for number in range(1000)}
        _, _, message = fault_of(await client.post("/control/v1/volumes", json=body))
        assert len(message) < 500
        assert message.endswith("more")

    with_client(MemoryControl(tmp_path), scenario)


def test_refusals_of_http_itself(tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        for method, path, expected in [
            ("GET", "/", (404, "not-found")),
            ("GET", "/control/v1/volumes/", (404, "not-found")),
            ("GET", "/control/v1/volumes/1/colour", (404, "not-found")),
            ("GET", "/control/v1/volumes/..%2f..%2fetc%2fpasswd", (404, "not-found")),
            ("GET", "/control/v1/volumes/%ff%00", (404, "not-found")),
            ("GET", "/docs", (404, "not-found")),
            ("PUT", "/control/v1/volumes", (405, "method-not-allowed")),
            ("GET", "/control/v1/snapshots?colour=1", (400, "invalid")),
        ]:
            assert fault_of(await client.request(method, path))[:2] == expected, path
        form = await client.post("/control/v1/volumes", data={"name": "a"})
        assert fault_of(form)[:2] == (415, "invalid")
        large = await client.post("/control/v1/volumes", content=b" " * (MAX_BODY_BYTES + 1))
        assert fault_of(large)[:2] == (413, "too-large")

    with_client(MemoryControl(tmp_path), scenario)


def test_slow_body_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.intake.BODY_TIMEOUT_SECONDS", 0.05)

    async def scenario(_: Client) -> None:
        stream = await trio.open_unix_socket(tmp_path / "api.sock")
        async with stream:
            await stream.send_all(
                b"POST /control/v1/volumes HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{"
            )
            answer = b""
            while not answer.endswith(b"}}"):
                answer += await stream.receive_some()
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"code":"timeout"' in answer

    with_client(MemoryControl(tmp_path), scenario)


class FailingControl(MemoryControl):
    """Raises what it was given."""

    def __init__(self, data_dir: Path, error: Exception) -> None:
        super().__init__(data_dir)
        self.error = error

    async def info(self) -> DaemonInfo:
        raise self.error


FAMILIES = [
    family
    for family in vars(errors).values()
    if isinstance(family, type) and family.__base__ is errors.BockdError
]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_error_has_its_status(tmp_path: Path, family: type[errors.BockdError]) -> None:
    async def scenario(client: Client) -> None:
        answer = await client.get("/control/v1/info")
        assert fault_of(answer) == (STATUS_OF_ERROR[family], family.code, "why \\udc80")

    with_client(FailingControl(tmp_path, family("why \udc80")), scenario)


def test_a_bug_is_an_internal_error_and_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(client: Client) -> None:
        status, code, message = fault_of(await client.get("/control/v1/info"))
        assert (status, code) == (500, "internal")
        assert "ZeroDivisionError" in message
        assert (await client.get("/control/v1/volumes")).status_code == 200

    with_client(FailingControl(tmp_path, ZeroDivisionError("secret")), scenario)
    assert "ZeroDivisionError: secret" in caplog.text


def test_in_use_and_conflict(tmp_path: Path) -> None:
    connected: set[int] = set()
    control = MemoryControl(tmp_path, connections=lambda _, node_id: int(node_id in connected))

    async def scenario(client: Client) -> None:
        await create(client, "web")
        connected.add(1)
        assert fault_of(await client.delete("/control/v1/volumes/web"))[:2] == (409, "in-use")
        again = await client.post("/control/v1/volumes", json={"name": "web", "size_bytes": MIB})
        assert fault_of(again)[:2] == (409, "conflict")

    with_client(control, scenario)


def test_reopening_a_failed_volume(tmp_path: Path) -> None:
    control = MemoryControl(tmp_path)

    async def scenario(client: Client) -> None:
        await create(client, "web")
        refused = await client.post("/control/v1/volumes/web/reopen")
        assert fault_of(refused)[:2] == (409, "conflict")
        control.failed[1] = "a sync failed"
        shown = (await client.get("/control/v1/volumes/web")).json()
        assert (shown["status"], shown["error"]) == ("error", "a sync failed")
        reopened = (await client.post("/control/v1/volumes/web/reopen")).json()
        assert (reopened["status"], reopened["error"]) == ("available", None)

    with_client(control, scenario)
