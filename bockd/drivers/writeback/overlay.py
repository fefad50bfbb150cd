"""Extents of a device with write-back: what is dirty lies over what is below.

Only whole blocks are said to be holes, for clients ask and are told in those.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from bockd.drivers.writeback.records import Kind, Record
from bockd.model import BLOCK_SIZE, Extent

_HOLES = (Kind.TRIM, Kind.ZERO)


class Run(NamedTuple):
    """A range of whole blocks that is dirty; its edges are the device's, or those of a request."""

    start: int
    end: int
    hole: bool


def runs_of(pieces: Iterable[tuple[int, int, Record | None]]) -> list[Run]:
    """Return what dirty pieces make of their blocks, in order: a block is data if any of it is."""
    runs: list[Run] = []
    for start, end, record in pieces:
        if record is None:
            continue
        hole = record.kind in _HOLES
        first = _up(start) if hole else start // BLOCK_SIZE * BLOCK_SIZE
        stop = end // BLOCK_SIZE * BLOCK_SIZE if hole else _up(end)
        if runs and first < runs[-1].end:
            first = runs[-1].end
        if first < stop:
            runs.append(Run(first, stop, hole))
    return runs


def merged(over: list[Run], below: list[Extent], limit: int) -> list[Extent]:
    """Return extents of the range that those of the device below cover, with the dirty runs laid
    over them; at most `limit`."""
    start, end = below[0].offset_bytes, below[-1].offset_bytes + below[-1].length_bytes
    pieces: list[tuple[int, int, bool]] = []
    at = start
    for run in over:
        first, stop = max(run.start, at), min(run.end, end)
        if first < stop:
            pieces += _cut(below, at, first)
            pieces.append((first, stop, run.hole))
            at = stop
    pieces += _cut(below, at, end)
    found: list[Extent] = []
    for first, stop, hole in pieces:
        if found and found[-1].hole == hole:
            last = found.pop()
            found.append(Extent(last.offset_bytes, stop - last.offset_bytes, hole))
        elif len(found) == limit:
            break
        else:
            found.append(Extent(first, stop - first, hole))
    return found


def _cut(extents: list[Extent], start: int, end: int) -> list[tuple[int, int, bool]]:
    """Return what of extents lies in a range."""
    cut = []
    for one in extents:
        first = max(one.offset_bytes, start)
        stop = min(one.offset_bytes + one.length_bytes, end)
        if first < stop:
            cut.append((first, stop, one.hole))
    return cut


def _up(offset: int) -> int:
    return -(-offset // BLOCK_SIZE) * BLOCK_SIZE
