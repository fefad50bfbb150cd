"""Volumes move between two daemons that serve one pool in a Ceph cluster, and no client sees an
error.

The pauses of clients are printed (`pytest -rP`).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import nbd
import pytest

from bockd.config.rbd import RbdSettings
from tests.daemon.moving import BLOCK_BYTES, MovingClient
from tests.daemon.pair import SERVER, Pair, two_gateways

SETTLED_SECONDS = 30.0


@pytest.fixture
def pair(rbd_namespace: RbdSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with two_gateways(rbd_namespace, tmp_path_factory) as both:
        yield both


def connected(uri: str) -> Any:
    handle = nbd.NBD()
    handle.connect_uri(uri)
    return handle


def closes(handle: Any) -> None:
    """Wait until the server has closed a connection on which nobody asks for anything."""
    deadline = time.monotonic() + SETTLED_SECONDS
    while not (handle.aio_is_dead() or handle.aio_is_closed()):
        assert time.monotonic() < deadline
        try:
            handle.poll(100)
        except nbd.Error:
            continue


def test_what_is_shown(pair: Pair) -> None:
    listed = pair.second.bock("gateway", "list")
    assert [one["name"] for one in listed] == ["gw1", "gw2"]
    assert [one["addresses"]["nbd"] for one in listed] == [
        f"127.0.0.1:{one.nbd_port}" for one in (pair.first, pair.second)
    ]
    assert [one["addresses"]["api"] for one in listed] == [
        f"{one.api_url}/" for one in (pair.first, pair.second)
    ]
    ports = [f":{one.nbd_port}/" for one in (pair.first, pair.second)]
    with pair.second.connected("disk"):
        for asked in (pair.first, pair.second):
            assert pair.holder(asked) == "gw2"
            first, second = pair.uris(asked)
            assert (ports[1] in first, ports[0] in second) == (True, True)
            assert "gw2" in asked.tool("bock", "volume", "show", "disk")
    pair.second.tool("bock", "volume", "show", "disk")
    with pair.first.control() as control:
        assert control.show_volume("disk").gateway == "gw2"
    pair.second.stop()
    assert pair.holder(pair.first) == ""
    assert [one["name"] for one in pair.first.bock("gateway", "list")] == ["gw1"]
    assert len(pair.uris()) == 1
    pair.first.stop()


def test_the_gateway_is_killed(pair: Pair) -> None:
    with MovingClient(pair.uris()).writing() as client:
        pair.first.kill()
        client.wait_for_writes()
        assert client.at == 1
        assert pair.holder(pair.second) == "gw2"
    with pair.second.connected("disk") as other:
        client.check(other)
    print(f"killed: {client.pauses}")
    pair.second.stop()


def test_the_gateway_is_stopped(pair: Pair) -> None:
    with MovingClient(pair.uris()).writing() as client:
        pair.first.stop()
        client.wait_for_writes()
        assert client.at == 1
    with pair.second.connected("disk") as other:
        client.check(other)
    print(f"stopped: {client.pauses}")
    pair.second.stop()


def test_the_gateway_hangs_and_goes_on(pair: Pair) -> None:
    """Its clients are another one's by then: it ends their connections, idle ones, too."""
    uris = pair.uris()
    idle = connected(uris[0])
    with MovingClient(uris).writing() as client:
        os.kill(pair.first.pid, signal.SIGSTOP)
        with MovingClient(uris[1:], first_block=100).writing() as other:
            other.wait_for_writes()
            os.kill(pair.first.pid, signal.SIGCONT)
            closes(idle)
            client.wait_for_writes()
            other.wait_for_writes()
            assert client.at == 1
    with pair.second.connected("disk") as reader:
        client.check(reader)
        other.check(reader)
    print(f"hung: {client.pauses}")
    pair.second.stop()
    pair.first.stop()


def test_a_client_comes_to_the_other_gateway(pair: Pair) -> None:
    """All clients of the volume move: what is under way is answered, and the rest sent again."""
    uris = pair.uris()
    idle = connected(uris[0])
    with MovingClient(uris).writing() as client:
        newcomer = connected(uris[1])
        newcomer.pwrite(b"new" * 1024, 1 << 20)
        closes(idle)
        client.wait_for_writes()
        assert client.at == 1
        assert newcomer.pread(3072, 1 << 20) == b"new" * 1024
        client.check(newcomer)
    print(f"moved: {client.pauses}")
    newcomer.shutdown()
    pair.second.stop()
    pair.first.stop()


def test_ten_volumes_are_asked_for_at_once(pair: Pair) -> None:
    names = [f"v{number}" for number in range(10)]
    for name in names:
        pair.first.bock("volume", "create", name, "--size", "1MiB")
        pair.first.bock("attachment", "create", name, SERVER)
    ports = [f":{one.nbd_port}/" for one in (pair.first, pair.second)]
    ways = [pair.first.bock("attachment", "show", name)["uris"] for name in names]
    old, new = ([next(uri for uri in uris if port in uri) for uris in ways] for port in ports)
    handles = [connected(uri) for uri in old]
    for number, handle in enumerate(handles):
        handle.pwrite(bytes([number]) * BLOCK_BYTES, 0)
    began = time.monotonic()
    with ThreadPoolExecutor(len(names)) as threads:
        moved = list(threads.map(connected, new))
    print(f"ten volumes: {time.monotonic() - began:.2f} s")
    for number, handle in enumerate(moved):
        assert handle.pread(BLOCK_BYTES, 0) == bytes([number]) * BLOCK_BYTES
        closes(handles[number])
        handle.shutdown()
    print(f"by force: {pair.first.log.read_text().count('has taken volume')}")
    pair.second.stop()
    pair.first.stop()


def test_an_operator_does_not_take_it_from_clients(pair: Pair) -> None:
    with MovingClient(pair.uris()).writing() as client:
        with pytest.raises(nbd.Error, match="server policy"):
            pair.second.connect("disk")
        client.wait_for_writes()
        assert client.pauses == []
    with pair.second.connected("disk") as other:
        client.check(other)
    pair.second.expect_in_log("cannot be opened: gateway gw1")
    pair.second.stop()
    pair.first.stop()


@pytest.mark.parametrize("force", [False, True])
def test_detached_where_its_clients_are_not(pair: Pair, force: bool) -> None:
    uri = pair.uris()[1]
    handle = connected(uri)
    handle.pwrite(b"there" * 100, 0)
    options = ["--force"] if force else []
    pair.first.bock("attachment", "delete", "disk", *options)
    closes(handle)
    with pytest.raises(nbd.Error, match="no export"):
        connected(uri)
    assert pair.first.bock("volume", "show", "disk")["status"] == "available"
    assert pair.holder(pair.first) == ""
    with pair.first.connected("disk") as reader:
        assert reader.pread(500, 0) == b"there" * 100
    # The gateway that lost it serves it again.
    pair.first.bock("attachment", "create", "disk", SERVER)
    again = connected(next(uri for uri in pair.uris() if f":{pair.second.nbd_port}/" in uri))
    again.pwrite(bytes(BLOCK_BYTES), 0)
    again.shutdown()
    pair.first.stop()
    pair.second.stop()


def test_detached_while_the_other_gateway_hangs(pair: Pair) -> None:
    uri = pair.uris()[1]
    handle = connected(uri)
    handle.pwrite(b"there" * 100, 0)
    os.kill(pair.second.pid, signal.SIGSTOP)
    pair.first.bock("attachment", "delete", "disk")
    with pair.first.connected("disk") as reader:
        assert reader.pread(500, 0) == b"there" * 100
    os.kill(pair.second.pid, signal.SIGCONT)
    closes(handle)
    with pytest.raises(nbd.Error, match="no export"):
        connected(uri)
    pair.first.stop()
    pair.second.stop()


def test_the_addresses_of_a_gateway_outlive_its_killing_for_some_time(pair: Pair) -> None:
    """It is not known to be dead at once; its address is one of those that clients try."""
    pair.second.kill()
    assert len(pair.uris()) == 2
    pair.first.stop()
