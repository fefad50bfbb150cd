"""The rules that scenarios guard, each as what breaks it: contexts, for this process's engine."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from unittest import mock

from bockd.drivers.local.access import StoreAccess
from bockd.drivers.local.format.catalogue import LocalVolumeRecord
from bockd.drivers.local.format.journalreading import SegmentContents, read_segment
from bockd.drivers.local.volume import recovery
from bockd.drivers.local.volume.cells import HeadCells
from bockd.drivers.local.volume.leafcache import LeafCache
from bockd.drivers.local.volume.reading import Reader
from tests.crash.powercut.mutations import MUTATIONS as CUT_MUTATIONS
from tests.crash.storm.mutations import (
    broken,
    copy_up_without_locks,
    punch_what_was_written_since,
)

Broken = Callable[[], AbstractContextManager[object]]


def of_the_laboratory(name: str) -> Broken:
    return CUT_MUTATIONS[name]


def locks_exclude_nobody() -> AbstractContextManager[None]:
    return broken(copy_up_without_locks)


def writes_leave_their_punches() -> AbstractContextManager[None]:
    return broken(punch_what_was_written_since)


def all_leaves_are_clean_after_a_checkpoint() -> AbstractContextManager[object]:
    real = LeafCache.mark_clean
    return mock.patch.object(LeafCache, "mark_clean", lambda self, _: real(self, 1 << 62))


@contextmanager
def recovery_takes_any_generation() -> Generator[None]:
    """Of the volume's journals, all that are there."""

    def read(store: StoreAccess, record: LocalVolumeRecord) -> list[SegmentContents]:
        names = [n for n in store.layout.journal_segments() if n.volume == record.id]
        names.sort(key=lambda name: (name.generation, name.number), reverse=True)
        return [replace(read_segment(store.layout, name)) for name in names]

    with mock.patch.object(recovery, "_read_segments", read):
        yield


@contextmanager
def reclaim_waits_for_no_read() -> Generator[None]:
    async def drain(_: Reader) -> None:
        pass

    with mock.patch.object(Reader, "drain_reads", drain):
        yield


@contextmanager
def cells_are_not_punched() -> Generator[None]:
    """They are used again after a checkpoint, all the same."""

    def empty(self: HeadCells, first: int, end: int) -> None:
        self._punched.add(first, end)

    with mock.patch.object(HeadCells, "empty", empty):
        yield


@contextmanager
def cells_are_free_before_their_punch_is_synced() -> Generator[None]:
    """They are used again after a checkpoint, whenever they were punched."""
    real = HeadCells.end_seal

    def end_seal(self: HeadCells) -> None:
        self.begin_seal()
        real(self)

    with mock.patch.object(HeadCells, "end_seal", end_seal):
        yield
