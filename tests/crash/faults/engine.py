"""The engine as this laboratory runs it: that of the power-cut laboratory, with a ballast that does
for its index, and punches by the file system's order alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from bockd.drivers.local.format import layer
from bockd.index import ballast
from bockd.model import KIB
from tests.crash.powercut.engine import laboratory


class _Fallocate:
    """In the place of the C library, which has -1 and errno for what is an OSError here."""

    @staticmethod
    def fallocate(fd: int, _flags: int, offset: int, length: int) -> int:
        length = min(length, os.fstat(fd).st_size - offset)
        if length > 0:
            os.setxattr(fd, "user.punch", f"{offset} {length}".encode())
        return 0


@contextmanager
def faulty_laboratory() -> Iterator[None]:
    """For the duration, the engine is as described above."""
    with (
        laboratory(),
        mock.patch.object(layer, "_libc", _Fallocate),
        mock.patch.object(ballast, "BALLAST_BYTES", 128 * KIB),
        # Memory that was never touched would be written in more pieces, now and then.
        mock.patch.object(ballast, "bytes", lambda count: b"\0" * count, create=True),
        mock.patch.object(ballast, "ROOM_BYTES", 256 * KIB),
    ):
        yield
