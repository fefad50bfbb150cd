"""Holes of whole groups where the index has lost a leaf of the map, or what it has rots."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from bockd.drivers.local.format.checksums import CHECKSUMS
from bockd.drivers.local.format.leaf import LEAF_BLOCKS, LEAVES
from bockd.drivers.local.integrity.check import check_open_pool
from bockd.drivers.local.integrity.scrub import Scrubber
from bockd.drivers.local.volume import leafcache
from bockd.drivers.local.volume.volume import Volume
from bockd.errors import DamagedError
from bockd.index.transaction import Gap
from bockd.model import BLOCK_SIZE, MIB
from bockd.runtime.steps import run_inline
from tests.drivers.local.bench_pool import SIZE, Bench
from tests.drivers.local.groups import (
    ZERO,
    cold,
    homed_leaves,
    reopened,
    rot_leaf,
    stored,
    trim,
    two_groups,
)
from tests.drivers.local.rotting import rot


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    yield from two_groups(tmp_path, monkeypatch)


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
