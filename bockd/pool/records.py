"""What every kind of pool knows of its volumes and snapshots. A driver's own records add to it."""

from __future__ import annotations

from dataclasses import dataclass

from bockd.errors import NotFoundError
from bockd.model import DeviceProfile, IoLimits, NodeKind, SnapshotId, VolumeId


@dataclass(frozen=True, slots=True)
class Trashed:
    """What is in the record of a volume or snapshot while it is in the trash (bockd.pool.trash)."""

    name: str
    """What it was called."""
    at: float
    """When it was moved there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeRecord:
    """A volume. Stored as a JSON object of these fields and the driver's own."""

    id: VolumeId
    name: str
    size_bytes: int
    created_at: float
    from_snapshot: SnapshotId | None
    failed: str | None
    """Why the volume is refused until an operator reopens it."""
    content_bytes: int | None = None
    """The size of the image that was imported into it, when it is smaller than `size_bytes`. Code
    that does not know this drops it, and then exports what was added to make whole blocks."""
    limits: IoLimits | None = None
    """Its own, as the operator has set them. None: those that hold by default. Code that does not
    know this drops it, and holds the volume to nothing."""
    profile: DeviceProfile | None = None
    """What it is made to look like. Code that does not know this drops it: it is as fast then as
    the pool, and does not fail."""
    trashed: Trashed | None = None
    """None: it is not in the trash. Code that does not know this would show it, and is refused: a
    pool has another format from the first one that is moved there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotRecord:
    """A snapshot. `volume` is the origin, which may be gone."""

    id: SnapshotId
    name: str
    volume: VolumeId
    size_bytes: int
    created_at: float
    content_bytes: int | None = None
    """As the volume's."""
    trashed: Trashed | None = None
    """As the volume's."""


def name_of(record: VolumeRecord | SnapshotRecord) -> str:
    """Return what users call it: for one in the trash, the name that it had."""
    return record.name if record.trashed is None else record.trashed.name


def refuse_trashed(kind: NodeKind, record: VolumeRecord | SnapshotRecord) -> None:
    """Raise NotFoundError for a volume or snapshot that is in the trash."""
    if record.trashed is not None:
        raise NotFoundError(
            f"{kind} {record.id} ({record.trashed.name}) is in the trash: "
            f"'bock trash restore {record.id}' brings it back"
        )
