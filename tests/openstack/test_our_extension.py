"""What the API has beyond the specification: the key "bockd", sizes in bytes, actions, space."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.openstack.replies import view_cache
from bockd.blockstorage.contract import Quota
from bockd.blockstorage.running import StorageContext
from bockd.model import CacheMode, IoLimits, IoRate
from bockd.pool.caches import CacheState
from bockd.pool.nodes import Nodes
from bockd.profiles.builtin import built_in
from bockd.publictexts import NOT_WRITTEN_BACK

from ..api.public import Served, fault_of, serving
from .pool_service import on_pool
from .requests import NEW_CACHE, attach, create, refuses_state, show, snapshot

MIB = 1 << 20
GIB = 1 << 30


def test_a_tenant_is_not_told_why_nothing_is_written_back() -> None:
    """The reason names files of the operator's."""
    state = CacheState(CacheMode.WRITE_BACK, "gw1", 1.0, 1, "/logs/one.seg is not what was written")
    assert view_cache(state)["error"] == NOT_WRITTEN_BACK
    assert view_cache(replace(state, trouble=None))["error"] is None


def create_exactly(client: httpx.Client, size_bytes: object, **more: object) -> httpx.Response:
    """Ask for a volume of so many bytes."""
    volume = {"bockd": {"size_bytes": size_bytes}, **more}
    return client.post("/os-volumes", json={"volume": volume})


def act(client: httpx.Client, volume: object, **action: object) -> httpx.Response:
    """One action, whose name has "-" where the keyword has "_"."""
    body = {name.replace("_", "-"): wanted for name, wanted in action.items()}
    return client.post(f"/os-volumes/{volume}/action", json=body)


def revert(client: httpx.Client, volume: object, source: object) -> httpx.Response:
    return client.post(f"/os-volumes/{volume}/action", json={"revert": {"snapshot_id": source}})


def test_limits_are_shown_to_the_tenant(tmp_path: Path) -> None:
    """Only the limits that there are; nothing of a volume that has none."""
    limits = IoLimits(iops=IoRate(500, 2000, 30), iops_size=16384)
    made: list[StorageContext] = []

    async def keep(context: StorageContext) -> None:
        made.append(context)

    with serving(on_pool(tmp_path / "pool", prepare=keep)) as served, served.client() as client:
        volume = create(client)["id"]
        assert "limits" not in show(client, volume)["bockd"]
        made[0].pool.index.update(lambda txn: Nodes(txn).limit_volume(volume, limits))
        assert show(client, volume)["bockd"]["limits"] == {
            "iops": {"per_second": 500, "burst": 2000, "burst_seconds": 30},
            "iops_size": 16384,
        }


def test_name_of_a_profile_is_shown_to_the_tenant(tmp_path: Path) -> None:
    made: list[StorageContext] = []

    async def keep(context: StorageContext) -> None:
        made.append(context)

    with serving(on_pool(tmp_path / "pool", prepare=keep)) as served, served.client() as client:
        volume = create(client)["id"]
        assert "profile" not in show(client, volume)["bockd"]
        profile = built_in("dying")
        made[0].pool.index.update(lambda txn: Nodes(txn).profile_volume(volume, profile))
        assert show(client, volume)["bockd"]["profile"] == "dying"


def test_the_key_of_a_volume_and_of_a_snapshot(served: Served) -> None:
    with served.client() as client:
        volume = create(client, display_name="web")
        taken = snapshot(client, volume["id"], display_name="then").json()["snapshot"]
        nameless = create(client)
        for view, name, export in (
            (volume, "web", "web"),
            (show(client, volume["id"]), "web", "web"),
            (taken, "then", "snapshot/then"),
            (nameless, f"volume-{nameless['id']}", f"volume-{nameless['id']}"),
        ):
            ours = dict(view["bockd"])
            assert ours.pop("daemon")
            assert ours.pop("last_error", None) is None  # of volumes only
            assert ours.pop("gateway", None) is None  # the same, where there may be several
            assert ours.pop("cache", NEW_CACHE) == NEW_CACHE  # the same, where there may be one
            assert ours == {
                "name": name,
                "export": export,
                "size_bytes": GIB,
                "content_bytes": GIB,
                "connections": 0,
                "error": None,
            }
        listed = client.get("/os-volumes").json()["volumes"]
        assert [one["bockd"]["name"] for one in listed] == ["web", nameless["bockd"]["name"]]


def test_display_names_repeat_and_names_in_the_pool_do_not(served: Served) -> None:
    """The first gets the name as its export, also of all tenants."""
    with served.client() as client, served.client(served.service.stranger) as stranger:
        made = [create(who, display_name="web") for who in (client, client, stranger)]
        assert [one["displayName"] for one in made] == ["web"] * 3
        first, second, third = (one["bockd"]["export"] for one in made)
        assert (first, second, third) == ("web", f"web-{made[1]['id']}", f"web-{made[2]['id']}")


def test_sizes_in_bytes(served: Served) -> None:
    with served.client() as client:
        small = create_exactly(client, MIB).json()["volume"]
        assert (small["size"], small["bockd"]["size_bytes"]) == (1, MIB)
        both = create_exactly(client, GIB + 4096, size="2").json()["volume"]
        assert (both["size"], both["bockd"]["size_bytes"]) == (2, GIB + 4096)
        taken = snapshot(client, small["id"]).json()["snapshot"]
        assert (taken["size"], taken["bockd"]["size_bytes"]) == (1, MIB)
        larger = create_exactly(client, 2 * MIB, snapshot_id=taken["id"]).json()["volume"]
        assert larger["bockd"]["size_bytes"] == 2 * MIB
        limits = client.get("/limits").json()["limits"]["absolute"]
        assert limits["totalGigabytesUsed"] == 4


@pytest.mark.parametrize("size", [0, -MIB, MIB - 4096, MIB + 1, 1 << 70, "1048576", 1e6, True, {}])
def test_bad_sizes_in_bytes(served: Served, size: object) -> None:
    with served.client() as client:
        assert fault_of(create_exactly(client, size))[:2] == (400, "badRequest")
        volume = create(client)["id"]
        action = act(client, volume, os_extend={"bockd": {"size_bytes": size}})
        assert fault_of(action)[:2] == (400, "badRequest")
        assert len(client.get("/os-volumes").json()["volumes"]) == 1


def test_sizes_that_contradict_each_other(served: Served) -> None:
    with served.client() as client:
        status, name, message = fault_of(create_exactly(client, GIB + 4096, size=1))
        assert (status, name) == (400, "badRequest")
        assert "contradict" in message


def test_extend(served: Served) -> None:
    with served.client() as client:
        volume = create(client)["id"]
        for wanted, size_bytes in (
            ({"new_size": 2}, 2 * GIB),
            ({"newSize": "3"}, 3 * GIB),
            ({"bockd": {"size_bytes": 3 * GIB + 4096}}, 3 * GIB + 4096),
            ({"new_size": 5, "bockd": {"size_bytes": 5 * GIB - 4096}}, 5 * GIB - 4096),
        ):
            answer = act(client, volume, os_extend=wanted)
            assert (answer.status_code, answer.content) == (202, b"")
            seen = show(client, volume)
            assert seen["bockd"]["size_bytes"] == size_bytes
            assert seen["size"] == -(-size_bytes // GIB)
        for refused in ({"new_size": 5}, {"new_size": 1}, {"new_size": 0}, {"new_size": "x"}, {}):
            # 5 GiB would be a growth of one block; all others are not.
            answer = act(client, volume, os_extend=refused)
            assert answer.status_code == (202 if refused == {"new_size": 5} else 400), answer.text
        assert client.get("/limits").json()["limits"]["absolute"]["totalGigabytesUsed"] == 5


def test_extend_beyond_the_quota(tmp_path: Path) -> None:
    with (
        serving(on_pool(tmp_path, Quota(volumes=5, gigabytes=3, snapshots=5))) as served,
        served.client() as client,
    ):
        volume = create(client)["id"]
        answer = act(client, volume, os_extend={"new_size": 4})
        assert answer.json() == {
            "overLimit": {
                "message": "Volume quota exceeded. You cannot extend volume "
                f"{volume} to a size of 4G",
                "code": 413,
                "retryAfter": 0,
            }
        }
        assert act(client, volume, os_extend={"new_size": 3}).status_code == 202


def test_revert(served: Served) -> None:
    with served.client() as client:
        volume, other = create(client)["id"], create(client)["id"]
        source = snapshot(client, volume).json()["snapshot"]["id"]
        answer = revert(client, volume, str(source))
        assert (answer.status_code, answer.content) == (202, b"")
        assert fault_of(revert(client, other, source))[:2] == (400, "badRequest")
        assert fault_of(revert(client, volume, 99))[:2] == (404, "itemNotFound")
        assert fault_of(revert(client, volume, "x"))[:2] == (404, "itemNotFound")
        attach(client, volume)
        refuses_state(revert(client, volume, source))


def test_reopen(served: Served) -> None:
    with served.client() as client:
        volume = create(client)["id"]
        refuses_state(act(client, volume, bockd_reopen=None))
        refuses_state(act(client, volume, bockd_reopen={}))


@pytest.mark.needs("no caches")
def test_a_pool_whose_volumes_have_no_cache_says_so(served: Served) -> None:
    with served.client() as client:
        volume = create(client)["id"]
        for action in (
            {"bockd_set_cache": {"mode": "write-back"}},
            {"bockd_set_cache": {"mode": "none"}},
            {"bockd_discard_cache": None},
        ):
            code, name, message = fault_of(act(client, volume, **action))
            assert (code, name) == (400, "badRequest")
            assert "has no cache in front of its volumes" in message
        assert "cache" not in show(client, volume)["bockd"]


def test_space(served: Served) -> None:
    with served.client() as client:
        volume = create(client)["id"]
        source = snapshot(client, volume).json()["snapshot"]["id"]
        for path in (f"/os-volumes/{volume}", f"/os-snapshots/{source}"):
            answer = client.get(f"{path}/bockd-space")
            assert answer.json() == {"space": {"exclusive_bytes": 0, "shared_bytes": 0}}
            assert fault_of(client.post(f"{path}/bockd-space"))[:2] == (405, "badMethod")
        for path in ("/os-volumes/99", "/os-volumes/x", "/os-snapshots/99"):
            assert fault_of(client.get(f"{path}/bockd-space"))[:2] == (404, "itemNotFound")


def test_where_snapshots_differ(served: Served) -> None:
    with served.client() as client:
        volume, other = create(client)["id"], create(client)["id"]
        older = snapshot(client, volume).json()["snapshot"]["id"]
        newer = snapshot(client, volume).json()["snapshot"]["id"]
        path = f"/os-snapshots/{newer}/bockd-changes"
        same = {"changes": {"ranges": [], "end_bytes": GIB}}
        for query in ({}, {"offset": 4096}, {"offset": str(1 << 62)}):
            answer = client.get(path, params={"since": older, **query})
            assert (answer.status_code, answer.json()) == (200, same)
        for wrong in ("", f"?since={older}&offset=-1", f"?since={older}&offset=x"):
            assert fault_of(client.get(path + wrong))[:2] == (400, "badRequest")
        for absent in (99, "x", other):
            answer = client.get(path, params={"since": absent})
            assert fault_of(answer)[:2] == (404, "itemNotFound")
        answer = client.get("/os-snapshots/99/bockd-changes", params={"since": older})
        assert fault_of(answer)[:2] == (404, "itemNotFound")


def test_a_few_snapshots_consume_no_quota(tmp_path: Path) -> None:
    quota = Quota(volumes=5, gigabytes=5, snapshots=1)
    uncounted = {"bockd": {"consumes_quota": False}}
    with serving(on_pool(tmp_path, quota)) as served, served.client() as client:
        volume, other = create(client)["id"], create(client)["id"]
        counted = snapshot(client, volume, bockd={"consumes_quota": True}).json()["snapshot"]
        assert "consumes_quota" not in counted["bockd"]
        assert snapshot(client, volume).status_code == 413
        taken = [snapshot(client, volume, **uncounted).json()["snapshot"] for _ in range(4)]
        assert [one["bockd"]["consumes_quota"] for one in taken] == [False] * 4
        refused = snapshot(client, volume, **uncounted)
        assert refused.status_code == 413
        assert "has 4 snapshots that consume no quota" in refused.text
        assert snapshot(client, other, **uncounted).status_code == 200
        assert client.get("/limits").json()["limits"]["absolute"]["totalSnapshotsUsed"] == 1
        for one in taken:
            assert client.delete(f"/os-snapshots/{one['id']}").status_code == 200
        assert client.get("/limits").json()["limits"]["absolute"]["totalSnapshotsUsed"] == 1
        assert snapshot(client, volume, **uncounted).status_code == 200
        assert client.delete(f"/os-snapshots/{counted['id']}").status_code == 200
        assert client.get("/limits").json()["limits"]["absolute"]["totalSnapshotsUsed"] == 0
        wrong: object
        for wrong in ({"consumes_quota": "no"}, {"colour": 1}, []):
            assert fault_of(snapshot(client, volume, bockd=wrong))[:2] == (400, "badRequest")


BAD_ACTIONS: list[Any] = [
    {},
    [],
    {"os-extend": {"new_size": 2}, "bockd-reopen": None},
    {"os-extend": None},
    {"os-extend": 2},
    {"os-extend": {"bockd": {"size_bytes": 2 << 30, "colour": 1}}},
    {"os_extend": {"new_size": 2}},
    {"revert": {}},
    {"revert": None},
    {"revert": {"snapshot_id": []}},
    {"bockd-reopen": 1},
    {"bockd-set-cache": None},
    {"bockd-set-cache": {"mode": "fast"}},
    {"bockd-discard-cache": 1},
    {"bockd-release": {"reason": 1}},
    {"os-reset_status": {"status": "available"}},
]


@pytest.mark.parametrize("body", BAD_ACTIONS)
def test_bad_actions_change_nothing(served: Served, body: object) -> None:
    with served.client() as client:
        volume = create(client)["id"]
        before = show(client, volume)
        answer = client.post(f"/os-volumes/{volume}/action", json=body)
        assert fault_of(answer)[:2] == (400, "badRequest")
        assert show(client, volume) == before


def test_strangers_find_nothing(served: Served) -> None:
    with served.client() as client, served.client(served.service.stranger) as stranger:
        volume = create(client)["id"]
        source = snapshot(client, volume).json()["snapshot"]["id"]
        theirs = create(stranger)["id"]
        for answer in (
            act(stranger, volume, os_extend={"new_size": 2}),
            act(stranger, volume, bockd_reopen=None),
            act(stranger, volume, bockd_set_cache={"mode": "none"}),
            act(stranger, volume, bockd_discard_cache=None),
            act(stranger, volume, bockd_hold={"reason": "theirs"}),
            act(stranger, volume, bockd_release=None),
            revert(stranger, volume, source),
            revert(stranger, theirs, source),
            stranger.get(f"/os-volumes/{volume}/bockd-space"),
            stranger.get(f"/os-snapshots/{source}/bockd-space"),
            stranger.get(f"/os-snapshots/{source}/bockd-changes?since={source}"),
        ):
            assert fault_of(answer)[:2] == (404, "itemNotFound")
        assert show(client, volume)["size"] == 1


def test_it_is_advertised(served: Served) -> None:
    with served.client() as client:
        aliases = [one["alias"] for one in client.get("/extensions").json()["extensions"]]
        assert aliases == [
            *("os-volumes", "os-snapshots", "os-volume_attachments", "bockd", "bockd-trash")
        ]
        described = client.get("/extensions/bockd").json()["extension"]["description"]
        for action in (
            "os-extend",
            "revert",
            "bockd-reopen",
            "bockd-set-cache",
            "bockd-discard-cache",
            "bockd-hold",
            "bockd-release",
        ):
            assert action in described


def test_hold_and_release(served: Served) -> None:
    with served.client() as client:
        volume = create(client)["id"]
        assert "hold" not in show(client, volume)["bockd"]
        assert act(client, volume, bockd_hold={"reason": "a move"}).status_code == 202
        held = show(client, volume)
        assert (held["status"], held["bockd"]["hold"]) == ("maintenance", "a move")
        refuses_state(attach(client, volume))
        refuses_state(act(client, volume, bockd_hold={"reason": "other"}))
        other = {"reason": "other", "instead_of": "a move"}
        assert act(client, volume, bockd_hold=other).status_code == 202
        assert act(client, volume, bockd_release={"reason": "a move"}).status_code == 409
        assert show(client, volume)["bockd"]["hold"] == "other"
        assert act(client, volume, bockd_release={"reason": "other"}).status_code == 202
        assert show(client, volume)["status"] == "available"
        assert act(client, volume, bockd_hold={"reason": "other"}).status_code == 202
        assert act(client, volume, bockd_release=None).status_code == 202
        freed = show(client, volume)
        assert (freed["status"], "hold" in freed["bockd"]) == ("available", False)
        refuses_state(act(client, volume, bockd_release=None))
        for reason in ({}, {"reason": ""}, {"reason": 1}, None):
            assert act(client, volume, bockd_hold=reason).status_code == 400
        refuses_state(client.delete(f"/os-volumes/{volume}", params={"hold": "a move"}))
        assert act(client, volume, bockd_hold={"reason": "other"}).status_code == 202
        answer = client.delete(f"/os-volumes/{volume}", params={"hold": "a move"})
        assert answer.status_code == 409
        assert show(client, volume)["status"] == "maintenance"
        answer = client.delete(f"/os-volumes/{volume}", params={"hold": "other"})
        assert answer.status_code == 202
        assert client.get(f"/os-volumes/{volume}").status_code == 404
