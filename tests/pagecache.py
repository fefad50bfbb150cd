"""What of a file is in the page cache."""

from __future__ import annotations

import ctypes
import mmap
import os
import time

_PATIENCE_SECONDS = 60.0

_libc = ctypes.CDLL(None, use_errno=True)


def drop(descriptor: int) -> None:
    """Have nothing of a file in the page cache. Pages that the kernel is reading just then, or that
    another processor is about to put in its lists, stay when it is told to drop them; so it is told
    until all have gone. What was written is synced."""
    until = time.monotonic() + _PATIENCE_SECONDS
    while True:
        os.fdatasync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        if not (kept := cached_pages(descriptor)):
            return
        assert time.monotonic() < until, f"{kept} pages of the file stay in the page cache"
        time.sleep(0.001)


def cached_pages(descriptor: int) -> int:
    """Return how many pages of a file are in the page cache (mincore(2))."""
    if not (length := os.fstat(descriptor).st_size):
        return 0
    # Writable, so that ctypes tells its address; nothing is written.
    with mmap.mmap(descriptor, length, mmap.MAP_PRIVATE) as mapped:
        first = ctypes.c_char.from_buffer(mapped)
        found = (ctypes.c_ubyte * -(-length // mmap.PAGESIZE))()
        failed = _libc.mincore(ctypes.byref(first), ctypes.c_size_t(length), found)
        del first
    assert not failed, os.strerror(ctypes.get_errno())
    return sum(page & 1 for page in found)
