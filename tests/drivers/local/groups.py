"""A volume whose groups of leaves tests make holes of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bockd.drivers.local.format.blockmap import own_leaves
from bockd.drivers.local.format.catalogue import Catalogue
from bockd.drivers.local.format.leaf import LEAF_BLOCKS, Leaf, leaf_key
from bockd.drivers.local.maintenance.reclaim import Reclaimer
from bockd.drivers.local.pool import LocalPool
from bockd.drivers.local.volume import leafcache
from bockd.drivers.local.volume.volume import Volume
from bockd.model import VolumeId
from bockd.runtime.steps import Background, run_inline
from tests.drivers.local.bench_pool import Bench
from tests.drivers.local.process import die
from tests.drivers.local.rotting import rot

ZERO = b"\0"


def two_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """Yield a volume of two leaves, each a group of its own."""
    monkeypatch.setattr(leafcache, "GROUP_LEAVES", 1)
    bench = Bench(tmp_path)
    yield bench
    die(bench.pool)


def cold(bench: Bench) -> Volume:
    """The volume with nothing of its map in memory."""
    run_inline(bench.pool.registry.close_idle_volume(bench.volume))
    bench.background.run()
    return bench.device()


def trim(device: Volume, offset: int, length: int) -> None:
    """As the server does it when nothing is in the way. Where the head is packed, the index may
    have to be asked for cells first."""
    if not device.try_trim(offset, length):
        assert device.durability.cells is not None
        run_inline(device.trim(offset, length))
    device.commit()


def stored(bench: Bench, volume: VolumeId | None = None) -> dict[int, Leaf]:
    """The leaves that the index has of the volume's own map."""
    with bench.pool.index.reading() as txn:
        record = Catalogue(txn).volume(volume or bench.volume)
        return {n: Leaf.decode(payload) for n, payload in own_leaves(txn, record.map)}


def homed_leaves(bench: Bench, *, changed: bool = True) -> None:
    """Two leaves of a volume lead to a layer of a deleted snapshot, at home in its map. With
    `changed` the head has a block of each."""
    bench.write(0, b"A", 2 * LEAF_BLOCKS)
    snapshot = bench.snapshot("s")
    if changed:
        bench.write(1, b"B")
        bench.write(257, b"B")
    bench.delete(snapshot)
    bench.reclaim()
    assert set(stored(bench)) == {0, 1}


def rot_leaf(bench: Bench, number: int) -> None:
    with bench.pool.index.reading() as txn:
        shown = Catalogue(txn).volume(bench.volume).map
    rot(bench, leaf_key(shown, number))


def records(device: Volume) -> int:
    return device.durability.tail.segment.used


def reopened(bench: Bench) -> None:
    """After the death of the process."""
    root = bench.pool.registry.store.layout.root
    die(bench.pool)
    bench.background = Background()
    bench.pool = LocalPool.open(root, bench.background.spawn)
    bench.reclaimer = Reclaimer(bench.pool.registry)
    run_inline(bench.pool.registry.recover_volumes())
