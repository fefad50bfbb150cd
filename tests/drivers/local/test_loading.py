"""What a load brings in beside what was asked for: never anything that is older than the memory."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bockd.drivers.local.format.blockmap import first_leaves
from bockd.drivers.local.format.leaf import LEAF_BLOCKS, LEAVES, leaf_key
from bockd.drivers.local.volume import leafcache, loading
from bockd.drivers.local.volume.volume import Volume
from bockd.drivers.memory.index import MemoryIndex
from bockd.errors import DamagedError
from bockd.model import BLOCK_SIZE, MIB, MapId
from bockd.pool.index import Transaction
from bockd.runtime.steps import Blocking, run_inline
from tests.drivers.local.bench_pool import Bench, resume
from tests.drivers.local.process import die

LEAVES_OF_VOLUME = 32


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A volume of 32 leaves, each a group of its own."""
    monkeypatch.setattr(leafcache, "GROUP_LEAVES", 1)
    bench = Bench(tmp_path)
    run_inline(bench.pool.extend_volume(bench.volume, LEAVES_OF_VOLUME * MIB))
    yield bench
    die(bench.pool)


def write(bench: Bench, *numbers: int, value: bytes = b"A") -> None:
    """The first block of some leaves."""
    for number in numbers:
        bench.write(number * LEAF_BLOCKS, value)


def cold(bench: Bench) -> Volume:
    """The volume with nothing of its map in memory."""
    run_inline(bench.pool.registry.close_idle_volume(bench.volume))
    bench.background.run()
    return bench.device()


def read(device: Volume, number: int) -> None:
    run_inline(device.read(number * MIB, memoryview(bytearray(BLOCK_SIZE))))


def block(bench: Bench, number: int) -> bytes:
    return bench.block(bench.volume, number * LEAF_BLOCKS)


def begin_load(device: Volume, number: int) -> Callable[[], None]:
    """Load a leaf, up to where the index has answered. The result goes on."""
    loading = device.loader.load(number * LEAF_BLOCKS, number * LEAF_BLOCKS + 1)
    step = loading.send(None)
    assert isinstance(step, Blocking)
    loaded = step.call()
    return lambda: resume(loading, loaded)


def test_an_empty_volume_is_known_after_one_load(bench: Bench) -> None:
    device = cold(bench)
    read(device, 0)
    assert device.map.missing(0, LEAVES_OF_VOLUME * LEAF_BLOCKS) is None
    assert not device.map.leaves
    assert device.map.kind(LEAVES_OF_VOLUME) is None  # there is nothing behind the end


def test_a_volume_that_has_grown_is_known_to_its_new_end(bench: Bench) -> None:
    device = cold(bench)
    run_inline(bench.pool.extend_volume(bench.volume, (LEAVES_OF_VOLUME + 5) * MIB))
    read(device, 0)
    assert device.map.missing(0, (LEAVES_OF_VOLUME + 5) * LEAF_BLOCKS) is None


def test_a_load_goes_on_for_so_many_leaves(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "MORE_LEAVES", 2)
    write(bench, 3, 10, 17, 20)
    device = cold(bench)
    read(device, 3)
    assert set(device.map.leaves) == {3, 10, 17}
    assert device.map.missing(3 * LEAF_BLOCKS, LEAVES_OF_VOLUME * LEAF_BLOCKS) == 20
    empty = [number for number in range(LEAVES_OF_VOLUME) if device.map.kind(number)]
    assert empty == [*range(4, 10), *range(11, 17), 18, 19]


def test_a_load_goes_so_far_and_not_beyond_what_is_known(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "REACH_GROUPS", 8)
    device = cold(bench)
    read(device, 20)
    assert device.map.missing(20 * LEAF_BLOCKS, LEAVES_OF_VOLUME * LEAF_BLOCKS) == 29
    read(device, 16)
    assert device.map.missing(16 * LEAF_BLOCKS, LEAVES_OF_VOLUME * LEAF_BLOCKS) == 29


def test_a_full_cache_takes_in_what_was_asked_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(bench, 3, 4)
    device = cold(bench)
    monkeypatch.setattr(leafcache, "_EAGER_SHARE", 0)
    read(device, 3)
    assert set(device.map.leaves) == {3}
    assert device.map.find(5) is None


def test_a_load_leads_to_no_layer_that_nobody_asked_for(bench: Bench) -> None:
    """Layers cost descriptors, and may be missing."""
    write(bench, 3, 4, 6)
    bench.snapshot("s")
    write(bench, 3, 5, value=b"B")
    device = cold(bench)
    opened = len(device.layers.slots)
    read(device, 3)
    assert set(device.map.leaves) == {3}
    assert device.map.find(4) is None
    assert len(device.layers.slots) == opened
    assert [block(bench, number) for number in (3, 4, 5, 6)] == [b"B", b"A", b"B", b"A"]


def test_damage_behind_is_met_where_it_is_needed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(bench, 3, 4)
    device = cold(bench)

    def lost(*_: object) -> None:
        raise DamagedError("for a test")

    monkeypatch.setattr(loading, "first_leaves", lost)
    read(device, 3)
    assert set(device.map.leaves) == {3}


def test_what_was_trimmed_during_a_load_stays_trimmed(bench: Bench) -> None:
    write(bench, 3, 4)
    device = cold(bench)
    go_on = begin_load(device, 3)
    assert device.try_trim(4 * MIB, MIB)
    device.commit()
    go_on()
    assert [block(bench, number) for number in (3, 4)] == [b"A", b"\0"]


def test_what_was_written_during_a_load_stays(bench: Bench) -> None:
    write(bench, 3, 4)
    bench.snapshot("s")
    device = cold(bench)
    go_on = begin_load(device, 3)
    write(bench, 4, 5, value=b"B")
    go_on()
    assert [block(bench, number) for number in (3, 4, 5)] == [b"A", b"B", b"B"]


def test_what_was_stored_and_evicted_during_a_load_is_not_taken_from_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(bench, 3, 4)
    bench.snapshot("s")
    device = cold(bench)
    go_on = begin_load(device, 3)
    write(bench, 4, 5, value=b"B")
    with monkeypatch.context() as patch:
        patch.setattr(leafcache, "CACHE_BYTES", 0)
        run_inline(device.durability.checkpoint())
    assert device.map.find(4) is None
    go_on()
    assert [block(bench, number) for number in (3, 4, 5)] == [b"A", b"B", b"B"]


def test_installing_evicts_nothing_that_it_then_takes_for_unchanged(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was asked for is one too many, and what comes with it must not find room."""
    write(bench, 3, 4)
    bench.snapshot("s")
    device = cold(bench)
    go_on = begin_load(device, 3)
    write(bench, 4, 5, value=b"B")
    run_inline(device.durability.checkpoint())
    monkeypatch.setattr(leafcache, "CACHE_BYTES", 0)
    device.map._evict_above = device.map._weight()
    go_on()
    assert [block(bench, number) for number in (3, 4, 5)] == [b"A", b"B", b"B"]


def test_data_at_hand_is_read_without_a_thread_once_the_map_is_there(bench: Bench) -> None:
    write(bench, 3)
    device = cold(bench)
    into = memoryview(bytearray(BLOCK_SIZE))
    reading = device.read(3 * MIB, into)
    step = reading.send(None)
    assert isinstance(step, Blocking)
    with pytest.raises(StopIteration):
        reading.send(step.call())
    assert bytes(into) == b"A" * BLOCK_SIZE


FIRST, STEP, END = 4, 4, 32
maps = st.lists(st.sets(st.integers(0, 40)), min_size=1, max_size=4)


@given(maps, st.integers(0, 12))
def test_first_leaves_are_all_there_are_before_their_end(stored: list[set[int]], most: int) -> None:
    index = MemoryIndex()

    def fill(txn: Transaction) -> None:
        for map_id, numbers in enumerate(stored):
            for number in numbers:
                txn.put(LEAVES, leaf_key(MapId(map_id), number), array("I", [map_id]).tobytes())

    index.update(fill)
    chain = tuple(MapId(map_id) for map_id in range(len(stored)))
    with index.reading() as txn:
        found, end = first_leaves(txn, chain, FIRST, END, STEP, most)
    seen: dict[int, int] = {}
    for map_id, numbers in enumerate(stored):
        for number in numbers:
            seen.setdefault(number, map_id)
    assert {number: array("I", payload)[0] for number, payload in found.items()} == {
        number: map_id for number, map_id in seen.items() if FIRST <= number < end
    }
    assert len(found) <= most
    assert end % STEP == 0
    beyond = sum(FIRST <= number < end + STEP for number in seen)
    assert end == END or beyond > most
