"""Whatever was made of what: the sums are the pool's, and what is said to return does return."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from bockd.drivers.local.pool import LocalPool
from bockd.drivers.local.usage import measure_usage
from bockd.model import BLOCK_SIZE, MIB, NodeKind, SnapshotId, VolumeId
from bockd.pool.lineage import Key
from bockd.pool.reports import FamilyUsage
from bockd.runtime.steps import Background, run_inline

SIZE = 3 * MIB
BLOCKS = SIZE // BLOCK_SIZE


class History:
    """A random history of one pool."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self._background = Background()
        self.pool = LocalPool.open(directory, self._background.spawn)
        self.nodes: list[Key] = []
        self.cloned: dict[VolumeId, VolumeId] = {}
        self._number = 0

    def close(self) -> None:
        run_inline(self.pool.close_all())
        self.pool.release()

    def step(self) -> None:
        """Something that users do."""
        volumes = [VolumeId(node) for kind, node in self.nodes if kind is NodeKind.VOLUME]
        snapshots = [SnapshotId(node) for kind, node in self.nodes if kind is NodeKind.SNAPSHOT]
        what = self.random.choice(["write", "write", "snapshot", "copy", "clone", "new", "delete"])
        if what == "new" or not volumes:
            self._volume(None)
        elif what == "write":
            self._write(self.random.choice(volumes))
        elif what == "snapshot":
            self._snapshot(self.random.choice(volumes))
        elif what == "copy" and snapshots:
            self._volume(self.random.choice(snapshots))
        elif what == "clone":
            source = self.random.choice(volumes)
            frozen = self._snapshot(source)
            self.cloned[self._volume(frozen)] = source
            self.delete((NodeKind.SNAPSHOT, frozen))
        elif what == "delete":
            self.delete(self.random.choice(self.nodes))

    def _name(self) -> str:
        self._number += 1
        return f"n{self._number}"

    def _volume(self, source: SnapshotId | None) -> VolumeId:
        size = SIZE if source is None else None
        made = run_inline(self.pool.create_volume(self._name(), size, source)).id
        self.nodes.append((NodeKind.VOLUME, made))
        return made

    def _snapshot(self, volume: VolumeId) -> SnapshotId:
        made = run_inline(self.pool.create_snapshot(volume, self._name())).id
        self.nodes.append((NodeKind.SNAPSHOT, made))
        return made

    def _write(self, volume: VolumeId) -> None:
        device = run_inline(self.pool.use(NodeKind.VOLUME, volume))
        first = self.random.randrange(BLOCKS)
        data = bytes([self.random.randrange(1, 256)]) * BLOCK_SIZE
        data *= min(self.random.choice((1, 5, 300)), BLOCKS - first)
        run_inline(device.write(first * BLOCK_SIZE, memoryview(data)))
        self.pool.leave(NodeKind.VOLUME, volume)

    def delete(self, key: Key) -> None:
        kind, node = key
        self.nodes.remove(key)
        if kind is NodeKind.VOLUME:
            run_inline(self.pool.delete_volume(VolumeId(node)))
        else:
            run_inline(self.pool.delete_snapshot(SnapshotId(node)))

    def usage(self) -> tuple[FamilyUsage, ...]:
        return run_inline(measure_usage(self.pool.registry, self.cloned))

    def total(self) -> int:
        """What another walk says that all data takes."""
        found = run_inline(self.pool.shares(frozenset()))
        return found.volumes_bytes + found.snapshots_bytes


@pytest.mark.parametrize("seed", range(12))
def test_sums_are_the_pools_and_what_is_promised_returns(tmp_path: Path, seed: int) -> None:
    """A failure names its seed."""
    history = History(tmp_path, seed)
    for _ in range(25):
        history.step()
    for alone in (True, False, True, False):
        families = history.usage()
        total = history.total()
        assert sum(family.total_bytes for family in families) == total
        found = {(one.kind, one.id): one for family in families for one in family.nodes}
        assert sorted(found) == sorted(history.nodes)
        for key, one in found.items():
            assert run_inline(history.pool.measure(*key)) == one.space
        if not found:
            break
        chosen = history.random.choice(list(found))
        gone = {chosen}
        if not alone:
            for key in sorted(found, key=lambda key: key[1]):
                if found[key].made_of in gone:
                    gone.add(key)
        for key in gone:
            history.delete(key)
        promised = found[chosen].space.exclusive_bytes if alone else found[chosen].with_below_bytes
        assert history.total() == total - promised
    history.close()
