"""Heads at rest: which large packed heads have come to rest, so that settling may freeze them.

A head may be settled if it is large, and if from one look to the next it neither grew nor was
written much. If most of one that was frozen so is written again the next one must rest for longer.
All of it is in memory: a process that has just begun looks anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bockd.drivers.local.format import cells
from bockd.drivers.local.registry import Registry
from bockd.model import BLOCK_SIZE, GIB, LayerId, VolumeId

HEAD_BYTES = 1 * GIB
"""A head that holds more than that may be frozen to be settled."""

GROWTH_SHARE = 16
"""A head has come to rest if it did not grow by a larger part from one look to the next. Writes to
blocks that it has go to another layer afterwards: each of them is one more first write. So it has
not come to rest either if clients have written more than that to the volume."""

MAX_REST_LOOKS = 32
"""For so many looks, at most, a head must rest before it is frozen: about five hours."""


@dataclass(slots=True)
class _Head:
    """What is known of a large packed head."""

    cells: int
    """How many it had when it was last found to grow."""
    written_bytes: int
    """To the volume, at the last look."""
    rested: int = 0
    """Looks since which it has neither grown nor been written much."""
    judged: bool = False

    def note_written(self, written_bytes: int) -> None:
        """Note how much was written to the volume by now. Counting may have begun anew."""
        before = self.written_bytes if written_bytes >= self.written_bytes else 0
        self.written_bytes = written_bytes
        much = written_bytes - before > self.cells * BLOCK_SIZE // GROWTH_SHARE
        self.rested = 0 if much else self.rested + 1


@dataclass(frozen=True, slots=True)
class _Former:
    """The head of a volume that was frozen last."""

    cells: int
    rest_looks: int
    """For so many looks the next one must rest, if clients have written most of this one again."""


class RestingHeads:
    """Judges, look by look, which heads of one pool are at rest."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._heads: dict[LayerId, _Head] = {}
        self._former: dict[VolumeId, _Former] = {}
        self.written_bytes: Callable[[VolumeId], int] = lambda _volume: 0
        """Counts what clients have written to an open volume; given by the daemon."""

    def volumes(self) -> dict[LayerId, VolumeId]:
        """Return the open volumes that write to a packed head, by that head."""
        return {
            opened.volume.durability.record.head: volume
            for volume, opened in self._registry.volumes.items()
            if opened.volume.durability.cells is not None
            # Another one would be raw, or could not be written to.
            and not self._registry.store.index.may_miss(cells.CELLS)
        }

    def look(
        self, heads: dict[LayerId, int], volumes: dict[LayerId, VolumeId]
    ) -> list[tuple[LayerId, VolumeId]]:
        """Look at these heads, which have so many cells. Return those that have come to rest, and
        were not judged since, with their volumes."""
        resting: list[tuple[LayerId, VolumeId]] = []
        known, self._heads = self._heads, {}
        open_volumes = self._registry.volumes
        self._former = {v: former for v, former in self._former.items() if v in open_volumes}
        for head, count in heads.items():
            if not is_large(count):
                continue
            seen, volume = known.get(head), volumes[head]
            written = self.written_bytes(volume)
            if seen is None or count - seen.cells > seen.cells // GROWTH_SHARE:
                seen = _Head(count, written)
            else:
                seen.note_written(written)
                rests = seen.rested >= self._rest_looks(volume, count)
                if rests and not seen.judged:
                    resting.append((head, volume))
            self._heads[head] = seen
        return resting

    def _rest_looks(self, volume: VolumeId, count: int) -> int:
        """For how many looks a head of `count` cells must rest: for one, and for twice as long each
        time that most of what was frozen before it was written again."""
        former = self._former.get(volume)
        return 1 if former is None or 2 * count < former.cells else former.rest_looks

    def note_frozen(self, volume: VolumeId, head: LayerId) -> None:
        """Note that it was frozen: the volume's next one may have to rest for longer."""
        if head in self._heads:
            count = self._heads[head].cells
            looks = min(2 * self._rest_looks(volume, count), MAX_REST_LOOKS)
            self._former[volume] = _Former(count, looks)

    def note_judged(self, head: LayerId) -> None:
        """Note that it is not due, so that it is not counted again before it has grown."""
        if head in self._heads:
            self._heads[head].judged = True


def is_large(count: int) -> bool:
    """Return whether a head with so many blocks may be frozen to be settled."""
    return count * BLOCK_SIZE > HEAD_BYTES
