"""The extension `bockd-trash`: what was deleted is listed, restored, and deleted for good; and
clients that do not know it see no difference."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bockd.blockstorage.contract import Quota
from bockd.blockstorage.trashcontract import TrashRules

from ..api.public import Served, fault_of, serving
from .pool_service import on_pool
from .requests import create, show, snapshot

KEPT = TrashRules(keep_seconds=3600.0)


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Served]:
    """A service that keeps what is deleted for an hour, for tenants of few volumes."""
    quota = Quota(volumes=2, gigabytes=3, snapshots=2)
    with serving(on_pool(tmp_path / "pool", quota, trash=KEPT)) as served:
        yield served


def trash(client: httpx.Client, query: str = "") -> list[Any]:
    found: list[Any] = client.get(f"/bockd-trash{query}").json()["trash"]
    return found


def restore(client: httpx.Client, node: object, wanted: object = None) -> httpx.Response:
    return client.post(f"/bockd-trash/{node}/action", json={"bockd-restore": wanted})


def test_clients_that_do_not_know_it_see_no_difference(kept: Served) -> None:
    """A deletion answers as ever, what was deleted is not found, and there is room in the quota."""
    with kept.client() as client:
        volume = create(client, size=3, display_name="web")["id"]
        shot = snapshot(client, volume).json()["snapshot"]["id"]
        assert client.delete(f"/os-snapshots/{shot}").status_code == 200
        answer = client.delete(f"/os-volumes/{volume}")
        assert (answer.status_code, answer.content) == (202, b"")
        for path, said in (
            (f"/os-volumes/{volume}", f"Volume {volume} could not be found."),
            (f"/os-snapshots/{shot}", f"Snapshot {shot} could not be found."),
        ):
            assert fault_of(client.get(path)) == (404, "itemNotFound", said)
            assert fault_of(client.delete(path)) == (404, "itemNotFound", said)
        for path in ("/os-volumes", "/volumes/detail", "/os-snapshots"):
            assert next(iter(client.get(path).json().values())) == []
        limits = client.get("/limits").json()["limits"]["absolute"]
        used = ("totalVolumesUsed", "totalGigabytesUsed", "totalSnapshotsUsed")
        assert [limits[name] for name in used] == [0, 0, 0]
        assert create(client, size=3, display_name="web")["id"] > shot


def test_what_was_deleted_is_listed_and_restored(kept: Served) -> None:
    with kept.client() as client:
        volume = create(client, size=2, display_name="web", display_description="of mine")["id"]
        before = show(client, volume)
        shot = snapshot(client, volume, display_name="then").json()["snapshot"]["id"]
        client.delete(f"/os-volumes/{volume}")
        client.delete(f"/os-snapshots/{shot}")
        of_volume, of_snapshot = trash(client)
        assert of_volume == {
            "id": volume,
            "kind": "volume",
            "displayName": "web",
            "displayDescription": "of mine",
            "size": 2,
            "status": "available",
            "createdAt": before["createdAt"],
            "deletedAt": of_volume["deletedAt"],
            "expiresAt": of_volume["expiresAt"],
            "consumesQuota": False,
            "bockd": {"name": "web", "size_bytes": 2 << 30},
        }
        assert of_volume["deletedAt"] < of_volume["expiresAt"]
        assert (of_snapshot["kind"], of_snapshot["volumeId"]) == ("snapshot", volume)
        assert trash(client, "/detail?limit=1") == [of_volume]
        assert trash(client, f"?marker={volume}") == [of_snapshot]
        assert client.get(f"/bockd-trash/{shot}").json() == {"trashed": of_snapshot}
        space = client.get(f"/bockd-trash/{volume}/bockd-space").json()["space"]
        assert space == {"exclusive_bytes": 0, "shared_bytes": 0}
        for node in (volume, shot):
            assert restore(client, node, {}).status_code == 202
            assert fault_of(restore(client, node))[:2] == (404, "itemNotFound")
        assert show(client, volume) == before
        assert trash(client) == []


def test_beyond_the_quota_nothing_is_restored(kept: Served) -> None:
    with kept.client() as client:
        volume = create(client, size=2)["id"]
        client.delete(f"/os-volumes/{volume}")
        create(client, size=2)
        answer = restore(client, volume)
        assert fault_of(answer)[:2] == (413, "overLimit")
        assert [one["id"] for one in trash(client)] == [volume]


def test_it_is_deleted_for_good(kept: Served) -> None:
    with kept.client() as client:
        for _ in range(2):
            volume = create(client, size=1)["id"]
            client.delete(f"/os-volumes/{volume}")
        assert client.delete(f"/bockd-trash/{volume}").status_code == 202
        assert fault_of(client.delete(f"/bockd-trash/{volume}"))[:2] == (404, "itemNotFound")
        assert client.delete("/bockd-trash").json() == {"deleted": 1}
        assert client.delete("/bockd-trash").json() == {"deleted": 0}
        assert trash(client) == []


def test_what_is_not_complete_does_not_go_to_the_trash(kept: Served) -> None:
    with kept.client() as client:
        volume = create(client, size=1)["id"]
        path = f"/os-volumes/{volume}?bockd-for-good"
        assert fault_of(client.delete(f"{path}=perhaps"))[:2] == (400, "badRequest")
        answer = client.delete(f"{path}=true")
        assert (answer.status_code, answer.content) == (202, b"")
        assert fault_of(client.get(f"/os-volumes/{volume}"))[:2] == (404, "itemNotFound")
        assert trash(client) == []
        kept_one = create(client, size=1)["id"]
        assert client.delete(f"/os-volumes/{kept_one}?bockd-for-good=false").status_code == 202
        assert [one["id"] for one in trash(client)] == [kept_one]


def test_what_is_another_tenants_is_not_found(kept: Served) -> None:
    with kept.client() as client, kept.client(kept.service.stranger) as stranger:
        volume = create(client, size=1)["id"]
        client.delete(f"/os-volumes/{volume}")
        assert trash(stranger) == []
        assert stranger.delete("/bockd-trash").json() == {"deleted": 0}
        path = f"/bockd-trash/{volume}"
        for answer in (
            stranger.get(path),
            stranger.get(f"{path}/bockd-space"),
            stranger.delete(path),
            restore(stranger, volume),
            client.get("/bockd-trash/web"),
            client.get(f"/bockd-trash/{volume + 1}"),
        ):
            assert fault_of(answer)[:2] == (404, "itemNotFound")
        for body in ({}, {"bockd-restore": None, "x": 1}, {"restore": None}, {"bockd-restore": 1}):
            answer = client.post(f"{path}/action", json=body)
            assert fault_of(answer)[:2] == (400, "badRequest")
        assert [one["id"] for one in trash(client)] == [volume]


def test_without_a_trash_there_is_nothing_in_it(served: Served) -> None:
    with served.client() as client:
        volume = create(client)["id"]
        client.delete(f"/os-volumes/{volume}")
        assert trash(client) == []
