"""A number for some of a leaf's 256 blocks in one layer: what checksums and cells have in common.

Keys are big-endian, so that the leaves of a layer lie one behind the other in their order; payloads
are little-endian, 1,056 bytes at most:

    <layer:u64><leaf number:u32>   blocks: 256 bits | a u32 for each bit that is set
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import compress, islice

from bockd.drivers.local.format.leaf import LEAF_BLOCKS
from bockd.errors import DamagedError
from bockd.index.tables import Table
from bockd.model import LayerId
from bockd.pool.index import Transaction

_KEY = struct.Struct(">QI")
_MASK_BYTES = LEAF_BLOCKS // 8
_ONE = ord("1")
_BITS = bytes.maketrans(b"01", b"\0\1")

LeafValues = dict[int, int]
"""Block within the leaf to its number."""


def leaf_value_key(layer: LayerId, number: int) -> bytes:
    """Return the index key of a leaf's numbers in a layer."""
    return _KEY.pack(layer, number)


def leaf_value_key_parts(key: bytes) -> tuple[LayerId, int]:
    """Return (layer, leaf number) of a key."""
    layer, number = _KEY.unpack(key)
    return LayerId(layer), number


def encode_values(values: LeafValues) -> bytes:
    """Encode the numbers of a leaf in their stored form."""
    blocks = sorted(values)
    digits = bytearray(b"0") * LEAF_BLOCKS
    for block in blocks:
        digits[~block] = _ONE  # the highest comes first
    mask = int(digits, 2).to_bytes(_MASK_BYTES, "little")
    return mask + struct.pack(f"<{len(blocks)}I", *[values[block] for block in blocks])


@dataclass(frozen=True, slots=True)
class LeafTable:
    """A table of the index with such rows."""

    table: Table
    what: str
    """What the numbers are, in the plural."""

    def decode(self, payload: bytes, first: int = 0, end: int = LEAF_BLOCKS) -> LeafValues:
        """Decode the numbers of blocks first..end-1 from the stored form. Raises DamagedError for
        bytes that `encode_values` never made."""
        mask = int.from_bytes(payload[:_MASK_BYTES], "little")
        if not mask or len(payload) != _MASK_BYTES + 4 * mask.bit_count():
            raise DamagedError(f"stored {self.what} are malformed; run 'bockd check'")
        digits = f"{mask:0{LEAF_BLOCKS}b}"[::-1].encode().translate(_BITS)
        blocks = [*compress(range(first, end), digits[first:end])]
        before = (mask & ((1 << first) - 1)).bit_count()
        ordered = struct.unpack_from(f"<{len(blocks)}I", payload, _MASK_BYTES + 4 * before)
        return dict(zip(blocks, ordered, strict=True))

    def get(
        self, txn: Transaction, layer: LayerId, number: int, first: int = 0, end: int = LEAF_BLOCKS
    ) -> LeafValues:
        """Return the numbers of a leaf's blocks first..end-1 in a layer."""
        payload = txn.get(self.table, _KEY.pack(layer, number))
        return {} if payload is None else self.decode(payload, first, end)

    def put(self, txn: Transaction, layer: LayerId, number: int, values: LeafValues) -> None:
        """Store the numbers of a leaf in a layer, in place of those that are there."""
        key = _KEY.pack(layer, number)
        if values:
            txn.put(self.table, key, encode_values(values))
        else:
            txn.delete(self.table, key)

    def forget(
        self, txn: Transaction, layer: LayerId, number: int, blocks: Collection[int]
    ) -> None:
        """Forget the numbers of some of a leaf's blocks in a layer."""
        blocks = frozenset(blocks)
        values = self.get(txn, layer, number)
        left = {block: value for block, value in values.items() if block not in blocks}
        if len(left) != len(values):
            self.put(txn, layer, number, left)

    def rows_from(
        self, txn: Transaction, layer: LayerId, number: int
    ) -> Iterator[tuple[LayerId, int, LeafValues]]:
        """Yield all rows in order from a layer's leaf on, as (layer, leaf number, numbers)."""
        for key, payload in txn.scan(self.table, _KEY.pack(layer, number), b"\xff" * 13):
            yield *leaf_value_key_parts(key), self.decode(payload)

    def rows_of(self, txn: Transaction, layer: LayerId) -> Iterator[tuple[int, LeafValues]]:
        """Yield the rows of a layer in order, as (leaf number, numbers)."""
        for key, payload in txn.scan(self.table, *_keys_of(layer)):
            yield leaf_value_key_parts(key)[1], self.decode(payload)

    def rows_between(
        self, txn: Transaction, layer: LayerId, first: int, end: int
    ) -> Iterator[tuple[int, LeafValues]]:
        """Yield the rows of leaves first..end-1 of a layer in order, as (leaf number, numbers).
        Raises DamagedError, as `txn.scan` does, where one may have been lost."""
        for key, payload in txn.scan(self.table, _KEY.pack(layer, first), _KEY.pack(layer, end)):
            yield leaf_value_key_parts(key)[1], self.decode(payload)

    def forget_some(self, txn: Transaction, layer: LayerId, limit: int) -> bool:
        """Forget up to `limit` rows of a layer. Return False when none is left."""
        keys = list(islice(txn.keys(self.table, *_keys_of(layer)), limit))
        for key in keys:
            txn.delete(self.table, key)
        return len(keys) == limit

    def has_rows(self, txn: Transaction, layer: LayerId) -> bool:
        """Return whether there is a row of a layer."""
        return any(txn.keys(self.table, *_keys_of(layer)))


def _keys_of(layer: LayerId) -> tuple[bytes, bytes]:
    """Where the rows of a layer begin, and where those of the next one would."""
    return _KEY.pack(layer, 0), _KEY.pack(layer + 1, 0)
