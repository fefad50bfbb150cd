"""The recount finds each thing that should never be; a start gets over what it cannot do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest
import trio

from bockd.blockstorage import volumes
from bockd.blockstorage.contract import NewVolume, Status, TenantId, Usage, Volume
from bockd.blockstorage.records import API_VOLUMES, ATTACHED, EXPORTS, IMAGES, OWNED, Ledger
from bockd.blockstorage.recount import find_problems
from bockd.blockstorage.trashrecords import TRASH, TrashRecord
from bockd.drivers.local.format.catalogue import LocalVolumeRecord
from bockd.errors import DeviceError
from bockd.index.keys import id_key
from bockd.index.tables import Table
from bockd.model import NodeKind
from bockd.pool.index import Transaction
from bockd.pool.nodes import SNAPSHOTS, VOLUMES, Nodes
from bockd.pool.pool import nothing_more
from bockd.pool.trash import move_to_trash
from tests.blockstorage.store import Store

Damage = Callable[[Transaction, TenantId, Volume], object]


def _usage(txn: Transaction, tenant: TenantId, _volume: Volume) -> None:
    record = Ledger(txn).tenant(tenant)
    Ledger(txn).put_tenant(replace(record, used=Usage(volumes=7)))


def _status(txn: Transaction, tenant: TenantId, volume: Volume) -> None:
    Ledger(txn).put_volume(tenant, replace(volume, status=Status.IN_USE, backing=None))


def _all(txn: Transaction, table: Table) -> None:
    for key in list(txn.keys(table, b"", b"\xff" * 500)):
        txn.delete(table, key)


def _kept(tenant: TenantId, volume: Volume) -> TrashRecord:
    return TrashRecord(tenant, 1.0, 2.0, counted=False, volume=replace(volume, backing=None))


DAMAGES: dict[str, tuple[Damage, str]] = {
    "usage": (_usage, "recorded is"),
    "status": (_status, "is in-use, attached: False"),
    "owned": (lambda txn, _t, _v: _all(txn, OWNED), "table owned"),
    "attached": (lambda txn, _t, _v: _all(txn, ATTACHED), "table attached"),
    "export name": (lambda txn, _t, _v: _all(txn, EXPORTS), "table exports"),
    "no volume": (
        lambda txn, _t, v: txn.delete(VOLUMES, id_key(v.id)),
        "has no volume in the pool",
    ),
    "no snapshot": (lambda txn, _t, _v: _all(txn, SNAPSHOTS), "no snapshot in the pool"),
    "not in the pool's trash": (
        lambda txn, t, v: txn.put(TRASH, _kept(t, v).key, msgspec.json.encode(_kept(t, v))),
        "is recorded as being in the trash, and is not there in the pool",
    ),
    "in the trash and not": (
        lambda txn, t, v: txn.put(TRASH, _kept(t, v).key, msgspec.json.encode(_kept(t, v))),
        "is in the trash, and a tenant has it all the same",
    ),
    "nobody's trash": (
        lambda txn, _t, v: move_to_trash(Nodes(txn), NodeKind.VOLUME, v.id, 0.0, nothing_more),
        "is in the trash, and no tenant's",
    ),
    "another one's key": (
        lambda txn, t, v: txn.put(TRASH, b"v" + t.encode(), msgspec.json.encode(_kept(t, v))),
        "table trash has a record under another one's key",
    ),
    "counted trash": (
        lambda txn, t, v: txn.put(
            TRASH, b"x", msgspec.json.encode(replace(_kept(t, v), counted=True))
        ),
        "recorded is",
    ),
    "malformed": (
        lambda txn, _t, v: txn.put(API_VOLUMES, id_key(v.id), b"{}"),
        "a stored OwnedVolume is malformed",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_recount_finds_each_damage(store: Store, tenant: TenantId, damage: str) -> None:
    volume = store.look(tenant, store.volume(tenant))
    attached = store.volume(tenant)
    store.run(lambda s: s.attach(tenant, "1", attached.id, None))
    store.snapshot(tenant, volume)
    change, expected = DAMAGES[damage]
    found: list[str] = []

    class UndoError(Exception):
        pass

    def look(txn: Transaction) -> None:
        assert find_problems(txn) == ()
        change(txn, tenant, volume)
        found.extend(find_problems(txn))
        raise UndoError

    with pytest.raises(UndoError):
        store.pool.index.update(look)
    assert any(expected in problem for problem in found), found


def test_a_record_that_cannot_be_read_hides_no_other_fault(store: Store, tenant: TenantId) -> None:
    """Nor is what follows from all records taken for one."""
    broken, other = store.volume(tenant), store.look(tenant, store.volume(tenant))
    found: tuple[str, ...] = ()

    def look(txn: Transaction) -> None:
        nonlocal found
        txn.put(API_VOLUMES, id_key(broken.id), b"{}")
        txn.put(IMAGES, b"broken", b"no JSON")
        _status(txn, tenant, other)
        found = find_problems(txn)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.pool.index.update(look)
    assert len(found) == 3
    assert "table api-volumes" in found[0]
    assert "a stored OwnedVolume is malformed" in found[0]
    assert "a stored ImageRecord is malformed" in found[1]
    assert found[2] == f"volume {other.id} is in-use, attached: False"


def test_what_cannot_be_deleted_at_a_start_does_not_keep_the_others(
    store: Store,
    tenant: TenantId,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stuck, other = store.volume(tenant), store.volume(tenant)
    snapshot = store.snapshot(tenant, other)

    def interrupt(txn: Transaction) -> None:
        ledger = Ledger(txn)
        for volume in list(ledger.volumes(tenant)):
            ledger.put_volume(tenant, replace(volume, status=Status.DELETING))
        found = ledger.snapshot(tenant, snapshot.id)
        ledger.put_snapshot(tenant, replace(found, status=Status.DELETING))

    store.pool.index.update(interrupt)
    forget = volumes.forget_record

    def fail_one(txn: Transaction, record: LocalVolumeRecord) -> None:
        if record.id == stuck.id:
            raise DeviceError("broken")
        forget(txn, record)

    with monkeypatch.context() as patch:
        patch.setattr(volumes, "forget_record", fail_one)
        store.restart()
    assert f"volume {stuck.id}, being deleted when the daemon stopped: broken" in caplog.text
    left = store.run(lambda s: s.list_volumes(tenant))
    assert [(v.id, v.status) for v in left] == [(stuck.id, Status.ERROR_DELETING)]
    assert store.run(lambda s: s.list_snapshots(tenant)) == []
    store.run(lambda s: s.delete_volume(tenant, stuck.id))


def test_what_cannot_be_read_at_a_start_does_not_keep_the_others(
    store: Store, tenant: TenantId, caplog: pytest.LogCaptureFixture
) -> None:
    broken, other = store.volume(tenant), store.volume(tenant)
    with store.pool.index.reading() as txn:
        sound = txn.get(API_VOLUMES, id_key(broken.id)) or b""

    def damage(txn: Transaction) -> None:
        found = Ledger(txn).volume(tenant, other.id)
        Ledger(txn).put_volume(tenant, replace(found, status=Status.DELETING))
        txn.put(API_VOLUMES, id_key(broken.id), b"{}")

    store.pool.index.update(damage)
    store.restart()
    with store.pool.index.reading() as txn:
        assert Ledger(txn).owned_volume(other.id) is None
    assert "a stored OwnedVolume is malformed" in caplog.text
    store.pool.index.update(lambda txn: txn.put(API_VOLUMES, id_key(broken.id), sound))


def test_a_client_that_hangs_up_does_not_leave_half_a_change(
    store: Store, tenant: TenantId
) -> None:
    async def main() -> None:
        service = store.service
        with trio.CancelScope() as scope:
            scope.cancel()
            await service.create_volume(tenant, NewVolume(1))
        (volume,) = await service.list_volumes(tenant)
        for status, call in (
            (Status.IN_USE, lambda: service.attach(tenant, "1", volume.id, None)),
            (Status.AVAILABLE, lambda: service.detach(tenant, "1", volume.id)),
        ):
            with trio.CancelScope() as scope:
                scope.cancel()
                await call()
            assert (await service.show_volume(tenant, volume.id)).status is status
        with trio.CancelScope() as scope:
            scope.cancel()
            await service.delete_volume(tenant, volume.id)
        assert await service.list_volumes(tenant) == []

    trio.run(main)
