"""What `bock` knows of a tenant's volumes and snapshots, as it prints them with `--json`.

Read from the REST API's replies. What only a bockd tells is under the key "bockd"; of another
server that speaks the same API the rest is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from bockd.errors import NotSupportedError
from bockd.model import GIB, NO_IO_LIMITS, IoLimits, IoRate
from bockd.pool.reports import Space

MOVED = "migrated to volume "
"""Begins the reason of a hold."""


@dataclass(frozen=True, slots=True)
class Attached:
    """Where a volume is attached."""

    volume: int
    server: str
    device: str


@dataclass(frozen=True, slots=True)
class WayIn:
    """An attachment, and how its server reaches it. What another server than bockd does not say is
    None. Who knows a URI can read and write the volume."""

    volume: int
    server: str
    device: str
    kind: str | None
    """Of the server: host, vm or plain."""
    uri: str | None
    """Over TCP."""
    unix_uri: str | None
    """On the daemon's own machine."""
    connections: int | None
    uris: tuple[str, ...] = ()
    """In a pool of several gateways: over TCP, by way of each; `uri` is the first."""


@dataclass(frozen=True, slots=True)
class Cache:
    """How a volume is cached at the gateway that has it. Times are seconds since the epoch."""

    mode: str
    dirty_at: str | None
    """The gateway that has writes which the pool does not have. None: none has."""
    dirty_since: float | None
    dirty_bytes: int | None
    """None: only that gateway knows, while it has the volume open."""
    error: str | None
    """Why it is not written back now."""
    discarded_at: float | None
    salvaged_bytes: int | None
    """What the last attempt wrote back of the log whose rest was given up. None: it was not
    read."""
    given_up_bytes: int | None


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume. `uri` is where this machine's NBD clients connect; None from elsewhere."""

    id: int
    name: str
    """Its display name; without one, its name in the pool."""
    size_bytes: int
    content_bytes: int
    """The size of the image that was imported into it; `size_bytes` without one."""
    status: str
    created_at: float
    description: str | None
    metadata: dict[str, str]
    from_snapshot: int | None
    from_image: str | None
    from_volume: int | None
    """Of a clone: what it was made of, which may be deleted since."""
    attachment: Attached | None
    connections: int | None
    """NBD clients; None when the server does not say."""
    uri: str | None
    error: str | None
    last_error: str | None
    """Why the latest attaching or detaching did not go as asked."""
    gateway: str | None = None
    """In a pool of several gateways: which one has it open; "" if none has."""
    cache: Cache | None = None
    """None: volumes of that pool have none."""
    hold: str | None = None
    """Of one in maintenance: who holds it, and what for."""
    limits: IoLimits = NO_IO_LIMITS
    """What its I/O is held to."""
    profile: str | None = None
    """The name of its device profile."""
    space: Space | None = None
    """None: not asked for; only `show` does."""

    @property
    def has_moved(self) -> bool:
        """Whether it is held because another pool has it now (`bock volume migrate`)."""
        return (self.hold or "").startswith(MOVED)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot. `volume` is its origin, which may be deleted since."""

    id: int
    name: str
    volume: int
    size_bytes: int
    content_bytes: int
    status: str
    created_at: float
    description: str | None
    connections: int | None
    uri: str | None
    space: Space | None = None
    """None: not asked for; only `show` does."""
    consumes_quota: bool = True
    """False: a migration has made it, and will delete it."""


def local_uri(found: Volume | Snapshot) -> str:
    """Return the NBD URI over which data moves. Raises NotSupportedError on a machine other than
    the daemon's."""
    if found.uri is None:
        raise NotSupportedError(
            "data moves over the daemon's NBD socket, which cannot be used from here: run this on "
            "the daemon's machine, as the user who runs it"
        )
    return found.uri


def read_volume(view: dict[str, Any], uri: str | None) -> Volume:
    """Read a volume from a reply. Raises KeyError, TypeError or ValueError when it is not one."""
    backing = view.get("bockd", {})
    attached = next((one for one in view["attachments"] if one), None)
    return Volume(
        id=int(view["id"]),
        name=view["displayName"] or backing.get("name", ""),
        size_bytes=(size := backing.get("size_bytes", int(view["size"]) * GIB)),
        content_bytes=backing.get("content_bytes", size),
        status=view["status"],
        created_at=read_time(view["createdAt"]),
        description=view["displayDescription"],
        metadata=view["metadata"],
        from_snapshot=int(view["snapshotId"]) if view["snapshotId"] else None,
        from_image=view.get("imageRef") or None,
        from_volume=backing.get("source_volid"),
        attachment=None if attached is None else read_attached(attached),
        connections=backing.get("connections"),
        uri=uri,
        error=backing.get("error"),
        last_error=backing.get("last_error"),
        gateway=(backing["gateway"] or "") if "gateway" in backing else None,
        cache=read_cache(backing["cache"]) if "cache" in backing else None,
        hold=backing.get("hold"),
        limits=read_limits(backing.get("limits", {})),
        profile=backing.get("profile"),
    )


def read_cache(view: dict[str, Any]) -> Cache:
    """Read how a volume is cached."""
    since, discarded = view["dirty_since"], view["discarded_at"]
    return Cache(
        mode=view["mode"],
        dirty_at=view["dirty_at"],
        dirty_since=None if since is None else read_time(since),
        dirty_bytes=view["dirty_bytes"],
        error=view["error"],
        discarded_at=None if discarded is None else read_time(discarded),
        salvaged_bytes=view.get("salvaged_bytes"),
        given_up_bytes=view.get("given_up_bytes"),
    )


def read_limits(view: dict[str, Any]) -> IoLimits:
    """Read what a volume's I/O is held to."""
    found: dict[str, Any] = {
        name: IoRate(**value) if isinstance(value, dict) else value for name, value in view.items()
    }
    return IoLimits(**found)


def read_attached(view: dict[str, Any]) -> Attached:
    """Read an attachment from a volume's `attachments`, or from a reply about one."""
    return Attached(int(view["volumeId"]), str(view["serverId"]), view["device"])


def read_way_in(view: dict[str, Any]) -> WayIn:
    """Read an attachment, and how its server reaches it, from a reply about one."""
    at, ours = read_attached(view), view.get("bockd", {})
    return WayIn(
        volume=at.volume,
        server=at.server,
        device=at.device,
        kind=ours.get("kind"),
        uri=ours.get("uri"),
        unix_uri=ours.get("unix_uri"),
        connections=ours.get("connections"),
        uris=tuple(ours.get("uris", ())),
    )


def read_snapshot(view: dict[str, Any], uri: str | None) -> Snapshot:
    """Read a snapshot from a reply. Raises KeyError, TypeError or ValueError when it is not one."""
    backing = view.get("bockd", {})
    return Snapshot(
        id=int(view["id"]),
        name=view["displayName"] or backing.get("name", ""),
        volume=int(view["volumeId"]),
        size_bytes=(size := backing.get("size_bytes", int(view["size"]) * GIB)),
        content_bytes=backing.get("content_bytes", size),
        status=view["status"],
        created_at=read_time(view["createdAt"]),
        description=view["displayDescription"],
        connections=backing.get("connections"),
        uri=uri,
        consumes_quota=backing.get("consumes_quota", True),
    )


def read_time(text: str) -> float:
    """Read a time as seconds since the epoch. The API writes UTC without saying so."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()
