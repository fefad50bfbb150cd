"""The trash of block storage: whose it is, what counts, what comes back, and when it is gone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from bockd.blockstorage import records, trashrecords
from bockd.blockstorage.adopting import adopt, find_unowned
from bockd.blockstorage.contract import (
    Edit,
    NewSnapshot,
    NewVolume,
    Page,
    Quota,
    Snapshot,
    Status,
    TenantId,
    Usage,
    Volume,
)
from bockd.blockstorage.records import Ledger
from bockd.blockstorage.trash import Trash
from bockd.blockstorage.trashcontract import TrashRules
from bockd.blockstorage.trashrecords import TrashRecord
from bockd.errors import InUseError, InvalidStateError, NotFoundError, OverLimitError
from bockd.model import GIB, NodeKind, VolumeId
from bockd.pool.nodes import Nodes
from bockd.runtime.steps import Blocking, Step, Steps, blocking, run_inline
from tests.blockstorage.store import Store, first_byte, force_status, running, write_first_byte

DAY = 86400.0
KEPT = TrashRules(keep_seconds=7 * DAY)
COUNTED = TrashRules(keep_seconds=7 * DAY, counts_in_quota=True)


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with running(tmp_path) as store:
        store.trash = getattr(request, "param", KEPT)
        store.restart()
        yield store


def delete(store: Store, tenant: TenantId, volume: Volume) -> None:
    store.run(lambda s: s.delete_volume(tenant, volume.id))


def listed(store: Store, tenant: TenantId) -> list[int]:
    return [one.id for one in store.run(lambda s: s.trash.list(tenant))]


def used(store: Store, tenant: TenantId) -> Usage:
    return store.run(lambda s: s.limits(tenant)).used


def test_a_deleted_volume_is_gone_for_clients_and_comes_back_whole(
    store: Store, tenant: TenantId
) -> None:
    volume = store.volume(tenant, 2, "web")
    store.run(lambda s: s.edit_volume(tenant, volume.id, Edit(metadata={"role": "db"})))
    write_first_byte(store, volume.id, 7)
    before = store.look(tenant, volume)
    delete(store, tenant, volume)
    with pytest.raises(NotFoundError, match=f"Volume {volume.id} could not be found"):
        store.look(tenant, volume)
    assert store.run(lambda s: s.list_volumes(tenant)) == []
    kept = store.run(lambda s: s.trash.show(tenant, volume.id))
    assert (kept.kind, kept.name, kept.size_bytes) == (NodeKind.VOLUME, "web", 2 * GIB)
    assert kept.expires_at == kept.deleted_at + 7 * DAY
    store.restart()
    store.assert_sound()
    assert store.run(lambda s: s.trash.restore(tenant, volume.id)) == kept
    assert store.look(tenant, volume) == before
    assert first_byte(store, volume.id) == 7
    assert listed(store, tenant) == []
    store.assert_sound()


def test_a_deleted_snapshot_comes_back_with_what_it_held(store: Store, tenant: TenantId) -> None:
    volume = store.volume(tenant)
    write_first_byte(store, volume.id, 1)
    snapshot = store.snapshot(tenant, volume)
    store.run(lambda s: s.delete_snapshot(tenant, snapshot.id))
    assert store.run(lambda s: s.list_snapshots(tenant)) == []
    with pytest.raises(NotFoundError):
        store.run(lambda s: s.create_volume(tenant, NewVolume(None, snapshot_id=snapshot.id)))
    with pytest.raises(NotFoundError):
        store.run(lambda s: s.revert_volume(tenant, volume.id, snapshot.id))
    write_first_byte(store, volume.id, 2)
    delete(store, tenant, volume)
    assert listed(store, tenant) == [volume.id, snapshot.id]
    store.run(lambda s: s.trash.restore(tenant, snapshot.id))
    clone = store.run(lambda s: s.create_volume(tenant, NewVolume(None, snapshot_id=snapshot.id)))
    assert first_byte(store, clone.id) == 1
    store.assert_sound()


def test_a_snapshot_made_for_a_copy_is_gone_at_once(store: Store, tenant: TenantId) -> None:
    volume = store.volume(tenant)
    new = NewSnapshot(volume.id, consumes_quota=False)
    snapshot = store.run(lambda s: s.create_snapshot(tenant, new))
    store.run(lambda s: s.delete_snapshot(tenant, snapshot.id))
    assert listed(store, tenant) == []


def test_without_a_trash_what_is_deleted_is_gone(tmp_path: Path) -> None:
    with running(tmp_path) as store:
        tenant = store.tenant("acme")
        volume = store.volume(tenant)
        delete(store, tenant, volume)
        assert listed(store, tenant) == []
        with store.pool.nodes() as nodes, pytest.raises(NotFoundError):
            nodes.volume(volume.id)


def test_what_was_promised_holds_when_the_trash_is_switched_off(
    store: Store, tenant: TenantId
) -> None:
    volume = store.volume(tenant)
    delete(store, tenant, volume)
    store.trash = TrashRules()
    store.restart()
    assert listed(store, tenant) == [volume.id]
    store.run(lambda s: s.trash.restore(tenant, volume.id))
    store.assert_sound()


def test_nobody_sees_another_ones_trash(store: Store, tenant: TenantId) -> None:
    other = store.tenant("other")
    volume = store.volume(tenant)
    delete(store, tenant, volume)
    assert listed(store, other) == []
    for call in (
        lambda: store.run(lambda s: s.trash.show(other, volume.id)),
        lambda: store.run(lambda s: s.trash.restore(other, volume.id)),
        lambda: store.run(lambda s: s.trash.delete(other, volume.id)),
        lambda: store.run(lambda s: s.trash.space(other, volume.id)),
    ):
        with pytest.raises(NotFoundError, match=f"there is no {volume.id} in the trash"):
            call()
    assert store.run(lambda s: s.trash.empty(other)) == 0
    assert listed(store, tenant) == [volume.id]


def test_what_is_not_counted_needs_room_in_the_quota_again(store: Store) -> None:
    tenant = store.tenant("small", Quota(volumes=1, gigabytes=2, snapshots=1))
    volume = store.volume(tenant, 2)
    snapshot = store.snapshot(tenant, volume)
    store.run(lambda s: s.delete_snapshot(tenant, snapshot.id))
    delete(store, tenant, volume)
    assert used(store, tenant) == Usage()
    another = store.volume(tenant, 1)  # as clients expect after a deletion
    with pytest.raises(OverLimitError, match="Volume quota exceeded"):
        store.run(lambda s: s.trash.restore(tenant, volume.id))
    store.snapshot(tenant, another)
    with pytest.raises(OverLimitError, match="Snapshot quota exceeded"):
        store.run(lambda s: s.trash.restore(tenant, snapshot.id))
    assert listed(store, tenant) == [volume.id, snapshot.id]
    store.assert_sound()
    assert store.run(lambda s: s.trash.empty(tenant)) == 2
    assert used(store, tenant) == Usage(volumes=1, gigabytes=1, snapshots=1)
    store.assert_sound()


def test_one_tenant_has_one_quota_in_the_trash(store: Store, tenant: TenantId) -> None:
    """Its own oldest goes beyond that, and nobody else's."""
    others = store.volume(tenant, 9)
    delete(store, tenant, others)
    small = store.tenant("small", Quota(volumes=3, gigabytes=4, snapshots=2))
    deleted = []

    def delete_new(size_gib: int) -> None:
        volume = store.volume(small, size_gib)
        delete(store, small, volume)
        deleted.append(volume.id)

    for _ in range(4):
        delete_new(1)
    assert listed(store, small) == deleted[1:]
    delete_new(2)
    assert listed(store, small) == deleted[2:]
    delete_new(3)
    assert listed(store, small) == deleted[5:]
    store.accounts.set_quota("small", lambda _: Quota(volumes=1, gigabytes=5, snapshots=2))
    origin = store.volume(small, 5)
    snapshots = [store.snapshot(small, origin) for _ in range(2)]
    for one in snapshots:
        store.run(lambda s, one=one: s.delete_snapshot(small, one.id))  # type: ignore[misc]
    snapshots += [store.snapshot(small, origin)]
    store.run(lambda s: s.delete_snapshot(small, snapshots[-1].id))
    assert listed(store, small) == [deleted[-1], *(one.id for one in snapshots[1:])]
    delete(store, small, origin)
    assert listed(store, small) == [origin.id, *(one.id for one in snapshots[1:])]
    assert listed(store, tenant) == [others.id]
    store.assert_sound()


def test_what_was_deleted_last_stays_whatever_the_quota_is_now(store: Store) -> None:
    """Also with a clock that was set back."""
    tenant = store.tenant("small", Quota(volumes=2, gigabytes=4, snapshots=2))
    first, second = store.volume(tenant, 2), store.volume(tenant, 2)
    store.accounts.set_quota("small", lambda _: Quota(volumes=0, gigabytes=0, snapshots=0))
    delete(store, tenant, first)
    assert listed(store, tenant) == [first.id]
    store.pool.registry.clock = lambda: 0.0
    delete(store, tenant, second)
    assert listed(store, tenant) == [second.id]


def test_a_clock_that_was_set_back_lets_the_oldest_go_first(store: Store) -> None:
    tenant = store.tenant("small", Quota(volumes=2, gigabytes=9, snapshots=2))
    store.pool.registry.clock = lambda: 1000 * DAY
    before = [store.volume(tenant) for _ in range(2)]
    for volume in before:
        delete(store, tenant, volume)
    store.pool.registry.clock = lambda: DAY
    since = [store.volume(tenant) for _ in range(2)]
    for volume in since:
        delete(store, tenant, volume)
    assert listed(store, tenant) == [volume.id for volume in since]


def test_clocks_of_gateways_that_differ_a_little_make_nothing_old(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was deleted a moment ago at one whose clock is ahead is the newest, not the oldest."""
    tenant = store.tenant("small", Quota(volumes=2, gigabytes=100, snapshots=1))
    features = replace(store.pool.features, several_gateways=True)
    monkeypatch.setattr(type(store.pool), "features", features)
    deleted = []
    for at in (100.0, 100.05, 100.02):
        volume = store.volume(tenant)
        store.pool.registry.clock = lambda at=at: at  # type: ignore[misc]
        delete(store, tenant, volume)
        deleted.append(volume.id)
    assert listed(store, tenant) == deleted[1:]


def test_of_two_that_are_deleted_at_once_the_last_one_stays(store: Store) -> None:
    """Each finds the other one, too, where the quota has become smaller."""
    tenant = store.tenant("small", Quota(volumes=2, gigabytes=2, snapshots=2))
    volumes = [store.volume(tenant) for _ in range(2)]
    store.accounts.set_quota("small", lambda _: Quota(volumes=1, gigabytes=1, snapshots=1))
    begun = []
    for at, volume in enumerate(volumes):
        store.pool.registry.clock = lambda at=at: float(at)  # type: ignore[misc]
        steps = Trash(store.context).put(tenant, NodeKind.VOLUME, volume.id)
        moving = steps.send(None)
        assert isinstance(moving, Blocking)
        begun.append((steps, steps.send(moving.call())))  # in the trash, and not more
    for steps, looking in begun:
        run_inline(resumed(steps, looking))
    assert listed(store, tenant) == [volumes[1].id]


async def resumed(steps: Steps[None], step: Step) -> None:
    """The rest of an operation that is at a step."""
    while True:
        assert isinstance(step, Blocking)
        try:
            step = steps.send(await blocking(step.call))
        except StopIteration:
            return


def test_without_limits_in_the_quota_all_stay(store: Store) -> None:
    tenant = store.tenant("free", Quota(volumes=-1, gigabytes=-1, snapshots=-1))
    volumes = [store.volume(tenant) for _ in range(3)]
    for volume in volumes:
        delete(store, tenant, volume)
    assert listed(store, tenant) == [volume.id for volume in volumes]


@pytest.mark.parametrize("store", [COUNTED], indirect=True)
def test_what_is_counted_always_comes_back(store: Store) -> None:
    tenant = store.tenant("small", Quota(volumes=1, gigabytes=2, snapshots=1))
    volume = store.volume(tenant, 2)
    snapshot = store.snapshot(tenant, volume)
    store.run(lambda s: s.delete_snapshot(tenant, snapshot.id))
    delete(store, tenant, volume)
    everything = Usage(volumes=1, gigabytes=2, snapshots=1)
    assert used(store, tenant) == everything
    with pytest.raises(OverLimitError):
        store.volume(tenant, 1)
    store.accounts.set_quota("small", lambda _: Quota(volumes=0, gigabytes=0, snapshots=0))
    store.run(lambda s: s.trash.restore(tenant, volume.id))
    store.run(lambda s: s.trash.restore(tenant, snapshot.id))
    assert used(store, tenant) == everything
    store.assert_sound()
    delete(store, tenant, volume)
    store.run(lambda s: s.trash.delete(tenant, volume.id))
    assert used(store, tenant) == Usage(snapshots=1)
    store.assert_sound()


def test_a_name_that_was_taken_meanwhile_does_not_matter(store: Store, tenant: TenantId) -> None:
    """Display names may repeat; in the pool it gets another one."""
    volume = store.volume(tenant, name="web")
    delete(store, tenant, volume)
    store.volume(tenant, name="web")
    store.run(lambda s: s.trash.restore(tenant, volume.id))
    assert [one.display_name for one in store.run(lambda s: s.list_volumes(tenant))] == ["web"] * 2
    backing = store.look(tenant, volume).backing
    assert backing is not None
    assert backing.name == f"web-{volume.id}"
    store.assert_sound()


@pytest.mark.parametrize("status", [Status.ERROR, Status.ERROR_DELETING, Status.MAINTENANCE])
def test_it_comes_back_with_its_status(store: Store, tenant: TenantId, status: Status) -> None:
    """One that is held because it has moved elsewhere is not used here by mistake."""
    volume = store.volume(tenant)
    if status is Status.MAINTENANCE:
        store.run(lambda s: s.hold_volume(tenant, volume.id, "migrated to volume 9"))
    else:
        force_status(store, tenant, volume, status)
    before = store.look(tenant, volume)
    delete(store, tenant, volume)
    store.run(lambda s: s.trash.restore(tenant, volume.id))
    assert store.look(tenant, volume) == before
    assert before.status is status


@pytest.mark.parametrize("status", [Status.CREATING, Status.DELETING])
def test_what_cannot_be_deleted_does_not_go_to_the_trash(
    store: Store, tenant: TenantId, status: Status
) -> None:
    volume = store.volume(tenant)
    force_status(store, tenant, volume, status)
    with pytest.raises(InvalidStateError, match="its status must be available"):
        delete(store, tenant, volume)
    assert listed(store, tenant) == []


def test_an_attached_or_used_volume_does_not_go_to_the_trash(
    store: Store, tenant: TenantId
) -> None:
    volume = store.volume(tenant)
    store.run(lambda s: s.attach(tenant, "1", volume.id, None))
    with pytest.raises(InvalidStateError, match="it is in-use"):
        delete(store, tenant, volume)
    store.run(lambda s: s.detach(tenant, "1", volume.id))
    run_inline(store.pool.use(NodeKind.VOLUME, volume.id))
    with pytest.raises(InvalidStateError, match="1 connection"):
        delete(store, tenant, volume)
    store.pool.leave(NodeKind.VOLUME, volume.id)
    assert store.look(tenant, volume).status is Status.AVAILABLE
    delete(store, tenant, volume)
    assert listed(store, tenant) == [volume.id]


def test_a_volume_that_has_failed_goes_and_comes_back_as_it_was(
    store: Store, tenant: TenantId
) -> None:
    """Its journal stays: what it holds is decided by who reopens it."""
    volume = store.volume(tenant)
    write_first_byte(store, volume.id, 5)
    opened = run_inline(store.pool.registry.use_volume(volume.id))
    run_inline(opened.volume.write(0, memoryview(bytes([6]) * 4096)))
    opened.volume.durability.failure.declare("the disk is gone")
    store.background.run()
    store.pool.registry.leave_volume(volume.id)
    delete(store, tenant, volume)
    store.restart()
    store.assert_sound()
    store.run(lambda s: s.trash.restore(tenant, volume.id))
    assert store.look(tenant, volume).status is Status.ERROR
    store.run(lambda s: s.reopen_volume(tenant, volume.id))
    assert first_byte(store, volume.id) in (5, 6)
    store.assert_sound()


def test_a_tenant_with_something_in_the_trash_stays(store: Store, tenant: TenantId) -> None:
    delete(store, tenant, store.volume(tenant))
    with pytest.raises(InUseError, match="has 1 in the trash; empty it first"):
        store.accounts.delete_tenant("acme")
    store.run(lambda s: s.trash.empty(tenant))
    store.accounts.delete_tenant("acme")


def test_emptying_ends_with_its_caller(store: Store, tenant: TenantId) -> None:
    """As at the end of the daemon, which does not wait until ten thousand are deleted."""
    volumes = [store.volume(tenant) for _ in range(2)]
    for volume in volumes:
        delete(store, tenant, volume)

    async def main() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await store.service.trash.empty(tenant)

    trio.run(main)
    assert listed(store, tenant) == [volume.id for volume in volumes]
    assert store.run(lambda s: s.trash.empty(tenant)) == 2
    store.assert_sound()


def test_lists_come_in_pages(store: Store, tenant: TenantId) -> None:
    volumes = [store.volume(tenant, name=f"v{number % 2}") for number in range(4)]
    for volume in volumes:
        delete(store, tenant, volume)
    ids = [volume.id for volume in volumes]

    def page(page: Page) -> list[int]:
        return [one.id for one in store.run(lambda s: s.trash.list(tenant, page))]

    assert page(Page(limit=3)) == ids[:3]
    assert page(Page(marker=ids[1])) == ids[2:]
    assert page(Page(display_name="v1")) == [ids[1], ids[3]]


def test_a_page_reads_no_more_records_than_it_shows(
    store: Store, tenant: TenantId, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one more of each kind."""
    volumes = [store.volume(tenant) for _ in range(8)]
    snapshots = [store.snapshot(tenant, volume) for volume in volumes]
    for volume, snapshot in zip(volumes, snapshots, strict=True):
        store.run(lambda s, one=snapshot: s.delete_snapshot(tenant, one.id))  # type: ignore[misc]
        delete(store, tenant, volume)
    read: list[bytes] = []

    def decode(kind: type[TrashRecord], payload: bytes) -> TrashRecord:
        read.append(payload)
        return records.decode(kind, payload)

    monkeypatch.setattr(trashrecords, "decode", decode)
    ids = [volume.id for volume in volumes]
    page = Page(limit=2, marker=ids[2])
    assert [one.id for one in store.run(lambda s: s.trash.list(tenant, page))] == ids[3:5]
    assert len(read) <= 2 + 2


def test_of_what_is_restored_while_it_expires_one_of_both_happens(
    store: Store, tenant: TenantId
) -> None:
    """Who has read that it is due must not delete what was restored since, nor what was deleted
    again."""
    volume = store.volume(tenant)
    trash = Trash(store.context)
    delete(store, tenant, volume)
    (due,) = trash.by_age()
    store.run(lambda s: s.trash.restore(tenant, volume.id))
    with pytest.raises(NotFoundError):
        run_inline(trash.purge(due))
    delete(store, tenant, volume)
    with pytest.raises(NotFoundError, match="was restored meanwhile"):
        run_inline(trash.purge(due))
    assert listed(store, tenant) == [volume.id]
    (due,) = trash.by_age()
    run_inline(trash.purge(due))
    assert listed(store, tenant) == []
    with store.pool.nodes() as nodes, pytest.raises(NotFoundError):
        nodes.volume(volume.id)
    store.assert_sound()


def test_what_was_restored_and_is_open_is_not_closed(store: Store, tenant: TenantId) -> None:
    volume = store.volume(tenant)
    trash = Trash(store.context)
    delete(store, tenant, volume)
    (due,) = trash.by_age()
    store.run(lambda s: s.trash.restore(tenant, volume.id))
    run_inline(store.pool.use(NodeKind.VOLUME, volume.id))
    store.pool.leave(NodeKind.VOLUME, volume.id)
    with pytest.raises(NotFoundError):
        run_inline(trash.purge(due))
    assert store.pool.is_open(NodeKind.VOLUME, volume.id)


def test_the_oldest_are_told_by_when_they_were_deleted(store: Store, tenant: TenantId) -> None:
    volumes = [store.volume(tenant) for _ in range(3)]
    registry = store.pool.registry
    for at, volume in zip((300.0, 100.0, 200.0), volumes, strict=True):
        registry.clock = lambda at=at: at  # type: ignore[misc]
        delete(store, tenant, volume)
    assert [one.node.id for one in Trash(store.context).by_age()] == [
        volumes[1].id,
        volumes[2].id,
        volumes[0].id,
    ]


def test_what_is_in_the_trash_cannot_be_adopted(store: Store, tenant: TenantId) -> None:
    volume = store.volume(tenant, name="web")
    snapshot: Snapshot = store.snapshot(tenant, volume)
    store.run(lambda s: s.delete_snapshot(tenant, snapshot.id))
    delete(store, tenant, volume)
    with store.pool.index.reading() as txn:
        assert find_unowned(txn) == ([], [])
        assert Ledger(txn).owned_volume(VolumeId(volume.id)) is None
        assert Nodes(txn).volume(volume.id).trashed is not None
    with pytest.raises(NotFoundError):
        store.pool.index.update(lambda txn: adopt(txn, NodeKind.VOLUME, str(volume.id), tenant))
