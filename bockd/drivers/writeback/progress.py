"""How far a log is written below: the file `progress` beside its segments.

Two slots of 4096 bytes, written in turn, so that one is whole whatever happens to the other:

    magic:8s | crc32c of all that follows in the slot:u32 | length:u32 | Progress, JSON | zeros

The valid slot with the higher `count` is in force. A slot is synced before anything is done that
rests on it. From the beginning both are valid, the other one with the count before, unless the last
write was torn by a power cut, or one was damaged later: these two look the same.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
from crc32c import crc32c

from bockd.drivers.writeback.segment import write_all
from bockd.errors import DamagedError

NAME = "progress"
SLOT_BYTES = 4096
MAGIC = b"bockwbp1"
_HEAD_BYTES = 16


class Progress(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a slot says."""

    log: str
    """The log's id."""
    image: str
    count: int
    done: int
    """All records up to this sequence are below, and flushed there."""
    first: int
    """The number of the first segment that is needed."""
    first_sequence: int
    """Of the first record in it, or of that which will be."""
    synced: int
    """All records up to this sequence are synced."""
    boot: str
    """The kernel's id of the boot in which the log was opened last."""
    broken: str = ""
    """Why nothing may be appended any more."""
    drained: bool = False
    """All that was answered from the log is below, whatever its segments hold after `done`, or do
    not show: said of one that is broken only, as the disk may have any part of what it refused."""
    known_done: int = 0
    """What the driver has committed of `done`. A record that says less is an older one."""
    known_synced: int = 0
    """The same, of `synced`."""


class ProgressFile:
    """For one thread at a time."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def create(cls, directory: Path, progress: Progress) -> ProgressFile:
        """Make the file, synced, in a directory that is not; `progress` has the count 1. Blocks.
        Raises OSError."""
        assert progress.count == 1
        fd = os.open(directory / NAME, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            before = _slot_of(msgspec.structs.replace(progress, count=0))
            write_all(fd, before + bytes(SLOT_BYTES), 0)
            file = cls(fd)
            file.write(progress)
            os.fsync(fd)
        except BaseException:
            os.close(fd)
            raise
        return file

    @classmethod
    def open(cls, directory: Path, *, both: bool = False) -> tuple[ProgressFile, Progress]:
        """Open the file, and return what is in force, too. `both`: refuse a file of which a newer
        slot may be damaged. Blocks. Raises OSError, DamagedError."""
        fd = os.open(directory / NAME, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            return cls(fd), _in_force(fd, directory, both=both)
        except BaseException:
            os.close(fd)
            raise

    def write(self, progress: Progress) -> None:
        """Write a slot, and sync it. Blocks. Raises OSError: whether it counts is not known."""
        write_all(self._fd, _slot_of(progress), progress.count % 2 * SLOT_BYTES)
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Close the file. Doing so again does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _slot_of(progress: Progress) -> bytes:
    body = msgspec.json.encode(progress)
    body = (len(body).to_bytes(4, "little") + body).ljust(SLOT_BYTES - _HEAD_BYTES + 4, b"\0")
    slot = MAGIC + crc32c(body).to_bytes(4, "little") + body
    assert len(slot) == SLOT_BYTES
    return slot


def _in_force(fd: int, directory: Path, *, both: bool) -> Progress:
    found = [one for slot in range(2) if (one := _read_slot(fd, slot)) is not None]
    if not found:
        raise DamagedError(f"{directory / NAME}: neither slot is valid")
    newest = max(found, key=lambda one: one.count)
    if both and newest.count - 1 not in [one.count for one in found]:
        raise DamagedError(
            f"{directory / NAME}: only the slot with the count {newest.count} is valid, and the "
            "other one may have been newer"
        )
    return newest


def _read_slot(fd: int, slot: int) -> Progress | None:
    content = os.pread(fd, SLOT_BYTES, slot * SLOT_BYTES)
    if len(content) < SLOT_BYTES or content[: len(MAGIC)] != MAGIC:
        return None
    if crc32c(content[12:]) != int.from_bytes(content[8:12], "little"):
        return None
    length = int.from_bytes(content[12:_HEAD_BYTES], "little")
    try:
        return msgspec.json.decode(content[_HEAD_BYTES : _HEAD_BYTES + length], type=Progress)
    except msgspec.DecodeError as error:
        raise DamagedError(f"a slot of {NAME} was written by another bockd: {error}") from error
