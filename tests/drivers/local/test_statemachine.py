"""A pool driven at random against a plain model: bytes, extents, space, and `check` throughout.

The pool is reopened cleanly and after simulated deaths of the process (the page cache survives:
everything acknowledged must be there). Background work runs when the machine says so.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from unittest import mock

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from bockd.drivers.local.format import checksums
from bockd.drivers.local.format.catalogue import LAYERS, Catalogue
from bockd.drivers.local.format.cells import stored_cells
from bockd.drivers.local.format.leaf import LEAF_BLOCKS
from bockd.drivers.local.integrity.check import check_open_pool
from bockd.drivers.local.integrity.damage import scrub_status
from bockd.drivers.local.integrity.scrub import Scrubber
from bockd.drivers.local.maintenance import copying, merging, resting, settling
from bockd.drivers.local.maintenance.reclaim import Reclaimer
from bockd.drivers.local.maintenance.settling import Settler
from bockd.drivers.local.occupancy import measure_all, measure_shares
from bockd.drivers.local.pool import LocalPool
from bockd.drivers.local.volume import cells, leafcache
from bockd.drivers.local.volume.reading import Reader
from bockd.drivers.local.volume.volume import Volume
from bockd.errors import DamagedError
from bockd.index.keys import id_key
from bockd.model import BLOCK_SIZE, MIB, Extent, LayerId, NodeKind, SnapshotId, VolumeId
from bockd.pool.reports import DamagedBlock, NodeSpace, Shares, Space
from bockd.runtime.steps import Background, run_inline
from tests.amounts import amount
from tests.drivers.local.bitflip import flip_bit
from tests.drivers.local.oracle import Node
from tests.drivers.local.process import die

EXAMPLES = amount(50)
STEPS = 30

block_sizes = st.integers(256, 640).map(lambda blocks: blocks * BLOCK_SIZE)
# Few places, met again and again: what goes wrong goes wrong where operations meet.
offsets = st.one_of(
    st.sampled_from((0, 0, 2 * BLOCK_SIZE, MIB - BLOCK_SIZE, MIB)),
    st.integers(0, 4 * BLOCK_SIZE),
    st.integers(0, 3 * MIB),
)
lengths = st.one_of(
    st.sampled_from((BLOCK_SIZE, 4 * BLOCK_SIZE)),
    st.integers(1, 3 * BLOCK_SIZE),
    st.integers(1, 2 * MIB + 777),
)
aligned = st.booleans()


class PoolMachine(RuleBasedStateMachine):
    volumes = Bundle("volumes")
    snapshots = Bundle("snapshots")

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="bockd-test-"))
        self.background = Background()
        self.names = 0
        self.fill = 0
        self.live: dict[int, Node] = {}
        self.origin: dict[SnapshotId, VolumeId] = {}
        self.usual_group_leaves = leafcache.GROUP_LEAVES
        self.usual_dead_layers = merging.MAX_DEAD_LAYERS
        self.usual_max_cells = cells.MAX_CELLS
        self.patches = [
            mock.patch.object(copying, "WINDOW_BLOCKS", LEAF_BLOCKS),
            mock.patch.object(settling, "RUNS_PER_MIB", 1),
            mock.patch.object(settling, "MIN_BYTES", 0),
            mock.patch.object(resting, "HEAD_BYTES", LEAF_BLOCKS * BLOCK_SIZE),
        ]
        for patch in self.patches:
            patch.start()
        self.packs: Iterator[bool] = cycle((False,))
        merging.MAX_DEAD_LAYERS = 1  # so that small pools merge layers, too
        self.most_open = 1
        self.start()

    def start(self) -> None:
        self.background = Background()
        self.pool = LocalPool.open(self.root, self.background.spawn)
        self.pool.registry.store.files.limit = self.most_open
        self.pool.registry.pack = lambda: next(self.packs)
        self.scrubber = Scrubber(self.pool.registry)
        reclaimer = Reclaimer(self.pool.registry)
        self.pool.registry.on_garbage = lambda: self.background.spawn(reclaimer.run())
        self.background.spawn(reclaimer.run())
        self.settler = Settler(self.pool.registry)
        self.pool.registry.on_frozen = self.settler.note_frozen

    def teardown(self) -> None:
        try:
            self.background.run()
            for node in self.live:
                self.compare(node)
        finally:
            merging.MAX_DEAD_LAYERS = self.usual_dead_layers
            leafcache.GROUP_LEAVES = self.usual_group_leaves
            cells.MAX_CELLS = self.usual_max_cells
            for patch in self.patches:
                patch.stop()
            die(self.pool)
            shutil.rmtree(self.root)

    def name(self) -> str:
        self.names += 1
        return f"node {self.names}"

    def device(self, volume: VolumeId) -> Volume:
        opened = run_inline(self.pool.registry.use_volume(volume))
        self.pool.registry.leave_volume(volume)
        return opened.volume

    # -- the catalogue -----------------------------------------------------------------------

    @initialize(
        target=volumes,
        size=block_sizes,
        most_open=st.sampled_from((1, 2, 4096)),
        group_leaves=st.sampled_from((1, 2, 64)),
        packs=st.sampled_from(((False,), (True,), (True, False), (True, True, False))),
    )
    def first_volume(
        self, size: int, most_open: int, group_leaves: int, packs: tuple[bool, ...]
    ) -> VolumeId:
        self.packs = cycle(packs)
        cells.MAX_CELLS = cells.ROTATION_CELLS + 1024  # so that heads are rotated
        leafcache.GROUP_LEAVES = group_leaves  # so that small trims cover whole groups, too
        self.most_open = self.pool.registry.store.files.limit = most_open
        return self.new_volume(size)

    @rule(target=volumes, size=block_sizes)
    def create(self, size: int) -> VolumeId:
        return self.new_volume(size)

    def new_volume(self, size: int) -> VolumeId:
        volume = run_inline(self.pool.create_volume(self.name(), size)).id
        self.live[volume] = Node(size)
        return volume

    @rule(target=snapshots, volume=volumes)
    def snapshot(self, volume: VolumeId) -> SnapshotId:
        return self.freeze(volume)

    def freeze(self, volume: VolumeId) -> SnapshotId:
        snapshot = run_inline(self.pool.create_snapshot(volume, self.name())).id
        self.live[snapshot] = self.live[volume].copy()
        self.origin[snapshot] = volume
        return snapshot

    @rule(target=volumes, snapshot=snapshots, more=st.integers(0, 300))
    def clone(self, snapshot: SnapshotId, more: int) -> VolumeId:
        size = self.live[snapshot].size + more * BLOCK_SIZE
        volume = run_inline(self.pool.create_volume(self.name(), size, snapshot)).id
        self.live[volume] = self.live[snapshot].copy(size)
        return volume

    @rule(volume=volumes, more=st.integers(1, 300))
    def extend(self, volume: VolumeId, more: int) -> None:
        size = self.live[volume].size + more * BLOCK_SIZE
        run_inline(self.pool.extend_volume(volume, size))
        self.live[volume].grow(size)

    @rule(snapshot=snapshots)
    def revert(self, snapshot: SnapshotId) -> None:
        volume = self.origin[snapshot]
        if volume not in self.live:
            return
        run_inline(self.pool.revert_volume(volume, snapshot))
        self.live[volume] = self.live[snapshot].copy(self.live[volume].size)

    @rule(snapshot=consumes(snapshots))
    def delete_snapshot(self, snapshot: SnapshotId) -> None:
        run_inline(self.pool.delete_snapshot(snapshot))
        del self.live[snapshot]

    @precondition(lambda self: len(self.live) > 1)
    @rule(target=volumes, volume=consumes(volumes), sure=st.integers(0, 3))
    def delete_volume(self, volume: VolumeId, sure: int) -> VolumeId | MultipleResults[VolumeId]:
        if sure:
            return volume
        run_inline(self.pool.delete_volume(volume))
        del self.live[volume]
        return multiple()

    # -- the data ----------------------------------------------------------------------------

    def span(self, volume: VolumeId, offset: int, length: int, align: bool) -> tuple[int, int]:
        node = self.live[volume]
        if align:
            offset, length = offset & -BLOCK_SIZE, max(length & -BLOCK_SIZE, BLOCK_SIZE)
        offset %= node.size
        return offset, min(length, node.size - offset)

    def data(self, length: int) -> bytes:
        self.fill += 1
        return (self.fill.to_bytes(4, "big") * (length // 4 + 1))[:length]

    @rule(volume=volumes, offset=offsets, length=lengths, align=aligned)
    def write_again(self, volume: VolumeId, offset: int, length: int, align: bool) -> None:
        """Data, nothing, data: three changes of the same blocks in a row."""
        self.write(volume, offset, length, align, fast=True)
        self.trim(volume, offset, length, align, fast=True)
        self.write(volume, offset, length, align, fast=True)

    @rule(target=snapshots, volume=volumes, offset=offsets)
    def freeze_scattered(self, volume: VolumeId, offset: int) -> SnapshotId:
        """What is there then is to be settled, if the head is packed."""
        for block in (4, 2, 3, 0):
            self.write(volume, offset + block * BLOCK_SIZE, BLOCK_SIZE, True, fast=True)
        return self.freeze(volume)

    @rule(volume=volumes, offset=offsets, length=lengths, align=aligned, fast=st.booleans())
    def write(self, volume: VolumeId, offset: int, length: int, align: bool, fast: bool) -> None:
        offset, length = self.span(volume, offset, length, align)
        data = self.data(length)
        device = self.device(volume)
        if not (fast and length <= MIB and device.try_write(offset, memoryview(data))):
            run_inline(device.write(offset, memoryview(data)))
        device.commit()
        self.live[volume].write(offset, data)

    @rule(volume=volumes, offset=offsets, length=lengths, align=aligned, allocate=st.booleans())
    def zero(self, volume: VolumeId, offset: int, length: int, align: bool, allocate: bool) -> None:
        offset, length = self.span(volume, offset, length, align)
        run_inline(self.device(volume).zero(offset, length, allocate=allocate))
        self.live[volume].zero(offset, length, allocate=allocate)

    @rule(volume=volumes, offset=offsets, length=lengths, align=aligned, fast=st.booleans())
    def trim(self, volume: VolumeId, offset: int, length: int, align: bool, fast: bool) -> None:
        offset, length = self.span(volume, offset, length, align)
        self.trim_range(volume, offset, length, fast)

    @rule(volume=volumes, first=st.integers(0, 2), end=st.integers(1, 3), fast=st.booleans())
    def trim_leaves(self, volume: VolumeId, first: int, end: int, fast: bool) -> None:
        size = self.live[volume].size
        offset = first * MIB % size
        self.trim_range(volume, offset, max(min(end * MIB, size) - offset, 0), fast)

    def trim_range(self, volume: VolumeId, offset: int, length: int, fast: bool) -> None:
        device = self.device(volume)
        if not (fast and device.try_trim(offset, length)):
            run_inline(device.trim(offset, length))
        device.commit()
        self.live[volume].trim(offset, length)

    @rule(volume=volumes)
    def flush(self, volume: VolumeId) -> None:
        run_inline(self.device(volume).flush())

    @rule(volume=volumes)
    def checkpoint(self, volume: VolumeId) -> None:
        run_inline(self.device(volume).durability.checkpoint())

    # -- time passes -------------------------------------------------------------------------

    @rule()
    def work_in_background(self) -> None:
        self.background.run()

    @rule(volume=volumes)
    def rotate(self, volume: VolumeId) -> None:
        self.device(volume)
        with mock.patch.object(cells, "ROTATION_CELLS", cells.MAX_CELLS - 1):
            run_inline(self.pool.registry.rotate(volume))

    @rule(looks=st.sampled_from((0, 1, 2, 2)), steps=st.sampled_from((1, 2, 3, 20)))
    def settle(self, looks: int, steps: int) -> None:
        for _ in range(looks):
            run_inline(self.settler.look())
        for _ in range(steps):
            run_inline(self.settler.step())

    @rule(volume=volumes)
    def close_idle(self, volume: VolumeId) -> None:
        run_inline(self.pool.registry.close_idle_volume(volume))

    @rule()
    def reopen(self) -> None:
        run_inline(self.pool.close_all())
        self.background.run()
        self.pool.release()
        self.start()

    @rule()
    def be_killed(self) -> None:
        die(self.pool)
        self.start()

    # -- what must hold ----------------------------------------------------------------------

    def reader(self, node: int) -> Reader:
        if SnapshotId(node) in self.origin:
            opened = run_inline(self.pool.registry.use_snapshot(SnapshotId(node)))
            self.pool.registry.leave_snapshot(SnapshotId(node))
            return opened.snapshot
        return self.device(VolumeId(node))

    @rule(volume=volumes)
    def compare_volume(self, volume: VolumeId) -> None:
        self.compare(volume)

    @rule(snapshot=snapshots)
    def compare_snapshot(self, snapshot: SnapshotId) -> None:
        self.compare(snapshot)

    def compare(self, node: int) -> None:
        expected, device = self.live[node], self.reader(node)
        assert device.size_bytes == expected.size
        found = bytearray(expected.size)
        run_inline(device.read(0, memoryview(found)))
        assert found == expected.content
        assert all_extents(device) == expected.extents()

    # -- checksums ---------------------------------------------------------------------------

    @rule(batches=st.integers(1, 4))
    def read_frozen(self, batches: int) -> None:
        for _ in range(batches):
            run_inline(self.scrubber.read_on())

    @rule()
    def verify(self) -> None:
        assert not self.scrub()

    def scrub(self) -> tuple[DamagedBlock, ...]:
        run_inline(self.scrubber.begin_pass())
        while run_inline(self.scrubber.verify_on()).more:
            pass
        with self.pool.index.reading() as txn:
            return scrub_status(txn).damaged

    @rule(choice=st.integers(0, 1 << 20))
    def flip_a_bit(self, choice: int) -> None:
        """It is found, where it is, and whoever shows the block cannot read it until the bit is
        right again. All else is what it was."""
        for node in self.live:
            self.reader(node)  # so that the index knows what was written before a death
        for volume in list(self.pool.registry.volumes):
            run_inline(self.pool.registry.checkpoint(volume))
        with self.pool.index.reading() as txn:
            known = [
                (layer, number * LEAF_BLOCKS + block)
                for layer, number, sums in checksums.ROWS.rows_from(txn, LayerId(0), 0)
                if txn.get(LAYERS, id_key(layer)) is not None
                for block in sums
            ]
        if not known:
            return
        layer, block = known[choice % len(known)]
        path = self.pool.registry.store.layout.layer_segment(layer, 0)
        at = self.place(layer, block) * BLOCK_SIZE + choice % BLOCK_SIZE
        flip_bit(path, at)
        [damaged] = self.scrub()
        assert (damaged.layer, damaged.offset_bytes) == (layer, block * BLOCK_SIZE)
        with self.pool.registry.catalogue() as catalogue:
            shown = {int(v.id) for v in catalogue.volumes() if v.name in damaged.volumes}
            shown |= {int(s.id) for s in catalogue.snapshots() if s.name in damaged.snapshots}
        for node in self.live:
            assert self.unreadable(node) == ({block} if node in shown else set())
        flip_bit(path, at)
        assert not self.scrub()

    def place(self, layer: LayerId, block: int) -> int:
        """Where a block of a layer lies in its file, in blocks."""
        with self.pool.index.reading() as txn:
            if not Catalogue(txn).layer(layer).packed:
                return block
            number, at = divmod(block, LEAF_BLOCKS)
            return stored_cells(txn, layer, number)[at]

    def unreadable(self, node: int) -> set[int]:
        """The blocks whose reading fails; the others are compared."""
        expected, device = self.live[node], self.reader(node)
        failed = set()
        for block in range(expected.size // BLOCK_SIZE):
            found, at = bytearray(BLOCK_SIZE), block * BLOCK_SIZE
            try:
                run_inline(device.read(at, memoryview(found)))
            except DamagedError:
                failed.add(block)
            else:
                assert found == expected.content[at : at + BLOCK_SIZE]
        return failed

    @rule()
    def compare_space(self) -> None:
        run_inline(self.pool.registry.recover_volumes())
        one_by_one: set[NodeSpace] = set()
        for node, expected in self.live.items():
            others = {t for n, o in self.live.items() if n != node for t in o.tokens.values()}
            shared = sum(token in others for token in expected.tokens.values())
            exclusive = len(expected.tokens) - shared
            snapshot = SnapshotId(node) in self.origin
            kind = NodeKind.SNAPSHOT if snapshot else NodeKind.VOLUME
            found = run_inline(self.pool.measure(kind, node))
            assert found == Space(exclusive * BLOCK_SIZE, shared * BLOCK_SIZE)
            one_by_one.add(NodeSpace(kind, node, found))
        at_once = run_inline(measure_all(self.pool.registry, 0, lambda: False))
        assert at_once.next is None
        assert {one for one in at_once.spaces if one.kind is NodeKind.VOLUME} == {
            one for one in one_by_one if one.kind is NodeKind.VOLUME
        }

    @rule()
    def compare_shares(self) -> None:
        run_inline(self.pool.registry.recover_volumes())
        tokens: dict[bool, set[int]] = {True: set(), False: set()}
        for node, expected in self.live.items():
            tokens[SnapshotId(node) in self.origin].update(expected.tokens.values())
        shares = run_inline(measure_shares(self.pool.registry, frozenset()))
        assert shares.volumes_bytes == len(tokens[False]) * BLOCK_SIZE
        assert shares.snapshots_bytes == len(tokens[True] - tokens[False]) * BLOCK_SIZE
        assert shares.images_bytes == 0
        images = frozenset(map(SnapshotId, self.live)) & frozenset(self.origin)
        expected_shares = Shares(shares.volumes_bytes, 0, shares.snapshots_bytes)
        assert run_inline(measure_shares(self.pool.registry, images)) == expected_shares

    @invariant()
    def no_more_files_are_open_than_may_be(self) -> None:
        assert self.pool.registry.store.files.count <= self.most_open

    @invariant()
    def check_finds_nothing(self) -> None:
        report = check_open_pool(
            self.pool.registry.store, live=frozenset(self.pool.registry.volumes), repair=False
        )
        assert report.clean, report.problems
        assert report.hollow_blocks == 0


def all_extents(device: Reader) -> list[Extent]:
    """Every extent of a device, asked for in small portions."""
    found: list[Extent] = []
    offset = 0
    while offset < device.size_bytes:
        at_once = device.try_extents(offset, device.size_bytes - offset, 3)
        portion = run_inline(device.extents(offset, device.size_bytes - offset, 3))
        assert at_once in (None, portion)
        assert device.try_extents(offset, device.size_bytes - offset, 3) == portion
        assert 1 <= len(portion) <= 3
        for extent in portion:
            assert extent.offset_bytes == offset
            assert extent.length_bytes > 0
            offset += extent.length_bytes
            if found and found[-1].hole == extent.hole:
                last = found.pop()
                extent = Extent(
                    last.offset_bytes, last.length_bytes + extent.length_bytes, extent.hole
                )
            found.append(extent)
    assert offset == device.size_bytes
    return found


PoolMachine.TestCase.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    print_blob=True,
)
TestPool = PoolMachine.TestCase
