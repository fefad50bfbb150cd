"""Windows: parts of a file that are mapped, so that the kernel can send from the page cache.

A read that is sent from a window is copied once, by the kernel, and not once more into a buffer of
ours. The bytes must not be touched from here: a page that cannot be read kills who does (SIGBUS),
where a system call only fails (EFAULT). A window needs no descriptor and outlives the file's.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections import OrderedDict

from bockd.model import MIB

WINDOW_BYTES = 256 * MIB
"""Of address space, and at most 512 KiB of page tables, which are nowhere counted."""

MAX_WINDOWS = 8
"""Of one file; the one that was not used for longest makes room. A volume whose large reads go all
over more than 2 GiB pays for new ones all the time (not measured)."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
)
_libc.mmap.restype = ctypes.c_void_p
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

_FAILED = ctypes.c_void_p(-1).value


class Window:
    """A mapped part of a file, for as long as this object lives."""

    __slots__ = ("address", "length", "start")

    def __init__(self, fd: int, start: int, length: int) -> None:
        """Map `length` bytes from `start`. Raises OSError."""
        self.start = start
        self.length = 0
        address = _libc.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, fd, start)
        if address == _FAILED:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        self.address: int = address
        self.length = length
        # Of a page that is gone when it is sent, the kernel would read 2 MiB around it.
        _libc.madvise(address, length, mmap.MADV_RANDOM)

    def __del__(self) -> None:
        if self.length:
            _libc.munmap(self.address, self.length)


class Windows:
    """The windows of one file, made when they are asked for."""

    def __init__(self) -> None:
        self._windows: OrderedDict[int, Window] = OrderedDict()

    def find(self, fd: int, offset: int) -> Window | None:
        """Return the window that contains byte `offset` of the file, or None where there can be
        none. It ends where the file ended when it was made, unless the file has grown since then
        and `offset` is behind that. For one thread."""
        windows, number = self._windows, offset // WINDOW_BYTES
        start = number * WINDOW_BYTES
        window = windows.get(number)
        if window is not None and offset - start < window.length:
            windows.move_to_end(number)
            return window
        try:
            length = min(WINDOW_BYTES, os.fstat(fd).st_size - start)
            if length <= offset - start:
                return None
            window = Window(fd, start, length)
        except OSError:  # no address space, or the file system has no mmap: reads do without
            return None
        windows.pop(number, None)
        if len(windows) >= MAX_WINDOWS:
            windows.popitem(last=False)
        windows[number] = window
        return window

    def forget(self) -> None:
        """Drop all windows. One that is being sent from stays until that is done. For any
        thread."""
        self._windows = OrderedDict()
