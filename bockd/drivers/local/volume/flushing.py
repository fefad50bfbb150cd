"""Making what was acknowledged survive power loss: head synced, then a barrier appended, then the
journal synced (promise D2).

Invariants:
* A barrier covers only records appended before the data sync began; a flush joins only one that
  has not begun.
* A failed sync is final: the volume has failed, and nothing is acknowledged any more. A sync that
  nobody heard the end of counts as failed, for the next one would not report its error.
* Whoever syncs or turns to another segment holds the turn.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bockd.drivers.local.format.journal import JournalSegment, Kind
from bockd.drivers.local.format.layer import Layer
from bockd.drivers.local.volume.appending import JournalTail
from bockd.drivers.local.volume.failing import Failure
from bockd.errors import BockdError, VolumeFailedError
from bockd.failpoints import Failpoint, hit
from bockd.runtime.steps import Blocking, Signal
from bockd.runtime.waiting import Mutex


@dataclass(eq=False)
class _Round:
    """A flush that others may join as long as it has not begun."""

    done: Signal = field(default_factory=Signal)
    error: BockdError | None = None


class Flusher:
    """Syncs an open volume's head and the journal that `tail` appends to."""

    def __init__(self, tail: JournalTail, failure: Failure, head: Layer) -> None:
        self.head = head
        """The layer that is written to."""
        self.unsynced = False
        """The head has writes that no sync has covered."""
        self.turn = Mutex()
        self._tail = tail
        self._failure = failure
        self._joinable: _Round | None = None

    async def flush(self) -> None:
        """Make what was acknowledged before the call survive power loss. Raises
        VolumeFailedError."""
        if not self._tail.begun:
            # Nothing was written, and what was before the volume was opened has been synced. But
            # the commit that was to begin may have left the volume failed.
            self._failure.check_usable()
            return
        if (joinable := self._joinable) is not None:
            await joinable.done
            if joinable.error is not None:
                raise joinable.error
            return
        mine = _Round()
        if self.turn.held:
            self._joinable = mine
        try:
            async with self.turn:
                if self._joinable is mine:
                    self._joinable = None
                await self.sync_all(Kind.BARRIER, self._tail.segment)
        except BockdError as error:
            mine.error = error
            raise
        except BaseException:
            mine.error = VolumeFailedError("the flush that this one joined was abandoned")
            raise
        finally:
            if self._joinable is mine:
                self._joinable = None
            mine.done.fire()

    async def sync_all(self, kind: Kind, segment: JournalSegment) -> None:
        """Sync the head; if the map changed since the last durable barrier (or to seal), append a
        barrier to `segment` and sync that. The caller holds the turn. Raises VolumeFailedError."""
        self._tail.commit()
        self._failure.check_usable()
        covered = self._tail.last_change
        hit(Failpoint.FLUSH_BEGUN)
        if self.unsynced:
            await self.sync_head()
        hit(Failpoint.FLUSH_DATA)
        if covered > self._tail.durable or kind is Kind.SEAL:
            self._failure.check_usable()
            try:
                segment.append([(kind, covered, 0)])
            except OSError as error:
                self._failure.declare(f"appending to the journal failed: {error}")
                self._failure.check_usable()
            self._tail.allowance = 0  # it took a place that was not counted: ask for room again
            hit(Failpoint.FLUSH_BARRIER)
            await self._final(segment.syncing(), "syncing the journal")
            self._tail.durable = max(self._tail.durable, covered)
        hit(Failpoint.FLUSH_DONE)

    async def sync_head(self) -> None:
        """Sync the head. The caller holds the turn. Raises VolumeFailedError."""
        try:
            # Cleared first: a write that lands during the sync needs another one.
            self.unsynced = False
            await self._final(self.head.syncing(), "syncing the head layer")
        except BaseException:
            self.unsynced = True
            raise

    async def _final(self, sync: Blocking[None], doing: str) -> None:
        """Run a sync whose failure is final for the volume, whatever it failed with: what it was to
        cover counts as covered already."""
        try:
            await sync
        except Exception as error:  # noqa: BLE001 - the volume has failed
            self._failure.declare(f"{doing} failed: {error}")
        except BaseException:
            # Who ran it has given it up: it may have failed since, with nobody to hear of it.
            self._failure.declare(f"{doing} was abandoned")
            raise
        self._failure.check_usable()
