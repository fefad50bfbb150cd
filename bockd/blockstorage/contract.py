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

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType, Protocol

from bockd.control import Space
from bockd.model import Server, ServerKind, SnapshotId, VolumeId

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
    DELETING = "deleting"
    ERROR = "error"
    ERROR_DELETING = "error_deleting"


# -- identity --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PasswordCredentials:
    """`passwordCredentials` of POST /v2.0/tokens."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class AccessKeyCredentials:
    """`apiAccessKeyCredentials` of POST /v2.0/tokens."""

    access_key: str
    secret_key: str = field(repr=False)


Credentials = PasswordCredentials | AccessKeyCredentials


@dataclass(frozen=True, slots=True)
class Tenant:
    """Whose volumes they are. `id` is what stands in paths."""

    id: TenantId
    name: str


@dataclass(frozen=True, slots=True)
class Principal:
    """On whose behalf a request acts: a user in a tenant, until its token expires."""

    user_id: UserId
    username: str
    tenant: Tenant
    roles: tuple[str, ...]
    expires_at: float


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A new token. Its text is shown here once and kept nowhere."""

    token: str = field(repr=False)
    principal: Principal


class Identity(Protocol):
    """Who may do what. Another implementation may ask a Keystone instead."""

    async def issue_token(self, credentials: Credentials, tenant: str | None) -> IssuedToken:
        """A token for a tenant, given by id or name; None is the user's only tenant (the first
        by name when there are several).

        Raises UnauthorizedError for wrong credentials and for a tenant that the user is not in,
        without saying which; OverLimitError when too many ask at once.
        """
        ...

    async def validate_token(self, token: str) -> Principal:
        """Whose token it is. UnauthorizedError when it is unknown or has expired."""
        ...

    async def authorize(self, token: str, tenant: str) -> Principal:
        """The same, for a request to a path of `tenant` (an id): ForbiddenError when the token is
        valid for another one."""
        ...

    async def revoke_token(self, token: str) -> None:
        """Make a token invalid at once. UnauthorizedError when it is already."""
        ...

    async def list_tenants(self, token: str) -> list[Tenant]:
        """All tenants of the token's user, by name. UnauthorizedError."""
        ...


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


@dataclass(frozen=True, slots=True)
class NewVolume:
    """What a volume shall be. At most one of `snapshot_id` and `image_id`.

    `size_gib` (1 to 16384) is required for a blank volume. With a snapshot it has no effect: the
    volume has the snapshot's size, and that is what is recorded and counted (4.4.2, rule 1, without
    its bug). With an image it may be left out, and must not be smaller than the image.

    `size_bytes` (1 MiB to 16 TiB, in whole blocks) is ours: an exact size, which `size_gib` may
    repeat rounded up. It does have effect with a snapshot, and must not be smaller than it. Rounded
    up is what is recorded and counted.

    `content_bytes` is ours too: the size of the image that will be written to a blank volume, of
    which `size_bytes` is then whole blocks, and 1 MiB at least. An export gives so much. Snapshots
    have it, clones and reverted volumes of the same size too; one that is extended has it no more.
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


@dataclass(frozen=True, slots=True)
class NewSnapshot:
    """What a snapshot shall be. `force`: of an attached volume too."""

    volume_id: VolumeId
    display_name: str | None = None
    display_description: str | None = None
    force: bool = False


@dataclass(frozen=True, slots=True)
class Edit:
    """What a volume or snapshot is to be called from now on; None leaves what is there. An empty
    name or description is none.

    Its name in the pool, and so the name of its export, stays.
    """

    display_name: str | None = None
    display_description: str | None = None
    metadata: Mapping[str, str | None] | None = None
    """Of a volume: items to set; one whose value is None goes. It must be there."""
    keeps_other_metadata: bool = False
    """Whether items stay that `metadata` does not name."""


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list, in the order of ids.

    Negative numbers raise InvalidRequestError. First what has `display_name` (when given), then
    what comes after id `marker`, then without the first `offset`, then at most `limit`.
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
    """What an image shall be; see `Image`."""

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
        """4.4.2.1."""
        ...

    async def create_volume(self, tenant: TenantId, new: NewVolume) -> Volume:
        """4.4.2.2. The volume returned is "creating", as specified; it is ready nevertheless and
        the next look at it says so. Only a volume whose image is still to be fetched from Glance
        stays "creating", until it is available or in error.

        Raises OverLimitError beyond the tenant's quota, NotFoundError for the snapshot or image,
        InvalidStateError when the snapshot is not available.
        """
        ...

    async def show_volume(self, tenant: TenantId, volume: VolumeId) -> Volume:
        """4.4.2.3."""
        ...

    async def edit_volume(self, tenant: TenantId, volume: VolumeId, edit: Edit) -> Volume:
        """Ours, in the form of Cinder's update. Returns the volume as it is then.

        Raises InvalidRequestError for texts that cannot be kept, NotFoundError for a metadata item
        that is to go and is not there.
        """
        ...

    async def edit_snapshot(self, tenant: TenantId, snapshot: SnapshotId, edit: Edit) -> Snapshot:
        """The same of a snapshot, which has no metadata."""
        ...

    async def delete_volume(self, tenant: TenantId, volume: VolumeId) -> None:
        """4.4.2.4. It is gone when this returns; its snapshots, and volumes made from them, stay.

        Raises InvalidStateError unless it is available or in error, and while a client is
        connected to it. Another failure leaves it in error_deleting, to be tried again.
        """
        ...

    async def extend_volume(self, tenant: TenantId, volume: VolumeId, size_bytes: int) -> None:
        """Ours, in the form of Cinder's os-extend: grow a volume. Connected clients see the new
        size when they connect again.

        Raises InvalidRequestError unless it grows, InvalidStateError unless it is available or in
        use, OverLimitError beyond the quota.
        """
        ...

    async def revert_volume(self, tenant: TenantId, volume: VolumeId, snapshot: SnapshotId) -> None:
        """Ours, in the form of Cinder's revert: the volume holds again exactly what one of its
        snapshots holds. Its size stays; what lies beyond the snapshot's end reads as zeros.

        Raises InvalidRequestError for another volume's snapshot, InvalidStateError unless both are
        available, and while a client is connected to the volume.
        """
        ...

    async def reopen_volume(self, tenant: TenantId, volume: VolumeId) -> None:
        """Ours: use a volume again that is refused after an error (`Backing.error`), accepting that
        writes since its last successful flush may be lost.

        Raises InvalidStateError when nothing is wrong with it, and while a client is connected.
        """
        ...

    async def volume_space(self, tenant: TenantId, volume: VolumeId) -> Space:
        """Ours: exact space, by a walk over the volume's maps."""
        ...

    async def snapshot_space(self, tenant: TenantId, snapshot: SnapshotId) -> Space:
        """The same of a snapshot."""
        ...

    async def list_snapshots(self, tenant: TenantId, page: Page = EVERYTHING) -> list[Snapshot]:
        """4.4.4.1."""
        ...

    async def create_snapshot(self, tenant: TenantId, new: NewSnapshot) -> Snapshot:
        """4.4.4.2. What the volume holds now, frozen; "creating" when returned, as a volume is.

        Raises InvalidStateError when the volume is attached (unless forced) or not settled,
        OverLimitError beyond the quota.
        """
        ...

    async def show_snapshot(self, tenant: TenantId, snapshot: SnapshotId) -> Snapshot:
        """4.4.4.3."""
        ...

    async def delete_snapshot(self, tenant: TenantId, snapshot: SnapshotId) -> None:
        """4.4.4.4. Volumes made from it stay. InvalidStateError while it is read."""
        ...

    async def list_attachments(self, tenant: TenantId, server: str) -> list[Attachment]:
        """4.4.3.1. By volume id; empty for a server that has none. NotFoundError for what is no
        server (see `show_server`)."""
        ...

    async def show_attachment(self, tenant: TenantId, server: str, volume: VolumeId) -> Attachment:
        """One of them. NotFoundError when the volume is not attached to this server."""
        ...

    async def attach(
        self, tenant: TenantId, server: str, volume: VolumeId, device: str | None
    ) -> Attachment:
        """4.4.3.2. Device None is the next free one, from /dev/vdb. The export is open when this
        returns and, at a VM, the device is plugged in.

        Raises InvalidStateError unless the volume is available (rules 1 and 4),
        InvalidRequestError for a device that is not one, ConflictError when the server has
        something there (rule 6). When the export cannot be opened or the device not be plugged in,
        the volume is available again, and its `last_error` says why, as does what is raised.
        """
        ...

    async def detach(
        self, tenant: TenantId, server: str, volume: VolumeId, *, force: bool = False
    ) -> None:
        """4.4.3.3. When this returns the export is gone, all that was acknowledged through it is
        flushed, and nothing that its clients still send can land.

        Clients get a moment to have what they sent answered, and a VM to give the device up; when
        it does not, the volume stays in use, its `last_error` says why, and a BockdError is
        raised. With `force` the connections are cut at once, and a VM is not waited for. When the
        flush fails the volume is detached and in error.

        Raises NotFoundError when it is attached to another server, InvalidStateError unless it is
        in use (rule 3).
        """
        ...

    def connections(self, attachment: Attachment) -> int:
        """How many clients are connected to an attachment's export."""
        ...

    async def list_servers(self, tenant: TenantId) -> list[Server]:
        """The registered servers that exist for a tenant, by name."""
        ...

    async def show_server(self, tenant: TenantId, server: str) -> Server:
        """One server. NotFoundError for an id that is not 1 to 255 letters, digits, ".", "_" or
        "-", and for one that is registered for another tenant. One that nobody registered is a
        plain server, unless servers are strict: then it is not found either."""
        ...

    async def limits(self, tenant: TenantId) -> Limits:
        """Section 4.4.2, "Quota Limits"."""
        ...

    async def list_images(self) -> list[Image]:
        """All images, by name and id."""
        ...

    async def show_image(self, image: ImageId) -> Image: ...

    async def list_extensions(self) -> list[Extension]:
        """What this API has beyond OpenStack Compute 1.1, which the specification builds on."""
        ...
