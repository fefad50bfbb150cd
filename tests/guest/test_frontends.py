"""One partitioned image through each frontend to each other one: the same sectors, partitions and
files everywhere."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from ..attach.tenant import Tenant
from ..daemon.process import Bockd, program, serving
from ..fuse.watchdog import watched
from ..nbdkit_plugin.nbdkit import Nbdkit
from .booted import Booted
from .forward import forward_to
from .host import GuestHost
from .initramfs import load_module
from .machine import Machine, machine, qmp_socket
from .vm import HOST_ADDRESS

MIB = 1 << 20
SECTOR_BYTES = 512

PARTITIONS = {"ext4": (1 * MIB, 32 * MIB), "xfs": (34 * MIB, 320 * MIB)}
"""Where each file system begins, and its length, in bytes."""

IMAGE_BYTES = 356 * MIB

Run = Callable[[str], str]


def here(command: str) -> str:
    """Run a command of the shell on this machine."""
    done = subprocess.run(
        ["/bin/sh", "-c", command], capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, (command, done)
    return done.stdout


@dataclass(frozen=True)
class Seen:
    """The volume as one frontend shows it."""

    run: Run
    device: str
    parts: Mapping[str, str]
    """The device of each file system."""

    def sectors(self) -> tuple[int, int]:
        """The logical and the physical one, in bytes."""
        queue = f"/sys/block/{self.device.removeprefix('/dev/')}/queue"
        logical, physical = self.run(
            f"cat {queue}/logical_block_size {queue}/physical_block_size"
        ).split()
        return int(logical), int(physical)

    def use(self, expected: set[str], new: str, room: str) -> None:
        """See in both file systems the files that were written before, and write one more."""
        for kind, part in self.parts.items():
            self.run(f"mkdir -p {room} && mount -t {kind} {part} {room}")
            try:
                listed = self.run(f"cd {room} && grep . /dev/null $(find . -type f)").splitlines()
                assert set(listed) == {f"./{name}:by {name}" for name in expected}
                self.run(f"echo by {new} >{room}/{new}")
            finally:
                self.run(f"umount {room}")


def make_image(work: Path) -> Path:
    """A GPT with both file systems, in each of them a file."""
    content = work / "content"
    content.mkdir()
    (content / "image").write_text("by image\n")
    proto = work / "proto"
    proto.write_text(f"/dev/null\n0 0\nd--755 0 0\nimage ---644 0 0 {content}/image\n$\n")
    image = work / "disk.img"
    image.touch()
    table = "label: gpt\n" + "".join(
        f"start={start // SECTOR_BYTES}, size={length // SECTOR_BYTES}\n"
        for start, length in PARTITIONS.values()
    )
    here(f"truncate -s {IMAGE_BYTES} {image} && echo '{table}' | {program('sfdisk')} -q {image}")
    options = {"ext4": f"-q -d {content}", "xfs": f"-q -p {proto}"}
    for kind, (start, length) in PARTITIONS.items():
        part = work / kind
        here(
            f"truncate -s {length} {part} && {program(f'mkfs.{kind}')} {options[kind]} {part} && "
            f"dd if={part} of={image} bs=1M seek={start // MIB} conv=notrunc,sparse status=none"
        )
    return image


@contextmanager
def loop_device(daemon: Bockd) -> Iterator[Seen]:
    """A loop device on the file view. The partitions are loop devices of their own, because not
    every kernel that runs tests reads partition tables."""
    device: str = daemon.bock("connect", "--loop", "--server", "here", "disk")["device"]
    table = json.loads(here(f"{program('sfdisk')} --json {device}"))["partitiontable"]
    assert table["sectorsize"] == SECTOR_BYTES
    found = [
        (one["start"] * SECTOR_BYTES, one["size"] * SECTOR_BYTES) for one in table["partitions"]
    ]
    assert found == list(PARTITIONS.values())
    assert here(f"cat /sys/block/{device.removeprefix('/dev/')}/loop/partscan") == "1\n"
    with ExitStack() as made:
        made.callback(daemon.bock, "disconnect", "disk")
        parts = {}
        for kind, (start, length) in PARTITIONS.items():
            command = f"losetup --find --show --offset {start} --sizelimit {length} {device}"
            parts[kind] = here(command).strip()
            made.callback(here, f"losetup --detach {parts[kind]}")
        yield Seen(here, device, parts)
        here(f"{program('e2fsck')} -fn {parts['ext4']}")
        here(f"{program('xfs_repair')} -n {parts['xfs']}")


def in_guest(vm: Machine, device: str) -> Seen:
    """A device whose partitions the guest's kernel has found by itself."""
    name = device.removeprefix("/dev/")
    letter = "p" if name[-1].isdigit() else ""
    parts = {}
    for number, (kind, (start, length)) in enumerate(PARTITIONS.items(), 1):
        part = f"{name}{letter}{number}"
        at = f"/sys/class/block/{part}"
        assert vm.guest.run(f"cat {at}/start {at}/size").split() == [
            str(start // SECTOR_BYTES),
            str(length // SECTOR_BYTES),
        ]
        parts[kind] = f"/dev/{part}"
    return Seen(vm.guest.run, device, parts)


@contextmanager
def virtio_disk(vm: Machine, tenant: Tenant, volume: int) -> Iterator[Seen]:
    """A disk that is plugged into the guest's QEMU."""
    tenant.attach(volume, vm.name)
    yield in_guest(vm, vm.wait_for_disk(f"bockd-{volume}"))
    tenant.detach(volume, vm.name)


@contextmanager
def served_by_nbdkit(vm: Machine, daemon: Bockd, work: Path) -> Iterator[Seen]:
    """The kernel's NBD device on nbdkit with our plugin, which has the pool to itself."""
    daemon.stop()
    with (
        Nbdkit(work, f"pool={daemon.data_dir}", "volume=disk") as server,
        forward_to(server.socket) as port,
    ):
        vm.guest.run(f"/sbin/nbd-client {HOST_ADDRESS} {port} /dev/nbd1 -b 512")
        vm.guest.run("blockdev --rereadpt /dev/nbd1")
        yield in_guest(vm, "/dev/nbd1")
        vm.guest.run("/sbin/nbd-client -d /dev/nbd1")
    daemon.start()


def test_an_image_is_the_same_disk_through_every_frontend(
    booted_host: Booted,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BOCK_STATE", str(tmp_path / "state"))
    room = tmp_path_factory.mktemp("vm")
    image = make_image(tmp_path)
    inside = shlex.quote(str(tmp_path / "inside"))
    with (
        watched(tmp_path / "view"),
        serving(
            room / "data",
            nbd_listen="0.0.0.0:0",
            api_listen="127.0.0.1:0",
            mount=tmp_path / "view",
        ) as daemon,
        machine("vm1", booted_host.guest, room) as vm,
    ):
        daemon.bock("server", "add", "vm1", "--kind", "vm", "--qmp", qmp_socket(room, "vm1"))
        volume = daemon.bock("volume", "import", image, "--name", "disk")["id"]
        host = GuestHost(vm.guest, daemon)
        vm.guest.run(load_module("xfs"))
        written = {"image"}

        def use(seen: Seen, name: str, at: str = "/mnt/0", physical: int = SECTOR_BYTES) -> None:
            assert seen.sectors() == (SECTOR_BYTES, physical)
            seen.use(written, name, at)
            written.add(name)

        device = host.bock("connect", "disk")
        use(in_guest(vm, device), "nbd")
        host.bock("disconnect", "disk")
        # The kernel would keep them, without anything behind them.
        assert vm.guest.run(f"ls {device}*").split() == [device]
        with virtio_disk(vm, Tenant(daemon), volume) as seen:
            use(seen, "virtio", physical=4096)
        with loop_device(daemon) as seen:
            use(seen, "loop", inside)
        with served_by_nbdkit(vm, daemon, room) as seen:
            use(seen, "nbdkit")
        # What was written later than the first look of each.
        with virtio_disk(vm, Tenant(daemon), volume) as seen:
            use(seen, "virtio-again", physical=4096)
        device = host.bock("connect", "disk")
        use(in_guest(vm, device), "nbd-again")
        host.bock("disconnect", "disk")
        with loop_device(daemon) as seen:
            use(seen, "loop-again", inside)
        daemon.check()
