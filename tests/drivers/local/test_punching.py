"""Trimmed blocks on their way back to the file system."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bockd.drivers.local.format.layer import Layer, create_layer
from bockd.drivers.local.format.layout import Layout
from bockd.drivers.local.volume.punching import PIECE_BLOCKS, PendingPunches, Puncher
from bockd.model import BLOCK_SIZE, MIB, LayerId
from bockd.runtime.steps import Blocking, Signal, run_inline
from bockd.runtime.waiting import RangeLocks

ranges = st.tuples(st.integers(0, 60), st.integers(1, 20))


@given(st.lists(st.tuples(st.booleans(), ranges), max_size=60))
def test_pending_punches_are_a_set_of_blocks(actions: list[tuple[bool, tuple[int, int]]]) -> None:
    pending, model = PendingPunches(), set[int]()
    for adding, (first, count) in actions:
        blocks = set(range(first, first + count))
        if adding:
            pending.add(first, first + count)
            model |= blocks
        else:
            taken = pending.remove(first, first + count)
            found = {b for start, end in taken for b in range(start, end)}
            assert found == model & blocks
            assert len(found) == sum(end - start for start, end in taken)
            model -= blocks
        assert bool(pending) == bool(model)
        if (piece := pending.next_piece()) is not None:
            assert set(range(*piece)) <= model
            assert piece[0] == min(model)


def test_a_piece_is_bounded() -> None:
    pending = PendingPunches()
    pending.add(0, 10 * PIECE_BLOCKS)
    assert pending.next_piece() == (0, PIECE_BLOCKS)


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
