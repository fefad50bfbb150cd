"""What a frontend may ask of block storage: the operations of the HP Block Storage API as async
methods with plain data in and out. A frontend translates between these and its own language.

What holds for all methods:

* They raise BockdError subclasses only, and have changed nothing when they raise, unless their
  docstring says otherwise. A change is durable when its method returns, and a SIGKILL at any
  instant leaves all of it or none of it (what was caught half-way is resolved at the next start).
* A tenant sees its own only: what belongs to another one, or to none, raises NotFoundError.
  Volumes that an older version or another program made belong to no tenant until they are adopted.
* Arguments have the right types; everything else about them is checked here (InvalidRequestError).
* Ids of volumes and snapshots are the pool's ids. Sizes are in GiB, times are seconds since the
  epoch.

Errors, and the statuses that the specification and its clients expect for them:
InvalidRequestError 400, InvalidStateError 400, UnauthorizedError 401, ForbiddenError 403,
NotFoundError 404, ConflictError 409, OverLimitError 413 (for a quota) with its
`retry_after_seconds`, NotSupportedError 501, UnavailableError 503.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType, Protocol

from bockd.model import NO_IO_LIMITS, CacheMode, IoLimits, Server, ServerKind, SnapshotId, VolumeId
from bockd.pool.caches import CacheState
from bockd.pool.gateways import Gateway
from bockd.pool.reports import Changes, Space

TenantId = NewType("TenantId", str)
UserId = NewType("UserId", str)
ImageId = NewType("ImageId", str)


class Status(StrEnum):
    """What a volume or snapshot is doing (sections 4.4.2 to 4.4.4, "Status Lifecycle").

    A snapshot is only ever creating, available, deleting, error or error_deleting.
    """

    CREATING = "creating"
    AVAILABLE = "available"
    ATTACHING = "attaching"
    IN_USE = "in-use"
    DETACHING = "detaching"
    MAINTENANCE = "maintenance"
    """Held (`BlockStorage.hold_volume`): nobody reads or writes it. Cinder has the same word."""
    DELETING = "deleting"
    ERROR = "error"
    ERROR_DELETING = "error_deleting"


@dataclass(frozen=True, slots=True)
class Tenant:
    """Whose volumes they are. `id` is what stands in paths."""

    id: TenantId
    name: str


# -- volumes, snapshots, attachments -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Attachment:
    """A volume at a server. Its id is the volume's: a volume has at most one (rule 4)."""

    volume_id: VolumeId
    server_id: str
    device: str
    """As "/dev/vdf"."""
    export_name: str = field(repr=False)
    """The unguessable name under which the volume can be reached over TCP while attached."""
    attached_at: float
    server_kind: ServerKind = ServerKind.PLAIN
    """What the server was when the volume was attached to it."""
    device_info: Mapping[str, str] = field(default_factory=dict)
    """What a plugger says of the device that it has made, as {"serial": "..."}."""

    @property
    def id(self) -> VolumeId:
        return self.volume_id


@dataclass(frozen=True, slots=True)
class Backing:
    """What the pool has behind a volume or snapshot: more than the specification tells."""

    daemon: str
    """Names the run of the daemon that serves it; see `DaemonInfo.daemon`."""
    name: str
    """Its name in the pool, which no other volume (or snapshot) of any tenant has."""
    export: str
    """Its NBD export name, for clients on the daemon's Unix socket."""
    size_bytes: int
    connections: int
    """NBD clients that use it now."""
    error: str | None
    """Why it is refused, and what to do; None when nothing is wrong with it."""
    content_bytes: int | None = None
    """The size of the image that it holds, when that is smaller; see `NewVolume`."""
    gateway: str | None = None
    """Of a volume in a pool of several gateways: the one that has it open; "" if none has."""
    cache: CacheState | None = None
    """Of a volume in a pool whose volumes may have a cache."""
    limits: IoLimits = NO_IO_LIMITS
    """What a volume's I/O is held to. The operator sets it."""
    profile: str | None = None
    """The name of a volume's device profile, if it has one. The operator sets it."""


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume as its tenant sees it."""

    id: VolumeId
    status: Status
    size_gib: int
    display_name: str | None
    display_description: str | None
    availability_zone: str
    snapshot_id: SnapshotId | None
    """What it was made from; may be deleted since."""
    image_id: ImageId | None
    metadata: Mapping[str, str]
    created_at: float
    attachment: Attachment | None
    last_error: str | None = None
    """Why the latest attaching or detaching did not go as asked, or why a device at the server
    does not have the size that the volume was extended to."""
    backing: Backing | None = None
    """None in a stored record only."""
    hold: str | None = None
    """Of a volume in maintenance: who holds it, and what for."""
    source_volume: VolumeId | None = None
    """What it was cloned from; may be deleted since. Code that does not know this drops it."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot as its tenant sees it."""

    id: SnapshotId
    volume_id: VolumeId
    """Its origin; may be deleted since."""
    status: Status
    size_gib: int
    display_name: str | None
    display_description: str | None
    created_at: float
    backing: Backing | None = None
    """None in a stored record only."""
    consumes_quota: bool = True
    """False: made for a migration (`NewSnapshot`), and not counted. Code that does not know this
    counts it when it is deleted."""


@dataclass(frozen=True, slots=True)
class NewVolume:
    """What a new volume should be. At most one of `snapshot_id`, `image_id` and `source_volume` is
    given.

    `size_gib` (1 to 16384) is required for a blank volume. With a snapshot it has no effect: the
    volume has the snapshot's size, and that is what is recorded and counted (4.4.2, rule 1, without
    its bug). With an image it may be left out, and must not be smaller than the image.

    `size_bytes` (1 MiB to 16 TiB, in whole blocks) is our extension: an exact size, which
    `size_gib` may repeat, rounded up. It does have effect with a snapshot, and must not be smaller
    than it. The size rounded up is what is recorded and counted.

    `content_bytes` is our extension too: the size of the image that will be written to a blank
    volume. `size_bytes` is then that size rounded up to whole blocks, and at least 1 MiB. `bock
    volume export` writes `content_bytes`, if only zeros follow. Snapshots keep it, and so do clones
    and reverted volumes of the same size; a volume that is extended loses it.
    """

    size_gib: int | None
    display_name: str | None = None
    display_description: str | None = None
    snapshot_id: SnapshotId | None = None
    image_id: ImageId | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    availability_zone: str | None = None
    token: str | None = field(default=None, repr=False)
    """The caller's, with which an image is fetched that is not here."""
    size_bytes: int | None = None
    content_bytes: int | None = None
    source_volume: VolumeId | None = None
    """Another volume, in use or not, of which this one is to hold what it holds now: Cinder's
    `source_volid`. `size_gib` may then be left out, and one that repeats the source's is exactly
    that."""

    @property
    def is_blank(self) -> bool:
        """Whether it is to hold zeros."""
        return self.snapshot_id is None and self.image_id is None and self.source_volume is None


@dataclass(frozen=True, slots=True)
class NewSnapshot:
    """What a new snapshot should be. `force`: also of an attached volume.

    One that does not consume quota is for whoever copies the volume, who deletes it soon: a volume
    has `rules.MAX_UNCOUNTED_SNAPSHOTS` at most. Cinder has the same word.
    """

    volume_id: VolumeId
    display_name: str | None = None
    display_description: str | None = None
    force: bool = False
    consumes_quota: bool = True


@dataclass(frozen=True, slots=True)
class Edit:
    """The new name, description and metadata of a volume or snapshot; None leaves what is there. An
    empty name or description removes it.

    The name in the pool, and so the name of the export, stays.
    """

    display_name: str | None = None
    display_description: str | None = None
    metadata: Mapping[str, str | None] | None = None
    """Of a volume: items to set; one whose value is None goes. It must be there."""
    keeps_other_metadata: bool = False
    """Whether items stay that `metadata` does not name."""


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list to return. Lists are in the order of ids.

    Negative numbers raise InvalidRequestError. The filters apply in this order: only items with
    `display_name` (when given), then those after id `marker`, then without the first `offset`, then
    at most `limit`.
    """

    limit: int | None = None
    """None or 0: all."""
    marker: int | None = None
    offset: int = 0
    display_name: str | None = None


EVERYTHING = Page()


# -- quotas, images, extensions ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Quota:
    """The most that a tenant may have; UNLIMITED (-1) is no limit. Snapshots take no gigabytes:
    they share their volume's blocks."""

    volumes: int
    gigabytes: int
    snapshots: int


UNLIMITED = -1


@dataclass(frozen=True, slots=True)
class Usage:
    """What a tenant has, counted in the transactions that change it."""

    volumes: int = 0
    gigabytes: int = 0
    snapshots: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """A tenant's quota and how much of it is used."""

    quota: Quota
    used: Usage


@dataclass(frozen=True, slots=True)
class Image:
    """An image that volumes can be made from. All tenants see all images."""

    id: ImageId
    name: str
    size_bytes: int
    """Of the disk that it is, in whole blocks."""
    min_size_gib: int
    """The smallest volume that holds it."""
    disk_format: str
    """Of the file it was imported from: raw, qcow2, vmdk, vdi, vhdx, vhd."""
    checksum: str
    """SHA-256 of that file, in hexadecimal."""
    created_at: float
    file_bytes: int
    """The length of that file."""
    content_bytes: int | None = None
    """The disk's size as its file has it, when `size_bytes` is larger."""


@dataclass(frozen=True, slots=True)
class NewImage:
    """What a new image should be; see `Image`."""

    name: str
    disk_format: str
    size_bytes: int
    file_bytes: int
    checksum: str
    glance_id: ImageId | None = None
    """The id it has in Glance, when it is fetched from there; it keeps it."""
    content_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Extension:
    """An entry of GET /extensions."""

    alias: str
    name: str
    namespace: str
    updated: str
    description: str


class BlockStorage(Protocol):
    """See the module's docstring for what holds for all methods."""

    async def list_volumes(self, tenant: TenantId, page: Page = EVERYTHING) -> list[Volume]:
        """List a tenant's volumes (section 4.4.2.1)."""
        ...

    async def create_volume(self, tenant: TenantId, new: NewVolume) -> Volume:
        """Create a volume (section 4.4.2.2). The status returned is "creating", as specified,
        though the volume is ready and the next request shows that. Only a volume whose image is
        still to be fetched from Glance stays "creating", until it is available or in error.

        Raises OverLimitError beyond the tenant's quota, NotFoundError for the snapshot, image or
        volume, InvalidStateError when the snapshot is not available, or when no snapshot could be
        taken of the volume.
        """
        ...

    async def show_volume(self, tenant: TenantId, volume: VolumeId) -> Volume:
        """Return one volume (section 4.4.2.3)."""
        ...

    async def edit_volume(self, tenant: TenantId, volume: VolumeId, edit: Edit) -> Volume:
        """Change a volume's name, description and metadata: our extension, in the form of Cinder's
        update. Returns the volume after the change.

        Raises InvalidRequestError for texts that cannot be stored, NotFoundError for a metadata
        item that is to be removed and does not exist.
        """
        ...

    async def edit_snapshot(self, tenant: TenantId, snapshot: SnapshotId, edit: Edit) -> Snapshot:
        """Change a snapshot's name and description, as `edit_volume` does. Snapshots have no
        metadata."""
        ...

    async def delete_volume(
        self,
        tenant: TenantId,
        volume: VolumeId,
        hold: str | None = None,
        *,
        for_good: bool = False,
    ) -> None:
        """Delete a volume (section 4.4.2.4). It is gone when this returns; its snapshots, and
        volumes made from them, stay. With `hold`, which is our extension, it is deleted only if it
        is held for this reason; with `for_good`, it is not kept in a trash, where there is one.

        Raises InvalidStateError unless it is available, held or in error, and while a client is
        connected to it; if it is not held, but should be; ConflictError if it is held for another
        reason. After another failure it is in error_deleting, and the deletion can be tried again.
        """
        ...

    async def extend_volume(self, tenant: TenantId, volume: VolumeId, size_bytes: int) -> None:
        """Grow a volume: our extension, in the form of Cinder's os-extend. Connected clients see
        the new size when they connect again.

        Raises InvalidRequestError unless it grows, InvalidStateError unless it is available or in
        use, OverLimitError beyond the quota.
        """
        ...

    async def revert_volume(self, tenant: TenantId, volume: VolumeId, snapshot: SnapshotId) -> None:
        """Revert a volume to exactly the content of one of its snapshots: our extension, in the
        form of Cinder's revert. The volume's size stays; what lies beyond the snapshot's end reads
        as zeros.

        Raises InvalidRequestError for another volume's snapshot, InvalidStateError unless both are
        available, and while a client is connected to the volume.
        """
        ...

    async def reopen_volume(self, tenant: TenantId, volume: VolumeId) -> None:
        """Use a volume again that is refused after an error (`Backing.error`): our extension. The
        caller accepts that writes since the last successful flush may be lost.

        Raises InvalidStateError when nothing is wrong with it, and while a client is connected.
        """
        ...

    async def set_volume_cache(self, tenant: TenantId, volume: VolumeId, mode: CacheMode) -> None:
        """Choose how a volume is cached from its next opening on: our extension. What is dirty is
        written back first.

        Raises InvalidStateError unless it is available or in use, while a client is connected, and
        while another gateway has not written it back; InvalidRequestError where volumes have no
        cache, or this gateway has no place for it.
        """
        ...

    async def discard_volume_cache(self, tenant: TenantId, volume: VolumeId) -> None:
        """Give up what was answered of a volume and is not in the pool: our extension. The volume
        goes back to the state of a flush that is there, as after a power cut.

        Raises InvalidStateError while a client is connected, and while the gateway that has it
        runs, which is to be asked itself; ConflictError when there is nothing to give up,
        InvalidRequestError where volumes have no cache.
        """
        ...

    async def hold_volume(
        self, tenant: TenantId, volume: VolumeId, reason: str, instead_of: str | None = None
    ) -> None:
        """Keep everybody off a volume until it is released: our extension. No client may connect to
        it in any way; of what can be done to it, only snapshots, edits, its release and its
        deletion remain. With `instead_of`, the reason of a hold is replaced, which it must be.

        Raises InvalidRequestError for a reason that is empty or cannot be stored, InvalidStateError
        unless it is available or held for this very reason, and while a client is connected to it.
        """
        ...

    async def release_volume(
        self, tenant: TenantId, volume: VolumeId, reason: str | None = None
    ) -> None:
        """Make a volume that is held available again. Raises InvalidStateError if it is not held,
        ConflictError if it is held for another reason than the one given."""
        ...

    async def volume_space(self, tenant: TenantId, volume: VolumeId) -> Space:
        """Compute a volume's exact space by a walk over its maps: our extension."""
        ...

    async def snapshot_space(self, tenant: TenantId, snapshot: SnapshotId) -> Space:
        """Compute a snapshot's exact space, as `volume_space` does."""
        ...

    async def snapshot_changes(
        self, tenant: TenantId, older: SnapshotId, newer: SnapshotId, offset: int = 0
    ) -> Changes:
        """Find where a snapshot may hold something else than an older one, from `offset` bytes on:
        our extension. Outside of these ranges both read the same, and what the newer one has beyond
        the end of the older one reads as zeros. At most `MAX_CHANGES` ranges are returned at once
        (bockd.blockstorage.snapshots)."""
        ...

    async def list_snapshots(self, tenant: TenantId, page: Page = EVERYTHING) -> list[Snapshot]:
        """List a tenant's snapshots (section 4.4.4.1)."""
        ...

    async def create_snapshot(self, tenant: TenantId, new: NewSnapshot) -> Snapshot:
        """Create a snapshot that freezes the volume's present content (section 4.4.4.2). The status
        returned is "creating", as for a volume.

        Raises InvalidStateError when the volume is attached (unless forced) or not available,
        OverLimitError beyond the quota, or the number of those that consume none.
        """
        ...

    async def show_snapshot(self, tenant: TenantId, snapshot: SnapshotId) -> Snapshot:
        """Return one snapshot (section 4.4.4.3)."""
        ...

    async def delete_snapshot(self, tenant: TenantId, snapshot: SnapshotId) -> None:
        """Delete a snapshot (section 4.4.4.4). Volumes made from it stay. Raise InvalidStateError
        while it is read."""
        ...

    async def list_attachments(self, tenant: TenantId, server: str) -> list[Attachment]:
        """List a server's attachments by volume id (section 4.4.3.1); the list is empty for a
        server that has none. Raise NotFoundError for an unknown server (see `show_server`)."""
        ...

    async def show_attachment(self, tenant: TenantId, server: str, volume: VolumeId) -> Attachment:
        """Return the attachment of one volume. Raise NotFoundError when the volume is not attached
        to this server."""
        ...

    async def attach(
        self, tenant: TenantId, server: str, volume: VolumeId, device: str | None
    ) -> Attachment:
        """Attach a volume to a server (section 4.4.3.2). Device None means the next free one, from
        /dev/vdb. When this returns, the export is open and, at a VM, the device is plugged in.

        Raises InvalidStateError unless the volume is available (rules 1 and 4), InvalidRequestError
        for a name that is no device's, ConflictError when the server has something at that device
        (rule 6). When the export cannot be opened or the device cannot be plugged in, the volume is
        available again, and its `last_error` and the error raised both say why.
        """
        ...

    async def detach(
        self, tenant: TenantId, server: str, volume: VolumeId, *, force: bool = False
    ) -> None:
        """Detach a volume from a server (section 4.4.3.3). When this returns the export is gone,
        all that was acknowledged through it is flushed, and nothing that its clients still send has
        any effect.

        Clients get a moment to have their requests answered, and a VM to give the device up; when
        it does not, the volume stays in use, its `last_error` says why, and a BockdError is raised.
        With `force` the connections are cut at once, and a VM is not waited for. When the flush
        fails, the volume is detached and in error.

        Raises NotFoundError when it is attached to another server, InvalidStateError unless it is
        in use (rule 3).
        """
        ...

    def connections(self, attachment: Attachment) -> int:
        """Return how many clients are connected to an attachment's export."""
        ...

    def gateways(self, attachment: Attachment) -> Sequence[Gateway]:
        """Return the gateways through which an attachment's server may connect: the one that has
        the volume open, or else this one, then the others by name. Empty where there is one
        daemon."""
        ...

    async def list_servers(self, tenant: TenantId) -> list[Server]:
        """List the registered servers that exist for a tenant, by name."""
        ...

    async def show_server(self, tenant: TenantId, server: str) -> Server:
        """Return one server. Raise NotFoundError for an id that is not 1 to 255 letters, digits,
        ".", "_" or "-", and for a server that is registered for another tenant. An id that nobody
        has registered is a plain server; when servers are strict, it is not found either."""
        ...

    async def limits(self, tenant: TenantId) -> Limits:
        """Return the tenant's limits and usage (section 4.4.2, "Quota Limits")."""
        ...

    async def list_images(self) -> list[Image]:
        """List all images, by name and id."""
        ...

    async def show_image(self, image: ImageId) -> Image: ...

    async def list_extensions(self) -> list[Extension]:
        """List what this API has beyond OpenStack Compute 1.1, which the specification builds
        on."""
        ...
