"""Where a volume holds data: found in memory, in bounded steps, and never older than it may be."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bockd.drivers.local.format.leaf import LEAF_BLOCKS, LEAF_BYTES, Leaf
from bockd.drivers.local.volume import extents, leafcache, loading
from bockd.drivers.local.volume.extents import ExtentWalk
from bockd.drivers.local.volume.leafcache import LeafCache
from bockd.drivers.local.volume.slots import HOLE_SLOT, LayerSlots
from bockd.drivers.local.volume.volume import Volume
from bockd.errors import DamagedError
from bockd.model import BLOCK_SIZE, GIB, MIB, Extent, LayerId
from bockd.runtime.steps import Blocking, run_inline
from tests.drivers.local.bench_pool import Bench, resume
from tests.drivers.local.process import die

GROUP_BYTES = leafcache.GROUP_LEAVES * MIB
SIZE_BYTES = 64 * GROUP_BYTES


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    run_inline(bench.pool.extend_volume(bench.volume, SIZE_BYTES))
    yield bench
    die(bench.pool)


def cold(bench: Bench) -> Volume:
    """The volume, with nothing of its map in memory."""
    run_inline(bench.pool.registry.close_idle_volume(bench.volume))
    return bench.device()


def write(bench: Bench, *groups: int) -> None:
    """One block, the third of some groups."""
    for group in groups:
        bench.write(group * GROUP_BYTES // BLOCK_SIZE + 2, b"D")


def data_in(group: int) -> Extent:
    return Extent(group * GROUP_BYTES + 2 * BLOCK_SIZE, BLOCK_SIZE, hole=False)


def hole(start: int, end: int) -> Extent:
    return Extent(start, end - start, hole=True)


def end_of(extent: Extent) -> int:
    return extent.offset_bytes + extent.length_bytes


def test_one_extent_loads_what_it_needs_and_is_in_memory_then(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leafcache, "_EAGER_SHARE", 0)
    write(bench, 0, 20, 40)
    device = cold(bench)
    assert device.try_extents(0, SIZE_BYTES, 1) is None

    before = hole(0, data_in(0).offset_bytes)
    assert run_inline(device.extents(0, SIZE_BYTES, 1)) == [before]
    assert device.map.missing(0, SIZE_BYTES // BLOCK_SIZE) == 20 * leafcache.GROUP_LEAVES
    assert device.try_extents(0, SIZE_BYTES, 1) == [before]
    assert device.try_extents(end_of(before), SIZE_BYTES - end_of(before), 1) == [data_in(0)]

    between = hole(end_of(data_in(0)), data_in(20).offset_bytes)
    asked = (between.offset_bytes, SIZE_BYTES - between.offset_bytes, 1)
    assert device.try_extents(*asked) is None
    assert run_inline(device.extents(*asked)) == device.try_extents(*asked) == [between]
    assert device.map.missing(0, SIZE_BYTES // BLOCK_SIZE) == 40 * leafcache.GROUP_LEAVES


def test_what_is_in_memory_asks_no_index(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    write(bench, 0, 5)
    device = cold(bench)
    found = run_inline(device.extents(0, SIZE_BYTES, 100))
    assert [extent for extent in found if not extent.hole] == [data_in(0), data_in(5)]
    assert end_of(found[-1]) == SIZE_BYTES
    monkeypatch.setattr(bench.pool.index, "reading", None)
    assert device.try_extents(0, SIZE_BYTES, 100) == found


def test_a_staged_write_and_a_trim_are_seen_at_once(bench: Bench) -> None:
    write(bench, 3)
    device = bench.device()
    run_inline(device.extents(0, SIZE_BYTES, 100))
    assert device.try_extents(0, 4096, 1) == [hole(0, 4096)]
    assert device.try_write(0, memoryview(b"N" * BLOCK_SIZE))
    assert device.try_extents(0, 8192, 2) == [Extent(0, 4096, hole=False), hole(4096, 8192)]
    device.commit()
    run_inline(device.trim(0, BLOCK_SIZE))
    run_inline(device.trim(data_in(3).offset_bytes, BLOCK_SIZE))
    assert device.try_extents(0, SIZE_BYTES, 2) == [hole(0, SIZE_BYTES)]


def test_a_leaf_stored_and_evicted_while_its_neighbours_load_is_no_hole(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index had nothing behind the group when it was asked; by the time of the answer there
    is something, which is not in memory any more."""
    write(bench, 0)
    device = cold(bench)
    asking = device.extents(data_in(0).offset_bytes, 2 * GROUP_BYTES, 3)
    step = asking.send(None)
    assert isinstance(step, Blocking)
    loaded = step.call()
    write(bench, 1)
    monkeypatch.setattr(leafcache, "CACHE_BYTES", 0)
    run_inline(device.durability.checkpoint())
    assert device.map.find(leafcache.GROUP_LEAVES) is None
    resume(asking, loaded)
    assert data_in(1) in run_inline(device.extents(GROUP_BYTES, GROUP_BYTES, 3))


def test_what_the_index_does_not_have_yet_is_no_hole(bench: Bench) -> None:
    """Looking ahead of a group, it has nothing of the next one, which is in memory."""
    write(bench, 0)
    device = cold(bench)
    write(bench, 1)
    found = run_inline(device.extents(0, 2 * GROUP_BYTES, 100))
    assert [extent for extent in found if not extent.hole] == [data_in(0), data_in(1)]


def test_a_damaged_index_is_met_where_it_is_needed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking ahead is not asking."""
    write(bench, 0, 30)
    device = cold(bench)

    def lost(*_: object) -> int:
        raise DamagedError("for a test")

    monkeypatch.setattr(loading, "first_leaves", lost)
    assert end_of(run_inline(device.extents(0, SIZE_BYTES, 2))[-1]) == end_of(data_in(0))


def test_an_answer_is_bounded_work_and_clients_ask_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(bench, 0, 5, 63)
    device = cold(bench)
    whole = run_inline(device.extents(0, SIZE_BYTES, 100))
    assert end_of(whole[-1]) == SIZE_BYTES
    monkeypatch.setattr(extents, "WALK_STEPS", 10)
    found, offset, asked = list[Extent](), 0, 0
    while offset < SIZE_BYTES:
        part = device.try_extents(offset, SIZE_BYTES - offset, 100)
        assert part
        asked += 1
        if found and found[-1].hole == part[0].hole:
            part[0] = hole(found.pop().offset_bytes, end_of(part[0]))
        found += part
        offset = end_of(found[-1])
    assert found == whole
    assert asked > 5


@pytest.mark.parametrize("filled", [0, 16 * 1024 * GIB], ids=["empty", "full"])
def test_a_range_larger_than_memory_is_answered_in_part(
    filled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not after a look at 262,144 groups. Of one that is all the same not each leaf is looked at
    again, so that the next walk comes further."""
    monkeypatch.setattr(extents, "WALK_STEPS", 512)
    cache = LeafCache(LayerSlots())
    for group in range(256 * GIB // GROUP_BYTES):
        cache.install(group, {}, {}, {})
        if filled:
            for number in cache.leaves_of(group):
                cache.replace(number, cache.uniform(2), 1)
    reached = []
    for _ in range(3):
        walk = ExtentWalk(cache, 0, 16 * 1024 * GIB, 1)
        assert walk.go_on() is None
        [extent] = walk.extents
        assert extent.hole is not bool(filled)
        reached.append(extent.length_bytes)
    assert GIB <= reached[0] <= reached[2] <= 256 * GIB
    assert reached[2] >= (2 * reached[0] if filled else 100 * GIB)


class Mapped:
    """A map of four groups: in a cache, in an index of its own, and as a plain list of what each
    leaf's sixteen parts are in. Layers are known by their slots."""

    PARTS = 16
    GROUPS = 4

    def __init__(self) -> None:
        self.cache = LeafCache(LayerSlots())
        for slot in (2, 3):
            layer: Any = SimpleNamespace(id=LayerId(slot))
            assert self.cache._layers.add(layer) == slot
        self.stored: dict[int, Leaf] = {}
        self.parts = [HOLE_SLOT] * (self.GROUPS * leafcache.GROUP_LEAVES * self.PARTS)
        self.changes = 0

    def assign(self, first: int, count: int, slot: int) -> None:
        end = min(first + count, len(self.parts))
        blocks = LEAF_BLOCKS // self.PARTS
        while (number := self.cache.missing(first * blocks, end * blocks)) is not None:
            self.load(number)
        self.changes += 1
        self.cache.assign(first * blocks, end * blocks, slot, self.changes)
        self.parts[first:end] = [slot] * (end - first)

    def assign_blocks(self, part: int, slot: int, *, in_lane: bool) -> None:
        """As random writes do, in the fast lane and without it."""
        blocks, number = LEAF_BLOCKS // self.PARTS, part // self.PARTS
        if self.cache.find(number) is None:
            self.load(number)
        self.changes += 1
        for block in range(part * blocks, (part + 1) * blocks):
            if in_lane:
                leaf = self.cache.own(number)
                assert leaf is not None
                leaf[block % LEAF_BLOCKS] = slot
                self.cache.dirty[number] = self.changes
            else:
                self.cache.assign_one(block, slot, self.changes)
        self.parts[part] = slot

    def assign_in_lane(self, part: int, slot: int) -> None:
        self.assign_blocks(part, slot, in_lane=True)

    def assign_in_python(self, part: int, slot: int) -> None:
        self.assign_blocks(part, slot, in_lane=False)

    def load(self, number: int) -> None:
        group = self.cache.group_of(number)
        leaves = {n: self.stored[n] for n in self.cache.leaves_of(group) if n in self.stored}
        self.cache.install(group, leaves, {}, {})

    def store(self) -> None:
        """Bring all into the index, and evict what the budget has no room for."""
        for number in self.cache.dirty:
            leaf = self.cache.leaves[number]
            self.stored[number] = Leaf.of(leaf)
            if self.stored[number].is_hole():
                del self.stored[number]
        self.cache.mark_clean(self.changes)

    def walk(self, offset: int, length: int, limit: int) -> list[Extent]:
        walk = ExtentWalk(self.cache, offset, length, limit)
        while (number := walk.go_on()) is not None:
            self.load(number)
        return walk.extents

    def expected(self, offset: int, length: int, limit: int) -> list[Extent]:
        size = LEAF_BYTES // self.PARTS
        found, at, stop = list[Extent](), 0, offset + length
        for is_hole, run in groupby(slot == HOLE_SLOT for slot in self.parts):
            end = at + len(list(run)) * size
            start, until = max(at, offset), min(end, stop)
            if start < until:
                found.append(Extent(start, until - start, is_hole))
            at = end
        return found[:limit]


def evict(mapped: Mapped) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leafcache, "CACHE_BYTES", 0)
        mapped.store()


def test_what_changed_while_a_walk_waits_is_not_remembered_as_it_was() -> None:
    """One leaf is in memory and the rest of its group is not; the leaf is trimmed meanwhile."""
    mapped = Mapped()
    mapped.assign(0, GROUP_PARTS, 2)
    evict(mapped)
    mapped.assign(0, 1, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leafcache, "CACHE_BYTES", 0)
        mapped.cache.mark_clean(mapped.changes - 1)
    walk = ExtentWalk(mapped.cache, 0, BYTES, 1)
    assert walk.go_on() == 1
    mapped.assign(0, Mapped.PARTS, HOLE_SLOT)
    mapped.load(1)
    while (number := walk.go_on()) is not None:
        mapped.load(number)
    assert mapped.walk(0, BYTES, 2) == mapped.expected(0, BYTES, 2)


def test_nothing_is_remembered_of_what_left_memory() -> None:
    mapped = Mapped()
    mapped.assign(0, GROUP_PARTS, 2)
    mapped.walk(0, BYTES, 1000)
    assert [mapped.cache.kind(group) for group in (0, 1)] == [False, True]
    evict(mapped)
    assert [mapped.cache.kind(group) for group in (0, 1)] == [None, None]


PARTS = Mapped.GROUPS * leafcache.GROUP_LEAVES * Mapped.PARTS
GROUP_PARTS = leafcache.GROUP_LEAVES * Mapped.PARTS
BYTES = Mapped.GROUPS * GROUP_BYTES
places = st.one_of(
    st.integers(0, PARTS - 1),
    st.integers(0, Mapped.GROUPS - 1).map(lambda group: group * GROUP_PARTS),
)
counts = st.sampled_from([1, Mapped.PARTS, GROUP_PARTS, GROUP_PARTS, 2 * GROUP_PARTS, PARTS])
slots = st.sampled_from([HOLE_SLOT, HOLE_SLOT, 2, 3])
ranges = st.one_of(
    st.just((0, BYTES)),
    st.tuples(st.integers(0, BYTES - 1), st.integers(1, BYTES)).map(
        lambda pair: (pair[0], min(pair[1], BYTES - pair[0]))
    ),
)
steps = st.one_of(
    st.tuples(st.just("assign"), places, counts, slots),
    st.tuples(
        st.sampled_from(["assign_in_lane", "assign_in_python"]), places, st.sampled_from([2, 3])
    ),
    st.tuples(st.just("store"), st.booleans()),
    st.tuples(st.just("walk"), ranges, st.sampled_from([1, 2, 3, 1000])),
)


@example([("walk", (0, BYTES), 1), ("assign_in_lane", 0, 2)])
@example([("assign", 0, 1, HOLE_SLOT), ("walk", (0, BYTES), 1), ("assign_in_python", 0, 2)])
@given(st.lists(steps, max_size=30))
def test_a_walk_finds_what_the_map_says(history: list[tuple[Any, ...]]) -> None:
    """However leaves became what they are, and whatever earlier walks have remembered of groups."""
    mapped = Mapped()
    for name, *arguments in history:
        if name == "walk":
            (offset, length), limit = arguments
            assert mapped.walk(offset, length, limit) == mapped.expected(offset, length, limit)
        elif name == "store":
            if arguments[0]:
                evict(mapped)
            else:
                mapped.store()
        else:
            getattr(mapped, name)(*arguments)
    assert mapped.walk(0, BYTES, 1000) == mapped.expected(0, BYTES, 1000)
