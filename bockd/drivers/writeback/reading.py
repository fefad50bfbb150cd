"""Reading what records hold: for clients, and to be written below.

A record is read and verified as a whole, once for all that is wanted of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from bockd.drivers.writeback.records import Kind, Record
from bockd.drivers.writeback.segment import Place, log_call
from bockd.model import MIB

Part = tuple[Record, int, memoryview]
"""A record, the byte of the device from which on its content is wanted, and where that goes."""

AT_ONCE_PARTS = 32
"""What is filled without a thread: it takes a quarter of a millisecond, or as long as it takes to
read and verify `AT_ONCE_BYTES`."""

AT_ONCE_BYTES = 1 * MIB
"""Of the records that the parts are of."""


def try_fill(parts: Sequence[Part]) -> bool:
    """Fill parts if that needs no waiting, and little work. Raises OSError."""
    if len(parts) == 1:
        record, start, into = parts[0]
        return _try_fill(record, [(start, into)])
    records = _by_record(parts)
    work = sum(record.length for record in records if record.kind is Kind.WRITE)
    if len(parts) > AT_ONCE_PARTS or work > AT_ONCE_BYTES:
        return False
    return all(_try_fill(record, places) for record, places in records.items())


async def fill(parts: Sequence[Part]) -> None:
    """Fill parts. Their records may be freed meanwhile. Raises OSError, DamagedError: what was
    written cannot be read back."""
    pinned = {record.segment for record, _, _ in parts}
    for segment in pinned:
        segment.pin()
    try:
        await log_call(_fill, parts)
    finally:
        for segment in pinned:
            segment.unpin()


def _fill(parts: Sequence[Part]) -> None:
    for record, places in _by_record(parts).items():
        if not _try_fill(record, places):
            record.segment.read(record, places)


def _by_record(parts: Sequence[Part]) -> dict[Record, list[Place]]:
    found: dict[Record, list[Place]] = {}
    for record, start, into in parts:
        found.setdefault(record, []).append((start, into))
    return found


def _try_fill(record: Record, places: Sequence[Place]) -> bool:
    if record.kind is Kind.WRITE:
        return record.segment.try_read(record, places)
    for _, into in places:
        into[:] = bytes(len(into))
    return True
