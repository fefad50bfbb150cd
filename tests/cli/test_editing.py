"""`bock volume rename` and `set`, and the same of snapshots, against a running daemon."""

from __future__ import annotations

from .daemon import Daemon


def test_a_volume_that_is_renamed_keeps_its_export(daemon: Daemon) -> None:
    before = daemon.bock_json("volume", "create", "shop-old", "--size", "1M")
    daemon.bock("volume", "create", "shop-other", "--size", "1M")
    told = daemon.refusal("volume", "rename", "shop-old", "shop-other")
    assert "a volume named 'shop-other' exists already" in told
    assert "looks like an id" in daemon.misuse("volume", "rename", "shop-old", "17")
    with daemon.connected(before["uri"], str(before["id"])):
        assert daemon.bock("volume", "rename", "shop-old", "shop-new") == (
            f"volume {before['id']} (shop-old) is called shop-new now\n"
            f"clients connect to it at {before['uri']} as before\n"
        )
        renamed = daemon.bock_json("volume", "rename", "shop-new", "shop-new")
        at = daemon.bock_json("volume", "show", "shop-new")["gateway"]
        assert renamed == {**before, "name": "shop-new", "connections": 1, "gateway": at}
    assert "no volume 'shop-old'" in daemon.refusal("volume", "show", "shop-old")
    # The name can be taken again; the export's name cannot.
    again = daemon.bock_json("volume", "create", "shop-old", "--size", "1M")
    assert f"shop-old-{again['id']}?" in again["uri"]
    for name in ("shop-old", "shop-new", "shop-other"):
        daemon.bock("volume", "delete", name)


def test_description_and_metadata_of_a_volume(daemon: Daemon) -> None:
    daemon.bock("volume", "create", "labelled", "--size", "1M")
    daemon.bock(
        *("volume", "set", "labelled", "--description", "the shop"),
        *("--metadata", "owner=ann", "--metadata", "a/b=c=d", "--metadata", "empty="),
    )
    found = daemon.bock_json("volume", "show", "labelled")
    assert found["description"] == "the shop"
    assert found["metadata"] == {"owner": "ann", "a/b": "c=d", "empty": ""}
    changed = daemon.bock_json(
        *("volume", "set", "labelled", "--metadata", "owner=bob"),
        *("--no-metadata", "a/b", "--no-metadata", "empty"),
    )
    assert changed["metadata"] == {"owner": "bob"}
    assert changed["description"] == "the shop"
    told = daemon.refusal(
        *("volume", "set", "labelled", "--metadata", "new=1", "--no-metadata", "none")
    )
    assert told.endswith("(labelled) has no metadata 'none'; nothing was changed")
    assert daemon.bock_json("volume", "show", "labelled") == {
        **found,
        **changed,
        "space": found["space"],
    }
    assert daemon.bock("volume", "set", "labelled", "--description", "").startswith(
        "changed volume"
    )
    assert not daemon.bock_json("volume", "show", "labelled")["description"]
    assert "say --description" in daemon.misuse("volume", "set", "labelled")
    assert "not KEY=VALUE" in daemon.misuse("volume", "set", "labelled", "--metadata", "owner")
    told = daemon.misuse("volume", "set", "labelled", "--metadata", "a=b", "--no-metadata", "a")
    assert told.endswith("set or remove 'a', not both")
    daemon.bock("volume", "delete", "labelled")


def test_name_and_description_of_a_snapshot(daemon: Daemon) -> None:
    daemon.bock("volume", "create", "frozen-origin", "--size", "1M")
    before = daemon.bock_json("snapshot", "create", "frozen-origin", "frozen")
    daemon.bock("snapshot", "create", "frozen-origin", "frozen-too")
    assert "'frozen-too' exists" in daemon.refusal("snapshot", "rename", "frozen", "frozen-too")
    renamed = daemon.bock_json("snapshot", "rename", "frozen", "frozen-then")
    assert renamed == {**before, "name": "frozen-then"}
    changed = daemon.bock_json("snapshot", "set", "frozen-then", "--description", "all stopped")
    assert changed == {**renamed, "description": "all stopped"}
    assert "say --description" in daemon.misuse("snapshot", "set", "frozen-then")
    daemon.bock("snapshot", "delete", "frozen-then")
    daemon.bock("snapshot", "delete", "frozen-too")
    daemon.bock("volume", "delete", "frozen-origin")
