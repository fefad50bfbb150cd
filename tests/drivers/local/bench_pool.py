"""A pool with one volume, driven by hand, one step at a time if need be."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bockd.drivers.local.format.catalogue import Catalogue
from bockd.drivers.local.integrity.check import check_open_pool
from bockd.drivers.local.maintenance import merging
from bockd.drivers.local.maintenance.reclaim import Reclaimer
from bockd.drivers.local.pool import LocalPool
from bockd.drivers.local.volume.volume import Volume
from bockd.model import BLOCK_SIZE, MIB, SnapshotId, VolumeId
from bockd.runtime.steps import Background, Blocking, Signal, Step, Steps, run_inline

SIZE = 2 * MIB


class Bench:
    """A pool with one volume, driven by hand."""

    def __init__(self, root: Path) -> None:
        self.background = Background()
        self.pool = LocalPool.open(root, self.background.spawn)
        self.reclaimer = Reclaimer(self.pool.registry)
        self.volume = VolumeId(run_inline(self.pool.create_volume("v", SIZE)).id)

    def write(self, block: int, value: bytes, count: int = 1) -> None:
        device = run_inline(self.pool.registry.use_volume(self.volume)).volume
        run_inline(device.write(block * BLOCK_SIZE, memoryview(value * BLOCK_SIZE * count)))
        self.pool.registry.leave_volume(self.volume)

    def snapshot(self, name: str) -> SnapshotId:
        return SnapshotId(run_inline(self.pool.create_snapshot(self.volume, name)).id)

    def delete(self, snapshot: SnapshotId) -> None:
        run_inline(self.pool.delete_snapshot(snapshot))

    def reclaim(self) -> None:
        for opened in self.pool.registry.volumes.values():
            run_inline(opened.volume.durability.checkpoint())
        run_inline(self.reclaimer.run())
        self.background.run()
        report = check_open_pool(
            self.pool.registry.store, live=frozenset(self.pool.registry.volumes), repair=False
        )
        assert report.clean, report.problems
        assert report.hollow_blocks == 0
        assert report.pending_reclaim == 0

    def block(self, node: VolumeId | SnapshotId, block: int) -> bytes:
        buffer = bytearray(BLOCK_SIZE)
        if node == self.volume:
            run_inline(
                run_inline(self.pool.registry.use_volume(self.volume)).volume.read(
                    block * BLOCK_SIZE, memoryview(buffer)
                )
            )
            self.pool.registry.leave_volume(self.volume)
        else:
            reader = run_inline(self.pool.registry.use_snapshot(SnapshotId(node))).snapshot
            run_inline(reader.read(block * BLOCK_SIZE, memoryview(buffer)))
            self.pool.registry.leave_snapshot(SnapshotId(node))
            run_inline(self.pool.registry.close_idle_snapshot(SnapshotId(node)))
        assert len(set(buffer)) == 1
        return bytes(buffer[:1])

    def allocated(self) -> int:
        """Bytes that the layers' files occupy."""
        layers = self.pool.registry.store.layout.layers
        return sum((layers / name).stat().st_blocks * 512 for name in os.listdir(layers))

    def maps(self) -> int:
        with self.pool.index.reading() as txn:
            return sum(1 for _ in Catalogue(txn).maps())

    def device(self) -> Volume:
        """The open volume, ready to be written; it stays open."""
        volume = run_inline(self.pool.registry.use_volume(self.volume)).volume
        run_inline(volume.durability.begin(reserve=False))
        return volume


def stepwise(steps: Steps[None]) -> Iterator[Step]:
    """An operation's steps, each before it is done; asking for the next one does it."""
    try:
        step = steps.send(None)
    except StopIteration:
        return
    while True:
        yield step
        try:
            if isinstance(step, Signal):
                assert step.fired
                step = steps.send(None)
            else:
                assert isinstance(step, Blocking)
                step = steps.send(step.call())
        except StopIteration:
            return


def resume(steps: Steps[Any], result: object) -> None:
    """Go on with an operation whose step gave `result`, to its end."""
    try:
        step = steps.send(result)
    except StopIteration:
        return
    run_inline(steps_from(step, steps))


async def steps_from(step: Step, steps: Steps[Any]) -> None:
    """An operation that has yielded `step` already, from there on."""
    try:
        while True:
            step = steps.send(await step)
    except StopIteration:
        return


def gather_layers(bench: Bench, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave `count` layers of deleted snapshots at home in the volume's map, unmerged."""
    with monkeypatch.context() as patch:
        patch.setattr(merging, "MAX_DEAD_LAYERS", 1000)
        for number in range(count):
            snapshot = bench.snapshot(f"gone {number}")
            bench.write(number * 8, bytes([65 + number]), 5)
            bench.delete(snapshot)
            bench.reclaim()
