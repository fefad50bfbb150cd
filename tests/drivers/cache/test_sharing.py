"""Reads of the same blocks: one asks the device below, and all have it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from bockd.drivers.memory.device import FailedError
from bockd.model import BLOCK_SIZE, MIB
from bockd.runtime.steps import Signal, run_inline
from tests.drivers.local.schedule import Scheduler

from .opened import CountingDevice, Opened, content_of, is_hit

SIZE = 2 * MIB
CONTENT = content_of(SIZE)
READERS = 20


def snapshot(gate: Signal | None = None) -> CountingDevice:
    device = CountingDevice(SIZE, read_only=True)
    device.hold(CONTENT)
    device.gate = gate
    return device


def read_by_all(opened: Opened, devices: list[CountingDevice], offset: int, length: int) -> None:
    """Have each of them read a range at the same time."""
    scheduler = Scheduler(random.Random(1))
    gate = devices[0].gate
    cached = [opened.snapshot(device) for device in devices]
    buffers = [memoryview(bytearray(length)) for _ in devices]
    for device, into in zip(cached, buffers, strict=True):
        scheduler.start(device.read(offset, into), lambda: None)
    scheduler.run(3 * len(devices)) if gate is None else None
    for _ in range(len(devices)):
        ready = [t for t in scheduler.tasks if t.resume is not None or t.call is not None]
        for task in ready:
            scheduler.advance(task)
    if gate is not None:
        gate.fire()
    scheduler.run()
    assert not scheduler.errors
    assert all(into == CONTENT[offset : offset + length] for into in buffers)
    opened.background.run()
    opened.close(*cached)


def test_readers_of_one_snapshot_ask_for_each_block_once(tmp_path: Path) -> None:
    """At the same time, or one after the other; whichever opening they read it by."""
    gate = Signal()
    devices = [snapshot(gate) for _ in range(READERS)]
    opened = Opened(tmp_path)
    read_by_all(opened, devices, 0, MIB)
    assert [one for device in devices for one in device.reads] == [(0, MIB)]
    read_by_all(opened, devices, BLOCK_SIZE, 3 * BLOCK_SIZE)
    assert [one for device in devices for one in device.reads] == [(0, MIB)]
    opened.release()


def test_a_snapshot_is_kept_whatever_has_happened_in_between(tmp_path: Path) -> None:
    opened = Opened(tmp_path)
    device = opened.snapshot(snapshot())
    opened.read(device)
    opened.release(device)
    below, opened = snapshot(), Opened(tmp_path)
    device = opened.snapshot(below)
    assert opened.read(device) == CONTENT[:BLOCK_SIZE]
    assert below.reads == []
    opened.release(device)


def test_it_stays_open_until_the_last_reader_has_gone(tmp_path: Path) -> None:
    opened = Opened(tmp_path)
    first, second = opened.snapshot(snapshot()), opened.snapshot(snapshot())
    opened.read(first)
    assert is_hit(second)
    opened.close(first)
    assert is_hit(second)
    assert list(tmp_path.glob("*.map")) == []
    opened.close(second)
    assert len(list(tmp_path.glob("*.map"))) == 1
    opened.release()


def test_a_volume_and_a_snapshot_of_one_name_are_two(tmp_path: Path) -> None:
    opened = Opened(tmp_path)
    volume, frozen = opened.volume(CountingDevice(SIZE), 1), opened.snapshot(snapshot())
    opened.read(frozen)
    assert opened.read(volume) == bytes(BLOCK_SIZE)
    opened.release(volume, frozen)


def test_a_reader_whose_forerunner_has_failed_asks_itself(tmp_path: Path) -> None:
    gate = Signal()
    below = snapshot(gate)
    opened = Opened(tmp_path)
    device = opened.snapshot(below)
    buffers = [memoryview(bytearray(BLOCK_SIZE)) for _ in range(2)]
    first, second = [device.read(0, into) for into in buffers]
    step, other = first.send(None), second.send(None)
    assert step is gate
    assert other is not gate
    assert len(below.reads) == 1
    below.failures["read"] = FailedError("for a test")
    below.gate = None
    with pytest.raises(FailedError):
        first.send(None)
    below.failures.clear()
    with pytest.raises(StopIteration):
        second.send(None)
    assert buffers[1] == CONTENT[:BLOCK_SIZE]
    opened.background.run()
    opened.release(device)


def test_a_part_of_a_block_brings_all_of_it(tmp_path: Path) -> None:
    below = snapshot()
    opened = Opened(tmp_path)
    device = opened.snapshot(below)
    into = memoryview(bytearray(512))
    run_inline(device.read(BLOCK_SIZE + 512, into))
    assert into == CONTENT[BLOCK_SIZE + 512 :][:512]
    opened.background.run()
    assert is_hit(device, 1)
    assert below.reads == [(BLOCK_SIZE, BLOCK_SIZE)]
    opened.release(device)


def test_what_waits_to_be_written_is_given_to_readers(tmp_path: Path) -> None:
    below = snapshot()
    opened = Opened(tmp_path)
    device = opened.snapshot(below)
    into = memoryview(bytearray(BLOCK_SIZE))
    for _ in range(2):
        run_inline(device.read(0, into))  # nothing in the background has run
    assert below.reads == [(0, BLOCK_SIZE)]
    assert not is_hit(device)
    opened.background.run()
    assert is_hit(device)
    opened.release(device)
