"""One leaf of a block map: which layer holds each of 256 neighbouring blocks.

A leaf is 256 layer ids, 0 meaning *hole*. It is stored under (map, leaf number) in the shortest of
three forms, all little-endian, never longer than 1,281 bytes (an LMDB page keeps two or more):

    00 | layer:u32                                    one layer for all blocks
    01 | (last:u8, layer:u32)...                      runs; each ends at block `last`, inclusive
    02 | n-1:u8 | layer:u32 * n | index:u8 * 256      a palette and an index into it
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Sequence
from typing import NamedTuple

from bockd.errors import DamagedError
from bockd.index.tables import Table
from bockd.model import BLOCK_SIZE, LayerId, MapId

LEAVES = Table(b"leaves")

LEAF_BLOCKS = 256
"""Blocks in a leaf: 1 MiB of volume. Larger leaves cost memory for scattered writes, smaller ones
cost lookups for sequential ones."""

LEAF_SHIFT = 8
LEAF_MASK = LEAF_BLOCKS - 1
LEAF_BYTES = LEAF_BLOCKS * BLOCK_SIZE

HOLE = LayerId(0)
"""The layer id of blocks that are stored nowhere and read as zeros."""

MAX_LAYER_ID = (1 << 32) - 1

_KEY = struct.Struct(">QI")
_UNIFORM = struct.Struct("<BI")
_RUN = struct.Struct("<BI")
_FORM_UNIFORM, _FORM_RUNS, _FORM_PALETTE = 0, 1, 2
_RUNS_TAG = bytes((_FORM_RUNS,))
_CODES = [bytes((code,)) for code in range(LEAF_BLOCKS)]
_LOW, _HIGH = (0, 1) if sys.byteorder == "little" else (1, 0)
"""Where the two bytes of a 16-bit number are in memory."""

_ZEROS = array("H", bytes(2 * LEAF_BLOCKS))


def leaf_key(map_id: MapId, number: int) -> bytes:
    """Return the index key of leaf `number`. The keys of a map sort by leaf."""
    return _KEY.pack(map_id, number)


def leaf_key_parts(key: bytes) -> tuple[MapId, int]:
    """Return (map, leaf number) of a key."""
    map_id, number = _KEY.unpack(key)
    return MapId(map_id), number


class Numbering(NamedTuple):
    """A 16-bit number for each layer of a palette: tables for `bytes.translate`."""

    low: bytes
    high: bytes | None
    """None if it is zero throughout."""

    @classmethod
    def of(cls, numbers: Sequence[int]) -> Numbering:
        """Return the tables of the numbers of a palette's layers, in its order."""
        low = bytes([number & 0xFF for number in numbers]).ljust(LEAF_BLOCKS)
        if max(numbers) <= 0xFF:
            return cls(low, None)
        return cls(low, bytes([number >> 8 for number in numbers]).ljust(LEAF_BLOCKS))


class Leaf:
    """256 layer ids as a palette of layers and, for each block, an index into it.

    The palette has no layer twice. It may hold layers that no block uses any more; `encode` leaves
    them out.
    """

    __slots__ = ("index", "palette")

    def __init__(self, palette: list[int], index: bytearray) -> None:
        self.palette = palette
        self.index = index

    @classmethod
    def uniform(cls, layer: LayerId) -> Leaf:
        """Return a leaf with the same layer for all 256 blocks."""
        return cls([layer], bytearray(LEAF_BLOCKS))

    @classmethod
    def of(cls, layers: Sequence[int]) -> Leaf:
        """Return the leaf of 256 layer ids."""
        palette = sorted(set(layers))
        place = {layer: code for code, layer in enumerate(palette)}
        return cls(palette, bytearray([place[layer] for layer in layers]))

    @classmethod
    def decode(cls, payload: bytes) -> Leaf:
        """Decode a leaf from its stored form. Raises DamagedError for bytes that no `encode`
        made."""
        try:
            form = payload[0]
            if form == _FORM_UNIFORM:
                return cls.uniform(LayerId(_UNIFORM.unpack(payload)[1]))
            if form == _FORM_RUNS:
                return cls._decode_runs(payload)
            if form == _FORM_PALETTE:
                return cls._decode_palette(payload)
        except (struct.error, IndexError):
            pass
        raise DamagedError("a stored map leaf is malformed; run 'bockd check'")

    @classmethod
    def _decode_runs(cls, payload: bytes) -> Leaf:
        palette: list[int] = []
        index = bytearray()
        for last, layer in _RUN.iter_unpack(payload[1:]):
            if last < len(index):
                raise IndexError
            if layer not in palette:
                palette.append(layer)
            index.extend(_CODES[palette.index(layer)] * (last + 1 - len(index)))
        if len(index) != LEAF_BLOCKS:
            raise IndexError
        return cls(palette, index)

    @classmethod
    def _decode_palette(cls, payload: bytes) -> Leaf:
        count = payload[1] + 1
        palette = list(struct.unpack_from(f"<{count}I", payload, 2))
        index = bytearray(payload[2 + 4 * count :])
        if len(index) != LEAF_BLOCKS or max(index) >= count or len(set(palette)) != count:
            raise IndexError
        return cls(palette, index)

    def assign(self, first: int, end: int, layer: LayerId) -> None:
        """Assign blocks first..end-1 to `layer`."""
        palette = self.palette
        if layer in palette:
            code = palette.index(layer)
        elif len(palette) < LEAF_BLOCKS:
            code = len(palette)
            palette.append(layer)
        else:
            layers = self.layers()
            layers[first:end] = [layer] * (end - first)
            rebuilt = Leaf.of(layers)
            self.palette, self.index = rebuilt.palette, rebuilt.index
            return
        if end - first == 1:
            self.index[first] = code
        else:
            self.index[first:end] = _CODES[code] * (end - first)

    def encode(self) -> bytes:
        """Encode the leaf in its stored form."""
        runs = self.runs()
        if len(runs) == 1:
            return _UNIFORM.pack(_FORM_UNIFORM, runs[0][2])
        length, shortest = 1 + 5 * len(runs), 2 + LEAF_BLOCKS  # of a palette of no layers
        codes = set(self.index) if length > shortest else set[int]()
        if length <= shortest + 4 * len(codes):
            return _RUNS_TAG + b"".join([_RUN.pack(end - 1, layer) for _, end, layer in runs])
        lean = self if len(codes) == len(self.palette) else Leaf.of(self.layers())
        return (
            bytes((_FORM_PALETTE, len(lean.palette) - 1))
            + struct.pack(f"<{len(lean.palette)}I", *lean.palette)
            + lean.index
        )

    def runs(self) -> list[tuple[int, int, LayerId]]:
        """Return runs as (first, end, layer), covering blocks 0 to 256, `end` exclusive.
        Neighbouring runs have different layers."""
        palette, rest = self.palette, bytes(self.index)
        runs: list[tuple[int, int, LayerId]] = []
        first = 0
        while rest:
            code = rest[0]
            rest = rest.lstrip(_CODES[code])
            end = LEAF_BLOCKS - len(rest)
            runs.append((first, end, LayerId(palette[code])))
            first = end
        return runs

    def layers(self) -> list[int]:
        """Return the 256 layer ids."""
        palette = self.palette
        return [palette[code] for code in self.index]

    def numbered(self, numbering: Numbering) -> array[int]:
        """Return for each block the 16-bit number of its layer, typecode H."""
        numbers = _ZEROS[:]
        view = memoryview(numbers).cast("B")
        view[_LOW::2] = self.index.translate(numbering.low)
        if numbering.high is not None:
            view[_HIGH::2] = self.index.translate(numbering.high)
        return numbers

    def is_hole(self) -> bool:
        """Return whether no block is stored."""
        palette = self.palette
        return HOLE in palette and self.index.count(palette.index(HOLE)) == LEAF_BLOCKS


def runs_of(entries: Sequence[int], first: int, end: int) -> list[tuple[int, int, int]]:
    """Return runs of equal values as (first, end, value) within entries[first:end]."""
    runs = []
    while first < end:
        value = entries[first]
        stop = first + 1
        while stop < end and entries[stop] == value:
            stop += 1
        runs.append((first, stop, value))
        first = stop
    return runs
