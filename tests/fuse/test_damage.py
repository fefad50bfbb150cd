"""What a scrub found damaged, through the view: an error, and never data."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.daemon.damaged_volume import BLOCK, DAMAGED, content, fill, flip, scrub
from tests.daemon.process import Bockd
from tests.fuse.descriptor import opened

WHOLE = content(1, 600)
EIO = rf"\[Errno {errno.EIO}\]"


@pytest.mark.parametrize("restarted", [False, True])
def test_a_damaged_block_is_eio_and_its_neighbours_are_read(
    daemon: Bockd, mount: Path, restarted: bool
) -> None:
    """In the snapshot's file; in the volume's, which has blocks of its own before the damage."""
    fill(daemon)
    scrub(daemon)
    flip(daemon)
    scrub(daemon, status=1)
    daemon.expect_in_log("differs from what it held|failed with EIO: .* is damaged")
    if restarted:
        daemon.restart()
    own = content(2, 4)
    for path, start in ((mount / "snapshots" / "kept", b""), (mount / "volumes" / "disk", own)):
        shown = start + WHOLE[len(start) :]
        with opened(path, os.O_RDONLY) as file:
            for block in (DAMAGED - 1, DAMAGED + 1, 0, 599):
                at = block * BLOCK
                assert os.pread(file, BLOCK, at) == shown[at : at + BLOCK]
            for _ in range(2):
                for length, at in ((BLOCK, 0), (1, BLOCK - 1), (100, 3000)):
                    with pytest.raises(OSError, match=EIO):
                        os.pread(file, length, DAMAGED * BLOCK + at)
            # A read across it gives what comes before, or nothing; the whole file cannot be had.
            data = bytearray()
            with pytest.raises(OSError, match=EIO):
                read_on(file, data)
            assert shown.startswith(data)
            assert len(data) <= DAMAGED * BLOCK


def read_on(file: int, data: bytearray) -> None:
    """As `cat` reads, up to the end."""
    while more := os.pread(file, 3 * BLOCK, len(data)):
        data += more
