"""Ranges of a file that the file system makes zeros without a write, and what it says of them.

    punched   given back to the file system: a hole
    zeroed    kept, and marked as not written: *unwritten*. SEEK_DATA takes such a range for a hole,
              until it is written or somebody's read has brought its zeros into the page cache

Neither is on disk before the file is synced. Until then a crash may leave what was there before.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterator

_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 0x01, 0x02, 0x10  # FALLOC_FL_... (linux/falloc.h)

_NOT_HERE = (errno.EOPNOTSUPP, errno.ENOSYS)

_NO_ZEROING = (*_NOT_HERE, errno.EINVAL, errno.EPERM)
"""Also of file systems that want another alignment, and of a filter of system calls."""

_FS_IOC_FIEMAP = 0xC020660B  # (linux/fs.h)
_EXTENT_LAST, _EXTENT_UNWRITTEN = 0x1, 0x800
_REQUEST = struct.Struct("=QQIIII")
"""struct fiemap: start, length, flags, extents found, extents that there is room for, reserved."""

_EXTENT = struct.Struct("=QQQQQIIII")
"""struct fiemap_extent: offset, offset on the device, length, reserved, flags, reserved."""

_EXTENTS_AT_ONCE = 500

_ALL = (1 << 64) - 1
"""FIEMAP_MAX_OFFSET: behind the end of any file."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.fallocate.restype = ctypes.c_int


def punch_range(fd: int, offset: int, length: int) -> None:
    """Make a hole in a file. Raises OSError, and NotImplementedError where the file system
    cannot."""
    _fallocate(fd, _KEEP_SIZE | _PUNCH_HOLE, offset, length, _NOT_HERE)


def zero_range(fd: int, offset: int, length: int) -> None:
    """Make a range of a file zeros, and allocate what of it is not. Raises OSError: any part of it
    may be zeros then. NotImplementedError where the file system cannot."""
    _fallocate(fd, _KEEP_SIZE | _ZERO_RANGE, offset, length, _NO_ZEROING)


def _fallocate(fd: int, mode: int, offset: int, length: int, refusals: tuple[int, ...]) -> None:
    while _libc.fallocate(fd, mode, offset, length) != 0:
        code = ctypes.get_errno()
        if code in refusals:
            raise NotImplementedError
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


def unwritten_ranges(fd: int, start: int = 0, stop: int = _ALL) -> Iterator[tuple[int, int]]:
    """Yield the ranges of a file that are allocated and were never written, as (start, end), as far
    as they overlap start..stop-1 (bytes). None where the file system cannot tell. Raises
    OSError."""
    last = False
    while not last and start < stop:
        found = bytearray(_REQUEST.size + _EXTENTS_AT_ONCE * _EXTENT.size)
        _REQUEST.pack_into(found, 0, start, stop - start, 0, 0, _EXTENTS_AT_ONCE, 0)
        try:
            fcntl.ioctl(fd, _FS_IOC_FIEMAP, found)
        except OSError as error:
            if error.errno in (*_NO_ZEROING, errno.ENOTTY):
                return
            raise
        count = _REQUEST.unpack_from(found)[3]
        last = not count
        for number in range(count):
            at = _REQUEST.size + number * _EXTENT.size
            offset, _, length, _, _, flags, _, _, _ = _EXTENT.unpack_from(found, at)
            if flags & _EXTENT_UNWRITTEN:
                yield offset, offset + length
            start, last = offset + length, bool(flags & _EXTENT_LAST)
