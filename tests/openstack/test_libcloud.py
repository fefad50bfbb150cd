"""apache-libcloud's OpenStack 1.1 driver, unmodified, lives a volume's whole life here.

It authenticates with Keystone v2 and finds the endpoint in the service catalog (section 3.3).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from libcloud.common.exceptions import BaseHTTPError
from libcloud.common.types import InvalidCredsError
from libcloud.compute.base import Node
from libcloud.compute.types import NodeState, StorageVolumeState

from bockd.blockstorage.contract import UNLIMITED, Quota, TenantId
from bockd.blockstorage.records import Ledger
from bockd.blockstorage.service import PoolBlockStorage
from bockd.drivers.local.format.catalogue import Catalogue
from bockd.model import VolumeId
from bockd.pool.index import Transaction

from ..api.public import Served, without_ours
from .libcloud_driver import connect

EVERYTHING = Quota(UNLIMITED, UNLIMITED, UNLIMITED)


# libcloud forgets connections without closing them.
pytestmark = [
    pytest.mark.usefixtures("forgotten_connections"),
    pytest.mark.filterwarnings(
        "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
    ),
]


def server_of(driver: Any) -> Node:
    """A server, as the driver reads it from the API."""
    node: Node = driver.ex_get_node_details("258315")
    assert (node.id, node.state) == ("258315", NodeState.RUNNING)
    return node


def test_the_whole_life(served: Served) -> None:
    driver = connect(served)
    volume = driver.create_volume(2, "first")
    assert (volume.name, volume.size) == ("first", 2)
    assert volume.extra["metadata"] == {"contents": "first"}
    assert driver.ex_get_volume(volume.id).state == StorageVolumeState.AVAILABLE
    assert [one.id for one in driver.list_volumes()] == [volume.id]

    assert driver.attach_volume(server_of(driver), volume)
    attached = driver.ex_get_volume(volume.id)
    assert attached.state == StorageVolumeState.INUSE
    assert attached.extra["attachments"] == [
        {"id": volume.id, "volumeId": volume.id, "serverId": 258315, "device": "/dev/vdb"}
    ]
    listed = driver.connection.request("/servers/258315/os-volume_attachments").object
    shown = [without_ours(one) for one in listed["volumeAttachments"]]
    assert shown == attached.extra["attachments"]
    with pytest.raises(BaseHTTPError, match="Invalid volume"):
        driver.destroy_volume(attached)

    snapshot = driver.create_volume_snapshot(attached, "frozen")  # sends "force": true
    assert (snapshot.name, snapshot.size, snapshot.extra["volume_id"]) == ("frozen", 2, volume.id)
    assert snapshot.created is not None
    assert [one.id for one in driver.ex_list_snapshots()] == [snapshot.id]
    assert [one.id for one in driver.list_volume_snapshots(volume)] == [snapshot.id]
    assert driver.ex_get_snapshot(snapshot.id).state == "available"

    assert driver.detach_volume(attached)
    assert driver.ex_get_volume(volume.id).extra["attachments"] == []
    copy = driver.create_volume(2, "copy", snapshot=snapshot)
    assert (copy.size, copy.extra["snapshot_id"]) == (2, snapshot.id)

    assert driver.destroy_volume(volume)
    # The driver takes 204 for success and returns False for the 200 of section 4.4.4.4.
    driver.destroy_volume_snapshot(snapshot)
    assert driver.ex_list_snapshots() == []
    assert [one.id for one in driver.list_volumes()] == [copy.id]
    assert driver.destroy_volume(copy)
    assert driver.list_volumes() == []


def test_volumes_are_found_under_type_compute_too(served: Served) -> None:
    driver = connect(served, ex_force_service_type="compute", ex_force_service_name=None)
    assert driver.create_volume(1, "a").name == "a"


@pytest.mark.needs("files")  # it writes records of a local pool
def test_a_list_is_whole(served: Served) -> None:
    """libcloud knows no pages; Nova's ended at 1,000."""
    driver = connect(served)
    first = driver.create_volume(1, "first")
    multiply(served, VolumeId(first.id), 3000)
    listed = driver.list_volumes()
    assert [one.id for one in listed] == list(range(first.id, first.id + 3000))
    last = driver.ex_get_volume(listed[-1].id)
    assert (last.name, last.size) == ("first", 1)


def multiply(served: Served, volume: VolumeId, count: int) -> None:
    """Record a volume so many times, in one transaction. The others have no files of their own:
    they are only looked at."""
    storage = served.service.storage
    assert isinstance(storage, PoolBlockStorage)
    tenant = TenantId(served.service.account.tenant_id)

    def change(txn: Transaction) -> None:
        ledger, catalogue = Ledger(txn), Catalogue(txn)
        mine, record = ledger.volume(tenant, volume), catalogue.volume(volume)
        for number in range(volume + 1, volume + count):
            node = VolumeId(number)
            catalogue.put_volume(replace(record, id=node, name=f"volume-{node}"))
            ledger.add_volume(tenant, replace(mine, id=node), lambda _: EVERYTHING)

    storage.context.pool.index.update(change)


def test_wrong_password(served: Served) -> None:
    with pytest.raises(InvalidCredsError):
        connect(served, password="wrong").list_volumes()


def test_a_device_is_used_once_on_a_server(served: Served) -> None:
    driver = connect(served)
    node = server_of(driver)
    first, second = driver.create_volume(1, "a"), driver.create_volume(1, "b")
    assert driver.attach_volume(node, first, "/dev/vdf")
    with pytest.raises(BaseHTTPError, match="/dev/vdf"):
        driver.attach_volume(node, second, "/dev/vdf")
    assert driver.attach_volume(node, second)
