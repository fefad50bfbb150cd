"""Volumes made of volumes: what is left, and what is not, of the snapshot in between."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bockd.blockstorage.cloning import Clones
from bockd.blockstorage.contract import NewSnapshot, NewVolume, Quota, Status, TenantId, Volume
from bockd.blockstorage.volumes import Volumes
from bockd.errors import InvalidRequestError, InvalidStateError, NotFoundError, OverLimitError
from bockd.model import GIB, MIB, NodeKind, SnapshotId
from bockd.runtime.steps import Blocking, Steps, run_inline

from .store import Store, first_byte, force_status, write_first_byte


def snapshots(store: Store, tenant: TenantId) -> list[tuple[str | None, Status]]:
    found = store.run(lambda s: s.list_snapshots(tenant))
    return [(one.display_name, one.status) for one in found]


def make(store: Store, tenant: TenantId, new: NewVolume) -> Volume:
    return store.run(lambda s: s.create_volume(tenant, new))


def test_a_clone_holds_what_its_source_held(store: Store, tenant: TenantId) -> None:
    source = store.volume(tenant, 2, "web")
    write_first_byte(store, source.id, 1)
    before = store.run(lambda s: s.limits(tenant)).used
    made = make(store, tenant, NewVolume(2, source_volume=source.id))
    write_first_byte(store, source.id, 2)
    assert first_byte(store, made.id) == 1
    clone = store.look(tenant, made)
    assert (clone.status, clone.size_gib) == (Status.AVAILABLE, 2)
    assert (clone.source_volume, clone.snapshot_id) == (source.id, None)
    assert snapshots(store, tenant) == []
    after = store.run(lambda s: s.limits(tenant)).used
    assert (after.volumes, after.gigabytes) == (before.volumes + 1, before.gigabytes + 2)
    assert after.snapshots == before.snapshots
    store.run(lambda s: s.delete_volume(tenant, source.id))
    assert first_byte(store, made.id) == 1
    write_first_byte(store, made.id, 3)
    store.restart()
    assert first_byte(store, made.id) == 3
    assert store.look(tenant, made).source_volume == source.id


def test_a_volume_in_use_is_cloned(store: Store, tenant: TenantId) -> None:
    source = store.volume(tenant, 1)
    write_first_byte(store, source.id, 1)
    store.run(lambda s: s.attach(tenant, "9", source.id, None))
    opened = run_inline(store.pool.registry.use_volume(source.id))
    run_inline(opened.volume.write(0, memoryview(bytes([7]) * 4096)))
    made = make(store, tenant, NewVolume(None, source_volume=source.id))
    assert first_byte(store, made.id) == 7
    store.pool.registry.leave_volume(source.id)


def test_sizes_of_a_clone(store: Store, tenant: TenantId) -> None:
    """GiB that repeat the source's mean exactly the source's size."""
    exact = NewVolume(None, "odd", size_bytes=GIB + MIB)
    source = make(store, tenant, exact).id
    for new, size_bytes in (
        (NewVolume(None, source_volume=source), GIB + MIB),
        (NewVolume(2, source_volume=source), GIB + MIB),
        (NewVolume(3, source_volume=source), 3 * GIB),
        (NewVolume(None, source_volume=source, size_bytes=2 * GIB), 2 * GIB),
    ):
        made = make(store, tenant, new)
        assert made.backing is not None
        assert made.backing.size_bytes == size_bytes
    for new in (
        NewVolume(1, source_volume=source),
        NewVolume(None, source_volume=source, size_bytes=GIB),
        NewVolume(2, source_volume=source, snapshot_id=SnapshotId(1)),
    ):
        with pytest.raises(InvalidRequestError):
            make(store, tenant, new)
    assert snapshots(store, tenant) == []


def test_what_is_refused_leaves_nothing(store: Store, tenant: TenantId) -> None:
    poor = store.tenant("poor", Quota(volumes=2, gigabytes=3, snapshots=0))
    source = store.volume(poor, 2)
    asked = NewVolume(None, source_volume=source.id)
    for owner, new, refusal in (
        (poor, asked, OverLimitError),
        (tenant, asked, NotFoundError),
    ):
        with pytest.raises(refusal):
            make(store, owner, new)
    force_status(store, poor, source, Status.ATTACHING)
    with pytest.raises(InvalidStateError):
        make(store, poor, asked)
    force_status(store, poor, source, Status.AVAILABLE)
    assert snapshots(store, poor) == []


def test_a_clone_needs_no_quota_of_snapshots(store: Store) -> None:
    poor = store.tenant("poor", Quota(volumes=2, gigabytes=4, snapshots=0))
    source = store.volume(poor, 2)
    make(store, poor, NewVolume(None, source_volume=source.id))
    assert store.run(lambda s: s.limits(poor)).used.snapshots == 0


def drive(steps: Steps[object], after_each: Callable[[], None]) -> None:
    """Run steps to their end, with something else between any two that block."""
    try:
        step = steps.send(None)
        while True:
            result = step.call() if isinstance(step, Blocking) else None
            after_each()
            step = steps.send(result)
    except StopIteration:
        return


def test_a_snapshot_that_somebody_reads_stays_and_can_be_deleted(
    store: Store, tenant: TenantId
) -> None:
    source = store.volume(tenant, 1)
    seen: dict[SnapshotId, Status] = {}

    def read_it() -> None:
        for one in store.run(lambda s: s.list_snapshots(tenant)):
            if one.id not in seen:
                seen[one.id] = one.status
                run_inline(store.pool.use(NodeKind.SNAPSHOT, one.id))
                copy = NewVolume(1, snapshot_id=one.id)
                with pytest.raises(InvalidStateError):
                    make(store, tenant, copy)

    clones = Clones(store.context, Volumes(store.context))
    drive(clones.create(tenant, NewVolume(None, "copy", source_volume=source.id)), read_it)
    ((frozen, status),) = seen.items()
    assert status is Status.DELETING
    assert snapshots(store, tenant) == [(f"clone-of-{source.id}", Status.ERROR_DELETING)]
    names = [one.display_name for one in store.run(lambda s: s.list_volumes(tenant))]
    assert names == [None, "copy"]
    # Others of the volume that consume no quota are admitted beside it.
    store.run(
        lambda s: s.create_snapshot(tenant, NewSnapshot(source.id, "m", consumes_quota=False))
    )
    store.pool.leave(NodeKind.SNAPSHOT, frozen)
    store.run(lambda s: s.delete_snapshot(tenant, frozen))
    assert snapshots(store, tenant) == [("m", Status.AVAILABLE)]
