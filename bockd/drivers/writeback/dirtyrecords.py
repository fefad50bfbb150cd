"""What of a log is not below: found by its place on the device, and in epochs by its order.

A record that later ones of its epoch have overwritten as a whole takes no memory, so what is kept
of a log that is read back is what was kept while it was written.
"""

from __future__ import annotations

from collections import deque

from bockd.drivers.writeback.dirtymap import SLICE, DirtyMap
from bockd.drivers.writeback.epochs import Epoch
from bockd.drivers.writeback.records import Kind, Record

_PIECE_BYTES = 280
"""A range in the map of its epoch, with its record."""

_MAPPED_BYTES = 120
"""A range in the map of all that is dirty."""

_EPOCH_BYTES = 560
"""An epoch, without the ranges in its map. (All three as measured with CPython 3.11.)"""


class DirtyRecords:
    """For one thread at a time: that of recovery, then the owner thread."""

    __slots__ = ("bytes", "current", "epochs", "map", "pieces")

    def __init__(self) -> None:
        self.map = DirtyMap()
        """Of all epochs."""
        self.epochs: deque[Epoch] = deque()
        """Those that have a barrier and are not below."""
        self.current = Epoch()
        self.bytes = 0
        """What the records take in the log that are not below. For any thread."""
        self.pieces = 0
        """Ranges in the maps of all epochs."""

    @property
    def memory_bytes(self) -> int:
        """Return about how much memory all this takes."""
        return (
            _PIECE_BYTES * self.pieces
            + _MAPPED_BYTES * self.map.count
            + _EPOCH_BYTES * len(self.epochs)
        )

    def enter(self, record: Record, size_bytes: int, time: float) -> None:
        """Add the record that comes after all others."""
        if record.kind is Kind.BARRIER:
            self.close_epoch(record.sequence)
        else:
            self.map.put(record)
            self.pieces += self.current.add(record, size_bytes, time)
            self.bytes += size_bytes

    def close_epoch(self, barrier: int) -> None:
        """End the epoch that goes on."""
        self.current.barrier = barrier
        self.epochs.append(self.current)
        self.current = Epoch()

    def settle(self, epoch: Epoch) -> bool:
        """Drop some of an epoch, the oldest, that is below. Return whether that was all of it: else
        it is to be dropped on, and anything but that epoch may change before."""
        assert self.epochs[0] is epoch
        self.pieces -= self.map.forget(epoch.map, epoch.barrier, SLICE)
        if epoch.map.count:
            return False
        self.epochs.popleft()
        self.bytes -= epoch.bytes
        return True
