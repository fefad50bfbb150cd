"""The seven business rules of section 4.4.3 (Servers), by number, against real attachments: NBD
clients over TCP, and a running guest whose disks come and go. Everything is asked over HTTP."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import nbd
import pytest

from ..attach.tenant import Tenant, connect, connected, is_refused
from ..daemon.process import Bockd, serving
from .booted import Booted
from .disk import Disk
from .machine import Machine, machine, qmp_socket

VM = "vm1"
CLIENTS = 8


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its path is short enough for sockets."""
    return tmp_path_factory.mktemp("vm")


@pytest.fixture(scope="module")
def daemon(room: Path) -> Iterator[Bockd]:
    listen = "127.0.0.1:0"
    with serving(room / "data", nbd_listen=listen, api_listen=listen) as running:
        running.bock("server", "add", VM, "--kind", "vm", "--qmp", qmp_socket(room, VM))
        yield running
        running.check()


@pytest.fixture(scope="module")
def vm(daemon: Bockd, booted: Booted, room: Path) -> Iterator[Machine]:
    with machine(VM, booted.guest, room) as running:
        yield running


@pytest.fixture
def tenant(daemon: Bockd) -> Iterator[Tenant]:
    """Every volume is detached at the end, whatever became of the test."""
    tenant = Tenant(daemon)
    yield tenant
    for server in ("web1", "web2", VM, *(f"host{number}" for number in range(CLIENTS))):
        for volume in tenant.attachments(server):
            tenant.detach(volume, server, force=server != VM)


def refuses_state(answer: httpx.Response, status: str) -> None:
    """For what the volume's status does not allow; the message names it."""
    assert answer.status_code == 400, answer.text
    message = answer.json()["badRequest"]["message"]
    assert message.startswith("Invalid volume: ")
    assert f"it is {status}" in message


def test_rule_1_only_an_available_volume_is_attached(tenant: Tenant) -> None:
    volume = tenant.create()
    attached = tenant.attach(volume)
    with connected(attached.uri) as client:
        refuses_state(tenant.try_attach(volume, "web1"), "in-use")
        client.pwrite(b"undisturbed", 0)
        # An answer that nobody takes keeps it detaching for a while.
        hanging = connect(attached.uri)
        for _ in range(40):
            hanging.aio_pread(nbd.Buffer(1 << 20), 0)
        with ThreadPoolExecutor(1) as threads:
            detaching = threads.submit(tenant.try_detach, volume)
            while tenant.show(volume)["status"] != "detaching":
                assert not detaching.done()
            refuses_state(tenant.try_attach(volume, "web2"), "detaching")
            del hanging
            assert detaching.result().status_code == 202
    assert tenant.attachments("web2") == {}
    assert tenant.show(volume)["status"] == "available"
    tenant.attach(volume, "web2")


def test_rule_2_an_attached_volume_is_in_use(tenant: Tenant, vm: Machine) -> None:
    """From the answer to the attach to the answer to the detach, connected or not."""
    volume = tenant.create()
    for server in ("web1", VM):
        assert tenant.show(volume)["status"] == "available"
        attached = tenant.attach(volume, server)
        assert tenant.show(volume)["status"] == "in-use"
        with connected(attached.uri):
            assert tenant.show(volume)["status"] == "in-use"
        shown = tenant.show(volume)
        assert (shown["status"], shown["attachments"][0]["serverId"]) == ("in-use", server)
        if server == VM:
            vm.wait_for_disk(f"bockd-{volume}")
        tenant.detach(volume, server)
        assert is_refused(attached.uri)
        shown = tenant.show(volume)
        assert (shown["status"], shown["attachments"]) == ("available", [{}])


def test_rule_3_only_a_volume_in_use_is_detached(tenant: Tenant) -> None:
    volume = tenant.create()
    refuses_state(tenant.try_detach(volume), "available")
    refuses_state(tenant.try_detach(volume, force=True), "available")
    attached = tenant.attach(volume)
    client = connect(attached.uri)
    for force in (False, True):
        assert tenant.try_detach(volume, "web2", force=force).status_code == 404
    client.pwrite(b"undisturbed", 0)
    with ThreadPoolExecutor(CLIENTS) as threads:
        answers = [threads.submit(tenant.try_detach, volume) for _ in range(CLIENTS)]
        statuses = Counter(answer.result().status_code for answer in answers)
    assert statuses == {202: 1, 400: CLIENTS - 1}
    with pytest.raises(nbd.Error):
        client.pread(512, 0)
    refuses_state(tenant.try_detach(volume), "available")


def test_rule_4_a_volume_is_at_one_server(tenant: Tenant, vm: Machine) -> None:
    volume = tenant.create()
    servers = [f"host{number}" for number in range(CLIENTS - 1)] + [VM]
    with ThreadPoolExecutor(CLIENTS) as threads:
        answers = dict(
            zip(
                servers,
                threads.map(lambda one: tenant.try_attach(volume, one), servers),
                strict=True,
            )
        )
    won = [server for server in servers if answers[server].status_code == 200]
    assert len(won) == 1
    assert [server for server in servers if tenant.attachments(server)] == won
    if won == [VM]:
        vm.wait_for_disk(f"bockd-{volume}")
    else:
        assert vm.disks() == {}
    tenant.detach(volume, won[0])
    with connected(tenant.attach(volume).uri) as client:
        refuses_state(tenant.try_attach(volume, VM), "in-use")
        assert tenant.attachments(VM) == {}
        assert vm.disks() == {}
        client.pwrite(b"undisturbed", 0)


def test_rule_5_a_server_has_many_volumes(tenant: Tenant, vm: Machine) -> None:
    volumes = [tenant.create() for _ in range(3)]
    for server in ("web1", VM):
        uris = {volume: tenant.attach(volume, server).uri for volume in volumes}
        assert set(tenant.attachments(server)) == set(volumes)
        clients = {volume: connect(uri) for volume, uri in uris.items()}
        for volume, client in clients.items():
            client.pwrite(b"%d at %s" % (volume, server.encode()), 0)
            client.flush()
        for volume, client in clients.items():
            expected = b"%d at %s" % (volume, server.encode())
            assert client.pread(len(expected), 0) == expected
            client.shutdown()
            if server == VM:
                device = vm.wait_for_disk(f"bockd-{volume}")
                assert vm.guest.run(f"head -c {len(expected)} {device}").encode() == expected
        for volume in volumes:
            tenant.detach(volume, server)


def test_rule_6_device_names_are_valid_and_not_repeated(tenant: Tenant, vm: Machine) -> None:
    first, second = tenant.create(), tenant.create()
    for server in ("web1", VM):
        tenant.attach(first, server, "/dev/vdc")
        for taken in ("/dev/vdc", "/dev/sdc", "/dev/xvdc"):
            assert tenant.try_attach(second, server, taken).status_code == 409, taken
        for invalid in ("vdd", "/dev/", "/dev/vd", "/dev/vd1", "/dev/vdd1", "/dev/nbd0", "/x"):
            assert tenant.try_attach(second, server, invalid).status_code == 400, invalid
        assert tenant.show(second)["status"] == "available"
        assert tenant.attachments(server) == {first: "/dev/vdc"}
        if server == VM:
            vm.wait_for_disk(f"bockd-{first}")
            assert set(vm.disks().values()) == {f"bockd-{first}"}
        # Chosen for the client, it is another one; and free again after a detach.
        tenant.attach(second, server)
        assert tenant.attachments(server)[second] != "/dev/vdc"
        if server == VM:
            vm.wait_for_disk(f"bockd-{second}")
        tenant.detach(second, server)
        tenant.detach(first, server)
        with connected(tenant.attach(second, server, "/dev/vdc").uri):
            assert tenant.attachments(server) == {second: "/dev/vdc"}
            if server == VM:
                vm.wait_for_disk(f"bockd-{second}")
        tenant.detach(second, server)


def test_rule_7_the_device_is_used_once_it_is_mounted(tenant: Tenant, vm: Machine) -> None:
    """Attaching makes a device and mounts nothing; what is written while it is mounted is on the
    volume, and what is written to the same directory before is not."""
    volume = tenant.create()
    tenant.attach(volume, VM)
    disk = Disk(vm.guest, vm.wait_for_disk(f"bockd-{volume}"), "/mnt/rule7")
    assert disk.device not in vm.guest.run("cat /proc/mounts")
    disk.make_file_system()
    vm.guest.run(f"mkdir -p {disk.mount_point} && echo lost >{disk.mount_point}/before")
    with disk.mounted():
        disk.write_file("data", 1)
        written = disk.checksums()
        assert set(written) == {"./data"}
    tenant.detach(volume, VM)
    assert vm.guest.run(f"ls {disk.mount_point}") == "before\n"
    tenant.attach(volume, VM)
    again = Disk(vm.guest, vm.wait_for_disk(f"bockd-{volume}"), disk.mount_point)
    again.check_file_system()
    with again.mounted(read_only=True):
        assert again.checksums() == written
    tenant.detach(volume, VM)
