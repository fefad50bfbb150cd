"""Checksums of blocks in frozen layers, which blocks are damaged, and how far reading came.

A frozen block never changes as long as a map shows it, so its checksum is written once and goes
with it: in the transaction that queues the block to be punched, or that lets maps lead to a copy.
What is at rest of a layer that the index has forgotten goes in batches, before its files do.

Big-endian keys; CHECKSUMS is little-endian, the other payloads are JSON:

    CHECKSUMS/<layer:u64><leaf number:u32>   blocks: 256 bits | crc32c:u32 for each bit that is set
    DAMAGED/<layer:u64><block:u64>           DamageRecord
    SCRUB/l<layer:u64>                       ReadingRecord
    SCRUB/p                                  PassRecord

The rows of CHECKSUMS are those of format.leafvalues.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeVar

import msgspec
from crc32c import crc32c

from bockd.drivers.local.format.leaf import LEAF_BLOCKS, LEAF_SHIFT
from bockd.drivers.local.format.leafvalues import LeafTable, LeafValues
from bockd.errors import DamagedError
from bockd.index.tables import Table
from bockd.model import BLOCK_SIZE, LayerId, MapId
from bockd.pool.index import Transaction

log = logging.getLogger(__name__)

CHECKSUMS = Table(b"checksums")
DAMAGED = Table(b"damaged")
SCRUB = Table(b"scrub")

_BLOCK_KEY = struct.Struct(">QQ")
_LAYER_KEY = struct.Struct(">cQ")
_PASS_KEY = b"p"

ROWS = LeafTable(CHECKSUMS, "checksums")

LeafSums = LeafValues
"""Block within the leaf to its CRC32C."""


@dataclass(frozen=True, slots=True)
class DamageRecord:
    """A block that does not hold what was read at first. `found` is None when it cannot be read."""

    layer: LayerId
    block: int
    expected: int
    found: int | None
    found_at: float


@dataclass(frozen=True, slots=True)
class ReadingRecord:
    """How far the first reading of a layer came: the leaves of `home` before `next_leaf`."""

    layer: LayerId
    home: MapId
    """The layer's home then. With another one it begins again, and skips what it has."""
    next_leaf: int
    done: bool


@dataclass(frozen=True, slots=True)
class PassRecord:
    """The latest pass over all checksums, under way or finished."""

    started_at: float
    finished_at: float | None
    next_layer: LayerId
    next_leaf: int
    leaves_done: int
    leaves_total: int
    """When it began; layers come and go meanwhile."""
    blocks_verified: int


_Record = TypeVar("_Record", DamageRecord, ReadingRecord, PassRecord)


# -- checksums -----------------------------------------------------------------------------------


def crc_of(block: memoryview) -> int:
    """Return the CRC32C of a block."""
    return crc32c(block)


def sums_of(content: memoryview, blocks: Iterable[int]) -> LeafSums:
    """Return the CRC32C of each of the whole blocks that lie one after the other in `content`."""
    return {
        block: crc32c(content[at : at + BLOCK_SIZE])
        for block, at in zip(blocks, range(0, len(content), BLOCK_SIZE), strict=True)
    }


def stored_sums(
    txn: Transaction, layer: LayerId, number: int, first: int = 0, end: int = LEAF_BLOCKS
) -> LeafSums:
    """Return the stored checksums of a leaf's blocks first..end-1 in a layer."""
    return ROWS.get(txn, layer, number, first, end)


def add_sums(txn: Transaction, layer: LayerId, number: int, sums: LeafSums) -> None:
    """Store checksums of what was read. A checksum that is there already stays."""
    if sums:
        ROWS.put(txn, layer, number, {**sums, **stored_sums(txn, layer, number)})


def forget_blocks(txn: Transaction, layer: LayerId, number: int, blocks: Collection[int]) -> None:
    """Forget the checksums and marks of damage of some of a leaf's blocks in a layer, which no map
    shows any more. Those that cannot be read stay: nothing is compared with them."""
    base = number << LEAF_SHIFT
    blocks = frozenset(blocks)
    try:
        ROWS.forget(txn, layer, number, blocks)
        for block in damaged_blocks(txn, layer, base, base + LEAF_BLOCKS):
            if block - base in blocks:
                unmark(txn, layer, block)
    except DamagedError as error:
        log.error("what was known of blocks that are gone: %s", error)  # noqa: TRY400


def copy_blocks(
    txn: Transaction, source: LayerId, target: LayerId, number: int, blocks: Iterable[int]
) -> None:
    """Copy the checksums and marks of damage of some blocks of a leaf, which were themselves copied
    from one layer to another."""
    known, sums = stored_sums(txn, source, number), stored_sums(txn, target, number)
    base = number << LEAF_SHIFT
    for block in blocks:
        sums.pop(block, None)
        if block in known:
            sums[block] = known[block]
        unmark(txn, target, base + block)
        payload = txn.get(DAMAGED, _BLOCK_KEY.pack(source, base + block))
        if payload is not None:
            mark(txn, replace(_decode(DamageRecord, payload), layer=target))
    ROWS.put(txn, target, number, sums)


def forget_some(txn: Transaction, layer: LayerId, limit: int) -> bool:
    """Forget the checksums of up to `limit` leaves, and as many marks of damage, of a layer that
    does not exist any more. Return False when none is left."""
    more = ROWS.forget_some(txn, layer, limit)
    marks = _BLOCK_KEY.pack(layer, 0), _BLOCK_KEY.pack(layer + 1, 0)
    damaged = list(islice(txn.keys(DAMAGED, *marks), limit))
    for key in damaged:
        txn.delete(DAMAGED, key)
    return more or len(damaged) == limit


def knows_layer(txn: Transaction, layer: LayerId) -> bool:
    """Return whether `forget_some` would find something."""
    marks = _BLOCK_KEY.pack(layer, 0), _BLOCK_KEY.pack(layer + 1, 0)
    return ROWS.has_rows(txn, layer) or any(txn.keys(DAMAGED, *marks))


# -- damage --------------------------------------------------------------------------------------


def mark(txn: Transaction, record: DamageRecord) -> None:
    """Mark a block as damaged: it is not to be read from now on."""
    key = _BLOCK_KEY.pack(record.layer, record.block)
    txn.put(DAMAGED, key, msgspec.json.encode(record))


def unmark(txn: Transaction, layer: LayerId, block: int) -> None:
    """Remove the mark of damage from a block that is in order, or that no map shows any more."""
    txn.delete(DAMAGED, _BLOCK_KEY.pack(layer, block))


def damaged_blocks(txn: Transaction, layer: LayerId, first: int, end: int) -> list[int]:
    """Return the damaged ones of a layer's blocks first..end-1."""
    start, stop = _BLOCK_KEY.pack(layer, first), _BLOCK_KEY.pack(layer, end)
    return [_BLOCK_KEY.unpack(key)[1] for key in txn.keys(DAMAGED, start, stop)]


def all_damage(txn: Transaction) -> list[DamageRecord]:
    """Return all marks of damage, by layer and block."""
    return [_decode(DamageRecord, payload) for _, payload in txn.scan(DAMAGED, b"", b"\xff" * 17)]


# -- progress ------------------------------------------------------------------------------------


def reading_of(txn: Transaction, layer: LayerId) -> ReadingRecord | None:
    """Return how far the first reading of a layer came, or None if it has not begun."""
    payload = txn.get(SCRUB, _LAYER_KEY.pack(b"l", layer))
    return None if payload is None else _decode(ReadingRecord, payload)


def all_readings(txn: Transaction) -> list[ReadingRecord]:
    """Return the first readings that have begun, by layer."""
    scanned = txn.scan(SCRUB, b"l", b"m")
    return [_decode(ReadingRecord, payload) for _, payload in scanned]


def put_reading(txn: Transaction, record: ReadingRecord) -> None:
    txn.put(SCRUB, _LAYER_KEY.pack(b"l", record.layer), msgspec.json.encode(record))


def forget_reading(txn: Transaction, layer: LayerId) -> None:
    """Forget how far the first reading of a layer came: the layer does not exist any more, or is to
    be read from its beginning."""
    txn.delete(SCRUB, _LAYER_KEY.pack(b"l", layer))


def latest_pass(txn: Transaction) -> PassRecord | None:
    """Return the pass under way, or the last one, or None if there was none."""
    payload = txn.get(SCRUB, _PASS_KEY)
    return None if payload is None else _decode(PassRecord, payload)


def put_pass(txn: Transaction, record: PassRecord) -> None:
    txn.put(SCRUB, _PASS_KEY, msgspec.json.encode(record))


def _decode(kind: type[_Record], payload: bytes) -> _Record:
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise DamagedError(f"a stored {kind.__name__} is malformed: {error}") from error
