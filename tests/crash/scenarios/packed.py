"""The scenarios of packed heads, each a function that plays it."""

from __future__ import annotations

import os
from unittest import mock

from bockd.drivers.local.maintenance.settling import Settler
from bockd.drivers.local.volume import cells
from bockd.model import BLOCK_SIZE
from bockd.runtime.steps import run_inline
from tests.crash.powercut.mounted import PowerCutDisk
from tests.crash.scenarios.engine import THE_HEAD
from tests.crash.scenarios.stage import Stage, block_of


def prepared(disk: PowerCutDisk) -> Stage:
    """Block 300 holds "old", durably, in the layer of a snapshot "s"; blocks 5 and 6 hold "first"
    and "second", durably, in the volume's packed head."""
    stage = Stage(disk)
    stage.write(300, b"old")
    stage.pool.registry.pack = lambda: True
    stage.snapshot("s")
    stage.write(5, b"first")
    stage.write(6, b"second")
    stage.flush()
    return stage


def trim(stage: Stage, block: int) -> None:
    run_inline(stage.device.trim(block * BLOCK_SIZE, BLOCK_SIZE))


def another_block_after_a_trim(disk: PowerCutDisk) -> None:
    """Nothing of the trim is flushed: the cell must not have another block's bytes by then."""
    for punched in (False, True):
        stage = prepared(disk)
        trim(stage, 5)
        trim(stage, 6)
        if punched:
            run_inline(stage.device.heads.finish_punching())
        for block in range(20, 24):
            stage.write(block, b"new")
        for left in stage.after_power_cut():
            left.assert_block(5, b"first", zeros=True)
            left.assert_block(6, b"second", zeros=True)


def read_while_its_cell_is_used_again(disk: PowerCutDisk) -> None:
    """A read that has planned to use a cell finds the block's own bytes or zeros there, whatever is
    trimmed, punched, checkpointed and written meanwhile."""
    stage = prepared(disk)
    buffer = bytearray(BLOCK_SIZE)
    run_inline(stage.device.loader.load(5, 6))
    read = stage.conductor.begin(stage.device.read(5 * BLOCK_SIZE, memoryview(buffer)))
    stage.conductor.before(read, "read")
    trim(stage, 5)
    trim(stage, 6)
    run_inline(stage.device.heads.finish_punching())
    checkpoint = stage.conductor.begin(stage.device.durability.checkpoint())
    stage.conductor.alone(checkpoint)
    for block in range(20, 24):
        stage.write(block, b"new")
    stage.conductor.run()
    assert buffer in (block_of(b"first"), bytes(BLOCK_SIZE))
    for block in range(20, 24):
        stage.assert_block(block, b"new")
    stage.write(30, b"again")  # the cells are free by now
    assert stage.device.durability.head.length_bytes() == 6 * BLOCK_SIZE
    stage.end()
    stage.drop()


def lost_page_over_what_a_death_has_left(disk: PowerCutDisk) -> None:
    """A death leaves data in a cell that nothing names. The next life's block must not come to lie
    there: if its page were lost, recovery would find bytes that are not zeros, and take them for
    the block's."""
    stage = prepared(disk)
    head = stage.device.durability.head
    os.pwrite(head.descriptors[0], block_of(b"stray"), head.length_bytes())
    head.sync()
    path = stage.pool.registry.store.layout.layer_segment(head.id, 0)
    stage = stage.after_death()
    before = path.read_bytes()
    stage.write(7, b"new")
    stage.end()
    with open(path, "r+b") as file:  # its pages are lost, and its length is not
        file.write(before.ljust(os.fstat(file.fileno()).st_size, b"\0"))
    stage = Stage(disk, stage.life)
    stage.assert_block(5, b"first")
    stage.assert_block(7, zeros=True)
    stage.end()
    stage.drop()


def lost_page_in_a_cell_that_is_used_again(disk: PowerCutDisk) -> None:
    """Trimmed blocks are punched after a checkpoint has synced the head. What is written next must
    not come to lie in their cells: if its pages, and the punch, were lost, recovery would find the
    trimmed blocks' bytes there, and take them for the new ones'."""
    stage = prepared(disk)
    head = stage.device.durability.head
    path = stage.pool.registry.store.layout.layer_segment(head.id, 0)
    stage.write(8, b"unsynced")
    trim(stage, 5)
    trim(stage, 6)
    checkpoint = stage.conductor.begin(stage.device.durability.checkpoint())
    stage.conductor.after(checkpoint, THE_HEAD)
    durable = path.read_bytes()
    run_inline(stage.device.heads.finish_punching())
    stage.conductor.alone(checkpoint)
    stage.conductor.run()
    for block in (20, 21):
        stage.write(block, b"new")
    stage.end()
    with open(path, "r+b") as file:  # all that was not synced is lost, but for the length
        file.write(durable.ljust(os.fstat(file.fileno()).st_size, b"\0"))
    stage = Stage(disk, stage.life)
    for block in (5, 6, 20, 21):
        stage.assert_block(block, zeros=True)
    stage.assert_block(8, b"unsynced")
    stage.end()
    stage.drop()


def rotation_during_a_flush(disk: PowerCutDisk) -> None:
    """A flush that has synced the old head goes on to its barrier, before the new head takes over;
    what was written before and after is there after a flush of the new one."""
    stage = prepared(disk)
    stage.write(7, b"flushed")
    old = stage.device.durability.head.id
    flush = stage.conductor.begin(stage.device.flush())
    stage.conductor.after(flush, THE_HEAD)
    stage.write(8, b"between")
    with mock.patch.object(cells, "ROTATION_CELLS", cells.MAX_CELLS - 1):
        rotation = stage.conductor.begin(stage.pool.registry.rotate(stage.volume))
        stage.conductor.alone(rotation)
        assert stage.conductor.alone(flush)
        stage.conductor.alone(rotation)
        stage.conductor.run()
    assert stage.device.durability.head.id != old
    stage.write(9, b"later")
    stage.flush()
    stage.write(6, b"unflushed")
    for left in stage.after_power_cut():
        left.assert_block(5, b"first")
        left.assert_block(6, b"second", b"unflushed")
        for block, value in ((7, b"flushed"), (8, b"between"), (9, b"later")):
            left.assert_block(block, value)


def settling_at_every_third_change(disk: PowerCutDisk) -> None:
    """A frozen packed layer is settled, in two windows, and its volume has overwritten one of its
    blocks: the power fails at every third change of the disk, and everybody is shown what it
    was."""
    cuts, ended = 0, False
    while not ended:
        stage = prepared(disk)
        for block in (301, 4, 299):
            stage.write(block, b"third")
        frozen = stage.snapshot("frozen")
        stage.write(6, b"changed")
        stage.flush()
        disk.arm(stage.life, 1 + 3 * cuts)
        settler = Settler(stage.pool.registry)

        async def settle(settler: Settler = settler) -> None:
            for _ in range(2):
                await settler.look()
            while (await settler.step()).more:
                pass

        stage.conductor.begin(settle())
        while not disk.cut and stage.conductor.tasks:
            stage.conductor.run(1)
        ended = not disk.cut
        for left in stage.after_power_cut():
            reader = run_inline(left.pool.registry.use_snapshot(frozen)).snapshot
            assert left.read(6, reader) == block_of(b"second")
            for node in (None, reader):
                assert left.read(5, node) == block_of(b"first")
                assert left.read(300, node) == block_of(b"old")
                for block in (301, 4, 299):
                    assert left.read(block, node) == block_of(b"third")
            left.assert_block(6, b"changed")
        cuts += 1
    assert cuts > 8, "settling makes more changes"
