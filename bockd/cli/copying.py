"""The bytes of an export to a file, and those of a file to an export, a few MiB on their way.

Only what is not zeros is moved: holes of the one side, and blocks of zeros, become holes of the
other. What has been written is sent on to the disk while the rest is still on its way, so that
little is left to wait for at the end.
"""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Final, Protocol
from urllib.parse import unquote, urlsplit

from bockd.cli.convert import Show
from bockd.diskimage.extents import data_ranges
from bockd.errors import ConflictError
from bockd.model import BLOCK_SIZE, KIB, MIB, split_export_uri
from bockd.nbd.client import MAX_READ_BYTES, Export
from bockd.tls.trust import Trust

PIECE_BYTES: Final = MAX_READ_BYTES

MAX_PENDING_BYTES: Final = 8 * MIB
MAX_PENDING_REQUESTS: Final = 64
"""What is on its way at once: enough that neither side waits for the other."""

GAP_BYTES: Final = 64 * KIB
"""Holes up to this size are read with the data around them: two requests would take longer."""

WRITEBACK_BYTES: Final = 8 * MIB
FLUSH_BYTES: Final = 32 * MIB
"""Written between two orders to bring it to the disk: of the kernel, for a file; of the daemon,
which has more to do for one."""

_LOW_EXTENTS: Final = 2
"""With fewer left to read, more are asked for."""

NBD_PORT: Final = 10809

_ZEROS: Final = bytes(BLOCK_SIZE)
_SYNC_FILE_RANGE_WRITE: Final = 2


def connected(uri: str, trust: Trust | None = None) -> Export:
    """Connect to the export of a URI: nbd+unix, nbd or nbds, which needs `trust`. Raises
    UnavailableError, InvalidRequestError."""
    parts = urlsplit(uri)
    if parts.scheme == "nbd+unix":
        name, socket_path = split_export_uri(uri)
        return Export(socket_path, name)
    tls = (trust or Trust()).context() if parts.scheme == "nbds" else None
    place = (parts.hostname or "", parts.port or NBD_PORT)
    return Export(place, unquote(parts.path.removeprefix("/")), tls)


def data_runs(content: bytearray, length: int) -> Iterator[tuple[int, int]]:
    """Yield begin and end of each run of blocks that are not all zeros, in order.

    Only a block that begins with a zero is looked at.
    """
    begin, block = 0, -1
    first_bytes = content[:length:BLOCK_SIZE]
    while (block := first_bytes.find(0, block + 1)) >= 0:
        at = block * BLOCK_SIZE
        end = min(at + BLOCK_SIZE, length)
        if content[at:end] == _ZEROS[: end - at]:
            if begin < at:
                yield begin, at
            begin = end
    if begin < length:
        yield begin, length


# -- out ---------------------------------------------------------------------------------------


def copy_out(uri: str, offset: int, length: int, descriptor: int, show: Show) -> None:
    """Make an empty file hold `length` bytes of an export, from `offset` on. Raises BockdError,
    OSError."""
    os.ftruncate(descriptor, length)
    with connected(uri) as export:
        Reading(export, offset, length, _File(descriptor), show).run()


def reads_as_zeros(uri: str, offset: int, length: int) -> bool:
    """Return whether a part of an export holds nothing but zeros. Raises BockdError."""
    with connected(uri) as export:
        for at in range(offset, offset + length, PIECE_BYTES):
            count = min(PIECE_BYTES, offset + length - at)
            export.read(at, count)
            while export.pending:
                part = export.receive()
                if any(data_runs(export.content, part.length)):
                    return False
    return True


class Target(Protocol):
    """Where what is read goes, if it is not a hole."""

    def write(self, content: bytearray, length: int, position: int) -> None:
        """Write `length` bytes of `content`. `position` counts from where the reading began. Raises
        BockdError, OSError."""
        ...


class Reading:
    """A copy out under way. The extents are asked for a little ahead of the data."""

    def __init__(
        self, export: Export, offset: int, length: int, target: Target, show: Show
    ) -> None:
        self._export = export
        self._offset = offset
        self._end = offset + length
        self._target = target
        self._show = show
        self._wanted: deque[tuple[int, int]] = deque()
        """Begin and end of what is to be read and was not asked for yet."""
        self._left_bytes = 0
        """What is to be read and has not come yet."""
        self._known = offset
        """Up to where the extents are known."""

    def run(self) -> None:
        """Copy to the end. Raises BockdError, OSError."""
        export = self._export
        while True:
            self._ask()
            if not export.pending:
                return
            part = export.receive()
            self._learn(part.extents)
            if part.length:
                self._left_bytes -= part.length
                self._target.write(export.content, part.length, part.offset - self._offset)
            if self._show is not None:
                self._show(self._known - self._offset - self._left_bytes)

    def _ask(self) -> None:
        export, wanted = self._export, self._wanted
        if self._known < self._end and len(wanted) < _LOW_EXTENTS and not export.asks_status:
            export.status(self._known, self._end - self._known)
        while wanted and has_room(export):
            begin, end = wanted.popleft()
            piece = min(end, begin + PIECE_BYTES)
            if piece < end:
                wanted.appendleft((piece, end))
            export.read(begin, piece - begin)

    def _learn(self, extents: Sequence[tuple[int, bool]]) -> None:
        for length, zero in extents:
            begin = self._known
            self._known = min(begin + length, self._end)
            if not zero:
                self._want(begin, self._known)

    def _want(self, begin: int, end: int) -> None:
        if self._wanted and begin - self._wanted[-1][1] <= GAP_BYTES:
            earlier, begin = self._wanted.pop()
            self._wanted.append((earlier, end))
        else:
            self._wanted.append((begin, end))
        self._left_bytes += end - begin


class _File:
    """A file that is written, where there is more than zeros."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._unsent_bytes = 0
        self._sync_file_range = ctypes.CDLL(None).sync_file_range
        self._sync_file_range.argtypes = (
            ctypes.c_int,
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.c_uint,
        )

    def write(self, content: bytearray, length: int, position: int) -> None:
        """Write `length` bytes of `content` at `position`. Raises OSError."""
        view = memoryview(content)
        for begin, end in data_runs(content, length):
            while begin < end:
                begin += os.pwrite(self._descriptor, view[begin:end], position + begin)
        self._unsent_bytes += length
        if self._unsent_bytes >= WRITEBACK_BYTES:
            self._unsent_bytes = 0
            # A beginning only: what counts, and whose errors are told, is the fsync at the end.
            self._sync_file_range(self._descriptor, 0, 0, _SYNC_FILE_RANGE_WRITE)


# -- in ----------------------------------------------------------------------------------------


def copy_in(path: Path, length: int, uri: str, show: Show) -> None:
    """Write the first `length` bytes of a file or block device to an export that reads as zeros,
    and have them survive power loss. The last block is filled up with zeros. Raises ConflictError
    when the file has become shorter, NoSpaceError and other BockdErrors, OSError."""
    with path.open("rb", buffering=0) as file, connected(uri) as export:
        unflushed_bytes, content = 0, bytearray(PIECE_BYTES)
        for offset, count in _pieces(file.fileno(), length):
            padded = _read_piece(file, content, offset, count)
            for begin, end in data_runs(content, padded):
                while not has_room(export):
                    export.receive()
                export.write(offset + begin, memoryview(content)[begin:end])
                unflushed_bytes += end - begin
            if unflushed_bytes >= FLUSH_BYTES and not export.flushes:
                unflushed_bytes = 0
                export.flush()
            if show is not None:
                show(offset + count)
        export.drain()
        export.flush()
        export.drain()
        if show is not None:
            show(length)


def flush(uri: str) -> None:
    """Have everything that was written to an export survive power loss. Raises BockdError."""
    with connected(uri) as export:
        export.flush()
        export.drain()


def _pieces(descriptor: int, length: int) -> Iterator[tuple[int, int]]:
    """Offset and length of each piece of a file that is to be read: of whole blocks, so that no
    block is written twice, in an order that the server may change."""
    done = 0
    for begin, end in data_ranges(descriptor, length):
        first = max(done, begin - begin % BLOCK_SIZE)
        done = max(done, min(-(-end // BLOCK_SIZE) * BLOCK_SIZE, length))
        for offset in range(first, done, PIECE_BYTES):
            yield offset, min(PIECE_BYTES, done - offset)


def _read_piece(file: IO[bytes], content: bytearray, offset: int, length: int) -> int:
    """Read into `content`, and fill the last block up; return the end of that block."""
    done, view = 0, memoryview(content)
    while done < length:
        count = os.preadv(file.fileno(), [view[done:length]], offset + done)
        if not count:
            raise ConflictError(f"{file.name} changed while it was imported")
        done += count
    padded = -(-length // BLOCK_SIZE) * BLOCK_SIZE
    view[length:padded] = bytes(padded - length)
    return padded


def has_room(export: Export) -> bool:
    """Return whether another request may be sent."""
    few = len(export.pending) < MAX_PENDING_REQUESTS
    return few and export.pending_bytes < MAX_PENDING_BYTES
