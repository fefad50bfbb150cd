"""What real clients send, as it was recorded from them: it must work, whatever else it holds.

`make test-openstack-clients` runs the clients themselves.
"""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from api.openstack.app import create_public_app
from api.openstack.paths import OPEN_PATHS, needs_token, tidy
from bockd.blockstorage.contract import Quota
from bockd.model import VolumeId

from .memory_blockstorage import MemoryBlockStorage
from .memory_identity import ALICE, DEMO, MemoryIdentity
from .public import Served, fault_of

CINDERCLIENT_3_5_0 = (
    '{"volume": {"size": 1, "snapshot_id": null, "display_name": "cin", "display_description": '
    'null, "volume_type": null, "user_id": null, "project_id": null, "availability_zone": null, '
    '"status": "creating", "attach_status": "detached", "metadata": {}, "imageRef": null, '
    '"source_volid": null}}'
)
CINDERCLIENT_1_0_1 = (
    '{"volume": {"status": "creating", "availability_zone": null, "display_description": null, '
    '"snapshot_id": null, "user_id": null, "size": 1, "display_name": "cin", "imageRef": null, '
    '"attach_status": "detached", "volume_type": null, "project_id": null, "metadata": {}}}'
)
CINDERCLIENT_9_10_0 = (
    '{"volume": {"size": 1, "consistencygroup_id": null, "snapshot_id": null, "name": "cin", '
    '"description": null, "volume_type": null, "availability_zone": null, "metadata": {}, '
    '"imageRef": null, "source_volid": null, "backup_id": null}}'
)
PKGCLOUD_2_2_0 = '{"volume":{"display_name":"cin","size":1}}'
OUR_OWN_REPLY = (
    '{"volume": {"status": "available", "displayDescription": null, "availabilityZone": "nova", '
    '"displayName": "cin", "attachments": [{}], "volumeType": null, "snapshotId": "", '
    '"imageRef": "", "size": 1, "id": 7, "createdAt": "2012-06-27 19:20:35", "metadata": {}}}'
)
"""What a client sends that fills in a volume it has read."""

VOLUMES = [
    CINDERCLIENT_3_5_0,
    CINDERCLIENT_1_0_1,
    CINDERCLIENT_9_10_0,
    PKGCLOUD_2_2_0,
    OUR_OWN_REPLY,
]

SNAPSHOTS = [
    '{"snapshot": {"volume_id": 1, "force": true, "name": "s", "description": null, '
    '"metadata": {}}}',  # cinderclient 9.10.0
    '{"snapshot":{"name":"s","force":false,"volume_id":1}}',  # pkgcloud 2.2.0
    '{"snapshot": {"display_name": "s", "force": false, "volume_id": "1"}}',  # 3.5.0
]

JSON = {"Content-Type": "application/json"}


def create(client: httpx.Client, **volume: object) -> Any:
    answer = client.post("/os-volumes", json={"volume": {"size": 1, **volume}})
    assert answer.status_code == 200, answer.text
    return answer.json()["volume"]


@pytest.mark.parametrize("body", VOLUMES)
@pytest.mark.parametrize("path", ["/volumes", "/os-volumes"])
def test_recorded_requests_make_volumes(served: Served, path: str, body: str) -> None:
    with served.client() as client:
        answer = client.post(path, content=body, headers=JSON)
        assert answer.status_code == 200, answer.text
        made = answer.json()["volume"]
        assert (made["displayName"], made["size"], made["snapshotId"]) == ("cin", 1, "")


@pytest.mark.parametrize("body", SNAPSHOTS)
def test_recorded_requests_make_snapshots(served: Served, body: str) -> None:
    with served.client() as client:
        create(client)
        answer = client.post("/snapshots", content=body, headers=JSON)
        assert answer.status_code == 200, answer.text
        assert answer.json()["snapshot"]["displayName"] == "s"


def test_what_would_change_the_data_is_not_ignored(served: Served) -> None:
    """Who asks for a copy must not get zeros."""
    with served.client() as client:
        for key in ("source_replica", "backup_id"):
            body = {"volume": {"size": 1, key: "7"}}
            status, _, message = fault_of(client.post("/volumes", json=body))
            assert status == 400
            assert message.startswith(f"body.volume: {key} is not supported: ")


@pytest.mark.parametrize("device", ["auto", "", None])
def test_any_device_is_the_next_free_one(served: Served, device: str | None) -> None:
    """libcloud 2.8.0 sends "auto"."""
    with served.client() as client:
        volume = create(client)["id"]
        body = {"volumeAttachment": {"volumeId": volume, "device": device}}
        for path in (
            "/servers/1/os-volume_attachments",
            f"/servers/2/os-volume_attachments/{volume}",
        ):
            answer = client.post(path, json=body)
            assert answer.json()["volumeAttachment"]["device"] == "/dev/vdb", path
            server = path.split("/")[2]
            client.delete(f"/servers/{server}/os-volume_attachments/{volume}")


def test_replies_under_cinders_paths_have_cinders_keys(served: Served) -> None:
    """cinderclient finds what has a name by `display_name`; HP's paths stay as documented."""
    with served.client() as client:
        volume = create(client, display_name="a", display_description="b")["id"]
        taken = client.post("/snapshots", json={"snapshot": {"volume_id": volume, "name": "s"}})
        assert taken.json()["snapshot"]["volume_id"] == volume
        body = {"volumeAttachment": {"volumeId": volume}}
        assert client.post("/servers/5/os-volume_attachments", json=body).status_code == 200
        (listed,) = client.get("/volumes/detail").json()["volumes"]
        shown = client.get(f"/volumes/{volume}").json()["volume"]
        for one in (listed, shown):
            assert (one["display_name"], one["display_description"]) == ("a", "b")
            assert one["created_at"] == one["createdAt"]
            assert (one["snapshot_id"], one["volume_type"]) == ("", None)
            (attached,) = one["attachments"]
            assert (attached["server_id"], attached["volume_id"]) == (5, volume)
        documented = client.get(f"/os-volumes/{volume}").json()["volume"]
        assert documented == {key: shown[key] for key in documented} | {
            "attachments": documented["attachments"]
        }
        assert not any("_" in key for key in documented)
        again = client.post(
            "/os-snapshots", json={"snapshot": {"volume_id": volume, "force": True}}
        )
        assert client.delete(f"/os-snapshots/{again.json()['snapshot']['id']}").status_code == 200
        assert client.delete(f"/snapshots/{taken.json()['snapshot']['id']}").status_code == 202


# -- lists -------------------------------------------------------------------------------------


def test_a_list_without_limit_is_whole(served: Served, storage: MemoryBlockStorage) -> None:
    """Longer than Nova's pages of 1,000, and than what is made at once."""
    storage.quota = Quota(volumes=10, gigabytes=10, snapshots=10)
    with served.client() as client:
        ids = [create(client, display_name=f"v{n}")["id"] for n in range(3)]
        kept = storage.volumes_of(DEMO.id)
        for number in range(100, 1350):
            kept[VolumeId(number)] = replace(kept[ids[0]], id=VolumeId(number))
        every = [*ids, *range(100, 1350)]
        for query, expected in [
            ("", every),
            ("limit=0", every),
            ("limit=5000", every),
            ("limit=1200", every[:1200]),
            ("limit=100", every[:100]),
            ("limit=101&offset=1", every[1:102]),
            ("offset=1200", every[1200:]),
            (f"marker={every[99]}&limit=250", every[100:350]),
            ("marker=1349", []),
            ("display_name=v2", [ids[2]]),
        ]:
            for path in ("/os-volumes", "/volumes/detail"):
                answer = client.get(f"{path}?{query}").json()
                assert [one["id"] for one in answer.pop("volumes")] == expected, (path, query)
                assert answer == {}


# -- edits -------------------------------------------------------------------------------------


def test_names_and_metadata_change(served: Served) -> None:
    with served.client() as client:
        volume = create(client, display_name="a", metadata={"k": "1", "l": "2"})["id"]
        path = f"/os-volumes/{volume}"

        def put(**wanted: object) -> Any:
            answer = client.put(path, json={"volume": wanted})
            assert answer.status_code == 200, answer.text
            assert client.get(path).json() == answer.json()
            return answer.json()["volume"]

        assert put(display_name="b")["displayName"] == "b"
        kept = put(display_description="d", colour="red")
        assert (kept["displayName"], kept["displayDescription"]) == ("b", "d")
        assert kept["metadata"] == {"k": "1", "l": "2"}
        assert put(name="c", displayDescription="")["displayDescription"] is None
        assert put(metadata={"m": "3"})["metadata"] == {"m": "3"}
        assert put(displayName="")["displayName"] is None
        mistakes: list[object] = [{"display_name": 7}, {"metadata": []}, {"name": "x" * 256}]
        for wrong in mistakes:
            assert fault_of(client.put(path, json={"volume": wrong}))[0] == 400
        assert fault_of(client.put("/os-volumes/99", json={"volume": {}}))[0] == 404
        taken = client.post("/os-snapshots", json={"snapshot": {"volume_id": volume}}).json()
        at = f"/os-snapshots/{taken['snapshot']['id']}"
        answer = client.put(at, json={"snapshot": {"display_name": "then"}})
        assert answer.json()["snapshot"]["displayName"] == "then"
        assert client.get(at).json()["snapshot"] == answer.json()["snapshot"]
        assert fault_of(client.put("/os-snapshots/99", json={"snapshot": {}}))[0] == 404


def test_metadata_item_by_item(served: Served) -> None:
    with served.client() as client:
        volume = create(client, metadata={"k": "1"})["id"]
        path = f"/os-volumes/{volume}/metadata"
        added = client.post(path, json={"metadata": {"l": "2", "a/b": "3"}})
        everything = {"metadata": {"k": "1", "l": "2", "a/b": "3"}}
        assert added.json() == client.get(path).json() == everything
        assert client.get(f"{path}/a%2Fb").json() == {"meta": {"a/b": "3"}}
        assert client.put(f"{path}/l", json={"meta": {"l": "4"}}).json() == {"meta": {"l": "4"}}
        assert fault_of(client.put(f"{path}/l", json={"meta": {"m": "4"}}))[0] == 400
        assert client.delete(f"{path}/k").status_code == 200
        for method in ("GET", "DELETE"):
            assert fault_of(client.request(method, f"{path}/k"))[:2] == (404, "itemNotFound")
        assert client.get(path).json() == {"metadata": {"l": "4", "a/b": "3"}}
        assert client.put(path, json={"metadata": {"z": ""}}).json() == {"metadata": {"z": ""}}
        mistakes: list[object] = [{"metadata": {"a": 1}}, {"metadata": {"": "1"}}, {}]
        for wrong in (*mistakes, {"metadata": None}):
            assert fault_of(client.post(path, json=wrong))[0] == 400
        assert client.get(path).json() == {"metadata": {"z": ""}}
        assert fault_of(client.get("/os-volumes/99/metadata"))[0] == 404


def test_there_are_no_volume_types(served: Served) -> None:
    with served.client() as client:
        for path in ("/os-volume-types", "/types"):
            assert client.get(path).json() == {"volume_types": []}
            assert fault_of(client.get(f"{path}/1"))[:2] == (404, "itemNotFound")


# -- discovery ---------------------------------------------------------------------------------


def test_the_identity_service_describes_itself_without_a_token(served: Served) -> None:
    """keystoneauth reads these before it asks for a token."""
    version = httpx.get(f"{served.url}/v2.0").json()["version"]
    assert (version["id"], version["status"]) == ("v2.0", "stable")
    assert version["links"] == [{"rel": "self", "href": f"{served.url}/v2.0/"}]
    for path in ("/v2.0/", "/identity/v2.0", "/identity/v2.0/"):
        assert httpx.get(f"{served.url}{path}").json() == {"version": version}, path
    for path in ("/identity", "/identity/"):
        root = httpx.get(f"{served.url}{path}")
        assert (root.status_code, root.json()) == (300, {"versions": {"values": [version]}})
    auth = {"passwordCredentials": {"username": ALICE.name, "password": ALICE.password}}
    below = httpx.post(f"{served.url}/identity/v2.0/tokens", json={"auth": auth})
    assert below.json()["access"]["token"]["tenant"]["id"] == DEMO.id


def test_versions_that_are_not_served_are_not_found(served: Served) -> None:
    """Not refused: a client that is refused while it looks for the way to a token waits for it."""
    for path in ("/v3", "/v3/", "/v3/auth/tokens", "/identity/v3", "/v1.0", "/v2", "/nothing"):
        for method in ("GET", "POST", "HEAD"):
            answer = httpx.request(method, f"{served.url}{path}")
            assert answer.status_code == 404, (method, path)


def test_every_route_is_open_on_purpose_or_closed() -> None:
    app = create_public_app(MemoryBlockStorage(), MemoryIdentity())
    paths = list(app.openapi()["paths"])
    below = [f"/identity{path}" for path in paths if path.startswith("/v2.0")]
    below += [f"/image{path}" for path in paths if path.startswith("/v2/")]
    for path in (*paths, *below):
        assert needs_token(tidy(path)) or tidy(path) in OPEN_PATHS, path


def test_one_compute_for_each_kind_of_client(served: Served) -> None:
    """libcloud looks for the name "nova", HP's fog for "Compute", novaclients of 2012 for one
    service of type compute."""
    auth = {"passwordCredentials": {"username": ALICE.name, "password": ALICE.password}}
    found = httpx.post(f"{served.url}/v2.0/tokens", json={"auth": auth}).json()["access"]
    services = {one["name"]: one for one in found["serviceCatalog"]}
    assert services["Compute"]["endpoints"] == services["nova"]["endpoints"]
    types = [one["type"] for one in found["serviceCatalog"]]
    assert len(types) == len(set(types))
    assert services["nova"]["type"] == "compute"


# -- HTTP --------------------------------------------------------------------------------------


def test_head_is_get_without_a_body(served: Served) -> None:
    with served.client() as client:
        volume = create(client)["id"]
        for path in ("/os-volumes", f"/os-volumes/{volume}", "/limits", f"{served.url}/"):
            got, head = client.get(path), client.head(path)
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-length"] == got.headers["content-length"]
            assert head.headers["content-type"] == "application/json"
        assert client.head("/os-volumes/99").status_code == 404
        assert client.head("/os-volumes/1/action").status_code == 405


def test_empty_segments_of_a_path_do_not_count(served: Served) -> None:
    with served.client() as client:
        volume = create(client)["id"]
        base, tenant = served.url, DEMO.id
        body = {"volumeAttachment": {"volumeId": volume}}
        attached = client.post(
            f"{base}//v1.1/{tenant}//servers//7//os-volume_attachments", json=body
        )
        assert attached.status_code == 200
        found = client.get(f"{base}/v1.1/{tenant}//servers/7/os-volume_attachments/")
        assert len(found.json()["volumeAttachments"]) == 1
        assert httpx.get(f"{base}//v2.0//").status_code == 200
        assert fault_of(httpx.get(f"{base}//v1.1//{tenant}//os-volumes"))[0] == 401


def exchange(served: Served, target: str, headers: str) -> tuple[int, Any]:
    """Status and document for a request with exactly this target."""
    address = urlsplit(served.url)
    request = f"GET {target} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n".encode()
    answer = b""
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        connection.sendall(request)
        while piece := connection.recv(65536):
            answer += piece
    head, _, content = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(content)


def test_a_whole_url_as_the_target(served: Served) -> None:
    """As clients send it that take us for a proxy; its host prevails (RFC 9112, 3.2.2)."""
    host = "Host: elsewhere\r\n"
    status, document = exchange(served, "http://bockd.example:8776/v1.1/", host)
    assert status == 200
    assert document["version"]["links"][0]["href"] == "http://bockd.example:8776/v1.1/"
    assert exchange(served, "HTTP://bockd.example", host)[0] == 200
    with served.client() as client:
        volume = create(client, display_name="a b")["id"]
        token = f"X-Auth-Token: {client.headers['X-Auth-Token']}\r\n"
        target = f"http://x/v1.1/{DEMO.id}/os-volumes?display_name=a%20b"
        assert exchange(served, target, host)[0] == 401
        status, document = exchange(served, target, host + token)
        assert [one["id"] for one in document["volumes"]] == [volume]
