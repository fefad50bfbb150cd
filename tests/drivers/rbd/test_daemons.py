"""Daemons on a cluster that is in trouble: three OSDs, of which two suffice.

The rows of docs/ceph.md, as the clients of a daemon see them. The pauses are printed.
"""

from __future__ import annotations

import errno
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbd
import pytest

from bockd.config.rbd import RbdSettings
from bockd.model import BLOCK_SIZE, MIB
from tests.daemon.driver import as_toml
from tests.daemon.process import Bockd
from tests.drivers.rbd.ceph import need_modules
from tests.drivers.rbd.cluster import Cluster
from tests.drivers.rbd.writers import Writers

need_modules()

from bockd.drivers.rbd.binding import rbd  # noqa: E402 - where there are the modules

pytestmark = pytest.mark.ceph_trouble

WRITERS = 16
STRIDE = 4 * MIB
"""Each writer has an object of its own."""

STOP_SECONDS = 30.0
"""What an end takes at most whose closing has 10 s, on a machine that may be busy."""

IN_TROUBLE = r"^WARNING|^ERROR"


@pytest.fixture
def namespace(three_osds: Cluster) -> Iterator[RbdSettings]:
    yield three_osds.namespace()
    three_osds.wait_until_whole()


def new_gateway(namespace: RbdSettings, directory: Path, name: str) -> Bockd:
    """A daemon that does not run yet."""
    config = directory / f"{name}.toml"
    config.write_text(as_toml(replace(namespace, gateway=name, connect_seconds=3)))
    return Bockd(directory / name, directory / f"{name}.log", config=config)


@contextmanager
def serving(namespace: RbdSettings, directory: Path, name: str) -> Iterator[Bockd]:
    gateway = new_gateway(namespace, directory, name)
    gateway.expect_in_log(IN_TROUBLE)
    gateway.start()
    try:
        yield gateway
        if gateway.running:
            gateway.stop()
    finally:
        gateway.end()


@pytest.fixture
def gateway(namespace: RbdSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bockd]:
    """A daemon with one volume, which has an object for each writer, and as many more."""
    with serving(namespace, tmp_path_factory.mktemp("gw"), "one") as gateway:
        gateway.bock("volume", "create", "disk", "--size", str(2 * WRITERS * STRIDE))
        yield gateway


class Clients:
    """A connection for each writer, and one more."""

    def __init__(self, gateway: Bockd, stack: ExitStack) -> None:
        self.connections = [gateway.connect("disk") for _ in range(WRITERS + 1)]
        stack.callback(self.connections.clear)

    def write(self, block: int, number: int) -> None:
        content = number.to_bytes(8, "big") * (BLOCK_SIZE // 8)
        self.connections[block].pwrite(content, block * STRIDE)

    def read(self, block: int) -> int:
        content = bytes(self.connections[-1].pread(BLOCK_SIZE, block * STRIDE))
        assert content == content[:8] * (BLOCK_SIZE // 8)
        return int.from_bytes(content[:8], "big")

    def read_all(self) -> dict[int, int]:
        return {block: self.read(block) for block in range(WRITERS)}


@pytest.fixture
def clients(gateway: Bockd) -> Iterator[Clients]:
    with ExitStack() as stack:
        yield Clients(gateway, stack)


def read_elsewhere(namespace: RbdSettings, directory: Path) -> dict[int, int]:
    """What another gateway shows, which takes the volume."""
    with serving(namespace, directory, "two") as other, ExitStack() as stack:
        return Clients(other, stack).read_all()


def took(what: str, refused: Callable[[], object]) -> None:
    began = time.monotonic()
    refused()
    print(f"{what}: refused after {time.monotonic() - began:.1f} s")


def test_a_killed_osd_is_a_short_pause(three_osds: Cluster, clients: Clients) -> None:
    with Writers(clients.write, WRITERS) as writing:
        for name in three_osds.osds:
            three_osds.kill(name)
            writing.wait_for_writes(20)
            three_osds.begin(name)
            three_osds.wait_until_whole()
            print(f"{name} killed and back: longest write {writing.longest_seconds:.2f} s")
            writing.longest_seconds = 0.0
    assert clients.read_all() == writing.answered


def test_an_osd_that_hangs_holds_writes_up_until_it_is_down(
    three_osds: Cluster, clients: Clients
) -> None:
    with Writers(clients.write, WRITERS) as writing, three_osds.hanging("osd.1"):
        three_osds.wait_for(lambda: "osd.1" not in three_osds.up())
        writing.wait_for_writes(20)
    print(f"osd.1 hangs: longest write {writing.longest_seconds:.1f} s")
    assert clients.read_all() == writing.answered


def test_a_full_cluster_refuses_what_grows_and_nothing_else(
    three_osds: Cluster, gateway: Bockd, clients: Clients, namespace: RbdSettings, tmp_path: Path
) -> None:
    gateway.bock("volume", "create", "more", "--size", "1M")
    with Writers(clients.write, WRITERS) as writing:
        pass
    gateway.bock("snapshot", "create", "disk", "before")
    with three_osds.full():
        # What the snapshot has must be copied before it is overwritten.
        for offset in (WRITERS * STRIDE, 0):
            with pytest.raises(nbd.Error) as refused:
                clients.connections[0].pwrite(b"x" * MIB, offset + MIB)
            assert refused.value.errno == "ENOSPC"
        assert clients.read_all() == writing.answered
        assert "no space left" in gateway.refusal("volume", "create", "no", "--size", "1M")
        gateway.bock("snapshot", "delete", "before")
        gateway.bock("snapshot", "create", "disk", "now")
        gateway.bock("snapshot", "delete", "now")
        gateway.bock("volume", "delete", "more")
        three_osds.wait_for(lambda: len(images_of(three_osds, namespace)) == 1)
        clients.connections[0].trim(STRIDE, 0)
        assert clients.read_all() == {**writing.answered, 0: 0}
        for one in clients.connections:
            one.shutdown()
        found = read_elsewhere(namespace, tmp_path)
    assert found == {**writing.answered, 0: 0}


def images_of(cluster: Cluster, namespace: RbdSettings) -> list[str]:
    with cluster.admin_ioctx() as ioctx:
        ioctx.set_namespace(namespace.namespace)
        found: list[str] = rbd.RBD().list(ioctx)
        return found


def test_without_monitors_open_volumes_go_on(
    three_osds: Cluster, gateway: Bockd, clients: Clients
) -> None:
    gateway.bock("volume", "create", "closed", "--size", "1M")
    gateway.bock("snapshot", "create", "disk", "before")
    with Writers(clients.write, WRITERS) as writing, three_osds.hanging("mon.a"):
        writing.wait_for_writes()
        took("a snapshot", lambda: gateway.refusal("snapshot", "create", "disk", "no"))
        writing.wait_for_writes()

        def connect() -> None:
            with pytest.raises(nbd.Error):
                gateway.connect("closed")

        took("opening", connect)
        writing.wait_for_writes()
        # Its snap goes later: to remove it needs a monitor.
        gateway.bock("snapshot", "delete", "before")
        three_osds.wait_for(lambda: "is put off: " in gateway.log.read_text())
        writing.wait_for_writes()
        gateway.bock("volume", "create", "made", "--size", "1M")
        assert len(gateway.bock("volume", "list")) == 3
    with gateway.connected("closed") as client:
        assert client.pread(512, 0) == bytes(512)
    assert clients.read_all() == writing.answered


def test_an_end_has_a_limit_while_the_cluster_hangs(
    three_osds: Cluster, gateway: Bockd, clients: Clients, namespace: RbdSettings, tmp_path: Path
) -> None:
    with Writers(clients.write, WRITERS) as writing:
        pass
    last = dict(writing.answered)
    for name in three_osds.osds:
        three_osds.suspend(name)
    try:
        waiting = [
            threading.Thread(target=write_unanswered, args=(clients, block, last[block] + 1))
            for block in range(WRITERS)
        ]
        for thread in waiting:
            thread.start()
        began = time.monotonic()
        status = gateway.status_of_stop_by(signal.SIGTERM)
        seconds = time.monotonic() - began
    finally:
        for name in three_osds.osds:
            three_osds.resume(name)
    for thread in waiting:
        thread.join()
    print(f"ended with status {status} after {seconds:.1f} s")
    assert seconds < STOP_SECONDS
    for block, number in read_elsewhere(namespace, tmp_path).items():
        assert number in (last[block], last[block] + 1)


def write_unanswered(clients: Clients, block: int, number: int) -> Any:
    with pytest.raises(nbd.Error) as refused:
        clients.write(block, number)
    assert refused.value.errno not in ("EIO", errno.errorcode[errno.EROFS])
