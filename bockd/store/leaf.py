"""One leaf of a block map: which layer holds each of 256 neighbouring blocks.

A leaf is 256 layer ids, 0 meaning *hole*. It is stored under (map, leaf number) in the shortest of
three forms, all little-endian, never longer than 1,281 bytes (an LMDB page keeps two or more):

    00 | layer:u32                                    one layer for all blocks
    01 | (last:u8, layer:u32)...                      runs; each ends at block `last`, inclusive
    02 | n-1:u8 | layer:u32 * n | index:u8 * 256      a palette and an index into it
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence

from bockd.errors import DamagedError
from bockd.model import BLOCK_SIZE, LayerId, MapId

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


def leaf_key(map_id: MapId, number: int) -> bytes:
    """The index key of leaf `number`; keys of a map sort by leaf."""
    return _KEY.pack(map_id, number)


def leaf_key_parts(key: bytes) -> tuple[MapId, int]:
    """(map, leaf number) of a key."""
    map_id, number = _KEY.unpack(key)
    return MapId(map_id), number


def uniform(layer: LayerId) -> array[int]:
    """256 times the same layer."""
    return array("I", (layer,)) * LEAF_BLOCKS


def encode_leaf(entries: array[int]) -> bytes:
    """Stored form of 256 layer ids."""
    distinct = set(entries)
    if len(distinct) == 1:
        return _UNIFORM.pack(_FORM_UNIFORM, entries[0])
    ends = [i for i in range(LEAF_MASK) if entries[i] != entries[i + 1]]
    ends.append(LEAF_MASK)
    palette = sorted(distinct)
    if 1 + 5 * len(ends) <= 2 + 4 * len(palette) + LEAF_BLOCKS:
        return bytes((_FORM_RUNS,)) + b"".join(_RUN.pack(end, entries[end]) for end in ends)
    place = {layer: i for i, layer in enumerate(palette)}
    return (
        bytes((_FORM_PALETTE, len(palette) - 1))
        + struct.pack(f"<{len(palette)}I", *palette)
        + bytes([place[layer] for layer in entries])
    )


def leaf_runs(payload: bytes) -> list[tuple[int, int, LayerId]]:
    """Runs of a stored leaf as (first, end, layer), covering blocks 0 to 256, `end` exclusive.

    Neighbouring runs differ. Raises DamagedError for bytes that no `encode_leaf` made.
    """
    try:
        form = payload[0]
        if form == _FORM_UNIFORM:
            return [(0, LEAF_BLOCKS, LayerId(_UNIFORM.unpack(payload)[1]))]
        if form == _FORM_RUNS:
            return _decode_runs(payload)
        if form == _FORM_PALETTE:
            return _decode_palette(payload)
    except (struct.error, IndexError):
        pass
    raise DamagedError("a stored map leaf is malformed; run 'bockd check'")


def _decode_runs(payload: bytes) -> list[tuple[int, int, LayerId]]:
    runs = []
    first = 0
    for last, layer in _RUN.iter_unpack(payload[1:]):
        if last < first:
            raise IndexError
        runs.append((first, last + 1, LayerId(layer)))
        first = last + 1
    if first != LEAF_BLOCKS:
        raise IndexError
    return runs


def _decode_palette(payload: bytes) -> list[tuple[int, int, LayerId]]:
    count = payload[1] + 1
    palette = struct.unpack_from(f"<{count}I", payload, 2)
    index = payload[2 + 4 * count :]
    if len(index) != LEAF_BLOCKS:
        raise IndexError
    runs = []
    first = 0
    while first < LEAF_BLOCKS:
        code = index[first : first + 1]
        end = LEAF_BLOCKS - len(index[first:].lstrip(code))
        runs.append((first, end, LayerId(palette[code[0]])))
        first = end
    return runs


def decode_leaf(payload: bytes) -> array[int]:
    """The 256 layer ids of a stored leaf."""
    entries = array("I")
    for first, end, layer in leaf_runs(payload):
        entries.extend((layer,) * (end - first))
    return entries


def fill(entries: array[int], first: int, end: int, value: int) -> None:
    """Set entries first..end-1 to `value`."""
    entries[first:end] = array(entries.typecode, (value,)) * (end - first)


def runs_of(entries: Sequence[int], first: int, end: int) -> list[tuple[int, int, int]]:
    """Runs of equal values as (first, end, value) within entries[first:end]."""
    runs = []
    while first < end:
        value = entries[first]
        stop = first + 1
        while stop < end and entries[stop] == value:
            stop += 1
        runs.append((first, stop, value))
        first = stop
    return runs
