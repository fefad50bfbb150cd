"""The scenarios in the engine, each a function that plays it, by its name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from bockd.drivers.local.format.layer import Layer
from bockd.model import BLOCK_SIZE
from bockd.runtime.steps import run_inline
from tests.crash.powercut.mounted import PowerCutDisk
from tests.crash.scenarios.stage import SECTOR, Stage, block_of
from tests.drivers.local.named import snapshot_named

THE_HEAD = "_final: syncing the head layer"
"""The place of a flush's data sync."""

Scenario = Callable[[PowerCutDisk], None]


def prepared(disk: PowerCutDisk) -> Stage:
    """Blocks 5 and 300 hold "old", durably, in the layer of a snapshot "s"; the volume's head is
    empty."""
    stage = Stage(disk)
    stage.write(5, b"old")
    stage.write(300, b"old")
    stage.flush()
    stage.snapshot("s")
    return stage


def redirect_during_a_flush(disk: PowerCutDisk) -> None:
    """What the flush's barrier covers must not include the redirect: its data is not synced."""
    stage = prepared(disk)
    stage.write(1, b"flushed")
    flush = stage.conductor.begin(stage.device.flush())
    stage.conductor.after(flush, THE_HEAD)
    stage.write(5, b"new")
    assert stage.conductor.alone(flush)
    for left in stage.after_power_cut():
        left.assert_block(1, b"flushed")
        left.assert_block(5, b"old", b"new")


def flush_joins_a_running_one(disk: PowerCutDisk) -> None:
    """A flush that comes while one runs waits for a round of its own, which those that come after
    it share."""
    stage = prepared(disk)
    stage.write(1, b"flushed")
    running = stage.conductor.begin(stage.device.flush())
    stage.conductor.after(running, THE_HEAD)
    stage.write(5, b"new")
    with counting_syncs() as syncs:
        later = [stage.conductor.begin(stage.device.flush()) for _ in range(3)]
        for flush in later:
            stage.conductor.alone(flush)
        stage.conductor.run()
    head = stage.device.durability.head.id
    for left in stage.after_power_cut():
        left.assert_block(1, b"flushed")
        left.assert_block(5, b"new")
    assert syncs == [head]


@contextmanager
def counting_syncs() -> Iterator[list[int]]:
    """The layers that are synced meanwhile, each time."""
    synced: list[int] = []
    real = Layer.sync

    def sync(self: Layer) -> None:
        synced.append(self.id)
        real(self)

    with mock.patch.object(Layer, "sync", sync):
        yield synced


def records_during_a_checkpoint(disk: PowerCutDisk) -> None:
    """They are in the next segment, and neither in the index nor forgotten: not in memory, and not
    after a death right after the commit or after the checkpoint."""
    for to_its_end in (False, True):
        stage = prepared(disk)
        stage.write(5, b"before")
        checkpoint = stage.conductor.begin(stage.device.durability.checkpoint())
        stage.conductor.before(checkpoint, "checkpoint > _apply_sealed")
        stage.write(6, b"during")
        stage.conductor.after(checkpoint, "checkpoint > _apply_sealed")
        stage.write(300, b"during")
        if to_its_end:
            assert stage.conductor.alone(checkpoint)
        assert_checkpointed(stage)
        stage = stage.after_death()
        assert_checkpointed(stage)
        stage.end()
        stage.drop()


def flush_beside_a_checkpoint(disk: PowerCutDisk) -> None:
    """It is in the next segment, which counts only behind a sealed one, and the index has nothing
    of either yet."""
    stage = prepared(disk)
    stage.write(5, b"before")
    checkpoint = stage.conductor.begin(stage.device.durability.checkpoint())
    stage.conductor.before(checkpoint, "checkpoint > _apply_sealed")
    stage.write(6, b"during")
    stage.flush()
    for left in stage.after_power_cut():
        left.assert_block(5, b"before")
        left.assert_block(6, b"during")


def assert_checkpointed(stage: Stage) -> None:
    for block, value in ((5, b"before"), (6, b"during"), (300, b"during")):
        stage.assert_block(block, value)


def revert_before_the_old_journal_is_gone(disk: PowerCutDisk) -> None:
    """Wherever the process dies: the journal of what was reverted, which is still there, is not
    replayed over the snapshot; then or after a further death."""
    events, ended = 0, False
    while not ended:
        stage = prepared(disk)
        snapshot = snapshot_named(stage.pool, "s")
        stage.write(5, b"new")
        stage.flush()
        stage.leave()
        revert = stage.conductor.begin(stage.pool.revert_volume(stage.volume, snapshot))
        with old_journals_stay():
            for _ in range(events):
                if revert in stage.conductor.tasks:
                    stage.conductor.advance(revert)
            ended = revert not in stage.conductor.tasks
            for _ in range(2):
                stage = stage.after_death()
                found = stage.read(5)
                assert found in (block_of(b"old"), block_of(b"new")), f"after {events} events"
                assert not ended or found == block_of(b"old")
                stage.write(7, b"later")
            stage = stage.after_death()
        assert stage.read(5) == found
        stage.assert_block(7, b"later")
        stage.end()
        stage.drop()
        events += 1
    assert events > 8, "a revert has more steps"


@contextmanager
def old_journals_stay() -> Iterator[None]:
    """The process dies before it removes one."""
    real = os.unlink

    def unlink(path: str | Path) -> None:
        if Path(path).parent.name != "journal":
            real(path)

    with mock.patch.object(os, "unlink", unlink):
        yield


def two_writes_into_one_frozen_block(disk: PowerCutDisk) -> None:
    """The second waits until the first has copied the block, and both are there."""
    stage = prepared(disk)
    late, early = b"L" * SECTOR, b"E" * SECTOR
    first = stage.conductor.begin(stage.device.write(5 * BLOCK_SIZE + 6 * SECTOR, memoryview(late)))
    stage.conductor.after(first, "edges > read")
    second = stage.conductor.begin(stage.device.write(5 * BLOCK_SIZE + SECTOR, memoryview(early)))
    stage.conductor.alone(second)
    stage.conductor.run()
    expected = bytearray(block_of(b"old"))
    expected[6 * SECTOR : 7 * SECTOR] = late
    expected[SECTOR : 2 * SECTOR] = early
    assert stage.read(5) == expected
    stage = stage.after_death()
    assert stage.read(5) == expected
    stage.end()
    stage.drop()


def late_punch_against_a_new_write(disk: PowerCutDisk) -> None:
    """A write comes before the punch, while it is under way, and when it is done and nobody knows:
    what it wrote stays."""
    for moment in ("before", "under way", "done"):
        stage = Stage(disk)
        stage.write(5, b"old")
        run_inline(stage.device.trim(5 * BLOCK_SIZE, BLOCK_SIZE))
        (punch,) = stage.conductor.tasks
        if moment != "before":
            stage.conductor.before(punch, "_punch_piece")
        if moment == "done":
            stage.conductor.advance(punch)
        data = memoryview(block_of(b"new"))
        if not stage.device.try_write(5 * BLOCK_SIZE, data):
            assert moment != "before"
            write = stage.conductor.begin(stage.device.write(5 * BLOCK_SIZE, data))
            assert not stage.conductor.alone(write), "it did not wait for the punch"
        stage.device.commit()
        stage.conductor.run()
        stage.assert_block(5, b"new")
        stage = stage.after_death()
        stage.assert_block(5, b"new")
        stage.end()
        stage.drop()


def read_while_its_layer_is_reclaimed(disk: PowerCutDisk) -> None:
    """A read that has planned to use a layer finds its bytes there, whatever is deleted, punched
    and unlinked meanwhile."""
    stage = prepared(disk)
    snapshot = snapshot_named(stage.pool, "s")
    buffer = bytearray(BLOCK_SIZE)
    run_inline(stage.device.loader.load(5, 6))
    read = stage.conductor.begin(stage.device.read(5 * BLOCK_SIZE, memoryview(buffer)))
    stage.conductor.before(read, "read")
    for block in (5, 300):
        stage.write(block, b"new")
    deletion = stage.conductor.begin(stage.pool.delete_snapshot(snapshot))
    assert stage.conductor.alone(deletion)
    while others := [t for t in stage.conductor.tasks if t is not read and (t.call or t.resume)]:
        stage.conductor.advance(others[0])
    stage.conductor.run()
    assert buffer == block_of(b"old")
    stage.assert_block(5, b"new")
    layers = list(stage.pool.registry.store.layout.layers.iterdir())
    assert len(layers) == 1, "nothing was reclaimed"
    stage.end()
    stage.drop()


def deletion_while_a_redirect_is_unflushed(disk: PowerCutDisk) -> None:
    """The snapshot's block is given back only when the one that replaces it is durable: the power
    fails at every third change of the disk from the redirect on."""
    cuts, ended = 0, False
    while not ended:
        stage = prepared(disk)
        snapshot = snapshot_named(stage.pool, "s")
        disk.arm(stage.life, 1 + 3 * cuts)
        stage.write(5, b"new")
        stage.conductor.begin(stage.pool.delete_snapshot(snapshot))
        while not disk.cut and stage.conductor.tasks:
            stage.conductor.run(1)
        ended = not disk.cut
        for left in stage.after_power_cut():
            left.assert_block(5, b"old", b"new")
            left.assert_block(300, b"old")
        cuts += 1
    assert cuts > 8, "a deletion and its reclaim make more changes"
