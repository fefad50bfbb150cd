"""Trimmed blocks on their way back to the file system."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bockd.drivers.local.format.layer import Layer, create_layer
from bockd.drivers.local.format.layout import Layout
from bockd.drivers.local.volume.punching import Puncher
from bockd.model import BLOCK_SIZE, MIB, LayerId
from bockd.runtime.steps import Blocking, Signal, run_inline
from bockd.runtime.waiting import RangeLocks


@pytest.fixture
def layer(tmp_path: Path) -> Layer:
    layout = Layout(tmp_path)
    os.makedirs(layout.layers)
    create_layer(layout, LayerId(1), MIB)
    layer = Layer.open(layout, LayerId(1), MIB, writable=True)
    layer.write(0, memoryview(b"x" * MIB))
    return layer


def block(layer: Layer, number: int) -> bytes:
    buffer = bytearray(BLOCK_SIZE)
    layer.read(number * BLOCK_SIZE, memoryview(buffer))
    return bytes(buffer[:1])


def test_a_write_that_came_first_keeps_its_blocks(layer: Layer) -> None:
    """The puncher waits for a write that holds some of its blocks; the write takes them off the
    list; the puncher must look again."""
    locks = RangeLocks()
    puncher = Puncher(layer, locks)
    puncher.pending.add(0, 4)
    held = run_inline(locks.acquire(1, 2))
    punching = puncher.run()
    waiting = punching.send(None)
    assert isinstance(waiting, Signal)
    puncher.pending.remove(1, 2)
    locks.release(held)
    assert waiting.fired
    run_inline(punching)
    assert [block(layer, n) for n in range(5)] == [b"\0", b"x", b"\0", b"\0", b"x"]
    layer.close()


def test_a_write_waits_for_the_piece_being_punched(layer: Layer) -> None:
    locks = RangeLocks()
    puncher = Puncher(layer, locks)
    puncher.pending.add(0, 4)
    punching = puncher.run()
    step = punching.send(None)
    assert isinstance(step, Blocking)
    assert locks.busy(3, 4)
    assert not locks.busy(4, 5)
    assert not puncher.pending
    step.call()
    run_inline(punching)
    assert not locks.busy(0, 4)
    layer.close()
