"""What stands before open volumes: a log that is being closed is neither opened nor removed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bockd.drivers.memory.device import MemoryDevice
from bockd.drivers.writeback.log import Log
from bockd.errors import DeviceError
from bockd.model import BLOCK_SIZE, CacheMode, VolumeId
from bockd.runtime.steps import Signal, Steps
from tests.drivers.rbd.ceph import need_modules
from tests.drivers.writeback.opened import IMAGE, SIZE_BYTES, Opened

need_modules()

from bockd.drivers.rbd.fronts import Front, Fronts  # noqa: E402 - where there are the modules
from bockd.drivers.rbd.records import DirtyAt, RbdVolumeRecord  # noqa: E402

ONE = b"1" * BLOCK_SIZE


class Fronted(Opened):
    """A volume with write-back, whose front is that of a driver."""

    def __init__(self, path: Path) -> None:
        below = MemoryDevice(SIZE_BYTES)
        super().__init__(path, below)
        self.close()
        self.fronts = Fronts(self.scheduler.spawn)
        self.fronts.write_backs = self.directory
        self.front = self.run(self.opening())

    def opening(self) -> Steps[Front]:
        dirty = None if self.record is None else DirtyAt("here", self.record, 1.0)
        record = RbdVolumeRecord(
            id=VolumeId(1),
            name="v",
            size_bytes=SIZE_BYTES,
            created_at=0.0,
            from_snapshot=None,
            failed=None,
            image=IMAGE,
            cache=CacheMode.WRITE_BACK,
            dirty_at=dirty,
        )
        below: Any = self.below
        marks: Any = SimpleNamespace(dirty=self._on_dirty, clean=self._on_clean)
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
    discarded = fronted.begin(fronted.fronts.discard_log(IMAGE))
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

    async def fails(_image: str) -> None:
        raise DeviceError("Input/output error")

    monkeypatch.setattr(fronted.directory, "discard", fails)
    with caplog.at_level(logging.WARNING):
        fronted.run(fronted.fronts.discard_log(IMAGE))
    assert "is not removed yet: Input/output error" in caplog.text
