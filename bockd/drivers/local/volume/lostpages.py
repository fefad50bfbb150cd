"""Telling from a pool's own bytes whether unsynced pages of a head were lost.

A block whose latest redirect no barrier covers holds data, unless the journal says after it that
the block may be zeros. So if such a block is a hole or holds nothing but zeros, its page never
reached the disk: the file system was unmounted without it.

The death of a process may cut an append short where a page of the segment ends, and so leave a
redirect without the ZEROS record behind it. Where that may be, the last redirects prove nothing: so
many as one operation appends.

In a raw head a block lies at its own offset. In a packed one it lies in the cell that its record
names, and this rests on one rule: a cell that is given out is a hole in the file, durably, behind
the end of the file or punched and synced. Everything here is by place in the file.
"""

from __future__ import annotations

from bockd.drivers.local.format.journal import (
    HEADER_BYTES,
    RECORD_BYTES,
    Change,
    Kind,
    first_sequence,
)
from bockd.drivers.local.format.journalreading import SegmentContents, last_barrier
from bockd.drivers.local.format.layer import Layer
from bockd.drivers.local.format.leaf import LEAF_BLOCKS
from bockd.drivers.local.volume.room import PACKED_RECORDS_PER_OPERATION
from bockd.drivers.local.volume.zeros import is_zeros
from bockd.model import BLOCK_SIZE

REDIRECTS = (Kind.REDIRECT, Kind.CELLS)

_GROUP_BYTES = LEAF_BLOCKS * BLOCK_SIZE

MAX_READ_GROUPS = 4096
"""Groups of 256 blocks that are read to see whether what is no hole is zeros: 4 GiB, seconds. In
what lies beyond, only holes are looked for. It takes that many bytes written without a flush, and
pages lost before a copy of them was made that has no holes, for that to miss anything."""


def find_lost_pages(segments: list[SegmentContents], head: Layer) -> bool:
    """Return whether a block of the head has lost its data. Segments that are not all of a format
    that notes zeros prove nothing. Raises DamagedError, DeviceError."""
    changes = [change for segment in segments for change in _beyond_doubt(segment)]
    owed = _owed_cells(changes) if head.packed else _owed(changes)
    length = head.length_bytes()
    if any(_reach(group, mask) > length for group, mask in owed.items()):
        return True
    for position, (group, mask) in enumerate(owed.items()):
        if mask & ~_present(head, group):
            return True
        if position < MAX_READ_GROUPS and _holds_zeros(head, group, mask):
            return True
    return False


def _beyond_doubt(segment: SegmentContents) -> list[Change]:
    """Return the changes of a segment without the last redirects, if an append may have been cut
    short behind them, so that they lack their ZEROS record."""
    changes = list(segment.changes)
    if segment.torn or not (HEADER_BYTES + segment.places * RECORD_BYTES) % BLOCK_SIZE:
        end = first_sequence(segment.name.number) + segment.places
        first = end - PACKED_RECORDS_PER_OPERATION
        while changes and changes[-1].kind in REDIRECTS and changes[-1].sequence >= first:
            changes.pop()
    return changes


def _owed(changes: list[Change]) -> dict[int, int]:
    """The blocks of a raw head that must hold data: by group of 256, a bit for each."""
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


def _owed_cells(changes: list[Change]) -> dict[int, int]:
    """The cells of a packed head that must hold data, in the same form."""
    durable = last_barrier(tuple(changes))
    cells: dict[int, int] = {}
    for change in changes:
        blocks = range(change.start, change.start + change.blocks)
        if change.sequence <= durable:
            continue
        if change.kind is Kind.CELLS:
            cells.update(zip(blocks, range(change.cell, change.cell + change.blocks), strict=True))
        elif change.kind in (Kind.HOLE, Kind.ZEROS):
            # A hole may be as large as the volume; what is owed is little beside it.
            few = blocks if len(blocks) < len(cells) else [b for b in cells if b in blocks]
            for block in few:
                cells.pop(block, None)
    owed: dict[int, int] = {}
    for cell in cells.values():
        group, bit = divmod(cell, LEAF_BLOCKS)
        owed[group] = owed.get(group, 0) | 1 << bit
    return owed


def _reach(group: int, mask: int) -> int:
    """Where the last place of a group with a bit in the mask ends, in bytes."""
    return group * _GROUP_BYTES + mask.bit_length() * BLOCK_SIZE


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
