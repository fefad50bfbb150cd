"""When the journal is full and the index cannot take it: an error, and not a wait without end."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bockd.drivers.local.format.journal import SEGMENT_RECORDS, Kind
from bockd.drivers.local.pool import LocalPool
from bockd.drivers.local.volume import room
from bockd.drivers.local.volume.volume import Volume
from bockd.errors import NoSpaceError
from bockd.model import BLOCK_SIZE, MIB
from bockd.runtime.steps import run_inline
from tests.drivers.local.process import die
from tests.drivers.local.schedule import Scheduler


def opened(root: Path) -> tuple[Scheduler, LocalPool, Volume]:
    """A pool with one volume, which is open."""
    scheduler = Scheduler(random.Random(1))
    pool = LocalPool.open(root, scheduler.spawn)
    volume = run_inline(pool.create_volume("v", 2 * MIB)).id
    device = run_inline(pool.registry.use_volume(volume)).volume
    return scheduler, pool, device


def test_a_write_that_finds_no_room_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler, pool, device = opened(tmp_path)
    data = memoryview(b"a" * BLOCK_SIZE)
    run_inline(device.write(0, data))

    def full(change: Callable[[Any], Any]) -> object:
        raise NoSpaceError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(pool.index, "update", full)
        # A first checkpoint turns to a new segment before it fails; a second one cannot.
        for _ in range(2):
            assert scheduler.errors == []
            while device.durability.room.has_room():
                device.durability.tail.stage(Kind.REDIRECT, 0, 1)
                device.durability.tail.commit()
            scheduler.start(device.write(BLOCK_SIZE, data), lambda: None)
            scheduler.run()
        assert [type(error) for error in scheduler.errors] == [NoSpaceError]
    scheduler.errors.clear()
    ended: list[str] = []
    scheduler.start(device.write(BLOCK_SIZE, data), lambda: ended.append("written"))
    scheduler.run()
    assert ended == ["written"]
    die(pool)


@pytest.mark.parametrize("spare", range(-1, 9))
def test_an_operation_that_is_admitted_is_not_counted_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spare: int
) -> None:
    """Inside the gate it had needed four places more than before it: with fewer left than that, it
    went in and out for ever."""
    scheduler, pool, device = opened(tmp_path)
    data = memoryview(b"a" * BLOCK_SIZE)
    run_inline(device.write(0, data))
    tail = device.durability.tail
    needed = room.RESERVED_RECORDS + room.RECORDS_PER_OPERATION + room.ALLOWANCE_BLOCKS
    looks = 0

    def free() -> int:
        nonlocal looks
        looks += 1
        assert looks < 100, "it goes in and out"
        # A checkpoint would make room.
        return needed + spare if tail.segment is segment else SEGMENT_RECORDS

    segment = tail.segment
    monkeypatch.setattr(tail, "free", free)
    ended: list[str] = []
    scheduler.start(device.write(BLOCK_SIZE, data), lambda: ended.append("written"))
    scheduler.run()
    assert (ended, scheduler.errors) == (["written"], [])
    die(pool)


def test_a_barrier_takes_back_what_was_allowed_without_a_question(tmp_path: Path) -> None:
    """It takes a place, too: one for each redirect, and the journal would be overrun."""
    _, pool, device = opened(tmp_path)
    run_inline(device.write(0, memoryview(b"a" * BLOCK_SIZE)))
    assert device.try_write(BLOCK_SIZE, memoryview(b"b" * BLOCK_SIZE))
    device.commit()
    assert device.durability.tail.allowance > 0
    run_inline(device.flush())
    assert device.durability.tail.allowance == 0
    die(pool)


def test_who_waits_for_those_inside_is_woken_when_they_have_left(tmp_path: Path) -> None:
    """No checkpoint was due, and only the end of one wakes those who wait."""
    scheduler, pool, device = opened(tmp_path)
    data = memoryview(b"a" * BLOCK_SIZE)
    run_inline(device.write(0, data))
    many = SEGMENT_RECORDS // room.RECORDS_PER_OPERATION
    for _ in range(many):
        run_inline(device.gate.enter())
    ended: list[str] = []
    scheduler.start(device.write(BLOCK_SIZE, data), lambda: ended.append("written"))
    scheduler.run(3)
    assert not ended
    for _ in range(many):
        device.gate.leave()
    scheduler.run()
    assert (ended, scheduler.errors) == (["written"], [])
    die(pool)
