"""The engine as this laboratory runs it: that of the power-cut laboratory, with a ballast that does
for its index, and punches and zeroes by the file system's orders alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from bockd.drivers.local.format import fileranges
from bockd.drivers.local.volume import cells
from bockd.index import ballast
from bockd.model import KIB
from tests.crash.powercut.engine import Fallocate, laboratory


class _Fallocate(Fallocate):
    """In the place of the C library, which has -1 and errno for what is an OSError here."""

    @staticmethod
    def make_zeros(fd: int, offset: int, end: int, order: str) -> None:
        os.setxattr(fd, order, f"{offset} {end - offset}".encode())


@contextmanager
def faulty_laboratory() -> Iterator[None]:
    """For the duration, the engine is as described above."""
    with (
        laboratory(),
        mock.patch.object(fileranges, "_libc", _Fallocate),
        mock.patch.object(ballast, "BALLAST_BYTES", 128 * KIB),
        # Memory that was never touched would be written in more pieces, now and then.
        mock.patch.object(ballast, "bytes", lambda count: b"\0" * count, create=True),
        mock.patch.object(ballast, "ROOM_BYTES", 256 * KIB),
        # The scenario gives out few cells: a head that has given out 100 is short of them.
        mock.patch.object(cells, "ROTATION_CELLS", cells.MAX_CELLS - 100),
    ):
        yield
