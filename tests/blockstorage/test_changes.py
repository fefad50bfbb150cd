"""Growing, reverting, reopening and measuring a tenant's volumes: who may, and when."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import trio

from bockd.blockstorage.contract import (
    NewVolume,
    Quota,
    Snapshot,
    Status,
    TenantId,
    Usage,
    Volume,
)
from bockd.blockstorage.records import Ledger
from bockd.errors import (
    DamagedError,
    DeviceError,
    InvalidRequestError,
    InvalidStateError,
    NotFoundError,
    OverLimitError,
)
from bockd.model import GIB, MIB, SnapshotId, VolumeId
from bockd.pool.pool import WithVolume
from bockd.pool.records import VolumeRecord
from bockd.pool.reports import Changes, Space
from bockd.runtime.steps import Steps, run_inline
from tests.blockstorage.store import Store, first_byte, force_status, write_first_byte

KIB4 = 4096


def extend(store: Store, tenant: TenantId, volume: Volume, size_bytes: int) -> None:
    store.run(lambda s: s.extend_volume(tenant, volume.id, size_bytes))


def revert(store: Store, tenant: TenantId, volume: Volume, snapshot: Snapshot) -> None:
    store.run(lambda s: s.revert_volume(tenant, volume.id, snapshot.id))


def reopen(store: Store, tenant: TenantId, volume: Volume) -> None:
    store.run(lambda s: s.reopen_volume(tenant, volume.id))


def used(store: Store, tenant: TenantId) -> Usage:
    return store.run(lambda s: s.limits(tenant)).used


def size_bytes(store: Store, tenant: TenantId, volume: Volume) -> int:
    backing = store.look(tenant, volume).backing
    assert backing is not None
    return backing.size_bytes


def fail(store: Store, volume: Volume) -> None:
    """As after a failed sync."""
    run_inline(store.pool.registry.use_volume(volume.id)).volume.durability.failure.declare(
        "the disk is gone"
    )
    store.background.run()
    store.pool.registry.leave_volume(volume.id)


# -- exact sizes -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [MIB, MIB + KIB4, GIB - KIB4, GIB, GIB + KIB4, 16384 * GIB])
@pytest.mark.parametrize("also_gib", [False, True])
def test_a_size_in_bytes_is_exact_and_counts_rounded_up(
    store: Store, tenant: TenantId, size: int, also_gib: bool
) -> None:
    size_gib = -(-size // GIB)
    new = NewVolume(size_gib if also_gib else None, size_bytes=size)
    volume = store.run(lambda s: s.create_volume(tenant, new))
    assert (volume.size_gib, size_bytes(store, tenant, volume)) == (size_gib, size)
    assert used(store, tenant) == Usage(volumes=1, gigabytes=size_gib)


@pytest.mark.parametrize(
    ("size_gib", "size"),
    [
        *((None, size) for size in (MIB - KIB4, MIB + 1, 0, -MIB, 16384 * GIB + KIB4)),
        *((2, GIB), (1, GIB + KIB4), (0, MIB)),
    ],
)
def test_a_size_in_bytes_that_cannot_be(
    store: Store, tenant: TenantId, size_gib: int | None, size: int
) -> None:
    with pytest.raises(InvalidRequestError, match="size"):
        store.run(lambda s: s.create_volume(tenant, NewVolume(size_gib, size_bytes=size)))
    assert used(store, tenant) == Usage()


def test_a_clone_may_be_larger_by_bytes_and_never_smaller(store: Store, tenant: TenantId) -> None:
    origin = store.run(lambda s: s.create_volume(tenant, NewVolume(None, size_bytes=2 * MIB)))
    snapshot = store.snapshot(tenant, origin)

    def clone(size: int | None) -> Volume:
        new = NewVolume(None, snapshot_id=snapshot.id, size_bytes=size)
        return store.run(lambda s: s.create_volume(tenant, new))

    assert size_bytes(store, tenant, clone(None)) == 2 * MIB
    larger = clone(3 * GIB)
    assert (larger.size_gib, size_bytes(store, tenant, larger)) == (3, 3 * GIB)
    with pytest.raises(InvalidRequestError, match="cannot be smaller"):
        clone(MIB)
    assert used(store, tenant) == Usage(volumes=3, gigabytes=5, snapshots=1)


# -- growing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("opened", [False, True])
def test_growing_is_counted(store: Store, tenant: TenantId, opened: bool) -> None:
    volume = store.volume(tenant, 1)
    if opened:
        run_inline(store.pool.registry.use_volume(volume.id))
    extend(store, tenant, volume, 2 * GIB + KIB4)
    assert store.look(tenant, volume).size_gib == 3
    assert size_bytes(store, tenant, volume) == 2 * GIB + KIB4
    assert used(store, tenant) == Usage(volumes=1, gigabytes=3)
    extend(store, tenant, volume, 3 * GIB)
    assert used(store, tenant) == Usage(volumes=1, gigabytes=3)
    if opened:
        store.pool.registry.leave_volume(volume.id)
    store.restart()
    assert size_bytes(store, tenant, volume) == 3 * GIB


def test_a_volume_in_use_grows_and_one_that_is_not_settled_does_not(
    store: Store, tenant: TenantId
) -> None:
    volume = store.volume(tenant, 1)
    store.run(lambda s: s.attach(tenant, "1", volume.id, None))
    extend(store, tenant, volume, 2 * GIB)
    assert store.look(tenant, volume).status is Status.IN_USE
    for status in (Status.ATTACHING, Status.DETACHING):
        force_status(store, tenant, volume, status)
        with pytest.raises(InvalidStateError, match=rf"^Invalid volume: .*it is {status}$"):
            extend(store, tenant, volume, 3 * GIB)
    force_status(store, tenant, volume, Status.IN_USE)
    assert used(store, tenant).gigabytes == 2


@pytest.mark.parametrize("size", [GIB, 2 * GIB, 2 * GIB + 1, 0, -GIB, 16384 * GIB + KIB4])
def test_a_volume_grows_to_sizes_that_can_be_only(
    store: Store, tenant: TenantId, size: int
) -> None:
    volume = store.volume(tenant, 2)
    with pytest.raises(InvalidRequestError):
        extend(store, tenant, volume, size)
    assert size_bytes(store, tenant, volume) == 2 * GIB


def test_growing_respects_the_quota(store: Store) -> None:
    tenant = store.tenant("small", Quota(volumes=2, gigabytes=4, snapshots=0))
    volume, other = store.volume(tenant, 1), store.volume(tenant, 2)
    with pytest.raises(OverLimitError) as caught:
        extend(store, tenant, volume, 2 * GIB + KIB4)
    assert str(caught.value) == (
        f"Volume quota exceeded. You cannot extend volume {volume.id} to a size of 3G"
    )
    assert size_bytes(store, tenant, volume) == GIB
    extend(store, tenant, volume, 2 * GIB)
    assert used(store, tenant) == Usage(volumes=2, gigabytes=4)
    # Within a gigabyte that is counted already there is room, even when a quota was lowered.
    store.accounts.set_quota(tenant, lambda _: Quota(volumes=2, gigabytes=1, snapshots=0))
    with pytest.raises(OverLimitError):
        extend(store, tenant, other, 3 * GIB)


def test_growing_at_once_never_exceeds_the_quota(store: Store) -> None:
    """Twenty volumes want a gigabyte more; the quota has seven."""
    tenant = store.tenant("busy", Quota(volumes=20, gigabytes=27, snapshots=0))
    volumes = [store.volume(tenant, 1) for _ in range(20)]
    outcomes: list[bool] = []

    async def grow(volume: VolumeId) -> None:
        try:
            await store.service.extend_volume(tenant, volume, 2 * GIB)
            outcomes.append(True)
        except OverLimitError:
            outcomes.append(False)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for volume in volumes:
                nursery.start_soon(grow, volume.id)

    trio.run(main)
    assert (outcomes.count(True), len(outcomes)) == (7, 20)
    assert used(store, tenant).gigabytes == 27
    sizes = [v.size_gib for v in store.run(lambda s: s.list_volumes(tenant))]
    assert sum(sizes) == 27


def test_a_growth_that_cannot_be_recorded_has_not_happened(
    store: Store, tenant: TenantId, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = store.volume(tenant, 1)

    def broken(*_: object) -> None:
        raise OSError(5, "broken")

    for opened in (False, True):
        if opened:
            run_inline(store.pool.registry.use_volume(volume.id))
        with monkeypatch.context() as patch:
            patch.setattr(Ledger, "resize_volume", broken)
            with pytest.raises(DeviceError, match=rf"^extending volume {volume.id}: "):
                extend(store, tenant, volume, 2 * GIB)
        assert size_bytes(store, tenant, volume) == GIB
        assert used(store, tenant).gigabytes == 1
    store.pool.registry.leave_volume(volume.id)
    extend(store, tenant, volume, 2 * GIB)


# -- reverting ---------------------------------------------------------------------------------


def test_reverting_restores_the_data_and_keeps_the_size(store: Store, tenant: TenantId) -> None:
    volume = store.volume(tenant)
    write_first_byte(store, volume.id, 1)
    snapshot = store.snapshot(tenant, volume)
    write_first_byte(store, volume.id, 2)
    extend(store, tenant, volume, 2 * GIB)
    revert(store, tenant, volume, snapshot)
    assert first_byte(store, volume.id) == 1
    assert size_bytes(store, tenant, volume) == 2 * GIB
    assert used(store, tenant) == Usage(volumes=1, gigabytes=2, snapshots=1)


def test_reverting_is_refused(store: Store, tenant: TenantId) -> None:
    volume, other = store.volume(tenant), store.volume(tenant)
    snapshot = store.snapshot(tenant, volume)
    write_first_byte(store, volume.id, 2)
    with pytest.raises(InvalidRequestError, match="is not one of volume"):
        revert(store, tenant, other, snapshot)
    with pytest.raises(NotFoundError, match=r"^Snapshot 99 could not be found\.$"):
        store.run(lambda s: s.revert_volume(tenant, volume.id, SnapshotId(99)))
    run_inline(store.pool.registry.use_volume(volume.id))
    with pytest.raises(InvalidStateError, match=r"^Invalid volume: .*disconnect first"):
        revert(store, tenant, volume, snapshot)
    store.pool.registry.leave_volume(volume.id)
    store.run(lambda s: s.attach(tenant, "1", volume.id, None))
    with pytest.raises(InvalidStateError, match=r"^Invalid volume: .*it is in-use$"):
        revert(store, tenant, volume, snapshot)
    store.run(lambda s: s.detach(tenant, "1", volume.id))
    store.force_snapshot_status(tenant, snapshot, Status.DELETING)
    with pytest.raises(InvalidStateError, match=r"^Invalid snapshot: .*it is deleting$"):
        revert(store, tenant, volume, snapshot)
    assert first_byte(store, volume.id) == 2


def test_revert_of_a_volume_attached_in_that_moment_is_refused(
    store: Store, tenant: TenantId, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = store.volume(tenant)
    write_first_byte(store, volume.id, 1)
    snapshot = store.snapshot(tenant, volume)
    write_first_byte(store, volume.id, 2)
    real = store.pool.revert_volume

    def attached_meanwhile(
        reverted: VolumeId, to: SnapshotId, in_transaction: WithVolume
    ) -> Steps[VolumeRecord]:
        """After the first look at the status, before the transaction."""
        force_status(store, tenant, volume, Status.ATTACHING)
        return real(reverted, to, in_transaction)

    with monkeypatch.context() as patch:
        patch.setattr(store.pool, "revert_volume", attached_meanwhile)
        with pytest.raises(InvalidStateError, match=r"^Invalid volume: .*it is attaching$"):
            revert(store, tenant, volume, snapshot)
    force_status(store, tenant, volume, Status.AVAILABLE)
    assert first_byte(store, volume.id) == 2
    revert(store, tenant, volume, snapshot)
    assert first_byte(store, volume.id) == 1


# -- reopening ---------------------------------------------------------------------------------


@pytest.mark.parametrize("attached", [False, True])
def test_reopening(store: Store, tenant: TenantId, attached: bool) -> None:
    volume = store.volume(tenant, 1, "web")
    with pytest.raises(InvalidStateError, match="nothing is wrong with it"):
        reopen(store, tenant, volume)
    if attached:
        store.run(lambda s: s.attach(tenant, "1", volume.id, None))
    fail(store, volume)
    seen = store.look(tenant, volume)
    assert seen.status is (Status.IN_USE if attached else Status.ERROR)
    assert seen.backing is not None
    assert seen.backing.error == (
        f"volume {volume.id} (web) is refused after an error: the disk is gone. Writes since its "
        f"last successful flush may be lost; 'bock volume reopen {volume.id}' accepts that"
    )
    reopen(store, tenant, volume)
    again = store.look(tenant, volume)
    assert again.status is (Status.IN_USE if attached else Status.AVAILABLE)
    assert again.backing is not None
    assert again.backing.error is None
    run_inline(store.pool.registry.use_volume(volume.id))
    store.pool.registry.leave_volume(volume.id)


def test_a_failed_volume_changes_in_no_other_way(store: Store, tenant: TenantId) -> None:
    volume = store.volume(tenant)
    snapshot = store.snapshot(tenant, volume)
    fail(store, volume)
    with pytest.raises(InvalidStateError, match=r"it is error$"):
        extend(store, tenant, volume, 2 * GIB)
    with pytest.raises(InvalidStateError, match=r"it is error$"):
        revert(store, tenant, volume, snapshot)
    reopen(store, tenant, volume)
    extend(store, tenant, volume, 2 * GIB)


def test_a_snapshot_of_an_attached_volume_that_failed_says_what_to_do(
    store: Store, tenant: TenantId
) -> None:
    volume = store.volume(tenant)
    store.run(lambda s: s.attach(tenant, "1", volume.id, None))
    fail(store, volume)
    with pytest.raises(InvalidStateError, match=r"^Invalid volume: .*'bock volume reopen"):
        store.snapshot(tenant, volume, force=True)


def test_a_tenant_is_not_told_of_the_pools_files(store: Store, tenant: TenantId) -> None:
    """A volume that cannot be opened is in error; which file it wants is the operator's affair."""
    volume = store.volume(tenant, 1, "hurt")
    with store.pool.registry.catalogue() as catalogue:
        record = catalogue.volume(volume.id)
    path = store.pool.registry.store.layout.root / "layers" / f"{record.head}.0"
    path.unlink()
    with pytest.raises(DamagedError, match=str(path)):
        run_inline(store.pool.registry.use_volume(volume.id))
    seen = store.look(tenant, volume)
    assert seen.status is Status.ERROR
    assert seen.backing is not None
    assert seen.backing.error is not None
    assert "could not be opened; 'bockd check'" in seen.backing.error
    assert str(store.root) not in seen.backing.error
    assert str(path) in (store.pool.trouble(record) or "")
    path.touch()
    os.truncate(path, GIB)  # the pool is whole again: nothing was written


def test_a_client_keeps_a_failed_volume_from_being_reopened(store: Store, tenant: TenantId) -> None:
    volume = store.volume(tenant)
    run_inline(store.pool.registry.use_volume(volume.id)).volume.durability.failure.declare(
        "the disk is gone"
    )
    with pytest.raises(InvalidStateError, match="disconnect first"):
        reopen(store, tenant, volume)
    store.pool.registry.leave_volume(volume.id)
    reopen(store, tenant, volume)


# -- space, and whose it is --------------------------------------------------------------------


def test_space(store: Store, tenant: TenantId) -> None:
    volume = store.volume(tenant)
    write_first_byte(store, volume.id, 1)
    snapshot = store.snapshot(tenant, volume)
    shared = Space(exclusive_bytes=0, shared_bytes=KIB4)
    assert store.run(lambda s: s.volume_space(tenant, volume.id)) == shared
    assert store.run(lambda s: s.snapshot_space(tenant, snapshot.id)) == shared
    write_first_byte(store, volume.id, 2)
    exclusive = Space(exclusive_bytes=KIB4, shared_bytes=0)
    assert store.run(lambda s: s.volume_space(tenant, volume.id)) == exclusive
    assert store.run(lambda s: s.snapshot_space(tenant, snapshot.id)) == exclusive


def test_where_snapshots_differ(store: Store, tenant: TenantId) -> None:
    volume = store.volume(tenant)
    older = store.snapshot(tenant, volume)
    write_first_byte(store, volume.id, 1)
    newer = store.snapshot(tenant, volume)

    def changes(first: Snapshot, second: Snapshot, offset: int = 0) -> Changes:
        return store.run(lambda s: s.snapshot_changes(tenant, first.id, second.id, offset))

    assert changes(older, newer) == Changes(((0, KIB4),), GIB)
    assert changes(older, newer, KIB4) == Changes((), GIB)
    assert changes(older, newer, 1 << 70) == Changes((), GIB)
    assert changes(newer, newer) == Changes((), GIB)
    with pytest.raises(InvalidRequestError):
        changes(older, newer, -1)


ATTEMPTS: dict[str, Callable[[Store, TenantId, Volume, Snapshot], object]] = {
    "extend": lambda store, t, v, _: extend(store, t, v, 2 * GIB),
    "revert": lambda store, t, v, s: revert(store, t, v, s),
    "reopen": lambda store, t, v, _: reopen(store, t, v),
    "space": lambda store, t, v, _: store.run(lambda s: s.volume_space(t, v.id)),
    "changes": lambda store, t, _, s: store.run(lambda x: x.snapshot_changes(t, s.id, s.id)),
    "snapshot space": lambda store, t, _, s: store.run(lambda x: x.snapshot_space(t, s.id)),
}


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_strangers_find_nothing(store: Store, tenant: TenantId, attempt: str) -> None:
    stranger = store.tenant("stranger")
    volume = store.volume(tenant)
    snapshot = store.snapshot(tenant, volume)
    with pytest.raises(NotFoundError, match="could not be found"):
        ATTEMPTS[attempt](store, stranger, volume, snapshot)
    assert size_bytes(store, tenant, volume) == GIB


def test_a_volume_does_not_become_a_strangers_snapshot(store: Store, tenant: TenantId) -> None:
    stranger = store.tenant("stranger")
    theirs = store.volume(stranger)
    snapshot = store.snapshot(tenant, store.volume(tenant))
    with pytest.raises(NotFoundError, match=r"^Snapshot"):
        revert(store, stranger, theirs, snapshot)
