"""Images over a real pool: importing, what volumes made from them hold, deleting, crashes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bockd.blockstorage.contract import NewImage, NewVolume, TenantId
from bockd.blockstorage.images import Images
from bockd.blockstorage.records import ImageRecord, ImportRecord, Ledger
from bockd.blockstorage.recount import find_problems
from bockd.blockstorage.snapshots import forget_record
from bockd.errors import ConflictError, InUseError, InvalidRequestError, NotFoundError
from bockd.model import GIB, MIB, SnapshotId, VolumeId
from bockd.runtime.steps import run_inline
from tests.blockstorage.store import Store

NEW = NewImage("debian", "qcow2", 2 * GIB + MIB, 12345, "a" * 64)
OTHER = replace(NEW, name="other", checksum="b" * 64)


def fill(store: Store, volume: VolumeId, text: bytes) -> None:
    """Write something to a volume, as a client of NBD does, and leave."""
    opened = run_inline(store.pool.registry.use_volume(volume))
    run_inline(opened.volume.write(4096, memoryview(text)))
    store.pool.registry.leave_volume(volume)


def content(store: Store, volume: VolumeId, length: int) -> bytes:
    """What is where `fill` writes."""
    opened = run_inline(store.pool.registry.use_volume(volume))
    found = bytearray(length)
    run_inline(opened.volume.read(4096, memoryview(found)))
    store.pool.registry.leave_volume(volume)
    return bytes(found)


def imported(store: Store, new: NewImage = NEW, text: bytes = b"bootable") -> ImageRecord:
    """An image with a little in it."""
    images = Images(store.context)
    begun = run_inline(images.begin(new))
    fill(store, begun.volume, text)
    return run_inline(images.finish(begun.volume))


def test_an_import(store: Store, tenant: TenantId) -> None:
    images = Images(store.context)
    store.pool.registry.clock = lambda: 10.0
    begun = run_inline(images.begin(NEW))
    assert images.being_imported() == [begun]
    assert images.all() == []
    assert store.run(lambda s: s.list_volumes(tenant)) == []
    fill(store, begun.volume, b"bootable")
    store.pool.registry.clock = lambda: 20.0
    record = run_inline(images.finish(begun.volume))
    image = record.image
    assert (image.name, image.disk_format, image.checksum) == ("debian", "qcow2", "a" * 64)
    assert (image.size_bytes, image.min_size_gib, image.file_bytes) == (2 * GIB + MIB, 3, 12345)
    assert (image.id, image.created_at) == (begun.image.id, 20.0)
    assert images.being_imported() == []
    with store.pool.registry.catalogue() as catalogue:
        assert list(catalogue.volumes()) == []
        (snapshot,) = catalogue.snapshots()
        assert (snapshot.id, snapshot.name) == (record.snapshot, "image-debian")
    assert list(store.pool.registry.store.layout.journal_segments()) == []
    store.assert_sound()
    store.restart()  # durable, and nothing to sweep
    assert Images(store.context).all() == [record]
    made = store.run(lambda s: s.create_volume(tenant, NewVolume(None, image_id=image.id)))
    assert (made.size_gib, made.image_id) == (3, image.id)
    assert content(store, made.id, 8) == b"bootable"


def test_found_by_id_or_name(store: Store) -> None:
    record = imported(store)
    images = Images(store.context)
    for ref in (record.image.id, "debian"):
        assert images.find(ref) == record
    for ref in ("Debian", "", "../debian", "\ud800", "x" * 5000, str(record.snapshot)):
        with pytest.raises(NotFoundError):
            images.find(ref)


def test_the_same_content_is_imported_once(store: Store) -> None:
    first = imported(store)
    images = Images(store.context)
    with pytest.raises(ConflictError, match=f"the same content is image {first.image.id}"):
        run_inline(images.begin(replace(NEW, name="debian-again")))
    # The same file, taken as raw bytes, is another disk.
    imported(store, replace(NEW, name="as raw", disk_format="raw"))
    with pytest.raises(ConflictError, match="'debian' with other content exists"):
        run_inline(images.begin(replace(OTHER, name="debian")))
    assert images.being_imported() == []


def test_the_first_of_two_imports_of_the_same_wins(store: Store) -> None:
    images = Images(store.context)
    one, two = run_inline(images.begin(NEW)), run_inline(images.begin(NEW))
    first = run_inline(images.finish(two.volume))
    with pytest.raises(ConflictError, match="the same content"):
        run_inline(images.finish(one.volume))
    run_inline(images.cancel(one.volume))
    assert images.all() == [first]
    store.assert_sound()


@pytest.mark.parametrize(
    "wrong",
    [
        replace(NEW, name=name)
        for name in (
            *("", "a/b", "..", ".hidden", "a\\b", "a\nb", " a", "7", "x" * 256, "\ud800", "\x00"),
            "0f3c6a1e-7b1d-4c55-9a0e-111122223333",
        )
    ]
    + [
        replace(NEW, disk_format="iso"),
        replace(NEW, size_bytes=MIB + 1),
        replace(NEW, size_bytes=0),
        replace(NEW, file_bytes=-1),
        replace(NEW, checksum="a" * 63),
        replace(NEW, checksum="A" * 64),
        replace(NEW, checksum=""),
    ],
)
def test_an_import_with_bad_fields_is_refused(store: Store, wrong: NewImage) -> None:
    with pytest.raises(InvalidRequestError):
        run_inline(Images(store.context).begin(wrong))
    assert Images(store.context).being_imported() == []


def test_not_finished_while_somebody_writes(store: Store) -> None:
    images = Images(store.context)
    begun = run_inline(images.begin(NEW))
    opened = run_inline(store.pool.registry.use_volume(begun.volume))
    run_inline(opened.volume.write(4096, memoryview(b"half")))
    for operation in (images.finish, images.cancel):
        with pytest.raises(InUseError):
            run_inline(operation(begun.volume))
    run_inline(opened.volume.write(4100, memoryview(b"whole")))
    store.pool.registry.leave_volume(begun.volume)
    assert run_inline(images.finish(begun.volume)).image == images.find("debian").image
    with pytest.raises(NotFoundError):
        run_inline(images.finish(begun.volume))


def test_a_cancelled_import_leaves_nothing(store: Store) -> None:
    images = Images(store.context)
    begun = run_inline(images.begin(NEW))
    fill(store, begun.volume, b"half")
    run_inline(images.cancel(begun.volume))
    for operation in (images.finish, images.cancel):
        with pytest.raises(NotFoundError):
            run_inline(operation(begun.volume))
    with store.pool.registry.catalogue() as catalogue:
        assert list(catalogue.volumes()) == []
    assert imported(store).image.name == "debian"  # the name is free again


@pytest.mark.parametrize("volume", [0, -1, 1, 10**30])
def test_a_volume_that_no_import_fills(store: Store, tenant: TenantId, volume: int) -> None:
    assert store.volume(tenant).id == 1
    images = Images(store.context)
    for operation in (images.finish, images.cancel):
        with pytest.raises(NotFoundError):
            run_inline(operation(VolumeId(volume)))
    assert len(store.run(lambda s: s.list_volumes(tenant))) == 1


def test_a_crash_sweeps_half_imports(store: Store, tenant: TenantId) -> None:
    whole = imported(store)
    images = Images(store.context)
    untouched = run_inline(images.begin(OTHER))
    half = run_inline(images.begin(replace(OTHER, name="third", checksum="c" * 64)))
    fill(store, half.volume, b"half")
    mine = store.volume(tenant)
    store.restart()
    images = Images(store.context)
    assert (images.all(), images.being_imported()) == ([whole], [])
    with store.pool.registry.catalogue() as catalogue:
        assert [volume.id for volume in catalogue.volumes()] == [mine.id]
    assert untouched.volume != mine.id


def test_deleting(store: Store, tenant: TenantId) -> None:
    record = imported(store)
    image = record.image.id
    made = store.run(lambda s: s.create_volume(tenant, NewVolume(4, image_id=image)))
    images = Images(store.context)
    run_inline(store.pool.registry.use_snapshot(record.snapshot))
    with pytest.raises(InUseError):
        run_inline(images.delete("debian"))
    store.pool.registry.leave_snapshot(record.snapshot)
    assert run_inline(images.delete("debian")) == record
    with pytest.raises(NotFoundError):
        run_inline(images.delete(image))
    with pytest.raises(NotFoundError):
        store.run(lambda s: s.create_volume(tenant, NewVolume(4, image_id=image)))
    left = store.look(tenant, made)
    assert (left.image_id, content(store, left.id, 8)) == (image, b"bootable")
    assert imported(store).image.id != image  # the same content may come back


def test_an_images_snapshot_is_deleted_with_it_only(store: Store) -> None:
    record = imported(store)
    with pytest.raises(InUseError, match="delete the image instead"):
        run_inline(store.pool.delete_snapshot(record.snapshot, forget_record))
    assert Images(store.context).all() == [record]


def test_the_recount_sees_what_should_never_be(store: Store) -> None:
    record = imported(store)
    lost = ImageRecord(replace(record.image, name="lost"), SnapshotId(77))
    index = store.pool.index
    index.update(lambda txn: Ledger(txn).put_image(lost))
    index.update(lambda txn: Ledger(txn).put_import(ImportRecord(VolumeId(78), record.image)))
    with index.reading() as txn:
        found = find_problems(txn)
    assert any("no snapshot 77" in line for line in found)
    assert any("no volume 78" in line for line in found)
    index.update(lambda txn: Ledger(txn).put_image(record))
    index.update(lambda txn: Ledger(txn).remove_import(VolumeId(78)))
