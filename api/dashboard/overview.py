"""What the pages show of volumes and snapshots: what the pool has, with whose it is.

The control interface knows everything in the pool, and block storage what each tenant knows of its
own: put together, an operator can act for the tenant.
"""

from __future__ import annotations

from dataclasses import dataclass

from bockd.blockstorage.contract import BlockStorage, Snapshot, TenantId, Volume
from bockd.control import AccountControl, Control, SnapshotInfo, TenantInfo, VolumeInfo
from bockd.errors import DamagedError


@dataclass(frozen=True, slots=True)
class ShownVolume:
    """A volume. Sizes in bytes, times in seconds since the epoch."""

    id: int
    name: str
    """The tenant's, or without one the pool's."""
    pool_name: str
    tenant: str | None
    """An id; None: it belongs to nobody, and only a look at it is possible."""
    size_bytes: int
    status: str
    created_at: float
    connections: int
    from_snapshot: int | None
    uri: str
    gateway: str | None
    error: str | None
    last_error: str | None
    hold: str | None
    server: str | None
    """What it is attached to."""
    device: str | None


@dataclass(frozen=True, slots=True)
class ShownSnapshot:
    """A snapshot, as `ShownVolume`."""

    id: int
    name: str
    pool_name: str
    tenant: str | None
    volume: int
    """Its origin, which may be deleted since."""
    size_bytes: int
    created_at: float
    connections: int


@dataclass(frozen=True, slots=True)
class Overview:
    """Everything that is listed."""

    tenants: tuple[TenantInfo, ...]
    volumes: tuple[ShownVolume, ...]
    snapshots: tuple[ShownSnapshot, ...]
    damaged: tuple[str, ...]
    """Tenants whose records cannot be read, and why."""


async def overview(control: Control, accounts: AccountControl, storage: BlockStorage) -> Overview:
    """Look at everything. Raises BockdError."""
    tenants = await accounts.list_tenants()
    volumes: dict[int, tuple[str, Volume]] = {}
    snapshots: dict[int, tuple[str, Snapshot]] = {}
    damaged = []
    for tenant in tenants:
        whose = TenantId(tenant.id)
        try:
            volumes |= {one.id: (tenant.id, one) for one in await storage.list_volumes(whose)}
            snapshots |= {one.id: (tenant.id, one) for one in await storage.list_snapshots(whose)}
        except DamagedError as error:
            damaged.append(f"tenant {tenant.name}: {error}")
    return Overview(
        tenants=tuple(tenants),
        volumes=tuple(
            shown_volume(one, volumes.get(one.id)) for one in await control.list_volumes()
        ),
        snapshots=tuple(
            shown_snapshot(one, snapshots.get(one.id)) for one in await control.list_snapshots(None)
        ),
        damaged=tuple(damaged),
    )


def shown_volume(found: VolumeInfo, owned: tuple[str, Volume] | None) -> ShownVolume:
    """Put together what the pool and the tenant know of a volume."""
    tenant, volume = owned or (None, None)
    attachment = None if volume is None else volume.attachment
    return ShownVolume(
        id=found.id,
        name=(volume.display_name if volume is not None else None) or found.name,
        pool_name=found.name,
        tenant=tenant,
        size_bytes=found.size_bytes,
        status=found.status,
        created_at=found.created_at,
        connections=found.connections,
        from_snapshot=found.from_snapshot,
        uri=found.uri,
        gateway=found.gateway,
        error=found.error,
        last_error=None if volume is None else volume.last_error,
        hold=None if volume is None else volume.hold,
        server=None if attachment is None else attachment.server_id,
        device=None if attachment is None else attachment.device,
    )


def shown_snapshot(found: SnapshotInfo, owned: tuple[str, Snapshot] | None) -> ShownSnapshot:
    """Put together what the pool and the tenant know of a snapshot."""
    tenant, snapshot = owned or (None, None)
    return ShownSnapshot(
        id=found.id,
        name=(snapshot.display_name if snapshot is not None else None) or found.name,
        pool_name=found.name,
        tenant=tenant,
        volume=found.volume,
        size_bytes=found.size_bytes,
        created_at=found.created_at,
        connections=found.connections,
    )
