"""Imports into a pool whose disk has no room: real file systems that are small."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bockd.model import MIB

from ..daemon.filesystems import mounted
from .daemon import Daemon, running_daemon
from .images import image_names, path_with_changed_bock, tool

DISK_BYTES = 64 * MIB
LEFT_BYTES = 8 * MIB


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon whose pool is alone on a file system of DISK_BYTES."""
    work = tmp_path_factory.mktemp("small")
    with mounted("ext4", work, DISK_BYTES) as root, running_daemon(root / "pool") as daemon:
        yield daemon


def noise(path: Path, length: int) -> Path:
    """A raw image without a zero block."""
    path.write_bytes(random.Random(length).randbytes(length))
    return path


@pytest.mark.needs("files")
@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_no_room_is_said_before_it_begins(small: Daemon, tmp_path: Path, image_format: str) -> None:
    plain = noise(tmp_path / "plain.raw", 80 * MIB)
    image = tmp_path / f"large.{image_format}"
    tool("qemu-img", "convert", "-f", "raw", "-O", image_format, plain, image)
    for kind in ("volume", "image"):
        told = small.refusal(kind, "import", image)
        assert f"there is no room for large.{image_format} on the pool's disk" in told
        assert "80 MiB of data" in told
        assert f"MiB are free in {small.data_dir}" in told
    assert (small.names(), image_names(small)) == (set(), set())


@pytest.mark.needs("cluster")
@pytest.mark.parametrize("kind", ["volume", "image"])
def test_the_disk_of_a_gateway_is_not_the_pools(small: Daemon, tmp_path: Path, kind: str) -> None:
    small.bock(kind, "import", noise(tmp_path / "larger.raw", DISK_BYTES + 16 * MIB))
    small.bock(kind, "delete", "larger")


def test_zeros_need_no_room(small: Daemon, tmp_path: Path) -> None:
    """The file has no holes, as after a copy by a program that knows none."""
    image = tmp_path / "mostly-zeros.img"
    image.write_bytes(bytes(100 * MIB) + random.Random(1).randbytes(MIB) + bytes(MIB))
    assert image.stat().st_blocks * 512 >= 100 * MIB
    volume = small.bock_json("volume", "import", image)
    tool("qemu-img", "compare", "-f", "raw", "-F", "raw", image, volume["uri"])
    small.bock("volume", "delete", "mostly-zeros")


@contextmanager
def filled_meanwhile(daemon: Daemon, tmp_path: Path, image_format: str) -> Iterator[str]:
    """A PATH whose `bock` finds that others have filled the disk when it begins to write: in
    `qemu-img convert`, or (raw) by itself."""
    hog = daemon.data_dir.parent / "hog"
    fill = (
        f"head -c $(($(df -B 1 --output=avail {hog.parent} | tail -n 1) - {LEFT_BYTES})) /dev/zero "
        f"> {hog}"
    )
    try:
        if image_format == "raw":
            yield path_with_changed_bock(
                daemon,
                tmp_path,
                "import subprocess\n"
                "from bockd.cli import transfer\n"
                "copy_in = transfer.copy_in\n"
                "def late(*arguments):\n"
                f"    subprocess.run({fill!r}, shell=True, check=True)\n"
                "    copy_in(*arguments)\n"
                "transfer.copy_in = late\n",
            )
        else:
            stand_in = tmp_path / "bin" / "qemu-img"
            stand_in.parent.mkdir()
            path = daemon.environment["PATH"]
            stand_in.write_text(
                f'#!/bin/bash\n[[ $1 != convert ]] || {fill}\nPATH={path!r} exec qemu-img "$@"\n'
            )
            stand_in.chmod(0o755)
            yield f"{stand_in.parent}:{path}"
    finally:
        hog.unlink(missing_ok=True)


@pytest.mark.needs("files")
@pytest.mark.parametrize("kind", ["volume", "image"])
@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_disk_that_fills_up_meanwhile(
    small: Daemon, tmp_path: Path, kind: str, image_format: str
) -> None:
    plain, image = noise(tmp_path / "plain", 16 * MIB), tmp_path / f"in-time.{image_format}"
    tool("qemu-img", "convert", "-f", "raw", "-O", image_format, plain, image)
    with filled_meanwhile(small, tmp_path, image_format) as path:
        told = small.refusal(kind, "import", image, PATH=path)
    assert told.startswith(f"bock: the pool's disk is full: {image.name} has 16 MiB of data")
    assert f"are left in {small.data_dir}" in told
    assert "error while writing" not in told
    assert (small.names(), image_names(small)) == (set(), set())
    small.bock("volume", "import", image)
    small.bock("volume", "delete", "in-time")


def test_one_failure_is_told_once(tmp_path: Path) -> None:
    """qemu-img reports it for each of its requests."""
    image = noise(tmp_path / "image.img", 16 * MIB)
    with mounted("ext4", tmp_path, 8 * MIB) as root, running_daemon(tmp_path / "pool") as daemon:
        daemon.bock("volume", "import", image)
        told = daemon.refusal("volume", "export", "image", root / "out.raw")
        assert told.count("No space left on device") == 1
        assert subprocess.run(["ls", "-A", root], capture_output=True).stdout in (
            b"",
            b"lost+found\n",
        )
