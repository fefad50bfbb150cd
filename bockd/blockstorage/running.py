"""What block storage needs from outside: `StorageContext`, and the protocols of its parts."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from bockd.blockstorage.contract import Attachment, Backing, Quota
from bockd.blockstorage.plugging import Devices, NoDevices
from bockd.blockstorage.quota import DEFAULT_QUOTA
from bockd.blockstorage.records import TenantRecord
from bockd.blockstorage.trashcontract import NO_TRASH, TrashRules
from bockd.errors import ForbiddenError
from bockd.model import NO_IO_LIMITS, IoLimits, NodeKind, export_name
from bockd.pool.caches import CacheState
from bockd.pool.index import Transaction
from bockd.pool.pool import Pool
from bockd.pool.records import SnapshotRecord, VolumeRecord
from bockd.runtime.steps import Steps, blocking, blocking_apart

T = TypeVar("T")

DEFAULT_ZONE = "nova"
"""`availabilityZone` of a volume that asks for none, as the specification prints it (4.4.2.1)."""


COMMITTING = "commits"
"""Kind of the calls that change the index which several gateways share."""


class OperationRunner(Protocol):
    """Runs operations."""

    async def run(self, steps: Steps[T]) -> T:
        """Run an operation to its end, even if its caller is cancelled."""
        ...

    async def checkpoint(self) -> None:
        """Let others run between two operations, and end there if the caller is cancelled."""
        ...


class ExportPublisher(Protocol):
    """What the daemon does about attachments and about what is deleted.

    New connections are admitted by the stored status (`rules.REACHABLE`): change the record before
    calling `withdraw`.
    """

    def publish(self, attachment: Attachment) -> Steps[None]:
        """Check that the volume can be served. A BockdError undoes the attachment."""
        ...

    def withdraw(self, attachment: Attachment, *, force: bool) -> Steps[str | None]:
        """End all connections that came under the attachment's export name, and flush the volume.

        Requests that clients have sent are carried out and answered first, within a moment; with
        `force`, only those that the engine has begun already. No request that came that way changes
        the volume after this. Returns why the volume has failed, in this flush or before it; None
        if it has not. A BockdError leaves the volume attached.
        """
        ...

    def clients(self, attachment: Attachment) -> int:
        """Return how many clients are connected under the attachment's export name."""
        ...

    def forget(self, kind: NodeKind, node: int, *, kept: bool = False) -> None:
        """Drop the counters of a volume or snapshot that was deleted. Of one that is `kept` in the
        trash, what counts for limits of its I/O goes on when it is restored."""
        ...

    def connections(self, kind: NodeKind, node: int) -> int:
        """Return how many NBD clients use a volume or snapshot now."""
        ...


class NoPublisher:
    """Publishes nothing; for tests that look at records only."""

    async def publish(self, attachment: Attachment) -> None:
        del attachment

    async def withdraw(self, attachment: Attachment, *, force: bool) -> str | None:
        del attachment, force
        return None

    def clients(self, attachment: Attachment) -> int:
        del attachment
        return 0

    def forget(self, kind: NodeKind, node: int, *, kept: bool = False) -> None:
        """Do nothing: no counters are kept."""

    def connections(self, kind: NodeKind, node: int) -> int:
        """Return 0: no client connects."""
        del kind, node
        return 0


@dataclass(frozen=True, slots=True)
class StorageContext:
    """What all operations share."""

    pool: Pool
    exports: ExportPublisher
    default_quota: Quota = DEFAULT_QUOTA
    default_zone: str = DEFAULT_ZONE
    tenant_quotas: Mapping[str, Quota] = field(default_factory=dict)
    """Configured for single tenants, by id or name."""
    write_back_tenants: frozenset[str] = frozenset()
    """Those who may choose write-back and give up what is dirty, by id or name."""
    devices: Devices = field(default_factory=NoDevices)
    volume_limits: IoLimits = NO_IO_LIMITS
    """Of the I/O of volumes that have none of their own."""
    tenant_limits: IoLimits = NO_IO_LIMITS
    """Of the I/O of all volumes of a tenant together, where the tenant has none of its own."""
    trash: TrashRules = NO_TRASH
    strict_servers: bool = False
    """Only registered servers exist."""
    daemon: str = field(default_factory=lambda: secrets.token_hex(8))
    """A random id of this run: a client that reaches the daemon in two ways sees that it is
    one."""
    at_work: Counter[tuple[NodeKind, int]] = field(default_factory=Counter)
    """The volumes and snapshots that operations are at work on here; see `working_on`."""

    @contextmanager
    def working_on(self, kind: NodeKind, node: int) -> Iterator[None]:
        """Say that an operation gives a volume or snapshot a transient status and ends that: from
        before the first commit until the last one, or until it has had to give up."""
        self.at_work[kind, node] += 1
        try:
            yield
        finally:
            self.at_work[kind, node] -= 1
            if not self.at_work[kind, node]:
                del self.at_work[kind, node]

    def quota_of(self, record: TenantRecord) -> Quota:
        """Return the tenant's quota: the configuration's, else that of its record, else the
        default. In the configuration the id comes first, because a tenant may be named like another
        one's id."""
        configured = self.tenant_quotas.get(record.tenant.id)
        configured = configured or self.tenant_quotas.get(record.tenant.name)
        return configured or record.quota or self.default_quota

    def refuse_write_back(self, record: TenantRecord) -> None:
        """Raise ForbiddenError for a tenant that may not choose write-back, nor give up what is
        dirty: what others' volumes have on a gateway's disk shares that with it."""
        if not self.write_back_tenants & {record.tenant.id, record.tenant.name}:
            raise ForbiddenError(
                f"tenant {record.tenant.name} may not choose write-back, nor give up what is not "
                "written back: the service's operator can allow it (write_back.tenants)"
            )

    def limits_of(self, record: VolumeRecord) -> IoLimits:
        """Return what a volume is held to."""
        return self.volume_limits if record.limits is None else record.limits

    def tenant_limits_of(self, record: TenantRecord) -> IoLimits:
        """Return what the volumes of a tenant together are held to."""
        return self.tenant_limits if record.limits is None else record.limits

    def backing(self, kind: NodeKind, record: VolumeRecord | SnapshotRecord) -> Backing:
        """Return what the pool has behind a volume or snapshot. Call this on the owner thread."""
        return Backing(
            daemon=self.daemon,
            name=record.name,
            export=export_name(kind, record.name),
            size_bytes=record.size_bytes,
            connections=self.exports.connections(kind, record.id),
            error=self._trouble(record) if isinstance(record, VolumeRecord) else None,
            content_bytes=record.content_bytes,
            gateway=self._gateway(record) if isinstance(record, VolumeRecord) else None,
            cache=self._cache(record) if isinstance(record, VolumeRecord) else None,
            limits=self.limits_of(record) if isinstance(record, VolumeRecord) else NO_IO_LIMITS,
            profile=_profile_name(record),
        )

    def _cache(self, record: VolumeRecord) -> CacheState | None:
        """See Backing.cache."""
        return self.pool.caches.state(record) if self.pool.features.caches else None

    def _gateway(self, record: VolumeRecord) -> str | None:
        """See Backing.gateway."""
        return None if self.pool.gateway is None else self.pool.holder(record) or ""

    def _trouble(self, record: VolumeRecord) -> str | None:
        """What is wrong with a volume, without what is not its tenant's business: file names."""
        failure = self.pool.failure(record)
        if failure is None and self.pool.trouble(record) is not None:
            return (
                f"volume {record.id} ({record.name}) could not be opened; 'bockd check' on the "
                "daemon's machine, and its log, say why"
            )
        return failure

    async def update(self, change: Callable[[Transaction], T]) -> T:
        """Run `change` in a transaction of its own; see `Index.update`."""
        if self.pool.features.several_gateways:
            # The cluster may not answer for some time, and others may have nothing to do with it.
            return await blocking_apart(COMMITTING, self.pool.index.update, change)
        return await blocking(self.pool.index.update, change)


def _profile_name(record: VolumeRecord | SnapshotRecord) -> str | None:
    """See Backing.profile."""
    if isinstance(record, VolumeRecord) and record.profile is not None:
        return record.profile.name
    return None
