"""The local disk fails to write what the page cache has: nothing that is read again counts before
it was written again, and nothing is replayed over what is newer."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from bockd.drivers.memory.device import FailedError
from bockd.drivers.writeback.progress import Progress, ProgressFile
from bockd.drivers.writeback.segment import Segment
from bockd.errors import NoSpaceError
from bockd.model import BLOCK_SIZE

from .disk import DeathError
from .machine import Machine, Made
from .opened import IMAGE, holding

SEEDS = range(10)
"""Of what a disk has when power fails."""


def block(value: int) -> bytes:
    return bytes([value]) * BLOCK_SIZE


def test_what_a_failed_sync_has_not_written_is_written_again(machine: Made) -> None:
    """The process ends before it has noted that a sync has failed: what is read back was never
    written, and the next sync, which succeeds, does not write it."""
    for seed in SEEDS:
        one = machine(seed)
        one.refuse_below()
        one.opened.write(0, block(1))
        one.opened.flush()
        one.opened.write(BLOCK_SIZE, block(2))
        one.disk.failing = 1.0
        one.flush_until_broken()
        one.disk.failing = 0.0
        one.opened.again()
        one.opened.flush()
        one.cut()
        one.opened.open()
        assert one.opened.read(0) == block(1)
        assert one.opened.read(BLOCK_SIZE) == block(2)
        one.opened.dispose()


@pytest.mark.parametrize("syncs", range(7))
def test_what_a_progress_in_memory_calls_needless_stays(
    machine: Made, monkeypatch: pytest.MonkeyPatch, syncs: int
) -> None:
    """The progress that is read was never written, and power fails at a sync of recovery: the
    progress before that counts, and needs the segments that it has named."""
    write = ProgressFile.write
    for seed in SEEDS:
        one = machine(seed)

        def failing(self: ProgressFile, progress: Progress, one: Machine = one) -> None:
            one.disk.failing = 1.0
            try:
                write(self, progress)
            finally:
                one.disk.failing = 0.0

        one.refuse_below()
        for at in range(20):
            one.opened.write(at * BLOCK_SIZE, block(at + 1))
        one.below.failures.clear()
        with monkeypatch.context() as patch:
            patch.setattr(ProgressFile, "write", failing)
            one.opened.flush()
        assert one.opened.device.trouble is not None
        assert "noting its progress" in one.opened.device.trouble
        one.opened.die()
        one.opened.directory = one.opened._directory()
        one.refuse_below()
        one.disk.dies_in = syncs
        try:
            one.opened.open()
        except DeathError:
            one.disk.dies_in = -1
            one.cut()
            one.opened.open()
        for at in range(20):
            assert one.opened.read(at * BLOCK_SIZE) == block(at + 1)
        one.opened.dispose()


def test_what_a_cut_has_left_is_made_zeros_until_the_disk_has_them(
    machine: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the end of a log there is a record that was never flushed. Zeros are written over it,
    and a failed sync leaves it there; then the log goes on, up to where it lies."""
    first, record = 4096, 64 + BLOCK_SIZE
    sync = Segment.sync
    for seed in SEEDS:
        one = machine(seed)
        one.refuse_below()
        one.opened.write(0, block(1))
        with pytest.raises(NoSpaceError):
            one.opened.run(one.opened.device.drain())
        one.opened.write(BLOCK_SIZE, block(2))
        one.opened.write(2 * BLOCK_SIZE, block(3))
        path = one.opened.log_path() / "00000001.seg"
        content = bytearray(path.read_bytes())
        end = first + record + 64
        content[end + 512 : end + record - 512] = bytes(record - 1024)
        one.opened.die()
        one.disk.leave(path, content)
        one.boot += 1
        one.opened.directory = one.opened._directory()

        def failing(self: Segment, one: Machine = one) -> None:
            one.disk.failing = 1.0
            try:
                sync(self)
            finally:
                one.disk.failing = 0.0

        with monkeypatch.context() as patch:
            patch.setattr(Segment, "sync", failing)
            one.opened.open()
        one.opened.again()
        assert one.opened.read(2 * BLOCK_SIZE) == bytes(BLOCK_SIZE)
        one.opened.write(BLOCK_SIZE, block(4))
        one.cut()
        one.opened.open()
        assert one.opened.read(0) == block(1)
        assert one.opened.read(2 * BLOCK_SIZE) == bytes(BLOCK_SIZE)
        one.opened.dispose()


def _fails(*_arguments: object) -> None:
    raise OSError(5, "Input/output error")


def test_a_broken_log_that_is_closed_is_not_used_again(
    machine: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = machine(0)
    one.hold_below()
    one.opened.write(0, block(1))
    with monkeypatch.context() as patch:
        patch.setattr(Segment, "sync", _fails)
        assert one.opened.begin(one.opened.device.flush()) == []
        one.opened.close()
    one.opened.open()
    assert one.opened.device.trouble is not None
    assert "syncing it" in one.opened.device.trouble
    assert one.opened.read() == block(1)
    one.opened.begin(one.opened.device.write(0, memoryview(block(2))))
    assert one.opened.read() == block(1), "it was appended to a log on that disk"
    gate, one.below.gate = one.below.gate, None
    assert gate is not None
    gate.fire()
    one.opened.settle()
    assert holding(one.below, 0, BLOCK_SIZE) == block(2)
    assert one.opened.record is None
    one.opened.dispose()


def test_a_broken_log_that_was_drained_and_cannot_be_removed_was_not_given_up(
    machine: Made, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor could its progress say that all of it is below."""
    one = machine(0)
    one.hold_below()
    one.opened.write(0, block(1))
    with monkeypatch.context() as patch:
        patch.setattr(Segment, "sync", _fails)
        patch.setattr(ProgressFile, "write", _fails)
        patch.setattr(shutil, "rmtree", _fails)
        patch.setattr(Path, "unlink", _fails)
        gate, one.below.gate = one.below.gate, None
        assert gate is not None
        gate.fire()
        one.opened.flush()
        assert one.opened.record is None
        assert one.opened.directory.images() == [IMAGE]
        one.opened.close()
    with caplog.at_level(logging.WARNING):
        one.opened.open()
    assert one.opened.directory.aside() == []
    assert one.opened.directory.images() == []
    assert "given up" not in caplog.text
    assert one.opened.read() == block(1)
    one.opened.dispose()


@pytest.mark.parametrize("what", ["sync", "append"])
@pytest.mark.parametrize("end", ["kill", "cut"])
def test_a_broken_log_that_was_drained_was_not_given_up_whatever_the_disk_has_of_it(
    machine: Made, monkeypatch: pytest.MonkeyPatch, what: str, end: str
) -> None:
    """It could not be removed before the process ended. Of what a sync has refused, the disk may
    have any part; of what an append has, too, and a client has written that below since."""
    for seed in SEEDS:
        one = machine(seed)
        one.hold_below()
        one.opened.write(0, block(1))
        one.opened.write(BLOCK_SIZE, block(2))
        with monkeypatch.context() as patch:
            _fail_once(one, what, patch)
            patch.setattr(Path, "unlink", _fails)
            gate, one.below.gate = one.below.gate, None
            assert gate is not None
            gate.fire()
            one.opened.write(0, block(3))
            one.opened.flush()
        assert one.opened.record is None
        assert one.opened.directory.images() == [IMAGE]
        if end == "cut":
            one.cut()
            one.opened.open()
        else:
            one.opened.again()
        assert one.opened.directory.aside() == [], f"seed {seed}"
        assert one.opened.directory.images() == []
        assert one.opened.read(0) == block(3)
        one.opened.dispose()


def _fail_once(one: Machine, what: str, patch: pytest.MonkeyPatch) -> None:
    """Have the next sync, or append, of a segment fail as `disk.py` has it."""
    name = "sync" if what == "sync" else "_write"
    real = getattr(Segment, name)

    def failing(self: Segment, *arguments: object) -> None:
        one.disk.failing = 10.0
        try:
            real(self, *arguments)
        finally:
            one.disk.failing = 0.0

    patch.setattr(Segment, name, failing)


@pytest.mark.parametrize("end", ["close", "kill"])
def test_a_broken_log_that_was_drained_is_not_replayed(
    machine: Made, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """Though the driver could not commit that nothing is dirty."""
    one = machine(0)
    one.opened.write(0, block(1))
    one.opened.refusing = True
    with monkeypatch.context() as patch:
        patch.setattr(Segment, "sync", _fails)
        with pytest.raises(FailedError):
            one.opened.flush()
    assert holding(one.below, 0, BLOCK_SIZE) == block(1)
    if end == "close":
        one.opened.close()
    else:
        one.opened.die()
        one.opened.directory = one.opened._directory()
    one.below.calls.clear()
    one.opened.refusing = False
    one.opened.open()
    one.opened.run(one.opened.device.drain())
    assert "write" not in one.below.calls
    assert one.opened.record is None
    one.opened.dispose()


def test_a_flush_is_not_answered_while_a_broken_log_counts(
    machine: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All is below, and the driver's record still names the log, of which a power cut may leave
    less than that: it would be replayed over what was flushed. The disk keeps no progress either.
    """
    one = machine(0)
    one.opened.write(0, block(1))
    one.opened.flush()
    one.opened.write(0, block(2))
    one.opened.refusing = True
    one.disk.failing = 1.0
    for _ in range(2):
        with pytest.raises(FailedError):
            one.opened.flush()
    assert holding(one.below, 0, BLOCK_SIZE) == block(2)
    one.opened.refusing = False
    one.opened.flush()
    assert one.opened.record is None
    one.opened.dispose()


def test_a_log_that_cannot_be_written_again_is_read_and_drained(machine: Made) -> None:
    """Recovery finds a disk that takes nothing any more."""
    one = machine(0)
    one.refuse_below()
    for at in range(20):
        one.opened.write(at * BLOCK_SIZE, block(at + 1))
    one.opened.die()
    one.opened.directory = one.opened._directory()
    one.disk.failing = 10.0  # and no write either
    one.opened.open()
    for at in range(20):
        assert one.opened.read(at * BLOCK_SIZE) == block(at + 1)
    one.below.failures.clear()
    one.opened.look()
    assert holding(one.below, 0, BLOCK_SIZE) == block(1)
    assert holding(one.below, 19 * BLOCK_SIZE, BLOCK_SIZE) == block(20)
    assert one.opened.record is None
    assert one.opened.directory.space.used_bytes == 0
    one.opened.dispose()
