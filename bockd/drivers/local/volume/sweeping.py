"""Sweeping a packed head that was not closed: punching what a death has left in it.

A write puts data into new cells before anything leads there, so a death may leave data that nobody
names, and nothing ever comes back to those cells (volume.cells). After a recovery the index names
every cell that counts. What lies before the end that the file had then, and is not named, is a
*stray*, and is given back to the file system.

The volume goes on meanwhile. It never gives out a stray: new cells lie behind that end, or are such
that a trim has emptied since; these are no strays, though no row names them any more.

A sweep may be killed at any time and is then forgotten; `check --repair` does the same.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from typing import Self

from bockd.drivers.local.access import StoreAccess
from bockd.drivers.local.format import cells
from bockd.drivers.local.format.catalogue import Catalogue, LayerRecord
from bockd.drivers.local.format.layer import Layer
from bockd.drivers.local.format.ranges import RangeSet
from bockd.drivers.local.volume.punching import PIECE_BLOCKS
from bockd.errors import BockdError
from bockd.failpoints import Failpoint, hit
from bockd.model import BLOCK_SIZE, GIB, LayerId
from bockd.runtime.steps import blocking
from bockd.runtime.waiting import Mutex

log = logging.getLogger(__name__)

WINDOW_CELLS = 64 * GIB // BLOCK_SIZE
"""Among which strays are looked for at once: 16 MiB of memory, and one walk over the layer's rows
of the index."""

MAX_LEAVES = (1 << 32) - 1
"""No leaf has this number, or a larger one."""

BATCH_ROWS = 1024
"""Read in one transaction: one that lasts keeps the index from using pages again."""


class Sweep:
    """Of one head. For the owner thread."""

    def __init__(self, store: StoreAccess, record: LayerRecord, tail: int) -> None:
        """`tail` is the cell at which the head's file ended when the index named every cell that
        counts."""
        self.head = record.id
        self.touched = RangeSet()
        """Cells that were emptied since."""
        self._cancelled = False
        self._turn = Mutex()
        self._store = store
        self._record = record
        self._tail = tail

    @classmethod
    def of(cls, store: StoreAccess, head: LayerId) -> Self | None:
        """Return a sweep of the head of a volume that was just recovered; None if it is raw.
        Blocks. Raises BockdError."""
        with store.index.reading() as txn:
            record = Catalogue(txn).layer(head)
        if not record.packed:
            return None
        with closing(Layer.of(store.layout, record, writable=False)) as layer:
            return cls(store, record, -(-layer.length_bytes() // BLOCK_SIZE))

    async def end(self) -> None:
        """End it before its time, and wait until nothing of it is under way."""
        self._cancelled = True
        async with self._turn:
            pass

    async def run(self) -> None:
        """Punch all strays. Log what prevents that."""
        async with self._turn:
            if not self._cancelled:
                await self._run()

    async def _run(self) -> None:
        try:
            layout, record = self._store.layout, self._record
            layer = await blocking(lambda: Layer.of(layout, record, writable=True))
            with closing(layer):
                for first in range(0, self._tail, WINDOW_CELLS):
                    end = min(self._tail, first + WINDOW_CELLS)
                    await self._sweep(layer, await blocking(self._strays, layer, first, end))
        except (BockdError, OSError) as error:
            # Only space is lost, and `check --repair` finds it.
            log.warning("sweeping layer %s failed: %s", self._record.id, error)

    async def _sweep(self, layer: Layer, strays: RangeSet) -> None:
        for first, end in self.touched:
            strays.remove(first, end)
        while not self._cancelled and (waiting := strays.first()) is not None:
            first, end = waiting[0], min(waiting[1], waiting[0] + PIECE_BLOCKS)
            strays.remove(first, end)
            await blocking(layer.punch, first * BLOCK_SIZE, (end - first) * BLOCK_SIZE)
            hit(Failpoint.SWEEP_PUNCHED)

    def _strays(self, layer: Layer, first: int, end: int) -> RangeSet:
        """In a thread: what of cells first..end-1 takes space and is not named."""
        named = bytearray(end - first)
        for row in self._rows():
            for cell in row.values():
                if first <= cell < end:
                    named[cell - first] = 1
        found = RangeSet()
        for low, high in layer.data_ranges(first * BLOCK_SIZE, (end - first) * BLOCK_SIZE):
            at, stop = low // BLOCK_SIZE - first, -(-high // BLOCK_SIZE) - first
            while (start := named.find(0, at, stop)) >= 0:
                at = named.find(1, start, stop)
                at = stop if at < 0 else at
                found.add(first + start, first + at)
        return found

    def _rows(self) -> Iterator[cells.LeafCells]:
        """The layer's rows of the index, some in each transaction."""
        number = 0
        while not self._cancelled:
            with self._store.index.reading() as txn:
                rows = cells.ROWS.rows_between(txn, self._record.id, number, MAX_LEAVES)
                some = list(islice(rows, BATCH_ROWS))
            if not some:
                return
            yield from (row for _, row in some)
            number = some[-1][0] + 1
