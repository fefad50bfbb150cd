"""The map of a cache file that was closed in order: what of it may be used at the next opening.

    magic (8) | crc32c of all that follows:u32 | length of the header:u32 | header, JSON
    for each leaf: number:u64 | slots: 256 bytes | blocks that take space: 256 bits

All little-endian. It is written when the device is closed: after the cache file was synced, and
under a name that does not count, synced, then renamed. It is removed, and its directory synced,
before the cache file is used: so there never is one beside a file that has changed since, whatever
ends the process or the machine. A file without one is dropped at the next start.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
from crc32c import crc32c

from bockd.drivers.cache.blockmap import LEAF_BLOCKS, SLOTS
from bockd.drivers.cache.cachefile import Identity
from bockd.durable import sync_directory
from bockd.failpoints import Failpoint, hit

MAGIC = b"bockmap1"
SUFFIX = ".map"
NEW_SUFFIX = ".new"

_HEAD = struct.Struct("<8sII")
_NUMBER = struct.Struct("<Q")
_MASK_BYTES = LEAF_BLOCKS // 8
_LEAF_BYTES = _NUMBER.size + LEAF_BLOCKS + _MASK_BYTES
_VALID = frozenset(range(SLOTS))

KeptLeaf = tuple[int, bytes, int]
"""Number, slots, which blocks take space."""


class Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of what a map is."""

    name: str
    """Of the volume or snapshot, as the driver has it."""
    epoch: int | None
    """In which the volume was closed; None for what never changes."""
    size_bytes: int
    allocated_bytes: int
    """What the file takes of the disk."""
    file: Identity


class BadMapError(Exception):
    """The file is no map, or does not hold what was written."""


def write_map(path: Path, kept: Kept, leaves: Iterable[KeptLeaf]) -> None:
    """Write a map durably. What it says must be on disk. Blocks. Raises OSError."""
    header = msgspec.json.encode(kept)
    parts = [len(header).to_bytes(4, "little"), header]
    for number, slots, allocated in leaves:
        parts += (_NUMBER.pack(number), slots, allocated.to_bytes(_MASK_BYTES, "little"))
    body = b"".join(parts)
    new = path.with_suffix(NEW_SUFFIX)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(MAGIC + crc32c(body).to_bytes(4, "little"))
        file.write(body)
        file.flush()
        os.fsync(fd)
    hit(Failpoint.CACHE_MAP_WRITTEN)
    new.rename(path)
    hit(Failpoint.CACHE_MAP_NAMED)
    sync_directory(path.parent)


def remove_map(path: Path) -> None:
    """Remove a map durably, if there is one. Blocks. Raises OSError: it may come back."""
    with suppress(FileNotFoundError):
        path.unlink()
    hit(Failpoint.CACHE_MAP_REMOVED)
    sync_directory(path.parent)


def read_map(path: Path) -> tuple[Kept, bytes]:
    """Read a map: of what it is, and its leaves, for `leaves_of`. Blocks. Raises OSError,
    BadMapError."""
    content = path.read_bytes()
    if len(content) < _HEAD.size or content[: len(MAGIC)] != MAGIC:
        raise BadMapError("it is no map")
    _, checksum, length = _HEAD.unpack_from(content)
    body = memoryview(content)[_HEAD.size - 4 :]
    if crc32c(body) != checksum:
        raise BadMapError("its checksum is wrong")
    leaves = content[_HEAD.size + length :]
    try:
        kept = msgspec.json.decode(content[_HEAD.size : _HEAD.size + length], type=Kept)
    except msgspec.DecodeError as error:
        raise BadMapError(f"its header: {error}") from error
    if len(leaves) % _LEAF_BYTES:
        raise BadMapError("it ends within a leaf")
    return kept, leaves


def leaves_of(content: bytes) -> Iterator[KeptLeaf]:
    """Yield the leaves of a map. Raises BadMapError."""
    for at in range(0, len(content), _LEAF_BYTES):
        (number,) = _NUMBER.unpack_from(content, at)
        at += _NUMBER.size
        slots = content[at : at + LEAF_BLOCKS]
        if not _VALID.issuperset(slots):
            raise BadMapError(f"leaf {number} has a slot that there is not")
        at += LEAF_BLOCKS
        yield number, slots, int.from_bytes(content[at : at + _MASK_BYTES], "little")
