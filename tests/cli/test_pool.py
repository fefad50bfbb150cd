"""`bock pool show`: what is used, free and promised, and the daemon's warnings about it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from bockd.daemon.capacity import Capacity, Threshold
from bockd.drivers.local.pool import LocalPool
from bockd.model import MIB
from bockd.runtime.steprunner import StepRunner
from bockd.runtime.steps import Background

from .daemon import Daemon, running_daemon


def write(daemon: Daemon, volume: str, pattern: int, first_mib: int, length_mib: int) -> None:
    """Fill a part of a volume."""
    volumes = daemon.bock_json("volume", "list")
    uri = next(one["uri"] for one in volumes if one["name"] == volume)
    command = f"write -P {pattern} {first_mib}M {length_mib}M"
    ended = daemon.run("qemu-io", "-f", "raw", "-c", command, "-c", "flush", uri)
    assert ended.status == 0, ended


@pytest.mark.needs("shares")
def test_shares_of_volumes_snapshots_and_images(tmp_path: Path) -> None:
    """Each block counts once: for a volume, else for a snapshot, else for an image."""
    with running_daemon(tmp_path / "pool") as daemon:
        daemon.bock("volume", "create", "v", "--size", "64M")
        write(daemon, "v", 1, 0, 4)
        daemon.bock("snapshot", "create", "v", "before")
        write(daemon, "v", 2, 0, 3)
        daemon.bock("volume", "create", "clone", "--from-snapshot", "before")
        image = tmp_path / "image.raw"
        image.write_bytes(b"i" * (2 * MIB))
        daemon.bock("image", "import", image)
        shown = daemon.bock_json("pool", "show")
        assert (shown["volumes"], shown["snapshots"], shown["images"]) == (2, 1, 1)
        assert shown["promised_bytes"] == 128 * MIB
        # The clone shows all that the snapshot holds.
        assert shown["volumes_bytes"] == 7 * MIB
        assert (shown["snapshots_bytes"], shown["images_bytes"]) == (0, 2 * MIB)
        daemon.bock("volume", "delete", "clone")
        shown = daemon.bock_json("pool", "show")
        assert (shown["volumes_bytes"], shown["snapshots_bytes"]) == (4 * MIB, 3 * MIB)
        assert shown["used_bytes"] >= 9 * MIB
        whole = shown["used_bytes"] + shown["others_bytes"] + shown["free_bytes"]
        assert whole == shown["size_bytes"]
        assert shown["warn_percent"] == [80, 90, 95]
        told = daemon.bock("pool", "show")
        assert "3 MiB (1 snapshot)" in told
        assert "64 MiB to 1 volume\n" in told


def test_each_threshold_is_told_once_until_it_was_left() -> None:
    levels = Threshold((80, 90))
    for percent, told in (
        *((79.9, None), (80.0, 80), (85.0, None), (79.0, None), (80.0, None)),
        *((95.0, 90), (89.0, None), (91.0, None), (77.9, None), (81.0, 80), (97.0, 90)),
    ):
        assert levels.passed(percent) == told, percent


def filled(percent: int, files_percent: int) -> os.statvfs_result:
    """A file system of 100 blocks of 1 MiB and of 100 inodes."""
    free, files = 100 - percent, 100 - files_percent
    return os.statvfs_result((MIB, MIB, 100, free, free, 100, files, files, 0, 255))


def test_the_daemon_warns_of_space_and_of_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="bockd.daemon.capacity")
    pool = LocalPool.open(tmp_path / "pool", Background().spawn)
    try:
        capacity = Capacity(
            pool, StepRunner(1), tmp_path, f"the file system of {tmp_path}", (80, 90)
        )
        for seen, words in (
            (filled(79, 10), None),
            (filled(81, 10), "81 % full, 19 MiB are free"),
            (filled(82, 10), None),
            (filled(82, 90), "used 90 % of its files"),
            (filled(93, 91), "93 % full, 7 MiB are free"),
        ):
            caplog.clear()
            capacity.warn(seen)
            told = [record.getMessage() for record in caplog.records]
            assert len(told) == (words is not None)
            assert words is None or words in told[0]
    finally:
        pool.release()
