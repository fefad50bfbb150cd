"""Reading packed layers that were made by hand, below a raw head and in snapshots."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from bockd.drivers.local.format import cells, checksums
from bockd.drivers.local.format.catalogue import Catalogue
from bockd.drivers.local.format.leaf import LEAF_BLOCKS
from bockd.drivers.local.integrity import scrub
from bockd.drivers.local.integrity.check import check_open_pool
from bockd.drivers.local.integrity.damage import scrub_status
from bockd.drivers.local.integrity.scrub import Scrubber
from bockd.drivers.local.pool import LocalPool
from bockd.drivers.local.volume import leafcache
from bockd.drivers.local.volume.reading import Reader
from bockd.drivers.local.volume.runs import find_runs
from bockd.drivers.local.volume.volume import Volume
from bockd.errors import DamagedBlockError, DamagedError
from bockd.model import BLOCK_SIZE, MIB, LayerId, SnapshotId, VolumeId
from bockd.pool.reports import DamagedBlock
from bockd.runtime.steps import Background, run_inline
from tests.drivers.local.bitflip import flip_bit
from tests.drivers.local.packing import pack_layer
from tests.drivers.local.process import die

SIZE = 4 * MIB
BLOCKS = SIZE // BLOCK_SIZE


class Stack:
    """A volume with two snapshots, whose layers are packed, and some blocks in its raw head."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.random = Random(5)
        self.background = Background()
        self.content = bytearray(SIZE)
        self.pool = LocalPool.open(root, self.background.spawn)
        self.pool.registry.pack = lambda: False  # layers are packed by hand
        self.volume = VolumeId(run_inline(self.pool.create_volume("v", SIZE)).id)
        self.scribble(range(300, 700))
        self.scribble(self.random.sample(range(BLOCKS), 300))
        self.older = self.snapshot("older")
        self.first = bytes(self.content)
        self.scribble(self.random.sample(range(BLOCKS), 300))
        self.scribble(range(LEAF_BLOCKS, 2 * LEAF_BLOCKS))
        self.trim(20, 30)
        self.newer = self.snapshot("newer")
        self.second = bytes(self.content)
        self.scribble(self.random.sample(range(BLOCKS), 100))
        run_inline(self.pool.close_all())
        die(self.pool)
        self.pool = LocalPool.open(root, self.background.spawn)
        self.pool.registry.pack = lambda: False  # layers are packed by hand

    def device(self) -> Volume:
        return run_inline(self.pool.registry.use_volume(self.volume)).volume

    def scribble(self, blocks: range | list[int]) -> None:
        """Write single blocks, each with something of its own."""
        device = self.device()
        for block in blocks:
            self.write(device, block * BLOCK_SIZE, self.random.randbytes(16) * (BLOCK_SIZE // 16))

    def write(self, device: Volume, offset: int, data: bytes) -> None:
        run_inline(device.write(offset, memoryview(data)))
        self.content[offset : offset + len(data)] = data

    def trim(self, first: int, count: int) -> None:
        run_inline(self.device().trim(first * BLOCK_SIZE, count * BLOCK_SIZE))
        start, end = first * BLOCK_SIZE, (first + count) * BLOCK_SIZE
        self.content[start:end] = bytes(end - start)

    def snapshot(self, name: str) -> SnapshotId:
        return SnapshotId(run_inline(self.pool.create_snapshot(self.volume, name)).id)

    def layer_of(self, snapshot: SnapshotId) -> LayerId:
        with self.pool.registry.catalogue() as catalogue:
            [layer] = catalogue.layers_of(catalogue.snapshot(snapshot).map)
        return layer

    def pack(self) -> None:
        for snapshot in (self.older, self.newer):
            layer = self.layer_of(snapshot)
            pack_layer(self.pool.registry.store, layer, self.random, strays=True)

    def check(self) -> None:
        live = frozenset(self.pool.registry.volumes)
        report = check_open_pool(self.pool.registry.store, live=live, repair=False)
        assert report.problems == ()


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    made = Stack(tmp_path / "pool")
    made.pack()
    yield made
    die(made.pool)


def read(device: Reader, offset: int, length: int) -> bytes:
    """From memory if it is there, otherwise in a thread."""
    into = memoryview(bytearray(length))
    if not device.try_read(offset, into):
        run_inline(device.read(offset, into))
    return bytes(into)


def everything(device: Reader) -> bytes:
    return b"".join(read(device, offset, BLOCK_SIZE) for offset in range(0, SIZE, BLOCK_SIZE))


def test_blocks_are_read_from_their_cells(stack: Stack) -> None:
    """One by one, in ranges of any alignment, and from the disk."""
    shown: list[tuple[Reader, bytes]] = [
        (stack.device(), bytes(stack.content)),
        (run_inline(stack.pool.registry.use_snapshot(stack.newer)).snapshot, stack.second),
        (run_inline(stack.pool.registry.use_snapshot(stack.older)).snapshot, stack.first),
    ]
    for device, content in shown:
        assert everything(device) == content
        assert everything(device) == content  # all of it in memory
        for _ in range(200):
            offset = stack.random.randrange(0, SIZE - 1)
            length = min(SIZE - offset, stack.random.choice((1, 700, 5000, 60_000, MIB)))
            assert read(device, offset, length) == content[offset : offset + length]
        into = memoryview(bytearray(SIZE))
        run_inline(device.read(0, into))
        assert bytes(into) == content
        run_inline(device.cache(0, SIZE))


def test_leaves_come_and_go_with_their_cells(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leafcache, "CACHE_BYTES", 0)
    monkeypatch.setattr(leafcache, "GROUP_LEAVES", 1)
    device = stack.device()
    for _ in range(3):
        assert everything(device) == stack.content
        assert device.map.cells.keys() <= device.map.leaves.keys()
    assert device.map.drops > 4
    assert len(device.map.cells) < 3


def test_cells_count_for_the_budget(stack: Stack) -> None:
    device = stack.device()
    assert everything(device) == stack.content
    assert set(device.map.cells) == set(range(BLOCKS // LEAF_BLOCKS))
    weight = device.map._weight()
    device.map.cells.popitem()
    assert weight - device.map._weight() == leafcache._CELLS_BYTES >= 4 * LEAF_BLOCKS


def test_a_raw_head_is_written_over_packed_layers(stack: Stack) -> None:
    """Whole blocks, parts of blocks, which are completed from cells, and holes."""
    for _ in range(4):
        device = stack.device()
        for _ in range(60):
            offset = stack.random.randrange(0, SIZE - 9000)
            length = stack.random.choice((1, 100, 4096, 9000))
            stack.write(device, offset, stack.random.randbytes(length))
        stack.trim(stack.random.randrange(0, 900), 100)
        assert everything(device) == stack.content
        run_inline(device.durability.checkpoint())
        stack.background.run()
        stack.check()
        run_inline(stack.pool.registry.close_volume(stack.volume, give_up=False))
    assert everything(stack.device()) == stack.content


def test_leaves_that_lead_nowhere_packed_lose_their_cells(stack: Stack) -> None:
    device = stack.device()
    assert everything(device) == stack.content
    stack.write(device, 0, stack.random.randbytes(MIB))
    stack.trim(LEAF_BLOCKS, LEAF_BLOCKS)
    assert not device.map.cells.keys() & {0, 1}
    assert everything(device) == stack.content


class Scrubbing:
    """The stack, with checksums of all that is frozen."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.scrubber = Scrubber(stack.pool.registry)
        while run_inline(self.scrubber.read_on()).more:
            pass

    def verify_all(self) -> list[DamagedBlock]:
        run_inline(self.scrubber.begin_pass())
        while run_inline(self.scrubber.verify_on()).more:
            pass
        with self.stack.pool.index.reading() as txn:
            return list(scrub_status(txn).damaged)

    def victim(self) -> tuple[LayerId, int, int]:
        """A layer, a block that the snapshot `older` has there, and its cell."""
        layer = self.stack.layer_of(self.stack.older)
        with self.stack.pool.index.reading() as txn:
            number, row = next(cells.ROWS.rows_of(txn, layer))
        block = next(block for block, cell in row.items() if cell != number * LEAF_BLOCKS + block)
        return layer, number * LEAF_BLOCKS + block, row[block]

    def flip(self, layer: LayerId, cell: int) -> None:
        path = self.stack.pool.registry.store.layout.layer_segment(layer, 0)
        flip_bit(path, cell * BLOCK_SIZE + 1000)


@pytest.mark.parametrize("batch", [1, 16])
def test_a_scrub_reads_blocks_in_their_cells(
    stack: Stack,
    batch: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Checksums are of what the snapshots show; a bit that flips in a cell is a damaged block."""
    monkeypatch.setattr(scrub, "BATCH_LEAVES", batch)
    scrubbing = Scrubbing(stack)
    with stack.pool.index.reading() as txn:
        for of, content in ((stack.older, stack.first), (stack.newer, stack.second)):
            rows = cells.ROWS.rows_of(txn, stack.layer_of(of))
            shown = {n * LEAF_BLOCKS + block for n, row in rows for block in row}
            sums = checksums.ROWS.rows_of(txn, stack.layer_of(of))
            known = {n * LEAF_BLOCKS + b: crc for n, row in sums for b, crc in row.items()}
            assert known.keys() == shown
            for block, crc in known.items():
                at = block * BLOCK_SIZE
                assert crc == checksums.crc_of(memoryview(content[at : at + BLOCK_SIZE]))
    stack.check()
    assert scrubbing.verify_all() == []
    layer, block, cell = scrubbing.victim()
    scrubbing.flip(layer, cell)
    [damaged] = scrubbing.verify_all()
    assert (damaged.layer, damaged.offset_bytes) == (layer, block * BLOCK_SIZE)
    said = f"byte {cell * BLOCK_SIZE} of layer {layer} differs from what it held: it is at byte "
    assert f"{said}{block * BLOCK_SIZE} of " in caplog.text
    older = run_inline(stack.pool.registry.use_snapshot(stack.older)).snapshot
    with pytest.raises(DamagedError):
        read(older, block * BLOCK_SIZE, BLOCK_SIZE)
    scrubbing.flip(layer, cell)
    assert scrubbing.verify_all() == []
    at = block * BLOCK_SIZE
    assert read(older, at, BLOCK_SIZE) == stack.first[at : at + BLOCK_SIZE]


@pytest.mark.parametrize("part", [0, 700])
def test_what_a_client_is_given_from_a_cell_is_verified(stack: Stack, part: int) -> None:
    scrubbing = Scrubbing(stack)
    layer, block, cell = scrubbing.victim()
    older = run_inline(stack.pool.registry.use_snapshot(stack.older)).snapshot
    scrubbing.flip(layer, cell)
    run_inline(older.loader.load(block, block + 1))  # so that the data is read by a thread
    into = memoryview(bytearray(BLOCK_SIZE - part))
    with pytest.raises(DamagedBlockError) as caught:
        run_inline(older.read(block * BLOCK_SIZE + part, into))
    assert (caught.value.layer, caught.value.block) == (layer, block)


@pytest.mark.parametrize("how", ["a cell", "a row"])
def test_a_block_whose_cell_is_unknown_is_refused(stack: Stack, how: str) -> None:
    """Never read from some other place."""
    layer = stack.layer_of(stack.newer)
    with stack.pool.index.reading() as txn:
        number, row = next(cells.ROWS.rows_of(txn, layer))
    left = {} if how == "a row" else dict(list(row.items())[1:])
    stack.pool.index.update(lambda txn: cells.ROWS.put(txn, layer, number, left))
    device = run_inline(stack.pool.registry.use_snapshot(stack.newer)).snapshot
    at = (number * LEAF_BLOCKS + min(row)) * BLOCK_SIZE
    with pytest.raises(DamagedError, match="does not say where all blocks of leaf 0 lie"):
        read(device, at, BLOCK_SIZE)


def test_a_run_ends_where_cells_do_not_follow_each_other(tmp_path: Path) -> None:
    stack = Stack(tmp_path / "pool")
    layer = stack.layer_of(stack.older)
    with stack.pool.index.reading() as txn:
        assert not Catalogue(txn).layer(layer).packed
    snapshot = run_inline(stack.pool.registry.use_snapshot(stack.older)).snapshot
    run_inline(snapshot.loader.load(300, 700))
    [(first, end, _, cell)] = find_runs(snapshot.map, 300, 700)
    assert (first, end, cell) == (300, 700, 300)
    run_inline(stack.pool.registry.close_all())
    packed = pack_layer(stack.pool.registry.store, layer, stack.random)
    snapshot = run_inline(stack.pool.registry.use_snapshot(stack.older)).snapshot
    run_inline(snapshot.loader.load(300, 700))
    runs = find_runs(snapshot.map, 300, 700)
    blocks = {b: cell + b - first for first, end, _, cell in runs for b in range(first, end)}
    assert blocks == {b: packed[b] for b in range(300, 700)}
    for (_, end, _, _), (first, _, _, following) in pairwise(runs):
        assert end == first
        assert packed[end - 1] + 1 != following
    die(stack.pool)
