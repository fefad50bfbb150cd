"""Where blocks of an open device lie, as runs: what is read or written with one call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bockd.drivers.local.format.leaf import LEAF_BLOCKS, LEAF_SHIFT, runs_of
from bockd.drivers.local.volume.slots import HOLE_SLOT

if TYPE_CHECKING:
    from bockd.drivers.local.volume.leafcache import LeafCache

Run = tuple[int, int, int, int]
"""Blocks first..end-1 that lie one behind the other in one file: (first, end, slot, cell). Block b
is at byte (cell + b - first) x 4096 there; in a raw layer its cell is its number."""


def find_runs(cache: LeafCache, first: int, end: int) -> list[Run]:
    """Return blocks first..end-1 as the longest runs. Their leaves are in memory."""
    found: list[Run] = []
    while first < end:
        number = first >> LEAF_SHIFT
        base = number << LEAF_SHIFT
        stop = min(end, base + LEAF_BLOCKS)
        leaf = cache.leaf(number)
        if cache.is_shared(leaf):
            pieces = [(first - base, stop - base, leaf[0])]
        else:
            pieces = runs_of(leaf, first - base, stop - base)
        for start, until, slot in pieces:
            if cache.is_packed(slot):
                _add_packed(found, cache, number, start, until)
            elif found and found[-1][2] == slot:
                found[-1] = (found[-1][0], base + until, slot, found[-1][3])
            else:
                found.append((base + start, base + until, slot, base + start))
        first = stop
    return found


def _add_packed(found: list[Run], cache: LeafCache, number: int, first: int, end: int) -> None:
    """Add blocks first..end-1 of a leaf, all in one packed layer, to the runs before them."""
    row, slot, base = cache.cells[number], cache.leaf(number)[first], number << LEAF_SHIFT
    while first < end:
        cell, stop = row[first], first + 1
        while stop < end and row[stop] == cell + stop - first:
            stop += 1
        last = found[-1] if found else (0, 0, HOLE_SLOT, 0)
        if last[2] == slot and last[3] + last[1] - last[0] == cell:
            found[-1] = (last[0], base + stop, slot, last[3])
        else:
            found.append((base + first, base + stop, slot, cell))
        first = stop
