"""What the specification cannot say about a volume: growing it, reverting it to a snapshot, using
it again after an error, how it is cached, and its exact space. The first two have Cinder's form and
rules.

Each change is one transaction of the pool, in which the record is judged and follows: there is no
status in between that a crash could leave behind.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from bockd.blockstorage import quota, rules
from bockd.blockstorage.contract import Attachment, Status, TenantId, Volume
from bockd.blockstorage.records import Ledger
from bockd.blockstorage.running import StorageContext
from bockd.blockstorage.servers import find_server, unreachable
from bockd.blockstorage.volumes import Volumes, status_now
from bockd.errors import BockdError, ConflictError, InUseError, NotFoundError
from bockd.model import CacheMode, NodeKind, SnapshotId, VolumeId
from bockd.pool.index import Transaction
from bockd.pool.nodes import Nodes
from bockd.pool.records import VolumeRecord
from bockd.pool.reports import Space
from bockd.publictexts import discretion
from bockd.runtime.steps import Steps
from bockd.validation import check_volume_size

log = logging.getLogger(__name__)


class Changes:
    """The operations of our extension; see bockd.blockstorage.contract.BlockStorage."""

    def __init__(self, context: StorageContext, volumes: Volumes) -> None:
        self._context = context
        self._pool = context.pool
        self._volumes = volumes

    async def extend(self, tenant: TenantId, volume: VolumeId, size_bytes: int) -> None:
        """Grow a volume, within the quota."""
        check_volume_size(size_bytes)
        size_gib = rules.size_in_gib(size_bytes)
        quota_of = self._context.quota_of
        found = self._volumes.show(tenant, volume)
        rules.check_can_be_extended(volume, found.status)
        with self._pool.index.reading() as txn:
            # What is refused here has not grown any file.
            record = Ledger(txn).tenant(tenant)
        quota.with_growth(quota_of(record), record.used, volume, found.size_gib, size_gib)

        def in_transaction(txn: Transaction, _record: VolumeRecord) -> None:
            current = _judged(txn, tenant, volume, rules.check_can_be_extended)
            Ledger(txn).resize_volume(tenant, current, size_gib, quota_of)

        with _refusals(volume):
            await self._pool.extend_volume(volume, size_bytes, in_transaction)
        await self._resize_device(tenant, volume, size_bytes)

    async def _resize_device(self, tenant: TenantId, volume: VolumeId, size_bytes: int) -> None:
        """Enlarge the device that a server has of a volume. The volume has grown whatever becomes
        of that, so trouble is not raised but kept in the volume's `last_error`."""
        with self._pool.index.reading() as txn:
            ledger = Ledger(txn)
            found = ledger.volume(tenant, volume)
            attachment = found.attachment
            if attachment is None:
                return
            at = find_server(ledger, tenant, attachment.server_id, strict=False)
            at = replace(at, kind=attachment.server_kind)
            elsewhere = unreachable(txn, at)
        reason = None
        try:
            if elsewhere:
                raise ConflictError(elsewhere)
            await self._context.devices.resize(at, attachment, size_bytes)
        except BockdError as error:
            log.warning("volume %s, extended, at server %s: %s", volume, at.name, error)
            reason = (
                f"the disk in server {at.name} was not enlarged at once: {discretion.text(error)}"
            )
        if reason != found.last_error:
            await self._context.update(lambda txn: _note(txn, tenant, volume, attachment, reason))

    async def revert(self, tenant: TenantId, volume: VolumeId, snapshot: SnapshotId) -> None:
        """Revert a volume to one of its snapshots."""
        rules.check_can_be_reverted(volume, self._volumes.show(tenant, volume).status)
        with self._pool.index.reading() as txn:
            _check_source(txn, tenant, volume, snapshot)

        def in_transaction(txn: Transaction, _record: VolumeRecord) -> None:
            _judged(txn, tenant, volume, rules.check_can_be_reverted)
            _check_source(txn, tenant, volume, snapshot)

        with _refusals(volume):
            await self._pool.revert_volume(volume, snapshot, in_transaction)

    async def reopen(self, tenant: TenantId, volume: VolumeId) -> None:
        """Use a volume again after an error, and accept that it may have lost writes."""
        found = self._volumes.show(tenant, volume)
        assert found.backing is not None
        trouble = found.backing.error
        rules.check_can_be_reopened(volume, found.status, trouble)

        def in_transaction(txn: Transaction, _record: VolumeRecord) -> None:
            current = Ledger(txn).volume(tenant, volume)
            rules.check_can_be_reopened(volume, current.status, trouble)

        with _refusals(volume):
            await self._pool.reopen_volume(volume, in_transaction)

    async def set_cache(self, tenant: TenantId, volume: VolumeId, mode: CacheMode) -> None:
        """Choose how a volume is cached."""
        rules.check_can_be_cached(volume, self._volumes.show(tenant, volume).status)
        caches = self._pool.caches
        if mode is CacheMode.WRITE_BACK:
            self._refuse_write_back(tenant)

        def in_transaction(txn: Transaction, _record: VolumeRecord) -> None:
            _judged(txn, tenant, volume, rules.check_can_be_cached)

        with _refusals(volume):
            await caches.set_mode(volume, mode, in_transaction)

    async def discard_cache(self, tenant: TenantId, volume: VolumeId) -> None:
        """Give up what is dirty of a volume."""
        rules.check_can_lose_cache(volume, self._volumes.show(tenant, volume).status)
        caches = self._pool.caches
        self._refuse_write_back(tenant)

        def in_transaction(txn: Transaction, _record: VolumeRecord) -> None:
            _judged(txn, tenant, volume, rules.check_can_lose_cache)

        with _refusals(volume):
            await caches.discard(volume, in_transaction)

    def _refuse_write_back(self, tenant: TenantId) -> None:
        with self._pool.index.reading() as txn:
            record = Ledger(txn).tenant(tenant)
        self._context.refuse_write_back(record)

    def volume_space(self, tenant: TenantId, volume: VolumeId) -> Steps[Space]:
        """Compute a volume's exact space by a walk over its maps."""
        with self._pool.index.reading() as txn:
            Ledger(txn).volume(tenant, volume)
        return self._pool.measure(NodeKind.VOLUME, volume)

    def snapshot_space(self, tenant: TenantId, snapshot: SnapshotId) -> Steps[Space]:
        """Compute a snapshot's exact space by a walk over its maps."""
        with self._pool.index.reading() as txn:
            Ledger(txn).snapshot(tenant, snapshot)
        return self._pool.measure(NodeKind.SNAPSHOT, snapshot)


def _judged(txn: Transaction, tenant: TenantId, volume: VolumeId, check: rules.Check) -> Volume:
    """One of the tenant's volumes, whose status has passed `check`."""
    found = Ledger(txn).volume(tenant, volume)
    check(volume, status_now(Nodes(txn), found))
    return found


def _note(
    txn: Transaction, tenant: TenantId, volume: VolumeId, at: Attachment, reason: str | None
) -> None:
    """Keep what the last operation on an attachment came to, while it is still this one."""
    ledger = Ledger(txn)
    found = ledger.volume(tenant, volume)
    if found.attachment == at and found.status is Status.IN_USE:
        ledger.put_volume(tenant, replace(found, last_error=reason))


def _check_source(
    txn: Transaction, tenant: TenantId, volume: VolumeId, snapshot: SnapshotId
) -> None:
    found = Ledger(txn).snapshot(tenant, snapshot)
    rules.check_can_be_reverted_to(snapshot, found.status, found.volume_id, volume)


@contextmanager
def _refusals(volume: VolumeId) -> Iterator[None]:
    """What the pool refuses, in the words of block storage."""
    try:
        yield
    except InUseError as error:
        raise rules.in_use(NodeKind.VOLUME, error) from None
    except NotFoundError:
        raise rules.not_found(NodeKind.VOLUME, volume) from None
