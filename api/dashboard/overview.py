"""What the pages show of volumes and snapshots: what the pool has, with whose it is.

The control interface knows everything in the pool, and block storage what each tenant knows of its
own: put together, an operator can act for the tenant. It is a look at every record, and made a few
at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, TypeVar

import msgspec

from api.listing import each_piece, encode_all
from bockd.blockstorage.contract import Snapshot, TenantId, Volume
from bockd.blockstorage.trashcontract import StorageWithTrash, TrashedNode
from bockd.control import AccountControl, Control, SnapshotInfo, TenantInfo, VolumeInfo
from bockd.errors import DamagedError
from bockd.model import NO_IO_LIMITS, IoLimits, NodeKind
from bockd.pool.caches import CacheState

N = TypeVar("N", Volume, Snapshot)
Owned = dict[int, tuple[str, N]]
"""What tenants have, by id, each with the tenant's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A volume or a snapshot. Sizes in bytes, times in seconds since the epoch."""

    id: int
    name: str
    """The tenant's, or without one the pool's."""
    pool_name: str
    tenant: str | None
    """An id; None: it belongs to nobody, and only a look at it is possible."""
    size_bytes: int
    created_at: float
    connections: int

    @classmethod
    def of(cls, found: VolumeInfo | SnapshotInfo, owned: Owned[N], **more: Any) -> Self:
        """Put together what the pool and a tenant know of it; `more` is what only its kind has."""
        tenant, known = owned.get(found.id, (None, None))
        return cls(
            id=found.id,
            name=(known.display_name if known is not None else None) or found.name,
            pool_name=found.name,
            tenant=tenant,
            size_bytes=found.size_bytes,
            created_at=found.created_at,
            connections=found.connections,
            **more,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownVolume(Shown):
    """A volume."""

    status: str
    from_snapshot: int | None
    uri: str
    gateway: str | None
    error: str | None
    last_error: str | None
    hold: str | None
    server: str | None
    """What it is attached to."""
    device: str | None
    cache: CacheState | None
    """With the reason that tenants are not told; None: it has none, or belongs to nobody."""
    limits: IoLimits | None
    """What its I/O is held to; None: nothing."""
    own_limits: bool
    """As VolumeInfo has it."""
    profile: str | None
    """The name of what it is made to look like."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownSnapshot(Shown):
    """A snapshot."""

    volume: int
    """Its origin, which may be deleted since."""


@dataclass(frozen=True, slots=True)
class ShownTrashed:
    """A volume or snapshot in the trash, as `ShownVolume`."""

    id: int
    kind: NodeKind
    name: str
    tenant: str
    size_bytes: int
    deleted_at: float
    expires_at: float


@dataclass(frozen=True, slots=True)
class Overview:
    """Everything that is listed."""

    tenants: tuple[TenantInfo, ...]
    volumes: msgspec.Raw
    """An array of ShownVolume."""
    snapshots: msgspec.Raw
    """An array of ShownSnapshot."""
    trash: tuple[ShownTrashed, ...]
    keep_seconds: float
    """For how long what is deleted now is kept in the trash; 0: it is gone at once."""
    damaged: tuple[str, ...]
    """Tenants whose records cannot be read, and why."""


async def overview(control: Control, accounts: AccountControl, storage: StorageWithTrash) -> bytes:
    """Look at everything. Return an Overview as JSON. Raises BockdError."""
    tenants = await accounts.list_tenants()
    volumes: Owned[Volume] = {}
    snapshots: Owned[Snapshot] = {}
    kept: list[ShownTrashed] = []
    damaged = []
    for tenant in tenants:
        whose = TenantId(tenant.id)
        try:
            await each_piece(partial(storage.list_volumes, whose), keep(volumes, whose))
            await each_piece(partial(storage.list_snapshots, whose), keep(snapshots, whose))
            await each_piece(partial(storage.trash.list, whose), keep_trash(kept, whose))
        except DamagedError as error:
            damaged.append(f"tenant {tenant.name}: {error}")
    found = Overview(
        tenants=tuple(tenants),
        volumes=msgspec.Raw(
            await encode_all(await control.list_volumes(), partial(shown_volume, owned=volumes))
        ),
        snapshots=msgspec.Raw(
            await encode_all(
                await control.list_snapshots(None), partial(shown_snapshot, owned=snapshots)
            )
        ),
        trash=tuple(kept),
        keep_seconds=storage.trash.keep_seconds,
        damaged=tuple(damaged),
    )
    return msgspec.json.encode(found)


def keep(owned: Owned[N], whose: TenantId) -> Callable[[Sequence[N]], None]:
    """Return what enters a tenant's volumes or snapshots."""

    def take(found: Sequence[N]) -> None:
        owned.update((one.id, (whose, one)) for one in found)

    return take


def keep_trash(
    kept: list[ShownTrashed], whose: TenantId
) -> Callable[[Sequence[TrashedNode]], None]:
    """Return what enters what a tenant has in the trash."""

    def take(found: Sequence[TrashedNode]) -> None:
        kept.extend(shown_trashed(whose, one) for one in found)

    return take


def shown_volume(found: VolumeInfo, owned: Owned[Volume]) -> ShownVolume:
    """Put together what the pool and the tenant know of a volume."""
    _, volume = owned.get(found.id, (None, None))
    attachment = None if volume is None else volume.attachment
    backing = None if volume is None else volume.backing
    return ShownVolume.of(
        found,
        owned,
        status=found.status,
        from_snapshot=found.from_snapshot,
        uri=found.uri,
        gateway=found.gateway,
        error=found.error,
        last_error=None if volume is None else volume.last_error,
        hold=None if volume is None else volume.hold,
        server=None if attachment is None else attachment.server_id,
        device=None if attachment is None else attachment.device,
        cache=None if backing is None else backing.cache,
        limits=None if found.limits == NO_IO_LIMITS else found.limits,
        own_limits=found.own_limits,
        profile=None if found.profile is None else found.profile.name,
    )


def shown_snapshot(found: SnapshotInfo, owned: Owned[Snapshot]) -> ShownSnapshot:
    """Put together what the pool and the tenant know of a snapshot."""
    return ShownSnapshot.of(found, owned, volume=found.volume)


def shown_trashed(tenant: str, found: TrashedNode) -> ShownTrashed:
    """Tell what is in a tenant's trash."""
    return ShownTrashed(
        id=found.id,
        kind=found.kind,
        name=found.display_name or found.name,
        tenant=tenant,
        size_bytes=found.size_bytes,
        deleted_at=found.deleted_at,
        expires_at=found.expires_at,
    )
