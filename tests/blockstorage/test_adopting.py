"""What belongs to nobody is found, and given to a tenant."""

from __future__ import annotations

import pytest

from bockd.blockstorage.adopting import adopt, find_unowned
from bockd.blockstorage.contract import Image, ImageId, NewImage, Status, TenantId, Usage
from bockd.blockstorage.images import Images
from bockd.blockstorage.records import ImageRecord, Ledger
from bockd.errors import ConflictError, InvalidRequestError, NotFoundError
from bockd.model import GIB, MIB, NodeKind
from bockd.runtime.steps import run_inline
from tests.blockstorage.store import Store


def unowned(store: Store) -> tuple[list[str], list[str]]:
    with store.pool.index.reading() as txn:
        volumes, snapshots = find_unowned(txn)
    return [one.name for one in volumes], [one.name for one in snapshots]


def take(store: Store, kind: NodeKind, ref: str, tenant: TenantId) -> None:
    store.pool.index.update(lambda txn: adopt(txn, kind, ref, tenant))


def test_an_older_pools_volumes_are_adopted(store: Store, tenant: TenantId) -> None:
    old = run_inline(store.pool.create_volume("old", GIB + MIB))
    then = run_inline(store.pool.create_snapshot(old.id, "then"))
    mine = store.volume(tenant, 1, "mine")
    assert unowned(store) == (["old"], ["then"])
    take(store, NodeKind.VOLUME, "old", tenant)
    take(store, NodeKind.SNAPSHOT, str(then.id), tenant)
    assert unowned(store) == ([], [])
    seen = {volume.display_name: volume for volume in store.run(lambda s: s.list_volumes(tenant))}
    assert seen.keys() == {"old", "mine"}
    assert (seen["old"].size_gib, seen["old"].status) == (2, Status.AVAILABLE)
    assert seen["old"].created_at == old.created_at
    (snapshot,) = store.run(lambda s: s.list_snapshots(tenant))
    assert (snapshot.display_name, snapshot.volume_id) == ("then", old.id)
    assert store.run(lambda s: s.limits(tenant)).used == Usage(2, 3, 1)
    store.run(lambda s: s.revert_volume(tenant, old.id, then.id))
    store.run(lambda s: s.delete_volume(tenant, old.id))
    assert store.look(tenant, mine).id == mine.id


def test_what_has_an_owner_stays_theirs(store: Store, tenant: TenantId) -> None:
    volume = store.volume(tenant, 1, "web")
    snapshot = store.snapshot(tenant, volume)
    other = store.tenant("other")
    for kind, node in ((NodeKind.VOLUME, volume.id), (NodeKind.SNAPSHOT, snapshot.id)):
        with pytest.raises(ConflictError, match="belongs to tenant"):
            take(store, kind, str(node), other)


def test_adopting_nothing_or_for_a_bad_tenant_id_is_refused(store: Store, tenant: TenantId) -> None:
    with pytest.raises(NotFoundError, match="no volume 'none'"):
        take(store, NodeKind.VOLUME, "none", tenant)
    run_inline(store.pool.create_volume("old", MIB))
    for bad in ("", "x" * 256, "a\0b"):
        with pytest.raises(InvalidRequestError, match="tenant's id"):
            take(store, NodeKind.VOLUME, "old", TenantId(bad))
    assert unowned(store) == (["old"], [])


def test_an_image_is_nobodys_and_stays_so(store: Store, tenant: TenantId) -> None:
    volume = run_inline(store.pool.create_volume("loading", MIB))
    snapshot = run_inline(store.pool.create_snapshot(volume.id, "image"))
    image = Image(ImageId("a"), "debian", MIB, 1, "raw", "ab", 0.0, 5)
    record = ImageRecord(image, snapshot.id)
    store.pool.index.update(lambda txn: Ledger(txn).put_image(record))
    assert unowned(store) == (["loading"], [])
    with pytest.raises(ConflictError, match="is image a"):
        take(store, NodeKind.SNAPSHOT, "image", tenant)


def test_a_volume_that_an_import_fills_is_not_to_be_had(store: Store, tenant: TenantId) -> None:
    new = NewImage("debian", "raw", MIB, 7, "a" * 64)
    begun = run_inline(Images(store.context).begin(new))
    assert unowned(store) == ([], [])
    with pytest.raises(ConflictError, match="to become image"):
        take(store, NodeKind.VOLUME, str(begun.volume), tenant)
