"""Writing to packed heads: where new blocks come to lie, and what comes of emptied cells."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bockd.drivers.local.format.catalogue import Catalogue
from bockd.drivers.local.format.layer import Layer
from bockd.drivers.local.integrity.check import check_open_pool
from bockd.drivers.local.pool import LocalPool
from bockd.drivers.local.volume import cells, leafcache, packedwrites
from bockd.errors import NoSpaceError
from bockd.model import BLOCK_SIZE, VolumeId
from bockd.runtime.steps import run_inline
from tests.drivers.local.bench_pool import SIZE, Bench, stepwise
from tests.drivers.local.process import die

BLOCKS = SIZE // BLOCK_SIZE


class PackedBench(Bench):
    """A volume whose blocks all hold "o" in a snapshot's raw layer, and whose head is packed."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.expected = [b"o"] * BLOCKS
        self.pool.registry.pack = lambda: True
        self.write(0, b"o", BLOCKS)
        self.snapshot("s")
        self.volume_id = self.volume

    def put(self, block: int, value: bytes, count: int = 1) -> None:
        self.write(block, value, count)
        self.expected[block : block + count] = [value] * count

    def try_put(self, block: int, value: bytes, count: int = 1) -> None:
        device = self.device()
        assert device.try_write(block * BLOCK_SIZE, memoryview(value * BLOCK_SIZE * count))
        device.commit()
        self.expected[block : block + count] = [value] * count

    def trim(self, block: int, count: int = 1) -> None:
        run_inline(self.device().trim(block * BLOCK_SIZE, count * BLOCK_SIZE))
        self.expected[block : block + count] = [b"\0"] * count

    def checkpoint(self) -> None:
        run_inline(self.device().durability.checkpoint())

    def punch(self) -> None:
        self.background.run()

    def cells(self) -> bytes:
        """What lies in the head, a byte for each cell."""
        head = self.device().durability.head
        path = self.pool.registry.store.layout.layer_segment(head.id, 0)
        content = path.read_bytes()
        assert not len(content) % BLOCK_SIZE
        return content[::BLOCK_SIZE]

    def verify(self) -> None:
        """Content, and the pool."""
        found = bytearray(SIZE)
        run_inline(self.device().read(0, memoryview(found)))
        for block, value in enumerate(self.expected):
            assert found[block * BLOCK_SIZE : (block + 1) * BLOCK_SIZE] == value * BLOCK_SIZE, block
        report = check_open_pool(
            self.pool.registry.store, live=frozenset(self.pool.registry.volumes), repair=False
        )
        assert report.clean, report.problems

    def reopen(self, *, killed: bool = False) -> None:
        root = self.pool.registry.store.layout.root
        if killed:
            die(self.pool)
        else:
            run_inline(self.pool.close_all())
            self.pool.release()
        self.background = type(self.background)()
        self.pool = LocalPool.open(root, self.background.spawn)
        self.pool.registry.pack = lambda: True

    def is_packed(self, volume: VolumeId) -> bool:
        with self.pool.nodes() as catalogue:
            return catalogue.layer(catalogue.volume(volume).head).packed


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[PackedBench]:
    bench = PackedBench(tmp_path)
    yield bench
    bench.verify()
    bench.reopen()
    bench.verify()
    die(bench.pool)


def test_new_blocks_lie_one_behind_the_other(bench: PackedBench) -> None:
    bench.try_put(300, b"a")
    bench.put(7, b"b", 3)
    bench.try_put(100, b"c")
    bench.put(511, b"d")
    assert bench.cells() == b"abbbcd"


def test_block_that_the_head_holds_is_overwritten_in_its_cell(bench: PackedBench) -> None:
    bench.try_put(300, b"a")
    bench.put(7, b"b", 3)
    bench.try_put(8, b"x")
    bench.put(300, b"y")
    assert bench.cells() == b"ybxb"


def test_write_is_split_as_the_head_holds_its_blocks(bench: PackedBench) -> None:
    for block in (2, 9, 5):
        bench.put(block, b"h")
    bench.put(0, b"w", 10)
    assert bench.cells() == b"wwwwwwwwww"
    bench.try_put(0, b"v", 12)
    assert bench.cells() == b"vvvvvvvvvvvv"


def test_partial_blocks_are_completed_in_their_new_cells(bench: PackedBench) -> None:
    device = bench.device()
    data = b"x" * (2 * BLOCK_SIZE)
    run_inline(device.write(3 * BLOCK_SIZE + 100, memoryview(data)))
    assert device.try_write(20 * BLOCK_SIZE + 7, memoryview(b"y"))
    device.commit()
    found = bytearray(3 * BLOCK_SIZE)
    run_inline(device.read(3 * BLOCK_SIZE, memoryview(found)))
    assert found == b"o" * 100 + data + b"o" * (BLOCK_SIZE - 100)
    run_inline(device.read(20 * BLOCK_SIZE, memoryview(found)))
    assert found == b"o" * 7 + b"y" + b"o" * (3 * BLOCK_SIZE - 8)
    bench.put(3, b"z", 3)
    bench.put(20, b"z")
    assert bench.cells() == b"zzzz"


def test_trimmed_block_gets_another_cell(bench: PackedBench) -> None:
    bench.put(5, b"a")
    bench.trim(5)
    bench.put(5, b"b")
    bench.punch()
    assert bench.cells() == b"\0b"


def test_cells_are_used_again_after_the_checkpoint_that_follows_the_punch(
    bench: PackedBench,
) -> None:
    bench.put(0, b"a", 40)
    bench.trim(0, 40)
    bench.checkpoint()  # nothing is punched yet
    bench.punch()
    bench.put(100, b"b")
    bench.checkpoint()
    bench.put(200, b"c", 3)
    assert bench.cells() == b"ccc" + b"\0" * 37 + b"b"


def test_whole_groups_that_are_not_in_memory_give_their_cells_back(
    bench: PackedBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leafcache, "GROUP_LEAVES", 1)
    bench.put(10, b"a", 300)
    bench.reopen()
    bench.put(300, b"b")  # its leaf is in memory then, and the other one is not
    bench.trim(0, BLOCKS)
    bench.punch()
    assert not bench.cells().strip(b"\0")
    bench.checkpoint()
    bench.put(200, b"c", 300)
    assert bench.cells() == b"c" * 300


def test_zeros_that_keep_their_space_are_allocated_in_cells(
    bench: PackedBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for block in (3, 50, 8):
        bench.put(block, b"a")
    run_inline(bench.device().zero(2 * BLOCK_SIZE, 50 * BLOCK_SIZE, allocate=True))
    bench.expected[2:52] = [b"\0"] * 50
    assert bench.cells() == b"\0" * 50
    bench.put(51, b"b")
    bench.put(100, b"c")
    assert bench.cells().rstrip(b"\0").endswith(b"c")
    assert len(bench.cells()) == 51


def test_write_that_fails_half_way_leaves_no_data(
    bench: PackedBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.put(1, b"a")
    with monkeypatch.context() as patch:
        real = Layer.write_buffers

        def fail(self: Layer, offset: int, buffers: list[memoryview], piece_bytes: int) -> None:
            real(self, offset, [buffers[0][:BLOCK_SIZE]], piece_bytes)
            raise OSError(errno.ENOSPC, "full")

        patch.setattr(Layer, "write_buffers", fail)
        with pytest.raises(NoSpaceError):
            run_inline(bench.device().write(20 * BLOCK_SIZE, memoryview(b"x" * 4 * BLOCK_SIZE)))
    bench.put(30, b"b")
    bench.punch()
    assert bench.cells() == b"a\0\0\0\0b"


def test_new_cells_lie_behind_what_a_death_has_left(bench: PackedBench) -> None:
    bench.put(1, b"a")
    head = bench.device().durability.head
    os.pwrite(head.descriptors[0], b"x" * BLOCK_SIZE, 3 * BLOCK_SIZE)
    bench.reopen(killed=True)
    bench.put(2, b"b")
    assert bench.cells() == b"a\0\0xb"
    bench.punch()
    assert bench.cells() == b"a\0\0\0b"


def test_sweep_leaves_what_is_named_and_what_is_used_again(
    bench: PackedBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.put(0, b"a", 40)
    bench.put(100, b"k")
    head = bench.device().durability.head
    os.pwrite(head.descriptors[0], b"x" * BLOCK_SIZE, 44 * BLOCK_SIZE)
    bench.reopen(killed=True)
    device = bench.device()
    sweep = device.heads._sweep
    assert sweep is not None
    steps = stepwise(sweep.run())
    next(steps)  # the head is about to be opened
    bench.trim(0, 40)
    run_inline(device.heads.finish_punching())
    bench.put(200, b"n")
    bench.checkpoint()
    bench.put(300, b"u", 20)
    for _ in steps:
        pass
    assert bench.cells() == b"u" * 20 + b"\0" * 20 + b"k\0\0\0\0n"


def test_full_head_is_rotated(bench: PackedBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "MAX_CELLS", 100)
    monkeypatch.setattr(cells, "ROTATION_CELLS", 50)
    monkeypatch.setattr(packedwrites, "PIECE_CELLS", 40)
    first = bench.device().durability.head.id
    for start in range(0, 400, 40):
        bench.put(start, bytes([65 + start // 40]), 40)
    assert bench.device().durability.head.id != first
    with bench.pool.nodes() as catalogue:
        record = catalogue.volume(bench.volume)
        homed = Catalogue(catalogue.txn).layers_of(record.map)
        assert len(homed) > 3
    bench.put(30, b"z", 20)
    bench.checkpoint()
    bench.punch()


def test_rotation_is_wanted_before_the_head_is_full(
    bench: PackedBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "MAX_CELLS", 1000)
    monkeypatch.setattr(cells, "ROTATION_CELLS", 950)
    first = bench.device().durability.head.id
    bench.put(0, b"a", 60)
    bench.checkpoint()
    bench.background.run()
    assert bench.device().durability.head.id != first
    bench.put(10, b"b", 60)
    assert bench.cells() == b"b" * 60


def test_heads_of_snapshots_clones_and_reverts_are_packed(bench: PackedBench) -> None:
    bench.put(1, b"a")
    snapshot = bench.snapshot("t")
    clone = run_inline(bench.pool.create_volume("clone", None, snapshot)).id
    blank = run_inline(bench.pool.create_volume("blank", SIZE)).id
    assert bench.is_packed(clone)
    assert not bench.is_packed(VolumeId(blank))
    bench.put(2, b"b")
    run_inline(bench.pool.revert_volume(bench.volume, snapshot))
    bench.expected[2] = b"o"
    assert bench.is_packed(bench.volume)
    bench.pool.registry.pack = lambda: False
    bench.snapshot("u")
    assert not bench.is_packed(bench.volume)
    bench.put(3, b"c")


def test_volume_with_a_packed_head_grows(bench: PackedBench) -> None:
    bench.put(500, b"a")
    run_inline(bench.pool.extend_volume(bench.volume, 2 * SIZE))
    device = bench.device()
    assert device.try_write(2 * SIZE - BLOCK_SIZE, memoryview(b"z" * BLOCK_SIZE))
    device.commit()
    assert bench.cells() == b"az"
    run_inline(bench.pool.registry.close_idle_volume(bench.volume))
    run_inline(bench.pool.extend_volume(bench.volume, 3 * SIZE))
