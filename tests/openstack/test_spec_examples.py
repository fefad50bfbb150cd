"""The specification's curl examples, run by a shell as it prints them, give the bodies it prints.

Substituted are the placeholders, and the ids of volumes and snapshots that its author had. What the
bodies have beyond the printed ones is one key of ours, "bockd".
"""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any

import httpx
import pytest

from ..api.public import ANSWER_SECONDS, Served, without_ours
from ..daemon.driver import features
from . import examples
from .requests import NEW_CACHE

CURL_SECONDS = 30
DATE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")
PRECISE_DATE = re.compile(DATE.pattern + r"\.\d{6}")
SERVER = "258315"


class Shell:
    """Runs examples as one user."""

    def __init__(self, served: Served) -> None:
        self.url = served.url
        self.tenant = served.service.account.tenant_id
        auth = served.service.account.auth()
        answer = httpx.post(f"{served.url}/v2.0/tokens", json=auth, timeout=ANSWER_SECONDS)
        self.token = answer.json()["access"]["token"]["id"]

    def run(self, example: str, **ids: object) -> tuple[int, Any]:
        """Status and body. `ids` are for `{volume_id}` and its like; `_31=7` puts 7 for 31."""
        command = example.strip()
        places = {
            "{Auth_Token}": self.token,
            "<Auth_Token>": self.token,
            "{BaseUri}": self.url,
            "{tenant_id}": self.tenant,
            "{tennant_id}": self.tenant,
            "{server_id}": SERVER,
        }
        # Bare numbers first, and whole: the port and the token have digits of their own.
        for name, value in ids.items():
            if name.startswith("_"):
                command = re.sub(rf"\b{name[1:]}\b", str(value), command)
            else:
                places[f"{{{name}}}"] = str(value)
        for place, text in places.items():
            command = command.replace(place, text)
        done = subprocess.run(
            ["bash", "-c", command], capture_output=True, timeout=CURL_SECONDS, check=True
        )
        return parse_answer(done.stdout)

    def volume(self) -> int:
        """A new volume's id."""
        status, body = self.run(examples.CREATE_VOLUME)
        assert status == 200
        return int(body["volume"]["id"])

    def snapshot(self, volume: int) -> int:
        """A new snapshot's id."""
        status, body = self.run(examples.CREATE_SNAPSHOT, _18818=volume)
        assert status == 200
        return int(body["snapshot"]["id"])


def parse_answer(output: bytes) -> tuple[int, Any]:
    """What `curl -i` prints: status line, headers, body."""
    head, _, body = output.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body) if body else None


@pytest.fixture
def shell(served: Served) -> Shell:
    return Shell(served)


def volume_like(
    seen: Any, *, opened_by: str | None = None, **different: object
) -> dict[str, object]:
    """The body of 4.4.2.2, with what differs; the id and the date are as seen. `opened_by` is the
    gateway that has the volume open, where there may be several."""
    assert isinstance(seen["id"], int)
    assert DATE.fullmatch(seen["createdAt"])
    return {
        "status": "creating",
        "displayDescription": "Test Volume desc",
        "availabilityZone": "nova",
        "displayName": "Test Volume",
        "attachments": [{}],
        "volumeType": None,
        "snapshotId": "",
        "size": 1,
        "id": seen["id"],
        "createdAt": seen["createdAt"],
        "metadata": {},
        "bockd": {**our_key(seen, 1 << 30), "last_error": None, **only_in_some_pools(opened_by)},
        **different,
    }


def snapshot_like(seen: Any, volume: int, **different: object) -> dict[str, object]:
    """The body of 4.4.4.1, with what differs."""
    assert isinstance(seen["id"], int)
    return {
        "status": "available",
        "displayDescription": "Test description",
        "displayName": "TestSnapshot2",
        "volumeId": volume,
        "id": seen["id"],
        "createdAt": seen["createdAt"],
        "size": 1,
        "bockd": our_key(seen, 1 << 30),
        **different,
    }


def only_in_some_pools(opened_by: str | None) -> dict[str, object]:
    """Return what is told of the gateway that has a volume open, where there may be several, and of
    its cache, where it may have one: that of a new volume."""
    told: dict[str, object] = {}
    if features().several_gateways:
        told["gateway"] = opened_by
    if features().caches:
        told["cache"] = NEW_CACHE
    return told


def our_key(seen: Any, size_bytes: int) -> dict[str, object]:
    """What is under "bockd"; the names are as seen."""
    named = {name: seen["bockd"][name] for name in ("daemon", "name", "export")}
    assert all(isinstance(name, str) and name for name in named.values())
    sizes = {"size_bytes": size_bytes, "content_bytes": size_bytes}
    return {**named, **sizes, "connections": 0, "error": None}


def test_version_info(shell: Shell) -> None:
    guide = "http://docs.rackspacecloud.com/servers/api/v1.1/"
    assert shell.run(examples.VERSION_INFO) == (
        200,
        {
            "version": {
                "status": "CURRENT",
                "updated": "2011-01-21T11:33:21Z",
                "media-types": [
                    {
                        "base": "application/xml",
                        "type": "application/vnd.openstack.compute-v1.1+xml",
                    },
                    {
                        "base": "application/json",
                        "type": "application/vnd.openstack.compute-v1.1+json",
                    },
                ],
                "id": "v1.1",
                "links": [
                    {"href": f"{shell.url}/v1.1/", "rel": "self"},
                    {
                        "href": f"{guide}cs-devguide-20110125.pdf",
                        "type": "application/pdf",
                        "rel": "describedby",
                    },
                    {
                        "href": f"{guide}application.wadl",
                        "type": "application/vnd.sun.wadl+xml",
                        "rel": "describedby",
                    },
                ],
            }
        },
    )


def test_version_list(shell: Shell) -> None:
    assert shell.run(examples.VERSION_LIST) == (
        200,
        {
            "versions": [
                {
                    "status": status,
                    "updated": "2011-01-21T11:33:21Z",
                    "id": version,
                    "links": [{"href": f"{shell.url}/{version}/", "rel": "self"}],
                }
                for status, version in [("CURRENT", "v1.1"), ("DEPRECATED", "v1.0")]
            ]
        },
    )


def test_list_volumes(shell: Shell) -> None:
    first, second = shell.volume(), shell.volume()
    status, body = shell.run(examples.LIST_VOLUMES)
    assert status == 200
    assert body == {
        "volumes": [
            volume_like(seen, id=volume, status="available", imageRef="")
            for seen, volume in zip(body["volumes"], (first, second), strict=True)
        ]
    }


def test_create_volume(shell: Shell) -> None:
    status, body = shell.run(examples.CREATE_VOLUME)
    assert (status, body) == (200, {"volume": volume_like(body["volume"])})


def test_create_volume_from_snapshot(shell: Shell) -> None:
    snapshot = shell.snapshot(shell.volume())
    status, body = shell.run(examples.CREATE_VOLUME_FROM_SNAPSHOT, _31=snapshot)
    name = f"Test Volume from snapshot {snapshot}"
    expected = volume_like(body["volume"], displayName=name, snapshotId=snapshot)
    assert (status, body) == (200, {"volume": expected})


def test_create_volume_with_metadata(shell: Shell) -> None:
    status, body = shell.run(examples.CREATE_VOLUME_WITH_METADATA)
    expected = volume_like(body["volume"], metadata={"VolMeta": "VolMetaValue"})
    assert (status, body) == (200, {"volume": expected})


def test_show_volume(shell: Shell) -> None:
    volume = shell.volume()
    status, body = shell.run(examples.SHOW_VOLUME, volume_id=volume)
    expected = volume_like(body["volume"], id=volume, status="available")
    assert (status, body) == (200, {"volume": expected})


def test_delete_volume(shell: Shell) -> None:
    volume = shell.volume()
    assert shell.run(examples.DELETE_VOLUME, volume_id=volume) == (202, None)
    assert shell.run(examples.SHOW_VOLUME, volume_id=volume) == (
        404,
        {"itemNotFound": {"message": f"Volume {volume} could not be found.", "code": 404}},
    )


def test_list_attachments(shell: Shell) -> None:
    assert shell.run(examples.LIST_ATTACHMENTS) == (200, {"volumeAttachments": []})
    volume = shell.volume()
    shell.run(examples.ATTACH_VOLUME, _5825=volume)
    attached = {"device": "/dev/sdf", "serverId": 258315, "id": volume, "volumeId": volume}
    status, listed = shell.run(examples.LIST_ATTACHMENTS)
    assert (status, list(listed)) == (200, ["volumeAttachments"])
    assert [without_ours(one) for one in listed["volumeAttachments"]] == [attached]


def test_attach_volume(shell: Shell) -> None:
    volume = shell.volume()
    # The document prints the two ids as strings; its clients want integers, and the rest too.
    attached = {"device": "/dev/sdf", "serverId": 258315, "id": volume, "volumeId": volume}
    status, answer = shell.run(examples.ATTACH_VOLUME, _5825=volume)
    assert (status, list(answer)) == (200, ["volumeAttachment"])
    assert without_ours(answer["volumeAttachment"]) == attached
    _, body = shell.run(examples.SHOW_VOLUME, volume_id=volume)
    # It is opened to see whether it can be, and closed when the daemon finds it idle.
    differs = {"status": "in-use", "attachments": [attached]}
    assert body == {"volume": volume_like(body["volume"], opened_by="tested", **differs)}


def test_detach_volume(shell: Shell) -> None:
    volume = shell.volume()
    shell.run(examples.ATTACH_VOLUME, _5825=volume)
    assert shell.run(examples.DETACH_VOLUME, volume_id=volume) == (202, None)
    assert shell.run(examples.LIST_ATTACHMENTS) == (200, {"volumeAttachments": []})


def test_list_snapshots(shell: Shell) -> None:
    volume = shell.volume()
    first, second = shell.snapshot(volume), shell.snapshot(volume)
    status, body = shell.run(examples.LIST_SNAPSHOTS)
    seen = body["snapshots"]
    assert all(DATE.fullmatch(one["createdAt"]) for one in seen)
    assert [one["id"] for one in seen] == [first, second]
    assert (status, body) == (200, {"snapshots": [snapshot_like(one, volume) for one in seen]})


def test_create_snapshot(shell: Shell) -> None:
    volume = shell.volume()
    status, body = shell.run(examples.CREATE_SNAPSHOT, _18818=volume)
    assert PRECISE_DATE.fullmatch(body["snapshot"]["createdAt"])
    expected = snapshot_like(body["snapshot"], volume, status="creating")
    assert (status, body) == (200, {"snapshot": expected})


def test_create_snapshot_of_nothing(shell: Shell) -> None:
    assert shell.run(examples.CREATE_SNAPSHOT, _18818=18819) == (
        404,
        {"itemNotFound": {"message": "Volume 18819 could not be found.", "code": 404}},
    )


def test_show_snapshot(shell: Shell) -> None:
    volume = shell.volume()
    snapshot = shell.snapshot(volume)
    status, body = shell.run(examples.SHOW_SNAPSHOT, snapshot_id=snapshot)
    assert DATE.fullmatch(body["snapshots"]["createdAt"])
    expected = snapshot_like(body["snapshots"], volume, id=snapshot)
    # "snapshots" is what the document prints, "snapshot" what every client reads.
    assert (status, body) == (200, {"snapshots": expected, "snapshot": expected})


def test_delete_snapshot(shell: Shell) -> None:
    snapshot = shell.snapshot(shell.volume())
    assert shell.run(examples.DELETE_SNAPSHOT, snapshot_id=snapshot) == (200, None)
    status, body = shell.run(examples.SHOW_SNAPSHOT, snapshot_id=snapshot)
    assert (status, list(body)) == (404, ["itemNotFound"])
