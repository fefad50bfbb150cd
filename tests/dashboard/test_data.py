"""What the pages are told, and what they change, over a pool."""

from __future__ import annotations

from pathlib import Path

from tests.daemon.process import Bockd, serving
from tests.dashboard.visitor import Visitor, link_of, secret_of, visiting

MIB = 1 << 20


def tenant(operator: Visitor) -> str:
    """The first tenant's id."""
    found: str = operator.data("overview?fresh=true")["tenants"][0]["id"]
    return found


def test_a_volumes_life(daemon: Bockd, operator: Visitor) -> None:
    whose = tenant(operator)
    volume = operator.do("create-volume", tenant=whose, name="life", size_bytes=8 * MIB)["id"]
    with daemon.connected("life") as client:
        client.pwrite(b"x" * MIB, 0)
        snapshot = operator.do("snapshot", tenant=whose, volume=volume, name="then")["id"]
        client.pwrite(b"y" * MIB, MIB)
        (shown,) = (one for one in operator.data("activity")["exports"] if one["id"] == volume)
        assert (shown["writes"], shown["connections"]) == (2, 1)
        client.flush()
    daemon.wait_until_unused("life")
    space = operator.data(f"space?kind=volume&id={volume}")
    assert space == {"exclusive_bytes": MIB, "shared_bytes": MIB}

    clone = operator.do("create-volume", tenant=whose, name="copy", snapshot=snapshot)["id"]
    operator.do("extend", tenant=whose, volume=volume, size_bytes=16 * MIB)
    operator.do("revert", tenant=whose, volume=volume, snapshot=snapshot, name="life")
    with daemon.connected("life") as client:
        assert client.pread(2 * MIB, 0) == b"x" * MIB + bytes(MIB)
    daemon.wait_until_unused("life")

    operator.do("attach", tenant=whose, volume=volume, server="web1")
    found = {one["id"]: one for one in operator.data("overview?fresh=true")["volumes"]}
    assert (found[volume]["server"], found[volume]["device"]) == ("web1", "/dev/vdb")
    assert (found[volume]["status"], found[volume]["size_bytes"]) == ("in-use", 16 * MIB)
    assert found[clone]["from_snapshot"] == snapshot
    operator.do("detach", tenant=whose, volume=volume, server="web1")

    operator.do("delete-volume", tenant=whose, volume=clone, name="copy")
    gone = operator.do("delete-volume", tenant=whose, volume=volume, name="life")
    assert gone == {"kept": False}  # this daemon has no trash
    (left,) = operator.data("overview?fresh=true")["snapshots"]
    assert (left["name"], left["volume"]) == ("then", volume)
    operator.do("delete-snapshot", tenant=whose, snapshot=snapshot, name="then")
    assert operator.data("overview?fresh=true")["volumes"] == []


def test_what_was_deleted_is_kept_restored_and_deleted_for_good(tmp_path: Path) -> None:
    config = tmp_path / "bockd.toml"
    config.write_text("[trash]\nkeep_hours = 1\n")
    with serving(tmp_path / "pool", config=config) as keeping:
        url = link_of(keeping)
        with visiting(url) as operator:
            assert operator.enter(secret_of(url)).status_code == 200
            whose = tenant(operator)
            volume = operator.do("create-volume", tenant=whose, name="web", size_bytes=MIB)["id"]
            mine = {"tenant": whose, "node": volume}
            for _ in range(2):
                deleted = operator.do("delete-volume", tenant=whose, volume=volume, name="web")
                assert deleted == {"kept": True}
                seen = operator.data("overview?fresh=true")
                assert (seen["volumes"], seen["keep_seconds"]) == ([], 3600.0)
                (kept,) = seen["trash"]
                assert (kept["id"], kept["kind"], kept["name"]) == (volume, "volume", "web")
                space = operator.data(f"trashed-space?tenant={whose}&node={volume}")
                assert space == {"exclusive_bytes": 0, "shared_bytes": 0}
                operator.do("restore", **mine)
                assert operator.post("/do/restore", mine).status_code == 404
                (there,) = operator.data("overview?fresh=true")["volumes"]
                assert (there["id"], there["name"]) == (volume, "web")
            operator.do("delete-volume", tenant=whose, volume=volume, name="web")
            refused = operator.post("/do/delete-for-good", {**mine, "name": "other"})
            assert refused.status_code == 409
            assert operator.post("/do/restore", {**mine, "tenant": "other"}).status_code == 404
            operator.do("delete-for-good", **mine, name="web")
            assert operator.data("overview?fresh=true")["trash"] == []


def test_another_name_than_the_one_typed_is_not_destroyed(daemon: Bockd, operator: Visitor) -> None:
    whose = tenant(operator)
    volume = operator.do("create-volume", tenant=whose, name="kept", size_bytes=MIB)["id"]
    snapshot = operator.do("snapshot", tenant=whose, volume=volume, name="kept-1")["id"]
    bodies = {
        "delete-volume": {"volume": volume},
        "delete-snapshot": {"snapshot": snapshot},
        "revert": {"volume": volume, "snapshot": snapshot},
    }
    for path, body in bodies.items():
        for name in ("", "other", "kept "):
            answer = operator.post(f"/do/{path}", {"tenant": whose, "name": name, **body})
            assert answer.status_code == 409, path
            assert "nothing was done" in answer.json()["error"]["message"]
        assert operator.post(f"/do/{path}", {"tenant": whose, **body}).status_code == 400
    operator.do("delete-snapshot", tenant=whose, snapshot=snapshot, name="kept-1")
    operator.do("delete-volume", tenant=whose, volume=volume, name="kept")


def test_the_rules_are_those_of_block_storage(operator: Visitor) -> None:
    whose = tenant(operator)
    volume = operator.do("create-volume", tenant=whose, name="ruled", size_bytes=MIB)["id"]
    mine = {"tenant": whose, "volume": volume}
    refused = (
        ("extend", {**mine, "size_bytes": MIB}, 400),
        ("detach", {**mine, "server": "web1"}, 409),
        ("attach", {**mine, "server": ""}, 400),
        ("snapshot", {**mine, "tenant": "another", "name": "x"}, 404),
        ("create-volume", {"tenant": whose, "name": "nothing"}, 400),
        ("reopen", mine, 409),
        ("extend", {**mine, "size_bytes": "1"}, 400),
        ("snapshot", {**mine, "name": "x", "more": 1}, 400),
    )
    for path, body, status in refused:
        answer = operator.post(f"/do/{path}", body)
        assert answer.status_code == status, (path, answer.text)
        assert answer.json()["error"]["message"]
    operator.do("delete-volume", **mine, name="ruled")


def test_limits_and_a_profile_are_set_shown_and_taken_away(
    daemon: Bockd, operator: Visitor
) -> None:
    whose = tenant(operator)
    volume = operator.do("create-volume", tenant=whose, name="slowed", size_bytes=MIB)["id"]
    mine = {"tenant": whose, "volume": volume}

    def shown() -> dict[str, object]:
        (found,) = operator.data("overview?fresh=true")["volumes"]
        return {name: found[name] for name in ("limits", "own_limits", "profile")}

    assert shown() == {"limits": None, "own_limits": False, "profile": None}
    limits = {"iops": {"per_second": 500, "burst": 2000, "burst_seconds": 30}, "iops_size": 16384}
    operator.do("limit-volume", **mine, limits=limits)
    operator.do("profile-volume", **mine, profile="ssd-sata", seed=7)
    found = shown()
    assert isinstance(found["limits"], dict)
    assert {name: one for name, one in found["limits"].items() if one is not None} == limits
    assert (found["own_limits"], found["profile"]) == (True, "ssd-sata")
    in_bock = daemon.bock("volume", "profile", "slowed")
    assert (in_bock["profile"]["seed"], in_bock["limits"]["iops"]["burst"]) == (7, 2000)

    # What is shown can be given back.
    document = operator.data(f"profile?volume={volume}")["profile"]
    assert (document["name"], document["seed"]) == ("ssd-sata", 7)
    operator.do("profile-volume", **mine, profile={**document, "name": "mine"})
    assert operator.data(f"profile?volume={volume}")["profile"] == {**document, "name": "mine"}

    operator.do("limit-volume", **mine, limits={})
    operator.do("profile-volume", **mine, profile=None)
    assert shown() == {"limits": None, "own_limits": True, "profile": None}
    assert operator.data(f"profile?volume={volume}") == {"profile": None}
    operator.do("limit-volume", **mine, limits=None)
    assert not shown()["own_limits"]

    operator.do("limit-tenant", tenant=whose, limits={"bps": {"per_second": MIB}})
    (seen,) = operator.data("overview?fresh=true")["tenants"]
    assert (seen["limits"]["bps"]["per_second"], seen["own_limits"]) == (MIB, True)
    operator.do("limit-tenant", tenant=whose, limits=None)
    operator.do("delete-volume", **mine, name="slowed")


def test_bad_limits_and_profiles_are_refused_and_change_nothing(operator: Visitor) -> None:
    whose = tenant(operator)
    volume = operator.do("create-volume", tenant=whose, name="right", size_bytes=MIB)["id"]
    mine = {"tenant": whose, "volume": volume}
    one = {"iops": {"per_second": 1}}
    refused = (
        ("limit-volume", {**mine, "limits": {"iops": {"per_second": 0}}}, 400),
        ("limit-volume", {**mine, "limits": {"iops": {"per_second": 9, "burst": 8}}}, 400),
        ("limit-volume", {**mine, "limits": {"iops_size": 4096}}, 400),
        ("limit-volume", {**mine, "limits": {"more": {"per_second": 1}}}, 400),
        ("limit-volume", {**mine, "limits": {"iops": {"per_second": "1"}}}, 400),
        ("limit-volume", mine, 400),
        ("limit-volume", {**mine, "tenant": "another", "limits": one}, 404),
        ("limit-volume", {**mine, "volume": 4711, "limits": one}, 404),
        ("limit-tenant", {"tenant": "another", "limits": one}, 404),
        ("profile-volume", {**mine, "profile": "nothing"}, 404),
        ("profile-volume", {**mine, "profile": {"read_us": 1}}, 400),
        ("profile-volume", {**mine, "profile": "ssd-sata", "seed": -1}, 400),
        ("profile-volume", {**mine, "tenant": "another", "profile": None}, 404),
        ("profile-volume", mine, 400),
    )
    for path, body, status in refused:
        answer = operator.post(f"/do/{path}", body)
        assert answer.status_code == status, (path, body, answer.text)
        assert answer.json()["error"]["message"]
    (found,) = operator.data("overview?fresh=true")["volumes"]
    assert (found["limits"], found["own_limits"], found["profile"]) == (None, False, None)
    operator.do("delete-volume", **mine, name="right")


def test_the_pool_and_its_health(daemon: Bockd, operator: Visitor) -> None:
    health = operator.data("health")
    assert health["daemon"]["data_dir"] == str(daemon.data_dir)
    assert (health["scrub"]["damaged"], health["gateways"]) == ([], [])
    assert health["backups"] == daemon.bock("pool", "backups")
    assert operator.data("pool")["directory"] == str(daemon.data_dir)
    choices = operator.data("choices")
    assert (choices["servers"], choices["images"]) == ([], [])
    assert operator.do("check")["clean"]
