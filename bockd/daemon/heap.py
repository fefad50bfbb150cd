"""Memory: what is free in the C library's heap is given back to the system (mallopt(3),
malloc_trim(3)), and what stays is left out of collections.

To hash a password takes 16 MiB for a moment. Left to itself, glibc keeps such pieces once it has
met one: an idle daemon would hold them for good. Where there is no glibc nothing is done.
"""

from __future__ import annotations

import ctypes
import gc
from typing import Final

from bockd.model import MIB

_M_TRIM_THRESHOLD: Final = -1  # malloc.h
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8

LARGE_BYTES: Final = 4 * MIB
"""Pieces from here on are mapped, and unmapped when they are free. No request takes one."""

FREE_BYTES: Final = 8 * MIB
"""What may stay free at the heap's end, for the requests that come next."""

ARENAS: Final = 1
"""For all threads together: left to itself, glibc gives each one of its own, and each may keep
FREE_BYTES. Python's lock lets one thread allocate at a time all but always."""

_libc = ctypes.CDLL(None)


def bound() -> None:
    """Limit what the heap keeps of freed memory. Call it once, before anything large is
    allocated."""
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)
        _libc.mallopt(_M_TRIM_THRESHOLD, FREE_BYTES)
        _libc.mallopt(_M_ARENA_MAX, ARENAS)


def settle() -> None:
    """Have the garbage collector pass over what is alive now, because that stays, and give back to
    the system what is free. Call it whenever much has been imported or built."""
    gc.collect()
    gc.freeze()
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)
