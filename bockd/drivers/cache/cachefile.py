"""The file that holds the cached blocks of one device, each at its own offset: sparse, local.

It is an `OpenLayer`, so the fast lane reads from it, and sends from its windows. It knows nothing
of which of its bytes mean anything: the map does. Nothing here is synced before `sync`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar

from bockd.drivers.local.format.fileranges import punch_range
from bockd.drivers.local.format.windows import Window, Windows
from bockd.model import BLOCK_SIZE, TIB
from bockd.runtime.steps import Blocking, blocking_apart

P = ParamSpec("P")
T = TypeVar("T")

MAX_FILE_BYTES = 8 * TIB
"""What lies beyond this in a device is not cached: ext4 files end just short of 16 TiB."""

FILE_CALL = "cache files"
"""The kind of blocking call that all calls for files of a cache are."""

_ZEROS = bytes(BLOCK_SIZE)

_NO_NOWAIT = (errno.EOPNOTSUPP, errno.EINVAL)


class Identity(NamedTuple):
    """A file and its state: another one, a copy, or one that was written since, has another."""

    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int


class CacheFile:
    """An open cache file. Offsets and lengths are in bytes, blocks are numbers."""

    packed = False

    def __init__(self, fd: int) -> None:
        """Take over a descriptor. Raises OSError."""
        self.first_descriptor = fd
        self.nowait_flag = os.RWF_NOWAIT if _supports_nowait(fd) else 0
        self.used = False
        self._windows = Windows()
        # Requests are random; reading ahead and large folios only cost.
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)

    @classmethod
    def create(cls, path: Path, size_bytes: int) -> CacheFile:
        """Make a file of holes in place of what is there. Raises OSError."""
        with suppress(FileNotFoundError):
            path.unlink()
        return cls._opened(path, os.O_CREAT | os.O_EXCL, size_bytes)

    @classmethod
    def open(cls, path: Path, size_bytes: int) -> CacheFile:
        """Open a file that was kept, and make it longer if the device has grown. Raises OSError."""
        return cls._opened(path, 0, size_bytes)

    @classmethod
    def _opened(cls, path: Path, flags: int, size_bytes: int) -> CacheFile:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)
        try:
            file = cls(fd)
            file.grow(size_bytes)
        except BaseException:
            os.close(fd)
            raise
        return file

    def identity(self) -> Identity:
        """Return which file this is, and its state. Raises OSError."""
        return identity_of(os.fstat(self.first_descriptor))

    def window(self, offset: int) -> Window | None:
        """See OpenLayer.window."""
        return self._windows.find(self.first_descriptor, offset)

    def try_read(self, offset: int, into: memoryview) -> bool:
        """Fill `into` from the page cache; False, if not all of it is there. Raises OSError."""
        try:
            done = os.preadv(self.first_descriptor, (into,), offset, self.nowait_flag)
        except BlockingIOError:
            return False
        if not done:
            raise _too_short()
        return done == len(into)

    def read(self, pieces: Sequence[tuple[int, memoryview]]) -> None:
        """Fill buffers, each from an offset. Blocks. Raises OSError."""
        for offset, into in pieces:
            while into:
                done = os.preadv(self.first_descriptor, (into,), offset)
                if not done:
                    raise _too_short()
                into, offset = into[done:], offset + done

    def fill(self, pieces: Sequence[tuple[int, bytes]]) -> list[bytes]:
        """Write whole blocks, each piece from a block on, but for blocks of zeros. Return for each
        piece which those are: a byte for each block, 1 if it is zeros. Blocks. Raises OSError: any
        part may have been written."""
        return [self._fill(first, data) for first, data in pieces]

    def _fill(self, first: int, data: bytes) -> bytes:
        count = len(data) // BLOCK_SIZE
        view = memoryview(data)
        ends = range(BLOCK_SIZE, len(data) + 1, BLOCK_SIZE)
        zeros = bytes([data[end - BLOCK_SIZE : end] == _ZEROS for end in ends])
        start = 0
        while start < count:
            if zeros[start]:
                start += 1
                continue
            stop = zeros.find(1, start)
            stop = count if stop < 0 else stop
            self._write((first + start) * BLOCK_SIZE, view[start * BLOCK_SIZE : stop * BLOCK_SIZE])
            start = stop
        return zeros

    def _write(self, offset: int, data: memoryview) -> None:
        while data:
            done = os.pwrite(self.first_descriptor, data, offset)
            data, offset = data[done:], offset + done

    def punch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Give ranges, as (offset, length), back to the file system; they read as zeros then.
        Blocks. Raises OSError, NotImplementedError."""
        for offset, length in ranges:
            punch_range(self.first_descriptor, offset, length)

    def grow(self, size_bytes: int) -> None:
        """Make the file as long as the device, at most MAX_FILE_BYTES. Blocks. Call
        `forget_windows` then. Raises OSError."""
        needed = min(size_bytes, MAX_FILE_BYTES)
        if os.fstat(self.first_descriptor).st_size < needed:
            os.ftruncate(self.first_descriptor, needed)

    def forget_windows(self) -> None:
        """Map the file anew when it is asked for: it has become longer, and windows end where it
        did. For the owner thread."""
        self._windows.forget()

    def sync_data(self) -> None:
        """Make the data that was written durable: an error says that it is not on the disk. Blocks.
        Raises OSError."""
        os.fdatasync(self.first_descriptor)

    def sync(self) -> None:
        """Make what was written durable. Blocks. Raises OSError."""
        os.fsync(self.first_descriptor)

    def close(self) -> None:
        """Close the file. No read may be under way."""
        self._windows.forget()
        fd, self.first_descriptor = self.first_descriptor, -1
        if fd >= 0:
            with suppress(OSError):
                os.close(fd)


def file_call(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Blocking[T]:
    """Do what `blocking` does. A disk that hangs takes no thread from calls for anything else."""
    return blocking_apart(FILE_CALL, function, *args, **kwargs)


def identity_of(found: os.stat_result) -> Identity:
    """Return the identity of a file."""
    return Identity(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _too_short() -> OSError:
    return OSError(errno.EIO, "the file is shorter than it was made")


def _supports_nowait(fd: int) -> bool:
    """Whether preadv accepts RWF_NOWAIT here (tmpfs does not)."""
    try:
        os.preadv(fd, (bytearray(1),), 0, os.RWF_NOWAIT)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno in _NO_NOWAIT:
            return False
        raise
    return True
