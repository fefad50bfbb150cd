"""Random histories in which frozen layers are packed, folded, punched, merged, scrubbed and read:
what every volume and snapshot holds is known all the time. A failing one prints its seed."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest

from bockd.drivers.local.format import cells, queue
from bockd.drivers.local.format.catalogue import Catalogue
from bockd.drivers.local.format.leafvalues import LeafTable
from bockd.drivers.local.integrity.check import check_open_pool
from bockd.drivers.local.integrity.damage import scrub_status
from bockd.drivers.local.integrity.scrub import Scrubber
from bockd.drivers.local.maintenance import merging
from bockd.drivers.local.maintenance.reclaim import Reclaimer
from bockd.drivers.local.pool import LocalPool
from bockd.drivers.local.volume.reading import Reader
from bockd.model import BLOCK_SIZE, MIB, SnapshotId, VolumeId
from bockd.runtime.steps import Background, run_inline
from tests.drivers.local.packing import pack_layer
from tests.drivers.local.process import die

SIZE = 2 * MIB
BLOCKS = SIZE // BLOCK_SIZE
ROUNDS = 12
FEW = 40
"""Most changes are among the first so many blocks: there they meet."""


class History:
    def __init__(self, root: Path, seed: int) -> None:
        self.root = root
        self.random = Random(seed)
        self.number = 0
        self.shown: dict[int, dict[int, bytes]] = {}
        self.snapshots: list[SnapshotId] = []
        self.volumes: list[VolumeId] = []
        self.open()

    def open(self) -> None:
        self.background = Background()
        self.pool = LocalPool.open(self.root, self.background.spawn)
        self.pool.registry.on_garbage = lambda: None

    def create(self, origin: SnapshotId | None) -> None:
        self.number += 1
        size = None if origin else SIZE
        volume = VolumeId(run_inline(self.pool.create_volume(f"n{self.number}", size, origin)).id)
        self.volumes.append(volume)
        self.shown[volume] = dict(self.shown[origin]) if origin else {}

    def change(self, volume: VolumeId) -> None:
        device = run_inline(self.pool.registry.use_volume(volume)).volume
        for _ in range(self.random.randrange(1, 30)):
            first = self.random.randrange(FEW if self.random.random() < 0.8 else BLOCKS - 16)
            count = self.random.choice((1, 1, 1, 3, 16))
            blocks = range(first, first + count)
            if self.random.random() < 0.2:
                run_inline(device.trim(first * BLOCK_SIZE, count * BLOCK_SIZE))
                for block in blocks:
                    self.shown[volume].pop(block, None)
            else:
                data = [self.random.randbytes(8) * (BLOCK_SIZE // 8) for _ in blocks]
                run_inline(device.write(first * BLOCK_SIZE, memoryview(b"".join(data))))
                self.shown[volume].update(zip(blocks, data, strict=True))
        self.pool.registry.leave_volume(volume)

    def snapshot(self, volume: VolumeId) -> None:
        self.number += 1
        snapshot = run_inline(self.pool.create_snapshot(volume, f"n{self.number}")).id
        self.snapshots.append(SnapshotId(snapshot))
        self.shown[snapshot] = dict(self.shown[volume])

    def pack(self) -> None:
        """Some of what is frozen, while nothing is open."""
        run_inline(self.pool.close_all())
        die(self.pool)
        self.open()
        with self.pool.index.reading() as txn:
            catalogue = Catalogue(txn)
            busy = {volume.head for volume in catalogue.volumes()} | queue.punched_layers(txn)
            raw = [x.id for x in catalogue.layers() if not x.packed and x.id not in busy]
        for layer in raw:
            if self.random.random() < 0.7:
                pack_layer(self.pool.registry.store, layer, self.random)

    def delete(self) -> None:
        gone: int
        if self.snapshots and self.random.random() < 0.8:
            gone = self.snapshots.pop(self.random.randrange(len(self.snapshots)))
            run_inline(self.pool.delete_snapshot(SnapshotId(gone)))
        elif len(self.volumes) > 1:
            gone = self.volumes.pop(self.random.randrange(len(self.volumes)))
            run_inline(self.pool.delete_volume(VolumeId(gone)))
        else:
            return
        del self.shown[gone]

    def maintain(self) -> None:
        for opened in list(self.pool.registry.volumes.values()):
            run_inline(opened.volume.durability.checkpoint())
        run_inline(Reclaimer(self.pool.registry).run())
        self.background.run()
        scrubber = Scrubber(self.pool.registry)
        while run_inline(scrubber.read_on()).more:
            pass
        run_inline(scrubber.begin_pass())
        while run_inline(scrubber.verify_on()).more:
            pass
        with self.pool.index.reading() as txn:
            assert not scrub_status(txn).damaged

    def compare(self) -> None:
        for node, blocks in self.shown.items():
            device: Reader
            if node in self.volumes:
                device = run_inline(self.pool.registry.use_volume(VolumeId(node))).volume
                self.pool.registry.leave_volume(VolumeId(node))
            else:
                device = run_inline(self.pool.registry.use_snapshot(SnapshotId(node))).snapshot
                self.pool.registry.leave_snapshot(SnapshotId(node))
            found = bytearray(SIZE)
            run_inline(device.read(0, memoryview(found)))
            expected = b"".join(blocks.get(block, bytes(BLOCK_SIZE)) for block in range(BLOCKS))
            assert found == expected
        live = frozenset(self.pool.registry.volumes)
        report = check_open_pool(self.pool.registry.store, live=live, repair=False)
        assert report.problems == ()
        assert report.hollow_blocks == 0


@pytest.mark.parametrize("seed", range(6))
def test_histories_with_packed_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(merging, "MAX_DEAD_LAYERS", 1)
    history = History(tmp_path, seed)
    copied, forgotten = merging._copy_cells, LeafTable.forget
    met: set[str] = set()

    def copy(*given: Any) -> None:
        met.add("merged")
        copied(*given)

    def forget(table: LeafTable, *given: Any) -> None:
        if table is cells.ROWS:
            met.add("orphaned")
        forgotten(table, *given)

    monkeypatch.setattr(merging, "_copy_cells", copy)
    monkeypatch.setattr(LeafTable, "forget", forget)
    history.create(None)
    for _ in range(ROUNDS):
        volume = history.random.choice(history.volumes)
        history.change(volume)
        history.snapshot(volume)
        if history.random.random() < 0.3:
            history.create(history.random.choice(history.snapshots))
        if history.random.random() < 0.6:
            history.pack()
        history.compare()
        for _ in range(history.random.randrange(3)):
            history.delete()
        history.maintain()
        history.compare()
    assert met == {"merged", "orphaned"}
    die(history.pool)
