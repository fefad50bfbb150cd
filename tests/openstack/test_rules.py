"""The specification's lifecycles, quotas and business rules, over HTTP and the real service."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from bockd.blockstorage.contract import Quota

from ..api.public import Served, fault_of, serving, without_ours
from .pool_service import on_pool
from .requests import attach, create, detach, refuses_state, show, snapshot

CLIENTS = 8


def at_once(times: int, request: Callable[[int], httpx.Response]) -> Counter[int]:
    """How often each status came back, when several clients ask at the same time."""
    with ThreadPoolExecutor(CLIENTS) as clients:
        return Counter(answer.status_code for answer in clients.map(request, range(times)))


def test_status_lifecycle(served: Served) -> None:
    """creating, available, in-use, available (section 4.4.2)."""
    with served.client() as client:
        volume = create(client)
        assert volume["status"] == "creating"
        assert show(client, volume["id"])["status"] == "available"
        assert attach(client, volume["id"]).status_code == 200
        assert show(client, volume["id"])["status"] == "in-use"
        assert detach(client, volume["id"]).status_code == 202
        assert show(client, volume["id"])["status"] == "available"
        assert show(client, volume["id"])["attachments"] == [{}]


def test_snapshot_lifecycle(served: Served) -> None:
    """creating, available (section 4.4.4)."""
    with served.client() as client:
        taken = snapshot(client, create(client)["id"]).json()["snapshot"]
        assert taken["status"] == "creating"
        shown = client.get(f"/os-snapshots/{taken['id']}").json()["snapshot"]
        assert shown["status"] == "available"


def test_only_an_available_volume_is_attached(served: Served) -> None:
    """Rules 1, 2 and 4 of section 4.4.3: one server, and only when available."""
    with served.client() as client:
        volume = create(client)["id"]
        assert attach(client, volume, server=1).status_code == 200
        for server in (1, 2):
            refuses_state(attach(client, volume, server=server))
        assert client.get("/servers/2/os-volume_attachments").json() == {"volumeAttachments": []}


def test_only_a_volume_in_use_is_detached(served: Served) -> None:
    """Rule 3 of section 4.4.3."""
    with served.client() as client:
        volume = create(client)["id"]
        assert detach(client, volume).status_code in (400, 404)
        assert attach(client, volume, server=1).status_code == 200
        assert fault_of(detach(client, volume, server=2))[:2] == (404, "itemNotFound")
        assert show(client, volume)["status"] == "in-use"


def test_a_server_has_many_volumes_each_with_its_device(served: Served) -> None:
    """Rules 5 and 6 of section 4.4.3."""
    with served.client() as client:
        one, two, three = (create(client)["id"] for _ in range(3))
        assert attach(client, one, device="/dev/vdf").status_code == 200
        assert fault_of(attach(client, two, device="/dev/vdf"))[:2] == (409, "conflictingRequest")
        for invalid in ("vdf", "/dev/", "/dev/../sda", "/dev/vdf1", "/etc/passwd", "x" * 999):
            assert fault_of(attach(client, two, device=invalid))[:2] == (400, "badRequest")
        assert show(client, two)["status"] == "available"
        assert attach(client, two).json()["volumeAttachment"]["device"] == "/dev/vdb"
        assert attach(client, three, device="/dev/sdc").status_code == 200
        listed = client.get("/servers/1/os-volume_attachments").json()["volumeAttachments"]
        assert [one["device"] for one in listed] == ["/dev/vdf", "/dev/vdb", "/dev/sdc"]
        assert attach(client, create(client)["id"], server=2, device="/dev/vdf").status_code == 200


def test_an_attached_volume_is_not_deleted(served: Served) -> None:
    with served.client() as client:
        volume = create(client)["id"]
        assert attach(client, volume).status_code == 200
        refuses_state(client.delete(f"/os-volumes/{volume}"))
        assert show(client, volume)["status"] == "in-use"


def test_no_snapshot_of_an_attached_volume_unless_forced(served: Served) -> None:
    """Section 4.4.4, "Business Rules", and `force` of 4.4.4.2."""
    with served.client() as client:
        volume = create(client)["id"]
        assert attach(client, volume).status_code == 200
        refuses_state(snapshot(client, volume))
        refuses_state(snapshot(client, volume, force=False))
        assert client.get("/os-snapshots").json() == {"snapshots": []}
        assert snapshot(client, volume, force=True).status_code == 200


def test_volumes_and_snapshots_outlive_each_other(served: Served) -> None:
    """Section 4.4.4, "Business Rules", in both directions."""
    with served.client() as client:
        volume = create(client, size=2)["id"]
        taken = snapshot(client, volume).json()["snapshot"]["id"]
        assert client.delete(f"/os-volumes/{volume}").status_code == 202
        shown = client.get(f"/os-snapshots/{taken}").json()["snapshot"]
        assert (shown["volumeId"], shown["size"]) == (volume, 2)
        copy = create(client, snapshot_id=taken)["id"]
        assert client.delete(f"/os-snapshots/{taken}").status_code == 200
        assert show(client, copy)["snapshotId"] == taken
        assert attach(client, copy).status_code == 200


def test_a_volume_from_a_snapshot_has_its_size(served: Served) -> None:
    """Rule 1 of section 4.4.2, without the bug that it describes."""
    with served.client() as client:
        taken = snapshot(client, create(client, size=3)["id"]).json()["snapshot"]["id"]
        for size in (1, 9, None):
            assert create(client, size=size, snapshot_id=taken)["size"] == 3
        assert client.get("/limits").json()["limits"]["absolute"]["totalGigabytesUsed"] == 12


def test_both_sources_are_invalid(served: Served) -> None:
    """Section 4.4.2.2."""
    with served.client() as client:
        taken = snapshot(client, create(client)["id"]).json()["snapshot"]["id"]
        wanted = {"size": 1, "snapshot_id": taken, "imageRef": "x"}
        answer = client.post("/os-volumes", json={"volume": wanted})
        assert fault_of(answer)[:2] == (400, "badRequest")


def test_volume_type_is_ignored(served: Served) -> None:
    """Section 4.4.2.2."""
    with served.client() as client:
        assert create(client, volume_type="fast")["volumeType"] is None


def test_over_quota(tmp_path: Path) -> None:
    """Section 4.4.2, "Quota Limits": the documented body."""
    with (
        serving(on_pool(tmp_path, Quota(volumes=9, gigabytes=3, snapshots=1))) as served,
        served.client() as client,
    ):
        volume = create(client, size=3)["id"]
        answer = client.post("/os-volumes", json={"volume": {"size": 1}})
        message = "Volume quota exceeded. You cannot create a volume of size 1G"
        assert answer.status_code == 413
        assert answer.json() == {"overLimit": {"message": message, "code": 413, "retryAfter": 0}}
        assert snapshot(client, volume).status_code == 200
        assert fault_of(snapshot(client, volume))[:2] == (413, "overLimit")
        assert client.delete(f"/os-volumes/{volume}").status_code == 202
        assert create(client, size=3)["size"] == 3


def test_200_creates_at_once_against_a_quota_of_50(tmp_path: Path) -> None:
    with (
        serving(on_pool(tmp_path, Quota(volumes=50, gigabytes=1000, snapshots=0))) as served,
        served.client() as client,
    ):
        body = {"volume": {"size": 1}}
        statuses = at_once(200, lambda _: client.post("/os-volumes", json=body))
        assert statuses == {200: 50, 413: 150}
        assert len(client.get("/os-volumes").json()["volumes"]) == 50


def test_one_of_many_attaches_at_once_succeeds(served: Served) -> None:
    with served.client() as client:
        volume = create(client)["id"]
        statuses = at_once(40, lambda number: attach(client, volume, server=number + 1))
        assert statuses == {200: 1, 400: 39}
        (attached,) = show(client, volume)["attachments"]
        path = f"/servers/{attached['serverId']}/os-volume_attachments"
        (listed,) = client.get(path).json()["volumeAttachments"]
        assert without_ours(listed) == attached


def test_each_tenant_sees_its_own(served: Served) -> None:
    with served.client() as mine, served.client(served.service.stranger) as theirs:
        volume = create(mine)["id"]
        taken = snapshot(mine, volume).json()["snapshot"]["id"]
        for path in (f"/os-volumes/{volume}", f"/os-snapshots/{taken}"):
            for method in ("GET", "DELETE"):
                assert fault_of(theirs.request(method, path))[:2] == (404, "itemNotFound")
        for answer in (snapshot(theirs, volume), attach(theirs, volume), detach(theirs, volume)):
            assert fault_of(answer)[:2] == (404, "itemNotFound")
        wanted = {"volume": {"snapshot_id": taken}}
        assert fault_of(theirs.post("/os-volumes", json=wanted))[:2] == (404, "itemNotFound")
        assert theirs.get("/os-volumes").json() == {"volumes": []}
        assert theirs.get("/os-snapshots").json() == {"snapshots": []}
        assert fault_of(theirs.get(f"{mine.base_url}os-volumes"))[:2] == (403, "forbidden")
        assert show(mine, volume)["status"] == "available"
