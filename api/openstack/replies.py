"""What clients get: the objects that the specification shows, key by key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cache
from typing import Any, NotRequired, TypeVar, cast

from pydantic.alias_generators import to_snake
from typing_extensions import TypedDict

from api.openstack.deferred import reply
from api.openstack.values import date, precise_date, server_number
from bockd.blockstorage.contract import Attachment, Backing, Snapshot, Volume
from bockd.model import IoLimits
from bockd.pool.caches import CacheState
from bockd.pool.reports import Changes, Space
from bockd.publictexts import NOT_WRITTEN_BACK


class CacheView(TypedDict):
    """How a volume is cached, and what of it the pool does not have yet."""

    mode: str
    dirty_at: str | None
    """A gateway."""
    dirty_since: str | None
    dirty_bytes: int | None
    """Null: only that gateway knows, while it has the volume open."""
    error: str | None
    """That write-back is not at work as it should be; the reason is for the operator."""
    discarded_at: str | None
    salvaged_bytes: int | None
    """Of the log of what was discarded then: what was written back. Null: it was not read."""
    given_up_bytes: int | None
    """The same: all the rest that was found of it."""


class RateView(TypedDict):
    """A limit per second, and the rate and the length of a burst."""

    per_second: int
    burst: int | None
    burst_seconds: int


class LimitsView(TypedDict, total=False):
    """What a volume's I/O is held to: only the limits that there are."""

    iops: RateView
    read_iops: RateView
    write_iops: RateView
    bps: RateView
    read_bps: RateView
    write_bps: RateView
    iops_size: int


class BackingView(TypedDict):
    """Our own key, which old clients ignore: what the pool has behind a volume or snapshot."""

    daemon: str
    name: str
    export: str
    size_bytes: int
    content_bytes: int
    connections: int
    error: str | None
    gateway: NotRequired[str | None]
    """Of a volume in a pool of several gateways: the one that has it open."""
    cache: NotRequired[CacheView]
    """Of a volume in a pool whose volumes may have a cache."""
    limits: NotRequired[LimitsView]
    """Of a volume whose I/O is limited."""
    profile: NotRequired[str]
    """Of a volume with a device profile: its name."""
    hold: NotRequired[str]
    """Of a volume in maintenance: who holds it, and what for."""
    source_volid: NotRequired[int]
    """Of a clone: the volume that it was made of, which may be deleted since."""
    consumes_quota: NotRequired[bool]
    """Of a snapshot that consumes none: false."""


class VolumeBackingView(BackingView):
    """The same, and what the latest attaching or detaching has to say."""

    last_error: str | None


class AttachmentInVolume(TypedDict, total=False):
    """Where a volume is attached; without any key when it is not (section 4.4.2.1)."""

    id: int
    volumeId: int
    serverId: int | str
    device: str
    volume_id: int
    server_id: int | str


class CinderKeys(TypedDict):
    """What Cinder's version 1 calls some of our keys, under its own paths only."""

    display_name: NotRequired[str | None]
    display_description: NotRequired[str | None]
    created_at: NotRequired[str]


class VolumeView(CinderKeys):
    """Section 4.4.2.3. `imageRef` is there in lists (section 4.4.2.1), and where there is one."""

    status: str
    displayDescription: str | None
    availabilityZone: str
    displayName: str | None
    attachments: list[AttachmentInVolume]
    volumeType: None
    snapshotId: int | str
    imageRef: NotRequired[str]
    size: int
    id: int
    createdAt: str
    metadata: dict[str, str]
    bockd: VolumeBackingView
    availability_zone: NotRequired[str]
    snapshot_id: NotRequired[int | str]
    volume_type: NotRequired[None]


@reply
class OneVolume(TypedDict):
    """Sections 4.4.2.2 and 4.4.2.3."""

    volume: VolumeView


@reply
class VolumeList(TypedDict):
    """Section 4.4.2.1."""

    volumes: list[VolumeView]


class AttachmentExtra(TypedDict):
    """What is ours in an attachment: the way in."""

    uri: str | None
    """Over TCP; null when the daemon does not listen there."""
    uris: NotRequired[list[str]]
    """In a pool of several gateways: over TCP, one for each of them that listens there; `uri` is
    the first."""
    unix_uri: str | None
    """On the daemon's own machine."""
    export: str
    """The export's name, which is a secret: who knows it can read and write the volume."""
    connections: int
    kind: str
    """The server's, when the volume was attached to it."""
    device_info: dict[str, str]
    """Of the device that was plugged into a virtual machine."""


class AttachmentView(TypedDict):
    """Section 4.4.3.1; the reply of 4.4.3.2 shows the ids only."""

    device: str
    serverId: int | str
    id: int
    volumeId: int
    bockd: AttachmentExtra


@reply
class OneAttachment(TypedDict):
    """Section 4.4.3.2."""

    volumeAttachment: AttachmentView


@reply
class AttachmentList(TypedDict):
    """Section 4.4.3.1."""

    volumeAttachments: list[AttachmentView]


class SnapshotView(CinderKeys):
    """Section 4.4.4.1."""

    status: str
    displayDescription: str | None
    displayName: str | None
    volumeId: int
    id: int
    createdAt: str
    size: int
    bockd: BackingView
    volume_id: NotRequired[int]


@reply
class NewSnapshotView(TypedDict):
    """Section 4.4.4.2."""

    snapshot: SnapshotView


@reply
class OneSnapshot(TypedDict):
    """Section 4.4.4.3: the document says `snapshots`, every client reads `snapshot`."""

    snapshot: SnapshotView
    snapshots: SnapshotView


@reply
class SnapshotList(TypedDict):
    """Section 4.4.4.1."""

    snapshots: list[SnapshotView]


@reply
class MetadataView(TypedDict):
    """All of a volume's metadata."""

    metadata: dict[str, str]


@reply
class OneItem(TypedDict):
    """One item of it."""

    meta: dict[str, str]


class SpaceView(TypedDict):
    """What only it reaches, and what others reach too."""

    exclusive_bytes: int
    shared_bytes: int


@reply
class OneSpace(TypedDict):
    """`{"space": {...}}`, ours."""

    space: SpaceView


def view_space(space: Space) -> SpaceView:
    """Render exact space in bytes."""
    return {"exclusive_bytes": space.exclusive_bytes, "shared_bytes": space.shared_bytes}


class ChangesView(TypedDict):
    """Where a snapshot may differ from an older one."""

    ranges: list[tuple[int, int]]
    """Offset and length in bytes, in order."""
    end_bytes: int
    """Up to where they are all; the size of the snapshot if there are no more."""


@reply
class OneChanges(TypedDict):
    """`{"changes": {...}}`, ours."""

    changes: ChangesView


def view_changes(changes: Changes) -> ChangesView:
    """Render where two snapshots differ."""
    return {"ranges": list(changes.ranges), "end_bytes": changes.end_bytes}


def view_backing(backing: Backing | None) -> BackingView:
    """Render what is under the key "bockd"."""
    assert backing is not None  # only stored records lack it
    view: BackingView = {
        "daemon": backing.daemon,
        "name": backing.name,
        "export": backing.export,
        "size_bytes": backing.size_bytes,
        "content_bytes": backing.content_bytes or backing.size_bytes,
        "connections": backing.connections,
        "error": backing.error,
    }
    if backing.gateway is not None:
        view["gateway"] = backing.gateway or None
    if backing.cache is not None:
        view["cache"] = view_cache(backing.cache)
    if backing.limits.rates():
        view["limits"] = view_limits(backing.limits)
    if backing.profile is not None:
        view["profile"] = backing.profile
    return view


def view_limits(limits: IoLimits) -> LimitsView:
    """Render what a volume's I/O is held to."""
    found = {name: value for name, value in asdict(limits).items() if value is not None}
    return cast(LimitsView, found)


def view_cache(state: CacheState) -> CacheView:
    """Render how a volume is cached."""
    return {
        "mode": state.mode.value,
        "dirty_at": state.dirty_at,
        "dirty_since": None if state.dirty_since is None else date(state.dirty_since),
        "dirty_bytes": state.dirty_bytes,
        "error": None if state.trouble is None else NOT_WRITTEN_BACK,
        "discarded_at": None if state.discarded_at is None else date(state.discarded_at),
        "salvaged_bytes": None if state.salvaged is None else state.salvaged.written_bytes,
        "given_up_bytes": None if state.salvaged is None else state.salvaged.given_up_bytes,
    }


def view_attachment(attachment: Attachment, extra: AttachmentExtra) -> AttachmentView:
    """Render one attachment; its id is the volume's."""
    return {
        "device": attachment.device,
        "serverId": server_number(attachment.server_id),
        "id": attachment.id,
        "volumeId": attachment.volume_id,
        "bockd": extra,
    }


def attachments_of(volume: Volume) -> list[AttachmentInVolume]:
    """Render a volume's attachment in a list: `[{}]` when there is none, as documented."""
    attachment = volume.attachment
    if attachment is None:
        return [{}]
    return [
        {
            "id": attachment.id,
            "volumeId": attachment.volume_id,
            "serverId": server_number(attachment.server_id),
            "device": attachment.device,
        }
    ]


def view_volume(volume: Volume) -> VolumeView:
    """Render one volume."""
    view: VolumeView = {
        "status": volume.status.value,
        "displayDescription": volume.display_description,
        "availabilityZone": volume.availability_zone,
        "displayName": volume.display_name,
        "attachments": attachments_of(volume),
        "volumeType": None,
        "snapshotId": "" if volume.snapshot_id is None else volume.snapshot_id,
        "size": volume.size_gib,
        "id": volume.id,
        "createdAt": date(volume.created_at),
        "metadata": dict(volume.metadata),
        "bockd": {**view_backing(volume.backing), "last_error": volume.last_error},
    }
    if volume.hold is not None:
        view["bockd"]["hold"] = volume.hold
    if volume.source_volume is not None:
        view["bockd"]["source_volid"] = volume.source_volume
    if volume.image_id is not None:
        view["imageRef"] = volume.image_id
    return view


def list_volume(volume: Volume) -> VolumeView:
    """Render one volume in a list, where `imageRef` is always there."""
    view = view_volume(volume)
    view.setdefault("imageRef", "")
    return view


def view_snapshot(snapshot: Snapshot) -> SnapshotView:
    """Render one snapshot."""
    view: SnapshotView = {
        "status": snapshot.status.value,
        "displayDescription": snapshot.display_description,
        "displayName": snapshot.display_name,
        "volumeId": snapshot.volume_id,
        "id": snapshot.id,
        "createdAt": date(snapshot.created_at),
        "size": snapshot.size_gib,
        "bockd": view_backing(snapshot.backing),
    }
    if not snapshot.consumes_quota:
        view["bockd"]["consumes_quota"] = False
    return view


def view_new_snapshot(snapshot: Snapshot) -> SnapshotView:
    """Render a snapshot that was just made: its date is to the microsecond, as documented."""
    view = view_snapshot(snapshot)
    view["createdAt"] = precise_date(snapshot.created_at)
    return view


V = TypeVar("V", VolumeView, SnapshotView)
Spelling = Callable[[V], V]


def as_documented(view: V) -> V:
    """Return the view as it is: the keys of HP's document, and no others."""
    return view


def as_cinder_does(view: V) -> V:
    """Return the view with each key also in snake_case. Clients of Cinder look for volumes by
    `display_name`."""
    both = _in_snake_case(view)
    if "attachments" in both:
        both["attachments"] = [_in_snake_case(one) for one in both["attachments"]]
    return cast(V, both)


_snake = cache(to_snake)
"""The same few keys a thousand times."""


def _in_snake_case(view: Mapping[str, Any]) -> dict[str, Any]:
    return {**view, **{_snake(key): value for key, value in view.items() if key != "imageRef"}}
