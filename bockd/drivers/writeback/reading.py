"""Reading what records hold: for clients, and to be written below."""

from __future__ import annotations

from collections.abc import Sequence

from bockd.drivers.writeback.records import Kind, Record
from bockd.drivers.writeback.segment import log_call

Part = tuple[Record, int, memoryview]
"""A record, the byte of the device from which on its content is wanted, and where that goes."""


def try_fill(part: Part) -> bool:
    """Fill a part if that needs no waiting. Raises OSError."""
    record, start, into = part
    if record.kind is Kind.WRITE:
        return record.segment.try_read(record, start, into)
    into[:] = bytes(len(into))
    return True


async def fill(parts: Sequence[Part]) -> None:
    """Fill parts. Their records may be freed meanwhile. Raises OSError, DamagedError: what was
    written cannot be read back."""
    pinned = [record.segment for record, _, _ in parts]
    for segment in pinned:
        segment.pin()
    try:
        await log_call(_fill, parts)
    finally:
        for segment in pinned:
            segment.unpin()


def _fill(parts: Sequence[Part]) -> None:
    for part in parts:
        if not try_fill(part):
            record, start, into = part
            record.segment.read(record, start, into)
