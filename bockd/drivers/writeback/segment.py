"""A segment of a log: a file that is written full of zeros before it is used.

    magic:8s | format:u32 | number:u32 | crc32c of the log's id and the fields before:u32
    zeros up to byte 4096; records from there on (records.py); zeros

It is made under a name that does not count, synced, named, and its directory is synced. So a
segment that has its name is whole, an append changes nothing but its data, and a full disk does not
stand in its way.
"""

from __future__ import annotations

import errno
import os
import re
import struct
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ParamSpec, TypeVar

from crc32c import crc32c

from bockd.drivers.writeback.records import (
    HEADER_BYTES,
    MAX_DATA_BYTES,
    Header,
    Record,
    pack,
    padded,
    parse,
    seed_of,
    verifies,
)
from bockd.durable import sync_directory
from bockd.errors import DamagedError
from bockd.failpoints import Failpoint, hit
from bockd.model import KIB, MIB
from bockd.runtime.steps import Blocking, blocking_apart
from bockd.runtime.syncing import Syncing

Place = tuple[int, memoryview]
"""The byte of the device from which on a record's data is wanted, and where that goes."""

P = ParamSpec("P")
T = TypeVar("T")

SEGMENT_BYTES = 16 * MIB
"""Little enough that room comes back soon, enough that making one is rare."""

FIRST_RECORD = 4096
SUFFIX = ".seg"
NEW_SUFFIX = ".new"
MAGIC = b"bockwbs1"
_NUMBER = re.compile(r"[0-9]{8,12}", re.ASCII)
FORMAT = 1

_FIELDS = struct.Struct("<8sII")
_PIECE_BYTES = 64 * KIB
_ZEROS = bytes(_PIECE_BYTES)

_PAGE_BYTES = 4 * KIB
"""Of the page cache, and of file systems' blocks: one that is not in memory is read before a part
of it is written."""

_NO_NOWAIT = (errno.EOPNOTSUPP, errno.EINVAL)

NOT_OF_THE_DISK = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Errors of opening a file that say nothing of the disk: the process or the machine has too few
descriptors, or too little memory, for now."""

LOG_CALL = "write-back logs"
"""The kind of blocking call that all calls for files of logs are."""


def log_call(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Blocking[T]:
    """Do what `blocking` does. A disk that hangs takes no thread from calls for anything else."""
    return blocking_apart(LOG_CALL, function, *args, **kwargs)


def segment_path(directory: Path, number: int) -> Path:
    return directory / f"{number:08d}{SUFFIX}"


def is_segment(path: Path) -> bool:
    """Return whether a file has the name of a segment, or of one that is being made."""
    return path.suffix in (SUFFIX, NEW_SUFFIX) and _NUMBER.fullmatch(path.stem) is not None


def segments_in(directory: Path) -> dict[int, Path]:
    """Return the segments of a log by their numbers. Files of other names are left alone. Blocks.
    Raises OSError."""
    return {
        int(one.stem): one
        for one in sorted(directory.iterdir())
        if one.suffix == SUFFIX and is_segment(one)
    }


def taken_by(directory: Path) -> int:
    """Return what the segments of a log take; nothing if it is not there. Blocks. Raises
    OSError."""
    taken = 0
    with suppress(FileNotFoundError):
        for one in segments_in(directory).values():
            taken += one.stat().st_size
    return taken


class Segment:
    """An open segment. For the owner thread, but for `create`, `read` and `sync`."""

    def __init__(self, path: Path, number: int, fd: int, size_bytes: int, seed: int) -> None:
        self.path = path
        self.number = number
        self.size_bytes = size_bytes
        self.at = FIRST_RECORD
        """Where the next record goes."""
        self.first_sequence = 0
        """Of its first record; 0 if it has none."""
        self.last_sequence = 0
        self.seed = seed
        self._fd = fd
        self._begun = b""
        """What the page begins with that the next record begins in: it is written again with it."""
        self._pins = 0
        self._closing = False

    @classmethod
    def create(cls, directory: Path, number: int, size_bytes: int, log_id: str) -> Segment:
        """Make a segment durably. Blocks. Raises OSError: there is none then."""
        path, seed = segment_path(directory, number), seed_of(log_id)
        new = named = path.with_suffix(NEW_SUFFIX)
        fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            write_all(fd, header_of(number, seed).ljust(FIRST_RECORD, b"\0"), 0)
            zero(fd, FIRST_RECORD, size_bytes)
            hit(Failpoint.WRITEBACK_SEGMENT_WRITTEN)
            os.fsync(fd)
            hit(Failpoint.WRITEBACK_SEGMENT_SYNCED)
            os.rename(new, path)
            named = path
            hit(Failpoint.WRITEBACK_SEGMENT_NAMED)
            sync_directory(directory)
        except BaseException:
            os.close(fd)
            with suppress(OSError):
                named.unlink()
            raise
        return cls(path, number, fd, size_bytes, seed)

    @classmethod
    def open(cls, path: Path, number: int, log_id: str) -> Segment:
        """Open a segment. Blocks. Raises OSError, DamagedError."""
        seed = seed_of(log_id)
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            size_bytes = _verified_size(fd, header_of(number, seed), path)
        except BaseException:
            os.close(fd)
            raise
        return cls(path, number, fd, size_bytes, seed)

    @property
    def free_bytes(self) -> int:
        """Return what is free, without the place for a barrier, which is always there."""
        return self.size_bytes - self.at - HEADER_BYTES

    def append(self, header: Header, data: memoryview | bytes) -> int:
        """Append a record, for which there is room. Return where it lies. Raises OSError: nothing
        more may be appended then."""
        at = self.at
        parts = pack(header, data, self.seed)
        size = HEADER_BYTES + padded(len(data))
        assert at + size <= self.size_bytes
        self._write(parts, at + size)
        self.at = at + size
        self.first_sequence = self.first_sequence or header.sequence
        self.last_sequence = header.sequence
        return at

    def _write(self, parts: list[memoryview | bytes], end: int) -> None:
        """Write what follows, up to `end`, in whole pages. Those of a segment were synced when it
        was made, and are never read before: memory that gets short takes them first, and the owner
        thread would wait for the disk. What is behind the end is zeros anyway."""
        padding = min(-end % _PAGE_BYTES, self.size_bytes - end)
        parts, start = [self._begun, *parts], self.at - len(self._begun)
        if os.pwritev(self._fd, [*parts, _ZEROS[:padding]], start) != end + padding - start:
            raise OSError(errno.EIO, "short write to a preallocated log")
        kept, last = end % _PAGE_BYTES, parts[-1]
        whole = last if kept <= len(last) else b"".join(parts)
        self._begun = bytes(whole[len(whole) - kept :])

    def go_on_behind(self, content: memoryview, at: int) -> None:
        """Append at a place, behind what was read and verified."""
        self.at = at
        self._begun = bytes(content[at - at % _PAGE_BYTES : at])

    def try_read(self, record: Record, places: Sequence[Place]) -> bool:
        """Fill places with the data of a record, from the page cache. False if it is not there, or
        does not verify. Raises OSError."""
        buffer = bytearray(HEADER_BYTES + record.length)
        try:
            done = os.preadv(self._fd, (buffer,), record.at, os.RWF_NOWAIT)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in _NO_NOWAIT:
                return False
            raise
        return done == len(buffer) and self._take(buffer, record, places)

    def read(self, record: Record, places: Sequence[Place]) -> None:
        """Do what `try_read` does, from the disk. Blocks. Raises OSError, DamagedError."""
        buffer = bytearray(HEADER_BYTES + record.length)
        view, at = memoryview(buffer), record.at
        while view:
            done = os.preadv(self._fd, (view,), at)
            if not done:
                raise OSError(errno.EIO, "the file is shorter than it was made")
            view, at = view[done:], at + done
        if not self._take(buffer, record, places):
            raise DamagedError(f"{self.path}: the record at {record.at} is not what was written")

    def _take(self, buffer: bytearray, record: Record, places: Sequence[Place]) -> bool:
        content = memoryview(buffer)
        header = parse(content, 0)
        if (
            header is None
            or header.sequence != record.sequence
            or not verifies(content, 0, header, self.seed)
        ):
            return False
        for start, into in places:
            first = HEADER_BYTES + start - record.offset
            into[:] = content[first : first + len(into)]
        return True

    def content(self) -> bytearray:
        """Return all of the file. Blocks. Raises OSError."""
        content = bytearray(self.size_bytes)
        view, at = memoryview(content), 0
        while at < self.size_bytes:
            done = os.preadv(self._fd, (view[at : at + MIB],), at)
            if not done:
                raise OSError(errno.EIO, "the file is shorter than it was made")
            at += done
        return content

    def write_again(self, content: memoryview, at: int) -> None:
        """Write what a place has anyway, so that the next sync covers it. Blocks. Raises
        OSError."""
        write_all(self._fd, content, at)

    def clear_from(self, at: int) -> None:
        """Make all zeros from a place on. Blocks. Raises OSError."""
        zero(self._fd, at, self.size_bytes)

    def sync(self) -> None:
        """Sync the data. Blocks. Raises OSError."""
        os.fdatasync(self._fd)

    def pin(self) -> None:
        """Keep the file open until `unpin`."""
        self._pins += 1

    def unpin(self) -> None:
        self._pins -= 1
        if self._closing and not self._pins:
            self._close()

    def close(self) -> None:
        """Close the file as soon as nobody reads it."""
        self._closing = True
        if not self._pins:
            self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with suppress(OSError):
                os.close(fd)

    @property
    def descriptor(self) -> int:
        return self._fd


def syncing(segments: Iterable[Segment]) -> Syncing:
    """Return a step that syncs segments. They stay open until it has ended. Raises OSError where it
    is awaited."""
    some = list(segments)

    def sync() -> None:
        for segment in some:
            segment.sync()

    return Syncing(sync, [segment.descriptor for segment in some])


def records_in(size_bytes: int) -> int:
    """Return how long the data of one record may be in segments of a size."""
    return min(MAX_DATA_BYTES, (size_bytes - FIRST_RECORD) // 4 // HEADER_BYTES * HEADER_BYTES)


def _verified_size(fd: int, expected: bytes, path: Path) -> int:
    if os.pread(fd, len(expected), 0) != expected:
        raise DamagedError(f"{path} has a broken header")
    size_bytes = os.fstat(fd).st_size
    if size_bytes <= FIRST_RECORD:
        raise DamagedError(f"{path} is cut short")
    return size_bytes


def header_of(number: int, seed: int) -> bytes:
    """Return the bytes that a segment begins with."""
    fields = _FIELDS.pack(MAGIC, FORMAT, number)
    return fields + crc32c(fields, seed).to_bytes(4, "little")


def zero(fd: int, start: int, end: int) -> None:
    """Write zeros. Blocks. Raises OSError."""
    while start < end:
        start += os.pwrite(fd, _ZEROS[: min(_PIECE_BYTES, end - start)], start)


def write_all(fd: int, data: bytes | memoryview, at: int) -> None:
    """Write all of some data. Blocks. Raises OSError."""
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, at)
        view, at = view[done:], at + done
