"""Holding a volume: who is kept off it, and who keeps it from being held."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bockd.blockstorage.contract import NewSnapshot, Status, TenantId, Volume
from bockd.blockstorage.holding import refuse_held
from bockd.blockstorage.service import PoolBlockStorage
from bockd.errors import (
    ConflictError,
    DeviceError,
    InUseError,
    InvalidRequestError,
    InvalidStateError,
    NotFoundError,
)
from bockd.model import GIB
from bockd.runtime.steps import run_inline
from tests.blockstorage.store import Store, force_status


def hold(store: Store, tenant: TenantId, volume: Volume, reason: str = "a test") -> None:
    store.run(lambda s: s.hold_volume(tenant, volume.id, reason))


def release(store: Store, tenant: TenantId, volume: Volume, reason: str | None = None) -> None:
    store.run(lambda s: s.release_volume(tenant, volume.id, reason))


def test_held_until_released_also_by_the_next_daemon(store: Store, tenant: TenantId) -> None:
    volume = store.volume(tenant)
    hold(store, tenant, volume, "for a test")
    store.restart()
    held = store.look(tenant, volume)
    assert (held.status, held.hold) == (Status.MAINTENANCE, "for a test")
    with store.pool.index.reading() as txn, pytest.raises(InUseError, match="for a test"):
        refuse_held(txn, volume.id)
    hold(store, tenant, volume, "for a test")
    with pytest.raises(InvalidStateError, match="it is held"):
        hold(store, tenant, volume, "for another one")
    store.run(lambda s: s.hold_volume(tenant, volume.id, "for another one", "for a test"))
    assert store.look(tenant, volume).hold == "for another one"
    release(store, tenant, volume)
    freed = store.look(tenant, volume)
    assert (freed.status, freed.hold) == (Status.AVAILABLE, None)
    with store.pool.index.reading() as txn:
        refuse_held(txn, volume.id)
    with pytest.raises(InvalidStateError, match="not held; it is available"):
        release(store, tenant, volume)
    with pytest.raises(InvalidStateError, match="not held any more"):
        store.run(lambda s: s.hold_volume(tenant, volume.id, "now", "for another one"))
    assert store.look(tenant, volume).status is Status.AVAILABLE
    store.assert_sound()


def test_a_release_ends_the_hold_that_it_names(store: Store, tenant: TenantId) -> None:
    volume = store.volume(tenant)
    hold(store, tenant, volume, "a new one")
    for other in ("an old one", ""):
        with pytest.raises(ConflictError, match=r"another reason now \(a new one\)"):
            release(store, tenant, volume, other)
        found = store.look(tenant, volume)
        assert (found.status, found.hold) == (Status.MAINTENANCE, "a new one")
    release(store, tenant, volume, "a new one")
    assert store.look(tenant, volume).status is Status.AVAILABLE
    store.assert_sound()


def test_a_deletion_is_of_a_volume_with_the_hold_that_it_names(
    store: Store, tenant: TenantId
) -> None:
    """Who released it may have written to it since."""
    volume = store.volume(tenant)
    with pytest.raises(InvalidStateError, match="not held; it is available"):
        store.run(lambda s: s.delete_volume(tenant, volume.id, "moved"))
    assert store.look(tenant, volume).status is Status.AVAILABLE
    hold(store, tenant, volume, "by somebody")
    with pytest.raises(ConflictError, match=r"another reason now \(by somebody\)"):
        store.run(lambda s: s.delete_volume(tenant, volume.id, "moved"))
    found = store.look(tenant, volume)
    assert (found.status, found.hold) == (Status.MAINTENANCE, "by somebody")
    store.run(lambda s: s.delete_volume(tenant, volume.id, "by somebody"))
    with pytest.raises(NotFoundError):
        store.look(tenant, volume)
    store.assert_sound()


REFUSED: dict[str, Callable[[PoolBlockStorage, TenantId, Volume], object]] = {
    "attached": lambda s, t, v: s.attach(t, "1", v.id, None),
    "extended": lambda s, t, v: s.extend_volume(t, v.id, 2 * GIB),
    "reopened": lambda s, t, v: s.reopen_volume(t, v.id),
}


@pytest.mark.parametrize("what", REFUSED)
def test_of_a_held_volume_nothing_but_a_snapshot_is_made(
    store: Store, tenant: TenantId, what: str
) -> None:
    volume = store.volume(tenant)
    hold(store, tenant, volume)
    with pytest.raises(InvalidStateError, match="maintenance"):
        store.run(lambda s: REFUSED[what](s, tenant, volume))  # type: ignore[arg-type, return-value]
    snapshot = store.run(lambda s: s.create_snapshot(tenant, NewSnapshot(volume.id)))
    with pytest.raises(InvalidStateError, match="maintenance"):
        store.run(lambda s: s.revert_volume(tenant, volume.id, snapshot.id))
    store.run(lambda s: s.delete_volume(tenant, volume.id))
    with pytest.raises(NotFoundError):
        store.look(tenant, volume)
    store.assert_sound()


def test_a_deletion_that_has_failed_is_tried_again_with_the_hold(
    store: Store, tenant: TenantId, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = store.volume(tenant)
    hold(store, tenant, volume)

    async def fail(*_: object) -> None:
        raise DeviceError("the disk fails")

    with monkeypatch.context() as during:
        during.setattr(store.pool, "delete_volume", fail)
        with pytest.raises(DeviceError):
            store.run(lambda s: s.delete_volume(tenant, volume.id, "a test"))
    failed = store.look(tenant, volume)
    assert (failed.status, failed.hold) == (Status.ERROR_DELETING, "a test")
    with pytest.raises(ConflictError, match="for another reason"):
        store.run(lambda s: s.delete_volume(tenant, volume.id, "another one"))
    store.run(lambda s: s.delete_volume(tenant, volume.id, "a test"))
    with pytest.raises(NotFoundError):
        store.look(tenant, volume)
    store.assert_sound()


@pytest.mark.parametrize("status", sorted(set(Status) - {Status.AVAILABLE, Status.MAINTENANCE}))
def test_no_hold_of_a_volume_that_somebody_has(
    store: Store, tenant: TenantId, status: Status
) -> None:
    volume = store.volume(tenant)
    force_status(store, tenant, volume, status)
    with pytest.raises(InvalidStateError, match=f"it is {status}"):
        hold(store, tenant, volume)
    assert store.look(tenant, volume).status is status
    force_status(store, tenant, volume, Status.AVAILABLE)


def test_no_hold_of_a_volume_with_users(store: Store, tenant: TenantId) -> None:
    volume = store.volume(tenant)
    run_inline(store.pool.registry.use_volume(volume.id))
    with pytest.raises(InvalidStateError, match="it has 1 users"):
        hold(store, tenant, volume)
    found = store.look(tenant, volume)
    assert (found.status, found.hold) == (Status.AVAILABLE, None)
    store.pool.registry.leave_volume(volume.id)
    hold(store, tenant, volume)
    assert volume.id not in store.pool.registry.volumes


def test_hold_again_finds_users_and_stays(store: Store, tenant: TenantId) -> None:
    """As where another gateway that had clients was the first to know nothing of the hold."""
    volume = store.volume(tenant)
    hold(store, tenant, volume)
    run_inline(store.pool.registry.use_volume(volume.id))
    with pytest.raises(InvalidStateError, match="it has 1 users"):
        hold(store, tenant, volume)
    assert store.look(tenant, volume).status is Status.MAINTENANCE
    store.pool.registry.leave_volume(volume.id)


@pytest.mark.parametrize("reason", ["", " ", "x" * 256, "\ud800"])
def test_a_hold_has_a_reason(store: Store, tenant: TenantId, reason: str) -> None:
    volume = store.volume(tenant)
    with pytest.raises(InvalidRequestError, match="reason"):
        hold(store, tenant, volume, reason)
    assert store.look(tenant, volume).status is Status.AVAILABLE
