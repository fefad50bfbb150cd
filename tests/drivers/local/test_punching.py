"""Trimmed blocks on their way back to the file system."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from bockd.drivers.local.format.journal import JournalSegment
from bockd.drivers.local.format.layer import Layer
from bockd.drivers.local.format.layerfiles import create_layer
from bockd.drivers.local.format.layout import Layout
from bockd.drivers.local.volume.punching import Puncher
from bockd.errors import VolumeFailedError
from bockd.model import BLOCK_SIZE, MIB, LayerId
from bockd.runtime.steps import Blocking, Signal, run_inline
from bockd.runtime.waiting import RangeLocks
from tests.drivers.local.bench_pool import SIZE, Bench
from tests.drivers.local.process import die


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


def test_a_trim_that_the_journal_does_not_have_is_not_punched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recovery would find zeros where data was acknowledged, and take it for lost."""
    bench = Bench(tmp_path)
    bench.write(0, b"a", SIZE // BLOCK_SIZE)
    device = bench.device()
    before = bench.allocated()
    with monkeypatch.context() as patch:
        patch.setattr(JournalSegment, "append", _full)
        assert device.try_trim(0, SIZE)
        with pytest.raises(VolumeFailedError):
            device.commit()
    bench.background.run()
    run_inline(device.heads.finish_punching())
    assert bench.allocated() == before
    die(bench.pool)


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "full")
