"""What a disk image may be wrapped in: gzip, xz, zstd, bzip2, and tar, which an OVA is.

Each wrapping is taken off into a scratch file, in one pass. What comes out is bounded by the
largest volume and by the room on the file system, so a small file that unpacks to a huge one ends
early.
"""

from __future__ import annotations

import contextlib
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import IO, Protocol

from bockd.cli.convert import byte_bar
from bockd.cli.scratch import Scratch, scratch
from bockd.diskimage import INSIST, check_file
from bockd.diskimage.kinds import (
    PACKED_ENDINGS,
    SECTOR_BYTES,
    Wrapping,
    promised_format,
    read_ends,
    wrapping_of,
)
from bockd.errors import DamagedError, InvalidRequestError, NotSupportedError
from bockd.model import MIB

CHUNK_BYTES = 1 << 20

MAX_WRAPPINGS = 3
"""A compressed archive of a compressed disk; more is a riddle."""

MEMORY_BYTES = 256 * MIB
"""For one decompressor: four times what `xz -9` needs."""

DISK_ENDINGS = frozenset({".img", ".iso", ".bin"})
"""Of disks in an archive, besides those that promise a format."""


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A file with nothing around it any more."""

    path: Path
    name: str


@contextlib.contextmanager
def unpacked(path: Path, name: str) -> Iterator[Unpacked]:
    """Unpack all wrappings of the file at `path` and yield what is in them. `name` is the file's
    name in messages.

    Raises DamagedError (a wrapping's data is damaged or cut short), InvalidRequestError (no disk is
    in it), NotSupportedError (several are), NoSpaceError, NotFoundError.
    """
    with contextlib.ExitStack() as opened:
        found = Unpacked(path, name)
        for _ in range(MAX_WRAPPINGS):
            check_file(found.path)
            wrapping = wrapping_of(read_ends(found.path))
            if wrapping is None:
                break
            inner = opened.enter_context(scratch(found.name))
            found = Unpacked(inner.path, take_off(wrapping, found, inner))
        yield found


def take_off(wrapping: Wrapping, outer: Unpacked, inner: Scratch) -> str:
    """Unpack one wrapping: write what is in `outer` to `inner`, and return its name."""
    if wrapping is Wrapping.TAR:
        return take_disk_out(outer, inner)
    with outer.path.open("rb", buffering=0) as file:
        whole = file.seek(0, 2)
        file.seek(0)
        with byte_bar(f"unpacking {outer.name}", whole) as show:

            def read() -> bytes:
                if show is not None:
                    show(file.tell())
                return file.read(CHUNK_BYTES)

            for piece in decompressed(wrapping, read, outer.name):
                inner.write(piece)
    inner.end()
    ending = PurePath(outer.name).suffix.lower()
    return PurePath(outer.name).stem if ending in PACKED_ENDINGS else outer.name


# -- compression -------------------------------------------------------------------------------


class Decompressor(Protocol):
    """What `lzma`, `bz2` and `compression.zstd` have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class GzipDecompressor:
    """`zlib`'s decompressor with the same methods. It proves a member's CRC and length."""

    def __init__(self) -> None:
        import zlib

        self._zlib = zlib.decompressobj(wbits=31)
        self._full = False

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def needs_input(self) -> bool:
        return not self._full

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        piece = self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)
        # With as much as was asked for, there may be more in zlib's window.
        self._full = len(piece) == max_length
        return piece


def decompressor(wrapping: Wrapping) -> tuple[Decompressor, type[Exception]]:
    """Return a new decompressor, and the exception that it raises for damaged data."""
    if wrapping is Wrapping.GZIP:
        import zlib

        return GzipDecompressor(), zlib.error
    if wrapping is Wrapping.XZ:
        import lzma

        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY_BYTES), lzma.LZMAError
    if wrapping is Wrapping.BZIP2:
        import bz2

        return bz2.BZ2Decompressor(), OSError
    import sys

    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd.ZstdDecompressor(), zstd.ZstdError


def decompressed(wrapping: Wrapping, read: Callable[[], bytes], name: str) -> Iterator[bytes]:
    """Yield what `read` gives, decompressed, in pieces of at most CHUNK_BYTES. A file may have
    several members, and zeros behind them. Raises DamagedError."""
    data = read()
    while data:
        member, failure = decompressor(wrapping)
        try:
            while not member.eof:
                if member.needs_input and not data:
                    data = read()
                    if not data:
                        raise DamagedError(
                            f"{name} is cut short: its {wrapping.value} data does not end; "
                            "get it again"
                        )
                piece, data = member.decompress(data, CHUNK_BYTES), b""
                if piece:
                    yield piece
        except failure as error:
            raise DamagedError(
                f"the {wrapping.value} data of {name} is damaged: {error}; get it again"
            ) from error
        data = member.unused_data.lstrip(b"\0")
        while not data and (more := read()):
            data = more.lstrip(b"\0")


# -- archives ------------------------------------------------------------------------------------


def take_disk_out(outer: Unpacked, inner: Scratch) -> str:
    """Write the only disk of a tar archive to `inner`, and return its name."""
    with outer.path.open("rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                disk = only_disk(archive, outer.name)
                check_archive_end(outer)
                member = archive.extractfile(disk)
                assert member is not None
                copy(member, disk.size, inner, f"unpacking {disk.name}")
        except tarfile.TarError as error:
            raise DamagedError(
                f"the archive {outer.name} is damaged or cut short: {error}; get it again"
            ) from error
    return PurePath(disk.name).name


def only_disk(archive: tarfile.TarFile, name: str) -> tarfile.TarInfo:
    """Return the archive's disk. Raises InvalidRequestError when there is none, NotSupportedError
    for several."""
    disks = [member for member in archive if member.isreg() and is_disk_name(member.name)]
    if not disks:
        raise InvalidRequestError(f"{name} is an archive without a disk image in it; {INSIST}")
    if len(disks) > 1:
        found = ", ".join(disk.name for disk in disks[:10])
        raise NotSupportedError(
            f"{name} holds {len(disks)} disks ({found}): take them out with tar -xf, and import "
            "each of them"
        )
    return disks[0]


def is_disk_name(name: str) -> bool:
    """Return whether an archive's member is a disk, by its name."""
    path = PurePath(name)
    if path.suffix.lower() in PACKED_ENDINGS:
        path = path.with_suffix("")
    return promised_format(path.name) is not None or path.suffix.lower() in DISK_ENDINGS


def check_archive_end(outer: Unpacked) -> None:
    """Raise DamagedError for an archive that does not end in zeros, as POSIX's pax has it: it was
    cut between two members."""
    if read_ends(outer.path).tail != bytes(SECTOR_BYTES):
        raise DamagedError(f"the archive {outer.name} is cut short; get it again")


def copy(member: IO[bytes], length_bytes: int, inner: Scratch, title: str) -> None:
    """Copy a member of an archive. Raises DamagedError when it is not all there."""
    with byte_bar(title, length_bytes) as show:
        while chunk := member.read(CHUNK_BYTES):
            inner.write(chunk)
            if show is not None:
                show(inner.done_bytes)
    if inner.done_bytes != length_bytes:
        raise DamagedError(f"{title}: it is cut short; get it again")
    inner.end()
