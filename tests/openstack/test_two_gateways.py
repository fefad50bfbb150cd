"""Two daemons serve one pool in a Ceph cluster: OpenStack's clients ask either of them, and each is
restarted in turn while an NBD client writes, which sees no error.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from libcloud.compute.types import StorageVolumeState

from bockd.config.rbd import RbdSettings
from tests.daemon.moving import MovingClient
from tests.daemon.pair import Pair, two_gateways
from tests.daemon.process import Bockd

from .installed import Clients, assert_installed, variables
from .libcloud_driver import connect_to

# libcloud forgets connections without closing them.
pytestmark = [
    pytest.mark.usefixtures("forgotten_connections"),
    pytest.mark.filterwarnings(
        "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
    ),
]


@pytest.fixture
def pair(rbd_namespace: RbdSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with two_gateways(rbd_namespace, tmp_path_factory) as both:
        yield both


def libcloud(gateway: Bockd) -> Any:
    account = json.loads((gateway.data_dir / "credentials.json").read_text())
    return connect_to(gateway.api_url, account["username"], account["password"], account["tenant"])


def live(here: Any, there: Any) -> None:
    """A volume's life, each step by the one driver or the other."""
    volume = here.create_volume(1, "made here")
    assert there.ex_get_volume(volume.id).name == "made here"
    node = there.ex_get_node_details("258315")
    assert there.attach_volume(node, volume)
    attached = here.ex_get_volume(volume.id)
    assert attached.state == StorageVolumeState.INUSE
    snapshot = here.create_volume_snapshot(attached, "frozen here")
    assert [one.id for one in there.list_volume_snapshots(volume)] == [snapshot.id]
    assert there.detach_volume(attached)
    copy = there.create_volume(1, "copied there", snapshot=snapshot)
    names = {one.name for one in here.list_volumes()}
    assert names == {"disk", "made here", "copied there"}
    here.destroy_volume(copy)
    there.destroy_volume_snapshot(snapshot)
    assert here.ex_list_snapshots() == []
    assert there.destroy_volume(volume)
    assert [one.name for one in here.list_volumes()] == ["disk"]


def way_in(pair: Pair, gateway: Bockd) -> str:
    return next(uri for uri in pair.uris(gateway) if f":{gateway.nbd_port}/" in uri)


def test_each_gateway_is_restarted_under_its_clients(pair: Pair) -> None:
    uris = pair.uris()
    first, second = libcloud(pair.first), libcloud(pair.second)
    with MovingClient(uris).writing() as client:
        live(first, second)
        live(second, first)
        assert (client.at, client.pauses) == (0, [])

        pair.first.stop()
        client.wait_for_writes()
        live(second, second)
        pair.first.start()
        first, uris[0] = libcloud(pair.first), way_in(pair, pair.first)
        live(first, second)
        assert (client.at, len(client.pauses)) == (1, 1)

        pair.second.restart()
        client.wait_for_writes()
        live(first, libcloud(pair.second))
        assert (client.at, len(client.pauses)) == (0, 2)
    print(f"restarted: {client.pauses}")
    with pair.first.connected("disk") as reader:
        client.check(reader)
    for one in (pair.first, pair.second):
        one.check()
        one.stop()


@pytest.mark.openstack_clients
def test_the_clients_of_openstack(pair: Pair, tmp_path: Path) -> None:
    assert_installed()
    clients = [
        Clients(tmp_path, variables(one.tool("bock", "credentials", "--shell")))
        for one in (pair.first, pair.second)
    ]
    first, second = clients
    with MovingClient(pair.uris()).writing() as client:
        tokens = [one.openstack("token", "issue") for one in clients]
        assert tokens[0]["project_id"] == tokens[1]["project_id"]
        first.cinder("create", "1", "--display-name", "made")
        assert "| made " in second.cinder("list")
        second.cinder("snapshot-create", "--display-name", "frozen", "made")
        pair.first.stop()
        client.wait_for_writes()
        assert "| frozen " in second.cinder("snapshot-list")
        second.cinder("extend", "made", "2")
        pair.first.start()
        again = Clients(tmp_path, variables(pair.first.tool("bock", "credentials", "--shell")))
        again.cinder("snapshot-delete", "frozen")
        again.cinder("delete", "made")
        assert "made" not in second.cinder("list")
        assert (client.at, len(client.pauses)) == (1, 1)
    with pair.second.connected("disk") as reader:
        client.check(reader)
    for one in (pair.first, pair.second):
        one.stop()
