"""What `bock` shows of gateways: nothing where one daemon serves the pool."""

from __future__ import annotations

from typing import Any

import pytest

from bockd.cli.attachment import ways
from bockd.cli.records import read_volume, read_way_in
from bockd.cli.volume import volume_fields

from .daemon import Daemon

VOLUME = {
    "id": 7,
    "displayName": "web",
    "displayDescription": None,
    "size": 1,
    "status": "available",
    "createdAt": "2026-11-28T18:00:00",
    "metadata": {},
    "snapshotId": "",
    "attachments": [{}],
}
ATTACHMENT = {"id": 7, "volumeId": 7, "serverId": 1, "device": "/dev/vdb"}


@pytest.mark.parametrize(
    ("ours", "shown"),
    [({}, []), ({"gateway": None}, ["none"]), ({"gateway": "gw1"}, ["gw1"])],
)
def test_who_has_a_volume(ours: dict[str, Any], shown: list[str]) -> None:
    fields = volume_fields(read_volume({**VOLUME, "bockd": ours}, None))
    assert [value for title, value in fields if title == "gateway"] == shown


def test_the_ways_in() -> None:
    alone = read_way_in({**ATTACHMENT, "bockd": {"uri": "nbd://a/x", "unix_uri": "nbd+unix:///x"}})
    assert ways(alone) == [("uri", "nbd://a/x"), ("unix uri", "nbd+unix:///x")]
    several = {"uri": "nbd://a/x", "uris": ["nbd://a/x", "nbd://b/x"], "unix_uri": None}
    assert ways(read_way_in({**ATTACHMENT, "bockd": several})) == [
        ("uri", "nbd://a/x"),
        ("uri", "nbd://b/x"),
    ]
    assert ways(read_way_in({**ATTACHMENT, "bockd": {}})) == []


@pytest.mark.needs("one daemon")
def test_a_pool_of_one_daemon_has_no_gateways(daemon: Daemon) -> None:
    assert daemon.bock_json("gateway", "list") == []
    assert daemon.bock("gateway", "list").split() == ["NAME", "NBD", "API", "SINCE"]
