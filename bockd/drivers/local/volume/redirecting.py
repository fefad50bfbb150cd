"""Redirects of whole blocks that the fast lane makes: what it asks for them, and what it tells.

The lane writes the data into the head and sets the slot, as `Volume.try_write` does for one block.
All else is here, once for each round of requests: the leaf is dirty, the blocks need not be punched
any more, and the journal is told before anything of the round is acknowledged.

Invariants:
* The lane serves on the owner thread, and nothing else runs until it has staged and committed. So
  no flush, checkpoint or eviction sees a leaf that leads to the head and is not dirty.
* A redirect takes at most one place in the journal, of those that `allowance` has counted.
"""

from __future__ import annotations

from array import array

from bockd.drivers.local.format.leaf import LEAF_SHIFT
from bockd.drivers.local.volume.appending import JournalTail
from bockd.drivers.local.volume.failing import Failure
from bockd.drivers.local.volume.leafcache import LeafCache, SlotLeaf
from bockd.drivers.local.volume.punching import Puncher
from bockd.drivers.local.volume.room import JournalRoom
from bockd.errors import BockdError, VolumeFailedError


class LaneRedirects:
    """Implements bockd.pool.device.Redirects for an open volume and one head of it."""

    def __init__(
        self,
        cache: LeafCache,
        tail: JournalTail,
        room: JournalRoom,
        failure: Failure,
        puncher: Puncher,
        piece_bytes: int,
    ) -> None:
        self.shared = cache.shared
        self.piece_bytes = piece_bytes
        self._cache = cache
        self._tail = tail
        self._room = room
        self._failure = failure
        self._puncher = puncher

    def allowance(self) -> int:
        """See Redirects.allowance."""
        try:
            may_redirect = self._tail.allowance or self._room.may_redirect()
        except BockdError:  # whoever serves the request instead of the lane meets it
            return 0
        return self._tail.allowance if may_redirect else 0

    def own_leaf(self, number: int) -> SlotLeaf | None:
        """See Redirects.own_leaf."""
        return self._cache.own(number)

    def stage(self, ranges: bytes) -> None:
        """See Redirects.stage."""
        try:
            self._stage(ranges)
        except BaseException:  # the map leads where the journal never will
            self._failure.declare("what the fast lane wrote could not be noted")
            raise

    def _stage(self, ranges: bytes) -> None:
        numbers = array("I", ranges)
        firsts, counts = numbers[::2].tolist(), numbers[1::2].tolist()
        tail, sequence = self._tail, self._tail.sequence
        if counts.count(1) == len(counts):
            tail.stage_blocks(firsts)
        else:
            for first, count in zip(firsts, counts, strict=True):
                tail.stage_range(first, count)
                if count > 1:
                    self._cache.share(first >> LEAF_SHIFT)
        changed = [first >> LEAF_SHIFT for first in firsts]
        self._cache.dirty.update(dict.fromkeys(changed, sequence))
        if pending := self._puncher.pending:
            for first, count in zip(firsts, counts, strict=True):
                pending.remove(first, first + count)

    def commit(self) -> bool:
        """See Redirects.commit."""
        try:
            self._tail.commit()
        except VolumeFailedError:
            return False
        return True
