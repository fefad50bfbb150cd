"""A layer: a sparse file that holds some blocks of a volume, each at its own offset.

ext4 files end 4 KiB short of 16 TiB, so a layer is a sequence of segment files of at most 8 TiB.
A layer knows nothing of maps: which of its bytes mean anything, the map decides.

The head of a volume is written and synced through the one descriptor opened here and never
closed while it has unsynced writes: a failed write-back is reported once, to those descriptors
that were open, and must not be missed (`Volume` treats it as final).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from bockd.drivers.local.format.fileranges import punch_range, unwritten_ranges, zero_range
from bockd.drivers.local.format.layout import Layout
from bockd.drivers.local.format.prefetch import prefetch_range
from bockd.drivers.local.format.windows import Window, Windows
from bockd.drivers.local.format.writepieces import SMALL_BYTES
from bockd.durable import sync_directory
from bockd.errors import BockdError, DamagedError, from_os_error
from bockd.failpoints import Failpoint, hit
from bockd.model import BLOCK_SIZE, KIB, MIB, TIB, LayerId
from bockd.runtime.syncing import Syncing

if TYPE_CHECKING:
    from bockd.drivers.local.format.catalogue import LayerRecord

SEGMENT_BYTES = 8 * TIB
"""Half of what ext4 allows, so that two segments hold the largest volume."""

OVERWRITE_PIECE_BYTES = 64 * KIB
"""What is in the page cache keeps its folios, so that only the number of calls counts; where it is
not, this bounds them."""

ZERO_PIECE_BYTES = 16 * MIB
"""What the file system zeroes at once. Writes of the file wait for that, on the owner thread, too:
one millisecond if all of it is in the page cache."""

ZERO_SECONDS = 0.005
"""What one call of `Layer.zero` takes, about: writes to the same blocks, and snapshots, wait."""

LARGEST_FOLIO_BYTES = 2 * MIB
"""The page cache forgets whole folios only; those of files have this size at most."""

_F_GET_RW_HINT, _F_SET_RW_HINT = 1035, 1036
"""An inode's expected write life (linux/fcntl.h), which the kernel keeps in memory alone."""

_WRITE_LIFE_NONE = 1
"""RWH_WRITE_LIFE_NONE: explicitly no hint. It changes nothing for the device, and differs from 0,
what an inode has that was just read from the disk."""

_HINT = struct.Struct("=Q")

_ZEROS = memoryview(bytes(1 * MIB))


class Layer:
    """The open files of one layer. Offsets and lengths are in bytes of the whole layer."""

    def __init__(
        self, layer_id: LayerId, descriptors: list[int], *, nowait: bool, packed: bool = False
    ) -> None:
        self.id = layer_id
        self.packed = packed
        """Its blocks lie in cells (format.cells). Offsets here are in bytes of its file."""
        self.adopt(descriptors)
        self.nowait_flag = os.RWF_NOWAIT if nowait else 0
        """For preadv: fail rather than wait for the disk; 0 where the file system cannot."""
        self.used = False
        """Set by whoever reads: `FrozenLayer` closes what was not used for longest."""
        self.readers = 0
        """Reads in threads that are under way; the owner thread counts them."""
        self._windows = Windows()

    def adopt(self, descriptors: list[int]) -> None:
        """Use these files, one for each segment; none while the layer is closed."""
        self.descriptors = descriptors
        self.first_descriptor = descriptors[0] if descriptors else -1
        """The first file, for whoever knows where in it a block lies; -1 while it is closed."""
        self.near_descriptor = -1 if self.packed else self.first_descriptor
        """The file of the bytes below SEGMENT_BYTES, for whoever reads or writes there without
        asking the layer for each request; -1 while it is closed, and for a packed layer, where a
        block is not at its own offset."""

    @property
    def is_open(self) -> bool:
        """True while the layer has its files open."""
        return bool(self.descriptors) and self.descriptors[0] >= 0

    @classmethod
    def open(
        cls,
        layout: Layout,
        layer_id: LayerId,
        file_bytes: int,
        *,
        writable: bool,
        packed: bool = False,
    ) -> Layer:
        """Open all segments. Raises DamagedError if one is missing or shorter than `file_bytes`
        needs; DeviceError, DeniedError."""
        descriptors: list[int] = []
        try:
            for number, needed in enumerate(segment_sizes(file_bytes)):
                path = layout.layer_segment(layer_id, number)
                flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC
                fd = _open_segment(path, flags)
                descriptors.append(fd)
                _refuse_short(path, os.fstat(fd).st_size, needed)
                # Requests are random; reading ahead and large folios only cost.
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            nowait = _supports_nowait(descriptors[0])
        except OSError as error:
            close_all(descriptors)
            raise from_os_error(error, f"opening layer {layer_id}") from error
        except BaseException:
            close_all(descriptors)
            raise
        return cls(layer_id, descriptors, nowait=nowait, packed=packed)

    @classmethod
    def of(cls, layout: Layout, record: LayerRecord, *, writable: bool) -> Layer:
        """Open a layer that the index knows. Raises as `open` does."""
        return cls.open(
            layout, record.id, record.file_bytes, writable=writable, packed=record.packed
        )

    def failure(self, error: OSError, offset: int) -> BockdError:
        """Translate the error of a failed read of this layer. The result is to be raised."""
        return from_os_error(error, f"reading layer {self.id} at byte {offset}")

    def close(self) -> None:
        """Close the files; the layer is of no further use."""
        self._windows.forget()
        descriptors = self.descriptors
        self.adopt([])
        close_all(descriptors)

    def read(self, offset: int, into: memoryview) -> None:
        """Fill `into`, waiting for the disk if need be. Raises DeviceError, and DamagedError at the
        end of a file. Both name the byte."""
        at = offset
        for fd, position, piece in self._pieces(offset, into):
            done = 0
            while done < len(piece):
                try:
                    count = os.preadv(fd, (piece[done:],), position + done)
                except OSError as error:
                    raise from_os_error(error, f"reading layer {self.id} at byte {at}") from error
                if count == 0:
                    raise DamagedError(f"layer {self.id} ends before byte {at}")
                done += count
                at += count

    def try_read(self, offset: int, into: memoryview) -> bool:
        """Fill `into` from the page cache only. Return False when some of it is not there, or the
        files are closed."""
        if not self.is_open:
            return False
        self.used = True
        try:
            for fd, position, piece in self._pieces(offset, into):
                if os.preadv(fd, (piece,), position, self.nowait_flag) != len(piece):
                    return False
        except BlockingIOError:
            return False
        return True

    def window(self, offset: int) -> Window | None:
        """Return a part of the first segment to send from. See `Windows.find`."""
        return self._windows.find(self.first_descriptor, offset)

    def write(self, offset: int, data: memoryview, piece_bytes: int = SMALL_BYTES) -> None:
        """Write `data` at `offset`. Raises OSError (ENOSPC, EIO): any part of it may have been
        written then."""
        length = len(data)
        one_piece = length <= piece_bytes and offset + length <= SEGMENT_BYTES
        if one_piece and os.pwrite(self.descriptors[0], data, offset) == length:
            return
        for fd, position, piece in self._pieces(offset, data):
            done = 0
            while done < len(piece):
                end = min(done + piece_bytes, len(piece))
                done += os.pwrite(fd, piece[done:end], position + done)
                hit(Failpoint.WRITE_PIECE)

    def write_buffers(
        self, offset: int, buffers: Sequence[memoryview], piece_bytes: int = SMALL_BYTES
    ) -> None:
        """Write buffers one behind the other from `offset` on, all of it in the first segment, with
        one call for each piece. Raises OSError (ENOSPC, EIO): any part of it may have been written
        then."""
        for piece, length in _pieces_of(buffers, piece_bytes):
            done = os.pwritev(self.descriptors[0], piece, offset)
            if done != length:
                self.write(offset + done, memoryview(b"".join(piece))[done:], piece_bytes)
            offset += length
            hit(Failpoint.WRITE_PIECE)

    def sync(self) -> None:
        """Sync every segment with fdatasync. Raises OSError: what was not yet on disk may be lost
        then."""
        for fd in self.descriptors:
            os.fdatasync(fd)

    def syncing(self) -> Syncing:
        """Return `sync` as a step. Raises OSError where it is awaited."""
        return Syncing(self.sync, tuple(self.descriptors))

    def grow(self, layout: Layout, size_bytes: int) -> None:
        """Extend to `size_bytes`, adding segments as needed, durably. Never shrinks."""
        for number, needed in enumerate(segment_sizes(size_bytes)):
            # Not through the descriptor that is written through: a failed write-back is reported
            # to it once, and is to be met by a flush.
            path = layout.layer_segment(self.id, number)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                if os.fstat(fd).st_size < needed:
                    os.ftruncate(fd, needed)
                    hit(Failpoint.LAYER_GROWN)
                # Whatever its length: an earlier attempt may have failed here.
                os.fsync(fd)
                if number == len(self.descriptors):
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
                    self.descriptors.append(os.dup(fd))
            finally:
                os.close(fd)
        sync_directory(layout.layers)
        self._windows.forget()  # they end where the file did

    def reach(self, cells: int) -> None:
        """Make the file of a packed layer so many cells long at least. It is not synced. Raises
        OSError."""
        fd, needed = self.descriptors[0], cells * BLOCK_SIZE
        if self.packed and os.fstat(fd).st_size < needed:
            os.ftruncate(fd, needed)

    def punch(self, offset: int, length: int) -> bool:
        """Give a range back to the file system; it reads as zeros then. Return False where the file
        system cannot: no map reaches the range, so only space is lost. Raises OSError."""
        try:
            for fd, position, count in self._parts(offset, length):
                punch_range(fd, position, count)
        except NotImplementedError:
            return False
        return True

    def zero(self, offset: int, end: int) -> int:
        """Make bytes from `offset` on zeros that are allocated, for a few milliseconds. Return how
        far that came, `end` at most. Writes them where the file system has no other way. Blocks.
        Raises OSError (ENOSPC, EIO): any part up to `end` may be zeros then."""
        deadline = time.monotonic() + ZERO_SECONDS
        while True:
            number, position = divmod(offset, SEGMENT_BYTES)
            count = min(end - offset, ZERO_PIECE_BYTES, SEGMENT_BYTES - position)
            try:
                zero_range(self.descriptors[number], position, count)
            except NotImplementedError:
                count = min(count, len(_ZEROS))
                self.write(offset, _ZEROS[:count], OVERWRITE_PIECE_BYTES)
            offset += count
            if offset == end or time.monotonic() >= deadline:
                return offset

    def data_ranges(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges that are written as (start, end) within offset..offset+length, as far as
        there are files (SEEK_DATA). What a file has beyond SEGMENT_BYTES is not in the layer."""
        end = min(offset + length, len(self.descriptors) * SEGMENT_BYTES)
        while offset < end:
            number, position = divmod(offset, SEGMENT_BYTES)
            base = number * SEGMENT_BYTES
            fd = self.descriptors[number]
            try:
                start = base + os.lseek(fd, position, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                offset = base + SEGMENT_BYTES
                continue
            if start >= end:
                return
            if start >= base + SEGMENT_BYTES:
                offset = base + SEGMENT_BYTES
                continue
            stop = min(base + os.lseek(fd, start - base, os.SEEK_HOLE), base + SEGMENT_BYTES)
            yield start, min(stop, end)
            offset = stop if stop - base < os.fstat(fd).st_size else base + SEGMENT_BYTES

    def unwritten_ranges(self) -> Iterator[tuple[int, int]]:
        """Yield the ranges that are allocated and not written, as (start, end). See
        fileranges.unwritten_ranges."""
        for number, fd in enumerate(self.descriptors):
            base = number * SEGMENT_BYTES
            for start, end in unwritten_ranges(fd):
                yield base + start, base + end

    def first_allocated(self, offset: int, length: int) -> int:
        """Return the first byte within offset..offset+length that takes space, written or not; the
        end of the range if none does. Raises OSError."""
        written = next(self.data_ranges(offset, length), None)
        end = offset + length if written is None else written[0]
        for fd, position, count in self._parts(offset, end - offset):
            unwritten = next(unwritten_ranges(fd, position, position + count), None)
            if unwritten is not None:
                return offset + max(0, unwritten[0] - position)
            offset += count
        return end

    def length_bytes(self) -> int:
        """Return the sum of the files' lengths in bytes."""
        return sum(os.fstat(fd).st_size for fd in self.descriptors)

    def allocated_bytes(self) -> int:
        """Return the bytes that the files occupy on disk."""
        return sum(os.fstat(fd).st_blocks for fd in self.descriptors) * 512

    def mark_in_memory(self) -> None:
        """Set a mark on the files that lasts as long as the kernel has their inodes in memory: a
        write-life hint. Do nothing where the kernel has none."""
        for fd in self.descriptors:
            with suppress(OSError):
                fcntl.fcntl(fd, _F_SET_RW_HINT, _HINT.pack(_WRITE_LIFE_NONE))

    def stayed_in_memory(self) -> bool:
        """Return whether all files have been in memory since they were marked. If so, whatever was
        written to them is there. If not, that proves nothing: the kernel drops inodes that are
        clean, and a copy has others."""
        try:
            return all(
                _HINT.unpack(fcntl.fcntl(fd, _F_GET_RW_HINT, bytes(_HINT.size)))[0]
                == _WRITE_LIFE_NONE
                for fd in self.descriptors
            )
        except OSError:
            return False

    def is_empty(self) -> bool:
        """Return whether nothing is allocated."""
        return next(self.data_ranges(0, len(self.descriptors) * SEGMENT_BYTES), None) is None

    def prefetch(self, offset: int, length: int) -> None:
        """Ask the kernel to read a range ahead. Blocks."""
        for fd, position, count in self._parts(offset, length):
            prefetch_range(fd, position, count)

    def evict(self, offset: int) -> None:
        """Let the page cache forget a byte and what is around it."""
        self._windows.forget()  # what is mapped is kept
        evict(self.descriptors, offset)

    def _parts(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """What of a range is in each segment: its descriptor, position and length there."""
        while length:
            number, position = divmod(offset, SEGMENT_BYTES)
            count = min(length, SEGMENT_BYTES - position)
            yield self.descriptors[number], position, count
            offset += count
            length -= count

    def _pieces(self, offset: int, view: memoryview) -> Iterator[tuple[int, int, memoryview]]:
        for fd, position, count in self._parts(offset, len(view)):
            yield fd, position, view[:count]
            view = view[count:]


class DamagedBlocks(Layer):
    """Stands in a live map for blocks that are known to be damaged: reading them fails."""

    def __init__(self) -> None:
        super().__init__(LayerId(0), [-1], nowait=False)

    def failure(self, _error: OSError, offset: int) -> BockdError:
        return self._damaged(offset)

    def _damaged(self, offset: int) -> BockdError:
        return DamagedError(
            f"what is stored at byte {offset} is damaged ('bockd scrub' shows what else is): write "
            "it anew, or go back to a snapshot or a backup that has it"
        )

    def read(self, offset: int, _into: memoryview) -> None:
        raise self._damaged(offset)

    def try_read(self, offset: int, _into: memoryview) -> bool:
        raise self._damaged(offset)

    def prefetch(self, _offset: int, _length: int) -> None:
        """Do nothing, because nothing would be gained."""

    def close(self) -> None:
        """Do nothing, because there are no files."""


def _pieces_of(
    buffers: Sequence[memoryview], piece_bytes: int
) -> Iterator[tuple[list[memoryview], int]]:
    """What one call writes, and how many bytes that is: `piece_bytes` but for the last."""
    piece: list[memoryview] = []
    room = piece_bytes
    for buffer in buffers:
        at = 0
        while at < len(buffer):
            part = buffer[at : at + room]
            piece.append(part)
            at += len(part)
            room -= len(part)
            if not room:
                yield piece, piece_bytes
                piece, room = [], piece_bytes
    if piece:
        yield piece, piece_bytes - room


def evict(descriptors: list[int], offset: int) -> None:
    """Let the page cache forget a byte of a layer with these files, as far as it can."""
    number, position = divmod(offset, SEGMENT_BYTES)
    start = position - position % LARGEST_FOLIO_BYTES
    os.posix_fadvise(descriptors[number], start, LARGEST_FOLIO_BYTES, os.POSIX_FADV_DONTNEED)


def segment_sizes(size_bytes: int) -> list[int]:
    """Return the sizes in bytes of the segment files of a layer, in order. There is one at least,
    which is empty in a packed layer without blocks."""
    full, rest = divmod(size_bytes, SEGMENT_BYTES)
    return [SEGMENT_BYTES] * full + ([rest] if rest or not full else [])


def verify_layer(layout: Layout, layer_id: LayerId, file_bytes: int) -> None:
    """Raise DamagedError if a segment file is missing or too short. Open none."""
    for number, needed in enumerate(segment_sizes(file_bytes)):
        path = layout.layer_segment(layer_id, number)
        try:
            found = os.stat(path).st_size
        except FileNotFoundError:
            raise _missing(path) from None
        _refuse_short(path, found, needed)


def _open_segment(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        raise _missing(path) from None
    except OSError as error:
        raise from_os_error(error, f"opening {path}") from error


def _missing(path: Path) -> DamagedError:
    return DamagedError(f"layer file {path} is missing; put it back, or delete what needs it")


def _refuse_short(path: Path, found: int, needed: int) -> None:
    if found < needed:
        raise DamagedError(
            f"layer file {path} is truncated: it has {found} bytes and needs {needed}; "
            "restore it, or delete what needs it"
        )


def _supports_nowait(fd: int) -> bool:
    """Whether preadv accepts RWF_NOWAIT here (ext4, xfs and btrfs do, tmpfs does not)."""
    try:
        os.preadv(fd, (bytearray(1),), 0, os.RWF_NOWAIT)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
            return False
        raise
    return True


def close_all(descriptors: list[int]) -> None:
    """Close files. Errors are ignored."""
    for fd in descriptors:
        with suppress(OSError):
            os.close(fd)
