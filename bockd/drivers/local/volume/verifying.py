"""Verifying what a thread has read for a client from frozen layers, against their checksums.

What the page cache gives on the spot is not verified: a checksum costs a tenth of such a read. What
comes from the disk goes through here first, and its checksum costs little beside that.
"""

from __future__ import annotations

import logging
import time
from typing import NamedTuple

from bockd.drivers.local.format import checksums
from bockd.drivers.local.format.checksums import DamageRecord, crc_of
from bockd.drivers.local.format.layer import Layer
from bockd.drivers.local.format.leaf import LEAF_BLOCKS, LEAF_SHIFT
from bockd.drivers.local.integrity.damage import describe
from bockd.errors import BockdError, DamagedBlockError
from bockd.index.index import LmdbIndex
from bockd.model import BLOCK_SIZE, LayerId
from bockd.pool.index import Transaction

log = logging.getLogger(__name__)


class ReadPiece(NamedTuple):
    """What is read, or was, from one place in one layer."""

    layer: Layer
    position: int
    """Where it begins in the layer's files, in bytes."""
    offset: int
    """Where it begins in the device. They differ in a packed layer."""
    data: memoryview


def verify_reads(index: LmdbIndex, pieces: list[ReadPiece]) -> None:
    """Compare what was just read from frozen layers with its checksums. If a block differs, mark
    the damage in the index and raise DamagedBlockError. Blocks. Also raises OSError,
    DamagedError."""
    with index.reading() as txn:
        expected = [_stored(txn, p.layer.id, p.offset, len(p.data)) for p in pieces]
    for piece, sums in zip(pieces, expected, strict=True):
        _verify(index, piece, sums)


def _stored(txn: Transaction, layer: LayerId, offset: int, length: int) -> dict[int, int]:
    """Return the checksums that the index has of a range's blocks."""
    first = offset // BLOCK_SIZE
    end = -(-(offset + length) // BLOCK_SIZE)
    expected: dict[int, int] = {}
    for number in range(first >> LEAF_SHIFT, ((end - 1) >> LEAF_SHIFT) + 1):
        base = number * LEAF_BLOCKS
        start, stop = max(first - base, 0), min(end - base, LEAF_BLOCKS)
        sums = checksums.stored_sums(txn, layer, number, start, stop)
        expected |= {base + block: crc for block, crc in sums.items()}
    return expected


def _verify(index: LmdbIndex, piece: ReadPiece, sums: dict[int, int]) -> None:
    layer, position, offset, data = piece
    for block, crc in sums.items():
        at = block * BLOCK_SIZE - offset
        whole = data[at : at + BLOCK_SIZE] if at >= 0 else data[:0]
        if len(whole) < BLOCK_SIZE:  # the reader wanted a part of it
            whole = memoryview(bytearray(BLOCK_SIZE))
            layer.read(position + at, whole)
        found = crc_of(whole)
        if found != crc:
            # Others do not know yet: what they read is to come from the disk, and here again.
            layer.evict(position + at)
            _record_damage(index, DamageRecord(layer.id, block, crc, found, time.time()))


def _record_damage(index: LmdbIndex, record: DamageRecord) -> None:
    number, block = divmod(record.block, LEAF_BLOCKS)

    def change(txn: Transaction) -> None:
        # Otherwise no map shows it any more; this read began before.
        if checksums.stored_sums(txn, record.layer, number).get(block) == record.expected:
            checksums.mark(txn, record)

    try:
        index.update(change)
        with index.reading() as txn:
            text = describe(txn, record)
    except BockdError as error:
        text = f"byte {record.block * BLOCK_SIZE} of layer {record.layer} is damaged ({error})"
    log.error("%s", text)
    raise DamagedBlockError(text, layer=record.layer, block=record.block)
