"""Promise D5 through files: ENOSPC, nothing that was answered is lost, and zeros make room."""

from __future__ import annotations

import errno
import mmap
import os
import re
from pathlib import Path

from tests.daemon.filesystems import mounted
from tests.daemon.process import serving

from .watchdog import watched

MIB = 1 << 20
PIECE = 256 * 1024


def piece(number: int) -> bytes:
    return b"%07d\n" % number * (PIECE // 8)


def fill(file: int, first: int) -> int:
    """Write pieces from `first` on until there is no room; the first that failed."""
    for number in range(first, 128 * MIB // PIECE):
        try:
            written = os.pwrite(file, piece(number), number * PIECE)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return number
        assert written == PIECE
    raise AssertionError("the disk did not get full")


def test_a_full_disk(tmp_path: Path, mount: Path) -> None:
    """The first pieces are a snapshot's too, so writing them again takes room as well."""
    log = tmp_path / "log"
    with (
        mounted("ext4", tmp_path, 64 * MIB) as root,
        watched(mount),
        serving(root / "pool", log=log, mount=mount) as daemon,
    ):
        daemon.expect_in_log("full")
        daemon.bock("volume", "create", "v", "--size", "128M")
        path = mount / "volumes" / "v"
        file = os.open(path, os.O_RDWR)
        try:
            for number in range(40):
                os.pwrite(file, piece(1_000 + number), number * PIECE)
            daemon.bock("snapshot", "create", "v", "s")
            count = fill(file, 0)
            assert count > 50
            said = r"volume \d+: (a|\d+) writes? failed with ENOSPC: .*full"
            assert re.search(said, log.read_text())
            os.fsync(file)
            for number in range(count):
                assert os.pread(file, PIECE, number * PIECE) == piece(number)
            for number in range(20):
                assert os.pwritev(file, [mmap.mmap(-1, PIECE)], number * PIECE) == PIECE
            os.fsync(file)
        finally:
            os.close(file)
        daemon.wait_until_unused("v")
        daemon.restart()  # which finishes what waits to be punched
        file = os.open(path, os.O_RDWR)
        try:
            assert os.pread(file, 20 * PIECE, 0) == bytes(20 * PIECE)
            for number in range(count, count + 10):
                assert os.pwrite(file, piece(number), number * PIECE) == PIECE
            for number in range(20, count + 10):
                assert os.pread(file, PIECE, number * PIECE) == piece(number)
        finally:
            os.close(file)
        daemon.check()
