"""The public API in the dialect of its clients: spellings, strings, nulls, lists, aliases."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

from bockd.blockstorage.contract import Extension, Image, ImageId, Quota

from .memory_blockstorage import MemoryBlockStorage
from .public import Served, fault_of, without_ours

DISK = ImageId("0f3c")


def create(client: httpx.Client, **volume: object) -> Any:
    """A volume's record."""
    answer = client.post("/os-volumes", json={"volume": {"size": 1, **volume}})
    assert answer.status_code == 200, answer.text
    return answer.json()["volume"]


def snapshot(client: httpx.Client, **wanted: object) -> httpx.Response:
    return client.post("/os-snapshots", json={"snapshot": wanted})


def attach(client: httpx.Client, server: object, **wanted: object) -> httpx.Response:
    path = f"/servers/{server}/os-volume_attachments"
    return client.post(path, json={"volumeAttachment": wanted})


def add_image(storage: MemoryBlockStorage, name: str = "disk", image: ImageId = DISK) -> None:
    storage.images.append(Image(image, name, 3 << 30, 3, "qcow2", "ab12", 1340824835.0, 1 << 20))


def test_both_spellings(served: Served) -> None:
    with served.client() as client:
        snake = create(client, display_name="a", display_description="b", availability_zone="z")
        camel = create(client, displayName="a", displayDescription="b", availabilityZone="z")
        for made in (snake, camel):
            assert (made["displayName"], made["displayDescription"]) == ("a", "b")
            assert made["availabilityZone"] == "z"
        same = create(client, display_name="a", displayName="a")
        assert same["displayName"] == "a"
        wanted = {"size": 1, "display_name": "a", "displayName": "b"}
        answer = client.post("/os-volumes", json={"volume": wanted})
        assert fault_of(answer)[:2] == (400, "badRequest")
        assert "given twice" in fault_of(answer)[2]


def test_null_is_absent(served: Served) -> None:
    nothing = dict.fromkeys(
        ["display_name", "snapshot_id", "imageRef", "metadata", "volume_type", "unknown"]
    )
    with served.client() as client:
        made = create(client, **nothing)
        assert (made["displayName"], made["snapshotId"], made["metadata"]) == (None, "", {})
        assert create(client, metadata={"a": "b", "c": None})["metadata"] == {"a": "b"}
        answer = snapshot(client, volume_id=None)
        assert fault_of(answer)[:2] == (400, "badRequest")


@pytest.mark.parametrize(("size", "seen"), [(2, 2), ("2", 2), ("016", 16)])
def test_size_may_be_a_string(served: Served, size: object, seen: int) -> None:
    with served.client() as client:
        assert create(client, size=size)["size"] == seen


BAD_SIZES = [
    0,
    -1,
    "",
    "0",
    "-1",
    "#$%",
    "1.5",
    1.0,
    1.5,
    True,
    [],
    {},
    10**30,
    "9" * 400,
    "\uff11",
]


@pytest.mark.parametrize("size", BAD_SIZES)
def test_bad_sizes(served: Served, size: object) -> None:
    with served.client() as client:
        answer = client.post("/os-volumes", json={"volume": {"size": size}})
        assert fault_of(answer)[:2] == (400, "badRequest")
        assert client.get("/os-volumes").json() == {"volumes": []}


@pytest.mark.parametrize("force", [True, "true", "True", "1", "yes"])
def test_force_may_be_a_string(served: Served, force: object) -> None:
    with served.client() as client:
        volume = create(client)["id"]
        assert attach(client, 1, volumeId=volume).status_code == 200
        assert snapshot(client, volume_id=volume, force=force).status_code == 200


@pytest.mark.parametrize("force", [False, "false", "0", None])
def test_without_force_no_snapshot_of_an_attached_volume(served: Served, force: object) -> None:
    with served.client() as client:
        volume = create(client)["id"]
        assert attach(client, 1, volumeId=volume).status_code == 200
        status, name, message = fault_of(snapshot(client, volume_id=volume, force=force))
        assert (status, name) == (400, "badRequest")
        assert message.startswith("Invalid volume")


@pytest.mark.parametrize("force", ["maybe", "", 7, [True], "#$%"])
def test_malformed_force(served: Served, force: object) -> None:
    with served.client() as client:
        volume = create(client)["id"]
        answer = snapshot(client, volume_id=volume, force=force)
        assert fault_of(answer)[:2] == (400, "badRequest")


def test_ids_are_integers_and_may_come_as_strings(served: Served) -> None:
    with served.client() as client:
        volume = create(client)["id"]
        assert isinstance(volume, int)
        taken = snapshot(client, volume_id=str(volume)).json()["snapshot"]
        assert isinstance(taken["id"], int)
        assert taken["volumeId"] == volume
        copy = create(client, snapshot_id=str(taken["id"]))
        assert copy["snapshotId"] == taken["id"]
        attached = attach(client, "0042", volumeId=str(copy["id"])).json()["volumeAttachment"]
        assert without_ours(attached) == {
            "id": copy["id"],
            "volumeId": copy["id"],
            "serverId": "0042",
            "device": "/dev/vdb",
        }
        again = client.get("/os-volumes/%31").json()["volume"]
        assert again["id"] == volume == 1


def test_the_real_size_of_a_volume_from_a_snapshot_is_recorded(served: Served) -> None:
    with served.client() as client:
        taken = snapshot(client, volume_id=create(client, size=3)["id"]).json()["snapshot"]["id"]
        assert create(client, size=9, snapshot_id=taken)["size"] == 3
        answer = client.post("/os-volumes", json={"volume": {"snapshot_id": taken}})
        assert answer.json()["volume"]["size"] == 3
        assert client.get("/limits").json()["limits"]["absolute"]["totalGigabytesUsed"] == 9


def test_volume_from_a_volume(served: Served) -> None:
    with served.client() as client:
        origin = create(client, size=3)["id"]
        for size, expected in ((None, 3), (3, 3), (5, 5)):
            made = create(client, size=size, source_volid=str(origin))
            assert (made["size"], made["snapshotId"]) == (expected, "")
            assert made["bockd"]["source_volid"] == origin
        for wanted, status in (
            ({"size": 2, "source_volid": origin}, 400),
            ({"source_volid": origin, "snapshot_id": 1}, 400),
            ({"source_volid": 10**6}, 404),
            ({"size": 1, "source_volid": "x"}, 404),
        ):
            answer = client.post("/os-volumes", json={"volume": wanted})
            assert fault_of(answer)[0] == status
        assert "source_volid" not in create(client, source_volid="")["bockd"]


def test_volume_from_an_image(served: Served, storage: MemoryBlockStorage) -> None:
    add_image(storage)
    with served.client() as client:
        made = create(client, size=4, imageRef=DISK)
        assert (made["imageRef"], made["size"], made["snapshotId"]) == (DISK, 4, "")
        assert create(client, size=None, imageRef=DISK)["size"] == 3
        for link in (f"{served.url}/v2/images/{DISK}", f"http://old/v1.1/7/images/{DISK}/"):
            assert create(client, size=4, image_ref=link)["imageRef"] == DISK
        for wanted in (
            {"size": 2, "imageRef": DISK},
            {"size": 4, "imageRef": DISK, "snapshot_id": 1},
        ):
            answer = client.post("/os-volumes", json={"volume": wanted})
            assert fault_of(answer)[:2] == (400, "badRequest")
        answer = client.post("/os-volumes", json={"volume": {"size": 4, "imageRef": "../x"}})
        assert fault_of(answer)[:2] == (404, "itemNotFound")


def test_over_quota(served: Served, storage: MemoryBlockStorage) -> None:
    storage.quota = Quota(volumes=1, gigabytes=10, snapshots=0)
    with served.client() as client:
        volume = create(client)["id"]
        answer = client.post("/os-volumes", json={"volume": {"size": 1}})
        assert answer.status_code == 413
        assert answer.json() == {
            "overLimit": {
                "message": "Volume quota exceeded. You cannot create a volume of size 1G",
                "code": 413,
                "retryAfter": 0,
            }
        }
        assert fault_of(snapshot(client, volume_id=volume))[:2] == (413, "overLimit")
        absolute = client.get("/limits").json()["limits"]["absolute"]
        assert absolute == {
            "maxTotalVolumes": 1,
            "maxTotalVolumeGigabytes": 10,
            "maxTotalSnapshots": 0,
            "totalVolumesUsed": 1,
            "totalGigabytesUsed": 1,
            "totalSnapshotsUsed": 0,
        }


def test_pages_of_lists(served: Served) -> None:
    with served.client() as client:
        ids = [create(client, display_name=name)["id"] for name in "abab"]
        for query, expected in [
            ("", ids),
            ("limit=2", ids[:2]),
            ("limit=0", ids),
            ("limit=99999999999999999999", ids),
            (f"marker={ids[1]}", ids[2:]),
            (f"marker={ids[1]}&limit=1", ids[2:3]),
            ("marker=99999999999999999999999", []),
            ("offset=3", ids[3:]),
            ("offset=99999999999999999999999", []),
            ("display_name=a", [ids[0], ids[2]]),
            ("display_name=c", []),
            ("all_tenants=1", ids),
        ]:
            for path in ("/os-volumes", "/os-volumes/detail", "/volumes/", "/volumes/detail/"):
                seen = client.get(f"{path}?{query}").json()["volumes"]
                assert [one["id"] for one in seen] == expected, (path, query)


@pytest.mark.parametrize("name", ["limit", "marker", "offset"])
@pytest.mark.parametrize("value", ["-1", "", "a", "1.5", "%C2%B2", "+1", "1_0", "9" * 5000])
def test_bad_pages(served: Served, name: str, value: str) -> None:
    with served.client() as client:
        for path in ("/os-volumes", "/os-snapshots"):
            answer = client.get(f"{path}?{name}={value}")
            assert fault_of(answer)[:2] == (400, "badRequest")


def test_aliases_and_slashes(served: Served) -> None:
    with served.client() as client:
        volume = client.post("/volumes/", json={"volume": {"size": 1}}).json()["volume"]["id"]
        taken = client.post("/snapshots", json={"snapshot": {"volume_id": volume}})
        assert taken.status_code == 200
        for path in ("os-volumes", "volumes"):
            for slash in ("", "/"):
                seen = client.get(f"/{path}/{volume}{slash}")
                assert seen.json()["volume"]["id"] == volume
        for path in ("os-snapshots", "snapshots", "snapshots/detail"):
            assert len(client.get(f"/{path}/").json()["snapshots"]) == 1
        assert client.delete(f"/volumes/{volume}/").status_code == 202


def test_attachments(served: Served) -> None:
    with served.client() as client:
        one, two = create(client)["id"], create(client)["id"]
        base = "/servers/258315/os-volume_attachments"
        assert attach(client, 258315, volumeId=one, device="/dev/vdf").status_code == 200
        in_path = client.post(f"{base}/{two}", json={"volumeAttachment": {"device": None}})
        second = {"device": "/dev/vdb", "serverId": 258315, "id": two, "volumeId": two}
        assert without_ours(in_path.json()["volumeAttachment"]) == second
        assert client.get(f"{base}/{two}").json() == in_path.json()
        assert len(client.get(base).json()["volumeAttachments"]) == 2
        status, name, message = fault_of(attach(client, 7, volumeId=one))
        assert (status, name) == (400, "badRequest")
        assert message.startswith("Invalid volume")
        assert client.delete(f"{base}/{one}").status_code == 202
        assert fault_of(client.delete(f"{base}/{one}"))[:2] == (404, "itemNotFound")
        assert fault_of(client.get(f"{base}/{one}"))[:2] == (404, "itemNotFound")
        assert fault_of(attach(client, 258315, volumeId=one, device="/dev/sdb"))[0] == 409
        assert fault_of(attach(client, 258315, volumeId=one, device="sdb"))[0] == 400


def test_path_and_body_name_one_volume(served: Served) -> None:
    with served.client() as client:
        volume = create(client)["id"]
        path = f"/servers/1/os-volume_attachments/{volume}"
        other = client.post(path, json={"volumeAttachment": {"volumeId": volume + 1}})
        assert fault_of(other)[:2] == (400, "badRequest")
        same = client.post(path, json={"volumeAttachment": {"volumeId": str(volume)}})
        assert same.status_code == 200
        nothing = client.post("/servers/1/os-volume_attachments", json={"volumeAttachment": {}})
        assert fault_of(nothing)[:2] == (400, "badRequest")


def test_servers(served: Served) -> None:
    with served.client() as client:
        server = client.get("/servers/258315").json()["server"]
        assert (server["id"], server["status"]) == (258315, "ACTIVE")
        assert server["links"] == [{"href": f"{client.base_url}servers/258315", "rel": "self"}]
        assert client.get("/servers/4b9f-a1").json()["server"]["id"] == "4b9f-a1"
        assert fault_of(client.get("/servers/a b"))[:2] == (404, "itemNotFound")


def test_extensions(served: Served) -> None:
    with served.client() as client:
        (listed,) = client.get("/extensions").json()["extensions"]
        keys = {"alias", "name", "namespace", "updated", "description", "links"}
        assert listed.keys() == keys == {*Extension.__dataclass_fields__, "links"}
        shown = client.get("/extensions/os-volumes").json()
        assert shown == {"extension": listed}
        assert fault_of(client.get("/extensions/none"))[:2] == (404, "itemNotFound")


def test_images(served: Served, storage: MemoryBlockStorage) -> None:
    for number in range(3):
        add_image(storage, f"disk{number}", ImageId(f"{number:x}"))
    with served.client() as client:
        url = f"{served.url}/v2/images"
        first = client.get(url, params={"limit": 2}).json()
        assert [image["id"] for image in first["images"]] == ["0", "1"]
        assert first["first"] == "/v2/images?limit=2"
        rest = client.get(f"{served.url}{first['next']}").json()
        assert [image["id"] for image in rest["images"]] == ["2"]
        assert "next" not in rest
        assert client.get(f"{served.url}/image{first['next']}").json() == rest
        named = client.get(url, params={"name": "disk1"}).json()
        assert [image["id"] for image in named["images"]] == ["1"]
        image = client.get(f"{url}/1").json()
        assert image == {
            "id": "1",
            "name": "disk1",
            "status": "active",
            "visibility": "public",
            "protected": False,
            "container_format": "bare",
            "disk_format": "qcow2",
            "size": 1 << 20,
            "virtual_size": 3 << 30,
            "min_disk": 3,
            "min_ram": 0,
            "checksum": None,
            "os_hash_algo": "sha256",
            "os_hash_value": "ab12",
            "os_hidden": False,
            "owner": None,
            "tags": [],
            "created_at": "2012-06-27T19:20:35Z",
            "updated_at": "2012-06-27T19:20:35Z",
            "self": "/v2/images/1",
            "file": "/v2/images/1/file",
            "schema": "/v2/schemas/image",
        }
        for path in ("/9", "/1/file", "/9/file", "/..%2f1"):
            assert fault_of(client.get(f"{url}{path}"))[:2] == (404, "itemNotFound")
        for bad in ({"marker": "9"}, {"limit": "-1"}, {"limit": "x"}):
            assert fault_of(client.get(url, params=bad))[:2] == (400, "badRequest")


def test_filters_of_images(served: Served, storage: MemoryBlockStorage) -> None:
    for number in range(3):
        add_image(storage, f"disk{number % 2}", ImageId(f"{number:x}"))
    with served.client() as client:
        url = f"{served.url}/v2/images"
        for filters, found in (
            ({"name": "disk0"}, ["0", "2"]),
            ({"name": "disk0", "id": "2"}, ["2"]),
            ({"visibility": "private"}, []),
            ({"visibility": "public", "status": "active", "sort_key": "name"}, ["0", "1", "2"]),
            ({"os_hash_value": "00"}, []),
        ):
            images = client.get(url, params=filters).json()["images"]
            assert [image["id"] for image in images] == found, filters
        page = client.get(url, params={"name": "disk0", "limit": "1"}).json()
        assert [image["id"] for image in page["images"]] == ["0"]
        rest = client.get(f"{served.url}{page['next']}").json()
        assert [image["id"] for image in rest["images"]] == ["2"]  # the filter goes on


def test_schemas_of_images(served: Served, storage: MemoryBlockStorage) -> None:
    add_image(storage)
    with served.client() as client:
        listed = client.get(f"{served.url}/v2/images").json()
        (image,) = listed["images"]
        schema = client.get(f"{served.url}{image['schema']}").json()
        assert schema["name"] == "image"
        assert schema["properties"].keys() == image.keys()
        assert all(about["readOnly"] for about in schema["properties"].values())
        whole = client.get(f"{served.url}{listed['schema']}").json()
        assert whole["properties"]["images"]["items"] == schema
        assert listed.keys() <= whole["properties"].keys()


def test_versions_of_the_image_service(served: Served) -> None:
    found = httpx.get(f"{served.url}/image").json()
    assert httpx.get(f"{served.url}/image/versions").json() == found
    (version,) = found["versions"]
    assert version["status"] == "CURRENT"
    assert version["id"].startswith("v2.")
    (link,) = version["links"]
    with served.client() as client:
        assert client.get(f"{link['href']}images").json()["images"] == []


def test_dates(served: Served) -> None:
    with served.client() as client:
        made = create(client)
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", made["createdAt"])
        taken = snapshot(client, volume_id=made["id"]).json()["snapshot"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}", taken["createdAt"])
