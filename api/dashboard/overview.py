"""What the pages show of volumes and snapshots: what the pool has, with whose it is.

The control interface knows everything in the pool, and block storage what each tenant knows of its
own: put together, an operator can act for the tenant. It is a look at every record, and made a few
at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import msgspec

from api.listing import JsonArray, each_piece, encode_all, items, with_arrays
from bockd.accountcontrol import AccountControl, TenantInfo
from bockd.blockstorage.contract import Snapshot, TenantId, Volume
from bockd.blockstorage.trashcontract import StorageWithTrash, TrashedNode
from bockd.control import Control, SnapshotInfo, VolumeInfo
from bockd.errors import DamagedError
from bockd.model import NO_IO_LIMITS, IoLimits, NodeKind
from bockd.pool.caches import CacheState
from bockd.runtime.pace import Pace


@dataclass(frozen=True, slots=True, kw_only=True)
class Owned:
    """What a tenant knows of its own."""

    tenant: str
    name: str | None
    last_error: str | None = None
    hold: str | None = None
    server: str | None = None
    device: str | None = None
    cache: CacheState | None = None


OwnedNodes = dict[int, bytes]
"""Of each id an Owned, as msgpack. The garbage collector looks at every object that may refer to
others, and at no bytes: with those of 10,000 volumes one of its passes took 16 ms, in which nobody
is served."""

_ENCODE = msgspec.msgpack.Encoder().encode
_DECODE = msgspec.msgpack.Decoder(Owned).decode


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
    def of(cls, found: VolumeInfo | SnapshotInfo, owned: Owned | None, **more: Any) -> Self:
        """Put together what the pool and a tenant know of it; `more` is what only its kind has."""
        return cls(
            id=found.id,
            name=(owned.name if owned is not None else None) or found.name,
            pool_name=found.name,
            tenant=None if owned is None else owned.tenant,
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
    """Everything that is listed, but for the arrays `volumes` (ShownVolume), `snapshots`
    (ShownSnapshot) and `trash` (ShownTrashed)."""

    tenants: tuple[TenantInfo, ...]
    keep_seconds: float
    """For how long what is deleted now is kept in the trash; 0: it is gone at once."""
    damaged: tuple[str, ...]
    """Tenants whose records cannot be read, and why."""


async def overview(
    control: Control, accounts: AccountControl, storage: StorageWithTrash
) -> list[bytes]:
    """Look at everything. Return an Overview, with its arrays, as pieces of JSON. Raises
    BockdError."""
    tenants = await accounts.list_tenants()
    volumes, snapshots, kept = OwnedNodes(), OwnedNodes(), JsonArray()
    damaged, pace = [], Pace()
    for tenant in tenants:
        whose = TenantId(tenant.id)
        try:
            await each_piece(partial(storage.list_volumes, whose), keep_volumes(volumes, whose))
            await each_piece(
                partial(storage.list_snapshots, whose), keep_snapshots(snapshots, whose)
            )
            await each_piece(partial(storage.trash.list, whose), keep_trash(kept, whose))
        except DamagedError as error:
            damaged.append(f"tenant {tenant.name}: {error}")
        await pace.step()
    return with_arrays(
        Overview(
            tenants=tuple(tenants),
            keep_seconds=storage.trash.keep_seconds,
            damaged=tuple(damaged),
        ),
        volumes=await encode_all(
            await control.list_volumes(), partial(shown_volume, owned=volumes)
        ),
        snapshots=await encode_all(
            await control.list_snapshots(None), partial(shown_snapshot, owned=snapshots)
        ),
        trash=kept.end(),
    )


def keep_volumes(owned: OwnedNodes, whose: TenantId) -> Callable[[Sequence[Volume]], None]:
    """Return what enters a tenant's volumes."""

    def take(found: Sequence[Volume]) -> None:
        owned.update((one.id, _ENCODE(owned_volume(whose, one))) for one in found)

    return take


def keep_snapshots(owned: OwnedNodes, whose: TenantId) -> Callable[[Sequence[Snapshot]], None]:
    """Return what enters a tenant's snapshots."""

    def take(found: Sequence[Snapshot]) -> None:
        owned.update((one.id, _ENCODE(Owned(tenant=whose, name=one.display_name))) for one in found)

    return take


def keep_trash(kept: JsonArray, whose: TenantId) -> Callable[[Sequence[TrashedNode]], None]:
    """Return what enters what a tenant has in the trash."""

    def take(found: Sequence[TrashedNode]) -> None:
        kept.add(items(shown_trashed(whose, one) for one in found))

    return take


def owned_volume(tenant: str, volume: Volume) -> Owned:
    """Tell what a tenant knows of a volume."""
    attachment, backing = volume.attachment, volume.backing
    return Owned(
        tenant=tenant,
        name=volume.display_name,
        last_error=volume.last_error,
        hold=volume.hold,
        server=None if attachment is None else attachment.server_id,
        device=None if attachment is None else attachment.device,
        cache=None if backing is None else backing.cache,
    )


def taken(owned: OwnedNodes, node: int) -> Owned | None:
    """Take what a tenant knows of one out of `owned`: what was written is freed at once, and not
    all of it at the end, which takes its time, too."""
    found = owned.pop(node, None)
    return None if found is None else _DECODE(found)


def shown_volume(found: VolumeInfo, owned: OwnedNodes) -> ShownVolume:
    """Put together what the pool and the tenant know of a volume."""
    its = taken(owned, found.id)
    return ShownVolume.of(
        found,
        its,
        status=found.status,
        from_snapshot=found.from_snapshot,
        uri=found.uri,
        gateway=found.gateway,
        error=found.error,
        last_error=None if its is None else its.last_error,
        hold=None if its is None else its.hold,
        server=None if its is None else its.server,
        device=None if its is None else its.device,
        cache=None if its is None else its.cache,
        limits=None if found.limits == NO_IO_LIMITS else found.limits,
        own_limits=found.own_limits,
        profile=None if found.profile is None else found.profile.name,
    )


def shown_snapshot(found: SnapshotInfo, owned: OwnedNodes) -> ShownSnapshot:
    """Put together what the pool and the tenant know of a snapshot."""
    return ShownSnapshot.of(found, taken(owned, found.id), volume=found.volume)


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
