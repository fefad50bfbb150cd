"""What stands before open volumes: a log that is being closed is neither opened nor removed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bockd.drivers.memory.device import MemoryDevice
from bockd.drivers.writeback.binding import LoggedPool
from bockd.drivers.writeback.directory import WriteBackDirectory
from bockd.drivers.writeback.log import Log
from bockd.errors import ConflictError, DeviceError
from bockd.model import BLOCK_SIZE, CacheMode, VolumeId
from bockd.runtime.steps import Background, Signal, Steps, run_inline
from tests.drivers.rbd.ceph import need_modules
from tests.drivers.rbd.memoryindex import Records
from tests.drivers.writeback.opened import (
    BOUND_BYTES,
    IMAGE,
    SEGMENT_BYTES,
    SIZE_BYTES,
    Opened,
)

need_modules()

from bockd.drivers.rbd.fronts import Front, Fronts  # noqa: E402 - where there are the modules
from bockd.drivers.rbd.records import (  # noqa: E402
    DirtyAt,
    Identity,
    RbdVolumeRecord,
    Tenures,
    put_record,
)
from bockd.drivers.rbd.writebacks import DirtyMarks  # noqa: E402

ONE = b"1" * BLOCK_SIZE
VOLUME = RbdVolumeRecord(
    id=VolumeId(1),
    name="v",
    size_bytes=SIZE_BYTES,
    created_at=0.0,
    from_snapshot=None,
    failed=None,
    image=IMAGE,
)


class Fronted(Opened):
    """A volume with write-back, whose front is that of a driver."""

    def __init__(self, path: Path) -> None:
        below = MemoryDevice(SIZE_BYTES)
        super().__init__(path, below)
        self.close()
        self.fronts = Fronts(self.scheduler.spawn)
        self.fronts.write_backs = self.directory
        self.front = self.run(self.opening())

    async def _mark(self, _directory: str, log: str) -> None:
        await self._on_dirty(log)

    def opening(self) -> Steps[Front]:
        dirty = None if self.record is None else DirtyAt("here", self.record, 1.0)
        record = replace(VOLUME, cache=CacheMode.WRITE_BACK, dirty_at=dirty)
        below: Any = self.below
        marks: Any = SimpleNamespace(
            dirty=self._mark, clean=self._on_clean, unnotable=self._on_unnotable
        )
        return self.fronts.of_volume(below, record, lambda: None, marks)


@pytest.fixture
def fronted(tmp_path: Path) -> Iterator[Fronted]:
    one = Fronted(tmp_path / "logs")
    yield one
    one.dispose()


def closing_slowly(fronted: Fronted, patch: pytest.MonkeyPatch) -> tuple[Signal, list[Any]]:
    """Begin to close the front, whose log waits for its disk. Return what ends that."""
    gate, close = Signal(), Log.close

    async def slowly(self: Log) -> None:
        await gate
        await close(self)

    patch.setattr(Log, "close", slowly)
    fronted.run(fronted.front.device.write(0, memoryview(ONE)))
    return gate, fronted.begin(fronted.fronts.retire(fronted.front))


def test_a_log_is_discarded_when_it_is_closed(
    fronted: Fronted, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, closed = closing_slowly(fronted, monkeypatch)
    discarded = fronted.begin(fronted.fronts.discard_log(IMAGE, keep=False))
    assert (closed, discarded) == ([], [])
    assert fronted.directory.images() == [IMAGE]
    gate.fire()
    fronted.settle()
    assert (closed, discarded) == ([None], [None])
    assert fronted.directory.images() == []


def test_a_log_is_opened_when_it_is_closed(
    fronted: Fronted, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, closed = closing_slowly(fronted, monkeypatch)
    opened = fronted.begin(fronted.opening())
    assert (closed, opened) == ([], [])
    gate.fire()
    fronted.settle()
    assert closed == [None]
    (front,) = opened
    assert isinstance(front, Front)
    into = bytearray(BLOCK_SIZE)
    fronted.run(front.device.read(0, memoryview(into)))
    assert into == ONE


def test_nothing_is_kept_of_logs_that_are_closed(fronted: Fronted) -> None:
    assert list(fronted.fronts._logs) == [IMAGE]
    fronted.run(fronted.fronts.retire(fronted.front))
    assert not fronted.fronts._logs


def test_a_log_that_cannot_be_removed_fails_nothing_that_is_done(
    fronted: Fronted, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The record is changed by then; the log is void, and goes later."""
    fronted.run(fronted.fronts.retire(fronted.front))

    async def fails(_image: str, *, keep: bool) -> None:
        del keep
        raise DeviceError("Input/output error")

    monkeypatch.setattr(fronted.directory, "discard", fails)
    with caplog.at_level(logging.WARNING):
        fronted.run(fronted.fronts.discard_log(IMAGE, keep=False))
    assert "is not removed yet: Input/output error" in caplog.text


def test_an_index_that_was_put_back_is_noticed_however_far_it_has_come_since(
    tmp_path: Path,
) -> None:
    """What others have committed since says nothing of the logs."""
    records: Any = Records()
    volume = replace(VOLUME, cache=CacheMode.WRITE_BACK)
    put_record(records, volume)
    tenures, background = Tenures(records), Background()
    epoch = tenures.begin(volume, Identity("here", "r"), "address")
    assert epoch is not None
    pool = LoggedPool("one", "a pool", tenures.logs_begun)

    def open_directory() -> WriteBackDirectory:
        return WriteBackDirectory.open_directory(
            tmp_path / "logs", BOUND_BYTES, background.spawn, pool, segment_bytes=SEGMENT_BYTES
        )

    fronts = Fronts(background.spawn)
    fronts.write_backs = directory = open_directory()
    marks = DirtyMarks(tenures, Identity("here", "r"), lambda: 1.0, volume.id, epoch)
    below: Any = MemoryDevice(SIZE_BYTES)
    front = run_inline(fronts.of_volume(below, volume, lambda: None, marks))
    backup = dict(records._kept)
    run_inline(front.device.write(0, memoryview(ONE)))
    dirty_at = tenures.look(volume.id).dirty_at
    assert dirty_at is not None
    assert dirty_at.directory == directory.id
    run_inline(fronts.retire(front))
    directory.release()
    open_directory().release()

    records._kept = backup
    for number in range(10):
        marked = replace(volume, id=VolumeId(10 + number), epoch=1)
        put_record(records, marked)
        tenures.mark_dirty(marked.id, 1, DirtyAt("there", "log", 1.0), "another directory")
    with pytest.raises(
        ConflictError, match=r"knows of 0 write-back logs.* there were 1, so an old"
    ):
        open_directory()
    assert directory.images() == [IMAGE]
