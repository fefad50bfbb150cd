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
from bockd.drivers.local.format.ranges import RangeSet
from bockd.drivers.local.volume.punching import Puncher
from bockd.drivers.local.volume.slots import LayerSlots
from bockd.errors import BockdError
from bockd.runtime.steps import Spawn, Steps, blocking, try_spawn
from bockd.runtime.waiting import RangeLocks

if TYPE_CHECKING:
    from bockd.drivers.local.volume.durability import Durability

log = logging.getLogger(__name__)

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
        self._punchers: list[Puncher] = []
        self._unclosed: list[Layer] = []
        """Nobody reads them any more, but those who have begun."""

    def adopt(self, head: Layer, slot: int) -> Puncher:
        """Make `head`, which is in `slot`, the head, and return what punches it. Former ones are
        retired."""
        self.slot = slot
        self.puncher = Puncher(head, self._locks)
        former, self._punchers = self._punchers, [*self._punchers, self.puncher]
        for puncher in former:
            self._retire(puncher)
        return self.puncher

    def close_later(self, layer: Layer) -> None:
        """Close a layer when the reads under way, which may use it, have ended."""
        if not try_spawn(self._spawn, self._close_unread(layer)):
            self._unclosed.append(layer)

    async def _close_unread(self, layer: Layer) -> None:
        await self._drain_reads()
        layer.close()

    def _retire(self, puncher: Puncher) -> None:
        """Read a former head as any other frozen layer, once nothing of it is to be punched. It is
        tried again at the next snapshot."""
        if puncher is self.puncher or puncher.pending or puncher.running:
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

    def start_punching(self) -> None:
        """Have what waits of the head be punched, in the background: now, with what is trimmed
        next, or when the volume is closed."""
        puncher = self.puncher
        if puncher.scheduled:
            return
        puncher.scheduled = True
        if not try_spawn(self._spawn, self._punch(puncher)):
            puncher.scheduled = False

    async def _punch(self, puncher: Puncher) -> None:
        if self._durability.failure.reason is not None:
            # The journal may not know of the trim: what it covered counts as data that was written.
            puncher.pending = RangeSet()
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
            puncher.pending = RangeSet()
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
            puncher.pending = RangeSet()
