"""Which bytes of an image hold data, and how many of them are not zeros."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bockd.diskimage.tools import run_limited, tool_message
from bockd.errors import InvalidRequestError
from bockd.model import BLOCK_SIZE

READ_BYTES = 1 << 20

_ZEROS = bytes(READ_BYTES)


@dataclass(frozen=True, slots=True)
class Mapped:
    """A run of a disk, as `qemu-img map` shows it. Offsets and lengths in bytes."""

    start: int
    length: int
    data: bool
    zero: bool
    offset: int | None = None
    """In the image's file; None where the data is compressed, or the format does not say."""


def map_image(source: list[str], cpu_seconds: int) -> list[Mapped]:
    """Return the runs of an image; `source` are qemu-img's arguments for it. Raises
    InvalidRequestError."""
    result = run_limited(["qemu-img", "map", "--output=json", *source], cpu_seconds)
    if result.returncode < 0:
        raise InvalidRequestError("qemu-img took too long to look at it; it is no image")
    if result.returncode:
        raise InvalidRequestError(tool_message(result.stderr))
    return msgspec.json.decode(result.stdout, type=list[Mapped])


def data_ranges(descriptor: int, length_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield begin and end of each range of a file that is not a hole, in order.

    A file system that knows no holes, and a block device, have one range.
    """
    begin = 0
    while begin < length_bytes:
        try:
            begin = os.lseek(descriptor, begin, os.SEEK_DATA)
            end = os.lseek(descriptor, begin, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole is left
                return
            end = length_bytes
        yield begin, min(end, length_bytes)
        begin = end


def stored_bytes(path: Path, length_bytes: int) -> int:
    """Return how many bytes of a file are not in holes. Raises OSError."""
    with path.open("rb", buffering=0) as file:
        return sum(end - begin for begin, end in data_ranges(file.fileno(), length_bytes))


def nonzero_bytes(path: Path, length_bytes: int) -> int:
    """Return how many bytes are in blocks that are not all zeros. All data of the file is read, but
    no holes. Raises OSError."""
    found = 0
    with path.open("rb", buffering=0) as file:
        for begin, end in data_ranges(file.fileno(), length_bytes):
            at = begin - begin % BLOCK_SIZE
            while at < end:
                chunk = os.pread(file.fileno(), READ_BYTES, at)
                if not chunk:
                    return found
                if chunk != _ZEROS[: len(chunk)]:
                    found += _nonzero_in(chunk)
                at += len(chunk)
    return found


def _nonzero_in(chunk: bytes) -> int:
    zeros = _ZEROS[:BLOCK_SIZE]
    blocks = (chunk[at : at + BLOCK_SIZE] for at in range(0, len(chunk), BLOCK_SIZE))
    return sum(BLOCK_SIZE for block in blocks if block != zeros[: len(block)])
