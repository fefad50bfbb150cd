"""Images: what volumes can be made from, imported once and shared by all tenants.

An image is a snapshot of the pool that no tenant owns, with a record beside it. An import fills a
volume that no tenant owns either and turns it into that snapshot:

    begin    one transaction: the volume, and an ImportRecord that says what it is for
    (data)   somebody writes to the volume, as to any other one
    finish   one transaction: the volume becomes the snapshot, the ImportRecord the ImageRecord

A crash in between leaves the ImportRecord, and `sweep` removes it with its volume at the next start
(of several gateways: what the own earlier runs have left, and later what one has left that is
gone). The same content is imported once: an image is known by the checksum of its file and the
format that the file was read as. Names are unique, so that people can use them in place of ids.

An image that was fetched from Glance keeps the id that it has there, and is only for those whom
Glance shows it to: see `ImageRecord.fetched`.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Callable
from dataclasses import replace

from bockd.blockstorage import rules
from bockd.blockstorage.contract import Image, ImageId, NewImage
from bockd.blockstorage.records import ImageRecord, ImportRecord, Ledger
from bockd.blockstorage.running import StorageContext
from bockd.blockstorage.volumes import forget_record, naming
from bockd.blockstorage.working import Whose, anybody
from bockd.errors import BockdError, ConflictError, InvalidRequestError, NotFoundError
from bockd.failpoints import Failpoint, hit
from bockd.model import NodeKind, SnapshotId, VolumeId
from bockd.pool.index import Transaction
from bockd.pool.records import SnapshotRecord, VolumeRecord
from bockd.validation import check_content_size, check_image_name, shown_number

log = logging.getLogger(__name__)

DISK_FORMATS = frozenset({"raw", "qcow2", "vmdk", "vdi", "vhdx", "vhd"})
"""Glance's names for what qemu-img reads."""

_CHECKSUM = re.compile(r"[0-9a-f]{64}")


def random_id() -> ImageId:
    """Return a new image's id: a UUID, as Glance's are."""
    return ImageId(str(uuid.uuid4()))


class Images:
    """The operations on images. Those that change something are steps."""

    def __init__(self, context: StorageContext, new_id: Callable[[], ImageId] = random_id) -> None:
        self._context = context
        self._pool = context.pool
        self._new_id = new_id

    # -- looking -----------------------------------------------------------------------------

    def all(self) -> list[ImageRecord]:
        """Return all images by name."""
        with self._pool.index.reading() as txn:
            return sorted(Ledger(txn).images(), key=lambda found: found.image.name)

    def find(self, ref: str) -> ImageRecord:
        """Return the image of an id or a name. Raise NotFoundError when there is none."""
        for found in self.all():
            if ref in (found.image.id, found.image.name):
                return found
        raise NotFoundError(
            f"there is no image {ref[:300]!r}; 'bock image list' shows what there is"
        )

    def being_imported(self) -> list[ImportRecord]:
        """Return the imports in progress."""
        with self._pool.index.reading() as txn:
            return list(Ledger(txn).imports())

    def begun_here(self) -> list[ImportRecord]:
        """Return the imports in progress that this daemon has begun: of several gateways, only its
        clients show here whether somebody fills them."""
        with self._pool.index.reading() as txn:
            return [one for one in Ledger(txn).imports() if one.worker == txn.author]

    # -- importing ---------------------------------------------------------------------------

    async def begin(self, new: NewImage) -> ImportRecord:
        """Begin an import: create the empty volume to be filled, of `new.size_bytes`.

        Raises InvalidRequestError, and ConflictError when the name is taken or the content is an
        image already; the message says which.
        """
        content_bytes = new.content_bytes
        if content_bytes is not None:
            content_bytes = check_content_size(content_bytes, new.size_bytes)
        image = Image(
            id=new.glance_id or self._new_id(),
            name=check_image_name(new.name),
            size_bytes=new.size_bytes,
            min_size_gib=rules.size_in_gib(new.size_bytes),
            disk_format=_check_format(new.disk_format),
            checksum=_check_checksum(new.checksum),
            created_at=self._pool.clock(),
            file_bytes=new.file_bytes,
            content_bytes=content_bytes,
        )
        if new.file_bytes < 0:
            raise InvalidRequestError("file_bytes must not be negative")

        fetched = new.glance_id is not None

        def in_transaction(txn: Transaction, volume: VolumeRecord) -> None:
            ledger = Ledger(txn)
            refuse_known(ledger, image, fetched=fetched)
            ledger.put_import(ImportRecord(volume.id, image, fetched))
            hit(Failpoint.IMPORT_RECORDED)

        with self._pool.index.reading() as txn:
            refuse_known(Ledger(txn), image, fetched=fetched)  # before any file is made
        volume = await self._pool.create_volume(
            naming(NodeKind.VOLUME, f"import-{image.id}"),
            new.size_bytes,
            None,
            in_transaction,
            content_bytes,
        )
        hit(Failpoint.IMPORT_BEGUN)
        return ImportRecord(volume.id, image, fetched)

    async def finish(self, volume: VolumeId) -> ImageRecord:
        """Make the filled volume the image, durably; the volume no longer exists then.

        Raises InUseError while a client is connected to it, NotFoundError when it is not (or no
        longer) being filled, ConflictError as `begin` does. The import goes on when this raises.
        """
        made: list[ImageRecord] = []

        def in_transaction(txn: Transaction, snapshot: SnapshotRecord) -> None:
            ledger = Ledger(txn)
            filling = _import_into(ledger, volume)
            refuse_known(ledger, filling.image, fetched=filling.fetched)
            ledger.remove_import(volume)
            record = ImageRecord(
                replace(filling.image, created_at=snapshot.created_at),
                SnapshotId(snapshot.id),
                filling.fetched,
            )
            ledger.put_image(record)
            made[:] = [record]

        with self._pool.index.reading() as txn:
            image = _import_into(Ledger(txn), volume).image
        named = naming(NodeKind.SNAPSHOT, f"image-{image.name}")
        await self._pool.freeze_volume(volume, named, in_transaction)
        hit(Failpoint.IMPORT_FINISHED)
        self._context.exports.forget(NodeKind.VOLUME, volume)
        return made[0]

    async def cancel(self, volume: VolumeId) -> None:
        """Cancel an import and delete what it has written. Raise InUseError while a client is
        connected, NotFoundError when there is no such import."""
        with self._pool.index.reading() as txn:
            _import_into(Ledger(txn), volume)
        await self._pool.delete_volume(volume, forget_record)
        hit(Failpoint.IMPORT_CANCELLED)
        self._context.exports.forget(NodeKind.VOLUME, volume)

    async def sweep(self, whose: Whose = anybody) -> None:
        """Cancel, at the start, the imports that a crash interrupted. One that cannot be cancelled
        is logged and kept for the next start."""
        for filling in self.being_imported():
            if not whose(filling.worker, (NodeKind.VOLUME, filling.volume)):
                continue
            try:
                await self._pool.delete_volume(filling.volume, forget_record)
            except (BockdError, OSError) as error:
                log.error("the half import of image %s: %s", filling.image.name, error)  # noqa: TRY400
            else:
                log.info("removed the half import of image %s", filling.image.name)

    # -- deleting ----------------------------------------------------------------------------

    async def delete(self, ref: str) -> ImageRecord:
        """Delete an image; volumes made from it stay. Raise InUseError while it is read."""
        found = self.find(ref)

        def in_transaction(txn: Transaction, _snapshot: SnapshotRecord) -> None:
            Ledger(txn).remove_image(found)

        await self._pool.delete_snapshot(found.snapshot, in_transaction)
        hit(Failpoint.IMAGE_DELETED)
        self._context.exports.forget(NodeKind.SNAPSHOT, found.snapshot)
        return found


def refuse_known(ledger: Ledger, image: Image, *, fetched: bool) -> None:
    """Raise ConflictError when there is an image with this content or with this name.

    The caller may see all images but those that were fetched, so the error says nothing about the
    content of those.
    """
    for record in ledger.images():
        known = record.image
        same = (known.checksum, known.disk_format) == (image.checksum, image.disk_format)
        if same and not fetched and not record.fetched:
            raise ConflictError(
                f"the same content is image {known.id} ({known.name}) already; use that one, "
                "or delete it first"
            )
        if known.name == image.name or known.id == image.id:
            raise ConflictError(
                f"an image named {known.name!r} with other content exists already ({known.id}); "
                "choose another name, or delete it first"
            )


def _import_into(ledger: Ledger, volume: VolumeId) -> ImportRecord:
    found = ledger.import_into(volume)
    if found is None:
        raise NotFoundError(
            f"no import fills volume {shown_number(volume)}; it was cancelled, or given up "
            "because nobody was connected to it"
        )
    return found


def _check_format(disk_format: str) -> str:
    if disk_format not in DISK_FORMATS:
        raise InvalidRequestError(
            f"disk_format {disk_format[:40]!r} is not one of {', '.join(sorted(DISK_FORMATS))}"
        )
    return disk_format


def _check_checksum(checksum: str) -> str:
    if not _CHECKSUM.fullmatch(checksum):
        raise InvalidRequestError("checksum must be a SHA-256 of 64 hexadecimal digits")
    return checksum
