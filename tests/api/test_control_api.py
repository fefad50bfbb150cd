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

from api.app import Together, create_app
from api.faults import STATUS_OF_ERROR
from api.intake import MAX_BODY_BYTES
from api.openstack.app import create_public_app
from api.serve import serve_api
from bockd import errors
from bockd.control import DaemonInfo
from bockd.model import MIB, NodeKind
from bockd.trace.records import end_record, lost_record

from .memory_blockstorage import MemoryBlockStorage
from .memory_control import MemoryControl
from .memory_identity import MemoryIdentity
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


def fault_of(answer: httpx.Response) -> tuple[int, str, str]:
    """Status, code and message, from a body that has nothing else."""
    body = answer.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"code", "message"}
    return answer.status_code, body["error"]["code"], body["error"]["message"]


def test_volumes_and_snapshots(tmp_path: Path) -> None:
    control = MemoryControl(tmp_path)
    web = control.add_volume("web", 4 * MIB)
    control.add_volume("other")
    taken = control.add_snapshot("web", "s")

    async def scenario(client: Client) -> None:
        volumes = (await client.get("/control/v1/volumes")).json()
        assert [(one["id"], one["name"]) for one in volumes] == [(1, "web"), (2, "other")]
        shown = (await client.get("/control/v1/volumes/web")).json()
        assert (shown["id"], shown["status"], shown["connections"]) == (web.id, "available", 0)
        assert shown["size_bytes"] == 4 * MIB
        for volume, expected in (("web", [taken.id]), ("other", [])):
            found = await client.get("/control/v1/snapshots", params={"volume": volume})
            assert [one["id"] for one in found.json()] == expected
        assert (await client.get("/control/v1/info")).json()["snapshots"] == 1
        control.failed[web.id] = "a sync failed"
        shown = (await client.get("/control/v1/volumes/web")).json()
        assert (shown["status"], shown["error"]) == ("error", "a sync failed")

    with_client(control, scenario)


def test_unowned_volumes_and_snapshots_are_adopted_once(tmp_path: Path) -> None:
    control = MemoryControl(tmp_path)
    control.add_volume("web")
    control.add_snapshot("web", "s")

    async def scenario(client: Client) -> None:
        unowned = await client.get("/control/v1/unowned")
        assert unowned.json() == {"volumes": ["web"], "snapshots": ["s"]}
        for path in ("volumes/web", "snapshots/s"):
            done = await client.post(f"/control/v1/{path}/adopt", json={"tenant": "demo"})
            assert (done.status_code, done.content) == (204, b"")
        assert (await client.get("/control/v1/unowned")).json() == {"volumes": [], "snapshots": []}
        again = await client.post("/control/v1/volumes/web/adopt", json={"tenant": "other"})
        assert fault_of(again)[:2] == (409, "conflict")
        nothing = await client.post("/control/v1/volumes/none/adopt", json={"tenant": "demo"})
        assert fault_of(nothing)[:2] == (404, "not-found")

    with_client(control, scenario)
    assert control.owners == {1: "demo", 2: "demo"}


def test_pool_wide_answers(tmp_path: Path) -> None:
    control = MemoryControl(tmp_path, connections=lambda kind, _: int(kind is NodeKind.VOLUME))
    control.problems = ("leaf 3 of map 1 is gone",)
    control.add_volume("web")

    async def scenario(client: Client) -> None:
        (counters,) = (await client.get("/control/v1/statistics")).json()
        assert (counters["kind"], counters["name"], counters["reads"]) == ("volume", "web", 1000)
        report = (await client.post("/control/v1/check")).json()
        assert (report["clean"], report["problems"]) == (False, ["leaf 3 of map 1 is gone"])
        space = (await client.get("/control/v1/volumes/web/space")).json()
        assert space == {"exclusive_bytes": 0, "shared_bytes": 0}
        document = (await client.get("/control/v1/openapi.json")).json()
        assert "/control/v1/volumes/{ref}" in document["paths"]

    with_client(control, scenario)


def test_a_volume_is_recorded(tmp_path: Path) -> None:
    """Records are bytes, as they lie in a trace."""
    control = MemoryControl(tmp_path)
    control.add_volume("web")

    async def scenario(client: Client) -> None:
        path = "/control/v1/volumes/web/recording"
        begun = await client.post(path)
        assert (begun.status_code, begun.json()["volume"]["name"]) == (201, "web")
        assert fault_of(await client.post(path))[:2] == (409, "in-use")
        recording = f"/control/v1/recordings/{begun.json()['id']}"
        taken = await client.post(f"{recording}/records")
        assert taken.headers["content-type"] == "application/octet-stream"
        assert taken.content == lost_record(1, 2)
        assert (await client.post(f"{recording}/end")).content == end_record(3)
        for what in ("records", "end"):
            assert fault_of(await client.post(f"{recording}/{what}"))[:2] == (404, "not-found")
        nobody = await client.post("/control/v1/volumes/nobody/recording")
        assert fault_of(nobody)[:2] == (404, "not-found")

    with_client(control, scenario)


def test_space_of_everything_comes_in_pages_when_time_is_short(tmp_path: Path) -> None:
    control = MemoryControl(tmp_path)
    for name in ("a", "b", "c"):
        control.add_volume(name)

    async def scenario(client: Client) -> None:
        path = "/control/v1/space"
        whole = (await client.get(path)).json()
        assert [one["id"] for one in whole["spaces"]] == [1, 2, 3]
        assert whole["spaces"][0]["space"] == {"exclusive_bytes": 0, "shared_bytes": 0}
        found, after = [], 0
        while after is not None:
            page = (await client.get(path, params={"after": after, "seconds": 0})).json()
            found += [one["id"] for one in page["spaces"]]
            after = page["next"]
        assert found == [1, 2, 3]
        for wrong in ({"after": -1}, {"seconds": -1}, {"seconds": "inf"}, {"other": 1}):
            answer = await client.get(path, params=wrong)
            assert fault_of(answer)[:2] == (400, "invalid")
        pool = (await client.get("/control/v1/pool")).json()
        assert (pool["volumes"], pool["promised_bytes"]) == (3, 3 * MIB)

    with_client(control, scenario)


@pytest.mark.parametrize("name", ["a/b", "..", "ä b?c#d", "100%", "%2F", "a/space", "[red]"])
def test_any_name_is_reachable(tmp_path: Path, name: str) -> None:
    control = MemoryControl(tmp_path)
    control.add_volume(name)

    async def scenario(client: Client) -> None:
        path = "/control/v1/volumes/" + quote(name, safe="").replace(".", "%2E")
        assert (await client.get(path)).json()["name"] == name
        assert (await client.get(f"{path}/space")).status_code == 200
        adopted = await client.post(f"{path}/adopt", json={"tenant": "demo"})
        assert adopted.status_code == 204

    with_client(control, scenario)


BAD_BODIES = [
    (b'{"te', "not JSON"),
    (b"", "body: Field required"),
    (b"[]", "body: "),
    (b"null", "body: "),
    (b"[" * 60_000, "parsing the body"),
    (b"{}", "body.tenant: Field required"),
    (b'{"tenant": 7}', "body.tenant: Input should be a valid string"),
    (b'{"tenant": NaN}', "body.tenant: Input should be a valid string"),
    (b'{"tenant": "a", "colour": 1}', "body.colour: Extra inputs"),
    (b'{"tenant": "a", "\\ud800": 1}', "unicode"),
    (b'{"tenant": 1' + b"0" * 5000 + b"}", "parsing the body"),
    (b"\xff\xfe\x00", "parsing the body"),
]


def test_bad_bodies_change_nothing(tmp_path: Path) -> None:
    control = MemoryControl(tmp_path)
    control.add_volume("web")

    async def scenario(client: Client) -> None:
        for body, reason in BAD_BODIES:
            answer = await client.post(
                "/control/v1/volumes/web/adopt",
                content=body,
                headers={"content-type": "application/json"},
            )
            status, code, message = fault_of(answer)
            assert (status, code) == (400, "invalid"), (body[:50], message)
            assert reason in message, (body[:50], message)
            assert "\n" not in message

    with_client(control, scenario)
    assert control.owners == {}


def test_limits_of_a_volume(tmp_path: Path) -> None:
    control = MemoryControl(tmp_path)
    control.add_volume("web")
    path = "/control/v1/volumes/web/limits"

    async def scenario(client: Client) -> None:
        wanted = {"iops": {"per_second": 500, "burst": 2000}, "write_bps": {"per_second": 4096}}
        answer = await client.put(path, json={"limits": wanted})
        assert answer.status_code == 200
        shown = (await client.get("/control/v1/volumes/web")).json()
        assert shown == answer.json()
        assert shown["own_limits"]
        assert shown["limits"] == {
            **dict.fromkeys(("read_iops", "write_iops", "bps", "read_bps", "iops_size")),
            "iops": {"per_second": 500, "burst": 2000, "burst_seconds": 1},
            "write_bps": {"per_second": 4096, "burst": None, "burst_seconds": 1},
        }
        for body in (
            {},
            {"limits": 5},
            {"limits": {"iops": 500}},
            {"limits": {"iops": {"per_second": "500"}}},
            {"limits": {"iops": {"per_second": 0}}},
            {"limits": {"iops": {"per_second": 5, "burst": 1}}},
            {"limits": {"speed": {"per_second": 5}}},
        ):
            assert fault_of(await client.put(path, json=body))[:2] == (400, "invalid"), body
        assert (await client.get("/control/v1/volumes/web")).json() == shown
        answer = await client.put(path, json={"limits": None})
        assert not answer.json()["own_limits"]

    with_client(control, scenario)


def test_profile_of_a_volume(tmp_path: Path) -> None:
    control = MemoryControl(tmp_path)
    control.add_volume("web")
    path = "/control/v1/volumes/web/profile"

    async def scenario(client: Client) -> None:
        rule = {"operations": ["read"], "length_bytes": 4096}
        wanted = {"name": "slow", "read_us": {"50": 5000}, "errors": [rule]}
        answer = await client.put(path, json={"profile": wanted})
        assert answer.status_code == 200
        shown = (await client.get("/control/v1/volumes/web")).json()
        assert shown == answer.json()
        assert shown["profile"]["read_us"] == {"50": 5000}
        assert shown["profile"]["errors"][0]["errno"] == "EIO"
        bodies: list[dict[str, Any]] = [
            {},
            {"profile": 5},
            {"profile": {}},
            {"profile": {"name": "slow", "speed": 5}},
            {"profile": {"name": "slow", "read_us": 5}},
            {"profile": {"name": "slow", "errors": [{"errno": "EAGAIN"}]}},
        ]
        for body in bodies:
            assert fault_of(await client.put(path, json=body))[:2] == (400, "invalid"), body
        assert (await client.get("/control/v1/volumes/web")).json() == shown
        answer = await client.put(path, json={"profile": None})
        assert answer.json()["profile"] is None

    with_client(control, scenario)


def test_many_unknown_keys_get_a_short_answer(tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        body = {f"key{number}": 1 for number in range(1000)}
        answer = await client.post("/control/v1/volumes/web/adopt", json=body)
        _, _, message = fault_of(answer)
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
        form = await client.post("/control/v1/volumes/1/adopt", data={"tenant": "a"})
        assert fault_of(form)[:2] == (415, "invalid")
        large = await client.post("/control/v1/check", content=b" " * (MAX_BODY_BYTES + 1))
        assert fault_of(large)[:2] == (413, "too-large")

    with_client(MemoryControl(tmp_path), scenario)


def test_slow_body_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.intake.BODY_TIMEOUT_SECONDS", 0.05)

    async def scenario(_: Client) -> None:
        stream = await trio.open_unix_socket(tmp_path / "api.sock")
        async with stream:
            await stream.send_all(
                b"POST /control/v1/check HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{"
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


def test_the_socket_is_shared_with_the_public_api(tmp_path: Path) -> None:
    """What is not below the control API's prefix is the other one's, and says so in its way."""

    async def run() -> None:
        socket = tmp_path / "api.sock"
        public = create_public_app(MemoryBlockStorage(), MemoryIdentity())
        app = Together(create_app(MemoryControl(tmp_path), MemoryImages()), public)
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_api, app, socket)
            transport = httpx.AsyncHTTPTransport(uds=str(socket))
            async with httpx.AsyncClient(transport=transport, base_url="http://bockd") as client:
                assert (await client.get("/control/v1/volumes")).json() == []
                assert fault_of(await client.get("/control/v1/nothing"))[0] == 404
                assert (await client.get("/")).json()["versions"][0]["id"] == "v1.1"
                refused = await client.get("/v1.1/x/os-volumes")
                assert (refused.status_code, list(refused.json())) == (401, ["unauthorized"])
                for path in ("/control/v10/volumes", "/control"):
                    missing = await client.get(path)
                    assert (missing.status_code, list(missing.json())) == (404, ["itemNotFound"])
            nursery.cancel_scope.cancel()

    trio.run(run)
