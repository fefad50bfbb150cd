"""The heads that an open volume has written to: how each is taken up, and becomes a frozen layer.

A snapshot gives a volume a new head. The former one is read as before, until nothing of it waits to
be punched any more; then it is replaced in the map by a frozen layer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from bockd.drivers.local.access import StoreAccess
from bockd.drivers.local.format.layer import Layer
from bockd.drivers.local.volume import room
from bockd.drivers.local.volume.cellpunching import CellPuncher
from bockd.drivers.local.volume.cells import HeadCells
from bockd.drivers.local.volume.punching import Puncher
from bockd.drivers.local.volume.slots import LayerSlots
from bockd.drivers.local.volume.sweeping import Sweep
from bockd.errors import BockdError
from bockd.model import BLOCK_SIZE
from bockd.runtime.steps import Spawn, Steps, blocking, try_spawn
from bockd.runtime.waiting import RangeLocks

if TYPE_CHECKING:
    from bockd.drivers.local.volume.durability import Durability
    from bockd.drivers.local.volume.packedwrites import PackedWriter

log = logging.getLogger(__name__)

AnyPuncher = Puncher | CellPuncher

NO_SLOT = -1
"""Where no leaf has a block: that of the head before the first change."""


class Heads:
    """The head of an open volume, and former ones of which something waits to be punched."""

    def __init__(
        self,
        store: StoreAccess,
        layers: LayerSlots,
        durability: Durability,
        locks: RangeLocks,
        drain_reads: Callable[[], Steps[None]],
        spawn: Spawn,
    ) -> None:
        self._store = store
        self._layers = layers
        self._durability = durability
        self._locks = locks
        self._drain_reads = drain_reads
        self._spawn = spawn
        self.slot = NO_SLOT
        self.packed: PackedWriter | None = None
        """Writes to the head if that is packed."""
        self._punchers: list[AnyPuncher] = []
        self._unclosed: list[Layer] = []
        """Nobody reads them any more, but those who have begun."""
        self._sweep: Sweep | None = None

    def adopt(self, head: Layer, slot: int) -> Puncher:
        """Make `head`, which is in `slot` and raw, the head, and return what punches it. Former
        ones are retired."""
        self.slot = slot
        self.puncher = Puncher(head, self._locks)
        self._adopt(self.puncher, None)
        return self.puncher

    def adopt_packed(self, head: Layer, slot: int) -> HeadCells:
        """Make `head`, which is in `slot` and packed, the head, and return its cells. Former ones
        are retired."""
        self.slot = slot
        cells = HeadCells(self._tail_of(head))
        if self._sweep is not None and self._sweep.head == head.id:
            cells.touched = self._sweep.touched
        self._adopt(CellPuncher(head, cells, self._durability.flusher), cells)
        return cells

    def _tail_of(self, head: Layer) -> int:
        """The first cell of a packed head that may be given out: data that a death has left, and
        all that the index names, lie before the end of the file."""
        return -(-head.length_bytes() // BLOCK_SIZE)

    def _adopt(self, newest: AnyPuncher, cells: HeadCells | None) -> None:
        self._newest = newest
        self._durability.room.per_operation = (
            room.RECORDS_PER_OPERATION if cells is None else room.PACKED_RECORDS_PER_OPERATION
        )
        self._durability.cells = cells
        former, self._punchers = self._punchers, [*self._punchers, newest]
        for puncher in former:
            self._retire(puncher)

    def close_later(self, layer: Layer) -> None:
        """Close a layer when the reads under way, which may use it, have ended."""
        if not try_spawn(self._spawn, self._close_unread(layer)):
            self._unclosed.append(layer)

    async def _close_unread(self, layer: Layer) -> None:
        await self._drain_reads()
        layer.close()

    def _retire(self, puncher: AnyPuncher) -> None:
        """Read a former head as any other frozen layer, once nothing of it is to be punched. It is
        tried again at the next snapshot."""
        if puncher is self._newest or not puncher.idle:
            return
        if puncher in self._punchers and try_spawn(self._spawn, self._freeze(puncher.head)):
            self._punchers.remove(puncher)

    async def _freeze(self, head: Layer) -> None:
        """Replace a former head in the map by a frozen layer, which may be closed when descriptors
        run short."""
        if not head.is_open:  # closed, with the volume or because no map leads to it any more
            return
        frozen = self._store.frozen_head(head)
        try:
            await blocking(frozen.prepare)
        except BockdError as error:
            if head.is_open:
                volume = self._durability.record.id
                log.warning("a former head of volume %s stays open: %s", volume, error)
            return
        replaced = None if self._durability.closed else self._layers.take_over(frozen)
        if replaced is None:
            frozen.close()
        else:
            await self._close_unread(replaced)

    def start_sweep(self, sweep: Sweep) -> None:
        """Have the head swept in the background. Nothing was changed yet."""
        self._sweep = sweep
        if not try_spawn(self._spawn, self._run_sweep(sweep)):
            self._sweep = None

    async def _run_sweep(self, sweep: Sweep) -> None:
        await sweep.run()
        self._sweep = None
        if (cells := self._durability.cells) is not None and cells.touched is sweep.touched:
            cells.touched = None

    async def end_sweep(self) -> None:
        """End a sweep that is under way: the volume is about to be closed."""
        if self._sweep is not None:
            await self._sweep.end()

    def start_punching(self) -> None:
        """Have what waits of the head be punched, in the background: now, with what is trimmed
        next, or when the volume is closed."""
        puncher = self._newest
        if puncher.scheduled:
            return
        puncher.scheduled = True
        if not try_spawn(self._spawn, self._punch(puncher)):
            puncher.scheduled = False

    async def _punch(self, puncher: AnyPuncher) -> None:
        if self._durability.failure.reason is not None:
            # The journal may not know of the trim: what it covered counts as data that was written.
            puncher.forget()
        try:
            try:
                await puncher.run()
            finally:
                puncher.scheduled = False
            self._retire(puncher)
            await self._durability.restore_reserve()
        except OSError as error:
            # Only space is lost, and `check --repair` finds it. What waits is forgotten: layers
            # may be merged where it lies.
            puncher.forget()
            log.warning("punching in volume %s failed: %s", self._durability.record.id, error)

    async def finish_punching(self) -> None:
        """Wait until nothing that was trimmed waits to be punched. Nothing that could not be closed
        in the background stays open."""
        for puncher in list(self._punchers):
            await self._punch(puncher)
        while self._unclosed:
            await self._close_unread(self._unclosed.pop())

    def cancel_punching(self) -> None:
        """Forget what waits to be punched: the volume is about to be deleted."""
        for puncher in self._punchers:
            puncher.forget()
