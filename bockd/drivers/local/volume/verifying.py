"""Verifying what a thread has read for a client from frozen layers, against their checksums.

What the page cache gives on the spot is not verified: a checksum costs a tenth of such a read. What
comes from the disk goes through here first, and its checksum costs little beside that.
"""

from __future__ import annotations

import logging
import time

from bockd.drivers.local.format import checksums
from bockd.drivers.local.format.checksums import DamageRecord, crc_of
from bockd.drivers.local.format.layer import Layer
from bockd.drivers.local.format.leaf import LEAF_BLOCKS, LEAF_SHIFT
from bockd.drivers.local.integrity.damage import describe, show_damage
from bockd.errors import BockdError, DamagedBlockError
from bockd.index.index import LmdbIndex
from bockd.model import BLOCK_SIZE
from bockd.pool.index import Transaction

log = logging.getLogger(__name__)


def verify_read(index: LmdbIndex, layer: Layer, position: int, data: memoryview) -> None:
    """Compare `data`, just read from byte `position` of a frozen layer, with its checksums. If they
    differ, mark the damage in the index and raise DamagedBlockError. Blocks. Also raises OSError,
    DamagedError."""
    first = position // BLOCK_SIZE
    end = -(-(position + len(data)) // BLOCK_SIZE)
    expected: dict[int, int] = {}
    with index.reading() as txn:
        for number in range(first >> LEAF_SHIFT, ((end - 1) >> LEAF_SHIFT) + 1):
            base = number * LEAF_BLOCKS
            start, stop = max(first - base, 0), min(end - base, LEAF_BLOCKS)
            sums = checksums.stored_sums(txn, layer.id, number, start, stop)
            expected |= {base + block: crc for block, crc in sums.items()}
    for block, crc in expected.items():
        at = block * BLOCK_SIZE - position
        whole = data[at : at + BLOCK_SIZE] if at >= 0 else data[:0]
        if len(whole) < BLOCK_SIZE:  # the reader wanted a part of it
            whole = memoryview(bytearray(BLOCK_SIZE))
            layer.read(block * BLOCK_SIZE, whole)
        found = crc_of(whole)
        if found != crc:
            # Others do not know yet: what they read is to come from the disk, and here again.
            layer.evict(block * BLOCK_SIZE)
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
            text = describe(show_damage(txn, record))
    except BockdError as error:
        text = f"byte {record.block * BLOCK_SIZE} of layer {record.layer} is damaged ({error})"
    log.error("%s", text)
    raise DamagedBlockError(text, layer=record.layer, block=record.block)
