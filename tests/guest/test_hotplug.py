"""Volumes that come to running guests, and go, by the block storage API alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from ..attach.tenant import Tenant
from ..daemon.process import Bockd, serving
from .booted import Booted
from .disk import Disk
from .machine import Machine, machine, qmp_socket
from .vm import boot

MIB = 1 << 20
FORCED_RECONNECT_SECONDS = 2
"""For a guest to be told soon that its disk is dead."""

PCI_EXPRESS = ("-machine", "q35", "-device", "pcie-root-port,id=port1,chassis=1")
"""A machine whose root bus takes no devices, with a place for one."""


@pytest.fixture
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its path is short enough for sockets."""
    return tmp_path_factory.mktemp("vm")


@pytest.fixture
def daemon(room: Path) -> Iterator[Bockd]:
    with serving(room / "data", api_listen="127.0.0.1:0") as running:
        for name in ("vm1", "vm2"):
            socket = qmp_socket(room, name)
            running.bock("server", "add", name, "--kind", "vm", "--qmp", socket)
        yield running


@pytest.fixture
def tenant(daemon: Bockd) -> Tenant:
    return Tenant(daemon)


def attach(tenant: Tenant, volume: int, to: Machine) -> str:
    """Attach a volume by the API; returns the device that the guest has then."""
    tenant.attach(volume, to.name)
    assert tenant.show(volume)["status"] == "in-use"
    extra = tenant.attachment(volume, to.name)["bockd"]
    assert (extra["kind"], extra["connections"]) == ("vm", 1)
    serial = extra["device_info"]["serial"]
    assert serial == f"bockd-{volume}"
    return to.wait_for_disk(serial)


def fill(at: Machine, device: str, mib: int) -> str:
    """Write random bytes to a disk, flushed; returns their checksum."""
    at.guest.run(f"head -c {mib * MIB} /dev/urandom >/tmp/data")
    at.guest.run(f"dd if=/tmp/data of={device} bs=1M conv=fsync")
    return at.guest.run("sha256sum </tmp/data").split()[0]


def checksum(at: Machine, device: str, mib: int) -> str:
    """Of what a disk begins with, not from the guest's cache."""
    at.guest.run("echo 3 >/proc/sys/vm/drop_caches")
    return at.guest.run(f"head -c {mib * MIB} {device} | sha256sum").split()[0]


def content(daemon: Bockd, volume: int) -> str:
    """The checksum of a volume's content, as its operator reads it."""
    with daemon.connected(str(volume)) as client:
        return hashlib.sha256(client.pread(32 * MIB, 0)).hexdigest()


def test_volumes_come_and_go(
    daemon: Bockd, tenant: Tenant, initramfs: Path, booted: Booted, room: Path
) -> None:
    one, two = tenant.create("one"), tenant.create("two")
    with (
        machine("vm1", booted.guest, room) as first,
        machine("vm2", partial(boot, initramfs), room, *PCI_EXPRESS) as second,
    ):
        data = {volume: fill(first, attach(tenant, volume, first), 4) for volume in (one, two)}
        assert set(first.disks().values()) == {"bockd-1", "bockd-2"}

        # One goes, the other one is not disturbed.
        tenant.detach(two, "vm1")
        shown = tenant.show(two)
        assert (shown["status"], shown["bockd"].get("last_error")) == ("available", None)
        assert set(first.disks().values()) == {"bockd-1"}
        assert checksum(first, first.wait_for_disk("bockd-1"), 4) == data[one]

        # To another guest, and back.
        for guest in (second, first):
            assert checksum(guest, attach(tenant, two, guest), 4) == data[two]
            tenant.detach(two, guest.name)
            assert "bockd-2" not in guest.disks().values()
        tenant.detach(one, "vm1")
        assert first.disks() == {}
    daemon.check()


def test_a_forced_detach_cuts_a_guest_that_writes(room: Path, booted: Booted) -> None:
    config = room / "bockd.toml"
    config.write_text(f"[vm]\nreconnect_seconds = {FORCED_RECONNECT_SECONDS}\n")
    with (
        serving(room / "data", api_listen="127.0.0.1:0", config=config) as daemon,
        machine("vm1", booted.guest, room) as vm,
    ):
        daemon.bock("server", "add", "vm1", "--kind", "vm", "--qmp", qmp_socket(room, "vm1"))
        tenant = Tenant(daemon)
        volume = tenant.create()
        device = attach(tenant, volume, vm)
        # What is in the page cache keeps the kernel from letting go; the other dd sees each error.
        write = f"[ -b {device} ] && dd if=/dev/urandom of={device} bs=64k count=512"
        ended = vm.start(
            f"(while {write} conv=fsync; do :; done) & "
            f"while {write} oflag=direct 2>/tmp/errors; do :; done"
        )
        vm.wait_until_written(device, 200)
        # Noted when the guest, which waits for its writes, does not let go in time.
        daemon.expect_in_log("did not let go of the disk")
        tenant.detach(volume, "vm1", force=True)
        assert tenant.show(volume)["status"] == "available"
        left = content(daemon, volume)
        assert ended() == "0"  # of the loop: dd has failed
        assert "Input/output error" in vm.guest.run("cat /tmp/errors")
        assert content(daemon, volume) == left
        # The volume is whole for whoever is next.
        fresh = attach(tenant, volume, vm)
        assert checksum(vm, fresh, 32) == left
        tenant.detach(volume, "vm1")
        daemon.check()


def test_a_volume_grows_under_a_mounted_file_system(room: Path, booted: Booted) -> None:
    """Extended twice while the guest writes; the second time the daemon dies when the volume has
    grown, and tells the VM at its next start."""
    dying = ("env", "BOCKD_FAILPOINT=extend.committed:2")
    with (
        serving(room / "data", api_listen="127.0.0.1:0", launcher=dying) as daemon,
        machine("vm1", booted.guest, room) as vm,
    ):
        daemon.bock("server", "add", "vm1", "--kind", "vm", "--qmp", qmp_socket(room, "vm1"))
        tenant = Tenant(daemon)
        volume = tenant.create()
        disk = Disk(vm.guest, attach(tenant, volume, vm), "/mnt/0")
        disk.make_file_system()
        with disk.mounted():
            disk.write_file("before", 8)
            write = "dd if=/dev/urandom of=/mnt/0/during bs=64k count=64 conv=fsync oflag=direct"
            vm.guest.run("touch /tmp/more")
            ended = vm.start(f"while [ -e /tmp/more ]; do {write} || exit 1; done")
            written = disk.checksums()["./before"]
            tenant.extend(volume, 2)
            assert tenant.show(volume)["bockd"].get("last_error") is None
            disk.grow_file_system(2 << 30)
            with pytest.raises(httpx.HTTPError):
                tenant.extend(volume, 3)
            daemon.kill()
            daemon.start()
            disk.grow_file_system(3 << 30)
            vm.guest.run("rm /tmp/more")
            assert ended() == "0"
            disk.write_file("after", 8)
            assert disk.checksums()["./before"] == written
        disk.check_file_system()
        assert "I/O error" not in vm.guest.run("dmesg")
        extra = Tenant(daemon).attachment(volume, "vm1")["bockd"]
        assert extra["connections"] == 1
        Tenant(daemon).detach(volume, "vm1")
        assert vm.disks() == {}
        daemon.check()


def test_the_daemon_dies_and_the_vm_dies(
    daemon: Bockd, tenant: Tenant, booted: Booted, room: Path
) -> None:
    """A file system in a guest outlives the daemon, the volume outlives the VM, and a VM that is
    started anew gets it again."""
    volume = tenant.create()
    with machine("vm1", booted.guest, room) as vm:
        disk = Disk(vm.guest, attach(tenant, volume, vm), "/mnt/0")
        disk.make_file_system()
        with disk.mounted():
            disk.write_file("before", 8)
            writing = "dd if=/dev/urandom of=/mnt/0/during bs=4k count=4000 conv=fsync"
            vm.wait_until_written(disk.device, 1)
            ended = vm.start(f"{writing} oflag=direct")
            vm.wait_until_written(disk.device, 500)
            daemon.kill()
            assert vm.guest.run("cat /tmp/ended 2>/dev/null; true") == ""
            daemon.start()
            assert ended() == "0"
            written = disk.checksums()
            assert set(written) == {"./before", "./during"}
        disk.check_file_system()
        assert "I/O error" not in vm.guest.run("dmesg")
        assert Tenant(daemon).attachment(volume, "vm1")["bockd"]["connections"] == 1

    tenant = Tenant(daemon)
    assert tenant.show(volume)["status"] == "in-use"
    with machine("vm1", booted.guest, room) as vm:
        disk = Disk(vm.guest, vm.wait_for_disk(f"bockd-{volume}"), "/mnt/0")
        disk.check_file_system()
        with disk.mounted(read_only=True):
            assert disk.checksums() == written

    tenant.detach(volume, "vm1")
    assert tenant.show(volume)["status"] == "available"
    answer = tenant.try_attach(volume, "vm1")
    assert answer.status_code == 503
    assert "the VM is not running" in answer.json()["serviceUnavailable"]["message"]
    shown = tenant.show(volume)
    assert shown["status"] == "available"
    assert "the VM is not running" in shown["bockd"]["last_error"]
    daemon.check()
