"""Blocks of a file system for a part of a file, before anything is written there."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

_KEEP_SIZE = 0x01  # FALLOC_FL_KEEP_SIZE (linux/falloc.h)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.fallocate.restype = ctypes.c_int


def allocate(path: Path, offset: int, length: int) -> None:
    """Allocate disk blocks for `length` bytes of a file from `offset` on. Its size and content
    stay. Does nothing where the file system cannot. (os.posix_fallocate would write there, which
    is not safe while others write.) Raises OSError; part of the blocks may have been allocated
    then."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        if _libc.fallocate(fd, _KEEP_SIZE, offset, length) != 0:
            code = ctypes.get_errno()
            if code not in (errno.EOPNOTSUPP, errno.ENOSYS):
                raise OSError(code, os.strerror(code), os.fspath(path))
    finally:
        os.close(fd)
