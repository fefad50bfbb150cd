"""The engine as the laboratory runs it: small (tests/crash/small.py), on a file system without
fallocate, SEEK_DATA and FIEMAP. Every other journal segment is made of a spare, as on a full disk.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

from bockd.drivers.local import access, poolfiles
from bockd.drivers.local.access import StoreAccess
from bockd.drivers.local.format import fileranges, layer
from bockd.drivers.local.format.journal import JournalSegment
from bockd.drivers.local.format.layer import Layer
from bockd.drivers.local.format.layout import JournalName
from bockd.drivers.local.format.spares import SpareSegments
from bockd.drivers.local.volume import durability, volume
from bockd.errors import named
from tests.crash.powercut.disk import PAGE_BYTES
from tests.crash.small import small_engine

JOURNAL_RECORDS = 96
_ZERO_RANGE = 0x10
_TOUCHED_ZEROS = b"\0" * volume.PIECE_BYTES
"""The kernel copies a write in two where memory that was never touched begins, in the middle of a
sector, and hands the file system two writes; the disk would take them for torn. Repeating a byte
touches the memory, which `bytes(n)` does not."""

_ZEROS = _TOUCHED_ZEROS[: 64 * 1024]


class Fallocate:
    """In the place of the C library: punches and zeroes by the file system's own orders. One range
    in four it cannot zero, so that zeros are written, too."""

    @classmethod
    def fallocate(cls, fd: int, flags: int, offset: int, length: int) -> int:
        end = min(offset + length, os.fstat(fd).st_size)
        if flags & _ZERO_RANGE and offset // PAGE_BYTES % 4 == 3:
            ctypes.set_errno(errno.EOPNOTSUPP)
            return -1
        if offset < end:
            order = "user.zero" if flags & _ZERO_RANGE else "user.punch"
            cls.make_zeros(fd, offset, end, order)
        return 0

    @staticmethod
    def make_zeros(fd: int, offset: int, end: int, order: str) -> None:
        # The kernel has the pages cached; the zeros go through it, and on to the file.
        for at in range(offset, end, len(_ZEROS)):
            os.pwrite(fd, _ZEROS[: end - at], at)
        os.setxattr(fd, order, f"{offset} {end - offset}".encode())


class _StoppedClock:
    """In the place of the module: a time that is written shorter or longer would make one seed two
    histories."""

    @staticmethod
    def time() -> float:
        return 1.0


def _data_ranges(self: Layer, offset: int, length: int) -> Iterator[tuple[int, int]]:
    """Layers here have one segment."""
    for start, end in _ranges(self.descriptors[0], "user.ranges"):
        if start < offset + length and end > offset:
            yield max(start, offset), min(end, offset + length)


def _ranges(fd: int, order: str) -> Iterator[tuple[int, int]]:
    numbers = [int(word) for word in os.getxattr(fd, order).split()]
    yield from zip(numbers[::2], numbers[1::2], strict=True)


def _unwritten_ranges(
    fd: int, start: int = 0, stop: int = sys.maxsize
) -> Iterator[tuple[int, int]]:
    for low, high in _ranges(fd, "user.unwritten"):
        if low < stop and high > start:
            yield low, high


def _create_segment(
    store: StoreAccess, name: JournalName, *, reserve: bool, packed: bool
) -> JournalSegment:
    """As on a full disk, every other time."""
    unfinished = store.layout.unfinished_segment(name)
    if (name.generation + name.number) % 2 and store.spares.take(unfinished):
        with named(f"creating journal segment {name}"):
            return JournalSegment.create(store.layout, name, store.boot, reuse=True, packed=packed)
    return access.create_segment(store, name, reserve=reserve, packed=packed)


class _AlwaysWanted:
    """In the place of an attribute: what is done with becomes a spare as long as there are few."""

    def __get__(self, *_: object) -> bool:
        return True

    def __set__(self, *_: object) -> None:
        """It stays true."""


@contextmanager
def laboratory() -> Iterator[None]:
    """For the duration, the engine is as described above."""
    replaced = (
        (volume, "_ZEROS", memoryview(_TOUCHED_ZEROS)),
        (poolfiles, "time", _StoppedClock),
        (layer, "_ZEROS", memoryview(_TOUCHED_ZEROS)),
        (layer, "unwritten_ranges", _unwritten_ranges),
        (fileranges, "_libc", Fallocate),
        (Layer, "data_ranges", _data_ranges),
        # After a death recovery decides from the head's content, as it does for a copy.
        (Layer, "stayed_in_memory", lambda _: False),
        (durability, "create_segment", _create_segment),
    )
    with small_engine(JOURNAL_RECORDS), ExitStack() as patches:
        for target, name, value in replaced:
            patches.enter_context(mock.patch.object(target, name, value))
        patches.enter_context(
            mock.patch.object(SpareSegments, "wanted", _AlwaysWanted(), create=True)
        )
        yield
