"""Holes of whole groups of leaves: made without a look at what they hold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from bockd.drivers.local.format import journal
from bockd.drivers.local.format.blockmap import own_leaves
from bockd.drivers.local.format.catalogue import Catalogue
from bockd.drivers.local.format.checksums import CHECKSUMS
from bockd.drivers.local.format.leaf import LEAF_BLOCKS, LEAVES, Leaf, leaf_key
from bockd.drivers.local.integrity.check import check_open_pool
from bockd.drivers.local.integrity.scrub import Scrubber
from bockd.drivers.local.maintenance.reclaim import Reclaimer
from bockd.drivers.local.pool import LocalPool
from bockd.drivers.local.volume import leafcache, room
from bockd.drivers.local.volume.volume import HOLE_PIECE_BLOCKS, Volume
from bockd.errors import DamagedError
from bockd.index.transaction import Gap
from bockd.model import BLOCK_SIZE, GIB, MIB, VolumeId
from bockd.runtime.steps import Background, Blocking, run_inline
from tests.drivers.local.bench_pool import SIZE, Bench, resume, stepwise
from tests.drivers.local.process import die
from tests.drivers.local.rotting import rot

ZERO = b"\0"


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A volume of two leaves, each a group of its own."""
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


def test_whole_groups_are_trimmed_without_being_read(bench: Bench) -> None:
    bench.write(0, b"A", 2 * LEAF_BLOCKS)
    device = cold(bench)

    trim(device, 0, MIB)

    assert not device.map.leaves
    into = memoryview(bytearray(b"x" * BLOCK_SIZE))
    assert device.try_read(0, into)
    assert not any(into)
    assert not device.try_read(MIB, into)
    assert set(stored(bench)) == {0, 1}
    run_inline(device.durability.checkpoint())
    assert set(stored(bench)) == {1}
    assert bench.block(bench.volume, 255) == ZERO
    assert bench.block(bench.volume, 256) == b"A"


def test_a_group_that_is_not_covered_has_to_be_read(bench: Bench) -> None:
    bench.write(0, b"A", 2 * LEAF_BLOCKS)
    device = cold(bench)

    assert not device.try_trim(0, MIB + BLOCK_SIZE)

    assert not device.map.unstored()
    run_inline(device.trim(0, MIB + BLOCK_SIZE))
    assert set(device.map.leaves) == {1}
    assert [bench.block(bench.volume, b) for b in (0, 255, 256, 257)] == [ZERO, ZERO, ZERO, b"A"]


def test_the_last_group_of_a_volume_may_be_short(bench: Bench) -> None:
    run_inline(bench.pool.extend_volume(bench.volume, SIZE + 3 * BLOCK_SIZE))
    bench.write(2 * LEAF_BLOCKS, b"A", 3)
    device = cold(bench)

    trim(device, SIZE, 3 * BLOCK_SIZE)

    run_inline(device.durability.checkpoint())
    assert not stored(bench)
    assert bench.block(bench.volume, 2 * LEAF_BLOCKS + 2) == ZERO


def test_an_acknowledged_trim_of_groups_survives_a_death(bench: Bench) -> None:
    bench.write(0, b"A", 2 * LEAF_BLOCKS)
    device = cold(bench)
    trim(device, 0, MIB)
    bench.write(7, b"B")

    reopened(bench)

    assert [bench.block(bench.volume, b) for b in (6, 7, 8, 256)] == [ZERO, b"B", ZERO, b"A"]
    assert set(stored(bench)) == {0, 1}
    bench.reclaim()


def test_a_holed_group_is_not_evicted_before_the_index_has_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.write(0, b"A", 2 * LEAF_BLOCKS)
    device = cold(bench)
    trim(device, 0, MIB)
    bench.write(3, b"B")
    monkeypatch.setattr(leafcache, "CACHE_BYTES", 0)
    device.map.mark_clean(0)  # evicts what it can

    assert bench.block(bench.volume, 256) == b"A"
    assert [bench.block(bench.volume, b) for b in (2, 3, 4)] == [ZERO, b"B", ZERO]

    run_inline(device.durability.checkpoint())
    assert not device.map.unstored()
    assert device.map.find(0) is None
    assert [bench.block(bench.volume, b) for b in (2, 3, 4)] == [ZERO, b"B", ZERO]


def test_a_load_under_way_does_not_bring_back_what_was_trimmed(bench: Bench) -> None:
    bench.write(0, b"A", 2 * LEAF_BLOCKS)
    device = cold(bench)
    reading = device.read(0, memoryview(bytearray(BLOCK_SIZE)))
    step = reading.send(None)
    assert isinstance(step, Blocking)
    loaded = step.call()

    trim(device, 0, MIB)
    resume(reading, loaded)

    assert set(device.map.leaves) == {1}
    assert bench.block(bench.volume, 0) == ZERO


def test_a_trim_during_a_checkpoint_is_not_taken_for_stored(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.write(0, b"A", 2 * LEAF_BLOCKS)
    device = bench.device()
    apply = device.durability._indexed.apply

    async def apply_late(segments: list[journal.JournalSegment]) -> None:
        trim(device, 0, MIB)
        await apply(segments)

    monkeypatch.setattr(device.durability._indexed, "apply", apply_late)
    run_inline(device.durability.checkpoint())

    assert set(stored(bench)) == {0, 1}
    assert device.map.unstored() == 1
    assert bench.block(bench.volume, 0) == ZERO
    reopened(bench)
    assert bench.block(bench.volume, 0) == ZERO


def test_what_was_a_hole_already_costs_no_record(bench: Bench) -> None:
    bench.write(300, b"A")
    device = bench.device()
    trim(device, 0, SIZE)
    before = records(device)

    trim(device, 0, SIZE)
    trim(device, MIB, 5 * BLOCK_SIZE)
    run_inline(device.durability.checkpoint())
    trim(device, 0, SIZE)

    assert before
    assert records(device) == 0
    assert device.durability.tail.untouched


def test_trims_one_behind_the_other_are_one_record(bench: Bench) -> None:
    bench.write(0, b"A", 2 * LEAF_BLOCKS)
    device = bench.device()
    before = records(device)

    assert all(device.try_trim(offset, 64 * 1024) for offset in range(0, SIZE, 64 * 1024))
    device.commit()

    assert records(device) == before + 1
    reopened(bench)
    assert {bench.block(bench.volume, b) for b in range(0, 2 * LEAF_BLOCKS, 8)} == {ZERO}


def test_a_trimmed_clone_shows_nothing_of_its_origin(bench: Bench) -> None:
    bench.write(0, b"A", 2 * LEAF_BLOCKS)
    snapshot = bench.snapshot("s")
    clone = VolumeId(run_inline(bench.pool.create_volume("c", SIZE, snapshot)).id)
    device = run_inline(bench.pool.registry.use_volume(clone)).volume
    run_inline(device.durability.begin(reserve=False))

    trim(device, 0, MIB)
    run_inline(device.write(5 * BLOCK_SIZE, memoryview(b"C" * BLOCK_SIZE)))
    run_inline(device.durability.checkpoint())
    bench.pool.registry.leave_volume(clone)
    run_inline(bench.pool.registry.close_idle_volume(clone))

    assert set(stored(bench, clone)) == {0}
    device = run_inline(bench.pool.registry.use_volume(clone)).volume
    content = bytearray(SIZE)
    run_inline(device.read(0, memoryview(content)))
    assert not any(content[: 5 * BLOCK_SIZE])
    assert content[5 * BLOCK_SIZE : 6 * BLOCK_SIZE] == b"C" * BLOCK_SIZE
    assert not any(content[6 * BLOCK_SIZE : MIB])
    assert content[MIB:] == b"A" * MIB
    assert bench.block(snapshot, 0) == b"A"


def test_blocks_of_layers_at_home_are_reclaimed(bench: Bench) -> None:
    """A layer of a deleted snapshot is at home in the volume's map."""
    bench.write(0, b"A", 2 * LEAF_BLOCKS)
    snapshot = bench.snapshot("s")
    bench.write(1, b"B")
    bench.delete(snapshot)
    bench.reclaim()
    before = bench.allocated()
    device = cold(bench)

    trim(device, 0, MIB)
    bench.write(2, b"C")
    bench.reclaim()

    assert bench.allocated() < before - MIB // 2
    assert [bench.block(bench.volume, b) for b in (0, 1, 2, 256)] == [ZERO, ZERO, b"C", b"A"]


def test_nothing_is_trimmed_where_the_index_may_have_lost_a_leaf(bench: Bench) -> None:
    """No checkpoint could remove what is under a damaged key."""
    bench.write(0, b"A", 2 * LEAF_BLOCKS)
    device = cold(bench)
    bench.pool.index._gaps = {LEAVES: [Gap(None, None, "damaged")]}

    assert not device.try_trim(0, MIB)
    with pytest.raises(DamagedError):
        run_inline(device.trim(0, MIB))

    assert not device.map.unstored()
    assert device.durability.tail.untouched
    bench.pool.index._gaps = {}
    assert bench.block(bench.volume, 0) == b"A"


def lost_leaf(bench: Bench, number: int) -> Volume:
    """The volume after a start of the pool that found one of its leaves damaged."""
    run_inline(bench.pool.close_all())
    bench.background.run()
    rot_leaf(bench, number)
    reopened(bench)
    assert bench.pool.index.may_miss(LEAVES)
    return bench.device()


@pytest.fixture
def long(bench: Bench) -> Bench:
    """A volume of six leaves."""
    run_inline(bench.pool.extend_volume(bench.volume, 3 * SIZE))
    for leaf in range(6):
        bench.write(leaf * LEAF_BLOCKS, b"A", LEAF_BLOCKS)
    return bench


def content(device: Volume, leaves: range) -> list[bytes]:
    """What each of some leaves holds, if that is one value; reading may be refused."""
    found = []
    for leaf in leaves:
        buffer = bytearray(MIB)
        run_inline(device.read(leaf * MIB, memoryview(buffer)))
        found.append(bytes(set(buffer)))
    return found


@pytest.mark.parametrize("group", [1, 64])
@pytest.mark.parametrize("how", ["trim", "zero"])
def test_a_lost_leaf_is_found_again_as_a_hole_when_all_of_it_is_trimmed(
    long: Bench, monkeypatch: pytest.MonkeyPatch, how: str, group: int
) -> None:
    """Also where its group has others. Nothing else is touched, and it lasts."""
    monkeypatch.setattr(leafcache, "GROUP_LEAVES", group)
    device = lost_leaf(long, 2)
    with pytest.raises(DamagedError):
        run_inline(device.read(2 * MIB, memoryview(bytearray(BLOCK_SIZE))))

    assert not device.try_trim(2 * MIB, MIB)
    doing = device.trim(2 * MIB, MIB) if how == "trim" else None
    run_inline(doing or device.zero(2 * MIB, MIB, allocate=False))

    kept = [b"A", b"A", ZERO, b"A", b"A", b"A"]
    assert content(device, range(6)) == kept
    assert not long.pool.index.may_miss(LEAVES)
    reopened(long)
    assert content(long.device(), range(6)) == kept
    assert set(stored(long)) == {0, 1, 3, 4, 5}


def test_a_lost_leaf_whose_neighbours_go_first_is_found_again(long: Bench) -> None:
    """A recovery meets other neighbours of it than the trim did."""
    device = lost_leaf(long, 2)
    run_inline(device.trim(3 * MIB, MIB))
    run_inline(device.durability.checkpoint())
    run_inline(device.trim(2 * MIB, MIB))
    run_inline(device.trim(MIB, MIB))

    reopened(long)

    assert content(long.device(), range(6)) == [b"A", ZERO, ZERO, ZERO, b"A", b"A"]
    assert set(stored(long)) == {0, 4, 5}


class Killed(BaseException):
    """Stands for the death of the process."""


def trim_and_die(bench: Bench, device: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trim the third leaf, and die before anything of that is in the journal."""
    monkeypatch.setattr(device, "_hole_out", Mock(side_effect=Killed))
    with pytest.raises(Killed):
        run_inline(device.trim(2 * MIB, MIB))
    assert device.durability.tail.untouched
    reopened(bench)


def test_a_death_before_the_trim_of_a_lost_leaf_is_in_the_journal(
    long: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    trim_and_die(long, lost_leaf(long, 2), monkeypatch)
    assert content(long.device(), range(6)) == [b"A", b"A", ZERO, b"A", b"A", b"A"]


def test_an_origin_does_not_show_through_a_lost_leaf_that_was_trimmed(
    long: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of its own leaves the volume has the first four, and lost the third one."""
    long.snapshot("s")
    for leaf in range(4):
        long.write(leaf * LEAF_BLOCKS, b"B", LEAF_BLOCKS)
    trim_and_die(long, lost_leaf(long, 2), monkeypatch)
    assert content(long.device(), range(6)) == [b"B", b"B", ZERO, b"B", b"A", b"A"]


def test_a_lost_leaf_that_is_not_trimmed_as_a_whole_stays(long: Bench) -> None:
    """Nor one that may be another map's, as the first one may; and nothing is in the journal."""
    device = lost_leaf(long, 2)
    for offset, length in (
        (2 * MIB, MIB - BLOCK_SIZE),
        (2 * MIB + BLOCK_SIZE, MIB),
        (0, 3 * MIB - BLOCK_SIZE),
    ):
        with pytest.raises(DamagedError):
            run_inline(device.trim(offset, length))
    device = lost_leaf(long, 0)  # which repairs the third one
    with pytest.raises(DamagedError):
        run_inline(device.trim(0, 3 * MIB))
    assert device.durability.tail.untouched
    assert not device.map.unstored()
    assert long.pool.index.may_miss(LEAVES)


def test_a_trimmed_leaf_that_rots_does_not_stop_the_checkpoint(bench: Bench) -> None:
    """What it showed of a layer at home is not known any more: that space waits for a repair."""
    homed_leaves(bench)
    device = cold(bench)
    trim(device, 0, SIZE)
    rot_leaf(bench, 0)

    run_inline(device.durability.checkpoint())

    assert not stored(bench)
    assert [bench.block(bench.volume, block) for block in (0, 256)] == [ZERO, ZERO]
    bench.reclaim()
    assert bench.allocated() > 0
    check_open_pool(bench.pool.registry.store, live=frozenset(), repair=True)
    assert bench.allocated() == 0


def test_an_overwritten_leaf_that_rots_does_not_stop_the_checkpoint(bench: Bench) -> None:
    """Nothing of it is in the head: a packed one would overwrite that in place, and only note the
    rest."""
    homed_leaves(bench, changed=False)
    bench.write(0, b"C", LEAF_BLOCKS)
    rot_leaf(bench, 0)

    run_inline(bench.device().durability.checkpoint())

    assert set(stored(bench)) == {0, 1}
    assert [bench.block(bench.volume, block) for block in (0, 255, 256)] == [b"C", b"C", b"A"]


def test_checksums_that_rot_do_not_stop_the_checkpoint(bench: Bench) -> None:
    homed_leaves(bench)
    scrubber = Scrubber(bench.pool.registry)
    while run_inline(scrubber.read_on()).more:
        pass
    device = cold(bench)
    trim(device, 0, MIB)
    with bench.pool.index.reading() as txn:
        [key, _] = txn.keys(CHECKSUMS, b"", b"\xff" * 13)
    rot(bench, key, CHECKSUMS)

    run_inline(device.durability.checkpoint())

    assert set(stored(bench)) == {1}


@pytest.mark.parametrize("number", [1, 2])
def test_recovery_passes_over_a_lost_leaf_that_is_trimmed(bench: Bench, number: int) -> None:
    """Of leaf 1 what comes before it is not trimmed, but follows at once."""
    run_inline(bench.pool.extend_volume(bench.volume, 2 * SIZE))
    for leaf in range(4):
        bench.write(leaf * LEAF_BLOCKS, b"A", LEAF_BLOCKS)
    device = cold(bench)
    trim(device, MIB, 2 * MIB)
    rot_leaf(bench, number)

    reopened(bench)

    assert set(stored(bench)) == {0, 3}
    assert [bench.block(bench.volume, b) for b in (255, 256, 512, 767, 768)] == [
        b"A",
        ZERO,
        ZERO,
        ZERO,
        b"A",
    ]
    assert not bench.pool.index.may_miss(LEAVES)
    bench.reclaim()


def test_recovery_does_not_pass_over_a_lost_leaf_that_may_be_another(bench: Bench) -> None:
    """The first one of the map: before it is nothing, and what was lost may be another map's."""
    bench.write(0, b"A", 2 * LEAF_BLOCKS)
    device = cold(bench)
    trim(device, 0, MIB)
    rot_leaf(bench, 0)

    reopened(bench)

    with pytest.raises(DamagedError):
        bench.device()
    assert bench.pool.index.may_miss(LEAVES)


def test_many_holed_groups_ask_for_a_checkpoint(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And wait for it, when there are too many."""
    monkeypatch.setattr(room, "CHECKPOINT_DIRTY_LEAVES", 0)
    monkeypatch.setattr(room, "MAX_DIRTY_LEAVES", 2)
    bench.write(0, b"A", 2 * LEAF_BLOCKS)
    device = cold(bench)

    trim(device, 0, MIB)
    trim(device, MIB, MIB)
    assert not device.try_trim(0, MIB)
    bench.background.run()

    assert not device.map.unstored()
    assert not stored(bench)
    assert device.try_trim(0, MIB)


def test_a_trim_waits_for_whoever_holds_its_blocks(bench: Bench) -> None:
    bench.write(0, b"A", 2 * LEAF_BLOCKS)
    device = bench.device()
    held = run_inline(device.locks.acquire(200, 300))
    assert not device.try_trim(0, MIB)
    device.locks.release(held)
    run_inline(device.gate.quiesce())
    assert not device.try_trim(0, MIB)
    device.gate.open()
    assert device.try_trim(0, MIB)


def test_a_large_volume_is_trimmed_piece_by_piece(tmp_path: Path) -> None:
    """With groups as they are: each piece is a step, so that others have their turn."""
    bench = Bench(tmp_path)
    size = 3 * HOLE_PIECE_BLOCKS * BLOCK_SIZE
    run_inline(bench.pool.extend_volume(bench.volume, size + 4 * MIB))
    device = bench.device()
    for place in (0, GIB, size - MIB, size + MIB):
        run_inline(device.write(place, memoryview(b"D" * BLOCK_SIZE)))

    assert not device.try_trim(0, size)
    steps = list(stepwise(device.trim(0, size)))

    assert len([step for step in steps if isinstance(step, Blocking)]) == 2
    assert device.map.unstored() <= 3 * 64 + 1
    bench.background.run()
    assert bench.allocated() < MIB
    reopened(bench)
    found = bytearray(BLOCK_SIZE)
    device = bench.device()
    for place, byte in ((0, 0), (GIB, 0), (size - MIB, 0), (size + MIB, ord("D"))):
        run_inline(device.read(place, memoryview(found)))
        assert set(found) == {byte}
    bench.reclaim()
    die(bench.pool)


def test_a_repaired_block_does_not_bring_back_what_was_trimmed(bench: Bench) -> None:
    """The fast lane has a leaf of its own in a holed group, which nothing has changed so far."""
    bench.write(0, b"A", 2 * LEAF_BLOCKS)
    device = cold(bench)
    trim(device, 0, MIB)
    assert device.map.own(0) is not None

    device.map.clear_damaged(5)

    assert bench.block(bench.volume, 5) == ZERO
