"""Redirects of whole blocks, and trims, that the fast lane makes: what it asks the volume for, and
what it tells it.

The lane writes the data into the head and sets the slot, as `Volume.try_write` does for one block;
in a packed head also the cell, as PackedWriter does. All else is here, once for each round of
requests: the leaf is dirty, the blocks need not be punched any more, and the journal is told before
anything of the round is acknowledged.

Invariants:
* The lane serves on the owner thread, and nothing else runs until it has staged and committed. So
  no flush, checkpoint or eviction sees a leaf that leads to the head and is not dirty.
* A redirect takes at most one place in the journal, of those that `allowance` has counted.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from bockd.drivers.local.format.leaf import LEAF_SHIFT
from bockd.drivers.local.volume.appending import JournalTail
from bockd.drivers.local.volume.failing import Failure
from bockd.drivers.local.volume.leafcache import LeafCache, SlotLeaf
from bockd.drivers.local.volume.packedwrites import PackedWriter
from bockd.drivers.local.volume.punching import Puncher
from bockd.drivers.local.volume.room import JournalRoom
from bockd.errors import BockdError, VolumeFailedError
from bockd.model import BLOCK_SIZE


class LaneVolume(NamedTuple):
    """What the redirects of any head need of the open volume."""

    cache: LeafCache
    tail: JournalTail
    room: JournalRoom
    failure: Failure
    piece_bytes: int
    try_trim: Callable[[int, int], bool]
    commit: Callable[[], None]


class LaneRedirects:
    """Implements what raw and packed heads share of bockd.pool.device.Redirects, for one head."""

    def __init__(self, volume: LaneVolume) -> None:
        self.shared = volume.cache.shared
        self.piece_bytes = volume.piece_bytes
        self._cache = volume.cache
        self._tail = volume.tail
        self._room = volume.room
        self._failure = volume.failure
        self._try_trim = volume.try_trim
        self._commit = volume.commit

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

    def trim(self, ranges: bytes) -> int:
        """See Redirects.trim."""
        numbers = array("Q", ranges).tolist()
        done, count = 0, len(numbers) // 2
        while done < count:
            offset, next_one = numbers[2 * done], done + 1
            end = offset + numbers[2 * done + 1]
            # Of those that follow each other, and end where blocks do, one change is made.
            while next_one < count and numbers[2 * next_one] == end and not end % BLOCK_SIZE:
                end += numbers[2 * next_one + 1]
                next_one += 1
            try:
                if not self._try_trim(offset, end - offset):
                    break
            except BockdError:  # whoever makes it instead of the lane meets it
                break
            except BaseException:  # the map may say what the journal never will
                self._failure.declare("a trim could not be noted")
                raise
            done = next_one
        return done

    def commit(self) -> bool:
        """See Redirects.commit."""
        try:
            self._commit()
        except VolumeFailedError:
            return False
        return True

    def _note(self, ranges: bytes, stage: Callable[[list[int], list[int]], None]) -> None:
        """Stage ranges, given as first blocks and how many each has, and mark their leaves."""
        try:
            numbers = array("I", ranges)
            firsts, counts = numbers[::2].tolist(), numbers[1::2].tolist()
            stage(firsts, counts)
            if counts.count(1) < len(counts):
                for first, count in zip(firsts, counts, strict=True):
                    if count > 1:
                        self._cache.share(first >> LEAF_SHIFT)
            changed = [first >> LEAF_SHIFT for first in firsts]
            self._cache.dirty.update(dict.fromkeys(changed, self._tail.sequence))
        except BaseException:  # the map leads where the journal never will
            self._failure.declare("what the fast lane wrote could not be noted")
            raise


class RawLaneRedirects(LaneRedirects):
    """Implements bockd.pool.device.RawRedirects."""

    def __init__(self, volume: LaneVolume, puncher: Puncher) -> None:
        super().__init__(volume)
        self._puncher = puncher

    def stage(self, ranges: bytes) -> None:
        """See RawRedirects.stage."""
        self._note(ranges, self._stage)

    def _stage(self, firsts: list[int], counts: list[int]) -> None:
        if counts.count(1) == len(counts):
            self._tail.stage_blocks(firsts)
        else:
            for first, count in zip(firsts, counts, strict=True):
                self._tail.stage_range(first, count)
        if pending := self._puncher.pending:
            for first, count in zip(firsts, counts, strict=True):
                pending.remove(first, first + count)


class PackedLaneRedirects(LaneRedirects):
    """Implements bockd.pool.device.PackedRedirects."""

    def __init__(self, volume: LaneVolume, writer: PackedWriter) -> None:
        super().__init__(volume)
        self._writer = writer

    def own_leaf(self, number: int) -> SlotLeaf | None:
        """See Redirects.own_leaf."""
        return self._cache.own(number, packed=True)

    def take(self, count: int) -> int:
        """See PackedRedirects.take."""
        writer = self._writer
        if writer.lost_some or not writer.has_cells(count):
            return -1
        return writer.cells.take(count)

    def give_back(self, cell: int, count: int) -> None:
        """See PackedRedirects.give_back."""
        self._writer.give_back(cell, cell + count)

    def stage_cells(self, ranges: bytes, cell: int) -> None:
        """See PackedRedirects.stage_cells."""
        self._note(ranges, partial(self._stage, cell))

    def _stage(self, cell: int, firsts: list[int], counts: list[int]) -> None:
        if counts.count(1) == len(counts):
            self._tail.stage_cells(firsts, cell)
            return
        for first, count in zip(firsts, counts, strict=True):
            if count == 1:
                self._tail.stage_cells((first,), cell)
            else:
                self._tail.stage_run(first, count, cell)
            cell += count
