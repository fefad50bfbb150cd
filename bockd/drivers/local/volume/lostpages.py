"""Telling from a pool's own bytes whether unsynced pages of a head were lost.

A block whose latest redirect no barrier covers holds data, unless the journal says after it that
the block may be zeros. So if such a block is a hole or holds nothing but zeros, its page never
reached the disk: the file system was unmounted without it.
"""

from __future__ import annotations

from bockd.drivers.local.format.journal import Change, Kind, SegmentContents, last_barrier
from bockd.drivers.local.format.layer import Layer
from bockd.drivers.local.format.leaf import LEAF_BLOCKS
from bockd.drivers.local.volume.zeros import is_zeros
from bockd.model import BLOCK_SIZE

_GROUP_BYTES = LEAF_BLOCKS * BLOCK_SIZE

MAX_READ_GROUPS = 4096
"""Groups of 256 blocks that are read to see whether what is no hole is zeros: 4 GiB, seconds. In
what lies beyond, only holes are looked for. It takes that many bytes written without a flush, and
pages lost before a copy of them was made that has no holes, for that to miss anything."""


def find_lost_pages(segments: list[SegmentContents], head: Layer) -> bool:
    """Return whether a block of the head has lost its data. Segments that are not all of a format
    that notes zeros prove nothing. Raises DamagedError, DeviceError."""
    owed = _owed([change for segment in segments for change in segment.changes])
    for position, (group, mask) in enumerate(owed.items()):
        if mask & ~_present(head, group):
            return True
        if position < MAX_READ_GROUPS and _holds_zeros(head, group, mask):
            return True
    return False


def _owed(changes: list[Change]) -> dict[int, int]:
    """The blocks that must hold data: by group of 256, a bit for each."""
    durable = last_barrier(tuple(changes))
    owed: dict[int, int] = {}
    for change in changes:
        if change.sequence <= durable or change.kind not in (
            Kind.REDIRECT,
            Kind.HOLE,
            Kind.ZEROS,
        ):
            continue
        if change.kind is Kind.REDIRECT:
            for group in _groups(change):
                owed[group] = owed.get(group, 0) | _mask(change, group)
        else:
            # A hole may be as large as the volume; what is owed is little beside it.
            groups = _groups(change)
            for group in groups if len(groups) < len(owed) else list(owed):
                if group in owed:
                    owed[group] &= ~_mask(change, group)
    return {group: mask for group, mask in owed.items() if mask}


def _groups(change: Change) -> range:
    return range(change.start // LEAF_BLOCKS, -(-(change.start + change.blocks) // LEAF_BLOCKS))


def _mask(change: Change, group: int) -> int:
    """A bit for each block of the group that a change covers."""
    base = group * LEAF_BLOCKS
    first = min(max(change.start - base, 0), LEAF_BLOCKS)
    end = min(max(change.start + change.blocks - base, 0), LEAF_BLOCKS)
    return (1 << max(end, first)) - (1 << first)


def _present(head: Layer, group: int) -> int:
    """A bit for each block of the group that is no hole."""
    start, mask = group * _GROUP_BYTES, 0
    for low, high in head.data_ranges(start, _GROUP_BYTES):
        first, end = (low - start) // BLOCK_SIZE, -(-(high - start) // BLOCK_SIZE)
        mask |= (1 << end) - (1 << first)
    return mask


def _holds_zeros(head: Layer, group: int, mask: int) -> bool:
    """Whether one of the blocks with a bit in the mask holds nothing but zeros."""
    block = memoryview(bytearray(BLOCK_SIZE))
    while mask:
        number = (mask & -mask).bit_length() - 1
        mask &= mask - 1
        head.read(group * _GROUP_BYTES + number * BLOCK_SIZE, block)
        if is_zeros(block):
            return True
    return False
