"""Volumes and snapshots over a real pool: what is made, seen, counted and refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import trio

from bockd.blockstorage.contract import (
    Image,
    ImageId,
    Limits,
    NewSnapshot,
    NewVolume,
    Page,
    Quota,
    Status,
    TenantId,
    Usage,
    Volume,
)
from bockd.blockstorage.records import ImageRecord, Ledger
from bockd.blockstorage.service import PoolBlockStorage
from bockd.errors import (
    DeviceError,
    InvalidRequestError,
    InvalidStateError,
    NotFoundError,
    OverLimitError,
)
from bockd.model import GIB, MIB, SnapshotId, VolumeId
from bockd.runtime.steprunner import StepRunner
from bockd.runtime.steps import run_inline
from tests.blockstorage.store import Store


def test_a_volume_is_creating_in_the_reply_and_available_after(
    store: Store, tenant: TenantId
) -> None:
    new = NewVolume(3, "Test Volume", "Test Volume desc", metadata={"VolMeta": "VolMetaValue"})
    made = store.run(lambda s: s.create_volume(tenant, new))
    assert made.status is Status.CREATING
    assert (made.display_name, made.display_description) == ("Test Volume", "Test Volume desc")
    assert (made.size_gib, made.metadata) == (3, {"VolMeta": "VolMetaValue"})
    assert (made.availability_zone, made.snapshot_id, made.attachment) == ("nova", None, None)
    seen = store.look(tenant, made)
    assert seen == replace(made, status=Status.AVAILABLE)
    with store.pool.registry.catalogue() as catalogue:
        assert catalogue.volume(made.id).size_bytes == 3 * GIB
        assert catalogue.volume(made.id).created_at == made.created_at
    store.restart()
    assert store.look(tenant, made) == seen


@pytest.mark.parametrize(
    "new",
    [
        NewVolume(None),
        NewVolume(0),
        NewVolume(-1),
        NewVolume(16385),
        NewVolume(1, snapshot_id=SnapshotId(1), image_id=ImageId("x")),
        NewVolume(0, snapshot_id=SnapshotId(1)),
        NewVolume(1, "x" * 256),
        NewVolume(1, None, "x" * 256),
        NewVolume(1, availability_zone="x" * 256),
        NewVolume(1, metadata={"": ""}),
    ],
)
def test_bad_volumes_are_refused(store: Store, tenant: TenantId, new: NewVolume) -> None:
    with pytest.raises(InvalidRequestError):
        store.run(lambda s: s.create_volume(tenant, new))
    assert store.run(lambda s: s.list_volumes(tenant)) == []


def test_display_names_may_repeat_be_absent_or_be_no_names(store: Store, tenant: TenantId) -> None:
    other = store.tenant("other")
    names = ["web", "web", None, None, "", "7", " x ", "x" * 255, "a\nb", "snapshot/s"]
    made = [store.volume(tenant, 1, name) for name in names]
    made.append(store.volume(other, 1, "web"))
    with store.pool.registry.catalogue() as catalogue:
        in_pool = [catalogue.volume(volume.id).name for volume in made]
    ids = [volume.id for volume in made]
    assert [volume.display_name for volume in made] == [*names, "web"]
    assert in_pool == [
        "web",
        f"web-{ids[1]}",
        f"volume-{ids[2]}",
        f"volume-{ids[3]}",
        f"volume-{ids[4]}",
        f"7-{ids[5]}",
        f"volume-{ids[6]}",
        "x" * 255,
        f"volume-{ids[8]}",
        f"volume-{ids[9]}",
        f"web-{ids[10]}",
    ]


def test_a_pool_name_taken_in_advance_is_stepped_around(store: Store, tenant: TenantId) -> None:
    run_inline(store.pool.create_volume("volume-2", MIB))
    volume = store.volume(tenant)
    with store.pool.registry.catalogue() as catalogue:
        assert catalogue.volume(volume.id).name == "volume-2-2"


def test_a_volume_from_a_snapshot_has_its_size_whatever_is_asked(
    store: Store, tenant: TenantId
) -> None:
    snapshot = store.snapshot(tenant, store.volume(tenant, 5))
    for asked in (None, 1, 100):
        new = NewVolume(asked, snapshot_id=snapshot.id)
        clone = store.run(lambda s, new=new: s.create_volume(tenant, new))  # type: ignore[misc]
        assert (clone.size_gib, clone.snapshot_id) == (5, snapshot.id)
        with store.pool.registry.catalogue() as catalogue:
            assert catalogue.volume(clone.id).size_bytes == 5 * GIB
    used = store.run(lambda s: s.limits(tenant)).used
    assert used == Usage(volumes=4, gigabytes=20, snapshots=1)


def test_volumes_and_snapshots_are_independent(store: Store, tenant: TenantId) -> None:
    origin = store.volume(tenant, 1)
    snapshot = store.snapshot(tenant, origin)
    store.run(lambda s: s.delete_volume(tenant, origin.id))
    assert store.run(lambda s: s.show_snapshot(tenant, snapshot.id)).volume_id == origin.id
    clone = store.run(lambda s: s.create_volume(tenant, NewVolume(1, snapshot_id=snapshot.id)))
    store.run(lambda s: s.delete_snapshot(tenant, snapshot.id))
    assert store.look(tenant, clone).snapshot_id == snapshot.id
    used = store.run(lambda s: s.limits(tenant)).used
    assert used == Usage(volumes=1, gigabytes=1, snapshots=0)


@pytest.mark.parametrize("attempt", ["show", "delete", "attach", "detach", "snapshot"])
@pytest.mark.parametrize("whose", ["another's", "the operator's", "nobody's", "huge", "zero"])
def test_a_tenant_reaches_its_own_volumes_only(
    store: Store, tenant: TenantId, attempt: str, whose: str
) -> None:
    other = store.tenant("other")
    volume = {
        "another's": lambda: store.volume(other).id,
        "the operator's": lambda: run_inline(store.pool.create_volume("op", MIB)).id,
        "nobody's": lambda: VolumeId(999),
        "huge": lambda: VolumeId(10**30),
        "zero": lambda: VolumeId(0),
    }[whose]()
    with pytest.raises(NotFoundError, match=f"^Volume {volume} could not be found.$"):
        _attempt(store, tenant, attempt, volume)
    assert store.run(lambda s: s.list_volumes(tenant)) == []


def _attempt(store: Store, tenant: TenantId, attempt: str, volume: VolumeId) -> None:
    async def main() -> None:
        service = store.service
        match attempt:
            case "show":
                await service.show_volume(tenant, volume)
            case "delete":
                await service.delete_volume(tenant, volume)
            case "attach":
                await service.attach(tenant, "1", volume, None)
            case "detach":
                await service.detach(tenant, "1", volume)
            case _:
                await service.create_snapshot(tenant, NewSnapshot(volume))

    trio.run(main)


def test_a_tenant_reaches_its_own_snapshots_only(store: Store, tenant: TenantId) -> None:
    other = store.tenant("other")
    theirs = store.snapshot(other, store.volume(other))
    operators = run_inline(store.pool.create_snapshot(theirs.volume_id, "op")).id
    for snapshot in (theirs.id, operators, SnapshotId(999), SnapshotId(10**30)):
        calls: list[Callable[[], object]] = [
            lambda s=snapshot: store.run(lambda x: x.show_snapshot(tenant, s)),  # type: ignore[misc]
            lambda s=snapshot: store.run(lambda x: x.delete_snapshot(tenant, s)),  # type: ignore[misc]
            lambda s=snapshot: store.run(  # type: ignore[misc]
                lambda x: x.create_volume(tenant, NewVolume(1, snapshot_id=s))
            ),
        ]
        for call in calls:
            with pytest.raises(NotFoundError, match=f"^Snapshot {snapshot} could not be found.$"):
                call()


def test_lists_are_pages_of_ones_own(store: Store, tenant: TenantId) -> None:
    other = store.tenant("other")
    mine: list[Volume] = []
    for number in range(6):
        mine.append(store.volume(tenant, 1, "even" if number % 2 == 0 else None))
        store.volume(other, 1, "even")

    def ids(page: Page) -> list[int]:
        return [volume.id for volume in store.run(lambda s: s.list_volumes(tenant, page))]

    everything = [volume.id for volume in mine]
    assert ids(Page()) == everything
    assert ids(Page(limit=2, marker=everything[1])) == everything[2:4]
    assert ids(Page(display_name="even", offset=1)) == everything[2::2]
    assert ids(Page(marker=10**30)) == []
    first, second = (store.snapshot(tenant, volume).id for volume in mine[:2])
    listed = store.run(lambda s: s.list_snapshots(tenant, Page(marker=first)))
    assert [snapshot.id for snapshot in listed] == [second]
    with pytest.raises(InvalidRequestError):
        ids(Page(limit=-1))


# -- deleting ----------------------------------------------------------------------------------


def test_a_volume_with_a_client_is_not_deleted(store: Store, tenant: TenantId) -> None:
    volume = store.volume(tenant)
    run_inline(store.pool.registry.use_volume(volume.id))
    with pytest.raises(InvalidStateError, match=r"^Invalid volume: .*disconnect first"):
        store.run(lambda s: s.delete_volume(tenant, volume.id))
    assert store.look(tenant, volume).status is Status.AVAILABLE
    store.pool.registry.leave_volume(volume.id)
    store.run(lambda s: s.delete_volume(tenant, volume.id))
    with pytest.raises(NotFoundError):
        store.look(tenant, volume)


def test_a_snapshot_that_is_read_is_not_deleted(store: Store, tenant: TenantId) -> None:
    snapshot = store.snapshot(tenant, store.volume(tenant))
    run_inline(store.pool.registry.use_snapshot(snapshot.id))
    with pytest.raises(InvalidStateError, match=r"^Invalid snapshot: "):
        store.run(lambda s: s.delete_snapshot(tenant, snapshot.id))
    seen = store.run(lambda s: s.show_snapshot(tenant, snapshot.id))
    assert seen.status is Status.AVAILABLE
    store.pool.registry.leave_snapshot(snapshot.id)
    store.run(lambda s: s.delete_snapshot(tenant, snapshot.id))
    assert store.run(lambda s: s.list_snapshots(tenant)) == []


def test_a_deletion_that_fails_shows_and_can_be_tried_again(
    store: Store, tenant: TenantId, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = store.volume(tenant)
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "remove_volume", _io_error)
        with pytest.raises(DeviceError, match=rf"^deleting volume {volume.id}: "):
            store.run(lambda s: s.delete_volume(tenant, volume.id))
    assert store.look(tenant, volume).status is Status.ERROR_DELETING
    store.run(lambda s: s.delete_volume(tenant, volume.id))
    assert store.run(lambda s: s.list_volumes(tenant)) == []


def _io_error(*_: object) -> None:
    raise OSError(5, "broken")


def test_a_failed_volume_is_in_error_and_only_deletable(store: Store, tenant: TenantId) -> None:
    volume = store.volume(tenant)
    run_inline(store.pool.registry.use_volume(volume.id)).volume.durability.failure.declare(
        "the disk is gone"
    )
    store.background.run()
    store.pool.registry.leave_volume(volume.id)
    assert store.look(tenant, volume).status is Status.ERROR
    assert [v.status for v in store.run(lambda s: s.list_volumes(tenant))] == [Status.ERROR]
    for attempt in ("attach", "snapshot"):
        with pytest.raises(InvalidStateError, match="it is error"):
            _attempt(store, tenant, attempt, volume.id)
    store.run(lambda s: s.delete_volume(tenant, volume.id))


# -- quotas ------------------------------------------------------------------------------------


def test_the_quota_refuses_in_the_specifications_words(store: Store) -> None:
    tenant = store.tenant("small", Quota(volumes=2, gigabytes=3, snapshots=1))
    volume = store.volume(tenant, 2)
    with pytest.raises(OverLimitError) as caught:
        store.volume(tenant, 2)
    assert str(caught.value) == "Volume quota exceeded. You cannot create a volume of size 2G"
    assert caught.value.retry_after_seconds == 0
    store.volume(tenant, 1)
    store.snapshot(tenant, volume)
    with pytest.raises(OverLimitError, match=r"^Snapshot quota exceeded\."):
        store.snapshot(tenant, volume)
    store.run(lambda s: s.delete_volume(tenant, volume.id))
    snapshot = store.run(lambda s: s.list_snapshots(tenant))[0]
    clone = store.run(lambda s: s.create_volume(tenant, NewVolume(1, snapshot_id=snapshot.id)))
    assert clone.size_gib == 2
    assert store.run(lambda s: s.limits(tenant)) == Limits(
        Quota(volumes=2, gigabytes=3, snapshots=1), Usage(volumes=2, gigabytes=3, snapshots=1)
    )


def test_a_quota_of_minus_one_is_unlimited_and_zero_admits_none(store: Store) -> None:
    store.volume(store.tenant("free", Quota(-1, -1, -1)), 16384)
    with pytest.raises(OverLimitError):
        store.volume(store.tenant("none", Quota(0, -1, -1)))


def test_a_tenant_of_another_identity_service_has_the_default_quota(store: Store) -> None:
    tenant = TenantId("f" * 32)
    assert store.run(lambda s: s.limits(tenant)) == Limits(store.quota, Usage())
    store.volume(tenant, 7)
    assert store.run(lambda s: s.limits(tenant)).used == Usage(volumes=1, gigabytes=7)


def test_a_configured_quota_counts_before_all_others(store: Store) -> None:
    by_id, by_name = Quota(1, 1, 0), Quota(2, -1, -1)
    acme = store.tenant("acme", Quota(5, 5, 5))
    other = store.tenant("other")
    configured = {acme: by_id, "acme": by_name, "other": by_name}
    context = replace(store.context, tenant_quotas=configured)
    store.service = PoolBlockStorage(context, StepRunner())
    assert store.run(lambda s: s.limits(acme)).quota == by_id
    assert store.run(lambda s: s.limits(other)).quota == by_name
    volume = store.volume(acme)
    with pytest.raises(OverLimitError):
        store.volume(acme)
    with pytest.raises(OverLimitError):
        store.snapshot(acme, volume)
    store.snapshot(other, store.volume(other))


@pytest.mark.parametrize(
    "quota",
    [Quota(volumes=50, gigabytes=-1, snapshots=0), Quota(volumes=-1, gigabytes=50, snapshots=0)],
)
def test_of_200_concurrent_creates_exactly_the_quota_is_admitted(
    store: Store, quota: Quota
) -> None:
    tenant = store.tenant("crowded", quota)
    outcomes: list[bool] = []

    async def create() -> None:
        try:
            await store.service.create_volume(tenant, NewVolume(1))
        except OverLimitError:
            outcomes.append(False)
        else:
            outcomes.append(True)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(create)

    trio.run(main)
    assert (outcomes.count(True), outcomes.count(False)) == (50, 150)
    assert len(store.run(lambda s: s.list_volumes(tenant))) == 50
    with store.pool.registry.catalogue() as catalogue:
        assert len(list(catalogue.volumes())) == 50
    store.restart()
    assert store.run(lambda s: s.limits(tenant)).used == Usage(volumes=50, gigabytes=50)


# -- images ------------------------------------------------------------------------------------


def test_a_volume_from_an_image_is_a_clone_of_at_least_its_size(
    store: Store, tenant: TenantId
) -> None:
    source = run_inline(store.pool.create_volume("import", 2 * GIB + MIB)).id
    snapshot = run_inline(store.pool.create_snapshot(source, "image"))
    image = Image(ImageId("img-1"), "debian", 2 * GIB + MIB, 3, "raw", "0" * 64, 0.0, 5)
    store.pool.index.update(
        lambda txn: Ledger(txn).put_image(ImageRecord(image, SnapshotId(snapshot.id)))
    )
    assert store.run(lambda s: s.list_images()) == [image]
    assert store.run(lambda s: s.show_image(image.id)) == image
    for asked, size in ((None, 3), (3, 3), (10, 10)):
        new = NewVolume(asked, image_id=image.id)
        made = store.run(lambda s, new=new: s.create_volume(tenant, new))  # type: ignore[misc]
        assert (made.size_gib, made.image_id, made.snapshot_id) == (size, image.id, None)
    with pytest.raises(InvalidRequestError, match="too small"):
        store.run(lambda s: s.create_volume(tenant, NewVolume(2, image_id=image.id)))
    for unknown in ("img-2", "", "x" * 600, "\ud800"):
        new = NewVolume(2, image_id=ImageId(unknown))
        with pytest.raises(NotFoundError):
            store.run(lambda s, new=new: s.create_volume(tenant, new))  # type: ignore[misc]
