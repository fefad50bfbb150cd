"""What the daemon does with the trash by itself: what is due goes, and the oldest if the pool is
nearly full."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from bockd.blockstorage.contract import NewSnapshot, NewVolume, TenantId
from bockd.blockstorage.records import owned_key
from bockd.blockstorage.recount import find_problems
from bockd.blockstorage.trash import Trash
from bockd.blockstorage.trashcontract import TrashRules
from bockd.blockstorage.trashrecords import TRASH
from bockd.daemon.trashkeeping import TrashKeeper
from bockd.drivers.local.format.catalogue import MAPS, Catalogue
from bockd.drivers.local.format.queue import dead_maps
from bockd.drivers.local.maintenance.reclaim import Reclaimer
from bockd.errors import ClusterUnavailableError, DamagedError, DeviceError, InUseError
from bockd.index.keys import id_key
from bockd.model import NodeKind, VolumeId
from bockd.pool.gateways import Gateway
from bockd.runtime.steprunner import StepRunner
from bockd.runtime.steps import run_inline
from tests.blockstorage.store import Store, running

HOUR = 3600.0
KEPT = TrashRules(keep_seconds=10 * HOUR)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with running(tmp_path) as store:
        store.trash = KEPT
        store.restart()
        yield store


@pytest.fixture
def tenant(store: Store) -> TenantId:
    return store.tenant("acme")


def delete_at(store: Store, tenant: TenantId, *hours: float) -> list[int]:
    """Delete a volume at each of these hours; the ids."""
    found = []
    for hour in hours:
        volume = store.volume(tenant)
        store.pool.registry.clock = lambda at=hour * HOUR: at  # type: ignore[misc]
        store.run(lambda s, volume=volume: s.delete_volume(tenant, volume.id))  # type: ignore[misc]
        found.append(int(volume.id))
    return found


def look(
    store: Store, at_hour: float, percent: int = 0, keeper: TrashKeeper | None = None
) -> tuple[bool, TrashKeeper]:
    """One look at an hour, on a file system that is so full. Without a keeper: of one that began to
    look at hour 0."""
    if keeper is None:
        keeper = TrashKeeper(store.context, StepRunner(), lambda: store.pool.registry.clock())
        look(store, 0, keeper=keeper)
    store.pool.registry.clock = lambda: at_hour * HOUR
    fill(store, percent)
    return trio.run(keeper.look), keeper


def fill(store: Store, percent: int) -> None:
    """As if the file system were so full."""
    room = os.statvfs_result((4096, 4096, 100, 100 - percent, 100 - percent, 0, 0, 0, 0, 255))
    store.pool.room = lambda: room  # type: ignore[method-assign]


def reclaim(store: Store) -> None:
    """Return the space of what was deleted, as the daemon does in the background."""
    run_inline(Reclaimer(store.pool.registry).run())


@contextmanager
def damaged_map(store: Store, volume: int) -> Iterator[None]:
    """A volume's map is missing meanwhile."""
    with store.pool.index.reading() as txn:
        key = id_key(Catalogue(txn).volume(VolumeId(volume)).map)
        kept = txn.get(MAPS, key)
    assert kept is not None
    store.pool.index.update(lambda txn: txn.delete(MAPS, key))
    try:
        yield
    finally:
        store.pool.index.update(lambda txn: txn.put(MAPS, key, kept))


def left(store: Store) -> list[int]:
    return [int(record.node.id) for record in Trash(store.context).by_age()]


def test_what_is_due_is_deleted_and_nothing_else(store: Store, tenant: TenantId) -> None:
    first, second, third = delete_at(store, tenant, 3, 1, 2)
    assert not look(store, 10.9)[0]
    assert left(store) == [second, third, first]
    look(store, 12)
    assert left(store) == [first]
    store.assert_sound()
    store.background.run()
    look(store, 13)
    assert left(store) == []


class Clocks:
    """The machine's, which is set, and one that nobody sets, in hours."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._passed = 0.0
        self._set_by = 0.0
        fill(store, 0)
        store.pool.registry.clock = lambda: (self._passed + self._set_by) * HOUR
        self.keeper = TrashKeeper(store.context, StepRunner(), lambda: self._passed * HOUR)

    def set_by(self, hours: float) -> None:
        self._set_by += hours
        trio.run(self.keeper.look)

    def wait(self, hours: float) -> None:
        self._passed += hours
        trio.run(self.keeper.look)


YEARS = 20 * 366 * 24.0


def test_a_clock_that_is_set_forward_ends_nothing_early(store: Store, tenant: TenantId) -> None:
    clocks = Clocks(store)
    volume = store.volume(tenant)
    store.run(lambda s: s.delete_volume(tenant, volume.id))
    clocks.wait(1)
    clocks.set_by(YEARS)
    clocks.wait(8.9)
    assert left(store) == [volume.id]
    clocks.wait(0.2)
    assert left(store) == []


def test_what_is_due_when_the_daemon_starts_is_kept_for_an_hour(
    store: Store, tenant: TenantId
) -> None:
    """The clock may be wrong, or the pool have been restored from an old backup."""
    first, second = store.volume(tenant), store.volume(tenant)
    store.pool.registry.clock = lambda: 0.0
    for volume in (first, second):
        store.run(lambda s, one=volume: s.delete_volume(tenant, one.id))  # type: ignore[misc]
    clocks = Clocks(store)
    clocks.set_by(YEARS)
    clocks.wait(0.9)
    assert left(store) == [first.id, second.id]
    store.run(lambda s: s.trash.restore(tenant, second.id))
    clocks.wait(0.2)
    assert left(store) == []


def test_a_clock_that_was_behind_makes_nothing_stay_for_years(
    store: Store, tenant: TenantId
) -> None:
    volume = store.volume(tenant)
    store.pool.registry.clock = lambda: YEARS * HOUR
    store.run(lambda s: s.delete_volume(tenant, volume.id))
    clocks = Clocks(store)
    clocks.wait(1)
    clocks.set_by(YEARS)
    assert left(store) == [volume.id]
    clocks.wait(11)
    assert left(store) == []


def test_what_is_deleted_while_the_daemon_runs_is_kept_for_all_of_its_time(
    store: Store, tenant: TenantId
) -> None:
    """At a gateway whose clock is behind that of this one, for example."""
    clocks = Clocks(store)
    clocks.set_by(YEARS)
    volume = store.volume(tenant)
    clocks.set_by(-YEARS)
    store.run(lambda s: s.delete_volume(tenant, volume.id))
    clocks.set_by(YEARS)
    clocks.wait(9.9)
    assert left(store) == [volume.id]
    clocks.wait(0.2)
    assert left(store) == []


def test_of_several_gateways_the_first_by_name_makes_room(store: Store, tenant: TenantId) -> None:
    """And if nobody knows how full the pool is, nobody does. What is due goes at all of them."""
    first, second, third = delete_at(store, tenant, 1, 2, 3)
    there = [Gateway(name=name, run="0" * 16, since=0.0) for name in ("a", "b")]
    store.pool.gateways = lambda: there  # type: ignore[method-assign]
    keepers = {}
    for name in ("a", "b"):
        store.pool.gateway = name
        full, keepers[name] = look(store, 4, percent=99)
        assert full == (name == "a")
        reclaim(store)
    assert left(store) == [second, third]
    store.pool.gateway = "b"
    look(store, 12.5, percent=99, keeper=keepers["b"])
    assert left(store) == [third]
    there.pop(0)  # it has ended, or does not answer

    def unknown() -> os.statvfs_result:
        raise ClusterUnavailableError("there is no manager")

    store.pool.room = unknown  # type: ignore[method-assign]
    assert not trio.run(keepers["b"].look)
    assert left(store) == [third]
    reclaim(store)
    assert look(store, 12.5, percent=99, keeper=keepers["b"])[0]
    assert left(store) == []
    assert first not in left(store)


def test_what_was_restored_and_deleted_again_is_kept_anew(store: Store, tenant: TenantId) -> None:
    clocks = Clocks(store)
    volume = store.volume(tenant)
    store.run(lambda s: s.delete_volume(tenant, volume.id))
    clocks.wait(9)
    store.run(lambda s: s.trash.restore(tenant, volume.id))
    store.run(lambda s: s.delete_volume(tenant, volume.id))
    clocks.wait(0)
    clocks.set_by(YEARS)
    clocks.wait(9.9)
    assert left(store) == [volume.id]
    clocks.wait(0.2)
    assert left(store) == []


def test_of_a_pool_that_is_nearly_full_the_oldest_goes_at_each_look(
    store: Store, tenant: TenantId
) -> None:
    first, second, third = delete_at(store, tenant, 1, 3, 2)
    assert not look(store, 4, percent=94)[0]
    assert left(store) == [first, third, second]
    assert look(store, 4, percent=95)[0]
    assert left(store) == [third, second]
    reclaim(store)
    full, keeper = look(store, 4, percent=99)
    assert full
    assert left(store) == [second]
    assert (keeper.kept.volumes, keeper.kept.oldest_at) == (1, 3 * HOUR)
    reclaim(store)
    assert look(store, 4, percent=100)[0]
    reclaim(store)
    assert not look(store, 4, percent=100)[0]  # nothing is left to delete
    store.assert_sound()


def test_who_has_most_in_the_trash_gives_first(store: Store, tenant: TenantId) -> None:
    """Who creates and deletes again and again does not have others' trash deleted."""
    (victim,) = delete_at(store, tenant, 1)
    flooding = store.tenant("flooding")
    first, second = delete_at(store, flooding, 2, 3)
    look(store, 4, percent=99)
    assert left(store) == [victim, second]
    large = store.run(lambda s: s.create_volume(flooding, NewVolume(2)))
    store.run(lambda s: s.trash.delete(flooding, second))
    store.run(lambda s: s.delete_volume(flooding, large.id))
    reclaim(store)
    look(store, 5, percent=99)
    assert left(store) == [victim]
    assert first not in left(store)


def test_what_was_deleted_before_the_clock_was_set_back_goes_first(
    store: Store, tenant: TenantId
) -> None:
    before, _, since = delete_at(store, tenant, 100, 1, 2)
    look(store, 3, percent=99)
    assert before not in left(store)
    reclaim(store)
    look(store, 3, percent=99)
    assert left(store) == [since]


def test_nothing_goes_early_while_no_space_can_return(store: Store, tenant: TenantId) -> None:
    """A backup has the lock until it ends; and what was deleted waits for reclaim after that."""
    first, second, third = delete_at(store, tenant, 1, 2, 3)
    lock = store.pool.registry.maintenance_lock
    run_inline(lock.acquire())
    assert look(store, 4, percent=99)[0]
    assert left(store) == [first, second, third]
    lock.release()
    look(store, 4, percent=99)
    assert left(store) == [second, third]
    look(store, 4, percent=99)
    assert left(store) == [second, third]
    reclaim(store)
    look(store, 4, percent=99)
    assert left(store) == [third]


def test_dead_maps_that_must_wait_do_not_keep_a_full_pool_from_being_emptied(
    store: Store, tenant: TenantId
) -> None:
    """Two clones need the map of a snapshot that is gone."""
    origin = store.volume(tenant)
    new = NewSnapshot(origin.id, consumes_quota=False)
    snapshot = store.run(lambda s: s.create_snapshot(tenant, new))
    for _ in range(2):
        store.run(lambda s: s.create_volume(tenant, NewVolume(None, snapshot_id=snapshot.id)))
    store.run(lambda s: s.delete_snapshot(tenant, snapshot.id))
    delete_at(store, tenant, 1)
    assert store.pool.owes_space()
    reclaim(store)
    with store.pool.index.reading() as txn:
        assert dead_maps(txn)
    assert not store.pool.owes_space()
    look(store, 2, percent=99)
    assert left(store) == []


def test_with_a_hundred_percent_nothing_goes_early(store: Store, tenant: TenantId) -> None:
    store.trash = TrashRules(keep_seconds=10 * HOUR, full_percent=100)
    store.restart()
    (only,) = delete_at(store, tenant, 1)
    assert not look(store, 2, percent=100)[0]
    assert left(store) == [only]


def test_one_that_cannot_be_deleted_does_not_keep_others(store: Store, tenant: TenantId) -> None:
    """Its map is missing: `bockd check` names it."""
    first, _ = delete_at(store, tenant, 1, 2)
    with damaged_map(store, first), pytest.raises(DamagedError, match=r"map \d+ is missing"):
        look(store, 20)
    assert left(store) == [first]
    look(store, 20)
    assert left(store) == []


def test_one_that_cannot_be_deleted_does_not_keep_a_full_pool_full(
    store: Store, tenant: TenantId
) -> None:
    """Neither one that is due nor the oldest one."""
    first, _, third = delete_at(store, tenant, 1, 2, 3)
    with damaged_map(store, first):
        with pytest.raises(DamagedError, match=r"map \d+ is missing"):
            look(store, 4, percent=99)
        assert left(store) == [first, third]
        reclaim(store)
        keeper = TrashKeeper(store.context, StepRunner(), lambda: store.pool.registry.clock())
        look(store, 0, keeper=keeper)
        with pytest.raises(DamagedError, match=r"map \d+ is missing"):
            look(store, 11.5, percent=99, keeper=keeper)
        assert left(store) == [first]
        assert keeper.full
        assert keeper.kept.volumes == 1


@pytest.mark.parametrize(
    "malformed",
    [b'{"tenant":1}', b'{"tenant":"acme","deleted_at":1.0,"expires_at":2.0,"counted":false}'],
)
def test_a_malformed_record_does_not_keep_others(
    store: Store, tenant: TenantId, malformed: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    first, _ = delete_at(store, tenant, 1, 2)
    key = owned_key(NodeKind.VOLUME, tenant, first)
    with store.pool.index.reading() as txn:
        sound = txn.get(TRASH, key)
    assert sound is not None
    store.pool.index.update(lambda txn: txn.put(TRASH, key, malformed))
    with store.pool.index.reading() as txn:
        assert "a stored TrashRecord is malformed" in find_problems(txn)[0]
    assert [one.id for one in store.run(lambda s: s.trash.list(tenant))] == [first + 1]
    with pytest.raises(InUseError, match="has 2 in the trash"):
        store.accounts.delete_tenant("acme")
    look(store, 20)
    assert "a stored TrashRecord is malformed" in caplog.text
    assert left(store) == []
    delete_at(store, tenant, 20)
    assert store.run(lambda s: s.trash.empty(tenant)) == 1
    store.pool.index.update(lambda txn: txn.put(TRASH, key, sound))
    assert left(store) == [first]


def test_what_cannot_be_deleted_now_stays_and_is_tried_again(
    store: Store, tenant: TenantId, monkeypatch: pytest.MonkeyPatch
) -> None:
    (only,) = delete_at(store, tenant, 1)

    def refuse(*_: object) -> None:
        raise DeviceError("the disk is away")

    with monkeypatch.context() as patched:
        patched.setattr(store.pool.index, "update", refuse)
        with pytest.raises(DeviceError, match="the disk is away"):
            look(store, 20)
    assert left(store) == [only]
    look(store, 20)
    assert left(store) == []
