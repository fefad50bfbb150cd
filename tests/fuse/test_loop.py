"""A loop device on a volume's file is a disk like any other (needs root and loop devices)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.daemon.process import Bockd

MIB = 1 << 20


@contextmanager
def loop_device(daemon: Bockd, path: Path, *options: str) -> Iterator[str]:
    device = daemon.tool("losetup", "--find", "--show", *options, path).strip()
    try:
        yield device
    finally:
        daemon.tool("losetup", "--detach", device)


@contextmanager
def mounted(daemon: Bockd, device: str, directory: Path, *options: str) -> Iterator[None]:
    directory.mkdir(exist_ok=True)
    daemon.tool("mount", *options, device, directory)
    try:
        yield
    finally:
        daemon.tool("umount", directory)


def write_tree(root: Path) -> None:
    """300 files in 10 directories, up to 64 KiB."""
    for number in range(300):
        file = root / str(number % 10) / f"file {number}"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(os.urandom(number * 217 % 65536))


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("file *")
    }


@pytest.mark.parametrize("direct", ["on", "off"])
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_file_system_on_a_loop_device(
    daemon: Bockd, mount: Path, tmp_path: Path, kind: str, direct: str
) -> None:
    """Made, filled, unmounted, checked; a snapshot of it, mounted while the volume is; the clone
    as nbdcopy sees it is the device byte by byte."""
    daemon.bock("volume", "create", "v", "--size", "400M")
    inside = tmp_path / "inside"
    check = {"ext4": ["e2fsck", "-fn"], "xfs": ["xfs_repair", "-n"]}[kind]
    with loop_device(daemon, mount / "volumes" / "v", f"--direct-io={direct}") as device:
        daemon.tool(f"mkfs.{kind}", "-q", device)
        with mounted(daemon, device, inside):
            write_tree(inside)
            daemon.tool("sync", "--file-system", inside)
            written = digests(inside)
        daemon.tool(check[0], *check[1:], device)
        daemon.bock("snapshot", "create", "v", "s")
        with mounted(daemon, device, inside):
            (inside / "0" / "file 0").write_bytes(b"changed")
        device_bytes = Path(device).read_bytes()
    nbd_copy = tmp_path / "copy"
    daemon.tool("nbdcopy", daemon.uri("v"), nbd_copy)
    assert nbd_copy.read_bytes() == device_bytes
    with (
        loop_device(daemon, mount / "snapshots" / "s", "--read-only") as frozen,
        mounted(daemon, frozen, inside, "-o", "ro,noload" if kind == "ext4" else "ro,norecovery"),
    ):
        assert digests(inside) == written
    daemon.check()


def test_clearing_a_loop_device_gives_its_space_back(daemon: Bockd, mount: Path) -> None:
    """Discard does not arrive (docs/fuse.md), cleared ranges do."""
    daemon.bock("volume", "create", "v", "--size", "64M")
    path = mount / "volumes" / "v"
    with loop_device(daemon, path, "--direct-io=on") as device:
        daemon.tool("dd", "if=/dev/urandom", f"of={device}", "bs=1M", "count=32", "oflag=direct")
        assert os.stat(path).st_blocks == 32 * MIB // 512
        daemon.run("blkdiscard", device)  # the kernel may call a discard that nobody did a success
        assert os.stat(path).st_blocks == 32 * MIB // 512
        daemon.tool("blkdiscard", "--zeroout", device)
    daemon.wait_until_unused("v")
    daemon.restart()  # which finishes what waits to be punched
    assert os.stat(path).st_blocks == 0
    daemon.check()


def test_a_loop_device_grows_with_its_volume(daemon: Bockd, mount: Path) -> None:
    daemon.bock("volume", "create", "v", "--size", "16M")
    with loop_device(daemon, mount / "volumes" / "v") as device:
        daemon.bock("volume", "extend", "v", "--size", "32M")
        daemon.tool("losetup", "--set-capacity", device)
        assert int(daemon.tool("blockdev", "--getsize64", device)) == 32 * MIB


def test_a_killed_daemon_under_a_mounted_loop_device(
    daemon: Bockd, mount: Path, tmp_path: Path
) -> None:
    """The file system above gets I/O errors, can be unmounted, and is whole afterwards: what was
    synced is there."""
    daemon.bock("volume", "create", "v", "--size", "64M")
    path = mount / "volumes" / "v"
    inside = tmp_path / "inside"
    with loop_device(daemon, path) as device:
        daemon.tool("mkfs.ext4", "-q", device)
        with mounted(daemon, device, inside):
            (inside / "file").write_bytes(b"synced" * 1000)
            daemon.tool("sync", "--file-system", inside)
            daemon.kill()
            lost = daemon.run("dd", f"if={device}", "of=/dev/null", "bs=1M", "iflag=direct")
            assert "Input/output error" in lost.err
    daemon.start()
    with loop_device(daemon, path) as device:
        with mounted(daemon, device, inside):  # replays its journal
            assert (inside / "file").read_bytes() == b"synced" * 1000
        daemon.tool("e2fsck", "-fn", device)
